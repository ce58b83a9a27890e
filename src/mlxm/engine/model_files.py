"""What the files of a model folder say, read without mlx: its limits, its stop tokens, whether its weights are whole.

A damaged file is named here, before a library that would only say that something is wrong gets to see it.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from mlxm.errors import ModelBroken
from mlxm.types import Sampling

MAX_HEADER_BYTES = 100_000_000
_FETCH_AGAIN = "Fetch the model again."
_KNOWN_ONLY = "mlxm runs architectures that mlx-lm knows, and no code that comes with a model."

FileT = TypeVar("FileT", bound=msgspec.Struct)
_TokenIds = int | list[int] | None


class _Limits(msgspec.Struct, frozen=True, kw_only=True):
    """The names that model families have given to the length of their context, the commonest first."""

    max_position_embeddings: int | None = None
    n_positions: int | None = None
    n_ctx: int | None = None
    max_sequence_length: int | None = None
    max_seq_len: int | None = None
    seq_length: int | None = None
    eos_token_id: _TokenIds = None

    @property
    def context_length(self) -> int | None:
        lengths = (
            self.max_position_embeddings,
            self.n_positions,
            self.n_ctx,
            self.max_sequence_length,
            self.max_seq_len,
            self.seq_length,
        )
        return next((length for length in lengths if length is not None), None)


class _Config(_Limits, frozen=True, kw_only=True):
    model_type: str
    model_file: str | None = None
    text_config: _Limits | None = None


class _Generation(msgspec.Struct, frozen=True):
    eos_token_id: _TokenIds = None
    temperature: Annotated[float, Meta(ge=0)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=-1)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Meta(ge=1e-3, le=1e3)] | None = None


class _NamedToken(msgspec.Struct, frozen=True):
    content: str


class _TokenizerConfig(msgspec.Struct, frozen=True):
    eos_token: str | _NamedToken | None = None


class ModelConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What a model's configuration files say about running it."""

    architecture: str
    context_length: int | None
    eos_ids: frozenset[int]
    eos_token: str | None
    sampling: Sampling = Sampling()
    """What its makers found to be good, for requests that do not say."""


def read_model_config(folder: Path) -> ModelConfig:
    """Read config.json and, where they exist, generation_config.json and tokenizer_config.json; raises ModelBroken."""
    config = _read(folder / "config.json", _Config, is_needed=True)
    if config.model_file is not None:
        raise ModelBroken(f"{folder / 'config.json'} asks for a program of the model's own.", hint=_KNOWN_ONLY)
    if not config.model_type.replace("-", "_").isidentifier():
        raise ModelBroken(f"{folder / 'config.json'} names no architecture: {config.model_type!r}.", hint=_KNOWN_ONLY)
    text = config.text_config if config.text_config is not None else _Limits()
    generation = _read(folder / "generation_config.json", _Generation)
    token = _read(folder / "tokenizer_config.json", _TokenizerConfig).eos_token
    listed = (config.eos_token_id, text.eos_token_id, generation.eos_token_id)
    lengths = (config.context_length, text.context_length)
    return ModelConfig(
        architecture=config.model_type,
        context_length=next((length for length in lengths if length is not None), None),
        eos_ids=frozenset(token_id for ids in listed for token_id in _as_list(ids)),
        eos_token=token.content if isinstance(token, _NamedToken) else token,
        sampling=Sampling(
            temperature=generation.temperature,
            top_p=generation.top_p,
            top_k=generation.top_k,
            min_p=generation.min_p,
            repetition_penalty=generation.repetition_penalty,
        ),
    )


def check_weights(folder: Path) -> None:
    """Make sure that every weight file is there and complete; raises ModelBroken naming the one that is not."""
    files = set(folder.glob("model*.safetensors"))
    index = folder / "model.safetensors.index.json"
    if index.exists():
        named = _read(index, _Index).weight_map.values()
        files |= {folder / Path(name).name for name in named}
    if not files:
        raise ModelBroken(f"{folder} holds no model*.safetensors.", hint=_FETCH_AGAIN)
    for path in sorted(files):
        _check_safetensors(path)


class _Index(msgspec.Struct, frozen=True):
    weight_map: dict[str, str] = {}


class _Tensor(msgspec.Struct, frozen=True):
    data_offsets: tuple[int, int]


def _check_safetensors(path: Path) -> None:
    """The header says where the last tensor ends: a file of another length was cut or is something else."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = msgspec.convert(json.loads(file.read(min(length, MAX_HEADER_BYTES))), dict[str, Any])
        header.pop("__metadata__", None)
        tensors = msgspec.convert(header, dict[str, _Tensor])
    except OSError as error:
        raise ModelBroken(f"{path} cannot be read: {error.strerror}.", hint=_FETCH_AGAIN) from error
    except (struct.error, ValueError, RecursionError) as error:
        raise ModelBroken(f"{path} is damaged: it does not begin as a safetensors file.", hint=_FETCH_AGAIN) from error
    expected = 8 + length + max((tensor.data_offsets[1] for tensor in tensors.values()), default=0)
    if size != expected:
        raise ModelBroken(f"{path} has {size} bytes where its header promises {expected}.", hint=_FETCH_AGAIN)


def _read(path: Path, kind: type[FileT], *, is_needed: bool = False) -> FileT:
    try:
        content: Any = json.loads(path.read_bytes())
        return msgspec.convert(content, kind)
    except FileNotFoundError as error:
        if not is_needed:
            return kind()
        raise ModelBroken(f"{path} is missing.", hint=_FETCH_AGAIN) from error
    except OSError as error:
        raise ModelBroken(f"{path} cannot be read: {error.strerror}.", hint=_FETCH_AGAIN) from error
    except (ValueError, RecursionError) as error:
        raise ModelBroken(f"{path} cannot be understood: {error}", hint=_FETCH_AGAIN) from error


def _as_list(ids: _TokenIds) -> list[int]:
    if ids is None:
        return []
    return [ids] if isinstance(ids, int) else ids
