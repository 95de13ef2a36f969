"""Non-maximum suppression, as ONNX has it."""

from __future__ import annotations

from typing import Any

import numpy as np

from gradwire_server.stopping import stop_if_asked

Array = Any


def suppress_boxes(
    boxes: Array,
    scores: Array,
    most: int,
    iou_threshold: Array | None,
    score_threshold: Array | None,
    is_centered: bool,
) -> Array:
    """[batch, class, box] of the boxes that are kept, then rows of -1."""
    batches, classes, count = scores.shape
    kept = min(most, count)
    found = np.full((batches * classes * kept, 3), -1, np.int64)
    limit = 0 if iou_threshold is None else np.asarray(iou_threshold).reshape(())
    row = 0
    for batch in range(batches):
        low, high = _corners(boxes[batch], is_centered)
        area = np.prod(high - low, axis=1)
        for number in range(classes):
            own = scores[batch, number]
            order = np.argsort(-own, kind="stable")  # of equal scores the first box
            if score_threshold is not None:
                order = order[own[order] > np.asarray(score_threshold).reshape(())]
            chosen = 0
            while len(order) and chosen < kept:
                stop_if_asked()
                best, order = order[0], order[1:]
                found[row] = batch, number, best
                row, chosen = row + 1, chosen + 1
                order = order[~_overlaps(low, high, area, best, order, limit)]
    return found


def _corners(boxes: Array, is_centered: bool) -> tuple[Array, Array]:
    first, second = boxes[:, :2], boxes[:, 2:]
    if is_centered:
        half = second / 2
        return first - half, first + half
    return np.minimum(first, second), np.maximum(first, second)


def _overlaps(
    low: Array, high: Array, area: Array, best: int, others: Array, limit: Array
) -> Array:
    """Which of the others have more of their union with the best box in common than the limit."""
    sides = np.minimum(high[others], high[best]) - np.maximum(low[others], low[best])
    common = np.where((sides > 0).all(axis=1), np.prod(sides, axis=1), 0)
    union = area[others] + area[best] - common
    possible = (common > 0) & (area[others] > 0) & (area[best] > 0) & (union > 0)
    ratio = common / np.where(possible, union, 1)
    return possible & (ratio > limit)
