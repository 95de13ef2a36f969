"""Convolution and pooling promise more than other gates: memory, ties, and plain ONNX gradients."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import onnx
import pytest
from gate_cases import Case, all_cases
from test_gradient_graph import label, one_node

from gradwire_server import array_windows, arrays
from gradwire_server.engine.symbolic import gradient_graph
from gradwire_server.errors import Invalid
from gradwire_server.gates import GATES, windows
from gradwire_server.gates.windows import LARGEST, Windows, gathered_elements, place_windows
from gradwire_server.limits import Limits
from gradwire_server.specs import TensorSpec

CONVOLUTIONS = [case for case in all_cases() if case.operator in ("Conv", "ConvTranspose")]
POOLS = [case for case in all_cases() if case.operator == "MaxPool"]
WINDOWED = [case for case in all_cases() if "kernel_shape" in case.attributes]


def numbers(case: Case) -> list[Any]:
    (out,) = case.run()
    return [out, *(each for each in case.pull((np.cos(out),)) if each is not None)]


@pytest.mark.parametrize("case", CONVOLUTIONS, ids=label)
def test_image_too_large_to_gather_has_the_same_numbers(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    gathered = numbers(case)
    monkeypatch.setattr(windows, "MOST_GATHERED", 0)
    for found, expected in zip(numbers(case), gathered, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", CONVOLUTIONS, ids=label)
def test_images_taken_one_at_a_time_have_the_same_numbers(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = numbers(case)
    monkeypatch.setattr(windows, "GATHERED", 1)
    for found, expected in zip(numbers(case), together, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "case", [case for case in WINDOWED + CONVOLUTIONS if case.inputs[0].size], ids=label
)
def test_gradient_graph_is_made_of_onnx_operators(case: Case) -> None:
    known = {schema.name for schema in onnx.defs.get_all_schemas() if not schema.domain}
    graph = gradient_graph(one_node(case), (), {}, Limits())
    for row in graph.rows:
        assert row.operator in known
        steps = zip(
            row.attributes.get("output_padding", ()),
            row.attributes.get("strides", ()),
            row.attributes.get("dilations", (1,) * 9),
            strict=False,
        )
        assert all(padding < max(stride, dilation) for padding, stride, dilation in steps)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("group", [1, 2])
def test_convolution_and_its_gradients_are_those_of_jax(dtype: str, group: int) -> None:
    rng = np.random.default_rng(5)
    x = rng.standard_normal((3, 4, 9, 8)).astype(dtype)
    w = rng.standard_normal((6, 4 // group, 3, 2)).astype(dtype)
    case = Case("Conv", (x, w), {"group": group, "strides": (2, 1), "pads": (1, 0, 2, 1),
                                 "dilations": (1, 3)})  # fmt: skip
    (out,) = case.run()
    grad = rng.standard_normal(out.shape).astype(dtype)

    def peer(x: Any, w: Any) -> Any:
        return jax.lax.conv_general_dilated(
            x, w, (2, 1), [(1, 2), (0, 1)], rhs_dilation=(1, 3), feature_group_count=group,
            precision="highest",
        )  # fmt: skip

    with jax.enable_x64(True):
        expected, pull = jax.vjp(peer, x, w)
        to_x, to_w = pull(jax.numpy.asarray(grad))
    tolerance = 1e-12 if dtype == "float64" else 2e-4
    for found, peers in zip((out, *case.pull((grad,))), (expected, to_x, to_w), strict=True):
        np.testing.assert_allclose(found, peers, rtol=tolerance, atol=tolerance)


def test_first_of_equal_elements_is_the_largest_whatever_the_padding() -> None:
    x = np.zeros((1, 1, 3, 3))
    how: dict[str, Any] = {"kernel_shape": (2, 2), "pads": (1, 1, 1, 1)}
    _, indices = Case("MaxPool", (x,), how).run()
    expected = [[0, 0, 1, 2], [0, 0, 1, 2], [3, 3, 4, 5], [6, 6, 7, 8]]
    assert indices[0, 0].tolist() == expected


def test_nan_is_the_largest_element_and_gets_the_gradient() -> None:
    x = np.array([[[1.0, np.nan, 3.0, np.nan]]])
    case = Case("MaxPool", (x,), {"kernel_shape": (4,)})
    out, indices = case.run()
    assert np.isnan(out[0, 0, 0])
    assert indices[0, 0, 0] == 1
    (to_x,) = case.pull((np.ones((1, 1, 1)), None))
    assert to_x[0, 0].tolist() == [0.0, 1.0, 0.0, 0.0]


@pytest.mark.parametrize("case", POOLS, ids=label)
def test_largest_elements_of_a_large_kernel_get_the_same_gradient(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    grads = (np.cos(case.run()[0]), None)
    (one_by_one,) = case.pull(grads)
    monkeypatch.setattr(array_windows, "_FEW", 0)
    (found,) = case.pull(grads)
    np.testing.assert_array_equal(found, one_by_one)


def test_kernel_far_larger_than_the_tensor_costs_no_time() -> None:
    huge = 10**9
    placed = place_windows(
        (3,), (huge,), strides=(huge - 3,), dilations=None, pads=(huge - 1, huge - 2),
        auto_pad="NOTSET",
    )  # fmt: skip
    x = np.array([[[1.0, 2.0, 4.0]]])
    assert placed.counts == (2,)
    assert arrays.sum_windows(x, placed).tolist() == [[[1.0, 7.0]]]
    assert arrays.max_windows(x, placed).tolist() == [[[1.0, 4.0]]]
    assert arrays.argmax_windows(x, placed).tolist() == [[[0, 2]]]


@pytest.mark.parametrize("name", ["kernel", "strides", "dilations", "pads"])
def test_places_that_would_not_fit_in_64_bits_are_refused(name: str) -> None:
    how: dict[str, Any] = {"kernel": (1,), "strides": None, "dilations": None, "pads": (5, 0)}
    how[name] = (1 << 62,) * len(how[name] or (1,))
    with pytest.raises(Invalid, match="must be 2147483647 or less everywhere"):
        place_windows((3,), auto_pad="NOTSET", **how)


def test_convolution_of_no_bytes_counts_no_windows() -> None:
    x, w = np.zeros((0, 1, 3), np.uint8), np.zeros((1, 1, 1), np.uint8)
    gate = GATES["ConvInteger"]
    found = gate.forward(arrays, x, w, **gate.complete({"pads": (10**9, 0)}))
    assert found.shape == (0, 1, 10**9 + 3)


def test_memory_for_a_convolution_of_bytes_is_counted_in_bytes() -> None:
    shapes = ((8, 16, 64), (32, 16, 3))
    x, w = (TensorSpec(shape, "int8") for shape in shapes)
    one, scale = TensorSpec((), "int8"), TensorSpec((), "float32")
    quantized, plain = GATES["QLinearConv"], GATES["ConvInteger"]
    given = (x, scale, one, w, scale, one, scale, one)
    held = plain.scratch((TensorSpec((8, 32, 62), "int32"),), x, w, **plain.complete({})).forward
    out = TensorSpec((8, 32, 62), "int8")
    found = quantized.scratch((out,), *given, **quantized.complete({})).forward
    assert held <= found <= 3 * held


def test_padding_before_a_window_is_not_held() -> None:
    far = LARGEST - 3
    x, w = np.array([[[1.0, 2.0, 4.0]]]), np.ones((1, 1, 1))
    placed = place_windows(
        (3,), (1,), strides=(LARGEST,), dilations=None, pads=(far, 0), auto_pad="NOTSET"
    )
    assert gathered_elements(x.shape, placed) is None
    assert arrays.convolve(x, w, placed).tolist() == [[[0.0]]]


@pytest.mark.parametrize("dtype", ["float64", "int8"])
def test_the_lowest_number_is_the_largest_element_where_there_is_no_other(dtype: str) -> None:
    lowest = -np.inf if dtype == "float64" else -128
    x = np.full((1, 1, 4), lowest, dtype)
    _, indices = Case("MaxPool", (x,), {"kernel_shape": (2,), "pads": (1, 1)}).run()
    assert indices.tolist() == [[[0, 0, 1, 2, 3]]]


def test_large_kernel_over_no_elements_has_no_gradient() -> None:
    x = np.zeros((1, 2, 0))
    case = Case("MaxPool", (x,), {"kernel_shape": (70,), "pads": (40, 40)})
    grads = np.ones(case.run()[0].shape)
    assert case.pull((grads, None))[0].shape == x.shape


def test_spread_is_the_adjoint_of_sum() -> None:
    rng = np.random.default_rng(6)
    placed = Windows((3, 2), (2, 1), (1, 2), (1, 0), (0, 1), (3, 4))
    x = rng.standard_normal((2, 3, 6, 5))
    grad = rng.standard_normal((2, 3, 3, 4))
    left = np.sum(arrays.sum_windows(x, placed) * grad)
    right = np.sum(x * arrays.spread_windows(grad, placed, (6, 5)))
    assert left == pytest.approx(right, rel=1e-12)
