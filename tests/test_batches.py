"""Batches, both passes over block after block: what rows give alone, and on the array engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from test_tape import (
    FLOATS,
    ROWS,
    TOLERANCES,
    assert_engines_agree,
    circuit,
    found,
    never,
    point,
    prepared,
    random_circuit,
)

from gradwire_server.engine import batches, runs
from gradwire_server.engine.batches import BatchRecipe
from gradwire_server.engine.evaluation import Job
from gradwire_server.errors import Stopped
from gradwire_server.graph import Graph, Leaf, Output, Row

#: Of a block and around one; rows that fill the last block, and rows that do not.
COUNTS = (1, 63, 64, 65, 1000)


def job_of(
    graph: Graph, given: Mapping[str, Any], rows: int, seeds: Mapping[str, Any] | None = None
) -> Job:
    job = prepared(graph, given, rows, seeds)
    assert isinstance(job.recipe, BatchRecipe)
    return job


def mixed_point(rng: np.random.Generator, dtype: str, rows: int, batched: str) -> dict[str, Any]:
    """Numbers of a random circuit's leaves, some of which are batched."""
    given = point(rng, dtype)
    for name in batched.split():
        given[name] = rng.uniform(-1, 1, (rows, *given[name].shape)).astype(dtype)
    return given


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("batched", ["x", "y", "x y unused"])
@pytest.mark.parametrize("rows", COUNTS)
def test_leaves_of_a_row_and_of_all_rows_mix(rows: int, batched: str, dtype: str) -> None:
    rng = np.random.default_rng(rows)
    graph = random_circuit(rows, 80, wide=rows % 2 == 0, dtype=dtype)
    given = mixed_point(rng, dtype, rows, batched)
    seeds = {name: rng.uniform(-1, 1, rows).astype(dtype) for name in ("o1", "o2")}
    assert_engines_agree(job_of(graph, given, rows, seeds), dtype)


@pytest.mark.parametrize("dtype", FLOATS)
def test_each_row_is_evaluated_as_if_it_were_alone(dtype: str) -> None:
    rng, rows = np.random.default_rng(0), 65
    graph = random_circuit(3, 80, wide=True, dtype=dtype)
    given = mixed_point(rng, dtype, rows, "x y unused")
    seed = rng.uniform(-1, 1, rows).astype(dtype)
    together = found(job_of(graph, given, rows, {"o0": seed}))
    for row in (0, 31, 63, 64):
        one = {name: array[row] for name, array in given.items()}
        alone = found(prepared(graph, one, 0, {"o0": seed[row]}))
        for key, array in alone.items():
            tolerance = TOLERANCES[dtype]
            np.testing.assert_allclose(
                together[key][row], array, rtol=tolerance, atol=tolerance, err_msg=str((key, row))
            )


def truths_and_sums(rows: int, dtype: str = "float64") -> tuple[Graph, dict[str, Any]]:
    """Truths as leaf and as output, an output of several values, and one that has no rows."""
    gates = [*ROWS, Row("Exp", {}, 1, 1)]
    add, mul, greater, where, exp = 0, 1, 10, 11, 12
    leaves = [Leaf("input", "truth", "bool", ()), Leaf("input", "x", dtype, (3,), elements=True),
              Leaf("input", "one", dtype, ()), Leaf("input", "truths", "bool", (2,), elements=True),
              Leaf("input", "none", dtype, (0,), elements=True)]  # fmt: skip
    nodes = [(where, (1, 2, 3)), (mul, (8, 4)), (greater, (8, 9)), (exp, (5,)),
             (where, (6, 9, 11)), (where, (10, 12, 4)), (add, (13, 13))]  # fmt: skip
    graph = circuit(gates, nodes, leaves, [10, 11])
    several = Output("several", np.array([9, 2, 14, 9, 12]))
    graph = replace(graph, outputs=(*graph.outputs, several))
    rng = np.random.default_rng(rows)
    return graph, {
        "truth": rng.integers(0, 2, rows).astype(bool),
        "x": rng.uniform(-1, 1, (rows, 3)).astype(dtype),
        "one": np.asarray(0.25, dtype),
        "truths": np.array([True, False]),
        "none": np.zeros((rows, 0), dtype),
    }


@pytest.mark.parametrize("rows", COUNTS)
def test_truths_and_outputs_of_several_values_and_of_all_rows_are_told(rows: int) -> None:
    graph, given = truths_and_sums(rows)
    rng = np.random.default_rng(rows)
    seeds = {"o1": rng.uniform(-1, 1, rows), "several": rng.uniform(-1, 1, (rows, 5))}
    assert_engines_agree(job_of(graph, given, rows, seeds), "float64")
    assert_engines_agree(job_of(graph, given, rows, {"o1": seeds["o1"]}), "float64")
    assert_engines_agree(job_of(graph, given, rows), "float64")


def test_arrays_of_any_layout_are_read() -> None:
    graph, given = truths_and_sums(64)
    seed = np.linspace(-1, 1, 320).reshape(64, 5)
    expected = found(job_of(graph, given, 64, {"several": seed}))
    shifted = np.zeros(64 * 3 * 8 + 1, np.uint8)[1:].view(np.float64).reshape(64, 3)
    shifted[...] = given["x"]
    assert not shifted.flags.aligned
    for x in (shifted, np.asfortranarray(given["x"]), np.repeat(given["x"], 2, axis=0)[::2]):
        got = found(job_of(graph, given | {"x": x}, 64, {"several": np.asfortranarray(seed)}))
        for key, array in expected.items():
            np.testing.assert_array_equal(got[key], array, err_msg=str(key))


def test_backward_pass_can_be_repeated_over_kept_values() -> None:
    rng, rows = np.random.default_rng(1), 65
    graph = random_circuit(5, 80, wide=False, dtype="float64")
    given = mixed_point(rng, "float64", rows, "x")
    jobs = [job_of(graph, given, rows, {name: np.ones(rows)}) for name in ("o0", "o1")]
    run = runs.Run(jobs[0])
    run.complete(never)
    given["x"][...] = np.nan  # nobody reads it again
    gradients, _ = run.pull(jobs[1].seeds, never)
    again, _ = run.pull(jobs[0].seeds, never)
    rng = np.random.default_rng(1)
    given = mixed_point(rng, "float64", rows, "x")
    for name, pulled in (("o1", gradients), ("o0", again)):
        job = job_of(graph, given, rows, {name: np.ones(rows)})
        for (_, one), (_, other) in zip(pulled, runs.Run(job).complete(never)[1], strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-12)


def test_results_outlive_the_next_evaluation() -> None:
    graph, given = truths_and_sums(1000)
    job = job_of(graph, given, 1000, {"o1": np.ones(1000)})
    outputs, gradients, _, _ = runs.run(job, never)
    kept = [array.copy() for _, array in [*outputs, *gradients]]
    other = job.at(tuple(np.zeros_like(array) for array in job.point.arrays))
    assert any((array != 0).any() for _, array in runs.run(other, never)[0])
    for (_, array), before in zip([*outputs, *gradients], kept, strict=True):
        np.testing.assert_array_equal(array, before)


def test_long_batches_end_when_nobody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, given = truths_and_sums(1000)
    job = job_of(graph, given, 1000, {"o1": np.ones(1000)})
    expected = found(job)
    monkeypatch.setattr(batches, "_GROUP", 1)  # as few blocks as there are processors
    monkeypatch.setattr(batches, "processors", lambda: 1)
    for key, array in found(job).items():
        np.testing.assert_array_equal(array, expected[key])
    looks = iter([False, True])
    with pytest.raises(Stopped):
        runs.run(job, lambda: next(looks))


def test_circuits_too_long_for_one_call_go_node_by_node(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, given = truths_and_sums(65)
    monkeypatch.setattr(batches, "_GROUP", 100)
    job = prepared(graph, given, 65, {"o1": np.ones(65)})
    assert job.recipe is None
    assert_engines_agree(job, "float64")
