"""Answers as they come from a backend, which every dialect has to tell."""

from mlxm.types import (
    ChoiceEnded,
    Ended,
    Event,
    FinishReason,
    ReasoningDelta,
    Started,
    TextDelta,
    ToolCallDelta,
    ToolCallStarted,
    Usage,
)


def text(content: str, *ids: int) -> TextDelta:
    """More text."""
    return TextDelta(choice=0, text=content, token_ids=ids)


def ended(reason: FinishReason, usage: Usage, stop: str | None = None) -> list[Event]:
    """How every story ends."""
    return [ChoiceEnded(choice=0, reason=reason, stop=stop), Ended(usage)]


STORIES: dict[str, list[Event]] = {
    "words": [
        Started(3),
        text("Hello", 1),
        text(" world", 2, 3),
        *ended("stop", Usage(prompt_tokens=3, completion_tokens=3)),
    ],
    "nothing": [Started(1), *ended("stop", Usage(prompt_tokens=1))],
    "stopped": [Started(1), text("a", 1), *ended("stop", Usage(prompt_tokens=1, completion_tokens=2), "END")],
    "cut": [
        Started(9),
        text("On", 1),
        *ended("length", Usage(prompt_tokens=9, completion_tokens=1, cached_tokens=8)),
    ],
    "calls": [
        Started(2),
        ReasoningDelta(0, "Let me ", (1,)),
        ReasoningDelta(0, "look.", (2,)),
        text("Here:", 3),
        ToolCallStarted(choice=0, index=0, id="call_a", name="find"),
        ToolCallDelta(0, 0, '{"word":'),
        ToolCallDelta(0, 0, ' "x"}'),
        ToolCallStarted(choice=0, index=1, id="call_b", name="stop"),
        ToolCallDelta(0, 1, "{}"),
        *ended("tool_calls", Usage(prompt_tokens=2, completion_tokens=9, cached_tokens=1, reasoning_tokens=2)),
    ],
    "cut_call": [
        Started(2),
        ToolCallStarted(choice=0, index=0, id="call_a", name="find"),
        ToolCallDelta(0, 0, '{"word":'),
        *ended("length", Usage(prompt_tokens=2, completion_tokens=3)),
    ],
    # A token may end in the middle of a character, and then has no text of its own yet.
    "characters": [
        Started(2),
        text("", 1),
        text('„é"\\\n\t\u2028🦜', 2),
        text("<|end|>", 3),
        *ended("stop", Usage(prompt_tokens=2, completion_tokens=3)),
    ],
}
