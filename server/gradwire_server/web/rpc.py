"""The RPCs for browsers: Connect and gRPC-Web, without those that browsers cannot send."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import Any

from connectrpc.code import Code
from connectrpc.errors import ConnectError, ErrorDetail
from connectrpc.method import IdempotencyLevel, MethodInfo, StreamType
from connectrpc.request import RequestContext
from connectrpc.server import ConnectASGIApplication, Endpoint
from protobuf.wkt import Any as AnyMessage

from gradwire.v1 import service_pb2
from gradwire_server.web.calls import Ended, Servicer, answers

_SERVICE = service_pb2.DESCRIPTOR.services_by_name["GradientService"]
PATH = f"/{_SERVICE.full_name}"

_Context = RequestContext[bytes, bytes]


class RpcApplication(ConnectASGIApplication[Servicer]):
    """Connect and gRPC-Web over the handlers of the gRPC service."""

    def __init__(self, service: Servicer, max_message_bytes: int) -> None:
        super().__init__(
            service=service,
            endpoints=_endpoints,
            read_max_bytes=max_message_bytes,
            compressions=(),  # a bomb would be unpacked on the event loop
            codecs=(_Bytes(),),
        )

    @property
    def path(self) -> str:
        return PATH


class _Bytes:
    """Messages stay as they are: the service decodes them, on its own threads."""

    def name(self) -> str:
        return "proto"

    def encode(self, message: bytes) -> bytes:
        return message

    def decode(self, data: bytes | bytearray, message_class: type[bytes]) -> bytes:
        return bytes(data)


def _endpoints(service: Servicer) -> Mapping[str, Any]:
    found: dict[str, Any] = {}
    for method in _SERVICE.methods:
        if method.client_streaming:
            continue
        path = f"{PATH}/{method.name}"
        kind = StreamType.SERVER_STREAM if method.server_streaming else StreamType.UNARY
        info = MethodInfo(
            name=method.name,
            service_name=_SERVICE.full_name,
            input=bytes,
            output=bytes,
            idempotency_level=IdempotencyLevel.UNKNOWN,  # else it could be called by a plain GET
            stream_type=kind,
        )
        if method.server_streaming:
            found[path] = Endpoint.server_stream(info, _stream(service, path))
        else:
            found[path] = Endpoint.unary(info, _unary(service, path))
    return found


def _unary(service: Servicer, path: str) -> Callable[[bytes, _Context], Awaitable[bytes]]:
    stream = _stream(service, path)

    async def answer(data: bytes, context: _Context) -> bytes:
        found = b""
        async for each in stream(data, context):
            found = each
        return found

    return answer


def _stream(service: Servicer, path: str) -> Callable[[bytes, _Context], AsyncIterator[bytes]]:
    async def answer(data: bytes, context: _Context) -> AsyncIterator[bytes]:
        peer = f"http:{context.client_address}"
        try:
            async with aclosing(answers(service, path, data, peer)) as found:
                async for each in found:
                    yield each
        except Ended as ended:
            raise _error(ended) from None

    return answer


def _error(ended: Ended) -> ConnectError:
    code = Code.CANCELED if ended.code == "CANCELLED" else Code(ended.code.lower())
    details = [
        ErrorDetail(AnyMessage(type_url=each.type_url, value=each.value)) for each in ended.details
    ]
    return ConnectError(code, ended.message, details)
