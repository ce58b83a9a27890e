"""Where everything is that mlxm keeps; apart from the settings, which take far longer to load than to look there."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from mlxm.errors import ConfigInvalid

HOME_VARIABLE = "MLXM_HOME"


def home_folder(environ: Mapping[str, str] | None = None) -> Path:
    """The folder that MLXM_HOME names, or ~/.mlxm."""
    environ = os.environ if environ is None else environ
    named = environ.get(HOME_VARIABLE, "~/.mlxm")
    if not named:
        raise ConfigInvalid(f"{HOME_VARIABLE} is empty.", hint=f"Unset {HOME_VARIABLE}, or let it name a folder.")
    return Path(os.path.expanduser(named)).absolute()  # noqa: PTH111  # Path's own raises for a user it does not know
