"""In a process that serves, only large evaluations have products on several threads."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from threadpoolctl import ThreadpoolController, threadpool_limits

import gradwire as gw
from gradwire_server.engine import blas

SMALL, LARGE = 1 << 10, 1 << 30
MOST = 3


def counts() -> set[int]:
    found = ThreadpoolController().select(user_api="blas").info()
    return {each["num_threads"] for each in found}


@pytest.fixture
def sharing(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As after `gradwire serve` on a machine of three processors."""
    monkeypatch.setattr(blas, "_threads", [])
    with threadpool_limits(MOST, user_api="blas"):
        blas.share_processors()
        yield


@pytest.mark.usefixtures("sharing")
def test_small_evaluations_have_one_thread_and_large_ones_all() -> None:
    assert counts() == {1}
    with blas.threads_for(SMALL):
        assert counts() == {1}
    with blas.threads_for(LARGE):
        assert counts() == {MOST}
    assert counts() == {1}


@pytest.mark.usefixtures("sharing")
def test_all_threads_stay_until_the_last_large_evaluation_ends() -> None:
    first, second = blas.threads_for(LARGE), blas.threads_for(LARGE)
    with first:
        with second, blas.threads_for(SMALL):
            assert counts() == {MOST}
        assert counts() == {MOST}
    assert counts() == {1}


@pytest.mark.usefixtures("sharing")
def test_large_evaluation_that_fails_gives_them_back() -> None:
    with pytest.raises(ZeroDivisionError), blas.threads_for(LARGE):
        raise ZeroDivisionError
    assert counts() == {1}


@pytest.mark.usefixtures("sharing")
def test_network_computes_as_before() -> None:
    graph = gw.Graph()
    a, b = graph.input("a", ("n", "n")), graph.input("b", ("n", "n"))
    graph.output("f", gw.reduce_sum(a @ b, keepdims=0))
    numbers = np.random.default_rng(0)
    with gw.local() as server:
        for size in (8, 600):
            x, y = numbers.normal(size=(2, size, size))
            result = server.evaluate(graph, {"a": x, "b": y})
            np.testing.assert_allclose(result["a"].gradient, np.ones((size, size)) @ y.T)
            assert counts() == {1}


def test_embedded_server_leaves_its_hosts_threads_alone() -> None:
    with threadpool_limits(MOST, user_api="blas"), gw.local() as server:
        graph = gw.Graph()
        graph.output("f", graph.input("x") ** 2)
        server.evaluate(graph, {"x": 2.0})
        assert counts() == {MOST}
