import sys
from pathlib import Path

import pytest

from mlxm.pool.probe import DeviceReport, probe_device


def test_the_device_is_reported() -> None:
    """All that doctor shows, and no error."""
    report = probe_device()
    assert report.error is None
    assert report.mlx_version is not None
    assert report.device in {"cpu", "gpu"}
    assert report.memory_bytes is not None
    if sys.platform == "linux":
        assert report.blas is not None
        assert report.blas.gflops > 0


def test_the_blas_of_the_settings_is_the_one_that_is_measured() -> None:
    """A bad one is found before a model is loaded with it."""
    if sys.platform == "linux":
        assert probe_device(blas="/no/such.so") == DeviceReport(error="The BLAS /no/such.so cannot be loaded.")


def test_a_slow_probe_is_given_up() -> None:
    """Whoever asks waits no longer than they said."""
    assert probe_device(0.001) == DeviceReport(error="mlx gave no answer within 0.001 s")


def test_a_python_that_cannot_be_started_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """As an error, like everything else."""
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    assert probe_device() == DeviceReport(error="Python could not be started: No such file or directory")


@pytest.mark.parametrize(
    ("script", "error"), [("echo it broke >&2; exit 5", "it broke"), ("exit 5", "the probe ended with exit code 5")]
)
def test_a_probe_that_breaks_is_reported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str, error: str
) -> None:
    """By its last words, or else by how it ended."""
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    assert probe_device() == DeviceReport(error=error)
