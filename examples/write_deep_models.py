"""Writes three small deep ONNX models, each with a gradient that goes wrong in its own way.

deep_vanishing.onnx  24 sigmoid layers: each multiplies the gradient by a quarter at most
deep_exploding.onnx  16 ReLU layers whose weights were drawn four times too large
deep_nan.onnx        the mean distance between the rows of a batch: finite, as every value is, but
                     a row is at distance 0 from itself, and the square root has no derivative there

examples/find_bad_gradient.py finds where.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

WIDTH = 16
GREAT = np.sqrt(2 / WIDTH)  # the deviation with which ReLU layers keep the size of gradients


class Layers:
    """Nodes and weights of a model under construction."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self._numbers = np.random.default_rng(0)

    def node(self, operator: str, inputs: list[str], output: str, **attributes: int) -> str:
        """A node, called as its output; the output's name."""
        self.nodes.append(helper.make_node(operator, inputs, [output], output, **attributes))
        return output

    def dense(self, x: str, layer: int, activation: str, deviation: float) -> str:
        """activation(x @ w + b), with normal weights."""
        w, b = f"w{layer}", f"b{layer}"
        weights = self._numbers.normal(0, deviation, (WIDTH, WIDTH)).astype(np.float32)
        self.weights.append(numpy_helper.from_array(weights, w))
        self.weights.append(numpy_helper.from_array(np.zeros(WIDTH, np.float32), b))
        product = self.node("Gemm", [x, w, b], f"dense{layer}")
        return self.node(activation, [product], f"{activation.lower()}{layer}")

    def model(self, name: str, output: str) -> onnx.ModelProto:
        """The model with the input x [batch, 16] and a scalar output."""
        single = onnx.TensorProto.FLOAT
        graph = helper.make_graph(
            self.nodes,
            name,
            [helper.make_tensor_value_info("x", single, ["batch", WIDTH])],
            [helper.make_tensor_value_info(output, single, [])],
            self.weights,
        )
        imports = [helper.make_opsetid("", 18)]
        return helper.make_model(graph, ir_version=9, opset_imports=imports)


def vanishing() -> onnx.ModelProto:
    """The mean of the last of 24 sigmoid layers."""
    layers, x = Layers(), "x"
    for layer in range(24):
        x = layers.dense(x, layer, "Sigmoid", 1 / np.sqrt(WIDTH))
    return layers.model("deep_vanishing", layers.node("ReduceMean", [x], "loss", keepdims=0))


def exploding() -> onnx.ModelProto:
    """The mean of the last of 16 ReLU layers."""
    layers, x = Layers(), "x"
    for layer in range(16):
        x = layers.dense(x, layer, "Relu", 4 * GREAT)
    return layers.model("deep_exploding", layers.node("ReduceMean", [x], "loss", keepdims=0))


def nan() -> onnx.ModelProto:
    """The mean distance between the rows that 8 layers make of a batch."""
    layers, x = Layers(), "x"
    for layer in range(8):
        x = layers.dense(x, layer, "Relu", GREAT)
    for name, axis in (("rows", 1), ("columns", 0), ("last", -1)):
        layers.weights.append(numpy_helper.from_array(np.array([axis]), name))
    rows = layers.node("Unsqueeze", [x, "rows"], "as_rows")
    columns = layers.node("Unsqueeze", [x, "columns"], "as_columns")
    difference = layers.node("Sub", [rows, columns], "difference")
    squares = layers.node("Mul", [difference, difference], "squares")
    sums = layers.node("ReduceSum", [squares, "last"], "sums", keepdims=0)
    distances = layers.node("Sqrt", [sums], "distances")
    return layers.model("deep_nan", layers.node("ReduceMean", [distances], "loss", keepdims=0))


if __name__ == "__main__":
    folder = Path(__file__).parent
    for model in (vanishing(), exploding(), nan()):
        data = model.SerializeToString(deterministic=True)
        (folder / f"{model.graph.name}.onnx").write_bytes(data)
