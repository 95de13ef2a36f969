"""Gradwire's engine in this process, as its service uses it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from gradwire_server.codec.graphs import decode_graph
from gradwire_server.engine import evaluation, kernels, runs
from gradwire_server.engine.evaluation import ALL, Binding, Evaluation, Job, Selection
from gradwire_server.engine.repeated import repeat
from gradwire_server.engine.runs import Found, Slab
from gradwire_server.limits import Limits

Numbers = npt.NDArray[Any]

LIMITS = Limits(max_memory_bytes=16 << 30)


class Ours:
    """A planned evaluation of a graph; every value and every gradient is kept, unless told less."""

    def __init__(self, data: bytes, bindings: Mapping[str, Numbers], **options: Any) -> None:
        warm_up()
        self.job = prepared(data, bindings, **options)

    def run(self) -> Found:
        """In new arrays, as for a request."""
        return run(self.job)

    def in_place(self) -> Callable[[], None]:
        """The same in arrays that stay where they are, as `gw.Evaluator` does it."""
        return repeat(self.job).run

    def found(self) -> tuple[Numbers, Numbers]:
        """Values and gradients by id, along the first axis."""
        _, _, values, gradients = self.run()
        return _stacked(values), _stacked(gradients)


@cache
def warm_up() -> None:
    """Compiled kernels in this process, as a server has them (RuntimeError: there are none)."""
    if kernels.loaded("float64") is None:
        raise RuntimeError("there are no compiled kernels here; install the package again")
    kernels.load()


def prepared(
    data: bytes,
    bindings: Mapping[str, Numbers],
    rows: int = 0,
    seeds: Mapping[str, Numbers] | None = None,
    kept: Selection = ALL,
) -> Job:
    """From the bytes of a graph to a plan that is ready to run; with rows, all are batched."""
    wanted = Evaluation(
        bindings={name: Binding(array, bool(rows)) for name, array in bindings.items()},
        batch_size=rows,
        seeds=seeds or {},
        values=kept,
        gradients=kept,
    )
    return evaluation.prepare(decode_graph(data, LIMITS), wanted, LIMITS)


def run(job: Job) -> Found:
    """Forward and backward."""
    return runs.run(job, _never)


def _stacked(slabs: Iterable[Slab]) -> Numbers:
    """All slabs as one array in the order of ids."""
    slabs = list(slabs)
    ids = np.concatenate([slab.part.ids for slab in slabs])
    stacked = np.concatenate([slab.stacked(0, len(slab.part.ids)) for slab in slabs])
    return stacked[np.argsort(ids)]


def _never() -> bool:
    return False
