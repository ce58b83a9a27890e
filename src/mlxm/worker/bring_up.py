"""From a worker that has said hello to an engine that answers: BLAS, then mlx, then the weights, then the KV store."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from mlxm.device.blas import Blas, open_blas
from mlxm.engine.engine import Engine, EngineOptions
from mlxm.engine.guide import Grammars
from mlxm.errors import MlxmError, ProtocolMismatch
from mlxm.frames import Fault, Load, Loaded, LoadFailed, LoadProgress, Shutdown
from mlxm.worker.link import Link
from mlxm.worker.orders import Orders, scope_of
from mlxm.worker.service import Service

if TYPE_CHECKING:
    from mlxm.device.loader import LoadedModel
    from mlxm.engine.plan import Runner, RunnerFacts

_SLOW_BLAS = (
    "mlx computes with the reference BLAS, about thirty times slower than a fast one: "
    "`apt install libopenblas0`, or set worker.blas"
)


def bring_up(link: Link, *, blas: str, blas_threads: int | None) -> Service | None:
    """Import mlx, wait for the order to load and carry it out; None when there is nothing to serve."""
    try:
        warning = _slow_blas(open_blas(blas, num_threads=blas_threads))
        order = _order_to_load(link)
        return None if order is None else _load(link, order, warning)
    except MlxmError as error:
        link.send(LoadFailed(fault=Fault.of(error)))
        return None


def _order_to_load(link: Link) -> Load | None:
    from mlxm.device import choice  # noqa: F401, PLC0415  (mlx comes after its BLAS, and before there is anything to do)

    frame = link.receive()
    if isinstance(frame, Load):
        return frame
    if isinstance(frame, Shutdown):
        return None
    raise ProtocolMismatch(f"A worker without a model does not take {type(frame).__name__}.")


def _load(link: Link, order: Load, warning: str | None) -> Service:
    from mlxm.device import loader, memory  # noqa: PLC0415  (as above)

    began_s = time.monotonic()
    loader.use_plain_kernels()
    folder = Path(order.path)
    loaded = loader.load(folder, _reporter(link))
    runner = _open_runner(loaded, folder, order)
    options = EngineOptions(vocab_size=loaded.vocab_size, context_length=loaded.config.context_length)
    grammars = Grammars(loaded.detokenizer.to_json, vocab_size=loaded.vocab_size, stop_ids=loaded.stop_ids)
    engine = Engine(runner, loaded.detokenizer, options, grammars=grammars)
    scope = scope_of(folder, runner.facts)
    orders = Orders(stop_ids=loaded.stop_ids, scope=scope, sampling=loaded.config.sampling)
    why = runner.facts.why if warning is None else f"{runner.facts.why}; {warning}"
    memory.shrink()  # what loading and trying stores has left behind
    if order.cache_bytes is not None:
        memory.limit_cache(order.cache_bytes)
    link.send(
        Loaded(
            architecture=loaded.config.architecture,
            vocab_size=loaded.vocab_size,
            context_length=loaded.config.context_length,
            active_bytes=loaded.active_bytes,
            load_s=time.monotonic() - began_s,
            kind=runner.facts.kind,
            why=why,
            num_blocks=runner.facts.num_blocks,
            block_bytes=runner.facts.block_bytes,
            kv_bytes=_kv_bytes(runner.facts, order),
        )
    )
    return Service(link, engine, orders, memory.with_memory, shrink=memory.shrink)


def _kv_bytes(facts: RunnerFacts, order: Load) -> int:
    """What keys and values will take at most: a pool of blocks is there already, other stores grow."""
    if facts.shares_prefixes:
        return facts.num_blocks * facts.block_bytes
    return 0 if order.kv_bytes is None else order.kv_bytes


def _open_runner(loaded: LoadedModel, folder: Path, order: Load) -> Runner:
    """The runner; a disk that takes no verdict costs the time of another trial next time, and nothing else."""
    from mlxm.device import choice, loader  # noqa: PLC0415  (as above)

    options = choice.RunnerOptions(max_rows=order.max_rows, memory_bytes=order.kv_bytes)
    with loader.explaining(folder):
        if order.verdicts is None:
            return choice.open_runner(loaded, options)
        kept = msgspec.structs.replace(options, folder=folder, verdicts=Path(order.verdicts))
        try:
            return choice.open_runner(loaded, kept)
        except OSError as error:
            print(f"{order.verdicts} keeps no verdict: {error}", file=sys.stderr, flush=True)  # noqa: T201  (as above)
            return choice.open_runner(loaded, options)


def _slow_blas(blas: Blas | None) -> str | None:
    """What is to be said about a BLAS that slows everything down, said in the log as well."""
    if blas is None or not blas.is_reference:
        return None
    from mlxm.device.kv_store import on_cpu  # noqa: PLC0415  (as above)

    if not on_cpu():
        return None
    print(f"{_SLOW_BLAS}.", file=sys.stderr, flush=True)  # noqa: T201  (the server logs what is said there)
    return _SLOW_BLAS


def _reporter(link: Link) -> Callable[[int, int], None]:
    def report(done_bytes: int, total_bytes: int) -> None:
        link.send(LoadProgress(done_bytes=done_bytes, total_bytes=total_bytes))

    return report
