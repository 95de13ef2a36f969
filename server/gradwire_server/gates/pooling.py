"""Pooling: one number of each window, or of each channel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from struct import pack
from typing import Any, ClassVar

from gradwire_server.errors import Invalid
from gradwire_server.gates.base import (
    STEP,
    Array,
    Attribute,
    Example,
    Gate,
    Input,
    Namespace,
    Rejection,
    Sample,
    Scratch,
)
from gradwire_server.gates.windows import (
    AUTO_PAD,
    CEIL_MODE,
    DILATIONS,
    PADS,
    STRIDES,
    Windows,
    elements_inside,
    numbers,
    place_windows,
)
from gradwire_server.specs import FLOATS, Shape, Tensor, TensorSpec

_KERNEL_SHAPE = Attribute("kernel_shape", "ints", required=True, doc="Elements of a window.")
_SHARED = (AUTO_PAD, CEIL_MODE, DILATIONS, _KERNEL_SHAPE, PADS, STRIDES)

_SAMPLES = tuple(
    Sample((TensorSpec(shape),), attributes)
    for shape, attributes in (
        ((2, 3, 7), {"kernel_shape": (3,)}),
        ((1, 2, 5, 6), {"kernel_shape": (2, 3), "strides": (2, 3)}),
        ((2, 1, 6, 5), {"kernel_shape": (3, 3), "pads": (1, 2, 1, 0), "strides": (2, 1)}),
        ((1, 1, 7, 7), {"kernel_shape": (2, 3), "dilations": (3, 2)}),
        ((1, 2, 5, 5), {"kernel_shape": (2, 2), "strides": (3, 2), "ceil_mode": 1}),
        ((1, 1, 5, 5), {"kernel_shape": (3, 3), "strides": (2, 2), "ceil_mode": 1,
                        "pads": (1, 1, 1, 1)}),
        ((1, 1, 5, 6), {"kernel_shape": (3, 2), "auto_pad": "SAME_UPPER", "strides": (2, 2)}),
        ((1, 1, 5, 6), {"kernel_shape": (2, 3), "auto_pad": "SAME_LOWER"}),
        ((1, 1, 5), {"kernel_shape": (2,), "auto_pad": "VALID", "strides": (2,), "ceil_mode": 1}),
        ((2, 1, 3, 4, 2), {"kernel_shape": (2, 2, 2), "strides": (1, 2, 1)}),
        ((1, 1, 3), {"kernel_shape": (6,), "pads": (2, 3)}),
        ((0, 2, 3), {"kernel_shape": (2,)}),
    )
)  # fmt: skip
_REJECTIONS = (
    Rejection((TensorSpec((1, 2)),), "X has rank 2 but needs a spatial axis",
              attributes={"kernel_shape": ()}),
    Rejection((TensorSpec((1, 1, 5)),), "kernel_shape has 2 numbers but there are 1 spatial axes",
              "ATTRIBUTE_INVALID", {"kernel_shape": (2, 2)}),
    Rejection((TensorSpec((1, 1, 5)),), "kernel_shape is (0,) but must be 1 or more",
              "ATTRIBUTE_INVALID", {"kernel_shape": (0,)}),
    Rejection((TensorSpec((1, 1, 2)),), "a window covers 5 elements but spatial axis 0 has 2",
              attributes={"kernel_shape": (3,), "dilations": (2,)}),
    Rejection((TensorSpec((1, 1, 2)),), "attribute 'kernel_shape' must be given",
              "ATTRIBUTE_INVALID"),
)  # fmt: skip


def _place(shape: Shape, kernel_shape: Shape, **how: Any) -> Windows:
    """The windows over the last axes of a tensor; axes before them may be more than two."""
    return place_windows(shape[len(shape) - len(kernel_shape) :], kernel_shape, **how)


def _is_strided(attributes: dict[str, Any]) -> bool:
    """Whether windows do not begin at every element."""
    return max(attributes["strides"] or (1,)) > 1


class _Pool(Gate):
    """What pools of windows share: where the windows are."""

    attributes: ClassVar[tuple[Attribute, ...]] = _SHARED
    samples: ClassVar[tuple[Sample, ...]] = _SAMPLES
    rejections: ClassVar[tuple[Rejection, ...]] = _REJECTIONS

    def infer(self, x: TensorSpec, *, kernel_shape: Shape, **how: Any) -> Any:
        _check_rank(x)
        windows = place_windows(x.shape[2:], kernel_shape, **_placing(how))
        return TensorSpec((*x.shape[:2], *windows.counts), x.dtype)

    def aligned_shapes(self, x: TensorSpec, **attributes: Any) -> tuple[Shape, ...]:
        return (x.shape,)

    def operations(
        self, outs: tuple[TensorSpec, ...], x: TensorSpec, *, kernel_shape: Shape, **how: Any
    ) -> int:
        windows = place_windows(x.shape[2:], kernel_shape, **_placing(how))
        return x.size + outs[0].size + pooling(x, windows)


def pooling(x: TensorSpec, windows: Windows) -> int:
    """Operations on windows over the last axes: of each axis in turn, what lies in x alone."""
    total, shape = 0, list(x.shape)
    for axis, (kernel, count) in enumerate(zip(windows.kernel, windows.counts, strict=True)):
        place = x.rank - len(windows.kernel) + axis
        taps = min(kernel, shape[place] * count)
        total += prod((*shape[:place], taps * count, *shape[place + 1 :])) + taps * STEP
        shape[place] = count
    return total


def _placing(attributes: dict[str, Any]) -> dict[str, Any]:
    names = ("strides", "dilations", "pads", "auto_pad", "ceil_mode")
    return {name: attributes[name] for name in names}


def _check_rank(x: TensorSpec) -> None:
    if x.rank < 3:
        raise Invalid("SHAPE_MISMATCH", f"X has rank {x.rank} but needs a spatial axis: rank 3")


class MaxPool(_Pool):
    """Largest element of each window, and where it is.

    Formula:   Y = max of X in the window, padding left out;  Indices = its place in X, flattened
               row-major, or with storage_order 1 column-major within a channel
    Gradient:  d Y/d X = 1 for the element at Indices, 0 for the others
    Kinks:     of equal elements in a window the first, row-major, gets the whole gradient.
    Shapes:    X [N, C, sizes] gives two of [N, C, counts]: (size + both pads - (kernel - 1) *
               dilation - 1) / stride + 1 windows an axis, rounded down, or up with ceil_mode.
    """

    operator = "MaxPool"
    inputs = (Input("X", (*FLOATS, "int8", "uint8")),)
    attributes = (
        *_SHARED,
        Attribute("storage_order", "int", 0, choices=(0, 1),
                  doc="How Indices count: 0 row-major, 1 column-major."),
    )  # fmt: skip
    outputs = (1, 2)
    output_dtypes = ("input:0", "int64")
    examples = (
        Example(([[[1.0, 3.0, 2.0, 0.0]]],), ([[[3.0, 3.0, 2.0]]], [[[1, 1, 2]]]),
                gradients=([[[0.0, 2.0, 1.0, 0.0]]],), attributes={"kernel_shape": (2,)}),
        Example(([[[[1.0, 1.0], [1.0, 0.0]]]],), ([[[[1.0]]]], [[[[0]]]]),
                gradients=([[[[1.0, 0.0], [0.0, 0.0]]]],),
                attributes={"kernel_shape": (2, 2)}, at_kink=True),
        Example(([[[[1.0, 5.0], [2.0, 3.0]]], [[[1.0, 2.0], [9.0, 3.0]]]],),
                ([[[[5.0]]], [[[9.0]]]], [[[[2]]], [[[5]]]]),
                gradients=([[[[0.0, 1.0], [0.0, 0.0]]], [[[0.0, 0.0], [1.0, 0.0]]]],),
                attributes={"kernel_shape": (2, 2), "storage_order": 1}),
    )  # fmt: skip

    def infer(self, x: TensorSpec, **attributes: Any) -> tuple[TensorSpec, TensorSpec]:
        largest = super().infer(x, **attributes)
        return largest, TensorSpec(largest.shape, "int64")

    def scratch(self, outs: Sequence[TensorSpec], x: TensorSpec, **attributes: Any) -> Scratch:
        return Scratch((1 + _is_strided(attributes)) * outs[0].nbytes, 0)

    def forward(
        self, xp: Namespace, x: Array, *, storage_order: int, **how: Any
    ) -> tuple[Any, ...]:
        windows = _place(x.shape, **how)
        rank = len(windows.kernel)

        def indices() -> Array:
            positions = xp.argmax_windows(x, windows)
            sizes, lead = x.shape[-rank:], x.shape[len(x.shape) - rank - 2 : -rank]
            if storage_order:
                positions = _column_major(xp, positions, sizes)
            channels = xp.reshape(xp.arange(prod(lead), "int64"), (*lead, *(1,) * rank))
            return positions + prod(sizes) * channels

        return xp.max_windows(x, windows), indices

    def vjp(
        self, xp: Namespace, grad: Any, out: Any, x: Array, *, storage_order: int, **how: Any
    ) -> tuple[Any, ...]:
        return (xp.spread_largest(grad[0], out[0], x, _place(x.shape, **how)),)


def _column_major(xp: Namespace, positions: Array, sizes: Shape) -> Array:
    """Row-major positions in an array of these sizes as column-major ones."""
    found, weight = 0 * positions, prod(sizes)
    for size in reversed(sizes):
        weight //= size
        found = found + xp.remainder(positions, size) * weight
        positions = xp.truncated_divide(positions, size)
    return found


class AveragePool(_Pool):
    """Mean of each window.

    Formula:   Y = (sum of X in the window) / n;  n is how many elements of the window are in X, or
               with count_include_pad in X and its pads
    Gradient:  d Y/d X = 1 / n for each element in the window
    Shapes:    X [N, C, sizes] gives [N, C, counts]: (size + both pads - (kernel - 1) * dilation -
               1) / stride + 1 windows an axis, rounded down, or up with ceil_mode.
    """

    operator = "AveragePool"
    attributes = (
        *_SHARED,
        Attribute("count_include_pad", "int", 0, choices=(0, 1),
                  doc="1 counts padding as elements that are 0."),
    )  # fmt: skip
    examples = (
        Example(([[[1.0, 3.0, 2.0]]],), [[[2.0, 2.5]]], gradients=([[[0.5, 1.0, 0.5]]],),
                attributes={"kernel_shape": (2,)}),
        Example(([[[1.0, 3.0]]],), [[[1.0, 3.0]]], gradients=([[[1.0, 1.0]]],),
                attributes={"kernel_shape": (2,), "pads": (1, 1), "strides": (2,)}),
        Example(([[[1.0, 3.0]]],), [[[0.5, 1.5]]], gradients=([[[0.5, 0.5]]],),
                attributes={"kernel_shape": (2,), "pads": (1, 1), "strides": (2,),
                            "count_include_pad": 1}),
    )  # fmt: skip
    samples = (
        *_SAMPLES,
        *(
            replace(each, attributes={**each.attributes, "count_include_pad": 1})
            for each in _SAMPLES
            if "pads" in each.attributes or "ceil_mode" in each.attributes
        ),
    )

    def scratch(self, outs: Sequence[TensorSpec], x: TensorSpec, **attributes: Any) -> Scratch:
        strided = _is_strided(attributes)
        if x.rank == 3:
            return Scratch(outs[0].nbytes, outs[0].nbytes)
        return Scratch((1 + strided) * outs[0].nbytes, (2 + strided) * outs[0].nbytes)

    def forward(self, xp: Namespace, x: Array, *, count_include_pad: int, **how: Any) -> Array:
        windows = _place(x.shape, **how)
        return _per_element(xp, xp.sum_windows(x, windows), x, windows, count_include_pad)

    def vjp(
        self, xp: Namespace, grad: Array, out: Array, x: Array, *, count_include_pad: int,
        **how: Any,
    ) -> tuple[Any, ...]:  # fmt: skip
        windows = _place(x.shape, **how)
        each = _per_element(xp, grad, x, windows, count_include_pad)
        return (xp.spread_windows(each, windows, x.shape[-len(windows.kernel) :]),)


def _per_element(
    xp: Namespace, total: Array, x: Array, windows: Windows, include_pad: int
) -> Array:
    """Divided by the number of elements of each window: along one axis after another."""
    rank = len(windows.kernel)
    sizes = x.shape[-rank:]
    if include_pad:
        sizes = tuple(map(sum, zip(sizes, windows.before, windows.after, strict=True)))
        windows = replace(windows, before=(0,) * rank)
    whole = 1
    for axis in range(rank):
        counts = [max(1, count) for count in elements_inside(windows, sizes, axis)]
        if min(counts) == max(counts):
            whole *= counts[0]
            continue
        code = "f" if str(x.dtype) == "float32" else "d"
        shape = (len(counts), *(1,) * (rank - 1 - axis))
        data = pack(f"<{len(counts)}{code}", *counts)
        total = total / xp.constant(Tensor(str(x.dtype), shape, data))
    return total if whole == 1 else total / whole


class LpPool(_Pool):
    """Norm of each window.

    Formula:   Y = (sum of |X|^p in the window)^(1 / p)
    Gradient:  d Y/d X = sign(X) * |X|^(p - 1) * Y^(1 - p) for each element in the window
    Kinks:     0 where X = 0 with p = 1, and in a window that is all 0.
    Shapes:    X [N, C, sizes] gives [N, C, counts]: (size + both pads - (kernel - 1) * dilation -
               1) / stride + 1 windows an axis, rounded down, or up with ceil_mode.
    """

    operator = "LpPool"
    attributes = (*_SHARED, Attribute("p", "int", 2, doc="Power of the norm, 1 or more."))
    examples = (
        Example(([[[3.0, 4.0, 0.0]]],), [[[5.0, 4.0]]], gradients=([[[0.6, 1.8, 0.0]]],),
                attributes={"kernel_shape": (2,)}),
        Example(([[[1.0, -2.0, 0.0]]],), [[[3.0, 2.0]]], gradients=([[[1.0, -2.0, 0.0]]],),
                attributes={"kernel_shape": (2,), "p": 1}, at_kink=True),
        Example(([[[0.0, 0.0]]],), [[[0.0]]], gradients=([[[0.0, 0.0]]],),
                attributes={"kernel_shape": (2,)}, at_kink=True),
    )  # fmt: skip
    samples = (
        *_SAMPLES[:9],
        Sample((TensorSpec((1, 2, 5)),), {"kernel_shape": (3,), "p": 3, "strides": (2,)}),
        Sample((TensorSpec((1, 2, 5)),), {"kernel_shape": (3,), "p": 1, "pads": (1, 1)}),
    )
    rejections = (
        *_REJECTIONS,
        Rejection((TensorSpec((1, 1, 2)),), "p is 0 but must be 1 or more", "ATTRIBUTE_INVALID",
                  {"kernel_shape": (1,), "p": 0}),
    )  # fmt: skip

    def infer(self, x: TensorSpec, **attributes: Any) -> TensorSpec:
        _check_power(attributes["p"])
        found: TensorSpec = super().infer(x, **attributes)
        return found

    def scratch(
        self, outs: Sequence[TensorSpec], x: TensorSpec, p: int, **attributes: Any
    ) -> Scratch:
        out = outs[0].nbytes
        summing = 0 if x.rank == 3 else (1 + _is_strided(attributes)) * out
        back = x.nbytes if p == 1 else int(0.65 * x.nbytes + 2.45 * out)
        return Scratch(x.nbytes + summing, back)

    def forward(self, xp: Namespace, x: Array, *, p: int, **how: Any) -> Array:
        return _root(xp, xp.sum_windows(_power(xp, x, p), _place(x.shape, **how)), p)

    def vjp(
        self, xp: Namespace, grad: Array, out: Array, x: Array, *, p: int, **how: Any
    ) -> tuple[Any, ...]:
        windows = _place(x.shape, **how)
        to_total = _to_total(xp, grad, out, p)
        spread = xp.spread_windows(to_total, windows, x.shape[-len(windows.kernel) :])
        return (spread * _power_slope(xp, x, p),)


def _check_power(p: int) -> None:
    if p < 1:
        raise Invalid("ATTRIBUTE_INVALID", f"p is {p} but must be 1 or more", attribute="p")


def _power(xp: Namespace, x: Array, p: int) -> Array:
    """|x|^p."""
    return x * x if p == 2 else xp.pow(xp.abs(x), float(p)) if p > 1 else xp.abs(x)


def _root(xp: Namespace, total: Array, p: int) -> Array:
    return xp.sqrt(total) if p == 2 else xp.pow(total, 1.0 / p) if p > 1 else total


def _to_total(xp: Namespace, grad: Array, out: Array, p: int) -> Array:
    """The gradient of a sum of p-th powers whose root is out, times p; 0 where out is 0."""
    if p == 1:
        return grad
    is_zero = xp.equal(out, 0.0)
    norm = xp.where(is_zero, 1.0, out)
    scaled = grad / norm if p == 2 else grad * xp.pow(norm, 1.0 - p)
    return xp.where(is_zero, 0.0, scaled)


def _power_slope(xp: Namespace, x: Array, p: int) -> Array:
    """The derivative of |x|^p, divided by p."""
    if p == 2:
        return x
    return xp.sign(x) * xp.pow(xp.abs(x), p - 1.0) if p > 1 else xp.sign(x)


class _GlobalPool(Gate):
    """What pools of whole channels share: all spatial axes become one element."""

    samples: ClassVar[tuple[Sample, ...]] = (
        Sample((TensorSpec((2, 3, 4)),)),
        Sample((TensorSpec((1, 2, 3, 5)),)),
        Sample((TensorSpec((2, 1, 2, 3, 2)),)),
        Sample((TensorSpec((0, 2, 3)),)),
    )
    rejections: ClassVar[tuple[Rejection, ...]] = (
        Rejection((TensorSpec((2, 3)),), "X has rank 2 but needs a spatial axis"),
        Rejection((TensorSpec((2, 3, 4, 0)),), "X of shape (2, 3, 4, 0) has channels without"),
    )

    def infer(self, x: TensorSpec, **attributes: Any) -> TensorSpec:
        _check_rank(x)
        if 0 in x.shape[2:]:
            raise Invalid("SHAPE_MISMATCH", f"X of shape {x.shape} has channels without elements")
        return TensorSpec((*x.shape[:2], *(1,) * (x.rank - 2)), x.dtype)

    def aligned_shapes(self, x: TensorSpec, **attributes: Any) -> tuple[Shape, ...]:
        """The channels before an axis of size 1: the axes from the third on, with a batch or
        without, then are the spatial ones, or they and that axis."""
        return ((prod(x.shape[:2]), 1, prod(x.shape[2:])),)


def _spatial(x: Array) -> tuple[int, ...]:
    return tuple(range(2, len(x.shape)))


class GlobalAveragePool(_GlobalPool):
    """Mean of each channel.

    Formula:   Y = mean of X over all spatial axes
    Gradient:  d Y/d X = 1 / n, n elements a channel
    Shapes:    X [N, C, sizes] gives [N, C, 1, ..].
    """

    operator = "GlobalAveragePool"
    passes_grad = "to the first"
    examples = (
        Example(([[[1.0, 3.0], [2.0, 6.0]]],), [[[2.0], [4.0]]],
                gradients=([[[0.5, 0.5], [0.5, 0.5]]],)),
    )  # fmt: skip

    def forward(self, xp: Namespace, x: Array) -> Array:
        return xp.mean(x, axis=_spatial(x), keepdims=True)

    def vjp(self, xp: Namespace, grad: Array, out: Array, x: Array) -> tuple[Any, ...]:
        return (xp.broadcast_to(grad / prod(x.shape[2:]), x.shape),)


class GlobalMaxPool(_GlobalPool):
    """Largest element of each channel.

    Formula:   Y = max of X over all spatial axes
    Gradient:  d Y/d X = 1 for the largest element, 0 for the others
    Kinks:     of equal elements the first, row-major, gets the whole gradient.
    Shapes:    X [N, C, sizes] gives [N, C, 1, ..].
    """

    operator = "GlobalMaxPool"
    scratch_arrays = (0, 1.1)
    examples = (
        Example(([[[1.0, 3.0], [6.0, 2.0]]],), [[[3.0], [6.0]]],
                gradients=([[[0.0, 1.0], [1.0, 0.0]]],)),
        Example(([[[2.0, 2.0]]],), [[[2.0]]], gradients=([[[1.0, 0.0]]],), at_kink=True),
    )  # fmt: skip

    def forward(self, xp: Namespace, x: Array) -> Array:
        return xp.max(x, axis=_spatial(x), keepdims=True)

    def vjp(self, xp: Namespace, grad: Array, out: Array, x: Array) -> tuple[Any, ...]:
        channels = xp.reshape(x, (prod(x.shape[:2]), prod(x.shape[2:])))
        first = xp.argmax(channels, axis=1, keepdims=True)
        to_first = xp.reshape(grad, first.shape)
        found = xp.scatter(xp.zeros_like(channels), first, to_first, axis=1)
        return (xp.reshape(found, x.shape),)


class GlobalLpPool(_GlobalPool):
    """Norm of each channel.

    Formula:   Y = (sum of |X|^p)^(1 / p) over all spatial axes
    Gradient:  d Y/d X = sign(X) * |X|^(p - 1) * Y^(1 - p)
    Kinks:     0 where X = 0 with p = 1, and in a channel that is all 0.
    Shapes:    X [N, C, sizes] gives [N, C, 1, ..].
    """

    operator = "GlobalLpPool"
    attributes = (Attribute("p", "int", 2, doc="Power of the norm, 1 or more."),)
    examples = (
        Example(([[[3.0, 4.0], [5.0, 12.0]]],), [[[5.0], [13.0]]],
                gradients=([[[0.6, 0.8], [0.38461538461538464, 0.9230769230769231]]],)),
        Example(([[[0.0, 0.0]]],), [[[0.0]]], gradients=([[[0.0, 0.0]]],), at_kink=True),
    )  # fmt: skip
    samples = (
        *_GlobalPool.samples,
        Sample((TensorSpec((1, 2, 3, 2)),), {"p": 1}),
        Sample((TensorSpec((1, 2, 3, 2)),), {"p": 3}),
    )
    rejections = (
        *_GlobalPool.rejections,
        Rejection((TensorSpec((1, 1, 2)),), "p is -1 but must be 1 or more", "ATTRIBUTE_INVALID",
                  {"p": -1}),
    )  # fmt: skip

    def infer(self, x: TensorSpec, **attributes: Any) -> TensorSpec:
        _check_power(attributes["p"])
        return super().infer(x)

    def scratch(self, outs: Sequence[TensorSpec], x: TensorSpec, p: int) -> Scratch:
        forward, back = {1: (1, 1), 2: (1, 0)}.get(p, (2, 2))
        return Scratch(forward * x.nbytes, back * x.nbytes)

    def forward(self, xp: Namespace, x: Array, p: int) -> Array:
        return _root(xp, xp.sum(_power(xp, x, p), axis=_spatial(x), keepdims=True), p)

    def vjp(self, xp: Namespace, grad: Array, out: Array, x: Array, p: int) -> tuple[Any, ...]:
        return (_to_total(xp, grad, out, p) * _power_slope(xp, x, p),)


class MaxUnpool(Gate):
    """Elements put back where MaxPool found them, zeros between them.

    Formula:   output[I[j]] = X[j] in the flattened output, 0 elsewhere; of equal I the last counts
    Gradient:  d output/d X = 1 at its place; 0 where a later element has the same place
    Shapes:    X and I [N, C, counts] give [N, C, ..] with (count - 1) * stride + kernel - both
               pads elements an axis, which I count in; output_shape adds zeros behind them.
    """

    operator = "MaxUnpool"
    inputs = (
        Input("X"),
        Input("I", ("int64",), "I"),
        Input("output_shape", ("int64",), "output_shape", optional=True, known=True),
    )
    attributes = (_KERNEL_SHAPE, PADS, STRIDES)
    examples = (
        Example(([[[5.0, 7.0]]], [[[1, 2]]]), [[[0.0, 5.0, 7.0, 0.0]]],
                gradients=([[[1.0, 1.0]]], None),
                attributes={"kernel_shape": (2,), "strides": (2,)}),
        Example(([[[5.0, 7.0]]], [[[1, 1]]], [1, 1, 4]), [[[0.0, 7.0, 0.0, 0.0]]],
                gradients=([[[0.0, 1.0]]], None, None), attributes={"kernel_shape": (2,)}),
    )  # fmt: skip
    samples = (
        Sample(
            (TensorSpec((1, 2, 2, 1)), TensorSpec((1, 2, 2, 1), "int64", (2, 6, 9, 15))),
            {"kernel_shape": (2, 2), "strides": (2, 2)},
        ),
        Sample(
            (TensorSpec((1, 1, 2)), TensorSpec((1, 1, 2), "int64", (0, 1)),
             TensorSpec((3,), "int64", (1, 1, 5))),
            {"kernel_shape": (3,), "pads": (1, 1)},
        ),
    )  # fmt: skip
    rejections = (
        Rejection((TensorSpec((1, 1, 2)), TensorSpec((1, 1, 3), "int64")),
                  "X has shape (1, 1, 2) but I has shape (1, 1, 3)",
                  attributes={"kernel_shape": (2,)}),
        Rejection((TensorSpec((1, 1, 2)), TensorSpec((1, 1, 2), "int64"),
                   TensorSpec((3,), "int64", (1, 1, 2))),
                  "output_shape is (1, 1, 2) but must be (1, 1, 3) or more",
                  attributes={"kernel_shape": (2,)}),
        Rejection((TensorSpec((1, 1, 1)), TensorSpec((1, 1, 1), "int64")),
                  "spatial axis 0 of the output would have size 0",
                  attributes={"kernel_shape": (2,), "pads": (1, 1)}),
        Rejection((TensorSpec((1, 1)), TensorSpec((1, 1), "int64")),
                  "X has rank 2 but needs a spatial axis", attributes={"kernel_shape": ()}),
    )  # fmt: skip

    def infer(
        self,
        x: TensorSpec,
        indices: TensorSpec,
        output_shape: TensorSpec | None = None,
        **how: Any,
    ) -> TensorSpec:
        _check_rank(x)
        if x.shape != indices.shape:
            raise Invalid(
                "SHAPE_MISMATCH", f"X has shape {x.shape} but I has shape {indices.shape}"
            )
        least = self._inner(x.shape, **how)
        shape = least
        if output_shape is not None:
            assert output_shape.value is not None
            shape = tuple(map(int, output_shape.value))
            if len(shape) != x.rank or any(map(int.__lt__, shape, least)):
                raise Invalid(
                    "SHAPE_MISMATCH", f"output_shape is {shape} but must be {least} or more"
                )
        return TensorSpec(shape, x.dtype)

    def scratch(
        self, outs: Sequence[TensorSpec], x: TensorSpec, *_: Any, **attributes: Any
    ) -> Scratch:
        places = int(2.15 * 8 * x.size)
        # the last of equal places is found by integers
        back = 16 * outs[0].size + int(25.1 * x.size) - x.nbytes
        return Scratch(outs[0].nbytes + places, back)

    def forward(
        self,
        xp: Namespace,
        x: Array,
        indices: Array,
        output_shape: tuple[int, ...] | None = None,
        **how: Any,
    ) -> Array:
        inner = self._inner(x.shape, **how)
        xp.require_indices(indices, prod(inner), "I")
        empty = xp.full((prod(inner),), 0, str(x.dtype))
        places, elements = (xp.reshape(each, (prod(x.shape),)) for each in (indices, x))
        out = xp.reshape(xp.scatter(empty, places, elements, axis=0), inner)
        if output_shape is None:
            return out
        behind = tuple(want - have for want, have in zip(output_shape, inner, strict=True))
        return xp.pad(out, (0,) * len(inner), behind)

    def vjp(
        self,
        xp: Namespace,
        grad: Array,
        out: Array,
        x: Array,
        indices: Array,
        *output_shape: tuple[int, ...] | None,
        **how: Any,
    ) -> tuple[Any, ...]:
        inner = self._inner(x.shape, **how)
        rank, count = len(inner), prod(x.shape)
        own = grad
        if grad.shape != inner:
            own = xp.slice(grad, (0,) * rank, inner, (1,) * rank)
        places = xp.reshape(indices, (count,))
        order = xp.cumulative_sum(xp.full((count,), 1, "int64"), axis=0)
        last = xp.scatter(xp.full((prod(inner),), 0, "int64"), places, order, axis=0)
        is_last = xp.equal(xp.take(last, places, axis=0), order)
        found = xp.where(is_last, xp.take(xp.reshape(own, (prod(inner),)), places, axis=0), 0.0)
        return (xp.reshape(found, x.shape), *(None for _ in (indices, *output_shape)))

    def _inner(
        self, shape: Shape, kernel_shape: Shape, pads: Shape | None, strides: Shape | None
    ) -> Shape:
        """The shape that indices count in."""
        rank = len(shape) - 2
        kernel = numbers("kernel_shape", kernel_shape, rank, 1, 1)
        steps = numbers("strides", strides, rank, 1, 1)
        padding = numbers("pads", pads, 2 * rank, 0, 0)
        found = tuple(
            (count - 1) * step + size - before - after
            for count, step, size, before, after in zip(
                shape[2:], steps, kernel, padding[:rank], padding[rank:], strict=True
            )
        )
        for axis, size in enumerate(found):
            if size < 1:
                raise Invalid(
                    "SHAPE_MISMATCH",
                    f"spatial axis {axis} of the output would have size {size}; pads are too many",
                )
        return (*shape[:2], *found)
