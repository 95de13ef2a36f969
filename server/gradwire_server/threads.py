"""Threads that answer calls: as many as calls may be open, and few of them computing at once.

A call has a thread from its first message to its last, so that no work is handed from one thread
to another. A thread that waits, for a message or for a slow reader, takes no turn to compute.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Condition, Lock, Semaphore, Thread
from typing import Any, Generic, TypeVar

from gradwire_server.errors import OverLimit
from gradwire_server.stopping import stop_if_asked

T = TypeVar("T")

log = logging.getLogger("gradwire")

#: A thread without work for longer ends.
IDLE_SECONDS = 30.0

#: Who waits for a turn looks this often whether the answer is still wanted.
_LOOK_SECONDS = 1.0

#: What `submit` returns: nobody waits for a call through its future.
STARTED: Future[Any] = Future()
STARTED.set_result(None)


class Lane(ThreadPoolExecutor):
    """Threads for one kind of call, made as they are needed; the last to rest is the first to run.

    An executor in type only, which is what grpc asks for: a thread is woken by a lock of its own,
    and there is no future. More than `most` calls queue; who cares asks `full` first.
    """

    def __init__(self, name: str, most: int) -> None:
        super().__init__(1, name)
        self._name = name
        self._most = most
        self._lock = Lock()
        self._resting: list[_Worker] = []
        self._queue: deque[Callable[[], Any]] = deque()
        self._workers = 0
        self._open = True

    @property
    def full(self) -> bool:
        """Whether every thread is taken."""
        return self._workers - len(self._resting) >= self._most

    @property
    def resting(self) -> int:
        """Threads that wait for work."""
        return len(self._resting)

    def submit(self, work: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
        """Runs work(*arguments) on a thread, or as soon as one is free."""
        task = work if not (arguments or named) else _Task(work, arguments, named)
        with self._lock:
            if self._resting:
                self._resting.pop().wake(task)
            elif self._workers >= self._most or not self._started(task):
                self._queue.append(task)
        return STARTED

    def _started(self, task: Callable[[], Any]) -> bool:
        """Runs a task on a new thread; False where the system has none, which passes."""
        try:
            _Worker(self, f"{self._name}-{self._workers + 1}").start(task)
        except RuntimeError as failure:  # a fault here would end the thread that hears all callers
            log.error("%s: %s", self._name, failure)
            return False
        self._workers += 1
        return True

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Lets resting threads end; those that work, end with their work."""
        with self._lock:
            self._open = False
            resting, self._resting = self._resting, []
            for worker in resting:
                self._workers -= 1
                worker.wake(None)

    def next_task(self, worker: _Worker) -> Callable[[], Any] | None:
        """What a worker does next; None: it waits to be woken."""
        with self._lock:
            if self._queue:
                return self._queue.popleft()
            if self._open:
                self._resting.append(worker)
            else:
                self._workers -= 1
                worker.wake(None)
        return None

    def retire(self, worker: _Worker) -> bool:
        """Whether a worker may end, because nobody has just woken it."""
        with self._lock:
            if worker not in self._resting:
                return False
            self._resting.remove(worker)
            self._workers -= 1
            return True


class _Task:
    __slots__ = ("_arguments", "_named", "_work")

    def __init__(
        self, work: Callable[..., Any], arguments: tuple[Any, ...], named: dict[str, Any]
    ) -> None:
        self._work, self._arguments, self._named = work, arguments, named

    def __call__(self) -> Any:
        return self._work(*self._arguments, **self._named)


class _Worker:
    """One thread of a lane."""

    def __init__(self, lane: Lane, name: str) -> None:
        self._lane = lane
        self._thread = Thread(target=self._run, name=name, daemon=True)
        self._woken = Lock()
        self._woken.acquire()
        self._task: Callable[[], Any] | None = None

    def start(self, task: Callable[[], Any]) -> None:
        self._task = task
        self._woken.release()
        self._thread.start()

    def wake(self, task: Callable[[], Any] | None) -> None:
        """Gives a resting worker its next task; None ends it."""
        self._task = task
        self._woken.release()

    def _run(self) -> None:
        while True:
            if not self._woken.acquire(timeout=IDLE_SECONDS):
                if self._lane.retire(self):
                    return
                continue
            task = self._task
            if task is None:
                return
            while task is not None:
                self._task = None
                try:
                    task()
                except Exception:  # grpc's own; a call answers for its faults itself
                    log.exception("fault")
                task = self._lane.next_task(self)


def ahead(items: Iterator[T], lane: Lane, most: int) -> Iterator[T]:
    """The same items, made on another thread while those before them are used.

    At most so many wait to be used. When the user stops, the maker does within one item.
    """
    supply = _Supply[T](most)
    lane.submit(supply.fill, items)
    try:
        while (found := supply.take()) is not None:
            yield from found
    finally:
        supply.close()


class _Supply(Generic[T]):
    """Between the thread that makes items and the one that uses them."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._ready: deque[T] = deque()
        self._changed = Condition()
        self._ended = False  # nothing more is made
        self._closed = False  # nothing more is wanted
        self._failure: BaseException | None = None

    def fill(self, items: Iterator[T]) -> None:
        """Makes items as long as they are wanted."""
        try:
            while self._has_room() and (found := next(items, None)) is not None:
                with self._changed:
                    self._ready.append(found)
                    self._changed.notify()
        except BaseException as failure:
            self._failure = failure
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify()

    def take(self) -> list[T] | None:
        """The items that are ready, at least one; None at the end. Raises what the maker raised."""
        with self._changed:
            self._changed.wait_for(lambda: self._ready or self._ended)
            found = [*self._ready]
            self._ready.clear()
            self._changed.notify()
        if not found and self._failure is not None:
            raise self._failure
        return found or None

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()

    def _has_room(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._closed or len(self._ready) < self._most)
            return not self._closed


class Turns:
    """At most so many threads compute at the same time, and so many wait for it."""

    def __init__(self, most: int, waiting: int) -> None:
        self._may_wait = waiting
        self.waiting = 0
        self._lock = Lock()
        self._free = Semaphore(most)

    def __enter__(self) -> None:
        """Takes a turn, when one is free (LIMIT_EXCEEDED where too many wait; Stopped)."""
        if not self._free.acquire(blocking=False):
            self._wait()

    def __exit__(self, *_: object) -> None:
        self._free.release()

    def _wait(self) -> None:
        with self._lock:
            if self.waiting >= self._may_wait:
                raise OverLimit.of(
                    "max-waiting", self._may_wait, self.waiting + 1, "evaluations waiting"
                )
            self.waiting += 1
        try:
            while not self._free.acquire(timeout=_LOOK_SECONDS):
                stop_if_asked()
        finally:
            with self._lock:
                self.waiting -= 1
