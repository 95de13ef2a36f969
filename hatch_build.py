"""Hatch's build hook: compiles the kernels into the wheel, or into a checkout that is installed.

GRADWIRE_KERNELS says which: "native" (the default) is this machine's level alone, "all" is every
level of GRADWIRE_TARGET (such as Linux-aarch64-glibc; this machine where it is not given), and
"none" leaves them out: NumPy's engine answers then.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ROOT = Path(__file__).parent


class KernelsHook(BuildHookInterface):
    """Adds the kernels to a wheel, which then fits one kind of machine."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compiles; an editable install finds them in the checkout."""
        sys.path.insert(0, str(ROOT / "server"))
        from gradwire_server.engine.kernels import CPU, building

        which = os.environ.get("GRADWIRE_KERNELS", "native")
        named = os.environ.get("GRADWIRE_TARGET")
        target = building.TARGETS[tuple(named.split("-"))] if named else building.native()
        for stale in CPU.parent.glob("*.so"):
            stale.unlink()
        if target is None or which == "none":
            self.app.display_warning("no compiled kernels: NumPy's engine answers")
            return
        building.build(target, CPU.parent, all_levels=which == "all" or named is not None)
        build_data["pure_python"] = False
        build_data["tag"] = f"cp311-abi3-{target.tag}"
