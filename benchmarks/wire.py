"""What the wire costs: Gradwire beside a bare gRPC server that moves the same bytes.

    python benchmarks/wire.py --json wire.json

The bare server is the fastest that grpcio has (synchronous handlers, bytes in, bytes out, no
protobuf): it takes each request's bytes and answers with as many bytes as Gradwire does. Both are
asked in turn, round after round, by one client that sends bytes and reads bytes. What the same
evaluation takes inside a process is measured too: time over the bare server is that and overhead.

A ratio is (time - computing) / (time of the bare server), of medians and of 99th percentiles.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import grpc
import numpy as np

import gradwire as gw
from gradwire import requests
from gradwire.v1 import service_pb2 as pb
from gradwire_server import codec
from gradwire_server.engine import evaluation as engine
from gradwire_server.engine import runs
from gradwire_server.limits import Limits
from gradwire_server.session import Session

OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.so_reuseport", 0),
    ("grpc.use_local_subchannel_pool", 1),
]
SERVICE = "/gradwire.v1.GradientService"
CLIENTS = 8

Ask = Callable[[], Any]


@dataclass
class Row:
    """One comparison: seconds of each side, by round."""

    name: str
    request_bytes: int
    response_bytes: int
    ours: list[list[float]] = field(default_factory=list)
    bare: list[list[float]] = field(default_factory=list)
    computing: list[float] = field(default_factory=list)

    def figures(self) -> dict[str, Any]:
        """Milliseconds and ratios; the spread is that of the rounds' own ratios."""
        computing = statistics.median(self.computing)
        by_round = [
            (_quantile(ours, 0.5) - computing) / _quantile(bare, 0.5)
            for ours, bare in zip(self.ours, self.bare, strict=True)
        ]
        ours, bare = [*chain(*self.ours)], [*chain(*self.bare)]
        return {
            "request_bytes": self.request_bytes,
            "response_bytes": self.response_bytes,
            "computing_ms": 1e3 * computing,
            "bare_ms": {"p50": 1e3 * _quantile(bare, 0.5), "p99": 1e3 * _quantile(bare, 0.99)},
            "ours_ms": {"p50": 1e3 * _quantile(ours, 0.5), "p99": 1e3 * _quantile(ours, 0.99)},
            "ratio_p50": statistics.median(by_round),
            "ratio_p50_spread": [min(by_round), max(by_round)],
            "ratio_p99": (_quantile(ours, 0.99) - computing) / _quantile(bare, 0.99),
        }


def neuron() -> gw.Graph:
    """1 / (1 + exp(-(w0*x0 + w1*x1 + w2))), gate by gate."""
    graph = gw.Graph()
    w = [graph.parameter(f"w{i}", np.float64(each)) for i, each in enumerate((2.0, -3.0, -3.0))]
    x = [graph.input(f"x{i}") for i in range(2)]
    graph.output("f", 1 / (1 + np.exp(-(w[0] * x[0] + w[1] * x[1] + w[2]))))
    return graph


def perceptron() -> gw.Graph:
    """A network of 101,770 parameters and its squared error, for one picture."""
    numbers = np.random.default_rng(0)
    graph = gw.Graph()
    x = graph.input("x", shape=(784,))
    w1 = graph.parameter("w1", numbers.normal(0, 0.05, (784, 128)))
    b1 = graph.parameter("b1", np.zeros(128))
    w2 = graph.parameter("w2", numbers.normal(0, 0.05, (128, 10)))
    b2 = graph.parameter("b2", np.zeros(10))
    scores = np.tanh(x @ w1 + b1) @ w2 + b2
    graph.output("loss", gw.reduce_sum_square(scores, keepdims=0))
    return graph


def squares(size: int) -> gw.Graph:
    """The sum of squares of many numbers: a large gradient for little computing."""
    graph = gw.Graph()
    graph.output("f", gw.reduce_sum_square(graph.input("x", shape=(size,)), keepdims=0))
    return graph


def long_chain(size: int, nodes: int) -> gw.Graph:
    """Elementwise gates over many numbers: every value and gradient is large."""
    graph = gw.Graph()
    x = graph.input("x", shape=(size,))
    for _ in range(nodes):
        x = -x
    graph.output("f", gw.reduce_sum(x, keepdims=0))
    return graph


@contextmanager
def bare_server() -> Iterator[str]:
    """Answers what it was told to, whatever it is asked."""
    with _serving([sys.executable, __file__, "--bare"]) as address:
        yield address


@contextmanager
def our_server(*flags: str) -> Iterator[str]:
    command = [sys.executable, "-m", "gradwire.cli", "serve", "--listen", "127.0.0.1:0", *flags]
    with _serving(command) as address:
        yield address


def serve_bare() -> None:
    """The bare server: runs until it is ended."""
    reply = b""

    def tell(data: bytes, _: Any) -> bytes:
        nonlocal reply
        reply = data
        return b""

    server = grpc.server(ThreadPoolExecutor(16), options=OPTIONS)
    unary = grpc.unary_unary_rpc_method_handler
    methods = {
        "Tell": unary(tell),
        "Unary": unary(lambda _data, _context: reply),
        "Stream": grpc.stream_stream_rpc_method_handler(
            lambda messages, _: (reply for _ in messages)
        ),
    }
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("Bare", methods)])
    print(f"bare 127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}", flush=True)
    server.start()
    server.wait_for_termination()


def unary_asks(stack: ExitStack, ours: str, bare: str, request: bytes) -> tuple[Ask, Ask, int]:
    """Asks for both sides, and how long an answer is."""
    evaluate = _channel(stack, ours).unary_unary(f"{SERVICE}/Evaluate")
    beside = _channel(stack, bare)
    answer = evaluate(request)
    beside.unary_unary("/Bare/Tell")(answer)
    echo = beside.unary_unary("/Bare/Unary")
    return lambda: evaluate(request), lambda: echo(request), len(answer)


def stream_asks(
    stack: ExitStack, ours: str, bare: str, opening: bytes, request: bytes
) -> tuple[Ask, Ask, int]:
    """The same over one stream each."""
    ask = _talk(stack, _channel(stack, ours), f"{SERVICE}/Session")
    beside = _channel(stack, bare)
    ask(opening)
    answer = ask(request)
    beside.unary_unary("/Bare/Tell")(answer)
    echo = _talk(stack, beside, "/Bare/Stream")
    return lambda: ask(request), lambda: echo(request), len(answer)


def compare(row: Row, ours: Ask, bare: Ask, compute: Ask, rounds: int, calls: int) -> Row:
    """Both sides in turn, several rounds; the first answers of all are not counted."""
    for ask in (ours, bare, compute):
        _times(ask, max(3, calls // 10))
    for _ in range(rounds):
        row.bare.append(_times(bare, calls))
        row.ours.append(_times(ours, calls))
        row.computing += _times(compute, max(3, calls // 4))
    return row


def evaluation_row(
    name: str, graph: gw.Graph, inputs: dict[str, Any], ours: str, bare: str, plan: Plan
) -> Row:
    """One unary call."""
    request = pb.EvaluateRequest(
        graph=requests.source(graph), evaluation=requests.evaluation(graph, inputs)
    )
    data = request.SerializeToString()
    limits = Limits()
    decoded = codec.decode_graph(graph.to_bytes(), limits)
    wanted = codec.decode_evaluation(request.evaluation)
    before = engine.prepare(decoded, wanted, limits)

    def compute() -> None:
        runs.run(engine.prepare(decoded, wanted, limits, before), lambda: False)

    with ExitStack() as stack:
        ask, echo, size = unary_asks(stack, ours, bare, data)
        row = Row(name, len(data), size)
        return compare(row, ask, echo, compute, plan.rounds, plan.calls_for(len(data) + size))


def session_row(
    name: str, graph: gw.Graph, inputs: dict[str, Any], ours: str, bare: str, plan: Plan
) -> Row:
    """One step of an open session, all of its inputs given again."""
    evaluation = requests.evaluation(graph, inputs)
    opening = pb.SessionRequest(open=pb.Open(graph=requests.source(graph), evaluation=evaluation))
    bindings = requests.bindings(graph, inputs)
    data = pb.SessionRequest(request_id=1, step=pb.Step(bindings=bindings)).SerializeToString()
    limits = Limits()
    session = Session(
        codec.decode_graph(graph.to_bytes(), limits), codec.decode_evaluation(evaluation), limits
    )
    given = codec.decode_bindings(bindings)
    with ExitStack() as stack:
        ask, echo, size = stream_asks(stack, ours, bare, opening.SerializeToString(), data)
        row = Row(name, len(data), size)
        compute = lambda: session.step(given, False, lambda: False)  # noqa: E731
        return compare(row, ask, echo, compute, plan.rounds, plan.calls_for(len(data) + size))


def throughput(ours: str, bare: str, plan: Plan) -> dict[str, Any]:
    """Calls a second of several client processes at once, the neuron each."""
    graph = neuron()
    request = pb.EvaluateRequest(
        graph=requests.source(graph),
        evaluation=requests.evaluation(graph, {"x0": -1.0, "x1": -2.0}),
    ).SerializeToString()
    with ExitStack() as stack:
        unary_asks(stack, ours, bare, request)  # the bare server learns the answer
    found: dict[str, list[float]] = {"ours": [], "bare": []}
    sides = {"bare": (bare, "/Bare/Unary"), "ours": (ours, f"{SERVICE}/Evaluate")}
    spawn = multiprocessing.get_context("spawn")
    with spawn.Pool(CLIENTS) as pool:
        for _ in range(plan.rounds + 1):
            for side, (address, method) in sides.items():
                jobs = [(address, method, request, plan.calls)] * CLIENTS
                spans = pool.starmap(_many_calls, jobs, chunksize=1)
                began, ended = min(s[0] for s in spans), max(s[1] for s in spans)
                found[side].append(CLIENTS * plan.calls / (ended - began))
    ratios = [a / b for a, b in zip(found["ours"][1:], found["bare"][1:], strict=True)]
    return {
        "ours_calls_a_second": statistics.median(found["ours"][1:]),
        "bare_calls_a_second": statistics.median(found["bare"][1:]),
        "ratio": statistics.median(ratios),
        "spread": [min(ratios), max(ratios)],
    }


def streaming(ours: str, plan: Plan) -> dict[str, Any]:
    """Scalars a second: all values and gradients of a chain of elementwise gates."""
    size, nodes = 1_000_000, 20
    graph = long_chain(size, nodes)
    request = pb.EvaluateStreamRequest(
        graph=requests.source(graph), evaluation=requests.evaluation(graph, {"x": np.ones(size)})
    )
    request.evaluation.ClearField("values")
    request.evaluation.ClearField("gradients")
    data = request.SerializeToString()
    speeds = []
    with ExitStack() as stack:
        stream = _channel(stack, ours).unary_stream(f"{SERVICE}/EvaluateStream")
        for _ in range(plan.rounds + 1):
            began = time.perf_counter()
            received = sum(map(len, stream(data)))
            speeds.append(received / 8 / (time.perf_counter() - began))
    return {
        "scalars": 2 * size * (nodes + 1) + 2,
        "scalars_a_second": statistics.median(speeds[1:]),
        "spread": [min(speeds[1:]), max(speeds[1:])],
    }


@dataclass(frozen=True)
class Plan:
    """How often."""

    rounds: int
    calls: int

    def calls_for(self, nbytes: int) -> int:
        """Fewer calls where each moves much."""
        return max(10, min(self.calls, int(self.calls * 50_000 / nbytes)))


def measure(plan: Plan) -> dict[str, Any]:
    """Everything, as JSON holds it."""
    x = {"x0": -1.0, "x1": -2.0}
    picture = {"x": np.random.default_rng(1).random(784)}
    million = {"x": np.random.default_rng(2).random(1_000_000)}
    rows: list[Row] = []
    with bare_server() as bare, our_server() as ours:
        sides = ours, bare, plan
        rows.append(evaluation_row("Evaluate, neuron", neuron(), x, *sides))
        rows.append(session_row("Session step, neuron", neuron(), x, *sides))
        rows.append(evaluation_row("Evaluate, 100k-parameter MLP", perceptron(), picture, *sides))
        rows.append(session_row("Session step, 100k-parameter MLP", perceptron(), picture, *sides))
        rows.append(
            evaluation_row("gradient of a million float64", squares(1_000_000), million, *sides)
        )
        return {
            "machine": _machine(),
            "plan": asdict(plan),
            "calls": {row.name: row.figures() for row in rows},
            "clients": throughput(ours, bare, plan),
            "streaming": streaming(ours, plan),
        }


def print_table(found: dict[str, Any]) -> None:
    print(f"{'':36}{'bare p50':>10}{'p99':>8}{'ours p50':>10}{'p99':>8}{'computing':>11}"
          f"{'ratio p50':>11}{'p99':>6}  spread of p50")  # fmt: skip
    for name, row in found["calls"].items():
        low, high = row["ratio_p50_spread"]
        print(
            f"{name:36}{row['bare_ms']['p50']:10.3f}{row['bare_ms']['p99']:8.3f}"
            f"{row['ours_ms']['p50']:10.3f}{row['ours_ms']['p99']:8.3f}{row['computing_ms']:11.3f}"
            f"{row['ratio_p50']:11.2f}{row['ratio_p99']:6.2f}  {low:.2f} to {high:.2f}"
        )
    clients, streaming = found["clients"], found["streaming"]
    print(
        f"{CLIENTS} clients: {clients['ours_calls_a_second']:.0f} calls a second, bare "
        f"{clients['bare_calls_a_second']:.0f}, ratio {clients['ratio']:.2f} "
        f"({clients['spread'][0]:.2f} to {clients['spread'][1]:.2f})"
    )
    print(f"streaming: {streaming['scalars_a_second'] / 1e6:.1f} million scalars a second")


@contextmanager
def _serving(command: list[str]) -> Iterator[str]:
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().split()[-1]
        finally:
            process.terminate()


def _channel(stack: ExitStack, address: str) -> Any:
    return stack.enter_context(grpc.insecure_channel(address, OPTIONS))


def _talk(stack: ExitStack, channel: Any, method: str) -> Callable[[bytes], bytes]:
    """A question, an answer, on one stream."""
    questions: SimpleQueue[bytes | None] = SimpleQueue()
    answers = channel.stream_stream(method)(iter(questions.get, None))
    stack.callback(answers.cancel)
    stack.callback(questions.put, None)

    def ask(data: bytes) -> bytes:
        questions.put(data)
        answer: bytes = next(answers)
        return answer

    return ask


def _many_calls(address: str, method: str, request: bytes, calls: int) -> tuple[float, float]:
    with grpc.insecure_channel(address, OPTIONS) as channel:
        ask = channel.unary_unary(method)
        for _ in range(20):
            ask(request)
        began = time.monotonic()
        for _ in range(calls):
            ask(request)
        return began, time.monotonic()


def _times(ask: Ask, calls: int) -> list[float]:
    found = []
    for _ in range(calls):
        began = time.perf_counter()
        ask()
        found.append(time.perf_counter() - began)
    return found


def _quantile(seconds: list[float], share: float) -> float:
    ordered = sorted(seconds)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def _machine() -> dict[str, Any]:
    return {
        "processor": _processor(),
        "cores": multiprocessing.cpu_count(),
        "python": platform.python_version(),
        "grpcio": grpc.__version__,
        "numpy": np.__version__,
        "system": platform.platform(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(": ")[2] for line in lines if "model name" in line), "")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--calls", type=int, default=1000, help="of each side in a round")
    arguments.add_argument("--bare", action="store_true", help="be the bare server")
    chosen = arguments.parse_args()
    if chosen.bare:
        serve_bare()
        return
    found = measure(Plan(chosen.rounds, chosen.calls))
    if chosen.json:
        chosen.json.write_text(json.dumps(found, indent=2) + "\n")
    print_table(found)


if __name__ == "__main__":
    main()
