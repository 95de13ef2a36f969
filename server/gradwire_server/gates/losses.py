"""Softmax and the losses made of it. Exponentials are of differences from the largest: none
overflows."""

from __future__ import annotations

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
)
from gradwire_server.specs import INDICES, Shape, TensorSpec, normalize_axis

_AXIS = (Attribute("axis", "int", -1, doc="What is normalized along."),)
_OUTSIDE = Rejection((TensorSpec((2,)),), "axis 3 is outside", "ATTRIBUTE_INVALID", {"axis": 3})
_AXIS_SAMPLES = (
    Sample((TensorSpec((2, 3)),)),
    Sample((TensorSpec((2, 3, 4)),), {"axis": 1}),
    Sample((TensorSpec((0, 3)),)),
    Sample((TensorSpec((2, 3)),), {"axis": -2}),
)


def log_softmax(xp: Namespace, x: Array, axis: int) -> Array:
    """x - log(sum(exp(x))) along an axis."""
    shifted = x - xp.max(x, axis=(axis,), keepdims=True)
    return shifted - xp.log(xp.sum(xp.exp(shifted), axis=(axis,), keepdims=True))


def _along_axis(spec: TensorSpec, axis: int) -> TensorSpec:
    normalize_axis(axis, spec.rank)
    return TensorSpec(spec.shape, spec.dtype)


class Softmax(Gate):
    """Positive numbers that sum to 1 along an axis.

    Formula:   out = exp(input) / sum(exp(input)) along axis
    Gradient:  to input = out * (grad - sum(grad * out))
    Shapes:    As input.
    """

    operator = "Softmax"
    inputs = (Input("input"),)
    attributes = _AXIS
    examples = (
        Example(([0.0, 0.0],), [0.5, 0.5], gradients=([0.0, 0.0],)),
        Example(([1000.0, 0.0],), [1.0, 0.0], gradients=([0.0, 0.0],)),
    )
    samples = _AXIS_SAMPLES
    rejections = (_OUTSIDE,)

    def infer(self, x: TensorSpec, axis: int) -> TensorSpec:
        return _along_axis(x, axis)

    def aligned_shapes(self, *specs: TensorSpec, axis: int) -> tuple[Shape, ...] | None:
        return (specs[0].shape,) if axis < 0 else None

    def forward(self, xp: Namespace, x: Array, axis: int) -> Array:
        parts = xp.exp(x - xp.max(x, axis=(axis,), keepdims=True))
        return parts / xp.sum(parts, axis=(axis,), keepdims=True)

    def vjp(self, xp: Namespace, grad: Array, out: Array, x: Array, axis: int) -> tuple[Array, ...]:
        return (out * (grad - xp.sum(grad * out, axis=(axis,), keepdims=True)),)


class LogSoftmax(Gate):
    """Logarithm of Softmax.

    Formula:   out = input - log(sum(exp(input))) along axis
    Gradient:  to input = grad - exp(out) * sum(grad)
    Shapes:    As input.
    """

    operator = "LogSoftmax"
    inputs = (Input("input"),)
    attributes = _AXIS
    examples = (
        Example(([0.0, 0.0],), [-0.6931471805599453, -0.6931471805599453], gradients=([0.0, 0.0],)),
        Example(([1000.0, 0.0],), [0.0, -1000.0], gradients=([-1.0, 1.0],)),
    )
    samples = _AXIS_SAMPLES
    rejections = (_OUTSIDE,)

    def infer(self, x: TensorSpec, axis: int) -> TensorSpec:
        return _along_axis(x, axis)

    def aligned_shapes(self, *specs: TensorSpec, axis: int) -> tuple[Shape, ...] | None:
        return (specs[0].shape,) if axis < 0 else None

    def forward(self, xp: Namespace, x: Array, axis: int) -> Array:
        return log_softmax(xp, x, axis)

    def vjp(self, xp: Namespace, grad: Array, out: Array, x: Array, axis: int) -> tuple[Array, ...]:
        return (grad - xp.exp(out) * xp.sum(grad, axis=(axis,), keepdims=True),)


class SoftmaxCrossEntropyLoss(Gate):
    """Loss of scores for labels: how unlikely Softmax finds each label.

    Formula:   log_prob = LogSoftmax(scores) along axis 1; a row's loss is
               -weights[label] * log_prob[label], and 0 where label is ignore_index; out is those
               (none), their sum (sum), or their sum over that of their weights (mean)
    Gradient:  to scores = weights[label] * (Softmax(scores) - [class = label]) times the row's
               gradient;  d out/d weights from the same sums
    Shapes:    scores [N, C, ..], labels [N, ..], weights [C]; out as labels, or rank 0.
    """

    operator = "SoftmaxCrossEntropyLoss"
    inputs = (
        Input("scores"),
        Input("labels", INDICES, "I"),
        Input("weights", optional=True, domain=(0.5, 2.0)),
    )
    attributes = (
        Attribute("reduction", "string", "mean", choices=("none", "sum", "mean"),
                  doc="What becomes of the rows' losses."),
        Attribute("ignore_index", "int", doc="Label of rows that do not count."),
    )  # fmt: skip
    outputs = (1, 2)
    examples = (
        Example(
            ([[0.0, 0.0]], [1]),
            (0.6931471805599453, [[-0.6931471805599453, -0.6931471805599453]]),
            gradients=([[0.5, -0.5]], None),
        ),
        Example(
            ([[0.0, 0.0], [5.0, 1.0]], [0, -1], [2.0, 1.0]),
            (
                [1.3862943611198906, 0.0],
                [[-0.6931471805599453, -0.6931471805599453],
                 [-0.01814992791780978, -4.01814992791781]],
            ),
            gradients=([[-1.0, 1.0], [0.0, 0.0]], None, [0.6931471805599453, 0.0]),
            attributes={"reduction": "none", "ignore_index": -1},
        ),
    )  # fmt: skip
    samples = tuple(
        Sample(
            (TensorSpec((2, 3, 2)), TensorSpec((2, 2), "int64", (0, 2, 1, 1)), weights),
            {"reduction": reduction, "ignore_index": 1},
        )
        for reduction in ("none", "sum", "mean")
        for weights in (None, TensorSpec((3,)))
    )
    rejections = (
        Rejection((TensorSpec((2,)), TensorSpec((2,), "int64")), "scores have rank 1"),
        Rejection(
            (TensorSpec((2, 3)), TensorSpec((3,), "int64")),
            "labels have shape (3,) but scores of shape (2, 3) need (2,)",
        ),
        Rejection(
            (TensorSpec((2, 3)), TensorSpec((2,), "int64"), TensorSpec((2,))),
            "weights have shape (2,) but there are 3 classes",
        ),
    )

    def infer(
        self,
        scores: TensorSpec,
        labels: TensorSpec,
        weights: TensorSpec | None = None,
        *,
        reduction: str,
        ignore_index: int | None,
    ) -> tuple[TensorSpec, ...]:
        if scores.rank < 2:
            raise Invalid(
                "SHAPE_MISMATCH", f"scores have rank {scores.rank} but need rows and classes"
            )
        rows = (scores.shape[0], *scores.shape[2:])
        if labels.shape != rows:
            raise Invalid(
                "SHAPE_MISMATCH",
                f"labels have shape {labels.shape} but scores of shape {scores.shape} need {rows}",
            )
        if weights is not None and weights.shape != scores.shape[1:2]:
            raise Invalid(
                "SHAPE_MISMATCH",
                f"weights have shape {weights.shape} but there are {scores.shape[1]} classes",
            )
        loss = TensorSpec(rows if reduction == "none" else (), scores.dtype)
        return loss, TensorSpec(scores.shape, scores.dtype)

    def forward(
        self,
        xp: Namespace,
        scores: Array,
        labels: Array,
        weights: Array = None,
        *,
        reduction: str,
        ignore_index: int | None,
    ) -> tuple[Array, Array]:
        checked = labels
        if ignore_index is not None:
            checked = xp.where(xp.equal(labels, ignore_index), 0, labels)
        xp.require_indices(checked, scores.shape[1], "labels")
        log_prob = log_softmax(xp, scores, 1)
        chosen = self._chosen(xp, scores, labels, weights, ignore_index)
        losses = -xp.sum(xp.where(xp.greater(chosen, 0.0), chosen * log_prob, 0.0), axis=(1,))
        if reduction == "none":
            return losses, log_prob
        rows = tuple(range(len(losses.shape)))
        total = xp.sum(losses, axis=rows)
        if reduction == "mean":
            total = total / xp.sum(chosen, axis=tuple(range(len(scores.shape))))
        return total, log_prob

    def vjp(
        self,
        xp: Namespace,
        grad: Any,
        out: Any,
        scores: Array,
        labels: Array,
        *weights: Array,
        reduction: str,
        ignore_index: int | None,
    ) -> tuple[Any, ...]:
        to_loss, to_log_prob = (*grad, None)[:2]
        weight = weights[0] if weights else None
        log_prob = log_softmax(xp, scores, 1)
        to_scores, to_weights = None, None
        if to_loss is not None:
            every = tuple(range(len(scores.shape)))
            chosen = self._chosen(xp, scores, labels, weight, ignore_index)
            unweighted = self._chosen(xp, scores, labels, None, ignore_index)
            if reduction == "none":
                row = xp.expand_dims(to_loss, axis=1)
            elif reduction == "sum":
                row = to_loss
            else:
                row = to_loss / xp.sum(chosen, axis=every)
            mass = xp.sum(chosen, axis=(1,), keepdims=True)
            to_scores = row * (mass * xp.exp(log_prob) - chosen)
            if weight is not None:
                # a class that cannot be (score minus infinity) has no part in others' weights
                picked = xp.where(xp.greater(unweighted, 0.0), -log_prob, 0.0)
                if reduction == "mean":
                    losses = xp.sum(chosen * picked, axis=every)
                    picked = picked - losses / xp.sum(chosen, axis=every)
                others = (0, *range(2, len(scores.shape)))
                to_weights = xp.sum(row * unweighted * picked, axis=others)
        if to_log_prob is not None:
            total = xp.sum(to_log_prob, axis=(1,), keepdims=True)
            more = to_log_prob - xp.exp(log_prob) * total
            to_scores = more if to_scores is None else to_scores + more
        return (to_scores, None, to_weights)[: 2 + len(weights)]

    def _chosen(
        self, xp: Namespace, scores: Array, labels: Array, weights: Array, ignore_index: int | None
    ) -> Array:
        """The weight of each row at its label's class, 0 elsewhere: of scores' shape."""
        count, rank = scores.shape[1], len(scores.shape)
        lying = (1, count, *(1,) * (rank - 2))
        ones = xp.full((count,), 1, str(scores.dtype))
        numbers = xp.reshape(xp.cumulative_sum(ones, axis=0) - 1.0, lying)
        at_row = xp.expand_dims(labels, axis=1)
        at_row = xp.where(xp.less(at_row, 0), at_row + count, at_row)
        is_label = xp.equal(numbers, xp.astype(at_row, str(scores.dtype)))
        if ignore_index is not None:
            counts = xp.logical_not(xp.equal(xp.expand_dims(labels, axis=1), ignore_index))
            is_label = xp.logical_and(is_label, counts)
        marks = xp.astype(is_label, str(scores.dtype))
        return marks if weights is None else marks * xp.reshape(weights, lying)
