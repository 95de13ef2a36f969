"""A job that is done again and again in one process, at whatever numbers its leaves hold by then.

Arrays stay where they are: a program writes into those of the leaves, evaluates, and reads outputs
and gradients. A small circuit of scalars computes in them, so that an evaluation is one call of a
kernel; everything else is computed as for a request, and copied to where it belongs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf

import numpy as np

from gradwire_server.engine.evaluation import Job
from gradwire_server.engine.runs import Named, Run, Slab
from gradwire_server.engine.small import Recipe, find_recipe
from gradwire_server.gates.base import Array
from gradwire_server.plan import static_leaves

Chosen = tuple[list[Slab], list[Slab]]


@dataclass(frozen=True)
class Repeated:
    """Outputs and gradients as of the last run; for one thread at a time."""

    run: Callable[[], None]  # forward and backward
    leaves: Mapping[str, Array]  # to be written to, save those that shapes depend on
    outputs: Mapping[str, Array]
    gradients: Mapping[str, Array]  # of the chosen leaves
    chosen: Callable[[], Chosen]  # values and gradients that are returned besides
    packed: tuple[Array, Array] | None = None  # all chosen leaves, and their gradients, end to end
    never_refuses: bool = False  # whatever the leaves hold


def repeat(job: Job) -> Repeated:
    """The job, done once, to be done again."""
    recipe = find_recipe(job.compiled.program, job.choice, job.seeds, most_bytes=inf)
    # truths are numbers on a tape
    if recipe is not None and {spec.dtype for spec in job.point.specs} == {recipe.program.dtype}:
        return _in_place(job, recipe)
    return _Copying(job).repeated()


def _in_place(job: Job, recipe: Recipe) -> Repeated:
    settled = recipe.settle(job.point.arrays, job.seeds)
    settled.run()

    def chosen() -> Chosen:
        return (
            [Slab(part, settled.values) for part in recipe.value_parts],
            [Slab(part, settled.grads) for part in recipe.gradient_parts],
        )

    held = settled.leaves, settled.outputs, settled.gradients
    return Repeated(settled.run, *held, chosen, settled.packed, never_refuses=True)


class _Copying:
    """A job that is carried out as requests are."""

    def __init__(self, job: Job) -> None:
        arrays = tuple(np.array(each) for each in job.point.arrays)
        for position in static_leaves(job.plan.graph):
            arrays[position].flags.writeable = False
        self._job = job.at(arrays)
        self._outputs: dict[str, Array] = {}
        self._gradients: dict[str, Array] = {}
        self._chosen: Chosen = [], []
        self._run()

    def repeated(self) -> Repeated:
        graph, arrays = self._job.plan.graph, self._job.point.arrays
        leaves = {
            leaf.name: array
            for leaf, array in zip(graph.leaves, arrays, strict=True)
            if leaf.kind != "constant"
        }
        return Repeated(self._run, leaves, self._outputs, self._gradients, lambda: self._chosen)

    def _run(self) -> None:
        self._chosen = [], []  # gives its buffers back
        outputs, gradients, values, grads = Run(self._job).complete(_never)
        _copy(outputs, self._outputs)
        _copy(gradients, self._gradients)
        self._chosen = values, grads


def _copy(found: Named, kept: dict[str, Array]) -> None:
    for name, array in found:
        if name in kept:
            kept[name][...] = array
        else:
            kept[name] = np.array(array)


def _never() -> bool:
    return False
