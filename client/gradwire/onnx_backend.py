"""A backend for ONNX's own test runner: `onnx.backend.test.BackendTest(gradwire.onnx_backend)`.

It evaluates through a real server inside the process. Inputs are values like any other; those that
decide branches, trip counts or shapes in ways that only their elements tell are made constants of
the graph, run by run; so are sequences and optionals, which are lists and None.
"""

from __future__ import annotations

import atexit
from collections.abc import Callable, Mapping, Sequence, Set
from functools import cache
from itertools import count, takewhile
from typing import Any

import numpy as np
import onnx
from onnx.backend.base import Backend, BackendRep

import gradwire
from gradwire.builder import OPERATOR_SET_VERSION, Graph
from gradwire.connection import Connection
from gradwire.errors import InvalidRequestError, UnsupportedError
from gradwire.onnx.messages import axes_of
from gradwire.onnx.reading import from_onnx
from gradwire.tensors import Array, data_type

#: Reasons that may go away where more inputs are constants.
_UNKNOWN = ("INPUT_NOT_KNOWN", "SHAPE_MISMATCH")


@cache
def _server() -> Connection:
    """The server of this process."""
    server = gradwire.local(warm_up=False)
    atexit.register(server.close)
    return server


class Prepared(BackendRep):
    """A model that can be run many times."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._model = model
        stored = {each.name for each in model.graph.initializer}
        self._inputs = [each.name for each in model.graph.input if each.name not in stored]
        #: Sequences and optionals.
        self._groups = {
            each.name for each in model.graph.input if not each.type.HasField("tensor_type")
        }
        self._graph: Graph | None = None

    def run(self, inputs: Any, **_: Any) -> tuple[Any, ...]:
        """The outputs, in order; inputs in order, or by name."""
        given = self._by_name(inputs)
        exact = {name for name in given if name in self._groups or not _is_floating(given[name])}
        attempts: tuple[Callable[[], Graph], ...] = (
            lambda: self._whole(given),
            lambda: self._with_fixed(given, exact),
            lambda: self._with_fixed(given, given.keys()),
        )
        for attempt in attempts[:-1]:
            try:
                return self._evaluate(attempt(), given)
            except (UnsupportedError, InvalidRequestError) as error:
                if error.reason not in _UNKNOWN:
                    raise
        return self._evaluate(attempts[-1](), given)

    def _by_name(self, inputs: Any) -> dict[str, Any]:
        named = inputs
        if not isinstance(inputs, Mapping):
            names = self._inputs
            if len(inputs) > len(names):
                names = [each.name for each in self._model.graph.input]
            if len(inputs) > len(names):
                raise InvalidRequestError(
                    "LEAF_UNKNOWN",
                    f"the model takes {len(names)} inputs but {len(inputs)} are given",
                )
            named = dict(zip(names, inputs, strict=False))
        return {name: _plain(each) for name, each in named.items()}

    def _whole(self, given: Mapping[str, Any]) -> Graph:
        """The graph for any inputs, but those that no graph can leave open."""
        groups = self._groups & given.keys()
        if groups:
            return self._with_fixed(given, groups)
        if self._graph is None:
            self._graph = from_onnx(self._model)
        return self._graph

    def _with_fixed(self, given: Mapping[str, Any], names: Set[str]) -> Graph:
        """The graph for inputs of these sizes, with some as constants."""
        fixed = {name: given[name] for name in names}
        sizes = {
            axis.extent: size
            for info in self._model.graph.input
            if info.name in given and info.name not in fixed
            for axis, size in zip(axes_of(info), given[info.name].shape, strict=False)
            if isinstance(axis.extent, str)
        }
        return from_onnx(self._model, fixed=fixed, sizes=sizes)

    def _evaluate(self, graph: Graph, given: Mapping[str, Any]) -> tuple[Any, ...]:
        leaves = {leaf.name for leaf in graph.leaves if leaf.kind != "constant"}
        bound = {name: each for name, each in given.items() if name in leaves}
        outputs = _server().evaluate(graph, bound, forward_only=True).outputs
        return tuple(_output(each, outputs) for each in self._model.graph.output)


def _plain(given: Any) -> Any:
    """An array; or a list of arrays, or None, which are a sequence and an optional."""
    if given is None:
        return None
    return [np.asarray(each) for each in given] if isinstance(given, list) else np.asarray(given)


def _type_of(given: Any) -> onnx.TypeProto:
    """The type of an array, or of a list of them."""
    if isinstance(given, list):
        first = given[0].dtype if given else "float32"
        item = onnx.helper.make_tensor_type_proto(data_type(str(first)), None)
        return onnx.helper.make_sequence_type_proto(item)
    return onnx.helper.make_tensor_type_proto(data_type(str(given.dtype)), given.shape)


def _is_floating(given: Any) -> bool:
    return np.issubdtype(given.dtype, np.floating)


def _output(info: onnx.ValueInfoProto, outputs: Mapping[str, Array]) -> Any:
    """An array; or a list, or None."""
    if info.name in outputs:
        return outputs[info.name]
    names = (f"{info.name}[{place}]" for place in count())
    items = [outputs[name] for name in takewhile(outputs.__contains__, names)]
    return None if info.type.HasField("optional_type") and not items else items


class GradwireBackend(Backend):
    """The functions below as ONNX's class has them."""

    @classmethod
    def prepare(cls, model: onnx.ModelProto, device: str = "CPU", **_: Any) -> Prepared:
        """A model made ready; what it lacks is said when it is run."""
        _require_device(device)
        return Prepared(model)

    @classmethod
    def run_model(
        cls, model: onnx.ModelProto, inputs: Any, device: str = "CPU", **kwargs: Any
    ) -> tuple[Any, ...]:
        """Outputs of a model."""
        return cls.prepare(model, device, **kwargs).run(inputs)

    @classmethod
    def run_node(
        cls,
        node: onnx.NodeProto,
        inputs: Any,
        device: str = "CPU",
        outputs_info: Sequence[Any] | None = None,  # noqa: ARG003 -- ONNX's runner gives it
        **kwargs: Any,
    ) -> tuple[Any, ...]:
        """Outputs of one node, of the newest operator set unless `opset_version` says another."""
        names = list(dict.fromkeys(filter(None, node.input)))
        given = [_plain(each) for each in inputs]
        graph = onnx.helper.make_graph(
            [node],
            "node",
            [
                onnx.helper.make_value_info(name, _type_of(each))
                for name, each in zip(names, given, strict=True)
            ],
            [onnx.ValueInfoProto(name=name) for name in node.output if name],
        )
        version = kwargs.get("opset_version", OPERATOR_SET_VERSION)
        imports = [onnx.helper.make_opsetid(node.domain, version)]
        return cls.run_model(onnx.helper.make_model(graph, opset_imports=imports), given, device)

    @classmethod
    def supports_device(cls, device: str) -> bool:
        """Whether a device can be named; the server's is the CPU."""
        return device.split(":")[0] == "CPU"


def _require_device(device: str) -> None:
    if not GradwireBackend.supports_device(device):
        raise UnsupportedError("DEVICE_UNSUPPORTED", f"device {device!r} is not CPU")


prepare = GradwireBackend.prepare
run_model = GradwireBackend.run_model
run_node = GradwireBackend.run_node
supports_device = GradwireBackend.supports_device
is_compatible = GradwireBackend.is_compatible

__all__ = ["is_compatible", "prepare", "run_model", "run_node", "supports_device"]

if __name__ == "__main__":
    from gradwire.onnx.conformance import node_tests, outcomes, table

    print(table(outcomes(node_tests(), run_model)), end="")
