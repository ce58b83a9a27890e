"""What mlxm ships for tests of itself and of programs that use it: tiny models, and backends without a model."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from mlxm.testing.architectures import ARCHITECTURES
    from mlxm.testing.backends import ECHO_MODEL, EchoBackend, ScriptedBackend
    from mlxm.testing.models import build_models, family_of
    from mlxm.testing.scripted import ANSWER_TOKENS, CHOOSE_ANSWER, build_scripted
    from mlxm.tiny.jobs import Quantise

__all__ = [
    "ANSWER_TOKENS",
    "ARCHITECTURES",
    "CHOOSE_ANSWER",
    "ECHO_MODEL",
    "EchoBackend",
    "Quantise",
    "ScriptedBackend",
    "build_models",
    "build_scripted",
    "family_of",
]

_PLACES: Final = {
    "ANSWER_TOKENS": "mlxm.testing.scripted",
    "CHOOSE_ANSWER": "mlxm.testing.scripted",
    "build_scripted": "mlxm.testing.scripted",
    "ARCHITECTURES": "mlxm.testing.architectures",
    "ECHO_MODEL": "mlxm.testing.backends",
    "EchoBackend": "mlxm.testing.backends",
    "Quantise": "mlxm.tiny.jobs",
    "ScriptedBackend": "mlxm.testing.backends",
    "build_models": "mlxm.testing.models",
    "family_of": "mlxm.testing.models",
}


def __getattr__(name: str) -> object:
    """Import a public name when it is first asked for."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PLACES[name]), name)
