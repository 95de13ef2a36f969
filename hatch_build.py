"""Hatch's build hook: compiles the kernels into the wheel, or into a checkout that is installed.

By default a wheel has this machine's level alone, which is quick. GRADWIRE_KERNELS=all adds the
other levels, for wheels and images that go elsewhere; GRADWIRE_KERNELS=none leaves all out, and
NumPy's engine answers. GRADWIRE_TARGET names another kind of machine, such as Linux-aarch64-glibc
(scripts/release), and has all its levels.
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
        wanted = os.environ.get("GRADWIRE_KERNELS", "native")
        if target is None or wanted == "none":
            self.app.display_warning("no compiled kernels: NumPy's engine answers")
            return
        if version == "editable":
            building.build(target, BUILT, all_levels=False)
            return
        self._scratch = TemporaryDirectory()
        for path in building.build(
            target, Path(self._scratch.name), all_levels=bool(named) or wanted == "all"
        ):
            inside = BUILT.relative_to(ROOT / "server") / path.name
            build_data["force_include"][str(path)] = str(inside)
        build_data["pure_python"] = False
        build_data["tag"] = f"cp311-abi3-{target.tag}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Removes what was compiled for the wheel."""
        if self._scratch is not None:
            self._scratch.cleanup()
