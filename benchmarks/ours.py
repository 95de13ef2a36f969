"""Gradwire's engine in this process, as its service uses it."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from benchmarks.circuits import Floats
from gradwire_server.codec import decode_graph
from gradwire_server.engine import evaluation
from gradwire_server.engine.evaluation import ALL, Binding, Evaluation, Found, Job, Slab
from gradwire_server.limits import Limits

LIMITS = Limits(max_memory_bytes=16 << 30)


class Ours:
    """A planned evaluation of a graph whose only input is `x`; every value and gradient is kept."""

    def __init__(self, data: bytes, x: Floats, batched: bool = False) -> None:
        self.job = prepared(data, x, batched)

    def run(self) -> Found:
        return run(self.job)

    def found(self) -> tuple[Floats, Floats]:
        """Values and gradients by id, [ids] or [ids, rows]."""
        _, _, values, gradients = self.run()
        return _stacked(values), _stacked(gradients)


def prepared(data: bytes, x: Floats, batched: bool = False) -> Job:
    """From the bytes of a graph to a plan that is ready to run."""
    wanted = Evaluation(
        bindings={"x": Binding(x, batched)},
        batch_size=len(x) if batched else 0,
        values=ALL,
        gradients=ALL,
    )
    return evaluation.prepare(decode_graph(data, LIMITS), wanted, LIMITS)


def run(job: Job) -> Found:
    with np.errstate(all="ignore"):  # as the service does
        return evaluation.run(job, _never)


def unseen(data: bytes, x: Floats) -> Found:
    """From the bytes of a graph to its last gradient."""
    return run(prepared(data, x))


def _stacked(slabs: Iterable[Slab]) -> Floats:
    """All slabs as one array in the order of ids."""
    slabs = list(slabs)
    ids = np.concatenate([slab.ids for slab in slabs])
    stacked = np.concatenate([slab.stacked(0, len(slab.ids)) for slab in slabs])
    return stacked[np.argsort(ids)]


def _never() -> bool:
    return False
