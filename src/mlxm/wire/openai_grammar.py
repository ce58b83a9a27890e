"""The ways in which a request can say what its answer has to look like; each comes down to one neutral grammar."""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct, field

from mlxm.errors import InvalidRequest
from mlxm.types import Grammar
from mlxm.wire.fields import read_object
from mlxm.wire.kinds import Json, Source, Text, is_given

MAX_SCHEMA_BYTES: Final = 64 * 1024
MAX_SCHEMA_DEPTH: Final = 64
_ANY_OBJECT: Final = Grammar(kind="json_object", source="{}")


class TextFormat(Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="text"):
    """Anything goes."""


class JsonObjectFormat(Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="json_object"):
    """Some JSON object."""


class JsonSchema(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A schema and its name; `strict` makes no difference: what is asked for is always kept."""

    name: Annotated[str, Meta(min_length=1, max_length=256)] | None = None
    description: Text | None = None
    schema: Json = field(default_factory=Json)
    strict: bool | None = None


class JsonSchemaFormat(Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="json_schema"):
    """A JSON value that fits a schema."""

    json_schema: JsonSchema


ResponseFormat = TextFormat | JsonObjectFormat | JsonSchemaFormat


class StructuredOutputs(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One of these, as the other servers for local models spell it."""

    json: Json = field(default_factory=Json)
    regex: Source | None = None
    choice: Annotated[tuple[Text, ...], Meta(min_length=1, max_length=1024)] | None = None
    grammar: Source | None = None
    json_object: bool | None = None


class GrammarAsked(Struct, frozen=True, kw_only=True):
    """All the fields of a request that name a grammar."""

    response_format: ResponseFormat | None
    json: Json
    regex: str | None
    choice: tuple[str, ...] | None
    grammar: str | None
    structured_outputs: StructuredOutputs | None


def choose_grammar(asked: GrammarAsked) -> Grammar | None:
    """The grammar that a request asks for; InvalidRequest when it asks for several."""
    outputs = StructuredOutputs() if asked.structured_outputs is None else asked.structured_outputs
    found = {
        "response_format": _of_format(asked.response_format),
        "guided_json": _of_schema(asked.json, "guided_json"),
        "guided_regex": _of_source("regex", asked.regex),
        "guided_choice": _of_choice(asked.choice),
        "guided_grammar": _of_source("lark", asked.grammar),
        "structured_outputs.json": _of_schema(outputs.json, "structured_outputs.json"),
        "structured_outputs.regex": _of_source("regex", outputs.regex),
        "structured_outputs.choice": _of_choice(outputs.choice),
        "structured_outputs.grammar": _of_source("lark", outputs.grammar),
        "structured_outputs.json_object": _ANY_OBJECT if outputs.json_object else None,
    }
    named = {place: grammar for place, grammar in found.items() if grammar is not None}
    if len(named) > 1:
        first, second, *_ = named
        raise InvalidRequest(f"{first} and {second} both say what the answer has to look like.", param=second)
    return next(iter(named.values()), None)


def _of_format(given: ResponseFormat | None) -> Grammar | None:
    match given:
        case JsonObjectFormat():
            return _ANY_OBJECT
        case JsonSchemaFormat(json_schema=JsonSchema(schema=schema)):
            found = _of_schema(schema, "response_format.json_schema.schema")
            return _ANY_OBJECT if found is None else found
        case _:
            return None


def _of_schema(schema: Json, place: str) -> Grammar | None:
    if not is_given(schema):
        return None
    source = read_object(schema, place, max_bytes=MAX_SCHEMA_BYTES, max_depth=MAX_SCHEMA_DEPTH)
    return Grammar(kind="json_schema", source=source)


def _of_choice(choice: tuple[str, ...] | None) -> Grammar | None:
    if choice is None:
        return None
    source = msgspec.json.encode(choice).decode()
    if len(source) > MAX_SCHEMA_BYTES:
        raise InvalidRequest(f"The choices are over the limit of {MAX_SCHEMA_BYTES} bytes.", param="guided_choice")
    return Grammar(kind="choice", source=source)


def _of_source(kind: str, source: str | None) -> Grammar | None:
    if source is None:
        return None
    return Grammar(kind="regex" if kind == "regex" else "lark", source=source)
