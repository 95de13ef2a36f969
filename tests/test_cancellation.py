"""Work stops when nobody waits for it any more, and a server ends when it is told."""

from __future__ import annotations

import json
import logging
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from patience import PATIENCE
from wire import chain, neuron, source

from gradwire.v1 import service_pb2, service_pb2_grpc
from gradwire_server import service
from gradwire_server.engine.runs import Run
from gradwire_server.entry import EmbeddedServer
from gradwire_server.limits import Limits

SERVE = """
import sys
from gradwire_server.entry import serve
from gradwire_server.limits import Limits
serve(sys.argv[1], Limits(max_evaluations=1, max_sessions=2), drain_seconds=600, log_level="INFO")
"""
STREAM = """
import sys, threading, grpc
from gradwire.v1 import service_pb2, service_pb2_grpc
from wire import chain, source
channel = grpc.insecure_channel(sys.argv[1])
stub = service_pb2_grpc.GradientServiceStub(channel)
for event in stub.EvaluateStream(service_pb2.EvaluateStreamRequest(graph=source(chain(1_000_000)))):
    if event.WhichOneof("event") == "node_values":
        print("streaming", flush=True)
        threading.Event().wait()  # more follows than the way holds
"""


class Running:
    """A server in another process, with its log."""

    def __init__(self, folder: Path) -> None:
        self.address = f"unix:{folder}/socket"
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVE, self.address],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        assert self.address in self.process.stdout.readline()

    def next_call(self) -> dict[str, object]:
        """The next line of the log about a call."""
        assert self.process.stderr is not None
        while True:
            line = json.loads(self.process.stderr.readline())
            if line["event"] == "call":
                found: dict[str, object] = line
                return found

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Running]:
    running = Running(tmp_path)
    yield running
    running.close()


@pytest.fixture
def stub(server: Running) -> Iterator[service_pb2_grpc.GradientServiceStub]:
    with grpc.insecure_channel(server.address) as channel:
        yield service_pb2_grpc.GradientServiceStub(channel)


def test_killing_the_client_frees_the_only_worker(
    server: Running, stub: service_pb2_grpc.GradientServiceStub
) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    client = subprocess.Popen(
        [sys.executable, "-c", STREAM, server.address],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert client.stdout is not None
    assert client.stdout.readline() == "streaming\n"
    client.kill()
    client.communicate()
    answer = stub.Evaluate(service_pb2.EvaluateRequest(graph=source(neuron())), timeout=PATIENCE)
    assert answer.result.outputs
    assert server.next_call()["outcome"] == "CANCELLED"


class Outcomes(logging.Handler):
    """How calls ended, as the server logs it."""

    def __init__(self) -> None:
        super().__init__()
        self._found: queue.Queue[str] = queue.Queue()

    def emit(self, record: logging.LogRecord) -> None:
        self._found.put(getattr(record, "outcome", ""))

    def wait_for(self, *wanted: str) -> None:
        """Until calls have ended in each of these ways."""
        missing = {*wanted}
        while missing:
            missing.discard(self._found.get(timeout=PATIENCE))


@pytest.fixture
def outcomes() -> Iterator[Outcomes]:
    logger, handler = logging.getLogger("gradwire"), Outcomes()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield handler
    logger.removeHandler(handler)
    logger.setLevel(level)


@pytest.fixture
def lonely() -> Iterator[service_pb2_grpc.GradientServiceStub]:
    """Of a server in this process, with one turn to compute."""
    server = EmbeddedServer(Limits(max_evaluations=1))
    with grpc.insecure_channel(server.address) as channel:
        yield service_pb2_grpc.GradientServiceStub(channel)
    server.close()


def endless(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> threading.Event:
    """Makes some work go on until it is told to stop; the event says that it has begun."""
    begun, ends = threading.Event(), getattr(owner, name)

    def work(*arguments: Any) -> Any:
        stopped: Callable[[], bool] = arguments[-1]
        if not begun.is_set():
            begun.set()
            while not stopped():
                threading.Event().wait(0.001)
        return ends(*arguments)

    monkeypatch.setattr(owner, name, work)
    return begun


def pass_deadline(call: Any, request: Any, begun: threading.Event) -> None:
    """Calls with deadlines, until one has passed while the server worked."""
    seconds = 0.25
    while not begun.is_set():
        failure = call.future(request, timeout=seconds).exception()
        if failure is None:  # an earlier call began after its deadline, and its work was stopped
            assert begun.is_set()
            return
        assert failure.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        seconds *= 2


def test_deadline_stops_the_work(
    lonely: service_pb2_grpc.GradientServiceStub,
    outcomes: Outcomes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    request = service_pb2.EvaluateRequest(graph=source(neuron()))
    pass_deadline(lonely.Evaluate, request, endless(monkeypatch, Run, "complete"))
    assert lonely.Evaluate(request, timeout=PATIENCE).result.outputs
    outcomes.wait_for("CANCELLED", "OK")


def test_deadline_stops_differentiating_a_graph(
    lonely: service_pb2_grpc.GradientServiceStub,
    outcomes: Outcomes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    request = service_pb2.DifferentiateGraphRequest(graph=source(neuron()))
    begun = endless(monkeypatch, service, "gradient_graph")
    pass_deadline(lonely.DifferentiateGraph, request, begun)
    assert lonely.DifferentiateGraph(request, timeout=PATIENCE).graph
    outcomes.wait_for("CANCELLED", "OK")


def test_health_answers_while_an_evaluation_takes_the_only_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun = endless(monkeypatch, Run, "complete")
    server = EmbeddedServer(Limits(max_evaluations=1, max_waiting=1))
    with grpc.insecure_channel(server.address) as channel:
        stub = service_pb2_grpc.GradientServiceStub(channel)
        call = stub.Evaluate.future(service_pb2.EvaluateRequest(graph=source(neuron())))
        assert begun.wait(PATIENCE)
        health = health_pb2_grpc.HealthStub(channel)
        found = health.Check(health_pb2.HealthCheckRequest(), timeout=PATIENCE)
        assert found.status == health_pb2.HealthCheckResponse.SERVING
        assert not call.done()
        call.cancel()
    server.close()


def test_sigterm_lets_running_calls_end(
    server: Running, stub: service_pb2_grpc.GradientServiceStub
) -> None:
    stream = stub.EvaluateStream(service_pb2.EvaluateStreamRequest(graph=source(chain(30_000))))
    assert next(stream).WhichOneof("event") == "started"
    server.process.send_signal(signal.SIGTERM)
    assert [event.WhichOneof("event") for event in stream][-1] == "finished"
    assert server.process.wait(timeout=PATIENCE) == 0


def test_sigterm_that_another_thread_gets_ends_the_server(tmp_path: Path) -> None:
    other_thread_only = (
        "import signal, threading\n"
        "threading.Thread(target=threading.Event().wait, daemon=True).start()\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", other_thread_only + SERVE, f"unix:{tmp_path}/socket"],
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=PATIENCE) == 0
    process.stdout.close()


def test_sessions_over_the_limit_are_refused(
    stub: service_pb2_grpc.GradientServiceStub,
) -> None:
    hold = threading.Event()

    def requests() -> Iterator[service_pb2.SessionRequest]:
        yield service_pb2.SessionRequest(open=service_pb2.Open(graph=source(neuron())))
        hold.wait()

    open_sessions = [stub.Session(requests()) for _ in range(2)]
    for session in open_sessions:
        assert next(session).WhichOneof("outcome") == "started"
    with pytest.raises(grpc.RpcError) as failed:
        next(stub.Session(requests()))
    hold.set()
    assert failed.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "max-sessions" in failed.value.details()


def test_second_server_on_a_port_is_refused() -> None:
    first = subprocess.Popen(
        [sys.executable, "-c", SERVE, "127.0.0.1:0"], stdout=subprocess.PIPE, text=True
    )
    assert first.stdout is not None
    address = first.stdout.readline().split()[-1]
    second = subprocess.run(
        [sys.executable, "-c", SERVE, address], capture_output=True, text=True, check=False
    )
    first.kill()
    first.communicate()
    assert second.returncode != 0
    assert f"cannot listen on {address}" in second.stderr
