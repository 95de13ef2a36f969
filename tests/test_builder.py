"""What a program writes with handles is what the graph computes, or it is refused."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Iterator
from itertools import groupby
from typing import Any

import numpy as np
import pytest
from gate_cases import Case, all_cases, is_floating

import gradwire as gw
from gradwire import operators
from gradwire_server.specs import Tensor

CASES = {name: list(cases) for name, cases in groupby(all_cases(), lambda case: case.operator)}
FUNCTIONS = {name.replace("_", ""): getattr(operators, name) for name in operators.__all__}
AMONG = ("Sum", "Mean", "Max", "Min")


@pytest.fixture(scope="module")
def server() -> Iterator[gw.Connection]:
    with gw.local(warm_up=False) as connection:
        yield connection


def function_of(name: str) -> Any:
    return FUNCTIONS[name.lower().replace("_", "")]


def called(case: Case, operands: list[Any]) -> Any:
    """The function of a gate, called as its signature shows it."""
    function = function_of(case.operator)
    parameters = inspect.signature(function).parameters.values()
    attributes = {
        name.lower().replace("_", ""): np.frombuffer(each.data, each.dtype).reshape(each.shape)
        if isinstance(each, Tensor)
        else each
        for name, each in case.attributes.items()
    }
    options = {each.name: each.name.lower().replace("_", "") for each in parameters}
    attributes = {name: attributes[key] for name, key in options.items() if key in attributes}
    assert len(attributes) == len(case.attributes)
    if any(each.kind is inspect.Parameter.VAR_POSITIONAL for each in parameters):
        return function(*operands, **attributes)
    if case.operator == "Split" and len(case.inputs) > 1:
        operands[1:] = [case.inputs[1].tolist()]  # whose length is the number of outputs
    names = [each.name for each in parameters if each.kind is not inspect.Parameter.KEYWORD_ONLY]
    given = {name: each for name, each in zip(names, operands, strict=False) if each is not None}
    return function(**given, **attributes)


@pytest.mark.parametrize("name", [name for name in CASES if name != "Constant"])
def test_function_is_called_as_its_signature_shows_it(name: str, server: gw.Connection) -> None:
    for case in CASES[name]:
        if name in AMONG and len(case.inputs) == 1:
            continue
        graph = gw.Graph()
        operands = [None if each is None else graph.constant(each) for each in case.inputs]
        made = called(case, operands)
        outs = made if isinstance(made, tuple) else (made,)
        for place, out in enumerate(outs):
            graph.output(f"out{place}", out)
        got = server.evaluate(graph, forward_only=True).outputs
        for place, right in enumerate(case.run()[: len(outs)]):
            np.testing.assert_allclose(
                np.asarray(got[f"out{place}"], float),
                np.asarray(right, float),
                1e-6,
                1e-9,
                str(case),
            )


def test_every_function_is_among_those_that_are_called() -> None:
    assert {function_of(name) for name in CASES if name != "Constant"} == {*FUNCTIONS.values()}


@pytest.mark.parametrize("name", CASES)
def test_list_takes_the_data_type_of_the_handles_beside_it(name: str) -> None:
    for case in CASES[name]:
        single = case.as_dtype("float32")
        floats = [slot for slot, x in enumerate(single.inputs) if x is not None and is_floating(x)]
        for slot in floats if len(floats) > 1 else ():
            graph = gw.Graph()
            operands = [None if x is None else graph.constant(x) for x in single.inputs]
            attributes = {
                key: value
                for key, value in case.attributes.items()
                if not isinstance(value, Tensor)
            }
            right = graph.apply(name, operands, attributes)[0].dtype
            operands[slot] = single.inputs[slot].tolist()
            assert graph.apply(name, operands, attributes)[0].dtype == right, (case, slot)
            operands[slot] = np.ones_like(single.inputs[slot], int).tolist()
            if name in ("CastLike", "Resize"):  # where it is data of a type of its own
                continue
            assert graph.apply(name, operands, attributes)[0].dtype == right, (case, slot)


@pytest.mark.parametrize(
    "write",
    [
        lambda x: gw.pow(3, x),
        lambda x: gw.pow(x=3, y=x),
        lambda x: 2**x,
        lambda x: np.power(10, x),
        lambda x: gw.pow(x, 0.5),
        lambda x: gw.mul(a=2, b=x),
        lambda x: gw.where(x > 0, 1, x),
        lambda x: gw.where(condition=x > 0, x=x, y=0.1),
        lambda x: gw.clip(x, 0, 6),
        lambda x: gw.clip(input=x, max=0.1),
        lambda x: gw.max(0, x, 0.5),
        lambda x: gw.concat([0, 0.5], gw.unsqueeze(x, [0]), axis=0),
        lambda x: gw.range(0, x, 1),
        lambda x: gw.dropout(x, 0.25)[0],
    ],
)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_number_takes_the_data_type_of_the_handle_in_every_gate(
    write: Callable[[gw.Handle], gw.Handle], dtype: str
) -> None:
    assert write(gw.Graph().input("x", dtype=dtype)).dtype == dtype


@pytest.mark.parametrize(
    ("other", "dtype", "result"),
    [
        (np.arange(4), "float64", "float64"),
        (np.int64(3), "float64", "float64"),
        (np.float64(3), "float32", "float64"),
        (np.arange(4), "float32", "float64"),
        (np.float16(3), "float32", "float32"),
        (np.int8(3), "float16", "float16"),
        (np.uint64(3), "int64", "float64"),
    ],
)
def test_array_promotes_as_in_numpy_in_gates_too(other: Any, dtype: str, result: str) -> None:
    graph = gw.Graph()
    x = graph.input("x", 4, dtype)
    assert np.result_type(other.dtype, np.dtype(dtype)) == result
    for out in (gw.mul(x, other), gw.max(other, x), gw.where(x > 0, x, other), other - x):
        assert out.dtype == result


@pytest.mark.parametrize(
    ("write", "cast"),
    [
        (lambda graph: graph.input("x", dtype="int64") * 0.5, "to=11"),
        (lambda graph: graph.input("x", dtype="int64") / 2, "to=11"),
        (lambda graph: graph.input("x", dtype="int64") ** 0.5, "to=11"),
        (lambda graph: graph.input("x", dtype="int64") ** -1, "to=11"),
        (lambda graph: graph.input("n", dtype="int64") ** graph.input("x"), "to=11"),
        (lambda graph: graph.input("x", dtype="bool") == 2, "to=11"),
        (lambda graph: graph.input("x", dtype="uint8") - 1000, "to=11"),
        (lambda graph: graph.input("x", dtype="bfloat16") * np.int64(2), "to=16"),
        (lambda graph: graph.input("x", dtype="int64") & np.uint64(2), "to=7"),
        (lambda graph: graph.input("n", dtype="int64") * graph.input("x"), "Cast one of them"),
    ],
)
def test_what_has_no_counterpart_is_refused_naming_the_cast(
    write: Callable[[gw.Graph], gw.Handle], cast: str
) -> None:
    with pytest.raises(gw.InvalidRequestError, match=cast):
        write(gw.Graph())


def test_refused_node_adds_nothing() -> None:
    graph = gw.Graph()
    x, n = graph.input("x"), graph.input("n", dtype="int64")
    half, above = graph.input("half", dtype="float16"), x > 0
    graph.output("f", x)
    before = graph.digest
    for write in (
        lambda: gw.bitwise_and(n, np.uint64(1)),
        lambda: gw.max(n, x, 3.0),
        lambda: gw.where(above, 7.0, "8"),
        lambda: gw.max(half, np.float64(7), "8"),
        lambda: gw.leaky_relu(x, alpha="much"),
        lambda: gw.gather(x, np.float64(1)),
        lambda: graph.apply("Multiply", (x, 2.0), {}),
    ):
        with pytest.raises(gw.InvalidRequestError):
            write()
        assert graph.digest == before


def test_comparison_of_handles_is_a_gate(server: gw.Connection) -> None:
    graph = gw.Graph()
    x = graph.input("x", 3)
    graph.output("same", gw.where(x == 0.5, x, 10 * x))
    graph.output("other", gw.where(operator.ne(0.5, x), x, 10 * x))
    graph.output("array", np.array([0.5, 0.0, -1.0]) == x)
    point = np.array([0.5, 1.5, -1.0])
    result = server.evaluate(graph, {"x": point}, seeds={"same": np.ones(3)})
    np.testing.assert_array_equal(result.outputs["same"], [0.5, 15.0, -10.0])
    np.testing.assert_array_equal(result.outputs["other"], [5.0, 1.5, -1.0])
    np.testing.assert_array_equal(result.outputs["array"], [True, False, True])
    np.testing.assert_array_equal(result.gradients["x"], [1.0, 10.0, 10.0])


def test_handles_are_keys_and_are_told_apart_by_is() -> None:
    graph = gw.Graph()
    x, y = graph.input("x"), graph.input("y")
    names = {x: "x", y: "y"}
    assert (names[x], names[y], len({x, y, x})) == ("x", "y", 2)
    for write in (lambda: x in [y], lambda: [x] == [y], lambda: [y].index(x), lambda: x == y or y):
        with pytest.raises(TypeError, match="`is`"):
            write()
    with pytest.raises(gw.InvalidRequestError, match="`is None`"):
        operator.eq(x, None)


@pytest.mark.parametrize(
    "write",
    [
        np.asarray,
        lambda x: np.array([x, x]),
        lambda x: np.sum([x, 2 * x]),
        lambda x: np.array(x, object),
        lambda x: np.take(np.arange(3.0), x),
        lambda x: x * [x, x],
        lambda x: x.graph.constant([x, 1.0]),
    ],
)
def test_handle_is_no_array(write: Callable[[gw.Handle], object]) -> None:
    with pytest.raises((TypeError, gw.InvalidRequestError), match=r"np\.stack or gw\.concat"):
        write(gw.Graph().input("x", 3))


def test_scipy_refuses_handles() -> None:
    import scipy.linalg
    import scipy.signal

    x = gw.Graph().input("x", 3)
    for write in (lambda: scipy.linalg.norm(x), lambda: scipy.signal.convolve(x, x)):
        with pytest.raises(TypeError, match="use gates"):
            write()


def test_handle_is_no_number() -> None:
    import math

    x = gw.Graph().input("x")
    for write in (math.exp, float, int, complex):
        with pytest.raises(TypeError, match="a handle has no value yet"):
            write(x)


@pytest.mark.parametrize("name", ["sum", "mean", "max", "min"])
def test_one_handle_among_itself_is_refused_naming_both_meanings(name: str) -> None:
    x = gw.Graph().input("x", 3)
    with pytest.raises(gw.InvalidRequestError, match=rf"gw\.reduce_{name}\(x\).*gw\.{name}\(x, y"):
        getattr(gw, name)(x)
    with pytest.raises(TypeError, match="one by one, not in a list"):
        getattr(gw, name)([x, x])


def test_batch_normalization_yields_running_statistics_in_training_only() -> None:
    x = gw.Graph().input("x", (3, 2, 4))
    ones, zeros = np.ones(2), np.zeros(2)
    assert len(gw.batch_normalization(x, ones, zeros, zeros, ones)) == 1
    assert len(gw.batch_normalization(x, ones, zeros, zeros, ones, training_mode=1)) == 3


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (
            lambda x: np.linalg.inv(x),
            r"np\.linalg\.inv is not known on handles; write it with gates",
        ),
        (lambda x: np.linalg.norm(x), r"np\.linalg\.norm .*; write gw\.reduce_l2"),
        (lambda x: np.fft.fft(x), r"np\.fft\.fft .*; write gw\.dft"),
        (lambda x: np.trace(x), r"write np\.einsum\('ii', x\)"),
        (lambda x: np.round(x), r"write gw\.round"),
        (lambda x: np.argmax(x), r"write gw\.arg_max"),
        (lambda x: np.bitwise_and(x, x), r"write gw\.bitwise_and"),
        (
            lambda x: np.multiply.reduce(x),
            r"np\.multiply\.reduce is used; call np\.multiply\(x, y\)",
        ),
        (lambda x: np.exp(x, where=[True]), r"the option 'where' is used; call np\.exp\(x\)"),
        (lambda x: np.sum(x, initial=1.0), r"np\.sum on handles has no option 'initial'"),
        (lambda x: np.where(x > 0), r"gw\.non_zero\(condition\)"),
        (lambda x: np.dot(x + 1, x + 1), r"how many axes.*write x @ y"),
        (lambda x: x.graph.apply("Sigmoidd", (x,), {}), r"did you mean 'Sigmoid'"),
    ],
)
def test_refusal_names_the_nearest_right_thing(
    write: Callable[[gw.Handle], object], words: str
) -> None:
    with pytest.raises(gw.InvalidRequestError, match=words):
        write(gw.Graph().input("x", (3, 3)))
