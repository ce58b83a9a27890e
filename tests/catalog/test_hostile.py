from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mlxm.catalog.characteristics import describe, describe_config
from mlxm.catalog.local import LocalModels, Roots
from mlxm.catalog.memory import estimate, largest_context
from mlxm.checkpoint.files import read_object
from mlxm.errors import ModelBroken
from tests.catalog.folders import CONFIG, model_files, safetensors, write_cached, write_folder

NUM_MUTATIONS = 200
INDEX = "model.safetensors.index.json"
PROGRAM = "from pathlib import Path\nPath({!r}).write_text('run')\n"
PATIENCE_S = 60
WORDS = (b"{", b"}", b"[", b"]", b'"', b",", b":", b"-1", b"9" * 400, b"1e999", b"null", b"true", b"\xff\xfe", b"\0")
DEEP = b'{"a":' * 50_000

LIST = """
import sys
from pathlib import Path
from mlxm.catalog.local import LocalModels, Roots
root = Path(sys.argv[1])
(model,) = LocalModels(Roots(home=root / "home", hub_cache=root / "hub")).list()
print(model.state, model.runnable, ",".join(model.characteristics.own_code))
"""


def test_a_program_that_comes_with_a_model_is_never_run(tmp_path: Path) -> None:
    """However the repository asks for it, its marker is not made."""
    marker = tmp_path / "marker"
    program = PROGRAM.format(str(marker)).encode()
    config = CONFIG | {
        "auto_map": {"AutoConfig": "configuration_evil.Config", "AutoModelForCausalLM": "modeling_evil.Model"},
        "model_file": "modeling_evil.py",
        "custom_pipelines": {"evil": {"impl": "modeling_evil.Pipeline"}},
    }
    template = "{{ cycler.__init__.__globals__.os.system('touch " + str(marker) + "') }}"
    programs = ("configuration_evil.py", "modeling_evil.py", "__init__.py", "config.py", "sitecustomize.py")
    files = model_files(config) | dict.fromkeys(programs, program)
    files["tokenizer_config.json"] = json.dumps(
        {"auto_map": {"AutoTokenizer": ["tokenization_evil.T", None]}, "chat_template": template}
    ).encode()
    files["pytorch_model.bin"] = b"cos\nsystem\n(S'touch " + str(marker).encode() + b"'\ntR."
    snapshot = write_cached(tmp_path / "hub", "org/evil", files)
    command = [sys.executable, "-c", LIST, tmp_path]
    done = subprocess.run(command, cwd=snapshot, capture_output=True, text=True, timeout=PATIENCE_S, check=True, env={})
    assert done.stdout == "ready False auto_map,model_file,custom_pipelines\n"
    assert not marker.exists()


def mutations(content: bytes, seed: str) -> Iterator[bytes]:
    """Damaged copies: cut, changed, doubled, and such as are made to do harm."""
    rng = random.Random(seed)
    yield from (b"", content[:-1], content + b"\0", b"\0" * len(content), content * 2, DEEP, b"[]", b"null", b'"' * 999)
    for _ in range(NUM_MUTATIONS - 9):
        mutated = bytearray(content)
        for _ in range(rng.choice((1, 1, 2, 8))):
            place = rng.randrange(min(len(mutated), 2000) + 1)
            match rng.randrange(4):
                case 0:
                    mutated[place : place + 1] = bytes([rng.randrange(256)])
                case 1:
                    del mutated[place : place + rng.choice((1, 4, 64))]
                case 2:
                    mutated[place:place] = rng.choice(WORDS)
                case 3:
                    mutated[place:] = mutated[place:][: rng.randrange(len(mutated) + 1)]
        yield bytes(mutated)


def message_of(read: Callable[[Path], object], path: Path) -> str | None:
    """What is said of a damaged file, None when it can be read."""
    try:
        read(path)
    except ModelBroken as error:
        return error.message
    return None


def sound_files() -> dict[str, bytes]:
    """A whole model with everything that is read of one."""
    config = CONFIG | {
        "quantization": {"bits": 4, "group_size": 64, "lm_head": {"bits": 8}},
        "layer_types": ["full_attention", "sliding_attention"],
        "sliding_window": 16,
        "text_config": {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2},
        "vision_config": {"depth": 2},
    }
    shapes = {
        "lm_head.weight": ("U32", (8, 8)),
        "lm_head.scales": ("BF16", (8, 1)),
        "lm_head.biases": ("BF16", (8, 1)),
        "vision.norm": ("F32", (4,)),
    }
    weight_map = dict.fromkeys(shapes, "model.safetensors")
    return model_files(config, shapes) | {
        INDEX: json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}).encode(),
        "README.md": b"---\ntags:\n- mlx\n---\n",
        "chat_template.jinja": b"{% if tools %}{% endif %}",
    }


@pytest.mark.parametrize("name", sorted(sound_files()))
def test_two_hundred_mutations_of_each_file_end_well(models: LocalModels, roots: Roots, name: str) -> None:
    """Ready, broken or incomplete, or ModelBroken: no other exception, and never a signal."""
    files = sound_files()
    folder = write_folder(roots.imported[0] / "mine", files)
    assert models.find("mine").state == "ready"
    states = set()
    for mutated in mutations(files[name], name):
        (folder / name).write_bytes(mutated)
        model = models.find("mine")
        states.add(model.state)
        assert model.state == "ready" or model.state_reason
        if model.characteristics is not None:
            estimate(model.characteristics, model.size_bytes)
            largest_context(model.characteristics, 1 << 30)
        assert (message_of(describe, folder) or "ok").isprintable()
        assert (message_of(read_object, folder / name) or "ok").isprintable()
    if name in ("config.json", "model.safetensors", "tokenizer_config.json", INDEX):
        assert "broken" in states


def test_values_of_the_wrong_kind_are_absent_values() -> None:
    """A configuration is what a stranger wrote."""
    rng = random.Random(5)
    wrong = (None, True, False, -1, 0, 2**80, 2**52, 1.5, "x", "", [], [1], ["x"], {}, {"a": 1}, [[]], {"bits": 4})
    keys = [
        *CONFIG, "quantization", "quantization_config", "text_config", "vision_config", "layer_types", "auto_map",
        "sliding_window", "multi_query", "kv_lora_rank", "num_kv_shared_layers", "global_head_dim", "id2label",
        "sliding_window_pattern", "hybrid_override_pattern", "full_attn_idxs", "cross_attention_layers", "dtype",
        "thinker_config", "attn_layer_period", "block_types", "model_max_length", "image_token_id", "num_labels",
    ]  # fmt: skip
    types = [
        "llama", "gemma3_text", "gemma4_text", "deepseek_v3", "deepseek_v2", "qwen3_next", "jamba", "nemotron_h",
        "recurrent_gemma", "lfm2", "mamba", "mamba2", "mllama_text_model", "exaone4", "cohere", "llama4", "roberta",
        "granitemoehybrid", "falcon_h1", "longcat_flash", "unheard_of", "gpt_oss",
    ]  # fmt: skip
    for _ in range(5_000):
        config = {key: rng.choice(wrong) for key in rng.sample(keys, 8)}
        config = CONFIG | config | {"model_type": rng.choice(types)}
        found = describe_config(config, name="org/model", tags=("mlx",))
        guess = estimate(found, 1000)
        assert guess is not None
        assert min(guess.weights_bytes, guess.overhead_bytes, 0 if guess.kv_bytes is None else guess.kv_bytes) >= 0
        assert (largest_context(found, 1 << 30) or 0) >= 0


def test_weights_that_promise_too_much_are_not_believed(models: LocalModels, roots: Roots) -> None:
    """A header of a few bytes that speaks of terabytes costs nothing."""
    weights = safetensors({"a": ("F32", (2, 2))}).replace(b"[0, 16]", b"[0, 9999999999999]")
    write_folder(roots.imported[0] / "mine", model_files() | {"model.safetensors": weights})
    assert models.find("mine").state == "broken"
