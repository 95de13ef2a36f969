"""Shapes: gates that move, repeat, select or convert elements and compute nothing new."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from itertools import pairwise
from math import prod
from typing import Any

from gradwire_server.errors import Invalid
from gradwire_server.gates.base import (
    Array,
    Attribute,
    ElementwiseGate,
    Example,
    Gate,
    Input,
    Namespace,
    Rejection,
    Sample,
)
from gradwire_server.specs import (
    ANY,
    FLOATS,
    INDICES,
    ITEM_SIZES,
    ONNX_NUMBERS,
    Shape,
    Tensor,
    TensorSpec,
    broadcast_shapes,
    normalize_axes,
    normalize_axis,
)

Ints = tuple[int, ...]

_KNOWN_SIZE = 1024  # a larger constant's elements are not followed while planning
_LARGEST = 2**62


def _known(name: str, optional: bool = False, group: str = "I") -> Input:
    return Input(name, ("int64",), group, optional=optional, known=True)


def _axes(*values: int) -> TensorSpec:
    """A known vector of int64, for the tables below."""
    return TensorSpec((len(values),), "int64", values)


def _integers(xp: Namespace, values: Iterable[int], shape: Shape) -> Array:
    """Constant int64s."""
    return xp.constant(Tensor("int64", shape, array("q", values).tobytes()))


def _checked(shape: Shape, what: str) -> Shape:
    """A shape that was computed from numbers in the graph (SHAPE_MISMATCH)."""
    if any(size < 0 for size in shape) or prod(max(size, 1) for size in shape) > _LARGEST:
        raise Invalid("SHAPE_MISMATCH", f"{what} gives the shape {shape}, which no tensor has")
    return shape


def _along(axis: int, size: int, rank: int) -> Shape:
    """The shape of a vector that lies along one axis."""
    return (1,) * axis + (size,) + (1,) * (rank - axis - 1)


def _scatter_along(
    xp: Namespace, grad: Array, positions: Iterable[int], shape: Shape, axis: int
) -> Array:
    """Zeros of a shape, with the slices of grad added at the positions along one axis."""
    positions = tuple(positions)
    lying = _integers(xp, positions, _along(axis, len(positions), len(shape)))
    indices = xp.broadcast_to(lying, grad.shape)
    zeros = xp.full(shape, 0, str(grad.dtype))
    return xp.scatter(zeros, indices, grad, axis, "add")


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


class Identity(ElementwiseGate):
    """The value itself.

    Formula:   out = input
    Gradient:  d out/d input = 1
    Shapes:    As input.
    """

    operator = "Identity"
    inputs = (Input("input", ANY),)
    examples = (Example((2.0,), 2.0, gradients=(1.0,)), Example(([True, False],), [True, False]))

    def forward(self, xp: Namespace, x: Array) -> Array:
        return x

    def vjp(self, xp: Namespace, grad: Array, out: Array, x: Array) -> tuple[Array, ...]:
        return (grad,)


class Cast(ElementwiseGate):
    """Elements in another data type; floats become integers towards zero.

    Formula:   out = input, as the data type numbered `to`
    Gradient:  d out/d input = 1 between floating types; none otherwise
    Shapes:    As input.
    """

    operator = "Cast"
    inputs = (Input("input", ANY),)
    attributes = (
        Attribute(
            "to", "int", required=True, choices=tuple(sorted(ONNX_NUMBERS.values())),
            doc="ONNX's number of the data type.",
        ),
        Attribute("saturate", "int", 1, choices=(0, 1), doc="Without effect on these types."),
        Attribute("round_mode", "string", "up", doc="Without effect on these types."),
    )  # fmt: skip
    examples = (
        Example((2.5,), 2.5, gradients=(1.0,), attributes={"to": 11}),
        Example(([1.7, -1.7],), [1, -1], attributes={"to": 7}),
        Example(([0, 3],), [False, True], attributes={"to": 9}),
    )
    rejections = (
        Rejection((TensorSpec(()),), "'to' is 99 but must be one of", "ATTRIBUTE_INVALID",
                  {"to": 99}),
        Rejection((TensorSpec(()),), "'to' must be given", "ATTRIBUTE_INVALID"),
    )  # fmt: skip

    def infer(self, *specs: Any, **attributes: Any) -> TensorSpec:
        return TensorSpec(specs[0].shape, _dtype_numbered(attributes["to"]))

    def forward(self, xp: Namespace, x: Array, to: int, **_: Any) -> Array:
        return xp.astype(x, _dtype_numbered(to))

    def vjp(
        self, xp: Namespace, grad: Array, out: Array, x: Array, to: int, **_: Any
    ) -> tuple[Array | None, ...]:
        dtype = str(x.dtype)
        if dtype not in FLOATS or _dtype_numbered(to) not in FLOATS:
            return (None,)
        return (xp.astype(grad, dtype),)


def _dtype_numbered(number: int) -> str:
    return next(dtype for dtype, each in ONNX_NUMBERS.items() if each == number)


class Reshape(Gate):
    """The same elements in another shape.

    Formula:   out = data, row-major, in the shape given
    Gradient:  d out/d data = 1
    Shapes:    shape; one -1 is what is left over, and 0 is the size data has there (with
               allowzero it is 0).
    """

    operator = "Reshape"
    inputs = (Input("data", ANY), _known("shape"))
    attributes = (Attribute("allowzero", "int", 0, choices=(0, 1), doc="0 means 0."),)
    examples = (
        Example(
            ([[1.0, 2.0], [3.0, 4.0]], [-1]), [1.0, 2.0, 3.0, 4.0],
            gradients=([[1.0, 1.0], [1.0, 1.0]], None),
        ),
        Example(([1, 2, 3, 4], [2, 2]), [[1, 2], [3, 4]]),
    )  # fmt: skip
    samples = (
        Sample((TensorSpec((2, 3, 4)), _axes(0, -1))),
        Sample((TensorSpec((6,)), _axes(2, 3))),
        Sample((TensorSpec(()), _axes(1, 1))),
        Sample((TensorSpec((1,)), _axes())),
        Sample((TensorSpec((0, 3)), _axes(3, 0)), {"allowzero": 1}),
    )
    rejections = (
        Rejection((TensorSpec((2, 3)), _axes(4)), "6 elements do not fit the shape (4,)"),
        Rejection((TensorSpec((2, 3)), _axes(-1, -1)), "more than one -1"),
        Rejection((TensorSpec((2, 3)), _axes(4, -1)), "6 elements do not fit"),
        Rejection(
            (TensorSpec((2, 3)), TensorSpec((1,), "int64")), "shape must be known",
            "INPUT_NOT_KNOWN",
        ),
    )  # fmt: skip

    def infer(self, data: TensorSpec, shape: TensorSpec, allowzero: int) -> TensorSpec:
        wanted = [
            data.shape[axis] if size == 0 and not allowzero and axis < data.rank else int(size)
            for axis, size in enumerate(shape.value or ())
        ]
        if wanted.count(-1) > 1:
            raise Invalid("SHAPE_MISMATCH", f"shape {tuple(wanted)} has more than one -1")
        if -1 in wanted:
            known = prod(size for size in wanted if size != -1)
            if not known or data.size % known:
                raise Invalid(
                    "SHAPE_MISMATCH",
                    f"{data.size} elements do not fit the shape {tuple(wanted)}",
                )
            wanted[wanted.index(-1)] = data.size // known
        found = _checked(tuple(wanted), "shape")
        if prod(found) != data.size:
            raise Invalid("SHAPE_MISMATCH", f"{data.size} elements do not fit the shape {found}")
        return TensorSpec(found, data.dtype, data.value)

    def forward(self, xp: Namespace, data: Array, shape: Ints, allowzero: int) -> Array:
        spec = TensorSpec(data.shape, "float64")
        return xp.reshape(data, self.infer(spec, _axes(*shape), allowzero).shape)

    def vjp(
        self, xp: Namespace, grad: Array, out: Array, data: Array, shape: Ints, allowzero: int
    ) -> tuple[Array | None, ...]:
        return xp.reshape(grad, data.shape), None


class Transpose(Gate):
    """Axes in another order.

    Formula:   out[i, j, ..] = data[.., j, i], in the order perm; reversed without it
    Gradient:  d out/d data = 1, with the axes put back
    Shapes:    data's, in the order perm.
    """

    operator = "Transpose"
    inputs = (Input("data", ANY),)
    attributes = (Attribute("perm", "ints", doc="Old axis at each new place."),)
    examples = (
        Example(
            ([[1.0, 2.0], [3.0, 4.0]],), [[1.0, 3.0], [2.0, 4.0]],
            gradients=([[1.0, 1.0], [1.0, 1.0]],),
        ),
        Example(([[1, 2, 3]],), [[1], [2], [3]], attributes={"perm": (1, 0)}),
    )  # fmt: skip
    samples = (
        Sample((TensorSpec((2, 3, 4)),), {"perm": (2, 0, 1)}),
        Sample((TensorSpec(()),)),
        Sample((TensorSpec((0, 3)),)),
    )
    rejections = (
        Rejection((TensorSpec((2, 3)),), "perm (0, 0) is not an order", "ATTRIBUTE_INVALID",
                  {"perm": (0, 0)}),
    )  # fmt: skip

    def infer(self, data: TensorSpec, perm: Ints | None) -> TensorSpec:
        order = self._order(data.rank, perm)
        return TensorSpec(tuple(data.shape[axis] for axis in order), data.dtype)

    def forward(self, xp: Namespace, data: Array, perm: Ints | None) -> Array:
        return xp.permute_dims(data, self._order(len(data.shape), perm))

    def vjp(
        self, xp: Namespace, grad: Array, out: Array, data: Array, perm: Ints | None
    ) -> tuple[Array, ...]:
        order = self._order(len(data.shape), perm)
        return (xp.permute_dims(grad, tuple(map(order.index, range(len(order))))),)

    def _order(self, rank: int, perm: Ints | None) -> Ints:
        if perm is None:
            return tuple(reversed(range(rank)))
        if sorted(perm) != list(range(rank)):
            raise Invalid(
                "ATTRIBUTE_INVALID", f"perm {perm} is not an order of the axes 0 to {rank - 1}"
            )
        return perm


class Expand(Gate):
    """Elements repeated along axes of size 1, and along new ones.

    Formula:   out = input, broadcast
    Gradient:  d out/d input = 1, summed over the repetitions
    Shapes:    That which input and shape broadcast to.
    """

    operator = "Expand"
    inputs = (Input("input", ANY), _known("shape"))
    examples = (
        Example(([[1.0], [2.0]], [3]), [[1.0, 1.0, 1.0], [2.0, 2.0, 2.0]],
                gradients=([[3.0], [3.0]], None)),
        Example((7, [2]), [7, 7]),
    )  # fmt: skip
    samples = (
        Sample((TensorSpec(()), _axes(2, 0))),
        Sample((TensorSpec((3, 1)), _axes(2, 1, 4))),
    )
    rejections = (Rejection((TensorSpec((2,)), _axes(3)), "(2,) and (3,) do not broadcast"),)

    def infer(self, x: TensorSpec, shape: TensorSpec) -> TensorSpec:
        wanted = _checked(tuple(map(int, shape.value or ())), "shape")
        return TensorSpec(_checked(broadcast_shapes(x.shape, wanted), "shape"), x.dtype)

    def forward(self, xp: Namespace, x: Array, shape: Ints) -> Array:
        return xp.broadcast_to(x, broadcast_shapes(x.shape, shape))

    def vjp(
        self, xp: Namespace, grad: Array, out: Array, x: Array, shape: Ints
    ) -> tuple[Array | None, ...]:
        return grad, None


class Squeeze(Gate):
    """Axes of size 1 left out.

    Formula:   out = data
    Gradient:  d out/d data = 1
    Shapes:    data's without axes; without all axes of size 1 where none are given.
    """

    operator = "Squeeze"
    inputs = (Input("data", ANY), _known("axes", optional=True))
    examples = (
        Example(([[1.0], [2.0]], [1]), [1.0, 2.0], gradients=([[1.0], [1.0]], None)),
        Example(([[5]],), 5),
    )
    samples = (Sample((TensorSpec((1, 3, 1)), _axes(-1))), Sample((TensorSpec((0, 1)),)))
    rejections = (Rejection((TensorSpec((2, 3)), _axes(0)), "axis 0 has size 2, so it cannot"),)

    def infer(self, data: TensorSpec, axes: TensorSpec | None = None) -> TensorSpec:
        lost = self._lost(data.shape, None if axes is None else axes.value)
        kept = tuple(size for axis, size in enumerate(data.shape) if axis not in lost)
        return TensorSpec(kept, data.dtype, data.value)

    def forward(self, xp: Namespace, data: Array, axes: Ints | None = None) -> Array:
        return xp.squeeze(data, axis=self._lost(data.shape, axes))

    def vjp(
        self, xp: Namespace, grad: Array, out: Array, data: Array, *axes: Ints
    ) -> tuple[Array | None, ...]:
        return (xp.reshape(grad, data.shape), *(None for _ in axes))

    def _lost(self, shape: Shape, axes: Any) -> Ints:
        if axes is None:
            return tuple(axis for axis, size in enumerate(shape) if size == 1)
        lost = normalize_axes(tuple(map(int, axes)), len(shape))
        for axis in lost:
            if shape[axis] != 1:
                raise Invalid(
                    "SHAPE_MISMATCH",
                    f"axis {axis} has size {shape[axis]}, so it cannot be left out of {shape}",
                )
        return lost


class Unsqueeze(Gate):
    """New axes of size 1.

    Formula:   out = data
    Gradient:  d out/d data = 1
    Shapes:    data's, with size 1 at axes of the output.
    """

    operator = "Unsqueeze"
    inputs = (Input("data", ANY), _known("axes"))
    examples = (
        Example(([1.0, 2.0], [1]), [[1.0], [2.0]], gradients=([1.0, 1.0], None)),
        Example((5, [0]), [5]),
    )
    samples = (
        Sample((TensorSpec((2, 3)), _axes(0, -1))),
        Sample((TensorSpec((0,)), _axes(0))),
    )
    rejections = (
        Rejection((TensorSpec((2,)), _axes(0, 0)), "name one axis twice", "ATTRIBUTE_INVALID"),
        Rejection((TensorSpec((2,)), _axes(3)), "axis 3 is outside", "ATTRIBUTE_INVALID"),
    )

    def infer(self, data: TensorSpec, axes: TensorSpec) -> TensorSpec:
        new = normalize_axes(tuple(map(int, axes.value or ())), data.rank + axes.size)
        sizes = iter(data.shape)
        shape = tuple(1 if axis in new else next(sizes) for axis in range(data.rank + len(new)))
        return TensorSpec(shape, data.dtype, data.value)

    def forward(self, xp: Namespace, data: Array, axes: Ints) -> Array:
        return xp.expand_dims(data, axis=tuple(axes))

    def vjp(
        self, xp: Namespace, grad: Array, out: Array, data: Array, axes: Ints
    ) -> tuple[Array | None, ...]:
        return xp.reshape(grad, data.shape), None


class Flatten(Gate):
    """A matrix of the same elements.

    Formula:   out = input, row-major
    Gradient:  d out/d input = 1
    Shapes:    [sizes before axis multiplied, sizes from axis on multiplied].
    """

    operator = "Flatten"
    inputs = (Input("input", ANY),)
    attributes = (Attribute("axis", "int", 1, doc="First axis of the columns."),)
    examples = (
        Example(([[[1.0], [2.0]]],), [[1.0, 2.0]], gradients=([[[1.0], [1.0]]],)),
        Example(([1, 2],), [[1, 2]], attributes={"axis": 0}),
    )
    samples = (
        Sample((TensorSpec((2, 3, 4)),), {"axis": 2}),
        Sample((TensorSpec((2, 3)),), {"axis": -1}),
        Sample((TensorSpec(()),), {"axis": 0}),
        Sample((TensorSpec((0, 3)),), {"axis": 2}),
    )
    rejections = (
        Rejection((TensorSpec((2, 3)),), "axis 3 is outside", "ATTRIBUTE_INVALID", {"axis": 3}),
    )

    def infer(self, x: TensorSpec, axis: int) -> TensorSpec:
        return TensorSpec(self._matrix(x.shape, axis), x.dtype)

    def forward(self, xp: Namespace, x: Array, axis: int) -> Array:
        return xp.reshape(x, self._matrix(x.shape, axis))

    def vjp(self, xp: Namespace, grad: Array, out: Array, x: Array, axis: int) -> tuple[Array, ...]:
        return (xp.reshape(grad, x.shape),)

    def _matrix(self, shape: Shape, axis: int) -> Shape:
        rank = len(shape)
        if not -rank <= axis <= rank:
            raise Invalid("ATTRIBUTE_INVALID", f"axis {axis} is outside a tensor of rank {rank}")
        first = axis + rank if axis < 0 else axis
        return prod(shape[:first]), prod(shape[first:])


class Concat(Gate):
    """Tensors one after another along an axis.

    Formula:   out = inputs, joined along axis
    Gradient:  d out/d inputs_i = 1: each gets its piece of the gradient
    Shapes:    Equal but for axis, whose sizes add up.
    """

    operator = "Concat"
    inputs = (Input("inputs_0", ANY, variadic=True),)
    attributes = (Attribute("axis", "int", required=True, doc="Where they are joined."),)
    examples = (
        Example(([1.0], [2.0, 3.0]), [1.0, 2.0, 3.0], gradients=([1.0], [1.0, 1.0]),
                attributes={"axis": 0}),
        Example(([[1], [2]], [[3], [4]]), [[1, 3], [2, 4]], attributes={"axis": -1}),
    )  # fmt: skip
    samples = (
        Sample((TensorSpec((2, 3)), TensorSpec((2, 0)), TensorSpec((2, 1))), {"axis": 1}),
        Sample((TensorSpec((2, 3)),), {"axis": 0}),
    )
    rejections = (
        Rejection(
            (TensorSpec((2, 3)), TensorSpec((3, 3))), "shapes (2, 3) and (3, 3) differ",
            attributes={"axis": 1},
        ),
        Rejection((TensorSpec(()),), "axis 0 is outside", "ATTRIBUTE_INVALID", {"axis": 0}),
    )  # fmt: skip

    def infer(self, *parts: TensorSpec, axis: int) -> TensorSpec:
        first = parts[0]
        along = normalize_axis(axis, first.rank)
        for part in parts[1:]:
            if part.rank != first.rank or any(
                mine != theirs
                for each, (mine, theirs) in enumerate(zip(part.shape, first.shape, strict=False))
                if each != along
            ):
                raise Invalid(
                    "SHAPE_MISMATCH",
                    f"shapes {first.shape} and {part.shape} differ beside axis {along}",
                )
        total = sum(part.shape[along] for part in parts)
        shape = (*first.shape[:along], total, *first.shape[along + 1 :])
        return TensorSpec(shape, first.dtype)

    def forward(self, xp: Namespace, *parts: Array, axis: int) -> Array:
        return xp.concat(list(parts), axis=axis)

    def vjp(
        self, xp: Namespace, grad: Array, out: Array, *parts: Array, axis: int
    ) -> tuple[Array, ...]:
        along = normalize_axis(axis, len(out.shape))
        return tuple(xp.split(grad, tuple(part.shape[along] for part in parts), along))


class Split(Gate):
    """A tensor cut into pieces along an axis.

    Formula:   out_0, out_1, .. = input, cut along axis
    Gradient:  d out_i/d input = 1 on its piece
    Shapes:    As input, but along axis the sizes in split; or num_outputs equal sizes, the last
               one smaller where they do not divide.
    """

    operator = "Split"
    inputs = (Input("input", ANY), _known("split", optional=True))
    attributes = (
        Attribute("axis", "int", 0, doc="Where it is cut."),
        Attribute("num_outputs", "int", doc="How many pieces, where split is not given."),
    )
    outputs = (1, 0)
    examples = (
        Example(([1.0, 2.0, 3.0], [1, 2]), ([1.0], [2.0, 3.0]), gradients=([1.0, 1.0, 1.0], None)),
        Example(([1, 2, 3],), ([1, 2], [3]), attributes={"num_outputs": 2}),
    )
    samples = (
        Sample((TensorSpec((2, 5)),), {"axis": -1, "num_outputs": 3}),
        Sample((TensorSpec((2, 3)), _axes(0, 3)), {"axis": 1}),
        Sample((TensorSpec((2, 3)), _axes(2))),
    )
    rejections = (
        Rejection(
            (TensorSpec((3,)), _axes(1, 1)), "sizes (1, 1) add up to 2 but axis 0 has size 3"
        ),
        Rejection((TensorSpec((3,)),), "give split or num_outputs", "ATTRIBUTE_INVALID"),
        Rejection((TensorSpec((3,)),), "num_outputs is 0", "ATTRIBUTE_INVALID", {"num_outputs": 0}),
    )

    def infer(
        self, x: TensorSpec, split: TensorSpec | None = None, *, axis: int, num_outputs: int | None
    ) -> tuple[TensorSpec, ...]:
        along = normalize_axis(axis, x.rank)
        value = None if split is None else split.value
        return tuple(
            TensorSpec((*x.shape[:along], size, *x.shape[along + 1 :]), x.dtype)
            for size in self._sizes(x.shape[along], along, value, num_outputs)
        )

    def forward(
        self, xp: Namespace, x: Array, split: Ints | None = None, *, axis: int, num_outputs: Any
    ) -> tuple[Array, ...]:
        along = normalize_axis(axis, len(x.shape))
        sizes = self._sizes(x.shape[along], along, split, num_outputs)
        return tuple(xp.split(x, sizes, along))

    def vjp(
        self, xp: Namespace, grad: Any, out: Any, x: Array, *split: Ints, axis: int, **_: Any
    ) -> tuple[Array | None, ...]:
        pieces = [
            xp.full(piece.shape, 0, str(x.dtype)) if each is None else each
            for each, piece in zip(grad, out, strict=True)
        ]
        return (xp.concat(pieces, axis=axis), *(None for _ in split))

    def _sizes(self, size: int, axis: int, split: Any, num_outputs: int | None) -> Ints:
        if (split is None) == (num_outputs is None):
            raise Invalid("ATTRIBUTE_INVALID", "give split or num_outputs, and not both")
        if split is None:
            assert num_outputs is not None
            if not 1 <= num_outputs <= max(size, 1):
                raise Invalid(
                    "ATTRIBUTE_INVALID",
                    f"num_outputs is {num_outputs} but axis {axis} has size {size}",
                )
            each = -(-size // num_outputs)
            starts = [min(size, number * each) for number in range(num_outputs + 1)]
            return tuple(stop - start for start, stop in pairwise(starts))
        sizes = tuple(map(int, split))
        if sum(sizes) != size or min(sizes, default=0) < 0:
            raise Invalid(
                "SHAPE_MISMATCH",
                f"the sizes {sizes} add up to {sum(sizes)} but axis {axis} has size {size}",
            )
        return sizes


class Slice(Gate):
    """Part of a tensor: along each axis from start to end, in steps.

    Formula:   out = data[starts[0]:ends[0]:steps[0], ..]; negative numbers count from the end,
               those outside the axis stand for its end
    Gradient:  d out/d data = 1 on the part, 0 elsewhere
    Shapes:    The number of steps along each of axes; all axes in order where none are given.
    """

    operator = "Slice"
    inputs = (
        Input("data", ANY),
        Input("starts", INDICES, "I", known=True),
        Input("ends", INDICES, "I", known=True),
        Input("axes", INDICES, "I", optional=True, known=True),
        Input("steps", INDICES, "I", optional=True, known=True),
    )
    examples = (
        Example(([1.0, 2.0, 3.0], [1], [3]), [2.0, 3.0], gradients=([0.0, 1.0, 1.0], None, None)),
        Example(
            ([1.0, 2.0, 3.0], [-1], [-9], [0], [-2]), [3.0, 1.0],
            gradients=([1.0, 0.0, 1.0], None, None, None, None),
        ),
        Example(([1, 2, 3], [0], [2]), [1, 2]),
    )  # fmt: skip
    samples = (
        Sample((TensorSpec((4, 5)), _axes(1, 0), _axes(9, 5), _axes(0, 1), _axes(1, 2))),
        Sample((TensorSpec((2, 3, 4)), _axes(3), _axes(0), _axes(-1), _axes(-1))),
        Sample((TensorSpec((4,)), _axes(2), _axes(2))),
        Sample((TensorSpec((0, 3)), _axes(1), _axes(3), _axes(1))),
    )
    rejections = (
        Rejection(
            (TensorSpec((3,)), _axes(0), _axes(3), _axes(0), _axes(0)), "step 0",
            "ATTRIBUTE_INVALID",
        ),
        Rejection((TensorSpec((3,)), _axes(0, 0), _axes(3)), "2 starts but 1 ends"),
    )  # fmt: skip

    def infer(self, data: TensorSpec, *known: TensorSpec | None) -> TensorSpec:
        values = [None if each is None else each.value for each in known]
        parts = self._parts(data.shape, values)
        return TensorSpec(tuple(map(len, parts)), data.dtype)

    def forward(self, xp: Namespace, data: Array, *known: Ints | None) -> Array:
        parts = self._parts(data.shape, known)
        stops = tuple(None if part.stop < 0 else part.stop for part in parts)
        starts, steps = [part.start for part in parts], [part.step for part in parts]
        return xp.slice(data, tuple(starts), stops, tuple(steps))

    def vjp(
        self, xp: Namespace, grad: Array, out: Array, data: Array, *known: Ints | None
    ) -> tuple[Any, ...]:
        def to_data() -> Array:
            spread = grad
            for axis, part in enumerate(self._parts(data.shape, known)):
                if part != range(data.shape[axis]):
                    shape = (*spread.shape[:axis], data.shape[axis], *spread.shape[axis + 1 :])
                    spread = _scatter_along(xp, spread, part, shape, axis)
            return spread

        return (to_data, *(None for _ in known))

    def _parts(self, shape: Shape, known: Any) -> list[range]:
        """What is taken along each axis."""
        starts, ends, axes, steps = (*known, None, None)[:4]
        axes = tuple(range(len(starts))) if axes is None else axes
        steps = (1,) * len(starts) if steps is None else steps
        if not len(starts) == len(ends) == len(axes) == len(steps):
            raise Invalid(
                "SHAPE_MISMATCH",
                f"there are {len(starts)} starts but {len(ends)} ends, {len(axes)} axes and "
                f"{len(steps)} steps",
            )
        parts = [range(size) for size in shape]
        for axis, start, end, step in zip(
            normalize_axes(tuple(map(int, axes)), len(shape)), starts, ends, steps, strict=True
        ):
            if step == 0:
                raise Invalid("ATTRIBUTE_INVALID", f"axis {axis} has the step 0; give another")
            taken = slice(int(start), int(end), int(step)).indices(shape[axis])
            parts[axis] = range(*taken)
        return parts


class Gather(Gate):
    """Slices of a tensor, chosen by their position along an axis.

    Formula:   out[.., i, ..] = data[.., indices[i], ..]; negative indices count from the end
    Gradient:  d out/d data = 1 on the slices taken, once for each time
    Shapes:    data's, with indices' in place of axis.
    """

    operator = "Gather"
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
            lying = xp.reshape(indices, _along(along, count, len(shape)))
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
    Gradient:  to data and updates what the reduction gives each; where indices repeat without
               one, the last update counts
    Kinks:     For max and min, data and updates that tie share the gradient equally; for mul, the
               second derivative ignores updates of 0.
    Shapes:    As data; indices and updates equal, of data's rank, no longer along other axes.
    """

    operator = "ScatterElements"
    inputs = (Input("data", ANY), Input("indices", INDICES, "I"), Input("updates", ANY))
    attributes = (
        Attribute("axis", "int", 0, doc="What indices count along."),
        Attribute(
            "reduction", "string", "none", choices=("none", "add", "mul", "max", "min"),
            doc="How an update meets what is there.",
        ),
    )  # fmt: skip
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
            at_kink=True,
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
        arrays = (data, indices, updates)
        if reduction == "add":
            return grad, None, lambda: _pick(xp, grad, indices, along)
        if reduction == "none":
            return self._pull_set(xp, grad, *arrays, along)
        if reduction == "mul":
            return self._pull_product(xp, grad, *arrays, along)
        return self._pull_extreme(xp, grad, out, *arrays, along)

    def _pull_set(
        self, xp: Namespace, grad: Array, data: Array, indices: Array, updates: Array, axis: int
    ) -> tuple[Any, ...]:
        number = _integers(xp, range(prod(updates.shape)), updates.shape)
        nobody = xp.full(data.shape, -1, "int64")
        winner = _pick(xp, xp.scatter(nobody, indices, number, axis, "none"), indices, axis)
        counts = xp.astype(xp.equal(winner, number), str(grad.dtype))
        to_data = xp.scatter(grad, indices, xp.zeros_like(updates), axis, "none")
        return to_data, None, counts * _pick(xp, grad, indices, axis)

    def _pull_product(
        self, xp: Namespace, grad: Array, data: Array, indices: Array, updates: Array, axis: int
    ) -> tuple[Any, ...]:
        is_zero = xp.equal(updates, 0.0)
        factors = xp.where(is_zero, 1.0, updates)
        product = xp.scatter(xp.ones_like(data), indices, factors, axis, "mul")
        marks = xp.astype(is_zero, str(grad.dtype))
        zeros = xp.scatter(xp.zeros_like(data), indices, marks, axis, "add")
        other_zeros = _pick(xp, zeros, indices, axis) - marks
        others = _pick(xp, product, indices, axis) / factors
        others = xp.where(xp.equal(other_zeros, 0.0), others, 0.0)
        to_data = grad * xp.where(xp.equal(zeros, 0.0), product, 0.0)
        return to_data, None, _pick(xp, grad * data, indices, axis) * others

    def _pull_extreme(
        self,
        xp: Namespace,
        grad: Array,
        out: Array,
        data: Array,
        indices: Array,
        updates: Array,
        axis: int,
    ) -> tuple[Any, ...]:
        dtype = str(grad.dtype)
        stays = xp.astype(xp.equal(data, out), dtype)
        comes = xp.astype(xp.equal(updates, _pick(xp, out, indices, axis)), dtype)
        ties = xp.scatter(stays, indices, comes, axis, "add")
        share = grad / xp.maximum(ties, xp.ones_like(ties))
        return share * stays, None, comes * _pick(xp, share, indices, axis)


class Pad(Gate):
    """Elements put around a tensor; negative pads take away.

    Formula:   out = data, between pads[i] elements before and pads[i + n] after along axis i: a
               constant, or data reflected, its edge repeated, or wrapped around
    Gradient:  d out/d data = 1, once for each time an element occurs; d out/d constant_value = 1
               on the elements added
    Shapes:    Each size plus its two pads; all axes in order where none are given.
    """

    operator = "Pad"
    inputs = (
        Input("data", ANY),
        _known("pads"),
        Input("constant_value", ANY, optional=True),
        Input("axes", INDICES, "A", optional=True, known=True),
    )
    attributes = (
        Attribute(
            "mode", "string", "constant", choices=("constant", "reflect", "edge", "wrap"),
            doc="What is put around.",
        ),
    )  # fmt: skip
    examples = (
        Example(([1.0, 2.0], [1, 2], 9.0), [9.0, 1.0, 2.0, 9.0, 9.0],
                gradients=([1.0, 1.0], None, 3.0)),
        Example(([1.0, 2.0, 3.0], [2, 1]), [3.0, 2.0, 1.0, 2.0, 3.0, 2.0],
                gradients=([1.0, 3.0, 2.0], None), attributes={"mode": "reflect"}),
        Example(([1, 2, 3], [-1, 1]), [2, 3, 0]),
    )  # fmt: skip
    samples = (
        Sample((TensorSpec((2, 3)), _axes(0, 1, 2, -1))),
        Sample((TensorSpec((2, 3)), _axes(1, 2), TensorSpec(()), _axes(-1))),
        Sample((TensorSpec((3, 2)), _axes(2, 1, 1, 3)), {"mode": "edge"}),
        Sample((TensorSpec((3, 2)), _axes(2, -1, 4, 3)), {"mode": "wrap"}),
        Sample((TensorSpec((3, 4)), _axes(2, 0, 1, -2)), {"mode": "reflect"}),
        Sample((TensorSpec((0, 2)), _axes(1, 0, 0, 0))),
    )
    rejections = (
        Rejection((TensorSpec((2, 3)), _axes(1, 1)), "2 pads but 2 axes need 4"),
        Rejection((TensorSpec((2,)), _axes(-3, 0)), "take 3 elements from axis 0 of size 2"),
        Rejection((TensorSpec((0,)), _axes(1, 0)), "axis 0 is empty", attributes={"mode": "edge"}),
        Rejection(
            (TensorSpec((2,)), _axes(0, 0), TensorSpec((2,))), "constant_value has shape (2,)"
        ),
    )

    def infer(self, data: TensorSpec, *rest: TensorSpec | None, mode: str) -> TensorSpec:
        pads, fill, axes = (*rest, None, None)[:3]
        if fill is not None and fill.size != 1:
            raise Invalid(
                "SHAPE_MISMATCH", f"constant_value has shape {fill.shape} but must be a scalar"
            )
        assert pads is not None
        around = self._around(data.shape, pads.value, None if axes is None else axes.value, mode)
        sizes = (b + size + a for size, (b, a) in zip(data.shape, around, strict=True))
        return TensorSpec(_checked(tuple(sizes), "pads"), data.dtype)

    def forward(self, xp: Namespace, data: Array, *rest: Any, mode: str) -> Array:
        pads, fill, axes = (*rest, None, None)[:3]
        around = self._around(data.shape, pads, axes, mode)
        if mode != "constant":
            for axis, sources in enumerate(self._sources(data.shape, around, mode)):
                if sources != list(range(data.shape[axis])):
                    chosen = _integers(xp, sources, (len(sources),))
                    data = xp.take(data, chosen, axis=axis)
            return data
        if fill is not None:
            fill = xp.reshape(fill, ())
        kept = self._crop(xp, data, around)
        before = tuple(max(b, 0) for b, _ in around)
        after = tuple(max(a, 0) for _, a in around)
        return xp.pad(kept, before, after, "constant", 0 if fill is None else fill)

    def vjp(
        self, xp: Namespace, grad: Array, out: Array, data: Array, *rest: Any, mode: str
    ) -> tuple[Any, ...]:
        pads, fill, axes = (*rest, None, None)[:3]
        around = self._around(data.shape, pads, axes, mode)
        none = (None,) * len(rest)
        if mode != "constant":
            return lambda: self._pull_sources(xp, grad, data.shape, around, mode), *none
        inward = [(-b, -a) for b, a in around]

        def to_data() -> Array:
            before = tuple(max(b, 0) for b, _ in inward)
            after = tuple(max(a, 0) for _, a in inward)
            return xp.pad(self._crop(xp, grad, inward), before, after)

        def to_fill() -> Array:
            inside = xp.full(self._kept_shape(data.shape, around), 1, str(grad.dtype))
            before = tuple(max(b, 0) for b, _ in around)
            after = tuple(max(a, 0) for _, a in around)
            outside = 1.0 - xp.pad(inside, before, after)
            every = tuple(range(len(grad.shape)))
            return xp.reshape(xp.sum(grad * outside, axis=every), fill.shape)

        return (to_data, None, None if fill is None else to_fill, None)[: 1 + len(rest)]

    def _around(self, shape: Shape, pads: Any, axes: Any, mode: str) -> list[tuple[int, int]]:
        """Elements before and after, for every axis."""
        chosen = range(len(shape)) if axes is None else tuple(map(int, axes))
        along = normalize_axes(tuple(chosen), len(shape))
        if len(pads) != 2 * len(along):
            raise Invalid(
                "SHAPE_MISMATCH",
                f"there are {len(pads)} pads but {len(along)} axes need {2 * len(along)}",
            )
        around = [(0, 0)] * len(shape)
        for place, axis in enumerate(along):
            before, after = int(pads[place]), int(pads[place + len(along)])
            taken = max(-before, 0) + max(-after, 0)
            if taken > shape[axis]:
                raise Invalid(
                    "SHAPE_MISMATCH",
                    f"the pads take {taken} elements from axis {axis} of size {shape[axis]}",
                )
            if mode != "constant" and shape[axis] == 0 and before + after:
                raise Invalid(
                    "SHAPE_MISMATCH", f"axis {axis} is empty, so there is nothing to {mode}"
                )
            around[axis] = (before, after)
        return around

    def _kept_shape(self, shape: Shape, around: list[tuple[int, int]]) -> Shape:
        return tuple(
            size + min(b, 0) + min(a, 0) for size, (b, a) in zip(shape, around, strict=True)
        )

    def _crop(self, xp: Namespace, x: Array, around: list[tuple[int, int]]) -> Array:
        kept = self._kept_shape(x.shape, around)
        if kept == tuple(x.shape):
            return x
        starts = tuple(max(-b, 0) for b, _ in around)
        stops = tuple(start + size for start, size in zip(starts, kept, strict=True))
        return xp.slice(x, starts, stops, (1,) * len(kept))

    def _sources(
        self, shape: Shape, around: list[tuple[int, int]], mode: str
    ) -> Iterable[list[int]]:
        """For each axis, which element of data each element of out repeats."""
        for size, (before, after) in zip(shape, around, strict=True):
            places = range(-before, size + after)
            if mode == "edge":
                yield [min(max(place, 0), size - 1) for place in places]
            elif mode == "wrap":
                yield [place % size for place in places]
            else:
                period = max(2 * (size - 1), 1)
                yield [min(place % period, period - place % period) % size for place in places]

    def _pull_sources(
        self, xp: Namespace, grad: Array, shape: Shape, around: list[tuple[int, int]], mode: str
    ) -> Array:
        for axis, sources in enumerate(self._sources(shape, around, mode)):
            if sources != list(range(shape[axis])):
                smaller = (*grad.shape[:axis], shape[axis], *grad.shape[axis + 1 :])
                grad = _scatter_along(xp, grad, sources, smaller, axis)
        return grad


class Tile(Gate):
    """A tensor repeated along each axis.

    Formula:   out = input, repeats[i] times along axis i
    Gradient:  d out/d input = 1, summed over the repetitions
    Shapes:    Each size times its repeats.
    """

    operator = "Tile"
    inputs = (Input("input", ANY), _known("repeats"))
    examples = (
        Example(([1.0, 2.0], [2]), [1.0, 2.0, 1.0, 2.0], gradients=([2.0, 2.0], None)),
        Example(([[1]], [2, 1]), [[1], [1]]),
    )
    samples = (
        Sample((TensorSpec((2, 3)), _axes(1, 2))),
        Sample((TensorSpec((2, 3)), _axes(0, 2))),
        Sample((TensorSpec(()), _axes())),
    )
    rejections = (
        Rejection((TensorSpec((2, 3)), _axes(2)), "1 repeats but input has 2 axes"),
        Rejection((TensorSpec((2,)), _axes(-1)), "repeats gives the shape (-2,)"),
    )

    def infer(self, x: TensorSpec, repeats: TensorSpec) -> TensorSpec:
        times = tuple(map(int, repeats.value or ()))
        if len(times) != x.rank:
            raise Invalid(
                "SHAPE_MISMATCH", f"there are {len(times)} repeats but input has {x.rank} axes"
            )
        shape = tuple(size * each for size, each in zip(x.shape, times, strict=True))
        return TensorSpec(_checked(shape, "repeats"), x.dtype)

    def forward(self, xp: Namespace, x: Array, repeats: Ints) -> Array:
        return xp.tile(x, repeats)

    def vjp(
        self, xp: Namespace, grad: Array, out: Array, x: Array, repeats: Ints
    ) -> tuple[Any, ...]:
        apart = tuple(
            size for pair in zip(repeats, x.shape, strict=True) for size in map(int, pair)
        )
        copies = tuple(range(0, len(apart), 2))
        return lambda: xp.sum(xp.reshape(grad, apart), axis=copies), None


class Shape_(Gate):  # noqa: N801 -- Shape is a type here
    """The sizes of a tensor's axes.

    Formula:   out = shape of data, from axis start to end
    Gradient:  None: the output is int64.
    Shapes:    A vector, one element for each axis; its elements are known before evaluation.
    """

    operator = "Shape"
    inputs = (Input("data", ANY),)
    attributes = (
        Attribute("start", "int", 0, doc="First axis."),
        Attribute("end", "int", doc="Axis after the last; all to the end if left out."),
    )
    examples = (
        Example(([[1.0, 2.0, 3.0]],), [1, 3], gradients=(None,)),
        Example(([[1, 2, 3]],), [3], attributes={"start": -1}),
    )
    samples = (
        Sample((TensorSpec((2, 3, 4)),), {"start": 1, "end": -1}),
        Sample((TensorSpec(()),)),
    )

    def infer(self, data: TensorSpec, start: int, end: int | None) -> TensorSpec:
        sizes = data.shape[start:end]
        return TensorSpec((len(sizes),), "int64", sizes)

    def forward(self, xp: Namespace, data: Array, start: int, end: int | None) -> Array:
        sizes = data.shape[start:end]
        return _integers(xp, sizes, (len(sizes),))

    def vjp(self, xp: Namespace, grad: Array, out: Array, *_: Any, **__: Any) -> tuple[None, ...]:
        return (None,)


class Constant(Gate):
    """A value that is part of the graph: exactly one of the attributes.

    Formula:   out = value
    Gradient:  None: there is no input.
    Shapes:    The tensor's; rank 0 for a number, a vector for several.
    """

    operator = "Constant"
    inputs = ()
    attributes = (
        Attribute("value", "tensor", doc="A tensor."),
        Attribute("value_float", "float", doc="A float32."),
        Attribute("value_floats", "floats", doc="float32s."),
        Attribute("value_int", "int", doc="An int64."),
        Attribute("value_ints", "ints", doc="int64s."),
    )
    examples = (
        Example((), 5, attributes={"value_int": 5}),
        Example((), [1, 2], attributes={"value_ints": (1, 2)}),
        Example((), 0.5, attributes={"value_float": 0.5}),
    )
    rejections = (Rejection((), "exactly one", "ATTRIBUTE_INVALID"),)

    def infer(self, **attributes: Any) -> TensorSpec:
        tensor = self._tensor(attributes)
        spec = TensorSpec(tensor.shape, tensor.dtype)
        if tensor.dtype in FLOATS or spec.size > _KNOWN_SIZE:
            return spec
        return TensorSpec(tensor.shape, tensor.dtype, _decode(tensor))

    def forward(self, xp: Namespace, **attributes: Any) -> Array:
        return xp.constant(self._tensor(attributes))

    def vjp(self, xp: Namespace, grad: Array, out: Array, **_: Any) -> tuple[None, ...]:
        return ()

    def _tensor(self, attributes: dict[str, Any]) -> Tensor:
        given = {name: value for name, value in attributes.items() if value is not None}
        if len(given) != 1:
            raise Invalid(
                "ATTRIBUTE_INVALID",
                f"exactly one attribute gives the value, but {len(given)} are given: "
                + (", ".join(given) or "give value_int, or another"),
            )
        ((name, value),) = given.items()
        if name == "value":
            found: Tensor = value
            return found
        values = value if isinstance(value, tuple) else (value,)
        shape = (len(values),) if isinstance(value, tuple) else ()
        if name.startswith("value_float"):
            return Tensor("float32", shape, array("f", values).tobytes())
        return Tensor("int64", shape, array("q", values).tobytes())


_ARRAY_CODES = {
    "bool": "b", "int8": "b", "int16": "h", "int32": "i", "int64": "q",
    "uint8": "B", "uint16": "H", "uint32": "I", "uint64": "Q",
}  # fmt: skip
assert all(array(code).itemsize == ITEM_SIZES[dtype] for dtype, code in _ARRAY_CODES.items())


def _decode(tensor: Tensor) -> tuple[float, ...]:
    """The elements of an integer or boolean tensor."""
    found = array(_ARRAY_CODES[tensor.dtype], tensor.data).tolist()
    return tuple(map(bool, found)) if tensor.dtype == "bool" else tuple(found)
