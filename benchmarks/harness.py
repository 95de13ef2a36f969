"""Rounds in which every contender takes its turn, and what is kept of them.

Figures of different runs are never compared. Within a run the contenders take turns, round after
round, beginning with another one each time, so that what disturbs the machine disturbs all of
them; a ratio is taken within a round, and its median and spread over the rounds are kept.
"""

from __future__ import annotations

import gc
import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
import numpy.typing as npt

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "results"
#: Environments, programs and results that can be made again.
CACHE = FOLDER / ".cache"

OURS = "Gradwire"
#: Until a server that finds its kernels on disk has them.
WARM_SECONDS = 4.0

#: A turn repeats its call until it has taken about this long.
TURN_SECONDS = 0.1
_MOST_REPEATS = 10_000
#: Who takes longer than this for one call, rests after the third round.
_SLOW_SECONDS = 1.0
_SLOW_ROUNDS = 3


class UnableError(Exception):
    """A contender cannot do this case; the text says why, and goes into the table."""


class WrongResultError(Exception):
    """A contender computes something else: nothing is timed."""


@dataclass
class Case:
    """One row of a table: what every contender took, round by round, or why it took no part.

    Figures are seconds, or bytes; the table shows them in `unit`, divided by `per`.
    """

    name: str
    group: str  # cases of one group form one line of a plot
    size: float  # where the case stands on the plot's axis
    per: float = 1.0
    unit: str = "ns"
    figures: dict[str, list[float]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Goal:
    """Ours takes at most `most` times as long as the fastest of the peers, in every case chosen.

    Without peers, ours is at most `most`, in seconds or bytes, shown in `unit`.
    """

    text: str
    peers: tuple[str, ...]
    most: float
    group: str = ""
    least_size: float = 0
    unit: str = "s"
    who: str = OURS  # which of ours, where several take part


@dataclass
class Report:
    """What one benchmark found."""

    benchmark: str
    title: str
    remarks: list[str] = field(default_factory=list)
    cases: list[Case] = field(default_factory=list)
    goals: list[Goal] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)

    def write(self, results: Path) -> Path:
        """As JSON, for the page."""
        results.mkdir(exist_ok=True)
        path = results / f"{self.benchmark}.json"
        path.write_text(json.dumps({"machine": machine(), **asdict(self)}, indent=1) + "\n")
        return path


@dataclass(frozen=True)
class Spread:
    """Smallest, middle and largest of several figures."""

    least: float
    median: float
    most: float

    @classmethod
    def of(cls, figures: list[float]) -> Spread:
        return cls(min(figures), median(figures), max(figures))


def race(case: Case, contenders: Mapping[str, Callable[[], object]], rounds: int) -> None:
    """Times every contender in every round, into the case."""
    repeats = {name: _repeats(call) for name, call in contenders.items()}
    names = list(contenders)
    case.figures |= {name: [] for name in names}
    gc.collect()
    gc.freeze()  # nobody's collections walk through the programs that others have built
    try:
        for turn in range(rounds):
            for name in rotated(names, turn):
                taken = case.figures[name]
                if turn < _SLOW_ROUNDS or min(taken) <= _SLOW_SECONDS:
                    taken.append(_timed(contenders[name], repeats[name]))
    finally:
        gc.unfreeze()


def rotated(names: list[str], turn: int) -> list[str]:
    """All of them, beginning with another one in each turn."""
    first = turn % len(names)
    return names[first:] + names[:first]


def _repeats(call: Callable[[], object]) -> int:
    """How often a turn repeats a call, which is run here for the first time as well."""
    call()
    once = _timed(call, 1)
    return max(1, min(_MOST_REPEATS, int(TURN_SECONDS / max(once, 1e-9))))


def _timed(call: Callable[[], object], repeats: int) -> float:
    began = perf_counter()
    for _ in range(repeats):
        call()
    return (perf_counter() - began) / repeats


def seconds_of(call: Callable[[], object]) -> float:
    """One call, timed."""
    return _timed(call, 1)


def require_equal(
    who: str, what: str, found: npt.ArrayLike, expected: npt.ArrayLike, tolerance: float = 1e-9
) -> None:
    """Compares a contender's numbers with ours (WrongResultError)."""
    found, expected = np.asarray(found), np.asarray(expected)
    if found.shape != expected.shape:
        raise WrongResultError(f"{who}: {what} has shape {found.shape}, ours {expected.shape}")
    # a sum that cancels is only as exact as its terms, whose size the largest number stands for
    rounding = 16 * np.finfo(expected.dtype).eps * np.abs(expected).max(initial=0)
    allowed = tolerance * np.abs(expected) + rounding
    wrong = ~(np.abs(found - expected) <= allowed)
    if wrong.any():
        worst = int(np.argmax(np.where(wrong, np.abs(found - expected) - allowed, -1)))
        raise WrongResultError(
            f"{who}: {np.count_nonzero(wrong)} of {wrong.size} in {what} differ from ours, such as "
            f"{found.flat[worst]!r} for {expected.flat[worst]!r}; mend the contender, or Gradwire"
        )


def machine() -> dict[str, str | int]:
    """What the figures were measured on."""
    cpu = "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            cpu = line.partition(":")[2].strip()
            break
    return {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "commit": _commit(),
    }


def versions(*packages: str) -> dict[str, str]:
    """Of the packages that are installed."""
    found = {}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _commit() -> str:
    ask = ["git", "-C", str(FOLDER), "describe", "--always", "--dirty"]
    return subprocess.run(ask, capture_output=True, text=True, check=False).stdout.strip()
