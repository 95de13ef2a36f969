"""The tape engine: scalar circuits, and batches of them, as columns that compiled loops run.

A program is a plan's circuit as a tape. Where the circuit is wide its nodes are put in another
order, so that equal ones lie side by side; `slots` says where each value id went. A run is one
evaluation of a program; the values and gradients that it gives out are copies, so that its buffers
can serve the next one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache, cached_property, partial
from itertools import pairwise
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from gradwire_server.engine import kernels
from gradwire_server.engine.buffers import LINE_BYTES, Buffers
from gradwire_server.engine.opcodes import MAX_CONSTANTS, MAX_INPUTS, instruction_set
from gradwire_server.engine.packing import PackedLeaves
from gradwire_server.gates.base import Array
from gradwire_server.graph import Graph, Ids
from gradwire_server.memory import Lifetimes
from gradwire_server.plan import Plan
from gradwire_server.specs import COMPUTED, FLOATS, ITEM_SIZES, Shape

#: Most elements of a block: a few rows of them stay in the first cache.
BLOCK = 512
#: Nodes between two looks at whether anybody still waits: some milliseconds.
CHUNK = 200_000
#: Nodes a run must have on average for runs to be faster than a switch: at 2.5 they take three
#: quarters of its time, at 1.5 a half more.
_RUN_LENGTH = 2
#: What a block may take of a processor's second cache, and how little of a slot is worth a call.
_CACHE_BYTES = 1 << 19
_LEAST_BYTES = 1 << 10
#: Elements of all nodes together from which a second thread is worth waking.
_THREADED = 200_000


@dataclass(frozen=True)
class Tape:
    """Columns, by node in the tape's order; inputs are slots, end to end."""

    ops: npt.NDArray[np.uint8]
    rows: npt.NDArray[np.uint32]
    inputs: npt.NDArray[np.uint32]
    constants: Array  # MAX_CONSTANTS of each row, end to end
    slot: int  # of the first node's value
    starts: Ids | None = None  # first node of each run, and one more: their end; None for a switch
    cursors: Ids | None = None  # where each run's inputs begin

    @cached_property
    def columns(self) -> tuple[Array, ...]:
        """As the kernels take them."""
        return self.ops, self.rows, self.inputs, self.constants

    @cached_property
    def groups(self) -> list[tuple[int, int]]:
        """Runs in groups of about CHUNK nodes: the first run of each, and its end."""
        assert self.starts is not None
        edges = np.searchsorted(self.starts, np.arange(0, int(self.starts[-1]), CHUNK))
        bounds = [*np.unique(edges).tolist(), len(self.starts) - 1]
        return [pair for pair in pairwise(bounds) if pair[0] < pair[1]]


@dataclass(frozen=True)
class Backward:
    """What the backward pass from a set of slots does."""

    seeded: Ids  # slots
    ops: npt.NDArray[np.uint8]
    fresh: npt.NDArray[np.uint8]
    reached: npt.NDArray[np.uint8]  # by slot: whether a gradient reaches it
    has_dead: bool


@dataclass
class Program:
    """A plan as a tape."""

    plan: Plan
    dtype: str
    tape: Tape
    slots: npt.NDArray[np.uint32] | None  # by value id; None where a slot is the id
    compiled: Any
    scheduling: Any
    _backward: dict[tuple[int, ...], Backward] = field(default_factory=dict)

    def backward_from(self, ids: tuple[int, ...]) -> Backward:
        """The backward pass from seeds at these value ids; the last one is kept."""
        found = self._backward.get(ids)
        if found is None:
            slots = np.asarray(self.slots_of(np.array(ids, np.int64)), np.int64)
            found = trace_back(self.tape, self.dtype, slots, self.scheduling)
            self._backward = {ids: found}
        return found

    def slots_of(self, ids: Any) -> Any:
        """Where values are."""
        return ids if self.slots is None else self.slots[ids]

    def column_of(self, ids: Ids) -> Any:
        """The same of several: a slice where they follow each other."""
        first, last = int(ids[0]), int(ids[-1])
        stay = self.slots is None or last < self.tape.slot  # as leaves do
        if stay and last - first + 1 == len(ids) and (np.diff(ids) == 1).all():
            return slice(first, last + 1)
        return self.slots_of(ids)

    @property
    def block_rows(self) -> int:
        """Rows of a block, of a batch."""
        return _buffer_shape(self.plan, self.dtype)[2]


def make_program(plan: Plan, max_bytes: int) -> Program | None:
    """The plan as a tape, where it is one of scalars and its buffers fit in memory."""
    dtype = scalar_dtype(plan)
    if dtype is None or 2 * prod(_buffer_shape(plan, dtype)) * ITEM_SIZES[dtype] > max_bytes:
        return None
    compiled, scheduling = kernels.loaded(dtype), kernels.loaded("scheduling")
    if compiled is None or scheduling is None:
        return None
    tape = _straight_tape(plan.graph, dtype)
    if tape is None:
        return None
    slots = None
    if not plan.batch_size:
        tape, slots = _in_groups(plan.graph, tape, scheduling)
    return Program(plan, dtype, tape, slots, compiled, scheduling)


_HELD = Buffers(most_bytes=256 << 20, least_bytes=1 << 16)


class TapePasses:
    """One evaluation of a program: forward once, then backward any number of times."""

    def __init__(self, program: Program) -> None:
        self.program = program
        shape = _buffer_shape(program.plan, program.dtype)
        self.buffers = _HELD.take(shape, program.dtype), _HELD.take(shape, program.dtype)

    @classmethod
    def at(cls, program: Program, leaves: Sequence[Array]) -> TapePasses:
        """`leaves` are the arrays of all leaves, by position."""
        passes = cls(program)
        _fill_leaves(program.plan, leaves, passes.buffers[0])
        return passes

    def __del__(self) -> None:
        for each in self.buffers:
            _HELD.give(each)

    @property
    def values(self) -> Slots:
        """By value id."""
        return Slots(self, self.buffers[0], summed=False)

    @property
    def gradients(self) -> Slots:
        """By value id, of the last backward pass."""
        return Slots(self, self.buffers[1], summed=True)

    def forward(self) -> Iterator[int]:
        """Computes all values; yields the first id not computed yet, as the array engine does."""
        if self.program.plan.batch_size:
            yield from _blocks_forward(self.program, self.buffers[0])
        elif self.program.tape.starts is None:
            yield from _switch_forward(self.program, self.buffers[0])
        else:
            yield from _runs_forward(self.program, self.buffers[0])

    def backward(self, seeds: Mapping[int, Array], lifetimes: Lifetimes) -> Iterator[int]:
        """Computes all gradients from seeds by value id; yields the lowest id that is complete.

        The buffers hold everything, so lifetimes change nothing.
        """
        trace = self.program.backward_from(tuple(seeds))
        values, grads = self.buffers
        batch = self.program.plan.batch_size
        if batch:
            grads[:, np.flatnonzero(trace.reached == 0)] = 0
            grads[:, trace.seeded] = 0
        else:
            grads.fill(0)
        for i, slot in zip(seeds, trace.seeded, strict=True):
            if not batch:
                grads[slot] = seeds[i]
            elif self.program.plan.is_batched(i):
                for block, rows in _in_blocks(grads, batch):
                    block[slot] = seeds[i][rows]
            else:
                grads[0, slot, 0] = seeds[i]
        if batch:
            yield from _blocks_backward(self.program, trace, values, grads)
        elif self.program.tape.starts is None or trace.has_dead:
            yield from _switch_backward(self.program, trace, values, grads)
        else:
            yield from _runs_backward(self.program, values, grads)


class Slots:
    """Values, or gradients, by id; copies."""

    def __init__(self, passes: TapePasses, buffer: Array, *, summed: bool) -> None:
        self._passes = passes  # which lives as long as its buffers are read
        self._program = passes.program
        self.plan = passes.program.plan
        self._buffer = buffer
        self._summed = summed  # over the rows, where a value is one for all of them

    def one(self, value_id: int) -> Array:
        """A number, or one for each row of a batch."""
        plan = self._program.plan
        if plan.batch_size:
            return self.stacked(np.array([value_id]))[0, ...]
        return np.array(self._buffer[self._program.slots_of(value_id)], plan.spec(value_id).dtype)

    def stacked(self, ids: Ids) -> Array:
        """[ids, rows of a batch]: the numbers of ids that are of one kind."""
        plan = self._program.plan
        found = self._read(ids, plan.is_batched(int(ids[0])))
        return found.astype(plan.spec(int(ids[0])).dtype, copy=False)

    def _read(self, ids: Ids, batched: bool) -> Array:
        slots = self._program.column_of(ids)
        batch = self._program.plan.batch_size
        if not batch:
            return self._buffer[slots].copy()
        if not batched and not self._summed:
            return self._buffer[0, slots, 0].copy()
        found = np.empty((len(ids), batch), self._buffer.dtype)
        for block, rows in _in_blocks(self._buffer, batch):
            found[:, rows] = block[slots]
        if batched:
            return found
        with np.errstate(all="ignore"):
            return found.sum(axis=1)


def scalar_dtype(plan: Plan) -> str | None:
    """The one floating data type of a circuit of scalars and truths, or None.

    Tapes do not round after every node, so half precision is left to the array engine.
    """
    uses = np.bincount(plan.spec_ids[1:], minlength=len(plan.specs))
    specs = [spec for spec, use in zip(plan.specs, uses.tolist(), strict=True) if use]
    dtypes = {spec.dtype for spec in specs}
    floating = dtypes & set(FLOATS)
    if any(spec.shape for spec in specs) or len(floating) != 1 or not dtypes <= {*floating, "bool"}:
        return None
    dtype = floating.pop()
    return dtype if dtype in COMPUTED else None


def row_columns(graph: Graph, dtype: str) -> tuple[npt.NDArray[np.uint8], Array]:
    """By row of the gates table: its opcode, 0 where it has none, and its constants."""
    ops = np.zeros(len(graph.rows), np.uint8)
    constants = np.zeros((len(graph.rows), MAX_CONSTANTS), dtype)
    for number, row in enumerate(graph.rows):
        attributes = row.gate.complete(row.attributes)
        op = instruction_set(dtype).number(row.gate, row.input_count, attributes)
        if op is not None:
            reals = [attributes[each.name] for each in row.gate.attributes if each.kind == "float"]
            ops[number], constants[number, : len(reals)] = op, reals
    return ops, constants.reshape(-1)


def _straight_tape(graph: Graph, dtype: str) -> Tape | None:
    """The circuit in its own order; None where a gate has no opcode."""
    row_ops, constants = row_columns(graph, dtype)
    ops, inputs = row_ops[graph.node_rows], graph.node_inputs.astype(np.uint32)
    if not ops.all() or not inputs.all():  # an input may be left out in the middle
        return None
    rows = graph.node_rows.astype(np.uint32)
    return Tape(ops, rows, inputs, constants, graph.leaf_first_ids[-1])


def _in_groups(graph: Graph, tape: Tape, scheduling: Any) -> tuple[Tape, Any]:
    """The tape in an order of long runs, and where each id went; as it is where there are none."""
    nodes, row_count = graph.node_count, len(graph.rows)
    if nodes < _RUN_LENGTH:
        return tape, None
    counts = np.array([row.input_count for row in graph.rows], np.int64)
    levels = np.zeros(graph.value_count + 1, np.int32)
    top = scheduling.find_levels(tape.rows, counts, tape.inputs, tape.slot, levels)
    if top * _RUN_LENGTH > nodes:
        return tape, None
    ends = np.zeros(top * row_count, np.int64)
    runs = scheduling.count_groups(tape.rows, levels, tape.slot, row_count, ends)
    if runs * _RUN_LENGTH > nodes:
        return tape, None
    starts = np.unique(np.append(ends, 0))
    slots = np.arange(graph.value_count + 1, dtype=np.uint32)
    rows = np.empty_like(tape.rows)
    scheduling.place_nodes(tape.rows, levels, tape.slot, row_count, ends, slots, rows)
    places = np.zeros(nodes + 1, np.int64)
    np.cumsum(counts[rows], out=places[1:])
    inputs = np.empty_like(tape.inputs)
    scheduling.place_inputs(tape.rows, counts, tape.inputs, tape.slot, slots, places, inputs)
    row_ops = np.zeros(row_count, np.uint8)
    row_ops[tape.rows] = tape.ops
    arranged = Tape(
        row_ops[rows], rows, inputs, tape.constants, tape.slot, starts, places[starts[:-1]]
    )
    return arranged, slots


def trace_back(tape: Tape, dtype: str, seeded: Any, scheduling: Any) -> Backward:
    """What the backward pass does from seeds at these slots."""
    counts, pulls = opcode_columns(dtype)
    reached = np.zeros(tape.slot + len(tape.ops), np.uint8)
    reached[seeded] = 1
    ops, fresh = np.empty_like(tape.ops), np.zeros(len(tape.inputs), np.uint8)
    dead = scheduling.trace_back(
        tape.ops, counts, pulls, tape.inputs, tape.slot, reached, ops, fresh
    )
    return Backward(np.asarray(seeded, np.int64), ops, fresh, reached, bool(dead))


@cache
def opcode_columns(dtype: str) -> tuple[Array, Array]:
    """By opcode: how many inputs it has, and which of them have a gradient, as bits."""
    opcodes = instruction_set(dtype).opcodes
    counts = [*range(MAX_INPUTS + 1), *(each.input_count for each in opcodes)]
    bits = [sum(1 << slot for slot, pull in enumerate(each.pulls) if pull) for each in opcodes]
    pulls = [0] * (MAX_INPUTS + 1) + bits
    return np.array(counts, np.uint8), np.array(pulls, np.uint8)


def _fill_leaves(plan: Plan, leaves: Sequence[Array], values: Array) -> None:
    if isinstance(leaves, PackedLeaves):
        leaves.write(values)
        return
    firsts = plan.graph.leaf_first_ids
    for given, first, end in zip(leaves, firsts, firsts[1:], strict=False):
        if not plan.batch_size:
            values[first:end] = given.reshape(-1)
        elif end > first and plan.is_batched(first):
            columns = given.reshape(plan.batch_size, -1).T
            for block, rows in _in_blocks(values, plan.batch_size):
                block[first:end] = columns[:, rows]
        else:
            values[:, first:end] = given.reshape(-1, 1)


def _switch_forward(program: Program, values: Array) -> Iterator[int]:
    tape, cursor = program.tape, 0
    for node in range(0, len(tape.ops), CHUNK):
        stop = min(node + CHUNK, len(tape.ops))
        cursor = program.compiled.switch_forward(
            *tape.columns, values, tape.slot, node, stop, cursor
        )
        yield tape.slot + stop


def _switch_backward(
    program: Program, trace: Backward, values: Array, grads: Array
) -> Iterator[int]:
    tape, cursor = program.tape, len(program.tape.inputs)
    for node in range(len(tape.ops), 0, -CHUNK):
        start = max(node - CHUNK, 0)
        cursor = program.compiled.switch_backward(
            trace.ops, *tape.columns[1:], values, grads, tape.slot, node, start, cursor
        )
        # in another order than the ids' no id is complete before all are
        yield tape.slot + start if program.slots is None and start else 1


def _runs_forward(program: Program, values: Array) -> Iterator[int]:
    tape = program.tape
    assert tape.starts is not None  # there are runs
    for run, stop in tape.groups:
        program.compiled.groups_forward(
            *tape.columns, values, tape.slot, tape.starts, tape.cursors, run, stop
        )
        last = stop == len(tape.starts) - 1
        yield tape.slot + len(tape.ops) if last else tape.slot


def _runs_backward(program: Program, values: Array, grads: Array) -> Iterator[int]:
    tape = program.tape
    assert tape.starts is not None
    past = program.plan.graph.value_count + 1
    for start, run in reversed(tape.groups):
        program.compiled.groups_backward(
            *tape.columns, values, grads, tape.slot, tape.starts, tape.cursors, run, start
        )
        yield past if start else 1


def _blocks_forward(program: Program, values: Array) -> Iterator[int]:
    plan, tape, size = program.plan, program.tape, values.shape[2]
    addresses, steps = addresses_of(values)
    for node, end in _node_chunks(plan):
        first_input = int(plan.graph.input_starts[node])
        block = partial(
            program.compiled.block_forward,
            *(*tape.columns, addresses, steps, tape.slot, node, end, first_input),
            size,
        )
        over_elements(block, plan.batch_size, end - node, size)
        yield tape.slot + end


def _blocks_backward(
    program: Program, trace: Backward, values: Array, grads: Array
) -> Iterator[int]:
    plan, tape, size = program.plan, program.tape, values.shape[2]
    addresses, steps = addresses_of(values)
    grad_addresses, _ = addresses_of(grads)
    for end, node in reversed(_node_chunks(plan)):
        past_input = int(plan.graph.input_starts[node])
        block = partial(
            program.compiled.block_backward,
            *(trace.ops, *tape.columns[1:], opcode_columns(program.dtype)[0], trace.fresh),
            *(addresses, steps, grad_addresses),
            *(steps, tape.slot, node, end, past_input),
            size,
        )
        over_elements(block, plan.batch_size, node - end, size)
        yield tape.slot + end if end else 1


def _node_chunks(plan: Plan) -> list[tuple[int, int]]:
    step = max(1, 8 * CHUNK // plan.batch_size)
    nodes = plan.graph.node_count
    return [(node, min(node + step, nodes)) for node in range(0, nodes, step)]


def addresses_of(buffer: Array) -> tuple[Array, Array]:
    """Where each slot of the first block is, and the bytes from there on for each row.

    A block begins at a multiple of its size, so that many rows lead to where the block is.
    """
    _, slots, size = buffer.shape
    addresses = buffer.ctypes.data + np.arange(slots, dtype=np.int64) * (size * buffer.itemsize)
    return addresses, np.full(slots, slots * buffer.itemsize, np.int64)


def _buffer_shape(plan: Plan, dtype: str) -> Shape:
    """Slots; of a batch [blocks, slots, rows of a block], so that a block lies in one piece."""
    slots, rows = plan.graph.value_count + 1, plan.batch_size
    if not rows:
        return (slots,)
    share = -(-rows // _threads(rows, plan.graph.node_count))
    size = min(block_elements(2 * slots, dtype), _round_up(share, LINE_BYTES // ITEM_SIZES[dtype]))
    return (-(-rows // size), slots, size)


def _round_up(count: int, unit: int) -> int:
    return -(-count // unit) * unit


def _in_blocks(buffer: Array, rows: int) -> Iterator[tuple[Array, slice]]:
    """Each block of a batch's buffer, without what fills up the last, and its rows."""
    size = buffer.shape[2]
    for number, block in enumerate(buffer):
        stop = min((number + 1) * size, rows)
        yield block[:, : stop - number * size], slice(number * size, stop)


def over_elements(work: Callable[[int, int], object], elements: int, nodes: int, size: int) -> None:
    """Runs work(start, stop) over the elements of so many nodes, in blocks of a size.

    Splits the blocks between the processors, where there is enough to do.
    """
    blocks = -(-elements // size)
    threads = min(blocks, _threads(elements, nodes))
    if threads < 2:
        work(0, elements)
        return
    edges = [min(blocks * part // threads * size, elements) for part in range(threads + 1)]
    share_out(work, [*pairwise(edges)])


def share_out(work: Callable[[int, int], object], parts: Sequence[tuple[int, int]]) -> None:
    """Runs work(start, stop) for each part, the first of them on this thread.

    The others sleep where there is nothing to do. Work may not share out more.
    """
    rest = [_pool().submit(work, *part) for part in parts[1:]]
    work(*parts[0])
    for each in rest:
        each.result()


def _threads(elements: int, nodes: int) -> int:
    """How many are worth waking for so many elements of so many nodes."""
    return min(processors(), 1 + elements * nodes // _THREADED)


def block_elements(slots: int, dtype: str) -> int:
    """Elements of a block, few enough for so many slots of them to stay in the second cache."""
    unit = _LEAST_BYTES // ITEM_SIZES[dtype]
    fit = _CACHE_BYTES // (slots * ITEM_SIZES[dtype])
    return max(unit, min(fit // unit * unit, BLOCK))


@cache
def processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(processors(), "gradwire-blocks")
