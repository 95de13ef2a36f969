"""Work, sizes and known elements are counted before anything runs, and refused over their limits.

Nothing here depends on time: what is counted is the same on any machine, under any load.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from gate_cases import Case, all_cases

import gradwire as gw
from gradwire.v1 import graph_pb2
from gradwire_server import arrays, plan, stopping
from gradwire_server.codec.graphs import decode_graph
from gradwire_server.engine import evaluation as evaluate
from gradwire_server.engine import products
from gradwire_server.engine.evaluation import Binding, Evaluation, Job
from gradwire_server.errors import Invalid, OverLimit, Refusal, Stopped
from gradwire_server.gates import GATES
from gradwire_server.limits import Limits
from gradwire_server.specs import LARGEST, TensorSpec

HUGE = 2**62


def prepared(graph: gw.Graph | bytes, limits: Limits | None = None, **given: Any) -> Job:
    """The graph at these values, checked and ready to run."""
    data = graph if isinstance(graph, bytes) else graph.to_bytes()
    limits = limits or Limits()
    bindings = {name: Binding(np.asarray(value)) for name, value in given.items()}
    asked = Evaluation(bindings, forward_only=True)
    return evaluate.prepare(decode_graph(data, limits), asked, limits)


def integers(*values: int) -> TensorSpec:
    return TensorSpec((len(values),), "int64", values)


ONE = TensorSpec((1,))
IMAGE = TensorSpec((1, 1, 3, 3))
#: Calls whose sizes come from attributes or known elements, of what no tensor has.
HUGE_CALLS: list[tuple[str, tuple[TensorSpec | None, ...], dict[str, Any]]] = [
    ("OneHot", (TensorSpec((2,), "int64"), integers(HUGE), TensorSpec((2,))), {}),
    ("OneHot", (TensorSpec((2,), "int64"), TensorSpec((1,), "float64", (np.inf,)),
                TensorSpec((2,))), {}),
    ("OneHot", (TensorSpec((2,), "int64"), TensorSpec((1,), "float64", (1e18,)),
                TensorSpec((2,))), {}),
    ("Tile", (ONE, integers(HUGE)), {}),
    ("Expand", (ONE, integers(10**9, 10**9)), {}),
    ("CenterCropPad", (ONE, integers(HUGE)), {}),
    ("Pad", (ONE, integers(HUGE, 0)), {}),
    ("ConstantOfShape", (integers(HUGE),), {}),
    ("MaxRoiPool", (IMAGE, TensorSpec((1, 5))), {"pooled_shape": (HUGE, 1)}),
    ("MaxRoiPool", (IMAGE, TensorSpec((0, 5))), {"pooled_shape": (HUGE, 1)}),
    ("RoiAlign", (IMAGE, TensorSpec((0, 4)), TensorSpec((0,), "int64")), {"output_height": HUGE}),
    ("Range", tuple(TensorSpec((), "float64", (each,)) for each in (-1e308, 1e308, 1.0)), {}),
    ("Range", tuple(TensorSpec((), "float64", (each,)) for each in (0.0, 1.0, 5e-324)), {}),
    ("Resize", (ONE, None, TensorSpec((1,), "float64", (1e308,))), {}),
    ("Resize", (TensorSpec((100,)), None, TensorSpec((1,), "float64", (1.7e308,))), {}),
    ("Resize", (ONE, None, None, integers(HUGE)), {}),
    ("DFT", (TensorSpec((4, 1)), TensorSpec((), "int64", (HUGE,))), {}),
    ("HannWindow", (TensorSpec((), "int64", (HUGE,)),), {}),
    ("MelWeightMatrix", (TensorSpec((), "int64", (2,)), TensorSpec((), "int64", (2,)),
                         TensorSpec((), "int64", (2,)), TensorSpec((), "float64", (0.0,)),
                         TensorSpec((), "float64", (1.7e308,))), {}),
    ("DepthToSpace", (TensorSpec((1, 0, 1, 1)),), {"blocksize": HUGE}),
    ("Concat", (TensorSpec((LARGEST // 16,)),) * 2, {"axis": 0}),
]  # fmt: skip


@pytest.mark.parametrize(("operator", "specs", "attributes"), HUGE_CALLS)
def test_no_tensor_has_2_to_the_60_bytes(
    operator: str, specs: tuple[TensorSpec | None, ...], attributes: dict[str, Any]
) -> None:
    with pytest.raises(Invalid) as refused:
        GATES[operator].check(specs, attributes)
    assert len(refused.value.message) < 300


def test_a_shape_of_numbers_too_long_to_write_is_refused() -> None:
    with pytest.raises(Invalid, match=r"shape \(over 2\^63,\) would be of 2\^60 bytes"):
        TensorSpec((1 << 20_000,))


def doublings(count: int) -> bytes:
    """x joined with itself, again and again."""
    graph = gw.Graph()
    x = graph.input("x", shape=(1,))
    graph.output("f", gw.concat(x, x, axis=0))
    message = graph_pb2.Graph.FromString(graph.to_bytes())
    del message.circuit.node_gates[:], message.circuit.node_inputs[:]
    for node in range(count):
        message.circuit.node_gates.append(0)
        message.circuit.node_inputs.extend([node + 1, node + 1])
    message.circuit.outputs[0].value_ids[:] = [count + 1]
    return message.SerializeToString()


def test_sizes_that_double_end_where_no_tensor_has_them() -> None:
    with pytest.raises(Invalid, match=r"^node 58 \(Concat\): .* which no tensor has"):
        prepared(doublings(20_000), x=np.ones(1))


def test_outputs_are_counted_before_they_are_inferred() -> None:
    graph = gw.Graph()
    x = gw.expand(graph.input("x", shape=()), graph.constant(np.array([10**12])))
    graph.output("f", gw.split(x, num_outputs=2)[0])
    message = graph_pb2.Graph.FromString(graph.to_bytes())
    (split,) = (each for each in message.gates if each.operator == "Split")
    next(each for each in split.attributes if each.name == "num_outputs").int_value = 10**12
    with pytest.raises(Refusal, match="num_outputs is 1000000000000 but 2 outputs are declared"):
        prepared(message.SerializeToString(), x=1.0)


@pytest.mark.parametrize("case", list(all_cases()), ids=lambda case: case.operator)
def test_every_gate_counts_its_operations(case: Case) -> None:
    specs = case.specs()
    outs = case.gate.check(specs, case.attributes)
    found = case.gate.operations(outs, *specs, **case.gate.complete(case.attributes))
    assert isinstance(found, int)
    assert found >= min(sum(each.size for each in outs), 1)


@pytest.mark.parametrize(
    ("operator", "shapes", "attributes", "operations"),
    [
        ("MatMul", ((300, 200), (200, 100)), {}, 300 * 200 * 100),
        ("Gemm", ((200, 300), (200, 100)), {"transA": 1}, 300 * 200 * 100),
        ("Einsum", ((300, 200), (200, 100)), {"equation": "ij,jk->ik"}, 300 * 200 * 100),
        ("Einsum", ((90, 90),) * 3, {"equation": "ij,jk,kl->il"}, 2 * 90**3),
        ("Einsum", ((90,),) * 3, {"equation": "i,j,k->ijk"}, 2 * 90**3),
        ("Conv", ((2, 8, 30, 30), (16, 8, 3, 3)), {}, 2 * 28 * 28 * 16 * 8 * 9),
        ("ConvTranspose", ((2, 8, 30, 30), (8, 16, 3, 3)), {}, 2 * 30 * 30 * 16 * 8 * 9),
        ("LSTM", ((50, 20, 80), (1, 256, 80), (1, 256, 64)), {}, 50 * 20 * 256 * 144),
        ("Attention", ((2, 4, 99, 64),) * 3, {}, 2 * 4 * 99 * 99 * 128),
        ("Det", ((5, 90, 90),), {}, 5 * 90**3),
        ("ReduceSum", ((300, 200),), {}, 300 * 200),
        ("AveragePool", ((1, 1, 500, 500),), {"kernel_shape": (3, 3)}, 6 * 500 * 500),
    ],
)  # fmt: skip
def test_operations_are_those_of_the_formula(
    operator: str, shapes: tuple[tuple[int, ...], ...], attributes: dict[str, Any], operations: int
) -> None:
    specs = tuple(map(TensorSpec, shapes))
    gate = GATES[operator]
    found = gate.operations(gate.check(specs, attributes), *specs, **gate.complete(attributes))
    assert 0.9 * operations <= found <= 2 * operations


def stacked_products(layers: int = 3) -> gw.Graph:
    graph = gw.Graph()
    x = graph.input("x", shape=(4, 10))
    for layer in range(layers):
        x = x @ graph.parameter(f"w{layer}", np.ones((10, 10)))
    graph.output("f", gw.reduce_sum(x, keepdims=0))
    return graph


def test_a_plan_adds_up_its_nodes() -> None:
    graph, specs = stacked_products(), (TensorSpec((4, 10)), TensorSpec((10, 10)))
    one = GATES["MatMul"].operations((TensorSpec((4, 10)),), *specs)
    found = prepared(graph, x=np.ones((4, 10))).plan
    last = GATES["ReduceSum"].operations((TensorSpec(()),), TensorSpec((4, 10)))
    assert found.operations == 3 * one + last


def test_rows_of_a_batch_are_counted() -> None:
    decoded = decode_graph(stacked_products().to_bytes(), Limits())
    specs = [TensorSpec((4, 10)), *[TensorSpec((10, 10))] * 3]
    alone = plan.make_plan(decoded, specs).operations
    rows = plan.make_plan(decoded, specs, (True, False, False, False), 7).operations
    assert rows == 7 * alone


def test_what_would_compute_too_long_is_refused_by_name() -> None:
    job = prepared(stacked_products(), x=np.ones((4, 10)))
    limits = replace(Limits(), max_operations=job.plan.operations)
    assert prepared(stacked_products(), limits, x=np.ones((4, 10)))
    with pytest.raises(OverLimit) as refused:
        prepared(stacked_products(4), limits, x=np.ones((4, 10)))
    limit, flag = limits.max_operations, "--max-operations"
    assert refused.value.message.startswith("node 6 (MatMul): operations of the whole evaluation")
    assert f"is over the limit of {limit}; " in refused.value.message
    assert refused.value.message.endswith(f"or start the server with a larger {flag}")
    assert refused.value.facts["limit"] == "max-operations"


def test_the_backward_pass_counts_as_two_more() -> None:
    decoded = decode_graph(stacked_products().to_bytes(), Limits())
    asked = Evaluation({"x": Binding(np.ones((4, 10)))})
    forward = prepared(stacked_products(), x=np.ones((4, 10))).plan.operations
    evaluate.prepare(decoded, asked, Limits(max_operations=3 * forward))
    with pytest.raises(OverLimit, match="max-operations"):
        evaluate.prepare(decoded, asked, Limits(max_operations=3 * forward - 1))


def roi_align(ratio: int) -> gw.Graph:
    """No region at all, in bins of ever so many samples."""
    graph = gw.Graph()
    x, rois = graph.parameter("x", np.ones((1, 1, 3, 3))), graph.parameter("r", np.zeros((0, 4)))
    numbers = graph.parameter("b", np.zeros(0, np.int64))
    graph.output("f", gw.reduce_sum(gw.roi_align(x, rois, numbers, sampling_ratio=ratio)))
    return graph


def expanded(*shape: int) -> gw.Graph:
    """The sum of one number repeated: a view that takes no memory, and for ever."""
    graph = gw.Graph()
    repeated = gw.expand(graph.input("x", shape=()), graph.constant(np.array(shape)))
    graph.output("f", gw.reduce_sum(repeated, keepdims=0))
    return graph


def empty_transposed() -> gw.Graph:
    graph = gw.Graph()
    x = graph.input("x", shape=(0, 1, 1))
    wide: dict[str, Any] = {"strides": (2**31 - 1,), "output_padding": (2**31 - 2,)}
    graph.output("f", gw.conv_transpose(x, graph.constant(np.ones((1, 1, 1))), **wide))
    return graph


@pytest.mark.parametrize(
    ("graph", "given", "limit"),
    [
        (roi_align(HUGE), {}, "max-operations"),
        (roi_align(10**9), {}, "max-memory-bytes"),
        (expanded(10**8, 10**8), {"x": 1.0}, "max-operations"),
        (expanded(10**6, 10**6), {"x": 1.0}, "max-memory-bytes"),
        (empty_transposed(), {"x": np.ones((0, 1, 1))}, "max-memory-bytes"),
    ],
    ids=["RoiAlign at 2^62", "RoiAlign at 1e9", "Expand to 1e16", "Expand to 1e12", "empty axis"],
)  # fmt: skip
def test_what_never_ends_is_refused_before_it_runs(
    graph: gw.Graph, given: dict[str, Any], limit: str
) -> None:
    with pytest.raises(OverLimit, match=rf"^node .* larger --{limit}$") as refused:
        prepared(graph, **given)
    assert refused.value.facts["limit"] == limit


def known_sums(count: int, size: int = 1000) -> bytes:
    """A chain of sums of known integers, whose last says how far a number is repeated."""
    graph = gw.Graph()
    total = graph.parameter("s", np.arange(size))
    ones = graph.parameter("o", np.ones(size, np.int64))
    for _ in range(count):
        total = total + ones
    first = gw.gather(total, graph.constant(np.array([0])))
    graph.output("f", gw.expand(graph.parameter("x", np.ones(())), first))
    return graph.to_bytes()


def test_known_elements_are_dropped_after_their_last_use() -> None:
    size, count = 1000, 2000
    of_one = size * (plan._BYTES_OF_KNOWN + 8)
    job = prepared(known_sums(count, size), Limits(max_memory_bytes=20 << 20))
    assert count * of_one > 4 * (20 << 20)  # all of them would not fit
    assert job.plan.shape(job.plan.graph.value_count) == (count,)
    held = sum(len(each.value or ()) for each in job.plan.specs)
    assert held <= 10 * size


def test_known_elements_count_against_the_limit_of_memory() -> None:
    with pytest.raises(OverLimit, match=r"known before anything runs.*--max-memory-bytes"):
        prepared(known_sums(10), Limits(max_memory_bytes=90_000))


def test_equal_known_elements_are_found_again_once_they_were_dropped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(plan, "_KNOWN_AT_ONCE", 1)
    graph = gw.Graph()
    s = graph.parameter("s", np.array([2, 3]))
    x = graph.parameter("x", np.ones(6))
    first = gw.reshape(x, s + graph.constant(np.array([0, 0])))
    twice = gw.reshape(gw.transpose(first), s + graph.constant(np.array([0, 0])))
    graph.output("f", twice)
    job = prepared(graph)
    assert job.plan.shape(job.plan.graph.value_count) == (2, 3)


def test_planning_is_counted_in_steps() -> None:
    assert prepared(known_sums(100), Limits(max_plan_steps=200_000))
    with pytest.raises(OverLimit, match=r"^node .*\(Add\): steps of planning .*--max-plan-steps$"):
        prepared(known_sums(200), Limits(max_plan_steps=200_000))


def test_planning_ends_where_nobody_waits() -> None:
    with pytest.raises(Stopped), stopping.asked(lambda: True):
        prepared(known_sums(5))


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Every question is answered, the third with: nobody waits any more."""
    questions = [0]

    def stopped() -> bool:
        questions[0] += 1
        return questions[0] >= 3

    monkeypatch.setattr(stopping, "_EVERY", -1.0)
    monkeypatch.setattr(products, "_MOST", 1000)
    monkeypatch.setattr(products, "_LEAST", 1000)
    monkeypatch.setattr(arrays, "_MOST", 1000)
    monkeypatch.setattr(arrays, "_MOST_SORTED", 100)
    with stopping.asked(stopped):
        yield questions


@pytest.mark.parametrize("name", ["matmul", "einsum", "sort", "LSTM", "MaxRoiPool"])
def test_a_long_gate_ends_where_nobody_waits(name: str, impatient: list[int]) -> None:
    numbers = np.random.default_rng(0)
    x = numbers.normal(size=(60, 60))

    def run() -> object:
        if name == "matmul":
            return products.matmul(x, x)
        if name == "einsum":
            return arrays.einsum("ij,jk->ik", x, x)
        if name == "sort":
            return arrays.top_indices(x, 3, -1, True)
        if name == "MaxRoiPool":
            return arrays.roi_argmax(np.ones((1, 1, 8, 8)), np.zeros((9, 5)), (2, 2), 1.0)
        cell = [numbers.normal(size=shape) for shape in ((9, 2, 3), (1, 16, 3), (1, 16, 4))]
        return GATES["LSTM"].forward(arrays, *cell, **GATES["LSTM"].complete({}))

    with pytest.raises(Stopped):
        run()
    assert impatient[0] >= 3


def test_pieces_of_a_long_gate_are_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.random.default_rng(0).normal(size=(3, 40, 50))
    y = np.random.default_rng(1).integers(0, 9, (50, 30))
    cases: list[Callable[[], Any]] = [
        lambda: products.matmul(x, x.swapaxes(1, 2)),
        lambda: products.matmul(y, y.T),
        lambda: products.einsum("bij,bkj->bik", x, x),
        lambda: arrays.einsum("bij,bkj->bik", x, x),
        lambda: arrays.top_indices(x, 5, 1, True),
        lambda: arrays.top_indices(x, 5, -1, False),
    ]
    whole = [each() for each in cases]
    monkeypatch.setattr(products, "_MOST", 1000)
    monkeypatch.setattr(products, "_LEAST", 1000)
    monkeypatch.setattr(arrays, "_MOST", 1000)
    monkeypatch.setattr(arrays, "_MOST_SORTED", 100)
    for each, expected in zip(cases, whole, strict=True):
        np.testing.assert_allclose(each(), expected, rtol=1e-13)


def test_elements_sorted_in_parts_are_in_the_same_order(monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.random.default_rng(0).integers(0, 9, (5, 6, 20))
    for axis in range(-3, 3):
        for largest in (False, True):
            whole = arrays.top_indices(x, 3, axis, largest)
            with monkeypatch.context() as patch:
                patch.setattr(arrays, "_MOST_SORTED", 100)
                assert (arrays.top_indices(x, 3, axis, largest) == whole).all()
