"""Tesseract, without its container: `tesseract-runtime serve`, arrays as base64 both ways.

A value is one request (`apply`), its gradient another (`vector_jacobian_product`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tesseract_core import Tesseract
from work import Work


def serve(work: Work, port: int, mode: str) -> None:
    runtime = str(Path(sys.executable).parent / "tesseract-runtime")
    environment = {
        **os.environ,
        "TESSERACT_API_PATH": str(Path(__file__).parent / "tesseract_api.py"),
        "TESSERACT_OUTPUT_FORMAT": "json+base64",
        "BENCHMARK_WORK": work.name,
    }
    call = [runtime, "serve", "--host", "127.0.0.1", "--port", str(port)]
    os.execve(runtime, call, environment)


def connect(work: Work, port: int, mode: str) -> Callable[[], Any]:
    server = Tesseract.from_url(f"http://127.0.0.1:{port}")
    given = {"theta": work.point}

    def call() -> tuple[float, Any]:
        value = server.apply(given)["f"]
        pulled = server.vector_jacobian_product(given, ["theta"], ["f"], {"f": 1.0})
        return value, pulled["theta"]

    return call
