"""What ONNX has and gate graphs have not, and why. The table in docs/onnx.md is made from these."""

from __future__ import annotations

_STRINGS = "computes with strings, which gate graphs do not have"
_RANDOM = (
    "draws numbers that differ from run to run, so that values and gradients could not be had again"
)
_TRAINING = "is a step of an optimiser: compute it from the gradients that the server yields"

#: Operators of ONNX's own domain that are refused: operator -> why.
REFUSED_OPERATORS = {
    "StringConcat": _STRINGS,
    "StringNormalizer": _STRINGS,
    "StringSplit": _STRINGS,
    "RegexFullMatch": _STRINGS,
    "TfIdfVectorizer": "counts words, which has no gradient; compute its output beforehand",
    "ImageDecoder": "decodes image files; compute its output beforehand",
    "Bernoulli": _RANDOM,
    "Multinomial": _RANDOM,
    "RandomNormal": _RANDOM,
    "RandomNormalLike": _RANDOM,
    "RandomUniform": _RANDOM,
    "RandomUniformLike": _RANDOM,
}

#: Domains whose operators are refused, but for those that ONNX defines by others: domain -> why.
REFUSED_DOMAINS = {
    "ai.onnx.ml": (
        "is of ai.onnx.ml, of which text, dictionaries and classifiers by support vectors are "
        "not read"
    ),
    "ai.onnx.preview.training": _TRAINING,
}
