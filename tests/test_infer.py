"""Shape inference is total: whatever a gate is given, it infers or refuses.

The planner asks gates about guesses before it knows the shapes, and a model may hold anything.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator
from itertools import combinations, product
from typing import Any

import pytest
from gate_cases import cases_of

from gradwire_server.errors import Refusal
from gradwire_server.gates import GATES
from gradwire_server.gates.base import Attribute
from gradwire_server.specs import FLOATS, Shape, TensorSpec

SHAPES: tuple[Shape, ...] = (
    (), (1,), (768,), (2, 3), (1000, 10), (2, 3, 4), (1, 1, 1, 1), (2, 3, 4, 5), (1, 2, 3, 4, 5),
    (0,), (2, 0, 3),
)  # fmt: skip
KNOWN = ((), (0,), (1,), (-1,), (3,), (2**62,), (-(2**63),), (1, 2), (0, 0), (2, -1, 7), (1,) * 8)
KNOWN_FLOATS = (float("nan"), float("inf"), -0.0, 1e300)
NUMBERS: dict[str, tuple[Any, ...]] = {
    "int": (0, 1, -1, 2, 7, 2**62, -(2**63)),
    "float": (0.0, -1.0, float("nan"), float("inf"), 1e300),
    "ints": ((), (0,), (1,), (-1,), (2, 2), (1, 2, 3, 4), (2**62, 2**62), (-3,) * 6),
    "floats": ((), (0.0,), (float("nan"), 1.0)),
    "string": ("", "none", "ij->", "é"),
    "strings": ((), ("",), ("Relu", "none")),
}
Call = tuple[tuple[TensorSpec | None, ...], dict[str, Any]]
#: Calls of each gate in the fast test; the slow one makes them all.
SAMPLED = 150


def calls(operator: str) -> Iterator[Call]:
    """The cases and rejections of a gate, with other shapes, known elements and attributes."""
    gate = GATES[operator]
    sources = [(case.specs(), case.attributes) for case in cases_of(gate)]
    sources += [(each.inputs, each.attributes) for each in gate.rejections]
    for inputs, given in sources:
        attributes = dict(given)
        for changed in shaped(inputs):
            yield changed, attributes
        for changed in known(inputs):
            yield changed, attributes
        for attribute in gate.attributes:
            for value in values_of(attribute):
                yield inputs, attributes | {attribute.name: value}


def shaped(inputs: tuple[TensorSpec | None, ...]) -> Iterator[tuple[TensorSpec | None, ...]]:
    """One, two, or all of the inputs, whose elements are not known, in other shapes."""
    free = [slot for slot, spec in enumerate(inputs) if spec is not None and spec.value is None]
    changes: list[dict[int, Shape]] = [{slot: shape} for slot in free for shape in SHAPES]
    changes += [dict.fromkeys(free, shape) for shape in SHAPES]
    for pair in combinations(free[:4], 2):
        changes += [dict(zip(pair, shapes, strict=True)) for shapes in product(SHAPES, repeat=2)]
    for change in changes:
        yield tuple(
            TensorSpec(change[slot], spec.dtype) if spec is not None and slot in change else spec
            for slot, spec in enumerate(inputs)
        )


def known(inputs: tuple[TensorSpec | None, ...]) -> Iterator[tuple[TensorSpec | None, ...]]:
    """One of the inputs whose elements are known, with others."""
    for slot, spec in enumerate(inputs):
        if spec is None or spec.value is None:
            continue
        values: tuple[tuple[Any, ...], ...] = KNOWN if spec.dtype == "int64" else ()
        if spec.dtype in FLOATS:
            values = (
                (),
                *((each,) for each in KNOWN_FLOATS[: None if spec.dtype == "float64" else 3]),
            )
        if spec.dtype == "bool":
            values = ((), (True,), (False, True))
        for value in values:
            for shape in {(len(value),), (1, len(value)), () if len(value) == 1 else (0,)}:
                if shape != (0,) or not value:
                    changed = TensorSpec(shape, spec.dtype, value)
                    yield (*inputs[:slot], changed, *inputs[slot + 1 :])


def values_of(attribute: Attribute) -> tuple[Any, ...]:
    return (*NUMBERS.get(attribute.kind, ()), *attribute.choices)


def faults(operator: str, sampled: int | None = None) -> list[str]:
    """Calls that raise something else than a refusal."""
    made = list(calls(operator))
    if sampled is not None and len(made) > sampled:
        made = random.Random(zlib.crc32(operator.encode())).sample(made, sampled)
    found = []
    for specs, attributes in made:
        try:
            GATES[operator].check(specs, attributes)
        except Refusal:
            pass
        except Exception as fault:
            found.append(f"GATES[{operator!r}].check({specs!r}, {attributes!r}): {fault!r}")
    return found


@pytest.mark.parametrize("operator", GATES)
def test_a_gate_infers_or_refuses(operator: str) -> None:
    assert not faults(operator, SAMPLED)


@pytest.mark.slow
@pytest.mark.parametrize("operator", GATES)
def test_a_gate_infers_or_refuses_every_call(operator: str) -> None:
    assert not faults(operator)
