"""Softmax over rows of large tensors, compiled: the passes that NumPy makes are made row by row,
while the row is in the cache, and the processors share the rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradwire_server.engine import kernels
from gradwire_server.engine.tape import over_elements
from gradwire_server.gates.base import Array
from gradwire_server.plan import Plan
from gradwire_server.specs import COMPUTED

#: Elements from which a compiled pass is worth its call.
_WORTHWHILE = 1 << 14
#: What an element takes, in nodes of a region.
_NODES = 4


@dataclass(frozen=True)
class SoftmaxRows:
    """A Softmax along the last axis."""

    nodes: range  # itself
    given: int  # value ids
    out: int
    compiled: Any

    def forward(self, values: Sequence[Array]) -> list[Array]:
        """Its value, from those of all ids before."""
        x = np.ascontiguousarray(values[self.given])
        out = np.empty_like(x)
        self._run(self.compiled.softmax, x, out)
        return [out]

    def backward(
        self, values: Sequence[Array], grads: list[Array | None], own: set[int]
    ) -> Iterator[tuple[int, Array]]:
        """Yields what it adds to the gradient of its input, in a new array."""
        grad = grads[self.out]
        if grad is not None:
            to_x = np.empty_like(values[self.out])
            self._run(
                self.compiled.softmax_backward, np.ascontiguousarray(grad), values[self.out], to_x
            )
            yield self.given, to_x

    def _run(self, kernel: Any, *held: Array) -> None:
        count = held[0].shape[-1]

        def share(start: int, stop: int) -> None:
            kernel(*held, count, start // count, stop // count)

        over_elements(share, held[0].size, _NODES, count)


def find_rows(plan: Plan) -> Mapping[int, SoftmaxRows]:
    """Such nodes by their numbers."""
    graph = plan.graph
    along = {
        number: row.gate.complete(row.attributes)["axis"]
        for number, row in enumerate(graph.rows)
        if row.own is None and row.operator == "Softmax"
    }
    if not along:
        return {}
    found = {}
    for node in np.flatnonzero(np.isin(graph.node_rows, [*along])).tolist():
        out, given = int(graph.first_ids[node]), int(graph.node_inputs[graph.input_starts[node]])
        spec = plan.spec(out)
        is_last = spec.rank and along[int(graph.node_rows[node])] % spec.rank == spec.rank - 1
        elements = spec.size * (plan.batch_size if plan.is_batched(out) else 1)
        if not is_last or spec.dtype not in COMPUTED or elements < _WORTHWHILE:
            continue
        compiled = kernels.loaded(spec.dtype)
        if compiled is None:
            return {}
        found[node] = SoftmaxRows(range(node, node + 1), given, out, compiled)
    return found
