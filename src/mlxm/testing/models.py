"""Builds tiny models with random weights for tests: real files, which mlx-lm and mlxm load like any other model.

The weights are made in a process of their own, so that a test need not import mlx.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import msgspec

from mlxm.errors import InternalError, InvalidRequest, TimedOut
from mlxm.testing.shapes import CONTEXT
from mlxm.tiny.families import FAMILIES
from mlxm.tiny.folders import is_whole, seal_and_place, workshop
from mlxm.tiny.jobs import REFUSED, Job, Quantise
from mlxm.tiny.tokenizer import token_ids, write_tokenizer

_LIMIT_S: Final = 600.0

_FAMILY_OF: Final = {
    "llama": "llama3",
    "llama4": "llama3",
    "mistral": "mistral",
    "mixtral": "mistral",
    "ministral3": "mistral",
    "gemma": "gemma",
    "gemma2": "gemma",
    "gemma3_text": "gemma",
    "gemma4_text": "gemma",
    "gemma3n": "gemma",
    "recurrent_gemma": "gemma",
    "phi3": "phi3",
    "gpt_oss": "harmony",
    "deepseek_v2": "deepseek",
    "deepseek_v3": "deepseek",
    "deepseek_v32": "deepseek",
    "qwen2": "chatml",
    "qwen2_moe": "chatml",
    "qwen3": "chatml",
    "qwen3_moe": "chatml",
    "qwen3_next": "chatml",
    "qwen3_5": "chatml",
    "smollm3": "chatml",
    "internlm2": "chatml",
    "internlm3": "chatml",
    "lfm2": "chatml",
    "lfm2_moe": "chatml",
    "stablelm": "chatml",
    "minicpm": "chatml",
    "minicpm3": "chatml",
}


def family_of(model_type: str) -> str:
    """The name of the chat family that models of this type are given."""
    return _FAMILY_OF.get(model_type, "generic")


def build_models(
    models: Mapping[str, Mapping[str, Any]],
    folder: Path,
    *,
    seed: int = 0,
    quantise: Quantise | None = None,
) -> dict[str, Path]:
    """Model folders by the names given, built inside `folder` unless a build of the same content is there already.

    `models` maps a name to a configuration, as `ARCHITECTURES` does. Processes may share `folder`: one builds, the
    others wait. Raises InvalidRequest when mlx-lm cannot make a model of a configuration.
    """
    recipe = _recipe()
    jobs = {name: _job(dict(config), seed, quantise) for name, config in models.items()}
    targets = {name: folder / f"{_as_file_name(name)}-{_digest(job, recipe)}" for name, job in jobs.items()}
    if not all(map(is_whole, targets.values())):
        with workshop(folder) as scratch:
            missing = {target: jobs[name] for name, target in targets.items() if not is_whole(target)}
            _build(missing, scratch)
    return targets


def _build(missing: Mapping[Path, Job], scratch: Path) -> None:
    """Make all the weights in one process, then finish and place each folder."""
    built = {target: scratch / target.name for target in missing}
    for path in built.values():
        path.mkdir()
    _make_weights([msgspec.structs.replace(job, folder=str(built[target])) for target, job in missing.items()], scratch)
    for target, job in missing.items():
        family = FAMILIES[family_of(job.config["model_type"])]
        write_tokenizer(built[target], family, context=_context(job.config))
        seal_and_place(built[target], target)


def _make_weights(jobs: list[Job], scratch: Path) -> None:
    jobs_file = scratch / "jobs.json"
    jobs_file.write_bytes(msgspec.json.encode(jobs))
    command = [sys.executable, "-m", "mlxm.device.random_weights", str(jobs_file)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_LIMIT_S, check=False)
    except subprocess.TimeoutExpired as error:
        message = f"making random weights for {len(jobs)} models took more than {_LIMIT_S:.0f} s"
        raise TimedOut(message, hint="build fewer models at a time") from error
    if done.returncode == REFUSED:
        raise InvalidRequest(done.stderr.strip(), hint="compare the configuration with ModelArgs in mlx-lm")
    if done.returncode != 0:
        message = f"making random weights ended with {done.returncode}: {done.stderr.strip()[-2000:]}"
        raise InternalError(message, hint="is mlx installed? `mlxm doctor` says")


def _job(config: dict[str, Any], seed: int, quantise: Quantise | None) -> Job:
    if "model_type" not in config:
        raise InvalidRequest("a configuration has no model_type", hint="take one of mlxm.testing.ARCHITECTURES")
    family = FAMILIES[family_of(config["model_type"])]
    ids = token_ids(family)
    config |= {
        "torch_dtype": "float32",
        "bos_token_id": None if family.bos is None else ids[family.bos],
        "eos_token_id": ids[family.eos[0]],
        "pad_token_id": ids[family.pad],
    }
    return Job(config=config, folder="", seed=seed, quantise=quantise)


def _context(config: Mapping[str, Any]) -> int:
    found = config.get("max_position_embeddings", config.get("n_positions", CONTEXT))
    return int(found)


def _recipe() -> bytes:
    """A digest of the code that makes the files, so that a cache never answers with what older code made."""
    package = Path(__file__).parents[1]
    sources = [*sorted((package / "tiny").glob("*.py")), package / "device" / "random_weights.py", Path(__file__)]
    digest = hashlib.sha256(version("mlx-lm").encode())
    for source in sources:
        digest.update(source.read_bytes())
    return digest.digest()


def _digest(job: Job, recipe: bytes) -> str:
    return hashlib.sha256(recipe + msgspec.json.encode(job, order="sorted")).hexdigest()[:12]


def _as_file_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "_", name)
