"""BLAS has one thread while we compute, and the host's own count after."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from threading import Event, Thread

import numpy as np
import pytest
from threadpoolctl import ThreadpoolController, threadpool_limits

import gradwire as gw
from gradwire_server import gates
from gradwire_server.engine import blas, products

SMALL, LARGE = 1 << 10, 1 << 30
MOST = 3


def counts() -> set[int]:
    found = ThreadpoolController().select(user_api="blas").info()
    return {each["num_threads"] for each in found}


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A program on a machine of three processors."""
    blas._single_thread.cache_clear()
    monkeypatch.setattr(blas, "_for_good", [])
    with threadpool_limits(MOST, user_api="blas"):
        yield
    blas._single_thread.cache_clear()


@pytest.mark.usefixtures("host")
def test_large_evaluations_have_one_thread_and_the_host_its_own_after() -> None:
    with blas.one_thread(SMALL):
        assert counts() == {MOST}
    with blas.one_thread(LARGE):
        assert counts() == {1}
    assert counts() == {MOST}


@pytest.mark.usefixtures("host")
def test_the_last_evaluation_gives_them_back() -> None:
    with blas.one_thread(LARGE):
        with blas.one_thread(LARGE):
            assert counts() == {1}
        assert counts() == {1}
    assert counts() == {MOST}


@pytest.mark.usefixtures("host")
def test_an_evaluation_that_fails_gives_them_back() -> None:
    with pytest.raises(ZeroDivisionError), blas.one_thread(LARGE):
        raise ZeroDivisionError
    assert counts() == {MOST}


@pytest.mark.usefixtures("host")
def test_what_the_host_chooses_meanwhile_stays() -> None:
    with blas.one_thread(LARGE):
        for each in ThreadpoolController().select(user_api="blas").lib_controllers:
            each.set_num_threads(2)
    assert counts() == {2}


@pytest.mark.usefixtures("host")
def test_a_process_that_serves_has_one_thread_for_good() -> None:
    blas.serve_with_one_thread()
    assert counts() == {1}
    with blas.one_thread(LARGE):
        assert counts() == {1}
    assert counts() == {1}


def product() -> tuple[gw.Graph, dict[str, np.ndarray]]:
    graph = gw.Graph()
    a, b = graph.input("a", (400, 400)), graph.input("b", (400, 400))
    graph.output("f", gw.reduce_sum(a @ b, keepdims=0))
    x, y = np.random.default_rng(0).normal(size=(2, 400, 400))
    return graph, {"a": x, "b": y}


@pytest.mark.usefixtures("host")
def test_evaluator_beside_a_host_that_multiplies_is_right_and_so_is_the_host() -> None:
    graph, inputs = product()
    evaluator = gw.Evaluator(graph, inputs)
    expected = inputs["a"] @ inputs["b"]
    begun, ended, wrong = Event(), Event(), []

    def multiply() -> None:
        while not ended.is_set():
            if not np.allclose(inputs["a"] @ inputs["b"], expected):
                wrong.append("the host's product")
            begun.set()

    neighbour = Thread(target=multiply)
    neighbour.start()
    begun.wait()
    for _ in range(20):
        evaluator.run()
        np.testing.assert_allclose(
            evaluator.gradients["a"], np.ones((400, 400)) @ inputs["b"].T, rtol=1e-12, atol=1e-12
        )
    ended.set()
    neighbour.join()
    assert not wrong
    assert counts() == {MOST}


@pytest.mark.parametrize("shapes", [
    ((300, 400), (400, 500)), ((500, 300), (300, 40)), ((40, 300), (300, 900)),
    ((6, 200, 200), (6, 200, 200)), ((6, 200, 200), (200, 200)), ((200, 200), (6, 200, 200)),
    ((2, 1, 300, 300), (3, 300, 300)), ((3, 700, 1), (1, 900)), ((5, 1), (1, 5)),
    ((3,), (3,)), ((0, 3), (3, 4)), ((3, 0), (0, 4)),
])  # fmt: skip
@pytest.mark.parametrize("dtype", ["float64", "float32", "int64"])
def test_products_are_numpys(
    shapes: tuple[tuple[int, ...], tuple[int, ...]], dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for threads in (1, 2, 3):
        monkeypatch.setattr(products, "processors", lambda threads=threads: threads)
        a, b = (np.random.default_rng(1).integers(-4, 5, shape).astype(dtype) for shape in shapes)
        out = products.matmul(a, b)
        assert (out.dtype, out.shape) == (a.dtype, (a @ b).shape)
        np.testing.assert_array_equal(out, a @ b)
        np.testing.assert_array_equal(products.matmul(a, b.T.copy().T), a @ b)


@pytest.mark.parametrize("equation", [
    "ij,jk->ik", "ij,kj->ki", "bij,bjk->bik", "bij,jk->kbi", "ii,ij->j", "ijk,jkl->il", "ij,ij->",
    "ij,ik->ijk", "ij,jk->i", "ij,jk,kl->il",
])  # fmt: skip
@pytest.mark.parametrize("size", [2, 130])
@pytest.mark.parametrize("dtype", ["float64", "float32", "int64"])
def test_sums_are_numpys(
    equation: str, size: int, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    terms = equation.split("->")[0].split(",")
    sizes = {"b": 6, "l": 3} | dict.fromkeys("ijk", size)
    rng = np.random.default_rng(1)
    operands = [rng.integers(-4, 5, [sizes[each] for each in term]) for term in terms]
    operands = [each.astype(dtype) for each in operands]
    expected = np.einsum(equation, *operands, optimize=True)
    for threads in (1, 2, 3):
        monkeypatch.setattr(products, "processors", lambda threads=threads: threads)
        out = products.einsum(equation, *operands)
        assert (out.dtype, out.shape) == (expected.dtype, expected.shape)
        np.testing.assert_array_equal(out, expected)


def test_a_large_sum_is_split(monkeypatch: pytest.MonkeyPatch) -> None:
    shared = []

    def share_out(work: Callable[[int, int], object], parts: Sequence[tuple[int, int]]) -> None:
        shared.extend(parts)
        for part in parts:
            work(*part)

    monkeypatch.setattr(products, "processors", lambda: 2)
    monkeypatch.setattr(products, "share_out", share_out)
    a, b = np.ones((700, 40, 50)), np.ones((1, 50, 60))
    np.testing.assert_array_equal(products.einsum("bij,bjk->bik", a, b), a @ b)
    assert shared == [(0, 350), (350, 700)]


def test_gates_multiply_matrices_by_the_namespaces_function() -> None:
    for path in sorted(Path(gates.__path__[0]).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            operator = getattr(node, "op", None)
            assert not isinstance(operator, ast.MatMult), (
                f"{path.name}:{node.lineno} multiplies with @, which is not split over our threads;"
                " xp.matmul is"
            )


def test_a_product_that_does_not_fit_is_numpys_error() -> None:
    with pytest.raises(ValueError, match="matmul"):
        products.matmul(np.ones((300, 400)), np.ones((300, 400)))
