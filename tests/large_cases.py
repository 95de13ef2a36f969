"""Calls of every gate that are large enough for their memory to be measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from typing import Any

import numpy as np
from gate_cases import Case, cases_of, draw

from gradwire_server.errors import Invalid
from gradwire_server.gates import GATES, Gate
from gradwire_server.specs import FLOATS, TensorSpec

#: Enlarged samples of a gate that are measured, of different attributes; and operations of one.
_SAMPLES, _MOST_OPERATIONS = 2, 4e8

#: Of specs, or arrays where it matters what is in them.
Inputs = tuple[Any, ...]


def _floats(*shape: int) -> TensorSpec:
    return TensorSpec(shape)


def _ints(*values: int) -> TensorSpec:
    return TensorSpec((len(values),), "int64", values)


def _one(value: int) -> TensorSpec:
    return TensorSpec((), "int64", (value,))


_IMAGE = _floats(8, 8, 128, 128)
_NUMBERS = _floats(1 << 20)
_REGIONS = TensorSpec((4, 5), "float64", (0.0, 0.0, 0.0, 254.0, 254.0) * 4)
_WIDE = np.linspace(-30.0, 30.0, 1 << 20)
_PADS = _ints(0, 3, 2, 0)


def _elementwise(n: int = 1 << 19) -> list[tuple[Inputs, dict[str, Any]]]:
    return [((_floats(n), _floats(n)), {}), ((_floats(n), _floats()), {})]


#: What samples are not like when they are enlarged: at sizes that are usual, and every mode.
EXPLICIT: Mapping[str, list[tuple[Inputs, dict[str, Any]]]] = {
    "AffineGrid": [((_floats(1, 2, 3), _ints(1, 1, 700, 700)), {})],
    "Attention": [
        ((_floats(2, 4, 256, 32),) * 3, {}),
        ((*(_floats(2, 4, 256, 32),) * 3, _floats(256, 256)), {"softcap": 3.0}),
        ((_floats(2, 8, 256, 32), *(_floats(2, 4, 256, 32),) * 2), {"is_causal": 1}),
    ],
    "BlackmanWindow": [((_one(1 << 20),), {})],
    "CausalConvWithState": [
        ((_floats(8, 64, 2048), _floats(64, 1, 4), _floats(64)), {"activation": "silu"}),
        ((_floats(8, 64, 2048), _floats(64, 1, 4), _floats(64)), {}),
        ((_floats(8, 64, 2048), _floats(64, 1, 4), None, _floats(8, 64, 3)),
         {"activation": "silu"}),
    ],
    "CenterCropPad": [((_floats(1024, 1024), _ints(512, 2048)), {})],
    "Cofactor": [((_floats(16, 64, 64),), {}), ((_floats(64, 64),) * 2, {})],
    "Col2Im": [((_floats(1, 36, 128 * 128), _ints(130, 130), _ints(3, 3)), {})],
    "ConstantOfShape": [((_ints(1024, 1024),), {})],
    "Conv": [
        ((_floats(8, 16, 64, 64), _floats(16, 16, 3, 3), _floats(16)), {"pads": (1, 1, 1, 1)}),
        ((_floats(1, 256, 32, 32), _floats(256, 256, 3, 3)), {"pads": (1, 1, 1, 1)}),
        ((_floats(8, 3, 128, 128), _floats(16, 3, 5, 5)), {"strides": (2, 2)}),
        ((_floats(4, 64, 64, 64), _floats(64, 1, 3, 3)), {"group": 64}),
    ],
    "ConvInteger": [
        ((TensorSpec((8, 16, 64, 64), "uint8"), TensorSpec((16, 16, 3, 3), "uint8")), {}),
    ],
    "ConvTranspose": [
        ((_floats(8, 3, 64, 64), _floats(3, 16, 5, 5)), {"strides": (2, 2)}),
        ((_floats(4, 16, 64, 64), _floats(16, 16, 3, 3), _floats(16)), {}),
    ],
    "DFT": [
        ((_floats(64, 8192, 2),), {}),
        ((_floats(64, 8192, 1), None, _one(1)), {"onesided": 1}),
        ((_floats(64, 8192, 1),), {"inverse": 0}),
    ],
    "Gelu": [((_NUMBERS,), {"approximate": mode}) for mode in ("none", "tanh")],
    "DeformConv": [((_floats(2, 8, 40, 40), _floats(8, 8, 3, 3), _floats(2, 18, 38, 38)), {})],
    "Det": [((_floats(724, 724),), {}), ((_floats(1 << 14, 8, 8),), {})],
    "Div": _elementwise(),
    "Dropout": [((_NUMBERS, None, TensorSpec((), "bool", (True,))), {"seed": 1})],
    "Expand": [((_floats(1024, 1), _ints(1024, 1024)), {})],
    "GRU": [((_floats(64, 32, 64), _floats(1, 192, 64), _floats(1, 192, 64)), {})],
    "Gather": [
        ((_floats(1024, 1024), TensorSpec((600,), "int64")), {}),
        ((_floats(1024, 1024), TensorSpec((), "int64")), {"axis": 1}),
    ],
    "Einsum": [
        ((_floats(512, 512),) * 2, {"equation": "ij,jk->ik"}),
        ((_floats(512, 512),) * 2, {"equation": "ij,kj->ki"}),
        ((_floats(16, 128, 256), _floats(16, 256, 128)), {"equation": "bij,bjk->bik"}),
        ((_floats(100),) * 3, {"equation": "i,j,k->ijk"}),
        ((_floats(512, 512),) * 3, {"equation": "ij,jk,kl->il"}),
        ((_floats(1024, 1024),), {"equation": "ii"}),
    ],
    "GatherND": [
        ((_NUMBERS, TensorSpec((1 << 19, 1), "int64")), {}),
        ((_floats(1024, 1024), TensorSpec((1 << 18, 2), "int64")), {}),
    ],
    "GridSample": [
        ((_floats(2, 8, 64, 64), _floats(2, 64, 64, 2)), {"mode": mode})
        for mode in ("linear", "nearest", "cubic")
    ],
    "HammingWindow": [((_one(1 << 20),), {})],
    "HannWindow": [((_one(1 << 20),), {})],
    "LSTM": [
        ((_floats(64, 32, 64), _floats(1, 256, 64), _floats(1, 256, 64)), {}),
        ((_floats(64, 32, 64), _floats(1, 256, 64), _floats(1, 256, 64)), {"clip": 3.0}),
        ((_floats(64, 32, 64), _floats(2, 256, 64), _floats(2, 256, 64)),
         {"direction": "bidirectional"}),
    ],
    "LinearAttention": [
        ((_floats(4, 128, 128),) * 3,
         {"q_num_heads": 2, "kv_num_heads": 2, "update_rule": "linear"}),
        ((*(_floats(4, 128, 128),) * 3, None, None, _floats(4, 128, 2)),
         {"q_num_heads": 2, "kv_num_heads": 2, "update_rule": "delta"}),
    ],
    "Max": _elementwise(),
    "MaxPool": [
        ((_IMAGE,), {"kernel_shape": (3, 3), "strides": (2, 2)}),
        ((_IMAGE,), {"kernel_shape": (2, 2)}),
    ],
    "AveragePool": [
        ((_IMAGE,), {"kernel_shape": (3, 3), "strides": (2, 2)}),
        ((_IMAGE,), {"kernel_shape": (2, 2)}),
    ],
    "LpPool": [
        ((_IMAGE,), {"kernel_shape": (3, 3), "strides": (2, 2)}),
        ((_IMAGE,), {"kernel_shape": (2, 2)}),
    ],
    **{
        name: [((_floats(2, 8, 256, 256), _REGIONS), {"pooled_shape": (1, 1)})]
        for name in ("MaxRoiPool", "RoiArgMax")
    },
    "MelWeightMatrix": [
        (
            (_one(1024), _one(2048), _one(16000), TensorSpec((), "float64", (0.0,)),
             TensorSpec((), "float64", (8000.0,))),
            {},
        )
    ],
    "Min": _elementwise(),
    "Mod": [(each, {"fmod": 1}) for each, _ in _elementwise()],
    "Mul": _elementwise(),
    "Pad": [
        ((_floats(1000, 1024), _PADS), {"mode": mode}) for mode in ("reflect", "edge", "wrap")
    ] + [((_floats(1000, 1024), _PADS, _floats()), {})],
    "Pow": _elementwise(),
    "RNN": [((_floats(64, 32, 64), _floats(1, 64, 64), _floats(1, 64, 64)), {})],
    "Range": [((_one(0), _one(1 << 20), _one(1)), {})],
    "Reshape": [((_floats(1024, 1024), _ints(-1)), {})],
    "Resize": [
        ((_floats(8, 8, 100, 100), None, TensorSpec((4,), "float64", (1.0, 1.0, 1.5, 1.5))),
         {"mode": mode})
        for mode in ("nearest", "linear", "cubic")
    ] + [((_floats(5000), None, TensorSpec((1,), "float64", (1.5,))), {"mode": "linear"})],
    "RoiAlign": [
        ((_floats(2, 8, 200, 200), _floats(64, 4), TensorSpec((64,), "int64")),
         {"sampling_ratio": 2, "output_height": 7, "output_width": 7}),
    ],
    "STFT": [((_floats(2, 1 << 17, 1), _one(4096), _floats(8192)), {})],
    "Split": [
        ((_floats(1024, 1024),), {"axis": 1, "num_outputs": 3}),
        ((_floats(1024, 1024), _ints(300, 724)), {}),
    ],
    "ScatterElements": [
        ((_floats(768, 768), TensorSpec((512, 512), "int64"), _floats(512, 512)),
         {"reduction": reduction})
        for reduction in ("none", "add", "mul", "max")
    ],
    "ScatterND": [
        ((_floats(1024, 512), TensorSpec((700, 1), "int64"), _floats(700, 512)),
         {"reduction": reduction})
        for reduction in ("none", "add", "mul", "max")
    ],
    "Sigmoid": [((_WIDE,), {})],
    "Sub": _elementwise(),
    "Tanh": [((_WIDE,), {})],
    "Tile": [((_floats(512, 512), _ints(2, 2)), {})],
    "UniqueInverse": [
        ((TensorSpec((1 << 17,)),), {"sorted": 0}),
        ((TensorSpec((1 << 17,), "int64"),), {}),
    ],
    "Where": [((TensorSpec((1 << 19,), "bool"), _floats(1 << 19), _floats(1 << 19)), {})],
}  # fmt: skip


def large_cases(gate: Gate, nbytes: int) -> Iterator[Case]:
    """Its explicit calls, or the first samples that can be enlarged, of different attributes."""
    explicit = EXPLICIT.get(gate.operator)
    if explicit:
        for specs, attributes in explicit:
            drawn = [None if isinstance(each, np.ndarray) else each for each in specs]
            inputs = draw(gate, tuple(drawn), "large")
            given = tuple(
                each if isinstance(each, np.ndarray) else found
                for each, found in zip(specs, inputs, strict=True)
            )
            yield Case(gate.operator, given, attributes)
        return
    seen: set[str] = set()
    cases = sorted(cases_of(gate), key=lambda case: not _has_float64(case))
    for case in cases:
        key = f"{sorted(case.attributes.items(), key=str)} {[each is None for each in case.inputs]}"
        if key in seen or len(seen) == _SAMPLES:
            continue
        found = _enlarged(case, nbytes)
        if found is not None:
            seen.add(key)
            yield found


def _has_float64(case: Case) -> bool:
    return any(each is not None and each.dtype == np.float64 for each in case.inputs)


def _enlarged(case: Case, nbytes: int) -> Case | None:
    """The same call with axes of equal sizes made longer alike, as the gate accepts it."""
    declared = case.gate.declared_inputs(len(case.inputs))
    free = [
        slot
        for slot, each in enumerate(declared)
        if case.inputs[slot] is not None and not each.known
    ]
    sizes = sorted({size for slot in free for size in case.inputs[slot].shape}, reverse=True)
    for chosen in ([*sizes], [size for size in sizes if size > 1], *([size] for size in sizes)):
        for factor in _factors(case, free, chosen, nbytes):
            shapes = {
                slot: tuple(
                    round(size * factor) if size in chosen else size
                    for size in case.inputs[slot].shape
                )
                for slot in free
            }
            specs = tuple(
                TensorSpec(shapes[slot], spec.dtype)
                if spec is not None and slot in shapes
                else spec
                for slot, spec in enumerate(case.specs())
            )
            if _is_measurable(case, specs, nbytes):
                return Case(case.operator, _filled(case, shapes), case.attributes)
    return None


def _factors(case: Case, free: list[int], chosen: list[int], nbytes: int) -> Iterator[float]:
    """Those that make all inputs about so large, whole ones too, for sizes that must divide."""
    most = max(
        (sum(size in chosen for size in case.inputs[slot].shape) for slot in free), default=0
    )
    total = sum(case.inputs[slot].nbytes for slot in free)
    if not most or not total:
        return
    factor = (nbytes / total) ** (1 / most)
    if factor >= 2:
        yield factor
        yield float(2 ** int(np.log2(factor)))


def _is_measurable(case: Case, specs: Inputs, nbytes: int) -> bool:
    try:
        outs = case.gate.check(specs, case.attributes)
    except Invalid:
        return False
    total = sum(each.nbytes for each in (*outs, *specs) if each is not None)
    attributes = case.gate.complete(case.attributes)
    return (
        nbytes / 4 < total < nbytes * 8
        and case.gate.operations(outs, *specs, **attributes) < _MOST_OPERATIONS
    )


def _filled(case: Case, shapes: Mapping[int, tuple[int, ...]]) -> tuple[Any, ...]:
    """Floats drawn from their domain; other elements repeated, so that indices stay inside."""
    declared = case.gate.declared_inputs(len(case.inputs))
    numbers = np.random.default_rng(0)
    filled = list(case.inputs)
    for slot, shape in shapes.items():
        given = case.inputs[slot]
        if str(given.dtype) in FLOATS:
            filled[slot] = numbers.uniform(*declared[slot].domain, shape).astype(given.dtype)
        elif given.size:
            repeats = -(-prod(shape) // given.size)
            filled[slot] = np.tile(given.reshape(-1), repeats)[: prod(shape)].reshape(shape)
        else:
            filled[slot] = np.zeros(shape, given.dtype)
    return tuple(filled)


def all_known(gate: Gate) -> bool:
    """Whether it is computed before anything runs, of a few elements."""
    return all(each.known for each in gate.inputs)


def gates() -> list[Gate]:
    return [gate for gate in GATES.values() if not all_known(gate) or gate.operator in EXPLICIT]
