"""Builds gate graphs from Python expressions, and writes and reads their serialized form.

A handle stands for a value that a server will compute. It knows its data type; shapes are found
when the graph is evaluated.
"""

from __future__ import annotations

from gradwire.builder.graph import Graph
from gradwire.builder.handles import (
    Handle,
    Operand,
    apply,
    apply_among,
    apply_several,
    apply_split,
)
from gradwire.builder.leaves import Leaf
from gradwire.builder.shared import Module, Node
from gradwire.builder.writing import OPERATOR_SET_VERSION

__all__ = [
    "OPERATOR_SET_VERSION",
    "Graph",
    "Handle",
    "Leaf",
    "Module",
    "Node",
    "Operand",
    "apply",
    "apply_among",
    "apply_several",
    "apply_split",
]
