"""Sessions that are interrupted, shared by threads, refused or forgotten."""

from __future__ import annotations

import _thread
import asyncio
import gc
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from patience import PATIENCE

import gradwire as gw
from gradwire_server.engine.runs import Found, Run
from gradwire_server.entry import EmbeddedServer
from gradwire_server.limits import Limits

SQUARE = gw.parse("x*x")


@pytest.fixture
def address() -> Iterator[str]:
    server = EmbeddedServer(Limits(max_sessions=2))
    yield server.address
    server.close()


def test_session_interrupted_in_a_step_is_closed_and_says_so(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    complete = Run.complete
    reached, go_on = threading.Event(), threading.Event()

    def held(run: Run, stopped: Callable[[], bool]) -> Found:
        reached.set()
        go_on.wait(PATIENCE)
        return complete(run, stopped)

    def interrupt() -> None:
        reached.wait(PATIENCE)
        _thread.interrupt_main()  # as Ctrl-C

    with gw.connect(address) as connection, connection.session(SQUARE, {"x": 1.0}) as session:
        monkeypatch.setattr(Run, "complete", held)
        thread = threading.Thread(target=interrupt)
        # whatever it is here: a command started in the background ignores it
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            thread.start()
            with pytest.raises(KeyboardInterrupt):
                session.step({"x": 2.0})
        finally:
            signal.signal(signal.SIGINT, before)
        thread.join(PATIENCE)
        go_on.set()
        for _ in range(2):
            with pytest.raises(gw.CancelledError, match="interrupted in a step, and is closed"):
                session.step({"x": 3.0})
        assert connection.evaluate(SQUARE, {"x": 3.0})["x"].gradient == 6.0


def test_threads_share_a_session(address: str) -> None:
    answers: list[list[tuple[float, float]]] = [[] for _ in range(8)]

    def ask(number: int, session: gw.Session) -> None:
        for k in range(20):
            x = float(100 * number + k)
            value, gradient = session.value_and_gradient({"x": x})
            answers[number].append((value, float(gradient["x"])))

    with gw.connect(address) as connection, connection.session(SQUARE, {"x": 1.0}) as session:
        threads = [threading.Thread(target=ask, args=(n, session)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
    for number, found in enumerate(answers):
        points = [float(100 * number + k) for k in range(20)]
        assert found == [(x * x, 2 * x) for x in points]


def test_tasks_share_a_session(address: str) -> None:
    async def ask() -> list[Any]:
        async with (
            gw.connect_async(address) as connection,
            await connection.session(SQUARE, {"x": 1.0}) as session,
        ):
            steps = [session.step({"x": float(k)}) for k in range(20)]
            return [float(each["x"].gradient) for each in await asyncio.gather(*steps)]

    assert asyncio.run(ask()) == [2.0 * k for k in range(20)]


def test_steps_inside_of_steps_are_refused(address: str) -> None:
    with gw.connect(address) as connection, connection.session(SQUARE, {"x": 1.0}) as session:

        def points() -> Iterator[dict[str, float]]:
            for k in range(5000):  # more than one message
                if k == 4999:
                    session.step({"x": 1.0})
                yield {"x": float(k)}

        with pytest.raises(gw.InvalidRequestError, match="make them before"):
            session.steps(points())


def test_sessions_that_are_refused_or_forgotten_leave_no_thread(address: str) -> None:
    def of_grpc() -> int:
        """Threads of the client: one for the channel, one for the requests of each session."""
        return sum("(_run)" in each.name for each in threading.enumerate())

    with gw.connect(address) as connection:
        with connection.session(SQUARE, {"x": 1.0}) as session:
            session.step()
            with_one = of_grpc()
        for _ in range(10):
            with pytest.raises(gw.GradwireError):
                connection.session(SQUARE, {"y": 1.0})
        held = [connection.session(SQUARE, {"x": 1.0}) for _ in range(2)]
        assert of_grpc() > with_one
        with pytest.raises(gw.LimitError, match="max-sessions"):
            connection.session(SQUARE, {"x": 1.0})
        held.clear()
        gc.collect()
        while of_grpc() > with_one:
            threading.Event().wait(0.001)
