"""ONNX operators in PyTorch: what the gates' gradients are held against, by its own functions.

Each takes the inputs and the gate's attributes by name, and gives the first outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch.nn import functional
else:
    try:
        import torch
        from torch.nn import functional
    except ImportError:  # the tests are skipped then, but counted all the same
        torch = functional = None

Function = Callable[..., Any]


def around(x: Any, pads: Any, fill: float = 0.0) -> Any:
    """Padding before and after each spatial axis."""
    rank = len(pads) // 2
    widths = [side for axis in reversed(range(rank)) for side in (pads[axis], pads[rank + axis])]
    return functional.pad(x, widths, value=fill)


def windows(x: Any, kernel: Any, a: dict[str, Any]) -> tuple[Any, Any, list[int]]:
    """Strides, dilations and padding, with what auto_pad and ceil_mode stand for."""
    rank = len(kernel)
    strides, dilations = a["strides"] or (1,) * rank, a["dilations"] or (1,) * rank
    pads = list(a["pads"] or (0,) * 2 * rank)
    for axis, (size, k) in enumerate(zip(x.shape[2:], kernel, strict=True)):
        span = (k - 1) * dilations[axis] + 1
        if a["auto_pad"].startswith("SAME"):
            count = -(-size // strides[axis])
            total = max(0, (count - 1) * strides[axis] + span - size)
            small, large = total // 2, total - total // 2
            upper = a["auto_pad"] == "SAME_UPPER"
            pads[axis], pads[rank + axis] = (small, large) if upper else (large, small)
        elif a.get("ceil_mode"):
            room = size + pads[axis] + pads[rank + axis] - span
            over = room % strides[axis]
            if over and (room // strides[axis] + 1) * strides[axis] < size + pads[axis]:
                pads[rank + axis] += strides[axis] - over
    return strides, dilations, pads


def conv(x: Any, w: Any, b: Any = None, **a: Any) -> Any:
    strides, dilations, pads = windows(x, w.shape[2:], a)
    function = (functional.conv1d, functional.conv2d, functional.conv3d)[x.ndim - 3]
    return function(around(x, pads), w, b, strides, 0, dilations, a["group"])


def conv_transpose(x: Any, w: Any, b: Any = None, **a: Any) -> Any:
    rank = x.ndim - 2
    strides, dilations = a["strides"] or (1,) * rank, a["dilations"] or (1,) * rank
    function = (
        functional.conv_transpose1d,
        functional.conv_transpose2d,
        functional.conv_transpose3d,
    )[rank - 1]
    more = a["output_padding"] or (0,) * rank
    whole = function(x, w, None, strides, 0, 0, a["group"], dilations)
    whole = functional.pad(whole, [side for each in reversed(more) for side in (0, each)])
    if b is not None:
        whole = whole + b.reshape(-1, *(1,) * rank)
    wanted = a["output_shape"]
    if wanted is None and a["auto_pad"].startswith("SAME"):
        wanted = [size * stride for size, stride in zip(x.shape[2:], strides, strict=True)]
    cut = list(a["pads"] or (0,) * 2 * rank)
    for axis, size in enumerate(whole.shape[2:] if wanted is not None else ()):
        total = size - wanted[axis]
        small = total // 2
        cut[axis] = small if a["auto_pad"] == "SAME_UPPER" else total - small
        cut[rank + axis] = total - cut[axis]
    return around(whole, [-each for each in cut])


def max_pool(x: Any, **a: Any) -> Any:
    strides, dilations, pads = windows(x, a["kernel_shape"], a)
    function = (functional.max_pool1d, functional.max_pool2d, functional.max_pool3d)[x.ndim - 3]
    padded = around(x, pads, float("-inf"))
    return function(padded, a["kernel_shape"], strides, 0, dilations)


def unfolded(x: Any, a: dict[str, Any]) -> Any:
    """The windows' elements, along the last axis."""
    strides, dilations, pads = windows(x, a["kernel_shape"], a)
    x = around(x, pads)
    rank = len(a["kernel_shape"])
    for axis, k in enumerate(a["kernel_shape"]):
        x = x.unfold(axis + 2, (k - 1) * dilations[axis] + 1, strides[axis])
    for axis in range(rank):
        parts = [slice(None)] * x.ndim
        parts[2 + rank + axis] = slice(None, None, dilations[axis])
        x = x[tuple(parts)]
    return x.flatten(2 + rank)


def average_pool(x: Any, **a: Any) -> Any:
    if a["count_include_pad"]:
        _, _, pads = windows(x, a["kernel_shape"], a | {"ceil_mode": 0})
        _, _, reach = windows(x, a["kernel_shape"], a)
        rest = [whole - part for whole, part in zip(reach, pads, strict=True)]
        ones = around(around(torch.ones_like(x), pads, 1.0), rest)
        inner = a | {"pads": None, "auto_pad": "NOTSET", "ceil_mode": 0}
        return unfolded(around(x, reach), inner).sum(-1) / unfolded(ones, inner).sum(-1)
    return unfolded(x, a).sum(-1) / unfolded(torch.ones_like(x), a).sum(-1)


def lp_pool(x: Any, **a: Any) -> Any:
    return unfolded(x, a).abs().pow(a["p"]).sum(-1).pow(1 / a["p"])


def batch_norm(x: Any, scale: Any, b: Any, mean: Any, var: Any, **a: Any) -> Any:
    if a["training_mode"]:
        return functional.batch_norm(x, None, None, scale, b, True, 0.0, a["epsilon"])
    shape = (-1, *(1,) * (x.ndim - 2))  # PyTorch has no gradient to running statistics
    spread = (var + a["epsilon"]).sqrt().reshape(shape)
    return (x - mean.reshape(shape)) / spread * scale.reshape(shape) + b.reshape(shape)


def layer_norm(x: Any, scale: Any, b: Any = None, **a: Any) -> Any:
    shape = x.shape[a["axis"] % x.ndim :]
    return functional.layer_norm(x, shape, scale, b, a["epsilon"])


def rms_norm(x: Any, scale: Any, **a: Any) -> Any:
    return functional.rms_norm(x, x.shape[a["axis"] % x.ndim :], scale, a["epsilon"])


def recurrent(kind: str, order: tuple[int, ...]) -> Function:
    """RNN or LSTM by PyTorch's own; `order` are ONNX's gates as PyTorch lists them.

    There is no GRU: PyTorch's resets behind the product, ONNX's cases before it.
    """

    def run(
        x: Any, w: Any, r: Any, b: Any = None, _: Any = None, h: Any = None, c: Any = None,
        *__: Any, **a: Any,
    ) -> Any:  # fmt: skip
        x = x.transpose(0, 1) if a["layout"] else x
        size = r.shape[-1]
        start = torch.zeros(1, x.shape[1], size, dtype=x.dtype)

        def gates(part: Any) -> Any:
            return torch.cat([part.split(size)[each] for each in order])

        found, last = [], []
        for side in range(w.shape[0]):
            backwards = a["direction"] == "reverse" or side == 1
            none = torch.zeros(2 * len(order) * size, dtype=x.dtype)
            weights = [w[side], r[side], *(none if b is None else b[side]).chunk(2)]
            states = [start if each is None else each[side : side + 1] for each in (h, c)]
            function = {"rnn": torch.rnn_tanh, "lstm": torch.lstm}[kind]
            out, *ends = function(
                x.flip(0) if backwards else x, states if kind == "lstm" else states[0],
                [*map(gates, weights)], True, 1, 0.0, False, False, False,
            )  # fmt: skip
            found.append(out.flip(0) if backwards else out)
            last.append(ends)
        y = torch.stack(found, 1)
        tails = [torch.cat([each[k] for each in last]) for k in range(len(last[0]))]
        if a["layout"]:
            return y.permute(2, 0, 1, 3), *(each.transpose(0, 1) for each in tails)
        return y, *tails

    return run


def grid_sample(x: Any, grid: Any, **a: Any) -> Any:
    mode = {"linear": "bilinear", "nearest": "nearest", "cubic": "bicubic"}[a["mode"]]
    return functional.grid_sample(x, grid, mode, a["padding_mode"], bool(a["align_corners"]))


def nll(x: Any, target: Any, weight: Any = None, *, ignore_index: Any, reduction: str) -> Any:
    ignored = -100 if ignore_index is None else ignore_index
    if weight is None:
        return functional.nll_loss(x, target, ignore_index=ignored, reduction=reduction)
    losses = functional.nll_loss(x, target, ignore_index=ignored, reduction="none")
    counted = weight[torch.where(target == ignored, 0, target)] * (target != ignored)
    losses = losses * counted  # PyTorch has no gradient to its weights
    if reduction == "none":
        return losses
    return losses.sum() / (counted.sum() if reduction == "mean" else 1.0)


def cross_entropy(x: Any, target: Any, weight: Any = None, **a: Any) -> Any:
    logs = functional.log_softmax(x, 1)
    return nll(logs, target, weight, **a), logs


def clip(x: Any, low: Any = None, high: Any = None) -> Any:
    x = x if low is None else torch.maximum(x, low)
    return x if high is None else torch.minimum(x, high)


def resize(x: Any, _: Any = None, scales: Any = None, sizes: Any = None, **a: Any) -> Any:
    align = a["coordinate_transformation_mode"] == "align_corners"
    mode = {"nearest": "nearest-exact", "linear": "bilinear", "cubic": "bicubic"}[a["mode"]]
    chosen = {"align_corners": align} if mode != "nearest-exact" else {}
    size = None if sizes is None else tuple(sizes[2:].tolist())
    scale = None if scales is None or size is not None else tuple(scales[2:].tolist())
    return functional.interpolate(x, size, scale, mode, **chosen)


def attention(q: Any, k: Any, v: Any, mask: Any = None, *_: Any, **a: Any) -> Any:
    flat = q.ndim == 3
    if flat:
        q, k, v = (
            x.unflatten(-1, (heads, -1)).transpose(1, 2)
            for x, heads in ((q, a["q_num_heads"]), (k, a["kv_num_heads"]), (v, a["kv_num_heads"]))
        )
    out = functional.scaled_dot_product_attention(
        q, k, v, mask, is_causal=bool(a["is_causal"]), scale=a["scale"],
        enable_gqa=q.shape[1] != k.shape[1],
    )  # fmt: skip
    return out.transpose(1, 2).flatten(2) if flat else out


def plain(name: str) -> Function:
    """PyTorch's function of that name, which takes the inputs only."""

    def function(*xs: Any, **_: Any) -> Any:
        return getattr(torch if hasattr(torch, name) else functional, name)(*xs)

    return function


FUNCTIONS: dict[str, Function] = {
    **{
        operator: plain(name)
        for operator, name in {
            "Abs": "abs", "Acos": "acos", "Acosh": "acosh", "Asin": "asin", "Asinh": "asinh",
            "Atan": "atan", "Atanh": "atanh", "Ceil": "ceil", "Cos": "cos", "Cosh": "cosh",
            "Erf": "erf", "Exp": "exp", "Floor": "floor", "HardSwish": "hardswish", "Log": "log",
            "Mish": "mish", "Neg": "neg", "Reciprocal": "reciprocal", "Relu": "relu",
            "Round": "round", "Sigmoid": "sigmoid", "Sign": "sign", "Sin": "sin", "Sinh": "sinh",
            "Softplus": "softplus", "Softsign": "softsign", "Sqrt": "sqrt", "Tan": "tan",
            "Tanh": "tanh", "Det": "det", "Add": "add", "Sub": "sub", "Mul": "mul", "Div": "div",
            "Pow": "pow", "MatMul": "matmul", "Where": "where",
        }.items()
    },
    "Elu": lambda x, *, alpha: functional.elu(x, alpha),
    "Celu": lambda x, *, alpha: functional.celu(x, alpha),
    "LeakyRelu": lambda x, *, alpha: functional.leaky_relu(x, alpha),
    "ThresholdedRelu": lambda x, *, alpha: functional.threshold(x, alpha, 0.0),
    "HardSigmoid": lambda x, *, alpha, beta: (alpha * x + beta).clamp(0, 1),
    "Gelu": lambda x, *, approximate: functional.gelu(x, approximate=approximate),
    "Swish": lambda x, *, alpha: x * torch.sigmoid(alpha * x),
    "Clip": clip,
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "MaxPool": max_pool,
    "AveragePool": average_pool,
    "LpPool": lp_pool,
    "GlobalAveragePool": lambda x: x.mean(tuple(range(2, x.ndim)), True),
    "GlobalMaxPool": lambda x: x.amax(tuple(range(2, x.ndim)), True),
    "BatchNormalization": batch_norm,
    "LayerNormalization": layer_norm,
    "RMSNormalization": rms_norm,
    "GroupNormalization": lambda x, scale, b, *, num_groups, epsilon, **_: functional.group_norm(
        x, num_groups, scale, b, epsilon),
    "InstanceNormalization": lambda x, scale, b, *, epsilon: functional.instance_norm(
        x, weight=scale, bias=b, eps=epsilon),
    "LRN": lambda x, *, alpha, beta, bias, size: functional.local_response_norm(
        x, size, alpha, beta, bias),
    "LpNormalization": lambda x, *, axis, p: functional.normalize(x, float(p), axis),
    "RNN": recurrent("rnn", (0,)),
    "LSTM": recurrent("lstm", (0, 2, 3, 1)),
    "GridSample": grid_sample,
    "Resize": resize,
    "Attention": attention,
    "Softmax": lambda x, *, axis: functional.softmax(x, axis),
    "LogSoftmax": lambda x, *, axis: functional.log_softmax(x, axis),
    "NegativeLogLikelihoodLoss": nll,
    "SoftmaxCrossEntropyLoss": cross_entropy,
}  # fmt: skip
