"""What every gate promises, discovered from the table."""

from __future__ import annotations

import importlib
import itertools
import pkgutil
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from gate_cases import TOLERANCES, Case, all_cases, spread, to_array

import gradwire_server.gates
from gradwire_server import arrays
from gradwire_server.catalogue import describe
from gradwire_server.errors import REASONS, Refusal
from gradwire_server.gates import GATES, Gate
from gradwire_server.gates.base import ElementwiseGate, Rejection

CASES = list(all_cases())
SMOOTH = [case for case in CASES if case.smooth]
STEP = 1e-6


def label(case: Case) -> str:
    shapes = ",".join(
        "-" if x is None else "x".join(map(str, x.shape)) or "()" for x in case.inputs
    )
    return f"{case.operator}[{shapes}]"


def every(cases: list[Case]) -> Any:
    return pytest.mark.parametrize("case", cases, ids=label)


def assert_close(found: Any, expected: Any, case: Case, dtype: str, what: str) -> None:
    found, expected = np.asarray(found), np.asarray(expected)
    tolerance = TOLERANCES[dtype] * spread(found.astype(float), expected.astype(float))
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance, err_msg=f"{what}: {case}")


def floating(outs: tuple[Any, ...]) -> list[bool]:
    return [np.asarray(out).dtype.kind == "f" for out in outs]


def test_every_gate_class_is_listed() -> None:
    package = gradwire_server.gates
    classes = set()
    for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        for found in vars(importlib.import_module(module.name)).values():
            if isinstance(found, type) and issubclass(found, Gate) and "operator" in vars(found):
                classes.add(found)
    assert classes == {type(gate) for gate in GATES.values()}


@pytest.mark.parametrize("operator", GATES)
def test_docstring_has_its_lines(operator: str) -> None:
    described = describe(GATES[operator])
    assert described.summary.endswith(".")
    if any(example.at_kink for example in GATES[operator].examples):
        assert described.subgradient, "an example at a kink needs the line Kinks:"


@pytest.mark.parametrize("operator", GATES)
def test_has_an_example_with_its_gradient(operator: str) -> None:
    gate = GATES[operator]
    assert gate.examples
    for example in gate.examples:
        out = to_array(example.output[0] if isinstance(example.output, tuple) else example.output)
        inputs = [to_array(each) for each in example.inputs]
        if out.dtype.kind == "f" and any(x is not None and x.dtype.kind == "f" for x in inputs):
            assert example.gradients is not None, example


@every([case for case in CASES if case.example])
def test_example_holds(case: Case) -> None:
    assert case.example
    expected = case.example.output
    outs = expected if isinstance(expected, tuple) else (expected,)
    found = case.run()
    for out, value in zip(found, outs, strict=False):
        assert_close(out, to_array(value), case, "float64", "output")
    if case.example.gradients is not None:
        seeds = (np.ones_like(found[0]), *(None for _ in found[1:]))
        if case.gate.outputs[1] == 0:
            seeds = tuple(map(np.ones_like, found))
        pulled = case.pull(seeds)
        for to_input, value in zip(pulled, case.example.gradients, strict=True):
            assert (to_input is None) == (value is None), case
            if value is not None:
                assert_close(to_input, to_array(value), case, "float64", "gradient")


@pytest.mark.parametrize(
    ("operator", "rejection"),
    [(gate.operator, each) for gate in GATES.values() for each in gate.rejections],
    ids=lambda each: each if isinstance(each, str) else each.reason,
)
def test_refuses_with_reason_and_words(operator: str, rejection: Rejection) -> None:
    with pytest.raises(Refusal) as refused:
        GATES[operator].check(rejection.inputs, rejection.attributes)
    assert refused.value.reason == rejection.reason
    assert rejection.reason in REASONS
    assert rejection.message in refused.value.message


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@every(CASES)
def test_infer_is_the_result(case: Case, dtype: str) -> None:
    case = case.as_dtype(dtype)
    specs = case.gate.check(case.specs(), case.attributes)
    outs = case.run()
    assert len(specs) == len(outs)
    for spec, out in zip(specs, outs, strict=True):
        assert (spec.shape, spec.dtype) == (np.shape(out), str(np.asarray(out).dtype)), case
        if spec.value is not None:
            assert spec.value == tuple(np.asarray(out).reshape(-1).tolist()), case


def _seeds(outs: tuple[Any, ...], rng: np.random.Generator) -> tuple[Any, ...]:
    return tuple(
        np.asarray(rng.standard_normal(np.shape(out)), np.asarray(out).dtype) if floats else None
        for out, floats in zip(outs, floating(outs), strict=True)
    )


@every(SMOOTH)
def test_gradient_is_the_finite_difference(case: Case) -> None:
    outs = case.run()
    if not any(floating(outs)):
        return
    rng = np.random.default_rng(1)
    seeds = _seeds(outs, rng)
    for slot, to_input in enumerate(case.pull(seeds)):
        x = case.inputs[slot]
        declared = case.gate.declared_inputs(len(case.inputs))[slot]
        if x is None or x.dtype.kind != "f" or declared.known:
            assert to_input is None, case
            continue
        if to_input is None:  # a gate may say that it has none, such as through a Cast to int
            continue
        if not x.size:
            assert to_input.shape == x.shape
            continue
        direction = rng.standard_normal(x.shape)

        def along(step: float, slot: int = slot, x: Any = x, way: Any = direction) -> float:
            moved = (*case.inputs[:slot], x + step * way, *case.inputs[slot + 1 :])
            return sum(
                float(np.sum(seed * out))
                for seed, out in zip(seeds, case.run(moved), strict=True)
                if seed is not None
            )

        expected = (along(STEP) - along(-STEP)) / (2 * STEP)
        found = float(np.sum(to_input * direction))
        assert found == pytest.approx(expected, rel=2e-6, abs=2e-7 * spread(*outs)), case


@every(SMOOTH)
def test_float32_gradient_stays_float32_and_agrees(case: Case) -> None:
    single = case.as_dtype("float32")
    outs = single.run()
    if not any(floating(outs)):
        return
    seeds = _seeds(outs, np.random.default_rng(2))
    doubled = tuple(None if seed is None else seed.astype("float64") for seed in seeds)
    wide = single.as_dtype("float64")
    if [np.asarray(out).dtype for out in wide.run()] != [np.dtype("float64")] * len(outs):
        return  # the gate itself fixes the data type
    for narrow, reference in zip(single.pull(seeds), wide.pull(doubled), strict=True):
        if narrow is not None:
            assert str(narrow.dtype) == "float32", case
            assert_close(narrow, reference, case, "float32", "gradient")


@every(CASES)
def test_inputs_are_left_alone(case: Case) -> None:
    frozen = tuple(None if x is None else x.copy() for x in case.inputs)
    for array in frozen:
        if array is not None:
            array.flags.writeable = False
    strided = tuple(x if x is None or not x.ndim else np.repeat(x, 2, axis=0)[::2] for x in frozen)
    for expected, found in zip(case.run(frozen), case.run(strided), strict=True):
        np.testing.assert_array_equal(expected, found)


@every([case for case in SMOOTH if case.inputs])
def test_batch_equals_row_by_row(case: Case) -> None:
    specs = case.specs()
    aligned = case.gate.aligned_shapes(*specs, **case.gate.complete(case.attributes))
    if aligned is None:
        return
    declared = case.gate.declared_inputs(len(case.inputs))
    rows = 3
    stacked = tuple(
        x
        if x is None or each.known
        else np.stack([x * factor if x.dtype.kind == "f" else x for factor in (1.0, 0.9, 0.8)])
        for each, x in zip(declared, case.inputs, strict=True)
    )
    lifted = tuple(
        x if x is None or each.known else x.reshape(rows, *shape)
        for each, x, shape in zip(declared, stacked, aligned, strict=True)
    )
    whole = Case(case.operator, lifted, case.attributes)
    outs = whole.run()
    for row in range(rows):
        single = tuple(
            x if x is None or each.known else x[row]
            for each, x in zip(declared, stacked, strict=True)
        )
        alone = Case(case.operator, single, case.attributes)
        for out, expected in zip(outs, alone.run(), strict=True):
            np.testing.assert_allclose(
                out[row].reshape(np.shape(expected)), expected, rtol=1e-12, err_msg=str(case)
            )
        if all(floating(outs)):
            seeds = tuple(np.ones_like(out) for out in outs)
            ones = tuple(np.ones_like(out) for out in alone.run())
            for to_lifted, to_single in zip(whole.pull(seeds), alone.pull(ones), strict=True):
                if to_single is not None:
                    np.testing.assert_allclose(
                        to_lifted[row].reshape(to_single.shape), to_single, rtol=1e-11, atol=1e-12
                    )


@pytest.mark.parametrize(
    "operator", [op for op, gate in GATES.items() if isinstance(gate, ElementwiseGate)]
)
def test_elementwise_gate_handles_rank_0_and_empty(operator: str) -> None:
    shapes = {case.inputs[0].shape for case in CASES if case.operator == operator}
    assert {(), (0,)} <= shapes


def test_namespace_offers_what_it_lists() -> None:
    assert arrays.__all__ == sorted(arrays.__all__)
    assert all(callable(getattr(arrays, name)) for name in arrays.__all__)


FINITE = (0.0, -0.0, 0.5, 1.0, -1.0, 3.0, -3.0, 710.0, -710.0, 1e200, -1e200, 1e308, -1e308, 5e-324)


def pulled_everywhere(operator: str, seed: float) -> Iterator[tuple[str, float]]:
    """The gradient at each combination of extreme numbers, with the call that gave it."""
    gate = GATES[operator]
    attributes = {"fmod": 1} if operator == "Mod" else {}
    count = 2 if gate.inputs[0].variadic else len(gate.inputs)
    points = np.array([*itertools.product(FINITE, repeat=count)]).T
    inputs = tuple(
        column if "float64" in declared.dtypes else column > 0
        for declared, column in zip(gate.declared_inputs(count), points, strict=True)
    )
    case = Case(operator, inputs, attributes)
    for to_input in case.pull((np.full(len(points[0]), seed),)):
        if to_input is not None:
            for point, out, found in zip(points.T, case.run()[0], to_input, strict=True):
                if seed == 0 or not np.isnan(out):
                    yield f"{operator}{tuple(point.tolist())}, seed {seed}", float(found)


FLOATING = [
    op
    for op, gate in GATES.items()
    if isinstance(gate, ElementwiseGate)
    and any("float64" in each.dtypes for each in gate.inputs)
    and gate.output_dtype is None
    and not any(each.required for each in gate.attributes)
]


@pytest.mark.parametrize("operator", FLOATING)
def test_no_gradient_is_not_a_number_where_the_output_is_one(operator: str) -> None:
    wrong = [call for call, found in pulled_everywhere(operator, 1.0) if np.isnan(found)]
    assert not wrong


@pytest.mark.parametrize("operator", FLOATING)
def test_zero_gradient_stays_zero_at_every_finite_input(operator: str) -> None:
    wrong = [call for call, found in pulled_everywhere(operator, 0.0) if found != 0]
    assert not wrong


@pytest.mark.parametrize(
    ("operator", "attributes", "low", "high"),
    [
        ("Sigmoid", {}, (0.0, 0.0), (1.0, 0.0)),
        ("Tanh", {}, (-1.0, 0.0), (1.0, 0.0)),
        ("Softsign", {}, (-1.0, 0.0), (1.0, 0.0)),
        ("HardSigmoid", {}, (0.0, 0.0), (1.0, 0.0)),
        ("Erf", {}, (-1.0, 0.0), (1.0, 0.0)),
        ("Relu", {}, (0.0, 0.0), (np.inf, 1.0)),
        ("Softplus", {}, (0.0, 0.0), (np.inf, 1.0)),
        ("Elu", {}, (-1.0, 0.0), (np.inf, 1.0)),
        ("HardSwish", {}, (0.0, 0.0), (np.inf, 1.0)),
        ("Mish", {}, (0.0, 0.0), (np.inf, 1.0)),
        ("Gelu", {}, (0.0, 0.0), (np.inf, 1.0)),
        ("Gelu", {"approximate": "tanh"}, (0.0, 0.0), (np.inf, 1.0)),
    ],
)
def test_activation_reaches_its_limits(
    operator: str,
    attributes: dict[str, Any],
    low: tuple[float, float],
    high: tuple[float, float],
) -> None:
    for dtype in ("float64", "float32"):
        case = Case(operator, (np.array([-np.inf, np.inf], dtype),), attributes)
        (out,) = case.run()
        (to_x,) = case.pull((np.ones(2, dtype),))
        np.testing.assert_array_equal([out, to_x], [*zip(low, high, strict=True)], str(case))


@pytest.mark.parametrize(
    ("a", "b", "a_zero", "b_zero"),
    [
        ((2, 3), (3, 4), (1,), (1,)), ((3,), (3, 4), (), ()), ((3,), (3, 4), (1,), (4,)),
        ((2, 3), (3,), (), (1,)), ((3,), (3,), (1,), (1,)), ((3,), (3,), (), None),
        ((5, 2, 3), (3,), (1,), ()), ((3,), (5, 3, 4), (), (5, 1, 4)),
        ((5, 2, 3), (5, 3, 4), (5, 2, 1), (1, 4)), ((1, 3), (3, 1), (1, 1), (1, 1)),
    ],
)  # fmt: skip
def test_integer_products_are_exact_at_every_rank(a: Any, b: Any, a_zero: Any, b_zero: Any) -> None:
    numbers = np.random.default_rng(0)
    inputs = [
        numbers.integers(0, 256, a).astype("uint8"),
        numbers.integers(-128, 128, b).astype("int8"),
    ]
    zeros = [
        None if shape is None else numbers.integers(0, 9, shape).astype(dtype)
        for shape, dtype in ((a_zero, "uint8"), (b_zero, "int8"))
    ]
    case = Case("MatMulInteger", (*inputs, *zeros), {})
    left, right = (each.astype(np.int64) for each in inputs)
    for_rows, for_columns = (0 if each is None else each.astype(np.int64) for each in zeros)
    expected = np.asarray((left - for_rows) @ (right - for_columns))
    (spec,) = case.gate.check(case.specs(), {})
    np.testing.assert_array_equal(case.run()[0], expected)
    assert (spec.shape, spec.dtype) == (expected.shape, "int32")


def test_small_probability_keeps_its_digits() -> None:
    (out,) = Case("Sigmoid", (np.array([-20.0, -40.0, -700.0]),), {}).run()
    np.testing.assert_allclose(np.log(out), [-20.0 - 2.061153620314381e-09, -40.0, -700.0], 1e-15)


def test_impossible_class_does_not_spoil_the_weights_gradient() -> None:
    scores = np.array([[0.0, -np.inf, 0.0]])
    case = Case(
        "SoftmaxCrossEntropyLoss", (scores, np.array([0]), np.ones(3)), {"reduction": "sum"}
    )
    _, _, to_weights = case.pull((np.float64(1.0), None))
    np.testing.assert_allclose(to_weights, [np.log(2.0), 0.0, 0.0])
