"""How long values and gradients live in the array engine, and how much memory that takes at most.

A value is needed until its last consumer has run, and longer if the backward pass uses it or it
was asked for; a gradient until its node has been pulled. What is known before anything runs is
added up here node by node, as arrays over all nodes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from gradwire_server import scratch
from gradwire_server.errors import OverLimit
from gradwire_server.gates.base import ElementwiseGate, Gate
from gradwire_server.graph import Ids
from gradwire_server.limits import Limits
from gradwire_server.plan import Plan, depended_on
from gradwire_server.specs import ITEM_SIZES

Flags = npt.NDArray[np.bool_]

#: Evaluations that take less are not worth the bookkeeping: they drop nothing before their end.
SMALL_BYTES = 1 << 20

_SLOT_BYTES = 8
_SCALAR_BYTES = 32
_ARRAY_BYTES = 112


@dataclass(frozen=True)
class Kept:
    """What must outlive its last use in an evaluation, by value id.

    `values` and `gradients` are asked for; `needed` says which gradients the backward pass
    computes, and is None where there is none.
    """

    values: Flags
    gradients: Flags
    needed: Flags | None = None


@dataclass(frozen=True)
class Releases:
    """By node: the values that nothing needs once it has run."""

    ids: Ids
    starts: Ids  # and one more: their end


class _Peak(NamedTuple):
    """The most bytes that are held at once, and the node while which they are."""

    nbytes: int
    node: int


@dataclass(frozen=True)
class Lifetimes:
    """When the array engine drops what it no longer needs, and the most that it holds at once."""

    plan: Plan
    kept: Kept

    @cached_property
    def total_nbytes(self) -> int:
        """Bytes of all values, and all gradients, were they held at once."""
        return self.plan.nbytes(self.kept.needed is not None)

    @property
    def is_small(self) -> bool:
        """Whether everything may stay to the end."""
        return self.total_nbytes <= SMALL_BYTES

    @cached_property
    def releases(self) -> Releases | None:
        """When the forward pass drops values; None where there are none worth it."""
        return _Timeline(self.plan, self.kept).releases()

    @property
    def peak_nbytes(self) -> int:
        """Most bytes of values, gradients and what gates make on the way, held at once."""
        return self._peak.nbytes

    @property
    def peak_node(self) -> int:
        """The node while which they are held."""
        return self._peak.node

    @cached_property
    def _peak(self) -> _Peak:
        return _Timeline(self.plan, self.kept).peak()


@dataclass(frozen=True)
class _Timeline:
    """The lives of all values and gradients, as columns; large, and gone once they are read."""

    plan: Plan
    kept: Kept

    def releases(self) -> Releases | None:
        graph = self.plan.graph
        first = graph.leaf_first_ids[-1]
        if (self.kept.values | self._is_number)[first:].all():
            return None
        dropped = np.flatnonzero(~self._after_forward[first:]) + first
        last = self._last_uses[dropped]
        starts = np.zeros(graph.node_count + 1, np.int64)
        np.cumsum(np.bincount(last, minlength=graph.node_count), out=starts[1:])
        return Releases(dropped[np.argsort(last, kind="stable")], starts)

    def peak(self) -> _Peak:
        graph = self.plan.graph
        lists = 1 if self.kept.needed is None else 3
        total = lists * _SLOT_BYTES * (graph.value_count + 1)
        for output in graph.outputs:
            ids, rows = output.value_ids, self.plan.batch_size
            if len(ids) > 1 or (rows and not self.plan.is_batched(ids[0])):
                own = sum(self.plan.spec(value_id).nbytes for value_id in ids.tolist())
                total += own * (rows or 1)  # stacked, or repeated for every row
        for leaf, first in zip(graph.leaves, graph.leaf_first_ids, strict=False):
            if leaf.elements:  # taken apart
                total += leaf.id_count * prod(self.plan.shape(first)) * ITEM_SIZES[leaf.dtype]
        peak, left = self._forward_peak()
        if self.kept.needed is not None:
            seeds = sum(int(self._seed_nbytes(output.value_ids)) for output in graph.outputs)
            peak = max(_Peak(peak.nbytes + seeds, peak.node), self._backward_peak(left))
        return _Peak(total + peak.nbytes, peak.node)

    def _seed_nbytes(self, value_ids: Ids) -> int:
        """Bytes of the gradients that an output is given, which are there from the beginning."""
        floating = value_ids[self.plan.floating[value_ids]]
        return int(self._wide_nbytes[floating].sum()) if len(value_ids) == 1 else 0

    def _seeded(self, half: bool) -> list[Ids]:
        """The values of each output, those of half precision or the others."""
        every = [output.value_ids for output in self.plan.graph.outputs]
        return [ids[self._is_half[ids] == half] for ids in every]

    @cached_property
    def _is_number(self) -> Flags:
        """By id: whether it takes less than the note that it may be dropped."""
        found: Flags = self._nbytes <= _SCALAR_BYTES
        return found

    @cached_property
    def _after_forward(self) -> Flags:
        """What the forward pass leaves: leaves, what is kept, numbers, and what gates pull with."""
        graph = self.plan.graph
        keep = self.kept.values | self._is_number
        keep[: graph.leaf_first_ids[-1]] = True
        if self.kept.needed is not None:
            keep[graph.node_inputs[self._pulled[self._consumers]]] = True
            keep[graph.leaf_first_ids[-1] :] |= self._pulled[self._producers]
        return keep

    def _forward_peak(self) -> tuple[_Peak, int]:
        """The most that the forward pass holds, and what it leaves."""
        graph = self.plan.graph
        nodes, first = graph.node_count, graph.leaf_first_ids[-1]
        shown = _shown(self._views)
        end = np.where(self._after_forward, nodes, self._last_uses)
        np.maximum.at(end, shown, end.copy())
        held = np.where(self._views == np.arange(len(end)), self._nbytes, 0)[first:]
        kept = np.bincount(self._producers, held, nodes)
        dropped = np.bincount(end[first:], held, nodes + 1)[:nodes]
        live = int(self._nbytes[1:first].sum()) + np.cumsum(kept - dropped)
        during = live + dropped + self._scratch(0)
        if not nodes:
            return _Peak(0, 0), 0
        node = int(during.argmax())
        return _Peak(int(during[node]), node), int(live[-1])

    def _backward_peak(self, left: int) -> _Peak:
        """The most that the backward pass holds, over the values it begins with."""
        graph = self.plan.graph
        nodes, first = graph.node_count, graph.leaf_first_ids[-1]
        ids = graph.node_inputs
        assert self.kept.needed is not None
        pulled = self._pulled[self._consumers] & self.kept.needed[ids]
        born = np.full(len(self._nbytes), -1)
        born[ids[pulled]] = self._consumers[pulled]
        for seeded in self._seeded(half=False):
            born[seeded] = nodes
        for seeded in self._seeded(half=True):  # the caller's are float32; they are rounded in turn
            left += int(self._wide_nbytes[seeded].sum())
            own = seeded[born[seeded] < 0]
            born[own] = np.where(own < first, 0, self._producers[np.maximum(own - first, 0)])
        passes = self._passes(pulled)
        parents = self._passed(passes & ~self._is_half[ids])
        held = np.where(parents == np.arange(len(born)), self._wide_nbytes, 0)
        # a node and its values are done with when it has been pulled; what is kept, never is
        died = np.full(len(born), -1)
        died[first:] = np.where(self.kept.gradients[first:], -1, self._producers)
        for seeded in self._seeded(half=False):  # whose gradients the caller holds
            died[seeded] = -1
        np.minimum.at(died, _shown(parents), died.copy())
        grown = np.bincount(born[born >= 0], held[born >= 0], nodes + 1)
        gone = (died >= 0) & (born >= 0)
        shrunk = np.bincount(died[gone], held[gone], nodes + 1)
        rounded = self._is_half & (born >= 0) & ~gone
        rounded[:first] = False
        halved = (self._wide_nbytes - self._nbytes)[rounded]
        shrunk = shrunk + np.bincount(self._producers[rounded[first:]], halved, nodes + 1)
        values = np.where(self._views == np.arange(len(born)), self._nbytes, 0)
        loose = self._after_forward & ~self.kept.values
        loose[_shown(self._views)[self.kept.values]] = False  # nor what such a value shows
        loose[:first] = False
        shrunk += np.bincount(self._producers[loose[first:]], values[loose], nodes + 1)
        # what joins a gradient that is there already is made first
        joins = pulled & (self._consumers < born[ids])
        made = np.bincount(self._consumers[joins], self._wide_nbytes[ids[joins]], nodes)
        made += np.where(self._pulled, self._scratch(1), 0)
        # their gradients are the float32 copies; those that repeat numbers, until they are rounded
        source = graph.first_ids[self._consumers]
        copies = passes & self._is_half[ids]
        copies &= self._wide_nbytes[ids] == self._wide_nbytes[source]
        made = made - np.bincount(self._consumers[copies], self._wide_nbytes[ids[copies]], nodes)
        live = left + np.cumsum((grown - np.append(shrunk[1:], 0))[::-1])[::-1]
        during = live + np.append(made, 0)
        node = int(during.argmax())
        return _Peak(int(during[node]), min(node, max(nodes - 1, 0)))

    @cached_property
    def _producers(self) -> Ids:
        """The node of each value past the leaves."""
        graph = self.plan.graph
        return np.repeat(np.arange(graph.node_count), np.diff(graph.first_ids))

    @cached_property
    def _consumers(self) -> Ids:
        """The node of each entry of node_inputs."""
        graph = self.plan.graph
        return np.repeat(np.arange(graph.node_count), np.diff(graph.input_starts))

    @cached_property
    def _last_uses(self) -> Ids:
        """The last node that a value is used by, or made by if it is not used."""
        graph = self.plan.graph
        last = np.zeros(graph.value_count + 1, np.int64)
        last[graph.leaf_first_ids[-1] :] = self._producers
        last[graph.node_inputs] = self._consumers  # of equal ids the last entry stays
        return last

    @cached_property
    def _pulled(self) -> Flags:
        """By node: whether it gets a gradient from an output, and an input's is needed."""
        graph = self.plan.graph
        assert self.kept.needed is not None
        ends = [value_id for output in graph.outputs for value_id in output.value_ids.tolist()]
        fed = np.zeros(graph.value_count + 1, bool)
        fed[depended_on(graph, ends)] = True
        gets, gives = np.zeros(graph.node_count, bool), np.zeros(graph.node_count, bool)
        gets[self._producers[fed[graph.leaf_first_ids[-1] :]]] = True
        gives[self._consumers[self.kept.needed[graph.node_inputs]]] = True
        return gets & gives

    @cached_property
    def _nbytes(self) -> Ids:
        """By id: bytes of one value, Python's own included."""
        plan = self.plan
        sizes = np.array(
            [spec.nbytes + _ARRAY_BYTES if spec.shape else _SCALAR_BYTES for spec in plan.specs]
        )
        found: Ids = sizes[plan.spec_ids]
        if plan.batch_size:
            rows = np.array([plan.batch_size * spec.nbytes + _ARRAY_BYTES for spec in plan.specs])
            found[plan.batched] = rows[plan.spec_ids[plan.batched]]
        return found

    @cached_property
    def _is_half(self) -> Flags:
        """By id: whether it is of half precision."""
        return np.frombuffer(self.plan.half_flags, bool)

    @cached_property
    def _wide_nbytes(self) -> Ids:
        """By id: bytes of one value, half precision in float32."""
        is_array = self._nbytes > _SCALAR_BYTES
        found: Ids = self._nbytes + self._is_half * is_array * (self._nbytes - _ARRAY_BYTES)
        return found

    def _widened(self, way: int) -> Ids:
        """By node: bytes of float32 copies of half precision, forward (0) or back (1).

        Back, the outputs are computed again, and their gradients are copied from halves of what is
        counted for them.
        """
        graph, nodes = self.plan.graph, self.plan.graph.node_count
        if not self.plan.has_halves:
            return np.zeros(nodes, np.int64)
        wide = np.where(self._is_half, self._wide_nbytes, 0)
        inputs = np.bincount(self._consumers, wide[graph.node_inputs], nodes)
        outs = np.bincount(self._producers, wide[graph.leaf_first_ids[-1] :], nodes)
        computes = np.array([not row.gate.takes_halves for row in graph.rows], bool)
        made = np.where(computes[graph.node_rows], outs, 0)
        if way:
            made += inputs + outs / 2
        else:
            made += np.where(computes[graph.node_rows], inputs, 0)
        found: Ids = made.astype(np.int64)
        return found

    def _scratch(self, way: int) -> Ids:
        """By node: bytes of the arrays that its gate makes on the way, forward (0) or back (1)."""
        held: Ids = self._held_on_the_way[way]
        return held + self._widened(way)

    @cached_property
    def _held_on_the_way(self) -> Ids:
        return scratch.of_nodes(self.plan)

    @cached_property
    def _views(self) -> Ids:
        """By id: the value whose memory it shows, itself if it has its own."""
        graph = self.plan.graph
        shown = np.arange(graph.value_count + 1)
        made = (self._marked(lambda gate: bool(gate.shows_input)) & ~self._copied)[self._producers]
        if self.plan.batch_size:  # rows that are taken one by one are copied
            by_rows = [type(row.gate).aligned_shapes is Gate.aligned_shapes for row in graph.rows]
            of_node = np.array(by_rows, bool)[graph.node_rows]
            made &= ~(self.plan.batched[graph.leaf_first_ids[-1] :] & of_node[self._producers])
        views = np.flatnonzero(made)
        shown[graph.leaf_first_ids[-1] + views] = graph.node_inputs[
            graph.input_starts[self._producers[views]]
        ]
        return shown

    @cached_property
    def _copied(self) -> Flags:
        """By node: whether it reshapes what does not lie in memory row by row."""
        graph = self.plan.graph
        copied = np.zeros(graph.node_count, bool)
        kinds = [row.gate.shows_input for row in graph.rows]
        if "reshaped" not in kinds or not {"turned", "in parts"} & {*kinds}:
            return copied
        # outputs have the order of inputs of their shape, as far as anybody knows, and no gaps
        kind = np.array(kinds)[graph.node_rows]
        is_view = (kind != "") & (kind != "reshaped")
        leaves, ids, to = graph.leaf_first_ids[-1], graph.node_inputs, self._consumers
        is_first = np.zeros(len(ids), bool)
        is_first[graph.input_starts[:-1][np.diff(graph.input_starts) > 0]] = True
        entries = np.flatnonzero(ids >= leaves)
        ids, to, is_first = ids[entries], to[entries], is_first[entries]
        source = self._producers[ids - leaves]
        shape_kept = self.plan.spec_ids[ids] == self.plan.spec_ids[graph.first_ids[to]]
        shape_kept &= is_view[source] | (ids == graph.first_ids[source])
        viewed = is_view[to] & is_first
        ordered = viewed | ((kind[to] == "") & shape_kept)
        odd = _reached(kind == "turned", source[ordered], to[ordered])
        odd |= _reached(kind == "in parts", source[viewed], to[viewed])
        asks = is_first & (kind[to] == "reshaped")
        copied[to[asks]] = odd[source[asks]]
        return copied

    def _passed(self, passes: Flags) -> Ids:
        """By id: the value whose gradient's memory its gradient shows, itself if it has its own."""
        graph, shown = self.plan.graph, np.arange(len(self._nbytes))
        shown[graph.node_inputs[passes]] = graph.first_ids[self._consumers[passes]]
        return shown

    def _passes(self, pulled: Flags) -> Flags:
        """By entry of node_inputs: whether the gradient shows the memory of the output's."""
        graph, ids = self.plan.graph, self.plan.graph.node_inputs
        nodes = self._consumers
        uses = np.bincount(ids[pulled], minlength=len(self._nbytes))
        for output in graph.outputs:
            uses[output.value_ids] += 1
        is_first = np.zeros(len(ids), bool)
        is_first[graph.input_starts[:-1][np.diff(graph.input_starts) > 0]] = True
        source = graph.first_ids[nodes]
        same = self.plan.spec_ids[ids] == self.plan.spec_ids[source]
        if self.plan.batch_size:
            same &= self.plan.batched[ids] == self.plan.batched[source]
        passes = (
            pulled & (uses[ids] == 1) & self._marked(lambda gate: bool(gate.passes_grad))[nodes]
        )
        passes &= is_first | self._marked(lambda gate: gate.passes_grad == "to all")[nodes]
        found: Flags = passes & (
            same | ~self._marked(lambda gate: isinstance(gate, ElementwiseGate))[nodes]
        )
        return found

    def _marked(self, says: Callable[[Gate], bool]) -> Flags:
        """By node: whether its gate says so."""
        rows = np.array([says(row.gate) for row in self.plan.graph.rows], bool)
        found: Flags = rows[self.plan.graph.node_rows]
        return found


#: How many times as many operations the backward pass takes as the forward pass.
_BACKWARD = 2


def require_operations(plan: Plan, limits: Limits, forward_only: bool) -> None:
    """Refuses what would compute for too long, before anything runs (LIMIT_EXCEEDED)."""
    limit, total = limits.max_operations, plan.operations
    if not forward_only:
        total += _BACKWARD * plan.operations + plan.own_gradients_operations
    if total > limit:
        what = "operations of the whole evaluation, of which this node has the most"
        raise _at_node(OverLimit.of("max-operations", limit, total, what), plan, plan.busiest_node)


def require_peak(lifetimes: Lifetimes, limits: Limits) -> None:
    """Refuses what would not fit, before anything runs (LIMIT_EXCEEDED)."""
    limit, plan = limits.max_memory_bytes, lifetimes.plan
    # when everything would fit twice, nobody needs to know what is dropped when
    if 2 * lifetimes.total_nbytes <= limit:
        return
    value_id, nbytes = _largest_value(plan)
    if nbytes > limit:  # a view too: who reads it, reads all of it
        what = "bytes of one value, were its repeated elements written out"
        refusal = OverLimit.of("max-memory-bytes", limit, nbytes, what)
        if value_id < plan.graph.leaf_first_ids[-1]:
            raise refusal.at(plan.graph.place_of_value(value_id))
        raise _at_node(refusal, plan, plan.graph.node_of(value_id))
    if lifetimes.peak_nbytes > limit:
        what = "bytes of values and gradients held at once"
        refusal = OverLimit.of("max-memory-bytes", limit, lifetimes.peak_nbytes, what)
        raise _at_node(refusal, plan, lifetimes.peak_node)


def _largest_value(plan: Plan) -> tuple[int, int]:
    """The value with most elements' bytes, and these."""
    sizes = np.array([float(spec.nbytes) for spec in plan.specs])[plan.spec_ids]
    sizes[0] = 0
    if plan.batch_size:
        sizes[plan.batched] *= plan.batch_size
    value_id = int(sizes.argmax())
    return value_id, plan.spec(value_id).nbytes * (
        plan.batch_size if plan.is_batched(value_id) else 1
    )


def _at_node(refusal: OverLimit, plan: Plan, node: int) -> OverLimit:
    """The same, saying where; the request as a whole is to blame, and not the field of a node."""
    if not plan.graph.node_count:
        return refusal
    facts: dict[str, object] = {**plan.graph.facts_of(node)}
    return refusal.at(plan.graph.place_of(node), field="", **facts)


#: Rounds in which `_reached` looks at all edges.
_ROUNDS = 32


def _reached(marked: Flags, source: Ids, to: Ids) -> Flags:
    """What can be reached from the marked along edges; more, where paths are too winding."""
    found, before = marked.copy(), np.arange(len(marked))
    before[to] = source  # one for each: what is along a chain of these is found at once
    for _ in range(_ROUNDS):
        parents = before
        while True:
            found |= found[parents]
            further = parents[parents]
            if np.array_equal(further, parents):
                break
            parents = further
        new = to[found[source] & ~found[to]]
        if not len(new):
            return found
        found[new] = True
    found[to] = True
    return found


def _shown(parents: Ids) -> Ids:
    """Where the chain of each leads: the one that shows its own memory."""
    while True:
        further = parents[parents]
        if np.array_equal(further, parents):
            return parents
        parents = further
