"""NumPy's functions, numbers and arrays on handles: what NumPy makes of arrays, or a refusal."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import gradwire as gw
from gradwire.numpy_functions import _FUNCTIONS, _OTHER_UFUNCS, UFUNCS

M = np.array([[0.5, -1.5, 2.0], [1.5, 0.25, -0.5]])
CUBE = np.arange(24.0).reshape(2, 3, 4) / 8 - 1
X = np.array([0.5, 1.5, -1.0])
COUNTS = np.array([[1, 2, 3], [4, 5, 6]])
MASK = np.array([[True, False, True], [False, True, True]])
SQUARE = np.array([[2.0, 1.0], [0.5, 3.0]])

Call = tuple[tuple[Any, ...], dict[str, Any]]


def call(*args: Any, **kwargs: Any) -> Call:
    return args, kwargs


#: The first call of each is answered; every other one is answered as NumPy does, or refused.
CALLS: dict[Any, list[Call]] = {
    np.broadcast_to: [
        call(X, (2, 3)),
        call(X, 3),
        call(X, (1,)),
        call(M, (3,)),
        call(SQUARE[:, :1], (1, 2)),
        call(np.zeros((0, 3)), (2, 0, 3)),
    ],
    np.clip: [
        call(M, -1.0, 1.0),
        call(M, None, 1.0),
        call(M),
        call(M, min=0.0),
        call(M, max=1),
        call(M, 1.0, -1.0),
        call(M, X, 2.0),
        call(M, -1.0, 1.0, min=0.0),
        call(COUNTS, 2, 4),
        call(COUNTS, 1.5, 4.5),
        call(M.astype("f"), np.float64(-1), 1),
    ],
    np.concatenate: [
        call((M, M)),
        call([M, M], 1),
        call((M, M), -1),
        call((M, X), None),
        call((M, COUNTS)),
        call((M, M.astype("f"))),
        call((M, M), dtype="float32"),
        call((X, [1.0, 2.0])),
        call((M, X)),
    ],
    np.cumsum: [call(X), call(M), call(M, 1), call(M, np.int64(-1)), call(MASK), call(COUNTS, 0)],
    np.dot: [
        call(M, M.T),
        call(X, X),
        call(M, X),
        call(CUBE, np.ones(4)),
        call(X, CUBE.transpose(0, 1, 2)),
        call(M, CUBE),
        call(CUBE.transpose(0, 2, 1), CUBE),
        call(CUBE, np.ones((4, 2))),
        call(M, np.array(2.0)),
        call(2.0, M),
        call(M, M),
    ],
    np.einsum: [
        call("ij,kj->ik", M, M),
        call("ij,kj", M, M),
        call("ba", M),
        call("ij->", M),
        call("...j,j->...", CUBE, np.ones(4)),
        call("ii->i", SQUARE),
        call("ii", SQUARE),
        call("ij,jk", M, M.T, optimize=True),
        call("ij,jk", M, M.T, dtype="float32"),
        call(M, [0, 1], [1, 0]),
        call(" i j -> j i ", M),
    ],
    np.expand_dims: [call(M, 0), call(M, -1), call(M, (0, 2)), call(M, ()), call(M, 5)],
    np.linalg.det: [call(SQUARE), call(np.stack([SQUARE, SQUARE.T])), call(M)],
    np.mean: [call(M), call(COUNTS), call(COUNTS, 1), call(MASK), call(M.astype("e"))],
    np.prod: [call(M), call(COUNTS), call(COUNTS.astype("int8"), 0), call(MASK, 1)],
    np.reshape: [
        call(M, (3, 2)),
        call(M, -1),
        call(M, (2, -1)),
        call(M, (0, 6)),
        call(np.zeros((0, 3)), (0, 5)),
        call(np.zeros((2, 0)), (3, 0)),
        call(M, [6]),
        call(M, np.int64(6)),
        call(M, ()),
        call(M, (4, 2)),
    ],
    np.squeeze: [
        call(M[:, :1]),
        call(M[:, :1], 1),
        call(M[:1, :1], (0, -1)),
        call(M[:1], ()),
        call(M, 0),
    ],
    np.stack: [
        call((M, M)),
        call([M, M], 1),
        call((M, M), -1),
        call((np.array(1.0), 2.0)),
        call((M, COUNTS)),
        call((X, [1, 2, 3])),
        call((M, M), None),
    ],
    np.sum: [
        call(M),
        call(COUNTS.astype("int8")),
        call(COUNTS.astype("uint8"), 0),
        call(MASK),
        call(M, (0, 0)),
        call(M, 5),
        call(M, np.int64(1)),
        call(CUBE, (0, -1)),
        call(M.astype("e"), dtype="float64"),
    ],
    np.take: [
        call(M, 1),
        call(M, [0, 5]),
        call(M, COUNTS - 1),
        call(M, -1),
        call(M, 1, 1),
        call(M, [[0, 1], [1, 0]], 0),
        call(M, np.uint8(2), -1),
        call(M, 1.0),
        call(M, 7),
        call(M, 5, 1),
    ],
    np.tile: [call(X, 2), call(M, (2, 1)), call(M, 2), call(M, (2, 1, 1)), call(M, (0, 1))],
    np.transpose: [
        call(M),
        call(CUBE, (2, 0, 1)),
        call(CUBE, (-1, 0, 1)),
        call(CUBE, [0, 2, 1]),
        call(CUBE, (0, 0, 1)),
        call(M, (0,)),
    ],
    np.where: [
        call(MASK, M, 2 * M),
        call(MASK, M, 0),
        call(MASK, 1.5, M.astype("f")),
        call(MASK, 1, 0.5),
        call(MASK, 1, 0),
        call(MASK, M, COUNTS),
        call(MASK),
        call(M, M, 0.0),
        call([True, False, True], M, 0.0),
    ],
} | {
    each: [call(M), call(M, (0, 1)), call(COUNTS, 0), call(MASK, 1), call(np.array([np.nan, 1.0]))]
    for each in (np.max, np.min, np.amax, np.amin)
}  # fmt: skip
OPTIONS: dict[str, list[Any]] = {
    "axis": [None, 0, 1, -1, (0, 1), ()],
    "casting": ["same_kind", "unsafe"],
    "dtype": [None, "float32", "int64", np.float64],
    "initial": [1.0],
    "keepdims": [False, True],
    "mode": ["raise", "wrap", "clip"],
    "order": ["C", "F"],
    "out": [None, np.zeros(3)],
    "subok": [False, True],
    "where": [True, MASK],
}


@pytest.fixture(scope="module")
def server() -> Iterator[gw.Connection]:
    with gw.local(warm_up=False) as connection:
        yield connection


def evaluated(
    server: gw.Connection, function: Callable[..., Any], args: Any, kwargs: Any, computed: bool
) -> Any:
    """A function of handles of the arrays among its arguments, or why it is refused."""
    graph = gw.Graph()
    inputs: dict[str, Any] = {}

    def handle(given: Any) -> Any:
        if isinstance(given, (tuple, list)) and any(isinstance(e, np.ndarray) for e in given):
            return type(given)(map(handle, given))
        if not isinstance(given, np.ndarray):
            return given
        name = f"x{len(inputs)}"
        inputs[name] = given
        made = graph.input(name, given.shape, given.dtype)
        return gw.identity(made) if computed else made

    try:
        out = function(*map(handle, args), **{name: handle(each) for name, each in kwargs.items()})
        graph.output("out", out)
        return server.evaluate(graph, inputs, forward_only=True)["out"].value
    except (gw.GradwireError, TypeError) as refusal:
        return refusal


def expected(function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    try:
        with np.errstate(all="ignore"):
            return np.asarray(function(*args, **kwargs))
    except Exception as refusal:
        return refusal


def require_same(got: Any, right: Any) -> None:
    """Where there is an answer, it is NumPy's: its elements, its shape and its data type."""
    if isinstance(got, Exception):
        assert "<locals>" not in str(got)
        return
    assert not isinstance(right, Exception), f"is {got}, but NumPy says {right}"
    assert got.dtype == right.dtype
    tolerance = {"float16": 1e-2, "float32": 1e-5}.get(got.dtype.name, 1e-12)
    np.testing.assert_allclose(got, right, tolerance, tolerance, strict=True)


def with_options() -> Iterator[Any]:
    for function, known in _FUNCTIONS.items():
        name = f"{function.__module__}.{function.__name__}".replace("numpy", "np")
        calls = list(CALLS[function])
        first, options = calls[0]
        for option in known.parameters.split():
            calls += [
                (first, {**options, option: value})
                for value in OPTIONS.get(option, ())
                if known.parameters.split().index(option) >= len(first)
            ]
        for number, each in enumerate(calls):
            yield pytest.param(function, *each, number == 0, id=f"{name}-{number}")


@pytest.mark.parametrize("computed", [False, True], ids=["leaf", "computed"])
@pytest.mark.parametrize(("function", "args", "kwargs", "is_answered"), list(with_options()))
def test_function_of_numpy_means_what_numpy_means_or_is_refused(
    function: Any,
    args: Any,
    kwargs: Any,
    is_answered: bool,
    computed: bool,
    server: gw.Connection,
) -> None:
    got = evaluated(server, function, args, kwargs, computed)
    if is_answered and not (computed and function is np.dot):
        assert not isinstance(got, Exception)
    require_same(got, expected(function, args, kwargs))


DOMAIN = np.array([[0.5, -0.25, 1.0], [0.75, 0.125, -0.5]])
SPECIAL = np.array([np.nan, np.inf, -np.inf, -0.0, 2.5, -3.5])


@pytest.mark.parametrize("name", sorted({*UFUNCS, *_OTHER_UFUNCS}))
def test_ufunc_means_what_numpy_means_or_is_refused(name: str, server: gw.Connection) -> None:
    ufunc = getattr(np, name)
    if ufunc.nin == 1:
        calls = [(each,) for each in (DOMAIN, 1 + abs(DOMAIN), SPECIAL, COUNTS, -COUNTS, MASK)]
    else:
        arrays = [DOMAIN, DOMAIN[0], COUNTS, MASK, DOMAIN.astype("f"), np.float64(2), 2, 0.5, True]
        pairs = itertools.product(arrays, repeat=2)
        calls = [pair for pair in pairs if any(isinstance(each, np.ndarray) for each in pair)]
        calls += [(SPECIAL, SPECIAL[::-1].copy()), (SPECIAL, 1.0)]
        calls += [(SQUARE, SQUARE), (SQUARE, SQUARE[0]), (CUBE, np.ones(4)), (M, CUBE)]
    answers = [evaluated(server, ufunc, args, {}, False) for args in calls]
    for args, got in zip(calls, answers, strict=True):
        require_same(got, expected(ufunc, args, {}))
    assert any(not isinstance(got, Exception) for got in answers)


OPERATORS = {
    "+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv,
    "**": operator.pow, "@": operator.matmul, "<": operator.lt, "<=": operator.le,
    ">": operator.gt, ">=": operator.ge, "==": operator.eq, "!=": operator.ne,
    "&": operator.and_, "|": operator.or_, "^": operator.xor,
}  # fmt: skip
DTYPES = ("float16", "bfloat16", "float32", "float64", "int8", "int32", "int64", "uint8", "bool")
BESIDE: tuple[Any, ...] = (
    2, 3.0, 0.5, True, -1, 300, [1, 2, 3], [0.5, 1.5, 2.5], np.float64(2), np.float32(3),
    np.int64(3), np.int8(2), np.uint8(3), np.bool(True), np.arange(3), np.arange(3.0, dtype="f"),
    np.arange(3, dtype="u8"), np.ones(3, ml_dtypes.bfloat16), np.ones(3, bool), "2", None, 1j,
)  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("symbol", OPERATORS)
def test_operator_beside_numbers_and_arrays_is_numpys_or_refused(
    symbol: str, dtype: str, server: gw.Connection
) -> None:
    array = np.array([1, 2, 3]).astype(dtype)
    for other, is_left in itertools.product(BESIDE, (True, False)):
        graph = gw.Graph()
        x = graph.input("x", 3, dtype)
        try:
            graph.output("f", OPERATORS[symbol](*((x, other) if is_left else (other, x))))
            got = server.evaluate(graph, {"x": array}, forward_only=True)["f"].value
        except (gw.GradwireError, TypeError):
            continue
        pair = (array, np.asarray(other) if isinstance(other, list) else other)
        right = expected(OPERATORS[symbol], pair if is_left else pair[::-1], {})
        assert not isinstance(right, Exception), (dtype, symbol, other, got, right)
        is_weak = isinstance(other, (int, float, list)) and not isinstance(other, np.generic)
        if is_weak and symbol not in ("<", "<=", ">", ">=", "==", "!="):
            assert got.dtype == dtype  # as NumPy's numbers, but in lists and beside integers too
            right = right.astype(dtype)
        if "bfloat16" in (dtype, str(getattr(other, "dtype", ""))):
            right = right.astype(got.dtype)  # which has no MatMul, and other types of results
        assert (got.dtype, got.shape) == (right.dtype, right.shape), (dtype, symbol, other)
        np.testing.assert_allclose(got.astype(float), right.astype(float), 2e-2)
