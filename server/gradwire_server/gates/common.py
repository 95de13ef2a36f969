"""What several families share: known integers, constants, and places along an axis."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from math import prod
from typing import Any

from gradwire_server.errors import Invalid
from gradwire_server.gates.base import Array, Input, Namespace
from gradwire_server.specs import (
    ITEM_SIZES,
    LARGEST,
    ONNX_NUMBERS,
    Shape,
    Tensor,
    TensorSpec,
    broadcast_shapes,
    short,
)

Ints = tuple[int, ...]


def known(name: str, optional: bool = False, group: str = "I") -> Input:
    """An input of int64s that are needed to plan."""
    return Input(name, ("int64",), group, optional=optional, known=True)


def ints(*values: int) -> TensorSpec:
    """A known vector of int64, for the tables below."""
    return TensorSpec((len(values),), "int64", values)


def integers(xp: Namespace, values: Iterable[int], shape: Shape) -> Array:
    """Constant int64s."""
    return xp.constant(Tensor("int64", shape, array("q", values).tobytes()))


def floats(xp: Namespace, values: Iterable[float], shape: Shape, dtype: str) -> Array:
    """Constant numbers of a floating data type."""
    return xp.constant(Tensor(dtype, shape, array(_FLOAT_CODES[dtype], values).tobytes()))


def checked_shape(shape: Shape, what: str) -> Shape:
    """A shape that was computed from numbers in the graph (SHAPE_MISMATCH)."""
    if any(size < 0 for size in shape) or prod(max(size, 1) for size in shape) >= LARGEST:
        raise Invalid(
            "SHAPE_MISMATCH", f"{what} gives the shape {short(shape)}, which no tensor has"
        )
    return shape


def matmul_shape(a: Shape, b: Shape, names: tuple[str, str] = ("A", "B")) -> Shape:
    """The shape of a matrix product (SHAPE_MISMATCH)."""
    for name, shape in zip(names, (a, b), strict=True):
        if not shape:
            raise Invalid(
                "SHAPE_MISMATCH", f"{name} has rank 0; MatMul needs rank 1 or more, use Mul"
            )
    rows = b[-2] if len(b) > 1 else b[0]
    if a[-1] != rows:
        raise Invalid(
            "SHAPE_MISMATCH",
            f"{names[0]} has {a[-1]} {'columns' if len(a) > 1 else 'elements'} but "
            f"{names[1]} has {rows} {'rows' if len(b) > 1 else 'elements'}",
        )
    try:
        batch = broadcast_shapes(a[:-2], b[:-2])
    except Invalid as refusal:
        raise refusal.at(f"batch axes of {names[0]} and {names[1]}") from None
    return (*batch, *a[-2:-1], *(b[-1:] if len(b) > 1 else ()))


def vector_shape(axis: int, size: int, rank: int) -> Shape:
    """The shape of a vector that lies along one axis."""
    return (1,) * axis + (size,) + (1,) * (rank - axis - 1)


def scatter_along(
    xp: Namespace, grad: Array, positions: Sequence[int], shape: Shape, axis: int
) -> Array:
    """Zeros of a shape, with the slices of grad added at the positions along one axis."""
    lying = integers(xp, positions, vector_shape(axis, len(positions), len(shape)))
    indices = xp.broadcast_to(lying, grad.shape)
    zeros = xp.full(shape, 0, str(grad.dtype))
    return xp.scatter(zeros, indices, grad, axis, "add")


def dtype_choices(dtypes: tuple[str, ...]) -> Ints:
    """ONNX's numbers of data types, for an attribute."""
    return tuple(sorted(ONNX_NUMBERS[dtype] for dtype in dtypes))


def dtype_numbered(number: int) -> str:
    """The data type that has ONNX's number."""
    return next(dtype for dtype, each in ONNX_NUMBERS.items() if each == number)


_FLOAT_CODES = {"float32": "f", "float64": "d"}
_ARRAY_CODES = {
    "bool": "b", "int8": "b", "int16": "h", "int32": "i", "int64": "q",
    "uint8": "B", "uint16": "H", "uint32": "I", "uint64": "Q",
}  # fmt: skip
assert all(array(code).itemsize == ITEM_SIZES[dtype] for dtype, code in _ARRAY_CODES.items())


def decode(tensor: Tensor) -> tuple[float, ...]:
    """The elements of an integer or boolean tensor."""
    found = array(_ARRAY_CODES[tensor.dtype], tensor.data).tolist()
    return tuple(map(bool, found)) if tensor.dtype == "bool" else tuple(found)


def sorting(elements: int, size: int) -> int:
    """Operations to sort elements in runs of a size: a comparison for each halving of a run."""
    return 2 * elements * max(1, size.bit_length())


def steps_along(attributes: dict[str, Any], name: str, count: int, least: int) -> Ints:
    """An attribute with a number for each axis; the least if left out (ATTRIBUTE_INVALID)."""
    found: Ints = attributes[name] or (least,) * count
    if len(found) != count or min(found, default=least) < least:
        raise Invalid(
            "ATTRIBUTE_INVALID",
            f"{name} is {found} but must be {count} numbers from {least} on",
            attribute=name,
        )
    return found


def block_counts(image: Shape, block: Shape, attributes: dict[str, Any]) -> Shape:
    """Number of blocks along each axis."""
    rank = len(image)
    strides = steps_along(attributes, "strides", rank, 1)
    dilations = steps_along(attributes, "dilations", rank, 1)
    pads = steps_along(attributes, "pads", 2 * rank, 0)
    return tuple(
        max((size + before + after - dilation * (k - 1) - 1) // stride + 1, 0)
        for size, k, stride, dilation, before, after in zip(
            image, block, strides, dilations, pads[:rank], pads[rank:], strict=True
        )
    )


def block_places(xp: Namespace, image: Ints, block: Ints, attributes: dict[str, Any]) -> Array:
    """Position in the image of each element of each block; one past its end for those outside."""
    rank = len(image)
    blocks = block_counts(tuple(image), tuple(block), attributes)
    strides = steps_along(attributes, "strides", rank, 1)
    dilations = steps_along(attributes, "dilations", rank, 1)
    pads = steps_along(attributes, "pads", 2 * rank, 0)
    place = integers(xp, (0,), (1,))
    inside = xp.equal(place, 0)
    for axis, size in enumerate(image):
        within = [k * dilations[axis] - pads[axis] for k in range(block[axis])]
        starts = [number * strides[axis] for number in range(blocks[axis])]
        along = integers(xp, within, vector_shape(axis, block[axis], 2 * rank)) + integers(
            xp, starts, vector_shape(rank + axis, blocks[axis], 2 * rank)
        )
        fits = xp.logical_and(xp.greater_equal(along, 0), xp.less(along, size))
        inside = xp.logical_and(inside, fits)
        place = place * size + along
    return xp.reshape(xp.where(inside, place, prod(image)), (prod(block) * prod(blocks),))
