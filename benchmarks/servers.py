"""A value and its gradient from a server on this machine: ours, bare echoes, and our peers.

Every contender has a server process and client processes of its own (peers/driver.py); the peers
live in environments of their own, made here on first use. A client is asked for so many calls at a
time, in turn with the others.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import venv
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter, sleep
from typing import Any

import numpy as np

from benchmarks.harness import (
    CACHE,
    FOLDER,
    OURS,
    WARM_SECONDS,
    Case,
    Goal,
    Report,
    UnableError,
    require_equal,
    seconds_of,
    versions,
)
from benchmarks.ours import Ours, warm_up
from gradwire_server.engine.blas import serve_with_one_thread
from gradwire_server.engine.evaluation import Selection

sys.path.insert(0, str(FOLDER / "peers"))

import peer_gradwire
from work import Work, work

DRIVER = FOLDER / "peers" / "driver.py"
LOGS = CACHE / "logs"

ROUNDS = 5
TURN_SECONDS = 0.5
CLIENTS = 8
PAYLOADS = (10, 100, 1000, 10_000, 100_000, 1_000_000)
#: A contender whose call would take longer is left out, and the table says so.
MOST_CALL_SECONDS = 5.0

EVALUATE, STEP_BYTES, EVALUATE_BYTES = (
    f"{OURS} Evaluate",
    f"{OURS} step, bytes",
    f"{OURS} Evaluate, bytes",
)
WORKERS = f"{OURS}, 2 workers"
STREAMS = ("grpcio echo, aio stream", "grpcio echo, sync stream")
UNARY = ("grpcio echo, aio unary", "grpcio echo, sync unary")
COMPUTE = "computing alone"
PLUS = " + computing"


@dataclass(frozen=True)
class Peer:
    """A contender: a module of peers/, and what pip installs for it where it is not ours."""

    name: str
    module: str
    mode: str = "-"
    requirement: str = ""
    workers: int = 1  # processes of our server

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python" if self.requirement else Path(sys.executable)

    @property
    def folder(self) -> Path:
        return CACHE / self.module

    @property
    def is_echo(self) -> bool:
        """Whether it moves bytes and has no result to compare."""
        return self.module in ("echo", "peer_tcp") or self.mode.endswith("_bytes")


PEERS = (
    Peer(OURS, "peer_gradwire", "step"),
    Peer(WORKERS, "peer_gradwire", "step", workers=2),
    Peer(EVALUATE, "peer_gradwire", "evaluate"),
    Peer(STEP_BYTES, "peer_gradwire", "step_bytes"),
    Peer(EVALUATE_BYTES, "peer_gradwire", "evaluate_bytes"),
    Peer(STREAMS[0], "echo", "aio_step"),
    Peer(STREAMS[1], "echo", "sync_step"),
    Peer(UNARY[0], "echo", "aio_evaluate"),
    Peer(UNARY[1], "echo", "sync_evaluate"),
    Peer("TCP echo", "peer_tcp", "step"),
    Peer("pytensor-federated", "peer_federated", requirement="pytensor-federated"),
    Peer("Philote", "peer_philote", requirement="philote-mdo"),
    Peer("UM-Bridge", "peer_umbridge", requirement="umbridge"),
    Peer("Tesseract", "peer_tesseract", requirement="tesseract-core[runtime]"),
)
_QUICK = (OURS, STEP_BYTES, STREAMS[1], "TCP echo")
#: Of ours and of the echoes, only these are asked by eight clients at once.
_CROWD = (OURS, WORKERS, STEP_BYTES, *STREAMS)


class Client:
    """A process that calls one server when it is told to."""

    def __init__(self, peer: Peer, name: str, port: int, held: ExitStack) -> None:
        self._log = _log(peer, name, "call")
        self._process = _start(peer, "call", name, port, self._log, held, subprocess.PIPE)

    def ask(self, command: str) -> None:
        """Without waiting for the answer (UnableError where the process is gone)."""
        try:
            self._process.stdin.write(f"{command}\n".encode())
            self._process.stdin.flush()
        except BrokenPipeError:
            raise UnableError(self._why()) from None

    def answer(self) -> Any:
        """(UnableError, with the last line of its log, where it failed.)"""
        line = self._process.stdout.readline()
        if not line:
            raise UnableError(self._why())
        return json.loads(line)

    def _why(self) -> str:
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return f"its client stopped: {lines[-1] if lines else 'without a word'}"


def run(quick: bool) -> Report:
    report = Report(
        "servers",
        "Servers",
        remarks=[
            f"Loopback, one call at a time unless clients are counted. `{OURS}` is a session's "
            "step through the Python client; *bytes* are the same messages, made before, sent and "
            "received as bytes, which is what the echoes do with as many bytes. *Computing alone* "
            "is our engine in-process, between two exchanges with an echo; an echo *+ computing* "
            "is its time and that. Gradients of the peers are computed by NumPy in their servers. "
            "UM-Bridge, Tesseract and Philote have no call for a value with its gradient, and are "
            "called twice.",
        ],
        goals=_goals(),
        versions=versions("grpcio", "protobuf", "numpy"),
    )
    warm_up()  # refuses to measure without kernels
    serve_with_one_thread()  # as they do
    peers = [peer for peer in PEERS if not quick or peer.name in _QUICK]
    unable: dict[str, str] = {}
    for peer in peers:
        try:
            install(peer)
        except UnableError as reason:
            unable[peer.name] = str(reason)
    report.versions |= {
        each.requirement: _installed(each)
        for each in peers
        if each.requirement and each.name not in unable
    }
    rounds = 2 if quick else ROUNDS
    for name in ("neuron",) if quick else ("neuron", "mlp"):
        report.cases += _latency(work(name), peers, unable, rounds, quick)
    for size in (100,) if quick else PAYLOADS:
        case = Case(f"{size:,} numbers", "payload", size, unit="ms")
        _latencies(work(f"squares-{size}"), peers, unable, rounds, [case], quick)
        for peer in peers:
            spent = median(case.figures.get(peer.name, [0.0]))
            if 10 * spent > MOST_CALL_SECONDS:  # the next payload is ten times as large
                unable[peer.name] = f"{size:,} numbers took {spent:.1f} s, so more were not tried"
        report.cases.append(case)
    return report


def _latency(
    asked: Work, peers: list[Peer], unable: dict[str, str], rounds: int, quick: bool
) -> Iterable[Case]:
    """One client's median and 99th percentile, and the time a call takes of several at once."""
    half, late = (Case(f"{asked.name}, {p}", asked.name, 1, unit="ms") for p in ("p50", "p99"))
    _latencies(asked, peers, unable, rounds, [half, late], quick)
    yield from (half, late)
    clients = 2 if quick else CLIENTS
    several = Case(
        f"{asked.name}, {clients} clients, a call", f"{asked.name}, clients", clients, unit="ms"
    )
    crowd = [peer for peer in peers if peer.requirement or peer.name in _CROWD]
    _together(asked, crowd, unable, rounds, several, clients)
    yield several


def _latencies(
    asked: Work,
    peers: list[Peer],
    unable: dict[str, str],
    rounds: int,
    cases: list[Case],
    quick: bool,
) -> None:
    """Median (and, in a second case, 99th percentile) of each contender's calls, by round."""
    with ExitStack() as held:
        ready: dict[str, tuple[Client, int]] = {}
        for peer in (each for each in peers if each.workers == 1):
            try:
                _require_able(peer, unable)
                (client,) = _connected(peer, asked, 1, held)
                ready[peer.name] = client, 20 if quick else _calls(client)
            except UnableError as reason:
                for case in cases:
                    case.missing[peer.name] = str(reason)
        compute = Ours(
            peer_gradwire.graph(asked).to_bytes(),
            {name: np.asarray(each) for name, each in peer_gradwire.inputs(asked).items()},
            kept=Selection(),  # outputs and the gradients of the leaves
        ).run

        def turn(name: str) -> list[float]:
            if name == COMPUTE:
                return [_between_messages(compute, ready) for _ in range(20)]
            client, calls = ready[name]
            client.ask(str(calls))
            return client.answer()

        figures = _rounds([*ready, COMPUTE], rounds, turn)
    for case, part in zip(cases, (50, 99), strict=False):
        case.figures |= {
            name: [float(np.percentile(each, part)) for each in turns]
            for name, turns in figures.items()
        }
        for echo in (*STREAMS, *UNARY):
            if echo in case.figures:
                pairs = zip(case.figures[echo], figures[COMPUTE], strict=True)
                case.figures[echo + PLUS] = [bare + median(own) for bare, own in pairs]


def _between_messages(compute: Callable[[], object], ready: dict[str, tuple[Client, int]]) -> float:
    """Seconds of computing with the caches that a server has: between two exchanges."""
    for echo in STREAMS:
        if echo in ready:
            ready[echo][0].ask("1")
            ready[echo][0].answer()
    return seconds_of(compute)


def _together(
    asked: Work, peers: list[Peer], unable: dict[str, str], rounds: int, case: Case, clients: int
) -> None:
    """All of a contender's clients call as fast as they can: seconds divided by all calls."""
    with ExitStack() as held:
        ready: dict[str, tuple[list[Client], int]] = {}
        for peer in peers:
            try:
                _require_able(peer, unable)
                crowd = _connected(peer, asked, clients, held)
                if peer.module == "peer_gradwire":
                    sleep(WARM_SECONDS)  # as it is from then on
                ready[peer.name] = crowd, max(2, _calls(crowd[0]) // clients)
            except UnableError as reason:
                case.missing[peer.name] = str(reason)

        def turn(name: str) -> float:
            crowd, calls = ready[name]
            began = perf_counter()
            for client in crowd:
                client.ask(str(calls))
            for client in crowd:
                client.answer()
            return (perf_counter() - began) / (calls * clients)

        case.figures |= _rounds(list(ready), rounds, turn)


def _rounds(names: list[str], rounds: int, turn: Callable[[str], Any]) -> dict[str, list[Any]]:
    """What each contender's turn gave, round by round, each round beginning with another one."""
    found: dict[str, list[Any]] = {name: [] for name in names}
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            found[name].append(turn(name))
    return found


def _require_able(peer: Peer, unable: dict[str, str]) -> None:
    if peer.name in unable:
        raise UnableError(unable[peer.name])


def _connected(peer: Peer, asked: Work, clients: int, held: ExitStack) -> list[Client]:
    """A server and its clients, whose result has been compared."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    _start(peer, "serve", asked.name, port, _log(peer, asked.name, "serve"), held)
    made = [Client(peer, asked.name, port, held) for _ in range(clients)]
    value, gradient = asked.value_and_gradient(asked.point)
    for client in made:
        if peer.is_echo:
            client.ask("1")
            client.answer()
            continue
        client.ask("result")
        found = client.answer()
        require_equal(f"{peer.name}, {asked.name}", "the value", found[0], value)
        require_equal(f"{peer.name}, {asked.name}", "the gradient", found[1], gradient)
    return made


def _calls(client: Client) -> int:
    """How many calls fill a turn, after some that warm both sides up."""
    client.ask("5")
    client.answer()
    client.ask("5")
    return int(np.clip(TURN_SECONDS / median(client.answer()), 5, 500))


def _start(
    peer: Peer,
    action: str,
    name: str,
    port: int,
    log: Path,
    held: ExitStack,
    pipe: int = subprocess.DEVNULL,
) -> subprocess.Popen[bytes]:
    command = [str(peer.python), str(DRIVER), action, peer.module, peer.mode, name, str(port)]
    if action == "serve" and peer.module == "peer_gradwire":
        listen = f"127.0.0.1:{port}"
        command = [sys.executable, "-m", "gradwire.cli", "serve", "--listen", listen]
        command += ["--workers", str(peer.workers)]
    environment = dict(os.environ)
    if peer.requirement:
        environment.pop("PYTHONPATH", None)  # the peer's own packages, and not ours
    # Tesseract's runtime leaves a folder for each request where it is started
    folder = held.enter_context(TemporaryDirectory(prefix="gradwire-bench-"))
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=stderr, env=environment, bufsize=0, cwd=folder
        )
    held.callback(_stop, process)
    return process


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def install(peer: Peer) -> None:
    """The peer's own environment, made once (UnableError, with pip's reason)."""
    done = peer.folder / "installed"
    if not peer.requirement or (done.exists() and done.read_text() == peer.requirement):
        return
    print(f"+ installing {peer.requirement} into {peer.folder}", flush=True)
    venv.create(peer.folder, clear=True, with_pip=True)
    pip = [str(peer.python), "-m", "pip", "install", "--quiet", peer.requirement]
    ended = subprocess.run(pip, capture_output=True, text=True, check=False)
    if ended.returncode:
        lines = ended.stderr.strip().splitlines()
        raise UnableError(f"cannot be installed here: {lines[-1] if lines else 'pip failed'}")
    done.write_text(peer.requirement)


def _installed(peer: Peer) -> str:
    """The version in the peer's own environment."""
    package = peer.requirement.partition("[")[0]
    ask = f"import importlib.metadata as m; print(m.version({package!r}))"
    call = [str(peer.python), "-c", ask]
    return subprocess.run(call, capture_output=True, text=True, check=True).stdout.strip()


def _log(peer: Peer, name: str, action: str) -> Path:
    LOGS.mkdir(parents=True, exist_ok=True)
    return LOGS / f"{peer.module}-{peer.mode}-{name}-{action}.log"


def _goals() -> list[Goal]:
    found = []
    for group in ("neuron", "mlp"):
        for what, who, echoes in (
            ("Session step", STEP_BYTES, STREAMS),
            ("Evaluate", EVALUATE_BYTES, UNARY),
        ):
            text = f"{group}: {what}, p50 and p99, at most 1.25 x a bare echo and the computing"
            plus = tuple(echo + PLUS for echo in echoes)
            found.append(Goal(text, plus, 1.25, group, who=who))
    largest = PAYLOADS[-1]
    text = "gradient of a million float64, request to response, at most 1.25 x the echo"
    found.append(Goal(text, STREAMS, 1.25, "payload", largest, who=STEP_BYTES))
    crowd = f"neuron, {CLIENTS} clients"
    found.append(
        Goal(
            f"{crowd}: at least 0.8 x the echo's calls",
            STREAMS,
            1 / 0.8,
            "neuron, clients",
            who=STEP_BYTES,
        )
    )
    for name, times in (
        ("pytensor-federated", 4),
        ("Philote", 4),
        ("Tesseract", 10),
        ("UM-Bridge", 10),
    ):
        text = f"{crowd}: at least {times} x the calls of {name}"
        found.append(Goal(text, (name,), 1 / times, "neuron, clients"))
    return found
