"""What reading a model will cost, and names, counted so that a small file costs little."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import onnx

from gradwire.onnx.messages import domain_of

if TYPE_CHECKING:
    from gradwire.onnx.weights import Key

#: Graphs and functions that are nested deeper are refused where they are read.
MAX_DEPTH = 64

_MANY = 1 << 62


class Names:
    """Names of which each is taken once."""

    def __init__(self, taken: Iterable[str]) -> None:
        self._taken = set(taken)
        self._counts: dict[str, int] = {}  # the last number behind each name

    def add(self, taken: Iterable[str]) -> None:
        """More that are taken already."""
        self._taken.update(taken)

    def take(self, name: str) -> str:
        """The name, or with the first number behind it that is free."""
        free, count = name, self._counts.get(name, 1)
        while free in self._taken:
            count += 1
            free = f"{name}_{count}"
        self._counts[name] = count
        self._taken.add(free)
        return free


def least_steps(
    nodes: Iterable[onnx.NodeProto], functions: Mapping[Key, onnx.FunctionProto]
) -> int:
    """How many nodes are read at least: those inside of functions too, each time they are used.

    Branches, and loops inside, may take none.
    """
    return _Counter(functions).steps(nodes)


class _Counter:
    def __init__(self, functions: Mapping[Key, onnx.FunctionProto]) -> None:
        self._functions = functions
        self._known: dict[Key, int] = {}

    def steps(self, nodes: Iterable[onnx.NodeProto], depth: int = 0) -> int:
        count = 0
        for node in nodes:
            count += 1
            key = domain_of(node.domain), node.op_type, node.overload
            if key in self._functions:
                count += self._inside(key, depth)
        return min(count, _MANY)

    def _inside(self, key: Key, depth: int) -> int:
        if key not in self._known:
            self._known[key] = 0  # of one that uses itself, which is refused where it is read
            if depth < MAX_DEPTH:
                self._known[key] = self.steps(self._functions[key].node, depth + 1)
        return self._known[key]


def cannot_end(body: onnx.GraphProto, functions: Mapping[Key, onnx.FunctionProto]) -> bool:
    """Whether the condition that a loop's body yields is the same after every trip.

    It is what the body is given, or a constant.
    """
    makers = {name: node for node in body.node for name in node.output}
    inputs = [each.name for each in body.input]
    name = body.output[0].name if body.output else ""
    for _ in range(len(makers) + 1):
        node = makers.get(name)
        if node is None:
            return name not in inputs or name == inputs[1]
        kind = domain_of(node.domain), node.op_type, node.overload
        if kind in functions or kind[0] or len(node.input) != (node.op_type == "Identity"):
            return False
        if node.op_type == "Constant":
            return True
        if node.op_type != "Identity":
            return False
        name = node.input[0]
    return False
