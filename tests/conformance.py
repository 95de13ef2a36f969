"""What the gates are held against, counted from the tests' own tables; shown in docs/gates.md."""

from __future__ import annotations

from collections.abc import Iterator

import test_onnx_gradients
import test_onnx_gradients_elsewhere
from onnx_cases import counted

from gradwire_server.catalogue import describe
from gradwire_server.gates import GATES

INTRODUCTION = """
## What the gates are held against

ONNX's own node tests, and the gradients at their inputs, in float64: along a random direction
against finite differences, and so the gradient of the gradient (second order); element by element
against JAX and PyTorch, where they have the operator. Each number counts node tests. "n of m" are
those of m that this server runs: the others have data types or old operator sets that it lacks.
"""
HEADER = (
    "operator", "ONNX node tests", "finite differences", "second order", "JAX", "PyTorch",
    "subgradient rule",
)  # fmt: skip


def rows() -> Iterator[tuple[str, ...]]:
    """One for each gate, in the catalogue's order."""
    forward = counted()
    differences = test_onnx_gradients.checked_against_differences()
    elsewhere = test_onnx_gradients_elsewhere.checked_elsewhere()
    for operator, gate in GATES.items():
        ours, every = forward.get(operator, (0, 0))
        counts = [
            str(each[operator] or "") for each in (*differences.values(), *elsewhere.values())
        ]
        rule = describe(gate).subgradient.replace("|", "\\|")
        yield f"[{operator}](#{operator.lower()})", f"{ours} of {every}", *counts, rule


def section() -> Iterator[str]:
    """The table with its heading, as Markdown."""
    yield f"{INTRODUCTION}\n"
    yield f"| {' | '.join(HEADER)} |\n{'|---' * len(HEADER)}|\n"
    for row in rows():
        yield f"| {' | '.join(row)} |\n"
