"""Gradients of random graphs equal JAX's: fan-out, broadcasting, unused inputs, several outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from onnx_in_jax import QUICKLY

import gradwire as gw

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_platforms", "cpu")

SHAPES: tuple[tuple[int, ...], ...] = ((), (3,), (1, 3), (2, 1), (2, 3), (4, 2, 3))
TOLERANCES = {"float64": 1e-12, "float32": 1e-5}


def flat(x: Any) -> Any:
    return gw.reshape(x, [-1])


UNARY: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "tanh": (gw.tanh, jnp.tanh),
    "sin": (gw.sin, jnp.sin),
    "sigmoid": (gw.sigmoid, jax.nn.sigmoid),
    "softplus": (gw.softplus, jax.nn.softplus),
    "exp": (lambda x: gw.exp(gw.tanh(x)), lambda x: jnp.exp(jnp.tanh(x))),
    "log": (lambda x: gw.log(1.5 + gw.sin(x)), lambda x: jnp.log(1.5 + jnp.sin(x))),
    "sum": (
        lambda x: gw.reduce_sum(x, keepdims=0),
        lambda x: jnp.sum(x),
    ),
    "mean": (
        lambda x: gw.reduce_mean(x, keepdims=1),
        lambda x: jnp.mean(x, keepdims=True),
    ),
    "logsumexp": (
        lambda x: gw.reduce_log_sum_exp(x, keepdims=0),
        lambda x: jax.nn.logsumexp(x),
    ),
    "softmax": (
        lambda x: gw.reshape(gw.softmax(flat(x), axis=0), gw.shape(x)),
        lambda x: jnp.reshape(jax.nn.softmax(x.reshape(-1)), x.shape),
    ),
    "transpose": (
        lambda x: gw.transpose(gw.sin(gw.transpose(x))),
        lambda x: jnp.transpose(jnp.sin(jnp.transpose(x))),
    ),
    "gather": (
        lambda x: gw.reduce_sum(gw.exp(-gw.gather(flat(x), [0, -1, 0])), keepdims=0),
        lambda x: jnp.sum(jnp.exp(-x.reshape(-1)[jnp.array([0, -1, 0])])),
    ),
    "largest": (
        lambda x: gw.reduce_max(x, keepdims=0),
        lambda x: jnp.max(x),
    ),
}
BINARY: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "add": (lambda x, y: x + y, lambda x, y: x + y),
    "subtract": (lambda x, y: x - y, lambda x, y: x - y),
    "multiply": (lambda x, y: x * y, lambda x, y: x * y),
    "divide": (lambda x, y: x / (2 + gw.sin(y)), lambda x, y: x / (2 + jnp.sin(y))),
    "maximum": (gw.max, jnp.maximum),
    "matmul": (
        lambda x, y: gw.reduce_mean(
            gw.tanh(gw.reshape(x, [-1, 1]) @ gw.reshape(y, [1, -1])), keepdims=0
        ),
        lambda x, y: jnp.mean(jnp.tanh(x.reshape(-1, 1) @ y.reshape(1, -1))),
    ),
    "where": (
        lambda x, y: gw.where(x > y, gw.sin(x), y * x),
        lambda x, y: jnp.where(x > y, jnp.sin(x), y * x),
    ),
}


@pytest.fixture(scope="module")
def server() -> Iterator[gw.Connection]:
    with gw.local() as connection:
        yield connection


def random_program(rng: np.random.Generator, shapes: tuple[tuple[int, ...], ...]) -> list[Any]:
    """Steps (name, positions of operands); the last few values are the outputs."""
    steps: list[Any] = []
    count = len(shapes)
    for _ in range(int(rng.integers(5, 25))):
        if rng.random() < 0.5:
            steps.append((str(rng.choice([*UNARY])), (int(rng.integers(count)),)))
        else:
            pair = tuple(int(each) for each in rng.integers(count, size=2))
            steps.append((str(rng.choice([*BINARY])), pair))
        count += 1
    return steps


def run_program(steps: list[Any], leaves: list[Any], which: int) -> list[Any]:
    values = list(leaves)
    for name, operands in steps:
        values.append({**UNARY, **BINARY}[name][which](*(values[each] for each in operands)))
    return values[-3:]


@cache
def jax_program(seed: int, shapes: tuple[tuple[int, ...], ...]) -> Callable[..., Any]:
    """Outputs and gradients of a program, compiled once: in float64, whatever ours are in."""
    steps = random_program(np.random.default_rng(seed), shapes)

    def both(leaves: list[Any], seeds: list[Any]) -> Any:
        outs, pull = jax.vjp(lambda *given: run_program(steps, list(given), 1), *leaves)
        return outs, pull(seeds)

    return jax.jit(both, compiler_options=QUICKLY)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("shapes", [((),) * 4, SHAPES], ids=["scalar", "tensor"])
@pytest.mark.parametrize("seed", range(25))
@pytest.mark.slow
def test_gradients_equal_those_of_jax(
    seed: int, shapes: tuple[tuple[int, ...], ...], dtype: str, server: gw.Connection
) -> None:
    rng = np.random.default_rng(seed)
    steps = random_program(rng, shapes)
    leaves = [np.asarray(rng.standard_normal(shape), dtype) for shape in shapes]
    graph = gw.Graph()
    handles = [
        graph.input(f"x{number}", leaf.shape, dtype=dtype) for number, leaf in enumerate(leaves)
    ]
    for number, handle in enumerate(run_program(steps, handles, 0)):
        graph.output(f"out{number}", handle)

    exact = [leaf.astype(np.float64) for leaf in leaves]
    outs = jax.eval_shape(lambda *given: run_program(steps, list(given), 1), *exact)
    seeds = {
        f"out{number}": np.asarray(rng.standard_normal(out.shape), dtype)
        for number, out in enumerate(outs)
    }
    weights = [each.astype(np.float64) for each in seeds.values()]
    expected, gradients = jax_program(seed, shapes)(exact, weights)

    result = server.evaluate(
        graph, {f"x{number}": leaf for number, leaf in enumerate(leaves)}, seeds=seeds
    )
    for number, out in enumerate(expected):
        assert_close(result[f"out{number}"].value, out, dtype)
    for number, gradient in enumerate(gradients):
        assert_close(result[f"x{number}"].gradient, gradient, dtype)


def assert_close(found: Any, expected: Any, dtype: str) -> None:
    expected = np.asarray(expected)
    # at least 1: what programs subtract is about that large, and differences lose its digits
    scale = max(1.0, float(np.abs(expected).max(initial=0)))
    assert str(found.dtype) == dtype
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCES[dtype] * scale)


def test_programs_fan_out_and_leave_inputs_unused() -> None:
    fan_out, unused, operators = 0, 0, set()
    for seed in range(25):
        steps = random_program(np.random.default_rng(seed), SHAPES)
        used = [position for _, operands in steps for position in operands]
        fan_out += len(used) > len(set(used))
        unused += not {*range(len(SHAPES))} <= {*used}
        operators |= {name for name, _ in steps}
    assert fan_out > 20
    assert unused > 5
    assert operators == {*UNARY, *BINARY}
