"""Hatch's build hook: compiles the kernels into the wheel, or into a checkout that is installed.

GRADWIRE_KERNELS=none leaves them out: NumPy's engine answers then. Otherwise a wheel has this
machine's level alone, which is quick; or all levels of the machines that GRADWIRE_TARGET names,
such as Linux-aarch64-glibc (scripts/release).
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ROOT = Path(__file__).parent


class KernelsHook(BuildHookInterface):
    """Adds the kernels to a wheel, which then fits one kind of machine."""

    _scratch: TemporaryDirectory[str] | None = None

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compiles; an editable install finds them in the checkout."""
        sys.path.insert(0, str(ROOT / "server"))
        from gradwire_server.engine.kernels import BUILT, building

        named = os.environ.get("GRADWIRE_TARGET")
        target = building.TARGETS[tuple(named.split("-"))] if named else building.native()
        if target is None or os.environ.get("GRADWIRE_KERNELS") == "none":
            self.app.display_warning("no compiled kernels: NumPy's engine answers")
            return
        if version == "editable":
            building.build(target, BUILT, all_levels=False)
            return
        self._scratch = TemporaryDirectory()
        for path in building.build(target, Path(self._scratch.name), all_levels=bool(named)):
            inside = BUILT.relative_to(ROOT / "server") / path.name
            build_data["force_include"][str(path)] = str(inside)
        build_data["pure_python"] = False
        build_data["tag"] = f"cp311-abi3-{target.tag}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Removes what was compiled for the wheel."""
        if self._scratch is not None:
            self._scratch.cleanup()
