"""Leaves of a graph, checked as they are declared or read, and as they are written."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod

import numpy as np

from gradwire import blob_files, tensors
from gradwire.errors import InvalidRequestError
from gradwire.v1 import graph_pb2, tensor_pb2

_MOST_RANK = 32


@dataclass(frozen=True)
class Leaf:
    """An input, a parameter or a constant, as declared."""

    kind: str
    name: str
    dtype: str
    axes: tuple[int | str, ...]
    elements: bool
    value: tensors.Array | None

    @property
    def id_count(self) -> int:
        """How many value ids it takes: one, or one for each element."""
        sizes = (axis for axis in self.axes if isinstance(axis, int))
        return prod(sizes) if self.elements else 1


@dataclass(frozen=True)
class StoredValues:
    """What stored values of a graph that is read may refer to."""

    blobs: blob_files.Blobs
    _truths: set[bytes] = field(default_factory=set)  # blobs that hold bools

    def read(self, place: str, value: tensor_pb2.Tensor) -> tensors.Array:
        """A stored value: out of the message, or a blob where it lies (BLOBS_MISSING, ...)."""
        if value.WhichOneof("content") != "blob":
            return tensors.decode(value)
        if value.blob not in self.blobs:
            raise InvalidRequestError(
                "BLOBS_MISSING",
                f"{place}: its value is the blob {value.blob.hex()[:16]}..., which is not there; "
                "blobs are in the file beside the graph file",
            )
        dtype = tensors.dtype_of(value.data_type)
        if dtype == "bool" and value.blob not in self._truths:
            tensors.require_truths(self.blobs[value.blob])
            self._truths.add(value.blob)  # once, however many leaves share it
        return tensors.view(dtype, tuple(value.shape), self.blobs[value.blob])


def check_axes(place: str, axes: tuple[int | str, ...], elements: bool) -> None:
    """Sizes or symbols, and only sizes for ELEMENTS (TENSOR_INVALID, LEAF_INVALID)."""
    for axis in axes:
        size = isinstance(axis, (int, np.integer)) and axis >= 0
        if not size and not (isinstance(axis, str) and axis):
            raise InvalidRequestError(
                "TENSOR_INVALID", f"{place}: axis {axis!r} is neither a size nor a symbol"
            )
        if elements and isinstance(axis, str):
            raise InvalidRequestError(
                "LEAF_INVALID",
                f"{place}: layout ELEMENTS needs fixed sizes but an axis is {axis!r}",
            )


def read_leaf(kind: str, message: graph_pb2.Leaf, values: StoredValues) -> Leaf:
    """A leaf as a message declares it; its name and axes are still to be checked."""
    place = f"{kind} {message.name!r}"
    if len(message.type.axes) > _MOST_RANK or any(
        not axis.WhichOneof("extent") for axis in message.type.axes
    ):
        raise InvalidRequestError(
            "TENSOR_INVALID",
            f"{place}: has {len(message.type.axes)} axes; at most {_MOST_RANK} are allowed, "
            "each with a size or a symbol",
        )
    axes = tuple(getattr(axis, axis.WhichOneof("extent") or "") for axis in message.type.axes)
    if message.layout not in graph_pb2.Leaf.Layout.values():
        raise InvalidRequestError("LEAF_INVALID", f"{place}: layout {message.layout} is not known")
    elements = message.layout == graph_pb2.Leaf.LAYOUT_ELEMENTS
    dtype = tensors.dtype_of(message.type.data_type)
    stored = values.read(place, message.value) if message.HasField("value") else None
    if (stored is None and kind != "input") or (stored is not None and stored.dtype != dtype):
        has = "no stored value" if stored is None else f"a stored value of {stored.dtype}"
        raise InvalidRequestError("LEAF_INVALID", f"{place}: is {dtype} but has {has}")
    return Leaf(kind, message.name, dtype, axes, elements, stored)


def encode_leaf(leaf: Leaf, least_bytes: int | None) -> graph_pb2.Leaf:
    """A leaf as it is written, without the elements of a value that has so many bytes."""
    message = graph_pb2.Leaf(name=leaf.name)
    if not leaf.dtype:
        return message  # of a module
    message.type.data_type = tensors.data_type(leaf.dtype)
    for axis in leaf.axes:
        if isinstance(axis, str):
            message.type.axes.add(symbol=axis)
        else:
            message.type.axes.add(size=axis)
    if leaf.elements:
        message.layout = graph_pb2.Leaf.LAYOUT_ELEMENTS
    if leaf.value is not None:
        is_apart = least_bytes is not None and leaf.value.nbytes >= least_bytes
        encode = tensors.encode_type if is_apart else tensors.encode
        message.value.CopyFrom(encode(leaf.value))
    return message
