"""Quantization: numbers as small integers, and arithmetic on those.

Rounding has the derivative 0 almost everywhere, and an integer has no gradient: what was computed
before a number was made an integer gets none.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
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
)
from gradwire_server.gates.common import (
    dtype_choices,
    dtype_numbered,
    integers,
    matmul_shape,
    scatter_along,
    vector_shape,
)
from gradwire_server.gates.convolution import Conv
from gradwire_server.gates.linear_algebra import products
from gradwire_server.gates.windows import (
    Windows,
    gathered_elements,
    gathered_images,
    place_windows,
)
from gradwire_server.specs import (
    COMPUTED,
    FLOAT8S,
    FLOATS,
    HALVES,
    ITEM_SIZES,
    ONNX_NUMBERS,
    SHORT_INTEGERS,
    Shape,
    Tensor,
    TensorSpec,
    computed_in,
    normalize_axis,
)

_POWERS = "float8_e8m0fnu"
_SMALL_FLOATS = (*FLOAT8S, "float4_e2m1fn")
_SMALL = ("int8", "uint8", "int16", "uint16", *SHORT_INTEGERS, *_SMALL_FLOATS)
_BYTES = ("int8", "uint8")
_SINGLE: tuple[Shape, ...] = ((), (1,))
_AXIS = Attribute("axis", "int", 1, doc="Which scale counts, where it is no single number.")
_BLOCK_SIZE = Attribute("block_size", "int", 0, doc="How many elements along axis share a scale.")


def _int8(shape: Shape, *values: int) -> Tensor:
    """Integers from 0 to 127, for the tables below."""
    return Tensor("int8", shape, bytes(values))


def _int32(shape: Shape, *values: int) -> Tensor:
    return Tensor("int32", shape, array("i", values).tobytes())


def _bytes(shape: Shape) -> TensorSpec:
    return TensorSpec(shape, "uint8")


class QuantizeLinear(Gate):
    """Numbers as integers, or floats of 8 or 4 bits, in steps of a scale.

    Formula:   y = saturate(round(x / y_scale) + y_zero_point), rounded to even; of floats, which
               are rounded once, y = saturate(x / y_scale + y_zero_point)
    Gradient:  None: y is stored in a data type without gradients.
    Shapes:    As x. y_scale and y_zero_point are one number, a vector along axis, or with
               block_size shaped like x but for axis, where each counts for that many elements.
    """

    operator = "QuantizeLinear"
    takes_halves = True
    inputs = (
        Input("x", (*FLOATS, "int32")),
        Input("y_scale", (*FLOATS, "int32", _POWERS), "S", domain=(0.5, 2.0)),
        Input("y_zero_point", _SMALL, "Z", optional=True),
    )
    attributes = (
        _AXIS,
        _BLOCK_SIZE,
        Attribute("output_dtype", "int", 0, choices=(0, *dtype_choices(_SMALL)),
                  doc="ONNX's number of y's data type, where there is no zero point."),
        Attribute("precision", "int", 0, choices=(0, *dtype_choices(FLOATS)),
                  doc="What x / y_scale is computed in; if 0 the data type of y_scale, or of x "
                      "where y_scale is float8_e8m0fnu."),
        Attribute("saturate", "int", 1, choices=(0, 1),
                  doc="Whether what is too large for a float of 8 bits becomes its largest number; "
                      "all others always saturate."),
    )  # fmt: skip
    output_dtypes = ("input:2|attribute:output_dtype|uint8",)
    examples = (
        Example(([-1.0, 2.5, 3.5, 600.0], 1.0), [0, 2, 4, 255], gradients=(None, None)),
        Example(([[1.0, 2.0], [-3.0, 4.0]], [0.5, 2.0]), [[2, 1], [-6, 2]],
                gradients=(None, None), attributes={"output_dtype": 3}),
        Example((_int32((2,), 5, 7), _int32((), 2)), _int8((2,), 2, 4),
                attributes={"output_dtype": 3}),
        Example(([-1.0, 9.0], 1.0, Tensor("int4", (), b"\0")), Tensor("int4", (2,), b"\x0f\x07"),
                gradients=(None, None, None)),
        Example(([1.0, 1e9], Tensor(_POWERS, (), b"\x80")),
                Tensor("float8_e5m2", (2,), b"\x38\x7b"), gradients=(None, None),
                attributes={"output_dtype": 19}),
    )  # fmt: skip
    samples = (
        Sample((TensorSpec((2, 5)), TensorSpec((2, 3)), _bytes((2, 3))), {"block_size": 2}),
        Sample((TensorSpec((3, 2)), TensorSpec((3,))), {"axis": 0, "precision": 11}),
        Sample((TensorSpec((0, 2)), TensorSpec((1,)))),
    )
    rejections = (
        Rejection((TensorSpec((2, 3)), TensorSpec((2,))),
                  "y_scale has shape (2,) but axis 1 has size 3"),
        Rejection((TensorSpec((2, 3)), TensorSpec(()), _bytes((2,))),
                  "y_zero_point has shape (2,) but y_scale has shape ()"),
        Rejection((TensorSpec((2, 3)), TensorSpec((2, 2))), attributes={"block_size": 1},
                  message="y_scale has shape (2, 2) but must have (2, 3)"),
        Rejection((TensorSpec((2,)), TensorSpec(()), _bytes(())), "output_dtype is int8 but",
                  "ATTRIBUTE_INVALID", {"output_dtype": 3}),
    )  # fmt: skip

    def infer(
        self, x: TensorSpec, scale: TensorSpec, zero: TensorSpec | None = None, **attributes: int
    ) -> TensorSpec:
        _require_fitting(x, "y_scale", scale, "y_zero_point", zero, attributes)
        number = attributes["output_dtype"]
        if zero is not None and number not in (0, ONNX_NUMBERS[zero.dtype]):
            raise Invalid(
                "ATTRIBUTE_INVALID",
                f"output_dtype is {dtype_numbered(number)} but y_zero_point is {zero.dtype}",
                attribute="output_dtype",
            )
        return TensorSpec(x.shape, self._dtype(None if zero is None else zero.dtype, number))

    def scratch(
        self, outs: Sequence[TensorSpec], x: TensorSpec, *_: Any, **attributes: Any
    ) -> Scratch:
        whole = not outs[0].dtype.startswith("float")
        return Scratch(int((2.9 if whole else 1.15) * x.nbytes), 0)

    def forward(
        self, xp: Namespace, x: Array, scale: Array, zero: Array | None = None, **attributes: int
    ) -> Array:
        dtype = self._dtype(None if zero is None else str(zero.dtype), attributes["output_dtype"])
        precision = self._precision(x, scale, attributes)
        level = _quotient(xp, x, _spread(xp, scale, x.shape, attributes), precision)
        if dtype not in _SMALL_FLOATS:
            level = xp.round(level)
        if zero is not None:
            level = level + xp.astype(_spread(xp, zero, x.shape, attributes), str(level.dtype))
        if dtype in _SMALL_FLOATS:
            return xp.store(level, dtype, bool(attributes["saturate"]))
        return xp.round_to(level, dtype)

    def vjp(self, xp: Namespace, grad: Array, out: Array, *x: Any, **_: int) -> tuple[None, ...]:
        return (None,) * len(x)

    def _precision(self, x: Array, scale: Array, attributes: dict[str, int]) -> str:
        if attributes["precision"]:
            return dtype_numbered(attributes["precision"])
        dtype = str((x if str(scale.dtype) == _POWERS else scale).dtype)
        return dtype if dtype in FLOATS else "float64"

    def _dtype(self, zero: str | None, number: int) -> str:
        return zero or (dtype_numbered(number) if number else "uint8")


class DequantizeLinear(Gate):
    """Integers, or floats of 8 or 4 bits, in steps of a scale as numbers.

    Formula:   y = (x - x_zero_point) * x_scale
    Gradient:  d y/d x_scale = x - x_zero_point; none to the others, nor to a float8_e8m0fnu
    Shapes:    As x. x_scale and x_zero_point are one number, a vector along axis, or with
               block_size shaped like x but for axis, where each counts for that many elements.
    """

    operator = "DequantizeLinear"
    inputs = (
        Input("x", (*_SMALL, "int32"), "Q"),
        Input("x_scale", (*FLOATS, _POWERS), domain=(0.5, 2.0)),
        Input("x_zero_point", (*_SMALL, "int32"), "Q", optional=True),
    )
    attributes = (
        _AXIS,
        _BLOCK_SIZE,
        Attribute("output_dtype", "int", 0, choices=(0, *dtype_choices(FLOATS)),
                  doc="ONNX's number of y's data type; x_scale's if 0, but never float8_e8m0fnu."),
    )  # fmt: skip
    output_dtypes = ("attribute:output_dtype|input:1",)
    examples = (
        Example((_int8((2,), 0, 3), 0.5), [0.0, 1.5], gradients=(None, 3.0)),
        Example((_int8((2,), 1, 3), 2.0, _int8((), 3)), [-4.0, 0.0], gradients=(None, -2.0, None)),
        Example((Tensor("float4_e2m1fn", (2,), b"\x01\x0f"), 2.0), [1.0, -12.0],
                gradients=(None, -5.5)),
        Example((Tensor("int2", (2,), b"\1\2"), Tensor(_POWERS, (), b"\x80")), [2.0, -4.0],
                gradients=(None, None), attributes={"output_dtype": 11}),
    )  # fmt: skip
    samples = (
        Sample((_bytes((2, 5)), TensorSpec((2, 3)), _bytes((2, 3))), {"block_size": 2}),
        Sample((_bytes((2, 3, 2)), TensorSpec((3,)), _bytes((3,)))),
        Sample((_bytes((3, 2)), TensorSpec((3,))), {"axis": -2}),
        Sample((TensorSpec((4,), "int32"), TensorSpec((1,)))),
        Sample((_bytes((0, 2)), TensorSpec(()))),
    )
    rejections = (
        Rejection((_bytes((2, 3)), TensorSpec((2,))),
                  "x_scale has shape (2,) but axis 1 has size 3"),
        Rejection((_bytes((2, 3)), TensorSpec((3,)), _bytes(())),
                  "x_zero_point has shape () but x_scale has shape (3,)"),
        Rejection((_bytes((2,)), TensorSpec((), _POWERS)), "give output_dtype",
                  "ATTRIBUTE_INVALID"),
    )  # fmt: skip

    def infer(
        self, x: TensorSpec, scale: TensorSpec, zero: TensorSpec | None = None, **attributes: int
    ) -> TensorSpec:
        _require_fitting(x, "x_scale", scale, "x_zero_point", zero, attributes)
        number = attributes["output_dtype"]
        if not number and scale.dtype == _POWERS:
            raise Invalid(
                "ATTRIBUTE_INVALID",
                f"x_scale is {_POWERS}, which y cannot be; give output_dtype",
                attribute="output_dtype",
            )
        return TensorSpec(x.shape, dtype_numbered(number) if number else scale.dtype)

    def scratch(
        self,
        outs: Sequence[TensorSpec],
        x: TensorSpec,
        scale: TensorSpec,
        zero_point: TensorSpec | None = None,
        **attributes: Any,
    ) -> Scratch:
        out = outs[0].nbytes
        if attributes["block_size"]:
            return Scratch(3 * out, int(4.35 * out))
        is_moved = zero_point is not None
        return Scratch(out if is_moved or scale.size > 1 else 0, (1 + is_moved) * out)

    def forward(
        self, xp: Namespace, x: Array, scale: Array, zero: Array | None = None, **attributes: int
    ) -> Array:
        number = attributes["output_dtype"]
        dtype = computed_in(dtype_numbered(number) if number else str(scale.dtype))
        steps = _spread(xp, xp.astype(scale, dtype), x.shape, attributes)
        return self._levels(xp, x, zero, dtype, attributes) * steps

    def vjp(
        self,
        xp: Namespace,
        grad: Array,
        out: Array,
        x: Array,
        scale: Array,
        *zero: Array | None,
        **attributes: int,
    ) -> tuple[Any, ...]:
        def to_scale() -> Array:
            offset = zero[0] if zero else None
            pulled = grad * self._levels(xp, x, offset, str(grad.dtype), attributes)
            return xp.astype(_gathered(xp, pulled, scale.shape, attributes), str(scale.dtype))

        return None, None if str(scale.dtype) == _POWERS else to_scale, *(None for _ in zero)

    def _levels(
        self, xp: Namespace, x: Array, zero: Array | None, dtype: str, attributes: dict[str, int]
    ) -> Array:
        """How many steps x lies above the zero point."""
        levels = xp.astype(x, dtype)
        if zero is None:
            return levels
        return levels - _spread(xp, xp.astype(zero, dtype), x.shape, attributes)


def _quotient(xp: Namespace, x: Array, steps: Array, precision: str) -> Array:
    """x / steps as a floating data type holds it, ready to compute with."""
    if precision not in HALVES:
        return xp.astype(x, precision) / xp.astype(steps, precision)
    held, divisor = (xp.astype(xp.astype(each, precision), "float32") for each in (x, steps))
    return xp.astype(xp.astype(held / divisor, precision), "float32")


def _require_fitting(
    x: TensorSpec,
    scale_name: str,
    scale: TensorSpec,
    zero_name: str,
    zero: TensorSpec | None,
    attributes: dict[str, int],
) -> None:
    """Whether there is a scale for every element (SHAPE_MISMATCH)."""
    is_single = scale.shape in _SINGLE
    if zero is not None and zero.shape != scale.shape and not (is_single and zero.shape in _SINGLE):
        raise Invalid(
            "SHAPE_MISMATCH",
            f"{zero_name} has shape {zero.shape} but {scale_name} has shape {scale.shape}",
        )
    if is_single:
        return
    axis, block = normalize_axis(attributes["axis"], x.rank), attributes["block_size"]
    if scale.rank == 1 and not block:
        if scale.size != x.shape[axis]:
            raise Invalid(
                "SHAPE_MISMATCH",
                f"{scale_name} has shape {scale.shape} but axis {axis} has size {x.shape[axis]}",
            )
        return
    if block < 1:
        raise Invalid(
            "ATTRIBUTE_INVALID",
            f"block_size is {block} but must be 1 or more for {scale_name} of shape {scale.shape}",
            attribute="block_size",
        )
    wanted = (*x.shape[:axis], -(-x.shape[axis] // block), *x.shape[axis + 1 :])
    if scale.shape != wanted:
        raise Invalid(
            "SHAPE_MISMATCH", f"{scale_name} has shape {scale.shape} but must have {wanted}"
        )


def _spread(xp: Namespace, numbers: Array, shape: Shape, attributes: dict[str, int]) -> Array:
    """A scale or zero point, so that it broadcasts against the tensor."""
    rank = len(numbers.shape)
    if rank == 0 or numbers.shape == (1,):
        return xp.reshape(numbers, ())
    axis = normalize_axis(attributes["axis"], len(shape))
    if not attributes["block_size"]:
        return xp.reshape(numbers, vector_shape(axis, numbers.shape[0], len(shape)))
    chosen = _blocks_of(shape[axis], attributes)
    return xp.take(numbers, integers(xp, chosen, (len(chosen),)), axis=axis)


def _gathered(xp: Namespace, pulled: Array, shape: Shape, attributes: dict[str, int]) -> Array:
    """The gradient of a scale, from that of the tensor it was spread over."""
    rank = len(pulled.shape)
    if shape in ((), (1,)):
        return xp.reshape(xp.sum(pulled, axis=tuple(range(rank))), shape)
    axis = normalize_axis(attributes["axis"], rank)
    if not attributes["block_size"]:
        others = tuple(each for each in range(rank) if each != axis)
        return xp.sum(pulled, axis=others)
    return scatter_along(xp, pulled, _blocks_of(pulled.shape[axis], attributes), shape, axis)


def _blocks_of(size: int, attributes: dict[str, int]) -> list[int]:
    """Which block each position along the axis is in."""
    return [place // attributes["block_size"] for place in range(size)]


class DynamicQuantizeLinear(Gate):
    """Numbers as bytes, in steps that the largest and the smallest of them set.

    Formula:   y_scale = (max(x, 0) - min(x, 0)) / 255, y_zero_point = saturate(round(-min(x, 0) /
               y_scale)), y = saturate(round(x / y_scale) + y_zero_point); where x is all 0, y_scale
               = 1 / 255
    Gradient:  d y_scale/dx = 1/255 at the largest element, if it is positive, and -1/255 at the
               smallest, if it is negative; none through the integers
    Kinks:     Elements that are equally large, or small, share the gradient equally.
    Shapes:    y as x, y_scale and y_zero_point of rank 0.
    """

    operator = "DynamicQuantizeLinear"
    scratch_arrays = (2.9, 3.9)
    inputs = (Input("x", COMPUTED),)
    outputs = (3, 3)
    output_dtypes = ("uint8", "input:0", "uint8")
    examples = (
        Example(([-1.0, 0.0, 4.1],), ([0, 50, 255], 0.02, 50), gradients=([0.0, 0.0, 0.0],)),
        Example(([0.0, 0.0],), ([0, 0], 1 / 255, 0), gradients=([0.0, 0.0],), at_kink=True),
    )
    samples = (
        Sample((TensorSpec((3, 4)),)),
        Sample((TensorSpec(()),)),
        Sample((TensorSpec((0,)),)),
    )

    def infer(self, x: TensorSpec) -> tuple[TensorSpec, ...]:
        return TensorSpec(x.shape, "uint8"), TensorSpec((), x.dtype), TensorSpec((), "uint8")

    def forward(self, xp: Namespace, x: Array) -> tuple[Array, ...]:
        low, high = self._range(xp, x)
        span = xp.where(xp.equal(high, low), xp.ones_like(high), high - low)
        scale = span / 255.0
        zero = xp.round_to(xp.round(-low / scale), "uint8")
        level = xp.round(x / scale) + xp.astype(zero, str(x.dtype))
        return xp.round_to(level, "uint8"), scale, zero

    def vjp(self, xp: Namespace, grad: Any, out: Any, x: Array) -> tuple[Any, ...]:
        def to_x() -> Array:
            if grad[1] is None:
                return xp.zeros_like(x)
            low, high = self._range(xp, x)
            one = xp.ones_like(x)
            at_high = xp.where(xp.logical_and(xp.equal(x, high), xp.greater(x, 0.0)), one, 0.0)
            at_low = xp.where(xp.logical_and(xp.equal(x, low), xp.less(x, 0.0)), one, 0.0)
            every = tuple(range(len(x.shape)))
            counts = [
                xp.maximum(xp.sum(each, axis=every), xp.ones_like(low))
                for each in (at_high, at_low)
            ]
            return grad[1] / 255.0 * (at_high / counts[0] - at_low / counts[1])

        return (to_x,)

    def _range(self, xp: Namespace, x: Array) -> tuple[Array, Array]:
        """The smallest and the largest element, and 0."""
        every = tuple(range(len(x.shape)))
        low, high = xp.min(x, axis=every), xp.max(x, axis=every)
        return xp.where(xp.less(low, 0.0), low, 0.0), xp.where(xp.greater(high, 0.0), high, 0.0)


class QLinearMatMul(Gate):
    """Matrix product of quantized matrices, quantized again.

    Formula:   y = saturate(round(((a - a_zero_point) @ (b - b_zero_point)) * a_scale * b_scale /
               y_scale) + y_zero_point), rounded to even
    Gradient:  None: y is an integer.
    Shapes:    Those of MatMul. Scales and zero points are one number; for matrices also a vector
               for the rows of a, or the columns of b; or shaped [.., M, 1] and [.., 1, N].
    """

    operator = "QLinearMatMul"
    inputs = (
        Input("a", _BYTES, "A"),
        Input("a_scale", FLOATS, domain=(0.5, 2.0)),
        Input("a_zero_point", _BYTES, "A"),
        Input("b", _BYTES, "B"),
        Input("b_scale", FLOATS, domain=(0.5, 2.0)),
        Input("b_zero_point", _BYTES, "B"),
        Input("y_scale", FLOATS, domain=(0.5, 2.0)),
        Input("y_zero_point", _BYTES, "Y"),
    )
    output_dtypes = ("input:7",)
    examples = (
        Example(
            (_int8((1, 2), 3, 5), 0.5, _int8((), 1), _int8((2, 1), 2, 4), 1.0, _int8((), 0), 2.0,
             _int8((), 7)),
            _int8((1, 1), 12), gradients=(None,) * 8,
        ),
    )  # fmt: skip
    samples = (
        Sample(
            (_bytes((2, 2, 3)), TensorSpec((1,)), _bytes((1,)), _bytes((3, 4)), TensorSpec((4,)),
             _bytes((4,)), TensorSpec(()), _bytes(())),
        ),
        Sample(
            (_bytes((2, 3)), TensorSpec((2,)), _bytes((2,)), _bytes((3, 4)), TensorSpec((1, 4)),
             _bytes((1, 4)), TensorSpec((1,)), _bytes((1,))),
        ),
        Sample(
            (_bytes((3,)), TensorSpec((1,)), _bytes(()), _bytes((2, 3, 4)), TensorSpec((4,)),
             _bytes((2, 1, 4)), TensorSpec(()), _bytes(())),
        ),
    )  # fmt: skip
    rejections = (
        Rejection(
            (_bytes((2, 3)), TensorSpec(()), _bytes(()), _bytes((4, 2)), TensorSpec(()),
             _bytes(()), TensorSpec(()), _bytes(())), "a has 3 columns but b has 4 rows",
        ),
        Rejection(
            (_bytes((2, 3)), TensorSpec((3,)), _bytes(()), _bytes((3, 2)), TensorSpec(()),
             _bytes(()), TensorSpec(()), _bytes(())), "a_scale of shape (3,) does not fit",
        ),
    )  # fmt: skip

    def infer(self, *specs: TensorSpec) -> TensorSpec:
        a, _, _, b, _, _, y_scale, y_zero = specs
        shape = matmul_shape(a.shape, b.shape, ("a", "b"))
        for name, spec, of in (
            ("a_scale", specs[1], a), ("a_zero_point", specs[2], a), ("b_scale", specs[4], b),
            ("b_zero_point", specs[5], b),
        ):  # fmt: skip
            _require_along(name, spec.shape, of.shape, rows=of is a)
        for name, spec in (("y_scale", y_scale), ("y_zero_point", y_zero)):
            if spec.size != 1:
                raise Invalid(
                    "SHAPE_MISMATCH", f"{name} has shape {spec.shape} but must be one number"
                )
        return TensorSpec(shape, y_zero.dtype)

    def scratch(self, outs: Sequence[TensorSpec], *specs: Any) -> Scratch:
        held = _multiplying(outs[0], specs[0], specs[3], (specs[2], specs[5]))
        return Scratch(max(held, 39 * outs[0].size), 0)

    def forward(self, xp: Namespace, *inputs: Array) -> Array:
        a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero = inputs
        product = _integer_product(xp, a, a_zero, b, b_zero)
        step = _lying(xp, a_scale, rows=True) * _lying(xp, b_scale, rows=False)
        scaled = product * xp.astype(step / xp.reshape(y_scale, ()), "float64")
        level = xp.round(scaled) + xp.astype(xp.reshape(y_zero, ()), "float64")
        return xp.round_to(level, str(y_zero.dtype))

    def operations(self, outs: tuple[TensorSpec, ...], *specs: TensorSpec) -> int:
        return products(outs[0], specs[0], specs[3])

    def vjp(self, xp: Namespace, grad: Array, out: Array, *inputs: Array) -> tuple[None, ...]:
        return (None,) * 8


class MatMulInteger(Gate):
    """Matrix product of quantized matrices.

    Formula:   Y = (A - a_zero_point) @ (B - b_zero_point)
    Gradient:  None: Y is an integer.
    Shapes:    Those of MatMul. Zero points are one number; for matrices also a vector for the rows
               of A, or the columns of B; or shaped [.., M, 1] and [.., 1, N].
    """

    operator = "MatMulInteger"
    inputs = (
        Input("A", _BYTES, "A"),
        Input("B", _BYTES, "B"),
        Input("a_zero_point", _BYTES, "A", optional=True),
        Input("b_zero_point", _BYTES, "B", optional=True),
    )
    output_dtypes = ("int32",)
    examples = (
        Example((_int8((1, 2), 3, 5), _int8((2, 1), 2, 4), _int8((), 1)), _int32((1, 1), 20)),
    )
    samples = (
        Sample((_bytes((2, 2, 3)), _bytes((3, 4)), None, _bytes((4,)))),
        Sample((_bytes((2, 3)), _bytes((3, 4)), _bytes((2,)), _bytes((1, 4)))),
        Sample((_bytes((3,)), _bytes((3, 4)), _bytes((1,)), _bytes((4,)))),
        Sample((_bytes((2, 2, 3)), _bytes((3,)), _bytes(()), _bytes((1,)))),
        Sample((_bytes((3,)), _bytes((3,)), None, _bytes(()))),
        Sample((_bytes((1, 3)), _bytes((2, 3, 1)), _bytes((1, 1)), _bytes((2, 1, 1)))),
    )
    rejections = (
        Rejection((_bytes((3,)), _bytes((3, 2)), _bytes((3,))),
                  "a_zero_point of shape (3,) does not fit a vector of shape (3,)"),
        Rejection((_bytes(()), _bytes((4, 2)), _bytes((4,))), "A has rank 0"),
        Rejection((_bytes((2, 3)), _bytes((4, 2))), "A has 3 columns but B has 4 rows"),
        Rejection((_bytes((2, 3)), _bytes((3, 2)), _bytes((3,))),
                  "a_zero_point of shape (3,) does not fit"),
    )  # fmt: skip

    def infer(self, a: TensorSpec, b: TensorSpec, *zeros: TensorSpec | None) -> TensorSpec:
        shape = matmul_shape(a.shape, b.shape)
        for name, zero, of in zip(("a_zero_point", "b_zero_point"), zeros, (a, b), strict=False):
            if zero is not None:
                _require_along(name, zero.shape, of.shape, rows=of is a)
        return TensorSpec(shape, "int32")

    def scratch(
        self,
        outs: Sequence[TensorSpec],
        a: TensorSpec,
        b: TensorSpec,
        *zero_points: TensorSpec | None,
    ) -> Scratch:
        return Scratch(_multiplying(outs[0], a, b, zero_points), 0)

    def forward(self, xp: Namespace, a: Array, b: Array, *zeros: Array | None) -> Array:
        a_zero, b_zero = (*zeros, None, None)[:2]
        product = _integer_product(xp, a, a_zero, b, b_zero)
        return xp.astype(xp.astype(product, "int64"), "int32")

    def operations(
        self, outs: tuple[TensorSpec, ...], a: TensorSpec, b: TensorSpec, *zeros: Any
    ) -> int:
        return products(outs[0], a, b)

    def vjp(self, xp: Namespace, grad: Array, out: Array, *inputs: Array) -> tuple[None, ...]:
        return (None,) * len(inputs)


def _require_along(name: str, numbers: Shape, matrix: Shape, rows: bool) -> None:
    """Whether there is a number for all, or one for each row or column (SHAPE_MISMATCH)."""
    if len(matrix) < 2:
        if numbers not in _SINGLE:
            raise Invalid(
                "SHAPE_MISMATCH",
                f"{name} of shape {numbers} does not fit a vector of shape {matrix}: it is one "
                "number",
            )
        return
    count = matrix[-2 if rows else -1]
    along = (count, 1) if rows else (1, count)
    fitting: tuple[Shape, ...] = (*_SINGLE, (count,), along, (*matrix[:-2], *along))
    if numbers not in fitting:
        raise Invalid(
            "SHAPE_MISMATCH",
            f"{name} of shape {numbers} does not fit a matrix of shape {matrix}: it is one number, "
            f"or has shape {(count,)} or {fitting[-1]}",
        )


def _lying(xp: Namespace, numbers: Array, rows: bool) -> Array:
    """Numbers for rows as a column, those for columns as a row; one number as that."""
    if prod(numbers.shape) == 1:
        return xp.reshape(numbers, ())
    vector = rows and len(numbers.shape) == 1
    return xp.expand_dims(numbers, axis=-1) if vector else numbers


def _integer_product(
    xp: Namespace, a: Array, a_zero: Array | None, b: Array, b_zero: Array | None
) -> Array:
    """The exact product as float64, which BLAS is fast at and which holds every sum of bytes."""
    left, right = xp.astype(a, "float64"), xp.astype(b, "float64")
    if a_zero is not None:
        left = left - xp.astype(_lying(xp, a_zero, rows=True), "float64")
    if b_zero is not None:
        right = right - xp.astype(_lying(xp, b_zero, rows=False), "float64")
    return xp.matmul(left, right)


_CONVOLUTION = (
    Attribute("auto_pad", "string", "NOTSET",
              choices=("NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"),
              doc="Whether pads are as given, as keep the size, or none."),
    Attribute("dilations", "ints", doc="Step within a block, for each axis; 1 if left out."),
    Attribute("group", "int", 1, doc="Parts that channels are divided into."),
    Attribute("kernel_shape", "ints", doc="w's, if given."),
    Attribute("pads", "ints", doc="Elements put before each axis, then after each."),
    Attribute("strides", "ints", doc="Step from block to block; 1 if left out."),
)  # fmt: skip


class ConvInteger(Gate):
    """Convolution of quantized images.

    Formula:   y[n, m, l] = sum of (w[m, c, k] - w_zero_point[m]) * (x[n, c, l * stride + k *
               dilation - pad] - x_zero_point) over c and k; nothing outside the image counts
    Gradient:  None: y is an integer.
    Shapes:    x is [N, C, *image], w [M, C / group, *kernel] and y [N, M, *blocks].
    """

    operator = "ConvInteger"
    inputs = (
        Input("x", _BYTES, "X"),
        Input("w", _BYTES, "W"),
        Input("x_zero_point", _BYTES, "X", optional=True),
        Input("w_zero_point", _BYTES, "W", optional=True),
    )
    attributes = _CONVOLUTION
    output_dtypes = ("int32",)
    examples = (
        Example(
            (_int8((1, 1, 3), 1, 2, 3), _int8((1, 1, 2), 1, 2), _int8((), 1)),
            _int32((1, 1, 2), 2, 5),
        ),
    )  # fmt: skip
    samples = (
        Sample((_bytes((2, 4, 5, 4)), _bytes((6, 2, 3, 2)), _bytes(()), _bytes((6,))),
               {"group": 2, "strides": (2, 1), "pads": (1, 0, 1, 1)}),
        Sample((_bytes((1, 1, 5)), _bytes((1, 1, 2))),
               {"auto_pad": "SAME_LOWER", "strides": (2,), "dilations": (2,)}),
    )  # fmt: skip
    rejections = (
        Rejection((_bytes((1, 3, 4, 4)), _bytes((1, 2, 2, 2))),
                  "x has 3 channels but w takes 2 in each of 1 groups"),
        Rejection((_bytes((1, 1, 4)), _bytes((1, 1, 2, 2))), "x has rank 3 but w has rank 4"),
        Rejection((_bytes((1, 1, 4)), _bytes((1, 1, 2)), None, _bytes((3,))),
                  "w_zero_point has shape (3,)"),
    )  # fmt: skip

    def infer(
        self, x: TensorSpec, w: TensorSpec, *zeros: TensorSpec | None, **attributes: Any
    ) -> TensorSpec:
        x_zero, w_zero = (*zeros, None, None)[:2]
        shape = _convolved_shape(x, w, attributes)
        if x_zero is not None:
            _require_one("x_zero_point", x_zero)
        if w_zero is not None:
            _require_by_channel("w_zero_point", w_zero, w.shape[0])
        return TensorSpec(shape, "int32")

    def scratch(
        self, outs: Sequence[TensorSpec], x: TensorSpec, w: TensorSpec, *_: Any, **attributes: Any
    ) -> Scratch:
        return Scratch(int(0.3 * self._held(x, w, **attributes)), 0)

    def forward(
        self, xp: Namespace, x: Array, w: Array, *zeros: Array | None, **attributes: Any
    ) -> Array:
        x_zero, w_zero = (*zeros, None, None)[:2]
        whole = _integer_convolution(xp, x, x_zero, w, w_zero, attributes)
        return xp.astype(xp.astype(whole, "int64"), "int32")

    def vjp(self, xp: Namespace, grad: Array, out: Array, *x: Any, **_: Any) -> tuple[None, ...]:
        return (None,) * len(x)

    def operations(
        self,
        outs: tuple[TensorSpec, ...],
        x: TensorSpec,
        w: TensorSpec,
        *_: Any,
        **attributes: Any,
    ) -> int:
        return Conv().operations(outs, x, w, **attributes)

    def _held(self, x: TensorSpec, w: TensorSpec, *_: Any, **attributes: Any) -> int:
        return _convolution_workspace(x, w, attributes)


class QLinearConv(Gate):
    """Convolution of quantized images, quantized again.

    Formula:   y[n, m, l] = saturate(round((B[m] + sum of (w[m, c, k] - w_zero_point[m]) * (x[n, c,
               l * stride + k * dilation - pad] - x_zero_point) over c and k) * x_scale *
               w_scale[m] / y_scale) + y_zero_point), rounded to even; nothing outside the image
               counts
    Gradient:  None: y is an integer.
    Shapes:    x is [N, C, *image], w [M, C / group, *kernel], B [M] and y [N, M, *blocks]. Scales
               and zero points are one number; those of w may be a vector for its M channels.
    """

    operator = "QLinearConv"
    inputs = (
        Input("x", _BYTES, "X"),
        Input("x_scale", COMPUTED, domain=(0.5, 2.0)),
        Input("x_zero_point", _BYTES, "X"),
        Input("w", _BYTES, "W"),
        Input("w_scale", COMPUTED, domain=(0.5, 2.0)),
        Input("w_zero_point", _BYTES, "W"),
        Input("y_scale", COMPUTED, domain=(0.5, 2.0)),
        Input("y_zero_point", _BYTES, "Y"),
        Input("B", ("int32",), "B", optional=True),
    )
    attributes = _CONVOLUTION
    output_dtypes = ("input:7",)
    examples = (
        Example(
            (_int8((1, 1, 3), 1, 2, 3), 0.5, _int8((), 1), _int8((1, 1, 2), 1, 2), 1.0,
             _int8((), 0), 2.0, _int8((), 7), _int32((1,), 4)),
            _int8((1, 1, 2), 9, 9), gradients=(None,) * 9,
        ),
    )  # fmt: skip
    samples = (
        Sample(
            (_bytes((2, 4, 5, 4)), TensorSpec(()), _bytes(()), _bytes((6, 2, 3, 2)),
             TensorSpec((6,)), _bytes((6,)), TensorSpec((1,)), _bytes((1,)),
             TensorSpec((6,), "int32")),
            {"group": 2, "strides": (2, 1), "pads": (1, 0, 1, 1)},
        ),
        Sample(
            (_bytes((1, 1, 5)), TensorSpec(()), _bytes(()), _bytes((1, 1, 2)), TensorSpec(()),
             _bytes(()), TensorSpec(()), _bytes(())),
            {"auto_pad": "SAME_LOWER", "strides": (2,), "dilations": (2,)},
        ),
    )  # fmt: skip
    rejections = tuple(
        Rejection(
            (_bytes(x), TensorSpec(x_scale), _bytes(()), _bytes(w), TensorSpec(w_scale),
             _bytes(()), TensorSpec(()), _bytes(()), *bias),
            message,
        )
        for x, x_scale, w, w_scale, bias, message in (
            ((1, 3, 4, 4), (), (1, 2, 2, 2), (), (),
             "x has 3 channels but w takes 2 in each of 1 groups"),
            ((1, 1, 4), (2,), (2, 1, 2), (), (),
             "x_scale has shape (2,) but must be one number"),
            ((1, 1, 4), (), (2, 1, 2), (3,), (),
             "w_scale has shape (3,) but must be one number or have 2"),
            ((1, 1, 4), (), (2, 1, 2), (), (TensorSpec((3,), "int32"),),
             "B has shape (3,) but there are 2 output channels"),
        )
    )  # fmt: skip

    def infer(self, *specs: TensorSpec, **attributes: Any) -> TensorSpec:
        x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero, *bias = specs
        shape = _convolved_shape(x, w, attributes)
        for name, spec in (
            ("x_scale", x_scale), ("x_zero_point", x_zero), ("y_scale", y_scale),
            ("y_zero_point", y_zero),
        ):  # fmt: skip
            _require_one(name, spec)
        _require_by_channel("w_scale", w_scale, w.shape[0])
        _require_by_channel("w_zero_point", w_zero, w.shape[0])
        if bias and bias[0] is not None and bias[0].shape != (w.shape[0],):
            raise Invalid(
                "SHAPE_MISMATCH",
                f"B has shape {bias[0].shape} but there are {w.shape[0]} output channels",
            )
        return TensorSpec(shape, y_zero.dtype)

    def scratch(self, outs: Sequence[TensorSpec], *specs: Any, **attributes: Any) -> Scratch:
        held = 0.3 * self._held(*specs, **attributes) * ITEM_SIZES[specs[0].dtype]
        return Scratch(max(int(held), int(39.4 * outs[0].size)), 0)

    def forward(self, xp: Namespace, *inputs: Array, **attributes: Any) -> Array:
        x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero, *bias = inputs
        total = _integer_convolution(xp, x, x_zero, w, w_zero, attributes)
        if bias and bias[0] is not None:
            total = total + xp.astype(_by_channel(xp, bias[0], len(x.shape)), "float64")
        step = xp.reshape(x_scale, ()) * _by_channel(xp, w_scale, len(x.shape))
        scaled = total * xp.astype(step / xp.reshape(y_scale, ()), "float64")
        level = xp.round(scaled) + xp.astype(xp.reshape(y_zero, ()), "float64")
        return xp.round_to(level, str(y_zero.dtype))

    def vjp(self, xp: Namespace, grad: Array, out: Array, *x: Any, **_: Any) -> tuple[None, ...]:
        return (None,) * len(x)

    def operations(
        self, outs: tuple[TensorSpec, ...], x: TensorSpec, *specs: Any, **attributes: Any
    ) -> int:
        return Conv().operations(outs, x, specs[2], **attributes)

    def _held(self, x: TensorSpec, *specs: Any, **attributes: Any) -> int:
        widest = ITEM_SIZES[specs[0].dtype]  # of the inputs, which elements are counted in
        return -(-_convolution_workspace(x, specs[2], attributes) // widest)


def _require_one(name: str, spec: TensorSpec) -> None:
    if spec.size != 1:
        raise Invalid("SHAPE_MISMATCH", f"{name} has shape {spec.shape} but must be one number")


def _require_by_channel(name: str, spec: TensorSpec, channels: int) -> None:
    if spec.shape not in ((), (1,), (channels,)):
        raise Invalid(
            "SHAPE_MISMATCH",
            f"{name} has shape {spec.shape} but must be one number or have {channels}",
        )


def _by_channel(xp: Namespace, numbers: Array, rank: int) -> Array:
    """One number, or one for each channel of the output, lying along axis 1."""
    return xp.reshape(numbers, (-1, *(1,) * (rank - 2)))


def _convolved_shape(x: TensorSpec, w: TensorSpec, attributes: dict[str, Any]) -> Shape:
    """The shape of a convolution (SHAPE_MISMATCH)."""
    if x.rank != w.rank or x.rank < 3:
        raise Invalid(
            "SHAPE_MISMATCH",
            f"x has rank {x.rank} but w has rank {w.rank}: both need the same, from 3 on",
        )
    group, outputs = attributes["group"], w.shape[0]
    if group < 1 or x.shape[1] != w.shape[1] * group or outputs % group:
        raise Invalid(
            "SHAPE_MISMATCH",
            f"x has {x.shape[1]} channels but w takes {w.shape[1]} in each of {group} groups, "
            f"for {outputs} outputs",
        )
    kernel = attributes["kernel_shape"] or w.shape[2:]
    if kernel != w.shape[2:] or not prod(kernel):
        raise Invalid("SHAPE_MISMATCH", f"kernel_shape is {kernel} but w has {w.shape[2:]}")
    return (x.shape[0], outputs, *_placed(x, w, attributes).counts)


def _placed(x: Any, w: Any, attributes: dict[str, Any]) -> Windows:
    names = ("auto_pad", "dilations", "pads", "strides")
    return place_windows(x.shape[2:], w.shape[2:], **{name: attributes[name] for name in names})


def _integer_convolution(
    xp: Namespace,
    x: Array,
    x_zero: Array | None,
    w: Array,
    w_zero: Array | None,
    attributes: dict[str, Any],
) -> Array:
    """The exact convolution as float64, which BLAS is fast at and which holds sums of bytes."""
    image, weights = xp.astype(x, "float64"), xp.astype(w, "float64")
    if x_zero is not None:
        image = image - xp.astype(xp.reshape(x_zero, ()), "float64")
    if w_zero is not None:
        offset = xp.reshape(w_zero, (-1, *(1,) * (len(w.shape) - 1)))
        weights = weights - xp.astype(offset, "float64")
    return xp.convolve(image, weights, _placed(x, w, attributes), attributes["group"])


def _convolution_workspace(x: TensorSpec, w: TensorSpec, attributes: dict[str, Any]) -> int:
    """In bytes: inputs with and without their offsets, windows, and steps from sum to level."""
    windows = _placed(x, w, attributes)
    out = x.shape[0] * w.shape[0] * prod(windows.counts)
    gathered = gathered_elements(x.shape, windows)
    if gathered is None:
        held = x.size + out
    else:
        held = min(x.shape[0], gathered_images(x.shape, windows)) * 2 * gathered
    return ITEM_SIZES["float64"] * (2 * (x.size + w.size) + held + 5 * out)


def _multiplying(
    out: TensorSpec, a: TensorSpec, b: TensorSpec, zero_points: Sequence[TensorSpec | None]
) -> int:
    """Bytes held by a product of integers, which is one of float64s."""
    moved = [each is not None for each in (*zero_points, None, None)[:2]]
    factors = sum(
        8 * each.size * (1 + is_moved) for each, is_moved in zip((a, b), moved, strict=True)
    )
    return max(factors, 8 * (a.size + b.size) + 12 * out.size)
