"""Sampling: images read at places between their elements."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import nan, prod
from typing import Any, NamedTuple

from gradwire_server.errors import Invalid
from gradwire_server.gates.base import (
    STEP,
    Array,
    Attribute,
    Example,
    Gate,
    Input,
    Namespace,
    Rejection,
    Sample,
    Scratch,
)
from gradwire_server.gates.common import (
    Ints,
    block_counts,
    checked_shape,
    floats,
    integers,
    ints,
    known,
    steps_along,
    vector_shape,
)
from gradwire_server.specs import ITEM_SIZES, Shape, TensorSpec


class AffineGrid(Gate):
    """Places to sample an image at, moved by an affine map for each row.

    Formula:   grid[n, i, j] = theta[n] @ (x_j, y_i, 1), with x and y in equal steps over [-1, 1],
               from the middle of the first element to that of the last with align_corners (a
               single one is at -1), else from edge to edge
    Gradient:  d grid/d theta = (x_j, y_i, 1)
    Shapes:    theta is [N, 2, 3], size [N, C, H, W] and grid [N, H, W, 2]; or with a depth before
               H, theta [N, 3, 4].
    """

    operator = "AffineGrid"
    scratch_arrays = (2, 3)
    inputs = (Input("theta"), known("size"))
    attributes = (
        Attribute("align_corners", "int", 0, choices=(0, 1),
                  doc="Whether -1 and 1 are the middles of corner elements, or their edges."),
    )  # fmt: skip
    examples = (
        Example(
            ([[[1.0, 0.0, 0.5], [0.0, 2.0, 0.0]]], [1, 1, 1, 2]), [[[[0.0, 0.0], [1.0, 0.0]]]],
            gradients=([[[0.0, 0.0, 2.0], [0.0, 0.0, 2.0]]], None),
        ),
        Example(
            ([[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]], [1, 1, 1, 2]), [[[[-1.0, -1.0], [1.0, -1.0]]]],
            gradients=([[[0.0, -2.0, 2.0], [0.0, -2.0, 2.0]]], None),
            attributes={"align_corners": 1},
        ),
    )  # fmt: skip
    samples = (
        Sample((TensorSpec((2, 2, 3)), ints(2, 1, 3, 2)), {"align_corners": 1}),
        Sample((TensorSpec((2, 3, 4)), ints(2, 1, 2, 3, 2))),
        Sample((TensorSpec((1, 2, 3)), ints(1, 1, 0, 2))),
    )
    rejections = (
        Rejection((TensorSpec((1, 2, 3)), ints(1, 1, 2)), "size has 3 numbers but must have 4"),
        Rejection((TensorSpec((1, 2, 3)), ints(2, 1, 2, 2)),
                  "theta has shape (1, 2, 3) but must have (2, 2, 3)"),
        Rejection((TensorSpec((1, 2, 3)), ints(1, 1, -2, 2)), "gives the shape (1, -2, 2, 2)"),
    )  # fmt: skip

    def infer(self, theta: TensorSpec, size: TensorSpec, align_corners: int) -> TensorSpec:
        assert size.value is not None
        if size.size not in (4, 5):
            raise Invalid("SHAPE_MISMATCH", f"size has {size.size} numbers but must have 4 or 5")
        rows, _, *space = map(int, size.value)
        rank = len(space)
        if theta.shape != (rows, rank, rank + 1):
            raise Invalid(
                "SHAPE_MISMATCH",
                f"theta has shape {theta.shape} but must have {(rows, rank, rank + 1)}",
            )
        return TensorSpec(checked_shape((rows, *space, rank), "size"), theta.dtype)

    def forward(self, xp: Namespace, theta: Array, size: Ints, align_corners: int) -> Array:
        places = _places(xp, size[2:], align_corners, str(theta.dtype))
        moved = xp.matmul(places, _swap_last(xp, theta))
        return xp.reshape(moved, (*theta.shape[:-2], *size[2:], len(size) - 2))

    def vjp(
        self, xp: Namespace, grad: Array, out: Array, theta: Array, size: Ints, align_corners: int
    ) -> tuple[Any, ...]:
        def to_theta() -> Array:
            places = _places(xp, size[2:], align_corners, str(theta.dtype))
            flat = xp.reshape(grad, (*theta.shape[:-2], prod(size[2:]), len(size) - 2))
            return xp.matmul(_swap_last(xp, flat), places)

        return to_theta, None

    def aligned_shapes(self, theta: TensorSpec, size: TensorSpec, **_: int) -> tuple[Shape, ...]:
        return theta.shape, size.shape


def _places(xp: Namespace, space: Shape, align_corners: int, dtype: str) -> Array:
    """(x, y, 1) of every element of an image, one row each."""
    columns = []
    for axis in reversed(range(len(space))):
        size = space[axis]
        if align_corners:
            line = [2 * i / max(size - 1, 1) - 1 for i in range(size)]
        else:
            line = [(2 * i + 1) / size - 1 for i in range(size)]
        lying = floats(xp, line, vector_shape(axis, size, len(space)), dtype)
        columns.append(xp.reshape(xp.broadcast_to(lying, tuple(space)), (prod(space), 1)))
    columns.append(xp.full((prod(space), 1), 1, dtype))
    return xp.concat(columns, axis=1)


def _swap_last(xp: Namespace, x: Array) -> Array:
    rank = len(x.shape)
    return xp.permute_dims(x, (*range(rank - 2), rank - 1, rank - 2))


class GridSample(Gate):
    """An image sampled at places that a grid gives, as numbers from -1 to 1 along each axis.

    Formula:   Y[n, c, i] = sum of w(p - k) * X[n, c, k] over the elements k around the place p =
               grid[n, i], with weights of the nearest element, linear or cubic interpolation
    Gradient:  d Y/dX = w; d Y/d grid = w', through the place
    Kinks:     On an element, where linear weights have a kink, the slope on its higher side
               counts. Mode nearest has gradient 0 to grid. Outside X the gradient to grid turns its
               sign at each reflection; for border it is 0, save that of cubic weights, some of
               whose elements may be inside.
    Shapes:    X is [N, C, D1, .., Dr], grid [N, O1, .., Or, r] with the last axis first in it, and
               Y [N, C, O1, .., Or].
    """

    operator = "GridSample"
    inputs = (Input("X"), Input("grid", group="G", domain=(-1.4, 1.4)))
    attributes = (
        Attribute("align_corners", "int", 0, choices=(0, 1),
                  doc="Whether -1 and 1 are the middles of corner elements, or their edges."),
        Attribute("mode", "string", "linear", choices=("linear", "nearest", "cubic"),
                  doc="The weights."),
        Attribute("padding_mode", "string", "zeros", choices=("zeros", "border", "reflection"),
                  doc="What lies outside X."),
    )  # fmt: skip
    examples = (
        Example(
            ([[[[1.0, 3.0]]]], [[[[0.25, 0.0]]]]), [[[[2.5]]]],
            gradients=([[[[0.25, 0.75]]]], [[[[2.0, -1.25]]]]), at_kink=True,
        ),
        Example(
            ([[[[1.0, 3.0]]]], [[[[0.25, 0.0], [-3.0, 0.0]]]]), [[[[3.0, 0.0]]]],
            gradients=([[[[0.0, 1.0]]]], [[[[0.0, 0.0], [0.0, 0.0]]]]),
            attributes={"mode": "nearest"},
        ),
        Example(
            ([[[1.0, 3.0, 7.0]]], [[[0.0]]]), [[[3.0]]],
            gradients=([[[0.0, 1.0, 0.0]]], [[[4.0]]]), attributes={"align_corners": 1},
            at_kink=True,
        ),
    )  # fmt: skip
    samples = (
        *(
            Sample((TensorSpec((2, 2, 3, 4)), TensorSpec((2, 2, 3, 2))),
                   {"mode": mode, "padding_mode": padding, "align_corners": corners})
            for mode, padding, corners in (
                ("linear", "zeros", 0), ("linear", "border", 1), ("linear", "reflection", 0),
                ("linear", "reflection", 1), ("cubic", "zeros", 1), ("cubic", "border", 0),
                ("cubic", "reflection", 1), ("nearest", "reflection", 0),
            )
        ),
        Sample((TensorSpec((1, 2, 2, 3, 2)), TensorSpec((1, 2, 1, 2, 3)))),
        Sample((TensorSpec((2, 1, 5)), TensorSpec((2, 3, 1))), {"mode": "cubic"}),
        Sample((TensorSpec((1, 1, 1, 2)), TensorSpec((1, 0, 3, 2)))),
    )  # fmt: skip
    rejections = (
        Rejection((TensorSpec((1, 1, 2, 2)), TensorSpec((1, 3, 2))), "grid has shape (1, 3, 2)"),
        Rejection((TensorSpec((1, 1, 2, 2)), TensorSpec((1, 3, 3, 3))),
                  "grid has shape (1, 3, 3, 3)"),
        Rejection((TensorSpec((1, 1, 0, 2)), TensorSpec((1, 3, 3, 2))), "X has no elements"),
    )  # fmt: skip

    def infer(self, x: TensorSpec, grid: TensorSpec, **_: Any) -> TensorSpec:
        rank = x.rank - 2
        if rank < 1 or grid.rank != x.rank or (grid.shape[0], grid.shape[-1]) != (x.shape[0], rank):
            raise Invalid(
                "SHAPE_MISMATCH",
                f"grid has shape {grid.shape}, which does not fit X of shape {x.shape}: it is "
                "[N, O1, .., Or, r] for X of [N, C, D1, .., Dr]",
            )
        if grid.size and not prod(x.shape[2:]):
            raise Invalid("SHAPE_MISMATCH", f"X has no elements to sample: its shape is {x.shape}")
        return TensorSpec((*x.shape[:2], *grid.shape[1:-1]), x.dtype)

    def scratch(
        self, outs: Sequence[TensorSpec], x: TensorSpec, grid: TensorSpec, **attributes: Any
    ) -> Scratch:
        item, channels = ITEM_SIZES[x.dtype], x.shape[1]
        places = prod(grid.shape[:-1])
        taps = places * len(_FILTERS[attributes["mode"]][0]) ** (x.rank - 2)
        return Scratch(
            int(taps * ((2 * channels + 1.2) * item + 9.3)),
            int(taps * ((2 * channels + 1) * item + 17 * channels + 9)
                + 9.5 * places * (item + 1)),
        )  # fmt: skip

    def forward(self, xp: Namespace, x: Array, grid: Array, **attributes: Any) -> Array:
        taps = self._taps(xp, x.shape[2:], grid, attributes)
        out = xp.sum(taps.take(x) * xp.astype(taps.weights(), str(x.dtype)), axis=(2,))
        return xp.reshape(out, (*x.shape[:2], *grid.shape[1:-1]))

    def vjp(
        self, xp: Namespace, grad: Array, out: Array, x: Array, grid: Array, **attributes: Any
    ) -> tuple[Any, ...]:
        lying = xp.reshape(grad, (*x.shape[:2], 1, prod(grid.shape[1:-1])))
        taps = self._taps(xp, x.shape[2:], grid, attributes)

        def to_x() -> Array:
            put = taps.put(lying * xp.astype(taps.weights(), str(x.dtype)))
            return xp.reshape(put, x.shape)

        def to_grid() -> Array:
            pulled = xp.sum(taps.take(x) * lying, axis=(1,), keepdims=True)
            pulled = xp.astype(pulled, str(grid.dtype))
            columns = [
                xp.reshape(xp.sum(taps.weights(axis) * pulled, axis=(2,)), (*grid.shape[:-1], 1))
                for axis in reversed(range(len(x.shape) - 2))
            ]
            return xp.concat(columns, axis=-1)

        return to_x, to_grid

    def operations(
        self, outs: tuple[TensorSpec, ...], x: TensorSpec, grid: TensorSpec, **attributes: Any
    ) -> int:
        return x.size + grid.size + 2 * self._held(x, grid, **attributes)

    def _held(self, x: TensorSpec, grid: TensorSpec, **attributes: Any) -> int:
        taps = len(_FILTERS[attributes["mode"]][0]) ** (x.rank - 2)
        return _sampled(grid.shape[0], x.shape[1], taps, prod(grid.shape[1:-1]))

    def _taps(self, xp: Namespace, space: Shape, grid: Array, attributes: dict[str, Any]) -> _Taps:
        lying = (grid.shape[0], 1, prod(grid.shape[1:-1]))
        last_first = xp.split(grid, (1,) * len(space), len(grid.shape) - 1)
        return _Taps(xp, space, [
            _grid_line(xp, xp.reshape(number, lying), size, attributes)
            for number, size in zip(reversed(last_first), space, strict=True)
        ])  # fmt: skip


def _sampled(rows: int, channels: int, taps: int, places: int) -> int:
    """Elements of arrays with one for each channel and tap of each place, and for each tap."""
    return rows * taps * places * (4 * channels + 8)


class _Taps:
    """The elements around each place: [rows, taps, places]. Lines say them for each axis."""

    def __init__(self, xp: Namespace, space: Shape, lines: list[_Line]) -> None:
        self._xp, self._space = xp, space
        self._rows, _, self._places = lines[0].weight.shape
        self._weights = [line.weight for line in lines]
        self._slopes = [line.slope for line in lines]
        self._inside = self._outer([line.inside for line in lines], xp.logical_and)
        strides = [prod(space[axis + 1 :]) for axis in range(len(space))]
        steps = [line.index * stride for line, stride in zip(lines, strides, strict=True)]
        self._index = self._outer(steps, xp.add)

    def weights(self, derivative_along: int | None = None) -> Array:
        """What each tap counts, or its derivative along an axis; [rows, 1, taps, places]."""
        lines = list(self._weights)
        if derivative_along is not None:
            lines[derivative_along] = self._slopes[derivative_along]
        return self._xp.expand_dims(self._outer(lines, self._xp.multiply), axis=1)

    def take(self, x: Array) -> Array:
        """The elements, as [rows, channels, taps, places]; 0 for those outside."""
        flat = self._xp.reshape(x, (*x.shape[:2], prod(self._space)))
        taken = self._xp.take_along_axis(flat, self._flat_index(x.shape[1]), axis=2)
        apart = self._xp.reshape(taken, (*x.shape[:2], *self._index.shape[1:]))
        return self._xp.where(self._xp.expand_dims(self._inside, axis=1), apart, 0.0)

    def put(self, updates: Array) -> Array:
        """Sums of updates at the elements, as [rows, channels, elements]."""
        inside = self._xp.expand_dims(self._inside, axis=1)
        index = self._flat_index(updates.shape[1])
        kept = self._xp.reshape(self._xp.where(inside, updates, 0.0), index.shape)
        zeros = self._xp.full((*updates.shape[:2], prod(self._space)), 0, str(updates.dtype))
        return self._xp.scatter(zeros, index, kept, 2, "add")

    def _flat_index(self, channels: int) -> Array:
        count = prod(self._index.shape[1:])
        one = self._xp.reshape(self._index, (self._rows, 1, count))
        return self._xp.broadcast_to(one, (self._rows, channels, count))

    def _outer(self, lines: list[Array], combine: Callable[[Array, Array], Array]) -> Array:
        """An entry for each choice of one tap along every axis."""
        total = lines[0]
        for line in lines[1:]:
            slow, fast = total.shape[1], line.shape[1]
            pairs = combine(
                self._xp.reshape(total, (self._rows, slow, 1, self._places)),
                self._xp.reshape(line, (self._rows, 1, fast, self._places)),
            )
            total = self._xp.reshape(pairs, (self._rows, slow * fast, self._places))
        return total


class _Line(NamedTuple):
    """The taps along one axis, [rows, taps, places]."""

    index: Array
    inside: Array
    weight: Array
    slope: Array  # of the weight, by what the place is computed from


def _grid_line(xp: Namespace, number: Array, size: int, attributes: dict[str, Any]) -> _Line:
    """The taps along an axis where places are numbers from -1 to 1."""
    mode, padding = attributes["mode"], attributes["padding_mode"]
    low, high = (0.0, size - 1.0) if attributes["align_corners"] else (-0.5, size - 0.5)
    per_number = (high - low) / 2
    place = (number + 1.0) * per_number + low
    if mode == "nearest":
        place = xp.round(place)
    turn = xp.ones_like(place)
    if padding == "reflection" or (padding == "border" and mode != "cubic"):
        place, turn = _brought_in(xp, place, low, high, size, padding)
    weigh = _FILTERS[mode][1]
    taps, steps, part = _around(xp, place, mode)
    inside = xp.logical_and(xp.greater_equal(taps, 0.0), xp.less_equal(taps, size - 1.0))
    if padding != "zeros":  # each tap is put on the edge, or reflected
        inside = xp.logical_or(inside, xp.logical_not(inside))
    if padding == "reflection":
        taps, _ = _brought_in(xp, taps, low, high, size, padding)
    weight, slope = weigh(xp, part, steps)
    return _Line(_index(xp, taps, size), inside, weight, slope * (turn * per_number))


def _linear_line(xp: Namespace, place: Array, size: int) -> _Line:
    """The two elements around a place, weighted linearly; nothing outside."""
    taps, steps, part = _around(xp, place, "linear")
    inside = xp.logical_and(xp.greater_equal(taps, 0.0), xp.less_equal(taps, size - 1.0))
    return _Line(_index(xp, taps, size), inside, *_linear_weights(xp, part, steps))


def _around(xp: Namespace, place: Array, mode: str) -> tuple[Array, Array, Array]:
    """Positions of the elements around a place, their offsets, and what is left of the place."""
    offsets = _FILTERS[mode][0]
    below = xp.floor(place)
    steps = floats(xp, offsets, (1, len(offsets), 1), str(place.dtype))
    return below + steps, steps, place - below


def _index(xp: Namespace, taps: Array, size: int) -> Array:
    """Positions as integers, put anywhere inside if they are not there, or NaN."""
    positive = xp.where(xp.greater(taps, 0.0), taps, 0.0)
    return xp.astype(xp.minimum(positive, xp.full_like(positive, size - 1.0)), "int64")


def _brought_in(
    xp: Namespace, place: Array, low: float, high: float, size: int, padding: str
) -> tuple[Array, Array]:
    """A place outside [low, high] put on the edge, or reflected; and d new/d old."""
    outside = xp.logical_or(xp.less(place, low), xp.greater(place, high))
    if padding == "border" or high == low:
        new = xp.where(xp.less(place, low), 0.0, xp.full_like(place, size - 1.0))
        turn = xp.zeros_like(place)
    else:
        span = high - low
        phase = xp.remainder(place - low, xp.full_like(place, 2 * span))
        new = high - xp.abs(phase - span)
        turn = xp.where(xp.less(phase, span), xp.ones_like(place), -1.0)
    return xp.where(outside, new, place), xp.where(outside, turn, 1.0)


def _nearest_weights(xp: Namespace, part: Array, _: Array) -> tuple[Array, Array]:
    return xp.ones_like(part), xp.zeros_like(part)


def _linear_weights(xp: Namespace, part: Array, steps: Array) -> tuple[Array, Array]:
    """1 - part and part for the two elements around a place, and their derivatives."""
    upper = 2.0 * steps - 1.0
    return (1.0 - steps) + upper * part, upper + xp.zeros_like(part)


def _cubic_weights(xp: Namespace, part: Array, steps: Array) -> tuple[Array, Array]:
    """Keys' weights, with a = -0.75, for the four elements around a place; and derivatives."""
    a = -0.75
    signed = part - steps
    distance = xp.abs(signed)
    near = ((a + 2) * distance - (a + 3)) * distance * distance + 1.0
    far = ((distance - 5.0) * distance + 8.0) * distance * a - 4 * a
    # signed, so that it has its own slope where the distance is 0
    near_slope = (3 * (a + 2) * distance - 2 * (a + 3)) * signed
    far_slope = ((3.0 * distance - 10.0) * distance + 8.0) * a * xp.sign(signed)
    is_near = xp.less_equal(distance, 1.0)
    return xp.where(is_near, near, far), xp.where(is_near, near_slope, far_slope)


_FILTERS: dict[str, tuple[Ints, Callable[[Namespace, Array, Array], tuple[Array, Array]]]] = {
    "nearest": ((0,), _nearest_weights),
    "linear": ((0, 1), _linear_weights),
    "cubic": ((-1, 0, 1, 2), _cubic_weights),
}


class RoiAlign(Gate):
    """Regions of an image, each divided into bins that are averaged over samples, or maximized.

    Formula:   Y[r, c, i, j] = mean over sampling_ratio^2 places in bin (i, j) of region r of
               X[batch_indices[r], c], interpolated linearly; mode max: the largest of the weighted
               elements around all places, as ONNX says. Places over 1 outside count 0, others
               outside lie on the edge. sampling_ratio 0: ceil(size of a bin) places along a side;
               a region that reaches an element which is not finite is NaN
    Gradient:  to X the weights of the interpolation; to rois through the places
    Kinks:     At an element the slope on its higher side counts; elements that are equally large
               share the gradient equally.
    Shapes:    X is [N, C, H, W], rois [R, 4] with (x1, y1, x2, y2), batch_indices [R] and Y
               [R, C, output_height, output_width]. Mode max with sampling_ratio 0 is refused.
    """

    operator = "RoiAlign"
    inputs = (
        Input("X"),
        Input("rois", domain=(0.0, 4.0)),
        Input("batch_indices", ("int64",), "I"),
    )
    attributes = (
        Attribute("coordinate_transformation_mode", "string", "half_pixel",
                  choices=("half_pixel", "output_half_pixel"),
                  doc="Whether 0 is the edge of the first element, or its middle."),
        Attribute("mode", "string", "avg", choices=("avg", "max"), doc="How a bin is pooled."),
        Attribute("output_height", "int", 1, doc="Bins of a region, from top to bottom."),
        Attribute("output_width", "int", 1, doc="Bins of a region, from left to right."),
        Attribute("sampling_ratio", "int", 0,
                  doc="Places along each side of a bin; 0 for one in each element that it spans."),
        Attribute("spatial_scale", "float", 1.0, doc="Size of X over the size rois are given for."),
    )  # fmt: skip
    examples = (
        Example(
            ([[[[1.0, 3.0], [5.0, 7.0]]]], [[0.0, 0.5, 1.5, 1.5]], [0]), [[[[3.5]]]],
            gradients=([[[[0.375, 0.125], [0.375, 0.125]]]], [[1.0, 2.0, 1.0, 2.0]], None),
            attributes={"sampling_ratio": 1},
        ),
        Example(
            ([[[[1.0, 3.0], [5.0, 7.0]]]], [[0.0, 0.5, 1.5, 1.5]], [0]), [[[[3.625]]]],
            gradients=([[[[0.34375, 0.15625], [0.34375, 0.15625]]]],
                       [[0.25, 2.0, 0.75, 2.0]], None),
            at_kink=True,
        ),
    )  # fmt: skip
    samples = (
        *(
            Sample(
                (TensorSpec((2, 2, 4, 5)),
                 TensorSpec((3, 4), "float64",
                            (0.3, 0.2, 3.1, 3.4, 1.3, 1.1, 4.6, 2.3, -2.7, 0.4, 1.2, 1.6)),
                 TensorSpec((3,), "int64", (0, 1, 1))),
                {"output_height": 2, "output_width": 3, "sampling_ratio": 2, "mode": mode,
                 "coordinate_transformation_mode": shift, "spatial_scale": 0.9},
            )
            for mode, shift in (("avg", "half_pixel"), ("avg", "output_half_pixel"),
                                ("max", "half_pixel"))
        ),
        Sample((TensorSpec((1, 2, 3, 3)), TensorSpec((0, 4)), TensorSpec((0,), "int64", ())),
               {"sampling_ratio": 1}),
        *(
            Sample(
                (TensorSpec((2, 2, 4, 5)),
                 TensorSpec((4, 4), "float64",
                            (0.3, 0.2, 3.1, 3.4, 1.3, 1.1, 9.6, 2.3, -2.7, 0.4, 1.2, 1.6,
                             1.2, 2.3, 0.4, 2.9)),
                 TensorSpec((4,), "int64", (0, 1, -1, 0))),
                {"output_height": 2, "output_width": 3, "coordinate_transformation_mode": shift,
                 "spatial_scale": 0.9},
            )
            for shift in ("half_pixel", "output_half_pixel")
        ),
        Sample((TensorSpec((1, 2, 3, 3)), TensorSpec((0, 4)), TensorSpec((0,), "int64", ()))),
    )  # fmt: skip
    rejections = (
        Rejection((TensorSpec((1, 1, 3, 3)), TensorSpec((2, 4)), TensorSpec((2,), "int64")),
                  "sampling_ratio is -1", "ATTRIBUTE_INVALID", {"sampling_ratio": -1}),
        Rejection((TensorSpec((1, 1, 3, 3)), TensorSpec((2, 4)), TensorSpec((2,), "int64")),
                  "sampling_ratio is 0, so the number of places depends on rois",
                  "ATTRIBUTE_INVALID", {"mode": "max"}),
        Rejection((TensorSpec((1, 1, 3, 3)), TensorSpec((2, 5)), TensorSpec((2,), "int64")),
                  "rois have shape (2, 5)", attributes={"sampling_ratio": 1}),
        Rejection((TensorSpec((1, 1, 0, 3)), TensorSpec((2, 4)), TensorSpec((2,), "int64")),
                  "X has shape (1, 1, 0, 3)", attributes={"sampling_ratio": 1}),
    )  # fmt: skip

    def infer(
        self, x: TensorSpec, rois: TensorSpec, batch_indices: TensorSpec, **attributes: Any
    ) -> TensorSpec:
        for name, least in (("output_height", 1), ("output_width", 1), ("sampling_ratio", 0)):
            if attributes[name] < least:
                raise Invalid(
                    "ATTRIBUTE_INVALID",
                    f"{name} is {attributes[name]} but must be {least} or more",
                    attribute=name,
                )
        if not attributes["sampling_ratio"] and attributes["mode"] == "max":
            raise Invalid(
                "ATTRIBUTE_INVALID",
                "sampling_ratio is 0, so the number of places depends on rois, which mode max does "
                "not take; set sampling_ratio to 1 or more",
                attribute="sampling_ratio",
            )
        if x.rank != 4 or not prod(x.shape[2:]):
            raise Invalid(
                "SHAPE_MISMATCH", f"X has shape {x.shape} but must be [N, C, H, W] with elements"
            )
        count = batch_indices.size
        if batch_indices.rank != 1 or rois.shape != (count, 4):
            raise Invalid(
                "SHAPE_MISMATCH",
                f"rois have shape {rois.shape} and batch_indices {batch_indices.shape}, but must "
                "have [R, 4] and [R]",
            )
        shape = (count, x.shape[1], attributes["output_height"], attributes["output_width"])
        return TensorSpec(checked_shape(shape, "output_height"), x.dtype)

    def scratch(
        self,
        outs: Sequence[TensorSpec],
        x: TensorSpec,
        rois: TensorSpec,
        batch_indices: TensorSpec,
        **attributes: Any,
    ) -> Scratch:
        held = self._held(x, rois, batch_indices, **attributes) * ITEM_SIZES[x.dtype]
        if not attributes["sampling_ratio"]:
            return Scratch(held, held)
        item, channels = ITEM_SIZES[x.dtype], x.shape[1]
        parts = self._parts(**attributes)
        taps = (self._held(x, rois, batch_indices, **attributes) - parts) // (4 * channels + 8)
        return Scratch(
            int(x.nbytes + parts * item + taps * ((2 * channels + 3) * item + 9.3)),
            int(x.nbytes + parts * item
                + taps * ((4 * channels + 2.5) * item + 17 * channels + 9.4)),
        )  # fmt: skip

    def forward(
        self, xp: Namespace, x: Array, rois: Array, batch_indices: Array, **attributes: Any
    ) -> Array:
        xp.require_indices(batch_indices, x.shape[0], "batch_indices")
        if not attributes["sampling_ratio"]:
            return _Spans(xp, x, rois, batch_indices, attributes).pooled()
        regions = _Regions(xp, x.shape, rois, batch_indices, attributes)
        return regions.pooled(regions.taps.take(_images_last(xp, x)) * regions.taps.weights())

    def vjp(
        self,
        xp: Namespace,
        grad: Array,
        out: Array,
        x: Array,
        rois: Array,
        batch_indices: Array,
        **attributes: Any,
    ) -> tuple[Any, ...]:
        if not attributes["sampling_ratio"]:
            spans = _Spans(xp, x, rois, batch_indices, attributes)
            return lambda: spans.to_x(grad), lambda: spans.to_rois(grad), None
        regions = _Regions(xp, x.shape, rois, batch_indices, attributes)
        taps = regions.taps
        values = taps.take(_images_last(xp, x))
        to_products = regions.pulled(grad, out, values * taps.weights())

        def to_x() -> Array:
            rows, channels, height, width = x.shape
            put = xp.reshape(taps.put(to_products * taps.weights()),
                             (channels, rows, height, width))  # fmt: skip
            return xp.permute_dims(put, (1, 0, 2, 3))

        def to_rois() -> Array:
            pulled = xp.sum(to_products * values, axis=(1,), keepdims=True)
            return regions.to_rois(
                [xp.sum(taps.weights(axis) * pulled, axis=(2,)) for axis in (1, 2)]
            )

        return to_x, to_rois, None

    def operations(
        self,
        outs: tuple[TensorSpec, ...],
        x: TensorSpec,
        rois: TensorSpec,
        batch_indices: TensorSpec,
        **attributes: Any,
    ) -> int:
        _, channels, height, width = x.shape
        regions, bins = rois.shape[0], attributes["output_height"] + attributes["output_width"]
        held = self._held(x, rois, batch_indices, **attributes)
        found: int = x.size + 2 * held + bins * attributes["sampling_ratio"] * STEP
        if not attributes["sampling_ratio"]:
            sums = height + attributes["output_width"]  # of a row of bins, and of each of them
            found += regions * channels * attributes["output_height"] * width * sums
        return found

    def _held(
        self, x: TensorSpec, rois: TensorSpec, batch_indices: TensorSpec, **attributes: Any
    ) -> int:
        bins = attributes["output_height"] * attributes["output_width"]
        if not attributes["sampling_ratio"]:
            images, channels, height, width = x.shape
            rows = rois.shape[0] * attributes["output_height"]
            lines = rows * images * height + rois.shape[0] * attributes["output_width"] * width
            places = rois.shape[0] * 2 * (height + width + bins)
            found: int = 2 * x.size + 3 * rows * channels * width + 4 * lines + 32 * places
            return found
        places = rois.shape[0] * bins * attributes["sampling_ratio"] ** 2
        return self._parts(**attributes) + _sampled(1, x.shape[1], 4, places)

    def _parts(self, **attributes: Any) -> int:
        bins: int = attributes["output_height"] + attributes["output_width"]
        return 8 * bins * int(attributes["sampling_ratio"])


def _images_last(xp: Namespace, x: Array) -> Array:
    """[1, channels, images, height, width], so that one row of places reaches all images."""
    return xp.expand_dims(xp.permute_dims(x, (1, 0, 2, 3)), axis=0)


class _Regions:
    """The places of regions of interest, and the bins they are pooled into."""

    def __init__(
        self,
        xp: Namespace,
        shape: Shape,
        rois: Array,
        batch_indices: Array,
        attributes: dict[str, Any],
    ) -> None:
        self._xp, self._rois_shape = xp, rois.shape
        self._max = attributes["mode"] == "max"
        self._ratio = attributes["sampling_ratio"]
        self._bins = attributes["output_height"], attributes["output_width"]
        self._scale = attributes["spatial_scale"]
        self._half_pixel = attributes["coordinate_transformation_mode"] == "half_pixel"
        self._channels = shape[1]
        images, _, *space = shape
        x1, y1, x2, y2 = xp.split(rois, (1, 1, 1, 1), 1)
        self._parts = [self._fractions(count, str(rois.dtype)) for count in self._bins]
        self._ends = [(y1, y2), (x1, x2)]
        places = [self._places(axis) for axis in (0, 1)]
        first = xp.where(xp.less(batch_indices, 0), batch_indices + images, batch_indices)
        image = xp.broadcast_to(
            xp.reshape(first, (rois.shape[0], 1, 1)),
            (rois.shape[0], *(count * self._ratio for count in self._bins)),
        )
        self._per_region = self._bins[0] * self._bins[1] * self._ratio**2
        flat = (1, 1, rois.shape[0] * self._per_region)
        ones = xp.full(flat, 1, str(rois.dtype))
        lines = [_Line(xp.reshape(image, flat), xp.equal(ones, 1.0), ones, xp.zeros_like(ones))]
        for axis, size in enumerate(space):
            whole = xp.reshape(xp.broadcast_to(places[axis], image.shape), flat)
            lines.append(_clamped_line(xp, whole, size))
        self.taps = _Taps(xp, (images, *space), lines)

    def pooled(self, products: Array) -> Array:
        """Weighted elements as bins: [regions, channels, height, width]."""
        apart = self._apart(products)
        if self._max:
            return self._regions_first(self._xp.max(apart, axis=_POOLED))
        total = self._xp.sum(apart, axis=_POOLED)
        return self._regions_first(total * (1.0 / self._ratio**2))

    def pulled(self, grad: Array, out: Array, products: Array) -> Array:
        """The gradient of the weighted elements."""
        to_bins = self._channels_first(grad)
        if self._max:
            largest = self._xp.equal(self._apart(products), self._channels_first(out))
            marks = self._xp.astype(largest, str(grad.dtype))
            share = marks / self._xp.sum(marks, axis=_POOLED, keepdims=True)
            return self._xp.reshape(to_bins * share, products.shape)
        even = to_bins * (1.0 / self._ratio**2)
        return self._xp.reshape(
            self._xp.broadcast_to(even, self._apart(products).shape), products.shape
        )

    def to_rois(self, to_places: list[Array]) -> Array:
        """The gradient of rois from those of the places, along y and x."""
        columns = {}
        for axis, (low, high) in ((0, (1, 3)), (1, (0, 2))):
            count = self._rois_shape[0]
            bins = tuple(each * self._ratio for each in self._bins)
            lying = self._xp.reshape(to_places[axis], (count, *bins))
            along = self._xp.sum(lying, axis=(2 - axis,))
            by_extent = self._xp.sum(
                along * self._xp.reshape(self._parts[axis], (1, bins[axis])), axis=(1,)
            )
            by_extent = self._xp.reshape(by_extent, (count, 1)) * self._extent(axis)[1]
            by_start = self._xp.sum(along, axis=(1,), keepdims=True)
            columns[low] = (by_start - by_extent) * self._scale
            columns[high] = by_extent * self._scale
        return self._xp.concat([columns[slot] for slot in range(4)], axis=1)

    def _fractions(self, count: int, dtype: str) -> Array:
        """Where along a region its places lie, from 0 to 1."""
        parts = [
            (number + (step + 0.5) / self._ratio) / count
            for number in range(count)
            for step in range(self._ratio)
        ]
        return floats(self._xp, parts, (len(parts),), dtype)

    def _extent(self, axis: int) -> tuple[Array, Array]:
        """Length of each region, and whether it depends on its ends; at least 1 if so asked."""
        start, end = self._ends[axis]
        extent = (end - start) * self._scale
        if self._half_pixel:
            return extent, self._xp.ones_like(extent)
        free = self._xp.greater(extent, 1.0)
        ones = self._xp.ones_like(extent)
        return self._xp.where(free, extent, ones), self._xp.where(free, ones, 0.0)

    def _places(self, axis: int) -> Array:
        """Positions of the places along an axis: [regions, height, 1] or [regions, 1, width]."""
        start = self._ends[axis][0] * self._scale - (0.5 if self._half_pixel else 0.0)
        count = self._bins[axis] * self._ratio
        lying = start + self._extent(axis)[0] * self._xp.reshape(self._parts[axis], (1, count))
        shape = (self._rois_shape[0], count, 1) if axis == 0 else (self._rois_shape[0], 1, count)
        return self._xp.reshape(lying, shape)

    def _apart(self, products: Array) -> Array:
        height, width = self._bins
        shape = (self._channels, products.shape[2], self._rois_shape[0],
                 height, self._ratio, width, self._ratio)  # fmt: skip
        return self._xp.reshape(products, shape)

    def _regions_first(self, bins: Array) -> Array:
        return self._xp.permute_dims(bins, (1, 0, 2, 3))

    def _channels_first(self, bins: Array) -> Array:
        height, width = self._bins
        shape = (self._channels, 1, self._rois_shape[0], height, 1, width, 1)
        return self._xp.reshape(self._regions_first(bins), shape)


_POOLED = (1, 4, 6)  # of [channels, taps, regions, height, places, width, places]


class _Spans:
    """Regions with a place for each element that a bin spans, so that rois say how many there are.

    Means over such places are products with two matrices for each region, one along each axis: the
    weights of the image's elements in each bin. At most two places in an element matter, since
    their steps are over 1/2 where a bin has several, and those outside the image count 0.
    """

    def __init__(
        self, xp: Namespace, x: Array, rois: Array, batch_indices: Array, attributes: dict[str, Any]
    ) -> None:
        self._xp = xp
        self._images, self._channels, *space = x.shape
        self._scale = attributes["spatial_scale"]
        self._half_pixel = attributes["coordinate_transformation_mode"] == "half_pixel"
        self._count = rois.shape[0]
        x1, y1, x2, y2 = xp.split(rois, (1, 1, 1, 1), 1)
        bins = attributes["output_height"], attributes["output_width"]
        self._down, self._across = (
            self._span(start, end, count, size)
            for (start, end), count, size in zip(((y1, y2), (x1, x2)), bins, space, strict=True)
        )
        dtype = str(x.dtype)
        images = integers(xp, range(self._images), (1, self._images))
        which = xp.where(xp.less(batch_indices, 0), batch_indices + self._images, batch_indices)
        is_image = xp.equal(xp.reshape(which, (self._count, 1)), images)
        self._is_image = xp.reshape(xp.astype(is_image, dtype), (self._count, 1, self._images, 1))
        lying = xp.permute_dims(x, (0, 2, 1, 3))
        flat = (self._images * space[0], self._channels * space[1])
        odd = xp.logical_or(xp.isnan(x), xp.isinf(x))
        self._x = xp.where(xp.reshape(xp.permute_dims(odd, (0, 2, 1, 3)), flat), 0.0,
                           xp.reshape(lying, flat))  # fmt: skip
        self._odd = xp.reshape(xp.astype(xp.permute_dims(odd, (0, 2, 1, 3)), dtype), flat)

    def pooled(self) -> Array:
        """[regions, channels, height, width]; NaN where elements are reached that are not finite.

        They are counted, since a product adds 0 times every element that is not reached.
        """
        xp = self._xp
        reached = self._means(self._odd)
        found = self._means(self._x)
        return xp.where(xp.greater(reached, 0.0), xp.full_like(found, nan), found)

    def to_x(self, grad: Array) -> Array:
        """The gradient of the images."""
        xp, across = self._xp, self._across
        columns = xp.matmul(self._rows_of(grad), across.weights)
        down, across_size = self._down, across.size
        flat = xp.reshape(columns, (self._count * down.bins, self._channels * across_size))
        put = xp.matmul(_swap_last(xp, self._of_all_images()), flat)
        shape = (self._images, down.size, self._channels, across_size)
        return xp.permute_dims(xp.reshape(put, shape), (0, 2, 1, 3))

    def to_rois(self, grad: Array) -> Array:
        """The gradient of rois, through the places."""
        xp, down, across = self._xp, self._down, self._across
        rows = self._rows_of(grad)
        to_across = xp.matmul(_swap_last(xp, rows), self._columns_of(self._x))
        flat = xp.reshape(
            xp.matmul(rows, across.weights),
            (self._count * down.bins, self._channels * across.size),
        )
        of_all = xp.reshape(
            xp.matmul(flat, _swap_last(xp, self._x)),
            (self._count, down.bins, self._images, down.size),
        )
        to_down = xp.sum(of_all * self._is_image, axis=(2,))
        low_y, high_y = self._ends_of(down, to_down)
        low_x, high_x = self._ends_of(across, to_across)
        return xp.concat([low_x, low_y, high_x, high_y], axis=1)

    def _means(self, x: Array) -> Array:
        found = self._xp.matmul(self._columns_of(x), _swap_last(self._xp, self._across.weights))
        bins = (self._count, self._down.bins, self._channels, self._across.bins)
        return self._xp.permute_dims(self._xp.reshape(found, bins), (0, 2, 1, 3))

    def _columns_of(self, x: Array) -> Array:
        """Means along the first axis: [regions, bins * channels, width]."""
        found = self._xp.matmul(self._of_all_images(), x)
        shape = (self._count, self._down.bins * self._channels, self._across.size)
        return self._xp.reshape(found, shape)

    def _rows_of(self, grad: Array) -> Array:
        shape = (self._count, self._down.bins * self._channels, self._across.bins)
        return self._xp.reshape(self._xp.permute_dims(grad, (0, 2, 1, 3)), shape)

    def _of_all_images(self) -> Array:
        """[regions * bins, images * height]: weights along the first axis, 0 in other images."""
        xp, down = self._xp, self._down
        apart = xp.reshape(down.weights, (self._count, down.bins, 1, down.size)) * self._is_image
        return xp.reshape(apart, (self._count * down.bins, self._images * down.size))

    def _span(self, low: Array, high: Array, bins: int, size: int) -> _Span:
        xp, dtype, count = self._xp, str(low.dtype), self._count
        shift = 0.5 if self._half_pixel else 0.0
        start = low * self._scale - shift
        extent = (high * self._scale - shift) - start
        turn = xp.ones_like(extent)
        if not self._half_pixel:
            turn = xp.where(xp.greater(extent, 1.0), turn, 0.0)
            extent = xp.maximum(extent, xp.ones_like(extent))
        per_bin = xp.ceil(extent / float(bins))
        start, extent, per_bin = (xp.astype(each, "float64") for each in (start, extent, per_bin))
        some = xp.maximum(per_bin, xp.ones_like(per_bin))
        step = extent / (some * float(bins))
        is_wide = xp.greater(per_bin, 1.0)
        ahead = xp.floor((-1.0 - start) / xp.where(is_wide, step, 1.0) - 1.5)
        first = xp.where(is_wide, xp.maximum(ahead, xp.zeros_like(ahead)), 0.0)
        most = max(bins, 2 * size + 6)
        number = first + floats(xp, range(most), (1, most), "float64")
        place = start + (number + 0.5) * step
        flat = (1, 1, count * most)
        line = _clamped_line(xp, xp.reshape(place, flat), size)
        is_one = xp.less(number, per_bin * float(bins))
        inside = xp.logical_and(line.inside, xp.reshape(is_one, flat))
        share = xp.reshape(xp.broadcast_to(1.0 / some, (count, most)), flat)
        bin_number = xp.minimum(xp.floor(number / some), xp.full_like(number, bins - 1.0))
        regions = integers(xp, range(count), (count, 1)) * bins
        rows = xp.reshape(xp.astype(bin_number, "int64") + regions, flat)
        index = xp.reshape(rows * size + line.index, (2 * count * most,))
        weight = xp.where(inside, line.weight * share, 0.0)
        zeros = xp.full((count * bins * size,), 0, dtype)
        updates = xp.astype(xp.reshape(weight, index.shape), dtype)
        weights = xp.scatter(zeros, index, updates, 0, "add")
        return _Span(
            bins, size, xp.reshape(weights, (count, bins, size)), index,
            xp.where(inside, line.slope * share, 0.0), (number + 0.5) / (some * float(bins)), turn,
        )  # fmt: skip

    def _ends_of(self, span: _Span, to_weights: Array) -> tuple[Array, Array]:
        """The gradient of where regions begin and end, from that of the weights."""
        xp = self._xp
        flat = xp.reshape(to_weights, (self._count * span.bins * span.size,))
        pulled = xp.reshape(xp.take(flat, span.index), span.slope.shape)
        to_place = xp.sum(xp.astype(pulled, "float64") * span.slope, axis=(1,))
        lying = xp.reshape(to_place, span.part.shape)
        by_start = xp.sum(lying, axis=(1,), keepdims=True)
        by_extent = xp.sum(lying * span.part, axis=(1,), keepdims=True)
        dtype = str(span.turn.dtype)
        by_extent = xp.astype(by_extent, dtype) * span.turn
        by_start = xp.astype(by_start, dtype)
        return (by_start - by_extent) * self._scale, by_extent * self._scale


class _Span(NamedTuple):
    """What regions read along one axis of an image."""

    bins: int
    size: int
    weights: Array  # [regions, bins, size]
    index: Array  # of each of the two elements around each place, in the flat weights
    slope: Array  # of their weights, by the place
    part: Array  # where along the region a place lies, from 0 to 1
    turn: Array  # whether the extent depends on the ends


def _clamped_line(xp: Namespace, place: Array, size: int) -> _Line:
    """The two elements around a place; up to 1 outside it lies on the edge, further out nowhere."""
    near = xp.logical_and(xp.greater_equal(place, -1.0), xp.less_equal(place, float(size)))
    inner, turn = _brought_in(xp, place, 0.0, size - 1.0, size, "border")
    line = _linear_line(xp, inner, size)
    return _Line(line.index, xp.logical_and(line.inside, near), line.weight, line.slope * turn)


class DeformConv(Gate):
    """Convolution that reads each element of a block at an offset of its own.

    Formula:   Y[n, m, l] = B[m] + sum of W[m, c, k] * mask[n, k, l] * X[n, c, l * stride + k *
               dilation - pad + offset[n, k, l]] over c and k, with X interpolated linearly
    Gradient:  to W the elements read, to mask W times them, to B 1; to X the weights of the
               interpolation, to offset its slope
    Kinks:     On an element the slope on its higher side counts.
    Shapes:    X is [N, C, *image], W [M, C / group, *kernel], offset [N, offset_group * elements of
               the kernel * axes, *blocks], mask the same without axes, and Y [N, M, *blocks].
    """

    operator = "DeformConv"
    inputs = (
        Input("X"),
        Input("W"),
        Input("offset", domain=(-0.9, 0.9)),
        Input("B", optional=True),
        Input("mask", optional=True),
    )
    attributes = (
        Attribute("dilations", "ints", doc="Step within a block, for each axis; 1 if left out."),
        Attribute("group", "int", 1, doc="Parts that channels are divided into for W."),
        Attribute("kernel_shape", "ints", doc="W's, if given."),
        Attribute("offset_group", "int", 1, doc="Parts that channels are divided into for offset."),
        Attribute("pads", "ints", doc="Elements put before each axis, then after each."),
        Attribute("strides", "ints", doc="Step from block to block; 1 if left out."),
    )
    examples = (
        Example(
            ([[[1.0, 3.0, 7.0]]], [[[2.0]]], [[[0.5, 0.0, -0.25]]]), [[[4.0, 6.0, 12.0]]],
            gradients=([[[1.0, 3.5, 1.5]]], [[[11.0]]], [[[4.0, 8.0, 8.0]]]), at_kink=True,
        ),
    )  # fmt: skip
    samples = (
        Sample((TensorSpec((2, 4, 3, 4)), TensorSpec((6, 2, 2, 2)), TensorSpec((2, 16, 3, 2)),
                TensorSpec((6,)), TensorSpec((2, 8, 3, 2))),
               {"group": 2, "offset_group": 2, "pads": (1, 0, 0, 1), "strides": (1, 2)}),
        Sample((TensorSpec((1, 1, 5)), TensorSpec((2, 1, 2)), TensorSpec((1, 2, 3))),
               {"dilations": (2,)}),
        Sample((TensorSpec((1, 1, 3, 3)), TensorSpec((1, 1, 2, 2)), TensorSpec((1, 8, 2, 2)), None,
                TensorSpec((1, 4, 2, 2)))),
        Sample((TensorSpec((0, 1, 3)), TensorSpec((1, 1, 2)), TensorSpec((0, 2, 2)))),
    )  # fmt: skip
    rejections = (
        Rejection((TensorSpec((1, 3, 4)), TensorSpec((1, 2, 2)), TensorSpec((1, 2, 3))),
                  "X has 3 channels but W takes 2 in each of 1 groups"),
        Rejection((TensorSpec((1, 1, 4)), TensorSpec((1, 1, 2)), TensorSpec((1, 2, 4))),
                  "offset has shape (1, 2, 4) but must have (1, 2, 3)"),
        Rejection((TensorSpec((1, 1, 4)), TensorSpec((1, 1, 2)), TensorSpec((1, 2, 3)),
                   TensorSpec((2,))), "B has shape (2,) but must have (1,)"),
        Rejection((TensorSpec((1, 2, 4)), TensorSpec((1, 2, 2)), TensorSpec((1, 6, 3))),
                  "2 channels do not divide into 3 offset groups",
                  attributes={"offset_group": 3}),
    )  # fmt: skip

    def infer(
        self, x: TensorSpec, w: TensorSpec, offset: TensorSpec, *rest: Any, **attributes: Any
    ) -> TensorSpec:
        bias, mask = (*rest, None, None)[:2]
        _require_channels(x, w, attributes)
        layout = _Layout.of(x.shape, w.shape, attributes)
        taps = layout.offset_groups * prod(layout.kernel)
        rows, rank = x.shape[0], len(layout.image)
        for name, spec, shape in (
            ("offset", offset, (rows, taps * rank, *layout.blocks)),
            ("B", bias, w.shape[:1]),
            ("mask", mask, (rows, taps, *layout.blocks)),
        ):
            if spec is not None and spec.shape != shape:
                raise Invalid(
                    "SHAPE_MISMATCH", f"{name} has shape {spec.shape} but must have {shape}"
                )
        return TensorSpec(checked_shape((rows, w.shape[0], *layout.blocks), "pads"), x.dtype)

    def scratch(
        self,
        outs: Sequence[TensorSpec],
        x: TensorSpec,
        w: TensorSpec,
        *rest: Any,
        **attributes: Any,
    ) -> Scratch:
        held = self._held(x, w, *rest, **attributes) * ITEM_SIZES[x.dtype]
        return Scratch(int(0.42 * held), int((1 if x.dtype == "float64" else 1.4) * held))

    def forward(
        self, xp: Namespace, x: Array, w: Array, offset: Array, *rest: Any, **attributes: Any
    ) -> Array:
        bias, mask = (*rest, None, None)[:2]
        layout = _Layout.of(x.shape, w.shape, attributes)
        taps = layout.taps(xp, offset)
        read = xp.sum(taps.take(layout.images(xp, x)) * taps.weights(), axis=(2,))
        columns = layout.columns(xp, read if mask is None else read * layout.masks(xp, mask))
        product = xp.matmul(xp.reshape(w, layout.weights_shape), columns)
        out = xp.reshape(product, (x.shape[0], w.shape[0], *layout.blocks))
        if bias is None:
            return out
        return out + xp.reshape(bias, (-1, *(1 for _ in layout.blocks)))

    def vjp(
        self,
        xp: Namespace,
        grad: Array,
        out: Array,
        x: Array,
        w: Array,
        offset: Array,
        *rest: Any,
        **attributes: Any,
    ) -> tuple[Any, ...]:
        bias, mask = (*rest, None, None)[:2]
        layout = _Layout.of(x.shape, w.shape, attributes)
        taps = layout.taps(xp, offset)
        values = taps.take(layout.images(xp, x))
        read = xp.sum(values * taps.weights(), axis=(2,))
        groups, outputs, _ = layout.weights_shape
        lying = xp.reshape(grad, (x.shape[0], groups, outputs, prod(layout.blocks)))
        kernel = xp.reshape(w, layout.weights_shape)
        to_masked = xp.reshape(xp.matmul(_swap_last(xp, kernel), lying), read.shape)
        to_read = to_masked if mask is None else to_masked * layout.masks(xp, mask)
        to_taps = xp.expand_dims(to_read, axis=2)

        def to_w() -> Array:
            masked = read if mask is None else read * layout.masks(xp, mask)
            across = _swap_last(xp, layout.columns(xp, masked))
            return xp.reshape(xp.sum(xp.matmul(lying, across), axis=(0,)), w.shape)

        def to_offset() -> Array:
            pulled = xp.sum(values * to_taps, axis=(1,), keepdims=True)
            along = [
                xp.sum(taps.weights(axis) * pulled, axis=(2,)) for axis in range(len(layout.image))
            ]
            shape = (x.shape[0] * layout.offset_groups * prod(layout.kernel), 1,
                     prod(layout.blocks))  # fmt: skip
            columns = [xp.reshape(each, shape) for each in along]
            return xp.reshape(xp.concat(columns, axis=1), offset.shape)

        def to_bias() -> Array:
            return xp.sum(
                xp.reshape(lying, (x.shape[0], w.shape[0], prod(layout.blocks))), axis=(0, 2)
            )

        def to_mask() -> Array:
            return xp.reshape(xp.sum(to_masked * read, axis=(1,)), mask.shape)

        entries = (
            lambda: xp.reshape(taps.put(to_taps * taps.weights()), x.shape),
            to_w,
            to_offset,
            None if bias is None else to_bias,
            None if mask is None else to_mask,
        )
        return entries[: 3 + len(rest)]

    def operations(
        self,
        outs: tuple[TensorSpec, ...],
        x: TensorSpec,
        w: TensorSpec,
        *rest: Any,
        **attributes: Any,
    ) -> int:
        layout = _Layout.of(x.shape, w.shape, attributes)
        products = x.shape[0] * prod(layout.blocks) * w.size
        return products + x.size + 2 * self._held(x, w, *rest, **attributes)

    def _held(self, x: TensorSpec, w: TensorSpec, *_: Any, **attributes: Any) -> int:
        layout = _Layout.of(x.shape, w.shape, attributes)
        parts = layout.offset_groups
        places = prod(layout.kernel) * prod(layout.blocks)
        columns = 5 * x.shape[0] * x.shape[1] * places
        taps = 2 ** len(layout.image)
        return columns + _sampled(x.shape[0] * parts, x.shape[1] // parts, taps, places)


def _require_channels(x: TensorSpec, w: TensorSpec, attributes: dict[str, Any]) -> None:
    """Whether channels divide into the groups (SHAPE_MISMATCH)."""
    if x.rank != w.rank or x.rank < 3 or not prod(x.shape[2:]) or not prod(w.shape[2:]):
        raise Invalid(
            "SHAPE_MISMATCH",
            f"X has shape {x.shape} and W {w.shape}, but must be [N, C, *image] and "
            "[M, C / group, *kernel] with elements",
        )
    group, parts = attributes["group"], attributes["offset_group"]
    if group < 1 or x.shape[1] != w.shape[1] * group or w.shape[0] % group:
        raise Invalid(
            "SHAPE_MISMATCH",
            f"X has {x.shape[1]} channels but W takes {w.shape[1]} in each of {group} groups, for "
            f"{w.shape[0]} outputs",
        )
    if parts < 1 or x.shape[1] % parts:
        raise Invalid(
            "SHAPE_MISMATCH", f"{x.shape[1]} channels do not divide into {parts} offset groups"
        )
    kernel = attributes["kernel_shape"] or w.shape[2:]
    if kernel != w.shape[2:]:
        raise Invalid("SHAPE_MISMATCH", f"kernel_shape is {kernel} but W has {w.shape[2:]}")


class _Layout(NamedTuple):
    """How a deformable convolution's arrays lie."""

    rows: int
    channels: int
    image: Shape
    kernel: Shape
    blocks: Shape
    strides: Ints
    dilations: Ints
    pads: Ints
    offset_groups: int
    weights_shape: Shape  # [groups, outputs, elements of a column]

    @classmethod
    def of(cls, x: Shape, w: Shape, attributes: dict[str, Any]) -> _Layout:
        """The layout for an image and weights of the shapes given."""
        image, kernel, rank = tuple(x[2:]), tuple(w[2:]), len(x) - 2
        group = attributes["group"]
        return cls(
            x[0], x[1], image, kernel, block_counts(image, kernel, attributes),
            steps_along(attributes, "strides", rank, 1),
            steps_along(attributes, "dilations", rank, 1),
            steps_along(attributes, "pads", 2 * rank, 0),
            attributes["offset_group"],
            (group, w[0] // group, w[1] * prod(kernel)),
        )  # fmt: skip

    def images(self, xp: Namespace, x: Array) -> Array:
        """[rows * offset groups, channels of each, *image]."""
        parts = self.offset_groups
        return xp.reshape(x, (self.rows * parts, self.channels // parts, *self.image))

    def masks(self, xp: Namespace, mask: Array) -> Array:
        """[rows * offset groups, 1, elements of the kernel * blocks]."""
        places = prod(self.kernel) * prod(self.blocks)
        return xp.reshape(mask, (self.rows * self.offset_groups, 1, places))

    def columns(self, xp: Namespace, read: Array) -> Array:
        """[rows, groups, elements of a column, blocks], from [.., channels, kernel * blocks]."""
        groups, _, depth = self.weights_shape
        return xp.reshape(read, (self.rows, groups, depth, prod(self.blocks)))

    def taps(self, xp: Namespace, offset: Array) -> _Taps:
        """The elements around each place."""
        rank, parts = len(self.image), self.rows * self.offset_groups
        apart = xp.reshape(offset, (parts, prod(self.kernel), rank, prod(self.blocks)))
        offsets = xp.split(apart, (1,) * rank, 2)
        lines = []
        for axis, size in enumerate(self.image):
            within = [k * self.dilations[axis] - self.pads[axis] for k in range(self.kernel[axis])]
            starts = [block * self.strides[axis] for block in range(self.blocks[axis])]
            regular = integers(xp, within, vector_shape(axis, len(within), 2 * rank)) + integers(
                xp, starts, vector_shape(rank + axis, len(starts), 2 * rank)
            )
            whole = xp.broadcast_to(regular, (*self.kernel, *self.blocks))
            flat = (1, 1, prod(self.kernel) * prod(self.blocks))
            place = xp.reshape(xp.astype(whole, str(offset.dtype)), flat)
            moved = xp.reshape(offsets[axis], (parts, *flat[1:]))
            lines.append(_linear_line(xp, place + moved, size))
        return _Taps(xp, self.image, lines)


class MaxRoiPool(Gate):
    """Regions of an image, each divided into bins of whole elements whose largest counts.

    Formula:   Y[r, c, i, j] = max of X[rois[r, 0], c] over bin (i, j) of region r, whose corners
               are rounded to elements; 0 for an empty bin
    Gradient:  to X 1 at the largest element of each bin; to rois none, as they are rounded
    Kinks:     Of equal elements the first, row-major, gets the gradient.
    Shapes:    X is [N, C, H, W], rois [R, 5] with (image, x1, y1, x2, y2) and Y [R, C,
               *pooled_shape].
    """

    operator = "MaxRoiPool"
    inputs = (Input("X"), Input("rois"))
    attributes = (
        Attribute("pooled_shape", "ints", required=True, doc="Bins of a region: height, width."),
        Attribute("spatial_scale", "float", 1.0, doc="Size of X over the size rois are given for."),
    )
    examples = (
        Example(
            ([[[[1.0, 2.0], [4.0, 3.0]]]], [[0.0, 0.0, 0.0, 1.0, 1.0]]), [[[[4.0, 3.0]]]],
            gradients=([[[[0.0, 0.0], [1.0, 1.0]]]], None), attributes={"pooled_shape": (1, 2)},
        ),
    )  # fmt: skip
    samples = (
        Sample(
            (TensorSpec((2, 2, 4, 5)),
             TensorSpec((2, 5), "float64", (1.0, 1.2, 0.0, 3.0, 4.0, 0.0, 8.0, 8.0, 3.0, 3.0))),
            {"pooled_shape": (2, 3), "spatial_scale": 0.8},
        ),
        Sample((TensorSpec((1, 1, 2, 2)), TensorSpec((0, 5))), {"pooled_shape": (1, 1)}),
    )  # fmt: skip
    rejections = (
        Rejection((TensorSpec((1, 1, 2, 2)), TensorSpec((1, 4))), "rois have shape (1, 4)",
                  attributes={"pooled_shape": (1, 1)}),
        Rejection((TensorSpec((1, 1, 2, 2)), TensorSpec((1, 5))), "pooled_shape is (1,)",
                  "ATTRIBUTE_INVALID", {"pooled_shape": (1,)}),
    )  # fmt: skip

    def infer(
        self, x: TensorSpec, rois: TensorSpec, pooled_shape: Ints, spatial_scale: float
    ) -> TensorSpec:
        return TensorSpec(_pooled_shape(x, rois, pooled_shape), x.dtype)

    def scratch(
        self, outs: Sequence[TensorSpec], x: TensorSpec, *_: Any, **attributes: Any
    ) -> Scratch:
        return Scratch(x.nbytes + 2 * x.nbytes // max(x.shape[0], 1), x.nbytes)

    def operations(
        self,
        outs: tuple[TensorSpec, ...],
        x: TensorSpec,
        rois: TensorSpec,
        pooled_shape: Ints,
        spatial_scale: float,
    ) -> int:
        return _searching(x, rois, pooled_shape)

    def forward(
        self, xp: Namespace, x: Array, rois: Array, pooled_shape: Ints, spatial_scale: float
    ) -> Array:
        flat = xp.pad(xp.reshape(x, (prod(x.shape),)), (0,), (1,))
        return xp.take(flat, xp.roi_argmax(x, rois, pooled_shape, spatial_scale), axis=0)

    def vjp(
        self,
        xp: Namespace,
        grad: Array,
        out: Array,
        x: Array,
        rois: Array,
        pooled_shape: Ints,
        spatial_scale: float,
    ) -> tuple[Any, ...]:
        def to_x() -> Array:
            places = xp.roi_argmax(x, rois, pooled_shape, spatial_scale)
            count = prod(x.shape)
            lying = (prod(grad.shape),)
            zeros = xp.full((count + 1,), 0, str(x.dtype))
            flat = xp.reshape(grad, lying)
            total = xp.scatter(zeros, xp.reshape(places, lying), flat, 0, "add")
            return xp.reshape(xp.slice(total, (0,), (count,), (1,)), x.shape)

        return to_x, None


class RoiArgMax(Gate):
    """Where the largest element of each bin is: what MaxRoiPool takes. This operator is not ONNX's.

    Formula:   Y[r, c, i, j] = position in X, row-major, of the largest element of bin (i, j) of
               region r; the number of elements of X for an empty bin
    Gradient:  None: the output is int64.
    Shapes:    Those of MaxRoiPool.
    """

    operator = "RoiArgMax"
    inputs = MaxRoiPool.inputs
    attributes = MaxRoiPool.attributes
    output_dtypes = ("int64",)
    examples = (
        Example(
            ([[[[1.0, 2.0], [4.0, 3.0]]]], [[0.0, 0.0, 0.0, 1.0, 1.0]]), [[[[2, 3]]]],
            gradients=(None, None), attributes={"pooled_shape": (1, 2)},
        ),
        Example(
            ([[[[1.0, 2.0]]]], [[0.0, 0.0, 0.0, 5.0, 0.0]]), [[[[1, 2]]]],
            gradients=(None, None), attributes={"pooled_shape": (1, 2)},
        ),
    )  # fmt: skip
    samples = MaxRoiPool.samples
    rejections = MaxRoiPool.rejections

    def infer(
        self, x: TensorSpec, rois: TensorSpec, pooled_shape: Ints, spatial_scale: float
    ) -> TensorSpec:
        return TensorSpec(_pooled_shape(x, rois, pooled_shape), "int64")

    def scratch(
        self, outs: Sequence[TensorSpec], x: TensorSpec, *_: Any, **attributes: Any
    ) -> Scratch:
        part = x.nbytes // max(x.shape[0], 1)  # of one image, while the next is made
        return Scratch(2 * part, 0)

    def operations(self, outs: tuple[TensorSpec, ...], *specs: Any, **attributes: Any) -> int:
        return MaxRoiPool().operations(outs, *specs, **attributes)

    def forward(
        self, xp: Namespace, x: Array, rois: Array, pooled_shape: Ints, spatial_scale: float
    ) -> Array:
        return xp.roi_argmax(x, rois, pooled_shape, spatial_scale)

    def vjp(self, xp: Namespace, grad: Array, out: Array, *_: Any, **__: Any) -> tuple[None, ...]:
        return None, None


def _searching(x: TensorSpec, rois: TensorSpec, pooled_shape: Ints) -> int:
    """Operations to find the largest element of each bin; bins overlap by a row and a column."""
    _, channels, height, width = x.shape
    rows, columns = pooled_shape
    seen = channels * (height + rows) * (width + columns)
    bins = rows * columns * 10 * STEP
    return x.size + rois.shape[0] * (seen + bins + (rows + columns) * STEP)


def _pooled_shape(x: TensorSpec, rois: TensorSpec, pooled_shape: Ints) -> Shape:
    """The shape of regions pooled into bins (SHAPE_MISMATCH, ATTRIBUTE_INVALID)."""
    if len(pooled_shape) != 2 or min(pooled_shape) < 1:
        raise Invalid(
            "ATTRIBUTE_INVALID",
            f"pooled_shape is {pooled_shape} but must be two numbers from 1 on",
            attribute="pooled_shape",
        )
    if x.rank != 4 or rois.rank != 2 or rois.shape[1] != 5:
        raise Invalid(
            "SHAPE_MISMATCH",
            f"X has shape {x.shape} and rois have shape {rois.shape}, but must have [N, C, H, W] "
            "and [R, 5]",
        )
    return checked_shape((rois.shape[0], x.shape[1], *pooled_shape), "pooled_shape")
