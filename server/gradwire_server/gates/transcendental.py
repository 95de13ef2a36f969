"""Exponentials, logarithms, trigonometric and hyperbolic functions, and the error function."""

from __future__ import annotations

from math import pi, sqrt

from gradwire_server.gates.base import Array, ElementwiseGate, Example, Input, Namespace, guarded


class Exp(ElementwiseGate):
    """Exponential.

    Formula:   out = exp(X)
    Gradient:  d out/dX = out
    Shapes:    As X.
    """

    operator = "Exp"
    scratch_arrays = (0, 1.3)
    examples = (Example((1.0,), 2.718281828459045, gradients=(2.718281828459045,)),)

    def forward(self, xp: Namespace, x: Array) -> Array:
        return xp.exp(x)

    def vjp(self, xp: Namespace, grad: Array, out: Array, x: Array) -> tuple[Array, ...]:
        return (guarded(xp, grad, out),)


class Log(ElementwiseGate):
    """Natural logarithm; NaN below zero.

    Formula:   out = log(X)
    Gradient:  d out/dX = 1 / X
    Kinks:     At 0 the gradient is infinite, and 0 where nothing depends on it.
    Shapes:    As X.
    """

    operator = "Log"
    scratch_arrays = (0, 1.2)
    inputs = (Input("X", domain=(0.2, 3.0)),)
    examples = (
        Example((2.0,), 0.6931471805599453, gradients=(0.5,)),
        Example((0.0,), float("-inf"), gradients=(float("inf"),), at_kink=True),
    )

    def forward(self, xp: Namespace, x: Array) -> Array:
        return xp.log(x)

    def vjp(self, xp: Namespace, grad: Array, out: Array, x: Array) -> tuple[Array, ...]:
        unused = xp.logical_and(xp.equal(x, 0.0), xp.equal(grad, 0.0))
        return (grad / xp.where(unused, 1.0, x),)


class Sin(ElementwiseGate):
    """Sine of an angle in radians.

    Formula:   out = sin(X)
    Gradient:  d out/dX = cos(X)
    Shapes:    As X.
    """

    operator = "Sin"
    examples = (Example((1.0,), 0.8414709848078965, gradients=(0.5403023058681398,)),)

    def forward(self, xp: Namespace, x: Array) -> Array:
        return xp.sin(x)

    def vjp(self, xp: Namespace, grad: Array, out: Array, x: Array) -> tuple[Array, ...]:
        return (grad * xp.cos(x),)


class Cos(ElementwiseGate):
    """Cosine of an angle in radians.

    Formula:   out = cos(X)
    Gradient:  d out/dX = -sin(X)
    Shapes:    As X.
    """

    operator = "Cos"
    scratch_arrays = (0, 1)
    examples = (Example((1.0,), 0.5403023058681398, gradients=(-0.8414709848078965,)),)

    def forward(self, xp: Namespace, x: Array) -> Array:
        return xp.cos(x)

    def vjp(self, xp: Namespace, grad: Array, out: Array, x: Array) -> tuple[Array, ...]:
        return (-grad * xp.sin(x),)


class Tan(ElementwiseGate):
    """Tangent of an angle in radians.

    Formula:   out = tan(X)
    Gradient:  d out/dX = 1 + out ** 2
    Shapes:    As X.
    """

    operator = "Tan"
    scratch_arrays_of_float32 = (0, 1)
    inputs = (Input("X", domain=(-1.2, 1.2)),)
    examples = (Example((0.5,), 0.5463024898437905, gradients=(1.2984464104095248,)),)

    def forward(self, xp: Namespace, x: Array) -> Array:
        return xp.tan(x)

    def vjp(self, xp: Namespace, grad: Array, out: Array, x: Array) -> tuple[Array, ...]:
        return (grad * (1.0 + out * out),)


class Asin(ElementwiseGate):
    """Angle in radians whose sine is given; NaN outside [-1, 1].

    Formula:   out = asin(X)
    Gradient:  d out/dX = 1 / sqrt(1 - X ** 2)
    Kinks:     At -1 and 1 the gradient is infinite, and 0 where nothing depends on it.
    Shapes:    As X.
    """

    operator = "Asin"
    scratch_arrays = (0, 2.3)
    inputs = (Input("X", domain=(-0.9, 0.9)),)
    examples = (
        Example((0.5,), 0.5235987755982989, gradients=(1.1547005383792517,)),
        Example((1.0,), 1.5707963267948966, gradients=(float("inf"),), at_kink=True),
    )

    def forward(self, xp: Namespace, x: Array) -> Array:
        return xp.asin(x)

    def vjp(self, xp: Namespace, grad: Array, out: Array, x: Array) -> tuple[Array, ...]:
        return (guarded(xp, grad, 1.0 / xp.sqrt((1.0 - x) * (1.0 + x))),)


class Acos(ElementwiseGate):
    """Angle in radians whose cosine is given; NaN outside [-1, 1].

    Formula:   out = acos(X)
    Gradient:  d out/dX = -1 / sqrt(1 - X ** 2)
    Kinks:     At -1 and 1 the gradient is infinite, and 0 where nothing depends on it.
    Shapes:    As X.
    """

    operator = "Acos"
    scratch_arrays = (0, 2.3)
    inputs = (Input("X", domain=(-0.9, 0.9)),)
    examples = (
        Example((0.5,), 1.0471975511965979, gradients=(-1.1547005383792517,)),
        Example((1.0,), 0.0, gradients=(float("-inf"),), at_kink=True),
    )

    def forward(self, xp: Namespace, x: Array) -> Array:
        return xp.acos(x)

    def vjp(self, xp: Namespace, grad: Array, out: Array, x: Array) -> tuple[Array, ...]:
        return (guarded(xp, grad, -1.0 / xp.sqrt((1.0 - x) * (1.0 + x))),)


class Atan(ElementwiseGate):
    """Angle in radians whose tangent is given.

    Formula:   out = atan(X)
    Gradient:  d out/dX = 1 / (1 + X ** 2)
    Shapes:    As X.
    """

    operator = "Atan"
    scratch_arrays = (0, 1)
    examples = (Example((0.5,), 0.4636476090008061, gradients=(0.8,)),)

    def forward(self, xp: Namespace, x: Array) -> Array:
        return xp.atan(x)

    def vjp(self, xp: Namespace, grad: Array, out: Array, x: Array) -> tuple[Array, ...]:
        return (grad / (1.0 + x * x),)


class Sinh(ElementwiseGate):
    """Hyperbolic sine.

    Formula:   out = sinh(X)
    Gradient:  d out/dX = cosh(X)
    Shapes:    As X.
    """

    operator = "Sinh"
    scratch_arrays = (0, 2.3)
    examples = (Example((1.0,), 1.1752011936438014, gradients=(1.5430806348152437,)),)

    def forward(self, xp: Namespace, x: Array) -> Array:
        return xp.sinh(x)

    def vjp(self, xp: Namespace, grad: Array, out: Array, x: Array) -> tuple[Array, ...]:
        return (guarded(xp, grad, xp.cosh(x)),)


class Cosh(ElementwiseGate):
    """Hyperbolic cosine.

    Formula:   out = cosh(X)
    Gradient:  d out/dX = sinh(X)
    Shapes:    As X.
    """

    operator = "Cosh"
    scratch_arrays = (0, 2.3)
    examples = (Example((1.0,), 1.5430806348152437, gradients=(1.1752011936438014,)),)

    def forward(self, xp: Namespace, x: Array) -> Array:
        return xp.cosh(x)

    def vjp(self, xp: Namespace, grad: Array, out: Array, x: Array) -> tuple[Array, ...]:
        return (guarded(xp, grad, xp.sinh(x)),)


class Tanh(ElementwiseGate):
    """Hyperbolic tangent.

    Formula:   out = tanh(X)
    Gradient:  d out/dX = 1 - out ** 2, in the tails as exp(-2 * |X|) * (1 + |out|) ** 2
    Shapes:    As X.
    """

    operator = "Tanh"
    scratch_arrays = (0, 2.2)
    examples = (Example((0.5,), 0.46211715726000974, gradients=(0.7864477329659274,)),)

    def forward(self, xp: Namespace, x: Array) -> Array:
        return xp.tanh(x)

    def vjp(self, xp: Namespace, grad: Array, out: Array, x: Array) -> tuple[Array, ...]:
        return (grad * xp.tanh_slope(x, out),)


class Asinh(ElementwiseGate):
    """Number whose hyperbolic sine is given.

    Formula:   out = asinh(X)
    Gradient:  d out/dX = 1 / sqrt(X ** 2 + 1)
    Shapes:    As X.
    """

    operator = "Asinh"
    scratch_arrays = (0, 4.2)
    examples = (Example((0.5,), 0.48121182505960347, gradients=(0.8944271909999159,)),)

    def forward(self, xp: Namespace, x: Array) -> Array:
        return xp.asinh(x)

    def vjp(self, xp: Namespace, grad: Array, out: Array, x: Array) -> tuple[Array, ...]:
        # beyond 1e9 the 1 is lost, and from 1e19 on a float32's square is infinite
        size = xp.abs(x)
        is_large = xp.greater(size, 1e9)
        near = xp.where(is_large, 0.0, x)
        return (grad / xp.where(is_large, size, xp.sqrt(near * near + 1.0)),)


class Acosh(ElementwiseGate):
    """Number whose hyperbolic cosine is given; NaN below 1.

    Formula:   out = acosh(X)
    Gradient:  d out/dX = 1 / sqrt(X ** 2 - 1)
    Kinks:     At 1 the gradient is infinite, and 0 where nothing depends on it.
    Shapes:    As X.
    """

    operator = "Acosh"
    scratch_arrays = (0, 2.3)
    inputs = (Input("X", domain=(1.2, 3.0)),)
    examples = (
        Example((2.0,), 1.3169578969248166, gradients=(0.5773502691896258,)),
        Example((1.0,), 0.0, gradients=(float("inf"),), at_kink=True),
    )

    def forward(self, xp: Namespace, x: Array) -> Array:
        return xp.acosh(x)

    def vjp(self, xp: Namespace, grad: Array, out: Array, x: Array) -> tuple[Array, ...]:
        return (guarded(xp, grad, 1.0 / (xp.sqrt(x - 1.0) * xp.sqrt(x + 1.0))),)


class Atanh(ElementwiseGate):
    """Number whose hyperbolic tangent is given; NaN outside [-1, 1].

    Formula:   out = atanh(X)
    Gradient:  d out/dX = 1 / (1 - X ** 2)
    Kinks:     At -1 and 1 the gradient is infinite, and 0 where nothing depends on it.
    Shapes:    As X.
    """

    operator = "Atanh"
    scratch_arrays = (0, 2.3)
    inputs = (Input("X", domain=(-0.9, 0.9)),)
    examples = (
        Example((0.5,), 0.5493061443340548, gradients=(1.3333333333333333,)),
        Example((1.0,), float("inf"), gradients=(float("inf"),), at_kink=True),
    )

    def forward(self, xp: Namespace, x: Array) -> Array:
        return xp.atanh(x)

    def vjp(self, xp: Namespace, grad: Array, out: Array, x: Array) -> tuple[Array, ...]:
        return (guarded(xp, grad, 1.0 / ((1.0 - x) * (1.0 + x))),)


class Erf(ElementwiseGate):
    """Error function.

    Formula:   out = erf(X) = 2/sqrt(pi) * (integral of exp(-t ** 2) from 0 to X)
    Gradient:  d out/dX = 2/sqrt(pi) * exp(-X ** 2)
    Shapes:    As X.
    """

    operator = "Erf"
    scratch_arrays = (0, 2)
    examples = (Example((0.5,), 0.5204998778130465, gradients=(0.8787825789354448,)),)

    def forward(self, xp: Namespace, x: Array) -> Array:
        return xp.erf(x)

    def vjp(self, xp: Namespace, grad: Array, out: Array, x: Array) -> tuple[Array, ...]:
        return (grad * (2.0 / sqrt(pi)) * xp.exp(-x * x),)
