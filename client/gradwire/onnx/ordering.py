"""Nodes in an order in which each comes after those it uses: a model need not list them so."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator

import onnx


def ordered(nodes: Iterable[onnx.NodeProto], known: Container[str]) -> Iterable[onnx.NodeProto]:
    """The same nodes, those first that the others use; `known` are values from outside.

    In a cycle one node comes too early, and is refused where it is read.
    """
    listed = [*nodes]
    makers = {name: place for place, node in enumerate(listed) for name in node.output if name}
    needed = [
        [makers[name] for name in _uses(node) if name in makers and name not in known]
        for node in listed
    ]
    if all(other < place for place, others in enumerate(needed) for other in others):
        return listed
    order: list[int] = []
    done, begun = set[int](), set[int]()
    for first in range(len(listed)):
        waiting = [first]
        while waiting:
            place = waiting[-1]
            missing = [each for each in needed[place] if each not in begun]
            begun.add(place)
            if missing:
                waiting.extend(reversed(missing))
                continue
            waiting.pop()
            if place not in done:
                done.add(place)
                order.append(place)
    return [listed[place] for place in order]


def names_used(graph: onnx.GraphProto) -> set[str]:
    """Names that nodes or outputs of a graph use."""
    used = {name for node in graph.node for name in _uses(node)}
    return used | {each.name for each in graph.output}


def _uses(node: onnx.NodeProto) -> Iterator[str]:
    """Names that a node, or a subgraph of it, takes; those made inside may be among them."""
    waiting = [node]
    while waiting:
        each = waiting.pop()
        yield from filter(None, each.input)
        for attribute in each.attribute:
            if attribute.HasField("g"):
                waiting.extend(attribute.g.node)
                yield from (output.name for output in attribute.g.output)
