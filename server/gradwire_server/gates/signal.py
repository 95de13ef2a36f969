"""Signal: Fourier transforms, the windows put before them, and the bands put after.

A complex number is a last axis of size 2, its real part and its imaginary part.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import expm1, floor, isfinite, log, log1p, pi
from typing import Any

from gradwire_server.errors import Invalid
from gradwire_server.gates.base import (
    Array,
    Attribute,
    Example,
    Gate,
    Input,
    Namespace,
    Rejection,
    Sample,
    Scratch,
)
from gradwire_server.gates.common import (
    Ints,
    checked_shape,
    dtype_choices,
    dtype_numbered,
    floats,
    integers,
    scatter_along,
    vector_shape,
)
from gradwire_server.specs import (
    FLOATS,
    INDICES,
    ITEM_SIZES,
    LARGEST,
    NUMBERS,
    Shape,
    TensorSpec,
    normalize_axis,
)


def _scalar(value: float, dtype: str = "int64") -> TensorSpec:
    """A known number, for the tables below."""
    return TensorSpec((), dtype, (value,))


def _number(name: str, spec: TensorSpec, least: float) -> float:
    """The number that a known input is (SHAPE_MISMATCH)."""
    if spec.size != 1:
        raise Invalid("SHAPE_MISMATCH", f"{name} has shape {spec.shape} but must be one number")
    assert spec.value is not None
    (value,) = spec.value
    if not (isfinite(value) and value >= least):
        raise Invalid("SHAPE_MISMATCH", f"{name} is {value} but must be {least} or more")
    return value


def _transformed(x: TensorSpec, out: TensorSpec, onesided: int) -> int:
    """Bytes of NumPy's copies of what a transform takes and yields: of twice the precision for
    float32, and complex."""
    wide = x.dtype != "float64"
    if x.shape[-1] == 1 and not onesided:
        return 16 * x.size + 8 * wide * out.size
    return wide * 8 * (x.size + out.size)


class DFT(Gate):
    """The discrete Fourier transform along an axis, and its inverse.

    Formula:   out[k] = sum of input[n] * exp(-2 pi i k n / N); inverse: with +2 pi i, divided by N.
               input is cut or filled with zeros to N = dft_length
    Gradient:  the transform the other way: to input[n] = sum of grad[k] * exp(2 pi i k n / N);
               inverse: with -2 pi i, divided by N
    Shapes:    [.., n, .., 1 or 2] gives [.., N, .., 2]. onesided leaves out what symmetry gives:
               a real input gives N // 2 + 1 numbers, and inverse N real ones, with
               N = 2 * (n - 1) if it is not given.
    """

    operator = "DFT"
    inputs = (
        Input("input"),
        Input("dft_length", INDICES, "N", optional=True, known=True),
        Input("axis", ("int64",), "A", optional=True, known=True),
    )
    attributes = (
        Attribute("inverse", "int", 0, choices=(0, 1), doc="1 transforms back."),
        Attribute("onesided", "int", 0, choices=(0, 1),
                  doc="1 is for real signals: the spectrum has only its first half."),
    )  # fmt: skip
    examples = (
        Example(([[1.0], [2.0]],), [[3.0, 0.0], [-1.0, 0.0]], gradients=([[2.0], [0.0]],)),
        Example(([[3.0, 0.0], [-1.0, 0.0]],), [[1.0, 0.0], [2.0, 0.0]],
                gradients=([[1.0, 1.0], [0.0, 0.0]],), attributes={"inverse": 1}),
        Example(([[1.0], [0.0], [2.0]], 4), [[3.0, 0.0], [-1.0, 0.0], [3.0, 0.0]],
                gradients=([[3.0], [-1.0], [1.0]], None), attributes={"onesided": 1}),
    )  # fmt: skip
    samples = (
        Sample((TensorSpec((2, 5, 2)),)),
        Sample((TensorSpec((2, 5, 1)), _scalar(3))),
        Sample((TensorSpec((2, 5, 2)), _scalar(7)), {"inverse": 1}),
        Sample((TensorSpec((4, 3, 1)), None, _scalar(0)), {"onesided": 1}),
        Sample((TensorSpec((2, 5, 1)), None, _scalar(-2)), {"onesided": 1}),
        Sample((TensorSpec((2, 3, 2)),), {"inverse": 1, "onesided": 1}),
        Sample((TensorSpec((2, 4, 2)), _scalar(5)), {"inverse": 1, "onesided": 1}),
        Sample((TensorSpec((0, 4, 2)),)),
    )
    rejections = (
        Rejection((TensorSpec((4, 3)),), "input has shape (4, 3) but its last axis must be 1"),
        Rejection((TensorSpec((4, 2)),), "input is complex but onesided",
                  attributes={"onesided": 1}),
        Rejection((TensorSpec((4, 1)),), "input is real but onesided and inverse",
                  attributes={"onesided": 1, "inverse": 1}),
        Rejection((TensorSpec((4, 1)), None, _scalar(1)), "axis 1 holds the parts",
                  "ATTRIBUTE_INVALID"),
        Rejection((TensorSpec((4, 1)), TensorSpec((0,), "int64", ())), "dft_length has 0 elements"),
        Rejection((TensorSpec((4, 1)), _scalar(0)), "dft_length is 0 but must be 1 or more"),
    )  # fmt: skip

    def infer(self, x: TensorSpec, *known: TensorSpec | None, **attributes: int) -> TensorSpec:
        length, axis = self._length_and_axis(
            x.shape, *(None if each is None else each.value for each in known), **attributes
        )
        parts, onesided, inverse = x.shape[-1], attributes["onesided"], attributes["inverse"]
        if onesided and not inverse and parts == 2:
            raise Invalid("SHAPE_MISMATCH", "input is complex but onesided is for real signals")
        if onesided and inverse and parts == 1:
            raise Invalid("SHAPE_MISMATCH", "input is real but onesided and inverse take spectra")
        shape = list(x.shape)
        shape[axis] = length // 2 + 1 if onesided and not inverse else length
        shape[-1] = 1 if onesided and inverse else 2
        return TensorSpec(checked_shape(tuple(shape), "dft_length"), x.dtype)

    def scratch(
        self, outs: Sequence[TensorSpec], x: TensorSpec, *_: Any, **attributes: Any
    ) -> Scratch:
        (out,) = outs
        whole = x.nbytes if x.shape[-1] == 2 else 0  # as complex numbers
        copied = whole + _transformed(x, out, attributes["onesided"])
        if attributes["onesided"] and attributes["inverse"]:
            return Scratch(max(whole + out.nbytes // 2, copied), 2 * x.nbytes)
        forward = max(whole + 2 * out.nbytes, copied)
        if attributes["onesided"]:
            return Scratch(forward, 9 * out.nbytes)
        return Scratch(forward, 3 * out.nbytes + (0 if whole else x.nbytes))

    def forward(self, xp: Namespace, x: Array, *known: Any, **attributes: int) -> Array:
        length, axis = self._length_and_axis(x.shape, *known, **attributes)
        return xp.dft(x, length, axis, attributes["inverse"], attributes["onesided"])

    def vjp(
        self, xp: Namespace, grad: Array, out: Array, x: Array, *known: Any, **attributes: int
    ) -> tuple[Any, ...]:
        length, axis = self._length_and_axis(x.shape, *known, **attributes)
        inverse, onesided = attributes["inverse"], attributes["onesided"]
        return (
            lambda: _adjoint(xp, grad, x.shape, length, axis, inverse, onesided),
            *(None for _ in known),
        )

    def aligned_shapes(
        self, x: TensorSpec, *known: TensorSpec | None, **_: int
    ) -> tuple[Shape, ...] | None:
        axis = known[1] if len(known) > 1 else None
        if axis is not None and axis.value is not None and axis.value[0] >= 0:
            return None
        return x.shape, *(() if each is None else each.shape for each in known)

    def operations(
        self, outs: tuple[TensorSpec, ...], x: TensorSpec, *known: Any, **attributes: int
    ) -> int:
        length, _ = self._length_and_axis(
            x.shape, *(None if each is None else each.value for each in known), **attributes
        )
        return x.size + transforming(outs[0].size, length)

    def _length_and_axis(
        self, shape: Shape, length: Any = None, axis: Any = None, *, inverse: int, onesided: int
    ) -> tuple[int, int]:
        """The transform's length, and its axis counted from the front."""
        if len(shape) < 2 or shape[-1] not in (1, 2):
            raise Invalid(
                "SHAPE_MISMATCH",
                f"input has shape {shape} but its last axis must be 1 (real) or 2 (complex)",
            )
        for name, known in (("dft_length", length), ("axis", axis)):
            if known is not None and len(known) != 1:
                raise Invalid("SHAPE_MISMATCH", f"{name} has {len(known)} elements but must have 1")
        along = normalize_axis(-2 if axis is None else int(axis[0]), len(shape))
        if along == len(shape) - 1:
            raise Invalid("ATTRIBUTE_INVALID", f"axis {along} holds the parts of numbers")
        found = 2 * (shape[along] - 1) if inverse and onesided else shape[along]
        if length is not None:
            found = int(length[0])
        if found < 1:
            raise Invalid("SHAPE_MISMATCH", f"dft_length is {found} but must be 1 or more")
        return found, along


def transforming(elements: int, length: int) -> int:
    """Operations of Fourier transforms that yield so many elements."""
    return 8 * elements * max(1, length.bit_length())


def _adjoint(
    xp: Namespace, grad: Array, shape: Shape, length: int, axis: int, inverse: int, onesided: int
) -> Array:
    """The gradient of a signal of a shape, from that of its transform."""
    if inverse and onesided:
        back = xp.dft(grad, length, axis, 0, 1)
        bins = length // 2 + 1
        alone = (0, length // 2) if length % 2 == 0 else (0,)  # the others stand for two each
        doubled = [1.0 if k in alone else 2.0 for k in range(bins)]
        lying = vector_shape(axis, bins, len(shape))
        back = back * floats(xp, [each / length for each in doubled], lying, str(grad.dtype))
    elif inverse:
        back = xp.dft(grad, length, axis, 0, 0) * (1.0 / length)
    else:
        back = xp.dft(_fitted(xp, grad, length, axis), length, axis, 1, 0) * float(length)
    return _fitted(xp, _fitted(xp, back, shape[axis], axis), shape[-1], len(shape) - 1)


def _fitted(xp: Namespace, x: Array, size: int, axis: int) -> Array:
    """Cut at the end of an axis, or filled with zeros there."""
    rank, old = len(x.shape), x.shape[axis]
    if size == old:
        return x
    if size < old:
        stops = (*x.shape[:axis], size, *x.shape[axis + 1 :])
        return xp.slice(x, (0,) * rank, stops, (1,) * rank)
    return xp.pad(x, (0,) * rank, (*(0,) * axis, size - old, *(0,) * (rank - axis - 1)))


class STFT(Gate):
    """The discrete Fourier transforms of overlapping frames of a signal.

    Formula:   output[b, f] = DFT of signal[b, f * frame_step : f * frame_step + frame_length]
               * window
    Gradient:  to each frame the transform back, then: to signal times window and added up where
               frames overlap, to window times the frames and added up over them
    Shapes:    [batch, length, 1 or 2] gives [batch, frames, bins, 2], with frames = (length -
               frame_length) // frame_step + 1, and bins = frame_length, or frame_length // 2 + 1
               if onesided. frame_length is window's, or the signal's, if it is not given.
    """

    operator = "STFT"
    inputs = (
        Input("signal"),
        Input("frame_step", INDICES, "I", known=True),
        Input("window", optional=True),
        Input("frame_length", INDICES, "I", optional=True, known=True),
    )
    attributes = (
        Attribute("onesided", "int", 1, choices=(0, 1),
                  doc="1 yields the first half of the spectrum; for real signals."),
    )  # fmt: skip
    examples = (
        Example(
            ([[[1.0], [2.0], [4.0]]], 1, [1.0, 0.5]), [[[[2.0, 0.0], [0.0, 0.0]],
                                                      [[4.0, 0.0], [0.0, 0.0]]]],
            gradients=([[[2.0], [2.0], [0.0]]], None, [6.0, 0.0]),
        ),
        Example(
            ([[[1.0], [2.0]]], 1, None, 1), [[[[1.0, 0.0]], [[2.0, 0.0]]]],
            gradients=([[[1.0], [1.0]]], None, None, None),
        ),
    )  # fmt: skip
    samples = (
        Sample((TensorSpec((2, 7, 1)), _scalar(2), TensorSpec((4,)))),
        Sample((TensorSpec((1, 6, 2)), _scalar(3), TensorSpec((3,)), _scalar(3)),
               {"onesided": 0}),
        Sample((TensorSpec((2, 5, 1)), _scalar(1))),
        Sample((TensorSpec((0, 5, 1)), _scalar(1), None, _scalar(2))),
    )  # fmt: skip
    rejections = (
        Rejection((TensorSpec((1, 5, 1)), _scalar(0)), "frame_step is 0 but must be 1 or more"),
        Rejection((TensorSpec((1, 5, 1)), _scalar(1), None, _scalar(6)),
                  "frame_length is 6 but the signal has 5 elements"),
        Rejection((TensorSpec((1, 5, 1)), _scalar(1), TensorSpec((3,)), _scalar(2)),
                  "window has shape (3,) but must have (2,)"),
        Rejection((TensorSpec((1, 5, 2)), _scalar(1)), "signal is complex; set onesided to 0"),
        Rejection((TensorSpec((5, 1)), _scalar(1)), "signal has shape (5, 1) but must be"),
    )  # fmt: skip

    def infer(
        self,
        signal: TensorSpec,
        step: TensorSpec,
        window: TensorSpec | None = None,
        length: TensorSpec | None = None,
        *,
        onesided: int,
    ) -> TensorSpec:
        if signal.rank != 3 or signal.shape[-1] not in (1, 2):
            raise Invalid(
                "SHAPE_MISMATCH",
                f"signal has shape {signal.shape} but must be [batch, length, 1 or 2]",
            )
        if onesided and signal.shape[-1] == 2:
            raise Invalid("SHAPE_MISMATCH", "signal is complex; set onesided to 0")
        every = int(_number("frame_step", step, 1))
        if length is not None:
            _number("frame_length", length, 1)
        size = self._frame(signal, window, None if length is None else length.value)
        if window is not None and window.shape != (size,):
            raise Invalid(
                "SHAPE_MISMATCH", f"window has shape {window.shape} but must have {(size,)}"
            )
        if not 1 <= size <= signal.shape[1]:
            raise Invalid(
                "SHAPE_MISMATCH",
                f"frame_length is {size} but the signal has {signal.shape[1]} elements",
            )
        frames = (signal.shape[1] - size) // every + 1
        bins = size // 2 + 1 if onesided else size
        shape = (signal.shape[0], frames, bins, 2)
        return TensorSpec(checked_shape(shape, "frame_length"), signal.dtype)

    def forward(
        self,
        xp: Namespace,
        signal: Array,
        step: Ints,
        window: Array | None = None,
        length: Ints | None = None,
        *,
        onesided: int,
    ) -> Array:
        size = self._frame(signal, window, length)
        framed = self._framed(xp, signal, size, int(step[0]))
        if window is not None:
            framed = framed * xp.reshape(window, (size, 1))
        return xp.dft(framed, size, 2, 0, onesided)

    def vjp(
        self,
        xp: Namespace,
        grad: Array,
        out: Array,
        signal: Array,
        step: Ints,
        *rest: Any,
        onesided: int,
    ) -> tuple[Any, ...]:
        window, length = (*rest, None, None)[:2]
        size, every = self._frame(signal, window, length), int(step[0])
        shape = (*grad.shape[:2], size, signal.shape[2])
        to_frames = _adjoint(xp, grad, shape, size, 2, 0, onesided)

        def to_signal() -> Array:
            lying = to_frames if window is None else to_frames * xp.reshape(window, (size, 1))
            flat = xp.reshape(lying, (shape[0], shape[1] * size, shape[3]))
            return scatter_along(xp, flat, self._places(shape[1], size, every), signal.shape, 1)

        def to_window() -> Array:
            framed = self._framed(xp, signal, size, every)
            return xp.sum(to_frames * framed, axis=(0, 1, 3))

        entries = (to_signal, None, None if window is None else to_window, None)
        return entries[: 2 + len(rest)]

    def scratch(
        self,
        outs: Sequence[TensorSpec],
        signal: TensorSpec,
        step: TensorSpec,
        window: TensorSpec | None = None,
        length: TensorSpec | None = None,
        *,
        onesided: int,
    ) -> Scratch:
        (out,) = outs
        size = self._frame(signal, window, None if length is None else length.value)
        batch, frames = out.shape[:2]
        places = frames * size  # a list of Python's integers
        framed = TensorSpec((batch, frames, size, signal.shape[2]), signal.dtype)
        wide, item = out.dtype == "float64", ITEM_SIZES[out.dtype]
        whole = framed.nbytes * signal.shape[2]  # and the complex numbers
        forward = whole + max(2 * out.nbytes, _transformed(framed, out, onesided))
        added = (24 + (2.5 if window is None else 3.5) * item) * framed.size
        arrays = (9.5 if wide else 11.0) if onesided else (7.5 if wide else 9.5)
        back = max(49 * places + added, arrays * framed.nbytes)
        return Scratch(max(57 * places - out.nbytes, forward), int(back))

    def operations(
        self, outs: tuple[TensorSpec, ...], signal: TensorSpec, *_: Any, onesided: int
    ) -> int:
        return signal.size + transforming(2 * outs[0].size, signal.shape[1])

    def _frame(self, signal: Any, window: Any, length: Any) -> int:
        """Number of elements of a frame."""
        if length is not None:
            return int(length[0])
        size: int = signal.shape[1] if window is None else (*window.shape, 0)[0]
        return size

    def _framed(self, xp: Namespace, signal: Array, size: int, every: int) -> Array:
        """Frames of the signal: [batch, frames, size, 1 or 2]."""
        frames = (signal.shape[1] - size) // every + 1
        places = integers(xp, self._places(frames, size, every), (frames, size))
        return xp.take(signal, places, axis=1)

    def _places(self, frames: int, size: int, every: int) -> list[int]:
        """Position in the signal of each element of each frame."""
        return [frame * every + place for frame in range(frames) for place in range(size)]


class Window(Gate):
    """A window: a constant, a cosine, and a cosine of twice the frequency."""

    inputs = (Input("size", INDICES, "I", known=True),)
    attributes = (
        Attribute("output_datatype", "int", 1, choices=dtype_choices(NUMBERS),
                  doc="ONNX's number of the data type."),
        Attribute("periodic", "int", 1, choices=(0, 1),
                  doc="Whether the window's period is size, or size - 1."),
    )  # fmt: skip
    output_dtypes = ("attribute:output_datatype|float32",)
    samples = (
        Sample((_scalar(5),), {"output_datatype": 11}),
        Sample((_scalar(1),), {"periodic": 0}),
        Sample((_scalar(0),)),
        Sample((TensorSpec((), "int32", (4,)),), {"output_datatype": 7}),
    )
    rejections = (
        Rejection((_scalar(-1),), "size is -1 but must be 0 or more"),
        Rejection((TensorSpec((), "int64"),), "size must be known", "INPUT_NOT_KNOWN"),
    )
    #: Of the constant, the cosine and the double cosine.
    weights: tuple[float, float, float]

    def infer(self, size: TensorSpec, output_datatype: int, periodic: int) -> TensorSpec:
        length = int(_number("size", size, 0))
        return TensorSpec(checked_shape((length,), "size"), dtype_numbered(output_datatype))

    def scratch(self, outs: Sequence[TensorSpec], *specs: Any, **attributes: Any) -> Scratch:
        return Scratch(28 * outs[0].size, 0)

    def forward(self, xp: Namespace, size: Ints, output_datatype: int, periodic: int) -> Array:
        length = int(size[0])
        period = length if periodic else length - 1
        angle = xp.arange(length, "float64") * (2 * pi / max(period, 1))
        if period < 1:
            angle = angle + pi  # one element is the middle of its window
        constant, once, twice = self.weights
        wave = once * xp.cos(angle) + twice * xp.cos(2 * angle) + constant
        return xp.astype(wave, dtype_numbered(output_datatype))

    def vjp(self, xp: Namespace, grad: Array, out: Array, *_: Any, **__: Any) -> tuple[None, ...]:
        return (None,)


class HannWindow(Window):
    """The Hann window.

    Formula:   output[n] = 1/2 - 1/2 * cos(2 pi n / N), with N = size, or size - 1 unless periodic
    Gradient:  None: a size has none.
    Shapes:    A vector of size numbers.
    """

    operator = "HannWindow"
    weights = (0.5, -0.5, 0.0)
    examples = (Example((4,), [0.0, 0.5, 1.0, 0.5]),)


class HammingWindow(Window):
    """The Hamming window.

    Formula:   output[n] = 25/46 - 21/46 * cos(2 pi n / N), with N = size, or size - 1 unless
               periodic
    Gradient:  None: a size has none.
    Shapes:    A vector of size numbers.
    """

    operator = "HammingWindow"
    weights = (25 / 46, -21 / 46, 0.0)
    examples = (Example((2,), [4 / 46, 1.0], attributes={"output_datatype": 11}),)


class BlackmanWindow(Window):
    """The Blackman window.

    Formula:   output[n] = 0.42 - 0.5 * cos(2 pi n / N) + 0.08 * cos(4 pi n / N), with N = size, or
               size - 1 unless periodic
    Gradient:  None: a size has none.
    Shapes:    A vector of size numbers.
    """

    operator = "BlackmanWindow"
    weights = (0.42, -0.5, 0.08)
    examples = (Example((2,), [0.0, 1.0], attributes={"output_datatype": 11}),)


class MelWeightMatrix(Gate):
    """Triangles over the bins of a spectrum, spaced evenly on the mel scale of frequencies.

    Formula:   output[k, i] rises from 0 at the i-th edge to 1 at the next and falls to 0 at the one
               after it; the edges are num_mel_bins + 2 equal steps of mel(f) = 2595 * log10(1 +
               f / 700) from lower_edge_hertz on, each put to the bin floor((dft_length + 1) * f /
               sample_rate), and a step is the whole range divided by num_mel_bins + 2
    Gradient:  None: all inputs are known before evaluation.
    Shapes:    [dft_length // 2 + 1, num_mel_bins].
    """

    operator = "MelWeightMatrix"
    inputs = (
        Input("num_mel_bins", INDICES, "I", known=True),
        Input("dft_length", INDICES, "I", known=True),
        Input("sample_rate", INDICES, "I", known=True),
        Input("lower_edge_hertz", FLOATS, known=True),
        Input("upper_edge_hertz", FLOATS, known=True),
    )
    attributes = (
        Attribute("output_datatype", "int", 1, choices=dtype_choices(NUMBERS),
                  doc="ONNX's number of the data type."),
    )  # fmt: skip
    output_dtypes = ("attribute:output_datatype|float32",)
    examples = (
        Example((1, 8, 8, 0.0, 4.0), [[0.0], [1.0], [0.0], [0.0], [0.0]],
                gradients=(None,) * 5, attributes={"output_datatype": 11}),
    )  # fmt: skip
    samples = (
        Sample((_scalar(8), _scalar(16), _scalar(8192), _scalar(0.0, "float32"),
                _scalar(4096.0, "float32"))),
        Sample((_scalar(0), _scalar(3), _scalar(10), _scalar(0.0, "float32"),
                _scalar(5.0, "float32")), {"output_datatype": 11}),
    )  # fmt: skip
    rejections = (
        Rejection((_scalar(8), _scalar(16), _scalar(0), _scalar(0.0, "float32"),
                   _scalar(4096.0, "float32")), "sample_rate is 0 but must be 1 or more"),
        Rejection((_scalar(8), _scalar(-16), _scalar(8), _scalar(0.0, "float32"),
                   _scalar(4096.0, "float32")), "dft_length is -16 but must be 1 or more"),
    )  # fmt: skip

    def infer(self, *specs: TensorSpec, output_datatype: int) -> TensorSpec:
        least = (0, 1, 1, 0.0, 0.0)
        bins, length, *_ = (
            _number(declared.name, spec, at_least)
            for declared, spec, at_least in zip(self.inputs, specs, least, strict=True)
        )
        for name, edge in zip(("lower", "upper"), specs[3:], strict=True):
            assert edge.value is not None
            if not (length + 1) * edge.value[0] < LARGEST:
                raise Invalid(
                    "SHAPE_MISMATCH",
                    f"{name}_edge_hertz is {edge.value[0]}, which is too high for a dft_length of "
                    f"{int(length)}",
                )
        shape = (int(length) // 2 + 1, int(bins))
        return TensorSpec(checked_shape(shape, "dft_length"), dtype_numbered(output_datatype))

    def scratch(self, outs: Sequence[TensorSpec], *specs: Any, **attributes: Any) -> Scratch:
        return Scratch(39 * outs[0].size, 0)

    def forward(self, xp: Namespace, *known: Any, output_datatype: int) -> Array:
        bins, length, rate, lower, upper = (each[0] for each in known)
        rows = int(length) // 2 + 1
        edges = self._edges(int(bins), int(length), int(rate), lower, upper)
        before, peak, after = (
            integers(xp, edges[slot : slot + int(bins)], (1, int(bins))) for slot in range(3)
        )
        place = xp.reshape(xp.arange(rows, "int64"), (rows, 1))
        rising = (place - before) / xp.maximum(peak - before, xp.ones_like(peak))
        falling = (after - place) / xp.maximum(after - peak, xp.ones_like(peak))
        up = xp.logical_and(xp.greater_equal(place, before), xp.less(place, peak))
        down = xp.logical_and(xp.greater(place, peak), xp.less(place, after))
        sides = xp.where(up, rising, xp.where(down, falling, 0.0))
        triangles = xp.where(xp.equal(place, peak), 1.0, sides)
        return xp.astype(triangles, dtype_numbered(output_datatype))

    def vjp(self, xp: Namespace, grad: Array, out: Array, *_: Any, **__: Any) -> tuple[None, ...]:
        return (None,) * 5

    def _edges(self, bins: int, length: int, rate: int, lower: float, upper: float) -> list[int]:
        """The bin that each edge of a triangle lies in."""
        low, high = (2595 * log1p(hertz / 700) / log(10) for hertz in (lower, upper))
        step = (high - low) / (bins + 2)
        hertz = (700 * expm1((low + number * step) / 2595 * log(10)) for number in range(bins + 2))
        return [floor((length + 1) * each / rate) for each in hertz]
