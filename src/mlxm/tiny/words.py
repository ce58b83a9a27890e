"""The text that the tiny vocabulary is made of: common words, sentence openers, and pieces of words.

Order is rank: what stands earlier is merged first, and what no longer fits into the vocabulary is left out at the end.
"""

from __future__ import annotations

_WORDS = """
the of and to a in is it you that he was for on are with as his they be at one have this from or had by not but what
all were we when your can said there use an each which she do how their if will up other about out many then them these
so some her would make like him into time has look two more write go see number no way could people my than first water
been call who its now find long down day did get come made may part me new over after also back little only know take
year work our good give most us very think just want need say tell help show ask answer question please yes because
any before between both name place where why great even here must big high such old well through same right too does
set three small large end still own found live last left never next off again world home hand life might while
system user assistant model token message text word line list code file data type true false null error value key
language function return class string object city weather hello thank sorry sure fine today
0 1 2 3 4 5 6 7 8 9 10 20 100 = == + - * / ( [ { {" [" (" " ' ` `` ``` # ## : -> =>
under second keep should school house every another turn men read land different move try kind picture
change play spell air away animal point page letter mother study learn plant cover food sun state country earth
eye door tree cross farm hard start story saw far sea draw late run press close night real few north open seem together
group often important until children side feet car mile walk white example begin paper always music those mark book
river carry science eat room friend began idea fish mountain stop once base hear horse cut watch color face wood main
enough plain girl usual young ready above ever red though feel talk bird soon body dog family direct pose leave song
measure product black short numeral wind happen complete ship area half rock order fire south problem piece told knew
pass since top whole king space heard best hour better during hundred five remember step early hold west ground
interest reach fast sing listen six table travel less morning ten simple several toward war lay against pattern slow
center love person money serve appear road map rain rule govern pull cold notice voice unit power town certain fly fall
lead cry dark machine note wait plan figure star box field rest correct able done beauty drive stood contain front
teach week final gave green quick develop ocean warm free minute strong special mind behind clear tail produce fact
street inch multiply nothing course stay wheel full force blue decide surface deep moon island foot busy test record
boat common gold possible plane dry snow fill east tire
"""
WORDS = tuple(_WORDS.split())
"""Words as they stand inside a sentence; each is merged together with the space before it."""

_OPENERS = """
The This That There What When Where Why How Who Is It In If I You We They He She A An And But So No Yes Hello Hi Please
Write Tell Can Could Do Does Are user assistant system name type value true false null
"""
OPENERS = tuple(_OPENERS.split())
"""Words as they stand at a line's beginning or after a quote, without a space before them."""

PIECES = (
    *("tion", "ment", "ness", "able", "ing", "ers", "ent", "ant", "est", "ous", "ful", "ity", "ive", "ate", "ight"),
    *("ed", "er", "es", "ly", "al", "en", "in", "on", "or", "ar", "an", "re", "st", "th", "ch", "sh", "ck", "ll", "ss"),
    *('":"', '","', '":', '",', '"}', '"]', '{"', '["', "},", "],", "}}", "()", "):", ");", "//", "..", "'s", "'t"),
    *("\n\n", "    ", "  ", "00", "19", "20"),
    *("ou", "ea", "ee", "oo", "ai", "is", "it", "at", "ic", "le", "ra", "ro", "ri", "se", "te", "de", "ne", "ve", "me"),
    *("ge", "ce", "ke", "pe", "be", "he", "ha", "hi", "ho", "la", "li", "lo", "ma", "mi", "mo", "na", "ni", "no", "ta"),
)
"""Punctuation runs of JSON and code, endings, and inner pieces for words that are not in the lists."""
