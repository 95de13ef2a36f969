"""The examples do what their texts say; the files in examples/ are what their scripts write."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def run(*command: object, cwd: Path = ROOT) -> str:
    found = subprocess.run(
        [*map(str, command)], capture_output=True, text=True, check=False, timeout=300, cwd=cwd
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


def test_written_files_are_the_committed_ones(tmp_path: Path) -> None:
    script = ROOT / "examples" / "write_sigmoid_neuron.py"
    shutil.copy(script, tmp_path)
    run(sys.executable, tmp_path / script.name)
    for name in ("sigmoid_neuron.gate", "sigmoid_neuron_one_gate.gate"):
        assert (tmp_path / name).read_bytes() == (ROOT / "examples" / name).read_bytes()


def test_training_reaches_its_accuracy() -> None:
    printed = run(sys.executable, "examples/train_digits.py")
    accuracy = re.search(r"test accuracy ([\d.]+) %", printed)
    assert accuracy is not None
    assert float(accuracy[1]) > 95
    assert "time outside the server" in printed


def test_readme_python_example_runs(tmp_path: Path) -> None:
    example = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert example is not None
    (tmp_path / "example.py").write_text(example[1])
    printed = run(sys.executable, "example.py", cwd=tmp_path)
    assert "output grad/w = " in printed


@pytest.mark.skipif(
    shutil.which("npm") is None, reason="the Node client needs Node, which is not installed"
)
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
