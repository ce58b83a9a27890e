"""What people can set: the only reader of config.toml and of the environment.

`load_settings` is called once at the top; what lies below gets a group of it, or single values.
"""

from mlxm.settings.groups import CONFIG_NAME, LogSettings, PrepSettings, ServerSettings, Settings, WorkerSettings
from mlxm.settings.kinds import ByteSize, format_bytes, parse_bytes
from mlxm.settings.layers import PRECEDENCE, home_folder, load_settings, read_config, refuse_problems
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
    "read_config",
    "refuse_problems",
]
