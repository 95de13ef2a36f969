"""Compares modules' own gradients with finite differences of what is inside of them.

A module is taken out of its graph, with the values that one of its uses has at a point, and raised
to float64. The scalar that is differentiated is the sum of its outputs times random seeds.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from gradwire import columns, tensors
from gradwire.builder import Graph, Leaf, Module
from gradwire.builder.circuit import Circuit
from gradwire.builder.rows import Row
from gradwire.builder.shared import Shared
from gradwire.connection import Connection
from gradwire.errors import GradwireError

#: Inputs with more elements are compared along random directions; where one differs, the element
#: that differs most is looked for.
MOST_ELEMENTS = 64
DIRECTIONS = 4

_MOST_VISITED = 100_000  # uses that are looked at
_STEPS = 8e-6, -8e-6, 1e-6, -1e-6
_RELATIVE = 1e-5  # what own gradients and differences may differ by
_APART = 1e-2  # what differences of smooth functions may differ by among themselves
_ROWS_ELEMENTS = 1 << 22  # of outputs, that one call yields
_EPSILON = float(np.finfo("float64").eps)
_FLOAT64 = tensors.data_type("float64")
_NARROW = tuple(dtype for dtype in tensors.FLOATS if dtype != "float64")

_Arrays = dict[str, tensors.Array]
#: Places of an input, flat, and how far each moves.
_Line = tuple[tensors.Array, tensors.Array]


@dataclass(frozen=True)
class GradientFinding:
    """Where a module's own gradient is wrong, or cannot be judged, such as at a kink."""

    module: str
    use: str  # its path, or where it has none the id of its first value
    input: str
    element: tuple[int, ...] | None  # None: all of the input, or the whole use
    own: float
    difference: float
    reason: str  # why it cannot be judged; empty where it is wrong

    @property
    def is_wrong(self) -> bool:
        return not self.reason

    def __str__(self) -> str:
        place = f"module {self.module!r}, use {self.use!r}"
        if self.input:
            where = list(self.element) if self.element else ""
            place += f", input {self.input!r}{where}"
        if self.is_wrong:
            return (
                f"{place}: its own gradient is {self.own:.9g} but the finite difference is "
                f"{self.difference:.9g}"
            )
        return f"{place}: cannot be judged: {self.reason}"


@dataclass
class Report:
    """What was found of one module."""

    module: str
    uses: int  # that there are
    checked: int = 0
    compared: int = 0  # elements and directions
    findings: list[GradientFinding] = field(default_factory=list)


def check_gradients(
    graph: Graph,
    inputs: Mapping[str, Any] | None = None,
    *,
    server: Connection,
    uses: int = 20,
    seed: int = 0,
) -> Iterator[Report]:
    """A report for each module with its own gradient, at a point, of so many of its uses."""
    own = {
        number: Report(module.name, 0)
        for number, module in enumerate(graph.modules)
        if module.gradient is not None
    }
    counts = _use_counts(graph)
    for number, report in own.items():
        report.uses = counts[number]
    found = _first_uses(graph, {number: min(uses, counts[number]) for number in own})
    ids = sorted({each for use in found for each in use.inputs if isinstance(each, int)})
    values: dict[int, Any] = {}
    if ids:
        values = server.evaluate(graph, inputs, values=ids, forward_only=True).node_values
    chance = np.random.default_rng(seed)
    for number, report in own.items():
        for use in (use for use in found if use.module == number):
            given = [values[each] if isinstance(each, int) else each for each in use.inputs]
            _check_use(report, graph, use, given, server, chance)
        yield report


class _Use(NamedTuple):
    """A use of a module; its inputs are ids, or constants."""

    name: str
    module: int
    inputs: list[int | tensors.Array]


@dataclass
class _Frame:
    """A circuit that is being walked through, where its values are, and its inputs."""

    circuit: Circuit
    places: columns.Places | None  # of the outermost
    path: str
    shift: int  # ids of its nodes' values are their keys and this
    inside: int  # id of the first value inside of its next use
    inputs: list[int | tensors.Array]
    nodes: Iterator[tuple[int, int, list[int]]]


def _use_counts(graph: Graph) -> Counter[int]:
    """How often each module is used, those inside of others too."""
    counts = Counter(module for module, _, _ in _uses_in(graph._circuit))
    for number, module in reversed([*enumerate(graph.modules)]):
        if times := counts[number]:
            for inner, _, _ in _uses_in(module.circuit._circuit):
                counts[inner] += times
    return counts


def _uses_in(circuit: Circuit) -> Iterator[tuple[int, int, list[int]]]:
    """Uses of modules: module, key of the first value, keys of the inputs."""
    start = 0
    for number, first in zip(circuit.node_rows, circuit.node_firsts, strict=True):
        row = circuit.table.rows[number]
        if row.module is not None:
            yield row.module, first, circuit.node_inputs[start : start + row.inputs].tolist()
        start += row.inputs


def _first_uses(graph: Graph, wanted: dict[int, int]) -> list[_Use]:
    """As many uses of each module as are wanted, outer before inner ones."""
    found: list[_Use] = []
    left = Counter(wanted)
    own = graph._circuit
    places = own.places()
    waiting = [_Frame(own, places, "", places.shift, own.own_count + 1, [], _uses_in(own))]
    for _ in range(_MOST_VISITED):
        while waiting and (node := next(waiting[-1].nodes, None)) is None:
            waiting.pop()
        if not waiting or node is None or not +left:
            break
        module, first, keys = node
        frame = waiting[-1]
        name = frame.circuit.names.get(first, "")
        if frame.places is None:
            name = f"{frame.path}/{name}" if frame.path and name else ""
        inputs = [_source(frame, key) for key in keys]
        if left[module] > 0:
            left[module] -= 1
            found.append(_Use(name or f"%{first + frame.shift}", module, inputs))
        circuit, values = graph.modules[module].circuit._circuit, graph._shared.uses[module]
        waiting.append(
            _Frame(
                circuit,
                None,
                name,
                frame.inside - 1,
                frame.inside + values.values,
                inputs,
                _uses_in(circuit),
            )
        )
        frame.inside += values.count
    return found


def _source(frame: _Frame, key: int) -> int | tensors.Array:
    """What an input of a node is: a value by id, or a constant."""
    circuit = frame.circuit
    if key > 0:
        return key + frame.shift
    position = bisect_right(circuit.leaf_slots, -key) - 1
    leaf = circuit.leaves[position]
    if leaf.kind == "constant" and leaf.value is not None:
        element = -key - circuit.leaf_slots[position]
        return leaf.value.reshape(-1)[element] if leaf.elements else leaf.value
    if frame.places is not None:
        return int(frame.places.ids([key])[0])
    number = sum(each.kind == "input" for each in circuit.leaves[:position])
    return frame.inputs[number]


def _check_use(
    report: Report,
    graph: Graph,
    use: _Use,
    given: Sequence[Any],
    server: Connection,
    chance: np.random.Generator,
) -> None:
    """Adds what is found of one use to the report of its module."""
    module = graph.modules[use.module]
    arrays = {
        name: _raised(np.asarray(each)) for name, each in zip(module.inputs, given, strict=True)
    }
    check = _Check(server, _alone(graph, use.module, arrays), arrays, chance)
    report.checked += 1
    try:
        check.prepare()
        for name in _differentiated(module, arrays):
            compared = check.compare(name)
            report.compared += len(compared)
            for each in compared:
                if each.verdict is not None:
                    finding = GradientFinding(
                        module.name, use.name, name, each.element, each.own, each.difference,
                        each.verdict,
                    )  # fmt: skip
                    report.findings.append(finding)
    except GradwireError as error:
        reason = f"the server refuses the module by itself: {error.message}"
        nothing = float("nan")
        report.findings.append(
            GradientFinding(module.name, use.name, "", None, nothing, nothing, reason)
        )


def _differentiated(module: Module, arrays: _Arrays) -> list[str]:
    """Inputs for which the module's own gradient has a value."""
    assert module.gradient is not None
    given = zip(module.inputs, module.gradient._circuit.outputs.values(), strict=True)
    return [name for name, keys in given if keys and str(arrays[name].dtype) in tensors.FLOATS]


class _Compared(NamedTuple):
    """One element, or direction; no verdict where both agree, an empty one where they do not."""

    own: float
    difference: float
    verdict: str | None = None
    excess: float = 0.0  # how far beyond what is allowed they differ
    element: tuple[int, ...] | None = None


class _Check:
    """One module by itself, at one point."""

    def __init__(
        self, server: Connection, graph: Graph, arrays: _Arrays, chance: np.random.Generator
    ) -> None:
        self._server = server
        self._graph = graph
        self._point = arrays
        self._chance = chance
        self._seeds: _Arrays = {}
        self._own: _Arrays = {}

    def prepare(self) -> None:
        """Evaluates the module and its own gradient."""
        outputs = self._server.evaluate(self._graph, self._point, forward_only=True).outputs
        for name, array in outputs.items():
            signs = self._chance.choice([-1.0, 1.0], array.shape)
            self._seeds[name] = signs * self._chance.uniform(0.5, 1.5, array.shape)
        self._own = self._server.evaluate(self._graph, self._point, seeds=self._seeds).gradients

    def compare(self, name: str) -> list[_Compared]:
        """Every element of an input; or of a large one directions, and an element that is wrong."""
        x = self._point[name]
        if x.size <= MOST_ELEMENTS:
            return self._judged(
                name, [(each, np.array([1.0])) for each in np.arange(x.size)[:, None]]
            )
        everything = np.arange(x.size)
        found: list[_Compared] = []
        for _ in range(DIRECTIONS):
            direction = self._chance.choice([-1.0, 1.0], x.size)
            (judged,) = self._judged(name, [(everything, direction)])
            if judged.verdict == "":
                judged = self._narrowed(name, everything, direction) or judged
            if judged.element is None or judged.element not in {each.element for each in found}:
                found.append(judged)
        return found

    def _narrowed(
        self, name: str, places: tensors.Array, direction: tensors.Array
    ) -> _Compared | None:
        """The element that differs most, by halves; None where they lead to none."""
        while places.size > 1:
            middle = places.size // 2
            halves = [
                (places[part], direction[part]) for part in (slice(middle), slice(middle, None))
            ]
            judged = self._judged(name, halves)
            worse = int(judged[1].excess > judged[0].excess)
            if judged[worse].excess <= 0:
                return None
            places, direction = halves[worse]
        (found,) = self._judged(name, [(places, np.array([1.0]))])
        return found if found.verdict == "" else None

    def _judged(self, name: str, lines: Sequence[_Line]) -> list[_Compared]:
        """Own gradients along lines, which move some places of an input, beside differences."""
        found = self._along(name, lines, lambda x: np.maximum(np.abs(x), 1.0))
        for number, each in enumerate(found):
            places, _ = lines[number]
            small = np.abs(self._point[name].reshape(-1)[places])
            if each.verdict is not None and (small > 0).all() and (small < 0.1).any():
                (again,) = self._along(name, [lines[number]], np.abs)  # near a pole, say
                found[number] = again if again.verdict is None or each.verdict else each
        return found

    def _along(
        self, name: str, lines: Sequence[_Line], scale: Callable[[tensors.Array], tensors.Array]
    ) -> list[_Compared]:
        """The same with steps in proportion to a scale of the places."""
        x = self._point[name]
        flat, own = x.reshape(-1), np.asarray(self._own[name], np.float64).reshape(-1)
        size = sum(seed.size for seed in self._seeds.values())
        at_once = max(1, _ROWS_ELEMENTS // (len(_STEPS) * max(size, x.size)))
        found = []
        for start in range(0, len(lines), at_once):
            some = [(places, by * scale(flat[places])) for places, by in lines[start:][:at_once]]
            moved = np.repeat(flat.reshape(1, -1), 1 + len(_STEPS) * len(some), axis=0)
            for number, (places, by) in enumerate(some):
                for place, step in enumerate(_STEPS, 1 + len(_STEPS) * number):
                    moved[place, places] += step * by
            changes, sizes = self._changes(name, moved.reshape(-1, *x.shape))
            for number, (places, by) in enumerate(some):
                rows = slice(len(_STEPS) * number, len(_STEPS) * (number + 1))
                judged = _judge(float(own[places] @ by), changes[rows], float(sizes[rows].max()))
                if places.size == 1:  # by the place, not by the step
                    where = tuple(int(each) for each in np.unravel_index(places[0], x.shape))
                    judged = judged._replace(
                        element=where,
                        own=judged.own / float(by[0]),
                        difference=judged.difference / float(by[0]),
                    )
                found.append(judged)
        return found

    def _changes(self, name: str, rows: tensors.Array) -> tuple[tensors.Array, tensors.Array]:
        """How the scalar changes from the first row to each other; the size of what changes."""
        point = self._point | {name: rows}
        outputs = self._server.evaluate(
            self._graph, point, batched=[name], forward_only=True
        ).outputs
        changes, sizes = np.zeros(len(rows) - 1), np.zeros(len(rows) - 1)
        with np.errstate(invalid="ignore"):
            for label, array in outputs.items():
                seeds = self._seeds[label].reshape(1, -1)
                flat = np.asarray(array, np.float64).reshape(len(rows), -1)
                steps = flat[1:] - flat[:1]
                changes += (steps * seeds).sum(1)
                # what changes may be rounded often on the way, what does not at least once
                sizes += (np.abs(flat[1:] * seeds) * np.where(steps, 64.0, 2.0)).sum(1)
        return changes, sizes


def _judge(own: float, changes: tensors.Array, size: float) -> _Compared:
    """Compares with central differences at two steps; one-sided ones tell kinks."""
    steps = _STEPS[0], _STEPS[2]
    ahead = [float(changes[0]) / steps[0], float(changes[2]) / steps[1]]
    behind = [-float(changes[1]) / steps[0], -float(changes[3]) / steps[1]]
    central = [(first + second) / 2 for first, second in zip(ahead, behind, strict=True)]
    if not np.isfinite(changes).all():
        return _Compared(own, central[1], "what is inside is not finite near there")
    noise = [_EPSILON * size / step for step in steps]
    largest = max(abs(own), abs(central[1]))
    excess = min(
        abs(own - each) - _RELATIVE * largest - rounding
        for each, rounding in zip(central, noise, strict=True)
    )
    if excess <= 0:
        return _Compared(own, central[1])
    apart = [abs(first - second) for first, second in zip(ahead, behind, strict=True)]
    verdict = ""
    if apart[1] > apart[0] / 2 and apart[1] > _APART * abs(central[1]) + noise[1]:
        verdict = f"there is a kink: one-sided differences are {behind[1]:.6g} and {ahead[1]:.6g}"
    elif abs(central[0] - central[1]) > _APART * abs(central[1]) + noise[1]:
        verdict = f"differences do not settle: {central[0]:.6g} and {central[1]:.6g}"
    return _Compared(own, central[1], verdict, excess)


def _alone(graph: Graph, number: int, arrays: _Arrays) -> Graph:
    """A graph that uses one module, on inputs like these, in float64."""
    kept = _reachable(graph, number)
    renumbered = {each: place for place, each in enumerate(kept)}
    found = Graph()
    for row in graph._shared.table.rows:
        module = None if row.module is None else renumbered.get(row.module, -1)
        found._shared.table.add(_raised_row(row._replace(module=module)))
    for each in map(graph.modules.__getitem__, kept):
        circuit = _copied(each.circuit, found._shared)
        gradient = None if each.gradient is None else _copied(each.gradient, found._shared)
        found._shared.add_module(Module(each.name, circuit, gradient))
    handles = [found.input(name, array.shape, str(array.dtype)) for name, array in arrays.items()]
    outputs = graph.modules[number].circuit.outputs
    made = found.apply_module(renumbered[number], handles, ["float64"] * len(outputs))
    for name, handle in zip(outputs, made, strict=True):
        found.output(name, handle)
    return found


def _reachable(graph: Graph, number: int) -> list[int]:
    """A module and those that it uses, in order."""
    found, waiting = {number}, [number]
    while waiting:
        for circuit in graph.modules[waiting.pop()].circuits:
            inner = {module for module, _, _ in _uses_in(circuit._circuit)} - found
            found |= inner
            waiting += inner
    return sorted(found)


def _copied(circuit: Graph, shared: Shared) -> Graph:
    """A circuit of another graph that has the same gates table, in float64."""
    found = shared.circuit(circuit._module)
    into, source = found._circuit, circuit._circuit
    for leaf in source.leaves:
        into.add_leaf(_raised_leaf(leaf))
    into.node_rows = source.node_rows
    into.node_inputs = source.node_inputs
    into.node_firsts = source.node_firsts
    into.value_count = source.value_count
    into.outputs = source.outputs
    return found


def _raised(array: tensors.Array) -> tensors.Array:
    return array.astype(np.float64) if str(array.dtype) in _NARROW else array


def _raised_leaf(leaf: Leaf) -> Leaf:
    if leaf.dtype not in _NARROW or leaf.value is None:
        return leaf
    return Leaf(leaf.kind, leaf.name, "float64", leaf.axes, leaf.elements, _raised(leaf.value))


def _raised_row(row: Row) -> Row:
    """Where it says a floating data type, such as Cast does, float64."""
    attributes = dict(row.attributes)
    for name, value in attributes.items():
        if isinstance(value, np.ndarray):
            attributes[name] = _raised(value)
        elif name in ("to", "dtype", "output_datatype") and value in map(
            tensors.data_type, _NARROW
        ):
            attributes[name] = int(_FLOAT64)
    return row._replace(attributes=attributes)
