"""Operators of older operator sets, as those that gates mean.

Only where the meaning changed: most operator sets add data types, or attributes and inputs whose
default is what was meant before. `UNCHANGED` lists those additions, a test that nothing is in
neither list.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import isfinite
from typing import TYPE_CHECKING, Any

import numpy as np

from gradwire import tensors
from gradwire.builder import OPERATOR_SET_VERSION
from gradwire.errors import UnsupportedError
from gradwire.onnx.values import (
    Value,
    elements_of,
    require_elements,
    shape_of,
    taken_elements,
    whole_number,
)

if TYPE_CHECKING:
    from gradwire.onnx.reading import Call, Reader

#: Yields a later form of a call, or its values.
Adapter = Callable[["Reader", "Call"], "Call | list[Value]"]

_LEGACY_ATTRIBUTES = ("consumed_inputs",)  # hints of operator set 1, without meaning


def upgrade(reader: Reader, call: Call) -> list[Value] | None:
    """Brings a call up to our operator set; its values, if that took other operators.

    OPERATOR_SET_UNSUPPORTED where it cannot be done.
    """
    for name in _LEGACY_ATTRIBUTES:
        call.attributes.pop(name, None)
    for before, adapter in ADAPTERS.get(call.operator, ()):
        if call.version < before:
            operator = call.operator
            found = adapter(reader, call)
            if isinstance(found, list):
                return found
            if found.operator != operator:
                return upgrade(reader, found) or reader.emit(
                    found.operator, found.inputs, found.attributes, found.outputs
                )
    return None


def cannot(call: Call, why: str) -> UnsupportedError:
    """A refusal that names both operator sets."""
    return UnsupportedError(
        "OPERATOR_SET_UNSUPPORTED",
        f"{why} in operator set {call.version}, which has no counterpart in operator set "
        f"{OPERATOR_SET_VERSION}, which Gradwire implements",
    )


def _attributes_to_inputs(dtype: str, *names: tuple[str, int]) -> Adapter:
    """Attributes that became inputs, at their places."""

    def adapter(reader: Reader, call: Call) -> Call:
        for name, slot in names:
            given = call.attributes.pop(name, None)
            if given is not None:
                _put(call, slot, reader.constant(given, dtype))
        return call

    return adapter


def _put(call: Call, slot: int, value: Value) -> None:
    call.inputs.extend([None] * (slot + 1 - len(call.inputs)))
    call.inputs[slot] = value


def _defaults(**values: Any) -> Adapter:
    """Attributes whose default was another."""

    def adapter(reader: Reader, call: Call) -> Call:
        call.attributes = {**values, **call.attributes}
        return call

    return adapter


def _without(*names: str) -> Adapter:
    """Attributes that had no effect on what is computed here."""

    def adapter(reader: Reader, call: Call) -> Call:
        for name in names:
            call.attributes.pop(name, None)
        return call

    return adapter


def _renamed(attribute: str, **names: str) -> Adapter:
    """Values of an attribute that have other names."""

    def adapter(reader: Reader, call: Call) -> Call:
        given = call.attributes.get(attribute)
        if given in names:
            call.attributes[attribute] = names[given]
        return call

    return adapter


def _number_of_top(reader: Reader, call: Call) -> Call:
    """In 1 the number of elements was an attribute."""
    _put(call, 1, reader.constant([call.attributes.pop("k", 1)]))
    return call


def _rank(call: Call, value: Value | None) -> int:
    shape = None if value is None else shape_of(value)
    if shape is None:
        raise cannot(call, "needs the number of axes of an input, which is not known,")
    return len(shape)


def _aligned_from_the_left(reader: Reader, call: Call) -> Call:
    """Before 7 the second operand's axes began at `axis`."""
    broadcast, axis = call.attributes.pop("broadcast", 0), call.attributes.pop("axis", None)
    left, right = call.input(0), call.input(1)
    if broadcast and axis is not None and left is not None and right is not None:
        rank, width = _rank(call, left), _rank(call, right)
        after = rank - (axis % rank if rank else 0) - width
        if after > 0 and width:
            places = reader.constant(range(width, width + after))
            call.inputs[1] = reader.emit("Unsqueeze", [right, places])[0]
    return call


def _slope_of_channels(reader: Reader, call: Call) -> Call:
    """Before 7 a slope had one element, or one for each channel."""
    x, slope = call.input(0), call.input(1)
    if x is not None and slope is not None and _rank(call, slope) == 1:
        shape = shape_of(slope)
        after = _rank(call, x) - 2
        if shape != (1,) and after > 0:
            places = reader.constant(range(1, 1 + after))
            call.inputs[1] = reader.emit("Unsqueeze", [slope, places])[0]
    return call


def _mode_of_batch_normalization(reader: Reader, call: Call) -> Call:
    """Before 7 `is_test` said whether to train, later whether more than one output is used."""
    training = not call.attributes.pop("is_test", 0) if call.version < 7 else call.outputs > 1
    if not call.attributes.pop("spatial", 1):
        shape = shape_of(call.required(1))
        if shape is None or len(shape) != 1:
            raise cannot(call, "spatial = 0 normalizes each place by itself")
    if any(call.node.output[3:]):
        raise cannot(call, "yields saved_mean and saved_var")
    call.attributes["training_mode"] = int(training)
    return call


def _number_of_data_type(reader: Reader, call: Call) -> Call:
    """Before 6 Cast had the data type's name."""
    names = {"float": "float32", "double": "float64"}
    name = str(call.attributes.get("to", "")).lower()
    call.attributes["to"] = int(tensors.data_type(names.get(name, name)))
    return call


def _limits_of_clip(reader: Reader, call: Call) -> Call:
    """Before 11 the limits were attributes."""
    x = call.required(0)
    for slot, name in enumerate(("min", "max"), 1):
        given = call.attributes.pop(name, None)
        if given is not None:
            _put(call, slot, reader.constant(given, x.dtype))
    return call


def _value_of_pad(reader: Reader, call: Call) -> Call:
    """Before 11 pads and value were attributes; in 1 the pads had another name."""
    x = call.required(0)
    pads = call.attributes.pop("paddings" if call.version < 2 else "pads", ())
    _put(call, 1, reader.constant(pads))
    value = call.attributes.pop("value", 0.0)
    if value:
        _put(call, 2, reader.constant(value, x.dtype))
    return call


def _ratio_of_dropout(reader: Reader, call: Call) -> Call | list[Value]:
    """Before 12 nothing was dropped where a model was tested, and there was no seed."""
    call.attributes.pop("ratio", None)
    if call.version < 7 and not call.attributes.pop("is_test", 0):
        raise cannot(call, "draws numbers without a seed (is_test = 0)")
    outputs = reader.emit("Dropout", call.inputs, {}, call.outputs)
    if call.outputs > 1 and call.version < 10:  # the mask was of the data's type
        number = int(tensors.data_type(outputs[0].dtype))
        outputs[1] = reader.emit("Cast", [outputs[1]], {"to": number})[0]
    return outputs


def _seed_of_dropout(reader: Reader, call: Call) -> Call:
    """In training mode a seed is needed, unless nothing is dropped."""
    training, ratio = call.input(2), call.input(1)
    if training is None or call.attributes.get("seed") is not None:
        return call
    mode = elements_of(training)
    share = None if ratio is None else taken_elements(ratio)
    if share is not None and not share.any():
        call.attributes["seed"] = 0
    elif mode is not None and mode.all():
        raise UnsupportedError(
            "ATTRIBUTE_INVALID",
            "draws numbers without a seed, so its values could not be had again; set its attribute "
            "seed",
        )
    return call


def _groups_to_channels(reader: Reader, call: Call) -> Call:
    """Before 21 there was one scale and bias a group, later one a channel."""
    x, *each = (call.required(slot) for slot in range(3))
    groups = call.attributes.get("num_groups", 1)
    count = reader.constant([groups])
    channels = reader.emit("Shape", [x], {"start": 1, "end": 2})[0]
    shape = reader.emit("Concat", [count, reader.emit("Div", [channels, count])[0]], {"axis": 0})[0]
    for slot, value in enumerate(each, 1):
        columns = reader.emit("Unsqueeze", [value, reader.constant([1])])[0]
        wide = reader.emit("Expand", [columns, shape])[0]
        call.inputs[slot] = reader.emit("Reshape", [wide, reader.constant([-1])])[0]
    return call


def _of_matrix(reader: Reader, call: Call) -> Call | list[Value]:
    """Before 13 the axes from `axis` on counted as one."""
    x = call.required(0)
    axis = call.attributes.get("axis", 1)
    shape = shape_of(x)
    if shape is not None and axis % max(len(shape), 1) == len(shape) - 1:
        call.attributes["axis"] = -1
        return call
    matrix = reader.emit("Flatten", [x], {"axis": axis})[0]
    found = reader.emit(call.operator, [matrix], {"axis": -1})[0]
    return reader.emit("Reshape", [found, reader.emit("Shape", [x])[0]])


def _whole_power(reader: Reader, call: Call) -> Call:
    """In 1 the norm's power was a real number."""
    power = call.attributes.get("p", 2)
    if not (isfinite(power) and power == int(power) and abs(power) < 1 << 31):
        raise cannot(call, f"p = {power} is not a whole number")
    call.attributes["p"] = int(power)
    return call


def _equal_parts(reader: Reader, call: Call) -> Call:
    """Before 18 parts were equal where no sizes were given."""
    if call.input(1) is None:
        call.inputs = call.inputs[:1]
        call.attributes["num_outputs"] = call.outputs
    return call


def _repeats_of_one_axis(reader: Reader, call: Call) -> Call:
    """In 1 Tile repeated one axis."""
    x, tiles, axis = (call.required(slot) for slot in range(3))
    rank = _rank(call, x)
    count = whole_number(require_elements(tiles, "tiles"), "tiles")
    place = whole_number(require_elements(axis, "axis"), "axis")
    if not 0 <= place < rank:
        raise cannot(call, f"tiles {count} along axis {place}")
    repeats = np.ones(rank, np.int64)
    repeats[place] = count
    call.inputs = [x, reader.constant(repeats)]
    return call


def _resize_of_10(reader: Reader, call: Call) -> Call:
    """In 10 places were counted from the corner."""
    call.inputs = [call.required(0), None, call.required(1)]
    call.attributes["coordinate_transformation_mode"] = "asymmetric"
    call.attributes["nearest_mode"] = "floor"
    return call


def _resize_of_11(reader: Reader, call: Call) -> Call:
    """Before 13 a mode existed that was for the nearest element only."""
    if call.attributes.get("coordinate_transformation_mode") == "tf_half_pixel_for_nn":
        rounding = call.attributes.get("nearest_mode", "round_prefer_floor")
        if call.attributes.get("mode", "nearest") != "nearest" or rounding != "floor":
            raise cannot(call, "coordinate_transformation_mode is 'tf_half_pixel_for_nn'")
        # half a pixel further, rounded down, is the nearest
        call.attributes["coordinate_transformation_mode"] = "half_pixel"
        call.attributes["nearest_mode"] = "round_prefer_ceil"
    return call


def _left_out_where_empty(reader: Reader, call: Call) -> Call:
    """An empty tensor means that roi, scales or sizes are left out."""
    call.inputs[1:] = [
        None if each is not None and shape_of(each) == (0,) else each for each in call.inputs[1:]
    ]
    return call


def _upsample(reader: Reader, call: Call) -> Call:
    """Upsample is Resize from the corner."""
    attributes, x = call.attributes, call.required(0)
    if call.version < 7:
        scales = (1.0, 1.0, attributes.pop("height_scale", 1.0), attributes.pop("width_scale", 1.0))
        mode = "linear" if attributes.get("mode") == "bilinear" else "nearest"
        given: Value | None = reader.constant(scales, "float32")
    elif call.version < 9:
        mode = attributes.get("mode", "nearest")
        given = reader.constant(attributes.pop("scales", ()), "float32")
    else:
        mode, given = attributes.get("mode", "nearest"), call.required(1)
    later = {
        "mode": mode,
        "coordinate_transformation_mode": "asymmetric",
        "nearest_mode": "floor",
    }
    return replace(
        call,
        operator="Resize",
        version=OPERATOR_SET_VERSION,
        inputs=[x, None, given],
        attributes=later,
    )


def _one_number(*slots: int) -> Adapter:
    """Scalars that a model may hold as tensors of one element."""

    def adapter(reader: Reader, call: Call) -> Call:
        for slot in slots:
            value = call.input(slot)
            shape = () if value is None else shape_of(value)
            if value is None or not shape or set(shape) != {1}:
                continue
            if value.array is not None and not value.name:
                call.inputs[slot] = reader.constant(value.array.reshape(()), value.dtype)
            else:
                call.inputs[slot] = reader.emit("Reshape", [value, reader.constant([])])[0]
        return call

    return adapter


def _signal_of_real_numbers(reader: Reader, call: Call) -> Call:
    """A signal may be [batch, length], as older exporters write it."""
    signal = call.required(0)
    if len(shape_of(signal) or ()) == 2:
        call.inputs[0] = reader.emit("Unsqueeze", [signal, reader.constant([2])])[0]
    return call


def _scatter(reader: Reader, call: Call) -> Call:
    """Scatter has another name since 11."""
    return replace(call, operator="ScatterElements")


def _spread_convolution(reader: Reader, call: Call) -> list[Value]:
    """QLinearConv by the operators that it is made of."""
    x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero = map(call.required, range(8))
    bias = call.input(8)
    inputs = [
        reader.emit("DequantizeLinear", [x, x_scale, x_zero])[0],
        reader.emit("DequantizeLinear", [w, w_scale, w_zero], {"axis": 0})[0],
    ]
    if bias is not None:
        scale = reader.emit("Mul", [x_scale, w_scale])[0]
        inputs.append(reader.emit("DequantizeLinear", [bias, scale], {"axis": 0})[0])
    found = reader.emit("Conv", inputs, call.attributes)
    return reader.emit("QuantizeLinear", [found[0], y_scale, y_zero])


_BINARY = ("Add", "Sub", "Mul", "Div", "Pow", "And", "Or", "Xor", "Equal", "Greater", "Less")
_REDUCTIONS = (
    "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceLogSum",
    "ReduceLogSumExp", "ReduceSumSquare",
)  # fmt: skip
_ALWAYS = OPERATOR_SET_VERSION + 1

#: By operator: (operator set before which it meant something else, what to do), oldest first.
ADAPTERS: dict[str, tuple[tuple[int, Adapter], ...]] = {
    **dict.fromkeys(_BINARY, ((7, _aligned_from_the_left),)),
    **{operator: ((18, _attributes_to_inputs("int64", ("axes", 1))),) for operator in _REDUCTIONS},
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax"), ((13, _of_matrix),)),
    **{operator: ((7, _without("output_sequence")),) for operator in ("RNN", "GRU", "LSTM")},
    "BatchNormalization": ((14, _mode_of_batch_normalization),),
    "Cast": ((6, _number_of_data_type),),
    "Clip": ((11, _limits_of_clip), (_ALWAYS, _one_number(1, 2))),
    "Concat": ((4, _defaults(axis=1)),),
    "CumProd": ((_ALWAYS, _one_number(1)),),
    "CumSum": ((_ALWAYS, _one_number(1)),),
    "DFT": ((20, _defaults(axis=1)), (20, _attributes_to_inputs("int64", ("axis", 2)))),
    "Dropout": ((12, _ratio_of_dropout), (_ALWAYS, _seed_of_dropout)),
    "Gemm": ((7, _without("broadcast")),),
    "GlobalLpPool": ((2, _whole_power),),
    "GridSample": ((20, _renamed("mode", bilinear="linear", bicubic="cubic")),),
    "GroupNormalization": ((21, _groups_to_channels),),
    "LpPool": ((2, _whole_power),),
    "PRelu": ((7, _slope_of_channels),),
    "Pad": ((11, _value_of_pad),),
    "QLinearConv": ((_ALWAYS, _spread_convolution),),
    "ReduceSum": ((13, _attributes_to_inputs("int64", ("axes", 1))),),
    "Reshape": ((5, _attributes_to_inputs("int64", ("shape", 1))),),
    "Resize": ((11, _resize_of_10), (13, _resize_of_11), (_ALWAYS, _left_out_where_empty)),
    "RoiAlign": ((16, _defaults(coordinate_transformation_mode="output_half_pixel")),),
    "STFT": ((_ALWAYS, _signal_of_real_numbers),),
    "Scatter": ((_ALWAYS, _scatter),),
    "Selu": ((6, _defaults(alpha=1.6732, gamma=1.0507)),),
    "Slice": ((10, _attributes_to_inputs("int64", ("starts", 1), ("ends", 2), ("axes", 3))),),
    "Split": ((13, _attributes_to_inputs("int64", ("split", 1))), (18, _equal_parts)),
    "Squeeze": ((13, _attributes_to_inputs("int64", ("axes", 1))),),
    "Tile": ((6, _repeats_of_one_axis),),
    "TopK": ((10, _number_of_top),),
    "Unsqueeze": ((13, _attributes_to_inputs("int64", ("axes", 1))),),
    "Upsample": ((_ALWAYS, _upsample),),
}

#: Operator sets that added to an operator what means the same where it is left out.
UNCHANGED: dict[str, tuple[int, ...]] = {
    "ArgMax": (12,),  # select_last_index
    "ArgMin": (12,),
    "Attention": (24, 25),  # nonpad_kv_seqlen; windows
    "AveragePool": (7, 10, 19),  # count_include_pad; ceil_mode; dilations
    "Cast": (19, 24),  # saturate, round_mode: of 8-bit floats
    "CastLike": (19, 24),
    "Clip": (6,),  # limits that are no limits
    "Constant": (11, 12),  # other forms of the value
    "DepthToSpace": (11,),  # mode
    "DequantizeLinear": (13, 21, 23),  # axis, where scales were one; block_size; output_dtype
    "GRU": (3, 14),  # linear_before_reset, a typing error; layout
    "GatherND": (12,),  # batch_dims
    "Gemm": (11,),  # C may be left out
    "LSTM": (14,),  # layout
    "LpPool": (18,),  # ceil_mode, dilations
    "MaxPool": (8, 10),  # Indices, storage_order; dilations, ceil_mode
    "Pad": (18,),  # axes
    "QuantizeLinear": (13, 19, 21, 23),  # axis; saturate; output_dtype, block_size; precision
    "RNN": (14,),  # layout
    "Range": (27,),  # stash_type
    "Reshape": (14,),  # allowzero
    "Resize": (18,),  # antialias, axes, keep_aspect_ratio_policy
    "ScatterElements": (16,),  # reduction
    "ScatterND": (16,),
    "Shape": (15,),  # start, end
    "SpaceToDepth": (28,),  # mode
    "TopK": (11,),  # largest, sorted
}
