from dataclasses import replace
from pathlib import Path

import pytest

from mlxm.cli.checks import (
    GIB,
    ConfigReading,
    DatabaseReading,
    FolderReading,
    Listener,
    MemoryReading,
    PortReading,
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
    show_path,
    show_size,
)
from mlxm.errors import ConfigInvalid, StoreError
from mlxm.pool.probe import BlasReport, DeviceReport

CONFIG = Path("/srv/mlxm/config.toml")
DATABASE = Path("/srv/mlxm/mlxm.db")


def _report(
    *,
    device: str = "cpu",
    device_name: str | None = None,
    wired_limit_bytes: int | None = None,
    blas: BlasReport | None = None,
    error: str | None = None,
) -> DeviceReport:
    return DeviceReport(
        mlx_version="0.32.4",
        device=device,
        device_name=device_name,
        memory_bytes=16 * GIB,
        wired_limit_bytes=wired_limit_bytes,
        blas=blas,
        error=error,
    )


def _folder(*, exists: bool = True, writable: bool = True, free_bytes: int = 100 * GIB) -> FolderReading:
    return FolderReading(
        path=Path("/srv/folder"), exists=exists, writable=writable, used_bytes=7 * GIB, free_bytes=free_bytes
    )


def test_device_is_named_with_the_version_of_mlx() -> None:
    """A person sees what computes."""
    check = check_device(_report())

    assert (check.status, check.detail, check.fix) == ("ok", "0.32.4 on cpu", None)


def test_device_with_a_name_of_its_own_is_named_so() -> None:
    """A chip is more than "gpu"."""
    assert check_device(_report(device="gpu", device_name="Apple M4 Max")).detail == "0.32.4 on gpu (Apple M4 Max)"


def test_broken_mlx_is_a_failure_with_its_own_words() -> None:
    """Nothing works without MLX."""
    check = check_device(DeviceReport(error="mlx does not start: no libmlx.so"))

    assert (check.status, check.detail) == ("fail", "mlx does not start: no libmlx.so")
    assert check.fix is not None


def test_fast_blas_is_fine_and_its_speed_is_told() -> None:
    """A measured speed says more than a name."""
    blas = BlasReport(name="openblas", path="/usr/lib/libopenblas.so.0", gflops=118.27, is_reference=False)
    check = check_blas(_report(blas=blas))

    assert (check.status, check.detail, check.fix) == ("ok", "openblas, 118 GFLOP/s", None)


def test_reference_blas_is_to_be_replaced() -> None:
    """The library that ships with MLX on Linux wastes most of the processor."""
    check = check_blas(_report(blas=BlasReport(name="reference", path=None, gflops=4.21, is_reference=True)))

    assert check.status == "warn"
    assert check.detail.startswith("reference, 4.21 GFLOP/s")
    assert check.fix is not None
    assert "apt install libopenblas0" in check.fix
    assert "worker.blas" in check.fix
    assert needs_fixing(check)


@pytest.mark.parametrize(("error", "detail"), [(None, "not used on this machine"), ("broken", "not measured")])
def test_no_blas_is_no_fault(error: str | None, detail: str) -> None:
    """Apple's chips need none, and a broken MLX is told elsewhere."""
    check = check_blas(_report(error=error))

    assert (check.status, check.detail) == ("ok", detail)


def test_memory_is_told_as_available_of_total() -> None:
    """The first question is what fits."""
    check = check_memory(MemoryReading(total_bytes=16 * GIB, available_bytes=12 * GIB), None)

    assert (check.status, check.detail) == ("ok", "12.0 GiB of 16.0 GiB available")


def test_wired_limit_is_told_where_there_is_one() -> None:
    """On a Mac the GPU gets a share only."""
    check = check_memory(MemoryReading(total_bytes=16 * GIB, available_bytes=12 * GIB), 11 * GIB)

    assert check.detail == "12.0 GiB of 16.0 GiB available, 11.0 GiB may be wired for the GPU"


def test_too_little_memory_is_to_be_fixed() -> None:
    """Not even a small model loads then."""
    check = check_memory(MemoryReading(total_bytes=16 * GIB, available_bytes=GIB - 1), None)

    assert check.status == "warn"
    assert needs_fixing(check)


@pytest.mark.parametrize(
    ("exists", "detail"),
    [(True, "7.0 GiB in /srv/folder, 100.0 GiB free"), (False, "nothing yet in /srv/folder, 100.0 GiB free")],
)
def test_hub_cache_is_told_with_its_size_and_the_room(detail: str, *, exists: bool) -> None:
    """A cache that will be made on the first download is fine."""
    check = check_hub_cache(_folder(exists=exists))

    assert (check.status, check.detail, check.fix) == ("ok", detail, None)


def test_hub_cache_that_cannot_be_written_is_a_failure() -> None:
    """No model can be downloaded."""
    check = check_hub_cache(_folder(writable=False))

    assert (check.status, check.detail) == ("fail", "cannot write to /srv/folder")
    assert check.fix is not None
    assert "HF_HUB_CACHE" in check.fix


def test_hub_cache_on_a_nearly_full_disk_is_to_be_fixed() -> None:
    """The next download would break off."""
    check = check_hub_cache(_folder(free_bytes=5 * GIB - 1))

    assert check.status == "warn"
    assert needs_fixing(check)


@pytest.mark.parametrize(
    ("source", "detail"), [("HF_TOKEN", "found in HF_TOKEN"), (None, "none; gated models need one")]
)
def test_hub_token_is_told_by_its_place_and_never_missed(source: str | None, detail: str) -> None:
    """Most models need no token."""
    check = check_hub_token(source)

    assert check.status == "ok"
    assert check.detail.startswith(detail)
    assert not needs_fixing(check)


@pytest.mark.parametrize(
    ("listener", "refusal", "status", "detail"),
    [
        (None, None, "ok", "127.0.0.1:6596 is free"),
        (Listener(name="python3", pid=7, is_ours=True), None, "ok", "127.0.0.1:6596 is served by mlxm (pid 7)"),
        (Listener(name="nginx", pid=8, is_ours=False), None, "fail", "127.0.0.1:6596 is used by nginx (pid 8)"),
        (Listener(name=None, pid=None, is_ours=False), None, "fail", "127.0.0.1:6596 is used by another program"),
        (None, "Permission denied", "fail", "cannot listen on 127.0.0.1:6596: Permission denied"),
    ],
)
def test_port_is_free_or_ours_or_in_the_way(
    listener: Listener | None, refusal: str | None, status: str, detail: str
) -> None:
    """Only a port that our server cannot have needs fixing."""
    check = check_port(PortReading(host="127.0.0.1", port=6596, listener=listener, refusal=refusal))

    assert (check.status, check.detail) == (status, detail)
    assert (check.fix is not None) is (status == "fail")


@pytest.mark.parametrize(
    ("exists", "detail"), [(True, "/srv/folder, 100.0 GiB free"), (False, "/srv/folder will be made, 100.0 GiB free")]
)
def test_home_is_told_with_the_room(detail: str, *, exists: bool) -> None:
    """A home that will be made is fine."""
    check = check_home(_folder(exists=exists))

    assert (check.status, check.detail, check.fix) == ("ok", detail, None)


def test_home_that_cannot_be_written_is_a_failure() -> None:
    """The server would not start."""
    check = check_home(_folder(writable=False))

    assert check.status == "fail"
    assert check.fix is not None
    assert "MLXM_HOME" in check.fix


def test_home_that_others_can_write_is_a_warning() -> None:
    """What lies there is trusted, so that nobody else may put anything there."""
    check = check_home(replace(_folder(), others_may_write=True))

    assert check.status == "warn"
    assert check.fix == f"chmod go-w {_folder().path}"


def test_home_on_a_nearly_full_disk_is_to_be_fixed() -> None:
    """The database must be able to grow."""
    assert check_home(_folder(free_bytes=GIB - 1)).status == "warn"


@pytest.mark.parametrize(
    ("reading", "status", "detail", "fix"),
    [
        (DatabaseReading(path=DATABASE, exists=False), "ok", "not made yet", None),
        (DatabaseReading(path=DATABASE, exists=True), "ok", "sound and up to date", None),
        (
            DatabaseReading(path=DATABASE, exists=True, num_pending=1),
            "ok",
            "sound; the next server brings it up to date (1 step)",
            None,
        ),
        (
            DatabaseReading(path=DATABASE, exists=True, num_pending=2),
            "ok",
            "sound; the next server brings it up to date (2 steps)",
            None,
        ),
        (
            DatabaseReading(path=DATABASE, exists=True, damage="row 3 missing"),
            "fail",
            "/srv/mlxm/mlxm.db is damaged: row 3 missing",
            "restore a backup, or move /srv/mlxm/mlxm.db away to start with an empty one",
        ),
        (
            DatabaseReading(path=DATABASE, exists=True, unknown=("m900_later",)),
            "fail",
            "written by a newer mlxm (m900_later)",
            "update mlxm",
        ),
        (
            DatabaseReading(path=DATABASE, exists=True, error=StoreError("It is locked.", hint="Wait.")),
            "fail",
            "It is locked.",
            "Wait.",
        ),
        (
            DatabaseReading(path=DATABASE, exists=True, error=StoreError("It is not readable.")),
            "fail",
            "It is not readable.",
            "restore a backup, or move /srv/mlxm/mlxm.db away to start with an empty one",
        ),
    ],
)
def test_database_is_sound_or_says_what_to_do(
    reading: DatabaseReading, status: str, detail: str, fix: str | None
) -> None:
    """A database that is missing or older is no fault; one that cannot be used is."""
    check = check_database(reading)

    assert (check.status, check.detail, check.fix) == (status, detail, fix)


@pytest.mark.parametrize(
    ("reading", "status", "detail", "fix"),
    [
        (ConfigReading(path=CONFIG, exists=True), "ok", "/srv/mlxm/config.toml is valid", None),
        (ConfigReading(path=CONFIG, exists=False), "ok", "defaults; no /srv/mlxm/config.toml yet", None),
        (
            ConfigReading(path=CONFIG, exists=True, error=ConfigInvalid("Line 3.", hint="Correct it.")),
            "fail",
            "Line 3.",
            "Correct it.",
        ),
        (
            ConfigReading(path=CONFIG, exists=True, error=ConfigInvalid("Line 3.")),
            "fail",
            "Line 3.",
            "mlxm config edit",
        ),
    ],
)
def test_config_is_valid_or_says_what_to_do(reading: ConfigReading, status: str, detail: str, fix: str | None) -> None:
    """What the settings complain about is what doctor shows."""
    check = check_config(reading)

    assert (check.status, check.detail, check.fix) == (status, detail, fix)


def test_packages_are_told_with_their_versions() -> None:
    """A report of a fault needs them."""
    check = check_versions({"mlx": "0.32.4", "granian": "2.8.7"})

    assert (check.status, check.detail) == ("ok", "mlx 0.32.4, granian 2.8.7")


def test_missing_package_is_a_failure() -> None:
    """An installation can be broken."""
    check = check_versions({"mlx": None, "granian": "2.8.7"})

    assert (check.status, check.detail, check.fix) == ("fail", "missing: mlx", "pip install mlx")
    assert needs_fixing(check)


@pytest.mark.parametrize(
    ("size_bytes", "shown"), [(0, "0 MiB"), (GIB - 1024**2, "1023 MiB"), (GIB, "1.0 GiB"), (int(2.34 * GIB), "2.3 GiB")]
)
def test_sizes_are_shown_as_people_say_them(size_bytes: int, shown: str) -> None:
    """One digit is enough to decide by."""
    assert show_size(size_bytes) == shown


def test_paths_in_the_home_are_shown_with_a_tilde(user_home: Path) -> None:
    """Lines stay short, and no user's name stands in a report."""
    assert show_path(user_home / ".mlxm" / "mlxm.db") == "~/.mlxm/mlxm.db"
    assert show_path(Path("/srv/mlxm")) == "/srv/mlxm"
