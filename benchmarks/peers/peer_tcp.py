"""The same bytes over a plain socket: what the loopback device and two wake-ups take."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from threading import Thread
from typing import Any

from work import Work

_LENGTH = struct.Struct("<Q")


def serve(work: Work, port: int, mode: str) -> None:
    from peer_gradwire import messages

    _, size = messages(work, mode)
    answer = _LENGTH.pack(size) + bytes(size)
    with socket.create_server(("127.0.0.1", port)) as listening:
        while True:
            accepted, _ = listening.accept()
            Thread(target=_answer, args=(accepted, answer), daemon=True).start()


def _answer(accepted: socket.socket, answer: bytes) -> None:
    accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with accepted:
        while _receive(accepted) is not None:
            accepted.sendall(answer)


def connect(work: Work, port: int, mode: str) -> Callable[[], Any]:
    from peer_gradwire import messages

    request, _ = messages(work, mode)
    message = _LENGTH.pack(len(request)) + request
    connected = socket.create_connection(("127.0.0.1", port))
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def call() -> Any:
        connected.sendall(message)
        return _receive(connected)

    return call


def _receive(sock: socket.socket) -> bytearray | None:
    """One message; None where the other side has gone."""
    head = _exactly(sock, _LENGTH.size)
    return None if head is None else _exactly(sock, _LENGTH.unpack(head)[0])


def _exactly(sock: socket.socket, size: int) -> bytearray | None:
    found = bytearray(size)
    view = memoryview(found)
    while view:
        count = sock.recv_into(view)
        if not count:
            return None
        view = view[count:]
    return found
