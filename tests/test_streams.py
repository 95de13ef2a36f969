"""The same evaluation streams the same columns, at any speed and on every engine."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain
from math import inf
from typing import Any

import numpy as np
import pytest
import wire

import gradwire as gw
from gradwire.v1 import service_pb2
from gradwire_server.codec.answers import encode_events
from gradwire_server.codec.graphs import decode_graph
from gradwire_server.engine import array, evaluation
from gradwire_server.engine.compiled import NOTHING
from gradwire_server.engine.evaluation import Binding, Evaluation, Job, everything, prepare
from gradwire_server.engine.runs import Run
from gradwire_server.limits import Limits

BATCH = 3


def scalars() -> tuple[bytes, Evaluation]:
    return wire.chain(2000).SerializeToString(), Evaluation()


def rows() -> tuple[bytes, Evaluation]:
    binding = Binding(np.arange(BATCH, dtype=float), batched=True)
    return wire.chain(2000).SerializeToString(), Evaluation({"x": binding}, BATCH)


def tensors() -> tuple[bytes, Evaluation]:
    """Small values and large ones by turns."""
    graph = gw.Graph()
    x = graph.parameter("x", np.linspace(-1, 1, 1000).reshape(10, -1))
    total = graph.parameter("start", 0.0)
    for _ in range(10):
        x = gw.tanh(x)
        total = total + gw.reduce_sum(x, keepdims=0)
    graph.output("f", total)
    return graph.to_bytes(), Evaluation()


def modules() -> tuple[bytes, Evaluation]:
    """Uses of a module with its own gradient."""
    return wire.module_neuron().SerializeToString(), Evaluation()


MADE = [scalars, rows, tensors, modules]


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that small graphs have several."""
    monkeypatch.setattr(evaluation, "BLOCK_BYTES", 512)


def prepared(made: Any) -> Job:
    data, asked = made()
    limits = Limits()
    return prepare(decode_graph(data, limits), everything(asked), limits)


def columns(job: Job) -> list[Any]:
    """The columns as they are sent, without their elements."""
    run = Run(job)
    with np.errstate(all="ignore"):
        events = [
            *encode_events("node_values", chain.from_iterable(run.forward())),
            *encode_events("node_gradients", chain.from_iterable(run.backward(job.seeds))),
        ]
    found = [service_pb2.EvaluateStreamResponse.FromString(event) for event in events]
    for event in found:
        event.node_values.ClearField("data")
        event.node_gradients.ClearField("data")
    return found


@pytest.mark.parametrize("made", MADE)
def test_columns_depend_on_neither_time_nor_engine(
    made: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = prepared(made)
    job = replace(compiled, compiled=NOTHING)
    monkeypatch.setattr(array, "BLOCK_SECONDS", inf)
    at_once = columns(job)
    monkeypatch.setattr(array, "BLOCK_SECONDS", -1.0)
    assert columns(job) == at_once, "a machine that is so slow that each node is a block"
    assert columns(compiled) == at_once, "kernels, where there are some"


@pytest.mark.parametrize("made", MADE)
def test_what_takes_long_is_streamed_in_several_parts(made: Any) -> None:
    parts = [part for slabs in Run(prepared(made)).forward() for part in slabs]
    assert len(parts) > 1


@pytest.mark.parametrize("block_bytes", [64, 128, 192, 512, 1 << 20])
def test_blocks_of_values_that_count_alike_end_where_counting_ends_them(
    monkeypatch: pytest.MonkeyPatch, block_bytes: int
) -> None:
    """One by one: a value, and at the first output of a node what the node reads."""
    monkeypatch.setattr(evaluation, "BLOCK_BYTES", block_bytes)
    graph = gw.Graph()
    values = [graph.input(f"x{i}", shape=(4,)) for i in range(3)]
    for each in range(20):
        left, right = gw.split(gw.concat(values[-1], values[each], axis=0), num_outputs=2)
        values += [left, right, gw.tanh(left), gw.sum(left, right, values[0])]
    graph.output("f", values[-1])
    decoded = decode_graph(graph.to_bytes(), Limits())
    point = {f"x{i}": Binding(np.ones(4)) for i in range(3)}
    plan = prepare(decoded, Evaluation(point, seeds={"f": np.ones(4)}), Limits()).plan
    reads = dict(zip(decoded.first_ids.tolist(), np.diff(decoded.input_starts), strict=False))
    counted, ends = 0, []
    for value_id in range(1, decoded.value_count + 1):
        before = counted // block_bytes
        counted += 64 * (1 + int(reads.get(value_id, 0)))
        if counted // block_bytes > before:
            ends.append(value_id + 1)
    assert evaluation._block_ends(plan).tolist() == ends
