"""Quantized models with straight_through have the gradients of the layers they approximate."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

import gradwire as gw

NUMBERS = np.random.default_rng(0)
X = (NUMBERS.normal(size=(2, 3)) * 2).astype(np.float32)
W = NUMBERS.integers(-127, 128, (3, 2)).astype(np.int8)


def model(body: str) -> onnx.ModelProto:
    text = f'<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>\n{body}'
    found: onnx.ModelProto = onnx.parser.parse_model(text)
    return found


def gradients(given: onnx.ModelProto, x: Any = X) -> Any:
    """Gradients with straight_through; the values are bit by bit those without it."""
    plain = gw.Evaluator(gw.from_onnx(given), {"x": x}, forward_only=True).outputs
    seeds = {name: np.ones_like(each) for name, each in plain.items() if each.dtype.kind == "f"}
    found = gw.Evaluator(gw.from_onnx(given, straight_through=True), {"x": x}, seeds=seeds)
    for name, each in plain.items():
        assert found.outputs[name].tobytes() == each.tobytes()
    return found.gradients


def of_weights(weights: Any = W) -> str:
    return ", ".join(map(str, weights.reshape(-1).tolist()))


DYNAMIC = f"""g (float[2, 3] x) => (float[2, 2] y)
    <int8[3, 2] w = {{{of_weights()}}}, int8 z = {{0}}, float s = {{0.01}}> {{
    q, scale, zero = DynamicQuantizeLinear(x)
    product = MatMulInteger(q, w, zero, z)
    whole = Cast<to = 1>(product)
    both = Mul(scale, s)
    y = Mul(whole, both) }}"""


def test_a_dynamically_quantized_layer_has_the_gradient_of_the_layer() -> None:
    expected = np.ones((2, 2)) @ (W * 0.01).T
    np.testing.assert_allclose(gradients(model(DYNAMIC))["x"], expected, rtol=1e-5)


def test_without_it_the_gradient_is_that_of_the_gates() -> None:
    seeds = {"y": np.ones((2, 2), np.float32)}
    found = gw.Evaluator(gw.from_onnx(model(DYNAMIC)), {"x": X}, seeds=seeds).gradients["x"]
    assert np.count_nonzero(found) == 2  # through the scale, at the least and the largest element


def test_two_layers_and_what_moves_integers_pass_the_gradient_on() -> None:
    given = model(
        f"""g (float[2, 3] x) => (float[2, 2] y)
        <int8[3, 2] w = {{{of_weights()}}}, float s = {{0.05}}, uint8 z = {{100}},
         float t = {{0.02}}, int8 none = {{0}}, int64[2] flat = {{3, 2}}> {{
        q = QuantizeLinear(x, s, z)
        turned = Transpose(q)
        same = Reshape(turned, flat)
        back = Transpose(same)
        d = DequantizeLinear(back, s, z)
        v = DequantizeLinear(w, t, none)
        hidden = MatMul(d, v)
        again = QuantizeLinear(hidden, s, z)
        y = DequantizeLinear(again, s, z) }}"""
    )
    inside = np.abs(np.round(X / 0.05)) <= 100  # of 0 to 255 around 100
    hidden = np.clip(np.round(X / 0.05) + 100, 0, 255).astype(np.float64) * 0.05 - 5
    product = np.round(hidden @ (W * 0.02) / 0.05) + 100
    seed = ((product >= 0) & (product <= 255)).astype(np.float64)
    np.testing.assert_allclose(gradients(given)["x"], seed @ (W * 0.02).T * inside, rtol=1e-5)


def test_outside_the_range_the_gradient_is_zero() -> None:
    given = model(
        """g (float[5] x) => (float[5] y) <float s = {0.1}, int8 z = {0}>
        { q = QuantizeLinear(x, s, z)  y = DequantizeLinear(q, s, z) }"""
    )
    x = np.float32([-100, -12.8, 0.04, 12.7, 12.8])
    found = gradients(given, x)
    np.testing.assert_array_equal(found["x"], [0, 1, 1, 1, 0])
    expected = np.float64([-128, 0, 0 - 0.4, 0, 127])  # what was rounded away, or the bound
    np.testing.assert_allclose(found["s"], expected.sum(), rtol=1e-4)


@pytest.mark.parametrize(
    ("scale", "layout"), [("float[3] s = {0.1, 0.2, 0.3}", "axis = 1"),
                          ("float[2] s = {0.1, 0.2}", "axis = 0"),
                          ("float[2, 1] s = {0.1, 0.2}", "axis = 1, block_size = 3")]
)  # fmt: skip
def test_scales_of_an_axis_or_of_blocks_pass_the_gradient_on(scale: str, layout: str) -> None:
    given = model(
        f"""g (float[2, 3] x) => (float[2, 3] y) <{scale}>
        {{ q = QuantizeLinear<{layout}, output_dtype = 3>(x, s)
           d = DequantizeLinear<{layout}>(q, s)  y = Mul(d, d) }}"""
    )
    found = gw.Evaluator(gw.from_onnx(given), {"x": X}, forward_only=True).outputs["y"]
    np.testing.assert_allclose(gradients(given)["x"], 2 * np.sign(X) * np.sqrt(found), rtol=1e-5)


def test_rounding_has_the_gradient_of_the_identity() -> None:
    given = model(
        """g (float[2, 3] x) => (float[2, 3] y) {
        r = Round(x)  f = Floor(x)  c = Ceil(x)  i = Cast<to = 6>(x)  two = Add(i, i)
        t = Cast<to = 1>(two)  y = Sum(r, f, c, t) }"""
    )
    np.testing.assert_array_equal(gradients(given)["x"], np.full((2, 3), 5))


def test_a_quantized_convolution_has_the_gradient_of_the_convolution() -> None:
    numbers = NUMBERS.integers(-128, 127, (2, 1, 2, 2))
    x = NUMBERS.normal(size=(1, 1, 4, 4)).astype(np.float32)
    given = model(
        f"""g (float[1, 1, 4, 4] x) => (float[1, 2, 3, 3] y)
        <int8[2, 1, 2, 2] w = {{{of_weights(numbers)}}}, int8[2] z = {{1, -2}},
         float s = {{0.1}}> {{
        q, scale, zero = DynamicQuantizeLinear(x)
        product = ConvInteger(q, w, zero, z)
        whole = Cast<to = 1>(product)  both = Mul(scale, s)  y = Mul(whole, both) }}"""
    )
    real = (numbers - np.reshape([1, -2], (2, 1, 1, 1))) * 0.1
    plain = model(
        f"""g (float[1, 1, 4, 4] x) => (float[1, 2, 3, 3] y)
        <float[2, 1, 2, 2] w = {{{of_weights(real)}}}> {{ y = Conv(x, w) }}"""
    )
    np.testing.assert_allclose(gradients(given, x)["x"], gradients(plain, x)["x"], rtol=1e-5)


def test_products_of_quantized_matrices_have_the_gradient_of_the_product() -> None:
    weights = (W // 16).astype(np.int8)
    given = model(
        f"""g (float[2, 3] x) => (float[2, 2] y)
        <int8[3, 2] w = {{{of_weights(weights)}}}, float s = {{0.05}}, uint8 z = {{128}},
         float t = {{0.1}}, int8 none = {{0}}> {{
        q = QuantizeLinear(x, s, z)
        p = QLinearMatMul(q, s, z, w, t, none, t, z)
        y = DequantizeLinear(p, t, z) }}"""
    )
    np.testing.assert_allclose(
        gradients(given)["x"], np.ones((2, 2)) @ (weights * 0.1).T, rtol=1e-5
    )


def test_operators_of_microsoft_pass_the_gradient_on() -> None:
    given = model(
        f"""g (float[2, 3] x) => (float[2, 2] y)
        <int8[3, 2] w = {{{of_weights()}}}, float[1] s = {{0.01}}>
        {{ y = com.microsoft.DynamicQuantizeMatMul(x, w, s) }}"""
    )
    np.testing.assert_allclose(gradients(given)["x"], np.ones((2, 2)) @ (W * 0.01).T, rtol=1e-5)
