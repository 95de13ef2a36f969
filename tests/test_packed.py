"""Numbers of many leaves as one run of bytes are those of the leaves by name, bit for bit."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from patience import counted_calls
from wire import field_of

import gradwire as gw
from gradwire import connection as connection_module
from gradwire.v1 import service_pb2 as pb
from gradwire.v1 import service_pb2_grpc
from gradwire_server.codec import answers

FLOATS = ("float64", "float32", "float16", "bfloat16")
Stub = service_pb2_grpc.GradientServiceStub


@pytest.fixture(scope="module")
def server() -> Iterator[gw.Connection]:
    with gw.local() as connection:
        yield connection


@pytest.fixture(scope="module")
def stub(server: gw.Connection) -> Iterator[Stub]:
    with grpc.insecure_channel(server.target) as channel:
        yield Stub(channel)


def circuit(dtype: str = "float64", gates: int = 40) -> gw.Graph:
    """Numbers, elements, a parameter and constants; on the tape."""
    random = np.random.default_rng(1)
    graph = gw.Graph()
    values = [graph.input(f"x{i}", dtype=dtype) for i in range(3)]
    values += graph.elements("v", (4,), dtype)
    values += graph.elements("m", (2, 2), dtype)
    values += [graph.parameter("p", np.array(0.5, dtype)), graph.constant(np.array(2, dtype))]
    for _ in range(gates):
        a, b = (values[i] for i in random.integers(0, len(values), 2))
        values.append([a + b, a * b, gw.tanh(a), gw.sigmoid(b)][random.integers(0, 4)])
    graph.output("f", gw.tanh(total(values[:12] + values[-5:])))
    return graph


def total(values: Any) -> Any:
    """Of numbers, by gates that a tape has."""
    while len(values) > 1:
        pairs = zip(values[::2], values[1::2], strict=False)
        values = [a + b for a, b in pairs] + values[len(values) // 2 * 2 :]
    return values[0]


def with_a_truth() -> gw.Graph:
    """A circuit that has a leaf beside those that can be packed."""
    graph = gw.Graph()
    a, switch, b = graph.input("a"), graph.input("switch", dtype="bool"), graph.input("b")
    graph.output("f", gw.where(switch, a * b, a + b))
    return graph


@gw.module
def scaled(x: Any, y: Any) -> Any:
    return x * y


@scaled.gradient
def scaled_gradient(x: Any, y: Any, out: Any, grad: Any) -> Any:
    return grad * y + 0 * out, grad * x


def modules() -> gw.Graph:
    """Modules with gradients of their own: another circuit holds the gradients."""
    graph = gw.Graph()
    leaves = [graph.input(f"x{i}") for i in range(24)]
    turned = leaves[::-2] + leaves[::2]
    graph.output("f", total([scaled(a, b) + a for a, b in zip(leaves, turned, strict=True)]))
    return graph


def network(dtype: str = "float64") -> gw.Graph:
    """Tensors."""
    graph = gw.Graph()
    x, w = graph.input("x", (4, 3), dtype), graph.parameter("w", np.ones((3, 2), dtype))
    b = graph.parameter("b", np.zeros((), dtype))
    graph.output("f", gw.reduce_sum(gw.tanh(x @ w + b), keepdims=0))
    return graph


def mixed() -> gw.Graph:
    """Data types that differ, narrow before wide."""
    graph = gw.Graph()
    half, b = graph.input("half", (3,), "float16"), graph.input("b", (2,))
    single, count = graph.parameter("single", np.float32(2)), graph.input("n", (), "int64")
    parts = [gw.reduce_sum(gw.cast_like(each, b), keepdims=0) for each in (half, single * single)]
    graph.output("f", gw.reduce_sum(b * gw.cast_like(count, b), keepdims=0) * parts[0] + parts[1])
    return graph


def static() -> gw.Graph:
    """Shapes depend on elements of a floating leaf."""
    graph = gw.Graph()
    limit, x = graph.input("limit"), graph.input("x")
    numbers = gw.range(np.float64(0), limit, np.float64(1))
    graph.output("f", gw.reduce_sum(numbers * x, keepdims=0))
    return graph


#: Graphs, and what is bound by name.
GRAPHS: dict[str, tuple[Callable[[], gw.Graph], dict[str, Any]]] = {
    "circuit": (circuit, {}),
    "circuit of float32": (lambda: circuit("float32"), {}),
    "circuit of float16": (lambda: circuit("float16"), {}),
    "large circuit": (lambda: circuit(gates=17_000), {}),
    "truth": (with_a_truth, {"switch": True}),
    "modules": (modules, {}),
    "network": (network, {}),
    "network of bfloat16": (lambda: network("bfloat16"), {}),
    "mixed": (mixed, {"n": np.int64(3)}),
}


def floating(graph: gw.Graph) -> list[Any]:
    return [leaf for leaf in graph.leaves if leaf.kind != "constant" and leaf.dtype in FLOATS]


def points(graph: gw.Graph, count: int = 4) -> list[dict[str, Any]]:
    """Random values of the floating leaves, in the graph's order."""
    random = np.random.default_rng(0)
    return [
        {leaf.name: random.normal(size=leaf.axes).astype(leaf.dtype) for leaf in floating(graph)}
        for _ in range(count)
    ]


def run_of(arrays: Any) -> bytes:
    return b"".join(np.asarray(each).tobytes() for each in arrays)


def flat(point: dict[str, Any]) -> np.ndarray[Any, Any]:
    """In float64, which has every number of the other types."""
    return np.concatenate([np.asarray(each, "float64").ravel() for each in point.values()])


@pytest.mark.parametrize("name", GRAPHS)
def test_vector_is_evaluated_as_its_leaves(server: gw.Connection, name: str) -> None:
    """In an evaluator, in a session, one by one and many at once, and in a call of its own."""
    make, others = GRAPHS[name]
    graph = make()
    x0, *rest = points(graph)
    evaluator = gw.Evaluator(graph, others, x=flat(x0))
    with server.session(graph, others) as session:
        values, gradients = session.values_and_gradients(np.array([*map(flat, rest)]))
        for number, point in enumerate([x0, *rest]):
            expected = server.evaluate(graph, point | others)
            result = float(expected.outputs["f"]), flat(expected.gradients)
            found = [evaluator.value_and_gradient(flat(point))]
            found.append(session.value_and_gradient(flat(point)))
            if not others:
                found.append(server.value_and_gradient(graph, flat(point)))
            if number:
                found.append((values[number - 1], gradients[number - 1]))
            for value, gradient in found:
                assert value == result[0]
                np.testing.assert_array_equal(gradient, result[1], strict=True)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_arrays_of_an_evaluator_are_parts_of_one(dtype: str) -> None:
    graph = circuit(dtype)
    first, second = points(graph, 2)
    evaluator = gw.Evaluator(graph, first)
    assert evaluator.x.dtype == evaluator.gradient.dtype == dtype
    np.testing.assert_array_equal(evaluator.x, flat(first))
    evaluator.x[...] = flat(second)
    for name, array in second.items():
        np.testing.assert_array_equal(evaluator.inputs[name], array, strict=True)
    evaluator.inputs["x1"][...] = 0.25
    assert evaluator.x[1] == 0.25
    evaluator.run()
    assert list(evaluator.gradients) == list(second)
    np.testing.assert_array_equal(evaluator.gradient, flat(dict(evaluator.gradients)))
    assert evaluator.gradients["m"].shape == (2, 2)
    assert np.shares_memory(evaluator.gradients["m"], evaluator.gradient)
    assert "x1" in repr(evaluator.gradients)


def test_vector_has_the_leaves_that_are_differentiated(server: gw.Connection) -> None:
    graph, (point,) = circuit(), points(circuit(), 1)
    for chosen in (["v"], ["x1", "x2"], ["x0", "v", "p"]):
        part = {name: point[name] for name in point if name in chosen}
        others = {name: point[name] for name in point if name not in chosen}
        expected = server.evaluate(graph, point, with_respect_to=chosen)
        evaluator = gw.Evaluator(graph, others, x=flat(part), with_respect_to=iter(chosen))
        with server.session(graph, others, with_respect_to=chosen) as session:
            for found in (session.value_and_gradient, evaluator.value_and_gradient):
                value, gradient = found(flat(part))
                assert value == expected.outputs["f"]
                np.testing.assert_array_equal(gradient, flat(expected.gradients), strict=True)
    np.testing.assert_array_equal(gw.Evaluator(graph, point, with_respect_to="v").x, point["v"])


@pytest.mark.parametrize(
    ("make", "given"),
    [
        (network, {"x": np.ones((4, 3))}),
        (with_a_truth, {"a": 1.0, "b": 2.0, "switch": True}),
        (mixed, {"half": np.ones(3, "float16"), "b": np.ones(2), "n": 1}),
    ],
)
def test_leaves_that_lie_apart_have_no_one_array(
    make: Callable[[], gw.Graph], given: dict[str, Any]
) -> None:
    evaluator = gw.Evaluator(make(), given)
    for name in ("x", "gradient"):
        with pytest.raises(gw.InvalidRequestError, match="value_and_gradient a flat vector"):
            getattr(evaluator, name)


def many_leaves(count: int) -> gw.Graph:
    graph = gw.Graph()
    values = [gw.tanh(graph.input(f"x{i}")) for i in range(count)]
    graph.output("f", total(values))
    return graph


def test_no_step_of_python_is_taken_for_a_leaf(server: gw.Connection) -> None:
    graph = many_leaves(5000)
    x = np.random.default_rng(0).normal(size=5000)
    evaluator = gw.Evaluator(graph, x=x)
    with server.session(graph) as session:
        session.value_and_gradient(x)
        for call in (evaluator.value_and_gradient, session.value_and_gradient):
            with counted_calls(most=1000):
                value, gradient = call(x)
            assert value == pytest.approx(np.tanh(x).sum())
            np.testing.assert_allclose(gradient, 1 / np.cosh(x) ** 2)


@pytest.mark.parametrize("x", [np.ones(2), np.ones((1, 12)), np.ones(0), 1.0])
def test_vector_of_another_length_changes_nothing(server: gw.Connection, x: Any) -> None:
    graph, (point,) = circuit(), points(circuit(), 1)
    evaluator = gw.Evaluator(graph, point)
    with server.session(graph, point) as session:
        expected = session.value_and_gradient(flat(point))
        for call in (
            evaluator.value_and_gradient,
            session.value_and_gradient,
            lambda each: server.value_and_gradient(graph, each),
            lambda each: gw.Evaluator(graph, x=each),
        ):
            with pytest.raises(gw.InvalidRequestError, match="have 12 elements in all") as failure:
                call(x)
            assert failure.value.reason == "SHAPE_MISMATCH"
        np.testing.assert_array_equal(evaluator.x, flat(point))
        assert session.step().outputs["f"] == expected[0]


def test_forward_only_has_no_gradient(server: gw.Connection) -> None:
    graph, (point,) = circuit(), points(circuit(), 1)
    evaluator = gw.Evaluator(graph, point, forward_only=True)
    with server.session(graph, point, forward_only=True) as session:
        for call in (evaluator.value_and_gradient, session.value_and_gradient):
            with pytest.raises(gw.InvalidRequestError, match="forward_only") as failure:
                call(flat(point))
            assert failure.value.reason == "SELECTION_INVALID"


def test_open_size_is_refused(server: gw.Connection) -> None:
    graph = gw.Graph()
    graph.output("f", gw.reduce_sum(graph.input("x", ("n",)), keepdims=0))
    with pytest.raises(gw.InvalidRequestError, match="symbolic size") as failure:
        server.value_and_gradient(graph, np.ones(3))
    assert failure.value.reason == "SYMBOL_UNBOUND"


def test_shapes_may_depend_on_packed_elements(server: gw.Connection) -> None:
    graph = static()
    with server.session(graph) as session:
        for limit in (3.0, 5.0, 5.0, 2.0):
            expected = server.evaluate(graph, {"limit": limit, "x": 7.0})
            value, gradient = session.value_and_gradient(np.array([limit, 7.0]))
            assert value == expected.outputs["f"] == 7 * sum(range(int(limit)))
            np.testing.assert_array_equal(gradient, flat(expected.gradients))
            assert session.step({"x": 1.0}).outputs["f"] == sum(range(int(limit)))
    with pytest.raises(gw.InvalidRequestError, match="read-only"):
        gw.Evaluator(graph, {"limit": 3.0, "x": 7.0}).value_and_gradient(np.ones(2))


def test_asynchronous_client_packs_too(
    server: gw.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph, (point,) = mixed_alone(), points(mixed_alone(), 1)
    expected = server.evaluate(graph, point)
    monkeypatch.setattr(connection_module.requests, "step_request", None)

    async def run() -> None:
        async with (
            gw.connect_async(server.target) as connection,
            await connection.session(graph) as session,
        ):
            for call in (
                session.value_and_gradient,
                lambda x: connection.value_and_gradient(graph, x),
            ):
                value, gradient = await call(flat(point))
                assert value == expected.outputs["f"]
                np.testing.assert_array_equal(gradient, flat(expected.gradients))
            value, gradients = await connection.value_and_gradient(graph, point)
            assert value == expected.outputs["f"]
            assert list(gradients) == list(point)

    asyncio.run(run())


def mixed_alone() -> gw.Graph:
    """Two data types, and nothing but floating leaves."""
    graph = gw.Graph()
    a, b = graph.input("a", dtype="float32"), graph.input("b", (2,))
    graph.output("f", gw.reduce_sum(b * gw.cast_like(a, b), keepdims=0))
    return graph


def test_server_without_the_feature_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would ignore the numbers: sessions bind by name, the rest is refused by name."""
    monkeypatch.setattr(answers, "REQUEST_FEATURES", frozenset())
    graph, (point,) = circuit(), points(circuit(), 1)
    with gw.local() as older, older.session(graph) as session:
        assert "packed" not in older.describe().features
        expected = older.evaluate(graph, point)
        for name in ("packed_step", "packed_steps", "packed_evaluation"):
            monkeypatch.setattr(connection_module.requests, name, None)
        value, gradient = session.value_and_gradient(flat(point))
        values, gradients = session.values_and_gradients([flat(point)])
        assert value == values[0] == expected.outputs["f"]
        np.testing.assert_array_equal(gradient, flat(expected.gradients))
        np.testing.assert_array_equal(gradients[0], gradient)
        with pytest.raises(gw.UnsupportedError, match="lacks the feature 'packed'") as failure:
            older.value_and_gradient(graph, flat(point))
        assert failure.value.reason == "FEATURE_UNSUPPORTED"
        assert older.value_and_gradient(graph, point)[0] == value


def test_answer_that_ignores_the_numbers_is_not_taken_for_one(
    server: gw.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As that of an older server that took the place of the one that was asked."""
    graph = gw.Graph()
    graph.output("f", graph.parameter("w", 2.0) ** 2)

    def ignored(graph: gw.Graph, *_: Any) -> list[bytes]:
        return [pb.EvaluateRequest(graph=source(graph)).SerializeToString()]

    monkeypatch.setattr(connection_module.requests, "packed_evaluation", ignored)
    with pytest.raises(gw.ServerError, match="connect again"):
        server.value_and_gradient(graph, np.array([3.0]))


def source(graph: gw.Graph) -> pb.GraphSource:
    return pb.GraphSource(graph=graph.to_bytes())


def evaluation(packed: pb.Packed | None, **fields: Any) -> pb.Evaluation:
    return pb.Evaluation(packed=packed, **fields)


def expected_run(server: gw.Connection, graph: gw.Graph, point: Any, order: Any) -> bytes:
    """What `Result.packed` has, made from a result by name."""
    result = server.evaluate(graph, point, with_respect_to=order)
    outputs = [result.outputs[name] for name in graph.outputs]
    return run_of([*outputs, *(result.gradients[name] for name in order)])


@pytest.mark.parametrize(
    "make", [circuit, modules, network, mixed_alone, lambda: circuit(gates=17_000)]
)
def test_callers_order_is_kept_in_every_call(
    server: gw.Connection, stub: Stub, make: Callable[[], gw.Graph]
) -> None:
    """Any leaves in any order, the others by name, in calls, streams, and sessions."""
    graph, random = make(), np.random.default_rng(3)
    names = [leaf.name for leaf in floating(graph)]
    for _ in range(4):
        chosen = random.permutation(len(names))[: random.integers(1, len(names) + 1)].tolist()
        order = [names[position] for position in chosen]
        messages = []
        for point in points(graph, 3):
            others = [each for each in bindings(graph, point) if each.leaf not in order]
            data = run_of(point[name] for name in order)
            packed = pb.Packed(leaves=chosen, data=data)
            expected = expected_run(server, graph, point, order)
            wanted = evaluation(packed, bindings=others)
            for _ in range(3):  # known by its graph, then by its last job
                answer = stub.Evaluate(pb.EvaluateRequest(graph=source(graph), evaluation=wanted))
                assert answer.result == pb.Result(packed=expected)
            *_, last = stub.EvaluateStream(
                pb.EvaluateStreamRequest(graph=source(graph), evaluation=wanted)
            )
            assert last.finished.result == pb.Result(packed=expected)
            messages.append((pb.Step(bindings=others, packed=data), expected))
        opening = evaluation(pb.Packed(leaves=chosen))
        steps = [pb.SessionRequest(step=step) for step, _ in messages]
        steps.append(pb.SessionRequest(steps=pb.Steps(steps=[step for step, _ in messages])))
        started, *found, many = stub.Session(opened(graph, opening, *steps))
        assert started.HasField("started")
        assert [each.result for each in found] == [pb.Result(packed=run) for _, run in messages]
        outcomes = [each.result for each in many.outcomes.outcomes]
        assert outcomes == [pb.Result(packed=run) for _, run in messages]


def bindings(graph: gw.Graph, point: dict[str, Any]) -> list[pb.Binding]:
    return [*connection_module.requests.evaluation(graph, point, complete=False).bindings]


def opened(graph: gw.Graph, wanted: pb.Evaluation, *rest: Any) -> Iterator[pb.SessionRequest]:
    yield pb.SessionRequest(open=pb.Open(graph=source(graph), evaluation=wanted))
    for number, each in enumerate(rest, 1):
        message = pb.SessionRequest(request_id=number)
        message.MergeFrom(each)
        yield message


def test_session_takes_packed_and_named_steps_in_any_order(
    server: gw.Connection, stub: Stub
) -> None:
    """A refused step, packed or not, leaves the last good point; backward is answered by name."""
    graph = circuit()
    first, second, third = points(graph, 3)
    names = list(first)
    packed, longer = run_of(second.values()), run_of(third.values()) + bytes(8)
    named = pb.Step(bindings=bindings(graph, {"x1": third["x1"]}))
    twice = pb.Step(bindings=named.bindings, packed=packed)
    seed = gw.connection.requests.seed_messages(graph, {"f": 2.0})
    steps = [
        pb.SessionRequest(step=pb.Step()),  # where it was opened
        pb.SessionRequest(step=pb.Step(packed=packed)),
        pb.SessionRequest(step=pb.Step(packed=packed)),
        pb.SessionRequest(step=pb.Step(packed=longer)),
        pb.SessionRequest(step=pb.Step(packed=b"")),
        pb.SessionRequest(step=twice),
        pb.SessionRequest(step=named),
        pb.SessionRequest(backward=pb.Backward(seeds=seed)),
        pb.SessionRequest(step=pb.Step(packed=packed, forward_only=True)),
        pb.SessionRequest(step=pb.Step(packed=packed)),
        pb.SessionRequest(backward=pb.Backward(seeds=seed)),
    ]
    wanted = evaluation(pb.Packed(data=run_of(first.values())))
    _, *found = stub.Session(opened(graph, wanted, *steps))
    errors = {number: each.error.reason for number, each in enumerate(found) if each.error.reason}
    assert errors == {3: "TENSOR_INVALID", 4: "TENSOR_INVALID", 5: "BINDING_INVALID"}
    assert "104" in found[3].error.message
    assert "96" in found[3].error.message
    run = expected_run(server, graph, second, names)
    assert found[0].result == by_name(server, graph, first)
    assert [found[number].result for number in (1, 2, 9)] == [pb.Result(packed=run)] * 3
    assert found[6].result == by_name(server, graph, second | {"x1": third["x1"]})
    doubled = by_name(server, graph, second | {"x1": third["x1"]}, seeds={"f": 2.0})
    assert [*found[7].result.gradients] == [*doubled.gradients]
    assert found[8].result == pb.Result(packed=run[:8])
    doubled = by_name(server, graph, second, seeds={"f": 2.0})
    assert [*found[10].result.gradients] == [*doubled.gradients]


def by_name(server: gw.Connection, graph: gw.Graph, point: Any, **options: Any) -> pb.Result:
    asked = connection_module.requests.evaluation(graph, point, **options)
    with grpc.insecure_channel(server.target) as channel:
        request = pb.EvaluateRequest(graph=source(graph), evaluation=asked)
        return Stub(channel).Evaluate(request).result


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"packed": pb.Packed(data=bytes(88))}, "TENSOR_INVALID", "packed.data"),
    ({"packed": pb.Packed()}, "TENSOR_INVALID", "packed.data"),
    ({"packed": pb.Packed(leaves=[0], data=bytes(16))}, "TENSOR_INVALID", "packed.data"),
    ({"packed": pb.Packed(leaves=[0, 6], data=bytes(16))}, "LEAF_UNKNOWN", "packed.leaves[1]"),
    ({"packed": pb.Packed(leaves=[2, 2], data=bytes(16))}, "BINDING_INVALID", "packed.leaves[1]"),
    (
        {"packed": pb.Packed(leaves=[0], data=bytes(8)), "with_respect_to": ["x0"]},
        "SELECTION_INVALID",
        "with_respect_to",
    ),
    ({"packed": pb.Packed(data=bytes(96)), "batch_size": 4}, "BINDING_INVALID", "batch_size"),
]


@pytest.mark.parametrize(("fields", "reason", "field"), REFUSED)
def test_wrong_request_is_refused_where_it_is_wrong(
    stub: Stub, fields: dict[str, Any], reason: str, field: str
) -> None:
    graph = circuit()
    calls: list[Callable[[pb.Evaluation], Any]] = [
        lambda each: stub.Evaluate(pb.EvaluateRequest(graph=source(graph), evaluation=each)),
        lambda each: [
            *stub.EvaluateStream(pb.EvaluateStreamRequest(graph=source(graph), evaluation=each))
        ],
    ]
    for call in calls:
        with pytest.raises(grpc.RpcError) as failure:
            call(pb.Evaluation(**fields))
        assert reason_of(failure.value) == reason
        assert field_of(failure.value) == f"evaluation.{field}"


def reason_of(call: grpc.RpcError) -> str:
    status, info = rpc_status.from_call(call), error_details_pb2.ErrorInfo()
    assert status is not None
    assert status.details[0].Unpack(info)
    return info.reason


def test_leaf_that_cannot_be_packed_is_refused(stub: Stub) -> None:
    graph = gw.Graph()
    n = graph.input("n", (), "int64")
    x = graph.input("x", ("rows",))
    graph.output("f", gw.reduce_sum(x, keepdims=0) * gw.cast_like(n, x))
    for packed, reason in (
        (pb.Packed(leaves=[0], data=bytes(8)), "NOT_DIFFERENTIABLE"),
        (pb.Packed(leaves=[1], data=bytes(8)), "SYMBOL_UNBOUND"),
        (pb.Packed(data=bytes(8)), "SYMBOL_UNBOUND"),
    ):
        with pytest.raises(grpc.RpcError) as failure:
            stub.Evaluate(pb.EvaluateRequest(graph=source(graph), evaluation=evaluation(packed)))
        assert reason_of(failure.value) == reason
        with pytest.raises(grpc.RpcError) as failure:
            [*stub.Session(opened(graph, evaluation(packed)))]
        assert reason_of(failure.value) == reason


def test_leaf_that_is_packed_is_not_bound_too(stub: Stub) -> None:
    graph, (point,) = circuit(), points(circuit(), 1)
    packed = pb.Packed(data=run_of(point.values()))
    wanted = evaluation(packed, bindings=bindings(graph, {"x1": point["x1"]}))
    with pytest.raises(grpc.RpcError) as failure:
        stub.Evaluate(pb.EvaluateRequest(graph=source(graph), evaluation=wanted))
    assert reason_of(failure.value) == "BINDING_INVALID"
    assert field_of(failure.value) == "evaluation.bindings[0].leaf"


def test_batched_session_has_no_packed_steps(server: gw.Connection) -> None:
    graph = circuit()
    (point,) = points(graph, 1)
    rows = point | {"x0": np.arange(5.0)}
    seeds = {"f": np.ones(5)}
    with server.session(graph, rows, batched="x0", seeds=seeds) as session:
        before = session.step().outputs["f"]
        with pytest.raises(gw.InvalidRequestError, match="packed numbers have no rows"):
            session.value_and_gradient(flat(point))
        np.testing.assert_array_equal(session.step().outputs["f"], before)


def test_selected_values_come_beside_the_run(server: gw.Connection, stub: Stub) -> None:
    graph, (point,) = circuit(), points(circuit(), 1)
    every = pb.Selection(all=True)
    request = pb.EvaluateRequest(
        graph=source(graph),
        evaluation=evaluation(
            pb.Packed(data=run_of(point.values())), values=every, gradients=every
        ),
    )
    found = stub.Evaluate(request).result
    asked = by_name(server, graph, point, values=True, gradients=True)
    assert found.packed == expected_run(server, graph, point, list(point))
    assert (found.node_values, found.node_gradients) == (asked.node_values, asked.node_gradients)


def test_numbers_of_a_caller_are_not_kept_with_its_graph() -> None:
    """As those by name: a graph that stays in the cache holds nobody's numbers."""
    from gradwire_server.limits import Limits
    from gradwire_server.service import GradientService

    graph, (point,) = circuit(), points(circuit(), 1)
    service = GradientService(Limits())
    packed = pb.Packed(data=run_of(point.values()))
    request = pb.EvaluateRequest(graph=source(graph), evaluation=evaluation(packed))
    for _ in range(3):
        service.evaluate(request.SerializeToString(), lambda: False)
    (entry,) = service._cache._entries.values()
    assert entry.job is not None
    given = [array for array in entry.job.point.arrays if array is not None]
    assert len(given) == 1  # the constant
    service.close()
