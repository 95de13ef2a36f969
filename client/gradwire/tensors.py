"""Between NumPy arrays and the tensors of the contract."""

from __future__ import annotations

import sys
from math import prod
from typing import Any

import ml_dtypes  # noqa: F401 -- gives NumPy its bfloat16
import numpy as np
import numpy.typing as npt

from gradwire.errors import InvalidRequestError
from gradwire.payloads import WHOLE, Lifted
from gradwire.v1 import tensor_pb2

Array = npt.NDArray[Any]

_PREFIX = "DATA_TYPE_"
#: Data types that arrays are sent in, by name.
DTYPES = (
    "float16", "bfloat16", "float32", "float64", "bool",
    "int8", "int16", "int32", "int64",
    "uint8", "uint16", "uint32", "uint64",
)  # fmt: skip
#: Half precision: sent and held in it, computed in float32.
HALVES = ("float16", "bfloat16")
#: Those that have gradients.
FLOATS = (*HALVES, "float32", "float64")


_NUMBERS = {name: tensor_pb2.DataType.Value(_PREFIX + name.upper()) for name in DTYPES}
_NAMES = {number: name for name, number in _NUMBERS.items()}
_NUMBERS_BY_DTYPE = {np.dtype(name): number for name, number in _NUMBERS.items()}
_LITTLE_ENDIAN = {name: np.dtype(name).newbyteorder("<") for name in DTYPES}


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
        data_type(names.get(number, str(number)).removeprefix(_PREFIX).lower())
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
    """An array as it was saved: NumPy's files of bfloat16 say no more than two bytes an element."""
    is_unnamed = dtype == "bfloat16" and getattr(given, "dtype", None) == "V2"
    return given.view(dtype) if is_unnamed else given


def from_value(what: str, given: Any, dtype: str) -> Array:
    """Numbers and lists as an array of that data type (TENSOR_INVALID)."""
    try:
        found: Array = np.asarray(given, dtype=dtype, order="C")
    except (TypeError, ValueError, OverflowError) as failure:
        raise InvalidRequestError("TENSOR_INVALID", f"{what}: {failure}") from None
    if found.dtype.kind in "iu" and found is not given and not np.array_equal(found, given):
        raise InvalidRequestError(
            "TENSOR_INVALID", f"{what}: has elements that {dtype} cannot hold, such as fractions"
        )
    return found


def encode(array: Array) -> tensor_pb2.Tensor:
    """An array as a tensor: little-endian, row-major."""
    tensor = encode_type(array)
    tensor.data = _little_endian(array).tobytes()
    return tensor


def encode_type(array: Array) -> tensor_pb2.Tensor:
    """The tensor of an array, without its elements (DATA_TYPE_UNSUPPORTED)."""
    number = _NUMBERS_BY_DTYPE.get(array.dtype)
    if number is None:
        number = data_type(str(array.dtype))
    return tensor_pb2.Tensor(data_type=number, shape=array.shape)


def elements(array: Array) -> memoryview:
    """The elements of a tensor that has some, where they are."""
    contiguous: Any = np.ascontiguousarray(_little_endian(array))
    return memoryview(contiguous.reshape(-1).view(np.uint8))  # bfloat16 has no buffer of its own


def _little_endian(array: Array) -> Array:
    if sys.byteorder == "little":
        return array
    return array.astype(array.dtype.newbyteorder("<"), copy=False)


def decode(tensor: tensor_pb2.Tensor, payloads: Lifted = WHOLE) -> Array:
    """A tensor as a read-only array (TENSOR_INVALID)."""
    data = bytes(payloads.found(tensor.data))  # of its own, so that it is aligned
    return from_bytes(dtype_of(tensor.data_type), tuple(tensor.shape), data)


def from_bytes(dtype: str, shape: tuple[int, ...], data: bytes) -> Array:
    """Elements as a read-only array (TENSOR_INVALID where the bytes do not fit the shape)."""
    kind = _LITTLE_ENDIAN[dtype]
    needed = prod(shape) * kind.itemsize
    if len(data) != needed:
        raise InvalidRequestError(
            "TENSOR_INVALID",
            f"{dtype} of shape {shape} needs {needed} bytes but has {len(data)}",
        )
    array: Array = np.frombuffer(data, kind).reshape(shape)
    return array
