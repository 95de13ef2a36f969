"""Elementwise regions of tensor graphs, fused: one pass over memory a region, not one a gate.

A region is a stretch of consecutive nodes whose values have one shape and data type; its inputs
have that shape too, or are spread over it: a single number, one for each row, one for each column.
It is a tape over the elements: a block of them goes through all the nodes while it is in the cache,
and the processors share the blocks. What is spread is written out for one block at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import numpy as np

from gradwire_server.engine import kernels
from gradwire_server.engine.opcodes import instruction_set
from gradwire_server.engine.tape import (
    BLOCK,
    Tape,
    opcode_columns,
    over_elements,
    row_columns,
    trace_back,
)
from gradwire_server.gates.base import Array, ElementwiseGate
from gradwire_server.plan import Plan
from gradwire_server.specs import BOOLS, COMPUTED, Shape

#: Elements of all a region's nodes together from which a region is worth its call.
_WORTHWHILE = 1 << 16
#: Most elements that a block must hold, so that what is spread begins anew with every block.
_LONGEST = 1 << 15
#: Least elements of a row whose number is written out again and again, and of a block of such rows.
_LEAST_ROW, _REWRITTEN = 32, 1 << 14


@dataclass(frozen=True)
class Spread:
    """How the numbers of an input lie over the elements: e has number `e // row % count`."""

    row: int
    count: int

    @property
    def is_steady(self) -> bool:
        """Whether all numbers lie over a block, each block alike."""
        return self.row * self.count <= _LONGEST

    @property
    def unit(self) -> int:
        """A block is so many elements, or a multiple."""
        return self.row * self.count if self.is_steady else self.row

    def write(self, numbers: Array, start: int, out: Array) -> None:
        """What lies over the elements from `start` on."""
        rows = out.reshape(-1, self.row)
        rows[...] = np.reshape(numbers, -1)[self._numbers(start, len(rows)), None]

    def add(self, grads: Array, start: int, total: Array) -> None:
        """Adds the gradients of the elements from `start` on to those of the numbers."""
        if self.is_steady:
            total += grads.reshape(-1, self.count, self.row).sum(axis=(0, 2))
        else:
            rows = grads.reshape(-1, self.row).sum(axis=1)
            np.add.at(total, self._numbers(start, len(rows)), rows)

    def _numbers(self, start: int, rows: int) -> Array:
        first = start // self.row
        return np.arange(first, first + rows) % self.count


@dataclass(frozen=True)
class Region:
    """A stretch of nodes as a tape; its slots are the inputs from outside, then the nodes."""

    nodes: range
    outs: range  # value ids
    inputs: tuple[int, ...]  # value ids
    spreads: tuple[Spread | None, ...]  # by input; None where it has the nodes' shape
    block: int  # elements
    shape: Shape
    tape: Tape
    compiled: Any
    scheduling: Any

    def forward(self, values: Sequence[Array]) -> list[Array]:
        """The nodes' values, from those of all ids before."""
        given = self._given(values)
        outs = [np.empty(self.shape, each.dtype) for each in given[:1] * len(self.nodes)]

        def share(start: int, stop: int) -> None:
            """A processor's share of the elements."""
            written = self._written(given)
            addresses, steps = _places([*written, *outs], self._steps)
            for low, high in self._parts(given, written, start, stop):
                self.compiled.block_forward(
                    *(*self.tape.columns, addresses, steps),
                    *(self.tape.slot, 0, len(self.nodes), 0, self.block, low, high),
                )

        over_elements(share, prod(self.shape), len(self.nodes), self.block)
        return outs

    def backward(
        self, values: Sequence[Array], grads: list[Array | None], own: set[int]
    ) -> Iterator[tuple[int, Array]]:
        """Completes the gradients of the nodes in `grads`, in place where they are in `own`.

        It adds to those of inputs in `own`, too; what it adds to the others it yields, in new
        arrays.
        """
        slot = self.tape.slot
        seeded = [slot + n for n, i in enumerate(self.outs) if grads[i] is not None]
        if not seeded:
            return
        given = self._given(values)
        dtype = given[0].dtype
        trace = trace_back(self.tape, dtype.name, seeded, self.scheduling)
        self._begin(grads, own, trace.reached, dtype)
        wholes = self._wholes(grads, own, trace.reached, dtype)
        joins = [whole is grads[i] for i, whole in zip(self.inputs, wholes, strict=True)]
        # what is there, and what gathers over all blocks, does not begin at zero with each
        gathers = [spread is not None and spread.is_steady for spread in self.spreads]
        begun = np.array([*map(any, zip(joins, gathers, strict=True)), *(False for _ in self.outs)])
        fresh = trace.fresh & ~begun[self.tape.inputs]
        shares: dict[int, _Gathered] = {}  # by their first elements

        def share(start: int, stop: int) -> None:
            written, gathered = self._written(given), _Gathered(self.spreads, self.block, dtype)
            shares[start] = gathered
            outs, to_outs = ([held[i] for i in self.outs] for held in (values, grads))
            addresses, steps = _places([*written, *outs], self._steps)
            grad_addresses, _ = _places([*gathered.beside(wholes), *to_outs], self._steps)
            for low, high in self._parts(given, written, start, stop):
                self.compiled.block_backward(
                    *(trace.ops, *self.tape.columns[1:], opcode_columns(dtype.name)[0], fresh),
                    *(addresses, steps, grad_addresses, steps),
                    *(slot, len(self.nodes), 0, len(self.tape.inputs), self.block, low, high),
                )
                gathered.take_down(low, high)
            gathered.close()

        over_elements(share, prod(self.shape), len(self.nodes), self.block)
        for n, (i, spread) in enumerate(zip(self.inputs, self.spreads, strict=True)):
            if spread is not None and trace.reached[n]:
                # in the elements' order, whichever processor came first
                total = sum(shares[start].totals[n] for start in sorted(shares))
                yield i, np.reshape(total, values[i].shape)
            elif trace.reached[n] and not joins[n]:
                yield i, wholes[n]

    def _begin(self, grads: list[Array | None], own: set[int], reached: Array, dtype: Any) -> None:
        """Buffers for the gradients of the nodes: own ones for those that are added to."""
        slot = self.tape.slot
        used = set(self.tape.inputs.tolist())
        for n, i in enumerate(self.outs, slot):
            before = grads[i]
            if before is None and reached[n]:
                grads[i] = np.empty(self.shape, dtype)
            elif before is not None and (
                not before.flags.c_contiguous or (n in used and i not in own)
            ):
                grads[i] = np.array(before, order="C")
            else:
                continue
            own.add(i)

    def _wholes(
        self, grads: Sequence[Array | None], own: set[int], reached: Array, dtype: Any
    ) -> list[Array]:
        """Buffers for the gradients of the inputs that are not spread; own ones that are there."""
        found = []
        for n, (i, spread) in enumerate(zip(self.inputs, self.spreads, strict=True)):
            before = grads[i]
            if spread is None and i in own and before is not None and before.flags.c_contiguous:
                found.append(before)
            else:
                found.append(np.empty(self.shape if reached[n] and spread is None else 0, dtype))
        return found

    @cached_property
    def _steps(self) -> list[int]:
        """By slot: whether it moves on with the elements."""
        return [*(0 if spread else 1 for spread in self.spreads), *(1 for _ in self.outs)]

    def _given(self, values: Sequence[Array]) -> list[Array]:
        return [
            np.asarray(values[i]) if spread else np.ascontiguousarray(values[i])
            for i, spread in zip(self.inputs, self.spreads, strict=True)
        ]

    def _written(self, given: Sequence[Array]) -> list[Array]:
        """The inputs, those that are spread as they lie over the first block."""
        found = []
        for numbers, spread in zip(given, self.spreads, strict=True):
            out = np.empty(self.block, numbers.dtype) if spread else numbers
            if spread is not None and spread.is_steady:
                spread.write(numbers, 0, out)
            found.append(out)
        return found

    def _parts(
        self, given: Sequence[Array], written: Sequence[Array], start: int, stop: int
    ) -> Iterator[tuple[int, int]]:
        """The parts of a share for which what is written holds, written anew for each."""
        moving = [
            (spread, numbers, out)
            for spread, numbers, out in zip(self.spreads, given, written, strict=True)
            if spread is not None and not spread.is_steady
        ]
        if not moving:
            yield start, stop
            return
        for low in range(start, stop, self.block):
            high = min(low + self.block, stop)
            for spread, numbers, out in moving:
                spread.write(numbers, low, out[: high - low])
            yield low, high


class _Gathered:
    """The gradients of what is spread over a region, from a processor's share of the elements."""

    def __init__(self, spreads: Sequence[Spread | None], block: int, dtype: Any) -> None:
        self.totals = [np.zeros(each.count if each else 0, dtype) for each in spreads]
        self._of_block = [np.zeros(block if each else 0, dtype) for each in spreads]
        self._spreads = spreads

    def beside(self, wholes: Sequence[Array]) -> list[Array]:
        """By input: where the gradients of a block's elements go."""
        return [
            whole if spread is None else own
            for spread, own, whole in zip(self._spreads, self._of_block, wholes, strict=True)
        ]

    def take_down(self, low: int, high: int) -> None:
        """Adds up the gradients of numbers that lie over this block alone."""
        for spread, own, total in zip(self._spreads, self._of_block, self.totals, strict=True):
            if spread is not None and not spread.is_steady:
                spread.add(own[: high - low], low, total)

    def close(self) -> None:
        """Adds up the others."""
        for spread, own, total in zip(self._spreads, self._of_block, self.totals, strict=True):
            if spread is not None and spread.is_steady:
                spread.add(own, 0, total)


def find_regions(plan: Plan) -> Mapping[int, Region]:
    """Regions by their first node."""
    stretches = [*_stretches(plan)]
    if not stretches:
        return {}
    scheduling = kernels.loaded("scheduling")
    found = {}
    for nodes in stretches:
        dtype = plan.spec(int(plan.graph.first_ids[nodes.start])).dtype
        compiled = kernels.loaded(dtype)
        if compiled is None or scheduling is None:
            return {}
        found[nodes.start] = _region(plan, nodes, dtype, compiled, scheduling)
    return found


def _stretches(plan: Plan) -> Iterator[range]:
    """Maximal stretches of nodes that make a region worth its call."""
    graph = plan.graph
    if not _largest(plan):
        return
    able = {
        (number, dtype)
        for number, row in enumerate(graph.rows)
        for dtype in COMPUTED
        if _has_opcode(row, dtype)
    }
    starts, inputs = graph.input_starts.tolist(), graph.node_inputs.tolist()
    rows, firsts = graph.node_rows.tolist(), graph.first_ids.tolist()
    start, dtype = 0, ""
    shape: Shape = ()
    for node in range(graph.node_count + 1):
        fits = False
        if node < graph.node_count:
            spec, own = plan.spec(firsts[node]), plan.shape(firsts[node])
            fits = (rows[node], spec.dtype) in able and all(
                i and plan.spec(i).dtype == spec.dtype and _is_operand(plan, i, own, rows[node])
                for i in inputs[starts[node] : starts[node + 1]]
            )
            if fits and (own, spec.dtype) == (shape, dtype):
                continue
        if shape and prod(shape) * (node - start) >= _WORTHWHILE:
            yield range(start, node)
        start = node
        shape, dtype = (own, spec.dtype) if fits else ((), "")


def _largest(plan: Plan) -> bool:
    """Whether any value is large enough for a region, quickly."""
    rows = plan.batch_size or 1
    least = _WORTHWHILE // max(1, plan.graph.node_count)
    return any(rows * spec.size >= max(2, least) for spec in plan.specs[2:])


def _has_opcode(row: Any, dtype: str) -> bool:
    """Whether a row of the gates table runs on numbers of the type alone."""
    declared = row.gate.declared_inputs(row.input_count)
    if any(each.dtypes == BOOLS for each in declared):
        return False
    attributes = row.gate.complete(row.attributes)
    return instruction_set(dtype).number(row.gate, row.input_count, attributes) is not None


def _is_operand(plan: Plan, value_id: int, shape: Shape, row: int) -> bool:
    """Whether a node of a row of the gates table takes the value as an input over this shape."""
    own = plan.shape(value_id)
    if own == shape or (prod(own) == 1 and not plan.is_batched(value_id)):
        return True
    return isinstance(plan.graph.rows[row].gate, ElementwiseGate) and bool(
        _spread(plan, value_id, shape)
    )


def _spread(plan: Plan, value_id: int, shape: Shape) -> Spread | None:
    """How a value lies over a shape that it broadcasts to; None where that is in no simple way."""
    own = plan.shape(value_id)
    if prod(own) == 1:
        return Spread(1, 1)
    lead = own[:1] if plan.is_batched(value_id) else ()
    own = (*lead, *(1,) * (len(shape) - len(own)), *own[len(lead) :])
    axes = [axis for axis, size in enumerate(own) if size != 1]
    first, end = axes[0], axes[-1] + 1
    if own[first:end] != shape[first:end]:
        return None
    found = Spread(prod(shape[end:]), prod(own))
    fits = found.is_steady or _LEAST_ROW <= found.row <= _LONGEST
    return found if fits else None


def _region(plan: Plan, nodes: range, dtype: str, compiled: Any, scheduling: Any) -> Region:
    graph = plan.graph
    outs = range(int(graph.first_ids[nodes.start]), int(graph.first_ids[nodes.stop]))
    used = graph.node_inputs[graph.input_starts[nodes.start] : graph.input_starts[nodes.stop]]
    outside = np.unique(used[used < outs.start])
    slots = np.where(
        used < outs.start, np.searchsorted(outside, used), used - outs.start + len(outside)
    )
    shape = plan.shape(outs.start)
    ops, constants = row_columns(graph, dtype)
    rows = graph.node_rows[nodes.start : nodes.stop].astype(np.uint32)
    tape = Tape(ops[rows], rows, slots.astype(np.uint32), constants, len(outside))
    inputs = tuple(outside.tolist())
    spreads = tuple(None if plan.shape(i) == shape else _spread(plan, i, shape) for i in inputs)
    return Region(nodes, outs, inputs, spreads, _block(spreads), shape, tape, compiled, scheduling)


def _block(spreads: Sequence[Spread | None]) -> int:
    """Elements of a block, over which all that is spread begins anew, or has whole rows.

    Rows are the product of a shape's last sizes, so that the longest is a multiple of the others.
    """
    found = [each for each in spreads if each is not None]
    unit = max((each.unit for each in found), default=1)
    wanted = BLOCK if all(each.is_steady for each in found) else _REWRITTEN
    return unit * max(1, wanted // unit)


def _places(held: Sequence[Array | None], moves: Sequence[int]) -> tuple[Array, Array]:
    """Addresses, and bytes from one element to the next; None for what is not touched."""
    addresses = [0 if each is None else each.ctypes.data for each in held]
    itemsize = next(each.itemsize for each in held if each is not None)
    return np.array(addresses, np.int64), np.array(moves, np.int64) * itemsize
