"""Kernels first: which engine answers must not change in the middle of a test."""

from __future__ import annotations

from gradwire_server.engine import kernels


def pytest_sessionstart() -> None:
    """Compiles them where that was never done, which takes a minute or two."""
    kernels.compile_all()
    assert kernels.load_all()
