"""A decoded graph, and the check that its columns make a circuit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

from gradwire_server.errors import Invalid, OverLimit, Unsupported, nearest
from gradwire_server.gates import GATES, Gate
from gradwire_server.gates.base import AttributeValue
from gradwire_server.limits import Limits
from gradwire_server.specs import Shape, Tensor

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Row:
    """One entry of the gates table: an operator with its attributes and counts."""

    operator: str
    attributes: Mapping[str, AttributeValue]
    input_count: int
    output_count: int

    @cached_property
    def gate(self) -> Gate:
        """The gate that implements the operator (OPERATOR_UNKNOWN)."""
        if self.operator not in GATES:
            raise Unsupported(
                "OPERATOR_UNKNOWN",
                f"operator {self.operator!r} is not known to this server"
                + nearest(self.operator, GATES),
                operator=self.operator,
            )
        return GATES[self.operator]


@dataclass(frozen=True)
class Leaf:
    """A value that is not computed: an input, a parameter or a constant."""

    kind: str  # "input", "parameter" or "constant"
    name: str
    dtype: str
    axes: tuple[int | str, ...]
    elements: bool = False
    value: Tensor | None = None

    @property
    def place(self) -> str:
        return f"{self.kind} {self.name!r}"

    @property
    def id_count(self) -> int:
        """Ids it takes: one, or one for each element."""
        if not self.elements:
            return 1
        count = 1
        for axis in self.axes:
            if isinstance(axis, str):
                raise Invalid(
                    "LEAF_INVALID",
                    f"{self.place}: layout ELEMENTS needs fixed sizes but an axis is {axis!r}",
                )
            count *= axis
        return count


@dataclass(frozen=True)
class Output:
    """A named result: one value, or scalars stacked into a vector."""

    name: str
    value_ids: Ids

    @property
    def place(self) -> str:
        return f"output {self.name!r}"


@dataclass(frozen=True)
class Graph:
    """A circuit with its gates table. Ids: 0 is absent, then leaves, then the nodes' outputs."""

    rows: tuple[Row, ...]
    leaves: tuple[Leaf, ...]  # inputs, then parameters, then constants
    node_rows: Ids
    node_inputs: Ids
    outputs: tuple[Output, ...]
    names: Mapping[int, str] = field(default_factory=dict)  # of node values

    @cached_property
    def leaf_first_ids(self) -> tuple[int, ...]:
        """First id of each leaf, and one more: the first id of the nodes."""
        firsts = [1]
        for leaf in self.leaves:
            firsts.append(firsts[-1] + leaf.id_count)
        return tuple(firsts)

    @property
    def node_count(self) -> int:
        return len(self.node_rows)

    @cached_property
    def input_starts(self) -> Ids:
        """Where each node's inputs begin in node_inputs, and one more: their end."""
        counts = np.array([row.input_count for row in self.rows], np.int64)
        return _starts(counts[self.node_rows])

    @cached_property
    def first_ids(self) -> Ids:
        """First output id of each node, and one more: the first id past the last value."""
        counts = np.array([row.output_count for row in self.rows], np.int64)
        return _starts(counts[self.node_rows]) + self.leaf_first_ids[-1]

    @property
    def value_count(self) -> int:
        """Ids are from 1 to this, inclusive."""
        return int(self.first_ids[-1]) - 1

    @cached_property
    def ids_by_name(self) -> dict[str, tuple[int, int]]:
        """First id and id count of everything that has a name and is not a constant."""
        named = {name: (value_id, 1) for value_id, name in self.names.items()}
        for leaf, first in zip(self.leaves, self.leaf_first_ids, strict=False):
            if leaf.kind != "constant":
                named[leaf.name] = (first, leaf.id_count)
        return named

    def node_of(self, value_id: int) -> int:
        """Index of the node that yields a value."""
        return int(np.searchsorted(self.first_ids, value_id, "right")) - 1

    def place_of(self, node: int) -> str:
        """How messages name a node: "node 'scores' (MatMul)"."""
        first = int(self.first_ids[node])
        name = repr(self.names[first]) if first in self.names else str(first)
        return f"node {name} ({self.rows[self.node_rows[node]].operator})"

    def place_of_value(self, value_id: int) -> str:
        """How messages name a value."""
        if value_id in self.names:
            return f"value {self.names[value_id]!r}"
        for leaf, first in zip(self.leaves, self.leaf_first_ids, strict=False):
            if first <= value_id < first + leaf.id_count:
                return leaf.place
        return f"value {value_id}"


def check_structure(graph: Graph, limits: Limits) -> None:
    """Raises unless the columns make a circuit within the limits; allocates nothing before.

    NODE_INVALID, NAME_INVALID, LEAF_INVALID, OUTPUT_INVALID, GRAPH_INVALID, OPERATOR_UNKNOWN,
    INPUT_COUNT_INVALID, OUTPUT_COUNT_INVALID, ATTRIBUTE_INVALID, LIMIT_EXCEEDED.
    """
    if graph.node_count > limits.max_nodes:
        raise OverLimit.of("max-nodes", limits.max_nodes, graph.node_count, "number of nodes")
    for leaf in graph.leaves:
        _check_leaf(leaf)
    for row in graph.rows:
        _check_row(row)
    _check_nodes(graph, limits)
    _check_names(graph)
    if not graph.outputs:
        raise Invalid("GRAPH_INVALID", "the graph has no output; name at least one value")
    for output in graph.outputs:
        _check_output(graph, output)


def _starts(counts: Ids) -> Ids:
    starts = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=starts[1:])
    return starts


def _check_leaf(leaf: Leaf) -> None:
    _ = leaf.id_count
    if leaf.value is None:
        if leaf.kind != "input":
            raise Invalid("LEAF_INVALID", f"{leaf.place}: has no stored value; only an input may")
        return
    if leaf.value.dtype != leaf.dtype:
        raise Invalid(
            "LEAF_INVALID",
            f"{leaf.place}: declared as {leaf.dtype} but its stored value is {leaf.value.dtype}",
        )
    if not fits(leaf.axes, leaf.value.shape):
        raise Invalid(
            "LEAF_INVALID",
            f"{leaf.place}: declared with shape {axes_text(leaf.axes)} but its stored value has "
            f"shape {leaf.value.shape}",
        )


def fits(axes: tuple[int | str, ...], shape: Shape) -> bool:
    """Whether a shape has the declared axes; a symbol takes any size."""
    return len(axes) == len(shape) and all(
        isinstance(axis, str) or axis == size for axis, size in zip(axes, shape, strict=True)
    )


def axes_text(axes: tuple[int | str, ...]) -> str:
    """Declared axes as messages show them: (batch, 3)."""
    return "(" + ", ".join(map(str, axes)) + ("," if len(axes) == 1 else "") + ")"


def _check_row(row: Row) -> None:
    least, most = row.gate.outputs
    place = f"gate {row.operator}"
    try:
        row.gate.declared_inputs(row.input_count)
        row.gate.complete(row.attributes)
    except Invalid as refusal:
        raise refusal.at(place, operator=row.operator) from None
    if row.output_count < least or (most and row.output_count > most):
        takes = f"{least}" if least == most else f"{least} {f'to {most}' if most else 'or more'}"
        raise Invalid(
            "OUTPUT_COUNT_INVALID",
            f"{place}: yields {takes} outputs but {row.output_count} are declared",
            operator=row.operator,
        )


def _check_nodes(graph: Graph, limits: Limits) -> None:
    past = np.flatnonzero(graph.node_rows >= len(graph.rows))
    if past.size:
        node = int(past[0])
        raise Invalid(
            "NODE_INVALID",
            f"node number {node}: names gate row {graph.node_rows[node]} but the table has "
            f"{len(graph.rows)} rows",
            node_index=node,
        )
    uses = np.bincount(graph.node_rows, minlength=len(graph.rows)).tolist()
    inputs = sum(use * row.input_count for use, row in zip(uses, graph.rows, strict=True))
    if inputs != len(graph.node_inputs):
        raise Invalid(
            "NODE_INVALID",
            f"the nodes' gates take {inputs} inputs in all but node_inputs has "
            f"{len(graph.node_inputs)}",
        )
    values = graph.leaf_first_ids[-1] - 1
    values += sum(use * row.output_count for use, row in zip(uses, graph.rows, strict=True))
    if values > limits.max_values:
        raise OverLimit.of("max-values", limits.max_values, values, "number of values")
    own = np.repeat(graph.first_ids[:-1], np.diff(graph.input_starts))
    forward = np.flatnonzero(graph.node_inputs >= own)
    if forward.size:
        slot = int(forward[0])
        node = int(np.searchsorted(graph.input_starts, slot, "right")) - 1
        raise Invalid(
            "NODE_INVALID",
            f"{graph.place_of(node)}: input {slot - graph.input_starts[node]} is value "
            f"{graph.node_inputs[slot]}, but a node may only use values below its own first "
            f"({graph.first_ids[node]})",
            node_index=node,
        )


def _check_names(graph: Graph) -> None:
    named = np.fromiter(graph.names, np.int64, len(graph.names))
    outside = named[(named < graph.leaf_first_ids[-1]) | (named > graph.value_count)]
    if outside.size:
        value_id = int(outside[0])
        raise Invalid(
            "NAME_INVALID",
            f"name {graph.names[value_id]!r} is for value {value_id}, which no node yields",
        )
    leaves = [leaf.name for leaf in graph.leaves if leaf.kind != "constant" or leaf.name]
    _require_unique("value", [*leaves, *graph.names.values()])
    _require_unique("output", [output.name for output in graph.outputs])


def _require_unique(what: str, names: Sequence[str]) -> None:
    distinct = set(names)
    if "" in distinct:
        raise Invalid("NAME_INVALID", f"a {what} has an empty name")
    if len(distinct) < len(names):
        name, count = Counter(names).most_common(1)[0]
        raise Invalid("NAME_INVALID", f"the {what} name {name!r} is used {count} times")


def _check_output(graph: Graph, output: Output) -> None:
    if not output.value_ids.size:
        raise Invalid("OUTPUT_INVALID", f"{output.place}: has no value")
    wrong = (output.value_ids < 1) | (output.value_ids > graph.value_count)
    if wrong.any():
        raise Invalid(
            "OUTPUT_INVALID",
            f"{output.place}: value {output.value_ids[wrong][0]} does not exist; ids are from 1 "
            f"to {graph.value_count}",
        )
