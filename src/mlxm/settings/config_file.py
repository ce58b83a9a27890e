"""Changes to config.toml that keep what people wrote around the values, and never leave half a file.

A change holds a lock on the home, so that two at once are both kept; whoever only reads needs none.
"""

from __future__ import annotations

import errno
import fcntl
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any

import tomlkit
from tomlkit.items import Table, Whitespace

from mlxm.errors import ConfigInvalid, DiskFull, StoreError, StoreReadOnly
from mlxm.settings.groups import CONFIG_NAME, Settings
from mlxm.settings.layers import Layer, read_config_text, read_text, refuse_problems
from mlxm.settings.table import SETTINGS, find_setting

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_READ_ONLY = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})


def set_values(home: Path, changes: Mapping[str, object]) -> dict[str, Any]:
    """Write settings by dotted name, as text or typed, and return them as written.

    All or none: ConfigInvalid, and the file as it was, when any is not allowed or the result is not valid.
    """
    written = {name: _accept(name, value) for name, value in changes.items()}

    def put_all(document: tomlkit.TOMLDocument) -> None:
        for name, value in written.items():
            _put(document, name, value)

    _change(home, put_all, refuse_problems)
    return written


def unset_values(home: Path, names: Iterable[str]) -> list[str]:
    """Take settings out of the file, and return those that were in it.

    Names that are in it but unknown may go, and other mistakes may stay, so that a file can be mended step by step.
    """
    removed: list[str] = []

    def remove_all(document: tomlkit.TOMLDocument) -> None:
        for name in names:
            if _remove(document, name):
                removed.append(name)
            else:
                find_setting(name)

    _change(home, remove_all, lambda _: None)
    return removed


def start_config(home: Path) -> Path:
    """The path of config.toml, which is written with every setting commented out when there is none."""
    path = home / CONFIG_NAME
    with _translated(path), _locked(home):
        if not path.exists():
            _replace(path, _draft().encode())
    return path


def check_config(path: Path) -> None:
    """Raise ConfigInvalid when config.toml is not valid by itself."""
    refuse_problems([read_config_text(read_text(path), path)])


def _accept(name: str, value: object) -> Any:
    setting = find_setting(name)
    try:
        return setting.dump(setting.accept(value))
    except ValueError as error:
        raise ConfigInvalid(
            f"{name} must be {setting.allowed}, not {value}.", hint=f"For example: {setting.default}", param=name
        ) from error


def _change(home: Path, edit: Callable[[tomlkit.TOMLDocument], None], judge: Callable[[Iterable[Layer]], None]) -> None:
    path = home / CONFIG_NAME
    with _translated(path), _locked(home):
        before = read_text(path)
        read_config_text(before, path)  # to say where it is broken, in the words of every other command
        document = tomlkit.parse(before)
        edit(document)
        after = tomlkit.dumps(document)
        judge([read_config_text(after, path)])
        if after != before:
            _replace(path, after.encode())


def _put(document: tomlkit.TOMLDocument, name: str, value: object) -> None:
    *groups, key = name.split(".")
    table: MutableMapping[str, Any] = document
    for group in groups:
        if group not in table:
            table[group] = tomlkit.table()
        table = table[group]
        if not isinstance(table, MutableMapping):
            raise ConfigInvalid(f"{group} in {CONFIG_NAME} is not a table.", hint="Correct it with: mlxm config edit")
    if isinstance(table, Table) and key not in table:
        _append(table, key, value)
    else:
        table[key] = value


def _append(table: Table, key: str, value: object) -> None:
    """Add a key behind the table's last one: what follows the first blank line there belongs to the next table."""
    body = table.value.body
    num_kept = len(body)
    while num_kept and body[num_kept - 1][0] is None:
        num_kept -= 1
    while num_kept < len(body) and not isinstance(body[num_kept][1], Whitespace):
        num_kept += 1
    rest = body[num_kept:]
    del body[num_kept:]
    table[key] = value
    body.extend(rest)


def _remove(document: tomlkit.TOMLDocument, name: str) -> bool:
    """Take a value, or an unknown table, out of the document; whether there was one."""
    *groups, key = name.split(".")
    table: Any = document
    for group in groups:
        table = table.get(group) if isinstance(table, MutableMapping) else None
    if not isinstance(table, MutableMapping) or key not in table or name in Settings.model_fields:
        return False
    del table[key]
    return True


def _draft() -> str:
    """A config.toml to start from."""
    lines = ["# What mlxm does when nobody says otherwise. Take the # from a line to change it.", ""]
    for group, settings in groupby(SETTINGS.values(), key=lambda setting: setting.name.rpartition(".")[0]):
        lines.append(f"[{group}]")
        for setting in settings:
            value = tomlkit.item(setting.default).as_string()
            lines.append(f"# {setting.name.rpartition('.')[2]} = {value}  # {setting.meaning}")
        lines.append("")
    return "\n".join(lines)


def _replace(path: Path, content: bytes) -> None:
    """Put `content` in the place of a file, durably and at once; a file behind a symlink stays behind it."""
    path = path.resolve()
    descriptor, draft = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, 0o600)  # as with the home
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        Path(draft).replace(path)
    finally:
        Path(draft).unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextmanager
def _locked(home: Path) -> Iterator[None]:
    """Keep other changes out, making the home when there is none; the lock dies with the process."""
    if not home.exists():
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        home.chmod(0o700)  # a umask may have taken bits away
    descriptor = os.open(home, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    """Raise what the system says about `path` as an MlxmError."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise DiskFull(f"No space is left on the disk for {path}.", hint="Free some space there.") from error
        if error.errno in _READ_ONLY:
            raise StoreReadOnly(
                f"{path} cannot be written.", hint="Make its folder writable, or set MLXM_HOME to one that is."
            ) from error
        raise StoreError(f"{path} could not be written: {error.strerror}.") from error
