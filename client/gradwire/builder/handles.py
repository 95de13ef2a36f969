"""Handles, which stand for values that a server will compute, and their operators."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from gradwire.errors import InvalidRequestError
from gradwire.signature import Signature

if TYPE_CHECKING:
    from gradwire.builder.graph import Graph

#: What a function of handles takes: at least one operand must be a handle.
Operand = Any


class Handle:
    """A value of a graph under construction."""

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
        raise TypeError("a handle has no value yet, so it cannot be branched on; use gw.where")

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
        return _one("Div", self, other)

    def __rtruediv__(self, other: Operand) -> Handle:
        return _one("Div", other, self)

    def __pow__(self, other: Operand) -> Handle:
        return _one("Pow", self, other)

    def __rpow__(self, other: Operand) -> Handle:
        return _one("Pow", other, self)

    def __matmul__(self, other: Operand) -> Handle:
        return _one("MatMul", self, other)

    def __rmatmul__(self, other: Operand) -> Handle:
        return _one("MatMul", other, self)

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
    graph: Graph, signature: Signature, operands: Sequence[Operand | None]
) -> list[Handle | None]:
    """Numbers and arrays as constants, of the data type of the handles in their group."""
    declared = signature.declared_inputs(len(operands))
    groups: dict[str, str] = {}
    for each, operand in zip(declared, operands, strict=True):
        if isinstance(operand, Handle):
            if operand.graph is not graph:
                raise graph._shared.foreign(operand)
            groups.setdefault(each.group, operand.dtype)
    found: list[Handle | None] = []
    for each, operand in zip(declared, operands, strict=True):
        if operand is None or isinstance(operand, Handle):
            found.append(operand)
            continue
        weak = not isinstance(operand, (np.ndarray, np.generic))
        dtype = groups.get(each.group) if weak else None
        if dtype is None and weak and "int64" in each.dtypes and "float64" not in each.dtypes:
            dtype = "int64"
        found.append(graph.constant(operand, dtype))
    return found


def _one(operator: str, *operands: Operand) -> Handle:
    return apply(operator, operands, {})


def _graph_of(operator: str, operands: Iterable[Operand]) -> Graph:
    for operand in operands:
        if isinstance(operand, Handle):
            return operand.graph
    raise TypeError(f"{operator} needs a handle; make one with graph.input or graph.constant")
