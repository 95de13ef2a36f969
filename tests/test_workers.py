"""Several workers on one port: shared on purpose, and by nobody else."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from patience import PATIENCE
from wire import chain, neuron, source

from gradwire.v1 import service_pb2, service_pb2_grpc

COMMAND = [
    sys.executable, "-m", "gradwire.cli", "serve", "--log-level", "info",
    "--drain-seconds", str(PATIENCE),
]  # fmt: skip
OPTIONS = [("grpc.use_local_subchannel_pool", 1)]  # a connection of its own for each channel


class Running:
    """A server with two workers, and its log."""

    def __init__(self) -> None:
        here = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup has it ignored
        try:
            self.process = subprocess.Popen(
                [*COMMAND, "--listen", "127.0.0.1:0", "--workers", "2"],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        finally:
            signal.signal(signal.SIGHUP, here)
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().split()[-1]

    def line(self, event: str) -> str:
        """The next line of the log about an event."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            found: str = json.loads(line)["event"]
            if event in found:
                return found
        raise AssertionError(f"the log ends without {event!r}")


@pytest.fixture
def server() -> Iterator[Running]:
    """For a test that ends it, or a part of it."""
    yield from running()


@pytest.fixture(scope="module")
def lasting() -> Iterator[Running]:
    """For tests that leave it as it is: three processes take a while to start."""
    yield from running()


def running() -> Iterator[Running]:
    started = Running()
    yield started
    started.process.kill()
    started.process.communicate()


def evaluate(address: str) -> service_pb2.EvaluateResponse:
    with grpc.insecure_channel(address, OPTIONS) as channel:
        stub = service_pb2_grpc.GradientServiceStub(channel)
        request = service_pb2.EvaluateRequest(graph=source(neuron()))
        found: service_pb2.EvaluateResponse = stub.Evaluate(
            request, timeout=PATIENCE, wait_for_ready=True
        )
        return found


@pytest.mark.slow
def test_workers_answer_alike(lasting: Running) -> None:
    first = evaluate(lasting.address)
    assert all(evaluate(lasting.address) == first for _ in range(10))


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.slow
def test_second_server_on_the_port_is_refused(lasting: Running, workers: int) -> None:
    second = subprocess.run(
        [*COMMAND, "--listen", lasting.address, "--workers", str(workers)],
        capture_output=True, text=True, check=False, timeout=PATIENCE,
    )  # fmt: skip
    assert second.returncode == 1
    assert f"cannot listen on {lasting.address}: it is in use" in second.stderr
    assert not second.stdout


@pytest.mark.slow
def test_workers_refuse_the_port_of_a_single_server() -> None:
    single = subprocess.Popen(
        [*COMMAND, "--listen", "127.0.0.1:0"], stdout=subprocess.PIPE, text=True
    )
    assert single.stdout is not None
    address = single.stdout.readline().split()[-1]
    second = subprocess.run(
        [*COMMAND, "--listen", address, "--workers", "2"],
        capture_output=True, text=True, check=False, timeout=PATIENCE,
    )  # fmt: skip
    single.kill()
    single.communicate()
    assert second.returncode == 1
    assert f"cannot listen on {address}" in second.stderr


def test_workers_do_not_share_a_unix_socket() -> None:
    found = subprocess.run(
        [*COMMAND, "--listen", "unix:socket", "--workers", "2"],
        capture_output=True, text=True, check=False, timeout=PATIENCE,
    )  # fmt: skip
    assert found.returncode == 1
    assert "leave --workers out" in found.stderr


def test_worker_that_dies_is_replaced(server: Running) -> None:
    workers = [int(server.line(" listens").split()[1]) for _ in range(2)]
    for worker in workers:
        os.kill(worker, signal.SIGKILL)
        said = server.line("another is started")
        assert said.startswith(f"worker {worker} ended with exit code -9; ")
    assert evaluate(server.address).result.outputs  # by a successor: there is nobody else


@pytest.mark.slow
def test_sigterm_drains_every_worker(server: Running) -> None:
    with grpc.insecure_channel(server.address) as channel:
        stub = service_pb2_grpc.GradientServiceStub(channel)
        request = service_pb2.EvaluateStreamRequest(graph=source(chain(100_000)))
        stream = stub.EvaluateStream(request)
        assert next(stream).WhichOneof("event") == "started"
        server.process.send_signal(signal.SIGTERM)
        assert [event.WhichOneof("event") for event in stream][-1] == "finished"
    assert server.process.wait(timeout=PATIENCE) == 0


@pytest.mark.slow
def test_workers_end_with_a_parent_that_is_killed(server: Running) -> None:
    server.process.kill()
    assert server.process.stderr is not None
    server.process.stderr.read()  # ends when the last worker has closed its end


def test_successors_that_die_before_they_listen_are_replaced_for_ever(tmp_path: Path) -> None:
    jobs = Path(__file__).parent / "worker_jobs.py"
    process = subprocess.Popen(
        [sys.executable, str(jobs), str(tmp_path / "births")], stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    said = [next(process.stderr) for _ in range(6)]
    process.send_signal(signal.SIGTERM)
    process.stderr.close()
    assert process.wait(timeout=PATIENCE) == 0
    assert said[-1] == "lives\n"
    pauses = [line.rpartition("another is started in its place in ")[2] for line in said[:-1]]
    seconds = ["0.001", "0.002", "0.004", "0.004", "0.004"]
    assert pauses == [f"{each} seconds\n" for each in seconds]
    assert "before it listened" not in said[0]
    assert all("ended with exit code 9 before it listened on 127" in each for each in said[1:-1])


@pytest.mark.slow
def test_sighup_ends_a_server_as_sigterm_does(server: Running) -> None:
    """It comes when a terminal closes."""
    server.process.send_signal(signal.SIGHUP)
    assert server.process.wait(timeout=PATIENCE) == 0
