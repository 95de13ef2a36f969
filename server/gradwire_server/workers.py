"""Several server processes on one port: reserved once, shared on purpose, watched until the end.

The kernel deals connections out between processes that listen with SO_REUSEPORT. It would deal
them out to a second server started by mistake too, so the port is first taken as if it were not to
be shared, and only then opened to processes of ours; nobody else gets it while we live.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
from collections.abc import Callable
from contextlib import ExitStack
from multiprocessing import connection, get_context
from threading import Thread
from time import monotonic
from typing import Protocol

log = logging.getLogger("gradwire")

#: Fork would copy grpc's threads and locks in whatever state they are.
_SPAWN = get_context("spawn")


#: What tells a process to end; SIGHUP comes when its terminal closes.
_ALWAYS = (signal.SIGTERM, signal.SIGINT)
_ENDS = (*_ALWAYS, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else []))

#: Seconds until a worker is replaced that ended at once: twice as long each time, and no longer.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 30.0
#: One that listened for so long is replaced at once.
_STEADY_SECONDS = 10.0


class AddressError(Exception):
    """The address cannot be listened on."""

    @classmethod
    def of(cls, address: str) -> AddressError:
        return cls(
            f"cannot listen on {address}: it is in use, not of this machine, or not an "
            "address; give HOST:PORT with another port (0 for any free one) or unix:PATH"
        )


class WorkerError(Exception):
    """A worker ended before it ever listened."""


class Job(Protocol):
    """What a worker does: calls `listens` once it does, returns when `told` is."""

    def __call__(self, address: str, told: Told, listens: Callable[[], None]) -> None: ...


class Told:
    """Whether this process was told to end, by a signal or by losing its parent."""

    def __init__(self) -> None:
        self.descriptor, self._write = os.pipe()  # readable once told
        os.set_blocking(self._write, False)
        # a signal that another thread gets would not wake this one, a byte in the pipe does
        signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        for each in _ENDS:
            if each in _ALWAYS or signal.getsignal(each) is not signal.SIG_IGN:  # as under nohup
                signal.signal(each, lambda *_: None)

    def tell(self) -> None:
        """Ends whoever waits, now and later."""
        os.write(self._write, b".")

    def wait(self) -> None:
        """Until told."""
        connection.wait([self.descriptor])


def reserve(address: str, stack: ExitStack) -> str:
    """Takes HOST:PORT for processes of ours, until the stack closes; returns it with its port.

    AddressError where it is taken already, by ours or by others.
    """
    host, _, port = address.rpartition(":")
    if address.startswith("unix:") or not hasattr(socket, "SO_REUSEPORT"):
        raise AddressError(
            f"cannot listen on {address} with several workers: they share a port, which takes "
            "HOST:PORT and a system with SO_REUSEPORT; leave --workers out"
        )
    try:
        number = int(port)
        found = socket.getaddrinfo(host.strip("[]"), number, type=socket.SOCK_STREAM)
        for family, kind, protocol, _, place in found:
            holder = stack.enter_context(socket.socket(family, kind, protocol))
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections that linger
            holder.bind((place[0], number, *place[2:]))
            number = holder.getsockname()[1]
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    except (OSError, OverflowError, ValueError):
        raise AddressError.of(address) from None
    return f"{host}:{number}"


def supervise(address: str, count: int, job: Job, announce: Callable[[str], None]) -> None:
    """Runs workers until told to end, then lets them drain; one that dies is replaced, for ever.

    `job` is pickled. WorkerError where one of the first ends before it listens.
    """
    told = Told()
    with ExitStack() as stack:
        reserved = reserve(address, stack)
        workers: set[_Worker] = set()
        stack.callback(_end, workers)
        for _ in range(count):
            workers.add(_Worker(job, reserved))
        if all(worker.wait_until_listening(told) for worker in workers):
            announce(reserved)
        _replace_the_dead(workers, told)


def _replace_the_dead(workers: set[_Worker], told: Told) -> None:
    """Until told to end."""
    due: list[tuple[float, _Worker]] = []  # when, and whose successors
    while True:
        pause = max(0.0, min(when for when, _ in due) - monotonic()) if due else None
        waking = [told.descriptor, *(worker.sentinel for worker in workers)]
        if told.descriptor in connection.wait(waking, pause):
            return
        for dead in [worker for worker in workers if not worker.alive]:
            workers.remove(dead)
            seconds = dead.pause()
            after = f" in {seconds:g} seconds" if seconds else ""
            log.error("%s; another is started in its place%s", dead.obituary(), after)
            due.append((monotonic() + seconds, dead))
        now = monotonic()
        for each in [each for each in due if each[0] <= now]:
            due.remove(each)
            workers.add(each[1].successor())


def _end(workers: set[_Worker]) -> None:
    for worker in workers:
        worker.tell()
    for worker in workers:
        worker.join()


class _Worker:
    """One process, and the pipe that it reports on and lives by."""

    def __init__(self, job: Job, address: str, failures: int = 0) -> None:
        self._job = job
        self._address = address
        self._failures = failures  # of those before it that ended at once
        self._pipe, theirs = _SPAWN.Pipe()
        self._process = _SPAWN.Process(target=_work, args=(job, address, theirs))
        self._process.start()
        self._started = monotonic()
        theirs.close()
        self._listened = False

    @property
    def sentinel(self) -> int:
        return self._process.sentinel

    @property
    def alive(self) -> bool:
        return self._process.is_alive()

    def wait_until_listening(self, told: Told) -> bool:
        """False where told to end before (WorkerError)."""
        if told.descriptor in connection.wait([told.descriptor, self._pipe]):
            return False
        self._require_listened()
        log.info("worker %s listens", self._process.pid)
        return True

    def pause(self) -> float:
        """Seconds until its successor starts, now that it has ended: none after a steady one."""
        if self._has_listened() and monotonic() - self._started > _STEADY_SECONDS:
            self._failures = 0
            return 0.0
        self._failures += 1
        return min(_LONGEST_PAUSE, _FIRST_PAUSE * 2.0 ** min(self._failures - 1, 10))

    def obituary(self) -> str:
        """How it ended."""
        listened = "" if self._has_listened() else f" before it listened on {self._address}"
        return f"{self._ending()}{listened}"

    def successor(self) -> _Worker:
        self._pipe.close()
        return _Worker(self._job, self._address, self._failures)

    def tell(self) -> None:
        """Tells it to drain and end."""
        self._process.terminate()

    def join(self) -> None:
        self._process.join()

    def _require_listened(self) -> None:
        if not self._has_listened():
            self._process.join()
            raise WorkerError(
                f"{self._ending()} before it listened on {self._address}; the log says why"
            )

    def _has_listened(self) -> bool:
        """Whether it said so; to be asked when it did or ended."""
        try:
            self._listened = self._listened or bool(self._pipe.recv())
        except (EOFError, OSError):
            return False
        return self._listened

    def _ending(self) -> str:
        return f"worker {self._process.pid} ended with exit code {self._process.exitcode}"


def _work(job: Job, address: str, pipe: connection.Connection) -> None:
    told = Told()

    def end_with_the_parent() -> None:
        try:
            pipe.recv()  # nothing is ever sent: this ends when the parent does
        except (EOFError, OSError):
            told.tell()

    Thread(target=end_with_the_parent, daemon=True).start()
    job(address, told, lambda: pipe.send(True))
