"""Between NumPy arrays and the tensors of the contract."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from gradwire.errors import InvalidRequestError
from gradwire.v1 import tensor_pb2

Array = npt.NDArray[Any]

_PREFIX = "DATA_TYPE_"
#: Data types that arrays are sent in, by name.
DTYPES = (
    "float32", "float64", "bool",
    "int8", "int16", "int32", "int64",
    "uint8", "uint16", "uint32", "uint64",
)  # fmt: skip
#: Those that have gradients.
FLOATS = ("float32", "float64")


def data_type(dtype: str) -> tensor_pb2.DataType.ValueType:
    """The contract's number of a data type (DATA_TYPE_UNSUPPORTED)."""
    if dtype not in DTYPES:
        raise InvalidRequestError(
            "DATA_TYPE_UNSUPPORTED", f"data type {dtype} is not one of " + ", ".join(DTYPES)
        )
    return tensor_pb2.DataType.Value(_PREFIX + dtype.upper())


def dtype_of(number: int) -> str:
    """The name of a data type by its number (DATA_TYPE_UNSUPPORTED)."""
    names: dict[int, str] = {value: name for name, value in tensor_pb2.DataType.items()}
    dtype = names.get(number, str(number)).removeprefix(_PREFIX).lower()
    data_type(dtype)
    return dtype


def dtype_name(dtype: Any) -> str:
    """A data type's name, from that name or from NumPy's type (DATA_TYPE_UNSUPPORTED)."""
    try:
        name = str(np.dtype(dtype))
    except TypeError:
        name = str(dtype)
    data_type(name)
    return name


def from_value(what: str, given: Any, dtype: str) -> Array:
    """Numbers and lists as an array of that data type (TENSOR_INVALID)."""
    try:
        return np.asarray(given, dtype=dtype, order="C")
    except (TypeError, ValueError, OverflowError) as failure:
        raise InvalidRequestError("TENSOR_INVALID", f"{what}: {failure}") from None


def encode(array: Array) -> tensor_pb2.Tensor:
    """An array as a tensor: little-endian, row-major."""
    little_endian = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return tensor_pb2.Tensor(
        data_type=data_type(str(array.dtype)), shape=array.shape, data=little_endian.tobytes()
    )


def decode(tensor: tensor_pb2.Tensor) -> Array:
    """A tensor as a read-only array (TENSOR_INVALID)."""
    return from_bytes(dtype_of(tensor.data_type), tuple(tensor.shape), tensor.data)


def from_bytes(dtype: str, shape: tuple[int, ...], data: bytes) -> Array:
    """Elements as a read-only array (TENSOR_INVALID where the bytes do not fit the shape)."""
    kind = np.dtype(dtype)
    needed = prod(shape) * kind.itemsize
    if len(data) != needed:
        raise InvalidRequestError(
            "TENSOR_INVALID",
            f"{dtype} of shape {shape} needs {needed} bytes but has {len(data)}",
        )
    array: Array = np.frombuffer(data, kind.newbyteorder("<")).reshape(shape)
    return array
