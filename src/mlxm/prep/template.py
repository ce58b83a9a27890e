"""Chat templates: the jinja2 that Hugging Face models are written for, in a sandbox, with typed failures.

A template sees plain strings, dicts and lists only; it knows no file, no path and no object of ours.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import cached_property
from typing import Any, Final, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.meta import find_undeclared_variables
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from mlxm.errors import InvalidRequest

_HINT: Final = "Change the conversation to what this model's template takes, or use another model."
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]+")
_MESSAGE_LIMIT: Final = 500
_GIVEN: Final = frozenset({"messages", "tools", "add_generation_prompt"})
_PYTHON_ERRORS: Final = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,  # with RecursionError
    SyntaxError,  # loops nested deeper than Python compiles
    TypeError,
    ValueError,
)


class ChatTemplate:
    """A template with the special tokens it may print; it is compiled by the first job, inside that job's limits."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        self._special_tokens = dict(special_tokens)
        self.source = source

    def print(self, messages: Sequence[Mapping[str, object]], **variables: object) -> str:
        """What it makes of messages and variables; raises InvalidRequest.

        Unless a variable says otherwise, it is asked to go on to where the assistant's answer begins.
        """
        usual = {"tools": None, "documents": None, "add_generation_prompt": True}
        with _translated():
            return self._template.render({**self._special_tokens, **usual, **variables, "messages": list(messages)})

    @cached_property
    def options(self) -> frozenset[str]:
        """The variables that it reads, without those that every template is given."""
        tree = self._parse()
        tested = [test.node for test in tree.find_all(nodes.Test) if test.name in {"defined", "undefined"}]
        asked_for = {node.name for node in tested if isinstance(node, nodes.Name)}
        own = {node.name for node in tree.find_all(nodes.Name) if node.ctx == "store"} - asked_for
        given = _GIVEN.union(self._special_tokens, self._environment.globals)
        with _translated():
            read = find_undeclared_variables(tree)  # changes the tree
        return frozenset(name for name in read - given - own if not name.endswith("_token"))

    @cached_property
    def words(self) -> frozenset[str]:
        """The names of attributes and the texts that stand in its expressions."""
        tree = self._parse()
        texts = {node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str)}
        return frozenset(texts.union(node.attr for node in tree.find_all(nodes.Getattr)))

    @cached_property
    def _environment(self) -> ImmutableSandboxedEnvironment:
        return _environment()

    @cached_property
    def _template(self) -> jinja2.Template:
        return self._environment.from_string(self.source)

    def _parse(self) -> nodes.Template:
        with _translated():
            return self._environment.parse(self.source)


class _Refused(jinja2.TemplateError):
    """The template called raise_exception."""


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except _Refused as error:
        raise _fault("refuses this conversation", error.message) from error
    except jinja2.TemplateError as error:
        raise _fault("failed", error.message) from error
    except SyntaxError as error:
        raise _fault("failed", error.msg) from error
    except _PYTHON_ERRORS as error:
        raise _fault("failed", str(error)) from error


def _fault(what: str, why: str | None) -> InvalidRequest:
    """The template's own words, made harmless for a terminal, a log and a frame."""
    words = _CONTROL.sub(" ", why or "it does not say why").strip()[:_MESSAGE_LIMIT]
    return InvalidRequest(f"The model's chat template {what}: {words}", hint=_HINT, param="messages")


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    environment.globals["dict"] = _Dict()
    environment.globals["namespace"] = _PlainNamespace
    return environment


def _raise_exception(message: object) -> NoReturn:
    raise _Refused(str(message))


def _strftime_now(layout: str) -> str:
    return datetime.now().strftime(layout)  # noqa: DTZ005 - models are told the user's own date


def _tojson(
    value: Any,
    ensure_ascii: bool = False,  # noqa: FBT001, FBT002 - templates pass it by place
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,  # noqa: FBT001, FBT002 - as above
) -> str:
    """JSON for a prompt: letters stay letters, and nothing is escaped for HTML as jinja's own filter does."""
    if isinstance(value, Iterator):  # what `map` and `select` leave
        value = list(value)
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


class _Generation(Extension):
    """`{% generation %}…{% endgeneration %}` marks the assistant's words for training; here it is only a scope."""

    tags = {"generation"}  # noqa: RUF012 - declared so by jinja2

    def parse(self, parser: Parser) -> nodes.Node:
        """Keep the body as it is."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class _Dict:
    """What `dict` means in a template: a way to build one, without the class and its methods."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        """As `dict.fromkeys`."""
        return dict.fromkeys(*args)


class _PlainNamespace(Namespace):
    """A namespace that takes no name with a leading underscore, so that nothing in Python mistakes it for another."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for name in dict(*args, **kwargs):
            _check_name(name)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: object) -> None:
    if str(name).startswith("_"):
        raise jinja2.exceptions.SecurityError(f"the name {name!r} cannot be set in a namespace")
