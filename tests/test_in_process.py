"""Evaluations in this process find what a server finds, in arrays that stay where they are."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

import gradwire as gw
from gradwire_server.engine import repeated


@pytest.fixture(scope="module")
def server() -> Iterator[gw.Connection]:
    with gw.local() as connection:
        yield connection


def circuit(dtype: str = "float64", gates: int = 60, seed: int = 0) -> gw.Graph:
    """A random circuit of scalars, with elements, a parameter and a constant."""
    random = np.random.default_rng(seed)
    graph = gw.Graph()
    values = [graph.input(f"x{i}", dtype=dtype) for i in range(3)]
    values += graph.elements("v", (4,), dtype)
    values += graph.elements("m", (2, 2), dtype)
    values += [graph.parameter("p", np.array(0.5, dtype)), graph.constant(np.array(2.0, dtype))]
    for _ in range(gates):
        a, b = (values[i] for i in random.integers(0, len(values), 2))
        one = random.integers(0, 6)
        values.append([a + b, a * b, a - b, gw.tanh(a), gw.sigmoid(b), gw.max(a, b)][one])
    graph.output("f", gw.tanh(values[-1]))
    graph.output("many", *values[-4:])
    return graph


def point(dtype: str, seed: int) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    shapes: dict[str, tuple[int, ...]] = {"x0": (), "x1": (), "x2": (), "v": (4,), "m": (2, 2)}
    return {name: np.array(random.normal(size=shape), dtype) for name, shape in shapes.items()}


def seeds(dtype: str) -> dict[str, Any]:
    return {"f": np.array(1.5, dtype), "many": np.array([1, -2, 0.5, 3], dtype)}


def network() -> gw.Graph:
    graph = gw.Graph()
    x, w = graph.input("x", ("n", 3)), graph.parameter("w", np.ones((3, 2)))
    graph.output("f", gw.reduce_sum(np.tanh(x @ w), keepdims=0))
    return graph


def require_same(found: gw.Result, expected: gw.Result) -> None:
    for what in ("outputs", "gradients", "node_values", "node_gradients"):
        arrays, others = getattr(found, what), getattr(expected, what)
        assert list(arrays) == list(others)
        for key, array in arrays.items():
            np.testing.assert_array_equal(array, others[key], strict=True)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("gates", [5, 60, 300])
def test_circuit_is_evaluated_as_by_a_server(server: gw.Connection, dtype: str, gates: int) -> None:
    graph = circuit(dtype, gates)
    options = {"seeds": seeds(dtype), "values": True, "gradients": True}
    evaluator = gw.Evaluator(graph, point(dtype, 0), **options)
    for seed in range(4):
        for name, array in point(dtype, seed).items():
            evaluator.inputs[name][...] = array
        evaluator.run()
        require_same(evaluator.result(), server.evaluate(graph, point(dtype, seed), **options))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"values": True, "gradients": True, "summary": True},
        {"forward_only": True, "values": True},
        {"with_respect_to": "w"},
        {"gradients": [2]},
    ],
)
def test_network_is_evaluated_as_by_a_server(
    server: gw.Connection, options: dict[str, Any]
) -> None:
    graph, random = network(), np.random.default_rng(0)
    evaluator = gw.Evaluator(graph, {"x": np.zeros((4, 3))}, **options)
    for _ in range(3):
        x, w = random.normal(size=(4, 3)), random.normal(size=(3, 2))
        evaluator.inputs["x"][...], evaluator.inputs["w"][...] = x, w
        evaluator.run()
        require_same(evaluator.result(), server.evaluate(graph, {"x": x, "w": w}, **options))


def test_batch_is_evaluated_as_by_a_server(server: gw.Connection) -> None:
    graph = circuit()
    given = point("float64", 0) | {"x0": np.arange(100.0)}
    wanted = {"f": np.ones(100), "many": np.ones((100, 4))}
    evaluator = gw.Evaluator(graph, given, batched="x0", seeds=wanted)
    evaluator.inputs["x0"][...] = given["x0"] / 7
    evaluator.run()
    expected = server.evaluate(graph, given | {"x0": given["x0"] / 7}, batched="x0", seeds=wanted)
    require_same(evaluator.result(), expected)


def test_module_and_truths_are_evaluated_as_by_a_server(server: gw.Connection) -> None:
    @gw.module
    def double(x: Any) -> Any:
        return x + x

    @double.gradient
    def double_gradient(x: Any, out: Any, grad: Any) -> Any:
        return 2 * grad + 0 * out * x

    graph = gw.Graph()
    x, switch = graph.input("x"), graph.input("switch", dtype="bool")
    graph.output("f", gw.where(switch, double(x), x * x))
    evaluator = gw.Evaluator(graph, {"x": 0.0, "switch": False}, values=True)
    for x_value, on in ((3.0, True), (4.0, False)):
        evaluator.inputs["x"][...], evaluator.inputs["switch"][...] = x_value, on
        evaluator.run()
        given = {"x": x_value, "switch": on}
        require_same(evaluator.result(), server.evaluate(graph, given, values=True))


def test_arrays_stay_where_they_are() -> None:
    for graph, given in ((circuit(), point("float64", 0)), (network(), {"x": np.ones((2, 3))})):
        wanted = seeds("float64") if "many" in graph.outputs else {}
        evaluator = gw.Evaluator(graph, given, seeds=wanted)
        arrays = {**evaluator.inputs, **evaluator.outputs, **evaluator.gradients}
        before = {name: array.copy() for name, array in evaluator.outputs.items()}
        for array in evaluator.inputs.values():
            array[...] = 0.25
        evaluator.run()
        assert {**evaluator.inputs, **evaluator.outputs, **evaluator.gradients}.keys() == {*arrays}
        assert all(evaluator.outputs[name] is arrays[name] for name in evaluator.outputs)
        assert any((evaluator.outputs[name] != before[name]).any() for name in before)


def test_small_circuit_computes_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: object) -> None:
        raise AssertionError("it was copied")

    monkeypatch.setattr(repeated, "_Copying", refuse)
    evaluator = gw.Evaluator(circuit(), point("float64", 0), seeds=seeds("float64"))
    found = []
    for x in (0.0, 0.5, 1.0):
        for array in evaluator.inputs.values():
            array[...] = x
        evaluator.run()
        found.append(evaluator.result())
    monkeypatch.undo()
    # "many" lies here and there, and is gathered
    assert all((a.outputs["many"] != b.outputs["many"]).any() for a, b in pairwise(found))


def test_arrays_outlive_their_evaluator() -> None:
    gradients = gw.Evaluator(circuit(), point("float64", 0), seeds=seeds("float64")).gradients
    expected = {name: array.copy() for name, array in gradients.items()}
    others = [gw.Evaluator(circuit(seed=7), point("float64", 1), seeds=seeds("float64"))
              for _ in range(20)]  # fmt: skip
    for name, array in gradients.items():
        np.testing.assert_array_equal(array, expected[name])
    assert len(others) == 20


def test_run_alone_keeps_what_it_computes_in() -> None:
    many = [gw.Evaluator(circuit(), point("float64", 0), seeds=seeds("float64")) for _ in range(9)]
    outputs, runs = [each.outputs["f"] for each in many], [each.run for each in many]
    for array in outputs:
        array[...] = 0
    del many
    others = [np.full(1000, np.nan) for _ in range(100)]
    for run in runs:
        run()
    assert len({float(array) for array in outputs}) == 1
    assert outputs[0] != 0
    assert len(others) == 100


def test_given_arrays_are_not_written_to() -> None:
    x = np.ones((2, 3))
    evaluator = gw.Evaluator(network(), {"x": x})
    evaluator.inputs["x"][...] = 5.0
    x[...] = 7.0
    assert (evaluator.inputs["x"] == 5.0).all()


def test_value_and_gradient_is_a_sessions(server: gw.Connection) -> None:
    graph = gw.parse("tanh(a*b) + exp(c/4)")
    evaluator = gw.Evaluator(graph, {"a": 0.0, "b": 0.0, "c": 0.0})
    with server.session(graph) as session:
        for seed in range(3):
            x = np.random.default_rng(seed).normal(size=3)
            value, gradient = evaluator.value_and_gradient(x)
            expected, other = session.value_and_gradient(x)
            assert value == expected
            np.testing.assert_array_equal(gradient, other, strict=True)
            named = dict(zip("abc", x, strict=True))
            assert evaluator.value_and_gradient(named) == (
                value,
                dict(zip("abc", other, strict=True)),
            )


def test_elements_that_shapes_depend_on_stay() -> None:
    graph = gw.Graph()
    x, shape = graph.input("x", (6,)), graph.input("shape", (2,), dtype="int64")
    graph.output("f", gw.reduce_sum(gw.reshape(x, shape) ** 2, keepdims=0))
    evaluator = gw.Evaluator(graph, {"x": np.ones(6), "shape": [2, 3]})
    with pytest.raises(ValueError, match="read-only"):
        evaluator.inputs["shape"][...] = 6
    with pytest.raises(gw.InvalidRequestError, match="make another evaluator") as failure:
        evaluator.value_and_gradient({"x": np.zeros(6), "shape": [3, 2]})
    assert failure.value.reason == "BINDING_INVALID"
    assert (evaluator.inputs["x"] == 1).all()


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"y": 1.0}, "LEAF_UNKNOWN"),
        ({"x": np.ones((4, 3))}, "SHAPE_MISMATCH"),
        ({"x": np.ones((2, 3), "float32")}, "DATA_TYPE_MISMATCH"),
    ],
)
def test_wrong_point_changes_nothing(given: dict[str, Any], reason: str) -> None:
    evaluator = gw.Evaluator(network(), {"x": np.ones((2, 3))})
    with pytest.raises(gw.InvalidRequestError) as failure:
        evaluator.value_and_gradient({"w": np.zeros((3, 2))} | given)
    assert failure.value.reason == reason
    assert (evaluator.inputs["w"] == 1).all()


@pytest.mark.parametrize(
    ("given", "options"),
    [
        ({}, {}),
        ({"x": np.ones((2, 2))}, {}),
        ({"x": np.ones((2, 3))}, {"values": ["nothing"]}),
        ({"x": np.ones((2, 3))}, {"seeds": {"g": 1.0}}),
        ({"x": np.ones((2, 3))}, {"seeds": {"f": np.ones(2)}}),
        ({"x": np.ones((2, 3))}, {"gradients": [99]}),
    ],
)
def test_what_a_server_refuses_is_refused_with_the_same_words(
    server: gw.Connection, given: dict[str, Any], options: dict[str, Any]
) -> None:
    graph = network()
    with pytest.raises(gw.InvalidRequestError) as there:
        server.evaluate(graph, given, **options)
    with pytest.raises(gw.InvalidRequestError) as here:
        gw.Evaluator(graph, given, **options)
    assert (here.value.reason, here.value.message) == (there.value.reason, there.value.message)


def test_node_that_is_refused_is_told_with_its_line() -> None:
    graph = gw.Graph()
    x = graph.input("x", ("n",))
    graph.output("f", gw.reduce_sum(x + graph.constant(np.ones(3)), keepdims=0))
    with pytest.raises(gw.InvalidRequestError, match=r"made at test_in_process.py:\d+"):
        gw.Evaluator(graph, {"x": np.ones(4)})


def test_limit_is_kept() -> None:
    with pytest.raises(gw.LimitError):
        gw.Evaluator(network(), {"x": np.ones((1000, 3))}, max_memory_bytes=1000)
