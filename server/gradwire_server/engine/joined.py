"""Scalar circuits in which modules have gradients of their own, on the kernels of the tape engine.

Those pull gradients gate by gate, and know no module. So the backward pass becomes a circuit too:
the local gradient of each kind of node is recorded once, as a module of its inputs, its outputs and
the gradients of these; every node that a gradient reaches uses it, consumers first, and what many
consumers yield for one value is added up. Written out, that is a tape which runs forward.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from gradwire_server import arrays
from gradwire_server.engine import kernels
from gradwire_server.engine.opcodes import instruction_set
from gradwire_server.engine.recorder import Handle, Recorder
from gradwire_server.engine.symbolic import pull_row
from gradwire_server.engine.tape import Program, Slots, TapePasses, make_program, scalar_dtype
from gradwire_server.gates.base import Array
from gradwire_server.graph import Flags, Graph, Ids, Leaf, Output, Row, Rows, starts
from gradwire_server.limits import Limits
from gradwire_server.memory import Lifetimes
from gradwire_server.modules import Module, flatten
from gradwire_server.plan import Plan, depended_on, distinct_rows, make_plan
from gradwire_server.specs import Tensor, TensorSpec

#: With fewer uses of such modules, what is made here costs more than it saves.
_FEW_USES = 16
#: What columns and buffers of a node that is written out take, in bytes.
_BYTES_OF_ONE = 96
#: What is written out here is ours.
_BOUNDLESS = Limits(
    max_nodes=1 << 40, max_values=1 << 40, max_memory_bytes=1 << 60, max_plan_steps=1 << 60
)
_ADD = Row("Add", {}, 2, 1)


@dataclass(frozen=True)
class _Written:
    """A circuit written out as a tape."""

    program: Program
    flat_ids: Ids  # by id of the circuit
    constants: tuple[Array, ...]  # of the leaves that writing out added


class _Kind(NamedTuple):
    """Nodes of one gate row whose inputs have the same data types."""

    row: int  # of the module that pulls gradients, in the gates table
    inputs: int
    outputs: int
    slots: tuple[int, ...]  # of the inputs that have a gradient
    size: int  # nodes of the module


@dataclass(frozen=True)
class _Pulls:
    """Local gradients as modules, and the gates table that both circuits share."""

    rows: Rows
    modules: Sequence[Module]
    node_rows: Ids  # of the forward pass, by node
    kinds: Sequence[_Kind]
    kind_of: Ids  # by node


@dataclass
class Joined:
    """A plan's circuit as a tape, and its backward pass as another."""

    plan: Plan
    pulls: _Pulls
    forward: _Written
    _backward: dict[tuple[int, ...], tuple[_Written, Ids]] = field(default_factory=dict)

    def backward_from(self, seeded: tuple[int, ...]) -> tuple[_Written, Ids]:
        """The backward pass from seeds at these values, and by value where its gradient is in it.

        The last one is kept.
        """
        found = self._backward.get(seeded)
        if found is None:
            found = _Backward(self.plan, self.pulls, seeded).written()
            self._backward = {seeded: found}
        return found


def make_joined(plan: Plan, max_bytes: int) -> Joined | None:
    """The plan as two tapes, where modules with their own gradients are all that one lacks."""
    graph = plan.graph
    own = np.array([row.own is not None for row in graph.rows], bool)
    dtype = scalar_dtype(plan)
    if dtype is None or not graph.node_inputs.all():
        return None
    if np.count_nonzero(own[graph.node_rows]) < _FEW_USES:
        return None
    if kernels.loaded(dtype) is None or kernels.loaded("scheduling") is None:
        return None
    pulls = _record_pulls(plan, dtype)
    sizes = np.array([kind.size for kind in pulls.kinds])
    nodes = int(sizes[pulls.kind_of].sum()) + graph.value_count + len(graph.node_inputs)
    if nodes * _BYTES_OF_ONE * max(1, plan.batch_size // 4) > max_bytes:
        return None
    if not all(_has_opcode(row, dtype) for row in pulls.rows if row.module is None):
        return None
    leaves = [TensorSpec((), leaf.dtype) for leaf in graph.leaves]
    circuit = replace(graph, rows=pulls.rows, node_rows=pulls.node_rows, names={}, inside=None)
    forward = _write_out(plan, circuit, pulls.modules, leaves, _batched_leaves(plan))
    return Joined(plan, pulls, forward)


class JoinedPasses:
    """One evaluation: forward once, then backward any number of times."""

    def __init__(self, joined: Joined, leaves: Sequence[Array]) -> None:
        """`leaves` are the arrays of all leaves, by position."""
        self._joined = joined
        self._leaves = leaves
        self._forward = _passes(joined.forward, leaves)
        self.values = _Moved(joined.plan, self._forward.values, joined.forward.flat_ids)
        self.gradients = self.values  # until there are any

    def forward(self) -> Iterator[int]:
        """Computes all values; yields the first id not computed yet, which is the first or none."""
        for _ in self._forward.forward():
            yield 1
        yield self._joined.plan.graph.value_count + 1

    def backward(self, seeds: Mapping[int, Array], lifetimes: Lifetimes) -> Iterator[int]:
        """Computes all gradients from seeds by value id; none is complete before all are.

        The buffers hold everything, so lifetimes change nothing.
        """
        written, places = self._joined.backward_from(tuple(seeds))
        zero = np.zeros((), written.program.dtype)
        passes = _passes(written, [*self._leaves, *seeds.values(), zero])
        for _ in passes.forward():
            yield self._joined.plan.graph.value_count + 1
        self.gradients = _Moved(self._joined.plan, passes.values, places)
        yield 1


class _Moved:
    """Values, or gradients, by id, in the buffers of another circuit; zeros where none are."""

    def __init__(self, plan: Plan, found: Slots, places: Ids) -> None:
        self._plan = plan
        self._found = found
        self._places = places

    def one(self, value_id: int) -> Array:
        return self.stacked(np.array([value_id]))[0, ...]

    def stacked(self, ids: Ids) -> Array:
        first = int(ids[0])
        shape = self._plan.shape(first)
        whole = np.zeros((len(ids), *shape), self._plan.spec(first).dtype)
        places, plan = self._places[ids], self._found.plan
        batched = plan.batched[places] if plan.batch_size else np.zeros(len(ids), bool)
        for rows in (False, True):
            part = (places > 0) & (batched == rows)
            if part.any():
                numbers = self._found.stacked(places[part])
                if rows and not shape:
                    with np.errstate(all="ignore"):  # infinities have sums too
                        numbers = numbers.sum(axis=1)
                whole[part] = numbers if rows or not shape else numbers[:, None]
        return whole


def _passes(written: _Written, leaves: Sequence[Array]) -> TapePasses:
    return TapePasses.at(written.program, [*leaves, *written.constants])


def _has_opcode(row: Row, dtype: str) -> bool:
    attributes = row.gate.complete(row.attributes)
    return instruction_set(dtype).number(row.gate, row.input_count, attributes) is not None


def _batched_leaves(plan: Plan) -> list[bool]:
    firsts = zip(plan.graph.leaves, plan.graph.leaf_first_ids, strict=False)
    return [leaf.id_count > 0 and plan.is_batched(first) for leaf, first in firsts]


def _write_out(
    plan: Plan,
    circuit: Graph,
    modules: Sequence[Module],
    leaves: Sequence[TensorSpec],
    batched: Sequence[bool],
) -> _Written:
    """A circuit of modules as a tape, for the rows of the plan."""
    flat = flatten(circuit, modules, _BOUNDLESS)
    stored = [leaf.value for leaf in flat.leaves[len(circuit.leaves) :] if leaf.value is not None]
    specs = [*leaves, *(TensorSpec((), value.dtype) for value in stored)]
    marks = [*batched, *[False] * len(stored)]
    flat_plan = make_plan(flat, specs, marks, plan.batch_size, _BOUNDLESS)
    program = make_program(flat_plan, 1 << 62)
    assert program is not None, "every row has an opcode"
    assert flat.inside is not None, "the circuit is not flat"
    return _Written(program, flat.inside.flat_ids, tuple(map(arrays.constant, stored)))


def _record_pulls(plan: Plan, dtype: str) -> _Pulls:
    """The local gradient of every kind of node there is, as a module."""
    graph = plan.graph
    rows: list[Row] = [*graph.rows, _ADD]
    circuits: list[_Circuit] = []
    kinds: list[_Kind] = []
    kind_of = np.zeros(graph.node_count, np.int64)
    for number, row in enumerate(graph.rows):
        rows[number] = _handing_on(row, circuits)
        nodes = np.flatnonzero(graph.node_rows == number)
        if not nodes.size:
            continue
        inputs = graph.input_starts[nodes][:, None] + np.arange(row.input_count)
        outputs = graph.first_ids[nodes][:, None] + np.arange(row.output_count)
        floating = plan.floating[np.concatenate([graph.node_inputs[inputs], outputs], axis=1)]
        distinct, which = distinct_rows([*floating.T.astype(np.int64)], len(nodes))
        kind_of[nodes] = which + len(kinds)
        kinds.extend(_record_pull(row, marks, dtype, rows, circuits) for marks in distinct)
    table = Rows(rows)
    modules = [Module(str(place), each.graph(table)) for place, each in enumerate(circuits)]
    return _Pulls(table, modules, graph.node_rows, kinds, kind_of)


@dataclass(frozen=True)
class _Circuit:
    """A module's circuit, whose gates table is not complete yet."""

    inputs: int
    constants: Sequence[Tensor]
    node_rows: Sequence[int]
    node_inputs: Sequence[int]
    outputs: Sequence[int]

    def graph(self, rows: Rows) -> Graph:
        leaves = [Leaf("input", str(place), "", ()) for place in range(self.inputs)]
        stored = [Leaf("constant", "", each.dtype, (), False, each) for each in self.constants]
        return Graph(
            rows,
            (*leaves, *stored),
            np.array(self.node_rows, np.int64),
            np.array(self.node_inputs, np.int64),
            tuple(Output(str(i), np.array([i])) for i in self.outputs),
        )


def _handing_on(row: Row, circuits: list[_Circuit]) -> Row:
    """The row as the forward pass has it: of a module with its own gradient, what that yields."""
    if row.own is None:
        return row
    ids = range(row.input_count - row.output_count + 1, row.input_count + 1)
    circuits.append(_Circuit(row.input_count, [], [], [], ids))
    return replace(row, module=len(circuits) - 1, own=None)


def _record_pull(
    row: Row, floating: Sequence[int], dtype: str, rows: list[Row], circuits: list[_Circuit]
) -> _Kind:
    """The local gradient of a row for inputs and outputs of these data types.

    Its circuit is added, with the rows that it uses, and the one that uses it.
    """
    recorder = Recorder(_BOUNDLESS)
    dtypes = [dtype if each else "bool" for each in floating]
    dtypes += dtypes[row.input_count :]
    leaves = [
        Handle(recorder, ("leaf", place), TensorSpec((), each)) for place, each in enumerate(dtypes)
    ]
    ends = row.input_count, row.input_count + row.output_count
    given, outs, grads = leaves[: ends[0]], leaves[ends[0] : ends[1]], leaves[ends[1] :]
    pulled = pull_row(recorder, row, given, outs, grads)
    slots = [slot for slot, each in enumerate(pulled) if each is not None and floating[slot]]
    ids: dict[tuple[object, ...], int] = {each.key: i for i, each in enumerate(leaves, 1)}
    for handle, _ in recorder.constants.values():
        ids[handle.key] = len(ids) + 1
    for node, (number, _) in enumerate(recorder.nodes):
        for slot in range(recorder.row_list[number].output_count):
            ids["node", node, slot] = len(ids) + 1
    circuit = _Circuit(
        len(leaves),
        [tensor for _, tensor in recorder.constants.values()],
        [len(rows) + number for number, _ in recorder.nodes],
        [ids[key] if key else 0 for _, inputs in recorder.nodes for key in inputs],
        [ids[each.key] for slot in slots if (each := pulled[slot]) is not None],
    )
    rows.extend(_handing_on(each, circuits) for each in recorder.row_list)
    rows.append(Row("pull", {}, len(leaves), len(slots), module=len(circuits)))
    circuits.append(circuit)
    sizes = row.input_count, row.output_count
    return _Kind(len(rows) - 1, *sizes, tuple(slots), len(recorder.nodes))


class _Refs(NamedTuple):
    """Gradients on their way to values: an output of an item, or a seed where the item is -1."""

    targets: Ids
    items: Ids
    offsets: Ids

    def where(self, mask: Flags) -> _Refs:
        return _Refs(self.targets[mask], self.items[mask], self.offsets[mask])


class _Backward:
    """The backward pass of a circuit, as a circuit: the nodes of the forward pass, then items.

    An item is a node that pulls, or one that adds two gradients of a value.
    """

    def __init__(self, plan: Plan, pulls: _Pulls, seeded: tuple[int, ...]) -> None:
        graph = plan.graph
        self._plan = plan
        self._pulls = pulls
        self._dtype = scalar_dtype(plan) or ""
        self._seeded = np.array(seeded, np.int64)
        self._first = graph.leaf_first_ids[-1]
        self._extra = len(seeded) + 1  # leaves: seeds, and a zero
        self._nodes = np.repeat(np.arange(graph.node_count), np.diff(graph.input_starts))
        self._producers = np.repeat(np.arange(graph.node_count), np.diff(graph.first_ids))
        widest = max((kind.inputs for kind in pulls.kinds), default=0)
        ranks = np.full((len(pulls.kinds), widest), -1)
        for number, kind in enumerate(pulls.kinds):
            ranks[number, list(kind.slots)] = np.arange(len(kind.slots))
        slots = np.arange(len(self._nodes)) - graph.input_starts[self._nodes]
        self._ranks = ranks[pulls.kind_of[self._nodes], slots]  # by edge: output of its pull, or -1
        for leaf, first, end in zip(
            graph.leaves, graph.leaf_first_ids, graph.leaf_first_ids[1:], strict=False
        ):
            if leaf.kind == "constant":
                within = (graph.node_inputs >= first) & (graph.node_inputs < end)
                self._ranks[within] = -1
        self._pulling = self._find_pulling()

    def written(self) -> tuple[_Written, Ids]:
        """As a tape; and by value where its gradient is in it, 0 where nothing reaches it."""
        graph, pulls = self._plan.graph, self._pulls
        kinds = pulls.kind_of[self._pulling]
        refs, left, right, sum_keys = self._added_up(self._contributions())
        # consumers first; sums of a value before the node that yields it pulls
        keys = np.concatenate([2 * (graph.node_count - 1 - self._pulling) + 1, sum_keys])
        order = np.lexsort((np.arange(len(keys)), keys))
        table = self._table("row", "inputs", "outputs")
        yields = np.array([len(kind.slots) for kind in pulls.kinds], np.int64)[kinds]
        rows, takes, outs = (column[kinds] for column in table)
        sums = len(sum_keys)
        rows = np.append(rows, np.full(sums, pulls.rows.index(_ADD)))
        takes, yields = np.append(takes + 2 * outs, [2] * sums), np.append(yields, [1] * sums)
        firsts, places = np.empty_like(keys), np.empty_like(keys)
        firsts[order] = graph.value_count + self._extra + 1 + starts(yields[order])[:-1]
        places[order] = starts(takes[order])[:-1]

        def ids_of(refs: _Refs) -> Ids:
            seeds = self._first + refs.offsets
            if not len(firsts):
                return seeds
            return np.where(refs.items < 0, seeds, firsts[refs.items] + refs.offsets)

        gradients = np.zeros(graph.value_count + 1, np.int64)
        gradients[refs.targets] = ids_of(refs)
        inputs = np.empty(int(takes.sum()), np.int64)
        self._fill(inputs, places, kinds, gradients)
        spans = places[len(kinds) :, None] + np.arange(2)
        inputs[spans] = np.stack([ids_of(left), ids_of(right)], axis=1)
        dtype = self._dtype
        circuit = Graph(
            pulls.rows,
            (*graph.leaves, *[Leaf("input", "", dtype, ())] * self._extra),
            np.concatenate([pulls.node_rows, rows[order]]),
            np.concatenate([self._moved(graph.node_inputs), inputs]),
            (),
        )
        specs = [TensorSpec((), leaf.dtype) for leaf in circuit.leaves]
        seeds = [self._plan.is_batched(i) for i in self._seeded.tolist()]
        batched = [*_batched_leaves(self._plan), *seeds, False]
        found = _write_out(self._plan, circuit, pulls.modules, specs, batched)
        return found, np.where(gradients > 0, found.flat_ids[gradients], 0)

    def _table(self, *names: str) -> list[Ids]:
        """Columns of the kinds."""
        return [
            np.array([getattr(kind, name) for kind in self._pulls.kinds], np.int64)
            for name in names
        ]

    def _moved(self, ids: Ids) -> Ids:
        """Ids of the forward pass, behind the new leaves."""
        return np.where(ids >= self._first, ids + self._extra, ids)

    def _find_pulling(self) -> Ids:
        """The nodes that a gradient reaches and leaves again."""
        graph = self._plan.graph
        # along what has a gradient only
        linked = replace(graph, node_inputs=np.where(self._ranks >= 0, graph.node_inputs, 0))
        reached = np.zeros(graph.value_count + 1, bool)
        reached[depended_on(linked, self._seeded.tolist())] = True
        gives = np.array([bool(kind.slots) for kind in self._pulls.kinds], bool)
        marks = np.zeros(graph.node_count, bool)
        marks[self._producers[reached[self._first :]]] = True
        return np.flatnonzero(marks & gives[self._pulls.kind_of])

    def _contributions(self) -> _Refs:
        """All gradients that reach a value: seeds, then those of its consumers, the last first."""
        graph = self._plan.graph
        items = np.full(graph.node_count, -1)
        items[self._pulling] = np.arange(len(self._pulling))
        edges = np.flatnonzero((self._ranks >= 0) & (items[self._nodes] >= 0))[::-1]
        count = len(self._seeded)
        return _Refs(
            np.concatenate([self._seeded, graph.node_inputs[edges]]),
            np.concatenate([np.full(count, -1), items[self._nodes[edges]]]),
            np.concatenate([np.arange(count), self._ranks[edges]]),
        )

    def _added_up(self, refs: _Refs) -> tuple[_Refs, _Refs, _Refs, Ids]:
        """One gradient for each value; what is added for that, as two columns and their keys.

        In pairs, and pairs of pairs, so that a value of many consumers makes no deep circuit.
        """
        graph = self._plan.graph
        order = np.argsort(refs.targets, kind="stable")
        refs = _Refs(*(column[order] for column in refs))
        made = len(self._pulling)
        added: list[tuple[_Refs, _Refs, Ids]] = []
        while True:
            begins = np.append(True, np.diff(refs.targets) != 0)[: len(refs.targets)]
            first = np.maximum.accumulate(np.where(begins, np.arange(len(begins)), 0))
            is_left = (np.arange(len(begins)) - first) % 2 == 0
            pairs = is_left[:-1] & ~is_left[1:]
            count = int(np.count_nonzero(pairs))
            if not count:
                break
            left, right = refs.where(np.append(pairs, False)), refs.where(np.append(False, pairs))
            producers = np.full(count, -1)
            of_node = left.targets >= self._first
            producers[of_node] = self._producers[left.targets[of_node] - self._first]
            added.append((left, right, 2 * (graph.node_count - 1 - producers)))
            items, offsets = refs.items.copy(), refs.offsets.copy()
            items[:-1][pairs], offsets[:-1][pairs] = made + np.arange(count), 0
            refs = _Refs(refs.targets, items, offsets).where(is_left)
            made += count
        if not added:
            nothing = refs.where(np.zeros(len(refs.targets), bool))
            return refs, nothing, nothing, np.zeros(0, np.int64)
        lefts, rights, keys = zip(*added, strict=True)
        return refs, _joined(lefts), _joined(rights), np.concatenate(keys)

    def _fill(self, inputs: Ids, places: Ids, kinds: Ids, gradients: Ids) -> None:
        """Puts the inputs of the nodes that pull in their places."""
        graph = self._plan.graph
        zero = self._first + len(self._seeded)
        for number, kind in enumerate(self._pulls.kinds):
            items = np.flatnonzero(kinds == number)
            nodes = self._pulling[items]
            given = graph.input_starts[nodes][:, None] + np.arange(kind.inputs)
            outs = graph.first_ids[nodes][:, None] + np.arange(kind.outputs)
            grads = np.where(gradients[outs] > 0, gradients[outs], zero)
            taken = [self._moved(graph.node_inputs[given]), self._moved(outs), grads]
            width = kind.inputs + 2 * kind.outputs
            inputs[places[items][:, None] + np.arange(width)] = np.concatenate(taken, axis=1)


def _joined(parts: Sequence[_Refs]) -> _Refs:
    return _Refs(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))
