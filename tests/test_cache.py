"""A repeated graph is neither decoded nor planned, and nobody can tell from the answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from wire import F64, chain, leaf, neuron, scalar

import gradwire as gw
from gradwire import requests
from gradwire.v1 import graph_pb2, service_pb2, tensor_pb2
from gradwire_server.cache import GraphCache
from gradwire_server.codec.graphs import decode_graph
from gradwire_server.engine import evaluation as evaluate
from gradwire_server.engine import runs
from gradwire_server.errors import Refusal
from gradwire_server.graph import Graph
from gradwire_server.limits import Limits
from gradwire_server.service import GradientService

LIMITS = Limits()


class Counting:
    """Decodes, and counts how often it was asked to."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, data: bytes) -> Graph:
        self.count += 1
        return decode_graph(data, LIMITS)


def serialized(graph: graph_pb2.Graph) -> bytes:
    return graph.SerializeToString()


def request(x0: float, graph: graph_pb2.Graph | None = None) -> bytes:
    binding = service_pb2.Binding(leaf="x0", tensor=scalar(x0))
    return service_pb2.EvaluateRequest(
        graph=service_pb2.GraphSource(graph=serialized(graph or neuron())),
        evaluation=service_pb2.Evaluation(bindings=[binding]),
    ).SerializeToString()


def never() -> bool:
    return False


def test_graph_is_decoded_once() -> None:
    decode = Counting()
    cache = GraphCache(1 << 20, decode)
    first = cache.find(serialized(neuron()))
    assert cache.find(memoryview(serialized(neuron()))) is first
    assert decode.count == 1


def test_hit_answers_as_a_miss_does() -> None:
    service = GradientService(LIMITS)
    answers = [service.evaluate(request(x0), never) for x0 in (0.5, 0.7, 0.5)]
    fresh = GradientService(LIMITS).evaluate(request(0.7), never)
    assert answers[0] == answers[2] != answers[1]
    assert answers[1] == fresh


def test_plan_for_other_shapes_is_not_reused() -> None:
    graph = graph_pb2.Graph()
    graph.CopyFrom(chain(3))
    graph.circuit.inputs[0].ClearField("value")
    graph.circuit.inputs[0].type.axes.add(symbol="n")
    cache = GraphCache(1 << 20, Counting())
    entry = cache.find(serialized(graph))
    for size in (3, 5, 3):
        x = np.linspace(0, 1, size)
        wanted = evaluate.Evaluation({"x": evaluate.Binding(x)}, forward_only=True)
        job = evaluate.prepare(entry.graph, wanted, LIMITS, entry.job)
        entry.keep(job, wanted)
        ((_, out),) = runs.run(job, never)[0]
        np.testing.assert_allclose(out, np.sin(np.sin(np.sin(x))))


def test_cache_keeps_nothing_that_a_caller_sent() -> None:
    entry = GraphCache(1 << 20, Counting()).find(serialized(neuron()))
    x0, seed = np.array(0.5), np.array(2.0)
    wanted = evaluate.Evaluation({"x0": evaluate.Binding(x0)}, seeds={"f": seed})
    entry.keep(evaluate.prepare(entry.graph, wanted, LIMITS), wanted)
    assert entry.job is not None
    assert not any(array is x0 for array in entry.job.point.arrays)
    assert entry.again(wanted) is None  # its seed is gone


def test_job_is_used_again_only_where_numbers_alone_differ() -> None:
    entry = GraphCache(1 << 20, Counting()).find(serialized(neuron()))

    def asked(**bindings: object) -> evaluate.Evaluation:
        bound = {name: evaluate.Binding(np.asarray(each)) for name, each in bindings.items()}
        return evaluate.Evaluation(bound)

    first = asked(x0=0.5)
    entry.keep(evaluate.prepare(entry.graph, first, LIMITS), first)
    again = entry.again(asked(x0=0.7))
    assert again is not None
    fresh = evaluate.prepare(entry.graph, asked(x0=0.7), LIMITS)
    assert runs.run(again, never)[:2] == runs.run(fresh, never)[:2]
    others = [
        asked(),
        asked(x1=0.5),
        asked(x0=0.5, x1=0.5),
        asked(x0=[0.5]),
        asked(x0=np.float32(0.5)),
        replace(first, forward_only=True),
        replace(first, with_respect_to=("x0",)),
        replace(first, values=evaluate.Selection(value_ids=(14,))),
        replace(first, batch_size=2),
        replace(first, seeds={"f": np.array(2.0)}),
        replace(first, bindings={"x0": evaluate.Binding(np.array([0.5]), batched=True)}),
    ]
    assert [entry.again(other) for other in others] == [None] * len(others)


def test_elements_that_shapes_depend_on_are_planned_each_time() -> None:
    graph = gw.Graph()
    x = graph.input("x", shape=(6,))
    graph.output("f", gw.reshape(x, graph.input("shape", dtype="int64", shape=(2,))))
    service = GradientService(LIMITS)
    for shape in ((2, 3), (3, 2), (6, 1)):
        asked = requests.evaluation(graph, {"x": np.arange(6.0), "shape": shape}, forward_only=True)
        request = service_pb2.EvaluateRequest(graph=requests.source(graph), evaluation=asked)
        data = service.evaluate(request.SerializeToString(), never)
        (output,) = service_pb2.EvaluateResponse.FromString(data).result.outputs
        assert tuple(output.tensor.shape) == shape


def test_graph_used_longest_ago_makes_room() -> None:
    graphs = [serialized(chain(nodes)) for nodes in (100, 101, 102)]
    decode = Counting()
    size = GraphCache(1 << 30, codec_of(LIMITS)).find(graphs[2]).nbytes
    cache = GraphCache(2 * size, decode)
    cache.find(graphs[0])
    cache.find(graphs[1])
    cache.find(graphs[0])  # used again, so the other goes
    cache.find(graphs[2])
    assert len(cache) == 2
    assert decode.count == 3
    cache.find(graphs[0])
    assert decode.count == 3
    cache.find(graphs[1])
    assert decode.count == 4


def test_graph_larger_than_the_cache_is_answered_and_not_kept() -> None:
    cache = GraphCache(1000, Counting())
    assert cache.find(serialized(chain(1000))).graph.node_count == 1000
    assert len(cache) == 0


def test_large_graphs_that_end_alike_are_told_apart() -> None:
    graphs = []
    for scale in (1.0, 2.0, 3.0):
        graph = chain(1)
        values = np.full(20_000, scale)
        values[[0, -1]] = 0
        graph.circuit.inputs[0].CopyFrom(leaf("x", None, len(values)))
        graph.circuit.inputs[0].value.CopyFrom(
            tensor_pb2.Tensor(data_type=F64, shape=values.shape, data=values.tobytes())
        )
        graphs.append(serialized(graph))
    decode = Counting()
    cache = GraphCache(1 << 30, decode)
    for _ in range(2):
        for scale, data in enumerate(graphs, 1):
            stored = cache.find(data).graph.leaves[0].value
            assert stored is not None
            assert np.frombuffer(stored.data)[7] == scale
    assert decode.count == 3


def test_refused_graph_is_not_kept() -> None:
    graph = neuron()
    graph.gates[0].operator = "Mull"
    cache = GraphCache(1 << 20, Counting())
    for _ in range(2):
        with pytest.raises(Refusal) as refused:
            cache.find(serialized(graph))
        assert refused.value.reason == "OPERATOR_UNKNOWN"
    assert len(cache) == 0


def test_refused_point_leaves_the_plan_of_the_last_good_one() -> None:
    service = GradientService(LIMITS)
    good = service.evaluate(request(0.5), never)
    bad = service_pb2.EvaluateRequest.FromString(request(0.5))
    bad.evaluation.bindings[0].tensor.shape.append(1)
    with pytest.raises(Refusal):
        service.evaluate(bad.SerializeToString(), never)
    assert service.evaluate(request(0.5), never) == good


def codec_of(limits: Limits) -> Callable[[bytes], Graph]:
    return lambda data: decode_graph(data, limits)
