"""Quantized models with the gradients of the layers that they approximate (straight-through).

Rounding has gradient 0 nearly everywhere, and integers have none. So each integer that stands for
a real number has a stand-in beside it: the same number as a float, with the gradient of what was
rounded. Where integers become floats again, the value stays bit by bit what it is, and the
gradient goes on through the stand-in.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from gradwire import operators, tensors
from gradwire.builder import Handle
from gradwire.modules import module
from gradwire.onnx.values import Origin, Value, shape_of
from gradwire.signatures import SIGNATURES

if TYPE_CHECKING:
    from gradwire.onnx.reading import Reader

#: Operators on integers whose stand-in is the same operator on those of their inputs.
_LIKEWISE = (
    "Add", "Clip", "Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "GatherElements",
    "GatherND", "Identity", "Max", "MaxPool", "Min", "Mul", "Neg", "Pad", "Relu", "Reshape",
    "Slice", "SpaceToDepth", "Split", "Squeeze", "Sub", "Tile", "Transpose", "Unsqueeze", "Where",
)  # fmt: skip
#: The range of what is rounded to a data type; wider integers hold what any model has.
_RANGES = {
    "int2": (-2, 1), "uint2": (0, 3), "int4": (-8, 7), "uint4": (0, 15), "int8": (-128, 127),
    "uint8": (0, 255), "int16": (-32768, 32767), "uint16": (0, 65535),
    "float8_e4m3fn": (-448, 448), "float8_e4m3fnuz": (-240, 240), "float8_e5m2": (-57344, 57344),
    "float8_e5m2fnuz": (-57344, 57344),
}  # fmt: skip


@module
def straight_through(value: Handle, stand_in: Handle) -> Handle:
    """The value, with its gradient and that of what stands in for it."""
    return operators.identity(value)


@straight_through.gradient
def _straight_gradient(
    value: Handle, stand_in: Handle, out: Handle, grad: Handle
) -> tuple[Handle, Handle]:
    return grad, grad


@module
def stop_gradient(value: Handle) -> Handle:
    """The value, without a gradient."""
    return operators.identity(value)


@stop_gradient.gradient
def _no_gradient(value: Handle, out: Handle, grad: Handle) -> tuple[None]:
    return (None,)


def with_gradients(reader: Reader, made: Origin) -> list[Value]:
    """The outputs of a new node; those that are floats again have the gradients of stand-ins."""
    rule = _RULES.get(made.operator)
    if rule is not None:
        return rule(_Node(reader, made))
    return made.outputs


@dataclass(frozen=True)
class _Node:
    """A new node, and what its rule adds to the graph, to which no rule applies."""

    reader: Reader
    made: Origin

    def input(self, slot: int) -> Value | None:
        inputs = self.made.inputs
        return inputs[slot] if slot < len(inputs) else None

    def required(self, slot: int) -> Value:
        value = self.input(slot)
        assert value is not None
        return value

    def add(self, operator: str, *inputs: Value | None, **attributes: object) -> Value:
        return self.reader.emit_plain(operator, inputs, attributes)[0]

    def cast(self, value: Value, dtype: str) -> Value:
        if value.dtype == dtype:
            return value
        return self.add("Cast", value, to=int(tensors.data_type(dtype)))

    def real(self, value: Value, dtype: str) -> Value:
        """What stands in for integers, or these as floats."""
        return self.cast(value if value.stand_in is None else value.stand_in(), dtype)

    def straight(self, value: Value, stand_in: Value) -> Value:
        """The value with the gradient of a stand-in of its shape."""
        handle = self.reader.handle
        return self._like(value, straight_through(handle(value), handle(stand_in)))

    def stopped(self, value: Value) -> Value:
        return self._like(value, stop_gradient(self.reader.handle(value)))

    def _like(self, value: Value, handle: Handle) -> Value:
        found = Value(handle=handle, of_floats=True)
        found.origin = Origin("Identity", [value], {}, [found])
        return found

    def spread(self, value: Value, over: Value) -> Value:
        """A scale or zero point, of one element, an axis or blocks, over floats of a shape."""
        shape = shape_of(value)
        if shape is not None and set(shape) <= {1}:
            return value
        ones = self.cast(self.add("Not", self.add("Less", over, over)), "int8")
        layout = {
            name: each
            for name, each in self.made.attributes.items()
            if name in ("axis", "block_size")
        }
        return self.cast(self.add("DequantizeLinear", ones, value, **layout), over.dtype)

    def limited(self, value: Value, dtype: str, beyond: float) -> Value:
        """Inside the range of a data type and a bit beyond, where numbers round into it."""
        if dtype not in _RANGES:
            return value
        low, high = _RANGES[dtype]
        more = 0.0 if dtype.startswith("float") else beyond
        bounds = (self.reader.constant(each, value.dtype) for each in (low - more, high + more))
        return self.add("Clip", value, *bounds)

    def number(self, x: Value, scale: Value, zero: Value | None, dtype: str) -> Value:
        """x as QuantizeLinear has it before it rounds."""
        scale = self.cast(scale, x.dtype)
        found = self.add("Div", x, self.spread(scale, x))
        if zero is not None:
            found = self.add("Add", found, self.spread(self.cast(zero, x.dtype), x))
        return self.limited(found, dtype, 0.5)


def _stands(node: _Node, stand_in: Callable[[], Value]) -> list[Value]:
    """The outputs, the first of which has a stand-in, made if it is wanted."""
    node.made.outputs[0].stand_in = cache(stand_in)
    return node.made.outputs


def _quantize(node: _Node) -> list[Value]:
    """(x / scale + zero point), inside the range; to the scale as learned steps have it (LSQ)."""
    x, out = node.required(0), node.made.outputs[0]
    if x.dtype not in tensors.FLOATS and x.stand_in is None:
        return node.made.outputs
    scale = node.required(1)

    def stand_in() -> Value:
        real = node.real(x, scale.dtype if x.dtype not in tensors.FLOATS else x.dtype)
        number = node.number(real, scale, node.input(2), out.dtype)
        return node.straight(node.cast(out, real.dtype), number)

    return _stands(node, stand_in)


def _quantize_dynamically(node: _Node) -> list[Value]:
    """x / scale; the scale, which follows x, has no gradient of its own."""
    x, (out, scale, zero) = node.required(0), node.made.outputs
    fixed = node.stopped(scale)
    out.stand_in = cache(lambda: node.straight(node.cast(out, x.dtype), node.add("Div", x, fixed)))
    return [out, fixed, zero]


def _dequantize(node: _Node) -> list[Value]:
    """The stand-in times the scale, which has its gradient from the node itself."""
    quantized, (out,) = node.required(0), node.made.outputs
    if quantized.stand_in is None:
        return node.made.outputs
    scale = node.spread(node.stopped(node.required(1)), out)
    real = node.real(quantized, out.dtype)
    return [node.straight(out, node.add("Mul", real, node.cast(scale, out.dtype)))]


def _cast(node: _Node) -> list[Value]:
    x, (out,) = node.required(0), node.made.outputs
    if out.dtype == "bool" or x.dtype == "bool":
        return node.made.outputs
    if x.dtype in tensors.FLOATS and out.dtype not in tensors.FLOATS:
        return _stands(
            node,
            lambda: node.straight(node.cast(out, x.dtype), node.limited(x, out.dtype, 1.0)),
        )
    if x.stand_in is None:
        return node.made.outputs
    if out.dtype in tensors.FLOATS:
        return [node.straight(out, node.real(x, out.dtype))]
    return _stands(node, x.stand_in)


def _round(node: _Node) -> list[Value]:
    (out,) = node.made.outputs
    return [node.straight(out, node.required(0))]


def _product(node: _Node) -> list[Value]:
    """A product, or a convolution, of integers less their zero points."""
    a, b = node.required(0), node.required(1)
    if a.stand_in is None and b.stand_in is None:
        return node.made.outputs
    is_conv = node.made.operator == "ConvInteger"

    def stand_in() -> Value:
        parts = []
        for slot, each in enumerate((a, b)):
            real, zero = node.real(each, "float32"), node.input(2 + slot)
            if zero is not None:
                lying = node.cast(zero, "float32")
                behind = _axes_behind(zero, each, is_conv, slot)
                if behind:
                    lying = node.add("Unsqueeze", lying, node.reader.constant(behind))
                real = node.add("Sub", real, lying)
            parts.append(real)
        if is_conv:
            return node.add("Conv", *parts, **node.made.attributes)
        return node.add("MatMul", *parts)

    return _stands(node, stand_in)


def _axes_behind(zero: Value, whole: Value, is_conv: bool, slot: int) -> list[int]:
    """Axes to put behind zero points, one for each row of a matrix, or for each filter."""
    shape, rank = shape_of(zero), len(shape_of(whole) or ())
    if shape is None or len(shape) != 1 or shape == (1,):
        return []
    if is_conv:
        return [*range(1, rank)]
    return [] if slot else [1]


def _quantized_product(node: _Node) -> list[Value]:
    """Products between DequantizeLinear and QuantizeLinear."""
    (out,) = node.made.outputs
    if all(node.required(slot).stand_in is None for slot in (0, 3)):
        return node.made.outputs

    def stand_in() -> Value:
        reals = [
            node.reader.one(
                "DequantizeLinear",
                node.required(slot),
                node.required(slot + 1),
                node.input(slot + 2),
            )
            for slot in (0, 3)
        ]
        product = node.add("MatMul", *reals)
        number = node.number(product, node.required(6), node.input(7), out.dtype)
        return node.straight(node.cast(out, product.dtype), number)

    return _stands(node, stand_in)


def _likewise(node: _Node) -> list[Value]:
    """The same operator on what stands in for its inputs."""
    made = node.made
    declared = SIGNATURES[made.operator].declared_inputs(len(made.inputs))
    standing = [
        (slot, each)
        for each, slot in zip(made.inputs, declared, strict=True)
        if each is not None and each.stand_in is not None
    ]
    if not standing or made.outputs[0].dtype in tensors.FLOATS:
        return made.outputs
    group = standing[0][0].group

    @cache
    def stand_ins() -> list[Value]:
        stand_in = standing[0][1].stand_in
        assert stand_in is not None
        dtype = stand_in().dtype
        inputs = [
            node.real(each, dtype) if each is not None and slot.group == group else each
            for each, slot in zip(made.inputs, declared, strict=True)
        ]
        return node.reader.emit_plain(made.operator, inputs, made.attributes, len(made.outputs))

    for place, out in enumerate(made.outputs):
        if out.dtype == standing[0][1].dtype:
            out.stand_in = lambda place=place: stand_ins()[place]
    return made.outputs


_RULES: dict[str, Callable[[_Node], list[Value]]] = {
    **dict.fromkeys(_LIKEWISE, _likewise),
    "Cast": _cast,
    "Ceil": _round,
    "ConvInteger": _product,
    "DequantizeLinear": _dequantize,
    "DynamicQuantizeLinear": _quantize_dynamically,
    "Floor": _round,
    "MatMulInteger": _product,
    "QLinearMatMul": _quantized_product,
    "QuantizeLinear": _quantize,
    "Round": _round,
}
