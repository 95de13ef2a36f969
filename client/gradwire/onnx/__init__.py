"""ONNX models to gate graphs and back; needs the package `onnx`."""

from importlib.util import find_spec

from gradwire.errors import UnsupportedError

if find_spec("onnx") is None:
    raise UnsupportedError(
        "ONNX_MISSING", "ONNX models need the package onnx: pip install 'gradwire[onnx]'"
    )
