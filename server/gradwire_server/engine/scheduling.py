"""Compiled loops that make a tape of a circuit: levels, runs of equal rows, dead nodes.

Compiled like the kernels, in the cache's own copy of this file (engine/kernels.py).
"""

from __future__ import annotations

import numpy as np
from numba import njit


def _kernel(signature: str):
    return njit(signature, cache=True, nogil=True)


@_kernel("i8(u4[::1], i8[::1], u4[::1], i8, i4[::1])")
def find_levels(rows, input_counts, inputs, slot, levels):
    """Puts each node one level above its highest input; the leaves are at 0. Returns the top."""
    top, cursor = 0, 0
    for node in range(len(rows)):
        level = 0
        for _ in range(input_counts[rows[node]]):
            level = max(level, levels[inputs[cursor]])
            cursor += 1
        levels[slot + node] = level + 1
        top = max(top, level + 1)
    return top


@_kernel("i8(u4[::1], i4[::1], i8, i8, i8[::1])")
def count_runs(rows, levels, slot, row_count, ends):
    """Counts the nodes of each level and row into `ends`, end to end. Returns how many have any."""
    for node in range(len(rows)):
        ends[(levels[slot + node] - 1) * row_count + rows[node]] += 1
    runs, total = 0, 0
    for key in range(len(ends)):
        runs += ends[key] > 0
        total += ends[key]
        ends[key] = total
    return runs


@_kernel("void(u4[::1], i4[::1], i8, i8, i8[::1], u4[::1], u4[::1])")
def place_nodes(rows, levels, slot, row_count, ends, slots, new_rows):
    """Gives every node a slot, levels ascending and equal rows side by side, in file order.

    `ends` is used up: what is left are the beginnings.
    """
    for node in range(len(rows) - 1, -1, -1):
        key = (levels[slot + node] - 1) * row_count + rows[node]
        ends[key] -= 1
        slots[slot + node] = slot + ends[key]
        new_rows[ends[key]] = rows[node]


@_kernel("void(u4[::1], i8[::1], u4[::1], i8, u4[::1], i8[::1], u4[::1])")
def place_inputs(rows, input_counts, inputs, slot, slots, starts, new_inputs):
    """The inputs' slots, node after node in their new order."""
    cursor = 0
    for node in range(len(rows)):
        place = starts[slots[slot + node] - slot]
        for position in range(input_counts[rows[node]]):
            new_inputs[place + position] = slots[inputs[cursor]]
            cursor += 1


@_kernel("i8(u1[::1], u1[::1], u1[::1], u4[::1], i8, u1[::1], u1[::1], u1[::1])")
def trace_back(ops, input_counts, pulls, inputs, slot, reached, live_ops, fresh):
    """What the backward pass does from the slots marked in `reached`, which it extends.

    Nodes not reached get the opcode that computes nothing. `fresh` marks, of the uses of each slot,
    the one met first, which begins its gradient. Bit i of pulls[op] says that input i has a
    gradient. Returns how many nodes are dead.
    """
    dead = 0
    cursor = len(inputs)
    for node in range(len(ops) - 1, -1, -1):
        op = ops[node]
        count = input_counts[op]
        cursor -= count
        live_ops[node] = op
        if not reached[slot + node]:
            live_ops[node] = count
            dead += 1
            continue
        for position in range(count):
            if (pulls[op] >> position) & 1:
                used = inputs[cursor + position]
                fresh[cursor + position] = not reached[used]
                reached[used] = 1
    return dead


__all__ = ["count_runs", "find_levels", "np", "place_inputs", "place_nodes", "trace_back"]
