"""Convolution and its adjoint. The gradient of each is made of the other: both are in ONNX.

And the causal convolution of each channel, which carries its past from call to call.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar

from gradwire_server.errors import Invalid
from gradwire_server.gates.activations import sigmoid
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
)
from gradwire_server.gates.windows import (
    AUTO_PAD,
    DILATIONS,
    PADS,
    STRIDES,
    Windows,
    both_pads,
    gathered_elements,
    gathered_images,
    halves,
    numbers,
    place_windows,
    spatial_rank,
)
from gradwire_server.specs import ITEM_SIZES, Shape, TensorSpec

_INPUTS = (Input("X"), Input("W"), Input("B", optional=True))
_SHARED = (
    AUTO_PAD,
    DILATIONS,
    Attribute("group", "int", 1, doc="Parts of the channels that do not see each other."),
    Attribute("kernel_shape", "ints", doc="W's spatial sizes, which it must equal."),
    PADS,
    STRIDES,
)


@dataclass(frozen=True)
class _Batch:
    """What the engine's batch axis becomes: more images, or more groups where W has it too.

    `count` is 0 without a batch axis.
    """

    count: int
    in_weights: bool

    @staticmethod
    def of(x: Array, w: Array, rank: int) -> _Batch:
        in_weights = len(w.shape) > rank + 2
        if in_weights:
            return _Batch(w.shape[0], True)
        return _Batch(x.shape[0] if len(x.shape) > rank + 2 else 0, False)

    def stack(self, xp: Namespace, x: Array, rank: int) -> Array:
        """X, or a gradient, without the batch axis."""
        if not self.count:
            return x
        if not self.in_weights:
            return xp.reshape(x, (self.count * x.shape[1], *x.shape[2:]))
        if len(x.shape) == rank + 2:
            x = xp.broadcast_to(x, (self.count, *x.shape))
        count, images, channels, *sizes = x.shape
        by_image = xp.permute_dims(x, (1, 0, *range(2, len(x.shape))))
        return xp.reshape(by_image, (images, count * channels, *sizes))

    def unstack(self, xp: Namespace, x: Array) -> Array:
        """The inverse of `stack`."""
        if not self.count:
            return x
        images, channels, *sizes = x.shape
        if not self.in_weights:
            return xp.reshape(x, (self.count, images // self.count, channels, *sizes))
        by_image = xp.reshape(x, (images, self.count, channels // self.count, *sizes))
        return xp.permute_dims(by_image, (1, 0, *range(2, len(by_image.shape))))

    def stack_weights(self, xp: Namespace, w: Array) -> Array:
        if not self.in_weights:
            return w
        return xp.reshape(w, (w.shape[0] * w.shape[1], *w.shape[2:]))

    def unstack_weights(self, xp: Namespace, w: Array) -> Array:
        if not self.in_weights:
            return w
        return xp.reshape(w, (self.count, w.shape[0] // self.count, *w.shape[1:]))

    def groups(self, group: int) -> int:
        return self.count * group if self.in_weights else group


class _Convolution(Gate):
    """What both convolutions share: a kernel, a bias, and how a batch axis is put away.

    `place` gives the windows for X and W of these spatial sizes, `apply` computes without a bias
    and without a batch axis, and so do `pull_x` and `pull_w`.
    """

    #: Copies of what windows gather that are held at once, forward and back.
    copies: ClassVar[tuple[int, int]]

    inputs = _INPUTS

    def place(self, sizes: Shape, kernel: Shape, **attributes: Any) -> Any:
        raise NotImplementedError

    def apply(self, xp: Namespace, x: Array, w: Array, placed: Any, group: int) -> Array:
        raise NotImplementedError

    def pull_x(self, xp: Namespace, grad: Array, x: Array, w: Array, p: Any, group: int) -> Array:
        raise NotImplementedError

    def pull_w(self, xp: Namespace, grad: Array, x: Array, w: Array, p: Any, group: int) -> Array:
        raise NotImplementedError

    def scratch(
        self, outs: Sequence[TensorSpec], x: TensorSpec, w: TensorSpec, *b: Any, **attributes: Any
    ) -> Scratch:
        width, group = ITEM_SIZES[x.dtype], attributes.pop("group")
        shape, windows = self.seen(x, w, self.place(x.shape[2:], w.shape[2:], **attributes), group)
        gathered = gathered_elements(shape, windows)
        if gathered is None:  # of one element of the kernel at a time
            held = width * (x.size + prod(shape))
            return Scratch(held, held)
        images = min(x.shape[0], gathered_images(shape, windows))
        products = min(x.shape[0], gathered_images(shape, windows, w.size)) * w.nbytes
        forward, back = self.copies
        copies = back if x.shape[0] > 1 else 1
        return Scratch(
            forward * images * gathered * width, copies * images * gathered * width + 2 * products
        )

    def forward(
        self, xp: Namespace, x: Array, w: Array, b: Array | None = None, **attributes: Any
    ) -> Array:
        rank, group = _rank(w, attributes), attributes.pop("group")
        batch = _Batch.of(x, w, rank)
        placed = self.place(x.shape[len(x.shape) - rank :], w.shape[len(w.shape) - rank :],
                            **attributes)  # fmt: skip
        stacked, weights = batch.stack(xp, x, rank), batch.stack_weights(xp, w)
        out = self.apply(xp, stacked, weights, placed, batch.groups(group))
        out = batch.unstack(xp, out)
        if b is None:
            return out
        images = (1,) if len(b.shape) > 1 else ()
        return out + xp.reshape(b, (*b.shape[:-1], *images, b.shape[-1], *(1,) * rank))

    def vjp(
        self, xp: Namespace, grad: Array, out: Array, x: Array, w: Array, *b: Array | None,
        **attributes: Any,
    ) -> tuple[Any, ...]:  # fmt: skip
        rank, group = _rank(w, attributes), attributes.pop("group")
        batch = _Batch.of(x, w, rank)
        sizes, kernel = x.shape[len(x.shape) - rank :], w.shape[len(w.shape) - rank :]
        placed = self.place(sizes, kernel, **attributes)
        groups = batch.groups(group)
        weights = batch.stack_weights(xp, w)
        only_b_is_batched = not batch.count and len(grad.shape) > rank + 2
        to_product = xp.sum(grad, axis=(0,)) if only_b_is_batched else grad
        to_product = batch.stack(xp, to_product, rank)

        def to_x() -> Array:
            stacked = batch.stack(xp, x, rank)
            found = self.pull_x(xp, to_product, stacked, weights, placed, groups)
            return batch.unstack(xp, found)

        def to_w() -> Array:
            stacked = batch.stack(xp, x, rank)
            found = self.pull_w(xp, to_product, stacked, weights, placed, groups)
            return batch.unstack_weights(xp, found)

        def to_b() -> Array:
            lead = len(grad.shape) - rank - 2
            return xp.sum(grad, axis=(lead, *range(lead + 2, len(grad.shape))))

        return to_x, to_w, *(None if each is None else to_b for each in b)

    def _held(self, x: TensorSpec, w: TensorSpec, *b: Any, **attributes: Any) -> int:
        group = attributes.pop("group")
        shape, windows = self.seen(x, w, self.place(x.shape[2:], w.shape[2:], **attributes), group)
        elements = gathered_elements(shape, windows)
        if elements is None:  # of one element of the kernel at a time
            return x.size + prod(shape)
        images = gathered_images(shape, windows)
        products = gathered_images(shape, windows, w.size) * w.size
        return min(x.shape[0], images) * 2 * elements + min(x.shape[0] * w.size, products)

    def seen(self, x: TensorSpec, w: TensorSpec, placed: Any, group: int) -> tuple[Shape, Windows]:
        """The shape of the tensor that windows lie over, and the windows."""
        raise NotImplementedError

    def operations(
        self,
        outs: tuple[TensorSpec, ...],
        x: TensorSpec,
        w: TensorSpec,
        *b: Any,
        group: int,
        **attributes: Any,
    ) -> int:
        placed = self.place(x.shape[2:], w.shape[2:], **attributes)
        return convolving(x, w, self.seen(x, w, placed, group)[1], outs[0])

    def aligned_shapes(self, *specs: Any, **attributes: Any) -> tuple[Shape, ...] | None:
        """A batch axis is only told from a spatial one where an attribute says how many are."""
        if spatial_rank(attributes) is None:
            return None
        return tuple(() if spec is None else spec.shape for spec in specs)


class Conv(_Convolution):
    """Convolution: a window moves over the spatial axes, and each place yields a weighted sum.

    Formula:   Y[n, m, i] = B[m] + sum over c, k of W[m, c, k] * X[n, c, i * strides +
               k * dilations - pads]; X is 0 outside
    Gradient:  to X = ConvTranspose of grad by W;  to W = sum over n, i of grad[n, m, i] * X[n, c,
               i * strides + k * dilations - pads], a convolution of X by grad;  to B = sum of grad
    Shapes:    X [N, C, sizes], W [M, C / group, kernel], B [M] give [N, M, counts], with
               (size + both pads - (kernel - 1) * dilation - 1) // stride + 1 windows an axis.
    """

    operator = "Conv"
    copies = (1, 2)
    attributes = _SHARED
    examples = (
        Example(([[[1.0, 2.0, 4.0]]], [[[1.0, -1.0]]], [0.5]), [[[-0.5, -1.5]]],
                gradients=([[[1.0, 0.0, -1.0]]], [[[3.0, 6.0]]], [2.0])),
        Example(([[[[1.0, 2.0], [3.0, 4.0]]]], [[[[1.0, 0.0], [0.0, 1.0]]]]),
                [[[[1.0, 2.0, 0.0], [3.0, 5.0, 2.0], [0.0, 3.0, 4.0]]]],
                gradients=([[[[2.0, 2.0], [2.0, 2.0]]]], [[[[10.0, 10.0], [10.0, 10.0]]]]),
                attributes={"pads": (1, 1, 1, 1)}),
    )  # fmt: skip
    samples = tuple(
        Sample(tuple(shape if shape is None else TensorSpec(shape) for shape in shapes), attributes)
        for *shapes, attributes in (
            ((2, 3, 7), (4, 3, 3), (4,), {"kernel_shape": (3,)}),
            ((2, 4, 6, 5), (4, 2, 3, 2), (4,), {"group": 2, "strides": (2, 1)}),
            ((1, 3, 7, 7), (6, 1, 3, 3), {"group": 3, "dilations": (2, 3)}),
            ((2, 1, 5, 4), (3, 1, 2, 2), {"pads": (1, 0, 0, 2), "strides": (3, 2)}),
            ((1, 2, 4, 5, 3), (2, 2, 2, 3, 1), (2,), {"strides": (1, 2, 1)}),
            ((1, 1, 2, 3, 2, 2), (1, 1, 2, 1, 2, 1), {"kernel_shape": (2, 1, 2, 1)}),
            ((1, 1, 5, 6), (1, 1, 3, 2), {"auto_pad": "SAME_UPPER", "strides": (2, 2)}),
            ((1, 1, 5, 6), (1, 1, 2, 3), {"auto_pad": "SAME_LOWER"}),
            ((1, 1, 5), (1, 1, 2), {"auto_pad": "VALID", "strides": (4,)}),
            ((1, 1, 1), (1, 1, 4), {"pads": (4, 5), "dilations": (2,)}),
            ((2, 2), (3, 2), (3,), {}),
            ((0, 2, 3), (3, 2, 2), (3,), {"strides": (1,)}),
            ((2, 0, 3), (3, 0, 2), (3,), {}),
        )
    )
    rejections = (
        Rejection((TensorSpec((1, 3, 5, 5)), TensorSpec((2, 4, 3, 3))),
                  "X has 3 channels but W of shape (2, 4, 3, 3) needs 4 in 1 group(s)"),
        Rejection((TensorSpec((1, 4, 5)), TensorSpec((3, 2, 3))), attributes={"group": 2},
                  message="3 output channels are not divisible into 2 groups"),
        Rejection((TensorSpec((1, 1, 5)), TensorSpec((1, 1, 3, 3))),
                  "X has rank 3 but W has rank 4"),
        Rejection((TensorSpec((5,)), TensorSpec((3,))), "X has rank 1 but needs rank 2 or more"),
        Rejection((TensorSpec((1, 1, 2, 9)), TensorSpec((1, 1, 3, 3))),
                  "a window covers 3 elements but spatial axis 0 has 2 and 0 of padding"),
        Rejection((TensorSpec((1, 1, 5)), TensorSpec((2, 1, 3)), TensorSpec((3,))),
                  "B has shape (3,) but there are 2 output channels"),
        Rejection((TensorSpec((1, 1, 5)), TensorSpec((2, 1, 3))), reason="ATTRIBUTE_INVALID",
                  message="kernel_shape is (2,) but W has the kernel (3,)",
                  attributes={"kernel_shape": (2,)}),
        Rejection((TensorSpec((1, 1, 5)), TensorSpec((2, 1, 3))), reason="ATTRIBUTE_INVALID",
                  message="strides has 2 numbers but there are 1 spatial axes",
                  attributes={"strides": (2, 2)}),
        Rejection((TensorSpec((1, 1, 5)), TensorSpec((2, 1, 3))), reason="ATTRIBUTE_INVALID",
                  message="dilations is (0,) but must be 1 or more everywhere",
                  attributes={"dilations": (0,)}),
        Rejection((TensorSpec((1, 1, 5)), TensorSpec((2, 1, 3))), reason="ATTRIBUTE_INVALID",
                  message="pads is (1,) but must be 2 numbers", attributes={"pads": (1,)}),
        Rejection((TensorSpec((1, 1, 5)), TensorSpec((2, 1, 3))), reason="ATTRIBUTE_INVALID",
                  message="pads is (1, 1) but auto_pad is 'SAME_UPPER'",
                  attributes={"pads": (1, 1), "auto_pad": "SAME_UPPER"}),
        Rejection((TensorSpec((1, 1, 5)), TensorSpec((2, 1, 3))), reason="ATTRIBUTE_INVALID",
                  message="group is 0", attributes={"group": 0}),
        Rejection((TensorSpec((1, 1, 0)), TensorSpec((1, 1, 1))), "spatial axis 0 has size 0",
                  attributes={"auto_pad": "SAME_UPPER"}),
    )  # fmt: skip

    def infer(
        self, x: TensorSpec, w: TensorSpec, b: TensorSpec | None = None, *, group: int, **rest: Any
    ) -> TensorSpec:
        _check_ranks(x, w, rest["kernel_shape"])
        _check_groups(group, w.shape[0], "output")
        if x.shape[1] != w.shape[1] * group:
            raise Invalid(
                "SHAPE_MISMATCH",
                f"X has {x.shape[1]} channels but W of shape {w.shape} needs "
                f"{w.shape[1] * group} in {group} group(s)",
            )
        _check_bias(b, w.shape[0])
        windows = self.place(x.shape[2:], w.shape[2:], **rest)
        return TensorSpec((x.shape[0], w.shape[0], *windows.counts), x.dtype)

    def place(self, sizes: Shape, kernel: Shape, **attributes: Any) -> Windows:
        names = ("strides", "dilations", "pads", "auto_pad")
        return place_windows(sizes, kernel, **{name: attributes[name] for name in names})

    def seen(self, x: TensorSpec, w: TensorSpec, placed: Any, group: int) -> tuple[Shape, Windows]:
        return x.shape, placed

    def apply(self, xp: Namespace, x: Array, w: Array, placed: Windows, group: int) -> Array:
        return xp.convolve(x, w, placed, group)

    def pull_x(self, xp: Namespace, grad: Array, x: Array, w: Array, p: Any, group: int) -> Array:
        return xp.convolve_transposed(grad, w, p, x.shape[2:], group)

    def pull_w(self, xp: Namespace, grad: Array, x: Array, w: Array, p: Any, group: int) -> Array:
        return xp.convolve_weights(x, grad, p, group)


@dataclass(frozen=True)
class _Placed:
    """The windows over the output of a transposed convolution, all of them inside it."""

    windows: Windows
    sizes: Shape  # of the output, but for `lead`
    lead: Shape  # zeros before the first element, where output_shape asks for more than there is


class ConvTranspose(_Convolution):
    """Transposed convolution: each element of X adds a scaled kernel to the output.

    Formula:   Y[n, m, j] = B[m] + sum over c, i, k with j = i * strides + k * dilations - pads of
               X[n, c, i] * W[c, m, k]
    Gradient:  to X = Conv of grad by W;  to W = sum over n, i of X[n, c, i] * grad[n, m,
               i * strides + k * dilations - pads];  to B = sum of grad
    Shapes:    X [N, C, sizes], W [C, M / group, kernel], B [M] give [N, M, ..] with (size - 1) *
               stride + (kernel - 1) * dilation + 1 + output_padding - both pads elements an axis;
               or output_shape, where that is given, and pads are what makes it so.
    """

    operator = "ConvTranspose"
    copies = (2, 2)
    attributes = (
        *_SHARED,
        Attribute("output_padding", "ints", doc="More elements at the end of each axis; 0 by "
                  "default."),
        Attribute("output_shape", "ints", doc="Spatial sizes of the output; pads is not read."),
    )  # fmt: skip
    examples = (
        Example(([[[1.0, 2.0]]], [[[1.0, -1.0]]], [0.5]), [[[1.5, 1.5, -1.5]]],
                gradients=([[[0.0, 0.0]]], [[[3.0, 3.0]]], [3.0])),
        Example(([[[1.0, 2.0]]], [[[3.0]]]), [[[3.0, 0.0, 6.0, 0.0]]],
                gradients=([[[3.0, 3.0]]], [[[3.0]]]),
                attributes={"strides": (2,), "output_padding": (1,)}),
    )  # fmt: skip
    samples = tuple(
        Sample(tuple(map(TensorSpec, shapes)), attributes)
        for *shapes, attributes in (
            ((2, 3, 5), (3, 4, 3), (4,), {"kernel_shape": (3,)}),
            ((2, 4, 3, 2), (4, 2, 3, 2), (4,), {"group": 2, "strides": (2, 1)}),
            ((1, 3, 3, 2), (3, 1, 3, 3), {"group": 3, "dilations": (2, 3), "strides": (2, 2)}),
            ((2, 2, 3, 4), (2, 3, 2, 2), {"pads": (1, 0, 0, 2), "strides": (3, 2),
                                          "output_padding": (2, 1)}),
            ((1, 2, 3, 2, 2), (2, 2, 2, 3, 1), (2,), {"strides": (1, 2, 1)}),
            ((1, 1, 3, 4), (1, 1, 3, 2), {"auto_pad": "SAME_UPPER", "strides": (2, 2)}),
            ((1, 1, 3, 4), (1, 1, 2, 3), {"auto_pad": "SAME_LOWER"}),
            ((1, 1, 3), (1, 1, 2), {"auto_pad": "VALID", "strides": (4,)}),
            ((1, 2, 3, 3), (2, 1, 3, 3), {"strides": (3, 2), "output_shape": (10, 8)}),
            ((1, 1, 3), (1, 1, 2), {"output_shape": (9,), "auto_pad": "SAME_UPPER"}),
            ((1, 1, 3), (1, 1, 4), {"output_shape": (2,), "dilations": (2,)}),
            ((2, 2), (2, 3), (3,), {}),
            ((0, 2, 3), (2, 3, 2), (3,), {"strides": (1,)}),
            ((2, 0, 3), (0, 3, 2), (3,), {}),
        )
    )  # fmt: skip
    rejections = (
        Rejection((TensorSpec((1, 3, 5, 5)), TensorSpec((2, 4, 3, 3))),
                  "X has 3 channels but W of shape (2, 4, 3, 3) needs 2"),
        Rejection((TensorSpec((1, 3, 5)), TensorSpec((3, 2, 3))), attributes={"group": 2},
                  message="3 input channels are not divisible into 2 groups"),
        Rejection((TensorSpec((1, 1, 5)), TensorSpec((1, 2, 3)), TensorSpec((3,))),
                  "B has shape (3,) but there are 2 output channels"),
        Rejection((TensorSpec((1, 1, 1)), TensorSpec((1, 1, 2))), attributes={"pads": (1, 1)},
                  message="spatial axis 0 of the output would have size 0"),
        Rejection((TensorSpec((1, 1, 3)), TensorSpec((1, 1, 2))), reason="ATTRIBUTE_INVALID",
                  message="output_padding is (-1,) but must be 0 or more everywhere",
                  attributes={"output_padding": (-1,)}),
        Rejection((TensorSpec((1, 1, 3)), TensorSpec((1, 1, 2))), reason="ATTRIBUTE_INVALID",
                  message="output_shape has 2 numbers but there are 1 spatial axes",
                  attributes={"output_shape": (4, 4)}),
    )  # fmt: skip

    def infer(
        self, x: TensorSpec, w: TensorSpec, b: TensorSpec | None = None, *, group: int, **rest: Any
    ) -> TensorSpec:
        _check_ranks(x, w, rest["kernel_shape"])
        _check_groups(group, w.shape[0], "input")
        if x.shape[1] != w.shape[0]:
            raise Invalid(
                "SHAPE_MISMATCH",
                f"X has {x.shape[1]} channels but W of shape {w.shape} needs {w.shape[0]}",
            )
        _check_bias(b, w.shape[1] * group)
        placed = self.place(x.shape[2:], w.shape[2:], **rest)
        sizes = map(sum, zip(placed.sizes, placed.lead, strict=True))
        return TensorSpec((x.shape[0], w.shape[1] * group, *sizes), x.dtype)

    def place(self, sizes: Shape, kernel: Shape, **attributes: Any) -> _Placed:
        del attributes["kernel_shape"]  # is W's, and checked
        return _place_transposed(sizes, kernel, **attributes)

    def seen(self, x: TensorSpec, w: TensorSpec, placed: Any, group: int) -> tuple[Shape, Windows]:
        return (x.shape[0], w.shape[1] * group, *placed.sizes), placed.windows

    def apply(self, xp: Namespace, x: Array, w: Array, placed: _Placed, group: int) -> Array:
        out = xp.convolve_transposed(x, w, placed.windows, placed.sizes, group)
        if not any(placed.lead):
            return out
        rank = len(placed.lead)
        return xp.pad(out, (0, 0, *placed.lead), (0,) * (2 + rank))

    def pull_x(
        self, xp: Namespace, grad: Array, x: Array, w: Array, placed: _Placed, group: int
    ) -> Array:
        return xp.convolve(_without_lead(xp, grad, placed), w, placed.windows, group)

    def pull_w(
        self, xp: Namespace, grad: Array, x: Array, w: Array, placed: _Placed, group: int
    ) -> Array:
        return xp.convolve_weights(_without_lead(xp, grad, placed), x, placed.windows, group)


def _place_transposed(
    sizes: Shape,
    kernel: Shape,
    *,
    auto_pad: str,
    dilations: Shape | None,
    pads: Shape | None,
    strides: Shape | None,
    output_padding: Shape | None,
    output_shape: Shape | None,
) -> _Placed:
    """The windows over the output (ATTRIBUTE_INVALID, SHAPE_MISMATCH)."""
    rank = len(sizes)
    strides = numbers("strides", strides, rank, 1, 1)
    dilations = numbers("dilations", dilations, rank, 1, 1)
    extra = numbers("output_padding", output_padding, rank, 0, 0)
    windows = Windows(kernel, strides, dilations, (0,) * rank, (0,) * rank, sizes)
    whole = tuple(map(sum, zip(windows.reach, extra, strict=True)))
    if output_shape is None and auto_pad.startswith("SAME"):
        output_shape = tuple(size * stride for size, stride in zip(sizes, strides, strict=True))
    if output_shape is None:
        before, after = both_pads(pads, auto_pad, rank)
        wanted = tuple(
            size - front - back for size, front, back in zip(whole, before, after, strict=True)
        )
    else:
        wanted = numbers("output_shape", output_shape, rank, 1, 1)
        cut = tuple(size - want for size, want in zip(whole, wanted, strict=True))
        before, _ = halves(cut, auto_pad == "SAME_UPPER")
    for axis, size in enumerate(wanted):
        if size < 1:
            raise Invalid(
                "SHAPE_MISMATCH",
                f"spatial axis {axis} of the output would have size {size}; pads are too many",
            )
    lead = tuple(max(0, -front) for front in before)
    inside = tuple(size - first for size, first in zip(wanted, lead, strict=True))
    front = tuple(max(0, each) for each in before)
    return _Placed(Windows(kernel, strides, dilations, front, (0,) * rank, sizes), inside, lead)


def _without_lead(xp: Namespace, grad: Array, placed: _Placed) -> Array:
    if not any(placed.lead):
        return grad
    rank = 2 + len(placed.lead)
    return xp.slice(grad, (0, 0, *placed.lead), (None,) * rank, (1,) * rank)


class CausalConvWithState(Gate):
    """Convolution of each channel by itself over its present and past, with the past carried on.

    Formula:   z = past_state then input;  u[n, c, i] = bias[c] + sum over k of weight[c, 0, k] *
               z[n, c, i + k];  output = u, or u / (1 + exp(-u)) for silu;  present_state = z's last
               K - 1 elements
    Gradient:  to u = grad, or grad * (s + u * s * (1 - s)) with s = 1 / (1 + exp(-u));  to z =
               ConvTranspose of that by weight, plus present_state's grad at z's end;  to weight =
               sum over n, i of to u[n, c, i] * z[n, c, i + k];  to bias = sum of to u
    Shapes:    input [N, C, L], weight [C, 1, K], bias [C], past_state [N, C, K - 1], zeros if left
               out; output is as input, present_state as past_state.
    """

    operator = "CausalConvWithState"
    inputs = (
        Input("input"),
        Input("weight"),
        Input("bias", optional=True),
        Input("past_state", optional=True),
    )
    attributes = (
        Attribute("activation", "string", "none", choices=("none", "silu", "swish"),
                  doc="What is applied to the sum; silu and swish are one function."),
    )  # fmt: skip
    outputs = (1, 2)
    examples = (
        Example(
            ([[[1.0, 2.0]]], [[[3.0, 4.0]]], [0.5], [[[5.0]]]),
            ([[[19.5, 11.5]]], [[[2.0]]]),
            gradients=([[[7.0, 4.0]]], [[[6.0, 3.0]]], [2.0], [[[3.0]]]),
        ),
        Example(
            ([[[0.0, 1.0]]], [[[1.0]]]), ([[[0.0, 0.7310585786300049]]],),
            gradients=([[[0.5, 0.9276705118714868]]], [[[0.9276705118714868]]]),
            attributes={"activation": "silu"},
        ),
    )  # fmt: skip
    samples = tuple(
        Sample(tuple(shape if shape is None else TensorSpec(shape) for shape in shapes), attributes)
        for *shapes, attributes in (
            ((2, 3, 5), (3, 1, 4), (3,), (2, 3, 3), {"activation": "silu"}),
            ((2, 3, 2), (3, 1, 4), None, (2, 3, 3), {"activation": "swish"}),
            ((2, 3, 1), (3, 1, 3), (3,), {}),
            ((1, 2, 4), (2, 1, 1), None, (1, 2, 0), {"activation": "silu"}),
            ((0, 2, 4), (2, 1, 2), {}),
        )
    )
    rejections = (
        Rejection((TensorSpec((3, 5)), TensorSpec((3, 1, 2))),
                  "input has shape (3, 5) but must be [N, C, L], C and L 1 or more"),
        Rejection((TensorSpec((2, 0, 5)), TensorSpec((0, 1, 2))),
                  "input has shape (2, 0, 5) but must be [N, C, L], C and L 1 or more"),
        Rejection((TensorSpec((2, 3, 5)), TensorSpec((4, 1, 2))),
                  "weight has shape (4, 1, 2) but must be [3, 1, K], K 1 or more"),
        Rejection((TensorSpec((2, 3, 5)), TensorSpec((3, 1, 2)), TensorSpec((2,))),
                  "bias has shape (2,) but must have (3,)"),
        Rejection((TensorSpec((2, 3, 5)), TensorSpec((3, 1, 2)), None, TensorSpec((2, 3, 2))),
                  "past_state has shape (2, 3, 2) but must have (2, 3, 1)"),
    )  # fmt: skip

    def infer(
        self,
        x: TensorSpec,
        weight: TensorSpec,
        bias: TensorSpec | None = None,
        past: TensorSpec | None = None,
        **_: str,
    ) -> tuple[TensorSpec, ...]:
        if x.rank != 3 or not prod(x.shape[1:]):
            raise Invalid(
                "SHAPE_MISMATCH",
                f"input has shape {x.shape} but must be [N, C, L], C and L 1 or more",
            )
        rows, channels, _length = x.shape
        if weight.rank != 3 or weight.shape[:2] != (channels, 1) or not weight.shape[2]:
            raise Invalid(
                "SHAPE_MISMATCH",
                f"weight has shape {weight.shape} but must be [{channels}, 1, K], K 1 or more",
            )
        state = (rows, channels, weight.shape[2] - 1)
        for name, spec, wanted in (("bias", bias, (channels,)), ("past_state", past, state)):
            if spec is not None and spec.shape != wanted:
                raise Invalid(
                    "SHAPE_MISMATCH", f"{name} has shape {spec.shape} but must have {wanted}"
                )
        return x, TensorSpec(state, x.dtype)

    def scratch(
        self,
        outs: Sequence[TensorSpec],
        x: TensorSpec,
        weight: TensorSpec,
        bias: Any = None,
        past: Any = None,
        **how: Any,
    ) -> Scratch:
        held = self._held(x, weight, **how) * ITEM_SIZES[x.dtype]
        if how["activation"] == "none":
            return Scratch(held, held)
        several = past is not None and len(outs) > 1
        return Scratch(int(5.15 * x.nbytes), int((8 if several else 5.2) * x.nbytes))

    def forward(
        self,
        xp: Namespace,
        x: Array,
        weight: Array,
        bias: Array | None = None,
        past: Array | None = None,
        *,
        activation: str,
    ) -> tuple[Any, ...]:
        joined = _behind(xp, past, x, weight)
        total = self._sum(xp, joined, weight, bias)
        out = total if activation == "none" else total * sigmoid(xp, total)
        return out, lambda: _cut(xp, joined, x.shape[2], None)

    def vjp(
        self, xp: Namespace, grad: Any, out: Any, x: Array, weight: Array,
        *rest: Array | None, activation: str,
    ) -> tuple[Any, ...]:  # fmt: skip
        bias, past = (*rest, None, None)[:2]
        to_out, to_present = (*grad, None)[:2]
        joined = _behind(xp, past, x, weight)
        length, before = x.shape[2], weight.shape[2] - 1
        windows = _causal(length, weight.shape[2])
        to_sum = xp.zeros_like(x) if to_out is None else to_out
        if activation != "none":
            total = self._sum(xp, joined, weight, bias)
            part = sigmoid(xp, total)
            to_sum = to_sum * (part + total * part * (1.0 - part))

        def to_joined() -> Array:
            sizes = (length + before,)
            found = xp.convolve_transposed(to_sum, weight, windows, sizes, x.shape[1])
            if to_present is None:
                return found
            return found + xp.pad(to_present, (0, 0, length), (0, 0, 0))

        found = (
            lambda: _cut(xp, to_joined(), before, None),
            lambda: xp.convolve_weights(joined, to_sum, windows, x.shape[1]),
            None if bias is None else lambda: xp.sum(to_sum, axis=(0, 2)),
            None if past is None else lambda: _cut(xp, to_joined(), 0, before),
        )
        return found[: 2 + len(rest)]

    def operations(
        self, outs: tuple[TensorSpec, ...], x: TensorSpec, weight: TensorSpec, *_: Any, **__: str
    ) -> int:
        return convolving(x, weight, _causal(x.shape[2], weight.shape[2]), outs[0]) + 4 * x.size

    def _held(self, x: TensorSpec, weight: TensorSpec, *_: Any, **__: str) -> int:
        size, kernel = x.shape[2], weight.shape[2]
        joined = x.shape[0] * x.shape[1] * (size + kernel - 1)
        gathered = gathered_elements(x.shape, _causal(size, kernel))
        if gathered is None:
            return 2 * joined + x.size
        images = min(x.shape[0], gathered_images(x.shape, _causal(size, kernel)))
        return joined + images * 2 * gathered

    def _sum(self, xp: Namespace, joined: Array, weight: Array, bias: Array | None) -> Array:
        kernel = weight.shape[2]
        windows = _causal(joined.shape[2] - kernel + 1, kernel)
        total = xp.convolve(joined, weight, windows, joined.shape[1])
        return total if bias is None else total + xp.reshape(bias, (-1, 1))


def convolving(x: TensorSpec, w: TensorSpec, windows: Windows, out: TensorSpec) -> int:
    """Operations of a convolution: each window of each image meets each weight."""
    return x.shape[0] * prod(windows.counts) * w.size + x.size + w.size + 2 * out.size


def _causal(length: int, kernel: int) -> Windows:
    """Windows over the past and the present, one for each element of the present."""
    return Windows((kernel,), (1,), (1,), (0,), (0,), (length,))


def _behind(xp: Namespace, past: Array | None, x: Array, weight: Array) -> Array:
    """The past, or zeros, and then the present."""
    if past is None:
        return xp.pad(x, (0, 0, weight.shape[2] - 1), (0, 0, 0))
    return xp.concat((past, x), axis=2)


def _cut(xp: Namespace, x: Array, start: int, stop: int | None) -> Array:
    return xp.slice(x, (0, 0, start), (None, None, stop), (1, 1, 1))


def _rank(w: Array, attributes: dict[str, Any]) -> int:
    """The number of spatial axes; a batch axis is there only where an attribute tells."""
    found = spatial_rank(attributes)
    return len(w.shape) - 2 if found is None else found


def _check_ranks(x: TensorSpec, w: TensorSpec, kernel_shape: Shape | None) -> None:
    if x.rank < 2:
        raise Invalid("SHAPE_MISMATCH", f"X has rank {x.rank} but needs rank 2 or more")
    if x.rank != w.rank:
        raise Invalid("SHAPE_MISMATCH", f"X has rank {x.rank} but W has rank {w.rank}")
    if 0 in w.shape[2:]:
        raise Invalid("SHAPE_MISMATCH", f"W has the kernel {w.shape[2:]}, which has no elements")
    if kernel_shape is not None and kernel_shape != w.shape[2:]:
        raise Invalid(
            "ATTRIBUTE_INVALID",
            f"kernel_shape is {kernel_shape} but W has the kernel {w.shape[2:]}",
            attribute="kernel_shape",
        )


def _check_groups(group: int, channels: int, side: str) -> None:
    if group < 1:
        raise Invalid(
            "ATTRIBUTE_INVALID", f"group is {group} but must be 1 or more", attribute="group"
        )
    if channels % group:
        raise Invalid(
            "SHAPE_MISMATCH", f"{channels} {side} channels are not divisible into {group} groups"
        )


def _check_bias(b: TensorSpec | None, channels: int) -> None:
    if b is not None and b.shape != (channels,):
        raise Invalid(
            "SHAPE_MISMATCH", f"B has shape {b.shape} but there are {channels} output channels"
        )
