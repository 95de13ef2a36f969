"""Operators of other domains compute what ONNX Runtime does, and have gradients."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper
from runtime_cases import FILE, Case, cases, forest

import gradwire as gw
from gradwire.onnx.domains import DOMAINS

CASES = {each.name: each for each in cases()}
#: Operators that are constant but for jumps, or that only look things up.
CONSTANT = {
    "Binarizer", "EmbedLayerNormalization", "LabelEncoder", "OneHotEncoder", "TreeEnsemble",
    "TreeEnsembleClassifier", "TreeEnsembleRegressor",
}  # fmt: skip


@pytest.fixture(scope="module")
def frozen() -> Any:
    with np.load(FILE) as file:
        yield dict(file)


def outputs_of(case: Case, **options: Any) -> dict[str, Any]:
    graph = gw.from_onnx(case.model(), **options)
    return dict(gw.Evaluator(graph, dict(case.given), forward_only=True).outputs)


@pytest.mark.parametrize("name", CASES)
def test_nodes_yield_what_onnx_runtime_does(name: str, frozen: Any) -> None:
    case = CASES[name]
    for place, found in enumerate(outputs_of(case).values()):
        expected = frozen[f"{name}/{place}"]
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        close = {"rtol": 2e-6, "atol": 2e-6} if found.dtype.kind == "f" else {"rtol": 0, "atol": 0}
        if name == "probit":  # by a formula that cancels
            close = {"rtol": 2e-5, "atol": 2e-6}
        if name.startswith(("four", "eight")):  # sums of large numbers
            close = {"rtol": 1e-5, "atol": 1e-4}
        np.testing.assert_allclose(found, expected, **close)


@pytest.mark.parametrize(
    "name",
    [
        name
        for name, each in CASES.items()
        if each.domain and each.operator not in CONSTANT and "x" in each.given
        and each.given["x"].dtype == np.float32 and each.operator != "DynamicQuantizeMatMul"
        and "one class" not in name
    ],
)  # fmt: skip
def test_gradients_are_those_of_differences(name: str) -> None:
    case = CASES[name]
    graph = gw.from_onnx(case.model())
    given = {key: np.array(each) for key, each in case.given.items()}
    if case.operator == "Normalizer":  # a row of zeros has no derivative
        given["x"] += np.float32([1, 2, 3])
    last = f"y{case.outputs - 1 if case.domain == 'ai.onnx.ml' else 0}"

    def value(moved: Any) -> Any:
        run = gw.Evaluator(graph, {**given, "x": moved}, forward_only=True)
        return run.outputs[last].astype(np.float64)

    numbers = np.random.default_rng(0)
    seed = numbers.normal(size=value(given["x"]).shape).astype(np.float32)
    found = gw.Evaluator(graph, given, seeds={last: seed}).gradients["x"]
    step = (2e-3 * numbers.choice([-1, 1], given["x"].shape)).astype(np.float32)
    change = ((value(given["x"] + step) - value(given["x"] - step)) * seed).sum() / 2
    scale = np.nansum(np.abs(found * step)) + 1e-3
    assert abs(change - np.nansum(found * step)) < 0.03 * scale


def test_gradients_of_trees_are_zero() -> None:
    case = CASES["trees SUM"]
    evaluator = gw.Evaluator(
        gw.from_onnx(case.model()), dict(case.given), seeds={"y0": np.ones((20, 2), np.float32)}
    )
    np.testing.assert_array_equal(evaluator.gradients["x"], np.zeros((20, 4)))


def test_every_operator_of_microsoft_and_ml_has_a_case() -> None:
    tested = {each.operator for each in CASES.values()}
    untested = {name for operators in DOMAINS.values() for name in operators} - tested
    by_another_name = {"DequantizeLinear", "LayerNormalization", "QuantizeLinear"}
    not_for_cpus = {"FusedMatMulActivation"}
    tested_elsewhere = {"TreeEnsemble", "ZipMap"}  # by ONNX's node tests, and below
    assert untested == by_another_name | not_for_cpus | tested_elsewhere


def pipeline(labels: dict[str, Any], *nodes: onnx.NodeProto, outputs: tuple[str, ...]) -> Any:
    """A classifier as skl2onnx writes it: scaled, trees, and other nodes."""
    trees = {**forest(8, "class", (0, 1, 2), positive=True), **labels}
    ml = {"domain": "ai.onnx.ml"}
    graph = helper.make_graph(
        [
            helper.make_node("Scaler", ["x"], ["scaled"], offset=[0.5] * 4, scale=[2.0] * 4, **ml),
            helper.make_node(
                "TreeEnsembleClassifier", ["scaled"], ["label", "scores"], **ml, **trees
            ),
            *nodes,
        ],
        "pipeline",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 4])],
        [onnx.ValueInfoProto(name=name) for name in outputs],
    )
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


def test_dictionaries_of_scores_are_the_scores() -> None:
    x = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    zipped = helper.make_node(
        "ZipMap", ["scores"], ["named"], domain="ai.onnx.ml", classlabels_int64s=[4, 5, 6]
    )
    model = pipeline({"classlabels_int64s": [4, 5, 6]}, zipped, outputs=("scores", "named"))
    found = gw.Evaluator(gw.from_onnx(model), {"x": x}, forward_only=True).outputs
    np.testing.assert_array_equal(found["named"], found["scores"])


def test_labels_that_are_text_are_refused_only_where_they_are_wanted() -> None:
    text = {"classlabels_strings": ["a", "b", "c"]}
    assert gw.from_onnx(pipeline(text, outputs=("scores",))).outputs == ("scores",)
    with pytest.raises(gw.UnsupportedError, match="output 'label': is text"):
        gw.from_onnx(pipeline(text, outputs=("label",)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nodes_truenodeids": [99]}, "different lengths"),
        ({"nodes_truenodeids": "far"}, "leads to a node that is not there"),
        ({"nodes_falsenodeids": "root"}, "deeper than 1024 levels, or go in circles"),
        ({"target_ids": "far"}, "of nodes or of targets that are not there"),
        ({"nodes_modes": "BRANCH_UP"}, "attribute 'nodes_modes' is 'BRANCH_UP'"),
        ({"aggregate_function": "MEDIAN"}, "attribute 'aggregate_function' is 'MEDIAN'"),
        ({"n_targets": 1 << 40}, "over 16777216 elements"),
    ],
)
def test_trees_that_are_not_whole_are_refused(change: dict[str, Any], message: str) -> None:
    attributes: dict[str, Any] = {"n_targets": 1, **forest(0, "target", (0,))}
    for name, value in change.items():
        if isinstance(value, str) and isinstance(attributes.get(name), list):
            numbers = {"far": 99_999, "root": 0}
            value = [numbers.get(value, value)] * len(attributes[name])
        attributes[name] = value
    case = Case("", "TreeEnsembleRegressor", ("x",), {"x": np.zeros((2, 4), np.float32)},
                domain="ai.onnx.ml", attributes=attributes)  # fmt: skip
    with pytest.raises(gw.GradwireError, match=message):
        gw.from_onnx(case.model())


def test_a_refusal_names_all_operators_that_are_missing() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17, "com.acme" : 1, "ai.onnx.ml" : 3]>
    g (float[4] x) => (float[4] y) {
        a = com.acme.Glow(x)
        b = Relu(a)
        c = com.acme.Glow(b)
        d = RandomNormalLike(c)
        y = If(t) <then_branch = u () => (float[4] p) { p = ai.onnx.ml.SVMClassifier(d) },
                   else_branch = v () => (float[4] q) { q = Identity(d) }>
    }"""
    listed = "RandomNormalLike (1), ai.onnx.ml.SVMClassifier (1), com.acme.Glow (2)"
    with pytest.raises(gw.UnsupportedError, match=r"^node 'a' \(Glow\): there is no") as refusal:
        gw.from_onnx(onnx.parser.parse_model(text))
    assert str(refusal.value).endswith(f"all operators of the model that are missing: {listed}")


def changes(node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
    """The node with one attribute less, or of another kind or size, or with one input less."""
    for place, attribute in enumerate(node.attribute):
        for value in (None, -7, 1 << 62, 0.25, np.nan, b"no", [3], [1 << 62, -1], [0.5], [b"no"]):
            changed = onnx.NodeProto()
            changed.CopyFrom(node)
            del changed.attribute[place]
            if value is not None:
                changed.attribute.append(helper.make_attribute(attribute.name, value))
            yield changed
    for place in range(len(node.input)):
        changed = onnx.NodeProto()
        changed.CopyFrom(node)
        changed.input[place] = ""
        yield changed


@pytest.mark.parametrize("operator", sorted({each.operator for each in CASES.values()}))
def test_whatever_a_node_says_it_is_read_or_refused(operator: str) -> None:
    case = max(
        (each for each in CASES.values() if each.operator == operator),
        key=lambda each: len(each.attributes),
    )
    given = case.model()
    places = []
    for node in changes(case.model().graph.node[0]):
        given.graph.node[0].CopyFrom(node)
        try:
            gw.from_onnx(given)
        except gw.GradwireError as refusal:
            places.append(str(refusal)[:9])
    assert set(places) <= {"node 'y0'"}
