"""Where the values inside of modules are: by id, and by path such as "layer1/scores".

Ids inside of modules follow a circuit's own, use by use: the values of the module's nodes, then
those inside of the modules that it uses, in the same way. So a circuit that uses a module a hundred
thousand times is described by its uses, and what is inside of each is counted, not listed.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from gradwire.columns import Ids

#: Ids are written in 32 bits; what has more values than that counts as if it had one more.
MOST_VALUES = (1 << 32) - 1


@dataclass(frozen=True)
class Uses:
    """The uses of modules in one circuit, in order. Places count its nodes' values from 0."""

    values: int  # of its own nodes
    names: Mapping[int, str]  # by place
    places: Sequence[int]  # of the first value of each use
    modules: Sequence[int]
    starts: Sequence[
        int
    ]  # where the values inside of each use begin, counted from the first inside
    inside: int

    @property
    def count(self) -> int:
        """Values of its nodes and those inside of what it uses."""
        return self.values + self.inside

    @cached_property
    def place_of(self) -> dict[str, int]:
        return {name: place for place, name in self.names.items()}

    @cached_property
    def longest(self) -> int:
        """Of the names of uses."""
        return max((len(self.names.get(place, "")) for place in self.places), default=0)

    @cached_property
    def number_at(self) -> dict[int, int]:
        """Uses by the place of their first value."""
        return {place: number for number, place in enumerate(self.places)}


class Use(NamedTuple):
    """One use of a module, wherever it is."""

    path: str  # empty where it, or one around it, has no name
    module: int
    first: int  # of the values of the module's nodes, counted from the outermost circuit's first


def uses_of(
    places: Ids, modules: Ids, values: int, names: Mapping[int, str], before: Sequence[Uses]
) -> Uses:
    """The uses in a circuit, of modules that are `before`; as many entries of `places` as uses."""
    used: list[int] = modules.tolist()
    sizes = np.array([min(before[each].count, MOST_VALUES + 1) for each in used], np.int64)
    ends = np.cumsum(sizes)
    inside = int(ends[-1]) if used else 0
    return Uses(values, names, places.tolist(), used, (ends - sizes).tolist(), inside)


@dataclass(frozen=True)
class Paths:
    """What is inside of a circuit, by path. Offsets count from its own first node value."""

    root: Uses
    modules: Sequence[Uses]

    def find(self, path: str) -> int | None:
        """The offset of a value."""
        for uses, base, at in self._inward(path):
            place = uses.place_of.get(path[at:])
            if at and place is not None:
                return base + place
        return None

    def find_use(self, path: str) -> Use | None:
        """A use of a module."""
        for uses, base, at in self._inward(path):
            number = uses.number_at.get(uses.place_of.get(path[at:], -1))
            if number is not None:
                return Use(path, *self.entered(uses, base, number))
        return None

    def _inward(self, path: str) -> Iterator[tuple[Uses, int, int]]:
        """Circuits that a path may lead into, where theirs begin, and what is left of the path."""
        seen: set[tuple[int, int]] = set()
        waiting = [(self.root, 0, 0)]
        while waiting:
            uses, base, at = waiting.pop()
            yield uses, base, at
            found = []
            cut = path.find("/", at)
            while 0 <= cut <= at + uses.longest:
                number = uses.number_at.get(uses.place_of.get(path[at:cut], -1))
                if number is not None:
                    module, first = self.entered(uses, base, number)
                    if (module, cut) not in seen:  # names may have slashes of their own
                        seen.add((module, cut))
                        found.append((self.modules[module], first, cut + 1))
                cut = path.find("/", cut + 1)
            waiting += reversed(found)

    def name(self, offset: int) -> str:
        """The path of a value; empty where a part of it has no name."""
        names = [*self._leading_to(offset)]
        return "/".join(name for _, _, name in names) if all(name for _, _, name in names) else ""

    def inmost(self, offset: int) -> tuple[int | None, int]:
        """The module that a value is directly inside of, and its place there."""
        *_, (module, place, _) = self._leading_to(offset)
        return module, place

    def around(self, offset: int) -> Iterator[tuple[int, str]]:
        """Uses that a value is inside of, outermost first: offset of the first value, and name."""
        uses, base = self.root, 0
        *leading, _ = self._leading_to(offset)
        for _, place, name in leading:
            yield base + place, name
            module, base = self.entered(uses, base, uses.number_at[place])
            uses = self.modules[module]

    def _leading_to(self, offset: int) -> Iterator[tuple[int | None, int, str]]:
        """From the outermost in: the module, the place of a use or of the value in it, its name."""
        uses, module = self.root, None
        while offset >= uses.values:
            offset -= uses.values
            number = bisect_right(uses.starts, offset) - 1
            offset -= uses.starts[number]
            yield module, uses.places[number], uses.names.get(uses.places[number], "")
            module = uses.modules[number]
            uses = self.modules[module]
        yield module, offset, uses.names.get(offset, "")

    def walk(self) -> Iterator[Use]:
        """Every use, those inside of modules too, by ascending first offsets."""
        waiting = [(self.root, 0, "", iter(range(len(self.root.places))))]
        while waiting:
            uses, base, prefix, numbers = waiting[-1]
            number = next(numbers, None)
            if number is None:
                waiting.pop()
                continue
            name = uses.names.get(uses.places[number], "")
            path = name if uses is self.root else f"{prefix}/{name}" if prefix and name else ""
            module, first = self.entered(uses, base, number)
            yield Use(path, module, first)
            inside = self.modules[module]
            if inside.places:
                waiting.append((inside, first, path, iter(range(len(inside.places)))))

    def entered(self, uses: Uses, base: int, number: int) -> tuple[int, int]:
        """The module of a use in a circuit that begins at `base`, and where its values begin."""
        return uses.modules[number], base + uses.values + uses.starts[number]
