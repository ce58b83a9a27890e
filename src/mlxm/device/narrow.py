"""Calls a model so that its head sees only the first tokens: prompt tokens ride along without logits.

mlx-lm's models are a body and a head. A stand-in for the model runs the model's own code, but finds another body in its
place, which hands on only what is wanted. Nothing of the model changes; whether it works is seen by trying.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
from mlx import nn

from mlxm.errors import InternalError

_BODIES = ("model", "transformer", "backbone")
_WRAPPED = "language_model"


class Narrowed:
    """The model, with logits for the first tokens only."""

    def __init__(self, model: nn.Module) -> None:
        self._body: _Body | None = None
        self._model = self._stand_in(model)

    def __call__(self, num_wanted: int, tokens: mx.array, cache: list[Any]) -> mx.array:
        """Logits of the first `num_wanted` of tokens [tokens, 1]."""
        if self._body is None:
            raise InternalError("a model without a body")
        self._body.num_wanted = num_wanted
        logits: mx.array = self._model(tokens, cache=cache)
        return logits

    def _stand_in(self, model: nn.Module) -> _StandIn:
        parts: dict[str, Any] = dict(model.children())  # type: ignore[no-untyped-call]  # as mlx has it
        if _WRAPPED in parts:
            return _StandIn(model, _WRAPPED, self._stand_in(parts[_WRAPPED]))
        name = next((name for name in _BODIES if isinstance(parts.get(name), nn.Module)), None)
        if name is None:
            raise InternalError("its body has no name that is known")
        self._body = _Body(parts[name])
        return _StandIn(model, name, self._body)


class _StandIn:
    """A model in whose place of one part another one is found."""

    def __init__(self, model: nn.Module, name: str, part: Any) -> None:
        self._model = model
        self._name = name
        self._part = part

    def __getattr__(self, name: str) -> Any:
        return self._part if name == self._name else getattr(self._model, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return type(self._model).__call__(self, *args, **kwargs)


class _Body:
    """A model's body that hands on the first tokens only."""

    def __init__(self, body: nn.Module) -> None:
        self._body = body
        self.num_wanted = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._body, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._body(*args, **kwargs)[: self.num_wanted]
