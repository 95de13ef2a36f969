"""What gates hold on the way to their outputs and gradients, node by node, in bytes.

A gate says it for one call (`Gate.scratch`). Here it is asked once for each distinct call of a
plan, with shapes as the array engine hands them over: half precision as float32, rows of a batch at
once or one by one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from gradwire_server.gates.base import Gate, Scratch
from gradwire_server.graph import Ids
from gradwire_server.plan import Plan, distinct_rows, group_by_row
from gradwire_server.specs import HALVES, LARGEST, TensorSpec, computed_in

_ROW_BYTES = 3 * 112  # of the arrays of one row: what a gate yields, in two shapes, and its input

Specs = Sequence[TensorSpec | None]


def of_nodes(plan: Plan) -> Ids:
    """[2, nodes]: bytes that the gate of each holds on the way, forward and back."""
    graph = plan.graph
    found = np.zeros((2, graph.node_count), np.int64)
    for number, inputs, first_ids in group_by_row(graph):
        row = graph.rows[number]
        columns = [plan.spec_ids[each] for each in inputs]
        if plan.batch_size:
            columns += [plan.batched[each].astype(np.int64) for each in inputs]
        distinct, which = distinct_rows(columns, len(first_ids))
        attributes = row.gate.complete(row.attributes)
        sizes = []
        for nth in range(len(distinct)):
            node = int(np.argmax(which == nth))
            first = int(first_ids[node])
            outs = [plan.spec(first + place) for place in range(row.output_count)]
            ids = [int(each[node]) for each in inputs]
            specs = [plan.spec(i) if i else None for i in ids]
            marks = [plan.is_batched(i) for i in ids]
            held = _of_call(row.gate, attributes, outs, specs, marks, plan.batch_size)
            if row.own is not None:
                pulled = plan.own_gradient(number, ids).plan.nbytes(gradients=False)
                held = Scratch(held.forward, max(held.back, pulled))
            sizes.append([min(each, LARGEST) for each in held])
        nodes = np.searchsorted(graph.first_ids, first_ids)
        found[:, nodes] = np.array(sizes, np.int64).T[:, which]
    return found


class _Call(NamedTuple):
    """The specs of what a gate is called with, and yields."""

    outs: Sequence[TensorSpec]
    specs: Specs

    def widened(self) -> _Call:
        return _Call(
            [_widened(spec) for spec in self.outs],
            [None if spec is None else _widened(spec) for spec in self.specs],
        )


def _of_call(
    gate: Gate,
    attributes: Mapping[str, Any],
    outs: Sequence[TensorSpec],
    specs: Specs,
    marks: list[bool],
    batch_size: int,
) -> Scratch:
    declared = gate.declared_inputs(len(specs))
    if not gate.asserts:
        marks = [mark and each.elements for mark, each in zip(marks, declared, strict=True)]
    if not any(marks):
        return _asked(gate, attributes, _Call(outs, specs))
    aligned = gate.aligned_shapes(*specs, **attributes)
    if aligned is not None:
        lying = [
            None if spec is None else replace(spec, shape=shape)
            for spec, shape in zip(specs, aligned, strict=True)
        ]
        found = gate.infer(*lying, **attributes)
        rows = [
            _with_rows(each, batch_size)
            for each in (found if isinstance(found, tuple) else (found,))
        ]
        given = [
            _with_rows(spec, batch_size) if mark and spec is not None else spec
            for spec, mark in zip(lying, marks, strict=True)
        ]
        return _asked(gate, attributes, _Call(rows[: len(outs)], given))
    one = _asked(gate, attributes, _Call(outs, specs))
    # rows are listed before they are joined; gradients of what has no rows are joined, then summed
    listed = batch_size * sum(each.nbytes + _ROW_BYTES for each in outs)
    pulled = sum(
        each.nbytes * batch_size * (1 if mark else 2) + batch_size * _ROW_BYTES
        for each, mark in zip(specs, marks, strict=True)
        if each is not None and each.is_floating
    )
    return Scratch(one.forward + listed, one.back + pulled)


def _asked(gate: Gate, attributes: Mapping[str, Any], call: _Call) -> Scratch:
    has_halves = any(
        spec is not None and spec.dtype in HALVES for spec in (*call.outs, *call.specs)
    )
    if not has_halves:
        return gate.scratch(call.outs, *call.specs, **attributes)
    wide_call = call.widened()
    wide = gate.scratch(wide_call.outs, *wide_call.specs, **attributes)
    if gate.takes_halves:
        return Scratch(gate.scratch(call.outs, *call.specs, **attributes).forward, wide.back)
    return Scratch(wide.forward, max(wide))  # going back, outputs are computed again


def _widened(spec: TensorSpec) -> TensorSpec:
    if spec.dtype not in HALVES:
        return spec
    return replace(spec, dtype=computed_in(spec.dtype), data=None)


def _with_rows(spec: TensorSpec, batch_size: int) -> TensorSpec:
    return TensorSpec((batch_size, *spec.shape), spec.dtype)
