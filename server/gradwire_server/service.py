"""The gRPC service: one event loop that never computes, and a pool that does.

A request is decoded, planned and run on the pool, block after block; between blocks the loop
sends what is done. When the caller leaves, the loop sets the evaluation's flag, and the pool stops
within the block.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from threading import Event
from time import monotonic
from typing import Any, NoReturn, TypeVar
from uuid import uuid4

import grpc
import numpy as np
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from gradwire.v1 import service_pb2 as pb
from gradwire.v1 import service_pb2_grpc
from gradwire.version import __version__
from gradwire_server import codec
from gradwire_server.catalogue import describe
from gradwire_server.engine import evaluation as evaluate
from gradwire_server.engine.symbolic import gradient_graph
from gradwire_server.errors import Invalid, OverLimit, Refusal, Stopped
from gradwire_server.gates import GATES
from gradwire_server.limits import Limits
from gradwire_server.session import Session as OpenSession

T = TypeVar("T")

#: Trailing metadata above about 8 KB is dropped whole by HTTP/2 peers.
_MESSAGE_CHARACTERS = 1500
_FACT_CHARACTERS = 200
_FACTS = 8

log = logging.getLogger("gradwire")


class GradientService(service_pb2_grpc.GradientServiceServicer):
    """gradwire.v1.GradientService over this package's engine."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._pool = ThreadPoolExecutor(limits.max_evaluations, "gradwire-compute")
        self._sessions = 0
        self._waiting = 0

    def close(self) -> None:
        """Stops taking work; what runs, ends at its next block."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def EvaluateStream(  # noqa: N802
        self, request: pb.EvaluateStreamRequest, context: Any
    ) -> AsyncIterator[pb.EvaluateStreamResponse]:
        async with self._answering("EvaluateStream", context) as stop:
            events = self._stream(request)
            while (batch := await self._compute(stop, next, events, None)) is not None:
                for event in batch:
                    yield event

    async def Evaluate(self, request: pb.EvaluateRequest, context: Any) -> pb.EvaluateResponse:  # noqa: N802
        async with self._answering("Evaluate", context) as stop:
            result = await self._compute(stop, self._evaluate, request, stop)
        return pb.EvaluateResponse(result=result)

    async def Session(  # noqa: N802
        self, requests: AsyncIterator[pb.SessionRequest], context: Any
    ) -> AsyncIterator[pb.SessionResponse]:
        async with self._answering("Session", context) as stop, self._session_slot():
            session: OpenSession | None = None
            while (request := await self._next_request(requests)) is not None:
                if session is None:
                    if request.WhichOneof("action") != "open":
                        raise Invalid("REQUEST_INVALID", "the first message of a session is open")
                    session = await self._compute(stop, self._open, request.open)
                    started = pb.Started(value_count=session.graph.value_count)
                    yield pb.SessionResponse(request_id=request.request_id, started=started)
                    continue
                yield await self._compute(stop, self._answer, session, request, stop)

    async def DifferentiateGraph(  # noqa: N802
        self, request: pb.DifferentiateGraphRequest, context: Any
    ) -> pb.DifferentiateGraphResponse:
        async with self._answering("DifferentiateGraph", context) as stop:
            data = await self._compute(stop, self._differentiate, request, stop)
        return pb.DifferentiateGraphResponse(graph=data)

    async def DescribeServer(  # noqa: N802
        self, request: pb.DescribeServerRequest, context: Any
    ) -> pb.DescribeServerResponse:
        gates = [describe(GATES[operator]) for operator in sorted(GATES)]
        return codec.encode_description(__version__, self._limits.describe(), gates)

    def _stream(
        self, request: pb.EvaluateStreamRequest
    ) -> Iterator[list[pb.EvaluateStreamResponse]]:
        """The events of a streamed evaluation, in batches, each after one block of computing."""
        graph = codec.decode_source(request.graph, self._limits)
        wanted = codec.decode_evaluation(request.evaluation)
        if not request.evaluation.HasField("values") and not request.evaluation.HasField(
            "gradients"
        ):
            wanted = evaluate.everything(wanted)
        job = evaluate.prepare(graph, wanted, self._limits)
        yield [pb.EvaluateStreamResponse(started=pb.Started(value_count=graph.value_count))]
        sent = [0, 0]
        values = evaluate.leaf_values(job.plan, job.point)
        for slabs in evaluate.run_forward(job.plan, job.choice, values):
            yield [
                pb.EvaluateStreamResponse(node_values=column)
                for column in codec.encode_columns(_counted(slabs, sent, 0))
            ]
        gradients: list[tuple[str, Any]] = []
        if not wanted.forward_only:
            grads = evaluate.seeded(values, job.seeds)
            for slabs in evaluate.run_backward(job.plan, job.choice, values, grads):
                yield [
                    pb.EvaluateStreamResponse(node_gradients=column)
                    for column in codec.encode_columns(_counted(slabs, sent, 1))
                ]
            gradients = list(evaluate.leaf_gradients(job.plan, job.choice, grads))
        result = codec.encode_result(evaluate.outputs(job.plan, values), gradients)
        finished = pb.Finished(result=result, values_sent=sent[0], gradients_sent=sent[1])
        yield [pb.EvaluateStreamResponse(finished=finished)]

    def _evaluate(self, request: pb.EvaluateRequest, stop: Event) -> pb.Result:
        graph = codec.decode_source(request.graph, self._limits)
        wanted = codec.decode_evaluation(request.evaluation)
        job = evaluate.prepare(graph, wanted, self._limits)
        return codec.encode_result(*evaluate.run(job, stop.is_set))

    def _open(self, request: pb.Open) -> OpenSession:
        graph = codec.decode_source(request.graph, self._limits)
        return OpenSession(graph, codec.decode_evaluation(request.evaluation), self._limits)

    def _answer(
        self, session: OpenSession, request: pb.SessionRequest, stop: Event
    ) -> pb.SessionResponse:
        """The answer to one request of an open session; a refusal is an answer too."""
        response = pb.SessionResponse(request_id=request.request_id)
        try:
            match request.WhichOneof("action"):
                case "step":
                    bindings = codec.decode_bindings(request.step.bindings)
                    found = session.step(bindings, request.step.forward_only, stop.is_set)
                case "backward":
                    found = session.backward(
                        codec.decode_seeds(request.backward.seeds), stop.is_set
                    )
                case "open":
                    raise Invalid("REQUEST_INVALID", "the session is open already")
                case _:
                    raise Invalid("REQUEST_INVALID", "the request has no action")
            response.result.CopyFrom(codec.encode_result(*found))
        except Refusal as refusal:
            code = code_pb2.Code.Value(refusal.status)
            response.error.CopyFrom(codec.encode_error(refusal, code))
        return response

    def _differentiate(self, request: pb.DifferentiateGraphRequest, stop: Event) -> bytes:
        graph = codec.decode_source(request.graph, self._limits)
        sizes = {each.symbol: each.size for each in request.symbol_sizes}
        found = gradient_graph(
            graph, tuple(request.with_respect_to), sizes, self._limits, stop.is_set
        )
        return codec.encode_graph(found, f"gradwire {__version__}")

    async def _compute(self, stop: Event, work: Callable[..., T], *arguments: Any) -> T:
        """Runs work on the pool; at most max_waiting calls queue for it (LIMIT_EXCEEDED)."""
        limit = self._limits.max_evaluations + self._limits.max_waiting
        if self._waiting >= limit:
            waiting = self._waiting + 1 - self._limits.max_evaluations
            raise OverLimit.of(
                "max-waiting", self._limits.max_waiting, waiting, "evaluations waiting"
            )
        self._waiting += 1

        def quiet() -> T:
            if stop.is_set():
                raise Stopped
            with np.errstate(all="ignore"):  # NaN and infinity are values, not errors
                return work(*arguments)

        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, quiet)
        finally:
            self._waiting -= 1

    async def _next_request(
        self, requests: AsyncIterator[pb.SessionRequest]
    ) -> pb.SessionRequest | None:
        idle = self._limits.session_idle_seconds
        upcoming: Awaitable[pb.SessionRequest | None] = anext(requests, None)
        try:
            return await asyncio.wait_for(upcoming, idle)
        except TimeoutError:
            raise OverLimit.of(
                "session-idle-seconds", idle, idle, "seconds without a request"
            ) from None

    @asynccontextmanager
    async def _session_slot(self) -> AsyncIterator[None]:
        limit = self._limits.max_sessions
        if self._sessions >= limit:
            raise OverLimit.of("max-sessions", limit, self._sessions + 1, "open sessions")
        self._sessions += 1
        try:
            yield
        finally:
            self._sessions -= 1

    @asynccontextmanager
    async def _answering(self, method: str, context: Any) -> AsyncIterator[Event]:
        """Turns what happens to a call into its status, and into one line of the log."""
        request_id = uuid4().hex
        began = monotonic()
        peer = context.peer()  # now: grpcio crashes where it is asked after the client has gone
        outcome = "CANCELLED"
        stop = Event()
        try:
            yield stop
            outcome = "OK"
        except Refusal as refusal:
            outcome = refusal.reason
            await _abort(context, refusal)
        except (asyncio.CancelledError, GeneratorExit, Stopped, grpc.aio.AbortError):
            raise
        except Exception:
            outcome = "INTERNAL"
            log.exception("fault", extra={"request_id": request_id, "method": method})
            await context.abort(
                grpc.StatusCode.INTERNAL,
                f"the server failed; its log has the details under request {request_id}",
            )
        finally:
            stop.set()
            log.info(
                "call",
                extra={
                    "request_id": request_id,
                    "method": method,
                    "outcome": outcome,
                    "peer": peer,
                    "milliseconds": round(1000 * (monotonic() - began), 2),
                },
            )


def _counted(slabs: Iterator[Any], sent: list[int], kind: int) -> Iterator[Any]:
    for slab in slabs:
        sent[kind] += len(slab.ids)
        yield slab


async def _abort(context: Any, refusal: Refusal) -> NoReturn:
    """Ends a call with google.rpc.Status, small enough to arrive."""
    message = _shortened(refusal.message, _MESSAGE_CHARACTERS)
    facts = {key: _shortened(fact, _FACT_CHARACTERS) for key, fact in refusal.facts.items()}
    details = [
        error_details_pb2.ErrorInfo(
            reason=refusal.reason, domain="gradwire", metadata=dict([*facts.items()][:_FACTS])
        )
    ]
    if refusal.status == "INVALID_ARGUMENT":
        field, _, description = message.partition(": ")
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=field if description else "", description=description or message
        )
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    packed = []
    for detail in details:
        packed.append(any_pb2.Any())
        packed[-1].Pack(detail)
    code = code_pb2.Code.Value(refusal.status)
    status = status_pb2.Status(code=code, message=message, details=packed)
    await context.abort_with_status(rpc_status.to_status(status))
    raise AssertionError("abort raises")


def _shortened(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 3] + "..."
