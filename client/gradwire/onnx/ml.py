"""Operators of ai.onnx.ml as gates: linear models, kernels, scaling; and trees (`trees.py`).

Each reader yields what ONNX Runtime computes. Labels and tables have gradient 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from gradwire import tensors
from gradwire.errors import InvalidRequestError, UnsupportedError
from gradwire.onnx.ml_scores import (
    class_labels,
    floats_of,
    labelled,
    of_two_classes,
    post_transformed,
    unknown_choice,
)
from gradwire.onnx.trees import TREES
from gradwire.onnx.values import Value, require_size, shape_of

if TYPE_CHECKING:
    from gradwire.onnx.reading import Call, Reader


def _as_float32(reader: Reader, value: Value) -> Value:
    return floats_of(reader, value, ())


def _numbers(call: Call, name: str) -> np.ndarray[Any, Any]:
    return np.asarray(call.attributes.get(name) or (), np.float32)


def _scaler(reader: Reader, call: Call) -> list[Value]:
    """(x - offset) * scale, in the data type of x; float32."""
    x = floats_of(reader, call.required(0))
    offset, scale = (reader.constant(_numbers(call, name), x.dtype) for name in ("offset", "scale"))
    return [_as_float32(reader, reader.one("Mul", reader.one("Sub", x, offset), scale))]


def _normalizer(reader: Reader, call: Call) -> list[Value]:
    """Rows over their norms; a row of zeros stays."""
    x = floats_of(reader, call.required(0), ())
    last = reader.constant([-1])
    match call.attributes.get("norm", "MAX"):
        case "MAX":
            norm = reader.one("ReduceMax", x, last)
        case "L1":
            norm = reader.one("ReduceL1", x, last)
        case "L2":
            norm = reader.one("ReduceL2", x, last)
        case other:
            raise unknown_choice("norm", other)
    zero, one = (reader.constant(number, x.dtype) for number in (0, 1))
    return [reader.one("Div", x, reader.one("Where", reader.one("Equal", norm, zero), one, norm))]


def _linear_regressor(reader: Reader, call: Call) -> list[Value]:
    """x @ coefficients + intercepts."""
    targets = call.attributes.get("targets", 1)
    scores = _linear_scores(reader, call, targets)
    return [post_transformed(reader, scores, call)]


def _linear_scores(reader: Reader, call: Call, count: int) -> Value:
    x = _rows(reader, _as_float32(reader, call.required(0)))
    coefficients, intercepts = _numbers(call, "coefficients"), _numbers(call, "intercepts")
    if not 1 <= count <= max(coefficients.size, 1) or coefficients.size % count:
        raise InvalidRequestError(
            "ATTRIBUTE_INVALID",
            f"{coefficients.size} coefficients cannot be divided among {count} targets",
        )
    weights = np.ascontiguousarray(coefficients.reshape(count, -1).T)
    scores = reader.one("MatMul", x, reader.constant(weights, "float32"))
    if intercepts.size:
        scores = reader.one("Add", scores, reader.constant(intercepts, "float32"))
    return scores


def _linear_classifier(reader: Reader, call: Call) -> list[Value]:
    """Labels, and scores of each class: two where one score tells two classes apart."""
    labels = class_labels(call, "classlabels_ints")
    count = max(_numbers(call, "intercepts").size, 1)
    scores = _linear_scores(reader, call, count)
    if count > 1:
        label = labelled(reader, reader.one("ArgMax", scores, axis=1, keepdims=0), labels)
        return [label, post_transformed(reader, scores, call)]
    return [*of_two_classes(reader, call, scores, labels, is_share=False, complement=True)]


def _svm_regressor(reader: Reader, call: Call) -> list[Value]:
    """Kernels between x and the support vectors, weighted; or a linear function without them."""
    x = _rows(reader, _as_float32(reader, call.required(0)))
    coefficients, rho = _numbers(call, "coefficients"), _numbers(call, "rho")[:1]
    count = call.attributes.get("n_supports", 0)
    if count:
        vectors = _numbers(call, "support_vectors")
        if count < 0 or vectors.size % count or coefficients.size != count:
            raise InvalidRequestError(
                "ATTRIBUTE_INVALID",
                f"n_supports is {count}, but there are {coefficients.size} coefficients and "
                f"{vectors.size} numbers in support_vectors",
            )
        x = _kernel(reader, call, x, vectors.reshape(count, -1))
    score = reader.one("MatMul", x, reader.constant(coefficients[:, None], "float32"))
    score = reader.one("Add", score, reader.constant(rho, "float32"))
    if call.attributes.get("one_class", 0):
        above = reader.one("Greater", score, reader.constant(0, "float32"))
        score = reader.one(
            "Where", above, reader.constant(1, "float32"), reader.constant(-1, "float32")
        )
        return [score]
    return [post_transformed(reader, score, call)]


def _kernel(reader: Reader, call: Call, x: Value, vectors: np.ndarray[Any, Any]) -> Value:
    """The kernel of each row with each support vector."""
    kind = call.attributes.get("kernel_type", "LINEAR")
    gamma, coef0, degree = (*_numbers(call, "kernel_params"), 0, 0, 0)[:3]

    def number(value: Any) -> Value:
        return reader.constant(value, "float32")

    if kind == "RBF":
        apart = reader.one("Unsqueeze", x, reader.constant([1]))
        between = reader.one("Sub", apart, number(vectors))
        squares = reader.one("ReduceSumSquare", between, reader.constant([2]), keepdims=0)
        return reader.one("Exp", reader.one("Mul", squares, number(-gamma)))
    product = reader.one("MatMul", x, number(np.ascontiguousarray(vectors.T)))
    if kind == "LINEAR":
        return product
    moved = reader.one("Add", reader.one("Mul", product, number(gamma)), number(coef0))
    if kind == "POLY":
        return reader.one("Pow", moved, number(degree))
    if kind == "SIGMOID":
        return reader.one("Tanh", moved)
    raise unknown_choice("kernel_type", kind)


def _imputer(reader: Reader, call: Call) -> list[Value]:
    """Missing values, NaN or a number, replaced by constants."""
    x = call.required(0)
    is_float = x.dtype in tensors.FLOATS
    kind, replaced = ("float", "replaced_value_float") if is_float else (
        "int64", "replaced_value_int64")  # fmt: skip
    by = call.attributes.get(f"imputed_value_{kind}s") or ()
    missing = call.attributes.get(replaced, 0)
    if not by:
        raise InvalidRequestError(
            "ATTRIBUTE_INVALID", f"x is {x.dtype}, so imputed_value_{kind}s must be given"
        )
    if missing == missing:
        is_missing = reader.one("Equal", x, reader.constant(missing, x.dtype))
    else:
        is_missing = reader.one("IsNaN", x)
    return [reader.one("Where", is_missing, reader.constant(by, x.dtype), x)]


def _binarizer(reader: Reader, call: Call) -> list[Value]:
    """1 above the threshold, else 0."""
    x = call.required(0)
    threshold = reader.constant(call.attributes.get("threshold", 0.0), x.dtype)
    is_above = reader.one("Greater", x, threshold)
    return [reader.one("Cast", is_above, to=int(tensors.data_type(x.dtype)))]


def _feature_vectorizer(reader: Reader, call: Call) -> list[Value]:
    """Inputs side by side, cut or filled with zeros to their lengths."""
    lengths = tuple(call.attributes.get("inputdimensions") or ())
    inputs = [call.required(slot) for slot in range(len(call.inputs))]
    if len(lengths) != len(inputs):
        raise InvalidRequestError(
            "ATTRIBUTE_INVALID",
            f"inputdimensions has {len(lengths)} numbers but there are {len(inputs)} inputs",
        )
    parts = []
    for value, length in zip(inputs, lengths, strict=True):
        matrix = _as_float32(reader, value)
        shape = shape_of(value)
        if shape is not None and len(shape) == 1:
            matrix = reader.one("Unsqueeze", matrix, reader.constant([1]))
            width = 1
        else:
            width = require_size(value, 1, "the number of columns of an input")
        if width != length:  # a negative pad cuts
            pads = reader.constant([0, 0, 0, length - width])
            matrix = reader.one("Pad", matrix, pads)
        parts.append(matrix)
    return reader.emit("Concat", parts, {"axis": 1})


def _array_feature_extractor(reader: Reader, call: Call) -> list[Value]:
    """Columns of x; a row where x is a vector."""
    x = call.required(0)
    flat = reader.one("Reshape", call.required(1), reader.constant([-1]))
    columns = reader.one("Gather", x, flat, axis=-1)
    shape = shape_of(x)
    if shape is not None and len(shape) == 1:
        columns = reader.one("Unsqueeze", columns, reader.constant([0]))
    return [columns]


def _one_hot_encoder(reader: Reader, call: Call) -> list[Value]:
    """1 at the category that x is; nothing but zeros for a category that is not among them."""
    categories = call.attributes.get("cats_int64s")
    if not categories:
        raise UnsupportedError(
            "DATA_TYPE_UNSUPPORTED",
            "its categories are text, which gate graphs do not have; encode them beforehand",
            {"data_type": "string"},
        )
    if not call.attributes.get("zeros", 1):
        raise UnsupportedError(
            "ATTRIBUTE_INVALID", "zeros is 0, so some values would be errors; set zeros to 1"
        )
    x = reader.one("Cast", call.required(0), to=int(tensors.data_type("int64")))
    apart = reader.one("Unsqueeze", x, reader.constant([-1]))
    equal = reader.one("Equal", apart, reader.constant(categories))
    return [reader.one("Cast", equal, to=int(tensors.data_type("float32")))]


def _label_encoder(reader: Reader, call: Call) -> list[Value]:
    """The value that belongs to each key, or a default."""
    keys, values, default = _table(call)
    x = call.required(0)
    if x.dtype != str(keys.dtype):
        raise InvalidRequestError(
            "DATA_TYPE_MISMATCH", f"x is {x.dtype} but the keys are {keys.dtype}"
        )
    apart = reader.one("Unsqueeze", x, reader.constant([-1]))
    equal = reader.one("Equal", apart, reader.constant(keys, x.dtype))
    if keys.dtype.kind == "f" and np.isnan(keys).any():
        is_nan = reader.one(
            "And", reader.one("IsNaN", apart), reader.constant(np.isnan(keys), "bool")
        )
        equal = reader.one("Or", equal, is_nan)
    marks = reader.one("Cast", equal, to=int(tensors.data_type("int64")))
    place = reader.one("ArgMax", marks, axis=-1, keepdims=0)
    is_known = reader.one("ReduceMax", marks, reader.constant([-1]), keepdims=0)
    is_known = reader.one("Cast", is_known, to=int(tensors.data_type("bool")))
    dtype = str(values.dtype)
    taken = reader.one("Gather", reader.constant(values, dtype), place)
    return [reader.one("Where", is_known, taken, reader.constant(default, dtype))]


def _table(call: Call) -> tuple[Any, Any, Any]:
    """Keys, values and the default of a LabelEncoder (DATA_TYPE_UNSUPPORTED of text)."""
    kinds = {"floats": np.float32, "int64s": np.int64}
    sides: list[Any] = []
    for side in ("keys", "values"):
        named = {kind: call.attributes.get(f"{side}_{kind}") for kind in (*kinds, "tensor")}
        kind = next((kind for kind, each in named.items() if each is not None), None)
        if kind is None:
            raise UnsupportedError(
                "DATA_TYPE_UNSUPPORTED",
                f"its {side} are text, which gate graphs do not have; encode them beforehand",
                {"data_type": "string"},
            )
        side_array = named[kind] if kind == "tensor" else np.asarray(named[kind], kinds[kind])
        sides.append(np.asarray(side_array).reshape(-1))
    default = call.attributes.get("default_tensor")
    if default is None and sides[1].dtype.kind == "f":
        default = call.attributes.get("default_float", -0.0)
    elif default is None:
        default = call.attributes.get("default_int64", -1)
    default = np.asarray(default)
    if default.size != 1:
        raise InvalidRequestError(
            "ATTRIBUTE_INVALID", f"default_tensor has {default.size} elements, but must have one"
        )
    return (*sides, default.reshape(-1)[0])


def _zip_map(reader: Reader, call: Call) -> list[Value]:
    """The scores themselves: a row stands for the dictionary, in the order of the class labels."""
    return [call.required(0)]


def _rows(reader: Reader, x: Value) -> Value:
    """A matrix: a vector is one row."""
    shape = shape_of(x)
    if shape is not None and len(shape) == 1:
        return reader.one("Unsqueeze", x, reader.constant([0]))
    return x


#: What reads each operator.
OPERATORS: dict[str, Callable[[Reader, Call], list[Value]]] = {
    "ArrayFeatureExtractor": _array_feature_extractor,
    "Binarizer": _binarizer,
    "FeatureVectorizer": _feature_vectorizer,
    "Imputer": _imputer,
    "LabelEncoder": _label_encoder,
    "LinearClassifier": _linear_classifier,
    "LinearRegressor": _linear_regressor,
    "Normalizer": _normalizer,
    "OneHotEncoder": _one_hot_encoder,
    "SVMRegressor": _svm_regressor,
    "Scaler": _scaler,
    "ZipMap": _zip_map,
    **TREES,
}
