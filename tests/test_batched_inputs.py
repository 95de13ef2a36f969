"""Any of a gate's inputs may be batched alone: the others are the same for all rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gate_cases import Case, all_cases, is_floating
from test_gradient_graph import label, one_node

from gradwire_server.engine import evaluation as evaluate
from gradwire_server.engine import runs
from gradwire_server.engine.evaluation import Binding, Evaluation
from gradwire_server.graph import Graph
from gradwire_server.limits import Limits

ROWS = (1.0, 0.9, 0.8)


def floating(case: Case) -> list[int]:
    declared = case.gate.declared_inputs(len(case.inputs))
    return [
        slot
        for slot, (each, x) in enumerate(zip(declared, case.inputs, strict=True))
        if x is not None and is_floating(x) and not each.known
    ]


def is_batched_at_once(case: Case) -> bool:
    complete = case.gate.complete(case.attributes)
    return (
        len(floating(case)) > 1
        and all(is_floating(out) for out in case.run())
        and case.gate.aligned_shapes(*case.specs(), **complete) is not None
    )


CASES = [case for case in all_cases() if case.smooth and is_batched_at_once(case)]


def evaluated(
    graph: Graph, bindings: dict[str, Binding], rows: int, seeds: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    asked = Evaluation(bindings=bindings, batch_size=rows, seeds=seeds)
    with np.errstate(all="ignore"):
        outputs, gradients, *_ = runs.run(evaluate.prepare(graph, asked, Limits()), lambda: False)
    return dict(outputs), dict(gradients)


@pytest.mark.parametrize("case", CASES, ids=label)
def test_one_batched_input_equals_row_by_row(case: Case) -> None:
    graph = one_node(case)
    for slot in floating(case):
        name, x = f"x{slot}", case.inputs[slot]
        stacked = np.stack([factor * x for factor in ROWS])
        seeds = {output.name: np.cos(out) for output, out in zip(graph.outputs, case.run(),
                                                                strict=True)}  # fmt: skip
        tiled = {key: np.stack([seed] * len(ROWS)) for key, seed in seeds.items()}
        outs, grads = evaluated(graph, {name: Binding(stacked, True)}, len(ROWS), tiled)
        singles = [evaluated(graph, {name: Binding(row)}, 0, seeds) for row in stacked]
        for key, out in outs.items():
            expected = np.stack([single[0][key] for single in singles])
            np.testing.assert_allclose(out, expected, rtol=1e-11, atol=1e-12)
        for key, grad in grads.items():
            rows = np.stack([single[1][key] for single in singles])
            expected = rows if key == name else rows.sum(axis=0)
            np.testing.assert_allclose(grad, expected, rtol=1e-10, atol=1e-11)
