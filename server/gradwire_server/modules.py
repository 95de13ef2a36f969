"""From a graph that uses modules to a flat one: every use replaced by the module's nodes.

Engines know no modules, so these cost nothing but this. Every module is written out once, those
that others use first, and then copied to all its uses at once, as columns: there is no loop over
uses. What a node of a module takes is a reference: 0 for nothing, a leaf or a node of its circuit
by id, or a stored value of any module, counted down from -1.

A module with its own gradient ends in one node more (graph.OwnGradient), which hands on what the
circuit inside yields, and is where engines run the gradient.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from gradwire_server.errors import Invalid, OverLimit, within
from gradwire_server.graph import (
    Flags,
    Graph,
    Ids,
    Inside,
    Leaf,
    ModuleNames,
    Output,
    OwnGradient,
    Row,
    Rows,
    check_circuit,
    check_leaf,
    check_output,
    first_repeat,
    starts,
)
from gradwire_server.limits import Limits
from gradwire_server.plan import static_leaves

#: All modules together, written out one after another, may be so many times a graph's most nodes.
_WORK = 4


@dataclass(frozen=True)
class Module:
    """A named sub-circuit; its inputs are leaves without a type, and it has no parameters."""

    name: str
    circuit: Graph
    gradient: Graph | None = None  # of inputs, outputs and their gradients


def check_modules(rows: Rows, modules: Sequence[Module], circuit: Graph, limits: Limits) -> None:
    """Raises unless all modules can be written out.

    `circuit` is the graph's own; all circuits have the gates table `rows`, whose operators are
    checked already. MODULE_INVALID, NAME_INVALID, NODE_INVALID, INPUT_COUNT_INVALID, ...
    """
    names = [module.name for module in modules]
    if "" in names:
        what = f"module number {names.index('')} has an empty name"
        raise Invalid("NAME_INVALID", what, field=f"modules[{names.index('')}].name")
    if len(set(names)) < len(names):
        number = first_repeat(names)
        what = f"the module name {names[number]!r} is used {names.count(names[number])} times"
        raise Invalid("NAME_INVALID", what, field=f"modules[{number}].name")
    for number, row in enumerate(rows):
        if row.module is not None:
            with within(f"gates[{number}]"):
                _check_use(row, modules)
    for number, module in enumerate(modules):
        with within(f"modules[{number}].circuit"):
            _check_part(f"module {module.name!r}", module.circuit, number, modules, limits)
        if module.gradient is not None:
            place = f"the gradient of module {module.name!r}"
            with within(f"modules[{number}].gradient"):
                _check_part(place, module.gradient, number, modules, limits)
                _check_gradient(place, module)
    with within("circuit"):
        _require_all_inputs(circuit)


def _check_use(row: Row, modules: Sequence[Module]) -> None:
    assert row.module is not None
    module = modules[row.module]
    takes, yields = len(_inputs(module.circuit)), len(module.circuit.outputs)
    if row.input_count != takes:
        raise Invalid(
            "INPUT_COUNT_INVALID",
            f"module {module.name!r} takes {takes} inputs but a gate gives it {row.input_count}",
            field="input_count",
        )
    if row.output_count != yields:
        raise Invalid(
            "OUTPUT_COUNT_INVALID",
            f"module {module.name!r} yields {yields} outputs but a gate has {row.output_count}",
            field="output_count",
        )
    if row.attributes:
        what = f"module {module.name!r} has no attributes"
        raise Invalid("ATTRIBUTE_INVALID", what, field="attributes")


def _check_part(
    place: str, circuit: Graph, number: int, modules: Sequence[Module], limits: Limits
) -> None:
    try:
        for position, leaf in enumerate(circuit.leaves):
            try:
                _check_stored(leaf)
            except Invalid as refusal:
                field = circuit.field_of_leaf(position).removeprefix("circuit.")
                raise refusal.within(field) from None
        check_circuit(circuit, limits)
        _require_all_inputs(circuit)
        if not circuit.outputs:
            raise Invalid("MODULE_INVALID", "has no output", field="outputs")
        for place_of_output, output in enumerate(circuit.outputs):
            if output.value_ids.size or circuit is not modules[number].gradient:
                check_output(circuit, output, place_of_output)
            if len(output.value_ids) > 1:
                what = f"{output.place}: stacks values, in a module"
                field = f"outputs[{place_of_output}].value_ids"
                raise Invalid("OUTPUT_INVALID", what, field=field)
        later = circuit.rows.modules[circuit.node_rows].max(initial=-1)
        if later >= number:
            raise Invalid(
                "MODULE_INVALID",
                f"uses module {modules[later].name!r}, which does not come before it",
                field=f"node_gates[{circuit.rows.modules[circuit.node_rows].argmax()}]",
            )
    except Invalid as refusal:
        raise refusal.at(place) from None


def _check_stored(leaf: Leaf) -> None:
    if leaf.kind == "constant":
        check_leaf(leaf)
    if leaf.elements:
        what = f"{leaf.place}: has the layout ELEMENTS, in a module"
        raise Invalid("LEAF_INVALID", what, field="layout")


def _check_gradient(place: str, module: Module) -> None:
    assert module.gradient is not None
    takes, yields = len(_inputs(module.circuit)), len(module.circuit.outputs)
    given, made = len(_inputs(module.gradient)), len(module.gradient.outputs)
    if given != takes + 2 * yields:
        raise Invalid(
            "MODULE_INVALID",
            f"{place}: has {given} inputs, but must have {takes + 2 * yields}: the {takes} inputs, "
            f"the {yields} outputs, and the gradients of those",
            field="inputs",
        )
    if made != takes:
        raise Invalid(
            "MODULE_INVALID",
            f"{place}: has {made} outputs, but must have one for each of the {takes} inputs",
            field="outputs",
        )


def _require_all_inputs(circuit: Graph) -> None:
    """Uses of modules omit no input (NODE_INVALID)."""
    if not circuit.rows.modules.size or circuit.rows.modules.max() < 0:
        return
    counts = np.diff(circuit.input_starts)
    uses = np.repeat(circuit.rows.modules[circuit.node_rows] >= 0, counts)
    wrong = np.flatnonzero(uses & (circuit.node_inputs == 0))
    if wrong.size:
        node = int(np.searchsorted(circuit.input_starts, wrong[0], "right")) - 1
        raise Invalid(
            "NODE_INVALID",
            f"{circuit.place_of(node)}: omits an input, which no use of a module may",
            field=f"node_inputs[{wrong[0]}]",
        )


def _inputs(circuit: Graph) -> list[Leaf]:
    return [leaf for leaf in circuit.leaves if leaf.kind == "input"]


def flatten(circuit: Graph, modules: Sequence[Module], limits: Limits) -> Graph:
    """The flat graph of a circuit whose parts are checked (LIMIT_EXCEEDED)."""
    return _Flattening(circuit.rows, modules, limits).graph_of(circuit)


@dataclass(frozen=True)
class _Sizes:
    """How large a circuit is once it is written out."""

    nodes: int  # and uses, which take time even where they hold no node
    values: int
    inputs: int


@dataclass(frozen=True)
class _Uses:
    """Uses of modules as columns; `firsts` are places among the values of a circuit's nodes."""

    modules: Ids
    firsts: Ids
    parents: Ids
    names: npt.NDArray[np.object_]
    lengths: Ids  # of paths, in characters

    def __len__(self) -> int:
        return len(self.modules)


@dataclass(frozen=True)
class _Body:
    """A circuit written out: nodes of operators alone."""

    first: int  # reference of the first node's first value
    rows: Ids  # of the flat gates table
    inputs: Ids  # references
    outputs: list[Ids]  # references
    refs: Ids  # by place among the values: first of the circuit's own nodes, then inside of uses
    shut: Flags  # by flat value of the nodes
    uses: _Uses

    def copies(self, refs: Ids, given: Ids, firsts: Ids) -> Ids:
        """[uses, refs]: references of this circuit as its users know them.

        `given` is [uses, inputs]; `firsts` are the references of the first values of the copies.
        """
        padded = np.concatenate([np.zeros((len(given), 1), np.int64), given], axis=1)
        leaves = np.clip(refs, 0, given.shape[1])
        found = np.where(refs >= self.first, firsts[:, None] + refs - self.first, padded[:, leaves])
        return np.where(refs < 0, refs, found)


class _Flattening:
    """The modules of one graph, written out as far as they are used."""

    def __init__(self, rows: Rows, modules: Sequence[Module], limits: Limits) -> None:
        self._modules = modules
        self._limits = limits
        self._sizes: dict[int, _Sizes] = {}
        self._work = _Sizes(0, 0, 0)
        self._constants: list[Leaf] = []
        self.rows = [row for row in rows if row.module is None]
        self.row_places = np.cumsum(rows.modules < 0) - 1  # in the flat table
        self.bodies: dict[int, _Body] = {}
        self.own: dict[int, int] = {}  # by module: the row that ends it

    def graph_of(self, circuit: Graph) -> Graph:
        """The flat graph of a circuit."""
        reached = self._reached(circuit)
        for number in reached:
            for part in self._parts(number):
                found = self._measured(part)
                self._sizes.setdefault(number, found)
        self._measured(circuit)
        waiting = Counter(_used(circuit).keys())
        for number in reached:
            for part in self._parts(number):
                waiting.update(_used(part).keys())
        for number in reached:
            module = self._modules[number]
            self.bodies[number] = self._written(module.circuit, self._stored(module.circuit))
            if module.gradient is not None:
                self._end(number, module.name, self._flat(module.gradient))
            for part in self._parts(number):
                waiting.subtract(_used(part).keys())
            for done in [each for each in self.bodies if not waiting[each]]:
                del self.bodies[done]
        return self._flat(circuit)

    def _parts(self, number: int) -> list[Graph]:
        """The circuits of a module."""
        module = self._modules[number]
        return [module.circuit] if module.gradient is None else [module.circuit, module.gradient]

    def _reached(self, circuit: Graph) -> list[int]:
        """The modules that a circuit needs, those that others use first."""
        found = set(waiting := list(_used(circuit)))
        while waiting:
            for part in self._parts(waiting.pop()):
                fresh = _used(part).keys() - found
                found |= fresh
                waiting.extend(fresh)
        return sorted(found)

    def _measured(self, circuit: Graph) -> _Sizes:
        """The size of a circuit whose modules are measured, before anything is allocated."""
        nodes, values, inputs = circuit.node_count, circuit.value_count, len(circuit.node_inputs)
        for number, count in _used(circuit).items():
            inner, module = self._sizes[number], self._modules[number]
            nodes += count * inner.nodes
            values += count * inner.values
            inputs += count * inner.inputs
            if module.gradient is not None:
                inputs += count * len(module.gradient.outputs + module.circuit.outputs)
        done = self._work
        self._work = _Sizes(done.nodes + nodes, done.values + values, done.inputs + inputs)
        most_nodes, most_values = self._limits.max_nodes, self._limits.max_values
        inside = ", with those inside of modules"
        times = f", at most {_WORK} times those of a graph"
        for flag, limit, actual, what in (
            ("max-nodes", most_nodes, nodes, f"number of nodes{inside}"),
            ("max-values", most_values, values, f"number of values{inside}"),
            ("max-nodes", _WORK * most_nodes, self._work.nodes, f"nodes of all modules{times}"),
            ("max-values", _WORK * most_values, self._work.values, f"values of all modules{times}"),
            ("max-values", _WORK * most_values, self._work.inputs, f"inputs of all nodes{inside}"),
        ):
            if actual > limit:
                raise OverLimit.of(flag, limit, actual, what)
        return _Sizes(nodes, values, inputs)

    def _stored(self, circuit: Graph) -> Ids:
        """References of a module's leaves: its inputs, and its stored values, kept once."""
        found = np.arange(circuit.leaf_first_ids[-1])
        for place, leaf in enumerate(circuit.leaves, 1):
            if leaf.kind == "constant":
                self._constants.append(replace(leaf, name=""))
                found[place] = -len(self._constants)
        return found

    def _end(self, number: int, name: str, gradient: Graph) -> None:
        """Makes the row that ends the uses of a module with its own gradient."""
        own = OwnGradient(number, name, gradient, static_leaves(gradient))
        self.own[number] = len(self.rows)
        self.rows.append(Row(own.operator, {}, len(own.inputs), own.outputs[1], own=own))

    def _written(self, circuit: Graph, leaves: Ids) -> _Body:
        body = _Writing(self, circuit, leaves).body()
        if (longest := int(body.uses.lengths.sum())) > self._limits.max_message_bytes:
            what = "characters of the paths of all uses of modules"
            raise OverLimit.of("max-message-bytes", self._limits.max_message_bytes, longest, what)
        return body

    def _flat(self, circuit: Graph) -> Graph:
        """A circuit written out as a graph; stored values of modules become its last leaves."""
        body = self._written(circuit, np.arange(circuit.leaf_first_ids[-1]))
        columns = body.inputs, body.refs, *body.outputs
        stored = np.unique(np.concatenate([refs[refs < 0] for refs in columns]))
        places = np.zeros(len(self._constants) + 1, np.int64)
        places[-stored] = body.first + np.arange(len(stored))

        def flat(refs: Ids) -> Ids:
            inner = np.where(refs >= body.first, refs + len(stored), refs)
            found: Ids = np.where(refs < 0, places[np.maximum(0, -refs)], inner)
            return found

        present = np.flatnonzero(np.bincount(body.rows, minlength=len(self.rows)))
        rows = np.zeros(len(self.rows), np.int64)
        rows[present] = np.arange(len(present))
        flat_ids = np.concatenate([np.arange(body.first), flat(body.refs)])
        named = {int(flat_ids[i]): name for i, name in reversed([*circuit.names.items()])}
        return Graph(
            rows=Rows(self.rows[each] for each in present.tolist()),
            leaves=(*circuit.leaves, *(self._constants[-1 - each] for each in stored.tolist())),
            node_rows=rows[body.rows],
            node_inputs=flat(body.inputs),
            outputs=tuple(
                Output(output.name, flat(refs))
                for output, refs in zip(circuit.outputs, body.outputs, strict=True)
            ),
            # of several names of one value the first counts; leaves have their own
            names={i: name for i, name in named.items() if i >= body.first + len(stored)},
            inside=Inside(
                flat_ids=flat_ids,
                shut=np.concatenate([np.zeros(body.first + len(stored), bool), body.shut]),
                names={name: value_id for value_id, name in circuit.names.items()},
                modules=tuple(
                    ModuleNames(each.name, _names(each.circuit)) for each in self._modules
                ),
                use_modules=body.uses.modules,
                use_first_ids=body.uses.firsts + body.first,
                use_parents=body.uses.parents,
                use_names=body.uses.names.tolist(),
            ),
        )


class _Writing:
    """Copies bodies into a circuit."""

    def __init__(self, modules: _Flattening, circuit: Graph, leaves: Ids) -> None:
        """`leaves` are the references of the circuit's leaves, by id."""
        self._modules = modules
        self._circuit = circuit
        table = circuit.rows
        used = table.modules[circuit.node_rows]  # by node, -1 for an operator
        self._groups = [
            _Group(number, np.flatnonzero(used == number), modules.bodies[number])
            for number in np.unique(used[used >= 0]).tolist()
        ]
        nodes = np.ones(len(used), np.int64)
        values = table.output_counts[circuit.node_rows]
        inputs = table.input_counts[circuit.node_rows]
        runs, uses = np.zeros((2, len(used)), np.int64)
        for number, places, body in self._groups:
            ends = number in modules.own
            nodes[places] = len(body.rows) + ends
            inputs[places] = len(body.inputs) + ends * (inputs[places] + values[places])
            values[places] = len(body.shut) + ends * values[places]
            runs[places] = len(body.refs)
            uses[places] = 1 + len(body.uses)
        self._first = circuit.leaf_first_ids[-1]
        self._own_values = circuit.value_count + 1 - self._first
        self._node_starts, self._value_starts = starts(nodes), starts(values)
        self._input_starts, self._run_starts = starts(inputs), starts(runs) + self._own_values
        self._use_starts = starts(uses)
        self._refs = self._references(leaves)
        self._given = self._refs[circuit.node_inputs]

    def body(self) -> _Body:
        """The circuit, written out."""
        circuit = self._circuit
        rows = np.empty(self._node_starts[-1], np.int64)
        inputs = np.empty(self._input_starts[-1], np.int64)
        refs = np.empty(self._run_starts[-1], np.int64)
        shut = np.zeros(self._value_starts[-1], bool)
        refs[: self._own_values] = self._refs[self._first :]
        self._place_operators(rows, inputs)
        for number, nodes, body in self._groups:
            given, firsts = self._given_to(nodes), self._firsts(nodes)
            rows[_spans(self._node_starts[nodes], len(body.rows))] = body.rows
            inputs[_spans(self._input_starts[nodes], len(body.inputs))] = body.copies(
                body.inputs, given, firsts
            )
            refs[_spans(self._run_starts[nodes], len(body.refs))] = body.copies(
                body.refs, given, firsts
            )
            inner = _spans(self._value_starts[nodes], len(body.shut))
            shut[inner] = body.shut
            if number in self._modules.own:
                shut[inner] = True
                rows[self._node_starts[nodes] + len(body.rows)] = self._modules.own[number]
                made = body.copies(np.concatenate(body.outputs), given, firsts)
                ends = self._input_starts[nodes] + len(body.inputs)
                taken = np.concatenate([given, made], axis=1)
                inputs[_spans(ends, taken.shape[1])] = taken
        outputs = [self._refs[output.value_ids] for output in circuit.outputs]
        return _Body(self._first, rows, inputs, outputs, refs, shut, self._uses())

    def _references(self, leaves: Ids) -> Ids:
        """By id: where the value is. What a module hands on is where its user has it."""
        circuit = self._circuit
        counts = np.diff(circuit.first_ids)
        nodes = np.repeat(np.arange(circuit.node_count), counts)
        slots = np.arange(len(nodes)) - (circuit.first_ids[:-1] - self._first)[nodes]
        inner = np.zeros(circuit.node_count, np.int64)  # values before the node's own
        for number, places, body in self._groups:
            inner[places] = len(body.shut) * (number in self._modules.own)
        found = np.concatenate(
            [leaves, self._first + (self._value_starts[:-1] + inner)[nodes] + slots]
        )
        handed_on = np.arange(len(found))
        for number, places, body in self._groups:
            if number in self._modules.own:
                continue
            for slot, (ref,) in enumerate(body.outputs):
                ids = circuit.first_ids[places] + slot
                if 0 < ref < body.first:
                    handed_on[ids] = circuit.node_inputs[circuit.input_starts[places] + ref - 1]
                else:
                    found[ids] = ref if ref < 0 else self._firsts(places) + ref - body.first
        while (further := handed_on[handed_on]).tobytes() != handed_on.tobytes():
            handed_on = further
        return found[handed_on]

    def _place_operators(self, rows: Ids, inputs: Ids) -> None:
        """The nodes that use no module, in their places."""
        circuit = self._circuit
        alone = circuit.rows.modules[circuit.node_rows] < 0
        rows[self._node_starts[:-1][alone]] = self._modules.row_places[circuit.node_rows[alone]]
        nodes = np.repeat(np.arange(len(alone)), np.diff(circuit.input_starts))
        slots = np.arange(len(nodes)) - circuit.input_starts[nodes]
        taken = alone[nodes]
        inputs[(self._input_starts[nodes] + slots)[taken]] = self._given[taken]

    def _given_to(self, nodes: Ids) -> Ids:
        """[nodes, inputs]: references of what these nodes of one module are given."""
        first = self._circuit.input_starts[nodes]
        count = int(self._circuit.input_starts[nodes[0] + 1] - first[0])
        found: Ids = self._given[_spans(first, count)]
        return found

    def _firsts(self, nodes: Ids) -> Ids:
        """References of the first values inside of these nodes."""
        found: Ids = self._first + self._value_starts[nodes]
        return found

    def _uses(self) -> _Uses:
        count = int(self._use_starts[-1])
        modules, firsts, parents, lengths = np.empty((4, count), np.int64)
        names = np.empty(count, object)
        for number, nodes, body in self._groups:
            at = self._use_starts[nodes]
            own = [self._circuit.names.get(i, "") for i in self._circuit.first_ids[nodes].tolist()]
            modules[at], firsts[at], parents[at] = number, self._run_starts[nodes], -1
            names[at] = own
            lengths[at] = [len(name) for name in own]
            inner = _spans(at + 1, len(body.uses))
            modules[inner] = body.uses.modules
            firsts[inner] = self._run_starts[nodes][:, None] + body.uses.firsts
            parents[inner] = np.where(
                body.uses.parents < 0, at[:, None], at[:, None] + 1 + body.uses.parents
            )
            names[inner] = body.uses.names
            lengths[inner] = lengths[at][:, None] + 1 + body.uses.lengths
        return _Uses(modules, firsts, parents, names, lengths)


class _Group(NamedTuple):
    """The nodes that use one module."""

    number: int
    nodes: Ids
    body: _Body


def _spans(firsts: Ids, count: int) -> Ids:
    """[firsts, count]: numbers from each of the first ones on."""
    found: Ids = firsts[:, None] + np.arange(count)
    return found


def _used(circuit: Graph) -> dict[int, int]:
    """How many nodes use each module."""
    used = circuit.rows.modules[circuit.node_rows]
    numbers, counts = np.unique(used[used >= 0], return_counts=True)
    return dict(zip(numbers.tolist(), counts.tolist(), strict=True))


def _names(circuit: Graph) -> dict[int, str]:
    """Names of the values of a module's nodes, by place among them."""
    first = circuit.leaf_first_ids[-1]
    return {value_id - first: name for value_id, name in circuit.names.items()}
