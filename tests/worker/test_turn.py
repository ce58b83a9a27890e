from mlxm.engine.engine import Engine
from mlxm.engine.plan import Plan
from mlxm.frames import PrefillAsked, PrefillGivenBack, PrefillTurn, Shrink
from mlxm.testing.runner import ManualClock, ScriptedRunner, facts_of
from mlxm.worker.orders import Orders
from mlxm.worker.service import Service
from mlxm.worker.turn import TURNLESS_TOKENS
from tests.worker.test_service import DETOKENIZER, OPTIONS, ScriptedLink, order

LONG = tuple(range(5, 905))


def serve(link: ScriptedLink, runner: ScriptedRunner) -> list[int]:
    """Run the service until its frames are used up; the prompt tokens of each step."""
    engine = Engine(runner, DETOKENIZER, OPTIONS, clock=ManualClock())
    orders = Orders(stop_ids=frozenset({1760}), scope=b"model")
    Service(link, engine, orders, lambda stats: stats).run()  # type: ignore[arg-type]
    return [sum(len(chunk.tokens) for chunk in plan.chunks) for plan in runner.plans]


def said(link: ScriptedLink) -> list[str]:
    """What the worker said about turns."""
    return [type(frame).__name__ for frame in link.sent if isinstance(frame, PrefillAsked | PrefillGivenBack)]


def test_with_the_turn_a_prompt_goes_in_large_chunks() -> None:
    """And nothing is asked; that is how one model alone works."""
    link = ScriptedLink(PrefillTurn(has_it=True), order("a", prompt=LONG, max_tokens=1))
    chunks = serve(link, ScriptedRunner(facts_of()))
    assert chunks == [512, len(LONG) - 1 - 512, 0]
    assert said(link) == []


def test_without_the_turn_it_goes_on_in_small_ones() -> None:
    """The turn is asked for once; a short prompt needs none."""
    link = ScriptedLink(order("a", prompt=LONG, max_tokens=1))
    chunks = serve(link, ScriptedRunner(facts_of()))
    assert max(chunks) == TURNLESS_TOKENS
    assert sum(chunks) == len(LONG) - 1
    assert said(link) == ["PrefillAsked"]
    assert said_of_short() == []


def said_of_short() -> list[str]:
    """What a worker says that has a short prompt."""
    link = ScriptedLink(order("a", prompt=LONG[:TURNLESS_TOKENS], max_tokens=1))
    serve(link, ScriptedRunner(facts_of()))
    return said(link)


def test_the_turn_is_given_back_after_a_large_chunk_and_asked_for_again() -> None:
    """Also when it is wanted back as soon as it comes: no worker gets it for nothing."""
    link = ScriptedLink(order("a", prompt=LONG, max_tokens=1))
    runner = ScriptedRunner(facts_of())

    def pass_on(_plan: Plan) -> None:
        if len(runner.plans) in (2, 5):
            link.arrive(PrefillTurn(has_it=True))
            link.arrive(PrefillTurn(has_it=False))

    runner.faults.launch = pass_on
    chunks = serve(link, runner)
    small = TURNLESS_TOKENS
    assert chunks[:4] == [small, small, 512, small]
    assert sum(chunks) == len(LONG) - 1
    assert said(link) == ["PrefillAsked", "PrefillGivenBack", "PrefillAsked", "PrefillGivenBack"]


def test_a_worker_at_rest_gives_the_turn_back_at_once() -> None:
    """Whoever waits for it need not wait for the next request."""
    link = ScriptedLink(PrefillTurn(has_it=True), PrefillTurn(has_it=False))
    serve(link, ScriptedRunner(facts_of()))
    assert said(link) == ["PrefillGivenBack"]


def test_a_worker_that_shrinks_says_what_it_holds_then() -> None:
    """The device is told to let go first."""
    told: list[str] = []
    link = ScriptedLink(Shrink())
    engine = Engine(ScriptedRunner(facts_of()), DETOKENIZER, OPTIONS, clock=ManualClock())
    orders = Orders(stop_ids=frozenset(), scope=b"")
    num_before = len(link.stats)
    Service(link, engine, orders, lambda stats: stats, shrink=lambda: told.append("shrunk")).run()  # type: ignore[arg-type]
    assert told == ["shrunk"]
    assert len(link.stats) > num_before
