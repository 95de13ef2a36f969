"""What gradients are held against: differences, and graphs of one node differentiated again."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from gate_cases import Case, is_floating, spread

from gradwire_server.engine import evaluation as evaluate
from gradwire_server.engine import runs
from gradwire_server.engine.evaluation import Binding, Evaluation, Job
from gradwire_server.engine.symbolic import gradient_graph
from gradwire_server.graph import Graph, Leaf, Output, Row, Rows
from gradwire_server.limits import Limits
from gradwire_server.specs import Tensor

LIMITS = Limits()


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
        Rows((row,)),
        tuple(leaves),
        np.zeros(1, np.int64),
        np.array([ids[name] if name else 0 for name in names], np.int64),
        tuple(
            Output(f"out{slot}", np.array([len(leaves) + 1 + slot]))
            for slot, out in enumerate(outs)
            if is_floating(out)
        ),
    )


class Runs:
    """A graph that is evaluated again and again, on one plan."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._job: Job | None = None

    def __call__(self, bindings: dict[str, Any], seeds: dict[str, Any] | None = None) -> Any:
        """Outputs, and gradients where seeds are given."""
        bound = {name: Binding(np.asarray(array)) for name, array in bindings.items()}
        asked = Evaluation(bindings=bound, seeds=seeds or {}, forward_only=seeds is None)
        with np.errstate(all="ignore"):
            self._job = evaluate.prepare(self.graph, asked, LIMITS, self._job)
            outputs, gradients, _, _ = runs.run(self._job, lambda: False)
        return dict(outputs), dict(gradients)


def run(graph: Graph, bindings: dict[str, Any], seeds: dict[str, Any] | None = None) -> Any:
    """Outputs, and gradients where seeds are given."""
    return Runs(graph)(bindings, seeds)


def moving(case: Case) -> list[int]:
    """Which inputs can be differentiated: floating, with elements, not needed to plan."""
    declared = case.gate.declared_inputs(len(case.inputs))
    return [
        slot
        for slot, (each, x) in enumerate(zip(declared, case.inputs, strict=True))
        if x is not None and is_floating(x) and x.size and not each.known
    ]


def drawn_seeds(outs: tuple[Any, ...], rng: np.random.Generator) -> tuple[Any, ...]:
    """A seed for each floating output, zero where it is not finite; None for other outputs."""
    return tuple(
        np.where(np.isfinite(out), rng.standard_normal(np.shape(out)), 0.0).astype(out.dtype)
        if is_floating(out)
        else None
        for out in map(np.asarray, outs)
    )


def drawn_ways(case: Case, rng: np.random.Generator) -> dict[int, Any]:
    """A direction for each input that can be differentiated; what is infinite stays."""
    return {
        slot: np.where(np.isfinite(x), rng.standard_normal(x.shape), 0.0)
        for slot, x in enumerate(case.inputs)
        if slot in moving(case)
    }


def moved(case: Case, ways: dict[int, Any], step: float) -> tuple[Any, ...]:
    """The inputs, with some of them a step along their way."""
    return tuple(
        x if slot not in ways else np.asarray(x + step * ways[slot], x.dtype)
        for slot, x in enumerate(case.inputs)
    )


def central(function: Callable[[float], float], step: float) -> float:
    return (function(step) - function(-step)) / (2 * step)


def first_order(case: Case, rng: np.random.Generator, step: float) -> tuple[float, float, float]:
    """The gradient along a random direction: as pulled back, as a difference, and their scale."""
    outs = case.run()
    seeds = drawn_seeds(outs, rng)
    pulled = case.pull(seeds)
    ways = {slot: way for slot, way in drawn_ways(case, rng).items() if pulled[slot] is not None}

    def along(step: float) -> float:
        return weighted(seeds, case.run(moved(case, ways, step)))

    found = weighted(ways.values(), [pulled[slot] for slot in ways])
    return found, central(along, step), spread(*map(np.asarray, outs))


def second_order(case: Case, rng: np.random.Generator, step: float) -> tuple[float, float, float]:
    """The same for the gradient of the gradient, which is a graph."""
    graph = one_node(case)
    outputs, _ = run(graph, {})
    drawn = drawn_seeds(tuple(outputs.values()), rng)
    seeds = {f"grad/{name}": seed for name, seed in zip(outputs, drawn, strict=True)}
    backward = Runs(gradient_graph(graph, (), {}, LIMITS))
    outs, _ = backward(seeds)
    first = {name: out for name, out in outs.items() if name.startswith("grad/")}
    weights = dict(zip(first, drawn_seeds(tuple(first.values()), rng), strict=True))
    _, second = backward(seeds, weights)
    ways = {f"x{slot}": way for slot, way in drawn_ways(case, rng).items()}
    there = {f"x{slot}": case.inputs[slot] for slot in moving(case)}

    def along(step: float) -> float:
        moved = {name: np.asarray(x + step * ways[name], x.dtype) for name, x in there.items()}
        found, _ = backward(seeds | moved)
        return weighted(weights.values(), [found[name] for name in weights])

    found = weighted(ways.values(), [second[name] for name in ways])
    return found, central(along, step), spread(*map(np.asarray, first.values()))


def weighted(weights: Iterable[Any], numbers: Iterable[Any]) -> float:
    """The sum of the products, where there is a weight other than 0; NaN where there is none."""
    with np.errstate(all="ignore"):
        return sum(
            float(np.sum(np.multiply(weight, each, dtype=float), where=weight != 0))
            for weight, each in zip(weights, numbers, strict=True)
            if weight is not None
        )
