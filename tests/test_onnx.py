"""Every gate means what ONNX means: the ONNX node tests of all our operators."""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import numpy as np
import onnx
import pytest
from gate_cases import Case
from onnx.backend.test.case.node import collect_testcases

from gradwire_server.gates import GATES, OPERATOR_SETS
from gradwire_server.specs import ITEM_SIZES, Tensor

#: Cases whose expected numbers ONNX wrote down with four digits.
ROUNDED = {"test_averagepool_2d_ceil_last_window_starts_on_pad"}


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
        arrays = [each for data in case.data_sets for side in data for each in side]
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


def attribute(value: Any) -> Any:
    """ONNX's attribute as ours."""
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, onnx.TensorProto):
        array = onnx.numpy_helper.to_array(value)
        return Tensor(str(array.dtype), array.shape, array.tobytes())
    if isinstance(value, (list, tuple)):
        return tuple(map(attribute, value))
    return value


def call(case: Any, given: dict[str, Any]) -> Case:
    node = case.model.graph.node[0]
    inputs = [np.asarray(given[name]) if name else None for name in node.input]
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
        for declared, expected in zip(case.model.graph.output, outputs, strict=True):
            out = np.asarray(outs[declared.name])
            assert out.dtype == expected.dtype, found
            assert out.shape == expected.shape, found
            close = 1e-3 if name in ROUNDED else 1e-5
            np.testing.assert_allclose(out, expected, rtol=close, atol=1e-6, err_msg=str(found))
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
