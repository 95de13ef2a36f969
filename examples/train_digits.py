"""Trains a small network on handwritten digits, with every gradient computed by a server.

The server runs in another process (or at --server). SciPy's L-BFGS asks for the loss and its
gradient through a session: the plan and the pictures stay on the server, a step sends only weights.

Prints the test accuracy, and the share of the time that was spent outside the server: all but the
waiting for its answers, which the client measures. The wire counts as waiting.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import minimize
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import gradwire as gw

HIDDEN = 32
DECAY = 0.002


def network(pictures: Any, labels: Any) -> gw.Graph:
    """Loss of a network with one hidden layer: parameters w1, b1, w2, b2."""
    numbers = np.random.default_rng(0)
    graph = gw.Graph()
    w1 = graph.parameter("w1", numbers.normal(0, 0.15, (64, HIDDEN)))
    b1 = graph.parameter("b1", np.zeros(HIDDEN))
    w2 = graph.parameter("w2", numbers.normal(0, 0.15, (HIDDEN, 10)))
    b2 = graph.parameter("b2", np.zeros(10))
    hidden = np.tanh(graph.constant(pictures) @ w1 + b1).named("hidden")
    scores = (hidden @ w2 + b2).named("scores")
    fit, _ = gw.softmax_cross_entropy_loss(scores, graph.constant(labels))
    sizes = gw.reduce_sum_square(w1, keepdims=0) + gw.reduce_sum_square(w2, keepdims=0)
    graph.output("loss", (fit + DECAY / 2 * sizes).named("loss"))
    return graph


def predict(weights: dict[str, Any], pictures: Any) -> Any:
    """The most likely digit of each picture."""
    hidden = np.tanh(pictures @ weights["w1"] + weights["b1"])
    return (hidden @ weights["w2"] + weights["b2"]).argmax(axis=1)


@contextmanager
def server_process() -> Iterator[str]:
    """A server in another process, on a unix socket."""
    with tempfile.TemporaryDirectory() as folder:
        address = f"unix:{Path(folder) / 'gradwire'}"
        command = [sys.executable, "-m", "gradwire.cli", "serve", "--listen", address]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            print(process.stdout.readline().strip())
            try:
                yield address
            finally:
                process.terminate()


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--server", help="HOST:PORT or unix:PATH of a running server")
    arguments.add_argument("--steps", type=int, default=60)
    chosen = arguments.parse_args()
    if chosen.server:
        train(chosen.server, chosen.steps)
    else:
        with server_process() as address:
            train(address, chosen.steps)


def train(address: str, steps: int) -> None:
    """Trains, and prints accuracy and times."""
    digits = load_digits()
    parts = train_test_split(digits.data / 16.0, digits.target, random_state=0)
    pictures, test_pictures, labels, test_labels = parts
    graph = network(pictures, labels.astype(np.int64))
    leaves = [leaf for leaf in graph.leaves if leaf.kind == "parameter"]
    start = np.concatenate([np.ravel(leaf.value) for leaf in leaves if leaf.value is not None])
    answering = 0.0

    with gw.connect(address) as connection, connection.session(graph) as session:

        def loss_and_gradient(x: Any) -> tuple[float, Any]:
            nonlocal answering
            began = time.perf_counter()
            found = session.value_and_gradient(x)
            answering += time.perf_counter() - began
            return found

        began = time.perf_counter()
        fitted = minimize(
            loss_and_gradient, start, jac=True, method="L-BFGS-B", options={"maxiter": steps}
        )
        total = time.perf_counter() - began

    weights, position = {}, 0
    for leaf in leaves:
        assert leaf.value is not None
        weights[leaf.name] = fitted.x[position : position + leaf.value.size].reshape(
            leaf.value.shape
        )
        position += leaf.value.size
    accuracy = float(np.mean(predict(weights, test_pictures) == test_labels))
    print(f"{fitted.nfev} gradients in {total:.2f} s, loss {fitted.fun:.4f}")
    print(f"test accuracy {100 * accuracy:.1f} %")
    print(f"time outside the server {100 * (1 - answering / total):.1f} %")


if __name__ == "__main__":
    main()
