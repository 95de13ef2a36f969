"""Creation: values that come from shapes, numbers and the graph itself; none has a gradient."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from math import ceil, isfinite
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
    Ints,
    checked_shape,
    decode,
    dtype_choices,
    dtype_numbered,
    integers,
    ints,
    known,
)
from gradwire_server.specs import (
    ANY,
    BOOLS,
    EVERY,
    FLOATS,
    INTEGERS,
    LARGEST,
    Tensor,
    TensorSpec,
)

_KNOWN_SIZE = 1024  # a larger constant's elements are not followed while planning


def _scalar(value: int) -> TensorSpec:
    """A known number, for the tables below."""
    return TensorSpec((), "int64", (value,))


class Shape_(Gate):  # noqa: N801 -- Shape is a type here
    """The sizes of a tensor's axes.

    Formula:   out = shape of data, from axis start to end
    Gradient:  None: the output is int64.
    Shapes:    A vector, one element for each axis; its elements are known before evaluation.
    """

    operator = "Shape"
    takes_halves = True
    output_dtypes = ("int64",)
    inputs = (Input("data", EVERY, elements=False),)
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
        return integers(xp, sizes, (len(sizes),))

    def vjp(self, xp: Namespace, grad: Array, out: Array, *_: Any, **__: Any) -> tuple[None, ...]:
        return (None,)


class Size(Gate):
    """The number of elements of a tensor.

    Formula:   out = number of elements of data
    Gradient:  None: the output is int64.
    Shapes:    Rank 0; known before evaluation.
    """

    operator = "Size"
    takes_halves = True
    output_dtypes = ("int64",)
    inputs = (Input("data", EVERY, elements=False),)
    examples = (
        Example(([[1.0, 2.0, 3.0]],), 3, gradients=(None,)),
        Example(([True, False],), 2),
    )
    samples = (Sample((TensorSpec(()),)), Sample((TensorSpec((0, 3)),)))

    def infer(self, data: TensorSpec) -> TensorSpec:
        return TensorSpec((), "int64", (data.size,))

    def forward(self, xp: Namespace, data: Array) -> Array:
        return integers(xp, (TensorSpec(data.shape).size,), ())

    def vjp(self, xp: Namespace, grad: Array, out: Array, data: Array) -> tuple[None, ...]:
        return (None,)


class Constant(Gate):
    """A value that is part of the graph: exactly one of the attributes.

    Formula:   out = value
    Gradient:  None: there is no input.
    Shapes:    The tensor's; rank 0 for a number, a vector for several.
    """

    operator = "Constant"
    output_dtypes = (
        "attribute:value|attribute:value_int=int64|attribute:value_ints=int64|float32",
    )
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
        if tensor.dtype not in (*INTEGERS, *BOOLS) or spec.size > _KNOWN_SIZE:
            return spec
        return TensorSpec(tensor.shape, tensor.dtype, decode(tensor))

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


class ConstantOfShape(Gate):
    """A tensor of one number.

    Formula:   out = value everywhere
    Gradient:  None: a shape has none.
    Shapes:    input.
    """

    operator = "ConstantOfShape"
    output_dtypes = ("attribute:value|float32",)
    inputs = (known("input"),)
    attributes = (Attribute("value", "tensor", doc="One element; a float32 0 if left out."),)
    examples = (
        Example(([2],), [7, 7], attributes={"value": Tensor("int64", (1,), b"\7" + bytes(7))}),
        Example(([1, 2],), [[0.0, 0.0]]),
    )
    samples = (Sample((ints(),)), Sample((ints(2, 0),)))
    rejections = (
        Rejection((ints(2, -1),), "input gives the shape (2, -1)"),
        Rejection((ints(2),), "value has shape (2,) but must be one element", "ATTRIBUTE_INVALID",
                  {"value": Tensor("bool", (2,), bytes(2))}),
    )  # fmt: skip

    def infer(self, shape: TensorSpec, value: Tensor | None) -> TensorSpec:
        assert shape.value is not None
        found = checked_shape(tuple(map(int, shape.value)), "input")
        if value is not None and TensorSpec(value.shape).size != 1:
            raise Invalid(
                "ATTRIBUTE_INVALID",
                f"value has shape {value.shape} but must be one element",
                attribute="value",
            )
        return TensorSpec(found, "float32" if value is None else value.dtype)

    def forward(self, xp: Namespace, shape: Ints, value: Tensor | None) -> Array:
        if value is None:
            return xp.full(shape, 0, "float32")
        return xp.broadcast_to(xp.reshape(xp.constant(value), ()), shape)

    def vjp(self, xp: Namespace, grad: Array, out: Array, *_: Any, **__: Any) -> tuple[None, ...]:
        return (None,)


class EyeLike(Gate):
    """Ones on a diagonal of a matrix, zeros elsewhere.

    Formula:   out[i, i + k] = 1, 0 elsewhere
    Gradient:  None: only the shape of input counts.
    Shapes:    As input, a matrix.
    """

    operator = "EyeLike"
    takes_halves = True
    output_dtypes = ("attribute:dtype|input:0",)
    inputs = (Input("input", ANY, elements=False),)
    attributes = (
        Attribute("dtype", "int", choices=dtype_choices(ANY),
                  doc="ONNX's number of the data type; input's if left out."),
        Attribute("k", "int", 0, doc="Which diagonal; positive ones are above the main one."),
    )  # fmt: skip
    examples = (
        Example(([[5.0, 6.0, 7.0], [8.0, 9.0, 1.0]],), [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]],
                gradients=(None,)),
        Example(([[5, 6, 7], [8, 9, 1]],), [[0, 0, 0], [1, 0, 0]], attributes={"k": -1}),
    )  # fmt: skip
    samples = (Sample((TensorSpec((2, 3)),), {"dtype": 9, "k": 5}),)
    rejections = (Rejection((TensorSpec((2,)),), "input has rank 1 but must be a matrix"),)

    def infer(self, x: TensorSpec, dtype: int | None, k: int) -> TensorSpec:
        if x.rank != 2:
            raise Invalid("SHAPE_MISMATCH", f"input has rank {x.rank} but must be a matrix")
        return TensorSpec(x.shape, dtype_numbered(dtype) if dtype else x.dtype)

    def forward(self, xp: Namespace, x: Array, dtype: int | None, k: int) -> Array:
        rows, columns = x.shape
        above = min(max(k, -rows), columns)  # further out there is no diagonal
        return xp.eye(rows, columns, above, dtype_numbered(dtype) if dtype else str(x.dtype))

    def vjp(self, xp: Namespace, grad: Array, out: Array, x: Array, **_: Any) -> tuple[None, ...]:
        return (None,)


class Range(Gate):
    """Numbers in equal steps.

    Formula:   out[i] = start + i * delta, up to limit but without it
    Gradient:  None: start, limit and delta are known before evaluation.
    Shapes:    A vector of max(ceil((limit - start) / delta), 0) numbers.
    """

    operator = "Range"
    inputs = tuple(
        Input(name, (*FLOATS, "int16", "int32", "int64"), known=True, whole=True)
        for name in ("start", "limit", "delta")
    )
    attributes = (Attribute("stash_type", "int", 1, doc="Without effect on these data types."),)
    examples = (
        Example((3, 9, 3), [3, 6]),
        Example((10, 4, -2), [10, 8, 6]),
        Example((1.0, 2.0, 0.25), [1.0, 1.25, 1.5, 1.75], gradients=(None, None, None)),
    )
    samples = (
        Sample((TensorSpec((), "int32", (5,)), TensorSpec((), "int32", (1,)),
                TensorSpec((), "int32", (2,)))),
        Sample((TensorSpec((), "float32", (0.5,)), TensorSpec((), "float32", (2.0,)),
                TensorSpec((), "float32", (0.4,)))),
    )  # fmt: skip
    rejections = (
        Rejection((_scalar(1), _scalar(5), _scalar(0)), "delta is 0"),
        Rejection((_scalar(1), _scalar(5), TensorSpec((2,), "int64", (1, 1))),
                  "delta has shape (2,) but must be one number"),
        Rejection((_scalar(0), _scalar(2**63 - 1), _scalar(1)), "gives the shape"),
    )  # fmt: skip

    def infer(
        self, start: TensorSpec, limit: TensorSpec, delta: TensorSpec, stash_type: int
    ) -> TensorSpec:
        first, end, step = (
            self._number(each, spec)
            for each, spec in zip(("start", "limit", "delta"), (start, limit, delta), strict=True)
        )
        if not step:
            raise Invalid("SHAPE_MISMATCH", "delta is 0, so the limit is never reached")
        # of integers rounded up exactly
        if start.is_floating and not abs((end - first) / step) < LARGEST:
            raise Invalid(
                "SHAPE_MISMATCH",
                f"the range from {first} to {end} has 2^60 steps of {step} or more",
            )
        count = ceil((end - first) / step) if start.is_floating else -int((first - end) // step)
        return TensorSpec(checked_shape((max(count, 0),), "the range"), start.dtype)

    def scratch(self, outs: Sequence[TensorSpec], *specs: Any, **attributes: Any) -> Scratch:
        return Scratch(outs[0].nbytes, 0)

    def forward(
        self, xp: Namespace, start: Array, limit: Array, delta: Array, stash_type: int
    ) -> Array:
        first, end, step = (
            TensorSpec((), str(each.dtype), (each.item(),)) for each in (start, limit, delta)
        )
        spec = self.infer(first, end, step, stash_type)
        steps = xp.arange(spec.size, spec.dtype)
        return xp.reshape(start, ()) + steps * xp.reshape(delta, ())

    def vjp(self, xp: Namespace, grad: Array, out: Array, *_: Any, **__: Any) -> tuple[None, ...]:
        return None, None, None

    def _number(self, name: str, spec: TensorSpec) -> float:
        if spec.size != 1:
            raise Invalid("SHAPE_MISMATCH", f"{name} has shape {spec.shape} but must be one number")
        assert spec.value is not None
        if not isfinite(spec.value[0]):
            raise Invalid("SHAPE_MISMATCH", f"{name} is {spec.value[0]} but must be finite")
        return spec.value[0]
