import json
import queue
from collections.abc import Callable, Generator

import msgspec
import pytest
from tokenizers import Tokenizer

from mlxm.engine.output import Detokenizer
from mlxm.errors import InvalidRequest, ModelBroken, ProtocolMismatch
from mlxm.frames import Cancel, Delta, Generate, Load, RequestEnded, RequestStarted, Shutdown, Step
from mlxm.tiny.families import FAMILIES
from mlxm.tiny.tokenizer import tokenizer_data
from mlxm.types import Usage
from mlxm.worker.service import Service

DETOKENIZER = Detokenizer(Tokenizer.from_str(json.dumps(tokenizer_data(FAMILIES["chatml"]))))
WORDS = (300, 301, 302, 303)


class ScriptedLink:
    """A link whose frames are here already; when they are used up, it says Shutdown."""

    def __init__(self, *frames: object) -> None:
        self._frames: queue.SimpleQueue[object] = queue.SimpleQueue()
        self.steps: list[Step] = []
        for frame in frames:
            self.arrive(frame)

    def arrive(self, frame: object) -> None:
        """Let a frame come in."""
        self._frames.put(frame)

    def receive(self) -> object:
        """The next frame, or Shutdown."""
        frame = self.poll()
        return Shutdown() if frame is None else frame

    def poll(self) -> object | None:
        """The next frame, if any."""
        return None if self._frames.empty() else self._frames.get()

    def send(self, frame: Step) -> None:
        """Keep what the service says."""
        self.steps.append(frame)

    def events(self, request_id: str) -> list[object]:
        """All that was said about a request."""
        return [event for step in self.steps for event in step.events if event.request_id == request_id]

    def end(self, request_id: str) -> RequestEnded:
        """The one terminal event, which is the last one."""
        events = self.events(request_id)
        assert [isinstance(event, RequestEnded) for event in events] == [False] * (len(events) - 1) + [True]
        end = events[-1]
        assert isinstance(end, RequestEnded)
        return end


class FakeModel(msgspec.Struct, frozen=True):
    """What the service asks of a model."""

    detokenizer: Detokenizer = DETOKENIZER
    stop_ids: frozenset[int] = frozenset({1760})
    vocab_size: int = 1792


def order(request_id: str, *, prompt: tuple[int, ...] = (5, 6), max_tokens: int = 4) -> Generate:
    """A request."""
    return Generate(request_id=request_id, prompt_ids=prompt, max_tokens=max_tokens)


def words(_request: Generate) -> Generator[int | None]:
    """A piece of prefill, then words without end."""
    yield None
    while True:
        yield from WORDS


def serve(link: ScriptedLink, steps: Callable[[Generate], Generator[int | None]] = words) -> ScriptedLink:
    """Run the service until its frames are used up."""
    Service(link, FakeModel(), steps).run()  # type: ignore[arg-type]
    return link


def test_a_request_is_started_streamed_and_ended() -> None:
    """One frame for each step, deltas without a gap, the last with the terminal event."""
    link = serve(ScriptedLink(order("a")))
    kinds = [[type(event) for event in step.events] for step in link.steps]
    assert kinds == [[RequestStarted], [Delta], [Delta], [Delta], [Delta, RequestEnded]]
    deltas = [event for event in link.events("a") if isinstance(event, Delta)]
    assert [delta.seq for delta in deltas] == [0, 1, 2, 3]
    assert tuple(token_id for delta in deltas for token_id in delta.token_ids) == WORDS
    assert DETOKENIZER.decode(list(WORDS)) == "".join(delta.text for delta in deltas)
    assert [delta.finish_reason for delta in deltas] == [None, None, None, "length"]
    assert link.end("a").usage == Usage(prompt_tokens=2, completion_tokens=4)


def test_requests_run_in_the_order_they_came() -> None:
    """One at a time."""
    link = serve(ScriptedLink(order("a"), order("b"), order("c")))
    started = [event.request_id for step in link.steps for event in step.events if isinstance(event, RequestStarted)]
    assert started == ["a", "b", "c"]
    assert all(link.end(name).fault is None for name in "abc")


def test_a_queued_request_can_be_cancelled() -> None:
    """It ends without having started; cancelling it again, or one that nobody knows, does nothing."""
    cancel = Cancel(request_id="b", reason="changed my mind")
    link = serve(ScriptedLink(order("a"), order("b"), cancel, cancel, Cancel(request_id="?", reason=""), order("c")))
    assert [RequestEnded(request_id="b", usage=Usage(), cancelled="changed my mind")] == link.events("b")
    assert link.end("a").cancelled is None
    assert link.end("c").cancelled is None


@pytest.mark.parametrize("num_tokens", [0, 2])
def test_a_running_request_can_be_cancelled(num_tokens: int) -> None:
    """In prefill or in decode; what was made until then counts, and the next request runs."""
    link = ScriptedLink(order("a", max_tokens=100), order("b"))
    closed = []

    def interrupted(request: Generate) -> Generator[int | None]:
        try:
            for place, token_id in enumerate(words(request)):
                if place == num_tokens and request.request_id == "a":
                    link.arrive(Cancel(request_id="a", reason="enough"))
                yield token_id
        finally:
            closed.append(request.request_id)

    serve(link, interrupted)
    assert (link.end("a").cancelled, link.end("a").usage.completion_tokens) == ("enough", num_tokens)
    assert link.end("b").usage.completion_tokens == 4
    assert closed == ["a", "b"]


def test_a_cancel_that_comes_with_the_last_token_is_too_late() -> None:
    """The answer is complete, and says so."""
    link = ScriptedLink(order("a", max_tokens=1))

    def steps(_request: Generate) -> Generator[int | None]:
        link.arrive(Cancel(request_id="a", reason="too late"))
        yield WORDS[0]

    serve(link, steps)
    assert link.end("a") == RequestEnded(request_id="a", usage=Usage(prompt_tokens=2, completion_tokens=1))


def test_one_failure_ends_one_request(capfd: pytest.CaptureFixture[str]) -> None:
    """The traceback goes to the log; the client is not shown what the error quotes."""

    def steps(request: Generate) -> Generator[int | None]:
        if request.request_id == "bad":
            yield WORDS[0]
            raise LookupError("the secret of the prompt")
        yield from words(request)

    link = serve(ScriptedLink(order("a"), order("bad"), order("b")), steps)
    fault = link.end("bad").fault
    assert fault is not None
    assert (fault.code, fault.message) == ("internal_error", "The engine failed on this request (LookupError).")
    assert link.end("bad").usage.completion_tokens == 1
    assert "LookupError: the secret of the prompt" in capfd.readouterr().err
    assert link.end("a").fault is None
    assert link.end("b").fault is None


def test_an_engine_that_stops_early_is_at_fault() -> None:
    """An answer is never cut without a reason."""
    fault = serve(ScriptedLink(order("a")), lambda _: (token_id for token_id in WORDS[:2])).end("a").fault
    assert fault is not None
    assert "before the answer was complete" in fault.message


@pytest.mark.parametrize(
    ("request_", "kind"),
    [
        (order("a", prompt=()), InvalidRequest),
        (order("a", max_tokens=0), InvalidRequest),
        (order("a", prompt=(5, 1792)), ModelBroken),
        (order("a", prompt=(-1, 5)), ModelBroken),
    ],
)
def test_what_would_harm_the_device_is_refused(request_: Generate, kind: type[Exception]) -> None:
    """Before a step is made."""

    def never(_request: Generate) -> Generator[int | None]:
        raise AssertionError

    fault = serve(ScriptedLink(request_), never).end("a").fault
    assert fault is not None
    assert type(fault.error()) is kind


def test_leaving_ends_every_request() -> None:
    """Those that run and those that wait get their terminal event."""
    link = ScriptedLink(order("a", max_tokens=100), order("b"))

    def leaving(request: Generate) -> Generator[int | None]:
        link.arrive(Shutdown())
        yield from words(request)

    serve(link, leaving)
    assert link.end("a").cancelled == "the worker was told to leave"
    assert link.end("b").cancelled == "the worker was told to leave"


def test_a_second_model_is_not_taken() -> None:
    """A worker has one."""
    with pytest.raises(ProtocolMismatch, match="does not take Load"):
        serve(ScriptedLink(Load(path="/x")))
