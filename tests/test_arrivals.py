"""Callers that are silent, slow, many or late take nothing from others."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from patience import PATIENCE, Clock, comes_true
from wire import neuron, source

from gradwire.v1 import service_pb2, service_pb2_grpc
from gradwire_server import arrivals
from gradwire_server.arrivals import Arrivals
from gradwire_server.engine.runs import Found, Run
from gradwire_server.entry import Server
from gradwire_server.errors import OverLimit
from gradwire_server.health import _Watch
from gradwire_server.limits import Limits
from gradwire_server.service import GradientService, status_of
from gradwire_server.silence import SilenceWatch

OURS = "/gradwire.v1.GradientService/"
HEALTH = "/grpc.health.v1.Health/"
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
METHODS = [
    *(f"{OURS}{each.name}" for each in service_pb2.DESCRIPTOR.services_by_name[
        "GradientService"
    ].methods),
    HEALTH + "Check", HEALTH + "Watch", REFLECTION,
]  # fmt: skip
REQUEST = service_pb2.EvaluateRequest(graph=source(neuron()))


class Serving:
    """A server in this process, and a channel to it."""

    def __init__(self, limits: Limits, address: str) -> None:
        self.server = Server(limits)
        self.address = self.server.start(address)
        self.channel = grpc.insecure_channel(self.address)
        self.stub = service_pb2_grpc.GradientServiceStub(self.channel)
        self._hold = threading.Event()

    @property
    def silent(self) -> int:
        return self.server._service.arrivals.waiting

    def open_silent(self, method: str, then: tuple[bytes, ...] = ()) -> Any:
        """A call that sends nothing, until told to; what it then sends."""

        def nothing() -> Iterator[bytes]:
            self._hold.wait(PATIENCE)
            yield from then

        return self.channel.stream_stream(method)(nothing())

    def speak(self) -> None:
        self._hold.set()

    def health(self) -> Any:
        stub = health_pb2_grpc.HealthStub(self.channel)
        return stub.Check(health_pb2.HealthCheckRequest(), timeout=PATIENCE).status


@contextmanager
def serving(limits: Limits, folder: Any) -> Iterator[Serving]:
    found = Serving(limits, f"unix:{folder}/socket")
    yield found
    found.speak()
    found.channel.close()
    found.server.stop(0)


def until(condition: Callable[[], bool]) -> None:
    assert comes_true(condition)


def test_grpc_is_a_version_whose_private_parts_are_known() -> None:
    assert arrivals.KNOWN


@pytest.mark.parametrize("method", METHODS)
def test_silent_calls_take_no_thread_and_starve_nobody(method: str, tmp_path: Any) -> None:
    limits = Limits(
        max_evaluations=1, max_waiting=1, max_streams=1, max_sessions=1, max_transfers=1
    )
    with serving(limits, tmp_path) as found:
        assert found.stub.Evaluate(REQUEST, timeout=PATIENCE).result.outputs
        calls = [found.open_silent(method) for _ in range(40)]
        until(lambda: found.silent == 40)
        before = threading.active_count()
        assert found.health() == health_pb2.HealthCheckResponse.SERVING
        assert found.stub.Evaluate(REQUEST, timeout=PATIENCE).result.outputs
        described = service_pb2.DescribeServerRequest()
        assert found.stub.DescribeServer(described, timeout=PATIENCE).gates
        events = found.stub.EvaluateStream(
            service_pb2.EvaluateStreamRequest(graph=source(neuron())), timeout=PATIENCE
        )
        assert [*events][-1].WhichOneof("event") == "finished"
        assert threading.active_count() <= before + 6  # of those that were answered
        for call in calls:
            call.cancel()
        until(lambda: found.silent == 0)


@pytest.mark.parametrize("known", [True, False])
def test_message_that_comes_late_is_answered(
    known: bool, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where grpc's private parts are others, and calls take their threads first."""
    monkeypatch.setattr(arrivals, "KNOWN", known)
    opening = service_pb2.SessionRequest(
        request_id=1, open=service_pb2.Open(graph=source(neuron()))
    ).SerializeToString()
    step = service_pb2.SessionRequest(request_id=2, step=service_pb2.Step()).SerializeToString()
    with serving(Limits(), tmp_path) as found:
        unary = found.open_silent(OURS + "Evaluate", (REQUEST.SerializeToString(),))
        session = found.open_silent(OURS + "Session", (opening, step))
        if known:
            until(lambda: found.silent == 2)
        found.speak()
        [answer] = [*unary]
        assert service_pb2.EvaluateResponse.FromString(answer).result.outputs
        answers = [service_pb2.SessionResponse.FromString(each) for each in session]
        assert [each.request_id for each in answers] == [1, 2]
        assert answers[1].WhichOneof("outcome") == "result"


@pytest.mark.parametrize("method", ["Evaluate", "EvaluateStream"])
def test_call_that_ends_without_its_message_is_told_so(method: str, tmp_path: Any) -> None:
    with serving(Limits(), tmp_path) as found:
        call = found.open_silent(OURS + method)
        found.speak()
        assert call.code() is grpc.StatusCode.UNIMPLEMENTED
        assert "requires exactly one request message" in call.details()


def test_session_without_a_message_ends_well(tmp_path: Any) -> None:
    with serving(Limits(), tmp_path) as found:
        call = found.open_silent(OURS + "Session")
        found.speak()
        assert call.code() is grpc.StatusCode.OK


def test_silent_call_ends_at_its_deadline(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(arrivals, "monotonic", clock)
    with serving(Limits(first_message_seconds=1), tmp_path) as found:
        calls = [found.open_silent(OURS + each) for each in ("Evaluate", "Session")]
        until(lambda: found.silent == 2)
        while not all(call.done() for call in calls):
            clock.pass_some()
        for call in calls:
            assert call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert call.details() == (
                "no message came for 1 seconds, so the server ended the call; send one at once, or "
                "start the server with a larger --first-message-seconds"
            )


def test_too_many_silent_calls_cost_whoever_has_most() -> None:
    ended: list[str] = []

    class Silent:
        def __init__(self, host: str, number: int) -> None:
            self._host, self._name = host, f"{host}{number}"

        def host(self) -> str:
            return self._host

        def end(self, status: grpc.Status) -> None:
            assert "--max-silent" in status.details
            ended.append(self._name)

    table = Arrivals(8, PATIENCE, status_of)
    for number in range(2):
        table.add(Silent("honest", number))  # type: ignore[arg-type]
    for number in range(7):
        table.add(Silent("greedy", number))  # type: ignore[arg-type]
    assert ended == [f"greedy{number}" for number in range(4)], "the older half"
    assert table.waiting == 5
    table.close()


def test_silent_calls_over_the_limit_are_told_so(tmp_path: Any) -> None:
    with serving(Limits(max_silent=4), tmp_path) as found:
        calls = [found.open_silent(OURS + "Evaluate") for _ in range(5)]
        until(lambda: sum(call.done() for call in calls) == 3)
        done = next(call for call in calls if call.done())
        assert done.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "open calls without a message: 5 is over the limit of 4" in done.details()
        assert found.stub.Evaluate(REQUEST, timeout=PATIENCE).result.outputs


def hold_the_turn(monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, list[Run]]:
    """The first evaluation waits until told to go on; and all that were begun."""
    go_on, complete, begun = threading.Event(), Run.complete, []

    def held(run: Run, stopped: Callable[[], bool]) -> Found:
        begun.append(run)
        go_on.wait(PATIENCE)
        return complete(run, stopped)

    monkeypatch.setattr(Run, "complete", held)
    return go_on, begun


def test_queued_calls_whose_deadline_has_passed_are_not_evaluated(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on, begun = hold_the_turn(monkeypatch)
    with serving(Limits(max_evaluations=1), tmp_path) as found:
        first = found.stub.Evaluate.future(REQUEST)
        until(lambda: bool(begun))
        late = [found.stub.Evaluate.future(REQUEST, timeout=0.05) for _ in range(50)]
        for call in late:
            assert call.exception().code() is grpc.StatusCode.DEADLINE_EXCEEDED
        go_on.set()
        assert first.result(timeout=PATIENCE).result.outputs
        assert found.stub.Evaluate(REQUEST, timeout=PATIENCE).result.outputs
    assert len(begun) == 2


def test_deadline_is_known_before_grpc_tells_of_it() -> None:
    """grpc's thread, which tells, may be busy with other calls."""
    service = GradientService(Limits())
    ended: list[Any] = []

    def abort(code: grpc.StatusCode, details: str) -> None:
        ended.append((code, details))
        raise grpc.RpcError

    context = SimpleNamespace(
        is_active=lambda: True, time_remaining=lambda: 0.0, peer=str, abort=abort
    )
    with pytest.raises(grpc.RpcError):
        service._unary("Evaluate", service.evaluate)(REQUEST.SerializeToString(), context)
    assert ended == [(grpc.StatusCode.DEADLINE_EXCEEDED, "the call's deadline passed")]
    service.close()


def test_call_whose_message_comes_when_the_threads_are_taken_is_refused(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on, begun = hold_the_turn(monkeypatch)
    with serving(Limits(max_evaluations=1, max_waiting=0), tmp_path) as found:
        late = found.open_silent(OURS + "Evaluate", (REQUEST.SerializeToString(),))
        until(lambda: found.silent == 1)
        first = found.stub.Evaluate.future(REQUEST)
        until(lambda: bool(begun))
        found.speak()
        assert late.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "--max-waiting" in late.details()
        go_on.set()
        assert first.result(timeout=PATIENCE).result.outputs


@pytest.mark.slow
def test_ten_thousand_calls_at_once_are_answered_or_refused_with_a_sentence(tmp_path: Any) -> None:
    with serving(Limits(), tmp_path) as found:
        ended = [found.stub.Evaluate.future(REQUEST) for _ in range(10_000)]
        for call in ended:
            failure = call.exception()
            assert failure is None or (
                failure.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
                and "--max-waiting" in failure.details()
            )


class Interceptor(grpc.ServerInterceptor):
    """As those of other libraries: it knows behaviours of two arguments, which yield."""

    def intercept_service(self, continuation: Any, details: Any) -> Any:
        handler = continuation(details)
        if handler is None or not (handler.request_streaming and handler.response_streaming):
            return handler

        def behavior(requests: Any, context: Any) -> Iterator[Any]:
            yield from handler.stream_stream(requests, context)

        return grpc.stream_stream_rpc_method_handler(behavior)


def test_interceptors_of_others_see_generators(tmp_path: Any) -> None:
    service = GradientService(Limits())
    server = grpc.server(service.light, handlers=[service], interceptors=[Interceptor()])
    address = f"unix:{tmp_path}/socket"
    server.add_insecure_port(address)
    server.start()
    with grpc.insecure_channel(address) as channel:
        stub = service_pb2_grpc.GradientServiceStub(channel)
        opening = service_pb2.SessionRequest(open=service_pb2.Open(graph=source(neuron())))
        step = service_pb2.SessionRequest(request_id=2, step=service_pb2.Step())
        outcomes = [each.WhichOneof("outcome") for each in stub.Session(iter([opening, step]))]
        assert outcomes == ["started", "result"]
    server.stop(None).wait()
    service.close()


def test_who_watches_health_is_told_that_the_server_stops(tmp_path: Any) -> None:
    with serving(Limits(), tmp_path) as found:
        watch = health_pb2_grpc.HealthStub(found.channel).Watch(health_pb2.HealthCheckRequest())
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        unknown = health_pb2_grpc.HealthStub(found.channel).Watch(
            health_pb2.HealthCheckRequest(service="other")
        )
        assert next(unknown).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        found.server._health.stop()
        assert [each.status for each in watch] == [health_pb2.HealthCheckResponse.NOT_SERVING]


def test_watches_of_health_are_bounded(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gradwire_server.health._WATCHES", 1)
    with serving(Limits(), tmp_path) as found:
        stub = health_pb2_grpc.HealthStub(found.channel)
        first = stub.Watch(health_pb2.HealthCheckRequest())
        assert next(first).status == health_pb2.HealthCheckResponse.SERVING
        until(lambda: len(found.server._health._watches) == 1)
        second = stub.Watch(health_pb2.HealthCheckRequest())
        assert second.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert found.health() == health_pb2.HealthCheckResponse.SERVING
        first.cancel()
        until(lambda: not found.server._health._watches)


def test_who_does_not_read_what_it_watches_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, cancelled = Clock(), threading.Event()
    monkeypatch.setattr("gradwire_server.silence.monotonic", clock)
    silence = SilenceWatch(1)

    def send(_: Any) -> None:
        while not cancelled.is_set():
            clock.pass_some()

    _Watch(SimpleNamespace(cancel=cancelled.set), send, silence).tell(0)
    silence.close()


def test_reflection_that_is_silent_is_ended(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr("gradwire_server.silence.monotonic", clock)
    from grpc_reflection.v1alpha import reflection_pb2

    with serving(Limits(session_idle_seconds=1), tmp_path) as found:
        listing = reflection_pb2.ServerReflectionRequest(list_services="").SerializeToString()
        hold = threading.Event()

        def once() -> Iterator[bytes]:
            yield listing
            hold.wait(PATIENCE)

        call = found.channel.stream_stream(REFLECTION)(once())
        assert b"GradientService" in next(call)
        while not call.done():
            clock.pass_some()
        hold.set()
        assert call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "--session-idle-seconds" in call.details()


def test_limit_says_what_helps() -> None:
    refusal = OverLimit.of("max-silent", 4, 5, "open calls without a message")
    assert "send a message with each call" in refusal.message
