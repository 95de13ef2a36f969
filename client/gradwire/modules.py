"""Functions of handles as modules: named sub-circuits, which may have gradients of their own.

@gw.module
def sigmoid(x):
    return 1 / (1 + gw.exp(-x))

@sigmoid.gradient
def sigmoid_gradient(x, out, grad):  # inputs, then outputs, then output gradients
    return (1 - out) * out * grad    # one for each input; None: not differentiable
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import update_wrapper
from typing import Any

import numpy as np

from gradwire import tensors
from gradwire.builder import Graph, Handle, Module
from gradwire.errors import GradwireError, InvalidRequestError

#: An input that a function is given, and where among its arguments.
_Slot = tuple[str, int | str | None]


def module(function: Callable[..., Any]) -> ModuleFunction:
    """Makes a function of handles a module, which graphs use like an operator.

    It is run once for each graph and each combination of data types and of arguments that are not
    handles or arrays; those are fixed inside. Arrays become constants of the graph. It returns a
    handle, or a tuple of handles. The name of a use, as of `layer(x).named("layer1")`, is the path
    of the values inside: "layer1/scores".
    """
    return ModuleFunction(function)


def _module_of(function: Callable[..., Any], gradient: Callable[..., Any] | None) -> ModuleFunction:
    found = ModuleFunction(function)
    if gradient is not None:
        found.gradient(gradient)
    return found


class ModuleFunction:
    """A function that adds one node, which uses a module, to the graph of its handles."""

    def __init__(self, function: Callable[..., Any]) -> None:
        update_wrapper(self, function)
        self.name: str = function.__name__
        self._function = function
        self._signature = inspect.signature(function)
        self._gradient: Callable[..., Any] | None = None
        self._used = False

    def __reduce__(self) -> str | tuple[Any, ...]:
        """By name where it can be imported, else by its functions, which cloudpickle can send."""
        home = self._function.__module__
        is_found = getattr(sys.modules.get(home), self.name, None) is self
        if is_found and home != "__main__":
            return self.name
        return _module_of, (self._function, self._gradient)

    def gradient(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Gives the module its own gradient, used instead of that of what is inside.

        The function takes the module's inputs, its outputs and the gradients of these, as handles;
        and arguments of the module that are not handles, if it has parameters of their names. It
        returns one handle, of the input's data type and shape, for each input, or None where the
        module is not differentiable. (MODULE_INVALID where the module was used before.)
        """
        if self._used:
            raise InvalidRequestError(
                "MODULE_INVALID",
                f"module {self.name!r}: is used already, without this gradient; define the "
                "gradient right after the module",
            )
        self._gradient = function
        return function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        bound = self._signature.bind(*args, **kwargs)
        bound.apply_defaults()
        handles = [each for _, each in _arguments(bound) if isinstance(each, Handle)]
        if not handles:
            raise TypeError(
                f"module {self.name!r} needs a handle; make one with graph.input or graph.constant"
            )
        graph = handles[0].graph
        inputs = {
            slot: graph.constant(each) if isinstance(each, np.ndarray) else each
            for slot, each in _arguments(bound)
            if isinstance(each, (Handle, np.ndarray))
        }
        for handle in inputs.values():
            graph._own(handle)
        self._used = True
        made = self._made(graph, bound, inputs)
        found = graph.apply_module(made.number, [*inputs.values()], made.dtypes)
        return found[0] if made.is_one else found

    def _made(
        self, graph: Graph, bound: inspect.BoundArguments, inputs: dict[_Slot, Handle]
    ) -> _Made:
        """The module for these arguments: the one that the graph has, or a new one."""
        shared = graph._shared
        static = [(slot, _key(each)) for slot, each in _arguments(bound) if slot not in inputs]
        key = self, tuple(static), tuple((slot, each.dtype) for slot, each in inputs.items())
        if key not in shared.made:
            shared.made[key] = None  # while it is being made
            rows, modules = len(shared.table.rows), len(shared.modules)
            try:
                shared.made[key] = self._traced(graph, bound, inputs)
            except BaseException:
                shared.forget(rows, modules)
                for each, made in [*shared.made.items()]:
                    if made is None or made.number >= modules:
                        del shared.made[each]
                raise
        found: _Made | None = shared.made[key]
        if found is None:
            raise self._invalid("uses itself; modules use only modules that are made before them")
        return found

    def _traced(
        self, graph: Graph, bound: inspect.BoundArguments, inputs: dict[_Slot, Handle]
    ) -> _Made:
        shared = graph._shared
        taken = {each.name for each in shared.modules} | {each._module for each in shared.open}
        name = next(each for each in _numbered(self.name) if each not in taken)
        circuit = shared.circuit(name)
        with shared.opened(circuit):
            given = {
                slot: circuit.module_input(_name(slot), each.dtype) for slot, each in inputs.items()
            }
            arguments = _replaced(bound, given)
            result = self._function(*arguments.args, **arguments.kwargs)
            outputs = self._outputs(circuit, result)
            names = ["out"] if len(outputs) == 1 else [f"out{each}" for each in range(len(outputs))]
            for label, handle in zip(names, outputs, strict=True):
                circuit.output(label, handle)
        gradient = None
        if self._gradient is not None:
            gradient = self._traced_gradient(name, graph, bound, given, outputs)
        shared.add_module(Module(name, circuit, gradient))
        is_one = isinstance(result, Handle)
        return _Made(len(shared.modules) - 1, tuple(each.dtype for each in outputs), is_one)

    def _outputs(self, circuit: Graph, result: Any) -> list[Handle]:
        """What the function returned, as handles of its circuit."""
        outputs = [*result] if isinstance(result, (tuple, list)) else [result]
        for each in outputs:
            if not isinstance(each, Handle):
                raise self._invalid(
                    f"returns {_short(each)}; return a handle, or a tuple of handles"
                )
            circuit._own(each)
        if not outputs:
            raise self._invalid("returns nothing; return a handle, or a tuple of handles")
        if self._gradient is not None:
            for each in outputs:
                if each.dtype not in tensors.FLOATS:
                    raise self._invalid(
                        f"has its own gradient, so its outputs must be floating, but {each!r} is "
                        "one of them; return it from another module"
                    )
        return outputs

    def _traced_gradient(
        self,
        name: str,
        graph: Graph,
        bound: inspect.BoundArguments,
        inputs: dict[_Slot, Handle],
        outputs: list[Handle],
    ) -> Graph:
        shared = graph._shared
        assert self._gradient is not None
        signature = inspect.signature(self._gradient)
        static = {
            label: each
            for label, each in bound.arguments.items()
            if not any(slot[0] == label for slot in inputs) and _by_name(signature, label)
        }
        dtypes = [each.dtype for each in (*inputs.values(), *outputs, *outputs)]
        try:
            called = signature.bind(*dtypes, **static)
        except TypeError as failure:
            counts = f"{len(inputs)} inputs, {len(outputs)} outputs and {len(outputs)}"
            raise self._invalid(
                f"its gradient {_called(self._gradient)} cannot be called with {counts} output "
                f"gradients: {failure}"
            ) from None
        circuit = shared.circuit(name)
        with shared.opened(circuit):
            given = {
                slot: circuit.module_input(_name(slot), dtype)
                for (slot, _), dtype in zip(_arguments(called), dtypes, strict=False)
            }
            arguments = _replaced(called, given)
            result = self._gradient(*arguments.args, **arguments.kwargs)
            returned = self._input_gradients(circuit, result, inputs)
            for slot, handle in zip(inputs, returned, strict=True):
                circuit._circuit.outputs[_name(slot)] = [] if handle is None else [handle.key]
        return circuit

    def _input_gradients(
        self, circuit: Graph, result: Any, inputs: dict[_Slot, Handle]
    ) -> list[Handle | None]:
        """What the gradient function returned: one handle for each input, or None."""
        returned = [*result] if isinstance(result, (tuple, list)) else [result]
        names = ", ".join(map(_name, inputs))
        if len(returned) != len(inputs):
            raise self._invalid(
                f"its gradient returns {len(returned)} results; return {len(inputs)}, the "
                f"gradients of {names}, each a handle, or None where it is not differentiable"
            )
        for (slot, handle), each in zip(inputs.items(), returned, strict=True):
            what = f"the gradient of input {_name(slot)!r}"
            if each is None:
                continue
            if not isinstance(each, Handle):
                raise self._invalid(
                    f"{what} is {_short(each)}; return a handle, or None where it is not "
                    "differentiable"
                )
            circuit._own(each)
            if handle.dtype not in tensors.FLOATS:
                raise self._invalid(f"{what} must be None, since that is {handle.dtype}")
            if each.dtype != handle.dtype:
                raise self._invalid(
                    f"{what} is {each.dtype}, but the input is {handle.dtype}; Cast it"
                )
        return returned

    def _invalid(self, fault: str) -> GradwireError:
        return InvalidRequestError("MODULE_INVALID", f"module {self.name!r}: {fault}")


@dataclass(frozen=True)
class _Made:
    """A module of a graph, by its position."""

    number: int
    dtypes: tuple[str, ...]
    is_one: bool  # whether its function returned a handle by itself


def _arguments(bound: inspect.BoundArguments) -> Iterator[tuple[_Slot, Any]]:
    """Every argument, and where it is."""
    for name, value in bound.arguments.items():
        match bound.signature.parameters[name].kind:
            case inspect.Parameter.VAR_POSITIONAL:
                yield from (((name, place), each) for place, each in enumerate(value))
            case inspect.Parameter.VAR_KEYWORD:
                yield from (((name, key), each) for key, each in value.items())
            case _:
                yield (name, None), value


def _replaced(bound: inspect.BoundArguments, given: dict[_Slot, Handle]) -> inspect.BoundArguments:
    """The same arguments, with other handles."""
    arguments: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        match bound.signature.parameters[name].kind:
            case inspect.Parameter.VAR_POSITIONAL:
                arguments[name] = tuple(given.get((name, at), v) for at, v in enumerate(value))
            case inspect.Parameter.VAR_KEYWORD:
                arguments[name] = {key: given.get((name, key), v) for key, v in value.items()}
            case _:
                arguments[name] = given.get((name, None), value)
    return inspect.BoundArguments(bound.signature, arguments)


def _name(slot: _Slot) -> str:
    """What an input is called: x; xs0 of *xs; key of **others."""
    name, place = slot
    return name if place is None else f"{name}{place}" if isinstance(place, int) else place


def _by_name(signature: inspect.Signature, name: str) -> bool:
    parameter = signature.parameters.get(name)
    return parameter is not None and parameter.kind in (
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        inspect.Parameter.KEYWORD_ONLY,
    )


def _key(value: Any) -> Any:
    """What tells an argument that is fixed inside from another one."""
    if isinstance(value, (tuple, list)):
        if any(isinstance(each, (Handle, np.ndarray)) for each in value):
            raise TypeError("a module takes handles as arguments of their own, or as *arguments")
        return type(value), tuple(map(_key, value))
    hash(value)  # TypeError, as for a key of a dictionary
    return tensors.key_of(value)


def _numbered(name: str) -> Iterator[str]:
    """A name, and others like it."""
    yield name
    number = 2
    while True:
        yield f"{name}_{number}"
        number += 1


def _called(function: Callable[..., Any]) -> str:
    return f"{function.__name__}{inspect.signature(function)}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
