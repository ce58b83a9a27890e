"""A runner that fails at any stage of a step in which one sequence takes part."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import mlx.core as mx

from mlxm.device.sampler import Sampled, Sampler
from mlxm.engine.plan import Outcome, Plan, Row, Runner, RunnerFacts

Stage = Literal["launch", "half", "sample", "collect"]


class Trap:
    """Springs while it is set."""

    def __init__(self) -> None:
        self.is_set = False

    def spring(self) -> None:
        """Raise, if it is set."""
        if self.is_set:
            self.is_set = False
            raise OSError("a planted failure")


class TrappedLayer:
    """A layer of a model that may fail, when the layers before it have written their keys already."""

    def __init__(self, layer: Any, trap: Trap) -> None:
        self._layer = layer
        self._trap = trap

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layer, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the layer gives, or a failure."""
        self._trap.spring()
        return self._layer(*args, **kwargs)


class TrappedSampler(Sampler):
    """A sampler that may fail, when the whole forward has been ordered."""

    def __init__(self, trap: Trap) -> None:
        super().__init__()
        self._trap = trap

    def __call__(self, logits: mx.array, rows: Sequence[Row]) -> Sampled:
        """Tokens, or a failure."""
        self._trap.spring()
        return super().__call__(logits, rows)


class FailingRunner:
    """Fails in every step in which a sequence comes to a position; counts what it does."""

    def __init__(self, runner: Runner, traps: dict[Stage, Trap]) -> None:
        self._runner = runner
        self._traps = traps
        self._num_launched = 0
        self._doomed: list[bool] = []
        self.culprit: tuple[Stage, int, int] | None = None
        """Stage, sequence and position."""
        self.num_failures = 0
        self.num_copies = 0

    @property
    def facts(self) -> RunnerFacts:
        """Those of the runner."""
        return self._runner.facts

    def launch(self, plan: Plan) -> None:
        """Start a step, or fail before it, in its middle, or at its end."""
        self.num_copies += len(plan.copies)
        stage = self._stage_of(plan)
        self.num_failures += stage is not None
        if stage == "launch":
            raise OSError("a planted failure")
        if stage in self._traps:
            self._traps[stage].is_set = True
        self._runner.launch(plan)
        for trap in self._traps.values():
            trap.is_set = False  # a step without rows samples nothing
        self._doomed.append(stage == "collect")

    def collect(self) -> Outcome:
        """Wait for a step, and lose it together with all that were launched."""
        if self._doomed.pop(0):
            for _ in range(len(self._doomed) + 1):
                self._runner.collect()
            self._doomed.clear()
            raise OSError("a planted failure")
        return self._runner.collect()

    def forget(self, sequence: int) -> None:
        """As the runner does."""
        self._runner.forget(sequence)

    def _stage_of(self, plan: Plan) -> Stage | None:
        if self.culprit is None:
            return None
        stage, sequence, position = self.culprit
        rows = any(row.sequence == sequence and row.position >= position for row in plan.rows)
        chunks = any(each.sequence == sequence and each.start + len(each.tokens) > position for each in plan.chunks)
        return stage if rows or chunks else None


@contextmanager
def trapped(model: Any, trap: Trap) -> Iterator[None]:
    """Put a trap before the model's second layer."""
    layers = next(part["layers"] for part in model.modules() if isinstance(part.get("layers"), list))
    own = layers[1]
    layers[1] = TrappedLayer(own, trap)
    try:
        yield
    finally:
        layers[1] = own


@contextmanager
def poisoned(model: Any, token: int) -> Iterator[None]:
    """Let the embedding of a token be no number."""
    embedding = next(part["embed_tokens"] for part in model.modules() if "embed_tokens" in part)
    kept = embedding.weight
    embedding.weight = mx.where(mx.arange(kept.shape[0])[:, None] == token, mx.nan, kept)
    try:
        yield
    finally:
        embedding.weight = kept
