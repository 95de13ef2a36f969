"""Writes gate graphs as ONNX models."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import sha1
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from gradwire import files, tensors
from gradwire.builder import OPERATOR_SET_VERSION, Graph, Leaf, Node
from gradwire.errors import InvalidRequestError, UnsupportedError
from gradwire.inlining import inlined
from gradwire.onnx.messages import PACKED, require_inferable
from gradwire.version import __version__

#: A protobuf message of 2 GiB cannot be read, so tensors go beside it well before that.
_MOST_INSIDE = 1_500_000_000
#: Tensors below this always stay in the model.
_SMALL = 1024
#: Where tensors begin in the file beside the model: ONNX asks for whole pages.
_PAGE = 4096
#: Of symbolic axes, where their ranks are asked of the planner.
_SIZES_TRIED = (2, 1, 8, 64)

_FLOAT32_MAX = float(np.finfo("float32").max)
_ONNX_TYPES = {
    "float32": "float", "float64": "double", "float4_e2m1fn": "float4e2m1",
    "float8_e8m0fnu": "float8e8m0",
}  # fmt: skip

_Data = bytes | memoryview


def to_onnx(
    graph: Graph,
    path: str | os.PathLike[str] | None = None,
    *,
    external_data: bool | None = None,
) -> onnx.ModelProto:
    """The graph as an ONNX model; and as a file, whole or not at all, where `path` is given.

    Names survive; a value without one is called `v` and its id. Inputs become inputs, parameters
    initializers, and floating constants Constant nodes, which nobody takes for parameters. Where
    ONNX's operator does not take a data type that the gate takes, it computes between two Casts.
    ONNX's attributes are float32. Modules are written out, with their paths as names; gradients of
    their own are lost, as ONNX has no word for them. Tensors beyond 1.5 GB, or with
    `external_data`, are written into a file beside the model, `{path}.data`.

    Raises UnsupportedError where ONNX lacks an operator, InvalidRequestError where one name is that
    of a leaf and of another output, FileError.
    """
    writer = _Writer(inlined(graph))
    model = writer.model
    if path is not None:
        if external_data is None:
            inside = model.ByteSize() + sum(len(data) for _, data in writer.payloads)
            external_data = inside > _MOST_INSIDE
        if external_data:
            _write_beside(Path(f"{os.fspath(path)}.data"), writer.payloads)
            files.replace(path, [model.SerializeToString()])
    for tensor, data in writer.payloads:
        tensor.ClearField("external_data")
        tensor.ClearField("data_location")
        tensor.raw_data = bytes(data)
    if path is not None and not external_data:
        files.replace(path, [model.SerializeToString()])
    return model


def _write_beside(path: Path, payloads: Sequence[tuple[onnx.TensorProto, _Data]]) -> None:
    """Writes the payloads into one file, and where they are into their tensors (FILE_INVALID)."""

    def pieces() -> Iterator[bytes | memoryview]:
        end = 0
        for _, data in payloads:
            yield bytes(-end % _PAGE)
            yield data
            end += -end % _PAGE + len(data)

    digest = sha1(usedforsecurity=False)
    for piece in pieces():
        digest.update(piece)
    end = 0
    for tensor, data in payloads:
        start = end + -end % _PAGE
        end = start + len(data)
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (
            ("location", path.name),
            ("offset", start),
            ("length", len(data)),
            ("checksum", digest.hexdigest()),
        ):
            tensor.external_data.add(key=key, value=str(value))
    files.replace(path, pieces())


@dataclass(frozen=True)
class _Casts:
    """What a node's inputs are cast to, and its outputs come as; empty where they stay."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class _Writer:
    """One model. The elements of large tensors are left out of it, in `payloads`."""

    def __init__(self, graph: Graph) -> None:
        self.payloads: list[tuple[onnx.TensorProto, _Data]] = []
        self.model = onnx.ModelProto(producer_name="gradwire", producer_version=__version__)
        self._version = min(OPERATOR_SET_VERSION, onnx.defs.onnx_opset_version())
        opset = self.model.opset_import.add(version=self._version)
        self.model.ir_version = onnx.helper.find_min_ir_version_for([opset])
        self._to = self.model.graph
        self._to.name = "graph"
        self._graph = graph
        self._outputs = graph.output_ids()
        self._dtypes = graph.dtypes()
        self._constants: dict[int, Leaf] = {}
        self._lists: dict[tuple[int, ...], str] = {}
        self._cast: dict[tuple[int, str], str] = {}
        self._name_values()
        self._add_leaves()
        self._add_nodes()
        self._add_outputs()
        self._infer_shapes()

    def _name_values(self) -> None:
        """A name for every value. Leaves and outputs keep theirs; one inside yields to them."""
        names = [""] * len(self._dtypes)
        leaves = {leaf.name: leaf for leaf in self._graph.leaves if leaf.kind != "constant"}
        self._taken = {*leaves, *self._outputs}
        for name, ids in self._graph.ids_by_name().items():
            if ids:
                self._require_values("NAME_INVALID", f"name {name!r}", ids)
            whole = name not in leaves or not leaves[name].elements
            same = self._outputs.get(name) == [*ids] and whole
            if name in leaves:
                if name in self._outputs and not same:
                    raise _name_clash(name, leaves[name].kind)
                if whole:
                    names[ids[0]] = name
                for element in range(0 if whole else len(ids)):
                    names[ids[element]] = self._fresh(f"{name}[{element}]")
            elif name not in self._taken or same:
                names[ids[0]] = name
                self._taken.add(name)
        for name, sources in self._outputs.items():
            self._require_values("OUTPUT_INVALID", f"output {name!r}", sources)
            if len(sources) == 1 and not names[sources[0]]:
                names[sources[0]] = name
        for value_id in range(1, len(names)):
            if not names[value_id]:
                names[value_id] = self._fresh(f"v{value_id}")
        self._names = names

    def _require_values(self, reason: str, place: str, ids: Sequence[int]) -> None:
        """A graph that was read may say anything, until it is sent to a server."""
        if not ids or min(ids) < 1 or max(ids) >= len(self._dtypes):
            raise InvalidRequestError(
                reason,
                f"{place}: is of values {[*ids][:4]}, but ids are 1 to {len(self._dtypes) - 1}",
            )

    def _fresh(self, name: str) -> str:
        while name in self._taken:
            name += "_"
        self._taken.add(name)
        return name

    def _add_leaves(self) -> None:
        value_id = 1
        for leaf in self._graph.leaves:
            ids = range(value_id, value_id + leaf.id_count)
            value_id += leaf.id_count
            if leaf.kind == "constant":
                self._constants[ids[0]] = leaf
                self._add_constant(self._names[ids[0]], _value(leaf))
                continue
            if leaf.kind == "input":
                info = self._to.input.add(name=leaf.name)
                info.type.CopyFrom(
                    onnx.helper.make_tensor_type_proto(_number(leaf.dtype), leaf.axes)
                )
            if leaf.value is not None:
                self._fill(self._to.initializer.add(name=leaf.name), leaf.value)
            if leaf.elements and ids:
                self._add_elements(leaf.name, ids)

    def _add_elements(self, name: str, ids: range) -> None:
        """One scalar for each element; by Split, whose gradient puts all together in one step."""
        flat = self._fresh(f"{name}_flat")
        vectors = [self._fresh(f"{self._names[each]}_vector") for each in ids]
        self._add("Reshape", [name, self._list(-1)], [flat])
        self._add("Split", [flat], vectors, axis=0, num_outputs=len(ids))
        for value_id, vector in zip(ids, vectors, strict=True):
            self._add("Squeeze", [vector, self._list(0)], [self._names[value_id]])

    def _add_constant(self, name: str, value: tensors.Array) -> None:
        """A floating initializer would be a parameter, so it becomes a node."""
        if str(value.dtype) in tensors.FLOATS:
            attribute = self._to.node.add(op_type="Constant", output=[name]).attribute.add(
                name="value", type=onnx.AttributeProto.TENSOR
            )
            self._fill(attribute.t, value)
        else:
            self._fill(self._to.initializer.add(name=name), value)

    def _list(self, *numbers: int) -> str:
        """The name of an initializer with these numbers."""
        if numbers not in self._lists:
            self._lists[numbers] = self._fresh("list_" + "_".join(map(str, numbers)))
            self._add_constant(self._lists[numbers], np.array(numbers))
        return self._lists[numbers]

    def _add(self, operator: str, inputs: list[str], outputs: list[str], **integers: int) -> None:
        node = self._to.node.add(op_type=operator, input=inputs, output=outputs)
        for name, value in integers.items():
            node.attribute.add(name=name, type=onnx.AttributeProto.INT, i=value)

    def _add_nodes(self) -> None:
        names, dtypes, nodes = self._names, self._dtypes, self._to.node
        missing = set()
        for each in self._graph.nodes():
            if _schema(each.operator, self._version) is None:
                missing.add(each.operator)
                continue
            require_inferable(each.operator, each.attributes, len(each.outputs))
            if each.inputs and max(each.inputs) >= each.outputs.start:
                raise InvalidRequestError(
                    "NODE_INVALID",
                    f"a {each.operator} that yields value {each.outputs.start} uses value "
                    f"{max(each.inputs)}, which is not before it",
                )
            inputs = [names[value_id] for value_id in each.inputs]
            outputs = [names[value_id] for value_id in each.outputs]
            casts = _casts(
                each.operator,
                self._version,
                tuple([dtypes[value_id] for value_id in each.inputs]),
                tuple([dtypes[value_id] for value_id in each.outputs]),
            )
            if casts is None:
                node = nodes.add(op_type=each.operator, input=inputs, output=outputs)
            else:
                node = self._add_between_casts(each, casts)
            for name, value in each.attributes.items():
                self._add_attribute(node, name, value)
        if missing:
            hint = "write the graph as a .gate file"
            if "AssertEqual" not in missing:  # without it the others would be wrong elsewhere
                hint += ", or leave those nodes out"
            raise UnsupportedError(
                "OPERATOR_UNKNOWN",
                f"ONNX {onnx.__version__} has no operator {', '.join(sorted(missing))}; {hint}",
            )

    def _add_between_casts(self, each: Node, casts: _Casts) -> onnx.NodeProto:
        inputs = [
            self._as_dtype(value_id, dtype) if dtype else self._names[value_id]
            for value_id, dtype in zip(each.inputs, casts.inputs, strict=True)
        ]
        outputs = [
            self._fresh(f"{self._names[value_id]}_{dtype}") if dtype else self._names[value_id]
            for value_id, dtype in zip(each.outputs, casts.outputs, strict=True)
        ]
        node = self._to.node.add(op_type=each.operator, input=inputs, output=outputs)
        for value_id, name in zip(each.outputs, outputs, strict=True):
            if name != self._names[value_id]:
                number = _number(self._dtypes[value_id])
                self._add("Cast", [name], [self._names[value_id]], to=number)
        return node

    def _as_dtype(self, value_id: int, dtype: str) -> str:
        """The name of a value in another data type; a constant stays one, as shapes may need it."""
        if (value_id, dtype) in self._cast:
            return self._cast[value_id, dtype]
        name = self._fresh(f"{self._names[value_id]}_{dtype}")
        self._cast[value_id, dtype] = name
        if value_id in self._constants:
            self._add_constant(name, _value(self._constants[value_id]).astype(dtype))
        else:
            self._add("Cast", [self._names[value_id]], [name], to=_number(dtype))
        return name

    def _add_attribute(self, node: onnx.NodeProto, name: str, value: Any) -> None:
        schema = _schema(node.op_type, self._version)
        declared = schema.attributes.get(name) if schema else None
        if declared is None:
            raise UnsupportedError(
                "OPERATOR_SET_UNSUPPORTED",
                f"{node.op_type}: attribute {name!r} is of operator set {OPERATOR_SET_VERSION}, "
                f"but onnx {onnx.__version__} has {self._version}; install a newer one",
            )
        if isinstance(value, np.ndarray):
            self._fill(node.attribute.add(name=name, type=onnx.AttributeProto.TENSOR).t, value)
            return
        for each in value if isinstance(value, tuple) else (value,):
            if isinstance(each, float) and _FLOAT32_MAX < abs(each) < math.inf:
                raise InvalidRequestError(
                    "ATTRIBUTE_INVALID",
                    f"{node.op_type}: attribute {name!r} is {each!r}, but ONNX's are float32",
                )
        kind = onnx.AttributeProto.AttributeType.Value(str(declared.type).rpartition(".")[2])
        try:
            node.attribute.append(onnx.helper.make_attribute(name, value, attr_type=kind))
        except (TypeError, ValueError):
            raise InvalidRequestError(
                "ATTRIBUTE_INVALID",
                f"{node.op_type}: attribute {name!r} is {value!r}, but ONNX's is of kind "
                f"{str(declared.type).rpartition('.')[2]}",
            ) from None

    def _fill(self, tensor: onnx.TensorProto, value: tensors.Array) -> None:
        tensor.data_type = _number(str(value.dtype))
        tensor.dims.extend(value.shape)
        if value.nbytes < _SMALL:
            tensor.raw_data = bytes(_elements(value)) if value.size else b""
        else:
            self.payloads.append((tensor, _elements(value)))

    def _add_outputs(self) -> None:
        for name, ids in self._outputs.items():
            if len(ids) > 1:
                vectors = [self._fresh(f"{self._names[each]}_vector") for each in ids]
                for value_id, vector in zip(ids, vectors, strict=True):
                    self._add("Unsqueeze", [self._names[value_id], self._list(0)], [vector])
                self._add("Concat", vectors, [name], axis=0)
            elif self._names[ids[0]] != name:
                self._add("Identity", [self._names[ids[0]]], [name])
            info = self._to.output.add(name=name)
            info.type.tensor_type.elem_type = _number(self._dtypes[ids[0]])
            if len(ids) > 1:
                info.type.tensor_type.shape.dim.add(dim_value=len(ids))

    def _infer_shapes(self) -> None:
        """ONNX wants a shape for every output: as it infers it, or else as our planner does."""
        types = [info.type.tensor_type for info in self._to.output]
        if all(each.HasField("shape") for each in types):
            return
        inferred = onnx.shape_inference.infer_shapes(self.model, data_prop=True)
        for each, info in zip(types, inferred.graph.output, strict=True):
            if info.type.tensor_type.HasField("shape"):
                each.shape.CopyFrom(info.type.tensor_type.shape)
        if not all(each.HasField("shape") for each in types):
            for each, shape in zip(types, self._planned_shapes() or [], strict=False):
                if not each.HasField("shape"):
                    each.shape.SetInParent()
                    for size in shape:
                        each.shape.dim.add(**{} if size is None else {"dim_value": size})

    def _planned_shapes(self) -> list[tuple[int | None, ...]] | None:
        """Shapes of the outputs; where leaves have symbols, at a size that fits, only the ranks."""
        from gradwire.local import output_shapes

        symbols = {
            axis for leaf in self._graph.leaves for axis in leaf.axes if isinstance(axis, str)
        }
        for size in _SIZES_TRIED if symbols else (0,):
            found = output_shapes(self._graph.to_bytes(), dict.fromkeys(symbols, size))
            if found is not None:
                return [(None,) * len(shape) if symbols else shape for shape in found]
        return None


def _name_clash(name: str, kind: str) -> InvalidRequestError:
    return InvalidRequestError(
        "NAME_INVALID",
        f"output {name!r}: is another value than the {kind} of that name, but in ONNX a name is "
        "that of one value; rename one of them",
    )


def _value(leaf: Leaf) -> tensors.Array:
    if leaf.value is None:
        raise InvalidRequestError("LEAF_INVALID", f"{leaf.kind} {leaf.name!r}: has no stored value")
    return leaf.value


def _elements(array: tensors.Array) -> _Data:
    """The elements of a tensor that has some, as ONNX holds them."""
    if str(array.dtype) in PACKED:
        packed: bytes = onnx.numpy_helper.from_array(array).raw_data
        return packed
    return tensors.elements(array)


def _number(dtype: str) -> int:
    return int(tensors.data_type(dtype))


@cache
def _schema(operator: str, version: int) -> onnx.defs.OpSchema | None:
    try:
        return onnx.defs.get_schema(operator, version)
    except onnx.defs.SchemaError:
        return None


@cache
def _casts(
    operator: str, version: int, given: tuple[str, ...], made: tuple[str, ...]
) -> _Casts | None:
    """The Casts that a node of these data types needs, or None (DATA_TYPE_UNSUPPORTED)."""
    schema = _schema(operator, version)
    assert schema is not None
    _require_count(operator, "inputs", len(given), schema.min_input, schema.max_input)
    _require_count(operator, "outputs", len(made), schema.min_output, schema.max_output)
    cast: dict[str, str] = {}  # by ONNX's type variable
    inputs = [schema.inputs[min(slot, len(schema.inputs) - 1)] for slot in range(len(given))]
    for each, dtype in zip(inputs, given, strict=True):
        if dtype and _onnx_type(dtype) not in _types(schema, each):
            cast[each.type_str] = _nearest(schema, each, dtype)
    outputs = [schema.outputs[min(slot, len(schema.outputs) - 1)] for slot in range(len(made))]
    comes = [
        cast.get(each.type_str)
        or (dtype if _onnx_type(dtype) in _types(schema, each) else _nearest(schema, each, dtype))
        for each, dtype in zip(outputs, made, strict=True)
    ]
    if not cast and comes == [*made]:
        return None
    return _Casts(
        tuple(
            cast.get(each.type_str, "") if dtype else ""
            for each, dtype in zip(inputs, given, strict=True)
        ),
        tuple("" if come == dtype else come for come, dtype in zip(comes, made, strict=True)),
    )


def _require_count(operator: str, what: str, count: int, least: int, most: int) -> None:
    if not least <= count <= most:
        raise InvalidRequestError(
            f"{what[:-1].upper()}_COUNT_INVALID",
            f"{operator}: has {count} {what}, but ONNX's has {least} to {most}",
        )


def _onnx_type(dtype: str) -> str:
    return f"tensor({_ONNX_TYPES.get(dtype, dtype).replace('_', '')})"


def _types(schema: onnx.defs.OpSchema, formal: onnx.defs.OpSchema.FormalParameter) -> list[str]:
    """What an input or output may be; its own `types` cannot be read in onnx 1.20."""
    for each in schema.type_constraints:
        if each.type_param_str == formal.type_str:
            return [*each.allowed_type_strs]
    return [formal.type_str]


def _nearest(
    schema: onnx.defs.OpSchema, formal: onnx.defs.OpSchema.FormalParameter, dtype: str
) -> str:
    """The floating data type that ONNX has in the place of another (DATA_TYPE_UNSUPPORTED)."""
    types = _types(schema, formal)
    for other in ("float32", "float64"):
        if dtype in tensors.FLOATS and _onnx_type(other) in types:
            return other
    raise UnsupportedError(
        "DATA_TYPE_UNSUPPORTED",
        f"{schema.name}: {formal.name} is {dtype}, but ONNX's is one of "
        + ", ".join(sorted(types)),
    )
