"""What several families share: known integers, constants, and places along an axis."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from math import prod

from gradwire_server.errors import Invalid
from gradwire_server.gates.base import Array, Input, Namespace
from gradwire_server.specs import ITEM_SIZES, ONNX_NUMBERS, Shape, Tensor, TensorSpec

Ints = tuple[int, ...]

_LARGEST = 2**62


def known(name: str, optional: bool = False, group: str = "I") -> Input:
    """An input of int64s that are needed to plan."""
    return Input(name, ("int64",), group, optional=optional, known=True)


def ints(*values: int) -> TensorSpec:
    """A known vector of int64, for the tables below."""
    return TensorSpec((len(values),), "int64", values)


def integers(xp: Namespace, values: Iterable[int], shape: Shape) -> Array:
    """Constant int64s."""
    return xp.constant(Tensor("int64", shape, array("q", values).tobytes()))


def checked_shape(shape: Shape, what: str) -> Shape:
    """A shape that was computed from numbers in the graph (SHAPE_MISMATCH)."""
    if any(size < 0 for size in shape) or prod(max(size, 1) for size in shape) > _LARGEST:
        raise Invalid("SHAPE_MISMATCH", f"{what} gives the shape {shape}, which no tensor has")
    return shape


def vector_shape(axis: int, size: int, rank: int) -> Shape:
    """The shape of a vector that lies along one axis."""
    return (1,) * axis + (size,) + (1,) * (rank - axis - 1)


def scatter_along(
    xp: Namespace, grad: Array, positions: Iterable[int], shape: Shape, axis: int
) -> Array:
    """Zeros of a shape, with the slices of grad added at the positions along one axis."""
    positions = tuple(positions)
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


_ARRAY_CODES = {
    "bool": "b", "int8": "b", "int16": "h", "int32": "i", "int64": "q",
    "uint8": "B", "uint16": "H", "uint32": "I", "uint64": "Q",
}  # fmt: skip
assert all(array(code).itemsize == ITEM_SIZES[dtype] for dtype, code in _ARRAY_CODES.items())


def decode(tensor: Tensor) -> tuple[float, ...]:
    """The elements of an integer or boolean tensor."""
    found = array(_ARRAY_CODES[tensor.dtype], tensor.data).tolist()
    return tuple(map(bool, found)) if tensor.dtype == "bool" else tuple(found)
