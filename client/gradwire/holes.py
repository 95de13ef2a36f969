"""Where a serialized message has the elements of its arrays: the rest of it serves again.

Requests that come again, and their answers, differ in numbers only. Both sides of the wire find out
once where those are, and then neither build nor parse the message around them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
from google.protobuf.message import DecodeError, Message

from gradwire.payloads import LIFTED_BYTES, varint
from gradwire.v1 import tensor_pb2

#: Data types any bytes of which are elements, and that arrays hold as messages do.
PLAIN = {np.dtype(f"{kind}{size}") for kind in "iu" for size in (1, 2, 4, 8)} | {
    np.dtype(name) for name in ("float16", "float32", "float64")
}

_REQUEST_ID = b"\x08"  # the head of the field
_INVERTED = bytes(range(255, -1, -1))
_MOST_HOLES, _SPARE_TRIES = 64, 16


def find_holes(
    data: bytes, message: Message, tensors: Sequence[tensor_pb2.Tensor]
) -> list[slice] | None:
    """Where a message has the data of its tensors; None where that cannot be told.

    `message` was parsed from the bytes, and the tensors are parts of it. Bytes that occur in a
    message are an array's if, once they are inverted, the message is parsed to the same one with
    that array inverted: however it was written, with fields in any order.
    """
    if len(data) >= LIFTED_BYTES or not 0 < len(tensors) <= _MOST_HOLES:
        return None
    found = []
    tries = iter(range(len(tensors) + _SPARE_TRIES))  # of all together
    for tensor in tensors:
        held = tensor.data
        if not held:
            return None
        tensor.data = held.translate(_INVERTED)
        start = _start_of(data, held, tensor.data, message, tries)
        tensor.data = held
        if start is None:
            return None
        found.append(slice(start, start + len(held)))
    return found


def around(data: bytes, holes: Sequence[slice]) -> list[slice]:
    """What lies before, between and behind holes that are in order."""
    edges = [0, *(edge for hole in holes for edge in (hole.start, hole.stop)), len(data)]
    return [slice(start, stop) for start, stop in list(pairwise(edges))[::2]]


def with_request_id(request_id: int) -> bytes:
    """What a SessionRequest with this id begins with."""
    return _REQUEST_ID + varint(request_id)


def request_id_of(data: bytes) -> tuple[int, int]:
    """The id that a session's message begins with, and where the rest does; (0, 0) without one."""
    if data[:1] == _REQUEST_ID:
        value = 0
        for at, digit in enumerate(data[1:10]):  # of ten digits the last is cut off
            value |= (digit & 0x7F) << 7 * at
            if digit < 0x80:
                return value, at + 2
    return 0, 0


def _start_of(
    data: bytes, held: bytes, inverted: bytes, expected: Message, tries: Iterator[int]
) -> int | None:
    """Where these bytes stand, whose inversion makes the expected message."""
    start = -1
    for _ in tries:
        start = data.find(held, start + 1)
        if start < 0:
            return None
        other = data[:start] + inverted + data[start + len(held) :]
        try:
            if type(expected).FromString(other) == expected:
                return start
        except DecodeError:
            pass
    return None
