"""Memory shared with clients on this machine, which hand it over themselves.

A client sends a memfd through a socket in a directory that only this user can enter, and is told a
random name for it. So no name from the wire ever meets a file system, nobody can guess another
client's name, and what a client that was killed has left behind ends with its connection. A segment
is mapped once; its seal keeps it from shrinking under the mapping, which would end this process.
Its bytes may change at any time, so they are copied before anybody looks at them.
"""

from __future__ import annotations

import contextlib
import logging
import mmap
import os
import re
import selectors
import socket
import stat
from secrets import token_hex
from threading import Thread
from time import sleep
from typing import NamedTuple

from gradwire_server.errors import Invalid
from gradwire_server.folders import FolderError, open_ours

log = logging.getLogger("gradwire")

#: Each takes two descriptors, of which a process has a thousand by default.
MOST_SEGMENTS = 256

_SOCKET = re.compile(r"[0-9a-f]{16}\.socket")
_ALIGNMENT = 64
_RETRY_SECONDS = 0.1


class SharedMemoryError(Exception):
    """The directory cannot be used."""


class Region(NamedTuple):
    """A part of a segment, as a client names it."""

    segment: str
    offset: int
    size: int


class Segments:
    """The segments of all clients, by name (SharedMemoryError)."""

    def __init__(self, directory: str, most_bytes: int) -> None:
        self._mapped: dict[str, mmap.mmap] = {}
        self._names: dict[socket.socket, str] = {}
        self._room = most_bytes
        self._folder = _opened(directory)
        try:
            _remove_dead_sockets(directory, self._folder)
            self.path, self._listener = _listen(directory, self._folder)
        except OSError as failure:
            os.close(self._folder)
            raise _unusable(directory, failure) from None
        self._woken, self._wake = os.pipe()
        self._thread = Thread(target=self._attend, name="gradwire-segments", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Takes no more segments, and removes the socket; calls that run end as they would."""
        if self._thread.is_alive():
            os.close(self._wake)
            self._thread.join()
            os.close(self._woken)

    def read(self, region: Region) -> bytes:
        """A copy of the region (SHARED_MEMORY_INVALID)."""
        return self._found(region)[region.offset : region.offset + region.size]

    def sink(self, region: Region) -> Sink:
        """A place for results (SHARED_MEMORY_INVALID)."""
        return Sink(self._found(region), region)

    def _found(self, region: Region) -> mmap.mmap:
        segment = self._mapped.get(region.segment)
        if segment is None:
            raise Invalid(
                "SHARED_MEMORY_INVALID",
                f"this server was given no segment {region.segment[:40]!r}, or its client has "
                "gone; hand segments over through the socket that DescribeServer names",
            )
        if region.offset + region.size > len(segment):
            raise Invalid(
                "SHARED_MEMORY_INVALID",
                f"segment {region.segment} has {len(segment)} bytes but {region.size} are asked "
                f"for from byte {region.offset} on",
            )
        return segment

    def _attend(self) -> None:
        """Takes segments until told to end, and forgets those whose clients have gone."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._woken, selectors.EVENT_READ)
            selector.register(self._listener, selectors.EVENT_READ)
            while True:
                ready = [key.fileobj for key, _ in selector.select()]
                if self._woken in ready:
                    break
                for each in ready:
                    if each is self._listener:
                        self._accept(selector)
                    elif isinstance(each, socket.socket) and not self._take(each):
                        selector.unregister(each)
                        self._forget(each)
        for each in [*self._names]:
            self._forget(each)
        self._listener.close()
        with contextlib.suppress(OSError):
            os.unlink(os.path.basename(self.path), dir_fd=self._folder)
        os.close(self._folder)

    def _accept(self, selector: selectors.BaseSelector) -> None:
        try:
            client, _ = self._listener.accept()
        except OSError as failure:  # such as too many open files
            log.error("a client's segment was not taken: %s", failure)
            sleep(_RETRY_SECONDS)
            return
        if len(self._names) >= MOST_SEGMENTS:
            client.close()
            return
        client.setblocking(False)
        self._names[client] = ""
        selector.register(client, selectors.EVENT_READ)

    def _take(self, client: socket.socket) -> bool:
        """Maps the segment that a client sends; False where the client has gone or is odd."""
        try:
            data, descriptors, _, _ = socket.recv_fds(client, 64, 1)
            try:
                if not data or len(descriptors) != 1 or self._names[client]:
                    return False
                answer = self._map(client, descriptors[0])
            finally:
                for each in descriptors:
                    os.close(each)
            client.send(answer.encode())
        except OSError:
            return False
        return bool(self._names[client])

    def _map(self, client: socket.socket, descriptor: int) -> str:
        """The name of a segment; or why it is none."""
        if not _keeps_its_size(descriptor):
            return "a segment is a memfd of ordinary pages with the seal F_SEAL_SHRINK"
        size = os.fstat(descriptor).st_size
        if not 0 < size <= self._room:
            return (
                f"the segment has {size} bytes, but clients may share {self._room} more; start "
                "the server with a larger --max-shared-bytes"
            )
        try:
            mapped = mmap.mmap(descriptor, size)
        except (OSError, ValueError) as failure:
            return f"the segment cannot be mapped for reading and writing: {failure}"
        name = token_hex(16)
        self._room -= size
        self._names[client] = name
        self._mapped[name] = mapped
        return name

    def _forget(self, client: socket.socket) -> None:
        """Calls that are reading or writing the segment keep its mapping until they are done."""
        segment = self._mapped.pop(self._names.pop(client), None)
        self._room += 0 if segment is None else len(segment)
        client.close()


class Sink:
    """Where the large results of one answer go, while there is room."""

    def __init__(self, segment: mmap.mmap, region: Region) -> None:
        self._segment = segment
        self._name = region.segment
        self._at = region.offset
        self._end = region.offset + region.size
        self.written = 0

    def put(self, data: bytes | memoryview) -> Region | None:
        """Where the bytes are now; None where there is no room for them."""
        start = self._at + -self._at % _ALIGNMENT
        stop = start + len(data)
        if stop > self._end:
            return None
        self._segment[start:stop] = data
        self._at = stop
        self.written += len(data)
        return Region(self._name, start, len(data))


def _keeps_its_size(descriptor: int) -> bool:
    """Whether every page of the file can be reached for as long as it is mapped."""
    import fcntl  # not on every system

    try:
        seals = fcntl.fcntl(descriptor, fcntl.F_GET_SEALS)
    except OSError:  # not a memfd
        return False
    # huge pages may be missing when they are touched, although the file is large enough
    return bool(seals & fcntl.F_SEAL_SHRINK) and os.fstatvfs(descriptor).f_bsize == mmap.PAGESIZE


def require_directory(directory: str) -> None:
    """Makes the directory where it is missing (SharedMemoryError where it may be others')."""
    os.close(_opened(directory))


def _opened(directory: str) -> int:
    if not hasattr(os, "memfd_create"):
        raise SharedMemoryError("cannot share memory: this system has no memfd, Linux has")
    try:
        return open_ours(directory, make=True)
    except FolderError as failure:
        raise SharedMemoryError(f"cannot share memory in {directory}: {failure}") from None
    except OSError as failure:
        raise _unusable(directory, failure) from None


def _unusable(directory: str, failure: OSError) -> SharedMemoryError:
    return SharedMemoryError(
        f"cannot share memory in {directory}: {failure}; name a directory with a short path that "
        "can be written, such as /dev/shm/gradwire"
    )


def _listen(directory: str, folder: int) -> tuple[str, socket.socket]:
    """A socket of this process alone, in the directory."""
    token = token_hex(8)
    name, draft = f"{token}.socket", f"{token}.new"
    path = os.path.join(os.path.abspath(directory), name)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        # under its name only once it listens: until then another server would take it for dead
        listener.bind(os.path.join(os.path.dirname(path), draft))
        listener.listen()
        listener.setblocking(False)
        os.rename(draft, name, src_dir_fd=folder, dst_dir_fd=folder)
    except OSError:
        listener.close()
        raise
    return path, listener


def _remove_dead_sockets(directory: str, folder: int) -> None:
    """Those of servers that were killed."""
    for name in filter(_SOCKET.fullmatch, os.listdir(folder)):
        # other errors: a full queue is alive, and a file that went is gone
        with (
            socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe,
            contextlib.suppress(OSError),
        ):
            probe.setblocking(False)
            if stat.S_ISSOCK(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
                try:
                    probe.connect(os.path.join(directory, name))
                except ConnectionRefusedError:
                    os.unlink(name, dir_fd=folder)
