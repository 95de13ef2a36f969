"""Compiled passes over rows compute what the array engine does."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from test_regions import bound
from test_tape import FLOATS, assert_engines_agree, circuit

from gradwire_server.engine.rows import SoftmaxRows
from gradwire_server.graph import Graph, Leaf, Row


def softmax_graph(dtype: str, shape: Any, axis: int) -> Graph:
    """sum(softmax(x) * y)"""
    rows = [
        Row("Softmax", {"axis": axis}, 1, 1), Row("Mul", {}, 2, 1),
        Row("ReduceSum", {"keepdims": 0}, 1, 1),
    ]  # fmt: skip
    leaves = [Leaf("input", name, dtype, shape) for name in "xy"]
    return circuit(rows, [(0, (1,)), (1, (3, 2)), (2, (4,))], leaves, [5])


def drawn(dtype: str, shape: Any) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {name: rng.normal(0, 4, shape).astype(dtype) for name in "xy"}


def is_compiled(job: Any) -> bool:
    return any(isinstance(each, SoftmaxRows) for each in job.compiled.regions.values())


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(40, 500), (700, 33), (6000, 3), (20_000, 1), (4, 5, 1024)])
def test_softmax_of_rows_agrees_with_the_array_engine(shape: Any, dtype: str) -> None:
    job = bound(softmax_graph(dtype, shape, -1), drawn(dtype, shape))
    assert is_compiled(job)
    assert_engines_agree(job, dtype)


def test_softmax_of_a_batch_agrees() -> None:
    job = bound(softmax_graph("float64", (30, 90), 1), drawn("float64", (8, 30, 90)), 8)
    assert is_compiled(job)
    assert_engines_agree(job, "float64")


def test_softmax_of_columns_is_left_to_the_array_engine() -> None:
    job = bound(softmax_graph("float64", (90, 400), 0), drawn("float64", (90, 400)))
    assert not is_compiled(job)


@pytest.mark.parametrize("dtype", FLOATS)
def test_rows_that_are_not_finite_are_as_in_the_array_engine(dtype: str) -> None:
    given = drawn(dtype, (300, 67))
    for row, (first, rest) in enumerate(
        [
            (np.inf, 1),
            (-np.inf, 1),
            (np.nan, 1),
            (-np.inf, -np.inf),
            (np.inf, np.inf),
            (1e30, -1e30),
        ]
    ):
        given["x"][row], given["x"][row, 40] = rest, first
    job = bound(softmax_graph(dtype, (300, 67), -1), given)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_engines_agree(job, dtype)
