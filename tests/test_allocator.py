"""Memory of a process that does nothing but serve."""

from __future__ import annotations

import subprocess
import sys

from patience import PATIENCE


def test_once_all_is_loaded_collections_pass_over_it() -> None:
    program = """
import gc
from threading import Event, Thread, enumerate as all_threads
from gradwire_server.allocator import spare_what_stays

loaded = Event()
loading = Thread(target=loaded.wait)
loading.start()
spare_what_stays(loading)
assert gc.get_freeze_count() == 0
loaded.set()
for thread in all_threads():
    if thread.name == "gradwire-freeze":
        thread.join()
assert gc.get_freeze_count() > 1000
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=PATIENCE)
