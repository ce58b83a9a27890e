import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from pathlib import Path

import pytest

from mlxm.errors import (
    Cancelled,
    Conflict,
    ContextTooLong,
    Draining,
    InternalError,
    InvalidRequest,
    MlxmError,
    ModelNotFound,
    WorkerDied,
)
from mlxm.frames import Cancel, Delta, Fault, Generate, RequestEnded
from mlxm.hub import Hub, HubSettings, _check_room, _events, _order
from mlxm.pool.launch import Workers
from mlxm.pool.pool import LocalModel
from mlxm.pool.worker import Worker
from mlxm.settings import Settings
from mlxm.types import (
    ChatRequest,
    ChoiceEnded,
    Ended,
    Event,
    Grammar,
    Message,
    Sampling,
    Started,
    TextDelta,
    TextPart,
    TokenLogprobs,
    Usage,
)

LIMIT_S = 60.0


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    """One event loop for the tests that share a hub."""
    with asyncio.Runner() as made:
        yield made


@pytest.fixture(scope="module")
def hub(runner: asyncio.Runner, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """A hub on a fresh home."""
    made = Hub(HubSettings(home=tmp_path_factory.mktemp("home")))
    assert made.ready() == "mlxm is starting"
    runner.run(made.start())
    yield made
    runner.run(made.close())
    assert made.ready() == "mlxm is stopping"


def request(
    request_id: str,
    *,
    text: str = "Hello there",
    model: str = "mlxm/tiny",
    max_tokens: int | None = 12,
    stop: tuple[str, ...] = (),
) -> ChatRequest:
    """A greedy chat."""
    return ChatRequest(
        request_id=request_id,
        model=model,
        messages=(Message(role="user", content=(TextPart(text),)),),
        sampling=Sampling(temperature=0.0),
        max_tokens=max_tokens,
        stop=stop,
    )


async def answer(hub: Hub, asked: ChatRequest, *, may_be_path: bool = False) -> list[Event]:
    """All of a chat's events."""
    async with asyncio.timeout(LIMIT_S):
        return [event async for event in hub.chat(asked, may_be_path=may_be_path)]


async def _rest(events: AsyncIterator[Event]) -> None:
    async for _ in events:
        pass


def text_of(events: list[Event]) -> str:
    """The text of all events."""
    return "".join(event.text for event in events if isinstance(event, TextDelta))


def test_a_chat_is_answered(runner: asyncio.Runner, hub: Hub) -> None:
    """Started, text, the end of the choice, the end of all; with true counts, and the same again."""
    assert hub.ready() is None
    assert hub.models() == ("mlxm/tiny",)
    events = runner.run(answer(hub, request("a")))
    started, *texts, choice, ended = events
    assert isinstance(started, Started)
    assert all(isinstance(event, TextDelta) for event in texts)
    assert choice == ChoiceEnded(choice=0, reason="length")
    assert ended == Ended(usage=Usage(prompt_tokens=started.prompt_tokens, completion_tokens=12))
    assert text_of(events) == text_of(runner.run(answer(hub, request("b"))))


def test_a_stop_string_is_obeyed(runner: asyncio.Runner, hub: Hub) -> None:
    """It reaches the engine."""
    whole = text_of(runner.run(answer(hub, request("a"))))
    events = runner.run(answer(hub, request("b", stop=(whole[9:14],))))
    assert text_of(events) == whole[: whole.index(whole[9:14])]
    assert ChoiceEnded(choice=0, reason="stop", stop=whole[9:14]) in events


def test_closing_a_chat_cancels_it(runner: asyncio.Runner, hub: Hub) -> None:
    """The id is free again once the worker has ended the request, and the next one is answered."""

    async def test() -> None:
        async with aclosing(hub.chat(request("a", max_tokens=4000))) as events:
            await anext(events)
            with pytest.raises(Conflict):
                await answer(hub, request("a"))
        await answer(hub, request("b"))
        assert [model.in_use for model in hub._pool.models()] == [0]

    runner.run(test())


def test_a_killed_worker_is_reported_and_replaced(runner: asyncio.Runner, hub: Hub) -> None:
    """The next chat is answered."""

    async def test() -> None:
        events = hub.chat(request("a", max_tokens=4000))
        while not isinstance(await anext(events), TextDelta):
            pass
        os.kill(hub._pool.models()[0].pid or 0, signal.SIGKILL)
        with pytest.raises(WorkerDied, match="The worker of mlxm/tiny was ended by SIGKILL"):
            await _rest(events)
        assert isinstance((await answer(hub, request("b")))[-1], Ended)

    runner.run(test())


def test_an_unknown_model_is_refused(runner: asyncio.Runner, hub: Hub, tiny_folder: Path) -> None:
    """A folder as well, unless the caller is on this machine."""
    with pytest.raises(ModelNotFound):
        runner.run(answer(hub, request("a", model="nobody/nothing")))
    with pytest.raises(ModelNotFound):
        runner.run(answer(hub, request("a", model=str(tiny_folder))))


def test_a_folder_of_this_machine_is_answered(
    runner: asyncio.Runner, hub: Hub, tiny_folder: Path, tmp_path: Path
) -> None:
    """Without a limit on tokens, up to its context's end."""
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text()) | {"max_position_embeddings": 64}
    (folder / "config.json").write_text(json.dumps(config))
    events = runner.run(answer(hub, request("a", model=str(folder), max_tokens=None), may_be_path=True))
    ended = events[-1]
    assert isinstance(ended, Ended)
    assert ended.usage.prompt_tokens + ended.usage.completion_tokens == 64


def test_what_does_not_fit_names_both_numbers(runner: asyncio.Runner, hub: Hub) -> None:
    """Before a worker is asked."""
    with pytest.raises(ContextTooLong, match=r"has \d+ tokens and max_tokens asks for 9000 more.* holds 8192"):
        runner.run(answer(hub, request("a", max_tokens=9000)))
    with pytest.raises(ContextTooLong, match=r"has \d{4,} tokens, but the context of mlxm/tiny holds 8192"):
        runner.run(answer(hub, request("a", text="word " * 9000, max_tokens=None)))


def test_a_conversation_that_cannot_be_rendered_is_refused(runner: asyncio.Runner, hub: Hub) -> None:
    """By prep, whose error comes through."""
    asked = request("a")
    with pytest.raises(InvalidRequest):
        runner.run(answer(hub, ChatRequest(request_id="a", model=asked.model, messages=())))


@pytest.mark.parametrize(
    ("context", "max_tokens", "fits"),
    [(100, None, True), (100, 90, True), (100, 91, False), (10, None, False), (None, None, True), (None, 7, True)],
)
def test_the_room_for_an_answer(context: int | None, max_tokens: int | None, fits: bool) -> None:  # noqa: FBT001
    """At least a token, or what was asked for; where the context is not known, the worker decides."""
    model = LocalModel(name="x", folder=Path("/x"), context_length=context)
    if fits:
        _check_room(model, 10, max_tokens)
        return
    with pytest.raises(ContextTooLong, match=f"10 tokens.* holds {context}"):
        _check_room(model, 10, max_tokens)


def test_all_that_was_asked_for_reaches_the_worker() -> None:
    """Whatever has the same name on both sides."""
    asked = ChatRequest(
        request_id="a",
        model="m",
        messages=(),
        sampling=Sampling(temperature=0.5, seed=3),
        max_tokens=None,
        stop=("x",),
        stop_ids=(7,),
        num_choices=3,
        priority=0,
        num_logprobs=2,
        grammar=Grammar(kind="regex", source="a+"),
    )
    order = _order(asked, (1, 2))
    assert order.prompt_ids == (1, 2)
    shared = set(Generate.__struct_fields__) & set(ChatRequest.__struct_fields__)
    assert {name: getattr(order, name) for name in shared} == {name: getattr(asked, name) for name in shared}
    assert set(Generate.__struct_fields__) - shared == {
        *("prompt_ids", "prompt_logprobs", "scope", "kept_ids", "thoughts"),
    }


def test_logprobs_come_with_their_text() -> None:
    """As the worker found them."""
    logprobs = (TokenLogprobs(5, b"a", -0.5),)
    delta = Delta(request_id="a", choice=1, seq=0, text="a", token_ids=(5,), logprobs=logprobs)
    assert _events(delta, 1) == (TextDelta(choice=1, text="a", token_ids=(5,), logprobs=logprobs),)


def test_how_a_request_ended_is_told() -> None:
    """A fault and a cancellation are raised, each as what it is."""
    with pytest.raises(InternalError, match="oops"):
        _events(RequestEnded(request_id="a", usage=Usage(), fault=Fault.of(InternalError("oops"))), 1)
    with pytest.raises(Cancelled, match="too slow"):
        _events(RequestEnded(request_id="a", usage=Usage(), cancelled="too slow"), 1)


def test_a_cancel_from_elsewhere_ends_a_chat(runner: asyncio.Runner, hub: Hub) -> None:
    """Its reader learns why."""

    async def test() -> None:
        events = hub.chat(request("a", max_tokens=4000))
        await anext(events)
        worker = next(iter(hub._pool.slots())).worker
        assert isinstance(worker, Worker)
        worker._child.send(Cancel(request_id="a", reason="told by a test"))
        with pytest.raises(Cancelled, match="told by a test"):
            await _rest(events)

    runner.run(test())


def test_a_hub_that_is_closed_serves_nobody(tmp_path: Path) -> None:
    """What comes late is told to come again."""

    async def test() -> None:
        async with Hub(HubSettings(home=tmp_path)) as closed:
            assert closed.ready() is None
        with pytest.raises(Draining):
            await answer(closed, request("a"))

    asyncio.run(test())


def test_a_hub_whose_prep_cannot_start_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It starts all the same, and whoever keeps the log is told."""
    monkeypatch.setattr(sys, "executable", "/absent/python")
    deaths: list[MlxmError] = []

    async def test() -> None:
        async with Hub(HubSettings(home=tmp_path), deaths.append) as unready:
            assert unready.ready() == "Could not start mlxm.prep: No such file or directory."
        assert [death.message for death in deaths] == ["Could not start mlxm.prep: No such file or directory."]

    asyncio.run(test())


def test_workers_keep_what_they_compile_and_found_out_in_the_home(tmp_path: Path) -> None:
    """So that later ones need not do it again."""
    launcher = Hub(HubSettings(home=tmp_path))._pool._parts.launcher
    assert isinstance(launcher, Workers)
    options = launcher.options
    assert options.scratch == tmp_path / "cache" / "worker"
    assert options.verdicts == tmp_path / "cache" / "kv-stores"


def test_the_settings_reach_what_they_set(tmp_path: Path) -> None:
    """Each under its own name."""
    layer = {
        "prep": {"timeout_s": 7.0, "memory": 1_000_000},
        "worker": {"blas": "none", "load_timeout_s": 11.0},
    }
    settings = HubSettings.of(Settings.from_layers(tmp_path, [layer], {}))
    assert settings.home == tmp_path
    assert (settings.prep.timeout_s, settings.prep.memory_bytes) == (7.0, 1_000_000)
    assert (settings.worker.blas, settings.worker.load_timeout_s) == ("none", 11.0)


def test_the_servers_process_stays_light() -> None:
    """Models are computed elsewhere, so what computes them is not imported here."""
    heavy = ("mlx", "mlx_lm", "mlx_vlm", "transformers", "numpy", "tokenizers", "jinja2")
    program = f"import sys, mlxm.hub; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", program], check=True, capture_output=True).stdout == b"[]\n"
