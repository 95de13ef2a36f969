"""The gates' bodies as a C header, one for each floating type; kernels/c/tape.h has the loops."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from hashlib import sha256
from pathlib import Path

from gradwire_server.engine.opcodes import (
    MAX_CONSTANTS,
    MAX_INPUTS,
    Body,
    Opcode,
    instruction_set,
)

#: The loops, and what they call.
SOURCES = Path(__file__).parent / "c"

_INPUTS = tuple(f"x{slot}" for slot in range(MAX_INPUTS))


@cache
def digest(dtype: str | None) -> str:
    """Of all that the kernels of a floating type are made from; of the C files alone for None."""
    parts = [path.name + "\0" + path.read_text() for path in sorted(SOURCES.iterdir())]
    if dtype is not None:
        parts.append(opcodes_header(dtype))
    return sha256("\0".join(parts).encode()).hexdigest()[:32]


@cache
def opcodes_header(dtype: str) -> str:
    """What tape.h wants to know of each opcode."""
    opcodes = tuple(enumerate(instruction_set(dtype).opcodes, MAX_INPUTS + 1))
    numbers = " ".join(f"DO({number})" for number, _ in opcodes)
    return "\n".join(
        [
            f"/* The gates' bodies for {dtype}, written by bodies.py. */",
            f"enum {{ MOST_CONSTANTS = {MAX_CONSTANTS} }};",
            f"#define FOR_EACH_OPCODE(DO) {numbers}",
            *(line for number, opcode in opcodes for line in _opcode(number, opcode)),
            "",
        ]
    )


def _opcode(number: int, opcode: Opcode) -> Iterator[str]:
    yield ""
    yield f"#define INPUTS_{number} {opcode.input_count}"
    yield f"#define IS_HEAVY_{number} {int(opcode.is_heavy)}"
    yield from _function(f"forward{number}", _INPUTS, opcode.forward)
    for slot in range(MAX_INPUTS):
        pull = opcode.pulls[slot] if slot < opcode.input_count else None
        body = pull or Body((), "0")
        yield f"#define HAS_PULL_{number}_{slot} {int(pull is not None)}"
        yield f"#define HAS_TAIL_{number}_{slot} {int(_has_tail(body))}"
        yield from _function(f"pull{number}_{slot}", ("grad", "out", *_INPUTS), body, ", TAIL")


def _has_tail(body: Body) -> bool:
    """Whether elements in a tail take longer (elementary.h)."""
    return any("exact, met" in line for line in (*body.lines, body.result))


def _function(name: str, arguments: tuple[str, ...], body: Body, tail: str = "") -> Iterator[str]:
    declared = ", ".join([*(f"T {each}" for each in arguments), "const T *c"])
    yield f"INLINE T {name}({declared}{tail}) {{"
    yield from (f"    {line}" for line in body.lines)
    yield f"    return {body.result};"
    yield "}"
