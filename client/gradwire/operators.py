"""One function for each operator, generated from the gates' table by scripts/generate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gradwire.builder import Handle, Operand, apply, apply_several, apply_split

__all__ = [
    "abs",
    "acos",
    "acosh",
    "add",
    "and_",
    "arg_max",
    "arg_min",
    "asin",
    "asinh",
    "atan",
    "atanh",
    "average_pool",
    "bit_cast",
    "cast",
    "cast_like",
    "ceil",
    "celu",
    "center_crop_pad",
    "clip",
    "compress",
    "concat",
    "constant_of_shape",
    "conv",
    "conv_transpose",
    "cos",
    "cosh",
    "cum_sum",
    "depth_to_space",
    "div",
    "einsum",
    "elu",
    "equal",
    "erf",
    "exp",
    "expand",
    "eye_like",
    "flatten",
    "floor",
    "gather",
    "gather_elements",
    "gather_nd",
    "gelu",
    "gemm",
    "global_average_pool",
    "global_lp_pool",
    "global_max_pool",
    "greater",
    "greater_or_equal",
    "hard_sigmoid",
    "hard_swish",
    "identity",
    "is_inf",
    "is_nan",
    "leaky_relu",
    "less",
    "less_or_equal",
    "log",
    "log_softmax",
    "lp_pool",
    "mat_mul",
    "max",
    "max_pool",
    "max_unpool",
    "mean",
    "min",
    "mish",
    "mod",
    "mul",
    "neg",
    "non_zero",
    "not_",
    "one_hot",
    "or_",
    "pad",
    "pow",
    "prelu",
    "range",
    "reciprocal",
    "reduce_l1",
    "reduce_l2",
    "reduce_log_sum",
    "reduce_log_sum_exp",
    "reduce_max",
    "reduce_mean",
    "reduce_min",
    "reduce_prod",
    "reduce_sum",
    "reduce_sum_square",
    "relu",
    "reshape",
    "reverse_sequence",
    "round",
    "scatter_elements",
    "scatter_nd",
    "selu",
    "shape",
    "sigmoid",
    "sign",
    "sin",
    "sinh",
    "size",
    "slice",
    "softmax",
    "softmax_cross_entropy_loss",
    "softplus",
    "softsign",
    "space_to_depth",
    "split",
    "sqrt",
    "squeeze",
    "sub",
    "sum",
    "tan",
    "tanh",
    "tensor_scatter",
    "thresholded_relu",
    "tile",
    "top_k",
    "transpose",
    "trilu",
    "unique",
    "unsqueeze",
    "where",
    "xor",
]


def add(a: Operand, b: Operand) -> Handle:
    """Sum of two numbers.

    Formula:   out = A + B
    Gradient:  d out/dA = 1,  d out/dB = 1
    Shapes:    A and B broadcast.
    """
    return apply(
        "Add",
        (
            a,
            b,
        ),
        {},
    )


def sub(a: Operand, b: Operand) -> Handle:
    """Difference of two numbers.

    Formula:   out = A - B
    Gradient:  d out/dA = 1,  d out/dB = -1
    Shapes:    A and B broadcast.
    """
    return apply(
        "Sub",
        (
            a,
            b,
        ),
        {},
    )


def mul(a: Operand, b: Operand) -> Handle:
    """Product of two numbers.

    Formula:   out = A * B
    Gradient:  d out/dA = B,  d out/dB = A
    Shapes:    A and B broadcast.
    """
    return apply(
        "Mul",
        (
            a,
            b,
        ),
        {},
    )


def div(a: Operand, b: Operand) -> Handle:
    """Quotient of two numbers; of integers, rounded towards zero, and 0 where B is 0.

    Formula:   out = A / B
    Gradient:  d out/dA = 1 / B,  d out/dB = -out / B
    Kinks:     Where B is 0 the gradient is not finite, and 0 where nothing depends on it.
    Shapes:    A and B broadcast.
    """
    return apply(
        "Div",
        (
            a,
            b,
        ),
        {},
    )


def pow(x: Operand, y: Operand) -> Handle:
    """Power of a number; the result has the type of the base.

    Formula:   out = X ** Y
    Gradient:  d out/dX = Y * X ** (Y - 1),  d out/dY = out * log(X)
    Kinks:     d out/dX is 0 where Y is 0; d out/dY is 0 where X is not above 0.
    Shapes:    X and Y broadcast.
    """
    return apply(
        "Pow",
        (
            x,
            y,
        ),
        {},
    )


def neg(x: Operand) -> Handle:
    """Number with its sign changed.

    Formula:   out = -X
    Gradient:  d out/dX = -1
    Shapes:    As X.
    """
    return apply("Neg", (x,), {})


def abs(x: Operand) -> Handle:
    """Distance from zero.

    Formula:   out = |X|
    Gradient:  d out/dX = sign(X)
    Kinks:     At 0 the gradient is 0.
    Shapes:    As X.
    """
    return apply("Abs", (x,), {})


def reciprocal(x: Operand) -> Handle:
    """One divided by a number.

    Formula:   out = 1 / X
    Gradient:  d out/dX = -out ** 2
    Kinks:     At 0 the gradient is infinite, and 0 where nothing depends on it.
    Shapes:    As X.
    """
    return apply("Reciprocal", (x,), {})


def sqrt(x: Operand) -> Handle:
    """Square root; NaN below zero.

    Formula:   out = sqrt(X)
    Gradient:  d out/dX = 1 / (2 * out)
    Kinks:     At 0 the gradient is infinite, and 0 where nothing depends on it.
    Shapes:    As X.
    """
    return apply("Sqrt", (x,), {})


def sign(x: Operand) -> Handle:
    """-1, 0 or 1 by the sign.

    Formula:   out = [X > 0] - [X < 0]
    Gradient:  d out/dX = 0
    Kinks:     At 0 the gradient is 0.
    Shapes:    As X.
    """
    return apply("Sign", (x,), {})


def mod(a: Operand, b: Operand, *, fmod: int = 0) -> Handle:
    """Remainder of a division; with fmod=1 it has the sign of A, else of B (integers only).

    Formula:   out = A - B * q, where q is A / B rounded: towards zero (fmod=1), or down (fmod=0)
    Gradient:  d out/dA = 1,  d out/dB = -q
    Kinks:     Where A / B is a whole number the gradient is that of the piece above.
    Shapes:    A and B broadcast.
    """
    return apply(
        "Mod",
        (
            a,
            b,
        ),
        {"fmod": fmod},
    )


def floor(x: Operand) -> Handle:
    """Largest whole number that is not above.

    Formula:   out = floor(X)
    Gradient:  d out/dX = 0
    Kinks:     At whole numbers the gradient is 0.
    Shapes:    As X.
    """
    return apply("Floor", (x,), {})


def ceil(x: Operand) -> Handle:
    """Smallest whole number that is not below.

    Formula:   out = ceil(X)
    Gradient:  d out/dX = 0
    Kinks:     At whole numbers the gradient is 0.
    Shapes:    As X.
    """
    return apply("Ceil", (x,), {})


def round(x: Operand) -> Handle:
    """Nearest whole number; halves go to the even one.

    Formula:   out = round(X)
    Gradient:  d out/dX = 0
    Kinks:     At halves the gradient is 0.
    Shapes:    As X.
    """
    return apply("Round", (x,), {})


def sum(*data: Operand) -> Handle:
    """Sum of any number of tensors.

    Formula:   out = data_0 + data_1 + ...
    Gradient:  d out/d data_i = 1
    Shapes:    All inputs broadcast.
    """
    return apply("Sum", (*data,), {})


def mean(*data: Operand) -> Handle:
    """Mean of any number of tensors.

    Formula:   out = (data_0 + data_1 + ...) / n
    Gradient:  d out/d data_i = 1 / n
    Shapes:    All inputs broadcast.
    """
    return apply("Mean", (*data,), {})


def max(*data: Operand) -> Handle:
    """Largest of any number of tensors, element by element.

    Formula:   out = max(data_0, data_1, ...)
    Gradient:  d out/d data_i = [data_i = out]
    Kinks:     Inputs that tie share the gradient equally.
    Shapes:    All inputs broadcast.
    """
    return apply("Max", (*data,), {})


def min(*data: Operand) -> Handle:
    """Smallest of any number of tensors, element by element.

    Formula:   out = min(data_0, data_1, ...)
    Gradient:  d out/d data_i = [data_i = out]
    Kinks:     Inputs that tie share the gradient equally.
    Shapes:    All inputs broadcast.
    """
    return apply("Min", (*data,), {})


def exp(x: Operand) -> Handle:
    """Exponential.

    Formula:   out = exp(X)
    Gradient:  d out/dX = out
    Shapes:    As X.
    """
    return apply("Exp", (x,), {})


def log(x: Operand) -> Handle:
    """Natural logarithm; NaN below zero.

    Formula:   out = log(X)
    Gradient:  d out/dX = 1 / X
    Kinks:     At 0 the gradient is infinite, and 0 where nothing depends on it.
    Shapes:    As X.
    """
    return apply("Log", (x,), {})


def sin(x: Operand) -> Handle:
    """Sine of an angle in radians.

    Formula:   out = sin(X)
    Gradient:  d out/dX = cos(X)
    Shapes:    As X.
    """
    return apply("Sin", (x,), {})


def cos(x: Operand) -> Handle:
    """Cosine of an angle in radians.

    Formula:   out = cos(X)
    Gradient:  d out/dX = -sin(X)
    Shapes:    As X.
    """
    return apply("Cos", (x,), {})


def tan(x: Operand) -> Handle:
    """Tangent of an angle in radians.

    Formula:   out = tan(X)
    Gradient:  d out/dX = 1 + out ** 2
    Shapes:    As X.
    """
    return apply("Tan", (x,), {})


def asin(x: Operand) -> Handle:
    """Angle in radians whose sine is given; NaN outside [-1, 1].

    Formula:   out = asin(X)
    Gradient:  d out/dX = 1 / sqrt(1 - X ** 2)
    Kinks:     At -1 and 1 the gradient is infinite, and 0 where nothing depends on it.
    Shapes:    As X.
    """
    return apply("Asin", (x,), {})


def acos(x: Operand) -> Handle:
    """Angle in radians whose cosine is given; NaN outside [-1, 1].

    Formula:   out = acos(X)
    Gradient:  d out/dX = -1 / sqrt(1 - X ** 2)
    Kinks:     At -1 and 1 the gradient is infinite, and 0 where nothing depends on it.
    Shapes:    As X.
    """
    return apply("Acos", (x,), {})


def atan(x: Operand) -> Handle:
    """Angle in radians whose tangent is given.

    Formula:   out = atan(X)
    Gradient:  d out/dX = 1 / (1 + X ** 2)
    Shapes:    As X.
    """
    return apply("Atan", (x,), {})


def sinh(x: Operand) -> Handle:
    """Hyperbolic sine.

    Formula:   out = sinh(X)
    Gradient:  d out/dX = cosh(X)
    Shapes:    As X.
    """
    return apply("Sinh", (x,), {})


def cosh(x: Operand) -> Handle:
    """Hyperbolic cosine.

    Formula:   out = cosh(X)
    Gradient:  d out/dX = sinh(X)
    Shapes:    As X.
    """
    return apply("Cosh", (x,), {})


def tanh(x: Operand) -> Handle:
    """Hyperbolic tangent.

    Formula:   out = tanh(X)
    Gradient:  d out/dX = 1 - out ** 2
    Shapes:    As X.
    """
    return apply("Tanh", (x,), {})


def asinh(x: Operand) -> Handle:
    """Number whose hyperbolic sine is given.

    Formula:   out = asinh(X)
    Gradient:  d out/dX = 1 / sqrt(X ** 2 + 1)
    Shapes:    As X.
    """
    return apply("Asinh", (x,), {})


def acosh(x: Operand) -> Handle:
    """Number whose hyperbolic cosine is given; NaN below 1.

    Formula:   out = acosh(X)
    Gradient:  d out/dX = 1 / sqrt(X ** 2 - 1)
    Kinks:     At 1 the gradient is infinite, and 0 where nothing depends on it.
    Shapes:    As X.
    """
    return apply("Acosh", (x,), {})


def atanh(x: Operand) -> Handle:
    """Number whose hyperbolic tangent is given; NaN outside [-1, 1].

    Formula:   out = atanh(X)
    Gradient:  d out/dX = 1 / (1 - X ** 2)
    Kinks:     At -1 and 1 the gradient is infinite, and 0 where nothing depends on it.
    Shapes:    As X.
    """
    return apply("Atanh", (x,), {})


def erf(x: Operand) -> Handle:
    """Error function.

    Formula:   out = erf(X) = 2/sqrt(pi) * (integral of exp(-t ** 2) from 0 to X)
    Gradient:  d out/dX = 2/sqrt(pi) * exp(-X ** 2)
    Shapes:    As X.
    """
    return apply("Erf", (x,), {})


def sigmoid(x: Operand) -> Handle:
    """Logistic function: any number to between 0 and 1.

    Formula:   out = 1 / (1 + exp(-X))
    Gradient:  d out/dX = (1 - out) * out
    Shapes:    As X.
    """
    return apply("Sigmoid", (x,), {})


def relu(x: Operand) -> Handle:
    """Number where it is positive, else 0.

    Formula:   out = max(X, 0)
    Gradient:  d out/dX = [X > 0]
    Kinks:     At 0 the gradient is 0.
    Shapes:    As X.
    """
    return apply("Relu", (x,), {})


def leaky_relu(x: Operand, *, alpha: float = 0.01) -> Handle:
    """Number where it is positive, else a small part of it.

    Formula:   out = X if X > 0 else alpha * X
    Gradient:  d out/dX = 1 if X > 0 else alpha
    Kinks:     At 0 the gradient is alpha.
    Shapes:    As X.
    """
    return apply("LeakyRelu", (x,), {"alpha": alpha})


def prelu(x: Operand, slope: Operand) -> Handle:
    """Number where it is positive, else it times a slope that is learned.

    Formula:   out = X if X > 0 else slope * X
    Gradient:  d out/dX = 1 if X > 0 else slope,  d out/d slope = 0 if X > 0 else X
    Kinks:     At 0 the gradient to X is slope.
    Shapes:    As X; slope broadcasts to X.
    """
    return apply(
        "PRelu",
        (
            x,
            slope,
        ),
        {},
    )


def elu(x: Operand, *, alpha: float = 1.0) -> Handle:
    """Number where it is positive, else an exponential that levels off at -alpha.

    Formula:   out = X if X > 0 else alpha * (exp(X) - 1)
    Gradient:  d out/dX = 1 if X > 0 else alpha * exp(X)
    Kinks:     At 0 the gradient is alpha.
    Shapes:    As X.
    """
    return apply("Elu", (x,), {"alpha": alpha})


def selu(
    x: Operand, *, alpha: float = 1.6732632423543772, gamma: float = 1.0507009873554805
) -> Handle:
    """Scaled Elu, with the constants that keep mean 0 and variance 1.

    Formula:   out = gamma * (X if X > 0 else alpha * (exp(X) - 1))
    Gradient:  d out/dX = gamma * (1 if X > 0 else alpha * exp(X))
    Kinks:     At 0 the gradient is gamma * alpha.
    Shapes:    As X.
    """
    return apply("Selu", (x,), {"alpha": alpha, "gamma": gamma})


def celu(x: Operand, *, alpha: float = 1.0) -> Handle:
    """Elu whose slope is continuous for every alpha.

    Formula:   out = max(X, 0) + min(0, alpha * (exp(X / alpha) - 1))
    Gradient:  d out/dX = 1 if X > 0 else exp(X / alpha)
    Shapes:    As X.
    """
    return apply("Celu", (x,), {"alpha": alpha})


def gelu(x: Operand, *, approximate: str = "none") -> Handle:
    """Number weighed by how likely a standard normal one is smaller.

    Formula:   out = X * Phi(X), Phi(X) = (1 + erf(X / sqrt(2))) / 2; with approximate="tanh",
               Phi(X) = (1 + tanh(sqrt(2/pi) * (X + 0.044715 * X ** 3))) / 2
    Gradient:  d out/dX = Phi(X) + X * dPhi/dX
    Shapes:    As X.
    """
    return apply("Gelu", (x,), {"approximate": approximate})


def softplus(x: Operand) -> Handle:
    """Smooth form of Relu.

    Formula:   out = log(1 + exp(X))
    Gradient:  d out/dX = 1 / (1 + exp(-X))
    Shapes:    As X.
    """
    return apply("Softplus", (x,), {})


def softsign(x: Operand) -> Handle:
    """Number squeezed to between -1 and 1.

    Formula:   out = X / (1 + |X|)
    Gradient:  d out/dX = 1 / (1 + |X|) ** 2
    Shapes:    As X.
    """
    return apply("Softsign", (x,), {})


def hard_sigmoid(x: Operand, *, alpha: float = 0.2, beta: float = 0.5) -> Handle:
    """Straight line cut off at 0 and 1.

    Formula:   out = max(0, min(1, alpha * X + beta))
    Gradient:  d out/dX = alpha if 0 < alpha * X + beta < 1 else 0
    Kinks:     Where the line is cut off the gradient is 0.
    Shapes:    As X.
    """
    return apply("HardSigmoid", (x,), {"alpha": alpha, "beta": beta})


def hard_swish(x: Operand) -> Handle:
    """Number times a straight line cut off at 0 and 1.

    Formula:   out = X * max(0, min(1, X / 6 + 1 / 2))
    Gradient:  d out/dX = 0 if X <= -3, 1 if X >= 3, else X / 3 + 1 / 2
    Kinks:     At -3 the gradient is 0, at 3 it is 1.
    Shapes:    As X.
    """
    return apply("HardSwish", (x,), {})


def mish(x: Operand) -> Handle:
    """Number times the hyperbolic tangent of its softplus.

    Formula:   out = X * tanh(log(1 + exp(X)))
    Gradient:  d out/dX = t + X * (1 - t ** 2) / (1 + exp(-X)), where t = tanh(log(1 + exp(X)))
    Shapes:    As X.
    """
    return apply("Mish", (x,), {})


def thresholded_relu(x: Operand, *, alpha: float = 1.0) -> Handle:
    """Number where it is above a threshold, else 0.

    Formula:   out = X if X > alpha else 0
    Gradient:  d out/dX = [X > alpha]
    Kinks:     At alpha the gradient is 0.
    Shapes:    As X.
    """
    return apply("ThresholdedRelu", (x,), {"alpha": alpha})


def clip(input: Operand, min: Operand | None = None, max: Operand | None = None) -> Handle:
    """Number kept between bounds; where min is above max, max wins.

    Formula:   out = min(max(input, min), max)
    Gradient:  d out/d input = [min <= input <= max],  d out/d min = [input < min], d out/d max =
               [input > max]
    Kinks:     On a bound the gradient goes to input.
    Shapes:    As input; min and max are scalars.
    """
    return apply(
        "Clip",
        (
            input,
            min,
            max,
        ),
        {},
    )


def equal(a: Operand, b: Operand) -> Handle:
    """Whether two elements are equal; NaN equals nothing.

    Formula:   out = [A = B]
    Gradient:  None: the output is bool.
    Shapes:    A and B broadcast.
    """
    return apply(
        "Equal",
        (
            a,
            b,
        ),
        {},
    )


def greater(a: Operand, b: Operand) -> Handle:
    """Whether the first element is larger.

    Formula:   out = [A > B]
    Gradient:  None: the output is bool.
    Shapes:    A and B broadcast.
    """
    return apply(
        "Greater",
        (
            a,
            b,
        ),
        {},
    )


def greater_or_equal(a: Operand, b: Operand) -> Handle:
    """Whether the first element is not smaller.

    Formula:   out = [A >= B]
    Gradient:  None: the output is bool.
    Shapes:    A and B broadcast.
    """
    return apply(
        "GreaterOrEqual",
        (
            a,
            b,
        ),
        {},
    )


def less(a: Operand, b: Operand) -> Handle:
    """Whether the first element is smaller.

    Formula:   out = [A < B]
    Gradient:  None: the output is bool.
    Shapes:    A and B broadcast.
    """
    return apply(
        "Less",
        (
            a,
            b,
        ),
        {},
    )


def less_or_equal(a: Operand, b: Operand) -> Handle:
    """Whether the first element is not larger.

    Formula:   out = [A <= B]
    Gradient:  None: the output is bool.
    Shapes:    A and B broadcast.
    """
    return apply(
        "LessOrEqual",
        (
            a,
            b,
        ),
        {},
    )


def not_(x: Operand) -> Handle:
    """Whether the element is false.

    Formula:   out = not X
    Gradient:  None: the output is bool.
    Shapes:    As X.
    """
    return apply("Not", (x,), {})


def and_(a: Operand, b: Operand) -> Handle:
    """Whether both are true.

    Formula:   out = A and B
    Gradient:  None: the output is bool.
    Shapes:    A and B broadcast.
    """
    return apply(
        "And",
        (
            a,
            b,
        ),
        {},
    )


def or_(a: Operand, b: Operand) -> Handle:
    """Whether one of both is true.

    Formula:   out = A or B
    Gradient:  None: the output is bool.
    Shapes:    A and B broadcast.
    """
    return apply(
        "Or",
        (
            a,
            b,
        ),
        {},
    )


def xor(a: Operand, b: Operand) -> Handle:
    """Whether exactly one of both is true.

    Formula:   out = A xor B
    Gradient:  None: the output is bool.
    Shapes:    A and B broadcast.
    """
    return apply(
        "Xor",
        (
            a,
            b,
        ),
        {},
    )


def where(condition: Operand, x: Operand, y: Operand) -> Handle:
    """X where the condition holds, else Y.

    Formula:   out = X if condition else Y
    Gradient:  d out/dX = [condition],  d out/dY = [not condition]
    Shapes:    condition, X and Y broadcast.
    """
    return apply(
        "Where",
        (
            condition,
            x,
            y,
        ),
        {},
    )


def is_nan(x: Operand) -> Handle:
    """Whether the element is not a number.

    Formula:   out = [X is NaN]
    Gradient:  None: the output is bool.
    Shapes:    As X.
    """
    return apply("IsNaN", (x,), {})


def is_inf(x: Operand, *, detect_negative: int = 1, detect_positive: int = 1) -> Handle:
    """Whether the element is infinite, on the sides that are asked about.

    Formula:   out = [X = infinity and detect_positive] or [X = -infinity and detect_negative]
    Gradient:  None: the output is bool.
    Shapes:    As X.
    """
    return apply(
        "IsInf", (x,), {"detect_negative": detect_negative, "detect_positive": detect_positive}
    )


def reduce_sum(
    data: Operand, axes: Operand | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Handle:
    """Sum along axes.

    Formula:   out = sum of data
    Gradient:  d out/d data = 1
    Shapes:    axes are lost, or of size 1 with keepdims; all axes where none are given, unless
               noop_with_empty_axes. Nothing sums to 0.
    """
    return apply(
        "ReduceSum",
        (
            data,
            axes,
        ),
        {"keepdims": keepdims, "noop_with_empty_axes": noop_with_empty_axes},
    )


def reduce_mean(
    data: Operand, axes: Operand | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Handle:
    """Mean along axes.

    Formula:   out = (sum of data) / n,  n elements each; of integers, rounded towards zero
    Gradient:  d out/d data = 1 / n
    Shapes:    axes are lost, or of size 1 with keepdims; all axes where none are given, unless
               noop_with_empty_axes. The mean of nothing is NaN; of no integers, 0.
    """
    return apply(
        "ReduceMean",
        (
            data,
            axes,
        ),
        {"keepdims": keepdims, "noop_with_empty_axes": noop_with_empty_axes},
    )


def reduce_max(
    data: Operand, axes: Operand | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Handle:
    """Largest element along axes.

    Formula:   out = max of data
    Gradient:  d out/d data = 1 for the largest element, 0 for the others
    Kinks:     where several are largest, they share the gradient equally.
    Shapes:    axes are lost, or of size 1 with keepdims; all axes where none are given, unless
               noop_with_empty_axes. Of nothing: minus infinity, or the type's lowest number.
    """
    return apply(
        "ReduceMax",
        (
            data,
            axes,
        ),
        {"keepdims": keepdims, "noop_with_empty_axes": noop_with_empty_axes},
    )


def reduce_min(
    data: Operand, axes: Operand | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Handle:
    """Smallest element along axes.

    Formula:   out = min of data
    Gradient:  d out/d data = 1 for the smallest element, 0 for the others
    Kinks:     where several are smallest, they share the gradient equally.
    Shapes:    axes are lost, or of size 1 with keepdims; all axes where none are given, unless
               noop_with_empty_axes. Of nothing: infinity, or the type's highest number.
    """
    return apply(
        "ReduceMin",
        (
            data,
            axes,
        ),
        {"keepdims": keepdims, "noop_with_empty_axes": noop_with_empty_axes},
    )


def reduce_prod(
    data: Operand, axes: Operand | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Handle:
    """Product along axes.

    Formula:   out = product of data
    Gradient:  d out/d data[i] = product of the others, data[j] with j != i; nothing is divided,
               so zeros are exact, in every order
    Shapes:    axes are lost, or of size 1 with keepdims; all axes where none are given, unless
               noop_with_empty_axes. The product of nothing is 1.
    """
    return apply(
        "ReduceProd",
        (
            data,
            axes,
        ),
        {"keepdims": keepdims, "noop_with_empty_axes": noop_with_empty_axes},
    )


def reduce_l1(
    data: Operand, axes: Operand | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Handle:
    """Sum of absolute values along axes.

    Formula:   out = sum of |data|
    Gradient:  d out/d data = sign(data)
    Kinks:     0 where data = 0.
    Shapes:    axes are lost, or of size 1 with keepdims; all axes where none are given, unless
               noop_with_empty_axes. Nothing gives 0.
    """
    return apply(
        "ReduceL1",
        (
            data,
            axes,
        ),
        {"keepdims": keepdims, "noop_with_empty_axes": noop_with_empty_axes},
    )


def reduce_l2(
    data: Operand, axes: Operand | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Handle:
    """Euclidean norm along axes.

    Formula:   out = sqrt(sum of data^2), without overflow; of integers, rounded towards zero
    Gradient:  d out/d data = data / out
    Kinks:     0 where out = 0.
    Shapes:    axes are lost, or of size 1 with keepdims; all axes where none are given, unless
               noop_with_empty_axes. Nothing gives 0.
    """
    return apply(
        "ReduceL2",
        (
            data,
            axes,
        ),
        {"keepdims": keepdims, "noop_with_empty_axes": noop_with_empty_axes},
    )


def reduce_log_sum(
    data: Operand, axes: Operand | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Handle:
    """Logarithm of a sum along axes.

    Formula:   out = log(sum of data)
    Gradient:  d out/d data = 1 / (sum of data)
    Shapes:    axes are lost, or of size 1 with keepdims; all axes where none are given, unless
               noop_with_empty_axes. Nothing gives minus infinity.
    """
    return apply(
        "ReduceLogSum",
        (
            data,
            axes,
        ),
        {"keepdims": keepdims, "noop_with_empty_axes": noop_with_empty_axes},
    )


def reduce_log_sum_exp(
    data: Operand, axes: Operand | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Handle:
    """Logarithm of a sum of exponentials along axes: a smooth maximum.

    Formula:   out = log(sum of exp(data)), without overflow
    Gradient:  d out/d data = exp(data - out), the softmax of data
    Kinks:     0 where all are minus infinity.
    Shapes:    axes are lost, or of size 1 with keepdims; all axes where none are given, unless
               noop_with_empty_axes. Nothing gives minus infinity.
    """
    return apply(
        "ReduceLogSumExp",
        (
            data,
            axes,
        ),
        {"keepdims": keepdims, "noop_with_empty_axes": noop_with_empty_axes},
    )


def reduce_sum_square(
    data: Operand, axes: Operand | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Handle:
    """Sum of squares along axes.

    Formula:   out = sum of data^2
    Gradient:  d out/d data = 2 * data
    Shapes:    axes are lost, or of size 1 with keepdims; all axes where none are given, unless
               noop_with_empty_axes: then out = data^2. Nothing gives 0.
    """
    return apply(
        "ReduceSumSquare",
        (
            data,
            axes,
        ),
        {"keepdims": keepdims, "noop_with_empty_axes": noop_with_empty_axes},
    )


def cum_sum(x: Operand, axis: Operand, *, exclusive: int = 0, reverse: int = 0) -> Handle:
    """Running sum along an axis.

    Formula:   out[i] = x[0] + ... + x[i];  exclusive leaves out x[i], reverse runs from the end
    Gradient:  grad[i] + ... + grad[n-1]: the running sum the other way, exclusive where out is
    Shapes:    out is shaped like x; axis is one number.
    """
    return apply(
        "CumSum",
        (
            x,
            axis,
        ),
        {"exclusive": exclusive, "reverse": reverse},
    )


def arg_max(
    data: Operand, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0
) -> Handle:
    """Index of the largest element along an axis.

    Formula:   out = the first i where data[i] is largest; select_last_index takes the last
    Gradient:  none: indices are integers
    Shapes:    axis is lost, or of size 1 with keepdims.
    """
    return apply(
        "ArgMax",
        (data,),
        {"axis": axis, "keepdims": keepdims, "select_last_index": select_last_index},
    )


def arg_min(
    data: Operand, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0
) -> Handle:
    """Index of the smallest element along an axis.

    Formula:   out = the first i where data[i] is smallest; select_last_index takes the last
    Gradient:  none: indices are integers
    Shapes:    axis is lost, or of size 1 with keepdims.
    """
    return apply(
        "ArgMin",
        (data,),
        {"axis": axis, "keepdims": keepdims, "select_last_index": select_last_index},
    )


def identity(input: Operand) -> Handle:
    """The value itself.

    Formula:   out = input
    Gradient:  d out/d input = 1
    Shapes:    As input.
    """
    return apply("Identity", (input,), {})


def cast(input: Operand, *, to: int, saturate: int = 1, round_mode: str = "up") -> Handle:
    """Elements in another data type; floats become integers towards zero.

    Formula:   out = input, as the data type numbered `to`
    Gradient:  d out/d input = 1 between floating types; none otherwise
    Shapes:    As input.
    """
    return apply("Cast", (input,), {"to": to, "saturate": saturate, "round_mode": round_mode})


def cast_like(
    input: Operand, target_type: Operand, *, round_mode: str = "up", saturate: int = 1
) -> Handle:
    """Elements in the data type of another tensor.

    Formula:   out = input, as target_type's data type
    Gradient:  d out/d input = 1 between floating types; none otherwise, nor to target_type
    Shapes:    As input.
    """
    return apply(
        "CastLike",
        (
            input,
            target_type,
        ),
        {"round_mode": round_mode, "saturate": saturate},
    )


def bit_cast(input: Operand, *, to: int) -> Handle:
    """The same bits, read as another data type of the same width.

    Formula:   out = input's bytes, as the data type numbered `to`
    Gradient:  d out/d input = 1 where the data type stays; none otherwise
    Shapes:    As input.
    """
    return apply("BitCast", (input,), {"to": to})


def reshape(data: Operand, shape: Operand, *, allowzero: int = 0) -> Handle:
    """The same elements in another shape.

    Formula:   out = data, row-major, in the shape given
    Gradient:  d out/d data = 1
    Shapes:    shape; one -1 is what is left over, and 0 is the size data has there (with
               allowzero it is 0).
    """
    return apply(
        "Reshape",
        (
            data,
            shape,
        ),
        {"allowzero": allowzero},
    )


def transpose(data: Operand, *, perm: Sequence[int] | None = None) -> Handle:
    """Axes in another order.

    Formula:   out[i, j, ..] = data[.., j, i], in the order perm; reversed without it
    Gradient:  d out/d data = 1, with the axes put back
    Shapes:    data's, in the order perm.
    """
    return apply("Transpose", (data,), {"perm": perm})


def expand(input: Operand, shape: Operand) -> Handle:
    """Elements repeated along axes of size 1, and along new ones.

    Formula:   out = input, broadcast
    Gradient:  d out/d input = 1, summed over the repetitions
    Shapes:    That which input and shape broadcast to.
    """
    return apply(
        "Expand",
        (
            input,
            shape,
        ),
        {},
    )


def squeeze(data: Operand, axes: Operand | None = None) -> Handle:
    """Axes of size 1 left out.

    Formula:   out = data
    Gradient:  d out/d data = 1
    Shapes:    data's without axes; without all axes of size 1 where none are given.
    """
    return apply(
        "Squeeze",
        (
            data,
            axes,
        ),
        {},
    )


def unsqueeze(data: Operand, axes: Operand) -> Handle:
    """New axes of size 1.

    Formula:   out = data
    Gradient:  d out/d data = 1
    Shapes:    data's, with size 1 at axes of the output.
    """
    return apply(
        "Unsqueeze",
        (
            data,
            axes,
        ),
        {},
    )


def flatten(input: Operand, *, axis: int = 1) -> Handle:
    """A matrix of the same elements.

    Formula:   out = input, row-major
    Gradient:  d out/d input = 1
    Shapes:    [sizes before axis multiplied, sizes from axis on multiplied].
    """
    return apply("Flatten", (input,), {"axis": axis})


def concat(*inputs: Operand, axis: int) -> Handle:
    """Tensors one after another along an axis.

    Formula:   out = inputs, joined along axis
    Gradient:  d out/d inputs_i = 1: each gets its piece of the gradient
    Shapes:    Equal but for axis, whose sizes add up.
    """
    return apply("Concat", (*inputs,), {"axis": axis})


def split(
    input: Operand, split: Operand | None = None, *, axis: int = 0, num_outputs: int | None = None
) -> tuple[Handle, ...]:
    """A tensor cut into pieces along an axis.

    Formula:   out_0, out_1, .. = input, cut along axis
    Gradient:  d out_i/d input = 1 on its piece
    Shapes:    As input, but along axis the sizes in split; or num_outputs equal sizes, the last
               one smaller where they do not divide.
    """
    return apply_split(
        "Split",
        (
            input,
            split,
        ),
        {"axis": axis, "num_outputs": num_outputs},
    )


def slice(
    data: Operand,
    starts: Operand,
    ends: Operand,
    axes: Operand | None = None,
    steps: Operand | None = None,
) -> Handle:
    """Part of a tensor: along each axis from start to end, in steps.

    Formula:   out = data[starts[0]:ends[0]:steps[0], ..]; negative numbers count from the end,
               those outside the axis stand for its end
    Gradient:  d out/d data = 1 on the part, 0 elsewhere
    Shapes:    The number of steps along each of axes; all axes in order where none are given.
    """
    return apply(
        "Slice",
        (
            data,
            starts,
            ends,
            axes,
            steps,
        ),
        {},
    )


def pad(
    data: Operand,
    pads: Operand,
    constant_value: Operand | None = None,
    axes: Operand | None = None,
    *,
    mode: str = "constant",
) -> Handle:
    """Elements put around a tensor; negative pads take away.

    Formula:   out = data, between pads[i] elements before and pads[i + n] after along axis i: a
               constant, or data reflected, its edge repeated, or wrapped around
    Gradient:  d out/d data = 1, once for each time an element occurs; d out/d constant_value = 1
               on the elements added
    Shapes:    Each size plus its two pads; all axes in order where none are given.
    """
    return apply(
        "Pad",
        (
            data,
            pads,
            constant_value,
            axes,
        ),
        {"mode": mode},
    )


def tile(input: Operand, repeats: Operand) -> Handle:
    """A tensor repeated along each axis.

    Formula:   out = input, repeats[i] times along axis i
    Gradient:  d out/d input = 1, summed over the repetitions
    Shapes:    Each size times its repeats.
    """
    return apply(
        "Tile",
        (
            input,
            repeats,
        ),
        {},
    )


def trilu(input: Operand, k: Operand | None = None, *, upper: int = 1) -> Handle:
    """The upper or lower triangle of matrices; the rest is zero.

    Formula:   out[.., i, j] = input[.., i, j] where j >= i + k (upper) or j <= i + k, else 0
    Gradient:  d out/d input = 1 in the triangle, 0 elsewhere
    Shapes:    As input, whose last two axes are matrices.
    """
    return apply(
        "Trilu",
        (
            input,
            k,
        ),
        {"upper": upper},
    )


def depth_to_space(input: Operand, *, blocksize: int, mode: str = "DCR") -> Handle:
    """Channels rearranged into blocks of the image.

    Formula:   out[n, c, h * b + i, w * b + j] = input[n, (i * b + j) * C + c, h, w] for C
               channels left (mode DCR), or input[n, (c * b + i) * b + j, h, w] (mode CRD)
    Gradient:  d out/d input = 1, put back
    Shapes:    [n, channels / b^2, height * b, width * b].
    """
    return apply("DepthToSpace", (input,), {"blocksize": blocksize, "mode": mode})


def space_to_depth(input: Operand, *, blocksize: int, mode: str = "DCR") -> Handle:
    """Blocks of the image rearranged into channels: what DepthToSpace puts back.

    Formula:   out[n, (i * b + j) * C + c, h, w] = input[n, c, h * b + i, w * b + j] for C
               channels of input (mode DCR), or out[n, (c * b + i) * b + j, h, w] (mode CRD)
    Gradient:  d out/d input = 1, put back
    Shapes:    [n, channels * b^2, height / b, width / b].
    """
    return apply("SpaceToDepth", (input,), {"blocksize": blocksize, "mode": mode})


def center_crop_pad(
    input_data: Operand, shape: Operand, *, axes: Sequence[int] | None = None
) -> Handle:
    """A tensor cut or padded with zeros to a shape, around its center.

    Formula:   out = the middle of input_data along axes that are longer than shape, input_data in
               the middle of zeros along shorter ones; an odd element more is taken at the end of
               what is cut, and put at the end of what is padded
    Gradient:  d out/d input_data = 1 on what is kept
    Shapes:    input_data's, with shape along axes; all axes in order where none are given.
    """
    return apply(
        "CenterCropPad",
        (
            input_data,
            shape,
        ),
        {"axes": axes},
    )


def gather(data: Operand, indices: Operand, *, axis: int = 0) -> Handle:
    """Slices of a tensor, chosen by their position along an axis.

    Formula:   out[.., i, ..] = data[.., indices[i], ..]; negative indices count from the end
    Gradient:  d out/d data = 1 on the slices taken, once for each time
    Shapes:    data's, with indices' in place of axis.
    """
    return apply(
        "Gather",
        (
            data,
            indices,
        ),
        {"axis": axis},
    )


def gather_elements(data: Operand, indices: Operand, *, axis: int = 0) -> Handle:
    """Elements of a tensor, each chosen by its own index along an axis.

    Formula:   out[i, j] = data[indices[i, j], j] for axis 0; negative indices count from the end
    Gradient:  d out/d data = 1 on the elements taken, once for each time
    Shapes:    indices'; of data's rank, and no longer along other axes.
    """
    return apply(
        "GatherElements",
        (
            data,
            indices,
        ),
        {"axis": axis},
    )


def gather_nd(data: Operand, indices: Operand, *, batch_dims: int = 0) -> Handle:
    """Slices of a tensor, each chosen by a vector of positions along its first axes.

    Formula:   out[i] = data[indices[i, 0], indices[i, 1], ..]; with batch_dims, out[b, i] =
               data[b, indices[b, i, 0], ..]; negative indices count from the end
    Gradient:  d out/d data = 1 on the slices taken, once for each time
    Shapes:    indices' without its last axis, whose size is how many axes it counts along, and
               then the rest of data's.
    """
    return apply(
        "GatherND",
        (
            data,
            indices,
        ),
        {"batch_dims": batch_dims},
    )


def scatter_elements(
    data: Operand, indices: Operand, updates: Operand, *, axis: int = 0, reduction: str = "none"
) -> Handle:
    """A tensor with elements replaced, each at its own index along an axis; or combined.

    Formula:   out = data, then out[indices[i, j], j] = updates[i, j] for axis 0; or with
               reduction add, mul, max, min what was there combined with it
    Gradient:  to data and updates what the reduction gives each; where indices repeat without
               one, the last update counts
    Kinks:     For max and min, data and updates that tie share the gradient equally; for mul, the
               second derivative ignores updates of 0.
    Shapes:    As data; indices and updates equal, of data's rank, no longer along other axes.
    """
    return apply(
        "ScatterElements",
        (
            data,
            indices,
            updates,
        ),
        {"axis": axis, "reduction": reduction},
    )


def scatter_nd(
    data: Operand, indices: Operand, updates: Operand, *, reduction: str = "none"
) -> Handle:
    """A tensor with slices replaced, each at a vector of positions; or combined.

    Formula:   out = data, then out[indices[i, 0], indices[i, 1], ..] = updates[i]; or with
               reduction add, mul, max, min what was there combined with it
    Gradient:  to data and updates what the reduction gives each; where indices repeat without
               one, the last update counts
    Kinks:     For max and min, data and updates that tie share the gradient equally; for mul, the
               second derivative ignores updates of 0.
    Shapes:    As data; updates as indices without its last axis, whose size is how many axes it
               counts along, and then the rest of data's.
    """
    return apply(
        "ScatterND",
        (
            data,
            indices,
            updates,
        ),
        {"reduction": reduction},
    )


def tensor_scatter(
    past_cache: Operand,
    update: Operand,
    write_indices: Operand | None = None,
    *,
    mode: str = "linear",
    axis: int = -2,
) -> Handle:
    """A cache with an update written into it, for each row at its own position.

    Formula:   out = past_cache, then out[b, .., write_indices[b] + i, ..] = update[b, .., i, ..];
               modulo the size of axis in mode circular; from 0 without write_indices
    Gradient:  d out/d update = 1; d out/d past_cache = 1 where nothing is written
    Shapes:    As past_cache; update's differ from it along axis only, and is no longer there.
    """
    return apply(
        "TensorScatter",
        (
            past_cache,
            update,
            write_indices,
        ),
        {"mode": mode, "axis": axis},
    )


def compress(input: Operand, condition: Operand, *, axis: int | None = None) -> Handle:
    """Slices of a tensor, chosen by a condition for each position along an axis.

    Formula:   out = the slices input[.., i, ..] where condition[i], in order; without axis, of
               input flattened
    Gradient:  d out/d input = 1 on the slices taken, 0 elsewhere
    Shapes:    input's, and along axis the number of conditions that hold; a vector without axis.
               condition may be shorter than the axis: then the rest is left out.
    """
    return apply(
        "Compress",
        (
            input,
            condition,
        ),
        {"axis": axis},
    )


def top_k(
    x: Operand, k: Operand, *, axis: int = -1, largest: int = 1, sorted: int = 1
) -> tuple[Handle, ...]:
    """The largest elements along an axis, and where they are.

    Formula:   Values = the K largest (or smallest) along axis, in order; Indices = their
               positions
    Gradient:  d Values/dX = 1 on the elements taken, 0 elsewhere
    Kinks:     Of equal elements the one of lowest index is taken first, and gets the gradient.
    Shapes:    X's, with size K along axis.
    """
    return apply_several(
        "TopK",
        (
            x,
            k,
        ),
        {"axis": axis, "largest": largest, "sorted": sorted},
        2,
    )


def one_hot(indices: Operand, depth: Operand, values: Operand, *, axis: int = -1) -> Handle:
    """Vectors that are on at one place and off everywhere else.

    Formula:   out[.., i, ..] = on where i = indices[..], off elsewhere, for values = [off, on];
               negative indices count from the end, those outside [-depth, depth) are nowhere on
    Gradient:  d out/d on = 1 at the places, d out/d off = 1 elsewhere
    Shapes:    indices', with size depth put in at axis.
    """
    return apply(
        "OneHot",
        (
            indices,
            depth,
            values,
        ),
        {"axis": axis},
    )


def reverse_sequence(
    input: Operand, sequence_lens: Operand, *, batch_axis: int = 1, time_axis: int = 0
) -> Handle:
    """Sequences of different lengths, each reversed up to its own.

    Formula:   out[t, b] = input[sequence_lens[b] - 1 - t, b] for t < sequence_lens[b], and
               input[t, b] from there on
    Gradient:  d out/d input = 1, reversed back
    Shapes:    As input; a length for each position of batch_axis. The axes are the first two.
    """
    return apply(
        "ReverseSequence",
        (
            input,
            sequence_lens,
        ),
        {"batch_axis": batch_axis, "time_axis": time_axis},
    )


def non_zero(x: Operand) -> Handle:
    """Where the elements are that are not zero.

    Formula:   out[:, i] = the position of the i-th element that is not 0, row-major
    Gradient:  None: the output is int64.
    Shapes:    [rank of X, number of such elements]; so X must be known before evaluation.
    """
    return apply("NonZero", (x,), {})


def unique(x: Operand, *, axis: int | None = None, sorted: int = 1) -> tuple[Handle, ...]:
    """Elements, or slices along an axis, each kept once.

    Formula:   Y = the different elements (slices) of X, ascending, or by first occurrence where
               sorted is 0; indices = where each is first; inverse_indices = where in Y each of X
               is; counts = how often
    Gradient:  None: X must be known before evaluation.
    Shapes:    A vector of the different elements; with axis, X's with that many slices along it.
               A NaN differs from every other one.
    """
    return apply_several("Unique", (x,), {"axis": axis, "sorted": sorted}, 4)


def shape(data: Operand, *, start: int = 0, end: int | None = None) -> Handle:
    """The sizes of a tensor's axes.

    Formula:   out = shape of data, from axis start to end
    Gradient:  None: the output is int64.
    Shapes:    A vector, one element for each axis; its elements are known before evaluation.
    """
    return apply("Shape", (data,), {"start": start, "end": end})


def size(data: Operand) -> Handle:
    """The number of elements of a tensor.

    Formula:   out = number of elements of data
    Gradient:  None: the output is int64.
    Shapes:    Rank 0; known before evaluation.
    """
    return apply("Size", (data,), {})


def constant_of_shape(input: Operand, *, value: Any | None = None) -> Handle:
    """A tensor of one number.

    Formula:   out = value everywhere
    Gradient:  None: a shape has none.
    Shapes:    input.
    """
    return apply("ConstantOfShape", (input,), {"value": value})


def eye_like(input: Operand, *, dtype: int | None = None, k: int = 0) -> Handle:
    """Ones on a diagonal of a matrix, zeros elsewhere.

    Formula:   out[i, i + k] = 1, 0 elsewhere
    Gradient:  None: only the shape of input counts.
    Shapes:    As input, a matrix.
    """
    return apply("EyeLike", (input,), {"dtype": dtype, "k": k})


def range(start: Operand, limit: Operand, delta: Operand, *, stash_type: int = 1) -> Handle:
    """Numbers in equal steps.

    Formula:   out[i] = start + i * delta, up to limit but without it
    Gradient:  None: start, limit and delta are known before evaluation.
    Shapes:    A vector of max(ceil((limit - start) / delta), 0) numbers.
    """
    return apply(
        "Range",
        (
            start,
            limit,
            delta,
        ),
        {"stash_type": stash_type},
    )


def mat_mul(a: Operand, b: Operand) -> Handle:
    """Matrix product of the last two axes; the axes before them are a batch.

    Formula:   out[i, j] = sum over k of A[i, k] * B[k, j]
    Gradient:  to A = grad @ B^T,  to B = A^T @ grad
    Shapes:    A [..., m, k] and B [..., k, n] give [..., m, n]; batch axes broadcast. A of rank 1
               is a row and B of rank 1 a column, and that axis is not in the output.
    """
    return apply(
        "MatMul",
        (
            a,
            b,
        ),
        {},
    )


def gemm(
    a: Operand,
    b: Operand,
    c: Operand | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    trans_a: int = 0,
    trans_b: int = 0,
) -> Handle:
    """Scaled matrix product plus a scaled third input.

    Formula:   out = alpha * A' @ B' + beta * C;  A' = A^T where transA, B' = B^T where transB
    Gradient:  to A' = alpha * grad @ B'^T,  to B' = alpha * A'^T @ grad,  to C = beta * grad
    Shapes:    A' [m, k] and B' [k, n] give [m, n]; C broadcasts to that. With integers the sum is
               rounded towards zero.
    """
    return apply(
        "Gemm",
        (
            a,
            b,
            c,
        ),
        {"alpha": alpha, "beta": beta, "transA": trans_a, "transB": trans_b},
    )


def einsum(*inputs: Operand, equation: str) -> Handle:
    """Einstein summation: products of elements, summed over the letters the output does not name.

    Formula:   "ij,jk->ik": out[i, k] = sum over j of X[i, j] * Y[j, k];  a letter twice in one
               term takes the diagonal
    Gradient:  to X = the einsum of grad and the other operands for X's term, repeated along
               letters only X has; off the diagonal, 0
    Shapes:    a term has a letter for each axis; "..." stands for the axes without one, in equal
               number everywhere. Sizes of 1 broadcast between inputs. Without "->" the output has
               "..." and the letters that occur once, in the order A..Za..z.
    """
    return apply("Einsum", (*inputs,), {"equation": equation})


def conv(
    x: Operand,
    w: Operand,
    b: Operand | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Handle:
    """Convolution: a window moves over the spatial axes, and each place yields a weighted sum.

    Formula:   Y[n, m, i] = B[m] + sum over c, k of W[m, c, k] * X[n, c, i * strides + k *
               dilations - pads]; X is 0 outside
    Gradient:  to X = ConvTranspose of grad by W;  to W = sum over n, i of grad[n, m, i] * X[n, c,
               i * strides + k * dilations - pads], a convolution of X by grad;  to B = sum of
               grad
    Shapes:    X [N, C, sizes], W [M, C / group, kernel], B [M] give [N, M, counts], with (size +
               both pads - (kernel - 1) * dilation - 1) // stride + 1 windows an axis.
    """
    return apply(
        "Conv",
        (
            x,
            w,
            b,
        ),
        {
            "auto_pad": auto_pad,
            "dilations": dilations,
            "group": group,
            "kernel_shape": kernel_shape,
            "pads": pads,
            "strides": strides,
        },
    )


def conv_transpose(
    x: Operand,
    w: Operand,
    b: Operand | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
    output_padding: Sequence[int] | None = None,
    output_shape: Sequence[int] | None = None,
) -> Handle:
    """Transposed convolution: each element of X adds a scaled kernel to the output.

    Formula:   Y[n, m, j] = B[m] + sum over c, i, k with j = i * strides + k * dilations - pads of
               X[n, c, i] * W[c, m, k]
    Gradient:  to X = Conv of grad by W;  to W = sum over n, i of X[n, c, i] * grad[n, m, i *
               strides + k * dilations - pads];  to B = sum of grad
    Shapes:    X [N, C, sizes], W [C, M / group, kernel], B [M] give [N, M, ..] with (size - 1) *
               stride + (kernel - 1) * dilation + 1 + output_padding - both pads elements an axis;
               or output_shape, where that is given, and pads are what makes it so.
    """
    return apply(
        "ConvTranspose",
        (
            x,
            w,
            b,
        ),
        {
            "auto_pad": auto_pad,
            "dilations": dilations,
            "group": group,
            "kernel_shape": kernel_shape,
            "pads": pads,
            "strides": strides,
            "output_padding": output_padding,
            "output_shape": output_shape,
        },
    )


def max_pool(
    x: Operand,
    *,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: Sequence[int] | None = None,
    kernel_shape: Sequence[int],
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
    storage_order: int = 0,
) -> tuple[Handle, ...]:
    """Largest element of each window, and where it is.

    Formula:   Y = max of X in the window, padding left out;  Indices = its place in X, flattened
               row-major, or with storage_order 1 column-major within a channel
    Gradient:  d Y/d X = 1 for the element at Indices, 0 for the others
    Kinks:     of equal elements in a window the first, row-major, gets the whole gradient.
    Shapes:    X [N, C, sizes] gives two of [N, C, counts]: (size + both pads - (kernel - 1) *
               dilation - 1) / stride + 1 windows an axis, rounded down, or up with ceil_mode.
    """
    return apply_several(
        "MaxPool",
        (x,),
        {
            "auto_pad": auto_pad,
            "ceil_mode": ceil_mode,
            "dilations": dilations,
            "kernel_shape": kernel_shape,
            "pads": pads,
            "strides": strides,
            "storage_order": storage_order,
        },
        2,
    )


def average_pool(
    x: Operand,
    *,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: Sequence[int] | None = None,
    kernel_shape: Sequence[int],
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
    count_include_pad: int = 0,
) -> Handle:
    """Mean of each window.

    Formula:   Y = (sum of X in the window) / n;  n is how many elements of the window are in X,
               or with count_include_pad in X and its pads
    Gradient:  d Y/d X = 1 / n for each element in the window
    Shapes:    X [N, C, sizes] gives [N, C, counts]: (size + both pads - (kernel - 1) * dilation -
               1) / stride + 1 windows an axis, rounded down, or up with ceil_mode.
    """
    return apply(
        "AveragePool",
        (x,),
        {
            "auto_pad": auto_pad,
            "ceil_mode": ceil_mode,
            "dilations": dilations,
            "kernel_shape": kernel_shape,
            "pads": pads,
            "strides": strides,
            "count_include_pad": count_include_pad,
        },
    )


def lp_pool(
    x: Operand,
    *,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: Sequence[int] | None = None,
    kernel_shape: Sequence[int],
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
    p: int = 2,
) -> Handle:
    """Norm of each window.

    Formula:   Y = (sum of |X|^p in the window)^(1 / p)
    Gradient:  d Y/d X = sign(X) * |X|^(p - 1) * Y^(1 - p) for each element in the window
    Kinks:     0 where X = 0 with p = 1, and in a window that is all 0.
    Shapes:    X [N, C, sizes] gives [N, C, counts]: (size + both pads - (kernel - 1) * dilation -
               1) / stride + 1 windows an axis, rounded down, or up with ceil_mode.
    """
    return apply(
        "LpPool",
        (x,),
        {
            "auto_pad": auto_pad,
            "ceil_mode": ceil_mode,
            "dilations": dilations,
            "kernel_shape": kernel_shape,
            "pads": pads,
            "strides": strides,
            "p": p,
        },
    )


def global_max_pool(x: Operand) -> Handle:
    """Largest element of each channel.

    Formula:   Y = max of X over all spatial axes
    Gradient:  d Y/d X = 1 for the largest element, 0 for the others
    Kinks:     of equal elements the first, row-major, gets the whole gradient.
    Shapes:    X [N, C, sizes] gives [N, C, 1, ..].
    """
    return apply("GlobalMaxPool", (x,), {})


def global_average_pool(x: Operand) -> Handle:
    """Mean of each channel.

    Formula:   Y = mean of X over all spatial axes
    Gradient:  d Y/d X = 1 / n, n elements a channel
    Shapes:    X [N, C, sizes] gives [N, C, 1, ..].
    """
    return apply("GlobalAveragePool", (x,), {})


def global_lp_pool(x: Operand, *, p: int = 2) -> Handle:
    """Norm of each channel.

    Formula:   Y = (sum of |X|^p)^(1 / p) over all spatial axes
    Gradient:  d Y/d X = sign(X) * |X|^(p - 1) * Y^(1 - p)
    Kinks:     0 where X = 0 with p = 1, and in a channel that is all 0.
    Shapes:    X [N, C, sizes] gives [N, C, 1, ..].
    """
    return apply("GlobalLpPool", (x,), {"p": p})


def max_unpool(
    x: Operand,
    i: Operand,
    output_shape: Operand | None = None,
    *,
    kernel_shape: Sequence[int],
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Handle:
    """Elements put back where MaxPool found them, zeros between them.

    Formula:   output[I[j]] = X[j] in the flattened output, 0 elsewhere; of equal I the last
               counts
    Gradient:  d output/d X = 1 at its place; 0 where a later element has the same place
    Shapes:    X and I [N, C, counts] give [N, C, ..] with (count - 1) * stride + kernel - both
               pads elements an axis, which I count in; output_shape adds zeros behind them.
    """
    return apply(
        "MaxUnpool",
        (
            x,
            i,
            output_shape,
        ),
        {"kernel_shape": kernel_shape, "pads": pads, "strides": strides},
    )


def softmax(input: Operand, *, axis: int = -1) -> Handle:
    """Positive numbers that sum to 1 along an axis.

    Formula:   out = exp(input) / sum(exp(input)) along axis
    Gradient:  to input = out * (grad - sum(grad * out))
    Shapes:    As input.
    """
    return apply("Softmax", (input,), {"axis": axis})


def log_softmax(input: Operand, *, axis: int = -1) -> Handle:
    """Logarithm of Softmax.

    Formula:   out = input - log(sum(exp(input))) along axis
    Gradient:  to input = grad - exp(out) * sum(grad)
    Shapes:    As input.
    """
    return apply("LogSoftmax", (input,), {"axis": axis})


def softmax_cross_entropy_loss(
    scores: Operand,
    labels: Operand,
    weights: Operand | None = None,
    *,
    reduction: str = "mean",
    ignore_index: int | None = None,
) -> tuple[Handle, ...]:
    """Loss of scores for labels: how unlikely Softmax finds each label.

    Formula:   log_prob = LogSoftmax(scores) along axis 1; a row's loss is -weights[label] *
               log_prob[label], and 0 where label is ignore_index; out is those (none), their sum
               (sum), or their sum over that of their weights (mean)
    Gradient:  to scores = weights[label] * (Softmax(scores) - [class = label]) times the row's
               gradient;  d out/d weights from the same sums
    Shapes:    scores [N, C, ..], labels [N, ..], weights [C]; out as labels, or rank 0.
    """
    return apply_several(
        "SoftmaxCrossEntropyLoss",
        (
            scores,
            labels,
            weights,
        ),
        {"reduction": reduction, "ignore_index": ignore_index},
        2,
    )
