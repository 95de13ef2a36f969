"""Tensors that an ONNX model keeps in files beside it.

Neither the model nor the files are trusted: a location cannot leave the model's folder, and nothing
is read before it is known that the file has it and the tensor needs it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import file_digest
from io import BufferedReader
from math import prod
from pathlib import Path, PurePosixPath, PureWindowsPath

import onnx

from gradwire.errors import FileError, InvalidRequestError

#: Bits of an element by the data type's name; ONNX packs those below 8. Text cannot be external.
_BITS = {
    "INT2": 2, "UINT2": 2,
    "INT4": 4, "UINT4": 4, "FLOAT4E2M1": 4,
    "BOOL": 8, "INT8": 8, "UINT8": 8, "FLOAT8E4M3FN": 8, "FLOAT8E4M3FNUZ": 8, "FLOAT8E5M2": 8,
    "FLOAT8E5M2FNUZ": 8, "FLOAT8E8M0": 8,
    "BFLOAT16": 16, "FLOAT16": 16, "INT16": 16, "UINT16": 16,
    "FLOAT": 32, "INT32": 32, "UINT32": 32,
    "COMPLEX64": 64, "DOUBLE": 64, "INT64": 64, "UINT64": 64,
    "COMPLEX128": 128,
}  # fmt: skip

#: Tied weights share bytes, but a small file must not become a large model.
_MOST_SHARING = 8


def load_external(model: onnx.ModelProto, folder: str | os.PathLike[str]) -> None:
    """Reads every external tensor into the model (FILE_INVALID, TENSOR_INVALID).

    That of subgraphs, functions and attributes too. Locations are relative to `folder`.
    """
    files = _Files(Path(folder))
    for tensor in tensors_of(model):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            what = f"tensor {tensor.name!r}" if tensor.name else "a tensor without a name"
            tensor.raw_data = files.load(what, _place(what, tensor), _size(what, tensor))
            tensor.ClearField("external_data")
            tensor.ClearField("data_location")


def tensors_of(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor of a model: initializers and attributes, at any depth."""
    graphs = [model.graph]
    for training in model.training_info:
        graphs += [training.initialization, training.algorithm]
    nodes = [node for function in model.functions for node in function.node]
    attributes = [each for function in model.functions for each in function.attribute_proto]
    while graphs or nodes or attributes:
        if graphs:
            graph = graphs.pop()
            yield from graph.initializer
            yield from _dense(graph.sparse_initializer)
            nodes.extend(graph.node)
        elif nodes:
            attributes.extend(nodes.pop().attribute)
        else:
            attribute = attributes.pop()
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            if attribute.HasField("sparse_tensor"):
                yield from _dense([attribute.sparse_tensor])
            yield from _dense(attribute.sparse_tensors)
            if attribute.HasField("g"):
                graphs.append(attribute.g)
            graphs.extend(attribute.graphs)


def _dense(sparse: Iterable[onnx.SparseTensorProto]) -> Iterator[onnx.TensorProto]:
    for each in sparse:
        yield each.values
        yield each.indices


@dataclass(frozen=True)
class _Place:
    """What a tensor says of where its elements are."""

    location: str
    offset: int
    length: int | None
    checksum: str | None


class _Files:
    """The files of one model."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._sizes: dict[Path, int] = {}
        self._hashes: dict[Path, str] = {}
        self._loaded = 0

    def load(self, what: str, place: _Place, needed: int) -> bytes:
        """The elements at a place (FILE_INVALID, TENSOR_INVALID)."""
        path = self._inside(what, place.location)
        with self._open(what, place.location, path) as file:
            self._sizes[path] = os.fstat(file.fileno()).st_size
            _check_length(what, place, needed, self._sizes[path])
            self._check_sharing(what, needed)
            if place.checksum is not None:
                self._check_hash(what, place, path, file)
            file.seek(place.offset)
            data = file.read(needed)
        if len(data) != needed:
            raise _invalid(f"{what}: {place.location!r} was cut while it was read")
        return data

    def _check_sharing(self, what: str, needed: int) -> None:
        self._loaded += needed
        held = sum(self._sizes.values())
        if self._loaded > _MOST_SHARING * held:
            raise _invalid(
                f"{what}: the tensors up to it need {self._loaded} bytes, but the files they name "
                f"have {held}; they may share bytes, but not more than {_MOST_SHARING} times"
            )

    def _check_hash(self, what: str, place: _Place, path: Path, file: BufferedReader) -> None:
        if path not in self._hashes:
            self._hashes[path] = file_digest(file, "sha1").hexdigest()
        if self._hashes[path] != (place.checksum or "").lower():
            raise _invalid(
                f"{what}: {place.location!r} has SHA-1 {self._hashes[path]}, but the model says "
                f"{place.checksum}; get it again from where it was written"
            )

    def _inside(self, what: str, location: str) -> Path:
        parts = PurePosixPath(location).parts
        windows = PureWindowsPath(location)
        if not parts or "\0" in location or windows.drive or windows.root or ".." in windows.parts:
            raise _invalid(
                f"{what}: its external location {location!r} is not a relative path inside the "
                "model's folder"
            )
        try:
            root = self._folder.resolve(strict=True)
            path = root.joinpath(*parts).resolve(strict=True)
        except (OSError, RuntimeError) as failure:  # RuntimeError: a loop of links
            reason = getattr(failure, "strerror", None) or str(failure)
            raise _invalid(
                f"{what}: its external data {location!r} cannot be found in {self._folder}: "
                f"{reason}"
            ) from None
        if not path.is_relative_to(root):
            raise _invalid(
                f"{what}: its external location {location!r} is a link that leaves the model's "
                f"folder, to {path}"
            )
        return path

    def _open(self, what: str, location: str, path: Path) -> BufferedReader:
        try:
            file = open(path, "rb", opener=_open_at_once)  # noqa: SIM115 -- the caller closes it
        except OSError as failure:
            reason = failure.strerror or str(failure)
            raise _invalid(
                f"{what}: its external data {location!r} cannot be read: {reason}"
            ) from None
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            file.close()
            raise _invalid(f"{what}: its external location {location!r} is not a regular file")
        return file


def _open_at_once(path: str, flags: int) -> int:
    """Opens without waiting, as a pipe would until somebody writes to it; and follows no link."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0))


def _check_length(what: str, place: _Place, needed: int, size: int) -> None:
    length = size - place.offset if place.length is None else place.length
    if place.offset > size or place.offset + length > size:
        raise _invalid(
            f"{what}: is said to be {max(length, 0)} bytes from {place.offset} on in "
            f"{place.location!r}, which has {size} bytes"
        )
    if length != needed:
        raise InvalidRequestError(
            "TENSOR_INVALID",
            f"{what}: its type and shape need {needed} bytes but it has {length} in "
            f"{place.location!r}",
        )


def _size(what: str, tensor: onnx.TensorProto) -> int:
    """Bytes that the tensor needs (TENSOR_INVALID)."""
    bits = _BITS.get(_type_name(tensor))
    if bits is None:
        raise InvalidRequestError(
            "TENSOR_INVALID",
            f"{what}: has data type {_type_name(tensor)}, which cannot be kept in a file",
        )
    if any(size < 0 for size in tensor.dims):
        raise InvalidRequestError(
            "TENSOR_INVALID", f"{what}: has shape {list(tensor.dims)}, but no size is negative"
        )
    return (prod(tensor.dims) * bits + 7) // 8


def _type_name(tensor: onnx.TensorProto) -> str:
    names: dict[int, str] = {number: name for name, number in onnx.TensorProto.DataType.items()}
    return names.get(tensor.data_type, str(tensor.data_type))


def _place(what: str, tensor: onnx.TensorProto) -> _Place:
    """Where a tensor says that its elements are (FILE_INVALID)."""
    entries: dict[str, str] = {}
    for entry in tensor.external_data:
        if not (isinstance(entry.key, str) and isinstance(entry.value, str)):
            raise _invalid(f"{what}: its external data {entry.value!r} is not UTF-8")
        if entry.key in entries:
            raise _invalid(f"{what}: says {entry.key!r} of its external data twice")
        entries[entry.key] = entry.value
    if "location" not in entries:
        raise _invalid(f"{what}: is external, but says no location")
    return _Place(
        entries["location"],
        _count(what, "offset", entries.get("offset", "0")),
        _count(what, "length", entries["length"]) if "length" in entries else None,
        entries.get("checksum"),
    )


def _count(what: str, key: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise _invalid(
            f"{what}: the {key} of its external data is {text[:40]!r}, which is no count of bytes"
        )
    return int(text)


def _invalid(message: str) -> FileError:
    return FileError("FILE_INVALID", message)
