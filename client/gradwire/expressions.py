"""Graphs from mathematics as people type it: `f = 1/(1+exp(-(w0*x0 + w1*x1 + w2)))`.

docs/expressions.md has the grammar. One pass, with a stack of its own instead of recursion, so that
parentheses nest as deep as they are written; gates are added in the order of Python's evaluation.
"""

from __future__ import annotations

import math
import operator
import re
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, NoReturn

import numpy as np

from gradwire import tensors
from gradwire.builder import Graph, Handle
from gradwire.builder.handles import require_division, require_power
from gradwire.errors import (
    GradwireError,
    InvalidRequestError,
    LimitError,
    TextError,
    nearest,
    text_error,
)
from gradwire.numpy_functions import UFUNCS
from gradwire.signatures import SIGNATURES

MOST_CHARACTERS = 1_000_000

#: A number or a list of numbers becomes a constant, or a default, or an attribute, by its place.
Operand = Handle | float | list[Any] | str

_MOST_RANK = 32
_SHOWN_BEFORE, _SHOWN_AFTER = 40, 30  # characters of a line around a fault
_TOKEN = re.compile(
    r"(?P<space>[ \t\r\f]+|\#[^\n]*)|(?P<end>[\n;])"
    r"|(?P<number>(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?)"
    r"|(?P<name>[^\W\d]\w*)|(?P<string>\"[^\"\n]*\"|'[^'\n]*')"
    r"|(?P<mark>\*\*|[<>=!]=|[-+*/^@<>=,()\[\]·⋅×−])"
)
_SPELLINGS = {"^": "**", "·": "*", "⋅": "*", "×": "*", "−": "-"}
_CONSTANTS = {"e": math.e, "pi": math.pi, "π": math.pi}
_REDUCTIONS = {
    "max": "ReduceMax", "mean": "ReduceMean", "min": "ReduceMin", "prod": "ReduceProd",
    "sum": "ReduceSum",
}  # fmt: skip


class _Operator(NamedTuple):
    """Binds its operands tighter than operators of less power do."""

    gate: str
    power: int
    inputs: int = 2


_COMPARISON, _SIGN, _POWER = 4, 7, 8
_BINARY = {
    "or": _Operator("Or", 1),
    "and": _Operator("And", 2),
    "<": _Operator("Less", _COMPARISON),
    "<=": _Operator("LessOrEqual", _COMPARISON),
    ">": _Operator("Greater", _COMPARISON),
    ">=": _Operator("GreaterOrEqual", _COMPARISON),
    "==": _Operator("Equal", _COMPARISON),
    "!=": _Operator("Equal", _COMPARISON),  # and a Not
    "+": _Operator("Add", 5),
    "-": _Operator("Sub", 5),
    "*": _Operator("Mul", 6),
    "/": _Operator("Div", 6),
    "@": _Operator("MatMul", 6),
    "**": _Operator("Pow", _POWER),  # of what is to its right first
}
_PREFIX = {
    "not": _Operator("Not", 3, 1),
    "-": _Operator("Neg", _SIGN, 1),
    "−": _Operator("Neg", _SIGN, 1),
    "+": _Operator("", _SIGN, 1),
}
_SIGNS = {each for each, found in _PREFIX.items() if found.power == _SIGN}
_WORDS = {"and", "or", "not"}
_CLOSING = {"(": ")", "[": "]"}
_ALIASES = {**UFUNCS, "ln": "Log"}
_LOWERED = {name.lower(): name for name in SIGNATURES}
_DEFINITION = re.compile(r"\w+\s*\([\w\s,]*\)\s*=(?!=)")
_INSTEAD = {
    "²": "^2", "³": "^3", "&": "and", "|": "or", "!": "not", "%": "mod(a, b)", "÷": "/",
    "√": "sqrt(x)",
}  # fmt: skip
_AMONG_NUMBERS: dict[str, Callable[..., Any]] = {
    "Add": operator.add, "Div": operator.truediv, "Mul": operator.mul, "Neg": operator.neg,
    "Pow": operator.pow, "Sub": operator.sub,
}  # fmt: skip
#: Operators whose gate computes something else of integers than the operator means.
_REQUIRED: dict[str, Callable[..., None]] = {"Div": require_division, "Pow": require_power}


def parse_expression(
    text: str,
    values: Mapping[str, Any] | None = None,
    *,
    shapes: Mapping[str, int | Sequence[int | str]] | None = None,
) -> Graph:
    """The graph of an expression, or of several statements (TextError: EXPRESSION_INVALID, ...).

    Names that are not assigned are inputs: float64 scalars, unless `values` has a default or
    `shapes` another shape. The last statement is the output, under its name or as "out". The first
    line of an error's message is its sentence; the two after it show the place.
    """
    if len(text) > MOST_CHARACTERS:
        raise LimitError(
            "LIMIT_EXCEEDED",
            f"the expression has {len(text)} characters, over the limit of {MOST_CHARACTERS}; "
            "build graphs of this size with gw.Graph",
        )
    return _Parser(text, values or {}, shapes or {}).graph()


class _Token(NamedTuple):
    kind: str
    text: str
    at: int


class _Waiting(NamedTuple):
    """An operator whose right operand is being read."""

    operator: _Operator
    token: _Token


@dataclass
class _Open:
    """A bracket that is not closed yet: of a group, a list, or a function's arguments."""

    token: _Token
    function: _Token | None = None
    arguments: list[Operand] = field(default_factory=list)
    keywords: dict[str, Operand] = field(default_factory=dict)
    keyword: str = ""


class _Parser:
    """One pass over a text, one token ahead."""

    def __init__(
        self,
        text: str,
        values: Mapping[str, Any],
        shapes: Mapping[str, int | Sequence[int | str]],
    ) -> None:
        self._text = text
        self._lines = [0, *(found.end() for found in re.finditer("\n", text))]
        self._values = values
        self._shapes = shapes
        self._graph = Graph()
        self._known: dict[str, Handle] = {}
        self._met: dict[str, str] = {}  # what happened to each name that was met, and where
        self._named: set[int] = set()
        self._stack: list[_Waiting | _Open] = []
        self._operands: list[Operand] = []
        self._depth = 0
        self._lists = 0
        self._next = self._end = _Token("end", "", 0)

    def graph(self) -> Graph:
        try:
            self._text.encode()
        except UnicodeEncodeError as failure:
            self._fail(failure.start, f"{self._text[failure.start]!r} cannot be read here")
        if self._text.startswith("gradwire text"):
            self._fail(0, "this is the text form of a graph, which gw.from_text reads")
        self._next = self._scan(0)
        name, value = self._statements()
        for given in (*self._values, *self._shapes):
            if given not in self._known:
                raise InvalidRequestError(
                    "LEAF_UNKNOWN",
                    f"there is no input {given!r} in the expression{nearest(given, self._known)}",
                )
        self._output(name, value)
        return self._graph

    def _statements(self) -> tuple[str, Operand]:
        """The name, if it has one, and the value of the last one."""
        name, value, first = "", None, self._next
        while True:
            while self._next.kind == "end":
                self._end = self._advance()
            if self._next.kind == "done":
                break
            if value is not None and self._end.text == "\n" and self._next.text in _SIGNS:
                self._fail(
                    self._next.at,
                    "if this line goes on from the one before, end that one with "
                    f"{self._next.text!r}; if not, put parentheses around this one",
                )
            if value is not None and not name:
                self._fail(first.at, "the value of this statement is not used; name it: s = ...")
            first = self._next
            name, value = self._statement()
        if value is None:
            self._fail(len(self._text), "expected an expression but found the end")
        return name, value

    def _output(self, name: str, value: Operand) -> None:
        """The last value, under the name that it has, or as "out"."""
        if not isinstance(value, Handle):
            value = self._graph.constant(value, "float64")
        name = name or next((name for name, known in self._known.items() if known is value), "out")
        while name in self._known and self._known[name] is not value:
            name += "_"
        self._graph.output(name, value)

    def _statement(self) -> tuple[str, Operand]:
        """The name that it assigns, if it does, and its value."""
        first = self._advance()
        if first.kind != "name" or not self._is("="):
            return "", self._expression(first)
        if first.text in _WORDS:
            self._fail(first.at, f"{first.text!r} is an operator, so it cannot be assigned")
        self._require_new(first)
        self._advance()
        value = self._expression(self._advance())
        self._require_new(first)
        return first.text, self._assigned(first, value)

    def _require_new(self, token: _Token) -> None:
        if token.text in self._met:
            self._fail(
                token.at,
                f"{_short(token.text)} is already {self._met[token.text]}; a name is assigned "
                "once, before it is used",
            )

    def _assigned(self, token: _Token, value: Operand) -> Handle:
        """A node under its new name, or an input with a number as its default."""
        name = token.text
        if not isinstance(value, Handle):
            return self._input(token, value, "assigned")
        if name in self._values or name in self._shapes:
            self._fail(token.at, f"{_short(name)} is computed here, so it cannot be given")
        if value.key > 0 and value.key not in self._named:
            self._graph.name(value, name)
            self._named.add(value.key)
        self._met[name] = f"assigned at {self._place(token.at)}"
        self._known[name] = value
        return value

    def _input(self, token: _Token, default: Operand | None, met: str) -> Handle:
        name = token.text
        given = self._values.get(name, default)
        try:
            stored = None
            if given is not None:
                stored = tensors.from_value(f"input {_short(name)!r}", given, "float64")
            shape = self._shapes.get(name, () if stored is None else stored.shape)
            handle = self._graph.input(name, shape, value=stored)
        except GradwireError as failure:
            self._fail(token.at, failure.message, failure.reason, failure.facts)
        self._met[name] = f"{met} at {self._place(token.at)}"
        self._known[name] = handle
        return handle

    def _expression(self, token: _Token) -> Operand:
        """The value of an expression whose first token is taken: operands, operators between."""
        while True:
            self._operand(token)
            token = self._advance()
            while token.text in (")", "]"):
                self._close(token)
                token = self._advance()
            if token.kind in ("end", "done"):
                self._end = token
                break
            if token.text == ",":
                self._comma(token)
            else:
                self._operator(token)
            token = self._advance()
        self._reduce(0)
        if self._stack:
            self._fail(self._stack[-1].token.at, f"{self._stack[-1].token.text!r} is never closed")
        return self._operands.pop()

    def _operand(self, token: _Token) -> None:
        """A number or a value, behind any signs and opening brackets."""
        while True:
            while token.text == "\n":  # behind an operator
                token = self._advance()
            if token.kind == "number":
                self._operands.append(self._number(token))
                return
            if token.kind == "string" and self._is_keyword_value():
                self._operands.append(token.text[1:-1])
                return
            if token.text in _PREFIX:
                self._stack.append(_Waiting(_PREFIX[token.text], token))
            elif token.text in ("(", "["):
                self._open(token)
            elif token.kind != "name" or token.text in _WORDS:
                self._expected("a value", token)
            elif self._is("("):
                self._require_function(token)
                self._stack.append(_Open(self._advance(), token))
            elif self._is("=") and self._is_argument():
                self._keyword(token)
                self._advance()
            else:
                self._operands.append(self._value(token))
                return
            token = self._advance()

    def _number(self, token: _Token) -> float:
        number = float(token.text)
        if math.isinf(number):
            self._fail(token.at, f"the number {_short(token.text)} is too large for float64")
        return number

    def _value(self, token: _Token) -> Operand:
        """What a name stands for; a new one is an input."""
        name = token.text
        if name in self._known:
            return self._known[name]
        is_given = name in self._values or name in self._shapes
        if name in _CONSTANTS and not is_given:
            self._met[name] = f"used at {self._place(token.at)}"
            return _CONSTANTS[name]
        return self._input(token, None, "used")

    def _operator(self, token: _Token) -> None:
        spelled = _SPELLINGS.get(token.text, token.text)
        if spelled not in _BINARY:
            self._expected("an operator", token, self._hint(token))
        found = _BINARY[spelled]
        waits = found.power in (_COMPARISON, _POWER)  # for what is to its right
        self._reduce(found.power + waits)
        before = self._stack[-1] if self._stack else None
        if isinstance(before, _Waiting) and before.operator.power == found.power == _COMPARISON:
            self._fail(token.at, "comparisons are not chained; write a < b and b < c")
        self._stack.append(_Waiting(found, token))

    def _reduce(self, power: int) -> None:
        """Applies the waiting operators of this power and more, back to the last open bracket."""
        while self._stack:
            waiting = self._stack[-1]
            if isinstance(waiting, _Open) or waiting.operator.power < power:
                return
            self._stack.pop()
            first = len(self._operands) - waiting.operator.inputs
            given = self._operands[first:]
            del self._operands[first:]
            self._operands.append(self._computed(waiting, given))

    def _computed(self, waiting: _Waiting, given: list[Operand]) -> Operand:
        """What an operator makes of operands: a number of numbers, as Python does; else a gate."""
        gate, token = waiting.operator.gate, waiting.token
        if not gate:
            return given[0]
        numbers = [np.float64(each) for each in given if isinstance(each, float)]
        if gate in _AMONG_NUMBERS and len(numbers) == len(given):
            with np.errstate(all="ignore"):
                return float(_AMONG_NUMBERS[gate](*numbers))
        number = given[0] if isinstance(given[0], float) else None
        if gate == "Div" and number == 1:
            return self._gate(token, "Reciprocal", given[1:])
        if gate == "Pow" and number == math.e:
            return self._gate(token, "Exp", given[1:])
        if gate in _REQUIRED:
            try:
                _REQUIRED[gate](*given)
            except GradwireError as failure:
                self._fail(token.at, failure.message, failure.reason, failure.facts)
        found = self._gate(token, gate, given)
        return self._gate(token, "Not", [found]) if token.text == "!=" else found

    def _gate(
        self,
        token: _Token,
        gate: str,
        inputs: Sequence[Operand | None],
        attributes: Mapping[str, Any] | None = None,
    ) -> Handle:
        try:
            made = self._graph.apply_at(self._place(token.at), gate, inputs, dict(attributes or {}))
        except GradwireError as failure:
            what = f"{gate}: {_short(failure.message, 300)}"
            self._fail(token.at, what, failure.reason, failure.facts)
        return made[0]

    def _open(self, token: _Token) -> None:
        self._lists += token.text == "["
        if self._lists > _MOST_RANK:
            self._fail(token.at, f"lists nest at most {_MOST_RANK} deep")
        self._stack.append(_Open(token))

    def _close(self, token: _Token) -> None:
        """Makes a bracket and what is in it an operand."""
        opened = self._innermost()
        if opened is None:
            self._fail(token.at, f"{token.text!r} closes nothing")
        if token.text != _CLOSING[opened.token.text]:
            self._fail(
                token.at,
                f"expected {_CLOSING[opened.token.text]!r}, for the bracket at "
                f"{self._place(opened.token.at)}, but found {token.text!r}",
            )
        self._argument(opened)
        self._stack.pop()
        if opened.function is not None:
            self._operands.append(self._called(opened.function, opened))
        elif opened.token.text == "(":
            self._operands += opened.arguments
        else:
            self._lists -= 1
            self._operands.append(self._list(opened))

    def _list(self, opened: _Open) -> list[Operand]:
        if any(isinstance(each, Handle) for each in opened.arguments):
            self._fail(opened.token.at, "a list holds numbers, and no values; use concat")
        try:
            tensors.from_value("a list", opened.arguments, "float64")
        except GradwireError:
            self._fail(opened.token.at, "the lists in this list differ in length")
        return opened.arguments

    def _comma(self, token: _Token) -> None:
        opened = self._innermost()
        if opened is None or (opened.function is None and opened.token.text == "("):
            self._fail(token.at, "a comma stands between arguments of a function, or in a list")
        self._argument(opened)

    def _innermost(self) -> _Open | None:
        """The innermost open bracket, after the operators in it are applied."""
        self._reduce(0)
        opened = self._stack[-1] if self._stack else None
        return opened if isinstance(opened, _Open) else None

    def _argument(self, opened: _Open) -> None:
        value = self._operands.pop()
        if opened.keyword:
            opened.keywords[opened.keyword] = value
            opened.keyword = ""
        else:
            opened.arguments.append(value)

    def _is_argument(self) -> bool:
        """Whether a name before = is a keyword."""
        opened = self._stack[-1] if self._stack else None
        return isinstance(opened, _Open) and opened.function is not None and not opened.keyword

    def _is_keyword_value(self) -> bool:
        opened = self._stack[-1] if self._stack else None
        return isinstance(opened, _Open) and bool(opened.keyword)

    def _keyword(self, token: _Token) -> None:
        opened = self._stack[-1]
        assert isinstance(opened, _Open)
        if token.text in opened.keywords:
            self._fail(token.at, f"{_short(token.text)} is given twice")
        opened.keyword = token.text

    def _called(self, function: _Token, call: _Open) -> Handle:
        """A use of a function: its operands, and its attributes by keyword."""
        attributes: dict[str, Any] = {}
        gate = _operator_named(function.text) or ""
        if function.text in _REDUCTIONS and len(call.arguments) == 1:
            gate = _REDUCTIONS[function.text]
            attributes["keepdims"] = 0
        signature = SIGNATURES[gate]
        inputs: list[Operand | None] = [*call.arguments]
        slots = [each.name for each in signature.inputs if not each.variadic]
        kinds = {each.name: each.kind for each in signature.attributes}
        for name, value in call.keywords.items():
            if name not in slots:
                attributes[name] = self._attribute(function, name, kinds.get(name, ""), value)
                continue
            slot = slots.index(name)
            inputs += [None] * (slot + 1 - len(inputs))
            if inputs[slot] is not None:
                self._fail(function.at, f"{gate}: {name} is given twice")
            inputs[slot] = value
        return self._gate(function, gate, inputs, attributes)

    def _attribute(self, function: _Token, name: str, kind: str, value: Operand) -> Any:
        """A value as the builder takes it for an attribute of this kind, which it checks."""
        if isinstance(value, Handle):
            self._fail(function.at, f"attribute {name!r} is a number that is written, not a value")
        if kind == "tensor":
            try:
                return tensors.from_value(f"attribute {name!r}", value, "float64")
            except GradwireError as failure:
                self._fail(function.at, failure.message, failure.reason)
        if isinstance(value, list):
            if any(isinstance(each, list) for each in value):
                self._fail(function.at, f"attribute {name!r} is a list of numbers, not of lists")
            return [_whole(each) for each in value] if kind == "ints" else value
        return _whole(value) if kind == "int" else value

    def _require_function(self, token: _Token) -> None:
        name = token.text
        gate = _operator_named(name)
        if gate is not None:
            if SIGNATURES[gate].outputs[0] > 1:
                self._fail(token.at, f"{gate} yields several values; an expression is one value")
            return
        shown = _short(name)
        if not self._stack and _DEFINITION.match(self._text, token.at):
            self._fail(token.at, f"write {shown} = ...; the inputs are found in the expression")
        from gradwire.operators import __all__ as functions

        is_value = name in self._known or name in _CONSTANTS or len(name) < 3
        near = nearest(shown, (*functions, *_ALIASES, *_REDUCTIONS))
        hint = f"; to multiply, write {shown}*(...)" if is_value else near
        self._fail(token.at, f"there is no function {shown!r}{hint}")

    def _hint(self, token: _Token) -> str:
        """What to write where an operator is missing."""
        if token.text == "=":
            return "; == compares, and a name is assigned at the beginning of a statement"
        if token.text == "[":
            return "; gather(x, 0) takes an element"
        before = re.findall(r"\w+", self._text[max(0, token.at - 40) : token.at])
        if before and _operator_named(before[-1]) and token.text != "(":
            return f"; write {before[-1]}({_short(token.text)})"
        return "; to multiply, write *"

    def _is(self, mark: str) -> bool:
        return self._next.kind == "mark" and self._next.text == mark

    def _advance(self) -> _Token:
        token = self._next
        if token.kind == "mark":
            self._depth += (token.text in "([") - (token.text in ")]")
        self._next = self._scan(token.at + len(token.text))
        return token

    def _scan(self, at: int) -> _Token:
        while at < len(self._text):
            found = _TOKEN.match(self._text, at)
            if found is None:
                self._unreadable(at)
            kind, text = found.lastgroup or "", found.group()
            if kind == "space" or (text == "\n" and self._depth > 0):
                at = found.end()
                continue
            if kind == "name" and not text.isidentifier():
                wrong = (place for place, each in enumerate(text) if not f"a{each}".isidentifier())
                self._unreadable(at + next(wrong, 0))
            return _Token(kind, text, at)
        return _Token("done", "", len(self._text))

    def _unreadable(self, at: int) -> NoReturn:
        found = self._text[at]
        instead = f"; write {_INSTEAD[found]}" if found in _INSTEAD else ""
        self._fail(at, f"{found!r} cannot be read here{instead}")

    def _expected(self, what: str, token: _Token, hint: str = "") -> NoReturn:
        found = {"end": "the end of the statement", "done": "the end"}.get(token.kind)
        self._fail(token.at, f"expected {what} but found {found or repr(_short(token.text))}{hint}")

    def _place(self, at: int) -> str:
        line = bisect_right(self._lines, at)
        return f"line {line}, column {at - self._lines[line - 1] + 1}"

    def _fail(
        self,
        at: int,
        what: str,
        reason: str = "EXPRESSION_INVALID",
        facts: Mapping[str, str] | None = None,
    ) -> NoReturn:
        error = text_error(reason, self._text, at, what)
        message = f"{error.message}\n{_excerpt(self._text, at)}"
        raise TextError(reason, message, {**(facts or {}), **error.facts}) from None


def _excerpt(text: str, at: int) -> str:
    """The line around an offset, with a caret under it."""
    start = text.rfind("\n", 0, at) + 1
    end = text.find("\n", at) if "\n" in text[at:] else len(text)
    first, last = max(start, at - _SHOWN_BEFORE), min(end, at + _SHOWN_AFTER)
    shown = "".join(each if each.isprintable() else " " for each in text[first:last])
    before, after = "..." * (first > start), "..." * (last < end)
    return f"  {before}{shown}{after}\n  {' ' * (len(before) + at - first)}^"


def _operator_named(name: str) -> str | None:
    """The operator that a function means: by ONNX's name, gradwire's, or NumPy's."""
    if name in SIGNATURES or name != name.lower():
        return name if name in SIGNATURES else None
    return _ALIASES.get(name) or _LOWERED.get(name.replace("_", ""))


def _whole(number: Any) -> Any:
    """An integer where a number is one, within 64 bits."""
    is_whole = isinstance(number, float) and number.is_integer() and abs(number) < 1 << 63
    return int(number) if is_whole else number


def _short(text: str, most: int = 40) -> str:
    return text if len(text) <= most else text[: most - 3] + "..."
