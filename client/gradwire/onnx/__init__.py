"""ONNX models in and out. Needs the package onnx, which the extra `onnx` installs."""

from __future__ import annotations

from importlib.util import find_spec

from gradwire.models import without_onnx

if find_spec("onnx") is None:
    raise without_onnx()

from gradwire.onnx.reading import from_onnx
from gradwire.onnx.writing import to_onnx

__all__ = ["from_onnx", "to_onnx"]
