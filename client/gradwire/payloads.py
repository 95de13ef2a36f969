"""Large bytes in messages, neither copied in nor copied out.

A protobuf library copies a message when it parses it, and every bytes field again when that is
read. Both sides of the wire keep the few large payloads out of its way: `lifted` takes them out of
a message before it is parsed, and `field` writes them behind what the library serialized.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple

#: What holds bytes: bytes, a memoryview, or a C-contiguous array.
Buffer = bytes | memoryview

#: Payloads below this are copied: looking for them costs more than that.
LIFTED_BYTES = 64 * 1024

#: Field numbers that lead to payloads; None marks a payload itself.
Paths = Mapping[int, "Paths | None"]

_MOST_FIELDS = 256
_MOST_GRAPH_FIELDS = 4096  # leaves and names; a graph of more is mostly not payloads
_SIZED = 2  # the wire type of strings, bytes and messages
_TENSOR: Paths = {3: None}
_NAMED: Paths = {2: _TENSOR}
_SOURCE: Paths = {1: None}
_EVALUATION: Paths = {1: _NAMED, 3: _NAMED, 8: {2: None}}
_REQUEST: Paths = {1: _SOURCE, 2: _EVALUATION}
_STEP: Paths = {1: _NAMED, 3: None}
_BACKWARD: Paths = {1: _NAMED}
_RESULT: Paths = {1: _NAMED, 2: _NAMED, 3: {6: None}, 4: {6: None}, 5: None}
#: Where the payloads are, by the message's name.
PATHS: Mapping[str, Paths] = {
    "EvaluateRequest": _REQUEST,
    "EvaluateStreamRequest": _REQUEST,
    "EvaluateResponse": {1: _RESULT},
    "EvaluateStreamResponse": {2: {6: None}, 3: {6: None}, 4: {1: _RESULT}},
    "DifferentiateGraphRequest": {1: _SOURCE},
    "SaveGraphRequest": {1: _SOURCE},
    "UploadGraphRequest": {2: {2: None}},
    "ListGraphsRequest": {},
    "GetGraphRequest": {},
    "DeleteGraphRequest": {},
    "SessionRequest": {2: _REQUEST, 3: _STEP, 4: _BACKWARD, 5: {1: _STEP}},
    "SessionResponse": {3: _RESULT, 5: {1: {1: _RESULT}}},
}

_LEAF: Paths = {4: _TENSOR}
_GRAPH: Paths = {6: {1: _LEAF, 2: _LEAF, 3: _LEAF}}


class Lifted(NamedTuple):
    """A message without its large payloads, which a secret stands for."""

    message: bytes
    secret: bytes = b""
    payloads: tuple[memoryview, ...] = ()

    def found(self, data: bytes) -> Buffer:
        """The bytes of a field: its own, or the payload that was lifted out of it."""
        if self.secret and len(data) == len(self.secret) + 2 and data.startswith(self.secret):
            return self.payloads[int.from_bytes(data[len(self.secret) :], "big")]
        return data


#: Of a message that was parsed whole.
WHOLE = Lifted(b"")


def lifted_graph(graph: bytes) -> Lifted:
    """Takes the large stored values of leaves out of a serialized Graph."""
    return lifted(graph, _GRAPH, _MOST_GRAPH_FIELDS)


def lifted(message: bytes, paths: Paths, most_fields: int = _MOST_FIELDS) -> Lifted:
    """Takes the large payloads out of a serialized message; whole where it is small or odd.

    The secret is drawn for each message, so no sender can name a payload. Everything else is left
    in place, so what a parser makes of repeated or merged fields stays as it was.
    """
    if len(message) < LIFTED_BYTES:
        return Lifted(message)
    walk = _Walk(message, most_fields)
    try:
        kept = walk.without(paths, 0, len(message))
    except _Odd:
        return Lifted(message)
    if not walk.payloads:
        return Lifted(message)
    return Lifted(b"".join(kept), walk.secret, tuple(walk.payloads))


def field(number: int, size: int) -> bytes:
    """The head of a field that holds so many bytes."""
    return varint(number << 3 | _SIZED) + varint(size)


def varint(value: int) -> bytes:
    """A number in base 128, least significant digits first."""
    if value < 0x80:
        return bytes((value,))
    digits = bytearray()
    while value >= 0x80:
        digits.append(value & 0x7F | 0x80)
        value >>= 7
    digits.append(value)
    return bytes(digits)


class _Odd(Exception):  # noqa: N818 -- not an error: the parser will judge the message
    """Not worth walking, or not a message."""


class _Walk:
    """One walk over a message: bounded, and never past its end."""

    def __init__(self, message: bytes, most_fields: int) -> None:
        self._most_fields = most_fields
        self.secret = os.urandom(16)
        self.payloads: list[memoryview] = []
        self._view = memoryview(message)
        self._fields = 0

    def without(self, paths: Paths, at: int, end: int) -> list[Buffer]:
        """The pieces of the message in [at, end), its payloads replaced."""
        pieces: list[Buffer] = []
        kept_from = at
        while at < end:
            start = at
            key, at = self._varint(at, end)
            stop = self._skip(key & 7, at, end)
            number = key >> 3
            if key & 7 == _SIZED and number in paths and stop - at >= LIFTED_BYTES:
                size, at = self._varint(at, end)
                inside = self._inside(paths[number], at, at + size)
                pieces.append(self._view[kept_from:start])
                pieces.append(field(number, sum(map(len, inside))))
                pieces.extend(inside)
                kept_from = stop
            at = stop
        pieces.append(self._view[kept_from:end])
        return pieces

    def _inside(self, paths: Paths | None, at: int, end: int) -> list[Buffer]:
        if paths is not None:
            return self.without(paths, at, end)
        self.payloads.append(self._view[at:end])
        return [self.secret, (len(self.payloads) - 1).to_bytes(2, "big")]

    def _skip(self, wire_type: int, at: int, end: int) -> int:
        """Where a field ends whose head is before `at`."""
        self._fields += 1
        match wire_type:
            case 0:
                _, stop = self._varint(at, end)
            case 1:
                stop = at + 8
            case 2:
                size, at = self._varint(at, end)
                stop = at + size
            case 5:
                stop = at + 4
            case _:
                raise _Odd
        if stop > end or self._fields > self._most_fields:
            raise _Odd
        return stop

    def _varint(self, at: int, end: int) -> tuple[int, int]:
        value = 0
        for shift in range(0, 35, 7):
            if at >= end:
                raise _Odd
            digit = self._view[at]
            at += 1
            value |= (digit & 0x7F) << shift
            if digit < 0x80:
                return value, at
        raise _Odd
