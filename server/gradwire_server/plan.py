"""From a graph to a plan: every shape and data type, checked before anything is computed.

Shapes of a million nodes are inferred without a loop over nodes. Nodes of one gate row whose
inputs have equal specs have equal outputs, so it is enough to ask the gate once for each distinct
signature. The specs of all values are guessed, then corrected row by row with NumPy until nothing
changes: a circuit has no cycle, so what does not change is right, by induction over the nodes.
Deep graphs of many shapes, where corrections would wander node by node, are walked in order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gradwire_server import arrays
from gradwire_server.errors import Invalid, OverLimit, Refusal
from gradwire_server.gates.base import Gate, first_outputs
from gradwire_server.graph import Graph, Ids, Leaf, OwnGradient, Row
from gradwire_server.limits import Limits
from gradwire_server.specs import (
    BOOLS,
    HALVES,
    INTEGERS,
    Shape,
    TensorSpec,
    computed_in,
)
from gradwire_server.stopping import stop_if_asked

#: Most elements of a value that are followed while planning (axes, shapes, indices).
KNOWN_SIZE = 1024

_MAX_RANK = 32
_ROUNDS = 4
_KEYS = 1 << 20
_FEW_NODES = 1000  # up to here a loop over nodes takes less than a search by SciPy
_ABSENT, _FAILED = 0, 1  # the first two spec ids
_MOST_BYTES = 1 << 60  # more than any machine has, and sums of it still are numbers
_BYTES_OF_ONE = 48  # what Python needs to hold one value
_KNOWN_AT_ONCE = 16 << 20  # bytes of known elements from which on they are dropped after their use
_BYTES_OF_KNOWN = 40  # of an element, as a number of Python's in a tuple
_LARGEST_FOLD = 1 << 20  # operations of a gate whose elements are known beforehand
_STEPS_OF_GATE = 100  # of planning: a gate asked for shapes takes as long as so many elements

LIMITS = Limits()


@dataclass(frozen=True)
class GradientPlan:
    """A module's own gradient made ready to run: its leaves are given, but for its constants."""

    plan: Plan
    constants: tuple[arrays.Array, ...]
    uses: int = 1  # nodes that have it


@dataclass(frozen=True)
class Plan:
    """A validated graph made ready to run at leaves of given specs."""

    graph: Graph
    specs: Sequence[TensorSpec]  # a table; the first two entries stand for absent and failed
    spec_ids: Ids  # spec of each value, by value id
    batch_size: int = 0
    batched: npt.NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, bool))  # by id
    #: Of the forward pass, of all rows; and the node with most of them.
    operations: int = 0
    busiest_node: int = 0
    #: Bytes, at least as many as any gate holds on the way (scratch.py says it exactly).
    most_scratch: int = 0
    #: What engines have worked out for it, by a name of their own.
    worked_out: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)
    _gradients: Mapping[tuple[int, ...], GradientPlan] = field(default_factory=dict)

    def spec(self, value_id: int) -> TensorSpec:
        """Spec of one value, of one row of a batch."""
        return self.specs[int(self.spec_ids[value_id])]

    def shape(self, value_id: int) -> Shape:
        """Shape of one value, the batch axis included where it has one."""
        shape = self.spec(value_id).shape
        return (self.batch_size, *shape) if self.is_batched(value_id) else shape

    def is_batched(self, value_id: int) -> bool:
        """Whether the value has a leading batch axis."""
        return bool(self.batch_size) and bool(self.batched[value_id])

    def own_gradient(self, row: int, inputs: list[int]) -> GradientPlan:
        """The plan of the gradient of a module that has its own, for inputs as these."""
        flags = [self.batched_flags[i] for i in inputs] if self.batch_size else ()
        return self._gradients[row, *self.spec_ids[inputs].tolist(), *flags]

    @cached_property
    def batched_flags(self) -> bytes:
        """By value id: 1 where it has a leading batch axis; quicker to look up than an array."""
        return self.batched.tobytes()

    @cached_property
    def floating(self) -> npt.NDArray[np.bool_]:
        """By value id: whether it is a floating value, which alone has a gradient."""
        table = np.array([spec.is_floating for spec in self.specs])
        table[[_ABSENT, _FAILED]] = False
        found: npt.NDArray[np.bool_] = table[self.spec_ids]
        return found

    @cached_property
    def has_halves(self) -> bool:
        """Whether any value is of half precision."""
        return any(spec.dtype in HALVES for spec in self.specs)

    @cached_property
    def shared_flags(self) -> bytes:
        """By value id: 1 where several inputs of nodes are this value, whose gradient is a sum."""
        counts = np.bincount(self.graph.node_inputs, minlength=self.graph.value_count + 1)
        return (counts > 1).tobytes()

    @cached_property
    def half_flags(self) -> bytes:
        """By value id: 1 where it is of half precision."""
        table = np.array([spec.dtype in HALVES for spec in self.specs])
        found: bytes = table[self.spec_ids].tobytes()
        return found

    def nbytes(self, gradients: bool) -> int:
        """Memory for every value, and every gradient, held at once; in bytes."""
        own = [each.plan.nbytes(gradients=False) for each in self._gradients.values()]
        total = min(max([self.most_scratch, *own]), _MOST_BYTES)
        for output in self.graph.outputs if self.batch_size else ():
            row = sum(self.spec(value_id).nbytes for value_id in output.value_ids)
            total += self.batch_size * row
        for rows, ids in (
            (1, self.spec_ids[~self.batched] if self.batch_size else self.spec_ids),
            (self.batch_size, self.spec_ids[self.batched] if self.batch_size else ()),
        ):
            uses = np.bincount(np.asarray(ids, np.int64), minlength=len(self.specs)).tolist()
            for spec, use in zip(self.specs, uses, strict=True):
                copies = 2 if gradients and spec.is_floating else 1
                if spec.dtype in HALVES:
                    copies *= 4  # in float32 while gates run, which is twice as wide
                total += use * copies * (rows * spec.nbytes + _BYTES_OF_ONE)
        return total

    @cached_property
    def own_gradients_operations(self) -> int:
        """Operations of all gradients that modules have of their own."""
        return sum(each.uses * each.plan.operations for each in self._gradients.values())

    @cached_property
    def most_bytes(self) -> int:
        """Memory for everything, held at once."""
        return self.nbytes(gradients=True)


def make_plan(
    graph: Graph,
    leaf_specs: Sequence[TensorSpec],
    batched_leaves: Sequence[bool] = (),
    batch_size: int = 0,
    limits: Limits = LIMITS,
) -> Plan:
    """Infers every spec (any refusal of a gate, with the node put before it; LIMIT_EXCEEDED).

    `leaf_specs` are those of one row. Elements of integer leaves that shapes depend on are in
    their specs (see `static_leaves`).
    """
    plan = _inferred(graph, leaf_specs, batched_leaves, batch_size, limits)
    gradients = dict(_plan_gradients(plan, limits))
    return replace(plan, _gradients=gradients) if gradients else plan


def _inferred(
    graph: Graph,
    leaf_specs: Sequence[TensorSpec],
    batched_leaves: Sequence[bool],
    batch_size: int,
    limits: Limits,
) -> Plan:
    """A plan for the forward pass."""
    table = _SpecTable(limits)
    spec_ids = np.full(graph.value_count + 1, _FAILED, np.int64)
    spec_ids[0] = _ABSENT
    firsts = graph.leaf_first_ids
    for leaf, spec, first, end in zip(graph.leaves, leaf_specs, firsts, firsts[1:], strict=False):
        spec_ids[first:end] = table.id_of(TensorSpec((), spec.dtype) if leaf.elements else spec)
    signatures = _Signatures(graph, table)
    uses = _infer(graph, table, signatures, spec_ids)
    batched = reached(graph, batched_leaves) if batch_size else np.zeros(0, bool)
    work = _work(graph, signatures, uses, batched, batch_size)
    plan = Plan(graph, table.specs, spec_ids, batch_size, batched, *work)
    _check_outputs(plan)
    return plan


def _plan_gradients(plan: Plan, limits: Limits) -> Iterator[tuple[tuple[int, ...], GradientPlan]]:
    """A plan for each module with its own gradient, and each kind of inputs (MODULE_INVALID)."""
    graph = plan.graph
    for number, row in enumerate(graph.rows):
        if row.own is None:
            continue
        nodes = np.flatnonzero(graph.node_rows == number)
        inputs = graph.node_inputs[graph.input_starts[nodes][:, None] + np.arange(row.input_count)]
        kinds = plan.spec_ids[inputs]
        if plan.batch_size:
            kinds = np.concatenate([kinds, plan.batched[inputs]], axis=1)
        distinct, which = distinct_rows(list(kinds.T), len(kinds))
        for nth, kind in enumerate(distinct):
            first = int(np.argmax(which == nth))
            count = int(np.count_nonzero(which == nth)) if len(distinct) > 1 else len(nodes)
            try:
                found = _plan_gradient(plan, row.own, inputs[first].tolist(), count, limits)
            except Refusal as refusal:
                place = graph.place_of(int(nodes[first]))
                raise refusal.at(f"{place}: its own gradient").at_field("") from None
            yield (number, *kind), found


def _plan_gradient(
    plan: Plan, own: OwnGradient, inputs: list[int], uses: int, limits: Limits
) -> GradientPlan:
    """Of inputs of the module, and what its circuit makes of them."""
    gradient = own.gradient
    takes = len(gradient.outputs)
    made = inputs[takes:]
    static = static_leaves(gradient)
    constants = [leaf for leaf in gradient.leaves if leaf.kind == "constant"]
    values = tuple(arrays.constant(leaf.value) for leaf in constants if leaf.value is not None)
    stored = [
        known_spec(value) if place in static else TensorSpec(value.shape, str(value.dtype))
        for place, value in enumerate(values, takes + 2 * len(made))
    ]
    batched = [plan.is_batched(i) for i in inputs]
    found = _inferred(
        gradient,
        [*(plan.spec(i) for i in (*inputs, *made)), *stored],
        [*batched[:takes], *[any(batched)] * (2 * len(made)), *[False] * len(stored)],
        plan.batch_size,
        limits,
    )
    for value_id, declared, output in zip(inputs, own.inputs, gradient.outputs, strict=False):
        if not output.value_ids.size:
            continue
        of, to = plan.spec(value_id), found.spec(int(output.value_ids[0]))
        if not of.is_floating:
            raise Invalid(
                "MODULE_INVALID",
                f"has an output for {declared.name!r}, which is {of} and has no gradient",
            )
        if (of.shape, of.dtype) != (to.shape, to.dtype):
            raise Invalid(
                "MODULE_INVALID", f"yields {to} for the input {declared.name!r}, which is {of}"
            )
    return GradientPlan(found, values, uses)


def bind_symbols(leaf: Leaf, shape: Shape, symbols: dict[str, tuple[int, str]]) -> None:
    """Gives the leaf's symbols their sizes; equal symbols are equal sizes (SHAPE_MISMATCH)."""
    for axis, (extent, size) in enumerate(zip(leaf.axes, shape, strict=True)):
        if isinstance(extent, str):
            bound, by = symbols.setdefault(extent, (size, leaf.place))
            if bound != size:
                raise Invalid(
                    "SHAPE_MISMATCH",
                    f"{leaf.place}: axis {axis} ({extent!r}) has size {size} but {by} gives "
                    f"{extent!r} the size {bound}",
                )


def static_leaves(graph: Graph) -> frozenset[int]:
    """Positions of the leaves whose elements the shapes depend on.

    Only what reaches an input that a gate must know is followed, so this is cheap.
    """
    ids = depended_on(graph, _known_inputs(graph), graph.followed_inputs)
    ids = ids[(ids > 0) & (ids < graph.leaf_first_ids[-1])]
    return frozenset((np.searchsorted(graph.leaf_first_ids, ids, "right") - 1).tolist())


def _known_inputs(graph: Graph) -> list[int]:
    """Ids of the values whose elements gates must know."""
    wanted: list[int] = []
    for number, row in enumerate(graph.rows):
        declared = row.gate.declared_inputs(row.input_count)
        slots = [slot for slot, each in enumerate(declared) if each.known]
        if slots:
            starts = graph.input_starts[np.flatnonzero(graph.node_rows == number)]
            wanted.extend(np.unique(graph.node_inputs[starts[:, None] + slots]).tolist())
    return wanted


def depended_on(graph: Graph, value_ids: list[int], node_inputs: Ids | None = None) -> Ids:
    """These values and all that they depend on, through all inputs of nodes or those given."""
    inputs = graph.node_inputs if node_inputs is None else node_inputs
    if not value_ids or graph.node_count <= _FEW_NODES:
        return np.array(_followed(graph, inputs, value_ids), np.int64)
    marks = np.zeros(graph.value_count + 1, bool)
    marks[value_ids] = True
    return np.flatnonzero(_reached_from(_dependencies(graph, inputs), marks))


def _followed(graph: Graph, node_inputs: Ids, wanted: list[int]) -> list[int]:
    seen = set(wanted)
    waiting = list(seen)
    while waiting:
        value_id = waiting.pop()
        if value_id >= graph.leaf_first_ids[-1]:
            node = graph.node_of(value_id)
            sources = node_inputs[graph.input_starts[node] : graph.input_starts[node + 1]]
            fresh = set(sources.tolist()) - seen
            seen |= fresh
            waiting.extend(fresh)
    return list(seen)


def known_spec(array: arrays.Array) -> TensorSpec:
    """The spec of an array, with its elements if they are few."""
    spec = TensorSpec(array.shape, str(array.dtype))
    if array.size > KNOWN_SIZE:
        return spec
    return replace(spec, value=tuple(array.reshape(-1).tolist()), data=array.tobytes())


class _SpecTable:
    """Numbers for specs, so that columns can hold them; and what planning has taken so far."""

    def __init__(self, limits: Limits) -> None:
        absent = TensorSpec((0,), "bool")
        self.specs = [absent, absent]
        self.known_nbytes = 0
        self._ids: dict[TensorSpec, int] = {}
        self._limits = limits
        self._most_known = limits.max_memory_bytes
        self._steps = 0

    def id_of(self, spec: TensorSpec) -> int:
        """The number of a spec (SHAPE_MISMATCH, LIMIT_EXCEEDED)."""
        if spec not in self._ids:
            if spec.rank > _MAX_RANK:
                raise Invalid("SHAPE_MISMATCH", f"rank {spec.rank} is over {_MAX_RANK}")
            limit, held = self._limits.max_memory_bytes, self.known_nbytes + _known_nbytes(spec)
            if held > self._most_known < limit:
                raise _MuchIsKnown
            if held > limit:
                what = "bytes of elements that are known before anything runs"
                advice = "compute shapes and indices from smaller tensors"
                raise OverLimit.of("max-memory-bytes", limit, held, what, advice)
            self.known_nbytes = held
            self._ids[spec] = len(self.specs)
            self.specs.append(spec)
        return self._ids[spec]

    @contextmanager
    def few_known(self) -> Iterator[None]:
        """Where known elements are not dropped after their use, many of them end the attempt."""
        most = self.known_nbytes + _KNOWN_AT_ONCE
        self._most_known = min(most, self._limits.max_memory_bytes)
        with suppress(_MuchIsKnown):
            yield
        self._most_known = self._limits.max_memory_bytes

    def forget(self, number: int) -> None:
        """Drops the known elements of a spec."""
        spec = self.specs[number]
        self.known_nbytes -= _known_nbytes(spec)
        del self._ids[spec]
        self.specs[number] = TensorSpec(spec.shape, spec.dtype)

    def spend(self, steps: int) -> None:
        """Counts steps of planning (LIMIT_EXCEEDED)."""
        self._steps += steps
        stop_if_asked()
        if self._steps > (limit := self._limits.max_plan_steps):
            raise OverLimit.of("max-plan-steps", limit, self._steps, "steps of planning up to here")


class _MuchIsKnown(Exception):  # noqa: N818 -- not an error: nodes are walked in order instead
    """The elements known are more than are held without need."""


def _known_nbytes(spec: TensorSpec) -> int:
    """Memory for the elements of a spec, in bytes."""
    if spec.value is None or spec.data is None:
        return 0
    return len(spec.value) * _BYTES_OF_KNOWN + len(spec.data)


_Signature = tuple[int, tuple[int, ...]]  # a gate row, and the spec ids of a node's inputs


class _Signatures:
    """What a gate row yields for given input specs, asked once each."""

    def __init__(self, graph: Graph, table: _SpecTable) -> None:
        self._graph = graph
        self._table = table
        self._found: dict[_Signature, tuple[int, ...]] = {}
        self._refusals: dict[_Signature, Refusal] = {}
        self._known: dict[int, list[_Signature]] = {}  # what yields a spec with known elements
        self._complete: dict[int, dict[str, Any]] = {}  # attributes, by row

    def outputs(self, row: int, inputs: tuple[int, ...]) -> tuple[int, ...]:
        """Spec ids of the outputs; all `failed` where an input is, or where the gate refuses."""
        key = row, inputs
        found = self._found.get(key)
        if found is None:
            try:
                found = self._ask(row, inputs)
            except Refusal as refusal:
                self._refusals[key] = refusal
                found = (_FAILED,) * self._graph.rows[row].output_count
            self._found[key] = found
        return found

    def work(self, row: int, inputs: tuple[int, ...], outputs: tuple[int, ...]) -> tuple[int, int]:
        """Operations of a node, and bytes that its gate holds on the way, about."""
        gate, specs = self._graph.rows[row].gate, self._table.specs
        if row not in self._complete:
            self._complete[row] = gate.complete(self._graph.rows[row].attributes)
        outs = tuple(specs[i] for i in outputs)
        given = [None if i == _ABSENT else specs[i] for i in inputs]
        attributes = self._complete[row]
        held = gate.scratch(outs, *given, **attributes)
        return gate.operations(outs, *given, **attributes), sum(held)

    def is_known(self, number: int) -> bool:
        """Whether a spec has known elements that a gate yields."""
        return number in self._known

    @property
    def have_known(self) -> bool:
        """Whether any has."""
        return bool(self._known)

    def forget(self, number: int) -> None:
        """Drops known elements that no value has any more; they are asked for again if need be."""
        for signature in self._known.pop(number):
            self._found.pop(signature, None)
        self._table.forget(number)

    def forget_all(self) -> None:
        """Drops all known elements that gates yield."""
        for number in list(self._known):
            self.forget(number)

    def refusal(self, row: int, inputs: tuple[int, ...]) -> Refusal | None:
        """Why the gate refused these inputs, if it did."""
        return self._refusals.get((row, inputs))

    def _ask(self, number_of_row: int, inputs: tuple[int, ...]) -> tuple[int, ...]:
        row = self._graph.rows[number_of_row]
        if _FAILED in inputs:
            return (_FAILED,) * row.output_count
        table = self._table
        specs = tuple(None if i == _ABSENT else table.specs[i] for i in inputs)
        ranks = sum(len(spec.shape) for spec in specs if spec is not None)
        table.spend(_STEPS_OF_GATE + ranks + row.output_count)
        found = row.gate.check(specs, row.attributes)
        if len(found) < row.output_count or (
            not row.gate.outputs[1] and len(found) != row.output_count
        ):
            raise Invalid(
                "OUTPUT_COUNT_INVALID",
                f"yields {len(found)} outputs here but {row.output_count} are declared",
            )
        folded = fold(row, specs, found)[: row.output_count]
        table.spend(sum(len(spec.value) for spec in folded if spec.value is not None))
        before = len(table.specs)
        numbers = tuple(map(table.id_of, folded))
        for number, spec in zip(numbers, folded, strict=True):
            if spec.value is not None and (number >= before or number in self._known):
                self._known.setdefault(number, []).append((number_of_row, inputs))
        return numbers


def fold(
    row: Row, inputs: Sequence[TensorSpec | None], found: tuple[TensorSpec, ...]
) -> tuple[TensorSpec, ...]:
    """The outputs with their elements, where those of all inputs that count are known and few."""
    declared = row.gate.declared_inputs(row.input_count)
    if any(
        spec is not None and spec.value is None and each.elements
        for each, spec in zip(declared, inputs, strict=True)
    ) or any(
        spec.dtype not in (*INTEGERS, *BOOLS) or spec.size > KNOWN_SIZE or spec.value is not None
        for spec in found
    ):
        return found
    given = [
        None if spec is None else spec.value if each.flat else _as_given(row.gate, spec)
        for each, spec in zip(declared, inputs, strict=True)
    ]
    attributes = row.gate.complete(row.attributes)
    if row.gate.operations(found, *inputs, **attributes) > _LARGEST_FOLD:
        return found
    with np.errstate(all="ignore"):
        out = row.gate.forward(arrays, *given, **attributes)
    outs = first_outputs(out, len(found))
    return tuple(
        known_spec(np.asarray(array, spec.dtype).reshape(spec.shape))
        for spec, array in zip(found, outs, strict=True)
    )


def _as_given(gate: Gate, spec: TensorSpec) -> arrays.Array:
    """The known elements as an engine would give them to the gate; zeros where none count."""
    if spec.data is None:
        dtype = spec.dtype if gate.takes_halves else computed_in(spec.dtype)
        return np.broadcast_to(np.zeros((), dtype), spec.shape)
    held = np.frombuffer(spec.data, spec.dtype).reshape(spec.shape)
    return held if gate.takes_halves else arrays.astype(held, computed_in(spec.dtype))


_Kind = tuple[int, tuple[int, ...], tuple[int, ...]]  # a gate row, and spec ids in and out


class _Uses(NamedTuple):
    """Nodes, and which of some kinds each is."""

    kinds: list[_Kind]
    which: Ids
    first_ids: Ids  # of the nodes


def _infer(graph: Graph, table: _SpecTable, signatures: _Signatures, spec_ids: Ids) -> list[_Uses]:
    """Fills in the specs of all node values; says what all nodes are."""
    if not graph.node_count:
        return []
    groups = group_by_row(graph)
    first = graph.leaf_first_ids[-1]
    spec_ids[first:] = _commonest_float(table, spec_ids[1:first])
    uses = None
    with table.few_known():
        uses = _corrected(graph, signatures, groups, spec_ids)
    if uses is None:
        signatures.forget_all()
        uses = [_walk(graph, signatures, spec_ids)]
    failed = np.flatnonzero(spec_ids == _FAILED)
    if failed.size:
        node = graph.node_of(int(failed[0]))
        row = int(graph.node_rows[node])
        start, end = graph.input_starts[node : node + 2]
        inputs = tuple(spec_ids[graph.node_inputs[start:end]].tolist())
        refusal = signatures.refusal(row, inputs)
        assert refusal is not None, "the first failed node has only good inputs"
        operator = graph.rows[row].operator
        facts, field = graph.facts_of(node), graph.field_of_node(node)
        raise refusal.at(graph.place_of(node), field=field, operator=operator, **facts)
    return uses


def _corrected(
    graph: Graph, signatures: _Signatures, groups: list[_Group], spec_ids: Ids
) -> list[_Uses] | None:
    """The specs of all node values from the first guess; None where that takes many rounds."""
    for _ in range(_ROUNDS):
        changed, uses = _correct(graph, signatures, groups, spec_ids)
        if not changed:
            return uses
    return None


def _work(
    graph: Graph,
    signatures: _Signatures,
    uses: list[_Uses],
    batched: npt.NDArray[np.bool_],
    batch_size: int,
) -> tuple[int, int, int]:
    """Operations of all nodes and rows, the node that has most, and the most scratch memory; gates
    are asked once for each signature."""
    total, most, busiest, scratch = 0, 0, 0, 0
    for kinds, which, first_ids in uses:
        work = [signatures.work(*kind) for kind in kinds]
        each = [operations for operations, _ in work]
        scratch = max([scratch, *(held for _, held in work)])
        if len(kinds) == 1:
            which = np.zeros(1, np.int64)
            counts = [len(first_ids)]
        else:
            counts = np.bincount(which, minlength=len(each)).tolist()
        if batch_size:
            rows = batched[first_ids].astype(np.int64)
            of_rows = np.bincount(np.broadcast_to(which, len(rows)), rows, len(each)).tolist()
            more = [int(count) * (batch_size - 1) for count in of_rows]
            counts = list(map(sum, zip(counts, more, strict=True)))
        total += sum(one * count for one, count in zip(each, counts, strict=True))
        if each and (largest := max(each)) > most:
            first = int(np.argmax(which == each.index(largest)))
            most, busiest = largest, graph.node_of(int(first_ids[first]))
    return total, busiest, scratch * max(batch_size, 1)


class _Group(NamedTuple):
    """All nodes of one gate row."""

    row: int
    inputs: tuple[Ids, ...]  # by slot: a value id for each node
    first_ids: Ids


def group_by_row(graph: Graph) -> list[_Group]:
    # numbers of 16 bits are sorted by radix, ten times as fast
    narrow = np.uint16 if len(graph.rows) <= 1 << 16 else np.int64
    order = np.argsort(graph.node_rows.astype(narrow), kind="stable")
    ends = np.cumsum(np.bincount(graph.node_rows, minlength=len(graph.rows)))
    groups = []
    for number, nodes in enumerate(np.split(order, ends[:-1])):
        if nodes.size:
            starts = graph.input_starts[nodes]
            slots = range(graph.rows[number].input_count)
            inputs = tuple(graph.node_inputs[starts + slot] for slot in slots)
            groups.append(_Group(number, inputs, graph.first_ids[nodes]))
    return groups


def _commonest_float(table: _SpecTable, leaf_specs: Ids) -> int:
    """A good first guess for what nodes yield."""
    uses = np.bincount(leaf_specs, minlength=len(table.specs))
    uses = np.where([spec.is_floating for spec in table.specs], uses, 0)
    return int(uses.argmax()) if uses.any() else table.id_of(TensorSpec(()))


def _correct(
    graph: Graph, signatures: _Signatures, groups: list[_Group], spec_ids: Ids
) -> tuple[bool, list[_Uses]]:
    """Puts the outputs of every node where its inputs' specs lead.

    Returns whether any changed, and what all nodes are.
    """
    changed, uses = False, []
    for row, inputs, first_ids in groups:
        distinct, which = distinct_rows([spec_ids[column] for column in inputs], len(first_ids))
        kinds = [(row, each, signatures.outputs(row, each)) for each in distinct]
        outputs = np.array([each for _, _, each in kinds], np.int64)
        for slot in range(graph.rows[row].output_count):
            places = first_ids + slot
            found = outputs[which, slot]
            changed = changed or bool((spec_ids[places] != found).any())
            spec_ids[places] = found
        uses.append(_Uses(kinds, which, first_ids))
    return changed, uses


def distinct_rows(columns: list[Ids], count: int) -> tuple[list[tuple[int, ...]], Ids]:
    """The distinct rows of `count` rows given by columns, and for each row which of them it is."""
    if all((column == column[0]).all() for column in columns):
        return [tuple(int(column[0]) for column in columns)], np.zeros(1, np.int64)
    base = max(int(column.max()) for column in columns) + 1
    width = len(columns)
    if base**width > _KEYS:
        rows, which = np.unique(np.stack(columns, axis=1), axis=0, return_inverse=True)
        return list(map(tuple, rows.tolist())), which
    keys = np.zeros(count, np.int64)
    for column in reversed(columns):
        keys = keys * base + column
    present = np.zeros(base**width, bool)
    present[keys] = True
    distinct = np.flatnonzero(present)[:, None] // base ** np.arange(width) % base
    return list(map(tuple, distinct.tolist())), (np.cumsum(present) - 1)[keys]


def _walk(graph: Graph, signatures: _Signatures, spec_ids: Ids) -> _Uses:
    """The same, node after node; known elements are dropped after their last use."""
    found = spec_ids.tolist()
    inputs = graph.node_inputs.tolist()
    starts = graph.input_starts.tolist()
    numbers: dict[_Signature, int] = {}
    kinds: list[_Kind] = []
    which = []
    live: dict[int, int] = {}  # values of each spec with known elements
    done: list[int] = []
    for node, row in enumerate(graph.node_rows.tolist()):
        given = tuple(found[i] for i in inputs[starts[node] : starts[node + 1]])
        first = int(graph.first_ids[node])
        outputs = signatures.outputs(row, given)
        found[first : first + len(outputs)] = outputs
        which.append(number := numbers.setdefault((row, given), len(numbers)))
        if number == len(kinds):
            kinds.append((row, given, outputs))
        if signatures.have_known:
            done = done or _last_uses_of_known(graph).tolist()
            for known in filter(signatures.is_known, outputs):
                live[known] = live.get(known, 0) + 1
            given_ids = inputs[starts[node] : starts[node + 1]]
            for i in {*given_ids, *range(first, first + len(outputs))}:
                if done[i] == node and signatures.is_known(known := found[i]):
                    live[known] -= 1
                    if not live[known]:
                        signatures.forget(known)
    spec_ids[:] = found
    return _Uses(kinds, np.array(which), graph.first_ids[:-1])


def _last_uses_of_known(graph: Graph) -> Ids:
    """By id: the last node that may need its elements; -1 if evaluating does, or it is a leaf."""
    first, nodes = graph.leaf_first_ids[-1], np.arange(graph.node_count)
    last = np.full(graph.value_count + 1, -1)
    last[first:] = np.repeat(nodes, np.diff(graph.first_ids))
    last[graph.node_inputs] = np.repeat(nodes, np.diff(graph.input_starts))
    last[:first] = -1
    last[_known_inputs(graph)] = -1
    return last


def reached(
    graph: Graph, leaves: Sequence[bool], values: npt.NDArray[np.bool_] | None = None
) -> npt.NDArray[np.bool_]:
    """By value id: whether it is, or its elements depend on, a marked leaf or value."""
    marks = np.zeros(graph.value_count + 1, bool) if values is None else values.copy()
    firsts = graph.leaf_first_ids
    for marked, first, end in zip(leaves, firsts, firsts[1:], strict=False):
        if marked:
            marks[first:end] = True
    if graph.node_count > _FEW_NODES:
        edges = _dependencies(graph, graph.followed_inputs).T.tocsr()
        return _reached_from(edges, marks)
    inputs, starts = graph.followed_inputs.tolist(), graph.input_starts.tolist()
    first_ids = graph.first_ids.tolist()
    flags = marks.tolist()
    for node in range(graph.node_count):
        if any(flags[i] for i in inputs[starts[node] : starts[node + 1]]):
            first, end = first_ids[node], first_ids[node + 1]
            flags[first:end] = [True] * (end - first)
    return np.array(flags)


def _dependencies(graph: Graph, node_inputs: Ids) -> Any:
    """Sparse rows: what each value depends on.

    Values come first. Where nodes yield several values, the nodes follow, and the values of a
    node depend on it alone.
    """
    from scipy.sparse import csr_array  # slow to import, and small graphs do not need it

    leaves = np.zeros(graph.leaf_first_ids[-1], np.int64)
    if all(row.output_count == 1 for row in graph.rows):
        columns, ends = node_inputs, np.concatenate([leaves, graph.input_starts])
    else:
        nodes = np.arange(graph.node_count) + graph.value_count + 1
        own = np.repeat(nodes, np.diff(graph.first_ids))
        columns = np.concatenate([own, node_inputs])
        ends = np.concatenate([leaves, np.arange(len(own)), len(own) + graph.input_starts])
    size = len(ends) - 1
    # the search wants floats, and these indices as they are
    return csr_array(
        (np.ones(len(columns)), columns.astype(np.int32), ends.astype(np.int32)),
        shape=(size, size),
    )


def _reached_from(edges: Any, marks: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """By value id: whether a way along the edges leads there from a marked one."""
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import breadth_first_order

    # one vertex more, from which all marked ones are reached
    size = edges.shape[0] + 1
    marked = np.flatnonzero(marks).astype(np.int32)
    columns = np.concatenate([edges.indices, marked])
    ends = np.append(edges.indptr, len(columns)).astype(np.int32)
    whole = csr_array((np.ones(len(columns)), columns, ends), shape=(size, size))
    found = np.zeros(size, bool)
    found[breadth_first_order(whole, size - 1, return_predecessors=False)] = True
    return found[: len(marks)]


def _check_outputs(plan: Plan) -> None:
    """Stacked outputs are scalars of one data type (OUTPUT_INVALID)."""
    for number, output in enumerate(plan.graph.outputs):
        kinds = np.unique(plan.spec_ids[output.value_ids])
        specs = [plan.specs[kind] for kind in kinds]
        if len(output.value_ids) > 1:
            for spec in specs:
                if spec.shape or spec.dtype != specs[0].dtype:
                    raise Invalid(
                        "OUTPUT_INVALID",
                        f"{output.place}: stacks values that are not scalars of one data type: "
                        f"{specs[0]} and {spec}",
                        field=f"circuit.outputs[{number}].value_ids",
                    )
