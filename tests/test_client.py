"""The Python client: builder, files, connections, errors."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from gate_cases import Case, all_cases

import gradwire as gw
from gradwire import tensors
from gradwire.v1 import service_pb2, service_pb2_grpc, tensor_pb2
from gradwire_server.gates import GATES
from gradwire_server.specs import Tensor

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def server() -> Iterator[gw.Connection]:
    with gw.local(max_nodes=10_000) as connection:
        yield connection


def product() -> gw.Graph:
    graph = gw.Graph()
    a, b = graph.input("a", (2, 3)), graph.input("b", (3, 2))
    graph.output("out", gw.reduce_sum((a @ b).named("product"), keepdims=0))
    return graph


A, B = np.arange(6.0).reshape(2, 3), np.arange(6.0).reshape(3, 2) - 2


def test_public_surface_is_pinned() -> None:
    assert sorted(gw.__all__) == gw.__all__
    assert all(getattr(gw, name) is not None for name in gw.__all__)
    from gradwire import operators

    assert len(operators.__all__) == len(GATES) - 1  # Constant is graph.constant


def test_numpy_functions_record_gates(server: gw.Connection) -> None:
    graph = gw.Graph()
    x = graph.input("x", (2, 3))
    graph.output("f", np.sum(np.exp(-np.square(x)) * np.array([1.0, 2.0, 3.0]), axis=1))
    seed = np.ones(2)
    result = server.evaluate(graph, {"x": A}, seeds={"f": seed})
    weights = np.array([1.0, 2.0, 3.0])
    np.testing.assert_allclose(result["f"].value, (np.exp(-(A**2)) * weights).sum(1))
    np.testing.assert_allclose(result["x"].gradient, -2 * A * np.exp(-(A**2)) * weights)


def test_number_takes_the_handles_dtype(server: gw.Connection) -> None:
    graph = gw.Graph()
    x = graph.input("x", dtype="float32")
    graph.output("f", 2 * x + 0.5)
    assert server.evaluate(graph, {"x": 1})["f"].value.dtype == np.float32


@pytest.mark.parametrize("case", list(all_cases()), ids=lambda case: case.operator)
def test_client_knows_the_data_types_that_the_server_infers(case: Case) -> None:
    graph = gw.Graph()
    handles = [None if x is None else graph.constant(x) for x in case.inputs]
    attributes = {
        name: np.frombuffer(value.data, value.dtype).reshape(value.shape)
        if isinstance(value, Tensor)
        else value
        for name, value in case.attributes.items()
    }
    expected = [str(np.asarray(out).dtype) for out in case.run()]
    outs = graph.apply(case.operator, handles, attributes, len(expected))
    assert [out.dtype for out in outs] == expected


def test_handle_refuses_to_branch() -> None:
    with pytest.raises(TypeError, match=r"use gw\.where"):
        bool(gw.Graph().input("x") > 0)


def test_error_about_a_node_says_which_line_made_it(server: gw.Connection) -> None:
    graph = gw.Graph()
    a, b = graph.input("a", ("n", 3)), graph.input("b", (4, 2))
    graph.output("out", (a @ b).named("scores"))
    words = r"node 'scores' \(MatMul\): A has 3 columns but B has 4 rows \(made at test_client"
    with pytest.raises(gw.InvalidRequestError, match=words) as refused:
        server.evaluate(graph, {"a": np.ones((1, 3)), "b": np.ones((4, 2))})
    assert refused.value.reason == "SHAPE_MISMATCH"


def test_client_and_server_refuse_with_the_same_words(server: gw.Connection) -> None:
    graph = gw.Graph()
    x, y = graph.input("x"), graph.input("y", dtype="float32")
    with pytest.raises(gw.InvalidRequestError) as by_client:
        gw.add(x, y)
    graph._add("Add", {}, [x.key, y.key], ["float64"])  # past the client's check
    graph.output("f", gw.identity(x))
    with pytest.raises(gw.InvalidRequestError) as by_server:
        server.evaluate(graph, {"x": 1.0, "y": 1.0})
    sentence = "A is float64 but B is float32; Cast one of them"
    assert sentence in by_client.value.message
    assert sentence in by_server.value.message
    assert by_client.value.reason == by_server.value.reason


@pytest.mark.parametrize(
    ("reason", "inputs", "options"),
    [
        ("LEAF_UNKNOWN", {"c": 1.0}, {}),
        ("SHAPE_MISMATCH", {"a": B, "b": B}, {}),
        ("DATA_TYPE_MISMATCH", {"a": A.astype("f"), "b": B}, {}),
        ("OUTPUT_UNKNOWN", {"a": A, "b": B}, {"seeds": {"f": 1.0}}),
        ("INPUT_MISSING", {"a": A}, {}),
        ("VALUE_UNKNOWN", {"a": A, "b": B}, {"values": ["nowhere"]}),
    ],
)
def test_mistake_has_its_reason(
    reason: str, inputs: dict[str, object], options: dict[str, object], server: gw.Connection
) -> None:
    with pytest.raises(gw.InvalidRequestError) as refused:
        server.evaluate(product(), inputs, **options)
    assert refused.value.reason == reason


@pytest.mark.parametrize(
    ("inputs", "options"),
    [
        ({"a": A}, {}),
        ({"a": A, "b": B, "c": 1.0}, {}),
        ({"a": B, "b": B}, {}),
        ({"a": A, "b": B}, {"seeds": {"f": 1.0}}),
        ({"a": A, "b": B}, {"values": ["nowhere"]}),
        ({"a": A, "b": B}, {"values": [99]}),
        ({"a": A, "b": B}, {"with_respect_to": ["nowhere"]}),
        ({"a": A, "b": B}, {"forward_only": True, "seeds": {"out": 1.0}}),
    ],
)
def test_mistake_is_caught_before_sending_with_the_words_of_the_server(
    inputs: dict[str, Any],
    options: dict[str, Any],
    server: gw.Connection,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with gw.connect("127.0.0.1:1") as nobody, pytest.raises(gw.InvalidRequestError) as by_client:
        nobody.evaluate(product(), inputs, **options)
    past_the_check = service_pb2.Evaluation(
        bindings=[
            service_pb2.Binding(leaf=name, tensor=tensors.encode(np.asarray(array)))
            for name, array in inputs.items()
        ],
        seeds=[
            tensor_pb2.NamedTensor(name=name, tensor=tensors.encode(np.asarray(array)))
            for name, array in options.get("seeds", {}).items()
        ],
        with_respect_to=options.get("with_respect_to", ()),
        forward_only=options.get("forward_only", False),
    )
    for each in options.get("values", ()):
        chosen = past_the_check.values
        (chosen.names if isinstance(each, str) else chosen.value_ids).append(each)
    monkeypatch.setattr("gradwire.requests.evaluation", lambda *_, **__: past_the_check)
    with pytest.raises(gw.InvalidRequestError) as by_server:
        server.evaluate(product())
    assert by_client.value.reason == by_server.value.reason
    assert by_client.value.message == by_server.value.message


@pytest.mark.parametrize(
    ("reason", "build"),
    [
        ("TENSOR_INVALID", lambda graph: graph.input("x", (-1,))),
        ("TENSOR_INVALID", lambda graph: graph.input("x", ("",))),
        ("TENSOR_INVALID", lambda graph: graph.input("x", value="two")),
        ("LEAF_INVALID", lambda graph: graph.input("x", 3, value=[1.0, 2.0])),
        ("LEAF_INVALID", lambda graph: graph.elements("x", ("n",))),
        ("DATA_TYPE_UNSUPPORTED", lambda graph: graph.input("x", dtype="float128")),
        ("DATA_TYPE_UNSUPPORTED", lambda graph: graph.parameter("x", 1j)),
        ("NAME_INVALID", lambda graph: graph.input("")),
        ("NAME_INVALID", lambda graph: (graph.input("x"), graph.input("x"))),
        ("OUTPUT_INVALID", lambda graph: graph.output("f")),
        ("GRAPH_INVALID", lambda graph: graph.output("f", gw.Graph().input("x"))),
        ("GRAPH_INVALID", lambda graph: graph.to_bytes()),
    ],
)
def test_mistake_while_building_has_its_reason(
    reason: str, build: Callable[[gw.Graph], object]
) -> None:
    with pytest.raises(gw.InvalidRequestError) as refused:
        build(gw.Graph())
    assert refused.value.reason == reason


def test_nodes_read_from_a_file_have_no_line_and_later_ones_their_own() -> None:
    graph = gw.Graph.from_bytes(product().to_bytes())
    graph.output("g", gw.neg(graph.input("c")))
    found = [graph.made_at(node) for node in range(graph.node_count)]
    assert found[:2] == [None, None]
    assert re.fullmatch(r"test_client\.py:\d+", str(found[2]))


def test_session_keeps_batched_inputs_batched(server: gw.Connection) -> None:
    options: dict[str, Any] = {"batched": ["a"], "seeds": {"out": [1.0, 1.0]}}
    stack = np.stack([A, 2 * A])
    with server.session(product(), {"a": stack, "b": B}, **options) as session:
        session.step()
        found = session.step({"a": 3 * stack})
    expected = server.evaluate(product(), {"a": 3 * stack, "b": B}, **options)
    np.testing.assert_array_equal(found["out"].value, expected["out"].value)
    np.testing.assert_array_equal(found["b"].gradient, expected["b"].gradient)


def test_closed_connection_and_session_say_so() -> None:
    with gw.local() as connection:
        session = connection.session(product(), {"a": A, "b": B})
        session.close()
        with pytest.raises(gw.CancelledError):
            session.step()
    with pytest.raises(gw.CancelledError, match="is closed; open another"):
        connection.evaluate(product(), {"a": A, "b": B})


class NeverAnswers(service_pb2_grpc.GradientServiceServicer):
    """Holds an `Evaluate` until its client has gone."""

    def Evaluate(  # noqa: N802 (the generated method)
        self, request: service_pb2.EvaluateRequest, context: grpc.ServicerContext
    ) -> service_pb2.EvaluateResponse:
        gone = threading.Event()
        if context.add_callback(gone.set):
            gone.wait()
        return service_pb2.EvaluateResponse()


def test_passed_timeout_says_so() -> None:
    silent = grpc.server(ThreadPoolExecutor(1))
    service_pb2_grpc.add_GradientServiceServicer_to_server(NeverAnswers(), silent)
    port = silent.add_insecure_port("127.0.0.1:0")
    silent.start()
    try:
        with (
            gw.connect(f"127.0.0.1:{port}") as connection,
            pytest.raises(gw.DeadlineError, match="give a longer one"),
        ):
            connection.evaluate(product(), {"a": A, "b": B}, timeout=0.2)
    finally:
        silent.stop(None).wait()


def test_file_that_cannot_be_written_is_a_file_error(tmp_path: Path) -> None:
    with pytest.raises(gw.FileError, match="cannot be written: No such file or directory"):
        product().save(tmp_path / "nowhere" / "product.gate")


def test_limit_error_names_the_flag() -> None:
    with gw.local(max_nodes=1) as small, pytest.raises(gw.LimitError, match="--max-nodes"):
        small.evaluate(product(), {"a": A, "b": B})


def test_unreachable_server_says_what_to_do() -> None:
    with (
        gw.connect("127.0.0.1:1") as nobody,
        pytest.raises(gw.UnavailableError, match="gradwire serve"),
    ):
        nobody.evaluate(product(), {"a": A, "b": B})


def test_not_computed_is_not_zero(server: gw.Connection) -> None:
    graph = gw.Graph()
    x, unused = graph.input("x"), graph.input("unused", value=1.0)
    graph.output("f", (x * x).named("square"))
    result = server.evaluate(graph, {"x": 3.0}, values=["square"])
    assert result["unused"].gradient == 0
    assert result["square"].value == 9
    assert result["square"].gradient is None
    assert unused.dtype == "float64"


def test_batch_equals_its_rows(server: gw.Connection) -> None:
    graph = product()
    stack = np.stack([A, 2 * A, A - 1])
    whole = server.evaluate(
        graph, {"a": stack, "b": B}, batched=["a"], seeds={"out": [1.0, 2.0, 3.0]}
    )
    rows = [
        server.evaluate(graph, {"a": row, "b": B}, seeds={"out": seed})
        for row, seed in zip(stack, (1.0, 2.0, 3.0), strict=True)
    ]
    np.testing.assert_allclose(whole["out"].value, [row["out"].value for row in rows])
    np.testing.assert_allclose(whole["a"].gradient, [row["a"].gradient for row in rows])
    np.testing.assert_allclose(whole["b"].gradient, sum(row["b"].gradient for row in rows))


def test_summary_stands_for_the_tensor(server: gw.Connection) -> None:
    graph = gw.Graph()
    x = graph.input("x", (4,))
    graph.output("f", gw.reduce_sum(gw.exp(x).named("e"), keepdims=0))
    given = np.array([0.0, np.nan, np.inf, -np.inf])
    summary = server.evaluate(graph, {"x": given}, values=["x"], summary=True)["x"].value
    assert isinstance(summary, gw.Summary)
    assert (summary.nan_count, summary.infinity_count) == (1, 2)
    assert (summary.minimum, summary.maximum) == (-np.inf, np.inf)


def test_large_tensor_is_streamed_in_pieces(server: gw.Connection) -> None:
    graph = gw.Graph()
    x = graph.input("x", (300, 1000))
    graph.output("f", gw.reduce_sum((x * x).named("square"), keepdims=0))
    given = np.random.default_rng(0).standard_normal((300, 1000))
    events = list(server.stream(graph, {"x": given}))
    found = {(e.kind, e.name): e.content for e in events if isinstance(e, gw.Event)}
    np.testing.assert_array_equal(found["value", "square"], given**2)
    np.testing.assert_array_equal(found["gradient", "x"], 2 * given)


def test_elements_feed_scalar_gates(server: gw.Connection) -> None:
    graph = gw.Graph()
    w = graph.elements("w", 3)
    squares = [each * each for each in w]
    graph.output("squares", *squares)
    result = server.evaluate(graph, {"w": [1.0, 2.0, 3.0]}, seeds={"squares": [1.0, 1.0, 2.0]})
    np.testing.assert_array_equal(result["squares"].value, [1.0, 4.0, 9.0])
    np.testing.assert_array_equal(result["w"].gradient, [2.0, 4.0, 12.0])


def test_session_survives_a_bad_step_and_minimizes(server: gw.Connection) -> None:
    graph = gw.Graph()
    x, y = graph.parameter("x", 5.0), graph.parameter("y", np.zeros(2))
    graph.output("f", (x - 1) ** 2 + gw.reduce_sum((y - 2.0) * (y - 2.0), keepdims=0))
    from scipy.optimize import minimize

    with server.session(graph) as session:
        with pytest.raises(gw.InvalidRequestError, match="x has shape"):
            session.value_and_gradient(np.zeros(2))
        with pytest.raises(gw.InvalidRequestError):
            session.step({"nowhere": 1.0})
        found = minimize(session.value_and_gradient, np.zeros(3), jac=True)
    np.testing.assert_allclose(found.x, [1, 2, 2], atol=1e-5)


def test_session_agrees_with_evaluations_one_by_one(server: gw.Connection) -> None:
    graph = gw.Graph()
    x, w = graph.input("x", shape=("n",)), graph.parameter("w", 2.0)
    graph.output("f", gw.reduce_sum(gw.sin(x * w), keepdims=0))
    numbers = np.random.default_rng(4)
    steps: list[tuple[dict[str, Any], bool]] = [
        ({"x": numbers.normal(size=3)}, False),
        ({"x": numbers.normal(size=3)}, False),
        ({"w": 3.0}, True),
        ({}, False),
        ({"x": numbers.normal(size=5)}, True),
        ({"x": numbers.normal(size=5), "w": -1.0}, False),
        ({"w": 0.5}, False),
    ]
    now: dict[str, Any] = {}
    with server.session(graph) as session:
        for changes, forward_only in steps:
            now |= changes
            found = session.step(changes, forward_only=forward_only)
            expected = server.evaluate(graph, now, forward_only=forward_only)
            np.testing.assert_equal(found.outputs, expected.outputs)
            np.testing.assert_equal(found.gradients, expected.gradients)


def test_large_arrays_arrive_as_small_ones_do(server: gw.Connection) -> None:
    numbers = np.random.default_rng(6)
    graph = gw.Graph()
    large, rows = graph.input("large", shape=(3, "n")), graph.input("rows", shape=("n",))
    small = graph.parameter("small", numbers.normal(size=(70_000,)))
    graph.output("f", gw.reduce_sum(large * rows, keepdims=0) + gw.reduce_sum(small, keepdims=0))
    inputs = {
        "small": np.asfortranarray(numbers.normal(size=(70_000,))[::-1]),
        "large": numbers.normal(size=(70_000, 3)).T,  # not contiguous
        "rows": numbers.normal(size=(2, 70_000)),
    }
    found = server.evaluate(graph, inputs, batched=["rows"], values=True)
    np.testing.assert_allclose(
        found.outputs["f"],
        (inputs["large"] * inputs["rows"][:, None]).sum((1, 2)) + inputs["small"].sum(),
    )
    np.testing.assert_allclose(
        found.gradients["rows"], np.tile(inputs["large"].sum(axis=0), (2, 1)), rtol=1e-12
    )
    for name in inputs:
        np.testing.assert_array_equal(found[name].value, inputs[name])
        assert found[name].gradient.flags.aligned


def quadratic() -> gw.Graph:
    graph = gw.Graph()
    x = graph.parameter("x", np.zeros(3))
    graph.output("f", gw.reduce_sum(x * x * x, keepdims=0))
    return graph


def test_many_points_are_each_as_alone(server: gw.Connection) -> None:
    points = np.random.default_rng(0).normal(size=(600, 3))  # several messages
    with server.session(quadratic()) as session:
        values, gradients = session.values_and_gradients(points)
        alone = [session.value_and_gradient(point) for point in points[::100]]
        with pytest.raises(gw.InvalidRequestError, match="give one row for each point"):
            session.values_and_gradients(points[0])
    np.testing.assert_allclose(values, (points**3).sum(axis=1), rtol=1e-12)
    np.testing.assert_allclose(gradients, 3 * points**2, rtol=1e-12)
    np.testing.assert_array_equal(values[::100], [value for value, _ in alone])


def test_step_that_fails_among_many_is_named(server: gw.Connection) -> None:
    graph = gw.Graph()
    x = graph.input("x", shape=(3,))
    index = graph.input("index", dtype="int64")
    graph.output("f", gw.gather(x, index))
    x0 = np.arange(3.0)
    with server.session(graph, {"x": x0}) as session:
        with pytest.raises(gw.InvalidRequestError, match=r"step 1: .*index 9"):
            session.steps([{"index": 0}, {"index": 9}, {"index": 2}])
        assert session.step()["f"].value == 2  # the last good point
        assert [each["f"].value for each in session.steps([{"index": 1}])] == [1]


def test_second_order_by_differentiating_twice(server: gw.Connection) -> None:
    graph = gw.Graph()
    x = graph.input("x")
    graph.output("f", gw.sin(x) * x)
    backward = gw.gradient_graph(graph, server=server)
    result = server.evaluate(backward, {"x": 0.7}, seeds={"grad/x": 1.0}, with_respect_to=["x"])
    second = 2 * np.cos(0.7) - 0.7 * np.sin(0.7)
    assert result["x"].gradient == pytest.approx(second, rel=1e-12)


def test_gradient_graph_needs_symbol_sizes(server: gw.Connection) -> None:
    graph = gw.Graph()
    x = graph.input("x", ("n",))
    graph.output("f", gw.reduce_sum(x * x, keepdims=0))
    with pytest.raises(
        gw.InvalidRequestError, match=r"size of 'n' is not known; .*in Python: sizes"
    ):
        server.gradient_graph(graph)
    backward = server.gradient_graph(graph, sizes={"n": 2})
    found = server.evaluate(backward, {"x": [1.0, 2.0]}, forward_only=True)
    np.testing.assert_array_equal(found["grad/x"].value, [2.0, 4.0])


def test_asynchronous_client_does_the_same(server: gw.Connection) -> None:
    async def run() -> tuple[object, object, int]:
        async with gw.connect_async(server.target) as connection:
            result = await connection.evaluate(product(), {"a": A, "b": B})
            async with await connection.session(product(), {"a": A, "b": B}) as session:
                value, _ = await session.value_and_gradient({"a": A})
                (same,) = await session.steps([{"a": A}])
                assert same["out"].value == value
                flat, gradient = await session.value_and_gradient(np.append(A, B))
                assert flat == value
                assert gradient.shape == (A.size + B.size,)
            with pytest.raises(gw.CancelledError, match="is closed; open another"):
                await session.step()
            assert (await connection.describe()).version == gw.__version__
            events = [each async for each in connection.stream(product(), {"a": A, "b": B})]
            return result["out"].value, value, len(events)

    value, again, events = asyncio.run(run())
    assert value == again == (A @ B).sum()
    assert events == 4 + 4 + 1


def test_file_round_trip_is_verbatim(tmp_path: Path) -> None:
    graph = product()
    gw.save(graph, tmp_path / "product.gate")
    again = gw.load(tmp_path / "product.gate")
    assert again.digest == graph.digest
    assert str(again) == str(graph)
    again._bytes = None  # written anew from what was read
    assert again.to_bytes() == graph.to_bytes()


def test_local_stays_a_function_when_its_module_is_imported() -> None:
    module = import_module("gradwire.local")
    gw.local = module  # type: ignore[assignment]  # as the first import does
    assert gw.local is module.local


def test_golden_files_open_with_the_same_digest_and_numbers(server: gw.Connection) -> None:
    """Files written by released versions; a line of golden.tsv is never changed, only added."""
    lines = (GOLDEN / "golden.tsv").read_text().splitlines()
    assert len(lines) == len(list(GOLDEN.glob("*.gate")))
    for line in lines:
        name, digest, *numbers = line.split("\t")
        graph = gw.load(GOLDEN / name)
        assert graph.digest == digest
        result = server.evaluate(graph)
        found = [*result.outputs.values(), *result.gradients.values()]
        for array, number in zip(found, numbers, strict=True):
            tolerance = 1e-5 if array.dtype == np.float32 else 1e-7 if "tensors" in name else 1e-13
            assert float(np.sum(array)) == pytest.approx(float.fromhex(number), rel=tolerance)


def test_print_is_readable() -> None:
    assert str(product()).splitlines() == [
        "input a: float64[2, 3]",
        "input b: float64[3, 2]",
        "product = MatMul(a, b)",
        "%4 = ReduceSum(product, keepdims=0)",
        "output out = %4",
    ]


def test_print_calls_a_value_by_the_id_that_the_server_uses() -> None:
    graph = gw.Graph()
    a = graph.parameter("a", [1.0, 2.0])
    handle = gw.exp(a) + graph.constant(3.0)
    graph.output("f", handle)
    assert repr(handle) == f"<gradwire.Handle %{graph.id_of(handle)}: float64>"
    assert str(graph).splitlines()[0] == "parameter a: float64[2] = [1.0, 2.0]"
    assert f"%{graph.id_of(handle)} = Add" in str(graph)


def test_building_is_linear() -> None:
    graph = gw.Graph()
    x = graph.input("x")
    for _ in range(20_000):
        x = x + 1.0
    graph.output("f", x)
    assert graph.node_count == 20_000
    assert re.search(r"\.\.\. \d+ more nodes", str(graph))
