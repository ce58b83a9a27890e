import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mlxm.chats import Chat
from mlxm.engine.formats.families import FAMILIES, GENERIC
from mlxm.frames import Generate, Tokens
from mlxm.hub import Hub, HubSettings
from mlxm.pool.families import Markup
from mlxm.pool.stream import FINISHED, RequestStream
from mlxm.testing import build_scripted
from mlxm.tiny import families as tiny
from mlxm.types import (
    ChatRequest,
    ChoiceEnded,
    Ended,
    Event,
    Grammar,
    Message,
    ReasoningDelta,
    ReasoningPart,
    Role,
    Sampling,
    Started,
    TextDelta,
    TextPart,
    Thinking,
    Tool,
    ToolCallDelta,
    ToolCallStarted,
    ToolChoice,
    Usage,
)

LIMIT_S = 60.0
BY_NAME = {entry.family.name: entry.family for entry in FAMILIES} | {GENERIC.name: GENERIC}
NOW = Tool(name="now", parameters='{"type": "object", "properties": {}}')
CALL = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
ORDER = Generate(request_id="a", prompt_ids=(1,), stop_ids=(5,))


def message(role: Role, *parts: TextPart | ReasoningPart) -> Message:
    """One turn."""
    return Message(role=role, content=parts)


def request(model: str = "m", **fields: Any) -> ChatRequest:
    """A chat."""
    given = {"messages": (message("user", TextPart("Hi")),), "max_tokens": 60, **fields}
    return ChatRequest(request_id="a", model=model, **given)


def chat(family: str, asked: ChatRequest | None = None, ending: str = "", **markup: Any) -> Chat:
    """A chat with a model of a family."""
    asked = request() if asked is None else asked
    return Chat(asked, Tokens(job=0, ids=(1,), ending=ending), Markup(family=BY_NAME[family], **markup))


def told(one: Chat, *texts: str) -> list[Event]:
    """What is told of an answer that comes in these pieces, each of one token."""
    events: list[Event] = [Started(prompt_tokens=1)]
    events += [TextDelta(0, text, (place,)) for place, text in enumerate(texts)]
    events += [ChoiceEnded(choice=0, reason="stop"), Ended(usage=Usage(completion_tokens=len(texts)))]
    return [each for event in events for each in one.see(event)]


def test_bare_text_passes_as_it_is() -> None:
    """Where a family has no markup, and nothing can be called, events are not even looked at."""
    event = TextDelta(choice=0, text=CALL)
    assert chat("llama-3").see(event) == [event]
    assert chat("llama-3").see(event)[0] is event
    assert chat("llama-3", special_ids={"<|python_tag|>": 9}).order(ORDER, None).kept_ids == ()


def test_thoughts_are_told_apart_and_counted() -> None:
    """Their tokens are part of the usage."""
    started, *rest, text, ended, end = told(chat("qwen3"), "<think>", "a", "b", "</think>", "\n\nc")
    assert started == Started(prompt_tokens=1)
    assert "".join(event.text for event in rest if isinstance(event, ReasoningDelta)) == "ab"
    assert isinstance(text, TextDelta)
    assert (text.text, text.token_ids, ended) == ("c", (3, 4), ChoiceEnded(choice=0, reason="stop"))
    assert end == Ended(usage=Usage(completion_tokens=5, reasoning_tokens=3))


def test_what_was_not_used_is_told() -> None:
    """But not a limit that is kept in another way."""
    unused = ("thinking.effort", "thinking.budget_tokens")
    asked = request(thinking=Thinking(budget_tokens=3, effort="low"))
    for family, left in (("qwen3", unused[:1]), ("llama-3", unused)):
        one = Chat(asked, Tokens(job=0, ids=(1,), unused=unused), Markup(family=BY_NAME[family]))
        assert one.see(Started(prompt_tokens=1)) == [Started(prompt_tokens=1, unused=left)]


def test_an_answer_with_calls_ends_with_them() -> None:
    """Unless it was cut short."""
    events = told(chat("qwen3", request(tools=(NOW,))), CALL)
    assert ChoiceEnded(choice=0, reason="tool_calls") in events
    cut = chat("qwen3", request(tools=(NOW,)))
    cut.see(TextDelta(0, CALL, (1,)))
    assert cut.see(ChoiceEnded(choice=0, reason="length"))[-1] == ChoiceEnded(choice=0, reason="length")


@pytest.mark.parametrize(("allows_several", "num_calls"), [(True, 2), (False, 1)])
def test_no_more_calls_than_are_allowed(allows_several: bool, num_calls: int) -> None:  # noqa: FBT001  # named by pytest
    """The first one is made, later ones are not."""
    asked = request(tools=(NOW,), tool_choice=ToolChoice(allows_several=allows_several))
    events = told(chat("qwen3", asked), CALL, "\n", CALL)
    assert sum(isinstance(event, ToolCallStarted) for event in events) == num_calls
    assert sum(isinstance(event, ToolCallDelta) for event in events) == num_calls
    assert ChoiceEnded(choice=0, reason="tool_calls") in events


def test_a_second_call_ends_an_answer_that_may_have_one() -> None:
    """As soon as every choice has begun it; what was said so far is the answer."""
    reasons: list[str] = []
    asked = request(tools=(NOW,), tool_choice=ToolChoice(allows_several=False), num_choices=2)
    one = chat("qwen3", asked)
    one.begin(RequestStream(cancel=reasons.append, on_end=lambda: None))
    for choice in (1, 0):
        assert reasons == []
        one.see(TextDelta(choice, CALL + CALL, (1,)))
    one.see(TextDelta(0, "and more", (2,)))
    assert reasons == [FINISHED]
    ends = [ChoiceEnded(choice=choice, reason="tool_calls") for choice in (0, 1)]
    *told, ended = one.see(Ended(usage=Usage()))
    assert [event for event in told if isinstance(event, ChoiceEnded)] == ends
    assert ended == Ended(usage=Usage())


def test_each_choice_is_read_by_itself() -> None:
    """Their texts come mixed."""
    one = chat("qwen3")
    assert one.see(TextDelta(0, "<think>a", (1,))) == [ReasoningDelta(0, "a", (1,))]
    assert one.see(TextDelta(1, "b", (2,))) == [TextDelta(1, "b", (2,))]


@pytest.mark.parametrize(
    ("last", "ending", "said"),
    [
        (message("assistant", TextPart("So far ")), "assistant\nSo far ", [TextDelta(0, "and on", (1,))]),
        (message("assistant", TextPart("So far ")), "assistant\nSo far", [TextDelta(0, "and on", (1,))]),
        (message("assistant", TextPart("x" * 600)), "x" * 500, [TextDelta(0, "and on", (1,))]),
        (message("assistant", ReasoningPart("I th")), "<think>\nI th", [ReasoningDelta(0, "and on", (1,))]),
        (message("user", TextPart("Hi")), "<think>\n", [ReasoningDelta(0, "and on", (1,))]),
    ],
)
def test_an_answer_goes_on_where_the_prompt_ends(last: Message, ending: str, said: list[Event]) -> None:
    """In the words or in the thoughts that it ends with."""
    one = chat("qwen3", request(messages=(last,), continues_final=last.role == "assistant"), ending)
    assert one.see(TextDelta(0, "and on", (1,))) == said


def test_what_the_worker_is_told() -> None:
    """The family's markup stays in the text, and its ends end the answer, unless all ends are to be ignored."""
    one = chat("qwen3", special_ids={"<think>": 7, "</think>": 8}, stop_ids=(5, 6))
    order = one.order(ORDER, None)
    assert (order.stop_ids, order.kept_ids, order.thoughts) == ((5, 6), (7, 8), None)
    ignoring = msgspec.structs.replace(ORDER, sampling=Sampling(ignore_eos=True))
    assert one.order(ignoring, None).stop_ids == (5,)


@pytest.mark.parametrize(
    ("family", "fields", "closing"),
    [
        ("qwen3", {}, "\n</think>\n\n"),
        ("llama-3", {}, None),
        ("gpt-oss", {}, "<|end|><|start|>assistant<|channel|>final<|message|>"),
        ("gpt-oss", {"tools": (NOW,)}, "<|end|><|start|>assistant"),
    ],
)
def test_how_thoughts_are_closed(family: str, fields: dict[str, Any], closing: str | None) -> None:
    """As the family closes them, when they are limited."""
    one = chat(family, request(thinking=Thinking(budget_tokens=3), **fields))
    assert one.closing() == closing
    assert chat(family, request(**fields)).closing() is None
    limit = one.order(ORDER, None, () if closing is None else (1, 2)).thoughts
    if closing is None:
        assert limit is None
        return
    assert limit is not None
    assert (limit.num_tokens, limit.close_ids, limit.reopens) == (3, (1, 2), family == "gpt-oss")


def test_which_grammar_holds() -> None:
    """That of the answer, or that of the calls where calls have to be made."""
    yes = Grammar(kind="choice", source='["yes"]')
    must = request(tools=(NOW,), tool_choice=ToolChoice(mode="required"), grammar=yes)
    assert chat("llama-3", request(grammar=yes)).grammar() == yes
    assert chat("qwen3", request()).grammar() is None
    calls = chat("qwen3", must).grammar()
    assert calls is not None
    assert "yes" not in calls.source
    either = chat("qwen3", request(tools=(NOW,), grammar=yes)).grammar()
    assert either is not None
    assert '"yes"' in either.source
    assert "now" in either.source
    never = request(tools=(NOW,), tool_choice=ToolChoice(mode="none"), grammar=yes)
    assert chat("llama-3", never).grammar() == yes


# ── through real processes ───────────────────────────────────────────────────────────────────────

TEMPLATE = """\
{% for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor %}{{ tools or '' }}<tool_call></think>
{%- if add_generation_prompt %}<|im_start|>assistant<|answer_{{ 1 if tools else 0 }}|>{% endif %}"""


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    """One event loop for all."""
    with asyncio.Runner() as made:
        yield made


@pytest.fixture(scope="module")
def hub(runner: asyncio.Runner, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """A hub on a fresh home."""
    made = Hub(HubSettings(home=tmp_path_factory.mktemp("home")))
    runner.run(made.start())
    yield made
    runner.run(made.close())


@pytest.fixture(scope="module")
def scripted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that thinks, and says something else when its thoughts are closed for it."""
    family = msgspec.structs.replace(tiny.FAMILIES["chatml"], chat_template=TEMPLATE)
    answers = {
        "<|answer_0|>": "<think>One two three four five six seven eight.</think>It is twelve o'clock.",
        "\n\n": "So be it!",
        "<|answer_1|>": f"{CALL}\n{CALL.replace('now', 'then')}",
    }
    return build_scripted(tmp_path_factory.mktemp("models") / "qwen", family, answers, model_type="qwen3")


async def texts_of(hub: Hub, asked: ChatRequest) -> tuple[str, str, list[Event]]:
    """The thoughts, the words and all events."""
    async with asyncio.timeout(LIMIT_S):
        events = [event async for event in hub.chat(asked, may_be_path=True)]
    thoughts = "".join(event.text for event in events if isinstance(event, ReasoningDelta))
    return thoughts, "".join(event.text for event in events if isinstance(event, TextDelta)), events


def test_thoughts_are_limited(runner: asyncio.Runner, hub: Hub, scripted: Path) -> None:
    """By the worker: the model goes on behind the tag that it was made to write."""
    thoughts, text, _ = runner.run(texts_of(hub, request(str(scripted))))
    assert (thoughts, text) == ("One two three four five six seven eight.", "It is twelve o'clock.")
    short, text, events = runner.run(texts_of(hub, request(str(scripted), thinking=Thinking(budget_tokens=3))))
    assert thoughts.startswith(short)
    assert 0 < len(short) < 20
    assert text == "So be it!"
    ended = events[-1]
    assert isinstance(ended, Ended)
    assert 0 < ended.usage.reasoning_tokens < ended.usage.completion_tokens


def test_an_answer_is_cut_short_behind_its_only_call(runner: asyncio.Runner, hub: Hub, scripted: Path) -> None:
    """The worker stops, though it was to go on for long, and says what it has computed."""
    asked = request(
        str(scripted),
        tools=(NOW, Tool(name="then")),
        tool_choice=ToolChoice(allows_several=False),
        sampling=Sampling(temperature=0.0, ignore_eos=True),
        max_tokens=1800,
    )
    _, _, events = runner.run(texts_of(hub, asked))
    started, *_, choice, ended = events
    assert [event.name for event in events if isinstance(event, ToolCallStarted)] == ["now"]
    assert choice == ChoiceEnded(choice=0, reason="tool_calls")
    assert isinstance(started, Started)
    assert isinstance(ended, Ended)
    assert ended.usage.prompt_tokens == started.prompt_tokens
    assert 0 < ended.usage.completion_tokens < 1800


def test_a_family_is_looked_up_once_for_each_state_of_its_files(
    runner: asyncio.Runner, hub: Hub, scripted: Path, tmp_path: Path
) -> None:
    """What prep said holds until a file changes."""
    folder = tmp_path / "model"
    folder.mkdir()
    for path in scripted.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())

    async def test() -> None:
        first = await hub._families.of(folder)
        assert first.family.name == "qwen3"
        assert await hub._families.of(folder) is first
        (folder / "chat_template.jinja").write_text("{{ messages }}[TOOL_CALLS]")
        second = await hub._families.of(folder)
        assert second.family.tools[1] == "mistral-list"

    runner.run(test())
