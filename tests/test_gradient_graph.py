"""Differentiating a graph yields a graph: same numbers, and it can be differentiated again."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gate_cases import Case, all_cases, is_floating, spread
from gradient_checks import LIMITS, Runs, moving, one_node, run

from gradwire_server.codec.graphs import decode_graph, encode_graph
from gradwire_server.engine.symbolic import gradient_graph

STEP = 1e-5


def label(case: Case) -> str:
    shapes = ",".join(
        "-" if x is None else "x".join(map(str, x.shape)) or "()" for x in case.inputs
    )
    return f"{case.operator}[{shapes}]"


def differentiable(case: Case) -> bool:
    floats = any(is_floating(out) and np.size(out) for out in case.run())
    return floats and bool(moving(case))


CASES = [case for case in all_cases() if case.smooth and differentiable(case)]


@pytest.mark.parametrize("case", CASES, ids=label)
def test_backward_pass_as_a_graph_has_the_same_numbers(case: Case) -> None:
    graph = one_node(case)
    forward = Runs(graph)
    rng = np.random.default_rng(3)
    outputs, _ = forward({})
    seeds = {name: np.asarray(rng.standard_normal(out.shape)) for name, out in outputs.items()}
    seeds = {name: seed.astype(outputs[name].dtype) for name, seed in seeds.items()}
    _, expected = forward({}, seeds)
    backward = gradient_graph(graph, (), {}, LIMITS)
    found, _ = run(backward, {f"grad/{name}": seed for name, seed in seeds.items()})
    for name, gradient in expected.items():
        np.testing.assert_allclose(
            found[f"grad/{name}"], gradient, rtol=1e-10, atol=1e-12, err_msg=str(case)
        )
    reread = decode_graph(encode_graph(backward, "test"), LIMITS)
    again, _ = run(reread, {f"grad/{name}": seed for name, seed in seeds.items()})
    for name, out in found.items():
        np.testing.assert_array_equal(again[name], out)


@pytest.mark.parametrize("case", CASES, ids=label)
def test_second_order_is_the_difference_of_gradients(case: Case) -> None:
    graph = one_node(case)
    rng = np.random.default_rng(4)
    outputs, _ = run(graph, {})
    seeds = {
        f"grad/{name}": rng.standard_normal(out.shape).astype(out.dtype)
        for name, out in outputs.items()
    }
    backward = Runs(gradient_graph(graph, (), {}, LIMITS))
    first, _ = backward(seeds)
    weights = {
        name: np.asarray(rng.standard_normal(out.shape), out.dtype)
        for name, out in first.items()
        if name.startswith("grad/")
    }
    _, second = backward(seeds, weights)
    twice = gradient_graph(backward.graph, (), {}, LIMITS)
    given = {f"grad2/{name}": weight for name, weight in weights.items()}
    given |= {f"grad2/{name}": np.zeros_like(out) for name, out in outputs.items()}
    recorded, _ = run(twice, seeds | given)
    for leaf in graph.leaves:
        if leaf.kind != "input" or leaf.dtype != "float64":
            continue
        assert leaf.value is not None
        x = np.frombuffer(leaf.value.data).reshape(leaf.value.shape)
        way = np.asarray(rng.standard_normal(x.shape))

        def along(step: float, name: str = leaf.name, x: Any = x, way: Any = way) -> float:
            moved, _ = backward({**seeds, name: x + step * way})
            return sum(float(np.sum(weights[each] * moved[each])) for each in weights)

        expected = (along(STEP) - along(-STEP)) / (2 * STEP)
        scale = spread(*(np.asarray(each) for each in first.values()))
        close = pytest.approx(expected, rel=1e-5, abs=1e-6 * scale)
        assert float(np.sum(second[leaf.name] * way)) == close, case
        assert float(np.sum(recorded[f"grad2/{leaf.name}"] * way)) == close, case
