"""What the wire costs: Gradwire beside a bare gRPC server that moves the same bytes.

The bare server is the fastest that grpcio has (synchronous handlers, bytes in, bytes out, no
protobuf): it takes each request's bytes and answers with as many bytes as Gradwire does. A second
one keeps freed memory, as `gradwire serve` does. All are asked in turn, round after round, by one
client that sends bytes and reads bytes. What the same evaluation takes inside a process is measured
too, each time after an exchange with a bare server: a server computes with cold caches, between two
messages, where a loop that does nothing else takes half the time.
"""

from __future__ import annotations

import multiprocessing
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from queue import SimpleQueue
from typing import Any

import grpc
import numpy as np

import gradwire as gw
from benchmarks.harness import OURS, WARM_SECONDS, Case, Goal, Report, versions
from gradwire import requests
from gradwire.v1 import service_pb2 as pb
from gradwire_server.allocator import keep_freed_memory
from gradwire_server.codec.graphs import decode_graph
from gradwire_server.codec.requests import decode_bindings, decode_evaluation
from gradwire_server.engine import evaluation as engine
from gradwire_server.engine import kernels, runs
from gradwire_server.engine.blas import serve_with_one_thread
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
BARE, TUNED = "bare gRPC", "bare gRPC that keeps memory"
ALONE = "Gradwire, one by one"
MILLION = "gradient of a million float64"
COPY, MESSAGE = "copy and small call", "Gradwire, in messages"

Ask = Callable[[], Any]


@dataclass
class Row:
    """One comparison: seconds of each side, by round."""

    name: str
    request_bytes: int
    response_bytes: int
    ours: list[list[float]] = field(default_factory=list)
    bare: list[list[float]] = field(default_factory=list)
    tuned: list[list[float]] = field(default_factory=list)
    computing: list[float] = field(default_factory=list)

    def cases(self) -> list[Case]:
        """Medians and 99th percentiles by round; ours without the computing."""
        computing = statistics.median(self.computing)
        found = []
        for kind, share in (("p50", 0.5), ("p99", 0.99)):
            case = Case(f"{self.name}, {kind}", kind, self.request_bytes, unit="ms")
            case.figures = {
                OURS: [_quantile(times, share) - computing for times in self.ours],
                BARE: [_quantile(times, share) for times in self.bare],
                TUNED: [_quantile(times, share) for times in self.tuned],
            }
            case.notes = {
                OURS: f"{self.name}: asks with {self.request_bytes:,} bytes, is answered with "
                f"{self.response_bytes:,}; computing takes {1e3 * computing:.3g} ms more"
            }
            found.append(case)
        return found


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
def bare_servers() -> Iterator[tuple[str, str]]:
    """Answer what they were told to, whatever they are asked: as usual, and keeping memory."""
    command = [sys.executable, __file__]
    with serving([*command, "usual"]) as usual, serving([*command, "tuned"]) as tuned:
        yield usual, tuned


@contextmanager
def our_server(*flags: str) -> Iterator[str]:
    command = [sys.executable, "-m", "gradwire.cli", "serve", "--listen", "127.0.0.1:0", *flags]
    with serving(command) as address:
        yield address


def serve_bare(kind: str) -> None:
    """The bare server: runs until it is ended."""
    if kind == "tuned":
        keep_freed_memory()
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


@dataclass(frozen=True)
class Sides:
    """What is compared, and how often."""

    ours: str
    bare: tuple[str, str]
    plan: Plan


def unary_asks(stack: ExitStack, sides: Sides, request: bytes) -> tuple[list[Ask], int]:
    """Asks for ours and the bare ones, and how long an answer is."""
    evaluate = channel_to(stack, sides.ours).unary_unary(f"{SERVICE}/Evaluate")
    answer = evaluate(request)
    asks: list[Ask] = [lambda: evaluate(request)]
    for address in sides.bare:
        beside = channel_to(stack, address)
        beside.unary_unary("/Bare/Tell")(answer)
        asks.append(partial(beside.unary_unary("/Bare/Unary"), request))
    return asks, len(answer)


def stream_asks(
    stack: ExitStack, sides: Sides, opening: bytes, request: bytes
) -> tuple[list[Ask], int]:
    """The same over one stream each."""
    ask = talk(stack, channel_to(stack, sides.ours), f"{SERVICE}/Session")
    ask(opening)
    answer = ask(request)
    asks: list[Ask] = [lambda: ask(request)]
    for address in sides.bare:
        beside = channel_to(stack, address)
        beside.unary_unary("/Bare/Tell")(answer)
        asks.append(partial(talk(stack, beside, "/Bare/Stream"), request))
    return asks, len(answer)


def compare(row: Row, asks: list[Ask], compute: Ask, plan: Plan) -> Row:
    """All sides in turn, several rounds; the first answers of all are not counted."""
    calls = plan.calls_for(row.request_bytes + row.response_bytes)
    for ask in (*asks, compute):
        _times(ask, max(3, calls // 10))
    for _ in range(plan.rounds):
        for ask, times in zip(asks, (row.ours, row.bare, row.tuned), strict=True):
            times.append(_times(ask, calls))
        row.computing += _times(compute, max(3, calls // 4), before=asks[1])
    return row


def evaluation_row(name: str, graph: gw.Graph, inputs: dict[str, Any], sides: Sides) -> Row:
    """One unary call."""
    request = pb.EvaluateRequest(
        graph=requests.source(graph), evaluation=requests.evaluation(graph, inputs)
    )
    data = request.SerializeToString()
    limits = Limits()
    decoded = decode_graph(graph.to_bytes(), limits)
    wanted = decode_evaluation(request.evaluation)
    compute = partial(runs.run, engine.prepare(decoded, wanted, limits), lambda: False)
    with ExitStack() as stack:
        asks, size = unary_asks(stack, sides, data)
        return compare(Row(name, len(data), size), asks, compute, sides.plan)


def session_row(name: str, graph: gw.Graph, inputs: dict[str, Any], sides: Sides) -> Row:
    """One step of an open session, all of its inputs given again."""
    evaluation = requests.evaluation(graph, inputs)
    opening = pb.SessionRequest(open=pb.Open(graph=requests.source(graph), evaluation=evaluation))
    bindings = evaluation.bindings
    data = pb.SessionRequest(request_id=1, step=pb.Step(bindings=bindings)).SerializeToString()
    limits = Limits()
    session = Session(decode_graph(graph.to_bytes(), limits), decode_evaluation(evaluation), limits)
    given = decode_bindings(bindings)
    with ExitStack() as stack:
        asks, size = stream_asks(stack, sides, opening.SerializeToString(), data)
        compute = partial(session.step, given, False, lambda: False)
        return compare(Row(name, len(data), size), asks, compute, sides.plan)


def throughput(sides: Sides) -> Case:
    """Seconds a call of several client processes at once, the neuron each, computing included."""
    graph = neuron()
    request = pb.EvaluateRequest(
        graph=requests.source(graph),
        evaluation=requests.evaluation(graph, {"x0": -1.0, "x1": -2.0}),
    ).SerializeToString()
    with ExitStack() as stack:
        unary_asks(stack, sides, request)  # the bare servers learn the answer
    found: dict[str, list[float]] = {OURS: [], BARE: []}
    asked = {BARE: (sides.bare[0], "/Bare/Unary"), OURS: (sides.ours, f"{SERVICE}/Evaluate")}
    plan = sides.plan
    spawn = multiprocessing.get_context("spawn")
    with spawn.Pool(CLIENTS) as pool:
        for _ in range(plan.rounds + 1):
            for side, (address, method) in asked.items():
                jobs = [(address, method, request, plan.calls)] * CLIENTS
                spans = pool.starmap(_many_calls, jobs, chunksize=1)
                began, ended = min(s[0] for s in spans), max(s[1] for s in spans)
                found[side].append((ended - began) / (CLIENTS * plan.calls))
    case = Case(f"{CLIENTS} clients, a call", "clients", CLIENTS, unit="ms")
    case.figures = {side: seconds[1:] for side, seconds in found.items()}
    return case


def streaming(sides: Sides) -> Case:
    """Seconds a scalar: all values and gradients of a chain of elementwise gates."""
    size, nodes = 1_000_000, 20
    graph = long_chain(size, nodes)
    request = pb.EvaluateStreamRequest(
        graph=requests.source(graph), evaluation=requests.evaluation(graph, {"x": np.ones(size)})
    )
    request.evaluation.ClearField("values")
    request.evaluation.ClearField("gradients")
    data = request.SerializeToString()
    found = []
    with ExitStack() as stack:
        stream = channel_to(stack, sides.ours).unary_stream(f"{SERVICE}/EvaluateStream")
        for _ in range(sides.plan.rounds + 1):
            began = time.perf_counter()
            received = sum(map(len, stream(data)))
            found.append((time.perf_counter() - began) / (received / 8))
    case = Case("streamed values and gradients, a scalar", "stream", size)
    case.figures = {OURS: found[1:]}
    return case


@dataclass(frozen=True)
class Plan:
    """How often."""

    rounds: int
    calls: int

    def calls_for(self, nbytes: int) -> int:
        """Fewer calls where each moves much."""
        return max(10, min(self.calls, int(self.calls * 50_000 / nbytes)))


def run(quick: bool) -> Report:
    """The report of the suite; our time is what is left when the computing is taken off."""
    most = 1.25
    goals = [
        Goal(f"{kind} of a call: at most {most} x a bare gRPC call of the same bytes, plus "
             "computing", (BARE, TUNED), most, kind)
        for kind in ("p50", "p99")
    ]  # fmt: skip
    goals += [
        Goal(f"{CLIENTS} clients: at least 0.8 x the calls of bare gRPC, computing included",
             (BARE,), 1 / 0.8, "clients"),
        Goal("streamed values: at least 40 million scalars a second", (), 1 / 40e6, "stream",
             unit="ns"),
    ]  # fmt: skip
    goals.append(
        Goal("shared memory: at most 1.5 x a copy of the bytes plus a small call, plus computing",
             (COPY,), 1.5, "shared")
    )  # fmt: skip
    report = Report(
        "wire",
        "What the wire costs",
        remarks=[
            f"p50 and p99 of calls over loopback. *{OURS}*: without the time of computing, which "
            f"is measured in another process between two messages. *{BARE}*: a synchronous grpcio "
            f"server that takes and sends as many bytes; *{TUNED}*: one that keeps freed memory, "
            "as ours does.",
            f"*{COPY}*: one copy of the bytes of x and of its gradient inside the client, and a "
            "call that evaluates the neuron, each after an exchange of the large arrays.",
        ],
        goals=goals,
        versions=versions("grpcio", "protobuf", "numpy"),
    )
    report.cases = measure(Plan(1, 20) if quick else Plan(7, 600))
    return report


def measure(plan: Plan) -> list[Case]:
    """Everything."""
    x = {"x0": -1.0, "x1": -2.0}
    picture = {"x": np.random.default_rng(1).random(784)}
    million = {"x": np.random.default_rng(2).random(1_000_000)}
    rows: list[Row] = []
    kernels.load()  # computing is measured here with the engine that the server has
    serve_with_one_thread()  # and as many threads
    with (
        tempfile.TemporaryDirectory() as meeting,
        bare_servers() as bare,
        our_server("--shared-memory", meeting) as ours,
    ):
        time.sleep(WARM_SECONDS)
        sides = Sides(ours, bare, plan)
        rows.append(evaluation_row("Evaluate, neuron", neuron(), x, sides))
        rows.append(session_row("Session step, neuron", neuron(), x, sides))
        rows.append(evaluation_row("Evaluate, 100k-parameter MLP", perceptron(), picture, sides))
        rows.append(session_row("Session step, 100k-parameter MLP", perceptron(), picture, sides))
        rows.append(evaluation_row(MILLION, squares(1_000_000), million, sides))
        return [
            *chain(*(row.cases() for row in rows)),
            many_steps(sides),
            throughput(sides),
            streaming(sides),
            shared_memory(sides),
        ]


def shared_memory(sides: Sides) -> Case:
    """The gradient of a million numbers through the Python client, request to response."""
    graph, small, point = squares(1_000_000), neuron(), {"x0": -1.0, "x1": -2.0}
    x = np.random.default_rng(2).random(1_000_000)
    copies = np.empty((2, x.size))
    wanted = decode_evaluation(requests.evaluation(graph, {"x": x}))
    limits = Limits()
    job = engine.prepare(decode_graph(graph.to_bytes(), limits), wanted, limits)
    calls = sides.plan.calls_for(16_000_000)
    case = Case(f"{MILLION}, shared memory", "shared", x.size, unit="ms")
    for side in (OURS, COPY, MESSAGE):
        case.figures[side] = []
    computing: list[float] = []
    with gw.connect(sides.ours) as plain, gw.connect(sides.ours, shared_memory=True) as server:
        ask = partial(server.evaluate, graph, {"x": x})
        sent = partial(plain.evaluate, graph, {"x": x})
        for _ in range(sides.plan.rounds + 1):
            ours, message = _times(ask, calls), _times(sent, calls)
            called = _times(partial(server.evaluate, small, point), calls, before=ask)
            copied = _times(lambda: np.copyto(copies, x), calls, before=ask)
            computed = _times(partial(runs.run, job, lambda: False), calls, before=ask)
            case.figures[OURS].append(statistics.median(ours))
            case.figures[MESSAGE].append(statistics.median(message))
            case.figures[COPY].append(statistics.median(called) + statistics.median(copied))
            computing.append(statistics.median(computed))
    taken = statistics.median(computing[1:])
    for side in (OURS, MESSAGE):
        case.figures[side] = [seconds - taken for seconds in case.figures[side]]
    case.figures = {side: seconds[1:] for side, seconds in case.figures.items()}
    case.notes = {OURS: f"{case.name}: computing takes {1e3 * taken:.3g} ms more"}
    return case


def many_steps(sides: Sides) -> Case:
    """Seconds a step through the Python client: 256 in one message, and one by one."""
    points = np.random.default_rng(3).random((256, 5))
    case = Case("256 steps from Python, a step", "steps", 256, per=len(points), unit="ms")
    together, alone = case.figures.setdefault(OURS, []), case.figures.setdefault(ALONE, [])
    with gw.connect(sides.ours) as server, server.session(neuron(), {"x0": 0, "x1": 0}) as session:
        for _ in range(sides.plan.rounds + 1):
            together += _times(partial(session.values_and_gradients, points), 1)
            alone += _times(lambda: [*map(session.value_and_gradient, points)], 1)
    del together[0], alone[0]
    return case


@contextmanager
def serving(command: list[str]) -> Iterator[str]:
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().split()[-1]
        finally:
            process.terminate()


def channel_to(stack: ExitStack, address: str) -> Any:
    return stack.enter_context(grpc.insecure_channel(address, OPTIONS))


def talk(stack: ExitStack, channel: Any, method: str) -> Callable[[bytes], bytes]:
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


def _times(ask: Ask, calls: int, before: Ask = lambda: None) -> list[float]:
    found = []
    for _ in range(calls):
        before()
        began = time.perf_counter()
        ask()
        found.append(time.perf_counter() - began)
    return found


def _quantile(seconds: list[float], share: float) -> float:
    ordered = sorted(seconds)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


if __name__ == "__main__":  # with an argument: be a bare server
    serve_bare(sys.argv[1])
