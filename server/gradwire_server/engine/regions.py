"""Elementwise regions of tensor graphs, fused: one pass over memory a region, not one a gate.

A region is a stretch of consecutive nodes whose values have one shape and data type, and whose
inputs have that shape too or are single numbers. It is a tape over the elements: a block of them
goes through all the nodes while it is in the cache, and the processors share the blocks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import numpy as np

from gradwire_server.engine import kernels
from gradwire_server.engine.kernel_source import BLOCK
from gradwire_server.engine.opcodes import instruction_set
from gradwire_server.engine.tape import (
    Tape,
    opcode_columns,
    over_elements,
    row_columns,
    trace_back,
)
from gradwire_server.gates.base import Array
from gradwire_server.plan import Plan
from gradwire_server.specs import BOOLS, COMPUTED, Shape

#: Elements of all a region's nodes together from which a region is worth its call.
_WORTHWHILE = 1 << 16


@dataclass(frozen=True)
class Region:
    """A stretch of nodes as a tape; its slots are the inputs from outside, then the nodes."""

    nodes: range
    outs: range  # value ids
    inputs: tuple[int, ...]  # value ids
    is_single: tuple[bool, ...]  # by input: whether it is a single number
    shape: Shape
    tape: Tape
    compiled: Any
    scheduling: Any

    def forward(self, values: Sequence[Array]) -> list[Array]:
        """The nodes' values, from those of all ids before."""
        given = self._given(values)
        outs = [np.empty(self.shape, each.dtype) for each in given[:1] * len(self.nodes)]
        block = partial(
            self.compiled.block_forward,
            *(*self.tape.columns, *_places([*given, *outs], self._steps)),
            *(self.tape.slot, 0, len(self.nodes), 0, BLOCK),
        )
        over_elements(block, prod(self.shape), len(self.nodes), BLOCK)
        return outs

    def backward(
        self, values: Sequence[Array], grads: list[Array | None], own: set[int]
    ) -> Iterator[tuple[int, Array]]:
        """Completes the gradients of the nodes in `grads`, in place where they are in `own`.

        Yields what the region adds to the gradient of each of its inputs, in new arrays.
        """
        slot = self.tape.slot
        seeded = [slot + n for n, i in enumerate(self.outs) if grads[i] is not None]
        if not seeded:
            return
        trace = trace_back(self.tape, values[self.outs[0]].dtype.name, seeded, self.scheduling)
        given = self._given(values)
        dtype = given[0].dtype
        for n, i in enumerate(self.outs):
            before = grads[i]
            if before is None and trace.reached[slot + n]:
                grads[i] = np.empty(self.shape, dtype)
            elif before is not None and not (i in own and before.flags.c_contiguous):
                grads[i] = np.array(before, order="C")
            own.add(i)
        wholes = [
            None if single or not reached else np.empty(self.shape, dtype)
            for single, reached in zip(self.is_single, trace.reached[:slot], strict=True)
        ]
        # a single number gathers its gradient over all blocks, so it begins at zero only once
        single = np.array([*self.is_single, *(False for _ in self.outs)])
        fresh = trace.fresh & ~single[self.tape.inputs]
        outs = [values[i] for i in self.outs]
        addresses, steps = _places([*given, *outs], self._steps)
        gathered: dict[int, Array] = {}

        def block(start: int, stop: int) -> None:
            """A processor's share of the elements, with its own gradients of single numbers."""
            sums = np.zeros((slot, BLOCK), dtype)
            gathered[start] = sums
            places = [sums[n] if whole is None else whole for n, whole in enumerate(wholes)] + [
                grads[i] if grads[i] is not None else sums[0] for i in self.outs
            ]
            grad_addresses, _ = _places(places, self._steps)
            self.compiled.block_backward(
                *(trace.ops, *self.tape.columns[1:], opcode_columns(dtype.name)[0], fresh),
                *(addresses, steps, grad_addresses, steps),
                *(slot, len(self.nodes), 0, len(self.tape.inputs), BLOCK, start, stop),
            )

        over_elements(block, prod(self.shape), len(self.nodes), BLOCK)
        for n, (i, whole) in enumerate(zip(self.inputs, wholes, strict=True)):
            if whole is not None:
                yield i, whole
            elif trace.reached[n]:
                # in the elements' order, whichever processor came first
                total = sum(gathered[start][n].sum() for start in sorted(gathered))
                yield i, np.asarray(total, dtype).reshape(values[i].shape)

    @property
    def _steps(self) -> list[int]:
        """By slot: whether it moves on with the elements."""
        return [*(0 if single else 1 for single in self.is_single), *(1 for _ in self.outs)]

    def _given(self, values: Sequence[Array]) -> list[Array]:
        return [
            np.full(BLOCK, values[i]) if single else np.ascontiguousarray(values[i])
            for i, single in zip(self.inputs, self.is_single, strict=True)
        ]


def find_regions(plan: Plan) -> tuple[bool, Mapping[int, Region]]:
    """Regions by their first node.

    False before them means: asked again, there may be more, because kernels are still to come.
    """
    stretches = [*_stretches(plan)]
    if not stretches:
        return True, {}
    scheduling = kernels.loaded("scheduling")
    found = {}
    for nodes in stretches:
        dtype = plan.spec(int(plan.graph.first_ids[nodes.start])).dtype
        compiled = kernels.loaded(dtype)
        if compiled is None or scheduling is None:
            return False, {}
        found[nodes.start] = _region(plan, nodes, dtype, compiled, scheduling)
    return True, found


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
                i and plan.spec(i).dtype == spec.dtype and _is_operand(plan, i, own)
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


def _is_operand(plan: Plan, value_id: int, shape: Shape) -> bool:
    own = plan.shape(value_id)
    return own == shape or (prod(own) == 1 and not plan.is_batched(value_id))


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
    singles = tuple(plan.shape(i) != shape for i in outside.tolist())
    inputs = tuple(outside.tolist())
    return Region(nodes, outs, inputs, singles, shape, tape, compiled, scheduling)


def _places(held: Sequence[Array], moves: Sequence[int]) -> tuple[Array, Array]:
    """Addresses, and bytes from one element to the next."""
    addresses = np.array([each.ctypes.data for each in held], np.int64)
    return addresses, np.array(moves, np.int64) * held[0].itemsize
