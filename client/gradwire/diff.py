"""What changed between two graphs: leaves by name, nodes by name and structure, tensors by norm.

Nodes that have a name in both graphs are one node; the others are one where they compute the same
of the same. A node that is left over is taken for the changed one of those with its operator that
have an input in common with it; else it was added, or removed. Modules are compared by name: a use
of one that changed inside is the same use.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator
from hashlib import sha256
from itertools import chain
from typing import Any

import numpy as np

from gradwire import tensors
from gradwire.builder import Graph, Leaf, Node
from gradwire.visible import visible

_BLOCK = 1 << 20
_FEW = 4


def differences(before: Graph, after: Graph) -> Iterator[str]:
    """A line for each change: "- " is gone, "+ " is new, "~ " is another."""
    every = chain(_headings(before, after), _modules(before, after), _circuits(before, after))
    yield from map(visible, every)


def _modules(before: Graph, after: Graph) -> Iterator[str]:
    """What changed inside of each module, and in its gradient."""
    old, new = ({each.name: each for each in graph.modules} for graph in (before, after))
    for name in _both(old, new):
        if name not in new:
            yield f"- module {name}({', '.join(old[name].inputs)})"
        elif name not in old:
            yield f"+ module {name}({', '.join(new[name].inputs)})"
        else:
            yield from _within(f"module {name}", old[name].circuit, new[name].circuit)
            own = f"gradient of module {name}"
            first, second = old[name].gradient, new[name].gradient
            if first is not None and second is not None:
                yield from _within(own, first, second)
            elif first is not second:
                yield f"{'+' if first is None else '-'} {own}"


def _within(place: str, before: Graph, after: Graph) -> Iterator[str]:
    lines = [*_circuits(before, after)]
    if lines:
        yield f"~ {place}:"
        yield from (f"  {line}" for line in lines)


def _circuits(before: Graph, after: Graph) -> Iterator[str]:
    """What changed in a circuit, not in the modules that it uses."""
    old, new = _Side(before), _Side(after)
    yield from _leaves(old, new)
    matched = _match(old, new)
    yield from _nodes(old, new, matched)
    yield from _outputs(old, new)


class _Side:
    """A graph with what is asked of it often."""

    def __init__(self, graph: Graph) -> None:
        self.leaves = graph.leaves
        self.leaf_firsts = [1]
        for leaf in self.leaves:
            self.leaf_firsts.append(self.leaf_firsts[-1] + leaf.id_count)
        self.nodes: list[Node] = list(graph.nodes())
        self.firsts = [node.outputs.start for node in self.nodes]
        ids = graph.ids_by_name()
        self.named = {name: leaf for leaf in self.leaves if (name := leaf.name) in ids}
        shift = self.leaf_firsts[-1]
        self.names = {each.start: name for name, each in ids.items() if each.start >= shift}
        self.node_of = {name: self._node(each) for each, name in self.names.items()}
        self.outputs = graph.output_ids()
        self.classes = list(range(len(self.nodes)))  # equal numbers: the same node in both graphs
        self._contents: dict[int, bytes] = {}
        self._attributes: dict[int, tuple[Any, ...]] = {}

    def _node(self, value_id: int) -> int:
        return bisect_right(self.firsts, value_id) - 1

    def leaf(self, value_id: int) -> tuple[int, int]:
        """Which leaf it is, and which element of it."""
        position = bisect_right(self.leaf_firsts, value_id) - 1
        return position, value_id - self.leaf_firsts[position]

    def value(self, value_id: int) -> tuple[Any, ...]:
        """What a value is, in words that both graphs share."""
        if not value_id:
            return ()
        if value_id >= self.leaf_firsts[-1]:
            node = self._node(value_id)
            return self.classes[node], value_id - self.firsts[node]
        position, element = self.leaf(value_id)
        leaf = self.leaves[position]
        if leaf.kind != "constant":
            return "leaf", leaf.name, element
        return "constant", self._content(position), element

    def _content(self, position: int) -> bytes:
        leaf = self.leaves[position]
        if position not in self._contents and leaf.value is not None:
            found = sha256(f"{leaf.dtype} {leaf.value.shape}".encode())
            found.update(tensors.elements(leaf.value) if leaf.value.size else b"")
            self._contents[position] = found.digest()
        return self._contents[position]

    def inputs(self, node: int) -> tuple[Any, ...]:
        return tuple(map(self.value, self.nodes[node].inputs))

    def key(self, node: int) -> tuple[Any, ...]:
        """What a node computes, and of what."""
        each = self.nodes[node]
        number = id(each.attributes)  # one for all nodes of a row
        if number not in self._attributes:
            self._attributes[number] = tuple(
                (name, tensors.key_of(value)) for name, value in each.attributes.items()
            )
        target = each.operator, each.module is None
        return target, self._attributes[number], len(each.outputs), self.inputs(node)

    def label(self, value_id: int) -> str:
        if not value_id:
            return "_"
        if value_id >= self.leaf_firsts[-1]:
            return self.names.get(value_id) or f"%{value_id}"
        position, element = self.leaf(value_id)
        leaf = self.leaves[position]
        name = _constant(leaf) if leaf.kind == "constant" else leaf.name
        return f"{name}[{element}]" if leaf.elements else name

    def made(self, node: int) -> str:
        outputs = self.nodes[node].outputs
        more = ", ..." if len(outputs) > _FEW else ""
        return ", ".join(map(self.label, outputs[:_FEW])) + more

    def call(self, node: int) -> str:
        each = self.nodes[node]
        given = [*map(self.label, each.inputs)]
        given += [f"{name}={_short(value)}" for name, value in each.attributes.items()]
        return f"{each.operator}({', '.join(given)})"


def _headings(before: Graph, after: Graph) -> Iterator[str]:
    """What is said of the whole graph; who wrote it is no difference."""
    if before.operator_set_version != after.operator_set_version:
        yield f"~ operator_set {before.operator_set_version} -> {after.operator_set_version}"
    notes = before.notes, after.notes
    for key in _both(*notes):
        if key not in notes[1]:
            yield f"- note {key}: {notes[0][key]!r}"
        elif key not in notes[0]:
            yield f"+ note {key}: {notes[1][key]!r}"
        elif notes[0][key] != notes[1][key]:
            yield f"~ note {key}: {notes[0][key]!r} -> {notes[1][key]!r}"


def _leaves(old: _Side, new: _Side) -> Iterator[str]:
    for name in _both(old.named, new.named):
        if name not in new.named:
            yield f"- {_declared(old.named[name])}"
        elif name not in old.named:
            yield f"+ {_declared(new.named[name])}"
        else:
            yield from _leaf(old.named[name], new.named[name])
    if [*old.named] != [*new.named] and {*old.named} == {*new.named}:
        yield f"~ leaves are in another order: {', '.join(new.named)}"


def _leaf(old: Leaf, new: Leaf) -> Iterator[str]:
    if _declared(old) != _declared(new):
        yield f"~ {_declared(old)} -> {_declared(new)}"
    if old.value is None or new.value is None:
        if old.value is not new.value:
            fate = "a stored value now" if old.value is None else "no stored value any more"
            yield f"~ {new.kind} {new.name}: has {fate}"
    elif found := compare(old.value, new.value):
        yield f"~ {new.kind} {new.name}: {found}"


def _match(old: _Side, new: _Side) -> dict[int, int]:
    """Nodes of the new graph that are nodes of the old one, and which."""
    matched: dict[int, int] = {}
    for number in range(len(new.nodes)):
        new.classes[number] = -1 - number
    taken = set()
    for name, number in new.node_of.items():
        found = old.node_of.get(name)
        if found is not None and found not in taken and number not in matched:
            _join(matched, new, number, found)
            taken.add(found)
    free = [number for number in range(len(old.nodes)) if number not in taken]
    equal: dict[Any, list[int]] = defaultdict(list)
    for number in reversed(free):
        equal[old.key(number)].append(number)
    for number in range(len(new.nodes)):
        if number not in matched and (same := equal.get(new.key(number))):
            _join(matched, new, number, same.pop())
    taken = set(matched.values())
    _match_changed(old, new, matched, [number for number in free if number not in taken])
    return matched


def _match_changed(old: _Side, new: _Side, matched: dict[int, int], free: list[int]) -> None:
    """Pairs what is left: first what now computes the same, then what is alike."""
    alike: dict[Any, list[int]] = defaultdict(list)
    for number in reversed(free):
        for clue in _clues(old, number):
            alike[clue].append(number)
    taken = set(matched.values())
    for number in range(len(new.nodes)):
        if number in matched:
            continue
        for clue in _clues(new, number):
            found = alike.get(clue, [])
            while found and found[-1] in taken:
                found.pop()
            if found:
                taken.add(found[-1])
                _join(matched, new, number, found.pop())
                break


def _clues(side: _Side, number: int) -> Iterator[Any]:
    """What two nodes have in common that may be one, the strongest first."""
    operator, attributes, outputs, inputs = side.key(number)
    yield operator, attributes, outputs, inputs
    yield operator, outputs, inputs
    for place, each in enumerate(inputs):
        yield operator, outputs, place, each
    for each in inputs:
        yield operator, outputs, each


def _join(matched: dict[int, int], new: _Side, number: int, old_number: int) -> None:
    matched[number] = old_number
    new.classes[number] = old_number


def _nodes(old: _Side, new: _Side, matched: dict[int, int]) -> Iterator[str]:
    kept = set(matched.values())
    for number in range(len(old.nodes)):
        if number not in kept:
            yield f"- {old.made(number)} = {old.call(number)}"
    for number in range(len(new.nodes)):
        if number not in matched:
            yield f"+ {new.made(number)} = {new.call(number)}"
            continue
        before = matched[number]
        if old.key(before) != new.key(number):
            yield f"~ {new.made(number)} = {old.call(before)} -> {new.call(number)}"
            yield from _constants(old, new, old.nodes[before], new.nodes[number])
        names = [
            [side.names.get(each, "") for each in side.nodes[node].outputs[:_FEW]]
            for side, node in ((old, before), (new, number))
        ]
        if names[0] != names[1]:
            yield f"~ {old.made(before)} is called {new.made(number)}"


def _constants(old: _Side, new: _Side, before: Node, after: Node) -> Iterator[str]:
    """How the large constants of a changed node differ."""
    for first, second in zip(before.inputs, after.inputs, strict=False):
        pair = []
        for side, value_id in ((old, first), (new, second)):
            if 0 < value_id < side.leaf_firsts[-1]:
                leaf = side.leaves[side.leaf(value_id)[0]]
                if leaf.kind == "constant" and leaf.value is not None and leaf.value.size > _FEW:
                    pair.append(leaf.value)
        if len(pair) == 2 and (found := compare(*pair)):
            yield f"  its constant: {found}"


def _outputs(old: _Side, new: _Side) -> Iterator[str]:
    for name in _both(old.outputs, new.outputs):
        texts = [
            ", ".join(map(side.label, side.outputs.get(name, [])[:_FEW])) or "nothing"
            for side in (old, new)
        ]
        if name not in new.outputs:
            yield f"- output {name} = {texts[0]}"
        elif name not in old.outputs:
            yield f"+ output {name} = {texts[1]}"
        elif [*map(old.value, old.outputs[name])] != [*map(new.value, new.outputs[name])]:
            yield f"~ output {name} = {texts[0]} -> {texts[1]}"
    if [*old.outputs] != [*new.outputs] and {*old.outputs} == {*new.outputs}:
        yield f"~ outputs are in another order: {', '.join(new.outputs)}"


def compare(old: tensors.Array, new: tensors.Array) -> str:
    """How two arrays differ; nothing where their bytes are equal."""
    if old.dtype != new.dtype or old.shape != new.shape:
        return f"{old.dtype}{list(old.shape)} -> {new.dtype}{list(new.shape)}"
    count, strange, squares, largest, place = 0, 0, 0.0, -1.0, 0
    width = f"V{old.dtype.itemsize}"
    flat = [old.reshape(-1), new.reshape(-1)]
    for at in range(0, old.size, _BLOCK):
        first, second = (each[at : at + _BLOCK] for each in flat)
        others = np.flatnonzero(first.view(width) != second.view(width))
        if not others.size:
            continue
        count += others.size
        with np.errstate(invalid="ignore"):
            steps = np.abs(second[others].astype(np.float64) - first[others].astype(np.float64))
        finite = np.isfinite(steps)
        strange += int(np.count_nonzero(~finite))
        squares += float(np.square(steps[finite]).sum())
        if finite.any() and float(steps[finite].max()) > largest:
            found = int(np.argmax(np.where(finite, steps, -1.0)))
            largest, place = float(steps[found]), at + int(others[found])
    if not count:
        return ""
    text = f"{count} of {old.size} elements differ"
    if largest >= 0:
        where = [int(each) for each in np.unravel_index(place, old.shape)]
        text += f", norm of the difference {squares**0.5:.6g}, largest {largest:.6g} at {where}"
    return text + (f", {strange} to or from NaN or infinity" if strange else "")


def _both(old: Iterable[str], new: Iterable[str]) -> Iterator[str]:
    """Every name once, in order."""
    yield from dict.fromkeys([*old, *new])


def _declared(leaf: Leaf) -> str:
    if not leaf.dtype:
        return f"{leaf.kind} {leaf.name}"  # of a module
    axes = ", ".join(map(str, leaf.axes))
    return f"{leaf.kind} {leaf.name}: {leaf.dtype}[{axes}]{' elements' if leaf.elements else ''}"


def _constant(leaf: Leaf) -> str:
    if leaf.value is not None and leaf.value.size <= _FEW:
        return str(leaf.value.tolist())
    return f"{leaf.dtype}{list(leaf.axes)}"


def _short(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return str(value.tolist()) if value.size <= _FEW else f"{value.dtype}{list(value.shape)}"
    return repr(value)
