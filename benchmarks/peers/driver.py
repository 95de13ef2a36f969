"""Serves a peer, or calls it, inside the peer's own environment.

    driver.py serve MODULE MODE WORK PORT
    driver.py call MODULE MODE WORK PORT

A caller reads commands from its standard input, a line each: `result` prints one call's value and
gradient, a number makes so many calls and prints the seconds that each took; answers are JSON.
"""

from __future__ import annotations

import importlib
import json
import socket
import sys
from pathlib import Path
from time import perf_counter, sleep

sys.path.insert(0, str(Path(__file__).parent))

from work import work

_PATIENCE_SECONDS = 60


def main() -> None:
    action, module, mode, name, port = sys.argv[1:]
    peer = importlib.import_module(module)
    if action == "serve":
        peer.serve(work(name), int(port), mode)
        return
    wait_for(int(port))
    call = peer.connect(work(name), int(port), mode)
    for line in sys.stdin:
        command = line.strip()
        if command == "result":
            value, gradient = call()
            answer: object = [float(value), [float(each) for each in gradient]]
        else:
            answer = [timed(call) for _ in range(int(command))]
        print(json.dumps(answer), flush=True)


def timed(call: object) -> float:
    began = perf_counter()
    call()
    return perf_counter() - began


def wait_for(port: int) -> None:
    """Until somebody listens."""
    began = perf_counter()
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if perf_counter() - began > _PATIENCE_SECONDS:
                raise
            sleep(0.05)


if __name__ == "__main__":
    main()
