"""Random scalar circuits, as columns that every contender builds its own program from.

Interval arithmetic while a circuit grows keeps every value bounded and every denominator away
from zero for all inputs in [-1, 1], so that one circuit runs on any batch of rows. Every value
leads to the one output, and no two operands of Max are equal: nothing can be left out, and no
contender's choice at a tie matters.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from random import Random

import numpy as np
import numpy.typing as npt

from gradwire.v1 import graph_pb2, tensor_pb2

Floats = npt.NDArray[np.float64]

ADD, SUB, MUL, DIV, MAX, NEG, SQUARE, EXP, TANH, SIGMOID = range(10)
NAMES = ("Add", "Sub", "Mul", "Div", "Max", "Neg", "Square", "Exp", "Tanh", "Sigmoid")
BINARY = range(ADD, MAX + 1)
KINDS = ("wide", "deep")

#: Circuits that differ are not to be compared: every run grows the same ones.
SEED = 4
#: Rows other than the first come from this generator, uniform in [-1, 1].
ROW_SEED = 7

_BOUND = 1.5
_TRIES = 8
#: Share of a deep circuit's gates that also feed the output, so that gradients do not fade.
_TAPPED = 0.02


@dataclass(frozen=True)
class Circuit:
    """Values are the leaves, then one for each gate; the last is the output."""

    kind: str
    operators: npt.NDArray[np.uint8]
    first: npt.NDArray[np.int32]
    second: npt.NDArray[np.int32]  # the same as `first` where a gate has one operand
    point: Floats

    @property
    def gates(self) -> int:
        return len(self.operators)

    @property
    def leaves(self) -> int:
        return len(self.point)

    @property
    def values(self) -> int:
        return self.leaves + self.gates

    def steps(self) -> list[tuple[int, int, int]]:
        """(operator, first, second) of every gate, as Python's integers."""
        columns = (self.operators.tolist(), self.first.tolist(), self.second.tolist())
        return list(zip(*columns, strict=True))

    def rows(self, count: int) -> Floats:
        """[rows, leaves]; the first row is the circuit's own point."""
        found = np.random.default_rng(ROW_SEED).uniform(-1, 1, (count, self.leaves))
        found[0] = self.point
        return found

    def levels(self) -> npt.NDArray[np.int32]:
        """How many gates lie before each value on its longest path."""
        levels = [0] * self.values
        for value, (_, i, j) in enumerate(self.steps(), self.leaves):
            levels[value] = 1 + max(levels[i], levels[j])
        return np.array(levels, np.int32)


def grow(kind: str, gates: int, seed: int = SEED, leaves: int = 0) -> Circuit:
    """A circuit of exactly so many gates: `wide`, or `deep`, where most gates use the last one.

    0 leaves are as many as suit it.
    """
    growing = _Growing(kind, gates, Random(f"{seed} {kind} {gates}").random, leaves)
    while growing.spare > 3:
        growing.add_gate()
    while growing.spare > 0:
        growing.add_to_loose_value()
    growing.sum_up()
    return growing.finished()


class _Growing:
    """A circuit that is not yet whole.

    `loose` values are those that nothing uses yet. A sum of all of them (and of the tapped ones)
    is to be the output; `spare` gates can be added before that sum takes all that are left.
    """

    def __init__(self, kind: str, gates: int, uniform: object, leaves: int) -> None:
        self.kind, self.gates, self.uniform = kind, gates, uniform
        wide = kind == "wide"
        suited = max(4, gates // 10) if wide else min(16, max(4, gates // 8))
        self.leaves = leaves or suited
        self.reach = max(16, gates // 8) if wide else 24
        self.low, self.high = [-1.0] * self.leaves, [1.0] * self.leaves
        self.sample = [2 * uniform() - 1 for _ in range(self.leaves)]
        self.point = np.array(self.sample)
        self.operators: list[int] = []
        self.first: list[int] = []
        self.second: list[int] = []
        self.used = bytearray(self.leaves + gates)
        self.oldest_loose = 0
        self.loose = self.leaves
        self.tapped: list[int] = []

    @property
    def spare(self) -> int:
        return self.gates - len(self.operators) - (self.loose + len(self.tapped) - 1)

    def add_gate(self) -> None:
        uniform = self.uniform
        last = len(self.low) - 1
        near = min(self.reach, last + 1)
        follows = self.kind == "deep" and uniform() < 0.85
        i = last if follows else last - int(uniform() * near)
        j = self.next_loose() if uniform() < 0.5 else last - int(uniform() * near)
        if self.kind == "wide" and uniform() < 0.5:
            i, j = j, i
        operator, low, high = self.choose(i, j, binary=i != j)
        if follows and uniform() < _TAPPED:
            self.tapped.append(i)
        self.append(operator, i, j if operator in BINARY else i, low, high)

    def add_to_loose_value(self) -> None:
        i = self.next_loose()
        operator, low, high = self.choose(i, i, binary=False)
        self.append(operator, i, i, low, high)

    def sum_up(self) -> None:
        """A balanced sum of everything that nothing uses, and of what is tapped."""
        loose = [value for value in range(len(self.low)) if not self.used[value]]
        terms = deque(loose + self.tapped)
        while len(terms) > 1:
            self.append(ADD, terms.popleft(), terms.popleft(), 0.0, 0.0)
            terms.append(len(self.low) - 1)

    def finished(self) -> Circuit:
        columns = np.array([self.first, self.second], np.int32)
        return Circuit(self.kind, np.array(self.operators, np.uint8), *columns, self.point)

    def next_loose(self) -> int:
        """The oldest value that nothing uses yet."""
        while self.used[self.oldest_loose]:
            self.oldest_loose += 1
        return self.oldest_loose

    def choose(self, i: int, j: int, binary: bool) -> tuple[int, float, float]:
        """An operator whose value stays bounded, and its bounds."""
        for _ in range(_TRIES):
            operator = int(self.uniform() * 10)
            if operator <= MAX and not binary:
                continue
            if operator == MAX and abs(self.sample[i] - self.sample[j]) < 1e-7:
                continue
            found = _bounds(operator, self.low[i], self.high[i], self.low[j], self.high[j])
            if found and found[0] >= -_BOUND and found[1] <= _BOUND:
                return operator, *found
        operator = TANH if self.uniform() < 0.5 else SIGMOID
        found = _bounds(operator, self.low[i], self.high[i], 0.0, 0.0)
        return operator, *found

    def append(self, operator: int, i: int, j: int, low: float, high: float) -> None:
        self.operators.append(operator)
        self.first.append(i)
        self.second.append(j)
        self.low.append(low)
        self.high.append(high)
        self.sample.append(apply(operator, self.sample[i], self.sample[j]))
        self.loose += 1
        for operand in {i, j}:
            self.loose -= not self.used[operand]
            self.used[operand] = 1


def apply(operator: int, x: float, y: float) -> float:
    """The operator on numbers of Python."""
    match operator:
        case 0:
            return x + y
        case 1:
            return x - y
        case 2:
            return x * y
        case 3:
            return x / y
        case 4:
            return max(x, y)
        case 5:
            return -x
        case 6:
            return x * x
        case 7:
            return math.exp(x)
        case 8:
            return math.tanh(x)
    return 1 / (1 + math.exp(-x))


def _bounds(
    operator: int, x0: float, x1: float, y0: float, y1: float
) -> tuple[float, float] | None:
    """Bounds of the value where x lies in [x0, x1] and y in [y0, y1]; None near a pole."""
    if operator == ADD:
        return x0 + y0, x1 + y1
    if operator == SUB:
        return x0 - y1, x1 - y0
    if operator == MAX:
        return max(x0, y0), max(x1, y1)
    if operator == NEG:
        return -x1, -x0
    if operator == SQUARE:
        ends = x0 * x0, x1 * x1
        return (0.0 if x0 < 0 < x1 else min(ends)), max(ends)
    if operator == MUL:
        corners = x0 * y0, x0 * y1, x1 * y0, x1 * y1
        return min(corners), max(corners)
    if operator == DIV:
        if y0 < 0.5 and y1 > -0.5:
            return None
        corners = x0 / y0, x0 / y1, x1 / y0, x1 / y1
        return min(corners), max(corners)
    return apply(operator, x0, 0.0), apply(operator, x1, 0.0)


def chain() -> Circuit:
    """Thirty gates, each on the value of the last one: for tensors, three times the same ten."""
    v, x, y = None, 0, 1  # the value before, and two leaves
    ten = [
        (TANH, v, v),
        (MUL, v, x),
        (EXP, v, v),
        (SIGMOID, v, v),
        (ADD, v, y),
        (SQUARE, v, v),
        (NEG, v, v),
        (SUB, v, x),
        (MAX, v, y),
        (MUL, v, y),
    ]
    columns = [
        (operator, *(value if operand is None else operand for operand in operands))
        for value, (operator, *operands) in enumerate(ten * 3, 1)
    ]
    operators, first, second = zip(*columns, strict=True)
    return Circuit(
        "chain",
        np.array(operators, np.uint8),
        np.array(first, np.int32),
        np.array(second, np.int32),
        np.array([0.5, -0.25]),
    )


def graph_bytes(circuit: Circuit, leaves: tuple[str, *tuple[int, ...]] | None = None) -> bytes:
    """The circuit as a serialized gradwire.v1.Graph.

    One vector `x` feeds all scalar gates; or, given (dtype, *shape), every leaf is a tensor.
    """
    binary = circuit.operators <= MAX
    square = circuit.operators == SQUARE
    two = binary | square
    operands = np.stack([circuit.first, circuit.second], axis=1) + 1  # value id 0 means absent
    kept = np.stack([np.ones_like(two), two], axis=1)
    message = graph_pb2.Graph(
        format_version=1,
        operator_set_version=OPERATOR_SET,
        gates=[
            graph_pb2.Gate(
                operator=name,
                input_count=2 if row in BINARY else 1,
                output_count=1,
            )
            for row, name in enumerate(NAMES)
            if row != SQUARE  # which is Mul of a value by itself
        ],
    )
    rows = np.where(square, MUL, circuit.operators - (circuit.operators > SQUARE))
    if leaves is None:
        leaf = message.circuit.inputs.add(name="x", layout=graph_pb2.Leaf.LAYOUT_ELEMENTS)
        leaf.type.data_type = tensor_pb2.DATA_TYPE_FLOAT64
        leaf.type.axes.add(size=circuit.leaves)
    else:
        dtype, *shape = leaves
        for position in range(circuit.leaves):
            leaf = message.circuit.inputs.add(name=f"x{position}")
            leaf.type.data_type = tensor_pb2.DataType.Value(f"DATA_TYPE_{dtype.upper()}")
            for size in shape:
                leaf.type.axes.add(size=size)
    message.circuit.node_gates.extend(rows.tolist())
    message.circuit.node_inputs.extend(operands[kept].tolist())
    message.circuit.outputs.add(name="y", value_ids=[circuit.values])
    return message.SerializeToString()


#: ONNX's operator set that the graphs are written for.
OPERATOR_SET = 21
