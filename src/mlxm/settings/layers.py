"""The places that values come from, laid over each other: flag > environment > config.toml > default.

Each place is read and checked whole, so that a mistake is reported even where a higher place hides it.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from mlxm.errors import ConfigInvalid
from mlxm.settings.groups import CONFIG_NAME, Settings
from mlxm.settings.home import HOME_VARIABLE, home_folder
from mlxm.settings.table import ENV_PREFIX, SETTINGS, Setting, find_setting, group_of, nearest

PRECEDENCE = "flag > environment > config.toml > default"
_POSITION = re.compile(r" \(at line (\d+), column (\d+)\)$")
_MAX_QUOTED = 80


@dataclass(slots=True)
class Layer:
    """The checked values of one place by setting name, where each came from, and what is wrong there."""

    remedy: str
    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def add(self, setting: Setting, value: object, origin: str) -> None:
        """Take a checked value."""
        self.values[setting.name] = value
        self.origins[setting.name] = origin

    def nested(self) -> dict[str, Any]:
        """The values as the models nest them."""
        tree: dict[str, Any] = {}
        for name, value in self.values.items():
            *groups, key = name.split(".")
            inner = tree
            for group in groups:
                inner = inner.setdefault(group, {})
            inner[key] = value
        return tree


def load_settings(overrides: Mapping[str, object] | None = None, environ: Mapping[str, str] | None = None) -> Settings:
    """The settings in force; `overrides` are flags by dotted name, of which None was not given.

    Raises ConfigInvalid for whatever is unknown or not allowed in any place.
    """
    environ = os.environ if environ is None else environ
    home = home_folder(environ)
    flags = {} if overrides is None else overrides
    layers = [_read_flags(flags), _read_environment(environ), read_config(home / CONFIG_NAME)]
    refuse_problems(layers)
    origins = {name: origin for layer in reversed(layers) for name, origin in layer.origins.items()}
    return Settings.from_layers(home, [layer.nested() for layer in layers], origins)


def refuse_problems(layers: Iterable[Layer]) -> None:
    """Raise one ConfigInvalid that tells everything that is wrong, or nothing."""
    wrong = [layer for layer in layers if layer.problems]
    if wrong:
        message = "\n".join(problem for layer in wrong for problem in layer.problems)
        raise ConfigInvalid(message, hint="\n".join(layer.remedy for layer in wrong))


def _read_flags(overrides: Mapping[str, object]) -> Layer:
    layer = Layer("Give the flag another value.")
    for name, value in overrides.items():
        if value is None:
            continue
        setting = find_setting(name)
        try:
            layer.add(setting, setting.accept(value), "flag")
        except ValueError:
            layer.problems.append(f"{name} = {_quote(value)} from a flag must be {setting.allowed}.")
    return layer


def _read_environment(environ: Mapping[str, str]) -> Layer:
    layer = Layer("Correct the environment variable, or unset it.")
    known = {setting.env_name: setting for setting in SETTINGS.values()}
    for name in sorted(environ):
        if not name.upper().startswith(ENV_PREFIX) or name == HOME_VARIABLE:
            continue
        setting = known.get(name)
        if setting is None:
            near = nearest(name.upper(), [*known, HOME_VARIABLE])
            layer.problems.append(_unknown(name, "the environment", near))
            continue
        try:
            layer.add(setting, setting.accept(environ[name]), f"environment {name}")
        except ValueError:
            layer.problems.append(f"{name} = {_quote(environ[name])} in the environment must be {setting.allowed}.")
    return layer


def read_config(path: Path) -> Layer:
    """What config.toml says; nothing when there is none."""
    return read_config_text(read_text(path), path)


def read_text(path: Path) -> str:
    """The text of config.toml, empty when there is none; ConfigInvalid when it cannot be read."""
    try:
        data = path.read_bytes()
        return data.decode()
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise ConfigInvalid(f"{path} cannot be read: {error.strerror}.", hint="Make it a file of your own.") from error
    except UnicodeDecodeError as error:
        line, column = _end_of(data[: error.start].decode())
        raise ConfigInvalid(f"{path}, line {line}, column {column}: not UTF-8 text.", hint=_edit_hint()) from error


def read_config_text(text: str, path: Path) -> Layer:
    """What a text would say if it were config.toml at `path`; ConfigInvalid when it is not TOML."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        what, line, column = _locate(str(error), text)
        raise ConfigInvalid(f"{path}, line {line}, column {column}: {what}.", hint=_edit_hint()) from error
    layer = Layer(_edit_hint())
    _read_table(layer, document, Settings, "", path)
    return layer


def _read_table(layer: Layer, table: Mapping[str, Any], model: type[BaseModel], prefix: str, path: Path) -> None:
    """Take the values of one table, and those of the tables in it."""
    for key, value in table.items():
        name = prefix + key
        known = model.model_fields.get(key)
        group = None if known is None else group_of(known)
        if known is None:
            groups = [other for other, field in model.model_fields.items() if group_of(field) is not None]
            near = nearest(key, groups) if isinstance(value, dict) else nearest(name, SETTINGS)
            layer.problems.append(_unknown(name, path, near))
        elif group is None:
            _read_value(layer, SETTINGS[name], value, path)
        elif isinstance(value, dict):
            _read_table(layer, value, group, f"{name}.", path)
        else:
            layer.problems.append(f"{name} = {_quote(value)} in {path} must be a table, [{name}].")


def _read_value(layer: Layer, setting: Setting, value: object, path: Path) -> None:
    try:
        layer.add(setting, setting.accept_typed(value), CONFIG_NAME)
    except ValueError:
        layer.problems.append(f"{setting.name} = {_quote(value)} in {path} must be {setting.allowed}.")


def _unknown(name: str, place: object, near: str | None) -> str:
    return f"Unknown setting {name} in {place}{'.' if near is None else f': did you mean {near}?'}"


def _quote(value: object) -> str:
    """A value as a person would find it, cut when it is long."""
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= _MAX_QUOTED else f"{text[:_MAX_QUOTED]}…"


def _locate(message: str, text: str) -> tuple[str, int, int]:
    """What the parser says, and the line and column where; the parser counts neither at the end of the text."""
    found = _POSITION.search(message)
    if found is not None:
        return message[: found.start()], int(found[1]), int(found[2])
    return message.removesuffix(" (at end of document)"), *_end_of(text)


def _end_of(text: str) -> tuple[int, int]:
    """The line and column behind the last character."""
    return text.count("\n") + 1, len(text) - (text.rfind("\n") + 1) + 1


def _edit_hint() -> str:
    return "Correct it with: mlxm config edit"
