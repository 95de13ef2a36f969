"""Arithmetic: sums, products, powers, rounding, means and extremes."""

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
    Sample,
    Scratch,
    guarded,
)
from gradwire_server.specs import FLOATS, ITEM_SIZES, NUMBERS, SIGNED, TensorSpec

_PAIR = (Input("A", NUMBERS), Input("B", NUMBERS))
_MISFIT = Rejection((TensorSpec((2,)), TensorSpec((3,))), "shapes (2,) and (3,) do not broadcast")
_MIXED = Rejection(
    (TensorSpec(()), TensorSpec((), "float32")),
    "A is float64 but B is float32",
    reason="DATA_TYPE_MISMATCH",
)
_NOT_BOOL = Rejection((TensorSpec((), "bool"),), "X is bool", reason="DATA_TYPE_UNSUPPORTED")


class Add(ElementwiseGate):
    """Sum of two numbers.

    Formula:   out = A + B
    Gradient:  d out/dA = 1,  d out/dB = 1
    Shapes:    A and B broadcast.
    """

    operator = "Add"
    passes_grad = "to all"
    inputs = _PAIR
    examples = (
        Example((2.0, 3.0), 5.0, gradients=(1.0, 1.0)),
        Example(
            ([[1.0], [2.0]], [10.0, 20.0]),
            [[11.0, 21.0], [12.0, 22.0]],
            gradients=([[2.0], [2.0]], [2.0, 2.0]),
        ),
        Example(([1, 2], 3), [4, 5]),
    )
    rejections = (_MISFIT, _MIXED)

    def forward(self, xp: Namespace, a: Array, b: Array) -> Array:
        return xp.add(a, b)

    def vjp(self, xp: Namespace, grad: Array, out: Array, a: Array, b: Array) -> tuple[Array, ...]:
        return grad, grad


class Sub(ElementwiseGate):
    """Difference of two numbers.

    Formula:   out = A - B
    Gradient:  d out/dA = 1,  d out/dB = -1
    Shapes:    A and B broadcast.
    """

    operator = "Sub"
    passes_grad = "to the first"
    inputs = _PAIR
    examples = (
        Example((2.0, 3.0), -1.0, gradients=(1.0, -1.0)),
        Example(([1, 2], 3), [-2, -1]),
    )
    rejections = (_MISFIT, _MIXED)

    def forward(self, xp: Namespace, a: Array, b: Array) -> Array:
        return xp.subtract(a, b)

    def vjp(self, xp: Namespace, grad: Array, out: Array, a: Array, b: Array) -> tuple[Array, ...]:
        return grad, -grad


class Mul(ElementwiseGate):
    """Product of two numbers.

    Formula:   out = A * B
    Gradient:  d out/dA = B,  d out/dB = A
    Shapes:    A and B broadcast.
    """

    operator = "Mul"
    inputs = _PAIR
    examples = (
        Example((2.0, -3.0), -6.0, gradients=(-3.0, 2.0)),
        Example(([1.0, 2.0], 3.0), [3.0, 6.0], gradients=([3.0, 3.0], 3.0)),
        Example(([1, 2], 3), [3, 6]),
    )
    rejections = (_MISFIT, _MIXED)

    def forward(self, xp: Namespace, a: Array, b: Array) -> Array:
        return xp.multiply(a, b)

    def vjp(self, xp: Namespace, grad: Array, out: Array, a: Array, b: Array) -> tuple[Array, ...]:
        return grad * b, grad * a


class Div(ElementwiseGate):
    """Quotient of two numbers; of integers, rounded towards zero, and 0 where B is 0.

    Formula:   out = A / B
    Gradient:  d out/dA = 1 / B,  d out/dB = -out / B
    Kinks:     Where B is 0 the gradient is not finite, and 0 where nothing depends on it.
    Shapes:    A and B broadcast.
    """

    operator = "Div"
    scratch_arrays = (0, 2.4)
    inputs = (Input("A", NUMBERS), Input("B", NUMBERS, domain=(0.5, 2.0)))
    examples = (
        Example((6.0, 2.0), 3.0, gradients=(0.5, -1.5)),
        Example(([7, -7, 7, 1], [2, 2, -2, 0]), [3, -3, -3, 0]),
    )
    rejections = (_MISFIT, _MIXED)

    def scratch(self, outs: Sequence[TensorSpec], *specs: Any, **attributes: Any) -> Scratch:
        if outs[0].is_floating:
            return super().scratch(outs, *specs, **attributes)
        return Scratch(int(4.3 * outs[0].nbytes), 0)

    def forward(self, xp: Namespace, a: Array, b: Array) -> Array:
        if str(a.dtype) in FLOATS:
            return xp.divide(a, b)
        return xp.truncated_divide(a, b)

    def vjp(self, xp: Namespace, grad: Array, out: Array, a: Array, b: Array) -> tuple[Array, ...]:
        unused = xp.logical_and(xp.equal(b, 0.0), xp.equal(grad, 0.0))
        divisor = xp.where(unused, 1.0, b)
        return grad / divisor, -guarded(xp, grad, out) / divisor


class Pow(ElementwiseGate):
    """Power of a number; the result has the type of the base.

    Formula:   out = X ** Y
    Gradient:  d out/dX = Y * X ** (Y - 1),  d out/dY = out * log(X)
    Kinks:     d out/dX is 0 where Y is 0. Where X is 0, log(X) counts as a number near the lowest
               one, so that d out/dY is 0 if Y is above 0. Where X is below 0 and Y whole, d out/dY
               is that of the real part of the power, out * log(-X).
    Shapes:    X and Y broadcast.
    """

    operator = "Pow"
    scratch_arrays = (0, 3)
    inputs = (
        Input("X", (*FLOATS, "int32", "int64"), domain=(0.3, 2.0)),
        Input("Y", NUMBERS, group="T1"),
    )
    examples = (
        Example((2.0, 3.0), 8.0, gradients=(12.0, 5.545177444479562)),
        Example((-2.0, 2), 4.0, gradients=(-4.0, None)),
        Example((0.0, 2.0), 0.0, gradients=(0.0, 0.0), at_kink=True),
        Example((0.0, 0.0), 1.0, gradients=(0.0, -1e308), at_kink=True),
        Example((0.0, 1.0), 0.0, gradients=(1.0, 0.0), at_kink=True),
        Example(([1, 2, 3], 2), [1, 4, 9]),
        Example((3, [39, -1]), [4052555153018976267, 0]),
        Example((-2.0, 3.0), -8.0, gradients=(12.0, -5.545177444479562), at_kink=True),
    )
    rejections = (
        Rejection((TensorSpec((2,)), TensorSpec((3,))), "shapes (2,) and (3,) do not broadcast"),
    )

    def scratch(self, outs: Sequence[TensorSpec], x: TensorSpec, y: TensorSpec) -> Scratch:
        converted = y.size * ITEM_SIZES[x.dtype]
        _, back = super().scratch(outs, x, y)
        if not x.is_floating:
            return Scratch(converted + 4 * 8 * outs[0].size, 0)
        masks = (4.05 if y.size == outs[0].size else 1.05) * outs[0].size
        return Scratch(converted, back + int(masks))

    def forward(self, xp: Namespace, x: Array, y: Array) -> Array:
        if str(x.dtype) in FLOATS:
            return xp.pow(x, xp.astype(y, x.dtype))
        inexact = xp.astype(xp.pow(xp.astype(x, "float64"), xp.astype(y, "float64")), x.dtype)
        if str(y.dtype) in FLOATS:
            return inexact
        exponent = xp.astype(xp.maximum(y, xp.zeros_like(y)), x.dtype)
        return xp.where(xp.less(y, 0), inexact, xp.pow(x, exponent))

    def vjp(self, xp: Namespace, grad: Array, out: Array, x: Array, y: Array) -> tuple[Array, ...]:
        has_gradient = str(y.dtype) in FLOATS
        y = xp.astype(y, x.dtype)
        largest = _LARGEST[str(x.dtype)]
        power = xp.pow(x, y - 1.0)
        # 0 times the largest number is 0, and its derivative is as good as infinite
        not_finite = xp.logical_or(xp.isinf(power), xp.isnan(power))
        stuck = xp.logical_and(not_finite, xp.equal(y, 0.0))

        def to_y() -> Array:
            is_zero = xp.equal(x, 0.0)
            logarithm = xp.log(xp.abs(xp.where(is_zero, 1.0, x)))
            return guarded(xp, grad, out) * xp.where(is_zero, -largest, logarithm)

        to_x = guarded(xp, grad, y * xp.where(stuck, largest, power))
        return to_x, to_y if has_gradient else None


#: A number of each data type that is near its largest one.
_LARGEST = {"float32": 3e38, "float64": 1e308}


class Neg(ElementwiseGate):
    """Number with its sign changed.

    Formula:   out = -X
    Gradient:  d out/dX = -1
    Shapes:    As X.
    """

    operator = "Neg"
    inputs = (Input("X", SIGNED),)
    examples = (Example((2.0,), -2.0, gradients=(-1.0,)), Example(([1, -2],), [-1, 2]))
    rejections = (_NOT_BOOL,)

    def forward(self, xp: Namespace, x: Array) -> Array:
        return xp.negative(x)

    def vjp(self, xp: Namespace, grad: Array, out: Array, x: Array) -> tuple[Array, ...]:
        return (-grad,)


class Abs(ElementwiseGate):
    """Distance from zero.

    Formula:   out = |X|
    Gradient:  d out/dX = sign(X)
    Kinks:     At 0 the gradient is 0.
    Shapes:    As X.
    """

    operator = "Abs"
    inputs = (Input("X", NUMBERS),)
    examples = (
        Example(([-2.0, 3.0],), [2.0, 3.0], gradients=([-1.0, 1.0],)),
        Example((0.0,), 0.0, gradients=(0.0,), at_kink=True),
        Example(([-2, 3],), [2, 3]),
    )
    rejections = (_NOT_BOOL,)

    def forward(self, xp: Namespace, x: Array) -> Array:
        return xp.abs(x)

    def vjp(self, xp: Namespace, grad: Array, out: Array, x: Array) -> tuple[Array, ...]:
        return (grad * xp.sign(x),)


class Reciprocal(ElementwiseGate):
    """One divided by a number.

    Formula:   out = 1 / X
    Gradient:  d out/dX = -out ** 2
    Kinks:     At 0 the gradient is infinite, and 0 where nothing depends on it.
    Shapes:    As X.
    """

    operator = "Reciprocal"
    scratch_arrays = (1, 2.3)
    inputs = (Input("X", domain=(0.5, 2.0)),)
    examples = (
        Example((2.0,), 0.5, gradients=(-0.25,)),
        Example((0.0,), float("inf"), gradients=(float("-inf"),), at_kink=True),
    )

    def forward(self, xp: Namespace, x: Array) -> Array:
        return xp.divide(xp.ones_like(x), x)

    def vjp(self, xp: Namespace, grad: Array, out: Array, x: Array) -> tuple[Array, ...]:
        return (guarded(xp, guarded(xp, -grad, out), out),)


class Sqrt(ElementwiseGate):
    """Square root; NaN below zero.

    Formula:   out = sqrt(X)
    Gradient:  d out/dX = 1 / (2 * out)
    Kinks:     At 0 the gradient is infinite, and 0 where nothing depends on it.
    Shapes:    As X.
    """

    operator = "Sqrt"
    scratch_arrays = (0, 2.3)
    inputs = (Input("X", domain=(0.2, 3.0)),)
    examples = (
        Example((4.0,), 2.0, gradients=(0.25,)),
        Example((0.0,), 0.0, gradients=(float("inf"),), at_kink=True),
    )

    def forward(self, xp: Namespace, x: Array) -> Array:
        return xp.sqrt(x)

    def vjp(self, xp: Namespace, grad: Array, out: Array, x: Array) -> tuple[Array, ...]:
        return (guarded(xp, grad, 0.5 / out),)


class Sign(ElementwiseGate):
    """-1, 0 or 1 by the sign.

    Formula:   out = [X > 0] - [X < 0]
    Gradient:  d out/dX = 0
    Kinks:     At 0 the gradient is 0.
    Shapes:    As X.
    """

    operator = "Sign"
    inputs = (Input("X", NUMBERS),)
    examples = (
        Example(([-2.0, 3.0],), [-1.0, 1.0], gradients=([0.0, 0.0],)),
        Example((0.0,), 0.0, gradients=(0.0,), at_kink=True),
        Example(([-2, 0, 3],), [-1, 0, 1]),
    )

    def forward(self, xp: Namespace, x: Array) -> Array:
        return xp.sign(x)

    def vjp(self, xp: Namespace, grad: Array, out: Array, x: Array) -> tuple[Array, ...]:
        return (xp.zeros_like(x),)


class Mod(ElementwiseGate):
    """Remainder of a division; with fmod=1 it has the sign of A, else of B (integers only).

    Formula:   out = A - B * q, where q is A / B rounded: towards zero (fmod=1), or down (fmod=0)
    Gradient:  d out/dA = 1,  d out/dB = -q
    Kinks:     Where A / B is a whole number the gradient is that of the piece above.
    Shapes:    A and B broadcast.
    """

    operator = "Mod"
    scratch_arrays = (0, 2.3)
    inputs = (Input("A", NUMBERS), Input("B", NUMBERS, domain=(0.5, 2.0)))
    attributes = (
        Attribute("fmod", "int", 0, choices=(0, 1), doc="1: the sign of A; floats need it."),
    )
    examples = (
        Example((-7.5, 2.0), -1.5, gradients=(1.0, 3.0), attributes={"fmod": 1}),
        Example(([-7, 7, -7], [2, -2, -2]), [1, -1, -1]),
        Example(([-7, 7], [2, -2]), [-1, 1], attributes={"fmod": 1}),
    )
    rejections = (_MISFIT,)

    def forward(self, xp: Namespace, a: Array, b: Array, fmod: int) -> Array:
        return xp.fmod(a, b) if fmod else xp.remainder(a, b)

    def vjp(
        self, xp: Namespace, grad: Array, out: Array, a: Array, b: Array, fmod: int
    ) -> tuple[Array, ...]:
        whole = xp.round((a - out) / b)
        return grad, guarded(xp, -grad, whole)


class Floor(ElementwiseGate):
    """Largest whole number that is not above.

    Formula:   out = floor(X)
    Gradient:  d out/dX = 0
    Kinks:     At whole numbers the gradient is 0.
    Shapes:    As X.
    """

    operator = "Floor"
    examples = (
        Example(([1.5, -1.5],), [1.0, -2.0], gradients=([0.0, 0.0],)),
        Example((2.0,), 2.0, gradients=(0.0,), at_kink=True),
    )

    def forward(self, xp: Namespace, x: Array) -> Array:
        return xp.floor(x)

    def vjp(self, xp: Namespace, grad: Array, out: Array, x: Array) -> tuple[Array, ...]:
        return (xp.zeros_like(x),)


class Ceil(ElementwiseGate):
    """Smallest whole number that is not below.

    Formula:   out = ceil(X)
    Gradient:  d out/dX = 0
    Kinks:     At whole numbers the gradient is 0.
    Shapes:    As X.
    """

    operator = "Ceil"
    examples = (
        Example(([1.5, -1.5],), [2.0, -1.0], gradients=([0.0, 0.0],)),
        Example((2.0,), 2.0, gradients=(0.0,), at_kink=True),
    )

    def forward(self, xp: Namespace, x: Array) -> Array:
        return xp.ceil(x)

    def vjp(self, xp: Namespace, grad: Array, out: Array, x: Array) -> tuple[Array, ...]:
        return (xp.zeros_like(x),)


class Round(ElementwiseGate):
    """Nearest whole number; halves go to the even one.

    Formula:   out = round(X)
    Gradient:  d out/dX = 0
    Kinks:     At halves the gradient is 0.
    Shapes:    As X.
    """

    operator = "Round"
    examples = (
        Example(([1.4, -1.6],), [1.0, -2.0], gradients=([0.0, 0.0],)),
        Example(([0.5, 1.5, 2.5],), [0.0, 2.0, 2.0], gradients=([0.0, 0.0, 0.0],), at_kink=True),
    )

    def forward(self, xp: Namespace, x: Array) -> Array:
        return xp.round(x)

    def vjp(self, xp: Namespace, grad: Array, out: Array, x: Array) -> tuple[Array, ...]:
        return (xp.zeros_like(x),)


_THREE = (Sample((TensorSpec((2, 3)), TensorSpec((3,)), TensorSpec(()))),)
_NO_INPUT = Rejection((), "takes 1 or more inputs", reason="INPUT_COUNT_INVALID")


class Sum(ElementwiseGate):
    """Sum of any number of tensors.

    Formula:   out = data_0 + data_1 + ...
    Gradient:  d out/d data_i = 1
    Shapes:    All inputs broadcast.
    """

    operator = "Sum"
    passes_grad = "to all"
    inputs = (Input("data_0", variadic=True),)
    examples = (Example((1.0, 2.0, 4.0), 7.0, gradients=(1.0, 1.0, 1.0)),)
    samples = _THREE
    rejections = (_MISFIT, _NO_INPUT)

    def scratch(self, outs: Sequence[TensorSpec], *specs: Any, **attributes: Any) -> Scratch:
        return Scratch(outs[0].nbytes if len(specs) > 2 else 0, 0)

    def forward(self, xp: Namespace, *data: Array) -> Array:
        total = data[0]
        for each in data[1:]:
            total = xp.add(total, each)
        return total

    def vjp(self, xp: Namespace, grad: Array, out: Array, *data: Array) -> tuple[Array, ...]:
        return (grad,) * len(data)


class Mean(ElementwiseGate):
    """Mean of any number of tensors.

    Formula:   out = (data_0 + data_1 + ...) / n
    Gradient:  d out/d data_i = 1 / n
    Shapes:    All inputs broadcast.
    """

    operator = "Mean"
    inputs = (Input("data_0", variadic=True),)
    examples = (Example((1.0, 3.0), 2.0, gradients=(0.5, 0.5)),)
    samples = _THREE
    rejections = (_MISFIT, _NO_INPUT)

    def scratch(self, outs: Sequence[TensorSpec], *specs: Any, **attributes: Any) -> Scratch:
        whole = sum(spec.size == outs[0].size for spec in specs)
        # the gradients of those of the output's shape are one array
        return Scratch(outs[0].nbytes if len(specs) > 1 else 0, (1 - whole) * outs[0].nbytes)

    def forward(self, xp: Namespace, *data: Array) -> Array:
        total = data[0]
        for each in data[1:]:
            total = xp.add(total, each)
        return xp.multiply(total, 1.0 / len(data)) if len(data) > 1 else total

    def vjp(self, xp: Namespace, grad: Array, out: Array, *data: Array) -> tuple[Array, ...]:
        return (grad * (1.0 / len(data)),) * len(data)


class Max(ElementwiseGate):
    """Largest of any number of tensors, element by element.

    Formula:   out = max(data_0, data_1, ...)
    Gradient:  d out/d data_i = [data_i = out]
    Kinks:     Inputs that tie share the gradient equally.
    Shapes:    All inputs broadcast.
    """

    operator = "Max"
    inputs = (Input("data_0", NUMBERS, variadic=True),)
    examples = (
        Example((2.0, 3.0), 3.0, gradients=(0.0, 1.0)),
        Example((1.0, 1.0, 0.0), 1.0, gradients=(0.5, 0.5, 0.0), at_kink=True),
        Example(([1, 5], 3), [3, 5]),
    )
    samples = _THREE
    rejections = (_MISFIT, _NO_INPUT)

    def scratch(self, outs: Sequence[TensorSpec], *specs: Any, **attributes: Any) -> Scratch:
        _, summed = super().scratch(outs, *specs)
        count = len(specs)
        back = summed + (count + 2) * outs[0].nbytes
        return Scratch(outs[0].nbytes if count > 2 else 0, back if outs[0].is_floating else 0)

    def forward(self, xp: Namespace, *data: Array) -> Array:
        extreme = data[0]
        for each in data[1:]:
            extreme = xp.maximum(extreme, each)
        return extreme

    def vjp(self, xp: Namespace, grad: Array, out: Array, *data: Array) -> tuple[Array, ...]:
        return _shared_by_ties(xp, grad, out, data)


class Min(ElementwiseGate):
    """Smallest of any number of tensors, element by element.

    Formula:   out = min(data_0, data_1, ...)
    Gradient:  d out/d data_i = [data_i = out]
    Kinks:     Inputs that tie share the gradient equally.
    Shapes:    All inputs broadcast.
    """

    operator = "Min"
    inputs = (Input("data_0", NUMBERS, variadic=True),)
    examples = (
        Example((2.0, 3.0), 2.0, gradients=(1.0, 0.0)),
        Example((1.0, 1.0), 1.0, gradients=(0.5, 0.5), at_kink=True),
        Example(([1, 5], 3), [1, 3]),
    )
    samples = _THREE
    rejections = (_MISFIT, _NO_INPUT)

    def scratch(self, outs: Sequence[TensorSpec], *specs: Any, **attributes: Any) -> Scratch:
        _, summed = super().scratch(outs, *specs)
        count = len(specs)
        back = summed + (count + 2) * outs[0].nbytes
        return Scratch(outs[0].nbytes if count > 2 else 0, back if outs[0].is_floating else 0)

    def forward(self, xp: Namespace, *data: Array) -> Array:
        extreme = data[0]
        for each in data[1:]:
            extreme = xp.minimum(extreme, each)
        return extreme

    def vjp(self, xp: Namespace, grad: Array, out: Array, *data: Array) -> tuple[Array, ...]:
        return _shared_by_ties(xp, grad, out, data)


def _shared_by_ties(
    xp: Namespace, grad: Array, out: Array, data: tuple[Array, ...]
) -> tuple[Array, ...]:
    chosen = [xp.astype(xp.equal(each, out), out.dtype) for each in data]
    ties = chosen[0]
    for each in chosen[1:]:
        ties = ties + each
    share = grad / xp.maximum(ties, xp.ones_like(ties))
    return tuple(share * each for each in chosen)
