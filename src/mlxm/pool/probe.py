"""What mlx finds on this machine, asked in a process of its own: this one never imports mlx."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile

import msgspec


class BlasReport(msgspec.Struct, frozen=True, kw_only=True):
    """The BLAS that mlx computes with on the CPU, and its measured speed in float32."""

    name: str
    path: str | None
    gflops: float
    is_reference: bool


class DeviceReport(msgspec.Struct, frozen=True, kw_only=True):
    """What mlx computes with; `error` says why nothing is known."""

    mlx_version: str | None = None
    device: str | None = None
    device_name: str | None = None
    memory_bytes: int | None = None
    wired_limit_bytes: int | None = None
    blas: BlasReport | None = None
    error: str | None = None


def probe_device(timeout_s: float = 60.0, *, blas: str = "auto") -> DeviceReport:
    """Ask mlx, with the BLAS that the workers would take; never raises."""
    command = [sys.executable, "-P", "-m", "mlxm.worker", "--probe", "--blas", blas]
    try:
        with tempfile.TemporaryDirectory() as scratch:  # mlx loads code from there, so nobody else may write to it
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=timeout_s,
                check=False,
                env=os.environ | {"TMPDIR": scratch},
            )
    except subprocess.TimeoutExpired:
        return DeviceReport(error=f"mlx gave no answer within {timeout_s:g} s")
    except OSError as error:
        return DeviceReport(error=f"Python could not be started: {error.strerror}")
    try:
        return msgspec.json.decode(done.stdout, type=DeviceReport)
    except msgspec.DecodeError:
        words = done.stderr.decode(errors="replace").strip().splitlines()
        return DeviceReport(error=words[-1] if words else f"the probe ended with exit code {done.returncode}")
