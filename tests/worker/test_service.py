import json
import queue
from collections.abc import Callable

import pytest
from tokenizers import Tokenizer

from mlxm.engine.engine import Engine, EngineOptions
from mlxm.engine.output import Detokenizer
from mlxm.engine.plan import Plan
from mlxm.errors import Conflict, ContextTooLong, InvalidRequest, ModelBroken, ProtocolMismatch
from mlxm.frames import Cancel, Delta, Generate, Load, RequestEnded, RequestStarted, Shutdown, Stats, Step
from mlxm.testing.runner import Costs, IllegalPlan, ManualClock, ScriptedRunner, facts_of
from mlxm.tiny.families import FAMILIES
from mlxm.tiny.tokenizer import tokenizer_data
from mlxm.types import Usage
from mlxm.worker.orders import Orders
from mlxm.worker.service import Service

DETOKENIZER = Detokenizer(Tokenizer.from_str(json.dumps(tokenizer_data(FAMILIES["chatml"]))))
OPTIONS = EngineOptions(vocab_size=1792, context_length=1000)


class ScriptedLink:
    """A link whose frames are here already; when they are used up, it says Shutdown."""

    def __init__(self, *frames: object) -> None:
        self._frames: queue.SimpleQueue[object] = queue.SimpleQueue()
        self.sent: list[Step | Stats] = []
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

    def send(self, frame: Step | Stats) -> None:
        """Keep what the service says."""
        self.sent.append(frame)

    @property
    def steps(self) -> list[Step]:
        """All steps that were told."""
        return [frame for frame in self.sent if isinstance(frame, Step)]

    @property
    def stats(self) -> list[Stats]:
        """Every look at the engine that was told."""
        return [frame for frame in self.sent if isinstance(frame, Stats)]

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


def order(request_id: str, *, prompt: tuple[int, ...] = (5, 6), max_tokens: int = 4) -> Generate:
    """A request."""
    return Generate(request_id=request_id, prompt_ids=prompt, max_tokens=max_tokens)


def runner_that(launch: Callable[[Plan], object] = lambda _plan: None, **facts: int) -> ScriptedRunner:
    """A runner without a model; `launch` is called with every plan."""
    runner = ScriptedRunner(facts_of(**facts))  # type: ignore[arg-type]
    runner.faults.launch = launch
    return runner


def serve(link: ScriptedLink, runner: ScriptedRunner | None = None, clock: ManualClock | None = None) -> ScriptedLink:
    """Run the service until its frames are used up."""
    clock = ManualClock() if clock is None else clock
    engine = Engine(runner_that() if runner is None else runner, DETOKENIZER, OPTIONS, clock=clock)
    orders = Orders(stop_ids=frozenset({1760}), scope=b"model")
    Service(link, engine, orders, lambda stats: stats, clock=clock).run()  # type: ignore[arg-type]
    return link


def test_a_request_is_started_streamed_and_ended() -> None:
    """One frame for each step, deltas without a gap, the last with the terminal event."""
    link = serve(ScriptedLink(order("a")))
    kinds = [[type(event) for event in step.events] for step in link.steps]
    assert kinds == [[RequestStarted], [Delta], [Delta], [Delta], [Delta, RequestEnded]]
    deltas = [event for event in link.events("a") if isinstance(event, Delta)]
    assert [delta.seq for delta in deltas] == [0, 1, 2, 3]
    tokens = [token_id for delta in deltas for token_id in delta.token_ids]
    assert DETOKENIZER.decode(tokens) == "".join(delta.text for delta in deltas)
    assert [delta.finish_reason for delta in deltas] == [None, None, None, "length"]
    assert link.end("a").usage == Usage(prompt_tokens=2, completion_tokens=4)


def test_requests_run_side_by_side() -> None:
    """One frame tells of all of them; whoever comes while they run joins them."""
    link = ScriptedLink(order("a"), order("b"))
    later = [order("c")]

    def arrive(_plan: Plan) -> None:
        if later:
            link.arrive(later.pop())

    serve(link, runner_that(arrive))
    started = [[event.request_id for event in step.events if isinstance(event, RequestStarted)] for step in link.steps]
    assert started[:2] == [["a", "b"], ["c"]]
    assert [len(step.events) for step in link.steps[2:4]] == [3, 3]
    assert all(link.end(name).fault is None for name in "abc")


def test_a_queued_request_can_be_cancelled() -> None:
    """It ends without having started; cancelling it again, or one that nobody knows, does nothing."""
    cancel = Cancel(request_id="b", reason="changed my mind")
    frames = (order("a"), order("b"), cancel, cancel, Cancel(request_id="?", reason=""), order("c"))
    link = serve(ScriptedLink(*frames))
    assert [RequestEnded(request_id="b", usage=Usage(), cancelled="changed my mind")] == link.events("b")
    assert link.end("a").cancelled is None
    assert link.end("c").cancelled is None


@pytest.mark.parametrize("num_tokens", [0, 2])
def test_a_running_request_can_be_cancelled(num_tokens: int) -> None:
    """In prefill or in decode; what was made until then counts, and the others go on."""
    link = ScriptedLink(order("a", max_tokens=100), order("b"))

    def interrupt(plan: Plan) -> None:
        if sum(row.sequence == 1 and row.position == num_tokens for row in plan.rows) or not (plan.rows or num_tokens):
            link.arrive(Cancel(request_id="a", reason="enough"))

    serve(link, runner_that(interrupt))
    assert (link.end("a").cancelled, link.end("a").usage.completion_tokens) == ("enough", num_tokens)
    assert link.end("b").usage.completion_tokens == 4
    assert link.stats[-1].blocks_used == 0


def test_a_cancel_that_comes_with_the_last_token_is_too_late() -> None:
    """The answer is complete, and says so."""
    link = ScriptedLink(order("a", max_tokens=1))

    def interrupt(plan: Plan) -> None:
        if plan.rows:
            link.arrive(Cancel(request_id="a", reason="too late"))

    serve(link, runner_that(interrupt))
    assert link.end("a") == RequestEnded(request_id="a", usage=Usage(prompt_tokens=2, completion_tokens=1))


def test_one_failure_ends_one_request(capfd: pytest.CaptureFixture[str]) -> None:
    """The traceback goes to the log; the client is not shown what the error quotes."""

    def fail(plan: Plan) -> None:
        if any(99 in chunk.tokens for chunk in plan.chunks):
            raise LookupError("the secret of the prompt")

    link = serve(ScriptedLink(order("a"), order("bad", prompt=(99, 6)), order("b")), runner_that(fail))
    fault = link.end("bad").fault
    assert fault is not None
    assert (fault.code, fault.message) == ("internal_error", "The engine failed on this request (LookupError).")
    assert "LookupError: the secret of the prompt" in capfd.readouterr().err
    assert link.end("a").fault is None
    assert link.end("b").fault is None


def test_what_no_request_can_be_blamed_for_ends_the_process() -> None:
    """The supervisor knows what to do then."""

    def fail(_plan: Plan) -> None:
        raise IllegalPlan

    with pytest.raises(IllegalPlan):
        serve(ScriptedLink(order("a")), runner_that(fail))


@pytest.mark.parametrize(
    ("request_", "kind"),
    [
        (order("a", prompt=()), InvalidRequest),
        (order("a", max_tokens=0), InvalidRequest),
        (order("a", max_tokens=1000), ContextTooLong),
        (order("a", prompt=(5, 1792)), ModelBroken),
        (order("a", prompt=(-1, 5)), ModelBroken),
    ],
)
def test_what_would_harm_the_device_is_refused(request_: Generate, kind: type[Exception]) -> None:
    """Before a step is made."""
    runner = runner_that()
    fault = serve(ScriptedLink(request_), runner).end("a").fault
    assert fault is not None
    assert type(fault.error()) is kind
    assert runner.tally.num_launched == 0


def test_an_id_in_use_is_refused() -> None:
    """The request that has it goes on."""
    link = serve(ScriptedLink(order("a"), order("a")))
    refusal, end = [event for event in link.events("a") if isinstance(event, RequestEnded)]
    assert refusal.fault is not None
    assert isinstance(refusal.fault.error(), Conflict)
    assert end.usage.completion_tokens == 4


def test_leaving_ends_every_request() -> None:
    """Those that run and those that wait get their terminal event."""
    link = ScriptedLink(order("a", max_tokens=100), order("b"), order("c"))

    def leave(plan: Plan) -> None:
        if plan.rows:
            link.arrive(Shutdown())

    serve(link, runner_that(leave, max_rows=2))
    assert [link.end(name).cancelled for name in "abc"] == ["the worker was told to leave"] * 3
    assert [link.end(name).usage.completion_tokens for name in "abc"] == [1, 1, 0]


def test_a_second_model_is_not_taken() -> None:
    """A worker has one."""
    with pytest.raises(ProtocolMismatch, match="does not take Load"):
        serve(ScriptedLink(Load(path="/x")))


def test_it_says_how_it_is_doing() -> None:
    """At rest, and twice a second while it works."""
    clock = ManualClock()
    runner = ScriptedRunner(facts_of(), costs=Costs(rows_s=0.05), clock=clock)
    link = serve(ScriptedLink(order("a", max_tokens=101)), runner, clock)
    first, *working, last = link.stats
    assert (first.running, last.running) == (0, 0)
    assert [stats.running for stats in working] == [1] * len(working)
    assert len(working) in (9, 10)
    assert working[-1].blocks_used == 4
    assert last.step_s == pytest.approx(0.05)
    assert (last.blocks_used, last.blocks_cached + last.blocks_free) == (0, last.blocks_total)
