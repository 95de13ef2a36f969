"""Every gate means what ONNX means: the ONNX node tests of all our operators."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import pytest
from gate_cases import Case, all_cases
from onnx.reference import ReferenceEvaluator
from onnx_cases import as_array, call, collected, listed

from gradwire_server.gates import GATES, OPERATOR_SETS
from gradwire_server.specs import (
    ANY,
    FLOAT8S,
    FLOATS,
    HALVES,
    ONNX_NUMBERS,
    STORED,
)

#: Cases whose expected numbers ONNX wrote down with four digits.
ROUNDED = {
    "test_averagepool_2d_ceil_last_window_starts_on_pad",
    "test_gridsample_bicubic",
    "test_roialign_aligned_false",
    "test_roialign_aligned_true",
}
#: Operators whose numbers in half precision ONNX rounds at every step, and we once.
ROUND_EACH_STEP = ("Attention", "CausalConvWithState")


@pytest.mark.parametrize("name", sorted(listed()))
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
            if found.operator in ROUND_EACH_STEP and str(out.dtype) in HALVES:
                rtol = atol = 2 * float(ml_dtypes.finfo(out.dtype).eps)
            if str(out.dtype) in STORED:
                assert out.tobytes() == expected.tobytes(), found
                continue
            np.testing.assert_allclose(out, expected, rtol=rtol, atol=atol, err_msg=str(found))
        assert [spec.shape for spec in specs] == [np.shape(out) for out in found.run()]


def test_every_operator_has_cases_or_none_exist() -> None:
    covered = {case.model.graph.node[0].op_type for case in listed().values()}
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
        for operator in ("RotaryEmbedding", "LinearAttention", "CausalConvWithState")
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
    ("QLinearConv", "x_scale"): {"float64"},
    ("QLinearConv", "w_scale"): {"float64"},
    ("QLinearConv", "y_scale"): {"float64"},
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
    """The reference evaluator fails at empty images, and convolves only images of two axes.

    Cubic samples it takes around the place on the border: ONNX Runtime and PyTorch do not.
    """
    if case.attributes.items() >= {"mode": "cubic", "padding_mode": "border"}.items():
        return False
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
