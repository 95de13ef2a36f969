"""The tape engine computes what the array engine does: every gate, wide, deep, and in batches."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from gradwire_server.engine import kernels, runs
from gradwire_server.engine.buffers import Buffers
from gradwire_server.engine.compiled import NOTHING
from gradwire_server.engine.evaluation import Binding, Evaluation, Job, everything, prepare
from gradwire_server.engine.opcodes import instruction_set
from gradwire_server.errors import Stopped
from gradwire_server.gates import GATES
from gradwire_server.gates.base import ElementwiseGate, Input
from gradwire_server.graph import Graph, Leaf, Output, Row, Rows
from gradwire_server.limits import Limits
from gradwire_server.specs import BOOLS

LIMITS = Limits()
FLOATS = ("float64", "float32")
TOLERANCES = {"float64": 1e-12, "float32": 2e-6}
#: Elementwise gates of floats that the array engine alone has, with the reason.
NOT_ON_TAPES = {"BitCast": "needs an attribute, and looks at bits"}


def never() -> bool:
    return False


def circuit(
    rows: list[Row],
    nodes: list[tuple[int, tuple[int, ...]]],
    leaves: list[Leaf],
    outputs: list[int],
) -> Graph:
    """Nodes are (row, inputs); outputs are value ids, named o0, o1, ..."""
    return Graph(
        rows=Rows(rows),
        leaves=tuple(leaves),
        node_rows=np.array([row for row, _ in nodes], np.int64),
        node_inputs=np.array([i for _, inputs in nodes for i in inputs], np.int64),
        outputs=tuple(
            Output(f"o{number}", np.array([i], np.int64)) for number, i in enumerate(outputs)
        ),
    )


def prepared(
    graph: Graph, given: Mapping[str, Any], batch: int = 0, seeds: Mapping[str, Any] | None = None
) -> Job:
    """A job with everything chosen; arrays of `batch` rows are batched."""
    bindings = {
        name: Binding(array, bool(batch) and array.shape[:1] == (batch,))
        for name, array in given.items()
    }
    asked = Evaluation(bindings, batch, seeds or {}, forward_only=seeds is None)
    job = prepare(graph, everything(asked), LIMITS)
    assert job.compiled.program is not None, "a circuit of scalars is a tape"
    return job


def found(job: Job) -> dict[tuple[str, int], Any]:
    """Every value and gradient, and the outputs and leaf gradients by position."""
    run = runs.Run(job)
    with np.errstate(all="ignore"):
        outputs, gradients, values, pulled = run.complete(never)
        slabs = {
            (kind, value_id): array
            for kind, slabs in (("value", values), ("gradient", pulled))
            for slab in slabs
            for value_id, array in zip(
                slab.part.ids.tolist(), slab.stacked(0, len(slab.part.ids)), strict=True
            )
        }
    named = {("output", n): array for n, (_, array) in enumerate(outputs)}
    return slabs | named | {("leaf", n): array for n, (_, array) in enumerate(gradients)}


def assert_engines_agree(job: Job, dtype: str) -> None:
    """The tape, and the recipe where there is one, with the array engine."""
    expected = found(replace(job, compiled=NOTHING, recipe=None))
    for each in (job, *([replace(job, recipe=None)] if job.recipe else [])):
        got = found(each)
        assert got.keys() == expected.keys()
        for key, array in expected.items():
            assert got[key].dtype == array.dtype, key
            assert got[key].shape == array.shape, key
            tolerance = TOLERANCES[dtype]
            np.testing.assert_allclose(
                got[key], array, rtol=tolerance, atol=tolerance, err_msg=str(key)
            )


def numbers(declared: Input, slot: int, count: int, dtype: str) -> Any:
    """Seeded numbers of an input's domain; of the first input, a few far out too."""
    rng = np.random.default_rng(slot)
    if declared.dtypes == BOOLS:
        return rng.integers(0, 2, count).astype(bool)
    drawn = rng.uniform(*declared.domain, count)
    drawn[: len(EDGES)] = EDGES if slot == 0 else drawn[: len(EDGES)]
    return drawn.astype(dtype)


EDGES = (0.0, -0.0, 1.0, -1.0, 20.0, -20.0, np.inf, -np.inf, np.nan)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("key", sorted(instruction_set("float64").numbers, key=str), ids=str)
def test_gate_on_a_tape_equals_the_array_engine(key: tuple[Any, ...], dtype: str) -> None:
    operator, count, whole = key
    attributes = dict(whole)
    if "to" in attributes and dtype == "float32":
        attributes["to"] = {11: 1}.get(attributes["to"], attributes["to"])
    gate = GATES[operator]
    declared = gate.declared_inputs(count)
    example = dict(gate.examples[0].attributes)
    reals = {each.name: example.get(each.name, each.default) for each in gate.attributes
             if each.kind == "float"}  # fmt: skip
    rows = [Row(operator, {**attributes, **reals}, count, 1)]
    leaves = [
        Leaf("input", f"x{slot}", "bool" if each.dtypes == BOOLS else dtype, ())
        for slot, each in enumerate(declared)
    ]
    leaves.append(Leaf("input", "unused", dtype, ()))  # tells a tape of truths its data type
    graph = circuit(rows, [(0, tuple(range(1, count + 1)))], leaves, [count + 2])
    batch = 700
    given = {f"x{slot}": numbers(each, slot, batch, dtype) for slot, each in enumerate(declared)}
    given["unused"] = np.zeros((), dtype)
    floats = job_is_differentiable(graph, given)
    seed = np.linspace(-1, 2, batch).astype(dtype)
    assert_engines_agree(prepared(graph, given, batch, {"o0": seed} if floats else None), dtype)
    for row in range(20):
        one = {name: np.asarray(array[row] if array.shape else array)
               for name, array in given.items()}  # fmt: skip
        seeds = {"o0": np.asarray(seed[row])} if floats else None
        assert_engines_agree(prepared(graph, one, 0, seeds), dtype)


def job_is_differentiable(graph: Graph, given: Mapping[str, Any]) -> bool:
    """Whether the only output is a floating value."""
    one = {name: np.asarray(array.reshape(-1)[0]) for name, array in given.items()}
    plan = prepared(graph, one).plan
    return bool(plan.floating[plan.graph.outputs[0].value_ids[0]])


def test_every_elementwise_gate_of_floats_runs_on_tapes() -> None:
    on_tapes = {operator for operator, _, _ in instruction_set("float64").numbers}
    floating = {
        gate.operator
        for gate in GATES.values()
        if isinstance(gate, ElementwiseGate)
        and all("float64" in each.dtypes or each.dtypes == BOOLS for each in gate.inputs)
    }
    assert floating - on_tapes == NOT_ON_TAPES.keys()


ROWS = [
    Row("Add", {}, 2, 1), Row("Mul", {}, 2, 1), Row("Sub", {}, 2, 1), Row("Tanh", {}, 1, 1),
    Row("Sigmoid", {}, 1, 1), Row("Max", {}, 2, 1), Row("LeakyRelu", {"alpha": 0.3}, 1, 1),
    Row("LeakyRelu", {"alpha": 0.1}, 1, 1), Row("Mean", {}, 3, 1), Row("Sin", {}, 1, 1),
    Row("Greater", {}, 2, 1), Row("Where", {}, 3, 1),
]  # fmt: skip
GREATER, WHERE = 10, 11


def random_circuit(seed: int, nodes: int, *, wide: bool, dtype: str) -> Graph:
    """Bounded values: every sum and product goes through a tanh."""
    rng = np.random.default_rng(seed)
    leaves = [Leaf("input", "x", dtype, (3, 4), elements=True), Leaf("input", "y", dtype, ()),
              Leaf("input", "unused", dtype, ())]  # fmt: skip
    made: list[tuple[int, tuple[int, ...]]] = []
    floats, truths = list(range(1, 15)), []
    while len(made) < nodes:
        # deep circuits settle down, and then engines may order neighbours differently
        row = int(rng.integers(len(ROWS) if wide else GREATER))
        reach = len(floats) if wide else 6
        picked = [floats[-1 - int(rng.integers(min(reach, len(floats))))] for _ in range(3)]
        if row == WHERE:
            if not truths:
                continue
            inputs = (truths[int(rng.integers(len(truths)))], *picked[:2])
        else:
            inputs = tuple(picked[: ROWS[row].input_count])
        made.append((row, inputs))
        last = 14 + len(made)
        if row == GREATER:
            truths.append(last)
            continue
        if row in (0, 1, 2):
            made.append((3, (last,)))
            last += 1
        floats.append(last)
    return circuit(ROWS, made, leaves, [floats[-1], floats[-3], floats[-7]])


def point(rng: np.random.Generator, dtype: str, batch: int = 0) -> dict[str, Any]:
    rows = (batch,) if batch else ()
    return {
        "x": rng.uniform(-1, 1, (*rows, 3, 4)).astype(dtype),
        "y": np.asarray(rng.uniform(-1, 1)).astype(dtype),
        "unused": np.asarray(0.5, dtype),
    }


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("batch", [0, 1, 37, 1300])
@pytest.mark.parametrize("wide", [True, False])
@pytest.mark.parametrize("nodes", [9, 60, 2500])
def test_random_circuits_agree(nodes: int, wide: bool, batch: int, dtype: str) -> None:
    rng = np.random.default_rng(nodes)
    graph = random_circuit(nodes, nodes, wide=wide, dtype=dtype)
    rows = (batch,) if batch else ()
    seeds = {name: rng.uniform(-1, 1, rows).astype(dtype) for name in ("o0", "o2")}
    job = prepared(graph, point(rng, dtype, batch), batch, seeds)
    assert_engines_agree(job, dtype)


def test_wide_circuits_run_as_runs_and_deep_ones_as_a_switch() -> None:
    rng = np.random.default_rng(0)
    for wide in (True, False):
        graph = random_circuit(1, 2500, wide=wide, dtype="float64")
        program = prepared(graph, point(rng, "float64")).compiled.program
        assert program is not None
        assert (program.tape.starts is not None) == wide


def test_small_points_have_a_recipe() -> None:
    graph = random_circuit(1, 60, wide=True, dtype="float64")
    given = point(np.random.default_rng(0), "float64")
    assert prepared(graph, given, 0, {"o0": np.ones(())}).recipe is not None
    assert prepared(graph, given).recipe is None, "no backward pass"


def test_a_recipe_is_not_followed_for_nobody() -> None:
    graph = random_circuit(1, 60, wide=True, dtype="float64")
    job = prepared(graph, point(np.random.default_rng(0), "float64"), 0, {"o0": np.ones(())})
    with pytest.raises(Stopped):
        runs.run(job, lambda: True)


def test_leaves_of_any_shape_are_filled_in_and_taken_out() -> None:
    leaves = [Leaf("input", "x", "float64", (2, 2), elements=True),
              Leaf("input", "none", "float64", (0, 3), elements=True),
              Leaf("input", "one", "float64", (1, 1), elements=True),
              Leaf("input", "truth", "bool", ()), Leaf("input", "y", "float64", ())]  # fmt: skip
    rows = [Row("Mul", {}, 2, 1), Row("Where", {}, 3, 1)]
    graph = circuit(rows, [(0, (2, 3)), (0, (8, 5)), (1, (6, 9, 7))], leaves, [10, 3])
    given = {
        "x": np.arange(4.0).reshape(2, 2),
        "none": np.zeros((0, 3)),
        "one": np.full((1, 1), 3.0),
        "truth": np.array(True),
        "y": np.array(5.0),
    }
    job = prepared(graph, given, 0, {"o0": np.ones(()), "o1": np.full((), 2.0)})
    assert job.recipe is not None
    assert_engines_agree(job, "float64")


def test_node_without_a_seeded_consumer_cannot_spoil_a_gradient() -> None:
    """log(0) is -inf and its local gradient is infinite, but nothing that has a seed uses it."""
    rows = [Row("Log", {}, 1, 1), Row("Mul", {}, 2, 1)]
    leaves = [Leaf("input", "x", "float64", ())]
    graph = circuit(rows, [(0, (1,)), (1, (1, 1)), (1, (2, 1))], leaves, [3, 4])
    for batch in (0, 5):
        rows_ = (batch,) if batch else ()
        job = prepared(graph, {"x": np.zeros(rows_)}, batch, {"o0": np.ones(rows_)})
        assert_engines_agree(job, "float64")
        np.testing.assert_array_equal(found(job)["leaf", 0], np.zeros(rows_))


def test_results_outlive_the_buffers_they_came_from() -> None:
    rng = np.random.default_rng(0)
    graph = random_circuit(5, 300, wide=True, dtype="float64")
    job = prepared(graph, point(rng, "float64"), 0, {"o0": np.ones(())})
    first = found(job)
    kept = {key: array.copy() for key, array in first.items()}
    other = prepare(graph, everything(Evaluation(
        {name: Binding(array) for name, array in point(rng, "float64").items()},
        seeds={"o0": np.ones(())},
    )), LIMITS, job)  # fmt: skip
    assert other.compiled is job.compiled
    assert any(not np.array_equal(found(other)[key], kept[key]) for key in kept)
    for key, array in first.items():
        np.testing.assert_array_equal(array, kept[key])


def test_buffers_are_held_up_to_a_limit() -> None:
    held = Buffers(most_bytes=100)
    first, second = held.take((5,), "float64"), held.take((5,), "float64")
    held.give(first)
    assert held.take((5,), "float32") is not first
    assert held.take((5,), "float64") is first
    held.give(first)
    held.give(second)
    held.give(np.empty(5))  # no room for the oldest
    assert held.take((5,), "float64") is not first
    assert held.take((5,), "float64") is second


def test_buffers_begin_where_vectors_and_huge_pages_do() -> None:
    held = Buffers(most_bytes=0)
    for elements, unit in ((3, 64), (1001, 64), (1 << 19, 1 << 21)):
        buffer = held.take((elements, 1), "float64")
        assert (buffer.shape, str(buffer.dtype)) == ((elements, 1), "float64")
        assert buffer.ctypes.data % unit == 0


def test_buffers_that_were_all_taken_leave_nothing_behind() -> None:
    held = Buffers(most_bytes=100)
    held.give(np.empty(60, np.int8))
    held.take((60,), "int8")
    held.give(np.empty(61, np.int8))
    last = np.empty(62, np.int8)
    held.give(last)
    assert held.take((62,), "int8") is last


def test_backward_pass_can_be_repeated_with_other_seeds() -> None:
    graph = random_circuit(5, 300, wide=False, dtype="float64")
    given = point(np.random.default_rng(1), "float64")
    jobs = [prepared(graph, given, 0, {name: np.ones(())}) for name in ("o0", "o1")]
    run = runs.Run(jobs[0])
    run.complete(never)
    gradients, _ = run.pull(jobs[1].seeds, never)
    expected = runs.Run(jobs[1]).complete(never)[1]
    for (_, one), (_, other) in zip(gradients, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_array_engine_answers_where_a_tape_would_not_fit_in_memory() -> None:
    graph = circuit([Row("Sin", {}, 1, 1)], [(0, (1 + n,)) for n in range(20)],
                    [Leaf("input", "x", "float64", ())], [21])  # fmt: skip
    small = Limits(max_memory_bytes=40_000)
    asked = Evaluation({"x": Binding(np.zeros(400), True)}, 400, forward_only=True)
    job = prepare(graph, asked, small)
    assert job.compiled.program is None
    np.testing.assert_array_equal(runs.run(job, never)[0][0][1], np.zeros(400))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", ["erf", "exp", "expm1", "log", "log1p", "tanh"])
def test_elementary_function_is_right_to_a_few_units_in_the_last_place(
    name: str, dtype: str
) -> None:
    rng = np.random.default_rng(0)
    most = np.log(float(np.finfo(dtype).max))
    x = {
        "exp": [
            rng.uniform(-most, most, 2000),
            [-most * 1.04, np.log(np.finfo(dtype).tiny) * 1.01],
        ],
        "expm1": [rng.uniform(-50, most, 2000)],
        "log": [np.exp(rng.uniform(-most, most, 2000)), [float(np.finfo(dtype).tiny) / 4]],
        "log1p": [np.exp(rng.uniform(-most, most, 2000)), rng.uniform(-0.99, 2, 500)],
        "tanh": [rng.uniform(-30, 30, 2000)],
        "erf": [rng.uniform(-8, 8, 2000)],
    }[name]
    near = [rng.uniform(-1, 1, 1000) * scale + (name == "log") for scale in (0.9, 1e-3, 1e-6)]
    x = np.concatenate([*x, *near]).astype(dtype)
    with np.errstate(all="ignore"):
        exact = (
            np.vectorize(math.erf)(x)
            if name == "erf"
            else getattr(np, name)(x.astype(np.longdouble))
        )
    got = np.empty_like(x)
    getattr(kernels.loaded(dtype), name)(x, got)
    error = np.abs(got - exact) / np.spacing(np.abs(exact).astype(dtype))
    worst = int(np.argmax(error))
    assert error[worst] < 4, f"{name}({x[worst]!r}) gave {got[worst]!r}, not {exact[worst]!r}"


@pytest.mark.parametrize("dtype", FLOATS)
def test_elementary_functions_keep_their_limits(dtype: str) -> None:
    inf, nan = np.inf, np.nan
    limits: dict[str, list[tuple[float, float]]] = {
        "exp": [(inf, inf), (-inf, 0), (nan, nan), (0, 1)],
        "expm1": [(inf, inf), (-inf, -1), (nan, nan), (0, 0)],
        "log": [(inf, inf), (0, -inf), (-1, nan), (nan, nan), (1, 0)],
        "log1p": [(inf, inf), (-1, -inf), (-2, nan), (nan, nan), (0, 0)],
        "tanh": [(inf, 1), (-inf, -1), (nan, nan), (0, 0)],
        "erf": [(inf, 1), (-inf, -1), (nan, nan), (0, 0), (-0.0, -0.0)],
    }
    for name, pairs in limits.items():
        x, expected = np.array(pairs, dtype).T.copy()
        got = np.empty_like(x)
        getattr(kernels.loaded(dtype), name)(x, got)
        np.testing.assert_array_equal(got, expected, err_msg=name)
        np.testing.assert_array_equal(np.signbit(got[x == 0]), np.signbit(expected[x == 0]))


def test_kernels_older_than_the_gates_are_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    kernels.loaded.cache_clear()
    try:
        with monkeypatch.context() as patch:
            patch.setattr(kernels, "digest", lambda _: "other sources")
            assert kernels.loaded("float64") is None
            assert kernels.loaded("float64") is None
            assert len(caplog.records) == 1, "it is said once"
            assert kernels.level() == "numpy"
    finally:
        kernels.loaded.cache_clear()
    assert "NumPy's engine answers; install the package again" in caplog.text


def test_a_processor_without_kernels_is_told_of(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "levels_of", lambda _: ["x86-64-v9"])
    caches = kernels.loaded, kernels._extension
    for each in caches:
        each.cache_clear()
    try:
        assert kernels.level() == "numpy"
        assert [each.getMessage() for each in caplog.records] == [
            "no compiled kernels fit this processor, which runs those for x86-64-v9; NumPy's "
            "engine answers"
        ]
    finally:
        for each in caches:
            each.cache_clear()


def test_a_kernel_refuses_columns_that_do_not_fit() -> None:
    compiled = kernels.loaded("float64")
    x = np.zeros(3)
    with pytest.raises(TypeError, match="items of 4 bytes, not of 8"):
        compiled.exp(x.astype("float32"), x)
    with pytest.raises(ValueError, match="x_count == out_count"):
        compiled.exp(x, x[:2])
    with pytest.raises(TypeError, match="too few"):
        compiled.exp(x)
    with pytest.raises(ValueError, match="contiguous"):
        compiled.exp(x[::2], x[:2])
    x.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        compiled.exp(np.zeros(3), x)


def test_warmup_says_that_nothing_is_to_be_done() -> None:
    command = [sys.executable, "-m", "gradwire.cli", "warmup"]
    output = subprocess.run(command, capture_output=True, text=True, check=True)
    assert output.stdout.startswith("nothing to do")
