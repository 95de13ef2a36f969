"""Requests: what they ask for, what they bind, and where their bytes have it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
from google.protobuf.message import DecodeError, Message

from gradwire.holes import PLAIN, find_holes
from gradwire.payloads import LIFTED_BYTES, PATHS, Buffer, field, lifted
from gradwire.v1 import service_pb2, tensor_pb2
from gradwire_server.arrays import constant
from gradwire_server.codec.tensors import (
    NOTHING_BESIDE,
    NUMBERS,
    Payloads,
    decode_tensor,
    region_of,
    require_segments,
)
from gradwire_server.engine.evaluation import NO_SELECTION, Binding, Evaluation, Selection
from gradwire_server.errors import Invalid, Refusal, within
from gradwire_server.mould import Hole
from gradwire_server.segments import Segments, Sink
from gradwire_server.specs import USED_BITS

M = TypeVar("M", bound=Message)

_SCALARS = {
    number: np.dtype(name).newbyteorder("<")
    for name, number in NUMBERS.items()
    if name not in USED_BITS
}


def decode_request(
    kind: type[M], data: bytes, segments: Segments | None = None, limit: int = 0
) -> tuple[M, Payloads]:
    """A request, and the large payloads that were kept out of it (REQUEST_INVALID)."""
    beside = lifted(data, PATHS[kind.DESCRIPTOR.name])
    try:
        message = kind.FromString(beside.message)
        return message, Payloads(beside, segments, limit, len(data))
    except DecodeError:
        raise Invalid(
            "REQUEST_INVALID",
            f"the {len(data)} bytes are not a serialized {kind.DESCRIPTOR.full_name}",
        ) from None


def source_bytes(source: service_pb2.GraphSource, payloads: Payloads = NOTHING_BESIDE) -> Buffer:
    """The serialized graph of a request (GRAPH_INVALID where there is none)."""
    if source.WhichOneof("source") != "graph":
        raise Invalid("GRAPH_INVALID", "the request has no graph")
    return payloads.found(source.graph)


@contextmanager
def graph_of(source: service_pb2.GraphSource) -> Iterator[None]:
    """A graph that is refused here is where its request has it: its bytes, or a name for them."""
    try:
        yield
    except Refusal as refusal:
        raise sent_as(refusal, source.WhichOneof("source") or "") from None


def sent_as(refusal: Refusal, source: str) -> Refusal:
    """The same refusal; the fields of a serialized graph follow on the field that holds it."""
    head, _, inner = refusal.field.partition(".")
    if head != "graph" or not source:
        return refusal
    return refusal.at_field(inner if source == "graph" else "").within(f"graph.{source}")


def decode_evaluation(
    message: service_pb2.Evaluation, payloads: Payloads = NOTHING_BESIDE
) -> Evaluation:
    """What a request asks for. Names and ids are compared with the graph later."""
    with within("evaluation"):
        return Evaluation(
            bindings=decode_bindings(message.bindings, payloads),
            batch_size=message.batch_size,
            seeds=decode_seeds(message.seeds, payloads),
            forward_only=message.forward_only,
            with_respect_to=tuple(message.with_respect_to),
            values=_decode_selection("values", message.values),
            gradients=_decode_selection("gradients", message.gradients),
            packed=bytes(payloads.found(message.packed.data))
            if message.HasField("packed")
            else None,
            packed_order=tuple(message.packed.leaves),
        )


def decode_bindings(
    messages: Iterable[service_pb2.Binding], payloads: Payloads = NOTHING_BESIDE
) -> dict[str, Binding]:
    """Bindings by the leaf's name (BINDING_INVALID where one repeats)."""
    bindings: dict[str, Binding] = {}
    for message in messages:
        leaf = message.leaf
        if leaf in bindings:
            field = f"bindings[{len(bindings)}].leaf"
            raise Invalid("BINDING_INVALID", f"leaf {leaf!r} is bound twice", field=field)
        try:
            array = _decode_array("binding of leaf", leaf, message, payloads)
        except Refusal as refusal:
            raise refusal.within(f"bindings[{len(bindings)}].tensor") from None
        bindings[leaf] = Binding(array, message.batched)
    return bindings


def decode_seeds(
    messages: Iterable[tensor_pb2.NamedTensor], payloads: Payloads = NOTHING_BESIDE
) -> dict[str, Any]:
    """Seeds by the output's name (SEED_INVALID where one repeats)."""
    seeds: dict[str, Any] = {}
    for message in messages:
        name = message.name
        if name in seeds:
            field = f"seeds[{len(seeds)}].name"
            raise Invalid("SEED_INVALID", f"output {name!r} has two seeds", field=field)
        with within(f"seeds[{len(seeds)}].tensor"):
            seeds[name] = _decode_array("seed of output", name, message, payloads)
    return seeds


def _decode_array(what: str, name: str, message: Any, payloads: Payloads) -> Any:
    if not message.HasField("tensor"):
        raise Invalid("TENSOR_INVALID", f"{what} {name!r}: has no tensor")
    tensor = message.tensor
    if not tensor.shape:  # most messages hold little else
        data, dtype = tensor.data, _SCALARS.get(tensor.data_type)
        if dtype is not None and len(data) == dtype.itemsize:
            return np.ndarray((), dtype, data)
    return constant(decode_tensor(f"{what} {name!r}", tensor, payloads))


def _decode_selection(place: str, message: service_pb2.Selection) -> Selection:
    if not message.ByteSize():
        return NO_SELECTION
    if message.all and (message.names or message.value_ids or message.modules):
        raise Invalid(
            "SELECTION_INVALID",
            f"{place}: `all` is set, so names, ids and modules must be empty",
            field=f"{place}.all",
        )
    if message.detail not in (service_pb2.DETAIL_UNSPECIFIED, service_pb2.DETAIL_SUMMARY):
        what = f"{place}: detail {message.detail} is not known"
        raise Invalid("SELECTION_INVALID", what, field=f"{place}.detail")
    return Selection(
        all=message.all,
        names=tuple(message.names),
        value_ids=tuple(message.value_ids),
        modules=tuple(message.modules),
        summary=message.detail == service_pb2.DETAIL_SUMMARY,
    )


def packed_head(data: bytes, step: service_pb2.Step) -> bytes:
    """What a packed step has before its numbers; empty where it has anything else besides."""
    head = data[: len(data) - len(step.packed)]
    inner = field(3, len(step.packed))  # as service_pb2.Step has them
    return head if head == field(3, len(inner) + len(step.packed)) + inner else b""


def results_sink(
    request: service_pb2.EvaluateRequest
    | service_pb2.EvaluateStreamRequest
    | service_pb2.SessionRequest,
    segments: Segments | None,
) -> Sink | None:
    """Where a request wants its large results; None: in the answer.

    SHARED_MEMORY_INVALID, SHARED_MEMORY_UNSUPPORTED.
    """
    if not request.HasField("results_in"):
        return None
    try:
        return require_segments("results_in", segments).sink(region_of(request.results_in))
    except Invalid as refusal:
        raise refusal.at("results_in", field="results_in") from None


def find_bound(
    data: bytes,
    kind: type[M],
    bindings_in: Callable[[M], Sequence[service_pb2.Binding]],
    bound: Mapping[str, Binding],
) -> list[Hole] | None:
    """Where a message has the elements that it binds; None where that cannot be told."""
    if len(data) >= LIFTED_BYTES:
        return None
    message = kind.FromString(data)
    bindings = bindings_in(message)
    for binding in bindings:
        array = bound[binding.leaf].array
        # of other types not every element is allowed, or the array holds them otherwise
        if array.dtype not in PLAIN or array.tobytes() != binding.tensor.data:
            return None
    places = find_holes(data, message, [binding.tensor for binding in bindings])
    if places is None:
        return None
    return [Hole(place, binding.leaf) for place, binding in zip(places, bindings, strict=True)]
