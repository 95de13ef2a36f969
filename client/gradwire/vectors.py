"""Leaves as one flat vector, as optimisers want them, and as one run of bytes, as messages do."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import cached_property
from itertools import accumulate, groupby, pairwise
from math import prod
from typing import Any

import numpy as np

from gradwire import tensors
from gradwire.builder import Graph
from gradwire.errors import InvalidRequestError, ServerError
from gradwire.payloads import LIFTED_BYTES, Buffer
from gradwire.results import scalar
from gradwire.tensors import FLOATS, Array


class Vector:
    """The leaves that are differentiated, end to end, in the graph's order."""

    def __init__(self, graph: Graph, with_respect_to: Collection[str] = ()) -> None:
        """All floating leaves, or those of them that are named (SYMBOL_UNBOUND: a size is open)."""
        leaves = [
            leaf
            for leaf in graph.leaves
            if leaf.kind != "constant"
            and leaf.dtype in FLOATS
            and (not with_respect_to or leaf.name in with_respect_to)
        ]
        for leaf in leaves:
            if any(isinstance(axis, str) for axis in leaf.axes):
                raise InvalidRequestError(
                    "SYMBOL_UNBOUND",
                    f"{leaf.kind} {leaf.name!r} has a symbolic size; give x as {{leaf: array}}",
                )
        shapes = [tuple(axis for axis in leaf.axes if isinstance(axis, int)) for leaf in leaves]
        edges = [0, *accumulate(map(prod, shapes))]
        self._graph = graph
        self.size = edges[-1]
        self.names = [leaf.name for leaf in leaves]
        self._dtypes = {leaf.dtype for leaf in leaves}
        self._runs = [*_runs([leaf.dtype for leaf in leaves], edges)]
        self._parts = [
            (leaf.name, leaf.dtype, slice(*edge) if shape else edge[0], shape)
            for leaf, edge, shape in zip(leaves, pairwise(edges), shapes, strict=True)
        ]

    def split(self, flat: Array) -> dict[str, Array]:
        """The leaves' parts of a vector [size] (SHAPE_MISMATCH)."""
        require_size(flat, self.size)
        typed = {dtype: flat.astype(dtype, copy=False) for dtype in self._dtypes}
        return {
            name: typed[dtype][place].reshape(shape) if shape else typed[dtype][place]
            for name, dtype, place, shape in self._parts
        }

    def join(self, gradients: Mapping[str, Array], dtype: np.dtype[Any]) -> Array:
        """The leaves' gradients as a vector [size] of a data type."""
        if not self.names:
            return np.empty(0, dtype)
        if not gradients:
            what = "forward_only is set, so there is no gradient; ask for the value alone"
            raise InvalidRequestError("SELECTION_INVALID", what)
        found = [gradients[name] for name in self.names]
        return np.concatenate(found, axis=None, dtype=dtype, casting="unsafe")

    def pack(self, flat: Array) -> Buffer:
        """A vector [size] as Packed.data has it (SHAPE_MISMATCH)."""
        if len(self._dtypes) == 1:
            require_size(flat, self.size)
            (dtype,) = self._dtypes
            return _elements(flat.astype(dtype, copy=False))
        return b"".join(map(_elements, self.split(flat).values()))

    def unpack(self, packed: Buffer, dtype: np.dtype[Any]) -> tuple[float, Array]:
        """Of Result.packed, the only output, and the gradient [size] in a data type."""
        output = self._output_dtype
        start = len(packed) - self._nbytes
        if start < np.dtype(output).itemsize:
            raise ServerError(
                "INTERNAL",
                f"the answer has {len(packed)} packed bytes, but the gradient alone has "
                f"{self._nbytes}; connect again: an older server may have taken its place",
            )
        if self._dtypes == {output} and start == np.dtype(output).itemsize:  # as most often
            numbers = tensors.view(output, (1 + self.size,), packed)
            return float(numbers[0]), numbers[1:].astype(dtype)
        count = start // np.dtype(output).itemsize
        value = scalar(tensors.view(output, (count,), packed[:start]), "the output")
        gradient = np.empty(self.size, dtype)
        for own, first, stop in self._runs:
            end = start + (stop - first) * np.dtype(own).itemsize
            gradient[first:stop] = tensors.view(own, (stop - first,), packed[start:end])
            start = end
        return value, gradient

    @cached_property
    def _output_dtype(self) -> str:
        (name,) = self._graph.outputs
        return self._graph.output_dtype(name)

    @cached_property
    def _nbytes(self) -> int:
        """Bytes of the leaves."""
        return sum((stop - first) * np.dtype(own).itemsize for own, first, stop in self._runs)


def require_size(flat: Array, size: int) -> None:
    """SHAPE_MISMATCH where it is no vector [size]."""
    if flat.shape != (size,):
        raise InvalidRequestError(
            "SHAPE_MISMATCH",
            f"x has shape {flat.shape} but the floating leaves have {size} elements in all",
        )


def _elements(part: Array) -> Buffer:
    """Of a small array faster than a view of them."""
    if part.nbytes >= LIFTED_BYTES:
        return tensors.elements(part)
    return tensors.little_endian(part).tobytes()


def _runs(dtypes: Iterable[str], edges: Iterable[int]) -> Iterator[tuple[str, int, int]]:
    """Stretches of one data type: where in the vector each begins and ends."""
    leaves = zip(dtypes, pairwise(edges), strict=True)
    for dtype, run in groupby(leaves, key=lambda leaf: leaf[0]):
        places = [place for _, place in run]
        yield dtype, places[0][0], places[-1][1]
