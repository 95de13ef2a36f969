"""Compiled convolution and pooling say what array_windows.py says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gate_cases import Case, all_cases
from test_gradient_graph import label

from gradwire_server import arrays
from gradwire_server.engine import windows
from gradwire_server.gates.windows import Windows, place_windows

CASES = [
    case
    for case in all_cases()
    if case.operator in ("Conv", "ConvTranspose", "MaxPool")
    and str(case.inputs[0].dtype) in ("float32", "float64")
]


def test_compiled_loops_are_loaded() -> None:
    assert windows.namespace() is not arrays


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", CASES, ids=label)
def test_every_case_has_the_numbers_of_the_reference(case: Case, dtype: str) -> None:
    inputs = tuple(None if each is None else each.astype(dtype) for each in case.inputs)
    case = Case(case.operator, inputs, case.attributes)
    found = numbers(windows.namespace(), case)
    tolerance = 1e-12 if dtype == "float64" else 1e-5
    for own, expected in zip(found, numbers(arrays, case), strict=True):
        assert own.dtype == expected.dtype
        np.testing.assert_allclose(own, expected, rtol=tolerance, atol=tolerance, err_msg=str(case))


def numbers(xp: Any, case: Case) -> list[Any]:
    """Outputs and gradients, computed in a namespace."""
    attributes = case.gate.complete(case.attributes)
    out = case.gate.forward(xp, *case.inputs, **attributes)
    outs = [each() if callable(each) else each for each in (out if type(out) is tuple else (out,))]
    first = np.cos(outs[0])
    if len(outs) == 1:
        pulled = case.gate.vjp(xp, first, outs[0], *case.inputs, **attributes)
    else:
        pulled = case.gate.vjp(xp, (first, None), tuple(outs), *case.inputs, **attributes)
    grads = [each() if callable(each) else each for each in pulled if each is not None]
    return [*outs, *grads]


@pytest.mark.parametrize("seed", range(40))
def test_windows_anywhere_have_the_numbers_of_the_reference(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, placed = drawn(rng)
    features = int(rng.integers(1, 4))
    w = rng.standard_normal((features, x.shape[1], *placed.kernel))
    grad = rng.standard_normal((len(x), features, *placed.counts))
    for each in (x, w, grad):
        each.flags.writeable = False  # as a request's arrays are
    own = windows.namespace()
    for name, given in (
        ("convolve", (x, w, placed)),
        ("convolve_transposed", (grad, w, placed, x.shape[2:])),
        ("convolve_weights", (x, grad, placed)),
    ):
        found, expected = getattr(own, name)(*given), getattr(arrays, name)(*given)
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("seed", range(40))
def test_ties_and_nan_go_to_the_same_elements(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, placed = drawn(rng)
    x = rng.integers(0, 3, x.shape).astype("float64")
    x[rng.random(x.shape) < 0.1] = np.nan
    x[rng.random(x.shape) < 0.3] = -np.inf
    x.flags.writeable = False  # as a request's arrays are
    own = windows.namespace()
    largest = arrays.max_windows(x, placed)
    np.testing.assert_array_equal(own.argmax_windows(x, placed), arrays.argmax_windows(x, placed))
    grad = rng.standard_normal(largest.shape)
    found = own.spread_largest(grad, largest, x, placed)
    np.testing.assert_allclose(found, arrays.spread_largest(grad, largest, x, placed), atol=1e-12)


def drawn(rng: np.random.Generator) -> tuple[Any, Windows]:
    """A tensor and windows over its last one, two or three axes."""
    rank = int(rng.integers(1, 4))
    sizes, kernel = rng.integers(0, 12, rank), rng.choice([1, 2, 3, 9], rank)
    dilations = rng.integers(1, 3, rank)
    missing = np.maximum(0, (kernel - 1) * dilations + 1 - sizes)  # for a window to fit
    placed = place_windows(
        tuple(sizes.tolist()),
        tuple(kernel.tolist()),
        strides=tuple(rng.integers(1, 4, rank).tolist()),
        dilations=tuple(dilations.tolist()),
        pads=(*rng.integers(0, 9, rank).tolist(), *(missing + rng.integers(0, 3, rank)).tolist()),
        auto_pad="NOTSET",
    )
    images, channels = rng.integers(1, 4, 2).tolist()
    return rng.standard_normal((images, channels, *sizes)), placed


def test_large_overlapping_windows_are_left_to_the_reference() -> None:
    placed = place_windows(
        (40, 40), (20, 20), strides=None, dilations=None, pads=None, auto_pad="NOTSET"
    )
    x = np.random.default_rng(0).standard_normal((1, 2, 40, 40))
    np.testing.assert_array_equal(
        windows.namespace().argmax_windows(x, placed), arrays.argmax_windows(x, placed)
    )
