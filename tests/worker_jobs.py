"""What workers do in tests: a module of its own, so that a spawned process can import it."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gradwire_server import workers
from gradwire_server.workers import Told, supervise


@dataclass(frozen=True)
class DiesYoung:
    """Listens and dies; its first successors die before they listen; then it lives."""

    births: Path
    before_listening: int

    def __call__(self, address: str, told: Told, listens: Callable[[], None]) -> None:
        with self.births.open("a+") as file:
            file.write(".")
            number = file.tell()
        if number == 1:
            listens()
        if number <= 1 + self.before_listening:
            os._exit(9)
        listens()
        sys.stderr.write("lives\n")
        sys.stderr.flush()
        told.wait()


if __name__ == "__main__":
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    workers._FIRST_PAUSE, workers._LONGEST_PAUSE = 0.001, 0.004
    from worker_jobs import DiesYoung as Job  # by a name that the child knows

    supervise("127.0.0.1:0", 1, Job(Path(sys.argv[1]), 4), lambda _: None)
