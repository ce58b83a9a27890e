"""Fetches models from the Hub into its cache: one job however many ask, in a process that can be ended.

Nothing counts as downloaded before every file has the size and the hash that the Hub says it has. Names are imported
when they are first asked for: whoever only looks whether a lock is free does not load an HTTP client.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from mlxm.downloads.downloads import DownloadOptions, Downloads, Plan, PlannedFile
    from mlxm.downloads.job import Job, Progress, State

__all__ = ["DownloadOptions", "Downloads", "Job", "Plan", "PlannedFile", "Progress", "State"]

_PLACES: Final = {
    "DownloadOptions": "mlxm.downloads.downloads",
    "Downloads": "mlxm.downloads.downloads",
    "Job": "mlxm.downloads.job",
    "Plan": "mlxm.downloads.downloads",
    "PlannedFile": "mlxm.downloads.downloads",
    "Progress": "mlxm.downloads.job",
    "State": "mlxm.downloads.job",
}


def __getattr__(name: str) -> object:
    """Import a public name when it is first asked for."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PLACES[name]), name)
