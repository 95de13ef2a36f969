"""Gates keep to the accuracy that docs/gates.md states, at numbers of all sizes, tails included."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from functools import cache
from typing import Any

import mpmath
import numpy as np
import pytest
from gate_cases import Case, cases_of, is_floating, spread
from mpmath import mpf
from test_tape import circuit, everything, found, prepared

from gradwire_server.catalogue import ACCURACIES, COMPOSED, ELEMENTWISE, describe, family_of
from gradwire_server.engine.evaluation import Binding, Evaluation, prepare
from gradwire_server.engine.rows import SoftmaxRows
from gradwire_server.gates import GATES
from gradwire_server.gates.reductions import Reduction
from gradwire_server.graph import Leaf, Row
from gradwire_server.limits import Limits

FLOATS = ("float64", "float32")
#: Values in ulp, or in eps times the sum of magnitudes; gradients relative to the largest term.
VALUES, GRADIENTS = 4, 1e-4
#: What a gate's line `Accuracy:` allows instead.
OWN_VALUES = {"Gelu": 8}


def test_every_family_states_an_accuracy_and_every_gate_has_one() -> None:
    assert {family_of(gate) for gate in GATES.values()} == set(ACCURACIES)
    assert all(describe(gate).accuracy for gate in GATES.values())


# --- elementwise gates: against mpmath ---------------------------------------------------------

ALPHA, GAMMA = (mpf(each.default) for each in GATES["Selu"].attributes)


def _logistic(x: Any) -> Any:
    return 1 / (1 + mpmath.exp(-x))


def _softplus(x: Any) -> Any:
    return max(x, mpf(0)) + mpmath.log1p(mpmath.exp(-abs(x)))


def _normal(x: Any) -> Any:
    return mpmath.erfc(-x / mpmath.sqrt(2)) / 2 if abs(x) < 1e4 else mpf(x > 0)


def _mish_slope(x: Any) -> Any:
    bend = mpmath.tanh(_softplus(x))
    return bend + x * mpmath.sech(_softplus(x)) ** 2 * _logistic(x)


#: Value and derivative.
FORMULAS: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "Acos": (mpmath.acos, lambda x: -1 / mpmath.sqrt(1 - x * x)),
    "Acosh": (mpmath.acosh, lambda x: 1 / mpmath.sqrt(x * x - 1)),
    "Asin": (mpmath.asin, lambda x: 1 / mpmath.sqrt(1 - x * x)),
    "Asinh": (mpmath.asinh, lambda x: 1 / mpmath.sqrt(1 + x * x)),
    "Atan": (mpmath.atan, lambda x: 1 / (1 + x * x)),
    "Atanh": (mpmath.atanh, lambda x: 1 / (1 - x * x)),
    "Celu": (lambda x: x if x > 0 else mpmath.expm1(x), lambda x: mpmath.exp(min(x, 0))),
    "Cos": (mpmath.cos, lambda x: -mpmath.sin(x)),
    "Cosh": (mpmath.cosh, mpmath.sinh),
    "Elu": (lambda x: x if x > 0 else mpmath.expm1(x), lambda x: mpmath.exp(min(x, 0))),
    "Erf": (mpmath.erf, lambda x: 2 / mpmath.sqrt(mpmath.pi) * mpmath.exp(-x * x)),
    "Exp": (mpmath.exp, mpmath.exp),
    "Gelu": (lambda x: x * _normal(x), lambda x: _normal(x) + x * mpmath.npdf(x)),
    "Log": (mpmath.log, lambda x: 1 / x),
    "Mish": (lambda x: x * mpmath.tanh(_softplus(x)), _mish_slope),
    "Reciprocal": (lambda x: 1 / x, lambda x: -1 / (x * x)),
    "Selu": (
        lambda x: GAMMA * (x if x > 0 else ALPHA * mpmath.expm1(x)),
        lambda x: GAMMA * (1 if x > 0 else ALPHA * mpmath.exp(x)),
    ),
    "Sigmoid": (_logistic, lambda x: _logistic(x) * _logistic(-x)),
    "Sin": (mpmath.sin, mpmath.cos),
    "Sinh": (mpmath.sinh, mpmath.cosh),
    "Softplus": (_softplus, _logistic),
    "Softsign": (lambda x: x / (1 + abs(x)), lambda x: 1 / (1 + abs(x)) ** 2),
    "Sqrt": (mpmath.sqrt, lambda x: 1 / (2 * mpmath.sqrt(x))),
    "Swish": (
        lambda x: x * _logistic(x),
        lambda x: _logistic(x) * (1 + x * _logistic(-x)),
    ),
    "Tan": (mpmath.tan, lambda x: 1 + mpmath.tan(x) ** 2),
    "Tanh": (mpmath.tanh, lambda x: mpmath.sech(x) ** 2),
}
#: Largest terms, where terms cancel: of values, and of gradients.
VALUE_TERMS: dict[str, Callable[..., Any]] = {
    "HardSigmoid": lambda x: np.ones_like(x) / 2,
    "HardSwish": np.abs,
    "Mod": lambda _x, y: np.abs(y),
}
GRADIENT_TERMS = {"Gelu": 0.1, "HardSwish": 0.5, "Mish": 0.1, "SwiGLU": 0.1, "Swish": 0.1}


def sampled(dtype: str, label: str, count: int = 60) -> Any:
    """Both signs, sizes spread logarithmically: over the whole range, and where tails begin."""
    limits = np.finfo(dtype)
    rng = np.random.default_rng(zlib.crc32(label.encode()))
    whole = rng.uniform(-30 * np.log(10), np.log(float(limits.max)), count)
    near = rng.uniform(np.log(0.01), np.log(2 * np.log(float(limits.max))), 2 * count)
    sizes = np.exp(np.concatenate([whole, near]))
    signs = np.where(np.arange(sizes.size) % 2, 1, -1)
    return (signs * np.minimum(sizes, float(limits.max))).astype(dtype)


@cache
def reference(operator: str, dtype: str) -> tuple[Any, Any, Any]:
    """Points in the gate's domain, with the right values and derivatives there."""
    value, slope = FORMULAS[operator]
    with mpmath.workdps(60):
        numbers = map(mpf, sampled(dtype, operator).tolist())
        points = [(x, value(x), slope(x)) for x in numbers if isinstance(value(x), mpf)]
    x, values, slopes = zip(*points, strict=True)
    return np.array(x, float).astype(dtype), values, slopes


def by_arrays(operator: str, x: Any) -> tuple[Any, Any]:
    """Value and gradient by the gate itself."""
    case = Case(operator, (x,), {})
    return case.run()[0], case.pull((np.ones_like(x),))[0]


def by_tape(operator: str, x: Any) -> tuple[Any, Any]:
    """Value and gradient by compiled kernels."""
    leaf = Leaf("input", "x", str(x.dtype), ())
    graph = circuit([Row(operator, {}, 1, 1)], [(0, (1,))], [leaf], [2])
    run = found(prepared(graph, {"x": x}, len(x), {"o0": np.ones_like(x)}))
    return run["output", 0], run["leaf", 0]


def test_every_smooth_gate_of_one_number_has_its_formula() -> None:
    smooth = {
        gate.operator
        for gate in GATES.values()
        if family_of(gate) in ("transcendental", "activations") and len(gate.inputs) == 1
    }
    piecewise = {
        "HardSigmoid", "HardSwish", "LeakyRelu", "Relu", "Shrink", "ThresholdedRelu",
    }  # fmt: skip
    assert smooth - piecewise == set(FORMULAS) - {"Reciprocal", "Sqrt"}


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("engine", [by_arrays, by_tape])
@pytest.mark.parametrize("operator", FORMULAS)
def test_value_and_gradient_are_right_over_the_whole_range(
    operator: str, engine: Callable[..., Any], dtype: str
) -> None:
    limits = np.finfo(dtype)
    largest, smallest = float(limits.max), float(limits.tiny)
    x, values, slopes = reference(operator, dtype)
    out, to_x = (each.astype(object) for each in engine(operator, x))
    for number, exact, got, exact_slope, slope in zip(x, values, out, slopes, to_x, strict=True):
        call = f"{operator}({number!r})"
        if abs(exact) < largest:
            error = abs(mpf(float(got)) - exact)
            ulp = float(np.spacing(np.abs(number.dtype.type(float(exact)))))
            assert error <= OWN_VALUES.get(operator, VALUES) * ulp + smallest, (
                f"{call} is {got}, not {float(exact)}"
            )
        if abs(exact_slope) < largest:
            term = max(abs(exact_slope), GRADIENT_TERMS.get(operator, 0.0))
            error = abs(mpf(float(slope)) - exact_slope)
            what = f"the gradient of {call} is {slope}, not {float(exact_slope)}"
            assert error <= GRADIENTS * term + smallest, what
            assert slope or abs(exact_slope) < smallest, what


# --- elementwise gates: float32 against float64 ------------------------------------------------

NUMERIC = [gate.operator for gate in GATES.values() if ACCURACIES[family_of(gate)] == ELEMENTWISE]


@pytest.mark.parametrize("operator", NUMERIC)
def test_float32_is_as_float64_at_numbers_of_all_sizes(operator: str) -> None:
    gate = GATES[operator]
    least = sum(not each.optional for each in gate.inputs)
    count = 2 if gate.inputs[-1].variadic else least
    inputs = tuple(sampled("float32", f"{operator} {slot}", 200) for slot in range(count))
    attributes = {"fmod": 1} if operator == "Mod" else {}
    narrow = Case(operator, inputs, attributes)
    wide = narrow.as_dtype("float64")
    ones = np.ones_like(inputs[0])
    compared = [(narrow.run()[0], wide.run()[0], False)]
    pairs = zip(narrow.pull((ones,)), wide.pull((ones.astype(float),)), strict=True)
    compared += [(got, exact, True) for got, exact in pairs if got is not None]
    largest, smallest = (float(getattr(np.finfo("float32"), name)) for name in ("max", "tiny"))
    for got, exact, is_gradient in compared:
        if is_gradient:
            terms = np.maximum(np.abs(exact), GRADIENT_TERMS.get(operator, 0.0))
            allowed = GRADIENTS * terms
        else:
            terms = VALUE_TERMS.get(operator, lambda *_: 0.0)(*wide.inputs)
            ulps = OWN_VALUES.get(operator, VALUES)
            allowed = ulps * np.finfo("float32").eps * np.maximum(np.abs(exact), terms)
        checked = np.abs(exact) < largest
        got, exact = np.where(checked, got, 0.0), np.where(checked, exact, 0.0)
        lost = (np.abs(exact) > smallest) & (got == 0)
        wrong = (np.abs(got - exact) > allowed + smallest) | (lost & is_gradient)
        first = [each[wrong][:3].tolist() for each in (*inputs, got, exact)]
        assert not wrong.any(), f"{operator} (gradient: {is_gradient}): {first}"


# --- sums ---------------------------------------------------------------------------------------

REDUCTIONS = [gate.operator for gate in GATES.values() if isinstance(gate, Reduction)]
#: What is added, where it is not what the gate is given.
ADDED: dict[str, Callable[..., Any]] = {
    "ReduceLogSum": lambda _x, out: 1 + np.abs(out),
    "ReduceLogSumExp": lambda x, out: 1 + np.abs(out) + np.abs(x).max(-1, keepdims=True),
}


def drawn(operator: str, kind: str, shape: tuple[int, ...]) -> Any:
    rng = np.random.default_rng(zlib.crc32(operator.encode()))
    numbers = {
        "small": lambda: rng.normal(0, 1, shape),
        "far from 0": lambda: rng.normal(0, 1, shape) + 1e4,
        "of all sizes": lambda: rng.normal(0, 1, shape) * 10 ** rng.uniform(-9, 9, shape),
    }[kind]()
    numbers = np.abs(numbers) if operator == "ReduceLogSum" else numbers
    return numbers.astype("float32")


@pytest.mark.parametrize("kind", ["small", "far from 0", "of all sizes"])
@pytest.mark.parametrize("operator", REDUCTIONS)
def test_reduction_loses_no_more_than_four_eps_of_what_it_adds(operator: str, kind: str) -> None:
    count = 8 if operator == "ReduceProd" else 3000  # more factors overflow
    x = drawn(operator, kind, (20, count))
    case = Case(operator, (x, np.array([-1])), {})
    wide = case.as_dtype("float64")
    (got,), (exact,) = case.run(), wide.run()
    (magnitude,) = Case(operator, (np.abs(wide.inputs[0]), np.array([-1])), {}).run()
    if operator in ADDED:
        magnitude = ADDED[operator](wide.inputs[0], exact)
    rounded = count / 2 if operator == "ReduceProd" else VALUES
    fits = np.abs(exact) < np.finfo("float32").max
    error = np.abs(got - exact)[fits]
    assert (error <= rounded * np.finfo("float32").eps * magnitude[fits]).all(), case
    to_x, expected = (each.pull((np.ones_like(each.run()[0]),))[0] for each in (case, wide))
    fits = np.abs(expected) < np.finfo("float32").max
    np.testing.assert_allclose(to_x[fits], expected[fits], GRADIENTS, np.finfo("float32").tiny)


@pytest.mark.parametrize("operator", ["ReduceSum", "ReduceMean", "ReduceL1", "CumSum"])
def test_rows_added_one_by_one_lose_no_more_than_the_root_of_their_number(operator: str) -> None:
    count = 3000
    x = np.random.default_rng(0).uniform(0, 1, (count, 20)).astype("float32")
    axis = np.array(0) if operator == "CumSum" else np.array([0])
    case = Case(operator, (x, axis), {})
    (got,), (exact,) = case.run(), case.as_dtype("float64").run()
    np.testing.assert_allclose(got, exact, np.sqrt(count) * np.finfo("float32").eps)


@pytest.mark.parametrize("rows", [2, 3, 6])
def test_determinants_lose_no_more_than_a_share_of_the_rows_norms(rows: int) -> None:
    x = np.random.default_rng(0).normal(0, 1, (50, rows, rows)).astype("float32")
    x[:10, 1] = x[:10, 0] * np.float32(3)  # singular, or nearly
    case = Case("Det", (x,), {})
    (got,), (exact,) = case.run(), case.as_dtype("float64").run()
    norms = np.linalg.norm(x, axis=-1).prod(-1)
    assert (np.abs(got - exact) <= 4 * rows * np.finfo("float32").eps * norms).all()


@pytest.mark.parametrize("family", ["convolution", "linear_algebra", "pooling"])
def test_sums_of_products_lose_no_more_than_four_eps_of_what_they_add(family: str) -> None:
    checked = 0
    for gate in GATES.values():
        if family_of(gate) != family or gate.operator in ("Det", "Cofactor"):
            continue
        for case in cases_of(gate):
            if (case.example and case.example.at_kink) or not is_floating(case.inputs[0]):
                continue
            case = case.as_dtype("float32")
            wide = case.as_dtype("float64")
            linear = {"activation": "none"} if "activation" in case.attributes else {}
            inputs = tuple(
                np.abs(x) if x is not None and is_floating(x) else x for x in wide.inputs
            )
            positive = Case(gate.operator, inputs, {**case.attributes, **linear})
            for got, exact, magnitude in zip(case.run(), wide.run(), positive.run(), strict=True):
                if is_floating(got):
                    allowed = VALUES * np.finfo("float32").eps * magnitude
                    assert (np.abs(got - exact) <= allowed).all(), case
                    checked += 1
    assert checked > 20


COMPOSED_CASES = [
    case.as_dtype("float32")
    for gate in GATES.values()
    if ACCURACIES[family_of(gate)] == COMPOSED
    for case in cases_of(gate)
    if case.smooth and all(x is None or str(x.dtype) != "float16" for x in case.inputs)
]


@pytest.mark.parametrize("case", COMPOSED_CASES, ids=lambda case: case.operator)
def test_float32_is_as_float64_to_two_hundred_eps(case: Case) -> None:
    wide = case.as_dtype("float64")
    outs, exact = case.run(), wide.run()
    pairs = [*zip(outs, exact, strict=True)]
    if is_floating(outs[0]):
        seeds = (np.ones_like(outs[0]), *(None for _ in outs[1:]))
        doubled = (np.ones_like(exact[0]), *(None for _ in outs[1:]))
        pairs += zip(case.pull(seeds), wide.pull(doubled), strict=True)
    for got, right in pairs:
        if got is not None and is_floating(got):
            allowed = 200 * np.finfo("float32").eps * spread(right)
            np.testing.assert_allclose(got, right, rtol=0, atol=allowed, err_msg=str(case))


# --- tails, ties and nothing to do --------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("distance", [5.0, 17.0, 40.0, 80.0])
def test_gradient_of_a_certain_softmax_keeps_its_digits(distance: float, dtype: str) -> None:
    x = np.array([0.0, distance, 0.5], dtype)
    small = [float(1 / sum(mpmath.exp(float(other - each)) for other in x)) for each in x]
    rest = small[0] + small[2]
    first, second = np.array([0.0, 1.0, 0.0], dtype), np.array([1.0, 0.0, 0.0], dtype)
    for operator, seed, expected in (
        ("Softmax", first, [-small[0] * small[1], small[1] * rest, -small[2] * small[1]]),
        ("LogSoftmax", first, [-small[0], rest, -small[2]]),
        ("LogSoftmax", second, [1 - small[0], -small[1], -small[2]]),
    ):
        (to_x,) = Case(operator, (x,), {}).pull((seed,))
        np.testing.assert_allclose(to_x, expected, GRADIENTS, err_msg=operator)
    loss = Case("SoftmaxCrossEntropyLoss", (x[None], np.array([1])), {})
    to_x, _ = loss.pull((np.ones((), dtype), None))
    np.testing.assert_allclose(to_x, [[small[0], -rest, small[2]]], GRADIENTS)


@pytest.mark.parametrize("dtype", FLOATS)
def test_rows_kernel_keeps_the_digits_of_a_certain_softmax(dtype: str) -> None:
    x = np.zeros((300, 67), dtype)
    x[:, 5] = np.linspace(5, 80, 300)
    seed = np.zeros_like(x)
    seed[:, 5] = 1
    leaf = Leaf("input", "x", dtype, x.shape)
    graph = circuit([Row("Softmax", {"axis": -1}, 1, 1)], [(0, (1,))], [leaf], [2])
    asked = everything(Evaluation({"x": Binding(x, False)}, 0, {"o0": seed}))
    job = prepare(graph, asked, Limits())
    assert any(isinstance(each, SoftmaxRows) for each in job.compiled.regions.values())
    (to_x,) = Case("Softmax", (x,), {}).pull((seed,))
    assert (to_x != 0).all()
    np.testing.assert_allclose(found(job)["leaf", 0], to_x, GRADIENTS)


@pytest.mark.parametrize("dtype", FLOATS)
def test_smooth_maximum_of_infinities_passes_its_gradient_to_them(dtype: str) -> None:
    inf = np.inf
    x = np.array([[1, inf, 2], [inf, inf, 0], [-inf, -inf, -inf], [-inf, 3, -inf]], dtype)
    case = Case("ReduceLogSumExp", (x, np.array([-1])), {"keepdims": 0})
    np.testing.assert_array_equal(case.run()[0], [inf, inf, -inf, 3])
    to_x, _ = case.pull((np.ones(4, dtype),))
    assert to_x.dtype == dtype
    np.testing.assert_array_equal(to_x, [[0, 1, 0], [0.5, 0.5, 0], [0, 0, 0], [0, 1, 0]])


NORMALIZATIONS = {
    "LayerNormalization": ((100,), {}),
    "InstanceNormalization": ((3,), {}),
    "GroupNormalization": ((3,), {"num_groups": 3}),
    "BatchNormalization": ((3,), {"training_mode": 1}),
    "MeanVarianceNormalization": (None, {"axes": (0, 2)}),
}


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("operator", NORMALIZATIONS)
def test_constant_slices_normalize_to_zero(operator: str, dtype: str) -> None:
    shape, attributes = NORMALIZATIONS[operator]
    for number in (123456.7, 0.1, -3e-7, 1e6 / 3):
        x = np.full((2, 3, 100), number, dtype)
        count = len(GATES[operator].inputs) - 1
        others = () if shape is None else (np.ones(shape, dtype), *[np.zeros(shape, dtype)] * 4)
        out = Case(operator, (x, *others[:count]), attributes).run()
        np.testing.assert_array_equal(out[0], np.zeros_like(x), err_msg=str(number))
        if operator == "LayerNormalization":
            np.testing.assert_array_equal(out[1], x[:, :, :1])


LOSSES = ("SoftmaxCrossEntropyLoss", "NegativeLogLikelihoodLoss")


def loss_of(operator: str, scores: Any, labels: Any, weights: Any, **attributes: Any) -> Case:
    if operator == "NegativeLogLikelihoodLoss":
        (scores,) = Case("LogSoftmax", (scores,), {"axis": 1}).run()
    return Case(operator, (scores, labels, weights), attributes)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("shape", [(5, 3), (4, 3, 2), (2, 3, 2, 2)])
@pytest.mark.parametrize("operator", LOSSES)
def test_class_weights_of_either_sign_weigh(
    operator: str, shape: tuple[int, ...], reduction: str
) -> None:
    rng = np.random.default_rng(0)
    scores, weights = rng.normal(0, 2, shape), np.array([-4.8, 7.58, -0.6])
    labels = rng.integers(0, 3, (shape[0], *shape[2:]))
    labels.flat[0] = -1
    case = loss_of(operator, scores, labels, weights, reduction=reduction, ignore_index=-1)
    log_prob = scores - np.log(np.exp(scores).sum(1, keepdims=True))
    counted = np.where(labels == -1, 0.0, weights[labels])
    losses = -counted * np.take_along_axis(log_prob, labels[:, None] % 3, 1)[:, 0]
    expected = {"none": losses, "sum": losses.sum(), "mean": losses.sum() / counted.sum()}
    np.testing.assert_allclose(case.run()[0], expected[reduction], 1e-12)


@pytest.mark.parametrize("ignored", [True, False])
@pytest.mark.parametrize("shape", [(3, 4), (2, 4, 3)])
@pytest.mark.parametrize("operator", LOSSES)
def test_mean_of_no_rows_is_not_a_number_and_has_no_gradient(
    operator: str, shape: tuple[int, ...], ignored: bool
) -> None:
    labels = np.full((shape[0], *shape[2:]), 2)
    weights = np.array([1.0, 2.0, 3.0 if ignored else 0.0, 4.0])
    attributes = {"ignore_index": 2} if ignored else {}
    case = loss_of(operator, np.ones(shape), labels, weights, **attributes)
    outs = case.run()
    assert np.isnan(outs[0])
    to_scores, _, to_weights = case.pull((np.float64(1.0), *(None for _ in outs[1:])))
    np.testing.assert_array_equal(to_scores, np.zeros(shape))
    if ignored:
        np.testing.assert_array_equal(to_weights, np.zeros(4))
    none = Case(operator, case.inputs, {**attributes, "reduction": "sum"})
    assert none.run()[0] == 0
    np.testing.assert_array_equal(none.pull((np.float64(1.0), None)[: len(outs)])[0], 0)
