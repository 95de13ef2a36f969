"""The command line, run as a newcomer runs it."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from math import exp
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from patience import PATIENCE

import gradwire as gw
from gradwire.cli import main

ROOT = Path(__file__).parent.parent
NEURON = ROOT / "examples" / "sigmoid_neuron.gate"
ONE_GATE = ROOT / "examples" / "sigmoid_neuron_one_gate.gate"
W, X = (2.0, -3.0, -3.0), (-1.0, -2.0)


Finished = subprocess.CompletedProcess[str]


def gradwire(*arguments: object, **environment: str) -> Finished:
    """The command, in this process."""
    command = [*map(str, arguments)]
    found = CliRunner().invoke(main, command, env=environment)
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception
    return Finished(command, found.exit_code, found.stdout, found.stderr)


def process(*arguments: object) -> Finished:
    """The command as users start it."""
    command = [sys.executable, "-m", "gradwire.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)


def slope_at(w: tuple[float, ...], x: tuple[float, ...]) -> tuple[float, float]:
    f = 1 / (1 + exp(-(w[0] * x[0] + w[1] * x[1] + w[2])))
    return f, (1 - f) * f


@pytest.mark.parametrize("file", [NEURON, ONE_GATE], ids=["primitive", "one-gate"])
def test_eval_json_has_the_numbers_of_the_formula(file: Path) -> None:
    found = json.loads(process("eval", file, "--json").stdout)
    f, slope = slope_at(W, X)
    assert found["outputs"]["f"] == pytest.approx(f, rel=1e-12)
    expected = {
        "w0": slope * X[0],
        "w1": slope * X[1],
        "w2": slope,
        "x0": slope * W[0],
        "x1": slope * W[1],
    }
    assert found["gradients"] == pytest.approx(expected, rel=1e-12)
    rounded = {name: round(gradient, 2) for name, gradient in found["gradients"].items()}
    assert rounded == {"w0": -0.20, "w1": -0.39, "w2": 0.20, "x0": 0.39, "x1": -0.59}
    node = found["nodes"][-1]
    assert node["gradient"] == 1
    assert {*node} == {"id", "name", "operator", "value", "gradient"}


def test_set_takes_numbers_lists_and_files(tmp_path: Path) -> None:
    np.save(tmp_path / "w0.npy", np.float64(1.0))
    found = gradwire(
        "eval", NEURON, "--set", "x0=0.5", "--set", f"w0=@{tmp_path / 'w0.npy'}", "--json"
    )
    f, _ = slope_at((1.0, *W[1:]), (0.5, X[1]))
    assert json.loads(found.stdout)["outputs"]["f"] == pytest.approx(f, rel=1e-12)


@pytest.mark.slow
def test_progress_is_shown_on_a_terminal_where_it_is_long(tmp_path: Path) -> None:
    graph = gw.Graph()
    x = graph.input("x", value=0.5)
    for _ in range(20_000):
        x = gw.sin(x)
    graph.output("f", x)
    graph.save(tmp_path / "long.gate")
    terminal, stderr = pty.openpty()
    command = [sys.executable, "-m", "gradwire.cli", "eval", str(tmp_path / "long.gate"), "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr) as running:
        os.close(stderr)
        shown = b""
        while b"evaluating" not in shown:
            shown += os.read(terminal, 1 << 16)
        assert running.stdout is not None
        found = json.load(running.stdout)
    os.close(terminal)
    assert running.returncode == 0
    quiet = json.loads(gradwire("eval", tmp_path / "long.gate", "--json").stdout)
    assert found == quiet


def test_progress_is_not_shown_elsewhere() -> None:
    found = process("eval", NEURON, "--json")
    assert not found.stderr


def test_colours_tell_values_from_gradients_from_what_was_not_computed(tmp_path: Path) -> None:
    graph = gw.Graph()
    x = graph.input("x", value=2.0)
    graph.output("f", gw.where((x > 1).named("condition"), x, 0.0))
    graph.save(tmp_path / "choice.gate")
    coloured = gradwire("eval", tmp_path / "choice.gate", FORCE_COLOR="1", COLUMNS="100").stdout
    (condition,) = (line for line in coloured.splitlines() if "condition" in line)
    assert "\x1b[32mTrue\x1b[0m" in condition
    assert "\x1b[2mnot computed\x1b[0m" in condition
    (leaf,) = (line for line in coloured.splitlines() if "input" in line)
    assert "\x1b[32m2\x1b[0m" in leaf
    assert "\x1b[31m1\x1b[0m" in leaf


def test_table_shows_every_node() -> None:
    printed = gradwire("eval", NEURON).stdout
    assert "w0*x0 + w1*x1 + w2" in printed
    assert "Reciprocal" in printed
    assert "output f = 0.731059" in printed


def test_text_is_edited_and_read_back(tmp_path: Path) -> None:
    text, file = tmp_path / "neuron.txt", tmp_path / "neuron.gate"
    text.write_text(gradwire("show", "--text", NEURON).stdout)
    printed = gradwire("parse", text, "-o", file).stdout
    assert file.read_bytes() == NEURON.read_bytes()
    assert gw.load(NEURON).digest in printed
    text.write_text(text.read_text().replace("Reciprocal(", "Sqrt("))
    assert "digest" in gradwire("parse", text).stdout
    assert file.read_bytes() == NEURON.read_bytes()
    text.write_text(text.read_text().replace("Sqrt(", "Sqrt(,"))
    assert "neuron.txt: line 20, column 12: expected" in gradwire("parse", text).stderr


def test_diff_tells_by_its_exit_code() -> None:
    assert gradwire("diff", NEURON, NEURON).returncode == 0
    found = gradwire("diff", NEURON, ONE_GATE)
    assert found.returncode == 1
    assert "+ %10 = Sigmoid(w0*x0 + w1*x1 + w2)" in found.stdout
    found = gradwire("diff", NEURON, "nowhere.gate")
    assert found.returncode == 2
    assert found.stderr == "gradwire: nowhere.gate: cannot be read: No such file or directory\n"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["eval", "nowhere.gate"], 1, "nowhere.gate: cannot be read: No such file"),
        (["eval", __file__], 1, "is not a graph file"),
        (["eval", NEURON, "--set", "w9=1"], 1, "no input or parameter 'w9'; did you mean 'w"),
        (["eval", NEURON, "--set", "w0=[1, 2]"], 1, "declared with shape () but bound to"),
        (["eval", NEURON, "--set", "w0=@nowhere.npy"], 1, "nowhere.npy cannot be read"),
        (["eval", NEURON, "--set", f"w0=@{__file__}"], 1, "is no .npy file of numbers, or is cut"),
        (["eval", NEURON, "--seed", "g=1"], 1, "there is no output 'g' to seed"),
        (["eval", NEURON, "--seed", "f"], 2, "write NAME=VALUE, such as --seed"),
        (["eval", NEURON, "--set", "w0"], 2, "write NAME=VALUE"),
        (["eval", NEURON, "--set", "w0=two"], 2, "'two' is not a number"),
        (["eval", NEURON, "--set", "w0=null"], 2, "'null' is not a number"),
        (["eval", NEURON, "--set", "w0=" + "[" * 9999], 2, "is not a number, a JSON list"),
        (["eval", NEURON, "--seed", 'f="a"'], 1, "seed of output 'f': is 'a', which is no number"),
        (["eval", NEURON, "--server", "127.0.0.1:1"], 1, "no server answers at 127.0.0.1:1"),
        (["gates", "Sigmoi"], 1, "there is no gate 'Sigmoi'; did you mean 'Sigmoid'?"),
        (["eval", "nowhere.onnx"], 1, "nowhere.onnx: cannot be read: No such file"),
        (["convert", "nowhere.onnx", "a.gate"], 1, "nowhere.onnx: cannot be read: No such file"),
        (["convert", "nowhere.gate", "a.onnx"], 1, "nowhere.gate: cannot be read: No such file"),
        (["convert", NEURON, "/nowhere/a.onnx"], 1, "/nowhere/a.onnx: cannot be written: No such"),
        (["convert", NEURON, "a.gate"], 2, "one must end in .onnx, the other in .gate"),
        (["convert", NEURON, "a.onnx", "--size", "n=2"], 2, "--size is for ONNX models"),
        (["convert", "a.onnx", "a.gate", "--size", "n=two"], 2, "write SYMBOL=N"),
        (["convert", "a.onnx", "a.gate", "--fix", "n"], 2, "write NAME=VALUE, such as --fix x"),
        (["show", NEURON, "--parameters", "all"], 2, "--parameters is for ONNX models"),
        (["eval", "x=2 * x", "--shape", "x=2"], 2, "--shape is for ONNX models"),
        (["show", "a.onnx", "--shape", "x"], 2, "write NAME=N,N,?, such as --shape x=1,3,?,?"),
        (["parse", "nowhere.txt"], 1, "nowhere.txt: cannot be read: No such file"),
        (["parse", NEURON], 1, "is not text; gradwire show --text prints"),
        (["parse", __file__], 1, "line 1, column 1: expected the line 'gradwire text 1'"),
        (["serve", "--listen", "nowhere.invalid:1"], 1, "cannot listen on nowhere.invalid:1"),
        (["serve", "--listen", "127.0.0.1:65536"], 1, "cannot listen on 127.0.0.1:65536"),
        (
            ["serve", "--listen", "127.0.0.1:65536", "--workers", 2],
            1,
            "cannot listen on 127.0.0.1:65536",
        ),
        (["serve", "--max-nodes", "0"], 2, "max-nodes"),
    ],
)
def test_error_is_one_sentence(arguments: list[object], code: int, words: str) -> None:
    found = process(*arguments) if "serve" in arguments else gradwire(*arguments)
    assert found.returncode == code
    assert words in found.stderr
    assert "Traceback" not in found.stderr
    assert not found.stdout
    if code == 1:
        assert found.stderr.count("\n") == 1


@pytest.mark.slow
def test_graph_is_converted_to_onnx_and_back(tmp_path: Path) -> None:
    model, back = tmp_path / "neuron.onnx", tmp_path / "neuron.gate"
    made = gradwire("convert", NEURON, model)
    assert made.stdout == f"{model}: 8 nodes, 0 parameters, operator set 28 -> 28\n"
    assert gradwire("convert", model, back).returncode == 0
    f, slope = slope_at(W, X)
    for file in (model, back):
        found = json.loads(gradwire("eval", file, "--json").stdout)
        assert found["outputs"]["f"] == pytest.approx(f, rel=1e-12)
        assert found["gradients"]["w0"] == pytest.approx(slope * X[0], rel=1e-12)
    assert "w0*x0 = Mul(w0, x0)" in gradwire("show", model).stdout


def test_commands_say_which_constants_are_parameters_and_what_shapes_are(tmp_path: Path) -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17]> g (float[a] x) => (float[b] y)
        { w = Constant<value = float[2, 2] {1, 2, 3, 4}>()  y = MatMul(x, w) }"""
    )
    model.graph.input[0].type.tensor_type.ClearField("shape")
    onnx.save(model, tmp_path / "model.onnx")
    told = gradwire("show", tmp_path / "model.onnx", "--shape", "x=?,2").stdout
    assert "input x: float32[x.0, 2]" in told
    assert "parameter w: float32[2, 2]" in told
    kept = gradwire(
        "show", tmp_path / "model.onnx", "--shape", "x=?,2", "--parameters", "initializers"
    )
    assert "parameter" not in kept.stdout
    assert kept.returncode == 0
    refused = gradwire("show", tmp_path / "model.onnx")
    assert "give its shape as shapes={'x': ...}" in refused.stderr


def test_convert_binds_sizes_and_fixes_inputs(tmp_path: Path) -> None:
    graph = gw.Graph()
    x, shape = graph.input("x", ("n", 2)), graph.input("shape", (1,), "int64")
    graph.output("f", gw.reshape(x, shape))
    model, target = tmp_path / "model.onnx", tmp_path / "model.gate"
    gw.to_onnx(graph, model)
    made = gradwire("convert", model, target, "--size", "n=3", "--fix", "shape=[6]")
    assert made.stdout == f"{target}: 1 nodes, 0 parameters, operator set 28 -> 28\n"
    assert "input x: float64[3, 2]" in gradwire("show", target).stdout
    refused = gradwire("convert", model, target, "--size", "m=3")
    assert refused.returncode == 1
    assert "no input has an axis 'm'; there are ['n']" in refused.stderr
    refused = gradwire("convert", model, target, "--fix", "shape=[6.5]")
    assert refused.returncode == 1
    assert "input 'shape': its fixed value: has elements that int64 cannot hold" in refused.stderr


def test_outputs_of_many_elements_are_seeded(tmp_path: Path) -> None:
    graph = gw.Graph()
    x = graph.input("x", (3,), "float32")
    graph.output("y", x * x)
    graph.save(tmp_path / "squares.gate")
    command = ["eval", tmp_path / "squares.gate", "--json", "--set", "x=[1, 2, 3]"]
    assert "give a seed of shape (3,)" in gradwire(*command).stderr
    for seed, expected in (("2", [4, 8, 12]), ("[1, 0, -1]", [2, 0, -6])):
        found = gradwire(*command, "--seed", f"y={seed}")
        assert json.loads(found.stdout)["gradients"]["x"] == expected


def test_show_prints_the_graph() -> None:
    printed = gradwire("show", NEURON).stdout
    assert "8 nodes, digest " in printed
    assert "w0*x0 = Mul(w0, x0)" in printed


def test_gates_lists_the_catalogue() -> None:
    assert len(gradwire("gates").stdout.splitlines()) >= 80
    assert "(1 - out) * out" in gradwire("gates", "Sigmoid").stdout
    found = json.loads(gradwire("gates", "Sigmoid", "--json").stdout)
    assert found["gates"][0]["operator"] == "Sigmoid"


def test_help_loads_neither_numpy_nor_grpc() -> None:
    program = (
        "import sys; from gradwire.cli import main; main(['--help'], standalone_mode=False); "
        "sys.exit(bool({'numpy', 'grpc', 'rich', 'google', 'onnx'} & {*sys.modules}))"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)


MASK = """<ir_version: 8, opset_import: ["" : 17]>
g (float[n] x) => (float y) <float zero = {0}> {
  m = Greater(x, zero) i = NonZero(m) j = Transpose(i) p = GatherND(x, j) q = Mul(p, p)
  y = ReduceSum<keepdims = 0>(q) }"""


def test_every_command_that_opens_a_model_takes_its_options(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    model, gate, at = tmp_path / "mask.onnx", tmp_path / "mask.gate", ["--at", "x=[1, -2, 3]"]
    onnx.save(onnx.parser.parse_model(MASK), model)
    refused = gradwire("show", model)
    assert refused.returncode == 1
    assert "--at x=" in refused.stderr
    assert gradwire("convert", model, gate, *at).returncode == 0
    assert "AssertEqual" in gradwire("show", model, *at, "--size", "n=3").stdout
    assert not gradwire("diff", model, gate, *at).returncode
    assert not gradwire("check", model, *at).returncode
    shown = gradwire("eval", model, *at, "--json")
    assert json.loads(shown.stdout)["gradients"]["x"] == [2.0, 0.0, 6.0]
    elsewhere = gradwire("eval", model, *at, "--set", "x=[1, 2, 3]")
    assert elsewhere.returncode == 1
    assert "node 'i' (NonZero) is [True, True, True] but was [True, False" in elsewhere.stderr
    fixed = json.loads(gradwire("eval", model, "--fix", at[1], "--json").stdout)
    assert fixed["gradients"] == {}  # "zero" decides how many elements there are
    assert gradwire("eval", "a*b", *at).returncode == 2
