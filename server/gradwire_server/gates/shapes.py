"""Shapes: gates that move, repeat, select or convert elements and compute nothing new."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
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
    Scratch,
)
from gradwire_server.gates.common import (
    Ints,
    checked_shape,
    dtype_choices,
    dtype_numbered,
    integers,
    ints,
    known,
    scatter_along,
)
from gradwire_server.specs import (
    ANY,
    EVERY,
    FLOATS,
    INDICES,
    ITEM_SIZES,
    ONNX_NUMBERS,
    STORED,
    USED_BITS,
    Shape,
    Tensor,
    TensorSpec,
    broadcast_shapes,
    normalize_axes,
    normalize_axis,
)

#: Bits of an element; a bool's byte is all its own.
_BITS = {**{dtype: 8 * size for dtype, size in ITEM_SIZES.items()}, **USED_BITS, "bool": 8}
_CONVERSION = (
    Attribute("saturate", "int", 1, choices=(0, 1),
              doc="Whether what, once rounded, lies outside a float of 8 bits becomes the nearest "
                  "that there is, and not infinity or NaN."),
    Attribute("round_mode", "string", "up", choices=("up", "down", "nearest"),
              doc="How powers of two (float8_e8m0fnu) are rounded; a negative number is NaN."),
)  # fmt: skip


class Identity(ElementwiseGate):
    """The value itself.

    Formula:   out = input
    Gradient:  d out/d input = 1
    Shapes:    As input.
    """

    operator = "Identity"
    shows_input = "as it is"
    passes_grad = "to the first"
    takes_halves = True
    inputs = (Input("input", EVERY),)
    examples = (Example((2.0,), 2.0, gradients=(1.0,)), Example(([True, False],), [True, False]))

    def forward(self, xp: Namespace, x: Array) -> Array:
        return x

    def vjp(self, xp: Namespace, grad: Array, out: Array, x: Array) -> tuple[Array, ...]:
        return (grad,)


class Cast(ElementwiseGate):
    """Elements in another data type; floats become integers towards zero.

    Formula:   out = input, as the data type numbered `to`, rounded once to nearest even; integers
               keep their low bits
    Gradient:  d out/d input = 1 between floating types of 16 bits and more; none otherwise
    Shapes:    As input.
    """

    operator = "Cast"
    takes_halves = True
    output_dtypes = ("attribute:to",)
    inputs = (Input("input", EVERY),)
    attributes = (
        Attribute(
            "to",
            "int",
            required=True,
            choices=tuple(sorted(ONNX_NUMBERS.values())),
            doc="ONNX's number of the data type.",
        ),
        *_CONVERSION,
    )
    examples = (
        Example((2.5,), 2.5, gradients=(1.0,), attributes={"to": 11}),
        Example(([1.7, -1.7],), [1, -1], attributes={"to": 7}),
        Example(([0, 3],), [False, True], attributes={"to": 9}),
        Example(([1.0, 1e9],), Tensor("float8_e4m3fn", (2,), b"\x38\x7e"), gradients=(None,),
                attributes={"to": 17}),
        Example((Tensor("int4", (2,), b"\x07\x0f"),), [7, -1], attributes={"to": 7}),
    )  # fmt: skip
    rejections = (
        Rejection((TensorSpec(()),), "'to' is 99 but must be one of", "ATTRIBUTE_INVALID",
                  {"to": 99}),
        Rejection((TensorSpec(()),), "'to' must be given", "ATTRIBUTE_INVALID"),
    )  # fmt: skip

    def infer(self, *specs: Any, **attributes: Any) -> TensorSpec:
        return TensorSpec(specs[0].shape, dtype_numbered(attributes["to"]))

    def scratch(self, outs: Sequence[TensorSpec], *specs: Any, **attributes: Any) -> Scratch:
        return _converting(specs[0], outs[0])

    def forward(self, xp: Namespace, x: Array, to: int, **attributes: Any) -> Array:
        return _converted(xp, x, dtype_numbered(to), **attributes)

    def vjp(
        self, xp: Namespace, grad: Array, out: Array, x: Array, to: int, **_: Any
    ) -> tuple[Array | None, ...]:
        dtype = str(x.dtype)
        if dtype not in FLOATS or dtype_numbered(to) not in FLOATS:
            return (None,)
        return (xp.astype(grad, dtype),)


class CastLike(Gate):
    """Elements in the data type of another tensor.

    Formula:   out = input, as target_type's data type
    Gradient:  d out/d input = 1 between floating types of 16 bits and more; none otherwise, nor
               to target_type
    Shapes:    As input.
    """

    operator = "CastLike"
    takes_halves = True
    output_dtypes = ("input:1",)
    inputs = (Input("input", EVERY), Input("target_type", EVERY, "U", elements=False))
    attributes = _CONVERSION
    examples = (
        Example((2.5, [1.0]), 2.5, gradients=(1.0, None)),
        Example(([1.7, -1.7], 0), [1, -1]),
        Example(([3.0, 0.0], Tensor("float8_e8m0fnu", (), b"\0")),
                Tensor("float8_e8m0fnu", (2,), b"\x80\0"), gradients=(None, None),
                attributes={"round_mode": "down"}),
        Example(([0, 3], True), [False, True]),
    )  # fmt: skip
    samples = (Sample((TensorSpec((2,), "float64"), TensorSpec((3, 0)))),)

    def infer(self, x: TensorSpec, target: TensorSpec, **_: Any) -> TensorSpec:
        return TensorSpec(x.shape, target.dtype)

    def scratch(self, outs: Sequence[TensorSpec], *specs: Any, **attributes: Any) -> Scratch:
        return _converting(specs[0], outs[0])

    def forward(self, xp: Namespace, x: Array, target: Array, **attributes: Any) -> Array:
        return _converted(xp, x, str(target.dtype), **attributes)

    def vjp(
        self, xp: Namespace, grad: Array, out: Array, x: Array, target: Array, **_: Any
    ) -> tuple[Array | None, ...]:
        dtype = str(x.dtype)
        if dtype not in FLOATS or str(target.dtype) not in FLOATS:
            return None, None
        return xp.astype(grad, dtype), None

    def aligned_shapes(self, x: TensorSpec, target: TensorSpec, **_: Any) -> tuple[Shape, ...]:
        return x.shape, target.shape


def _converted(xp: Namespace, x: Array, dtype: str, saturate: int, round_mode: str) -> Array:
    if dtype in STORED:
        return xp.store(x, dtype, bool(saturate), round_mode)
    return xp.astype(x, dtype)


#: Elements that are stored at once.
_BLOCK = 1 << 15


def _converting(x: TensorSpec, out: TensorSpec) -> Scratch:
    if out.dtype not in STORED:
        return Scratch(0, 0)
    each = 9 if x.dtype == "float32" and out.dtype != "float8_e8m0fnu" else 36
    return Scratch(each * min(x.size, _BLOCK), 0)


class BitCast(ElementwiseGate):
    """The same bits, read as another data type of the same width.

    Formula:   out = input's bytes, as the data type numbered `to`
    Gradient:  d out/d input = 1 where the data type stays; none otherwise
    Shapes:    As input.
    """

    operator = "BitCast"
    shows_input = "as it is"
    takes_halves = True
    output_dtypes = ("attribute:to",)
    inputs = (Input("input", EVERY),)
    attributes = (
        Attribute("to", "int", required=True, choices=dtype_choices(EVERY),
                  doc="ONNX's number of the data type."),
    )  # fmt: skip
    examples = (
        Example(([4607182418800017408, -(2**63)],), [1.0, -0.0], attributes={"to": 11}),
        Example(([-1],), [2**64 - 1], attributes={"to": 13}),
        Example(
            (Tensor("int4", (1,), b"\x0f"),), Tensor("uint4", (1,), b"\x0f"), attributes={"to": 21}
        ),
        Example(([True, False],), [True, False], attributes={"to": 9}),
    )
    rejections = (
        Rejection((TensorSpec(()),), "float64 has 64 bits but float32 has 32", "ATTRIBUTE_INVALID",
                  {"to": 1}),
        Rejection((TensorSpec((), "uint8"),), "uint8 has 8 bits but int4 has 4",
                  "ATTRIBUTE_INVALID", {"to": 22}),
        Rejection((TensorSpec((), "uint8"),), "not every uint8 is a bool", "ATTRIBUTE_INVALID",
                  {"to": 9}),
    )  # fmt: skip

    def infer(self, *specs: Any, **attributes: Any) -> TensorSpec:
        (x,) = specs
        dtype = dtype_numbered(attributes["to"])
        if _BITS[dtype] != _BITS[x.dtype]:
            raise Invalid(
                "ATTRIBUTE_INVALID",
                f"{x.dtype} has {_BITS[x.dtype]} bits but {dtype} has {_BITS[dtype]}; "
                "use Cast to convert numbers",
                attribute="to",
            )
        if dtype == "bool" and x.dtype != "bool":
            raise Invalid(
                "ATTRIBUTE_INVALID", f"not every {x.dtype} is a bool; use Cast", attribute="to"
            )
        return TensorSpec(x.shape, dtype)

    def forward(self, xp: Namespace, x: Array, to: int) -> Array:
        return xp.bitcast(x, dtype_numbered(to))

    def vjp(
        self, xp: Namespace, grad: Array, out: Array, x: Array, to: int
    ) -> tuple[Array | None, ...]:
        return (grad if str(x.dtype) == dtype_numbered(to) else None,)


class Reshape(Gate):
    """The same elements in another shape.

    Formula:   out = data, row-major, in the shape given
    Gradient:  d out/d data = 1
    Shapes:    shape; one -1 is what is left over, and 0 is the size data has there (with
               allowzero it is 0).
    """

    operator = "Reshape"
    shows_input = "reshaped"
    passes_grad = "to the first"
    takes_halves = True
    inputs = (Input("data", EVERY), known("shape"))
    attributes = (Attribute("allowzero", "int", 0, choices=(0, 1), doc="0 means 0."),)
    examples = (
        Example(
            ([[1.0, 2.0], [3.0, 4.0]], [-1]), [1.0, 2.0, 3.0, 4.0],
            gradients=([[1.0, 1.0], [1.0, 1.0]], None),
        ),
        Example(([1, 2, 3, 4], [2, 2]), [[1, 2], [3, 4]]),
    )  # fmt: skip
    samples = (
        Sample((TensorSpec((2, 3, 4)), ints(0, -1))),
        Sample((TensorSpec((6,)), ints(2, 3))),
        Sample((TensorSpec(()), ints(1, 1))),
        Sample((TensorSpec((1,)), ints())),
        Sample((TensorSpec((0, 3)), ints(3, 0)), {"allowzero": 1}),
    )
    rejections = (
        Rejection((TensorSpec((2, 3)), ints(4)), "6 elements do not fit the shape (4,)"),
        Rejection((TensorSpec((2, 3)), ints(-1, -1)), "more than one -1"),
        Rejection((TensorSpec((2, 3)), ints(4, -1)), "6 elements do not fit"),
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
        found = checked_shape(tuple(wanted), "shape")
        if prod(found) != data.size:
            raise Invalid("SHAPE_MISMATCH", f"{data.size} elements do not fit the shape {found}")
        return replace(data, shape=found)

    def forward(self, xp: Namespace, data: Array, shape: Ints, allowzero: int) -> Array:
        spec = TensorSpec(data.shape, "float64")
        return xp.reshape(data, self.infer(spec, ints(*shape), allowzero).shape)

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
    shows_input = "turned"
    passes_grad = "to the first"
    takes_halves = True
    inputs = (Input("data", EVERY),)
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
    shows_input = "in parts"
    takes_halves = True
    inputs = (Input("input", ANY), known("shape"))
    examples = (
        Example(([[1.0], [2.0]], [3]), [[1.0, 1.0, 1.0], [2.0, 2.0, 2.0]],
                gradients=([[3.0], [3.0]], None)),
        Example((7, [2]), [7, 7]),
    )  # fmt: skip
    samples = (
        Sample((TensorSpec(()), ints(2, 0))),
        Sample((TensorSpec((3, 1)), ints(2, 1, 4))),
    )
    rejections = (Rejection((TensorSpec((2,)), ints(3)), "(2,) and (3,) do not broadcast"),)

    def infer(self, x: TensorSpec, shape: TensorSpec) -> TensorSpec:
        wanted = checked_shape(tuple(map(int, shape.value or ())), "shape")
        return TensorSpec(checked_shape(broadcast_shapes(x.shape, wanted), "shape"), x.dtype)

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
    shows_input = "as it is"
    passes_grad = "to the first"
    takes_halves = True
    inputs = (Input("data", EVERY), known("axes", optional=True))
    examples = (
        Example(([[1.0], [2.0]], [1]), [1.0, 2.0], gradients=([[1.0], [1.0]], None)),
        Example(([[5]],), 5),
    )
    samples = (Sample((TensorSpec((1, 3, 1)), ints(-1))), Sample((TensorSpec((0, 1)),)))
    rejections = (Rejection((TensorSpec((2, 3)), ints(0)), "axis 0 has size 2, so it cannot"),)

    def infer(self, data: TensorSpec, axes: TensorSpec | None = None) -> TensorSpec:
        lost = self._lost(data.shape, None if axes is None else axes.value)
        kept = tuple(size for axis, size in enumerate(data.shape) if axis not in lost)
        return replace(data, shape=kept)

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
    shows_input = "as it is"
    passes_grad = "to the first"
    takes_halves = True
    inputs = (Input("data", EVERY), known("axes"))
    examples = (
        Example(([1.0, 2.0], [1]), [[1.0], [2.0]], gradients=([1.0, 1.0], None)),
        Example((5, [0]), [5]),
    )
    samples = (
        Sample((TensorSpec((2, 3)), ints(0, -1))),
        Sample((TensorSpec((0,)), ints(0))),
    )
    rejections = (
        Rejection((TensorSpec((2,)), ints(0, 0)), "name one axis twice", "ATTRIBUTE_INVALID"),
        Rejection((TensorSpec((2,)), ints(3)), "axis 3 is outside", "ATTRIBUTE_INVALID"),
    )

    def infer(self, data: TensorSpec, axes: TensorSpec) -> TensorSpec:
        new = normalize_axes(tuple(map(int, axes.value or ())), data.rank + axes.size)
        sizes = iter(data.shape)
        shape = tuple(1 if axis in new else next(sizes) for axis in range(data.rank + len(new)))
        return replace(data, shape=shape)

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
    shows_input = "reshaped"
    passes_grad = "to the first"
    takes_halves = True
    inputs = (Input("input", EVERY),)
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
    passes_grad = "to all"
    takes_halves = True
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
    shows_input = "in parts"
    takes_halves = True
    inputs = (Input("input", ANY), known("split", optional=True))
    attributes = (
        Attribute("axis", "int", 0, doc="Where it is cut."),
        Attribute("num_outputs", "int", counts_outputs=True,
                  doc="How many pieces, where split is not given."),
    )  # fmt: skip
    outputs = (1, 0)
    examples = (
        Example(([1.0, 2.0, 3.0], [1, 2]), ([1.0], [2.0, 3.0]), gradients=([1.0, 1.0, 1.0], None)),
        Example(([1, 2, 3],), ([1, 2], [3]), attributes={"num_outputs": 2}),
    )
    samples = (
        Sample((TensorSpec((2, 5)),), {"axis": -1, "num_outputs": 3}),
        Sample((TensorSpec((2, 3)), ints(0, 3)), {"axis": 1}),
        Sample((TensorSpec((2, 3)), ints(2))),
    )
    rejections = (
        Rejection((TensorSpec((3,)), ints(1, 1)), "sizes (1, 1) add up to 2 but axis 0 has size 3"),
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
    scratch_arrays = (0, 1)
    shows_input = "in parts"
    takes_halves = True
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
        Sample((TensorSpec((4, 5)), ints(1, 0), ints(9, 5), ints(0, 1), ints(1, 2))),
        Sample((TensorSpec((2, 3, 4)), ints(3), ints(0), ints(-1), ints(-1))),
        Sample((TensorSpec((4,)), ints(2), ints(2))),
        Sample((TensorSpec((0, 3)), ints(1), ints(3), ints(1))),
    )
    rejections = (
        Rejection(
            (TensorSpec((3,)), ints(0), ints(3), ints(0), ints(0)), "step 0",
            "ATTRIBUTE_INVALID",
        ),
        Rejection((TensorSpec((3,)), ints(0, 0), ints(3)), "2 starts but 1 ends"),
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
                    spread = scatter_along(xp, spread, part, shape, axis)
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


class Pad(Gate):
    """Elements put around a tensor; negative pads take away, before others are put.

    Formula:   out = data, between pads[i] elements before and pads[i + n] after along axis i: a
               constant, or data reflected, its edge repeated, or wrapped around
    Gradient:  d out/d data = 1, once for each time an element occurs; d out/d constant_value = 1
               on the elements added
    Shapes:    Each size plus its two pads; all axes in order where none are given.
    """

    operator = "Pad"
    inputs = (
        Input("data", EVERY),
        known("pads"),
        Input("constant_value", EVERY, optional=True),
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
        Sample((TensorSpec((2, 3)), ints(0, 1, 2, -1))),
        Sample((TensorSpec((2, 3)), ints(1, 2), TensorSpec(()), ints(-1))),
        Sample((TensorSpec((3, 2)), ints(2, 1, 1, 3)), {"mode": "edge"}),
        Sample((TensorSpec((3, 2)), ints(2, -1, 4, 3)), {"mode": "wrap"}),
        Sample((TensorSpec((3, 4)), ints(2, 0, 1, -2)), {"mode": "reflect"}),
        Sample((TensorSpec((0, 2)), ints(1, 0, 0, 0))),
    )
    rejections = (
        Rejection((TensorSpec((2, 3)), ints(1, 1)), "2 pads but 2 axes need 4"),
        Rejection((TensorSpec((2,)), ints(-3, 0)), "take 3 elements from axis 0 of size 2"),
        Rejection((TensorSpec((0,)), ints(1, 0)), "axis 0 is empty", attributes={"mode": "edge"}),
        Rejection(
            (TensorSpec((2,)), ints(-2, 1)),
            "axis 0 is empty after what the pads take",
            attributes={"mode": "wrap"},
        ),
        Rejection(
            (TensorSpec((2,)), ints(0, 0), TensorSpec((2,))), "constant_value has shape (2,)"
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
        return TensorSpec(checked_shape(tuple(sizes), "pads"), data.dtype)

    def scratch(
        self,
        outs: Sequence[TensorSpec],
        data: TensorSpec,
        pads: Any,
        fill: Any = None,
        *_: Any,
        mode: str,
    ) -> Scratch:
        out = outs[0].nbytes
        if mode == "constant":
            return Scratch(0, 0 if fill is None else 3 * out)
        changed = [
            after
            for before, after in zip(data.shape, outs[0].shape, strict=True)
            if before != after
        ]
        longest = max(changed, default=0)  # whose positions are numbers of Python's
        pulling = 45 * longest + data.nbytes + int(3.1 * 8 * outs[0].size)
        return Scratch(73 * longest + (out if len(changed) > 1 else 0), max(73 * longest, pulling))

    def forward(self, xp: Namespace, data: Array, *rest: Any, mode: str) -> Array:
        pads, fill, axes = (*rest, None, None)[:3]
        around = self._around(data.shape, pads, axes, mode)
        if mode != "constant":
            for axis, sources in enumerate(self._sources(data.shape, around, mode)):
                if sources != list(range(data.shape[axis])):
                    chosen = integers(xp, sources, (len(sources),))
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
            if mode != "constant" and taken == shape[axis] and max(before, after) > 0:
                raise Invalid(
                    "SHAPE_MISMATCH",
                    f"axis {axis} is empty{' after what the pads take' if taken else ''}, so there "
                    f"is nothing to {mode}",
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
        """For each axis, which element of data each element of out repeats.

        What negative pads take away is not there to be repeated.
        """
        kept = self._kept_shape(shape, around)
        for size, (before, after) in zip(kept, around, strict=True):
            first = max(-before, 0)
            places = range(-max(before, 0), size + max(after, 0))
            if mode == "edge":
                yield [first + min(max(place, 0), size - 1) for place in places]
            elif mode == "wrap":
                yield [first + place % size for place in places]
            else:
                period = max(2 * (size - 1), 1)
                turned = (place % period for place in places)
                yield [first + min(place, period - place) % size for place in turned]

    def _pull_sources(
        self, xp: Namespace, grad: Array, shape: Shape, around: list[tuple[int, int]], mode: str
    ) -> Array:
        for axis, sources in enumerate(self._sources(shape, around, mode)):
            if sources != list(range(shape[axis])):
                smaller = (*grad.shape[:axis], shape[axis], *grad.shape[axis + 1 :])
                grad = scatter_along(xp, grad, sources, smaller, axis)
        return grad


class Tile(Gate):
    """A tensor repeated along each axis.

    Formula:   out = input, repeats[i] times along axis i
    Gradient:  d out/d input = 1, summed over the repetitions
    Shapes:    Each size times its repeats.
    """

    operator = "Tile"
    takes_halves = True
    inputs = (Input("input", ANY), known("repeats"))
    examples = (
        Example(([1.0, 2.0], [2]), [1.0, 2.0, 1.0, 2.0], gradients=([2.0, 2.0], None)),
        Example(([[1]], [2, 1]), [[1], [1]]),
    )
    samples = (
        Sample((TensorSpec((2, 3)), ints(1, 2))),
        Sample((TensorSpec((2, 3)), ints(0, 2))),
        Sample((TensorSpec(()), ints())),
    )
    rejections = (
        Rejection((TensorSpec((2, 3)), ints(2)), "1 repeats but input has 2 axes"),
        Rejection((TensorSpec((2,)), ints(-1)), "repeats gives the shape (-2,)"),
    )

    def infer(self, x: TensorSpec, repeats: TensorSpec) -> TensorSpec:
        times = tuple(map(int, repeats.value or ()))
        if len(times) != x.rank:
            raise Invalid(
                "SHAPE_MISMATCH", f"there are {len(times)} repeats but input has {x.rank} axes"
            )
        shape = tuple(size * each for size, each in zip(x.shape, times, strict=True))
        return TensorSpec(checked_shape(shape, "repeats"), x.dtype)

    def scratch(self, outs: Sequence[TensorSpec], data: TensorSpec, repeats: TensorSpec) -> Scratch:
        times = [each for each in repeats.value or () if each > 1]
        if len(times) < 2:
            return Scratch(0, 0)
        return Scratch(outs[0].nbytes // int(times[-1]), data.nbytes)

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


class Trilu(Gate):
    """The upper or lower triangle of matrices; the rest is zero.

    Formula:   out[.., i, j] = input[.., i, j] where j >= i + k (upper) or j <= i + k, else 0
    Gradient:  d out/d input = 1 in the triangle, 0 elsewhere
    Shapes:    As input, whose last two axes are matrices.
    """

    operator = "Trilu"
    scratch_arrays = (0.15, 0.15)
    inputs = (Input("input", ANY), known("k", optional=True))
    attributes = (Attribute("upper", "int", 1, choices=(0, 1), doc="0 keeps the lower one."),)
    examples = (
        Example(
            ([[1.0, 2.0], [3.0, 4.0]],), [[1.0, 2.0], [0.0, 4.0]],
            gradients=([[1.0, 1.0], [0.0, 1.0]],),
        ),
        Example(([[1, 2], [3, 4]], -1), [[0, 0], [3, 0]], attributes={"upper": 0}),
    )  # fmt: skip
    samples = (
        Sample((TensorSpec((2, 3, 4)), TensorSpec((), "int64", (1,)))),
        Sample((TensorSpec((3, 2)), ints(-1)), {"upper": 0}),
        Sample((TensorSpec((0, 2)), TensorSpec((), "int64", (9,)))),
    )
    rejections = (
        Rejection((TensorSpec((2,)),), "input has rank 1 but must have 2 or more"),
        Rejection((TensorSpec((2, 2)), ints(0, 1)), "k has shape (2,) but must be one number"),
    )

    def infer(self, x: TensorSpec, k: TensorSpec | None = None, *, upper: int) -> TensorSpec:
        if x.rank < 2:
            raise Invalid("SHAPE_MISMATCH", f"input has rank {x.rank} but must have 2 or more")
        if k is not None and k.size != 1:
            raise Invalid("SHAPE_MISMATCH", f"k has shape {k.shape} but must be one number")
        return TensorSpec(x.shape, x.dtype)

    def forward(self, xp: Namespace, x: Array, k: Ints | None = None, *, upper: int) -> Array:
        return xp.triangle(x, k[0] if k else 0, bool(upper))

    def vjp(
        self, xp: Namespace, grad: Array, out: Array, x: Array, *k: Ints | None, upper: int
    ) -> tuple[Any, ...]:
        above = k[0][0] if k and k[0] else 0
        return lambda: xp.triangle(grad, above, bool(upper)), *(None for _ in k)

    def aligned_shapes(self, x: TensorSpec, *k: TensorSpec | None, **_: int) -> tuple[Shape, ...]:
        return x.shape, *(() if each is None else each.shape for each in k)


_BLOCKSIZE = Attribute("blocksize", "int", required=True, doc="Height and width of a block.")


class DepthToSpace(Gate):
    """Channels rearranged into blocks of the image.

    Formula:   out[n, c, h * b + i, w * b + j] = input[n, (i * b + j) * C + c, h, w] for C channels
               left (mode DCR), or input[n, (c * b + i) * b + j, h, w] (mode CRD)
    Gradient:  d out/d input = 1, put back
    Shapes:    [n, channels / b^2, height * b, width * b].
    """

    operator = "DepthToSpace"
    takes_halves = True
    inputs = (Input("input", ANY),)
    attributes = (
        _BLOCKSIZE,
        Attribute("mode", "string", "DCR", choices=("DCR", "CRD"),
                  doc="Whether a block's place or the new channel varies slower."),
    )  # fmt: skip
    examples = (
        Example(
            ([[[[1.0]], [[2.0]], [[3.0]], [[4.0]]]],), [[[[1.0, 2.0], [3.0, 4.0]]]],
            gradients=([[[[1.0]], [[1.0]], [[1.0]], [[1.0]]]],), attributes={"blocksize": 2},
        ),
        Example(([[[[1]], [[2]], [[3]], [[4]]]],), [[[[1, 2], [3, 4]]]],
                attributes={"blocksize": 2, "mode": "CRD"}),
    )  # fmt: skip
    samples = (
        Sample((TensorSpec((2, 8, 2, 3)),), {"blocksize": 2}),
        Sample((TensorSpec((1, 8, 2, 1)),), {"blocksize": 2, "mode": "CRD"}),
        Sample((TensorSpec((1, 9, 0, 1)),), {"blocksize": 3}),
    )
    rejections = (
        Rejection((TensorSpec((1, 6, 2, 2)),), "6 channels do not make blocks of 2 x 2",
                  attributes={"blocksize": 2}),
        Rejection((TensorSpec((4, 2, 2)),), "input has rank 3 but must have 4",
                  attributes={"blocksize": 2}),
        Rejection((TensorSpec((1, 4, 2, 2)),), "blocksize is 0", "ATTRIBUTE_INVALID",
                  {"blocksize": 0}),
    )  # fmt: skip

    def infer(self, x: TensorSpec, blocksize: int, mode: str) -> TensorSpec:
        _require_image(x, blocksize)
        rows, channels, height, width = x.shape
        if channels % blocksize**2:
            raise Invalid(
                "SHAPE_MISMATCH",
                f"{channels} channels do not make blocks of {blocksize} x {blocksize}",
            )
        shape = (rows, channels // blocksize**2, height * blocksize, width * blocksize)
        return TensorSpec(checked_shape(shape, "blocksize"), x.dtype)

    def forward(self, xp: Namespace, x: Array, blocksize: int, mode: str) -> Array:
        return _depth_to_space(xp, x, blocksize, mode)

    def vjp(
        self, xp: Namespace, grad: Array, out: Array, x: Array, blocksize: int, mode: str
    ) -> tuple[Any, ...]:
        return (lambda: _space_to_depth(xp, grad, blocksize, mode),)

    def aligned_shapes(self, x: TensorSpec, **_: Any) -> tuple[Shape, ...]:
        return (x.shape,)


class SpaceToDepth(Gate):
    """Blocks of the image rearranged into channels: what DepthToSpace puts back.

    Formula:   out[n, (i * b + j) * C + c, h, w] = input[n, c, h * b + i, w * b + j] for C channels
               of input (mode DCR), or out[n, (c * b + i) * b + j, h, w] (mode CRD)
    Gradient:  d out/d input = 1, put back
    Shapes:    [n, channels * b^2, height / b, width / b].
    """

    operator = "SpaceToDepth"
    takes_halves = True
    inputs = (Input("input", ANY),)
    attributes = (
        _BLOCKSIZE,
        Attribute("mode", "string", "DCR", choices=("DCR", "CRD"),
                  doc="Whether a block's place or the old channel varies slower."),
    )  # fmt: skip
    examples = (
        Example(
            ([[[[1.0, 2.0], [3.0, 4.0]]]],), [[[[1.0]], [[2.0]], [[3.0]], [[4.0]]]],
            gradients=([[[[1.0, 1.0], [1.0, 1.0]]]],), attributes={"blocksize": 2},
        ),
        Example(([[[[1, 2], [3, 4]]]],), [[[[1]], [[2]], [[3]], [[4]]]],
                attributes={"blocksize": 2, "mode": "CRD"}),
    )  # fmt: skip
    samples = (
        Sample((TensorSpec((2, 2, 4, 6)),), {"blocksize": 2}),
        Sample((TensorSpec((1, 2, 4, 2)),), {"blocksize": 2, "mode": "CRD"}),
        Sample((TensorSpec((1, 0, 3, 3)),), {"blocksize": 3}),
    )
    rejections = (
        Rejection((TensorSpec((1, 1, 4, 3)),), "height 4 and width 3 do not divide into blocks",
                  attributes={"blocksize": 2}),
        Rejection((TensorSpec((1, 4, 2, 2)),), "blocksize is -1", "ATTRIBUTE_INVALID",
                  {"blocksize": -1}),
    )  # fmt: skip

    def infer(self, x: TensorSpec, blocksize: int, mode: str) -> TensorSpec:
        _require_image(x, blocksize)
        rows, channels, height, width = x.shape
        if height % blocksize or width % blocksize:
            raise Invalid(
                "SHAPE_MISMATCH",
                f"height {height} and width {width} do not divide into blocks of {blocksize}",
            )
        shape = (rows, channels * blocksize**2, height // blocksize, width // blocksize)
        return TensorSpec(checked_shape(shape, "blocksize"), x.dtype)

    def forward(self, xp: Namespace, x: Array, blocksize: int, mode: str) -> Array:
        return _space_to_depth(xp, x, blocksize, mode)

    def vjp(
        self, xp: Namespace, grad: Array, out: Array, x: Array, blocksize: int, mode: str
    ) -> tuple[Any, ...]:
        return (lambda: _depth_to_space(xp, grad, blocksize, mode),)

    def aligned_shapes(self, x: TensorSpec, **_: Any) -> tuple[Shape, ...]:
        return (x.shape,)


def _require_image(x: TensorSpec, blocksize: int) -> None:
    if x.rank != 4:
        raise Invalid("SHAPE_MISMATCH", f"input has rank {x.rank} but must have 4")
    if blocksize < 1:
        raise Invalid("ATTRIBUTE_INVALID", f"blocksize is {blocksize} but must be 1 or more")


# both: [.., block row, block column, channel, ..] for DCR, [.., channel, block row, ..] for CRD


def _depth_to_space(xp: Namespace, x: Array, size: int, mode: str) -> Array:
    *lead, depth, height, width = x.shape
    channels, first = depth // size**2, len(lead)
    if mode == "DCR":
        apart, order = (size, size, channels), (2, 3, 0, 4, 1)
    else:
        apart, order = (channels, size, size), (0, 3, 1, 4, 2)
    split = xp.reshape(x, (*lead, *apart, height, width))
    moved = xp.permute_dims(split, (*range(first), *(first + axis for axis in order)))
    return xp.reshape(moved, (*lead, channels, height * size, width * size))


def _space_to_depth(xp: Namespace, x: Array, size: int, mode: str) -> Array:
    *lead, channels, height, width = x.shape
    first = len(lead)
    order = (2, 4, 0, 1, 3) if mode == "DCR" else (0, 2, 4, 1, 3)
    split = xp.reshape(x, (*lead, channels, height // size, size, width // size, size))
    moved = xp.permute_dims(split, (*range(first), *(first + axis for axis in order)))
    return xp.reshape(moved, (*lead, channels * size**2, height // size, width // size))


class CenterCropPad(Gate):
    """A tensor cut or padded with zeros to a shape, around its center.

    Formula:   out = the middle of input_data along axes that are longer than shape, input_data in
               the middle of zeros along shorter ones; an odd element more is taken at the end of
               what is cut, and put at the end of what is padded
    Gradient:  d out/d input_data = 1 on what is kept
    Shapes:    input_data's, with shape along axes; all axes in order where none are given.
    """

    operator = "CenterCropPad"
    inputs = (Input("input_data", ANY), Input("shape", INDICES, "I", known=True))
    attributes = (Attribute("axes", "ints", doc="Which axes shape is about."),)
    examples = (
        Example(([1.0, 2.0, 3.0, 4.0], [1]), [2.0], gradients=([0.0, 1.0, 0.0, 0.0], None)),
        Example(([1.0, 2.0], [5]), [0.0, 1.0, 2.0, 0.0, 0.0], gradients=([1.0, 1.0], None)),
        Example(([[1, 2, 3]], [1]), [[2]], attributes={"axes": (-1,)}),
    )
    samples = (
        Sample((TensorSpec((4, 3)), ints(1, 6))),
        Sample((TensorSpec((2, 3, 4)), ints(5, 2)), {"axes": (0, -1)}),
        Sample((TensorSpec((2, 3)), ints(0, 4))),
    )
    rejections = (
        Rejection((TensorSpec((2, 3)), ints(4)), "shape has 1 sizes but there are 2 axes"),
        Rejection((TensorSpec((2,)), ints(-4)), "gives the shape (-4,)"),
    )

    def infer(self, x: TensorSpec, shape: TensorSpec, axes: Ints | None) -> TensorSpec:
        assert shape.value is not None
        return TensorSpec(self._wanted(x.shape, shape.value, axes), x.dtype)

    def forward(self, xp: Namespace, x: Array, shape: Ints, axes: Ints | None) -> Array:
        wanted = self._wanted(x.shape, shape, axes)
        kept = tuple(map(min, x.shape, wanted))
        cut = self._before(x.shape, kept)
        stops = tuple(start + size for start, size in zip(cut, kept, strict=True))
        return self._padded(xp, xp.slice(x, cut, stops, (1,) * len(kept)), wanted)

    def vjp(
        self,
        xp: Namespace,
        grad: Array,
        out: Array,
        x: Array,
        shape: Ints,
        axes: Ints | None,
    ) -> tuple[Any, ...]:
        def to_x() -> Array:
            kept = tuple(map(min, x.shape, grad.shape))
            added = self._before(grad.shape, kept)
            stops = tuple(start + size for start, size in zip(added, kept, strict=True))
            return self._padded(xp, xp.slice(grad, added, stops, (1,) * len(kept)), x.shape)

        return to_x, None

    def _wanted(self, shape: Shape, sizes: Any, axes: Ints | None) -> Shape:
        along = normalize_axes(tuple(range(len(shape))) if axes is None else axes, len(shape))
        if len(sizes) != len(along):
            raise Invalid(
                "SHAPE_MISMATCH", f"shape has {len(sizes)} sizes but there are {len(along)} axes"
            )
        wanted = list(shape)
        for axis, size in zip(along, sizes, strict=True):
            wanted[axis] = int(size)
        return checked_shape(tuple(wanted), "shape")

    def _before(self, longer: Shape, shorter: Shape) -> Shape:
        """How many of the longer tensor's elements lie before the shorter one."""
        return tuple((mine - theirs) // 2 for mine, theirs in zip(longer, shorter, strict=True))

    def _padded(self, xp: Namespace, x: Array, shape: Shape) -> Array:
        before = self._before(shape, x.shape)
        after = tuple(
            size - each - start for size, each, start in zip(shape, x.shape, before, strict=True)
        )
        return xp.pad(x, before, after)
