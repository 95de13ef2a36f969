"""Handles, which stand for values that a server will compute, and their operators."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from gradwire.builder import promotion
from gradwire.errors import InvalidRequestError
from gradwire.signature import Signature
from gradwire.tensors import FLOATS, Array, data_type, from_value, raw

if TYPE_CHECKING:
    from gradwire.builder.graph import Graph

#: What a function of handles takes: at least one operand must be a handle.
Operand = Any


class Handle:
    """A value of a graph under construction.

    Handles are compared with `is`: `==` records a gate, as the other operators do.
    """

    __slots__ = ("dtype", "graph", "key")
    __array_priority__ = 1000
    __hash__ = object.__hash__

    def __init__(self, graph: Graph, key: int, dtype: str) -> None:
        self.graph = graph
        self.key = key
        self.dtype = dtype

    def __repr__(self) -> str:
        return f"<gradwire.Handle {self.graph.label(self.key)}: {self.dtype}>"

    def __copy__(self) -> Handle:
        return self

    def __deepcopy__(self, _: object) -> Handle:
        """The same value of the same graph."""
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"{self!r} cannot be pickled: it is a value of a graph that is being built; give it a "
            "name, send the graph, and ask the result for that name"
        )

    def named(self, name: str) -> Handle:
        """The same handle, with a name in the graph (NAME_INVALID where it is taken)."""
        self.graph.name(self, name)
        return self

    def __bool__(self) -> bool:
        raise TypeError(
            "a handle has no value yet, so it cannot be branched on; use gw.where, and `is` to ask "
            "whether two handles are the same"
        )

    def __float__(self) -> float:
        raise TypeError(
            "a handle has no value yet, so it is no number; use gradwire's functions and NumPy's, "
            "such as gw.exp or np.exp, in place of those of numbers"
        )

    __complex__ = __int__ = __float__

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise TypeError(
            "a handle has no elements yet, so it cannot become an array or a part of one; put "
            "handles together with np.stack or gw.concat, and use gates, such as gw.reduce_l2 or "
            "gw.conv, in place of functions of arrays, such as SciPy's"
        )

    def __iter__(self) -> Any:
        raise TypeError("a handle's shape is not known yet; use gw.split or gw.gather")

    def __neg__(self) -> Handle:
        return _one("Neg", self)

    def __abs__(self) -> Handle:
        return _one("Abs", self)

    def __add__(self, other: Operand) -> Handle:
        return _one("Add", self, other)

    def __radd__(self, other: Operand) -> Handle:
        return _one("Add", other, self)

    def __sub__(self, other: Operand) -> Handle:
        return _one("Sub", self, other)

    def __rsub__(self, other: Operand) -> Handle:
        return _one("Sub", other, self)

    def __mul__(self, other: Operand) -> Handle:
        return _one("Mul", self, other)

    def __rmul__(self, other: Operand) -> Handle:
        return _one("Mul", other, self)

    def __truediv__(self, other: Operand) -> Handle:
        return true_divide(self, other)

    def __rtruediv__(self, other: Operand) -> Handle:
        return true_divide(other, self)

    def __pow__(self, other: Operand) -> Handle:
        return power(self, other)

    def __rpow__(self, other: Operand) -> Handle:
        return power(other, self)

    def __matmul__(self, other: Operand) -> Handle:
        return _one("MatMul", self, other)

    def __rmatmul__(self, other: Operand) -> Handle:
        return _one("MatMul", other, self)

    def __eq__(self, other: Operand) -> Handle:  # type: ignore[override]
        return _one("Equal", self, other)

    def __ne__(self, other: Operand) -> Handle:  # type: ignore[override]
        return not_equal(self, other)

    def __lt__(self, other: Operand) -> Handle:
        return _one("Less", self, other)

    def __le__(self, other: Operand) -> Handle:
        return _one("LessOrEqual", self, other)

    def __gt__(self, other: Operand) -> Handle:
        return _one("Greater", self, other)

    def __ge__(self, other: Operand) -> Handle:
        return _one("GreaterOrEqual", self, other)

    def __and__(self, other: Operand) -> Handle:
        return _one("And", self, other)

    def __or__(self, other: Operand) -> Handle:
        return _one("Or", self, other)

    def __xor__(self, other: Operand) -> Handle:
        return _one("Xor", self, other)

    def __invert__(self) -> Handle:
        return _one("Not", self)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Handle:
        from gradwire.numpy_functions import call_ufunc

        return call_ufunc(ufunc, method, inputs, options)

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Handle:
        from gradwire.numpy_functions import call_function

        return call_function(function, args, kwargs)


def apply(operator: str, inputs: Sequence[Operand | None], attributes: dict[str, Any]) -> Handle:
    """Adds a node with one output to the graph of its handles."""
    return _graph_of(operator, inputs).apply(operator, inputs, attributes)[0]


def apply_among(operator: str, operands: Sequence[Operand], attributes: dict[str, Any]) -> Handle:
    """Adds a node among several operands; of one, what is meant is its elements, or nothing."""
    if len(operands) == 1 and isinstance(operands[0], Handle):
        name = operator.lower()
        raise InvalidRequestError(
            "INPUT_COUNT_INVALID",
            f"gw.{name} of one handle is that handle; write gw.reduce_{name}(x) for the {name} of "
            f"its elements, or gw.{name}(x, y, ...) for that of several handles",
        )
    return apply(operator, operands, attributes)


def apply_several(
    operator: str, inputs: Sequence[Operand | None], attributes: dict[str, Any], outputs: int
) -> tuple[Handle, ...]:
    """Adds a node with several outputs."""
    return _graph_of(operator, inputs).apply(operator, inputs, attributes, outputs)


def apply_split(
    operator: str, inputs: Sequence[Operand | None], attributes: dict[str, Any]
) -> tuple[Handle, ...]:
    """Adds a Split: as many outputs as `num_outputs`, or as `split` has entries."""
    sizes = inputs[1]
    if attributes["num_outputs"] is None and not isinstance(sizes, (list, tuple, np.ndarray)):
        raise InvalidRequestError(
            "OUTPUT_COUNT_INVALID", f"{operator}: give num_outputs, or split as a list of sizes"
        )
    outputs = attributes["num_outputs"] or len(sizes or ())
    return _graph_of(operator, inputs).apply(operator, inputs, attributes, outputs)


def lifted(
    graph: Graph, made_at: str, signature: Signature, operands: Sequence[Operand | None]
) -> list[Handle | None]:
    """Handles of all operands: numbers and arrays as constants, as `promotion` says.

    Nothing is added to the graph where the operator does not take them (DATA_TYPE_MISMATCH, ...).
    """
    dtypes: list[str | None] = []
    is_lifted = True
    for each in operands:
        if not isinstance(each, Handle):
            dtypes.append(None)
            is_lifted = is_lifted and each is None
        elif each.graph is graph:
            dtypes.append(each.dtype)
        else:
            raise graph._shared.foreign(each)
    if is_lifted:
        signature.check_dtypes(dtypes)
        return [*operands]
    wanted = promotion.operand_dtypes(signature, operands, dtypes)
    signature.check_dtypes(wanted)
    checked = [  # all of them, before the first is added
        each if dtype is None or isinstance(each, Handle) else _stored(each, dtype)
        for each, dtype in zip(operands, wanted, strict=True)
    ]
    return [_handle(graph, made_at, *each) for each in zip(checked, wanted, strict=True)]


def _handle(graph: Graph, made_at: str, operand: Operand, dtype: str | None) -> Handle | None:
    if dtype is None:
        return None
    if not isinstance(operand, Handle):
        return graph.constant(operand, dtype)
    if operand.dtype == dtype:
        return operand
    return graph.apply_at(made_at, "Cast", (operand,), {"to": int(data_type(dtype))})[0]


def _stored(number: Operand, dtype: str) -> Array:
    """A constant's elements (TENSOR_INVALID where its data type cannot hold them)."""
    try:
        return from_value("a constant", number, dtype)
    except InvalidRequestError as failure:
        if not promotion.is_weak(number) or dtype in FLOATS:
            raise
        raise InvalidRequestError(
            failure.reason,
            f"{failure.message}; it takes the data type of the handle beside it, so cast that, as "
            f"with {promotion.cast_hint('float64')}",
        ) from None


def true_divide(x: Operand, y: Operand) -> Handle:
    """x / y."""
    require_division(x, y)
    return _one("Div", x, y)


def power(x: Operand, y: Operand) -> Handle:
    """x ** y."""
    require_power(x, y)
    return _one("Pow", x, y)


def require_division(x: Operand, y: Operand) -> None:
    """x / y is of floats (DATA_TYPE_UNSUPPORTED): of integers, Div rounds towards zero."""
    dtypes = [str(each.dtype) for each in (x, y) if hasattr(each, "dtype")]
    if dtypes and not any(dtype in FLOATS for dtype in dtypes):
        raise InvalidRequestError(
            "DATA_TYPE_UNSUPPORTED",
            f"/ divides {' by '.join(dtypes)} as floats in Python; cast one, as with "
            f"{promotion.cast_hint('float64')}, or round towards zero with gw.div(x, y)",
        )


def require_power(x: Operand, y: Operand) -> None:
    """x ** y has the data type of x, which is what Pow yields (DATA_TYPE_MISMATCH)."""
    if isinstance(x, Handle) and isinstance(y, Handle):
        promotion.require_base(x.dtype, y.dtype)
    elif isinstance(x, Handle) and x.dtype not in FLOATS:
        exponents = raw("Pow: Y", y)
        is_whole = promotion.is_weak(y) or exponents.dtype.kind == "i"
        if is_whole and exponents.dtype.kind in "if" and exponents.min(initial=0) < 0:
            raise InvalidRequestError(
                "DATA_TYPE_MISMATCH",
                f"{x.dtype} to a negative power is no integer; cast the base, as with "
                f"{promotion.cast_hint('float64')}",
            )


def not_equal(x: Operand, y: Operand) -> Handle:
    """x != y."""
    return _one("Not", _one("Equal", x, y))


def _one(operator: str, *operands: Operand) -> Handle:
    if any(operand is None for operand in operands):
        raise InvalidRequestError(
            "INPUT_COUNT_INVALID", f"{operator}: an operand is None; ask for that with `is None`"
        )
    return apply(operator, operands, {})


def _graph_of(operator: str, operands: Iterable[Operand]) -> Graph:
    operands = [*operands]
    for operand in operands:
        if isinstance(operand, Handle):
            return operand.graph
    if any(isinstance(inner, Handle) for each in operands if _is_list(each) for inner in each):
        raise TypeError(
            f"{operator} takes handles one by one, not in a list; unpack it with *, or make one "
            "of them with gw.concat or np.stack"
        )
    raise TypeError(f"{operator} needs a handle; make one with graph.input or graph.constant")


def _is_list(operand: Operand) -> bool:
    return isinstance(operand, (list, tuple))
