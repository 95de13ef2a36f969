"""Evaluations in this process, without a server: the engine, and nothing between."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from functools import cached_property
from typing import Any, NoReturn

import numpy as np

from gradwire import requests
from gradwire.builder import Graph
from gradwire.errors import GradwireError, InvalidRequestError, error_for
from gradwire.results import Result, Summary, scalar
from gradwire.tensors import Array
from gradwire.vectors import Vector, require_size
from gradwire_server.codec.graphs import decode_graph
from gradwire_server.codec.requests import decode_evaluation
from gradwire_server.engine import evaluation
from gradwire_server.engine.repeated import Repeated, repeat
from gradwire_server.engine.runs import Slab, run
from gradwire_server.errors import Refusal
from gradwire_server.limits import Limits


class Evaluator:
    """One graph, evaluated again and again: for optimisers and samplers that live in a loop.

        f = gw.Evaluator(graph, {"w": 2.0, "x": 0.5})
        f.inputs["w"][...] = 3.0
        f.run()
        f.outputs["f"], f.gradients["w"]

    `inputs`, `outputs` and `gradients` are arrays by name, which stay where they are: write into
    the first, run, read the others. Where a run is refused, as by an index outside its axis, the
    others stay as they were. Circuits of scalars compute in them, so that a hundred
    gates take about a microsecond, forward and backward. An evaluator serves one thread at a time.

    Of a circuit of scalars, `x` has all leaves that are differentiated, and `gradient` their
    gradients, in the graph's order: two arrays, for circuits of many leaves. Those by name are
    parts of them.

    It computes with the compiled kernels of the package, or with NumPy where none fit the machine.
    """

    #: Forward and backward at the numbers of `inputs`; what is found is in the other arrays.
    run: Callable[[], None]

    def __init__(
        self,
        graph: Graph,
        inputs: Mapping[str, Any] | None = None,
        *,
        x: Any = None,
        **options: Any,
    ) -> None:
        """Evaluates once, at `inputs`, which say how large open sizes are.

        Where there is an `x`, it has the leaves that are differentiated, as for
        `value_and_gradient`; inputs are the others then.

        Options are those of `Connection.evaluate`, refused with the same errors; and limits of a
        server, such as max_memory_bytes.
        """
        known = {limit.name for limit in fields(Limits)}
        limits = Limits(**{name: options.pop(name) for name in known & options.keys()})
        requests.require_graph(graph)
        requests.require_arguments(inputs, options, {*known, "x"})
        self.graph = graph
        self._with_respect_to = requests.as_names(options.pop("with_respect_to", ()))
        vector = None if x is None else Vector(graph, self._with_respect_to)
        packed = () if vector is None else vector.names
        message = requests.evaluation(
            graph, inputs, with_respect_to=self._with_respect_to, packed=packed, **options
        )
        if vector is not None:
            message.packed.data = bytes(vector.pack(requests.flat_vector(x)))
        try:
            wanted = decode_evaluation(message)
            job = evaluation.prepare(decode_graph(graph.to_bytes(), limits), wanted, limits)
            self._repeated: Repeated = repeat(job)
        except Refusal as refusal:
            raise _error(refusal, graph) from None
        self.run = self._repeated.run if self._repeated.never_refuses else self._checked_run
        #: Inputs and parameters, to be written to; read-only where shapes depend on the elements.
        self.inputs: Mapping[str, Array] = self._repeated.leaves
        self.outputs: Mapping[str, Array] = self._repeated.outputs
        self.gradients: Mapping[str, Array] = self._repeated.gradients

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "an evaluator cannot be copied or pickled; send its graph, and make another one there"
        )

    def _checked_run(self) -> None:
        try:
            self._repeated.run()
        except Refusal as refusal:
            raise _error(refusal, self.graph) from None

    def result(self) -> Result:
        """What the last run has found, with the chosen values and gradients; copies."""
        values, gradients = self._repeated.chosen()
        return Result(
            {name: np.array(each) for name, each in self.outputs.items()},
            {name: np.array(each) for name, each in self.gradients.items()},
            dict(_by_id(values)),
            dict(_by_id(gradients)),
            self.graph,
        )

    def value_and_gradient(self, x: Any) -> tuple[float, Any]:
        """The only output, and its gradient, at x: as `scipy.optimize.minimize(jac=True)` wants.

        x is {leaf: array}, and then so is the gradient; or one flat vector of all floating leaves
        that have a gradient, in the graph's order, and then so is the gradient.
        """
        if isinstance(x, Mapping):
            self._write(x)
            self.run()
            gradient: Any = {name: np.array(each) for name, each in self.gradients.items()}
        else:
            gradient = self._gradient_at(requests.flat_vector(x))
        (name,) = self.outputs
        return scalar(self.outputs[name], f"output {name!r}"), gradient

    def _gradient_at(self, flat: Array) -> Array:
        """Runs at a flat vector."""
        if self._repeated.packed is not None:
            leaves, gradients = self._repeated.packed
            require_size(flat, leaves.size)
            leaves[...] = flat
            self.run()
            return np.array(gradients, flat.dtype)
        for name, part in self._vector.split(flat).items():
            self.inputs[name][...] = part
        self.run()
        return self._vector.join(self.gradients, flat.dtype)

    @property
    def x(self) -> Array:
        """The leaves that are differentiated, end to end, to be written to (REQUEST_INVALID)."""
        leaves, _ = self._require_packed()
        return leaves

    @property
    def gradient(self) -> Array:
        """Their gradients, end to end (REQUEST_INVALID)."""
        _, gradients = self._require_packed()
        return gradients

    def _require_packed(self) -> tuple[Array, Array]:
        if self._repeated.packed is None:
            raise InvalidRequestError(
                "REQUEST_INVALID",
                "these leaves do not lie end to end, as those of a circuit of scalars of one data "
                "type do; write to inputs[name], or give value_and_gradient a flat vector",
            )
        return self._repeated.packed

    @cached_property
    def _vector(self) -> Vector:
        vector = Vector(self.graph, self._with_respect_to)
        for name in vector.names:
            self._require_writable(name)
        return vector

    def _write(self, point: Mapping[str, Any]) -> None:
        """All of it or nothing (LEAF_UNKNOWN, DATA_TYPE_MISMATCH, SHAPE_MISMATCH, ...)."""
        arrays = [self._checked(name, given) for name, given in point.items()]
        for name, array in zip(point, arrays, strict=True):
            self.inputs[name][...] = array

    def _checked(self, name: str, given: Any) -> Array:
        requests.require_leaf(name, self.inputs)
        own = self.inputs[name]
        array = requests.as_dtype(repr(name), given, str(own.dtype))
        if array.shape != own.shape:
            raise InvalidRequestError(
                "SHAPE_MISMATCH",
                f"{name!r}: has shape {own.shape} here but is given shape {array.shape}; make "
                "another evaluator",
            )
        self._require_writable(name)
        return array

    def _require_writable(self, name: str) -> None:
        if not self.inputs[name].flags.writeable:
            raise InvalidRequestError(
                "BINDING_INVALID",
                f"{name!r}: shapes depend on its elements, so it is read-only here; make another "
                "evaluator for other elements",
            )


def outputs_of(graph: Graph, inputs: Mapping[str, Any]) -> Mapping[str, Array]:
    """The outputs of a graph, evaluated once, forward only; no kernels are compiled for it."""
    limits = Limits()
    message = requests.evaluation(graph, inputs, forward_only=True)
    try:
        decoded = decode_graph(graph.to_bytes(), limits)
        job = evaluation.prepare(decoded, decode_evaluation(message), limits)
        outputs, *_ = run(job, lambda: False)
    except Refusal as refusal:
        raise _error(refusal, graph) from None
    return dict(outputs)


def _error(refusal: Refusal, graph: Graph) -> GradwireError:
    message = requests.at_line(refusal.message, refusal.facts, graph)
    return error_for(refusal.status, refusal.reason, message, refusal.facts)


def _by_id(slabs: Iterable[Slab]) -> Iterable[tuple[int, Array | Summary]]:
    for slab in slabs:
        ids = slab.part.ids.tolist()
        if not slab.part.as_summary:
            yield from zip(ids, map(np.array, slab.arrays()), strict=True)
            continue
        figures = slab.summary()
        for value_id, *each in zip(ids, *figures.values(), strict=True):
            yield value_id, Summary(**dict(zip(figures, each, strict=True)))
