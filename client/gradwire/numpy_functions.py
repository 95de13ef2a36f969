"""NumPy's own functions on handles: `np.exp(h)` records a gate."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from gradwire.builder import Handle, Operand, apply
from gradwire.errors import InvalidRequestError, nearest

#: Operators by the names of NumPy's functions of numbers.
UFUNCS = {
    "absolute": "Abs", "add": "Add", "arccos": "Acos", "arccosh": "Acosh", "arcsin": "Asin",
    "arcsinh": "Asinh", "arctan": "Atan", "arctanh": "Atanh", "ceil": "Ceil", "cos": "Cos",
    "cosh": "Cosh", "divide": "Div", "equal": "Equal", "exp": "Exp", "fabs": "Abs",
    "floor": "Floor", "greater": "Greater", "greater_equal": "GreaterOrEqual", "isinf": "IsInf",
    "isnan": "IsNaN", "less": "Less", "less_equal": "LessOrEqual", "log": "Log",
    "logical_and": "And", "logical_not": "Not", "logical_or": "Or", "logical_xor": "Xor",
    "matmul": "MatMul", "maximum": "Max", "minimum": "Min", "multiply": "Mul",
    "negative": "Neg", "power": "Pow", "reciprocal": "Reciprocal", "rint": "Round",
    "sign": "Sign", "sin": "Sin", "sinh": "Sinh", "sqrt": "Sqrt", "subtract": "Sub",
    "tan": "Tan", "tanh": "Tanh",
}  # fmt: skip


def call_ufunc(
    ufunc: np.ufunc, method: str, inputs: Sequence[Any], options: Mapping[str, Any]
) -> Handle:
    """The gate of a ufunc (OPERATOR_UNKNOWN where there is none)."""
    if method != "__call__" or options:
        raise InvalidRequestError(
            "OPERATOR_UNKNOWN",
            f"np.{ufunc.__name__} on a handle takes no options and no method; call it plainly",
        )
    if ufunc.__name__ == "square":
        return apply("Mul", (inputs[0], inputs[0]), {})
    return apply(_known(ufunc.__name__, UFUNCS), tuple(inputs), {})


def call_function(function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Handle:
    """The gates of a NumPy function (OPERATOR_UNKNOWN where there are none)."""
    found: Handle = _known(function.__name__, _FUNCTIONS)(*args, **kwargs)
    return found


def _known(name: str, table: Mapping[str, Any]) -> Any:
    if name not in table:
        raise InvalidRequestError(
            "OPERATOR_UNKNOWN",
            f"np.{name} is not known on handles{nearest(name, [*UFUNCS, *_FUNCTIONS])}; "
            "the functions of gradwire are all the gates",
        )
    return table[name]


def _reduction(operator: str) -> Callable[..., Handle]:
    def reduce_axes(
        x: Handle, axis: int | Sequence[int] | None = None, *, keepdims: bool = False
    ) -> Handle:
        axes = None if axis is None else [axis] if isinstance(axis, int) else list(axis)
        return apply(operator, (x, axes), {"keepdims": int(keepdims)})

    return reduce_axes


def _where(condition: Operand, x: Operand, y: Operand) -> Handle:
    return apply("Where", (condition, x, y), {})


def _concatenate(parts: Sequence[Operand], axis: int = 0) -> Handle:
    return apply("Concat", tuple(parts), {"axis": axis})


def _reshape(x: Handle, shape: int | Sequence[int]) -> Handle:
    return apply("Reshape", (x, [shape] if isinstance(shape, int) else list(shape)), {})


def _transpose(x: Handle, axes: Sequence[int] | None = None) -> Handle:
    return apply("Transpose", (x,), {"perm": axes})


def _clip(x: Handle, low: Operand = None, high: Operand = None) -> Handle:
    return apply("Clip", (x, low, high), {})


def _cumsum(x: Handle, axis: int) -> Handle:
    return apply("CumSum", (x, axis), {})


def _dot(x: Operand, y: Operand) -> Handle:
    return apply("MatMul", (x, y), {})


def _expand_dims(x: Handle, axis: int | Sequence[int]) -> Handle:
    return apply("Unsqueeze", (x, [axis] if isinstance(axis, int) else list(axis)), {})


def _squeeze(x: Handle, axis: int | Sequence[int] | None = None) -> Handle:
    axes = None if axis is None else [axis] if isinstance(axis, int) else list(axis)
    return apply("Squeeze", (x, axes), {})


def _stack(parts: Sequence[Operand], axis: int = 0) -> Handle:
    return _concatenate([_expand_dims(part, axis) for part in parts], axis)


def _tile(x: Handle, reps: int | Sequence[int]) -> Handle:
    return apply("Tile", (x, [reps] if isinstance(reps, int) else list(reps)), {})


def _take(x: Handle, indices: Operand, axis: int = 0) -> Handle:
    return apply("Gather", (x, indices), {"axis": axis})


def _broadcast_to(x: Handle, shape: Sequence[int]) -> Handle:
    return apply("Expand", (x, list(shape)), {})


def _einsum(equation: str, *operands: Operand) -> Handle:
    return apply("Einsum", operands, {"equation": equation})


_FUNCTIONS: dict[str, Callable[..., Handle]] = {
    "amax": _reduction("ReduceMax"),
    "amin": _reduction("ReduceMin"),
    "broadcast_to": _broadcast_to,
    "clip": _clip,
    "concatenate": _concatenate,
    "cumsum": _cumsum,
    "dot": _dot,
    "einsum": _einsum,
    "expand_dims": _expand_dims,
    "max": _reduction("ReduceMax"),
    "mean": _reduction("ReduceMean"),
    "min": _reduction("ReduceMin"),
    "prod": _reduction("ReduceProd"),
    "reshape": _reshape,
    "squeeze": _squeeze,
    "stack": _stack,
    "sum": _reduction("ReduceSum"),
    "take": _take,
    "tile": _tile,
    "transpose": _transpose,
    "where": _where,
}
