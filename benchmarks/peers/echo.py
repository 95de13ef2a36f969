"""A bare gRPC server that moves as many bytes as Gradwire does, and computes nothing.

Modes: `aio` or `sync` handlers, `evaluate` (unary) or `step` (one stream), such as `aio_step`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any

import grpc
from work import Work

OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.so_reuseport", 0),
]


def serve(work: Work, port: int, mode: str) -> None:
    from peer_gradwire import messages

    kind, method = mode.split("_")
    _, size = messages(work, method)
    answer = bytes(size)
    if kind == "aio":
        asyncio.run(_serve_aio(answer, port))
        return

    def stream(requests: Any, _: Any) -> Any:
        for _ in requests:
            yield answer

    server = grpc.server(ThreadPoolExecutor(16), options=OPTIONS)
    server.add_generic_rpc_handlers((_handlers(lambda _, __: answer, stream),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    server.wait_for_termination()


async def _serve_aio(answer: bytes, port: int) -> None:
    async def unary(_: bytes, __: Any) -> bytes:
        return answer

    async def stream(requests: Any, _: Any) -> Any:
        async for _ in requests:
            yield answer

    server = grpc.aio.server(options=OPTIONS)
    server.add_generic_rpc_handlers((_handlers(unary, stream),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


def _handlers(unary: Any, stream: Any) -> Any:
    return grpc.method_handlers_generic_handler(
        "echo",
        {
            "evaluate": grpc.unary_unary_rpc_method_handler(unary),
            "step": grpc.stream_stream_rpc_method_handler(stream),
        },
    )


def connect(work: Work, port: int, mode: str) -> Callable[[], Any]:
    from peer_gradwire import messages

    _, method = mode.split("_")
    request, _ = messages(work, method)
    channel = grpc.insecure_channel(f"127.0.0.1:{port}", OPTIONS)
    if method == "evaluate":
        call = channel.unary_unary("/echo/evaluate")
        return lambda: call(request)
    ask = asking(channel.stream_stream("/echo/step"))
    return lambda: ask(request)


def asking(open_stream: Callable[[Any], Any]) -> Callable[[bytes], Any]:
    """One request, one answer, over a stream that stays open."""
    waiting: SimpleQueue[bytes | None] = SimpleQueue()
    answers = open_stream(iter(waiting.get, None))

    def ask(request: bytes) -> Any:
        waiting.put(request)
        return next(answers)

    return ask
