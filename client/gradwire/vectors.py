"""Leaves as one flat vector, as optimisers want them."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate, pairwise
from math import prod
from typing import Any

import numpy as np

from gradwire.builder import Graph
from gradwire.errors import InvalidRequestError
from gradwire.tensors import FLOATS, Array


class Vector:
    """The floating leaves that have a gradient, end to end, in the graph's order."""

    def __init__(self, graph: Graph) -> None:
        """SYMBOL_UNBOUND where a size is open."""
        leaves = [leaf for leaf in graph.leaves if leaf.kind != "constant" and leaf.dtype in FLOATS]
        for leaf in leaves:
            if any(isinstance(axis, str) for axis in leaf.axes):
                raise InvalidRequestError(
                    "SYMBOL_UNBOUND",
                    f"{leaf.kind} {leaf.name!r} has a symbolic size; give x as {{leaf: array}}",
                )
        shapes = [tuple(axis for axis in leaf.axes if isinstance(axis, int)) for leaf in leaves]
        edges = self._edges = [0, *accumulate(map(prod, shapes))]
        self.size = edges[-1]
        self.names = [leaf.name for leaf in leaves]
        self._dtypes = {leaf.dtype for leaf in leaves}
        self._parts = [
            (leaf.name, leaf.dtype, slice(*edge) if shape else edge[0], shape)
            for leaf, edge, shape in zip(leaves, pairwise(edges), shapes, strict=True)
        ]

    def places(self, item_size: int) -> dict[str, slice]:
        """Where the bytes of a vector have those of each leaf, if all are of one type."""
        return {
            name: slice(item_size * start, item_size * stop)
            for name, (start, stop) in zip(self.names, pairwise(self._edges), strict=True)
        }

    def split(self, flat: Array) -> dict[str, Array]:
        """The leaves' parts of a vector [size] (SHAPE_MISMATCH)."""
        if flat.shape != (self.size,):
            raise InvalidRequestError(
                "SHAPE_MISMATCH",
                f"x has shape {flat.shape} but the floating leaves have {self.size} elements in "
                "all",
            )
        typed = {dtype: flat.astype(dtype, copy=False) for dtype in self._dtypes}
        return {
            name: typed[dtype][place].reshape(shape) if shape else typed[dtype][place]
            for name, dtype, place, shape in self._parts
        }

    def join(self, gradients: Mapping[str, Array], dtype: np.dtype[Any]) -> Array:
        """The leaves' gradients as a vector [size] of a data type."""
        if not self.names:
            return np.empty(0, dtype)
        found = [gradients[name] for name in self.names]
        return np.concatenate(found, axis=None, dtype=dtype, casting="unsafe")
