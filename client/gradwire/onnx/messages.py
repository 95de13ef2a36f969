"""ONNX's messages as what they mean here: whole models, tensors, attributes. None is trusted."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from google.protobuf.message import DecodeError

from gradwire import tensors
from gradwire.errors import FileError, InvalidRequestError, UnsupportedError
from gradwire.file_kinds import kind_of
from gradwire.onnx.external import load_external
from gradwire.onnx.values import MOST_ELEMENTS
from gradwire.tensors import Array

_DEFAULT_DOMAINS = ("", "ai.onnx")
_KINDS = onnx.AttributeProto
#: How many elements ONNX puts into a byte, by data type.
PACKED = {"float4_e2m1fn": 2, "int4": 2, "uint4": 2, "int2": 4, "uint2": 4}
_LATEST = 2**31 - 1  # as ONNX counts operator sets
_EQUATION = re.compile(r"([A-Za-z,]|\.\.\.)*(->([A-Za-z]|\.\.\.)*)?")

#: A path, a serialized model, or the message.
Model = str | os.PathLike[str] | bytes | onnx.ModelProto


def load_model(model: Model) -> onnx.ModelProto:
    """The message of a model (FILE_INVALID)."""
    if isinstance(model, onnx.ModelProto):
        _check_text(model)
        return model
    place = "the model" if isinstance(model, bytes) else str(os.fspath(model))
    try:
        data = model if isinstance(model, bytes) else Path(model).read_bytes()
        found = onnx.ModelProto.FromString(data)
    except OSError as failure:
        reason = failure.strerror or str(failure)
        raise FileError("FILE_INVALID", f"{place}: cannot be read: {reason}") from None
    except DecodeError:
        raise _no_model(place, data) from None
    if not found.HasField("graph"):  # an empty file is a message too, and a short text may be one
        raise _no_model(place, data)
    _check_text(found)
    if not isinstance(model, bytes):
        load_external(found, Path(model).parent)
    return found


def _no_model(place: str, data: bytes) -> FileError:
    kind = kind_of(data[:64])
    if not data:
        what = "is no ONNX model: it is empty"
    elif kind.startswith("an ONNX model"):
        what = "is an ONNX model that is cut or damaged; get it again from where it was written"
    else:
        what = f"is no ONNX model: it is {kind}"
    return FileError("FILE_INVALID", f"{place}: {what}")


def _check_text(model: onnx.ModelProto) -> None:
    """Names are text, which protobuf does not check here (MODEL_INVALID)."""
    nodes = [*model.graph.node, *(node for each in model.functions for node in each.node)]
    graphs = [model.graph]
    for function in model.functions:
        _require_text(function.name, function.domain, function.overload)
        _require_text(*function.input, *function.output, *function.attribute)
        _require_text(*(each.domain for each in function.opset_import))
        for attribute in function.attribute_proto:
            _require_text(attribute.name)
            if attribute.HasField("g"):
                graphs.append(attribute.g)
    _require_text(*(each.domain for each in model.opset_import))
    while nodes or graphs:
        if graphs:
            graph = graphs.pop()
            nodes.extend(graph.node)
            _require_text(graph.name)
            for info in (*graph.input, *graph.output):
                dims = info.type.tensor_type.shape.dim
                _require_text(info.name, *(dim.dim_param for dim in dims))
            _require_text(*(tensor.name for tensor in graph.initializer))
            _require_text(*(sparse.values.name for sparse in graph.sparse_initializer))
            continue
        node = nodes.pop()
        _require_text(node.name, node.op_type, node.domain, node.overload)
        _require_text(*node.input, *node.output)
        for attribute in node.attribute:
            _require_text(attribute.name, attribute.ref_attr_name)
            if attribute.HasField("g"):
                graphs.append(attribute.g)


def _require_text(*names: str) -> None:
    for name in names:
        if not isinstance(name, str):  # protobuf yields bytes that are no UTF-8 as they are
            raise InvalidRequestError("MODEL_INVALID", f"the name {name!r} is not UTF-8")


def domain_of(name: str) -> str:
    """A domain, by the shorter of its names."""
    return "" if name in _DEFAULT_DOMAINS else name


def versions_of(imports: Sequence[onnx.OperatorSetIdProto]) -> dict[str, int]:
    """Operator sets by domain (MODEL_INVALID)."""
    for each in imports:
        if not 0 <= each.version <= _LATEST:
            raise InvalidRequestError(
                "MODEL_INVALID",
                f"imports operator set {each.version} of {each.domain or 'ai.onnx'!r}, which "
                "cannot be: they are counted from 1",
            )
    return {domain_of(each.domain): each.version for each in imports}


def tensor_dtype(kind: onnx.TypeProto) -> str:
    """Data type of a tensor (DATA_TYPE_UNSUPPORTED for other kinds of values)."""
    which = kind.WhichOneof("value")
    if which != "tensor_type":
        name = (which or "value_type").removesuffix("_type")
        raise UnsupportedError(
            "DATA_TYPE_UNSUPPORTED",
            f"is of kind {name}, but gate graphs have only tensors",
            {"data_type": name},
        )
    return dtype_of(kind.tensor_type.elem_type)


class Axis(NamedTuple):
    """An axis of an input: its size or symbol, and every name that `sizes` may call it by."""

    extent: int | str
    names: tuple[str, ...] = ()

    def may_be(self, wanted: int | str | None) -> bool:
        """Whether what `shapes` says of it agrees with the model."""
        if isinstance(wanted, int) and wanted < 0:
            return False
        return not isinstance(self.extent, int) or wanted in (None, self.extent)

    def known_as(self, wanted: int | str | None) -> Axis:
        """The axis with what `shapes` says of it."""
        if wanted is None or isinstance(self.extent, int):
            return self
        return Axis(wanted, (*self.names, wanted) if isinstance(wanted, str) else self.names)


def axes_of(
    info: onnx.ValueInfoProto, shape: Sequence[int | str | None] | None = None
) -> list[Axis]:
    """Axes of an input, of which a shape may say more than the model (SHAPE_MISMATCH).

    Names such as "?", "-1" or "None", which exporters write for any unknown axis, are no symbols:
    those axes are called "x.0" after the input.
    """
    kind = info.type.tensor_type
    if shape is None and not kind.HasField("shape"):
        raise UnsupportedError(
            "SHAPE_MISMATCH",
            f"its number of axes is not declared; give its shape as shapes={{{info.name!r}: ...}}, "
            "a size, a symbol or None for each axis (gradwire convert "
            f"--shape {info.name}=1,3,?,?), or its elements as fixed={{{info.name!r}: ...}}",
        )
    declared = [_axis_of(info.name, place, dim) for place, dim in enumerate(kind.shape.dim)]
    if shape is None:
        return declared
    if not kind.HasField("shape"):
        unknown = onnx.TensorShapeProto.Dimension()
        declared = [_axis_of(info.name, place, unknown) for place in range(len(shape))]
    pairs = [*zip(declared, shape, strict=False)]
    if len(shape) != len(declared) or not all(axis.may_be(wanted) for axis, wanted in pairs):
        sizes = ", ".join(str(axis.extent) for axis in declared)
        raise InvalidRequestError(
            "SHAPE_MISMATCH", f"is declared with shape ({sizes}), but shapes gives {tuple(shape)}"
        )
    return [axis.known_as(wanted) for axis, wanted in pairs]


def _axis_of(name: str, place: int, dim: onnx.TensorShapeProto.Dimension) -> Axis:
    if dim.HasField("dim_value") and dim.dim_value >= 0:
        return Axis(dim.dim_value)
    own = f"{name}.{place}"
    if not dim.dim_param:
        return Axis(own, (own,))
    if dim.dim_param.isidentifier() and dim.dim_param != "None":
        return Axis(dim.dim_param, (dim.dim_param,))
    return Axis(own, (own, dim.dim_param))


def dtype_of(number: int) -> str:
    """The name of a data type by ONNX's number (DATA_TYPE_UNSUPPORTED)."""
    try:
        return tensors.dtype_of(number)
    except InvalidRequestError:
        names = {value: name.lower() for name, value in onnx.TensorProto.DataType.items()}
        name = names.get(number, str(number))
        raise UnsupportedError(
            "DATA_TYPE_UNSUPPORTED",
            f"data type {name} is not one of " + ", ".join(tensors.DTYPES),
            {"data_type": name},
        ) from None


def array_of(tensor: onnx.TensorProto) -> Array:
    """Elements of ONNX's tensor (DATA_TYPE_UNSUPPORTED, TENSOR_INVALID)."""
    dtype_of(tensor.data_type)
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        raise InvalidRequestError(
            "TENSOR_INVALID",
            "its elements are in another file; read the model by its path, as "
            "gradwire convert does",
        )
    if any(size < 0 for size in tensor.dims):
        raise InvalidRequestError("TENSOR_INVALID", f"has the shape {tuple(tensor.dims)}")
    _check_packed(tensor)
    try:
        return np.asarray(onnx.numpy_helper.to_array(tensor))
    except (TypeError, ValueError) as failure:
        raise InvalidRequestError("TENSOR_INVALID", f"cannot be read: {failure}") from None


def _check_packed(tensor: onnx.TensorProto) -> None:
    """As many bytes as the elements take: onnx cuts those that are too many (TENSOR_INVALID)."""
    in_byte = PACKED.get(dtype_of(tensor.data_type))
    if in_byte is None:
        return
    held = len(tensor.raw_data) if tensor.HasField("raw_data") else len(tensor.int32_data)
    needed = -(-prod(tensor.dims) // in_byte)
    if held != needed:
        raise InvalidRequestError(
            "TENSOR_INVALID",
            f"has {held} bytes, but the shape {tuple(tensor.dims)} needs {needed}: {in_byte} "
            "elements are in a byte",
        )


def dense_array_of(sparse: onnx.SparseTensorProto) -> Array:
    """A sparse tensor with its zeros (TENSOR_INVALID)."""
    shape = tuple(sparse.dims)
    values, places = array_of(sparse.values), array_of(sparse.indices)
    if any(size < 0 for size in shape) or prod(shape) > MOST_ELEMENTS:
        raise InvalidRequestError(
            "TENSOR_INVALID", f"a sparse tensor has shape {shape}, over {MOST_ELEMENTS} elements"
        )
    if places.ndim == 2 and places.shape == (values.size, len(shape)):
        inside = bool(np.all((places >= 0) & (places < np.array(shape))))
        places = np.ravel_multi_index(tuple(places.T), shape) if inside else np.array([-1])
    inside = places.shape == (values.size,) and bool(np.all((places >= 0) & (places < prod(shape))))
    if not inside:
        raise InvalidRequestError(
            "TENSOR_INVALID", f"the indices of a sparse tensor do not lie in its shape {shape}"
        )
    dense = np.zeros(prod(shape), values.dtype)
    dense[places] = values.reshape(-1)
    return dense.reshape(shape)


def attribute_of(attribute: onnx.AttributeProto) -> Any:
    """ONNX's attribute as ours; subgraphs, types and sparse tensors as they are."""
    try:
        match attribute.type:
            case _KINDS.FLOAT:
                return _real(attribute.f)
            case _KINDS.INT:
                return attribute.i
            case _KINDS.STRING:
                return attribute.s.decode()
            case _KINDS.TENSOR:
                return array_of(attribute.t)
            case _KINDS.FLOATS:
                return tuple(map(_real, attribute.floats))
            case _KINDS.INTS:
                return tuple(attribute.ints)
            case _KINDS.STRINGS:
                return tuple(each.decode() for each in attribute.strings)
            case _KINDS.GRAPH:
                return attribute.g
            case _KINDS.SPARSE_TENSOR:
                return attribute.sparse_tensor
    except UnicodeDecodeError:
        raise UnsupportedError(
            "ATTRIBUTE_INVALID", f"attribute {attribute.name!r} is no text"
        ) from None
    if attribute.type in (_KINDS.TYPE_PROTO, _KINDS.GRAPHS, _KINDS.TENSORS):
        return attribute
    raise InvalidRequestError("ATTRIBUTE_INVALID", f"attribute {attribute.name!r} has no kind")


def require_inferable(operator: str, attributes: Mapping[str, Any], outputs: int) -> None:
    """Refuses nodes at which ONNX's shape inference never ends, or reads beyond its lists."""
    parts = attributes.get("num_outputs", outputs)
    if operator == "Split" and parts != outputs:
        raise InvalidRequestError(
            "ATTRIBUTE_INVALID", f"Split: num_outputs is {parts!r} but there are {outputs} outputs"
        )
    equation = attributes.get("equation")
    if operator != "Einsum" or not isinstance(equation, str):
        return
    if not _EQUATION.fullmatch(equation.replace(" ", "")):
        raise InvalidRequestError(
            "ATTRIBUTE_INVALID",
            f"Einsum: the equation {equation[:60]!r} must be of letters, commas, '...' and '->', "
            "such as 'ij,jk->ik'",
        )


def _real(number: float) -> float:
    """The shortest number that is the same float32: 0.01 and not 0.009999999776482582."""
    return float(str(np.float32(number)))


class Declared(NamedTuple):
    """What ONNX says of an operator."""

    #: The kind of each attribute.
    kinds: Mapping[str, int]
    #: Slots of inputs that must be given; of a variadic one, none.
    required: frozenset[int]
    most_inputs: int
    inputs: tuple[str, ...]

    def check(
        self, attributes: Iterable[onnx.AttributeProto], inputs: Sequence[object | None]
    ) -> None:
        """Refuses what readers need not expect (ATTRIBUTE_INVALID, INPUT_COUNT_INVALID)."""
        for each in attributes:
            if each.type != self.kinds.get(each.name, each.type):
                raise InvalidRequestError(
                    "ATTRIBUTE_INVALID", f"attribute {each.name!r} is of another kind than in ONNX"
                )
        least, most = max(self.required, default=-1) + 1, self.most_inputs
        if not least <= len(inputs) <= most:
            bounds = str(least) if least == most else f"{least} to {most}"
            if most > len(self.inputs):
                bounds = f"{least} or more"
            raise InvalidRequestError(
                "INPUT_COUNT_INVALID",
                f"takes {bounds} inputs ({', '.join(self.inputs)}) but is given {len(inputs)}",
            )
        for slot in sorted(self.required):
            if inputs[slot] is None:
                raise InvalidRequestError("INPUT_COUNT_INVALID", f"its input {slot} is left out")


@cache
def declaration_of(operator: str, version: int, domain: str) -> Declared | None:
    """What ONNX says of an operator at a version, or at its first; None of one it does not know.

    Attributes that it had or will have at other versions are of their kinds there.
    """
    schemas = _schemas().get((domain, operator), [])
    if not schemas:
        return None
    own = [each for each in schemas if each.since_version <= version] or schemas[:1]
    kinds = {
        name: int(each.type.value)
        for schema in (*schemas, own[-1])
        for name, each in schema.attributes.items()
    }
    inputs, option = own[-1].inputs, onnx.defs.OpSchema.FormalParameterOption
    required = {slot for slot, each in enumerate(inputs) if each.option == option.Single}
    names = tuple(each.name for each in inputs)
    return Declared(kinds, frozenset(required), own[-1].max_input, names)


@cache
def _schemas() -> Mapping[tuple[str, str], list[Any]]:
    """All schemas of each operator, oldest first."""
    found: dict[tuple[str, str], list[Any]] = {}
    for each in onnx.defs.get_all_schemas_with_history():
        found.setdefault((each.domain, each.name), []).append(each)
    for schemas in found.values():
        schemas.sort(key=lambda each: int(each.since_version))
    return found


def resolved(
    node: onnx.NodeProto, given: Mapping[str, onnx.AttributeProto]
) -> Iterator[onnx.AttributeProto]:
    """The attributes of a node, where the function around it gives some."""
    for each in node.attribute:
        if not each.ref_attr_name:
            yield each
        elif each.ref_attr_name in given:
            found = onnx.AttributeProto()
            found.CopyFrom(given[each.ref_attr_name])
            found.name = each.name
            yield found


def without_absent(nodes: Iterable[onnx.NodeProto], absent: set[str]) -> Iterator[onnx.NodeProto]:
    """Nodes of a function, where those inputs of it are left out."""
    for node in nodes:
        if absent.isdisjoint(node.input):
            yield node
            continue
        changed = onnx.NodeProto()
        changed.CopyFrom(node)
        changed.input[:] = ["" if name in absent else name for name in node.input]
        yield changed
