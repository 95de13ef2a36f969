"""The work as a Tesseract, in the form of its own template."""

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel
from tesseract_core.runtime import Array, Differentiable, Float64

sys.path.insert(0, str(Path(__file__).parent))

from work import work

_WORK = work(os.environ["BENCHMARK_WORK"])


class InputSchema(BaseModel):
    theta: Differentiable[Array[(None,), Float64]]


class OutputSchema(BaseModel):
    f: Differentiable[Float64]


def apply(inputs: InputSchema) -> OutputSchema:
    return OutputSchema(f=_WORK.value_and_gradient(inputs.theta)[0])


def vector_jacobian_product(
    inputs: InputSchema,
    vjp_inputs: set[str],
    vjp_outputs: set[str],
    cotangent_vector: dict[str, Any],
) -> dict[str, Any]:
    gradient = _WORK.value_and_gradient(inputs.theta)[1]
    return {"theta": np.asarray(cotangent_vector["f"]) * gradient}
