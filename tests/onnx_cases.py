"""ONNX's own node tests, as calls of our gates."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Callable
from functools import cache, partial
from typing import Any
from unittest.mock import patch

import numpy as np
import onnx
from gate_cases import Case
from onnx.backend.test.case import base
from onnx.backend.test.case.node import collect_testcases
from onnx.reference.ops import op_pool_common

from gradwire_server.gates import GATES, OPERATOR_SETS
from gradwire_server.specs import ITEM_SIZES, Tensor

#: ONNX's own pooling takes seconds for three cases of three axes, so it is left for `collected`.
POOLED_LATER = 10_000  # elements
_unfilled: list[Callable[[], None]] = []


def _pool(
    padded: Any, x_shape: Any, kernel: Any, strides: Any, out_shape: Any, *more: Any, **named: Any
) -> Any:
    """ONNX's `pool`; of large images, an array that has its numbers later."""
    theirs = partial(_onnx_pool, padded, x_shape, kernel, strides, out_shape, *more, **named)
    shape = (x_shape[0], x_shape[1], *out_shape)
    if math.prod(shape) < POOLED_LATER:
        return theirs()
    out = np.zeros(shape, padded.dtype)
    _unfilled.append(lambda: np.copyto(out, theirs()))
    return out


_onnx_pool = op_pool_common.pool


@cache
def all_of_one_node() -> dict[str, Any]:
    """ONNX's cases of one node of an operator that we have, of every data type and version.

    Names, models and inputs; a few large outputs are zeros as yet.
    """
    with (
        patch.object(op_pool_common, "pool", _pool),
        patch.object(base, "process_snippet", lambda _, name, __: (name, "")),  # for ONNX's docs
        warnings.catch_warnings(),
        np.errstate(all="ignore"),
    ):
        warnings.simplefilter("ignore")  # ONNX's own scripts warn while they make their numbers
        cases = collect_testcases(None)
    return {
        case.name: case
        for case in cases
        if case.model is not None
        and len(case.model.graph.node) == 1
        and case.model.graph.node[0].op_type in GATES
        and not case.model.graph.node[0].domain
    }


@cache
def listed() -> dict[str, Any]:
    """Those of a data type and an operator set that we have."""
    return {name: case for name, case in all_of_one_node().items() if is_ours(case)}


def collected() -> dict[str, Any]:
    """The same, with all their outputs."""
    found = listed()
    while _unfilled:
        _unfilled.pop()()
    return found


def is_ours(case: Any) -> bool:
    arrays = [as_array(each) for data in case.data_sets for side in data for each in side]
    return has_our_meaning(operator_of(case), case.model.opset_import[0].version) and all(
        isinstance(each, (np.ndarray, np.generic)) and str(each.dtype) in ITEM_SIZES
        for each in arrays
    )


def operator_of(case: Any) -> str:
    return str(case.model.graph.node[0].op_type)


@cache
def born() -> dict[str, int]:
    """The operator set in which each operator came."""
    versions: dict[str, int] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        if not schema.domain:
            came = versions.get(schema.name, schema.since_version)
            versions[schema.name] = min(came, schema.since_version)
    return versions


@cache
def has_our_meaning(operator: str, version: int) -> bool:
    """Whether an operator of that operator set still is the one of the oldest that we know.

    Cases name the operator set that their operator is from, which may be long before ours; an
    operator may be younger than our oldest operator set.
    """
    ours = onnx.defs.get_schema(operator, max(born()[operator], OPERATOR_SETS[0]))
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


@cache
def called(name: str) -> Case:
    """A collected case as a call of our gate, with its first data."""
    case = listed()[name]
    names = [each.name for each in case.model.graph.input]
    return call(case, dict(zip(names, case.data_sets[0][0], strict=True)))


def counted() -> dict[str, tuple[int, int]]:
    """For each operator that ONNX tests: the tests that we run, of all."""
    ours = Counter(map(operator_of, listed().values()))
    every = Counter(map(operator_of, all_of_one_node().values()))
    return {operator: (ours[operator], every[operator]) for operator in every}
