"""Operators of older operator sets mean here what they meant there."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator

import gradwire as gw
from gradwire import onnx_backend
from gradwire.builder import OPERATOR_SET_VERSION
from gradwire.onnx.upgrading import ADAPTERS, UNCHANGED
from gradwire_server.gates import GATES


def numbers(*shape: int) -> Any:
    """Different small numbers of both signs."""
    count = int(np.prod(shape))
    return np.sin(np.arange(1, count + 1, dtype=np.float32) * 1.7).reshape(shape) * 2


def ints(*values: int) -> Any:
    return np.array(values, np.int64)


def floats(*values: float) -> Any:
    return np.array(values, np.float32)


X = numbers(2, 3, 4, 5)
POSITIVE = np.abs(X) + np.float32(0.1)
IMAGE = numbers(1, 1, 3, 4)
STATS = [numbers(3), numbers(3), numbers(3), np.abs(numbers(3)) + np.float32(0.1)]
PADS = [0, 0, 1, 1, 0, 0, 0, 2]


def beside(x: Any, axes: int) -> Any:
    """With axes of one element behind."""
    return x.reshape(*x.shape, *(1,) * axes)


def normalized(x: Any, scale: Any, bias: Any, mean: Any, variance: Any) -> Any:
    columns = [beside(each, 2) for each in (scale, bias, mean, variance)]
    return (x - columns[2]) / np.sqrt(columns[3] + 1e-5) * columns[0] + columns[1]


def by_groups(x: Any, scale: Any, bias: Any) -> Any:
    rows = x.reshape(x.shape[0], scale.size, -1)
    rows = (rows - rows.mean(-1, keepdims=True)) / np.sqrt(rows.var(-1, keepdims=True) + 1e-5)
    return (rows * beside(scale, 1) + beside(bias, 1)).reshape(x.shape)


def of_matrix(operator: str, axis: int) -> Any:
    rows = X.reshape(int(np.prod(X.shape[:axis])), -1)
    if operator == "Hardmax":
        found = np.eye(rows.shape[1], dtype=np.float32)[rows.argmax(1)]
    else:
        found = np.exp(rows) / np.exp(rows).sum(1, keepdims=True)
        found = np.log(found) if operator == "LogSoftmax" else found
    return found.reshape(X.shape)


def larger(image: Any, rows: int, columns: int) -> Any:
    return image.repeat(rows, 2).repeat(columns, 3)


#: (operator, operator set, inputs, attributes, outputs); without outputs, ONNX's evaluator yields
#: them. It has not all old operator sets, and some wrongly.
CASES: list[tuple[Any, ...]] = [
    ("Mul", 1, [X, numbers(3, 4)], {"broadcast": 1, "axis": 1}, [X * beside(numbers(3, 4), 1)]),
    ("Div", 6, [X, numbers(2)], {"broadcast": 1, "axis": 0}, [X / beside(numbers(2), 3)]),
    ("Add", 6, [X, numbers(2)], {"broadcast": 1, "axis": -4}, [X + beside(numbers(2), 3)]),
    ("Sub", 6, [X, numbers(5)], {"broadcast": 1}, [X - numbers(5)]),
    ("Pow", 1, [POSITIVE, floats(2)], {"broadcast": 1}, [POSITIVE**2]),
    ("Xor", 1, [X > 0, X > 1], {}, [(X > 0) ^ (X > 1)]),
    ("Equal", 1, [ints(1, 2), ints(1, 3)], {}, [np.array([True, False])]),
    ("Sum", 6, [X, X], {}),
    ("Mean", 1, [X, X], {"consumed_inputs": [0, 0]}, [X]),
    ("PRelu", 6, [X, numbers(3)], {}, [np.where(X < 0, X * beside(numbers(3), 2), X)]),
    ("PRelu", 1, [X, floats(0.5)], {}, [np.where(X < 0, X / 2, X)]),
    ("BatchNormalization", 1, [X, *STATS], {"is_test": 1, "consumed_inputs": [0] * 5},
     [normalized(X, *STATS)]),
    ("BatchNormalization", 6, [X, *STATS], {},
     [normalized(X, *STATS[:2], X.mean((0, 2, 3)), X.var((0, 2, 3)))]),
    ("BatchNormalization", 7, [X, *STATS], {}, [normalized(X, *STATS)]),
    ("BatchNormalization", 9, [X, *STATS], {"momentum": 0.5},
     [normalized(X, *STATS[:2], X.mean((0, 2, 3)), X.var((0, 2, 3))),
      (STATS[2] + X.mean((0, 2, 3))) / 2, (STATS[3] + X.var((0, 2, 3))) / 2]),
    ("Cast", 1, [X], {"to": "DOUBLE"}, [X.astype(np.float64)]),
    ("Cast", 9, [X], {"to": 7}),
    ("Clip", 1, [X], {"max": 0.5, "consumed_inputs": [0]}, [np.minimum(X, np.float32(0.5))]),
    ("Clip", 6, [X], {"min": -0.5, "max": 0.5}),
    ("Concat", 1, [X, X], {}, [np.concatenate([X, X], 1)]),
    ("DFT", 17, [numbers(1, 8, 3, 2)], {"axis": 2}),
    ("DFT", 17, [numbers(1, 8, 1)], {}),
    ("Dropout", 6, [X], {"is_test": 1}, [X]),
    ("Dropout", 7, [X], {"ratio": 0.3}, [X, np.ones_like(X)]),
    ("Dropout", 10, [X], {}, [X, np.ones(X.shape, bool)]),
    ("Gemm", 6, [numbers(3, 4), numbers(4, 5), numbers(5)], {"broadcast": 1, "alpha": 0.5}),
    ("GlobalLpPool", 1, [X], {"p": 2.0}, [np.sqrt((X**2).sum((2, 3), keepdims=True))]),
    ("LpPool", 1, [X], {"p": 3.0, "kernel_shape": [4, 5]},
     [np.cbrt((np.abs(X) ** 3).sum((2, 3), keepdims=True))]),
    ("GroupNormalization", 18, [numbers(2, 6, 3, 3), numbers(2), numbers(2)], {"num_groups": 2},
     [by_groups(numbers(2, 6, 3, 3), numbers(2), numbers(2))]),
    *((operator, version, [X], {"axis": axis}, [of_matrix(operator, axis)])
      for operator in ("Softmax", "LogSoftmax", "Hardmax")
      for version in (1, 11) for axis in (0, 1, 2, 3)),
    ("Softmax", 11, [X], {"axis": -2}, [of_matrix("Softmax", 2)]),
    ("Softmax", 11, [X], {}, [of_matrix("Softmax", 1)]),
    *((operator, 7, [numbers(3, 2, 4), numbers(1, n * 5, 4), numbers(1, n * 5, 5)],
       {"hidden_size": 5}, 2) for operator, n in (("RNN", 1), ("GRU", 3), ("LSTM", 4))),
    ("Pad", 1, [X], {"paddings": PADS, "value": 1.5},
     [np.pad(X, [(0, 0), (0, 0), (1, 0), (1, 2)], constant_values=1.5)]),
    ("Pad", 2, [X], {"pads": PADS, "mode": "reflect"}),
    *((operator, 11, [POSITIVE], {"axes": [1, -1], "keepdims": 0}) for operator in GATES
      if operator.startswith("Reduce")),
    ("ReduceSum", 1, [X], {}),
    ("Reshape", 1, [X], {"shape": [6, -1], "consumed_inputs": [0]}, [X.reshape(6, 20)]),
    ("Resize", 10, [IMAGE, floats(1, 1, 2, 3)], {"mode": "nearest"}, [larger(IMAGE, 2, 3)]),
    ("Resize", 11, [IMAGE, floats(), floats(1, 1, 2, 2)], {"mode": "linear"}),
    ("Resize", 11, [IMAGE, floats(), floats(), ints(1, 1, 6, 8)], {"mode": "cubic"}),
    ("Resize", 11, [IMAGE, floats(), floats(1, 1, 2, 2)],
     {"coordinate_transformation_mode": "tf_half_pixel_for_nn", "nearest_mode": "floor"},
     [larger(IMAGE, 2, 2)]),
    ("Scatter", 9, [numbers(3, 3), ints(1, 0, 2)[None], numbers(1, 3)], {},
     [np.concatenate([numbers(3, 3), numbers(1, 3)])[[[0, 3, 0], [3, 1, 1], [2, 2, 3]], range(3)]]),
    ("Selu", 1, [X], {"consumed_inputs": [0]},
     [1.0507 * np.where(X > 0, X, 1.6732 * np.expm1(X))]),
    ("Slice", 1, [X], {"starts": [0, 1], "ends": [1, -1], "axes": [0, 3]}),
    ("Slice", 1, [X], {"starts": [1], "ends": [1000]}),
    ("Split", 1, [X, ints(2, 3)], {"axis": 3}, np.split(X, [2], 3)),
    ("Split", 2, [X], {"axis": 3, "split": [2, 3]}, np.split(X, [2], 3)),
    ("Split", 13, [X], {"axis": 2}, np.split(X, 2, 2)),
    ("Squeeze", 1, [numbers(1, 3, 1)], {"axes": [0]}),
    ("Squeeze", 11, [numbers(1, 3, 1)], {}),
    ("Unsqueeze", 11, [X], {"axes": [-1, 0]}),
    ("Tile", 1, [numbers(2, 3), ints(2), ints(1)], {}, [np.tile(numbers(2, 3), (1, 2))]),
    ("TopK", 1, [X], {"k": 2, "axis": 1}, 2),
    ("TopK", 10, [X, ints(2)], {}, 2),
    ("Upsample", 1, [IMAGE], {"height_scale": 2.0, "width_scale": 3.0}, [larger(IMAGE, 2, 3)]),
    ("Upsample", 7, [IMAGE], {"scales": [1.0, 1.0, 2.0, 3.0]}, [larger(IMAGE, 2, 3)]),
    ("Upsample", 9, [numbers(1, 1, 1, 2), floats(1, 1, 1, 2)], {"mode": "linear"},
     [np.interp([[[[0, 0.5, 1, 1.5]]]], [0, 1], numbers(2))]),
    ("QLinearConv", 10, [np.arange(50, dtype=np.uint8).reshape(1, 2, 5, 5), np.float32(0.5),
                         np.uint8(20), np.arange(-30, 24, dtype=np.int8).reshape(3, 2, 3, 3),
                         floats(0.25, 0.5, 0.125), np.zeros(3, np.int8), np.float32(64),
                         np.uint8(128), np.array([5, -9, 20], np.int32)], {"pads": [1, 1, 1, 1]}),
]  # fmt: skip


def one_node(operator: str, version: int, inputs: Any, attributes: Any, outputs: int) -> Any:
    """A model of one node, and what its inputs are."""
    given = {f"x{slot}": x for slot, x in enumerate(inputs)}
    node = helper.make_node(operator, list(given), [f"y{n}" for n in range(outputs)], **attributes)
    graph = helper.make_graph(
        [node],
        "one",
        [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)
            for name, x in given.items()
        ],
        [onnx.ValueInfoProto(name=name) for name in node.output],
    )
    imports = [helper.make_opsetid("", version)]
    return helper.make_model(graph, opset_imports=imports), given


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-{case[1]}")
def test_an_older_operator_yields_what_it_did(case: tuple[Any, ...]) -> None:
    operator, version, inputs, attributes, *rest = case
    expected = rest[0] if rest else 1
    count = expected if isinstance(expected, int) else len(expected)
    model, given = one_node(operator, version, inputs, attributes, count)
    if isinstance(expected, int):
        expected = ReferenceEvaluator(model).run(None, given)
    found = onnx_backend.run_model(model, given)
    for out, reference in zip(found, expected, strict=True):
        assert out.dtype == np.asarray(reference, out.dtype).dtype
        np.testing.assert_allclose(out, reference, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mode", ["bilinear", "nearest", "bicubic"])
def test_old_names_of_modes_are_the_new_ones(mode: str) -> None:
    inputs = [numbers(2, 3, 4, 5), numbers(2, 3, 3, 2) / 2]
    later = {"bilinear": "linear", "bicubic": "cubic"}.get(mode, mode)
    old = onnx_backend.run_model(*one_node("GridSample", 16, inputs, {"mode": mode}, 1))
    new = onnx_backend.run_model(*one_node("GridSample", 20, inputs, {"mode": later}, 1))
    np.testing.assert_array_equal(old[0], new[0])


def test_regions_were_not_shifted_by_half_a_pixel_before_16() -> None:
    inputs = [numbers(1, 2, 8, 8), floats(0, 0, 4, 4, 1, 2, 6, 7).reshape(2, 4), ints(0, 0)]
    sizes = {"output_height": 2, "output_width": 2, "sampling_ratio": 2}
    later = {**sizes, "coordinate_transformation_mode": "output_half_pixel"}
    old = onnx_backend.run_model(*one_node("RoiAlign", 10, inputs, sizes, 1))
    new = onnx_backend.run_model(*one_node("RoiAlign", 16, inputs, later, 1))
    np.testing.assert_array_equal(old[0], new[0])


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (("Dropout", 6, [X], {}), "without a seed (is_test = 0) in operator set 6"),
        (("GlobalLpPool", 1, [X], {"p": 2.5}), "p = 2.5 is not a whole number"),
        (("BatchNormalization", 7, [X, *(numbers(3, 4, 5),) * 4], {"spatial": 0}), "spatial = 0"),
        (("BatchNormalization", 9, [X, *STATS], {}, 5), "yields saved_mean"),
        (("Resize", 11, [IMAGE, floats(), floats(1, 1, 2, 2)],
          {"coordinate_transformation_mode": "tf_half_pixel_for_nn"}), "tf_half_pixel_for_nn"),
    ],
)  # fmt: skip
def test_what_has_no_counterpart_is_refused_with_both_operator_sets(
    case: tuple[Any, ...], message: str
) -> None:
    operator, version, inputs, attributes, *count = case
    model, _ = one_node(operator, version, inputs, attributes, count[0] if count else 1)
    with pytest.raises(gw.UnsupportedError) as caught:
        gw.from_onnx(model)
    assert caught.value.reason == "OPERATOR_SET_UNSUPPORTED"
    for part in (operator, message, f"operator set {version}", f"set {OPERATOR_SET_VERSION}"):
        assert part in str(caught.value)


def test_inputs_that_are_left_out_are_refused_and_not_stumbled_over() -> None:
    refused = 0
    for operator, version, inputs, attributes, *_ in CASES:
        for kept in range(len(inputs)):
            model, _ = one_node(operator, version, inputs, attributes, 1)
            del model.graph.node[0].input[kept:]
            try:
                gw.from_onnx(model)
            except gw.GradwireError:
                refused += 1
    assert refused > len(CASES)


def test_newer_operator_sets_are_refused_where_the_operator_may_have_changed() -> None:
    model, _ = one_node("Add", OPERATOR_SET_VERSION + 100, [X, X], {}, 1)
    with pytest.raises(
        gw.UnsupportedError, match=f"Gradwire implements operator set {OPERATOR_SET_VERSION}"
    ):
        gw.from_onnx(model)


def changes() -> Iterator[tuple[str, int]]:
    """(operator, operator set) of every change of attributes, inputs or outputs in ONNX."""
    by_operator: dict[str, list[Any]] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        if not schema.domain and schema.name in GATES:
            by_operator.setdefault(schema.name, []).append(schema)
    for operator, schemas in by_operator.items():
        schemas.sort(key=lambda schema: schema.since_version)
        for older, newer in pairwise(schemas):
            if form(older) != form(newer) and newer.since_version <= OPERATOR_SET_VERSION:
                yield operator, newer.since_version


def form(schema: Any) -> Any:
    attributes = {
        name: (str(each.type), each.required, each.default_value.SerializeToString())
        for name, each in schema.attributes.items()
        if name != "consumed_inputs"
    }
    return attributes, [(str(each.option)) for each in schema.inputs], len(schema.outputs)


#: Changes that the adapter of a later one deals with: it looks at the operator set.
WITH_LATER_ONES = {
    ("BatchNormalization", 7),
    ("BatchNormalization", 9),
    ("Dropout", 7),
    ("Pad", 2),
    ("Split", 2),
}


def test_every_change_of_an_operator_is_adapted_or_listed_as_none() -> None:
    adapted = {(name, before) for name, pairs in ADAPTERS.items() for before, _ in pairs}
    adapted |= WITH_LATER_ONES
    listed = {(name, version) for name, versions in UNCHANGED.items() for version in versions}
    found = set(changes())
    assert not found - adapted - listed
    assert not listed - found, "no such change"
    assert not listed & adapted
