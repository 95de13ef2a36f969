"""Images: gates that resample, warp and fold tensors with spatial axes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, floor, isfinite, prod
from typing import Any, NamedTuple

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
)
from gradwire_server.gates.common import (
    Ints,
    checked_shape,
    floats,
    integers,
    ints,
    known,
    vector_shape,
)
from gradwire_server.specs import ANY, FLOATS, Shape, TensorSpec, normalize_axes

#: For each position of an output axis, the positions it is made from, with their weights.
Rows = list[dict[int, float]]


def _numbers(*values: float) -> TensorSpec:
    """A known vector of float32, for the tables below."""
    return TensorSpec((len(values),), "float32", values)


class Resize(Gate):
    """A tensor sampled anew along its axes, finer or coarser.

    Formula:   out[.., i, ..] = sum of w[i, j] * X[.., j, ..] along each axis in turn, where w puts
               1 on the nearest element, or weights of linear or cubic interpolation around the
               place that coordinate_transformation_mode finds
    Gradient:  d out/dX = w, transposed along each axis
    Shapes:    sizes, or floor(X's size * scale) along each of axes; all axes in order where none
               are given. Integers are rounded to even and kept in range.
    """

    operator = "Resize"
    inputs = (
        Input("X", ANY),
        Input("roi", FLOATS, "R", optional=True, known=True),
        Input("scales", FLOATS, "S", optional=True, known=True),
        Input("sizes", ("int64",), "I", optional=True, known=True),
    )
    attributes = (
        Attribute("antialias", "int", 0, choices=(0, 1),
                  doc="1 widens the filter where the tensor shrinks."),
        Attribute("axes", "ints", doc="What roi, scales and sizes are about."),
        Attribute(
            "coordinate_transformation_mode", "string", "half_pixel",
            choices=("half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners",
                     "asymmetric", "tf_crop_and_resize"),
            doc="Where in X an element of the output lies.",
        ),
        Attribute("cubic_coeff_a", "float", -0.75, doc="Shape of the cubic filter."),
        Attribute("exclude_outside", "int", 0, choices=(0, 1),
                  doc="1 gives no weight outside X; 0 repeats its edge."),
        Attribute("extrapolation_value", "float", 0.0,
                  doc="Outside X, for tf_crop_and_resize."),
        Attribute(
            "keep_aspect_ratio_policy", "string", "stretch",
            choices=("stretch", "not_larger", "not_smaller"),
            doc="Whether sizes are exact, or bounds for one common scale.",
        ),
        Attribute("mode", "string", "nearest", choices=("nearest", "linear", "cubic"),
                  doc="The filter."),
        Attribute(
            "nearest_mode", "string", "round_prefer_floor",
            choices=("round_prefer_floor", "round_prefer_ceil", "floor", "ceil"),
            doc="Which element is the nearest.",
        ),
    )  # fmt: skip
    examples = (
        Example(([1.0, 2.0], None, [2.0]), [1.0, 1.0, 2.0, 2.0],
                gradients=([2.0, 2.0], None, None)),
        Example(([1.0, 3.0], None, [2.0]), [1.0, 1.5, 2.5, 3.0],
                gradients=([2.0, 2.0], None, None), attributes={"mode": "linear"}),
        Example(([1.0, 3.0, 8.0, 0.0], None, None, [2]), [2.0, 4.0],
                gradients=([0.5, 0.5, 0.5, 0.5], None, None, None), attributes={"mode": "linear"}),
        Example(([1, 2], None, None, [3]), [1, 1, 2]),
    )  # fmt: skip
    samples = (
        Sample((TensorSpec((1, 2, 3, 4)), None, _numbers(1, 1, 2.6, 0.6)), {"mode": "linear"}),
        Sample((TensorSpec((2, 3, 4)), None, None, ints(5, 3)),
               {"mode": "cubic", "axes": (2, 1), "exclude_outside": 1, "cubic_coeff_a": -0.5}),
        Sample((TensorSpec((2, 5)), None, _numbers(1, 0.5)), {"mode": "cubic", "antialias": 1}),
        Sample((TensorSpec((2, 7)), None, None, ints(2, 3)), {"mode": "linear", "antialias": 1}),
        Sample((TensorSpec((4,)), None, None, ints(7)),
               {"mode": "linear", "coordinate_transformation_mode": "align_corners"}),
        Sample((TensorSpec((4, 4)), _numbers(0.4, 0.2, 1.2, 0.8), None, ints(3, 3)),
               {"mode": "linear", "coordinate_transformation_mode": "tf_crop_and_resize",
                "extrapolation_value": 10.0}),
        Sample((TensorSpec((3, 5)), None, None, ints(6, 6)),
               {"keep_aspect_ratio_policy": "not_larger", "nearest_mode": "ceil"}),
        Sample((TensorSpec((3,)), None, _numbers(1.5)),
               {"mode": "linear", "coordinate_transformation_mode": "half_pixel_symmetric"}),
        Sample((TensorSpec((0, 3)), None, _numbers(1, 2)), {"mode": "linear"}),
        Sample((TensorSpec((3, 2)), None, _numbers(0.1, 1)), {"mode": "linear"}),
    )  # fmt: skip
    rejections = (
        Rejection((TensorSpec((2,)),), "give scales or sizes, and not both"),
        Rejection((TensorSpec((2, 3)), None, _numbers(2)),
                  "there are 1 scales or sizes but 2 axes"),
        Rejection((TensorSpec((2,)), None, _numbers(0.0)), "scale 0.0 along axis 0 is not"),
        Rejection((TensorSpec((0,)), None, None, ints(2)), "axis 0 is empty"),
        Rejection((TensorSpec((2,)), None, None, ints(-2)), "sizes gives the shape (-2,)"),
        Rejection((TensorSpec((2,)), None, _numbers(2)), "nearest has no filter to widen",
                  "ATTRIBUTE_INVALID", {"antialias": 1}),
        Rejection((TensorSpec((2,), "bool"), None, _numbers(2)), "X is bool",
                  "DATA_TYPE_UNSUPPORTED", {"mode": "linear"}),
        Rejection((TensorSpec((2,)), None, _numbers(2)), "tf_crop_and_resize needs roi",
                  attributes={"coordinate_transformation_mode": "tf_crop_and_resize"}),
    )  # fmt: skip

    def infer(
        self, x: TensorSpec, *known_specs: TensorSpec | None, **attributes: Any
    ) -> TensorSpec:
        if attributes["antialias"] and attributes["mode"] == "nearest":
            raise Invalid("ATTRIBUTE_INVALID", "antialias: mode nearest has no filter to widen")
        if x.dtype == "bool" and attributes["mode"] != "nearest":
            raise Invalid(
                "DATA_TYPE_UNSUPPORTED",
                f"X is bool, which mode {attributes['mode']} cannot average; use mode nearest",
            )
        values = [None if each is None else each.value for each in known_specs]
        given = values[2] if any(values[2:]) else (*values, None, None)[1]
        if given and attributes["axes"] is None and len(given) != x.rank:
            raise Invalid(
                "SHAPE_MISMATCH", f"there are {len(given)} scales or sizes but {x.rank} axes"
            )
        steps = _resizings(x.shape, values, attributes)
        shape = list(x.shape)
        for step in steps:
            shape[step.axis] = step.length
        found = checked_shape(tuple(shape), "sizes" if any(values[2:]) else "scales")
        for step in steps:
            if step.length and not x.shape[step.axis]:
                raise Invalid(
                    "SHAPE_MISMATCH",
                    f"axis {step.axis} is empty, so there is nothing to sample for size "
                    f"{step.length}",
                )
        return TensorSpec(found, x.dtype)

    def forward(self, xp: Namespace, x: Array, *values: Any, **attributes: Any) -> Array:
        dtype = str(x.dtype)
        exact = attributes["mode"] == "nearest" or dtype in FLOATS
        out = x if exact else xp.astype(x, "float64")
        for step in _resizings(x.shape, values, attributes):
            rows = step.rows(attributes)
            out = _weighted_take(xp, out, rows, step.axis)
            if step.crop:
                lying = vector_shape(step.axis, step.length, len(x.shape))
                outside = integers(xp, [not row for row in rows], lying)
                fill = xp.astype(xp.full((), attributes["extrapolation_value"], "float64"), dtype)
                out = xp.where(xp.equal(outside, 1), fill, out)
        return out if exact else xp.round_to(out, dtype)

    def vjp(
        self, xp: Namespace, grad: Array, out: Array, x: Array, *values: Any, **attributes: Any
    ) -> tuple[Any, ...]:
        def to_x() -> Array:
            to_axes = grad
            for step in reversed(_resizings(x.shape, values, attributes)):
                back = _transposed(step.rows(attributes), x.shape[step.axis])
                to_axes = _weighted_take(xp, to_axes, back, step.axis)
            return to_axes

        return to_x, *(None for _ in values)

    def aligned_shapes(
        self, x: TensorSpec, *known_specs: TensorSpec | None, **attributes: Any
    ) -> tuple[Shape, ...] | None:
        if attributes["axes"] is not None and min(attributes["axes"], default=-1) >= 0:
            return None
        return x.shape, *(() if each is None else each.shape for each in known_specs)


@dataclass(frozen=True)
class _Resizing:
    """What happens along one axis."""

    axis: int
    size: int
    length: int
    scale: float
    crop: tuple[float, float] | None

    def rows(self, attributes: dict[str, Any]) -> Rows:
        """What each element of the output is made from; nothing outside the crop."""
        places = [self._place(i, attributes) for i in range(self.length)]
        if attributes["mode"] == "nearest":
            nearest = _NEAREST[attributes["nearest_mode"]]
            rows = [{self._inside(nearest(place)): 1.0} for place in places]
        else:
            rows = [self._filtered(place, attributes) for place in places]
        if self.crop:
            rows = [
                row if 0 <= place <= self.size - 1 else {}
                for row, place in zip(rows, places, strict=True)
            ]
        return rows

    def _place(self, i: int, attributes: dict[str, Any]) -> float:
        """Where in the input element i of the output lies."""
        last, width = self.size - 1, self.scale * self.size
        match attributes["coordinate_transformation_mode"]:
            case "asymmetric":
                return i / self.scale
            case "align_corners":
                return 0.0 if width == 1 else i * last / (width - 1)
            case "tf_crop_and_resize":
                assert self.crop is not None
                start, end = self.crop
                if self.length == 1:
                    return 0.5 * (start + end) * last
                return start * last + i * (end - start) * last / (self.length - 1)
            case "pytorch_half_pixel" if self.length == 1:
                return 0.0
            case "half_pixel_symmetric":
                center = self.size / 2 * (1 - self.length / width)
                return center + (i + 0.5) / self.scale - 0.5
        return (i + 0.5) / self.scale - 0.5

    def _filtered(self, place: float, attributes: dict[str, Any]) -> dict[int, float]:
        """Weights around a place; what lies outside counts for the edge, or not at all."""
        linear = attributes["mode"] == "linear"
        stretch = min(self.scale, 1.0) if attributes["antialias"] else 1.0
        reach = (1 if linear else 2) / stretch
        taps = {}
        for i in range(ceil(place - reach), floor(place + reach) + 1):
            distance = abs(i - place) * stretch
            taps[i] = 1 - distance if linear else _cubic(distance, attributes["cubic_coeff_a"])
        if attributes["exclude_outside"]:
            taps = {i: weight for i, weight in taps.items() if 0 <= i < self.size}
        total = sum(taps.values())
        row: dict[int, float] = {}
        for i, weight in taps.items():
            if weight and total:
                inside = self._inside(i)
                row[inside] = row.get(inside, 0.0) + weight / total
        return row

    def _inside(self, i: int) -> int:
        return min(max(i, 0), self.size - 1)


_NEAREST: dict[str, Callable[[float], int]] = {
    "round_prefer_floor": lambda place: ceil(place - 0.5),
    "round_prefer_ceil": lambda place: floor(place + 0.5),
    "floor": floor,
    "ceil": ceil,
}


def _cubic(distance: float, a: float) -> float:
    """The weight of Keys' cubic convolution at a distance."""
    if distance <= 1:
        return ((a + 2) * distance - (a + 3)) * distance**2 + 1
    return ((distance - 5) * distance + 8) * distance * a - 4 * a if distance < 2 else 0.0


def _resizings(shape: Shape, values: Sequence[Any], attributes: dict[str, Any]) -> list[_Resizing]:
    """What happens along each axis that is named; a batch may have put another before them."""
    roi, scales, sizes = (*values, None, None, None)[:3]
    if bool(scales) == bool(sizes):
        raise Invalid("SHAPE_MISMATCH", "give scales or sizes, and not both")
    what, given = ("scales", scales) if scales else ("sizes", sizes)
    axes = attributes["axes"]
    wanted = len(shape) if axes is None else len(axes)
    along = tuple(range(-len(given), 0)) if axes is None else axes
    if len(given) != len(along) or len(given) > len(shape):
        raise Invalid("SHAPE_MISMATCH", f"there are {len(given)} {what} but {wanted} axes")
    along = normalize_axes(along, len(shape))
    crops = _crops(roi, len(along), attributes["coordinate_transformation_mode"])
    if scales:
        lengths = [
            _scaled(axis, shape[axis], scale, crop)
            for axis, scale, crop in zip(along, scales, crops, strict=True)
        ]
    else:
        lengths, scales = _fitted(
            [shape[axis] for axis in along],
            list(map(int, sizes)),
            attributes["keep_aspect_ratio_policy"],
        )
    return [
        _Resizing(axis, shape[axis], length, float(scale), crop)
        for axis, length, scale, crop in zip(along, lengths, scales, crops, strict=True)
        if crop or length != shape[axis] or scale != 1
    ]


def _crops(roi: Any, count: int, mode: str) -> list[tuple[float, float] | None]:
    """Start and end of the part of each axis that is sampled, as fractions of it."""
    if mode != "tf_crop_and_resize":
        return [None] * count
    if not roi or len(roi) != 2 * count or not all(map(isfinite, roi)):
        raise Invalid(
            "SHAPE_MISMATCH",
            f"tf_crop_and_resize needs roi: {2 * count} finite numbers, but it is {roi}",
        )
    return list(zip(roi[:count], roi[count:], strict=True))


def _scaled(axis: int, size: int, scale: float, crop: tuple[float, float] | None) -> int:
    """The new length of an axis (SHAPE_MISMATCH)."""
    if not (isfinite(scale) and scale > 0):
        raise Invalid("SHAPE_MISMATCH", f"scale {scale} along axis {axis} is not a number above 0")
    start, end = crop or (0.0, 1.0)
    return floor(size * (end - start) * scale)


def _fitted(shape: list[int], sizes: list[int], policy: str) -> tuple[list[int], list[float]]:
    """New lengths and scales; with one scale for all unless they may be stretched."""
    scales = [size / old if old else 1.0 for old, size in zip(shape, sizes, strict=True)]
    if policy == "stretch":
        return sizes, scales
    scale = min(scales) if policy == "not_larger" else max(scales)
    return [floor(scale * old + 0.5) for old in shape], [scale] * len(shape)


def _weighted_take(xp: Namespace, x: Array, rows: Rows, axis: int) -> Array:
    """Sums of slices of x along an axis: the i-th is that of rows[i]."""
    if not x.shape[axis]:
        return xp.full((*x.shape[:axis], len(rows), *x.shape[axis + 1 :]), 0, str(x.dtype))
    lying = vector_shape(axis, len(rows), len(x.shape))
    taps = [list(row.items()) for row in rows]
    total = None
    for tap in range(max(1, *map(len, rows)) if rows else 1):
        # where a row is shorter any slice is taken and not counted, lest 0 * infinity be NaN
        chosen = [row[tap][0] if tap < len(row) else 0 for row in taps]
        weights = [row[tap][1] if tap < len(row) else 0.0 for row in taps]
        term = xp.take(x, integers(xp, chosen, (len(rows),)), axis=axis)
        if any(weight not in (0.0, 1.0) for weight in weights):
            term = term * floats(xp, weights, lying, str(x.dtype))
        if not all(weights):
            counted = xp.equal(integers(xp, [weight != 0 for weight in weights], lying), 1)
            term = xp.where(counted, term, xp.zeros_like(term))
        total = term if total is None else total + term
    return total


def _transposed(rows: Rows, size: int) -> Rows:
    """The same weights, by the position they were taken from."""
    back: Rows = [{} for _ in range(size)]
    for i, row in enumerate(rows):
        for j, weight in row.items():
            back[j][i] = weight
    return back


class AffineGrid(Gate):
    """Places to sample an image at, moved by an affine map for each row.

    Formula:   grid[n, i, j] = theta[n] @ (x_j, y_i, 1), with x and y in equal steps over [-1, 1],
               from the middle of the first element to that of the last with align_corners, else
               from edge to edge
    Gradient:  d grid/d theta = (x_j, y_i, 1)
    Shapes:    theta is [N, 2, 3], size [N, C, H, W] and grid [N, H, W, 2]; or with a depth before
               H, theta [N, 3, 4].
    """

    operator = "AffineGrid"
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
            ([[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]], [1, 1, 1, 2]), [[[[-1.0, 0.0], [1.0, 0.0]]]],
            gradients=([[[0.0, 0.0, 2.0], [0.0, 0.0, 2.0]]], None),
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
            line = [2 * i / (size - 1) - 1 if size > 1 else 0.0 for i in range(size)]
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
               counts. Mode nearest has gradient 0 to grid. Outside X the gradient to grid is 0 for
               border, and turns its sign at each reflection.
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

    def forward(self, xp: Namespace, x: Array, grid: Array, **attributes: Any) -> Array:
        taps = _Taps(xp, x.shape[2:], grid, attributes)
        out = xp.sum(taps.take(x) * xp.astype(taps.weights(), str(x.dtype)), axis=(2,))
        return xp.reshape(out, (*x.shape[:2], *grid.shape[1:-1]))

    def vjp(
        self, xp: Namespace, grad: Array, out: Array, x: Array, grid: Array, **attributes: Any
    ) -> tuple[Any, ...]:
        lying = xp.reshape(grad, (*x.shape[:2], 1, prod(grid.shape[1:-1])))
        taps = _Taps(xp, x.shape[2:], grid, attributes)

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


class _Taps:
    """The elements around each place of a grid: [rows, taps, places], with places row-major."""

    def __init__(
        self, xp: Namespace, space: Shape, grid: Array, attributes: dict[str, Any]
    ) -> None:
        self._xp, self._space = xp, space
        self._rows, self._places = grid.shape[0], prod(grid.shape[1:-1])
        last_first = xp.split(grid, (1,) * len(space), len(grid.shape) - 1)
        lines = [
            _line(xp, xp.reshape(number, (self._rows, 1, self._places)), size, attributes)
            for number, size in zip(reversed(last_first), space, strict=True)
        ]
        self._weights = [line.weight for line in lines]
        self._slopes = [line.slope for line in lines]
        self._inside = self._outer([line.inside for line in lines], xp.logical_and)
        strides = [prod(space[axis + 1 :]) for axis in range(len(space))]
        steps = [line.index * stride for line, stride in zip(lines, strides, strict=True)]
        self._index = self._outer(steps, xp.add)

    def weights(self, derivative_along: int | None = None) -> Array:
        """What each tap counts, or its derivative by the grid's number for an axis; [rows, 1, taps,
        places]."""
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
    slope: Array  # of the weight, by the grid's number


def _line(xp: Namespace, number: Array, size: int, attributes: dict[str, Any]) -> _Line:
    padding = attributes["padding_mode"]
    low, high = (0.0, size - 1.0) if attributes["align_corners"] else (-0.5, size - 0.5)
    per_number = (high - low) / 2
    place = (number + 1.0) * per_number + low
    if attributes["mode"] == "nearest":
        place = xp.round(place)
    turn = xp.ones_like(place)
    if padding != "zeros":
        place, turn = _brought_in(xp, place, low, high, size, padding)
    offsets, weigh = _FILTERS[attributes["mode"]]
    below = xp.floor(place)
    steps = floats(xp, offsets, (1, len(offsets), 1), str(number.dtype))
    taps = below + steps
    inside = xp.logical_and(xp.greater_equal(taps, 0.0), xp.less_equal(taps, size - 1.0))
    if padding != "zeros":
        inside = xp.logical_or(inside, xp.logical_not(inside))
    if padding == "reflection":
        taps, _ = _brought_in(xp, taps, low, high, size, padding)
    positive = xp.where(xp.greater(taps, 0.0), taps, 0.0)  # NaN goes anywhere
    index = xp.astype(xp.minimum(positive, xp.full_like(positive, size - 1.0)), "int64")
    weight, slope = weigh(xp, place - below, steps)
    return _Line(index, inside, weight, slope * (turn * per_number))


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
    near_slope = (3 * (a + 2) * distance - 2 * (a + 3)) * distance
    far_slope = ((3.0 * distance - 10.0) * distance + 8.0) * a
    is_near = xp.less_equal(distance, 1.0)
    slope = xp.where(is_near, near_slope, far_slope) * xp.sign(signed)
    return xp.where(is_near, near, far), slope


_FILTERS: dict[str, tuple[Ints, Callable[[Namespace, Array, Array], tuple[Array, Array]]]] = {
    "nearest": ((0,), _nearest_weights),
    "linear": ((0, 1), _linear_weights),
    "cubic": ((-1, 0, 1, 2), _cubic_weights),
}


class Col2Im(Gate):
    """Blocks put together to an image, added up where they overlap.

    Formula:   out[n, c, l * stride + k * dilation - pad] += input[n, (c, k), l], for each position
               k in a block and each block l, both row-major
    Gradient:  d out/d input = 1 where it lies inside the image
    Shapes:    input is [N, C * size of a block, number of blocks] and out [N, C, *image_shape].
    """

    operator = "Col2Im"
    inputs = (Input("input", ANY), known("image_shape"), known("block_shape"))
    attributes = (
        Attribute("dilations", "ints", doc="Step within a block, for each axis; 1 if left out."),
        Attribute("pads", "ints", doc="Elements cut off before each axis, then after each."),
        Attribute("strides", "ints", doc="Step from block to block; 1 if left out."),
    )
    examples = (
        Example(
            ([[[1.0, 2.0], [3.0, 4.0]]], [1, 3], [1, 2]), [[[[1.0, 5.0, 4.0]]]],
            gradients=([[[1.0, 1.0], [1.0, 1.0]]], None, None),
        ),
        Example(([[[1, 2], [3, 4]]], [1, 4], [1, 2]), [[[[1, 3, 2, 4]]]],
                attributes={"strides": (1, 2)}),
    )  # fmt: skip
    samples = (
        Sample((TensorSpec((2, 8, 6)), ints(3, 4), ints(2, 2))),
        Sample((TensorSpec((1, 4, 2)), ints(3, 4), ints(2, 2)),
               {"pads": (1, 0, 1, 0), "strides": (2, 1), "dilations": (1, 3)}),
        Sample((TensorSpec((1, 6, 8)), ints(4, 2, 2), ints(3, 1, 1)), {"strides": (1, 1, 1)}),
    )  # fmt: skip
    rejections = (
        Rejection((TensorSpec((1, 4, 5)), ints(3, 3), ints(2, 2)),
                  "input has 5 blocks but an image of (3, 3) has 4"),
        Rejection((TensorSpec((1, 5, 4)), ints(3, 3), ints(2, 2)),
                  "5 channels of columns do not divide by the 4 elements of a block"),
        Rejection((TensorSpec((1, 4, 4)), ints(3, 3), ints(2, 2)), "strides is (0, 1)",
                  "ATTRIBUTE_INVALID", {"strides": (0, 1)}),
        Rejection((TensorSpec((4, 4)), ints(3, 3), ints(2, 2)), "input has rank 2"),
    )  # fmt: skip

    def infer(
        self, x: TensorSpec, image: TensorSpec, block: TensorSpec, **attributes: Any
    ) -> TensorSpec:
        if x.rank != 3:
            raise Invalid("SHAPE_MISMATCH", f"input has rank {x.rank} but must have 3")
        assert image.value is not None
        assert block.value is not None
        size = checked_shape(tuple(map(int, image.value)), "image_shape")
        kernel = checked_shape(tuple(map(int, block.value)), "block_shape")
        if len(size) != len(kernel) or not prod(kernel):
            raise Invalid(
                "SHAPE_MISMATCH",
                f"a block of {kernel} does not fit an image of {size}: both need the same axes",
            )
        if x.shape[1] % prod(kernel):
            raise Invalid(
                "SHAPE_MISMATCH",
                f"{x.shape[1]} channels of columns do not divide by the {prod(kernel)} elements "
                "of a block",
            )
        blocks = prod(_blocks(size, kernel, attributes))
        if x.shape[2] != blocks:
            raise Invalid(
                "SHAPE_MISMATCH",
                f"input has {x.shape[2]} blocks but an image of {size} has {blocks}",
            )
        shape = (x.shape[0], x.shape[1] // prod(kernel), *size)
        return TensorSpec(checked_shape(shape, "image_shape"), x.dtype)

    def forward(
        self, xp: Namespace, x: Array, image: Ints, block: Ints, **attributes: Any
    ) -> Array:
        *lead, columns, count = x.shape
        lying, size = (*lead, columns // prod(block)), prod(image)
        whole = (*lying, prod(block) * count)
        places = xp.broadcast_to(_block_places(xp, image, block, attributes), whole)
        zeros = xp.full((*lying, size + 1), 0, str(x.dtype))
        total = xp.scatter(zeros, places, xp.reshape(x, whole), len(lying), "add")
        inside = xp.slice(total, (0,) * len(whole), (*lying, size), (1,) * len(whole))
        return xp.reshape(inside, (*lying, *image))

    def vjp(
        self,
        xp: Namespace,
        grad: Array,
        out: Array,
        x: Array,
        image: Ints,
        block: Ints,
        **attributes: Any,
    ) -> tuple[Any, ...]:
        def to_x() -> Array:
            lying = grad.shape[: len(grad.shape) - len(image)]
            flat = xp.reshape(grad, (*lying, prod(image)))
            padded = xp.pad(flat, (0,) * len(flat.shape), (*(0 for _ in lying), 1))
            places = _block_places(xp, image, block, attributes)
            return xp.reshape(xp.take(padded, places, axis=-1), x.shape)

        return to_x, None, None

    def aligned_shapes(self, *specs: TensorSpec, **_: Any) -> tuple[Shape, ...]:
        return tuple(spec.shape for spec in specs)


def _steps(attributes: dict[str, Any], name: str, count: int, least: int) -> Ints:
    """An attribute with a number for each axis; the least if left out (ATTRIBUTE_INVALID)."""
    found: Ints = attributes[name] or (least,) * count
    if len(found) != count or min(found, default=least) < least:
        raise Invalid(
            "ATTRIBUTE_INVALID",
            f"{name} is {found} but must be {count} numbers from {least} on",
            attribute=name,
        )
    return found


def _blocks(image: Shape, block: Shape, attributes: dict[str, Any]) -> Shape:
    """Number of blocks along each axis."""
    rank = len(image)
    strides = _steps(attributes, "strides", rank, 1)
    dilations = _steps(attributes, "dilations", rank, 1)
    pads = _steps(attributes, "pads", 2 * rank, 0)
    return tuple(
        max((size + before + after - dilation * (k - 1) - 1) // stride + 1, 0)
        for size, k, stride, dilation, before, after in zip(
            image, block, strides, dilations, pads[:rank], pads[rank:], strict=True
        )
    )


def _block_places(xp: Namespace, image: Ints, block: Ints, attributes: dict[str, Any]) -> Array:
    """Position in the image of each element of each block; one past its end for those outside."""
    rank = len(image)
    blocks = _blocks(tuple(image), tuple(block), attributes)
    strides = _steps(attributes, "strides", rank, 1)
    dilations = _steps(attributes, "dilations", rank, 1)
    pads = _steps(attributes, "pads", 2 * rank, 0)
    place = integers(xp, (0,), (1,))
    inside = xp.equal(place, 0)
    for axis, size in enumerate(image):
        within = [k * dilations[axis] - pads[axis] for k in range(block[axis])]
        starts = [number * strides[axis] for number in range(blocks[axis])]
        along = integers(xp, within, vector_shape(axis, block[axis], 2 * rank)) + integers(
            xp, starts, vector_shape(rank + axis, blocks[axis], 2 * rank)
        )
        fits = xp.logical_and(xp.greater_equal(along, 0), xp.less(along, size))
        inside = xp.logical_and(inside, fits)
        place = place * size + along
    return xp.reshape(xp.where(inside, place, prod(image)), (prod(block) * prod(blocks),))
