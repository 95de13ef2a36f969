"""The nodes of a picture: those of the circuit, and those inside of modules that are drawn open.

What an open use of a module yields is a value inside of it, and drawn there, once. But gradients do
not flow through a module with its own gradient: they arrive at its end and go on from its
beginning. So two nodes more are drawn at these edges, an entry and an exit.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice

from gradwire.builder import Graph, Module, Node
from gradwire.paths import MOST_VALUES, Uses
from gradwire.tensors import Array

#: Names of modules that are drawn as boxes around each other, outermost first.
Path = tuple[str, ...]

ALL = "/"
SEPARATOR = " · "  # of the parts of a label
OWN_GRADIENT = "own gradient"

_DEEPEST = 16  # segments of a name that is a path; modules in modules
_MOST_INSIDE = 20_000  # leaves and nodes inside of modules, of which most are not drawn
_SEGMENT = re.compile(r"[A-Za-z_][\w.:-]*")


def path_of(name: str) -> Path:
    """Modules that a value is in, outermost first, told by its name: those before each "/"."""
    return _segments(name)[:-1]


def _segments(name: str) -> Path:
    """A name apart, if it is a path."""
    segments = name.strip("/").split("/")
    is_path = len(segments) <= _DEEPEST and all(map(_SEGMENT.fullmatch, segments))
    return tuple(segments) if is_path else (name,)


def gates_inside(graph: Graph) -> list[int]:
    """How many gates each module has, those inside of others counted at every use."""
    found: list[int] = []
    for module, uses in zip(graph.modules, graph._paths().modules, strict=True):
        found.append(_gates(module.circuit, uses, found))
    return found


def gate_count(graph: Graph) -> int:
    """How many gates a graph has, with those inside of modules."""
    return _gates(graph, graph._paths().root, gates_inside(graph))


def _gates(circuit: Graph, uses: Uses, inside: Sequence[int]) -> int:
    count = circuit.node_count - len(uses.modules) + sum(inside[each] for each in uses.modules)
    return min(count, MOST_VALUES + 1)


class Choice:
    """Which modules are drawn as one box: some by name, or all.

    If `only_uses` is given, so are all uses but those that yield one of these values, or are
    `opened`.
    """

    def __init__(
        self,
        collapsed: Iterable[str],
        opened: Iterable[str],
        only_uses: Collection[int] | None = None,
    ) -> None:
        self._collapsed = {each if each == ALL else each.strip("/") for each in collapsed}
        self._opened = {
            "/".join(segments[:end])
            for segments in (each.strip("/").split("/") for each in opened)
            for end in range(1, len(segments) + 1)
        }
        self._only_uses = only_uses
        self._known: dict[Path, Path] = {}

    def outermost(self, path: Path) -> Path:
        """The outermost collapsed module of a path, or ()."""
        found = self._known.get(path)
        if found is None:
            ends = range(1, len(path) + 1)
            found = next((path[:end] for end in ends if self._closes("/".join(path[:end]))), ())
            self._known[path] = found
        return found

    def opens(self, path: Path, value_id: int) -> bool:
        """Whether the inside of a use is drawn, which yields that value first."""
        if self.outermost(path) or len(path) > _DEEPEST:
            return False
        only = self._only_uses
        return only is None or value_id in only or "/".join(path) in self._opened

    def _closes(self, name: str) -> bool:
        return name not in self._opened and (ALL in self._collapsed or name in self._collapsed)


@dataclass
class Opened:
    """Nodes, with the ids of the whole graph; what has none, inside of modules, has ids below 0."""

    graph: Graph
    nodes: list[Node] = field(default_factory=list)
    paths: list[Path] = field(default_factory=list)  # of nodes; that of a closed use is its own
    names: dict[int, str] = field(default_factory=dict)
    own_dtypes: list[str] = field(default_factory=list)  # by id
    inside_dtypes: dict[int, str] = field(default_factory=dict)
    constants: dict[int, Array] = field(default_factory=dict)  # inside of modules
    aliases: dict[int, int] = field(default_factory=dict)  # of what open uses yield: ids inside
    modules: dict[Path, Module] = field(default_factory=dict)
    closed: set[Path] = field(default_factory=set)
    entries: dict[int, Node] = field(default_factory=dict)  # with the use, by number of node
    exits: set[int] = field(default_factory=set)
    shut: set[int] = field(default_factory=set)  # nodes inside of modules with own gradients
    shut_ids: set[int] = field(default_factory=set)  # what they yield, which has no gradient

    @cached_property
    def output_ids(self) -> dict[str, list[int]]:
        """Of the values that outputs have, where they are drawn."""
        return {
            name: [self.aliases.get(each, each) for each in ids]
            for name, ids in self.graph.output_ids().items()
        }

    def dtype(self, value_id: int) -> str:
        """Data type of a value."""
        own = 0 <= value_id < len(self.own_dtypes)
        return self.own_dtypes[value_id] if own else self.inside_dtypes[value_id]

    @cached_property
    def _gates_inside(self) -> dict[int, int]:
        modules = map(id, self.graph.modules)
        return dict(zip(modules, gates_inside(self.graph), strict=True))

    def gates_of(self, number: int) -> int:
        """How many gates a node stands for."""
        module = self.nodes[number].module
        return 1 if module is None else self._gates_inside[id(module)]

    def is_gate(self, number: int) -> bool:
        """Whether a node is more than an edge of a module."""
        return number not in self.entries and number not in self.exits

    def differentiated(self) -> Iterator[tuple[int, Node]]:
        """Nodes with local gradients: an open module with its own has them where it begins."""
        for number, node in enumerate(self.nodes):
            if number not in self.shut and number not in self.exits:
                yield number, self.entries.get(number, node)

    def label(self, path: Path) -> tuple[str, ...]:
        """Name of a module, name of what it is a use of, and whether that has its own gradient."""
        module = self.modules.get(path)
        if module is None:
            return (path[-1],)
        parts = [] if re.fullmatch("%[0-9]+", path[-1]) else [path[-1]]
        if module.name not in parts:
            parts.append(module.name)
        return (*parts, OWN_GRADIENT) if module.gradient is not None else (*parts,)


def opened(graph: Graph, choice: Choice) -> Opened:
    """The nodes of a graph, with those of modules that are open, but not of very many."""
    return _Opener(graph, choice).found


def around(graph: Graph, value_id: int) -> list[tuple[int, str]]:
    """Uses that a value is inside of, outermost first: the id of what each yields, and its path.

    Of those, the ones that may be open, and one more.
    """
    found: list[tuple[int, str]] = []
    first = graph._circuit.next_slot
    for offset, name in islice(graph._paths().around(value_id - first), _DEEPEST + 1):
        step = "/".join(_segments(name)) if name else f"%{offset + first}"
        found.append((offset + first, f"{found[-1][1]}/{step}" if found else step))
    return found


class _Circuit:
    """What is known of a circuit, wherever it is used."""

    def __init__(self, circuit: Graph) -> None:
        self.leaves = circuit.leaves
        self.leaf_count = sum(leaf.id_count for leaf in self.leaves)
        self.nodes = [*circuit.nodes()]
        self.outputs = [*circuit.output_ids().values()]
        named = circuit.ids_by_name()
        self.names = {ids[0]: name for name, ids in named.items() if len(ids) == 1}
        self.paths = self._find_paths()

    def _find_paths(self) -> list[Path]:
        """Path of every node: by its name; where it has none, that of all that use it."""
        used_in: dict[int, Path] = {}
        found: list[Path] = []
        for node in reversed(self.nodes):
            named = [path_of(self.names[each]) for each in node.outputs if each in self.names]
            users = [used_in[each] for each in node.outputs if each in used_in]
            path = named[0] if named else _common(users)
            found.append(path)
            for each in node.inputs:
                used_in[each] = _common([used_in.get(each, path), path])
        return found[::-1]


@dataclass
class _Place:
    """Where a circuit is written."""

    path: Path
    prefix: str  # of names
    uses: Uses
    base: int  # offset of its first value
    shift: int  # from its ids to those of the graph
    ids: list[int]  # where its values are drawn, by its ids
    shut: bool


class _Opener:
    """Writes circuits out, each use where it is."""

    def __init__(self, graph: Graph, choice: Choice) -> None:
        self.found = Opened(graph)
        self._choice = choice
        self._inside = 0
        self._circuits: dict[int, _Circuit] = {}
        self._paths = graph._paths()
        self._next_id = -1
        self._first = graph._circuit.next_slot
        own = self._circuit(graph)
        self.found.own_dtypes = graph.dtypes()
        self.found.names.update(own.names)
        uses = self._paths.root
        if uses.places:
            ids = list(range(self._first + uses.values))
            self._write(own, _Place((), "", uses, 0, 0, ids, False))
        else:
            self.found.nodes, self.found.paths = own.nodes, own.paths

    def _circuit(self, graph: Graph) -> _Circuit:
        known = self._circuits.get(id(graph))
        if known is None:
            known = self._circuits[id(graph)] = _Circuit(graph)
        return known

    def _write(self, circuit: _Circuit, place: _Place) -> None:
        uses = 0
        for node, path in zip(circuit.nodes, circuit.paths, strict=True):
            outputs = range(node.outputs.start + place.shift, node.outputs.stop + place.shift)
            moved = node._replace(inputs=[place.ids[each] for each in node.inputs], outputs=outputs)
            if node.module is None:
                self._add(moved, place.path + path, place.shut)
                continue
            name = circuit.names.get(node.outputs.start, "")
            step = _segments(name)[-1] if name else f"%{outputs.start}"
            where = (*place.path, *path, step)
            self.found.modules.setdefault(where, node.module)
            if self._inside < _MOST_INSIDE and self._choice.opens(where, outputs.start):
                inside = self._entered(place, moved, uses, where, f"{place.prefix}{name or step}/")
                for each, value_id in zip(node.outputs, inside, strict=True):
                    place.ids[each] = value_id
            else:
                self.found.closed.add(where)
                self._add(moved, where, place.shut)
            uses += 1

    def _entered(
        self, around: _Place, node: Node, number: int, path: Path, prefix: str
    ) -> Sequence[int]:
        """Writes the inside of a use; ids of what that yields."""
        module = node.module
        assert module is not None
        circuit = self._circuit(module.circuit)
        self._inside += circuit.leaf_count + len(circuit.nodes)
        given = node.inputs
        if module.gradient is not None:
            self.found.entries[len(self.found.nodes)] = node
            given = [self._new_id(self.found.dtype(each)) for each in node.inputs]
            edge = range(given[0], given[-1] - 1, -1) if given else range(0)
            self._add(Node("entry", {}, node.inputs, edge), path, around.shut)
        index, base = self._paths.entered(around.uses, around.base, number)
        uses = self._paths.modules[index]
        shift = base + self._first - (circuit.leaf_count + 1)
        ids = [0, *given, *self._constants(circuit)]
        ids += range(base + self._first, base + self._first + uses.values)
        dtypes = module.circuit.dtypes_inside([self.found.dtype(each) for each in node.inputs])
        own = range(circuit.leaf_count + 1, len(ids))
        self.found.inside_dtypes.update((ids[each], dtypes[each]) for each in own)
        names = ((ids[each], circuit.names.get(each)) for each in own)
        self.found.names.update((each, f"{prefix}{name}") for each, name in names if name)
        shut = around.shut or module.gradient is not None
        self._write(circuit, _Place(path, prefix, uses, base, shift, ids, shut))
        yielded = [ids[each[0]] for each in circuit.outputs]
        if module.gradient is None:
            self.found.aliases.update(zip(node.outputs, yielded, strict=True))
            return yielded
        self.found.exits.add(len(self.found.nodes))
        self._add(Node("exit", {}, yielded, node.outputs), path, around.shut)
        return node.outputs

    def _constants(self, circuit: _Circuit) -> Iterator[int]:
        for leaf in circuit.leaves:
            if leaf.kind == "constant" and leaf.value is not None:
                each = leaf.value.reshape(-1, 1) if leaf.elements else [leaf.value]
                for value in each:
                    value_id = self._new_id(leaf.dtype)
                    self.found.constants[value_id] = value
                    yield value_id

    def _new_id(self, dtype: str) -> int:
        value_id = self._next_id
        self._next_id -= 1
        self.found.inside_dtypes[value_id] = dtype
        return value_id

    def _add(self, node: Node, path: Path, shut: bool) -> None:
        if shut:
            self.found.shut.add(len(self.found.nodes))
            self.found.shut_ids.update(node.outputs)
        self.found.nodes.append(node)
        self.found.paths.append(path)


def _common(paths: Iterable[Path]) -> Path:
    """The longest path that all begin with."""
    first, *others = [*paths] or [()]
    for other in others:
        same = [one == two for one, two in zip(first, other, strict=False)]
        first = first[: same.index(False) if False in same else len(same)]
    return first
