"""Completions that begin with their prompt: it goes before each answer, with its logprobs if those are wanted.

An answer of no tokens is asked for as one of a single token that is not shown: its prompt is what is wanted.
"""

from __future__ import annotations

import msgspec

from mlxm.frames import Generate
from mlxm.types import ChoiceEnded, CompletionRequest, Ended, Event, Started, TextDelta, TokenLogprobs


class Prompt(msgspec.Struct, frozen=True, kw_only=True):
    """A prompt as token ids and as text."""

    ids: tuple[int, ...]
    text: str


class Echo:
    """What becomes of the events of one request."""

    def __init__(self, request: CompletionRequest, prompt: Prompt) -> None:
        self._echoes = request.echoes
        self._prompt = prompt
        self._shows_answer = request.max_tokens != 0
        self._scores_prompt = request.echoes and request.num_logprobs is not None
        self._logprobs: list[TokenLogprobs] = []
        self._held: list[TextDelta | ChoiceEnded] = []
        self._begun: set[int] = set()

    def order(self, order: Generate) -> Generate:
        """What to ask of the model."""
        max_tokens = order.max_tokens if self._shows_answer else 1
        return msgspec.structs.replace(order, max_tokens=max_tokens, prompt_logprobs=self._scores_prompt)

    def see(self, event: Event) -> list[Event]:
        """What to tell for an event; answers wait until all of the prompt is scored."""
        match event:
            case Started():
                return [event]
            case Ended(usage=usage):
                shown = usage if self._shows_answer else msgspec.structs.replace(usage, completion_tokens=0)
                return [Ended(usage=shown)]
            case TextDelta(text="", token_ids=(), logprobs=logprobs) if logprobs:
                self._logprobs += logprobs
            case TextDelta() | ChoiceEnded():
                self._held.append(event)
        return [] if self._waits() else self._release()

    def _waits(self) -> bool:
        return self._scores_prompt and len(self._logprobs) < len(self._prompt.ids)

    def _release(self) -> list[Event]:
        held, self._held = self._held, []
        return [told for event in held for told in self._told(event)]

    def _told(self, event: TextDelta | ChoiceEnded) -> list[Event]:
        told: list[Event] = []
        if self._echoes and event.choice not in self._begun:
            self._begun.add(event.choice)
            told.append(TextDelta(choice=event.choice, text=self._prompt.text, logprobs=tuple(self._logprobs)))
        if self._shows_answer:
            told.append(event)
        elif isinstance(event, ChoiceEnded):
            told.append(ChoiceEnded(choice=event.choice, reason="length"))
        return told
