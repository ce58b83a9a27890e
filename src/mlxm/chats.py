"""Chats in the way of the model's family: what its worker is told besides, and what the text of its answers means."""

from __future__ import annotations

from typing import Final

import msgspec

from mlxm.engine.formats.grammar import answer_grammar, tool_grammar
from mlxm.engine.formats.harmony import MARKERS
from mlxm.engine.formats.parser import AnswerParser, open_parser, opens_thoughts
from mlxm.frames import Generate, ThoughtLimit, Tokens
from mlxm.pool.families import Markup
from mlxm.pool.stream import RequestStream
from mlxm.types import (
    ChatRequest,
    ChoiceEnded,
    Ended,
    Event,
    Grammar,
    ReasoningDelta,
    ReasoningPart,
    Started,
    TextDelta,
    TextPart,
    ToolCallDelta,
    ToolCallStarted,
)

_START, _CHANNEL, _CONSTRAIN, _MESSAGE, _END, *_ENDS = MARKERS
_ANALYSIS: Final = f"{_CHANNEL}analysis{_MESSAGE}"
_FINAL: Final = f"{_CHANNEL}final{_MESSAGE}"
_BUDGET: Final = "thinking.budget_tokens"
_MUST_CALL: Final = ("required", "named")


class Chat:
    """One request, its prompt, and all that its model's family makes of them."""

    def __init__(self, request: ChatRequest, prompt: Tokens, markup: Markup) -> None:
        self._request = request
        self._prompt = prompt
        self._markup = markup
        self._family = markup.family
        self._takes_calls = bool(request.tools) and request.tool_choice.mode != "none"
        self.has_markup = self._takes_calls or self._family.reasoning is not None or self._family.is_harmony
        """Whether the answer's text is to be read token by token."""
        self._parsers: dict[int, AnswerParser] = {}
        self._ended: set[int] = set()
        self._stream: RequestStream | None = None
        self._num_thought = 0

    # ── what the worker is told ──────────────────────────────────────────────────────────────────

    def grammar(self) -> Grammar | None:
        """What the answer has to be, with its thoughts and calls."""
        request, family, ending = self._request, self._family, self._prompt.ending
        special_ids = self._markup.special_ids
        if request.grammar is None or (self._takes_calls and request.tool_choice.mode in _MUST_CALL):
            return tool_grammar(family, request.tools, request.tool_choice, ending=ending, special_ids=special_ids)
        return answer_grammar(
            family,
            request.grammar,
            ending=ending,
            special_ids=special_ids,
            tools=request.tools,
            choice=request.tool_choice,
        )

    def closing(self) -> str | None:
        """The text that closes thoughts which become too long; None where they may be of any length."""
        if self._request.thinking.budget_tokens is None:
            return None
        if self._family.is_harmony:
            return f"{_END}{_START}assistant" + ("" if self._takes_calls else _FINAL)
        tags = self._family.reasoning
        return None if tags is None else tags.before_close + tags.close + tags.after_close

    def order(self, order: Generate, grammar: Grammar | None, close_ids: tuple[int, ...] = ()) -> Generate:
        """What to ask of the model."""
        ends = () if order.sampling.ignore_eos else self._markup.stop_ids
        return msgspec.structs.replace(
            order,
            grammar=grammar,
            stop_ids=tuple(dict.fromkeys((*order.stop_ids, *ends))),
            kept_ids=tuple(self._markup.special_ids.values()) if self.has_markup else (),
            thoughts=self._limit(close_ids),
        )

    def _limit(self, close_ids: tuple[int, ...]) -> ThoughtLimit | None:
        num_tokens = self._request.thinking.budget_tokens
        if num_tokens is None or not close_ids:
            return None
        ending = self._prompt.ending
        tags = self._family.reasoning
        if tags is None:
            return ThoughtLimit(
                num_tokens=num_tokens,
                opener=_ANALYSIS,
                closer=_END,
                close_ids=close_ids,
                is_open=ending.endswith(_ANALYSIS),
                reopens=True,
            )
        return ThoughtLimit(
            num_tokens=num_tokens,
            opener=tags.open,
            closer=tags.close,
            close_ids=close_ids,
            is_open=opens_thoughts(tags, ending),
        )

    def begin(self, stream: RequestStream) -> None:
        """Take what can end the answer before its time."""
        self._stream = stream

    # ── what the answer means ────────────────────────────────────────────────────────────────────

    def see(self, event: Event) -> list[Event]:
        """What an event of the bare text means."""
        if isinstance(event, Started):
            return [msgspec.structs.replace(event, unused=self._unused())]
        if not self.has_markup:
            return [event]
        match event:
            case TextDelta(choice=choice, text=text, token_ids=token_ids, logprobs=logprobs):
                told = self._told(self._parser(choice).feed(text, token_ids, logprobs))
                self._finish_if_enough()
                return told
            case ChoiceEnded():
                return self._end(event)
            case Ended(usage=usage):
                open_choices = sorted(self._parsers.keys() - self._ended)
                told = [each for choice in open_choices for each in self._end(ChoiceEnded(choice, "stop"))]
                return [*told, Ended(usage=msgspec.structs.replace(usage, reasoning_tokens=self._num_thought))]
            case _:
                return [event]

    def _end(self, ended: ChoiceEnded) -> list[Event]:
        """One choice is complete."""
        parser = self._parser(ended.choice)
        self._ended.add(ended.choice)
        told = self._told(parser.finish())
        has_called = parser.num_calls > 0 and ended.reason == "stop"
        return [*told, msgspec.structs.replace(ended, reason="tool_calls") if has_called else ended]

    def _finish_if_enough(self) -> None:
        """End the request once every choice has begun a second call where one is all that is allowed."""
        if self._request.tool_choice.allows_several or self._stream is None:
            return
        has_enough = {choice for choice, parser in self._parsers.items() if parser.num_calls > 1} | self._ended
        if len(has_enough) == self._request.num_choices:
            self._stream.finish()
            self._stream = None

    def _unused(self) -> tuple[str, ...]:
        """What nothing came of: thoughts can be limited without the template."""
        is_limited = self.closing() is not None
        return tuple(name for name in self._prompt.unused if not (is_limited and name == _BUDGET))

    def _parser(self, choice: int) -> AnswerParser:
        parser = self._parsers.get(choice)
        if parser is None:
            parser = self._parsers[choice] = open_parser(
                self._family,
                tools=self._request.tools,
                tool_choice=self._request.tool_choice,
                ending=self._prompt.ending,
                begun=self._begun(),
                choice=choice,
            )
        return parser

    def _begun(self) -> str:
        """The part of the answer that the request has written, as the prompt ends with it."""
        if not self._request.continues_final:
            return ""
        parts = self._request.messages[-1].content
        text = "".join(part.text for part in parts if isinstance(part, TextPart))
        thoughts = "".join(part.text for part in parts if isinstance(part, ReasoningPart))
        tags = self._family.reasoning
        begun = f"{tags.open}{tags.after_open}{thoughts}" if thoughts and not text and tags is not None else text
        ending = self._prompt.ending
        return next((form for form in (begun, begun.rstrip(), begun.strip()) if _ends(ending, form)), "")

    def _told(self, events: list[Event]) -> list[Event]:
        """The events, without the calls that go beyond the one that may be made."""
        self._num_thought += sum(len(event.token_ids) for event in events if isinstance(event, ReasoningDelta))
        if self._request.tool_choice.allows_several:
            return events
        calls = ToolCallStarted | ToolCallDelta
        return [event for event in events if not (isinstance(event, calls) and event.index > 0)]


def _ends(ending: str, text: str) -> bool:
    return text.endswith(ending) or ending.endswith(text)
