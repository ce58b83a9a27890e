"""Reading a model folder's files: whatever is wrong with one becomes ModelBroken, naming the file and not its place."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any, Final

from mlxm.errors import ModelBroken

_MIB: Final = 1024 * 1024
_TEXT_LIMIT_BYTES: Final = 64 * _MIB
_TOKENIZER_LIMIT_BYTES: Final = 128 * _MIB
_NAMES: Final = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
    "tokenizer.model",
    "tekken.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "config.json",
)
_HINT: Final = "Download the model again, or choose another one."

Revision = tuple[tuple[str, int, int], ...]


def revision(folder: Path) -> Revision:
    """Names, times and sizes of all files that a prompt depends on: it changes when one of them does."""
    paths = [*(folder / name for name in _NAMES), *extra_template_paths(folder)]
    found = []
    for path in paths:
        try:
            status = path.stat()
        except OSError:
            continue  # absent files are part of the revision by not being in it
        found.append((path.name, status.st_mtime_ns, status.st_size))
    return tuple(found)


def extra_template_paths(folder: Path) -> list[Path]:
    """The named templates beside the default one, in a fixed order."""
    return sorted((folder / "additional_chat_templates").glob("*.jinja"))


def read_tokenizer(folder: Path) -> bytes | None:
    """The bytes of tokenizer.json, or None when there is none."""
    return _read(folder / "tokenizer.json", _TOKENIZER_LIMIT_BYTES)


def read_text(path: Path) -> str | None:
    """The text of a UTF-8 file, or None when there is none."""
    content = _read(path, _TEXT_LIMIT_BYTES)
    if content is None:
        return None
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise ModelBroken(f"{path.name} of this model is not valid UTF-8.", hint=_HINT) from error


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file, empty when there is no such file."""
    text = read_text(path)
    if text is None:
        return {}
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelBroken(f"{path.name} of this model is not valid JSON.", hint=_HINT) from error
    if not isinstance(content, dict):
        raise ModelBroken(f"{path.name} of this model is not a JSON object.", hint=_HINT)
    return content


def _read(path: Path, limit_bytes: int) -> bytes | None:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ModelBroken(f"{path.name} of this model is not a file.", hint=_HINT)
        if status.st_size > limit_bytes:
            raise ModelBroken(f"{path.name} of this model is larger than {limit_bytes // _MIB} MiB.", hint=_HINT)
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ModelBroken(f"{path.name} of this model cannot be read: {error.strerror}.", hint=_HINT) from error
