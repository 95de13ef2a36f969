"""What one request may use. Each field is a flag of `gradwire serve`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import NamedTuple

_MIB = 1 << 20


def _limit(default: int, unit: str, meaning: str) -> int:
    found: int = field(default=default, metadata={"unit": unit, "meaning": meaning})
    return found


class Limit(NamedTuple):
    """One limit, described."""

    name: str
    value: int
    unit: str
    meaning: str


@dataclass(frozen=True)
class Limits:
    """All limits of a server."""

    max_message_bytes: int = _limit(
        64 * _MIB, "bytes", "Largest request message, with what it has in shared memory."
    )
    max_nodes: int = _limit(4_000_000, "nodes", "Most nodes in a graph.")
    max_values: int = _limit(16_000_000, "values", "Most values (leaves and node outputs).")
    max_memory_bytes: int = _limit(
        4096 * _MIB, "bytes", "Most memory for the values and gradients of one evaluation."
    )
    max_operations: int = _limit(
        10**13, "operations", "Most operations of one evaluation, as its gates count them."
    )
    max_plan_steps: int = _limit(
        20_000_000,
        "steps",
        "Most steps of planning one evaluation: shapes inferred, elements known beforehand.",
    )
    max_cache_bytes: int = _limit(
        512 * _MIB, "bytes", "Most memory for graphs and plans kept for repeated requests."
    )
    max_graph_bytes: int = _limit(
        1024 * _MIB, "bytes", "Largest graph that is saved; protobuf reads none of 2 GiB."
    )
    max_stored_bytes: int = _limit(
        16384 * _MIB, "bytes", "Most bytes of saved graphs, and of those on their way, in all."
    )
    max_stored_graphs: int = _limit(100_000, "graphs", "Most saved graphs, and most names.")
    max_shared_bytes: int = _limit(
        1024 * _MIB, "bytes", "Most memory that all clients together may share with the server."
    )
    max_held_bytes: int = _limit(
        4096 * _MIB,
        "bytes",
        "Most memory for what clients have not read: answers, and evaluations of streams and "
        "sessions.",
    )
    max_evaluations: int = _limit(8, "evaluations", "Evaluations that compute at the same time.")
    max_waiting: int = _limit(1024, "evaluations", "Evaluations that may wait for their turn.")
    max_streams: int = _limit(256, "streams", "Streamed evaluations answered at the same time.")
    max_transfers: int = _limit(
        64, "streams", "Graphs uploaded at the same time, and as many fetched."
    )
    max_read_bytes: int = _limit(
        2048 * _MIB,
        "bytes",
        "Most memory of a process that reads what the page opens; it has three.",
    )
    max_read_seconds: int = _limit(
        60, "seconds", "Most processor time for reading a file or an expression of the page."
    )
    max_silent: int = _limit(
        1024,
        "calls",
        "Open calls whose first message has not come; beyond, whoever has most loses its oldest.",
    )
    first_message_seconds: int = _limit(
        120, "seconds", "A call whose first message has not come for longer is closed."
    )
    max_sessions: int = _limit(256, "sessions", "Sessions open at the same time.")
    session_idle_seconds: int = _limit(
        600, "seconds", "A session or upload silent for longer is closed."
    )
    upload_idle_seconds: int = _limit(
        86_400, "seconds", "An unfinished upload without news for longer is dropped."
    )

    def describe(self) -> Iterator[Limit]:
        """Every limit under its flag's name, without the dashes."""
        for each in fields(self):
            yield Limit(
                each.name.replace("_", "-"),
                getattr(self, each.name),
                each.metadata["unit"],
                each.metadata["meaning"],
            )
