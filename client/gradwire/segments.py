"""Arrays in memory shared with a server on this machine, which messages then only refer to.

A segment is anonymous memory that the server maps too, for as long as a connection of its own to
the server is open: when a program ends, however it ends, nothing is left. An array is copied into a
segment once; results are views of one. A segment is used again only when nobody can read or write
it any more: the server has answered, and the last view of its results is gone.
"""

from __future__ import annotations

import mmap
import os
import re
import socket
import weakref
from collections import deque
from math import prod
from struct import Struct
from threading import Lock
from typing import Self

import numpy as np

from gradwire import tensors
from gradwire.errors import ServerError, UnsupportedError
from gradwire.payloads import LIFTED_BYTES
from gradwire.v1 import service_pb2, tensor_pb2

#: Requests that have a place for results.
Request = (
    service_pb2.EvaluateRequest | service_pb2.EvaluateStreamRequest | service_pb2.SessionRequest
)

_LEAST_BYTES = 1 << 20
_MOST_SEGMENTS = 64  # each takes three descriptors, and kept results keep theirs
_MOST_FREE = 6
_ALIGNMENT = 64
_SECONDS = 10.0
_NAME = re.compile(rb"[0-9a-f]{32}")
_CREDENTIALS = Struct("3i")  # process, user, group


class Segment:
    """Memory that a server has mapped as well (OSError where it will not)."""

    def __init__(self, path: str, size: int) -> None:
        import fcntl  # not on every system

        self.size = size
        descriptor = os.memfd_create("gradwire", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(descriptor, size)
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
            self.memory = mmap.mmap(descriptor, size)
            self._server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            try:
                self._server.settimeout(_SECONDS)
                self._server.connect(path)
                _require_trusted(self._server)
                socket.send_fds(self._server, [b"segment"], [descriptor])
                answer = self._server.recv(1024)
                if not _NAME.fullmatch(answer):
                    raise OSError(answer.decode() or "the server has no room for more segments")
            except BaseException:
                self._server.close()
                raise
        finally:
            os.close(descriptor)
        self.name = answer.decode()

    def close(self) -> None:
        """The server gives it up; views of it stay."""
        self._server.close()


def _require_trusted(server: socket.socket) -> None:
    """Refuses to hand memory to another user (OSError), whatever path a server has named."""
    credentials = server.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, user, _ = _CREDENTIALS.unpack(credentials)
    if os.geteuid() not in (0, user) and user != 0:
        raise OSError(f"its socket belongs to user {user}, and this program runs as another")


class Pool:
    """The segments of one connection; safe to share between threads (UnsupportedError)."""

    def __init__(self, path: str, target: str) -> None:
        if not path:
            raise UnsupportedError(
                "SHARED_MEMORY_UNSUPPORTED",
                f"the server at {target} shares no memory; start it with --shared-memory "
                "DIRECTORY, or connect without shared_memory",
            )
        if not hasattr(os, "memfd_create"):
            raise UnsupportedError(
                "SHARED_MEMORY_UNSUPPORTED",
                "this system has no memfd, which Linux has; connect without shared_memory",
            )
        self._path = path
        self._lock = Lock()
        self._segments: set[Segment] = set()
        self._free: list[Segment] = []
        self._returned: deque[Segment] = deque()
        #: What one message, and the results of one, took at most so far.
        self.sent_bytes = self.received_bytes = 0
        self.close = weakref.finalize(self, _close, self._segments)
        try:
            self._free.append(self._new(_LEAST_BYTES))
        except OSError as failure:
            raise UnsupportedError(
                "SHARED_MEMORY_UNSUPPORTED",
                f"the server at {target} shares memory through {path}, which cannot be used from "
                f"here: {failure}; connect without shared_memory, unless as the server's user on "
                "its own machine",
            ) from None

    def borrow(self, size: int) -> Segment | None:
        """A segment of at least that size; None where there is no more to be had."""
        with self._lock:
            while self._returned:
                self._keep(self._returned.popleft())
            fitting = [each for each in reversed(self._free) if each.size >= size]
            if fitting:  # the smallest, and of those the one that caches may still hold
                segment = min(fitting, key=lambda each: each.size)
                self._free.remove(segment)
                return segment
            if len(self._segments) >= _MOST_SEGMENTS:
                return None
            try:
                return self._new(size)
            except OSError:  # no more memory, descriptors, or bytes that the server allows
                while self._free:  # too small, and in the way of the next one
                    self.drop(self._free.pop())
                return None

    def give_back(self, segment: Segment) -> None:
        """Nobody uses it any more. Garbage is collected at any time: this takes no lock."""
        self._returned.append(segment)

    def drop(self, segment: Segment) -> None:
        """Somebody may still use it: it is not used again."""
        self._segments.discard(segment)
        segment.close()

    def _keep(self, segment: Segment) -> None:
        if segment not in self._segments:
            return
        self._free.append(segment)
        if len(self._free) > _MOST_FREE:
            self.drop(self._free.pop(0))

    def _new(self, size: int) -> Segment:
        segment = Segment(self._path, size + -size % _LEAST_BYTES)
        self._segments.add(segment)
        return segment


def _close(segments: set[Segment]) -> None:
    while segments:
        segments.pop().close()


class Exchange:
    """One message and its answer: what both have in shared memory, where there is any."""

    def __init__(self, pool: Pool | None = None) -> None:
        self._pool = pool
        self._arguments: list[Segment] = []
        self._at = 0  # in the last of them
        self.sent_bytes = 0
        self._results: Segment | None = None
        self._lease: tensors.Array | None = None
        self._received = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._pool is None:
            return
        # after a failure the server may still be at work
        ends = self._pool.give_back if kind is None else self._pool.drop
        for segment in self._arguments:
            ends(segment)
        if self._results is not None and (self._lease is None or kind is not None):
            ends(self._results)
        self._lease = None  # its views keep it
        self._pool.sent_bytes = max(self._pool.sent_bytes, self.sent_bytes)
        self._pool.received_bytes = max(self._pool.received_bytes, self._received)

    def put(self, array: tensors.Array) -> tensor_pb2.Tensor | None:
        """The array as a tensor in shared memory; None where it is small, or there is no room."""
        if self._pool is None or array.nbytes < LIFTED_BYTES:
            return None
        tensor = tensors.encode_type(array)
        if not self._arguments or self._at + array.nbytes > self._arguments[-1].size:
            segment = self._pool.borrow(max(array.nbytes, self._pool.sent_bytes))
            if segment is None:
                return None
            self._arguments.append(segment)
            self._at = 0
        segment, offset = self._arguments[-1], self._at
        memory = np.frombuffer(segment.memory, np.uint8, array.nbytes, offset)
        np.copyto(_view(memory, array.dtype.name, array.shape), array)
        region = tensor.shared
        region.segment, region.offset, region.size = segment.name, offset, array.nbytes
        self._at += _aligned(array.nbytes)
        self.sent_bytes += _aligned(array.nbytes)
        return tensor

    def offer(self, request: Request) -> None:
        """Tells the server where large results may go: as many as were sent, or came before."""
        size = 0 if self._pool is None else max(self.sent_bytes, self._pool.received_bytes)
        if self._pool is None or not size:
            return
        self._results = self._pool.borrow(size)
        if self._results is not None:
            request.results_in.segment = self._results.name
            request.results_in.size = self._results.size

    def array(self, tensor: tensor_pb2.Tensor) -> tensors.Array:
        """A tensor that the server has put where it was told to, as a read-only view."""
        region, shape = tensor.shared, tuple(tensor.shape)
        dtype = tensors.dtype_of(tensor.data_type)
        segment, size = self._results, prod(shape) * np.dtype(dtype).itemsize
        if (
            self._pool is None
            or segment is None
            or region.segment != segment.name
            or region.size != size
            or region.offset % _ALIGNMENT
            or region.offset + size > segment.size
        ):
            raise ServerError(
                "INTERNAL",
                f"the answer refers to {region.size} bytes of shared memory from byte "
                f"{region.offset} on, which are not where its results were to go",
            )
        if self._lease is None:
            self._lease = np.frombuffer(segment.memory, np.uint8)
            self._lease.flags.writeable = False
            weakref.finalize(self._lease, self._pool.give_back, segment).atexit = False
        self._received += _aligned(size)
        return _view(self._lease[region.offset : region.offset + size], dtype, shape)

    def count(self, array: tensors.Array) -> None:
        """An array that came in the message: large ones have a place next time."""
        if array.nbytes >= LIFTED_BYTES:
            self._received += _aligned(array.nbytes)


#: Of connections that share no memory.
INLINE = Exchange()


def _aligned(size: int) -> int:
    return size + -size % _ALIGNMENT


def _view(memory: tensors.Array, dtype: str, shape: tuple[int, ...]) -> tensors.Array:
    """Little-endian elements in memory."""
    found: tensors.Array = memory.view(np.dtype(dtype).newbyteorder("<")).reshape(shape)
    return found
