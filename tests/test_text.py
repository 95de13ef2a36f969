"""The text form: it reads back to the same bytes, and mistakes are found where they are."""

from __future__ import annotations

import random
import re
import struct
import tracemalloc
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gradwire as gw
from gradwire import tensors
from gradwire.v1 import graph_pb2, tensor_pb2

ROOT = Path(__file__).parent.parent
FILES = sorted([*ROOT.glob("examples/*.gate"), *ROOT.glob("tests/golden/*.gate")])
TEXT = """gradwire text 1
operator_set 28

input x: float64[2, batch]
input e: float64[2] elements = [0.5, -0.0]
constant %c: float32[] = 1.5
constant %d: int64[0] = bytes()

y, %rest = Split(x, axis=1, num_outputs=2)
z = Mul(e[0], e[1])  # a comment

output f = y
output many = z, e[1]
"""


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_file_reads_back_from_its_text_to_the_same_digest(path: Path) -> None:
    graph = gw.load(path)
    beside = next(path.parent.glob(f"{path.name}.*.blobs"), None)
    assert gw.from_text(graph.to_text(), beside).digest == graph.digest


def random_name(chance: random.Random, taken: set[str]) -> str:
    alphabet = 'ab_9./ "\\\n\t#%@[]=,:é漢\u2028\u202e\x00\x7f😀'
    while True:
        name = "".join(chance.choices(alphabet, k=chance.randint(1, 6)))
        name = chance.choice([name, "input", "_", "nan", "%5", "output", f"w{len(taken)}"])
        if name not in taken:
            taken.add(name)
            return name


def random_tensor(chance: random.Random, shape: list[int] | None = None) -> tensor_pb2.Tensor:
    dtype = chance.choice(tensors.DTYPES)
    if shape is None:
        shape = [chance.choice([0, 1, 2, 3, 9]) for _ in range(chance.randint(0, 3))]
    size = int(np.prod(shape, dtype=int)) * np.dtype(dtype).itemsize
    data = chance.randbytes(size)  # NaNs of every kind among them
    if dtype == "bool":
        data = bytes(each & 1 for each in data)
    elif chance.random() < 0.5:
        array = np.array([chance.choice([0, 1, 2, 3, -0.0, 0.1]) for _ in range(size)])
        data = array.astype(dtype).tobytes()[:size]
    tensor = tensor_pb2.Tensor(data_type=tensors.data_type(dtype), shape=shape)
    if size or chance.random() < 0.5:
        tensor.data = data
    return tensor


def random_attribute(chance: random.Random, name: str) -> graph_pb2.Attribute:
    def real() -> float:
        bits = chance.choice([chance.getrandbits(64), 0x7FF0 << 48, 0xFFF8 << 48, 0x7FF4 << 48, 1])
        found: float = struct.unpack("<d", struct.pack("<Q", bits))[0]
        return chance.choice([found, 1.0, -0.0, 1e22, 0.1])

    def whole() -> int:
        return chance.choice([0, 1, -(2**63), 2**63 - 1, chance.randint(-99, 99)])

    def several(make: Any) -> list[Any]:
        return [make() for _ in range(chance.randint(0, 3))]

    def text() -> str:
        return random_name(chance, set())

    values: dict[str, Any] = {
        "int_value": whole(),
        "float_value": real(),
        "string_value": chance.choice(["", text()]),
        "ints": graph_pb2.Ints(values=several(whole)),
        "floats": graph_pb2.Floats(values=several(real)),
        "strings": graph_pb2.Strings(values=several(text)),
        "tensor": random_tensor(chance),
    }
    kind = chance.choice([*values])
    return graph_pb2.Attribute(name=name, **{kind: values[kind]})


def random_leaf(chance: random.Random, kind: str, taken: set[str]) -> graph_pb2.Leaf:
    constant_name = chance.choice(["", "pi", "%1", "e"])
    leaf = graph_pb2.Leaf(name=constant_name if kind == "constants" else random_name(chance, taken))
    shape = [chance.choice([0, 1, 2, 5]) for _ in range(chance.randint(0, 3))]
    tensor = random_tensor(chance, shape)
    leaf.type.data_type = tensor.data_type
    elements = chance.random() < 0.3
    for size in shape:
        if elements or chance.random() < 0.7:
            leaf.type.axes.add(size=size)
        else:
            leaf.type.axes.add(symbol=chance.choice(["batch", "n m", "3", "elements"]))
    leaf.layout = int(elements)
    if kind != "inputs" or chance.random() < 0.5:
        leaf.value.CopyFrom(tensor)
    return leaf


def add_nodes(
    chance: random.Random, graph: graph_pb2.Graph, circuit: graph_pb2.Circuit, last: int, most: int
) -> int:
    """Nodes of a circuit whose last value so far is given, of all gates; its last value then."""
    taken = {leaf.name for leaf in (*circuit.inputs, *circuit.parameters)}
    for _ in range(chance.randint(1, most)):
        row = chance.randrange(len(graph.gates))
        gate = graph.gates[row]
        least = int(gate.HasField("module"))  # modules omit no input
        if least > last and gate.input_count:
            continue
        circuit.node_gates.append(row)
        circuit.node_inputs.extend(chance.randint(least, last) for _ in range(gate.input_count))
        for _ in range(gate.output_count):
            last += 1
            if chance.random() < 0.5:
                circuit.named_ids.append(last)
                circuit.names.append(random_name(chance, taken))
    return last


def add_modules(chance: random.Random, graph: graph_pb2.Graph) -> None:
    """Modules with and without gradients, which use those before them, and a gate for each."""
    graph.required_features.append("modules")
    names: set[str] = set()
    for number in range(chance.randint(1, 3)):
        name = random_name(chance, names)
        name = chance.choice([name, *{"Mul", "module", "operator", "gradient"} - names])
        names.add(name)
        module = graph.modules.add(name=name)
        inputs, outputs = chance.randint(0, 3), chance.randint(1, 2)
        fill_circuit(chance, graph, module.circuit, inputs, [1] * outputs)
        if chance.random() < 0.6:
            values = [chance.randint(0, 1) for _ in range(inputs)]
            fill_circuit(chance, graph, module.gradient, inputs + 2 * outputs, values)
        graph.gates.add(module=number, input_count=inputs, output_count=outputs)


def fill_circuit(
    chance: random.Random,
    graph: graph_pb2.Graph,
    circuit: graph_pb2.Circuit,
    inputs: int,
    outputs: list[int],
) -> None:
    """A module's circuit with so many inputs, and so many values of each output."""
    taken: set[str] = set()
    circuit.inputs.extend(graph_pb2.Leaf(name=random_name(chance, taken)) for _ in range(inputs))
    circuit.constants.append(random_leaf(chance, "constants", taken))
    circuit.constants[0].layout = graph_pb2.Leaf.LAYOUT_UNSPECIFIED
    last = add_nodes(chance, graph, circuit, inputs + 1, 3)
    names: set[str] = set()
    for values in outputs:
        ids = [chance.randint(1, last) for _ in range(values)]
        circuit.outputs.add(name=random_name(chance, names), value_ids=ids)


def random_graph(chance: random.Random, modules: bool = False) -> graph_pb2.Graph:
    graph = graph_pb2.Graph(
        format_version=1,
        operator_set_version=chance.randint(0, 30),
        producer=chance.choice(["", 'a "program"\n']),
        notes=[
            graph_pb2.Note(key=f"org.{each}", text="a\nb") for each in range(chance.randint(0, 2))
        ],
    )
    taken: set[str] = set()
    last = 0
    for kind in ("inputs", "parameters", "constants"):
        for _ in range(chance.randint(0, 3)):
            leaf = random_leaf(chance, kind, taken)
            getattr(graph.circuit, kind).append(leaf)
            last += int(np.prod([axis.size for axis in leaf.type.axes])) if leaf.layout else 1
    for _ in range(chance.randint(1, 4)):
        names = sorted({random_name(chance, set()) for _ in range(chance.randint(0, 4))})
        graph.gates.add(
            operator=chance.choice(["Mul", "Split", "No Such"]),
            input_count=chance.randint(0, 3),
            output_count=chance.randint(0, 3),
            attributes=[random_attribute(chance, name) for name in names],
        )
    if chance.random() < 0.3:
        graph.gates.append(graph.gates[0])
    if modules:
        add_modules(chance, graph)
    last = add_nodes(chance, graph, graph.circuit, last, 8)
    outputs: set[str] = set()
    for _ in range(chance.randint(1, 3)):
        ids = [chance.randint(1, max(last, 1)) for _ in range(chance.randint(1, 3))]
        graph.circuit.outputs.add(name=random_name(chance, outputs), value_ids=ids)
    if not last:
        graph.circuit.inputs.add(name="x").type.data_type = tensor_pb2.DATA_TYPE_FLOAT64
    return graph


@pytest.mark.parametrize("block", range(8))
def test_random_graphs_read_back_from_their_text_to_the_same_bytes(block: int) -> None:
    for seed in range(100 * block, 100 * block + 100):
        data = random_graph(random.Random(seed)).SerializeToString(deterministic=True)
        graph = gw.Graph.from_bytes(data)
        text = graph.to_text()
        assert "ordered otherwise" not in text, f"seed {seed}"
        assert gw.from_text(text).to_bytes() == data, f"seed {seed}"


def test_random_graphs_with_modules_read_back_from_their_text_to_the_same_bytes() -> None:
    uses = 0
    for seed in range(200):
        data = random_graph(random.Random(seed), modules=True).SerializeToString(deterministic=True)
        graph = gw.Graph.from_bytes(data)
        uses += len([*graph.module_uses()])
        text = graph.to_text()
        assert "ordered otherwise" not in text, f"seed {seed}"
        assert gw.from_text(text).to_bytes() == data, f"seed {seed}"
    assert uses > 300


def test_text_of_bytes_in_another_order_says_so() -> None:
    graph = gw.from_text(TEXT)
    message = graph_pb2.Graph(producer="other").SerializeToString() + graph.to_bytes()
    text = gw.Graph.from_bytes(message).to_text()
    assert "ordered otherwise" in text
    assert 'producer "other"' in text


def test_person_writes_in_any_order_and_with_labels_of_her_own() -> None:
    graph = gw.from_text(TEXT)
    x, e, c, d = graph.leaves
    assert x.axes == (2, "batch")
    assert e.elements
    assert np.signbit(e.value[1])  # type: ignore[index]
    assert c.value == np.float32(1.5)
    assert d.value is not None
    assert d.value.shape == (0,)
    assert graph.output_ids() == {"f": [6], "many": [8, 3]}
    later = TEXT.replace("input x", "parameter w: float64[1] = [3]\ninput x").replace("\n", "\r\n")
    assert [leaf.name for leaf in gw.from_text(later).leaves][:3] == ["x", "e", "w"]


def test_large_tensors_are_lines_of_whole_elements() -> None:
    values = np.arange(100.0)
    graph = gw.Graph()
    graph.output("f", gw.exp(graph.parameter("w", values)))
    values[50] = -1
    other = gw.Graph()
    other.output("f", gw.exp(other.parameter("w", values)))
    lines = zip(graph.to_text().splitlines(), other.to_text().splitlines(), strict=True)
    assert sum(first != second for first, second in lines) == 1


@pytest.mark.parametrize(
    ("before", "after", "line", "column", "words"),
    [
        ("gradwire text 1", "gradwire text 2", 1, 1, "expected the line 'gradwire text 1'"),
        ("[2, batch]", "[2, batch", 5, 1, "expected ',' or ']' but found input"),
        ("float64[2, b", "float46[2, b", 4, 10, "found 'float46'; did you mean 'float"),
        ("0.5, -0.0]", "0.5]", 5, 36, "expected ',' and 1 more of 2 but found ]"),
        ("0.5, -0.0]", "0.5, -0.0, 1]", 5, 42, "expected ']' after 2 but found ,"),
        ("0.5, -0.0]", "0.5, x]", 5, 38, "expected a number but found x"),
        ("= 1.5", "= 1e39", 6, 26, "1e39 does not fit float32"),
        ("%c: float32[] = 1.5", "%c: int8[] = 300", 6, 23, "300 does not fit int8"),
        ("%c: float32[] = 1.5", "%c: int8[] = 1.5", 6, 23, "expected a whole number for int8"),
        ("%c: float32[] = 1.5", "%c: bool[] = 1", 6, 23, "expected true or false but found 1"),
        ("%c: float32[] = 1.5", "%c: float16[] = nan(0x12345)", 6, 26, "does not fit float16"),
        ("= bytes()", '= bytes("?")', 7, 31, "this string is not base64"),
        ("= bytes()", "= []", 7, 25, "expected bytes(), since shape (0,)"),
        ("%d:", "%c:", 7, 10, "the name '%c' is used twice"),
        ("Split(x", "Split(xx", 9, 18, "there is no value xx before this line; did you mean 'x'?"),
        ("axis=1", "axis=", 9, 26, "expected a number, a string, a list, or a data type"),
        ("axis=1", "axis=[1, 2.0]", 9, 26, "expected numbers of one kind"),
        ("axis=1", f"axis={1 << 63}", 9, 26, "a whole number does not fit 64 bits"),
        ("axis=1, num_outputs=2", "axis=1, x", 9, 29, "inputs come before attributes"),
        ("e[0]", "e", 10, 10, "expected '[' and the element of e but found ,"),
        ("e[0]", "e[2]", 10, 11, "e has 2 elements, from 0 on"),
        ("Mul(e", "Mul e", 10, 9, "expected '(' but found e"),
        ("# a", "; a", 10, 22, "';' cannot be read here"),
        ("output f = y", "output f y", 12, 10, "expected '=' but found y"),
        ("output f = y", 'output f = "\\ud800"', 12, 12, "this string cannot be read"),
        (
            "output f = y",
            "output f =",
            12,
            11,
            "expected a value's name or %label but found the end",
        ),
    ],
)
def test_mistake_is_found_at_its_line_and_column(
    before: str, after: str, line: int, column: int, words: str
) -> None:
    assert before in TEXT
    with pytest.raises(gw.InvalidRequestError) as refused:
        gw.from_text(TEXT.replace(before, after, 1))
    assert refused.value.reason == "TEXT_INVALID"
    assert refused.value.message.startswith(f"line {line}, column {column}: ")
    assert words in refused.value.message


def test_mutilated_text_is_read_or_refused_in_one_sentence() -> None:
    chance = random.Random(3)
    for _ in range(1500):
        text = list(TEXT)
        for _ in range(chance.randint(1, 3)):
            at = chance.randrange(len(text))
            text[at : at + chance.randint(0, 3)] = chance.choices('[](),=%"@#1-.eE\nx ', k=2)
        with suppress(gw.InvalidRequestError):  # any other error fails
            gw.from_text("".join(text))


@pytest.mark.parametrize("letters", ["a" * 1_000_000, r"\n" * 500_000])
def test_long_strings_cost_a_few_bytes_a_letter(letters: str) -> None:
    text = TEXT.replace("operator_set 28\n", f'operator_set 28\nnote "k" "{letters}"\n')
    tracemalloc.start()
    try:
        found = gw.from_text(text)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found.notes["k"] == letters.replace(r"\n", "\n")
    assert peak < 16 * len(letters)


def test_example_of_the_docs_is_read() -> None:
    docs = (ROOT / "docs" / "files.md").read_text()
    (example,) = re.findall(r"```\n(gradwire text 1\n.*?)```", docs, re.DOTALL)
    assert gw.from_text(example).outputs == ("f", "g")
