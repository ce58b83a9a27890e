"""Fetches models from the Hub into its cache: one job however many ask, in a process that can be ended.

Nothing counts as downloaded before every file has the size and the hash that the Hub says it has.
"""

from __future__ import annotations

from mlxm.downloads.downloads import DownloadOptions, Downloads, Plan, PlannedFile
from mlxm.downloads.job import Job, Progress, State

__all__ = ["DownloadOptions", "Downloads", "Job", "Plan", "PlannedFile", "Progress", "State"]
