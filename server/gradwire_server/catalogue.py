"""What each gate is, read from its class: for the docs page, the service and the client."""

from __future__ import annotations

from dataclasses import dataclass
from inspect import cleandoc

from gradwire_server.gates import Gate
from gradwire_server.gates.base import Attribute, Input

_REQUIRED = ("Formula", "Gradient", "Shapes")
_LINES = (*_REQUIRED, "Kinks", "Accuracy")

EXACT = "exact; where gradients meet they are added, within 4 eps times the sum of magnitudes"
ELEMENTWISE = (
    "values within 4 ulp, of the largest term where terms cancel; gradients within 1e-4 of the "
    "largest term, and not 0 where the true one is a normal number"
)
SUMS = "values and gradients within 4 eps times the sum of the magnitudes that are added"
REDUCTIONS = (
    "values within 4 eps times the sum of the magnitudes that are added along the last axes, and "
    "sqrt(n) eps where n rows are added one by one, along others; gradients within 1e-4"
)
DETERMINANTS = SUMS + "; determinants of n rows within 4 n eps times the product of their norms"
COMPOSED = "values and gradients within 200 eps of the largest number in sight"
OPERATIONS = "one rounding for each operation of the formula"
#: What the gates of a family keep to (tests/test_accuracy.py), but where a docstring has a line
#: `Accuracy:` of its own.
ACCURACIES = {
    "arithmetic": ELEMENTWISE,
    "transcendental": ELEMENTWISE,
    "activations": ELEMENTWISE,
    "logic": EXACT,
    "bitwise": EXACT,
    "assertions": EXACT,
    "shapes": EXACT,
    "indexing": EXACT,
    "creation": OPERATIONS,
    "quantization": OPERATIONS,
    "stochastic": OPERATIONS,
    "reductions": REDUCTIONS,
    "linear_algebra": DETERMINANTS,
    "convolution": SUMS,
    "pooling": SUMS,
    "images": COMPOSED,
    "sampling": COMPOSED,
    "signal": COMPOSED,
    "normalization": COMPOSED,
    "attention": COMPOSED,
    "recurrent": COMPOSED,
    "losses": COMPOSED,
}


@dataclass(frozen=True)
class GateDescription:
    """One entry of the catalogue."""

    operator: str
    summary: str
    formula: str
    gradient: str
    subgradient: str
    accuracy: str
    shapes: str
    inputs: tuple[Input, ...]
    attributes: tuple[Attribute, ...]
    min_outputs: int
    max_outputs: int


def family_of(gate: Gate) -> str:
    """The module that a gate is in."""
    return type(gate).__module__.rpartition(".")[2]


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
        accuracy=lines.get("Accuracy") or ACCURACIES[family_of(gate)],
        shapes=lines["Shapes"],
        inputs=gate.inputs,
        attributes=gate.attributes,
        min_outputs=gate.outputs[0],
        max_outputs=gate.outputs[1],
    )
