"""ONNX's node tests through the backend and a real server: every one is accounted for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper
from onnx_cases import collected

import gradwire as gw
from gradwire import onnx_backend, tensors
from gradwire.onnx.conformance import Outcome, node_tests, outcomes, table
from gradwire.onnx.refusals import REFUSED_DOMAINS, REFUSED_OPERATORS
from gradwire_server.catalogue import describe
from gradwire_server.gates import GATES

DOCS = Path(__file__).parent.parent / "docs" / "onnx.md"
#: Data types that are ours, by ONNX's names.
OUR_TYPES = {
    onnx.TensorProto.DataType.Name(tensors.data_type(name)).lower() for name in tensors.DTYPES
}


@cache
def outcomes_of(step: int) -> tuple[Outcome, ...]:
    """Outcomes of every `step`-th test."""
    collected()  # ONNX's tests are in memory once: with all their numbers from here on
    return tuple(outcomes(node_tests()[::step], onnx_backend.run_model))


def nodes_of(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from nodes_of(attribute.g)


def check_all(found: Sequence[Outcome]) -> None:
    """Nothing fails, and what is refused is refused for a reason in the tables."""
    failed = [f"{each.name}: {each.failure}" for each in found if each.failure]
    assert not failed, "\n".join(failed)
    unexplained = [
        f"{each.name}: {each.refusal.reason}: {each.refusal}"
        for each in found
        if each.refusal is not None and not is_explained(each.refusal)
    ]
    assert not unexplained, "\n".join(unexplained)


def is_explained(refusal: gw.GradwireError) -> bool:
    if not isinstance(refusal, gw.UnsupportedError):
        return False
    if refusal.reason == "OPERATOR_UNKNOWN":
        reasons = (*REFUSED_OPERATORS.values(), *REFUSED_DOMAINS.values())
        return any(reason in refusal.message for reason in reasons)
    missing = refusal.facts.get("data_type")
    return refusal.reason == "DATA_TYPE_UNSUPPORTED" and missing not in OUR_TYPES


def test_node_tests_of_onnx_pass_or_are_refused_for_a_reason() -> None:
    found = outcomes_of(10)
    assert len(found) == -(-len(node_tests()) // 10)
    check_all(found)


@pytest.mark.slow
def test_all_node_tests_of_onnx_pass_or_are_refused_for_a_reason() -> None:
    found = outcomes_of(1)
    assert len(found) == len(node_tests()) >= 1_800
    check_all(found)
    passed = sum(each.passed for each in found)
    assert passed >= 0.94 * len(found)
    print(table(found))


@pytest.mark.slow
def test_refused_operators_are_refused() -> None:
    passed = {each.name for each in outcomes_of(1) if each.passed}
    for case in node_tests():
        if case.name in passed:
            operators = {node.op_type for node in nodes_of(case.model.graph)}
            assert not operators & set(REFUSED_OPERATORS), case.name
    assert not set(REFUSED_OPERATORS) & set(GATES)


@pytest.mark.slow
def test_differentiable_operators_are_refused_only_for_their_data_types() -> None:
    gradients = {operator: describe(gate).gradient for operator, gate in GATES.items()}
    differentiable = {
        operator for operator, text in gradients.items() if not text.startswith("None")
    }
    found = [each for each in outcomes_of(1) if each.operator in differentiable]
    assert len({each.operator for each in found}) > 100
    refused = [each for each in found if each.refusal is not None]
    assert all(each.refusal.reason == "DATA_TYPE_UNSUPPORTED" for each in refused if each.refusal)
    passed = sum(each.passed for each in found)
    assert passed >= 0.98 * len(found)
    print(f"{passed} of {len(found)} of differentiable operators pass")


@pytest.mark.slow
def test_table_in_the_docs_is_what_the_tests_found() -> None:
    assert table(outcomes_of(1)) in DOCS.read_text(), "run: python scripts/write_onnx_docs.py"


def test_backend_has_the_functions_of_onnx() -> None:
    assert onnx_backend.supports_device("CPU")
    assert not onnx_backend.supports_device("CUDA:0")
    node = helper.make_node("Add", ["a", "b"], ["c"])
    (found,) = onnx_backend.run_node(node, [np.float32([1, 2]), np.float32([3, 4])])
    np.testing.assert_array_equal(found, np.float32([4, 6]))
    with pytest.raises(gw.UnsupportedError, match="'CUDA' is not CPU"):
        onnx_backend.run_node(node, [np.float32(1), np.float32(2)], device="CUDA")


def model(text: str) -> onnx.ModelProto:
    found: onnx.ModelProto = onnx.parser.parse_model(text)
    return found


def test_a_prepared_model_runs_many_times_and_takes_names() -> None:
    prepared = onnx_backend.prepare(
        model(
            """<ir_version: 8, opset_import: ["" : 17]>
            g (float[n] x, int64 k) => (float[n] y)
            { z = Cast<to = 1>(k)  y = Mul(x, z) }"""
        )
    )
    for k in (2, 3):
        (found,) = prepared.run({"k": np.int64(k), "x": np.float32([1, 2])})
        np.testing.assert_array_equal(found, np.float32([k, 2 * k]))
    with pytest.raises(gw.InvalidRequestError, match="takes 2 inputs but 3 are given"):
        prepared.run([1, 2, 3])


def test_inputs_that_decide_branches_are_fixed_run_by_run() -> None:
    prepared = onnx_backend.prepare(
        model(
            """<ir_version: 8, opset_import: ["" : 17]>
            g (float[n] x) => (float[n] y) {
              zero = Constant<value_float = 0.0>()
              sum = ReduceSum<keepdims = 0>(x)
              up = Greater(sum, zero)
              y = If(up) <
                then_branch = t () => (float[n] a) { a = Identity(x) },
                else_branch = e () => (float[n] b) { b = Neg(x) }
              >
            }"""
        )
    )
    for sign in (1, -1):
        given: Any = np.float32([sign, 2 * sign])
        (found,) = prepared.run([given])
        np.testing.assert_array_equal(found, np.abs(given))


def test_sequences_go_in_and_out_as_lists() -> None:
    x = [np.float32([1, 2]), np.float32([3])]
    node = helper.make_node("SequenceInsert", ["s", "x"], ["y"])
    (found,) = onnx_backend.run_node(node, [x, np.float32([4])])
    assert [each.tolist() for each in found] == [[1, 2], [3], [4]]
    prepared = onnx_backend.prepare(
        model(
            """<ir_version: 8, opset_import: ["" : 18]>
            g (optional(seq(float)) s) => (optional(seq(float)) y, bool has)
            { y = Identity(s)  has = OptionalHasElement(s) }"""
        )
    )
    found, has = prepared.run([x])
    assert (len(found), has) == (2, True)
    assert prepared.run([None]) == (None, False)
