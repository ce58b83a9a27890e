"""What mlx has to compute with on this machine, measured where it matters; `mlxm.pool.probe` reads it."""

from __future__ import annotations

import importlib.metadata
import time

import psutil

from mlxm.device.blas import Blas, open_blas
from mlxm.errors import MlxmError

MEASURE_S = 0.2
_SIZE = 512

Report = dict[str, object]


def probe(blas_choice: str, *, num_threads: int | None) -> Report:
    """Import mlx, ask it and measure it; a failure becomes the report's `error`."""
    try:
        return _look(open_blas(blas_choice, num_threads=num_threads))
    except MlxmError as error:
        return {"error": error.message}
    except (ImportError, OSError, RuntimeError) as error:
        return {"error": f"mlx does not start: {error}"}


def _look(blas: Blas | None) -> Report:
    import mlx.core as mx  # noqa: PLC0415  (only once the BLAS is in its place)

    info = mx.device_info()
    return {
        "mlx_version": importlib.metadata.version("mlx"),
        "device": "gpu" if mx.default_device().type == mx.gpu else "cpu",
        "device_name": info.get("device_name"),
        "memory_bytes": info.get("memory_size", psutil.virtual_memory().total),
        "wired_limit_bytes": info.get("max_recommended_working_set_size"),
        "blas": None if blas is None else _measured(blas),
        "error": None,
    }


def _measured(blas: Blas) -> Report:
    return {"name": blas.name, "path": blas.path, "gflops": _measure(), "is_reference": blas.is_reference}


def _measure() -> float:
    """Billions of float32 operations per second in square products on the CPU."""
    import mlx.core as mx  # noqa: PLC0415  (as above)

    matrix = mx.random.normal((_SIZE, _SIZE), stream=mx.cpu)
    mx.eval(mx.matmul(matrix, matrix, stream=mx.cpu))  # the first one also starts the library's threads
    num_products = 0
    start = time.perf_counter()
    while (elapsed_s := time.perf_counter() - start) < MEASURE_S:
        mx.eval(mx.matmul(matrix, matrix, stream=mx.cpu))
        num_products += 1
    return round(2 * _SIZE**3 * num_products / elapsed_s / 1e9, 1)
