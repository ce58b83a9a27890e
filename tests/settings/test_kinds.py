from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from mlxm.frames import MAX_FRAME_BYTES
from mlxm.settings import ByteSize, format_bytes, parse_bytes
from mlxm.settings.kinds import BodySize, Library

SIZES: TypeAdapter[int] = TypeAdapter(ByteSize)
LIBRARIES: TypeAdapter[str] = TypeAdapter(Library)


@pytest.mark.parametrize(
    ("num_bytes", "written"),
    [
        (512_000_000, "512MB"),
        (48_000_000_000, "48GB"),
        (10 * 1024**2, "10MiB"),
        (10 * 1024**2, " 10 mib "),
        (1_500_000_000, "1.5GB"),
        (1536, "1.5KiB"),
        (3, "3B"),
        (7_000_000, "7000000"),
        (2_000_000_000_000, "2TB"),
        (4096, 4096),
    ],
)
def test_a_size_is_read_as_people_write_it(num_bytes: int, written: object) -> None:
    """Decimal and binary units, in any case, with or without a space, and plain numbers."""
    assert num_bytes == parse_bytes(written)


@pytest.mark.parametrize(
    "written", ["", "MB", "-1MB", "0.3B", "1.5", "48G", "1e3", "5 parsecs", "1,5GB", "٣MB", True, 1.5, None]
)
def test_what_is_no_size_is_refused(written: object) -> None:
    """Half bytes, unknown units and other types are no sizes."""
    with pytest.raises(ValueError, match="not a"):
        parse_bytes(written)


@pytest.mark.parametrize(
    ("written", "num_bytes"),
    [
        ("0B", 0),
        ("1B", 1),
        ("1KB", 1000),
        ("1KiB", 1024),
        ("512MB", 512_000_000),
        ("10MiB", 10 * 1024**2),
        ("1500MB", 15 * 10**8),
    ],
)
def test_a_size_is_written_in_the_unit_that_fits(written: str, num_bytes: int) -> None:
    """The shortest exact form, so that what is shown can be typed again."""
    assert written == format_bytes(num_bytes)


@given(st.integers(min_value=0, max_value=2**63))
def test_a_written_size_reads_back_as_the_same(num_bytes: int) -> None:
    """Nothing is rounded on the way to config.toml and back."""
    assert num_bytes == parse_bytes(format_bytes(num_bytes))


def test_a_size_setting_is_a_number_inside_and_text_outside() -> None:
    """Code computes with bytes; JSON and config.toml show units."""
    assert SIZES.validate_python("1KiB") == 1024
    assert SIZES.dump_python(1024) == 1024
    assert SIZES.dump_python(1024, mode="json") == "1KiB"
    with pytest.raises(ValidationError):
        SIZES.validate_python(0)


def test_a_library_is_named_by_a_word_or_an_absolute_path() -> None:
    """A relative path would mean another file in every folder."""
    assert LIBRARIES.validate_python("auto") == "auto"
    assert LIBRARIES.validate_python("none") == "none"
    assert LIBRARIES.validate_python("/opt/blas.so") == "/opt/blas.so"
    assert LIBRARIES.validate_python("~/blas.so") == str(Path.home() / "blas.so")
    for refused in ("blas.so", "", "AUTO"):
        with pytest.raises(ValidationError):
            LIBRARIES.validate_python(refused)


def test_a_body_fits_into_a_frame() -> None:
    """With as much room again for what is added on the way."""
    sizes: TypeAdapter[int] = TypeAdapter(BodySize)
    assert sizes.validate_python("32MiB") * 2 <= MAX_FRAME_BYTES
    for size in ("33MiB", 0):
        with pytest.raises(ValidationError):
            sizes.validate_python(size)
