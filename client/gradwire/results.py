"""What an evaluation yields: values and gradients as NumPy arrays, by name or by id."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from math import prod
from typing import Any, NamedTuple

import numpy as np
from google.protobuf.message import DecodeError, Message

from gradwire import tensors
from gradwire.builder import Graph, Handle
from gradwire.errors import InvalidRequestError, ServerError, nearest
from gradwire.payloads import PATHS, WHOLE, Lifted, lifted
from gradwire.segments import INLINE, Exchange
from gradwire.tensors import Array
from gradwire.v1 import service_pb2, tensor_pb2


@dataclass(frozen=True)
class Summary:
    """Figures in place of elements."""

    minimum: float
    maximum: float
    mean: float
    norm: float
    nan_count: int
    infinity_count: int


@dataclass(frozen=True)
class Found:
    """What is known of one value. None means "not computed", which is not zero."""

    value: Array | Summary | None = None
    gradient: Array | Summary | None = None


@dataclass(frozen=True)
class Event:
    """One value, or one gradient, as it is streamed."""

    kind: str  # "value" or "gradient"
    id: int
    name: str
    content: Array | Summary


@dataclass
class Result:
    """Values and gradients of one evaluation: `result["w0"].gradient`, `result[7].value`.

    What is inside of modules has a path: `result["layer1/scores"].value`.
    """

    outputs: dict[str, Array]
    gradients: dict[str, Array]
    node_values: dict[int, Array | Summary] = field(default_factory=dict)
    node_gradients: dict[int, Array | Summary] = field(default_factory=dict)
    graph: Graph | None = None

    def __getitem__(self, key: str | int | Handle) -> Found:
        if isinstance(key, Handle):
            key = key.graph.id_of(key)
        if isinstance(key, int):
            return Found(self.node_values.get(key), self.node_gradients.get(key))
        ids = self.graph.find(key) if self.graph else None
        if key not in self.outputs and key not in self.gradients and ids is None:
            named = self.graph.ids_by_name() if self.graph else ()
            known = [*self.outputs, *self.gradients, *named]
            raise KeyError(f"there is no value {key!r}{nearest(key, known)}")
        by_id = Found()
        if ids is not None and len(ids) == 1:
            by_id = self[ids[0]]
        value = self.outputs.get(key, by_id.value)
        return Found(value, self.gradients.get(key, by_id.gradient))

    def _repr_html_(self) -> str:
        """How notebooks show it: its circuit, or a table."""
        from gradwire.drawing import html_of

        return html_of(self)


class Columns:
    """Puts columns together: many scalars a column, or many columns a tensor."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []

    def read(
        self, column: service_pb2.Column, payloads: Lifted = WHOLE
    ) -> Iterator[tuple[int, Array | Summary]]:
        """Ids with what the column holds of them, when it is complete (TENSOR_INVALID)."""
        ids: Iterable[int] = column.value_ids
        if not column.value_ids:
            ids = range(column.first_value_id, column.first_value_id + column.count)
        if column.HasField("summary"):
            figures = column.summary
            yield from zip(
                ids,
                map(
                    Summary,
                    figures.minimum,
                    figures.maximum,
                    figures.mean,
                    figures.norm,
                    figures.nan_count,
                    figures.infinity_count,
                ),
                strict=True,
            )
            return
        dtype, shape = tensors.dtype_of(column.data_type), tuple(column.shape)
        data: bytes = bytes(payloads.found(column.data))
        whole = prod(shape) * column.count * np.dtype(dtype).itemsize
        if len(data) < whole:
            self._pieces.append(data)
            if sum(map(len, self._pieces)) < whole:
                return
            data = b"".join(self._pieces)
            self._pieces.clear()
        stacked = tensors.from_bytes(dtype, (column.count, *shape), data)
        yield from zip(ids, stacked, strict=True)


class Parsed(NamedTuple):
    """A message of a server, and the large payloads that were kept out of it."""

    message: Any
    payloads: Lifted


class Answer(NamedTuple):
    """A result, and the message that it came in."""

    message: Any
    result: Result


def parse(kind: type[Message], data: bytes) -> Parsed:
    """A serialized message (ServerError where it is none)."""
    payloads = lifted(data, PATHS[kind.DESCRIPTOR.name])
    try:
        return Parsed(kind.FromString(payloads.message), payloads)
    except DecodeError:
        raise ServerError(
            "INTERNAL",
            f"the answer of {len(data)} bytes is not a serialized {kind.DESCRIPTOR.full_name}",
        ) from None


def answer_of(parsed: Parsed, graph: Graph, exchange: Exchange) -> Answer:
    """The result of a message that has one."""
    message, payloads = parsed
    return Answer(message, decode_result(message.result, graph, exchange, payloads))


def decode_result(
    message: service_pb2.Result,
    graph: Graph,
    exchange: Exchange = INLINE,
    payloads: Lifted = WHOLE,
) -> Result:
    """A result of the service."""

    def decode(tensor: tensor_pb2.Tensor) -> Array:
        if tensor.HasField("shared"):
            return exchange.array(tensor)
        array = tensors.decode(tensor, payloads)
        exchange.count(array)
        return array

    columns = Columns()
    return Result(
        {each.name: decode(each.tensor) for each in message.outputs},
        {each.name: decode(each.tensor) for each in message.gradients},
        {
            key: each
            for column in message.node_values
            for key, each in columns.read(column, payloads)
        },
        {
            key: each
            for column in message.node_gradients
            for key, each in columns.read(column, payloads)
        },
        graph,
    )


def value_of(result: Result) -> float:
    """The only element of the only output."""
    ((name, array),) = result.outputs.items()
    return scalar(array, f"output {name!r}")


def scalar(array: Array, what: str) -> float:
    """The only element of an array (SEED_MISSING where there are several)."""
    if array.size != 1:
        raise InvalidRequestError(
            "SEED_MISSING", f"{what} has {array.size} elements; give a seed of shape {array.shape}"
        )
    return float(array.item())
