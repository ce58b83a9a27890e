"""Asking before something is gone for good."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from mlxm.cli.output import ExitCode, print_note
from mlxm.errors import InvalidRequest

YesFlag = Annotated[bool, typer.Option("--yes", "-y", help="Do it without asking.")]
DryRunFlag = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")]


def confirm(question: str, *, yes: bool) -> None:
    """Go on when the person agrees; typer.Exit when not, InvalidRequest when there is nobody to ask."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise InvalidRequest("There is no terminal to ask on.", hint="Add -y to go on without being asked.")
    if not typer.confirm(question, err=True):
        print_note("Nothing was done.")
        raise typer.Exit(ExitCode.FAILED)
