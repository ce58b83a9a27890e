from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from mlxm.pool.turns import Turns

WORKERS = ("a", "b", "c")


def told() -> tuple[Turns[str], list[tuple[str, bool]]]:
    """Turns, and what is said to workers."""
    said: list[tuple[str, bool]] = []
    return Turns(lambda worker, has_it: said.append((worker, has_it))), said


def test_one_alone_is_asked_for_nothing() -> None:
    """It has the turn at once, and for good."""
    turns, said = told()
    turns.ask("a")
    turns.ask("a")
    assert said == [("a", True)]


def test_who_asks_gets_it_in_order() -> None:
    """The holder is told once that others want it; who comes back waits behind them."""
    turns, said = told()
    for worker in ("a", "b", "c", "b"):
        turns.ask(worker)
    assert said == [("a", True), ("a", False)]
    turns.give_back("a")
    turns.ask("a")
    assert said[2:] == [("b", True), ("b", False)]
    turns.give_back("b")
    turns.give_back("c")
    turns.give_back("nobody")
    assert said[4:] == [("c", True), ("c", False), ("a", True)]


class TurnsMachine(RuleBasedStateMachine):
    """Workers ask, give back when they are told to, and die."""

    def __init__(self) -> None:
        super().__init__()
        self.holders: set[str] = set()
        self.asking: list[str] = []
        self.turns: Turns[str] = Turns(self.tell)

    def tell(self, worker: str, has_it: bool) -> None:  # noqa: FBT001
        """A worker hears."""
        if has_it:
            self.holders.add(worker)
            assert self.asking.pop(0) == worker
        else:
            assert worker in self.holders

    @rule(worker=st.sampled_from(WORKERS))
    def ask(self, worker: str) -> None:
        """A long prompt comes."""
        if worker not in self.holders and worker not in self.asking:
            self.asking.append(worker)
        self.turns.ask(worker)

    @rule(worker=st.sampled_from(WORKERS))
    def leave(self, worker: str) -> None:
        """It gives back, or is gone."""
        self.holders.discard(worker)
        if worker in self.asking:
            self.asking.remove(worker)
        self.turns.give_back(worker)

    @invariant()
    def one_has_it_while_anybody_wants_it(self) -> None:
        """Never two, and never none while somebody waits."""
        assert len(self.holders) <= 1
        assert not self.asking or self.holders


TurnsMachine.TestCase.settings = settings(max_examples=50, stateful_step_count=20, deadline=None)
TestTurns = TurnsMachine.TestCase
