"""The C tape, compiled here: what a careful C programmer's interpreter of the same gates takes."""

from __future__ import annotations

import ctypes
import hashlib
import shutil
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np

from benchmarks.circuits import Circuit, Floats
from benchmarks.harness import CACHE, FOLDER, UnableError, seconds_of

NAME = "C tape"

_FLAGS = ["-O3", "-march=native", "-fno-math-errno", "-fopenmp-simd", "-fPIC", "-shared"]
_BLOCKS = (32, 64, 128, 256)
_OPCODES = 10


@cache
def library() -> ctypes.CDLL:
    """tape.c as a library: with libmvec's vectors of exp and tanh where this machine has them."""
    gcc = shutil.which("gcc")
    if gcc is None:
        raise UnableError("there is no gcc here")
    source = FOLDER / "tape.c"
    digest = hashlib.sha256(source.read_bytes() + " ".join(_FLAGS).encode()).hexdigest()[:16]
    built = CACHE / f"tape-{digest}.so"
    CACHE.mkdir(exist_ok=True)
    if not built.exists():
        base = [gcc, *_FLAGS, "-o", str(built), str(source)]
        vectors = [*base, "-DVECTOR_MATH", "-Wl,--no-undefined", "-lmvec", "-lm"]
        if subprocess.run(vectors, capture_output=True, check=False).returncode:
            subprocess.run([*base, "-lm"], check=True)
    return ctypes.CDLL(str(built))


class Tape:
    """One circuit at its own point, run in whichever of the ways is fastest for it."""

    def __init__(
        self, circuit: Circuit, ways: tuple[str, ...] = ("switch", "goto", "runs")
    ) -> None:
        self._library = library()
        self._circuit = circuit
        self._opcodes, self._first, self._second = _columns(circuit)
        self._values = np.zeros(circuit.values)
        self._grads = np.zeros(circuit.values)
        self._values[: circuit.leaves] = circuit.point
        self._order = np.arange(circuit.values, dtype=np.int32)
        made = [self._by_runs() if way == "runs" else self._by_gate(way) for way in ways]
        if len(made) > 1:
            made.sort(key=lambda way: min(seconds_of(way[0]) for _ in range(3)))
        self.run, self._order = made[0]

    def kept(self) -> dict[str, Floats]:
        """Values and gradients, in the circuit's order."""
        self.run()
        values, grads = np.empty_like(self._values), np.empty_like(self._grads)
        values[self._order], grads[self._order] = self._values, self._grads
        return {"values": values, "gradients": grads}

    def _by_gate(self, name: str) -> tuple[Callable[[], object], np.ndarray]:
        circuit, call = self._circuit, getattr(self._library, f"tape_{name}")
        columns = (self._opcodes, self._first, self._second, self._values, self._grads)
        arguments = (circuit.leaves, circuit.values, *map(_pointer, columns))
        return (lambda: call(*arguments)), self._order

    def _by_runs(self) -> tuple[Callable[[], object], np.ndarray]:
        circuit = self._circuit
        order, first, second, starts = (np.empty(circuit.values + 1, np.int32) for _ in range(4))
        opcodes, kinds = (np.empty(circuit.values, np.uint8) for _ in range(2))
        columns = (self._opcodes, self._first, self._second, order, opcodes, first, second, starts)
        runs = self._library.tape_schedule(
            circuit.leaves, circuit.values, *map(_pointer, (*columns, kinds))
        )
        if runs < 0:
            raise MemoryError("tape_schedule")
        needed = (starts, kinds, first, second, self._values, self._grads)
        arguments = (circuit.values, runs, *map(_pointer, needed))
        call = self._library.tape_runs
        return (lambda: call(*arguments)), order[: circuit.values]


class RowsTape:
    """One circuit on many rows, in blocks of the size that is fastest for it, over threads."""

    def __init__(self, circuit: Circuit, rows: Floats, threads: int) -> None:
        self._library = library()
        self._circuit, self._rows = circuit, rows
        self._columns = _columns(circuit)
        self._pool = ThreadPoolExecutor(threads)
        self._threads = threads
        timed = []
        for block in (size for size in _BLOCKS if len(rows) % (size * threads) == 0):
            self._allocate(block)
            self.run()
            timed.append((min(seconds_of(self.run) for _ in range(2)), block))
        self._allocate(min(timed)[1])

    def run(self) -> None:
        """Forward and backward, all blocks. ctypes lets go of Python's lock meanwhile."""
        blocks = len(self._values)
        cuts = [blocks * part // self._threads for part in range(self._threads + 1)]
        list(self._pool.map(self._run_blocks, cuts, cuts[1:]))

    def kept(self) -> dict[str, Floats]:
        """Values and gradients, [values, rows]."""
        self.run()
        count = self._circuit.values
        found = {"values": self._values, "gradients": self._grads}
        return {what: a.transpose(1, 0, 2).reshape(count, -1) for what, a in found.items()}

    def _run_blocks(self, start: int, stop: int) -> None:
        arrays = (*self._columns, self._values, self._grads)
        sizes = (self._values.shape[2], start, stop)
        self._library.tape_rows(
            self._circuit.leaves, self._circuit.values, *map(_pointer, arrays), *sizes
        )

    def _allocate(self, block: int) -> None:
        leaves, count = self._circuit.leaves, self._circuit.values
        self._values = self._grads = np.empty(0)  # the last ones go before others come
        self._values = np.zeros((len(self._rows) // block, count, block))
        self._grads = np.zeros_like(self._values)
        self._values[:, :leaves] = self._rows.reshape(-1, block, leaves).transpose(0, 2, 1)


def _columns(circuit: Circuit) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Opcodes and operands of all values; leaves have an opcode of their own."""
    leaves = np.arange(circuit.leaves, dtype=np.int32)
    opcodes = np.concatenate([np.full(circuit.leaves, _OPCODES, np.uint8), circuit.operators])
    first, second = (np.concatenate([leaves, each]) for each in (circuit.first, circuit.second))
    return opcodes, first, second


def _pointer(array: np.ndarray) -> ctypes.c_void_p:
    """The array's address, which holds the array as long as it is held itself."""
    return array.ctypes.data_as(ctypes.c_void_p)
