"""The numbers of a picture: what is written for each value, gradient and local gradient."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from gradwire.builder import Graph, Handle, Node
from gradwire.drawing.circuit import Circuit
from gradwire.drawing.opened import Opened
from gradwire.figures import Figure, figure, number_text
from gradwire.results import Result, Summary
from gradwire.tensors import FLOATS, Array

if TYPE_CHECKING:
    from gradwire.connection import Connection

#: Written where a number could be, but was not computed. That is not 0.
MISSING = Figure("–")

#: Local gradients by node and input.
Local = Mapping[tuple[int, int], Array]


class Numbers:
    """Figures by value id; None where nothing is written."""

    def __init__(self, circuit: Circuit, result: Result | None, local: Local | None = None) -> None:
        self.evaluated = result is not None
        self.has_local = bool(local)
        self._opened = circuit.opened
        graph, inside = circuit.opened.graph, circuit.opened.constants
        self._values: dict[int, Any] = {}
        self._values |= _stored(graph, constants_only=self.evaluated) | inside
        self._gradients: dict[int, Any] = {}
        self._local = local or {}
        self._constants = _stored(graph, constants_only=True).keys() | inside.keys()
        if result is not None:
            values, gradients = _named(circuit.opened, result)
            self._values |= {**values, **result.node_values}
            self._gradients |= {**gradients, **result.node_gradients}

    def value(self, value_id: int) -> Figure | None:
        """That of a value."""
        found = self._values.get(value_id)
        if found is None and value_id < 0:  # inside of a module, the same as outside
            return None
        if found is None:
            return MISSING if self.evaluated else None
        return _figure(found)

    def gradient(self, value_id: int) -> Figure | None:
        """That of its gradient; integers, truths and constants have none."""
        if value_id < 0 or value_id in self._constants:
            return None
        if self._opened.dtype(value_id) not in FLOATS:
            return None
        found = self._gradients.get(value_id)
        if found is None:
            return MISSING if self.evaluated else None
        return _figure(found)

    def local(self, node: int, slot: int) -> Figure | None:
        """That of a node's output with respect to one of its inputs."""
        found = self._local.get((node, slot))
        return None if found is None else _figure(found)


def to_compute(circuit: Circuit) -> tuple[list[int], list[int]]:
    """Ids of the values that are drawn, and of those among them that have gradients."""
    found = circuit.opened
    constants = _stored(found.graph, constants_only=True)
    drawn = {each for box in circuit.boxes for each in box.value_ids if each > 0} - constants.keys()
    floating = {each for each in drawn if found.dtype(each) in FLOATS}
    return sorted(drawn), sorted(floating - found.shut_ids)


def operands(circuit: Circuit) -> list[int]:
    """Ids of the values that local gradients are made from, those that are not drawn too."""
    found = circuit.opened
    nodes = {use.node for box in circuit.boxes for use in box.uses if use.node >= 0}
    return sorted({each for node in nodes for each in found.nodes[node].inputs if each > 0})


def local_gradients(circuit: Circuit, result: Result, connection: Connection) -> Local:
    """d(output)/d(input) of every gate drawn that yields one floating number.

    One request: a graph in which each of them stands alone, with the values of its inputs as leaves
    and 1 as seed. That of an output of several elements is a matrix, and left out, as are gates
    inside of modules with their own gradients, which have that in their stead.
    """
    graph = circuit.opened.graph
    drawn = {use.node for box in circuit.boxes for use in box.uses}
    constants = _stored(graph, constants_only=True) | circuit.opened.constants
    values = constants | {
        key: np.asarray(value)
        for key, value in result.node_values.items()
        if not isinstance(value, Summary)
    }
    alone = graph.with_modules()
    numbers = {id(module): number for number, module in enumerate(graph.modules)}
    inputs: dict[str, Array] = {}
    seeds: dict[str, Array] = {}
    places: dict[str, tuple[int, int]] = {}
    for number, node in circuit.opened.differentiated():
        slots = _computed_slots(node, values, constants)
        if number not in drawn or not slots:
            continue
        handles: list[Handle | None] = []
        for slot, value_id in enumerate(node.inputs):
            if slot in slots:
                name, value = f"{number} {slot}", values[value_id]
                places[name], inputs[name] = (number, slot), value
                handles.append(alone.input(name, value.shape, value.dtype))
            else:
                handles.append(alone.constant(values[value_id]) if value_id else None)
        out = values[node.outputs[0]]
        if node.module is None:
            made = alone.apply(node.operator, handles, node.attributes)
        else:  # which omits no input
            given = [each for each in handles if each is not None]
            made = alone.apply_module(numbers[id(node.module)], given, [str(out.dtype)])
        alone.output(str(number), *made)
        seeds[str(number)] = np.ones_like(out)
    if not inputs:
        return {}
    gradients = connection.evaluate(alone, inputs, seeds=seeds).gradients
    return {places[name]: found for name, found in gradients.items()}


def _computed_slots(
    node: Node, values: Mapping[int, Array], constants: Mapping[int, Array]
) -> list[int]:
    """Inputs with floating numbers; none unless the node yields one, and all inputs are known."""
    if len(node.outputs) != 1 or any(each and each not in values for each in node.inputs):
        return []
    out = values.get(node.outputs[0])
    if out is None or out.size != 1 or str(out.dtype) not in FLOATS:
        return []
    return [
        slot
        for slot, each in enumerate(node.inputs)
        if each and each not in constants and str(values[each].dtype) in FLOATS
    ]


def _stored(graph: Graph, *, constants_only: bool) -> dict[int, Array]:
    """Stored values by id."""
    found: dict[int, Array] = {}
    next_id = 1
    for leaf in graph.leaves:
        if leaf.value is not None and (leaf.kind == "constant" or not constants_only):
            each = leaf.value.reshape(-1) if leaf.elements else [leaf.value]
            found.update(enumerate(each, next_id))
        next_id += leaf.id_count
    return found


def _named(found: Opened, result: Result) -> tuple[dict[int, Array], dict[int, Array]]:
    """Values and gradients that a result has by the names of outputs and leaves."""
    values: dict[int, Array] = {}
    gradients: dict[int, Array] = {}
    for name, ids in found.output_ids.items():
        if name in result.outputs:
            values.update(zip(ids, _apart(result.outputs[name], len(ids)), strict=True))
    for name, places in found.graph.ids_by_name().items():
        if name in result.gradients:
            gradients.update(zip(places, _apart(result.gradients[name], len(places)), strict=True))
    return values, gradients


def _apart(whole: Array, count: int) -> Iterable[Array]:
    """What each of `count` ids has of a tensor: an element, or one for each row of a batch."""
    if count <= 1:
        return [whole][:count]
    rows = whole.reshape(-1, count).T
    return rows[:, 0] if whole.size == count else rows


def _figure(found: Any) -> Figure:
    if not isinstance(found, Summary):
        return figure(np.asarray(found))
    finite = not found.nan_count and not found.infinity_count
    return Figure(f"|{number_text(found.norm)}|", finite)
