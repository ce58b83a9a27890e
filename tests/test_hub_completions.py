import asyncio
from collections.abc import Iterator
from contextlib import aclosing
from typing import Any

import pytest

from mlxm.errors import ContextTooLong, InvalidRequest, ModelNotFound, UnsupportedParameter
from mlxm.hub import Hub, HubSettings
from mlxm.store.aliases import Aliases
from mlxm.store.db import Database
from mlxm.types import (
    ChatRequest,
    ChoiceEnded,
    CompletionRequest,
    Ended,
    Event,
    Message,
    ModelInfo,
    Sampling,
    TextDelta,
    TextPart,
)

MODEL = "mlxm/tiny"
LIMIT_S = 60.0
GREEDY = Sampling(temperature=0.0)


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    """One event loop for the tests that share a hub."""
    with asyncio.Runner() as made:
        yield made


@pytest.fixture(scope="module")
def hub(runner: asyncio.Runner, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """A hub on a fresh home, in which the model has a second name."""
    home = tmp_path_factory.mktemp("home")

    async def name_it() -> None:
        async with await Database.open(home / "mlxm.db") as database:
            await Aliases(database).set("mine", MODEL)

    home.chmod(0o700)
    runner.run(name_it())
    made = Hub(HubSettings(home=home))
    runner.run(made.start())
    yield made
    runner.run(made.close())


async def complete(hub: Hub, prompt: str | tuple[int, ...], **fields: Any) -> list[Event]:
    """All events of one completion."""
    request = CompletionRequest(request_id="r", model=MODEL, prompt=prompt, sampling=GREEDY, **fields)
    async with asyncio.timeout(LIMIT_S), aclosing(hub.complete(request)) as events:
        return [event async for event in events]


def text_of(events: list[Event], choice: int = 0) -> str:
    """What a choice says."""
    return "".join(event.text for event in events if isinstance(event, TextDelta) and event.choice == choice)


def test_a_text_is_gone_on_with(hub: Hub, runner: asyncio.Runner) -> None:
    """As it is; the same as token ids says the same."""
    events = runner.run(complete(hub, "Hello you", max_tokens=3))
    encoded = runner.run(hub.tokenize(CompletionRequest(request_id="r", model=MODEL, prompt="Hello you")))
    assert text_of(events) == text_of(runner.run(complete(hub, encoded.ids, max_tokens=3))) != ""
    assert isinstance(events[-1], Ended)
    assert (events[-1].usage.prompt_tokens, events[-1].usage.completion_tokens) == (3, 3)


def test_the_prompt_is_scored(hub: Hub, runner: asyncio.Runner) -> None:
    """For evaluations: every token of it, with a logprob for all but the first, and no answer."""
    events = runner.run(complete(hub, "Hello you", max_tokens=0, echoes=True, num_logprobs=1))
    (delta,) = (event for event in events if isinstance(event, TextDelta))
    assert delta.text == "Hello you"
    assert [token.raw for token in delta.logprobs] == [b"<|begin_of_text|>", b"Hello", b" you"]
    assert [token.logprob is None for token in delta.logprobs] == [True, False, False]
    assert [len(token.top) for token in delta.logprobs] == [0, 1, 1]
    assert events[-2] == ChoiceEnded(choice=0, reason="length")
    assert isinstance(events[-1], Ended)
    assert events[-1].usage.completion_tokens == 0


def test_token_ids_are_echoed_as_text(hub: Hub, runner: asyncio.Runner) -> None:
    """In front of every choice."""
    ids = runner.run(hub.tokenize(CompletionRequest(request_id="r", model=MODEL, prompt=" you"), is_bare=True)).ids
    events = runner.run(complete(hub, ids, max_tokens=1, echoes=True, num_choices=2))
    assert text_of(events, 0).startswith(" you")
    assert text_of(events, 1) == text_of(events, 0)


@pytest.mark.parametrize(
    ("prompt", "fields", "kind", "param"),
    [
        ((5, 10**6), {}, InvalidRequest, "prompt"),
        ("a", {"suffix": "b"}, UnsupportedParameter, "suffix"),
        ((5,), {"suffix": "b"}, InvalidRequest, "suffix"),
        ("a", {"max_tokens": 10**6}, ContextTooLong, "prompt"),
    ],
)
def test_what_cannot_be_gone_on_with(
    hub: Hub,
    runner: asyncio.Runner,
    prompt: str | tuple[int, ...],
    fields: dict[str, Any],
    kind: type[InvalidRequest],
    param: str,
) -> None:
    """Named, before a model has to deal with it."""
    with pytest.raises(kind) as caught:
        runner.run(complete(hub, prompt, **fields))
    assert caught.value.param == param


def test_tokens_there_and_back(hub: Hub, runner: asyncio.Runner) -> None:
    """Of texts and of conversations, without a model in memory."""
    message = Message(role="user", content=(TextPart("Hello"),))
    chat = runner.run(hub.tokenize(ChatRequest(request_id="r", model="mine", messages=(message,))))
    assert chat.context_length == 8192
    assert "Hello" in runner.run(hub.detokenize(MODEL, chat.ids))
    with pytest.raises(InvalidRequest):
        runner.run(hub.detokenize(MODEL, (10**6,)))


def test_models_are_listed_by_every_name(hub: Hub, runner: asyncio.Runner) -> None:
    """Whether they are loaded, too, and since when they are here."""
    runner.run(complete(hub, "Hello", max_tokens=1))
    alias, model = runner.run(hub.list_models())
    assert model == ModelInfo(name=MODEL, created_s=model.created_s, context_length=8192, is_loaded=True)
    assert (alias.name, alias.target, alias.is_loaded) == ("mine", MODEL, True)
    assert model.created_s > 1_700_000_000
    assert runner.run(hub.find_model("mine")) == alias
    with pytest.raises(ModelNotFound):
        runner.run(hub.find_model("mlxm/tinny"))
