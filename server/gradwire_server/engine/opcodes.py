"""Which gates run on tapes, and their bodies as straight-line scalar code.

A gate is written once, over a namespace `xp`. Here `xp` is a `Scribe`: it writes down what the body
asks for, one assignment a step, so that a compiler gets the same few lines that NumPy runs. A body
that asks for more than scalars can do (an axis, a shape) is no tape gate; the array engine has it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import product
from math import isinf, isnan
from typing import Any

from gradwire_server.errors import Refusal
from gradwire_server.gates import GATES, Gate
from gradwire_server.gates.base import AttributeValue
from gradwire_server.specs import BOOLS, ONNX_NUMBERS, TensorSpec

#: Most inputs of a node on a tape, and most real attributes: each is a column.
MAX_INPUTS = 3
MAX_CONSTANTS = 4

_BOOL = "bool"
_NAME = re.compile(r"\bt\d+\b")


class Untraceable(Exception):  # noqa: N818 -- an answer, not an error
    """The body cannot be written as straight-line scalar code."""


@dataclass(frozen=True)
class Body:
    """Assignments in C, in order, and the expression that they lead to.

    T is the floating type, F(x) a number of it; functions are those of kernels/c/elementary.h.
    """

    lines: tuple[str, ...]
    result: str


@dataclass(frozen=True)
class Opcode:
    """One instruction: what a gate computes, with its whole-number attributes fixed.

    Bodies name the inputs x0, x1, ..., the output `out`, the incoming gradient `grad` and the real
    attributes c[0], c[1], ... A pull of None means: that input gets no gradient.
    """

    input_count: int
    constant_count: int
    forward: Body
    pulls: tuple[Body | None, ...]

    @property
    def is_heavy(self) -> bool:
        """Whether the value takes a function or a division, worth doing many at a time."""
        text = " ".join(self.forward.lines)
        return "/" in text or "scalar_" in text


@dataclass(frozen=True)
class InstructionSet:
    """The opcodes for tapes of a floating data type.

    Numbers up to MAX_INPUTS compute nothing: they stand for a node of so many inputs that no
    seeded output depends on. `opcodes[i]` has the number MAX_INPUTS + 1 + i.
    """

    opcodes: tuple[Opcode, ...]
    numbers: Mapping[tuple[Any, ...], int]

    def number(
        self, gate: Gate, input_count: int, attributes: Mapping[str, AttributeValue]
    ) -> int | None:
        """The opcode of a row of the gates table (attributes complete), if a tape can run it."""
        whole = {
            each.name: attributes[each.name] for each in gate.attributes if each.kind != "float"
        }
        return self.numbers.get(_key(gate, input_count, whole))


@cache
def instruction_set(dtype: str) -> InstructionSet:
    """All gates that scalar code can be written for; gates that compute the same share a number."""
    numbers: dict[Opcode, int] = {}
    keys = {}
    for key, opcode in _discover(dtype):
        keys[key] = numbers.setdefault(opcode, MAX_INPUTS + 1 + len(numbers))
    return InstructionSet(tuple(numbers), keys)


def _key(gate: Gate, input_count: int, whole: Mapping[str, AttributeValue]) -> tuple[Any, ...]:
    return gate.operator, input_count, tuple(sorted(whole.items()))


def _discover(dtype: str) -> Iterator[tuple[tuple[Any, ...], Opcode]]:
    for gate in GATES.values():
        for count in _input_counts(gate):
            for whole in _settings(gate, dtype):
                try:
                    yield _key(gate, count, whole), _trace(gate, count, whole, dtype)
                except Untraceable:
                    break


def _input_counts(gate: Gate) -> Iterator[int]:
    """The numbers of inputs, none of them left out in the middle."""
    if gate.outputs != (1, 1) or any(each.known for each in gate.inputs):
        return
    least = sum(not each.optional for each in gate.inputs)
    most = MAX_INPUTS if gate.inputs and gate.inputs[-1].variadic else len(gate.inputs)
    yield from range(max(least, 1), min(most, MAX_INPUTS) + 1)


def _settings(gate: Gate, dtype: str) -> Iterator[dict[str, AttributeValue]]:
    """Every setting of the attributes that are not real numbers, where these are few."""
    names, choices = [], []
    for each in gate.attributes:
        if each.kind == "float":
            continue
        if each.kind not in ("int", "string"):
            return
        names.append(each.name)
        # a tape has two data types to cast to
        both = (ONNX_NUMBERS[dtype], ONNX_NUMBERS[_BOOL])
        choices.append(both if each.name == "to" else each.choices or (each.default,))
    for setting in product(*choices):
        yield dict(zip(names, setting, strict=True))


def _trace(gate: Gate, count: int, whole: Mapping[str, AttributeValue], dtype: str) -> Opcode:
    """The gate's bodies, written down for scalars (Untraceable)."""
    reals = tuple(each.name for each in gate.attributes if each.kind == "float")
    declared = gate.declared_inputs(count)
    if len(reals) > MAX_CONSTANTS or not all(
        dtype in each.dtypes or each.dtypes == BOOLS for each in declared
    ):
        raise Untraceable
    specs = tuple(TensorSpec((), _BOOL if each.dtypes == BOOLS else dtype) for each in declared)
    try:
        (spec,) = gate.check(specs, whole)
    except Refusal:
        raise Untraceable from None
    if spec.shape or spec.dtype not in (dtype, _BOOL):
        raise Untraceable

    def written(body: Callable[..., Any]) -> Body | None:
        scribe = Scribe(dtype)
        inputs = [scribe.leaf(f"x{slot}", each.dtype) for slot, each in enumerate(specs)]
        constants = {name: scribe.leaf(f"c[{slot}]", dtype) for slot, name in enumerate(reals)}
        return scribe.body(body(scribe, *inputs, **whole, **constants))

    def pull(slot: int) -> Body | None:
        if _BOOL in (spec.dtype, specs[slot].dtype):
            return None

        def body(scribe: Scribe, *inputs: Term, **attributes: Any) -> Any:
            grad, out = scribe.leaf("grad", dtype), scribe.leaf("out", dtype)
            entry = gate.vjp(scribe, grad, out, *inputs, **attributes)[slot]
            return entry() if callable(entry) else entry

        return written(body)

    try:
        forward = written(gate.forward)
        assert forward is not None, "every gate has an output"
        return Opcode(count, len(reals), forward, tuple(map(pull, range(count))))
    except (AttributeError, TypeError):
        raise Untraceable from None


class Term:
    """A scalar that will be computed: a name in the code being written."""

    __array_ufunc__ = None
    __hash__ = object.__hash__
    shape = ()

    def __init__(self, scribe: Scribe, text: str, dtype: str) -> None:
        self.scribe = scribe
        self.text = text
        self.dtype = dtype

    def __bool__(self) -> bool:
        raise TypeError("a gate may not branch on a value; use xp.where")

    def __neg__(self) -> Term:
        return self.scribe.negative(self)

    def __add__(self, other: Any) -> Term:
        return self.scribe.add(self, other)

    def __radd__(self, other: Any) -> Term:
        return self.scribe.add(other, self)

    def __sub__(self, other: Any) -> Term:
        return self.scribe.subtract(self, other)

    def __rsub__(self, other: Any) -> Term:
        return self.scribe.subtract(other, self)

    def __mul__(self, other: Any) -> Term:
        return self.scribe.multiply(self, other)

    def __rmul__(self, other: Any) -> Term:
        return self.scribe.multiply(other, self)

    def __truediv__(self, other: Any) -> Term:
        return self.scribe.divide(self, other)

    def __rtruediv__(self, other: Any) -> Term:
        return self.scribe.divide(other, self)

    def __pow__(self, other: Any) -> Term:
        return self.scribe.pow(self, other)


def _numeric(form: str) -> Callable[..., Term]:
    def write(self: Scribe, *operands: Any) -> Term:
        return self.write(form, self.dtype, *map(self.number, operands))

    return write


def _comparison(sign: str) -> Callable[..., Term]:
    def write(self: Scribe, x: Any, y: Any) -> Term:
        return self.write(f"{{}} {sign} {{}}", _BOOL, self.number(x), self.number(y))

    return write


def _logical(form: str) -> Callable[..., Term]:
    def write(self: Scribe, *operands: Term) -> Term:
        return self.write(form, _BOOL, *map(self.truth, operands))

    return write


class Scribe:
    """An array namespace that writes scalar code, each distinct step once."""

    abs = _numeric("scalar_abs({})")
    acos = _numeric("scalar_acos({})")
    acosh = _numeric("scalar_acosh({})")
    add = _numeric("{} + {}")
    asin = _numeric("scalar_asin({})")
    asinh = _numeric("scalar_asinh({})")
    atan = _numeric("scalar_atan({})")
    atanh = _numeric("scalar_atanh({})")
    ceil = _numeric("scalar_ceil({})")
    cos = _numeric("scalar_cos({})")
    cosh = _numeric("scalar_cosh({})")
    divide = _numeric("{} / {}")
    erf = _numeric("scalar_erf({})")
    exp = _numeric("scalar_exp({})")
    expm1 = _numeric("scalar_expm1({})")
    floor = _numeric("scalar_floor({})")
    fmod = _numeric("scalar_fmod({}, {})")
    log = _numeric("scalar_log({})")
    log1p = _numeric("scalar_log1p({})")
    maximum = _numeric("scalar_maximum({}, {})")
    minimum = _numeric("scalar_minimum({}, {})")
    multiply = _numeric("{} * {}")
    ndtr = _numeric("scalar_ndtr({})")
    negative = _numeric("-{}")
    pow = _numeric("scalar_power({}, {})")
    remainder = _numeric("scalar_remainder({}, {})")
    round = _numeric("scalar_rint({})")
    sign = _numeric("scalar_sign({})")
    sigmoid_slope = _numeric("scalar_sigmoid_slope({}, {}, exact, met)")
    sin = _numeric("scalar_sin({})")
    sinh = _numeric("scalar_sinh({})")
    sqrt = _numeric("scalar_sqrt({})")
    subtract = _numeric("{} - {}")
    tan = _numeric("scalar_tan({})")
    tanh = _numeric("scalar_tanh({})")
    tanh_slope = _numeric("scalar_tanh_slope({}, {}, exact, met)")
    trunc = _numeric("scalar_trunc({})")

    equal = _comparison("==")
    greater = _comparison(">")
    greater_equal = _comparison(">=")
    less = _comparison("<")
    less_equal = _comparison("<=")

    logical_and = _logical("{} & {}")
    logical_not = _logical("!{}")
    logical_or = _logical("{} | {}")
    logical_xor = _logical("{} != {}")

    def __init__(self, dtype: str) -> None:
        self.dtype = dtype
        self._steps: dict[str, Term] = {}
        self._lines: list[str] = []

    def leaf(self, name: str, dtype: str) -> Term:
        """An argument of the body; truths travel as 0 and 1."""
        return self.write("{} != F(0)", _BOOL, name) if dtype == _BOOL else Term(self, name, dtype)

    def write(self, form: str, dtype: str, *operands: str) -> Term:
        """One assignment, or the one that was written before for the same step."""
        step = form.format(*operands)
        if step not in self._steps:
            name = f"t{len(self._steps)}"
            self._steps[step] = Term(self, name, dtype)
            self._lines.append(f"const {'bool' if dtype == _BOOL else 'T'} {name} = {step};")
        return self._steps[step]

    def body(self, result: Any) -> Body | None:
        """What was written and leads to the result; None where there is no result."""
        if result is None:
            return None
        text = self.number(result)
        used = set(_NAME.findall(text))
        lines = []
        for line in reversed(self._lines):
            name, _, step = line.partition(" = ")
            if name.split()[-1] in used:
                used.update(_NAME.findall(step))
                lines.append(line)
        return Body(tuple(reversed(lines)), text)

    def number(self, x: Any) -> str:
        """A number as text; of a truth, 0 or 1."""
        if isinstance(x, Term):
            return self._select(x.text, "F(1)", "F(0)").text if x.dtype == _BOOL else x.text
        if isinstance(x, (bool, int, float)):
            return _literal(float(x))
        raise Untraceable

    def truth(self, x: Any) -> str:
        """A truth as text."""
        if isinstance(x, Term) and x.dtype == _BOOL:
            return x.text
        raise Untraceable

    def isinf(self, x: Term) -> Term:
        return self.write("scalar_isinf({})", _BOOL, self.number(x))

    def isnan(self, x: Term) -> Term:
        return self.write("scalar_isnan({})", _BOOL, self.number(x))

    def where(self, condition: Term, x: Any, y: Any) -> Term:
        return self._select(self.truth(condition), self.number(x), self.number(y))

    def astype(self, x: Term, dtype: str) -> Term:
        if dtype == x.dtype:
            return x
        if dtype == _BOOL:
            return self.write("{} != F(0)", _BOOL, self.number(x))
        if dtype == self.dtype:
            return self._select(self.truth(x), "F(1)", "F(0)")
        raise Untraceable

    def zeros_like(self, x: Term) -> Term:
        return Term(self, "F(0)", self.dtype)

    def ones_like(self, x: Term) -> Term:
        return Term(self, "F(1)", self.dtype)

    def full_like(self, x: Term, fill: float) -> Term:
        return Term(self, _literal(fill), self.dtype)

    def _select(self, condition: str, x: str, y: str) -> Term:
        return self.write("where({}, {}, {})", self.dtype, condition, x, y)


def _literal(x: float) -> str:
    if isnan(x):
        return "F(NAN)"
    if isinf(x):
        return "F(INFINITY)" if x > 0 else "F(-INFINITY)"
    is_short = x.is_integer() and abs(x) < 1e15 and repr(x) != "-0.0"
    return f"F({int(x)})" if is_short else f"F({x!r})"
