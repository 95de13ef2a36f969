"""UM-Bridge: a value is one request, its gradient another; there is none for both."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import umbridge
from work import Work


def serve(work: Work, port: int, mode: str) -> None:
    class Model(umbridge.Model):
        def __init__(self) -> None:
            super().__init__("forward")

        def get_input_sizes(self, config: Any) -> list[int]:
            return [len(work.point)]

        def get_output_sizes(self, config: Any) -> list[int]:
            return [1]

        def __call__(self, parameters: Any, config: Any) -> Any:
            return [[work.value_and_gradient(np.array(parameters[0]))[0]]]

        def gradient(
            self, out_wrt: int, in_wrt: int, parameters: Any, sens: Any, config: Any
        ) -> Any:
            gradient = work.value_and_gradient(np.array(parameters[in_wrt]))[1]
            return (sens[0] * gradient).tolist()

        def supports_evaluate(self) -> bool:
            return True

        def supports_gradient(self) -> bool:
            return True

    umbridge.serve_models([Model()], port, max_workers=len(os.sched_getaffinity(0)))


def connect(work: Work, port: int, mode: str) -> Callable[[], Any]:
    model = umbridge.HTTPModel(f"http://127.0.0.1:{port}", "forward")
    point = work.point

    def call() -> tuple[float, Any]:
        given = [point.tolist()]
        ((value,),) = model(given)
        return value, model.gradient(0, 0, given, [1.0])

    return call
