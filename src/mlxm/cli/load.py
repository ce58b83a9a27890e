"""`mlxm load`: has the running server load a model."""

from __future__ import annotations

import math
from typing import Annotated

import typer

from mlxm.cli.figures import show_bytes, show_duration
from mlxm.cli.filters import read_age, read_tokens
from mlxm.cli.output import JsonFlag, ModelArgument, print_json, print_line
from mlxm.cli.pool import need_server, wait_loaded
from mlxm.errors import InvalidRequest

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command(epilog="\b\nExamples:\n  mlxm load mlxm/tiny --pin\n  mlxm load mlxm/tiny --ttl 10m --ctx 32k")
def load(
    name: ModelArgument,
    *,
    pin: Annotated[bool, typer.Option("--pin", help="Never let it go by itself.")] = False,
    ttl: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="How long it stays unused, such as 90s, 10m or 2h; 0 is for good."),
    ] = None,
    ctx: Annotated[
        str | None, typer.Option(metavar="TOKENS", help="For how many tokens there is to be room, such as 32k.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Load a model into the running server, and wait until it is there."""
    ttl_s, num_tokens = _read_ttl(ttl), _read_ctx(ctx)
    with need_server() as server:
        row = wait_loaded(server, server.load(name, pin=pin, ttl_s=ttl_s, ctx=num_tokens))
    if as_json:
        print_json(row)
        return
    memory = show_bytes(row.reserved_bytes if row.memory_bytes is None else row.memory_bytes)
    kept = ", pinned" if row.pinned else "" if row.expires_s is None else f", for {show_duration(row.expires_s)} unused"
    print_line(f"{row.model} is loaded: {memory}{kept}")


def _read_ttl(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        ttl_s = float(text) if text.replace(".", "", 1).isdecimal() else _read_time(text)
    except ValueError:
        ttl_s = math.nan
    if not 0 <= ttl_s < math.inf:
        raise InvalidRequest(f"--ttl {text} is no time.", hint="For example: --ttl 10m", param="ttl")
    return ttl_s


def _read_time(text: str) -> float:
    return float(text[:-1]) if text.endswith("s") else read_age(text)


def _read_ctx(text: str | None) -> int | None:
    if text is None:
        return None
    try:
        num_tokens = int(read_tokens(text))
    except (ValueError, KeyError):
        num_tokens = 0
    if num_tokens < 1:
        raise InvalidRequest(f"--ctx {text} is no number of tokens.", hint="For example: --ctx 32k", param="ctx")
    return num_tokens
