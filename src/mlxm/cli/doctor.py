"""`mlxm doctor`: checks the machine, the settings and what is kept, and says what to fix.

Each finding is shown as soon as it is known: starting MLX takes a while.
"""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Iterator

import typer

from mlxm.cli.checks import (
    Check,
    Probes,
    Status,
    check_blas,
    check_config,
    check_database,
    check_device,
    check_home,
    check_hub_cache,
    check_hub_token,
    check_memory,
    check_port,
    check_versions,
    needs_fixing,
)
from mlxm.cli.mlx_backends import check_mlx_backends
from mlxm.cli.output import ExitCode, JsonFlag, paint, print_json, print_line, print_note
from mlxm.cli.probes import make_probes

_STYLES: dict[Status, str] = {"ok": "32", "warn": "33", "fail": "1;31"}
_INDENT = 19
_MIN_WIDTH = 20

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command(epilog="Example: mlxm doctor --json")
def doctor(*, as_json: JsonFlag = False) -> None:
    """Check this machine and say what to fix.

    Exits with 10 when there is something to fix.
    """
    report(make_probes(), as_json=as_json)


def report(probes: Probes, *, as_json: bool) -> None:
    """Print every finding; typer.Exit when one needs fixing."""
    checks: list[Check] = []
    for check in run_checks(probes):
        checks.append(check)
        if not as_json:
            print_check(check)
    faults = [check for check in checks if needs_fixing(check)]
    if as_json:
        print_json(checks)
    else:
        print_note(f"\n{len(faults)} of {len(checks)} to fix." if faults else "\nAll is well.")
    if faults:
        raise typer.Exit(ExitCode.UNHEALTHY)


def run_checks(probes: Probes) -> Iterator[Check]:
    """Ask the machine everything, one finding after the other."""
    yield check_config(probes.config())
    yield check_versions(probes.versions())
    yield check_mlx_backends(probes.mlx_backends())
    report = probes.device()
    yield check_device(report)
    yield check_blas(report)
    yield check_memory(probes.memory(), report.wired_limit_bytes)
    yield check_hub_cache(probes.hub_cache())
    yield check_hub_token(probes.hub_token())
    yield check_port(probes.port())
    yield check_home(probes.home())
    yield check_database(probes.database())


def print_check(check: Check) -> None:
    """One finding in words, wrapped to the terminal where there is one."""
    print_line(
        f"{paint(f'{check.status:<4}', _STYLES[check.status], sys.stdout)}  {check.name:<11}  {_wrap(check.detail)}"
    )
    if check.fix is not None:
        print_line(f"{'':<{_INDENT}}{_wrap(f'fix: {check.fix}')}")


def _wrap(text: str) -> str:
    """`text` in lines that fit behind the names; for a pipe its own lines, however long."""
    lines = text.splitlines()
    if sys.stdout.isatty():
        width = max(shutil.get_terminal_size().columns - _INDENT, _MIN_WIDTH)
        lines = [part for line in lines for part in textwrap.wrap(line, width, break_on_hyphens=False)]
    return f"\n{'':<{_INDENT}}".join(lines)
