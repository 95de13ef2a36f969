"""Half precision: values are held in 16 bits, computed in float32, and rounded once."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from gate_cases import Case, all_cases, is_floating
from test_gradient_graph import label, one_node

from gradwire_server import arrays
from gradwire_server.engine import evaluation as evaluate
from gradwire_server.engine import runs
from gradwire_server.engine.evaluation import ALL, Binding, Evaluation
from gradwire_server.engine.symbolic import gradient_graph
from gradwire_server.graph import Graph
from gradwire_server.limits import Limits
from gradwire_server.specs import HALVES

HALF = pytest.mark.parametrize("dtype", HALVES)
EPSILON = {dtype: float(ml_dtypes.finfo(dtype).eps) for dtype in HALVES}


def takes(case: Case, dtype: str) -> bool:
    """Whether a case is one of floating inputs that all may be of the data type."""
    declared = case.gate.declared_inputs(len(case.inputs))
    found = [
        dtype in each.dtypes
        for each, x in zip(declared, case.inputs, strict=True)
        if x is not None and is_floating(x)
    ]
    return any(found) and all(found)


CASES = {dtype: [case for case in all_cases() if takes(case, dtype)] for dtype in HALVES}
PAIRS = [(dtype, case) for dtype, cases in CASES.items() for case in cases]


def every(pairs: list[tuple[str, Case]]) -> Any:
    ids = [f"{dtype}-{label(case)}" for dtype, case in pairs]
    return pytest.mark.parametrize(("dtype", "case"), pairs, ids=ids)


def run(graph: Graph, asked: Evaluation) -> Any:
    with np.errstate(all="ignore"):
        outputs, gradients, *_ = runs.run(evaluate.prepare(graph, asked, Limits()), lambda: False)
    return dict(outputs), dict(gradients)


def seeds_of(outs: tuple[Any, ...], dtype: str) -> tuple[Any, ...]:
    """Numbers that half precision holds."""
    rng = np.random.default_rng(3)
    return tuple(
        np.asarray(rng.standard_normal(np.shape(out))).astype(dtype) if is_floating(out) else None
        for out in outs
    )


def rounded(x: Any, dtype: Any) -> Any:
    with np.errstate(all="ignore"):
        return np.asarray(x).astype(dtype)


@every(PAIRS)
def test_gate_in_half_precision_is_that_of_float32_rounded_once(dtype: str, case: Case) -> None:
    half = case.as_dtype(dtype)
    single = half.as_dtype("float32")
    graph, outs = one_node(half), single.run()
    specs = half.gate.check(half.specs(), half.attributes)
    seeds = seeds_of(outs, dtype)
    given = {
        f"out{slot}": seed.astype(spec.dtype)
        for slot, (seed, spec) in enumerate(zip(seeds, specs, strict=True))
        if seed is not None
    }
    found, gradients = run(graph, Evaluation(seeds=given, forward_only=not given))
    for slot, (out, spec) in enumerate(zip(outs, specs, strict=True)):
        if f"out{slot}" in found:
            assert found[f"out{slot}"].dtype == spec.dtype, half
            np.testing.assert_array_equal(
                found[f"out{slot}"], rounded(out, spec.dtype), err_msg=str(half)
            )
    wide = tuple(None if seed is None else seed.astype("float32") for seed in seeds)
    pulled = single.pull(wide) if given else []
    for slot, to_input in enumerate(pulled):
        if f"x{slot}" in gradients:
            expected = np.zeros(half.inputs[slot].shape) if to_input is None else to_input
            assert gradients[f"x{slot}"].dtype == dtype, half
            np.testing.assert_array_equal(
                gradients[f"x{slot}"], rounded(expected, dtype), err_msg=str(half)
            )
