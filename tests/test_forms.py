"""A request that comes again is filled in, not written; nobody can tell by its result."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import gradwire as gw
from gradwire import forms
from gradwire.forms import Forms
from gradwire.results import Result
from gradwire.segments import INLINE


@pytest.fixture(scope="module")
def server() -> Iterator[gw.Connection]:
    with gw.local() as connection:
        yield connection


def polynomial() -> gw.Graph:
    """Numbers, arrays, another data type, a truth and an open size."""
    graph = gw.Graph()
    a, b = graph.input("a"), graph.input("b", (2, 3))
    c = graph.input("c", ("n",))
    single = graph.input("single", dtype="float32")
    switch = graph.input("switch", dtype="bool")
    total = gw.reduce_sum(b * b, keepdims=0) * a + gw.reduce_sum(c, keepdims=0) ** 2
    graph.output("f", gw.where(switch, total, -total))
    graph.output("g", gw.exp(single))
    return graph


POINT: dict[str, Any] = {
    "a": 2.0, "b": np.arange(6.0).reshape(2, 3), "c": np.array([1.0, 2.0]), "single": 0.5,
    "switch": True,
}  # fmt: skip
SEEDS = {"f": 1.0, "g": 1.0}


def plain() -> gw.Graph:
    """The same without what no form takes."""
    graph = gw.Graph()
    a, b, c = graph.input("a"), graph.input("b", (2, 3)), graph.input("c", ("n",))
    single = graph.input("single", dtype="float32")
    total = gw.reduce_sum(b * b, keepdims=0) * a + gw.reduce_sum(c, keepdims=0) ** 2
    graph.output("f", total + gw.cast_like(single, a))
    return graph


def plain_point(**changes: Any) -> dict[str, Any]:
    return {name: POINT[name] for name in ("a", "b", "c", "single")} | changes


CHANGES: list[dict[str, Any]] = [
    {}, {"a": 3.0}, {"a": np.float64(-0.0)}, {"a": np.array(np.nan)}, {"single": 0.1},
    {"single": np.float32(7)}, {"b": np.full((2, 3), np.inf)}, {"b": np.ones((3, 2)).T},
    {"a": 4}, {"b": [[1, 2, 3], [4, 5, 6]]}, {"c": np.arange(5.0)}, {"c": np.arange(2.0)},
    {"c": np.arange(2.0)[::-1]}, {"a": 1e308}, {"c": np.zeros(0)},
]  # fmt: skip


def require_same(found: Result, expected: Result) -> None:
    for what in ("outputs", "gradients"):
        arrays, others = getattr(found, what), getattr(expected, what)
        assert list(arrays) == list(others)
        for name, array in arrays.items():
            np.testing.assert_array_equal(array, others[name], strict=True)
            assert not array.flags.writeable
    assert found.graph is expected.graph
    assert (found.node_values, found.node_gradients) == ({}, {})


def unwritten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Writing a request fails from here on, and so does parsing an answer."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("the form was not used")

    for name in ("step_request", "evaluate_request", "session_answer"):
        monkeypatch.setattr(forms.requests, name, refuse)
    monkeypatch.setattr(forms, "parse", refuse)


def test_every_evaluation_is_answered_as_one_on_a_new_connection(server: gw.Connection) -> None:
    graph = plain()
    for change in CHANGES * 2:
        found = server.evaluate(graph, plain_point(**change))
        with gw.connect(server.target) as fresh:
            require_same(found, fresh.evaluate(graph, plain_point(**change)))


def test_every_step_is_answered_as_an_evaluation(server: gw.Connection) -> None:
    graph = plain()
    point = plain_point()
    with server.session(graph, point) as session:
        for change in CHANGES * 2:
            point |= change
            found = session.step(change)
            with gw.connect(server.target) as fresh:
                require_same(found, fresh.evaluate(graph, point))


def test_requests_that_come_again_are_filled_in(
    server: gw.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph, values = plain(), [0.5, 1.5, 2.5, 3.5, 4.5]
    with server.session(graph, plain_point()) as session:
        expected = [server.evaluate(graph, plain_point(a=a)) for a in values]
        for a in values:
            session.step({"a": a})
        unwritten(monkeypatch)
        for a, each in zip(values, expected, strict=True):
            require_same(server.evaluate(graph, plain_point(a=a)), each)
            require_same(session.step({"a": a}), each)


def test_asynchronous_client_fills_them_in_too(
    server: gw.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = plain()
    expected = server.evaluate(graph, plain_point(a=9.0))

    async def run() -> None:
        async with (
            gw.connect_async(server.target) as connection,
            await connection.session(graph, plain_point()) as session,
        ):
            for _ in range(5):
                await session.step({"a": 1.0})
                await connection.evaluate(graph, plain_point(a=1.0))
            unwritten(monkeypatch)
            require_same(await session.step({"a": 9.0}), expected)
            require_same(await connection.evaluate(graph, plain_point(a=9.0)), expected)

    asyncio.run(run())


def test_what_no_form_takes_is_answered_all_the_same(server: gw.Connection) -> None:
    graph = polynomial()
    for a in (1.0, 2.0, 3.0, 4.0, 5.0):
        for switch in (True, False):
            result = server.evaluate(graph, POINT | {"a": a, "switch": switch}, seeds=SEEDS)
            assert result["f"].value == (55 * a + 9) * (1 if switch else -1)
            assert result["a"].gradient == (55 if switch else -55)


def test_graph_that_grows_between_calls_is_another(server: gw.Connection) -> None:
    graph = gw.Graph()
    x = graph.input("x")
    graph.output("f", x * x)
    for x_value in (1.0, 2.0, 3.0, 4.0):
        assert server.evaluate(graph, {"x": x_value})["f"].value == x_value**2
    graph.output("g", x + 1)
    result = server.evaluate(graph, {"x": 5.0}, seeds={"g": 1.0})
    assert (result["f"].value, result["g"].value, result["x"].gradient) == (25.0, 6.0, 1.0)


def test_options_are_told_apart(server: gw.Connection) -> None:
    graph = plain()
    for _ in range(5):
        assert list(server.evaluate(graph, plain_point()).gradients) == ["a", "b", "c", "single"]
        for wanted in (["a"], ("b",), "c", np.array(["a", "c"]), {"single": 1}.keys()):
            result = server.evaluate(graph, plain_point(), with_respect_to=wanted)
            assert list(result.gradients) == list(wanted)
        assert not server.evaluate(graph, plain_point(), forward_only=True).gradients
        assert server.evaluate(graph, plain_point(), values=True).node_values


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"b": np.ones((2, 2))}, "SHAPE_MISMATCH"),
        ({"a": np.float32(1)}, "DATA_TYPE_MISMATCH"),
        ({"a": np.ones(1)}, "SHAPE_MISMATCH"),
        ({"a": "many"}, "TENSOR_INVALID"),
        ({"d": 1.0}, "LEAF_UNKNOWN"),
    ],
)
def test_mistake_is_refused_as_before(
    server: gw.Connection, change: dict[str, Any], reason: str
) -> None:
    graph = plain()
    with server.session(graph, plain_point()) as session:
        calls: list[Callable[[dict[str, Any]], Result]] = [
            session.step, lambda each: server.evaluate(graph, plain_point(**each))
        ]  # fmt: skip
        for call in calls:
            for _ in range(5):
                call({"a": 1.0, "b": np.ones((2, 3))})
            with pytest.raises(gw.InvalidRequestError) as failure:
                call({"a": 1.0, "b": np.ones((2, 3))} | change)
            assert failure.value.reason == reason
            assert call({"a": 1.0, "b": np.ones((2, 3))})["f"].value == 15.5


def test_refusal_of_the_server_is_raised_between_steps_that_are_alike() -> None:
    graph = gw.Graph()
    x, y = graph.input("x", ("n",)), graph.input("y", ("n",))
    graph.output("f", gw.reduce_sum(x * y, keepdims=0))
    with gw.local() as server, server.session(graph) as session:
        for _ in range(5):
            session.step({"x": np.ones(3), "y": np.ones(3)})
        for _ in range(2):
            with pytest.raises(gw.InvalidRequestError):
                session.step({"x": np.ones(4), "y": np.ones(3)})
            assert session.step({"x": np.ones(3), "y": np.full(3, 2.0)})["f"].value == 6.0


def test_more_kinds_than_are_kept_are_answered(server: gw.Connection) -> None:
    graph = gw.Graph()
    leaves = [graph.parameter(f"p{i}", np.float64(i)) for i in range(20)]
    graph.output("f", gw.sum(*leaves))
    with server.session(graph) as session:
        for _ in range(4):
            for i in range(20):
                assert session.step({f"p{i}": float(i)})["f"].value == 190.0


def test_results_keep_their_numbers(server: gw.Connection) -> None:
    with server.session(plain(), plain_point()) as session:
        results = [session.step({"a": float(a)}) for a in range(8)]
    assert [float(each["f"].value) for each in results] == [55.0 * a + 9.5 for a in range(8)]


def test_same_bytes_in_two_leaves_are_told_apart(server: gw.Connection) -> None:
    graph = gw.Graph()
    x, y = graph.input("x"), graph.input("y")
    graph.output("f", x - 2 * y)
    for _ in range(4):
        server.evaluate(graph, {"x": 1.0, "y": 1.0})
    assert server.evaluate(graph, {"x": 1.0, "y": 1.0})["f"].value == -1.0
    result = server.evaluate(graph, {"x": 3.0, "y": 5.0})
    assert (result["f"].value, result["x"].gradient, result["y"].gradient) == (-7.0, 1.0, -2.0)


def test_large_graph_is_not_held() -> None:
    graph = gw.Graph()
    graph.output("f", graph.input("x") * gw.reduce_sum(graph.constant(np.ones(10_000)), keepdims=0))
    forms = Forms()
    first = forms.evaluate(graph, b"", {"x": 1.0}, {})
    assert forms.evaluate(graph, b"", {"x": 1.0}, {}) is not first
    assert first.request({"x": 1.0}, INLINE)


def vectors() -> list[gw.Graph]:
    """One data type, another, and both, with arrays among the numbers."""
    graphs = []
    for first, second in (("float64", "float64"), ("float32", "float32"), ("float64", "float32")):
        graph = gw.Graph()
        a, b = graph.input("a", dtype=first), graph.parameter("b", np.ones((2, 3), second))
        total = gw.reduce_sum(b * b, keepdims=0)
        graph.output("f", gw.tanh(a) * (total if first == second else gw.cast_like(total, a)))
        graphs.append(graph)
    return graphs


@pytest.mark.parametrize("graph", vectors())
def test_steps_at_a_vector_are_steps_at_its_leaves(server: gw.Connection, graph: gw.Graph) -> None:
    random = np.random.default_rng(0)
    dtypes = [np.dtype(leaf.dtype) for leaf in graph.leaves]
    with server.session(graph) as session, server.session(graph) as other:
        for number in range(12):
            x = random.normal(size=14)[::2].astype(["float64", "float32"][number // 3 % 2])
            value, gradient = session.value_and_gradient(x)
            leaves = {"a": x[0].astype(dtypes[0]), "b": x[1:].reshape(2, 3).astype(dtypes[1])}
            result = other.step(leaves)
            assert value == float(result.outputs["f"])
            parts = [result.gradients["a"].reshape(1), result.gradients["b"].ravel()]
            expected = np.concatenate([part.astype(x.dtype) for part in parts])
            np.testing.assert_array_equal(gradient, expected, strict=True)
            gradient += 1  # it is the caller's own
        with pytest.raises(gw.InvalidRequestError, match="elements in all"):
            session.value_and_gradient(np.ones(8))
        assert session.value_and_gradient(list(range(7)))[0] == 0


def test_steps_at_a_vector_are_filled_in(
    server: gw.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph, x = gw.parse("tanh(a*b) + exp(c/4)"), np.array([0.5, 2.0, -1.0])
    with server.session(graph) as session, server.session(graph) as other:
        for each in range(6):
            session.value_and_gradient(x + each)
        expected = other.value_and_gradient(x)
        unwritten(monkeypatch)
        value, gradient = session.value_and_gradient(x)
    assert value == expected[0]
    np.testing.assert_array_equal(gradient, expected[1], strict=True)


def large() -> gw.Graph:
    """Arrays that are copied once, beside small ones and a number."""
    graph = gw.Graph()
    a, b, c = graph.input("a", (100, 100)), graph.input("b", (3,)), graph.input("c", (9000,))
    d = graph.input("d")
    total = gw.reduce_sum(a * a, keepdims=0) + gw.reduce_sum(c, keepdims=0) * d
    graph.output("f", total * gw.reduce_sum(b, keepdims=0))
    return graph


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_steps_at_a_large_vector_are_steps_at_its_leaves(server: gw.Connection, dtype: str) -> None:
    graph, random = large(), np.random.default_rng(0)
    with server.session(graph) as session, server.session(graph) as other:
        for _ in range(6):
            x = random.normal(size=19_004).astype(dtype)
            value, gradient = session.value_and_gradient(x)
            exact = x.astype("float64")
            parts = {"a": exact[:10_000].reshape(100, 100), "b": exact[10_000:10_003]}
            result = other.step(parts | {"c": exact[10_003:-1], "d": exact[-1]})
            assert value == float(result.outputs["f"])
            expected = np.concatenate([result.gradients[name].ravel() for name in "abcd"])
            np.testing.assert_array_equal(gradient, expected.astype(dtype), strict=True)
            gradient += 1


def test_large_arrays_are_filled_in(server: gw.Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    graph, random = large(), np.random.default_rng(0)

    def point() -> dict[str, Any]:
        shapes: dict[str, tuple[int, ...]] = {"a": (100, 100), "b": (3,), "c": (9000,), "d": ()}
        return {name: random.normal(size=shape) for name, shape in shapes.items()}

    points = [point() for _ in range(5)]
    points.append(points[0] | {"a": points[1]["a"].T, "c": np.ones(18_000)[::2]})
    expected = [server.evaluate(graph, each, values=True) for each in points]
    with server.session(graph) as session:
        for each in points[:4]:
            session.step(each)
            server.evaluate(graph, each)

        def refuse(*_: Any, **__: Any) -> Any:
            raise AssertionError("the form was not used")

        for name in ("step_request", "evaluate_request"):
            monkeypatch.setattr(forms.requests, name, refuse)
        for each, result in zip(points, expected, strict=True):
            result.node_values.clear()
            require_same(session.step(each), result)
            require_same(server.evaluate(graph, each), result)
