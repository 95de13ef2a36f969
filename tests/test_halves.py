"""Half precision: values are held in 16 bits, computed in float32, and rounded once."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from gate_cases import Case, all_cases, is_floating, spread
from onnx.reference import ReferenceEvaluator
from test_gradient_graph import differentiable, label, one_node

import gradwire as gw
from gradwire import tensors
from gradwire.cli import main
from gradwire_server import arrays
from gradwire_server.codec.graphs import decode_graph
from gradwire_server.engine import evaluation as evaluate
from gradwire_server.engine import runs
from gradwire_server.engine.compiled import NOTHING
from gradwire_server.engine.evaluation import Binding, Evaluation
from gradwire_server.engine.symbolic import gradient_graph
from gradwire_server.errors import Invalid
from gradwire_server.gates import OPERATOR_SETS
from gradwire_server.graph import Graph
from gradwire_server.limits import Limits
from gradwire_server.specs import HALVES, ONNX_NUMBERS

HALF = pytest.mark.parametrize("dtype", HALVES)
EPSILON = {dtype: float(ml_dtypes.finfo(dtype).eps) for dtype in HALVES}


def takes(case: Case, dtype: str) -> bool:
    """Whether a case is one of floating inputs that all may be of the data type."""
    declared = case.gate.declared_inputs(len(case.inputs))
    found = [
        dtype in each.dtypes
        for each, x in zip(declared, case.inputs, strict=True)
        if x is not None and is_floating(x)
    ]
    return any(found) and all(found)


CASES = {dtype: [case for case in all_cases() if takes(case, dtype)] for dtype in HALVES}
PAIRS = [(dtype, case) for dtype, cases in CASES.items() for case in cases]


def every(pairs: list[tuple[str, Case]]) -> Any:
    ids = [f"{dtype}-{label(case)}" for dtype, case in pairs]
    return pytest.mark.parametrize(("dtype", "case"), pairs, ids=ids)


def run(graph: Graph, asked: Evaluation) -> Any:
    with np.errstate(all="ignore"):
        outputs, gradients, *_ = runs.run(evaluate.prepare(graph, asked, Limits()), lambda: False)
    return dict(outputs), dict(gradients)


def seeds_of(outs: tuple[Any, ...], dtype: str) -> tuple[Any, ...]:
    """Numbers that half precision holds."""
    rng = np.random.default_rng(3)
    return tuple(
        np.asarray(rng.standard_normal(np.shape(out))).astype(dtype) if is_floating(out) else None
        for out in outs
    )


def as_doubles(x: Any) -> Any:
    """Comparable: NumPy's tests do not know bfloat16's NaN."""
    return x.astype("float64")


def rounded(x: Any, dtype: Any) -> Any:
    with np.errstate(all="ignore"):
        return as_doubles(np.asarray(x).astype(dtype))


@every(PAIRS)
def test_gate_in_half_precision_is_that_of_float32_rounded_once(dtype: str, case: Case) -> None:
    half = case.as_dtype(dtype)
    single = half.as_dtype("float32")
    graph, outs = one_node(half), single.run()
    specs = half.gate.check(half.specs(), half.attributes)
    seeds = seeds_of(outs, dtype)
    given = {
        f"out{slot}": seed.astype(spec.dtype)
        for slot, (seed, spec) in enumerate(zip(seeds, specs, strict=True))
        if seed is not None
    }
    found, gradients = run(graph, Evaluation(seeds=given, forward_only=not given))
    for slot, (out, spec) in enumerate(zip(outs, specs, strict=True)):
        if f"out{slot}" in found:
            assert found[f"out{slot}"].dtype == spec.dtype, half
            np.testing.assert_array_equal(
                as_doubles(found[f"out{slot}"]), rounded(out, spec.dtype), str(half)
            )
    wide = tuple(None if seed is None else seed.astype("float32") for seed in seeds)
    pulled = single.pull(wide) if given else []
    for slot, to_input in enumerate(pulled):
        if f"x{slot}" in gradients:
            expected = np.zeros(half.inputs[slot].shape) if to_input is None else to_input
            assert gradients[f"x{slot}"].dtype == dtype, half
            np.testing.assert_array_equal(
                as_doubles(gradients[f"x{slot}"]), rounded(expected, dtype), str(half)
            )


#: One case of each operator.
DIFFERENTIABLE = [
    (dtype, case)
    for dtype, cases in CASES.items()
    for case in {
        case.operator: case for case in reversed(cases) if case.smooth and differentiable(case)
    }.values()
]


@every(DIFFERENTIABLE)
def test_gradient_graph_in_half_precision_gives_the_same_gradient(dtype: str, case: Case) -> None:
    half = case.as_dtype(dtype)
    graph, outs = one_node(half), half.run()
    specs = half.gate.check(half.specs(), half.attributes)
    seeds = {
        f"out{slot}": seed.astype(spec.dtype)
        for slot, (seed, spec) in enumerate(zip(seeds_of(outs, dtype), specs, strict=True))
        if seed is not None
    }
    outputs, gradients = run(graph, Evaluation(seeds=seeds))
    backward = gradient_graph(graph, (), {}, Limits())
    bound = {f"grad/{name}": Binding(seed) for name, seed in seeds.items()}
    found, _ = run(backward, Evaluation(bound, forward_only=True))
    for name, expected in outputs.items():
        np.testing.assert_array_equal(as_doubles(found[name]), as_doubles(expected), str(half))
    for name, expected in gradients.items():
        assert found[f"grad/{name}"].dtype == dtype
        assert_half_close(found[f"grad/{name}"], expected, dtype, half)


def assert_half_close(found: Any, expected: Any, dtype: str, case: Case, steps: float = 1) -> None:
    """One float32 computation may take another order than the other: a last bit may differ."""
    found, expected = as_doubles(found), as_doubles(expected)
    tolerance = steps * EPSILON[dtype] * spread(expected)
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance, err_msg=str(case))


@every(DIFFERENTIABLE)
def test_second_order_in_half_precision_is_that_of_float32(dtype: str, case: Case) -> None:
    half = case.as_dtype(dtype)
    found, expected = (twice(each) for each in (half, half.as_dtype("float32")))
    assert found.keys() == expected.keys()
    for name, grad in found.items():
        assert str(grad.dtype) == dtype or name.startswith("grad/")
        assert_half_close(grad, expected[name], dtype, half, steps=4)


def twice(case: Case) -> dict[str, Any]:
    """The gradients of the sum of all gradients, and of all outputs."""
    once = gradient_graph(one_node(case), (), {}, Limits())
    bound = {
        leaf.name: Binding(np.ones(leaf.axes, leaf.dtype))
        for leaf in once.leaves
        if leaf.value is None
    }
    plan = evaluate.prepare(once, Evaluation(bound, forward_only=True), Limits()).plan
    seeds = {
        output.name: np.ones(plan.shape(output.value_ids[0]), plan.spec(output.value_ids[0]).dtype)
        for output in once.outputs
    }
    _, found = run(once, Evaluation(bound, seeds=seeds))
    return found


@HALF
def test_gradient_of_a_value_used_often_is_summed_in_float32(dtype: str) -> None:
    """Added one by one in half precision, the small parts would all be lost."""
    graph = gw.Graph()
    x = graph.input("x", dtype=dtype)
    small = EPSILON[dtype] / 4
    total = x
    for _ in range(16):
        total = total + x * small
    graph.output("f", total)
    _, gradients = run(decoded(graph), bound(graph, {"x": 1.0}))
    assert float(gradients["x"]) == 1 + 4 * EPSILON[dtype]


@HALF
def test_gradient_keeps_the_digits_that_rounding_took_from_the_output(dtype: str) -> None:
    graph = gw.Graph()
    graph.output("f", gw.tanh(graph.input("x", dtype=dtype)))
    outputs, gradients = run(decoded(graph), bound(graph, {"x": 5.0}))
    assert outputs["f"] == 1
    assert float(gradients["x"]) == pytest.approx(1 / np.cosh(5.0) ** 2, rel=EPSILON[dtype])


@HALF
def test_batch_of_halves_equals_its_rows(dtype: str) -> None:
    graph, numbers = gw.Graph(), np.random.default_rng(1)
    x = graph.input("x", (5,), dtype=dtype)
    w = graph.parameter("w", numbers.normal(size=(5, 3)), dtype=dtype)
    graph.output("y", gw.softmax(gw.cum_sum(gw.tanh(x) @ w, 0)))
    stack = numbers.normal(size=(40, 5)).astype(dtype)
    seeds = numbers.normal(size=(40, 3)).astype(dtype)
    batched = Evaluation({"x": Binding(stack, True)}, 40, {"y": seeds})
    outs, grads = run(decoded(graph), batched)
    singles = [
        run(decoded(graph), Evaluation({"x": Binding(row)}, seeds={"y": seed}))
        for row, seed in zip(stack, seeds, strict=True)
    ]
    case = Case("Softmax", (stack,), {})
    for name, found in (("y", outs["y"]), ("x", grads["x"])):
        side = 0 if name == "y" else 1
        rows = np.stack([single[side][name] for single in singles])
        assert_half_close(found, rows, dtype, case)
    assert_half_close(
        grads["w"], sum(as_doubles(single[1]["w"]) for single in singles), dtype, case, steps=4
    )


def decoded(graph: gw.Graph) -> Graph:
    return decode_graph(graph.to_bytes(), Limits())


def bound(graph: gw.Graph, inputs: dict[str, Any]) -> Evaluation:
    dtypes = {leaf.name: leaf.dtype for leaf in decoded(graph).leaves}
    return Evaluation(
        {name: Binding(np.asarray(x).astype(dtypes[name])) for name, x in inputs.items()}
    )


@HALF
def test_engine_that_the_plan_chooses_rounds_as_the_array_engine_does(dtype: str) -> None:
    """Regions and tapes leave half precision alone, and compute what lies beside it."""
    graph = gw.Graph()
    x = graph.input("x", (300, 300), dtype=dtype)
    wide = gw.cast(x, to=1)
    for _ in range(5):
        wide = gw.sigmoid(wide * wide) + wide
    narrow = gw.cast_like(wide, x)
    for _ in range(5):
        narrow = gw.tanh(narrow) * x
    graph.output("f", gw.reduce_sum(narrow, keepdims=0))
    given = np.random.default_rng(2).uniform(-1, 1, (300, 300))
    job = evaluate.prepare(decoded(graph), bound(graph, {"x": given}), Limits())
    assert [region.tape.slot for region in job.compiled.regions.values()], "there is a region"
    found, expected = (
        runs.run(each, lambda: False) for each in (job, replace(job, compiled=NOTHING, recipe=None))
    )
    case = Case("Tanh", (given,), {})
    for some, others in zip(found[:2], expected[:2], strict=True):
        for (_, one), (_, other) in zip(some, others, strict=True):
            assert_half_close(one, other, dtype, case, steps=4)


@HALF
def test_scalar_circuit_in_half_precision_is_left_to_the_array_engine(dtype: str) -> None:
    graph = gw.Graph()
    x = graph.elements("x", 4, dtype=dtype)
    graph.output("f", x[0] * x[1] + x[2] * x[3])
    given = np.array([1, 2, 3, 4], dtype)
    job = evaluate.prepare(decoded(graph), bound(graph, {"x": given}), Limits())
    assert job.compiled.program is None
    outputs, gradients = run(decoded(graph), bound(graph, {"x": given}))
    assert (outputs["f"], outputs["f"].dtype) == (14, dtype)
    np.testing.assert_array_equal(gradients["x"], np.array([2, 1, 4, 3], dtype))


#: float64s around the middle between two bfloat16s, or float16s, and what they round to.
ROUNDED = [
    ("bfloat16", 1 + 2.0**-8, 1.0), ("bfloat16", 1 + 2.0**-8 + 2.0**-40, 1 + 2.0**-7),
    ("bfloat16", 1 + 3 * 2.0**-8, 1 + 2.0**-6),
    ("bfloat16", 1 + 3 * 2.0**-8 - 2.0**-40, 1 + 2.0**-7),
    ("bfloat16", -1 - 2.0**-8 - 2.0**-40, -1 - 2.0**-7), ("bfloat16", 1e39, np.inf),
    ("bfloat16", 3.4e38, np.inf), ("bfloat16", 3.39e38, float(ml_dtypes.finfo("bfloat16").max)),
    ("bfloat16", -1e300, -np.inf), ("bfloat16", 1e-300, 0.0), ("bfloat16", np.inf, np.inf),
    ("bfloat16", np.nan, np.nan),
    ("float16", 1 + 2.0**-11, 1.0), ("float16", 1 + 2.0**-11 + 2.0**-40, 1 + 2.0**-10),
    ("float16", 1 + 3 * 2.0**-11 - 2.0**-40, 1 + 2.0**-10), ("float16", 65519.99, 65504.0),
    ("float16", 65520.0, np.inf), ("float16", 2.0**-25 + 2.0**-60, 2.0**-24),
    ("float16", 2.0**-25, 0.0),
]  # fmt: skip


@pytest.mark.parametrize(("dtype", "number", "expected"), ROUNDED)
def test_cast_rounds_float64_once(dtype: str, number: float, expected: float) -> None:
    for attributes in ({"to": ONNX_NUMBERS[dtype]}, {"to": ONNX_NUMBERS[dtype], "saturate": 0}):
        (out,) = Case("Cast", (np.float64(number),), attributes).run()
        np.testing.assert_array_equal(as_doubles(out), expected)
        assert out.dtype == dtype
    (out,) = Case("CastLike", (np.full(3, number), np.ones(2, dtype)), {}).run()
    np.testing.assert_array_equal(as_doubles(out), [expected] * 3)


def test_cast_of_float32_to_float16_is_numpys() -> None:
    """Every sign and exponent, around the middle of neighbours, and what is no number."""
    bits = np.arange(0, 1 << 32, 4093, dtype=np.uint32)
    middles = (np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)).view("u4")
    near = np.concatenate([middles + np.uint32(step) for step in (4095, 4096, 4097, 0)])
    numbers = np.concatenate([bits, near]).view(np.float32)
    with np.errstate(all="ignore"):
        expected = numbers.astype(np.float16)
        found = arrays.astype(numbers, "float16")
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(np.signbit(found), np.signbit(expected))


@pytest.mark.parametrize("dtype", ["int64", "uint64"])
def test_long_integers_are_rounded_to_bfloat16_once(dtype: str) -> None:
    middle = 2**62 + 2**54  # float64 would round its neighbours to it
    given = np.array([middle - 1, middle, middle + 1], dtype)
    expected = [2.0**62, 2.0**62, 2.0**62 + 2.0**55]
    assert arrays.astype(given, "bfloat16").astype(float).tolist() == expected


def test_cast_rounds_integers_once() -> None:
    just_over = 2**30 + 2**22 + 1  # float32 would round it to the middle of two bfloat16s
    for dtype in ("int32", "int64", "uint32", "uint64"):
        (out,) = Case("Cast", (np.array([just_over], dtype),), {"to": 16}).run()
        assert float(out[0]) == 2**30 + 2**23


def test_bits_of_one_half_are_read_as_the_other() -> None:
    (out,) = Case("BitCast", (np.array([1.0, -2.0], "float16"),), {"to": 16}).run()
    assert out.tobytes() == np.array([1.0, -2.0], "float16").tobytes()
    assert out.dtype == "bfloat16"


@pytest.fixture(scope="module")
def server() -> Iterator[gw.Connection]:
    with gw.local() as connection:
        yield connection


def squares(dtype: str, *shape: int | str) -> gw.Graph:
    graph = gw.Graph()
    x = graph.input("x", shape, dtype=dtype)
    graph.output("f", gw.reduce_sum((x * x * 0.5).named("halved"), keepdims=0))
    return graph


@HALF
def test_large_halves_are_streamed_in_pieces_of_two_bytes_an_element(
    server: gw.Connection, dtype: str
) -> None:
    given = np.random.default_rng(4).uniform(-0.5, 0.5, (700, 1000)).astype(dtype)
    events = [*server.stream(squares(dtype, 700, 1000), {"x": given})]
    found = {(e.kind, e.name): e.content for e in events if isinstance(e, gw.Event)}
    square = (as_doubles(given) ** 2).astype("float32").astype(dtype)
    halved = (as_doubles(square) / 2).astype("float32").astype(dtype)
    np.testing.assert_array_equal(as_doubles(found["value", "halved"]), as_doubles(halved))
    np.testing.assert_array_equal(as_doubles(found["gradient", "x"]), as_doubles(given))
    assert found["gradient", "x"].dtype == dtype
    assert tensors.encode(given).ByteSize() < given.size * 2 + 100


@HALF
def test_session_of_halves_changes_what_it_is_sent(server: gw.Connection, dtype: str) -> None:
    with server.session(squares(dtype, "n"), {"x": np.ones(3, dtype)}) as session:
        for factor in (1.0, 3.0):
            result = session.step({"x": [factor] * 3})
            assert float(result["f"].value) == 1.5 * factor**2
            np.testing.assert_array_equal(result["x"].gradient, np.full(3, factor, dtype))
        value, gradient = session.value_and_gradient({"x": np.full(3, 2, dtype)})
        assert (float(value), gradient["x"].dtype) == (6.0, dtype)


@HALF
def test_summary_of_halves(server: gw.Connection, dtype: str) -> None:
    given = np.array([1.0, np.nan, -np.inf, 4.0], dtype)
    summary = server.evaluate(squares(dtype, 4), {"x": given}, values=["x"], summary=True)["x"]
    assert isinstance(summary.value, gw.Summary)
    assert (summary.value.nan_count, summary.value.infinity_count) == (1, 1)
    assert (summary.value.minimum, summary.value.maximum) == (-np.inf, 4.0)


@HALF
def test_file_of_halves_is_evaluated_by_the_command_line(dtype: str, tmp_path: Path) -> None:
    graph = gw.Graph()
    x = graph.input("x", (2,), dtype=dtype)
    graph.output("f", gw.reduce_sum(x * x * graph.parameter("w", 0.5, dtype=dtype), keepdims=0))
    gw.save(graph, tmp_path / "halves.gate")
    assert gw.load(tmp_path / "halves.gate").digest == graph.digest
    np.save(tmp_path / "x.npy", np.array([1.0, 0.5], dtype))
    for x in ("[1, 0.5]", f"@{tmp_path / 'x.npy'}"):
        found = CliRunner().invoke(
            main, ["eval", str(tmp_path / "halves.gate"), "--set", f"x={x}", "--json"]
        )
        assert found.exit_code == 0, found.output
        assert json.loads(found.output)["outputs"]["f"] == 0.625


F, H = "float32", "float16"
#: Calls of mixed data types: operator, shapes and data types of the inputs, attributes, outputs'.
MIXED = [
    ("RMSNormalization", (((2, 4), H), ((4,), F)), {}, (F,)),
    ("RMSNormalization", (((2, 4), F), ((4,), H)), {}, (H,)),
    ("BatchNormalization", (((3, 2), H), *(((2,), F),) * 4), {}, (H,)),
    ("BatchNormalization", (((3, 2), H), *(((2,), H),) * 2, *(((2,), F),) * 2),
     {"training_mode": 1}, (H, F, F)),
    ("LinearAttention", (*(((1, 3, 4), H),) * 3, ((1, 2, 2, 2), F)),
     {"q_num_heads": 2, "kv_num_heads": 2, "update_rule": "linear"}, (H, F)),
    ("Attention", (*(((1, 1, 3, 4), H),) * 2, ((1, 1, 3, 4), F), ((3, 3), F)), {}, (H, H, F, H)),
]  # fmt: skip


@pytest.mark.parametrize(("operator", "inputs", "attributes", "outputs"), MIXED)
def test_half_precision_may_lie_beside_float32_where_onnx_says_so(
    operator: str, inputs: Any, attributes: dict[str, Any], outputs: tuple[str, ...]
) -> None:
    rng = np.random.default_rng(5)
    given = tuple(rng.uniform(0.5, 1.5, shape).astype(dtype) for shape, dtype in inputs)
    case = Case(operator, given, attributes)
    single = case.as_dtype("float32")
    graph = one_node(case)
    seeds = {
        f"out{slot}": np.ones(np.shape(out), dtype)
        for slot, (out, dtype) in enumerate(zip(case.run(), outputs, strict=True))
    }
    found, gradients = run(graph, Evaluation(seeds=seeds))
    builder = gw.Graph()
    known = builder.apply(operator, [*map(builder.constant, given)], attributes, len(outputs))
    for slot, (out, dtype) in enumerate(zip(single.run(), outputs, strict=True)):
        assert found[f"out{slot}"].dtype == dtype == known[slot].dtype
        np.testing.assert_array_equal(as_doubles(found[f"out{slot}"]), rounded(out, dtype))
    wide = tuple(seed.astype(F) for seed in seeds.values())
    for slot, to_input in enumerate(single.pull(wide)):
        expected = np.zeros_like(given[slot]) if to_input is None else to_input
        assert gradients[f"x{slot}"].dtype == given[slot].dtype
        np.testing.assert_array_equal(
            as_doubles(gradients[f"x{slot}"]), rounded(expected, given[slot].dtype)
        )


def test_half_precision_beside_float64_is_refused() -> None:
    case = Case("RMSNormalization", (np.ones((2, 4), H), np.ones(4)), {})
    with pytest.raises(Invalid, match="X is float16 but scale is float64; Cast one of them"):
        case.gate.check(case.specs(), case.attributes)


def reference(case: Case, dtype: str) -> Any:
    """What ONNX's own evaluator yields for a node of one output."""
    given = {f"x{slot}": x for slot, x in enumerate(case.inputs)}
    info = {
        name: onnx.helper.make_tensor_value_info(name, ONNX_NUMBERS[str(x.dtype)], x.shape)
        for name, x in given.items()
    }
    out = onnx.helper.make_tensor_value_info("out", ONNX_NUMBERS[dtype], None)
    node = onnx.helper.make_node(case.operator, list(given), ["out"], **case.attributes)
    graph = onnx.helper.make_graph([node], "one", list(info.values()), [out])
    opset = onnx.helper.make_opsetid("", OPERATOR_SETS[1])
    model = onnx.helper.make_model(graph, opset_imports=[opset])
    return ReferenceEvaluator(model).run(None, given)[0]


@HALF
@pytest.mark.parametrize("held", [*HALVES, "float32"])
def test_quotient_of_quantization_is_rounded_to_its_precision(dtype: str, held: str) -> None:
    """Many quotients become ties, which a quotient of float32 would not be."""
    numbers = np.random.default_rng(6).uniform(-2000, 2000, 1000).astype(held)
    given = (numbers, np.array(0.3, held), np.array(3, "int16"))
    case = Case("QuantizeLinear", given, {"precision": ONNX_NUMBERS[dtype]})
    (out,) = case.run()
    np.testing.assert_array_equal(out, reference(case, "int16"))
    (wide,) = Case("QuantizeLinear", given, {"precision": ONNX_NUMBERS["float32"]}).run()
    assert (out != wide).any()


@HALF
@pytest.mark.parametrize("scale_dtype", [*HALVES, "float32"])
def test_dequantization_to_half_precision_is_rounded_once(dtype: str, scale_dtype: str) -> None:
    levels = np.random.default_rng(7).integers(-30000, 30000, 1000).astype("int16")
    given = (levels, np.array(0.0123, scale_dtype), np.array(7, "int16"))
    case = Case("DequantizeLinear", given, {"output_dtype": ONNX_NUMBERS[dtype]})
    outputs, _ = run(one_node(case), Evaluation(forward_only=True))
    assert outputs["out0"].dtype == dtype
    np.testing.assert_array_equal(as_doubles(outputs["out0"]), as_doubles(reference(case, dtype)))


def written_out(operator: Callable[..., gw.Handle], *operands: gw.Handle) -> gw.Handle:
    """What half precision means: cast to float32, compute, cast back."""
    found = operator(*(gw.cast(each, to=ONNX_NUMBERS["float32"]) for each in operands))
    return gw.cast_like(found, operands[0])


def random_graph(
    seed: int, dtype: str, apply: Callable[..., gw.Handle]
) -> tuple[gw.Graph, dict[str, Any]]:
    rng = np.random.default_rng(seed)
    graph = gw.Graph()
    values = [graph.input("x", (4, 4), dtype=dtype), graph.input("y", (4, 1), dtype=dtype)]
    values.append(graph.parameter("w", rng.normal(0, 0.5, (4, 4)), dtype=dtype))
    unary = (gw.tanh, gw.sigmoid, gw.softmax, gw.exp, lambda x: gw.reduce_mean(x, [-1]))
    binary = (gw.add, gw.mul, gw.sub, gw.max)
    for _ in range(30):
        first, second = (values[i] for i in rng.integers(len(values) // 2, len(values), 2))
        if rng.random() < 0.4:
            found = apply(unary[rng.integers(len(unary))], first)
        else:
            found = apply(binary[rng.integers(len(binary))], first, second)
        values.append(apply(gw.tanh, found))
    total = apply(gw.sum, *values)
    graph.output("f", apply(lambda x: gw.reduce_sum(x, keepdims=0), total))
    given = {"x": rng.normal(size=(4, 4)), "y": rng.normal(size=(4, 1))}
    return graph, given


@HALF
@pytest.mark.parametrize("seed", range(8))
def test_graph_in_half_precision_is_the_graph_with_its_casts_written_out(
    dtype: str, seed: int
) -> None:
    short, given = random_graph(seed, dtype, lambda operator, *operands: operator(*operands))
    long, _ = random_graph(seed, dtype, written_out)
    outputs, gradients = run(decoded(short), bound(short, given))
    expected, expected_gradients = run(decoded(long), bound(long, given))
    assert outputs["f"] == expected["f"]
    for name, grad in gradients.items():
        np.testing.assert_array_equal(as_doubles(grad), as_doubles(expected_gradients[name]))
