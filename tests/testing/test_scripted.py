import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from mlxm.errors import InvalidRequest
from mlxm.testing import ANSWER_TOKENS, build_scripted
from mlxm.tiny.families import FAMILIES

FAMILY = FAMILIES["chatml"]


def say(folder: Path, last: str) -> str:
    """What follows a token, computed as the model does: its layer adds nothing."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    weights = load_file(folder / "model.safetensors")
    config = msgspec.json.decode((folder / "config.json").read_bytes())
    assert len(weights["lm_head.weight"]) == config["vocab_size"] == tokenizer.get_vocab_size()
    token, said = tokenizer.encode(last).ids[-1], []
    for _ in range(500):
        token = int(np.argmax(weights["lm_head.weight"] @ weights["model.embed_tokens.weight"][token]))
        if token == config["eos_token_id"]:
            return tokenizer.decode(said, skip_special_tokens=False)
        said.append(token)
    raise AssertionError(said)


def test_each_answer_is_said(tmp_path: Path) -> None:
    """To the letter, by the prompt's last token; others have no answer."""
    answers = {
        ANSWER_TOKENS[0]: "<think>\nHm, hm, hm.</think>\n\n" + json.dumps({"city": "Zürich 🌧", "list": [1, 1, 1, 1]}),
        ANSWER_TOKENS[1]: "<think>\nHm, hm, hm.</think>\n\nThe same once more: the same.",
        "\n\n": "Enough.",
    }
    folder = build_scripted(tmp_path / "model", FAMILY, answers)
    assert {last: say(folder, last) for last in answers} == answers
    assert say(folder, ANSWER_TOKENS[2]) == ""


def test_a_special_token_is_one_the_first_time(tmp_path: Path) -> None:
    """Later it is spelled out, as tokenizers without it would."""
    folder = build_scripted(tmp_path / "model", FAMILY, {"\n": "<think>a<think>b"}, visible=("<more>",))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert say(folder, "\n") == "<think>a<think>b"
    assert tokenizer.token_to_id("<more>") is not None


def test_what_cannot_be_said_is_refused(tmp_path: Path) -> None:
    """A token has one successor."""
    with pytest.raises(InvalidRequest, match="cannot be said once more"):
        build_scripted(tmp_path / "model", FAMILY, {"\n": "a", "\t": "a"})
    with pytest.raises(InvalidRequest, match="There is an answer behind 'a' already"):
        build_scripted(tmp_path / "model", FAMILY, {"\n": "a", "a": "b"})
