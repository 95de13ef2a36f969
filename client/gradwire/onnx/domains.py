"""Operators of other domains that are read, and what a model has that is not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import onnx

from gradwire.errors import UnsupportedError
from gradwire.onnx import control, microsoft, ml, sequences, upgrading
from gradwire.onnx.messages import domain_of
from gradwire.onnx.refusals import REFUSED_OPERATORS
from gradwire.onnx.values import Value
from gradwire.signatures import SIGNATURES

if TYPE_CHECKING:
    from gradwire.onnx.reading import Call, Reader

#: What reads each operator, by domain.
DOMAINS: dict[str, dict[str, Callable[[Reader, Call], list[Value]]]] = {
    "": microsoft.WITHOUT_DOMAIN,
    "ai.onnx.ml": ml.OPERATORS,
    "com.microsoft": microsoft.OPERATORS,
}
_OURS = {"Constant", *SIGNATURES, *control.OPERATORS, *sequences.OPERATORS, *upgrading.ADAPTERS}


def with_all_missing(error: UnsupportedError, model: onnx.ModelProto) -> UnsupportedError:
    """The refusal of an operator; with all that are missing, where it is not the only one."""
    if error.reason != "OPERATOR_UNKNOWN":
        return error
    functions = {(domain_of(each.domain), each.name, each.overload) for each in model.functions}
    missing: Counter[str] = Counter()
    waiting: list[Iterable[onnx.NodeProto]] = [
        model.graph.node, *(each.node for each in model.functions)
    ]  # fmt: skip
    while waiting:
        for node in waiting.pop():
            domain = domain_of(node.domain)
            is_function = (domain, node.op_type, node.overload) in functions
            if not is_function and not _is_read(node.op_type, domain):
                missing[f"{domain}.{node.op_type}" if domain else node.op_type] += 1
            waiting.extend(each.g.node for each in node.attribute if each.HasField("g"))
    if missing.total() < 2:
        return error
    listed = ", ".join(f"{name} ({count})" for name, count in sorted(missing.items()))
    message = f"{error.message}; all operators of the model that are missing: {listed}"
    return UnsupportedError(error.reason, message, error.facts)


def _is_read(operator: str, domain: str) -> bool:
    if operator in DOMAINS.get(domain, {}) or (not domain and operator in _OURS):
        return True
    if (not domain and operator in REFUSED_OPERATORS) or not onnx.defs.has(operator, domain):
        return False
    schema: Any = onnx.defs.get_schema(operator, domain=domain)
    return bool(schema.has_function or schema.has_context_dependent_function)
