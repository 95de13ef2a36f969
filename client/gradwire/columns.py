"""Columns of packed numbers, decoded without a Python object for each."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from gradwire.v1 import graph_pb2

Ids = npt.NDArray[np.int64]

_FEW = 100
_BLOCK = 1 << 18  # bytes that stay in cache


class Places(NamedTuple):
    """Where values are among the ids: leaves by their first slot, and the nodes' behind them."""

    slots: Ids
    firsts: Ids
    shift: int

    def ids(self, keys: Iterable[int]) -> Ids:
        """Value ids of keys."""
        column = np.array(keys, np.int64)
        found = column + self.shift
        found[column == 0] = 0
        slots = -column[column < 0]
        leaves = np.searchsorted(self.slots, slots, "right") - 1
        found[column < 0] = self.firsts[leaves] + slots - self.slots[leaves]
        return found


def node_columns(circuit: graph_pb2.Circuit) -> tuple[Ids, Ids]:
    """`node_gates` and `node_inputs` of a circuit, whose leaves may be taken out of it."""
    if len(circuit.node_gates) + len(circuit.node_inputs) < _FEW:
        return np.array([*circuit.node_gates], np.int64), np.array([*circuit.node_inputs], np.int64)
    for field in ("inputs", "parameters", "constants"):
        circuit.ClearField(field)
    data = circuit.SerializeToString()  # now it begins with the two columns
    gates, end = _field(data, 4, 0)
    inputs, _ = _field(data, 5, end)
    return gates, inputs


def _field(data: bytes, number: int, at: int) -> tuple[Ids, int]:
    """A packed field where it is next, and where it ends."""
    if data[at : at + 1] != bytes([number << 3 | 2]):
        return np.zeros(0, np.int64), at
    size = shift = 0
    at += 1
    while data[at] >= 0x80:
        size |= (data[at] & 0x7F) << shift
        shift += 7
        at += 1
    size |= data[at] << shift
    at += 1
    return _varints(memoryview(data)[at : at + size]), at + size


def _varints(data: memoryview) -> Ids:
    """Numbers in base 128, least significant digits first."""
    digits = np.frombuffer(data, np.uint8)
    parts = []
    at = 0
    while at < len(digits):
        block = digits[at : at + _BLOCK]
        last = np.flatnonzero(block < 0x80)
        first = np.concatenate(([0], last[:-1] + 1))
        behind = last - first
        found = block[last].astype(np.int64)
        low = block & 0x7F
        for distance in range(1, int(behind.max()) + 1):
            more = behind >= distance
            found <<= more * 7
            found |= low[last - distance] * more
        parts.append(found)
        at += int(last[-1]) + 1
    return np.concatenate(parts)
