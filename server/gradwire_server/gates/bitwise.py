"""Bitwise: integers as rows of bits. None has a gradient."""

from __future__ import annotations

from typing import Any

from gradwire_server.gates.base import (
    Array,
    Attribute,
    ElementwiseGate,
    Example,
    Input,
    Namespace,
    Rejection,
)
from gradwire_server.specs import INTEGERS, ITEM_SIZES, TensorSpec

_PAIR = (Input("A", INTEGERS), Input("B", INTEGERS))
_MISFIT = Rejection(
    (TensorSpec((2,), "int64"), TensorSpec((3,), "int64")),
    "shapes (2,) and (3,) do not broadcast",
)
_FLOAT_REFUSED = Rejection(
    (TensorSpec(()), TensorSpec(())), "A is float64 but must be one of", "DATA_TYPE_UNSUPPORTED"
)


class BitwiseAnd(ElementwiseGate):
    """The bits that are set in both.

    Formula:   out = A and B, bit by bit
    Gradient:  None: the output is an integer.
    Shapes:    A and B broadcast.
    """

    operator = "BitwiseAnd"
    inputs = _PAIR
    examples = (Example(([12, 5], 10), [8, 0]),)
    rejections = (_MISFIT, _FLOAT_REFUSED)

    def forward(self, xp: Namespace, a: Array, b: Array) -> Array:
        return xp.bitwise_and(a, b)

    def vjp(self, xp: Namespace, grad: Array, out: Array, *inputs: Array) -> tuple[None, ...]:
        return None, None


class BitwiseOr(ElementwiseGate):
    """The bits that are set in one or both.

    Formula:   out = A or B, bit by bit
    Gradient:  None: the output is an integer.
    Shapes:    A and B broadcast.
    """

    operator = "BitwiseOr"
    inputs = _PAIR
    examples = (Example(([12, 5], 10), [14, 15]),)
    rejections = (_MISFIT, _FLOAT_REFUSED)

    def forward(self, xp: Namespace, a: Array, b: Array) -> Array:
        return xp.bitwise_or(a, b)

    def vjp(self, xp: Namespace, grad: Array, out: Array, *inputs: Array) -> tuple[None, ...]:
        return None, None


class BitwiseXor(ElementwiseGate):
    """The bits that are set in exactly one.

    Formula:   out = A xor B, bit by bit
    Gradient:  None: the output is an integer.
    Shapes:    A and B broadcast.
    """

    operator = "BitwiseXor"
    inputs = _PAIR
    examples = (Example(([12, 5], 10), [6, 15]),)
    rejections = (_MISFIT, _FLOAT_REFUSED)

    def forward(self, xp: Namespace, a: Array, b: Array) -> Array:
        return xp.bitwise_xor(a, b)

    def vjp(self, xp: Namespace, grad: Array, out: Array, *inputs: Array) -> tuple[None, ...]:
        return None, None


class BitwiseNot(ElementwiseGate):
    """The bits that are not set.

    Formula:   out = not X, bit by bit: -1 - X for signed integers
    Gradient:  None: the output is an integer.
    Shapes:    As X.
    """

    operator = "BitwiseNot"
    inputs = (Input("X", INTEGERS),)
    examples = (Example(([0, 5, -1],), [-1, -6, 0]),)

    def forward(self, xp: Namespace, x: Array) -> Array:
        return xp.bitwise_invert(x)

    def vjp(self, xp: Namespace, grad: Array, out: Array, x: Array) -> tuple[None, ...]:
        return (None,)


class BitShift(ElementwiseGate):
    """Bits moved to the left or right.

    Formula:   out = X * 2^Y without the bits that leave (LEFT), or floor(X / 2^Y) (RIGHT); a Y that
               is negative or not below the number of bits moves every bit out: 0, or -1 for a
               negative X moved to the right
    Gradient:  None: the output is an integer.
    Shapes:    X and Y broadcast.
    """

    operator = "BitShift"
    scratch_arrays = (2.2, 0)
    inputs = (Input("X", INTEGERS), Input("Y", INTEGERS))
    attributes = (
        Attribute("direction", "string", required=True, choices=("LEFT", "RIGHT"),
                  doc="Where bits move."),
    )  # fmt: skip
    examples = (
        Example(([1, 2, -3], [1, 2, 1]), [2, 8, -6], attributes={"direction": "LEFT"}),
        Example(([4, -3, -8], [1, 1, 64]), [2, -2, -1], attributes={"direction": "RIGHT"}),
        Example(([5, -5], -1), [0, 0], attributes={"direction": "LEFT"}),
    )
    rejections = (
        Rejection((TensorSpec((), "int64"), TensorSpec((), "int64")), "'direction' must be given",
                  "ATTRIBUTE_INVALID"),
    )  # fmt: skip

    def forward(self, xp: Namespace, x: Array, y: Array, direction: str) -> Array:
        last = 8 * ITEM_SIZES[str(x.dtype)] - 1
        stays = xp.logical_and(xp.greater_equal(y, 0), xp.less_equal(y, last))
        if direction == "RIGHT":  # what moves in is the sign
            sign = xp.where(xp.less(x, 0), xp.bitwise_invert(xp.zeros_like(x)), xp.zeros_like(x))
            return xp.where(stays, xp.bitwise_right_shift(x, xp.where(stays, y, 0)), sign)
        return xp.where(stays, xp.bitwise_left_shift(x, xp.where(stays, y, 0)), xp.zeros_like(x))

    def vjp(self, xp: Namespace, grad: Array, out: Array, *_: Any, **__: Any) -> tuple[None, ...]:
        return None, None
