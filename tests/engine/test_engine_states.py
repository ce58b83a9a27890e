from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mlxm.engine.pace import PaceOptions
from mlxm.engine.plan import BLOCK_TOKENS, Chunk, Plan, Row
from mlxm.engine.request import Order
from mlxm.engine.scheduler import SchedulerOptions
from mlxm.errors import BY_CODE, ContextTooLong
from mlxm.frames import Delta
from tests.engine.harness import Harness, character, prompt_of, scripted

BOOM = "what the prompt said"
STAGES = ("launch", "collect", "row", "chunk")


class Guilt:
    """Makes every step fail in which a guilty sequence has come to its place."""

    def __init__(self, harness: Harness) -> None:
        self.guilty: dict[int, tuple[str, int]] = {}
        self.transient = ""
        faults = harness.runner.faults
        faults.launch = lambda plan: self._raise("launch", plan)
        faults.collect = lambda plan: self._raise("collect", plan)
        faults.row = lambda row: self._is_guilty("row", row)
        faults.chunk = lambda chunk: self._is_guilty("chunk", chunk)

    def _raise(self, stage: str, plan: Plan) -> None:
        if self.transient == stage:
            self.transient = ""
            raise ValueError(BOOM)
        if any(self._is_guilty(stage, work) for work in (*plan.rows, *plan.chunks)):
            raise ValueError(BOOM)

    def _is_guilty(self, stage: str, work: Row | Chunk) -> bool:
        guilty_stage, place = self.guilty.get(work.sequence, ("", 0))
        end = work.position + 1 if isinstance(work, Row) else work.start + len(work.tokens)
        return guilty_stage == stage and end > place


def expected(order: Order, max_tokens: int, choice: int) -> tuple[int, ...]:
    """The tokens of a whole answer, its stop included."""
    tokens = scripted(order.prompt_ids, max_tokens, choice=choice)
    for place, token_id in enumerate(tokens, 1):
        text = "".join(map(character, tokens[:place]))
        if token_id in order.stop_ids or any(stop in text for stop in order.stop):
            return tokens[:place]
    return tokens


class EngineStates(RuleBasedStateMachine):
    """Requests come, fork, fail and are cancelled in any order, in pools that are too small."""

    harness: Harness | None = None

    @initialize(
        runs_ahead=st.booleans(),
        shares_prefixes=st.booleans(),
        num_blocks=st.integers(5, 24),
        max_rows=st.integers(1, 5),
        max_chunk_tokens=st.integers(16, 80),
        expected_tokens=st.sampled_from([0, 0, 256]),
    )
    def begin(self, max_chunk_tokens: int, expected_tokens: int, **facts: Any) -> None:
        """Start an engine."""
        pace = PaceOptions(max_chunk_tokens=max_chunk_tokens, min_chunk_tokens=8)
        self.harness = Harness(options=SchedulerOptions(pace=pace, expected_tokens=expected_tokens), **facts)
        self.guilt = Guilt(self.harness)
        self.orders: dict[str, Order] = {}
        self.may_fail: set[str] = set()
        self.is_disturbed = False

    @rule(
        num_prompt=st.integers(1, 150),
        family=st.integers(0, 2),
        own=st.integers(0, 40),
        max_tokens=st.integers(1, 45),
        num_choices=st.sampled_from([1, 1, 1, 2, 3]),
        priority=st.integers(0, 2),
        stop=st.sampled_from([(), (), ("a",), (character(200) + character(3),)]),
        stop_ids=st.sampled_from([frozenset(), frozenset(), frozenset(range(0, 256, 9))]),
        scope=st.sampled_from([b"", b"", b"another"]),
    )
    def add(self, num_prompt: int, family: int, own: int, max_tokens: int, **order: Any) -> None:
        """Order something, often with the beginning of another prompt."""
        name = f"r{len(self.orders)}"
        prompt = (*prompt_of(num_prompt, family), *prompt_of(own, len(self.orders) + 10))
        self.orders[name] = Order(request_id=name, prompt_ids=prompt, max_tokens=max_tokens, **order)
        self.harness.clock.now_s += 0.5
        self.harness.events += self.harness.engine.add(self.orders[name])

    @rule(num_steps=st.integers(1, 12))
    def step(self, num_steps: int) -> None:
        """Go on."""
        self.harness.step(num_steps)

    @precondition(lambda self: self.orders)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        """Take an order back, perhaps one that has ended."""
        self.harness.cancel(data.draw(st.sampled_from(sorted(self.orders))))

    @precondition(lambda self: self.harness.engine._requests)
    @rule(data=st.data(), stage=st.sampled_from(STAGES), place=st.integers(0, 200))
    def corrupt(self, data: st.DataObject, stage: str, place: int) -> None:
        """Let one sequence make every step fail from some position on."""
        name = data.draw(st.sampled_from(sorted(self.harness.engine._requests)))
        sequence = data.draw(st.sampled_from(self.harness.engine._requests[name].sequences))
        self.guilt.guilty[sequence.id] = (stage, place)
        self.may_fail.add(name)

    @rule(stage=st.sampled_from(("launch", "collect")))
    def disturb(self, stage: str) -> None:
        """Let one step fail by nobody's fault; only a sequence that was alone in it may have to pay."""
        self.guilt.transient = stage
        self.is_disturbed = True

    @invariant()
    def pool_is_sound(self) -> None:
        """Blocks have the owners that they should have, and those who are over hold none."""
        if self.harness is not None:
            self.harness.check_pool()

    def teardown(self) -> None:
        """All that was ordered ends once, as it would have alone, and gives everything back."""
        if self.harness is None:
            return
        self.harness.run(20_000)
        self.harness.check_idle()
        for name, order in self.orders.items():
            self._check(name, order)

    def _check(self, name: str, order: Order) -> None:
        harness = self.harness
        end = harness.end(name)
        if len(order.prompt_ids) + order.max_tokens - 1 > harness.pool.num_total * BLOCK_TOKENS:
            assert end.fault is not None
            assert BY_CODE[end.fault.code] is ContextTooLong
            return
        is_whole = end.fault is None and end.cancelled is None
        for choice in range(order.num_choices):
            tokens = harness.tokens(name, choice)
            whole = expected(order, order.max_tokens, choice)
            assert (whole if is_whole else whole[: len(tokens)]) == tokens
        deltas = [event for event in harness.of(name) if isinstance(event, Delta)]
        assert [delta.seq for delta in deltas] == list(range(len(deltas)))
        assert end.usage.completion_tokens == len(deltas)
        assert end.usage.cached_tokens < len(order.prompt_ids)
        if end.fault is not None:
            assert name in self.may_fail or self.is_disturbed
            assert BOOM not in end.fault.message


TestEngineStates = EngineStates.TestCase
TestEngineStates.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
