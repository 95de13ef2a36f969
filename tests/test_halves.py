"""Half precision: values are held in 16 bits, computed in float32, and rounded once."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from gate_cases import Case, all_cases, is_floating, spread
from test_gradient_graph import differentiable, label, one_node

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


def as_doubles(x: Any) -> Any:
    """Comparable: NumPy's tests do not know bfloat16's NaN."""
    return x.astype("float64")


def rounded(x: Any, dtype: Any) -> Any:
    with np.errstate(all="ignore"):
        return as_doubles(np.asarray(x).astype(dtype))


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
                as_doubles(found[f"out{slot}"]), rounded(out, spec.dtype), str(half)
            )
    wide = tuple(None if seed is None else seed.astype("float32") for seed in seeds)
    pulled = single.pull(wide) if given else []
    for slot, to_input in enumerate(pulled):
        if f"x{slot}" in gradients:
            expected = np.zeros(half.inputs[slot].shape) if to_input is None else to_input
            assert gradients[f"x{slot}"].dtype == dtype, half
            np.testing.assert_array_equal(
                as_doubles(gradients[f"x{slot}"]), rounded(expected, dtype), str(half)
            )


#: One case of each operator.
DIFFERENTIABLE = [
    (dtype, case)
    for dtype, cases in CASES.items()
    for case in {
        case.operator: case for case in reversed(cases) if case.smooth and differentiable(case)
    }.values()
]


@every(DIFFERENTIABLE)
def test_gradient_graph_in_half_precision_gives_the_same_gradient(dtype: str, case: Case) -> None:
    half = case.as_dtype(dtype)
    graph, outs = one_node(half), half.run()
    specs = half.gate.check(half.specs(), half.attributes)
    seeds = {
        f"out{slot}": seed.astype(spec.dtype)
        for slot, (seed, spec) in enumerate(zip(seeds_of(outs, dtype), specs, strict=True))
        if seed is not None
    }
    outputs, gradients = run(graph, Evaluation(seeds=seeds))
    backward = gradient_graph(graph, (), {}, Limits())
    bound = {f"grad/{name}": Binding(seed) for name, seed in seeds.items()}
    found, _ = run(backward, Evaluation(bound, forward_only=True))
    for name, expected in outputs.items():
        np.testing.assert_array_equal(as_doubles(found[name]), as_doubles(expected), str(half))
    for name, expected in gradients.items():
        assert found[f"grad/{name}"].dtype == dtype
        assert_half_close(found[f"grad/{name}"], expected, dtype, half)


def assert_half_close(
    found: Any, expected: Any, dtype: str, case: Case, steps: float = 1
) -> None:
    """One float32 computation may take another order than the other: a last bit may differ."""
    found, expected = as_doubles(found), as_doubles(expected)
    tolerance = steps * EPSILON[dtype] * spread(expected)
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance, err_msg=str(case))


@every(DIFFERENTIABLE)
def test_second_order_in_half_precision_is_that_of_float32(dtype: str, case: Case) -> None:
    half = case.as_dtype(dtype)
    found, expected = (twice(each) for each in (half, half.as_dtype("float32")))
    assert found.keys() == expected.keys()
    for name, grad in found.items():
        assert str(grad.dtype) == dtype or name.startswith("grad/")
        assert_half_close(grad, expected[name], dtype, half, steps=4)


def twice(case: Case) -> dict[str, Any]:
    """The gradients of the sum of all gradients, and of all outputs."""
    once = gradient_graph(one_node(case), (), {}, Limits())
    bound = {
        leaf.name: Binding(np.ones(leaf.axes, leaf.dtype))
        for leaf in once.leaves
        if leaf.value is None
    }
    plan = evaluate.prepare(once, Evaluation(bound, forward_only=True), Limits()).plan
    seeds = {
        output.name: np.ones(plan.shape(output.value_ids[0]), plan.spec(output.value_ids[0]).dtype)
        for output in once.outputs
    }
    _, found = run(once, Evaluation(bound, seeds=seeds))
    return found
