"""From a conversation to the text of its prompt: what a template refuses is tried once more in a form that it takes.

A prompt may also end inside the assistant's last message, which is then gone on with: the place is found by a mark that
is printed with the message and cut off with all that follows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec

from mlxm.engine.formats.families import Family
from mlxm.errors import InvalidRequest
from mlxm.prep.customs import Customs, Turn
from mlxm.prep.described import completed, plain_tool
from mlxm.prep.messages import Converter, filled, interleaved, merged, text_of, thought_aloud
from mlxm.prep.options import PLAIN, RenderOptions
from mlxm.prep.template import ChatTemplate
from mlxm.prep.thinking import EFFORT, SWITCH, Settled, settle
from mlxm.types import Message, ReasoningPart, ToolCallPart

_MARK: Final = "endofprompt7f3a9c1e"
_CONTINUE: Final = "continue_final_message"
_NAMES: Final = "messages.name"


class Rendered(msgspec.Struct, frozen=True):
    """The prompt's text, and what was wished for and did not go into it."""

    text: str
    unused: tuple[str, ...] = ()


class Renderer:
    """Renders conversations with one model's template."""

    def __init__(self, template: ChatTemplate, family: Family) -> None:
        self._template = template
        self._family = family
        self._customs = Customs(template)
        self._converter = Converter(self._customs, family)

    def render(self, messages: Sequence[Message], options: RenderOptions = PLAIN) -> Rendered:
        """The prompt's text, up to where the assistant's answer begins or goes on; raises InvalidRequest."""
        if not messages:
            raise InvalidRequest("The conversation is empty.", hint="Send at least one message.", param="messages")
        settled = settle(self._template, options.thinking, options.template_options)
        try:
            rendered = self._render(messages, options, settled)
        except InvalidRequest:
            if not settled.wished:
                raise
            # Templates fail over a switch that they know in name only; the answer matters more than the wish.
            rendered = self._render(messages, options, settled.without_wishes())
        return msgspec.structs.replace(rendered, unused=(*rendered.unused, *self._unused_names(messages)))

    def _render(self, messages: Sequence[Message], options: RenderOptions, settled: Settled) -> Rendered:
        tools = [plain_tool(tool) for tool in options.tools]
        turns = self._converter.turns(messages, tools)
        variables = {**settled.wished, **settled.given}
        if options.continues_final:
            return Rendered(self._continue(messages[-1], turns, tools, variables), settled.unused)
        return self._without_thoughts(options, Rendered(self._print(turns, tools, variables), settled.unused))

    def _print(self, turns: list[Turn], tools: list[Turn], variables: Any) -> str:
        """What the template makes of the first form that it takes; raises what it says about the form as it was."""
        refusals: list[InvalidRequest] = []
        told = tools if tools and self._customs.prints_tools else []
        for form in self._forms(turns):
            for each in _distinct(told, [completed(tool) for tool in told]):
                try:
                    return self._customs.print(form, each, **variables)
                except InvalidRequest as error:
                    refusals.append(error)
        raise refusals[0]

    def _forms(self, turns: list[Turn]) -> Iterator[list[Turn]]:
        """The turns, then with ever more changes."""
        ordered = interleaved(turns) if any("tool_calls" in turn for turn in turns) else turns
        yield ordered
        aloud = thought_aloud(ordered, self._customs.thoughts_key)
        for form in _distinct(ordered, aloud, merged(aloud), filled(merged(aloud))):
            if form != ordered:
                yield form

    def _continue(self, last: Message, turns: list[Turn], tools: list[Turn], variables: Any) -> str:
        """The prompt up to the end of the last message."""
        if last.role != "assistant" or any(isinstance(part, ToolCallPart) for part in last.content):
            raise InvalidRequest("Only the assistant's last message, if without calls, goes on.", param=_CONTINUE)
        for marked in self._marked(last, turns[-1]):
            text = self._print([*turns[:-1], marked], tools, {**variables, "add_generation_prompt": False})
            head, mark, _ = text.rpartition(_MARK)
            if mark:
                return head
        raise InvalidRequest("The chat template has no place for the message that is to go on.", param=_CONTINUE)

    def _marked(self, last: Message, turn: Turn) -> Iterator[Turn]:
        """The last turn with the mark: behind the answer, or behind the thoughts if there is nothing else yet."""
        key, tags = self._customs.thoughts_key, self._family.reasoning
        thoughts = "".join(part.text for part in last.content if isinstance(part, ReasoningPart))
        if thoughts and not text_of(last):
            if key is not None:
                yield {**turn, key: thoughts + _MARK}
            if tags is not None:
                yield {"role": "assistant", "content": f"{tags.open}{tags.after_open}{thoughts}{_MARK}"}
        else:
            yield {**turn, "content": turn["content"] + _MARK}

    def _without_thoughts(self, options: RenderOptions, rendered: Rendered) -> Rendered:
        """Close the thoughts that the template opened although none are wanted, as it has no switch for them."""
        tags = self._family.reasoning
        if SWITCH not in rendered.unused or tags is None or not rendered.text.rstrip().endswith(tags.open):
            return rendered
        done = (SWITCH, EFFORT) if options.thinking.effort == "none" else (SWITCH,)
        unused = tuple(each for each in rendered.unused if each not in done)
        if options.thinking.is_on:
            return Rendered(rendered.text, unused)
        return Rendered(f"{rendered.text}{tags.before_close}{tags.close}{tags.after_close}", unused)

    def _unused_names(self, messages: Sequence[Message]) -> tuple[str, ...]:
        has_names = any(message.name is not None and message.role != "tool" for message in messages)
        return (_NAMES,) if has_names and not self._customs.prints_names else ()


def _distinct(*choices: list[Turn]) -> Iterator[list[Turn]]:
    seen: list[list[Turn]] = []
    for choice in choices:
        if choice not in seen:
            seen.append(choice)
            yield choice
