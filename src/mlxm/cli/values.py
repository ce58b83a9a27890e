"""Values that need no conversion skip typer's, which loads pydantic first and takes longer than many a command.

What already is of the right type passes; everything else, and every mistake, goes the way that typer has for it.
"""

from __future__ import annotations

import types
from typing import Any, Literal, Union, get_args, get_origin

import typer
from typer._coercion import RuntimeParam, build_runtime_param  # typer has no public place to hook in
from typer.core import TyperGroup

HELP_OPTION_NAMES = ["-h", "--help"]
_PLAIN = (str, int, float, bool)


class QuickParam(RuntimeParam):
    """A parameter's conversion, where mostly there is none to do."""

    def _coerce_value(self, value: Any, param: Any, ctx: Any) -> Any:
        if is_of(value, self.annotation):
            return list(value) if isinstance(value, tuple) else value
        return build_runtime_param(param.type_descriptor).coerce(value, param, ctx)


def skip_conversions(command: Any) -> None:
    """Have a command, and those below it, take values as they are wherever that is right."""
    help_option = command.get_help_option(typer.Context(command, help_option_names=HELP_OPTION_NAMES))
    for param in (*command.params, help_option):
        described = param.type_descriptor
        param._runtime_param = QuickParam(described.parameter_info, described.annotation)  # noqa: SLF001  # as above
    if isinstance(command, TyperGroup):
        for child in command.commands.values():
            skip_conversions(child)


def is_of(value: Any, annotation: Any) -> bool:
    """Whether a value is what a plain annotation asks for; False for every annotation that is not plain."""
    if get_origin(annotation) in (Union, types.UnionType):
        return any(is_of(value, kind) for kind in get_args(annotation))
    if get_origin(annotation) is Literal:
        return value in get_args(annotation)
    if get_origin(annotation) is list:
        (kind,) = get_args(annotation)
        return isinstance(value, tuple | list) and all(is_of(each, kind) for each in value)
    return annotation in _PLAIN and type(value) is annotation
