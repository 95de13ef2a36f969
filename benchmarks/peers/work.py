"""What is asked of every server: a value and its gradient, at one flat vector.

neuron       sigmoid(w0 * x0 + w1 * x1 + w2) of the five numbers w0, w1, w2, x0, x1
mlp          mean squared error of a 128-256-256-10 network of tanh over 32 samples, of its 101,386
             parameters
squares-N    the sum of the squares of N numbers: as much payload as wanted, and little to compute

The servers that have no automatic differentiation of their own compute with this file, which is as
fast as NumPy does it. It imports nothing else, so that it loads in every peer's environment.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

SHAPES = {
    "w1": (128, 256),
    "b1": (256,),
    "w2": (256, 256),
    "b2": (256,),
    "w3": (256, 10),
    "b3": (10,),
}
SAMPLES = 32


@dataclass(frozen=True)
class Work:
    """A function of a flat vector, and where it is evaluated."""

    name: str
    point: Any
    value_and_gradient: Callable[[Any], tuple[float, Any]]


def work(name: str) -> Work:
    """A work by its name."""
    if name == "neuron":
        return Work(name, np.array([2.0, -3.0, -3.0, -1.0, -2.0]), neuron)
    if name == "mlp":
        size = sum(int(np.prod(shape)) for shape in SHAPES.values())
        return Work(name, np.random.default_rng(1).normal(0, 0.08, size), mlp)
    kind, _, size = name.partition("-")
    if kind != "squares":
        raise ValueError(f"there is no work {name!r}")
    return Work(name, np.random.default_rng(2).uniform(-1, 1, int(size)), squares)


def neuron(theta: Any) -> tuple[float, Any]:
    w0, w1, w2, x0, x1 = theta.tolist()
    out = 1 / (1 + np.exp(-(w0 * x0 + w1 * x1 + w2)))
    slope = out * (1 - out)
    return float(out), slope * np.array([x0, x1, 1.0, w0, w1])


def samples() -> tuple[Any, Any]:
    """Inputs and targets of the network, which stay with the server."""
    random = np.random.default_rng(3)
    return random.normal(size=(SAMPLES, 128)), random.normal(size=(SAMPLES, 10))


_X, _TARGET = samples()


def mlp(theta: Any) -> tuple[float, Any]:
    parts = dict(zip(SHAPES, split(theta), strict=True))
    first = np.tanh(_X @ parts["w1"] + parts["b1"])
    second = np.tanh(first @ parts["w2"] + parts["b2"])
    error = second @ parts["w3"] + parts["b3"] - _TARGET
    to_out = error * (2 / error.size)
    to_second = (to_out @ parts["w3"].T) * (1 - second * second)
    to_first = (to_second @ parts["w2"].T) * (1 - first * first)
    grads = (
        _X.T @ to_first,
        to_first.sum(0),
        first.T @ to_second,
        to_second.sum(0),
        second.T @ to_out,
        to_out.sum(0),
    )
    return float(np.mean(error * error)), np.concatenate([each.ravel() for each in grads])


def squares(theta: Any) -> tuple[float, Any]:
    return float(theta @ theta), 2 * theta


def split(theta: Any) -> list[Any]:
    """The network's parameters."""
    found, start = [], 0
    for shape in SHAPES.values():
        size = int(np.prod(shape))
        found.append(theta[start : start + size].reshape(shape))
        start += size
    return found
