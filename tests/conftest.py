"""Kernels first: tests of the engines mean nothing where the array engine answers for all."""

from __future__ import annotations

import pytest

from gradwire_server.engine import kernels


def pytest_sessionstart() -> None:
    """There are kernels, made from the sources that are here."""
    if None in map(kernels.loaded, ("float64", "float32", "scheduling")):
        pytest.exit(
            "the compiled kernels are missing or stale: python -m gradwire_server.engine.kernels."
            "building (after pip install ziglang), or install the package again"
        )
