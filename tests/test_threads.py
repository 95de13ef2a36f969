"""Threads that answer calls: no more than allowed, and none lost."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from queue import SimpleQueue

import pytest
from patience import PATIENCE

from gradwire_server import threads
from gradwire_server.errors import OverLimit, Stopped
from gradwire_server.stopping import asked
from gradwire_server.threads import Lane, Turns, ahead


def test_lane_is_full_until_work_is_done() -> None:
    lane = Lane("test", 2)
    hold, done = threading.Event(), SimpleQueue[int]()
    for number in range(2):
        assert not lane.full
        lane.submit(lambda each: (hold.wait(), done.put(each)), number)
    assert lane.full
    lane.submit(done.put, 2)  # queues
    hold.set()
    assert {done.get(timeout=PATIENCE) for _ in range(3)} == {0, 1, 2}
    lane.shutdown()


def test_work_waits_where_the_system_has_no_more_threads(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    lane, done = Lane("test", 2), SimpleQueue[int]()

    def start(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", start)
        lane.submit(done.put, 1)
    assert "can't start new thread" in caplog.text
    lane.submit(done.put, 2)
    assert [done.get(timeout=PATIENCE) for _ in range(2)] == [2, 1]
    lane.shutdown()


def test_last_thread_to_rest_runs_next() -> None:
    lane = Lane("test", 8)
    names: SimpleQueue[str] = SimpleQueue()
    for _ in range(20):
        lane.submit(lambda: names.put(threading.current_thread().name))
        names.get(timeout=PATIENCE)
        while lane.full or not lane.resting:  # the thread is about to rest
            pass
    assert lane.resting == 1
    lane.shutdown()


def test_idle_thread_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "IDLE_SECONDS", 0.01)
    lane = Lane("test", 1)
    found: SimpleQueue[threading.Thread] = SimpleQueue()
    for _ in range(3):
        lane.submit(lambda: found.put(threading.current_thread()))
        found.get(timeout=PATIENCE).join(PATIENCE)
        assert lane.resting == 0
    assert not lane.full
    lane.shutdown()


def test_fault_costs_no_thread(caplog: pytest.LogCaptureFixture) -> None:
    lane = Lane("test", 1)
    found: SimpleQueue[int] = SimpleQueue()
    lane.submit(lambda: 1 / 0)
    lane.submit(found.put, 1)
    assert found.get(timeout=PATIENCE) == 1
    assert "ZeroDivisionError" in caplog.text
    lane.shutdown()


def test_turns_are_taken_and_given_back() -> None:
    turns = Turns(1, 1)
    began, order = threading.Barrier(2), SimpleQueue[str]()

    def second() -> None:
        began.wait(PATIENCE)
        with turns:
            order.put("second")

    thread = threading.Thread(target=second)
    with turns:
        thread.start()
        began.wait(PATIENCE)
        while not turns.waiting:
            pass
        with pytest.raises(OverLimit) as refused, turns:
            pass
        assert refused.value.facts["limit"] == "max-waiting"
        order.put("first")
    thread.join(PATIENCE)
    assert [order.get(timeout=PATIENCE) for _ in range(2)] == ["first", "second"]
    with turns:
        assert turns.waiting == 0


def test_who_waits_for_a_turn_leaves_when_nobody_wants_the_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(threads, "_LOOK_SECONDS", 0.001)
    turns = Turns(1, 1)
    outcome, leaves = SimpleQueue[str](), threading.Event()

    def wait() -> None:
        try:
            with asked(leaves.is_set), turns:
                outcome.put("computes")
        except Stopped:
            outcome.put("stopped")

    thread = threading.Thread(target=wait)
    with turns:
        thread.start()
        while not turns.waiting:
            pass
        leaves.set()
        assert outcome.get(timeout=PATIENCE) == "stopped"
        assert turns.waiting == 0, "another may wait in its place"
    thread.join(PATIENCE)


def test_items_are_made_ahead_and_no_further() -> None:
    lane = Lane("test", 1)
    made: SimpleQueue[int] = SimpleQueue()

    def items() -> Iterator[int]:
        for number in range(100):
            made.put(number)
            yield number

    found = ahead(items(), lane, 2)
    assert next(found) == 0
    assert [made.get(timeout=PATIENCE) for _ in range(3)] == [0, 1, 2]
    assert [*found] == [*range(1, 100)]
    lane.shutdown()


def test_failure_of_the_maker_comes_after_what_it_made() -> None:
    lane = Lane("test", 1)

    def items() -> Iterator[int]:
        yield 1
        raise OverLimit.of("max-nodes", 1, 2, "nodes")

    found = ahead(items(), lane, 1)
    assert next(found) == 1
    with pytest.raises(OverLimit):
        next(found)
    lane.shutdown()


def test_maker_stops_when_nobody_takes() -> None:
    lane = Lane("test", 1)
    ended: SimpleQueue[int] = SimpleQueue()

    def items() -> Iterator[int]:
        number = 0
        try:
            while True:
                yield (number := number + 1)
        finally:
            ended.put(number)

    found = ahead(items(), lane, 1)
    next(found)
    found.close()
    del found
    assert ended.get(timeout=PATIENCE) <= 4
    lane.shutdown()
