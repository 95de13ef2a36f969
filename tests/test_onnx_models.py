"""Models of other exporters: their frameworks' outputs, and gradients of all parameters."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import pytest

import gradwire as gw

MODELS = Path(__file__).parent / "models"
#: Ends of the names of parameters that a framework does not train: torch writes GroupNorm as
#: InstanceNormalization by ones and zeros, which are constants in weight slots.
NOT_TRAINED = ("running_mean", "running_var", "/Constant_1_output_0", "/Constant_2_output_0")
NAMES = sorted(path.stem for path in MODELS.glob("*.onnx"))


@pytest.fixture(scope="module")
def server() -> Iterator[gw.Connection]:
    with gw.local() as connection:
        yield connection


def of_kind(kind: str, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {
        name.removeprefix(f"{kind}:"): array
        for name, array in arrays.items()
        if name.startswith(f"{kind}:")
    }


def check(server: gw.Connection, graph: gw.Graph, arrays: dict[str, np.ndarray]) -> None:
    """Outputs, and gradients of every parameter, as the framework has them."""
    result = server.evaluate(graph, of_kind("input", arrays), seeds=of_kind("seed", arrays))
    parameters = {leaf.name for leaf in graph.leaves if leaf.kind == "parameter"}
    expected = of_kind("gradient", arrays)
    assert {*expected} <= parameters
    assert all(name.endswith(NOT_TRAINED) for name in parameters - {*expected})
    for found, wanted in (
        *((result.outputs[name], out) for name, out in of_kind("output", arrays).items()),
        *((result.gradients[name], gradient) for name, gradient in expected.items()),
    ):
        tolerance = 2e-5 if wanted.dtype == np.float32 else 1e-8
        assert found.shape == wanted.shape
        np.testing.assert_allclose(found, wanted, rtol=0, atol=tolerance * np.abs(wanted).max())


def test_there_are_models_of_two_exporters() -> None:
    producers = {onnx.load(MODELS / f"{name}.onnx").producer_name for name in NAMES}
    assert producers >= {"pytorch", "skl2onnx"}
    assert len(NAMES) >= 12


@pytest.mark.parametrize("name", NAMES)
def test_model_has_its_frameworks_outputs_and_gradients(server: gw.Connection, name: str) -> None:
    arrays = dict(np.load(MODELS / f"{name}.npz"))
    check(server, gw.from_onnx(MODELS / f"{name}.onnx"), arrays)


@pytest.mark.parametrize("name", NAMES)
def test_model_written_again_has_them_too(server: gw.Connection, name: str) -> None:
    arrays = dict(np.load(MODELS / f"{name}.npz"))
    model = gw.to_onnx(gw.from_onnx(MODELS / f"{name}.onnx"))
    onnx.checker.check_model(model, full_check=True)
    check(server, gw.from_onnx(model), arrays)


@pytest.mark.slow
@pytest.mark.skipif(
    not all(map(find_spec, ("torch", "onnxscript", "skl2onnx"))),
    reason="torch, onnxscript and skl2onnx make the models; they are no dependencies of the tests",
)
def test_models_made_anew_agree_too(server: gw.Connection, tmp_path: Path) -> None:
    subprocess.run([sys.executable, MODELS / "make.py", tmp_path], check=True, capture_output=True)
    assert sorted(path.stem for path in tmp_path.glob("*.onnx")) == NAMES
    for name in NAMES:
        check(
            server, gw.from_onnx(tmp_path / f"{name}.onnx"), dict(np.load(tmp_path / f"{name}.npz"))
        )
