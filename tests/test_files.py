"""Graph files: whatever is done to the bytes, the answer is the graph or one clear refusal."""

from __future__ import annotations

import os
import random
import tracemalloc
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from patience import counted_calls
from wire import chain, gate, leaf, neuron

import gradwire as gw
from gradwire import files
from gradwire.v1 import graph_pb2

REASONS = {"FILE_NOT_GRAPH", "FILE_CUT", "FILE_DAMAGED"}


def write(path: Path, graph: graph_pb2.Graph) -> Path:
    files.write(path, graph.SerializeToString(deterministic=True))
    return path


def refusal(path: Path, data: bytes | None = None) -> gw.FileError:
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(gw.FileError) as refused:
        gw.load(path)
    assert str(path) in refused.value.message
    return refused.value


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit >> 3] ^= 1 << (bit & 7)
    return bytes(changed)


def test_every_bit_flip_and_every_cut_of_a_small_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "neuron.gate"
    data = write(path, chain(2)).read_bytes()
    graph = chain(2).SerializeToString(deterministic=True)
    assert gw.load(path).digest == sha256(graph).hexdigest()
    for bit in range(8 * len(data)):
        assert refusal(path, flipped(data, bit)).reason in REASONS
    for size in range(len(data)):
        assert refusal(path, data[:size]).reason == "FILE_CUT"
    for tail in (b"\0", b"\x20\0", data):
        assert refusal(path, data + tail).reason == "FILE_DAMAGED"


def test_bit_flips_and_cuts_of_a_large_file_are_refused(tmp_path: Path) -> None:
    graph = gw.Graph()
    graph.output("f", gw.exp(graph.parameter("w", np.arange(100_000.0))))
    path = tmp_path / "large.gate"
    graph.save(path)
    data = path.read_bytes()
    chance = random.Random(6)
    for _ in range(150):
        assert refusal(path, flipped(data, chance.randrange(8 * len(data)))).reason in REASONS
        assert refusal(path, data[: chance.randrange(len(data))]).reason == "FILE_CUT"


@pytest.mark.parametrize(
    ("data", "reason", "words"),
    [
        (b"", "FILE_CUT", "it ends after 0 bytes"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "FILE_NOT_GRAPH", "it is a PNG image"),
        (b"PK\x03\x04" + bytes(100), "FILE_NOT_GRAPH", "it is a ZIP archive, as .npz"),
        (b"\x80\x02}q\x00.", "FILE_NOT_GRAPH", "it is a Python pickle"),
        (b"\x08\x0a\x12\x07pytorch", "FILE_NOT_GRAPH", "a name that ends in .onnx"),
        (b'\x40\0\0\0\0\0\0\0{"w":{"dtype"', "FILE_NOT_GRAPH", "it is a safetensors file"),
        (b"version https://git-lfs.github.com/spec/v1\n", "FILE_NOT_GRAPH", "run git lfs pull"),
        (b"<!DOCTYPE html><html>", "FILE_NOT_GRAPH", "it is a web page"),
        (b'{"a": 1}', "FILE_NOT_GRAPH", "it is JSON"),
        ("Größe der Zeichnungen".encode(), "FILE_NOT_GRAPH", "it is text"),
        (bytes(range(200, 256)), "FILE_NOT_GRAPH", "it is of no kind known here"),
        (b"gradwire text\n", "FILE_NOT_GRAPH", "read it with gradwire parse"),
        (b"\n\x0egradwire graph\x12\x81\x00\x01", "FILE_DAMAGED", "more digits than it needs"),
        (b"\n\x0egradwire graph\x12\xff\xff\xff\xff\xff\xff", "FILE_DAMAGED", "has no end"),
        (b"\n\x0egradwire graph\x12\xff\xff\xff\xff\x0f", "FILE_CUT", "begins as one of"),
    ],
)
def test_what_is_no_file_says_what_is_wrong(
    data: bytes, reason: str, words: str, tmp_path: Path
) -> None:
    refused = refusal(tmp_path / "no.gate", data)
    assert refused.reason == reason
    assert words in refused.message


def test_newer_format_is_refused_with_both_versions(tmp_path: Path) -> None:
    graph = neuron()
    graph.format_version = 7
    refused = refusal(write(tmp_path / "newer.gate", graph))
    assert refused.reason == "FORMAT_VERSION_UNSUPPORTED"
    assert "format version 7" in refused.message
    assert "reads versions 1 to 1" in refused.message


def test_unknown_features_are_refused_by_name_before_the_version(tmp_path: Path) -> None:
    graph = neuron()
    graph.format_version = 7
    graph.required_features.extend(["teleport", "rewind"])
    refused = refusal(write(tmp_path / "newer.gate", graph))
    assert refused.reason == "FEATURE_UNSUPPORTED"
    assert "requires 'rewind', 'teleport'" in refused.message


def test_pipes_and_folders_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gate")
    for path in (tmp_path / "pipe.gate", tmp_path, Path("/dev/zero"), tmp_path / "none.gate"):
        assert refusal(path).reason == "FILE_INVALID"


def hostile_axes() -> graph_pb2.Graph:
    graph = neuron()
    graph.circuit.inputs.add(layout=1, name="e").type.CopyFrom(leaf("e", None, 1 << 40, 9).type)
    return graph


def hostile_layouts() -> graph_pb2.Graph:
    graph = neuron()
    for number in range(2):
        graph.circuit.inputs.add(layout=1, name=f"e{number}").type.CopyFrom(
            leaf("e", None, 3 << 30).type
        )
    return graph


def hostile_outputs() -> graph_pb2.Graph:
    graph = neuron()
    graph.gates.add(operator="Split", input_count=1, output_count=(1 << 32) - 1)
    graph.circuit.node_gates.extend([5, 5])
    graph.circuit.node_inputs.extend([1, 1])
    return graph


def hostile_inputs() -> graph_pb2.Graph:
    graph = neuron()
    graph.gates.add(operator="Sum", input_count=(1 << 32) - 1, output_count=1)
    graph.circuit.node_gates.extend([5] * 5)
    return graph


def hostile_rows() -> graph_pb2.Graph:
    graph = neuron()
    graph.circuit.node_gates.append((1 << 32) - 1)
    return graph


def hostile_ids() -> graph_pb2.Graph:
    graph = neuron()
    graph.circuit.node_inputs[-1] = 14
    return graph


def hostile_tensor() -> graph_pb2.Graph:
    graph = neuron()
    graph.circuit.inputs[0].value.shape.extend([1 << 62, 0, 1 << 62])
    return graph


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (hostile_axes, "LEAF_INVALID"),
        (hostile_layouts, "LEAF_INVALID"),
        (hostile_outputs, "NODE_INVALID"),
        (hostile_inputs, "NODE_INVALID"),
        (hostile_rows, "NODE_INVALID"),
        (hostile_ids, "NODE_INVALID"),
        (hostile_tensor, "TENSOR_INVALID"),
    ],
)
def test_hostile_graph_is_refused_without_allocating(
    make: object, reason: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "hostile.gate", make())  # type: ignore[operator]
    refusal(path)  # imports what it needs
    tracemalloc.start()
    try:
        assert refusal(path).reason == reason
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_most_values_that_are_allowed_cost_nothing_to_load(tmp_path: Path) -> None:
    graph = neuron()
    graph.circuit.inputs.add(layout=1, name="e").type.CopyFrom(leaf("e", None, 1 << 31).type)
    graph.circuit.node_inputs[:] = [1, 4, 2, 5]  # ids of the nodes move, so the rest goes
    graph.circuit.node_gates[:] = [0, 0]
    path = write(tmp_path / "wide.gate", graph)
    gw.load(path)
    tracemalloc.start()
    try:
        loaded = gw.load(path)
        assert len(loaded.ids_by_name()["e"]) == 1 << 31
        assert loaded.output_dtype("f") == "float64"
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def many(what: str, count: int) -> graph_pb2.Graph:
    """A graph with as many of one thing as its bytes hold, each as small as can be."""
    graph = neuron()
    if what == "rows":
        graph.gates.extend([graph_pb2.Gate(operator="A")] * count)
    elif what == "inputs":
        graph.circuit.inputs.extend(leaf(f"{number:x}") for number in range(count))
        shift = count
        graph.circuit.node_inputs[:] = [
            each + shift if each > 5 else each for each in graph.circuit.node_inputs
        ]
    elif what == "notes":
        graph.notes.extend([graph_pb2.Note(key="n")] * count)
    else:
        graph.gates.append(gate("Sum", count))
        graph.circuit.node_gates.append(5)
        graph.circuit.node_inputs.extend([1] * count)
    return graph


@pytest.mark.parametrize("what", ["rows", "inputs", "notes", "node inputs"])
@pytest.mark.slow
def test_loading_takes_memory_and_calls_in_proportion(what: str, tmp_path: Path) -> None:
    gw.load(write(tmp_path / "few.gate", many(what, 5)))  # imports what is imported on first use
    counts = []
    for count in (5_000, 20_000):
        path = write(tmp_path / "many.gate", many(what, count))
        tracemalloc.start()
        gw.load(path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 150 * path.stat().st_size + (1 << 20)
        with counted_calls() as calls:
            gw.load(path)
        counts.append(calls.count)
    assert counts[1] < 4 * counts[0] + 1000


def test_mutated_graph_in_a_whole_file_is_read_or_refused(tmp_path: Path) -> None:
    """Whoever damages the graph can write its digest, too."""
    chance = random.Random(6)
    path = tmp_path / "mutated.gate"
    opened = 0
    for _ in range(300):
        data = bytearray(neuron().SerializeToString(deterministic=True))
        for _ in range(chance.randint(1, 3)):
            at = chance.randrange(len(data))
            if chance.random() < 0.5:
                data[at] ^= 1 << chance.randrange(8)
            else:
                data[at : at + 1] = chance.choice([b"", b"\xff\xff\xff\xff\x0f", data[at : at + 9]])
        files.write(path, bytes(data))
        try:
            graph = gw.load(path)
        except gw.FileError as refused:
            assert refused.reason not in {"FILE_CUT", "FILE_DAMAGED"}  # noqa: PT017 -- some open
        else:
            opened += 1
            assert gw.from_text(graph.to_text()).outputs == graph.outputs
    assert opened > 20


@pytest.mark.slow
def test_million_gates_are_small_and_loaded_at_once(tmp_path: Path) -> None:
    graph = neuron()
    count = 1_000_000
    graph.circuit.ClearField("named_ids")
    graph.circuit.node_gates[:] = [number % 2 for number in range(count)]
    graph.circuit.node_inputs[:] = [
        each for number in range(count) for each in (6 + number, 1 + number // 2)
    ]
    path = write(tmp_path / "million.gate", graph)
    assert path.stat().st_size < 8_000_000
    with counted_calls(10_000):  # and none for each gate
        assert gw.load(path).node_count == 1_000_000


def test_data_types_of_a_read_graph_are_those_of_the_built_one(tmp_path: Path) -> None:
    graph = gw.Graph()
    x = graph.input("x", (4,), "float32")
    first, second = gw.split(x, num_outputs=2)
    graph.output("first", gw.cast(first, to=7))
    graph.output("second", second)
    graph.output("larger", gw.greater(first, second))
    graph.save(tmp_path / "typed.gate")
    again = gw.load(tmp_path / "typed.gate")
    assert again.dtypes() == graph.dtypes()
    assert [again.output_dtype(name) for name in again.outputs] == ["int64", "float32", "bool"]
