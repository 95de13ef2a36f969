"""Requests of every kind at once: nobody is answered wrong, and nothing stays behind."""

from __future__ import annotations

import sys

import pytest
from mixed_requests import KINDS, Server, attack, memory_bound, warm_up
from patience import comes_true

REQUESTS = 2000


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads what a process takes from /proc")
def test_mixed_requests_are_answered_as_by_a_fresh_service() -> None:
    server = Server()
    try:
        warm_up(server)
        before, descriptors = server.status("VmRSS") << 10, server.descriptors()
        found = attack(server, REQUESTS, KINDS, 1)
        assert not found.wrong, found.wrong[:3]
        assert found.compared > REQUESTS // 40
        assert {outcome.partition(":")[0] for outcome in found.outcomes} == KINDS.keys()
        assert server.status("VmHWM") << 10 < before + memory_bound()
        assert comes_true(lambda: server.descriptors() <= descriptors), server.descriptors()
    finally:
        server.close()
