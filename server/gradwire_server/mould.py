"""A job that was checked once, for the same request with other numbers.

What can be refused depends on names, shapes, data types and selections, and on elements only where
shapes do. Where all of that is as before, only the arrays are put in their places.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from gradwire_server.engine.evaluation import Binding, Job
from gradwire_server.gates.base import Array
from gradwire_server.graph import Graph
from gradwire_server.plan import static_leaves


def movable(graph: Graph) -> dict[str, int]:
    """Positions of the leaves whose elements no shape depends on, by name."""
    static = static_leaves(graph)
    return {
        leaf.name: position
        for position, leaf in enumerate(graph.leaves)
        if leaf.kind != "constant" and position not in static
    }


def moved(job: Job, leaves: Mapping[str, int], bindings: Mapping[str, Binding]) -> Job | None:
    """The same job at other values of some leaves; None where it must be prepared again."""
    if not job.compiled.settled:
        return None
    point = job.point
    arrays: list[Array] = list(point.arrays)
    for name, binding in bindings.items():
        position = leaves.get(name)
        if position is None or binding.batched != point.batched[position]:
            return None
        spec = point.specs[position]
        shape = (point.batch_size, *spec.shape) if binding.batched else spec.shape
        if binding.array.shape != shape or binding.array.dtype != spec.dtype:
            return None
        arrays[position] = binding.array
    return job.at(tuple(arrays))


def without(job: Job, leaves: Mapping[str, int], names: Iterable[str]) -> Job:
    """The same job, lacking the arrays of some leaves."""
    arrays: list[Array] = list(job.point.arrays)
    for name in names:
        if name in leaves:
            arrays[leaves[name]] = None
    return job.at(tuple(arrays))
