"""What is drawn of a graph: boxes with pins, and wires between them; no numbers, no places."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

from gradwire.builder import Graph, Leaf, Node
from gradwire.errors import InvalidRequestError, LimitError, nearest
from gradwire.figures import figure
from gradwire.tensors import Array

#: More than this tells nobody anything, and takes long to lay out.
MOST_GATES = 2_000
MOST_WIRES = 8_000
_MOST_BOXES = 2 * MOST_GATES  # leaves and outputs too
_MOST_VALUES = 5_000_000  # of which most are not drawn
_DEEPEST = 16  # segments of a name that is a path

Path = tuple[str, ...]

_SEGMENT = re.compile(r"[A-Za-z_][\w.:-]*")
_ALL = "/"

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
    node: int = -1  # none: the name of an output
    slot: int = 0


@dataclass(frozen=True)
class Box:
    """A gate, a leaf, the name of an output, or a collapsed module."""

    kind: str  # gate, input, parameter, constant, output, module; cut: a gate that is not drawn
    title: str
    name: str
    operator: str
    path: Path
    uses: tuple[Use, ...]
    value_ids: tuple[int, ...]  # of the wires out


class Wire(NamedTuple):
    """From a pin of a box to a slot of another, by their numbers."""

    source: int
    pin: int
    target: int
    slot: int


@dataclass(frozen=True)
class Circuit:
    """Boxes and wires, and the modules that are drawn around boxes."""

    boxes: tuple[Box, ...]
    wires: tuple[Wire, ...]
    modules: tuple[Path, ...]


def circuit_of(
    graph: Graph,
    collapse: Iterable[str] = (),
    keep_open: Iterable[str] = (),
    around: str | None = None,
    radius: int = 3,
) -> Circuit:
    """The circuit of a graph, with the modules named in `collapse` as one box each.

    "/" stands for all modules; those in `keep_open` stay open. With `around`, only gates up to
    `radius` wires from the value of that name, such as "f", or id, such as "%12". LIMIT_EXCEEDED
    where more would be drawn than anybody can read; NAME_INVALID for a module that is not there,
    VALUE_UNKNOWN for such a value.
    """
    collapse, keep_open = tuple(collapse), tuple(keep_open)
    _require(graph.value_count, "values", _MOST_VALUES, ())
    if not collapse and around is None:
        modules = {path_of(name) for name in graph.ids_by_name()}
        _require(graph.node_count, "gates", MOST_GATES, modules)
    nodes = list(graph.nodes())
    drawn: Collection[int] = range(len(nodes))
    if around is not None:
        drawn = sorted(_near(nodes, _value_of(graph, around), radius))
    return _Builder(graph, nodes, drawn, collapse, keep_open).circuit()


def path_of(name: str) -> Path:
    """Modules that a value is in, outermost first, told by its name: those before each "/"."""
    segments = name.strip("/").split("/")
    if len(segments) > _DEEPEST or not all(map(_SEGMENT.fullmatch, segments)):
        return ()
    return tuple(segments[:-1])


class _Builder:
    """Finds paths, consumers first; then boxes, leaves first; then wires, once boxes are there."""

    def __init__(
        self,
        graph: Graph,
        nodes: list[Node],
        drawn: Collection[int],
        collapse: tuple[str, ...],
        keep_open: tuple[str, ...],
    ) -> None:
        self._nodes = nodes
        self._drawn = drawn
        self._outputs = graph.output_ids()
        self._leaves = list(graph.leaves)
        self._leaf_count = sum(leaf.id_count for leaf in self._leaves)
        self._names = {ids[0]: name for name, ids in graph.ids_by_name().items() if len(ids) == 1}
        self._boxes: list[Box] = []
        self._sources: dict[int, tuple[int, int]] = {}  # box and pin of each value
        self._constants: dict[int, Array] = {}
        self._absorbed: set[int] = set()  # leaves inside collapsed modules
        self._paths = self._find_paths()
        paths = {*self._paths, *(path_of(leaf.name) for leaf in self._leaves)}
        self._known = {path[:end] for path in paths for end in range(1, len(path) + 1)}
        self._collapsed = self._find_collapsed(collapse, keep_open)

    def circuit(self) -> Circuit:
        self._add_leaves()
        self._add_nodes()
        for name, ids in self._outputs.items():
            known = self._sources.keys() | self._constants.keys()
            if uses := tuple(Use(value_id) for value_id in ids if value_id in known):
                self._add(Box("output", name, name, "output", (), uses, ()))
        _require(sum(len(box.uses) for box in self._boxes), "wires", MOST_WIRES, self._known)
        wires = [
            Wire(*self._source(use, box.path), target, slot)
            for target, box in enumerate(tuple(self._boxes))
            for slot, use in enumerate(box.uses)
        ]
        counts: dict[Path, int] = defaultdict(int)
        for box in self._boxes:
            for end in range(1, len(box.path) + 1):
                counts[box.path[:end]] += box.kind in ("gate", "module")
        # a box around one gate says no more than the gate's own name
        modules = sorted(path for path, gates in counts.items() if gates > 1)
        return Circuit(tuple(self._boxes), tuple(wires), tuple(modules))

    def _find_paths(self) -> list[Path]:
        """Path of every node: by its name; where it has none, that of all that use it."""
        used_in: dict[int, Path] = {}
        found: list[Path] = []
        for node in reversed(self._nodes):
            named = [path_of(self._names[each]) for each in node.outputs if each in self._names]
            users = [used_in[each] for each in node.outputs if each in used_in]
            path = named[0] if named else _common(users)
            found.append(path)
            for each in node.inputs:
                used_in[each] = _common([used_in.get(each, path), path])
        return found[::-1]

    def _find_collapsed(
        self, collapse: tuple[str, ...], keep_open: tuple[str, ...]
    ) -> Callable[[Path], Path]:
        """A function: the outermost collapsed module of a path, or ()."""
        chosen = self._known if _ALL in collapse else set()
        chosen = chosen | {self._module(each) for each in collapse if each != _ALL}
        opened = {self._module(each) for each in keep_open}
        chosen -= {path[:end] for path in opened for end in range(1, len(path) + 1)}

        def collapsed(path: Path) -> Path:
            ends = range(1, len(path) + 1)
            return next((path[:end] for end in ends if path[:end] in chosen), ())

        return collapsed

    def _module(self, name: str) -> Path:
        path = tuple(name.strip("/").split("/"))
        if path not in self._known:
            names = ["/".join(each) for each in self._known]
            raise InvalidRequestError(
                "NAME_INVALID", f"there is no module {name!r} to draw{nearest(name, names)}"
            )
        return path

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
        _require(len(members), "gates", MOST_GATES, self._known)
        used_outside = self._values_used_outside()
        for key, numbers in members.items():
            if isinstance(key, int):
                box = self._gate(key)
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
            for slot, value_id in enumerate(self._nodes[number].inputs):
                if value_id and value_id not in inside:
                    uses.setdefault(value_id, Use(value_id, number, slot))
        name = "/".join(path)
        about = f"{len(numbers)} gates, collapsed"
        return Box("module", path[-1], name, about, path[:-1], (*uses.values(),), (*sorted(pins),))

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
        _require(len(self._boxes) + 1, "boxes", _MOST_BOXES, self._known)
        self._boxes.append(box)


def _value_of(graph: Graph, name: str) -> int:
    """The id of a value by its name, the name of an output, or "%" and the id (VALUE_UNKNOWN)."""
    ids = {key: each[0] for key, each in graph.output_ids().items()}
    ids |= {key: each[0] for key, each in graph.ids_by_name().items() if len(each)}
    if name in ids:
        return ids[name]
    if re.fullmatch("%[0-9]{1,10}", name) and 1 <= int(name[1:]) <= graph.value_count:
        return int(name[1:])
    raise InvalidRequestError(
        "VALUE_UNKNOWN", f"there is no value {name!r} to draw around{nearest(name, ids)}"
    )


def _near(nodes: list[Node], value_id: int, radius: int) -> set[int]:
    """Nodes that are at most `radius` wires from a value, in both directions."""
    makers = {each: number for number, node in enumerate(nodes) for each in node.outputs}
    users: dict[int, list[int]] = defaultdict(list)
    for number, node in enumerate(nodes):
        for each in node.inputs:
            users[each].append(number)
    edge = {makers[value_id]} if value_id in makers else set(users[value_id])
    found = set(edge)
    for _ in range(radius if value_id in makers else radius - 1):
        before = {
            makers[each] for number in edge for each in nodes[number].inputs if each in makers
        }
        behind = {user for number in edge for each in nodes[number].outputs for user in users[each]}
        edge = (before | behind) - found
        found |= edge
        if len(found) > MOST_GATES:
            break  # which is refused by its number
    return found


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


def _common(paths: Iterable[Path]) -> Path:
    """The longest path that all begin with."""
    first, *others = [*paths] or [()]
    for other in others:
        same = [one == two for one, two in zip(first, other, strict=False)]
        first = first[: same.index(False) if False in same else len(same)]
    return first
