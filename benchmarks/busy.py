"""Networks, circuits, evaluations and sessions beside busy neighbours, and without them.

A machine of two processors with two loops that never sleep has half of its time left, so twice as
long is what anybody must expect; threads that spin while they wait for each other lose far more.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from time import sleep
from typing import Any

import grpc
import jax
import jax.numpy as jnp
import numpy as np
import torch

import gradwire as gw
from benchmarks import libraries, networks, wire
from benchmarks.circuits import KINDS, graph_bytes, grow
from benchmarks.engines import compare, ours_kept
from benchmarks.harness import (
    OURS,
    WARM_SECONDS,
    Case,
    Goal,
    Report,
    require_equal,
    versions,
)
from benchmarks.libraries import THREADS
from benchmarks.neighbours import Call, cases, neighbours
from benchmarks.ours import Ours

PEERS = ("PyTorch", "JAX jit")
ROUNDS = 7
DTYPES = ("float32", "float64")
#: For ten times as many XLA compiles for minutes.
GATES = 100

#: Gradients of a function of all its leaves, as bytes: its value, then each leaf's by name.
Answer = Callable[[bytes], bytes]


def network_calls(name: str, dtype: str) -> dict[str, Call]:
    network, make = networks.NETWORKS[name]
    leaves = {
        leaf: each.astype(dtype) if each.dtype.kind == "f" else each
        for leaf, each in make(np.random.default_rng(0)).items()
    }
    calls = {
        OURS: networks.ours(network, leaves),
        "PyTorch": networks.pytorch(network, leaves),
        "JAX jit": networks.with_jax(network, leaves),
    }
    networks.require_agreement(calls, {"float64": 1e-8, "float32": 1e-3}[dtype])
    return {**calls}


def circuit_calls(kind: str, gates: int) -> dict[str, Call]:
    circuit = grow(kind, gates)
    ours = Ours(graph_bytes(circuit), {"x": circuit.point})
    kept, case = ours_kept(ours, circuit), Case(f"{kind}, {gates:,} gates", kind, gates)
    calls: dict[str, Call] = {OURS: ours.in_place()}
    for name, maker in (("PyTorch", libraries.Torch), ("JAX jit", libraries.Jax)):
        contender = maker(circuit)
        compare(name, case, contender.kept(), kept, 1e-9)
        calls[name] = contender.run
    return calls


def neuron(xp: Any, leaf: Mapping[str, Any]) -> Any:
    """wire.neuron."""
    weighed = leaf["w0"] * leaf["x0"] + leaf["w1"] * leaf["x1"] + leaf["w2"]
    return 1 / (1 + xp.exp(-weighed))


def perceptron(xp: Any, leaf: Mapping[str, Any]) -> Any:
    """wire.perceptron."""
    scores = xp.tanh(leaf["x"] @ leaf["w1"] + leaf["b1"]) @ leaf["w2"] + leaf["b2"]
    return xp.sum(scores * scores)


#: Over loopback: the function, the same as a graph, and its inputs.
SERVED: dict[str, tuple[Any, Callable[[], gw.Graph], dict[str, Any]]] = {
    "neuron": (neuron, wire.neuron, {"x0": np.float64(-1.0), "x1": np.float64(-2.0)}),
    "100k-parameter MLP": (
        perceptron, wire.perceptron, {"x": np.random.default_rng(1).random(784)},
    ),
}  # fmt: skip


def answer_of(library: str, name: str) -> Answer:
    """What a server made of PyTorch or JAX answers with."""
    function, make, inputs = SERVED[name]
    leaves = {leaf.name: leaf.value for leaf in make().leaves if leaf.kind == "parameter"} | inputs
    gradients = {"PyTorch": with_torch, "JAX jit": with_jax}[library](function, leaves)

    def answer(data: bytes) -> bytes:
        given, at = {}, 0
        for leaf, each in inputs.items():
            given[leaf] = np.frombuffer(data, np.float64, each.size, at).reshape(each.shape)
            at += each.nbytes
        return b"".join(each.tobytes() for each in gradients(given))

    return answer


def with_torch(function: Any, leaves: dict[str, Any]) -> Callable[[dict[str, Any]], list[Any]]:
    torch.set_num_threads(THREADS)
    held = {name: torch.tensor(each, requires_grad=True) for name, each in leaves.items()}

    def gradients(given: dict[str, Any]) -> list[Any]:
        point = held | {name: torch.tensor(x, requires_grad=True) for name, x in given.items()}
        value = function(torch, point)
        found = torch.autograd.grad(value, [point[name] for name in sorted(point)])
        return [value.detach().numpy(), *(each.numpy() for each in found)]

    return gradients


def with_jax(function: Any, leaves: dict[str, Any]) -> Callable[[dict[str, Any]], list[Any]]:
    held = {name: jnp.asarray(each) for name, each in leaves.items()}
    compiled = jax.jit(jax.value_and_grad(partial(function, jnp)))

    def gradients(given: dict[str, Any]) -> list[Any]:
        value, found = compiled(held | given)
        return [np.asarray(each) for each in (value, *(found[name] for name in sorted(found)))]

    return gradients


def serve(library: str, name: str) -> None:
    """A bare gRPC server around a library: runs until it is ended."""
    answer = answer_of(library, name)
    methods = {
        "Unary": grpc.unary_unary_rpc_method_handler(lambda data, _: answer(data)),
        "Stream": grpc.stream_stream_rpc_method_handler(
            lambda messages, _: (answer(each) for each in messages)
        ),
    }
    server = grpc.server(ThreadPoolExecutor(16), options=wire.OPTIONS)
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("Peer", methods)])
    print(f"{library} 127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}", flush=True)
    server.start()
    server.wait_for_termination()


@contextmanager
def served_calls(name: str) -> Iterator[tuple[dict[str, Call], dict[str, Call]]]:
    """Evaluations and steps of sessions, by our server and by servers of the libraries."""
    _, make, inputs = SERVED[name]
    graph, data = make(), b"".join(each.tobytes() for each in inputs.values())
    with ExitStack() as stack:
        ours = stack.enter_context(gw.connect(stack.enter_context(wire.our_server())))
        session = stack.enter_context(ours.session(graph, inputs))
        evaluations: dict[str, Call] = {OURS: partial(ours.evaluate, graph, inputs)}
        steps: dict[str, Call] = {OURS: partial(session.step, inputs)}
        result = ours.evaluate(graph, inputs)
        found = [result.outputs[graph.outputs[0]]]
        found += [result.gradients[leaf] for leaf in sorted(result.gradients)]
        expected = np.concatenate(found, axis=None)
        for library in PEERS:
            command = [sys.executable, "-m", "benchmarks.busy", library, name]
            channel = wire.channel_to(stack, stack.enter_context(wire.serving(command)))
            evaluations[library] = partial(channel.unary_unary("/Peer/Unary"), data)
            steps[library] = partial(wire.talk(stack, channel, "/Peer/Stream"), data)
            for ask in (evaluations[library], steps[library]):
                answer: Any = ask()
                require_equal(library, name, np.frombuffer(answer), expected)
        sleep(WARM_SECONDS)
        yield evaluations, steps


def run(quick: bool) -> Report:
    """Everything; a quick run has the smallest of each kind."""
    rounds = 1 if quick else ROUNDS
    report = Report(
        "busy",
        "Beside busy neighbours",
        remarks=[
            f"A call beside {THREADS} loops that never sleep (*busy*) and without them (*quiet*), "
            "forward and backward: the mean of a turn, and the longest call of a busy turn. "
            "*Slowdown*: busy over quiet, in the same round. Networks and circuits in-process, "
            "every value and gradient kept; over loopback, values and gradients of the leaves, "
            f"{OURS} through its Python client, {' and '.join(PEERS)} behind a bare gRPC server, "
            "bytes in and bytes out."
        ],
        goals=[
            Goal("busy: none slows down by more than JAX", ("JAX jit",), 1.0, "slowdown"),
            Goal("busy: none slows down by more than PyTorch", ("PyTorch",), 1.0, "slowdown"),
        ],
        versions=versions("numpy", "grpcio", "torch", "jax"),
    )
    torch.set_num_threads(THREADS)
    with neighbours() as tell:
        for name in ("convnet",) if quick else networks.NETWORKS:
            for dtype in DTYPES[:1] if quick else DTYPES:
                calls = network_calls(name, dtype)
                report.cases += cases(f"{name}, {dtype}", calls, tell, rounds)
        for kind in KINDS:
            calls = circuit_calls(kind, GATES)
            report.cases += cases(f"{kind}, {GATES} gates", calls, tell, rounds)
        for name in SERVED:
            with served_calls(name) as (evaluations, steps):
                report.cases += cases(f"Evaluate, {name}", evaluations, tell, rounds)
                report.cases += cases(f"session step, {name}", steps, tell, rounds)
    return report


if __name__ == "__main__":  # with arguments: be a library's server
    serve(*sys.argv[1:])
