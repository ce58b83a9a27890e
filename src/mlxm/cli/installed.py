"""A model of this machine as the commands show it: its row, its words, and its JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from mlxm.catalog.characteristics import Answer, Characteristics, Kind, Quantisation
from mlxm.catalog.local import LocalModel
from mlxm.catalog.memory import MemoryEstimate, estimate, estimate_by_name, fits, largest_context
from mlxm.cli.figures import UNKNOWN, show_age, show_bytes, show_tokens
from mlxm.cli.machine import Machine
from mlxm.shelf import Shelf

USUAL_CONTEXT = 8192
"""Whether a model fits is judged at this context: most would not fit at their own limit, and few need it."""

TASKS: dict[Kind, str] = {
    "text": "chat",
    "vision": "vision",
    "embedding": "embed",
    "reranker": "rerank",
    "audio": "audio",
    "unknown": UNKNOWN,
}
_DTYPES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
HEADERS = ("MODEL", "TASK", "QUANT", "SIZE", "CTX", "FITS", "STATE", "USED")
EXPENDABLE = ("USED", "CTX", "TASK", "STATE")


@dataclass(frozen=True, slots=True)
class Installed:
    """A model on disk, and whether this machine has the memory for it."""

    model: LocalModel
    memory: MemoryEstimate | None
    fits: Answer
    age_s: float | None = None
    """How long ago it was used; None when it never was."""
    is_being_fetched: bool = False

    @classmethod
    def of(cls, model: LocalModel, machine: Machine, *, is_being_fetched: bool = False) -> Installed:
        """Judge a model at the usual context."""
        memory = estimate_at(model, usual_context(model.characteristics))
        age_s = None if model.last_used is None else machine.now - model.last_used
        return cls(model, memory, judge(memory, machine), age_s, is_being_fetched)

    @property
    def task(self) -> str:
        """What the model is for."""
        return task_of(self.model.characteristics)

    @property
    def quantisation(self) -> str:
        """How the weights are packed."""
        found = self.model.characteristics
        return UNKNOWN if found is None else show_quantisation(found.quantisation, found.dtype)

    @property
    def context_length(self) -> int | None:
        """How many tokens the model can see."""
        return None if self.model.characteristics is None else self.model.characteristics.context_length

    @property
    def parameters(self) -> int | None:
        """How many numbers it was trained to."""
        return None if self.model.characteristics is None else self.model.characteristics.parameters

    @property
    def family(self) -> str:
        """Whose relative it is."""
        return UNKNOWN if self.model.characteristics is None else self.model.characteristics.family

    @property
    def tool_use(self) -> Answer:
        """Whether it calls tools."""
        return UNKNOWN if self.model.characteristics is None else self.model.characteristics.tool_use.answer

    @property
    def state(self) -> str:
        """Whether it can be run, in a word or two."""
        if self.is_being_fetched:
            return "fetching"
        if self.model.state != "ready":
            return self.model.state
        if not self.model.runnable:
            return "unsupported"
        return "built in" if self.model.source == "builtin" else "on disk"

    @property
    def used(self) -> str:
        """When it was last read."""
        return "never" if self.age_s is None else show_age(self.age_s)

    def largest_context(self, machine: Machine) -> int | None:
        """The longest context that this machine has the memory for; None when that cannot be said."""
        known = self.model.characteristics
        return None if known is None else largest_context(known, machine.budget_bytes, self.model.size_bytes)

    def row(self) -> tuple[str, ...]:
        """The cells below HEADERS."""
        model, context = self.model, self.context_length
        return (
            model.id,
            self.task,
            self.quantisation,
            show_bytes(model.size_bytes),
            UNKNOWN if context is None else show_tokens(context),
            self.fits,
            self.state,
            self.used,
        )

    def as_json(self) -> dict[str, Any]:
        """Everything that is known of the model, with what it would take."""
        return {
            **as_plain(self.model),
            "memory": as_plain(self.memory),
            "fits": self.fits,
        }


def is_on_its_way(shelf: Shelf, model: LocalModel) -> bool:
    """Whether some process is bringing a model here now."""
    if model.state != "incomplete":
        return False  # what would know is slow to import, and mostly not needed
    from mlxm.upkeep.fetches import is_being_fetched

    return is_being_fetched(model, shelf.roots().hub_cache)


def as_plain(value: Any) -> Any:
    """A struct as JSON has it; paths become text."""
    return msgspec.to_builtins(value, enc_hook=str)


def task_of(found: Characteristics | None) -> str:
    """What a model is for, as the TASK column says it."""
    return UNKNOWN if found is None else TASKS[found.kind]


def show_quantisation(found: Quantisation | None, dtype: str | None) -> str:
    """How weights are packed: 4bit, mxfp4, gptq-4bit; bf16 when they are not."""
    if found is None:
        return UNKNOWN if dtype is None else _DTYPES.get(dtype, dtype)
    if found.mode != "affine" and any(letter.isdigit() for letter in found.mode):
        return found.mode
    bits = UNKNOWN if found.bits is None else f"{found.bits}bit"
    return bits if found.mode == "affine" else f"{found.mode}-{bits}"


def usual_context(found: Characteristics | None) -> int | None:
    """The context to judge a model at."""
    limit = None if found is None else found.context_length
    return USUAL_CONTEXT if limit is None else min(limit, USUAL_CONTEXT)


def estimate_at(model: LocalModel, context: int | None) -> MemoryEstimate | None:
    """What a model takes with a context, None when that cannot be said; a part of one says nothing."""
    if model.state == "incomplete":
        return estimate_by_name(model.id)
    found = Characteristics() if model.characteristics is None else model.characteristics
    counted = estimate(found, model.size_bytes, context)
    return estimate_by_name(model.id) if counted is None else counted


def judge(memory: MemoryEstimate | None, machine: Machine) -> Answer:
    """Whether an estimate is within the machine's budget."""
    if memory is None:
        return UNKNOWN
    return "yes" if fits(memory.total_bytes, machine.budget_bytes) else "no"
