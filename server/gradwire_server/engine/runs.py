"""Carries out a job: forward, then backward as often as is wanted, block by block."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import numpy as np

from gradwire_server.engine import array, blas, windows
from gradwire_server.engine.batches import BatchRecipe
from gradwire_server.engine.evaluation import Choice, Job, Part
from gradwire_server.engine.joined import JoinedPasses
from gradwire_server.engine.small import Recipe
from gradwire_server.engine.tape import TapePasses
from gradwire_server.errors import Stopped
from gradwire_server.gates.base import Array
from gradwire_server.graph import Ids
from gradwire_server.memory import Lifetimes
from gradwire_server.plan import Plan
from gradwire_server.specs import Shape


class Store(Protocol):
    """Values, or gradients, by id; zeros for a gradient that nothing reached."""

    def one(self, value_id: int) -> Array:
        """A value, in its shape."""

    def stacked(self, ids: Ids) -> Array:
        """[ids, *shape], of ids that have one data type and shape."""


class Passes(Protocol):
    """An engine at work on one evaluation."""

    @property
    def values(self) -> Store: ...

    @property
    def gradients(self) -> Store: ...

    def forward(self) -> Iterator[int]:
        """Yields, after each block and at the end, the first id that is not computed yet."""

    def backward(self, seeds: Mapping[int, Array], lifetimes: Lifetimes) -> Iterator[int]:
        """Yields, after each block and at the end, the lowest id whose gradient is complete."""


class Slab(NamedTuple):
    """The values (or gradients) of a part."""

    part: Part
    store: Store

    def arrays(self) -> Iterator[Array]:
        """One array for each id."""
        return map(self.store.one, self.part.flat_ids.tolist())

    def stacked(self, start: int, stop: int) -> Array:
        """[ids, *shape], of some of the ids."""
        return self.store.stacked(self.part.flat_ids[start:stop])

    def summary(self) -> dict[str, list[float]]:
        """Figures in place of elements."""
        return _summary(self.stacked(0, len(self.part.ids)))


_NONE: Mapping[str, Array] = {}

Named = list[tuple[str, Array]]
#: Outputs, leaf gradients, chosen values, chosen gradients.
Found = tuple[Named, Named, list[Slab], list[Slab]]


class Run:
    """One evaluation of a job. What it yields is to be read before the next backward pass."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self._has_values = False

    @cached_property
    def _passes(self) -> Passes:
        compiled, leaves = self.job.compiled, self.job.point.arrays
        if compiled.program is not None:
            return TapePasses.at(compiled.program, leaves)
        if compiled.joined is not None:
            return JoinedPasses(compiled.joined, leaves)
        return ArrayPasses(self.job)

    def forward(self) -> Iterator[list[Slab]]:
        """Computes all values; now and then yields parts of those chosen, ids ascending."""
        choice, low = self.job.choice, 0
        values = self._passes.values
        for stop in self._passes.forward():
            high = choice.values_before(stop)
            yield [Slab(part, values) for part in choice.value_parts(low, high)]
            low = high
        self._has_values = True

    def backward(
        self, seeds: Mapping[int, Array], choice: Choice | None = None
    ) -> Iterator[list[Slab]]:
        """Computes the gradients; now and then yields parts of those chosen, last ids first.

        The choice is the job's if there is none.
        """
        choice = choice or self.job.choice
        high = len(choice.gradients.ids)
        for start in self._passes.backward(seeds, choice.lifetimes):
            low = choice.gradients_before(start)
            gradients = self._passes.gradients
            yield [Slab(part, gradients) for part in choice.gradient_parts(low, high)]
            high = low

    def outputs(self, taken: Mapping[str, Array] = _NONE) -> Iterator[tuple[str, Array]]:
        """Every output by name; with a batch, all have the leading axis.

        Those taken are here already.
        """
        plan, values = self.job.plan, self._passes.values
        rows = (plan.batch_size,) if plan.batch_size else ()
        for output in plan.graph.outputs:
            ids = output.value_ids
            if output.name in taken:
                yield output.name, taken[output.name]
                continue
            if len(ids) > 1 and (not rows or plan.batched[ids].all()):
                yield output.name, values.stacked(ids).T
                continue
            whole = (*rows, *plan.spec(ids[0]).shape)
            found = [_repeated(values.one(i), whole) for i in ids.tolist()]
            yield output.name, found[0] if len(found) == 1 else np.stack(found, axis=-1)

    def leaf_gradients(
        self, choice: Choice | None = None, taken: Mapping[str, Array] = _NONE
    ) -> Iterator[tuple[str, Array]]:
        """The gradients of the chosen leaves by name; those taken are here already."""
        gradients = self._passes.gradients
        for leaf in (choice or self.job.choice).leaf_places:
            if leaf.name in taken:
                yield leaf.name, taken[leaf.name]
            elif not leaf.elements:
                yield leaf.name, gradients.one(int(leaf.ids[0]))
            elif len(leaf.ids):
                stacked = gradients.stacked(leaf.ids)
                yield leaf.name, stacked.T.reshape(leaf.shape)  # of numbers, or rows of numbers
            else:
                yield leaf.name, np.zeros(leaf.shape, leaf.dtype)

    def gradients(self) -> Named:
        """Those of the leaves as they are answered: by name, or in the order of packed ones."""
        packing = self.job.packing
        if packing is None:
            return list(self.leaf_gradients())
        if packing.ids is not None:
            return [("", packing.gathered(self._passes.gradients.stacked))]
        found = dict(self.leaf_gradients())
        return [(name, found[name]) for name in packing.names]

    def complete(self, stopped: Callable[[], bool]) -> Found:
        """Everything at once (Stopped, within a block, where nobody waits any more)."""
        recipe = self.job.recipe
        if recipe is None:
            return self._by_blocks(stopped)
        if isinstance(recipe, BatchRecipe):
            return self._by_rows(recipe, stopped)
        if stopped():
            raise Stopped
        return _followed(recipe, self.job)

    @np.errstate(all="ignore")  # NaN and infinity are values, not errors
    def _by_blocks(self, stopped: Callable[[], bool]) -> Found:
        slabs = _collect(self.forward(), stopped)
        outputs = list(self.outputs())
        if self.job.forward_only:
            return outputs, [], slabs, []
        pulled = _collect(self.backward(self.job.seeds), stopped)
        return outputs, self.gradients(), slabs, pulled

    @np.errstate(all="ignore")
    def _by_rows(self, recipe: BatchRecipe, stopped: Callable[[], bool]) -> Found:
        passes = TapePasses(recipe.program)
        taken = recipe.follow(passes, self.job.point.arrays, stopped)
        self._passes, self._has_values = passes, True
        values, gradients = passes.values, passes.gradients
        return (
            list(self.outputs(taken.outputs)),
            [] if self.job.forward_only else list(self.leaf_gradients(taken=taken.gradients)),
            [Slab(part, values) for part in recipe.value_parts],
            [Slab(part, gradients) for part in recipe.gradient_parts],
        )

    @np.errstate(all="ignore")
    def pull(
        self,
        seeds: Mapping[int, Array],
        stopped: Callable[[], bool],
        choice: Choice | None = None,
    ) -> tuple[Named, list[Slab]]:
        """The backward pass alone, over the values that were computed before."""
        if not self._has_values:  # a small recipe leaves none behind
            _collect(self.forward(), stopped)
        pulled = _collect(self.backward(seeds, choice), stopped)
        return list(self.leaf_gradients(choice)), pulled


class ArrayPasses:
    """The array engine at work: a list of arrays by id."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._values = _leaf_values(job)
        self.values = _Listed(job.plan, self._values)
        self.gradients = _Listed(job.plan, [])

    def forward(self) -> Iterator[int]:
        lifetimes = self._job.choice.lifetimes
        releases = None if lifetimes.is_small else lifetimes.releases
        plan, regions = self._job.plan, self._job.compiled.regions
        with blas.one_thread(plan.most_bytes):
            yield from array.forward(windows.namespace(), plan, self._values, releases, regions)

    def backward(self, seeds: Mapping[int, Array], lifetimes: Lifetimes) -> Iterator[int]:
        assert lifetimes.kept.needed is not None, "a choice that is not forward_only"
        needed: list[bool] = lifetimes.kept.needed.tolist()
        kept = None if lifetimes.is_small else lifetimes.kept
        grads: list[Array | None] = [None] * len(self._values)
        for value_id, given in seeds.items():
            grads[value_id] = given
        plan, regions = self._job.plan, self._job.compiled.regions
        self.gradients = _Listed(plan, grads)
        with blas.one_thread(plan.most_bytes):
            yield from array.backward(
                windows.namespace(), plan, self._values, grads, needed, kept, regions
            )


class _Listed:
    def __init__(self, plan: Plan, found: list[Array | None]) -> None:
        self._plan = plan
        self._found = found

    def one(self, value_id: int) -> Array:
        found = self._found[value_id]
        if found is None:
            return np.zeros(self._plan.shape(value_id), self._plan.spec(value_id).dtype)
        return np.asarray(found)

    def stacked(self, ids: Ids) -> Array:
        first = int(ids[0])
        shape, dtype = self._plan.shape(first), self._plan.spec(first).dtype
        found = [self._found[i] for i in ids.tolist()]
        if not shape:
            return np.array([0 if each is None else each for each in found], dtype)
        out = np.zeros((len(found), *shape), dtype)
        for place, each in zip(out, found, strict=True):
            if each is not None:
                place[...] = each
        return out


def run(job: Job, stopped: Callable[[], bool]) -> Found:
    """The whole evaluation at once (Stopped, within a block, where nobody waits any more)."""
    return Run(job).complete(stopped)


def _followed(recipe: Recipe, job: Job) -> Found:
    outputs, values, gradients = recipe.follow(job.point.arrays, job.seeds)
    packing = job.packing
    return (
        outputs,
        recipe.leaf_gradients(gradients)
        if packing is None
        else [("", packing.gathered(gradients.stacked))],
        [Slab(part, values) for part in recipe.value_parts],
        [Slab(part, gradients) for part in recipe.gradient_parts],
    )


def _collect(blocks: Iterator[list[Slab]], stopped: Callable[[], bool]) -> list[Slab]:
    found: list[Slab] = []
    for slabs in blocks:
        if stopped():
            raise Stopped
        found.extend(slabs)
    return found


def _leaf_values(job: Job) -> list[Any]:
    """The values of all leaves, by id, as the array engine wants them."""
    values: list[Any] = [None]
    for leaf, given, batched in zip(
        job.plan.graph.leaves, job.point.arrays, job.point.batched, strict=True
    ):
        if not leaf.elements:
            values.append(given)
        elif batched:
            values.extend(np.ascontiguousarray(given.reshape(job.point.batch_size, -1).T))
        else:
            values.extend(given.reshape(-1))
    return values


def _repeated(array: Array, shape: Shape) -> Array:
    return array if array.shape == shape else np.broadcast_to(array, shape)


def _summary(stacked: Array) -> dict[str, list[float]]:
    flat = stacked.reshape(len(stacked), -1).astype(np.float64)
    missing = np.isnan(flat)
    count = flat.shape[1] - missing.sum(axis=1)
    some = count > 0
    with np.errstate(all="ignore"):
        numbers = np.where(missing, 0.0, flat)
        largest = np.abs(numbers).max(axis=1, initial=0.0)
        scale = np.where((largest > 0) & np.isfinite(largest), largest, 1.0)
        norm = scale * np.sqrt(((numbers / scale[:, None]) ** 2).sum(axis=1))
        figures = {
            "minimum": np.where(
                some, np.where(missing, np.inf, flat).min(1, initial=np.inf), np.nan
            ),
            "maximum": np.where(
                some, np.where(missing, -np.inf, flat).max(1, initial=-np.inf), np.nan
            ),
            "mean": np.where(some, numbers.sum(axis=1) / count, np.nan),
            "norm": norm,
            "nan_count": missing.sum(axis=1),
            "infinity_count": np.isinf(flat).sum(axis=1),
        }
    return {name: figure.tolist() for name, figure in figures.items()}
