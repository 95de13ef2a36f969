"""A decoded graph, and the check that its columns make a circuit.

A graph as it is sent may use modules; one that is run is flat (modules.py): every use is replaced
by the module's nodes. Flat ids number its values as engines have them; ids are those that callers
know.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gradwire_server.errors import Invalid, OverLimit, Unsupported, nearest, within
from gradwire_server.gates import GATES, Gate
from gradwire_server.gates.base import AttributeValue, Input
from gradwire_server.limits import Limits
from gradwire_server.specs import EVERY, FLOATS, Shape, Tensor, TensorSpec

_MOST_STEPS = 1000  # of a path, so that a name made of slashes alone takes no time
_MOST_UNUSED = 64  # inputs or outputs of a gate that no node uses
_LONGEST_PATH = 256  # that is written as a name

Ids = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


class OwnGradient(Gate):
    """What a module with its own gradient yields: its circuit's outputs, as they are.

    Its inputs are the module's, then those outputs. Its gradient is no formula of a gate but the
    graph `gradient`, which the engines run on the module's inputs, its outputs and the gradients of
    those; the circuit inside gets no gradient.
    """

    takes_halves = True

    def __init__(self, number: int, name: str, gradient: Graph, known: frozenset[int]) -> None:
        """`known` are the inputs whose elements the shapes of the gradient depend on."""
        self.number = number  # of the module; its gradient uses modules of lower ones
        self.name = name
        self.operator = f"module {name}"  # type: ignore[misc]  # which gates declare once for all
        self.gradient = gradient
        results = len(gradient.outputs)
        names = [leaf.name for leaf in gradient.leaves if leaf.kind == "input"]
        made = (len(names) - results) // 2
        self.inputs = tuple(  # type: ignore[misc]
            Input(name, EVERY, group=str(slot), known=slot in known, whole=True)
            for slot, name in enumerate(names[: results + made])
        )
        self.outputs = made, made  # type: ignore[misc]

    def infer(self, *specs: TensorSpec, **_: object) -> tuple[TensorSpec, ...]:
        made = specs[-self.outputs[1] :]
        for declared, spec in zip(self.inputs[-len(made) :], made, strict=True):
            if not spec.is_floating:
                raise Invalid(
                    "MODULE_INVALID",
                    f"has its own gradient, so its outputs must be floating, but {declared.name!r} "
                    f"is {spec.dtype}",
                )
        return made

    def forward(self, xp: object, *inputs: Any, **_: object) -> Any:
        made = inputs[-self.outputs[1] :]
        return made if len(made) > 1 else made[0]

    def aligned_shapes(self, *specs: TensorSpec, **_: object) -> tuple[Shape, ...]:
        return tuple(spec.shape for spec in specs)


@dataclass(frozen=True)
class Row:
    """One entry of the gates table: an operator or a module, with its attributes and counts."""

    operator: str  # for a module "module" and its name
    attributes: Mapping[str, AttributeValue]
    input_count: int
    output_count: int
    module: int | None = None  # in a graph that is not flat
    own: OwnGradient | None = None  # in a flat one

    @cached_property
    def gate(self) -> Gate:
        """The gate that implements the operator (OPERATOR_UNKNOWN)."""
        if self.own is not None:
            return self.own
        if self.operator not in GATES:
            raise Unsupported(
                "OPERATOR_UNKNOWN",
                f"operator {self.operator!r} is not known to this server"
                + nearest(self.operator, GATES),
                operator=self.operator,
            )
        return GATES[self.operator]

    @cached_property
    def follows_all(self) -> bool:
        """Whether the elements of every input may decide what the gate yields."""
        return all(each.elements for each in self.gate.inputs)


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
                    field="layout",
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


class Rows(tuple[Row, ...]):
    """A gates table, with its counts as columns."""

    @cached_property
    def input_counts(self) -> Ids:
        return np.array([row.input_count for row in self], np.int64)

    @cached_property
    def output_counts(self) -> Ids:
        return np.array([row.output_count for row in self], np.int64)

    @cached_property
    def modules(self) -> Ids:
        """By row: the module, or -1."""
        return np.array([-1 if row.module is None else row.module for row in self], np.int64)


class ModuleNames(NamedTuple):
    """What is called how in a module."""

    name: str
    values: Mapping[int, str]  # by place among the values of its nodes


@dataclass(frozen=True)
class Inside:
    """The values inside of the modules that a flat graph was made with.

    Uses are columns, by ascending first ids; those inside of a use follow it.
    """

    flat_ids: Ids  # by id
    shut: Flags  # by flat id: inside of a module with its own gradient
    names: Mapping[str, int]  # ids of the circuit's named node values
    modules: tuple[ModuleNames, ...]
    use_modules: Ids
    use_first_ids: Ids
    use_parents: Ids  # positions of uses, or -1
    use_names: Sequence[str]

    @cached_property
    def ids(self) -> Ids:
        """By flat id: the id; of several the one furthest inside, 0 where there is none."""
        found = np.zeros(len(self.shut), np.int64)
        found[self.flat_ids] = np.arange(len(self.flat_ids))  # of equal ones the last stays
        return found

    @cached_property
    def paths(self) -> list[str]:
        """Of every use; empty where it, or one around it, has no name."""
        found: list[str] = []
        for parent, name in zip(self.use_parents.tolist(), self.use_names, strict=True):
            if parent < 0 or not name:
                found.append(name)
            else:
                found.append(f"{found[parent]}/{name}" if found[parent] else "")
        return found

    @cached_property
    def uses_by_path(self) -> dict[str, int]:
        return {path: use for use, path in enumerate(self.paths) if path}

    def within(self, use: int) -> range:
        """Ids of the values inside of a use, and of the uses there."""
        depth = self.use_parents
        after = use + 1
        while after < len(depth) and depth[after] >= use:
            after += 1
        end = self.use_first_ids[after] if after < len(depth) else len(self.flat_ids)
        return range(int(self.use_first_ids[use]), int(end))

    def find(self, name: str) -> int | None:
        """The id of a value by its path, such as "layer1/scores"."""
        cut = name.find("/") if name.count("/") <= _MOST_STEPS else -1
        while cut >= 0:
            use = self.uses_by_path.get(name[:cut])
            if use is not None:
                place = self._places[int(self.use_modules[use])].get(name[cut + 1 :])
                if place is not None:
                    return int(self.use_first_ids[use]) + place
            cut = name.find("/", cut + 1)
        return None

    def value_paths(self) -> Iterator[tuple[int, str]]:
        """Flat id and path of every named value inside of a use, but for very long paths."""
        columns = self.paths, self.use_modules.tolist(), self.use_first_ids.tolist()
        for path, module, first in zip(*columns, strict=True):
            if path:
                for place, name in self.modules[module].values.items():
                    if len(path) + len(name) < _LONGEST_PATH:
                        yield int(self.flat_ids[first + place]), f"{path}/{name}"

    @cached_property
    def _places(self) -> list[dict[str, int]]:
        return [{name: place for place, name in each.values.items()} for each in self.modules]

    def place_of(self, flat_id: int) -> str:
        """How messages name a value: 'layer1/scores', or 123 in module 'attention'."""
        value_id = int(self.ids[flat_id])
        use = int(np.searchsorted(self.use_first_ids, value_id, "right")) - 1
        if use < 0:
            return str(value_id)
        module = self.modules[int(self.use_modules[use])]
        name = module.values.get(value_id - int(self.use_first_ids[use]))
        if name and self.paths[use]:
            return repr(f"{self.paths[use]}/{name}")
        return f"{name or value_id!r} in module {module.name!r}"


@dataclass(frozen=True)
class Graph:
    """A circuit with its gates table. Ids: 0 is absent, then leaves, then the nodes' outputs."""

    rows: Rows
    leaves: tuple[Leaf, ...]  # inputs, then parameters, then constants
    node_rows: Ids
    node_inputs: Ids
    outputs: tuple[Output, ...]
    names: Mapping[int, str] = field(default_factory=dict)  # of node values
    inside: Inside | None = None  # of a flat graph that was made with modules

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
    def followed_inputs(self) -> Ids:
        """node_inputs, with 0 where only the shape and data type of a value count."""
        if all(row.follows_all for row in self.rows):
            return self.node_inputs
        followed = self.node_inputs.copy()
        for number, row in enumerate(self.rows):
            if not row.follows_all:
                declared = row.gate.declared_inputs(row.input_count)
                slots = [slot for slot, each in enumerate(declared) if not each.elements]
                starts = self.input_starts[np.flatnonzero(self.node_rows == number)]
                followed[starts[:, None] + slots] = 0
        return followed

    @cached_property
    def input_starts(self) -> Ids:
        """Where each node's inputs begin in node_inputs, and one more: their end."""
        return starts(self.rows.input_counts[self.node_rows])

    @cached_property
    def first_ids(self) -> Ids:
        """First output id of each node, and one more: the first id past the last value."""
        return starts(self.rows.output_counts[self.node_rows]) + self.leaf_first_ids[-1]

    @property
    def value_count(self) -> int:
        """Flat ids are from 1 to this, inclusive."""
        return int(self.first_ids[-1]) - 1

    @property
    def id_count(self) -> int:
        """Ids are from 1 to this, inclusive."""
        return self.value_count if self.inside is None else len(self.inside.flat_ids) - 1

    def flat_ids(self, ids: Ids) -> Ids:
        """Where the engines have the values of these ids."""
        return ids if self.inside is None else self.inside.flat_ids[ids]

    @cached_property
    def ids_by_name(self) -> dict[str, tuple[int, int]]:
        """First id and id count of everything that has a name and is not a constant.

        What is inside of modules is found by `find`.
        """
        if self.inside is None:
            named = {name: (value_id, 1) for value_id, name in self.names.items()}
        else:
            named = {name: (value_id, 1) for name, value_id in self.inside.names.items()}
        for leaf, first in zip(self.leaves, self.leaf_first_ids, strict=False):
            if leaf.kind != "constant":
                named[leaf.name] = (first, leaf.id_count)
        return named

    def find(self, name: str) -> tuple[int, int] | None:
        """First id and id count of what has a name, or a path inside of a module."""
        found = self.ids_by_name.get(name)
        if found is None and self.inside is not None:
            value_id = self.inside.find(name)
            return None if value_id is None else (value_id, 1)
        return found

    def all_names(self) -> dict[int, str]:
        """Names of node values by flat id, and paths of those inside of modules."""
        found = dict(self.names)
        if self.inside is not None:
            taken = {leaf.name for leaf in self.leaves if leaf.kind != "constant"}
            taken |= self.inside.names.keys()
            for flat_id, path in self.inside.value_paths():
                if path not in taken and flat_id >= self.leaf_first_ids[-1]:
                    taken.add(path)
                    found.setdefault(flat_id, path)
        return found

    def node_of(self, value_id: int) -> int:
        """Index of the node that yields a value."""
        return int(np.searchsorted(self.first_ids, value_id, "right")) - 1

    def place_of(self, node: int) -> str:
        """How messages name a node: "node 'scores' (MatMul)"."""
        first = int(self.first_ids[node])
        return f"node {self._called(first)} ({self.rows[self.node_rows[node]].operator})"

    def _called(self, flat_id: int) -> str:
        if flat_id in self.names:
            return repr(self.names[flat_id])
        return str(flat_id) if self.inside is None else self.inside.place_of(flat_id)

    def facts_of(self, node: int) -> dict[str, int]:
        """Where a node is, for programs: an id that callers know, in modules as far in as it is."""
        first = int(self.first_ids[node])
        if self.inside is None:
            return {"node_index": node, "value_id": first}
        value_id = int(self.inside.ids[first])
        return {"value_id": value_id} if value_id else {}

    def field_of_leaf(self, position: int) -> str:
        """Where a leaf is in the message of its graph."""
        kind = self.leaves[position].kind
        before = sum(1 for leaf in self.leaves[:position] if leaf.kind == kind)
        return f"circuit.{kind}s[{before}]"

    def field_of_node(self, node: int) -> str:
        """Where a node is in the message of its graph; empty once modules are written out."""
        return "" if self.inside is not None else f"circuit.node_gates[{node}]"

    def place_of_value(self, value_id: int) -> str:
        """How messages name a value, by flat id."""
        for leaf, first in zip(self.leaves, self.leaf_first_ids, strict=False):
            if first <= value_id < first + leaf.id_count:
                return leaf.place
        return f"value {self._called(value_id)}"


def check_structure(graph: Graph, limits: Limits) -> None:
    """Raises unless the columns make a circuit within the limits; allocates nothing before.

    GRAPH_INVALID, and the reasons of check_rows, check_circuit and check_output.
    """
    check_rows(graph.rows)
    check_leaves(graph)
    with within("circuit"):
        check_circuit(graph, limits)
        if not graph.outputs:
            what = "the graph has no output; name at least one value"
            raise Invalid("GRAPH_INVALID", what, field="outputs")
        for number, output in enumerate(graph.outputs):
            check_output(graph, output, number)


def check_rows(rows: Rows) -> None:
    """The operators of the gates table.

    OPERATOR_UNKNOWN, INPUT_COUNT_INVALID, OUTPUT_COUNT_INVALID, ATTRIBUTE_INVALID.
    """
    for number, row in enumerate(rows):
        if row.module is None:
            with within(f"gates[{number}]"):
                _check_row(row)


def check_unused(rows: Rows, circuits: Iterable[Graph]) -> None:
    """Refuses rows of many inputs or outputs that no node has (INPUT_COUNT_INVALID).

    Work on each row takes time and memory by its counts, which nodes pay for in node_inputs and
    in `max_values`.
    """
    widths = np.maximum(rows.input_counts, rows.output_counts)
    wide = np.flatnonzero((widths > _MOST_UNUSED) & (rows.modules < 0))
    if not wide.size:
        return
    used = np.unique(np.concatenate([each.node_rows for each in circuits]))
    for number in np.setdiff1d(wide, used):
        row = rows[number]
        raise Invalid(
            "INPUT_COUNT_INVALID",
            f"gate {row.operator}: {row.input_count} inputs and {row.output_count} outputs are "
            "declared, but no node uses it; leave it out",
            field=f"gates[{number}].input_count",
            operator=row.operator,
        )


def check_circuit(graph: Graph, limits: Limits) -> None:
    """Nodes and names (NODE_INVALID, NAME_INVALID, LIMIT_EXCEEDED); fields are those of Circuit."""
    if graph.node_count > limits.max_nodes:
        raise OverLimit.of("max-nodes", limits.max_nodes, graph.node_count, "number of nodes")
    _check_nodes(graph, limits)
    _check_names(graph)


def starts(counts: Ids) -> Ids:
    """Where each of several parts of these lengths begins, and one more: their end."""
    found = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=found[1:])
    return found


def check_leaves(graph: Graph) -> None:
    """All declarations (LEAF_INVALID)."""
    for position, leaf in enumerate(graph.leaves):
        try:
            check_leaf(leaf)
        except Invalid as refusal:
            raise refusal.within(graph.field_of_leaf(position)) from None


def check_leaf(leaf: Leaf) -> None:
    """A declaration that does not contradict itself (LEAF_INVALID)."""
    _ = leaf.id_count
    if leaf.value is None:
        if leaf.kind != "input":
            what = f"{leaf.place}: has no stored value; only an input may"
            raise Invalid("LEAF_INVALID", what, field="value")
        return
    if leaf.value.dtype != leaf.dtype:
        raise Invalid(
            "LEAF_INVALID",
            f"{leaf.place}: declared as {leaf.dtype} but its stored value is {leaf.value.dtype}",
            field="value.data_type",
        )
    if not fits(leaf.axes, leaf.value.shape):
        raise Invalid(
            "LEAF_INVALID",
            f"{leaf.place}: declared with shape {axes_text(leaf.axes)} but its stored value has "
            f"shape {leaf.value.shape}",
            field="value.shape",
        )


def first_repeat(names: Iterable[str]) -> int:
    """The position of the first name that was there before."""
    seen: set[str] = set()
    for position, name in enumerate(names):
        if name in seen:
            return position
        seen.add(name)
    raise ValueError("all names differ")


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
        row.gate.check_input_count(row.input_count)
        row.gate.complete(row.attributes)
    except Invalid as refusal:
        raise refusal.at(place, operator=row.operator) from None
    for attribute in row.gate.attributes if most == 0 else ():
        declared = row.attributes.get(attribute.name)
        if attribute.counts_outputs and declared not in (None, row.output_count):
            raise Invalid(
                "OUTPUT_COUNT_INVALID",
                f"{place}: {attribute.name} is {declared} but {row.output_count} outputs are "
                "declared",
                field="output_count",
                operator=row.operator,
            )
    if row.output_count < least or (most and row.output_count > most):
        takes = f"{least}" if least == most else f"{least} {f'to {most}' if most else 'or more'}"
        raise Invalid(
            "OUTPUT_COUNT_INVALID",
            f"{place}: yields {takes} outputs but {row.output_count} are declared",
            field="output_count",
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
            field=f"node_gates[{node}]",
            node_index=node,
        )
    uses = np.bincount(graph.node_rows, minlength=len(graph.rows))  # so few that sums fit
    inputs = int(uses @ graph.rows.input_counts)
    if inputs != len(graph.node_inputs):
        raise Invalid(
            "NODE_INVALID",
            f"the nodes' gates take {inputs} inputs in all but node_inputs has "
            f"{len(graph.node_inputs)}",
            field="node_inputs",
        )
    values = graph.leaf_first_ids[-1] - 1 + int(uses @ graph.rows.output_counts)
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
            field=f"node_inputs[{slot}]",
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
            field=f"named_ids[{np.flatnonzero(named == value_id)[0]}]",
        )
    named_leaves = [
        position
        for position, leaf in enumerate(graph.leaves)
        if leaf.kind != "constant" or leaf.name
    ]

    def field(position: int) -> str:
        if position >= len(named_leaves):
            return f"names[{position - len(named_leaves)}]"
        found = graph.field_of_leaf(named_leaves[position]).removeprefix("circuit.")
        return f"{found}.name"

    leaves = [graph.leaves[position].name for position in named_leaves]
    _require_unique("value", [*leaves, *graph.names.values()], field)
    outputs = [output.name for output in graph.outputs]
    _require_unique("output", outputs, lambda position: f"outputs[{position}].name")


def _require_unique(what: str, names: Sequence[str], field: Callable[[int], str]) -> None:
    """`field` says where a name is in a Circuit, by its position (NAME_INVALID)."""
    distinct = set(names)
    if "" in distinct:
        place = field(names.index(""))
        raise Invalid("NAME_INVALID", f"a {what} has an empty name", field=place)
    if len(distinct) < len(names):
        position = first_repeat(names)
        message = (
            f"the {what} name {names[position]!r} is used {names.count(names[position])} times"
        )
        raise Invalid("NAME_INVALID", message, field=field(position))


def check_output(graph: Graph, output: Output, number: int) -> None:
    """Values that there are (OUTPUT_INVALID); the field is one of Circuit."""
    field = f"outputs[{number}].value_ids"
    if not output.value_ids.size:
        raise Invalid("OUTPUT_INVALID", f"{output.place}: has no value", field=field)
    wrong = (output.value_ids < 1) | (output.value_ids > graph.value_count)
    if wrong.any():
        raise Invalid(
            "OUTPUT_INVALID",
            f"{output.place}: value {output.value_ids[wrong][0]} does not exist; ids are from 1 "
            f"to {graph.value_count}",
            field=f"{field}[{wrong.argmax()}]",
        )


def leaves_to_differentiate(graph: Graph, names: Iterable[str]) -> tuple[int, ...]:
    """Positions of the named leaves, in the graph's order; all floating ones if none is named.

    LEAF_UNKNOWN, NOT_DIFFERENTIABLE; the field is with_respect_to.
    """
    order = [*names]
    wanted = set(order)
    with within("with_respect_to"):
        require_leaves(graph, order)
    found = []
    for position, leaf in enumerate(graph.leaves):
        if leaf.kind == "constant" or (wanted and leaf.name not in wanted):
            continue
        if leaf.dtype in FLOATS:
            found.append(position)
        elif wanted:
            what = f"{leaf.place}: is {leaf.dtype} and has no gradient"
            field = f"with_respect_to[{order.index(leaf.name)}]"
            raise Invalid("NOT_DIFFERENTIABLE", what, field=field)
    return tuple(found)


def require_leaves(graph: Graph, names: Iterable[str]) -> None:
    """Names of leaves that are not constants (LEAF_UNKNOWN); the field is the name's position."""
    known = {leaf.name for leaf in graph.leaves if leaf.kind != "constant"}
    for number, name in enumerate(names):
        if name not in known:
            raise Invalid(
                "LEAF_UNKNOWN",
                f"there is no input or parameter {name!r}{nearest(name, known)}",
                field=f"[{number}]",
                leaf=name,
            )
