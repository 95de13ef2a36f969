"""The namespace `xp` that records gates, and the handles that they are given there.

It offers the functions that a vjp may use, each as one gate or a few; so the set of gates is
closed under differentiation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np

from gradwire_server import arrays
from gradwire_server.array_slopes import TANH_TAIL
from gradwire_server.errors import OverLimit
from gradwire_server.gates.windows import Windows
from gradwire_server.graph import Row
from gradwire_server.limits import Limits
from gradwire_server.plan import known_spec
from gradwire_server.specs import ONNX_NUMBERS, Shape, Tensor, TensorSpec, attributes_key
from gradwire_server.stopping import stop_if_asked

_FULL_SIZE = 64  # a larger tensor of one number is recorded as Expand of a scalar


class Handle:
    """A value that will be computed when the recorded graph is evaluated."""

    __array_ufunc__ = None
    __hash__ = object.__hash__

    def __init__(self, recorder: Recorder, key: tuple[Any, ...], spec: TensorSpec) -> None:
        self.recorder = recorder
        self.key = key
        self.spec = spec
        self.shape = spec.shape
        self.dtype = spec.dtype

    def __bool__(self) -> bool:
        raise TypeError("a gate may not branch on a value; use xp.where")

    def __neg__(self) -> Handle:
        return self.recorder.negative(self)

    def __add__(self, other: Any) -> Handle:
        return self.recorder.add(self, other)

    def __radd__(self, other: Any) -> Handle:
        return self.recorder.add(other, self)

    def __sub__(self, other: Any) -> Handle:
        return self.recorder.subtract(self, other)

    def __rsub__(self, other: Any) -> Handle:
        return self.recorder.subtract(other, self)

    def __mul__(self, other: Any) -> Handle:
        return self.recorder.multiply(self, other)

    def __rmul__(self, other: Any) -> Handle:
        return self.recorder.multiply(other, self)

    def __truediv__(self, other: Any) -> Handle:
        return self.recorder.divide(self, other)

    def __rtruediv__(self, other: Any) -> Handle:
        return self.recorder.divide(other, self)

    def __pow__(self, other: Any) -> Handle:
        return self.recorder.pow(self, other)


def _elementwise(operator: str) -> Callable[..., Handle]:
    def record(self: Recorder, *operands: Any) -> Handle:
        found: Handle = self.apply(operator, *self.lift(operands))
        return found

    return record


def _reduction(operator: str) -> Callable[..., Handle]:
    def record(self: Recorder, x: Handle, axis: tuple[int, ...], keepdims: bool = False) -> Handle:
        axes = self.integers(axis)
        found: Handle = self.apply(
            operator, x, axes, keepdims=int(keepdims), noop_with_empty_axes=1
        )
        return found

    return record


class Recorder:
    """An array namespace that records gates."""

    abs = _elementwise("Abs")
    acos = _elementwise("Acos")
    acosh = _elementwise("Acosh")
    add = _elementwise("Add")
    asin = _elementwise("Asin")
    asinh = _elementwise("Asinh")
    atan = _elementwise("Atan")
    atanh = _elementwise("Atanh")
    ceil = _elementwise("Ceil")
    cofactor = _elementwise("Cofactor")
    cos = _elementwise("Cos")
    cosh = _elementwise("Cosh")
    det = _elementwise("Det")
    divide = _elementwise("Div")
    equal = _elementwise("Equal")
    erf = _elementwise("Erf")
    exp = _elementwise("Exp")
    floor = _elementwise("Floor")
    greater = _elementwise("Greater")
    greater_equal = _elementwise("GreaterOrEqual")
    isinf = _elementwise("IsInf")
    isnan = _elementwise("IsNaN")
    less = _elementwise("Less")
    less_equal = _elementwise("LessOrEqual")
    log = _elementwise("Log")
    logical_and = _elementwise("And")
    logical_not = _elementwise("Not")
    logical_or = _elementwise("Or")
    logical_xor = _elementwise("Xor")
    matmul = _elementwise("MatMul")
    maximum = _elementwise("Max")
    minimum = _elementwise("Min")
    multiply = _elementwise("Mul")
    negative = _elementwise("Neg")
    pow = _elementwise("Pow")
    remainder = _elementwise("Mod")
    round = _elementwise("Round")
    sign = _elementwise("Sign")
    sin = _elementwise("Sin")
    sinh = _elementwise("Sinh")
    sqrt = _elementwise("Sqrt")
    subtract = _elementwise("Sub")
    tan = _elementwise("Tan")
    tanh = _elementwise("Tanh")

    max = _reduction("ReduceMax")
    mean = _reduction("ReduceMean")
    min = _reduction("ReduceMin")
    prod = _reduction("ReduceProd")
    sum = _reduction("ReduceSum")

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.nodes: list[tuple[int, tuple[tuple[Any, ...] | None, ...]]] = []
        self.rows: dict[tuple[Any, ...], int] = {}
        self.row_list: list[Row] = []
        self.constants: dict[tuple[str, Shape, bytes], tuple[Handle, Tensor]] = {}

    def apply(
        self, operator: str, *inputs: Handle | None, outputs: int = 1, **attributes: Any
    ) -> Any:
        """Records a node; its output, or a tuple of them where there are several."""
        given = {name: value for name, value in attributes.items() if value is not None}
        while inputs and inputs[-1] is None:
            inputs = inputs[:-1]
        found = self.apply_row(Row(operator, given, len(inputs), outputs), inputs)
        return found if outputs > 1 else found[0]

    def apply_row(self, row: Row, inputs: Sequence[Handle | None]) -> tuple[Handle, ...]:
        """Records a node of a gates table's row; its outputs."""
        given = row.attributes
        specs = row.gate.check(tuple(None if each is None else each.spec for each in inputs), given)
        key = (
            row.operator, row.own, attributes_key(given.items()), len(inputs), row.output_count
        )  # fmt: skip
        number = self.rows.setdefault(key, len(self.rows))
        if number == len(self.row_list):
            self.row_list.append(row)
        if len(self.nodes) >= self._limits.max_nodes:
            raise OverLimit.of(
                "max-nodes", self._limits.max_nodes, len(self.nodes) + 1, "number of nodes"
            )
        self.nodes.append((number, tuple(None if each is None else each.key for each in inputs)))
        node = len(self.nodes) - 1
        return tuple(
            Handle(self, ("node", node, slot), spec)
            for slot, spec in enumerate(specs[: row.output_count])
        )

    def constant(self, tensor: Tensor) -> Handle:
        """A stored tensor; equal ones are stored once."""
        key = (tensor.dtype, tensor.shape, tensor.data)
        if key not in self.constants:
            spec = known_spec(arrays.constant(tensor))
            name = ("constant", len(self.constants))
            self.constants[key] = Handle(self, name, spec), tensor
        return self.constants[key][0]

    def stop_if_asked(self) -> None:
        """Between two steps of a long gate (Stopped)."""
        stop_if_asked()

    def number(self, value: float, dtype: str) -> Handle:
        """A scalar constant."""
        return self.constant(tensor_of(np.array(value, dtype)))

    def integers(self, values: Sequence[int]) -> Handle:
        """A vector of int64, such as axes."""
        return self.constant(tensor_of(np.array(values, np.int64)))

    def lift(self, operands: Sequence[Any]) -> list[Handle]:
        """Python scalars as constants of the handles' data type."""
        dtype = next(each.dtype for each in operands if isinstance(each, Handle))
        return [each if isinstance(each, Handle) else self.number(each, dtype) for each in operands]

    def ndtr(self, x: Handle) -> Handle:
        """The normal distribution's share below x; no operator has the digits of its tail."""
        return 0.5 + 0.5 * self.erf(np.sqrt(0.5) * x)

    def sigmoid_slope(self, x: Handle, out: Handle) -> Handle:
        return out / (1.0 + self.exp(x))

    def tanh_slope(self, x: Handle, out: Handle) -> Handle:
        size, steep = self.abs(x), 1.0 + self.abs(out)
        tail = self.exp(-2.0 * size) * steep * steep
        return self.where(self.greater(size, TANH_TAIL), tail, 1.0 - out * out)

    def expm1(self, x: Handle) -> Handle:
        """exp(x) - 1, as a product that does not cancel."""
        half = 0.5 * x
        return 2.0 * self.sinh(half) * self.exp(half)

    def log1p(self, x: Handle) -> Handle:
        """log(1 + x); up to 1 by a function whose value at 0 is 0."""
        is_large = self.greater(x, 1.0)
        small = self.where(is_large, 0.0, x)
        near = 2.0 * self.atanh(small / (small + 2.0))
        return self.where(is_large, self.log(1.0 + x), near)

    def where(self, condition: Handle, x: Any, y: Any) -> Handle:
        found: Handle = self.apply("Where", condition, *self.lift((x, y)))
        return found

    def astype(self, x: Handle, dtype: str) -> Handle:
        found: Handle = self.apply("Cast", x, to=ONNX_NUMBERS[str(dtype)])
        return found

    def full(self, shape: Shape, fill: float, dtype: str) -> Handle:
        if prod(shape) <= _FULL_SIZE:
            return self.constant(tensor_of(np.full(shape, fill, dtype)))
        return self.broadcast_to(self.number(fill, dtype), shape)

    def full_like(self, x: Handle, fill: float) -> Handle:
        return self.full(x.shape, fill, x.dtype)

    def zeros_like(self, x: Handle) -> Handle:
        return self.full(x.shape, 0, x.dtype)

    def ones_like(self, x: Handle) -> Handle:
        return self.full(x.shape, 1, x.dtype)

    def reshape(self, x: Handle, shape: Shape) -> Handle:
        if x.shape == tuple(shape):
            return x
        found: Handle = self.apply("Reshape", x, self.integers(shape), allowzero=1)
        return found

    def broadcast_to(self, x: Handle, shape: Shape) -> Handle:
        found: Handle = self.apply("Expand", x, self.integers(shape))
        return found

    def permute_dims(self, x: Handle, axes: Sequence[int]) -> Handle:
        found: Handle = self.apply("Transpose", x, perm=tuple(axes))
        return found

    def expand_dims(self, x: Handle, axis: int | tuple[int, ...]) -> Handle:
        axes = axis if isinstance(axis, tuple) else (axis,)
        found: Handle = self.apply("Unsqueeze", x, self.integers(axes))
        return found

    def squeeze(self, x: Handle, axis: int | tuple[int, ...]) -> Handle:
        axes = axis if isinstance(axis, tuple) else (axis,)
        if not axes:
            return x
        found: Handle = self.apply("Squeeze", x, self.integers(axes))
        return found

    def concat(self, parts: Sequence[Handle], axis: int = 0) -> Handle:
        found: Handle = self.apply("Concat", *parts, axis=axis)
        return found

    def split(self, x: Handle, sizes: tuple[int, ...], axis: int) -> tuple[Handle, ...]:
        found = self.apply("Split", x, self.integers(sizes), outputs=len(sizes), axis=axis)
        return found if isinstance(found, tuple) else (found,)

    def slice(
        self,
        x: Handle,
        starts: tuple[int, ...],
        stops: tuple[int | None, ...],
        steps: tuple[int, ...],
    ) -> Handle:
        far = np.iinfo(np.int64).max
        ends = tuple(
            (far if step > 0 else -far) if stop is None else stop
            for stop, step in zip(stops, steps, strict=True)
        )
        axes = tuple(range(len(starts)))
        found: Handle = self.apply("Slice", x, *map(self.integers, (starts, ends, axes, steps)))
        return found

    def pad(
        self, x: Handle, before: Shape, after: Shape, mode: str = "constant", fill: Any = 0
    ) -> Handle:
        value = fill if isinstance(fill, Handle) else None
        if value is None and fill:
            value = self.number(fill, x.dtype)
        found: Handle = self.apply("Pad", x, self.integers((*before, *after)), value, mode=mode)
        return found

    def tile(self, x: Handle, repeats: Sequence[int]) -> Handle:
        found: Handle = self.apply("Tile", x, self.integers(repeats))
        return found

    def take(self, x: Handle, indices: Handle, axis: int = 0) -> Handle:
        found: Handle = self.apply("Gather", x, indices, axis=axis)
        return found

    def take_along_axis(self, x: Handle, indices: Handle, axis: int) -> Handle:
        found: Handle = self.apply("GatherElements", x, indices, axis=axis)
        return found

    def scatter(
        self, x: Handle, indices: Handle, updates: Handle, axis: int, reduction: str = "none"
    ) -> Handle:
        found: Handle = self.apply(
            "ScatterElements", x, indices, updates, axis=axis, reduction=reduction
        )
        return found

    def gather_nd(self, x: Handle, indices: Handle, batch_axes: int) -> Handle:
        found: Handle = self.apply("GatherND", x, indices, batch_dims=batch_axes)
        return found

    def scatter_nd(
        self, x: Handle, indices: Handle, updates: Handle, reduction: str = "none"
    ) -> Handle:
        found: Handle = self.apply("ScatterND", x, indices, updates, reduction=reduction)
        return found

    def top_indices(self, x: Handle, count: int, axis: int, largest: bool) -> Handle:
        known = self.integers((count,))
        _, found = self.apply("TopK", x, known, outputs=2, axis=axis, largest=int(largest))
        places: Handle = found
        return places

    def dft(self, x: Handle, length: int, axis: int, inverse: int, onesided: int) -> Handle:
        numbers = self.number(length, "int64"), self.number(axis, "int64")
        found: Handle = self.apply("DFT", x, *numbers, inverse=inverse, onesided=onesided)
        return found

    def dropout(self, x: Handle, ratio: float, seed: int) -> Handle:
        known = self.number(ratio, "float64"), self.number(True, "bool")
        found: Handle = self.apply("Dropout", x, *known, seed=seed)
        return found

    def roi_argmax(self, x: Handle, rois: Handle, bins: Shape, scale: float) -> Handle:
        found: Handle = self.apply(
            "RoiArgMax", x, rois, pooled_shape=tuple(bins), spatial_scale=scale
        )
        return found

    def triangle(self, x: Handle, k: int, upper: bool) -> Handle:
        found: Handle = self.apply("Trilu", x, self.number(k, "int64"), upper=int(upper))
        return found

    def cumulative_sum(
        self, x: Handle, axis: int, exclusive: bool = False, reverse: bool = False
    ) -> Handle:
        along = self.number(axis, "int64")
        found: Handle = self.apply(
            "CumSum", x, along, exclusive=int(exclusive), reverse=int(reverse)
        )
        return found

    def cumulative_product(
        self, x: Handle, axis: int, exclusive: bool = False, reverse: bool = False
    ) -> Handle:
        along = self.number(axis, "int64")
        found: Handle = self.apply(
            "CumProd", x, along, exclusive=int(exclusive), reverse=int(reverse)
        )
        return found

    def einsum(self, equation: str, *operands: Handle) -> Handle:
        found: Handle = self.apply("Einsum", *operands, equation=equation)
        return found

    def convolve(self, x: Handle, w: Handle, windows: Windows, group: int = 1) -> Handle:
        pads = (*windows.before, *_behind(windows, x.shape[2:]))
        found = self.apply("Conv", x, w, group=group, pads=pads, **_steps(windows))
        return self._cut(found, windows.counts)

    def convolve_transposed(
        self, x: Handle, w: Handle, windows: Windows, sizes: Shape, group: int = 1
    ) -> Handle:
        room = tuple(
            reach - before - size
            for reach, before, size in zip(windows.reach, windows.before, sizes, strict=True)
        )
        # ONNX allows fewer than a step of output padding
        extra = tuple(
            min(max(0, -each), max(stride, dilation) - 1)
            for each, stride, dilation in zip(room, windows.strides, windows.dilations, strict=True)
        )
        pads = (*windows.before, *(max(0, each) for each in room))
        found: Handle = self.apply(
            "ConvTranspose", x, w, group=group, pads=pads, output_padding=extra, **_steps(windows)
        )
        missing = tuple(max(0, -each) - padded for each, padded in zip(room, extra, strict=True))
        if any(missing):
            found = self.pad(found, (0,) * len(found.shape), (0, 0, *missing))
        return found

    def convolve_weights(self, x: Handle, grad: Handle, windows: Windows, group: int = 1) -> Handle:
        """A convolution of x by grad, with images for channels, and strides for dilations."""
        images, channels, *sizes = x.shape
        others = range(2, len(x.shape))
        grouped = self.reshape(x, (images, group, channels // group, *sizes))
        by_channel = self.permute_dims(grouped, (2, 1, 0, *(axis + 1 for axis in others)))
        mixed = self.reshape(by_channel, (channels // group, group * images, *sizes))
        by_feature = self.permute_dims(grad, (1, 0, *others))
        turned = replace(
            windows,
            kernel=windows.counts,
            counts=windows.kernel,
            strides=windows.dilations,
            dilations=windows.strides,
        )
        found = self.convolve(mixed, by_feature, turned, group)
        return self.permute_dims(found, (1, 0, *others))

    def sum_windows(self, x: Handle, windows: Windows) -> Handle:
        """A convolution of each channel by ones."""
        channels = self.reshape(x, (prod(x.shape[:2]), 1, *x.shape[2:]))
        ones = self.full((1, 1, *windows.kernel), 1, x.dtype)
        found = self.convolve(channels, ones, windows)
        return self.reshape(found, (*x.shape[:2], *windows.counts))

    def spread_windows(self, grad: Handle, windows: Windows, sizes: Shape) -> Handle:
        channels = self.reshape(grad, (prod(grad.shape[:2]), 1, *grad.shape[2:]))
        ones = self.full((1, 1, *windows.kernel), 1, grad.dtype)
        found = self.convolve_transposed(channels, ones, windows, sizes)
        return self.reshape(found, (*grad.shape[:2], *sizes))

    def spread_largest(self, grad: Handle, largest: Handle, x: Handle, windows: Windows) -> Handle:
        pads = (*windows.before, *_behind(windows, x.shape[2:]))
        _, indices = self.apply("MaxPool", x, outputs=2, pads=pads, **_steps(windows))
        flat = self.zeros_like(self.reshape(x, (prod(x.shape),)))
        places, grads = (self.reshape(each, (prod(grad.shape),)) for each in (indices, grad))
        return self.reshape(self.scatter(flat, places, grads, 0, "add"), x.shape)

    def argmax(self, x: Handle, axis: int, keepdims: bool = False) -> Handle:
        found: Handle = self.apply("ArgMax", x, axis=axis, keepdims=int(keepdims))
        return found

    def _cut(self, x: Handle, sizes: Shape) -> Handle:
        """The first elements along the spatial axes."""
        if x.shape[2:] == sizes:
            return x
        rank = len(x.shape)
        return self.slice(x, (0,) * rank, (*x.shape[:2], *sizes), (1,) * rank)


def _behind(windows: Windows, sizes: Shape) -> Shape:
    """Padding that the last windows reach into."""
    return tuple(
        max(0, reach - before - size)
        for reach, before, size in zip(windows.reach, windows.before, sizes, strict=True)
    )


def _steps(windows: Windows) -> dict[str, Any]:
    return {
        "kernel_shape": windows.kernel,
        "strides": windows.strides,
        "dilations": windows.dilations,
    }


def tensor_of(array: Any) -> Tensor:
    """An array as it is stored."""
    little_endian = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return Tensor(str(array.dtype), array.shape, little_endian.tobytes())
