"""Arguments that are wrong are refused in one sentence that names the nearest right thing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import gradwire as gw


@pytest.fixture(scope="module")
def server() -> Iterator[gw.Connection]:
    with gw.local(warm_up=False) as connection:
        yield connection


def squares(size: int = 3) -> gw.Graph:
    graph = gw.Graph()
    x = graph.input("x", size)
    graph.output("f", gw.reduce_sum((x * x).named("squares"), keepdims=0))
    return graph


POINT = {"x": [1.0, 2.0, 3.0]}

#: What is wrong with inputs and options, whoever evaluates, and words of the refusal.
CALLS: list[tuple[Any, dict[str, Any], str]] = [
    ({"x": [None] * 3}, {}, r"input 'x': element 0 is None, which is no number"),
    ({"x": [1.0, None, 2.0]}, {}, r"element 1 is None, which is no number"),
    ({"x": ["1", "2", "3"]}, {}, r"element 0 is '1', which is no number"),
    ({"x": np.ma.array([1.0, 2.0, 3.0], mask=[0, 1, 0])}, {}, r"has masked elements; fill them"),
    ({"x": [1j, 2, 3]}, {}, r"input 'x'"),
    ([1, 2, 3], {}, r"inputs: is \[1, 2, 3\]; give \{leaf: value\}"),
    (np.arange(3.0), {}, r"inputs: is array.*; give \{leaf: value\}"),
    (2.0, {}, r"inputs: is 2\.0; give \{leaf: value\}"),
    ({1: 2.0}, {}, r"inputs: has the name 1; names are strings"),
    (POINT, {"grads": True}, r"there is no option 'grads'; did you mean 'gradients'\?"),
    (POINT, {"input": POINT}, r"there is no option 'input'; did you mean 'inputs'\?"),
    (POINT, {"wrt": ["x"]}, r"there is no option 'wrt'"),
    (POINT, {"complete": False}, r"there is no option 'complete'"),
    (POINT, {"seeds": [1.0]}, r"seeds: is \[1\.0\]; give \{output: gradient\}"),
    (POINT, {"seeds": 1.0}, r"seeds: is 1\.0; give \{output: gradient\}"),
    (POINT, {"seeds": {"f": [None]}}, r"seed of output 'f': element 0 is None"),
    (POINT, {"with_respect_to": True}, r"with_respect_to: is True; give a name, or a list"),
    (POINT, {"with_respect_to": [0]}, r"with_respect_to: is 0; give names, such as 'x'"),
    (POINT, {"batched": True}, r"batched: is True; give a name, or a list"),
    (POINT, {"modules": 1}, r"modules: is 1; give a name, or a list"),
    (POINT, {"values": 5}, r"values: is 5; give True, or a list of names"),
    (POINT, {"values": [1.5]}, r"there is no value 1\.5; give names, ids or handles"),
    (POINT, {"gradients": [None]}, r"there is no value None; give names, ids or handles"),
    (POINT, {"forward_only": "yes"}, r"forward_only: is 'yes'; give True or False"),
    (POINT, {"summary": 1}, r"summary: is 1; give True or False"),
]


def evaluators(server: gw.Connection) -> Iterator[Callable[..., Any]]:
    """Everything that takes inputs and options."""
    yield server.evaluate
    yield lambda *args, **options: list(server.stream(*args, **options))
    yield server.session
    yield gw.Evaluator
    yield lambda *args, **options: asyncio.run(evaluated(server.target, *args, **options))


async def evaluated(target: str, *args: Any, **options: Any) -> Any:
    async with gw.connect_async(target) as connection:
        return await connection.evaluate(*args, **options)


@pytest.mark.parametrize(("inputs", "options", "words"), CALLS)
def test_evaluation_names_the_argument_that_is_wrong(
    inputs: Any, options: dict[str, Any], words: str, server: gw.Connection
) -> None:
    for evaluate in evaluators(server):
        with pytest.raises(gw.InvalidRequestError, match=words):
            evaluate(squares(), inputs, **options)


@pytest.mark.parametrize("graph", [None, 3, b"graph", ["x"], squares().leaves])
def test_what_is_no_graph_is_refused(graph: Any, server: gw.Connection) -> None:
    for evaluate in evaluators(server):
        with pytest.raises(gw.InvalidRequestError, match=r"give a gw\.Graph"):
            evaluate(graph, POINT)


def test_names_may_come_from_anywhere(server: gw.Connection) -> None:
    graph = gw.Graph()
    x, y = graph.input("x"), graph.input("y")
    graph.output("f", x * y)
    for names in ("x", ["x"], ("x",), {"x": 0}.keys(), (name for name in "x")):
        result = server.evaluate(graph, {"x": 2.0, "y": 3.0}, with_respect_to=names)  # type: ignore[arg-type]
        assert [*result.gradients] == ["x"]


@pytest.mark.parametrize(
    ("use", "words"),
    [
        (lambda session: session.step([1.0]), r"inputs: is \[1\.0\]"),
        (lambda session: session.step(np.ones(3)), r"inputs: is array"),
        (lambda session: session.step({"x": [None] * 3}), "which is no number"),
        (lambda session: session.steps({"x": [1.0] * 3}), r"a point: is 'x'; give \{leaf: value\}"),
        (lambda session: session.steps([[1.0, 2.0, 3.0]]), r"a point: is \[1\.0, 2\.0, 3\.0\]"),
        (lambda session: session.backward(1.0), r"seeds: is 1\.0"),
        (lambda session: session.value_and_gradient([None] * 3), "which is no number"),
        (lambda session: session.value_and_gradient([1j, 2, 3]), "give real numbers"),
        (lambda session: session.value_and_gradient("abc"), "which is no number"),
        (lambda session: session.values_and_gradients([["1", "2", "3"]]), "which is no number"),
    ],
)
def test_session_names_the_argument_that_is_wrong(
    use: Callable[[gw.Session], object], words: str, server: gw.Connection
) -> None:
    with server.session(squares()) as session:
        with pytest.raises(gw.InvalidRequestError, match=words):
            use(session)
        assert session.step(POINT)["f"].value == 14.0


def test_gradient_at_whole_numbers_is_no_whole_number(server: gw.Connection) -> None:
    graph = gw.Graph()
    x = graph.input("x", 2)
    graph.output("f", gw.reduce_sum(x * 0.25 * x, keepdims=0))
    evaluator = gw.Evaluator(graph, {"x": [0.0, 0.0]})
    with server.session(graph) as session:
        for found in (session, evaluator):
            value, gradient = found.value_and_gradient([1, 3])  # type: ignore[attr-defined]
            assert value == 2.5
            np.testing.assert_array_equal(gradient, [0.5, 1.5], strict=True)
        _, gradients = session.values_and_gradients(np.array([[1, 3]]))
        np.testing.assert_array_equal(gradients, [[0.5, 1.5]], strict=True)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda _: gw.local(max_node=3), r"no limit 'max_node'; did you mean 'max_nodes'"),
        (
            lambda _: gw.Evaluator(squares(), POINT, max_memory=3),
            "no option 'max_memory'; did",
        ),
        (lambda server: server.gradient_graph(squares(), 5), "wrt: is 5"),
        (lambda server: server.gradient_graph(squares(), [5]), "wrt: is 5; give names"),
        (lambda server: server.gradient_graph(squares(), (), [3]), r"sizes: is \[3\]; give"),
        (lambda server: server.save_graph(5), "the graph is 5; give"),
        (lambda server: server.get_graph(5), "a saved graph is 5; give its name"),
        (lambda server: server.delete_graph(None), "a saved graph is None; give its name"),
    ],
)
def test_method_names_the_argument_that_is_wrong(
    call: Callable[[gw.Connection], object], words: str, server: gw.Connection
) -> None:
    with pytest.raises(gw.InvalidRequestError, match=words):
        call(server)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda graph: graph.input(5), "the name 5, which is no string"),
        (lambda graph: graph.parameter(None, 1.0), "the name None, which is no string"),
        (lambda graph: graph.input("x", "batch"), r"its shape is 'batch'; give .*\('batch', 3\)"),
        (lambda graph: graph.input("x", 2.5), "its shape is 2.5; give"),
        (lambda graph: graph.elements("x", None), "its shape is None; give"),
        (lambda graph: graph.input("x", value=[None]), "element 0 is None"),
        (lambda graph: graph.input("x", value="1.5"), "is '1.5', which is no number"),
        (lambda graph: graph.parameter("x", None), "object"),
        (lambda graph: graph.constant("1.5"), "<U3"),
        (lambda graph: graph.constant([1.0, None]), "object"),
        (lambda graph: graph.constant(2, "bool"), "bool cannot hold"),
        (lambda graph: graph.output(graph.input("x"), "f"), r"write graph\.output\('f', handle\)"),
        (lambda graph: abs(graph.input("x")).named(5), "the name 5, which is no string"),
    ],
)
def test_graph_names_the_argument_that_is_wrong(
    build: Callable[[gw.Graph], object], words: str
) -> None:
    with pytest.raises(gw.InvalidRequestError, match=words):
        build(gw.Graph())


def test_output_of_a_list_says_to_unpack_it() -> None:
    graph = gw.Graph()
    with pytest.raises(TypeError, match=r"unpack it with \*"):
        graph.output("f", [graph.input("x")])  # type: ignore[arg-type]


def test_size_of_numpy_is_a_size() -> None:
    graph = gw.Graph()
    graph.input("x", np.int64(3))
    graph.input("y", (np.int32(2), "n"))
    graph.output("f", *graph.elements("z", np.int64(2)))
    assert [leaf.axes for leaf in graph.leaves] == [(3,), (2, "n"), (2,)]
