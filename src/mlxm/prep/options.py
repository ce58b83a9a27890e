"""What goes into a prompt besides the conversation; in a file of its own, because the server loads no templates."""

from __future__ import annotations

from typing import Final

import msgspec

from mlxm.types import Thinking, Tool


class RenderOptions(msgspec.Struct, frozen=True, kw_only=True):
    """As in a ChatRequest."""

    tools: tuple[Tool, ...] = ()
    thinking: Thinking = Thinking()
    template_options: str = "{}"
    continues_final: bool = False


PLAIN: Final = RenderOptions()
"""Nothing but the conversation."""
