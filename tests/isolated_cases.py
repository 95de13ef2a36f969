"""What a process that reads may run into; `test_isolation` runs these in children."""

from __future__ import annotations

import os
import re
import signal
from threading import Event
from typing import NoReturn

from gradwire.errors import TextError
from gradwire.isolated import HEAD, Answer


def say(text: str) -> Answer:
    """An answer, and which process gave it."""
    return Answer(text.encode(), {"process": str(os.getpid())})


def crash() -> NoReturn:
    """As a library of C does."""
    os.kill(os.getpid(), signal.SIGSEGV)
    raise AssertionError


def hold_lock(begun: str) -> NoReturn:
    """Holds the interpreter's lock in C, and leaves its process's number in a file."""
    with open(f"{begun}.draft", "w") as file:
        file.write(str(os.getpid()))
    os.rename(f"{begun}.draft", begun)
    re.match("(a+)+$", "a" * 100 + "b")
    raise AssertionError


def wait() -> NoReturn:
    """Takes no processor time."""
    while True:
        Event().wait()


def grow() -> NoReturn:
    """Takes memory until there is none."""
    held = []
    while True:
        held.append(bytearray(1 << 24))


def refuse() -> NoReturn:
    raise TextError("EXPRESSION_INVALID", "line 2", {"line": "2", "column": "7"})


def fail() -> NoReturn:
    raise ZeroDivisionError("a fault of \x1b[31mours")


def lie() -> bytes:
    """Says that a graph of 4 GiB follows, on whichever descriptor the answers go."""
    for descriptor in range(3, 16):
        try:
            os.write(descriptor, HEAD.pack(b"R", True, 0, 0xFFFFFFFF))
        except OSError:
            continue
    return b""
