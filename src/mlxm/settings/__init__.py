"""What people can set: the only reader of config.toml and of the environment.

`load_settings` is called once at the top; what lies below gets a group of it, or single values. A name loads with its
module when it is first asked for: commands that only look where models are need not wait for what checks settings.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from mlxm.settings.groups import CONFIG_NAME, LogSettings, PrepSettings, ServerSettings, Settings, WorkerSettings
    from mlxm.settings.home import home_folder
    from mlxm.settings.kinds import ByteSize
    from mlxm.settings.layers import PRECEDENCE, load_settings, read_config, refuse_problems
    from mlxm.settings.sizes import format_bytes, parse_bytes, parse_share
    from mlxm.settings.table import SETTINGS, Setting, SettingValue, explain_settings, find_setting

__all__ = [
    "CONFIG_NAME",
    "PRECEDENCE",
    "SETTINGS",
    "ByteSize",
    "LogSettings",
    "PrepSettings",
    "ServerSettings",
    "Setting",
    "SettingValue",
    "Settings",
    "WorkerSettings",
    "explain_settings",
    "find_setting",
    "format_bytes",
    "home_folder",
    "load_settings",
    "parse_bytes",
    "parse_share",
    "read_config",
    "refuse_problems",
]

_PLACES: Final = {
    "CONFIG_NAME": "mlxm.settings.groups",
    "PRECEDENCE": "mlxm.settings.layers",
    "SETTINGS": "mlxm.settings.table",
    "ByteSize": "mlxm.settings.kinds",
    "LogSettings": "mlxm.settings.groups",
    "PrepSettings": "mlxm.settings.groups",
    "ServerSettings": "mlxm.settings.groups",
    "Setting": "mlxm.settings.table",
    "SettingValue": "mlxm.settings.table",
    "Settings": "mlxm.settings.groups",
    "WorkerSettings": "mlxm.settings.groups",
    "explain_settings": "mlxm.settings.table",
    "find_setting": "mlxm.settings.table",
    "format_bytes": "mlxm.settings.sizes",
    "home_folder": "mlxm.settings.home",
    "load_settings": "mlxm.settings.layers",
    "parse_bytes": "mlxm.settings.sizes",
    "parse_share": "mlxm.settings.sizes",
    "read_config": "mlxm.settings.layers",
    "refuse_problems": "mlxm.settings.layers",
}


def __getattr__(name: str) -> object:
    """Import a public name when it is first asked for."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PLACES[name]), name)
