"""Small circuits at one point: everything that does not depend on numbers is settled beforehand.

Python takes longer over them than the processor. A recipe is made once for a plan and for what is
asked; an evaluation then fills in the leaves, calls one kernel, and shows what it found: its memory
is never used again, so nothing is copied. Or buffers stay where they are, for whoever evaluates in
a loop: then it calls the kernel, and that is all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from gradwire_server.engine.buffers import empty
from gradwire_server.engine.packing import PackedLeaves
from gradwire_server.engine.tape import Backward, Program, Tape
from gradwire_server.gates.base import Array
from gradwire_server.graph import Graph, Ids
from gradwire_server.specs import ITEM_SIZES, Shape

if TYPE_CHECKING:
    from gradwire_server.engine.evaluation import Choice, Part

#: Larger buffers are worth holding between evaluations (engine/tape.py).
_SMALL_BYTES = 1 << 17

#: The fields of Circuit and, behind it, of BoundCircuit (kernels/c/tape.h).
_CIRCUIT = (
    "ops", "rows", "inputs", "constants", "starts", "cursors", "live_ops",
    "nodes", "input_count", "groups", "groups_back", "slot",
)  # fmt: skip
_BOUND = ("slots", "values", "grads", "seeds", "seed_slots", "seed_numbers")
#: A name, and what of a buffer it has: an index, and the shape where that yields another.
_Taken = tuple[str, Any, Shape | None]


class Numbers:
    """Values, or gradients, by id."""

    def __init__(self, program: Program, buffer: Array) -> None:
        self._program = program
        self.buffer = buffer

    def one(self, value_id: int) -> Array:
        """A number."""
        found: Array = self.buffer[self._program.slots_of(value_id), ...]
        return found.astype(self._program.plan.spec(value_id).dtype, copy=False)

    def stacked(self, ids: Ids) -> Array:
        """The numbers of ids that are of one kind."""
        found: Array = self.buffer[self._program.column_of(ids)]
        return found.astype(self._program.plan.spec(ids[0]).dtype, copy=False)


class Views(Mapping[str, Array]):
    """Where a buffer has leaves, by name; each is made when it is first asked for."""

    def __init__(self, graph: Graph, positions: Iterable[int], buffer: Array) -> None:
        self._graph = graph
        self._positions = {graph.leaves[position].name: position for position in positions}
        self._buffer = buffer
        self._made: dict[str, Array] = {}

    def __getitem__(self, name: str) -> Array:
        found = self._made.get(name)
        if found is None:
            found = self._made[name] = self._part(self._positions[name])
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._positions)

    def __len__(self) -> int:
        return len(self._positions)

    def _part(self, position: int) -> Array:
        axes, firsts = self._graph.leaves[position].axes, self._graph.leaf_first_ids
        if not axes:
            return self._buffer[firsts[position], ...]
        return self._buffer[firsts[position] : firsts[position + 1]].reshape(axes)

    def __repr__(self) -> str:
        return repr(dict(self))


@dataclass(frozen=True)
class Settled:
    """A circuit in buffers that stay where they are."""

    run: Callable[[], None]  # forward and backward
    leaves: Mapping[str, Array]  # to be written to
    outputs: Mapping[str, Array]
    gradients: Mapping[str, Array]  # of the chosen leaves
    values: Numbers  # all of them
    grads: Numbers
    packed: tuple[Array, Array] | None  # chosen leaves and gradients, where they lie end to end


class _Call(partial[None]):
    """A call of a kernel, with what that knows by address, which must live as long."""

    held: object


class Recipe:
    """How the values and gradients of one choice are computed from leaves and seeds."""

    def __init__(self, program: Program, choice: Choice, seeds: Mapping[int, Array]) -> None:
        trace = program.backward_from(tuple(seeds))
        self.program = program
        self._dtype = np.dtype(program.dtype)
        self._slots = program.plan.graph.value_count + 1
        self._leaves = [*_leaf_places(program)]
        self._seeded = [*zip(seeds, trace.seeded.tolist(), strict=True)]
        self._trace = trace  # whose columns the kernel is told of
        self._told = _told(program.tape, trace)
        self._kernel = program.compiled.both
        self._outputs = [*_outputs(program)]
        self._choice = choice
        self.value_parts: list[Part] = choice.value_parts(0, len(choice.values.ids))
        self.gradient_parts: list[Part] = choice.gradient_parts(0, len(choice.gradients.ids))

    def follow(
        self, leaves: Sequence[Array], seeds: Mapping[int, Array]
    ) -> tuple[list[tuple[str, Array]], Numbers, Numbers]:
        """Outputs by name, all values and all gradients."""
        values, grads = np.empty(self._slots, self._dtype), np.zeros(self._slots, self._dtype)
        self._put(leaves, values)
        for value_id, slot in self._seeded:
            grads[slot] = seeds[value_id]
        self._kernel(self._told, values, grads)
        return (
            _taken(self._outputs, values),
            Numbers(self.program, values),
            Numbers(self.program, grads),
        )

    def leaf_gradients(self, grads: Numbers) -> list[tuple[str, Array]]:
        """Those of the chosen leaves, by name."""
        return _taken(self._gradients, grads.buffer)

    @cached_property
    def _gradients(self) -> list[_Taken]:
        return [*_leaf_gradients(self._choice)]

    def settle(self, leaves: Sequence[Array], seeds: Mapping[int, Array]) -> Settled:
        """Buffers for many evaluations, at these numbers to begin with."""
        values, grads = (empty((self._slots,), self.program.dtype) for _ in range(2))
        values.fill(0)
        self._put(leaves, values)
        slots = np.array([slot for _, slot in self._seeded], np.int64)
        numbers = np.array([seeds[value_id] for value_id, _ in self._seeded], self._dtype)
        given = {
            "slots": len(values),
            "values": values.ctypes.data,
            "grads": grads.ctypes.data,
            "seeds": len(slots),
            "seed_slots": slots.ctypes.data,
            "seed_numbers": numbers.ctypes.data,
        }
        told = np.append(self._told, [given[name] for name in _BOUND])
        run = _Call(self.program.compiled.both_again, told.ctypes.data)
        run.held = self, told, slots, numbers, values, grads
        outputs = dict(_taken(self._outputs, values))
        gathered = [
            (outputs[name], place)
            for name, place, _ in self._outputs
            if isinstance(place, np.ndarray)
        ]
        graph, chosen = self.program.plan.graph, self._choice.leaves
        free = [place for place, leaf in enumerate(graph.leaves) if leaf.kind != "constant"]
        column = _column(graph, chosen)
        return Settled(
            partial(_run_and_gather, run, values, gathered) if gathered else run,
            Views(graph, free, values),
            outputs,
            Views(graph, chosen, grads),
            Numbers(self.program, values),
            Numbers(self.program, grads),
            None if column is None else (values[column], grads[column]),
        )

    def _put(self, leaves: Sequence[Array], values: Array) -> None:
        if isinstance(leaves, PackedLeaves):
            leaves.write(values)
            return
        for position, place, is_flat in self._leaves:
            values[place] = leaves[position] if is_flat else leaves[position].reshape(-1)


def _run_and_gather(
    run: Callable[[], None], values: Array, gathered: list[tuple[Array, Array]]
) -> None:
    """Outputs of many values lie here and there in the buffer."""
    run()
    for output, slots in gathered:
        output[...] = values[slots]


def find_recipe(
    program: Program | None,
    choice: Choice,
    seeds: Mapping[int, Array],
    most_bytes: float = _SMALL_BYTES,
) -> Recipe | None:
    """The recipe of a circuit whose buffers are small; there must be a backward pass."""
    if program is None or program.plan.batch_size or not seeds:
        return None
    slots = program.plan.graph.value_count + 1
    if slots * ITEM_SIZES[program.dtype] >= most_bytes:
        return None
    outputs = (program.plan.spec(output.value_ids[0]) for output in program.plan.graph.outputs)
    if any(spec.dtype != program.dtype for spec in outputs):
        return None  # truths, which are numbers on a tape
    return Recipe(program, choice, seeds)


def _told(tape: Tape, trace: Backward) -> Ids:
    """Addresses and counts, as the kernel wants them."""
    runs = 0 if tape.starts is None else len(tape.starts) - 1
    found = {
        "nodes": len(tape.ops),
        "input_count": len(tape.inputs),
        "groups": runs,
        "groups_back": 0 if trace.has_dead else runs,
        "slot": tape.slot,
        "live_ops": trace.ops.ctypes.data,
    }
    for name in ("ops", "rows", "inputs", "constants", "starts", "cursors"):
        column = getattr(tape, name)
        found[name] = 0 if column is None else column.ctypes.data
    return np.array([found[name] for name in _CIRCUIT], np.int64)


def _leaf_places(program: Program) -> Iterator[tuple[int, int | slice, bool]]:
    """Positions of leaves, where they go, and whether they go there in their own shape."""
    graph = program.plan.graph
    firsts = graph.leaf_first_ids
    for position, leaf in enumerate(graph.leaves):
        rank, first, end = len(leaf.axes), firsts[position], firsts[position + 1]
        yield position, slice(first, end) if rank else first, rank < 2


def _outputs(program: Program) -> Iterator[_Taken]:
    for output in program.plan.graph.outputs:
        slots = program.slots_of(output.value_ids)
        yield output.name, (int(slots[0]), ...) if len(slots) == 1 else slots, None


def _leaf_gradients(choice: Choice) -> Iterator[_Taken]:
    """Leaves keep their ids as slots."""
    for leaf in choice.leaf_places:
        if len(leaf.ids) == 1 and not leaf.shape:
            yield leaf.name, (int(leaf.ids[0]), ...), None
            continue
        first = int(leaf.ids[0]) if len(leaf.ids) else 0
        shape = None if len(leaf.shape) == 1 else leaf.shape
        yield leaf.name, slice(first, first + len(leaf.ids)), shape


def _column(graph: Graph, positions: tuple[int, ...]) -> slice | None:
    """Where a buffer has all these leaves, if it has no other between them."""
    if not positions or positions[-1] - positions[0] + 1 != len(positions):
        return None
    return slice(graph.leaf_first_ids[positions[0]], graph.leaf_first_ids[positions[-1] + 1])


def _taken(places: list[_Taken], buffer: Array) -> list[tuple[str, Array]]:
    return [
        (name, buffer[place] if shape is None else buffer[place].reshape(shape))
        for name, place, shape in places
    ]
