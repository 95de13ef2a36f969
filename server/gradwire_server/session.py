"""A session: one graph, its plan and its last good point, kept between steps."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from functools import cached_property

from gradwire_server.engine import evaluation as evaluate
from gradwire_server.engine.evaluation import NO_SELECTION, Binding, Evaluation, Job, Packed
from gradwire_server.engine.packing import Packing
from gradwire_server.engine.runs import Found, Run
from gradwire_server.errors import Invalid, within
from gradwire_server.gates.base import Array
from gradwire_server.graph import Graph
from gradwire_server.limits import Limits
from gradwire_server.memory import require_peak
from gradwire_server.mould import Casting, Hole, movable, moved


class Session:
    """Steps take effect whole or not at all: a refused step leaves the last good point."""

    def __init__(
        self,
        graph: Graph,
        evaluation: Evaluation,
        limits: Limits,
        before: Job | None = None,
        hold: Callable[[int, int], None] = lambda *_: None,
    ) -> None:
        """`hold` finds room for an evaluation that is kept, and its answer (LIMIT_EXCEEDED)."""
        with within("evaluation"):
            evaluate.require_known(graph, evaluation)
        self.graph = graph
        # apart from the bindings, which every step may change
        self._evaluation = replace(
            evaluation, bindings={}, packed=None, keeps_values=not evaluation.forward_only
        )
        self._bindings = {**evaluation.bindings}
        if evaluation.packed is not None:
            with within("evaluation"):
                self._fix_order(evaluation.packed)
        self._limits = limits
        self._hold = hold
        self._before = before  # a job that may lend its plan
        self._movable = movable(graph)
        self._run: Run | None = None
        self._is_moved = False  # whether the last step changed nothing but numbers
        self._casting = Casting()
        self._packed_head = b""

    def _fix_order(self, data: bytes) -> None:
        """The order of packed steps, and the first numbers, where there are any yet."""
        if data or not self._packing.nbytes:
            packed = Packed(self._packing, data)
            packed.require_apart(self._bindings)
            self._bindings |= packed.bindings()

    def step(
        self,
        bindings: Mapping[str, Binding],
        forward_only: bool,
        stopped: Callable[[], bool],
        packed: bytes | None = None,
    ) -> Found:
        """Forward, and backward unless told otherwise, with these leaves changed.

        Where numbers come packed, leaf gradients are in their order.
        """
        given = None if packed is None else Packed(self._packing, packed)
        if given is not None:
            given.require_apart(bindings)
        job = self._moved(bindings, forward_only, given)
        self._is_moved = job is not None and given is None
        if job is not None:
            return self.advance(job, stopped)
        kept = {**self._bindings, **self._current_bindings(), **bindings}
        if given is not None:
            kept |= given.bindings()
        job = self._prepared(kept, forward_only)
        if given is not None:
            job = given.put(job, job.point.arrays)
        found = self.advance(job, stopped)
        self._bindings = kept
        return found

    def advance(self, job: Job, stopped: Callable[[], bool]) -> Found:
        """A step to where a job is."""
        self._hold(job.choice.lifetimes.total_nbytes, job.choice.nbytes)
        run = Run(job)
        found = run.complete(stopped)
        self._run = run
        return found

    def pour(self, data: bytes) -> Job | None:
        """The job of a step whose mould is here, or that is a run of bytes behind a known head."""
        if self._job is None:
            return None
        head = self._packed_head
        if not head or not data.startswith(head):
            return self._casting.pour(data, self._job)
        if len(data) != len(head) + self._packing.nbytes:
            return None
        return self._moved({}, False, Packed(self._packing, data[len(head) :]))

    def expect_packed(self, head: bytes) -> None:
        """Steps like the last one begin with this, and have their numbers behind it."""
        self._packed_head = head

    @property
    def wants_mould(self) -> bool:
        """Whether another step like the last one should be known by its bytes."""
        return self._is_moved and self._job is not None and self._casting.is_due(self._job)

    def cast(self, data: bytes, holes: Collection[Hole] | None) -> None:
        """Makes the mould of the last step, where its holes were found."""
        assert self._job is not None, "there was a step"
        self._casting.cast(self._job, self._movable, data, holes)

    def _current_bindings(self) -> dict[str, Binding]:
        """Those that steps may have moved since bindings were last prepared."""
        if self._job is None:
            return {}
        point = self._job.point
        return {
            name: Binding(point.arrays[position], point.batched[position])
            for name, position in self._movable.items()
        }

    @cached_property
    def _packing(self) -> Packing:
        return evaluate.find_packing(self.graph, self._evaluation)

    def _moved(
        self, bindings: Mapping[str, Binding], forward_only: bool, packed: Packed | None
    ) -> Job | None:
        """The last step's job at the new point, where only numbers have changed."""
        job = self._job
        if job is None or job.forward_only != (forward_only or self._evaluation.forward_only):
            return None
        return moved(job, self._movable, bindings, packed)

    def _prepared(self, bindings: Mapping[str, Binding], forward_only: bool) -> Job:
        asked = replace(self._evaluation, bindings=bindings)
        if forward_only and not asked.forward_only:
            asked = replace(
                asked, forward_only=True, seeds={}, with_respect_to=(), gradients=NO_SELECTION
            )
        return evaluate.prepare(self.graph, asked, self._limits, self._job or self._before)

    @property
    def _job(self) -> Job | None:
        """The last step's."""
        return None if self._run is None else self._run.job

    def backward(self, seeds: Mapping[str, Array], stopped: Callable[[], bool]) -> Found:
        """Backward again at the last good point, with other seeds."""
        if self._run is None:
            raise Invalid("REQUEST_INVALID", "backward comes after a step, and there was none")
        if self._evaluation.forward_only:
            raise Invalid("REQUEST_INVALID", "the session was opened with forward_only")
        plan = self._run.job.plan
        choice = evaluate.choose(plan, self._evaluation)
        require_peak(choice.lifetimes, self._limits)
        gradients, pulled = self._run.pull(evaluate.seed(plan, seeds), stopped, choice)
        return [], gradients, [], pulled
