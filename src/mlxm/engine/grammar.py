"""Grammars in the form that llguidance takes, and whether they are grammars that can be used at all.

What is too large, too deep or unknown is refused here in words, before it costs a worker time. llguidance is imported
when the first grammar comes: most processes never see one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from mlxm.errors import InvalidRequest
from mlxm.types import Grammar

if TYPE_CHECKING:
    from llguidance import LLParserLimits, LLTokenizer

PARAM: Final = "response_format"
MAX_SOURCE_BYTES: Final = 256 * 1024
MAX_DEPTH: Final = 64
_MAX_MARKER_BYTES: Final = 256
_MAX_REASON: Final = 300
_BRACKETS: Final = {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}
_UNIMPLEMENTED: Final = re.compile(r"Unimplemented keys: (\[.*?\])")
_EXCERPT: Final = re.compile(r"\n +\d+ \|.*", re.DOTALL)
"""The lines of the grammar that llguidance adds to what it says."""
_BLANKS: Final = re.compile(r"[\s\x00-\x1f\x7f-\x9f]+")
_ANY_OBJECT: Final = '{"type": "object"}'
_VENDOR_KEY: Final = "x-guidance"
_NUM_BYTES: Final = 256
_TRIED_STEPS: Final = 8


def load() -> None:
    """Import what reads grammars, so that it does not count as a grammar's time."""
    import llguidance  # noqa: F401, PLC0415  (as said above)


def limits() -> LLParserLimits:
    """What a grammar may cost: some tenths of a second when it is built, and one for the dearest token."""
    from llguidance import LLParserLimits  # noqa: PLC0415  (as said above)

    return LLParserLimits(
        initial_lexer_fuel=500_000,
        step_lexer_fuel=50_000,
        step_max_items=20_000,
        max_lexer_states=50_000,
        max_grammar_size=200_000,
        verbose_errors=False,
    )


def source_of(grammar: Grammar) -> str:
    """The grammar as llguidance reads it; raises InvalidRequest for what cannot be one."""
    from llguidance import LLMatcher  # noqa: PLC0415  (as said above)

    _check_size(grammar)
    match grammar.kind:
        case "json_schema":
            return _json(_schema(grammar.source))
        case "json_object":
            return _json(_ANY_OBJECT)
        case "regex":
            _check_depth(_bracket_depth(grammar.source))
            return LLMatcher.grammar_from_regex(grammar.source)
        case "choice":
            return LLMatcher.grammar_from_lark(_alternatives(grammar.source))
        case "lark":
            _check_depth(_bracket_depth(grammar.source))
            return LLMatcher.grammar_from_lark(grammar.source)


def _json(schema: str) -> str:
    """Without white space between tokens: models that may add some can go on for ever."""
    from llguidance import LLMatcher  # noqa: PLC0415  (as said above)

    return LLMatcher.grammar_from_json_schema(schema, overrides={"whitespace_flexible": False, "lenient": False})


def vet(grammar: Grammar) -> None:
    """Say whether any model could follow a grammar; raises InvalidRequest.

    Its first steps are tried on a vocabulary of bytes: some grammars only show there what they cost. One that names
    a model's special tokens cannot be tried so.
    """
    from llguidance import LLMatcher  # noqa: PLC0415  (as said above)

    source = source_of(grammar)
    is_wrong, remarks = LLMatcher.validate_grammar_with_warnings(source, limits=limits())
    if is_wrong:
        raise refusal(remarks[0])
    if remarks:
        return
    matcher = LLMatcher(_byte_tokenizer(), source, log_level=0, limits=limits())
    for _ in range(_TRIED_STEPS):
        if matcher.is_stopped():
            break
        matcher.consume_token(_lowest(matcher.compute_bitmask()))
    if matcher.is_error():
        raise refusal(matcher.get_error())


def refusal(reason: str) -> InvalidRequest:
    """What llguidance says against a grammar, in a line that can be shown."""
    unknown = _UNIMPLEMENTED.search(reason)
    if unknown is not None:
        names = ", ".join(json.loads(unknown[1]))
        return InvalidRequest(
            f"The JSON Schema uses keywords that are not supported: {names}.",
            hint="Leave them out, and check the answer for what they demand.",
            param=PARAM,
        )
    words = _BLANKS.sub(" ", _EXCERPT.sub("", reason).replace("<non-verbose/>", "")).strip()[:_MAX_REASON]
    return InvalidRequest(
        f"The grammar cannot be used: {words.removesuffix('.')}.",
        hint="Correct or simplify the schema or grammar.",
        param=PARAM,
    )


def _lowest(mask: bytes) -> int:
    """The first token of a mask; the end when there is none."""
    bits = int.from_bytes(mask, "little")
    return (bits & -bits).bit_length() - 1 if bits else _NUM_BYTES


def _check_size(grammar: Grammar) -> None:
    if len(grammar.source.encode()) > MAX_SOURCE_BYTES:
        raise refusal(f"it is larger than {MAX_SOURCE_BYTES // 1024} KiB")
    if grammar.after is not None and len(grammar.after.encode()) > _MAX_MARKER_BYTES:
        raise refusal(f"the text after which it holds is longer than {_MAX_MARKER_BYTES} bytes")


def _check_depth(depth: int) -> None:
    if depth > MAX_DEPTH:
        raise refusal(f"it is nested more than {MAX_DEPTH} levels deep")


def _schema(source: str) -> str:
    schema = _read_json(source)
    if schema is True:
        return "{}"
    if not isinstance(schema, dict):
        raise refusal("the JSON Schema is no object")
    _check_depth(max(_depths(schema)))
    if _VENDOR_KEY in schema:
        raise refusal(f"Unimplemented keys: {json.dumps([_VENDOR_KEY])}")
    return source


def _alternatives(source: str) -> str:
    texts = _read_json(source)
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) and text for text in texts):
        raise refusal("the choices are no list of texts with at least one character each")
    return "start: " + " | ".join(json.dumps(text, ensure_ascii=False) for text in texts)


def _read_json(source: str) -> Any:
    try:
        return json.loads(source, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise refusal(f"it is nested more than {MAX_DEPTH} levels deep") from error
    except ValueError as error:
        raise refusal(f"it is no JSON: {error}") from error


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def _depths(value: object) -> Iterator[int]:
    """The depth of every object and list, without recursion."""
    stack = [(value, 1)]
    while stack:
        item, depth = stack.pop()
        inner = item.values() if isinstance(item, dict) else item if isinstance(item, list) else ()
        yield depth
        stack += [(part, depth + 1) for part in inner if isinstance(part, dict | list)]


def _bracket_depth(source: str) -> int:
    """How deep brackets are nested, those in quotes counted as well: rather too deep than not deep enough."""
    depth = deepest = 0
    for character in source:
        depth += _BRACKETS.get(character, 0)
        deepest = max(deepest, depth)
    return deepest


class _Bytes:
    """A vocabulary that every model has a part of: one token for each byte, and an end."""

    eos_token_id = _NUM_BYTES
    bos_token_id = None
    tokens: Final = (*(bytes([byte]) for byte in range(_NUM_BYTES)), b"<end>")
    special_token_ids: Final = (_NUM_BYTES,)

    def __call__(self, text: bytes) -> list[int]:
        return list(text)


def _byte_tokenizer() -> LLTokenizer:
    from llguidance import LLTokenizer, TokenizerWrapper  # noqa: PLC0415  (as said above)

    return LLTokenizer(TokenizerWrapper(_Bytes()))
