"""How ONNX's own node tests end: passed, failed, or refused, each with its reason."""

from __future__ import annotations

import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx.backend.test.case.test_case import TestCase
from onnx.backend.test.loader import load_model_tests
from onnx.backend.test.runner import Runner

from gradwire.errors import GradwireError
from gradwire.onnx.refusals import REFUSED_OPERATORS

#: Cases whose expected numbers ONNX wrote down with four digits.
ROUNDED = (
    "test_averagepool_2d_ceil_last_window_starts_on_pad",
    "test_gridsample_bicubic",
    "test_roialign_aligned_false",
    "test_roialign_aligned_true",
)
_RTOL, _ATOL = 1e-5, 1e-6
_HALF_RTOL = {"float16": 2**-9, "bfloat16": 2**-6}


@dataclass(frozen=True)
class Outcome:
    """The end of one test: of `operator`, passed unless there is a failure or a refusal."""

    name: str
    operator: str
    failure: str = ""
    refusal: GradwireError | None = None

    @property
    def passed(self) -> bool:
        """Whether every output was as ONNX says."""
        return not self.failure and self.refusal is None

    @property
    def why(self) -> str:
        """The reason of a refusal, the same for all tests with this reason."""
        if self.refusal is None:
            return ""
        facts = self.refusal.facts
        if "operator" in facts:
            reason = REFUSED_OPERATORS.get(
                facts["operator"], self.refusal.message.split(": ", 1)[-1]
            )
            same = facts["operator"] == self.operator
            return reason if same else f"{facts['operator']} {reason}"
        if "data_type" in facts:
            return f"data type {facts['data_type']}"
        return self.refusal.message


def node_tests() -> list[TestCase]:
    """All node tests of the installed onnx."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # ONNX's own scripts warn while they make their numbers
        found: list[TestCase] = load_model_tests(kind="node")
    return found


def outcomes(cases: Sequence[TestCase], run: Callable[..., Any]) -> Iterator[Outcome]:
    """The outcome of each test; `run` yields outputs for a model and its inputs."""
    first_operators = {
        case.name: case.model.graph.node[0].op_type for case in node_tests() if case.model
    }
    for case in cases:
        base = re.sub(r"_expanded(_ver\d+)?$", "", case.name)
        operator = first_operators.get(base, first_operators[case.name])
        try:
            _check(case, run)
        except GradwireError as refusal:
            yield Outcome(case.name, operator, refusal=refusal)
        except AssertionError as failure:
            yield Outcome(case.name, operator, failure=str(failure))
        else:
            yield Outcome(case.name, operator)


def _check(case: TestCase, run: Callable[..., Any]) -> None:
    rounded = case.name.removesuffix("_expanded") in ROUNDED
    for inputs, given in case.data_sets or ():
        expected = [_array(each) for each in given]
        outputs = run(case.model, [_array(each) for each in inputs])
        rtol = case.rtol if rounded else max([_RTOL, *map(_precision, expected)])
        Runner.assert_similar_outputs(*_items(expected, outputs), rtol, _ATOL)


def _items(expected: Sequence[Any], outputs: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """The arrays of both, one by one: ONNX's runner does not compare how long sequences are."""
    assert len(outputs) == len(expected), f"{len(outputs)} outputs instead of {len(expected)}"
    pairs = []
    for reference, output in zip(expected, outputs, strict=True):
        if not isinstance(reference, list):
            pairs.append((reference, output))
            continue
        assert isinstance(output, list), f"{output!r} instead of a sequence"
        assert len(output) == len(reference), f"{len(output)} items instead of {len(reference)}"
        pairs.extend(zip(reference, output, strict=True))
    return [each for each, _ in pairs], [each for _, each in pairs]


def _precision(expected: Any) -> float:
    """Two units in the last place of half precision; others are compared more closely."""
    return _HALF_RTOL.get(str(getattr(expected, "dtype", "")), 0.0)


def _array(value: Any) -> Any:
    if isinstance(value, onnx.TensorProto):
        return onnx.numpy_helper.to_array(value)
    return value


def table(found: Iterable[Outcome]) -> str:
    """A table in Markdown: by operator, tests passed and refused, and why."""
    by_operator = defaultdict(list)
    for outcome in found:
        by_operator[outcome.operator].append(outcome)
    everything = [outcome for each in by_operator.values() for outcome in each]
    lines = ["| operator | passed | refused | failed | why refused |", "|---|---|---|---|---|"]
    for operator, each in [("**all**", everything), *sorted(by_operator.items())]:
        refused = sum(outcome.refusal is not None for outcome in each)
        failed = sum(bool(outcome.failure) for outcome in each)
        why = "" if operator == "**all**" else _reasons(each)
        passed = f"{sum(outcome.passed for outcome in each)} of {len(each)}"
        lines.append(f"| {operator} | {passed} | {refused or ''} | {failed or ''} | {why} |")
    return "\n".join(lines) + "\n"


def _reasons(found: Iterable[Outcome]) -> str:
    """Reasons of refusals with their counts; data types in one list."""
    counts = Counter(outcome.why for outcome in found if outcome.why)
    types = {
        why.removeprefix("data type "): count
        for why, count in counts.items()
        if why.startswith("data type ")
    }
    parts = [why for why in counts if why.removeprefix("data type ") not in types]
    if types:
        listed = ", ".join(f"{name} ({count})" for name, count in sorted(types.items()))
        parts.append(f"data types {listed}")
    return "; ".join(sorted(parts))
