"""The same circuits on 1,024 rows at once."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks import libraries, tape
from benchmarks.circuits import KINDS, graph_bytes, grow
from benchmarks.engines import Contender, Entrants, ours_kept
from benchmarks.harness import OURS, Case, Goal, Report, race, versions
from benchmarks.libraries import THREADS
from benchmarks.ours import Ours

ROWS = 1024
ROUNDS = 7


def run(quick: bool) -> Report:
    makers: dict[str, Callable[..., Contender]] = {
        tape.NAME: lambda circuit, rows: tape.RowsTape(circuit, rows, THREADS),
        "NumPy": libraries.NumpyRows,
    }
    if not quick:
        libraries.preload()
        makers |= {"CasADi": libraries.Casadi, "PyTorch": libraries.Torch}
    report = Report(
        "batches",
        f"Scalar circuits on {ROWS:,} rows",
        remarks=[
            f"{ROWS:,} points at once, float64, every value and gradient of every row kept; "
            f"per gate and row; {THREADS} threads for all that have threads."
        ],
        versions=versions("numpy", "casadi", "torch"),
    )
    for kind in KINDS:
        report.goals += [
            Goal(f"{kind}, rows: at most 1.3 x the C tape", (tape.NAME,), 1.3, kind),
            Goal(f"{kind}, rows: at least 2 x faster than CasADi", ("CasADi",), 1 / 2, kind),
            Goal(f"{kind}, rows: at least 4 x faster than PyTorch", ("PyTorch",), 1 / 4, kind),
        ]
        entrants = Entrants(makers)
        for gates in (100, 1000) if quick else (100, 1000, 10_000):
            circuit = grow(kind, gates)
            rows = circuit.rows(ROWS)
            ours = Ours(graph_bytes(circuit), {"x": rows}, rows=ROWS)
            case = Case(f"{kind}, {gates:,} gates", kind, gates, per=gates * ROWS)
            ready = entrants.ready(case, ours_kept(ours, circuit), gates, circuit, rows)
            contenders = {OURS: ours.run} | {name: each.run for name, each in ready.items()}
            race(case, contenders, 2 if quick else ROUNDS)
            report.cases.append(case)
    return report
