"""Sessions for browsers, which have no bidirectional gRPC: a WebSocket of the same messages."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from google.rpc import code_pb2
from starlette.websockets import WebSocket, WebSocketDisconnect

from gradwire.v1 import service_pb2
from gradwire_server.web.calls import Ended, Inbox, Outbox, Servicer, converse
from gradwire_server.web.rpc import PATH

#: Closes of our own: 4000 after an error, which is the last message; the reason is its `reason`.
FAILED = 4000
_NOT_BINARY = 1003
_LONGEST_REASON = 123  # bytes, by the protocol


async def converse_over(websocket: WebSocket, service: Servicer) -> None:
    """One session: each message is a SessionRequest, each answer a SessionResponse."""
    await websocket.accept()
    loop = asyncio.get_running_loop()
    inbox, outbox = Inbox(loop), Outbox(loop)
    peer = f"http:{websocket.client.host}:{websocket.client.port}" if websocket.client else "http:"
    context = converse(service, f"{PATH}/Session", inbox, outbox, peer)
    hearing = asyncio.create_task(_hear(websocket, inbox))
    saying = asyncio.create_task(_say(websocket, outbox))
    try:
        done, _ = await asyncio.wait({hearing, saying}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        context.cancel()
        inbox.close()
        outbox.close()
        for task in (hearing, saying):
            task.cancel()
        await asyncio.gather(hearing, saying, return_exceptions=True)
    for ended in done:
        ended.result()  # a fault of ours is the server's to log
    if done == {hearing} and hearing.result():
        await websocket.close(_NOT_BINARY, "send binary messages: serialized SessionRequests")


async def _hear(websocket: WebSocket, inbox: Inbox) -> bool:
    """Until the page has gone, or sends text: True."""
    while True:
        message = await websocket.receive()
        if message["type"] == "websocket.disconnect":
            return False
        data = message.get("bytes")
        if data is None:
            return True
        await inbox.put(data)


async def _say(websocket: WebSocket, outbox: Outbox) -> None:
    """Until the session has ended, or the page has gone."""
    with suppress(WebSocketDisconnect):
        try:
            async for data in outbox.messages():
                await websocket.send_bytes(data)
            await websocket.close()
        except Ended as ended:
            error = _error(ended)
            last = service_pb2.SessionResponse(error=error)
            await websocket.send_bytes(last.SerializeToString())
            await websocket.close(FAILED, (error.reason or ended.code)[:_LONGEST_REASON])


def _error(ended: Ended) -> service_pb2.Error:
    info = ended.info()
    return service_pb2.Error(
        code=code_pb2.Code.Value(ended.code),
        reason=info.reason,
        message=ended.message,
        facts=[service_pb2.Fact(key=key, value=fact) for key, fact in info.metadata.items()],
    )
