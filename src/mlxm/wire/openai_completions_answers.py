"""OpenAI's completions: the neutral events of the answers as one whole completion, or as the chunks of a stream.

The answers to prompt number p of several are the choices from p times their number on.
"""

from __future__ import annotations

import codecs
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

import msgspec
from msgspec import UNSET, Struct, UnsetType

from mlxm.types import ChoiceEnded, Ended, Event, FinishReason, TextDelta, TokenLogprobs, Usage
from mlxm.wire import sse
from mlxm.wire.openai_usage import CompletionUsage, Heading, finite, shown_token

KIND = "cmpl"


class CompletionLogprobs(Struct, frozen=True, kw_only=True):
    """How likely the tokens were, in lists of the same length; the first token of a prompt has no logprob."""

    tokens: tuple[str, ...]
    token_logprobs: tuple[float | None, ...]
    top_logprobs: tuple[dict[str, float] | None, ...]
    text_offset: tuple[int, ...]


class _Offsets:
    """Where in the text each token of a choice begins, also when it begins in the middle of a character."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._num_characters = 0

    def logprobs(self, tokens: Iterable[TokenLogprobs]) -> CompletionLogprobs:
        """The next tokens in this dialect's words."""
        tokens = tuple(tokens)
        return CompletionLogprobs(
            tokens=tuple(shown_token(token.raw) for token in tokens),
            token_logprobs=tuple(None if token.logprob is None else finite(token.logprob) for token in tokens),
            top_logprobs=tuple(map(_top, tokens)),
            text_offset=tuple(self._place(token.raw) for token in tokens),
        )

    def _place(self, raw: bytes) -> int:
        before = self._num_characters
        self._num_characters += len(self._decoder.decode(raw))
        return before


def _top(token: TokenLogprobs) -> dict[str, float] | None:
    """The likeliest tokens, and in any case the one that stands there."""
    if token.logprob is None:
        return None
    likely = {shown_token(each.raw): finite(each.logprob) for each in token.top}
    return {**likely, shown_token(token.raw): finite(token.logprob)}


class CompletionChoice(Struct, frozen=True, kw_only=True):
    """An answer, or a piece of it."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: FinishReason | None = None


class Completion(Struct, frozen=True, kw_only=True):
    """The whole answer, or one event of its stream; `usage` is left out of events when nobody asked for it."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: tuple[CompletionChoice, ...]
    usage: CompletionUsage | UnsetType | None = UNSET


class Wanted(Struct, frozen=True, kw_only=True):
    """What of the answers is to be shown: of `num_tried` answers to each prompt, the best `num_choices`."""

    num_tried: int = 1
    num_choices: int = 1
    has_logprobs: bool = False


@dataclass
class _Gathered:
    """What one choice has said so far."""

    texts: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    reason: FinishReason = "stop"

    @property
    def likelihood(self) -> float:
        """The mean logprob of its tokens."""
        known = [token.logprob for token in self.logprobs if token.logprob is not None]
        return sum(known) / len(known) if known else 0.0


def completion(heading: Heading, events: Iterable[Event], wanted: Wanted) -> bytes:
    """The whole answer out of all events of a request."""
    gathered: dict[int, _Gathered] = defaultdict(_Gathered)
    usage = Usage()
    for event in events:
        match event:
            case TextDelta(choice=choice, text=text, logprobs=logprobs):
                gathered[choice].texts.append(text)
                gathered[choice].logprobs += logprobs
            case ChoiceEnded(choice=choice, reason=reason):
                gathered[choice].reason = reason
            case Ended():
                usage = event.usage
    answer = Completion(
        id=heading.id,
        created=heading.created,
        model=heading.model,
        choices=tuple(
            _choice(index, each, has_logprobs=wanted.has_logprobs) for index, each in enumerate(_best(gathered, wanted))
        ),
        usage=CompletionUsage.of(usage),
    )
    return msgspec.json.encode(answer)


def _best(gathered: dict[int, _Gathered], wanted: Wanted) -> list[_Gathered]:
    """The answers that are shown, prompt by prompt; of those tried, the likeliest ones first."""
    in_order = [gathered[index] for index in sorted(gathered)]
    if wanted.num_tried == wanted.num_choices:
        return in_order
    prompts = [in_order[at : at + wanted.num_tried] for at in range(0, len(in_order), wanted.num_tried)]
    return [
        each
        for tried in prompts
        for each in sorted(tried, key=lambda each: each.likelihood, reverse=True)[: wanted.num_choices]
    ]


def _choice(index: int, gathered: _Gathered, *, has_logprobs: bool) -> CompletionChoice:
    return CompletionChoice(
        index=index,
        text="".join(gathered.texts),
        logprobs=_Offsets().logprobs(gathered.logprobs) if has_logprobs else None,
        finish_reason=gathered.reason,
    )


class ChunkWriter:
    """Turns the events of one request into the bytes of its stream."""

    def __init__(self, heading: Heading, *, include_usage: bool) -> None:
        self._heading = heading
        self._include_usage = include_usage
        self._offsets: dict[int, _Offsets] = defaultdict(_Offsets)
        self._encode = msgspec.json.Encoder().encode

    def write(self, event: Event) -> bytes:
        """The bytes for one event; none where this dialect says nothing."""
        match event:
            case TextDelta(choice=index, text=text, logprobs=logprobs) if text or logprobs:
                told = self._offsets[index].logprobs(logprobs) if logprobs else None
                return self._chunk((CompletionChoice(index=index, text=text, logprobs=told),), None)
            case ChoiceEnded(choice=index, reason=reason):
                return self._chunk((CompletionChoice(index=index, text="", finish_reason=reason),), None)
            case Ended(usage=usage) if self._include_usage:
                return self._chunk((), CompletionUsage.of(usage))
            case _:
                return b""

    def _chunk(self, choices: tuple[CompletionChoice, ...], usage: CompletionUsage | None) -> bytes:
        chunk = Completion(
            id=self._heading.id,
            created=self._heading.created,
            model=self._heading.model,
            choices=choices,
            usage=usage if self._include_usage else UNSET,
        )
        return sse.data(self._encode(chunk))
