"""What users hold is copied and pickled, or a sentence says what to send instead."""

from __future__ import annotations

import copy
import inspect
import pickle
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest

import gradwire as gw

COPIES: dict[str, Callable[[Any], Any]] = {
    "pickle": lambda each: pickle.loads(pickle.dumps(each)),
    "cloudpickle": lambda each: pickle.loads(cloudpickle.dumps(each)),
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
}
DOCUMENTED = {name: getattr(gw, name) for name in gw.__all__}
CLASSES = {name: each for name, each in DOCUMENTED.items() if inspect.isclass(each)}
ERRORS = {name: each for name, each in CLASSES.items() if issubclass(each, gw.GradwireError)}


def neuron() -> gw.Graph:
    graph = gw.Graph()
    x = graph.input("x")
    graph.output("f", gw.sigmoid((x * graph.parameter("w", 2.0)).named("product")))
    return graph


def result() -> gw.Result:
    values: dict[int, Any] = {3: gw.Summary(1.0, 2.0, 1.5, 2.2, 0, 0)}
    return gw.Result({"f": np.array(0.5)}, {"x": np.array([1.0, 2.0])}, values, {}, neuron())


def finding() -> gw.GradientFinding:
    return gw.GradientFinding("sigmoid", "layer1", "x", (0, 1), 0.25, 0.5, "")


def saved() -> gw.SavedGraph:
    return gw.SavedGraph("ab" * 32, 100, datetime(2026, 1, 1, tzinfo=UTC), "neuron")


#: What is copied: as much as its repr or its bytes tell.
COPIED: dict[str, Callable[[], Any]] = {
    "Drawing": lambda: gw.Drawing("<svg/>", "light", "neuron", (10.0, 20.0)),
    "Event": lambda: gw.Event("value", 3, "product", np.arange(3.0)),
    "GradientFinding": finding,
    "Graph": neuron,
    "Result": result,
    "SavedGraph": saved,
    "Summary": lambda: gw.Summary(1.0, 2.0, 1.5, 2.2, 0, 0),
}
#: What belongs to a process, with what the refusal says.
KEPT = {
    "AsyncConnection": "connect again where it is needed",
    "AsyncSession": "open another one where it is needed",
    "Connection": "connect again where it is needed",
    "Evaluator": "send its graph",
    "Handle": "send the graph",
    "Session": "open another one where it is needed",
}


def told(each: Any) -> Any:
    """What a copy must have in common with the original."""
    if isinstance(each, gw.Graph):
        return each.to_bytes()
    if isinstance(each, gw.Result):
        return str({**vars(each), "graph": told(each.graph)})
    return repr(each)


def test_every_public_class_is_here() -> None:
    assert {*CLASSES} == {*ERRORS, *COPIED, *KEPT}


@pytest.mark.parametrize("name", sorted(ERRORS))
@pytest.mark.parametrize("way", COPIES)
def test_error_keeps_what_programs_dispatch_on(name: str, way: str) -> None:
    error = ERRORS[name]("NODE_INVALID", "node 3: is wrong", {"line": "2", "column": "5"})
    error.add_note("in the second epoch")
    found = COPIES[way](error)
    assert type(found) is type(error)
    assert (found.reason, found.message, found.facts) == (error.reason, error.message, error.facts)
    assert str(found) == str(error)
    assert found.__notes__ == ["in the second epoch"]


@pytest.mark.parametrize("name", sorted(COPIED))
@pytest.mark.parametrize("way", COPIES)
def test_data_is_the_same_in_the_copy(name: str, way: str) -> None:
    original = COPIED[name]()
    assert type(original) is CLASSES[name]
    assert told(COPIES[way](original)) == told(original)


def test_copy_of_a_graph_is_another_graph() -> None:
    graph = neuron()
    before = graph.to_bytes()
    made = copy.copy(graph)
    made.output("g", gw.exp(made.input("y")))
    assert graph.to_bytes() == before


def test_module_of_a_graph_is_not_copied_alone() -> None:
    @gw.module
    def double(x: gw.Handle) -> gw.Handle:
        return x + x

    graph = neuron()
    graph.output("g", double(graph.input("y")))
    found = pickle.loads(pickle.dumps(graph))
    assert found.to_bytes() == graph.to_bytes()
    (inner,) = graph._shared.modules
    with pytest.raises(TypeError, match="do that with the graph that uses it"):
        pickle.dumps(inner.circuit)


@pytest.mark.parametrize("way", COPIES)
def test_what_belongs_to_a_process_says_what_to_send_instead(way: str) -> None:
    graph = neuron()
    with gw.local(warm_up=False) as connection, connection.session(graph, {"x": 1.0}) as session:
        kept = {
            "Connection": connection,
            "Session": session,
            "Evaluator": gw.Evaluator(graph, {"x": 1.0}),
            "AsyncConnection": gw.AsyncConnection.__new__(gw.AsyncConnection),
            "AsyncSession": gw.AsyncSession.__new__(gw.AsyncSession),
        }
        kept["AsyncConnection"].target = connection.target
        for name, each in kept.items():
            with pytest.raises(TypeError, match=KEPT[name]):
                COPIES[way](each)


def test_handle_stays_in_its_graph() -> None:
    graph = neuron()
    handle = graph.input("y")
    assert copy.copy(handle) is handle
    assert copy.deepcopy([handle])[0] is handle
    for dumps in (pickle.dumps, cloudpickle.dumps):
        with pytest.raises(TypeError, match=KEPT["Handle"]):
            dumps((graph, handle))


def test_error_leaves_a_pool_of_processes_as_it_is() -> None:
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        with pytest.raises(gw.TextError) as failed:
            pool.submit(gw.from_text, "gradwire text 1\nnode").result()
        assert failed.value.line == 2
        assert pool.submit(int, "7").result() == 7


def test_package_is_pickled_by_its_name() -> None:
    for dumps in (pickle.dumps, cloudpickle.dumps):
        assert pickle.loads(dumps(gw)) is gw
    for name, each in DOCUMENTED.items():
        if callable(each):
            assert pickle.loads(cloudpickle.dumps(each)) is each, name


#: A program whose functions are sent by value, as those of notebooks are.
SENDER = """
import sys

import cloudpickle

import gradwire as gw

@gw.module
def square(x):
    return x * x

@square.gradient
def square_gradient(x, out, grad):
    return 2 * x * grad

def outside():
    graph = gw.Graph()
    graph.output("f", square(graph.input("x")))
    return graph.to_text()

def inside():
    import gradwire as gw
    from gradwire import Graph, exp

    graph = Graph()
    graph.output("f", gw.sigmoid(exp(graph.input("x"))))
    return graph.to_text()

made = [function() for function in (outside, inside)]
open(sys.argv[1], "wb").write(cloudpickle.dumps((outside, inside, made)))
"""
RECEIVER = """
import pickle, sys
outside, inside, made = pickle.load(open(sys.argv[1], "rb"))
assert [outside(), inside()] == made
"""


def test_cloudpickle_sends_functions_that_use_gradwire(tmp_path: Path) -> None:
    sent = str(tmp_path / "functions")
    for program in (SENDER, RECEIVER):
        subprocess.run([sys.executable, "-c", program, sent], check=True)
