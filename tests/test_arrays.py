"""Faster ways to compute what NumPy and SciPy compute, compared with those."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import special

from gradwire_server import arrays

RANDOM = np.random.default_rng(0)
ODD = [0.0, -0.0, np.inf, -np.inf, np.nan, 1e-40]


def numbers(shape: tuple[int, ...], dtype: str) -> Any:
    found = RANDOM.normal(0, 2, shape).astype(dtype)
    flat = found.reshape(-1)
    flat[: len(ODD)] = np.array(ODD[: flat.size], dtype)
    return found


def bits(x: Any) -> Any:
    return np.ascontiguousarray(x).view(f"u{x.dtype.itemsize}")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("condition", "x", "y"),
    [
        ((200, 100), (200, 100), (200, 100)),
        ((200, 100), (200, 100), 0.0),
        ((200, 100), (200, 100), -0.0),
        ((200, 100), (100,), (200, 1)),
        ((200, 100), 1.5, -2.0),
        ((200, 100), 0.0, (3, 200, 100)),
        ((5000,), (4, 5000), (4, 5000)),
        ((100,), (100,), (100,)),
    ],
)
def test_where_chooses_as_numpy_does_to_the_bit(condition: Any, x: Any, y: Any, dtype: str) -> None:
    chosen = RANDOM.random(condition) < 0.5
    x, y = (numbers(each, dtype) if isinstance(each, tuple) else each for each in (x, y))
    found, expected = arrays.where(chosen, x, y), np.where(chosen, x, y)
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    np.testing.assert_array_equal(bits(found), bits(expected))


@pytest.mark.parametrize("dtype", ["int64", "bool"])
def test_where_takes_what_is_not_floating(dtype: str) -> None:
    chosen = RANDOM.random(5000) < 0.5
    x, y = (RANDOM.integers(0, 2, 5000).astype(dtype) for _ in range(2))
    np.testing.assert_array_equal(arrays.where(chosen, x, y), np.where(chosen, x, y))


def test_where_takes_transposed_arrays_and_leaves_them() -> None:
    x, y = numbers((90, 80), "float32").T, numbers((80, 90), "float32")
    before = x.copy(), y.copy()
    chosen = x > y
    np.testing.assert_array_equal(arrays.where(chosen, x, y), np.where(chosen, x, y))
    np.testing.assert_array_equal(x, before[0])
    np.testing.assert_array_equal(y, before[1])


def test_erf_of_float32_is_right_to_its_last_bits() -> None:
    x = np.concatenate([np.linspace(-6, 6, 100_001), np.logspace(-30, 0, 1000)]).astype(np.float32)
    exact = special.erf(x.astype(np.float64))
    np.testing.assert_allclose(arrays.erf(x), exact, rtol=5e-7, atol=0)


def test_erf_of_float32_reaches_one_and_keeps_nan() -> None:
    x = np.array([*ODD, 5.0, -5.0], np.float32)
    np.testing.assert_array_equal(
        arrays.erf(x)[[0, 1, 2, 3, 4, 6, 7]], [0, 0, 1, -1, np.nan, 1, -1]
    )
    assert arrays.erf(np.float32(1.0)) == pytest.approx(0.8427008)
    assert np.signbit(arrays.erf(x)[1])
    assert arrays.erf(np.ones((0, 3), np.float32)).shape == (0, 3)


@pytest.mark.parametrize(
    ("shape", "axis", "expected"),
    [
        ((0,), 0, ([], [], [])),
        ((0, 3), 0, ([], [], [])),
        ((0, 3), 1, ([0], [0, 0, 0], [3])),  # three columns of nothing are the same
        ((3, 0), 1, ([], [], [])),
    ],
)
@pytest.mark.parametrize("ascending", [True, False])
def test_slices_of_empty_tensors_are_unique(
    shape: tuple[int, ...], axis: int, ascending: bool, expected: tuple[list[int], ...]
) -> None:
    found = arrays.unique_slices(np.zeros(shape), axis, ascending)
    assert tuple(each.tolist() for each in found) == expected
