"""A job that was checked once, for the same request with other numbers.

What can be refused depends on names, shapes, data types and selections, and on elements only where
shapes do. Where all of that is as before, only the arrays are put in their places. A mould knows
that from the bytes of a message, which then need not be parsed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from gradwire_server.engine.evaluation import Binding, Choice, Job, Packed
from gradwire_server.engine.packing import PackedLeaves
from gradwire_server.gates.base import Array
from gradwire_server.graph import Graph
from gradwire_server.plan import static_leaves
from gradwire_server.specs import Shape

#: Requests that are tried before it is given up.
_MOST_FAILURES = 4


def movable(graph: Graph) -> dict[str, int]:
    """Positions of the leaves whose elements no shape depends on, by name."""
    static = static_leaves(graph)
    return {
        leaf.name: position
        for position, leaf in enumerate(graph.leaves)
        if leaf.kind != "constant" and position not in static
    }


def moved(
    job: Job,
    leaves: Mapping[str, int],
    bindings: Mapping[str, Binding],
    packed: Packed | None = None,
) -> Job | None:
    """The same job at other values of some leaves; None where it must be prepared again."""
    point = job.point
    if packed is not None and packed.packing.is_static:
        return None
    if packed is not None and not bindings:  # no leaf is looked at: there may be many
        return packed.put(job, point.arrays)
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
    return job.at(tuple(arrays)) if packed is None else packed.put(job, arrays)


def without(job: Job, leaves: Mapping[str, int], names: Iterable[str]) -> Job:
    """The same job, lacking the arrays of some leaves, and of those that came packed."""
    gone = [leaves[name] for name in names if name in leaves]
    if isinstance(job.point.arrays, PackedLeaves):
        return job.at(job.point.arrays.without(gone), job.packing)
    arrays: list[Array] = list(job.point.arrays)
    for position in (*gone, *(job.packing.positions if job.packing else ())):
        arrays[position] = None
    return job.at(tuple(arrays), job.packing)


class Hole(NamedTuple):
    """Where a message has the elements of a leaf's array."""

    place: slice
    leaf: str


@dataclass(frozen=True)
class Mould:
    """A message around the elements of its arrays, and the job that it asks for."""

    job: Job
    size: int
    fixed: tuple[tuple[slice, bytes], ...]
    holes: tuple[tuple[slice, int, Shape, np.dtype[Any]], ...]

    @classmethod
    def of(cls, job: Job, leaves: Mapping[str, int], data: bytes, holes: Collection[Hole]) -> Mould:
        """The mould of a message that asked for this job."""
        fixed, filled, end = [], [], 0
        for place, leaf in sorted(holes, key=lambda hole: hole.place.start):
            fixed.append(slice(end, place.start))
            array = job.point.arrays[leaves[leaf]]
            filled.append((place, leaves[leaf], array.shape, array.dtype))
            end = place.stop
        fixed.append(slice(end, len(data)))
        parts = tuple((place, data[place]) for place in fixed)
        bare = without(job, leaves, (leaf for _, leaf in holes))
        return cls(bare, len(data), parts, tuple(filled))

    def pour(self, data: bytes, job: Job | None = None) -> Job | None:
        """The job at the numbers of a message; None where anything else differs.

        Another job for the same choice may lend the arrays of the other leaves.
        """
        if len(data) != self.size:
            return None
        for place, expected in self.fixed:
            if data[place] != expected:
                return None
        job = job or self.job
        arrays = list(job.point.arrays)
        for place, position, shape, dtype in self.holes:
            arrays[position] = np.ndarray(shape, dtype, data[place])
        return job.at(tuple(arrays))


@dataclass
class Casting:
    """The mould of the requests that come again, made when they do."""

    mould: Mould | None = None
    _choice: Choice | None = None  # what they choose
    _failures: int = 0

    def is_due(self, job: Job) -> bool:
        """Whether a request that asks for this job should be cast."""
        return self._choice is not job.choice and self._failures < _MOST_FAILURES

    def cast(
        self, job: Job, leaves: Mapping[str, int], data: bytes, holes: Collection[Hole] | None
    ) -> Mould | None:
        """Its mould, where its holes were found; other numbers may be easier to find."""
        if holes is None:
            self._failures += 1
            return None
        self.mould, self._choice, self._failures = Mould.of(job, leaves, data, holes), job.choice, 0
        return self.mould

    def pour(self, data: bytes, job: Job) -> Job | None:
        """The job at the numbers of a request, if it is like the one that was cast."""
        if self.mould is None or self._choice is not job.choice:
            return None
        return self.mould.pour(data, job)
