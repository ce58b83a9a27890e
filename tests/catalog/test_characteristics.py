from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mlxm.catalog.characteristics import Characteristics, describe_config

TABLE: list[dict[str, Any]] = json.loads((Path(__file__).parent / "configs.json").read_text())


def read(entry: dict[str, Any]) -> Characteristics:
    """What is said of one entry of the table."""
    return describe_config(
        entry["config"], name=entry["name"], tags=entry.get("tags", ()), template=entry.get("template")
    )


@pytest.mark.parametrize("entry", TABLE, ids=[entry["name"] for entry in TABLE])
def test_published_configurations_are_understood(entry: dict[str, Any]) -> None:
    """What real models of every kind say of themselves, and what follows from it."""
    found = read(entry)
    packed = found.quantisation
    seen = {
        "kind": found.kind,
        "family": found.family,
        "context": found.context_length,
        "quantisation": None if packed is None else [packed.bits, packed.group_size, packed.mode],
        "tool_use": [found.tool_use.answer, found.tool_use.tier],
        "reasoning": found.reasoning.answer,
        "kv_bytes_per_token": found.kv_bytes_per_token,
        "sliding_window": found.sliding_window,
        "own_code": list(found.own_code),
        "overrides": None if packed is None else [packed.overrides, list(packed.override_bits)],
    }
    assert {key: seen[key] for key in entry["expected"]} == entry["expected"]


def test_the_table_holds_what_it_promises() -> None:
    """At least forty models, of every kind, each with a reason."""
    assert len({entry["name"] for entry in TABLE}) >= 40
    kinds = {read(entry).kind for entry in TABLE}
    assert kinds == {"text", "vision", "embedding", "reranker", "audio", "unknown"}
    assert all(read(entry).kind_reason for entry in TABLE)
