"""Leaves as one run of bytes, in an order that is fixed: their numbers in, their gradients out.

Where each packed leaf is a number, or has an id for each of its numbers, the run is a column by id:
no step of Python is taken for a leaf.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from math import prod
from typing import Any, overload

import numpy as np

from gradwire_server import arrays
from gradwire_server.errors import Invalid
from gradwire_server.gates.base import Array
from gradwire_server.graph import Graph, Ids, Leaf
from gradwire_server.plan import static_leaves
from gradwire_server.specs import FLOATS, ITEM_SIZES, Shape, Tensor


@dataclass(frozen=True, eq=False)
class Packing:
    """An order of leaves."""

    graph: Graph
    positions: tuple[int, ...]

    def __post_init__(self) -> None:
        """LEAF_UNKNOWN, BINDING_INVALID, NOT_DIFFERENTIABLE, SYMBOL_UNBOUND."""
        known = sum(leaf.kind != "constant" for leaf in self.graph.leaves)
        seen: set[int] = set()
        for number, position in enumerate(self.positions):
            field = f"packed.leaves[{number}]"
            if position >= known:
                what = (
                    f"packed: there is no leaf {position}; inputs and parameters are below {known}"
                )
                raise Invalid("LEAF_UNKNOWN", what, field=field)
            leaf = self.graph.leaves[position]
            if position in seen:
                raise Invalid("BINDING_INVALID", f"{leaf.place}: is packed twice", field=field)
            seen.add(position)
            _require_packable(leaf)

    @cached_property
    def leaves(self) -> list[Leaf]:
        """In their order."""
        return [self.graph.leaves[position] for position in self.positions]

    @cached_property
    def names(self) -> dict[str, int]:
        """Positions by name, in their order."""
        return {self.graph.leaves[position].name: position for position in self.positions}

    @cached_property
    def ids(self) -> Ids | None:
        """Of the numbers, end to end; None where an id is a tensor, or where data types differ."""
        firsts = self.graph.leaf_first_ids
        if len({leaf.dtype for leaf in self.leaves}) > 1:
            return None
        if any(leaf.axes and not leaf.elements for leaf in self.leaves):
            return None
        found = [i for place in self.positions for i in range(firsts[place], firsts[place + 1])]
        return np.array(found, np.int64)

    @cached_property
    def column(self) -> Any:
        """Where a buffer by id has the numbers: a slice of it where they follow each other."""
        assert self.ids is not None, "asked for where there are ids"
        first, count = int(self.ids[0]) if len(self.ids) else 0, len(self.ids)
        follow = (self.ids == np.arange(first, first + count)).all()
        return slice(first, first + count) if follow else self.ids

    def gathered(self, stacked: Callable[[Ids], Array]) -> Array:
        """The numbers of the ids, end to end, from a store that is read by ascending ones."""
        ascending, places = self._ascending
        return stacked(ascending)[places] if len(ascending) else np.zeros(0, self.dtype)

    @cached_property
    def _ascending(self) -> tuple[Ids, Any]:
        """The ids, and where among them those of the order are."""
        assert self.ids is not None, "asked for where there are ids"
        if (np.diff(self.ids) > 0).all():
            return self.ids, slice(None)
        return np.unique(self.ids, return_inverse=True)

    @cached_property
    def nbytes(self) -> int:
        """Of the whole run."""
        return self._edges[-1]

    @cached_property
    def _edges(self) -> list[int]:
        """Where each leaf's bytes begin, and the end."""
        return [0, *accumulate(prod(_shape(leaf)) * ITEM_SIZES[leaf.dtype] for leaf in self.leaves)]

    @cached_property
    def is_static(self) -> bool:
        """Whether shapes depend on elements of these leaves."""
        return not static_leaves(self.graph).isdisjoint(self.positions)

    def split(self, data: bytes) -> dict[str, Array]:
        """The leaves' arrays, by name."""
        return {
            leaf.name: arrays.constant(Tensor(leaf.dtype, _shape(leaf), data[start:stop]))
            for leaf, (start, stop) in zip(self.leaves, pairwise(self._edges), strict=True)
        }

    def put(self, data: bytes, leaves: Sequence[Array]) -> Sequence[Array]:
        """The arrays of all leaves by position, with those of a run in the place of the packed."""
        if self.ids is None:
            found = [*leaves]
            for name, array in self.split(data).items():
                found[self.names[name]] = array
            return tuple(found)
        numbers = arrays.constant(Tensor(self.dtype, (len(self.ids),), data))
        if isinstance(leaves, PackedLeaves) and leaves.packing is self:
            return PackedLeaves(self, leaves.others, numbers)
        return PackedLeaves(self, _Others(self, leaves), numbers)

    @cached_property
    def dtype(self) -> str:
        """Of the numbers that have ids."""
        return self.leaves[0].dtype if self.leaves else "float64"

    @cached_property
    def places(self) -> dict[int, tuple[slice, Shape]]:
        """Where among the numbers those of a position are, and its shape."""
        size = ITEM_SIZES[self.dtype]
        return {
            position: (slice(start // size, stop // size), _shape(leaf))
            for position, leaf, (start, stop) in zip(
                self.positions, self.leaves, pairwise(self._edges), strict=True
            )
        }


class PackedLeaves(Sequence[Array]):
    """The arrays of all leaves by position: a column of numbers by id, and the others."""

    def __init__(self, packing: Packing, others: _Others, numbers: Array | None) -> None:
        self.packing = packing
        self.others = others
        self._numbers = numbers

    def __len__(self) -> int:
        return len(self.others.arrays)

    @overload
    def __getitem__(self, position: int) -> Array: ...
    @overload
    def __getitem__(self, position: slice) -> Sequence[Array]: ...
    def __getitem__(self, position: Any) -> Any:
        if isinstance(position, slice):
            return tuple(self)[position]
        if position not in self.packing.places:
            return self.others.arrays[position]
        if self._numbers is None:
            return None
        place, shape = self.packing.places[position]
        return self._numbers[place].reshape(shape)

    def without(self, positions: Iterable[int]) -> PackedLeaves:
        """The same without the column, and without some of the others."""
        gone = {*positions}
        kept = [None if i in gone else array for i, array in enumerate(self.others.arrays)]
        return PackedLeaves(self.packing, _Others(self.packing, kept), None)

    def write(self, values: Array) -> None:
        """Puts all numbers where a tape has them, by id."""
        others = self.others.column
        values[: len(others)] = others
        values[self.packing.column] = self._numbers


class _Others:
    """The leaves that are not packed, which stay while the numbers change."""

    def __init__(self, packing: Packing, leaves: Sequence[Array | None]) -> None:
        self._packing = packing
        packed = packing.places
        self.arrays = [None if i in packed else array for i, array in enumerate(leaves)]

    @cached_property
    def column(self) -> Array:
        """Numbers by id, anything where the packed ones go."""
        firsts = self._packing.graph.leaf_first_ids
        found = np.zeros(firsts[-1], self._packing.dtype)
        for array, (first, end) in zip(self.arrays, pairwise(firsts), strict=True):
            if array is not None:
                found[first:end] = array.reshape(-1)
        return found


def _shape(leaf: Leaf) -> Shape:
    """Of a leaf whose sizes are fixed."""
    return tuple(axis for axis in leaf.axes if isinstance(axis, int))


def _require_packable(leaf: Leaf) -> None:
    if leaf.dtype not in FLOATS:
        what = f"{leaf.place}: is {leaf.dtype} and has no gradient, so it cannot be packed"
        raise Invalid("NOT_DIFFERENTIABLE", what, field="packed.leaves")
    for axis in leaf.axes:
        if isinstance(axis, str):
            raise Invalid(
                "SYMBOL_UNBOUND",
                f"{leaf.place}: has the symbolic size {axis!r}, so it cannot be packed; bind it by "
                "name, and list the others in packed.leaves",
                field="packed.leaves",
                leaf=leaf.name,
            )
