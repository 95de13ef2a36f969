"""Nodes that ONNX Runtime has computed, whose outputs are frozen in tests/models/runtime.npz.

`python tests/runtime_cases.py` writes the file anew; it needs onnxruntime, the tests do not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

FILE = Path(__file__).parent / "models" / "runtime.npz"
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Case:
    """One node, with inputs that are given and others that are initializers."""

    name: str
    operator: str
    inputs: tuple[str, ...]
    given: Mapping[str, Array]
    stored: Mapping[str, Array] = field(default_factory=dict)
    outputs: int = 1
    domain: str = "com.microsoft"
    attributes: Mapping[str, Any] = field(default_factory=dict)
    version: int = 17

    def model(self) -> onnx.ModelProto:
        node = helper.make_node(
            self.operator,
            self.inputs,
            [f"y{each}" for each in range(self.outputs)],
            domain=self.domain,
            **self.attributes,
        )
        graph = helper.make_graph(
            [node],
            "one",
            [
                helper.make_tensor_value_info(
                    name, helper.np_dtype_to_tensor_dtype(each.dtype), each.shape
                )
                for name, each in self.given.items()
            ],
            [onnx.ValueInfoProto(name=f"y{each}") for each in range(self.outputs)],
            [numpy_helper.from_array(each, name) for name, each in self.stored.items()],
        )
        imports = [helper.make_opsetid("", self.version)]
        imports += [helper.make_opsetid("ai.onnx.ml", 3), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=imports, ir_version=8)


def cases() -> list[Case]:
    """All cases; their names are unique."""
    found = [*_microsoft(), *_linear(), *_trees(), *_lenient()]
    assert len({each.name for each in found}) == len(found)
    return found


def _normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def _bytes(*shape: int, seed: int = 0, dtype: str = "uint8") -> Array:
    limits = np.iinfo(dtype)
    drawn = np.random.default_rng(seed).integers(limits.min, limits.max, shape, endpoint=True)
    return drawn.astype(dtype)


def _one(number: float, dtype: str = "float32") -> Array:
    return np.array(number, dtype)


def _microsoft() -> Iterator[Case]:
    x, row, rows = _normal(2, 3), _normal(3, seed=1), _normal(1, 4, 8)
    yield Case("gelu", "Gelu", ("x",), {"x": x})
    yield Case("bias gelu", "BiasGelu", ("x", "b"), {"x": x}, {"b": row})
    yield Case("fast gelu", "FastGelu", ("x",), {"x": x})
    yield Case("fast gelu with bias", "FastGelu", ("x", "b"), {"x": x}, {"b": row})
    yield Case("quick gelu", "QuickGelu", ("x",), {"x": x})
    yield Case("quick gelu 1", "QuickGelu", ("x",), {"x": x}, attributes={"alpha": 1.0})
    norms = {"g": _normal(8, seed=2), "b": _normal(8, seed=3), "c": _normal(8, seed=4)}
    two = {"x": rows, "s": _normal(1, 4, 8, seed=5)}
    yield Case("skip", "SkipLayerNormalization", ("x", "s", "g", "b"), two, norms,
               attributes={"epsilon": 1e-5})  # fmt: skip
    yield Case("skip with bias", "SkipLayerNormalization", ("x", "s", "g", "b", "c"), two, norms)
    yield Case("skip simplified", "SkipSimplifiedLayerNormalization", ("x", "s", "g"), two, norms)
    yield Case("simplified", "SimplifiedLayerNormalization", ("x", "g"), {"x": rows}, norms,
               domain="", attributes={"epsilon": 1e-5})  # fmt: skip
    for a, b in ((0, 0), (0, 1), (1, 0), (1, 1)):
        left, right = _normal(2, 3, 4), _normal(2, 4, 5, seed=1)
        stacks = {
            "a": left.swapaxes(1, 2) if a else left,
            "b": right.swapaxes(1, 2) if b else right,
        }
        stacks = {name: np.ascontiguousarray(each) for name, each in stacks.items()}
        yield Case(f"matmul {a}{b}", "FusedMatMul", ("a", "b"), stacks,
                   attributes={"transA": a, "transB": b, "alpha": 0.5})  # fmt: skip
    yield Case("matmul of batches", "FusedMatMul", ("a", "b"),
               {"a": _normal(3, 2, 4), "b": _normal(2, 4, 5)},
               attributes={"transBatchA": 1})  # fmt: skip
    image, kernel = {"x": _normal(1, 2, 5, 5)}, {"w": _normal(2, 2, 3, 3), "b": _normal(2)}
    for name, numbers in (("Relu", ()), ("Tanh", ()), ("LeakyRelu", (0.2,)), ("Clip", (-1.0, 1.0)),
                          ("HardSigmoid", (0.3, 0.4)), ("Sigmoid", ())):  # fmt: skip
        more = {"activation_params": numbers} if numbers else {}
        yield Case(f"conv {name}", "FusedConv", ("x", "w", "b"), image, kernel,
                   attributes={"activation": name, **more})  # fmt: skip
    yield Case("conv and a sum", "FusedConv", ("x", "w", "b", "z"),
               {**image, "z": _normal(1, 2, 3, 3, seed=7)}, kernel,
               attributes={"activation": "Relu"})  # fmt: skip
    gemm = {"w": _normal(4, 3, seed=1), "c": row}
    yield Case("gemm", "FusedGemm", ("x", "w", "c"), {"x": _normal(2, 4)}, gemm,
               attributes={"activation": "LeakyRelu", "activation_alpha": 0.1})  # fmt: skip
    yield from _attention()
    yield from _quantized()
    words = {"w": _normal(5, 8), "p": _normal(4, 8, seed=1), "s": _normal(2, 8, seed=2), **norms}
    ids = {"i": np.int32([[1, 0, 4], [2, 2, 3]]), "t": np.int32([[0, 0, 1], [0, 1, 1]])}
    yield Case("embedding", "EmbedLayerNormalization", ("i", "t", "w", "p", "s", "g", "b"),
               ids, words, outputs=2)  # fmt: skip
    mask = {"m": np.int32([[1, 1, 0], [1, 1, 1]])}
    yield Case("embedding with a mask", "EmbedLayerNormalization",
               ("i", "", "w", "p", "", "g", "b", "m"), {"i": ids["i"], **mask}, words,
               outputs=2)  # fmt: skip


def _attention() -> Iterator[Case]:
    rows = {"x": _normal(2, 4, 8)}
    weights = {"w": _normal(8, 24, seed=1), "b": _normal(24, seed=2)}
    heads = {"num_heads": 2}
    yield Case("attention", "Attention", ("x", "w", "b"), rows, weights, attributes=heads)
    yield Case("attention, one way", "Attention", ("x", "w", "b"), rows, weights,
               attributes={**heads, "unidirectional": 1})  # fmt: skip
    yield Case("attention, scaled", "Attention", ("x", "w", "b"), rows, weights,
               attributes={**heads, "scale": 0.3})  # fmt: skip
    mask = {"m": np.int32([[1, 1, 1, 0], [1, 1, 0, 0]])}
    yield Case("attention with a mask", "Attention", ("x", "w", "b", "m"), {**rows, **mask},
               weights, attributes=heads)  # fmt: skip
    ends = {"m": np.int32([3, 2])}
    yield Case("attention with lengths", "Attention", ("x", "w", "b", "m"), {**rows, **ends},
               weights, attributes=heads)  # fmt: skip
    bias = {"a": _normal(1, 2, 4, 4, seed=4)}
    yield Case("attention with a bias", "Attention", ("x", "w", "b", "", "", "a"), {**rows, **bias},
               weights, attributes=heads)  # fmt: skip
    past = {"p": _normal(2, 2, 2, 3, 4, seed=5)}
    yield Case("attention with a past", "Attention", ("x", "w", "b", "", "p"), {**rows, **past},
               weights, outputs=2, attributes=heads)  # fmt: skip
    sides = {"q": _normal(2, 4, 8), "k": _normal(2, 5, 8, seed=1), "v": _normal(2, 5, 8, seed=2)}
    many = "MultiHeadAttention"
    yield Case("heads", many, ("q", "k", "v"), sides, attributes=heads)
    yield Case("heads with a bias", many, ("q", "k", "v", "b"), sides, {"b": _normal(24, seed=3)},
               attributes=heads)  # fmt: skip
    keys = {"m": np.int32([[1, 1, 1, 0, 0], [1, 1, 1, 1, 0]])}
    yield Case("heads with a mask", many, ("q", "k", "v", "", "m"), {**sides, **keys},
               attributes=heads)  # fmt: skip
    added = {"a": _normal(1, 2, 4, 5, seed=4)}
    yield Case("heads with an added bias", many, ("q", "k", "v", "", "", "a"), {**sides, **added},
               attributes=heads)  # fmt: skip


def _quantized() -> Iterator[Case]:
    a, b = {"a": _bytes(2, 3)}, {"b": _bytes(2, 3, seed=1)}
    scales = {"s": _one(0.1), "t": _one(0.2), "u": _one(0.3)}
    scales |= {"z": _one(128, "uint8"), "y": _one(5, "uint8")}
    pair = ("a", "s", "z", "b", "t", "y", "u", "z")
    yield Case("sum of bytes", "QLinearAdd", pair, {**a, **b}, scales)
    yield Case("product of bytes", "QLinearMul", pair, {**a, **b}, {**scales, "u": _one(9.0)})
    single = ("a", "s", "z", "t", "y")
    yield Case("sigmoid of bytes", "QLinearSigmoid", single, a, {**scales, "t": _one(0.004)})
    yield Case("leaky relu of bytes", "QLinearLeakyRelu", single, a, scales,
               attributes={"alpha": 0.3})  # fmt: skip
    yield Case("bytes side by side", "QLinearConcat", ("u", "z", "a", "s", "z", "b", "t", "y"),
               {**a, **b}, scales, attributes={"axis": 1})  # fmt: skip
    image = {"a": _bytes(1, 2, 4, 4)}
    yield Case("average of bytes", "QLinearGlobalAveragePool", single, image, scales)
    yield Case("averages of bytes", "QLinearAveragePool", single, image,
               {**scales, "t": _one(0.231)},
               attributes={"kernel_shape": [2, 2], "strides": [2, 2]})  # fmt: skip
    wide = {"x": _normal(3, 40)}
    packed = {"w": _bytes(6, 2, 16), "s": _normal(6, 2, seed=1), "z": _bytes(6, 1, seed=2)}
    bits = {"K": 40, "N": 6, "bits": 4, "block_size": 32}
    yield Case("four bits", "MatMulNBits", ("x", "w", "s"), wide, packed, attributes=bits)
    yield Case("four bits with zeros", "MatMulNBits", ("x", "w", "s", "z"), wide, packed,
               attributes=bits)  # fmt: skip
    eight = {"w": _bytes(6, 2, 32), "s": _normal(6, 2, seed=1)}
    yield Case("eight bits", "MatMulNBits", ("x", "w", "s"), wide, eight,
               attributes={**bits, "bits": 8})  # fmt: skip
    small = _bytes(40, 4, dtype="int8") // 2  # so that no sum of two products is beyond int16
    matrix = {"w": small, "s": _normal(4), "c": _normal(4, seed=1)}
    yield Case("quantized on the way", "DynamicQuantizeMatMul", ("x", "w", "s", "", "c"), wide,
               matrix)  # fmt: skip
    yield Case("integers to floats", "MatMulIntegerToFloat", ("a", "w", "p", "s", "z", "", "c"),
               {"a": _bytes(3, 40)},
               {**matrix, "p": _one(0.1), "z": _one(7, "uint8")})  # fmt: skip
    gemm = {"b": _bytes(3, 4, seed=1), "s": _one(0.1), "t": _one(0.02), "u": _one(3.0),
            "z": _one(7, "uint8"), "c": np.int32([5, -900, 30, 0])}  # fmt: skip
    yield Case("gemm of bytes", "QGemm", ("a", "s", "z", "b", "t", "z"), a, gemm)
    yield Case("gemm of bytes to bytes", "QGemm", ("a", "s", "z", "b", "t", "z", "c", "u", "z"), a,
               gemm, attributes={"alpha": 1.5})  # fmt: skip


def _linear() -> Iterator[Case]:
    ml: dict[str, Any] = {"domain": "ai.onnx.ml"}
    x = {"x": _normal(4, 3)}
    for dtype in ("float32", "float64", "int64", "int32"):
        wide = {"x": (_normal(4, 3) * 9).astype(dtype)}
        yield Case(f"scaler {dtype}", "Scaler", ("x",), wide, **ml,
                   attributes={"offset": [0.0, 1.0, 2.0], "scale": [1.0, 2.0, 3.0]})  # fmt: skip
    zeros = _normal(4, 3)
    zeros[1] = 0
    for norm in ("MAX", "L1", "L2"):
        yield Case(f"normalizer {norm}", "Normalizer", ("x",), {"x": zeros}, **ml,
                   attributes={"norm": norm})  # fmt: skip
    three: dict[str, Any] = {
        "coefficients": [0.1, 0.2, 0.3, -0.1, 0.2, 0.5, 0.3, 0.2, -0.1],
        "intercepts": [0.5, 0.4, 0.0], "classlabels_ints": [3, 5, 7],
    }  # fmt: skip
    one: dict[str, Any] = {
        "coefficients": [0.1, -2.0, 0.3], "intercepts": [0.5], "classlabels_ints": [3, 5]
    }  # fmt: skip
    for transform in ("NONE", "SOFTMAX", "LOGISTIC", "SOFTMAX_ZERO"):
        after = {"post_transform": transform}
        numbers = {name: three[name] for name in ("coefficients", "intercepts")}
        yield Case(f"regressor {transform}", "LinearRegressor", ("x",), x, **ml,
                   attributes={**numbers, "targets": 3, **after})  # fmt: skip
        yield Case(f"three classes {transform}", "LinearClassifier", ("x",), x, outputs=2, **ml,
                   attributes={**three, **after})  # fmt: skip
        yield Case(f"two classes {transform}", "LinearClassifier", ("x",), x, outputs=2, **ml,
                   attributes={**one, **after})  # fmt: skip
    yield Case("probit", "LinearRegressor", ("x",), {"x": np.float32([[0.1], [0.5], [0.8]])}, **ml,
               attributes={"coefficients": [1.0], "post_transform": "PROBIT"})  # fmt: skip
    for kernel in ("LINEAR", "POLY", "RBF", "SIGMOID"):
        support = {"kernel_type": kernel, "kernel_params": [0.5, 0.3, 3.0], "n_supports": 2,
                   "coefficients": [1.0, -1.0], "rho": [0.1],
                   "support_vectors": [0.0, 1.0, 2.0, 1.0, 1.0, 1.0]}  # fmt: skip
        yield Case(f"vectors {kernel}", "SVMRegressor", ("x",), x, attributes=support, **ml)
        yield Case(f"one class {kernel}", "SVMRegressor", ("x",), x, **ml,
                   attributes={**support, "one_class": 1})  # fmt: skip
    holes = _normal(4, 3)
    holes[0, 0] = holes[2, 1] = np.nan
    yield Case("imputer", "Imputer", ("x",), {"x": holes}, **ml,
               attributes={"imputed_value_floats": [1.0, 2.0, 3.0],
                           "replaced_value_float": float("nan")})  # fmt: skip
    yield Case("imputer of integers", "Imputer", ("x",), {"x": np.int64([[1, 2], [-1, 3]])}, **ml,
               attributes={"imputed_value_int64s": [9], "replaced_value_int64": -1})  # fmt: skip
    yield Case("binarizer", "Binarizer", ("x",), x, attributes={"threshold": 0.5}, **ml)
    for widths in ((3, 2), (2, 3)):
        yield Case(f"vectorizer {widths}", "FeatureVectorizer", ("x", "z"),
                   {**x, "z": _normal(4, 2, seed=1)}, **ml,
                   attributes={"inputdimensions": widths})  # fmt: skip
    for places in (np.int64([2, 0]), np.int64([[1]])):
        yield Case(f"extractor {places.tolist()}", "ArrayFeatureExtractor", ("x", "i"), x,
                   {"i": places}, **ml)  # fmt: skip
    yield Case("extractor of a vector", "ArrayFeatureExtractor", ("x", "i"), {"x": _normal(3)},
               {"i": np.int64([2, 0])}, **ml)  # fmt: skip
    yield Case("one hot", "OneHotEncoder", ("x",), {"x": np.int64([1, 3, 9])}, **ml,
               attributes={"cats_int64s": [1, 2, 3]})  # fmt: skip
    yield Case("labels", "LabelEncoder", ("x",), {"x": np.int64([1, 3, 9])}, **ml,
               attributes={"keys_int64s": [1, 3], "values_floats": [0.5, 0.25],
                           "default_float": -1.0})  # fmt: skip


def forest(
    seed: int,
    kind: str,
    targets: tuple[int, ...],
    *,
    depth: int = 4,
    modes: tuple[str, ...] = ("BRANCH_LEQ",),
    missing: bool = False,
    positive: bool = False,
) -> dict[str, Any]:
    """Attributes of five random trees on four features."""
    numbers = np.random.default_rng(seed)
    names = ("treeids", "nodeids", "featureids", "modes", "values", "truenodeids", "falsenodeids",
             "missing_value_tracks_true")  # fmt: skip
    nodes: dict[str, list[Any]] = {name: [] for name in names}
    leaves: dict[str, list[Any]] = {name: [] for name in ("treeids", "nodeids", "ids", "weights")}

    def grow(tree: int, number: int, level: int) -> int:
        """The number after those of the subtree that begins at `number`."""
        place = len(nodes["treeids"])
        for name in names:
            nodes[name].append({"treeids": tree, "nodeids": number}.get(name, 0))
        nodes["values"][place] = 0.0
        if level == depth or (level and numbers.random() < 0.2):
            nodes["modes"][place] = "LEAF"
            for target in targets:
                weight = float(np.float32(numbers.normal()))
                each = tree, number, target, abs(weight) / 5 if positive else weight
                for name, told in zip(leaves, each, strict=True):
                    leaves[name].append(told)
            return number + 1
        nodes["modes"][place] = str(numbers.choice(modes))
        nodes["values"][place] = float(np.float32(numbers.normal()))
        nodes["featureids"][place] = int(numbers.integers(4))
        nodes["missing_value_tracks_true"][place] = int(numbers.integers(2))
        nodes["truenodeids"][place] = number + 1
        other = grow(tree, number + 1, level + 1)
        nodes["falsenodeids"][place] = other
        return grow(tree, other, level + 1)

    for tree in range(5):
        grow(tree, 0, 0)
    if not missing:
        nodes.pop("missing_value_tracks_true")
    found: dict[str, Any] = {f"nodes_{name}": each for name, each in nodes.items()}
    return found | {f"{kind}_{name}": each for name, each in leaves.items()}


def _trees() -> Iterator[Case]:
    ml: dict[str, Any] = {"domain": "ai.onnx.ml"}
    x, holes = _normal(20, 4), _normal(20, 4)
    holes[::3, 1] = np.nan
    for seed, function in enumerate(("SUM", "AVERAGE", "MIN", "MAX")):
        yield Case(f"trees {function}", "TreeEnsembleRegressor", ("x",), {"x": x}, **ml,
                   attributes={"n_targets": 2, "aggregate_function": function,
                               "base_values": [0.5, 1.0],
                               **forest(seed, "target", (0, 1))})  # fmt: skip
    yield Case("trees without a target", "TreeEnsembleRegressor", ("x",), {"x": x}, **ml,
               attributes={"n_targets": 2, "aggregate_function": "MIN",
                           **forest(4, "target", (1,))})  # fmt: skip
    yield Case("trees in float64", "TreeEnsembleRegressor", ("x",), {"x": x.astype(float)}, **ml,
               attributes={"n_targets": 1, **forest(5, "target", (0,))})  # fmt: skip
    yield Case("leaves", "TreeEnsembleRegressor", ("x",), {"x": x}, **ml,
               attributes={"n_targets": 1, **forest(6, "target", (0,), depth=0)})  # fmt: skip
    modes = ("LEQ", "LT", "GTE", "GT", "EQ", "NEQ")
    for mode in (*((f"BRANCH_{each}",) for each in modes), ("BRANCH_LEQ", "BRANCH_GT")):
        for missing in (False, True):
            trees = forest(7, "target", (0,), modes=mode, missing=missing)
            yield Case(f"trees {'+'.join(mode)} {missing}", "TreeEnsembleRegressor", ("x",),
                       {"x": holes}, **ml, attributes={"n_targets": 1, **trees})  # fmt: skip
    for transform in ("NONE", "SOFTMAX", "LOGISTIC", "SOFTMAX_ZERO"):
        for positive in (False, True):
            name, given = f"{transform} {positive}", {"post_transform": transform}
            three, two = {"classlabels_int64s": [4, 5, 6]}, {"classlabels_int64s": [4, 5]}
            many = forest(8, "class", (0, 1, 2), positive=positive)
            yield Case(f"classes {name}", "TreeEnsembleClassifier", ("x",), {"x": x}, outputs=2,
                       attributes={**given, **three, **many}, **ml)  # fmt: skip
            for target in (0, 1):
                one = forest(9, "class", (target,), positive=positive)
                yield Case(f"two classes by {target}, {name}", "TreeEnsembleClassifier", ("x",),
                           {"x": x}, outputs=2, attributes={**given, **two, **one},
                           **ml)  # fmt: skip
            one = forest(10, "class", (0,), positive=positive)
            yield Case(f"two classes from a base, {name}", "TreeEnsembleClassifier", ("x",),
                       {"x": x}, outputs=2, **ml,
                       attributes={**given, **two, **one, "base_values": [0.3]})  # fmt: skip


def _lenient() -> Iterator[Case]:
    """What ONNX Runtime takes though ONNX's text does not say so."""
    x = {"x": _normal(2, 5)}
    yield Case("clip", "Clip", ("x", "a", "b"), x, {"a": np.float32([0]), "b": np.float32([1])},
               domain="")  # fmt: skip
    yield Case("cumulative sum", "CumSum", ("x", "a"), x, {"a": np.int64([1])}, domain="")
    yield Case("cumulative product", "CumProd", ("x", "a"), x, {"a": np.int64([1])}, domain="",
               version=26)  # fmt: skip
    signal = {"s": _one(4, "int64"), "w": np.hanning(16).astype(np.float32)}
    yield Case("signal of two axes", "STFT", ("x", "s", "w"), {"x": _normal(2, 64)}, signal,
               domain="")  # fmt: skip
    numbers = np.random.default_rng(3)
    for mode in ("half_pixel", "output_half_pixel"):
        for far in (0.5, 9.0, 1000.0):
            rois = np.sort(numbers.uniform(-far / 5, far, (6, 2, 2)), axis=1).reshape(6, 4)
            rois[0] = [5, 5, 1, 1]
            yield Case(f"regions {mode} {far}", "RoiAlign", ("x", "r", "b"),
                       {"x": _normal(2, 3, 7, 9), "r": rois.astype(np.float32),
                        "b": numbers.integers(0, 2, 6)}, domain="",
                       attributes={"coordinate_transformation_mode": mode, "output_height": 2,
                                   "output_width": 3, "spatial_scale": 0.5})  # fmt: skip


def main() -> None:
    import onnxruntime

    onnxruntime.set_default_logger_severity(4)
    found = {}
    for case in cases():
        model = case.model().SerializeToString()
        session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        for place, output in enumerate(session.run(None, dict(case.given))):
            found[f"{case.name}/{place}"] = output
    np.savez_compressed(FILE, **found)


if __name__ == "__main__":
    main()
