"""What is known of a tensor before it is computed, and the rules that shapes follow."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from math import prod
from typing import Any

from gradwire_server.errors import Invalid

Shape = tuple[int, ...]

#: ONNX's numbers of the data types, as Cast takes them, by NumPy's names.
ONNX_NUMBERS = {
    "float32": 1, "uint8": 2, "int8": 3, "uint16": 4, "int16": 5, "int32": 6, "int64": 7,
    "bool": 9, "float16": 10, "float64": 11, "uint32": 12, "uint64": 13, "bfloat16": 16,
    "float8_e4m3fn": 17, "float8_e4m3fnuz": 18, "float8_e5m2": 19, "float8_e5m2fnuz": 20,
    "uint4": 21, "int4": 22, "float4_e2m1fn": 23, "float8_e8m0fnu": 24, "uint2": 25, "int2": 26,
}  # fmt: skip
#: Width of an element in bytes.
ITEM_SIZES = {
    "float16": 2, "bfloat16": 2, "float32": 4, "float64": 8, "bool": 1,
    "int8": 1, "int16": 2, "int32": 4, "int64": 8,
    "uint8": 1, "uint16": 2, "uint32": 4, "uint64": 8,
    "float8_e4m3fn": 1, "float8_e4m3fnuz": 1, "float8_e5m2": 1, "float8_e5m2fnuz": 1,
    "uint4": 1, "int4": 1, "float4_e2m1fn": 1, "float8_e8m0fnu": 1, "uint2": 1, "int2": 1,
}  # fmt: skip
#: How many bits of its bytes an element uses, the low ones, where these are not all.
USED_BITS = {"bool": 1, "uint4": 4, "int4": 4, "float4_e2m1fn": 4, "uint2": 2, "int2": 2}
#: Half precision: what values are held in. Engines compute them in float32, and round once.
HALVES = ("float16", "bfloat16")
#: Floating data types that engines compute in.
COMPUTED = ("float32", "float64")
FLOATS = (*HALVES, *COMPUTED)
INDICES = ("int32", "int64")
SIGNED = (*FLOATS, "int8", "int16", "int32", "int64")
NUMBERS = (*SIGNED, "uint8", "uint16", "uint32", "uint64")
INTEGERS = tuple(dtype for dtype in NUMBERS if dtype not in FLOATS)
BOOLS = ("bool",)
#: What operators compute with, or move.
ANY = (*NUMBERS, *BOOLS)
FLOAT8S = ("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz")
SHORT_INTEGERS = ("uint4", "int4", "uint2", "int2")
#: What numbers are stored in and not computed with; none has a gradient.
STORED = (*FLOAT8S, "float8_e8m0fnu", "float4_e2m1fn", *SHORT_INTEGERS)
EVERY = (*ANY, *STORED)


#: No tensor has as many bytes, nor would if its empty axes had an element: sums of a few such
#: numbers fit in 64 bits, and work on them takes no longer than on small ones.
LARGEST = 1 << 60


def computed_in(dtype: str) -> str:
    """The data type that numbers of one are computed in."""
    return "float32" if dtype in HALVES else dtype


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Shape and data type of a value; and its elements, row-major, where they are known.

    Known elements are compared by their bytes. 0.0 == -0.0, and no NaN equals itself, but a gate
    that reads bits tells the zeros apart, and a plan for a NaN serves the same NaN again.
    """

    shape: Shape
    dtype: str = "float64"
    value: tuple[float, ...] | None = field(default=None, compare=False)
    data: bytes | None = field(default=None, repr=False)  # those of the value

    def __post_init__(self) -> None:
        nbytes = ITEM_SIZES[self.dtype]
        for size in self.shape:
            nbytes *= size or 1
            if nbytes >= LARGEST:
                raise Invalid(
                    "SHAPE_MISMATCH",
                    f"a {self.dtype} tensor of shape {short(self.shape)} would be of 2^60 bytes "
                    "or more, which no tensor has",
                )
        if self.value is not None and self.data is None:
            object.__setattr__(self, "data", _packed(self.value, self.dtype))

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Memory in bytes; an empty tensor counts the int64 positions that gates make along it."""
        return self.size * ITEM_SIZES[self.dtype] or 8 * max(self.shape, default=0)

    @property
    def is_floating(self) -> bool:
        return self.dtype in FLOATS

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True, slots=True)
class Tensor:
    """Elements as little-endian row-major bytes: a stored value or an attribute."""

    dtype: str
    shape: Shape
    data: bytes


#: How the struct module packs an element of each data type.
_CODES = {
    "float16": "e", "float32": "f", "float64": "d", "bool": "?",
    "int8": "b", "int16": "h", "int32": "i", "int64": "q",
    "uint8": "B", "uint16": "H", "uint32": "I", "uint64": "Q",
}  # fmt: skip


def _packed(values: tuple[float, ...], dtype: str) -> bytes:
    """Elements as little-endian bytes."""
    if dtype == "bfloat16":  # the upper half of a float32
        whole = _packed(values, "float32")
        return b"".join(whole[at : at + 2] for at in range(2, len(whole), 4))
    return struct.pack(f"<{len(values)}{_CODES[dtype]}", *values)


def short(shape: Shape) -> str:
    """A shape as a message shows it: of huge numbers only how large they are."""
    sizes = [str(size) if abs(size) < LARGEST << 3 else "over 2^63" for size in shape]
    return "(" + ", ".join(sizes) + ("," if len(sizes) == 1 else "") + ")"


def attributes_key(attributes: Iterable[tuple[str, Any]]) -> tuple[Any, ...]:
    """What attributes are equal by: their names, kinds and bits, in any order of names."""
    return tuple((name, _bits(value)) for name, value in sorted(attributes))


def _bits(value: Any) -> Any:
    if isinstance(value, float):
        return float, struct.pack("<d", value)
    if isinstance(value, tuple):
        return tuple(map(_bits, value))
    return type(value), value


def broadcast_shapes(*shapes: Shape) -> Shape:
    """The shape that all broadcast to, by ONNX's (NumPy's) rule (SHAPE_MISMATCH)."""
    rank = max(map(len, shapes), default=0)
    merged = [1] * rank
    for shape in shapes:
        for axis, size in enumerate(shape, rank - len(shape)):
            if size != 1 and merged[axis] not in (1, size):
                text = " and ".join(map(str, shapes))
                raise Invalid(
                    "SHAPE_MISMATCH",
                    f"shapes {text} do not broadcast: axis "
                    f"{axis - rank} is {merged[axis]} in one and {size} in another",
                )
            if size != 1:
                merged[axis] = size
    return tuple(merged)


def normalize_axis(axis: int, rank: int) -> int:
    """The axis counted from the front (ATTRIBUTE_INVALID outside [-rank, rank))."""
    if not -rank <= axis < rank:
        raise Invalid("ATTRIBUTE_INVALID", f"axis {axis} is outside a tensor of rank {rank}")
    return axis % rank


def normalize_axes(axes: tuple[int, ...], rank: int) -> tuple[int, ...]:
    """All axes counted from the front, in the order given (ATTRIBUTE_INVALID where one repeats)."""
    normal = tuple(normalize_axis(axis, rank) for axis in axes)
    if len(set(normal)) < len(normal):
        raise Invalid("ATTRIBUTE_INVALID", f"axes {axes} name one axis twice")
    return normal
