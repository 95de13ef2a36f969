"""Comparison and choice. Only Where has a gradient; the rest yield booleans."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gradwire_server.gates.base import (
    Array,
    Attribute,
    ElementwiseGate,
    Example,
    Input,
    Namespace,
    Rejection,
    Scratch,
)
from gradwire_server.specs import ANY, BOOLS, COMPUTED, FLOAT8S, FLOATS, NUMBERS, TensorSpec

_PAIR = (Input("A", NUMBERS), Input("B", NUMBERS))
_BOOL_PAIR = (Input("A", BOOLS), Input("B", BOOLS))
_MISFIT = Rejection((TensorSpec((2,)), TensorSpec((3,))), "shapes (2,) and (3,) do not broadcast")
_NUMBERS_REFUSED = Rejection(
    (TensorSpec(()), TensorSpec(())),
    "A is float64 but must be one of bool",
    "DATA_TYPE_UNSUPPORTED",
)


class Equal(ElementwiseGate):
    """Whether two elements are equal; NaN equals nothing.

    Formula:   out = [A = B]
    Gradient:  None: the output is bool.
    Shapes:    A and B broadcast.
    """

    operator = "Equal"
    inputs = (Input("A", ANY), Input("B", ANY))
    output_dtype = "bool"
    examples = (
        Example(([1.0, 2.0, 3.0], 2.0), [False, True, False]),
        Example(([1, 2, 3], 2), [False, True, False]),
    )
    rejections = (_MISFIT,)

    def forward(self, xp: Namespace, a: Array, b: Array) -> Array:
        return xp.equal(a, b)

    def vjp(self, xp: Namespace, grad: Array, out: Array, *inputs: Array) -> tuple[None, ...]:
        return None, None


class Greater(ElementwiseGate):
    """Whether the first element is larger.

    Formula:   out = [A > B]
    Gradient:  None: the output is bool.
    Shapes:    A and B broadcast.
    """

    operator = "Greater"
    inputs = _PAIR
    output_dtype = "bool"
    examples = (
        Example(([1.0, 2.0, 3.0], 2.0), [False, False, True]),
        Example(([1, 2, 3], 2), [False, False, True]),
    )
    rejections = (_MISFIT,)

    def forward(self, xp: Namespace, a: Array, b: Array) -> Array:
        return xp.greater(a, b)

    def vjp(self, xp: Namespace, grad: Array, out: Array, *inputs: Array) -> tuple[None, ...]:
        return None, None


class GreaterOrEqual(ElementwiseGate):
    """Whether the first element is not smaller.

    Formula:   out = [A >= B]
    Gradient:  None: the output is bool.
    Shapes:    A and B broadcast.
    """

    operator = "GreaterOrEqual"
    inputs = _PAIR
    output_dtype = "bool"
    examples = (
        Example(([1.0, 2.0, 3.0], 2.0), [False, True, True]),
        Example(([1, 2, 3], 2), [False, True, True]),
    )
    rejections = (_MISFIT,)

    def forward(self, xp: Namespace, a: Array, b: Array) -> Array:
        return xp.greater_equal(a, b)

    def vjp(self, xp: Namespace, grad: Array, out: Array, *inputs: Array) -> tuple[None, ...]:
        return None, None


class Less(ElementwiseGate):
    """Whether the first element is smaller.

    Formula:   out = [A < B]
    Gradient:  None: the output is bool.
    Shapes:    A and B broadcast.
    """

    operator = "Less"
    inputs = _PAIR
    output_dtype = "bool"
    examples = (
        Example(([1.0, 2.0, 3.0], 2.0), [True, False, False]),
        Example(([1, 2, 3], 2), [True, False, False]),
    )
    rejections = (_MISFIT,)

    def forward(self, xp: Namespace, a: Array, b: Array) -> Array:
        return xp.less(a, b)

    def vjp(self, xp: Namespace, grad: Array, out: Array, *inputs: Array) -> tuple[None, ...]:
        return None, None


class LessOrEqual(ElementwiseGate):
    """Whether the first element is not larger.

    Formula:   out = [A <= B]
    Gradient:  None: the output is bool.
    Shapes:    A and B broadcast.
    """

    operator = "LessOrEqual"
    inputs = _PAIR
    output_dtype = "bool"
    examples = (
        Example(([1.0, 2.0, 3.0], 2.0), [True, True, False]),
        Example(([1, 2, 3], 2), [True, True, False]),
    )
    rejections = (_MISFIT,)

    def forward(self, xp: Namespace, a: Array, b: Array) -> Array:
        return xp.less_equal(a, b)

    def vjp(self, xp: Namespace, grad: Array, out: Array, *inputs: Array) -> tuple[None, ...]:
        return None, None


class And(ElementwiseGate):
    """Whether both are true.

    Formula:   out = A and B
    Gradient:  None: the output is bool.
    Shapes:    A and B broadcast.
    """

    operator = "And"
    inputs = _BOOL_PAIR
    examples = (Example(([True, True, False], [True, False, False]), [True, False, False]),)
    rejections = (_NUMBERS_REFUSED,)

    def forward(self, xp: Namespace, a: Array, b: Array) -> Array:
        return xp.logical_and(a, b)

    def vjp(self, xp: Namespace, grad: Array, out: Array, *inputs: Array) -> tuple[None, ...]:
        return None, None


class Or(ElementwiseGate):
    """Whether one of both is true.

    Formula:   out = A or B
    Gradient:  None: the output is bool.
    Shapes:    A and B broadcast.
    """

    operator = "Or"
    inputs = _BOOL_PAIR
    examples = (Example(([True, True, False], [True, False, False]), [True, True, False]),)
    rejections = (_NUMBERS_REFUSED,)

    def forward(self, xp: Namespace, a: Array, b: Array) -> Array:
        return xp.logical_or(a, b)

    def vjp(self, xp: Namespace, grad: Array, out: Array, *inputs: Array) -> tuple[None, ...]:
        return None, None


class Xor(ElementwiseGate):
    """Whether exactly one of both is true.

    Formula:   out = A xor B
    Gradient:  None: the output is bool.
    Shapes:    A and B broadcast.
    """

    operator = "Xor"
    inputs = _BOOL_PAIR
    examples = (Example(([True, True, False], [True, False, False]), [False, True, False]),)
    rejections = (_NUMBERS_REFUSED,)

    def forward(self, xp: Namespace, a: Array, b: Array) -> Array:
        return xp.logical_xor(a, b)

    def vjp(self, xp: Namespace, grad: Array, out: Array, *inputs: Array) -> tuple[None, ...]:
        return None, None


class Not(ElementwiseGate):
    """Whether the element is false.

    Formula:   out = not X
    Gradient:  None: the output is bool.
    Shapes:    As X.
    """

    operator = "Not"
    inputs = (Input("X", BOOLS),)
    examples = (Example(([True, False],), [False, True]),)

    def forward(self, xp: Namespace, x: Array) -> Array:
        return xp.logical_not(x)

    def vjp(self, xp: Namespace, grad: Array, out: Array, x: Array) -> tuple[None, ...]:
        return (None,)


class Where(ElementwiseGate):
    """X where the condition holds, else Y.

    Formula:   out = X if condition else Y
    Gradient:  d out/dX = [condition],  d out/dY = [not condition]
    Shapes:    condition, X and Y broadcast.
    """

    operator = "Where"
    takes_halves = True
    inputs = (Input("condition", BOOLS, group="B"), Input("X", ANY), Input("Y", ANY))
    examples = (
        Example(([True, False], [1.0, 2.0], 9.0), [1.0, 9.0], gradients=(None, [1.0, 0.0], 1.0)),
        Example(([True, False], 1, 2), [1, 2]),
    )
    rejections = (
        Rejection(
            (TensorSpec(()), TensorSpec(()), TensorSpec(())),
            "condition is float64 but must be one of bool",
            "DATA_TYPE_UNSUPPORTED",
        ),
    )

    def infer(self, *specs: Any, **attributes: Any) -> TensorSpec:
        return TensorSpec(super().infer(*specs).shape, specs[1].dtype)

    def scratch(self, outs: Sequence[TensorSpec], *specs: Any, **attributes: Any) -> Scratch:
        chosen = outs[0].dtype in COMPUTED  # by bits; others NumPy chooses
        _, back = super().scratch(outs, *specs)
        return Scratch(outs[0].nbytes if chosen else 0, back + outs[0].nbytes)

    def forward(self, xp: Namespace, condition: Array, x: Array, y: Array) -> Array:
        return xp.where(condition, x, y)

    def vjp(
        self, xp: Namespace, grad: Array, out: Array, condition: Array, x: Array, y: Array
    ) -> tuple[Array | None, ...]:
        return None, xp.where(condition, grad, 0.0), xp.where(condition, 0.0, grad)


class IsNaN(ElementwiseGate):
    """Whether the element is not a number.

    Formula:   out = [X is NaN]
    Gradient:  None: the output is bool.
    Shapes:    As X.
    """

    operator = "IsNaN"
    output_dtype = "bool"
    inputs = (Input("X", (*FLOATS, *FLOAT8S)),)
    examples = (Example(([1.0, float("nan")],), [False, True]),)

    def forward(self, xp: Namespace, x: Array) -> Array:
        return xp.isnan(x)

    def vjp(self, xp: Namespace, grad: Array, out: Array, x: Array) -> tuple[None, ...]:
        return (None,)


class IsInf(ElementwiseGate):
    """Whether the element is infinite, on the sides that are asked about.

    Formula:   out = [X = infinity and detect_positive] or [X = -infinity and detect_negative]
    Gradient:  None: the output is bool.
    Shapes:    As X.
    """

    operator = "IsInf"
    output_dtype = "bool"
    inputs = (Input("X", (*FLOATS, *FLOAT8S)),)
    attributes = (
        Attribute("detect_negative", "int", 1, choices=(0, 1), doc="Count -infinity."),
        Attribute("detect_positive", "int", 1, choices=(0, 1), doc="Count infinity."),
    )
    examples = (
        Example(([1.0, float("inf"), float("-inf")],), [False, True, True]),
        Example(
            ([1.0, float("inf"), float("-inf")],),
            [False, True, False],
            attributes={"detect_negative": 0},
        ),
    )

    def scratch(self, outs: Sequence[TensorSpec], *specs: Any, **attributes: Any) -> Scratch:
        both = attributes["detect_negative"] and attributes["detect_positive"]
        return Scratch(0 if both else 2 * outs[0].nbytes, 0)

    def forward(self, xp: Namespace, x: Array, detect_negative: int, detect_positive: int) -> Array:
        found = xp.isinf(x)
        if not detect_negative:
            found = xp.logical_and(found, xp.greater(x, 0.0))
        if not detect_positive:
            found = xp.logical_and(found, xp.less(x, 0.0))
        return found

    def vjp(self, xp: Namespace, grad: Array, out: Array, x: Array, **_: int) -> tuple[None, ...]:
        return (None,)
