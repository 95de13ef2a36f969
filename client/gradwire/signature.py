"""What an operator takes and yields, and the checks that need no shapes.

The words are those of the server, which checks everything again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gradwire.errors import InvalidRequestError, nearest

_KINDS: dict[str, tuple[type, type | None]] = {
    "int": (int, None),
    "float": (float, None),
    "string": (str, None),
    "ints": (tuple, int),
    "floats": (tuple, float),
    "strings": (tuple, str),
}


@dataclass(frozen=True)
class Input:
    """One declared input."""

    name: str
    dtypes: tuple[str, ...]
    group: str
    optional: bool
    variadic: bool
    known: bool
    #: Whether its elements decide what the operator yields, and not its shape and data type alone.
    elements: bool = True


@dataclass(frozen=True)
class Attribute:
    """One declared attribute."""

    name: str
    kind: str
    default: Any
    required: bool
    choices: tuple[Any, ...]

    def check(self, value: Any) -> Any:
        """The value as it is written (ATTRIBUTE_INVALID)."""
        if self.kind == "tensor":
            return value
        outer, inner = _KINDS[self.kind]
        if outer is float and isinstance(value, int):
            value = float(value)
        if outer is tuple and isinstance(value, Sequence) and not isinstance(value, str):
            value = tuple(float(each) if inner is float else each for each in value)
        fits = isinstance(value, outer) and not isinstance(value, bool)
        if not fits or (inner and not all(isinstance(each, inner) for each in value)):
            raise InvalidRequestError(
                "ATTRIBUTE_INVALID",
                f"attribute {self.name!r} is {value!r} but must be of kind {self.kind}",
            )
        if self.choices and value not in self.choices:
            raise InvalidRequestError(
                "ATTRIBUTE_INVALID",
                f"attribute {self.name!r} is {value!r} but must be one of "
                + ", ".join(map(repr, self.choices)),
            )
        return value


@dataclass(frozen=True)
class Signature:
    """One operator.

    An output's data type is "input:0", "computed:0" (that of input 0, float32 for half precision),
    "attribute:to" (a tensor, or ONNX's number), a data type by name, or "attribute:value_int=int64"
    where an attribute's presence decides; "a|b" is b where a is left out.
    """

    operator: str
    inputs: tuple[Input, ...]
    attributes: tuple[Attribute, ...]
    outputs: tuple[int, int]
    output_dtypes: tuple[str, ...]

    def declared_inputs(self, count: int) -> tuple[Input, ...]:
        """The declaration of each of `count` inputs (INPUT_COUNT_INVALID)."""
        least = sum(not each.optional for each in self.inputs)
        variadic = bool(self.inputs) and self.inputs[-1].variadic
        if count < least or (count > len(self.inputs) and not variadic):
            most = "or more" if variadic else f"to {len(self.inputs)}"
            takes = f"{least}" if least == len(self.inputs) and not variadic else f"{least} {most}"
            names = ", ".join(each.name for each in self.inputs)
            raise InvalidRequestError(
                "INPUT_COUNT_INVALID", f"takes {takes} inputs ({names}) but is given {count}"
            )
        return (*self.inputs, *self.inputs[-1:] * (count - len(self.inputs)))[:count]

    def check_dtypes(self, dtypes: Sequence[str | None]) -> None:
        """Each data type is allowed, and equal within a group (DATA_TYPE_MISMATCH, ...)."""
        groups: dict[str, tuple[str, str]] = {}
        for each, dtype in zip(self.declared_inputs(len(dtypes)), dtypes, strict=True):
            if dtype is None:
                continue
            if dtype not in each.dtypes:
                raise InvalidRequestError(
                    "DATA_TYPE_UNSUPPORTED",
                    f"{each.name} is {dtype} but must be one of " + ", ".join(each.dtypes),
                )
            name, first = groups.setdefault(each.group, (each.name, dtype))
            if first != dtype:
                raise InvalidRequestError(
                    "DATA_TYPE_MISMATCH",
                    f"{name} is {first} but {each.name} is {dtype}; Cast one of them",
                )

    def check_attributes(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Those that differ from their defaults, by ascending name (ATTRIBUTE_INVALID)."""
        declared = {each.name: each for each in self.attributes}
        checked = {}
        for name in sorted(given):
            if name not in declared:
                raise InvalidRequestError(
                    "ATTRIBUTE_INVALID",
                    f"there is no attribute {name!r}{nearest(name, declared)}",
                )
            if given[name] is None:
                continue
            value = declared[name].check(given[name])
            if value != declared[name].default:
                checked[name] = value
        for each in self.attributes:
            if each.required and each.name not in checked:
                raise InvalidRequestError(
                    "ATTRIBUTE_INVALID", f"attribute {each.name!r} must be given"
                )
        return checked
