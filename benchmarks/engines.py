"""Scalar circuits in this process: from a hundred gates to a million, wide and deep."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import count
from typing import Any, Protocol

import numpy as np

import gradwire as gw
from benchmarks import libraries, tape
from benchmarks.circuits import KINDS, Circuit, graph_bytes, grow
from benchmarks.harness import (
    OURS,
    Case,
    Goal,
    Report,
    UnableError,
    race,
    require_equal,
    seconds_of,
    versions,
)
from benchmarks.libraries import Kept
from benchmarks.ours import Ours, prepared
from benchmarks.ours import run as run_job
from gradwire.v1 import graph_pb2

#: Longer than this, a case is left out of the table, and the table says so.
MOST_PREPARE_SECONDS = 40.0
MOST_RUN_SECONDS = 3.0
#: Compilers take more than twice as long for twice as much: XLA, measured.
_COMPILERS_GROWTH = 1.4
ROUNDS = 7

SLOW = ("PyTorch", "autograd", "micrograd")
FRESH = "from unseen bytes"
NEW_ARRAYS = f"{OURS}, new arrays"


class Contender(Protocol):
    """A program of one circuit."""

    run: Callable[[], object]

    def kept(self) -> Kept: ...


Maker = Callable[[], Contender]


class Entrants:
    """Peers and what they took at the last size, by which those too slow for the next one go."""

    def __init__(self, makers: Mapping[str, Callable[..., Contender]]) -> None:
        self.makers = makers
        self._last: dict[str, tuple[float, float, float]] = {}
        self.prepare_seconds: dict[str, float] = {}

    def ready(
        self, case: Case, ours: Kept, work: float, *arguments: Any, tolerance: float = 1e-9
    ) -> dict[str, Contender]:
        """Those who can do this case, each compared with ours; the others are noted in it."""
        found: dict[str, Contender] = {}
        self.prepare_seconds = {}
        for name, maker in self.makers.items():
            try:
                self._require_time(name, work)
                made: list[Contender] = []
                prepare = seconds_of(lambda m=maker, made=made: made.append(m(*arguments)))
                kept = made[0].kept()
                run = seconds_of(made[0].run)
            except UnableError as reason:
                case.missing[name] = str(reason)
                continue
            compare(name, case, kept, ours, tolerance)
            self._last[name] = (work, prepare, run)
            self.prepare_seconds[name] = prepare
            if prepare > 1:
                case.notes[name] = f"prepared in {prepare:.0f} s"
            found[name] = made[0]
        return found

    def _require_time(self, name: str, work: float) -> None:
        if name not in self._last:
            return
        before, prepare, run = self._last[name]
        for seconds, growth, most, verb in (
            (prepare, _COMPILERS_GROWTH, MOST_PREPARE_SECONDS, "prepare"),
            (run, 1.0, MOST_RUN_SECONDS, "run once"),
        ):
            expected = seconds * (work / before) ** growth
            if expected > most:
                raise UnableError(
                    f"would take about {expected:,.0f} s to {verb}: "
                    f"{work / before:,.0f} times less took {seconds:,.1f} s"
                )


def compare(name: str, case: Case, kept: Kept, ours: Kept, tolerance: float) -> None:
    """All that a contender kept, with ours."""
    for what, numbers in kept.items():
        require_equal(f"{name}, {case.name}", what, numbers, ours[what], tolerance)


def ours_kept(ours: Ours, circuit: Circuit) -> Kept:
    values, gradients = ours.found()
    return {
        "values": values,
        "gradients": gradients,
        "output": values[-1],
        "gradients of leaves": gradients[: circuit.leaves],
    }


def run(quick: bool) -> Report:
    makers: dict[str, Callable[..., Contender]] = {
        tape.NAME: tape.Tape,
        "NumPy": libraries.NumpyLevels,
    }
    if not quick:
        libraries.preload()
        makers |= {
            "CasADi": libraries.Casadi,
            "PyTorch": libraries.Torch,
            "JAX jit": libraries.Jax,
            "autograd": libraries.Autograd,
            "micrograd": libraries.Micrograd,
        }
    report = Report(
        "engines",
        "Scalar circuits",
        remarks=[
            "One point, in-process, forward and backward, float64; every value and every gradient "
            "is kept (autograd: gradients of the leaves only, it cannot keep the others).",
            f"{OURS} (`gw.Evaluator`), C and CasADi compute in arrays that stay where they are; "
            f"{NEW_ARRAYS!r} is what a server does, whose results have arrays of their own.",
            "The last row has leaves of one number each: numbers come in one array, and gradients "
            "leave in another (`value_and_gradient`); those of C are in place.",
            f"Rows {FRESH!r}: from the graph's bytes, never seen before, to the last gradient. "
            "The C tape starts from arrays instead, CasADi and JAX from Python's own lists.",
        ],
        goals=_goals(),
        versions=versions("numpy", "casadi", "torch", "jax", "autograd", "micrograd"),
    )
    for kind in KINDS:
        entrants = Entrants(makers)
        for gates in (100, 1000) if quick else (100, 1000, 10_000, 100_000, 1_000_000):
            report.cases += _cases(grow(kind, gates), entrants, 2 if quick else ROUNDS)
    report.cases.append(_leaves_case(1000 if quick else 10_000, 2 if quick else ROUNDS))
    return report


def _leaves_case(leaves: int, rounds: int) -> Case:
    """Leaves of one number each, beside C, which has its numbers in place already."""
    circuit = grow("wide", 2 * leaves, leaves=leaves)
    data, point = graph_bytes(circuit, ("float64",)), circuit.point
    ours = Ours(data, {f"x{i}": np.array(x) for i, x in enumerate(point)})
    evaluator = gw.Evaluator(gw.Graph.from_bytes(data), x=point)
    case = Case(f"{leaves:,} leaves, {circuit.gates:,} gates", "leaves", leaves, per=circuit.gates)
    ready = Entrants({tape.NAME: tape.Tape}).ready(case, ours_kept(ours, circuit), 1, circuit)
    contenders = {OURS: lambda: evaluator.value_and_gradient(point)}
    race(case, contenders | {name: each.run for name, each in ready.items()}, rounds)
    require_equal(OURS, "gradients of leaves", evaluator.gradient, ours.found()[1][:leaves])
    return case


def _cases(circuit: Circuit, entrants: Entrants, rounds: int) -> Iterable[Case]:
    gates, kind = circuit.gates, circuit.kind
    data = graph_bytes(circuit)
    ours = Ours(data, {"x": circuit.point})
    case = Case(f"{kind}, {gates:,} gates", kind, gates, per=gates)
    ready = entrants.ready(case, ours_kept(ours, circuit), gates, circuit)
    own = {OURS: ours.in_place(), NEW_ARRAYS: ours.run}
    race(case, own | {name: each.run for name, each in ready.items()}, rounds)
    yield case

    numbers = count()

    def new_bytes() -> object:
        """The same graph under another producer: no cache of plans knows these bytes."""
        other = graph_pb2.Graph(producer=f"benchmark {next(numbers)}").SerializeToString()
        return run_job(prepared(data + other, {"x": circuit.point}))

    fresh = Case(f"{kind}, {gates:,} gates, {FRESH}", f"{kind}, {FRESH}", gates, per=gates)
    contenders: dict[str, Callable[[], object]] = {OURS: new_bytes}
    if tape.NAME in ready:
        contenders[tape.NAME] = lambda: tape.Tape(circuit, ways=_way(kind)).run()
    race(fresh, contenders, rounds)
    for name in ("CasADi", "JAX jit"):
        if name in ready:  # once: it takes too long for rounds
            fresh.figures[name] = [entrants.prepare_seconds[name] + seconds_of(ready[name].run)]
        elif name in case.missing:
            fresh.missing[name] = case.missing[name]
    yield fresh


def _way(kind: str) -> tuple[str, ...]:
    """The C tape's way that a circuit needs no trial to choose."""
    return ("runs",) if kind == "wide" else ("goto",)


def _goals() -> list[Goal]:
    return [
        Goal("wide: at most 1.3 x the C tape", (tape.NAME,), 1.3, "wide"),
        Goal("deep: at most 1.3 x the C tape", (tape.NAME,), 1.3, "deep"),
        Goal(
            "leaves of one number each, in one array: at most 2 x the C tape",
            (tape.NAME,),
            2.0,
            "leaves",
        ),
        Goal("wide: at least 2 x faster than CasADi", ("CasADi",), 1 / 2, "wide"),
        Goal("deep: no slower than CasADi", ("CasADi",), 1.0, "deep"),
        *(
            Goal(f"{kind}: at least 100 x faster than {name}", (name,), 1 / 100, kind, 1000)
            for kind in KINDS
            for name in SLOW
        ),
        *(
            Goal(
                f"{kind}: bytes of an unseen graph of a million gates to its last gradient in "
                "under 0.5 s",
                (),
                0.5,
                f"{kind}, {FRESH}",
                1_000_000,
            )
            for kind in KINDS
        ),
    ]
