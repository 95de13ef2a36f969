"""Circuits as pictures: values above the wires in green, gradients below in red.

opened.py     what modules have inside, where they are open
circuit.py    what is drawn: boxes, wires, modules
numbers.py    what is written on them
layout.py     where everything is
svg.py html.py png.py    how it is written down
formulas.py   what the pointer is told of operators

docs/pictures.md has the rules.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gradwire.builder import Graph
from gradwire.drawing import html, png, svg
from gradwire.drawing.circuit import Circuit, circuit_of
from gradwire.drawing.layout import lay_out
from gradwire.drawing.numbers import Numbers, local_gradients, operands, to_compute
from gradwire.drawing.opened import gate_count
from gradwire.errors import FileError, GradwireError, InvalidRequestError
from gradwire.figures import figure
from gradwire.results import Result
from gradwire.tensors import FLOATS

if TYPE_CHECKING:
    from gradwire.connection import Connection

__all__ = ["FORMATS", "THEMES", "Drawing", "draw", "html_of", "svg_of"]

FORMATS = (".svg", ".png", ".html")
THEMES = svg.THEMES

_NOTEBOOK_GATES = 300  # more are not read in a notebook, and make it slow
_ROWS_SHOWN = 100


@dataclass(frozen=True)
class Drawing:
    """A picture: displays itself in notebooks, and is saved as SVG, PNG or HTML."""

    svg: str
    theme: str
    title: str
    size: tuple[float, float]

    def _repr_svg_(self) -> str:
        return self.svg

    def html(self) -> str:
        """One page with nothing from elsewhere: zoom, pan, and what each gate computes."""
        return html.page(self.svg, self.theme, self.title)

    def png(self, scale: float = 2.0) -> bytes:
        """The picture in pixels: `scale` for each of the SVG's, fewer if they would be very many.

        Light, unless its theme is dark (UNSUPPORTED without the extra).
        """
        fixed = self.svg.replace(svg.style("auto"), svg.style("light"))
        return png.rasterized(fixed, *self.size, scale)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the format that the name ends in (FILE_INVALID)."""
        name = os.fspath(path)
        ending = os.path.splitext(name)[1].lower()
        if ending not in FORMATS:
            raise FileError("FILE_INVALID", f"{name}: must end in one of {', '.join(FORMATS)}")
        if ending == ".png":
            data = self.png()
        else:
            data = (self.html() if ending == ".html" else self.svg).encode()
        try:
            with open(name, "wb") as file:
                file.write(data)
        except OSError as failure:
            raise FileError(
                "FILE_INVALID", f"{name}: cannot be written: {failure.strerror}"
            ) from None


def draw(
    graph: Graph | Result,
    inputs: Mapping[str, Any] | None = None,
    *,
    seeds: Mapping[str, Any] | None = None,
    server: Connection | None = None,
    local: bool = False,
    collapse: Iterable[str] = (),
    keep_open: Iterable[str] = (),
    around: str | None = None,
    radius: int = 3,
    theme: str = "auto",
) -> Drawing:
    """The picture of a graph, evaluated at `inputs` by `server` or by an embedded one.

    Or that of a result, with what is in it. With `local`, each gate's own gradients too. `collapse`
    names modules to draw as one box, "/" all of them, but those in `keep_open`; where it is empty
    and the graph has more gates than can be read, all are. `around` names a value, and only gates
    up to `radius` wires from it are drawn. `theme` is "light", "dark", or "auto": the reader's.
    """
    if theme not in THEMES:
        raise InvalidRequestError(
            "REQUEST_INVALID", f"theme is {theme!r} but must be one of {', '.join(THEMES)}"
        )
    result = graph if isinstance(graph, Result) else None
    if result is not None and (inputs or seeds):
        raise InvalidRequestError(
            "REQUEST_INVALID", "a result is drawn as it is; inputs and seeds are for graphs"
        )
    drawn = result.graph if result is not None else graph
    if not isinstance(drawn, Graph):
        raise InvalidRequestError("REQUEST_INVALID", "the result has no graph to draw")
    circuit = circuit_of(drawn, collapse, keep_open, around, radius)
    if result is not None and not local:
        return _drawing(circuit, Numbers(circuit, result), theme)
    with _connected(server) as connection:
        if result is None:
            more = operands(circuit) if local else []
            result = _evaluated(circuit, inputs, seeds, more, connection)
        found = local_gradients(circuit, result, connection) if local else {}
    return _drawing(circuit, Numbers(circuit, result, found), theme)


def _evaluated(
    circuit: Circuit,
    inputs: Mapping[str, Any] | None,
    seeds: Mapping[str, Any] | None,
    more: Iterable[int],
    connection: Connection,
) -> Result:
    """What is drawn, and `more` values; of a graph that yields no floating number, values only."""
    graph = circuit.opened.graph
    values, gradients = to_compute(circuit)
    values = sorted({*values, *more})
    if not seeds and not any(graph.output_dtype(name) in FLOATS for name in graph.outputs):
        return connection.evaluate(graph, inputs, values=values, forward_only=True)
    return connection.evaluate(graph, inputs, seeds=seeds, values=values, gradients=gradients)


def svg_of(graph: Graph) -> str | None:
    """A graph as it displays itself, not evaluated; None if it is large, or the extra missing."""
    try:
        return _small_drawing(graph, None).svg
    except GradwireError:
        return None


def html_of(result: Result) -> str:
    """A result as it displays itself: drawn; where that cannot be, its outputs and gradients."""
    if result.graph is not None:
        try:
            drawn = _small_drawing(result.graph, result).svg
            return f'<div style="overflow-x:auto">{drawn}</div>'
        except GradwireError:
            pass
    rows = [
        f"<tr><td>{svg.visible(name)}</td><td>{what}</td><td>{figure(array).text}</td></tr>"
        for what, arrays in (("output", result.outputs), ("gradient", result.gradients))
        for name, array in list(arrays.items())[:_ROWS_SHOWN]
    ]
    return f"<table>{''.join(rows)}</table>"


def _small_drawing(graph: Graph, result: Result | None) -> Drawing:
    circuit = circuit_of(graph, most_gates=_NOTEBOOK_GATES)
    return _drawing(circuit, Numbers(circuit, result), "auto")


def _drawing(circuit: Circuit, numbers: Numbers, theme: str) -> Drawing:
    graph = circuit.opened.graph
    ends = ", ".join(graph.outputs[:4])
    title = f"Circuit of {gate_count(graph)} gates that yields {ends}"
    layout = lay_out(circuit, numbers)
    size = layout.width, layout.height
    return Drawing(svg.write(layout, numbers, theme, title), theme, title, size)


def _connected(server: Connection | None) -> AbstractContextManager[Connection]:
    if server is not None:
        return nullcontext(server)
    from gradwire.local import local as embedded

    return embedded(warm_up=False)
