"""Kernels first: tests of the engines mean nothing where the array engine answers for all."""

from __future__ import annotations

import os
import sys

import pytest

from gradwire_server.engine import kernels

# What is compiled once is kept, for the many servers and commands that tests start.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

#: Files that take longest, first: else one processor works on them alone at the end.
LONGEST = (
    "test_page.py", "test_docker.py", "test_special_points.py", "test_benchmarks.py",
    "test_store_kills.py", "test_onnx_gradients_elsewhere.py", "test_examples.py",
    "test_gradient_graph.py", "test_workers.py", "test_hostile.py", "test_memory.py",
)  # fmt: skip


def pytest_sessionstart() -> None:
    """There are kernels, made from the sources that are here."""
    if None in map(kernels.loaded, ("float64", "float32", "scheduling")):
        pytest.exit(
            "the compiled kernels are missing or stale: python -m gradwire_server.engine.kernels."
            "building (after pip install ziglang), or install the package again"
        )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first; `--no-loadscope-reorder` has xdist keep this order."""
    place = {name: position for position, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(LONGEST)))
