"""Which constants of a model are weights: those that reach a weight slot of a layer.

Some exporters (paddle2onnx, spox) write weights as `Constant` nodes instead of initializers.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator

import onnx

from gradwire.errors import InvalidRequestError
from gradwire.onnx.messages import domain_of

#: What `from_onnx` makes parameters of: floating initializers; constants that are weights, too; or
#: every floating constant.
CHOICES = ("initializers", "weights", "all")

#: Domain, name and overload of a function; of none for the graph.
Key = tuple[str, str, str]
GRAPH: Key = ("", "", "")

#: Slots of weights and biases, by domain and operator.
SLOTS: dict[tuple[str, str], tuple[int, ...]] = {
    ("", "BatchNormalization"): (1, 2, 3, 4),
    ("", "Conv"): (1, 2),
    ("", "ConvTranspose"): (1, 2),
    ("", "DeformConv"): (1, 3),
    ("", "GRU"): (1, 2, 3),
    ("", "Gemm"): (0, 1, 2),
    ("", "GroupNormalization"): (1, 2),
    ("", "InstanceNormalization"): (1, 2),
    ("", "LSTM"): (1, 2, 3, 7),
    ("", "LayerNormalization"): (1, 2),
    ("", "MatMul"): (0, 1),
    ("", "PRelu"): (1,),
    ("", "RMSNormalization"): (1,),
    ("", "RNN"): (1, 2, 3),
    ("", "SimplifiedLayerNormalization"): (1,),
    ("com.microsoft", "Attention"): (1, 2),
    ("com.microsoft", "BiasGelu"): (1,),
    ("com.microsoft", "EmbedLayerNormalization"): (2, 3, 4, 5, 6),
    ("com.microsoft", "FastGelu"): (1,),
    ("com.microsoft", "FusedConv"): (1, 2),
    ("com.microsoft", "FusedGemm"): (0, 1, 2),
    ("com.microsoft", "FusedMatMul"): (0, 1),
    ("com.microsoft", "MultiHeadAttention"): (3,),
    ("com.microsoft", "SkipLayerNormalization"): (2, 3, 4),
    ("com.microsoft", "SkipSimplifiedLayerNormalization"): (2, 3),
}
#: Layers whose bias may be added by a node of its own.
_BIASED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
#: Operators that only move or convert what they take first.
_MOVES = ("Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze")


_MOST_DEPTH = 64  # of functions in functions


class _Everything(Container[str]):
    def __contains__(self, name: object) -> bool:
        return True


def parameter_names(model: onnx.ModelProto, choice: str) -> Callable[[Key], Container[str]]:
    """For the graph and each function, the constants that become parameters (OPTION_INVALID)."""
    if choice not in CHOICES:
        raise InvalidRequestError(
            "OPTION_INVALID", f"parameters is {choice!r} but must be one of {', '.join(CHOICES)}"
        )
    if choice == "weights":
        return _Weights(model).names
    same: Container[str] = _Everything() if choice == "all" else frozenset()
    return lambda _: same


class _Weights:
    """Names of weights: of the graph with its subgraphs, and of each function."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._functions = {
            (domain_of(each.domain), each.name, each.overload): each for each in model.functions
        }
        self._graph = model.graph
        self._names: dict[Key, frozenset[str]] = {}
        self._depth = 0

    def names(self, key: Key) -> frozenset[str]:
        """Every value that ends in a weight slot."""
        if key not in self._names:
            self._names[key] = frozenset()  # of a function that uses itself, which is refused later
            if self._depth >= _MOST_DEPTH:  # which is refused later, too
                return self._names[key]
            self._depth += 1
            nodes = self._graph.node if key == GRAPH else self._functions[key].node
            self._names[key] = self._reaching([*_nodes_inside(nodes)])
            self._depth -= 1
        return self._names[key]

    def _reaching(self, nodes: list[onnx.NodeProto]) -> frozenset[str]:
        makers = {name: node for node in nodes for name in node.output}
        waiting = [name for node in nodes for name in self._weights_of(node, makers)]
        found: set[str] = set()
        while waiting:
            name = waiting.pop()
            if name in found:
                continue
            found.add(name)
            maker = makers.get(name)
            if maker is not None and maker.op_type in _MOVES and not domain_of(maker.domain):
                waiting.extend(maker.input[:1])
        return frozenset(found)

    def _weights_of(self, node: onnx.NodeProto, makers: dict[str, onnx.NodeProto]) -> Iterator[str]:
        domain = domain_of(node.domain)
        function = self._functions.get((domain, node.op_type, node.overload))
        if function is not None:
            inside = self.names((domain, node.op_type, node.overload))
            yield from (
                name
                for name, inner in zip(node.input, function.input, strict=False)
                if inner in inside
            )
        elif (domain, node.op_type) == ("", "Add"):
            for name, other in zip(node.input, reversed(node.input), strict=True):
                layer = makers.get(other)
                if layer is not None and layer.op_type in _BIASED and not domain_of(layer.domain):
                    yield name
        else:
            slots = SLOTS.get((domain, node.op_type), ())
            yield from (node.input[slot] for slot in slots if slot < len(node.input))


def _nodes_inside(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """Nodes, and those of the subgraphs in their attributes."""
    waiting = [*nodes]
    while waiting:
        node = waiting.pop()
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                waiting.extend(attribute.g.node)
