"""Memory of a process that does nothing but serve."""

from __future__ import annotations

import subprocess
import sys

from patience import PATIENCE


def test_collections_pass_over_what_was_loaded() -> None:
    program = """
import gc
from gradwire_server.allocator import spare_what_stays

spare_what_stays()
assert gc.get_freeze_count() > 1000
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=PATIENCE)
