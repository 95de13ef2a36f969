"""The backward pass of a graph as a graph: every gate's own `vjp`, run on handles that record."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from itertools import count
from math import prod
from typing import Any

import numpy as np

from gradwire_server import arrays
from gradwire_server.engine.array import at_node, sum_to_shape
from gradwire_server.engine.recorder import Handle, Recorder, tensor_of
from gradwire_server.errors import Invalid, OverLimit, Stopped, within
from gradwire_server.graph import (
    Graph,
    Leaf,
    Output,
    OwnGradient,
    Row,
    Rows,
    check_structure,
    leaves_to_differentiate,
)
from gradwire_server.limits import Limits
from gradwire_server.plan import Plan, bind_symbols, known_spec, make_plan, reached, static_leaves
from gradwire_server.specs import HALVES, Shape, TensorSpec

_BLOCK = 256  # nodes between two looks whether anybody still waits


def never() -> bool:
    """Nobody stops what was begun."""
    return False


def gradient_graph(
    graph: Graph,
    names: Sequence[str],
    sizes: Mapping[str, int],
    limits: Limits,
    stopped: Callable[[], bool] = never,
) -> Graph:
    """The backward pass of a graph: its leaves, and a seed for each floating output; its outputs,
    and a gradient for each leaf differentiated.

    New names begin with "grad/", or "grad2/", "grad3/"...: the first that no name has yet. Raises
    LEAF_UNKNOWN, NOT_DIFFERENTIABLE, SYMBOL_UNBOUND, and any refusal of a gate; Stopped, within a
    block of nodes, where nobody waits any more.
    """
    differentiated = leaves_to_differentiate(graph, names)
    specs = leaf_specs(graph, sizes)
    with within("graph"):
        plan = make_plan(graph, specs, limits=limits)
    _require_short_axes(plan, limits)
    recorder = Recorder(limits)
    firsts = graph.leaf_first_ids
    values: list[Handle | None] = [None]
    for position, (leaf, first) in enumerate(zip(graph.leaves, firsts, strict=False)):
        values.extend(
            Handle(recorder, ("leaf", position, element), plan.spec(first + element))
            for element in range(leaf.id_count)
        )
    _record_forward(recorder, graph, values, stopped)
    prefix = _fresh_prefix(graph)
    seeds = _seed_leaves(graph, plan.spec, prefix)
    grads = _seed_grads(recorder, seeds, len(values))
    marks = [position in differentiated for position in range(len(graph.leaves))]
    needed = _needed(graph, plan.floating, marks)
    _record_backward(recorder, graph, values, grads, needed, stopped)
    outputs = [
        (
            f"{prefix}/{graph.leaves[position].name}",
            _leaf_gradient(recorder, graph, position, values, grads),
        )
        for position in differentiated
    ]
    found = _assemble(graph, recorder, [leaf for leaf, _ in seeds], values, outputs, plan.shape)
    check_structure(found, limits)
    return found


def _require_short_axes(plan: Plan, limits: Limits) -> None:
    """Refuses axes whose positions, which are recorded as constants, would not fit."""
    needed = 8 * max((size for spec in plan.specs for size in spec.shape), default=0)
    if needed > limits.max_memory_bytes:
        what = "bytes of positions along an axis"
        advice = "differentiate for smaller sizes"
        raise OverLimit.of("max-memory-bytes", limits.max_memory_bytes, needed, what, advice)


def leaf_specs(graph: Graph, sizes: Mapping[str, int]) -> list[TensorSpec]:
    """What is known of each leaf before it is bound (SYMBOL_UNBOUND, SHAPE_MISMATCH)."""
    symbols = {symbol: (size, "symbol_sizes") for symbol, size in sizes.items()}
    for leaf in graph.leaves:
        if leaf.value is not None:
            with within("symbol_sizes"):
                bind_symbols(leaf, leaf.value.shape, symbols)
    static = static_leaves(graph)
    specs = []
    for position, leaf in enumerate(graph.leaves):
        for axis in leaf.axes:
            if isinstance(axis, str) and axis not in symbols:
                raise Invalid(
                    "SYMBOL_UNBOUND",
                    f"{leaf.place}: the size of {axis!r} is not known; give it in symbol_sizes "
                    "(in Python: sizes)",
                    field="symbol_sizes",
                    symbol=axis,
                )
        shape = tuple(axis if isinstance(axis, int) else symbols[axis][0] for axis in leaf.axes)
        stored = leaf.value if position in static else None
        specs.append(
            known_spec(arrays.constant(stored)) if stored else TensorSpec(shape, leaf.dtype)
        )
    return specs


def _record_forward(
    recorder: Recorder, graph: Graph, values: list[Handle | None], stopped: Callable[[], bool]
) -> None:
    inputs, starts = graph.node_inputs.tolist(), graph.input_starts.tolist()
    for node, number in enumerate(graph.node_rows.tolist()):
        if node % _BLOCK == 0 and stopped():
            raise Stopped
        row = graph.rows[number]
        given = [values[i] for i in inputs[starts[node] : starts[node + 1]]]
        try:
            values.extend(recorder.apply_row(row, given))
        except Invalid as refusal:
            raise at_node(refusal, graph, node) from None


def _record_backward(
    recorder: Recorder,
    graph: Graph,
    values: list[Any],
    grads: list[Any],
    needed: Sequence[bool],
    stopped: Callable[[], bool],
) -> None:
    inputs, starts = graph.node_inputs.tolist(), graph.input_starts.tolist()
    first_ids = graph.first_ids.tolist()
    halves = _Halves(recorder, values)
    # consumers first, so every gradient is complete when its node is reached
    for node in range(graph.node_count - 1, -1, -1):
        if node % _BLOCK == 0 and stopped():
            raise Stopped
        row = graph.rows[int(graph.node_rows[node])]
        ids = inputs[starts[node] : starts[node + 1]]
        outs = range(first_ids[node], first_ids[node + 1])
        own = slice(outs.start, outs.stop)
        if all(grad is None for grad in grads[own]) or not any(needed[i] for i in ids):
            continue
        halves.round(grads, outs)
        if row.own is not None:
            made = _record_own(
                recorder,
                row.own,
                [values[i] for i in ids],
                [values[i] for i in outs],
                grads[own],
                stopped,
            )
            for i, to_input in zip(ids, made, strict=False):
                if needed[i] and to_input is not None:
                    wide, before = halves.widened(to_input), halves.widened(grads[i])
                    grads[i] = wide if before is None else before + wide
            continue
        out: Any = halves.unrounded(row, ids, outs)
        grad: Any = tuple(map(halves.widened, grads[own]))
        if row.gate.outputs == (1, 1):
            (out,), (grad,) = out, grad
        declared = row.gate.declared_inputs(len(ids))
        given = [
            values[i].spec.value if each.flat and i else halves.widened(values[i])
            for each, i in zip(declared, ids, strict=True)
        ]
        entries = row.gate.vjp(recorder, grad, out, *given, **row.gate.complete(row.attributes))
        for i, entry in zip(ids, entries, strict=True):
            if needed[i] and entry is not None:
                to_input = entry() if callable(entry) else entry
                summed = sum_to_shape(recorder, to_input, values[i].shape)
                before = halves.widened(grads[i])
                grads[i] = summed if before is None else before + summed
    halves.round(grads, range(1, graph.leaf_first_ids[-1]))


def _record_own(
    recorder: Recorder,
    own: OwnGradient,
    inputs: Sequence[Any],
    outs: Sequence[Any],
    grads: Sequence[Any],
    stopped: Callable[[], bool],
) -> list[Handle | None]:
    """The gradients of a module's inputs, as its own gradient makes them."""
    gradient = own.gradient
    constants = [leaf.value for leaf in gradient.leaves if leaf.kind == "constant"]
    found: list[Any] = [
        None,
        *inputs[: len(gradient.outputs)],
        *outs,
        *(_or_zeros(recorder, grad, out) for grad, out in zip(grads, outs, strict=True)),
        *(recorder.constant(value) for value in constants if value is not None),
    ]
    _record_forward(recorder, gradient, found, stopped)
    ends = [output.value_ids.tolist() for output in gradient.outputs]
    return [found[end[0]] if end else None for end in ends]


def pull_row(
    recorder: Recorder,
    row: Row,
    inputs: Sequence[Any],
    outs: Sequence[Any],
    grads: Sequence[Any],
) -> list[Handle | None]:
    """The local gradient of a node of scalars, on its own: None for what has no gradient."""
    if row.own is not None:
        found = _record_own(recorder, row.own, inputs, outs, grads, never)
        return [*found, *[None] * len(outs)]
    out, grad = (outs, grads) if row.gate.outputs != (1, 1) else (outs[0], grads[0])
    entries = row.gate.vjp(recorder, grad, out, *inputs, **row.gate.complete(row.attributes))
    return [each() if callable(each) else each for each in entries]


class _Halves:
    """Half precision in a recorded backward pass, as the array engine has it: gradients are
    computed and summed in float32, and rounded once.
    """

    def __init__(self, recorder: Recorder, values: list[Any]) -> None:
        self._recorder = recorder
        self._values = values
        self._wide: dict[tuple[Any, ...], Handle] = {}

    def widened(self, x: Handle | None) -> Handle | None:
        """What is of half precision in float32, cast once; the rest as it is."""
        if x is None or x.dtype not in HALVES:
            return x
        if x.key not in self._wide:
            self._wide[x.key] = self._recorder.astype(x, "float32")
        return self._wide[x.key]

    def round(self, grads: list[Handle | None], ids: range) -> None:
        """Complete gradients, in their values' data types."""
        for i in ids:
            grad = grads[i]
            if grad is not None and grad.dtype != self._values[i].dtype in HALVES:
                grads[i] = self._recorder.astype(grad, self._values[i].dtype)

    def unrounded(self, row: Row, ids: Sequence[int], outs: range) -> tuple[Handle, ...]:
        """The outputs of a node before they are rounded; recorded again, if they are used."""
        found = tuple(self._values[i] for i in outs)
        if row.gate.takes_halves or not any(each.dtype in HALVES for each in found):
            return found

        @cache
        def again() -> tuple[Handle, ...]:
            given = [self.widened(self._values[i]) for i in ids]
            outputs = row.output_count
            wide = self._recorder.apply(row.operator, *given, outputs=outputs, **row.attributes)
            return wide if outputs > 1 else (wide,)

        def deferred(slot: int, half: Handle) -> Handle:
            spec = TensorSpec(half.shape, "float32")
            return _Deferred(self._recorder, spec, lambda: again()[slot])

        return tuple(
            deferred(slot, each) if each.dtype in HALVES else each
            for slot, each in enumerate(found)
        )


class _Deferred(Handle):
    """A handle whose node is recorded when it is first used."""

    def __init__(self, recorder: Recorder, spec: TensorSpec, record: Callable[[], Handle]) -> None:
        self._record = record
        super().__init__(recorder, (), spec)

    @property
    def key(self) -> tuple[Any, ...]:
        return self._record().key

    @key.setter
    def key(self, _: tuple[Any, ...]) -> None:
        """It has that of what is recorded."""


def _needed(graph: Graph, floating: Any, marks: list[bool]) -> list[bool]:
    flags: list[bool] = (floating & reached(graph, marks)).tolist()
    return flags


def _fresh_prefix(graph: Graph) -> str:
    taken = {leaf.name for leaf in graph.leaves}
    taken |= {output.name for output in graph.outputs} | set(graph.all_names().values())
    for number in count(1):
        prefix = "grad" if number == 1 else f"grad{number}"
        if not any(name.startswith(f"{prefix}/") for name in taken):
            return prefix
    raise AssertionError("counting ends nowhere")


def _seed_leaves(
    graph: Graph, spec_of: Callable[[int], TensorSpec], prefix: str
) -> list[tuple[Leaf, Output]]:
    """An input for the seed of each floating output, 1 where the output has one element."""
    seeds = []
    for output in graph.outputs:
        spec = spec_of(int(output.value_ids[0]))
        if spec.is_floating:
            stacked = len(output.value_ids) > 1
            shape = (len(output.value_ids),) if stacked else spec.shape
            one = tensor_of(np.ones(shape, spec.dtype)) if prod(shape) == 1 else None
            seeds.append(
                (Leaf("input", f"{prefix}/{output.name}", spec.dtype, shape, False, one), output)
            )
    return seeds


def _seed_grads(
    recorder: Recorder, seeds: list[tuple[Leaf, Output]], size: int
) -> list[Handle | None]:
    grads: list[Handle | None] = [None] * size
    for number, (leaf, output) in enumerate(seeds):
        shape = tuple(axis for axis in leaf.axes if isinstance(axis, int))
        seed = Handle(recorder, ("seed", number), TensorSpec(shape, leaf.dtype))
        ids = output.value_ids.tolist()
        for position, value_id in enumerate(ids):
            own = seed
            if len(ids) > 1:
                own = recorder.take(seed, recorder.number(position, "int64"))
            before = grads[value_id]
            grads[value_id] = own if before is None else before + own
    return grads


def _leaf_gradient(
    recorder: Recorder, graph: Graph, position: int, values: list[Any], grads: list[Handle | None]
) -> list[Handle]:
    """The values of the output that holds a leaf's gradient: one, or scalars to be stacked."""
    leaf, first = graph.leaves[position], graph.leaf_first_ids[position]
    ids = range(first, first + leaf.id_count)
    found = [_or_zeros(recorder, grads[i], values[i]) for i in ids]
    shape = tuple(axis for axis in leaf.axes if isinstance(axis, int))
    if not leaf.elements or (len(shape) == 1 and len(found) > 1) or not shape:
        return found
    if not found:
        return [recorder.full(shape, 0, leaf.dtype)]
    rows = [recorder.reshape(each, (1,)) for each in found]
    whole = recorder.concat(rows, axis=0) if len(rows) > 1 else rows[0]
    return [recorder.reshape(whole, shape)]


def _or_zeros(recorder: Recorder, grad: Handle | None, value: Handle) -> Handle:
    return recorder.zeros_like(value) if grad is None else grad


def _assemble(
    graph: Graph,
    recorder: Recorder,
    seeds: list[Leaf],
    values: list[Any],
    gradients: list[tuple[str, list[Handle]]],
    shape_of: Callable[[int], Shape],
) -> Graph:
    """Gives every handle its id: leaves come before nodes, and new ones were found on the way."""
    kinds = ("input", "parameter", "constant")
    placed: list[tuple[tuple[Any, ...], Leaf]] = []
    for kind in kinds:
        for position, leaf in enumerate(graph.leaves):
            if leaf.kind == kind:
                fixed = (
                    leaf
                    if leaf.elements
                    else replace(leaf, axes=shape_of(graph.leaf_first_ids[position]))
                )
                placed.append((("leaf", position), fixed))
        if kind == "input":
            placed.extend((("seed", number), leaf) for number, leaf in enumerate(seeds))
    for handle, tensor in recorder.constants.values():
        placed.append((handle.key, Leaf("constant", "", tensor.dtype, tensor.shape, False, tensor)))
    ids: dict[tuple[Any, ...], int] = {}
    next_id = 1
    for key, leaf in placed:
        for element in range(leaf.id_count):
            ids[(*key, element) if key[0] == "leaf" else key] = next_id
            next_id += 1
    for node, (number, _) in enumerate(recorder.nodes):
        for slot in range(recorder.row_list[number].output_count):
            ids[("node", node, slot)] = next_id
            next_id += 1
    kept = [
        Output(output.name, np.array([ids[values[i].key] for i in output.value_ids.tolist()]))
        for output in graph.outputs
    ]
    made = [
        Output(name, np.array([ids[handle.key] for handle in found], np.int64))
        for name, found in gradients
    ]
    return Graph(
        Rows(recorder.row_list),
        tuple(leaf for _, leaf in placed),
        np.array([number for number, _ in recorder.nodes], np.int64),
        np.array(
            [ids[key] if key else 0 for _, inputs in recorder.nodes for key in inputs], np.int64
        ),
        (*kept, *made),
        {ids[values[i].key]: name for i, name in graph.all_names().items()},
    )
