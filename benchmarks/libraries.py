"""Programs of the same circuits for the libraries that people run in their own process.

Each is written the way its library's documentation recommends for speed, keeps every value and
every gradient where the library can, and gives back what it kept so that it can be compared.
"""

from __future__ import annotations

import importlib
import math
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import ModuleType
from typing import Any

import numpy as np

from benchmarks.circuits import (
    ADD,
    BINARY,
    DIV,
    EXP,
    MAX,
    MUL,
    NEG,
    SIGMOID,
    SQUARE,
    SUB,
    TANH,
    Circuit,
    Floats,
)
from benchmarks.harness import UnableError, seconds_of

THREADS = len(os.sched_getaffinity(0))

#: What a contender kept: "values", "gradients", or what less it can give.
Kept = dict[str, Floats]


def load(name: str) -> ModuleType:
    """A library, or the reason why it is not in the table (UnableError)."""
    try:
        return importlib.import_module(name)
    except ImportError as failure:
        raise UnableError(f"not installed: {failure}") from None


def preload() -> None:
    """So that no circuit's preparation is timed with an import."""
    for name in ("casadi", "torch", "jax", "autograd.numpy", "micrograd.engine"):
        with suppress(UnableError):
            load(name)


def play(leaves: Sequence[Any], functions: Sequence[Callable[..., Any]], circuit: Circuit) -> Any:
    """All values of a circuit, computed by functions of two operands."""
    values = list(leaves)
    for operator, i, j in circuit.steps():
        values.append(functions[operator](values[i], values[j]))
    return values


class NumpyLevels:
    """NumPy on whole runs of equal gates: ordered by level, then by operator."""

    def __init__(self, circuit: Circuit) -> None:
        levels = circuit.levels()[circuit.leaves :]
        gates = np.lexsort((circuit.operators, levels))
        keys = levels[gates].astype(np.int64) * 16 + circuit.operators[gates]
        cuts = np.flatnonzero(np.diff(keys)) + 1
        self._runs = [
            (
                int(circuit.operators[run[0]]),
                run + circuit.leaves,
                circuit.first[run],
                circuit.second[run],
            )
            for run in np.split(gates, cuts)
        ]
        self._values = np.zeros(circuit.values)
        self._values[: circuit.leaves] = circuit.point
        self._grads = np.zeros(circuit.values)

    def run(self) -> None:
        values, grads = self._values, self._grads
        for operator, out, i, j in self._runs:
            values[out] = _FORWARD[operator](values[i], values[j])
        grads[:] = 0
        grads[-1] = 1
        for operator, out, i, j in reversed(self._runs):
            share = _backward(operator, grads[out], values[out], values[i], values[j])
            np.add.at(grads, i, share[0])
            if operator in BINARY:
                np.add.at(grads, j, share[1])

    def kept(self) -> Kept:
        self.run()
        return {"values": self._values, "gradients": self._grads}


class NumpyRows:
    """NumPy gate by gate, each on a row of numbers."""

    def __init__(self, circuit: Circuit, rows: Floats) -> None:
        self._circuit, self._steps = circuit, circuit.steps()
        self._values = np.zeros((circuit.values, len(rows)), rows.dtype)
        self._values[: circuit.leaves] = rows.T
        self._grads = np.zeros_like(self._values)

    def run(self) -> None:
        values, grads, leaves = self._values, self._grads, self._circuit.leaves
        for out, (operator, i, j) in enumerate(self._steps, leaves):
            values[out] = _FORWARD[operator](values[i], values[j])
        grads[:] = 0
        grads[-1] = 1
        for out in range(len(values) - 1, leaves - 1, -1):
            operator, i, j = self._steps[out - leaves]
            share = _backward(operator, grads[out], values[out], values[i], values[j])
            grads[i] += share[0]
            if operator in BINARY:
                grads[j] += share[1]

    def kept(self) -> Kept:
        self.run()
        return {"values": self._values, "gradients": self._grads}


_FORWARD: dict[int, Callable[..., Any]] = {
    ADD: np.add,
    SUB: np.subtract,
    MUL: np.multiply,
    DIV: np.divide,
    MAX: np.maximum,
    NEG: lambda x, _: -x,
    SQUARE: lambda x, _: x * x,
    EXP: lambda x, _: np.exp(x),
    TANH: lambda x, _: np.tanh(x),
    SIGMOID: lambda x, _: 1 / (1 + np.exp(-x)),
}


def _backward(operator: int, g: Floats, z: Floats, x: Floats, y: Floats) -> tuple[Any, ...]:
    """What the gradient of z gives to x, and to y; at a tie of Max one half each."""
    match operator:
        case 0:
            return g, g
        case 1:
            return g, -g
        case 2:
            return g * y, g * x
        case 3:
            return g / y, -g * z / y
        case 4:
            to_x = np.where(x > y, g, np.where(x == y, g / 2, 0 * g))
            return to_x, g - to_x
        case 5:
            return (-g,)
        case 6:
            return (2 * g * x,)
        case 7:
            return (g * z,)
        case 8:
            return (g * (1 - z * z),)
    return (g * z * (1 - z),)


class Casadi:
    """CasADi's SX virtual machine, called through its buffers.

    Only gradients of symbols can be asked for, so every gate's value has a symbol added to it,
    which is replaced by zero once CasADi has made the gradient: the program has no trace of it.
    """

    def __init__(self, circuit: Circuit, rows: Floats | None = None) -> None:
        self._circuit = circuit
        self._held: list[object] = []
        function = self._function(load("casadi"))
        if rows is None:
            self._bind(function, circuit.point, ())
            return
        ways = [function.map(len(rows))]
        if THREADS > 1:
            ways.append(function.map(len(rows), "thread", THREADS))
        timed = []
        for way in ways:
            self._bind(way, rows, (len(rows),))
            self.run()
            timed.append((min(seconds_of(self.run) for _ in range(2)), self.run, self._results))
        _, self.run, self._results = min(timed, key=lambda each: each[0])

    def _function(self, casadi: Any) -> Any:
        circuit = self._circuit
        x = casadi.SX.sym("x", circuit.leaves)
        added = casadi.SX.sym("e", circuit.gates)
        functions = {
            ADD: lambda a, b: a + b,
            SUB: lambda a, b: a - b,
            MUL: lambda a, b: a * b,
            DIV: lambda a, b: a / b,
            MAX: casadi.fmax,
            NEG: lambda a, _: -a,
            SQUARE: lambda a, _: a * a,
            EXP: lambda a, _: casadi.exp(a),
            TANH: lambda a, _: casadi.tanh(a),
            SIGMOID: lambda a, _: 1 / (1 + casadi.exp(-a)),
        }
        values = casadi.vertsplit(x)
        for symbol, (operator, i, j) in zip(casadi.vertsplit(added), circuit.steps(), strict=True):
            values.append(functions[operator](values[i], values[j]) + symbol)
        grads = casadi.gradient(values[-1], casadi.vertcat(x, added))
        found = [casadi.vertcat(*values), grads]
        found = casadi.substitute(found, [added], [casadi.SX.zeros(circuit.gates)])
        return casadi.Function("circuit", [x], [casadi.densify(each) for each in found])

    def _bind(self, function: Any, point: Floats, rows: tuple[int, ...]) -> None:
        buffer, trigger = function.buffer()
        given = np.ascontiguousarray(point)
        results = [np.zeros((*rows, self._circuit.values)) for _ in range(2)]
        buffer.set_arg(0, memoryview(given.reshape(-1)))
        for position, result in enumerate(results):
            buffer.set_res(position, memoryview(result.reshape(-1)))
        self._results = results
        self._held.append((function, buffer, given))  # CasADi holds none of them
        self.run = trigger

    def kept(self) -> Kept:
        self.run()
        values, gradients = self._results
        return {"values": values.T, "gradients": gradients.T}


class Torch:
    """PyTorch eager: one call of autograd for the gradients of all values."""

    def __init__(self, circuit: Circuit, rows: Floats | None = None) -> None:
        self._torch = torch = load("torch")
        torch.set_num_threads(THREADS)
        self._circuit = circuit
        given = circuit.point if rows is None else rows
        self._columns = torch.from_numpy(np.ascontiguousarray(given.T))
        self._functions = [
            torch.add,
            torch.sub,
            torch.mul,
            torch.div,
            torch.maximum,
            lambda x, _: torch.neg(x),
            lambda x, _: torch.square(x),
            lambda x, _: torch.exp(x),
            lambda x, _: torch.tanh(x),
            lambda x, _: torch.sigmoid(x),
        ]

    def run(self) -> tuple[Any, Any]:
        leaves = [column.requires_grad_() for column in self._columns.unbind()]
        values = play(leaves, self._functions, self._circuit)
        seed = self._torch.ones_like(values[-1])
        return values, self._torch.autograd.grad(values[-1], values, seed)

    def kept(self) -> Kept:
        values, grads = (self._torch.stack(list(each)) for each in self.run())
        return {"values": values.detach().numpy(), "gradients": grads.numpy()}


class Jax:
    """JAX, the whole circuit compiled: gradients of all values by zeros that are added to them."""

    def __init__(self, circuit: Circuit, rows: Floats | None = None) -> None:
        jax = load("jax")
        jax.config.update("jax_enable_x64", True)
        jnp = jax.numpy
        functions = [
            jnp.add,
            jnp.subtract,
            jnp.multiply,
            jnp.divide,
            jnp.maximum,
            lambda x, _: -x,
            lambda x, _: x * x,
            lambda x, _: jnp.exp(x),
            lambda x, _: jnp.tanh(x),
            lambda x, _: jax.nn.sigmoid(x),
        ]

        def output(leaves: Any, added: Any) -> Any:
            values = list(leaves)
            for zero, (operator, i, j) in zip(added, circuit.steps(), strict=True):
                values.append(functions[operator](values[i], values[j]) + zero)
            return values[-1].sum(), values

        def everything(x: Any) -> Any:
            leaves = [x[i] for i in range(circuit.leaves)]
            added = [jnp.zeros(x.shape[1:], x.dtype)] * circuit.gates
            grads, values = jax.grad(output, argnums=(0, 1), has_aux=True)(leaves, added)
            found = values, [*grads[0], *grads[1]]
            # thousands of scalars are two arrays; tensors would only be copied once more
            return tuple(map(jnp.stack, found)) if x.ndim == 1 else found

        self._point = jnp.asarray(circuit.point if rows is None else rows.T)
        self._ready = jax.block_until_ready
        self._compiled = jax.jit(everything).lower(self._point).compile()

    def run(self) -> Any:
        return self._ready(self._compiled(self._point))

    def kept(self) -> Kept:
        values, grads = self.run()
        return {"values": np.asarray(values), "gradients": np.asarray(grads)}


class Autograd:
    """HIPS autograd. It has no way to keep the gradients of values between: leaves only."""

    def __init__(self, circuit: Circuit) -> None:
        autograd, numpy = load("autograd"), load("autograd.numpy")
        functions = [
            lambda x, y: x + y,
            lambda x, y: x - y,
            lambda x, y: x * y,
            lambda x, y: x / y,
            numpy.maximum,
            lambda x, _: -x,
            lambda x, _: x * x,
            lambda x, _: numpy.exp(x),
            lambda x, _: numpy.tanh(x),
            lambda x, _: 1 / (1 + numpy.exp(-x)),
        ]

        def output(x: Any) -> Any:
            leaves = [x[i] for i in range(circuit.leaves)]
            return play(leaves, functions, circuit)[-1]

        self._point = circuit.point
        self._call = autograd.value_and_grad(output)

    def run(self) -> Any:
        return self._call(self._point)

    def kept(self) -> Kept:
        value, grads = self.run()
        return {"output": np.asarray(value), "gradients of leaves": grads}


class Micrograd:
    """micrograd; operators that it lacks are added the way its own are written."""

    def __init__(self, circuit: Circuit) -> None:
        self._value = value = load("micrograd.engine").Value
        self._circuit = circuit
        sys.setrecursionlimit(max(sys.getrecursionlimit(), 4 * circuit.values + 1000))

        def one(forward: Callable[[float], float], slope: Callable[[float, float], float]) -> Any:
            def apply(x: Any, _: Any) -> Any:
                out = value(forward(x.data), (x,))

                def backward() -> None:
                    x.grad += slope(x.data, out.data) * out.grad

                out._backward = backward
                return out

            return apply

        def largest(x: Any, y: Any) -> Any:
            out = value(max(x.data, y.data), (x, y))

            def backward() -> None:
                x.grad += (x.data > y.data) * out.grad
                y.grad += (y.data > x.data) * out.grad

            out._backward = backward
            return out

        self._functions = [
            lambda x, y: x + y,
            lambda x, y: x - y,
            lambda x, y: x * y,
            lambda x, y: x / y,
            largest,
            lambda x, _: -x,
            lambda x, _: x * x,
            one(math.exp, lambda _, z: z),
            one(math.tanh, lambda _, z: 1 - z * z),
            one(lambda x: 1 / (1 + math.exp(-x)), lambda _, z: z * (1 - z)),
        ]

    def run(self) -> Any:
        leaves = [self._value(x) for x in self._circuit.point.tolist()]
        values = play(leaves, self._functions, self._circuit)
        values[-1].backward()
        return values

    def kept(self) -> Kept:
        values = self.run()
        return {
            "values": np.array([each.data for each in values]),
            "gradients": np.array([each.grad for each in values]),
        }
