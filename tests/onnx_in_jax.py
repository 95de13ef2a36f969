"""ONNX operators in JAX: what the gates' gradients are held against, written with its functions.

Each takes the inputs and the gate's attributes by name, and gives the first outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax, nn

Function = Callable[..., Any]

#: JAX compiles each case once and runs it once.
QUICKLY = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
    "xla_cpu_use_fusion_emitters": False,  # two thirds of compiling
    "xla_cpu_parallel_codegen_split_count": 1,  # one module, and so one thread
}


def ints(x: Any) -> tuple[int, ...]:
    return tuple(int(each) for each in np.asarray(x).reshape(-1))


def reduction(function: Function) -> Function:
    def reduced(
        x: Any, axes: Any = None, *, keepdims: int, noop_with_empty_axes: int, **_: Any
    ) -> Any:
        chosen = ints(axes) if axes is not None and np.size(axes) else None
        if chosen is None and noop_with_empty_axes:
            return x if function not in PER_ELEMENT else function(x[None], axis=0, keepdims=False)
        return function(x, axis=chosen, keepdims=bool(keepdims))

    return reduced


def sum_square(x: Any, axis: Any, keepdims: bool) -> Any:
    return jnp.sum(x * x, axis=axis, keepdims=keepdims)


def l1(x: Any, axis: Any, keepdims: bool) -> Any:
    return jnp.sum(jnp.abs(x), axis=axis, keepdims=keepdims)


def l2(x: Any, axis: Any, keepdims: bool) -> Any:
    return jnp.sqrt(sum_square(x, axis, keepdims))


def log_sum(x: Any, axis: Any, keepdims: bool) -> Any:
    return jnp.log(jnp.sum(x, axis=axis, keepdims=keepdims))


def log_sum_exp(x: Any, axis: Any, keepdims: bool) -> Any:
    return nn.logsumexp(x, axis=axis, keepdims=keepdims)


PER_ELEMENT = (sum_square, l1, l2, log_sum, log_sum_exp)


def running(function: Function) -> Function:
    """cumsum or cumprod, reversed, and without the element itself."""

    def run(x: Any, axis: Any, *, exclusive: int, reverse: int) -> Any:
        axis = int(np.asarray(axis).reshape(()))
        x = jnp.flip(x, axis) if reverse else x
        if exclusive:
            start = jnp.full_like(lax.slice_in_dim(x, 0, 1, axis=axis), function is jnp.cumprod)
            x = jnp.concatenate([start, lax.slice_in_dim(x, 0, -1, axis=axis)], axis)
        found = function(x, axis)
        return jnp.flip(found, axis) if reverse else found

    return run


def gemm(a: Any, b: Any, c: Any = None, *, alpha: float, beta: float, **turned: int) -> Any:
    a, b = a.T if turned["transA"] else a, b.T if turned["transB"] else b
    found = alpha * (a @ b)
    return found if c is None else found + beta * c


def slice_(x: Any, starts: Any, ends: Any, axes: Any = None, steps: Any = None) -> Any:
    chosen = ints(axes) if axes is not None else tuple(range(np.size(starts)))
    parts = [slice(None)] * x.ndim
    for axis, start, end, step in zip(
        chosen, ints(starts), ints(ends), ints(steps) if steps is not None else (1,) * len(chosen),
        strict=True,
    ):  # fmt: skip
        end = None if step < 0 and end < -x.shape[axis] else end
        parts[axis] = slice(start, end, step)
    return x[tuple(parts)]


def pad(x: Any, pads: Any, value: Any = None, axes: Any = None, *, mode: str) -> Any:
    chosen = [axis % x.ndim for axis in ints(axes)] if axes is not None else range(x.ndim)
    numbers, widths = ints(pads), [(0, 0)] * x.ndim
    for place, axis in enumerate(chosen):
        widths[axis] = (numbers[place], numbers[place + len(numbers) // 2])
    if mode == "constant":
        return jnp.pad(x, widths, constant_values=0 if value is None else value)
    return jnp.pad(x, widths, mode=mode)


def split(x: Any, sizes: Any = None, *, axis: int, num_outputs: int | None) -> Any:
    if sizes is None:
        assert num_outputs
        size = -(-x.shape[axis] // num_outputs)
        sizes = [size] * (num_outputs - 1) + [x.shape[axis] - size * (num_outputs - 1)]
    return tuple(jnp.split(x, np.cumsum(ints(sizes))[:-1], axis))


def reshape(x: Any, shape: Any, *, allowzero: int) -> Any:
    sizes = ints(shape)
    if not allowzero:
        sizes = tuple(size or x.shape[axis] for axis, size in enumerate(sizes))
    return jnp.reshape(x, sizes)


def depth_to_space(x: Any, *, blocksize: int, mode: str) -> Any:
    n, c, h, w = x.shape
    b, parts = blocksize, c // blocksize**2
    shape = (n, b, b, parts, h, w) if mode == "DCR" else (n, parts, b, b, h, w)
    order = (0, 3, 4, 1, 5, 2) if mode == "DCR" else (0, 1, 4, 2, 5, 3)
    return jnp.reshape(jnp.transpose(jnp.reshape(x, shape), order), (n, parts, h * b, w * b))


def space_to_depth(x: Any, *, blocksize: int, mode: str = "DCR") -> Any:
    n, c, h, w = x.shape
    b = blocksize
    parts = jnp.reshape(x, (n, c, h // b, b, w // b, b))
    order = (0, 3, 5, 1, 2, 4) if mode == "DCR" else (0, 1, 3, 5, 2, 4)
    return jnp.reshape(jnp.transpose(parts, order), (n, c * b * b, h // b, w // b))


def gather_nd(x: Any, indices: Any, *, batch_dims: int) -> Any:
    if batch_dims:
        return jax.vmap(lambda a, b: gather_nd(a, b, batch_dims=batch_dims - 1))(x, indices)
    return x[tuple(jnp.moveaxis(indices, -1, 0))]


def scatter_elements(x: Any, indices: Any, updates: Any, *, axis: int, reduction: str) -> Any:
    places = list(np.indices(np.shape(indices)))
    places[axis] = np.where(np.asarray(indices) < 0, indices + x.shape[axis], indices)
    return scattered(x, tuple(places), updates, reduction)


def scatter_nd(x: Any, indices: Any, updates: Any, *, reduction: str) -> Any:
    return scattered(x, tuple(np.moveaxis(np.asarray(indices), -1, 0)), updates, reduction)


def scattered(x: Any, places: Any, updates: Any, reduction: str) -> Any:
    how = {"none": "set", "add": "add", "mul": "multiply", "max": "max", "min": "min"}[reduction]
    return getattr(x.at[places], how)(updates)


def top_k(x: Any, k: Any, *, axis: int, largest: int, **_: int) -> Any:
    order = jnp.argsort(-x if largest else x, axis=axis)
    chosen = lax.slice_in_dim(order, 0, int(np.asarray(k).reshape(())), axis=axis)
    return jnp.take_along_axis(x, chosen, axis)


def compress(x: Any, condition: Any, *, axis: int | None) -> Any:
    x, along = (x.reshape(-1), 0) if axis is None else (x, axis)
    return jnp.take(x, np.flatnonzero(condition), along)


def normalized(x: Any, axes: Any, epsilon: float) -> Any:
    centred = x - jnp.mean(x, axes, keepdims=True)
    return centred / jnp.sqrt(jnp.mean(centred * centred, axes, keepdims=True) + epsilon)


def by_channel(x: Any, rank: int) -> Any:
    return jnp.reshape(x, (-1, *(1,) * (rank - 2)))


def layer_normalization(
    x: Any, scale: Any, b: Any = None, *, axis: int, epsilon: float, **_: Any
) -> Any:
    found = normalized(x, tuple(range(axis % x.ndim, x.ndim)), epsilon) * scale
    return found if b is None else found + b


def rms_normalization(x: Any, scale: Any, *, axis: int, epsilon: float, **_: Any) -> Any:
    axes = tuple(range(axis % x.ndim, x.ndim))
    return x / jnp.sqrt(jnp.mean(x * x, axes, keepdims=True) + epsilon) * scale


def instance_normalization(x: Any, scale: Any, b: Any, *, epsilon: float) -> Any:
    found = normalized(x, tuple(range(2, x.ndim)), epsilon)
    return found * by_channel(scale, x.ndim) + by_channel(b, x.ndim)


def group_normalization(
    x: Any, scale: Any, b: Any, *, num_groups: int, epsilon: float, **_: Any
) -> Any:
    grouped = jnp.reshape(x, (x.shape[0], num_groups, -1))
    found = jnp.reshape(normalized(grouped, 2, epsilon), x.shape)
    return found * by_channel(scale, x.ndim) + by_channel(b, x.ndim)


def batch_normalization(
    x: Any, scale: Any, b: Any, mean: Any, var: Any, *, epsilon: float, training_mode: int, **_: Any
) -> Any:
    if training_mode:
        found = normalized(x, (0, *range(2, x.ndim)), epsilon)
    else:
        spread = jnp.sqrt(by_channel(var, x.ndim) + epsilon)
        found = (x - by_channel(mean, x.ndim)) / spread
    return found * by_channel(scale, x.ndim) + by_channel(b, x.ndim)


def lrn(x: Any, *, alpha: float, beta: float, bias: float, size: int) -> Any:
    before, after = (size - 1) // 2, size // 2
    window, pads = (1, size, *(1,) * (x.ndim - 2)), [(0, 0), (before, after)]
    pads += [(0, 0)] * (x.ndim - 2)
    squares = lax.reduce_window(x * x, 0.0, lax.add, window, (1,) * x.ndim, pads)
    return x / (bias + alpha / size * squares) ** beta


def lp_normalization(x: Any, *, axis: int, p: int) -> Any:
    return x / (jnp.sum(jnp.abs(x) ** p, axis, keepdims=True) ** (1 / p))


def placed(sizes: Any, kernel: Any, a: dict[str, Any]) -> tuple[Any, Any, list[tuple[int, int]]]:
    """Strides, dilations and padding, with what ceil_mode adds."""
    rank = len(sizes)
    strides, dilations = a["strides"] or (1,) * rank, a["dilations"] or (1,) * rank
    pads = a["pads"] or (0,) * 2 * rank
    spans = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    if a["auto_pad"].startswith("SAME"):
        text = a["auto_pad"].removesuffix("_UPPER")
        return strides, dilations, list(lax.padtype_to_pads(sizes, spans, strides, text))
    found = []
    for axis, (size, span, stride) in enumerate(zip(sizes, spans, strides, strict=True)):
        before, after = pads[axis], pads[rank + axis]
        room = size + before + after - span
        count = room // stride + 1
        if a.get("ceil_mode") and room % stride and count * stride < size + before:
            after += stride - room % stride
        found.append((before, after))
    return strides, dilations, found


def conv(x: Any, w: Any, b: Any = None, **a: Any) -> Any:
    strides, dilations, pads = placed(x.shape[2:], w.shape[2:], a)
    found = lax.conv_general_dilated(
        x, w, strides, pads, rhs_dilation=dilations, feature_group_count=a["group"]
    )
    return found if b is None else found + by_channel(b, x.ndim)


def causal_conv(x: Any, w: Any, b: Any = None, past: Any = None, *, activation: str) -> Any:
    before = jnp.zeros((*x.shape[:2], w.shape[2] - 1), x.dtype) if past is None else past
    joined = jnp.concatenate([before, x], 2)
    found = lax.conv_general_dilated(joined, w, (1,), "VALID", feature_group_count=x.shape[1])
    found = found if b is None else found + b[:, None]
    return (found if activation == "none" else nn.silu(found)), joined[:, :, x.shape[2] :]


def windows(x: Any, start: float, combine: Function, a: dict[str, Any]) -> Any:
    strides, dilations, pads = placed(x.shape[2:], a["kernel_shape"], a)
    return lax.reduce_window(
        x, start, combine, (1, 1, *a["kernel_shape"]), (1, 1, *strides), [(0, 0)] * 2 + pads,
        window_dilation=(1, 1, *dilations),
    )  # fmt: skip


def max_pool(x: Any, **a: Any) -> Any:
    return windows(x, -jnp.inf, lax.max, a)


def average_pool(x: Any, **a: Any) -> Any:
    counted = jnp.ones_like(x)
    if not a["count_include_pad"]:
        return windows(x, 0.0, lax.add, a) / windows(counted, 0.0, lax.add, a)
    rank = x.ndim - 2
    _, _, pads = placed(x.shape[2:], a["kernel_shape"], a | {"ceil_mode": 0})
    _, _, more = placed(x.shape[2:], a["kernel_shape"], a)
    ones = jnp.pad(counted, [(0, 0)] * 2 + pads, constant_values=1.0)
    rest = [end - front for (_, front), (_, end) in zip(pads, more, strict=True)]
    ones = jnp.pad(ones, [(0, 0)] * 2 + [(0, each) for each in rest])
    unpadded = a | {"pads": (0,) * 2 * rank, "auto_pad": "NOTSET", "ceil_mode": 0}
    return windows(x, 0.0, lax.add, a) / windows(ones, 0.0, lax.add, unpadded)


def lp_pool(x: Any, **a: Any) -> Any:
    return windows(jnp.abs(x) ** a["p"], 0.0, lax.add, a) ** (1 / a["p"])


def reduced_loss(losses: Any, weights: Any, reduction: str) -> Any:
    if reduction == "none":
        return losses
    return jnp.sum(losses) / (jnp.sum(weights) if reduction == "mean" else 1.0)


def negative_log_likelihood(
    x: Any, target: Any, weight: Any = None, *, ignore_index: int | None, reduction: str
) -> Any:
    counts = jnp.ones(x.shape[1], x.dtype) if weight is None else weight
    ignored = np.zeros(np.shape(target), bool) if ignore_index is None else target == ignore_index
    classes = np.where(ignored, 0, target)
    weights = jnp.where(ignored, 0.0, counts[classes])
    chosen = jnp.take_along_axis(x, classes[:, None], 1)[:, 0]
    return reduced_loss(-chosen * weights, weights, reduction)


def softmax_cross_entropy(x: Any, target: Any, weight: Any = None, **a: Any) -> Any:
    logs = nn.log_softmax(x, 1)
    return negative_log_likelihood(logs, target, weight, **a), logs


def clip(x: Any, low: Any = None, high: Any = None) -> Any:
    x = x if low is None else jnp.maximum(x, low)
    return x if high is None else jnp.minimum(x, high)


def shrink(x: Any, *, bias: float, lambd: float) -> Any:
    return jnp.where(x > lambd, x - bias, jnp.where(x < -lambd, x + bias, 0.0))


def elementwise(function: Function) -> Function:
    return lambda *xs, **_: function(*xs)


def folded(function: Function) -> Function:
    def fold(first: Any, *rest: Any) -> Any:
        for each in rest:
            first = function(first, each)
        return first

    return fold


FUNCTIONS: dict[str, Function] = {
    **{
        operator: elementwise(function)
        for operator, function in {
            "Abs": jnp.abs, "Acos": jnp.arccos, "Acosh": jnp.arccosh, "Asin": jnp.arcsin,
            "Asinh": jnp.arcsinh, "Atan": jnp.arctan, "Atanh": jnp.arctanh, "Ceil": jnp.ceil,
            "Cos": jnp.cos, "Cosh": jnp.cosh, "Erf": jax.scipy.special.erf, "Exp": jnp.exp,
            "Floor": jnp.floor, "HardSwish": nn.hard_swish, "Identity": jnp.asarray,
            "Log": jnp.log, "Mish": nn.mish, "Neg": jnp.negative, "Reciprocal": jnp.reciprocal,
            "Relu": nn.relu, "Round": jnp.round, "Sigmoid": nn.sigmoid, "Sign": jnp.sign,
            "Sin": jnp.sin, "Sinh": jnp.sinh, "Softplus": nn.softplus, "Softsign": nn.soft_sign,
            "Sqrt": jnp.sqrt, "Tan": jnp.tan, "Tanh": jnp.tanh, "Det": jnp.linalg.det,
            "Add": jnp.add, "Sub": jnp.subtract, "Mul": jnp.multiply, "Div": jnp.divide,
            "Pow": jnp.power, "MatMul": jnp.matmul, "Where": jnp.where,
        }.items()
    },
    "Max": folded(jnp.maximum),
    "Min": folded(jnp.minimum),
    "Sum": folded(jnp.add),
    "Mean": lambda *xs: folded(jnp.add)(*xs) / len(xs),
    "Mod": lambda x, y, *, fmod: (jnp.fmod if fmod else jnp.mod)(x, y),
    "Elu": lambda x, *, alpha: nn.elu(x, alpha),
    "Celu": lambda x, *, alpha: nn.celu(x, alpha),
    "Selu": lambda x, *, alpha, gamma: gamma * nn.elu(x, alpha),
    "LeakyRelu": lambda x, *, alpha: nn.leaky_relu(x, alpha),
    "PRelu": lambda x, slope: jnp.where(x < 0, slope * x, x),
    "ThresholdedRelu": lambda x, *, alpha: jnp.where(x > alpha, x, 0.0),
    "HardSigmoid": lambda x, *, alpha, beta: jnp.clip(alpha * x + beta, 0.0, 1.0),
    "Gelu": lambda x, *, approximate: nn.gelu(x, approximate=approximate == "tanh"),
    "Swish": lambda x, *, alpha: x * nn.sigmoid(alpha * x),
    "SwiGLU": lambda x, y, *, alpha: x * nn.sigmoid(alpha * x) * y,
    "Clip": clip,
    "Shrink": shrink,
    "ReduceSum": reduction(jnp.sum),
    "ReduceMean": reduction(jnp.mean),
    "ReduceMax": reduction(jnp.max),
    "ReduceMin": reduction(jnp.min),
    "ReduceProd": reduction(jnp.prod),
    "ReduceL1": reduction(l1),
    "ReduceL2": reduction(l2),
    "ReduceLogSum": reduction(log_sum),
    "ReduceLogSumExp": reduction(log_sum_exp),
    "ReduceSumSquare": reduction(sum_square),
    "CumSum": running(jnp.cumsum),
    "CumProd": running(jnp.cumprod),
    "Gemm": gemm,
    "Einsum": lambda *xs, equation: jnp.einsum(equation, *xs),
    "Transpose": lambda x, *, perm: jnp.transpose(x, perm),
    "Reshape": reshape,
    "Flatten": lambda x, *, axis: jnp.reshape(x, (prod(x.shape[:axis]), -1)),
    "Squeeze": lambda x, axes=None: jnp.squeeze(x, None if axes is None else ints(axes)),
    "Unsqueeze": lambda x, axes: jnp.expand_dims(x, ints(axes)),
    "Expand": lambda x, shape: jnp.broadcast_to(x, np.broadcast_shapes(x.shape, ints(shape))),
    "Concat": lambda *xs, axis: jnp.concatenate(xs, axis),
    "Split": split,
    "Slice": slice_,
    "Pad": pad,
    "Tile": lambda x, repeats: jnp.tile(x, ints(repeats)),
    "DepthToSpace": depth_to_space,
    "SpaceToDepth": space_to_depth,
    "Gather": lambda x, indices, *, axis: jnp.take(x, indices, axis),
    "GatherElements": lambda x, indices, *, axis: jnp.take_along_axis(x, indices, axis),
    "GatherND": gather_nd,
    "ScatterElements": scatter_elements,
    "ScatterND": scatter_nd,
    "TopK": top_k,
    "Compress": compress,
    "Softmax": lambda x, *, axis: nn.softmax(x, axis),
    "LogSoftmax": lambda x, *, axis: nn.log_softmax(x, axis),
    "LayerNormalization": layer_normalization,
    "RMSNormalization": rms_normalization,
    "InstanceNormalization": instance_normalization,
    "GroupNormalization": group_normalization,
    "BatchNormalization": batch_normalization,
    "LRN": lrn,
    "LpNormalization": lp_normalization,
    "Conv": conv,
    "CausalConvWithState": causal_conv,
    "MaxPool": max_pool,
    "AveragePool": average_pool,
    "LpPool": lp_pool,
    "GlobalAveragePool": lambda x: jnp.mean(x, range(2, x.ndim), keepdims=True),
    "GlobalMaxPool": lambda x: jnp.max(x, range(2, x.ndim), keepdims=True),
    "NegativeLogLikelihoodLoss": negative_log_likelihood,
    "SoftmaxCrossEntropyLoss": softmax_cross_entropy,
}  # fmt: skip
