"""The array engine: node by node over an array library. Any graph; the reference for all others.

Both passes are generators that stop between nodes, so that whoever drives them can send what is
done, or give up, within a block.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from math import prod
from time import monotonic
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

from gradwire_server.errors import Invalid
from gradwire_server.gates import Gate
from gradwire_server.gates.base import Array, Namespace, first_outputs
from gradwire_server.graph import Graph, Row
from gradwire_server.memory import Kept, Releases
from gradwire_server.plan import Plan
from gradwire_server.specs import HALVES, Shape

#: A block ends after this long; a single node is never interrupted.
BLOCK_SECONDS = 0.01

_CHUNK = 1024  # nodes whose ids are Python's numbers at the same time


class Stretch(Protocol):
    """Consecutive nodes that something faster computes: a region (engine/regions.py)."""

    @property
    def nodes(self) -> range: ...

    def forward(self, values: Sequence[Array]) -> list[Array]: ...

    def backward(
        self, values: Sequence[Array], grads: list[Array | None], own: set[int]
    ) -> Iterable[tuple[int, Array]]: ...


def forward(
    xp: Namespace,
    plan: Plan,
    values: list[Array],
    releases: Releases | None = None,
    stretches: Mapping[int, Stretch] = MappingProxyType({}),
) -> Iterator[int]:
    """Appends the values of all nodes to those of the leaves (with None for id 0).

    Half precision is computed in float32 and rounded once. Values that are released become None
    once nothing needs them. Yields, after each block and at the end, the first id that is not
    computed yet. Raises Invalid where a gate finds an index outside its axis (INDEX_OUT_OF_RANGE),
    or what it asserts untrue (ASSERTION_FAILED).
    """
    uses = _ready(plan).uses
    drops = _drops(plan.graph.node_count, releases)
    block_ends = monotonic() + BLOCK_SECONDS
    for node, row, first, ids in _nodes(plan):
        use = uses[row]
        if node in stretches:
            values.extend(stretches[node].forward(values))
        if first == len(values):
            try:
                out = _run(xp, plan, use, ids, _given(xp, plan, use, ids, values))
            except Invalid as refusal:
                raise at_node(refusal, plan.graph, node) from None
            if plan.has_halves:
                out = _rounded_outputs(xp, plan, first, out)
            if use.several:
                values.extend(out)
            else:
                values.append(out)
            del out  # which may be released at once
        for i in next(drops):
            values[i] = None
        if monotonic() > block_ends:
            yield len(values)
            block_ends = monotonic() + BLOCK_SECONDS
    yield len(values)


def at_node(refusal: Invalid, graph: Graph, node: int) -> Invalid:
    """What a gate refuses while it runs; the field is one of a request for an evaluation."""
    field, facts = graph.field_of_node(node), graph.facts_of(node)
    return refusal.at(graph.place_of(node), field=field, **facts).within("graph")


def backward(
    xp: Namespace,
    plan: Plan,
    values: list[Array],
    grads: list[Array | None],
    needed: Sequence[bool],
    kept: Kept | None = None,
    stretches: Mapping[int, Stretch] = MappingProxyType({}),
) -> Iterator[int]:
    """Chains gradients from the seeds in `grads` (by id, None for zero) back to the leaves.

    Only the gradients of `needed` ids are computed. Values and gradients of nodes that are not
    `kept` become None once nothing needs them. Gradients of half precision are summed in float32
    and rounded once, when they are complete. Yields, after each block and at the end, the lowest id
    whose gradient is complete.
    """
    uses = _ready(plan).uses
    own: set[int] = set()  # ids whose gradient lies in a buffer that nothing else shows
    keeps_value, keeps_grad = (b"", b"") if kept is None else _flags(kept)
    block_ends = monotonic() + BLOCK_SECONDS
    # consumers first, so every gradient is complete when its node is reached
    last_of = {each.nodes[-1]: each for each in stretches.values()}
    done = plan.graph.node_count  # nodes from here on
    for node, row, first, ids in _nodes_reversed(plan):
        use = uses[row]
        outs = range(first, first + use.output_count)
        if node in last_of:
            for i, to_input in last_of[node].backward(values, grads, own):
                if needed[i]:
                    _add(grads, own, i, to_input, is_new=bool(to_input.shape))
            done = last_of[node].nodes[0]
        if plan.has_halves:
            _round_gradients(xp, plan, grads, outs)
        if node < done and any(grads[i] is not None for i in outs) and any(needed[i] for i in ids):
            if plan.graph.rows[row].own is not None:
                pulled = _pull_own(xp, plan, row, outs, ids, values, grads, needed)
            else:
                given = _given(xp, plan, use, ids, values, widened=True)
                pulled = _pull(xp, plan, use, outs, ids, given, values, grads, needed)
                del given
            _add_all(grads, own, pulled)
            del pulled
        if kept is not None:
            for i in outs:
                if not keeps_value[i]:
                    values[i] = None
                if not keeps_grad[i]:
                    grads[i] = None
        if monotonic() > block_ends:
            yield first
            block_ends = monotonic() + BLOCK_SECONDS
    if plan.has_halves:
        _round_gradients(xp, plan, grads, range(1, plan.graph.leaf_first_ids[-1]))
    yield 1


def sum_to_shape(xp: Namespace, grad: Array, shape: Shape) -> Array:
    """The gradient of an input that was broadcast: summed over the axes it was repeated along."""
    if grad.shape == shape:
        return grad
    lead = len(grad.shape) - len(shape)
    repeated = tuple(
        axis
        for axis, size in enumerate(grad.shape)
        if axis < lead or (shape[axis - lead] == 1 and size != 1)
    )
    summed = xp.sum(grad, axis=repeated, keepdims=True) if repeated else grad
    return xp.reshape(summed, shape)


class _Layout(NamedTuple):
    """How a gate is called on inputs some of which have a leading batch axis."""

    marks: tuple[int, ...]  # which have it
    aligned: tuple[Shape, ...] | None  # of the inputs, a row; None means one row at a time
    given: tuple[Shape, ...]  # of the inputs, as the gate takes them
    out: tuple[Shape, ...]  # of the outputs, as the plan has them
    pulled: tuple[Shape, ...]  # of the outputs, as the gate has them


class _Use(NamedTuple):
    """A row of the gates table, ready to be called."""

    gate: Gate
    attributes: dict[str, Any]
    known: tuple[int, ...]  # input slots that get their elements from the plan, as a tuple
    first_rows: tuple[int, ...]  # input slots that get the first row of a batch
    followed: tuple[bool, ...]  # by input slot: whether its elements decide what is yielded
    output_count: int
    several: bool
    layouts: dict[tuple[int, ...], _Layout]  # by the inputs' specs and which are batched


def _use(row: Row) -> _Use:
    declared = row.gate.declared_inputs(row.input_count)
    followed = tuple(each.elements for each in declared)
    return _Use(
        row.gate,
        row.gate.complete(row.attributes),
        tuple(slot for slot, each in enumerate(declared) if each.flat),
        () if row.gate.asserts else tuple(slot for slot, each in enumerate(followed) if not each),
        followed,
        row.output_count,
        row.gate.outputs != (1, 1),
        {},
    )


_Node = tuple[int, int, int, list[int]]  # number, gate row, first output, inputs


class _Ready(NamedTuple):
    """What is worked out once for a plan."""

    uses: list[_Use]  # by row of the gates table
    nodes: list[_Node]  # the first ones: all of a small graph


def _ready(plan: Plan) -> _Ready:
    found = plan.worked_out.get(__name__)
    if not isinstance(found, _Ready):
        found = _Ready([*map(_use, plan.graph.rows)], _chunk(plan.graph, 0))
        plan.worked_out[__name__] = found
    return found


def _nodes(plan: Plan) -> Iterator[_Node]:
    yield from _ready(plan).nodes
    for start in range(_CHUNK, plan.graph.node_count, _CHUNK):
        yield from _chunk(plan.graph, start)


def _nodes_reversed(plan: Plan) -> Iterator[_Node]:
    for start in reversed(range(_CHUNK, plan.graph.node_count, _CHUNK)):
        yield from reversed(_chunk(plan.graph, start))
    yield from reversed(_ready(plan).nodes)


def _chunk(graph: Graph, start: int) -> list[_Node]:
    stop = min(start + _CHUNK, graph.node_count)
    offset = int(graph.input_starts[start])
    ends = (graph.input_starts[start : stop + 1] - offset).tolist()
    inputs = graph.node_inputs[offset : offset + ends[-1]].tolist()
    rows, firsts = graph.node_rows[start:stop].tolist(), graph.first_ids[start:stop].tolist()
    return [
        (start + each, rows[each], firsts[each], inputs[ends[each] : ends[each + 1]])
        for each in range(stop - start)
    ]


def _drops(node_count: int, releases: Releases | None) -> Iterator[Sequence[int]]:
    """What is released after each node."""
    if releases is None:
        for _ in range(node_count):
            yield ()
        return
    for start in range(0, node_count, _CHUNK):
        ends = releases.starts[start : start + _CHUNK + 1].tolist()
        ids = releases.ids[ends[0] : ends[-1]].tolist()
        for low, high in pairwise(ends):
            yield ids[low - ends[0] : high - ends[0]]


def _flags(kept: Kept) -> tuple[bytes, bytes]:
    """Which values and gradients are kept, by id, quick to look up."""
    return kept.values.tobytes(), kept.gradients.tobytes()


def _given(
    xp: Namespace,
    plan: Plan,
    use: _Use,
    ids: list[int],
    values: list[Array],
    widened: bool = False,
) -> list[Any]:
    """The inputs as the gate takes them; `widened` even if its forward pass takes halves."""
    given = [values[i] for i in ids]
    if plan.has_halves and (widened or not use.gate.takes_halves):
        given = _widened(xp, plan, ids, given)
    for slot in use.first_rows:
        if plan.is_batched(ids[slot]) and given[slot] is not None:
            given[slot] = given[slot][0]
    for slot in use.known:
        if slot < len(ids) and ids[slot]:
            given[slot] = plan.spec(ids[slot]).value
    return given


def _widened(
    xp: Namespace, plan: Plan, ids: Iterable[int], held: Iterable[Array | None]
) -> list[Array | None]:
    """What is of half precision in float32, which holds all of it; the rest as it is."""
    halves = plan.half_flags
    return [
        xp.astype(each, "float32") if halves[i] and each is not None else each
        for i, each in zip(ids, held, strict=True)
    ]


def _unrounded(
    xp: Namespace,
    plan: Plan,
    use: _Use,
    outs: range,
    ids: list[int],
    given: list[Any],
    out: tuple[Array, ...],
) -> tuple[Array, ...]:
    """The outputs of a node as they were before they were rounded to half precision.

    They are computed again, since a gradient may need digits that rounding took: that of tanh would
    be 0 where tanh rounds to 1.
    """
    if use.gate.takes_halves or not any(plan.half_flags[i] for i in outs):
        return out
    found = _run(xp, plan, use, ids, given)
    return found if use.several else (found,)


def _rounded(xp: Namespace, plan: Plan, value_id: int, x: Array) -> Array:
    """A value, or a gradient, in the value's data type where that is of half precision."""
    dtype = plan.spec(value_id).dtype
    return xp.astype(x, dtype) if dtype in HALVES and str(x.dtype) != dtype else x


def _rounded_outputs(xp: Namespace, plan: Plan, first: int, out: Any) -> Any:
    if not isinstance(out, tuple):
        return _rounded(xp, plan, first, out)
    return tuple(_rounded(xp, plan, i, each) for i, each in enumerate(out, first))


def _round_gradients(
    xp: Namespace, plan: Plan, grads: list[Array | None], ids: Iterable[int]
) -> None:
    for i in ids:
        before = grads[i]
        if before is not None:
            grads[i] = _rounded(xp, plan, i, before)


def _layout(plan: Plan, use: _Use, ids: list[int]) -> _Layout | None:
    """How the gate is called; None where no input is batched."""
    if not plan.batch_size:
        return None
    marks = [plan.batched_flags[i] for i in ids]
    for slot in use.first_rows:
        marks[slot] = 0
    if not any(marks):
        return None
    key = (*marks, *plan.spec_ids[ids].tolist())
    if key not in use.layouts:
        use.layouts[key] = _lay_out(plan, use, ids, tuple(marks))
    return use.layouts[key]


def _lay_out(plan: Plan, use: _Use, ids: list[int], marks: tuple[int, ...]) -> _Layout:
    specs = [plan.spec(i) if i else None for i in ids]
    aligned = use.gate.aligned_shapes(*specs, **use.attributes)
    if aligned is None:
        return _Layout(marks, None, (), (), ())
    given = tuple(
        (plan.batch_size, *shape) if mark else shape
        for mark, shape in zip(marks, aligned, strict=True)
    )
    differ = any(mark and each for mark, each in zip(marks, use.followed, strict=True))
    rows = (plan.batch_size,) if differ else ()
    lying = [
        None if spec is None else replace(spec, shape=shape)
        for spec, shape in zip(specs, aligned, strict=True)
    ]
    out, pulled = (
        found if isinstance(found, tuple) else (found,)
        for found in (
            use.gate.infer(*specs, **use.attributes),
            use.gate.infer(*lying, **use.attributes),
        )
    )
    return _Layout(
        marks,
        aligned,
        given,
        tuple((*rows, *spec.shape) for spec in out),
        tuple((*rows, *spec.shape) for spec in pulled),
    )


def _run(xp: Namespace, plan: Plan, use: _Use, ids: list[int], given: list[Any]) -> Any:
    """The output, or a tuple of those that are used where the gate may have several."""
    layout = _layout(plan, use, ids)
    if layout is None:
        return _compute(xp, use, given)
    if layout.aligned is None:
        rows = [_compute(xp, use, _row(given, layout.marks, row)) for row in range(plan.batch_size)]
        if use.several:
            return tuple(_stack(xp, outs) for outs in zip(*rows, strict=True))
        return _stack(xp, rows)
    out = _compute(xp, use, _align(xp, given, layout))
    if use.several:
        return tuple(_shaped(xp, each, shape) for each, shape in zip(out, layout.out, strict=False))
    return _shaped(xp, out, layout.out[0])


def _compute(xp: Namespace, use: _Use, given: list[Any]) -> Any:
    out = use.gate.forward(xp, *given, **use.attributes)
    return first_outputs(out, use.output_count) if use.several else out


#: Id of an input, what a node adds to its gradient, and whether no other array shows that.
_Pulled = tuple[int, Array, bool]


def _pull(
    xp: Namespace,
    plan: Plan,
    use: _Use,
    outs: range,
    ids: list[int],
    given: list[Any],
    values: list[Array],
    grads: list[Array | None],
    needed: Sequence[bool],
) -> list[_Pulled]:
    """What a node adds to the gradients of its inputs."""
    out: Any = tuple(values[i] for i in outs)
    grad: Any = tuple(grads[i] for i in outs)
    if plan.has_halves:
        out = _unrounded(xp, plan, use, outs, ids, given, out)
        grad = tuple(_widened(xp, plan, outs, grad))
    layout = _layout(plan, use, ids)
    if layout is not None and layout.aligned is None:
        return _pull_rows(xp, plan, use, layout, ids, given, out, grad, needed)
    if layout is not None:
        given = _align(xp, given, layout)
        out = tuple(map(_shaped, (xp,) * len(out), out, layout.pulled))
        grad = tuple(
            None if each is None else _shaped(xp, each, shape)
            for each, shape in zip(grad, layout.pulled, strict=False)
        )
    shown = (*grad, *out, *given)
    if not use.several:
        (out,), (grad,) = out, grad
    entries = [
        (i, entry() if callable(entry) else entry, each)
        for i, entry, each in zip(
            ids, use.gate.vjp(xp, grad, out, *given, **use.attributes), given, strict=True
        )
        if needed[i] and entry is not None
    ]
    found = []
    for i, entry, each in entries:
        to_input = sum_to_shape(xp, entry, each.shape)
        if layout is not None:
            to_input = _shaped(xp, to_input, values[i].shape)
        found.append((i, to_input))
    arrays = [to_input for _, to_input in found]
    shared = plan.shared_flags  # only their gradients are added to
    return [
        (i, to_input, bool(shared[i]) and _is_new(to_input, arrays, shown)) for i, to_input in found
    ]


def _pull_own(
    xp: Namespace,
    plan: Plan,
    row: int,
    outs: range,
    ids: list[int],
    values: list[Array],
    grads: list[Array | None],
    needed: Sequence[bool],
) -> list[_Pulled]:
    """The same of a module with its own gradient: its graph is run, all rows at once."""
    gradient = plan.own_gradient(row, ids)
    graph = gradient.plan.graph
    seeds = [xp.zeros_like(values[i]) if grads[i] is None else grads[i] for i in outs]
    given = [values[i] for i in (*ids[: len(graph.outputs)], *outs)]
    found: list[Any] = [None, *given, *seeds, *gradient.constants]
    try:
        for _ in forward(xp, gradient.plan, found):
            pass
    except Invalid as refusal:
        node = plan.graph.node_of(outs.start)
        what = f"{plan.graph.place_of(node)}: its own gradient"
        raise refusal.at(what).at_field("graph") from None
    pulled = []
    for i, output in zip(ids, graph.outputs, strict=False):
        if not output.value_ids.size or not needed[i]:
            continue
        made = int(output.value_ids[0])
        (to_input,) = _widened(xp, gradient.plan, (made,), (found[made],))
        if gradient.plan.is_batched(made) and not plan.is_batched(i):
            to_input = xp.sum(to_input, axis=(0,))
        pulled.append((i, _shaped(xp, to_input, plan.shape(i)), False))
    return pulled


def _pull_rows(
    xp: Namespace,
    plan: Plan,
    use: _Use,
    layout: _Layout,
    ids: list[int],
    given: list[Any],
    outs: tuple[Array, ...],
    out_grads: tuple[Array | None, ...],
    needed: Sequence[bool],
) -> list[_Pulled]:
    found: list[list[Array]] = [[] for _ in ids]
    for row in range(plan.batch_size):
        out: Any = tuple(each[row] for each in outs)
        grad: Any = tuple(None if each is None else each[row] for each in out_grads)
        if not use.several:
            (out,), (grad,) = out, grad
        entries = use.gate.vjp(xp, grad, out, *_row(given, layout.marks, row), **use.attributes)
        for slot, (i, entry) in enumerate(zip(ids, entries, strict=True)):
            if needed[i] and entry is not None:
                to_input = entry() if callable(entry) else entry
                found[slot].append(sum_to_shape(xp, to_input, plan.spec(i).shape))
    stacks = [(slot, _stack(xp, rows)) for slot, rows in enumerate(found) if rows]
    return [
        (ids[slot], stack if layout.marks[slot] else xp.sum(stack, axis=(0,)), True)
        for slot, stack in stacks
    ]


def _is_new(to_input: Array, pulled: Sequence[Array], shown: Sequence[Any]) -> bool:
    """Whether the array is the engine's to write to: nothing else shows its memory."""
    memory = _memory(to_input)
    if not to_input.shape or getattr(memory, "base", memory) is not None:
        return False
    others = sum(_memory(each) is memory for each in pulled)
    return (
        others == 1
        and to_input.flags.writeable
        and not any(_memory(each) is memory for each in shown)
    )


def _memory(x: Any) -> Any:
    """The array that has the memory that an array shows, itself if it has its own."""
    base = getattr(x, "base", None)
    return x if base is None else base


def _add_all(grads: list[Array | None], own: set[int], pulled: list[_Pulled]) -> None:
    for i, to_input, is_new in pulled:
        _add(grads, own, i, to_input, is_new)


def _add(grads: list[Array | None], own: set[int], i: int, to_input: Array, is_new: bool) -> None:
    """Adds to a gradient, in place where a buffer is the engine's own."""
    before = grads[i]
    if before is None:
        grads[i] = to_input
    elif i in own:
        before += to_input
        return
    elif is_new:
        to_input += before
        grads[i] = to_input
    else:
        grads[i] = before + to_input
        is_new = bool(to_input.shape)
    if is_new:
        own.add(i)


def _align(xp: Namespace, given: list[Any], layout: _Layout) -> list[Any]:
    return [
        each if each is None or isinstance(each, tuple) else _shaped(xp, each, shape)
        for each, shape in zip(given, layout.given, strict=True)
    ]


def _shaped(xp: Namespace, x: Array, shape: Shape) -> Array:
    if x.shape == shape:
        return x
    if prod(x.shape) != prod(shape):  # what is batched had no say: all rows are equal
        x = xp.broadcast_to(x, (shape[0], *x.shape))
    return xp.reshape(x, shape)


def _row(given: list[Any], marks: tuple[int, ...], row: int) -> list[Any]:
    return [each[row] if batched else each for each, batched in zip(given, marks, strict=True)]


def _stack(xp: Namespace, rows: Sequence[Array]) -> Array:
    return xp.concat([xp.reshape(row, (1, *row.shape)) for row in rows], axis=0)
