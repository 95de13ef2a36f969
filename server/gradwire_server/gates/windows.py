"""How windows lie over a tensor's spatial axes, for convolution and pooling."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

from gradwire_server.errors import Invalid
from gradwire_server.gates.base import Attribute
from gradwire_server.specs import Shape

AUTO_PAD = Attribute(
    "auto_pad", "string", "NOTSET", choices=("NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"),
    doc="SAME pads for size / stride windows, an odd element at the end (UPPER) or the beginning "
    "(LOWER); VALID pads nothing; NOTSET takes pads.",
)  # fmt: skip
DILATIONS = Attribute("dilations", "ints", doc="Steps between elements of a window; 1 by default.")
PADS = Attribute(
    "pads", "ints", doc="Elements of padding before each spatial axis, then behind each; 0 by "
    "default.",
)  # fmt: skip
STRIDES = Attribute("strides", "ints", doc="Steps between windows; 1 by default.")
CEIL_MODE = Attribute(
    "ceil_mode", "int", 0, choices=(0, 1), doc="1 keeps a last window that reaches past the end."
)

#: Elements of windows that are gathered at once: about what a cache holds, and the most for one
#: image, whose kernel's elements are taken one by one where its windows have more.
GATHERED, MOST_GATHERED = 1 << 18, 1 << 25

#: The most that a kernel, stride, dilation or padding may be: places made of them fit in 64 bits.
LARGEST = (1 << 31) - 1


@dataclass(frozen=True, slots=True)
class Windows:
    """Where windows lie over the last axes of a tensor; every field has a number for each axis.

    Element k of window i is element i * stride + k * dilation - before of the tensor, or padding.
    """

    kernel: Shape  # elements of a window
    strides: Shape
    dilations: Shape
    before: Shape  # padding in front of the first element
    after: Shape  # padding behind the last
    counts: Shape  # number of windows

    @property
    def spans(self) -> Shape:
        """What a window covers, with the gaps of its dilation."""
        return tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True))

    @property
    def reach(self) -> Shape:
        """What all windows cover, from the first padding on."""
        return tuple(
            (count - 1) * stride + span
            for count, stride, span in zip(self.counts, self.strides, self.spans, strict=True)
        )


def place_windows(
    sizes: Shape,
    kernel: Shape,
    *,
    strides: Shape | None,
    dilations: Shape | None,
    pads: Shape | None,
    auto_pad: str,
    ceil_mode: int = 0,
) -> Windows:
    """The windows over spatial axes of these sizes (ATTRIBUTE_INVALID, SHAPE_MISMATCH)."""
    rank = len(sizes)
    kernel = numbers("kernel_shape", kernel, rank, 1, 1)
    strides = numbers("strides", strides, rank, 1, 1)
    dilations = numbers("dilations", dilations, rank, 1, 1)
    before, after = both_pads(pads, auto_pad, rank)
    spans = tuple((k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True))
    if auto_pad.startswith("SAME"):
        counts = tuple(-(-size // stride) for size, stride in zip(sizes, strides, strict=True))
        total = tuple(
            max(0, (count - 1) * stride + span - size)
            for size, count, stride, span in zip(sizes, counts, strides, spans, strict=True)
        )
        before, after = halves(total, auto_pad == "SAME_UPPER")
    else:
        counts = tuple(
            _count(axis, size, spans[axis], strides[axis], before[axis], after[axis], ceil_mode)
            for axis, size in enumerate(sizes)
        )
    for axis, (size, count) in enumerate(zip(sizes, counts, strict=True)):
        if not count:
            raise Invalid("SHAPE_MISMATCH", f"spatial axis {axis} has size {size}: no window fits")
    return Windows(kernel, strides, dilations, before, after, counts)


def _count(
    axis: int, size: int, span: int, stride: int, before: int, after: int, ceil_mode: int
) -> int:
    room = size + before + after - span
    if room < 0:
        raise Invalid(
            "SHAPE_MISMATCH",
            f"a window covers {span} elements but spatial axis {axis} has {size} and "
            f"{before + after} of padding",
        )
    if not ceil_mode:
        return room // stride + 1
    count = -(-room // stride) + 1
    starts_outside = (count - 1) * stride >= size + before
    return count - 1 if starts_outside else count


def numbers(name: str, given: Shape | None, rank: int, default: int, least: int) -> Shape:
    """A number for each spatial axis (ATTRIBUTE_INVALID)."""
    if given is None:
        return (default,) * rank
    if len(given) != rank:
        raise Invalid(
            "ATTRIBUTE_INVALID",
            f"{name} has {len(given)} numbers but there are {rank} spatial axes",
            attribute=name,
        )
    if min(given, default=least) < least:
        raise Invalid(
            "ATTRIBUTE_INVALID",
            f"{name} is {given} but must be {least} or more everywhere",
            attribute=name,
        )
    _check_largest(name, given)
    return given


def _check_largest(name: str, given: Shape) -> None:
    if max(given, default=0) > LARGEST:
        raise Invalid(
            "ATTRIBUTE_INVALID",
            f"{name} is {given} but must be {LARGEST} or less everywhere",
            attribute=name,
        )


def both_pads(pads: Shape | None, auto_pad: str, rank: int) -> tuple[Shape, Shape]:
    """Padding before and behind each spatial axis, as given (ATTRIBUTE_INVALID)."""
    if pads is None:
        return (0,) * rank, (0,) * rank
    if auto_pad != "NOTSET" and any(pads):
        raise Invalid(
            "ATTRIBUTE_INVALID",
            f"pads is {pads} but auto_pad is {auto_pad!r}; give one of them",
            attribute="pads",
        )
    if len(pads) != 2 * rank or min(pads, default=0) < 0:
        raise Invalid(
            "ATTRIBUTE_INVALID",
            f"pads is {pads} but must be {2 * rank} numbers of 0 or more: one before and one "
            f"behind each of {rank} spatial axes",
            attribute="pads",
        )
    _check_largest("pads", pads)
    return pads[:rank], pads[rank:]


def halves(total: Shape, smaller_first: bool) -> tuple[Shape, Shape]:
    """Padding split in two, an odd element to one side."""
    small = tuple(each // 2 for each in total)
    large = tuple(each - half for each, half in zip(total, small, strict=True))
    return (small, large) if smaller_first else (large, small)


def spatial_rank(attributes: dict[str, Any]) -> int | None:
    """The number of spatial axes, where an attribute with a number for each of them is given."""
    for name in ("kernel_shape", "strides", "dilations", "output_padding", "output_shape"):
        if attributes.get(name) is not None:
            return len(attributes[name])
    return len(attributes["pads"]) // 2 if attributes.get("pads") is not None else None


def gathered_elements(shape: Shape, windows: Windows) -> int | None:
    """Elements of all windows of one image and its padded copy; None where those are too many."""
    channels, sizes = shape[1], shape[2:]
    found = channels * prod(windows.kernel) * prod(windows.counts)
    inside = map(sum, zip(windows.before, sizes, strict=True))
    padded = channels * prod(map(max, windows.reach, inside))
    return found + padded if max(found, padded) <= MOST_GATHERED else None


def gathered_images(shape: Shape, windows: Windows, more: int = 0) -> int:
    """Images whose windows, and `more` elements for each, are held at once."""
    return max(1, GATHERED // max(1, gathered_elements(shape, windows) or 1, more))


def image_blocks(shape: Shape, windows: Windows, more: int = 0) -> list[slice]:
    """Runs of images whose windows, and `more` elements for each, are held at once."""
    step = gathered_images(shape, windows, more)
    return [slice(first, first + step) for first in range(0, shape[0], step)]


def elements_inside(windows: Windows, sizes: Shape, axis: int) -> list[int]:
    """How many elements of each window along an axis are not padding."""
    stride, dilation = windows.strides[axis], windows.dilations[axis]
    kernel, size = windows.kernel[axis], sizes[axis]
    found = []
    for window in range(windows.counts[axis]):
        start = window * stride - windows.before[axis]
        first = max(0, -(start // dilation))  # the first element at or behind 0
        end = min(kernel, (size - 1 - start) // dilation + 1)
        found.append(max(0, end - first))
    return found


__all__ = [
    "AUTO_PAD", "CEIL_MODE", "DILATIONS", "LARGEST", "PADS", "STRIDES", "Windows", "both_pads",
    "elements_inside", "gathered_elements", "gathered_images", "halves", "image_blocks", "numbers",
    "place_windows", "spatial_rank",
]  # fmt: skip
