"""The page's connections: none keeps the server waiting, and together they leave gRPC its share."""

from __future__ import annotations

import http.client
import logging
import resource
import socket
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from patience import PATIENCE, Clock
from wire import chain, source

import gradwire as gw
from gradwire import uploads
from gradwire.local import PageOptions
from gradwire.v1 import service_pb2
from gradwire_server.entry import Server
from gradwire_server.limits import Limits
from gradwire_server.repeats import SECONDS, TIMES, Repeats
from gradwire_server.web import connections, page
from gradwire_server.web.page import bind, most_connections

HEAD = b"GET / HTTP/1.1\r\nHost: localhost\r\n"
EVALUATE = "/gradwire.v1.GradientService/Evaluate"


class Shown:
    """A server with its page."""

    def __init__(self, folder: Path, **limits: int) -> None:
        self.server = Server(Limits(**limits))
        self.address = self.server.start(f"unix:{folder}/socket")
        sockets = bind("127.0.0.1", 0)
        self.port: int = sockets[0].getsockname()[1]
        options = PageOptions(uploads.read_file, uploads.read_expression, None, ())
        self.server.show(replace(options.web(""), ui=folder / "ui"), sockets)

    def connect(self, data: bytes = b"") -> socket.socket:
        found = socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE)
        found.sendall(data)
        return found

    def post(self, path: str, body: bytes, kind: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        connection.request("POST", path, body, {"Content-Type": kind})
        answer = connection.getresponse()
        found = answer.status, answer.read()
        connection.close()
        return found

    def parse(self) -> int:
        return self.post("/parse", b"x * x", "application/octet-stream")[0]


@pytest.fixture
def shown(tmp_path: Path) -> Iterator[Shown]:
    found = Shown(tmp_path)
    yield found
    found.server.stop(0)


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is silent when the server looks is so for too long."""
    monkeypatch.setattr(connections, "WAIT_SECONDS", 0.0)


def is_closed(peer: socket.socket) -> bool:
    """Waits until the server has closed a connection."""
    with peer, suppress(ConnectionResetError):
        while peer.recv(1 << 16):
            pass
    return True


def body(length: int) -> bytes:
    return (
        b"POST /open?name=a.gate HTTP/1.1\r\nHost: localhost\r\n"
        b"Content-Type: application/octet-stream\r\nContent-Length: %d\r\n\r\nabc" % length
    )


@pytest.mark.usefixtures("_impatient")
@pytest.mark.parametrize(
    "sent",
    [b"", HEAD, HEAD + b"X: ", body(1000), HEAD + b"\r\n", HEAD + b"\r\n" + HEAD],
    ids=["nothing", "half a head", "half a header", "half a body", "one request", "and a half"],
)
def test_whoever_is_silent_is_cut_off(shown: Shown, sent: bytes) -> None:
    assert is_closed(shown.connect(sent))


def test_silent_bodies_keep_nobody_from_reading(shown: Shown) -> None:
    silent = [shown.connect(body(1000)) for _ in range(8)]
    assert shown.parse() == 200
    for each in silent:
        each.close()


@pytest.mark.usefixtures("_impatient")
def test_whoever_does_not_read_is_cut_off_and_holds_nothing(shown: Shown) -> None:
    asked = service_pb2.EvaluateRequest(graph=source(chain(400_000)))
    asked.evaluation.values.all = True
    data = asked.SerializeToString()
    peer = socket.socket()
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 14)
    peer.settimeout(PATIENCE)
    peer.connect(("127.0.0.1", shown.port))
    peer.sendall(
        f"POST {EVALUATE} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/proto\r\n"
        f"Content-Length: {len(data)}\r\n\r\n".encode()
        + data
    )
    held, pause, most = shown.server._service.held, Event(), 0
    for _ in range(100 * PATIENCE):
        most = max(most, held.nbytes)
        if most > 3_000_000 and not held.nbytes:
            break
        pause.wait(0.01)
    assert most > 3_000_000
    assert held.nbytes == 0
    peer.close()


def test_bodies_count_as_memory_that_is_held(tmp_path: Path) -> None:
    shown = Shown(tmp_path, max_held_bytes=1 << 20)
    shown.server._service.held.holding(lambda: None).grow(1 << 19)
    status, answer = shown.post("/open?name=a.gate", bytes(1 << 20), "application/octet-stream")
    assert (status, b"--max-held-bytes" in answer) == (413, True)
    shown.server.stop(0)


def test_connections_beyond_the_share_replace_silent_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "_CONNECTIONS", 8)
    shown = Shown(tmp_path)
    assert shown.parse() == 200
    silent = [shown.connect(HEAD) for _ in range(40)]
    assert shown.parse() == 200
    assert all(map(is_closed, silent[:32]))
    with gw.connect(shown.address, timeout=PATIENCE) as connection:
        assert float(connection.evaluate(gw.parse("x*x"), {"x": 3.0})["out"].value) == 9.0
    for each in silent:
        each.close()
    shown.server.stop(0)


def test_sessions_leave_half_of_the_connections_to_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "_CONNECTIONS", 8)
    shown = Shown(tmp_path)
    upgrade = (
        b"GET /session HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\n"
        b"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    sessions = []
    for number in range(6):
        sessions.append(shown.connect(upgrade))
        if number < 4:
            assert sessions[-1].recv(12) == b"HTTP/1.1 101"
        else:
            assert is_closed(sessions[-1])
    assert shown.parse() == 200
    for each in sessions:
        each.close()
    shown.server.stop(0)


def test_page_takes_a_quarter_of_the_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    for descriptors, most in ((1024, 256), (1 << 20, 512), (resource.RLIM_INFINITY, 512), (3, 1)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, each=descriptors: (each, each))
        assert most_connections() == most


# ---- logs


def record(message: str, *arguments: Any, level: int = logging.WARNING) -> logging.LogRecord:
    return logging.LogRecord("gradwire", level, "", 0, message, arguments, None)


def test_sentences_that_repeat_are_counted() -> None:
    clock = Clock()
    repeats = Repeats(clock)
    written = [repeats.filter(record("peer %s is silent", each)) for each in range(1000)]
    assert written == [True] * TIMES + [False] * (1000 - TIMES)
    assert repeats.filter(record("another sentence"))
    while clock() < SECONDS:
        clock.pass_some()
    again = record("peer %s is silent", 1001)
    assert repeats.filter(again)
    assert again.__dict__["repeats"] == 1000 - TIMES


def test_calls_are_logged_each() -> None:
    repeats = Repeats(Clock())
    assert all(repeats.filter(record("call", level=logging.INFO)) for _ in range(10))


def test_faults_of_different_kinds_are_logged_each() -> None:
    repeats = Repeats(Clock())
    passed = []
    for failure in [*[ValueError()] * TIMES, KeyError(), ValueError()]:
        fault = record("fault", level=logging.ERROR)
        fault.exc_info = type(failure), failure, None
        passed.append(repeats.filter(fault))
    assert passed == [True] * TIMES + [True, False]
