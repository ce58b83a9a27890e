"""From a worker that has said hello to a model that answers: BLAS, then mlx, then the weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from mlxm.device.blas import open_blas
from mlxm.errors import MlxmError, ProtocolMismatch
from mlxm.frames import Fault, Generate, Load, Loaded, LoadFailed, LoadProgress, Shutdown
from mlxm.worker.link import Link
from mlxm.worker.service import Service, Tokens

if TYPE_CHECKING:
    from mlxm.device.loader import LoadedModel


def bring_up(link: Link, *, blas: str, blas_threads: int | None) -> Service | None:
    """Import mlx, wait for the order to load and carry it out; None when there is nothing to serve."""
    try:
        open_blas(blas, num_threads=blas_threads)
        from mlxm.device import loader, plain  # noqa: PLC0415  (mlx comes after its BLAS)

        loader.use_plain_kernels()
        folder = _ordered_folder(link)
        if folder is None:
            return None
        loaded = loader.load(folder, _reporter(link))
    except MlxmError as error:
        link.send(LoadFailed(fault=Fault.of(error)))
        return None
    link.send(_report(loaded))

    def steps(request: Generate) -> Tokens:
        return plain.generate(loaded, request.prompt_ids, request.sampling, max_tokens=request.max_tokens)

    return Service(link, loaded, steps)


def _ordered_folder(link: Link) -> Path | None:
    frame = link.receive()
    if isinstance(frame, Load):
        return Path(frame.path)
    if isinstance(frame, Shutdown):
        return None
    raise ProtocolMismatch(f"A worker without a model does not take {type(frame).__name__}.")


def _reporter(link: Link) -> Callable[[int, int], None]:
    def report(done_bytes: int, total_bytes: int) -> None:
        link.send(LoadProgress(done_bytes=done_bytes, total_bytes=total_bytes))

    return report


def _report(loaded: LoadedModel) -> Loaded:
    return Loaded(
        architecture=loaded.config.architecture,
        vocab_size=loaded.vocab_size,
        context_length=loaded.config.context_length,
        active_bytes=loaded.active_bytes,
        load_s=loaded.load_s,
    )
