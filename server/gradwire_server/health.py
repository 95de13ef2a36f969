"""Standard health checks and reflection, on threads that nothing else can take.

grpc's own health service answers on the threads of all other calls, and a caller that does not read
what it watches stops it, with a lock held.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from threading import Lock
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from gradwire_server.arrivals import Arrivals, Arriving
from gradwire_server.service import SERVICE, End, heard, on_lane, sending
from gradwire_server.silence import SilenceWatch
from gradwire_server.threads import Lane

_CHECK_THREADS = 2
_WATCH_THREADS = 4
_WATCHES = 1024
_WATCH_READ_SECONDS = 20
_REFLECTION_THREADS = 16

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN

_Send = Callable[[Any], None]


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """grpc.health.v1.Health: serving, until the server is told to stop."""

    def __init__(self, arrivals: Arrivals) -> None:
        self._serving = True
        self._lock = Lock()
        self._watches: set[_Watch] = set()
        self._checks = Lane("gradwire-health", _CHECK_THREADS)
        self._watching = Lane("gradwire-watch", _WATCH_THREADS)
        self._silence = SilenceWatch(_WATCH_READ_SECONDS)
        self.Check = on_lane(Arriving(arrivals, self._checks), self._check)
        self._watch.__func__.experimental_non_blocking = True  # type: ignore[attr-defined]
        self.Watch = on_lane(Arriving(arrivals, self._watching), self._watch)

    def add_to(self, server: grpc.Server) -> None:
        health_pb2_grpc.add_HealthServicer_to_server(self, server)

    def stop(self) -> None:
        """Tells all who watch that nothing is served any more."""
        with self._lock:
            self._serving = False
            watches, self._watches = self._watches, set()
        for watch in watches:
            self._watching.submit(watch.end, _NOT_SERVING)

    def close(self) -> None:
        """Lets the threads end."""
        self._silence.close()
        self._checks.shutdown()
        self._watching.shutdown()

    def _state(self, service: str) -> Any:
        if service not in ("", SERVICE):
            return _UNKNOWN
        return _SERVING if self._serving else _NOT_SERVING

    def _check(self, request: Any, context: Any) -> Any:
        state = self._state(request.service)
        if state == _UNKNOWN:
            context.abort(grpc.StatusCode.NOT_FOUND, "no service has that name")
        return health_pb2.HealthCheckResponse(status=state)

    def _watch(self, request: Any, context: Any, send: _Send) -> None:
        if len(self._watches) >= _WATCHES:
            context.abort(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"{_WATCHES} calls watch the server's health already; check it instead",
            )
        watch = _Watch(context, send, self._silence)
        watch.tell(self._state(request.service))
        with self._lock:
            if self._serving:
                if context.add_callback(lambda: self._forget(watch)):
                    self._watches.add(watch)
                return
        watch.end(_NOT_SERVING)

    def _forget(self, watch: _Watch) -> None:
        with self._lock:
            self._watches.discard(watch)


class _Watch:
    """One caller who is told when the state changes; who does not read it is cut off."""

    def __init__(self, context: Any, send: _Send, silence: SilenceWatch) -> None:
        self._context, self._send, self._silence = context, send, silence

    def tell(self, state: Any) -> None:
        with self._silence.over(lambda _: self._context.cancel()) as silence:
            silence.begins()
            self._send(health_pb2.HealthCheckResponse(status=state))

    def end(self, state: Any) -> None:
        self.tell(state)
        self._send(None)


class Reflection(reflection.ReflectionServicer):  # type: ignore[misc]
    """Reflection; its streams end when they are silent, as sessions."""

    def __init__(self, arrivals: Arrivals, light: Lane, silence: SilenceWatch) -> None:
        super().__init__([SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME])
        self._silence = silence
        self._lane = Lane("gradwire-reflection", _REFLECTION_THREADS)
        threads = Arriving(arrivals, self._lane, (_refuse, light), streams=True)
        self.ServerReflectionInfo = on_lane(threads, sending(self._info))

    def add_to(self, server: grpc.Server) -> None:
        reflection_pb2_grpc.add_ServerReflectionServicer_to_server(self, server)

    def close(self) -> None:
        """Lets the threads end."""
        self._lane.shutdown()

    def _info(self, requests: Iterator[Any], context: Any, end: End) -> Iterator[Any]:
        with self._silence.over(end) as silence:
            for request in heard(requests, silence):
                yield from super().ServerReflectionInfo(iter((request,)), context)


def _refuse(_: Any, context: Any) -> None:
    context.abort(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        f"{_REFLECTION_THREADS} reflection streams are open already; ask again later",
    )
