from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mlxm.errors import InvalidRequest, ModelBroken
from mlxm.prep.shelf import Prompter
from mlxm.prep.tokenizer import load_encoder
from mlxm.tiny.tokenizer import FIRST_SPECIAL_ID
from mlxm.types import Message

MakeModel = Callable[..., Path]
Say = Callable[..., tuple[Message, ...]]


@pytest.mark.parametrize("content", [b"", b"{", b"{}", b"null", b"\xff\xfe\x00", b'{"model": {"type": "BPE"}}'])
def test_a_broken_tokenizer_is_a_broken_model(make_model: MakeModel, content: bytes) -> None:
    """The message says what the library found, and not where the folder is."""
    folder = make_model()
    (folder / "tokenizer.json").write_bytes(content)
    with pytest.raises(ModelBroken, match=r"tokenizer\.json of this model is broken") as caught:
        load_encoder(folder)
    assert str(folder) not in caught.value.message


def test_two_hundred_damaged_tokenizers_end_in_ids_or_a_typed_error(make_model: MakeModel) -> None:
    """Damage that the library does not notice may change ids, never end the process."""
    folder = make_model()
    whole = (folder / "tokenizer.json").read_bytes()
    chance = random.Random(0)
    outcomes = set()
    for _ in range(200):
        content = bytearray(whole)
        for _ in range(chance.randint(1, 4)):
            place = chance.randrange(len(content))
            content[place : place + chance.randint(0, 3)] = chance.randbytes(chance.randint(0, 3))
        (folder / "tokenizer.json").write_bytes(content)
        try:
            load_encoder(folder).encode("hello <|im_start|>")
            outcomes.add("ids")
        except (ModelBroken, InvalidRequest):
            outcomes.add("refused")
    assert outcomes == {"ids", "refused"}


def test_a_tokenizer_that_cannot_spell_a_text_is_a_broken_model(make_model: MakeModel) -> None:
    """A vocabulary of words without one for unknown words, for example."""
    folder = make_model(bos_token="absent", eos_token="absent", pad_token="absent")
    model = {"type": "WordLevel", "vocab": {"known": 0}, "unk_token": "[UNK]"}
    (folder / "tokenizer.json").write_text(json.dumps({"model": model}))
    with pytest.raises(ModelBroken, match="cannot encode"):
        load_encoder(folder).encode("unheard")


def test_text_that_is_no_unicode_is_an_invalid_request(make_model: MakeModel) -> None:
    """Half a character can come out of a template's own string."""
    with pytest.raises(InvalidRequest, match="no Unicode text"):
        load_encoder(make_model()).encode("\ud800")


def test_a_folder_without_any_tokenizer_says_so(make_model: MakeModel) -> None:
    """No second is spent on looking for one elsewhere."""
    folder = make_model()
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelBroken, match="has no tokenizer"):
        load_encoder(folder)


@pytest.fixture
def older_model(make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder from before tokenizer.json: a vocabulary and merges."""
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_VERBOSITY", "OPENBLAS_NUM_THREADS"):
        monkeypatch.setenv(name, "error")  # loading sets its own; the test puts back what was there
    content = json.loads((make_model() / "tokenizer.json").read_bytes())
    special = {token["content"]: token["id"] for token in content["added_tokens"]}
    described = {token.pop("id"): token for token in content["added_tokens"]}
    folder = make_model(tokenizer_class="GPT2Tokenizer", added_tokens_decoder=described)
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps(content["model"]["vocab"] | special))
    merges = "\n".join(" ".join(pair) for pair in content["model"]["merges"])
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")
    return folder


def test_older_formats_are_read_by_transformers(older_model: Path, make_model: MakeModel, say: Say) -> None:
    """The ids are those of the same tokenizer in the newer format."""
    older, newer = Prompter(older_model), Prompter(make_model())
    text = newer.render(say(("user", "hello there"))).text
    assert older.render(say(("user", "hello there"))).text == text
    assert newer.encode(text) == older.encode(text)
    assert older.encode(text)[0] >= FIRST_SPECIAL_ID


def test_code_that_comes_with_a_model_is_never_run(older_model: Path) -> None:
    """A tokenizer of its own would need it; the marker that it makes is never there."""
    marker = older_model / "marker"
    settings = json.loads((older_model / "tokenizer_config.json").read_bytes())
    settings |= {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}}
    (older_model / "tokenizer_config.json").write_text(json.dumps(settings))
    (older_model / "config.json").write_text(json.dumps({"model_type": "x", "auto_map": {"AutoConfig": "evil.Evil"}}))
    (older_model / "evil.py").write_text(f"open({str(marker)!r}, 'w')\nclass Evil: pass\n")
    with pytest.raises(ModelBroken, match="never run"):
        load_encoder(older_model)
    assert not marker.exists()


def test_a_damaged_older_format_is_a_broken_model(older_model: Path) -> None:
    """Whatever transformers says about it, paths included, stays inside."""
    (older_model / "vocab.json").write_bytes(b"{\xff")
    with pytest.raises(ModelBroken, match="cannot be loaded") as caught:
        load_encoder(older_model)
    assert str(older_model) not in caught.value.message


def test_nothing_heavy_is_imported_for_the_common_format(make_model: MakeModel) -> None:
    """The process starts in a fraction of a second and stays small."""
    script = (
        "import sys; from pathlib import Path; import mlxm.prep.jobs\n"
        "from mlxm.prep.tokenizer import load_encoder\n"
        f"load_encoder(Path({str(make_model())!r})).encode('x')\n"
        "heavy = {'transformers', 'numpy', 'mlx', 'mlx_lm', 'asyncio', 'huggingface_hub', 'httpx', 'pydantic'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, timeout=60)
    assert found.stdout.strip() == "[]"
