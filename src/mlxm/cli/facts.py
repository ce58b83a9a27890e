"""A model in words, line by line: what it is, how that is known, and what it takes to run it."""

from __future__ import annotations

from collections.abc import Iterator

from mlxm.catalog.characteristics import Capability, Characteristics, Quantisation
from mlxm.catalog.memory import MemoryEstimate
from mlxm.cli.figures import UNKNOWN, count_of, show_bytes, show_count, show_path, show_tokens
from mlxm.cli.installed import Installed, show_quantisation
from mlxm.cli.machine import Machine
from mlxm.tiny import BUILTIN_NOTE

Fact = tuple[str, str]
_KI = 1024


def describe_model(found: Installed, here: Machine) -> list[Fact]:
    """Names and what holds for them, in the order in which people ask."""
    model = found.model
    return [
        ("state", _state(found)),
        *(_describe_nature(model.characteristics) if model.characteristics is not None else ()),
        ("size", _size(found)),
        ("memory", _memory(found.memory)),
        ("fits", _fits(found, here)),
        *([("revision", _revision(found))] if model.revision is not None else ()),
        ("source", model.source),
        *([("note", BUILTIN_NOTE)] if model.source == "builtin" else ()),
        ("path", show_path(model.path)),
        ("used", found.used),
    ]


def _describe_nature(known: Characteristics) -> Iterator[Fact]:
    """What the model is, whoever runs it."""
    yield "kind", f"{known.kind}: {known.kind_reason}"
    yield "family", known.family
    yield "architecture", UNKNOWN if known.architecture is None else known.architecture
    yield "parameters", _parameters(known)
    yield "weights", _weights(known)
    yield "context", UNKNOWN if known.context_length is None else _tokens(known.context_length)
    yield "shape", _shape(known)
    if known.sliding_window is not None:
        yield "window", _tokens(known.sliding_window)
    yield "tool use", _capability(known.tool_use)
    yield "reasoning", _capability(known.reasoning)
    if known.own_code:
        yield "own code", f"{', '.join(known.own_code)} in config.json; mlxm never runs it"


def _state(found: Installed) -> str:
    reason = found.model.state_reason if found.model.state != "ready" else found.model.runnable_reason
    return found.state if reason is None else f"{found.state}: {reason}"


def _parameters(known: Characteristics) -> str:
    if known.parameters is None:
        return UNKNOWN
    basis = {"headers": "counted in the weights", "hub": "as the Hub says", "name": "by its name", None: ""}
    source = basis[known.parameters_from]
    return f"{show_count(known.parameters)} ({source})" if source else show_count(known.parameters)


def _weights(known: Characteristics) -> str:
    packed = show_quantisation(known.quantisation, known.dtype)
    return packed if known.quantisation is None else f"{packed}{_details(known.quantisation)}"


def _details(packed: Quantisation) -> str:
    group = "" if packed.group_size is None else f", groups of {packed.group_size}"
    if not packed.overrides:
        return group
    bits = " and ".join(map(str, packed.override_bits))
    return f"{group}, {count_of(packed.overrides, 'layer')} with {bits} bits" if bits else group


def _shape(known: Characteristics) -> str:
    parts = (
        ("layers", known.layers),
        ("heads", known.heads),
        ("KV heads", known.kv_heads),
        ("head size", known.head_dim),
        ("hidden size", known.hidden_size),
        ("vocabulary", known.vocab_size),
    )
    said = [f"{name} {number}" for name, number in parts if number is not None]
    return ", ".join(said) if said else UNKNOWN


def _tokens(number: int) -> str:
    short = show_tokens(number)
    return f"{number} tokens" if short == str(number) else f"{short} ({number} tokens)"


def _capability(known: Capability) -> str:
    tier = "" if known.tier is None else f" (by {known.tier})"
    return f"{known.answer}: {known.reason}{tier}"


def _size(found: Installed) -> str:
    model = found.model
    if model.disk_bytes == model.size_bytes:
        return show_bytes(model.size_bytes)
    return f"{show_bytes(model.size_bytes)}, {show_bytes(model.disk_bytes)} on disk with all that is left of others"


def _memory(memory: MemoryEstimate | None) -> str:
    if memory is None:
        return UNKNOWN
    at = "" if memory.context is None else f" with {show_tokens(memory.context)} of context"
    cache = "a cache of unknown size" if memory.kv_bytes is None else f"cache {show_bytes(memory.kv_bytes)}"
    parts = f"weights {show_bytes(memory.weights_bytes)}, {cache}, the rest {show_bytes(memory.overhead_bytes)}"
    guess = "; a guess by its name" if memory.basis == "name" else ""
    return f"{show_bytes(memory.total_bytes)}{at}: {parts}{guess}"


def _fits(found: Installed, here: Machine) -> str:
    budget = f"{show_bytes(here.budget_bytes)} that models may take"
    largest = found.largest_context(here)
    if found.fits == UNKNOWN:
        return UNKNOWN
    if found.fits == "no":
        least = f"; it would with {_about(largest)} of context" if largest else ""
        return f"no, not into the {budget}{least}"
    return f"yes, into the {budget}" + ("" if largest is None else f", with up to {_about(largest)} of context")


def _about(num_tokens: int) -> str:
    """A length of context that has come out of a calculation, rounded down."""
    return show_tokens(num_tokens if num_tokens < _KI else num_tokens // _KI * _KI)


def _revision(found: Installed) -> str:
    others = len(found.model.revisions) - 1
    more = f", and {others} more on disk" if others > 0 else ""
    return f"{found.model.revision}{more}"
