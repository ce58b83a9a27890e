from typing import Any

import msgspec
import pytest

from mlxm.engine.formats.harmony import MARKERS
from mlxm.frames import ThoughtLimit
from mlxm.types import Grammar
from tests.engine.harness import Grammatical, Harness

MODEL = Grammatical.of("chatml")
PROMPT = (40, 41, 42)
CLOSING = "\n</think>\n\n"


def ids_of(text: str, model: Grammatical = MODEL) -> tuple[int, ...]:
    """The tokens of a text."""
    return tuple(model.detokenizer._tokenizer.encode(text, add_special_tokens=False).ids)


def text_of(token_ids: tuple[int, ...]) -> str:
    """The text of tokens."""
    return MODEL.detokenizer.decode(list(token_ids))


CLOSING_IDS = ids_of(CLOSING)


def limit(num_tokens: int, *, is_open: bool = False) -> ThoughtLimit:
    """That of a family with tags."""
    return ThoughtLimit(
        num_tokens=num_tokens, opener="<think>", closer="</think>", close_ids=CLOSING_IDS, is_open=is_open
    )


def answer(thoughts: ThoughtLimit, *said: int, model: Grammatical = MODEL, **order: Any) -> str:
    """What comes of a model that says these tokens, wherever it is free to."""
    tokens = (*said, min(model.stop_ids))
    harness = Harness(model=model, next_token=lambda known, _: tokens[len(known) - len(PROMPT)])
    harness.add("a", PROMPT, 200, thoughts=thoughts, stop_ids=model.stop_ids, **order)
    harness.run()
    harness.check_idle()
    assert harness.end("a").fault is None
    return harness.text("a")


LONG = ids_of("one two three four five six seven eight nine ten")
SO = ids_of("so it is")


@pytest.mark.parametrize("num_tokens", [0, 1, 3, 6])
def test_thoughts_that_the_prompt_opened_are_closed(num_tokens: int) -> None:
    """After so many tokens, and then the model goes on as it likes."""
    thoughts = LONG[:num_tokens]
    said = (*thoughts, *LONG[: len(CLOSING_IDS)], *SO)
    assert answer(limit(num_tokens, is_open=True), *said) == f"{text_of(thoughts)}{CLOSING}so it is"


def test_thoughts_that_the_model_opens_are_closed() -> None:
    """The opening tag is none of them."""
    said = (*ids_of("\n<think>"), *LONG[:2], *CLOSING_IDS, *SO)
    assert answer(limit(2), *said) == f"\n<think>{text_of(LONG[:2])}{CLOSING}so it is"


def test_short_thoughts_stay_as_they_are() -> None:
    """What the model closes itself is not closed again."""
    text = "<think>one two</think>so it is, <think>, after all"
    assert answer(limit(5), *ids_of(text)) == text


def test_an_answer_without_thoughts_is_left_alone() -> None:
    """A tag among words opens nothing."""
    said = (*ids_of("See: <think>"), *LONG)
    assert answer(limit(1), *said) == text_of(said)


def test_no_character_is_torn() -> None:
    """A character of several tokens is finished first."""
    said = (*ids_of("€"), *CLOSING_IDS, *SO)
    assert answer(limit(1, is_open=True), *said) == f"€{CLOSING}so it is"


def test_a_closing_tag_under_way_is_finished_first() -> None:
    """Else it would stand there in parts; when it comes to nothing, the thoughts are closed."""
    begun = ids_of("a</thx")
    said = (*begun, *CLOSING_IDS, *SO)
    assert answer(limit(2, is_open=True), *said) == f"a</thx{CLOSING}so it is"
    whole = ids_of("a b</") + ids_of("think>") + SO
    assert answer(limit(3, is_open=True), *whole) == "a b</think>so it is"


def test_the_grammar_holds_behind_them() -> None:
    """Thoughts are free, cut short, and then comes what the grammar wants."""
    grammar = Grammar(kind="choice", source='["yes", "no"]', after=CLOSING)
    said = (*LONG[:3], *CLOSING_IDS, *ids_of("yes"))
    assert answer(limit(3, is_open=True), *said, grammar=grammar) == f"{text_of(LONG[:3])}{CLOSING}yes"


def test_harmony_thoughts_are_closed_each_time() -> None:
    """They come back, and what is over the limit is closed at once."""
    model = Grammatical.of("harmony")
    start, channel, _, message, end, *_ = MARKERS
    opener, closing = f"{channel}analysis{message}", f"{end}{start}"
    thoughts = ThoughtLimit(num_tokens=2, opener=opener, closer=end, close_ids=ids_of(closing, model), reopens=True)
    again, free = ids_of(opener, model), LONG[:2]
    said = (*again, *free, *free, *again, *free, *SO)
    text = answer(thoughts, *said, model=model, kept_ids=frozenset(ids_of("".join(MARKERS), model)))
    assert text == f"{opener}{text_of(free)}{closing}{opener}{closing}so it is"


def test_ids_that_the_model_does_not_know_are_refused() -> None:
    """They would be read from outside its arrays."""
    harness = Harness(model=MODEL)
    harness.add("a", PROMPT, thoughts=msgspec.structs.replace(limit(1), close_ids=(10**6,)))
    fault = harness.end("a").fault
    assert fault is not None
    assert fault.code == "model_broken"
