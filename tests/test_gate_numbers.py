"""No number of a gate changes unseen."""

from __future__ import annotations

from gate_numbers import frozen, holds, line_of, numbers


def test_gates_numbers_are_the_frozen_ones() -> None:
    lines = frozen()
    fresh = dict(numbers())
    moved = [
        f"- {lines.get(name, 'no line')}\n+ {line_of(name, array)}"
        for name, array in fresh.items()
        if name not in lines or not holds(lines[name], array)
    ]
    gone = [f"- {lines[name]}" for name in lines if name not in fresh]
    assert not moved + gone, "python tests/gate_numbers.py writes these lines:\n" + "\n".join(
        moved + gone
    )
