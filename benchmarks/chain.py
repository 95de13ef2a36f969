"""Thirty elementwise operators, one after another, on tensors of a million elements."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from benchmarks import circuits, libraries, tape
from benchmarks.engines import Contender, Entrants
from benchmarks.harness import OURS, Case, Goal, Report, race, versions
from benchmarks.libraries import THREADS
from benchmarks.ours import Ours

SIZE = 1_000_000
ROUNDS = 7


def run(quick: bool) -> Report:
    size = 10_000 if quick else SIZE
    report = Report(
        "chain",
        "A chain of 30 elementwise operators",
        remarks=[
            f"Two tensors of {size:,} elements, 30 operators, in-process, forward and backward; "
            "every value and gradient is kept; per operator and element. The C tape is float64 "
            "only."
        ],
        goals=[
            Goal("chain: at most 0.6 x PyTorch eager", ("PyTorch",), 0.6),
            Goal("chain: no slower than JAX jit", ("JAX jit",), 1.0),
        ],
        versions=versions("numpy", "torch", "jax"),
    )
    circuit = circuits.chain()
    block = 128 * THREADS
    for dtype, tolerance in (("float64", 1e-9), ("float32", 1e-4)):
        rows = circuit.rows(size // block * block).astype(dtype)
        makers: dict[str, Callable[..., Contender]] = {"NumPy": libraries.NumpyRows}
        if dtype == "float64":
            makers[tape.NAME] = lambda circuit, rows: tape.RowsTape(circuit, rows, THREADS)
        if not quick:
            libraries.preload()
            makers |= {"PyTorch": libraries.Torch, "JAX jit": libraries.Jax}
        ours = Ours(
            circuits.graph_bytes(circuit, (dtype, len(rows))),
            {f"x{i}": np.ascontiguousarray(rows[:, i]) for i in range(circuit.leaves)},
            seeds={"y": np.ones(len(rows), dtype)},
        )
        values, gradients = ours.found()
        kept = {"values": values, "gradients": gradients}
        case = Case(dtype, dtype, len(rows), per=circuit.gates * len(rows))
        ready = Entrants(makers).ready(case, kept, 1, circuit, rows, tolerance=tolerance)
        contenders = {OURS: ours.run} | {name: each.run for name, each in ready.items()}
        race(case, contenders, 2 if quick else ROUNDS)
        report.cases.append(case)
    return report
