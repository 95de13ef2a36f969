"""The child of `isolation`: takes one task after another from stdin, answers on stdout.

What is written here about messages holds for both sides. A message has a head (its kind, whether
the child may have another task, and the sizes of what follows), facts as JSON, and a body. A task's
body is pickled, for a child trusts its parent; an answer's is a graph's bytes.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import signal
import struct
import sys
import time
import traceback
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from queue import SimpleQueue
from threading import Thread
from typing import Any, BinaryIO, NamedTuple

from gradwire import errors
from gradwire.errors import GradwireError, ServerError

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

HEAD = struct.Struct("<c?II")
RESULT, REFUSAL, NO_MEMORY, TOO_LARGE, FAULT = b"R", b"E", b"M", b"L", b"F"
MOST_FACTS = 1 << 20

_MOST_LETTERS = 1 << 17
_REASON = re.compile("[A-Z][A-Z0-9_]{0,63}")
#: A child that has taken more memory than this ends after its answer.
_MOST_KEPT = 512 << 20


class Answer(NamedTuple):
    """The bytes of a graph, and what is known beside it."""

    graph: bytes
    facts: Mapping[str, str]


@dataclass(frozen=True)
class Task:
    """A function of a module, and what it may use."""

    function: str
    arguments: tuple[Any, ...]
    folder: str | None
    memory_bytes: int
    seconds: int
    answer_bytes: int


@dataclass
class _Message:
    kind: bytes
    facts: bytes = b""
    body: bytes = field(default=b"", repr=False)


def has_limits() -> bool:
    """Whether the system limits a process's address space and processor time."""
    return resource is not None


def facts_in(data: bytes) -> dict[str, str]:
    """The facts of an answer: strings by name (INTERNAL)."""
    found = _json(data)
    if not isinstance(found, dict) or not all(isinstance(each, str) for each in found.values()):
        raise no_answer()
    return found


def error_in(data: bytes) -> GradwireError:
    """The error of an answer, of one of our kinds."""
    found = _json(data)
    match found:
        case {"kind": str(kind), "reason": str(reason), "message": str(message), "facts": facts}:
            made: Any = getattr(errors, kind, None) if kind in errors.__all__ else None
            is_ours = isinstance(made, type) and issubclass(made, GradwireError)
            are_texts = isinstance(facts, dict) and all(
                isinstance(it, str) for it in facts.values()
            )
            if is_ours and are_texts and _REASON.fullmatch(reason):
                error: GradwireError = made(reason, message[:_MOST_LETTERS], facts)
                return error
    return no_answer()


def _json(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def no_answer() -> GradwireError:
    """What no child of ours says, unless what it read has taken it over."""
    return ServerError("INTERNAL", "the process that read it answered what is no answer")


def main() -> None:
    """The child's life: until stdin closes, which is when the parent lets go or dies."""
    for name in ("SIGINT", "SIGTERM"):  # meant for the parent, who may still want its answers
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "wb", 0)
    os.dup2(2, 1)  # what libraries print is no answer
    if resource is not None:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    tasks: SimpleQueue[bytes] = SimpleQueue()
    Thread(target=_listen, args=(os.fdopen(os.dup(0), "rb"), tasks), daemon=True).start()
    for name in sys.argv[1:]:
        with suppress(ImportError, GradwireError):
            import_module(name)
    while True:
        data = tasks.get()
        with _ending_with_the_parent():
            found = _answer(data)
        _send(answers, found)


class _ending_with_the_parent:  # noqa: N801 -- used as a function
    """On Linux the parent's end is a signal, which also ends who holds the interpreter's lock."""

    def __enter__(self) -> None:
        self._set(True)

    def __exit__(self, *_: object) -> None:
        self._set(False)

    def _set(self, on: bool) -> None:
        if sys.platform == "linux":
            import fcntl

            fcntl.fcntl(0, fcntl.F_SETOWN, os.getpid())
            flags = fcntl.fcntl(0, fcntl.F_GETFL)
            flags = flags | os.O_ASYNC if on else flags & ~os.O_ASYNC
            fcntl.fcntl(0, fcntl.F_SETFL, flags)


def _listen(stdin: BinaryIO, tasks: SimpleQueue[bytes]) -> None:
    while len(head := stdin.read(HEAD.size)) == HEAD.size:
        *_, size = HEAD.unpack(head)
        data = stdin.read(size)
        if len(data) < size:
            break
        tasks.put(data)
    os._exit(0)


def _answer(data: bytes) -> _Message:
    try:
        task: Task = pickle.loads(data)
        del data
        _limit(task.memory_bytes, task.seconds)
        if task.folder is not None:
            os.chdir(task.folder)
        module, _, name = task.function.partition(":")
        found = getattr(import_module(module), name)(*task.arguments)
        answer = found if isinstance(found, Answer) else Answer(found, {})
        if len(answer.graph) > task.answer_bytes:
            return _Message(TOO_LARGE)
        return _Message(RESULT, json.dumps(dict(answer.facts)).encode(), answer.graph)
    except GradwireError as error:
        of_memory = isinstance(error.__context__, MemoryError)
        return _Message(NO_MEMORY) if of_memory else _refusal(error)
    except MemoryError:
        return _Message(NO_MEMORY)
    except BaseException:
        return _Message(FAULT, traceback.format_exc()[-_MOST_LETTERS:].encode(errors="replace"))
    finally:
        _limit(None, None)


def _refusal(error: GradwireError) -> _Message:
    facts = {str(name)[:200]: str(fact)[:2000] for name, fact in [*error.facts.items()][:64]}
    said = {
        "kind": type(error).__name__,
        "reason": error.reason,
        "message": error.message[:_MOST_LETTERS],
        "facts": facts,
    }
    return _Message(REFUSAL, json.dumps(said).encode())


def _limit(memory_bytes: int | None, seconds: int | None) -> None:
    """The soft limits, which a process may raise again; None is as much as it may have."""
    if resource is None:
        return
    used = None if seconds is None else int(time.process_time()) + 1 + seconds
    for which, wanted in ((resource.RLIMIT_AS, memory_bytes), (resource.RLIMIT_CPU, used)):
        _, most = resource.getrlimit(which)
        if wanted is None or (most != resource.RLIM_INFINITY and wanted > most):
            wanted = most
        with suppress(ValueError, OSError):  # a system that has the name alone
            resource.setrlimit(which, (wanted, most))


def _send(answers: BinaryIO, message: _Message) -> None:
    stays = message.kind != NO_MEMORY and not _has_grown()
    head = HEAD.pack(message.kind, stays, len(message.facts), len(message.body))
    pieces = memoryview(b"".join((head, message.facts, message.body)))
    while pieces:
        pieces = pieces[answers.write(pieces) or 0 :]
    if not stays:
        os._exit(0)


def _has_grown() -> bool:
    """Whether it took much memory; Linux counts what the parent had into ru_maxrss."""
    with suppress(OSError), open("/proc/self/status") as lines:
        for line in lines:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 > _MOST_KEPT
    if resource is None:
        return False
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit > _MOST_KEPT
