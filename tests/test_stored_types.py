"""Data types of 8, 4 and 2 bits: numbers are stored in them, and computed with in others."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import product
from math import inf, nan
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from gate_cases import Case, cases_of
from onnx.reference.ops.op_cast import cast_to

import gradwire as gw
from gradwire import tensors
from gradwire.cli import main
from gradwire.v1 import tensor_pb2
from gradwire_server import arrays
from gradwire_server.codec.tensors import decode_tensor
from gradwire_server.errors import Invalid
from gradwire_server.gates import GATES
from gradwire_server.specs import (
    FLOAT8S,
    ONNX_NUMBERS,
    SHORT_INTEGERS,
    STORED,
    USED_BITS,
)

POWERS, FLOAT4 = "float8_e8m0fnu", "float4_e2m1fn"
ROUNDED = (*FLOAT8S, FLOAT4)
EVERY = pytest.mark.parametrize("dtype", STORED)
F32, F64, INT32 = (ONNX_NUMBERS[dtype] for dtype in ("float32", "float64", "int32"))


def codes(dtype: str) -> Any:
    """Every element that there is, in the order of their bits."""
    return np.arange(1 << USED_BITS.get(dtype, 8), dtype=np.uint8).view(dtype)


def bits(array: Any) -> list[int]:
    found: list[int] = np.asarray(array).view(np.uint8).reshape(-1).tolist()
    return found


@pytest.fixture(scope="module")
def server() -> Iterator[gw.Connection]:
    with gw.local() as connection:
        yield connection


#: Bits of exponent and mantissa, and the bias.
LAYOUTS = {
    "float8_e4m3fn": (4, 3, 7), "float8_e4m3fnuz": (4, 3, 8), "float8_e5m2": (5, 2, 15),
    "float8_e5m2fnuz": (5, 2, 16), FLOAT4: (2, 1, 1),
}  # fmt: skip


def meaning(code: int, dtype: str) -> float:
    """What an element's bits say, by the definition of its data type."""
    if dtype in SHORT_INTEGERS:
        width = USED_BITS[dtype]
        return code - (1 << width) * (dtype.startswith("int") and code >> (width - 1))
    if dtype == POWERS:
        return nan if code == 0xFF else 2.0 ** (code - 127)
    exponent_bits, mantissa_bits, bias = LAYOUTS[dtype]
    sign = -1.0 if code >> (exponent_bits + mantissa_bits) else 1.0
    exponent = code >> mantissa_bits & ((1 << exponent_bits) - 1)
    mantissa = code & ((1 << mantissa_bits) - 1)
    if dtype.endswith("fnuz") and code == 0x80:
        return nan
    if dtype == "float8_e4m3fn" and code & 0x7F == 0x7F:
        return nan
    if dtype == "float8_e5m2" and exponent == 31:
        return nan if mantissa else sign * inf
    fraction = mantissa / (1 << mantissa_bits)
    if not exponent:
        return float(sign * fraction * 2.0 ** (1 - bias))
    return float(sign * (1 + fraction) * 2.0 ** (exponent - bias))


@EVERY
@pytest.mark.parametrize("to", ["float64", "float32", "float16", "bfloat16", "int64"])
def test_every_code_is_the_number_that_its_bits_say(dtype: str, to: str) -> None:
    given = codes(dtype)
    expected = np.array([meaning(code, dtype) for code in range(len(given))])
    if to == "int64":
        kept = np.abs(expected) < 2.0**63  # what is beyond is undefined
        given, expected = given[kept], expected[kept]
    with np.errstate(over="ignore"):
        rounded = arrays.astype(expected, to)
    found = arrays.astype(given, to)
    assert str(found.dtype) == to
    np.testing.assert_array_equal(found.astype(np.float64), rounded.astype(np.float64))


@EVERY
@pytest.mark.parametrize("through", ["float64", "float32"])
@pytest.mark.parametrize(("saturate", "mode"), [*product((True, False), ("up", "down", "nearest"))])
def test_every_code_comes_back(dtype: str, through: str, saturate: bool, mode: str) -> None:
    given = codes(dtype)
    wide = arrays.astype(given, through)
    back = arrays.store(wide, dtype, saturate, mode)
    kept = ~(np.isinf(wide) & saturate)
    assert (np.isnan(back.astype(np.float64)) == np.isnan(wide)).all()
    kept &= ~np.isnan(wide)
    assert bits(back[kept]) == bits(given[kept])


def neighbours(dtype: str) -> tuple[Any, Any, Any]:
    """Codes of finite numbers from 0 on but the largest, and those numbers, and the next ones."""
    numbers = np.array([meaning(code, dtype) for code in range(len(codes(dtype)) // 2)])
    finite = numbers[np.isfinite(numbers)]
    return np.arange(len(finite) - 1), finite[:-1], finite[1:]


@pytest.mark.parametrize("dtype", ROUNDED)
@pytest.mark.parametrize("held", ["float64", "float32", "float16", "bfloat16"])
@pytest.mark.parametrize("sign", [1, -1])
def test_floats_are_rounded_once_to_nearest_even(dtype: str, held: str, sign: int) -> None:
    below, low, high = neighbours(dtype)
    middle = (low + high) / 2  # exact
    ulp = float(ml_dtypes.finfo(held).eps)
    points = [
        (middle, below + below % 2),
        (middle * (1 - ulp), below),
        (middle * (1 + ulp), below + 1),
        (low + (high - low) / 4, below),
        (high - (high - low) / 4, below + 1),
    ]
    negative = len(codes(dtype)) // 2 if sign < 0 else 0
    checked = 0
    for number, code in points:
        given = (sign * number).astype(held)
        exact = given.astype(np.float64) == sign * number
        found = np.array(bits(arrays.store(given[exact], dtype)))
        expected = code[exact] + negative
        if dtype.endswith("fnuz"):
            expected[code[exact] == 0] = 0  # there is no -0
        np.testing.assert_array_equal(found, expected)
        checked += len(found)
    assert checked > 2 * len(below)


#: x -> what E4M3FN, E4M3FNUZ, E5M2 and E5M2FNUZ make of it: the table of ONNX's Cast.
SATURATED: list[tuple[float, tuple[int, ...]]] = [
    (0.0, (0, 0, 0, 0)), (-0.0, (0x80, 0, 0x80, 0)), (inf, (0x7E, 0x7F, 0x7B, 0x7F)),
    (-inf, (0xFE, 0xFF, 0xFB, 0xFF)), (1e30, (0x7E, 0x7F, 0x7B, 0x7F)),
    (-1e30, (0xFE, 0xFF, 0xFB, 0xFF)), (nan, (0x7F, 0x80, 0x7E, 0x80)),
]  # fmt: skip
NOT_SATURATED: list[tuple[float, tuple[int, ...]]] = [
    (0.0, (0, 0, 0, 0)), (-0.0, (0x80, 0, 0x80, 0)), (inf, (0x7F, 0x80, 0x7C, 0x80)),
    (-inf, (0xFF, 0x80, 0xFC, 0x80)), (1e30, (0x7F, 0x80, 0x7C, 0x80)),
    (-1e30, (0xFF, 0x80, 0xFC, 0x80)), (nan, (0x7F, 0x80, 0x7E, 0x80)),
]  # fmt: skip


@pytest.mark.parametrize("held", ["float64", "float32", "float16", "bfloat16"])
@pytest.mark.parametrize(
    ("saturate", "table"), [(True, SATURATED), (False, NOT_SATURATED)], ids=["saturate", "not"]
)
def test_floats_of_8_bits_follow_the_table_of_onnx(
    held: str, saturate: bool, table: list[tuple[float, tuple[int, ...]]]
) -> None:
    with np.errstate(over="ignore"):
        given = np.array([x for x, _ in table]).astype(held)
    for column, dtype in enumerate(FLOAT8S):
        found = bits(arrays.store(given, dtype, saturate))
        assert found == [row[column] for _, row in table], dtype


@pytest.mark.parametrize("dtype", FLOAT8S)
def test_what_rounds_to_the_largest_float_is_not_too_large(dtype: str) -> None:
    largest = float(ml_dtypes.finfo(dtype).max)
    last = largest - float(np.nextafter(ml_dtypes.finfo(dtype).max, np.zeros((), dtype)))
    given = np.array([largest + 0.49 * last, largest + 0.51 * last])
    kept, lost = arrays.store(given, dtype, saturate=False)
    assert kept == ml_dtypes.finfo(dtype).max
    assert not np.isfinite(float(lost))


@pytest.mark.parametrize("mode", ["up", "down", "nearest"])
@pytest.mark.parametrize("saturate", [True, False])
def test_powers_of_two_are_rounded_as_onnx_rounds_them(mode: str, saturate: bool) -> None:
    rng = np.random.default_rng(3)
    exact = 2.0 ** np.arange(-126, 127)
    given = np.concatenate(
        [exact, 1.5 * exact, np.nextafter(1.5, 0) * exact, np.exp2(rng.uniform(-126, 126, 2000))]
    ).astype(np.float32)
    expected = onnx.numpy_helper.to_float8e8m0(given, saturate, mode)
    assert bits(arrays.store(given, POWERS, saturate, mode)) == bits(expected)


def test_powers_of_two_that_there_are_not() -> None:
    given = [0.0, -0.0, 2.0**-140, 2.0**-127 * 1.5, 2.0**127 * 1.2, 2.0**130, inf, nan, -1.0, -inf]
    found = {
        (mode, saturate): bits(arrays.store(np.array(given), POWERS, saturate, mode))
        for mode in ("up", "down", "nearest")
        for saturate in (True, False)
    }
    assert found == {
        ("up", True): [0, 0, 0, 1, 254, 254, 254, 255, 255, 255],
        ("down", True): [0, 0, 0, 0, 254, 254, 254, 255, 255, 255],
        ("nearest", True): [0, 0, 0, 1, 254, 254, 254, 255, 255, 255],
        ("up", False): [255, 255, 255, 1, 255, 255, 255, 255, 255, 255],
        ("down", False): [255, 255, 255, 0, 254, 255, 255, 255, 255, 255],
        ("nearest", False): [255, 255, 255, 1, 254, 255, 255, 255, 255, 255],
    }


@pytest.mark.parametrize("dtype", SHORT_INTEGERS)
@pytest.mark.parametrize("held", ["int64", "int16", "uint8", "int8", "uint64", "float32"])
def test_integers_keep_their_low_bits(dtype: str, held: str) -> None:
    given = np.arange(-300, 300)
    given = given[given == given.astype(held)].astype(held)
    mask = (1 << USED_BITS[dtype]) - 1
    expected = (given.astype(np.int64) & mask).tolist()
    assert bits(arrays.store(given, dtype)) == expected
    if held == "float32":
        towards_zero = arrays.store(np.array([1.9, -1.9, -0.9]), dtype)
        assert bits(towards_zero) == [1, -1 & mask, 0]


def is_defined(given: Any, found: Any, to: str) -> Any:
    """Where ONNX says what an element becomes, and its evaluator does that."""
    numbers = given.astype(np.float64)
    if to == POWERS:
        return (numbers >= 2.0**-126) & np.isfinite(numbers)
    if to in SHORT_INTEGERS and str(given.dtype) not in SHORT_INTEGERS:
        return found.astype(np.float64) == np.trunc(numbers)
    return np.full(numbers.shape, True)


@EVERY
@pytest.mark.parametrize("to", STORED)
@pytest.mark.parametrize("saturate", [1, 0])
def test_every_code_becomes_what_onnx_makes_of_it(dtype: str, to: str, saturate: int) -> None:
    given = codes(dtype)
    attributes = {"to": ONNX_NUMBERS[to], "saturate": saturate}
    (found,) = Case("Cast", (given,), attributes).run()
    (alike,) = Case("CastLike", (given, codes(to)[:1]), {"saturate": saturate}).run()
    assert bits(found) == bits(alike)
    # ml_dtypes has no conversion between short integers
    wide = given.astype(np.int64 if dtype in SHORT_INTEGERS else np.float32)
    with np.errstate(all="ignore"):
        expected = cast_to(wide, ONNX_NUMBERS[to], bool(saturate))
    kept = is_defined(given, found, to)
    assert bits(found[kept]) == bits(expected[kept])


def test_wide_integers_are_rounded_once() -> None:
    middle = 2**60 + 2**52  # of two bfloat16s, the lower of which is even
    for dtype in ("int64", "uint64"):
        found = arrays.astype(np.array([middle - 1, middle, middle + 1], dtype), "bfloat16")
        assert found.tolist() == [2.0**60, 2.0**60, 2.0**60 + 2.0**53]
        (power,) = arrays.store(np.array([2**60 + 1], dtype), POWERS)
        assert float(power) == 2.0**61
    (negative,) = arrays.astype(np.array([-middle - 1]), "bfloat16")
    assert float(negative) == -(2.0**60 + 2.0**53)


#: Gates that move elements of every data type, whatever they are, found in their table.
MOVERS = [
    gate
    for gate in GATES.values()
    if gate.inputs and {"int4", *FLOAT8S} <= set(gate.inputs[0].dtypes)
    and not gate.output_dtypes and gate.inputs[0].group == "T"
]  # fmt: skip


@pytest.mark.parametrize(
    ("operator", "dtype"),
    [
        (gate.operator, dtype)
        for gate in MOVERS
        for dtype in STORED
        if dtype in gate.inputs[0].dtypes
    ],
)
def test_movers_move_bits(operator: str, dtype: str) -> None:
    gate = GATES[operator]
    rng = np.random.default_rng(5)
    for case in cases_of(gate):
        declared = gate.declared_inputs(len(case.inputs))
        as_bytes = [
            rng.integers(0, 1 << USED_BITS.get(dtype, 8), x.shape).astype(np.uint8)
            if x is not None and each.group == "T"
            else x
            for each, x in zip(declared, case.inputs, strict=True)
        ]
        stored = [
            x.view(dtype) if x is not None and each.group == "T" else x
            for each, x in zip(declared, as_bytes, strict=True)
        ]
        expected = Case(gate.operator, tuple(as_bytes), case.attributes).run()
        moved = Case(gate.operator, tuple(stored), case.attributes)
        specs = gate.check(moved.specs(), case.attributes)
        for out, bytes_, spec in zip(moved.run(), expected, specs, strict=True):
            assert str(out.dtype) == spec.dtype == dtype
            assert (out.shape, bits(out)) == (bytes_.shape, bits(bytes_)), case


def test_the_movers_are_those_that_onnx_lists() -> None:
    assert {gate.operator for gate in MOVERS} == {
        "Identity", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Pad",
        "TensorScatter",
    }  # fmt: skip


@pytest.mark.parametrize("dtype", FLOAT8S)
def test_nan_and_infinity_of_8_bits_are_found(dtype: str) -> None:
    given = codes(dtype)
    numbers = given.astype(np.float64)
    cases: list[tuple[str, dict[str, Any], Any]] = [
        ("IsNaN", {}, np.isnan(numbers)),
        ("IsInf", {}, np.isinf(numbers)),
        ("IsInf", {"detect_negative": 0}, np.isposinf(numbers)),
        ("IsInf", {"detect_positive": 0}, np.isneginf(numbers)),
    ]
    for operator, attributes, expected in cases:
        (found,) = Case(operator, (given,), attributes).run()
        np.testing.assert_array_equal(found, expected)


def moved(dtype: str) -> gw.Graph:
    """An input, an input by elements, a parameter and a constant, which come out as they are."""
    graph = gw.Graph()
    kept = {
        "given": graph.input("q", ("n", 3), dtype),
        "one": graph.elements("e", (2,), dtype)[1],
        "held": graph.parameter("w", codes(dtype)),
        "fixed": graph.constant(codes(dtype)[::-1]),
    }
    for name, handle in kept.items():
        flat = gw.reshape(handle, [-1]).named(f"flat_{name}")
        graph.output(name, flat)
    wide = gw.cast(kept["given"], to=F32)
    graph.output("number", wide)
    return graph


@EVERY
def test_elements_come_through_the_wire_and_files_as_they_are(
    server: gw.Connection, dtype: str, tmp_path: Path
) -> None:
    moved(dtype).save(tmp_path / "moved.gate")
    graph = gw.Graph.load(tmp_path / "moved.gate")
    assert graph.to_bytes() == moved(dtype).to_bytes()
    given = np.resize(codes(dtype), (100_000, 3))  # more than a chunk
    result = server.evaluate(graph, {"q": given, "e": given[0, :2]}, values=True, forward_only=True)
    expected = {
        "given": given, "one": given[0, 1], "held": codes(dtype), "fixed": codes(dtype)[::-1]
    }  # fmt: skip
    for name, array in expected.items():
        assert str(result.outputs[name].dtype) == graph.output_dtype(name) == dtype
        assert result.outputs[name].tobytes() == array.tobytes(), name
        assert result[f"flat_{name}"].value.tobytes() == array.tobytes(), name
    np.testing.assert_array_equal(result.outputs["number"], given.astype(np.float32))


@EVERY
def test_rows_of_a_batch_are_stored(server: gw.Connection, dtype: str) -> None:
    graph = gw.Graph()
    q = graph.input("q", (2,), dtype)
    graph.output("moved", gw.transpose(gw.unsqueeze(q, [0])))
    graph.output("number", gw.cast(q, to=F64))
    rows = np.resize(codes(dtype), (5, 2))
    result = server.evaluate(graph, {"q": rows}, batched=["q"], forward_only=True)
    assert result.outputs["moved"].shape == (5, 2, 1)
    assert result.outputs["moved"].tobytes() == rows.tobytes()
    np.testing.assert_array_equal(result.outputs["number"], rows.astype(np.float64))


@pytest.mark.parametrize("dtype", [*USED_BITS])
@pytest.mark.parametrize("shape", [(), (3,)])
def test_bits_that_an_element_has_not_are_refused(dtype: str, shape: tuple[int, ...]) -> None:
    count = int(np.prod(shape))
    number = tensors.data_type(dtype)
    most = (1 << USED_BITS[dtype]) - 1
    message = tensor_pb2.Tensor(data_type=number, shape=shape, data=bytes([most]) * count)
    assert decode_tensor("x", message).data == message.data
    for wrong in (most + 1, 0xFF):
        message.data = bytes([0] * (count - 1) + [wrong])
        said = "neither 0 nor 1" if dtype == "bool" else f"a byte is 0x{wrong:02X}, but {dtype} has"
        with pytest.raises(Invalid, match=said) as caught:
            decode_tensor("x", message)
        assert caught.value.reason == "TENSOR_INVALID"


def test_a_bound_scalar_is_checked_too(server: gw.Connection) -> None:
    graph = gw.Graph()
    graph.output("out", gw.identity(graph.input("q", (), "int4")))
    wrong = np.array(0xF7, np.uint8).view("int4")
    with pytest.raises(gw.InvalidRequestError, match="a byte is 0xF7, but int4 has the low 4 bits"):
        server.evaluate(graph, {"q": wrong}, forward_only=True)


def test_numbers_outside_a_short_integer_are_refused() -> None:
    graph = gw.Graph()
    for dtype, wrong in (("int4", 8), ("int4", -9), ("uint4", 16), ("uint2", -1), ("int2", 300)):
        with pytest.raises(gw.InvalidRequestError) as caught:
            graph.constant([wrong, 0], dtype)
        assert caught.value.reason == "TENSOR_INVALID"
    with pytest.raises(gw.InvalidRequestError, match="int4 holds integers from -8 to 7"):
        graph.parameter("w", [9], "int4")


@EVERY
def test_stored_numbers_have_no_gradient(server: gw.Connection, dtype: str) -> None:
    graph = gw.Graph()
    x = graph.input("x", (3,), "float32")
    w = graph.parameter("w", codes(dtype)[:3])
    stored = gw.cast(x, to=ONNX_NUMBERS[dtype]).named("stored")
    wide = gw.cast(stored, to=F32) + gw.cast(w, to=F32)
    graph.output("f", gw.reduce_sum(wide * x, keepdims=0))
    result = server.evaluate(graph, {"x": np.float32([1, 1, 1])}, values=True, gradients=True)
    assert result["stored"].gradient is None
    assert "w" not in result.gradients
    held = codes(dtype)[:3].astype(np.float32) + 1  # the Cast between has no gradient
    np.testing.assert_array_equal(result.gradients["x"], held)
    with pytest.raises(gw.InvalidRequestError) as caught:
        server.evaluate(graph, {"x": np.float32([1, 1, 1])}, with_respect_to=["w"])
    assert caught.value.reason == "NOT_DIFFERENTIABLE"


@pytest.mark.parametrize("dtype", [*SHORT_INTEGERS, FLOAT4, *FLOAT8S])
def test_gradient_of_a_scale_is_how_many_steps_it_counts(server: gw.Connection, dtype: str) -> None:
    """With blocks, in both passes, and as a graph."""
    finite = codes(dtype)
    finite = finite[np.isfinite(finite.astype(np.float32))]
    levels, zeros = np.resize(finite, (2, 5)), np.resize(finite[1:], (2, 3))
    graph = gw.Graph()
    q, z = graph.constant(levels), graph.constant(zeros)
    scale = graph.parameter("scale", np.linspace(0.5, 2, 6, dtype=np.float64).reshape(2, 3))
    graph.output("y", gw.dequantize_linear(q, scale, z, block_size=2))
    seed = np.arange(10.0).reshape(2, 5)
    result = server.evaluate(graph, seeds={"y": seed})
    steps = levels.astype(np.float64) - np.repeat(zeros.astype(np.float64), 2, axis=1)[:, :5]
    spread = np.repeat(np.linspace(0.5, 2, 6).reshape(2, 3), 2, axis=1)[:, :5]
    np.testing.assert_allclose(result.outputs["y"], steps * spread, rtol=1e-12)
    pulled = np.pad(seed * steps, ((0, 0), (0, 1))).reshape(2, 3, 2).sum(-1)
    np.testing.assert_allclose(result.gradients["scale"], pulled, rtol=1e-12)
    backward = gw.gradient_graph(graph, ["scale"])
    again = server.evaluate(backward, {"grad/y": seed}, forward_only=True)
    np.testing.assert_allclose(again.outputs["grad/scale"], pulled, rtol=1e-12)


@pytest.mark.parametrize("dtype", [*SHORT_INTEGERS, *ROUNDED])
def test_quantized_numbers_are_kept_within_the_data_type(dtype: str) -> None:
    numbers = np.linspace(-40, 40, 161)
    (found,) = Case("QuantizeLinear", (numbers, np.array(2.0)), {
        "output_dtype": ONNX_NUMBERS[dtype]
    }).run()  # fmt: skip
    if dtype in SHORT_INTEGERS:
        limits = ml_dtypes.iinfo(dtype)
        expected = np.clip(np.round(numbers / 2), limits.min, limits.max)
        np.testing.assert_array_equal(found.astype(np.float64), expected)
    else:
        assert bits(found) == bits(arrays.store(numbers / 2, dtype))


@EVERY
@pytest.mark.parametrize("size", [1, 5, 3001])
@pytest.mark.parametrize("external", [False, True])
def test_models_of_onnx_hold_what_graphs_hold(
    server: gw.Connection, dtype: str, size: int, external: bool, tmp_path: Path
) -> None:
    """Packed: one, two and four elements to a byte, beside the model too."""
    numbers = np.resize(codes(dtype), size)
    graph = gw.Graph()
    w = graph.parameter("w", numbers)
    row = graph.constant(numbers[None])
    q = graph.input("q", (size,), dtype)
    graph.output("moved", gw.transpose(row))
    graph.output("held", gw.identity(w))
    graph.output("given", gw.reshape(q, [1, -1]))
    path = tmp_path / "model.onnx"
    model = gw.to_onnx(graph, path, external_data=external)
    onnx.checker.check_model(str(path), full_check=True)
    loaded = onnx.load(path)
    (held,) = [each for each in loaded.graph.initializer if each.name == "w"]
    assert held.data_type == ONNX_NUMBERS[dtype] == model.graph.input[0].type.tensor_type.elem_type
    assert onnx.numpy_helper.to_array(held).tobytes() == numbers.tobytes()
    packed = -(-size * USED_BITS.get(dtype, 8) // 8)
    assert len(held.raw_data) == packed
    outputs = server.evaluate(gw.from_onnx(path), {"q": numbers}, forward_only=True).outputs
    for name in ("moved", "held", "given"):
        assert str(outputs[name].dtype) == dtype
        assert outputs[name].tobytes() == numbers.tobytes()


@pytest.mark.parametrize("dtype", [*SHORT_INTEGERS, FLOAT4])
@pytest.mark.parametrize("extra", [-1, 1, 1000])
def test_packed_tensors_of_another_size_are_refused(dtype: str, extra: int) -> None:
    graph = gw.Graph()
    graph.output("out", gw.identity(graph.parameter("w", np.resize(codes(dtype), 10))))
    model = gw.to_onnx(graph)
    tensor = model.graph.initializer[0]
    tensor.raw_data = bytes(len(tensor.raw_data) + extra)
    with pytest.raises(gw.InvalidRequestError, match="elements are in a byte"):
        gw.from_onnx(model)


@EVERY
def test_command_line_takes_and_prints_numbers(dtype: str, tmp_path: Path) -> None:
    graph = gw.Graph()
    moved = gw.identity(graph.input("q", (2,), dtype)).named("moved")
    graph.output("f", gw.reduce_sum(gw.cast(moved, to=F32), keepdims=0))
    file = tmp_path / "moved.gate"
    graph.save(file)
    np.save(tmp_path / "saved.npy", np.ones(2, dtype))
    settings = ["q=[1, 1]"]
    if dtype != "float8_e5m2":  # NumPy cannot read what it wrote of this type
        settings.append(f"q=@{tmp_path / 'saved.npy'}")
    for setting in settings:
        result = CliRunner().invoke(main, ["eval", str(file), "--set", setting, "--json"])
        assert result.exit_code == 0, result.output
        found = json.loads(result.output)
        assert found["outputs"] == {"f": 2}
        (node,) = [each for each in found["nodes"] if each["name"] == "moved"]
        assert (node["value"], node["gradient"]) == ([1, 1], None)
