"""Indexing: gates that choose elements by their position, put them there, or order them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

from gradwire_server.errors import Invalid
from gradwire_server.gates.base import (
    Array,
    Attribute,
    Example,
    Gate,
    Input,
    Namespace,
    Rejection,
    Sample,
    Scratch,
    guarded,
)
from gradwire_server.gates.common import Ints, integers, ints, scatter_along, sorting, vector_shape
from gradwire_server.specs import (
    ANY,
    BOOLS,
    INDICES,
    LARGEST,
    NUMBERS,
    STORED,
    Shape,
    TensorSpec,
    normalize_axis,
)

#: Elements of an array at the places a gate was given.
Take = Callable[[Array], Array]
#: A copy of an array with updates at those places, combined in some way.
Put = Callable[[Array, Array, str], Array]

_CACHED = (*ANY, *(dtype for dtype in STORED if dtype not in ("uint2", "int2")))
_NOT_BFLOAT16 = tuple(dtype for dtype in NUMBERS if dtype != "bfloat16")
_REDUCTION = Attribute(
    "reduction", "string", "none", choices=("none", "add", "mul", "max", "min"),
    doc="How an update meets what is there.",
)  # fmt: skip


def _pick(xp: Namespace, x: Array, indices: Array, axis: int) -> Array:
    """x[.., indices[i], ..]: one element for each index; x may be longer along other axes."""
    rank = len(x.shape)
    stops = tuple(x.shape[each] if each == axis else indices.shape[each] for each in range(rank))
    if stops != x.shape:
        x = xp.slice(x, (0,) * rank, stops, (1,) * rank)
    return xp.take_along_axis(x, indices, axis=axis)


def _require_fitting(data: TensorSpec, indices: TensorSpec, axis: int) -> None:
    fits = data.rank == indices.rank and all(
        mine <= theirs
        for each, (mine, theirs) in enumerate(zip(indices.shape, data.shape, strict=False))
        if each != axis
    )
    if not fits:
        raise Invalid(
            "SHAPE_MISMATCH",
            f"indices of shape {indices.shape} do not fit data of shape {data.shape}: the rank "
            "must be the same, and no axis but the chosen one longer",
        )


def _pull_scatter(
    xp: Namespace,
    grad: Array,
    out: Array,
    data: Array,
    updates: Array,
    reduction: str,
    take: Take,
    put: Put,
) -> tuple[Any, ...]:
    """Gradients of data, indices and updates."""
    if reduction == "add":
        return grad, None, lambda: take(grad)
    if reduction == "none":
        return _pull_set(xp, grad, data, updates, take, put)
    if reduction == "mul":
        return _pull_product(xp, grad, data, updates, take, put)
    return _pull_extreme(xp, grad, out, data, updates, take, put)


def _pulling_scatter(data: TensorSpec, updates: TensorSpec, places: int, reduction: str) -> int:
    """Bytes held by what `_pull_scatter` makes on the way."""
    if reduction == "add":
        return updates.nbytes - data.nbytes  # whose gradient is that of the output
    # positions are integers of eight bytes, whatever the elements are
    if reduction == "none":
        finding = 16 * data.size + 8 * updates.size + places - updates.nbytes
        return max(finding, 17 * updates.size + updates.nbytes)
    if reduction == "mul":
        return 8 * data.size + int(41.1 * updates.size) + 5 * updates.nbytes
    return int(3 * data.nbytes + 1.05 * updates.nbytes)


def _pull_set(
    xp: Namespace, grad: Array, data: Array, updates: Array, take: Take, put: Put
) -> tuple[Any, ...]:
    def to_updates() -> Array:
        number = integers(xp, range(prod(updates.shape)), updates.shape)
        winner = take(put(xp.full(data.shape, -1, "int64"), number, "none"))
        return take(grad) * xp.astype(xp.equal(winner, number), str(grad.dtype))

    return lambda: put(grad, xp.zeros_like(updates), "none"), None, to_updates


def _pull_product(
    xp: Namespace, grad: Array, data: Array, updates: Array, take: Take, put: Put
) -> tuple[Any, ...]:
    def to_updates() -> Array:
        count = prod(updates.shape)
        numbers = integers(xp, range(prod(data.shape)), data.shape)
        others = _products_of_others(
            xp, xp.reshape(updates, (count,)), xp.reshape(take(numbers), (count,))
        )
        slope = take(data) * xp.reshape(others, updates.shape)
        return guarded(xp, take(grad), slope)

    return guarded(xp, grad, put(xp.ones_like(data), updates, "mul")), None, to_updates


def _products_of_others(xp: Namespace, factors: Array, places: Array) -> Array:
    """For each factor the product of all others that have its place.

    Nothing is divided, so zeros are exact, in derivatives of every order too: factors are sorted by
    their places, and each is multiplied with those before it, and with those behind it, of its
    place; of one, two, four, ... more in each round.
    """
    (count,) = factors.shape
    if count < 2:
        return xp.ones_like(factors)
    order = xp.top_indices(places, count, 0, False)
    sorted_places = xp.take(places, order, axis=0)
    before = after = xp.take(factors, order, axis=0)
    ones = xp.ones_like(factors)

    def part(x: Array, start: int, stop: int) -> Array:
        return xp.slice(x, (start,), (stop,), (1,))

    def neighbours(x: Array, step: int, toward: int) -> Array:
        """x[i + step * toward] where that has the same place; 1 where it has not."""
        same = xp.equal(part(sorted_places, step, count), part(sorted_places, 0, count - step))
        source = part(x, step, count) if toward > 0 else part(x, 0, count - step)
        near, rest = xp.where(same, source, 1.0), part(ones, 0, step)
        return xp.concat([near, rest] if toward > 0 else [rest, near], axis=0)

    before, after = neighbours(before, 1, -1), neighbours(after, 1, 1)
    step = 1
    while step < count:
        before = before * neighbours(before, step, -1)
        after = after * neighbours(after, step, 1)
        step *= 2
    return xp.scatter(xp.zeros_like(factors), order, before * after, 0)


def _pull_extreme(
    xp: Namespace, grad: Array, out: Array, data: Array, updates: Array, take: Take, put: Put
) -> tuple[Any, ...]:
    dtype = str(grad.dtype)
    stays = xp.astype(xp.equal(data, out), dtype)
    comes = xp.astype(xp.equal(updates, take(out)), dtype)
    ties = put(stays, comes, "add")
    share = grad / xp.maximum(ties, xp.ones_like(ties))
    return share * stays, None, comes * take(share)


class Gather(Gate):
    """Slices of a tensor, chosen by their position along an axis.

    Formula:   out[.., i, ..] = data[.., indices[i], ..]; negative indices count from the end
    Gradient:  d out/d data = 1 on the slices taken, once for each time
    Shapes:    data's, with indices' in place of axis.
    """

    operator = "Gather"
    takes_halves = True
    inputs = (Input("data", ANY), Input("indices", INDICES, "I"))
    attributes = (Attribute("axis", "int", 0, doc="Where slices are chosen."),)
    examples = (
        Example(([1.0, 2.0, 3.0], [2, 0, 2]), [3.0, 1.0, 3.0], gradients=([1.0, 0.0, 2.0], None)),
        Example(([[1, 2], [3, 4]], -1), [2, 4], attributes={"axis": 1}),
    )
    samples = (
        Sample((TensorSpec((3, 4)), TensorSpec((2, 2), "int64", (0, 1, -1, 0)))),
        Sample((TensorSpec((3, 4)), TensorSpec((), "int64", (2,))), {"axis": -1}),
        Sample((TensorSpec((2, 3, 4)), TensorSpec((0,), "int64", ())), {"axis": 1}),
    )
    rejections = (
        Rejection(
            (TensorSpec(()), TensorSpec((), "int64")), "axis 0 is outside", "ATTRIBUTE_INVALID"
        ),
    )

    def infer(self, data: TensorSpec, indices: TensorSpec, axis: int) -> TensorSpec:
        along = normalize_axis(axis, data.rank)
        shape = (*data.shape[:along], *indices.shape, *data.shape[along + 1 :])
        return TensorSpec(shape, data.dtype)

    def scratch(
        self, outs: Sequence[TensorSpec], data: TensorSpec, indices: TensorSpec, axis: int
    ) -> Scratch:
        return Scratch(0, data.nbytes + int(3.05 * 8 * outs[0].size))

    def forward(self, xp: Namespace, data: Array, indices: Array, axis: int) -> Array:
        xp.require_indices(indices, data.shape[axis], "indices")
        return xp.take(data, indices, axis=axis)

    def vjp(
        self, xp: Namespace, grad: Array, out: Array, data: Array, indices: Array, axis: int
    ) -> tuple[Any, ...]:
        def to_data() -> Array:
            along = normalize_axis(axis, len(data.shape))
            count = prod(indices.shape)
            shape = (*data.shape[:along], count, *data.shape[along + 1 :])
            lying = xp.reshape(indices, vector_shape(along, count, len(shape)))
            zeros = xp.zeros_like(data)
            whole = xp.broadcast_to(lying, shape)
            return xp.scatter(zeros, whole, xp.reshape(grad, shape), along, "add")

        return to_data, None


class GatherElements(Gate):
    """Elements of a tensor, each chosen by its own index along an axis.

    Formula:   out[i, j] = data[indices[i, j], j] for axis 0; negative indices count from the end
    Gradient:  d out/d data = 1 on the elements taken, once for each time
    Shapes:    indices'; of data's rank, and no longer along other axes.
    """

    operator = "GatherElements"
    inputs = (Input("data", ANY), Input("indices", INDICES, "I"))
    attributes = (Attribute("axis", "int", 0, doc="What indices count along."),)
    examples = (
        Example(
            ([[1.0, 2.0], [3.0, 4.0]], [[0, 0], [1, 0]]), [[1.0, 1.0], [4.0, 3.0]],
            gradients=([[2.0, 0.0], [1.0, 1.0]], None), attributes={"axis": 1},
        ),
        Example(([1, 2, 3], [-1, 0]), [3, 1]),
    )  # fmt: skip
    samples = (
        Sample((TensorSpec((3, 3)), TensorSpec((2, 2), "int64", (0, 2, 1, 1)))),
        Sample((TensorSpec((3,)), TensorSpec((0,), "int64", ()))),
    )
    rejections = (
        Rejection(
            (TensorSpec((2, 2)), TensorSpec((2,), "int64")),
            "indices of shape (2,) do not fit data of shape (2, 2)",
        ),
    )

    def infer(self, data: TensorSpec, indices: TensorSpec, axis: int) -> TensorSpec:
        _require_fitting(data, indices, normalize_axis(axis, data.rank))
        return TensorSpec(indices.shape, data.dtype)

    def scratch(
        self, outs: Sequence[TensorSpec], data: TensorSpec, indices: TensorSpec, axis: int
    ) -> Scratch:
        return Scratch(0, data.nbytes + int(3.05 * 8 * indices.size))

    def forward(self, xp: Namespace, data: Array, indices: Array, axis: int) -> Array:
        xp.require_indices(indices, data.shape[axis], "indices")
        return _pick(xp, data, indices, normalize_axis(axis, len(data.shape)))

    def vjp(
        self, xp: Namespace, grad: Array, out: Array, data: Array, indices: Array, axis: int
    ) -> tuple[Any, ...]:
        along = normalize_axis(axis, len(data.shape))
        return lambda: xp.scatter(xp.zeros_like(data), indices, grad, along, "add"), None


class ScatterElements(Gate):
    """A tensor with elements replaced, each at its own index along an axis; or combined.

    Formula:   out = data, then out[indices[i, j], j] = updates[i, j] for axis 0; or with reduction
               add, mul, max, min what was there combined with it
    Gradient:  to data and updates what the reduction gives each, for mul the product of all others,
               which divides nothing, so zeros are exact, in every order; where indices repeat
               without one, the last update counts
    Kinks:     For max and min, data and updates that tie share the gradient equally.
    Shapes:    As data; indices and updates equal, of data's rank, no longer along other axes.
    """

    operator = "ScatterElements"
    inputs = (Input("data", ANY), Input("indices", INDICES, "I"), Input("updates", ANY))
    attributes = (
        Attribute("axis", "int", 0, doc="What indices count along."),
        _REDUCTION,
    )
    examples = (
        Example(
            ([1.0, 2.0, 3.0], [0, 0], [5.0, 6.0]), [6.0, 2.0, 3.0],
            gradients=([0.0, 1.0, 1.0], None, [0.0, 1.0]),
        ),
        Example(
            ([1.0, 2.0], [1, 1], [5.0, 6.0]), [1.0, 13.0],
            gradients=([1.0, 1.0], None, [1.0, 1.0]), attributes={"reduction": "add"},
        ),
        Example(
            ([1.0, 2.0], [1, 1], [5.0, 0.0]), [1.0, 0.0],
            gradients=([1.0, 0.0], None, [0.0, 10.0]), attributes={"reduction": "mul"},
        ),
        Example(
            ([1.0, 2.0], [1, -1], [2.0, 1.0]), [1.0, 2.0],
            gradients=([1.0, 0.5], None, [0.5, 0.0]), attributes={"reduction": "max"},
            at_kink=True,
        ),
        Example(([1, 2], [0], [9]), [9, 2]),
    )  # fmt: skip
    samples = tuple(
        Sample(
            (TensorSpec((3, 3)), TensorSpec((2, 2), "int64", (0, 2, 0, 1)), TensorSpec((2, 2))),
            {"axis": axis, "reduction": reduction},
        )
        for axis, reduction in ((0, "none"), (1, "none"), (-1, "add"), (0, "mul"), (0, "max"),
                                (1, "min"))
    )  # fmt: skip
    rejections = (
        Rejection(
            (TensorSpec((3,)), TensorSpec((2,), "int64"), TensorSpec((1,))),
            "indices have shape (2,) but updates have shape (1,)",
        ),
    )

    def infer(
        self,
        data: TensorSpec,
        indices: TensorSpec,
        updates: TensorSpec,
        axis: int,
        reduction: str,
    ) -> TensorSpec:
        _require_fitting(data, indices, normalize_axis(axis, data.rank))
        if indices.shape != updates.shape:
            raise Invalid(
                "SHAPE_MISMATCH",
                f"indices have shape {indices.shape} but updates have shape {updates.shape}",
            )
        return TensorSpec(data.shape, data.dtype)

    def scratch(
        self,
        outs: Sequence[TensorSpec],
        data: TensorSpec,
        indices: TensorSpec,
        updates: TensorSpec,
        axis: int,
        reduction: str,
    ) -> Scratch:
        places = int(3.05 * 8 * indices.size)
        return Scratch(places, _pulling_scatter(data, updates, places, reduction))

    def forward(
        self,
        xp: Namespace,
        data: Array,
        indices: Array,
        updates: Array,
        axis: int,
        reduction: str,
    ) -> Array:
        xp.require_indices(indices, data.shape[axis], "indices")
        along = normalize_axis(axis, len(data.shape))
        return xp.scatter(data, indices, updates, along, reduction)

    def vjp(
        self,
        xp: Namespace,
        grad: Array,
        out: Array,
        data: Array,
        indices: Array,
        updates: Array,
        axis: int,
        reduction: str,
    ) -> tuple[Any, ...]:
        along = normalize_axis(axis, len(data.shape))
        return _pull_scatter(
            xp, grad, out, data, updates, reduction,
            lambda x: _pick(xp, x, indices, along),
            lambda x, given, how: xp.scatter(x, indices, given, along, how),
        )  # fmt: skip


class GatherND(Gate):
    """Slices of a tensor, each chosen by a vector of positions along its first axes.

    Formula:   out[i] = data[indices[i, 0], indices[i, 1], ..]; with batch_dims, out[b, i] =
               data[b, indices[b, i, 0], ..]; negative indices count from the end
    Gradient:  d out/d data = 1 on the slices taken, once for each time
    Shapes:    indices' without its last axis, whose size is how many axes it counts along, and
               then the rest of data's.
    """

    operator = "GatherND"
    inputs = (Input("data", ANY), Input("indices", ("int64",), "I"))
    attributes = (
        Attribute("batch_dims", "int", 0, doc="How many first axes data and indices share."),
    )
    examples = (
        Example(
            ([[1.0, 2.0], [3.0, 4.0]], [[0, 0], [1, -1]]), [1.0, 4.0],
            gradients=([[1.0, 0.0], [0.0, 1.0]], None),
        ),
        Example(
            ([[1.0, 2.0], [3.0, 4.0]], [[1], [0]]), [2.0, 3.0],
            gradients=([[0.0, 1.0], [1.0, 0.0]], None), attributes={"batch_dims": 1},
        ),
        Example(([[1, 2], [3, 4]], [[1]]), [[3, 4]]),
    )  # fmt: skip
    samples = (
        Sample((TensorSpec((3, 4, 2)), TensorSpec((2, 1, 2), "int64", (0, 1, -1, 3)))),
        Sample((TensorSpec((2, 3, 4)), TensorSpec((2, 2, 1), "int64", (0, 2, 1, 1))),
               {"batch_dims": 1}),
        Sample((TensorSpec((2, 1, 3, 2)), TensorSpec((2, 1, 2), "int64", (0, 1, 2, -1))),
               {"batch_dims": 2}),
        Sample((TensorSpec((3,)), TensorSpec((0, 1), "int64", ()))),
    )  # fmt: skip
    rejections = (
        Rejection((TensorSpec((3,)), TensorSpec((2, 2), "int64")),
                  "indices count along 2 axes after the 0 of batch_dims, but data has 1"),
        Rejection((TensorSpec((3, 2)), TensorSpec((2, 1), "int64")), attributes={"batch_dims": 1},
                  message="the first 1 axes of data are (3,) but those of indices are (2,)"),
        Rejection((TensorSpec((3, 2)), TensorSpec((3, 1), "int64")), attributes={"batch_dims": 2},
                  message="batch_dims is 2 but indices have rank 2", reason="ATTRIBUTE_INVALID"),
    )  # fmt: skip

    def infer(self, data: TensorSpec, indices: TensorSpec, batch_dims: int) -> TensorSpec:
        if not 0 <= batch_dims < max(indices.rank, 1):
            raise Invalid(
                "ATTRIBUTE_INVALID",
                f"batch_dims is {batch_dims} but indices have rank {indices.rank}: at least its "
                "last axis is none of them",
            )
        mine, theirs = data.shape[:batch_dims], indices.shape[:batch_dims]
        if mine != theirs:
            raise Invalid(
                "SHAPE_MISMATCH",
                f"the first {batch_dims} axes of data are {mine} but those of indices are {theirs}",
            )
        depth = _depth(data.shape, indices.shape, batch_dims)
        shape = (*indices.shape[:-1], *data.shape[batch_dims + depth :])
        return TensorSpec(shape, data.dtype)

    def scratch(
        self, outs: Sequence[TensorSpec], data: TensorSpec, indices: TensorSpec, batch_dims: int
    ) -> Scratch:
        return Scratch(0, data.nbytes + int(3.2 * 8 * indices.size))

    def forward(self, xp: Namespace, data: Array, indices: Array, batch_dims: int) -> Array:
        xp.require_places(indices, data.shape[batch_dims:], "indices")
        return xp.gather_nd(data, indices, batch_dims)

    def vjp(
        self, xp: Namespace, grad: Array, out: Array, data: Array, indices: Array, batch_dims: int
    ) -> tuple[Any, ...]:
        def to_data() -> Array:
            places = _with_batch_places(xp, indices, batch_dims)
            return xp.scatter_nd(xp.zeros_like(data), places, grad, "add")

        return to_data, None


class ScatterND(Gate):
    """A tensor with slices replaced, each at a vector of positions; or combined.

    Formula:   out = data, then out[indices[i, 0], indices[i, 1], ..] = updates[i]; or with
               reduction add, mul, max, min what was there combined with it
    Gradient:  to data and updates what the reduction gives each, for mul the product of all others,
               which divides nothing, so zeros are exact, in every order; where indices repeat
               without one, the last update counts
    Kinks:     For max and min, data and updates that tie share the gradient equally.
    Shapes:    As data; updates as indices without its last axis, whose size is how many axes it
               counts along, and then the rest of data's.
    """

    operator = "ScatterND"
    inputs = (Input("data", ANY), Input("indices", ("int64",), "I"), Input("updates", ANY))
    attributes = (_REDUCTION,)
    examples = (
        Example(
            ([1.0, 2.0, 3.0], [[0], [0]], [5.0, 6.0]), [6.0, 2.0, 3.0],
            gradients=([0.0, 1.0, 1.0], None, [0.0, 1.0]),
        ),
        Example(
            ([[1.0, 2.0], [3.0, 4.0]], [[1]], [[5.0, 6.0]]), [[1.0, 2.0], [8.0, 10.0]],
            gradients=([[1.0, 1.0], [1.0, 1.0]], None, [[1.0, 1.0]]),
            attributes={"reduction": "add"},
        ),
        Example(
            ([1.0, 2.0], [[1], [1]], [5.0, 0.0]), [1.0, 0.0],
            gradients=([1.0, 0.0], None, [0.0, 10.0]), attributes={"reduction": "mul"},
        ),
        Example(
            ([1.0, 2.0], [[1], [-1]], [2.0, 1.0]), [1.0, 2.0],
            gradients=([1.0, 0.5], None, [0.5, 0.0]), attributes={"reduction": "max"},
            at_kink=True,
        ),
        Example(([1, 2], [[0]], [9]), [9, 2]),
    )  # fmt: skip
    samples = (
        *(
            Sample(
                (TensorSpec((3, 2, 2)), TensorSpec((3, 2), "int64", (0, 1, 2, 0, 0, -1)),
                 TensorSpec((3, 2))),
                {"reduction": reduction},
            )
            for reduction in ("none", "add", "mul", "max", "min")
        ),
        Sample((TensorSpec((3,)), TensorSpec((2, 1, 1), "int64", (0, 2)), TensorSpec((2, 1)))),
    )  # fmt: skip
    rejections = (
        Rejection(
            (TensorSpec((3, 2)), TensorSpec((2, 1), "int64"), TensorSpec((2,))),
            "updates have shape (2,) but must have (2, 2)",
        ),
        Rejection((TensorSpec((3,)), TensorSpec((), "int64"), TensorSpec((1,))),
                  "indices have rank 0"),
    )  # fmt: skip

    def infer(
        self, data: TensorSpec, indices: TensorSpec, updates: TensorSpec, reduction: str
    ) -> TensorSpec:
        depth = _depth(data.shape, indices.shape, 0)
        wanted = (*indices.shape[:-1], *data.shape[depth:])
        if updates.shape != wanted:
            raise Invalid(
                "SHAPE_MISMATCH", f"updates have shape {updates.shape} but must have {wanted}"
            )
        return TensorSpec(data.shape, data.dtype)

    def scratch(
        self,
        outs: Sequence[TensorSpec],
        data: TensorSpec,
        indices: TensorSpec,
        updates: TensorSpec,
        reduction: str,
    ) -> Scratch:
        depth = max(indices.shape[-1], 1)
        places = int((2.15 if depth == 1 else 3.05) * 8 * indices.size / depth)
        return Scratch(places, _pulling_scatter(data, updates, places, reduction))

    def forward(
        self, xp: Namespace, data: Array, indices: Array, updates: Array, reduction: str
    ) -> Array:
        xp.require_places(indices, data.shape, "indices")
        return xp.scatter_nd(data, indices, updates, reduction)

    def vjp(
        self,
        xp: Namespace,
        grad: Array,
        out: Array,
        data: Array,
        indices: Array,
        updates: Array,
        reduction: str,
    ) -> tuple[Any, ...]:
        return _pull_scatter(
            xp, grad, out, data, updates, reduction,
            lambda x: xp.gather_nd(x, indices, 0),
            lambda x, given, how: xp.scatter_nd(x, indices, given, how),
        )  # fmt: skip


def _depth(data: Shape, indices: Shape, batch_dims: int) -> int:
    """How many axes of data the indices count along (SHAPE_MISMATCH)."""
    if not indices:
        raise Invalid("SHAPE_MISMATCH", "indices have rank 0 but must be vectors (rank 1 or more)")
    depth = indices[-1]
    if not 1 <= depth <= len(data) - batch_dims:
        raise Invalid(
            "SHAPE_MISMATCH",
            f"indices count along {depth} axes after the {batch_dims} of batch_dims, but data has "
            f"{len(data)}",
        )
    return depth


def _with_batch_places(xp: Namespace, indices: Array, batch_dims: int) -> Array:
    """The indices with the positions along the batch axes put before them."""
    one = (*indices.shape[:-1], 1)
    lying = [
        integers(xp, range(one[axis]), vector_shape(axis, one[axis], len(one)))
        for axis in range(batch_dims)
    ]
    return xp.concat([*(xp.broadcast_to(each, one) for each in lying), indices], axis=-1)


class TensorScatter(Gate):
    """A cache with an update written into it, for each row at its own position.

    Formula:   out = past_cache, then out[b, .., write_indices[b] + i, ..] = update[b, .., i, ..];
               modulo the size of axis in mode circular; from 0 without write_indices
    Gradient:  d out/d update = 1; d out/d past_cache = 1 where nothing is written
    Shapes:    As past_cache; update's differ from it along axis only, and is no longer there.
    """

    operator = "TensorScatter"
    inputs = (
        Input("past_cache", _CACHED),
        Input("update", _CACHED),
        Input("write_indices", ("int64",), "I", optional=True),
    )
    attributes = (
        Attribute("mode", "string", "linear", choices=("linear", "circular"),
                  doc="Whether writing goes on at the start after the end."),
        Attribute("axis", "int", -2, doc="Along which is written; not the first."),
    )  # fmt: skip
    examples = (
        Example(
            ([[[1.0], [2.0], [3.0]]], [[[9.0]]], [1]), [[[1.0], [9.0], [3.0]]],
            gradients=([[[1.0], [0.0], [1.0]]], [[[1.0]]], None),
        ),
        Example(([[1, 2, 3]], [[8, 9]], [2]), [[9, 2, 8]],
                attributes={"axis": 1, "mode": "circular"}),
        Example(([[1, 2, 3]], [[8, 9]]), [[8, 9, 3]], attributes={"axis": -1}),
    )  # fmt: skip
    samples = (
        Sample((TensorSpec((2, 2, 4, 3)), TensorSpec((2, 2, 2, 3)),
                TensorSpec((2,), "int64", (2, 0)))),
        Sample((TensorSpec((2, 4)), TensorSpec((2, 3)), TensorSpec((2,), "int64", (3, 7))),
               {"axis": 1, "mode": "circular"}),
        Sample((TensorSpec((2, 4)), TensorSpec((2, 3)))
               , {"axis": -1}),
    )  # fmt: skip
    rejections = (
        Rejection((TensorSpec((2, 4)), TensorSpec((2, 5))), attributes={"axis": 1},
                  message="update has shape (2, 5), which does not fit past_cache of shape (2, 4)"),
        Rejection((TensorSpec((2, 4)), TensorSpec((2, 4))), "axis -2 is the first",
                  "ATTRIBUTE_INVALID"),
        Rejection((TensorSpec((2, 4)), TensorSpec((2, 1)), TensorSpec((1,), "int64")),
                  "write_indices have shape (1,) but must have (2,)", attributes={"axis": 1}),
    )  # fmt: skip

    def infer(
        self,
        past: TensorSpec,
        update: TensorSpec,
        write: TensorSpec | None = None,
        *,
        mode: str,
        axis: int,
    ) -> TensorSpec:
        along = normalize_axis(axis, past.rank)
        if along == 0:
            raise Invalid("ATTRIBUTE_INVALID", f"axis {axis} is the first, which counts rows")
        _require_fitting_update(past.shape, update.shape, along)
        if write is not None and write.shape != past.shape[:1]:
            raise Invalid(
                "SHAPE_MISMATCH",
                f"write_indices have shape {write.shape} but must have {past.shape[:1]}",
            )
        return TensorSpec(past.shape, past.dtype)

    def scratch(
        self,
        outs: Sequence[TensorSpec],
        cache: TensorSpec,
        update: TensorSpec,
        *_: Any,
        axis: int,
        mode: str,
    ) -> Scratch:
        last = axis in (-1, cache.rank - 1)
        arrays = (2.15 if last else 3.05) + (mode == "circular")
        places = int(arrays * 8 * update.size)
        return Scratch(places, places)

    def forward(
        self,
        xp: Namespace,
        past: Array,
        update: Array,
        write: Array | None = None,
        *,
        mode: str,
        axis: int,
    ) -> Array:
        along = normalize_axis(axis, len(past.shape))
        if write is not None and mode == "linear":
            room = past.shape[along] - update.shape[along]
            xp.require_range(write, 0, room, "write_indices")
        places = self._places(xp, past.shape, update.shape, write, along)
        return xp.scatter(past, places, update, along)

    def vjp(
        self,
        xp: Namespace,
        grad: Array,
        out: Array,
        past: Array,
        update: Array,
        *write: Array | None,
        mode: str,
        axis: int,
    ) -> tuple[Any, ...]:
        along = normalize_axis(axis, len(past.shape))
        places = self._places(xp, past.shape, update.shape, write[0] if write else None, along)
        to_past = xp.scatter(grad, places, xp.zeros_like(update), along)
        return to_past, xp.take_along_axis(grad, places, axis=along), *(None for _ in write)

    def _places(
        self, xp: Namespace, past: Shape, update: Shape, write: Array | None, along: int
    ) -> Array:
        """Position along the axis of each element of the update."""
        rank, length = len(update), update[along]
        places = integers(xp, range(length), vector_shape(along, length, rank))
        if write is not None:
            starts = xp.reshape(write, vector_shape(0, update[0], rank))
            places = xp.remainder(places + starts, past[along])
        return xp.broadcast_to(places, update)


def _require_fitting_update(past: Shape, update: Shape, along: int) -> None:
    fits = len(past) == len(update) and all(
        mine == theirs or (axis == along and mine < theirs)
        for axis, (mine, theirs) in enumerate(zip(update, past, strict=True))
    )
    if not fits:
        raise Invalid(
            "SHAPE_MISMATCH",
            f"update has shape {update}, which does not fit past_cache of shape {past}: only axis "
            f"{along} may be shorter",
        )


class Compress(Gate):
    """Slices of a tensor, chosen by a condition for each position along an axis.

    Formula:   out = the slices input[.., i, ..] where condition[i], in order; without axis, of
               input flattened
    Gradient:  d out/d input = 1 on the slices taken, 0 elsewhere
    Shapes:    input's, and along axis the number of conditions that hold; a vector without axis.
               condition may be shorter than the axis: then the rest is left out.
    """

    operator = "Compress"
    scratch_arrays = (0, 1)
    inputs = (Input("input", ANY), Input("condition", BOOLS, "B", known=True))
    attributes = (
        Attribute("axis", "int", doc="Where slices are chosen; input is flattened if left out."),
    )
    examples = (
        Example(
            ([[1.0, 2.0], [3.0, 4.0]], [False, True]), [[3.0, 4.0]],
            gradients=([[0.0, 0.0], [1.0, 1.0]], None), attributes={"axis": 0},
        ),
        Example(([[1, 2], [3, 4]], [True, False, True]), [1, 3]),
    )  # fmt: skip
    samples = (
        Sample((TensorSpec((2, 3)), TensorSpec((3,), "bool", (True, False, True))), {"axis": -1}),
        Sample((TensorSpec((2, 3)), TensorSpec((5,), "bool", (True, False, True, True, False)))),
        Sample((TensorSpec((2, 3)), TensorSpec((1,), "bool", (False,))), {"axis": 0}),
    )
    rejections = (
        Rejection(
            (TensorSpec((2, 3)), TensorSpec((3,), "bool", (True, True, False))),
            "there are 3 conditions but axis 0 has size 2", attributes={"axis": 0},
        ),
        Rejection(
            (TensorSpec((2,)), TensorSpec((2,), "bool")), "condition must be known",
            "INPUT_NOT_KNOWN",
        ),
    )  # fmt: skip

    def infer(self, x: TensorSpec, condition: TensorSpec, axis: int | None) -> TensorSpec:
        assert condition.value is not None
        shape, along = (x.shape, axis) if axis is not None else ((x.size,), 0)
        along = normalize_axis(along, len(shape))
        if condition.size > shape[along]:
            raise Invalid(
                "SHAPE_MISMATCH",
                f"there are {condition.size} conditions but axis {along} has size {shape[along]}",
            )
        count = sum(map(bool, condition.value))
        return TensorSpec((*shape[:along], count, *shape[along + 1 :]), x.dtype)

    def forward(
        self, xp: Namespace, x: Array, condition: tuple[bool, ...], axis: int | None
    ) -> Array:
        places = _true_places(condition)
        if axis is None:
            x, axis = xp.reshape(x, (-1,)), 0
        return xp.take(x, integers(xp, places, (len(places),)), axis=axis)

    def vjp(
        self,
        xp: Namespace,
        grad: Array,
        out: Array,
        x: Array,
        condition: tuple[bool, ...],
        axis: int | None,
    ) -> tuple[Any, ...]:
        def to_x() -> Array:
            shape = (prod(x.shape),) if axis is None else x.shape
            along = normalize_axis(axis or 0, len(shape))
            whole = scatter_along(xp, grad, _true_places(condition), shape, along)
            return xp.reshape(whole, x.shape)

        return to_x, None


def _true_places(condition: tuple[bool, ...]) -> Ints:
    return tuple(place for place, holds in enumerate(condition) if holds)


#: Elements that are sorted at once, where an axis is no longer.
_MOST_SORTED = 1 << 22


class TopK(Gate):
    """The largest elements along an axis, and where they are.

    Formula:   Values = the K largest (or smallest) along axis, in order; Indices = their
               positions
    Gradient:  d Values/dX = 1 on the elements taken, 0 elsewhere
    Kinks:     Of equal elements the one of lowest index is taken first, and gets the gradient.
    Shapes:    X's, with size K along axis.
    """

    operator = "TopK"
    inputs = (Input("X", NUMBERS), Input("K", ("int64",), "K", known=True))
    attributes = (
        Attribute("axis", "int", -1, doc="Along which elements are compared."),
        Attribute("largest", "int", 1, choices=(0, 1), doc="0 takes the smallest."),
        Attribute("sorted", "int", 1, choices=(0, 1), doc="Without effect: the order is kept."),
    )
    outputs = (2, 2)
    output_dtypes = ("input:0", "int64")
    examples = (
        Example(([1.0, 3.0, 2.0], [2]), ([3.0, 2.0], [1, 2]), gradients=([0.0, 1.0, 1.0], None)),
        Example(([3, 1, 1, 2], [2]), ([1, 1], [1, 2]), attributes={"largest": 0}),
        Example(([2.0, 2.0], [1]), ([2.0], [0]), gradients=([1.0, 0.0], None), at_kink=True),
    )
    samples = (
        Sample((TensorSpec((3, 4)), ints(2)), {"axis": 0, "largest": 0}),
        Sample((TensorSpec((2, 3, 4)), ints(3)), {"axis": -2}),
        Sample((TensorSpec((2, 3)), ints(0))),
        Sample((TensorSpec((0, 3)), ints(2))),
    )
    rejections = (
        Rejection((TensorSpec((3,)), ints(4)), "K is 4 but axis 0 has size 3"),
        Rejection((TensorSpec((3,)), ints(1, 2)), "K has shape (2,) but must be one number"),
    )

    def infer(
        self, x: TensorSpec, k: TensorSpec, axis: int, **_: int
    ) -> tuple[TensorSpec, TensorSpec]:
        along = normalize_axis(axis, x.rank)
        if k.size != 1:
            raise Invalid("SHAPE_MISMATCH", f"K has shape {k.shape} but must be one number")
        assert k.value is not None
        count = int(k.value[0])
        if not 0 <= count <= x.shape[along]:
            raise Invalid(
                "SHAPE_MISMATCH", f"K is {count} but axis {along} has size {x.shape[along]}"
            )
        shape = (*x.shape[:along], count, *x.shape[along + 1 :])
        return TensorSpec(shape, x.dtype), TensorSpec(shape, "int64")

    def scratch(
        self, outs: Sequence[TensorSpec], x: TensorSpec, k: TensorSpec, **attributes: Any
    ) -> Scratch:
        along, sorted_at_once, copied = normalize_axis(attributes["axis"], x.rank), x.size, 0
        if x.rank > 1 and x.size > max(_MOST_SORTED, x.shape[along]):
            sorted_at_once = max(_MOST_SORTED, x.shape[along])
            copied = x.nbytes if 2 < x.rank != along + 1 else 0
        each = 16 if attributes["largest"] else 8
        return Scratch(copied + each * sorted_at_once, x.nbytes)

    def forward(
        self, xp: Namespace, x: Array, k: Ints, axis: int, largest: int, **_: int
    ) -> tuple[Array, Array]:
        indices = xp.top_indices(x, int(k[0]), axis, bool(largest))
        return xp.take_along_axis(x, indices, axis=axis), indices

    def vjp(
        self, xp: Namespace, grad: Any, out: Any, x: Array, k: Ints, axis: int, **_: int
    ) -> tuple[Any, ...]:
        along = normalize_axis(axis, len(x.shape))
        return xp.scatter(xp.zeros_like(x), out[1], grad[0], along, "add"), None

    def aligned_shapes(
        self, x: TensorSpec, k: TensorSpec, axis: int, **_: int
    ) -> tuple[Shape, ...] | None:
        return (x.shape, k.shape) if axis < 0 else None

    def operations(
        self, outs: tuple[TensorSpec, ...], x: TensorSpec, k: TensorSpec, axis: int, **_: int
    ) -> int:
        return sorting(x.size, x.shape[axis])


class OneHot(Gate):
    """Vectors that are on at one place and off everywhere else.

    Formula:   out[.., i, ..] = on where i = indices[..], off elsewhere, for values = [off, on];
               negative indices count from the end, those outside [-depth, depth) are nowhere on
    Gradient:  d out/d on = 1 at the places, d out/d off = 1 elsewhere
    Shapes:    indices', with size depth put in at axis.
    """

    operator = "OneHot"
    inputs = (
        Input("indices", _NOT_BFLOAT16, "I"),
        Input("depth", _NOT_BFLOAT16, "D", known=True),
        Input("values", ANY),
    )
    attributes = (Attribute("axis", "int", -1, doc="Where depth is put in."),)
    examples = (
        Example(
            ([1, -1], 3, [0.0, 5.0]), [[0.0, 5.0, 0.0], [0.0, 0.0, 5.0]],
            gradients=(None, None, [4.0, 2.0]),
        ),
        Example(([0, 9], [2], [0, 1]), [[1, 0], [0, 0]]),
    )  # fmt: skip
    samples = (
        Sample((TensorSpec((2, 2), "int64", (0, 1, -2, 5)), ints(4), TensorSpec((2,))),
               {"axis": 1}),
        Sample((TensorSpec((3,), "int32", (0, 1, 1)), ints(2), TensorSpec((2,))), {"axis": -2}),
        Sample((TensorSpec((), "int64", (1,)), ints(3), TensorSpec((2,)))),
    )  # fmt: skip
    rejections = (
        Rejection((TensorSpec((2,), "int64"), ints(3), TensorSpec((3,))),
                  "values have shape (3,) but must be off and on (2,)"),
        Rejection((TensorSpec((2,), "int64"), ints(-1), TensorSpec((2,))), "depth is -1"),
        Rejection((TensorSpec((2,), "int64"), ints(3), TensorSpec((2,))), "axis 2 is outside",
                  "ATTRIBUTE_INVALID", {"axis": 2}),
    )  # fmt: skip

    def infer(
        self, indices: TensorSpec, depth: TensorSpec, values: TensorSpec, axis: int
    ) -> TensorSpec:
        along = normalize_axis(axis, indices.rank + 1)
        if values.shape != (2,):
            raise Invalid(
                "SHAPE_MISMATCH", f"values have shape {values.shape} but must be off and on (2,)"
            )
        if depth.size != 1:
            raise Invalid("SHAPE_MISMATCH", f"depth has shape {depth.shape}: it is one number")
        assert depth.value is not None
        if not 0 <= depth.value[0] < LARGEST:
            raise Invalid(
                "SHAPE_MISMATCH", f"depth is {depth.value[0]} but must be from 0 to below 2^60"
            )
        count = int(depth.value[0])
        return TensorSpec((*indices.shape[:along], count, *indices.shape[along:]), values.dtype)

    def scratch(
        self, outs: Sequence[TensorSpec], indices: TensorSpec, *_: Any, axis: int
    ) -> Scratch:
        out, finding = outs[0].nbytes, 25 * indices.size  # where it is on, by integers
        back = max(2 * out + int(1.1 * outs[0].size), finding) if outs[0].is_floating else 0
        return Scratch(max(finding - out, 9 * indices.size), back)

    def forward(
        self, xp: Namespace, indices: Array, depth: Ints, values: Array, axis: int
    ) -> Array:
        off, on = xp.split(values, (1, 1), 0)
        return xp.where(self._places(xp, indices, int(depth[0]), axis), on, off)

    def vjp(
        self,
        xp: Namespace,
        grad: Array,
        out: Array,
        indices: Array,
        depth: Ints,
        values: Array,
        axis: int,
    ) -> tuple[Any, ...]:
        def to_values() -> Array:
            places = self._places(xp, indices, int(depth[0]), axis)
            every = tuple(range(len(grad.shape)))
            off = xp.sum(xp.where(places, 0.0, grad), axis=every)
            on = xp.sum(xp.where(places, grad, 0.0), axis=every)
            return xp.concat([xp.reshape(off, (1,)), xp.reshape(on, (1,))], axis=0)

        return None, None, to_values

    def _places(self, xp: Namespace, indices: Array, depth: int, axis: int) -> Array:
        """Where the output is on."""
        rank = len(indices.shape) + 1
        along = normalize_axis(axis, rank)
        wanted = xp.expand_dims(xp.astype(indices, "int64"), axis=along)
        from_front = xp.where(xp.less(wanted, 0), wanted + depth, wanted)
        return xp.equal(from_front, integers(xp, range(depth), vector_shape(along, depth, rank)))


class ReverseSequence(Gate):
    """Sequences of different lengths, each reversed up to its own.

    Formula:   out[t, b] = input[sequence_lens[b] - 1 - t, b] for t < sequence_lens[b], and
               input[t, b] from there on
    Gradient:  d out/d input = 1, reversed back
    Shapes:    As input; a length for each position of batch_axis. The axes are the first two.
    """

    operator = "ReverseSequence"
    inputs = (Input("input", ANY), Input("sequence_lens", ("int64",), "I"))
    attributes = (
        Attribute("batch_axis", "int", 1, choices=(0, 1), doc="Which counts sequences."),
        Attribute("time_axis", "int", 0, choices=(0, 1), doc="Along which is reversed."),
    )
    examples = (
        Example(
            ([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], [3, 2]), [[5.0, 4.0], [3.0, 2.0], [1.0, 6.0]],
            gradients=([[1.0, 1.0], [1.0, 1.0], [1.0, 1.0]], None),
        ),
        Example(([[1, 2, 3]], [2]), [[2, 1, 3]], attributes={"batch_axis": 0, "time_axis": 1}),
    )  # fmt: skip
    samples = (
        Sample((TensorSpec((4, 3, 2)), TensorSpec((3,), "int64", (1, 4, 3)))),
        Sample((TensorSpec((2, 3)), TensorSpec((2,), "int64", (0, 2))),
               {"batch_axis": 0, "time_axis": 1}),
    )  # fmt: skip
    rejections = (
        Rejection((TensorSpec((2, 3)), TensorSpec((2,), "int64")),
                  "sequence_lens has shape (2,) but axis 1 counts 3 sequences"),
        Rejection((TensorSpec((2,)), TensorSpec((2,), "int64")), "input has rank 1"),
        Rejection((TensorSpec((2, 2)), TensorSpec((2,), "int64")), "axes are both 0",
                  "ATTRIBUTE_INVALID", {"batch_axis": 0}),
    )  # fmt: skip

    def infer(
        self, x: TensorSpec, lengths: TensorSpec, batch_axis: int, time_axis: int
    ) -> TensorSpec:
        if batch_axis == time_axis:
            raise Invalid("ATTRIBUTE_INVALID", f"the two axes are both {batch_axis}")
        if x.rank < 2:
            raise Invalid("SHAPE_MISMATCH", f"input has rank {x.rank} but must have 2 or more")
        if lengths.shape != (x.shape[batch_axis],):
            raise Invalid(
                "SHAPE_MISMATCH",
                f"sequence_lens has shape {lengths.shape} but axis {batch_axis} counts "
                f"{x.shape[batch_axis]} sequences",
            )
        return TensorSpec(x.shape, x.dtype)

    def scratch(
        self, outs: Sequence[TensorSpec], x: TensorSpec, *_: Any, **attributes: Any
    ) -> Scratch:
        places = int(1.15 * 8 * x.size) + 8 * x.size - x.nbytes
        return Scratch(places, places)

    def forward(
        self, xp: Namespace, x: Array, lengths: Array, batch_axis: int, time_axis: int
    ) -> Array:
        xp.require_range(lengths, 0, x.shape[time_axis], "sequence_lens")
        return self._reversed(xp, x, lengths, batch_axis, time_axis)

    def vjp(
        self,
        xp: Namespace,
        grad: Array,
        out: Array,
        x: Array,
        lengths: Array,
        batch_axis: int,
        time_axis: int,
    ) -> tuple[Any, ...]:
        return lambda: self._reversed(xp, grad, lengths, batch_axis, time_axis), None

    def _reversed(
        self, xp: Namespace, x: Array, lengths: Array, batch_axis: int, time_axis: int
    ) -> Array:
        rank, steps, count = len(x.shape), x.shape[time_axis], x.shape[batch_axis]
        time = integers(xp, range(steps), vector_shape(time_axis, steps, rank))
        stop = xp.reshape(lengths, vector_shape(batch_axis, count, rank))
        sources = xp.where(xp.less(time, stop), stop - time - 1, time)
        return xp.take_along_axis(x, xp.broadcast_to(sources, x.shape), axis=time_axis)


class NonZero(Gate):
    """Where the elements are that are not zero.

    Formula:   out[:, i] = the position of the i-th element that is not 0, row-major
    Gradient:  None: the output is int64.
    Shapes:    [rank of X, number of such elements]; so X must be known before evaluation.
    """

    operator = "NonZero"
    inputs = (Input("X", ANY, known=True, whole=True),)
    output_dtypes = ("int64",)
    examples = (
        Example(([[1, 0], [2, 3]],), [[0, 1, 1], [0, 0, 1]]),
        Example(([True, False, True],), [[0, 2]]),
    )
    samples = (Sample((TensorSpec((2, 2, 1), "float64", (0.0, 1.0, -0.5, 0.0)),)),)
    rejections = (
        Rejection((TensorSpec((2,)),), "the elements of X must be known", "INPUT_NOT_KNOWN"),
    )

    def infer(self, x: TensorSpec) -> TensorSpec:
        assert x.value is not None
        return TensorSpec((x.rank, sum(each != 0 for each in x.value)), "int64")

    def forward(self, xp: Namespace, x: Array) -> Array:
        return xp.nonzero_places(x)

    def vjp(self, xp: Namespace, grad: Array, out: Array, x: Array) -> tuple[None, ...]:
        return (None,)


class Unique(Gate):
    """Elements, or slices along an axis, each kept once.

    Formula:   Y = the different elements (slices) of X, ascending, or by first occurrence where
               sorted is 0; indices = where each is first; inverse_indices = where in Y each of X
               is; counts = how often
    Gradient:  None: X must be known before evaluation.
    Shapes:    A vector of the different elements; with axis, X's with that many slices along it.
               A NaN differs from every other one.
    """

    operator = "Unique"
    inputs = (Input("X", ANY, known=True, whole=True),)
    attributes = (
        Attribute("axis", "int", doc="What counts slices; X is flattened if left out."),
        Attribute("sorted", "int", 1, choices=(0, 1), doc="0 keeps the order of X."),
    )
    outputs = (1, 4)
    output_dtypes = ("input:0", "int64")
    examples = (
        Example(([2, 1, 1, 3],), ([1, 2, 3], [1, 0, 3], [1, 0, 0, 2], [2, 1, 1])),
        Example(([2, 1, 1],), ([2, 1], [0, 1], [0, 1, 1], [1, 2]), attributes={"sorted": 0}),
        Example(([[1, 3], [2, 3], [1, 3]],), ([[1, 3], [2, 3]], [0, 1], [0, 1, 0], [2, 1]),
                attributes={"axis": 0}),
        Example(([0.5, 0.5],), ([0.5], [0], [0, 0], [2]), gradients=(None,)),
    )  # fmt: skip
    samples = (
        Sample((TensorSpec((2, 3), "int32", (1, 0, 1, 1, 0, 1)),), {"axis": -1, "sorted": 0}),
    )
    rejections = (
        Rejection((TensorSpec((2,), "int64", (1, 2)),), "axis 1 is outside", "ATTRIBUTE_INVALID",
                  {"axis": 1}),
        Rejection((TensorSpec((2,)),), "the elements of X must be known", "INPUT_NOT_KNOWN"),
        Rejection((TensorSpec((2, 0), "int64", ()),), "slices of int64[2, 0] have no elements",
                  attributes={"axis": 0}),
    )  # fmt: skip

    def infer(self, x: TensorSpec, axis: int | None, **_: int) -> tuple[TensorSpec, ...]:
        assert x.value is not None
        shape = (x.size,) if axis is None else x.shape
        along = normalize_axis(axis or 0, len(shape))
        if axis is not None and not x.size:
            raise Invalid("SHAPE_MISMATCH", f"the slices of {x} have no elements to compare")
        count = len(set(_slices(x.value, shape, along)))
        return (
            TensorSpec((*shape[:along], count, *shape[along + 1 :]), x.dtype),
            TensorSpec((count,), "int64"),
            TensorSpec((shape[along],), "int64"),
            TensorSpec((count,), "int64"),
        )

    def forward(self, xp: Namespace, x: Array, axis: int | None, sorted: int) -> tuple[Array, ...]:
        if axis is None:
            x, axis = xp.reshape(x, (-1,)), 0
        first, inverse, counts = xp.unique_slices(x, axis, bool(sorted))
        return xp.take(x, first, axis=axis), first, inverse, counts

    def vjp(self, xp: Namespace, grad: Any, out: Any, x: Array, **_: Any) -> tuple[None, ...]:
        return (None,)


def _slices(value: tuple[float, ...], shape: Shape, along: int) -> list[tuple[float, ...]]:
    """The elements of each slice along an axis, of a row-major tensor."""
    inner, size = prod(shape[along + 1 :]), shape[along]
    slices: list[list[float]] = [[] for _ in range(size)]
    for place, each in enumerate(value):
        slices[place // inner % size].append(each)
    return list(map(tuple, slices))
