"""A session: one graph, its plan and its last good point, kept between steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from gradwire_server.engine import evaluation as evaluate
from gradwire_server.engine.evaluation import Binding, Evaluation, Job, Selection
from gradwire_server.engine.runs import Found, Run
from gradwire_server.errors import Invalid
from gradwire_server.gates.base import Array
from gradwire_server.graph import Graph
from gradwire_server.limits import Limits
from gradwire_server.memory import require_peak


class Session:
    """Steps take effect whole or not at all: a refused step leaves the last good point."""

    def __init__(
        self, graph: Graph, evaluation: Evaluation, limits: Limits, before: Job | None = None
    ) -> None:
        evaluate.require_known(graph, evaluation)
        self.graph = graph
        self._evaluation = replace(evaluation, keeps_values=not evaluation.forward_only)
        self._limits = limits
        self._before = before  # a job that may lend its plan
        self._run: Run | None = None

    def step(
        self, bindings: Mapping[str, Binding], forward_only: bool, stopped: Callable[[], bool]
    ) -> Found:
        """Forward, and backward unless told otherwise, with these leaves changed."""
        kept = replace(self._evaluation, bindings={**self._evaluation.bindings, **bindings})
        asked = kept
        if forward_only and not kept.forward_only:
            asked = replace(
                kept, forward_only=True, seeds={}, with_respect_to=(), gradients=Selection()
            )
        before = self._before if self._run is None else self._run.job
        job = evaluate.prepare(self.graph, asked, self._limits, before)
        run = Run(job)
        found = run.complete(stopped)
        self._evaluation, self._run = kept, run
        return found

    def backward(self, seeds: Mapping[str, Array], stopped: Callable[[], bool]) -> Found:
        """Backward again at the last good point, with other seeds."""
        if self._run is None:
            raise Invalid("REQUEST_INVALID", "backward comes after a step, and there was none")
        if self._evaluation.forward_only:
            raise Invalid("REQUEST_INVALID", "the session was opened with forward_only")
        job = self._run.job
        choice = evaluate.choose(job.plan, self._evaluation)
        require_peak(choice.lifetimes, self._limits)
        self._run.job = replace(job, choice=choice, forward_only=False)
        gradients, pulled = self._run.pull(evaluate.seed(job.plan, seeds), stopped)
        return [], gradients, [], pulled
