"""The backward pass of a graph as a graph: every gate's own `vjp`, run on handles that record.

`Recorder` is the namespace `xp` that gates are given here. It offers the functions that a vjp may
use, each as one gate or a few; so the set of gates is closed under differentiation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from itertools import count
from math import prod
from typing import Any

import numpy as np

from gradwire_server import arrays
from gradwire_server.engine.array import sum_to_shape
from gradwire_server.errors import Invalid, OverLimit, Stopped
from gradwire_server.gates.windows import Windows
from gradwire_server.graph import (
    Graph,
    Leaf,
    Output,
    OwnGradient,
    Row,
    Rows,
    check_structure,
    leaves_to_differentiate,
)
from gradwire_server.limits import Limits
from gradwire_server.plan import Plan, bind_symbols, known_value, make_plan, reached, static_leaves
from gradwire_server.specs import HALVES, ONNX_NUMBERS, Shape, Tensor, TensorSpec

_FULL_SIZE = 64  # a larger tensor of one number is recorded as Expand of a scalar
_BLOCK = 256  # nodes between two looks whether anybody still waits


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

    def __matmul__(self, other: Any) -> Handle:
        return self.recorder.matmul(self, other)


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
        attributes = tuple(sorted(given.items()))
        key = (row.operator, row.own, attributes, len(inputs), row.output_count)
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
            value = known_value(arrays.constant(tensor))
            spec = TensorSpec(tensor.shape, tensor.dtype, value)
            name = ("constant", len(self.constants))
            self.constants[key] = Handle(self, name, spec), tensor
        return self.constants[key][0]

    def number(self, value: float, dtype: str) -> Handle:
        """A scalar constant."""
        return self.constant(_tensor(np.array(value, dtype)))

    def integers(self, values: Sequence[int]) -> Handle:
        """A vector of int64, such as axes."""
        return self.constant(_tensor(np.array(values, np.int64)))

    def lift(self, operands: Sequence[Any]) -> list[Handle]:
        """Python scalars as constants of the handles' data type."""
        dtype = next(each.dtype for each in operands if isinstance(each, Handle))
        return [each if isinstance(each, Handle) else self.number(each, dtype) for each in operands]

    def where(self, condition: Handle, x: Any, y: Any) -> Handle:
        found: Handle = self.apply("Where", condition, *self.lift((x, y)))
        return found

    def astype(self, x: Handle, dtype: str) -> Handle:
        found: Handle = self.apply("Cast", x, to=ONNX_NUMBERS[str(dtype)])
        return found

    def full(self, shape: Shape, fill: float, dtype: str) -> Handle:
        if prod(shape) <= _FULL_SIZE:
            return self.constant(_tensor(np.full(shape, fill, dtype)))
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


def never() -> bool:
    """Nobody stops what was begun."""
    return False


def gradient_graph(
    graph: Graph,
    names: Sequence[str],
    sizes: Mapping[str, int],
    limits: Limits,
    stopped: Callable[[], bool] = never,
) -> Graph:
    """The backward pass of a graph: its leaves, and a seed for each floating output; its outputs,
    and a gradient for each leaf differentiated.

    New names begin with "grad/", or "grad2/", "grad3/"...: the first that no name has yet. Raises
    LEAF_UNKNOWN, NOT_DIFFERENTIABLE, SYMBOL_UNBOUND, and any refusal of a gate; Stopped, within a
    block of nodes, where nobody waits any more.
    """
    differentiated = leaves_to_differentiate(graph, names)
    plan = make_plan(graph, leaf_specs(graph, sizes))
    _require_short_axes(plan, limits)
    recorder = Recorder(limits)
    firsts = graph.leaf_first_ids
    values: list[Handle | None] = [None]
    for position, (leaf, first) in enumerate(zip(graph.leaves, firsts, strict=False)):
        values.extend(
            Handle(recorder, ("leaf", position, element), plan.spec(first + element))
            for element in range(leaf.id_count)
        )
    _record_forward(recorder, graph, values, stopped)
    prefix = _fresh_prefix(graph)
    seeds = _seed_leaves(graph, plan.spec, prefix)
    grads = _seed_grads(recorder, seeds, len(values))
    marks = [position in differentiated for position in range(len(graph.leaves))]
    needed = _needed(graph, plan.floating, marks)
    _record_backward(recorder, graph, values, grads, needed, stopped)
    outputs = [
        (
            f"{prefix}/{graph.leaves[position].name}",
            _leaf_gradient(recorder, graph, position, values, grads),
        )
        for position in differentiated
    ]
    found = _assemble(graph, recorder, [leaf for leaf, _ in seeds], values, outputs, plan.shape)
    check_structure(found, limits)
    return found


def _require_short_axes(plan: Plan, limits: Limits) -> None:
    """Refuses axes whose positions, which are recorded as constants, would not fit."""
    needed = 8 * max((size for spec in plan.specs for size in spec.shape), default=0)
    if needed > limits.max_memory_bytes:
        what = "bytes of positions along an axis"
        raise OverLimit.of("max-memory-bytes", limits.max_memory_bytes, needed, what)


def leaf_specs(graph: Graph, sizes: Mapping[str, int]) -> list[TensorSpec]:
    """What is known of each leaf before it is bound (SYMBOL_UNBOUND, SHAPE_MISMATCH)."""
    symbols = {symbol: (size, "symbol_sizes") for symbol, size in sizes.items()}
    for leaf in graph.leaves:
        if leaf.value is not None:
            bind_symbols(leaf, leaf.value.shape, symbols)
    static = static_leaves(graph)
    specs = []
    for position, leaf in enumerate(graph.leaves):
        for axis in leaf.axes:
            if isinstance(axis, str) and axis not in symbols:
                raise Invalid(
                    "SYMBOL_UNBOUND",
                    f"{leaf.place}: the size of {axis!r} is not known; give it in symbol_sizes "
                    "(in Python: sizes)",
                    symbol=axis,
                )
        shape = tuple(axis if isinstance(axis, int) else symbols[axis][0] for axis in leaf.axes)
        known = leaf.value is not None and position in static
        value = known_value(arrays.constant(leaf.value)) if known and leaf.value else None
        specs.append(TensorSpec(shape, leaf.dtype, value))
    return specs


def _record_forward(
    recorder: Recorder, graph: Graph, values: list[Handle | None], stopped: Callable[[], bool]
) -> None:
    inputs, starts = graph.node_inputs.tolist(), graph.input_starts.tolist()
    for node, number in enumerate(graph.node_rows.tolist()):
        if node % _BLOCK == 0 and stopped():
            raise Stopped
        row = graph.rows[number]
        given = [values[i] for i in inputs[starts[node] : starts[node + 1]]]
        try:
            values.extend(recorder.apply_row(row, given))
        except Invalid as refusal:
            raise refusal.at(graph.place_of(node), **graph.facts_of(node)) from None


def _record_backward(
    recorder: Recorder,
    graph: Graph,
    values: list[Any],
    grads: list[Any],
    needed: Sequence[bool],
    stopped: Callable[[], bool],
) -> None:
    inputs, starts = graph.node_inputs.tolist(), graph.input_starts.tolist()
    first_ids = graph.first_ids.tolist()
    halves = _Halves(recorder, values)
    # consumers first, so every gradient is complete when its node is reached
    for node in range(graph.node_count - 1, -1, -1):
        if node % _BLOCK == 0 and stopped():
            raise Stopped
        row = graph.rows[int(graph.node_rows[node])]
        ids = inputs[starts[node] : starts[node + 1]]
        outs = range(first_ids[node], first_ids[node + 1])
        own = slice(outs.start, outs.stop)
        if all(grad is None for grad in grads[own]) or not any(needed[i] for i in ids):
            continue
        halves.round(grads, outs)
        if row.own is not None:
            made = _record_own(
                recorder,
                row.own,
                [values[i] for i in ids],
                [values[i] for i in outs],
                grads[own],
                stopped,
            )
            for i, to_input in zip(ids, made, strict=False):
                if needed[i] and to_input is not None:
                    wide, before = halves.widened(to_input), halves.widened(grads[i])
                    grads[i] = wide if before is None else before + wide
            continue
        out: Any = halves.unrounded(row, ids, outs)
        grad: Any = tuple(map(halves.widened, grads[own]))
        if row.gate.outputs == (1, 1):
            (out,), (grad,) = out, grad
        declared = row.gate.declared_inputs(len(ids))
        given = [
            values[i].spec.value if each.flat and i else halves.widened(values[i])
            for each, i in zip(declared, ids, strict=True)
        ]
        entries = row.gate.vjp(recorder, grad, out, *given, **row.gate.complete(row.attributes))
        for i, entry in zip(ids, entries, strict=True):
            if needed[i] and entry is not None:
                to_input = entry() if callable(entry) else entry
                summed = sum_to_shape(recorder, to_input, values[i].shape)
                before = halves.widened(grads[i])
                grads[i] = summed if before is None else before + summed
    halves.round(grads, range(1, graph.leaf_first_ids[-1]))


def _record_own(
    recorder: Recorder,
    own: OwnGradient,
    inputs: Sequence[Any],
    outs: Sequence[Any],
    grads: Sequence[Any],
    stopped: Callable[[], bool],
) -> list[Handle | None]:
    """The gradients of a module's inputs, as its own gradient makes them."""
    gradient = own.gradient
    constants = [leaf.value for leaf in gradient.leaves if leaf.kind == "constant"]
    found: list[Any] = [
        None,
        *inputs[: len(gradient.outputs)],
        *outs,
        *(_or_zeros(recorder, grad, out) for grad, out in zip(grads, outs, strict=True)),
        *(recorder.constant(value) for value in constants if value is not None),
    ]
    _record_forward(recorder, gradient, found, stopped)
    ends = [output.value_ids.tolist() for output in gradient.outputs]
    return [found[end[0]] if end else None for end in ends]


def pull_row(
    recorder: Recorder,
    row: Row,
    inputs: Sequence[Any],
    outs: Sequence[Any],
    grads: Sequence[Any],
) -> list[Handle | None]:
    """The local gradient of a node of scalars, on its own: None for what has no gradient."""
    if row.own is not None:
        found = _record_own(recorder, row.own, inputs, outs, grads, never)
        return [*found, *[None] * len(outs)]
    out, grad = (outs, grads) if row.gate.outputs != (1, 1) else (outs[0], grads[0])
    entries = row.gate.vjp(recorder, grad, out, *inputs, **row.gate.complete(row.attributes))
    return [each() if callable(each) else each for each in entries]


class _Halves:
    """Half precision in a recorded backward pass, as the array engine has it: gradients are
    computed and summed in float32, and rounded once.
    """

    def __init__(self, recorder: Recorder, values: list[Any]) -> None:
        self._recorder = recorder
        self._values = values
        self._wide: dict[tuple[Any, ...], Handle] = {}

    def widened(self, x: Handle | None) -> Handle | None:
        """What is of half precision in float32, cast once; the rest as it is."""
        if x is None or x.dtype not in HALVES:
            return x
        if x.key not in self._wide:
            self._wide[x.key] = self._recorder.astype(x, "float32")
        return self._wide[x.key]

    def round(self, grads: list[Handle | None], ids: range) -> None:
        """Complete gradients, in their values' data types."""
        for i in ids:
            grad = grads[i]
            if grad is not None and grad.dtype != self._values[i].dtype in HALVES:
                grads[i] = self._recorder.astype(grad, self._values[i].dtype)

    def unrounded(self, row: Row, ids: Sequence[int], outs: range) -> tuple[Handle, ...]:
        """The outputs of a node before they are rounded; recorded again, if they are used."""
        found = tuple(self._values[i] for i in outs)
        if row.gate.takes_halves or not any(each.dtype in HALVES for each in found):
            return found

        @cache
        def again() -> tuple[Handle, ...]:
            given = [self.widened(self._values[i]) for i in ids]
            outputs = row.output_count
            wide = self._recorder.apply(row.operator, *given, outputs=outputs, **row.attributes)
            return wide if outputs > 1 else (wide,)

        def deferred(slot: int, half: Handle) -> Handle:
            spec = replace(half.spec, dtype="float32")
            return _Deferred(self._recorder, spec, lambda: again()[slot])

        return tuple(
            deferred(slot, each) if each.dtype in HALVES else each
            for slot, each in enumerate(found)
        )


class _Deferred(Handle):
    """A handle whose node is recorded when it is first used."""

    def __init__(self, recorder: Recorder, spec: TensorSpec, record: Callable[[], Handle]) -> None:
        self._record = record
        super().__init__(recorder, (), spec)

    @property
    def key(self) -> tuple[Any, ...]:
        return self._record().key

    @key.setter
    def key(self, _: tuple[Any, ...]) -> None:
        """It has that of what is recorded."""


def _needed(graph: Graph, floating: Any, marks: list[bool]) -> list[bool]:
    flags: list[bool] = (floating & reached(graph, marks)).tolist()
    return flags


def _fresh_prefix(graph: Graph) -> str:
    taken = {leaf.name for leaf in graph.leaves}
    taken |= {output.name for output in graph.outputs} | set(graph.all_names().values())
    for number in count(1):
        prefix = "grad" if number == 1 else f"grad{number}"
        if not any(name.startswith(f"{prefix}/") for name in taken):
            return prefix
    raise AssertionError("counting ends nowhere")


def _seed_leaves(
    graph: Graph, spec_of: Callable[[int], TensorSpec], prefix: str
) -> list[tuple[Leaf, Output]]:
    """An input for the seed of each floating output, 1 where the output has one element."""
    seeds = []
    for output in graph.outputs:
        spec = spec_of(int(output.value_ids[0]))
        if spec.is_floating:
            stacked = len(output.value_ids) > 1
            shape = (len(output.value_ids),) if stacked else spec.shape
            one = _tensor(np.ones(shape, spec.dtype)) if prod(shape) == 1 else None
            seeds.append(
                (Leaf("input", f"{prefix}/{output.name}", spec.dtype, shape, False, one), output)
            )
    return seeds


def _seed_grads(
    recorder: Recorder, seeds: list[tuple[Leaf, Output]], size: int
) -> list[Handle | None]:
    grads: list[Handle | None] = [None] * size
    for number, (leaf, output) in enumerate(seeds):
        shape = tuple(axis for axis in leaf.axes if isinstance(axis, int))
        seed = Handle(recorder, ("seed", number), TensorSpec(shape, leaf.dtype))
        ids = output.value_ids.tolist()
        for position, value_id in enumerate(ids):
            own = seed
            if len(ids) > 1:
                own = recorder.take(seed, recorder.number(position, "int64"))
            before = grads[value_id]
            grads[value_id] = own if before is None else before + own
    return grads


def _leaf_gradient(
    recorder: Recorder, graph: Graph, position: int, values: list[Any], grads: list[Handle | None]
) -> list[Handle]:
    """The values of the output that holds a leaf's gradient: one, or scalars to be stacked."""
    leaf, first = graph.leaves[position], graph.leaf_first_ids[position]
    ids = range(first, first + leaf.id_count)
    found = [_or_zeros(recorder, grads[i], values[i]) for i in ids]
    shape = tuple(axis for axis in leaf.axes if isinstance(axis, int))
    if not leaf.elements or (len(shape) == 1 and len(found) > 1) or not shape:
        return found
    if not found:
        return [recorder.full(shape, 0, leaf.dtype)]
    rows = [recorder.reshape(each, (1,)) for each in found]
    whole = recorder.concat(rows, axis=0) if len(rows) > 1 else rows[0]
    return [recorder.reshape(whole, shape)]


def _or_zeros(recorder: Recorder, grad: Handle | None, value: Handle) -> Handle:
    return recorder.zeros_like(value) if grad is None else grad


def _assemble(
    graph: Graph,
    recorder: Recorder,
    seeds: list[Leaf],
    values: list[Any],
    gradients: list[tuple[str, list[Handle]]],
    shape_of: Callable[[int], Shape],
) -> Graph:
    """Gives every handle its id: leaves come before nodes, and new ones were found on the way."""
    kinds = ("input", "parameter", "constant")
    placed: list[tuple[tuple[Any, ...], Leaf]] = []
    for kind in kinds:
        for position, leaf in enumerate(graph.leaves):
            if leaf.kind == kind:
                fixed = (
                    leaf
                    if leaf.elements
                    else replace(leaf, axes=shape_of(graph.leaf_first_ids[position]))
                )
                placed.append((("leaf", position), fixed))
        if kind == "input":
            placed.extend((("seed", number), leaf) for number, leaf in enumerate(seeds))
    for handle, tensor in recorder.constants.values():
        placed.append((handle.key, Leaf("constant", "", tensor.dtype, tensor.shape, False, tensor)))
    ids: dict[tuple[Any, ...], int] = {}
    next_id = 1
    for key, leaf in placed:
        for element in range(leaf.id_count):
            ids[(*key, element) if key[0] == "leaf" else key] = next_id
            next_id += 1
    for node, (number, _) in enumerate(recorder.nodes):
        for slot in range(recorder.row_list[number].output_count):
            ids[("node", node, slot)] = next_id
            next_id += 1
    kept = [
        Output(output.name, np.array([ids[values[i].key] for i in output.value_ids.tolist()]))
        for output in graph.outputs
    ]
    made = [
        Output(name, np.array([ids[handle.key] for handle in found], np.int64))
        for name, found in gradients
    ]
    return Graph(
        Rows(recorder.row_list),
        tuple(leaf for _, leaf in placed),
        np.array([number for number, _ in recorder.nodes], np.int64),
        np.array(
            [ids[key] if key else 0 for _, inputs in recorder.nodes for key in inputs], np.int64
        ),
        (*kept, *made),
        {ids[values[i].key]: name for i, name in graph.all_names().items()},
    )


def _tensor(array: Any) -> Tensor:
    little_endian = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return Tensor(str(array.dtype), array.shape, little_endian.tobytes())
