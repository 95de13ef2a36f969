"""Images: gates that resample, warp and fold tensors with spatial axes."""

from __future__ import annotations

import struct
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, floor, isfinite, lcm, prod
from operator import eq, sub
from typing import Any

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
    block_places,
    checked_shape,
    floats,
    integers,
    ints,
    known,
    vector_shape,
)
from gradwire_server.specs import (
    ANY,
    COMPUTED,
    FLOATS,
    ITEM_SIZES,
    LARGEST,
    Shape,
    TensorSpec,
    normalize_axes,
)


class Rows:
    """What each of many slices is made from: positions and weights, one row after another."""

    def __init__(self) -> None:
        self.starts = array("q", [0])
        self.places = array("q")
        self.weights = array("d")

    def __len__(self) -> int:
        return len(self.starts) - 1

    def append(self, row: dict[int, float]) -> None:
        """One slice more: weights by position."""
        self.places.extend(row.keys())
        self.weights.extend(row.values())
        self.starts.append(len(self.places))

    def longest(self) -> int:
        """The most positions of a row, at least 1."""
        return max(map(sub, self.starts[1:], self.starts), default=1) or 1

    def are_empty(self) -> Iterator[bool]:
        """By row: whether it has no position."""
        return map(eq, self.starts[1:], self.starts)

    def nth(self, tap: int) -> tuple[array[int], array[float]]:
        """One position and weight of each row, 0 where there is none."""
        count = len(self)
        chosen, weights = array("q", bytes(8 * count)), array("d", bytes(8 * count))
        for row in range(count):
            place = self.starts[row] + tap
            if place < self.starts[row + 1]:
                chosen[row], weights[row] = self.places[place], self.weights[place]
        return chosen, weights

    def transposed(self, size: int) -> Rows:
        """The same weights, by the position they were taken from."""
        back = Rows()
        back.starts = array("q", bytes(8 * (size + 1)))
        for place in self.places:
            back.starts[place + 1] += 1
        for place in range(size):
            back.starts[place + 1] += back.starts[place]
        ends = back.starts[:-1]
        back.places = array("q", bytes(8 * len(self.places)))
        back.weights = array("d", bytes(8 * len(self.places)))
        for row in range(len(self)):
            for at in range(self.starts[row], self.starts[row + 1]):
                end = ends[self.places[at]]
                back.places[end], back.weights[end] = row, self.weights[at]
                ends[self.places[at]] += 1
        return back


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
        Input("roi", ("float16", *COMPUTED), "R", optional=True, known=True),
        Input("scales", COMPUTED, "S", optional=True, known=True),
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

    def scratch(
        self, outs: Sequence[TensorSpec], x: TensorSpec, *known: Any, **attributes: Any
    ) -> Scratch:
        values = [None if each is None else each.value for each in known]
        shape, widest, lists = list(x.shape), 0, 0
        for step in _resizings(x.shape, values, attributes):
            before, shape[step.axis] = prod(shape), step.length
            widest = max(widest, before, prod(shape))
            lists = max(lists, 8 * (2 * step.taps(attributes) + 4) * step.length)
        forward, back = (1, 2.3) if attributes["mode"] == "nearest" else (4, 3.6)
        width = ITEM_SIZES[x.dtype] if x.is_floating else ITEM_SIZES["float64"]
        return Scratch(int(forward * widest * width) + lists, int(back * widest * width) + lists)

    def forward(self, xp: Namespace, x: Array, *values: Any, **attributes: Any) -> Array:
        dtype = str(x.dtype)
        exact = attributes["mode"] == "nearest" or dtype in FLOATS
        out = x if exact else xp.astype(x, "float64")
        for step in _resizings(x.shape, values, attributes):
            rows = step.rows(attributes)
            out = _weighted_take(xp, out, rows, step.axis)
            if step.crop:
                lying = vector_shape(step.axis, step.length, len(x.shape))
                outside = integers(xp, rows.are_empty(), lying)
                fill = xp.astype(xp.full((), attributes["extrapolation_value"], "float64"), dtype)
                out = xp.where(xp.equal(outside, 1), fill, out)
        return out if exact else xp.round_to(out, dtype)

    def operations(
        self, outs: tuple[TensorSpec, ...], x: TensorSpec, *known: Any, **attributes: Any
    ) -> int:
        values = [None if each is None else each.value for each in known]
        shape, total = list(x.shape), x.size
        for step in _resizings(x.shape, values, attributes):
            shape[step.axis] = step.length
            taps = step.taps(attributes)
            total += taps * (prod(shape) + step.length * STEP)
        return total

    def vjp(
        self, xp: Namespace, grad: Array, out: Array, x: Array, *values: Any, **attributes: Any
    ) -> tuple[Any, ...]:
        def to_x() -> Array:
            to_axes = grad
            for step in reversed(_resizings(x.shape, values, attributes)):
                back = step.rows(attributes).transposed(x.shape[step.axis])
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
    scale: Fraction
    crop: tuple[float, float] | None

    def rows(self, attributes: dict[str, Any]) -> Rows:
        """What each element of the output is made from; nothing outside the crop."""
        places, unit = self._places(attributes["coordinate_transformation_mode"])
        nearest = _NEAREST[attributes["nearest_mode"]]
        rows = Rows()
        for place in places:
            if self.crop and not 0 <= place <= (self.size - 1) * unit:
                rows.append({})
            elif attributes["mode"] == "nearest":
                rows.append({self._inside(nearest(place, unit)): 1.0})
            else:
                rows.append(self._filtered(place / unit, attributes))
        return rows

    def taps(self, attributes: dict[str, Any]) -> int:
        """The most elements of the input that one of the output is made from."""
        if attributes["mode"] == "nearest":
            return 1
        widest = 2 if attributes["mode"] == "linear" else 4
        stretch = min(self.scale, Fraction(1)) if attributes["antialias"] else Fraction(1)
        return ceil(widest / stretch) + 1

    def _places(self, mode: str) -> tuple[Sequence[int], int]:
        """Where in the input the elements of the output lie, as whole numbers of a unit.

        They are in equal steps, and nothing is rounded: what lies between two elements must not
        come to lie on one side.
        """
        if not self.length:
            return range(0), 1
        first, step = self._first_and_step(mode)
        unit = lcm(first.denominator, step.denominator)
        start, stride = int(first * unit), int(step * unit)
        if not stride:
            return [start] * self.length, unit
        return range(start, start + stride * self.length, stride), unit

    def _first_and_step(self, mode: str) -> tuple[Fraction, Fraction]:
        """The place of the first element of the output, and how far it is from one to the next."""
        last, width = self.size - 1, self.scale * self.size
        half = Fraction(1, 2)
        step = 1 / self.scale
        match mode:
            case "asymmetric":
                return Fraction(0), step
            case "align_corners":
                return Fraction(0), Fraction(0) if width == 1 else last / (width - 1)
            case "tf_crop_and_resize":
                assert self.crop is not None
                start, end = map(Fraction, self.crop)
                if self.length == 1:
                    return half * (start + end) * last, Fraction(0)
                return start * last, (end - start) * last / (self.length - 1)
            case "pytorch_half_pixel" if self.length == 1:
                return Fraction(0), step
            case "half_pixel_symmetric":
                center = self.size * half * (1 - self.length / width)
                return center + half * step - half, step
        return half * step - half, step

    def _filtered(self, place: float, attributes: dict[str, Any]) -> dict[int, float]:
        """Weights around a place; what lies outside counts for the edge, or not at all."""
        linear = attributes["mode"] == "linear"
        stretch = min(float(self.scale), 1.0) if attributes["antialias"] else 1.0
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


#: The nearest element to a place that is a whole number of a unit.
_NEAREST: dict[str, Callable[[int, int], int]] = {
    "round_prefer_floor": lambda place, unit: -((unit - 2 * place) // (2 * unit)),
    "round_prefer_ceil": lambda place, unit: (2 * place + unit) // (2 * unit),
    "floor": lambda place, unit: place // unit,
    "ceil": lambda place, unit: -(-place // unit),
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
            _scaled(axis, shape[axis], each) for axis, each in zip(along, scales, strict=True)
        ]
        ratios = list(map(Fraction, scales))
    else:
        lengths, ratios = _fitted(
            [shape[axis] for axis in along],
            list(map(int, sizes)),
            attributes["keep_aspect_ratio_policy"],
        )
    return [
        _Resizing(axis, shape[axis], length, ratio, crop)
        for axis, length, ratio, crop in zip(along, lengths, ratios, crops, strict=True)
        if crop or length != shape[axis] or ratio != 1
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


def _scaled(axis: int, size: int, scale: float) -> int:
    """The new length of an axis (SHAPE_MISMATCH).

    The product is rounded to float32, if the scale is one: 0.7 of 10 elements are 7, though the
    float32 that is nearest to 0.7 lies below it.
    """
    if not (isfinite(scale) and scale > 0):
        raise Invalid("SHAPE_MISMATCH", f"scale {scale} along axis {axis} is not a number above 0")
    product = size * scale
    if product >= LARGEST:
        raise Invalid("SHAPE_MISMATCH", f"scale {scale} gives axis {axis} a size of 2^60 or more")
    return floor(_single(product) if _single(scale) == scale else product)


def _single(x: float) -> float:
    """The nearest float32; what is beyond them stays."""
    try:
        (found,) = struct.unpack("<f", struct.pack("<f", x))
    except OverflowError:
        return x
    return float(found)


def _fitted(shape: list[int], sizes: list[int], policy: str) -> tuple[list[int], list[Fraction]]:
    """New lengths and scales; with one scale for all unless they may be stretched."""
    scales = [
        Fraction(size, old) if old else Fraction(1) for old, size in zip(shape, sizes, strict=True)
    ]
    if policy == "stretch":
        return sizes, scales
    scale = min(scales) if policy == "not_larger" else max(scales)
    return [floor(scale * old + Fraction(1, 2)) for old in shape], [scale] * len(shape)


def _weighted_take(xp: Namespace, x: Array, rows: Rows, axis: int) -> Array:
    """Sums of slices of x along an axis: the i-th is that of rows[i]."""
    if not x.shape[axis]:
        return xp.full((*x.shape[:axis], len(rows), *x.shape[axis + 1 :]), 0, str(x.dtype))
    lying = vector_shape(axis, len(rows), len(x.shape))
    total = None
    for tap in range(rows.longest()):
        # where a row is shorter any slice is taken and not counted, lest 0 * infinity be NaN
        chosen, weights = rows.nth(tap)
        term = xp.take(x, integers(xp, chosen, (len(rows),)), axis=axis)
        if any(weight not in (0.0, 1.0) for weight in weights):
            term = term * floats(xp, weights, lying, str(x.dtype))
        if not all(weights):
            counted = xp.equal(integers(xp, (weight != 0 for weight in weights), lying), 1)
            term = xp.where(counted, term, xp.zeros_like(term))
        total = term if total is None else total + term
    return total


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
        blocks = prod(block_counts(size, kernel, attributes))
        if x.shape[2] != blocks:
            raise Invalid(
                "SHAPE_MISMATCH",
                f"input has {x.shape[2]} blocks but an image of {size} has {blocks}",
            )
        shape = (x.shape[0], x.shape[1] // prod(kernel), *size)
        return TensorSpec(checked_shape(shape, "image_shape"), x.dtype)

    def scratch(
        self, outs: Sequence[TensorSpec], x: TensorSpec, *_: Any, **attributes: Any
    ) -> Scratch:
        return Scratch(2 * outs[0].nbytes + int(2.2 * 8 * x.size), outs[0].nbytes)

    def forward(
        self, xp: Namespace, x: Array, image: Ints, block: Ints, **attributes: Any
    ) -> Array:
        *lead, columns, count = x.shape
        lying, size = (*lead, columns // prod(block)), prod(image)
        whole = (*lying, prod(block) * count)
        places = xp.broadcast_to(block_places(xp, image, block, attributes), whole)
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
            places = block_places(xp, image, block, attributes)
            return xp.reshape(xp.take(padded, places, axis=-1), x.shape)

        return to_x, None, None

    def aligned_shapes(self, *specs: TensorSpec, **_: Any) -> tuple[Shape, ...]:
        return tuple(spec.shape for spec in specs)
