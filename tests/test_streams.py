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
