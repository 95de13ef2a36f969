"""What a server needs for a million scalar gates, over what it needs when idle."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import sleep

import gradwire as gw
from benchmarks.circuits import KINDS, graph_bytes, grow
from benchmarks.harness import OURS, Case, Goal, Report, versions
from benchmarks.ours import warm_up

#: So far apart, all with the same memory.
LOOK_SECONDS = 0.25
_LOOKS = 8


def run(quick: bool) -> Report:
    report = Report(
        "memory",
        "Memory of a server",
        remarks=[
            "Peak resident memory of `gradwire serve` while it streams every value and gradient "
            "of one circuit, over its resident memory after a small evaluation; a new server for "
            "each round."
        ],
        goals=[
            Goal(
                f"{kind}: a million gates in at most 200 MB over the idle server",
                (),
                200e6,
                kind,
                unit="MB",
            )
            for kind in KINDS
        ],
        versions=versions("grpcio", "protobuf", "numpy"),
    )
    warm_up()  # refuses to measure without kernels
    small = grow("wide", 1000)
    for kind in KINDS:
        gates = 10_000 if quick else 1_000_000
        circuit = grow(kind, gates)
        graph = gw.Graph.from_bytes(graph_bytes(circuit))
        case = Case(f"{kind}, {gates:,} gates", kind, gates, unit="MB")
        case.figures[OURS] = []
        for _ in range(1 if quick else 3):
            with served() as (address, process), gw.connect(address) as server:
                stream(server, gw.Graph.from_bytes(graph_bytes(small)), small.point)
                idle = _idle(process)
                Path(f"/proc/{process}/clear_refs").write_text("5")  # the peak begins anew
                stream(server, graph, circuit.point)
                case.figures[OURS].append(_memory(process, "VmHWM") - idle)
        report.cases.append(case)
    return report


def stream(server: gw.Connection, graph: gw.Graph, x: object) -> None:
    """Every value and gradient, received and thrown away."""
    for _ in server.stream(graph, {"x": x}):
        pass


@contextmanager
def served(*options: str) -> Iterator[tuple[str, int]]:
    """The address and the process of a `gradwire serve` of its own."""
    command = [sys.executable, "-m", "gradwire.cli", "serve", "--listen", "127.0.0.1:0", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            said = process.stdout.readline()
            found = re.search(r"listens on (\S+)", said)
            if found is None:
                raise RuntimeError(f"gradwire serve said {said!r}; run {' '.join(command)}")
            yield found[1], process.pid
        finally:
            process.terminate()


def _idle(process: int) -> int:
    """Resident bytes once they no longer change: the kernels load in the background."""
    looks = [_memory(process, "VmRSS")]
    while len(looks) < _LOOKS or len(set(looks[-_LOOKS:])) > 1:
        sleep(LOOK_SECONDS)
        looks.append(_memory(process, "VmRSS"))
    return looks[-1]


def _memory(process: int, field: str) -> int:
    """Bytes, as the kernel counts them."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/{process}/status has no {field}")
