"""Tensors: their types, their shapes, and their bytes, which may lie beside the message."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np

from gradwire.payloads import WHOLE, Buffer, Lifted
from gradwire.v1 import tensor_pb2
from gradwire_server.errors import Invalid, OverLimit, Refusal, Unsupported
from gradwire_server.segments import Region, Segments
from gradwire_server.specs import ITEM_SIZES, ONNX_NUMBERS, USED_BITS, Tensor

MAX_RANK = 32
NUMBERS = {name: tensor_pb2.DataType.ValueType(number) for name, number in ONNX_NUMBERS.items()}
_DTYPES = {number: name for name, number in NUMBERS.items()}


@dataclass
class Payloads:
    """What a message keeps outside of itself: lifted out of it, or in shared memory."""

    lifted: Lifted = WHOLE
    segments: Segments | None = None
    limit: int = 0  # bytes of a message, with what it has in shared memory
    counted: int = 0

    def found(self, data: bytes) -> Buffer:
        """The bytes of a field."""
        return self.lifted.found(data)

    def shared(self, place: str, message: tensor_pb2.SharedRegion) -> bytes:
        """A copy of a region (SHARED_MEMORY_INVALID, SHARED_MEMORY_UNSUPPORTED, LIMIT_EXCEEDED)."""
        segments = require_segments(place, self.segments)
        self.counted += message.size
        if self.counted > self.limit:
            raise OverLimit.of(
                "max-message-bytes", self.limit, self.counted,
                f"{place}: bytes of the message with its shared memory",
            )  # fmt: skip
        try:
            return segments.read(region_of(message))
        except Refusal as refusal:
            raise refusal.at(place, field="shared") from None


NOTHING_BESIDE = Payloads()


def require_segments(place: str, segments: Segments | None) -> Segments:
    """The server's segments (SHARED_MEMORY_UNSUPPORTED)."""
    if segments is None:
        raise Unsupported(
            "SHARED_MEMORY_UNSUPPORTED",
            f"{place}: is in shared memory, which this server does without; send the bytes "
            "themselves, or start the server with --shared-memory DIRECTORY",
            flag="--shared-memory",
        )
    return segments


def region_of(message: tensor_pb2.SharedRegion) -> Region:
    """Where a message says that elements are."""
    return Region(message.segment, message.offset, message.size)


def decode_tensor(
    place: str,
    message: tensor_pb2.Tensor,
    payloads: Payloads | None = None,
    beside: Lifted = WHOLE,
) -> Tensor:
    """A tensor whose bytes fit its shape and type (TENSOR_INVALID, DATA_TYPE_UNSUPPORTED).

    Without payloads it is part of a graph, which holds its own bytes; those that are large may have
    been lifted out of it.
    """
    dtype = decode_dtype(place, message.data_type)
    shape = tuple(message.shape)
    shared = message.HasField("shared")
    if shared and payloads is None:
        raise Invalid(
            "TENSOR_INVALID",
            f"{place}: is in shared memory, but a graph holds its own bytes",
            field="shared",
        )
    if message.HasField("blob"):
        raise Invalid(
            "TENSOR_INVALID",
            f"{place}: refers to a blob, which lies beside a graph file; send its bytes",
            field="blob",
        )
    data: Buffer = (beside if payloads is None else payloads).found(message.data)
    held = message.shared.size if shared else len(data)
    if len(shape) > MAX_RANK:
        what = f"{place}: has rank {len(shape)}, over {MAX_RANK}"
        raise Invalid("TENSOR_INVALID", what, field="shape")
    needed = prod(shape) * ITEM_SIZES[dtype]
    if held != needed:
        raise Invalid(
            "TENSOR_INVALID",
            f"{place}: {dtype} of shape {shape} needs {needed} bytes but has {held}",
            field="shared.size" if shared else "data",
        )
    if needed == 0 and max(shape, default=0) > np.iinfo(np.int64).max >> 8:
        raise Invalid("TENSOR_INVALID", f"{place}: shape {shape} is too large", field="shape")
    if shared and payloads is not None:
        data = payloads.shared(place, message.shared)
    data = bytes(data)  # of its own, so that it is aligned and the message around it can go
    _require_used_bits(place, dtype, data)
    return Tensor(dtype, shape, data)


def decode_dtype(place: str, number: tensor_pb2.DataType.ValueType) -> str:
    """The name of a data type (DATA_TYPE_UNSUPPORTED)."""
    if number not in _DTYPES:
        names = {value: name for name, value in tensor_pb2.DataType.items()}
        raise Unsupported(
            "DATA_TYPE_UNSUPPORTED",
            f"{place}: data type {names.get(number, number)} is not one of " + ", ".join(NUMBERS),
        )
    return _DTYPES[number]


def _require_used_bits(place: str, dtype: str, data: bytes) -> None:
    """The other bits of each byte are 0 (TENSOR_INVALID)."""
    if dtype not in USED_BITS:
        return
    wrong = data.translate(None, bytes(range(1 << USED_BITS[dtype])))
    if wrong and dtype == "bool":
        raise Invalid("TENSOR_INVALID", f"{place}: a bool is neither 0 nor 1", field="data")
    if wrong:
        raise Invalid(
            "TENSOR_INVALID",
            f"{place}: a byte is 0x{wrong[0]:02X}, but {dtype} has the low {USED_BITS[dtype]} bits "
            "of a byte, and the others are 0",
            field="data",
        )


def encode_tensor(tensor: Tensor) -> tensor_pb2.Tensor:
    """A tensor that holds its own bytes."""
    return tensor_pb2.Tensor(data_type=NUMBERS[tensor.dtype], shape=tensor.shape, data=tensor.data)
