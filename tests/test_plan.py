"""Plans of large graphs are made without a loop over nodes, and say the same."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from gradwire_server.graph import Graph, Leaf, Output, Row, Rows, check_structure
from gradwire_server.limits import Limits
from gradwire_server.plan import make_plan, reached, static_leaves
from gradwire_server.specs import Tensor, TensorSpec

LEAVES = 5
SPLIT = Row("Split", {"num_outputs": 2}, 1, 2)


def random_graph(rows: Sequence[Row], nodes: int, seed: int) -> Graph:
    """Scalars or vectors, each node using values near its own."""
    random = np.random.default_rng(seed)
    numbers = random.integers(0, len(rows), nodes)
    first = LEAVES + 1
    inputs: list[int] = []
    for number in numbers.tolist():
        near = random.integers(max(1, first - 40), first, rows[number].input_count)
        inputs.extend(near.tolist())
        first += rows[number].output_count
    return Graph(
        Rows(rows),
        tuple(Leaf("input", f"x{slot}", "float64", (2,)) for slot in range(LEAVES)),
        numbers,
        np.array(inputs, np.int64),
        (Output("out", np.array([first - 1])),),
    )


def reached_node_by_node(graph: Graph, marked: set[int]) -> list[bool]:
    found = [value_id in marked for value_id in range(graph.value_count + 1)]
    for node in range(graph.node_count):
        start, end = graph.input_starts[node : node + 2]
        if any(found[i] for i in graph.node_inputs[start:end].tolist()):
            for value_id in range(graph.first_ids[node], graph.first_ids[node + 1]):
                found[value_id] = True
    return found


@pytest.mark.parametrize("nodes", [30, 3000])
@pytest.mark.parametrize("several", [False, True], ids=["one output each", "several outputs"])
def test_reached_values_depend_on_a_marked_one(nodes: int, several: bool) -> None:
    rows = (Row("Neg", {}, 1, 1), Row("Add", {}, 2, 1), *((SPLIT,) if several else ()))
    graph = random_graph(rows, nodes, seed=nodes)
    marks = np.zeros(graph.value_count + 1, bool)
    middle = (LEAVES + graph.value_count) // 2
    marks[middle] = True
    found = reached(graph, [False, True, False, False, False], marks)
    assert found.tolist() == reached_node_by_node(graph, {2, middle})
    assert marks.sum() == 1, "the marks given are left as they were"


@pytest.mark.parametrize("nodes", [30, 3000])
def test_only_leaves_that_shapes_depend_on_are_static(nodes: int) -> None:
    """x0 and x1 make the shape, through a chain of sums; x2 does not."""
    chain = np.arange(nodes - 1)
    sums = np.stack([np.where(chain == 0, 1, chain + 3), np.full(nodes - 1, 2)], axis=1)
    graph = Graph(
        Rows((Row("Add", {}, 2, 1), Row("Reshape", {}, 2, 1))),
        (
            *(Leaf("input", f"x{slot}", "int64", (1,)) for slot in range(2)),
            Leaf("input", "x2", "float64", (2,)),
        ),
        np.array([0] * (nodes - 1) + [1]),
        np.array([*sums.reshape(-1), 3, nodes + 2]),
        (Output("out", np.array([nodes + 3])),),
    )
    check_structure(graph, Limits())
    assert static_leaves(graph) == {0, 1}
    ones = TensorSpec((1,), "int64", (0,))
    two = TensorSpec((1,), "int64", (2,))
    plan = make_plan(graph, (two, ones, TensorSpec((2,))))
    assert plan.shape(nodes + 3) == (2,)


@pytest.mark.parametrize("seed", range(3))
def test_shapes_of_a_large_graph_are_those_of_its_gates(seed: int) -> None:
    """Leaves of three shapes in a deep graph, against one gate at a time."""
    graph = random_graph((Row("Add", {}, 2, 1), Row("Mul", {}, 2, 1)), 3000, seed)
    shapes = ((), (3,), (2, 1), (), (1,))
    specs = list(map(TensorSpec, shapes))
    plan = make_plan(graph, specs)
    for node, row in enumerate(graph.node_rows.tolist()):
        start, end = graph.input_starts[node : node + 2]
        given = tuple(specs[i - 1] for i in graph.node_inputs[start:end].tolist())
        specs.extend(graph.rows[row].gate.check(given, {}))
    assert [plan.spec(i) for i in range(1, graph.value_count + 1)] == specs


def test_an_element_leaf_of_every_dtype_meets_its_gates() -> None:
    """Casts between two data types, many times over: every value has the right one."""
    to_float, to_int = Row("Cast", {"to": 11}, 1, 1), Row("Cast", {"to": 7}, 1, 1)
    values = Tensor("int64", (2,), bytes(16))
    graph = Graph(
        Rows((to_float, to_int)),
        (Leaf("input", "x", "int64", (2,), elements=True, value=values),),
        np.tile([0, 1], 1000),
        np.arange(2000) + 2,
        (Output("out", np.array([2002])),),
    )
    plan = make_plan(graph, (TensorSpec((2,), "int64"),))
    dtypes = [plan.spec(i).dtype for i in range(3, 2003)]
    assert dtypes == ["float64", "int64"] * 1000
