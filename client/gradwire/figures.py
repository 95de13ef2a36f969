"""Numbers for people: few significant digits, the same wherever a circuit is drawn.

docs/pictures.md has the rule as a table, which the page follows too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Context, Decimal

from gradwire.tensors import Array

_DIGITS = Context(prec=3, rounding=ROUND_HALF_UP)
_WHOLE = Context(prec=400, rounding=ROUND_HALF_UP)
_LARGE = 1_000_000
_ELEMENTS_WRITTEN = 4


@dataclass(frozen=True)
class Figure:
    """What is written for a value; `finite` is False where it is, or has, NaN or infinity."""

    text: str
    finite: bool = True


def number_text(number: float) -> str:
    """A number in three significant digits, such as 0.731, -3, 1235, 1.2e-05, NaN."""
    if isinstance(number, bool):
        return "true" if number else "false"
    if not math.isfinite(number):
        return "NaN" if math.isnan(number) else "inf" if number > 0 else "-inf"
    if number == int(number) and abs(number) < _LARGE:
        return str(int(number))
    rounded = _DIGITS.create_decimal(number)
    if Decimal("0.0001") <= abs(rounded) < 1000:
        text = f"{rounded:f}"
        return text.rstrip("0").rstrip(".") if "." in text else text
    whole = Decimal(number).to_integral_value(context=_WHOLE)
    if 1000 <= abs(whole) < _LARGE:
        return f"{whole:f}"
    mantissa, exponent = f"{rounded:.2e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{exponent[0]}{exponent[1:]:0>2}"


def figure(array: Array) -> Figure:
    """A number, a few in brackets, or shape and Euclidean norm."""
    numbers = array if array.dtype.kind in "biu" else array.astype("float64")
    if array.size == 1 and not array.ndim:
        found = numbers.item()
        return Figure(number_text(found), math.isfinite(found))
    if array.ndim == 1 and 0 < array.size <= _ELEMENTS_WRITTEN:
        each = numbers.tolist()
        return Figure(f"[{', '.join(map(number_text, each))}]", all(map(math.isfinite, each)))
    shape = "×".join(map(str, array.shape))
    if not array.size:
        return Figure(shape)
    flat = numbers.astype("float64").reshape(-1)
    largest = float(abs(flat).max())
    if not math.isfinite(largest):
        return Figure(f"{shape} |{number_text(largest)}|", False)
    # scaled first, so that the squares of large elements do not overflow
    norm = largest * math.sqrt(float(((flat / largest) ** 2).sum())) if largest else 0.0
    return Figure(f"{shape} |{number_text(norm)}|")
