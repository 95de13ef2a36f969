"""Graphs without modules, for formats that lack them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from gradwire.builder import Graph
from gradwire.builder.circuit import Circuit
from gradwire.builder.rows import Row
from gradwire.errors import LimitError

#: Values of a graph that is written out.
MOST_VALUES = 10_000_000


def inlined(graph: Graph) -> Graph:
    """A graph that computes the same without modules, whose own gradients it has not.

    Values inside are named by their paths, unless another value has that name, or the value is what
    the module yields and has a name as such. LIMIT_EXCEEDED.
    """
    if not graph.modules:
        return graph
    if graph.value_count > MOST_VALUES:
        raise LimitError(
            "LIMIT_EXCEEDED",
            f"the graph has {graph.value_count} values with those inside of modules, but without "
            f"modules it may have {MOST_VALUES} at most",
        )
    return _Inliner(graph).flat


@dataclass
class _Frame:
    """A circuit that is being written out."""

    circuit: Circuit
    is_named: bool  # what is in it has a name from outside: it is the outermost, or has a path
    prefix: str
    outputs: list[int]  # keys, in the circuit around it, of what it yields
    keys: dict[int, int]  # in the flat graph, by those in the circuit
    nodes: Iterator[tuple[Row, int, list[int]]] = field(init=False)

    def __post_init__(self) -> None:
        self.nodes = self._nodes()

    def _nodes(self) -> Iterator[tuple[Row, int, list[int]]]:
        """Nodes: row, first key, keys of inputs."""
        circuit = self.circuit
        start = 0
        for number, first in zip(circuit.node_rows, circuit.node_firsts, strict=True):
            row = circuit.table.rows[number]
            yield row, first, circuit.node_inputs[start : start + row.inputs].tolist()
            start += row.inputs


class _Inliner:
    """Writes a graph out, circuit in circuit."""

    def __init__(self, graph: Graph) -> None:
        self.flat = Graph()
        self._constants: dict[int, dict[int, int]] = {}  # by circuit
        self._modules = graph.modules
        self.flat._notes = graph.notes
        self.flat._operator_set_version = graph.operator_set_version
        self._circuit = self.flat._circuit
        circuit = graph._circuit
        for leaf in circuit.leaves:
            if leaf.kind != "constant":
                self._circuit.take(leaf.name)
            self._circuit.add_leaf(leaf)
        self._own_names = set(circuit.names.values())
        keys = {-slot: -slot for slot in range(1, circuit.next_slot)}
        outermost = _Frame(circuit, not graph._module, "", [], keys)
        self._run(outermost)
        for name, found in circuit.outputs.items():
            self._circuit.outputs[name] = [outermost.keys[key] for key in found]

    def _run(self, outermost: _Frame) -> None:
        waiting = [outermost]
        while waiting:
            frame = waiting[-1]
            node = next(frame.nodes, None)
            if node is None:
                waiting.pop()
                if waiting:
                    self._finish(frame, waiting[-1])
                continue
            row, first, inputs = node
            given = [frame.keys[key] if key else 0 for key in inputs]
            made = [*range(first, first + row.outputs)]
            if row.module is not None:
                waiting.append(self._entered(frame, row.module, given, made))
                continue
            found = self._circuit.put(row._replace(module=None), given)
            frame.keys.update((key, found + slot) for slot, key in enumerate(made))
            self._name(frame, made)

    def _entered(self, frame: _Frame, module: int, given: list[int], made: list[int]) -> _Frame:
        circuit = self._modules[module].circuit._circuit
        inputs = [
            slot
            for leaf, slot in zip(circuit.leaves, circuit.leaf_slots, strict=True)
            if leaf.kind == "input"
        ]
        keys = dict(self._constants_of(circuit))
        keys.update((-slot, key) for slot, key in zip(inputs, given, strict=True))
        name = frame.circuit.names.get(made[0])
        prefix = f"{frame.prefix}{name}/" if name and frame.is_named else ""
        return _Frame(circuit, bool(prefix), prefix, made, keys)

    def _constants_of(self, circuit: Circuit) -> dict[int, int]:
        """Keys of a circuit's constants, which are stored once for all of its uses."""
        known = self._constants.get(id(circuit))
        if known is None:
            known = self._constants[id(circuit)] = {}
            for leaf, slot in zip(circuit.leaves, circuit.leaf_slots, strict=True):
                if leaf.kind == "constant":
                    known[-slot] = self._circuit.add_leaf(leaf)
        return known

    def _finish(self, frame: _Frame, around: _Frame) -> None:
        results = [keys[0] for keys in frame.circuit.outputs.values()]
        for key, result in zip(frame.outputs, results, strict=True):
            around.keys[key] = frame.keys[result]
        self._name(around, frame.outputs)

    def _name(self, frame: _Frame, made: list[int]) -> None:
        """Gives what a node yields its names; the name of a use goes before one inside of it."""
        for key in made:
            name, value = frame.circuit.names.get(key), frame.keys[key]
            path = f"{frame.prefix}{name}"
            if not name or value < 0 or not frame.is_named or path in self._circuit.taken:
                continue
            if frame.prefix and path in self._own_names:
                continue
            before = self._circuit.names.get(value)
            if before is not None:
                self._circuit.taken.discard(before)
            self._circuit.take(path)
            self._circuit.names[value] = path
