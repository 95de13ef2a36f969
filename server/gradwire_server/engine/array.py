"""The array engine: node by node over an array library. Any graph; the reference for all others.

Both passes are generators that stop between nodes, so that whoever drives them can send what is
done, or give up, within a block.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from time import monotonic
from typing import Any, NamedTuple

from gradwire_server.errors import Invalid
from gradwire_server.gates import Gate
from gradwire_server.gates.base import Array, Namespace, first_outputs
from gradwire_server.plan import Plan
from gradwire_server.specs import Shape, TensorSpec

#: A block ends after this long; a single node is never interrupted.
BLOCK_SECONDS = 0.01


def forward(xp: Namespace, plan: Plan, values: list[Array]) -> Iterator[int]:
    """Appends the values of all nodes to those of the leaves (with None for id 0).

    Yields, after each block and at the end, the first id that is not computed yet. Raises Invalid
    (INDEX_OUT_OF_RANGE) where a gate finds an index outside its axis.
    """
    uses = _uses(plan)
    node_inputs, starts = plan.graph.node_inputs.tolist(), plan.graph.input_starts.tolist()
    block_ends = monotonic() + BLOCK_SECONDS
    for node, row in enumerate(plan.graph.node_rows.tolist()):
        use = uses[row]
        ids = node_inputs[starts[node] : starts[node + 1]]
        try:
            out = _run(xp, plan, use, ids, _given(plan, use, ids, values))
        except Invalid as refusal:
            raise refusal.at(plan.graph.place_of(node), node_index=node) from None
        if use.several:
            values.extend(out)
        else:
            values.append(out)
        if monotonic() > block_ends:
            yield len(values)
            block_ends = monotonic() + BLOCK_SECONDS
    yield len(values)


def backward(
    xp: Namespace,
    plan: Plan,
    values: list[Array],
    grads: list[Array | None],
    needed: Sequence[bool],
) -> Iterator[int]:
    """Chains gradients from the seeds in `grads` (by id, None for zero) back to the leaves.

    Only the gradients of `needed` ids are computed. Yields, after each block and at the end, the
    lowest id whose gradient is complete.
    """
    graph = plan.graph
    uses = _uses(plan)
    node_inputs, starts = graph.node_inputs.tolist(), graph.input_starts.tolist()
    node_rows, first_ids = graph.node_rows.tolist(), graph.first_ids.tolist()
    block_ends = monotonic() + BLOCK_SECONDS
    # consumers first, so every gradient is complete when its node is reached
    for node in range(graph.node_count - 1, -1, -1):
        use = uses[node_rows[node]]
        first = first_ids[node]
        ids = node_inputs[starts[node] : starts[node + 1]]
        if any(grads[first + slot] is not None for slot in range(use.output_count)) and any(
            needed[i] for i in ids
        ):
            given = _given(plan, use, ids, values)
            for i, to_input in _pull(xp, plan, use, first, ids, given, values, grads, needed):
                before = grads[i]
                grads[i] = to_input if before is None else before + to_input
        if monotonic() > block_ends:
            yield first
            block_ends = monotonic() + BLOCK_SECONDS
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


class _Use(NamedTuple):
    """A row of the gates table, ready to be called."""

    gate: Gate
    attributes: dict[str, Any]
    known: tuple[int, ...]  # input slots that get their elements from the plan, as a tuple
    output_count: int
    several: bool


def _uses(plan: Plan) -> list[_Use]:
    return [
        _Use(
            row.gate,
            row.gate.complete(row.attributes),
            tuple(
                slot
                for slot, declared in enumerate(row.gate.declared_inputs(row.input_count))
                if declared.flat
            ),
            row.output_count,
            row.gate.outputs != (1, 1),
        )
        for row in plan.graph.rows
    ]


def _given(plan: Plan, use: _Use, ids: list[int], values: list[Array]) -> list[Any]:
    given = [values[i] for i in ids]
    for slot in use.known:
        if slot < len(ids) and ids[slot]:
            given[slot] = plan.spec(ids[slot]).value
    return given


def _run(xp: Namespace, plan: Plan, use: _Use, ids: list[int], given: list[Any]) -> Any:
    """The output, or a tuple of those that are used where the gate may have several."""
    if not any(map(plan.is_batched, ids)):
        return _compute(xp, use, given)
    specs = [plan.spec(i) if i else None for i in ids]
    marks = list(map(plan.is_batched, ids))
    aligned = use.gate.aligned_shapes(*specs, **use.attributes)
    if aligned is None:
        rows = [_compute(xp, use, _row(given, marks, row)) for row in range(plan.batch_size)]
        if use.several:
            return tuple(_stack(xp, outs) for outs in zip(*rows, strict=True))
        return _stack(xp, rows)
    out = _compute(xp, use, _align(xp, plan, given, marks, aligned))
    inferred = use.gate.infer(*specs, **use.attributes)
    if use.several:
        return tuple(
            xp.reshape(each, (plan.batch_size, *spec.shape))
            for each, spec in zip(out, inferred, strict=False)  # type: ignore[arg-type]
        )
    assert isinstance(inferred, TensorSpec)
    return xp.reshape(out, (plan.batch_size, *inferred.shape))


def _compute(xp: Namespace, use: _Use, given: list[Any]) -> Any:
    out = use.gate.forward(xp, *given, **use.attributes)
    return first_outputs(out, use.output_count) if use.several else out


def _pull(
    xp: Namespace,
    plan: Plan,
    use: _Use,
    first: int,
    ids: list[int],
    given: list[Any],
    values: list[Array],
    grads: list[Array | None],
    needed: Sequence[bool],
) -> Iterator[tuple[int, Array]]:
    """Ids of the node's inputs with what the node adds to their gradients."""
    own = range(first, first + use.output_count)
    out: Any = tuple(values[i] for i in own)
    grad: Any = tuple(grads[i] for i in own)
    if any(map(plan.is_batched, ids)):
        yield from _pull_batch(xp, plan, use, ids, given, out, grad, needed)
        return
    if not use.several:
        (out,), (grad,) = out, grad
    entries = use.gate.vjp(xp, grad, out, *given, **use.attributes)
    for i, entry in zip(ids, entries, strict=True):
        if needed[i] and entry is not None:
            to_input = entry() if callable(entry) else entry
            yield i, sum_to_shape(xp, to_input, plan.spec(i).shape)


def _pull_batch(
    xp: Namespace,
    plan: Plan,
    use: _Use,
    ids: list[int],
    given: list[Any],
    outs: tuple[Array, ...],
    out_grads: tuple[Array | None, ...],
    needed: Sequence[bool],
) -> Iterator[tuple[int, Array]]:
    specs = [plan.spec(i) if i else None for i in ids]
    marks = list(map(plan.is_batched, ids))
    aligned = use.gate.aligned_shapes(*specs, **use.attributes)
    if aligned is None:
        yield from _pull_rows(xp, plan, use, ids, given, outs, out_grads, needed)
        return
    given = _align(xp, plan, given, marks, aligned)
    inferred = use.gate.infer(
        *(
            None if spec is None else TensorSpec(shape, spec.dtype, spec.value)
            for spec, shape in zip(specs, aligned, strict=True)
        ),
        **use.attributes,
    )
    out_specs = inferred if isinstance(inferred, tuple) else (inferred,)
    shapes = [(plan.batch_size, *spec.shape) for spec in out_specs]
    out: Any = tuple(map(xp.reshape, outs, shapes))
    grad: Any = tuple(
        None if each is None else xp.reshape(each, shape)
        for each, shape in zip(out_grads, shapes, strict=False)
    )
    if not use.several:
        (out,), (grad,) = out, grad
    entries = use.gate.vjp(xp, grad, out, *given, **use.attributes)
    for slot, (i, entry) in enumerate(zip(ids, entries, strict=True)):
        if needed[i] and entry is not None:
            to_input = entry() if callable(entry) else entry
            rows = (plan.batch_size,) if marks[slot] else ()
            summed = sum_to_shape(xp, to_input, (*rows, *aligned[slot]))
            yield i, xp.reshape(summed, (*rows, *plan.spec(i).shape))


def _pull_rows(
    xp: Namespace,
    plan: Plan,
    use: _Use,
    ids: list[int],
    given: list[Any],
    outs: tuple[Array, ...],
    out_grads: tuple[Array | None, ...],
    needed: Sequence[bool],
) -> Iterator[tuple[int, Array]]:
    marks = list(map(plan.is_batched, ids))
    found: list[list[Array]] = [[] for _ in ids]
    for row in range(plan.batch_size):
        out: Any = tuple(each[row] for each in outs)
        grad: Any = tuple(None if each is None else each[row] for each in out_grads)
        if not use.several:
            (out,), (grad,) = out, grad
        entries = use.gate.vjp(xp, grad, out, *_row(given, marks, row), **use.attributes)
        for slot, (i, entry) in enumerate(zip(ids, entries, strict=True)):
            if needed[i] and entry is not None:
                to_input = entry() if callable(entry) else entry
                found[slot].append(sum_to_shape(xp, to_input, plan.spec(i).shape))
    for slot, i in enumerate(ids):
        if found[slot]:
            stacked = _stack(xp, found[slot])
            yield i, stacked if marks[slot] else xp.sum(stacked, axis=(0,))


def _align(
    xp: Namespace, plan: Plan, given: list[Any], marks: list[bool], aligned: tuple[Shape, ...]
) -> list[Any]:
    return [
        each
        if each is None or isinstance(each, tuple)
        else xp.reshape(each, (plan.batch_size, *shape) if batched else shape)
        for each, batched, shape in zip(given, marks, aligned, strict=True)
    ]


def _row(given: list[Any], marks: list[bool], row: int) -> list[Any]:
    return [each[row] if batched else each for each, batched in zip(given, marks, strict=True)]


def _stack(xp: Namespace, rows: Sequence[Array]) -> Array:
    return xp.concat([xp.reshape(row, (1, *row.shape)) for row in rows], axis=0)
