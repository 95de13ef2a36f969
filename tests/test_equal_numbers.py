"""Numbers that compare equal but differ in their bits are never taken for one another.

0.0 == -0.0, a NaN equals nothing, 1 == 1.0 == True. An answer that mixes them up depends on what
was asked before, so each test asks in every order.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import permutations
from typing import Any

import numpy as np
import pytest

import gradwire as gw
from gradwire import tensors
from gradwire.diff import compare
from gradwire_server.engine import evaluation
from gradwire_server.engine.evaluation import Binding, Evaluation
from gradwire_server.engine.recorder import Recorder
from gradwire_server.graph import Graph, Leaf, Output, Row, Rows
from gradwire_server.limits import Limits
from gradwire_server.plan import known_spec
from gradwire_server.specs import FLOATS, TensorSpec, attributes_key

INTEGERS = {"float64": "int64", "float32": "int32", "float16": "int16", "bfloat16": "int16"}
NUMBERS = {"int64": 7, "int32": 6, "int16": 5}


def patterns(dtype: str) -> list[Any]:
    """Zeros and NaNs of a floating data type, each with other bits."""
    integer = np.dtype(INTEGERS[dtype])
    quiet = int(np.array(np.nan, dtype).view(integer))
    lowest = np.iinfo(integer).min
    bits = [0, lowest, quiet, quiet + 1, quiet | lowest]
    return [np.array(each, integer).view(dtype) for each in bits]


def as_length(graph: gw.Graph, x: Any, dtype: str) -> Any:
    """A vector of ones, of a length that the bits of x set."""
    bits = gw.cast(gw.bit_cast(x, to=NUMBERS[INTEGERS[dtype]]), to=7)
    length = gw.mod(bits, graph.constant(np.int64(61)))
    return gw.expand(
        graph.constant(np.ones(())), gw.reshape(length, graph.constant(np.array([1], np.int64)))
    )


@pytest.fixture(scope="module")
def server() -> Iterator[gw.Connection]:
    with gw.local(warm_up=False) as connection:
        yield connection


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_same_request_has_the_same_answer_whatever_came_before(
    dtype: str, server: gw.Connection
) -> None:
    graph = gw.Graph()
    graph.output("y", as_length(graph, graph.input("x", dtype=dtype), dtype))
    wanted = {}
    for x in patterns(dtype):
        bits = int(x.view(INTEGERS[dtype]))
        wanted[bits] = bits % 61
        assert gw.Evaluator(graph, {"x": x}, forward_only=True).outputs["y"].size == bits % 61
    assert len(set(wanted.values())) == len(wanted), "lengths tell the patterns apart"
    for first, second in permutations(patterns(dtype), 2):
        for x in (first, second, first):
            answer = server.evaluate(graph, {"x": x}, forward_only=True)
            assert answer.outputs["y"].size == wanted[int(x.view(INTEGERS[dtype]))], (first, second)


@pytest.mark.parametrize("dtype", FLOATS)
def test_one_graph_has_constants_that_differ_in_their_bits(
    dtype: str, server: gw.Connection
) -> None:
    graph = gw.Graph()
    for number, x in enumerate(patterns(dtype)):
        graph.output(f"y{number}", as_length(graph, graph.constant(x), dtype))
    outputs = server.evaluate(graph, {}, forward_only=True).outputs
    sizes = [outputs[f"y{number}"].size for number in range(len(outputs))]
    assert sizes == [int(x.view(INTEGERS[dtype])) % 61 for x in patterns(dtype)]


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_plan_serves_the_same_bits_again_and_no_others(dtype: str) -> None:
    number = NUMBERS[INTEGERS[dtype]]
    graph = Graph(
        Rows([Row("BitCast", {"to": number}, 1, 1), Row("Cast", {"to": 7}, 1, 1),
              Row("Mod", {}, 2, 1), Row("OneHot", {}, 3, 1)]),
        (Leaf("input", "x", dtype, ()), Leaf("input", "m", "int64", ()),
         Leaf("input", "v", "float64", (2,))),
        np.array([0, 1, 2, 3]),
        np.array([1, 4, 5, 2, 2, 6, 3]),
        (Output("y", np.array([7])),),
    )  # fmt: skip
    rest = {"m": Binding(np.array(61)), "v": Binding(np.zeros(2))}

    def job(x: Any, before: Any = None) -> Any:
        asked = Evaluation({"x": Binding(x), **rest}, forward_only=True)
        return evaluation.prepare(graph, asked, Limits(), before)

    for x in patterns(dtype):
        before = job(x)
        for other in patterns(dtype):
            is_same = x.tobytes() == other.tobytes()
            assert (job(other, before).plan is before.plan) == is_same, (x, other)


@pytest.mark.parametrize("dtype", FLOATS)
def test_specs_are_equal_where_the_bytes_of_their_elements_are(dtype: str) -> None:
    specs = {known_spec(x) for x in patterns(dtype)}
    assert len(specs) == len(patterns(dtype))
    assert specs == {known_spec(x.copy()) for x in patterns(dtype)}
    written = TensorSpec((2,), dtype, (-0.0, 1.5))
    assert written == known_spec(np.array([-0.0, 1.5], dtype))
    assert written != known_spec(np.array([0.0, 1.5], dtype))


ATTRIBUTES = [0.0, -0.0, 1.0, 1, "1", np.nan, (0.0,), (-0.0,), (1,), (1.0,), ("1",)]


def test_attributes_are_equal_where_their_kinds_and_bits_are() -> None:
    for key in (lambda each: attributes_key([("a", each)]), tensors.key_of):
        assert len({key(each) for each in ATTRIBUTES}) == len(ATTRIBUTES)
        assert key(float("nan")) == key(float("nan"))


def test_recorded_gates_keep_the_sign_of_a_zero() -> None:
    recorder = Recorder(Limits())
    for value in (0.0, -0.0, 0.0):
        recorder.apply("Constant", value_float=value)
    rows = [repr(row.attributes["value_float"]) for row in recorder.row_list]
    assert rows == ["0.0", "-0.0"]
    assert [number for number, _ in recorder.nodes] == [0, 1, 0]


@pytest.mark.parametrize("order", [(0.0, -0.0), (-0.0, 0.0)], ids=str)
def test_a_gradient_graph_keeps_the_sign_of_a_zero(
    order: tuple[float, ...], server: gw.Connection
) -> None:
    graph = gw.Graph()
    x = graph.input("x")
    for alpha in order:
        graph.output(f"y{alpha}", gw.reciprocal(gw.leaky_relu(x, alpha=alpha)))
    backward = server.gradient_graph(graph, ["x"])
    inputs = {"x": -1.0} | {f"grad/y{alpha}": 1.0 for alpha in order}
    outputs = server.evaluate(backward, inputs, forward_only=True).outputs
    for alpha in order:
        assert outputs[f"y{alpha}"] == -np.copysign(np.inf, alpha)


def test_constants_are_shared_where_all_their_bits_are_equal() -> None:
    graph = gw.Graph()
    values = [each for dtype in FLOATS for each in patterns(dtype)]
    values += [np.int64(1), np.int32(1), np.bool_(True), np.float64(1)]
    handles = [graph.constant(each) for each in values]
    assert len({handle.key for handle in handles}) == len(values)
    assert [graph.constant(each).key for each in values] == [handle.key for handle in handles]


def test_a_module_is_made_again_for_arguments_that_differ_in_their_bits() -> None:
    @gw.module
    def shifted(x: gw.Handle, by: Any) -> gw.Handle:
        return x + (1.0 if repr(by) == "-0.0" else 0.0)

    graph = gw.Graph()
    x = graph.input("x")
    for number, by in enumerate((0.0, -0.0, 0.0, 0, False)):
        graph.output(f"y{number}", shifted(x, by))
    assert len(graph.modules) == 4
    outputs = gw.Evaluator(graph, {"x": 0.0}, forward_only=True).outputs
    assert [float(outputs[f"y{number}"]) for number in range(5)] == [0.0, 1.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize("dtype", FLOATS)
def test_what_differs_only_in_bits_is_told_by_diff(dtype: str) -> None:
    for old, new in permutations(patterns(dtype), 2):
        assert compare(old, new)
    assert not any(compare(each, each.copy()) for each in patterns(dtype))
