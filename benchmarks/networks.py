"""Networks of tensors, forward and backward: the array engine beside PyTorch eager and JAX jit.

One definition of each network serves all three. Every value and every gradient is kept: PyTorch
retains the gradient of each intermediate value; JAX returns them all, gradients by way of a zero
added to each.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

import gradwire as gw
from benchmarks.harness import OURS, Case, Goal, Report, race, versions
from benchmarks.libraries import THREADS
from benchmarks.ours import warm_up
from gradwire_server.codec.graphs import decode_graph
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

    @staticmethod
    def convolve(x: Any, w: Any) -> Any:
        return gw.conv(x, w, kernel_shape=(3, 3), pads=(1, 1, 1, 1))

    @staticmethod
    def pool(x: Any) -> Any:
        return gw.max_pool(x, kernel_shape=(2, 2), strides=(2, 2))[0]


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

    @staticmethod
    def convolve(x: Any, w: Any) -> Any:
        return torch.nn.functional.conv2d(x, w, padding=1)

    @staticmethod
    def pool(x: Any) -> Any:
        return torch.nn.functional.max_pool2d(x, 2)


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

    @staticmethod
    def convolve(x: Any, w: Any) -> Any:
        return jax.lax.conv_general_dilated(x, w, (1, 1), "SAME")

    @staticmethod
    def pool(x: Any) -> Any:
        window = (1, 1, 2, 2)
        return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, window, "VALID")


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


def convnet(xp: Any, keep: Keep, leaf: Arrays) -> Any:
    """Two convolutions of 16 and 32 features over 32 images of 28 x 28, each pooled, and a loss."""
    x = leaf["x"]
    for layer in "12":
        found = keep(keep(xp.convolve(x, leaf[f"k{layer}"])) + leaf[f"b{layer}"])
        x = keep(xp.pool(keep(xp.relu(found))))
    flat = keep(xp.reshape(x, [32, 32 * 7 * 7]))
    return xp.cross_entropy(keep(keep(flat @ leaf["w"]) + leaf["b"]), leaf["labels"])


def convnet_leaves(random: np.random.Generator) -> Arrays:
    return {
        "x": random.normal(0, 1, (32, 1, 28, 28)),
        "labels": random.integers(0, 10, 32),
        "k1": random.normal(0, 0.3, (16, 1, 3, 3)),
        "b1": np.zeros((16, 1, 1)),
        "k2": random.normal(0, 0.1, (32, 16, 3, 3)),
        "b2": np.zeros((32, 1, 1)),
        "w": random.normal(0, 0.03, (32 * 7 * 7, 10)),
        "b": np.zeros(10),
    }


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
    "convnet": (convnet, convnet_leaves),
    "transformer": (transformer, transformer_leaves),
}

ROUNDS = 9

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


def run(quick: bool) -> Report:
    """All networks in both data types."""
    report = Report(
        "networks",
        "Networks",
        remarks=[
            "perceptron: 784-512-512-10, 256 rows; convnet: 32 images; transformer: one block of "
            "width 256, 4 heads, 128 places, 8 rows. Forward and backward, in-process; every value "
            f"and gradient is kept; {THREADS} threads for all."
        ],
        goals=[Goal("networks: no slower than PyTorch and JAX", ("PyTorch", "JAX jit"), 1.0)],
        versions=versions("numpy", "torch", "jax"),
    )
    warm_up()
    torch.set_num_threads(THREADS)
    for name in NETWORKS:
        for dtype in ("float32", "float64"):
            report.cases.append(measured(name, dtype, 2 if quick else ROUNDS))
    return report


def measured(name: str, dtype: str, rounds: int) -> Case:
    """One network in one data type."""
    network, make = NETWORKS[name]
    leaves = {
        leaf: each.astype(dtype) if each.dtype.kind == "f" else each
        for leaf, each in make(np.random.default_rng(0)).items()
    }
    contenders = {
        OURS: ours(network, leaves),
        "PyTorch": pytorch(network, leaves),
        "JAX jit": with_jax(network, leaves),
    }
    require_agreement(contenders, {"float64": 1e-8, "float32": 1e-3}[dtype])
    case = Case(f"{name}, {dtype}", dtype, len(leaves), unit="ms")
    race(case, contenders, rounds)
    return case


def require_agreement(engines: dict[str, Callable[[], Result]], tolerance: float) -> None:
    """Warms up, and raises where losses or gradients differ."""
    loss, gradients = engines[OURS]()
    for engine, run in engines.items():
        for _ in range(2):
            found, others = run()
        np.testing.assert_allclose(found, loss, rtol=tolerance, err_msg=engine)
        scale = max(float(np.abs(other).max()) for other in others.values())
        for name, other in others.items():
            np.testing.assert_allclose(
                gradients[name], other, rtol=0, atol=tolerance * scale, err_msg=f"{engine} {name}"
            )
