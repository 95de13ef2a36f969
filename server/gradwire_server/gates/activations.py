"""Activations: the non-linear stages of neural networks."""

from __future__ import annotations

from collections.abc import Sequence
from math import pi, sqrt
from typing import Any

from gradwire_server.errors import Invalid
from gradwire_server.gates.base import (
    Array,
    Attribute,
    ElementwiseGate,
    Example,
    Gate,
    Input,
    Namespace,
    Rejection,
    Sample,
    Scratch,
)
from gradwire_server.specs import (
    FLOATS,
    ITEM_SIZES,
    NUMBERS,
    SIGNED,
    Shape,
    TensorSpec,
    broadcast_shapes,
)


def sigmoid(xp: Namespace, x: Array) -> Array:
    """1 / (1 + exp(-x)), and exp(x) / (1 + exp(x)) below 0: no exponential overflows.

    So small results keep their digits, the smallest too; (1 + tanh(x / 2)) / 2 would lose them.
    """
    is_negative = xp.less(x, 0.0)
    part = xp.exp(xp.where(is_negative, x, -x))
    return xp.where(is_negative, part, 1.0) / (1.0 + part)


def bounded(xp: Namespace, x: Array) -> Array:
    """x cut off at -1000 and 1000, where exponentials have long been 0: 0 * inf never happens."""
    low = not_below(xp, x)
    return xp.where(xp.greater(low, 1000.0), 1000.0, low)


def not_below(xp: Namespace, x: Array) -> Array:
    """x cut off at -1000: minus infinity times 0 is not a number."""
    return xp.where(xp.less(x, -1000.0), -1000.0, x)


def softplus(xp: Namespace, x: Array) -> Array:
    """log(1 + exp(x)) without overflow."""
    return xp.maximum(x, xp.zeros_like(x)) + xp.log1p(xp.exp(-xp.abs(x)))


class Sigmoid(ElementwiseGate):
    """Logistic function: any number to between 0 and 1.

    Formula:   out = 1 / (1 + exp(-X))
    Gradient:  d out/dX = (1 - out) * out
    Shapes:    As X.
    """

    operator = "Sigmoid"
    scratch_arrays = (3.2, 1.3)
    examples = (
        Example((1.0,), 0.7310585786300049, gradients=(0.19661193324148185,)),
        Example(([-1000.0, 1000.0],), [0.0, 1.0], gradients=([0.0, 0.0],)),
    )

    def forward(self, xp: Namespace, x: Array) -> Array:
        return sigmoid(xp, x)

    def vjp(self, xp: Namespace, grad: Array, out: Array, x: Array) -> tuple[Array, ...]:
        return (grad * xp.sigmoid_slope(x, out),)


class Relu(ElementwiseGate):
    """Number where it is positive, else 0.

    Formula:   out = max(X, 0)
    Gradient:  d out/dX = [X > 0]
    Kinks:     At 0 the gradient is 0.
    Shapes:    As X.
    """

    operator = "Relu"
    scratch_arrays = (1, 0.15)
    inputs = (Input("X", SIGNED),)
    examples = (
        Example(([-2.0, 3.0],), [0.0, 3.0], gradients=([0.0, 1.0],)),
        Example((0.0,), 0.0, gradients=(0.0,), at_kink=True),
        Example(([-2, 3],), [0, 3]),
    )

    def forward(self, xp: Namespace, x: Array) -> Array:
        return xp.maximum(x, xp.zeros_like(x))

    def vjp(self, xp: Namespace, grad: Array, out: Array, x: Array) -> tuple[Array, ...]:
        return (xp.where(xp.greater(x, 0.0), grad, 0.0),)


class LeakyRelu(ElementwiseGate):
    """Number where it is positive, else a small part of it.

    Formula:   out = X if X > 0 else alpha * X
    Gradient:  d out/dX = 1 if X > 0 else alpha
    Kinks:     At 0 the gradient is alpha.
    Shapes:    As X.
    """

    operator = "LeakyRelu"
    scratch_arrays = (2.2, 2.2)
    attributes = (Attribute("alpha", "float", 0.01, doc="Slope below 0."),)
    examples = (
        Example(([-2.0, 3.0],), [-0.02, 3.0], gradients=([0.01, 1.0],)),
        Example((0.0,), 0.0, gradients=(0.2,), attributes={"alpha": 0.2}, at_kink=True),
    )

    def forward(self, xp: Namespace, x: Array, alpha: float) -> Array:
        return xp.where(xp.greater(x, 0.0), x, alpha * x)

    def vjp(
        self, xp: Namespace, grad: Array, out: Array, x: Array, alpha: float
    ) -> tuple[Array, ...]:
        return (xp.where(xp.greater(x, 0.0), grad, alpha * grad),)


_WHOLE_TOO = (*FLOATS, "int32", "int64", "uint32", "uint64")
_NOT_BFLOAT16 = tuple(dtype for dtype in NUMBERS if dtype != "bfloat16")


class PRelu(Gate):
    """Number where it is positive, else it times a slope that is learned.

    Formula:   out = X if X > 0 else slope * X
    Gradient:  d out/dX = 1 if X > 0 else slope,  d out/d slope = 0 if X > 0 else X
    Kinks:     At 0 the gradient to X is slope.
    Shapes:    As X; slope broadcasts to X.
    """

    operator = "PRelu"
    scratch_arrays = (2.2, 2.2)
    inputs = (Input("X", _WHOLE_TOO), Input("slope", _WHOLE_TOO))
    examples = (
        Example(([-2, 3], 2), [-4, 3]),
        Example(([-2.0, 3.0], [0.5, 0.5]), [-1.0, 3.0], gradients=([0.5, 1.0], [-2.0, 0.0])),
        Example((0.0, 0.25), 0.0, gradients=(0.25, 0.0), at_kink=True),
    )
    samples = (
        Sample((TensorSpec((2, 3)), TensorSpec((3,)))),
        Sample((TensorSpec((2, 3, 4)), TensorSpec((3, 1)))),
        Sample((TensorSpec((0, 3)), TensorSpec((1,)))),
    )
    rejections = (
        Rejection((TensorSpec((3,)), TensorSpec((2, 3))), "slope of shape (2, 3) does not"),
    )

    def infer(self, *specs: TensorSpec, **attributes: Any) -> TensorSpec:
        x, slope = specs
        if broadcast_shapes(x.shape, slope.shape) != x.shape:
            raise Invalid(
                "SHAPE_MISMATCH",
                f"slope of shape {slope.shape} does not broadcast to X of shape {x.shape}",
            )
        return TensorSpec(x.shape, x.dtype)

    def aligned_shapes(self, *specs: TensorSpec, **attributes: Any) -> tuple[Shape, ...]:
        x, slope = specs
        return x.shape, (1,) * (x.rank - slope.rank) + slope.shape

    def forward(self, xp: Namespace, x: Array, slope: Array) -> Array:
        return xp.where(xp.greater(x, 0.0), x, slope * x)

    def vjp(
        self, xp: Namespace, grad: Array, out: Array, x: Array, slope: Array
    ) -> tuple[Array, ...]:
        positive = xp.greater(x, 0.0)
        return xp.where(positive, grad, slope * grad), xp.where(positive, 0.0, x * grad)


class Elu(ElementwiseGate):
    """Number where it is positive, else an exponential that levels off at -alpha.

    Formula:   out = X if X > 0 else alpha * (exp(X) - 1)
    Gradient:  d out/dX = 1 if X > 0 else alpha * exp(X)
    Kinks:     At 0 the gradient is alpha.
    Shapes:    As X.
    """

    operator = "Elu"
    scratch_arrays = (3.2, 3.2)
    attributes = (Attribute("alpha", "float", 1.0, doc="Where it levels off, negated."),)
    examples = (
        Example(
            ([-1.0, 2.0],), [-0.6321205588285577, 2.0], gradients=([0.36787944117144233, 1.0],)
        ),
        Example((0.0,), 0.0, gradients=(2.0,), attributes={"alpha": 2.0}, at_kink=True),
    )

    def forward(self, xp: Namespace, x: Array, alpha: float) -> Array:
        below = xp.minimum(x, xp.zeros_like(x))
        return xp.where(xp.greater(x, 0.0), x, alpha * xp.expm1(below))

    def vjp(
        self, xp: Namespace, grad: Array, out: Array, x: Array, alpha: float
    ) -> tuple[Array, ...]:
        positive = xp.greater(x, 0.0)
        below = xp.where(positive, 0.0, x)
        return (xp.where(positive, grad, grad * alpha * xp.exp(below)),)


class Selu(ElementwiseGate):
    """Scaled Elu, with the constants that keep mean 0 and variance 1.

    Formula:   out = gamma * (X if X > 0 else alpha * (exp(X) - 1))
    Gradient:  d out/dX = gamma * (1 if X > 0 else alpha * exp(X))
    Kinks:     At 0 the gradient is gamma * alpha.
    Shapes:    As X.
    """

    operator = "Selu"
    scratch_arrays = (3.2, 3.2)
    attributes = (
        Attribute("alpha", "float", 1.6732632423543772, doc="Where it levels off, negated."),
        Attribute("gamma", "float", 1.0507009873554805, doc="Scale."),
    )
    examples = (
        Example(
            ([-1.0, 2.0],),
            [-1.2642411176571153, 4.0],
            gradients=([0.7357588823428847, 2.0],),
            attributes={"alpha": 1.0, "gamma": 2.0},
        ),
    )

    def forward(self, xp: Namespace, x: Array, alpha: float, gamma: float) -> Array:
        below = xp.minimum(x, xp.zeros_like(x))
        return gamma * xp.where(xp.greater(x, 0.0), x, alpha * xp.expm1(below))

    def vjp(
        self, xp: Namespace, grad: Array, out: Array, x: Array, alpha: float, gamma: float
    ) -> tuple[Array, ...]:
        positive = xp.greater(x, 0.0)
        below = xp.where(positive, 0.0, x)
        return (gamma * xp.where(positive, grad, grad * alpha * xp.exp(below)),)


class Celu(ElementwiseGate):
    """Elu whose slope is continuous for every alpha.

    Formula:   out = max(X, 0) + min(0, alpha * (exp(X / alpha) - 1))
    Gradient:  d out/dX = 1 if X > 0 else exp(X / alpha)
    Shapes:    As X.
    """

    operator = "Celu"
    scratch_arrays = (3.2, 3.2)
    attributes = (Attribute("alpha", "float", 1.0, doc="Where it levels off, negated."),)
    examples = (
        Example(
            ([-1.0, 2.0],), [-0.6321205588285577, 2.0], gradients=([0.36787944117144233, 1.0],)
        ),
    )
    rejections = (Rejection((TensorSpec(()),), "alpha is 0", "ATTRIBUTE_INVALID", {"alpha": 0.0}),)

    def infer(self, *specs: Any, **attributes: Any) -> TensorSpec:
        if attributes["alpha"] == 0:
            raise Invalid("ATTRIBUTE_INVALID", "alpha is 0 but divides; give another number")
        return super().infer(*specs)

    def forward(self, xp: Namespace, x: Array, alpha: float) -> Array:
        below = xp.minimum(x, xp.zeros_like(x))
        return xp.where(xp.greater(x, 0.0), x, alpha * xp.expm1(below / alpha))

    def vjp(
        self, xp: Namespace, grad: Array, out: Array, x: Array, alpha: float
    ) -> tuple[Array, ...]:
        positive = xp.greater(x, 0.0)
        below = xp.where(positive, 0.0, x)
        return (xp.where(positive, grad, grad * xp.exp(below * (1.0 / alpha))),)


#: Elements that xp.ndtr computes at once.
_BLOCK = 1 << 15


class Gelu(ElementwiseGate):
    """Number weighed by how likely a standard normal one is smaller.

    Formula:   out = X * Phi(X), Phi(X) = (1 + erf(X / sqrt(2))) / 2; with approximate="tanh",
               Phi(X) = (1 + tanh(sqrt(2/pi) * (X + 0.044715 * X ** 3))) / 2
    Gradient:  d out/dX = Phi(X) + X * dPhi/dX
    Accuracy:  values within 8 ulp, the tail too; with approximate="tanh" times the exponent there,
               2 * sqrt(2/pi) * (X + 0.044715 * X ** 3), which is rounded. Gradients within 1e-4 of
               the largest term and not 0 where the true one is a normal number; gradient graphs
               have Phi from Erf, whose tail ends at eps.
    Shapes:    As X.
    """

    operator = "Gelu"
    attributes = (
        Attribute("approximate", "string", "none", choices=("none", "tanh"), doc="Form of Phi."),
    )
    examples = (
        Example((1.0,), 0.8413447460685429, gradients=(1.0833154705876864,)),
        Example(
            (1.0,), 0.8411919906082768, gradients=(1.0829640838457826,),
            attributes={"approximate": "tanh"},
        ),
    )  # fmt: skip
    rejections = (
        Rejection(
            (TensorSpec(()),), "must be one of 'none', 'tanh'", "ATTRIBUTE_INVALID",
            {"approximate": "fast"},
        ),
    )  # fmt: skip

    def scratch(self, outs: Sequence[TensorSpec], x: TensorSpec, approximate: str) -> Scratch:
        if approximate == "tanh":
            return Scratch(int(5.2 * x.nbytes), int(5.2 * x.nbytes))
        blocks = 14 * min(x.size, _BLOCK) * ITEM_SIZES[x.dtype] // 2  # of xp.ndtr
        return Scratch(
            max(2 * x.nbytes, x.nbytes + blocks), max(3 * x.nbytes, 2 * x.nbytes + blocks)
        )

    def forward(self, xp: Namespace, x: Array, approximate: str) -> Array:
        low = not_below(xp, x)
        if approximate == "tanh":
            # (1 + tanh(y)) / 2 is sigmoid(2 * y), whose tail does not cancel
            return low * sigmoid(xp, sqrt(8 / pi) * (low + 0.044715 * low * low * low))
        return low * xp.ndtr(low)

    def vjp(
        self, xp: Namespace, grad: Array, out: Array, x: Array, approximate: str
    ) -> tuple[Array, ...]:
        x = bounded(xp, x)
        if approximate == "tanh":
            part = sigmoid(xp, sqrt(8 / pi) * (x + 0.044715 * x * x * x))
            slope = sqrt(8 / pi) * (1.0 + 3 * 0.044715 * x * x)
            return (grad * (part + x * slope * part * (1.0 - part)),)
        density = xp.exp(-0.5 * x * x) * (1 / sqrt(2 * pi))
        return (grad * (xp.ndtr(x) + x * density),)


class Softplus(ElementwiseGate):
    """Smooth form of Relu.

    Formula:   out = log(1 + exp(X))
    Gradient:  d out/dX = 1 / (1 + exp(-X))
    Shapes:    As X.
    """

    operator = "Softplus"
    scratch_arrays = (2, 3.2)
    examples = (
        Example((1.0,), 1.3132616875182228, gradients=(0.7310585786300049,)),
        Example(([-1000.0, 1000.0],), [0.0, 1000.0], gradients=([0.0, 1.0],)),
    )

    def forward(self, xp: Namespace, x: Array) -> Array:
        return softplus(xp, x)

    def vjp(self, xp: Namespace, grad: Array, out: Array, x: Array) -> tuple[Array, ...]:
        return (grad * sigmoid(xp, x),)


class Softsign(ElementwiseGate):
    """Number squeezed to between -1 and 1.

    Formula:   out = X / (1 + |X|)
    Gradient:  d out/dX = 1 / (1 + |X|) ** 2
    Shapes:    As X.
    """

    operator = "Softsign"
    scratch_arrays = (3.2, 2.2)
    examples = (Example(([1.0, -3.0],), [0.5, -0.75], gradients=([0.25, 0.0625],)),)

    def forward(self, xp: Namespace, x: Array) -> Array:
        return xp.where(xp.isinf(x), xp.sign(x), x / (1.0 + xp.abs(x)))

    def vjp(self, xp: Namespace, grad: Array, out: Array, x: Array) -> tuple[Array, ...]:
        scale = 1.0 + xp.abs(x)
        return (grad / (scale * scale),)


class HardSigmoid(ElementwiseGate):
    """Straight line cut off at 0 and 1.

    Formula:   out = max(0, min(1, alpha * X + beta))
    Gradient:  d out/dX = alpha if 0 < alpha * X + beta < 1 else 0
    Kinks:     Where the line is cut off the gradient is 0.
    Shapes:    As X.
    """

    operator = "HardSigmoid"
    scratch_arrays = (3, 2.2)
    attributes = (
        Attribute("alpha", "float", 0.2, doc="Slope."),
        Attribute("beta", "float", 0.5, doc="Height at 0."),
    )
    examples = (
        Example(([1.0, -5.0],), [0.7, 0.0], gradients=([0.2, 0.0],)),
        Example((1.0,), 1.0, gradients=(0.0,), attributes={"alpha": 0.5}, at_kink=True),
    )

    def forward(self, xp: Namespace, x: Array, alpha: float, beta: float) -> Array:
        line = alpha * x + beta
        return xp.minimum(xp.maximum(line, xp.zeros_like(line)), xp.ones_like(line))

    def vjp(
        self, xp: Namespace, grad: Array, out: Array, x: Array, alpha: float, beta: float
    ) -> tuple[Array, ...]:
        line = alpha * x + beta
        inside = xp.logical_and(xp.greater(line, 0.0), xp.less(line, 1.0))
        return (xp.where(inside, alpha * grad, 0.0),)


class HardSwish(ElementwiseGate):
    """Number times a straight line cut off at 0 and 1.

    Formula:   out = X * max(0, min(1, X / 6 + 1 / 2))
    Gradient:  d out/dX = 0 if X <= -3, 1 if X >= 3, else X / 3 + 1 / 2
    Kinks:     At -3 the gradient is 0, at 3 it is 1.
    Shapes:    As X.
    """

    operator = "HardSwish"
    scratch_arrays = (4.2, 3.2)
    examples = (
        Example(([1.5, -4.0, 4.0],), [1.125, 0.0, 4.0], gradients=([1.0, 0.0, 1.0],)),
        Example(([-3.0, 3.0],), [0.0, 3.0], gradients=([0.0, 1.0],), at_kink=True),
    )

    def forward(self, xp: Namespace, x: Array) -> Array:
        line = x * (1 / 6) + 0.5
        part = xp.minimum(xp.maximum(line, xp.zeros_like(x)), xp.ones_like(x))
        return xp.where(xp.less_equal(x, -3.0), 0.0, x * part)

    def vjp(self, xp: Namespace, grad: Array, out: Array, x: Array) -> tuple[Array, ...]:
        slope = xp.where(xp.greater_equal(x, 3.0), 1.0, x * (1 / 3) + 0.5)
        return (xp.where(xp.less_equal(x, -3.0), 0.0, grad * slope),)


class Mish(ElementwiseGate):
    """Number times the hyperbolic tangent of its softplus.

    Formula:   out = X * t,  t = tanh(log(1 + exp(X))) = n / (n + 2),  n = exp(X) * (exp(X) + 2)
    Gradient:  d out/dX = t + X * (1 - t ** 2) / (1 + exp(-X))
                        = t + 4 * X * exp(X) * (1 + exp(X)) / (n + 2) ** 2
    Shapes:    As X.
    """

    operator = "Mish"
    scratch_arrays = (4, 6)
    examples = (Example((1.0,), 0.8650983882673103, gradients=(1.0490362200997922,)),)

    def forward(self, xp: Namespace, x: Array) -> Array:
        low = not_below(xp, x)
        part = xp.exp(self._not_above(xp, low))
        lead = part * (part + 2.0)
        return low * (lead / (lead + 2.0))

    def vjp(self, xp: Namespace, grad: Array, out: Array, x: Array) -> tuple[Array, ...]:
        x = self._not_above(xp, not_below(xp, x))
        part = xp.exp(x)
        lead = part * (part + 2.0)
        rest = lead + 2.0
        slope = lead / rest + 4.0 * x * (part / rest) * ((1.0 + part) / rest)
        return (grad * slope,)

    def _not_above(self, xp: Namespace, x: Array) -> Array:
        """x cut off at 22, where t and the gradient have long been 1."""
        return xp.where(xp.greater(x, 22.0), 22.0, x)


class Swish(ElementwiseGate):
    """Number times its logistic function.

    Formula:   Y = X * s,  s = 1 / (1 + exp(-alpha * X))
    Gradient:  d Y/dX = s + alpha * X * s * (1 - s)
    Shapes:    As X.
    """

    operator = "Swish"
    scratch_arrays = (4.2, 4.2)
    attributes = (Attribute("alpha", "float", 1.0, doc="Scales X inside the logistic function."),)
    examples = (
        Example((1.0,), 0.7310585786300049, gradients=(0.9276705118714868,)),
        Example(([-1000.0, 1000.0],), [0.0, 1000.0], gradients=([0.0, 1.0],)),
    )

    def forward(self, xp: Namespace, x: Array, alpha: float) -> Array:
        return x * sigmoid(xp, alpha * x)

    def vjp(
        self, xp: Namespace, grad: Array, out: Array, x: Array, alpha: float
    ) -> tuple[Array, ...]:
        return (grad * _swish_slope(xp, x, alpha),)


def _swish_slope(xp: Namespace, x: Array, alpha: float) -> Array:
    weight = sigmoid(xp, alpha * x)
    return weight + alpha * x * weight * (1.0 - weight)


class SwiGLU(Gate):
    """Number times the Swish of another.

    Formula:   Y = A * s * B,  s = 1 / (1 + exp(-alpha * A))
    Gradient:  d Y/dA = B * (s + alpha * A * s * (1 - s)),  d Y/dB = A * s
    Shapes:    A and B have one shape, and so has Y.
    """

    operator = "SwiGLU"
    scratch_arrays = (4.2, 5.2)
    inputs = (Input("A"), Input("B"))
    attributes = (Attribute("alpha", "float", 1.0, doc="Scales A inside the logistic function."),)
    examples = (
        Example((1.0, 2.0), 1.4621171572600098,
                gradients=(1.8553410237429736, 0.7310585786300049)),
    )  # fmt: skip
    samples = (
        Sample((TensorSpec((2, 3)), TensorSpec((2, 3))), {"alpha": 1.7}),
        Sample((TensorSpec((0,)), TensorSpec((0,)))),
    )
    rejections = (
        Rejection(
            (TensorSpec((2, 3)), TensorSpec((3,))), "A has shape (2, 3) but B has shape (3,)"
        ),
    )

    def infer(self, a: TensorSpec, b: TensorSpec, alpha: float) -> TensorSpec:
        if a.shape != b.shape:
            raise Invalid("SHAPE_MISMATCH", f"A has shape {a.shape} but B has shape {b.shape}")
        return TensorSpec(a.shape, a.dtype)

    def aligned_shapes(self, a: TensorSpec, b: TensorSpec, alpha: float) -> tuple[Shape, ...]:
        return a.shape, b.shape

    def forward(self, xp: Namespace, a: Array, b: Array, alpha: float) -> Array:
        return a * sigmoid(xp, alpha * a) * b

    def vjp(
        self, xp: Namespace, grad: Array, out: Array, a: Array, b: Array, alpha: float
    ) -> tuple[Any, ...]:
        return (
            lambda: grad * b * _swish_slope(xp, a, alpha),
            lambda: grad * a * sigmoid(xp, alpha * a),
        )


class Shrink(ElementwiseGate):
    """Number moved towards 0, and 0 where it is near.

    Formula:   output = input + bias if input < -lambd, input - bias if input > lambd, else 0
    Gradient:  d output/d input = 1 outside [-lambd, lambd], 0 inside
    Kinks:     At -lambd and lambd the gradient is 0.
    Shapes:    As input; integers are rounded towards zero.
    """

    operator = "Shrink"
    scratch_arrays = (3.2, 2.2)
    inputs = (Input("input", _NOT_BFLOAT16),)
    attributes = (
        Attribute("bias", "float", 0.0, doc="How far numbers are moved."),
        Attribute("lambd", "float", 0.5, doc="Largest number that becomes 0."),
    )
    examples = (
        Example(([-2.0, 0.1, 2.0],), [-1.5, 0.0, 1.5], gradients=([1.0, 0.0, 1.0],),
                attributes={"bias": 0.5}),
        Example(([-1.0, 1.0],), [0.0, 0.0], gradients=([0.0, 0.0],),
                attributes={"lambd": 1.0}, at_kink=True),
        Example(([-3, 1, 3],), [-2, 0, 2], attributes={"bias": 1.0, "lambd": 1.5}),
    )  # fmt: skip

    def forward(self, xp: Namespace, x: Array, bias: float, lambd: float) -> Array:
        moved = xp.where(xp.greater(x, lambd), x - bias, 0.0 * x)
        out = xp.where(xp.less(x, -lambd), x + bias, moved)
        return out if str(x.dtype) in FLOATS else xp.astype(out, x.dtype)

    def vjp(
        self, xp: Namespace, grad: Array, out: Array, x: Array, bias: float, lambd: float
    ) -> tuple[Array, ...]:
        return (xp.where(xp.greater(xp.abs(x), lambd), grad, 0.0),)


class ThresholdedRelu(ElementwiseGate):
    """Number where it is above a threshold, else 0.

    Formula:   out = X if X > alpha else 0
    Gradient:  d out/dX = [X > alpha]
    Kinks:     At alpha the gradient is 0.
    Shapes:    As X.
    """

    operator = "ThresholdedRelu"
    scratch_arrays = (0.15, 0.15)
    attributes = (Attribute("alpha", "float", 1.0, doc="Threshold."),)
    examples = (
        Example(([0.5, 2.0],), [0.0, 2.0], gradients=([0.0, 1.0],)),
        Example((1.0,), 0.0, gradients=(0.0,), at_kink=True),
    )

    def forward(self, xp: Namespace, x: Array, alpha: float) -> Array:
        return xp.where(xp.greater(x, alpha), x, 0.0)

    def vjp(
        self, xp: Namespace, grad: Array, out: Array, x: Array, alpha: float
    ) -> tuple[Array, ...]:
        return (xp.where(xp.greater(x, alpha), grad, 0.0),)


class Clip(Gate):
    """Number kept between bounds; where min is above max, max wins.

    Formula:   out = min(max(input, min), max)
    Gradient:  d out/d input = [min <= input <= max],  d out/d min = [input < min],
               d out/d max = [input > max]
    Kinks:     On a bound the gradient goes to input.
    Shapes:    As input; min and max are scalars.
    """

    operator = "Clip"
    inputs = (
        Input("input", NUMBERS),
        Input("min", NUMBERS, optional=True, domain=(-1.0, -0.5)),
        Input("max", NUMBERS, optional=True, domain=(0.5, 1.0)),
    )
    examples = (
        Example(
            ([-2.0, 0.5, 3.0], -1.0, 1.0), [-1.0, 0.5, 1.0], gradients=([0.0, 1.0, 0.0], 1.0, 1.0)
        ),
        Example((1.0, None, 1.0), 1.0, gradients=(1.0, None, 0.0), at_kink=True),
        Example(([-2, 5], 0, 3), [0, 3]),
    )
    samples = (
        Sample((TensorSpec((2, 3)), TensorSpec(()), TensorSpec(()))),
        Sample((TensorSpec((3,)), TensorSpec(()))),
        Sample((TensorSpec((0, 3)), None, TensorSpec(()))),
        Sample((TensorSpec(()),)),
    )
    rejections = (
        Rejection((TensorSpec((2,)), TensorSpec((2,))), "min has shape (2,) but must be a scalar"),
    )

    def infer(self, *specs: Any, **attributes: Any) -> TensorSpec:
        for name, spec in zip(("min", "max"), specs[1:], strict=False):
            # with a batch axis before it, a scalar has the rank of X
            if spec is not None and spec.shape not in ((), (1,) * specs[0].rank):
                raise Invalid(
                    "SHAPE_MISMATCH", f"{name} has shape {spec.shape} but must be a scalar"
                )
        return TensorSpec(specs[0].shape, specs[0].dtype)

    def aligned_shapes(self, *specs: Any, **attributes: Any) -> tuple[Shape, ...]:
        ones = (1,) * specs[0].rank
        return (specs[0].shape, *(() if spec is None else ones for spec in specs[1:]))

    def scratch(self, outs: Sequence[TensorSpec], *specs: Any, **attributes: Any) -> Scratch:
        both = sum(each is not None for each in specs) == 3
        forward, back = (1, 5.3) if both else (0, 2.2)
        return Scratch(int(forward * outs[0].nbytes), int(back * outs[0].nbytes))

    def forward(self, xp: Namespace, x: Array, low: Array = None, high: Array = None) -> Array:
        if low is not None:
            x = xp.maximum(x, low)
        if high is not None:
            x = xp.minimum(x, high)
        return x

    def vjp(
        self, xp: Namespace, grad: Array, out: Array, x: Array, *bounds: Array
    ) -> tuple[Array | None, ...]:
        low, high = (*bounds, None, None)[:2]
        to_x, to_low, to_high = grad, None, None
        if high is not None:
            clamped = x if low is None else xp.maximum(x, low)
            over = xp.greater(clamped, high)
            to_high = xp.where(over, grad, 0.0)
            to_x = xp.where(over, 0.0, grad)
        if low is not None:
            under = xp.less(x, low)
            to_low = xp.where(under, to_x, 0.0)
            to_x = xp.where(under, 0.0, to_x)
        return (to_x, to_low, to_high)[: 1 + len(bounds)]
