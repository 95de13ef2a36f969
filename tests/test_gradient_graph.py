"""Differentiating a graph yields a graph: same numbers, and it can be differentiated again."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gate_cases import Case, all_cases, is_floating, spread

from gradwire_server import codec
from gradwire_server.engine import evaluation as evaluate
from gradwire_server.engine import runs
from gradwire_server.engine.evaluation import Binding, Evaluation
from gradwire_server.engine.symbolic import gradient_graph
from gradwire_server.graph import Graph, Leaf, Output, Row
from gradwire_server.limits import Limits
from gradwire_server.specs import Tensor

LIMITS = Limits()
STEP = 1e-5


def label(case: Case) -> str:
    shapes = ",".join(
        "-" if x is None else "x".join(map(str, x.shape)) or "()" for x in case.inputs
    )
    return f"{case.operator}[{shapes}]"


def differentiable(case: Case) -> bool:
    declared = case.gate.declared_inputs(len(case.inputs))
    return any(is_floating(out) and np.size(out) for out in case.run()) and any(
        x is not None and is_floating(x) and x.size and not each.known
        for each, x in zip(declared, case.inputs, strict=True)
    )


CASES = [case for case in all_cases() if case.smooth and differentiable(case)]


def one_node(case: Case) -> Graph:
    """A graph of one node: floating inputs are its inputs, the others constants."""
    declared = case.gate.declared_inputs(len(case.inputs))
    leaves: list[Leaf] = []
    names: list[str | None] = []
    for slot, (each, x) in enumerate(zip(declared, case.inputs, strict=True)):
        if x is None:
            names.append(None)
            continue
        kind = "input" if is_floating(x) and not each.known else "constant"
        names.append(f"x{slot}")
        data = Tensor(str(x.dtype), x.shape, np.ascontiguousarray(x).tobytes())
        leaves.append(Leaf(kind, f"x{slot}", str(x.dtype), x.shape, False, data))
    leaves.sort(key=lambda leaf: leaf.kind == "constant")
    ids = {leaf.name: position for position, leaf in enumerate(leaves, 1)}
    outs = case.run()
    row = Row(case.operator, case.attributes, len(case.inputs), len(outs))
    return Graph(
        (row,),
        tuple(leaves),
        np.zeros(1, np.int64),
        np.array([ids[name] if name else 0 for name in names], np.int64),
        tuple(
            Output(f"out{slot}", np.array([len(leaves) + 1 + slot]))
            for slot, out in enumerate(outs)
            if is_floating(out)
        ),
    )


def run(graph: Graph, bindings: dict[str, Any], seeds: dict[str, Any] | None = None) -> Any:
    """Outputs, and gradients where seeds are given."""
    bound = {name: Binding(np.asarray(array)) for name, array in bindings.items()}
    asked = Evaluation(bindings=bound, seeds=seeds or {}, forward_only=seeds is None)
    with np.errstate(all="ignore"):
        job = evaluate.prepare(graph, asked, LIMITS)
        outputs, gradients, _, _ = runs.run(job, lambda: False)
    return dict(outputs), dict(gradients)


@pytest.mark.parametrize("case", CASES, ids=label)
def test_backward_pass_as_a_graph_has_the_same_numbers(case: Case) -> None:
    graph = one_node(case)
    rng = np.random.default_rng(3)
    outputs, _ = run(graph, {})
    seeds = {name: np.asarray(rng.standard_normal(out.shape)) for name, out in outputs.items()}
    seeds = {name: seed.astype(outputs[name].dtype) for name, seed in seeds.items()}
    _, expected = run(graph, {}, seeds)
    backward = gradient_graph(graph, (), {}, LIMITS)
    found, _ = run(backward, {f"grad/{name}": seed for name, seed in seeds.items()})
    for name, gradient in expected.items():
        np.testing.assert_allclose(
            found[f"grad/{name}"], gradient, rtol=1e-10, atol=1e-12, err_msg=str(case)
        )
    reread = codec.decode_graph(codec.encode_graph(backward, "test"), LIMITS)
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
    backward = gradient_graph(graph, (), {}, LIMITS)
    first, _ = run(backward, seeds)
    weights = {
        name: np.asarray(rng.standard_normal(out.shape), out.dtype)
        for name, out in first.items()
        if name.startswith("grad/")
    }
    _, second = run(backward, seeds, weights)
    twice = gradient_graph(backward, (), {}, LIMITS)
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
            moved, _ = run(backward, {**seeds, name: x + step * way})
            return sum(float(np.sum(weights[each] * moved[each])) for each in weights)

        expected = (along(STEP) - along(-STEP)) / (2 * STEP)
        scale = spread(*(np.asarray(each) for each in first.values()))
        close = pytest.approx(expected, rel=1e-5, abs=1e-6 * scale)
        assert float(np.sum(second[leaf.name] * way)) == close, case
        assert float(np.sum(recorded[f"grad2/{leaf.name}"] * way)) == close, case
