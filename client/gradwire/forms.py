"""Requests that come again are written once, and then only filled in with other numbers.

What Python takes for a small message is spent on what is around its numbers: names, shapes, checks,
protobuf. A form keeps that of a request, once it has been made, and of its answer. Where anything
but numbers differs, the request is made, and the answer read, as if there were no form.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from gradwire import requests, tensors
from gradwire.builder import Graph
from gradwire.holes import PLAIN, around, find_holes
from gradwire.payloads import LIFTED_BYTES, Buffer
from gradwire.requests import Written
from gradwire.results import Answer, Result, answer_of, parse
from gradwire.segments import INLINE, Exchange
from gradwire.tensors import Array
from gradwire.v1 import service_pb2

#: Uses after which a form is worth its making, and how often that is tried.
_USES = 3
_MOST_TRIES = 4
_MOST_FORMS = 16
#: Options that say nothing of values by the way, which no form reads.
_PLAIN_OPTIONS = {"with_respect_to", "batched", "forward_only"}

_Kind = tuple[Any, tuple[int, ...]]  # data type and shape


class Call(Protocol):
    """How one kind of request is made, and its answer read, without a form."""

    @property
    def graph(self) -> Graph: ...

    def write(self, inputs: Mapping[str, Any], exchange: Exchange) -> Written: ...

    def read(self, data: bytes, exchange: Exchange) -> Answer: ...


class _Blank(NamedTuple):
    """A request around the elements of its arrays."""

    parts: tuple[tuple[bytes, str, Any, tuple[int, ...]], ...]  # what precedes each, and its kind
    end: tuple[Buffer, ...]

    def filled(self, inputs: Mapping[str, Any]) -> list[Buffer] | None:
        """The request at these inputs; None where one is of another kind."""
        pieces: list[Buffer] = []
        for before, name, dtype, shape in self.parts:
            given = inputs[name]
            if type(given) is np.ndarray or isinstance(given, np.generic):
                if given.dtype != dtype or given.shape != shape:
                    return None
                pieces += before, _bytes_of(given)
            elif type(given) is float and not shape and dtype.kind == "f":
                pieces += before, dtype.type(given).tobytes()
            else:
                return None
        return [*pieces, *self.end]


class _Mask(NamedTuple):
    """An answer around the elements of its arrays."""

    size: int
    fixed: tuple[tuple[slice, bytes], ...]
    outputs: tuple[tuple[str, slice, _Kind], ...]
    gradients: tuple[tuple[str, slice, _Kind], ...]

    def read(self, data: bytes, graph: Graph) -> Result | None:
        """The result in an answer, where nothing but numbers differs."""
        if len(data) != self.size:
            return None
        for place, expected in self.fixed:
            if data[place] != expected:
                return None
        return Result(_taken(self.outputs, data), _taken(self.gradients, data), {}, {}, graph)


class Form:
    """Requests of one kind."""

    def __init__(self, call: Call) -> None:
        self.blank: _Blank | None = None
        self.mask: _Mask | None = None
        self.call = call
        self._uses = 0
        self._tries = {"blank": _MOST_TRIES, "mask": _MOST_TRIES}

    def request(self, inputs: Mapping[str, Any], exchange: Exchange) -> Sequence[Buffer]:
        """The pieces of a serialized request."""
        self._uses += 1
        if exchange is INLINE and self.blank is not None:
            filled = self.blank.filled(inputs)
            if filled is not None:
                return filled
        written = self.call.write(inputs, exchange)
        if exchange is INLINE and self._is_due("blank"):
            self.blank = _blank_of(written, self.call.graph, inputs)
        return written.pieces

    def result(self, data: bytes, exchange: Exchange) -> Result:
        """The result in a serialized answer."""
        if exchange is INLINE and self.mask is not None:
            found = self.mask.read(data, self.call.graph)
            if found is not None:
                return found
        answer = self.call.read(data, exchange)
        if exchange is INLINE and self._is_due("mask"):
            self.mask = _mask_of(data, answer)
        return answer.result

    def _is_due(self, what: str) -> bool:
        if self._uses < _USES or not self._tries[what]:
            return False
        self._tries[what] -= 1
        return True


class Forms:
    """The forms of a connection, or of a session, by what their requests have in common."""

    def __init__(self) -> None:
        self._forms: dict[Hashable, Form] = {}

    def evaluate(
        self,
        graph: Graph,
        digest: bytes,
        inputs: Mapping[str, Any],
        options: Mapping[str, Any],
    ) -> Form:
        """The form of an EvaluateRequest; with a digest, the server has the graph."""

        def call() -> Call:
            return _Evaluate(graph, digest, options)

        source = digest or graph.to_bytes()
        chosen = {
            name: tuple(each) if isinstance(each, list) else each for name, each in options.items()
        }
        plain = all(isinstance(each, str | bool | tuple) for each in chosen.values())
        if not plain or len(source) >= LIFTED_BYTES or not options.keys() <= _PLAIN_OPTIONS:
            return Form(call())
        return self._found((id(graph), source, *sorted(chosen.items()), *inputs), call)

    def step(
        self, graph: Graph, batched: Sequence[str], inputs: Iterable[str], forward_only: bool
    ) -> Form:
        """The form of a session's step."""
        return self._found((forward_only, *inputs), lambda: _Step(graph, batched, forward_only))

    def _found(self, key: Hashable, call: Callable[[], Call]) -> Form:
        form = self._forms.get(key)
        if form is None:
            form = Form(call())
            if sys.byteorder == "little":  # as messages have elements
                if len(self._forms) >= _MOST_FORMS:
                    self._forms.clear()  # so many kinds do not come again
                self._forms[key] = form
        return form


@dataclass(frozen=True)
class _Evaluate:
    graph: Graph
    digest: bytes
    options: Mapping[str, Any]

    def write(self, inputs: Mapping[str, Any], exchange: Exchange) -> Written:
        return requests.evaluate_request(self.graph, inputs, self.options, exchange, self.digest)

    def read(self, data: bytes, exchange: Exchange) -> Answer:
        return answer_of(parse(service_pb2.EvaluateResponse, data), self.graph, exchange)


@dataclass(frozen=True)
class _Step:
    graph: Graph
    batched: Sequence[str]
    forward_only: bool

    def write(self, inputs: Mapping[str, Any], exchange: Exchange) -> Written:
        return requests.step_request(
            self.graph, inputs, self.batched, exchange, forward_only=self.forward_only
        )

    def read(self, data: bytes, exchange: Exchange) -> Answer:
        return requests.session_answer(data, self.graph, exchange)


def _blank_of(written: Written, graph: Graph, inputs: Mapping[str, Any]) -> _Blank | None:
    head = bytes(written.pieces[0])
    small = {binding.leaf: binding.tensor for binding in written.bindings}
    places = find_holes(head, written.message, [*small.values()]) if small else []
    dtypes = {leaf.name: np.dtype(leaf.dtype) for leaf in graph.leaves}
    if (
        places is None
        or len(small) + len(written.large) != len(inputs)
        or not {dtypes[name] for name in inputs} <= PLAIN
    ):
        return None
    filled = sorted(zip(places, small, strict=True), key=lambda each: each[0].start)
    *between, end = around(head, [place for place, _ in filled])
    parts = [
        (head[before], name, dtypes[name], tuple(small[name].shape))
        for before, (_, name) in zip(between, filled, strict=True)
    ]
    before = head[end]
    for number, piece in enumerate(written.pieces[1:], 1):
        name = written.large.get(number, "")
        if name:
            parts.append((before, name, dtypes[name], np.shape(inputs[name])))
        before = b"" if name else before + piece
    return _Blank(tuple(parts), (before,))


def _mask_of(data: bytes, answer: Answer) -> _Mask | None:
    message = answer.message.result
    if message.node_values or message.node_gradients:
        return None
    named = [*message.outputs, *message.gradients]
    found = [*answer.result.outputs.values(), *answer.result.gradients.values()]
    if len(named) != len(found) or not {each.dtype for each in found} <= PLAIN:
        return None
    places = find_holes(data, answer.message, [each.tensor for each in named])
    if places is None:
        return None
    taken = [
        (each.name, place, (array.dtype, array.shape))
        for each, place, array in zip(named, places, found, strict=True)
    ]
    fixed = around(data, sorted(places, key=lambda place: place.start))
    split = len(message.outputs)
    return _Mask(
        len(data),
        tuple((place, data[place]) for place in fixed),
        tuple(taken[:split]),
        tuple(taken[split:]),
    )


def _bytes_of(array: Any) -> Buffer:
    """The elements of an array: of a small one faster than a view of them."""
    return tensors.elements(array) if array.nbytes >= LIFTED_BYTES else array.tobytes()


def _taken(places: tuple[tuple[str, slice, _Kind], ...], data: bytes) -> dict[str, Array]:
    """Read-only arrays: each has bytes of its own, so that it is aligned."""
    return {name: np.ndarray(shape, dtype, data[at]) for name, at, (dtype, shape) in places}
