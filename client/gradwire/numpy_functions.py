"""NumPy's own functions on handles: `np.exp(h)` records a gate."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from gradwire.builder import Handle, Operand, apply
from gradwire.builder.handles import not_equal, power, true_divide
from gradwire.builder.promotion import cast_hint
from gradwire.errors import InvalidRequestError
from gradwire.tensors import FLOATS, data_type, dtype_name

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


#: Ufuncs that are more than a gate of the same inputs.
_OTHER_UFUNCS: dict[str, Callable[..., Handle]] = {
    "divide": true_divide,
    "fabs": lambda x: apply("Abs", (_floating("fabs", x),), {}),
    "not_equal": not_equal,
    "power": power,
    "square": lambda x: apply("Mul", (x, x), {}),
}


class _Function(NamedTuple):
    """What stands for a function of NumPy on handles, and the names of NumPy's parameters."""

    parameters: str
    record: Callable[..., Handle]

    @property
    def taken(self) -> list[str]:
        """Those that mean something here."""
        return [name.removeprefix("*") for name in inspect.signature(self.record).parameters]


def call_ufunc(
    ufunc: np.ufunc, method: str, inputs: Sequence[Any], options: Mapping[str, Any]
) -> Handle:
    """The gate of a ufunc (OPERATOR_UNKNOWN where there is none)."""
    name = ufunc.__name__
    if method != "__call__" or options:
        what = (
            f"np.{name}.{method}" if method != "__call__" else f"the option {next(iter(options))!r}"
        )
        raise InvalidRequestError(
            "OPERATOR_UNKNOWN",
            f"np.{name} on handles takes no options and has no methods, but {what} is used; call "
            f"np.{name}({', '.join(['x', 'y', 'z'][: ufunc.nin])})",
        )
    if name in _OTHER_UFUNCS:
        return _OTHER_UFUNCS[name](*inputs)
    if name not in UFUNCS:
        raise _unknown(ufunc)
    return apply(UFUNCS[name], tuple(inputs), {})


def call_function(function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Handle:
    """The gates of a NumPy function (OPERATOR_UNKNOWN, OPTION_UNKNOWN where there are none)."""
    if function not in _FUNCTIONS:
        raise _unknown(function)
    known = _FUNCTIONS[function]
    taken = known.taken
    names = known.parameters.split()
    given = dict(zip(names, args, strict=False)) | dict(kwargs)
    if names == ["*operands"]:
        given = {"operands": args, **kwargs}
    for name, value in [*given.items()]:
        if name in taken and value is not _NOT_GIVEN:
            continue
        if value is not _NOT_GIVEN and not _is_default(name, value):
            raise InvalidRequestError(
                "OPTION_UNKNOWN",
                f"{_qualified(function)} on handles has no option {name!r}, only "
                f"{', '.join(taken)}; leave it out",
            )
        del given[name]
    operands = given.pop("operands", ())
    return known.record(*operands, **given)


def _is_default(name: str, value: Any) -> bool:
    """Whether an option that no gate has says what NumPy does without it."""
    defaults = {"order": "C", "mode": "raise", "casting": "same_kind"}
    if isinstance(value, str):
        return defaults.get(name) == value
    return value is None or (value is True and name == "where") or name in ("optimize", "subok")


def _qualified(function: Any) -> str:
    module = getattr(function, "__module__", None) or "numpy"
    return f"{module.replace('numpy', 'np', 1)}.{function.__name__}"


#: What to write in place of functions that have no gate of their own.
_INSTEAD = {
    "argsort": "gw.top_k", "average": "np.mean", "fft": "gw.dft", "floor_divide": "np.floor(x / y)",
    "hstack": "np.concatenate", "inner": "np.einsum", "linalg.norm": "gw.reduce_l2",
    "log10": "np.log(x) / np.log(10)", "log2": "np.log(x) / np.log(2)",
    "moveaxis": "np.transpose(x, axes)", "outer": "np.einsum('i,j->ij', x, y)",
    "ravel": "np.reshape(x, -1)", "remainder": "gw.mod", "rfft": "gw.dft", "sort": "gw.top_k",
    "swapaxes": "np.transpose(x, axes)", "tensordot": "np.einsum", "trace": "np.einsum('ii', x)",
    "var": "np.mean(np.square(x - np.mean(x)))", "vstack": "np.concatenate or np.stack",
}  # fmt: skip


def _unknown(function: Any) -> InvalidRequestError:
    """A refusal that names what to write: our function of the same name, or others."""
    from gradwire import operators

    ours = {name.replace("_", ""): f"gw.{name}" for name in operators.__all__}
    full = _qualified(function)
    name = function.__name__
    instead = ours.get(name.replace("_", "")) or _INSTEAD.get(name) or _INSTEAD.get(full[3:])
    hint = f"write {instead}" if instead else "write it with gates: docs/gates.md lists them"
    return InvalidRequestError("OPERATOR_UNKNOWN", f"{full} is not known on handles; {hint}")


def _floating(name: str, x: Operand) -> Operand:
    if x.dtype not in FLOATS:
        raise InvalidRequestError(
            "DATA_TYPE_UNSUPPORTED",
            f"np.{name} makes floats of {x.dtype}; cast it, as with {cast_hint('float64')}",
        )
    return x


def _cast(x: Operand, dtype: str) -> Operand:
    if getattr(x, "dtype", None) == dtype:
        return x
    return apply("Cast", (x,), {"to": int(data_type(dtype))})


def _accumulated(reduce: Callable[..., Any], x: Operand, dtype: Any) -> Operand:
    """x in the data type that NumPy accumulates it in: int8 in int64, and means in floats."""
    if dtype is None:
        dtype = reduce(np.zeros(1, x.dtype)).dtype
    return _cast(x, dtype_name(dtype))


def _axes(axis: Any) -> list[int]:
    """One axis, or several."""
    several = axis if isinstance(axis, (tuple, list)) else [axis]
    return [operator.index(each) for each in several]


def _flat(x: Operand) -> Handle:
    return apply("Reshape", (x, [-1]), {})


def _reduce(gate: str, x: Operand, axis: Any, keepdims: bool) -> Handle:
    axes = None if axis is None else _axes(axis)
    attributes = {"keepdims": int(keepdims)}
    if axes == []:
        attributes["noop_with_empty_axes"] = 1
    return apply(gate, (x, axes), attributes)


def _sum(a: Operand, axis: Any = None, dtype: Any = None, keepdims: bool = False) -> Handle:
    return _reduce("ReduceSum", _accumulated(np.sum, a, dtype), axis, keepdims)


def _prod(a: Operand, axis: Any = None, dtype: Any = None, keepdims: bool = False) -> Handle:
    return _reduce("ReduceProd", _accumulated(np.prod, a, dtype), axis, keepdims)


def _mean(a: Operand, axis: Any = None, dtype: Any = None, keepdims: bool = False) -> Handle:
    return _reduce("ReduceMean", _accumulated(np.mean, a, dtype), axis, keepdims)


def _max(a: Operand, axis: Any = None, keepdims: bool = False) -> Handle:
    return _reduce("ReduceMax", a, axis, keepdims)


def _min(a: Operand, axis: Any = None, keepdims: bool = False) -> Handle:
    return _reduce("ReduceMin", a, axis, keepdims)


def _where(condition: Operand, x: Operand = None, y: Operand = None) -> Handle:
    if x is None or y is None:
        raise InvalidRequestError(
            "INPUT_COUNT_INVALID",
            "np.where of a condition alone yields places, whose number is not known; write "
            "gw.non_zero(condition), or np.where(condition, x, y)",
        )
    return apply("Where", (condition, x, y), {})


def _concatenate(arrays: Sequence[Operand], axis: int | None = 0) -> Handle:
    if axis is None:
        return _concatenate([_flat(each) for each in _lifted(arrays)])
    return apply("Concat", tuple(arrays), {"axis": operator.index(axis)})


def _reshape(a: Operand, shape: Any = None) -> Handle:
    sizes = _axes(shape)
    return apply("Reshape", (a, sizes), {"allowzero": 1} if 0 in sizes else {})


def _transpose(a: Operand, axes: Sequence[int] | None = None) -> Handle:
    return apply("Transpose", (a,), {"perm": None if axes is None else _axes(axes)})


def _clip(
    a: Operand,
    a_min: Operand = None,
    a_max: Operand = None,
    min: Operand = None,
    max: Operand = None,
) -> Handle:
    if (a_min is not None and min is not None) or (a_max is not None and max is not None):
        raise InvalidRequestError("INPUT_COUNT_INVALID", "np.clip takes a_min or min, not both")
    low, high = (min if a_min is None else a_min), (max if a_max is None else a_max)
    return apply("Clip", (a, low, high), {})


def _cumsum(a: Operand, axis: Any = None, dtype: Any = None) -> Handle:
    x = _accumulated(np.cumsum, a, dtype)
    if axis is None:
        return apply("CumSum", (_flat(x), 0), {})
    return apply("CumSum", (x, operator.index(axis)), {})


def _dot(a: Operand, b: Operand) -> Handle:
    """MatMul, but for numbers, and where both have several axes and one more than two."""
    first, last = _rank(a), _rank(b)
    if 0 in (first, last):
        return apply("Mul", (a, b), {})
    if first == 1 or last in (1, 2):
        return apply("MatMul", (a, b), {})
    if first is None or last is None:
        raise InvalidRequestError(
            "SHAPE_MISMATCH",
            "np.dot depends on how many axes its operands have, which is not known of values that "
            "are computed; write x @ y where the second one has at most two, else np.einsum",
        )
    letters = iter("abcdefghijlmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
    x, y = ("".join(islice(letters, count)) for count in (first - 1, last - 1))
    equation = f"{x}k,{y[:-1]}k{y[-1]}->{x}{y}"
    return apply("Einsum", (a, b), {"equation": equation})


def _rank(x: Operand) -> int | None:
    return x.graph.rank(x) if isinstance(x, Handle) else np.ndim(x)


def _expand_dims(a: Operand, axis: Any) -> Handle:
    return apply("Unsqueeze", (a, _axes(axis)), {}) if _axes(axis) else _same(a)


def _squeeze(a: Operand, axis: Any = None) -> Handle:
    if axis is None:
        return apply("Squeeze", (a, None), {})
    return apply("Squeeze", (a, _axes(axis)), {}) if _axes(axis) else _same(a)


def _same(a: Operand) -> Handle:
    return apply("Identity", (a,), {})


def _stack(arrays: Sequence[Operand], axis: int = 0) -> Handle:
    axis = operator.index(axis)
    return _concatenate([_expand_dims(part, axis) for part in _lifted(arrays)], axis)


def _lifted(arrays: Sequence[Operand]) -> list[Handle]:
    graph = next(each.graph for each in arrays if isinstance(each, Handle))
    return graph.lift("Concat", tuple(arrays))


def _tile(A: Operand, reps: Any) -> Handle:  # noqa: N803 -- NumPy's name
    return apply("Tile", (A, _axes(reps)), {})


def _take(a: Operand, indices: Operand, axis: Any = None) -> Handle:
    if axis is None:
        return apply("Gather", (_flat(a), indices), {"axis": 0})
    return apply("Gather", (a, indices), {"axis": operator.index(axis)})


def _broadcast_to(array: Operand, shape: Any) -> Handle:
    """Expand, and the shape that is asked for: Expand alone also widens the shape."""
    sizes = _axes(shape)
    wide = apply("Expand", (array, sizes), {})
    return apply("Reshape", (wide, sizes), {"allowzero": 1} if 0 in sizes else {})


def _einsum(equation: str, *operands: Operand) -> Handle:
    if not isinstance(equation, str):
        raise InvalidRequestError(
            "ATTRIBUTE_INVALID",
            "np.einsum on handles takes the equation first, as in np.einsum('ij,jk->ik', x, y)",
        )
    return apply("Einsum", operands, {"equation": equation})


def _det(a: Operand) -> Handle:
    return apply("Det", (a,), {})


_NOT_GIVEN: Any = inspect.signature(np.sum).parameters["keepdims"].default
_EXTREMUM = "a axis out keepdims initial where"
_SUMMED = "a axis dtype out keepdims initial where"
_FUNCTIONS: dict[Any, _Function] = {
    np.amax: _Function(_EXTREMUM, _max),
    np.amin: _Function(_EXTREMUM, _min),
    np.broadcast_to: _Function("array shape subok", _broadcast_to),
    np.clip: _Function("a a_min a_max out", _clip),
    np.concatenate: _Function("arrays axis out dtype casting", _concatenate),
    np.cumsum: _Function("a axis dtype out", _cumsum),
    np.dot: _Function("a b out", _dot),
    np.einsum: _Function("*operands", _einsum),
    np.expand_dims: _Function("a axis", _expand_dims),
    np.linalg.det: _Function("a", _det),
    np.max: _Function(_EXTREMUM, _max),
    np.mean: _Function("a axis dtype out keepdims where", _mean),
    np.min: _Function(_EXTREMUM, _min),
    np.prod: _Function(_SUMMED, _prod),
    np.reshape: _Function("a shape order", _reshape),
    np.squeeze: _Function("a axis", _squeeze),
    np.stack: _Function("arrays axis out dtype casting", _stack),
    np.sum: _Function(_SUMMED, _sum),
    np.take: _Function("a indices axis out mode", _take),
    np.tile: _Function("A reps", _tile),
    np.transpose: _Function("a axes", _transpose),
    np.where: _Function("condition x y", _where),
}
