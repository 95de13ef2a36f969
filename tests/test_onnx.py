"""Every gate means what ONNX means: the ONNX node tests of all our operators."""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from gate_cases import Case, all_cases
from onnx.backend.test.case.node import collect_testcases
from onnx.reference import ReferenceEvaluator

from gradwire_server.gates import GATES, OPERATOR_SETS
from gradwire_server.specs import (
    ANY,
    FLOAT8S,
    FLOATS,
    HALVES,
    ITEM_SIZES,
    ONNX_NUMBERS,
    STORED,
    Tensor,
)

#: Cases whose expected numbers ONNX wrote down with four digits.
ROUNDED = {
    "test_averagepool_2d_ceil_last_window_starts_on_pad",
    "test_gridsample_bicubic",
    "test_roialign_aligned_false",
    "test_roialign_aligned_true",
}


@cache
def collected() -> dict[str, Any]:
    """ONNX's cases of one node of an operator, data types and operator set we have."""
    found = {}
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # ONNX's own scripts warn while they make their numbers
        cases = collect_testcases(None)
    for case in cases:
        graph = case.model.graph if case.model is not None else None
        if graph is None or len(graph.node) != 1 or graph.node[0].op_type not in GATES:
            continue
        arrays = [as_array(each) for data in case.data_sets for side in data for each in side]
        if (
            graph.node[0].domain
            or not has_our_meaning(graph.node[0].op_type, case.model.opset_import[0].version)
            or not all(
                isinstance(each, (np.ndarray, np.generic)) and str(each.dtype) in ITEM_SIZES
                for each in arrays
            )
        ):
            continue
        found[case.name] = case
    return found


def has_our_meaning(operator: str, version: int) -> bool:
    """Whether an operator of that operator set still is the one of the oldest that we know.

    Cases name the operator set that their operator is from, which may be long before ours; an
    operator may be younger than our oldest operator set.
    """
    born = min(
        schema.since_version
        for schema in onnx.defs.get_all_schemas_with_history()
        if schema.name == operator and not schema.domain
    )
    ours = onnx.defs.get_schema(operator, max(born, OPERATOR_SETS[0]))
    return bool(onnx.defs.get_schema(operator, version).since_version >= ours.since_version)


def as_array(value: Any) -> Any:
    """ONNX's message of a tensor as an array; anything else as it is."""
    if isinstance(value, onnx.TensorProto):
        return onnx.numpy_helper.to_array(value)
    return value


def attribute(value: Any) -> Any:
    """ONNX's attribute as ours."""
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, onnx.TensorProto):
        array = as_array(value)
        return Tensor(str(array.dtype), array.shape, array.tobytes())
    if isinstance(value, (list, tuple)):
        return tuple(map(attribute, value))
    return value


def call(case: Any, given: dict[str, Any]) -> Case:
    node = case.model.graph.node[0]
    inputs = [np.asarray(as_array(given[name])) if name else None for name in node.input]
    while inputs and inputs[-1] is None:
        inputs.pop()
    attributes = {
        each.name: attribute(onnx.helper.get_attribute_value(each)) for each in node.attribute
    }
    return Case(node.op_type, tuple(inputs), attributes)


@pytest.mark.parametrize("name", sorted(collected()))
def test_node_case_of_onnx(name: str) -> None:
    case = collected()[name]
    for inputs, outputs in case.data_sets:
        names = [each.name for each in case.model.graph.input]
        found = call(case, dict(zip(names, inputs, strict=True)))
        specs = found.gate.check(found.specs(), found.attributes)
        outs = dict(zip(case.model.graph.node[0].output, found.run(), strict=False))
        arrays = map(as_array, outputs)
        for declared, expected in zip(case.model.graph.output, arrays, strict=True):
            out = np.asarray(outs[declared.name])
            assert out.dtype == expected.dtype, found
            assert out.shape == expected.shape, found
            rtol, atol = case.rtol if name in ROUNDED else 1e-5, 1e-6
            if found.operator == "Attention" and str(out.dtype) in HALVES:
                rtol = atol = 2 * float(ml_dtypes.finfo(out.dtype).eps)  # rounds at every step
            if str(out.dtype) in STORED:
                assert out.tobytes() == expected.tobytes(), found
                continue
            np.testing.assert_allclose(out, expected, rtol=rtol, atol=atol, err_msg=str(found))
        assert [spec.shape for spec in specs] == [np.shape(out) for out in found.run()]


def test_every_operator_has_cases_or_none_exist() -> None:
    covered = {case.model.graph.node[0].op_type for case in collected().values()}
    assert len(covered) > 85, sorted(set(GATES) - covered)


def test_newest_operator_set_is_the_one_tested() -> None:
    newest = max(
        schema.since_version
        for schema in onnx.defs.get_all_schemas_with_history()
        if schema.name in GATES and not schema.domain
    )
    assert newest <= OPERATOR_SETS[1] <= onnx.defs.onnx_opset_version()


#: (operator, input): data types of ONNX that the gate does not take, or takes besides, and why.
DATA_TYPES_APART = {
    # a mask of integers is one that is added: Cast says so
    ("Attention", "attn_mask"): set(ANY) - {*FLOATS, "bool"},
    # ONNX lists no float64 for these, as it does everywhere else
    **{
        (operator, each.name): {"float64"}
        for operator in ("RotaryEmbedding", "LinearAttention")
        for each in GATES[operator].inputs
        if each.name != "position_ids"
    },
    ("GridSample", "X"): set(ANY) - set(FLOATS),  # interpolated integers have no rounding rule
    # ONNX says nothing of how products of small floats are summed and rounded
    **{
        ("QLinearMatMul", f"{matrix}{part}"): set(FLOAT8S)
        for matrix, part in (
            ("a", ""),
            ("a", "_zero_point"),
            ("b", ""),
            ("b", "_zero_point"),
            ("y", "_zero_point"),
        )
    },
    # divides by what is left: a float of 8 bits is not computed with
    ("Dropout", "data"): set(FLOAT8S),
    ("Dropout", "ratio"): set(FLOAT8S),
    # every floating input here may be float64 too
    ("Resize", "scales"): {"float64"},
    ("QuantizeLinear", "x"): {"float64"},
    ("QuantizeLinear", "y_scale"): {"float64"},
    ("DequantizeLinear", "x_scale"): {"float64"},
    ("DynamicQuantizeLinear", "x"): {"float64"},
    ("QLinearMatMul", "a_scale"): {"float64"},
    ("QLinearMatMul", "b_scale"): {"float64"},
    ("QLinearMatMul", "y_scale"): {"float64"},
}


#: Our names of data types, by ONNX's.
OUR_NAMES = {
    onnx.TensorProto.DataType.Name(number).lower(): name for name, number in ONNX_NUMBERS.items()
}


@pytest.mark.parametrize("operator", [op for op in GATES if onnx.defs.has(op)])
def test_data_types_are_those_of_onnx(operator: str) -> None:
    schema = onnx.defs.get_schema(operator, OPERATOR_SETS[1])
    for theirs, ours in zip(schema.inputs, GATES[operator].inputs, strict=True):
        listed = {name.removeprefix("tensor(").removesuffix(")") for name in theirs.types}
        known = {OUR_NAMES[name] for name in listed & set(OUR_NAMES)}
        apart = DATA_TYPES_APART.get((operator, ours.name), set())
        assert known ^ set(ours.dtypes) == apart, ours.name


#: Operators whose node tests leave modes out that our cases have.
COMPARED = (
    "CenterCropPad", "Col2Im", "DFT", "DeformConv", "DequantizeLinear", "Det", "GatherND",
    "GridSample", "MelWeightMatrix", "QuantizeLinear", "Resize", "ReverseSequence", "RoiAlign",
    "STFT", "ScatterND", "TensorScatter", "TopK",
)  # fmt: skip


def has_reference(case: Case) -> bool:
    """The reference evaluator fails at empty images, and convolves only images of two axes."""
    ranks = (4,) if case.operator == "DeformConv" else range(32)
    sizes = [x.size for x in case.inputs if x is not None]
    return case.operator in COMPARED and case.inputs[0].ndim in ranks and all(sizes)


@pytest.mark.parametrize(
    "case", [*filter(has_reference, all_cases())], ids=lambda case: case.operator
)
def test_reference_evaluator_of_onnx_agrees(case: Case) -> None:
    given = {f"x{slot}": x for slot, x in enumerate(case.inputs) if x is not None}
    outs = {f"y{slot}": np.asarray(out) for slot, out in enumerate(case.run())}
    info = {
        name: onnx.helper.make_tensor_value_info(name, ONNX_NUMBERS[str(x.dtype)], x.shape)
        for name, x in (given | outs).items()
    }
    names = [f"x{slot}" if x is not None else "" for slot, x in enumerate(case.inputs)]
    node = onnx.helper.make_node(case.operator, names, list(outs), **case.attributes)
    graph = onnx.helper.make_graph(
        [node], "one", [info[name] for name in given], [info[name] for name in outs]
    )
    opset = onnx.helper.make_opsetid("", OPERATOR_SETS[1])
    model = onnx.helper.make_model(graph, opset_imports=[opset])
    expected = ReferenceEvaluator(model).run(None, given)
    for out, reference in zip(outs.values(), expected, strict=True):
        np.testing.assert_allclose(out, reference, rtol=1e-5, atol=1e-6, err_msg=str(case))
