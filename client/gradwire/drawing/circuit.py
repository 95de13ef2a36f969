"""What is drawn of a graph: boxes with pins, and wires between them; no numbers, no places."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

from gradwire.builder import Graph, Leaf, Node
from gradwire.drawing.opened import (
    ALL,
    SEPARATOR,
    Choice,
    Opened,
    Path,
    gate_count,
    opened,
    path_of,
)
from gradwire.drawing.opened import around as uses_around
from gradwire.errors import InvalidRequestError, LimitError, nearest
from gradwire.figures import figure

#: More than this tells nobody anything, and takes long to lay out.
MOST_GATES = 2_000
MOST_WIRES = 8_000
_MOST_BOXES = 2 * MOST_GATES  # leaves and outputs too
_MOST_VALUES = 5_000_000  # of which most are not drawn

#: What is in the gates of well-known operators; others have their names.
SYMBOLS = {
    "Abs": "|x|",
    "Acos": "acos",
    "Add": "+",
    "And": "and",
    "Asin": "asin",
    "Atan": "atan",
    "Cos": "cos",
    "Cosh": "cosh",
    "Div": "÷",
    "Equal": "=",
    "Exp": "exp",
    "Greater": ">",
    "GreaterOrEqual": "≥",
    "Less": "<",
    "LessOrEqual": "≤",
    "Log": "ln",
    "Max": "max",
    "Min": "min",
    "Mul": "×",
    "Neg": "×−1",
    "Not": "not",
    "Or": "or",
    "Pow": "x^y",
    "Reciprocal": "1/x",
    "ReduceSum": "Σ",
    "Sigmoid": "σ",
    "Sin": "sin",
    "Sinh": "sinh",
    "Sqrt": "√",
    "Sub": "−",
    "Sum": "+",
    "Tan": "tan",
    "Tanh": "tanh",
}
#: How a constant operand is written into a gate, by operator and slot.
_FOLDED: dict[tuple[str, int], Callable[[str], str]] = {
    ("Add", 0): "+{}".format,
    ("Add", 1): "+{}".format,
    ("Sub", 0): "{}−".format,
    ("Sub", 1): "−{}".format,
    ("Mul", 0): "×{}".format,
    ("Mul", 1): "×{}".format,
    ("Div", 0): "{}÷".format,
    ("Div", 1): "÷{}".format,
    ("Pow", 0): "{}^x".format,
    ("Pow", 1): lambda text: {"2": "x²", "3": "x³"}.get(text, f"x^{text}"),
}


class Use(NamedTuple):
    """A wire into a box: which value, and which input of which node it is."""

    value_id: int
    node: int = -1  # none: the name of an output, several nodes in one box
    slot: int = 0


@dataclass(frozen=True)
class Box:
    """A gate, a leaf, the name of an output, a collapsed module, or an edge of an open one."""

    #: gate, input, parameter, constant, output, module; edge: of an open module with its own
    #: gradient; cut: a gate that is not drawn
    kind: str
    title: str
    name: str
    operator: str
    path: Path
    uses: tuple[Use, ...]
    value_ids: tuple[int, ...]  # of the wires out
    subtitle: str = ""


class Wire(NamedTuple):
    """From a pin of a box to a slot of another, by their numbers."""

    source: int
    pin: int
    target: int
    slot: int


@dataclass(frozen=True)
class Circuit:
    """Boxes and wires, and the modules that are drawn around boxes, with their labels."""

    boxes: tuple[Box, ...]
    wires: tuple[Wire, ...]
    modules: Mapping[Path, tuple[str, ...]]  # outermost first
    opened: Opened


def circuit_of(
    graph: Graph,
    collapse: Iterable[str] = (),
    keep_open: Iterable[str] = (),
    around: str | None = None,
    radius: int = 3,
    most_gates: int = MOST_GATES,
) -> Circuit:
    """The circuit of a graph, with the modules named in `collapse` as one box each.

    "/" stands for all modules; those in `keep_open` stay open. Where nothing is said and a graph
    has more gates than may be drawn, all are collapsed. With `around`, only gates up to `radius`
    wires from the value of that name, such as "f" or "layer1/scores", or id, such as "%12".
    LIMIT_EXCEEDED where more would be drawn than anybody can read; NAME_INVALID for a module that
    is not there, VALUE_UNKNOWN for such a value.
    """
    collapse, keep_open = tuple(collapse), tuple(keep_open)
    _require(graph.value_count - graph.inside_count, "values", _MOST_VALUES, ())
    gates = gate_count(graph)
    is_large = gates > most_gates
    if is_large and not collapse and around is None:
        if not graph.modules and not any(map(path_of, graph.ids_by_name())):
            _require(gates, "gates", most_gates, ())
        collapse = (ALL,)
    centre = None if around is None else _value_of(graph, around)
    near = dict(() if centre is None else uses_around(graph, centre))
    only_uses = near if is_large and centre is not None else None
    choice = Choice(collapse, [*keep_open, *near.values()], only_uses)
    nodes = opened(graph, choice)
    _require_modules(nodes, (*collapse, *keep_open))
    drawn: Collection[int] = range(len(nodes.nodes))
    if centre is not None:
        drawn = _near(nodes, near, centre, radius, most_gates)
    return _Builder(nodes, drawn, choice, most_gates).circuit()


class _Builder:
    """Makes boxes, leaves first; then wires, once boxes are there."""

    def __init__(
        self, found: Opened, drawn: Collection[int], choice: Choice, most_gates: int
    ) -> None:
        self._opened = found
        self._nodes = found.nodes
        self._paths = found.paths
        self._names = found.names
        self._drawn = drawn
        self._choice = choice
        self._most_gates = most_gates
        self._outputs = found.output_ids
        self._leaves = list(found.graph.leaves)
        self._leaf_count = sum(leaf.id_count for leaf in self._leaves)
        self._boxes: list[Box] = []
        self._sources: dict[int, tuple[int, int]] = {}  # box and pin of each value
        self._constants = dict(found.constants)
        self._absorbed: set[int] = set()  # leaves inside collapsed modules

    def circuit(self) -> Circuit:
        self._add_leaves()
        self._add_nodes()
        for name, ids in self._outputs.items():
            known = self._sources.keys() | self._constants.keys()
            if uses := tuple(Use(value_id) for value_id in ids if value_id in known):
                self._add(Box("output", name, name, "output", (), uses, ()))
        self._require(sum(len(box.uses) for box in self._boxes), "wires", MOST_WIRES)
        wires = [
            Wire(*self._source(use, box.path), target, slot)
            for target, box in enumerate(tuple(self._boxes))
            for slot, use in enumerate(box.uses)
        ]
        return Circuit(tuple(self._boxes), tuple(wires), self._frames(), self._opened)

    def _frames(self) -> dict[Path, tuple[str, ...]]:
        """Labels of the modules around boxes, outermost first."""
        counts: dict[Path, int] = defaultdict(int)
        uses: set[Path] = set()
        for box in self._boxes:
            for end in range(1, len(box.path) + 1):
                path = box.path[:end]
                counts[path] += box.kind in ("gate", "module")
                if path in self._opened.modules and box.kind in ("gate", "module", "edge"):
                    uses.add(path)
        # a box around one gate says no more than the gate's own name
        around = uses | {path for path, gates in counts.items() if gates > 1}
        return {path: self._opened.label(path) for path in sorted(around)}

    def _collapsed(self, path: Path) -> Path:
        """The outermost collapsed module of a path, or ()."""
        closed = path if path in self._opened.closed else ()
        return self._choice.outermost(path) or closed

    def _add_leaves(self) -> None:
        """Boxes of all leaves, or of those that what is drawn uses."""
        firsts = [1, *accumulate((leaf.id_count for leaf in self._leaves), initial=1)][1:]
        users = self._modules_using_leaves()
        is_whole = len(self._drawn) == len(self._nodes)
        for value_id in range(1, self._leaf_count + 1) if is_whole else sorted(users):
            position = bisect_right(firsts, value_id) - 1
            leaf, element = self._leaves[position], value_id - firsts[position]
            module = self._collapsed(path_of(leaf.name))
            if leaf.kind == "constant" and leaf.value is not None:
                one = slice(element, element + 1)
                self._constants[value_id] = (
                    leaf.value.reshape(-1)[one] if leaf.elements else leaf.value
                )
            elif module and users.get(value_id) == {module}:
                self._absorbed.add(value_id)
            else:
                self._sources[value_id] = len(self._boxes), 0
                self._add(self._leaf(leaf, element, value_id))

    def _modules_using_leaves(self) -> dict[int, set[Path]]:
        """Collapsed modules in which each leaf is used; () stands for none."""
        found: dict[int, set[Path]] = defaultdict(set)
        for number in self._drawn:
            for value_id in self._nodes[number].inputs:
                if 0 < value_id <= self._leaf_count:
                    found[value_id].add(self._collapsed(self._paths[number]))
        for value_id in (each for ids in self._outputs.values() for each in ids):
            if value_id in found:
                found[value_id].add(())
        return found

    def _leaf(self, leaf: Leaf, element: int, value_id: int) -> Box:
        path = path_of(leaf.name)
        name = f"{leaf.name}[{element}]" if leaf.elements else leaf.name
        title = name.strip("/").removeprefix("/".join(path) + "/") if path else name
        return Box(leaf.kind, title, name, leaf.kind, path, (), (value_id,))

    def _add_nodes(self) -> None:
        members: dict[int | Path, list[int]] = defaultdict(list)
        for number in self._drawn:
            members[self._collapsed(self._paths[number]) or number].append(number)
        gates = [key for key in members if isinstance(key, tuple) or self._opened.is_gate(key)]
        self._require(len(gates), "gates", self._most_gates)
        used_outside = self._values_used_outside()
        for key, numbers in members.items():
            if isinstance(key, int):
                box = self._gate(key) if self._opened.is_gate(key) else self._edge(key)
            elif self._is_use(key, numbers):
                box = self._closed_use(key, numbers[0])
            else:
                box = self._collapsed_module(key, numbers, used_outside[key])
            for pin, value_id in enumerate(box.value_ids):
                self._sources[value_id] = len(self._boxes), pin
            self._add(box)

    def _gate(self, number: int) -> Box:
        node, path = self._nodes[number], self._paths[number]
        title, folded = self._title(node)
        uses = tuple(
            Use(value_id, number, slot)
            for slot, value_id in enumerate(node.inputs)
            if value_id and slot != folded
        )
        first = node.outputs[0] if node.outputs else 0
        name = self._names.get(first, f"%{first}")
        return Box("gate", title, name, node.operator, path, uses, tuple(node.outputs))

    def _title(self, node: Node) -> tuple[str, int | None]:
        """What is in the gate, and which constant operand that includes."""
        for slot in (1, 0):
            write = _FOLDED.get((node.operator, slot))
            value = self._constants.get(node.inputs[slot]) if write else None
            if not write or value is None or value.size != 1:
                continue
            text = figure(value.reshape(())).text
            if text.startswith("-") and node.operator in ("Add", "Sub") and slot == 1:
                return ("−" if node.operator == "Add" else "+") + text[1:], slot
            return write(text), slot
        return SYMBOLS.get(node.operator, node.operator), None

    def _edge(self, number: int) -> Box:
        """Where gradients enter a module with its own, or leave it."""
        node, path = self._nodes[number], self._paths[number]
        uses = tuple(Use(each, number, slot) for slot, each in enumerate(node.inputs))
        about = f"{node.operator} of {SEPARATOR.join(self._opened.label(path))}"
        return Box("edge", "", "/".join(path), about, path, uses, tuple(node.outputs))

    def _is_use(self, path: Path, numbers: list[int]) -> bool:
        """Whether a collapsed module is one use of one of the contract's."""
        first = numbers[0]
        return (
            len(numbers) == 1
            and self._nodes[first].module is not None
            and self._paths[first] == path
        )

    def _closed_use(self, path: Path, number: int) -> Box:
        """A use of a module, which like a gate has a slot for each input."""
        node = self._nodes[number]
        uses = tuple(
            Use(each, number, slot)
            for slot, each in enumerate(node.inputs)
            if each not in self._absorbed
        )
        return self._module(path, [number], uses, tuple(node.outputs))

    def _module(
        self, path: Path, numbers: list[int], uses: tuple[Use, ...], value_ids: tuple[int, ...]
    ) -> Box:
        title, *rest = self._opened.label(path)
        gates = sum(map(self._opened.gates_of, numbers))
        about = ", ".join([*rest, f"{gates} gates, collapsed"])
        name, subtitle = "/".join(path), SEPARATOR.join(rest)
        return Box("module", title, name, about, path[:-1], uses, value_ids, subtitle)

    def _values_used_outside(self) -> dict[Path, set[int]]:
        """Values that are made in each collapsed module, and used outside of it."""
        modules = [self._collapsed(path) for path in self._paths]
        maker = {
            value_id: module
            for node, module in zip(self._nodes, modules, strict=True)
            for value_id in node.outputs
        }
        found: dict[Path, set[int]] = defaultdict(set)
        for node, module in zip(self._nodes, modules, strict=True):
            for value_id in node.inputs:
                if maker.get(value_id, module) != module:
                    found[maker[value_id]].add(value_id)
        for value_id in (each for ids in self._outputs.values() for each in ids):
            found[maker.get(value_id, ())].add(value_id)
        return found

    def _collapsed_module(self, path: Path, numbers: list[int], pins: set[int]) -> Box:
        inside = {value_id for number in numbers for value_id in self._nodes[number].outputs}
        inside |= self._absorbed | self._constants.keys()
        uses: dict[int, Use] = {}
        for number in numbers:
            for value_id in self._nodes[number].inputs:
                if value_id and value_id not in inside:
                    uses.setdefault(value_id, Use(value_id))
        return self._module(path, numbers, (*uses.values(),), (*sorted(pins),))

    def _source(self, use: Use, path: Path) -> tuple[int, int]:
        """Box and pin of a value; a constant has a box at every use, since its wires cross all."""
        value_id = use.value_id
        if value_id in self._sources:
            return self._sources[value_id]
        pin = len(self._boxes), 0
        if value_id in self._constants:
            self._add(Box("constant", "", "constant", "constant", path, (), (value_id,)))
        else:
            name = self._names.get(value_id, f"%{value_id}")
            self._add(Box("cut", "…", name, "what yields it is not drawn", (), (), (value_id,)))
            self._sources[value_id] = pin
        return pin

    def _add(self, box: Box) -> None:
        self._require(len(self._boxes) + 1, "boxes", _MOST_BOXES)
        self._boxes.append(box)

    def _require(self, count: int, what: str, limit: int) -> None:
        if count > limit:
            known = _modules(self._opened)
            _require(count, what, limit, [path for path in known if not self._collapsed(path)])


def _modules(found: Opened) -> set[Path]:
    """Paths of all modules, by name or of the contract."""
    paths = {*found.paths, *found.modules, *(path_of(leaf.name) for leaf in found.graph.leaves)}
    return {path[:end] for path in paths for end in range(1, len(path) + 1)}


def _require_modules(found: Opened, names: Iterable[str]) -> None:
    """NAME_INVALID for one that is not there."""
    given = [name for name in names if name != ALL]
    known = {"/".join(path) for path in _modules(found)} if given else set()
    for name in given:
        path = name.strip("/")
        if path not in known and found.graph.find_module(path) is None:
            raise InvalidRequestError(
                "NAME_INVALID", f"there is no module {name!r} to draw{nearest(name, known)}"
            )


def _value_of(graph: Graph, name: str) -> int:
    """The id of a value by its name, path, that of an output, or "%" and the id (VALUE_UNKNOWN)."""
    ids = {key: each[0] for key, each in graph.output_ids().items()}
    ids |= {key: each[0] for key, each in graph.ids_by_name().items() if len(each)}
    if name in ids:
        return ids[name]
    if (inside := graph.find(name)) is not None:
        return inside[0]
    if re.fullmatch("%[0-9]{1,10}", name) and 1 <= int(name[1:]) <= graph.value_count:
        return int(name[1:])
    raise InvalidRequestError(
        "VALUE_UNKNOWN", f"there is no value {name!r} to draw around{nearest(name, ids)}"
    )


def _near(
    found: Opened, uses: Iterable[int], value_id: int, radius: int, most_gates: int
) -> list[int]:
    """Nodes that are at most `radius` wires from a value, in both directions.

    `uses`: what the uses of modules that it is inside of yield; a closed one stands for it.
    """
    nodes = found.nodes
    makers = {each: number for number, node in enumerate(nodes) for each in node.outputs}
    users: dict[int, list[int]] = defaultdict(list)
    for number, node in enumerate(nodes):
        for each in node.inputs:
            users[each].append(number)
    centre = found.aliases.get(value_id, value_id)
    if centre not in makers:
        centre = next((each for each in uses if each in makers), centre)
    edge = {makers[centre]} if centre in makers else set(users[centre])
    reached = set(edge)
    for _ in range(radius if centre in makers else radius - 1):
        before = {
            makers[each] for number in edge for each in nodes[number].inputs if each in makers
        }
        behind = {user for number in edge for each in nodes[number].outputs for user in users[each]}
        edge = (before | behind) - reached
        reached |= edge
        if len(reached) > most_gates:
            break  # which is refused by its number
    return sorted(reached)


def _require(count: int, what: str, limit: int, modules: Iterable[Path]) -> None:
    """LIMIT_EXCEEDED, with what to do."""
    if count <= limit:
        return
    advice = "gradwire eval --json has the numbers"
    if names := sorted({path[0] for path in modules if path}):
        shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
        advice = f"collapse modules (--collapse / for all; there are {shown})"
    elif what != "values":
        advice = "draw a part of it (--around NAME)"
    raise LimitError(
        "LIMIT_EXCEEDED", f"the picture would have {count} {what}, over {limit}; {advice}"
    )
