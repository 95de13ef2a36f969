"""Where elements are taken from: Resize, Pad and GridSample beside exact arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from itertools import product
from math import floor
from typing import Any

import numpy as np
import pytest
from gate_cases import Case

SIZES = [*product(range(1, 65), repeat=2)]
COORDINATES = (
    "half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "asymmetric", "align_corners",
)  # fmt: skip
#: The nearest element to the places p / q, in whole numbers: exact, and at once for all of them.
NEAREST: dict[str, Callable[[Any, int], Any]] = {
    "round_prefer_floor": lambda p, q: -((q - 2 * p) // (2 * q)),  # the ceiling of p / q - 1 / 2
    "round_prefer_ceil": lambda p, q: (2 * p + q) // (2 * q),
    "floor": lambda p, q: p // q,
    "ceil": lambda p, q: -(-p // q),
}
MODES = pytest.mark.parametrize(("mode", "nearest"), [*product(COORDINATES, NEAREST)])


def places_of(size: int, length: int, scale: Fraction, mode: str) -> tuple[Any, int]:
    """Where in the input the elements of the output lie: numerators, and their denominator."""
    i = np.arange(length, dtype=object)  # Python's integers, which do not overflow
    n, d = scale.as_integer_ratio()
    match mode:
        case "asymmetric":
            return i * d, n
        case "align_corners":
            return (i * 0, 1) if n * size == d else (i * (size - 1) * d, n * size - d)
        case "pytorch_half_pixel" if length == 1:
            return i * 0, 1
        case "half_pixel_symmetric":  # moved by size / 2 * (1 - length / (scale * size))
            return (2 * i + 1) * d - n + size * n - length * d, 2 * n
    return (2 * i + 1) * d - n, 2 * n


def exact(size: int, length: int, scale: Fraction, mode: str, nearest: str) -> list[int]:
    """Which element each element of the output is."""
    found = NEAREST[nearest](*places_of(size, length, scale, mode))
    return np.clip(found, 0, size - 1).tolist()


def resized(size: int, scales: Any, sizes: Any, **attributes: Any) -> list[int]:
    (out,) = Case("Resize", (np.arange(size), None, scales, sizes), attributes).run()
    return out.tolist()


def wrong_sizes(pairs: list[tuple[int, int]], mode: str, nearest: str) -> list[tuple[int, int]]:
    attributes = {"coordinate_transformation_mode": mode, "nearest_mode": nearest}
    return [
        (size, length)
        for size, length in pairs
        if resized(size, None, np.array([length]), **attributes)
        != exact(size, length, Fraction(length, size), mode, nearest)
    ]


@MODES
def test_nearest_element_is_exact_for_sizes(mode: str, nearest: str) -> None:
    drawn = np.random.default_rng(0).choice(len(SIZES), 80, replace=False)
    pairs = [(14, 18), (30, 21), (28, 62), *(SIZES[each] for each in drawn)]
    assert not wrong_sizes(pairs, mode, nearest)


@pytest.mark.slow
@MODES
def test_nearest_element_is_exact_for_every_pair_of_sizes(mode: str, nearest: str) -> None:
    assert not wrong_sizes(SIZES, mode, nearest)


@MODES
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_nearest_element_is_exact_for_the_scale_as_it_is_stored(
    mode: str, nearest: str, dtype: str
) -> None:
    scales = np.array([0.1, 0.3, 0.7, 1 / 3, 1.1, 1.7, 2.0, 3.3], dtype)
    attributes = {"coordinate_transformation_mode": mode, "nearest_mode": nearest}
    for size, scale in product((1, 2, 3, 6, 10, 30), scales):
        length = int(np.floor(np.array(size, dtype) * scale))
        expected = exact(size, length, Fraction(float(scale)), mode, nearest)
        assert resized(size, scale.reshape(1), None, **attributes) == expected, (size, scale)


def test_seven_tenths_of_ten_elements_are_seven() -> None:
    """As ONNX Runtime, ONNX's shape inference and PyTorch say, though float32(0.7) < 0.7."""
    assert len(resized(10, np.float32([0.7]), None)) == 7


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
def test_crop_and_resize_by_scales_scales_the_whole_axis(scale: float) -> None:
    inputs = (np.arange(16.0).reshape(4, 4), np.array([0.25, 0, 0.75, 1.0]), np.array([scale] * 2))
    attributes = {"mode": "linear", "coordinate_transformation_mode": "tf_crop_and_resize"}
    (out,) = Case("Resize", inputs, attributes).run()
    length = int(4 * scale)
    rows, columns = np.linspace(0.75, 2.25, length), np.linspace(0.0, 3.0, length)
    np.testing.assert_allclose(out, 4 * rows[:, None] + columns, rtol=1e-12)


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge", "wrap"])
def test_negative_pads_take_away_before_others_are_put(mode: str) -> None:
    x = np.arange(5.0)
    for before, after in product(range(-4, 7), repeat=2):
        kept = x[max(-before, 0) : 5 - max(-after, 0)]
        if not kept.size or before + after + 5 < 0 or max(-before, 0) + max(-after, 0) >= 5:
            continue
        case = Case("Pad", (x, np.array([before, after])), {"mode": mode})
        expected = np.pad(kept, (max(before, 0), max(after, 0)), mode)  # type: ignore[call-overload]
        np.testing.assert_array_equal(case.run()[0], expected, str(case))
        seed = np.random.default_rng(0).standard_normal(expected.shape)
        marks = np.pad(kept + 1, (max(before, 0), max(after, 0)), mode)  # type: ignore[call-overload]
        pulled = [float(np.sum(seed[marks == each + 1])) for each in x]
        np.testing.assert_allclose(case.pull((seed,))[0], pulled, atol=1e-12, err_msg=str(case))


def keys(distance: float, a: float = -0.75) -> float:
    """The weight of cubic convolution."""
    if distance <= 1:
        return (a + 2) * distance**3 - (a + 3) * distance**2 + 1
    return a * (distance**3 - 5 * distance**2 + 8 * distance - 4) if distance < 2 else 0.0


def padded(i: int, size: int, padding: str, corners: int) -> int | None:
    """Which element stands at a position that may lie outside; none among zeros."""
    if padding == "border":
        return min(max(i, 0), size - 1)
    while padding == "reflection" and not 0 <= i < size:
        i = -i - (not corners) if i < 0 else 2 * (size - 1) - i + (not corners)
    return i if 0 <= i < size else None


@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("corners", [0, 1])
def test_cubic_samples_put_each_neighbour_where_the_padding_says(
    padding: str, corners: int
) -> None:
    """As ONNX Runtime and PyTorch do; ONNX's evaluator puts the place on the border first."""
    image, numbers = np.array([3.0, -1.0, 4.0, 1.5]), np.linspace(-2.9, 2.7, 41)
    case = Case(
        "GridSample",
        (image.reshape(1, 1, 4), numbers.reshape(1, -1, 1)),
        {"mode": "cubic", "padding_mode": padding, "align_corners": corners},
    )

    def sampled(number: float) -> float:
        place = (number + 1) / 2 * 3 if corners else ((number + 1) * 4 - 1) / 2
        near = [floor(place) + step for step in range(-1, 3)]
        taken = [padded(each, 4, padding, corners) for each in near]
        return sum(
            keys(abs(place - i)) * image[at]
            for i, at in zip(near, taken, strict=True)
            if at is not None
        )

    expected = [sampled(number) for number in numbers]
    np.testing.assert_allclose(case.run()[0].reshape(-1), expected, rtol=1e-10, atol=1e-12)
    step = 1e-6
    slopes = [(sampled(each + step) - sampled(each - step)) / (2 * step) for each in numbers]
    (_, to_grid) = case.pull((np.ones((1, 1, 41)),))
    np.testing.assert_allclose(to_grid.reshape(-1), slopes, rtol=1e-6, atol=1e-7)
