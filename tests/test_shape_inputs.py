"""Inputs of which only shape and data type count: what is in front of them is no part of shapes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import numpy as np
import pytest

import gradwire as gw
from gradwire_server.codec.graphs import decode_graph
from gradwire_server.engine.evaluation import Binding, Evaluation
from gradwire_server.gates import GATES
from gradwire_server.limits import Limits
from gradwire_server.plan import static_leaves
from gradwire_server.session import Session

RANDOM = np.random.default_rng(5)
X, W = RANDOM.normal(size=(3, 2, 4)), RANDOM.normal(size=(4, 4))
ROWS = 5


@pytest.fixture(scope="module")
def server() -> Iterator[gw.Connection]:
    with gw.local() as connection:
        yield connection


def as_rows(y: gw.Handle) -> gw.Handle:
    """What torch's y.view(y.size(0), -1) becomes."""
    count = gw.gather(gw.shape(y), [0])
    return gw.reshape(y, gw.concat(count, [-1], axis=0))


def of_two(y: gw.Handle, w: gw.Handle) -> gw.Handle:
    rows = gw.reshape(y, [-1, 4])
    return (gw.transpose(rows) @ rows) * w


MADE: dict[str, Callable[[gw.Handle, gw.Handle], gw.Handle]] = {
    "Shape": lambda y, _: as_rows(gw.tanh(y)),
    "Size": lambda y, _: gw.tanh(y) / gw.cast(gw.size(y), to=11),
    "EyeLike": lambda y, w: of_two(y, w) * gw.eye_like(of_two(y, w)),
    "EyeLike alone": lambda y, w: w * gw.eye_like(of_two(y, w), k=1),
    "CastLike": lambda y, w: gw.cast_like(y, gw.reduce_sum(w)) * 3.0,
    "CastLike of what is not batched": lambda y, w: gw.cast_like(w, y) * w,
    "CastLike to what is": lambda y, _: gw.cast_like(y, gw.cast(y, to=1)),
    "ConstantOfShape": lambda y, _: y * gw.cast(gw.constant_of_shape(gw.shape(y)), to=11) + y,
    "Range": lambda y, w: y * gw.cast(gw.range(0, gw.size(w), 4), to=11),
    "Expand": lambda y, w: gw.expand(gw.gather(w, 0), gw.shape(y)) * y,
}  # fmt: skip
SHOWN = ("Shape", "Size", "EyeLike")


def graph_of(make: Callable[[gw.Handle, gw.Handle], gw.Handle], depth: int = 1) -> gw.Graph:
    graph = gw.Graph()
    x, w = graph.input("x", ("n", "m", 4)), graph.parameter("w", W)
    y = x
    for _ in range(depth):
        y = gw.tanh(y @ w)
    graph.output("z", gw.reduce_sum(make(y, w), keepdims=0))
    return graph


every = pytest.mark.parametrize("make", MADE.values(), ids=[*MADE])


@every
@pytest.mark.parametrize("depth", [1, 600], ids=["small", "large"])
def test_leaves_in_front_are_not_static(make: Any, depth: int) -> None:
    assert not static_leaves(decode_graph(graph_of(make, depth).to_bytes(), Limits())) & {0, 1}


@every
def test_every_leaf_of_an_evaluator_is_writable(server: gw.Connection, make: Any) -> None:
    graph = graph_of(make)
    evaluator = gw.Evaluator(graph, {"x": X})
    assert all(each.flags.writeable for each in evaluator.inputs.values())
    value, gradients = evaluator.value_and_gradient({"x": 2 * X, "w": W / 2})
    fresh = server.evaluate(graph, {"x": 2 * X, "w": W / 2})
    np.testing.assert_allclose(value, fresh.outputs["z"], rtol=1e-12)
    for name, gradient in gradients.items():
        np.testing.assert_allclose(gradient, fresh.gradients[name], rtol=1e-12)


@every
@pytest.mark.parametrize("batched", [["x"], ["w"], ["x", "w"]], ids=",".join)
def test_rows_of_a_batch_have_a_rows_shape(
    server: gw.Connection, make: Any, batched: list[str]
) -> None:
    graph = graph_of(make)
    point = {"x": X, "w": W}
    for name in batched:
        scales = RANDOM.uniform(0.5, 1.5, ROWS)
        point[name] = np.stack([scale * point[name] for scale in scales])
    singles = [
        server.evaluate(
            graph, {name: each[row] if name in batched else each for name, each in point.items()}
        )
        for row in range(ROWS)
    ]
    found = server.evaluate(graph, point, batched=batched)
    assert found.outputs["z"].shape == (ROWS,)
    np.testing.assert_allclose(
        found.outputs["z"], [each.outputs["z"] for each in singles], rtol=1e-12
    )
    for name in ("x", "w"):
        rows = np.stack([each.gradients[name] for each in singles])
        expected = rows if name in batched else rows.sum(axis=0)
        np.testing.assert_allclose(found.gradients[name], expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("operator", SHOWN)
def test_what_they_yield_is_the_same_for_every_row(server: gw.Connection, operator: str) -> None:
    graph = gw.Graph()
    x = graph.input("x", (2, 3))
    y = {"Shape": gw.shape, "Size": gw.size, "EyeLike": gw.eye_like}[operator](x)
    graph.output("y", y)
    one = server.evaluate(graph, {"x": X[0, :, :3]}, forward_only=True).outputs["y"]
    rows = np.zeros((ROWS, 2, 3))
    found = server.evaluate(graph, {"x": rows}, batched=["x"], forward_only=True).outputs["y"]
    np.testing.assert_array_equal(found, np.stack([one] * ROWS))


@every
def test_a_step_at_other_numbers_is_not_planned_again(make: Any) -> None:
    graph = decode_graph(graph_of(make).to_bytes(), Limits())
    session = Session(graph, Evaluation(bindings={"x": Binding(X)}), Limits())
    session.step({}, False, lambda: False)
    assert session._run is not None
    plan = session._run.job.plan
    for name, array in (("x", 2 * X), ("w", W / 2)):
        session.step({name: Binding(array)}, False, lambda: False)
        assert session._run.job.plan is plan
    session.step({"x": Binding(X[:2])}, False, lambda: False)
    assert session._run.job.plan is not plan


@every
def test_answers_do_not_depend_on_what_was_asked_before(server: gw.Connection, make: Any) -> None:
    graph = graph_of(make)
    points = [(X, W), (X[:2], W), (2 * X, W / 2), (X[:, :1], W), (X, 2 * W)]
    fresh = []
    for x, w in points:
        with gw.local(warm_up=False) as alone:
            fresh.append(alone.evaluate(graph, {"x": x, "w": w}))
    for (x, w), expected in [*zip(points, fresh, strict=True)] * 2:
        found = server.evaluate(graph, {"x": x, "w": w})
        np.testing.assert_allclose(found.outputs["z"], expected.outputs["z"], rtol=1e-12)
        for name, gradient in found.gradients.items():
            np.testing.assert_allclose(gradient, expected.gradients[name], rtol=1e-11)


def test_elements_are_known_where_only_a_shape_decides_them(server: gw.Connection) -> None:
    graph = gw.Graph()
    x, n = graph.input("x", (2, 2)), graph.input("n", (1, 4))
    sizes = gw.gather(gw.eye_like(gw.cast(n, to=7)), 0) * 4  # [4, 0, 0, 0], whatever n holds
    graph.output("y", gw.reshape(x, gw.gather(sizes, [0])))
    found = server.evaluate(graph, {"x": [[1, 2], [3, 4]], "n": np.ones((1, 4))}, forward_only=True)
    np.testing.assert_array_equal(found.outputs["y"], [1, 2, 3, 4])


def test_gates_that_use_only_a_shape_say_so() -> None:
    declared = {
        (operator, each.name)
        for operator, gate in GATES.items()
        for each in gate.inputs
        if not each.elements
    }
    assert declared == {
        ("AssertEqual", "actual"), ("CastLike", "target_type"), ("EyeLike", "input"),
        ("Shape", "data"), ("Size", "data"),
    }  # fmt: skip


def test_combinations_of_shapes_are_found_for_whatever_is_batched(server: gw.Connection) -> None:
    makers = [*MADE.values()]
    for first, second in product(makers[:3], makers[3:6]):
        graph = graph_of(lambda y, w, a=first, b=second: gw.reduce_sum(a(y, w)) * b(y, w))
        rows = np.stack([X, 2 * X])
        found = server.evaluate(graph, {"x": rows}, batched=["x"]).outputs["z"]
        singles = [server.evaluate(graph, {"x": row}).outputs["z"] for row in rows]
        np.testing.assert_allclose(found, singles, rtol=1e-11)
