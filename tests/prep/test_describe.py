import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from mlxm.engine.formats.families import GENERIC, Family
from mlxm.frames import Description
from mlxm.prep.shelf import Prompter
from mlxm.prep.tokenizer import Added, SlowEncoder
from mlxm.tiny import families, tokenizer

MakeModel = Callable[..., Path]


def describe(folder: Path) -> tuple[Family, Description]:
    """What is said of a model, read."""
    said = Prompter(folder).describe(7)
    assert said.job == 7
    return msgspec.msgpack.decode(said.family, type=Family), said


def with_type(folder: Path, model_type: Any) -> Path:
    """The model with a type."""
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    return folder


@pytest.mark.parametrize(
    ("of", "model_type", "template", "name", "markup", "ends"),
    [
        ("chatml", "qwen3", "<tool_call></think>", "qwen3", ["<think>", "</think>", "<tool_call>", "</tool_call>"], 2),
        ("mistral", "mistral", "[TOOL_CALLS]", "mistral", ["[TOOL_CALLS]"], 1),
        ("llama3", "llama", "<|start_header_id|>{{ tools }}", "llama-3", ["<|python_tag|>"], 3),
        ("generic", 5, "{{ messages }}", "generic", [], 0),
    ],
)
def test_a_model_is_described(
    make_model: MakeModel, of: str, model_type: object, template: str, name: str, markup: list[str], ends: int
) -> None:
    """Its family, the ids of what is special and markup, and of what ends its answers."""
    family, said = describe(with_type(make_model(template, family=of), model_type))
    ids = tokenizer.token_ids(families.FAMILIES[of])
    assert family.name == name
    assert said.special_ids == {token: ids[token] for token in markup}
    assert said.stop_ids == tuple(ids[token] for token in family.stop_tokens if token in ids)
    assert len(said.stop_ids) == ends


def test_a_model_without_a_template_is_described(make_model: MakeModel) -> None:
    """It can still go on with plain text."""
    family, said = describe(make_model(chat_template="absent"))
    assert family == GENERIC
    assert said.stop_ids == ()


def test_added_tokens_of_other_formats(tmp_path: Path) -> None:
    """As transformers reads them."""
    plain = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, unk_token="a")))
    plain.add_tokens(["b"])
    plain.add_special_tokens({"eos_token": "</s>"})
    plain.save_pretrained(tmp_path)
    assert SlowEncoder(tmp_path).added_tokens() == {"b": Added(1, is_special=False), "</s>": Added(2, is_special=True)}
