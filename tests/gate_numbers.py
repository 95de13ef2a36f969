"""Values and gradients of every gate's examples and samples, frozen in tests/golden/gates.tsv.

`python tests/gate_numbers.py` writes the file again; lines whose numbers still hold stay as they
are, so a diff shows each number that a change has moved, and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from gate_cases import Case, cases_of, is_floating, spread

from gradwire_server.gates import GATES

FILE = Path(__file__).parent / "golden" / "gates.tsv"
#: Relative to the element, and to the largest one: what BLAS and exp differ by between processors.
_RELATIVE = {"float64": 1e-9, "float32": 1e-5}
_ABSOLUTE = {"float64": 1e-13, "float32": 1e-6}
_DIGITS = {"float64": 12, "float32": 8}


def numbers() -> Iterator[tuple[str, Any]]:
    """Each array with what it is; gradients are those for seeds of ones."""
    for gate in GATES.values():
        names = iter(
            [f"example {place}" for place in range(len(gate.examples))]
            + [f"sample {place}" for place in range(len(gate.samples))]
        )
        # the cases that tests make of broadcasts come last, and are left out
        for case, name in zip(cases_of(gate), names, strict=False):
            outs = case.run()
            for slot, out in enumerate(outs):
                yield f"{gate.operator}\t{name}\toutput {slot}", np.asarray(out)
            yield from _gradients(case, outs, f"{gate.operator}\t{name}")


def _gradients(case: Case, outs: tuple[Any, ...], name: str) -> Iterator[tuple[str, Any]]:
    if not any(map(is_floating, outs)):
        return
    seeds = tuple(np.ones_like(out) if is_floating(out) else None for out in outs)
    for slot, gradient in enumerate(case.pull(seeds)):
        if gradient is not None:
            yield f"{name}\tgradient {slot}", np.asarray(gradient)


def line_of(name: str, array: Any) -> str:
    """`operator, case, what, data type and shape, elements`, with tabs between."""
    dtype = str(array.dtype)
    kind = f"{dtype}[{','.join(map(str, array.shape))}]"
    digits = _DIGITS.get(dtype, 8)
    elements = array.reshape(-1).tolist()
    if is_floating(array):
        elements = [f"{float(each):.{digits}g}" for each in elements]
    return "\t".join([name, kind, " ".join(map(str, elements))])


def holds(line: str, array: Any) -> bool:
    """Whether a line of the file still tells the numbers of the array."""
    *name, kind, frozen = line.split("\t")
    fresh = line_of("\t".join(name), array)
    if fresh == line:
        return True
    dtype = str(array.dtype)
    if dtype not in _RELATIVE or fresh.split("\t")[-2] != kind:
        return False
    expected = np.array(frozen.split(), float)
    scale = spread(expected)
    return np.allclose(
        array.reshape(-1).astype(float),
        expected,
        rtol=_RELATIVE[dtype],
        atol=_ABSOLUTE[dtype] * scale,
        equal_nan=True,
    )


def frozen() -> dict[str, str]:
    """Lines of the file, by what they are of."""
    lines = FILE.read_text().splitlines() if FILE.exists() else []
    return {"\t".join(line.split("\t")[:3]): line for line in lines}


def main() -> None:
    """Writes the file again."""
    kept = frozen()
    lines = [
        kept[name] if name in kept and holds(kept[name], array) else line_of(name, array)
        for name, array in numbers()
    ]
    FILE.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
