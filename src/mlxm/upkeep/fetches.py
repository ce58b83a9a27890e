"""Whether a process is bringing a model here at this moment, this one or any other."""

from __future__ import annotations

from pathlib import Path

from mlxm.catalog.local import LocalModel
from mlxm.catalog.names import hub_folder, parse_name
from mlxm.downloads.lock import is_free


def is_being_fetched(model: LocalModel, hub_cache: Path) -> bool:
    """Whether what an incomplete model lacks is on its way."""
    if model.source != "hub" or model.state != "incomplete":
        return False
    return is_fetched_now(hub_folder(parse_name(model.id), hub_cache), hub_cache)


def is_fetched_now(folder: Path, hub_cache: Path) -> bool:
    """Whether something is being fetched into a model's folder in the Hub's cache."""
    return not is_free(hub_cache / ".locks" / folder.name / "mlxm.lock")
