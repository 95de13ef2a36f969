"""Work on what is not trusted, in processes of its own that may be killed.

A model can crash the library that reads it, hold the interpreter's lock, or take all memory. So a
child process reads it, under limits of address space and processor time where the system has them,
and of time on the clock everywhere. Children are started anew (never forked: a process with gRPC
cannot be) and stay warm for the next job. One ends when its time is over, when its job is
cancelled, and when its parent is gone, for then its pipe is closed. What it answers is no more
trusted than a message from the network.
"""

from __future__ import annotations

import atexit
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from threading import Lock, Semaphore, Timer
from typing import Any

from gradwire import isolated
from gradwire.errors import (
    CancelledError,
    GradwireError,
    InvalidRequestError,
    LimitError,
    UnavailableError,
)
from gradwire.isolated import HEAD, Answer, Task, error_in, facts_in, has_limits, no_answer
from gradwire.visible import visible_lines

_MIB = 1 << 20
#: Seconds on the clock for each of processor time: a busy machine is no reason to refuse.
_PATIENCE = 10
_CHUNK = 1 << 20
_COMMAND = "import sys; sys.path[:] = {path!r}; from gradwire.isolated import main; main()"
#: A process each: threads for products would only take address space.
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Bounds:
    """What one job may use, and what a refusal advises, where `{limit}` is what was passed."""

    advice: str
    memory_bytes: int = 4096 * _MIB
    seconds: int = 300
    answer_bytes: int = (1 << 31) - 1

    def refusal(self, limit: str, message: str) -> LimitError:
        """That a job passed a limit."""
        value = {
            "max-read-bytes": self.memory_bytes,
            "max-read-seconds": self.seconds,
            "max-message-bytes": self.answer_bytes,
        }[limit]
        facts = {"limit": limit, "value": str(value)}
        return LimitError("LIMIT_EXCEEDED", f"{message}; {self.advice.format(limit=limit)}", facts)


class Pool:
    """A few child processes, and a turn for each job that wants one."""

    def __init__(self, most: int, imports: tuple[str, ...] = ()) -> None:
        """Children import these modules before their first job, where they are installed."""
        self._imports = imports
        self._turns = Semaphore(most)
        self._lock = Lock()
        self._idle: list[_Child] = []
        self._busy: dict[Job, _Child] = {}
        self._open = True

    def warm(self) -> None:
        """Starts a child that waits for the first job."""
        with self._lock:
            if self._open and not self._idle and not self._busy:
                self._idle.append(_Child(self._imports))

    def job(self, function: str, *arguments: Any, what: str, bounds: Bounds) -> Job:
        """A job that calls "module:function" with these arguments, which are pickled.

        The function returns the bytes of a graph, or an Answer. `what` is read, for messages.
        """
        return Job(self, function, arguments, what, bounds)

    @contextmanager
    def child(self, job: Job) -> Iterator[_Child]:
        """A child for a job, when one is free; it stays only where it says that it may."""
        with self._turns:
            with self._lock:
                job.require_wanted()
                if not self._open:
                    raise CancelledError("CANCELLED", "no more is read: the pool is closed")
                found = self._busy[job] = self._waiting() or _Child(self._imports)
            try:
                yield found
            finally:
                with self._lock:
                    del self._busy[job]
                    stays = found.may_stay and self._open
                    if stays:
                        self._idle.append(found)
                if not stays:
                    found.kill()

    def close(self) -> None:
        """Kills every child."""
        with self._lock:
            self._open = False
            idle, self._idle = self._idle, []
            busy = [*self._busy]
        for job in busy:
            job.cancel()
        for child in idle:
            child.kill()

    def _waiting(self) -> _Child | None:
        while self._idle:
            found = self._idle.pop()
            if found.lives:
                return found
            found.kill()
        return None


class Job:
    """One call in a child; `cancel` may come from any thread, at any time."""

    def __init__(
        self, pool: Pool, function: str, arguments: tuple[Any, ...], what: str, bounds: Bounds
    ) -> None:
        self._pool = pool
        self._function = function
        self._arguments = arguments
        self._what = what
        self._bounds = bounds
        self._lock = Lock()
        self._child: _Child | None = None
        self._cancelled = False

    def result(self) -> Answer:
        """What the function returned, or its GradwireError.

        LIMIT_EXCEEDED, MODEL_INVALID where the child died of it, CANCELLED, UNAVAILABLE.
        """
        bounds = self._bounds
        seconds = bounds.seconds * _PATIENCE if has_limits() else bounds.seconds
        with self._pool.child(self) as child:
            with self._lock:
                self._child = child
            self.require_wanted()
            timer = Timer(seconds, child.expire)
            timer.daemon = True
            timer.start()
            try:
                return self._checked(*child.ask(pickle.dumps(self._task()), bounds.answer_bytes))
            except (EOFError, OSError):
                self.require_wanted()
                raise self._cause_of_death(child, seconds) from None
            finally:
                timer.cancel()
                with self._lock:
                    self._child = None

    def cancel(self) -> None:
        """Ends the job, and the child that works on it."""
        with self._lock:
            self._cancelled = True
            if self._child is not None:
                self._child.stop()

    def require_wanted(self) -> None:
        """CANCELLED where nobody waits for the job any more."""
        if self._cancelled:
            raise CancelledError("CANCELLED", "reading was cancelled")

    def _task(self) -> Task:
        bounds, folder = self._bounds, None
        with suppress(OSError):  # it was removed
            folder = os.getcwd()
        limits = bounds.memory_bytes, bounds.seconds, bounds.answer_bytes
        return Task(self._function, self._arguments, folder, *limits)

    def _checked(self, kind: bytes, facts: bytes, body: bytes) -> Answer:
        bounds = self._bounds
        match kind:
            case isolated.RESULT:
                return Answer(body, facts_in(facts))
            case isolated.REFUSAL:
                raise error_in(facts)
            case isolated.NO_MEMORY:
                size = bounds.memory_bytes // _MIB
                message = f"{self._what}: reading it takes more than {size} MiB of memory"
                raise bounds.refusal("max-read-bytes", message)
            case isolated.TOO_LARGE:
                size = bounds.answer_bytes
                message = f"{self._what}: its graph is over the limit of {size} bytes"
                raise bounds.refusal("max-message-bytes", message)
        # a fault of ours, as visible as it would be in this process
        raise RuntimeError("a reader failed:\n" + visible_lines(facts.decode(errors="replace")))

    def _cause_of_death(self, child: _Child, seconds: int) -> GradwireError:
        bounds, code = self._bounds, child.exit_code()
        if child.expired:
            message = f"{self._what}: reading it takes more than {seconds} seconds"
            return bounds.refusal("max-read-seconds", message)
        if code == -getattr(signal, "SIGXCPU", 0):
            of_cpu = f"{bounds.seconds} seconds of processor time"
            message = f"{self._what}: reading it takes more than {of_cpu}"
            return bounds.refusal("max-read-seconds", message)
        if code == -getattr(signal, "SIGKILL", 0):
            message = f"{self._what}: the system ended its reader, as where memory is short"
            return bounds.refusal("max-read-bytes", message)
        return InvalidRequestError(
            "MODEL_INVALID",
            f"{self._what}: its reader ended by {_ending(code)}: something in it breaks the "
            "library that reads it; write it again with the program that it is from",
        )


def _ending(code: int) -> str:
    with suppress(ValueError):
        return signal.Signals(-code).name
    return f"exit code {code}"


@dataclass(eq=False)
class _Child:
    """One process; whoever takes it has it alone."""

    imports: tuple[str, ...]
    may_stay: bool = False
    expired: bool = False
    _process: subprocess.Popen[bytes] = field(init=False)

    def __post_init__(self) -> None:
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _COMMAND.format(path=sys.path), *self.imports],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,
                env={**os.environ, **_ONE_THREAD},
            )
        except OSError as failure:
            message = f"no process can be started that reads: {failure}; ask again later"
            raise UnavailableError("UNAVAILABLE", message) from None

    @property
    def lives(self) -> bool:
        return self._process.poll() is None

    def ask(self, task: bytes, most: int) -> tuple[bytes, bytes, bytes]:
        """Kind, facts and body of an answer.

        INTERNAL where it is none; EOFError or OSError where the child is gone.
        """
        self.may_stay = False
        assert self._process.stdin is not None
        stdin = self._process.stdin
        pieces = memoryview(HEAD.pack(b"T", False, 0, len(task)) + task)
        while pieces:
            pieces = pieces[stdin.write(pieces[:_CHUNK]) or 0 :]
        kind, stays, facts_size, size = HEAD.unpack(self._read(HEAD.size))
        if facts_size > isolated.MOST_FACTS or size > most:
            raise no_answer()
        facts, body = self._read(facts_size), self._read(size)
        self.may_stay = stays
        return kind, facts, body

    def _read(self, size: int) -> bytes:
        """So many bytes, which take memory only as they come."""
        assert self._process.stdout is not None
        found = bytearray()
        while len(found) < size:
            piece = self._process.stdout.read(min(_CHUNK, size - len(found)))
            if not piece:
                raise EOFError
            found += piece
        return bytes(found)

    def expire(self) -> None:
        self.expired = True
        self.stop()

    def stop(self) -> None:
        """Kills the process; whoever waits for its answer sees its end."""
        self._process.kill()

    def kill(self) -> None:
        """Kills it, and lets go of it."""
        self.stop()
        for each in (self._process.stdin, self._process.stdout):
            if each is not None:
                with suppress(OSError):
                    each.close()
        self._process.wait()

    def exit_code(self) -> int:
        """How it ended; one that still lives, but whose pipe is closed, is killed."""
        try:
            return self._process.wait(1)
        except subprocess.TimeoutExpired:
            self.stop()
            return self._process.wait()


@cache
def _own_pool(process: int) -> Pool:
    """One a process: what is forked from it must not talk to its children, nor end them."""
    found = Pool(os.cpu_count() or 1, ("gradwire.onnx.apart",))
    atexit.register(lambda: found.close() if os.getpid() == process else None)
    return found


def own_pool() -> Pool:
    """The pool of this process, for models; its children end with it."""
    return _own_pool(os.getpid())
