"""One function for each operator, generated from the gates' table by scripts/generate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gradwire.builder import Handle, Operand, apply, apply_among, apply_several, apply_split

__all__ = [
    "abs",
    "acos",
    "acosh",
    "add",
    "affine_grid",
    "and_",
    "arg_max",
    "arg_min",
    "asin",
    "asinh",
    "assert_equal",
    "atan",
    "atanh",
    "attention",
    "average_pool",
    "batch_normalization",
    "bit_cast",
    "bit_shift",
    "bitwise_and",
    "bitwise_not",
    "bitwise_or",
    "bitwise_xor",
    "blackman_window",
    "cast",
    "cast_like",
    "causal_conv_with_state",
    "ceil",
    "celu",
    "center_crop_pad",
    "clip",
    "cofactor",
    "col2im",
    "compress",
    "concat",
    "constant_of_shape",
    "conv",
    "conv_integer",
    "conv_transpose",
    "cos",
    "cosh",
    "cum_prod",
    "cum_sum",
    "deform_conv",
    "depth_to_space",
    "dequantize_linear",
    "det",
    "dft",
    "div",
    "dropout",
    "dynamic_quantize_linear",
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
    "grid_sample",
    "group_normalization",
    "gru",
    "hamming_window",
    "hann_window",
    "hard_sigmoid",
    "hard_swish",
    "hardmax",
    "identity",
    "instance_normalization",
    "is_inf",
    "is_nan",
    "layer_normalization",
    "leaky_relu",
    "less",
    "less_or_equal",
    "linear_attention",
    "log",
    "log_softmax",
    "lp_normalization",
    "lp_pool",
    "lrn",
    "lstm",
    "mat_mul",
    "mat_mul_integer",
    "max",
    "max_pool",
    "max_roi_pool",
    "max_unpool",
    "mean",
    "mean_variance_normalization",
    "mel_weight_matrix",
    "min",
    "mish",
    "mod",
    "mul",
    "neg",
    "negative_log_likelihood_loss",
    "non_zero",
    "not_",
    "one_hot",
    "or_",
    "pad",
    "padded_non_max_suppression",
    "pow",
    "prelu",
    "q_linear_conv",
    "q_linear_mat_mul",
    "quantize_linear",
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
    "resize",
    "reverse_sequence",
    "rms_normalization",
    "rnn",
    "roi_align",
    "roi_arg_max",
    "rotary_embedding",
    "round",
    "scatter_elements",
    "scatter_nd",
    "selu",
    "shape",
    "shrink",
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
    "stft",
    "sub",
    "sum",
    "swi_glu",
    "swish",
    "tan",
    "tanh",
    "tensor_scatter",
    "thresholded_relu",
    "tile",
    "top_k",
    "transpose",
    "trilu",
    "unique",
    "unique_inverse",
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
    Kinks:     d out/dX is 0 where Y is 0. Where X is 0, log(X) counts as a number near the lowest
               one, so that d out/dY is 0 if Y is above 0. Where X is below 0 and Y whole, d
               out/dY is that of the real part of the power, out * log(-X).
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
    return apply_among("Sum", (*data,), {})


def mean(*data: Operand) -> Handle:
    """Mean of any number of tensors.

    Formula:   out = (data_0 + data_1 + ...) / n
    Gradient:  d out/d data_i = 1 / n
    Shapes:    All inputs broadcast.
    """
    return apply_among("Mean", (*data,), {})


def max(*data: Operand) -> Handle:
    """Largest of any number of tensors, element by element.

    Formula:   out = max(data_0, data_1, ...)
    Gradient:  d out/d data_i = [data_i = out]
    Kinks:     Inputs that tie share the gradient equally.
    Shapes:    All inputs broadcast.
    """
    return apply_among("Max", (*data,), {})


def min(*data: Operand) -> Handle:
    """Smallest of any number of tensors, element by element.

    Formula:   out = min(data_0, data_1, ...)
    Gradient:  d out/d data_i = [data_i = out]
    Kinks:     Inputs that tie share the gradient equally.
    Shapes:    All inputs broadcast.
    """
    return apply_among("Min", (*data,), {})


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
    Gradient:  d out/dX = 1 - out ** 2, in the tails as exp(-2 * |X|) * (1 + |out|) ** 2
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

    Formula:   out = X * t,  t = tanh(log(1 + exp(X))) = n / (n + 2),  n = exp(X) * (exp(X) + 2)
    Gradient:  d out/dX = t + X * (1 - t ** 2) / (1 + exp(-X)) = t + 4 * X * exp(X) * (1 + exp(X))
               / (n + 2) ** 2
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


def swish(x: Operand, *, alpha: float = 1.0) -> Handle:
    """Number times its logistic function.

    Formula:   Y = X * s,  s = 1 / (1 + exp(-alpha * X))
    Gradient:  d Y/dX = s + alpha * X * s * (1 - s)
    Shapes:    As X.
    """
    return apply("Swish", (x,), {"alpha": alpha})


def swi_glu(a: Operand, b: Operand, *, alpha: float = 1.0) -> Handle:
    """Number times the Swish of another.

    Formula:   Y = A * s * B,  s = 1 / (1 + exp(-alpha * A))
    Gradient:  d Y/dA = B * (s + alpha * A * s * (1 - s)),  d Y/dB = A * s
    Shapes:    A and B have one shape, and so has Y.
    """
    return apply(
        "SwiGLU",
        (
            a,
            b,
        ),
        {"alpha": alpha},
    )


def shrink(input: Operand, *, bias: float = 0.0, lambd: float = 0.5) -> Handle:
    """Number moved towards 0, and 0 where it is near.

    Formula:   output = input + bias if input < -lambd, input - bias if input > lambd, else 0
    Gradient:  d output/d input = 1 outside [-lambd, lambd], 0 inside
    Kinks:     At -lambd and lambd the gradient is 0.
    Shapes:    As input; integers are rounded towards zero.
    """
    return apply("Shrink", (input,), {"bias": bias, "lambd": lambd})


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


def bitwise_and(a: Operand, b: Operand) -> Handle:
    """The bits that are set in both.

    Formula:   out = A and B, bit by bit
    Gradient:  None: the output is an integer.
    Shapes:    A and B broadcast.
    """
    return apply(
        "BitwiseAnd",
        (
            a,
            b,
        ),
        {},
    )


def bitwise_or(a: Operand, b: Operand) -> Handle:
    """The bits that are set in one or both.

    Formula:   out = A or B, bit by bit
    Gradient:  None: the output is an integer.
    Shapes:    A and B broadcast.
    """
    return apply(
        "BitwiseOr",
        (
            a,
            b,
        ),
        {},
    )


def bitwise_xor(a: Operand, b: Operand) -> Handle:
    """The bits that are set in exactly one.

    Formula:   out = A xor B, bit by bit
    Gradient:  None: the output is an integer.
    Shapes:    A and B broadcast.
    """
    return apply(
        "BitwiseXor",
        (
            a,
            b,
        ),
        {},
    )


def bitwise_not(x: Operand) -> Handle:
    """The bits that are not set.

    Formula:   out = not X, bit by bit: -1 - X for signed integers
    Gradient:  None: the output is an integer.
    Shapes:    As X.
    """
    return apply("BitwiseNot", (x,), {})


def bit_shift(x: Operand, y: Operand, *, direction: str) -> Handle:
    """Bits moved to the left or right.

    Formula:   out = X * 2^Y without the bits that leave (LEFT), or floor(X / 2^Y) (RIGHT); a Y
               that is negative or not below the number of bits moves every bit out: 0, or -1 for
               a negative X moved to the right
    Gradient:  None: the output is an integer.
    Shapes:    X and Y broadcast.
    """
    return apply(
        "BitShift",
        (
            x,
            y,
        ),
        {"direction": direction},
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
    Gradient:  d out/d data = exp(data - m) / (sum of exp(data - m)), m the largest: the softmax
    Kinks:     0 where all are minus infinity; elements of plus infinity share it equally.
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


def cum_prod(x: Operand, axis: Operand, *, exclusive: int = 0, reverse: int = 0) -> Handle:
    """Running product along an axis.

    Formula:   y[i] = x[0] * ... * x[i];  exclusive leaves out x[i], reverse runs from the end
    Gradient:  to x[j] = x[0] * ... * x[j-1] * h[j],  h[j] = grad[j] + x[j+1] * h[j+1]; nothing is
               divided, so zeros are exact, in every order
    Shapes:    y is shaped like x; axis is one number.
    """
    return apply(
        "CumProd",
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

    Formula:   out = input, as the data type numbered `to`, rounded once to nearest even; integers
               keep their low bits
    Gradient:  d out/d input = 1 between floating types of 16 bits and more; none otherwise
    Shapes:    As input.
    """
    return apply("Cast", (input,), {"to": to, "saturate": saturate, "round_mode": round_mode})


def cast_like(
    input: Operand, target_type: Operand, *, saturate: int = 1, round_mode: str = "up"
) -> Handle:
    """Elements in the data type of another tensor.

    Formula:   out = input, as target_type's data type
    Gradient:  d out/d input = 1 between floating types of 16 bits and more; none otherwise, nor
               to target_type
    Shapes:    As input.
    """
    return apply(
        "CastLike",
        (
            input,
            target_type,
        ),
        {"saturate": saturate, "round_mode": round_mode},
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
    """Elements put around a tensor; negative pads take away, before others are put.

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
    Gradient:  to data and updates what the reduction gives each, for mul the product of all
               others, which divides nothing, so zeros are exact, in every order; where indices
               repeat without one, the last update counts
    Kinks:     For max and min, data and updates that tie share the gradient equally.
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
    Gradient:  to data and updates what the reduction gives each, for mul the product of all
               others, which divides nothing, so zeros are exact, in every order; where indices
               repeat without one, the last update counts
    Kinks:     For max and min, data and updates that tie share the gradient equally.
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


def det(x: Operand) -> Handle:
    """The determinant of square matrices.

    Formula:   Y = det(X)
    Gradient:  d Y/dX = the cofactors of X: Y * transpose(inverse(X)), where there is an inverse
    Shapes:    X's without the last two axes, which are equal; 1 for a matrix of size 0.
    """
    return apply("Det", (x,), {})


def cofactor(x: Operand, *directions: Operand) -> Handle:
    """The cofactors of square matrices: the gradient of Det. This operator is not ONNX's.

    Formula:   Y[i, j] = (-1)^(i + j) * det(X without row i and column j); with directions, its
               derivative along each of them
    Gradient:  to X and to each direction: that derivative along grad too, in place of the
               direction
    Shapes:    As X, whose last two axes are equal; directions as X. Two of them, as third
               derivatives of Det have, are for up to 101 rows, three for 32, four for 16.
    """
    return apply(
        "Cofactor",
        (
            x,
            *directions,
        ),
        {},
    )


def resize(
    x: Operand,
    roi: Operand | None = None,
    scales: Operand | None = None,
    sizes: Operand | None = None,
    *,
    antialias: int = 0,
    axes: Sequence[int] | None = None,
    coordinate_transformation_mode: str = "half_pixel",
    cubic_coeff_a: float = -0.75,
    exclude_outside: int = 0,
    extrapolation_value: float = 0.0,
    keep_aspect_ratio_policy: str = "stretch",
    mode: str = "nearest",
    nearest_mode: str = "round_prefer_floor",
) -> Handle:
    """A tensor sampled anew along its axes, finer or coarser.

    Formula:   out[.., i, ..] = sum of w[i, j] * X[.., j, ..] along each axis in turn, where w
               puts 1 on the nearest element, or weights of linear or cubic interpolation around
               the place that coordinate_transformation_mode finds
    Gradient:  d out/dX = w, transposed along each axis
    Shapes:    sizes, or floor(X's size * scale) along each of axes; all axes in order where none
               are given. Integers are rounded to even and kept in range.
    """
    return apply(
        "Resize",
        (
            x,
            roi,
            scales,
            sizes,
        ),
        {
            "antialias": antialias,
            "axes": axes,
            "coordinate_transformation_mode": coordinate_transformation_mode,
            "cubic_coeff_a": cubic_coeff_a,
            "exclude_outside": exclude_outside,
            "extrapolation_value": extrapolation_value,
            "keep_aspect_ratio_policy": keep_aspect_ratio_policy,
            "mode": mode,
            "nearest_mode": nearest_mode,
        },
    )


def col2im(
    input: Operand,
    image_shape: Operand,
    block_shape: Operand,
    *,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Handle:
    """Blocks put together to an image, added up where they overlap.

    Formula:   out[n, c, l * stride + k * dilation - pad] += input[n, (c, k), l], for each
               position k in a block and each block l, both row-major
    Gradient:  d out/d input = 1 where it lies inside the image
    Shapes:    input is [N, C * size of a block, number of blocks] and out [N, C, *image_shape].
    """
    return apply(
        "Col2Im",
        (
            input,
            image_shape,
            block_shape,
        ),
        {"dilations": dilations, "pads": pads, "strides": strides},
    )


def affine_grid(theta: Operand, size: Operand, *, align_corners: int = 0) -> Handle:
    """Places to sample an image at, moved by an affine map for each row.

    Formula:   grid[n, i, j] = theta[n] @ (x_j, y_i, 1), with x and y in equal steps over [-1, 1],
               from the middle of the first element to that of the last with align_corners (a
               single one is at -1), else from edge to edge
    Gradient:  d grid/d theta = (x_j, y_i, 1)
    Shapes:    theta is [N, 2, 3], size [N, C, H, W] and grid [N, H, W, 2]; or with a depth before
               H, theta [N, 3, 4].
    """
    return apply(
        "AffineGrid",
        (
            theta,
            size,
        ),
        {"align_corners": align_corners},
    )


def grid_sample(
    x: Operand,
    grid: Operand,
    *,
    align_corners: int = 0,
    mode: str = "linear",
    padding_mode: str = "zeros",
) -> Handle:
    """An image sampled at places that a grid gives, as numbers from -1 to 1 along each axis.

    Formula:   Y[n, c, i] = sum of w(p - k) * X[n, c, k] over the elements k around the place p =
               grid[n, i], with weights of the nearest element, linear or cubic interpolation
    Gradient:  d Y/dX = w; d Y/d grid = w', through the place
    Kinks:     On an element, where linear weights have a kink, the slope on its higher side
               counts. Mode nearest has gradient 0 to grid. Outside X the gradient to grid turns
               its sign at each reflection; for border it is 0, save that of cubic weights, some
               of whose elements may be inside.
    Shapes:    X is [N, C, D1, .., Dr], grid [N, O1, .., Or, r] with the last axis first in it,
               and Y [N, C, O1, .., Or].
    """
    return apply(
        "GridSample",
        (
            x,
            grid,
        ),
        {"align_corners": align_corners, "mode": mode, "padding_mode": padding_mode},
    )


def roi_align(
    x: Operand,
    rois: Operand,
    batch_indices: Operand,
    *,
    coordinate_transformation_mode: str = "half_pixel",
    mode: str = "avg",
    output_height: int = 1,
    output_width: int = 1,
    sampling_ratio: int = 0,
    spatial_scale: float = 1.0,
) -> Handle:
    """Regions of an image, each divided into bins that are averaged over samples, or maximized.

    Formula:   Y[r, c, i, j] = mean over sampling_ratio^2 places in bin (i, j) of region r of
               X[batch_indices[r], c], interpolated linearly; mode max: the largest of the
               weighted elements around all places, as ONNX says. Places over 1 outside count 0,
               others outside lie on the edge. sampling_ratio 0: ceil(size of a bin) places along
               a side; a region that reaches an element which is not finite is NaN
    Gradient:  to X the weights of the interpolation; to rois through the places
    Kinks:     At an element the slope on its higher side counts; elements that are equally large
               share the gradient equally.
    Shapes:    X is [N, C, H, W], rois [R, 4] with (x1, y1, x2, y2), batch_indices [R] and Y [R,
               C, output_height, output_width]. Mode max with sampling_ratio 0 is refused.
    """
    return apply(
        "RoiAlign",
        (
            x,
            rois,
            batch_indices,
        ),
        {
            "coordinate_transformation_mode": coordinate_transformation_mode,
            "mode": mode,
            "output_height": output_height,
            "output_width": output_width,
            "sampling_ratio": sampling_ratio,
            "spatial_scale": spatial_scale,
        },
    )


def max_roi_pool(
    x: Operand, rois: Operand, *, pooled_shape: Sequence[int], spatial_scale: float = 1.0
) -> Handle:
    """Regions of an image, each divided into bins of whole elements whose largest counts.

    Formula:   Y[r, c, i, j] = max of X[rois[r, 0], c] over bin (i, j) of region r, whose corners
               are rounded to elements; 0 for an empty bin
    Gradient:  to X 1 at the largest element of each bin; to rois none, as they are rounded
    Kinks:     Of equal elements the first, row-major, gets the gradient.
    Shapes:    X is [N, C, H, W], rois [R, 5] with (image, x1, y1, x2, y2) and Y [R, C,
               *pooled_shape].
    """
    return apply(
        "MaxRoiPool",
        (
            x,
            rois,
        ),
        {"pooled_shape": pooled_shape, "spatial_scale": spatial_scale},
    )


def roi_arg_max(
    x: Operand, rois: Operand, *, pooled_shape: Sequence[int], spatial_scale: float = 1.0
) -> Handle:
    """Where the largest element of each bin is: what MaxRoiPool takes. This operator is not ONNX's.

    Formula:   Y[r, c, i, j] = position in X, row-major, of the largest element of bin (i, j) of
               region r; the number of elements of X for an empty bin
    Gradient:  None: the output is int64.
    Shapes:    Those of MaxRoiPool.
    """
    return apply(
        "RoiArgMax",
        (
            x,
            rois,
        ),
        {"pooled_shape": pooled_shape, "spatial_scale": spatial_scale},
    )


def deform_conv(
    x: Operand,
    w: Operand,
    offset: Operand,
    b: Operand | None = None,
    mask: Operand | None = None,
    *,
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    offset_group: int = 1,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Handle:
    """Convolution that reads each element of a block at an offset of its own.

    Formula:   Y[n, m, l] = B[m] + sum of W[m, c, k] * mask[n, k, l] * X[n, c, l * stride + k *
               dilation - pad + offset[n, k, l]] over c and k, with X interpolated linearly
    Gradient:  to W the elements read, to mask W times them, to B 1; to X the weights of the
               interpolation, to offset its slope
    Kinks:     On an element the slope on its higher side counts.
    Shapes:    X is [N, C, *image], W [M, C / group, *kernel], offset [N, offset_group * elements
               of the kernel * axes, *blocks], mask the same without axes, and Y [N, M, *blocks].
    """
    return apply(
        "DeformConv",
        (
            x,
            w,
            offset,
            b,
            mask,
        ),
        {
            "dilations": dilations,
            "group": group,
            "kernel_shape": kernel_shape,
            "offset_group": offset_group,
            "pads": pads,
            "strides": strides,
        },
    )


def dft(
    input: Operand,
    dft_length: Operand | None = None,
    axis: Operand | None = None,
    *,
    inverse: int = 0,
    onesided: int = 0,
) -> Handle:
    """The discrete Fourier transform along an axis, and its inverse.

    Formula:   out[k] = sum of input[n] * exp(-2 pi i k n / N); inverse: with +2 pi i, divided by
               N. input is cut or filled with zeros to N = dft_length
    Gradient:  the transform the other way: to input[n] = sum of grad[k] * exp(2 pi i k n / N);
               inverse: with -2 pi i, divided by N
    Shapes:    [.., n, .., 1 or 2] gives [.., N, .., 2]. onesided leaves out what symmetry gives:
               a real input gives N // 2 + 1 numbers, and inverse N real ones, with N = 2 * (n -
               1) if it is not given.
    """
    return apply(
        "DFT",
        (
            input,
            dft_length,
            axis,
        ),
        {"inverse": inverse, "onesided": onesided},
    )


def stft(
    signal: Operand,
    frame_step: Operand,
    window: Operand | None = None,
    frame_length: Operand | None = None,
    *,
    onesided: int = 1,
) -> Handle:
    """The discrete Fourier transforms of overlapping frames of a signal.

    Formula:   output[b, f] = DFT of signal[b, f * frame_step : f * frame_step + frame_length] *
               window
    Gradient:  to each frame the transform back, then: to signal times window and added up where
               frames overlap, to window times the frames and added up over them
    Shapes:    [batch, length, 1 or 2] gives [batch, frames, bins, 2], with frames = (length -
               frame_length) // frame_step + 1, and bins = frame_length, or frame_length // 2 + 1
               if onesided. frame_length is window's, or the signal's, if it is not given.
    """
    return apply(
        "STFT",
        (
            signal,
            frame_step,
            window,
            frame_length,
        ),
        {"onesided": onesided},
    )


def hann_window(size: Operand, *, output_datatype: int = 1, periodic: int = 1) -> Handle:
    """The Hann window.

    Formula:   output[n] = 1/2 - 1/2 * cos(2 pi n / N), with N = size, or size - 1 unless periodic
    Gradient:  None: a size has none.
    Shapes:    A vector of size numbers.
    """
    return apply("HannWindow", (size,), {"output_datatype": output_datatype, "periodic": periodic})


def hamming_window(size: Operand, *, output_datatype: int = 1, periodic: int = 1) -> Handle:
    """The Hamming window.

    Formula:   output[n] = 25/46 - 21/46 * cos(2 pi n / N), with N = size, or size - 1 unless
               periodic
    Gradient:  None: a size has none.
    Shapes:    A vector of size numbers.
    """
    return apply(
        "HammingWindow", (size,), {"output_datatype": output_datatype, "periodic": periodic}
    )


def blackman_window(size: Operand, *, output_datatype: int = 1, periodic: int = 1) -> Handle:
    """The Blackman window.

    Formula:   output[n] = 0.42 - 0.5 * cos(2 pi n / N) + 0.08 * cos(4 pi n / N), with N = size,
               or size - 1 unless periodic
    Gradient:  None: a size has none.
    Shapes:    A vector of size numbers.
    """
    return apply(
        "BlackmanWindow", (size,), {"output_datatype": output_datatype, "periodic": periodic}
    )


def mel_weight_matrix(
    num_mel_bins: Operand,
    dft_length: Operand,
    sample_rate: Operand,
    lower_edge_hertz: Operand,
    upper_edge_hertz: Operand,
    *,
    output_datatype: int = 1,
) -> Handle:
    """Triangles over the bins of a spectrum, spaced evenly on the mel scale of frequencies.

    Formula:   output[k, i] rises from 0 at the i-th edge to 1 at the next and falls to 0 at the
               one after it; the edges are num_mel_bins + 2 equal steps of mel(f) = 2595 * log10(1
               + f / 700) from lower_edge_hertz on, each put to the bin floor((dft_length + 1) * f
               / sample_rate), and a step is the whole range divided by num_mel_bins + 2
    Gradient:  None: all inputs are known before evaluation.
    Shapes:    [dft_length // 2 + 1, num_mel_bins].
    """
    return apply(
        "MelWeightMatrix",
        (
            num_mel_bins,
            dft_length,
            sample_rate,
            lower_edge_hertz,
            upper_edge_hertz,
        ),
        {"output_datatype": output_datatype},
    )


def dropout(
    data: Operand,
    ratio: Operand | None = None,
    training_mode: Operand | None = None,
    *,
    seed: int | None = None,
) -> tuple[Handle, ...]:
    """Elements set to 0 by chance, the others made larger; in training mode only.

    Formula:   output = mask * data / (1 - ratio), with mask false at a share of ratio of the
               places that the seed draws; output = data where training_mode is false or left out
    Gradient:  d output/d data = mask / (1 - ratio); none to ratio, which is known beforehand
    Shapes:    As data. The mask depends on seed and shape only: all rows of a batch have the
               same.
    """
    return apply_several(
        "Dropout",
        (
            data,
            ratio,
            training_mode,
        ),
        {"seed": seed},
        2,
    )


def quantize_linear(
    x: Operand,
    y_scale: Operand,
    y_zero_point: Operand | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
    precision: int = 0,
    saturate: int = 1,
) -> Handle:
    """Numbers as integers, or floats of 8 or 4 bits, in steps of a scale.

    Formula:   y = saturate(round(x / y_scale) + y_zero_point), rounded to even; of floats, which
               are rounded once, y = saturate(x / y_scale + y_zero_point)
    Gradient:  None: y is stored in a data type without gradients.
    Shapes:    As x. y_scale and y_zero_point are one number, a vector along axis, or with
               block_size shaped like x but for axis, where each counts for that many elements.
    """
    return apply(
        "QuantizeLinear",
        (
            x,
            y_scale,
            y_zero_point,
        ),
        {
            "axis": axis,
            "block_size": block_size,
            "output_dtype": output_dtype,
            "precision": precision,
            "saturate": saturate,
        },
    )


def dequantize_linear(
    x: Operand,
    x_scale: Operand,
    x_zero_point: Operand | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
) -> Handle:
    """Integers, or floats of 8 or 4 bits, in steps of a scale as numbers.

    Formula:   y = (x - x_zero_point) * x_scale
    Gradient:  d y/d x_scale = x - x_zero_point; none to the others, nor to a float8_e8m0fnu
    Shapes:    As x. x_scale and x_zero_point are one number, a vector along axis, or with
               block_size shaped like x but for axis, where each counts for that many elements.
    """
    return apply(
        "DequantizeLinear",
        (
            x,
            x_scale,
            x_zero_point,
        ),
        {"axis": axis, "block_size": block_size, "output_dtype": output_dtype},
    )


def dynamic_quantize_linear(x: Operand) -> tuple[Handle, ...]:
    """Numbers as bytes, in steps that the largest and the smallest of them set.

    Formula:   y_scale = (max(x, 0) - min(x, 0)) / 255, y_zero_point = saturate(round(-min(x, 0) /
               y_scale)), y = saturate(round(x / y_scale) + y_zero_point); where x is all 0,
               y_scale = 1 / 255
    Gradient:  d y_scale/dx = 1/255 at the largest element, if it is positive, and -1/255 at the
               smallest, if it is negative; none through the integers
    Kinks:     Elements that are equally large, or small, share the gradient equally.
    Shapes:    y as x, y_scale and y_zero_point of rank 0.
    """
    return apply_several("DynamicQuantizeLinear", (x,), {}, 3)


def q_linear_mat_mul(
    a: Operand,
    a_scale: Operand,
    a_zero_point: Operand,
    b: Operand,
    b_scale: Operand,
    b_zero_point: Operand,
    y_scale: Operand,
    y_zero_point: Operand,
) -> Handle:
    """Matrix product of quantized matrices, quantized again.

    Formula:   y = saturate(round(((a - a_zero_point) @ (b - b_zero_point)) * a_scale * b_scale /
               y_scale) + y_zero_point), rounded to even
    Gradient:  None: y is an integer.
    Shapes:    Those of MatMul. Scales and zero points are one number; for matrices also a vector
               for the rows of a, or the columns of b; or shaped [.., M, 1] and [.., 1, N].
    """
    return apply(
        "QLinearMatMul",
        (
            a,
            a_scale,
            a_zero_point,
            b,
            b_scale,
            b_zero_point,
            y_scale,
            y_zero_point,
        ),
        {},
    )


def mat_mul_integer(
    a: Operand, b: Operand, a_zero_point: Operand | None = None, b_zero_point: Operand | None = None
) -> Handle:
    """Matrix product of quantized matrices.

    Formula:   Y = (A - a_zero_point) @ (B - b_zero_point)
    Gradient:  None: Y is an integer.
    Shapes:    Those of MatMul. Zero points are one number; for matrices also a vector for the
               rows of A, or the columns of B; or shaped [.., M, 1] and [.., 1, N].
    """
    return apply(
        "MatMulInteger",
        (
            a,
            b,
            a_zero_point,
            b_zero_point,
        ),
        {},
    )


def conv_integer(
    x: Operand,
    w: Operand,
    x_zero_point: Operand | None = None,
    w_zero_point: Operand | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Handle:
    """Convolution of quantized images.

    Formula:   y[n, m, l] = sum of (w[m, c, k] - w_zero_point[m]) * (x[n, c, l * stride + k *
               dilation - pad] - x_zero_point) over c and k; nothing outside the image counts
    Gradient:  None: y is an integer.
    Shapes:    x is [N, C, *image], w [M, C / group, *kernel] and y [N, M, *blocks].
    """
    return apply(
        "ConvInteger",
        (
            x,
            w,
            x_zero_point,
            w_zero_point,
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


def q_linear_conv(
    x: Operand,
    x_scale: Operand,
    x_zero_point: Operand,
    w: Operand,
    w_scale: Operand,
    w_zero_point: Operand,
    y_scale: Operand,
    y_zero_point: Operand,
    b: Operand | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Handle:
    """Convolution of quantized images, quantized again.

    Formula:   y[n, m, l] = saturate(round((B[m] + sum of (w[m, c, k] - w_zero_point[m]) * (x[n,
               c, l * stride + k * dilation - pad] - x_zero_point) over c and k) * x_scale *
               w_scale[m] / y_scale) + y_zero_point), rounded to even; nothing outside the image
               counts
    Gradient:  None: y is an integer.
    Shapes:    x is [N, C, *image], w [M, C / group, *kernel], B [M] and y [N, M, *blocks]. Scales
               and zero points are one number; those of w may be a vector for its M channels.
    """
    return apply(
        "QLinearConv",
        (
            x,
            x_scale,
            x_zero_point,
            w,
            w_scale,
            w_zero_point,
            y_scale,
            y_zero_point,
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


def causal_conv_with_state(
    input: Operand,
    weight: Operand,
    bias: Operand | None = None,
    past_state: Operand | None = None,
    *,
    activation: str = "none",
) -> tuple[Handle, ...]:
    """Convolution of each channel by itself over its present and past, with the past carried on.

    Formula:   z = past_state then input;  u[n, c, i] = bias[c] + sum over k of weight[c, 0, k] *
               z[n, c, i + k];  output = u, or u / (1 + exp(-u)) for silu;  present_state = z's
               last K - 1 elements
    Gradient:  to u = grad, or grad * (s + u * s * (1 - s)) with s = 1 / (1 + exp(-u));  to z =
               ConvTranspose of that by weight, plus present_state's grad at z's end;  to weight =
               sum over n, i of to u[n, c, i] * z[n, c, i + k];  to bias = sum of to u
    Shapes:    input [N, C, L], weight [C, 1, K], bias [C], past_state [N, C, K - 1], zeros if
               left out; output is as input, present_state as past_state.
    """
    return apply_several(
        "CausalConvWithState",
        (
            input,
            weight,
            bias,
            past_state,
        ),
        {"activation": activation},
        2,
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


def layer_normalization(
    x: Operand,
    scale: Operand,
    b: Operand | None = None,
    *,
    axis: int = -1,
    epsilon: float = 1e-05,
    stash_type: int = 1,
) -> tuple[Handle, ...]:
    """Each slice of the last axes with mean 0 and variance 1, then scaled and shifted.

    Formula:   D = X - mean(X);  Y = D / sqrt(mean(D^2) + epsilon) * Scale + B
    Gradient:  with S = D * InvStdDev, g = grad * Scale:  to X = InvStdDev * (g - mean(g) - S *
               mean(g * S)), and more through Mean and InvStdDev;  to Scale = grad * S;  to B =
               grad
    Shapes:    Y as X; Scale and B broadcast to X; Mean and InvStdDev as X with size 1 from axis
               on.
    """
    return apply_several(
        "LayerNormalization",
        (
            x,
            scale,
            b,
        ),
        {"axis": axis, "epsilon": epsilon, "stash_type": stash_type},
        3,
    )


def rms_normalization(
    x: Operand, scale: Operand, *, axis: int = -1, epsilon: float = 1e-05, stash_type: int = 1
) -> Handle:
    """Each slice of the last axes with mean square 1, then scaled.

    Formula:   Y = X / sqrt(mean(X^2) + epsilon) * scale
    Gradient:  with R = 1 / sqrt(mean(X^2) + epsilon), g = grad * scale:  to X = R * (g - X * R *
               mean(g * X * R));  to scale = grad * X * R
    Shapes:    Y as X; scale broadcasts to X.
    """
    return apply(
        "RMSNormalization",
        (
            x,
            scale,
        ),
        {"axis": axis, "epsilon": epsilon, "stash_type": stash_type},
    )


def group_normalization(
    x: Operand,
    scale: Operand,
    bias: Operand,
    *,
    epsilon: float = 1e-05,
    num_groups: int,
    stash_type: int = 1,
) -> Handle:
    """Each group of channels of each image with mean 0 and variance 1; then each channel scaled.

    Formula:   D = X - mean(X) over a group;  Y = D / sqrt(mean(D^2) + epsilon) * scale + bias
    Gradient:  as LayerNormalization's for each group;  to scale and bias summed over images and
               spatial axes
    Shapes:    X [N, C, sizes], scale and bias [C]; Y as X. num_groups divides C.
    """
    return apply(
        "GroupNormalization",
        (
            x,
            scale,
            bias,
        ),
        {"epsilon": epsilon, "num_groups": num_groups, "stash_type": stash_type},
    )


def instance_normalization(
    input: Operand, scale: Operand, b: Operand, *, epsilon: float = 1e-05
) -> Handle:
    """Each channel of each image with mean 0 and variance 1, then scaled and shifted.

    Formula:   D = input - mean(input) over the spatial axes;  output = D / sqrt(mean(D^2) +
               epsilon) * scale + B
    Gradient:  as LayerNormalization's for each channel;  to scale and B summed over images and
               spatial axes
    Shapes:    input [N, C, sizes], scale and B [C]; output as input.
    """
    return apply(
        "InstanceNormalization",
        (
            input,
            scale,
            b,
        ),
        {"epsilon": epsilon},
    )


def batch_normalization(
    x: Operand,
    scale: Operand,
    b: Operand,
    input_mean: Operand,
    input_var: Operand,
    *,
    epsilon: float = 1e-05,
    momentum: float = 0.9,
    training_mode: int = 0,
) -> tuple[Handle, ...]:
    """Each channel with mean 0 and variance 1 by given statistics or the batch's own; then scaled.

    Formula:   Y = (X - mean) / sqrt(var + epsilon) * scale + B;  mean and var are input_mean and
               input_var, or with training_mode those of X over images and spatial axes, and then
               running_mean = momentum * input_mean + (1 - momentum) * mean, running_var alike
    Gradient:  with I = 1 / sqrt(var + epsilon), S = (X - mean) * I:  to scale = sum of grad * S;
               to B = sum of grad;  to X = grad * scale * I, to input_mean = -scale * I * sum of
               grad, to input_var = -scale * I^2 / 2 * sum of grad * S;  with training_mode to X
               as LayerNormalization's over a channel, and through the running statistics
    Shapes:    X [N, C, sizes], the others [C]; X [N] has one channel. Variances are of the
               population: divided by the number of elements.
    """
    return apply_several(
        "BatchNormalization",
        (
            x,
            scale,
            b,
            input_mean,
            input_var,
        ),
        {"epsilon": epsilon, "momentum": momentum, "training_mode": training_mode},
        3 if training_mode else 1,
    )


def lrn(
    x: Operand, *, alpha: float = 0.0001, beta: float = 0.75, bias: float = 1.0, size: int
) -> Handle:
    """Each element divided by a power of the mean square of its neighbours in other channels.

    Formula:   Y = X / D^beta,  D = bias + alpha / size * (sum of X^2 over the `size` channels
               around, (size - 1) // 2 of them before)
    Gradient:  to X = grad / D^beta - 2 * alpha * beta / size * X * (sum of grad * X / D^(beta +
               1) over the channels that X is a neighbour of)
    Shapes:    X [N, C, ..]; Y as X.
    """
    return apply("LRN", (x,), {"alpha": alpha, "beta": beta, "bias": bias, "size": size})


def lp_normalization(input: Operand, *, axis: int = -1, p: int = 2) -> Handle:
    """Slices along an axis divided by their norm.

    Formula:   output = input / norm,  norm = sum of |input|  (p 1)  or  sqrt(sum of input^2)  (p
               2)
    Gradient:  to input = (grad - slope * sum of grad * output) / norm;  slope = sign(input) (p 1)
               or output (p 2)
    Kinks:     a slice of zeros stays zero, and its gradient is 0; with p 1 sign(0) = 0.
    Shapes:    As input.
    """
    return apply("LpNormalization", (input,), {"axis": axis, "p": p})


def mean_variance_normalization(x: Operand, *, axes: Sequence[int] = (0, 2, 3)) -> Handle:
    """Slices along axes with mean 0 and variance 1.

    Formula:   D = X - mean(X);  Y = D / (s + 1e-9),  s = sqrt(mean(D^2))
    Gradient:  to X = (grad - mean(grad)) / (s + 1e-9) - Y * mean(grad * Y) / s
    Kinks:     where all of a slice is equal, the second term is 0.
    Shapes:    As X.
    """
    return apply("MeanVarianceNormalization", (x,), {"axes": axes})


def attention(
    q: Operand,
    k: Operand,
    v: Operand,
    attn_mask: Operand | None = None,
    past_key: Operand | None = None,
    past_value: Operand | None = None,
    nonpad_kv_seqlen: Operand | None = None,
    *,
    is_causal: int = 0,
    kv_num_heads: int | None = None,
    left_window_size: int = -1,
    q_num_heads: int | None = None,
    qk_matmul_output_mode: int = 0,
    right_window_size: int = -1,
    scale: float | None = None,
    softcap: float = 0.0,
    softmax_precision: int | None = None,
) -> tuple[Handle, ...]:
    """Each query's mean of the values, weighted by how well their keys fit it.

    Formula:   S = scale * Q @ K^T, then softcap * tanh(S / softcap) if softcap;  L = S +
               attn_mask, or minus infinity where not allowed;  P = Softmax(L), 0 where nothing is
               allowed; Y = P @ V
    Gradient:  to V = P^T @ grad;  with D = grad @ V^T, to L = P * (D - sum of D * P) = to
               attn_mask;  to S = to L, times 1 - tanh^2 with softcap;  to Q = scale * to S @ K;
               to K = scale * (to S)^T @ Q
    Shapes:    Q [N, heads, queries, size], K and V [N, groups, keys, size], groups dividing
               heads; or all of rank 3 with the heads in the last axis, and q_num_heads and
               kv_num_heads. past_key and past_value [N, groups, past, size] come before K and V;
               both together are present_key and present_value. attn_mask broadcasts to [N, heads,
               queries, keys]; keys behind its last axis are not allowed. Query i is at position i
               + past, or with nonpad_kv_seqlen [N], which keys are less than, at i +
               nonpad_kv_seqlen - queries; is_causal allows keys up to it, the windows those
               around it.
    """
    return apply_several(
        "Attention",
        (
            q,
            k,
            v,
            attn_mask,
            past_key,
            past_value,
            nonpad_kv_seqlen,
        ),
        {
            "is_causal": is_causal,
            "kv_num_heads": kv_num_heads,
            "left_window_size": left_window_size,
            "q_num_heads": q_num_heads,
            "qk_matmul_output_mode": qk_matmul_output_mode,
            "right_window_size": right_window_size,
            "scale": scale,
            "softcap": softcap,
            "softmax_precision": softmax_precision,
        },
        4,
    )


def rotary_embedding(
    x: Operand,
    cos_cache: Operand,
    sin_cache: Operand,
    position_ids: Operand | None = None,
    *,
    interleaved: int = 0,
    num_heads: int | None = None,
    rotary_embedding_dim: int = 0,
) -> Handle:
    """Pairs of numbers turned by angles that grow with their position.

    Formula:   (a, b) of each pair become (cos * a - sin * b, sin * a + cos * b)
    Gradient:  to (a, b) = grad turned back;  to cos = ga * a + gb * b,  to sin = gb * a - ga * b
    Shapes:    X [N, heads, length, size], or [N, length, heads * size] with num_heads; Y as X.
               The first rotary_embedding_dim numbers of a head (0: all) are pairs: halves side by
               side, or neighbours with interleaved. The caches are [N, length, pairs]; or
               [positions, pairs] with position_ids [N, length] that choose their rows.
    """
    return apply(
        "RotaryEmbedding",
        (
            x,
            cos_cache,
            sin_cache,
            position_ids,
        ),
        {
            "interleaved": interleaved,
            "num_heads": num_heads,
            "rotary_embedding_dim": rotary_embedding_dim,
        },
    )


def linear_attention(
    query: Operand,
    key: Operand,
    value: Operand,
    past_state: Operand | None = None,
    decay: Operand | None = None,
    beta: Operand | None = None,
    *,
    chunk_size: int = 64,
    kv_num_heads: int,
    q_num_heads: int,
    scale: float = 0.0,
    update_rule: str = "gated_delta",
) -> tuple[Handle, ...]:
    """Attention whose keys and values are kept in one matrix that each token changes.

    Formula:   for each token: S' = exp(decay) * S (gated rules, else S);  u = beta * (value -
               S'^T @ key) (delta rules, else value);  S = S' + key @ u^T;  output = scale * S^T @
               query
    Gradient:  back through the tokens, G the gradient of S: G += scale * query @ grad^T;  to key
               = G @ u - S' @ d,  d = beta * v,  v = G^T @ key;  to value = d;  to beta = v *
               (value - S'^T @ key);  G -= key @ d^T;  to decay = sum of G * S';  then G *=
               exp(decay);  to query = scale * S @ grad
    Shapes:    query [N, tokens, q_num_heads * size], key [N, tokens, kv_num_heads * size], value
               [N, tokens, kv_num_heads * value_size], decay as key or [N, tokens, kv_num_heads],
               beta that or [N, tokens, 1], past_state and present_state [N, kv_num_heads, size,
               value_size]; output [N, tokens, q_num_heads * value_size]. kv_num_heads divides
               q_num_heads.
    """
    return apply_several(
        "LinearAttention",
        (
            query,
            key,
            value,
            past_state,
            decay,
            beta,
        ),
        {
            "chunk_size": chunk_size,
            "kv_num_heads": kv_num_heads,
            "q_num_heads": q_num_heads,
            "scale": scale,
            "update_rule": update_rule,
        },
        2,
    )


def rnn(
    x: Operand,
    w: Operand,
    r: Operand,
    b: Operand | None = None,
    sequence_lens: Operand | None = None,
    initial_h: Operand | None = None,
    *,
    activation_alpha: Sequence[float] | None = None,
    activation_beta: Sequence[float] | None = None,
    activations: Sequence[str] | None = None,
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int | None = None,
    layout: int = 0,
) -> tuple[Handle, ...]:
    """Simple recurrent network.

    Formula:   H_t = f(X_t @ W^T + H_(t-1) @ R^T + Wb + Rb), B = [Wb, Rb], f = Tanh by default; Y
               = all H_t, 0 behind the end of a sequence;  Y_h = the last of each sequence
    Gradient:  back through time: g_t = grad_t + G_(t+1) @ R, G_t = g_t * f'(..);  to X_t = G_t @
               W,  to W = sum of G_t^T @ X_t,  to R = sum of G_t^T @ H_(t-1),  to both biases =
               sum of G_t
    Kinks:     as the activations', which are 0 or the lower branch's; beyond clip 0.
    Shapes:    X [steps, batch, inputs], W [directions, hidden, inputs], R [directions, hidden,
               hidden], B [directions, 2 * hidden], initial_h [directions, batch, hidden]; Y
               [steps, directions, batch, hidden], Y_h as initial_h. With layout 1 batch is first.
    """
    return apply_several(
        "RNN",
        (
            x,
            w,
            r,
            b,
            sequence_lens,
            initial_h,
        ),
        {
            "activation_alpha": activation_alpha,
            "activation_beta": activation_beta,
            "activations": activations,
            "clip": clip,
            "direction": direction,
            "hidden_size": hidden_size,
            "layout": layout,
        },
        2,
    )


def gru(
    x: Operand,
    w: Operand,
    r: Operand,
    b: Operand | None = None,
    sequence_lens: Operand | None = None,
    initial_h: Operand | None = None,
    *,
    activation_alpha: Sequence[float] | None = None,
    activation_beta: Sequence[float] | None = None,
    activations: Sequence[str] | None = None,
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int | None = None,
    layout: int = 0,
    linear_before_reset: int = 0,
) -> tuple[Handle, ...]:
    """Gated recurrent unit.

    Formula:   z = f(X_t @ Wz^T + H @ Rz^T + Wbz + Rbz), r = f(X_t @ Wr^T + H @ Rr^T + Wbr + Rbr),
               n = g(X_t @ Wh^T + (r * H) @ Rh^T + Wbh + Rbh), or with linear_before_reset g(X_t @
               Wh^T + Wbh + r * (H @ Rh^T + Rbh));  H_t = (1 - z) * n + z * H, H = H_(t-1); f =
               Sigmoid, g = Tanh by default;  Y and Y_h as RNN's
    Gradient:  back through time: from G to H_t, to n = G * (1 - z), to z = G * (H - n), to r by
               the state's product, and to H = G * z + what z, r and n pass on
    Kinks:     as the activations', which are 0 or the lower branch's; beyond clip 0.
    Shapes:    as RNN's, with 3 * hidden rows [z, r, h] in W and R, and B [directions, 6 *
               hidden].
    """
    return apply_several(
        "GRU",
        (
            x,
            w,
            r,
            b,
            sequence_lens,
            initial_h,
        ),
        {
            "activation_alpha": activation_alpha,
            "activation_beta": activation_beta,
            "activations": activations,
            "clip": clip,
            "direction": direction,
            "hidden_size": hidden_size,
            "layout": layout,
            "linear_before_reset": linear_before_reset,
        },
        2,
    )


def lstm(
    x: Operand,
    w: Operand,
    r: Operand,
    b: Operand | None = None,
    sequence_lens: Operand | None = None,
    initial_h: Operand | None = None,
    initial_c: Operand | None = None,
    p: Operand | None = None,
    *,
    activation_alpha: Sequence[float] | None = None,
    activation_beta: Sequence[float] | None = None,
    activations: Sequence[str] | None = None,
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int | None = None,
    layout: int = 0,
    input_forget: int = 0,
) -> tuple[Handle, ...]:
    """Long short-term memory.

    Formula:   with A = X_t @ W^T + H @ R^T + Wb + Rb in parts i, o, f, c:  i = f(Ai + Pi * C), f
               = f(Af + Pf * C) or 1 - i with input_forget, c = g(Ac);  C_t = f * C + i * c; o =
               f(Ao + Po * C_t);  H_t = o * h(C_t); H = H_(t-1), C = C_(t-1); f = Sigmoid, g = h =
               Tanh by default;  Y and Y_h as RNN's, Y_c = the last C_t
    Gradient:  back through time: to o = G * h(C_t), to C_t = what the next step passes + G * o *
               h'(C_t) + to Ao * Po, to i = to C_t * c, to f = to C_t * C, to c = to C_t * i, to C
               = to C_t * f + to Ai * Pi + to Af * Pf, to H = to A @ R
    Kinks:     as the activations', which are 0 or the lower branch's; beyond clip 0.
    Shapes:    as RNN's, with 4 * hidden rows [i, o, f, c] in W and R, B [directions, 8 * hidden],
               initial_c as initial_h, P [directions, 3 * hidden] as [i, o, f]; Y_c as Y_h.
    """
    return apply_several(
        "LSTM",
        (
            x,
            w,
            r,
            b,
            sequence_lens,
            initial_h,
            initial_c,
            p,
        ),
        {
            "activation_alpha": activation_alpha,
            "activation_beta": activation_beta,
            "activations": activations,
            "clip": clip,
            "direction": direction,
            "hidden_size": hidden_size,
            "layout": layout,
            "input_forget": input_forget,
        },
        3,
    )


def softmax(input: Operand, *, axis: int = -1) -> Handle:
    """Positive numbers that sum to 1 along an axis.

    Formula:   out = exp(input) / sum(exp(input)) along axis
    Gradient:  to input = out * (grad - sum(grad * out)), of grad less what it is where out > 3/4
    Shapes:    As input.
    """
    return apply("Softmax", (input,), {"axis": axis})


def log_softmax(input: Operand, *, axis: int = -1) -> Handle:
    """Logarithm of Softmax.

    Formula:   out = input - log(sum(exp(input))) along axis
    Gradient:  to input = grad - exp(out) * sum(grad), where 1 - exp(out) is the sum of the others
    Shapes:    As input.
    """
    return apply("LogSoftmax", (input,), {"axis": axis})


def hardmax(input: Operand, *, axis: int = -1) -> Handle:
    """1 for the largest number along an axis, 0 for the others.

    Formula:   output = [input is the first of the largest along axis]
    Gradient:  d output/d input = 0
    Kinks:     0 also where the largest changes.
    Shapes:    As input.
    """
    return apply("Hardmax", (input,), {"axis": axis})


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
    Kinks:     the mean of no rows (every label ignored, or of weight 0) is NaN; its gradient to
               scores is 0.
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


def negative_log_likelihood_loss(
    input: Operand,
    target: Operand,
    weight: Operand | None = None,
    *,
    reduction: str = "mean",
    ignore_index: int | None = None,
) -> Handle:
    """Loss of log-probabilities for labels: minus that of each label.

    Formula:   a row's loss is -weight[target] * input[target] along axis 1, and 0 where target is
               ignore_index; loss is those (none), their sum (sum), or their sum over that of
               their weights (mean)
    Gradient:  to input = -weight[target] * [class = target] times the row's gradient;  to weight
               from the same sums
    Kinks:     the mean of no rows (every target ignored, or of weight 0) is NaN; its gradient to
               input is 0.
    Shapes:    input [N, C, ..], target [N, ..], weight [C]; loss as target, or rank 0.
    """
    return apply(
        "NegativeLogLikelihoodLoss",
        (
            input,
            target,
            weight,
        ),
        {"reduction": reduction, "ignore_index": ignore_index},
    )


def assert_equal(actual: Operand, expected: Operand, *, what: str = "the value") -> Handle:
    """The expected elements, where the actual ones are equal to them bit by bit; else a refusal.

    Formula:   out = expected; the evaluation is refused (ASSERTION_FAILED) unless actual =
               expected
    Gradient:  None: while the assertion holds, the output does not change.
    Kinks:     Nowhere else is there an output.
    Shapes:    Those of actual and expected, which must be equal. Its elements are known before
               evaluation where those of expected are. In a batch every row must be equal.
    """
    return apply(
        "AssertEqual",
        (
            actual,
            expected,
        ),
        {"what": what},
    )


def unique_inverse(x: Operand, *, axis: int | None = None, sorted: int = 1) -> Handle:
    """Where each element, or slice along an axis, is among the different ones.

    Formula:   out = the inverse_indices of Unique
    Gradient:  None: the output is int64.
    Shapes:    A vector, one position for each element of X; with axis, for each slice along it.
    """
    return apply("UniqueInverse", (x,), {"axis": axis, "sorted": sorted})


def padded_non_max_suppression(
    boxes: Operand,
    scores: Operand,
    max_output_boxes_per_class: Operand,
    iou_threshold: Operand | None = None,
    score_threshold: Operand | None = None,
    *,
    center_point_box: int = 0,
) -> Handle:
    """The boxes of each class that none of a higher score overlaps, as rows of a fixed number.

    Formula:   out = the selected_indices of NonMaxSuppression: [batch, class, box], ascending by
               batch and class and descending by score; then rows of -1
    Gradient:  None: the output is int64.
    Shapes:    boxes [batches, boxes, 4], scores [batches, classes, boxes] -> [batches * classes *
               min(max_output_boxes_per_class, boxes), 3].
    """
    return apply(
        "PaddedNonMaxSuppression",
        (
            boxes,
            scores,
            max_output_boxes_per_class,
            iou_threshold,
            score_threshold,
        ),
        {"center_point_box": center_point_box},
    )
