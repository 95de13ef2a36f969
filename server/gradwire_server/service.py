"""The gRPC service: a thread for every call whose message is here, and few of them computing.

A call's own thread decodes, plans, computes and answers: handing work to another thread costs as
much as a small evaluation. Calls over a limit are refused before they get a thread, and when the
caller leaves, or its deadline passes, the work stops within a block.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain, count
from time import monotonic
from typing import Any, NamedTuple, NoReturn

import grpc
import numpy as np
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from gradwire.holes import request_id_of
from gradwire.payloads import LIFTED_BYTES
from gradwire.v1 import service_pb2 as pb
from gradwire.version import __version__
from gradwire_server.allocator import returns_freed_memory
from gradwire_server.arrivals import Arrivals, Arriving
from gradwire_server.cache import Entry, GraphCache
from gradwire_server.catalogue import describe
from gradwire_server.codec.answers import (
    COLUMN_BYTES,
    encode_answer,
    encode_description,
    encode_error,
    encode_events,
    encode_finished,
    encode_outcome,
    encode_outcomes,
    encode_response,
    encode_started,
)
from gradwire_server.codec.graphs import decode_graph, encode_graph
from gradwire_server.codec.requests import (
    M,
    decode_bindings,
    decode_evaluation,
    decode_request,
    decode_seeds,
    find_bound,
    graph_of,
    packed_head,
    results_sink,
    sent_as,
)
from gradwire_server.codec.tensors import Payloads
from gradwire_server.engine import evaluation as engine
from gradwire_server.engine import kernels
from gradwire_server.engine.runs import Found, Run, Slab
from gradwire_server.engine.symbolic import gradient_graph
from gradwire_server.errors import Invalid, OverLimit, Refusal, Stopped, within
from gradwire_server.gates import GATES
from gradwire_server.held import (
    IDLE_SECONDS,
    SMALL_BYTES,
    UNHELD,
    Held,
    Holding,
    NeedsRoom,
    held_nbytes,
)
from gradwire_server.held import LIMIT as HELD
from gradwire_server.limits import Limits
from gradwire_server.saved import SavedGraphs
from gradwire_server.segments import Segments, Sink
from gradwire_server.session import Session as OpenSession
from gradwire_server.silence import Silence, SilenceWatch
from gradwire_server.stopping import asked
from gradwire_server.store import Store
from gradwire_server.store.base import PIECE_BYTES
from gradwire_server.threads import Lane, Turns, ahead

SERVICE = pb.DESCRIPTOR.services_by_name["GradientService"].full_name

#: Trailing metadata above about 8 KB is dropped whole by HTTP/2 peers.
_MESSAGE_CHARACTERS = 1500
_FACT_CHARACTERS = 200
_FACTS = 8

#: Threads that refuse.
_LIGHT_THREADS = 4
#: Threads that describe the server, which takes a few milliseconds.
_DESCRIBE_THREADS = 4

#: A streamed evaluation that takes longer is worth a second thread.
_LONG_SECONDS = 0.005
_MESSAGES_AHEAD = 8

#: Of the messages of a stream, made and not sent yet.
_STREAM_BYTES = (_MESSAGES_AHEAD + 3) * COLUMN_BYTES
_GET_BYTES = 3 * PIECE_BYTES

log = logging.getLogger("gradwire")

#: Ends a call from another thread than its own.
End = Callable[[Refusal], None]


class _Method(NamedTuple):
    handler: Any  # an RpcMethodHandler
    refusal: Any  # the same where the lane is full
    lane: Lane


class GradientService(grpc.GenericRpcHandler):
    """gradwire.v1.GradientService over this package's engine."""

    def __init__(
        self, limits: Limits, segments: Segments | None = None, store: Store | None = None
    ) -> None:
        self._limits = limits
        self._segments = segments
        self._turns = Turns(limits.max_evaluations, limits.max_waiting)
        self.held = Held(limits.max_held_bytes, freed=returns_freed_memory.freed)
        self._cache = GraphCache(limits.max_cache_bytes, lambda data: decode_graph(data, limits))
        self._saved = SavedGraphs(store, self._cache, self._turns, limits)
        self.silence = SilenceWatch(limits.session_idle_seconds)
        self._run = os.urandom(8).hex()
        self._calls = count(1)
        self.light = Lane("gradwire-light", _LIGHT_THREADS)
        self.arrivals = Arrivals(limits.max_silent, limits.first_message_seconds, status_of)
        self._ahead = Lane("gradwire-ahead", limits.max_streams)
        self._methods = self._described_methods()

    def service(self, handler_call_details: Any) -> Any:
        """The handler of a call; one that refuses, where the method's lane is full."""
        path: str = handler_call_details.method
        method = self._methods.get(path)
        if method is None:
            return None
        if method.lane.full:
            self.held.end_latest(method.lane)
            return method.refusal
        return method.handler

    def close(self) -> None:
        """Lets the threads end; what runs, ends at its next block."""
        self.silence.close()
        self.arrivals.close()
        for lane in {self.light, self._ahead, *(method.lane for method in self._methods.values())}:
            lane.shutdown()

    def _described_methods(self) -> dict[str, _Method]:
        limits = self._limits
        calls = Lane("gradwire-call", limits.max_evaluations + limits.max_waiting)
        streams = self._streams = Lane("gradwire-stream", limits.max_streams)
        sessions = Lane("gradwire-session", limits.max_sessions)
        # lanes of their own: uploads that send nothing keep nobody from fetching
        uploads = Lane("gradwire-upload", limits.max_transfers)
        downloads = self._downloads = Lane("gradwire-download", limits.max_transfers)
        descriptions = Lane("gradwire-describe", _DESCRIBE_THREADS)
        unary, stream = grpc.unary_unary_rpc_method_handler, grpc.unary_stream_rpc_method_handler
        waiting = "max-waiting", limits.max_waiting, "calls waiting"
        transfers = "max-transfers", limits.max_transfers
        answers = {
            "Evaluate": self.evaluate,
            "DifferentiateGraph": _at_once(self._differentiate),
            "SaveGraph": _at_once(self._saved.save),
            "ListGraphs": _at_once(self._saved.page),
            "DeleteGraph": _at_once(self._saved.delete),
        }
        both = grpc.stream_stream_rpc_method_handler
        found = {
            **{
                name: self._method(name, unary, self._unary(name, answer), calls, *waiting)
                for name, answer in answers.items()
            },
            "EvaluateStream": self._method(
                "EvaluateStream", stream, self._evaluate_stream, streams,
                "max-streams", limits.max_streams, "open streams",
            ),
            "Session": self._method(
                "Session", both, sending(self._session), sessions,
                "max-sessions", limits.max_sessions, "open sessions",
            ),
            "UploadGraph": self._method(  # on the wire as a client's stream with one answer
                "UploadGraph", both, sending(self._upload), uploads, *transfers, "open uploads"
            ),
            "GetGraph": self._method(
                "GetGraph", stream, self._get, downloads, *transfers, "open downloads"
            ),
            "DescribeServer": self._method(
                "DescribeServer", unary, self._unary("DescribeServer", _at_once(self._describe)),
                descriptions, "", _DESCRIBE_THREADS, "descriptions of the server",
            ),
        }  # fmt: skip
        return {f"/{SERVICE}/{name}": method for name, method in found.items()}

    def _method(
        self,
        name: str,
        handler: Callable[[Any], Any],
        behavior: Callable[..., Any],
        lane: Lane,
        limit: str,
        most: int,
        what: str,
    ) -> _Method:
        """A method whose calls get a thread of a lane once their message is here."""
        refuse = self._refuse(name, limit, most, what)
        made = handler(behavior)
        threads = Arriving(
            self.arrivals, lane, (refuse, self.light), streams=made.request_streaming
        )
        # a call that is refused at once need not send its message
        refusal: Any = grpc.stream_stream_rpc_method_handler(on_lane(self.light, refuse))
        return _Method(handler(on_lane(threads, behavior)), refusal, lane)

    def _refuse(
        self, name: str, limit: str, most: int, what: str
    ) -> Callable[[Any, Any], NoReturn]:
        """The behaviour of a method whose lane is full."""

        def refuse(_: Any, context: Any) -> NoReturn:
            with self._answering(name, context):
                if not limit:
                    raise OverLimit(
                        "LIMIT_EXCEEDED",
                        f"{what}: {most} are under way already; ask again later",
                        value=most,
                    )
                raise OverLimit.of(limit, most, most + 1, what)

        return refuse

    def _unary(
        self, name: str, answer: Callable[[bytes, Callable[[], bool], Holding], bytes]
    ) -> Callable[[bytes, Any], bytes]:
        def handle(data: bytes, context: Any) -> bytes:
            # asked from here on: it may be late already, or become so while it waits for its turn
            with self._answering(name, context) as stopped, asked(stopped):
                holding = self.held.holding(context.cancel)
                try:
                    found = answer(data, stopped, holding)
                    holding.resize(held_nbytes(len(found)))
                    holding.offer(len(found))
                    if context.add_callback(holding.close):  # once it is sent, or nobody is there
                        return found
                    raise Stopped
                except BaseException:
                    holding.close()
                    raise

        return handle

    def evaluate(
        self, data: bytes, stopped: Callable[[], bool], holding: Holding = UNHELD
    ) -> bytes:
        """One EvaluateRequest, serialized, to one EvaluateResponse (Refusal, Stopped)."""
        job = self._cache.pour(data)
        if job is None:
            return self._evaluate(data, stopped, holding)
        try:
            holding.take(held_nbytes(job.choice.nbytes), stopped)
            with self._turns, asked(stopped):
                return encode_response(_complete(job, stopped))
        except Refusal as refusal:
            raise sent_as(refusal, "graph") from None  # a request with a mould holds its graph

    def _evaluate(self, data: bytes, stopped: Callable[[], bool], holding: Holding) -> bytes:
        request, payloads = self._decoded(pb.EvaluateRequest, data)
        while True:
            try:
                return self._evaluated(data, request, payloads, stopped, holding)
            except NeedsRoom as needed:  # who waits for it keeps no turn
                holding.take(needed.nbytes, stopped)

    def _evaluated(
        self,
        data: bytes,
        request: pb.EvaluateRequest,
        payloads: Payloads,
        stopped: Callable[[], bool],
        holding: Holding,
    ) -> bytes:
        sink = results_sink(request, self._segments)
        with graph_of(request.graph), self._turns, asked(stopped):
            entry = self._saved.entry(request.graph, payloads, stopped)
            wanted = decode_evaluation(request.evaluation, payloads)
            packed = wanted.packed is not None
            job = entry.again(wanted)
            if job is None:
                job = self._prepared(entry, wanted)
            elif (
                sink is None
                and not packed
                and request.graph.HasField("graph")
                and entry.wants_mould(job, data)
            ):
                self._cast(entry, job, data, wanted)
            holding.take_now(held_nbytes(job.choice.nbytes))
            return encode_response(_complete(job, stopped), sink, packed=packed)

    def _cast(self, entry: Entry, job: engine.Job, data: bytes, wanted: engine.Evaluation) -> None:
        """The next request like this one need not be parsed."""
        holes = find_bound(
            data, pb.EvaluateRequest, lambda each: each.evaluation.bindings, wanted.bindings
        )
        self._cache.cast(entry, job, data, holes)

    def _decoded(self, kind: type[M], data: bytes) -> tuple[M, Payloads]:
        return decode_request(kind, data, self._segments, self._limits.max_message_bytes)

    def _evaluate_stream(self, data: bytes, context: Any) -> Iterator[bytes]:
        with (
            self._answering("EvaluateStream", context) as stopped,
            self.held.holding(context.cancel, self._streams) as holding,
        ):
            request, payloads = self._decoded(pb.EvaluateStreamRequest, data)
            sink = results_sink(request, self._segments)
            with graph_of(request.graph):
                entry, job = self._streamed(request, payloads, stopped)
                choice = job.choice
                answer_nbytes = held_nbytes(choice.named_nbytes)
                total = choice.lifetimes.total_nbytes + answer_nbytes + _STREAM_BYTES
                holding.take(total, stopped)
                batches = self._batches(self._events(entry, job, sink), stopped)
                began = monotonic()
                for batch in batches:
                    yield from _offered(batch, holding)
                    if monotonic() - began > _LONG_SECONDS:
                        break
                # a longer one computes its next block while the last is sent
                messages = chain.from_iterable(batches)
                yield from _offered(ahead(messages, self._ahead, _MESSAGES_AHEAD), holding)

    def _streamed(
        self, request: pb.EvaluateStreamRequest, payloads: Payloads, stopped: Callable[[], bool]
    ) -> tuple[Entry, engine.Job]:
        """The graph of a streamed evaluation, and all that can be refused of it."""
        with self._turns, asked(stopped), np.errstate(all="ignore"):
            entry = self._saved.entry(request.graph, payloads, stopped)
            wanted = decode_evaluation(request.evaluation, payloads)
            chosen = request.evaluation.HasField("values"), request.evaluation.HasField("gradients")
            if not any(chosen):
                wanted = engine.everything(wanted)
            return entry, entry.again(wanted) or self._prepared(entry, wanted)

    def _batches(
        self, events: Iterator[Iterable[bytes]], stopped: Callable[[], bool]
    ) -> Iterator[Iterable[bytes]]:
        while (batch := self._next(events, stopped)) is not None:
            yield batch
            if stopped():
                raise Stopped

    def _next(
        self, events: Iterator[Iterable[bytes]], stopped: Callable[[], bool]
    ) -> Iterable[bytes] | None:
        """One block of computing; a slow reader keeps no turn."""
        # NaN and infinity are values, not errors
        with self._turns, asked(stopped), np.errstate(all="ignore"):
            return next(events, None)

    def _events(
        self, entry: Entry, job: engine.Job, sink: Sink | None
    ) -> Iterator[Iterable[bytes]]:
        """The events of a streamed evaluation, in batches, each after one block of computing.

        Elements are copied as messages are made, a few ahead of the reader: a slow one holds no
        second copy of them all.
        """
        started = encode_started(entry.graph)
        yield [pb.EvaluateStreamResponse(started=started).SerializeToString()]
        choice = job.choice
        run, sent = Run(job), [0, 0]
        for slabs in run.forward():
            sent[0] += _count(slabs)
            yield _encoded("node_values", slabs, choice.values_as_summary)
        gradients: list[tuple[str, Any]] = []
        if not job.forward_only:
            for slabs in run.backward(job.seeds):
                sent[1] += _count(slabs)
                yield _encoded("node_gradients", slabs, choice.gradients_as_summary)
            gradients = run.gradients()
        packed = job.packing is not None
        yield [encode_finished(run.outputs(), gradients, sent, sink, packed=packed)]

    def _session(self, requests: Iterator[bytes], context: Any, end: End) -> Iterator[bytes]:
        """Answers one session, which the watch over silence may end."""
        with (
            self._answering("Session", context) as stopped,
            self.silence.over(end) as silence,
            self.held.holding(lambda: self._make_room(silence, context)) as holding,
        ):
            yield from self._converse(requests, stopped, silence, holding)

    def _make_room(self, silence: Silence, context: Any) -> None:
        """Ends a session whose room others need: with a sentence, where its client waits."""
        refusal = OverLimit.because(
            f"no request came for {int(IDLE_SECONDS)} seconds, and others need the memory that "
            "this session keeps, so the server ended it; open another one, or start the server "
            f"with a larger --{HELD}",
            HELD, self._limits.max_held_bytes, self.held.nbytes,
        )  # fmt: skip
        if not silence.end(refusal):
            context.cancel()

    def _converse(
        self,
        requests: Iterator[bytes],
        stopped: Callable[[], bool],
        silence: Silence,
        holding: Holding,
    ) -> Iterator[bytes]:
        session: OpenSession | None = None
        for data in heard(requests, silence, holding):
            if session is not None and (known := self._poured(session, data, stopped)) is not None:
                yield from _offered([known], holding)
                continue
            request, payloads = self._decoded(pb.SessionRequest, data)
            with self._turns, asked(stopped):
                if session is not None:
                    answer = self._answer(session, request, payloads, stopped, data, holding)
                elif request.WhichOneof("action") == "open":
                    session = self._open(request.open, payloads, stopped, holding)
                    started = encode_started(session.graph)
                    answer = pb.SessionResponse(
                        request_id=request.request_id, started=started
                    ).SerializeToString()
                else:
                    raise Invalid("REQUEST_INVALID", "the first message of a session is open")
            yield from _offered([answer], holding)

    def _poured(
        self, session: OpenSession, data: bytes, stopped: Callable[[], bool]
    ) -> bytes | None:
        """The answer to a step like those before."""
        if len(data) >= LIFTED_BYTES:  # which no mould has
            return None
        request_id, start = request_id_of(data)
        job = session.pour(data[start:])
        if job is None:
            return None
        with self._turns, asked(stopped):
            try:
                found = session.advance(job, stopped)
                return encode_answer(request_id, found, packed=job.packing is not None)
            except Refusal as refusal:
                return _refused(request_id, refusal)

    def _open(
        self,
        request: pb.Open,
        payloads: Payloads,
        stopped: Callable[[], bool],
        holding: Holding,
    ) -> OpenSession:
        with within("open"), graph_of(request.graph):
            entry = self._saved.entry(request.graph, payloads, stopped)
            wanted = decode_evaluation(request.evaluation, payloads)

            def hold(evaluation_nbytes: int, answer_nbytes: int) -> None:
                holding.grow(evaluation_nbytes + held_nbytes(answer_nbytes))

            return OpenSession(entry.graph, wanted, self._limits, entry.job, hold)

    def _answer(
        self,
        session: OpenSession,
        request: pb.SessionRequest,
        payloads: Payloads,
        stopped: Callable[[], bool],
        data: bytes,
        holding: Holding,
    ) -> bytes:
        """The answer to one request of an open session; a refusal is an answer too."""

        def step(message: pb.Step) -> Found:
            bindings = decode_bindings(message.bindings, payloads)
            packed = None
            if message.HasField("packed"):
                packed = bytes(payloads.found(message.packed))
            return session.step(bindings, message.forward_only, stopped, packed)

        try:
            sink, packed = results_sink(request, self._segments), False
            match request.WhichOneof("action"):
                case "step":
                    found, packed = step(request.step), request.step.HasField("packed")
                    if sink is None and len(data) < LIFTED_BYTES:
                        _learn_step(session, data, request.step, payloads)
                case "steps":
                    outcomes = self._outcomes(request.steps.steps, step, sink, holding)
                    return encode_outcomes(request.request_id, outcomes)
                case "backward":
                    seeds = decode_seeds(request.backward.seeds, payloads)
                    found = session.backward(seeds, stopped)
                case "open":
                    raise Invalid("REQUEST_INVALID", "the session is open already")
                case _:
                    raise Invalid("REQUEST_INVALID", "the request has no action")
            return encode_answer(request.request_id, found, sink, packed=packed)
        except Refusal as refusal:
            return _refused(request.request_id, refusal)

    def _outcomes(
        self,
        steps: Sequence[pb.Step],
        run: Callable[[pb.Step], Found],
        sink: Sink | None,
        holding: Holding,
    ) -> list[bytes]:
        """What became of each step; once the results are too large, the rest is refused."""
        if not steps:
            raise Invalid("REQUEST_INVALID", "steps holds no step")
        limit, held, kept = self._limits.max_memory_bytes, 0, holding.nbytes
        outcomes = []
        for message in steps:
            found: Found | Refusal
            try:
                if held > limit:
                    advice = "send fewer steps in one message"
                    what = "bytes of the results before this one"
                    raise OverLimit.of("max-memory-bytes", limit, held, what, advice)
                holding.grow(kept + held_nbytes(held))
                found = run(message)
            except Refusal as refusal:
                found = refusal
            outcomes.append(encode_outcome(found, sink, packed=message.HasField("packed")))
            held += len(outcomes[-1])
        return outcomes

    def _differentiate(self, data: bytes, stopped: Callable[[], bool]) -> bytes:
        request, payloads = self._decoded(pb.DifferentiateGraphRequest, data)
        sizes = {each.symbol: each.size for each in request.symbol_sizes}
        with graph_of(request.graph), self._turns, asked(stopped), np.errstate(all="ignore"):
            graph = self._saved.entry(request.graph, payloads, stopped).graph
            found = gradient_graph(
                graph, tuple(request.with_respect_to), sizes, self._limits, stopped
            )
            made = encode_graph(found, f"gradwire {__version__}")
        return pb.DifferentiateGraphResponse(graph=made).SerializeToString()

    def _describe(self, data: bytes, stopped: Callable[[], bool]) -> bytes:
        gates = [describe(GATES[operator]) for operator in sorted(GATES)]
        found = encode_description(
            __version__,
            self._limits.describe(),
            gates,
            self._segments,
            self._saved.kind,
            kernels.level(),
        )
        return found.SerializeToString()

    def _upload(self, requests: Iterator[bytes], context: Any, end: End) -> Iterator[bytes]:
        """Receives one graph; the watch over silence may end it, as a session."""
        with (
            self._answering("UploadGraph", context) as stopped,
            self.silence.over(end) as silence,
        ):
            try:
                answer = self._saved.upload(heard(requests, silence), stopped)
            except Stopped:
                if silence.ended:
                    return  # the watch has said why
                raise
            if not silence.ended:
                yield answer

    def _get(self, data: bytes, context: Any) -> Iterator[bytes]:
        with (
            self._answering("GetGraph", context) as stopped,
            self.held.holding(context.cancel, self._downloads) as holding,
        ):
            holding.take(_GET_BYTES, stopped)
            yield from _offered(self._saved.get(data, stopped), holding)

    def _prepared(self, entry: Entry, wanted: engine.Evaluation) -> engine.Job:
        job = engine.prepare(entry.graph, wanted, self._limits, entry.job)
        entry.keep(job, wanted)
        return job

    @contextmanager
    def _answering(self, method: str, context: Any) -> Iterator[Callable[[], bool]]:
        """Turns what happens to a call into its status, and into one line of the log."""
        number = next(self._calls)
        began = monotonic()
        outcome = "CANCELLED"
        logged = log.isEnabledFor(logging.INFO)
        peer = context.peer() if logged else ""  # now: the client may have gone later
        ends = began + context.time_remaining()

        def stopped() -> bool:
            # grpc tells of a deadline when its own thread gets to it, behind all other calls
            return not context.is_active() or monotonic() > ends

        try:
            yield stopped
            outcome = "OK"
        except Refusal as refusal:
            outcome = refusal.reason
            context.abort_with_status(status_of(refusal))
        except Stopped:
            if monotonic() > ends:
                context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "the call's deadline passed")
            context.abort(grpc.StatusCode.CANCELLED, "the client cancelled the call")
        except (grpc.RpcError, GeneratorExit):
            raise
        except MemoryError:
            outcome = "LIMIT_EXCEEDED"
            log.error("the system has no memory left for a call")
            message = (
                "the system that the server runs on has no memory left for this call; ask again "
                "later, or for fewer values and gradients, or for fewer rows at once"
            )
            context.abort_with_status(status_of(OverLimit("LIMIT_EXCEEDED", message)))
        except Exception:
            outcome = "INTERNAL"
            request_id = f"{self._run}-{number}"
            log.exception("fault", extra={"request_id": request_id, "method": method})
            context.abort(
                grpc.StatusCode.INTERNAL,
                f"the server failed; its log has the details under request {request_id}",
            )
        finally:
            if logged:
                log.info(
                    "call",
                    extra={
                        "request_id": f"{self._run}-{number}",
                        "method": method,
                        "outcome": outcome,
                        "peer": peer,
                        "milliseconds": round(1000 * (monotonic() - began), 2),
                    },
                )


def on_lane(lane: ThreadPoolExecutor, behavior: Callable[..., Any]) -> Callable[..., Any]:
    """A behaviour that grpc runs on these threads: a mark of grpc's own."""

    def marked(*arguments: Any) -> Any:
        return behavior(*arguments)

    marked.experimental_thread_pool = lane  # type: ignore[attr-defined]
    # and one that it may have already: its answers are sent by a function, and not yielded
    sends = getattr(behavior, "experimental_non_blocking", False)
    marked.experimental_non_blocking = sends  # type: ignore[attr-defined]
    return marked


def sending(converse: Callable[[Any, Any, End], Iterator[Any]]) -> Callable[..., Any]:
    """A behaviour that sends what it yields by a function, so that another thread can end the call.

    The mark is grpc's own (its health service has it). Interceptors know no such behaviour: without
    the function it yields its answers, and its end says less.
    """

    def behavior(requests: Any, context: Any, send: Callable[[Any], None] | None = None) -> Any:
        if send is None:
            return converse(requests, context, lambda _: context.cancel())
        ended = []

        def end(refusal: Refusal) -> None:
            ended.append(refusal)
            _end(context, send, refusal)

        for answer in converse(requests, context, end):
            send(answer)
        if not ended:
            send(None)
        return None

    behavior.experimental_non_blocking = True  # type: ignore[attr-defined]
    return behavior


def heard(
    requests: Iterator[bytes], silence: Silence, holding: Holding = UNHELD
) -> Iterator[bytes]:
    """The messages of a client, as long as none comes too late."""
    while True:
        silence.begins()
        holding.idle()
        data = next(requests, None)
        holding.go_on()
        if not silence.breaks() or data is None:
            return
        yield data


def _end(context: Any, send: Callable[[Any], None], refusal: Refusal) -> None:
    """Ends a call from another thread than its own."""
    status = status_of(refusal)
    context.set_code(status.code)
    context.set_details(status.details)
    context.set_trailing_metadata(status.trailing_metadata)
    send(None)


def _learn_step(session: OpenSession, data: bytes, step: pb.Step, payloads: Payloads) -> None:
    """The next step like this one need not be parsed."""
    _, start = request_id_of(data)
    rest = data[start:]
    if step.HasField("packed"):
        session.expect_packed(packed_head(rest, step))
    if not session.wants_mould:
        return

    def bindings_in(message: pb.SessionRequest) -> Sequence[pb.Binding]:
        return () if message.request_id else message.step.bindings  # an id that comes later

    bound = decode_bindings(step.bindings, payloads)
    session.cast(rest, find_bound(rest, pb.SessionRequest, bindings_in, bound))


def _refused(request_id: int, refusal: Refusal) -> bytes:
    error = encode_error(refusal)
    return pb.SessionResponse(request_id=request_id, error=error).SerializeToString()


def _complete(job: engine.Job, stopped: Callable[[], bool]) -> Found:
    """A whole evaluation, whose memory is free soon after."""
    try:
        return Run(job).complete(stopped)
    finally:
        nbytes = job.choice.lifetimes.total_nbytes
        if nbytes > SMALL_BYTES:
            returns_freed_memory.freed(nbytes)


def _count(slabs: Iterable[Slab]) -> int:
    return sum(len(slab.part.ids) for slab in slabs)


def _encoded(kind: str, slabs: Sequence[Slab], as_summary: bool) -> Iterable[bytes]:
    """Columns, made as they are sent; figures, which are small and take work, now."""
    events = encode_events(kind, slabs)
    return [*events] if as_summary else events


def _offered(messages: Iterable[bytes], holding: Holding) -> Iterator[bytes]:
    """The messages of a stream, each of which waits for its reader."""
    for message in messages:
        holding.offer(len(message))
        yield message
        holding.go_on()


def _at_once(
    answer: Callable[[bytes, Callable[[], bool]], bytes],
) -> Callable[[bytes, Callable[[], bool], Holding], bytes]:
    """What finds room for its answer when that is made."""
    return lambda data, stopped, _: answer(data, stopped)


def status_of(refusal: Refusal) -> Any:
    """A refusal as google.rpc.Status, small enough to arrive."""
    message = _shortened(refusal.message, _MESSAGE_CHARACTERS)
    facts = {key: _shortened(fact, _FACT_CHARACTERS) for key, fact in refusal.facts.items()}
    details = [
        error_details_pb2.ErrorInfo(
            reason=refusal.reason, domain="gradwire", metadata=dict([*facts.items()][:_FACTS])
        )
    ]
    if refusal.status == "INVALID_ARGUMENT" and refusal.field:
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=refusal.field, description=message
        )
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    packed = []
    for detail in details:
        packed.append(any_pb2.Any())
        packed[-1].Pack(detail)
    code = code_pb2.Code.Value(refusal.status)
    status = status_pb2.Status(code=code, message=message, details=packed)
    return rpc_status.to_status(status)


def _shortened(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 3] + "..."
