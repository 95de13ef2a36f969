"""Writes docs/gates.md from the gates' table, and from what the tests hold the gates against."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gradwire_server import arrays
from gradwire_server.catalogue import describe, family_of
from gradwire_server.gates import GATES, Gate
from gradwire_server.gates.base import Attribute, Example, Input
from gradwire_server.specs import Tensor

HERE = Path(__file__).parent.parent
PAGE = HERE / "docs" / "gates.md"
sys.path.append(str(HERE / "tests"))
conformance = importlib.import_module("conformance")
INTRODUCTION = """\
# Gates

Every operator that a Gradwire server computes, by its ONNX name and with ONNX's meaning. Made from
the gates' own classes by `scripts/generate`.

- The engine sums the gradient of a broadcast input back to the input's shape.
- An input marked *known* must be a stored value, or computed from shapes: its elements are needed
  before evaluation.
- Every floating input has the data types float16, bfloat16, float32 and float64, but where ONNX
  lists fewer.
- Half precision (float16, bfloat16) is what values are held in. A gate is given float32, and its
  output is rounded once, to nearest even. Its gradients are those that float32 gives at the same
  inputs: outputs are computed again without rounding where a gradient needs them, gradients are
  summed in float32, and each is rounded once when it is complete. The gradient of rounding is 1.
- The floats of 8 and 4 bits and the integers of 4 and 2 bits, named as in ml_dtypes, are what
  numbers are stored in: operators convert, move, quantize and dequantize them, and none has a
  gradient, nor has what is converted into one.
- *Accuracy* is what tests hold the gate to, at inputs of all sizes, float32 against float64 and
  float64 against mpmath. An ulp is the distance to the next number, eps that of 1. Numbers below
  the smallest normal one are 0, or near it. It is what the gate adds to what its inputs had: an
  ulp of the input of exp(1000 * x) is many of its output.
- In an example, `gradient` is that of the output (the first, if there are several) with a seed of
  ones; `None` is an input that has no gradient.
"""


def families() -> dict[str, list[Gate]]:
    """Gates by the module they are in, whose name is the family's."""
    found: dict[str, list[Gate]] = {}
    for gate in GATES.values():
        name = family_of(gate).replace("_", " ").capitalize()
        found.setdefault(name, []).append(gate)
    return found


def page() -> Iterator[str]:
    yield INTRODUCTION
    for family, gates in families().items():
        links = ", ".join(f"[{gate.operator}](#{gate.operator.lower()})" for gate in gates)
        yield f"\n**{family}**: {links}\n"
    yield from conformance.section()
    for family, gates in families().items():
        yield f"\n## {family}\n"
        for gate in gates:
            yield from section(gate)


def section(gate: Gate) -> Iterator[str]:
    described = describe(gate)
    yield f"\n### {gate.operator}\n\n{described.summary}\n\n| | |\n|---|---|\n"
    rows = [
        ("formula", code(described.formula)),
        ("gradient", code(described.gradient)),
        ("at kinks", described.subgradient),
        ("accuracy", described.accuracy),
        ("shapes", described.shapes),
        *((f"input `{each.name}`", input_text(each)) for each in gate.inputs),
        *((f"attribute `{each.name}`", attribute_text(each)) for each in gate.attributes),
        ("outputs", outputs_text(gate)),
    ]
    for name, text in rows:
        if text:
            yield f"| {name} | {text.replace('|', chr(92) + '|')} |\n"
    yield f"\n```text\n{example_text(gate.operator, gate.examples[0])}\n```\n"


def code(text: str) -> str:
    return f"`{text}`"


def input_text(declared: Input) -> str:
    marks = [name for name in ("optional", "variadic", "known") if getattr(declared, name)]
    dtypes = ", ".join(declared.dtypes)
    return f"{dtypes}; *{', '.join(marks)}*" if marks else dtypes


def attribute_text(declared: Attribute) -> str:
    default = "required" if declared.required else f"default {declared.default!r}"
    if declared.default is None and not declared.required:
        default = "optional"
    return f"{declared.kind}, {default}. {declared.doc}".rstrip()


def outputs_text(gate: Gate) -> str:
    least, most = gate.outputs
    return "" if least == most else f"{least} {f'to {most}' if most else 'or more'}"


def example_text(operator: str, example: Example) -> str:
    arguments = [elements_text(each) for each in example.inputs]
    arguments += [f"{name}={value!r}" for name, value in example.attributes.items()]
    lines = [f"{operator}({', '.join(arguments)})", f"output    {elements_text(example.output)}"]
    if example.gradients is not None:
        lines.append(f"gradient  {', '.join(map(repr, example.gradients))}")
    return "\n".join(lines)


def elements_text(value: Any) -> str:
    """Nested lists; with the data type before them if it is not what Python's numbers mean."""
    if isinstance(value, Tensor):
        return f"{value.dtype}({arrays.constant(value).tolist()})"
    return repr(value)


PAGE.write_text("".join(page()))
