from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from mlxm.engine.blocks import Chain
from mlxm.engine.queue import WaitingQueue
from mlxm.engine.sequence import Sequence

HIGH, NORMAL, LOW = 0, 1, 2


def sequence(number: int, *, priority: int = NORMAL, arrival_s: float = 0.0) -> Sequence:
    """Somebody who waits."""
    return Sequence(
        id=number,
        prompt_length=1,
        max_tokens=1,
        tokens=[1],
        chain=Chain(b""),
        arrival_s=arrival_s,
        priority=priority,
    )


def drained(queue: WaitingQueue) -> list[int]:
    """Everybody in the order of their turns."""
    return [queue.pop().id for _ in range(len(queue))]


def filled(*sequences: Sequence) -> WaitingQueue:
    """A queue of these."""
    queue = WaitingQueue()
    for one in sequences:
        queue.push(one)
    return queue


@given(st.lists(st.sampled_from([HIGH, NORMAL, LOW]), max_size=30))
def test_priority_first_then_order_of_arrival(priorities: list[int]) -> None:
    """Among those who came together."""
    queue = filled(*(sequence(number, priority=priority) for number, priority in enumerate(priorities)))
    assert sorted(range(len(priorities)), key=lambda number: (priorities[number], number)) == drained(queue)


def test_low_becomes_normal_after_ten_seconds_and_high_after_twenty() -> None:
    """From then on it goes before those of that priority who come."""
    for arrival_s in (0.0, 12_345.0):
        for priority, waited_s in ((NORMAL, 10.0), (HIGH, 20.0)):
            for late_s, order in ((-0.01, [2, 1]), (0.0, [1, 2]), (0.01, [1, 2])):
                newcomer = sequence(2, priority=priority, arrival_s=arrival_s + waited_s + late_s)
                assert drained(filled(sequence(1, priority=LOW, arrival_s=arrival_s), newcomer)) == order


def test_who_comes_again_keeps_its_arrival() -> None:
    """Its place is that of its first coming."""
    queue = filled(*(sequence(number, arrival_s=number) for number in range(4)))
    first = queue.pop()
    queue.push(sequence(9, arrival_s=9))
    queue.push(first)
    assert drained(queue) == [0, 1, 2, 3, 9]


def test_nobody_starves_under_constant_load() -> None:
    """With one more of high priority every second and one turn a second, a low one waits some 20 s."""
    queue = filled(sequence(0, priority=LOW))
    served_s = None
    for now_s in range(60):
        queue.push(sequence(1 + now_s, priority=HIGH, arrival_s=float(now_s)))
        if queue.pop().id == 0:
            served_s = now_s
            break
    assert served_s == 20


@given(st.data())
def test_removed_sequences_are_not_served(data: st.DataObject) -> None:
    """Wherever they stand; and who was removed may come again."""
    queue = WaitingQueue()
    waiting: dict[int, Sequence] = {}
    for number in range(data.draw(st.integers(1, 40))):
        if waiting and data.draw(st.booleans()):
            queue.remove(waiting.pop(data.draw(st.sampled_from(sorted(waiting)))))
        one = sequence(data.draw(st.sampled_from([number, 1000])), priority=data.draw(st.integers(0, 2)))
        if one.id not in waiting:
            waiting[one.id] = one
            queue.push(one)
        assert len(queue) == len(waiting)
        if waiting:
            assert waiting[queue.first().id] is queue.first()
    expected = [one.id for one in sorted(waiting.values(), key=lambda one: (one.priority, one.id))]
    assert expected == drained(queue)


def test_removed_sequences_do_not_pile_up() -> None:
    """However many are cancelled behind one that stays."""
    queue = filled(sequence(0, priority=HIGH))
    random_ = random.Random(0)
    for number in range(1, 2_000):
        one = sequence(number, arrival_s=random_.random())
        queue.push(one)
        queue.remove(one)
    assert len(queue._heap) <= 4
    assert drained(queue) == [0]
