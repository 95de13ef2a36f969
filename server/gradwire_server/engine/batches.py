"""Batches of scalar circuits at once: both passes over one block of rows after another.

A stream tells all values before it tells a gradient. Where everything is asked for at once, the
values of a block are still in the cache when its gradients need them; and what goes in and what
comes out in rows is copied by the thread that computes the block. As in engine/small.py,
everything that does not depend on numbers is settled beforehand.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from gradwire_server.engine.tape import (
    Program,
    TapePasses,
    addresses_of,
    opcode_columns,
    over_elements,
    processors,
)
from gradwire_server.errors import Stopped
from gradwire_server.gates.base import Array
from gradwire_server.graph import Ids
from gradwire_server.plan import Plan
from gradwire_server.specs import Shape

if TYPE_CHECKING:
    from gradwire_server.engine.evaluation import Choice, LeafPlace, Part

#: Nodes times rows between two looks at whether anybody still waits: some tens of milliseconds.
_GROUP = 16_000_000


class Taken(NamedTuple):
    """By name, outputs and gradients of leaves: those of which each row has its own."""

    outputs: dict[str, Array]
    gradients: dict[str, Array]


class _Move(NamedTuple):
    """Numbers of a row that go to neighbouring slots, or come from there."""

    array: str | int  # the name of an output or leaf, or the position of a leaf
    slot: int
    width: int
    offset: int  # of a row's first number, in elements
    stride: int  # elements from one row to the next; 0 where all rows share them


class BatchRecipe:
    """How the values and gradients of one choice are computed from leaves, for these seeds."""

    def __init__(
        self, program: Program, choice: Choice, seeds: Mapping[int, Array], *, forward_only: bool
    ) -> None:
        plan = program.plan
        self.program = program
        self.value_parts: list[Part] = choice.value_parts(0, len(choice.values.ids))
        self.gradient_parts: list[Part] = choice.gradient_parts(0, len(choice.gradients.ids))
        self._sizes = dict(_leaf_sizes(plan))
        self._leaves = _Moves(_leaf_moves(plan), program.dtype)
        self._shapes = _output_shapes(program)
        self._outputs = _Moves(_output_moves(plan, self._shapes), program.dtype)
        self._backward = None if forward_only else _Backward(program, choice, seeds)

    def follow(
        self, passes: TapePasses, leaves: Sequence[Array], stopped: Callable[[], bool]
    ) -> Taken:
        """Both passes, into buffers (Stopped, soon after nobody waits any more)."""
        program, tape, back = self.program, self.program.tape, self._backward
        values, grads = passes.buffers
        size = values.shape[2]
        given = {place: _whole(leaves[place], program.dtype) for place in self._sizes}
        assert all(given[place].size == size for place, size in self._sizes.items())
        taken = Taken(_new(self._shapes, program.dtype), {})
        columns = (*tape.columns, *addresses_of(values))
        moves = self._leaves.at(given), self._outputs.at(taken.outputs)
        if back is None:
            kernel = partial(program.compiled.rows_forward, *columns, *moves, tape.slot, size)
            _over_groups(kernel, program, size, stopped)
            return taken
        taken.gradients.update(_new(back.shapes, program.dtype))
        back_moves = back.seeds, back.leaves.at(taken.gradients)
        pulled = (*back.columns, addresses_of(grads)[0], *back_moves)
        kernel = partial(program.compiled.rows_both, *columns, *moves, *pulled, tape.slot, size)
        _over_groups(kernel, program, size, stopped)
        return taken


def find_batch_recipe(
    program: Program | None, choice: Choice, seeds: Mapping[int, Array], *, forward_only: bool
) -> BatchRecipe | None:
    """The recipe of a batch, unless a block of its rows takes too long for one call."""
    if program is None or not program.plan.batch_size:
        return None
    if len(program.tape.ops) * program.block_rows > _GROUP:
        return None
    return BatchRecipe(program, choice, seeds, forward_only=forward_only)


class _Moves:
    """Moves as the kernels take them, but for where the arrays are."""

    def __init__(self, moves: Iterable[_Move], dtype: str) -> None:
        found = list(moves)
        self.arrays = [move.array for move in found]
        item = np.dtype(dtype).itemsize
        columns = [(each.slot, each.width, each.offset * item, each.stride) for each in found]
        self._table = np.array(columns, np.int64).reshape(-1, 4)

    def at(self, arrays: Mapping[Any, Array]) -> Ids:
        """With the addresses of the arrays, which the caller holds."""
        table = self._table.copy()
        table[:, 2] += np.array([arrays[name].ctypes.data for name in self.arrays], np.int64)
        return table


class _Backward:
    """What of the backward pass does not depend on leaves."""

    def __init__(self, program: Program, choice: Choice, seeds: Mapping[int, Array]) -> None:
        plan, dtype = program.plan, program.dtype
        trace = program.backward_from(tuple(seeds))
        fresh = np.zeros_like(trace.fresh)  # kernels for rows begin with zeros everywhere
        self.columns = trace.ops, opcode_columns(dtype)[0], fresh
        leaves = _batched_places(choice)
        self.shapes = {leaf.name: leaf.shape for leaf in leaves}
        moves = (
            _Move(each.name, int(each.ids[0]), len(each.ids), 0, len(each.ids)) for each in leaves
        )
        self.leaves = _Moves(moves, dtype)
        self._held = {i: _in_rows(plan, i, seed, dtype) for i, seed in seeds.items()}
        self.seeds = _Moves((_Move(i, i, 1, 0, 1) for i in seeds), dtype).at(self._held)


def _leaf_sizes(plan: Plan) -> Iterator[tuple[int, int]]:
    """Positions of leaves that have elements, and how many all rows of one have."""
    for position, (first, end) in enumerate(pairwise(plan.graph.leaf_first_ids)):
        if end > first:
            yield position, (end - first) * (plan.batch_size if plan.is_batched(first) else 1)


def _leaf_moves(plan: Plan) -> Iterator[_Move]:
    for position, (first, end) in enumerate(pairwise(plan.graph.leaf_first_ids)):
        if end > first:
            stride = end - first if plan.is_batched(first) else 0
            yield _Move(position, first, end - first, 0, stride)


def _output_shapes(program: Program) -> dict[str, Shape]:
    """Of the outputs that kernels can write: truths are numbers on a tape."""
    plan, found = program.plan, {}
    for output in plan.graph.outputs:
        ids = output.value_ids
        if plan.batched[ids].all() and plan.spec(int(ids[0])).dtype == program.dtype:
            found[output.name] = (plan.batch_size, *([len(ids)] if len(ids) > 1 else []))
    return found


def _output_moves(plan: Plan, names: Container[str]) -> Iterator[_Move]:
    for output in plan.graph.outputs:
        if output.name in names:
            count = len(output.value_ids)
            for position, value_id in enumerate(output.value_ids.tolist()):
                yield _Move(output.name, value_id, 1, position, count)


def _batched_places(choice: Choice) -> list[LeafPlace]:
    """The other leaves have one gradient, which is a sum over the rows."""
    batched = choice.lifetimes.plan.batched
    return [leaf for leaf in choice.leaf_places if len(leaf.ids) and batched[leaf.ids[0]]]


def _whole(given: Array, dtype: str) -> Array:
    """As kernels read it, itself if it is like that; messages may begin an array anywhere."""
    return np.require(given, dtype, ("C", "A"))


def _in_rows(plan: Plan, value_id: int, seed: Array, dtype: str) -> Array:
    """A number for each row. Where one is for all of them, their gradients are to be added up."""
    if plan.is_batched(value_id):
        return _whole(seed, dtype)
    rows = np.zeros(plan.batch_size, dtype)
    rows[0] = seed
    return rows


def _new(shapes: Mapping[str, Shape], dtype: str) -> dict[str, Array]:
    return {name: np.empty(shape, dtype) for name, shape in shapes.items()}


def _over_groups(
    kernel: Callable[[int, int], object], program: Program, size: int, stopped: Callable[[], bool]
) -> None:
    """Runs kernel(start, stop) over all rows, a group of blocks at a time."""
    rows, nodes = program.plan.batch_size, len(program.tape.ops)
    unit = size * processors()
    group = unit * max(1, _GROUP // (nodes * unit + 1))
    for first in range(0, rows, group):
        if stopped():
            raise Stopped

        def part(start: int, stop: int, first: int = first) -> None:
            kernel(first + start, first + stop)

        over_elements(part, min(group, rows - first), nodes, size)
