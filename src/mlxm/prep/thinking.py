"""Options of a chat template, and the wishes about thinking in the words of that template.

What a template does not read can do nothing: a stranger among the options is refused, a wish about thinking is told of.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

from mlxm.errors import InvalidRequest, UnsupportedParameter
from mlxm.prep.template import ChatTemplate
from mlxm.types import Thinking

SWITCH: Final = "thinking.is_on"
EFFORT: Final = "thinking.effort"
BUDGET: Final = "thinking.budget_tokens"
_PARAM: Final = "chat_template_kwargs"
_SWITCHES: Final = ("enable_thinking", "thinking")
_EFFORT_NAMES: Final = ("reasoning_effort",)
_BUDGET_NAMES: Final = ("thinking_budget",)
_NEUTRAL_NAMES: Final = {
    **dict.fromkeys(_SWITCHES, SWITCH),
    **dict.fromkeys(_EFFORT_NAMES, EFFORT),
    **dict.fromkeys(_BUDGET_NAMES, BUDGET),
}
_LEVELS: Final = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
_USUAL_LEVELS: Final = frozenset({"low", "medium", "high"})


class Settled(msgspec.Struct, frozen=True):
    """What the template is given: wishes in its words, and options as they are; `unused` are wishes without a word."""

    wished: Mapping[str, Any] = {}
    given: Mapping[str, Any] = {}
    unused: tuple[str, ...] = ()

    def without_wishes(self) -> Settled:
        """The options alone."""
        names = (_NEUTRAL_NAMES[name] for name in self.wished)
        return Settled({}, self.given, (*names, *self.unused))


def settle(template: ChatTemplate, thinking: Thinking, options_text: str) -> Settled:
    """The variables for a template; raises UnsupportedParameter for an option that it does not read."""
    options = _read(options_text)
    if not options and thinking == Thinking():
        return Settled()
    known = template.options
    wishes = _Wishes(known, template.words, thinking)
    unused = tuple(f"{_PARAM}.{name}" for name in options if name not in known and not wishes.adopt(name, options))
    strangers = [name for name in options if name not in known and name not in (*_SWITCHES, *_EFFORT_NAMES)]
    if strangers:
        raise _stranger(strangers[0], known)
    given = {name: value for name, value in options.items() if name in known}
    return Settled(wishes.variables(), given, (*wishes.unused(), *unused))


class _Wishes:
    """The wishes about thinking, and the names that a template has for them."""

    def __init__(self, known: frozenset[str], words: frozenset[str], thinking: Thinking) -> None:
        self._switch = _first(_SWITCHES, known)
        self._effort = _first(_EFFORT_NAMES, known)
        self._budget = _first(_BUDGET_NAMES, known)
        named = words.intersection(_LEVELS)
        self._levels = named if len(named) > 1 else _USUAL_LEVELS
        self._thinking = thinking

    def adopt(self, name: str, options: Mapping[str, Any]) -> bool:
        """Take over an option that means a wish in another template's words; False: there is no word for it here."""
        value = options[name]
        thinking = self._thinking
        if name in _SWITCHES and isinstance(value, bool) and (self._switch or self._effort):
            if thinking.is_on is None:
                self._thinking = msgspec.structs.replace(thinking, is_on=value)
            return True
        if name in _EFFORT_NAMES and value in _LEVELS and self._switch:
            if thinking.effort is None:
                self._thinking = msgspec.structs.replace(thinking, effort=value)
            return True
        return False

    def variables(self) -> dict[str, Any]:
        """What the template is given."""
        found: dict[str, Any] = {}
        if self._switch is not None and self._is_on is not None:
            found[self._switch] = self._is_on
        if self._effort is not None and self._level is not None:
            found[self._effort] = _nearest(self._level, self._levels)
        if self._budget is not None and self._thinking.budget_tokens is not None:
            found[self._budget] = self._thinking.budget_tokens
        return found

    def unused(self) -> Iterable[str]:
        """The wishes that the template has no words for."""
        is_on, effort = self._thinking.is_on, self._thinking.effort
        is_off_by_level = self._effort is not None and "none" in self._levels
        if is_on is False and self._switch is None and not is_off_by_level:
            yield SWITCH
        if is_on is True and effort is None and self._switch is None and self._effort is None:
            yield SWITCH
        if effort is not None and self._effort is None and (effort != "none" or self._switch is None):
            yield EFFORT
        if self._thinking.budget_tokens is not None and self._budget is None:
            yield BUDGET

    @property
    def _is_on(self) -> bool | None:
        if self._thinking.is_on is None and self._thinking.effort is not None:
            return self._thinking.effort != "none"
        return self._thinking.is_on

    @property
    def _level(self) -> str | None:
        if self._thinking.effort is None and self._thinking.is_on is False and self._switch is None:
            return "none"
        return self._thinking.effort


def _nearest(level: str, levels: Iterable[str]) -> str:
    """The lowest one that is not below `level`, else the highest."""
    ordered = sorted(map(_LEVELS.index, levels))
    place = next((place for place in ordered if place >= _LEVELS.index(level)), ordered[-1])
    return _LEVELS[place]


def _first(names: Iterable[str], known: frozenset[str]) -> str | None:
    return next((name for name in names if name in known), None)


def _read(text: str) -> dict[str, Any]:
    try:
        options = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest("The options of the chat template are not valid JSON.", param=_PARAM) from error
    if not isinstance(options, dict):
        raise InvalidRequest("The options of the chat template are not a JSON object.", param=_PARAM)
    return options


def _stranger(name: str, known: frozenset[str]) -> UnsupportedParameter:
    names = ", ".join(sorted(known))
    return UnsupportedParameter(
        f"The chat template of this model does not read {name}.",
        hint=f"It reads: {names}." if names else "It reads no options: leave them out.",
        param=f"{_PARAM}.{name}",
    )
