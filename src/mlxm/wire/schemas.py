"""JSON Schemas of answers, as every dialect but its own spelling has them."""

from __future__ import annotations

from mlxm.types import Grammar
from mlxm.wire.fields import read_object
from mlxm.wire.kinds import Json
from mlxm.wire.openai_grammar import MAX_SCHEMA_BYTES, MAX_SCHEMA_DEPTH


def schema_grammar(schema: Json, place: str) -> Grammar:
    """The grammar of answers that fit `schema`; InvalidRequest names its place."""
    source = read_object(schema, place, max_bytes=MAX_SCHEMA_BYTES, max_depth=MAX_SCHEMA_DEPTH)
    return Grammar(kind="json_schema", source=source)
