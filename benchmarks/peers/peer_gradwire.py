"""Gradwire: `step` and `evaluate` through its Python client, `*_bytes` with bytes made before."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import echo
import grpc
import numpy as np
from work import SHAPES, Work, samples, split

import gradwire as gw
from gradwire import requests
from gradwire.v1 import service_pb2 as pb

_OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
_SERVICE = "/gradwire.v1.GradientService"


def graph(work: Work) -> gw.Graph:
    """The same function as a graph."""
    made = gw.Graph()
    if work.name == "neuron":
        w0, w1, w2, x0, x1 = (made.input(name) for name in ("w0", "w1", "w2", "x0", "x1"))
        made.output("f", gw.sigmoid(w0 * x0 + w1 * x1 + w2))
        return made
    if work.name == "mlp":
        x, target = map(made.constant, samples())
        leaf = {name: made.input(name, shape) for name, shape in SHAPES.items()}
        first = gw.tanh(x @ leaf["w1"] + leaf["b1"])
        second = gw.tanh(first @ leaf["w2"] + leaf["b2"])
        error = second @ leaf["w3"] + leaf["b3"] - target
        made.output("loss", gw.reduce_mean(error * error, keepdims=0))
        return made
    theta = made.input("theta", work.point.shape)
    made.output("f", gw.reduce_sum(theta * theta, keepdims=0))
    return made


def inputs(work: Work) -> dict[str, Any]:
    """The point, leaf by leaf."""
    names = [leaf.name for leaf in graph(work).leaves if leaf.kind == "input"]
    if work.name == "neuron":
        return dict(zip(names, work.point, strict=True))
    return dict(zip(names, split(work.point) if work.name == "mlp" else [work.point], strict=True))


def connect(work: Work, port: int, mode: str) -> Callable[[], Any]:
    target = f"127.0.0.1:{port}"
    if mode.endswith("_bytes"):
        return _connect_bytes(work, target, mode.removesuffix("_bytes"))
    server = gw.connect(target)
    own, given = graph(work), inputs(work)
    if mode == "step":
        session = server.session(own)
        point = work.point
        return lambda: session.value_and_gradient(point)

    def evaluate() -> tuple[float, Any]:
        result = server.evaluate(own, given)
        (value,) = result.outputs.values()
        return value, np.concatenate([np.ravel(result.gradients[name]) for name in given])

    return evaluate


def _connect_bytes(work: Work, target: str, method: str) -> Callable[[], Any]:
    channel = grpc.insecure_channel(target, _OPTIONS)
    request, size = messages(work, method)
    if method == "evaluate":
        call = channel.unary_unary(f"{_SERVICE}/Evaluate")
        answer = pb.EvaluateResponse.FromString(call(request))
        _require_right(work, answer, size)
        return lambda: call(request)
    ask = echo.asking(channel.stream_stream(f"{_SERVICE}/Session"))
    opening = pb.Open(graph=requests.source(graph(work)))
    ask(pb.SessionRequest(open=opening).SerializeToString())
    _require_right(work, pb.SessionResponse.FromString(ask(request)), size)
    return lambda: ask(request)


def _require_right(work: Work, answer: Any, size: int) -> None:
    """An answer that is a refusal, or of another size than the echoes', must not be timed."""
    value, gradient = work.value_and_gradient(work.point)
    found = [np.frombuffer(each.tensor.data) for each in answer.result.gradients]
    outputs = [np.frombuffer(each.tensor.data) for each in answer.result.outputs]
    if not found or not np.allclose(np.concatenate(found), gradient, rtol=1e-9, atol=1e-15):
        raise RuntimeError(f"{work.name}: the gradient differs; the answer is {answer!s:.300}")
    if not np.allclose(outputs[0], value, rtol=1e-9):
        raise RuntimeError(f"{work.name}: the value is {outputs[0]}, not {value}")
    if answer.ByteSize() != size:
        raise RuntimeError(
            f"{work.name}: the answer has {answer.ByteSize()} bytes but the echoes' have {size}; "
            "mend `messages`"
        )


def messages(work: Work, method: str) -> tuple[bytes, int]:
    """A request's bytes, and how many bytes its answer has."""
    own, given = graph(work), inputs(work)
    if method == "evaluate":
        evaluation = requests.evaluation(own, given)
        request = pb.EvaluateRequest(graph=requests.source(own), evaluation=evaluation)
    else:
        step = pb.Step(bindings=requests.evaluation(own, given).bindings)
        request = pb.SessionRequest(request_id=1, step=step)
    value, gradient = work.value_and_gradient(work.point)
    pieces = split(gradient) if work.name == "mlp" else [gradient]
    if work.name == "neuron":
        pieces = list(gradient)
    result = pb.Result(
        outputs=[_named(own.outputs[0], np.float64(value))],
        gradients=[_named(*each) for each in zip(given, pieces, strict=True)],
    )
    if method == "evaluate":
        answer = pb.EvaluateResponse(result=result)
    else:
        answer = pb.SessionResponse(request_id=1, result=result)
    return request.SerializeToString(), answer.ByteSize()


def _named(name: str, array: Any) -> Any:
    array = np.asarray(array)
    tensor = {"data_type": "DATA_TYPE_FLOAT64", "shape": array.shape, "data": array.tobytes()}
    return {"name": name, "tensor": tensor}
