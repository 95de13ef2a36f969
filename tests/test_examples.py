"""The examples do what their texts say; the files in examples/ are what their scripts write."""

from __future__ import annotations

import io
import json
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from patience import PATIENCE

import gradwire as gw

ROOT = Path(__file__).parent.parent


def run(*command: object, cwd: Path = ROOT) -> str:
    found = subprocess.run(
        [*map(str, command)], capture_output=True, text=True, check=False, timeout=PATIENCE, cwd=cwd
    )
    assert found.returncode == 0, found.stderr
    return found.stdout


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    command = [sys.executable, "-m", "gradwire.cli", "serve", "--listen", "127.0.0.1:0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().split()[-1]
        process.terminate()


@pytest.mark.parametrize("script", ["write_sigmoid_neuron.py", "write_deep_models.py"])
def test_written_files_are_the_committed_ones(tmp_path: Path, script: str) -> None:
    shutil.copy(ROOT / "examples" / script, tmp_path)
    run(sys.executable, tmp_path / script)
    written = [path for path in tmp_path.iterdir() if path.suffix != ".py"]
    assert len(written) >= 2
    for path in written:
        assert path.read_bytes() == (ROOT / "examples" / path.name).read_bytes()


@pytest.mark.slow
def test_training_reaches_its_accuracy() -> None:
    printed = run(sys.executable, "examples/train_digits.py")
    accuracy = re.search(r"test accuracy ([\d.]+) %", printed)
    assert accuracy is not None
    assert float(accuracy[1]) > 95
    assert "time outside the server" in printed


def find_bad_gradient(*words: object) -> tuple[object, str, str]:
    """The script's exit status (None is success), what it printed, and its errors.

    Without a process of its own: `test_output_in_the_docs_is_what_is_printed` starts one.
    """
    status, printed, said = None, io.StringIO(), io.StringIO()
    command = ["examples/find_bad_gradient.py", *map(str, words)]
    argv, caught = patch.object(sys, "argv", command), redirect_stderr(said)
    with chdir(ROOT), argv, redirect_stdout(printed), caught:
        try:
            runpy.run_path(command[0], run_name="__main__")
        except SystemExit as end:
            status = end.code
    if isinstance(status, str):  # as Python says it at its end
        said.write(status)
    return status, printed.getvalue(), said.getvalue()


def bad_gradient_found(*words: object) -> str:
    """What it prints where it succeeds."""
    status, printed, said = find_bad_gradient(*words)
    assert status in (None, 0), said
    return printed


def found_in(model: str, folder: Path, x: Any, *options: str) -> dict[str, Any]:
    """What find_bad_gradient says of one of the deep models at x."""
    np.save(folder / "x.npy", x)
    words = [f"examples/{model}", "--json", "--set", f"x=@{folder / 'x.npy'}", *options]
    found: dict[str, Any] = json.loads(bad_gradient_found(*words))
    return found


def norms_of_layers(model: str, x: Any, activation: str) -> Iterator[tuple[str, float]]:
    """Gradients of the mean of a network's last layer, by hand: their norms, last node first."""
    message = onnx.load(ROOT / "examples" / model)
    stored = {each.name: numpy_helper.to_array(each) for each in message.graph.initializer}
    layers = len(stored) // 2
    taken, products, given = [], [], np.float64(x)
    for layer in range(layers):
        taken.append(given)
        products.append(given @ stored[f"w{layer}"] + stored[f"b{layer}"])
        given = np.maximum(products[-1], 0)
        if activation == "sigmoid":
            given = 1 / (1 + np.exp(-products[-1]))
    grad = np.full(given.shape, 1 / given.size)
    yield "loss", 1.0
    for layer in reversed(range(layers)):
        yield f"{activation}{layer}", float(np.linalg.norm(grad))
        slope = np.float64(products[layer] > 0)
        if activation == "sigmoid":
            out = 1 / (1 + np.exp(-products[layer]))
            slope = out * (1 - out)
        grad = grad * slope
        yield f"dense{layer}", float(np.linalg.norm(grad))
        yield f"w{layer}", float(np.linalg.norm(taken[layer].T @ grad))
        grad = grad @ stored[f"w{layer}"].T
    yield "x", float(np.linalg.norm(grad))


X = np.random.default_rng(1).normal(size=(8, 16)).astype(np.float32)


def test_first_node_where_a_gradient_vanishes_is_found(tmp_path: Path) -> None:
    found = found_in("deep_vanishing.onnx", tmp_path, X)
    expected = dict(norms_of_layers("deep_vanishing.onnx", X, "sigmoid"))
    gradients = {each["name"]: each["gradient"] for each in found["nodes"]}
    for name, norm in expected.items():
        assert gradients[name]["norm"] == pytest.approx(norm, rel=1e-4), name
    first = next(name for name, norm in expected.items() if norm < 1e-6)
    (finding,) = found["findings"]
    assert (finding["name"], finding["operator"], finding["fault"]) == (first, "Gemm", "vanishes")
    maker = first.replace("dense", "sigmoid")
    assert f"{maker!r} (Sigmoid) made it from a gradient with norm " in finding["sentence"]
    assert found_in("deep_vanishing.onnx", tmp_path, X, "--below", "1e-30")["findings"] == []


def test_first_node_and_parameter_where_a_gradient_explodes_are_found(tmp_path: Path) -> None:
    found = found_in("deep_exploding.onnx", tmp_path, X)["findings"]
    norms = list(norms_of_layers("deep_exploding.onnx", X, "relu"))
    parameter = next(name for name, norm in norms if name[0] == "w" and norm > 1e3)
    node = next(name for name, norm in norms if name[0] != "w" and norm > 1e3)
    assert [(each["name"], each["fault"]) for each in found] == [
        (parameter, "explodes"),
        (node, "explodes"),
    ]


def test_first_nodes_with_infinite_and_nan_gradients_are_found(tmp_path: Path) -> None:
    found = found_in("deep_nan.onnx", tmp_path, X)
    infinite, nan = found["findings"]
    assert (infinite["name"], nan["name"]) == ("sums", "difference")
    assert "with 8 infinite elements; 'distances' (Sqrt) made it" in infinite["sentence"]
    assert "input 'sums' from 0 to " in infinite["sentence"]
    assert "with 128 NaN elements; 'squares' (Mul) made it" in nan["sentence"]
    values = [each["value"] for each in found["nodes"]]
    assert not any(each["nan_count"] or each["infinity_count"] for each in values)


def test_first_value_that_is_not_finite_is_found(tmp_path: Path) -> None:
    x = X.copy()
    x[2, 3] = np.inf
    finding = found_in("deep_vanishing.onnx", tmp_path, x)["findings"][0]
    assert (finding["of"], finding["name"], finding["fault"]) == ("value", "x", "is infinite")


def test_first_node_that_a_gradient_of_0_reaches_is_found(tmp_path: Path) -> None:
    graph = gw.Graph()
    x = graph.input("x", shape=(2,), value=[-1.0, -2.0])
    graph.output("y", gw.reduce_sum(gw.relu((2 * x).named("double")).named("dead")))
    graph.save(tmp_path / "dead.gate")
    (finding,) = json.loads(bad_gradient_found(tmp_path / "dead.gate", "--json"))["findings"]
    assert finding["sentence"] == (
        "'double' (Mul): the gradient is 0 here first; 'dead' (Relu) made it from a gradient with "
        "norm 1.41, at its input 'double' from -4 to -2."
    )


def test_scalars_masks_and_exponents_are_left_aside(tmp_path: Path) -> None:
    graph = gw.Graph()
    x = graph.input("x", (3,))
    tiny = graph.parameter("scale", 1e9)
    mask = graph.parameter("mask", [0.0, -np.inf, 0.0])
    exponent = graph.parameter("exponent", [2.0, 3.0, 4.0])
    weight = graph.parameter("weight", [1e9, 1e9, 1e9])
    shares = gw.softmax(x + mask)
    graph.output("y", gw.reduce_sum(shares**exponent * weight / tiny, keepdims=0))
    graph.save(tmp_path / "settings.gate")
    words = [tmp_path / "settings.gate", "--above", "1e-12", "--json"]
    found = json.loads(bad_gradient_found(*words))
    faulty = {node["name"] for node in found["nodes"] if node["fault"]}
    assert "weight" in faulty
    assert not faulty & {"scale", "mask", "exponent"}
    assert not {each["name"] for each in found["findings"]} & {"scale", "mask", "exponent"}


@pytest.mark.parametrize(
    "model", ["examples/sigmoid_neuron.gate", "tests/models/sklearn_logistic_regression.onnx"]
)
def test_a_gradient_that_is_well_is_called_well(model: str) -> None:
    printed = " ".join(bad_gradient_found(model).split())
    assert "Nothing is wrong: no gradient is below 1e-06 or above 1000 of the seed's" in printed


def test_what_cannot_be_evaluated_is_said_in_a_sentence(tmp_path: Path) -> None:
    for options, sentence in (
        (["--size", "bacth=2"], "no input has an axis 'bacth'; did you mean 'batch'?"),
        (["--set", "y=1"], "there is no input or parameter 'y'"),
        (["--set", f"x=@{tmp_path}/none.npy"], "write NAME=VALUE, with a number, a JSON list or"),
        (["--random-seed", "-1"], "-1 is no whole number from 0 on"),
    ):
        status, _, said = find_bad_gradient("examples/deep_nan.onnx", *options)
        assert status not in (None, 0)
        assert sentence in said


def test_output_in_the_docs_is_what_is_printed() -> None:
    text = (ROOT / "docs" / "onnx.md").read_text()
    example = re.search(r"```text\n\$ (python examples/find_bad.*?)\n(.*?)```", text, re.DOTALL)
    assert example is not None
    command, expected = example[1].split()[1:], example[2]
    printed = [line.rstrip() for line in run(sys.executable, *command).splitlines()]
    head, tail = expected.rstrip().split("\n...\n")
    assert printed[: len(head.splitlines())] == head.splitlines()
    assert printed[-len(tail.splitlines()) :] == tail.splitlines()


def test_readme_python_examples_run(tmp_path: Path) -> None:
    """The one with a server, and the one without, which goes on from there."""
    examples = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (tmp_path / "example.py").write_text("".join(examples[:2]))
    printed = run(sys.executable, "example.py", cwd=tmp_path)
    assert "output grad/w = " in printed
    assert "0.7310585786300049 -0.19661193324148" in printed


@pytest.mark.skipif(
    shutil.which("npm") is None, reason="the Node client needs Node, which is not installed"
)
@pytest.mark.slow
def test_node_client_needs_only_the_proto_files(tmp_path: Path, address: str) -> None:
    node = tmp_path / "clients" / "node"
    shutil.copytree(ROOT / "clients" / "node", node, ignore=shutil.ignore_patterns("node_modules"))
    shutil.copytree(ROOT / "proto", tmp_path / "proto")
    run("npm", "install", "--silent", "--no-audit", "--no-fund", cwd=node)
    printed = run("node", "evaluate.mjs", ROOT / "examples/sigmoid_neuron.gate", address, cwd=node)
    assert "output f = 0.7310585786300049" in printed
    assert "gradient x1 = -0.5898357997244" in printed
    refused = subprocess.run(
        ["node", "evaluate.mjs", ROOT / "examples/sigmoid_neuron.gate", address, "w=1"],
        capture_output=True,
        text=True,
        check=False,
        cwd=node,
    )
    assert refused.returncode == 1
    assert "there is no input or parameter 'w'" in refused.stderr
