"""Models read at a point: shapes, branches and trip counts are those of the point, inputs stay
inputs with their gradients, and other inputs where one would differ are refused."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

import gradwire as gw

X = np.float32([0.5, -1, 2, 1.5, -0.25, 3])


@pytest.fixture(scope="module")
def server() -> Any:
    with gw.local(warm_up=False) as connection:
        yield connection


class Case(NamedTuple):
    """A model of one float input x, and what decides its shapes."""

    body: str
    near: Any  # x of the same decisions
    far: Any  # x of others
    named: str  # what the refusal says
    at: Any = X
    version: int = 17


def model(body: str, version: int = 17) -> onnx.ModelProto:
    found: onnx.ModelProto = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : {version}]>\n{body}'
    )
    return found


def graph_of(nodes: str, leaves: str = "", x: str = "float[n] x") -> str:
    return f"g ({x}) => (float y) <{leaves}> {{ {nodes} }}"


BOXES = np.float32([[[0, 0, 1, 1], [0, 0.1, 1, 1.1], [2, 2, 3, 3], [2, 2.1, 3, 3.2]]])

CASES = {
    "mask": Case(
        graph_of(
            """m = Greater(x, zero) i = NonZero(m) j = Transpose(i) p = GatherND(x, j)
            q = Mul(p, p) y = ReduceSum<keepdims=0>(q)""",
            "float zero = {0}",
        ),
        X * 1.5, -X, "the mask of elements that are not 0 of node 'i' (NonZero) is",
    ),
    "NonZero of numbers": Case(
        graph_of(
            "i = NonZero(x) p = Gather(x, i) q = Exp(p) y = ReduceSum<keepdims=0>(q)",
        ),
        X * 2, X * np.float32([0, 1, 1, 1, 1, 1]), "of node 'i' (NonZero)",
    ),
    "Compress": Case(
        graph_of(
            """m = Greater(x, zero) p = Compress<axis=0>(x, m) q = Exp(p)
            y = ReduceSum<keepdims=0>(q)""",
            "float zero = {0}",
        ),
        X * 1.5, -X, "the condition of node 'p' (Compress) is",
    ),
    "Compress flat": Case(
        graph_of(
            """s = Greater(x, zero) m = Reshape(s, minus) p = Compress(x, m) q = Exp(p)
            y = ReduceSum<keepdims=0>(q)""",
            "float zero = {0}, int64[1] minus = {-1}", "float[n, 3] x",
        ),
        X.reshape(2, 3) * 2, -X.reshape(2, 3), "node 'p' (Compress)", X.reshape(2, 3),
    ),
    "Unique": Case(
        graph_of("u, i, v, c = Unique(x) f = Cast<to=1>(c) q = Mul(u, f)"
                 " r = Mul(q, u) y = ReduceSum<keepdims=0>(r)"),
        np.float32([2, 1, 2, 5]), np.float32([3, 1, 2, 4]),
        "the pattern of equal elements of node 'u' (Unique)", np.float32([3, 1, 3, 4]),
    ),
    "Unique in order": Case(
        graph_of("u, i, v, c = Unique<sorted=0, axis=0>(x) q = Mul(u, u)"
                 " y = ReduceSum<keepdims=0>(q)", x="float[n, 2] x"),
        np.float32([[3, 1], [2, 2], [3, 1]]), np.float32([[3, 1], [2, 2], [3, 2]]),
        "of node 'u' (Unique)", np.float32([[5, 1], [5, 0], [5, 1]]),
    ),
    "TopK": Case(
        graph_of(
            """s = ReduceMax<keepdims=0>(x) n = Cast<to=7>(s) k = Reshape(n, one)
            v, i = TopK(x, k) q = Mul(v, v) y = ReduceSum<keepdims=0>(q)""",
            "int64[1] one = {1}",
        ),
        X * 1.1, X / 2, "the input 'K' of node 'v' (TopK) is [1] but was [3]",
    ),
    "Slice": Case(
        graph_of(
            """s = ReduceMax<keepdims=0>(x) n = Cast<to=7>(s) k = Reshape(n, one)
            v = Slice(x, zero, k) q = Mul(v, v) y = ReduceSum<keepdims=0>(q)""",
            "int64[1] one = {1}, int64[1] zero = {0}",
        ),
        X * 1.1, X / 2, "the input 'ends' of node 'v' (Slice) is [1] but was [3]",
    ),
    "Range of integers": Case(
        graph_of(
            """s = ReduceMax<keepdims=0>(x) c = Ceil(s) n = Cast<to=7>(c) r = Range(zero, n, one)
            f = Cast<to=1>(r) q = Mul(f, s) y = ReduceSum<keepdims=0>(q)""",
            "int64 zero = {0}, int64 one = {1}",
        ),
        X * 0.9, X / 2, "the number of elements of node 'r' (Range) is 2 but was 3",
    ),
    "Range of floats": Case(
        graph_of(
            """a = ReduceMin<keepdims=0>(x) b = ReduceMax<keepdims=0>(x) r = Range(a, b, step)
            q = Mul(r, r) y = ReduceSum<keepdims=0>(q)""",
            "float step = {0.75}",
        ),
        X + np.float32(0.25), X * 2, "the number of elements of node 'r' (Range) is 11 but was 6",
    ),
    "trips": Case(
        graph_of(
            """s = ReduceMax<keepdims=0>(x) n = Cast<to=7>(s)
            z = Loop(n, on, x) <body = b (int64 i, bool c, float[n] v) => (bool d, float[n] w)
            { d = Identity(c) w = Mul(v, v) }> y = ReduceSum<keepdims=0>(z)""",
            "bool on = {1}",
        ),
        X * 1.1, X / 2, "the trip count 'n' of node 'z' (Loop) is 1 but was 3",
    ),
    "while": Case(
        graph_of(
            """z = Loop("", on, x) <body = b (int64 i, bool c, float[n] v) => (bool d, float[n] w)
            { w = Mul(v, half) m = ReduceMax<keepdims=0>(w) d = Greater(m, least) }>
            y = ReduceSum<keepdims=0>(z)""",
            "bool on = {1}, float half = {0.5}, float least = {0.5}",
        ),
        X * 1.2, X * 2, "the condition after trip 3 of node 'z' (Loop) is True but was False",
    ),
    "branch": Case(
        graph_of(
            """s = ReduceSum<keepdims=0>(x) c = Greater(s, zero)
            z = If(c) <then_branch = t () => (float[n] a) { a = Exp(x) },
            else_branch = e () => (float[n] b) { b = Tanh(x) }> y = ReduceSum<keepdims=0>(z)""",
            "float zero = {0}",
        ),
        X * 2, -X, "the condition 'c' of node 'z' (If) is False but was True",
    ),
    "size that decides": Case(
        graph_of(
            """h = Shape(x) n = Gather(h, zero) c = Equal(n, six)
            z = If(c) <then_branch = t () => (float[n] a) { a = Exp(x) },
            else_branch = e () => (float[n] b) { b = Tanh(x) }> y = ReduceSum<keepdims=0>(z)""",
            "int64 zero = {0}, int64 six = {6}",
        ),
        X * 2, X[:4], "the condition 'c' of node 'z' (If) is False but was True",
    ),
    "scan over an open axis": Case(
        graph_of(
            """z = Scan<num_scan_inputs=1, body = b (float s, float e) => (float t)
            { p = Mul(e, e) t = Add(s, p) }>(zero, x) y = Identity(z)""",
            "float zero = {0}",
        ),
        X * 2, X[:4], "of node 'z' (Scan) is [4] but was [6]",
    ),
    "boxes": Case(
        graph_of(
            """t = Transpose<perm=[0, 2, 1]>(x) w = Slice(t, one, two, one) s = Identity(w)
            i = NonMaxSuppression(x, s, k, iou) j = Gather<axis=1>(i, two0)
            p = Gather<axis=1>(x, j) q = Mul(p, p) y = ReduceSum<keepdims=0>(q)""",
            "int64[1] one = {1}, int64[1] two = {2}, int64 two0 = {2}, int64[1] k = {3},"
            " float[1] iou = {0.5}",
            "float[1, b, 4] x",
        ),
        BOXES * 2, BOXES * np.float32([1, 1, 1, 0.7]),
        "the selection of boxes of node 'i' (NonMaxSuppression)", BOXES,
    ),
}  # fmt: skip

every = pytest.mark.parametrize("case", CASES.values(), ids=[*CASES])


def read(case: Case) -> gw.Graph:
    return gw.from_onnx(model(case.body, case.version), at={"x": case.at})


def reference(case: Case, x: Any) -> Any:
    return ReferenceEvaluator(model(case.body, case.version)).run(None, {"x": x})[0]


@contextmanager
def refused(case: Case, also: str = "") -> Iterator[None]:
    with pytest.raises(gw.InvalidRequestError) as refusal:
        yield
    assert refusal.value.reason == "ASSERTION_FAILED"
    assert case.named in refusal.value.message
    assert also in refusal.value.message


@every
def test_values_are_the_models_wherever_the_decisions_are_the_same(
    server: gw.Connection, case: Case
) -> None:
    graph = read(case)
    assert [leaf.kind for leaf in graph.leaves if leaf.name == "x"] == ["input"]
    for x in (case.at, case.near):
        found = server.evaluate(graph, {"x": x}).outputs["y"]
        np.testing.assert_allclose(found, reference(case, x), rtol=1e-5)


@every
def test_gradients_are_those_of_finite_differences(server: gw.Connection, case: Case) -> None:
    graph, step = read(case), np.float32(2.0**-7)
    rising = np.cos(np.arange(case.near.size)).astype("f4").reshape(case.near.shape)
    if case.body.count("NonZero") or "Unique" in case.body:  # keeps zeros, and what is equal
        rising = case.near
    found = np.sum(server.evaluate(graph, {"x": case.near}).gradients["x"] * rising)
    ends = [
        float(server.evaluate(graph, {"x": case.near + sign * step * rising}).outputs["y"])
        for sign in (1, -1)
    ]
    assert found != 0
    np.testing.assert_allclose(found, (ends[0] - ends[1]) / (2 * step), rtol=1e-2)


@every
def test_other_decisions_are_refused_by_name(server: gw.Connection, case: Case) -> None:
    with refused(case):
        server.evaluate(read(case), {"x": case.far})


@every
def test_other_decisions_are_refused_in_every_way_of_asking(
    server: gw.Connection, case: Case, tmp_path: Path
) -> None:
    graph = read(case)
    with refused(case):
        server.evaluate(graph, {"x": case.far}, forward_only=True)
    with refused(case):
        list(server.stream(graph, {"x": case.far}))
    with refused(case):
        gw.Evaluator(graph, {"x": case.far})
    sizes = {
        axis: size
        for axis, size in zip(graph.leaves[0].axes, case.at.shape, strict=True)
        if isinstance(axis, str)
    }
    backward = server.gradient_graph(graph, ["x"], sizes)
    if case.far.shape == case.at.shape:
        with refused(case):
            server.evaluate(backward, {"x": case.far}, forward_only=True)
    graph.save(tmp_path / "model.gate")
    for again in (gw.load(tmp_path / "model.gate"), gw.from_text(graph.to_text())):
        with refused(case):
            server.evaluate(again, {"x": case.far})
    with server.session(graph, {"x": case.at}) as session:
        before = session.step().outputs["y"]
        with refused(case):
            session.step({"x": case.far})
        np.testing.assert_array_equal(session.step().outputs["y"], before)
    with pytest.raises(gw.UnsupportedError, match=r"AssertEqual"):
        gw.to_onnx(graph)


@every
def test_rows_of_a_batch_must_all_have_the_decisions(server: gw.Connection, case: Case) -> None:
    graph = read(case)
    rows = np.stack([case.at, case.near]) if case.near.shape == case.at.shape else case.at[None]
    found = server.evaluate(graph, {"x": rows}, batched=["x"])
    singles = [server.evaluate(graph, {"x": row}) for row in rows]
    np.testing.assert_allclose(
        found.outputs["y"], [each.outputs["y"] for each in singles], rtol=1e-6
    )
    np.testing.assert_allclose(
        found.gradients["x"], [each.gradients["x"] for each in singles], rtol=1e-6
    )
    if case.far.shape == case.at.shape:
        with refused(case._replace(named=case.named.split(" is ")[0]), " in row 1 of the batch"):
            server.evaluate(graph, {"x": np.stack([case.at, case.far])}, batched=["x"])


def test_an_evaluator_that_refuses_keeps_what_it_found() -> None:
    case = CASES["branch"]
    evaluator = gw.Evaluator(read(case), {"x": case.at})
    before = evaluator.outputs["y"].copy()
    evaluator.inputs["x"][...] = case.far
    with refused(case):
        evaluator.run()
    np.testing.assert_array_equal(evaluator.outputs["y"], before)


def test_what_integers_decide_stays_open(server: gw.Connection) -> None:
    body = "g (float[n] x, int64[1] k) => (float[m] y) { y, i = TopK(x, k) }"
    graph = gw.from_onnx(model(body), at={"x": X, "k": [2]})
    for count in (2, 4):
        found = server.evaluate(graph, {"x": X, "k": [count]}, forward_only=True).outputs["y"]
        np.testing.assert_array_equal(found, -np.sort(-X)[:count])


def test_a_large_mask_is_taken(server: gw.Connection) -> None:
    case = CASES["mask"]
    x = np.random.default_rng(1).normal(size=5000).astype("f4")
    graph = gw.from_onnx(model(case.body), at={"x": x})
    result = server.evaluate(graph, {"x": x})
    np.testing.assert_allclose(result.gradients["x"], np.where(x > 0, 2 * x, 0))
    with refused(case, "element (0,) of the mask"):
        server.evaluate(graph, {"x": -x})


def test_points_that_do_not_fit_are_refused() -> None:
    body = CASES["mask"].body
    for at, options, message in (
        ({"y": 1}, {}, "there is no input 'y' to be at"),
        ({"x": [[1.0]]}, {}, r"input 'x': has the axes \['n'\] but its value in at has shape"),
        ({"x": X}, {"fixed": {"x": X}}, "input 'x': is given twice: in fixed and in at"),
        ({"x": X}, {"sizes": {"n": 4}}, r"input 'x': has the axes \[4\] but its value in at"),
    ):
        with pytest.raises(gw.InvalidRequestError, match=message):
            gw.from_onnx(model(body), at=at, **options)


def test_an_input_that_is_not_at_the_point_is_named() -> None:
    body = """g (float[n] x, float[n] z) => (float y) {
      s = Add(x, z) i = NonZero(s) p = Gather(x, i) y = ReduceSum<keepdims=0>(p) }"""
    with pytest.raises(gw.UnsupportedError, match=r"input 'z'.*at={'z': ...} \(--at z=...\)"):
        gw.from_onnx(
            model(body.replace("p = Gather(x, i)", "k = Cast<to=6>(i) p = Gather(x, k)")),
            at={"x": X},
        )


def test_without_the_servers_package_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delitem(sys.modules, "gradwire.in_process", raising=False)
    for name in [each for each in sys.modules if each.startswith("gradwire_server")]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "gradwire_server", None)
    with pytest.raises(gw.UnsupportedError, match=r"needs the package gradwire_server.*install"):
        read(CASES["branch"])
