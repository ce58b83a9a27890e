"""`mlxm search`: finds models on the Hub, and shows each as soon as something is known of it."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Annotated

import typer

from mlxm.catalog.hub import Filters, Sort
from mlxm.cli import machine
from mlxm.cli.found import Finds, print_finds
from mlxm.cli.installed import USUAL_CONTEXT
from mlxm.cli.output import JsonFlag, JsonLinesFlag, QuietFlag, print_json, print_json_line, print_line
from mlxm.errors import InvalidRequest
from mlxm.settings.sizes import parse_bytes

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command(
    epilog="\b\nExamples:\n  mlxm search qwen3\n"
    "  mlxm search coder --author mlx-community --quant 4bit --max-size 8GB\n"
    "  mlxm search --cap vision --cap tools --fits -q"
)
def search(
    query: Annotated[str, typer.Argument(help="Words in the names of models.", show_default=False)] = "",
    *,
    author: Annotated[str | None, typer.Option(help="Models of this author alone.")] = None,
    family: Annotated[str | None, typer.Option(help="A family, such as qwen3, or how its name begins.")] = None,
    quant: Annotated[str | None, typer.Option(help="How weights are packed: 4bit, mxfp4, bf16.")] = None,
    caps: Annotated[
        list[str] | None,
        typer.Option("--cap", help="What a model can do: text, vision, embedding, reranker, audio, tools, reasoning."),
    ] = None,
    max_size: Annotated[str | None, typer.Option(help="The most that may have to be fetched, such as 8GB.")] = None,
    fits: Annotated[bool, typer.Option("--fits", help="Only what this machine has the memory for.")] = False,
    sort: Annotated[Sort, typer.Option(help="What comes first.")] = "downloads",
    limit: Annotated[int, typer.Option(help="How many models to show.")] = 20,
    quiet: QuietFlag = False,
    as_lines: JsonLinesFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Find models for MLX on the Hub.

    The rows that come first have gaps, which are filled as more becomes known. What a filter cannot tell stays in.
    """
    here = machine.read_machine()
    filters = Filters(
        author=author,
        family=family,
        quantisation=quant,
        capabilities=() if caps is None else tuple(caps),
        max_size_bytes=None if max_size is None else _read_size(max_size),
        fits_bytes=here.budget_bytes if fits else None,
        fits_context=USUAL_CONTEXT,
    )
    finds = Finds(sort, here)
    asyncio.run(_search(query, filters, finds, limit, as_lines=as_lines, is_shown=not (as_json or as_lines or quiet)))
    if as_json:
        print_json([finds.as_json(row) for row in finds.rows()])
    elif quiet:
        for row in finds.rows():
            print_line(row.name)
    elif not as_lines:
        print_finds(finds)


async def _search(query: str, filters: Filters, finds: Finds, limit: int, *, as_lines: bool, is_shown: bool) -> None:
    """Take in all events, and let the person see how it goes."""
    from mlxm.hub_access import HubAccess

    async with HubAccess.open() as access:
        with finds.live(is_shown=is_shown) as refresh:
            async with aclosing(access.api.search(query, filters, sort=finds.sort, limit=limit)) as events:
                async for event in events:
                    finds.take(event)
                    refresh()
                    if as_lines:
                        print_json_line(event)


def _read_size(text: str) -> int:
    try:
        return parse_bytes(text)
    except ValueError as error:
        raise InvalidRequest(f"--max-size {text!r} is no size.", hint="Write 8GB or 500MB.") from error
