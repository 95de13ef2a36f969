"""What each gate is, read from its class: for the docs page, the service and the client."""

from __future__ import annotations

from dataclasses import dataclass
from inspect import cleandoc

from gradwire_server.gates import Gate
from gradwire_server.gates.base import Attribute, Input

_REQUIRED = ("Formula", "Gradient", "Shapes")
_LINES = (*_REQUIRED, "Kinks")


@dataclass(frozen=True)
class GateDescription:
    """One entry of the catalogue."""

    operator: str
    summary: str
    formula: str
    gradient: str
    subgradient: str
    shapes: str
    inputs: tuple[Input, ...]
    attributes: tuple[Attribute, ...]
    min_outputs: int
    max_outputs: int


def describe(gate: Gate) -> GateDescription:
    """The entry of a gate (ValueError where its docstring lacks a line, or has a strange one)."""
    summary, _, rest = cleandoc(gate.__doc__ or "").partition("\n\n")
    lines: dict[str, str] = {}
    for line in rest.splitlines():
        name, colon, text = line.partition(":")
        if colon and name in _LINES:
            lines[name] = text.strip()
        elif lines and line.startswith(" "):
            lines[next(reversed(lines))] += " " + line.strip()
        else:
            raise ValueError(f"the docstring of {gate.operator} has the line {line!r}")
    for name in _REQUIRED:
        if not lines.get(name):
            raise ValueError(f"the docstring of {gate.operator} has no line {name!r}")
    return GateDescription(
        operator=gate.operator,
        summary=" ".join(summary.split()),
        formula=lines["Formula"],
        gradient=lines["Gradient"],
        subgradient=lines.get("Kinks", ""),
        shapes=lines["Shapes"],
        inputs=gate.inputs,
        attributes=gate.attributes,
        min_outputs=gate.outputs[0],
        max_outputs=gate.outputs[1],
    )
