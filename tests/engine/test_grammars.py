from __future__ import annotations

import json
import re
from collections.abc import Sequence
from itertools import count
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlxm.engine.guide import Grammars, Guide
from mlxm.engine.scheduler import SchedulerOptions
from mlxm.errors import InvalidRequest, UnsupportedParameter
from mlxm.types import Grammar, Sampling
from tests.engine.harness import Grammatical, Harness, prompt_of, scripted

MODEL = Grammatical.of()
RUNNERS = pytest.mark.parametrize(
    "facts", [{}, {"runs_ahead": True}, {"shares_prefixes": False}], ids=["plain", "ahead", "alone"]
)
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 6}, "age": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


def schema_of(schema: object, **more: Any) -> Grammar:
    """A grammar for a JSON Schema."""
    return Grammar(kind="json_schema", source=json.dumps(schema), **more)


def made(**facts: Any) -> Harness:
    """An engine whose model follows grammars."""
    return Harness(model=MODEL, **{"num_blocks": 400, "max_rows": 16} | facts)


def ask(harness: Harness, name: str, grammar: Grammar | None, *, start: int = 0, **order: Any) -> None:
    """Order an answer with a grammar."""
    order = {"max_tokens": 600, "stop_ids": MODEL.stop_ids, "sampling": Sampling(seed=start)} | order
    harness.add(name, prompt_of(5, start), grammar=grammar, **order)


def token_of(text: str) -> int:
    """The token that is, or ends with, a text."""
    raws = [MODEL.detokenizer.raw(token_id) for token_id in range(1792)]
    exact = [token_id for token_id, raw in enumerate(raws) if raw == text.encode()]
    return (exact or [token_id for token_id, raw in enumerate(raws) if raw.endswith(text.encode())])[0]


def is_allowed(guide: Guide, token_id: int) -> bool:
    """Whether a token may come next."""
    return guide.mask is None or bool(guide.mask[token_id >> 3] >> (token_id & 7) & 1)


def answer(grammar: Grammar, *, start: int = 0, **order: Any) -> str:
    """The text of one answer, which must have ended by itself."""
    harness = made()
    ask(harness, "one", grammar, start=start, **order)
    harness.run().check_idle()
    assert harness.end("one").fault is None
    assert harness.deltas("one")[-1].finish_reason == "stop"
    return harness.text("one")


# ── all kinds ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("start", range(8))
def test_a_regular_expression_is_matched_whole(start: int) -> None:
    """From the first character to the last."""
    assert re.fullmatch(r"[ab]{2,5}-[0-9]{3}", answer(Grammar(kind="regex", source="[ab]{2,5}-[0-9]{3}"), start=start))


def test_one_of_the_choices_is_taken() -> None:
    """Different chances take different ones, whatever characters they have."""
    choices = ["yes", "yesterday", 'say "no"', "zurück\n", "\\d"]
    grammar = Grammar(kind="choice", source=json.dumps(choices))
    taken = {answer(grammar, start=start) for start in range(30)}
    assert len(taken) > 2
    assert taken <= set(choices)


@pytest.mark.parametrize("start", range(4))
def test_rules_are_followed(start: int) -> None:
    """A sum in brackets, from rules that mention themselves."""
    rules = 'start: "(" start ")" | NUMBER "+" NUMBER\nNUMBER: /[0-9]{1,2}/'
    text = answer(Grammar(kind="lark", source=rules), start=start)
    assert re.fullmatch(r"(\(*)\d{1,2}\+\d{1,2}(\)*)", text)
    assert text.count("(") == text.count(")")


def test_a_special_token_can_be_part_of_the_rules() -> None:
    """It has no text."""
    assert answer(Grammar(kind="lark", source='start: "a" <|im_start|> "b"')) == "ab"


def test_an_answer_may_be_empty_when_its_grammar_says_so() -> None:
    """The end is the only token that may come."""
    assert answer(Grammar(kind="regex", source="")) == ""
    assert answer(Grammar(kind="regex", source=""), sampling=Sampling(ignore_eos=True, min_tokens=5)) == ""


def test_json_has_no_white_space_between_its_tokens() -> None:
    """The answer is as short as it can be."""
    text = answer(schema_of(PERSON))
    assert text == json.dumps(json.loads(text), separators=(",", ":"), ensure_ascii=False)


def test_any_object_is_json() -> None:
    """As far as it gets: keys may be long."""
    harness = made()
    ask(harness, "one", Grammar(kind="json_object", source=""), max_tokens=50)
    assert harness.run().text("one").startswith("{")


# ── schemas ──────────────────────────────────────────────────────────────────────────────────────

WHOLE = st.integers(-(2**53) + 1, 2**53 - 1)
"""What JSON readers everywhere take for the same number."""
SCALARS = st.one_of(
    st.just({"type": "null"}),
    st.just({"type": "boolean"}),
    st.just({"type": "number"}),
    st.tuples(st.integers(-50, 0), st.integers(0, 5000)).map(
        lambda ends: {"type": "integer", "minimum": ends[0], "maximum": ends[1]}
    ),
    st.tuples(st.floats(-5, 0), st.floats(0, 9)).map(
        lambda ends: {"type": "number", "minimum": round(ends[0], 2), "maximum": round(ends[1], 2)}
    ),
    st.integers(2, 9).map(lambda step: {"type": "integer", "multipleOf": step, "minimum": 0, "maximum": 99}),
    st.tuples(st.integers(0, 3), st.integers(3, 8)).map(
        lambda ends: {"type": "string", "minLength": ends[0], "maxLength": ends[1]}
    ),
    st.sampled_from(["^[A-Z][a-z]{1,4}$", "^(ab|c)+d{2}$", "^\\d{2,4}-x?$"]).map(
        lambda pattern: {"type": "string", "pattern": pattern, "maxLength": 12}
    ),
    st.sampled_from(["date", "time", "date-time", "uuid", "ipv4"]).map(lambda name: {"type": "string", "format": name}),
    st.lists(st.one_of(st.none(), st.booleans(), WHOLE, st.text(max_size=5)), min_size=1, max_size=4).map(
        lambda values: {"enum": values}
    ),
    st.one_of(WHOLE, st.text(max_size=5), st.just([1, {"a": None}])).map(lambda value: {"const": value}),
)
NAMES = st.one_of(st.sampled_from(["a", "b", "name", "ä ö", 'quo"te', "back\\slash", "$ref"]), st.text(max_size=4))


def _object(properties: dict[str, Any], flags: list[bool]) -> dict[str, Any]:
    required = [name for name, flag in zip(properties, flags, strict=False) if flag]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


SCHEMAS = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.builds(_object, st.dictionaries(NAMES, inner, max_size=4), st.lists(st.booleans(), min_size=4, max_size=4)),
        st.tuples(inner, st.integers(0, 2), st.integers(2, 4)).map(
            lambda part: {"type": "array", "items": part[0], "minItems": part[1], "maxItems": part[2]}
        ),
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: {"anyOf": parts}),
        st.lists(inner, min_size=1, max_size=3).map(
            lambda parts: {"type": "array", "prefixItems": parts, "items": False, "minItems": len(parts)}
        ),
        inner.map(lambda part: {"$defs": {"part": part}, "type": "array", "items": {"$ref": "#/$defs/part"}}),
    ),
    max_leaves=6,
)


@settings(max_examples=32, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(SCHEMAS.map(json.dumps), min_size=16, max_size=16), st.integers(0, 1000))
def test_answers_to_random_schemas_are_valid_and_disturb_nobody(sources: list[str], start: int) -> None:
    """Sixteen together, with four free answers among them."""
    harness = made(runs_ahead=start % 2 == 1)
    for number, source in enumerate(sources):
        if number % 4 == 0:
            harness.add(f"free{number}", prompt_of(7, number), 40)
        grammar = Grammar(kind="json_schema", source=wrap(source))
        ask(harness, f"bound{number}", grammar, start=start + number, max_tokens=3000)
    harness.run().check_idle()
    for number, source in enumerate(sources):
        if number % 4 == 0:
            assert harness.tokens(f"free{number}") == scripted(prompt_of(7, number), 40)
        check(harness, f"bound{number}", wrap(source))


def wrap(source: str) -> str:
    """A schema whose references are found: they count from the outermost one."""
    return source if "#/$defs" not in source else json.dumps(_lifted(json.loads(source)))


def _lifted(schema: Any) -> Any:
    """All definitions moved to the outermost schema."""
    found: dict[str, Any] = {}

    def lift(part: Any) -> Any:
        if isinstance(part, list):
            return [lift(item) for item in part]
        if not isinstance(part, dict):
            return part
        if isinstance(part.get("items"), dict) and "$ref" in part["items"] and "$defs" in part:
            name = f"part{len(found)}"
            found[name] = None
            found[name] = lift(part["$defs"]["part"])
            return {"type": "array", "items": {"$ref": f"#/$defs/{name}"}, "maxItems": 3}
        return {key: lift(value) for key, value in part.items()}

    return lift(schema) | {"$defs": found}


def check(harness: Harness, name: str, source: str) -> None:
    """An answer is complete, is JSON, and is what its schema describes."""
    assert harness.end(name).fault is None, (source, harness.end(name).fault)
    assert harness.deltas(name)[-1].finish_reason == "stop", source
    jsonschema.Draft202012Validator(json.loads(source)).validate(json.loads(harness.text(name)))


@pytest.mark.parametrize("keyword", ["not", "if", "propertyNames", "unevaluatedProperties", "dependentRequired"])
def test_a_keyword_that_cannot_be_followed_is_refused_by_name(keyword: str) -> None:
    """Nothing is silently left out."""
    harness = made()
    ask(harness, "one", schema_of({"type": "object", keyword: {}}))
    fault = harness.end("one").fault
    assert fault is not None
    assert (fault.code, fault.param) == ("invalid_request", "response_format")
    assert keyword in fault.message


# ── beside others ────────────────────────────────────────────────────────────────────────────────


@RUNNERS
def test_an_answer_does_not_depend_on_its_neighbours(facts: dict[str, Any]) -> None:
    """Sixteen rows, half of them with grammars: everybody says what they say alone."""
    alone = {}
    for number in range(0, 16, 2):
        harness = made(**facts)
        ask(harness, "one", schema_of(PERSON), start=number)
        alone[number] = harness.run().tokens("one")
    harness = made(**facts)
    for number in range(16):
        if number % 2:
            harness.add(f"r{number}", prompt_of(9, number), 30)
        else:
            ask(harness, f"r{number}", schema_of(PERSON), start=number)
    harness.run().check_idle()
    assert {number: harness.tokens(f"r{number}") for number in alone} == alone
    harness.check_answers([(f"r{number}", prompt_of(9, number), 30) for number in range(1, 16, 2)])


@RUNNERS
def test_a_preempted_answer_goes_on_where_its_grammar_was(facts: dict[str, Any]) -> None:
    """Nothing that was accepted is accepted twice."""
    schema = {"type": "array", "items": PERSON, "minItems": 5, "maxItems": 8}
    texts = []
    for num_blocks in (400, 9):
        harness = made(num_blocks=num_blocks, max_rows=4, options=SchedulerOptions(expected_tokens=16), **facts)
        for number in range(4):
            ask(harness, f"r{number}", schema_of(schema), start=number, max_tokens=200)
        harness.run().check_idle()
        texts.append([harness.text(f"r{number}") for number in range(4)])
        for number in range(4):
            check(harness, f"r{number}", json.dumps(schema))
    assert harness.engine.stats.preemptions > 0
    assert texts[0] == texts[1]


@RUNNERS
def test_a_lost_step_does_not_move_a_grammar_on(facts: dict[str, Any]) -> None:
    """The step is done again, with the same masks."""
    expected, harness = made(**facts), made(**facts)
    for which in (expected, harness):
        for number in range(3):
            ask(which, f"r{number}", schema_of(PERSON), start=number)
    expected.run()
    steps = count()

    def fail(_plan: object) -> None:
        if next(steps) in {2, 15}:
            raise RuntimeError("lost")

    harness.runner.faults.collect = fail
    harness.run().check_idle()
    assert [harness.tokens(f"r{number}") for number in range(3)] == [expected.tokens(f"r{n}") for n in range(3)]


@RUNNERS
def test_each_choice_goes_its_own_way_through_the_grammar(facts: dict[str, Any]) -> None:
    """Forks share the prompt, not the grammar's state."""
    harness = made(**facts)
    ask(harness, "one", schema_of(PERSON), num_choices=5)
    harness.run().check_idle()
    texts = [harness.text("one", choice) for choice in range(5)]
    for text in texts:
        jsonschema.validate(json.loads(text), PERSON)
    assert len(set(texts)) > 1


def test_a_grammar_that_becomes_too_dear_ends_its_request_alone() -> None:
    """The others do not notice."""
    harness = made()
    ask(harness, "dear", schema_of(PERSON))
    ask(harness, "good", schema_of(PERSON), start=1)
    harness.add("free", prompt_of(9, 3), 30)
    harness.step(3)
    guide = harness.engine._requests["dear"].sequences[0].guide
    assert guide is not None
    guide.matcher.consume_token(0)
    harness.run().check_idle()
    fault = harness.end("dear").fault
    assert fault is not None
    assert fault.param == "response_format"
    check(harness, "good", json.dumps(PERSON))
    harness.check_answers([("free", prompt_of(9, 3), 30)])


def test_a_model_without_grammars_says_so() -> None:
    """A tokenizer that cannot be read so must not mean an answer without rules."""
    harness = Harness()
    harness.add("one", prompt_of(5), grammar=schema_of(PERSON))
    fault = harness.end("one").fault
    assert fault is not None
    assert fault.code == "unsupported_parameter"


def test_a_tokenizer_that_cannot_be_read_so_is_no_reason_to_fail() -> None:
    """Its model answers everything else."""
    with pytest.raises(UnsupportedParameter, match="cannot follow a grammar") as refused:
        Grammars(lambda: "{}", vocab_size=9, stop_ids=frozenset()).guide(Grammar(kind="regex", source="a"))
    assert refused.value.param == "response_format"


def test_a_token_against_the_grammar_is_an_error() -> None:
    """It means that the mask was not heeded."""
    guide = Grammatical.of().grammars.guide(Grammar(kind="regex", source="a"))
    with pytest.raises(InvalidRequest, match="doesn't satisfy the grammar"):
        guide.accept(token_of("b"))


def test_the_same_grammar_is_built_once() -> None:
    """And only so many are kept."""
    model = Grammatical.of()
    grammars = [Grammar(kind="regex", source=f"a{number}") for number in range(40)]
    first = model.grammars.guide(grammars[0])
    assert model.grammars.guide(grammars[0])._built is first._built
    for grammar in grammars[1:]:
        model.grammars.guide(grammar)
    assert model.grammars.guide(grammars[0])._built is not first._built


# ── with what ends an answer ─────────────────────────────────────────────────────────────────────


def test_a_stop_string_ends_an_answer_before_its_grammar_does() -> None:
    """The text up to it is what was said."""
    text = answer(Grammar(kind="regex", source="[ab]{20}c"), stop=("ab",))
    assert re.fullmatch(r"b*a*", text)
    assert answer(Grammar(kind="regex", source="abc"), stop=("c",)) == "ab"
    assert answer(Grammar(kind="regex", source="abc"), stop=("cd", "x")) == "abc"


def test_a_model_may_end_where_its_grammar_may_end() -> None:
    """An end is a token as good as those that go on."""
    texts = {answer(Grammar(kind="regex", source="a{1,9}"), start=start) for start in range(20)}
    assert texts <= {"a" * length for length in range(1, 10)}
    assert len(texts) > 1


def test_an_answer_ends_with_its_length_before_it_is_complete() -> None:
    """Then it is as far as it got."""
    harness = made()
    ask(harness, "one", Grammar(kind="regex", source="[ab]{50}"), max_tokens=5)
    harness.run()
    assert harness.deltas("one")[-1].finish_reason == "length"


# ── from a marker on ─────────────────────────────────────────────────────────────────────────────


@RUNNERS
@pytest.mark.parametrize("marker", ["e", "</think>", "ng "])
def test_a_grammar_holds_from_its_marker_on(facts: dict[str, Any], marker: str) -> None:
    """Before it anything goes; after it not a character is out of place."""
    vocabulary = MODEL.detokenizer
    cut = len(marker) - 1 if marker.startswith("n") else len(marker)
    parts = [token_of(part) for part in (marker[:cut], marker[cut:]) if part]

    def wander(tokens: Sequence[int], seed: int) -> int:
        """Words, and now and then what the marker is made of."""
        place = len(tokens) % 40
        return parts[place] if place < len(parts) else (sum(tokens) * 31 + len(tokens) * 7 + seed) % 900 + 65

    harness = made(next_token=wander, **facts)
    for number in range(4):
        ask(harness, f"r{number}", schema_of(PERSON, after=marker), start=number, max_tokens=2000)
    harness.run().check_idle()
    for number in range(4):
        raw = b"".join(vocabulary.raw(token_id) for token_id in harness.tokens(f"r{number}"))
        before, found, after = raw.partition(marker.encode())
        assert (bool(before), found) == (True, marker.encode())
        jsonschema.validate(json.loads(after), PERSON)
        assert harness.deltas(f"r{number}")[-1].finish_reason == "stop"


def test_the_end_of_the_marker_may_bring_the_beginning_of_the_answer() -> None:
    """A token with more behind the marker is allowed when the grammar can begin so, and only then."""
    model = Grammatical.of()
    joined, quote, letter = token_of('{"'), token_of('"'), token_of("x")
    guide = model.grammars.guide(Grammar(kind="regex", source='"x"', after="{"))
    assert is_allowed(guide, joined)
    assert not guide.accept(joined)
    guide.refresh()
    assert is_allowed(guide, letter)
    assert not is_allowed(guide, quote)
    strict = model.grammars.guide(Grammar(kind="regex", source="y", after="{"))
    assert not is_allowed(strict, joined)
    assert is_allowed(strict, token_of("{"))


def test_a_marker_may_be_a_special_token() -> None:
    """It has no text, but a name."""
    model = Grammatical.of("harmony")
    guide = model.grammars.guide(Grammar(kind="choice", source='["a"]', after="final<|message|>"))
    special = model.detokenizer.id_of("<|message|>")
    assert special is not None
    for token_id in [model.detokenizer.id_of(character) for character in "final"]:
        assert token_id is not None
        assert not guide.accept(token_id)
    assert guide.mask is None
    assert not guide.accept(special)
    guide.refresh()
    letter = model.detokenizer.id_of("a")
    assert letter is not None
    assert guide.mask == (1 << letter).to_bytes(len(guide.mask or b""), "little")
    assert guide.accept(letter)
