"""What is read of a model at once: in this process, or in another for `gradwire.models`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gradwire.isolated import Answer
from gradwire.models import ReadModel
from gradwire.onnx.messages import load_model, versions_of
from gradwire.onnx.reading import from_onnx


def read_here(model: str | bytes, options: Mapping[str, Any]) -> ReadModel:
    """The graph of a model, and the operator set that it imports."""
    loaded = load_model(model)
    return ReadModel(from_onnx(loaded, **options), versions_of(loaded.opset_import).get("", 0))


def read(model: str | bytes, options: Mapping[str, Any]) -> Answer:
    """The same as bytes."""
    graph, version = read_here(model, options)
    return Answer(graph.to_bytes(), {"operator_set": str(version)})
