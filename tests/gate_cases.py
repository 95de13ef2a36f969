"""Cases of every gate, made from its table: examples, samples, and broadcasts."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from gradwire_server import arrays
from gradwire_server.engine.array import sum_to_shape
from gradwire_server.gates import GATES, Gate
from gradwire_server.gates.base import ElementwiseGate, Example, first_outputs
from gradwire_server.specs import FLOATS, HALVES, Tensor, TensorSpec, computed_in

#: Relative to the largest number compared; by data type only.
TOLERANCES = {"float64": 1e-9, "float32": 2e-5}
BROADCASTS = (((),), ((3,),), ((2, 3), (3,)), ((2, 1), (1, 3)), ((0,),), ((2, 0, 3),))


@dataclass(frozen=True)
class Case:
    """One call of a gate. `str` of it can be pasted."""

    operator: str
    inputs: tuple[Any, ...]
    attributes: Mapping[str, Any]
    example: Example | None = None

    @property
    def gate(self) -> Gate:
        return GATES[self.operator]

    @property
    def smooth(self) -> bool:
        return self.example is None or not self.example.at_kink

    def __str__(self) -> str:
        return f"run({self.operator!r}, {self.inputs!r}, {dict(self.attributes)!r})"

    def given(self, inputs: tuple[Any, ...] | None = None) -> list[Any]:
        """Inputs as the engine hands them over: known ones as tuples, halves as float32."""
        inputs = self.inputs if inputs is None else inputs
        declared = self.gate.declared_inputs(len(inputs))
        return [
            tuple(array.reshape(-1).tolist())
            if each.flat and array is not None
            else array
            if array is None or self.gate.takes_halves
            else array.astype(computed_in(str(array.dtype)))
            for each, array in zip(declared, inputs, strict=True)
        ]

    def specs(self) -> tuple[TensorSpec | None, ...]:
        declared = self.gate.declared_inputs(len(self.inputs))
        return tuple(
            None
            if array is None
            else TensorSpec(
                array.shape,
                str(array.dtype),
                tuple(array.reshape(-1).tolist()) if each.known else None,
            )
            for each, array in zip(declared, self.inputs, strict=True)
        )

    def run(self, inputs: tuple[Any, ...] | None = None, xp: Any = arrays) -> tuple[Any, ...]:
        """All outputs; rounded to half precision where inputs have it."""
        with np.errstate(all="ignore"):
            out = self.gate.forward(xp, *self.given(inputs), **self.gate.complete(self.attributes))
            count = len(out) if isinstance(out, tuple) else 1
            outs = first_outputs(out, count)
            if not any(x is not None and str(x.dtype) in HALVES for x in self.inputs):
                return outs
            specs = self.gate.check(self.specs(), self.attributes)
            return tuple(
                xp.astype(each, spec.dtype) for each, spec in zip(outs, specs, strict=True)
            )

    def pull(self, grads: tuple[Any, ...], xp: Any = arrays) -> list[Any]:
        """The gradient of each input, in its shape; None where it has none."""
        outs = self.run(xp=xp)
        several = self.gate.outputs != (1, 1)
        with np.errstate(all="ignore"):
            entries = self.gate.vjp(
                xp,
                grads if several else grads[0],
                outs if several else outs[0],
                *self.given(),
                **self.gate.complete(self.attributes),
            )
            found = [entry() if callable(entry) else entry for entry in entries]
            return [
                None if to_input is None else sum_to_shape(xp, to_input, array.shape)
                for to_input, array in zip(found, self.inputs, strict=True)
            ]

    def as_dtype(self, dtype: str) -> Case:
        """The same with floating inputs converted."""
        with np.errstate(over="ignore"):
            inputs = tuple(
                array.astype(dtype) if array is not None and is_floating(array) else array
                for array in self.inputs
            )
        return Case(self.operator, inputs, self.attributes, self.example)


def is_floating(array: Any) -> bool:
    """Whether it has a gradient; NumPy counts bfloat16 among the bytes."""
    return str(np.asarray(array).dtype) in FLOATS


def to_array(value: Any) -> Any:
    """Python's float means float64, int int64, bool bool; None stays, a Tensor says its own."""
    if value is None:
        return None
    if isinstance(value, Tensor):
        return arrays.constant(value)
    array = np.asarray(value)
    return array if array.size else array.astype(np.float64)


@cache
def all_cases() -> tuple[Case, ...]:
    return tuple(case for gate in GATES.values() for case in cases_of(gate))


def cases_of(gate: Gate) -> Iterator[Case]:
    for example in gate.examples:
        inputs = tuple(map(to_array, example.inputs))
        yield Case(gate.operator, inputs, example.attributes, example)
    for number, sample in enumerate(gate.samples):
        yield Case(gate.operator, draw(gate, sample.inputs, f"sample {number}"), sample.attributes)
    if isinstance(gate, ElementwiseGate) and not any(each.known for each in gate.inputs):
        attributes = gate.examples[0].attributes
        kinds = [str(to_array(each).dtype) for each in gate.examples[0].inputs]
        for shapes in BROADCASTS:
            specs = tuple(
                TensorSpec(shapes[slot % len(shapes)], kind) for slot, kind in enumerate(kinds)
            )
            yield Case(gate.operator, draw(gate, specs, str(shapes)), attributes)


def draw(gate: Gate, specs: tuple[TensorSpec | None, ...], label: str) -> tuple[Any, ...]:
    """Seeded numbers from each input's domain."""
    numbers = np.random.default_rng(zlib.crc32(f"{gate.operator} {label}".encode()))
    drawn: list[Any] = []
    for declared, spec in zip(gate.declared_inputs(len(specs)), specs, strict=True):
        if spec is None:
            drawn.append(None)
        elif spec.value is not None:
            drawn.append(np.array(spec.value, spec.dtype).reshape(spec.shape))
        elif spec.dtype in FLOATS:
            drawn.append(np.asarray(numbers.uniform(*declared.domain, spec.shape), spec.dtype))
        else:
            drawn.append(np.asarray(numbers.integers(0, 2, spec.shape)).astype(spec.dtype))
    return tuple(drawn)


def spread(*arrays_compared: Any) -> float:
    """The largest finite number in sight, at least 1."""
    finite = [np.abs(each[np.isfinite(each)]).max(initial=0) for each in arrays_compared]
    return max(1.0, *map(float, finite))
