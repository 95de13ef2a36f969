"""Gate graphs as ONNX models and back; and the files that models keep their tensors in."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from hashlib import sha1
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from gate_cases import Case, all_cases, is_floating
from onnx.reference import ReferenceEvaluator

import gradwire as gw
from gradwire.onnx.external import load_external
from gradwire.v1 import graph_pb2
from gradwire_server.gates import GATES
from gradwire_server.specs import Tensor

#: Operators that ONNX has in no float64, wholly or for one input: they compute between two Casts.
IN_FLOAT32 = {
    "CausalConvWithState", "DequantizeLinear", "DynamicQuantizeLinear", "LinearAttention",
    "RotaryEmbedding",
}  # fmt: skip
NOT_OF_ONNX = {
    "AssertEqual", "Cofactor", "PaddedNonMaxSuppression", "RoiArgMax", "UniqueInverse",
}  # fmt: skip


@pytest.fixture(scope="module")
def server() -> Iterator[gw.Connection]:
    with gw.local() as connection:
        yield connection


@cache
def by_operator() -> dict[str, list[Case]]:
    return {
        operator: [*cases]
        for operator, cases in groupby(all_cases(), lambda case: case.operator)
        if operator not in NOT_OF_ONNX
    }


def of_float32(value: Any) -> Any:
    """An attribute as ONNX holds it: the shortest number that is the same float32."""
    if isinstance(value, Tensor):
        return np.frombuffer(value.data, value.dtype).reshape(value.shape)
    if isinstance(value, float):
        return float(str(np.float32(value)))
    return tuple(map(of_float32, value)) if isinstance(value, tuple) else value


def graph_of(case: Case) -> tuple[gw.Graph, dict[str, Any]]:
    """One node: floating inputs as inputs, whatever shapes may depend on as constants."""
    graph = gw.Graph()
    given: dict[str, Any] = {}
    handles: list[Any] = []
    declared = case.gate.declared_inputs(len(case.inputs))
    for slot, (x, each) in enumerate(zip(case.inputs, declared, strict=True)):
        if x is None or each.known or x.dtype.kind != "f":
            handles.append(None if x is None else graph.constant(x))
        else:
            given[f"x{slot}"] = x
            handles.append(graph.input(f"x{slot}", x.shape, x.dtype))
    attributes = {name: of_float32(value) for name, value in case.attributes.items()}
    outs = graph.apply(case.operator, handles, attributes, len(case.run()))
    for slot, out in enumerate(outs):
        graph.output(f"y{slot}", out)
    return graph, given


def evaluated(server: gw.Connection, graph: gw.Graph, given: dict[str, Any]) -> gw.Result:
    """Outputs, and gradients where the outputs have any."""
    outs = server.evaluate(graph, given, forward_only=True).outputs
    seeds = {name: np.ones_like(out) for name, out in outs.items() if is_floating(out)}
    return server.evaluate(graph, given, seeds=seeds, forward_only=not seeds)


@pytest.mark.slow
@pytest.mark.parametrize("operator", by_operator())
def test_model_read_back_computes_the_same(server: gw.Connection, operator: str) -> None:
    for case in by_operator()[operator]:
        graph, given = graph_of(case)
        model = gw.to_onnx(graph)
        onnx.checker.check_model(model)
        back = gw.from_onnx(model)
        expected = evaluated(server, graph, given)
        used = {leaf.name for leaf in back.leaves}
        found = evaluated(server, back, {name: x for name, x in given.items() if name in used})
        tolerance = 1e-5 if operator in IN_FLOAT32 else 0
        for name, out in expected.outputs.items():
            assert found.outputs[name].dtype == out.dtype, case
            np.testing.assert_allclose(
                found.outputs[name], out, rtol=tolerance, atol=tolerance, err_msg=str(case)
            )
        assert {*found.gradients} == {*expected.gradients}, case
        for name, gradient in expected.gradients.items():
            np.testing.assert_allclose(
                found.gradients[name], gradient, rtol=10 * tolerance, atol=10 * tolerance,
                err_msg=f"gradient of {name}: {case}",
            )  # fmt: skip


@pytest.mark.parametrize("operator", sorted(NOT_OF_ONNX))
def test_operator_that_onnx_lacks_is_refused_by_name(operator: str) -> None:
    graph, _ = graph_of(next(case for case in all_cases() if case.operator == operator))
    with pytest.raises(gw.UnsupportedError, match=f"has no operator {operator};"):
        gw.to_onnx(graph)


def test_every_other_operator_is_of_onnx() -> None:
    assert {name for name in GATES if not onnx.defs.has(name)} == NOT_OF_ONNX


def neuron() -> gw.Graph:
    """Inputs, parameters, constants of both kinds, names, a symbol, a stored value."""
    graph = gw.Graph()
    x = graph.input("x", ("batch", 3))
    scale = graph.input("scale", value=2.0)
    w = graph.parameter("w", np.arange(6.0).reshape(3, 2) / 6)
    hidden = (x @ w).named("hidden")
    graph.output("sum", gw.reduce_sum(gw.tanh(hidden * scale + 0.5), [1], keepdims=0))
    graph.output("hidden again", hidden)
    return graph


X = np.arange(12.0).reshape(4, 3) - 5


def test_reference_evaluator_computes_the_same(server: gw.Connection) -> None:
    graph = neuron()
    model = gw.to_onnx(graph)
    onnx.checker.check_model(model, full_check=True)
    found = ReferenceEvaluator(model).run(None, {"x": X})
    expected = server.evaluate(graph, {"x": X}, forward_only=True).outputs
    for name, out in zip(expected, found, strict=True):
        np.testing.assert_allclose(out, expected[name], rtol=1e-12)


def test_names_and_kinds_of_leaves_survive() -> None:
    model = gw.to_onnx(neuron())
    assert [each.name for each in model.graph.input] == ["x", "scale"]
    assert {each.name for each in model.graph.initializer} >= {"scale", "w"}
    assert [each.name for each in model.graph.output] == ["sum", "hidden again"]
    assert "hidden" in [name for node in model.graph.node for name in node.output]
    dims = model.graph.input[0].type.tensor_type.shape.dim
    assert (dims[0].dim_param, dims[1].dim_value) == ("batch", 3)
    back = gw.from_onnx(model)
    assert "hidden" in back.ids_by_name()
    assert {leaf.name for leaf in back.leaves if leaf.kind == "parameter"} == {"scale", "w"}


def test_constant_is_not_differentiated_after_a_round_trip(server: gw.Connection) -> None:
    graph = gw.Graph()
    graph.output("f", gw.reduce_sum(graph.input("x", (2,)) * np.array([2.0, 3.0]), keepdims=0))
    back = gw.from_onnx(gw.to_onnx(graph))
    assert [*server.evaluate(back, {"x": [1.0, 1.0]}).gradients] == ["x"]


def test_elements_become_one_input_and_stacked_scalars_one_output(server: gw.Connection) -> None:
    graph = gw.Graph()
    a, b, c = graph.elements("x", 3)
    graph.output("f", a * b, gw.sin(c), a)
    model = gw.to_onnx(graph)
    onnx.checker.check_model(model, full_check=True)
    x, seed = np.array([2.0, 3.0, 0.5]), np.array([1.0, -2.0, 4.0])
    expected = server.evaluate(graph, {"x": x}, seeds={"f": seed})
    found = server.evaluate(gw.from_onnx(model), {"x": x}, seeds={"f": seed})
    np.testing.assert_array_equal(found["f"].value, expected["f"].value)
    np.testing.assert_array_equal(found["x"].gradient, expected["x"].gradient)
    np.testing.assert_array_equal(
        ReferenceEvaluator(model).run(None, {"x": x})[0], [6, np.sin(0.5), 2]
    )


def test_value_inside_yields_its_name_to_an_output(server: gw.Connection) -> None:
    graph = gw.Graph()
    x = graph.input("x")
    graph.output("f", gw.exp(gw.sin(x).named("f")))
    back = gw.from_onnx(gw.to_onnx(graph))
    assert server.evaluate(back, {"x": 0.5})["f"].value == np.exp(np.sin(0.5))


def test_output_with_the_name_of_another_leaf_is_refused() -> None:
    graph = gw.Graph()
    graph.output("x", gw.exp(graph.input("x")))
    with pytest.raises(gw.InvalidRequestError, match="another value than the input") as refused:
        gw.to_onnx(graph)
    assert refused.value.reason == "NAME_INVALID"


def test_leaf_may_be_an_output_twice(server: gw.Connection) -> None:
    graph = gw.Graph()
    x = graph.input("x")
    for name in ("x", "same", "again"):
        graph.output(name, x)
    model = gw.to_onnx(graph)
    onnx.checker.check_model(model)
    outs = server.evaluate(gw.from_onnx(model), {"x": 3.0}, forward_only=True).outputs
    assert {name: float(out) for name, out in outs.items()} == {"x": 3, "same": 3, "again": 3}


def test_number_that_no_attribute_of_onnx_can_hold_is_refused() -> None:
    graph = gw.Graph()
    graph.output("f", gw.leaky_relu(graph.input("x"), alpha=1e300))
    with pytest.raises(gw.InvalidRequestError, match="'alpha' is 1e\\+300, but ONNX's are float32"):
        gw.to_onnx(graph)


def test_rank_that_onnx_does_not_infer_is_the_planners() -> None:
    graph = gw.Graph()
    x = graph.input("x", ("batch", 4, 3))
    graph.output("y", gw.group_normalization(x, np.ones(4), np.zeros(4), num_groups=2))
    model = gw.to_onnx(graph)
    onnx.checker.check_model(model)
    assert len(model.graph.output[0].type.tensor_type.shape.dim) == 3


def test_operator_that_onnx_has_in_float32_only_computes_between_casts() -> None:
    graph = gw.Graph()
    x = graph.input("x", (1, 1, 1, 4))
    table = np.ones((1, 1, 2))
    graph.output("y", gw.rotary_embedding(x, table, table))
    model = gw.to_onnx(graph)
    onnx.checker.check_model(model, full_check=True)
    made = [node.op_type for node in model.graph.node if node.op_type != "Constant"]
    assert made == ["Cast", "RotaryEmbedding", "Cast"]  # constants are converted as written
    assert model.graph.output[0].type.tensor_type.elem_type == onnx.TensorProto.DOUBLE


def test_backward_pass_is_a_model_that_others_can_run(server: gw.Connection) -> None:
    graph = neuron()
    backward = gw.gradient_graph(graph, ["w"], sizes={"batch": 4}, server=server)
    model = gw.to_onnx(backward)
    onnx.checker.check_model(model, full_check=True)
    seeds = {"sum": np.arange(4.0), "hidden again": np.ones((4, 2))}
    given = {"x": X, **{f"grad/{name}": seed for name, seed in seeds.items()}}
    found = ReferenceEvaluator(model).run(["grad/w"], given)[0]
    expected = server.evaluate(graph, {"x": X}, seeds=seeds)["w"].gradient
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_without_the_package_onnx_it_is_one_sentence() -> None:
    program = "import sys; sys.modules['onnx'] = None; from gradwire.cli import main; main()"
    found = subprocess.run(
        [sys.executable, "-c", program, "show", "model.onnx"],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert found.returncode == 1
    assert found.stderr == (
        "gradwire: ONNX models need the package onnx: pip install 'gradwire[onnx]'\n"
    )


@pytest.mark.parametrize(
    ("reason", "change"),
    [
        (
            "NODE_INVALID",
            lambda message: set_forward(message, "RandomNormalLike"),
        ),  # which is no gate
        ("OUTPUT_INVALID", lambda message: message.circuit.outputs[0].value_ids.append(99)),
        ("OUTPUT_INVALID", lambda message: message.circuit.outputs[0].ClearField("value_ids")),
        ("NAME_INVALID", lambda message: message.circuit.named_ids.__setitem__(0, 99)),
        ("ATTRIBUTE_INVALID", lambda message: set_alpha(message, string_value="steep")),
        ("OPERATOR_SET_UNSUPPORTED", lambda message: set_alpha(message, name="beta")),
        ("INPUT_COUNT_INVALID", lambda message: set_counts(message, 0, 1)),
        ("OUTPUT_COUNT_INVALID", lambda message: set_counts(message, 1, 2)),
    ],
)
def test_graph_that_no_server_would_take_is_refused(
    reason: str, change: Callable[[graph_pb2.Graph], None]
) -> None:
    graph = gw.Graph()
    y = gw.leaky_relu(graph.input("x"), alpha=0.5).named("y")
    graph.output("f", gw.leaky_relu(y, alpha=0.25))
    message = graph_pb2.Graph.FromString(graph.to_bytes())
    change(message)
    with pytest.raises(gw.GradwireError) as refused:
        gw.to_onnx(gw.Graph.from_bytes(message.SerializeToString()))
    assert refused.value.reason == reason


def set_alpha(message: graph_pb2.Graph, **fields: Any) -> None:
    message.gates[0].attributes[0].MergeFrom(graph_pb2.Attribute(**fields))


def set_forward(message: graph_pb2.Graph, operator: str) -> None:
    message.gates[0].operator = operator
    message.circuit.node_inputs[0] = 3


def set_counts(message: graph_pb2.Graph, inputs: int, outputs: int) -> None:
    message.gates[0].input_count, message.gates[0].output_count = inputs, outputs
    if not inputs:
        del message.circuit.node_inputs[0]


def test_ten_thousand_gates_keep_their_order_and_count() -> None:
    graph = gw.Graph()
    x = graph.input("x")
    y = x
    for _ in range(5_000):
        y = gw.sin(y * x)
    graph.output("f", y)
    model = gw.to_onnx(graph)
    assert len(model.graph.node) == graph.node_count
    assert [node.op_type for node in model.graph.node[:4]] == ["Mul", "Sin"] * 2
    assert model.graph.node[-1].output[0] == "f"


# -- files --------------------------------------------------------------------------------------


def large() -> gw.Graph:
    graph = gw.Graph()
    w = graph.parameter("w", np.arange(600.0).reshape(300, 2))
    b = graph.parameter("b", np.arange(400, dtype="float32"))
    x = graph.input("x", (300,))
    graph.output("f", x @ w)
    graph.output("g", b * 2)
    return graph


@pytest.mark.parametrize("external", [False, True])
def test_file_has_what_the_graph_has(server: gw.Connection, tmp_path: Path, external: bool) -> None:
    graph, path = large(), tmp_path / "model.onnx"
    model = gw.to_onnx(graph, path, external_data=external)
    expected = ["model.onnx", "model.onnx.data"] if external else ["model.onnx"]
    assert sorted(each.name for each in tmp_path.iterdir()) == expected
    onnx.checker.check_model(path)
    loaded = onnx.load(path)  # onnx's own reader of external data
    for found, tensor in zip(loaded.graph.initializer, model.graph.initializer, strict=True):
        assert found.raw_data == tensor.raw_data
    seeds = {"f": [1.0, -1.0]}
    given = {"x": np.ones(300)}
    back = server.evaluate(gw.from_onnx(path), given, seeds=seeds)
    np.testing.assert_array_equal(
        back["w"].gradient, server.evaluate(graph, given, seeds=seeds)["w"].gradient
    )


def test_tensors_go_beside_a_model_that_would_be_too_large_to_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gradwire.onnx.writing._MOST_INSIDE", 6000)
    gw.to_onnx(large(), tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx.data").stat().st_size == 2 * 4096 + 1600  # in whole pages
    assert (tmp_path / "model.onnx").stat().st_size < 1000


def test_file_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(gw.FileError, match=r"model\.onnx: cannot be written: No such file"):
        gw.to_onnx(large(), tmp_path / "nowhere" / "model.onnx")


def external(folder: Path, **entries: Any) -> onnx.ModelProto:
    """A model with one tensor of 4 float32 in the file "data", which has 32 bytes."""
    (folder / "data").write_bytes(np.arange(8, dtype="<f4").tobytes())
    tensor = onnx.TensorProto(name="w", data_type=onnx.TensorProto.FLOAT, dims=[4])
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in {"location": "data", "offset": 8, "length": 16, **entries}.items():
        if value is not None:
            tensor.external_data.add(key=key, value=str(value))
    model = onnx.ModelProto()
    model.graph.initializer.add().CopyFrom(tensor)
    return model


def loaded(model: onnx.ModelProto, folder: Path) -> list[float]:
    load_external(model, folder)
    tensor = model.graph.initializer[0]
    assert tensor.data_location == onnx.TensorProto.DEFAULT
    assert not tensor.external_data
    numbers: list[float] = onnx.numpy_helper.to_array(tensor).tolist()
    return numbers


def test_external_tensor_is_read_at_its_offset(tmp_path: Path) -> None:
    assert loaded(external(tmp_path), tmp_path) == [2, 3, 4, 5]
    assert loaded(external(tmp_path, offset=16, length=None), tmp_path) == [4, 5, 6, 7]
    digest = sha1((tmp_path / "data").read_bytes(), usedforsecurity=False).hexdigest()
    assert loaded(external(tmp_path, checksum=digest.upper()), tmp_path) == [2, 3, 4, 5]


def test_link_inside_the_folder_is_followed(tmp_path: Path) -> None:
    model = external(tmp_path, location="parts/link")
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "link").symlink_to(tmp_path / "data")
    assert loaded(model, tmp_path) == [2, 3, 4, 5]


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"location": None}, "says no location"),
        ({"location": ""}, "is not a relative path inside"),
        ({"location": "."}, "is not a relative path inside"),
        ({"location": "/etc/passwd"}, "is not a relative path inside"),
        ({"location": "../data"}, "is not a relative path inside"),
        ({"location": "parts/../../data"}, "is not a relative path inside"),
        ({"location": "..\\data"}, "is not a relative path inside"),
        ({"location": "C:\\data"}, "is not a relative path inside"),
        ({"location": "da\0ta"}, "is not a relative path inside"),
        ({"location": "nowhere"}, "cannot be found in .*: No such file"),
        ({"location": "n" * 5000}, "cannot be found in .*: File name too long"),
        ({"location": "leaves"}, "is a link that leaves the model's folder, to /"),
        ({"location": "folder/leaves"}, "is a link that leaves the model's folder, to /"),
        ({"location": "device"}, "is a link that leaves the model's folder, to /dev/zero"),
        ({"location": "loop"}, "cannot be found in"),
        ({"location": "folder"}, "cannot be read: Is a directory"),
        ({"location": "pipe"}, "is not a regular file"),
        ({"offset": -1}, "the offset of its external data is '-1', which is no count of bytes"),
        ({"offset": "1e3"}, "the offset .* is '1e3'"),
        ({"offset": "9" * 100}, "the offset .* is '9999"),
        ({"length": "٣"}, "the length .* which is no count of bytes"),
        ({"offset": 24}, "is said to be 16 bytes from 24 on in 'data', which has 32 bytes"),
        ({"offset": 1 << 60}, f"16 bytes from {1 << 60} on in 'data', which has 32 bytes"),
        ({"offset": 40, "length": None}, "0 bytes from 40 on in 'data', which has 32 bytes"),
        ({"length": 12}, "need 16 bytes but it has 12 in 'data'"),
        ({"length": None}, "need 16 bytes but it has 24 in 'data'"),
        ({"checksum": "0" * 40}, "'data' has SHA-1 [0-9a-f]{40}, but the model says 0{40};"),
    ],
)  # fmt: skip
def test_hostile_external_data_is_refused(
    tmp_path: Path, entries: dict[str, Any], words: str
) -> None:
    folder = tmp_path / "model"
    (folder / "folder").mkdir(parents=True)
    (tmp_path / "data").write_bytes(bytes(64))
    (folder / "leaves").symlink_to(tmp_path / "data")
    (folder / "folder" / "leaves").symlink_to("../../data")
    (folder / "device").symlink_to("/dev/zero")
    (folder / "loop").symlink_to("loop")
    os.mkfifo(folder / "pipe")
    with pytest.raises(gw.InvalidRequestError, match=f"tensor 'w': .*{words}"):
        load_external(external(folder, **entries), folder)


def test_location_that_is_no_text_is_refused(tmp_path: Path) -> None:
    data = external(tmp_path, location="Latin").SerializeToString()
    model = onnx.ModelProto.FromString(data.replace(b"Latin", b"L\xe4nge"))
    with pytest.raises(gw.FileError, match=r"'w': its external data b.* is not UTF-8"):
        load_external(model, tmp_path)


def test_entry_given_twice_is_refused(tmp_path: Path) -> None:
    model = external(tmp_path)
    model.graph.initializer[0].external_data.add(key="offset", value="0")
    with pytest.raises(gw.FileError, match="says 'offset' of its external data twice"):
        load_external(model, tmp_path)


@pytest.mark.parametrize(
    ("dims", "dtype", "words"),
    [
        ([1 << 40, 1 << 40], "FLOAT", f"need {4 << 80} bytes but it has 16"),
        ([-4], "FLOAT", re.escape("has shape [-4], but no size is negative")),
        ([4], "STRING", "has data type STRING, which cannot be kept in a file"),
        ([4], "UNDEFINED", "has data type UNDEFINED, which cannot be kept in a file"),
        ([33], "INT4", "need 17 bytes but it has 16"),
    ],
)
def test_shape_and_type_are_checked_before_anything_is_read(
    tmp_path: Path, dims: list[int], dtype: str, words: str
) -> None:
    model = external(tmp_path)
    tensor = model.graph.initializer[0]
    tensor.dims[:] = dims
    tensor.data_type = onnx.TensorProto.DataType.Value(dtype)
    with pytest.raises(gw.InvalidRequestError, match=words) as refused:
        load_external(model, tmp_path)
    assert refused.value.reason == "TENSOR_INVALID"


def test_small_file_does_not_become_a_large_model(tmp_path: Path) -> None:
    model = external(tmp_path)
    for _ in range(20):
        model.graph.initializer.add().CopyFrom(model.graph.initializer[0])
    with pytest.raises(gw.FileError, match="need 272 bytes, but the files they name have 32"):
        load_external(model, tmp_path)


def in_subgraph(model: onnx.ModelProto, tensor: onnx.TensorProto) -> onnx.TensorProto:
    branch = model.graph.node.add(op_type="If").attribute.add(name="then_branch")
    branch.g.initializer.add().CopyFrom(tensor)
    return branch.g.initializer[0]


def in_function(model: onnx.ModelProto, tensor: onnx.TensorProto) -> onnx.TensorProto:
    attribute = model.functions.add().node.add(op_type="Constant").attribute.add(name="value")
    attribute.t.CopyFrom(tensor)
    return attribute.t


def in_list(model: onnx.ModelProto, tensor: onnx.TensorProto) -> onnx.TensorProto:
    attribute = model.graph.node.add(op_type="Own").attribute.add(name="all")
    attribute.tensors.add().CopyFrom(tensor)
    return attribute.tensors[0]


def in_sparse(model: onnx.ModelProto, tensor: onnx.TensorProto) -> onnx.TensorProto:
    sparse = model.graph.sparse_initializer.add()
    sparse.values.CopyFrom(tensor)
    return sparse.values


@pytest.mark.parametrize("put", [in_subgraph, in_function, in_list, in_sparse])
def test_external_tensor_is_found_anywhere(
    tmp_path: Path, put: Callable[[onnx.ModelProto, onnx.TensorProto], onnx.TensorProto]
) -> None:
    model = onnx.ModelProto()
    tensor = put(model, external(tmp_path).graph.initializer[0])
    load_external(model, tmp_path)
    assert onnx.numpy_helper.to_array(tensor).tolist() == [2, 3, 4, 5]
