"""Writes the source of the compiled kernels: loops over tapes, made from the gates' own bodies.

A tape is three columns: an opcode and a row of the constants table for each node, and the slots of
all nodes' inputs end to end. Node k yields slot `slot + k`. Three kinds of loop run one:

switch  node after node, for deep circuits; also for what is left of a tape when some nodes are dead
runs    a run of nodes of one opcode at a time, for wide circuits
block   each node over many elements: rows of a batch, or elements of tensors

`softmax` and `softmax_backward` run over rows of a tensor, one pass over memory each.

`whole` is a forward and a backward pass of the first or the second kind in one call: a small
circuit takes less time than Python takes for handing over the columns. `rows_whole` is both passes
of the third kind over one block of rows after another: the second pass finds its values in cache.

Indices are unsigned throughout, since signed ones may count from the end and cost a comparison.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from textwrap import indent

from gradwire_server.engine.opcodes import (
    MAX_CONSTANTS,
    MAX_INPUTS,
    Body,
    Opcode,
    instruction_set,
)

#: Nodes of a run that are computed together on vector registers.
STAGE = 256
#: Most elements of a block: a few rows of them stay in the first cache.
BLOCK = 512
#: Numbers that are compared at once, on vector registers.
_LANES = 32

_HEADER = '''\
"""Kernels for {dtype}, written by gradwire_server.engine.kernel_source."""

import numpy as np
from numba import njit

from gradwire_server.engine.elementary import INLINED, OPTIONS, column, elementary

U = np.uint64
U0, U1, U2, U3, U4 = U(0), U(1), U(2), U(3), U(4)
STAGE = U({stage})
ITEM = np.dtype("{dtype}").itemsize
LINE = 64 // ITEM
names = elementary("{dtype}")
globals().update(vars(names))


def kernel(signature):
    return njit(signature, cache=True, nogil=True, **OPTIONS)
'''

_TAPE = "u1[::1], u4[::1], u4[::1], {f}[::1]"  # opcodes, constants' rows, inputs, constants


@cache
def kernel_source(dtype: str) -> str:
    """The source of a module of kernels for tapes of a floating data type."""
    opcodes = tuple(enumerate(instruction_set(dtype).opcodes, MAX_INPUTS + 1))
    float_type = {"float64": "f8", "float32": "f4"}[dtype]
    tape = _TAPE.format(f=float_type)
    parts = [
        _HEADER.format(dtype=dtype, stage=STAGE),
        *(_functions(number, opcode) for number, opcode in opcodes),
        _switch_forward(opcodes, tape, float_type),
        _switch_backward(opcodes, tape, float_type),
        _runs_forward(opcodes, tape, float_type),
        _runs_backward(opcodes, tape, float_type),
        _block_forward(opcodes, tape),
        _block_backward(opcodes, tape),
        _rows(tape),
        _whole(float_type),
        _whole_again(),
        _SOFTMAX.format(lanes=_LANES),
    ]
    return "\n\n".join(parts)


_Numbered = tuple[tuple[int, Opcode], ...]


def _functions(number: int, opcode: Opcode) -> str:
    """The bodies of an opcode as functions, inlined by the compiler."""
    inputs, constants = _names("x", opcode.input_count), _names("c", opcode.constant_count)
    written = [_function(f"forward{number}", [*inputs, *constants], opcode.forward)]
    for slot, pull in enumerate(opcode.pulls):
        if pull is not None:
            arguments = ["grad", "out", *inputs, *constants]
            written.append(_function(f"pull{number}_{slot}", arguments, pull))
    return "\n\n".join(written)


def _function(name: str, arguments: list[str], body: Body) -> str:
    lines = "\n".join(f"    {line}" for line in (*body.lines, f"return {body.result}"))
    return f"@njit(**INLINED)\ndef {name}({', '.join(arguments)}):\n{lines}"


def _names(letter: str, count: int) -> list[str]:
    return [f"{letter}{position}" for position in range(count)]


def _call(name: str, opcode: Opcode, inputs: list[str], *before: str) -> str:
    constants = [f"constants[row + U{slot}]" for slot in range(opcode.constant_count)]
    return f"{name}({', '.join([*before, *inputs, *constants])})"


def _chain(opcodes: _Numbered, branch: Callable[[int, Opcode], str], depth: int) -> str:
    """One branch for each opcode, which the compiler makes a jump table."""
    branches: list[str] = []
    for number, opcode in opcodes:
        keyword = "elif" if branches else "if"
        branches.append(f"{keyword} op == {number}:\n{indent(branch(number, opcode), '    ')}")
    return indent("\n".join(branches), "    " * depth)


def _skip(statement: str, depth: int) -> str:
    """Branches for the opcodes that compute nothing, by input count."""
    branches = [
        f"{'elif' if count > 1 else 'if'} op == {count}:\n    {statement.format(count=count)}"
        for count in range(1, MAX_INPUTS + 1)
    ]
    return indent("\n".join(branches), "    " * depth)


def _row(opcode: Opcode, index: str) -> list[str]:
    return [f"row = U({index}) * U{MAX_CONSTANTS}"] if opcode.constant_count else []


def _pulls(number: int, opcode: Opcode) -> Iterator[tuple[int, str]]:
    for slot, pull in enumerate(opcode.pulls):
        if pull is not None:
            yield slot, f"pull{number}_{slot}"


def _switch_forward(opcodes: _Numbered, tape: str, f: str) -> str:
    def branch(number: int, opcode: Opcode) -> str:
        loads = [f"values[inputs[cursor + U{slot}]]" for slot in range(opcode.input_count)]
        return "\n".join(
            [
                *_row(opcode, "rows[k]"),
                f"values[slot + k] = {_call(f'forward{number}', opcode, loads)}",
                f"cursor += U{opcode.input_count}",
            ]
        )

    return f'''\
@kernel("i8({tape}, {f}[::1], i8, i8, i8, i8)")
def switch_forward(ops, rows, inputs, constants, values, slot, node, stop, cursor):
    """Nodes from `node` to `stop`; where the inputs of the next one begin."""
    slot, cursor = U(slot), U(cursor)
    for k in range(U(node), U(stop)):
        op = ops[k]
{_chain(opcodes, branch, 2)}
    return cursor'''


def _switch_backward(opcodes: _Numbered, tape: str, f: str) -> str:
    def branch(number: int, opcode: Opcode) -> str:
        count = opcode.input_count
        lines = [f"cursor -= U{count}", *_row(opcode, "rows[k]")]
        lines += [f"i{slot} = inputs[cursor + U{slot}]" for slot in range(count)]
        lines += [f"x{slot} = values[i{slot}]" for slot in range(count)]
        lines += [
            f"grads[i{slot}] += "
            + _call(name, opcode, _names("x", count), "grads[slot + k]", "values[slot + k]")
            for slot, name in _pulls(number, opcode)
        ]
        return "\n".join(lines)

    return f'''\
@kernel("i8({tape}, {f}[::1], {f}[::1], i8, i8, i8, i8)")
def switch_backward(ops, rows, inputs, constants, values, grads, slot, node, start, cursor):
    """Nodes before `node` down to `start`; where the inputs of the last one done begin."""
    slot, cursor = U(slot), U(cursor)
    k = U(node)
    while k > U(start):
        k -= U1
        op = ops[k]
{_skip("cursor -= U{count}", 2)}
{_chain(opcodes, branch, 2).replace("if op", "elif op", 1)}
    return cursor'''


def _runs_forward(opcodes: _Numbered, tape: str, f: str) -> str:
    def branch(number: int, opcode: Opcode) -> str:
        count = opcode.input_count
        lines = _row(opcode, "rows[first]")
        if not opcode.is_heavy:
            loads = [f"values[inputs[i + U{slot}]]" for slot in range(count)]
            return "\n".join(
                [
                    *lines,
                    "i = cursor",
                    "for k in range(first, end):",
                    f"    values[slot + k] = {_call(f'forward{number}', opcode, loads)}",
                    f"    i += U{count}",
                ]
            )
        staged = [f"stage{slot}[t]" for slot in range(count)]
        return "\n".join(
            [
                *lines,
                "k, i = first, cursor",
                "while k < end:",
                "    n = min(STAGE, end - k)",
                "    for t in range(n):",
                *(f"        stage{slot}[t] = values[inputs[i + U{slot}]]" for slot in range(count)),
                f"        i += U{count}",
                "    for t in range(n):",
                f"        values[slot + k + t] = {_call(f'forward{number}', opcode, staged)}",
                "    k += n",
            ]
        )

    stages = "\n".join(f"    stage{slot} = np.empty(STAGE, F)" for slot in range(MAX_INPUTS))
    return f'''\
@kernel("void({tape}, {f}[::1], i8, i8[::1], i8[::1], i8, i8)")
def runs_forward(ops, rows, inputs, constants, values, slot, starts, cursors, run, stop):
    """Runs from `run` to `stop`; run q has nodes starts[q] to starts[q + 1], of one opcode."""
    slot = U(slot)
{stages}
    for q in range(run, stop):
        first, end, cursor = U(starts[q]), U(starts[q + 1]), U(cursors[q])
        op = ops[first]
{_chain(opcodes, branch, 2)}'''


def _runs_backward(opcodes: _Numbered, tape: str, f: str) -> str:
    def branch(number: int, opcode: Opcode) -> str:
        count = opcode.input_count
        pulls = tuple(_pulls(number, opcode))
        if not pulls:
            return "pass"
        lines = [*_row(opcode, "rows[first]"), "i = cursor", "for k in range(first, end):"]
        lines += [f"    i{slot} = inputs[i + U{slot}]" for slot in range(count)]
        lines += [f"    x{slot} = values[i{slot}]" for slot in range(count)]
        lines += [
            f"    grads[i{slot}] += "
            + _call(name, opcode, _names("x", count), "grads[slot + k]", "values[slot + k]")
            for slot, name in pulls
        ]
        return "\n".join([*lines, f"    i += U{count}"])

    return f'''\
@kernel("void({tape}, {f}[::1], {f}[::1], i8, i8[::1], i8[::1], i8, i8)")
def runs_backward(ops, rows, inputs, constants, values, grads, slot, starts, cursors, run, start):
    """Runs before `run` down to `start`."""
    slot = U(slot)
    for q in range(run - 1, start - 1, -1):
        first, end, cursor = U(starts[q]), U(starts[q + 1]), U(cursors[q])
        op = ops[first]
{_chain(opcodes, branch, 2)}'''


def _views(opcode: Opcode) -> list[str]:
    return [
        f"x{slot} = view(addresses[inputs[cursor + U{slot}]] + shift * steps[inputs[cursor + "
        f"U{slot}]], n)"
        for slot in range(opcode.input_count)
    ]


def _block_forward(opcodes: _Numbered, tape: str) -> str:
    def branch(number: int, opcode: Opcode) -> str:
        loads = [f"x{slot}[t]" for slot in range(opcode.input_count)]
        return "\n".join(
            [
                *_row(opcode, "rows[k]"),
                *_views(opcode),
                "for t in range(n):",
                f"    out[t] = {_call(f'forward{number}', opcode, loads)}",
                f"cursor += U{opcode.input_count}",
            ]
        )

    return f'''\
@kernel("void({tape}, i8[::1], i8[::1], i8, i8, i8, i8, i8, i8, i8)")
def block_forward(
    ops, rows, inputs, constants, addresses, steps, slot, node, end, first_input, block, start, stop
):
    """Nodes from `node` to `end` over elements `start` to `stop`, `block` at a time.

    Element t of a slot is at its address + t * its step, in bytes; a step of 0 means one block
    that serves all.
    """
    for begin in range(U(start), U(stop), U(block)):
        n = min(U(block), U(stop) - begin)
        shift = np.int64(begin)
        cursor = U(first_input)
        for k in range(U(node), U(end)):
            op = ops[k]
            out = view(addresses[U(slot) + k] + shift * steps[U(slot) + k], n)
{_chain(opcodes, branch, 3)}'''


def _block_backward(opcodes: _Numbered, tape: str) -> str:
    def branch(number: int, opcode: Opcode) -> str:
        loads = [f"x{slot}[t]" for slot in range(opcode.input_count)]
        pulls = tuple(_pulls(number, opcode))
        if not pulls:
            return "pass"
        lines = [*_row(opcode, "rows[k]"), *_views(opcode)]
        # a loop for each input, so that each is a plain one and an input used twice stays right
        for slot, name in pulls:
            lines += [
                f"i = inputs[cursor + U{slot}]",
                "to_input = view(grad_addresses[i] + shift * grad_steps[i], n)",
                "for t in range(n):",
                f"    to_input[t] += {_call(name, opcode, loads, 'grad[t]', 'out[t]')}",
            ]
        return "\n".join(lines)

    columns = "i8[::1], i8[::1]"  # addresses and steps
    return f'''\
@kernel("void({tape}, u1[::1], u1[::1], {columns}, {columns}, i8, i8, i8, i8, i8, i8, i8)")
def block_backward(
    ops, rows, inputs, constants, input_counts, fresh,
    addresses, steps, grad_addresses, grad_steps, slot, node, end, past_input, block, start, stop,
):
    """Nodes before `node` down to `end` over elements `start` to `stop`, `block` at a time.

    The first use of a slot that is met, marked fresh, begins its gradient at zero. `input_counts`
    are by opcode.
    """
    for begin in range(U(start), U(stop), U(block)):
        n = min(U(block), U(stop) - begin)
        shift = np.int64(begin)
        cursor = U(past_input)
        k = U(node)
        while k > U(end):
            k -= U1
            op = ops[k]
            out = view(addresses[U(slot) + k] + shift * steps[U(slot) + k], n)
            grad = view(grad_addresses[U(slot) + k] + shift * grad_steps[U(slot) + k], n)
            cursor -= U(input_counts[op])
            for used in range(cursor, cursor + U(input_counts[op])):
                if fresh[used]:
                    i = inputs[used]
                    to_input = view(grad_addresses[i] + shift * grad_steps[i], n)
                    for t in range(n):
                        to_input[t] = F(0)
{_chain(opcodes, branch, 3)}'''


def _copy(name: str, statement: str) -> str:
    """A function that copies between rows and a block of slots.

    A move is a first slot, a count, an address and a stride. Number j of row t is j + t * stride
    elements after the address, and its slot is first + j. So a stride of 0 means the same numbers
    for all rows.
    """
    return f"""\
@njit(**INLINED)
def {name}(moves, addresses, steps, block, begin, end):
    for move in range(len(moves)):
        first, count, address, stride = moves[move]
        rows = view(address + begin * stride * ITEM, (end - begin) * stride + count)
        slots = view(addresses[first] + begin * steps[first], count * block)
        for near in range(0, count, LINE):
            for t in range(end - begin):
                for j in range(near, min(near + LINE, count)):
                    {statement}"""


def _rows(tape: str) -> str:
    column, moves = "i8[::1]", "i8[:,::1]"
    forward = f"{tape}, {column}, {column}, {moves}, {moves}"
    backward = f"u1[::1], u1[::1], {column}, {moves}, {moves}"
    numbers = "i8, i8, i8, i8"
    columns = "ops, rows, inputs, constants, addresses, steps"
    pulled = "input_counts, fresh, grad_addresses, seeds, leaf_grads"
    return f'''\
{_copy("put", "slots[U(j * block + t)] = rows[U(t * stride + j)]")}


{_copy("take", "rows[U(t * stride + j)] = slots[U(j * block + t)]")}


@kernel("void({forward}, {numbers})")
def rows_forward({columns}, leaves, outputs, slot, block, start, stop):
    """Rows from `start` to `stop`: leaves put in, all nodes, outputs taken out."""
    for begin in range(start, stop, block):
        end = min(begin + block, stop)
        put(leaves, addresses, steps, block, begin, end)
        block_forward({columns}, slot, 0, len(ops), 0, block, begin, end)
        take(outputs, addresses, steps, block, begin, end)


@kernel("void({forward}, u1[::1], {backward}, {numbers})")
def rows_whole(
    {columns}, leaves, outputs, live_ops, {pulled},
    slot, block, start, stop,
):
    """The same and then backwards, block by block: seeds put in, gradients of leaves taken out.

    Nothing is `fresh`: zeros are written over a whole block at once, which need not be read before.
    """
    for begin in range(start, stop, block):
        end = min(begin + block, stop)
        rows_forward({columns}, leaves, outputs, slot, block, begin, end)
        grads = view(grad_addresses[0] + begin * steps[0], len(grad_addresses) * block)
        for i in range(len(grads)):
            grads[U(i)] = F(0)
        put(seeds, grad_addresses, steps, block, begin, end)
        block_backward(
            live_ops, rows, inputs, constants, input_counts, fresh, addresses, steps,
            grad_addresses, steps, slot, len(ops), 0, len(inputs), block, begin, end,
        )
        take(leaf_grads, grad_addresses, steps, block, begin, end)'''


#: What `whole` is told of a tape, by place: addresses of its columns, and counts.
WHOLE = (
    "ops", "rows", "inputs", "constants", "starts", "cursors", "live_ops",
    "nodes", "input_count", "constant_count", "runs", "runs_back", "slot",
)  # fmt: skip
#: What `whole_again` is told besides.
AGAIN = ("slots", "values", "grads", "seeds", "seed_slots", "seed_numbers")
_LENGTHS = {
    "ops": ("nodes", "uint8"),
    "rows": ("nodes", "uint32"),
    "inputs": ("input_count", "uint32"),
    "constants": ("constant_count", "F"),
    "starts": ("runs + 1", "int64"),
    "cursors": ("runs", "int64"),
    "live_ops": ("nodes", "uint8"),
}


def _whole(f: str) -> str:
    numbers = [
        f"{name} = told[{place}]" for place, name in enumerate(WHOLE) if name not in _LENGTHS
    ]
    columns = [
        f"{name} = column(told[{WHOLE.index(name)}], {count}, {'' if kind == 'F' else 'np.'}{kind})"
        for name, (count, kind) in _LENGTHS.items()
    ]
    lines = indent("\n".join([*numbers, *columns]), "    ")
    tape = "rows, inputs, constants, values"
    # It keeps Python's lock: waiting to get that back takes longer than a small circuit.
    return f'''\
@njit("void(i8[::1], {f}[::1], {f}[::1])", cache=True, **OPTIONS)
def whole(told, values, grads):
    """Forward and backward; `grads` hold the seeds. Without runs (back), node after node."""
{lines}
    if runs:
        runs_forward(ops, {tape}, slot, starts, cursors, 0, runs)
    else:
        switch_forward(ops, {tape}, slot, 0, nodes, 0)
    if runs_back:
        runs_backward(ops, {tape}, grads, slot, starts, cursors, runs, 0)
    else:
        switch_backward(live_ops, {tape}, grads, slot, nodes, 0, input_count)'''


def _whole_again() -> str:
    told = {name: f"told[{len(WHOLE) + place}]" for place, name in enumerate(AGAIN)}
    # an integer is handed over in two thirds of the time that an array takes
    return f'''\
@njit("void(i8)", cache=True, **OPTIONS)
def whole_again(address):
    """The same over buffers that stay where they are; begins all gradients at zero, or seeds."""
    told = column(address, {len(WHOLE) + len(AGAIN)}, np.int64)
    values = column({told["values"]}, {told["slots"]}, F)
    grads = column({told["grads"]}, {told["slots"]}, F)
    grads[:] = F(0)
    seed_slots = column({told["seed_slots"]}, {told["seeds"]}, np.int64)
    seed_numbers = column({told["seed_numbers"]}, {told["seeds"]}, F)
    for k in range({told["seeds"]}):
        grads[seed_slots[k]] = seed_numbers[k]
    whole(told, values, grads)'''


# A sum may be taken in any order here, so that it runs on vector registers; for the largest of
# numbers the compiler has to be shown how.
_SOFTMAX = '''\
OVER_ROWS = {{"cache": True, "nogil": True, **OPTIONS, "fastmath": {{"contract", "reassoc"}}}}
LANES = U({lanes})


@njit(**INLINED)
def largest_of(x, lanes):
    count = U(len(x))
    whole = count - count % LANES
    for lane in range(LANES):
        lanes[lane] = F(-np.inf)
    for first in range(U0, whole, LANES):
        for lane in range(LANES):
            lanes[lane] = x[first + lane] if x[first + lane] > lanes[lane] else lanes[lane]
    found = F(-np.inf)
    for lane in range(LANES):
        found = lanes[lane] if lanes[lane] > found else found
    for t in range(whole, count):
        found = x[t] if x[t] > found else found
    return found


@njit("void(i8, i8, i8, i8, i8)", **OVER_ROWS)
def softmax(x, out, count, start, stop):
    """Of each row of `count` elements from `start` to `stop`, at these addresses."""
    lanes = np.empty(LANES, F)
    for row in range(start, stop):
        shift, total = row * count * ITEM, F(0)
        given, found = view(x + shift, count), view(out + shift, count)
        largest = largest_of(given, lanes)
        for t in range(U(count)):
            found[t] = exp(given[t] - largest)
        for t in range(U(count)):
            total += found[t]
        for t in range(U(count)):
            found[t] /= total


@njit("void(i8, i8, i8, i8, i8, i8)", **OVER_ROWS)
def softmax_backward(grad, out, to_x, count, start, stop):
    """out * (grad - sum(grad * out)) of each row, of grad less what it is where out > 3/4."""
    for row in range(start, stop):
        shift, level, total = row * count * ITEM, F(0), F(0)
        given, values = view(grad + shift, count), view(out + shift, count)
        found = view(to_x + shift, count)
        for t in range(U(count)):
            level += given[t] if values[t] > F(0.75) else F(0)
        for t in range(U(count)):
            total += (given[t] - level) * values[t]
        for t in range(U(count)):
            found[t] = values[t] * ((given[t] - level) - total)'''
