"""Answers: results, columns of node values, refusals, and what the server is."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import chain
from math import prod
from typing import Any

import numpy as np
from google.rpc import code_pb2

from gradwire.payloads import LIFTED_BYTES, Buffer, field
from gradwire.v1 import service_pb2, tensor_pb2
from gradwire_server.catalogue import GateDescription
from gradwire_server.codec.graphs import FEATURES, FORMAT_VERSION
from gradwire_server.codec.rows_and_leaves import encode_attribute
from gradwire_server.codec.tensors import NUMBERS
from gradwire_server.engine.runs import Found, Slab
from gradwire_server.errors import Refusal
from gradwire_server.gates import OPERATOR_SETS
from gradwire_server.graph import Graph, Ids
from gradwire_server.limits import Limit
from gradwire_server.segments import Region, Segments, Sink
from gradwire_server.specs import ITEM_SIZES, Shape

#: What requests may have that older servers ignore.
REQUEST_FEATURES = frozenset({"packed"})

#: Bytes of elements in one column: large enough to be cheap, small enough to flow.
COLUMN_BYTES = 512 * 1024

_SMALL_BYTES = 4096
_SHORT_NAME = 64
_NUMBERS_BY_DTYPE = {np.dtype(name): number for name, number in NUMBERS.items()}


def encode_response(found: Found, sink: Sink | None = None, *, packed: bool = False) -> bytes:
    """An EvaluateResponse, serialized: the arrays are copied once, behind their heads."""
    pieces = _result(*found, sink=sink, packed=packed)
    return b"".join((field(1, _size(pieces)), *pieces))


def encode_answer(
    request_id: int, found: Found, sink: Sink | None = None, *, packed: bool = False
) -> bytes:
    """A SessionResponse with a result, serialized."""
    pieces = _result(*found, sink=sink, packed=packed)
    return b"".join((_answer_head(request_id), field(3, _size(pieces)), *pieces))


def encode_outcome(
    found: Found | Refusal, sink: Sink | None = None, *, packed: bool = False
) -> bytes:
    """An Outcome in its field, serialized."""
    if isinstance(found, Refusal):
        error = service_pb2.Outcome(error=encode_error(found)).SerializeToString()
        return field(1, len(error)) + error
    pieces = _result(*found, sink=sink, packed=packed)
    head = field(1, _size(pieces))
    return b"".join((field(1, len(head) + _size(pieces)), head, *pieces))


def encode_outcomes(request_id: int, outcomes: Sequence[bytes]) -> bytes:
    """A SessionResponse with what became of several steps, serialized."""
    return b"".join((_answer_head(request_id), field(5, _size(outcomes)), *outcomes))


def _answer_head(request_id: int) -> bytes:
    return service_pb2.SessionResponse(request_id=request_id).SerializeToString()


def _size(pieces: Sequence[Buffer]) -> int:
    return sum(map(len, pieces))


def encode_events(kind: str, slabs: Iterable[Slab]) -> Iterator[bytes]:
    """EvaluateStreamResponses with columns of node_values or node_gradients, serialized."""
    number = service_pb2.EvaluateStreamResponse.DESCRIPTOR.fields_by_name[kind].number
    for head, data in _columns(slabs):
        yield b"".join((field(number, len(head) + len(data)), head, data))


def encode_finished(
    outputs: Iterable[tuple[str, Any]],
    gradients: Iterable[tuple[str, Any]],
    sent: Sequence[int],
    sink: Sink | None = None,
    *,
    packed: bool = False,
) -> bytes:
    """The EvaluateStreamResponse that ends a stream, serialized."""
    pieces = _result(outputs, gradients, sink=sink, packed=packed)
    counts = service_pb2.Finished(values_sent=sent[0], gradients_sent=sent[1]).SerializeToString()
    result_head = field(1, _size(pieces))
    size = len(counts) + len(result_head) + _size(pieces)
    return b"".join((field(4, size), counts, result_head, *pieces))


def encode_error(refusal: Refusal) -> service_pb2.Error:
    """A refusal as an answer inside a session."""
    return service_pb2.Error(
        code=code_pb2.Code.Value(refusal.status),
        reason=refusal.reason,
        message=refusal.message,
        facts=[service_pb2.Fact(key=key, value=fact) for key, fact in refusal.facts.items()],
    )


def encode_started(graph: Graph) -> service_pb2.Started:
    """What a client needs to read columns."""
    started = service_pb2.Started(value_count=graph.id_count)
    inside = graph.inside
    if inside is not None and len(inside.use_modules):
        started.module_uses.paths.extend(inside.paths)
        started.module_uses.modules.extend(inside.use_modules.tolist())
        started.module_uses.first_value_ids.extend(inside.use_first_ids.tolist())
    return started


def _result(
    outputs: Iterable[tuple[str, Any]],
    gradients: Iterable[tuple[str, Any]],
    node_values: Iterable[Slab] = (),
    node_gradients: Iterable[Slab] = (),
    sink: Sink | None = None,
    *,
    packed: bool,
) -> list[Buffer]:
    """The pieces of a serialized Result; large arrays go into the sink while it has room.

    Packed, outputs and gradients are one run of bytes.
    """
    pieces: list[Buffer] = []
    if packed:
        run = [_data(array) for _, array in chain(outputs, gradients)]
        pieces += field(5, _size(run)), *run
        outputs = gradients = ()
    for number, named in ((1, outputs), (2, gradients)):
        for name, array in named:
            data = _data(array)
            region = sink.put(data) if sink is not None and len(data) >= LIFTED_BYTES else None
            if region is not None:
                pieces.append(_named_region(number, name, array, region))
                continue
            pieces.append(_named_head(number, name, array, len(data)))
            pieces.append(data)
    for number, slabs in ((3, node_values), (4, node_gradients)):
        for head, data in _columns(slabs):
            pieces += field(number, len(head) + len(data)), head, data
    return pieces


def _named_head(number: int, name: str, array: Any, size: int) -> bytes:
    """What comes before the elements of a NamedTensor in a field."""
    head = _short_head if len(name) <= _SHORT_NAME else _short_head.__wrapped__
    return head(number, name, _NUMBERS_BY_DTYPE[array.dtype], array.shape, size)


@lru_cache(4096)
def _short_head(
    number: int, name: str, dtype: tensor_pb2.DataType.ValueType, shape: Shape, size: int
) -> bytes:
    head = _named_tensor_head(name, dtype, shape, size)
    return field(number, len(head) + size) + head


def _named_tensor_head(
    name: str, dtype: tensor_pb2.DataType.ValueType, shape: Shape, size: int
) -> bytes:
    tensor = tensor_pb2.Tensor(data_type=dtype, shape=shape).SerializeToString() + field(3, size)
    named = tensor_pb2.NamedTensor(name=name).SerializeToString()
    return named + field(2, len(tensor) + size) + tensor


def _named_region(number: int, name: str, array: Any, region: Region) -> bytes:
    """A NamedTensor in a field, its elements in shared memory."""
    shared = tensor_pb2.SharedRegion(**region._asdict())
    tensor = tensor_pb2.Tensor(
        data_type=_NUMBERS_BY_DTYPE[array.dtype], shape=array.shape, shared=shared
    )
    data = tensor_pb2.NamedTensor(name=name, tensor=tensor).SerializeToString()
    return field(number, len(data)) + data


def _data(array: Any) -> Buffer:
    """The elements, little-endian and row-major; not copied where they are many and so already."""
    if sys.byteorder == "big":
        array = array.astype(array.dtype.newbyteorder("<"), copy=False)
    if array.nbytes <= _SMALL_BYTES:
        small: bytes = array.tobytes()
        return small
    contiguous: Any = np.ascontiguousarray(array)
    return memoryview(contiguous.reshape(-1).view(np.uint8))  # bfloat16 has no buffer of its own


def _columns(slabs: Iterable[Slab]) -> Iterator[tuple[bytes, Buffer]]:
    """Columns of at most about COLUMN_BYTES, larger tensors in pieces: heads, and elements."""
    for slab in slabs:
        column = service_pb2.Column(data_type=NUMBERS[slab.part.dtype], shape=slab.part.shape)
        if slab.part.as_summary:
            _set_ids(column, slab.part.ids)
            column.summary.CopyFrom(_encode_summary(slab.summary()))
            yield column.SerializeToString(), b""
        elif prod(slab.part.shape) * ITEM_SIZES[slab.part.dtype] > COLUMN_BYTES:
            yield from _tensor_columns(column, slab)
        else:
            yield from _stacked_columns(column, slab)


def _tensor_columns(column: service_pb2.Column, slab: Slab) -> Iterator[tuple[bytes, Buffer]]:
    """Each tensor in pieces."""
    step = COLUMN_BYTES // ITEM_SIZES[slab.part.dtype]
    column.count = 1
    for value_id, array in zip(slab.part.ids.tolist(), slab.arrays(), strict=True):
        column.first_value_id = value_id
        data = _data(array)
        for start in range(0, prod(slab.part.shape), step):
            column.first_element = start
            at = start * ITEM_SIZES[slab.part.dtype]
            yield _column(column, data[at : at + COLUMN_BYTES])


def _stacked_columns(column: service_pb2.Column, slab: Slab) -> Iterator[tuple[bytes, Buffer]]:
    """Many values a column."""
    step = max(1, COLUMN_BYTES // max(1, prod(slab.part.shape) * ITEM_SIZES[slab.part.dtype]))
    for start in range(0, len(slab.part.ids), step):
        _set_ids(column, slab.part.ids[start : start + step])
        yield _column(column, _data(slab.stacked(start, start + step)))


def _column(column: service_pb2.Column, data: Buffer) -> tuple[bytes, Buffer]:
    return column.SerializeToString() + field(6, len(data)), data


def _set_ids(column: service_pb2.Column, ids: Ids) -> None:
    column.count = len(ids)
    column.ClearField("value_ids")
    if int(ids[-1]) - int(ids[0]) + 1 == len(ids):
        column.first_value_id = int(ids[0])
    else:
        column.first_value_id = 0
        column.value_ids.extend(ids.tolist())


def _encode_summary(figures: Mapping[str, Sequence[float]]) -> service_pb2.Summary:
    summary = service_pb2.Summary()
    for name, figure in figures.items():
        getattr(summary, name).extend(figure)
    return summary


def encode_description(
    version: str,
    limits: Iterable[Limit],
    gates: Iterable[GateDescription],
    segments: Segments | None = None,
    store: str = "",
    kernels: str = "",
) -> service_pb2.DescribeServerResponse:
    """What the server is."""
    return service_pb2.DescribeServerResponse(
        version=version,
        format_version=FORMAT_VERSION,
        min_operator_set_version=OPERATOR_SETS[0],
        max_operator_set_version=OPERATOR_SETS[1],
        features=sorted(FEATURES | REQUEST_FEATURES),
        limits=[
            service_pb2.Limit(name=limit.name, value=limit.value, unit=limit.unit)
            for limit in limits
        ],
        gates=[_encode_gate_description(gate) for gate in gates],
        shared_memory_socket="" if segments is None else segments.path,
        store=store,
        kernels=kernels,
    )


def _encode_gate_description(gate: GateDescription) -> service_pb2.GateDescription:
    return service_pb2.GateDescription(
        operator=gate.operator,
        summary=gate.summary,
        formula=gate.formula,
        gradient=gate.gradient,
        subgradient=gate.subgradient,
        shapes=gate.shapes,
        inputs=[
            service_pb2.InputDescription(
                name=each.name, optional=each.optional, variadic=each.variadic, known=each.known
            )
            for each in gate.inputs
        ],
        min_outputs=gate.min_outputs,
        max_outputs=gate.max_outputs,
        attributes=[
            service_pb2.AttributeDescription(
                name=each.name,
                kind=each.kind,
                required=each.required,
                default_value=None
                if each.default is None
                else encode_attribute(each.name, each.kind, each.default),
            )
            for each in gate.attributes
        ],
    )
