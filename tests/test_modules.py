"""Modules cost nothing and change nothing: a graph with them is the graph written out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from wire import gate, leaf

from gradwire.v1 import graph_pb2, tensor_pb2
from gradwire_server.codec.answers import encode_started
from gradwire_server.codec.graphs import decode_graph, encode_graph
from gradwire_server.engine import evaluation
from gradwire_server.engine.compiled import NOTHING
from gradwire_server.engine.evaluation import ALL, Binding, Evaluation, Selection
from gradwire_server.engine.runs import Found, run
from gradwire_server.engine.symbolic import gradient_graph
from gradwire_server.errors import Refusal
from gradwire_server.limits import Limits

LIMITS = Limits()

#: What random circuits are made of, with the number of inputs; and what else is used here.
SOME = {"Add": 2, "Mul": 2, "Sub": 2, "Neg": 1, "Sin": 1, "Sigmoid": 1, "Identity": 1}
OPERATORS = SOME | {"Exp": 1, "Expand": 2, "ReduceSum": 1, "Reciprocal": 1}


@dataclass
class Circuit:
    """What tests write instead of columns: nodes are (operator or module, inputs)."""

    inputs: Sequence[str]
    nodes: list[tuple[str, Sequence[int]]] = field(default_factory=list)
    outputs: Sequence[int | None] = ()
    constants: Sequence[float] = ()
    names: dict[int, str] = field(default_factory=dict)


@dataclass
class Part:
    """A module: its circuit, and its own gradient."""

    circuit: Circuit
    gradient: Circuit | None = None


def written(main: Circuit, modules: dict[str, Part], point: Sequence[float] = ()) -> Any:
    """The message; inputs of the main circuit have the stored values of the point."""
    graph = graph_pb2.Graph(format_version=1, operator_set_version=28)
    if modules:
        graph.required_features.append("modules")
    rows: dict[str, int] = {}

    def row(name: str) -> int:
        if name not in rows:
            rows[name] = len(rows)
            if name in modules:
                circuit = modules[name].circuit
                counts = {
                    "input_count": len(circuit.inputs),
                    "output_count": len(circuit.outputs),
                }
                graph.gates.add(module=[*modules].index(name), **counts)
            else:
                graph.gates.append(gate(name, OPERATORS[name]))
        return rows[name]

    def fill(message: graph_pb2.Circuit, circuit: Circuit) -> None:
        message.constants.extend(leaf("", value) for value in circuit.constants)
        for name, inputs in circuit.nodes:
            message.node_gates.append(row(name))
            message.node_inputs.extend(inputs)
        for place, value_id in enumerate(circuit.outputs):
            message.outputs.add(
                name=f"out{place}", value_ids=[] if value_id is None else [value_id]
            )
        for value_id in sorted(circuit.names):
            message.named_ids.append(value_id)
            message.names.append(circuit.names[value_id])

    for name, part in modules.items():
        module = graph.modules.add(name=name)
        for message, circuit in ((module.circuit, part.circuit), (module.gradient, part.gradient)):
            if circuit is not None:
                message.inputs.extend(graph_pb2.Leaf(name=each) for each in circuit.inputs)
                fill(message, circuit)
    values = point or [None] * len(main.inputs)
    graph.circuit.inputs.extend(map(leaf, main.inputs, values))
    fill(graph.circuit, main)
    return graph


def expanded(main: Circuit, modules: dict[str, Part]) -> tuple[Circuit, list[int]]:
    """The circuit without modules, and where the value of each id is: by plain recursion."""
    leaves = len(main.inputs) + len(main.constants)
    constants = list(main.constants)
    nodes: list[tuple[str, list[Any]]] = []

    def go(circuit: Circuit, given: list[Any]) -> tuple[list[Any], list[Any], list[Any]]:
        """Own values, those inside, outputs: references ("c", i), ("n", i) or ("l", i)."""
        places = [None, *given]
        inside: list[Any] = []
        first = len(places)
        for name, inputs in circuit.nodes:
            taken = [places[i] for i in inputs]
            if name in modules:
                inner = modules[name].circuit
                more = []
                for value in inner.constants:
                    more.append(("c", len(constants)))
                    constants.append(value)
                own, deeper, made = go(inner, [*taken, *more])
                inside += own + deeper
                places += made
            else:
                places.append(("n", len(nodes)))
                nodes.append((name, taken))
        return places[first:], inside, [None if i is None else places[i] for i in circuit.outputs]

    given = [("l", i) for i in range(len(main.inputs))]
    given += [("c", i) for i in range(len(main.constants))]
    own, inside, made = go(main, given)

    def place(ref: Any) -> int:
        kind, number = ref
        before = {"l": 1, "c": 1 + len(main.inputs), "n": 1 + len(main.inputs) + len(constants)}
        return before[kind] + number

    flat = Circuit(
        main.inputs,
        [(name, [place(each) for each in inputs]) for name, inputs in nodes],
        [place(ref) for ref in made],
        constants,
    )
    return flat, [0, *range(1, leaves + 1), *(place(ref) for ref in own + inside)]


def evaluated(graph: Any, bindings: dict[str, Any] | None = None, **asked: Any) -> Found:
    decoded = decode_graph(graph.SerializeToString(), LIMITS)
    arrays = {
        name: Binding(np.asarray(x), bool(asked.get("batch_size")))
        for name, x in (bindings or {}).items()
    }
    wanted = Evaluation(bindings=arrays, **asked)
    return run(evaluation.prepare(decoded, wanted, LIMITS), lambda: False)


def by_id(slabs: Any) -> dict[int, Any]:
    return {
        value_id: np.array(array)
        for slab in slabs
        for value_id, array in zip(slab.part.ids.tolist(), slab.arrays(), strict=True)
    }


def random_circuit(rng: np.random.Generator, modules: dict[str, Part], inputs: int) -> Circuit:
    """Nodes that use what is there already; every node of the last few is an output."""
    constants = rng.uniform(-1, 1, rng.integers(0, 3)).tolist()
    count = inputs + len(constants)
    nodes = []
    for _ in range(rng.integers(1, 9)):
        name = str(rng.choice([*SOME, *list(modules) * 2]))
        circuit = modules[name].circuit if name in modules else None
        takes = len(circuit.inputs) if circuit else OPERATORS[name]
        nodes.append((name, rng.integers(1, count + 1, takes).tolist()))
        count += len(circuit.outputs) if circuit else 1
    outputs = rng.integers(1, count + 1, rng.integers(1, 4)).tolist()
    return Circuit([f"x{i}" for i in range(inputs)], nodes, outputs, constants)


@pytest.mark.parametrize("seed", range(60))
def test_a_graph_with_modules_is_the_graph_written_out(seed: int) -> None:
    rng = np.random.default_rng(seed)
    modules: dict[str, Part] = {}
    for number in range(rng.integers(1, 5)):
        modules[f"m{number}"] = Part(random_circuit(rng, modules, int(rng.integers(1, 4))))
    main = random_circuit(rng, modules, 3)
    flat, places = expanded(main, modules)
    point = rng.uniform(-1, 1, 3).tolist()
    asked: dict[str, Any] = {"values": ALL, "gradients": ALL}
    asked["seeds"] = {f"out{i}": np.array(rng.normal()) for i in range(len(main.outputs))}
    outputs, gradients, values, pulled = evaluated(written(main, modules, point), **asked)
    expected = evaluated(written(flat, {}, point), **asked)
    np.testing.assert_allclose([x for _, x in outputs], [x for _, x in expected[0]], rtol=1e-13)
    np.testing.assert_allclose([x for _, x in gradients], [x for _, x in expected[1]], rtol=1e-12)
    for found, wanted in ((values, expected[2]), (pulled, expected[3])):
        ours, theirs = by_id(found), by_id(wanted)
        assert set(ours) == {i for i, place in enumerate(places) if place in theirs}
        for value_id, value in ours.items():
            np.testing.assert_allclose(value, theirs[places[value_id]], rtol=1e-12, atol=1e-14)


SIGMOID = Circuit(
    ["x"], [("Neg", [1]), ("Exp", [3]), ("Add", [4, 2]), ("Reciprocal", [5])], [6], [1.0]
)
SIGMOID.names = {4: "e", 5: "sum"}
#: (1 - s) * s, of inputs x, out, grad and the constant 1.
SLOPE = Circuit(["x", "s", "grad"], [("Sub", [4, 2]), ("Mul", [5, 2]), ("Mul", [6, 3])], [7], [1.0])
NEURON = Circuit(
    ["w0", "x0", "w1", "x1", "w2"],
    [("Mul", [1, 2]), ("Mul", [3, 4]), ("Add", [6, 7]), ("Add", [8, 5]), ("sigmoid", [9])],
    [10],
    names={9: "sum", 10: "f"},
)
POINT = [2.0, -1.0, -3.0, -2.0, -3.0]


def neuron(gradient: Circuit | None = SLOPE) -> Any:
    return written(NEURON, {"sigmoid": Part(SIGMOID, gradient)}, POINT)


def test_own_gradient_takes_the_place_of_the_inside() -> None:
    """The running example: at 1.0 the value is 0.73, and the local gradient 0.2."""
    _, gradients, values, pulled = evaluated(neuron(), values=ALL, gradients=ALL)
    seen, grads = by_id(values), by_id(pulled)
    assert seen[9] == 1.0
    np.testing.assert_allclose([seen[10], grads[9]], [0.731058578630005, 0.19661193324148185])
    _, expected, *_ = evaluated(neuron(gradient=None))
    for (name, found), (_, wanted) in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-14, err_msg=name)
    assert set(seen) == set(range(1, 15)), "four nodes are inside"
    assert set(grads) == set(range(1, 11)), "they have no gradient"


def test_another_gradient_is_another_result() -> None:
    doubled = replace(SLOPE, nodes=[*SLOPE.nodes, ("Add", [7, 7])], outputs=[8])
    _, gradients, *_ = evaluated(neuron(doubled))
    _, expected, *_ = evaluated(neuron(gradient=None))
    np.testing.assert_allclose(gradients[0][1], 2 * expected[0][1])


@pytest.mark.parametrize("gradient", [SLOPE, None])
def test_rows_of_a_batch_are_independent(gradient: Circuit | None) -> None:
    graph = neuron(gradient)
    rows = np.random.default_rng(1).normal(size=(7, 2))
    bindings = {"x0": rows[:, 0], "x1": rows[:, 1]}
    asked: dict[str, Any] = {"values": ALL, "gradients": ALL}
    outputs, gradients, _, pulled = evaluated(graph, bindings, batch_size=7, **asked)
    alone = [evaluated(graph, {"x0": x0, "x1": x1}, **asked) for x0, x1 in rows]
    np.testing.assert_allclose(outputs[0][1], [each[0][0][1] for each in alone])
    grads = dict(gradients)
    np.testing.assert_allclose(grads["x0"], [dict(each[1])["x0"] for each in alone])
    np.testing.assert_allclose(grads["w0"], sum(dict(each[1])["w0"] for each in alone))
    np.testing.assert_allclose(by_id(pulled)[9], [by_id(each[3])[9] for each in alone])


def test_own_gradient_is_used_in_gradient_graphs_of_any_order() -> None:
    """A cube whose own gradient is 10 x: its second derivative is 10, and not 6 x."""
    cube = Circuit(["x"], [("Mul", [1, 1]), ("Mul", [2, 1])], [3])
    slope = Circuit(["x", "y", "grad"], [("Mul", [1, 4]), ("Mul", [5, 3])], [6], [10.0])
    main = Circuit(["x"], [("cube", [1]), ("Mul", [2, 2])], [3], names={2: "y"})
    graph = written(main, {"cube": Part(cube, slope)}, [2.0])
    decoded = decode_graph(graph.SerializeToString(), LIMITS)
    first = decode_graph(encode_graph(gradient_graph(decoded, (), {}, LIMITS), "test"), LIMITS)
    outputs, gradients, *_ = run(
        evaluation.prepare(
            first,
            Evaluation(seeds={"grad/x": np.array(1.0)}, with_respect_to=("x",)),
            LIMITS,
        ),
        lambda: False,
    )
    y, slope_at = 8.0, 20.0
    assert dict(outputs)["grad/x"] == 2 * y * slope_at
    # d(2 y * 10 x)/dx = 2 * 10 x * 10 x + 2 y * 10, the module's own gradient for dy/dx
    assert dict(gradients)["x"] == 2 * slope_at * slope_at + 2 * y * 10
    second = gradient_graph(first, (), {}, LIMITS)
    again = decode_graph(encode_graph(second, "test"), LIMITS)
    assert {output.name for output in again.outputs} >= {"out0", "grad/x", "grad2/x"}


def test_gradients_of_halves_are_computed_in_float32() -> None:
    graph = neuron()
    half = tensor_pb2.DATA_TYPE_FLOAT16
    for each, value in zip(graph.circuit.inputs, POINT, strict=True):
        each.type.data_type = half
        each.value.CopyFrom(tensor_pb2.Tensor(data_type=half, data=np.float16(value).tobytes()))
    for circuit in (graph.modules[0].circuit, graph.modules[0].gradient):
        circuit.constants[0].type.data_type = half
        one = tensor_pb2.Tensor(data_type=half, data=np.float16(1).tobytes())
        circuit.constants[0].value.CopyFrom(one)
    _, gradients, *_ = evaluated(graph)
    assert gradients[0][1].dtype == np.float16
    assert gradients[0][1] == np.float16(-0.19661193)


def test_values_inside_are_chosen_by_path() -> None:
    inner = Circuit(["x"], [("Sin", [1]), ("Neg", [2])], [3], names={2: "scores"})
    outer = Circuit(["x"], [("inner", [1]), ("Neg", [2])], [3], names={2: "attention"})
    main = Circuit(["x"], [("outer", [1]), ("outer", [2])], [3], names={2: "layer1", 3: "layer2"})
    graph = written(main, {"inner": Part(inner), "outer": Part(outer)}, [0.5])
    names = ("layer1/attention/scores", "layer2/attention")
    _, _, values, _ = evaluated(graph, values=Selection(names=names))
    first = np.sin(0.5)
    # ids: x, layer1, layer2; then layer1's attention and Neg, then attention's scores and Neg; ...
    assert by_id(values) == {6: pytest.approx(first), 8: pytest.approx(-np.sin(first))}
    _, _, inside, _ = evaluated(graph, values=Selection(modules=("layer1",)))
    assert set(by_id(inside)) == {4, 5, 6, 7}
    _, _, inside, _ = evaluated(graph, values=Selection(modules=("layer2/attention",)))
    assert set(by_id(inside)) == {10, 11}
    started = encode_started(decode_graph(graph.SerializeToString(), LIMITS))
    assert started.value_count == 11
    assert list(started.module_uses.paths) == [
        "layer1", "layer1/attention", "layer2", "layer2/attention"
    ]  # fmt: skip
    assert list(started.module_uses.modules) == [1, 0, 1, 0]
    assert list(started.module_uses.first_value_ids) == [4, 6, 8, 10]


def test_gradients_inside_of_a_module_with_its_own_are_refused() -> None:
    with refused("NOT_DIFFERENTIABLE", "'f/e': has no gradient: it is inside of a module"):
        evaluated(neuron(), gradients=Selection(names=("f/e",)))


def test_a_refusal_inside_says_where() -> None:
    inner = Circuit(["x", "y"], [("Add", [1, 2])], [3], names={3: "sum"})
    main = Circuit(["x", "y"], [("m", [1, 2])], [3], names={3: "layer1"})
    graph = written(main, {"m": Part(inner)})
    with refused("SHAPE_MISMATCH", "^node 'layer1' \\(Add\\): shapes"):
        bound = graph_pb2.Graph.FromString(graph.SerializeToString())
        for each, size in zip(bound.circuit.inputs, (2, 3), strict=True):
            each.type.axes.add(size=size)
        evaluated(bound, {"x": np.zeros(2), "y": np.zeros(3)})


def refused(reason: str, words: str) -> Any:
    return pytest.raises(Refusal, match=words, check=lambda refusal: refusal.reason == reason)


def use(graph: Any) -> Any:
    """The gate that uses the module."""
    return next(each for each in graph.gates if each.HasField("module"))


WRONG: dict[str, tuple[Callable[[Any], Any], str, str]] = {
    "the gradient has too few inputs": (
        lambda graph: graph.modules[0].circuit.outputs.add(name="more", value_ids=[1])
        and setattr(use(graph), "output_count", 2),
        "MODULE_INVALID", "has 3 inputs, but must have 5",
    ),
    "the gradient has too many outputs": (
        lambda graph: graph.modules[0].gradient.outputs.add(name="more", value_ids=[1]),
        "MODULE_INVALID", "has 2 outputs, but must have one for each of the 1 inputs",
    ),
    "a module without a circuit": (
        lambda graph: graph.modules[0].ClearField("circuit"), "MODULE_INVALID", "no circuit"
    ),
    "a module without an output": (
        lambda graph: graph.modules[0].circuit.outputs.pop(), "OUTPUT_COUNT_INVALID", "yields 0"
    ),
    "a name that is used twice": (
        lambda graph: graph.modules.append(graph.modules[0]), "NAME_INVALID", "'sigmoid' is used 2"
    ),
    "a module without a name": (
        lambda graph: setattr(graph.modules[0], "name", ""), "NAME_INVALID", "empty name"
    ),
    "a module that is not there": (
        lambda graph: setattr(use(graph), "module", 7), "MODULE_INVALID", "names module 7"
    ),
    "a module that uses itself": (
        lambda graph: graph.modules[0].circuit.node_gates.append([*graph.gates].index(use(graph)))
        or graph.modules[0].circuit.node_inputs.append(1),
        "MODULE_INVALID", "uses module 'sigmoid', which does not come before it",
    ),
    "attributes of a module": (
        lambda graph: use(graph).attributes.add(name="alpha", float_value=1.0),
        "ATTRIBUTE_INVALID", "has no attributes",
    ),
    "too many inputs": (
        lambda graph: setattr(use(graph), "input_count", 2)
        or graph.circuit.node_inputs.append(1),
        "INPUT_COUNT_INVALID", "takes 1 inputs but a gate gives it 2",
    ),
    "an omitted input": (
        lambda graph: graph.circuit.node_inputs.__setitem__(-1, 0), "NODE_INVALID", "omits an input"
    ),
    "a parameter of a module": (
        lambda graph: graph.modules[0].circuit.parameters.append(leaf("p", 1.0)),
        "MODULE_INVALID", "has the parameter 'p'",
    ),
    "a typed input of a module": (
        lambda graph: graph.modules[0].circuit.inputs[0].CopyFrom(leaf("x")),
        "MODULE_INVALID", "has a type",
    ),
    "a stacked output": (
        lambda graph: graph.modules[0].circuit.outputs[0].value_ids.append(1),
        "OUTPUT_INVALID", "stacks values",
    ),
    "a constant without a value": (
        lambda graph: graph.modules[0].circuit.constants[0].ClearField("value"),
        "LEAF_INVALID", "has no stored value",
    ),
    "elements in a module": (
        lambda graph: setattr(graph.modules[0].gradient.constants[0], "layout", 1),
        "LEAF_INVALID", "has the layout ELEMENTS, in a module",
    ),
    "the feature unsaid": (
        lambda graph: graph.required_features.pop(), "FEATURE_UNSUPPORTED", "must name 'modules'"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_makes_no_module_is_refused(case: str) -> None:
    change, reason, words = WRONG[case]
    graph = neuron()
    change(graph)
    with refused(reason, words):
        decode_graph(graph.SerializeToString(), LIMITS)


def test_modules_that_double_forty_times_are_refused_before_they_are_written_out() -> None:
    modules = {"m0": Part(Circuit(["x"], [("Sin", [1])], [2]))}
    for number in range(1, 41):
        below = f"m{number - 1}"
        modules[f"m{number}"] = Part(Circuit(["x"], [(below, [1]), (below, [2])], [3]))
    graph = written(Circuit(["x"], [("m40", [1])], [2]), modules, [0.5])
    with refused("LIMIT_EXCEEDED", "number of nodes, with those inside of modules"):
        decode_graph(graph.SerializeToString(), LIMITS)
    unused = written(Circuit(["x"], [("m3", [1])], [2]), modules, [0.5])
    assert decode_graph(unused.SerializeToString(), LIMITS).node_count == 8


def test_large_modules_wrapped_again_and_again_are_refused() -> None:
    """No circuit is over the limit of nodes, but all of them together would take long."""
    limits = Limits(max_nodes=1000)
    modules = {"m0": Part(Circuit(["x"], [("Sin", [i]) for i in range(1, 901)], [901]))}
    for number in range(1, 11):
        modules[f"m{number}"] = Part(Circuit(["x"], [(f"m{number - 1}", [1])], [2]))
    graph = written(Circuit(["x"], [("m10", [1])], [2]), modules, [0.5])
    with refused("LIMIT_EXCEEDED", "nodes of all modules"):
        decode_graph(graph.SerializeToString(), limits)


def test_long_paths_are_refused_before_they_are_made() -> None:
    limits = Limits(max_message_bytes=100_000)
    inner = Circuit(["x"], [("Sin", [1])], [2])
    many = Circuit(["x"], [("inner", [1])] * 200, [2])
    many.names = {i: f"u{i}" for i in range(2, 202)}
    main = Circuit(["x"], [("many", [1])], [2], names={2: "n" * 1000})
    graph = written(main, {"inner": Part(inner), "many": Part(many)}, [0.5])
    with refused("LIMIT_EXCEEDED", "characters of the paths"):
        decode_graph(graph.SerializeToString(), limits)


def test_gradients_may_use_modules_with_their_own_gradient() -> None:
    """And where several outputs are not seeded, their gradients are zero."""
    double = Part(
        Circuit(["x"], [("Add", [1, 1])], [2]),
        Circuit(["x", "y", "grad"], [("Add", [3, 3])], [4]),
    )
    both = Part(
        Circuit(["x", "y"], [("Add", [1, 2]), ("Mul", [1, 2])], [3, 4]),
        Circuit(
            ["x", "y", "sum", "product", "to_sum", "to_product"],
            [("Mul", [6, 2]), ("Add", [5, 7]), ("double", [8])],
            [9, None],
        ),
    )
    main = Circuit(["x", "y"], [("both", [1, 2])], [3, 4])
    graph = written(main, {"double": double, "both": both}, [3.0, 5.0])
    _, gradients, *_ = evaluated(graph, seeds={"out1": np.array(1.0)})
    assert dict(gradients) == {"x": 10.0, "y": 0.0}
    _, gradients, *_ = evaluated(graph, seeds={"out0": np.array(7.0)})
    assert dict(gradients) == {"x": 14.0, "y": 0.0}


def test_gradient_of_another_shape_or_type_is_refused() -> None:
    wrong = Part(
        Circuit(["x", "y"], [("Add", [1, 2])], [3]),
        Circuit(["x", "y", "sum", "grad"], [("Add", [1, 2])], [5, 4]),
    )
    graph = written(Circuit(["x", "y"], [("m", [1, 2])], [3]), {"m": wrong})
    graph.circuit.inputs[0].type.axes.add(size=3)
    with refused("MODULE_INVALID", r"yields float64\[3\] for the input 'y', which is float64\[\]"):
        evaluated(graph, {"x": np.zeros(3), "y": np.zeros(())}, seeds={"out0": np.ones(3)})


def test_outputs_of_a_module_with_its_own_gradient_are_floating() -> None:
    graph = neuron()
    graph.modules[0].circuit.node_gates.append(len(graph.gates))
    graph.modules[0].circuit.node_inputs.append(6)
    graph.modules[0].circuit.outputs[0].value_ids[:] = [7]
    graph.gates.append(gate("IsNaN", 1))
    with refused("MODULE_INVALID", "outputs must be floating, but 's' is bool"):
        evaluated(graph)


def test_shape_that_a_gradient_needs_is_known_through_the_module() -> None:
    """The gradient of a sum along all axes: expanded to the shape that is an input."""
    total = Part(
        Circuit(["x", "shape"], [("ReduceSum", [1])], [3]),
        Circuit(["x", "shape", "sum", "grad"], [("Expand", [4, 2])], [5, None]),
    )
    main = Circuit(["x", "shape"], [("total", [1, 2])], [3])
    graph = written(main, {"total": total})
    graph.circuit.inputs[0].type.axes.add(size=3)
    graph.circuit.inputs[1].type.axes.add(size=1)
    graph.circuit.inputs[1].type.data_type = tensor_pb2.DATA_TYPE_INT64
    for each in graph.gates:
        if each.operator == "ReduceSum":
            each.attributes.add(name="keepdims", int_value=0)
    given = {"x": np.arange(3.0), "shape": np.array([3])}
    outputs, gradients, *_ = evaluated(graph, given)
    assert outputs[0][1] == 3.0
    np.testing.assert_array_equal(dict(gradients)["x"], np.ones(3))


@pytest.mark.parametrize("seed", range(8))
def test_gradient_graph_of_modules_is_that_of_the_graph_written_out(seed: int) -> None:
    rng = np.random.default_rng(seed)
    modules = {"m": Part(random_circuit(rng, {}, 2))}
    main = random_circuit(rng, modules, 3)
    flat, _ = expanded(main, modules)
    point = rng.uniform(-1, 1, 3).tolist()
    results = []
    for graph in (written(main, modules, point), written(flat, {}, point)):
        decoded = decode_graph(graph.SerializeToString(), LIMITS)
        made = encode_graph(gradient_graph(decoded, (), {}, LIMITS), "test")
        found = evaluated(graph_pb2.Graph.FromString(made), forward_only=True)
        results.append(found[0])
    for (name, ours), (_, theirs) in zip(*results, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-14, err_msg=name)


def test_a_hundred_thousand_uses_are_written_out_without_a_loop_over_them() -> None:
    """Far below what a loop would take: copied as columns, they have the right ids."""
    main = Circuit(["x"], [("m", [1])] * 100_000, [2])
    graph = written(main, {"m": Part(Circuit(["x"], [("Sin", [1]), ("Neg", [2])], [3]))}, [0.5])
    decoded = decode_graph(graph.SerializeToString(), LIMITS)
    assert (decoded.node_count, decoded.id_count) == (200_000, 300_001)
    assert decoded.inside is not None
    np.testing.assert_array_equal(decoded.inside.use_first_ids, np.arange(100_000) * 2 + 100_002)


def with_own_gradients(rng: np.random.Generator) -> tuple[dict[str, Part], Circuit]:
    """Modules whose gradients are any circuits at all, and a circuit that uses them often."""
    modules: dict[str, Part] = {}
    for number in range(3):
        circuit = random_circuit(rng, modules, int(rng.integers(1, 4)))
        takes, yields = len(circuit.inputs), len(circuit.outputs)
        gradient = None
        if number or rng.random() < 0.5:
            gradient = random_circuit(rng, modules, takes + 2 * yields)
            last = takes + 2 * yields + len(gradient.constants)
            ends = rng.integers(0, last + 1, takes).tolist()
            gradient.outputs = [end or None for end in ends]
        modules[f"m{number}"] = Part(circuit, gradient)
    main = random_circuit(rng, modules, 3)
    count = 3 + len(main.constants)
    main.nodes.clear()
    for _ in range(60):
        name = str(rng.choice([*SOME, *[*modules] * 5]))
        circuit_ = modules[name].circuit if name in modules else None
        takes = len(circuit_.inputs) if circuit_ else OPERATORS[name]
        # the last values, and now and then the leaves, so that some values have many consumers
        near = rng.integers(max(1, count - 6), count + 1, takes)
        main.nodes.append((name, np.where(rng.random(takes) < 0.2, 1, near).tolist()))
        count += len(circuit_.outputs) if circuit_ else 1
    main.outputs = [count, count - 2, 2]
    return modules, main


@pytest.mark.parametrize("rows", [0, 70])
@pytest.mark.parametrize("seed", range(12))
def test_kernels_run_own_gradients_as_the_array_engine_does(seed: int, rows: int) -> None:
    rng = np.random.default_rng(seed)
    modules, main = with_own_gradients(rng)
    graph = decode_graph(
        written(main, modules, rng.uniform(-1, 1, 3).tolist()).SerializeToString(), LIMITS
    )
    shape = (rows,) if rows else ()
    seeds = {f"out{i}": rng.normal(size=shape) for i in rng.permutation(3)[: 1 + seed % 3]}
    bound = {"x1": Binding(rng.uniform(-1, 1, rows), True)} if rows else {}
    wanted = Evaluation(bindings=bound, batch_size=rows, seeds=seeds, values=ALL, gradients=ALL)
    with np.errstate(all="ignore"):
        job = evaluation.prepare(graph, wanted, LIMITS)
        assert job.compiled.joined is not None, "it is long enough"
        found = run(job, lambda: False)
        expected = run(replace(job, compiled=NOTHING), lambda: False)
    for ours, theirs in zip(found[:2], expected[:2], strict=True):
        for (name, x), (_, y) in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-10, atol=1e-10 * largest(y), err_msg=name)
    for ours_, theirs_ in zip(found[2:], expected[2:], strict=True):
        x_by_id, y_by_id = by_id(ours_), by_id(theirs_)
        assert x_by_id.keys() == y_by_id.keys()
        for i, y in y_by_id.items():
            np.testing.assert_allclose(
                x_by_id[i], y, rtol=1e-10, atol=1e-10 * largest(y), err_msg=str(i)
            )


def largest(x: Any) -> float:
    """The largest finite element."""
    return float(np.max(np.abs(x), where=np.isfinite(x), initial=0.0))
