"""Reductions: sums, means, extremes, products and norms along axes; running sums."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, prod
from typing import Any

from gradwire_server.errors import Invalid
from gradwire_server.gates.base import (
    Array,
    Attribute,
    AttributeValue,
    Example,
    Gate,
    Input,
    Namespace,
    Rejection,
    Sample,
    Scratch,
    guarded,
)
from gradwire_server.specs import (
    FLOATS,
    INDICES,
    NUMBERS,
    Shape,
    TensorSpec,
    normalize_axes,
    normalize_axis,
)

Axes = tuple[int, ...]

#: What ONNX lets these operators reduce.
_SUMMED = (*FLOATS, "int32", "int64", "uint32", "uint64")
_ORDERED = (*_SUMMED, "int8", "uint8", "bool")

_KEEPDIMS = Attribute(
    "keepdims", "int", 1, choices=(0, 1), doc="1 leaves every reduced axis in place, of size 1."
)


def _axes(*axes: int) -> TensorSpec:
    return TensorSpec((len(axes),), "int64", axes)


class Reduction(Gate):
    """Many elements become one, along the axes given.

    A reduction says how in `reduce`, and in `pull` what its gradient is; both get the axes
    counted from the front, and `pull` a gradient whose reduced axes are there, of size 1.
    """

    attributes = (
        _KEEPDIMS,
        Attribute("noop_with_empty_axes", "int", 0, choices=(0, 1),
                  doc="1 reduces along no axis, 0 along all, where no axes are given."),
    )  # fmt: skip
    samples = (
        Sample((TensorSpec(()),)),
        Sample((TensorSpec((3,)),), {"keepdims": 0}),
        Sample((TensorSpec((2, 3, 4)), _axes(0, -1))),
        Sample((TensorSpec((2, 5, 3)), _axes(1)), {"keepdims": 0}),
        Sample((TensorSpec((2, 3, 4)), _axes(-1, -2)), {"keepdims": 0}),
        Sample((TensorSpec((2, 3)), None)),
        Sample((TensorSpec((2, 3)), _axes()), {"keepdims": 0}),
        Sample((TensorSpec((2, 3)),), {"noop_with_empty_axes": 1}),
        Sample((TensorSpec((2, 3)), _axes()), {"noop_with_empty_axes": 1, "keepdims": 0}),
        Sample((TensorSpec((0, 3)), _axes(0))),
        Sample((TensorSpec((0, 3)), _axes(-1)), {"keepdims": 0}),
    )
    rejections = (
        Rejection((TensorSpec((2, 3)), _axes(2)), reason="ATTRIBUTE_INVALID",
                  message="axis 2 is outside a tensor of rank 2"),
        Rejection((TensorSpec((2, 3)), _axes(1, -1)), reason="ATTRIBUTE_INVALID",
                  message="axes (1, -1) name one axis twice"),
        Rejection((TensorSpec((2, 3)), TensorSpec((), "int64", (1,))),
                  message="axes has rank 0 but must be a list (rank 1)"),
        Rejection((TensorSpec((2, 3)), TensorSpec((1,), "int64")), reason="INPUT_NOT_KNOWN",
                  message="the elements of axes must be known"),
    )  # fmt: skip

    def reduce(self, xp: Namespace, data: Array, axes: Axes, keepdims: bool) -> Array:
        """The output."""
        raise NotImplementedError

    def pull(self, xp: Namespace, grad: Array, out: Array, data: Array, axes: Axes) -> Array:
        """The gradient of data."""
        raise NotImplementedError

    def infer(
        self,
        data: TensorSpec,
        axes: TensorSpec | None = None,
        *,
        keepdims: int,
        noop_with_empty_axes: int,
    ) -> TensorSpec:
        if axes is not None and axes.rank != 1:
            raise Invalid(
                "SHAPE_MISMATCH",
                f"axes has rank {axes.rank} but must be a list (rank 1)",
            )
        given = None if axes is None else axes.value
        reduced = _reduced(given, data.rank, noop_with_empty_axes)
        return TensorSpec(_without(data.shape, reduced, keepdims), data.dtype)

    def forward(
        self,
        xp: Namespace,
        data: Array,
        axes: Axes | None = None,
        *,
        keepdims: int,
        noop_with_empty_axes: int,
    ) -> Array:
        reduced = _reduced(axes, len(data.shape), noop_with_empty_axes)
        return self.reduce(xp, data, reduced, bool(keepdims))

    def vjp(
        self,
        xp: Namespace,
        grad: Array,
        out: Array,
        data: Array,
        *axes: Axes | None,
        keepdims: int,
        noop_with_empty_axes: int,
    ) -> tuple[Any, ...]:
        given = axes[0] if axes else None
        reduced = _reduced(given, len(data.shape), noop_with_empty_axes)
        to_data = self.pull(xp, _kept(xp, grad, data, reduced), out, data, reduced)
        return (to_data, *(None for _ in axes))

    def aligned_shapes(self, *specs: Any, **attributes: Any) -> tuple[Shape, ...] | None:
        """Axes counted from the end stay where they are when a batch axis comes first."""
        given = specs[1].value if len(specs) > 1 and specs[1] is not None else ()
        noop = bool(attributes["noop_with_empty_axes"])
        if any(axis >= 0 for axis in given) or (not given and not noop):
            return None
        return tuple(() if spec is None else spec.shape for spec in specs)


def _inputs(
    dtypes: tuple[str, ...] = _SUMMED, domain: tuple[float, float] = (-2.0, 2.0)
) -> tuple[Input, ...]:
    return (
        Input("data", dtypes, domain=domain),
        Input("axes", ("int64",), group="axes", optional=True, known=True),
    )


class ReduceSum(Reduction):
    """Sum along axes.

    Formula:   out = sum of data
    Gradient:  d out/d data = 1
    Shapes:    axes are lost, or of size 1 with keepdims; all axes where none are given, unless
               noop_with_empty_axes. Nothing sums to 0.
    """

    operator = "ReduceSum"
    passes_grad = "to the first"
    inputs = _inputs()
    examples = (
        Example(([[1.0, 2.0], [3.0, 4.0]],), [[10.0]], gradients=([[1.0, 1.0], [1.0, 1.0]],)),
        Example(([[1.0, 2.0], [3.0, 4.0]], [1]), [3.0, 7.0],
                gradients=([[1.0, 1.0], [1.0, 1.0]], None), attributes={"keepdims": 0}),
        Example(([[1, 2], [3, 4]], [0]), [[4, 6]]),
    )  # fmt: skip

    def reduce(self, xp: Namespace, data: Array, axes: Axes, keepdims: bool) -> Array:
        return xp.sum(data, axis=axes, keepdims=keepdims, dtype=data.dtype)

    def pull(self, xp: Namespace, grad: Array, out: Array, data: Array, axes: Axes) -> Array:
        return xp.broadcast_to(grad, data.shape)


class ReduceMean(Reduction):
    """Mean along axes.

    Formula:   out = (sum of data) / n,  n elements each; of integers, rounded towards zero
    Gradient:  d out/d data = 1 / n
    Shapes:    axes are lost, or of size 1 with keepdims; all axes where none are given, unless
               noop_with_empty_axes. The mean of nothing is NaN; of no integers, 0.
    """

    operator = "ReduceMean"
    passes_grad = "to the first"
    inputs = _inputs()
    examples = (
        Example(([[1.0, 2.0], [3.0, 6.0]],), [[3.0]], gradients=([[0.25, 0.25], [0.25, 0.25]],)),
        Example(([[1.0, 2.0], [3.0, 6.0]], [-1]), [1.5, 4.5],
                gradients=([[0.5, 0.5], [0.5, 0.5]], None), attributes={"keepdims": 0}),
        Example(([[1, 2], [-4, -5]], [1]), [[1], [-4]]),
    )  # fmt: skip

    def reduce(self, xp: Namespace, data: Array, axes: Axes, keepdims: bool) -> Array:
        total = xp.sum(data, axis=axes, keepdims=keepdims, dtype=data.dtype)
        count = _count(data.shape, axes)
        if str(data.dtype) in FLOATS:
            return xp.divide(total, count)
        return xp.astype(xp.divide(total, count or 1), data.dtype)

    def pull(self, xp: Namespace, grad: Array, out: Array, data: Array, axes: Axes) -> Array:
        return xp.broadcast_to(grad / (_count(data.shape, axes) or 1), data.shape)


class ReduceMax(Reduction):
    """Largest element along axes.

    Formula:   out = max of data
    Gradient:  d out/d data = 1 for the largest element, 0 for the others
    Kinks:     where several are largest, they share the gradient equally.
    Shapes:    axes are lost, or of size 1 with keepdims; all axes where none are given, unless
               noop_with_empty_axes. Of nothing: minus infinity, or the type's lowest number.
    """

    operator = "ReduceMax"
    scratch_arrays = (0, 1.2)
    inputs = _inputs(_ORDERED)
    examples = (
        Example(([[1.0, 5.0], [4.0, 3.0]], [1]), [[5.0], [4.0]],
                gradients=([[0.0, 1.0], [1.0, 0.0]], None)),
        Example(([2.0, 2.0, 1.0, 2.0, 2.0],), 2.0, gradients=([0.25, 0.25, 0.0, 0.25, 0.25],),
                attributes={"keepdims": 0}, at_kink=True),
        Example(([[1, 5], [4, 3]], [0]), [[4, 5]]),
        Example(([False, True],), [True]),
    )  # fmt: skip

    def reduce(self, xp: Namespace, data: Array, axes: Axes, keepdims: bool) -> Array:
        return xp.max(data, axis=axes, keepdims=keepdims)

    def pull(self, xp: Namespace, grad: Array, out: Array, data: Array, axes: Axes) -> Array:
        return grad * _share(xp, _kept(xp, out, data, axes), data, axes)


class ReduceMin(Reduction):
    """Smallest element along axes.

    Formula:   out = min of data
    Gradient:  d out/d data = 1 for the smallest element, 0 for the others
    Kinks:     where several are smallest, they share the gradient equally.
    Shapes:    axes are lost, or of size 1 with keepdims; all axes where none are given, unless
               noop_with_empty_axes. Of nothing: infinity, or the type's highest number.
    """

    operator = "ReduceMin"
    scratch_arrays = (0, 1.2)
    inputs = _inputs(_ORDERED)
    examples = (
        Example(([[1.0, 5.0], [4.0, 3.0]], [1]), [[1.0], [3.0]],
                gradients=([[1.0, 0.0], [0.0, 1.0]], None)),
        Example(([2.0, 1.0, 1.0],), 1.0, gradients=([0.0, 0.5, 0.5],),
                attributes={"keepdims": 0}, at_kink=True),
        Example(([[1, 5], [4, 3]], [0]), [[1, 3]]),
        Example(([False, True],), [False]),
    )  # fmt: skip

    def reduce(self, xp: Namespace, data: Array, axes: Axes, keepdims: bool) -> Array:
        return xp.min(data, axis=axes, keepdims=keepdims)

    def pull(self, xp: Namespace, grad: Array, out: Array, data: Array, axes: Axes) -> Array:
        return grad * _share(xp, _kept(xp, out, data, axes), data, axes)


class ReduceProd(Reduction):
    """Product along axes.

    Formula:   out = product of data
    Gradient:  d out/d data[i] = product of the others, data[j] with j != i; nothing is divided,
               so zeros are exact, in every order
    Accuracy:  values within n / 2 ulp for n factors, each product of which rounds; gradients alike.
    Shapes:    axes are lost, or of size 1 with keepdims; all axes where none are given, unless
               noop_with_empty_axes. The product of nothing is 1.
    """

    operator = "ReduceProd"
    scratch_arrays = (0, 2)
    inputs = _inputs()
    examples = (
        Example(([[1.0, 2.0], [3.0, 4.0]],), [[24.0]], gradients=([[24.0, 12.0], [8.0, 6.0]],)),
        Example(([2.0, 0.0, 5.0],), 0.0, gradients=([0.0, 10.0, 0.0],),
                attributes={"keepdims": 0}),
        Example(([[2.0, 0.0, 0.0], [1.0, 2.0, 3.0]], [-1]), [[0.0], [6.0]],
                gradients=([[0.0, 0.0, 0.0], [6.0, 3.0, 2.0]], None)),
        Example(([[1, 2], [3, 4]], [0]), [[3, 8]]),
    )  # fmt: skip

    def reduce(self, xp: Namespace, data: Array, axes: Axes, keepdims: bool) -> Array:
        return xp.prod(data, axis=axes, keepdims=keepdims, dtype=data.dtype)

    def pull(self, xp: Namespace, grad: Array, out: Array, data: Array, axes: Axes) -> Array:
        if not axes:
            return grad
        count = _count(data.shape, axes)
        if not count:
            return xp.zeros_like(data)
        # the factors of one product side by side, on a last axis
        order = (*(axis for axis in range(len(data.shape)) if axis not in axes), *axes)
        products = tuple(data.shape[axis] for axis in order[: -len(axes)])
        ordered = xp.permute_dims(data, order)
        factors = xp.reshape(ordered, (*products, count))
        to_factors = _pull_product(xp, xp.reshape(grad, (*products, 1)), factors)
        back = tuple(order.index(axis) for axis in range(len(order)))
        return xp.permute_dims(xp.reshape(to_factors, ordered.shape), back)


class ReduceL1(Reduction):
    """Sum of absolute values along axes.

    Formula:   out = sum of |data|
    Gradient:  d out/d data = sign(data)
    Kinks:     0 where data = 0.
    Shapes:    axes are lost, or of size 1 with keepdims; all axes where none are given, unless
               noop_with_empty_axes. Nothing gives 0.
    """

    operator = "ReduceL1"
    scratch_arrays = (1, 1)
    inputs = _inputs()
    examples = (
        Example(([[1.0, -2.0], [-3.0, 4.0]],), [[10.0]], gradients=([[1.0, -1.0], [-1.0, 1.0]],)),
        Example(([1.0, 0.0],), 1.0, gradients=([1.0, 0.0],),
                attributes={"keepdims": 0}, at_kink=True),
        Example(([[1, -2], [-3, 4]], [0]), [[4, 6]]),
    )  # fmt: skip

    def reduce(self, xp: Namespace, data: Array, axes: Axes, keepdims: bool) -> Array:
        return xp.sum(xp.abs(data), axis=axes, keepdims=keepdims, dtype=data.dtype)

    def pull(self, xp: Namespace, grad: Array, out: Array, data: Array, axes: Axes) -> Array:
        return grad * xp.sign(data)


class ReduceL2(Reduction):
    """Euclidean norm along axes.

    Formula:   out = sqrt(sum of data^2), without overflow; of integers, rounded towards zero
    Gradient:  d out/d data = data / out
    Kinks:     0 where out = 0.
    Shapes:    axes are lost, or of size 1 with keepdims; all axes where none are given, unless
               noop_with_empty_axes. Nothing gives 0.
    """

    operator = "ReduceL2"
    scratch_arrays = (2, 2.5)
    inputs = _inputs()
    examples = (
        Example(([[3.0, 4.0], [5.0, -12.0]], [1]), [[5.0], [13.0]],
                gradients=([[0.6, 0.8], [0.38461538461538464, -0.9230769230769231]], None)),
        Example(([3e200, 4e200],), 5e200, gradients=([0.6, 0.8],),
                attributes={"keepdims": 0}, at_kink=True),
        Example(([0.0, 0.0],), [0.0], gradients=([0.0, 0.0],), at_kink=True),
        Example(([[3, 4], [1, 1]], [1]), [[5], [1]]),
    )  # fmt: skip

    def reduce(self, xp: Namespace, data: Array, axes: Axes, keepdims: bool) -> Array:
        if str(data.dtype) not in FLOATS:
            exact = xp.astype(data, "float64")
            norm = xp.sqrt(xp.sum(exact * exact, axis=axes, keepdims=keepdims))
            return xp.astype(norm, data.dtype)
        largest = xp.max(xp.abs(data), axis=axes, keepdims=True)
        usable = xp.logical_and(xp.greater(largest, 0.0), xp.logical_not(xp.isinf(largest)))
        scale = xp.where(usable, largest, 1.0)
        scaled = data / scale
        norm = scale * xp.sqrt(xp.sum(scaled * scaled, axis=axes, keepdims=True))
        return norm if keepdims else xp.squeeze(norm, axis=axes)

    def pull(self, xp: Namespace, grad: Array, out: Array, data: Array, axes: Axes) -> Array:
        norm = _kept(xp, out, data, axes)
        is_zero = xp.equal(norm, 0.0)
        direction = data / xp.where(is_zero, 1.0, norm)
        return xp.where(is_zero, 0.0, grad * direction)


class ReduceLogSum(Reduction):
    """Logarithm of a sum along axes.

    Formula:   out = log(sum of data)
    Gradient:  d out/d data = 1 / (sum of data)
    Shapes:    axes are lost, or of size 1 with keepdims; all axes where none are given, unless
               noop_with_empty_axes. Nothing gives minus infinity.
    """

    operator = "ReduceLogSum"
    passes_grad = "to the first"
    inputs = _inputs(FLOATS, domain=(0.5, 3.0))
    examples = (
        Example(([[1.0, 3.0], [2.0, 8.0]], [1]), [[1.3862943611198906], [2.302585092994046]],
                gradients=([[0.25, 0.25], [0.1, 0.1]], None)),
        Example(([2.0, 3.0],), 1.6094379124341003, gradients=([0.2, 0.2],),
                attributes={"keepdims": 0}),
    )  # fmt: skip

    def reduce(self, xp: Namespace, data: Array, axes: Axes, keepdims: bool) -> Array:
        return xp.log(xp.sum(data, axis=axes, keepdims=keepdims))

    def pull(self, xp: Namespace, grad: Array, out: Array, data: Array, axes: Axes) -> Array:
        to_sum = guarded(xp, grad, 1.0 / _sum(xp, data, axes))
        return xp.broadcast_to(to_sum, data.shape)


class ReduceLogSumExp(Reduction):
    """Logarithm of a sum of exponentials along axes: a smooth maximum.

    Formula:   out = log(sum of exp(data)), without overflow
    Gradient:  d out/d data = exp(data - m) / (sum of exp(data - m)), m the largest: the softmax
    Kinks:     0 where all are minus infinity; elements of plus infinity share it equally.
    Shapes:    axes are lost, or of size 1 with keepdims; all axes where none are given, unless
               noop_with_empty_axes. Nothing gives minus infinity.
    """

    operator = "ReduceLogSumExp"
    scratch_arrays = (2, 4)
    inputs = _inputs(FLOATS)
    examples = (
        Example(([[1.0, 1.0], [0.0, 1.0]], [1]), [[1.6931471805599454], [1.3132616875182228]],
                gradients=([[0.5, 0.5], [0.2689414213699951, 0.7310585786300049]], None)),
        Example(([1000.0, 1000.0],), 1000.6931471805599, gradients=([0.5, 0.5],),
                attributes={"keepdims": 0}),
        Example(([-inf, 0.0],), [0.0], gradients=([0.0, 1.0],), at_kink=True),
        Example(([-inf, -inf],), [-inf], gradients=([0.0, 0.0],), at_kink=True),
        Example(([1.0, inf],), [inf], gradients=([0.0, 1.0],), at_kink=True),
        Example(([inf, inf, 0.0],), [inf], gradients=([0.5, 0.5, 0.0],), at_kink=True),
    )  # fmt: skip

    def reduce(self, xp: Namespace, data: Array, axes: Axes, keepdims: bool) -> Array:
        largest = xp.max(data, axis=axes, keepdims=True)
        shift = xp.where(xp.isinf(largest), 0.0, largest)
        total = xp.sum(xp.exp(data - shift), axis=axes, keepdims=True)
        out = xp.log(total) + shift
        return out if keepdims else xp.squeeze(out, axis=axes)

    def pull(self, xp: Namespace, grad: Array, out: Array, data: Array, axes: Axes) -> Array:
        largest = xp.max(data, axis=axes, keepdims=True)
        # an infinite largest element is nearer to itself than anything else: 1 and 0, not NaN
        at_infinity = xp.where(xp.equal(data, largest), xp.zeros_like(data), -inf)
        parts = xp.exp(xp.where(xp.isinf(largest), at_infinity, data - largest))
        share = parts / _sum(xp, parts, axes)
        return grad * xp.where(xp.equal(largest, -inf), 0.0, share)


class ReduceSumSquare(Reduction):
    """Sum of squares along axes.

    Formula:   out = sum of data^2
    Gradient:  d out/d data = 2 * data
    Shapes:    axes are lost, or of size 1 with keepdims; all axes where none are given, unless
               noop_with_empty_axes: then out = data^2. Nothing gives 0.
    """

    operator = "ReduceSumSquare"
    scratch_arrays = (1, 0)
    inputs = _inputs()
    examples = (
        Example(([[1.0, -2.0], [3.0, 4.0]],), [[30.0]], gradients=([[2.0, -4.0], [6.0, 8.0]],)),
        Example(([1.0, -2.0],), [1.0, 4.0], gradients=([2.0, -4.0],),
                attributes={"noop_with_empty_axes": 1}),
        Example(([[1, -2], [3, 4]], [0]), [[10, 20]]),
    )  # fmt: skip

    def reduce(self, xp: Namespace, data: Array, axes: Axes, keepdims: bool) -> Array:
        return xp.sum(data * data, axis=axes, keepdims=keepdims, dtype=data.dtype)

    def pull(self, xp: Namespace, grad: Array, out: Array, data: Array, axes: Axes) -> Array:
        return 2.0 * grad * data


class CumSum(Gate):
    """Running sum along an axis.

    Formula:   out[i] = x[0] + ... + x[i];  exclusive leaves out x[i], reverse runs from the end
    Gradient:  grad[i] + ... + grad[n-1]: the running sum the other way, exclusive where out is
    Accuracy:  within sqrt(n) eps times the sum of magnitudes of n numbers, added one by one.
    Shapes:    out is shaped like x; axis is one number.
    """

    operator = "CumSum"
    inputs = (Input("x", _SUMMED), Input("axis", INDICES, group="axis", known=True))
    attributes = (
        Attribute("exclusive", "int", 0, choices=(0, 1), doc="1 leaves x[i] out of out[i]."),
        Attribute("reverse", "int", 0, choices=(0, 1), doc="1 sums from the end."),
    )
    examples = (
        Example(([1.0, 2.0, 3.0], 0), [1.0, 3.0, 6.0], gradients=([3.0, 2.0, 1.0], None)),
        Example(([1.0, 2.0, 3.0], 0), [0.0, 1.0, 3.0], gradients=([2.0, 1.0, 0.0], None),
                attributes={"exclusive": 1}),
        Example(([1.0, 2.0, 3.0], 0), [6.0, 5.0, 3.0], gradients=([1.0, 2.0, 3.0], None),
                attributes={"reverse": 1}),
        Example(([1.0, 2.0, 3.0], 0), [5.0, 3.0, 0.0], gradients=([0.0, 1.0, 2.0], None),
                attributes={"exclusive": 1, "reverse": 1}),
        Example(([[1, 2], [3, 4]], -1), [[1, 3], [3, 7]]),
    )  # fmt: skip
    samples = (
        Sample((TensorSpec((2, 3, 4)), TensorSpec((), "int64", (1,)))),
        Sample((TensorSpec((2, 3)), TensorSpec((), "int32", (-1,))), {"exclusive": 1}),
        Sample((TensorSpec((2, 3)), TensorSpec((), "int64", (-2,))), {"reverse": 1}),
        Sample((TensorSpec((4,)), TensorSpec((), "int64", (0,))), {"exclusive": 1, "reverse": 1}),
        Sample((TensorSpec((0, 3)), TensorSpec((), "int64", (0,))), {"exclusive": 1}),
        Sample((TensorSpec((0, 3)), TensorSpec((), "int64", (-1,)))),
    )
    rejections = (
        Rejection((TensorSpec((2,)), TensorSpec((), "int64", (1,))), reason="ATTRIBUTE_INVALID",
                  message="axis 1 is outside a tensor of rank 1"),
        Rejection((TensorSpec(()), TensorSpec((), "int64", (0,))), reason="ATTRIBUTE_INVALID",
                  message="axis 0 is outside a tensor of rank 0"),
        Rejection((TensorSpec((2, 3)), TensorSpec((1,), "int64", (0,))),
                  message="axis has shape (1,) but must be one number (rank 0)"),
    )  # fmt: skip

    def infer(self, x: TensorSpec, axis: TensorSpec, **attributes: int) -> TensorSpec:
        if axis.rank:
            raise Invalid(
                "SHAPE_MISMATCH", f"axis has shape {axis.shape} but must be one number (rank 0)"
            )
        assert axis.value is not None, "the plan knows it"
        normalize_axis(int(axis.value[0]), x.rank)
        return TensorSpec(x.shape, x.dtype)

    def forward(
        self, xp: Namespace, x: Array, axis: Axes, *, exclusive: int, reverse: int
    ) -> Array:
        along = normalize_axis(axis[0], len(x.shape))
        return xp.cumulative_sum(x, along, bool(exclusive), bool(reverse))

    def vjp(
        self,
        xp: Namespace,
        grad: Array,
        out: Array,
        x: Array,
        axis: Axes,
        *,
        exclusive: int,
        reverse: int,
    ) -> tuple[Any, ...]:
        along = normalize_axis(axis[0], len(x.shape))
        return xp.cumulative_sum(grad, along, bool(exclusive), not reverse), None

    def aligned_shapes(
        self, x: TensorSpec, axis: TensorSpec, **attributes: int
    ) -> tuple[Shape, ...] | None:
        from_the_end = axis.value is not None and axis.value[0] < 0
        return (x.shape, ()) if from_the_end else None


class CumProd(CumSum):
    """Running product along an axis.

    Formula:   y[i] = x[0] * ... * x[i];  exclusive leaves out x[i], reverse runs from the end
    Gradient:  to x[j] = x[0] * ... * x[j-1] * h[j],  h[j] = grad[j] + x[j+1] * h[j+1]; nothing is
               divided, so zeros are exact, in every order
    Accuracy:  within n / 2 ulp for n factors, each product of which rounds.
    Shapes:    y is shaped like x; axis is one number.
    """

    operator = "CumProd"
    scratch_arrays = (0, 3)
    attributes = (
        Attribute("exclusive", "int", 0, choices=(0, 1), doc="1 leaves x[i] out of y[i]."),
        Attribute("reverse", "int", 0, choices=(0, 1), doc="1 multiplies from the end."),
    )
    examples = (
        Example(([2.0, 3.0, 5.0], 0), [2.0, 6.0, 30.0], gradients=([19.0, 12.0, 6.0], None)),
        Example(([2.0, 0.0, 5.0], 0), [2.0, 0.0, 0.0], gradients=([1.0, 12.0, 0.0], None)),
        Example(([2.0, 3.0, 5.0], 0), [1.0, 2.0, 6.0], gradients=([4.0, 2.0, 0.0], None),
                attributes={"exclusive": 1}),
        Example(([2.0, 3.0, 5.0], 0), [30.0, 15.0, 5.0], gradients=([15.0, 15.0, 10.0], None),
                attributes={"reverse": 1}),
        Example(([[1, 2], [3, 4]], -1), [[1, 2], [3, 12]]),
    )  # fmt: skip

    def forward(
        self, xp: Namespace, x: Array, axis: Axes, *, exclusive: int, reverse: int
    ) -> Array:
        along = normalize_axis(axis[0], len(x.shape))
        return xp.cumulative_product(x, along, bool(exclusive), bool(reverse))

    def vjp(
        self,
        xp: Namespace,
        grad: Array,
        out: Array,
        x: Array,
        axis: Axes,
        *,
        exclusive: int,
        reverse: int,
    ) -> tuple[Any, ...]:
        along = normalize_axis(axis[0], len(x.shape))
        toward = -1 if reverse else 1
        size = x.shape[along]
        later = _moved(xp, grad, along, toward) if exclusive else grad
        slope = _moved(xp, x, along, toward)
        # h is a chain of size links: each round joins chains of `step` links to ones twice as long
        step = 1
        while step < size:
            later = later + slope * _moved(xp, later, along, step * toward)
            slope = slope * _moved(xp, slope, along, step * toward)
            step *= 2
        return xp.cumulative_product(x, along, True, bool(reverse)) * later, None


def _moved(xp: Namespace, x: Array, axis: int, by: int) -> Array:
    """x[.., i + by, ..], and 0 where there is no such element."""
    rank, size = len(x.shape), x.shape[axis]
    start, stop = max(0, by), max(0, min(size, size + by))

    def along(number: int, others: int) -> Axes:
        return tuple(number if each == axis else others for each in range(rank))

    stops = tuple(stop if each == axis else whole for each, whole in enumerate(x.shape))
    part = xp.slice(x, along(min(start, size), 0), stops, (1,) * rank)
    return xp.pad(part, along(min(size, max(0, -by)), 0), along(min(size, start), 0))


class Choice(Gate):
    """The index of one element along an axis; `find` says which."""

    output_dtypes = ("int64",)
    inputs = (Input("data", NUMBERS),)
    attributes = (
        Attribute("axis", "int", 0, doc="Along which to look; negative counts from the end."),
        _KEEPDIMS,
        Attribute("select_last_index", "int", 0, choices=(0, 1),
                  doc="1 takes the last of several such elements, 0 the first."),
    )  # fmt: skip
    samples = (
        Sample((TensorSpec((2, 3, 4)),), {"axis": 1}),
        Sample((TensorSpec((2, 3, 4)),), {"axis": -1, "select_last_index": 1}),
        Sample((TensorSpec((2, 3)),), {"axis": -2, "keepdims": 0, "select_last_index": 1}),
        Sample((TensorSpec((5,)),), {"keepdims": 0}),
        Sample((TensorSpec((0, 3)),), {"axis": 1}),
    )
    rejections = (
        Rejection((TensorSpec((2, 3)),), reason="ATTRIBUTE_INVALID", attributes={"axis": 2},
                  message="axis 2 is outside a tensor of rank 2"),
        Rejection((TensorSpec((0, 3)),), message="axis 0 of float64[0, 3] has no elements"),
    )  # fmt: skip

    def find(self, xp: Namespace, data: Array, axis: int, keepdims: bool) -> Array:
        """The first index of the element looked for."""
        raise NotImplementedError

    def infer(
        self, data: TensorSpec, *, axis: int, keepdims: int, select_last_index: int
    ) -> TensorSpec:
        along = normalize_axis(axis, data.rank)
        if not data.shape[along]:
            raise Invalid("SHAPE_MISMATCH", f"axis {axis} of {data} has no elements to choose from")
        return TensorSpec(_without(data.shape, (along,), keepdims), "int64")

    def scratch(self, outs: Sequence[TensorSpec], data: TensorSpec, **attributes: Any) -> Scratch:
        in_order = attributes["axis"] in (-1, data.rank - 1) and not attributes["select_last_index"]
        return Scratch(0 if in_order else data.nbytes, 0)

    def forward(
        self, xp: Namespace, data: Array, *, axis: int, keepdims: int, select_last_index: int
    ) -> Array:
        along = normalize_axis(axis, len(data.shape))
        if not select_last_index:
            first = self.find(xp, data, along, bool(keepdims))
            return xp.astype(first, "int64")
        last = data.shape[along] - 1
        turned = tuple(position == along for position in range(len(data.shape)))
        backwards = xp.slice(
            data,
            tuple(last if turn else 0 for turn in turned),
            (None,) * len(turned),
            tuple(-1 if turn else 1 for turn in turned),
        )
        from_end = self.find(xp, backwards, along, bool(keepdims))
        return xp.astype(last - from_end, "int64")

    def vjp(
        self, xp: Namespace, grad: Array, out: Array, data: Array, **attributes: int
    ) -> tuple[None]:
        return (None,)

    def aligned_shapes(
        self, data: TensorSpec, **attributes: AttributeValue
    ) -> tuple[Shape, ...] | None:
        return (data.shape,) if attributes["axis"] < 0 else None


class ArgMax(Choice):
    """Index of the largest element along an axis.

    Formula:   out = the first i where data[i] is largest; select_last_index takes the last
    Gradient:  none: indices are integers
    Shapes:    axis is lost, or of size 1 with keepdims.
    """

    operator = "ArgMax"
    examples = (
        Example(([[1.0, 5.0], [4.0, 3.0]],), [[1, 0]]),
        Example(([[2, 2, 1]],), [0], attributes={"axis": -1, "keepdims": 0}),
        Example(([[2, 2, 1]],), [[1]], attributes={"axis": 1, "select_last_index": 1}),
    )

    def find(self, xp: Namespace, data: Array, axis: int, keepdims: bool) -> Array:
        return xp.argmax(data, axis=axis, keepdims=keepdims)


class ArgMin(Choice):
    """Index of the smallest element along an axis.

    Formula:   out = the first i where data[i] is smallest; select_last_index takes the last
    Gradient:  none: indices are integers
    Shapes:    axis is lost, or of size 1 with keepdims.
    """

    operator = "ArgMin"
    examples = (
        Example(([[1.0, 5.0], [4.0, 3.0]],), [[0, 1]]),
        Example(([[2, 2, 3]],), [0], attributes={"axis": -1, "keepdims": 0}),
        Example(([[2, 2, 3]],), [[1]], attributes={"axis": 1, "select_last_index": 1}),
    )

    def find(self, xp: Namespace, data: Array, axis: int, keepdims: bool) -> Array:
        return xp.argmin(data, axis=axis, keepdims=keepdims)


def _reduced(axes: tuple[float, ...] | None, rank: int, noop_with_empty_axes: int) -> Axes:
    """The axes that are reduced, counted from the front (ATTRIBUTE_INVALID)."""
    if axes:
        return normalize_axes(tuple(map(int, axes)), rank)
    return () if noop_with_empty_axes else tuple(range(rank))


def _without(shape: Shape, axes: Axes, keepdims: int) -> Shape:
    """The shape after a reduction."""
    if keepdims:
        return tuple(1 if axis in axes else size for axis, size in enumerate(shape))
    return tuple(size for axis, size in enumerate(shape) if axis not in axes)


def _count(shape: Shape, axes: Axes) -> int:
    """Number of elements that become one."""
    return prod(shape[axis] for axis in axes)


def _kept(xp: Namespace, reduced: Array, data: Array, axes: Axes) -> Array:
    """A reduced value as with keepdims, so that it broadcasts against data."""
    if len(reduced.shape) == len(data.shape):
        return reduced
    return xp.expand_dims(reduced, axis=tuple(sorted(axes)))


def _sum(xp: Namespace, x: Array, axes: Axes) -> Array:
    return xp.sum(x, axis=axes, keepdims=True) if axes else x


def _share(xp: Namespace, extreme: Array, data: Array, axes: Axes) -> Array:
    """1 / n for each of the n elements that equal the extreme, 0 for the others."""
    chosen = xp.where(xp.equal(data, extreme), xp.ones_like(data), 0.0)
    return chosen / _sum(xp, chosen, axes)


def _pull_product(xp: Namespace, grad: Array, factors: Array) -> Array:
    """The gradient of factors along the last axis, from that of their product (of size 1 there).

    The product is a tree: pairs are multiplied, then pairs of pairs. Going back, each factor
    gets its parent's gradient times the other of its pair. That takes linear time and memory and
    only multiplies, so it is exact with zeros and can be differentiated as often as wanted.
    """
    count = factors.shape[-1]
    if count == 1:
        return grad
    last = len(factors.shape) - 1
    pairs, odd = divmod(count, 2)
    left, right, *single = xp.split(factors, (pairs, pairs, *(1,) * odd), axis=last)
    parents = xp.concat([left * right, *single], axis=last)
    to_parents = _pull_product(xp, grad, parents)
    to_pairs, *to_single = xp.split(to_parents, (pairs, *(1,) * odd), axis=last)
    return xp.concat([to_pairs * right, to_pairs * left, *to_single], axis=last)
