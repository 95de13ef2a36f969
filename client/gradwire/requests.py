"""Requests from what a program says, checked before they are sent; errors from what comes back."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import grpc
import numpy as np

from gradwire import tensors
from gradwire.builder import Graph, Handle, Leaf
from gradwire.errors import GradwireError, InvalidRequestError, error_for, nearest
from gradwire.payloads import LIFTED_BYTES, Buffer, Lifted, field
from gradwire.results import Answer, Parsed, Result, answer_of, decode_result, parse
from gradwire.segments import INLINE, Exchange, Request
from gradwire.v1 import service_pb2, tensor_pb2

#: What one message of many steps holds at most, about: enough that the message costs nothing.
STEPS_BYTES = 1 << 20
STEPS_COUNT = 256

_SIZES = re.compile(r"message larger than max \((\d+) vs\. (\d+)\)")  # gRPC's own refusal

#: False: none. True: all. Otherwise names, ids and handles.
Chosen = bool | Iterable[str | int | Handle]
#: Options of an evaluation, and what each of them is.
_OPTIONS = {
    "seeds": "{output: gradient}", "with_respect_to": "names", "values": "a choice",
    "gradients": "a choice", "modules": "names", "summary": "a truth", "batched": "names",
    "forward_only": "a truth",
}  # fmt: skip


def require_graph(graph: object) -> None:
    """GRAPH_INVALID where it is none."""
    if not isinstance(graph, Graph):
        raise InvalidRequestError(
            "GRAPH_INVALID",
            f"the graph is {_shown(graph)}; give a gw.Graph, or a saved one by its name or digest",
        )


def require_arguments(
    inputs: object, options: Mapping[str, Any], others: Iterable[str] = ()
) -> None:
    """Inputs and options of an evaluation are of their kinds.

    BINDING_INVALID, OPTION_UNKNOWN, OPTION_INVALID. `others` are options that are known elsewhere.
    """
    require_mapping("inputs", {} if inputs is None else inputs)
    for name, value in options.items():
        if name not in _OPTIONS:
            raise InvalidRequestError(
                "OPTION_UNKNOWN",
                f"there is no option {name!r}{nearest(name, (*_OPTIONS, 'inputs', *others))}",
            )
        match _OPTIONS[name]:
            case "names":
                require_names(name, value)
            case "a truth" if not isinstance(value, (bool, np.bool)):
                raise _not_of_kind(name, value, "give True or False")
            case "a choice" if not isinstance(value, (bool, Iterable)):
                raise _not_of_kind(name, value, "give True, or a list of names, ids and handles")
            case "{output: gradient}":
                require_mapping(name, {} if value is None else value, _OPTIONS[name])


def require_mapping(what: str, given: object, form: str = "{leaf: value}") -> None:
    """BINDING_INVALID where values do not come by name."""
    if not isinstance(given, Mapping):
        raise InvalidRequestError("BINDING_INVALID", f"{what}: is {_shown(given)}; give {form}")
    for name in given:
        if not isinstance(name, str):
            raise InvalidRequestError(
                "BINDING_INVALID", f"{what}: has the name {_shown(name)}; names are strings"
            )


def require_names(what: str, given: object) -> None:
    """OPTION_INVALID where it is neither a name nor a list of them."""
    if isinstance(given, str):
        return
    if not isinstance(given, Iterable) or isinstance(given, (Mapping, Handle)):
        raise _not_of_kind(what, given, "give a name, or a list of them")
    for name in given if isinstance(given, (list, tuple, set, frozenset)) else ():
        if not isinstance(name, str):
            raise _not_of_kind(what, name, "give names, such as 'x'")


def flat_vector(x: object) -> tensors.Array:
    """A vector of floats, from numbers of any kind (TENSOR_INVALID)."""
    if type(x) is np.ndarray and x.dtype.kind == "f":  # of which loops have no time to lose
        return x
    found = tensors.raw("x", x)
    if found.dtype.kind == "c":
        raise InvalidRequestError("TENSOR_INVALID", f"x: is {found.dtype}; give real numbers")
    return found.astype(np.float64) if found.dtype.kind in "biu" else found


def _not_of_kind(what: str, value: object, instead: str) -> InvalidRequestError:
    return InvalidRequestError("OPTION_INVALID", f"{what}: is {_shown(value)}; {instead}")


def _shown(value: object) -> str:
    """A value in a message: itself where it is short, else its type."""
    text = repr(value)
    return text if len(text) <= 40 and "\n" not in text else f"a {type(value).__name__}"


def source(graph: Graph, digest: bytes = b"") -> service_pb2.GraphSource:
    """The graph of a request; the digest, where the server has it."""
    if digest:
        return service_pb2.GraphSource(digest=digest)
    return service_pb2.GraphSource(graph=graph.to_bytes())


class Written(NamedTuple):
    """A request: its message, the bindings in it, and its bytes, the message's first."""

    message: Request
    bindings: Sequence[service_pb2.Binding]
    pieces: list[Buffer]
    large: Mapping[int, str]  # pieces that are the elements of a leaf


def evaluate_request(
    graph: Graph,
    inputs: Mapping[str, Any] | None,
    options: Mapping[str, Any],
    exchange: Exchange = INLINE,
    digest: bytes = b"",
) -> Written:
    """An EvaluateRequest: large arrays, and the graph, are copied once, into its bytes.

    With a digest, the server has the graph already.
    """
    large: list[tensors.Array] = []
    message = service_pb2.EvaluateRequest(
        evaluation=evaluation(graph, inputs, exchange=exchange, apart=large, **options)
    )
    exchange.offer(message)
    behind: list[Buffer] = []
    if digest:
        message.graph.digest = digest
    else:
        behind += _inside((1, 1), b"", graph.to_bytes())
    found = message.evaluation.bindings
    return _written(message, found, behind, large, (2, 1))


def step_request(
    graph: Graph,
    inputs: Mapping[str, Any],
    batched: Sequence[str],
    exchange: Exchange = INLINE,
    *,
    forward_only: bool = False,
) -> Written:
    """A SessionRequest that is a step, without its id: large arrays are copied once."""
    large: list[tensors.Array] = []
    message = service_pb2.SessionRequest(step=service_pb2.Step(forward_only=forward_only))
    _bind(message.step.bindings, _bindable(graph), inputs, batched, exchange, large)
    exchange.offer(message)
    return _written(message, message.step.bindings, [], large, (3, 1))


def packed_evaluation(graph: Graph, digest: bytes, data: Buffer) -> Iterable[Buffer]:
    """The pieces of an EvaluateRequest at packed numbers."""
    if digest:
        yield service_pb2.EvaluateRequest(graph=source(graph, digest)).SerializeToString()
    else:
        yield from _inside((1, 1), b"", graph.to_bytes())
    yield from _inside((2, 8), field(2, len(data)), data)


def packed_step(data: Buffer) -> Iterable[Buffer]:
    """The pieces of a SessionRequest that is a step at packed numbers, without its id."""
    return _inside((3, 3), b"", data)


def packed_steps(rows: Sequence[Buffer]) -> Iterator[bytes]:
    """Many such steps in few messages, as `steps`."""
    most = max(1, min(STEPS_COUNT, STEPS_BYTES // (1 + max(map(len, rows), default=0))))
    for first in range(0, len(rows), most):
        request = service_pb2.SessionRequest()
        for row in rows[first : first + most]:
            request.steps.steps.add(packed=bytes(row))
        yield request.SerializeToString()


def open_request(graph: Graph, digest: bytes, evaluation: service_pb2.Evaluation) -> bytes:
    """A SessionRequest that opens the session, without its id."""
    action = service_pb2.Open(graph=source(graph, digest), evaluation=evaluation)
    return service_pb2.SessionRequest(open=action).SerializeToString()


def backward_request(graph: Graph, seeds: Mapping[str, Any], exchange: Exchange) -> bytes:
    """A SessionRequest for a backward pass, without its id."""
    backward = service_pb2.Backward(seeds=seed_messages(graph, seeds, exchange))
    request = service_pb2.SessionRequest(backward=backward)
    exchange.offer(request)
    return request.SerializeToString()


def _written(
    message: Request,
    found: Any,
    behind: list[Buffer],
    large: list[tensors.Array],
    numbers: tuple[int, int],
) -> Written:
    """The request, its bindings that lack data taken out of it, and written with that behind.

    Fields that follow are merged into those before: a rule of protobuf's encoding.
    """
    leaves = {}
    for binding in [each for each in found if each.tensor.WhichOneof("content") is None]:
        data = tensors.elements(large.pop(0))
        tensor = binding.tensor.SerializeToString() + field(3, len(data))
        binding.ClearField("tensor")
        head = binding.SerializeToString() + field(2, len(tensor) + len(data)) + tensor
        behind += _inside(numbers, head, data)
        leaves[len(behind)] = binding.leaf  # the message comes before them
        found.remove(binding)
    return Written(message, found, [message.SerializeToString(), *behind], leaves)


def _inside(numbers: tuple[int, int], head: bytes, data: Buffer) -> tuple[Buffer, ...]:
    """A message that begins with a head and ends with data, in a field of a field."""
    inner = field(numbers[1], len(head) + len(data))
    return field(numbers[0], len(inner) + len(head) + len(data)), inner, head, data


def evaluation(
    graph: Graph,
    inputs: Mapping[str, Any] | None = None,
    *,
    seeds: Mapping[str, Any] | None = None,
    with_respect_to: Sequence[str] = (),
    values: Chosen = False,
    gradients: Chosen = False,
    modules: str | Sequence[str] = (),
    summary: bool = False,
    batched: Sequence[str] = (),
    forward_only: bool = False,
    complete: bool = True,
    exchange: Exchange = INLINE,
    apart: list[tensors.Array] | None = None,
    packed: Collection[str] = (),
) -> service_pb2.Evaluation:
    """An Evaluation message (LEAF_UNKNOWN, OUTPUT_UNKNOWN, DATA_TYPE_MISMATCH, ...).

    It is complete unless a session opens with it: then inputs may come later. Large arrays that
    the exchange does not take are put `apart`, if there is such a list, and their bindings lack
    data. `packed` leaves get their numbers elsewhere.
    """
    with_respect_to, batched = as_names(with_respect_to), as_names(batched)
    modules = as_names(modules)
    leaves = _bindable(graph)
    _require_leaves(leaves, (*(inputs or {}), *batched), with_respect_to)
    if forward_only and (seeds or with_respect_to or gradients):
        raise InvalidRequestError(
            "SELECTION_INVALID",
            "forward_only is set, so seeds, with_respect_to and gradients must be empty",
        )
    if complete:
        _require_inputs(graph, {*(inputs or {}), *packed})
    message = service_pb2.Evaluation(forward_only=forward_only, with_respect_to=with_respect_to)
    _bind(message.bindings, leaves, inputs or {}, batched, exchange, apart)
    message.seeds.extend(seed_messages(graph, seeds or {}, exchange))
    if batched:
        message.batch_size = _rows(inputs or {}, batched)
    _choose(graph, message.values, values, modules, summary)
    _choose(graph, message.gradients, gradients, () if forward_only else modules, summary)
    return message


def as_names(given: str | Iterable[str]) -> Sequence[str]:
    """One name, or several, as several."""
    return (given,) if isinstance(given, str) else tuple(given)


def _bindable(graph: Graph) -> dict[str, Leaf]:
    """The leaves that a request may give values to, by name."""
    return {leaf.name: leaf for leaf in graph.leaves if leaf.kind != "constant"}


def _require_leaves(
    leaves: Mapping[str, Leaf], names: Iterable[str], with_respect_to: Iterable[str]
) -> None:
    for name in (*names, *with_respect_to):
        require_leaf(name, leaves)
    for name in with_respect_to:
        leaf = leaves[name]
        if leaf.dtype not in tensors.FLOATS:
            raise InvalidRequestError(
                "NOT_DIFFERENTIABLE", f"{leaf.kind} {name!r}: is {leaf.dtype} and has no gradient"
            )


def require_leaf(name: str, leaves: Collection[str]) -> None:
    """LEAF_UNKNOWN where a name is not among those of inputs and parameters."""
    if name not in leaves:
        raise InvalidRequestError(
            "LEAF_UNKNOWN", f"there is no input or parameter {name!r}{nearest(name, leaves)}"
        )


def _require_inputs(graph: Graph, inputs: Collection[str]) -> None:
    for leaf in graph.leaves:
        if leaf.value is None and leaf.name not in inputs:
            axes = ", ".join(map(str, leaf.axes)) + ("," if len(leaf.axes) == 1 else "")
            raise InvalidRequestError(
                "INPUT_MISSING",
                f"{leaf.kind} {leaf.name!r}: has no value; bind a {leaf.dtype} tensor of shape "
                f"({axes})",
            )


def _bind(
    bindings: Any,
    leaves: Mapping[str, Leaf],
    inputs: Mapping[str, Any],
    batched: Sequence[str],
    exchange: Exchange,
    apart: list[tensors.Array] | None = None,
) -> None:
    """Adds arrays, numbers or lists for leaves to a message, in their declared data types."""
    require_mapping("a point", inputs)
    for name, given in inputs.items():
        require_leaf(name, leaves)
        leaf, is_batched = leaves[name], name in batched
        array = as_dtype(f"{leaf.kind} {name!r}", given, leaf.dtype)
        row = array.shape[1:] if is_batched else array.shape
        if row != leaf.axes:
            _require_shape(leaf, row, is_batched)
        binding = bindings.add(leaf=name)
        if is_batched:
            binding.batched = True
        tensor = exchange.put(array)
        if tensor is not None:
            binding.tensor.CopyFrom(tensor)
        elif apart is not None and array.nbytes >= LIFTED_BYTES:
            apart.append(array)
            tensors.write_type(array, binding.tensor)
        else:
            tensors.write(array, binding.tensor)


def _require_shape(leaf: Leaf, row: tuple[int, ...], is_batched: bool) -> None:
    """SHAPE_MISMATCH where sizes differ from those that are declared; a symbol takes any."""
    if len(row) == len(leaf.axes) and all(
        isinstance(axis, str) or axis == size for axis, size in zip(leaf.axes, row, strict=True)
    ):
        return
    axes = ", ".join(map(str, leaf.axes)) + ("," if len(leaf.axes) == 1 else "")
    raise InvalidRequestError(
        "SHAPE_MISMATCH",
        f"{leaf.kind} {leaf.name!r}: declared with shape ({axes}) but bound to shape {row}"
        + (" a row" if is_batched else ""),
    )


def steps(
    graph: Graph,
    points: Iterable[Mapping[str, Any]],
    batched: Sequence[str],
    exchanges: Iterator[Exchange],
) -> Iterator[tuple[service_pb2.SessionRequest, Exchange]]:
    """Many points in few messages, each of about STEPS_BYTES and STEPS_COUNT at most."""
    exchange, request, size = next(exchanges), service_pb2.SessionRequest(), 0
    leaves = _bindable(graph)
    for point in points:
        step = request.steps.steps.add()
        _bind(step.bindings, leaves, point, batched, exchange)
        size += step.ByteSize()
        if size + exchange.sent_bytes >= STEPS_BYTES or len(request.steps.steps) >= STEPS_COUNT:
            exchange.offer(request)
            yield request, exchange
            exchange, request, size = next(exchanges), service_pb2.SessionRequest(), 0
    if request.steps.steps:
        exchange.offer(request)
        yield request, exchange


def session_response(data: bytes, graph: Graph) -> Parsed:
    """A session's answer; its error is raised."""
    parsed = parse(service_pb2.SessionResponse, data)
    if parsed.message.HasField("error"):
        raise step_error(parsed.message.error, graph)
    return parsed


def session_answer(data: bytes, graph: Graph, exchange: Exchange) -> Answer:
    """The result that a session answers with; its error is raised."""
    return answer_of(session_response(data, graph), graph, exchange)


def results(answers: Iterable[tuple[bytes, Exchange]], graph: Graph) -> list[Result]:
    """The results of many steps; the first error, where there is one."""
    return [
        decode_result(result, graph, exchange, payloads)
        for result, payloads, exchange in _outcomes(answers, graph)
    ]


def packed_answer(data: bytes) -> Buffer:
    """Of an evaluation at packed numbers."""
    message, payloads = parse(service_pb2.EvaluateResponse, data)
    return payloads.found(message.result.packed)


def packed_steps_answers(answers: Iterable[bytes], graph: Graph) -> list[Buffer]:
    """Of many steps at packed numbers; the first error is raised."""
    found = _outcomes(((data, INLINE) for data in answers), graph)
    return [payloads.found(result.packed) for result, payloads, _ in found]


def packed_step_answer(data: bytes, graph: Graph) -> Buffer:
    """Of a step at packed numbers; its error is raised."""
    message, payloads = session_response(data, graph)
    return payloads.found(message.result.packed)


def _outcomes(
    answers: Iterable[tuple[bytes, Exchange]], graph: Graph
) -> Iterator[tuple[service_pb2.Result, Lifted, Exchange]]:
    number = 0
    for data, exchange in answers:
        message, payloads = session_response(data, graph)
        for outcome in message.outcomes.outcomes:
            if outcome.HasField("error"):
                raise step_error(outcome.error, graph, f"step {number}: ")
            yield outcome.result, payloads, exchange
            number += 1


def seed_messages(
    graph: Graph, seeds: Mapping[str, Any], exchange: Exchange = INLINE
) -> list[tensor_pb2.NamedTensor]:
    """Seeds by the output's name, in the output's data type (OUTPUT_UNKNOWN)."""
    require_mapping("seeds", seeds, _OPTIONS["seeds"])
    found = []
    for name, given in seeds.items():
        if name not in graph.outputs:
            raise InvalidRequestError(
                "OUTPUT_UNKNOWN",
                f"there is no output {name!r} to seed{nearest(name, graph.outputs)}",
            )
        array = as_dtype(f"seed of output {name!r}", given, graph.output_dtype(name))
        tensor = exchange.put(array)
        if tensor is None:
            tensor = tensors.encode(array)
        found.append(tensor_pb2.NamedTensor(name=name, tensor=tensor))
    return found


def error_from(call: Any, graph: Graph | None, target: str) -> GradwireError:
    """The error that a failed call stands for."""
    from google.rpc import error_details_pb2
    from grpc_status import rpc_status

    if isinstance(call, grpc.aio.AioRpcError):
        status = _aio_status(call)
    else:
        status = rpc_status.from_call(call)
    code, message = call.code().name, call.details() or ""
    reason, facts = "", {}
    if code == "UNAVAILABLE" and status is None:
        message = f"no server answers at {target}; start one with: gradwire serve"
    elif code == "DEADLINE_EXCEEDED":
        message = f"the timeout passed before {target} answered; give a longer one"
    elif code == "CANCELLED":
        message = f"the call to {target} was cancelled"
    elif code == "RESOURCE_EXHAUSTED" and (sizes := _SIZES.search(message)):
        message = (
            f"bytes of the message: {sizes[1]} is over the limit of {sizes[2]}; send less in one "
            "message, or start the server with a larger --max-message-bytes"
        )
        reason, flag = "LIMIT_EXCEEDED", "max-message-bytes"
        facts = {"limit": flag, "value": sizes[2], "actual": sizes[1], "flag": f"--{flag}"}
    for detail in status.details if status is not None else ():
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info):
            reason, facts = info.reason, dict(info.metadata)
    return error_for(code, reason, at_line(message, facts, graph), facts)


def step_error(error: service_pb2.Error, graph: Graph, place: str = "") -> GradwireError:
    """The error of one request of a session."""
    facts = {fact.key: fact.value for fact in error.facts}
    names = {status.value[0]: status.name for status in grpc.StatusCode}
    return error_for(
        names.get(error.code, "UNKNOWN"),
        error.reason,
        place + at_line(error.message, facts, graph),
        facts,
    )


def at_line(message: str, facts: Mapping[str, str], graph: Graph | None) -> str:
    """The message, with the line of the program that made the node it is about."""
    node, value_id = facts.get("node_index", ""), facts.get("value_id", "")
    line = None
    if graph is not None and graph.modules and value_id.isdigit():
        line = graph.line_of(int(value_id))
    elif graph is not None and node.isdigit():
        line = graph.made_at(int(node))
    return f"{message} (made at {line})" if line else message


def _aio_status(call: grpc.aio.AioRpcError) -> Any:
    from google.rpc import status_pb2

    for key, value in call.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            return status_pb2.Status.FromString(value)
    return None


def as_dtype(what: str, given: Any, dtype: str) -> tensors.Array:
    """Numbers and lists take the declared type; an array must have it."""
    given = tensors.recognized(given, dtype)
    if isinstance(given, (np.ndarray, np.generic)) and given.dtype != tensors.KINDS[dtype]:
        raise InvalidRequestError(
            "DATA_TYPE_MISMATCH",
            f"{what}: declared as {dtype} but bound to {given.dtype}; convert the array",
        )
    return tensors.from_value(what, given, dtype)


def _rows(inputs: Mapping[str, Any], batched: Sequence[str]) -> int:
    for name in batched:
        if name not in inputs:
            raise InvalidRequestError(
                "BINDING_INVALID", f"{name!r} is batched but not bound; give it one value a row"
            )
    sizes = {np.shape(inputs[name])[0] if np.ndim(inputs[name]) else 0 for name in batched}
    if len(sizes) != 1 or 0 in sizes:
        raise InvalidRequestError(
            "BINDING_INVALID", f"batched inputs need one equal leading axis but have {sizes}"
        )
    return int(sizes.pop())


def _choose(
    graph: Graph,
    message: service_pb2.Selection,
    chosen: str | Chosen,
    modules: Sequence[str],
    summary: bool,
) -> None:
    """Fills in a selection (VALUE_UNKNOWN)."""
    _require_modules(graph, modules)
    if chosen is False and not modules:
        return
    if summary:
        message.detail = service_pb2.DETAIL_SUMMARY
    if chosen is True:
        message.all = True  # which has those inside of modules, too
        return
    message.modules.extend(modules)
    if chosen is False:
        return
    for each in (chosen,) if isinstance(chosen, str) else chosen:
        if isinstance(each, Handle):
            message.value_ids.append(graph.id_of(each))
        elif isinstance(each, str):
            if graph.find(each) is None:
                near = nearest(each, graph.ids_by_name())
                raise InvalidRequestError("VALUE_UNKNOWN", f"there is no value {each!r}{near}")
            message.names.append(each)
        elif isinstance(each, bool) or not isinstance(each, (int, np.integer)):
            raise InvalidRequestError(
                "VALUE_UNKNOWN", f"there is no value {_shown(each)}; give names, ids or handles"
            )
        elif not 1 <= each <= graph.value_count:
            raise InvalidRequestError(
                "VALUE_UNKNOWN",
                f"there is no value {each}; ids are from 1 to {graph.value_count}",
            )
        else:
            message.value_ids.append(each)


def _require_modules(graph: Graph, paths: Sequence[str]) -> None:
    for path in paths:
        if graph.find_module(path) is None:
            raise InvalidRequestError(
                "VALUE_UNKNOWN",
                f"no module is used at {path!r}; the path of a use is the name of its first value",
            )
