"""`mlxm config`: reads and changes settings.

What is printed as a result is the value, the path or the table alone; the rest goes to stderr.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from mlxm.cli.checks import show_path
from mlxm.cli.output import JsonFlag, print_json, print_line, print_note, print_table
from mlxm.errors import ConfigInvalid, InvalidRequest, Unavailable
from mlxm.settings import (
    CONFIG_NAME,
    PRECEDENCE,
    SETTINGS,
    Settings,
    explain_settings,
    find_setting,
    home_folder,
    load_settings,
)
from mlxm.settings.config_file import check_config, set_values, start_config, unset_values

app = typer.Typer(help="Read and change settings.", no_args_is_help=True, rich_markup_mode=None, add_completion=False)


def _complete_name(incomplete: str) -> list[str]:
    """The settings that the shell may offer."""
    return [name for name in SETTINGS if name.startswith(incomplete)]


NameArgument = Annotated[
    str, typer.Argument(help="The setting, such as server.port.", autocompletion=_complete_name, show_default=False)
]


@app.command(epilog="Example: mlxm config get server.port")
def get(name: NameArgument) -> None:
    """Print the value of a setting."""
    find_setting(name)
    print_line(next(_show_value(row.value) for row in explain_settings(load_settings()) if row.name == name))


# A value may begin with a dash, which is for the setting to judge.
@app.command(
    "set", epilog="Example: mlxm config set server.port 8080", context_settings={"ignore_unknown_options": True}
)
def set_(name: NameArgument, value: Annotated[str, typer.Argument(help="Its value.", show_default=False)]) -> None:
    """Write a setting to config.toml."""
    home = home_folder()
    written = set_values(home, {name: value})
    print_note(f"{name} = {_show_value(written[name])} in {show_path(home / CONFIG_NAME)}")
    _note_variable(name)


@app.command(epilog="Example: mlxm config unset server.port")
def unset(name: NameArgument) -> None:
    """Take a setting out of config.toml, so that its default holds."""
    home = home_folder()
    if not unset_values(home, [name]):
        print_note(f"{name} is not in {show_path(home / CONFIG_NAME)}")
    elif name in SETTINGS:
        print_note(f"{name} = {_show_value(SETTINGS[name].default)}, the default")
        _note_variable(name)
    else:
        print_note(f"{name} is out of {show_path(home / CONFIG_NAME)}")


@app.command(epilog="Example: EDITOR=nano mlxm config edit")
def edit() -> None:
    """Open config.toml in $VISUAL or $EDITOR, and check it afterwards."""
    path = start_config(home_folder())
    while True:
        _open_editor(path)
        try:
            check_config(path)
        except ConfigInvalid as error:
            if not sys.stdin.isatty():
                raise
            print_note(error.message)
            if not typer.confirm("Open it again?", default=True, err=True):
                raise
        else:
            return


@app.command(epilog='Example: cat "$(mlxm config path)"')
def path() -> None:
    """Print where config.toml is, or would be."""
    print_line(str(home_folder() / CONFIG_NAME))


@app.command(epilog="Example: mlxm config validate && mlxm serve")
def validate() -> None:
    """Check config.toml and the environment."""
    config_path = load_settings().config_path
    shown = show_path(config_path)
    print_line(f"{shown} is valid" if config_path.exists() else f"defaults; there is no {shown}")


@app.command(epilog="Example: mlxm config schema > mlxm.schema.json")
def schema() -> None:
    """Print the JSON Schema of config.toml, for editors."""
    print_json({"$schema": "https://json-schema.org/draft/2020-12/schema", **Settings.model_json_schema()})


@app.command(epilog="Example: mlxm config show --origin")
def show(
    *,
    origin: Annotated[bool, typer.Option("--origin", help="Say where each value comes from.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Print every setting and its value."""
    rows = explain_settings(load_settings())
    if as_json:
        print_json(rows)
        return
    if not origin:
        print_table(["NAME", "VALUE"], [(row.name, _show_value(row.value)) for row in rows])
        return
    print_table(["NAME", "VALUE", "ORIGIN"], [(row.name, _show_value(row.value), row.origin) for row in rows])
    print_note(f"precedence: {PRECEDENCE}")


def _show_value(value: Any) -> str:
    """A value as it is typed after `mlxm config set`."""
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _note_variable(name: str) -> None:
    """Say when what was written has no effect because the environment wins."""
    variable = SETTINGS[name].env_name
    if variable in os.environ:
        print_note(f"but {variable} in the environment wins: {os.environ[variable]}")


def _open_editor(path: Path) -> None:
    command = os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi"
    try:
        subprocess.run([*shlex.split(command), path], check=True)
    except (OSError, ValueError) as error:
        raise InvalidRequest(f"The editor {command} cannot be started.", hint="Set EDITOR to another one.") from error
    except subprocess.CalledProcessError as error:
        raise Unavailable(f"The editor {command} failed with {error.returncode}.", hint="Try again.") from error
