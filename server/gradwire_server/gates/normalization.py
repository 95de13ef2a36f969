"""Normalization: tensors scaled to mean 0 and variance 1, or to norm 1, along some axes."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, ClassVar

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
from gradwire_server.gates.windows import Windows
from gradwire_server.specs import (
    Shape,
    TensorSpec,
    broadcast_shapes,
    computed_in,
    normalize_axes,
    normalize_axis,
)

Axes = tuple[int, ...]

_EPSILON = Attribute("epsilon", "float", 1e-5, doc="Added to a variance before its root is taken.")
_STASH_TYPE = Attribute(
    "stash_type", "int", 1, choices=(1,),
    doc="ONNX's number of float32, the least that statistics are computed in, and that Mean and "
    "InvStdDev have; those of float64 are float64.",
)  # fmt: skip
_FIRST_AXIS = Attribute("axis", "int", -1, doc="First of the axes normalized together.")


def _mean(xp: Namespace, x: Array, axes: Axes) -> Array:
    """Mean along axes, which stay; 0 of nothing."""
    count = prod(x.shape[axis] for axis in axes) or 1
    return xp.sum(x, axis=axes, keepdims=True) / count


def _centred(xp: Namespace, x: Array, axes: Axes) -> tuple[Array, Array]:
    """x less its mean along axes, and that mean.

    A sum of equal numbers rounds, so that the mean of a constant slice may be an ulp off, which
    dividing by a standard deviation of nearly 0 makes a large number. So what is left is centred
    once more: of a constant slice that is small multiples of an ulp, and their mean is exact.
    """
    rough = _mean(xp, x, axes)
    centred = x - rough
    rest = _mean(xp, centred, axes)
    return centred - rest, rough + rest


def _standardized(
    xp: Namespace, x: Array, axes: Axes, epsilon: float
) -> tuple[Array, Array, Array]:
    """x with mean 0 and variance 1; its mean before; the inverse of its standard deviation."""
    centred, mean = _centred(xp, x, axes)
    inverse = 1.0 / xp.sqrt(_mean(xp, centred * centred, axes) + epsilon)
    return centred * inverse, mean, inverse


def _pull_standardized(
    xp: Namespace, grad: Array, standard: Array, inverse: Array, axes: Axes
) -> Array:
    """The gradient of x: what is left of grad without its mean and its part along `standard`."""
    along = _mean(xp, grad * standard, axes)
    return inverse * (grad - _mean(xp, grad, axes) - standard * along)


def _require_broadcast(name: str, spec: TensorSpec | None, x: TensorSpec) -> None:
    if spec is not None:
        try:
            fits = broadcast_shapes(spec.shape, x.shape) == x.shape
        except Invalid:
            fits = False
        if not fits:
            raise Invalid(
                "SHAPE_MISMATCH",
                f"{name} of shape {spec.shape} does not broadcast to X's shape {x.shape}",
            )


def _broadcast_shapes_for_batch(*specs: TensorSpec | None) -> tuple[Shape, ...]:
    """Shapes with the first one's rank, so that a batch axis comes before all."""
    rank = max(spec.rank for spec in specs if spec is not None)
    return tuple(() if spec is None else (1,) * (rank - spec.rank) + spec.shape for spec in specs)


class LayerNormalization(Gate):
    """Each slice of the last axes with mean 0 and variance 1, then scaled and shifted.

    Formula:   D = X - mean(X);  Y = D / sqrt(mean(D^2) + epsilon) * Scale + B
    Gradient:  with S = D * InvStdDev, g = grad * Scale:  to X = InvStdDev * (g - mean(g) - S *
               mean(g * S)), and more through Mean and InvStdDev;  to Scale = grad * S;  to B = grad
    Shapes:    Y as X; Scale and B broadcast to X; Mean and InvStdDev as X with size 1 from axis on.
    """

    operator = "LayerNormalization"
    inputs = (Input("X"), Input("Scale"), Input("B", optional=True))
    attributes = (_FIRST_AXIS, _EPSILON, _STASH_TYPE)
    outputs = (1, 3)
    output_dtypes = ("input:0", "computed:0")
    examples = (
        Example(([[1.0, 3.0]], [1.0, 2.0], [0.0, 0.5]), ([[-1.0, 2.5]], [[2.0]], [[1.0]]),
                gradients=([[0.0, 0.0]], [-1.0, 1.0], [1.0, 1.0]), attributes={"epsilon": 0.0}),
        Example(([[0.0, 0.0]], [3.0, 1.0]), ([[0.0, 0.0]], [[0.0]], [[0.5]]),
                gradients=([[0.5, -0.5]], [0.0, 0.0]), attributes={"epsilon": 4.0}),
    )  # fmt: skip
    samples = (
        Sample((TensorSpec((2, 3, 4)), TensorSpec((4,)), TensorSpec((4,)))),
        Sample((TensorSpec((2, 3, 4)), TensorSpec((3, 4))), {"axis": 1, "epsilon": 0.1}),
        Sample((TensorSpec((2, 3, 4)), TensorSpec((3, 1)), TensorSpec(())), {"axis": -2}),
        Sample((TensorSpec((2, 3)), TensorSpec((2, 3)), TensorSpec((2, 1))), {"axis": 0}),
        Sample((TensorSpec((0, 3)), TensorSpec((3,)))),
    )
    rejections = (
        Rejection((TensorSpec((2, 3)), TensorSpec((2,))),
                  "Scale of shape (2,) does not broadcast to X's shape (2, 3)"),
        Rejection((TensorSpec((3,)), TensorSpec((3,)), TensorSpec((2, 3))),
                  "B of shape (2, 3) does not broadcast to X's shape (3,)"),
        Rejection((TensorSpec((2, 3)), TensorSpec((3,))), "axis 2 is outside",
                  "ATTRIBUTE_INVALID", {"axis": 2}),
    )  # fmt: skip

    def infer(
        self, x: TensorSpec, scale: TensorSpec, b: TensorSpec | None = None, *, axis: int, **_: Any
    ) -> tuple[TensorSpec, ...]:
        first = normalize_axis(axis, x.rank)
        _require_broadcast("Scale", scale, x)
        _require_broadcast("B", b, x)
        kept = TensorSpec((*x.shape[:first], *(1,) * (x.rank - first)), computed_in(x.dtype))
        return TensorSpec(x.shape, x.dtype), kept, kept

    def scratch(
        self,
        outs: Sequence[TensorSpec],
        x: TensorSpec,
        scale: TensorSpec,
        bias: TensorSpec | None = None,
        **attributes: Any,
    ) -> Scratch:
        return Scratch((1 if bias is None else 2) * x.nbytes, 4 * x.nbytes)

    def forward(
        self,
        xp: Namespace,
        x: Array,
        scale: Array,
        b: Array | None = None,
        *,
        axis: int,
        epsilon: float,
        stash_type: int,
    ) -> tuple[Array, ...]:
        given = [each for each in (x, scale, b) if each is not None]
        longest = max(given, key=lambda each: len(each.shape))
        if len(longest.shape) > len(x.shape):
            x = _with_batch_axis(xp, x, (longest.shape[0], *x.shape))
        standard, mean, inverse = _standardized(xp, x, _from(x, axis), epsilon)
        out = standard * scale
        return out if b is None else out + b, mean, inverse

    def vjp(
        self,
        xp: Namespace,
        grad: Any,
        out: Any,
        x: Array,
        scale: Array,
        *b: Array | None,
        axis: int,
        epsilon: float,
        stash_type: int,
    ) -> tuple[Any, ...]:
        to_y, to_mean, to_inverse = (*grad, None, None)[:3]
        axes = _from(x, axis)
        x = _with_batch_axis(xp, x, out[0].shape)
        standard, _, inverse = _standardized(xp, x, axes, epsilon)
        count = prod(x.shape[each] for each in axes) or 1

        def to_x() -> Array:
            parts = []
            if to_y is not None:
                parts.append(_pull_standardized(xp, to_y * scale, standard, inverse, axes))
            if to_mean is not None:
                parts.append(xp.broadcast_to(to_mean / count, x.shape))
            if to_inverse is not None:
                parts.append(standard * (to_inverse * inverse * inverse / -count))
            return _sum(parts)

        if to_y is None:
            return to_x, None, *(None for _ in b)
        return to_x, lambda: to_y * standard, *(None if each is None else to_y for each in b)

    def aligned_shapes(
        self, *specs: TensorSpec | None, axis: int, **_: Any
    ) -> tuple[Shape, ...] | None:
        return _broadcast_shapes_for_batch(*specs) if axis < 0 else None


def _from(x: Array, axis: int) -> Axes:
    """The last axes, counted from the end, where a batch axis changes nothing."""
    return tuple(range(normalize_axis(axis, len(x.shape)) - len(x.shape), 0))


def _with_batch_axis(xp: Namespace, x: Array, out_shape: Shape) -> Array:
    """X, repeated where only its scale or bias has the batch axis."""
    return x if x.shape == out_shape else xp.broadcast_to(x, out_shape)


def _sum(parts: list[Array]) -> Array:
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


class RMSNormalization(Gate):
    """Each slice of the last axes with mean square 1, then scaled.

    Formula:   Y = X / sqrt(mean(X^2) + epsilon) * scale
    Gradient:  with R = 1 / sqrt(mean(X^2) + epsilon), g = grad * scale:  to X = R * (g - X * R *
               mean(g * X * R));  to scale = grad * X * R
    Shapes:    Y as X; scale broadcasts to X.
    """

    operator = "RMSNormalization"
    scratch_arrays = (1, 3)
    inputs = (Input("X"), Input("scale", group="V"))
    output_dtypes = ("input:1",)
    mixed_groups = ("T", "V")
    attributes = (_FIRST_AXIS, _EPSILON, _STASH_TYPE)
    examples = (
        Example(([[1.0, 7.0]], [1.0, 2.0]), [[0.2, 2.8]],
                gradients=([[0.14, -0.02]], [0.2, 1.4]),
                attributes={"epsilon": 0.0}),
    )  # fmt: skip
    samples = (
        Sample((TensorSpec((2, 3, 4)), TensorSpec((4,)))),
        Sample((TensorSpec((2, 3, 4)), TensorSpec((3, 4))), {"axis": 1, "epsilon": 0.1}),
        Sample((TensorSpec((2, 3, 4)), TensorSpec((3, 1))), {"axis": -2}),
        Sample((TensorSpec((0, 3)), TensorSpec((3,)))),
    )
    rejections = (
        Rejection((TensorSpec((2, 3)), TensorSpec((2,))),
                  "scale of shape (2,) does not broadcast to X's shape (2, 3)"),
        Rejection((TensorSpec((2, 3)), TensorSpec((3,))), "axis -3 is outside",
                  "ATTRIBUTE_INVALID", {"axis": -3}),
    )  # fmt: skip

    def infer(self, x: TensorSpec, scale: TensorSpec, *, axis: int, **_: Any) -> TensorSpec:
        normalize_axis(axis, x.rank)
        _require_broadcast("scale", scale, x)
        return TensorSpec(x.shape, scale.dtype)

    def forward(
        self, xp: Namespace, x: Array, scale: Array, *, axis: int, epsilon: float, stash_type: int
    ) -> Array:
        return x * self._inverse(xp, x, axis, epsilon) * scale

    def vjp(
        self,
        xp: Namespace,
        grad: Array,
        out: Array,
        x: Array,
        scale: Array,
        *,
        axis: int,
        epsilon: float,
        stash_type: int,
    ) -> tuple[Any, ...]:
        inverse = self._inverse(xp, x, axis, epsilon)
        unit = x * inverse

        def to_x() -> Array:
            to_unit = grad * scale
            return inverse * (to_unit - unit * _mean(xp, to_unit * unit, _from(x, axis)))

        return to_x, lambda: grad * unit

    def aligned_shapes(self, *specs: TensorSpec, axis: int, **_: Any) -> tuple[Shape, ...] | None:
        return _broadcast_shapes_for_batch(*specs) if axis < 0 else None

    def _inverse(self, xp: Namespace, x: Array, axis: int, epsilon: float) -> Array:
        return 1.0 / xp.sqrt(_mean(xp, x * x, _from(x, axis)) + epsilon)


class _ChannelNormalization(Gate):
    """Groups of channels with mean 0 and variance 1 in each image; then each channel scaled.

    Its inputs are x, scale and bias, whatever ONNX calls them.
    """

    def groups(self, x: Any, **attributes: Any) -> int:
        """How many parts the channels are in."""
        raise NotImplementedError

    def infer(self, x: TensorSpec, scale: TensorSpec, b: TensorSpec, **rest: Any) -> TensorSpec:
        names = [each.name for each in self.inputs]
        if x.rank < 3:
            raise Invalid(
                "SHAPE_MISMATCH", f"{names[0]} has rank {x.rank} but needs a spatial axis: rank 3"
            )
        _require_channels(x, zip(names[1:], (scale, b), strict=True))
        return TensorSpec(x.shape, x.dtype)

    def forward(
        self, xp: Namespace, x: Array, scale: Array, b: Array, *, epsilon: float, **rest: Any
    ) -> Array:
        standard, _ = self._standard(xp, x, epsilon, rest)
        return standard * _lying(xp, scale, x) + _lying(xp, b, x)

    def vjp(
        self,
        xp: Namespace,
        grad: Array,
        out: Array,
        x: Array,
        scale: Array,
        b: Array,
        *,
        epsilon: float,
        **rest: Any,
    ) -> tuple[Any, ...]:
        standard, inverse = self._standard(xp, x, epsilon, rest)

        def to_x() -> Array:
            shape = self._grouped(x, rest)
            to_standard = xp.reshape(grad * _lying(xp, scale, x), shape)
            flat = xp.reshape(standard, shape)
            return xp.reshape(_pull_standardized(xp, to_standard, flat, inverse, (2,)), x.shape)

        others = _but_channels(x)
        return (
            to_x,
            lambda: xp.sum(grad * standard, axis=others),
            lambda: xp.sum(grad, axis=others),
        )

    def _grouped(self, x: Array, attributes: dict[str, Any]) -> Shape:
        groups = self.groups(x, **attributes)
        return x.shape[0], groups, prod(x.shape[1:]) // max(groups, 1)

    def _standard(
        self, xp: Namespace, x: Array, epsilon: float, attributes: dict[str, Any]
    ) -> tuple[Array, Array]:
        grouped = xp.reshape(x, self._grouped(x, attributes))
        standard, _, inverse = _standardized(xp, grouped, (2,), epsilon)
        return xp.reshape(standard, x.shape), inverse


def _require_channels(x: TensorSpec, given: Any) -> None:
    channels = x.shape[1] if x.rank > 1 else 1
    for name, spec in given:
        if spec.shape != (channels,):
            raise Invalid(
                "SHAPE_MISMATCH", f"{name} has shape {spec.shape} but there are {channels} channels"
            )


def _but_channels(x: Array) -> Axes:
    return (0, *range(2, len(x.shape)))


def _lying(xp: Namespace, vector: Array, x: Array) -> Array:
    """A number for each channel, along x's axis 1."""
    if len(x.shape) < 2:
        return vector
    return xp.reshape(vector, (vector.shape[0], *(1,) * (len(x.shape) - 2)))


class InstanceNormalization(_ChannelNormalization):
    """Each channel of each image with mean 0 and variance 1, then scaled and shifted.

    Formula:   D = input - mean(input) over the spatial axes;  output = D / sqrt(mean(D^2) +
               epsilon) * scale + B
    Gradient:  as LayerNormalization's for each channel;  to scale and B summed over images and
               spatial axes
    Shapes:    input [N, C, sizes], scale and B [C]; output as input.
    """

    operator = "InstanceNormalization"
    scratch_arrays = (2, 3)
    inputs = (Input("input"), Input("scale"), Input("B"))
    attributes = (_EPSILON,)
    examples = (
        Example(([[[1.0, 3.0], [5.0, 7.0]]], [2.0, 1.0], [0.5, 0.0]),
                [[[-1.5, 2.5], [-1.0, 1.0]]],
                gradients=([[[0.0, 0.0], [0.0, 0.0]]], [0.0, 0.0], [2.0, 2.0]),
                attributes={"epsilon": 0.0}),
    )  # fmt: skip
    samples = (
        Sample((TensorSpec((2, 3, 4)), TensorSpec((3,)), TensorSpec((3,)))),
        Sample((TensorSpec((1, 2, 3, 2)), TensorSpec((2,)), TensorSpec((2,))), {"epsilon": 0.1}),
        Sample((TensorSpec((0, 2, 3)), TensorSpec((2,)), TensorSpec((2,)))),
        Sample((TensorSpec((2, 0, 3)), TensorSpec((0,)), TensorSpec((0,)))),
    )
    rejections = (
        Rejection((TensorSpec((2, 3)), TensorSpec((3,)), TensorSpec((3,))),
                  "input has rank 2 but needs a spatial axis"),
        Rejection((TensorSpec((2, 3, 4)), TensorSpec((3,)), TensorSpec((4,))),
                  "B has shape (4,) but there are 3 channels"),
    )  # fmt: skip

    def groups(self, x: Any, **attributes: Any) -> int:
        return int(x.shape[1])


class GroupNormalization(_ChannelNormalization):
    """Each group of channels of each image with mean 0 and variance 1; then each channel scaled.

    Formula:   D = X - mean(X) over a group;  Y = D / sqrt(mean(D^2) + epsilon) * scale + bias
    Gradient:  as LayerNormalization's for each group;  to scale and bias summed over images and
               spatial axes
    Shapes:    X [N, C, sizes], scale and bias [C]; Y as X. num_groups divides C.
    """

    operator = "GroupNormalization"
    scratch_arrays = (2, 3)
    inputs = (Input("X"), Input("scale"), Input("bias"))
    attributes = (
        _EPSILON,
        Attribute("num_groups", "int", required=True, doc="Parts of the channels."),
        _STASH_TYPE,
    )
    examples = (
        Example(([[[1.0], [3.0]]], [2.0, 1.0], [0.5, 0.0]), [[[-1.5], [1.0]]],
                gradients=([[[0.0], [0.0]]], [-1.0, 1.0], [1.0, 1.0]),
                attributes={"epsilon": 0.0, "num_groups": 1}),
    )  # fmt: skip
    samples = (
        Sample((TensorSpec((2, 4, 3)), TensorSpec((4,)), TensorSpec((4,))), {"num_groups": 2}),
        Sample((TensorSpec((1, 3, 2, 2)), TensorSpec((3,)), TensorSpec((3,))),
               {"num_groups": 3, "epsilon": 0.1}),
        Sample((TensorSpec((0, 2, 3)), TensorSpec((2,)), TensorSpec((2,))), {"num_groups": 1}),
    )  # fmt: skip
    rejections = (
        Rejection((TensorSpec((2, 3, 4)), TensorSpec((3,)), TensorSpec((3,))),
                  "3 channels are not divisible into 2 groups", attributes={"num_groups": 2}),
        Rejection((TensorSpec((2, 3, 4)), TensorSpec((3,)), TensorSpec((3,))),
                  "num_groups is 0", "ATTRIBUTE_INVALID", {"num_groups": 0}),
        Rejection((TensorSpec((2, 4, 4)), TensorSpec((2,)), TensorSpec((4,))),
                  "scale has shape (2,) but there are 4 channels", attributes={"num_groups": 2}),
    )  # fmt: skip

    def groups(self, x: Any, **attributes: Any) -> int:
        groups: int = attributes["num_groups"]
        return groups

    def infer(self, x: TensorSpec, scale: TensorSpec, b: TensorSpec, **rest: Any) -> TensorSpec:
        found = super().infer(x, scale, b, **rest)
        groups = rest["num_groups"]
        if groups < 1:
            raise Invalid(
                "ATTRIBUTE_INVALID",
                f"num_groups is {groups} but must be 1 or more",
                attribute="num_groups",
            )
        if x.shape[1] % groups:
            raise Invalid(
                "SHAPE_MISMATCH",
                f"{x.shape[1]} channels are not divisible into {groups} groups",
            )
        return found


class BatchNormalization(Gate):
    """Each channel with mean 0 and variance 1 by given statistics or the batch's own; then scaled.

    Formula:   Y = (X - mean) / sqrt(var + epsilon) * scale + B;  mean and var are input_mean and
               input_var, or with training_mode those of X over images and spatial axes, and then
               running_mean = momentum * input_mean + (1 - momentum) * mean, running_var alike
    Gradient:  with I = 1 / sqrt(var + epsilon), S = (X - mean) * I:  to scale = sum of grad * S;
               to B = sum of grad;  to X = grad * scale * I, to input_mean = -scale * I * sum of
               grad, to input_var = -scale * I^2 / 2 * sum of grad * S;  with training_mode to X as
               LayerNormalization's over a channel, and through the running statistics
    Shapes:    X [N, C, sizes], the others [C]; X [N] has one channel. Variances are of the
               population: divided by the number of elements.
    """

    operator = "BatchNormalization"
    inputs = (
        Input("X"),
        Input("scale", group="T1"),
        Input("B", group="T1"),
        Input("input_mean", group="T2"),
        Input("input_var", group="T2", domain=(0.5, 2.0)),
    )
    output_dtypes = ("input:0", "input:3")
    mixed_groups = ("T", "T1", "T2")
    attributes = (
        _EPSILON,
        Attribute("momentum", "float", 0.9, doc="Share of the old running statistics."),
        Attribute("training_mode", "int", 0, choices=(0, 1),
                  doc="1 takes X's own statistics, and yields running ones."),
    )  # fmt: skip
    outputs = (1, 3)
    more_outputs_with = "training_mode"
    examples = (
        Example(([[1.0], [3.0]], [2.0], [0.5], [2.0], [4.0]), ([[-0.5], [1.5]],),
                gradients=([[1.0], [1.0]], [0.0], [2.0], [-2.0], [0.0]),
                attributes={"epsilon": 0.0}),
        Example(([[1.0], [3.0]], [2.0], [0.5], [0.0], [0.0]), ([[-1.5], [2.5]], [0.5], [0.25]),
                gradients=([[0.0], [0.0]], [0.0], [2.0], None, None),
                attributes={"epsilon": 0.0, "training_mode": 1, "momentum": 0.75}),
    )  # fmt: skip
    samples = tuple(
        Sample((TensorSpec(shape), *(TensorSpec(channels) for _ in range(4))), attributes)
        for shape, channels, attributes in (
            ((2, 3, 4), (3,), {}),
            ((2, 3), (3,), {"epsilon": 0.1}),
            ((4,), (1,), {}),
            ((2, 2, 3, 2), (2,), {"training_mode": 1}),
            ((4, 3), (3,), {"training_mode": 1, "momentum": 0.5, "epsilon": 0.1}),
            ((4,), (1,), {"training_mode": 1}),
            ((0, 3, 2), (3,), {}),
        )
    )
    rejections = (
        Rejection((TensorSpec((2, 3)), *(TensorSpec((3,)),) * 3, TensorSpec((2,))),
                  "input_var has shape (2,) but there are 3 channels"),
        Rejection((TensorSpec(()), *(TensorSpec((1,)),) * 4), "X has rank 0"),
    )  # fmt: skip

    def infer(self, x: TensorSpec, *given: TensorSpec, training_mode: int, **_: Any) -> Any:
        if not x.rank:
            raise Invalid("SHAPE_MISMATCH", "X has rank 0 but needs an axis of images")
        names = (each.name for each in self.inputs[1:])
        _require_channels(x, zip(names, given, strict=True))
        out = TensorSpec(x.shape, x.dtype)
        return (out, *given[2:]) if training_mode else (out,)

    def scratch(
        self, outs: Sequence[TensorSpec], x: TensorSpec, *_: Any, **attributes: Any
    ) -> Scratch:
        if not attributes["training_mode"]:
            return Scratch(x.nbytes, x.nbytes)
        return Scratch(2 * x.nbytes, (5 if len(outs) > 1 else 3) * x.nbytes)

    def forward(
        self,
        xp: Namespace,
        x: Array,
        scale: Array,
        b: Array,
        mean: Array,
        var: Array,
        *,
        epsilon: float,
        momentum: float,
        training_mode: int,
    ) -> tuple[Array, ...]:
        if not training_mode:
            slope = scale / xp.sqrt(var + epsilon)
            return ((x - _lying(xp, mean, x)) * _lying(xp, slope, x) + _lying(xp, b, x),)
        axes = _but_channels(x)
        centred, own_mean = _centred(xp, x, axes)
        own_var = _mean(xp, centred * centred, axes)
        slope = _lying(xp, scale, x) / xp.sqrt(own_var + epsilon)
        running = (
            momentum * old + (1.0 - momentum) * xp.reshape(own, old.shape)
            for old, own in ((mean, own_mean), (var, own_var))
        )
        return centred * slope + _lying(xp, b, x), *running

    def vjp(
        self,
        xp: Namespace,
        grad: Any,
        out: Any,
        x: Array,
        scale: Array,
        b: Array,
        mean: Array,
        var: Array,
        *,
        epsilon: float,
        momentum: float,
        training_mode: int,
    ) -> tuple[Any, ...]:
        if training_mode:
            return self._pull_training(xp, grad, x, scale, epsilon, momentum)
        (to_y,) = grad[:1]
        axes = _but_channels(x)
        inverse = 1.0 / xp.sqrt(var + epsilon)
        slope = scale * inverse

        def along() -> Array:
            return inverse * xp.sum(to_y * (x - _lying(xp, mean, x)), axis=axes)

        def total() -> Array:
            return xp.sum(to_y, axis=axes)

        return (
            lambda: to_y * _lying(xp, slope, x),
            lambda: _as_vector(xp, along(), scale),
            lambda: _as_vector(xp, total(), scale),
            lambda: -slope * total(),
            lambda: -0.5 * slope * inverse * along(),
        )

    def _pull_training(
        self, xp: Namespace, grad: Any, x: Array, scale: Array, epsilon: float, momentum: float
    ) -> tuple[Any, ...]:
        to_y, to_running_mean, to_running_var = (*grad, None, None)[:3]
        axes = _but_channels(x)
        standard, own_mean, inverse = _standardized(xp, x, axes, epsilon)
        share = (1.0 - momentum) / (prod(x.shape[axis] for axis in axes) or 1)

        def to_x() -> Array:
            parts = []
            if to_y is not None:
                to_standard = to_y * _lying(xp, scale, x)
                parts.append(_pull_standardized(xp, to_standard, standard, inverse, axes))
            if to_running_mean is not None:
                own = _lying(xp, share * to_running_mean, x)
                parts.append(xp.broadcast_to(own, x.shape))
            if to_running_var is not None:
                own = _lying(xp, 2.0 * share * to_running_var, x)
                parts.append(own * (x - own_mean))
            return _sum(parts)

        def kept(to_running: Array | None) -> Array | None:
            return None if to_running is None else momentum * to_running

        to_scale = to_b = None
        if to_y is not None:
            to_scale = _as_vector(xp, xp.sum(to_y * standard, axis=axes), scale)
            to_b = _as_vector(xp, xp.sum(to_y, axis=axes), scale)
        return to_x, to_scale, to_b, kept(to_running_mean), kept(to_running_var)


def _as_vector(xp: Namespace, total: Array, scale: Array) -> Array:
    return total if total.shape == scale.shape else xp.reshape(total, scale.shape)


class LRN(Gate):
    """Each element divided by a power of the mean square of its neighbours in other channels.

    Formula:   Y = X / D^beta,  D = bias + alpha / size * (sum of X^2 over the `size` channels
               around, (size - 1) // 2 of them before)
    Gradient:  to X = grad / D^beta - 2 * alpha * beta / size * X * (sum of grad * X / D^(beta + 1)
               over the channels that X is a neighbour of)
    Shapes:    X [N, C, ..]; Y as X.
    """

    operator = "LRN"
    scratch_arrays = (2, 5)
    inputs = (Input("X"),)
    attributes = (
        Attribute("alpha", "float", 1e-4, doc="Weight of the squares."),
        Attribute("beta", "float", 0.75, doc="Power."),
        Attribute("bias", "float", 1.0, doc="Added to the weighted squares."),
        Attribute("size", "int", required=True, doc="How many channels are summed."),
    )
    examples = (
        Example(([[[1.0], [2.0]]],), [[[0.5], [2.0]]], gradients=([[[0.0], [-8.0]]],),
                attributes={"size": 2, "alpha": 2.0, "beta": 1.0, "bias": -3.0}),
    )  # fmt: skip
    samples = (
        Sample((TensorSpec((2, 5, 3)),), {"size": 3, "alpha": 0.5}),
        Sample((TensorSpec((1, 4, 2, 2)),), {"size": 2, "alpha": 1.0, "bias": 2.0, "beta": 0.5}),
        Sample((TensorSpec((2, 3)),), {"size": 9, "alpha": 0.5}),
        Sample((TensorSpec((0, 3, 2)),), {"size": 1}),
    )
    rejections = (
        Rejection((TensorSpec((3,)),), "X has rank 1 but needs channels", attributes={"size": 1}),
        Rejection((TensorSpec((1, 3)),), "size is 0", "ATTRIBUTE_INVALID", {"size": 0}),
        Rejection((TensorSpec((1, 3)),), "'size' must be given", "ATTRIBUTE_INVALID"),
    )

    def infer(self, x: TensorSpec, *, size: int, **_: Any) -> TensorSpec:
        if x.rank < 2:
            raise Invalid("SHAPE_MISMATCH", f"X has rank {x.rank} but needs channels: rank 2")
        if size < 1:
            raise Invalid(
                "ATTRIBUTE_INVALID", f"size is {size} but must be 1 or more", attribute="size"
            )
        return TensorSpec(x.shape, x.dtype)

    def forward(
        self, xp: Namespace, x: Array, *, alpha: float, beta: float, bias: float, size: int
    ) -> Array:
        return x * xp.pow(self._divisor(xp, x, alpha, bias, size), -beta)

    def vjp(
        self,
        xp: Namespace,
        grad: Array,
        out: Array,
        x: Array,
        *,
        alpha: float,
        beta: float,
        bias: float,
        size: int,
    ) -> tuple[Any, ...]:
        divisor = self._divisor(xp, x, alpha, bias, size)
        direct = grad * xp.pow(divisor, -beta)
        if not x.shape[1]:
            return (direct,)
        flat, windows = self._windows(x, size)
        to_squares = xp.reshape(direct * x / divisor, flat)
        spread = xp.spread_windows(to_squares, windows, flat[2:])
        return (direct - (2.0 * alpha * beta / size) * x * xp.reshape(spread, x.shape),)

    def operations(
        self, outs: tuple[TensorSpec, ...], x: TensorSpec, *, size: int, **_: Any
    ) -> int:
        return x.size * (min(size, 2 * x.shape[1]) + 10)

    def _divisor(self, xp: Namespace, x: Array, alpha: float, bias: float, size: int) -> Array:
        if not x.shape[1]:
            return x
        flat, windows = self._windows(x, size)
        total = xp.sum_windows(xp.reshape(x * x, flat), windows)
        return bias + (alpha / size) * xp.reshape(total, x.shape)

    def _windows(self, x: Array, size: int) -> tuple[Shape, Windows]:
        """Windows of channels, and the shape in which channels are a spatial axis."""
        channels, rest = x.shape[1], prod(x.shape[2:])
        # neighbours further away than there are channels change nothing
        before, after = min((size - 1) // 2, channels), min(size // 2, channels)
        windows = Windows(
            kernel=(before + 1 + after, 1),
            strides=(1, 1),
            dilations=(1, 1),
            before=(before, 0),
            after=(after, 0),
            counts=(channels, rest),
        )
        return (x.shape[0], 1, channels, rest), windows


class LpNormalization(Gate):
    """Slices along an axis divided by their norm.

    Formula:   output = input / norm,  norm = sum of |input|  (p 1)  or  sqrt(sum of input^2)  (p 2)
    Gradient:  to input = (grad - slope * sum of grad * output) / norm;  slope = sign(input) (p 1)
               or output (p 2)
    Kinks:     a slice of zeros stays zero, and its gradient is 0; with p 1 sign(0) = 0.
    Shapes:    As input.
    """

    operator = "LpNormalization"
    inputs = (Input("input"),)
    attributes = (
        Attribute("axis", "int", -1, doc="What is normalized along."),
        Attribute("p", "int", 2, choices=(1, 2), doc="Power of the norm."),
    )
    examples = (
        Example(([[3.0, 4.0]],), [[0.6, 0.8]], gradients=([[0.032, -0.024]],)),
        Example(([[1.0, -3.0]],), [[0.25, -0.75]], gradients=([[0.375, 0.125]],),
                attributes={"p": 1}),
        Example(([3e200, 4e200],), [0.6, 0.8], gradients=([0.0, 0.0],), at_kink=True),
        Example(([0.0, 0.0],), [0.0, 0.0], gradients=([0.0, 0.0],), at_kink=True),
    )  # fmt: skip
    samples = (
        Sample((TensorSpec((2, 3)),)),
        Sample((TensorSpec((2, 3, 2)),), {"axis": 1, "p": 1}),
        Sample((TensorSpec((2, 3)),), {"axis": -2}),
        Sample((TensorSpec((0, 3)),)),
        Sample((TensorSpec((3, 0)),)),
    )
    rejections = (
        Rejection((TensorSpec((2,)),), "axis 1 is outside", "ATTRIBUTE_INVALID", {"axis": 1}),
        Rejection((TensorSpec((2,)),), "'p' is 3 but must be one of", "ATTRIBUTE_INVALID",
                  {"p": 3}),
    )  # fmt: skip

    def infer(self, x: TensorSpec, axis: int, p: int) -> TensorSpec:
        normalize_axis(axis, x.rank)
        return TensorSpec(x.shape, x.dtype)

    def aligned_shapes(self, x: TensorSpec, axis: int, p: int) -> tuple[Shape, ...] | None:
        return (x.shape,) if axis < 0 else None

    def scratch(self, outs: Sequence[TensorSpec], x: TensorSpec, axis: int, p: int) -> Scratch:
        return Scratch(x.nbytes, int((2.8 if p == 1 else 1) * x.nbytes))

    def forward(self, xp: Namespace, x: Array, axis: int, p: int) -> Array:
        return x / self._norm(xp, x, axis, p)

    def vjp(
        self, xp: Namespace, grad: Array, out: Array, x: Array, axis: int, p: int
    ) -> tuple[Any, ...]:
        norm = self._norm(xp, x, axis, p)
        along = xp.sum(grad * out, axis=(axis,), keepdims=True)
        slope = out if p == 2 else xp.sign(x)
        is_zero = xp.equal(xp.max(xp.abs(x), axis=(axis,), keepdims=True), 0.0)
        return (xp.where(is_zero, 0.0, (grad - slope * along) / norm),)

    def _norm(self, xp: Namespace, x: Array, axis: int, p: int) -> Array:
        """The norm, without overflow; 1 where it is 0."""
        largest = xp.max(xp.abs(x), axis=(axis,), keepdims=True)
        usable = xp.logical_and(xp.greater(largest, 0.0), xp.logical_not(xp.isinf(largest)))
        scale = xp.where(usable, largest, 1.0)
        scaled = x / scale
        parts = scaled * scaled if p == 2 else xp.abs(scaled)
        total = xp.sum(parts, axis=(axis,), keepdims=True)
        norm = scale * (xp.sqrt(total) if p == 2 else total)
        return xp.where(xp.equal(largest, 0.0), 1.0, norm)


class MeanVarianceNormalization(Gate):
    """Slices along axes with mean 0 and variance 1.

    Formula:   D = X - mean(X);  Y = D / (s + 1e-9),  s = sqrt(mean(D^2))
    Gradient:  to X = (grad - mean(grad)) / (s + 1e-9) - Y * mean(grad * Y) / s
    Kinks:     where all of a slice is equal, the second term is 0.
    Shapes:    As X.
    """

    operator = "MeanVarianceNormalization"
    scratch_arrays = (1, 3)
    inputs = (Input("X"),)
    attributes = (
        Attribute("axes", "ints", (0, 2, 3), doc="What mean and variance are taken along."),
    )
    examples = (
        Example(([[1.0, 3.0], [5.0, 5.0]],), [[-0.999999999, 0.999999999], [0.0, 0.0]],
                gradients=([[0.0, 0.0], [0.0, 0.0]],), attributes={"axes": (-1,)}, at_kink=True),
    )  # fmt: skip
    samples = (
        Sample((TensorSpec((2, 3, 2, 2)),)),
        Sample((TensorSpec((2, 3)),), {"axes": (-1,)}),
        Sample((TensorSpec((2, 3, 4)),), {"axes": (0, -1)}),
        Sample((TensorSpec((0, 3)),), {"axes": (1,)}),
    )
    rejections = (
        Rejection((TensorSpec((2, 3)),), "axis 2 is outside", "ATTRIBUTE_INVALID"),
        Rejection((TensorSpec((2, 3)),), "axes (1, -1) name one axis twice", "ATTRIBUTE_INVALID",
                  {"axes": (1, -1)}),
    )  # fmt: skip
    _EPSILON: ClassVar[float] = 1e-9

    def infer(self, x: TensorSpec, axes: Axes) -> TensorSpec:
        normalize_axes(axes, x.rank)
        return TensorSpec(x.shape, x.dtype)

    def aligned_shapes(self, x: TensorSpec, axes: Axes) -> tuple[Shape, ...] | None:
        return (x.shape,) if all(axis < 0 for axis in axes) else None

    def forward(self, xp: Namespace, x: Array, axes: Axes) -> Array:
        axes = normalize_axes(axes, len(x.shape))
        centred, _ = _centred(xp, x, axes)
        return centred / (xp.sqrt(_mean(xp, centred * centred, axes)) + self._EPSILON)

    def vjp(self, xp: Namespace, grad: Array, out: Array, x: Array, axes: Axes) -> tuple[Any, ...]:
        axes = normalize_axes(axes, len(x.shape))
        centred, _ = _centred(xp, x, axes)
        spread = _mean(xp, centred * centred, axes)
        is_flat = xp.equal(spread, 0.0)
        deviation = xp.where(is_flat, 0.0, xp.sqrt(xp.where(is_flat, 1.0, spread)))
        divisor = deviation + self._EPSILON
        standard = centred / divisor
        along = _mean(xp, grad * standard, axes) / xp.where(is_flat, 1.0, deviation)
        return ((grad - _mean(xp, grad, axes)) / divisor - standard * along,)
