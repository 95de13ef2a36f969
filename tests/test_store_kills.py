"""Servers on one directory are killed at random moments: nothing acknowledged is lost."""

from __future__ import annotations

import random
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from hashlib import sha256
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from patience import PATIENCE
from wire import F64, leaf, neuron

import gradwire as gw
from gradwire.v1 import tensor_pb2
from gradwire_server.limits import Limits
from gradwire_server.store import Saved
from gradwire_server.store.base import Place
from gradwire_server.store.sqlite import FILE, SqliteStore

LARGE_COUNT = 300_000  # elements: over 2 MB, which are uploaded in pieces
SAVERS = 3


class Running:
    """A server on a directory, which can be killed and started again."""

    def __init__(self, store: Path, socket: Path) -> None:
        self._command = [sys.executable, "-m", "gradwire.cli", "serve", "--log-level", "error"]
        self._command += ["--store", str(store), "--listen", f"unix:{socket}"]
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(self._command, stdout=subprocess.PIPE, text=True)

    def wait(self) -> str:
        """Its address, once it listens."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().split()[-1]

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


class Savers:
    """Threads that save graphs, and know what was acknowledged."""

    def __init__(self, seed: int) -> None:
        self.acknowledged: dict[str, bytes] = {}
        self.names: dict[str, set[str]] = {}  # what each may refer to
        self.counted: list[int] = []
        self._numbers = count(seed << 32)
        self._lock = threading.Lock()
        self.faults: list[BaseException] = []

    def run(self, address: str) -> list[threading.Thread]:
        """Saves until the server at the address is gone."""
        threads = [threading.Thread(target=self._save, args=(address,)) for _ in range(SAVERS)]
        threads.append(threading.Thread(target=self._count, args=(address,)))
        for thread in threads:
            thread.start()
        return threads

    def _save(self, address: str) -> None:
        with gw.connect(address) as connection:
            while True:
                number = next(self._numbers)
                data = graph(number, LARGE_COUNT if number % 16 == 0 else 0)
                name = f"name {number % 50}"
                digest = sha256(data).hexdigest()
                with self._lock:
                    self.names.setdefault(name, set()).add(digest)
                try:
                    connection.save_graph(data, name)
                except (gw.UnavailableError, gw.CancelledError):
                    return
                except BaseException as fault:
                    self.faults.append(fault)
                    return
                with self._lock:
                    self.acknowledged[digest] = data

    def _count(self, address: str) -> None:
        """Counts one name up, in competition with others who do."""
        with gw.connect(address) as connection:
            while True:
                try:
                    self._count_up(connection)
                except (gw.UnavailableError, gw.CancelledError):
                    return
                except BaseException as fault:
                    self.faults.append(fault)
                    return

    def _count_up(self, connection: gw.Connection) -> None:
        try:
            found = connection.get_graph("counter")
        except gw.NotFoundError:
            digest, value = "", 0
        else:
            digest, value = found.digest, int(found.leaves[0].value)  # type: ignore[arg-type]
        try:
            connection.save_graph(graph(value + 1, 0), "counter", expected=digest)
        except gw.ConflictError:
            return
        with self._lock:
            self.counted.append(value + 1)


def graph(number: int, more: int) -> bytes:
    """A graph that no other number gives."""
    message = neuron()
    message.circuit.inputs[0].value.data = np.float64(number).tobytes()
    if more:
        large = leaf("large", None, more)
        data = np.full(more, float(number)).tobytes()
        large.value.CopyFrom(tensor_pb2.Tensor(data_type=F64, shape=[more], data=data))
        message.circuit.inputs.insert(0, large)
        message.circuit.node_inputs[:] = [each + 1 for each in message.circuit.node_inputs]
        message.circuit.outputs[0].value_ids[0] += 1
    return message.SerializeToString()


def check(store: SqliteStore, savers: Savers) -> None:
    """Every acknowledged graph is there, and whatever is there is whole."""
    found: dict[str, Saved] = {}
    names: dict[str, str] = {}
    for each in entries(store):
        digest = each.digest.hex()
        if each.name:
            names[each.name] = digest
        if digest not in found:
            data = b"".join(store.read(each.digest))
            assert (sha256(data).hexdigest(), len(data)) == (digest, each.size)
            found[digest] = each
    assert savers.acknowledged.keys() <= found.keys()
    counter = names.pop("counter", None)
    for name, digest in names.items():
        assert digest in savers.names[name]
    # each number was given once, and none was given back
    assert len(savers.counted) == len(set(savers.counted))
    if counter is not None:
        value = gw.Graph.from_bytes(b"".join(store.read(bytes.fromhex(counter)))).leaves[0].value
        assert value >= max(savers.counted, default=0)  # type: ignore[operator]


def entries(store: SqliteStore) -> Iterator[Saved]:
    after: Place = None
    while page := store.page("", after, 1000):
        yield from page
        after = page[-1].name or page[-1].digest


def endure(folder: Path, kills: int, saves: int, seed: int) -> int:
    """Kills one of two servers again and again; how many graphs were saved nevertheless."""
    chance = random.Random(seed)
    place = folder / "store"
    servers = [Running(place, folder / f"socket{each}") for each in range(2)]
    savers = Savers(seed)
    threads = [savers.run(server.wait()) for server in servers]
    done = 0
    while done < kills or len(savers.acknowledged) < saves:
        time.sleep(chance.uniform(0, 0.4))
        victim = chance.randrange(2)
        servers[victim].kill()
        for thread in threads[victim]:
            thread.join()
        done += 1
        servers[victim].start()
        threads[victim] = savers.run(servers[victim].wait())
        assert not savers.faults
    for server in servers:
        server.kill()
    for thread in [*threads[0], *threads[1]]:
        thread.join()
    assert not savers.faults
    store = SqliteStore(place, Limits())
    check(store, savers)
    store.close()
    database = sqlite3.connect(place / FILE)
    assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    database.close()
    counted = max(savers.counted, default=0)
    print(f"{done} kills, {len(savers.acknowledged)} graphs, counted to {counted}")
    return len(savers.acknowledged)


def test_nothing_acknowledged_is_lost_when_servers_are_killed(tmp_path: Path) -> None:
    assert endure(tmp_path, kills=2, saves=1, seed=1)


def test_workers_share_a_store(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "gradwire.cli", "serve", "--listen", "127.0.0.1:0"]
    with subprocess.Popen(
        [*command, "--workers", "2", "--store", str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        address = process.stdout.readline().split()[-1]
        for number in range(8):  # each connection is dealt to one of them
            with gw.connect(address) as connection:
                connection.save_graph(graph(number, 0), f"{number}")
                assert len(list(connection.list_graphs())) == number + 1
        process.terminate()
    assert process.returncode == 0


def test_server_does_not_start_without_its_store(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"something else" * 100)
    command = [sys.executable, "-m", "gradwire.cli", "serve", "--store", str(tmp_path)]
    found = subprocess.run(
        [*command, "--listen", f"unix:{tmp_path}/socket"],
        capture_output=True, text=True, check=False, timeout=PATIENCE,
    )  # fmt: skip
    assert found.returncode == 1
    assert found.stderr == (
        f"gradwire: the store in {tmp_path} cannot be opened: file is not a database\n"
    )


@pytest.mark.slow
@pytest.mark.parametrize("seed", [2])
def test_nothing_is_lost_over_a_thousand_saves(tmp_path: Path, seed: int) -> None:
    assert endure(tmp_path, kills=8, saves=1000, seed=seed) >= 1000
