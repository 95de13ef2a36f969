"""ONNX models, read in a process of their own; nothing here imports the package onnx."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from importlib.util import find_spec
from typing import Any, NamedTuple

from gradwire.builder import Graph
from gradwire.errors import UnsupportedError
from gradwire.isolation import Bounds, own_pool

#: Memory that a reader may take for each byte of the model, beside what any may.
_MEMORY_PER_BYTE = 8


def without_onnx() -> UnsupportedError:
    """What is said where the package onnx is not installed."""
    return UnsupportedError(
        "FEATURE_UNSUPPORTED", "ONNX models need the package onnx: pip install 'gradwire[onnx]'"
    )


class ReadModel(NamedTuple):
    """A graph, and the operator set of the model that it was read from."""

    graph: Graph
    operator_set: int


def read_apart(
    model: str | os.PathLike[str] | bytes, options: Mapping[str, Any], advice: str
) -> ReadModel:
    """What `from_onnx` makes of a model, with its options and errors; `advice` is for a limit.

    LIMIT_EXCEEDED, and MODEL_INVALID where it ends the process that reads it.
    """
    if find_spec("onnx") is None:
        raise without_onnx()
    size, what = len(model) if isinstance(model, bytes) else 0, "the model"
    if not isinstance(model, bytes):
        model = what = os.fspath(model)
        with suppress(OSError, ValueError):  # the reader says what is wrong with it
            size = os.path.getsize(model)
    usual = Bounds(advice)
    bounds = Bounds(advice, usual.memory_bytes + _MEMORY_PER_BYTE * size)
    job = own_pool().job("gradwire.onnx.apart:read", model, options, what=what, bounds=bounds)
    answer = job.result()
    version = answer.facts.get("operator_set", "")
    return ReadModel(Graph.from_bytes(answer.graph), int(version) if version.isdecimal() else 0)
