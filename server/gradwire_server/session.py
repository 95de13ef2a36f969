"""A session: one graph, its plan and its last good point, kept between steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from gradwire_server.engine import evaluation as evaluate
from gradwire_server.engine.evaluation import NO_SELECTION, Binding, Evaluation, Job
from gradwire_server.engine.runs import Found, Run
from gradwire_server.errors import Invalid
from gradwire_server.gates.base import Array
from gradwire_server.graph import Graph
from gradwire_server.limits import Limits
from gradwire_server.memory import require_peak
from gradwire_server.mould import movable, moved


class Session:
    """Steps take effect whole or not at all: a refused step leaves the last good point."""

    def __init__(
        self, graph: Graph, evaluation: Evaluation, limits: Limits, before: Job | None = None
    ) -> None:
        evaluate.require_known(graph, evaluation)
        self.graph = graph
        # apart from the bindings, which every step may change
        self._evaluation = replace(
            evaluation, bindings={}, keeps_values=not evaluation.forward_only
        )
        self._bindings = {**evaluation.bindings}
        self._limits = limits
        self._before = before  # a job that may lend its plan
        self._movable = movable(graph)
        self._run: Run | None = None

    def step(
        self, bindings: Mapping[str, Binding], forward_only: bool, stopped: Callable[[], bool]
    ) -> Found:
        """Forward, and backward unless told otherwise, with these leaves changed."""
        kept = {**self._bindings, **bindings}
        job = self._moved(bindings, forward_only) or self._prepared(kept, forward_only)
        run = Run(job)
        found = run.complete(stopped)
        self._bindings, self._run = kept, run
        return found

    def _moved(self, bindings: Mapping[str, Binding], forward_only: bool) -> Job | None:
        """The last step's job at the new point, where only numbers have changed."""
        job = self._job
        if job is None or job.forward_only != (forward_only or self._evaluation.forward_only):
            return None
        return moved(job, self._movable, bindings)

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
