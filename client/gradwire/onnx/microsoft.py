"""Operators of com.microsoft, which ONNX Runtime's optimizers write, as functions of gates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gradwire import tensors
from gradwire.errors import InvalidRequestError, UnsupportedError
from gradwire.onnx.values import Value, require_elements, shape_of

if TYPE_CHECKING:
    from gradwire.onnx.reading import Call, Reader


# -- activations and layers ------------------------------------------------------------------------


def _gelu(approximate: str) -> Callable[[Reader, Call], list[Value]]:
    """Gelu of x, and of a bias added to it where there is one."""

    def read(reader: Reader, call: Call) -> list[Value]:
        x = _sum(reader, call.required(0), call.input(1))
        return reader.emit("Gelu", [x], {"approximate": approximate})

    return read


def _quick_gelu(reader: Reader, call: Call) -> list[Value]:
    """x * sigmoid(alpha * x)."""
    return reader.emit("Swish", [call.required(0)], {"alpha": call.attributes.get("alpha", 1.702)})


def _activated(reader: Reader, call: Call, x: Value, parameters: Sequence[float]) -> Value:
    """What the attribute activation makes of x."""
    name = call.attributes.get("activation", "")
    given = tuple(parameters)
    match name:
        case "":
            return x
        case "Relu" | "Sigmoid" | "Tanh":
            return reader.one(name, x)
        case "LeakyRelu":
            return reader.one(name, x, alpha=(*given, 0.01)[0])
        case "HardSigmoid":
            alpha, beta = (*given, *(0.2, 0.5)[len(given) :])[:2]
            return reader.one(name, x, alpha=alpha, beta=beta)
        case "Clip":
            bounds = (reader.constant(each, x.dtype) for each in given[:2])
            return reader.one(name, x, *bounds)
    raise UnsupportedError(
        "ATTRIBUTE_INVALID", f"attribute 'activation' is {name!r}, which is unknown"
    )


def _fused_conv(reader: Reader, call: Call) -> list[Value]:
    """Conv, a sum added to it, an activation."""
    own = ("activation", "activation_params")
    attributes = {name: each for name, each in call.attributes.items() if name not in own}
    found = reader.emit("Conv", call.inputs[:3], attributes)[0]
    found = _sum(reader, found, call.input(3))
    return [_activated(reader, call, found, call.attributes.get("activation_params", ()))]


def _fused_gemm(reader: Reader, call: Call) -> list[Value]:
    """Gemm and an activation."""
    attributes = {
        name: each for name, each in call.attributes.items() if not name.startswith("activation")
    }
    names = ("activation_alpha", "activation_beta", "activation_gamma")
    given = [call.attributes[name] for name in names if name in call.attributes]
    found = reader.emit("Gemm", call.inputs, attributes)[0]
    return [_activated(reader, call, found, given)]


def _fused_matmul(reader: Reader, call: Call) -> list[Value]:
    """alpha times the product of matrices, each transposed if so asked; and an activation."""
    left, right = (
        _turned(
            reader,
            call.required(slot),
            bool(call.attributes.get(f"trans{side}", 0)),
            bool(call.attributes.get(f"transBatch{side}", 0)),
        )
        for slot, side in enumerate("AB")
    )
    found = reader.one("MatMul", left, right)
    alpha = call.attributes.get("alpha", 1.0)
    if alpha != 1:
        found = reader.one("Mul", found, reader.constant(alpha, found.dtype))
    names = ("activation_alpha", "activation_beta", "activation_gamma")
    given = [call.attributes[name] for name in names if name in call.attributes]
    return [_activated(reader, call, found, given)]


def _turned(reader: Reader, x: Value, last: bool, batch: bool) -> Value:
    """A stack of matrices with its first axis moved behind the batch, or the last two swapped."""
    if not last and not batch:
        return x
    rank = _rank(x)
    if rank < 2:
        return x
    order = [*range(rank)]
    if batch:
        order = [*range(1, rank - 1), 0, rank - 1]
    if last:
        order[-2:] = order[-1], order[-2]
    return reader.one("Transpose", x, perm=tuple(order))


def _layer_normalization(reader: Reader, call: Call) -> list[Value]:
    return reader.emit("LayerNormalization", call.inputs, call.attributes, call.outputs)


def _rms_normalization(reader: Reader, call: Call) -> list[Value]:
    """Over the root mean square of the last axes."""
    return reader.emit("RMSNormalization", call.inputs, call.attributes)


def _skip_normalization(simplified: bool) -> Callable[[Reader, Call], list[Value]]:
    """Normalizes a sum of two values and a bias, which is the fourth output."""

    def read(reader: Reader, call: Call) -> list[Value]:
        bias = call.input(3 if simplified else 4)
        total = _sum(reader, _sum(reader, call.required(0), call.required(1)), bias)
        epsilon = call.attributes.get("epsilon", 1e-12)
        scale = call.required(2)
        if simplified:
            found = reader.emit("RMSNormalization", [total, scale], {"epsilon": epsilon})
        else:
            found = _normalized(reader, total, scale, call.input(3), epsilon)
        if any(call.node.output[1:3]):
            raise UnsupportedError(
                "OUTPUT_COUNT_INVALID", "its outputs mean and inv_std_var have no counterpart here"
            )
        return [found[0], total, total, total][: max(call.outputs, 1)]

    return read


def _normalized(
    reader: Reader, x: Value, scale: Value, shift: Value | None, epsilon: float
) -> list[Value]:
    return reader.emit("LayerNormalization", [x, scale, shift], {"epsilon": epsilon})


def _embed(reader: Reader, call: Call) -> list[Value]:
    """The sum of three embeddings, normalized; how long each row is; and the sum itself."""
    ids, segments = call.required(0), call.input(1)
    words, positions = call.required(2), call.required(3)
    total = reader.one("Gather", words, ids)
    if call.input(8) is not None:
        total = reader.one("Add", total, reader.one("Gather", positions, call.required(8)))
    else:
        length = reader.one("Shape", ids, start=1, end=2)
        first = reader.one("Slice", positions, reader.constant([0]), length, reader.constant([0]))
        total = reader.one("Add", total, first)
    if segments is not None:
        total = reader.one("Add", total, reader.one("Gather", call.required(4), segments))
    epsilon = call.attributes.get("epsilon", 1e-12)
    found = _normalized(reader, total, call.required(5), call.input(6), epsilon)
    mask = call.input(7)
    int32 = int(tensors.data_type("int32"))
    if mask is None:
        zero = reader.one("Less", ids, ids)
        mask = reader.one("Cast", zero, to=int32)
    lengths = reader.one("ReduceSum", mask, reader.constant([1]), keepdims=0)
    return [found[0], lengths, total][: max(call.outputs, 1)]


# -- attention -------------------------------------------------------------------------------------


def _attention(reader: Reader, call: Call) -> list[Value]:
    """Attention of rows among themselves, with the three projections as one matrix."""
    attributes = call.attributes
    if attributes.get("do_rotary", 0):
        raise UnsupportedError("ATTRIBUTE_INVALID", "do_rotary has no counterpart here")
    packed = reader.one("MatMul", call.required(0), call.required(1))
    packed = _sum(reader, packed, call.input(2))
    sizes = attributes.get("qkv_hidden_sizes")
    if sizes:
        parts = reader.emit("Split", [packed, reader.constant(sizes)], {"axis": -1}, 3)
    else:
        parts = reader.emit("Split", [packed], {"axis": -1, "num_outputs": 3}, 3)
    query, key, value = (_heads(reader, each, _required(call, "num_heads")) for each in parts)
    past = call.input(4)
    if past is not None:
        key, value = (
            reader.emit(
                "Concat",
                [reader.one("Gather", past, reader.constant(place), axis=0), each],
                {"axis": 2},
            )[0]
            for place, each in enumerate((key, value))
        )
    bias = _sum_of(reader, _mask(reader, call, call.input(3), key, query.dtype), call.input(5))
    found = _attended(reader, call, query, key, value, bias, past is not None)
    if call.outputs < 2:
        return [found]
    sides = [reader.one("Unsqueeze", each, reader.constant([0])) for each in (key, value)]
    return [found, reader.emit("Concat", sides, {"axis": 0})[0]]


def _multi_head_attention(reader: Reader, call: Call) -> list[Value]:
    """Attention of rows that are projected already."""
    count = _required(call, "num_heads")
    parts = [call.required(slot) for slot in range(3)]
    if _rank(parts[0]) != 3:
        raise UnsupportedError(
            "SHAPE_MISMATCH",
            f"its query has {_rank(parts[0])} axes; those packed with key and value are not read",
        )
    if call.input(3) is not None:
        bias = call.required(3)
        widths = [(shape_of(each) or (None,))[-1] for each in parts]
        if None in widths:
            raise UnsupportedError("INPUT_NOT_KNOWN", "the widths of its inputs are not known")
        shifts = reader.emit("Split", [bias, reader.constant(widths)], {"axis": 0}, 3)
        parts = [reader.one("Add", *pair) for pair in zip(parts, shifts, strict=True)]
    query, key, value = (
        each if _rank(each) == 4 else _heads(reader, each, count) for each in parts
    )
    past = call.input(6), call.input(7)
    if past[0] is not None and past[1] is not None:
        key, value = (
            reader.emit("Concat", [*pair], {"axis": 2})[0]
            for pair in zip(past, (key, value), strict=True)
        )
    bias_of_mask = _mask(reader, call, call.input(4), key, query.dtype)
    mask = _sum_of(reader, bias_of_mask, call.input(5))
    found = _attended(reader, call, query, key, value, mask, past[0] is not None)
    return [found, key, value][: max(call.outputs, 1)]


def _heads(reader: Reader, rows: Value, count: int) -> Value:
    """[batch, length, heads * size] as [batch, heads, length, size]."""
    apart = reader.one("Reshape", rows, reader.constant([0, 0, count, -1]))
    return reader.one("Transpose", apart, perm=(0, 2, 1, 3))


def _attended(
    reader: Reader,
    call: Call,
    query: Value,
    key: Value,
    value: Value,
    bias: Value | None,
    is_continued: bool,
) -> Value:
    """[batch, length, heads * size]: softmax of the products, times the values."""
    attributes: dict[str, Any] = {}
    if call.attributes.get("scale"):
        attributes["scale"] = call.attributes["scale"]
    if call.attributes.get("unidirectional", 0):
        if is_continued:
            raise UnsupportedError(
                "ATTRIBUTE_INVALID", "unidirectional with past has no counterpart here"
            )
        attributes["is_causal"] = 1
    found = reader.emit("Attention", [query, key, value, bias], attributes)[0]
    flat = reader.one("Transpose", found, perm=(0, 2, 1, 3))
    return reader.one("Reshape", flat, reader.constant([0, 0, -1]))


def _mask(reader: Reader, call: Call, mask: Value | None, key: Value, dtype: str) -> Value | None:
    """What a mask of integers adds to the products: a large negative number where it is 0."""
    if mask is None:
        return None
    rank = _rank(mask)
    if rank == 1:  # how many keys of each row there are
        shape = shape_of(mask)
        batch = (shape_of(key) or (None,))[0]
        if shape is None or shape[0] is None or shape[0] != batch:
            raise UnsupportedError(
                "SHAPE_MISMATCH",
                f"a mask of shape {shape} is not read, but for one number for each of {batch} rows",
            )
        length = reader.one("Squeeze", reader.one("Shape", key, start=2, end=3))
        places = reader.one("Range", reader.constant(0), length, reader.constant(1))
        ends = reader.one("Cast", mask, to=int(tensors.data_type("int64")))
        kept = reader.one("Less", places, reader.one("Unsqueeze", ends, reader.constant([1])))
    else:
        kept = reader.one("Cast", mask, to=int(tensors.data_type("bool")))
    if rank < 4:
        kept = reader.one("Unsqueeze", kept, reader.constant([1, 2] if rank < 3 else [1]))
    low = call.attributes.get("mask_filter_value", -10000.0)
    return reader.one("Where", kept, reader.constant(0, dtype), reader.constant(low, dtype))


# -- quantized -------------------------------------------------------------------------------------


def _quantized(
    function: Callable[..., Value], *slots: int, ends: int
) -> Callable[..., list[Value]]:
    """A function of real numbers between integers: at `slots` a tensor, its scale and zero point.

    The scale and zero point of the output are at `ends`.
    """

    def read(reader: Reader, call: Call) -> list[Value]:
        given = [_real(reader, call, slot) for slot in slots]
        found = function(reader, call, *given)
        return reader.emit("QuantizeLinear", [found, call.required(ends), call.input(ends + 1)])

    return read


def _real(reader: Reader, call: Call, slot: int) -> Value:
    """The numbers that integers, a scale and a zero point stand for."""
    return reader.one(
        "DequantizeLinear", call.required(slot), call.required(slot + 1), call.input(slot + 2)
    )


def _same(operator: str, *names: str) -> Callable[..., Value]:
    """An operator of ONNX, with those attributes that it has."""

    def apply(reader: Reader, call: Call, *inputs: Value) -> Value:
        given = {name: each for name, each in call.attributes.items() if name in names}
        return reader.emit(operator, inputs, given)[0]

    return apply


def _pooled(operator: str, *names: str) -> Callable[..., Value]:
    """A pool, where channels are the second axis."""
    pool = _same(operator, *names)

    def apply(reader: Reader, call: Call, x: Value) -> Value:
        if call.attributes.get("channels_last", 0):
            raise UnsupportedError("ATTRIBUTE_INVALID", "channels_last has no counterpart here")
        return pool(reader, call, x)

    return apply


def _quantized_concat(reader: Reader, call: Call) -> list[Value]:
    parts = [_real(reader, call, slot) for slot in range(2, len(call.inputs), 3)]
    whole = reader.emit("Concat", parts, {"axis": _required(call, "axis")})[0]
    return reader.emit("QuantizeLinear", [whole, call.required(0), call.input(1)])


def _dynamic_quantize_matmul(reader: Reader, call: Call) -> list[Value]:
    """A product with integers, for which x is quantized on the way."""
    rows, scale, zero = reader.emit("DynamicQuantizeLinear", [call.required(0)], outputs=3)
    found = _integer_product(
        reader, rows, zero, scale, call.required(1), call.input(3), call.required(2)
    )
    return [_sum(reader, found, call.input(4))]


def _matmul_integer_to_float(reader: Reader, call: Call) -> list[Value]:
    found = _integer_product(
        reader, call.required(0), call.input(4), call.required(2),
        call.required(1), call.input(5), call.required(3),
    )  # fmt: skip
    return [_sum(reader, found, call.input(6))]


def _integer_product(
    reader: Reader, a: Value, a_zero: Value | None, a_scale: Value,
    b: Value, b_zero: Value | None, b_scale: Value,
) -> Value:  # fmt: skip
    product = reader.emit("MatMulInteger", [a, b, a_zero, b_zero])[0]
    real = reader.one("Cast", product, to=int(tensors.data_type(a_scale.dtype)))
    return reader.one("Mul", real, reader.one("Mul", a_scale, b_scale))


def _quantized_gemm(reader: Reader, call: Call) -> list[Value]:
    """A product of integers, plus integers; quantized again if so asked."""
    a, b = (
        _turned(reader, call.required(slot), bool(call.attributes.get(name, 0)), False)
        for slot, name in ((0, "transA"), (3, "transB"))
    )
    product = reader.emit("MatMulInteger", [a, b, call.input(2), call.input(5)])[0]
    product = _sum(reader, product, call.input(6))
    real = reader.one("Cast", product, to=int(tensors.data_type("float32")))
    scale = reader.one("Mul", call.required(1), call.required(4))
    alpha = call.attributes.get("alpha", 1.0)
    if alpha != 1:
        scale = reader.one("Mul", scale, reader.constant(alpha, "float32"))
    real = reader.one("Mul", real, scale)
    if call.input(7) is None:
        return [real]
    return reader.emit("QuantizeLinear", [real, call.required(7), call.input(8)])


def _matmul_of_few_bits(reader: Reader, call: Call) -> list[Value]:
    """A product with integers of few bits, which have a scale for each block of a row."""
    rows, width, block = (_required(call, name) for name in ("N", "K", "block_size"))
    bits = call.attributes.get("bits", 4)
    if call.input(4) is not None:
        raise UnsupportedError("INPUT_COUNT_INVALID", "its input g_idx has no counterpart here")
    if bits not in (2, 4, 8) or block < 1 or min(rows, width) < 1:
        raise InvalidRequestError(
            "ATTRIBUTE_INVALID", f"bits, block_size, N and K are {bits}, {block}, {rows}, {width}"
        )
    blocks = -(-width // block)
    packed = require_elements(call.required(1), "its input B")
    numbers = _unpacked(packed, bits, rows, blocks * block)
    scales = reader.one("Reshape", call.required(2), reader.constant([rows, blocks]))
    zeros = call.input(3)
    if zeros is None:
        middle = np.full((rows, blocks), 1 << (bits - 1))
        zeros = reader.constant(middle, "uint8")
    elif zeros.dtype == "uint8":
        held = require_elements(zeros, "its input zero_points")
        zeros = reader.constant(_unpacked(held, bits, rows, blocks), "uint8")
    else:
        raise UnsupportedError(
            "DATA_TYPE_UNSUPPORTED", f"zero_points are {zeros.dtype}, but only uint8 is read"
        )
    wide = {"axis": 1, "block_size": block}
    weights = reader.emit(
        "DequantizeLinear", [reader.constant(numbers, "uint8"), scales, zeros], wide
    )[0]
    if blocks * block != width:
        weights = reader.one(
            "Slice", weights, reader.constant([0]), reader.constant([width]), reader.constant([1])
        )
    columns = reader.one("Transpose", weights, perm=(1, 0))
    product = reader.one("MatMul", call.required(0), columns)
    return [_sum(reader, product, call.input(5))]


def _unpacked(packed: Any, bits: int, rows: int, width: int) -> Any:
    """Numbers of a few bits, the first in the lowest; each row begins with a byte of its own."""
    if packed.dtype != np.uint8:
        raise InvalidRequestError(
            "DATA_TYPE_MISMATCH", f"an input is {packed.dtype}, but must be uint8"
        )
    in_byte = 8 // bits
    held = -(-width // in_byte)
    if packed.size != rows * held:
        raise InvalidRequestError(
            "SHAPE_MISMATCH",
            f"an input has {packed.size} bytes, but {rows} rows of {width} numbers take "
            f"{rows * held}",
        )
    shifts = np.arange(in_byte, dtype=np.uint8) * np.uint8(bits)
    apart = (packed.reshape(rows, held, 1) >> shifts) & np.uint8((1 << bits) - 1)
    return apart.reshape(rows, held * in_byte)[:, :width]


# -- attributes ------------------------------------------------------------------------------------

_REAL, _INTEGER, _TEXT, _LIST = (float, int), (int,), (str,), (tuple,)
#: What kind each attribute is of, which ONNX cannot say of this domain.
_KINDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("activation_alpha", "activation_beta", "activation_gamma", "alpha", "beta",
                     "epsilon", "mask_filter_value", "scale"), _REAL),
    **dict.fromkeys(("K", "N", "axis", "bits", "block_size", "channels_last", "do_rotary",
                     "num_heads", "transA", "transB", "transBatchA", "transBatchB",
                     "unidirectional"), _INTEGER),
    **dict.fromkeys(("activation",), _TEXT),
    **dict.fromkeys(("activation_params", "qkv_hidden_sizes"), _LIST),
}  # fmt: skip


def _checked(read: Callable[[Reader, Call], list[Value]]) -> Callable[[Reader, Call], list[Value]]:
    """A reader whose attributes are of their kinds (ATTRIBUTE_INVALID)."""

    def checked(reader: Reader, call: Call) -> list[Value]:
        for name, value in call.attributes.items():
            kinds = _KINDS.get(name)
            if kinds is not None and not isinstance(value, kinds):
                raise InvalidRequestError(
                    "ATTRIBUTE_INVALID",
                    f"attribute {name!r} is {value!r} but must be of kind {kinds[0].__name__}",
                )
        return read(reader, call)

    return checked


def _required(call: Call, name: str) -> int:
    """An integer that must be given (ATTRIBUTE_INVALID)."""
    if name not in call.attributes:
        raise InvalidRequestError("ATTRIBUTE_INVALID", f"attribute {name!r} must be given")
    found: int = call.attributes[name]
    return found


# -- shared ----------------------------------------------------------------------------------------


def _sum(reader: Reader, x: Value, y: Value | None) -> Value:
    return x if y is None else reader.one("Add", x, y)


def _sum_of(reader: Reader, x: Value | None, y: Value | None) -> Value | None:
    return y if x is None else _sum(reader, x, y)


def _rank(value: Value) -> int:
    """How many axes there are (INPUT_NOT_KNOWN)."""
    shape = shape_of(value)
    if shape is None:
        raise UnsupportedError("INPUT_NOT_KNOWN", "the number of axes of an input is not known")
    return len(shape)


_POOLING = (
    "auto_pad", "ceil_mode", "count_include_pad", "kernel_shape", "pads", "strides",
)  # fmt: skip

_READERS: dict[str, Callable[[Reader, Call], list[Value]]] = {
    "Attention": _attention,
    "BiasGelu": _gelu("none"),
    "DequantizeLinear": lambda reader, call: reader.emit(
        "DequantizeLinear", call.inputs, call.attributes
    ),
    "DynamicQuantizeMatMul": _dynamic_quantize_matmul,
    "EmbedLayerNormalization": _embed,
    "FastGelu": _gelu("tanh"),
    "FusedConv": _fused_conv,
    "FusedGemm": _fused_gemm,
    "FusedMatMul": _fused_matmul,
    "FusedMatMulActivation": _fused_matmul,
    "Gelu": _gelu("none"),
    "LayerNormalization": _layer_normalization,
    "MatMulIntegerToFloat": _matmul_integer_to_float,
    "MatMulNBits": _matmul_of_few_bits,
    "MultiHeadAttention": _multi_head_attention,
    "QGemm": _quantized_gemm,
    "QLinearAdd": _quantized(_same("Add"), 0, 3, ends=6),
    "QLinearAveragePool": _quantized(_pooled("AveragePool", *_POOLING), 0, ends=3),
    "QLinearConcat": _quantized_concat,
    "QLinearGlobalAveragePool": _quantized(_pooled("GlobalAveragePool"), 0, ends=3),
    "QLinearLeakyRelu": _quantized(_same("LeakyRelu", "alpha"), 0, ends=3),
    "QLinearMul": _quantized(_same("Mul"), 0, 3, ends=6),
    "QLinearSigmoid": _quantized(_same("Sigmoid"), 0, ends=3),
    "QuantizeLinear": lambda reader, call: reader.emit(
        "QuantizeLinear", call.inputs, call.attributes
    ),
    "QuickGelu": _quick_gelu,
    "SimplifiedLayerNormalization": _rms_normalization,
    "SkipLayerNormalization": _skip_normalization(simplified=False),
    "SkipSimplifiedLayerNormalization": _skip_normalization(simplified=True),
}

#: What reads each operator.
OPERATORS = {name: _checked(each) for name, each in _READERS.items()}
#: Those that ONNX Runtime writes without their domain.
WITHOUT_DOMAIN: dict[str, Callable[[Reader, Call], list[Value]]] = {
    "SimplifiedLayerNormalization": _rms_normalization,
}
