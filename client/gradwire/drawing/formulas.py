"""Formula and gradient of every operator, as its function's docstring has them."""

from __future__ import annotations

from functools import cache

from gradwire import operators

_LINES = ("Formula:", "Gradient:")


@cache
def formulas(operator: str) -> tuple[str, ...]:
    """The lines that say what an operator computes, and its gradient; none where it is unknown."""
    function = _functions().get(operator.lower())
    doc = (getattr(operators, function).__doc__ or "") if function else ""
    lines = map(str.strip, doc.splitlines())
    return tuple(line.split(":", 1)[1].strip() for line in lines if line.startswith(_LINES))


@cache
def _functions() -> dict[str, str]:
    """Functions by operator, both without what tells words apart: reduce_sum is ReduceSum."""
    return {name.replace("_", ""): name for name in operators.__all__}
