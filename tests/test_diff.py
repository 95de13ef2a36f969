"""What changed between two graphs is told in the graph's own words, and nothing else is."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from test_text import FILES, random_graph

import gradwire as gw
from gradwire.diff import compare, differences

TEXT = """gradwire text 1
operator_set 28

input x: float64[2, 3]
parameter w: float64[3, 2] = [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]
parameter b: float64[] = 0.5
constant %one: float64[] = 1.0

h = MatMul(x, w)
%shifted = Add(h, b)
%up = Add(%shifted, %one)
y = Softmax(%up, axis=1)
%sum = ReduceSum(y, keepdims=0)

output f = %sum
output y = y
"""


def changes(*replacements: tuple[str, str]) -> list[str]:
    text = TEXT
    for before, after in replacements:
        assert before in text
        text = text.replace(before, after)
    return [*differences(gw.from_text(TEXT), gw.from_text(text))]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_nothing_differs_from_itself(path: Path) -> None:
    assert not [*differences(gw.load(path), gw.load(path))]


def test_random_graphs_do_not_differ_from_themselves() -> None:
    for seed in range(100):
        data = random_graph(random.Random(seed)).SerializeToString(deterministic=True)
        graphs = gw.Graph.from_bytes(data), gw.Graph.from_bytes(data)
        assert not [*differences(*graphs)], f"seed {seed}"


@pytest.mark.parametrize(
    ("replacements", "lines"),
    [
        ([("operator_set 28", 'operator_set 28\nproducer "another"')], []),
        ([("%up", "%another"), ("%shifted", "%0")], []),
        ([("h = MatMul(x, w)", "h = MatMul(x, w)\n%no = Exp(h)")], ["+ %6 = Exp(h)"]),
        ([("axis=1", "axis=0")], ["~ y = Softmax(%7, axis=1) -> Softmax(%7, axis=0)"]),
        ([("ReduceSum(y", "ReduceMean(y")], [
            "- %9 = ReduceSum(y, keepdims=0)", "+ %9 = ReduceMean(y, keepdims=0)",
            "~ output f = %9 -> %9",
        ]),
        ([("(h, b)", "(b, h)")], ["~ %6 = Add(h, b) -> Add(b, h)"]),
        ([("float64[] = 1.0", "float64[] = 2.0")], [
            "~ %7 = Add(%6, 1.0) -> Add(%6, 2.0)"
        ]),
        ([("y = Soft", "z = Soft"), ("Sum(y", "Sum(z"), ("y = y", "y = z")], ["~ y is called z"]),
        ([("output y = y", "output y = h")], ["~ output y = y -> h"]),
        ([("output y = y", "output z = y")], ["- output y = y", "+ output z = y"]),
        ([("output y = y\n", ""), ("output f", "output y = y\noutput f")], [
            "~ outputs are in another order: y, f"
        ]),
        ([("[2, 3]", "[n, 3]")], ["~ input x: float64[2, 3] -> input x: float64[n, 3]"]),
        ([("[2, 3]", "[2, 3] = [[0, 0, 0], [0, 0, 0]]")], ["~ input x: has a stored value now"]),
        ([("input x:", "input u: float64[]\ninput x:")], ["+ input u: float64[]"]),
        ([("4.0", "4.5"), ("6.0", "5.0")], [
            "~ parameter w: 2 of 6 elements differ, norm of the difference 1.11803, largest 1 at "
            "[2, 1]"
        ]),
        ([("operator_set 28", 'operator_set 27\nnote "org.a" "b"')], [
            "~ operator_set 28 -> 27", "+ note org.a: 'b'"
        ]),
    ],
)  # fmt: skip
def test_change_is_told(replacements: list[tuple[str, str]], lines: list[str]) -> None:
    assert changes(*replacements) == lines


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda new: new, ""),
        (lambda new: new + np.where(np.arange(3) == 1, 0.25, 0), "1 of 3 elements differ, norm of"),
        (lambda new: np.where(np.arange(3) == 0, np.nan, new), "differ, 1 to or from NaN"),
        (lambda new: np.where(new == 0, -0.0, new), "norm of the difference 0, largest 0 at [0]"),
        (lambda new: new.astype(np.float32), "float64[3] -> float32[3]"),
        (lambda new: new[:2], "float64[3] -> float64[2]"),
    ],
)
def test_tensors_are_compared(change: Callable[[np.ndarray], np.ndarray], words: str) -> None:
    old = np.arange(3.0)
    found = compare(old, change(old.copy()))
    assert words in found
    assert bool(found) == bool(words)


def test_blobs_make_no_difference(tmp_path: Path) -> None:
    graph = gw.Graph()
    graph.output("f", gw.exp(graph.parameter("w", np.arange(1000.0))))
    graph.save(tmp_path / "a.gate")
    graph.save(tmp_path / "b.gate", blobs=True)
    assert not [*differences(gw.load(tmp_path / "a.gate"), gw.load(tmp_path / "b.gate"))]
