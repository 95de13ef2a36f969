"""Fused elementwise regions compute what the array engine does, node by node."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from test_tape import FLOATS, assert_engines_agree, circuit, found, never

from gradwire_server.engine import runs
from gradwire_server.engine.compiled import NOTHING
from gradwire_server.engine.evaluation import Binding, Evaluation, Job, everything, prepare
from gradwire_server.graph import Graph, Leaf, Row
from gradwire_server.limits import Limits
from gradwire_server.specs import Tensor

ROWS = [
    Row("Add", {}, 2, 1), Row("Mul", {}, 2, 1), Row("Tanh", {}, 1, 1), Row("Gelu", {}, 1, 1),
    Row("Max", {}, 2, 1), Row("LeakyRelu", {"alpha": 0.2}, 1, 1), Row("Sub", {}, 2, 1),
    Row("Softplus", {}, 1, 1), Row("Mean", {}, 3, 1), Row("Transpose", {"perm": (1, 0)}, 1, 1),
    Row("ReduceSum", {"keepdims": 0}, 1, 1),
]  # fmt: skip
TRANSPOSE, SUM = 9, 10
SIDE = 130


def elementwise_graph(seed: int, dtype: str, side: int | str = SIDE) -> Graph:
    """Square tensors, a single number, and a stretch that a transposition cuts in two."""
    rng = np.random.default_rng(seed)
    leaves = [
        Leaf("input", "x", dtype, (side, side)),
        Leaf("input", "y", dtype, (side, side)),
        Leaf("input", "scale", dtype, ()),
        Leaf("input", "unused", dtype, (side, side)),
        Leaf("constant", "half", dtype, (1, 1), value=Tensor(
            dtype, (1, 1), np.array([0.5], dtype).tobytes())),
    ]  # fmt: skip
    nodes: list[tuple[int, tuple[int, ...]]] = [(1, (1, 3))]
    last = 6
    for step in range(24):
        row = TRANSPOSE if step == 11 else int(rng.integers(9))
        reach = [1, 2, *range(6, last + 1)]
        operands = [last, *(int(each) for each in rng.choice([*reach, 3, 5], 2))]
        if row == TRANSPOSE:
            operands[0] = last
        nodes.append((row, tuple(operands[: ROWS[row].input_count])))
        last += 1
        if row in (0, 1, 6):  # keep numbers small
            nodes.append((2, (last,)))
            last += 1
    nodes.append((SUM, (last,)))
    return circuit(ROWS, nodes, leaves, [last + 1, last - 2])


def prepared(graph: Graph, dtype: str, batch: int = 0, side: int = SIDE, **asked: Any) -> Job:
    rng = np.random.default_rng(3)
    rows = (batch,) if batch else ()
    given = {
        "x": Binding(rng.uniform(-1, 1, (*rows, side, side)).astype(dtype), bool(batch)),
        "y": Binding(rng.uniform(-1, 1, (*rows, side, side)).astype(dtype), bool(batch)),
        "scale": Binding(np.array(0.7, dtype)),
        "unused": Binding(np.zeros((side, side), dtype)),
    }
    seeds = {"o0": np.ones(rows, dtype)}
    seeds |= {"o1": rng.uniform(-1, 1, (*rows, side, side)).astype(dtype)}
    evaluation = everything(Evaluation(given, batch, seeds))
    return prepare(graph, replace(evaluation, **asked), Limits())


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("seed", range(6))
def test_regions_agree_with_the_array_engine(seed: int, dtype: str) -> None:
    job = prepared(elementwise_graph(seed, dtype), dtype)
    assert len(job.compiled.regions) == 2
    assert_engines_agree(job, dtype)


@pytest.mark.parametrize("seed", range(2))
def test_regions_agree_on_batches(seed: int) -> None:
    """A transposition is taken row by row, so only what is all of one shape is fused."""
    job = prepared(elementwise_graph(seed, "float64", 40), "float64", 7, 40)
    assert job.compiled.regions
    assert_engines_agree(job, "float64")


def test_output_alone_is_enough_for_a_region() -> None:
    job = prepared(elementwise_graph(1, "float64"), "float64")
    bare = replace(job, seeds={i: seed for i, seed in job.seeds.items() if not np.shape(seed)})
    assert_engines_agree(bare, "float64")


def test_only_gradients_that_are_wanted_come_back() -> None:
    graph = elementwise_graph(2, "float64")
    whole = prepared(graph, "float64")
    some = prepared(graph, "float64", with_respect_to=("scale",), gradients=Evaluation().gradients)
    ((name, gradient),) = runs.run(some, never)[1]
    assert name == "scale"
    expected = dict(runs.run(whole, never)[1])["scale"]
    np.testing.assert_allclose(gradient, expected, rtol=1e-12)


def test_repeated_runs_give_the_same_bits() -> None:
    """Processors share the blocks in the same way each time."""
    job = prepared(elementwise_graph(4, "float32"), "float32")
    first, second = found(job), found(job)
    for key, array in first.items():
        np.testing.assert_array_equal(array, second[key])


def test_small_tensors_are_left_to_the_array_engine() -> None:
    job = prepared(elementwise_graph(0, "float64", 8), "float64", side=8)
    assert job.compiled == NOTHING


BROADCAST = [
    Row("Mul", {}, 2, 1), Row("Sub", {}, 2, 1), Row("Tanh", {}, 1, 1), Row("Div", {}, 2, 1),
    Row("ReduceSum", {"keepdims": 0}, 1, 1),
]  # fmt: skip


def broadcast_graph(dtype: str, shape: Any, own: Any, count: int) -> Graph:
    """(tanh(x * y) - y) / y: nodes with an input of another shape at either place."""
    leaves = [Leaf("input", "x", dtype, shape), Leaf("input", "y", dtype, own)]
    nodes = [(0, (1, 2)), (2, (3,)), (1, (4, 2)), (1, (2, 5)), (3, (6, 2))][:count]
    return circuit(BROADCAST, [*nodes, (4, (2 + count,))], leaves, [3 + count])


def bound(graph: Graph, given: dict[str, Any], batch: int = 0) -> Job:
    """A job with everything chosen; arrays of `batch` rows are batched."""
    bindings = {
        name: Binding(array, bool(batch) and array.shape[:1] == (batch,))
        for name, array in given.items()
    }
    ones = np.ones((batch,) if batch else (), given["x"].dtype)
    seeds = {output.name: ones for output in graph.outputs}
    return prepare(graph, everything(Evaluation(bindings, batch, seeds)), Limits())


def drawn(dtype: str, *shapes: Any) -> dict[str, Any]:
    rng = np.random.default_rng(5)
    return {
        name: rng.uniform(0.5, 1.5, shape).astype(dtype)
        for name, shape in zip("xy", shapes, strict=True)
    }


OPERANDS = [
    (64,), (1, 50, 64), (40, 50, 1), (40, 1, 1), (1, 50, 1), (50, 1), (1, 1, 1), (40, 50, 64),
]  # fmt: skip


@pytest.mark.parametrize("own", OPERANDS, ids=str)
def test_numbers_for_rows_and_columns_are_fused(own: Any) -> None:
    shape = (40, 50, 64)
    job = bound(broadcast_graph("float64", shape, own, 5), drawn("float64", shape, own))
    (region,) = job.compiled.regions.values()
    assert region.nodes == range(5)
    assert_engines_agree(job, "float64")


@pytest.mark.parametrize("own", OPERANDS, ids=str)
def test_float32_gradients_of_what_is_spread_are_summed_well(own: Any) -> None:
    """To within rounding of their largest terms, which NumPy's sums over columns are not."""
    shape = (40, 50, 64)
    given = drawn("float32", shape, own)
    job = bound(broadcast_graph("float32", shape, own, 5), given)
    assert job.compiled.regions
    wide = {name: each.astype("float64") for name, each in given.items()}
    exact = found(bound(broadcast_graph("float64", shape, own, 5), wide))
    for key, array in found(job).items():
        np.testing.assert_allclose(array, exact[key], rtol=0, atol=5e-6 * np.abs(exact[key]).max())


@pytest.mark.parametrize("own", [(9, 1, 128), (9, 80, 1), (9, 1, 1)], ids=str)
def test_rows_longer_than_a_block_are_right(own: Any) -> None:
    """Numbers of rows that no block holds all of are written out block by block."""
    shape = (9, 80, 128) if own[1:] != (1, 1) else (9, 20_000, 2)
    job = bound(broadcast_graph("float64", shape, own, 3), drawn("float64", shape, own))
    assert_engines_agree(job, "float64")


@pytest.mark.parametrize(
    ("own", "batched"), [((600,), False), ((30, 1), True), ((), True), ((600,), True)], ids=str
)
def test_rows_of_a_batch_are_aligned_from_their_ends(own: Any, batched: bool) -> None:
    given = drawn("float64", (7, 30, 600), (7, *own) if batched else own)
    job = bound(broadcast_graph("float64", (30, 600), own, 5), given, 7)
    assert job.compiled.regions
    assert_engines_agree(job, "float64")


def test_gradients_that_are_there_are_added_to() -> None:
    """The products' gradients of x * x come first, and the region adds its own to their sum."""
    rows = [*BROADCAST, Row("Transpose", {"perm": (1, 0)}, 1, 1), Row("MatMul", {}, 2, 1)]
    nodes = [(0, (1, 1)), (5, (1,)), (2, (2,)), (6, (2, 2)), (4, (4,)), (4, (5,))]
    graph = circuit(rows, nodes, [Leaf("input", "x", "float64", (260, 260))], [6, 7])
    given = {"x": np.random.default_rng(1).uniform(-1, 1, (260, 260))}
    job = bound(graph, given)
    assert len(job.compiled.regions) == 2
    assert_engines_agree(job, "float64")
