"""Compiled kernels: the gates' bodies and the loops over them, as C compiled ahead.

They are compiled when the package is built (building.py), one extension for each level of
processors. The best one that this machine can run is loaded on first use, in a millisecond. A
module is used only if it was made from the very sources that are here; otherwise, and where no
kernels fit this machine, the array engine answers.
"""

from __future__ import annotations

import logging
from functools import cache
from importlib.machinery import ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from typing import Any

from gradwire_server.engine.kernels.bodies import digest
from gradwire_server.specs import COMPUTED

#: One extension a level, and one that tells which levels this processor has.
BUILT = Path(__file__).parent / "built"
CPU = BUILT / "cpu.abi3.so"
#: Best first; the number is what the processor must have, by x86-64's levels.
_LEVELS = (("x86-64-v4", 4), ("x86-64-v3", 3), ("x86-64-v2", 2), ("aarch64", 0))

_log = logging.getLogger("gradwire")


@cache
def loaded(name: str) -> Any:
    """The kernels of a floating type, or those for "scheduling"; None where there are none."""
    extension = _extension()
    if extension is None:
        return None
    module = getattr(extension, name)
    fresh = digest(None if name == "scheduling" else name)
    if fresh != module.DIGEST:
        _log.warning(
            "the compiled kernels for %s are older than the gates, so NumPy's engine answers; "
            "install the package again",
            name,
        )
        return None
    return module


def load() -> None:
    """Loads all kernels, so that the first evaluation need not."""
    for name in (*COMPUTED, "scheduling"):
        loaded(name)


def level() -> str:
    """What numbers are computed with: the level of the kernels, or "numpy" where there are none."""
    is_used = any(loaded(dtype) is not None for dtype in COMPUTED)
    return str(_extension().LEVEL) if is_used else "numpy"


def file_of(level_name: str) -> Path:
    """Where the extension of a level is."""
    return BUILT / f"kernels_{level_name.replace('-', '_')}.abi3.so"


@cache
def _extension() -> Any:
    if not CPU.exists():
        _log.warning("there are no compiled kernels for this machine; NumPy's engine answers")
        return None
    levels = levels_of(import_extension(CPU).LEVEL)
    for file in map(file_of, levels):
        if file.exists():
            return import_extension(file)
    _log.warning(
        "no compiled kernels fit this processor, which runs those for %s; NumPy's engine answers",
        " or ".join(levels) or "none of our levels",
    )
    return None


def levels_of(processor: int) -> list[str]:
    """The levels that a processor has, best first, by the number that `CPU` gives it."""
    return [
        name for name, least in _LEVELS if least <= processor and bool(least) == bool(processor)
    ]


def import_extension(path: Path) -> Any:
    """The module in a file."""
    name = path.name.partition(".")[0]
    loader = ExtensionFileLoader(name, str(path))
    spec = spec_from_loader(name, loader)
    assert spec is not None
    module = module_from_spec(spec)
    loader.exec_module(module)
    return module
