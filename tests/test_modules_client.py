"""Modules in Python: functions traced once, found by path, with gradients of their own."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from patience import counted_calls
from test_cli import gradwire
from test_modules import WRONG, neuron
from test_text import random_graph

import gradwire as gw
from gradwire.checking import check_gradients
from gradwire.diff import differences
from gradwire.drawing.circuit import circuit_of
from gradwire.drawing.numbers import local_gradients
from gradwire.inlining import inlined
from gradwire.v1 import graph_pb2, tensor_pb2

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "examples" / "sigmoid_neuron_module.gate"


@pytest.fixture(scope="module")
def server() -> Iterator[gw.Connection]:
    with gw.local(warm_up=False) as connection:
        yield connection


def sigmoid_module(gradient: bool = True) -> Any:
    @gw.module
    def sigmoid(x: Any) -> Any:
        return 1 / (1 + gw.exp(-x).named("e"))

    if gradient:
        sigmoid.gradient(lambda x, out, grad: (1 - out) * out * grad)
    return sigmoid


def layers(gradient: bool = True) -> gw.Graph:
    """Two uses of a layer, each with a sigmoid inside."""
    sigmoid = sigmoid_module(gradient)

    @gw.module
    def layer(x: Any, w: Any, scale: float = 2.0) -> Any:
        return sigmoid((x @ w).named("scores")).named("gate") * scale, x

    graph = gw.Graph()
    x = graph.input("x", 2, value=[0.5, -1.0])
    w = np.array([[1.0, -0.5], [0.25, 2.0]])
    first, same = layer(x, w)
    second, _ = layer(first.named("layer1") + same, w)
    graph.output("f", gw.reduce_sum(second.named("layer2"), keepdims=0))
    return graph


# What a function becomes


def test_function_is_run_once_for_all_its_uses_in_a_graph() -> None:
    runs = []

    @gw.module
    def double(x: Any) -> Any:
        runs.append(x.graph)
        return x + x

    for _ in range(2):
        graph = gw.Graph()
        x = graph.input("x")
        for _ in range(3):
            x = double(x)
        assert [node.operator for node in graph.nodes()] == ["double"] * 3
        assert [each.name for each in graph.modules] == ["double"]
    assert len(runs) == 2


def test_other_data_types_and_fixed_arguments_make_other_modules() -> None:
    @gw.module
    def power(x: Any, n: float, *, scale: Any = None) -> Any:
        return x**n if scale is None else x**n * scale

    graph = gw.Graph()
    x, narrow = graph.input("x"), graph.input("narrow", dtype="float32")
    for given, n in ((x, 2), (x, 2.0), (x, -0.0), (x, 0.0), (narrow, 2), (x, 2), (narrow, 2)):
        power(given, n)
    power(x, 2, scale=x)
    power(x, 2, scale=np.array(3.0))
    used = [node.module.name for node in graph.nodes() if node.module]
    names = ["power", *(f"power_{number}" for number in range(2, 7))]
    assert [each.name for each in graph.modules] == names
    assert used == [*names[:5], "power", "power_5", "power_6", "power_6"]


def test_inputs_are_named_by_the_parameters() -> None:
    @gw.module
    def mixed(x: Any, *xs: Any, **others: Any) -> Any:
        return gw.sum(x, *xs, *others.values())

    graph = gw.Graph()
    x = graph.input("x")
    mixed(x, x, x, bias=x)
    assert graph.modules[0].inputs == ("x", "xs0", "xs1", "bias")


def test_results_may_be_inputs_constants_and_one_handle_twice(server: gw.Connection) -> None:
    @gw.module
    def odd(x: Any, y: Any) -> Any:
        product = x * y
        return x, product, product, x.graph.constant(7.0)

    graph = gw.Graph()
    x, y = graph.input("x", value=2.0), graph.input("y", value=3.0)
    graph.output("f", gw.sum(*odd(x, y), *odd(x, x)))
    result = server.evaluate(gw.Graph.from_bytes(graph.to_bytes()))
    assert result["f"].value == 2 + 6 + 6 + 7 + 2 + 4 + 4 + 7
    assert result["x"].gradient == 1 + 3 + 3 + 1 + 4 + 4
    assert result["y"].gradient == 2 + 2


def test_functions_of_numpy_work_in_modules(server: gw.Connection) -> None:
    @gw.module
    def norm(x: Any) -> Any:
        return np.sqrt(np.sum(x * x))

    graph = gw.Graph()
    graph.output("f", gw.reshape(norm(graph.input("x", 2)), np.array([], "int64")))
    assert server.evaluate(graph, {"x": [3.0, 4.0]})["f"].value == 5


def test_gradient_function_is_given_fixed_arguments_by_name(server: gw.Connection) -> None:
    @gw.module
    def scaled(x: Any, by: float = 2.0) -> Any:
        return x * by

    @scaled.gradient
    def scaled_gradient(x: Any, out: Any, grad: Any, by: float) -> Any:
        return grad * (10 * by)

    graph = gw.Graph()
    graph.output("f", scaled(scaled(graph.input("x", value=1.0)), by=3.0))
    assert server.evaluate(graph)["x"].gradient == 20 * 30


def test_module_that_returns_its_input_and_none_stops_gradients(server: gw.Connection) -> None:
    @gw.module
    def stop(x: Any) -> Any:
        return x

    stop.gradient(lambda x, out, grad: None)
    graph = gw.Graph()
    x = graph.input("x", value=3.0)
    graph.output("f", x * stop(x))
    result = server.evaluate(graph)
    assert (result["f"].value, result["x"].gradient) == (9, 3)


# What is refused


OUTER: list[Any] = []  # a handle of the graph around
ITSELF: list[Any] = []  # the module


@pytest.mark.parametrize(
    ("function", "gradient", "words"),
    [
        (lambda x: x + OUTER[0], None, "outside: float64> is outside of module"),
        (lambda x: OUTER[0] + x, None, "give it to the module's function as an argument"),
        (lambda x: OUTER[0], None, "outside: float64> is outside of module"),
        (lambda x: gw.exp(OUTER[0]), None, "adds to what is outside of it"),
        (lambda x: OUTER[0].named("n"), None, "adds to what is outside of it"),
        (lambda x: 1.0, None, "returns 1.0; return a handle, or a tuple of handles"),
        (lambda x: None, None, "returns None; return"),
        (lambda x: (), None, "returns nothing; return"),
        (lambda x: (x, 2), None, "returns 2; return"),
        (lambda x: ITSELF[0](x), None, "uses itself; modules use only modules that are made"),
        (lambda x: x, lambda x, out, grad: ITSELF[0](grad), "uses itself"),
        (lambda x: gw.exp(x).named("x"), None, "the value name 'x' is used 2 times"),
        (lambda x: gw.cast(x, to=7), lambda x, out, grad: None, "its outputs must be floating"),
        (lambda x: x, lambda x, grad: grad, "(x, grad) cannot be called with 1 inputs, 1 outputs"),
        (lambda x: x, lambda x, out, grad: (grad, grad), "returns 2 results; return 1, the"),
        (lambda x: x, lambda x, out, grad: 1.0, "gradient of input 'x' is 1.0; return a handle"),
        (lambda x: x, lambda x, out, grad: gw.cast(grad, to=1), "is float32, but the input is flo"),
        (lambda x: x, lambda x, out, grad: grad * OUTER[0], "is outside of module"),
    ],
)  # fmt: skip
def test_what_makes_no_module_is_refused_and_leaves_nothing_behind(
    function: Callable[..., Any], gradient: Callable[..., Any] | None, words: str
) -> None:
    graph = gw.Graph()
    OUTER[:] = [graph.input("outside")]
    graph.output("f", gw.neg(OUTER[0]))
    before = graph.digest
    refused = gw.module(function)
    ITSELF[:] = [refused]
    if gradient is not None:
        refused.gradient(gradient)
    with pytest.raises(gw.InvalidRequestError) as failure:
        refused(graph.input("x"))
    assert words in failure.value.message
    expected = gw.Graph()
    expected.output("f", gw.neg(expected.input("outside")))
    expected.input("x")
    graph._bytes = None
    assert graph.digest == expected.digest != before


def test_gradient_after_the_first_use_is_refused() -> None:
    sigmoid = sigmoid_module(gradient=False)
    sigmoid(gw.Graph().input("x"))
    with pytest.raises(gw.InvalidRequestError, match="define the gradient right after the module"):
        sigmoid.gradient(lambda x, out, grad: grad)


def test_made_modules_cannot_be_changed_and_their_handles_not_be_used() -> None:
    kept = []
    module = gw.module(lambda x: kept.append(x) or x)
    graph = gw.Graph()
    x = graph.input("x")
    module(x)
    with pytest.raises(gw.InvalidRequestError, match="is made and cannot be changed any more"):
        gw.exp(kept[0])
    with pytest.raises(gw.InvalidRequestError, match="inside of module '<lambda>'; return it"):
        x + kept[0]


def test_integer_inputs_have_no_gradient() -> None:
    @gw.module
    def pick(x: Any, index: Any) -> Any:
        return gw.gather(x, index)

    pick.gradient(lambda x, index, out, grad: (x, index))
    graph = gw.Graph()
    with pytest.raises(gw.InvalidRequestError, match="input 'index' must be None, since that is i"):
        pick(graph.input("x", 3), np.array([0]))


def test_module_without_a_handle_is_refused() -> None:
    with pytest.raises(TypeError, match="module 'sigmoid' needs a handle"):
        sigmoid_module()(1.0)
    x = gw.Graph().input("x")
    with pytest.raises(TypeError, match="handles as arguments of their own"):
        gw.module(lambda y, xs: y)(x, (x,))


# Bytes


def test_graphs_with_modules_are_written_as_they_were_read() -> None:
    graph = layers()
    again = gw.Graph.from_bytes(graph.to_bytes())
    assert str(again) == str(graph)
    assert "module sigmoid(x): 4 nodes, own gradient" in str(again)
    again._bytes = None
    assert again.to_bytes() == graph.to_bytes() == layers().to_bytes()
    message = graph_pb2.Graph.FromString(graph.to_bytes())
    assert message.required_features == ["modules"]
    assert [each.name for each in message.modules] == ["sigmoid", "layer"]


def test_graphs_that_were_read_go_on_with_the_same_data_types(server: gw.Connection) -> None:
    narrow = gw.Graph()
    half = sigmoid_module()(narrow.input("x", dtype="float16")).named("half")
    narrow.output("f", half)
    again = gw.Graph.from_bytes(narrow.to_bytes())
    assert again.dtypes() == narrow.dtypes() == ["", "float16", "float16"]
    assert again.output_dtype("f") == "float16"
    more = sigmoid_module()(gw.Handle(again, 1, "float16"))
    again.output("g", more)
    assert [each.name for each in again.modules] == ["sigmoid", "sigmoid_2"]
    result = server.evaluate(again, {"x": 0.0}, seeds={"f": 1.0, "g": 1.0})
    assert result["g"].value.dtype == np.float16
    assert result["x"].gradient == 0.25 + 0.25 * float(np.float16(0.235))


@pytest.mark.parametrize("case", WRONG)
def test_client_refuses_what_a_server_refuses(case: str) -> None:
    change, reason, _ = WRONG[case]
    message = neuron()
    change(message)
    with pytest.raises(gw.InvalidRequestError) as refused:
        gw.Graph.from_bytes(message.SerializeToString())
    assert refused.value.reason == reason


def test_blobs_in_modules_are_refused() -> None:
    message = neuron()
    message.modules[0].circuit.constants[0].value.blob = bytes(32)
    with pytest.raises(gw.InvalidRequestError, match="module 'sigmoid': a constant is a blob"):
        gw.Graph.from_bytes(message.SerializeToString())


def nested(depth: int, uses: int, used: bool) -> bytes:
    """Modules of modules: each uses the one before so often."""
    message = graph_pb2.Graph(
        format_version=1, operator_set_version=28, required_features=["modules"]
    )
    message.gates.add(operator="Exp", input_count=1, output_count=1)
    for number in range(depth):
        circuit = message.modules.add(name=f"m{number}").circuit
        circuit.inputs.add(name="x")
        count = uses if number else 1
        circuit.node_gates.extend([number] * count)
        circuit.node_inputs.extend(range(1, 1 + count))
        circuit.outputs.add(name="out", value_ids=[1 + count])
        circuit.named_ids.append(2)
        circuit.names.append("in")
        message.gates.add(module=number, input_count=1, output_count=1)
    message.circuit.inputs.add(name="x").type.data_type = tensor_pb2.DATA_TYPE_FLOAT32
    if used:
        message.circuit.node_gates.append(depth)
        message.circuit.node_inputs.append(1)
        message.circuit.named_ids.append(2)
        message.circuit.names.append("top")
    message.circuit.outputs.add(name="f", value_ids=[1 + used])
    return message.SerializeToString()


def test_modules_that_double_forty_times_are_read_at_once_and_not_used() -> None:
    with counted_calls(100_000):
        read_doublings()


def read_doublings() -> None:
    assert gw.Graph.from_bytes(nested(40, 2, used=False)).value_count == 1
    with pytest.raises(gw.InvalidRequestError, match="over 4294967295 values with those inside"):
        gw.Graph.from_bytes(nested(40, 2, used=True))
    graph = gw.Graph.from_bytes(nested(31, 2, used=True))
    assert graph.value_count == 2 + 3 * 2**30 - 2
    deep = "top" + 30 * "/in"
    assert graph.path_of(graph.find(f"{deep}/in")[0]) == f"{deep}/in"  # type: ignore[index]
    assert graph.output_dtype("f") == "float32"
    assert gw.from_text(graph.to_text()).digest == graph.digest


def test_mutated_graphs_with_modules_are_refused_or_can_be_used() -> None:
    original = gw.load(ROOT / "tests" / "golden" / "0.1-modules.gate")
    chance, count = random.Random(7), 0
    for _ in range(800):
        data = bytearray(original.to_bytes())
        for _ in range(chance.randint(1, 2)):
            at = chance.randrange(len(data))
            data[at : at + chance.randint(0, 2)] = bytes([chance.randrange(256)])
        try:
            graph = gw.Graph.from_bytes(bytes(data))
        except gw.InvalidRequestError:
            continue
        if graph.value_count > 10_000:
            continue
        count += 1
        assert len(graph.value_labels()) <= graph.value_count
        assert gw.from_text(graph.to_text()).outputs == graph.outputs
        assert not inlined(graph).modules
        graph.dtypes()
    assert count > 40


@pytest.mark.slow
def test_modules_may_be_nested_deeper_than_python_calls() -> None:
    graph = gw.Graph.from_bytes(nested(1100, 1, used=True))
    assert graph.output_dtype("f") == "float32"
    assert graph.value_count == len(graph.value_labels()) == 2 + 1100
    assert inlined(graph).value_count == 2
    assert graph.find("top" + 1100 * "/in") == range(1102, 1103)
    again = gw.from_text(graph.to_text())
    assert again.digest == graph.digest
    assert not [*differences(graph, again)]


def test_too_many_combinations_of_data_types_are_refused() -> None:
    dtypes = ["bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]
    graph = gw.Graph()
    leaves = [graph.input(dtype, dtype=dtype) for dtype in dtypes]
    first = gw.module(lambda x, y: x)
    for x in leaves:
        first(x, leaves[0])
    graph.output("f", leaves[0])
    message = graph_pb2.Graph.FromString(graph.to_bytes())
    message.circuit.node_gates[:] = [0] * 81
    message.circuit.node_inputs[:] = [i for x in range(1, 10) for y in range(1, 10) for i in (x, y)]
    read = gw.Graph.from_bytes(message.SerializeToString())
    with pytest.raises(gw.LimitError, match="over 64 combinations of data types"):
        read.dtypes()


# Paths


def test_every_value_inside_has_the_id_that_the_server_uses(server: gw.Connection) -> None:
    graph = layers(gradient=False)
    flat = inlined(graph)
    expected = server.evaluate(flat, values=True, gradients=True)
    found = server.evaluate(graph, values=True, gradients=True)
    assert found["f"].value == pytest.approx(float(expected["f"].value), rel=1e-13)
    np.testing.assert_allclose(found["x"].gradient, expected["x"].gradient, rtol=1e-13)
    names = {name for _, name, _ in graph.value_labels() if "/" in name}
    assert {"layer1/scores", "layer2/gate", "layer1/gate/e"} <= names
    assert names <= flat.ids_by_name().keys()
    for name in names:
        for part in ("value", "gradient"):
            ours, theirs = (getattr(result[name], part) for result in (found, expected))
            np.testing.assert_allclose(ours, theirs, rtol=1e-12)
    assert set(found.node_values) == {value_id for value_id, _, _ in graph.value_labels()}


def test_values_inside_are_chosen_by_path_and_by_module(server: gw.Connection) -> None:
    graph = layers()
    result = server.evaluate(
        graph, values=["layer1/scores"], gradients=["layer1/scores"], modules="layer2"
    )
    np.testing.assert_allclose(result["layer1/scores"].value, [0.25, -2.25])
    assert result["layer1/scores"].gradient is not None
    inside = {graph.path_of(value_id) for value_id in result.node_values} - {"layer1/scores"}
    assert inside == {"layer2/scores", "layer2/gate", "", "layer2/gate/e"}
    assert result["layer2/gate/e"].gradient is None  # the module has a gradient of its own
    assert result["layer2/gate"].gradient is not None
    with pytest.raises(gw.InvalidRequestError, match="there is no value 'layer3/scores'"):
        server.evaluate(graph, values=["layer3/scores"])
    with pytest.raises(gw.InvalidRequestError, match="no module is used at 'layer1/scores'"):
        server.evaluate(graph, modules=["layer1/scores"])
    with server.session(graph, modules=["layer1/gate"], forward_only=True) as session:
        assert len(session.step({"x": [1.0, 2.0]}, forward_only=True).node_values) == 4


def test_streamed_values_inside_have_their_paths(server: gw.Connection) -> None:
    graph = layers()
    events = [*server.stream(graph, modules=["layer1"])]
    names = {each.name for each in events if isinstance(each, gw.Event)}
    assert names == {"layer1/scores", "layer1/gate", "layer1/gate/e", ""}
    everything = {each.name for each in server.stream(graph) if isinstance(each, gw.Event)}
    assert {"x", "layer1", "layer2/gate/e"} <= everything


def test_names_with_slashes_do_not_hide_paths() -> None:
    inner = gw.module(lambda x: gw.exp(x).named("c/d"))
    outer = gw.module(lambda x: inner(x).named("b"))
    graph = gw.Graph()
    x = graph.input("a/b/y")
    first = outer(x).named("a")
    inner(first).named("a/b/c")
    gw.neg(first).named("a/b/z")
    graph.output("f", first)
    found = [graph.find(each) for each in ("a/b/y", "a/b/z", "a/b/c/d", "a/b/c/c/d", "a/b/q")]
    assert [each and graph.path_of(each[0]) for each in found[1:4]] == [
        "a/b/z", "a/b/c/d", "a/b/c/c/d",
    ]  # fmt: skip
    assert found[0] == range(1, 2)
    assert found[4] is None
    assert graph.find_module("a/b") is graph.find_module("a/b/c") is graph.modules[0]


def test_hundred_thousand_uses_are_looked_up_without_a_list_of_them() -> None:
    sigmoid = sigmoid_module()
    graph = gw.Graph()
    x = graph.input("x")
    sigmoid(x)
    graph.output("f", sigmoid(x).named("last"))
    message = graph_pb2.Graph.FromString(graph.to_bytes())
    message.circuit.node_gates[:1] = [message.circuit.node_gates[0]] * 100_000
    message.circuit.node_inputs[:1] = [1] * 100_000
    message.circuit.named_ids[0] += 99_999
    graph = gw.Graph.from_bytes(message.SerializeToString())
    with counted_calls(1_000_000):  # a few for each use, once
        assert graph.value_count == 1 + 5 * 100_001
        assert graph.find("last/e") == range(graph.value_count - 2, graph.value_count - 1)
    with counted_calls(50_000):
        for value_id in range(graph.value_count - 1000, graph.value_count):
            graph.path_of(value_id)


def test_errors_inside_tell_the_line_of_the_function(server: gw.Connection) -> None:
    @gw.module
    def bad(x: Any, w: Any) -> Any:
        y = gw.exp(x)
        return y @ w

    graph = gw.Graph()
    graph.output("f", gw.exp(bad(gw.exp(graph.input("x", (3, 4))), np.ones((3, 2)))))
    line = bad.__wrapped__.__code__.co_firstlineno + 3
    with pytest.raises(gw.InvalidRequestError, match=f"made at test_modules_client.py:{line}"):
        server.evaluate(graph, {"x": np.ones((3, 4))})


# Own gradients


def test_module_of_the_readme_has_its_gradient(server: gw.Connection) -> None:
    (block,) = re.findall(
        r"```python\n(@gw.module.*?)```", (ROOT / "README.md").read_text(), re.DOTALL
    )
    names: dict[str, Any] = {"gw": gw}
    exec(block, names)
    graph = gw.Graph()
    graph.output("f", names["sigmoid"](graph.input("x", value=0.0)))
    assert server.evaluate(graph)["x"].gradient == 0.25
    assert not gw.check_gradients(graph, server=server)


def test_own_gradient_is_used_and_seen_in_the_stream(server: gw.Connection) -> None:
    graph = gw.load(EXAMPLE)
    gradients = {
        each.name: float(each.content)  # type: ignore[arg-type]
        for each in server.stream(graph)
        if isinstance(each, gw.Event) and each.kind == "gradient"
    }
    s = 1 / (1 + np.exp(-1.0))
    assert gradients["w0*x0 + w1*x1 + w2"] == (1 - s) * s
    assert not any(name.startswith("f/") for name in gradients)


def test_modules_in_modules_of_one_name_have_names_of_their_own(server: gw.Connection) -> None:
    def named(inner: Any) -> Any:
        def same(x: gw.Handle) -> Any:
            return inner(x) + 1

        return gw.module(same)

    graph = gw.Graph()
    graph.output("f", named(named(gw.tanh))(graph.input("x", value=0.0)))
    assert [module.name for module in graph.modules] == ["same_2", "same"]
    assert server.evaluate(graph)["f"].value == 2.0


def test_local_gradients_of_pictures_are_modules_own(server: gw.Connection) -> None:
    graph = gw.load(EXAMPLE)
    result = server.evaluate(graph, values=True)
    found = local_gradients(circuit_of(graph, ["/"]), result, server)
    s = 1 / (1 + np.exp(-1.0))
    assert found[4, 0] == (1 - s) * s


def test_gradient_graph_of_a_module_uses_its_own_gradient(server: gw.Connection) -> None:
    backward = gw.gradient_graph(gw.load(EXAMPLE), wrt=["w2"], server=server)
    again = gw.from_text(backward.to_text())
    assert again.digest == backward.digest
    result = server.evaluate(again, {"grad/f": 1.0}, seeds={"grad/w2": 1.0})
    s = 1 / (1 + np.exp(-1.0))
    assert result["grad/w2"].value == pytest.approx((1 - s) * s, rel=1e-15)


def checked(server: gw.Connection, gradient: Any, function: Any, *values: Any) -> list[Any]:
    """Findings for a module of these functions, used as "u" at these values."""
    module = gw.module(function)
    module.gradient(gradient)
    graph = gw.Graph()
    inputs = [
        graph.input(f"x{number}", np.shape(value), np.asarray(value).dtype)
        for number, value in enumerate(values)
    ]
    outputs = module(*inputs)
    first = outputs[0] if isinstance(outputs, tuple) else outputs
    graph.output("f", first.named("u"))
    point = {f"x{number}": np.asarray(value) for number, value in enumerate(values)}
    return gw.check_gradients(graph, point, server=server)


def test_right_gradients_are_found_right(server: gw.Connection) -> None:
    def two(x: Any, w: Any) -> Any:
        return gw.exp(x) @ w, gw.sin(x)

    def two_gradient(x: Any, w: Any, out: Any, sine: Any, grad: Any, sine_grad: Any) -> Any:
        to_x = grad @ gw.transpose(w) * gw.exp(x) + gw.cos(x) * sine_grad
        return to_x, gw.transpose(gw.exp(x)) @ grad

    numbers = np.random.default_rng(0)
    x, w = numbers.normal(size=(3, 4)), numbers.normal(size=(4, 50))
    assert not checked(server, two_gradient, two, x, w)
    assert not checked(server, two_gradient, two, x.astype("float32"), w.astype("float32"))
    assert not checked(
        server, lambda x, out, grad: grad / x, lambda x: gw.log(x), [1e-6, 1e-3, 1.0, 1e9]
    )
    saturated = [-700.0, -40.0, 40.0, 700.0]
    sigmoid = (lambda x: gw.sigmoid(x), lambda x, out, grad: (1 - out) * out * grad)
    assert not checked(server, sigmoid[1], sigmoid[0], saturated)


def test_wrong_gradient_is_found_at_its_element(server: gw.Connection) -> None:
    x = np.linspace(-1, 1, 6).reshape(2, 3)
    (found,) = checked(
        server,
        lambda x, out, grad: gw.where(gw.greater(x, 0.9), 1.001 * grad * out, grad * out),
        gw.exp, x,
    )  # fmt: skip
    assert (found.module, found.use, found.input, found.element) == ("exp", "u", "x", (1, 2))
    assert found.is_wrong
    assert found.own == pytest.approx(1.001 * found.difference, rel=1e-6)
    assert "input 'x'[1, 2]: its own gradient is" in str(found)


def test_wrong_element_of_a_large_input_is_looked_for(server: gw.Connection) -> None:
    (found,) = checked(
        server,
        lambda x, out, grad: gw.where(gw.greater(x, 1.999), 2.0 * grad * out, grad * out),
        gw.exp, np.linspace(0, 2, 3000).reshape(30, 100),
    )  # fmt: skip
    assert (found.element, found.is_wrong) == ((29, 99), True)


def test_forgotten_output_gradient_is_found(server: gw.Connection) -> None:
    (found,) = checked(server, lambda x, out, grad: out, gw.exp, 0.5)
    assert found.is_wrong


def test_kinks_and_jumps_cannot_be_judged(server: gw.Connection) -> None:
    found = checked(server, lambda x, out, grad: 0 * grad, gw.abs, [-1.0, 0.0, 1.0])
    assert [each.element for each in found if not each.is_wrong] == []
    found = checked(server, lambda x, out, grad: gw.sign(x) * grad, lambda x: gw.abs(x) + x, [0.0])
    assert [each.is_wrong for each in found] == [False]
    assert "there is a kink: one-sided differences are" in str(found[0])
    found = checked(server, lambda x, out, grad: grad, gw.floor, [3.0])
    assert [each.is_wrong for each in found] == [False]


def test_modules_inside_of_others_are_checked_with_the_values_they_get(
    server: gw.Connection,
) -> None:
    relu = gw.module(lambda x: gw.max(x, 0.0))
    relu.gradient(lambda x, out, grad: gw.where(gw.less(x, 2.0), grad * gw.sign(out), 0 * grad))

    @gw.module
    def block(x: Any, by: Any) -> Any:
        return relu((x * by).named("inner")).named("relu")

    graph = gw.Graph()
    x = graph.input("x", 2, value=[0.5, 1.5])
    first = block(x, np.array(1.0)).named("first")
    graph.output("f", block(first, graph.constant(2.0)).named("second"))
    (found,) = gw.check_gradients(graph, server=server)
    assert (found.use, found.element, found.is_wrong) == ("second/relu", (1,), True)


def test_only_so_many_uses_are_checked_and_that_is_told(server: gw.Connection) -> None:
    graph = gw.Graph()
    x = graph.input("x", value=0.5)
    sigmoid = sigmoid_module()
    for _ in range(50):
        x = sigmoid(x)
    graph.output("f", x)
    (report,) = check_gradients(graph, server=server, uses=3)
    assert (report.uses, report.checked, report.compared, report.findings) == (50, 3, 3, [])


@pytest.mark.slow
def test_check_prints_what_is_wrong_and_exits_with_one(tmp_path: Path) -> None:
    right = gradwire("check", EXAMPLE)
    assert (right.returncode, right.stderr) == (0, "")
    assert right.stdout == "module 'sigmoid': 1 of 1 uses checked, 1 differences: 0 wrong\n"
    wrong = gw.load(EXAMPLE).to_text().replace("%6 = Mul(%5, out)", "%6 = Mul(%5, %5)")
    gw.from_text(wrong).save(tmp_path / "wrong.gate")
    found = gradwire("check", tmp_path / "wrong.gate", "--set", "w0=-2")
    assert found.returncode == 1
    assert "module 'sigmoid', use 'f', input 'x': its own gradient is" in found.stdout
    none = gradwire("check", ROOT / "examples" / "sigmoid_neuron.gate")
    assert (none.returncode, "no module has a gradient" in none.stdout) == (0, True)


# Text, differences, ONNX

TEXT = """gradwire text 1

module double(x) {
  y = Add(x, x)
  output out = y

  gradient(x, out, grad) {
    z = Add(grad, grad)
    output x = z
  }
}

input module: float64[] = 1.5
gradient = double(module)
operator = operator double(gradient)
output f = gradient
"""


def test_names_of_modules_and_words_around_them_are_told_apart() -> None:
    graph = gw.from_text(TEXT)
    assert [(node.operator, node.module is None) for node in graph.nodes()] == [
        ("double", False), ("double", True),
    ]  # fmt: skip
    assert gw.from_text(graph.to_text()).digest == graph.digest
    assert graph_pb2.Graph.FromString(graph.to_bytes()).required_features == ["modules"]


def test_module_of_the_docs_is_read(server: gw.Connection) -> None:
    docs = (ROOT / "docs" / "files.md").read_text()
    (block,) = re.findall(r"  ```\n(  module .*?)  ```", docs, re.DOTALL)
    graph = gw.from_text(
        f"gradwire text 1\n{block}\ninput x: float64[] = 0.0\nf = sigmoid(x)\noutput f = f\n"
    )
    assert server.evaluate(graph)["x"].gradient == 0.25


@pytest.mark.parametrize(
    ("before", "after", "line", "column", "words"),
    [
        ("module double(x) {", "module double(x)", 3, 17, "expected '{' but found the end of the"),
        ("(x) {", "(x, x) {", 3, 18, "the name 'x' is used twice"),
        ("y = Add", "input y: float64[]", 4, 3, "expected a constant, a node, an output"),
        ("Add(x, x)", "Add(x, module)", 4, 14, "there is no value module before this line"),
        ("output out = y", "output out", 5, 13, "expected '=' but found the end of the line"),
        ("output x = z\n  }", "output x = z", 12, 1, "expected a constant, a node, an output"),
        ("  }\n}", "  }\n  gradient() {}\n}", 11, 3, "module 'double' has a gradient already"),
        ("input module", "module double() {}\ninput module", 13, 8, "'double' is declared twice"),
        ("}\n\ninput", "\n\ninput", 13, 1, "expected a constant, a node, an output"),
        ("text 1\n", "text 1\ngate module triple(1 -> 1)\n", 2, 6, "there is no module 'triple'"),
    ],
)
def test_mistakes_in_modules_are_found_at_their_line_and_column(
    before: str, after: str, line: int, column: int, words: str
) -> None:
    assert before in TEXT
    with pytest.raises(gw.InvalidRequestError) as refused:
        gw.from_text(TEXT.replace(before, after, 1))
    assert refused.value.message.startswith(f"line {line}, column {column}: ")
    assert words in refused.value.message


def test_difference_says_in_which_module() -> None:
    before = layers().to_text()
    edits = {
        "~ gradient of module sigmoid:\n  ~ %6 = Mul(%5, out) -> Mul(%5, %5)": (
            "Mul(%5, out)", "Mul(%5, %5)"
        ),
        "~ module layer:\n  ~ output out1 = x -> w": ("output out1 = x", "output out1 = w"),
        "- gradient of module sigmoid": (before[before.index("\n  gradient") :][:200], None),
    }  # fmt: skip
    for expected, (old, new) in edits.items():
        if new is None:
            old, new = before[before.index("  gradient") : before.index("\n}\n")], ""
        after = before.replace(old, new)
        assert "\n".join(differences(gw.from_text(before), gw.from_text(after))) == expected


def test_random_graphs_with_modules_do_not_differ_from_themselves() -> None:
    for seed in range(60):
        data = random_graph(random.Random(seed), modules=True).SerializeToString(deterministic=True)
        graphs = gw.Graph.from_bytes(data), gw.Graph.from_bytes(data)
        assert not [*differences(*graphs)], f"seed {seed}"


def test_onnx_models_have_modules_written_out(server: gw.Connection) -> None:
    graph = layers()
    model = gw.to_onnx(graph)
    onnx.checker.check_model(model, full_check=True)
    back = gw.from_onnx(model)
    assert {"layer1", "layer1/scores", "layer2/gate/e"} <= back.ids_by_name().keys()
    assert not back.modules
    ours, theirs = (server.evaluate(each, {"x": [0.5, -1.0]}) for each in (graph, back))
    assert ours["f"].value == pytest.approx(float(theirs["f"].value), rel=1e-13)


def test_blob_files_hold_no_values_of_modules(tmp_path: Path) -> None:
    large = np.arange(1000.0)
    module = gw.module(lambda x: x + large)
    graph = gw.Graph()
    graph.output("f", module(graph.parameter("w", large)))
    graph.save(tmp_path / "g.gate", blobs=True)
    again = gw.load(tmp_path / "g.gate")
    message = graph_pb2.Graph.FromString(again._serialized())
    assert message.required_features == ["modules", "blobs"]
    assert len(message.modules[0].circuit.constants[0].value.data) == 8000
    assert again.to_bytes() == graph.to_bytes()
