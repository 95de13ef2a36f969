"""Softmax and the losses made of it. Exponentials are of differences from the largest: none
overflows."""

from __future__ import annotations

from collections.abc import Sequence
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
from gradwire_server.gates.common import vector_shape
from gradwire_server.specs import INDICES, Shape, TensorSpec, normalize_axis

_AXIS = (Attribute("axis", "int", -1, doc="What is normalized along."),)
_OUTSIDE = Rejection((TensorSpec((2,)),), "axis 3 is outside", "ATTRIBUTE_INVALID", {"axis": 3})
_AXIS_SAMPLES = (
    Sample((TensorSpec((2, 3)),)),
    Sample((TensorSpec((2, 3, 4)),), {"axis": 1}),
    Sample((TensorSpec((0, 3)),)),
    Sample((TensorSpec((2, 3)),), {"axis": -2}),
)


#: A share of the whole that only one element can have, rounded or not.
_DOMINANT = 0.75


def log_softmax(xp: Namespace, x: Array, axis: int) -> Array:
    """x - log(sum(exp(x))) along an axis."""
    shifted = x - xp.max(x, axis=(axis,), keepdims=True)
    return shifted - xp.log(xp.sum(xp.exp(shifted), axis=(axis,), keepdims=True))


def pull_softmax(xp: Namespace, grad: Array, out: Array, axis: int) -> Array:
    """The gradient of x, from that of out = softmax(x) along an axis.

    out * (grad - sum(grad * out)) cancels where one element takes nearly all: there grad less a
    number is as good as grad, since out sums to 1, and that element's own gradient is the number.
    """
    dominates = xp.greater(out, _DOMINANT)
    level = xp.sum(xp.where(dominates, grad, 0.0), axis=(axis,), keepdims=True)
    grad = grad - level
    return out * (grad - xp.sum(grad * out, axis=(axis,), keepdims=True))


def _rest(xp: Namespace, out: Array, axis: int) -> Array:
    """1 - out, for out = softmax(x) along an axis: of an element near 1, the sum of the others."""
    dominates = xp.greater(out, _DOMINANT)
    others = xp.sum(xp.where(dominates, 0.0, out), axis=(axis,), keepdims=True)
    return xp.where(dominates, others, 1.0 - out)


def pull_log_softmax(xp: Namespace, grad: Array, log_prob: Array, axis: int) -> Array:
    """The gradient of x, from that of log_prob = log_softmax(x) along an axis."""
    out = xp.exp(log_prob)
    dominates = xp.greater(out, _DOMINANT)
    others = xp.sum(xp.where(dominates, 0.0, grad), axis=(axis,), keepdims=True)
    total = xp.sum(grad, axis=(axis,), keepdims=True)
    at_dominant = grad * _rest(xp, out, axis) - out * others
    return xp.where(dominates, at_dominant, grad - out * total)


def _along_axis(spec: TensorSpec, axis: int) -> TensorSpec:
    normalize_axis(axis, spec.rank)
    return TensorSpec(spec.shape, spec.dtype)


class Softmax(Gate):
    """Positive numbers that sum to 1 along an axis.

    Formula:   out = exp(input) / sum(exp(input)) along axis
    Gradient:  to input = out * (grad - sum(grad * out)), of grad less what it is where out > 3/4
    Shapes:    As input.
    """

    operator = "Softmax"
    scratch_arrays = (1, 1.2)
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
        return (pull_softmax(xp, grad, out, axis),)


class LogSoftmax(Gate):
    """Logarithm of Softmax.

    Formula:   out = input - log(sum(exp(input))) along axis
    Gradient:  to input = grad - exp(out) * sum(grad), where 1 - exp(out) is the sum of the others
    Shapes:    As input.
    """

    operator = "LogSoftmax"
    scratch_arrays = (1, 4.2)
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
        return (pull_log_softmax(xp, grad, out, axis),)


class Hardmax(Gate):
    """1 for the largest number along an axis, 0 for the others.

    Formula:   output = [input is the first of the largest along axis]
    Gradient:  d output/d input = 0
    Kinks:     0 also where the largest changes.
    Shapes:    As input.
    """

    operator = "Hardmax"
    scratch_arrays = (0.15, 0)
    inputs = (Input("input"),)
    attributes = _AXIS
    examples = (
        Example(([[1.0, 3.0, 2.0]],), [[0.0, 1.0, 0.0]], gradients=([[0.0, 0.0, 0.0]],)),
        Example(([2.0, 2.0],), [1.0, 0.0], gradients=([0.0, 0.0],), at_kink=True),
    )
    samples = _AXIS_SAMPLES
    rejections = (_OUTSIDE,)

    def infer(self, x: TensorSpec, axis: int) -> TensorSpec:
        return _along_axis(x, axis)

    def aligned_shapes(self, *specs: TensorSpec, axis: int) -> tuple[Shape, ...] | None:
        return (specs[0].shape,) if axis < 0 else None

    def forward(self, xp: Namespace, x: Array, axis: int) -> Array:
        if 0 in x.shape:
            return x
        along = normalize_axis(axis, len(x.shape))
        lying = vector_shape(along, x.shape[along], len(x.shape))
        numbers = xp.reshape(xp.arange(x.shape[along], "int64"), lying)
        first = xp.argmax(x, axis=along, keepdims=True)
        return xp.astype(xp.equal(numbers, first), str(x.dtype))

    def vjp(self, xp: Namespace, grad: Array, out: Array, x: Array, axis: int) -> tuple[Array, ...]:
        return (xp.zeros_like(x),)


class SoftmaxCrossEntropyLoss(Gate):
    """Loss of scores for labels: how unlikely Softmax finds each label.

    Formula:   log_prob = LogSoftmax(scores) along axis 1; a row's loss is
               -weights[label] * log_prob[label], and 0 where label is ignore_index; out is those
               (none), their sum (sum), or their sum over that of their weights (mean)
    Gradient:  to scores = weights[label] * (Softmax(scores) - [class = label]) times the row's
               gradient;  d out/d weights from the same sums
    Kinks:     the mean of no rows (every label ignored, or of weight 0) is NaN; its gradient to
               scores is 0.
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

    def scratch(
        self,
        outs: Sequence[TensorSpec],
        scores: TensorSpec,
        labels: TensorSpec,
        weights: TensorSpec | None = None,
        **attributes: Any,
    ) -> Scratch:
        forward, back = (3.3, 9.3 + (weights is not None)) if len(outs) > 1 else (4.3, 6.3)
        return Scratch(int(forward * scores.nbytes), int(back * scores.nbytes))

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
        chosen = _chosen(xp, scores, labels, weights, ignore_index)
        losses = -xp.sum(_weighed(xp, chosen, log_prob), axis=(1,))
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
            chosen = _chosen(xp, scores, labels, weight, ignore_index)
            unweighted = _chosen(xp, scores, labels, None, ignore_index)
            row = xp.expand_dims(to_loss, axis=1) if reduction == "none" else to_loss
            is_label = xp.greater(unweighted, 0.0)
            mass = xp.sum(chosen, axis=(1,), keepdims=True)
            share = _share(xp, mass, xp.sum(chosen, axis=every)) if reduction == "mean" else mass
            prob = xp.exp(log_prob)
            to_scores = row * (share * xp.where(is_label, -_rest(xp, prob, 1), prob))
            if weight is not None:
                # a class that cannot be (score minus infinity) has no part in others' weights
                picked = xp.where(is_label, -log_prob, 0.0)
                if reduction == "mean":
                    total = xp.sum(chosen, axis=every)
                    losses = xp.sum(_weighed(xp, chosen, picked), axis=every)
                    picked = xp.where(is_label, (picked - losses / total) / total, 0.0)
                others = (0, *range(2, len(scores.shape)))
                to_weights = xp.sum(row * picked, axis=others)
        if to_log_prob is not None:
            more = pull_log_softmax(xp, to_log_prob, log_prob, 1)
            to_scores = more if to_scores is None else to_scores + more
        return (to_scores, None, to_weights)[: 2 + len(weights)]


def _chosen(
    xp: Namespace, scores: Array, labels: Array, weights: Array, ignore_index: int | None
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
    return marks if weights is None else xp.where(is_label, xp.reshape(weights, lying), 0.0)


def _weighed(xp: Namespace, weights: Array, x: Array) -> Array:
    """weights * x, and 0 where the weight is 0 and what does not count is infinite."""
    is_finite = xp.logical_not(xp.logical_or(xp.isinf(x), xp.isnan(x)))
    counts = xp.logical_or(is_finite, xp.logical_not(xp.equal(weights, 0.0)))
    return xp.where(counts, weights * x, 0.0)


def _share(xp: Namespace, weights: Array, total: Array) -> Array:
    """weights / total, and 0 for 0 / 0: a mean of no rows passes no gradient on."""
    is_nothing = xp.logical_and(xp.equal(weights, 0.0), xp.equal(total, 0.0))
    return xp.where(is_nothing, 0.0, weights / total)


class NegativeLogLikelihoodLoss(Gate):
    """Loss of log-probabilities for labels: minus that of each label.

    Formula:   a row's loss is -weight[target] * input[target] along axis 1, and 0 where target is
               ignore_index; loss is those (none), their sum (sum), or their sum over that of their
               weights (mean)
    Gradient:  to input = -weight[target] * [class = target] times the row's gradient;  to weight
               from the same sums
    Kinks:     the mean of no rows (every target ignored, or of weight 0) is NaN; its gradient to
               input is 0.
    Shapes:    input [N, C, ..], target [N, ..], weight [C]; loss as target, or rank 0.
    """

    operator = "NegativeLogLikelihoodLoss"
    inputs = (
        Input("input"),
        Input("target", INDICES, "I"),
        Input("weight", optional=True, domain=(0.5, 2.0)),
    )
    attributes = SoftmaxCrossEntropyLoss.attributes
    examples = (
        Example(([[-1.0, -0.5], [-2.0, -3.0]], [1, 0]), 1.25,
                gradients=([[0.0, -0.5], [-0.5, 0.0]], None)),
        Example(([[-1.0, -0.5], [-2.0, -3.0]], [1, -1], [4.0, 3.0]), [1.5, 0.0],
                gradients=([[0.0, -3.0], [0.0, 0.0]], None, [0.0, 0.5]),
                attributes={"reduction": "none", "ignore_index": -1}),
    )  # fmt: skip
    samples = SoftmaxCrossEntropyLoss.samples
    rejections = (
        Rejection((TensorSpec((2,)), TensorSpec((2,), "int64")), "input has rank 1"),
        Rejection(
            (TensorSpec((2, 3)), TensorSpec((3,), "int64")),
            "target has shape (3,) but input of shape (2, 3) needs (2,)",
        ),
        Rejection(
            (TensorSpec((2, 3)), TensorSpec((2,), "int64"), TensorSpec((2,))),
            "weight has shape (2,) but there are 3 classes",
        ),
    )

    def infer(
        self,
        x: TensorSpec,
        target: TensorSpec,
        weight: TensorSpec | None = None,
        *,
        reduction: str,
        ignore_index: int | None,
    ) -> TensorSpec:
        if x.rank < 2:
            raise Invalid("SHAPE_MISMATCH", f"input has rank {x.rank} but needs rows and classes")
        rows = (x.shape[0], *x.shape[2:])
        if target.shape != rows:
            raise Invalid(
                "SHAPE_MISMATCH",
                f"target has shape {target.shape} but input of shape {x.shape} needs {rows}",
            )
        if weight is not None and weight.shape != x.shape[1:2]:
            raise Invalid(
                "SHAPE_MISMATCH",
                f"weight has shape {weight.shape} but there are {x.shape[1]} classes",
            )
        return TensorSpec(rows if reduction == "none" else (), x.dtype)

    def scratch(
        self,
        outs: Sequence[TensorSpec],
        x: TensorSpec,
        target: TensorSpec,
        weight: TensorSpec | None = None,
        **attributes: Any,
    ) -> Scratch:
        more = weight is not None
        back = (1.15 if attributes["reduction"] == "none" else 3.15) + more
        return Scratch(int((2.15 + more) * x.nbytes), int(back * x.nbytes))

    def forward(
        self,
        xp: Namespace,
        x: Array,
        target: Array,
        weight: Array | None = None,
        *,
        reduction: str,
        ignore_index: int | None,
    ) -> Array:
        checked = target
        if ignore_index is not None:
            checked = xp.where(xp.equal(target, ignore_index), 0, target)
        xp.require_indices(checked, x.shape[1], "target")
        losses, weights = self._losses(xp, x, target, weight, ignore_index)
        if reduction == "none":
            return losses
        rows = tuple(range(len(losses.shape)))
        total = xp.sum(losses, axis=rows)
        return total if reduction == "sum" else total / xp.sum(weights, axis=rows)

    def vjp(
        self,
        xp: Namespace,
        grad: Array,
        out: Array,
        x: Array,
        target: Array,
        *weight: Array | None,
        reduction: str,
        ignore_index: int | None,
    ) -> tuple[Any, ...]:
        given = weight[0] if weight else None
        chosen = _chosen(xp, x, target, given, ignore_index)
        every = tuple(range(len(x.shape)))
        row = xp.expand_dims(grad, axis=1) if reduction == "none" else grad
        total = xp.sum(chosen, axis=every)
        share = _share(xp, chosen, total) if reduction == "mean" else chosen

        def to_weight() -> Array:
            is_label = xp.greater(_chosen(xp, x, target, None, ignore_index), 0.0)
            picked = (-x - out) / total if reduction == "mean" else -x
            picked = xp.where(is_label, picked, 0.0)
            return xp.sum(row * picked, axis=(0, *range(2, len(x.shape))))

        return -row * share, None, *(None if each is None else to_weight for each in weight)

    def _losses(
        self, xp: Namespace, x: Array, target: Array, weight: Array | None, ignore: int | None
    ) -> tuple[Array, Array]:
        """Each row's loss and weight."""
        marks = _chosen(xp, x, target, None, ignore)
        picked = xp.sum(xp.where(xp.greater(marks, 0.0), x, 0.0), axis=(1,))
        weights = xp.sum(_chosen(xp, x, target, weight, ignore), axis=(1,))
        return -_weighed(xp, weights, picked), weights
