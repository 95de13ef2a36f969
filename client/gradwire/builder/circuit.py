"""A circuit as it is kept in memory: leaves, nodes in columns, names and outputs."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gradwire import columns, paths, tensors
from gradwire.builder.leaves import Leaf, check_axes
from gradwire.builder.rows import GatesTable, Row, row_dtypes
from gradwire.errors import InvalidRequestError

#: A module with the data types of its inputs.
Typing = tuple[int, tuple[str | None, ...]]


@dataclass
class Circuit:
    """Leaves, nodes and outputs; keys of values are 1, 2, ... for nodes and -1, -2, ... for leaves.

    0 is an omitted input.
    """

    table: GatesTable
    leaves: list[Leaf] = field(default_factory=list)
    leaf_slots: list[int] = field(default_factory=list)  # first key of each leaf, negated
    next_slot: int = 1
    node_rows: array[int] = field(default_factory=lambda: array("q"))
    node_inputs: array[int] = field(default_factory=lambda: array("q"))  # keys, node after node
    node_firsts: array[int] = field(default_factory=lambda: array("q"))  # key of the first output
    value_count: int = 0
    # the last data type is of all outputs after it, too
    node_dtypes: list[tuple[str, ...]] = field(default_factory=list)
    names: dict[int, str] = field(default_factory=dict)
    taken: set[str] = field(default_factory=set)
    outputs: dict[str, list[int]] = field(default_factory=dict)
    _kinds: dict[tuple[str, ...], tuple[str, ...]] = field(default_factory=dict)
    _known_paths: tuple[tuple[int, ...], paths.Paths] | None = None
    _known_leaves: tuple[int, dict[str, range]] | None = None

    @property
    def node_count(self) -> int:
        """Number of nodes."""
        return len(self.node_rows)

    @property
    def own_count(self) -> int:
        """How many values there are but for those inside of modules."""
        return self.next_slot - 1 + self.value_count

    @property
    def ordered_leaves(self) -> tuple[Leaf, ...]:
        """Inputs, then parameters, then constants, as they are written."""
        order = ("input", "parameter", "constant")
        return tuple(sorted(self.leaves, key=lambda leaf: order.index(leaf.kind)))

    def add_leaf(self, leaf: Leaf) -> int:
        """Adds a leaf; its first key."""
        key = -self.next_slot
        self.leaves.append(leaf)
        self.leaf_slots.append(self.next_slot)
        self.next_slot += leaf.id_count
        return key

    def declare_leaf(
        self,
        kind: str,
        name: str,
        shape: Sequence[int | str],
        dtype: str,
        value: Any,
        elements: bool = False,
    ) -> int:
        """Adds a leaf as a person or a file declares it; its first key (LEAF_INVALID, ...)."""
        tensors.data_type(dtype)
        axes = tuple(shape)
        place = f"{kind} {name!r}"
        check_axes(place, axes, elements)
        stored = None if value is None else tensors.kept(tensors.from_value(place, value, dtype))
        if kind != "constant":
            self.take(name)
        if stored is not None and (
            len(axes) != stored.ndim
            or any(
                isinstance(axis, int) and axis != size
                for axis, size in zip(axes, stored.shape, strict=True)
            )
        ):
            raise InvalidRequestError(
                "LEAF_INVALID",
                f"{kind} {name!r}: declared with shape {axes} but its stored value has shape "
                f"{stored.shape}",
            )
        return self.add_leaf(Leaf(kind, name, dtype, axes, elements, stored))

    def take(self, name: str) -> None:
        """Takes a name for a value (NAME_INVALID)."""
        if not isinstance(name, str) or not name:
            fault = "an empty name" if name == "" else f"the name {name!r}, which is no string"
            raise InvalidRequestError("NAME_INVALID", f"a value has {fault}")
        if name in self.taken:
            raise InvalidRequestError("NAME_INVALID", f"the value name {name!r} is used 2 times")
        self.taken.add(name)

    def put(self, wanted: Row, keys: list[int]) -> int:
        """Adds a node, whose data types are to be found; the key of its first value."""
        first = self.value_count + 1
        self.node_rows.append(self.table.number_of(wanted))
        self.node_inputs.extend(keys)
        self.node_firsts.append(first)
        self.value_count += wanted.outputs
        return first

    def add(self, wanted: Row, keys: list[int], dtypes: Sequence[str]) -> int:
        """Adds a node, where the data types of all nodes before it are known."""
        first = self.put(wanted, keys)
        kind = tuple(dtypes)
        self.node_dtypes.append(self._kinds.setdefault(kind, kind))
        return first

    def label(self, key: int) -> str:
        """How a value is called in print and in messages: by its name, or its id."""
        if key > 0:
            return self.names.get(key) or f"%{key + self.next_slot - 1}"
        position = int(np.searchsorted(self.leaf_slots, -key, "right")) - 1
        leaf = self.leaves[position]
        if leaf.kind == "constant" and leaf.value is not None:
            return str(leaf.value.tolist()) if leaf.value.size <= 4 else f"{leaf.dtype} constant"
        return f"{leaf.name}[{-key - self.leaf_slots[position]}]" if leaf.elements else leaf.name

    def places(self) -> columns.Places:
        """Where the values are among the ids."""
        order = {"input": 0, "parameter": 1, "constant": 2}
        firsts = np.zeros(len(self.leaves), np.int64)
        next_id = 1
        for position in sorted(
            range(len(self.leaves)), key=lambda each: order[self.leaves[each].kind]
        ):
            firsts[position] = next_id
            next_id += self.leaves[position].id_count
        return columns.Places(np.array(self.leaf_slots, np.int64), firsts, next_id - 1)

    def leaf_ids(self) -> dict[str, range]:
        """Value ids of every leaf but constants."""
        count = len(self.leaves)
        if self._known_leaves is None or self._known_leaves[0] != count:
            firsts = self.places().firsts.tolist()
            found = {
                leaf.name: range(first, first + leaf.id_count)
                for leaf, first in zip(self.leaves, firsts, strict=True)
                if leaf.kind != "constant"
            }
            self._known_leaves = count, found
        return self._known_leaves[1]

    def leaf_labels(self) -> list[tuple[int, str, str]]:
        """(id, name, kind) of every element of the leaves but constants, by ascending id."""
        found = []
        for leaf, start in zip(self.leaves, self.places().firsts.tolist(), strict=True):
            if leaf.kind != "constant":
                for element in range(leaf.id_count):
                    name = f"{leaf.name}[{element}]" if leaf.elements else leaf.name
                    found.append((start + element, name, leaf.kind))
        found.sort()
        return found

    def node_labels(self, shift: int, path: str | None) -> Iterator[tuple[int, str, str]]:
        """Labels of the nodes' values; with a path, of those of one use of a module."""
        for node, row in enumerate(self.node_rows):
            first = self.node_firsts[node]
            for key in range(first, first + self.table.rows[row].outputs):
                name = self.names.get(key, "")
                if path is not None and name:
                    name = f"{path}/{name}" if path else ""
                yield key + shift, name, self.table.rows[row].operator

    def uses(self, known: Sequence[paths.Uses]) -> paths.Uses:
        """The uses of modules, where all before them are known."""
        used = np.zeros(0, np.int64)
        if self.table.has_uses:
            modules = np.frombuffer(self.table.modules, np.int64)
            used = modules[np.frombuffer(self.node_rows, np.int64)]
        nodes = np.flatnonzero(used >= 0)
        places = np.frombuffer(self.node_firsts, np.int64)[nodes] - 1
        names = {key - 1: name for key, name in self.names.items()}
        return paths.uses_of(places, used[nodes], self.value_count, names, known)

    def inner_paths(self, known: Sequence[paths.Uses]) -> paths.Paths:
        """What is inside of modules, as of now, where all of them are known."""
        size = (self.node_count, len(self.names), len(self.leaves))
        if self._known_paths is None or self._known_paths[0] != size:
            self._known_paths = size, paths.Paths(self.uses(known), known)
        return self._known_paths[1]

    def typed(
        self, leaves: Sequence[str | None], found: list[tuple[str, ...]]
    ) -> Generator[Typing, tuple[str, ...], tuple[str, ...]]:
        """Finds the data types of nodes, where those of the leaves are given, and of the outputs.

        Asks for those of the outputs of each use of a module.
        """

        def of_value(key: int) -> str | None:
            if key <= 0:
                return leaves[bisect_right(self.leaf_slots, -key) - 1] if key else None
            node = bisect_right(self.node_firsts, key) - 1
            return found[node][min(key - self.node_firsts[node], len(found[node]) - 1)]

        known: dict[Typing, tuple[str, ...]] = {}
        start = 0
        for number in self.node_rows:
            row = self.table.rows[number]
            given = tuple(map(of_value, self.node_inputs[start : start + row.inputs]))
            start += row.inputs
            if (number, given) not in known:
                if row.module is None:
                    known[number, given] = row_dtypes(row, given)
                else:
                    known[number, given] = yield row.module, given
            found.append(known[number, given])
        return tuple(of_value(keys[0]) or "" if keys else "" for keys in self.outputs.values())

    def typed_inside(
        self, given: Sequence[str | None]
    ) -> Generator[Typing, tuple[str, ...], tuple[str, ...]]:
        """Finds the data types of a module's outputs from those of its inputs."""
        inputs = iter(given)
        leaves = [
            next(inputs, None) if leaf.kind == "input" else leaf.dtype for leaf in self.leaves
        ]
        return self.typed(leaves, [])

    def dtypes_by_id(self, given: Iterator[str], nodes: Sequence[tuple[str, ...]]) -> list[str]:
        """Data types of the leaves, but those that are given, and of nodes, in order."""
        found = [""]
        for leaf in self.ordered_leaves:
            found += [next(given, leaf.dtype)] * leaf.id_count
        for row, dtypes in zip(self.node_rows, nodes, strict=True):
            found += dtypes
            found += dtypes[-1:] * (self.table.rows[row].outputs - len(dtypes))
        return found

    def dtype_of(self, key: int) -> str:
        """Data type of a value, where those of the nodes are known."""
        if key > 0:
            node = bisect_right(self.node_firsts, key) - 1
            dtypes = self.node_dtypes[node]
            return dtypes[min(key - self.node_firsts[node], len(dtypes) - 1)]
        return self.leaf_of(key).dtype

    def leaf_of(self, key: int) -> Leaf:
        """The leaf that a key is of."""
        return self.leaves[int(np.searchsorted(self.leaf_slots, -key, "right")) - 1]

    def input_start(self, node: int) -> int:
        """Where the inputs of a node begin in their column."""
        counts = np.array([row.inputs for row in self.table.rows])
        return int(counts[np.frombuffer(self.node_rows, np.int64)[:node]].sum())
