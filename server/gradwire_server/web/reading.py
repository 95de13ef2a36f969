"""Files and expressions that the page sends, made graphs of by functions of the client's package.

They run in processes of their own, a few at a time, which end when whoever sent them leaves.
Nothing larger than a message is read, and what they make of it is checked as a request's graph is.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from gradwire_server.codec.graphs import decode_graph
from gradwire_server.errors import Invalid, OverLimit, Refusal
from gradwire_server.limits import Limits
from gradwire_server.threads import Lane
from gradwire_server.web.guard import refused
from gradwire_server.web.page import EXPRESSIONS, FILES, Job, Readers

#: Bodies that are read at the same time.
_BODIES = 4
_BODY_SECONDS = 120
_LONGEST_NAME = 200
#: Of ONNX models, beside the file's name.
_OPTIONS = ("size", "fix", "at")

log = logging.getLogger("gradwire")


class Reading:
    """Answers `POST /open?name=FILE` and `POST /parse` with a serialized Graph.

    A model may have options, such as `&size=batch=4&at=x=[1,2]`.
    """

    def __init__(self, readers: Readers, limits: Limits) -> None:
        self._readers = readers
        self._limits = limits
        self._bodies = asyncio.Semaphore(_BODIES)
        self._files = Lane("gradwire-open", FILES)
        self._expressions = Lane("gradwire-parse", EXPRESSIONS)

    async def open(self, request: Request) -> Response:
        """The graph of a .gate or .onnx file."""
        name = request.query_params.get("name", "")
        if not name or len(name) > _LONGEST_NAME or not name.isprintable() or "/" in name:
            message = f"name: is {name[:80]!r}; give the file's own, as in /open?name=neuron.gate"
            return refused(Invalid("REQUEST_INVALID", message), 400)
        options = [
            (each, text) for each, text in request.query_params.multi_items() if each in _OPTIONS
        ]
        return await self._answer(
            request, self._files, lambda body: self._readers.file(name, body, options)
        )

    async def parse(self, request: Request) -> Response:
        """The graph of an expression."""
        return await self._answer(
            request, self._expressions, lambda body: self._readers.expression(_text(body))
        )

    async def _answer(
        self, request: Request, lane: Lane, begin: Callable[[bytes], Job]
    ) -> Response:
        try:
            self._check_size(int(request.headers.get("content-length", "0")))
            async with asyncio.timeout(_BODY_SECONDS):
                body = await self._body(request)
            async with self._bodies:  # whoever is silent has none of them
                graph = await self._while_here(request, lane, begin(body))
        except OverLimit as refusal:
            return refused(refusal, 413)
        except Refusal as refusal:
            return refused(refusal, 400)
        except TimeoutError:
            message = f"the file did not arrive within {_BODY_SECONDS} seconds; send it again"
            return refused(Invalid("REQUEST_INVALID", message), 408)
        except ClientDisconnect:
            return Response()  # nobody is there to read it
        except Exception:
            log.exception("fault")
            return refused(Invalid("INTERNAL", "the server failed; its log says why"), 500)
        return Response(graph, 200, {"Cache-Control": "no-store"}, "application/x-protobuf")

    async def _body(self, request: Request) -> bytes:
        body = bytearray()
        async for chunk in request.stream():
            self._check_size(len(body) + len(chunk))
            body += chunk
        return bytes(body)

    def _check_size(self, size: int) -> None:
        if size > self._limits.max_message_bytes:
            limit = self._limits.max_message_bytes
            what = "bytes of the file"
            raise OverLimit.of("max-message-bytes", limit, size, what, "open a smaller one")

    async def _while_here(self, request: Request, lane: Lane, job: Job) -> bytes:
        """The graph that a job reads; nobody reads for a client that has left."""
        result = asyncio.ensure_future(_on_thread(lane, lambda: self._checked(job.result())))
        left = asyncio.ensure_future(_left(request))
        try:
            await asyncio.wait({result, left}, return_when=asyncio.FIRST_COMPLETED)
            if result.done():
                return result.result()
            raise ClientDisconnect
        finally:
            left.cancel()
            if not result.done():
                result.cancel()
                job.cancel()

    def _checked(self, graph: bytes) -> bytes:
        decode_graph(graph, self._limits)
        return graph


async def _left(request: Request) -> None:
    """Until the client has closed the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _on_thread(lane: Lane, work: Callable[[], bytes]) -> bytes:
    loop = asyncio.get_running_loop()
    found: asyncio.Future[bytes] = loop.create_future()

    def settle(result: bytes | None, failure: BaseException | None) -> None:
        if found.cancelled():
            return
        if failure is not None:
            found.set_exception(failure)
        else:
            found.set_result(result or b"")

    def run() -> None:
        result, failure = None, None
        try:
            result = work()
        except Exception as error:
            failure = error
        with suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(settle, result, failure)

    lane.submit(run)
    return await found


def _text(body: bytes) -> str:
    try:
        return body.decode()
    except UnicodeDecodeError as failure:
        message = f"byte {failure.start}: is not UTF-8"
        raise Invalid("REQUEST_INVALID", message) from None
