"""Between NumPy arrays and the tensors of the contract."""

from __future__ import annotations

import struct
import sys
from collections.abc import Hashable
from math import prod
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from gradwire.errors import InvalidRequestError
from gradwire.payloads import WHOLE, Buffer, Lifted
from gradwire.v1 import tensor_pb2

Array = npt.NDArray[Any]

#: Data types that arrays are sent in, by the names of NumPy and ml_dtypes.
_NUMBERS = {
    "float16": tensor_pb2.DATA_TYPE_FLOAT16,
    "bfloat16": tensor_pb2.DATA_TYPE_BFLOAT16,
    "float32": tensor_pb2.DATA_TYPE_FLOAT32,
    "float64": tensor_pb2.DATA_TYPE_FLOAT64,
    "bool": tensor_pb2.DATA_TYPE_BOOL,
    "int8": tensor_pb2.DATA_TYPE_INT8,
    "int16": tensor_pb2.DATA_TYPE_INT16,
    "int32": tensor_pb2.DATA_TYPE_INT32,
    "int64": tensor_pb2.DATA_TYPE_INT64,
    "uint8": tensor_pb2.DATA_TYPE_UINT8,
    "uint16": tensor_pb2.DATA_TYPE_UINT16,
    "uint32": tensor_pb2.DATA_TYPE_UINT32,
    "uint64": tensor_pb2.DATA_TYPE_UINT64,
    "float8_e4m3fn": tensor_pb2.DATA_TYPE_FLOAT8E4M3FN,
    "float8_e4m3fnuz": tensor_pb2.DATA_TYPE_FLOAT8E4M3FNUZ,
    "float8_e5m2": tensor_pb2.DATA_TYPE_FLOAT8E5M2,
    "float8_e5m2fnuz": tensor_pb2.DATA_TYPE_FLOAT8E5M2FNUZ,
    "float8_e8m0fnu": tensor_pb2.DATA_TYPE_FLOAT8E8M0,
    "float4_e2m1fn": tensor_pb2.DATA_TYPE_FLOAT4E2M1,
    "int4": tensor_pb2.DATA_TYPE_INT4,
    "uint4": tensor_pb2.DATA_TYPE_UINT4,
    "int2": tensor_pb2.DATA_TYPE_INT2,
    "uint2": tensor_pb2.DATA_TYPE_UINT2,
}
DTYPES = tuple(_NUMBERS)
#: Those that are held and converted, and not computed with.
STORED = DTYPES[DTYPES.index("float8_e4m3fn") :]
_MOST_RANK = 32
#: Half precision: sent and held in it, computed in float32.
HALVES = ("float16", "bfloat16")
#: Those that have gradients.
FLOATS = (*HALVES, "float32", "float64")

_SHORT_INTEGERS = ("int4", "uint4", "int2", "uint2")
_NAMES = {number: name for name, number in _NUMBERS.items()}
#: NumPy's types by those names: to look one up takes a hundredth of the time of str(dtype).
KINDS = {name: np.dtype(name) for name in DTYPES}
_NUMBERS_BY_DTYPE = {KINDS[name]: number for name, number in _NUMBERS.items()}
_LITTLE_ENDIAN = {name: kind.newbyteorder("<") for name, kind in KINDS.items()}


def key_of(value: Any) -> Hashable:
    """What an attribute or argument is equal by in a table: its type, and all of its bits.

    To Python 0.0 == -0.0 and 1 == 1.0 == True, and no NaN equals itself.
    """
    if isinstance(value, (np.ndarray, np.generic)):
        return type(value), str(value.dtype), value.shape, value.tobytes()
    if isinstance(value, float):
        return float, struct.pack("<d", value)
    if isinstance(value, complex):
        return complex, struct.pack("<dd", value.real, value.imag)
    if isinstance(value, (tuple, list)):
        return type(value), tuple(map(key_of, value))
    return type(value), value


def data_type(dtype: str) -> tensor_pb2.DataType.ValueType:
    """The contract's number of a data type (DATA_TYPE_UNSUPPORTED)."""
    if dtype not in _NUMBERS:
        raise InvalidRequestError(
            "DATA_TYPE_UNSUPPORTED", f"data type {dtype} is not one of " + ", ".join(DTYPES)
        )
    return _NUMBERS[dtype]


def dtype_of(number: int) -> str:
    """The name of a data type by its number (DATA_TYPE_UNSUPPORTED)."""
    if number not in _NAMES:
        names: dict[int, str] = {value: name for name, value in tensor_pb2.DataType.items()}
        data_type(names.get(number, str(number)).removeprefix("DATA_TYPE_").lower())
    return _NAMES[number]  # type: ignore[index]


def dtype_name(dtype: Any) -> str:
    """A data type's name, from that name or from NumPy's type (DATA_TYPE_UNSUPPORTED)."""
    try:
        name = str(np.dtype(dtype))
    except TypeError:
        name = str(dtype)
    data_type(name)
    return name


def recognized(given: Any, dtype: str) -> Any:
    """An array as it was saved: NumPy's files of ml_dtypes' types say only how many bytes."""
    wanted = KINDS[dtype]
    is_unnamed = wanted.kind == "V" and getattr(given, "dtype", None) == f"V{wanted.itemsize}"
    return given.view(dtype) if is_unnamed else given


def from_value(what: str, given: Any, dtype: str) -> Array:
    """Numbers and lists as an array of that data type (TENSOR_INVALID)."""
    if not isinstance(given, (float, int)):
        raw(what, given)
    try:
        if dtype in _SHORT_INTEGERS and getattr(given, "dtype", None) != dtype:
            return _short_integers(given, dtype)
        found: Array = np.asarray(given, dtype=KINDS[dtype], order="C")
    except (TypeError, ValueError, OverflowError) as failure:
        raise InvalidRequestError("TENSOR_INVALID", f"{what}: {failure}") from None
    if found.dtype.kind in "iub" and found is not given and not np.array_equal(found, given):
        kinds = "numbers but 0 and 1" if dtype == "bool" else "fractions"
        raise InvalidRequestError(
            "TENSOR_INVALID", f"{what}: has elements that {dtype} cannot hold, such as {kinds}"
        )
    return found


def raw(what: str, given: Any) -> Array:
    """Numbers and lists as NumPy reads them (TENSOR_INVALID where any is no number).

    NumPy would read None as NaN, text as the number in it, and take masked elements for given.
    """
    if isinstance(given, np.ma.MaskedArray) and np.ma.is_masked(given):
        raise InvalidRequestError(
            "TENSOR_INVALID", f"{what}: has masked elements; fill them: array.filled(0)"
        )
    try:
        found: Array = np.asarray(given)
    except (TypeError, ValueError, OverflowError) as failure:
        raise InvalidRequestError("TENSOR_INVALID", f"{what}: {failure}") from None
    if found.dtype.kind in "OUSMm":
        for place, each in np.ndenumerate(found):
            is_number = isinstance(each, (int, float, complex, np.number, np.bool))
            if found.dtype.kind != "O" or not is_number:
                each = each.item() if isinstance(each, np.generic) else each
                at = f"element {', '.join(map(str, place))} is" if place else "is"
                raise InvalidRequestError(
                    "TENSOR_INVALID", f"{what}: {at} {_short(each)}, which is no number"
                )
    return found


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _short_integers(given: Any, dtype: str) -> Array:
    """Numbers as integers of fewer than 8 bits, which ml_dtypes would cut."""
    wide = np.asarray(given, np.int8, order="C")
    found: Array = wide.astype(dtype)
    if np.any(found.astype(np.int8) != wide):
        limits = ml_dtypes.iinfo(dtype)  # type: ignore[no-untyped-call]
        raise OverflowError(f"{dtype} holds integers from {limits.min} to {limits.max}")
    return found


def kept(array: Array) -> Array:
    """An array that nobody can write any more: itself, or a copy."""
    base: Any = array
    while isinstance(base, np.ndarray):
        if base.flags.writeable:
            return array.copy()
        base = base.base
    return array


def encode(array: Array) -> tensor_pb2.Tensor:
    """An array as a tensor: little-endian, row-major."""
    tensor = tensor_pb2.Tensor()
    write(array, tensor)
    return tensor


def encode_type(array: Array) -> tensor_pb2.Tensor:
    """The tensor of an array, without its elements (DATA_TYPE_UNSUPPORTED)."""
    tensor = tensor_pb2.Tensor()
    write_type(array, tensor)
    return tensor


def write(array: Array, tensor: tensor_pb2.Tensor) -> None:
    """An array into a tensor that is empty."""
    write_type(array, tensor)
    tensor.data = little_endian(array).tobytes()


def write_type(array: Array, tensor: tensor_pb2.Tensor) -> None:
    """The data type and the shape alone (DATA_TYPE_UNSUPPORTED)."""
    number = _NUMBERS_BY_DTYPE.get(array.dtype)
    tensor.data_type = data_type(str(array.dtype)) if number is None else number
    if array.shape:
        tensor.shape.extend(array.shape)


def elements(array: Array) -> memoryview:
    """The elements of a tensor that has some, where they are."""
    contiguous: Any = np.ascontiguousarray(little_endian(array))
    return memoryview(contiguous.reshape(-1).view(np.uint8))  # bfloat16 has no buffer of its own


def little_endian(array: Array) -> Array:
    """The array as messages have it."""
    if sys.byteorder == "little":
        return array
    return array.astype(array.dtype.newbyteorder("<"), copy=False)


def decode(tensor: tensor_pb2.Tensor, payloads: Lifted = WHOLE) -> Array:
    """A tensor as a read-only array (TENSOR_INVALID)."""
    content = tensor.WhichOneof("content")
    if len(tensor.shape) > _MOST_RANK or content not in (None, "data"):
        raise InvalidRequestError(
            "TENSOR_INVALID",
            f"a tensor of rank {len(tensor.shape)} has {content or 'no content'}, but must have "
            f"data, and rank {_MOST_RANK} at most",
        )
    data = bytes(payloads.found(tensor.data))  # of its own, so that it is aligned
    return from_bytes(dtype_of(tensor.data_type), tuple(tensor.shape), data)


def from_bytes(dtype: str, shape: tuple[int, ...], data: bytes) -> Array:
    """Elements as a read-only array (TENSOR_INVALID where they are not of that shape and type)."""
    if dtype == "bool":
        require_truths(np.frombuffer(data, np.uint8))
    return view(dtype, shape, data)


def require_truths(data: Array) -> None:
    """Bytes of bools are 0 or 1 (TENSOR_INVALID)."""
    if data.max(initial=0) > 1:
        raise InvalidRequestError("TENSOR_INVALID", "a bool is neither 0 nor 1")


def view(dtype: str, shape: tuple[int, ...], data: Buffer | Array) -> Array:
    """Bytes as an array (TENSOR_INVALID where they do not fit the shape)."""
    kind = _LITTLE_ENDIAN[dtype]
    needed = prod(shape) * kind.itemsize
    if len(data) != needed or len(shape) > _MOST_RANK:
        raise InvalidRequestError(
            "TENSOR_INVALID",
            f"{dtype} of shape {shape} needs {needed} bytes but has {len(data)}",
        )
    array: Array = np.frombuffer(data, kind).reshape(shape)
    return array
