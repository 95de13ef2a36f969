"""From the bytes of an unseen graph to a plan: decoded, checked, inferred, with and without rows.

    python benchmarks/plan.py --json plan.json

Figures are seconds, and how many times as long as protobuf alone takes to parse the same bytes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from statistics import median
from time import perf_counter

import google.protobuf
import numpy as np

from gradwire.v1 import graph_pb2, tensor_pb2
from gradwire_server.codec.graphs import decode_graph
from gradwire_server.graph import Graph
from gradwire_server.limits import Limits
from gradwire_server.memory import Kept, Lifetimes, require_peak
from gradwire_server.plan import Plan, make_plan
from gradwire_server.specs import TensorSpec

SIZES = (1_000, 10_000, 100_000, 1_000_000)
LIMITS = Limits()
_GATES = (("Add", 2), ("Sub", 2), ("Mul", 2), ("Max", 2), ("Tanh", 1), ("Sigmoid", 1), ("Neg", 1))
_SHARES = (0.2, 0.15, 0.25, 0.1, 0.1, 0.1, 0.1)


def circuit(nodes: int, shape: str, seed: int = 0) -> bytes:
    """A random scalar graph over one leaf of elements, serialized; one value in a thousand named.

    "wide": inputs come from anywhere in the last eighth, so a few hundred levels hold it all.
    "deep": most nodes use the one before, so there are nearly as many levels as nodes.
    """
    random = np.random.default_rng(seed)
    leaves = max(4, nodes // 10) if shape == "wide" else 16
    own = leaves + 1 + np.arange(nodes)
    window = np.minimum(max(16, nodes // 8) if shape == "wide" else 24, own - 1)
    rows = random.choice(len(_GATES), nodes, p=_SHARES)
    first, second = (own - 1 - random.integers(0, window) for _ in range(2))
    if shape == "deep":
        first = np.where(random.random(nodes) < 0.85, own - 1, first)
    counts = np.array([count for _, count in _GATES])[rows]
    used = np.stack([np.ones(nodes, bool), counts == 2], axis=1)

    message = graph_pb2.Graph(format_version=1, operator_set_version=21)
    for operator, count in _GATES:
        message.gates.add(operator=operator, input_count=count, output_count=1)
    leaf = message.circuit.inputs.add(name="x", layout=graph_pb2.Leaf.LAYOUT_ELEMENTS)
    leaf.type.data_type = tensor_pb2.DATA_TYPE_FLOAT64
    leaf.type.axes.add(size=leaves)
    message.circuit.node_gates.extend(rows.tolist())
    message.circuit.node_inputs.extend(np.stack([first, second], axis=1)[used].tolist())
    message.circuit.outputs.add(name="out", value_ids=[int(own[-1])])
    message.circuit.named_ids.extend(own[::1000].tolist())
    message.circuit.names.extend(f"value {value_id}" for value_id in own[::1000].tolist())
    return message.SerializeToString()


def plan(graph: Graph, rows: int) -> Plan:
    """The plan of a circuit for its one leaf, checked against the limit of memory."""
    spec = TensorSpec((graph.leaves[0].id_count,))
    found = make_plan(graph, (spec,), (rows > 0,), rows)
    everything = np.ones(graph.value_count + 1, bool)
    require_peak(Lifetimes(found, Kept(everything, everything, found.floating)), LIMITS)
    return found


def _seconds(work: Callable[[], object]) -> float:
    start = perf_counter()
    work()
    return perf_counter() - start


def measure(nodes: int, shape: str, rounds: int) -> dict[str, object]:
    """Seconds of every stage, the stages taking turns."""
    data = circuit(nodes, shape)
    graph = decode_graph(data, LIMITS)
    stages: dict[str, Callable[[], object]] = {
        "parse": lambda: graph_pb2.Graph().ParseFromString(data),
        "decode": lambda: decode_graph(data, LIMITS),
        "plan": lambda: plan(graph, 0),
        "plan with rows": lambda: plan(graph, 2),
        "bytes to plan": lambda: plan(decode_graph(data, LIMITS), 0),
    }
    seconds: dict[str, list[float]] = {name: [] for name in stages}
    for _ in range(rounds):
        for name, work in stages.items():
            seconds[name].append(_seconds(work))
    ratios = [a / b for a, b in zip(seconds["bytes to plan"], seconds["parse"], strict=True)]
    return {
        "nodes": nodes,
        "shape": shape,
        "bytes": len(data),
        "seconds": {name: [min(each), median(each), max(each)] for name, each in seconds.items()},
        "bytes to plan / parse": [min(ratios), median(ratios), max(ratios)],
    }


def main() -> None:
    """Measures all sizes and both shapes; prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", help="file for the figures: least, median and largest")
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    print(f"protobuf {google.protobuf.__version__}, NumPy {np.__version__}; medians, in ms")
    found = []
    for shape in ("wide", "deep"):
        for nodes in SIZES:
            found.append(measure(nodes, shape, arguments.rounds))
            stages = found[-1]["seconds"]
            assert isinstance(stages, dict)
            line = "  ".join(f"{name} {each[1] * 1e3:.2f}" for name, each in stages.items())
            print(f"{shape} {nodes:>9,}  {line}")
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump({"protobuf": google.protobuf.__version__, "plans": found}, file, indent=1)


if __name__ == "__main__":
    main()
