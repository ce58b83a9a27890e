"""Whether it is this worker's turn to compute long prompts in large chunks: one worker of a machine at a time does.

Without the turn a prompt goes on in small chunks, so that nothing ever waits for a worker that is slow or gone.
"""

from __future__ import annotations

from mlxm.engine.engine import Engine
from mlxm.frames import PrefillAsked, PrefillGivenBack
from mlxm.worker.link import Link

TURNLESS_TOKENS = 64
"""Prompt tokens of a step while it is another worker's turn."""


class Turn:
    """One worker's side of it: asks when there is a long prompt, and gives back after the step when others ask."""

    def __init__(self, link: Link, engine: Engine) -> None:
        self._link = link
        self._engine = engine
        self._has_it = False
        self._has_asked = False
        self._is_wanted_back = False
        engine.limit_prompts(TURNLESS_TOKENS)

    def passes(self, *, has_it: bool) -> None:
        """It is this worker's turn, or is to be another one's."""
        if has_it:
            self._has_it, self._has_asked = True, False
            self._engine.limit_prompts(None)
        else:
            self._is_wanted_back = True

    def before_step(self) -> None:
        """Ask for the turn where it is needed."""
        if not self._has_it and not self._has_asked and self._engine.has_prompt_over(TURNLESS_TOKENS):
            self._has_asked = True
            self._link.send(PrefillAsked())

    def after_step(self) -> None:
        """Give the turn back where it is wanted: whoever has it computes one large chunk at least."""
        if self._is_wanted_back:
            self._is_wanted_back = self._has_it = False
            self._engine.limit_prompts(TURNLESS_TOKENS)
            self._link.send(PrefillGivenBack())
