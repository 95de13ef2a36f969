"""Networks of tensors, forward and backward: the array engine beside PyTorch eager and JAX jit.

    env -u OPENBLAS_CORETYPE -u OPENBLAS_L2_SIZE OMP_NUM_THREADS=2 \\
        python benchmarks/networks.py --json networks.json

One definition of each network serves all three. Every value and every gradient is kept: PyTorch
retains the gradient of each intermediate value; JAX returns them all, gradients by way of a zero
added to each. The three take turns; a ratio is of times of one turn. On a busy machine compare them
on one thread by the time of the CPU, which leaves out what other processes take:

    env -u OPENBLAS_CORETYPE -u OPENBLAS_L2_SIZE OMP_NUM_THREADS=1 \\
        taskset -c 0 python benchmarks/networks.py --threads 1 --clock cpu
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from itertools import pairwise
from statistics import median
from time import perf_counter, process_time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

import gradwire as gw
from gradwire_server.codec import decode_graph
from gradwire_server.engine import evaluation as evaluate
from gradwire_server.engine import runs
from gradwire_server.engine.evaluation import ALL, Binding, Evaluation
from gradwire_server.limits import Limits

jax.config.update("jax_enable_x64", True)

Arrays = dict[str, Any]
Keep = Callable[[Any], Any]


class Ours:
    """Functions that record gates."""

    relu, gelu, softmax, sqrt = gw.relu, gw.gelu, gw.softmax, gw.sqrt

    @staticmethod
    def mean(x: Any) -> Any:
        return gw.reduce_mean(x, [-1])

    @staticmethod
    def mean_square(x: Any) -> Any:
        return gw.reduce_mean(x * x, keepdims=0)

    @staticmethod
    def reshape(x: Any, shape: list[int]) -> Any:
        return gw.reshape(x, shape)

    @staticmethod
    def permute(x: Any, axes: tuple[int, ...]) -> Any:
        return gw.transpose(x, perm=axes)

    @staticmethod
    def cross_entropy(scores: Any, labels: Any) -> Any:
        return gw.softmax_cross_entropy_loss(scores, labels)[0]


class Torch:
    """PyTorch's functions."""

    relu, gelu, sqrt = torch.relu, torch.nn.functional.gelu, torch.sqrt
    permute, cross_entropy = torch.permute, torch.nn.functional.cross_entropy

    @staticmethod
    def softmax(x: Any) -> Any:
        return torch.softmax(x, dim=-1)

    @staticmethod
    def mean(x: Any) -> Any:
        return torch.mean(x, dim=-1, keepdim=True)

    @staticmethod
    def mean_square(x: Any) -> Any:
        return torch.mean(x * x)

    @staticmethod
    def reshape(x: Any, shape: list[int]) -> Any:
        return torch.reshape(x, shape)


class Jax:
    """JAX's functions."""

    relu, softmax, sqrt = jax.nn.relu, jax.nn.softmax, jnp.sqrt
    permute, reshape = jnp.transpose, jnp.reshape

    @staticmethod
    def gelu(x: Any) -> Any:
        return jax.nn.gelu(x, approximate=False)

    @staticmethod
    def mean(x: Any) -> Any:
        return jnp.mean(x, axis=-1, keepdims=True)

    @staticmethod
    def mean_square(x: Any) -> Any:
        return jnp.mean(x * x)

    @staticmethod
    def cross_entropy(scores: Any, labels: Any) -> Any:
        picked = jnp.take_along_axis(jax.nn.log_softmax(scores), labels[:, None], axis=1)
        return -jnp.mean(picked)


def perceptron(xp: Any, keep: Keep, leaf: Arrays) -> Any:
    """784-512-512-10 over 256 rows, with its loss."""
    hidden = keep(xp.relu(keep(keep(leaf["x"] @ leaf["w1"]) + leaf["b1"])))
    hidden = keep(xp.relu(keep(keep(hidden @ leaf["w2"]) + leaf["b2"])))
    scores = keep(keep(hidden @ leaf["w3"]) + leaf["b3"])
    return xp.cross_entropy(scores, leaf["labels"])


def perceptron_leaves(random: np.random.Generator) -> Arrays:
    found: Arrays = {"x": random.normal(0, 1, (256, 784)), "labels": random.integers(0, 10, 256)}
    sizes = (784, 512, 512, 10)
    for layer, (rows, columns) in enumerate(pairwise(sizes), 1):
        found[f"w{layer}"] = random.normal(0, rows**-0.5, (rows, columns))
        found[f"b{layer}"] = np.zeros(columns)
    return found


ROWS, LENGTH, WIDTH, HEADS = 8, 128, 256, 4


def attention(xp: Any, keep: Keep, leaf: Arrays, x: Any) -> Any:
    """Four heads, each of which weighs the values of all places."""
    apart, together = [ROWS, LENGTH, HEADS, WIDTH // HEADS], [ROWS, LENGTH, WIDTH]

    def heads(name: str) -> Any:
        found = keep(keep(x @ leaf[f"w{name}"]) + leaf[f"b{name}"])
        return keep(xp.permute(keep(xp.reshape(found, apart)), (0, 2, 1, 3)))

    q, k, v = heads("q"), heads("k"), heads("v")
    scores = keep(keep(q @ keep(xp.permute(k, (0, 1, 3, 2)))) * (WIDTH // HEADS) ** -0.5)
    found = keep(keep(xp.softmax(scores)) @ v)
    found = keep(xp.reshape(keep(xp.permute(found, (0, 2, 1, 3))), together))
    return keep(keep(found @ leaf["wo"]) + leaf["bo"])


def normal(xp: Any, keep: Keep, leaf: Arrays, x: Any, name: str) -> Any:
    """A layer normalization, in steps."""
    centred = keep(x - keep(xp.mean(x)))
    variance = keep(xp.mean(keep(centred * centred)))
    scaled = keep(centred / keep(xp.sqrt(keep(variance + 1e-5))))
    return keep(keep(scaled * leaf[f"g{name}"]) + leaf[f"s{name}"])


def transformer(xp: Any, keep: Keep, leaf: Arrays) -> Any:
    """A block that normalizes first: attention, then a perceptron; and its mean square."""
    x = leaf["x"]
    x = keep(x + attention(xp, keep, leaf, normal(xp, keep, leaf, x, "1")))
    hidden = keep(keep(normal(xp, keep, leaf, x, "2") @ leaf["wu"]) + leaf["bu"])
    added = keep(keep(keep(xp.gelu(hidden)) @ leaf["wd"]) + leaf["bd"])
    return xp.mean_square(keep(x + added))


def transformer_leaves(random: np.random.Generator) -> Arrays:
    found: Arrays = {"x": random.normal(0, 1, (ROWS, LENGTH, WIDTH))}
    sizes = dict.fromkeys("qkvo", (WIDTH, WIDTH)) | {"u": (WIDTH, 1024), "d": (1024, WIDTH)}
    for name, (rows, columns) in sizes.items():
        found[f"w{name}"] = random.normal(0, rows**-0.5, (rows, columns))
        found[f"b{name}"] = np.zeros(columns)
    for name in "12":
        found[f"g{name}"], found[f"s{name}"] = np.ones(WIDTH), np.zeros(WIDTH)
    return found


NETWORKS = {
    "perceptron": (perceptron, perceptron_leaves),
    "transformer": (transformer, transformer_leaves),
}

CLOCKS = {"wall": perf_counter, "cpu": process_time}

#: The loss, and the gradient of every floating leaf.
Result = tuple[float, Arrays]


def ours(network: Any, leaves: Arrays) -> Callable[[], Result]:
    """The array engine; every value and gradient is collected."""
    graph = gw.Graph()
    handles = {
        name: graph.input(name, each.shape, str(each.dtype)) for name, each in leaves.items()
    }
    graph.output("loss", network(Ours, lambda handle: handle, handles))
    limits = Limits()
    decoded = decode_graph(graph.to_bytes(), limits)
    bindings = {name: Binding(each) for name, each in leaves.items()}
    asked = Evaluation(bindings=bindings, values=ALL, gradients=ALL)
    job = evaluate.prepare(decoded, asked, limits)

    def run() -> Result:
        outputs, gradients, _, _ = runs.run(job, lambda: False)
        return float(outputs[0][1]), dict(gradients)

    return run


def pytorch(network: Any, leaves: Arrays) -> Callable[[], Result]:
    """PyTorch, operator by operator."""
    given = {name: torch.from_numpy(each) for name, each in leaves.items()}
    floating = [name for name, each in leaves.items() if each.dtype.kind == "f"]
    for name in floating:
        given[name].requires_grad_(True)

    def run() -> Result:
        kept = []

        def keep(value: Any) -> Any:
            value.retain_grad()
            kept.append(value)
            return value

        for name in floating:
            given[name].grad = None
        loss = network(Torch, keep, given)
        loss.backward()
        return loss.item(), {name: given[name].grad.numpy() for name in floating}

    return run


def with_jax(network: Any, leaves: Arrays) -> Callable[[], Result]:
    """JAX, compiled whole."""
    given = {name: jnp.asarray(each) for name, each in leaves.items()}
    floating = {name: each for name, each in given.items() if each.dtype.kind == "f"}
    rest = {name: each for name, each in given.items() if name not in floating}

    def loss(floating: Any, zeros: Any) -> Any:
        kept: list[Any] = []

        def keep(value: Any) -> Any:
            kept.append(value if zeros is None else value + zeros[len(kept)])
            return kept[-1]

        return network(Jax, keep, floating | rest), kept

    _, shapes = jax.eval_shape(lambda floating: loss(floating, None), floating)
    zeros = [jnp.zeros(each.shape, each.dtype) for each in shapes]
    compiled = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))

    def run() -> Result:
        (found, _), (grads, _) = jax.block_until_ready(compiled(floating, zeros))
        return float(found), {name: np.asarray(each) for name, each in grads.items()}

    return run


def measure(name: str, dtype: str, rounds: int, clock: Callable[[], float]) -> dict[str, Any]:
    """Milliseconds of each library, and our ratios to the others."""
    network, make = NETWORKS[name]
    leaves = {
        name: each.astype(dtype) if each.dtype.kind == "f" else each
        for name, each in make(np.random.default_rng(0)).items()
    }
    engines = {
        "gradwire": ours(network, leaves),
        "pytorch": pytorch(network, leaves),
        "jax": with_jax(network, leaves),
    }
    require_agreement(engines, {"float64": 1e-8, "float32": 1e-3}[dtype])
    times: dict[str, list[float]] = {engine: [] for engine in engines}
    for _ in range(rounds):
        for engine, run in engines.items():
            start = clock()
            run()
            times[engine].append((clock() - start) * 1e3)
    ratios = {
        peer: [a / b for a, b in zip(times["gradwire"], times[peer], strict=True)]
        for peer in ("pytorch", "jax")
    }
    return {
        "network": name,
        "dtype": dtype,
        "milliseconds": {engine: spread(each) for engine, each in times.items()},
        "ratios": {peer: spread(each) for peer, each in ratios.items()},
    }


def require_agreement(engines: dict[str, Callable[[], Result]], tolerance: float) -> None:
    """Warms up, and raises where losses or gradients differ."""
    loss, gradients = engines["gradwire"]()
    for engine, run in engines.items():
        for _ in range(2):
            found, others = run()
        np.testing.assert_allclose(found, loss, rtol=tolerance, err_msg=engine)
        scale = max(float(np.abs(other).max()) for other in others.values())
        for name, other in others.items():
            np.testing.assert_allclose(
                gradients[name], other, rtol=0, atol=tolerance * scale, err_msg=f"{engine} {name}"
            )


def spread(figures: list[float]) -> list[float]:
    """Least, median and largest."""
    return [min(figures), median(figures), max(figures)]


def main() -> None:
    """Measures both networks in both data types; prints a table."""
    parser = argparse.ArgumentParser(description="Networks, forward and backward")
    parser.add_argument("--json", help="file for the figures: least, median and largest")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=tuple(CLOCKS), default="wall")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"NumPy {np.__version__}, PyTorch {torch.__version__}, JAX {jax.__version__}")
    found = []
    for name in NETWORKS:
        for dtype in ("float32", "float64"):
            found.append(measure(name, dtype, arguments.rounds, CLOCKS[arguments.clock]))
            times, ratios = found[-1]["milliseconds"], found[-1]["ratios"]
            line = "  ".join(f"{engine} {each[1]:.1f} ms" for engine, each in times.items())
            line += "".join(f"  /{peer} {each[1]:.2f}" for peer, each in ratios.items())
            print(f"{name} {dtype}  {line}")
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump(found, file, indent=1)


if __name__ == "__main__":
    main()
