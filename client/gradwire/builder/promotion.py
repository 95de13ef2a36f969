"""The data types that numbers and arrays take beside handles: as in NumPy 2 (NEP 50).

A Python number, or a list of them, takes the data type of the handles beside it. Arrays and NumPy's
scalars have one of their own, so that the handle is cast where NumPy would cast it. Handles among
themselves are never cast.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from gradwire import tensors
from gradwire.errors import InvalidRequestError
from gradwire.signature import Input, Signature


def is_weak(operand: Any) -> bool:
    """Whether an operand that is no handle takes the data type of what is beside it."""
    return not isinstance(operand, (np.ndarray, np.generic))


def operand_dtypes(
    signature: Signature, operands: Sequence[Any], handles: Sequence[str | None]
) -> list[str | None]:
    """The data type that each operand has in a node; `handles` has those of the handles.

    DATA_TYPE_MISMATCH where NumPy's common type is none of the operator's.
    """
    declared = signature.declared_inputs(len(operands))
    if signature.operator == "Pow":  # its base and its exponent have a group each
        return list(_power_dtypes(declared, operands, handles))
    groups: dict[str, list[int]] = {}
    for place, each in enumerate(declared):
        if operands[place] is not None:
            groups.setdefault(each.group, []).append(place)
    found: list[str | None] = [None] * len(operands)
    for places in groups.values():
        common = _common(declared, places, operands, handles)
        for place in places:
            found[place] = common
    own = {(each.group, dtype) for each, dtype in zip(declared, handles, strict=True) if dtype}
    if len(own) > len({group for group, _ in own}):  # handles of a group that differ: refused
        return [own or common for own, common in zip(handles, found, strict=True)]
    return found


def require_base(x: str, y: str) -> None:
    """x ** y has the data type of x (DATA_TYPE_MISMATCH)."""
    common = x if x == y else _result_type("X and Y", (x, y))
    if common != x:
        raise InvalidRequestError(
            "DATA_TYPE_MISMATCH",
            f"{x} ** {y} is {common} in NumPy, but Pow yields {x}; cast the base, as with "
            f"{cast_hint(common)}, or take its data type with gw.pow(x, y)",
        )


def cast_hint(dtype: str) -> str:
    """How a handle is cast."""
    return f"gw.cast(x, to={int(tensors.data_type(dtype))}), which is {dtype}"


def _common(
    declared: Sequence[Input],
    places: Sequence[int],
    operands: Sequence[Any],
    handles: Sequence[str | None],
) -> str:
    """The data type of the inputs of a group, which are at these places."""
    own = {dtype: None for place in places if (dtype := handles[place]) is not None}
    arrays = {
        str(operands[place].dtype): None
        for place in places
        if handles[place] is None and not is_weak(operands[place])
    }
    if len(own) > 1 or (own and not arrays):
        return next(iter(own))
    allowed = declared[places[0]].dtypes
    if not arrays:
        natural = _natural([operands[place] for place in places], allowed)
        floating = (each for each in handles if each in tensors.FLOATS and each in allowed)
        return next(floating, natural) if natural in tensors.FLOATS else natural
    known = [*(own | arrays)]
    names = " and ".join(declared[place].name for place in places)
    common = _result_type(names, known)
    if common in allowed:
        return common
    counts = "int64" in allowed and "float64" not in allowed
    if counts and not own and np.can_cast(common, "int64"):
        return "int64"  # shapes, axes and indices
    if len(known) == 1:
        return common
    raise InvalidRequestError(
        "DATA_TYPE_MISMATCH",
        f"{names} are {' and '.join(known)}, of which NumPy makes {common}, which is none of "
        f"{', '.join(allowed)}; cast one of them, as with {cast_hint(known[0])}",
    )


def _natural(numbers: Iterable[Any], allowed: Sequence[str]) -> str:
    """The data type of numbers with no handle or array beside them."""
    natural = np.result_type(*(tensors.raw("a constant", each).dtype for each in numbers)).name
    if natural in allowed:
        return natural
    wide = (each for each in ("int64", "float64", "float32", "int32") if each in allowed)
    return next(wide, natural)


def _result_type(names: str, dtypes: Sequence[str]) -> str:
    try:
        return np.result_type(*map(np.dtype, dtypes)).name
    except TypeError:
        raise InvalidRequestError(
            "DATA_TYPE_MISMATCH",
            f"{names} are {' and '.join(dtypes)}, of which NumPy makes no common type; cast one "
            f"of them, as with {cast_hint(dtypes[0])}",
        ) from None


def _power_dtypes(
    declared: Sequence[Input], operands: Sequence[Any], handles: Sequence[str | None]
) -> tuple[str, str]:
    """Those of a base and an exponent: a whole exponent stays one, since it is exact."""
    x, y = handles
    exponent = operands[1]
    if x is not None and y is not None:
        return x, y
    if y is None:
        kind = exponent.dtype if not is_weak(exponent) else tensors.raw("Y", exponent).dtype
        whole = str(kind) if kind.kind in "iu" else None
        if x is not None and is_weak(exponent):
            return x, whole or x
        y = whole
    common = _common([declared[0], declared[0]], [0, 1], operands, handles)
    return common, y or common
