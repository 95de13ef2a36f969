"""Assertions: what a graph was made for, checked whenever it is evaluated; and what data decide, in
shapes that are known beforehand, so that it can be compared.

A graph that was made at a point has its shapes, branches and trip counts from there. An assertion
keeps it from answering at a point where they would differ.
"""

from __future__ import annotations

from collections.abc import Sequence
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
from gradwire_server.gates.common import checked_shape, ints, known, sorting
from gradwire_server.specs import ANY, COMPUTED, Shape, TensorSpec, normalize_axis

_WHAT = Attribute("what", "string", "the value", doc="How the refusal names what is compared.")


class AssertEqual(Gate):
    """The expected elements, where the actual ones are equal to them bit by bit; else a refusal.

    Formula:   out = expected; the evaluation is refused (ASSERTION_FAILED) unless actual = expected
    Gradient:  None: while the assertion holds, the output does not change.
    Kinks:     Nowhere else is there an output.
    Shapes:    Those of actual and expected, which must be equal. Its elements are known before
               evaluation where those of expected are. In a batch every row must be equal.
    """

    operator = "AssertEqual"
    shows_input = "as it is"
    scratch_arrays = (0.15, 0)
    takes_halves = True
    asserts = True
    output_dtypes = ("input:1",)
    inputs = (Input("actual", ANY, elements=False), Input("expected", ANY))
    attributes = (_WHAT,)
    examples = (
        Example(([1, 2], [1, 2]), [1, 2]),
        Example((True, True), True, attributes={"what": "the condition"}),
        Example((0.5, 0.5), 0.5, gradients=(None, None), at_kink=True),
    )
    rejections = (
        Rejection((TensorSpec((2,), "int64"), TensorSpec((3,), "int64")),
                  "k has shape (2,) but had shape (3,) where the graph was made",
                  "ASSERTION_FAILED", {"what": "k"}),
        Rejection((ints(1, 2), ints(1, 3)),
                  "the value is [1, 2] but was [1, 3] where the graph was made",
                  "ASSERTION_FAILED"),
    )  # fmt: skip

    def infer(self, actual: TensorSpec, expected: TensorSpec, what: str) -> TensorSpec:
        if actual.shape != expected.shape:
            raise Invalid(
                "ASSERTION_FAILED",
                f"{what} has shape {actual.shape} but had shape {expected.shape} where the graph "
                "was made; make it again at these inputs",
            )
        values = actual.value, expected.value
        if None not in values and not actual.is_floating and values[0] != values[1]:
            raise Invalid(
                "ASSERTION_FAILED",
                f"{what} is {_shown(actual)} but was {_shown(expected)} where the graph was made; "
                "make it again at these inputs",
            )
        return expected

    def forward(self, xp: Namespace, actual: Array, expected: Array, what: str) -> Array:
        xp.require_equal(actual, expected, what)
        return expected

    def vjp(self, xp: Namespace, grad: Array, out: Array, *_: Any, **__: Any) -> tuple[None, None]:
        return None, None

    def aligned_shapes(self, *specs: TensorSpec, **_: Any) -> tuple[Shape, ...]:
        return tuple(spec.shape for spec in specs)


def _shown(spec: TensorSpec) -> str:
    assert spec.value is not None
    return str(list(spec.value)) if spec.shape else str(*spec.value)


class UniqueInverse(Gate):
    """Where each element, or slice along an axis, is among the different ones.

    Formula:   out = the inverse_indices of Unique
    Gradient:  None: the output is int64.
    Shapes:    A vector, one position for each element of X; with axis, for each slice along it.
    """

    operator = "UniqueInverse"
    output_dtypes = ("int64",)
    inputs = (Input("X", ANY),)
    attributes = (
        Attribute("axis", "int", doc="What counts slices; X is flattened if left out."),
        Attribute("sorted", "int", 1, choices=(0, 1), doc="0 counts by first occurrence."),
    )
    examples = (
        Example(([2, 1, 1, 3],), [1, 0, 0, 2]),
        Example(([2.5, 1.5, 1.5],), [0, 1, 1], gradients=(None,), attributes={"sorted": 0}),
        Example(([[1, 3], [2, 3], [1, 3]],), [0, 1, 0], attributes={"axis": 0}),
    )
    samples = (Sample((TensorSpec((2, 3), "int32", (1, 0, 1, 1, 0, 1)),), {"axis": -1}),)
    rejections = (
        Rejection((TensorSpec((2,), "int64"),), "axis 1 is outside", "ATTRIBUTE_INVALID",
                  {"axis": 1}),
        Rejection((TensorSpec((2, 0), "int64"),), "slices of int64[2, 0] have no elements",
                  attributes={"axis": 0}),
    )  # fmt: skip

    def infer(self, x: TensorSpec, axis: int | None, sorted: int) -> TensorSpec:
        if axis is None:
            return TensorSpec((x.size,), "int64")
        along = normalize_axis(axis, x.rank)
        if not x.size:
            raise Invalid("SHAPE_MISMATCH", f"the slices of {x} have no elements to compare")
        return TensorSpec((x.shape[along],), "int64")

    def scratch(self, outs: Sequence[TensorSpec], x: TensorSpec, **attributes: Any) -> Scratch:
        if attributes["axis"] is not None:
            return Scratch(int(3.1 * x.nbytes), 0)
        return Scratch(int((4.2 if attributes["sorted"] else 8.2) * 8 * x.size), 0)

    def forward(self, xp: Namespace, x: Array, axis: int | None, sorted: int) -> Array:
        if axis is None:
            x, axis = xp.reshape(x, (-1,)), 0
        return xp.unique_slices(x, axis, bool(sorted))[1]

    def vjp(self, xp: Namespace, grad: Array, out: Array, x: Array, **_: Any) -> tuple[None]:
        return (None,)

    def operations(
        self, outs: tuple[TensorSpec, ...], x: TensorSpec, axis: int | None, sorted: int
    ) -> int:
        return sorting(x.size, outs[0].size)


class PaddedNonMaxSuppression(Gate):
    """The boxes of each class that none of a higher score overlaps, as rows of a fixed number.

    Formula:   out = the selected_indices of NonMaxSuppression: [batch, class, box], ascending by
               batch and class and descending by score; then rows of -1
    Gradient:  None: the output is int64.
    Shapes:    boxes [batches, boxes, 4], scores [batches, classes, boxes] -> [batches * classes *
               min(max_output_boxes_per_class, boxes), 3].
    """

    operator = "PaddedNonMaxSuppression"
    output_dtypes = ("int64",)
    inputs = (
        Input("boxes", COMPUTED),
        Input("scores", COMPUTED),
        known("max_output_boxes_per_class"),
        Input("iou_threshold", COMPUTED, optional=True, domain=(0.0, 1.0)),
        Input("score_threshold", COMPUTED, optional=True),
    )
    attributes = (
        Attribute("center_point_box", "int", 0, choices=(0, 1),
                  doc="0: two corners, [y1, x1, y2, x2]; 1: [x, y] of the center, width, height."),
    )  # fmt: skip
    examples = (
        Example(([[[0.0, 0.0, 1.0, 1.0], [0.0, 0.1, 1.0, 1.1], [2.0, 2.0, 3.0, 3.0]]],
                 [[[0.7, 0.8, 0.9]]], [3], 0.5),
                [[0, 0, 2], [0, 0, 1], [-1, -1, -1]], gradients=(None, None, None, None)),
        Example(([[[0.5, 0.5, 1.0, 1.0], [0.5, 0.6, 1.0, 1.0]]], [[[0.5, 0.5], [0.9, 0.1]]], [1],
                 0.5, 0.6),
                [[0, 1, 0], [-1, -1, -1]], attributes={"center_point_box": 1}),
    )  # fmt: skip
    samples = (Sample((TensorSpec((2, 5, 4)), TensorSpec((2, 3, 5)), ints(2))),)
    rejections = (
        Rejection((TensorSpec((1, 2, 3)), TensorSpec((1, 1, 2)), ints(1)), "but must have"),
        Rejection((TensorSpec((1, 2, 4)), TensorSpec((1, 1, 3)), ints(1)),
                  "there are 1 batches of 2 boxes but scores have shape (1, 1, 3)"),
        Rejection((TensorSpec((1, 2, 4)), TensorSpec((1, 1, 2)), ints(1, 2)),
                  "max_output_boxes_per_class has shape (2,) but must be one number"),
    )  # fmt: skip

    def infer(
        self,
        boxes: TensorSpec,
        scores: TensorSpec,
        most: TensorSpec,
        *thresholds: TensorSpec | None,
        center_point_box: int,
    ) -> TensorSpec:
        if boxes.rank != 3 or scores.rank != 3 or boxes.shape[2] != 4:
            raise Invalid(
                "SHAPE_MISMATCH",
                f"boxes have shape {boxes.shape} and scores {scores.shape}, but must have "
                "[batches, boxes, 4] and [batches, classes, boxes]",
            )
        batches, count, _ = boxes.shape
        if (scores.shape[0], scores.shape[2]) != (batches, count):
            raise Invalid(
                "SHAPE_MISMATCH",
                f"there are {batches} batches of {count} boxes but scores have shape "
                f"{scores.shape}",
            )
        for name, each in zip(
            ("max_output_boxes_per_class", "iou_threshold", "score_threshold"),
            (most, *thresholds),
            strict=False,
        ):
            if each is not None and each.size != 1:
                raise Invalid(
                    "SHAPE_MISMATCH", f"{name} has shape {each.shape} but must be one number"
                )
        assert most.value is not None
        kept = min(max(int(most.value[0]), 0), count)
        return TensorSpec(
            checked_shape((batches * scores.shape[1] * kept, 3), "the selection"), "int64"
        )

    def scratch(
        self, outs: Sequence[TensorSpec], boxes: TensorSpec, *_: Any, **attributes: Any
    ) -> Scratch:
        return Scratch(int((2.8 * boxes.nbytes + 2.25 * boxes.size) / max(boxes.shape[0], 1)), 0)

    def forward(
        self,
        xp: Namespace,
        boxes: Array,
        scores: Array,
        most: tuple[int, ...],
        iou_threshold: Array | None = None,
        score_threshold: Array | None = None,
        *,
        center_point_box: int,
    ) -> Array:
        return xp.suppress_boxes(
            boxes, scores, max(most[0], 0), iou_threshold, score_threshold, bool(center_point_box)
        )

    def vjp(
        self, xp: Namespace, grad: Array, out: Array, *inputs: Any, **_: Any
    ) -> tuple[Any, ...]:
        return tuple(None for _ in inputs)

    def operations(
        self,
        outs: tuple[TensorSpec, ...],
        boxes: TensorSpec,
        scores: TensorSpec,
        *_: Any,
        **__: int,
    ) -> int:
        batches, classes, count = scores.shape
        sorted_scores = sorting(scores.size, count)
        return (
            (batches * classes + outs[0].shape[0]) * 20 * STEP
            + sorted_scores
            + (
                outs[0].shape[0] * count * 20  # each box that is kept meets all that are left
            )
        )
