"""Rounds with a quiet half and one beside neighbours: a loop for each processor that never sleeps.

All contenders take their turn in both halves of every round.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from time import perf_counter

from benchmarks.harness import Case, rotated

#: Long enough for the kernel's scheduler to have given and taken processors many times.
TURN_SECONDS = 0.4
_LEAST_CALLS = 3

#: It ends with its parent, however that ends: nobody holds its input open then.
_LOOP = """
import sys, threading

busy = threading.Event()

def loop():
    while busy.wait():
        for _ in range(100_000):
            pass

threading.Thread(target=loop, daemon=True).start()
for told in sys.stdin:
    (busy.set if told == "busy\\n" else busy.clear)()
"""

Call = Callable[[], object]
Tell = Callable[[str], None]


@contextmanager
def neighbours() -> Iterator[Tell]:
    """Loops, which rest at first; "busy" and "quiet" are told to all of them."""
    command = [sys.executable, "-c", _LOOP]
    loops = [
        subprocess.Popen(command, stdin=subprocess.PIPE, text=True) for _ in os.sched_getaffinity(0)
    ]

    def tell(kind: str) -> None:
        for each in loops:
            print(kind, file=each.stdin, flush=True)

    try:
        yield tell
    finally:
        for each in loops:
            each.kill()
            each.communicate()


def cases(name: str, contenders: Mapping[str, Call], tell: Tell, rounds: int) -> list[Case]:
    """A call of each contender, quiet and busy: the mean of a turn; the longest; the slowdown."""
    rows = {
        kind: Case(f"{name}, {kind}", kind, 0, unit="x" if kind == "slowdown" else "ms")
        for kind in ("quiet", "busy", "busy, longest", "slowdown")
    }
    for row in rows.values():
        row.figures = {contender: [] for contender in contenders}
    for call in contenders.values():
        turn(call)
    for number in range(rounds):
        for kind in ("quiet", "busy"):
            tell(kind)
            for contender in rotated([*contenders], number):
                mean, longest = turn(contenders[contender])
                rows[kind].figures[contender].append(mean)
                if kind == "busy":
                    quiet = rows["quiet"].figures[contender][-1]
                    rows["busy, longest"].figures[contender].append(longest)
                    rows["slowdown"].figures[contender].append(mean / quiet)
    tell("quiet")
    return [*rows.values()]


def turn(call: Call) -> tuple[float, float]:
    """Mean and longest of as many calls as fit; the first, with cold caches, does not count."""
    call()
    found: list[float] = []
    began = perf_counter()
    while len(found) < _LEAST_CALLS or perf_counter() - began < TURN_SECONDS:
        before = perf_counter()
        call()
        found.append(perf_counter() - before)
    return sum(found) / len(found), max(found)
