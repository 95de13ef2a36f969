"""What `print(graph)` shows: lines for leaves, modules, nodes and outputs."""

from __future__ import annotations

from collections.abc import Iterable

from gradwire.builder.circuit import Circuit
from gradwire.builder.leaves import Leaf
from gradwire.builder.shared import Module
from gradwire.visible import visible

_LINES_SHOWN = 60


def listed(circuit: Circuit, modules: Iterable[Module]) -> str:
    """A circuit, and the modules that are shown with it, as lines."""
    lines = [_leaf_line(leaf) for leaf in circuit.ordered_leaves if leaf.kind != "constant"]
    lines += map(_module_line, modules)
    count = circuit.node_count
    shown = range(count)
    if count > _LINES_SHOWN:
        shown = range(_LINES_SHOWN // 2)
    lines.extend(_node_line(circuit, node) for node in shown)
    if count > _LINES_SHOWN:
        lines.append(f"... {count - _LINES_SHOWN} more nodes ...")
        lines.extend(_node_line(circuit, node) for node in range(count - _LINES_SHOWN // 2, count))
    for name, keys in circuit.outputs.items():
        labels = ", ".join(map(circuit.label, keys[:8])) + (", ..." if len(keys) > 8 else "")
        lines.append(f"output {name} = {labels}")
    return "\n".join(map(visible, lines))


def _leaf_line(leaf: Leaf) -> str:
    if not leaf.dtype:
        return f"{leaf.kind} {leaf.name}"  # of a module
    line = f"{leaf.kind} {leaf.name}: {leaf.dtype}[{', '.join(map(str, leaf.axes))}]"
    if leaf.value is None:
        return line
    few = leaf.value.size <= 4
    return f"{line} = {leaf.value.tolist() if few else f'{leaf.value.size} stored elements'}"


def _module_line(module: Module) -> str:
    own = "" if module.gradient is None else ", own gradient"
    given = ", ".join(module.inputs)
    return f"module {module.name}({given}): {module.circuit.node_count} nodes{own}"


def _node_line(circuit: Circuit, node: int) -> str:
    operator, attributes, inputs, outputs, _ = circuit.table.rows[circuit.node_rows[node]]
    start = circuit.input_start(node)
    given = [
        circuit.label(key) if key else "absent"
        for key in circuit.node_inputs[start : start + inputs]
    ]
    given += [f"{name}={value!r}" for name, value in attributes.items()]
    first = circuit.node_firsts[node]
    made = ", ".join(map(circuit.label, range(first, first + min(outputs, 8))))
    made += ", ..." if outputs > 8 else ""
    return f"{made} = {operator}({', '.join(given)})"
