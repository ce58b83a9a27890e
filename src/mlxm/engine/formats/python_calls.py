"""Calls written as Python, of which a whole one has to be there before anything is certain."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec

from mlxm.engine.formats.calls import Calls
from mlxm.engine.formats.lark import Rules, Written, parameters_of
from mlxm.engine.formats.reader import Literals, NotACall, Reader, Reading
from mlxm.engine.formats.schema import parse_python, write_json
from mlxm.types import Tool

_LIMIT: Final = 1 << 16
_LITERALS: Final = {"true": True, "false": False, "null": None}
_QUOTES_AND_BRACKETS: Final = Literals(('"', "'", "[", "]"))


class PythonCalls(msgspec.Struct, frozen=True, kw_only=True):
    """Calls with named arguments, in a list or one per line, between `open` and `close`.

    With `also_bare`, a list of calls of known tools may stand at the answer's beginning.
    """

    name: str
    open: str = ""
    close: str = ""
    before: str = ""
    also_bare: bool = False

    @property
    def markers(self) -> tuple[str, ...]:
        """The markup that special tokens may spell."""
        return tuple(filter(None, (self.open, self.close)))

    def openers(self) -> tuple[str, ...]:
        """What a call begins with, wherever it stands."""
        return tuple(filter(None, (self.open,)))

    def lead_openers(self, tools: Sequence[str]) -> tuple[str, ...]:
        """A list that begins with a tool's call."""
        return tuple(f"[{tool}(" for tool in tools) if self.also_bare else ()

    def read(self, opener: str, calls: Calls) -> Reading[None]:
        """Read the calls."""
        reader = calls.reader
        if opener == self.open:
            text, _ = yield from reader.take_until(Literals((self.close,)), _LIMIT)
        else:
            text = opener + (yield from _take_list(reader))
        for name, arguments in list(_read_calls(text)):
            calls.start(name)
            calls.arguments(arguments)
        calls.end()

    def write(self, rules: Rules, tools: Sequence[Tool], *, several: bool) -> Written:
        """A list of calls."""
        call = rules.one_of(_write_call(rules, tool) for tool in tools)
        more = f"({rules.text(', ')} {call})*" if several else ""
        return Written(self.open, f"{rules.text('[')} {call} {more} {rules.text(']' + self.close)}")


def _write_call(rules: Rules, tool: Tool) -> str:
    """The arguments in order; each of those that need not be there may be the first one if none need be."""
    parameters = parameters_of(tool)
    values = [rules.json(parameter.schema, is_strict=tool.is_strict) for parameter in parameters]
    names = [rules.text(parameter.name + "=") for parameter in parameters]
    pairs = [rules.rule(f"{name} {value}") for name, value in zip(names, values, strict=True)]
    num_required = sum(parameter.is_required for parameter in parameters)
    comma = rules.text(", ")
    optional = [f"({comma} {pair})?" for pair in pairs]
    needed = f" {comma} ".join(pairs[:num_required])
    if num_required:
        inside = " ".join((needed, *optional[num_required:]))
    else:
        starts = [" ".join((pair, *optional[place + 1 :])) for place, pair in enumerate(pairs)]
        inside = f"({' | '.join(starts)})?" if starts else ""
    return rules.rule(f"{rules.text(tool.name + '(')} {inside} {rules.text(')')}")


def _take_list(reader: Reader) -> Reading[str]:
    """Read up to the bracket that closes the list, past those in strings."""
    pieces: list[str] = []
    depth, quote = 1, ""
    while depth:
        before, mark = yield from reader.take_until(_QUOTES_AND_BRACKETS, _LIMIT)
        if mark is None:
            raise NotACall
        pieces += [before, mark]
        escapes = len(before) - len(before.rstrip("\\"))
        if quote:
            quote = "" if mark == quote and escapes % 2 == 0 else quote
        elif mark in {'"', "'"}:
            quote = mark
        else:
            depth += 1 if mark == "[" else -1
    return "".join(pieces)


def _read_calls(text: str) -> Iterator[tuple[str, str]]:
    """Names and arguments of all calls; raises NotACall when anything else is among them."""
    try:
        body = parse_python(text.strip(), "exec").body
    except (MemoryError, RecursionError, SyntaxError, ValueError) as error:
        raise NotACall from error
    if not body:
        raise NotACall
    for statement in body:
        if not isinstance(statement, ast.Expr):
            raise NotACall
        value = statement.value
        for call in value.elts if isinstance(value, ast.List) else (value,):
            yield _read_call(call)


def _read_call(node: ast.expr) -> tuple[str, str]:
    if not isinstance(node, ast.Call):
        raise NotACall
    if isinstance(node.func, ast.Name) and node.func.id == "print" and len(node.args) == 1:
        return _read_call(node.args[0])
    if node.args:
        raise NotACall
    try:
        values = {_key(keyword): _value(keyword.value) for keyword in node.keywords}
        return _name(node.func), write_json(values)
    except (MemoryError, RecursionError, TypeError, ValueError) as error:
        raise NotACall from error


def _name(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_name(node.value)}.{node.attr}"
    if not isinstance(node, ast.Name):
        raise NotACall
    return node.id


def _key(keyword: ast.keyword) -> str:
    if keyword.arg is None:
        raise NotACall
    return keyword.arg


def _value(node: ast.expr) -> Any:
    """A literal; true, false and null are JSON's, which templates print inside of lists and dicts."""
    return ast.literal_eval(_Literals().visit(node))


class _Literals(ast.NodeTransformer):
    def visit_Name(self, node: ast.Name) -> ast.expr:
        if node.id not in _LITERALS:
            return node
        return ast.copy_location(ast.Constant(_LITERALS[node.id]), node)
