"""How short of memory the whole machine is, whoever takes it: asked again and again, so that it never has to swap."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from typing import Final

import msgspec
import psutil

from mlxm.pool.status import Level

_WARNING_PARTS: Final = 20
_CRITICAL_PARTS: Final = 40
"""A twentieth and a fortieth of the machine's memory left."""
_MACOS_LEVELS: Final[dict[int, Level]] = {1: "normal", 2: "warning", 4: "critical"}
_MACOS_NAME: Final = b"kern.memorystatus_vm_pressure_level"


class Pressure(msgspec.Struct, frozen=True, kw_only=True):
    """How it stands, and what programs could still have."""

    level: Level
    available_bytes: int
    total_bytes: int


Probe = Callable[[], Pressure]


def probe_memory() -> Pressure:
    """What the system says now; macOS judges for itself."""
    memory = psutil.virtual_memory()
    own = macos_level() if sys.platform == "darwin" else None
    level = level_of(memory.available, memory.total) if own is None else own
    return Pressure(level=level, available_bytes=memory.available, total_bytes=memory.total)


def level_of(available_bytes: int, total_bytes: int) -> Level:
    """How short a machine is by what is available."""
    if available_bytes * _CRITICAL_PARTS < total_bytes:
        return "critical"
    return "warning" if available_bytes * _WARNING_PARTS < total_bytes else "normal"


def macos_level() -> Level | None:
    """The kernel's own verdict; None where there is none."""
    try:
        ask = ctypes.CDLL(None).sysctlbyname
    except AttributeError:  # this is no macOS
        return None
    value, size = ctypes.c_int(0), ctypes.c_size_t(ctypes.sizeof(ctypes.c_int))
    if ask(_MACOS_NAME, ctypes.byref(value), ctypes.byref(size), None, ctypes.c_size_t(0)) != 0:
        return None
    return _MACOS_LEVELS.get(value.value)
