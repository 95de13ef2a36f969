"""Connections to a gradient server, synchronous and asynchronous.

with gw.connect("localhost:50051") as server:
    result = server.evaluate(graph, {"x": 1.0})
    result["f"].value, result["x"].gradient
"""

from __future__ import annotations

import asyncio
from asyncio import InvalidStateError
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from itertools import count
from queue import SimpleQueue
from threading import Lock, RLock
from typing import Any, NoReturn, Self
from weakref import finalize

import grpc
import numpy as np

from gradwire import requests, saved
from gradwire.builder import Graph
from gradwire.errors import (
    CancelledError,
    GradwireError,
    InvalidRequestError,
    ServerError,
    UnsupportedError,
)
from gradwire.forms import Forms
from gradwire.holes import request_id_of, with_request_id
from gradwire.payloads import LIFTED_BYTES, Buffer
from gradwire.results import Columns, Event, Result, decode_result, parse, value_of
from gradwire.saved import Download, KnownGraphs, Progress, SavedGraph
from gradwire.segments import INLINE, Exchange, Pool
from gradwire.tensors import Array
from gradwire.v1 import service_pb2, service_pb2_grpc
from gradwire.vectors import Vector

_EVALUATE = "/gradwire.v1.GradientService/Evaluate"
_SESSION = "/gradwire.v1.GradientService/Session"
_OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.keepalive_time_ms", 60_000),
]


class Connection:
    """A synchronous connection; safe to share between threads."""

    def __init__(
        self,
        target: str,
        *,
        timeout: float | None = None,
        shared_memory: bool = False,
        on_close: Callable[[], None] | None = None,
    ) -> None:
        self.target = target
        self._timeout = timeout
        self._memory = _SharedMemory(target, shared_memory)
        self._known = KnownGraphs()
        self._forms = Forms()
        self._vectors = _Vectors()
        self._features: frozenset[str] | None = None
        self._lock = Lock()
        self._on_close = on_close
        self._channel = grpc.insecure_channel(target, _OPTIONS)
        calls: Any = service_pb2_grpc.GradientServiceStub(self._channel)
        calls.Evaluate = self._channel.unary_unary(_EVALUATE)  # bytes to bytes
        calls.Session = self._channel.stream_stream(_SESSION)
        self._calls: service_pb2_grpc.GradientServiceStub = calls
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        _uncopied(f"a connection to {self.target}", "connect again where it is needed")

    def close(self) -> None:
        """Closes the connection; calls that still run are cancelled."""
        self._closed = True
        self._channel.close()
        self._memory.close()
        if self._on_close is not None:
            self._on_close()
            self._on_close = None

    def evaluate(
        self,
        graph: Graph | str,
        inputs: Mapping[str, Any] | None = None,
        *,
        timeout: float | None = None,
        **options: Any,
    ) -> Result:
        """Outputs and gradients of the leaves at one point.

        The graph may be a saved one, by name or digest. Then it is fetched once, and known by its
        digest from then on; a name is looked up each time.

        Options: `seeds` {output: gradient}; `with_respect_to` leaf names; `values` and `gradients`
        to return besides (True, or names, paths such as "layer1/scores", ids, handles), and
        `modules`, paths of uses inside of which all are wanted, as `summary` or in full; `batched`
        names of inputs with a leading axis of rows; `forward_only`.
        """
        requests.require_arguments(inputs, options)
        graph, digest = self._found(graph)
        form = self._forms.evaluate(graph, digest, inputs or {}, options)
        with self._exchange() as exchange:
            request = b"".join(form.request(inputs or {}, exchange))
            call: Any = self._stub.Evaluate
            try:
                response = call(request, timeout=timeout or self._timeout)
            except grpc.RpcError as failure:
                raise self._error(failure, graph) from None
            return form.result(response, exchange)

    def value_and_gradient(
        self, graph: Graph | str, x: Any, *, timeout: float | None = None
    ) -> tuple[float, Any]:
        """The only output, and its gradient, at x, as `Session.value_and_gradient`.

        A flat vector needs a server with the feature "packed" (UnsupportedError).
        """
        if isinstance(x, Mapping):
            result = self.evaluate(graph, x, timeout=timeout)
            return value_of(result), result.gradients
        graph, digest = self._found(graph)
        flat = requests.flat_vector(x)
        vector = self._vectors.of(graph)
        data = vector.pack(flat)
        if not self._has("packed"):
            raise _lacking("packed", self.target)
        request = b"".join(requests.packed_evaluation(graph, digest, data))
        call: Any = self._stub.Evaluate
        with self._explained(graph):
            answer = call(request, timeout=timeout or self._timeout)
        return vector.unpack(requests.packed_answer(answer), flat.dtype)

    def stream(
        self,
        graph: Graph | str,
        inputs: Mapping[str, Any] | None = None,
        *,
        timeout: float | None = None,
        **options: Any,
    ) -> Iterator[Event | Result]:
        """Every value as the forward pass makes it, every gradient as the backward pass does.

        The last item is the Result. Options as for `evaluate`; all values and gradients are
        streamed unless some are chosen.
        """
        requests.require_arguments(inputs, options)
        graph, digest = self._found(graph)
        with self._exchange() as exchange:
            call = self._stub.EvaluateStream(
                _stream_request(graph, digest, inputs, options, exchange),
                timeout=timeout or self._timeout,
            )
            reader = _StreamReader(graph, exchange)
            try:
                with self._explained(graph):
                    for message in call:
                        yield from reader.read(message)
            finally:
                call.cancel()  # whoever stops reading early wants no more
            reader.require_finished()

    def session(
        self,
        graph: Graph | str,
        inputs: Mapping[str, Any] | None = None,
        *,
        batched: Sequence[str] = (),
        **options: Any,
    ) -> Session:
        """Many evaluations of one graph, which the server plans once. Options as for `evaluate`.

        Inputs may be left to the steps, save the `batched` ones, which say how many rows there are.
        """
        requests.require_arguments(inputs, {"batched": batched, **options})
        graph, digest = self._found(graph)
        with self._exchange() as exchange:
            opening = requests.evaluation(
                graph, inputs, batched=batched, complete=False, exchange=exchange, **options
            )
            return Session(self, graph, digest, opening)

    def gradient_graph(
        self,
        graph: Graph | str,
        wrt: Sequence[str] = (),
        sizes: Mapping[str, int] | None = None,
        *,
        timeout: float | None = None,
    ) -> Graph:
        """The backward pass as a graph: inputs "grad/{output}", outputs "grad/{leaf}".

        `sizes` are those of the graph's symbols (SYMBOL_UNBOUND).
        """
        graph, digest = self._found(graph)
        request = _gradient_request(graph, digest, wrt, sizes or {})
        with self._explained(graph):
            response = self._stub.DifferentiateGraph(request, timeout=timeout or self._timeout)
        return Graph.from_bytes(response.graph)

    def describe(self) -> service_pb2.DescribeServerResponse:
        """Version, limits, features, and the catalogue of gates."""
        with self._explained(None):
            found: service_pb2.DescribeServerResponse = self._stub.DescribeServer(
                service_pb2.DescribeServerRequest(), timeout=self._timeout
            )
        return found

    def save_graph(
        self,
        graph: Graph | bytes | str,
        name: str = "",
        *,
        expected: str | None = None,
        validate_only: bool = False,
        progress: Progress | None = None,
        timeout: float | None = None,
    ) -> SavedGraph:
        """Saves a graph, or its bytes, on the server; one that is there is named only, if a string.

        The name moves if it refers to the digest `expected`, or to nothing where that is ""
        (ConflictError). A large graph is uploaded in pieces: after an error, saving it again goes
        on where that broke off. `progress` is called with the bytes that are sent, and all.
        """
        data = graph.to_bytes() if isinstance(graph, Graph) else graph
        change = saved.name_change(name, expected)
        if isinstance(data, bytes) and len(data) > saved.ONE_MESSAGE_BYTES and not validate_only:
            return self._uploaded(data, change, progress, timeout or self._timeout)
        request = saved.save_request(data, change, validate_only)
        with self._explained(None):
            response = self._stub.SaveGraph(request, timeout=timeout or self._timeout)
        return SavedGraph.from_message(response.graph)

    def get_graph(
        self,
        name_or_digest: str,
        *,
        progress: Progress | None = None,
        timeout: float | None = None,
    ) -> Graph:
        """A saved graph (NotFoundError)."""
        graph, _ = self._fetched(name_or_digest, KnownGraphs(), progress, timeout)
        return graph

    def list_graphs(self, prefix: str = "") -> Iterator[SavedGraph]:
        """Saved graphs by name, then those without one; with a prefix, only names that have it."""
        token = ""
        while True:
            with self._explained(None):
                page = self._stub.ListGraphs(
                    saved.list_request(prefix, token), timeout=self._timeout
                )
            yield from map(SavedGraph.from_message, page.graphs)
            token = page.next_page_token
            if not token:
                return

    def delete_graph(self, name_or_digest: str, *, expected: str | None = None) -> str:
        """Deletes a name, or, given a digest, a graph with all its names; the graph's digest.

        A name that does not refer to `expected` stays (ConflictError).
        """
        request = saved.delete_request(name_or_digest, expected)
        with self._explained(None):
            response = self._stub.DeleteGraph(request, timeout=self._timeout)
        return response.digest.hex()

    def _uploaded(
        self,
        data: bytes,
        change: service_pb2.NameChange | None,
        progress: Progress | None,
        timeout: float | None,
    ) -> SavedGraph:
        begin = saved.begin(data, change)
        for attempt in range(saved.ATTEMPTS):
            try:
                with self._explained(None):
                    answer = self._stub.UploadGraph(iter((begin,)), timeout=timeout)
                    if not answer.HasField("graph"):
                        parts = saved.parts(begin, data, answer.received, progress)
                        answer = self._stub.UploadGraph(parts, timeout=timeout)
                return saved.completed(answer)
            except InvalidRequestError as error:
                saved.require_retry(error, attempt)
        raise AssertionError("the last attempt raises")

    def _found(self, graph: Graph | str) -> tuple[Graph, bytes]:
        """A graph, and its digest where the server has it."""
        if isinstance(graph, str):
            return self._fetched(graph, self._known, None, None)
        requests.require_graph(graph)
        return graph, b""

    def _fetched(
        self,
        name_or_digest: str,
        known: KnownGraphs,
        progress: Progress | None,
        timeout: float | None,
    ) -> tuple[Graph, bytes]:
        """A saved graph and its digest; its bytes are read where it is not known."""
        digest = saved.digest_of(name_or_digest)
        if digest and (graph := known.get(digest)):
            return graph, digest
        download = Download(progress)
        with self._explained(None):
            call = self._stub.GetGraph(
                saved.get_request(name_or_digest), timeout=timeout or self._timeout
            )
            for message in call:
                download.add(message)
                graph = known.get(download.saved.digest)
                if graph is not None:
                    call.cancel()
                    return graph, download.saved.digest
        graph = Graph.from_bytes(download.graph())
        return known.put(download.saved.digest, graph), download.saved.digest

    def _has(self, feature: str) -> bool:
        """Whether the server names a feature; asked once."""
        if self._features is None:
            self._features = frozenset(self.describe().features)
        return feature in self._features

    @property
    def _stub(self) -> service_pb2_grpc.GradientServiceStub:
        if self._closed:
            raise CancelledError(
                "CANCELLED", f"the connection to {self.target} is closed; open another"
            )
        return self._calls

    def _exchange(self) -> Exchange:
        """What a message and its answer have in shared memory (UnsupportedError)."""
        if not self._memory.wanted:
            return INLINE
        with self._lock:
            if self._memory.unknown:
                self._memory.found(self.describe().shared_memory_socket)
            return self._memory.exchange()

    @contextmanager
    def _explained(self, graph: Graph | None) -> Iterator[None]:
        try:
            yield
        except grpc.RpcError as failure:
            raise self._error(failure, graph) from None

    def _error(self, failure: grpc.RpcError, graph: Graph | None) -> GradwireError:
        return self._memory.seen(requests.error_from(failure, graph, self.target))


def _uncopied(what: str, instead: str) -> NoReturn:
    raise TypeError(f"{what} cannot be copied or pickled; {instead}")


def _lacking(feature: str, target: str) -> UnsupportedError:
    return UnsupportedError(
        "FEATURE_UNSUPPORTED",
        f"the server at {target} lacks the feature {feature!r}; give x as {{leaf: array}}, or "
        "update the server",
        {"feature": feature},
    )


class _Vectors:
    """The vector of the graph that came last."""

    def __init__(self) -> None:
        self._last: tuple[bytes, Vector] | None = None

    def of(self, graph: Graph) -> Vector:
        """SYMBOL_UNBOUND where a size is open."""
        data, last = graph.to_bytes(), self._last  # the same bytes as long as the graph is the same
        if last is None or last[0] is not data:
            last = self._last = data, Vector(graph)
        return last[1]


class _SharedMemory:
    """Memory shared with whichever process answers, if that is wanted."""

    def __init__(self, target: str, wanted: bool) -> None:
        self._target = target
        self.wanted = wanted
        self._pool: Pool | None = None

    @property
    def unknown(self) -> bool:
        """Whether the server must say first where its socket is."""
        return self.wanted and self._pool is None

    def found(self, socket: str) -> None:
        self._pool = Pool(socket, self._target)

    def exchange(self) -> Exchange:
        return INLINE if self._pool is None else Exchange(self._pool)

    def seen(self, error: GradwireError) -> GradwireError:
        """After a refusal of a segment: another process answers now, which has none of ours."""
        if error.reason == "SHARED_MEMORY_INVALID":
            self._pool = None
        return error

    def close(self) -> None:
        if self._pool is not None:
            self._pool.close()


class _Steps:
    """What sessions know of their steps, synchronous or not."""

    def __init__(
        self, memory: _SharedMemory, graph: Graph, evaluation: service_pb2.Evaluation
    ) -> None:
        self.graph = graph
        self._memory = memory
        self._refusals = _Refusals(memory)
        #: Leaves that stay batched.
        self._batched = [each.leaf for each in evaluation.bindings if each.batched]
        self._with_respect_to = frozenset(evaluation.with_respect_to)
        #: Whether a server may be asked for packed steps: in shared memory, arrays go by name.
        self._may_pack = not memory.wanted and not evaluation.forward_only
        self._forms = Forms()
        self._next_id = 0

    def __reduce__(self) -> NoReturn:
        _uncopied("a session", "open another one where it is needed")

    @cached_property
    def _vector(self) -> Vector:
        return Vector(self.graph, self._with_respect_to)

    def _packed_step(self, flat: Array) -> Iterable[Buffer]:
        return requests.packed_step(self._vector.pack(flat))

    def _read_packed(self, answer: bytes, flat: Array) -> tuple[float, Array]:
        """The answer to it."""
        with self._refusals:
            packed = requests.packed_step_answer(answer, self.graph)
            return self._vector.unpack(packed, flat.dtype)

    def _joined(self, result: Result, flat: Array) -> tuple[float, Array]:
        """The answer to a step at the leaves of a vector."""
        return value_of(result), self._vector.join(result.gradients, flat.dtype)


class Session(_Steps):
    """One open stream; a failed step leaves the last good point, and the session, as they were.

    Threads may share a session: their steps come one after another. A step that is interrupted
    (Ctrl-C) while it waits for its answer closes the session.
    """

    def __init__(
        self,
        connection: Connection,
        graph: Graph,
        digest: bytes,
        evaluation: service_pb2.Evaluation,
    ) -> None:
        super().__init__(connection._memory, graph, evaluation)
        self._connection = connection
        self._lock = RLock()  # threads take turns
        self._received = 0  # the request that was answered last
        self._interrupted = False
        self._requests: SimpleQueue[bytes | None] = SimpleQueue()
        finalize(self, self._requests.put, None)  # else grpc's thread waits for requests for ever
        calls: Any = connection._stub
        self._answers = calls.Session(iter(self._requests.get, None))
        try:
            opening = self._ask(requests.open_request(graph, digest, evaluation))
            with self._refusals:
                requests.session_response(opening, graph)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the session."""
        self._requests.put(None)
        self._answers.cancel()

    def step(
        self, inputs: Mapping[str, Any] | None = None, *, forward_only: bool = False
    ) -> Result:
        """Forward and backward with these leaves changed; they stay changed."""
        inputs = {} if inputs is None else inputs
        requests.require_mapping("inputs", inputs)
        form = self._forms.step(self.graph, self._batched, inputs, forward_only)
        with self._connection._exchange() as exchange:
            answer = self._ask(*form.request(inputs, exchange))
            with self._refusals:
                return form.result(answer, exchange)

    def steps(self, points: Iterable[Mapping[str, Any]]) -> list[Result]:
        """`step` at each point in turn, many in one message: for populations and line searches.

        The messages are sent before the first answer is read. The error of the first point that
        fails is raised when all have been tried.
        """
        with ExitStack() as stack, self._lock:
            exchanges = (stack.enter_context(self._connection._exchange()) for _ in count())
            asked = [
                (self._send(request.SerializeToString()), exchange)
                for request, exchange in requests.steps(
                    self.graph, points, self._batched, exchanges
                )
            ]
            answers = [(self._receive(request_id), exchange) for request_id, exchange in asked]
            with self._refusals:
                return requests.results(answers, self.graph)

    def backward(self, seeds: Mapping[str, Any]) -> Result:
        """Backward again at the last point, with other seeds."""
        with self._connection._exchange() as exchange:
            request = requests.backward_request(self.graph, seeds, exchange)
            return self._result(request, exchange)

    def value_and_gradient(self, x: Any) -> tuple[float, Any]:
        """The only output, and its gradient, at x: as `scipy.optimize.minimize(jac=True)` wants.

        x is {leaf: array}, and then so is the gradient; or one flat vector of all floating leaves
        that have a gradient, in the graph's order, and then so is the gradient. A vector travels as
        one run of bytes, if the server has the feature "packed".
        """
        if isinstance(x, Mapping):
            result = self.step(x)
            return value_of(result), result.gradients
        flat = requests.flat_vector(x)
        if self._may_pack and self._connection._has("packed"):
            return self._read_packed(self._ask(*self._packed_step(flat)), flat)
        return self._joined(self.step(self._vector.split(flat)), flat)

    def values_and_gradients(self, points: Any) -> tuple[Array, Array]:
        """`value_and_gradient` at many flat vectors [points, n]: values [points], [points, n]."""
        flat = requests.flat_vector(points)
        if flat.ndim != 2:
            raise InvalidRequestError(
                "SHAPE_MISMATCH", f"points have shape {flat.shape}; give one row for each point"
            )
        if self._may_pack and self._connection._has("packed"):
            packed_steps = requests.packed_steps([*map(self._vector.pack, flat)])
            with self._lock:
                asked = [*map(self._send, packed_steps)]
                answers = [self._receive(request_id) for request_id in asked]
            with self._refusals:
                packed = requests.packed_steps_answers(answers, self.graph)
                found = [self._vector.unpack(each, flat.dtype) for each in packed]
        else:
            results = self.steps([self._vector.split(row) for row in flat])
            found = [self._joined(result, row) for result, row in zip(results, flat, strict=True)]
        gradients = np.array([gradient for _, gradient in found], flat.dtype)
        return np.array([value for value, _ in found]), gradients.reshape(flat.shape)

    def _result(self, request: bytes, exchange: Exchange) -> Result:
        answer = self._ask(request)
        with self._refusals:
            return requests.session_answer(answer, self.graph, exchange).result

    def _ask(self, *pieces: Buffer) -> bytes:
        """The answer to a request that lacks its id."""
        with self._lock:
            return self._receive(self._send(*pieces))

    def _send(self, *pieces: Buffer) -> int:
        """Sends a request that lacks its id; the id that it was given."""
        self._next_id += 1
        self._requests.put(b"".join((with_request_id(self._next_id), *pieces)))
        return self._next_id

    def _receive(self, request_id: int) -> bytes:
        """The answer to a request, without the id where it is small."""
        if request_id <= self._received:
            raise InvalidRequestError(
                "REQUEST_INVALID",
                "the points of a session's steps took a step of that session; make them before",
            )
        answer = b""
        while self._received < request_id:  # one interrupted may have left its answer unread
            if self._interrupted:
                what = "the session was interrupted in a step, and is closed; open another"
                raise CancelledError("CANCELLED", what)
            try:
                data: bytes | None = next(self._answers, None)
            except grpc.RpcError as failure:
                raise self._connection._error(failure, self.graph) from None
            except BaseException:  # Ctrl-C: grpc cannot go on reading where it was interrupted
                self._interrupted = True
                self.close()
                raise
            if data is None:
                raise ServerError("INTERNAL", "the server ended the session")
            self._received, answer = _identified(data)
        return answer


class AsyncConnection:
    """The same for asyncio."""

    def __init__(
        self, target: str, *, timeout: float | None = None, shared_memory: bool = False
    ) -> None:
        self.target = target
        self._timeout = timeout
        self._memory = _SharedMemory(target, shared_memory)
        self._known = KnownGraphs()
        self._forms = Forms()
        self._vectors = _Vectors()
        self._features: frozenset[str] | None = None
        self._channel = grpc.aio.insecure_channel(target, _OPTIONS)
        self._stub: Any = service_pb2_grpc.GradientServiceStub(self._channel)
        self._stub.Evaluate = self._channel.unary_unary(_EVALUATE)
        self._stub.Session = self._channel.stream_stream(_SESSION)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def __reduce__(self) -> NoReturn:
        _uncopied(f"a connection to {self.target}", "connect again where it is needed")

    async def close(self) -> None:
        """Closes the connection."""
        await self._channel.close()
        self._memory.close()

    async def evaluate(
        self,
        graph: Graph | str,
        inputs: Mapping[str, Any] | None = None,
        *,
        timeout: float | None = None,
        **options: Any,
    ) -> Result:
        """As Connection.evaluate."""
        requests.require_arguments(inputs, options)
        graph, digest = await self._found(graph)
        form = self._forms.evaluate(graph, digest, inputs or {}, options)
        with await self._exchange() as exchange:
            request = b"".join(form.request(inputs or {}, exchange))
            with self._explained(graph):
                response = await self._stub.Evaluate(request, timeout=timeout or self._timeout)
            return form.result(response, exchange)

    async def value_and_gradient(
        self, graph: Graph | str, x: Any, *, timeout: float | None = None
    ) -> tuple[float, Any]:
        """As Connection.value_and_gradient."""
        if isinstance(x, Mapping):
            result = await self.evaluate(graph, x, timeout=timeout)
            return value_of(result), result.gradients
        graph, digest = await self._found(graph)
        flat = requests.flat_vector(x)
        vector = self._vectors.of(graph)
        data = vector.pack(flat)
        if not await self._has("packed"):
            raise _lacking("packed", self.target)
        request = b"".join(requests.packed_evaluation(graph, digest, data))
        with self._explained(graph):
            answer = await self._stub.Evaluate(request, timeout=timeout or self._timeout)
        return vector.unpack(requests.packed_answer(answer), flat.dtype)

    async def stream(
        self,
        graph: Graph | str,
        inputs: Mapping[str, Any] | None = None,
        *,
        timeout: float | None = None,
        **options: Any,
    ) -> AsyncIterator[Event | Result]:
        """As Connection.stream."""
        requests.require_arguments(inputs, options)
        graph, digest = await self._found(graph)
        with await self._exchange() as exchange:
            call = self._stub.EvaluateStream(
                _stream_request(graph, digest, inputs, options, exchange),
                timeout=timeout or self._timeout,
            )
            reader = _StreamReader(graph, exchange)
            try:
                with self._explained(graph):
                    async for message in call:
                        for item in reader.read(message):
                            yield item
            finally:
                call.cancel()
            reader.require_finished()

    async def session(
        self,
        graph: Graph | str,
        inputs: Mapping[str, Any] | None = None,
        *,
        batched: Sequence[str] = (),
        **options: Any,
    ) -> AsyncSession:
        """As Connection.session."""
        requests.require_arguments(inputs, {"batched": batched, **options})
        graph, digest = await self._found(graph)
        with await self._exchange() as exchange:
            opening = requests.evaluation(
                graph, inputs, batched=batched, complete=False, exchange=exchange, **options
            )
            session = AsyncSession(self, graph, opening)
            answer = await session._ask(requests.open_request(graph, digest, opening))
            with session._refusals:
                requests.session_response(answer, graph)
            return session

    async def gradient_graph(
        self, graph: Graph | str, wrt: Sequence[str] = (), sizes: Mapping[str, int] | None = None
    ) -> Graph:
        """As Connection.gradient_graph."""
        graph, digest = await self._found(graph)
        with self._explained(graph):
            response = await self._stub.DifferentiateGraph(
                _gradient_request(graph, digest, wrt, sizes or {}), timeout=self._timeout
            )
        return Graph.from_bytes(response.graph)

    async def describe(self) -> service_pb2.DescribeServerResponse:
        """As Connection.describe."""
        request = service_pb2.DescribeServerRequest()
        with self._explained(None):
            found: service_pb2.DescribeServerResponse = await self._stub.DescribeServer(
                request, timeout=self._timeout
            )
        return found

    async def save_graph(
        self,
        graph: Graph | bytes | str,
        name: str = "",
        *,
        expected: str | None = None,
        validate_only: bool = False,
        progress: Progress | None = None,
        timeout: float | None = None,
    ) -> SavedGraph:
        """As Connection.save_graph."""
        data = graph.to_bytes() if isinstance(graph, Graph) else graph
        change = saved.name_change(name, expected)
        if isinstance(data, bytes) and len(data) > saved.ONE_MESSAGE_BYTES and not validate_only:
            return await self._uploaded(data, change, progress, timeout or self._timeout)
        request = saved.save_request(data, change, validate_only)
        with self._explained(None):
            response = await self._stub.SaveGraph(request, timeout=timeout or self._timeout)
        return SavedGraph.from_message(response.graph)

    async def get_graph(
        self,
        name_or_digest: str,
        *,
        progress: Progress | None = None,
        timeout: float | None = None,
    ) -> Graph:
        """As Connection.get_graph."""
        graph, _ = await self._fetched(name_or_digest, KnownGraphs(), progress, timeout)
        return graph

    async def list_graphs(self, prefix: str = "") -> AsyncIterator[SavedGraph]:
        """As Connection.list_graphs."""
        token = ""
        while True:
            with self._explained(None):
                page = await self._stub.ListGraphs(
                    saved.list_request(prefix, token), timeout=self._timeout
                )
            for each in page.graphs:
                yield SavedGraph.from_message(each)
            token = page.next_page_token
            if not token:
                return

    async def delete_graph(self, name_or_digest: str, *, expected: str | None = None) -> str:
        """As Connection.delete_graph."""
        request = saved.delete_request(name_or_digest, expected)
        with self._explained(None):
            response = await self._stub.DeleteGraph(request, timeout=self._timeout)
        digest: str = response.digest.hex()
        return digest

    async def _uploaded(
        self,
        data: bytes,
        change: service_pb2.NameChange | None,
        progress: Progress | None,
        timeout: float | None,
    ) -> SavedGraph:
        begin = saved.begin(data, change)
        for attempt in range(saved.ATTEMPTS):
            try:
                with self._explained(None):
                    answer = await self._stub.UploadGraph(iter((begin,)), timeout=timeout)
                    if not answer.HasField("graph"):
                        parts = saved.parts(begin, data, answer.received, progress)
                        answer = await self._stub.UploadGraph(parts, timeout=timeout)
                return saved.completed(answer)
            except InvalidRequestError as error:
                saved.require_retry(error, attempt)
        raise AssertionError("the last attempt raises")

    async def _found(self, graph: Graph | str) -> tuple[Graph, bytes]:
        """As Connection._found."""
        if isinstance(graph, str):
            return await self._fetched(graph, self._known, None, None)
        requests.require_graph(graph)
        return graph, b""

    async def _fetched(
        self,
        name_or_digest: str,
        known: KnownGraphs,
        progress: Progress | None,
        timeout: float | None,
    ) -> tuple[Graph, bytes]:
        """As Connection._fetched."""
        digest = saved.digest_of(name_or_digest)
        if digest and (graph := known.get(digest)):
            return graph, digest
        download = Download(progress)
        with self._explained(None):
            call = self._stub.GetGraph(
                saved.get_request(name_or_digest), timeout=timeout or self._timeout
            )
            async for message in call:
                download.add(message)
                graph = known.get(download.saved.digest)
                if graph is not None:
                    call.cancel()
                    return graph, download.saved.digest
        graph = Graph.from_bytes(download.graph())
        return known.put(download.saved.digest, graph), download.saved.digest

    async def _has(self, feature: str) -> bool:
        """As Connection._has."""
        if self._features is None:
            self._features = frozenset((await self.describe()).features)
        return feature in self._features

    async def _exchange(self) -> Exchange:
        """As Connection._exchange."""
        if self._memory.unknown:
            socket = (await self.describe()).shared_memory_socket
            if self._memory.unknown:  # nobody has asked meanwhile
                self._memory.found(socket)
        return self._memory.exchange()

    @contextmanager
    def _explained(self, graph: Graph | None) -> Iterator[None]:
        try:
            yield
        except grpc.aio.AioRpcError as failure:
            raise self._memory.seen(requests.error_from(failure, graph, self.target)) from None


class AsyncSession(_Steps):
    """As Session, for asyncio; steps of one session are awaited one after another."""

    def __init__(
        self, connection: AsyncConnection, graph: Graph, evaluation: service_pb2.Evaluation
    ) -> None:
        super().__init__(connection._memory, graph, evaluation)
        self._connection = connection
        self._lock = asyncio.Lock()  # tasks take turns
        self._call = connection._stub.Session()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends the session."""
        await self._call.done_writing()
        self._call.cancel()

    async def step(
        self, inputs: Mapping[str, Any] | None = None, *, forward_only: bool = False
    ) -> Result:
        """As Session.step."""
        inputs = {} if inputs is None else inputs
        requests.require_mapping("inputs", inputs)
        form = self._forms.step(self.graph, self._batched, inputs, forward_only)
        with await self._connection._exchange() as exchange:
            answer = await self._ask(*form.request(inputs, exchange))
            with self._refusals:
                return form.result(answer, exchange)

    async def steps(self, points: Iterable[Mapping[str, Any]]) -> list[Result]:
        """As Session.steps; a message is answered before the next one is sent."""
        with ExitStack() as stack:
            await self._connection._exchange()  # the server has said where its socket is
            exchanges = (stack.enter_context(self._memory.exchange()) for _ in count())
            answers = [
                (await self._ask(request.SerializeToString()), exchange)
                for request, exchange in requests.steps(
                    self.graph, points, self._batched, exchanges
                )
            ]
            with self._refusals:
                return requests.results(answers, self.graph)

    async def backward(self, seeds: Mapping[str, Any]) -> Result:
        """As Session.backward."""
        with await self._connection._exchange() as exchange:
            request = requests.backward_request(self.graph, seeds, exchange)
            answer = await self._ask(request)
            with self._refusals:
                return requests.session_answer(answer, self.graph, exchange).result

    async def value_and_gradient(self, x: Any) -> tuple[float, Any]:
        """As Session.value_and_gradient."""
        if isinstance(x, Mapping):
            result = await self.step(x)
            return value_of(result), result.gradients
        flat = requests.flat_vector(x)
        if self._may_pack and await self._connection._has("packed"):
            return self._read_packed(await self._ask(*self._packed_step(flat)), flat)
        return self._joined(await self.step(self._vector.split(flat)), flat)

    async def _ask(self, *pieces: Buffer) -> bytes:
        """Sends a request that lacks its id; the answer to it, without the id where it is small."""
        async with self._lock:
            return await self._asked(*pieces)

    async def _asked(self, *pieces: Buffer) -> bytes:
        self._next_id += 1
        answered = 0
        answer: Any = None
        try:
            await self._call.write(b"".join((with_request_id(self._next_id), *pieces)))
            while answered < self._next_id:
                answer = await self._call.read()
                if answer is grpc.aio.EOF:
                    raise ServerError("INTERNAL", "the server ended the session")
                answered, answer = _identified(answer)
        except InvalidStateError:
            raise CancelledError("CANCELLED", "the session is closed; open another") from None
        except (grpc.aio.AioRpcError, grpc.aio.UsageError) as failure:
            call = failure if isinstance(failure, grpc.aio.AioRpcError) else self._call
            raise requests.error_from(call, self.graph, self._connection.target) from None
        assert isinstance(answer, bytes)
        return answer


class _Refusals:
    """Where a session's answers are read: the connection learns of memory that is refused."""

    def __init__(self, memory: _SharedMemory) -> None:
        self._memory = memory

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, _: object) -> None:
        if isinstance(error, GradwireError):
            self._memory.seen(error)


def _identified(answer: bytes) -> tuple[int, bytes]:
    """The id of the request that is answered, and the answer, without it where it is small."""
    request_id, start = request_id_of(answer)
    if not start:
        request_id = parse(service_pb2.SessionResponse, answer).message.request_id
    return request_id, answer[start:] if len(answer) < LIFTED_BYTES else answer


class _StreamReader:
    """Events from messages; knows whether the stream was whole."""

    def __init__(self, graph: Graph, exchange: Exchange) -> None:
        self._graph = graph
        self._exchange = exchange
        self._names = {ids[0]: name for name, ids in graph.ids_by_name().items() if len(ids) == 1}
        self._last = graph.value_count - graph.inside_count  # those behind are inside of modules
        self._columns = {"value": Columns(), "gradient": Columns()}
        self._finished = False

    def read(self, message: service_pb2.EvaluateStreamResponse) -> Iterator[Event | Result]:
        match message.WhichOneof("event"):
            case "node_values":
                yield from self._events("value", message.node_values)
            case "node_gradients":
                yield from self._events("gradient", message.node_gradients)
            case "finished":
                self._finished = True
                yield decode_result(message.finished.result, self._graph, self._exchange)

    def require_finished(self) -> None:
        if not self._finished:
            raise ServerError("INTERNAL", "the stream was cut: it has no end")

    def _events(self, kind: str, column: service_pb2.Column) -> Iterator[Event]:
        for value_id, content in self._columns[kind].read(column):
            name = self._names.get(value_id)
            if name is None:
                name = self._graph.path_of(value_id) if value_id > self._last else ""
            yield Event(kind, value_id, name, content)


def _stream_request(
    graph: Graph,
    digest: bytes,
    inputs: Mapping[str, Any] | None,
    options: Mapping[str, Any],
    exchange: Exchange,
) -> service_pb2.EvaluateStreamRequest:
    message = requests.evaluation(graph, inputs, exchange=exchange, **options)
    if not options.get("values") and not options.get("modules"):
        message.ClearField("values")
    if not options.get("gradients") and not options.get("modules"):
        message.ClearField("gradients")
    request = service_pb2.EvaluateStreamRequest(
        graph=requests.source(graph, digest), evaluation=message
    )
    exchange.offer(request)
    return request


def _gradient_request(
    graph: Graph, digest: bytes, wrt: Sequence[str], sizes: Mapping[str, int]
) -> service_pb2.DifferentiateGraphRequest:
    requests.require_names("wrt", wrt)
    requests.require_mapping("sizes", sizes, "{symbol: size}")
    return service_pb2.DifferentiateGraphRequest(
        graph=requests.source(graph, digest),
        with_respect_to=[wrt] if isinstance(wrt, str) else wrt,
        symbol_sizes=[
            service_pb2.SymbolSize(symbol=symbol, size=size) for symbol, size in sizes.items()
        ],
    )
