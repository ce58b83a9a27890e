"""Every setting as one row: its dotted name, its variable, its default, and how a value becomes its own.

The rows are read off the models in `groups`, so that errors, docs and commands follow them.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import reduce
from operator import getitem
from types import MappingProxyType
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, TypeAdapter
from pydantic.fields import FieldInfo

from mlxm.errors import ConfigInvalid
from mlxm.settings.groups import Settings
from mlxm.settings.kinds import Allowed

ENV_PREFIX = "MLXM_"
_NEAREST_CUTOFF = 0.4


@dataclass(frozen=True, slots=True)
class Setting:
    """One thing that can be set."""

    name: str
    field: FieldInfo

    @property
    def env_name(self) -> str:
        """The environment variable that sets it."""
        return ENV_PREFIX + self.name.replace(".", "__").upper()

    @property
    def default(self) -> Any:
        """Its value when nobody sets it, as config.toml would have it."""
        return self.dump(self.field.default)

    @property
    def meaning(self) -> str:
        """What it does, in a sentence."""
        if self.field.description is None:
            raise TypeError(f"{self.name} has no description")
        return self.field.description

    @property
    def allowed(self) -> str:
        """What it may be, in words that follow "must be"."""
        words = [note.words for note in self.field.metadata if isinstance(note, Allowed)]
        if words:
            return words[-1]
        if get_origin(self.field.annotation) is Literal:
            *most, last = (str(choice) for choice in get_args(self.field.annotation))
            return f"{', '.join(most)} or {last}"
        if self.field.annotation is bool:
            return "true or false"
        raise TypeError(f"{self.name} has no kind that says what it allows: give it one of mlxm.settings.kinds")

    def accept(self, value: object) -> Any:
        """The checked value of what a person or program gave, as text or typed; ValueError when it is not allowed."""
        if not isinstance(value, str):
            return self.accept_typed(value)
        if get_origin(self.field.annotation) is tuple:
            return self._adapter().validate_json(value)
        return self._adapter().validate_python(value)

    def accept_typed(self, value: object) -> Any:
        """The checked value of one that has a type already: `true` is no number, nor is "7"."""
        return self._adapter().validate_json(json.dumps(value, default=_refuse), strict=True)

    def dump(self, value: object) -> Any:
        """A checked value as config.toml and JSON have it: sizes as 512MB."""
        return self._adapter().dump_python(value, mode="json")

    def _adapter(self) -> TypeAdapter[Any]:
        return TypeAdapter(Annotated[self.field.annotation, self.field])  # type: ignore[arg-type]  # known at run time only


@dataclass(frozen=True, slots=True)
class SettingValue:
    """What a setting is now, as config.toml and JSON have it, and where that came from."""

    name: str
    value: Any
    origin: str


def _refuse(value: object) -> str:
    """TOML has dates, of which no setting is one."""
    raise ValueError(f"{type(value).__name__} is no kind of setting")


def _walk(model: type[BaseModel], prefix: str = "") -> Iterator[Setting]:
    for key, field in model.model_fields.items():
        group = group_of(field)
        if group is None:
            yield Setting(prefix + key, field)
        else:
            yield from _walk(group, f"{prefix}{key}.")


def group_of(field: FieldInfo) -> type[BaseModel] | None:
    """The group that a field holds, None when it holds a value."""
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


SETTINGS: Mapping[str, Setting] = MappingProxyType({setting.name: setting for setting in _walk(Settings)})


def explain_settings(settings: Settings) -> tuple[SettingValue, ...]:
    """Every setting with its value and where that came from, in the order of the models."""
    tree = settings.model_dump(mode="json")
    return tuple(
        SettingValue(name, reduce(getitem, name.split("."), tree), settings.origin_of(name)) for name in SETTINGS
    )


def find_setting(name: str) -> Setting:
    """The setting of that name; ConfigInvalid with the nearest name when there is none."""
    if name in SETTINGS:
        return SETTINGS[name]
    members = [known for known in SETTINGS if known.startswith(f"{name}.")]
    if members:
        raise ConfigInvalid(f"{name} is a group of settings.", hint=f"It has {', '.join(members)}.", param=name)
    near = nearest(name, SETTINGS)
    hint = "`mlxm config show` lists all settings." if near is None else f"Did you mean {near}?"
    raise ConfigInvalid(f"There is no setting {name}.", hint=hint, param=name)


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that `name` was most likely meant to be."""
    return next(iter(difflib.get_close_matches(name, list(known), n=1, cutoff=_NEAREST_CUTOFF)), None)
