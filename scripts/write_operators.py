"""Writes client/gradwire/signatures.py and client/gradwire/operators.py from the gates' table."""

from __future__ import annotations

import keyword
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

from gradwire_server.catalogue import describe
from gradwire_server.gates import GATES, Gate
from gradwire_server.gates.base import Attribute

ROOT = Path(__file__).parent.parent
CLIENT = ROOT / "client" / "gradwire"
HEADER = '"""{what}, generated from the gates\' table by scripts/generate."""\n\n'

KINDS = {
    "int": "int",
    "float": "float",
    "string": "str",
    "ints": "Sequence[int]",
    "floats": "Sequence[float]",
    "strings": "Sequence[str]",
    "tensor": "Any",
}


def snake(name: str) -> str:
    """ONNX's names as Python's: ReduceSumSquare is reduce_sum_square."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()
    words = {"is_na_n": "is_nan", "p_relu": "prelu", "col2_im": "col2im"}.get(words, words)
    return f"{words}_" if keyword.iskeyword(words) else words


def output_dtypes(gate: Gate) -> tuple[str, ...]:
    """Where each output's data type comes from; the last one holds for those after it."""
    fixed = getattr(gate, "output_dtype", None)
    if fixed:
        return (fixed,)
    if gate.output_dtypes:
        return gate.output_dtypes
    return (next(f"input:{slot}" for slot, each in enumerate(gate.inputs) if each.group == "T"),)


def signatures() -> Iterator[str]:
    yield HEADER.format(what="What each operator takes and yields")
    yield "from gradwire.signature import Attribute, Input, Signature\n\nSIGNATURES = {\n"
    for gate in GATES.values():
        inputs = [
            f"Input({each.name!r}, {each.dtypes!r}, {each.group!r}, {each.optional}, "
            f"{each.variadic}, {each.known}{'' if each.elements else ', elements=False'})"
            for each in gate.inputs
        ]
        attributes = [
            f"Attribute({each.name!r}, {each.kind!r}, {each.default!r}, {each.required}, "
            f"{each.choices!r})"
            for each in gate.attributes
        ]
        yield (
            f"{gate.operator!r}: Signature({gate.operator!r}, "
            f"({''.join(f'{each}, ' for each in inputs)}), "
            f"({''.join(f'{each}, ' for each in attributes)}), "
            f"{gate.outputs!r}, {output_dtypes(gate)!r}),\n"
        )
    yield "}\n"


def operators() -> Iterator[str]:
    names = sorted(snake(operator) for operator in GATES if operator != "Constant")
    yield HEADER.format(what="One function for each operator")
    yield "from __future__ import annotations\n\nfrom collections.abc import Sequence\n"
    yield "from typing import Any\n\nfrom gradwire.builder import Handle, Operand"
    yield ", apply, apply_among, apply_several, apply_split\n\n"
    yield f"__all__ = {names!r}\n"
    for gate in GATES.values():
        if gate.operator != "Constant":
            yield from function(gate)


def function(gate: Gate) -> Iterator[str]:
    """The function of one operator."""
    described = describe(gate)
    parameters, operands = [], []
    for each in gate.inputs:
        name = snake(each.name.removesuffix("_0"))
        if each.variadic:
            parameters.append(f"*{name}: Operand")
            operands.append(f"*{name}")
        elif each.optional:
            parameters.append(f"{name}: Operand | None = None")
            operands.append(name)
        else:
            parameters.append(f"{name}: Operand")
            operands.append(name)
    if gate.attributes and not any(each.variadic for each in gate.inputs):
        parameters.append("*")
    parameters.extend(map(parameter, gate.attributes))
    yields = "tuple[Handle, ...]" if gate.outputs[1] != 1 else "Handle"
    yield f"\n\ndef {snake(gate.operator)}({', '.join(parameters)}) -> {yields}:\n"
    yield f'    """{described.summary}\n\n'
    for name, text in (
        ("Formula", described.formula),
        ("Gradient", described.gradient),
        ("Kinks", described.subgradient),
        ("Shapes", described.shapes),
    ):
        if text:
            yield from wrapped(f"{name + ':':<11}{text}")
    yield '    """\n'
    attributes = ", ".join(f"{each.name!r}: {snake(each.name)}" for each in gate.attributes)
    given = "".join(f"{each}, " for each in operands)
    arguments = f"{gate.operator!r}, ({given}), {{{attributes}}}"
    most = gate.outputs[1]
    if f"Reduce{gate.operator}" in GATES:
        yield f"    return apply_among({arguments})\n"
    elif most in (0, 1):
        yield f"    return {'apply' if most else 'apply_split'}({arguments})\n"
    else:
        count = f"{most} if {gate.more_outputs_with} else 1" if gate.more_outputs_with else most
        yield f"    return apply_several({arguments}, {count})\n"


def wrapped(line: str) -> Iterator[str]:
    for part in textwrap.wrap(line, 94, subsequent_indent=" " * 11, break_on_hyphens=False):
        yield f"    {part}\n"


def parameter(attribute: Attribute) -> str:
    kind = KINDS[attribute.kind]
    if attribute.required:
        return f"{snake(attribute.name)}: {kind}"
    if attribute.default is None:
        return f"{snake(attribute.name)}: {kind} | None = None"
    return f"{snake(attribute.name)}: {kind} = {attribute.default!r}"


def main() -> None:
    for name, parts in (("signatures.py", signatures()), ("operators.py", operators())):
        path = CLIENT / name
        path.write_text("".join(parts))
        subprocess.run([sys.executable, "-m", "ruff", "format", "-q", str(path)], check=True)
        subprocess.run(
            [
                sys.executable,
                "-m",
                "ruff",
                "check",
                "-q",
                "--fix",
                "--select",
                "I,F401,RUF100",
                str(path),
            ],
            check=True,
        )


main()
