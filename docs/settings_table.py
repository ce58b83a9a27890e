"""The table of settings in configuration.md, from the models themselves; cog puts it there."""

from __future__ import annotations

import json

from mlxm.settings import SETTINGS, Setting


def settings_table() -> str:
    """Every setting as a row of a Markdown table."""
    lines = ["| Setting | Default | Allowed | Environment | Meaning |", "|---|---|---|---|---|"]
    return "\n".join([*lines, *map(_row, SETTINGS.values())])


def _row(setting: Setting) -> str:
    default = json.dumps(setting.default)
    cells = [f"`{setting.name}`", f"`{default}`", setting.allowed, f"`{setting.env_name}`", setting.meaning]
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
