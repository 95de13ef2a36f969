"""Requests of every kind by several clients, beside a victim that only evaluates x*x.

`scripts/mixed-requests REQUESTS` says whether anybody got a wrong answer, what the server took, and
how long the victim waited; test_mixed_requests.py runs a few. What a client sends depends on its
seed alone.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import quantiles
from time import monotonic, sleep
from typing import Any

import grpc
import numpy as np
from patience import PATIENCE, comes_true
from test_hostile import SERVICE, mutate
from wire import chain, module_neuron, neuron, scalar, source

import gradwire as gw
from gradwire.v1 import graph_pb2
from gradwire.v1 import service_pb2 as pb
from gradwire_server.errors import Refusal
from gradwire_server.limits import Limits
from gradwire_server.service import GradientService

CLIENTS = 8
#: A seeded one of so many answers is compared with that of a service that has seen nothing before.
ONE_IN = 20
MIB = 1 << 20
LIMITS = Limits(
    max_message_bytes=4 * MIB, max_nodes=20_000, max_values=100_000, max_memory_bytes=32 * MIB,
    max_operations=10**9, max_plan_steps=1_000_000, max_cache_bytes=16 * MIB, max_evaluations=4,
)  # fmt: skip
#: Chances of each kind, in percent.
KINDS = {
    "repeated": 40, "nearly equal": 30, "damaged": 15, "hostile": 5, "cancelled": 5, "stepped": 3,
    "streamed": 2,
}  # fmt: skip
#: A refusal must have one of these; anything else is a fault of the server.
REFUSALS = {
    grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.NOT_FOUND,
}  # fmt: skip
#: The victim's slowest in a hundred beside these clients, over that beside honest ones.
MOST_RATIO = 5
_OPTIONS = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]


# -- what is sent -------------------------------------------------------------------------------


def honest() -> list[bytes]:
    """Whole requests that are answered."""
    rng = np.random.default_rng(0)
    everything = pb.Selection(all=True)
    binding = pb.Binding(leaf="w0", tensor=scalar(1.0))
    asked = [
        pb.Evaluation(bindings=[binding]),
        pb.Evaluation(bindings=[binding], values=everything, gradients=everything),
        pb.Evaluation(forward_only=True),
        pb.Evaluation(batch_size=3, with_respect_to=["w0", "x1"]),
    ]
    scalars = [
        pb.EvaluateRequest(graph=source(graph), evaluation=each).SerializeToString()
        for graph in (neuron(), module_neuron())
        for each in asked
    ]
    long = pb.EvaluateRequest(graph=source(chain(200))).SerializeToString()
    arrays = {
        "sum(tanh(x @ w) ** 2)": {"x": rng.random((4, 20)), "w": rng.random((20, 30))},
        "sum(softmax(x) * y)": {"x": rng.random((8, 10)), "y": rng.random((8, 10))},
        "sum(where(x > 0.5, x, exp(x)))": {"x": rng.random(100)},
    }
    tensors = [
        pb.EvaluateRequest(
            graph=pb.GraphSource(graph=gw.parse(text, values).to_bytes())
        ).SerializeToString()
        for text, values in arrays.items()
    ]
    return [*scalars, long, *tensors]


def hostile() -> list[bytes]:
    """Requests that each would take a server's memory or time, were they not refused."""
    texts = {
        "sum(expand(x, [1000000000, 1000000000]))": {"x": 1.0},
        "sum(expand(x, [100000000]))": {"x": 1.0},
        "sum(tile(x, [4611686018427387904]))": {"x": np.ones(2)},
        "sum(x @ y)": {"x": np.ones((0, 2)), "y": np.ones((3, 0))},
        "sum(range(0.0, x, 0.000001))": {"x": 1e18},
    }
    graphs = []
    for text, values in texts.items():
        with suppress(gw.GradwireError):  # the builder refuses it already
            graphs.append(gw.parse(text, values).to_bytes())
    graph = gw.Graph()
    regions = graph.parameter("r", np.zeros((0, 4)))
    batch = graph.parameter("b", np.zeros((0,), np.int64))
    image = graph.parameter("x", np.ones((1, 1, 3, 3)))
    graph.output("f", gw.reduce_sum(gw.roi_align(image, regions, batch, sampling_ratio=1 << 62)))
    graphs += [graph.to_bytes(), _doubling(5000), chain(LIMITS.max_nodes + 1).SerializeToString()]
    requests = [
        pb.EvaluateRequest(graph=pb.GraphSource(graph=each)).SerializeToString() for each in graphs
    ]
    many = pb.EvaluateRequest(graph=source(chain(200)))
    many.evaluation.batch_size = (1 << 32) - 1
    return [*requests, many.SerializeToString(), bytes(5 * MIB), b"\xff" * 1000, b""]


def _doubling(nodes: int) -> bytes:
    """Concat(x, x), again and again."""
    graph = gw.Graph()
    value = graph.parameter("x", np.ones(1))
    graph.output("f", gw.concat(value, value, axis=0))
    message = graph_pb2.Graph.FromString(graph.to_bytes())
    message.circuit.node_gates[:] = [0] * nodes
    message.circuit.node_inputs[:] = [each for at in range(1, nodes + 1) for each in (at, at)]
    message.circuit.outputs[0].value_ids[:] = [nodes + 1]
    return bytes(message.SerializeToString())


def nearly_equal(data: bytes, chance: random.Random) -> bytes:
    """The same request, but for one thing that a cache could overlook."""
    request = pb.EvaluateRequest.FromString(data)
    graph = graph_pb2.Graph.FromString(request.graph.graph)
    leaves = [*graph.circuit.inputs, *graph.circuit.parameters, *graph.circuit.constants]
    match chance.randrange(7):
        case 0:  # one bit of a stored number
            _flip_last_bits(chance.choice(leaves).value, chance)
        case 1 if request.evaluation.bindings:
            _flip_last_bits(request.evaluation.bindings[0].tensor, chance)
        case 2:
            graph.circuit.outputs[0].name += chance.choice("abc")
        case 3 if len(graph.gates) > 1:  # another gate for a node, perhaps one of as many inputs
            at = chance.randrange(len(graph.circuit.node_gates))
            graph.circuit.node_gates[at] = chance.randrange(len(graph.gates))
        case 4:
            request.evaluation.forward_only ^= True
        case 5:
            request.evaluation.batch_size = chance.randrange(4)
        case _:
            leaf = chance.choice(leaves)
            del request.evaluation.with_respect_to[:]
            request.evaluation.with_respect_to.append(leaf.name)
    request.graph.graph = graph.SerializeToString()
    return bytes(request.SerializeToString())


def _flip_last_bits(tensor: Any, chance: random.Random) -> None:
    if tensor.data:
        changed = bytearray(tensor.data)
        changed[0] ^= 1 + chance.randrange(255)  # little endian: the last bits of a number
        tensor.data = bytes(changed)


# -- a client -----------------------------------------------------------------------------------


@dataclass
class Report:
    """What a client saw."""

    outcomes: Counter[str] = field(default_factory=Counter)
    compared: int = 0
    wrong: list[str] = field(default_factory=list)

    def fault(self, kind: str, data: bytes, what: str) -> None:
        self.wrong.append(f"{kind}: {data[:1000]!r}: {what}"[:3000])


def fresh(data: bytes) -> str | bytes:
    """What a service answers that has seen nothing before: bytes, or why it refuses."""
    service = GradientService(LIMITS)
    try:
        return service.evaluate(data, lambda: False)
    except Refusal as refusal:
        return refusal.message
    finally:
        service.close()


class Client:
    """Sends what its seed says."""

    def __init__(self, address: str, seed: int) -> None:
        self._chance = random.Random(seed)
        self._channel = grpc.insecure_channel(address, _OPTIONS)
        self._evaluate = self._channel.unary_unary(SERVICE + "Evaluate")
        self._stream = self._channel.unary_stream(SERVICE + "EvaluateStream")
        self._session = self._channel.stream_stream(SERVICE + "Session")
        self._honest, self._refused = honest(), hostile()
        self.report = Report()

    def run(self, count: int, kinds: Mapping[str, int]) -> Report:
        """So many requests, of kinds with these chances."""
        sends: dict[str, Callable[[bytes], None]] = {
            "repeated": lambda data: self._compare("repeated", data),
            "nearly equal": lambda data: self._compare(
                "nearly equal", nearly_equal(data, self._chance)
            ),
            "damaged": lambda data: self._compare("damaged", mutate(data, self._chance)),
            "hostile": lambda _: self._be_refused(),
            "cancelled": self._cancel,
            "stepped": self._step,
            "streamed": self._read_half,
        }
        for _ in range(count):
            (kind,) = self._chance.choices([*kinds], [*kinds.values()])
            sends[kind](self._chance.choice(self._honest))
        self._channel.close()
        return self.report

    def _compare(self, kind: str, data: bytes) -> None:
        """Asks for an answer, and one time in twenty a fresh service as well."""
        answer = self._answer(kind, data)
        if self._chance.randrange(ONE_IN) == 0:
            self._require(kind, data, answer, fresh(data))

    def _answer(self, kind: str, data: bytes) -> str | bytes:
        try:
            answer: bytes = self._evaluate(data, timeout=PATIENCE)
        except grpc.RpcError as error:
            return self._refusal(kind, data, error)
        self.report.outcomes[f"{kind}: OK"] += 1
        return answer

    def _refusal(self, kind: str, data: bytes, error: Any) -> str:
        code, message = error.code(), str(error.details())
        self.report.outcomes[f"{kind}: {code.name}"] += 1
        if code not in REFUSALS:
            self.report.fault(kind, data, f"{code.name} {message}")
        return message

    def _require(self, kind: str, data: bytes, answer: object, expected: object) -> None:
        self.report.compared += 1
        if answer != expected:
            self.report.fault(kind, data, f"{answer!r} and not {expected!r}")

    def _be_refused(self) -> None:
        data = self._chance.choice(self._refused)
        answer = self._answer("hostile", data)
        if isinstance(answer, bytes):
            self.report.fault("hostile", data, "was answered")

    def _cancel(self, data: bytes) -> None:
        call = self._evaluate.future(data, timeout=PATIENCE)
        sleep(self._chance.random() / 1000)
        call.cancel()
        self.report.outcomes["cancelled"] += 1

    def _step(self, data: bytes) -> None:
        """A session of a few steps, whose last answer is that of Evaluate."""
        request = pb.EvaluateRequest.FromString(data)
        bindings = [*request.evaluation.bindings]
        del request.evaluation.bindings[:]
        if request.evaluation.forward_only:
            return
        opened = pb.Open(graph=request.graph, evaluation=request.evaluation)
        steps = [pb.Step(bindings=bindings), pb.Step(), pb.Step(bindings=bindings)]
        sent = [pb.SessionRequest(open=opened), *(pb.SessionRequest(step=each) for each in steps)]
        try:
            *_, last = self._session(
                iter([each.SerializeToString() for each in sent]), timeout=PATIENCE
            )
        except grpc.RpcError as error:
            self._refusal("stepped", data, error)
            return
        self.report.outcomes["stepped: OK"] += 1
        answer = pb.SessionResponse.FromString(last).result
        evaluated = fresh(data)
        if isinstance(evaluated, bytes):
            expected = pb.EvaluateResponse.FromString(evaluated).result
            self._require("stepped", data, answer, expected)

    def _read_half(self, data: bytes) -> None:
        call = self._stream(data, timeout=PATIENCE)
        try:
            next(call)
        except grpc.RpcError as error:
            self._refusal("streamed", data, error)
        call.cancel()
        self.report.outcomes["streamed"] += 1


class Victim:
    """Evaluates x*x at one point after another, until it is stopped."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._stopped = False
        self._seconds: list[float] = []

    def stop(self, *_: object) -> None:
        self._stopped = True

    def run(self) -> dict[str, float]:
        """How long its calls took, in milliseconds; ValueError where one was wrong."""
        graph, chance = gw.parse("x * x"), random.Random(1)
        with gw.connect(self._address) as server:
            while not self._stopped:
                x = chance.random()
                before = monotonic()
                result = server.evaluate(graph, {"x": x})
                self._seconds.append(monotonic() - before)
                (output,) = result.outputs.values()
                value, gradient = float(output), float(result.gradients["x"])
                if (value, gradient) != (x * x, x + x):
                    raise ValueError(f"x*x at {x}: {value} and {gradient}")
        cuts = quantiles([1000 * each for each in self._seconds], n=100)
        return {"calls": len(self._seconds), "median": cuts[49], "p99": cuts[98]}


# -- the whole ----------------------------------------------------------------------------------


class Server:
    """`gradwire serve` with the limits above, and what it takes."""

    def __init__(self) -> None:
        flags = [
            word for limit in LIMITS.describe() for word in (f"--{limit.name}", str(limit.value))
        ]
        command = [
            str(Path(sys.executable).parent / "gradwire"),
            "serve",
            "--listen",
            "127.0.0.1:0",
            "--no-web",
        ]
        self._process = subprocess.Popen([*command, *flags], stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        match = re.search(r"listens on (\S+)", line)
        assert match is not None, line
        self.address = match[1]

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self._process.pid}/fd"))

    def status(self, name: str) -> int:
        """A number of its status: threads, or kB of memory."""
        lines = Path(f"/proc/{self._process.pid}/status").read_text()
        match = re.search(rf"^{name}:\s*(\d+)", lines, re.MULTILINE)
        assert match is not None, "it has ended"
        return int(match[1])

    def processor_seconds(self) -> float:
        words = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")

    def close(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.communicate(timeout=PATIENCE)


@dataclass
class Found:
    """What became of all requests."""

    outcomes: Counter[str]
    compared: int
    wrong: list[str]
    victim: dict[str, float]


def attack(server: Server, requests: int, kinds: Mapping[str, int], first_seed: int) -> Found:
    """The clients and the victim, each a process."""

    def start(*words: object) -> subprocess.Popen[str]:
        command = [sys.executable, __file__, *map(str, words)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    victim = start("victim", server.address)
    clients = [
        start("client", server.address, first_seed + number, requests // CLIENTS, *kinds)
        for number in range(CLIENTS)
    ]
    found = Found(Counter(), 0, [], {})
    for each in clients:
        report = _said_by(each)
        found.outcomes.update(report["outcomes"])
        found.compared += report["compared"]
        found.wrong += report["wrong"]
    victim.send_signal(signal.SIGTERM)
    found.victim = _said_by(victim)
    return found


def _said_by(process: subprocess.Popen[str]) -> Any:
    said, _ = process.communicate()
    if process.returncode:
        raise RuntimeError("a client failed: its traceback stands above")
    return json.loads(said)


def warm_up(server: Server) -> None:
    """Everything is there that a first call makes."""
    Client(server.address, 0).run(100, {"repeated": 1})


def memory_bound() -> int:
    """Bytes that the limits allow above what a server takes that has done little."""
    evaluations = LIMITS.max_evaluations * (LIMITS.max_memory_bytes + LIMITS.max_message_bytes)
    return LIMITS.max_cache_bytes + evaluations + CLIENTS * LIMITS.max_message_bytes


def main() -> None:
    words = sys.argv[1:]
    if words[0] == "client":
        _, address, seed, count, *kinds = words
        report = Client(address, int(seed)).run(int(count), {each: KINDS[each] for each in kinds})
        print(json.dumps(vars(report)))
    elif words[0] == "victim":
        victim = Victim(words[1])
        signal.signal(signal.SIGTERM, victim.stop)
        print(json.dumps(victim.run()))
    else:
        sys.exit(report_on(int(words[0])))


def report_on(requests: int) -> int:
    """Prints what became of so many requests; 1 where something is not as it must be."""
    server = Server()
    try:
        warm_up(server)
        start = server.status("VmRSS") >> 10
        descriptors, threads = server.descriptors(), server.status("Threads")
        honest_victim = attack(server, requests // 10, {"repeated": 1}, 2000).victim
        before = server.processor_seconds()
        found = attack(server, requests, KINDS, 1)
        seconds = server.processor_seconds() - before
        peak, bound = server.status("VmHWM") >> 10, start + (memory_bound() >> 20)
        closed = comes_true(lambda: server.descriptors() <= descriptors)
        rested = comes_true(lambda: server.status("Threads") <= threads)
        ratio = found.victim["p99"] / honest_victim["p99"]
        for outcome, count in sorted(found.outcomes.items()):
            print(f"{count:9,}  {outcome}")
        print(f"compared with a fresh service: {found.compared:,}; wrong: {len(found.wrong)}")
        print(f"server: {seconds:.0f} s of processor, {start} MB before, peak {peak} of {bound} MB")
        print(f"descriptors back to {descriptors}: {closed}; threads back to {threads}: {rested}")
        for name, victim in (("honest clients", honest_victim), ("these", found.victim)):
            print(
                f"victim beside {name}: median {victim['median']:.2f} ms, p99 {victim['p99']:.2f}"
            )
        print(f"ratio of its p99: {ratio:.2f}")
        print(*found.wrong[:10], sep="\n")
    finally:
        server.close()
    return int(bool(found.wrong) or peak > bound or not closed or not rested or ratio > MOST_RATIO)


if __name__ == "__main__":
    main()
