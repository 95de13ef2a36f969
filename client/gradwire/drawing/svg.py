"""Writes a laid out circuit as SVG; docs/pictures.md has the rules and the colours."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from math import ceil
from xml.sax.saxutils import escape

from gradwire.drawing.formulas import formulas
from gradwire.drawing.layout import (
    GATE_HEIGHT,
    NUMBER_SIZE,
    TEXT_SIZE,
    Frame,
    Layout,
    Place,
    Point,
    shortened,
    text_width,
)
from gradwire.drawing.numbers import MISSING, Numbers
from gradwire.drawing.opened import SEPARATOR
from gradwire.figures import Figure

LIGHT = {
    "background": "#ffffff",
    "ink": "#1c2128",
    "wire": "#57606a",
    "gate": "#eef1f5",
    "muted": "#656d76",
    "value": "#00705a",
    "gradient": "#c2300a",
    "local": "#5a45b8",
    "alarm": "#fff1cc",
    "alarm-border": "#9a6700",
}
DARK = {
    "background": "#0f141a",
    "ink": "#e6edf3",
    "wire": "#9aa5b1",
    "gate": "#222b35",
    "muted": "#8b96a2",
    "value": "#4fdcb4",
    "gradient": "#ff8460",
    "local": "#b3a6ff",
    "alarm": "#3d2e00",
    "alarm-border": "#d9a21b",
}
THEMES = ("auto", "light", "dark")

_FONTS = (
    "system-ui,-apple-system,'Segoe UI','Helvetica Neue',Arial,'Liberation Sans','DejaVu Sans',"
    "sans-serif"
)
_LEGEND_HEIGHT = 34.0
_MOST_TOLD = 300  # letters of a line
_ABOVE, _BELOW = -5.0, 13.0  # baselines of numbers, from their wire
_NONCHARACTERS = ("\ufffe", "\uffff")


def style(theme: str) -> str:
    """The rules of a theme; "auto" follows the reader's."""
    fixed = (
        f"svg.gradwire{{font-family:{_FONTS};font-size:{NUMBER_SIZE:g}px;"
        "font-variant-numeric:tabular-nums}"
        f".gradwire .name{{font-size:{TEXT_SIZE:g}px}}.gradwire .strong{{font-weight:bold}}"
        ".gradwire .line{fill:none;stroke-width:1.25}"
        ".gradwire .area{fill:none;pointer-events:all}"
        ".gradwire .frame{fill:none;stroke-dasharray:5 4}"
        ".gradwire .label{paint-order:stroke;stroke-width:5px;stroke-linejoin:round}"
    )
    if theme == "auto":
        return f"{fixed}{_colours(LIGHT)}@media (prefers-color-scheme:dark){{{_colours(DARK)}}}"
    return fixed + _colours(DARK if theme == "dark" else LIGHT)


def _colours(palette: dict[str, str]) -> str:
    fills = {"background": "paper", "ink": "name", "wire": "solid"}
    rules = [
        f".gradwire .{fills.get(role, role)}{{fill:{colour}}}"
        for role, colour in palette.items()
        if role not in ("gate", "alarm", "alarm-border")
    ]
    wire, gate = palette["wire"], palette["gate"]
    rules += [
        f".gradwire .line{{stroke:{wire}}}.gradwire .gate{{fill:{gate};stroke:{wire}}}",
        f".gradwire .hollow{{fill:{palette['background']};stroke:{wire}}}",
        f".gradwire .frame{{stroke:{palette['muted']}}}",
        f".gradwire .label{{stroke:{palette['background']}}}",
        f".gradwire .alarm{{fill:{palette['alarm']};stroke:{palette['alarm-border']}}}",
    ]
    return "".join(rules)


def visible(text: str) -> str:
    """A text without what would hide, turn around or break it, ready to be put into XML."""
    return escape("".join(map(_visible_letter, text)), {'"': "&quot;", "'": "&#39;"})


def _visible_letter(letter: str) -> str:
    hidden = unicodedata.category(letter) in ("Cc", "Cf", "Cs", "Zl", "Zp")
    return "\ufffd" if hidden or letter in _NONCHARACTERS else letter


def write(layout: Layout, numbers: Numbers, theme: str, described: str) -> str:
    """The picture as one SVG document."""
    return "\n".join(_lines(layout, numbers, theme, described)) + "\n"


def _lines(layout: Layout, numbers: Numbers, theme: str, described: str) -> Iterator[str]:
    width, height = ceil(layout.width), ceil(layout.height + _LEGEND_HEIGHT)
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="gradwire" role="img" '
        f'width="{width}" height="{height}" viewBox="0 0 {width} {height}">'
    )
    yield f"<title>{visible(described)}</title>"
    yield f"<style>{style(theme)}</style>"
    yield f'<rect class="paper" width="{width}" height="{height}"/>'
    for frame in layout.frames:
        yield _frame(frame)
    for points in layout.wires:
        yield f'<path class="line" d="{_curve(points)}"/>'
    for frame in layout.frames:
        yield _frame_label(frame)
    for place in layout.places:
        yield f"<g><title>{_told(place, numbers)}</title>{_area(place)}"
        yield from _DRAWN[place.box.kind](place)
        yield from _numbers(place, numbers)
        yield "</g>"
    yield from _legend(layout, numbers)
    yield "</svg>"


def _area(place: Place) -> str:
    """What the pointer finds: all of a box, between its numbers too."""
    return (
        f'<rect class="area" x="{place.left:.1f}" y="{place.middle - place.height / 2:.1f}" '
        f'width="{place.right - place.left:.1f}" height="{place.height:.1f}"/>'
    )


def _told(place: Place, numbers: Numbers) -> str:
    """What the pointer is told."""
    box = place.box
    lines = [box.name, box.operator, *formulas(box.operator)]
    for value_id in box.value_ids:
        value, gradient = numbers.value(value_id), numbers.gradient(value_id)
        lines.append(f"value: {_spelled(value)}" if value else "")
        lines.append(f"gradient: {_spelled(gradient)}" if gradient else "")
    return "\n".join(visible(line[:_MOST_TOLD]) for line in lines if line)


def _spelled(figure: Figure) -> str:
    return "not computed" if figure == MISSING else figure.text


def _curve(points: tuple[Point, ...]) -> str:
    first, *rest = (f"{x:.1f} {y:.1f}" for x, y in points)
    return f"M{first}C{' '.join(rest)}"


def _frame(frame: Frame) -> str:
    width, height = frame.right - frame.left, frame.bottom - frame.top
    return (
        f'<rect class="frame" x="{frame.left:.1f}" y="{frame.top:.1f}" width="{width:.1f}" '
        f'height="{height:.1f}" rx="8"/>'
    )


def _frame_label(frame: Frame) -> str:
    text = visible(SEPARATOR.join(map(shortened, frame.label)))
    return (
        f'<text class="muted label" x="{frame.left + 9:.1f}" y="{frame.top + 17:.1f}">{text}</text>'
    )


def _gate(place: Place) -> Iterator[str]:
    yield from _stubs(place)
    width = place.body_right - place.body_left
    yield _rectangle(place, 0, GATE_HEIGHT / 2)
    yield _text(
        (place.body_left + place.body_right) / 2, place.middle + 5, place.box.title, "name", width
    )


def _module(place: Place) -> Iterator[str]:
    yield from _stubs(place)
    yield _rectangle(place, 0, 3)
    yield _rectangle(place, 3, 1)
    x, y = (place.body_left + place.body_right) / 2, place.middle + 5
    if not place.box.subtitle:
        yield _text(x, y, place.box.title, "name", 1)
        return
    yield _text(x, y - 8, place.box.title, "name", 1)
    yield _text(x, y + 9, place.box.subtitle, "muted", 1)


def _edge(place: Place) -> Iterator[str]:
    yield from _stubs(place)
    yield _rectangle(place, 0, 1)


def _rectangle(place: Place, inset: float, radius: float) -> str:
    width = place.body_right - place.body_left - 2 * inset
    height = place.height - 2 * inset
    return (
        f'<rect class="gate" x="{place.body_left + inset:.1f}" '
        f'y="{place.middle - height / 2:.1f}" width="{width:.1f}" height="{height:.1f}" '
        f'rx="{radius:g}"/>'
    )


def _leaf(place: Place) -> Iterator[str]:
    yield from _stubs(place)
    if not place.box.title:
        return
    x, y = place.body_right, place.middle
    yield _text(x - 9, y + 5, place.box.title, "name", anchor="end")
    if place.box.kind == "input":
        yield f'<circle class="hollow" cx="{x:.1f}" cy="{y:.1f}" r="3.5"/>'
    elif place.box.kind == "parameter":
        yield f'<rect class="solid" x="{x - 3:.1f}" y="{y - 3:.1f}" width="6" height="6"/>'


def _output(place: Place) -> Iterator[str]:
    for slot in range(len(place.box.uses)):
        x, y = place.slot(slot)
        yield f'<path class="solid" d="M{x:.1f} {y - 4:.1f}l7 4l-7 4z"/>'
    yield _text(place.body_left + 11, place.middle + 5, place.box.title, "name strong")


def _stubs(place: Place) -> Iterator[str]:
    """Wires beside the body: those that arrive go on to its middle, behind it."""
    middle = (place.body_left + place.body_right) / 2
    lines = [(place.slot(slot), middle) for slot in range(len(place.box.uses))]
    lines += [
        (place.pin(pin), middle if place.box.uses else place.body_right)
        for pin in range(len(place.box.value_ids))
    ]
    for (x, y), end in lines:
        yield f'<path class="line" d="M{x:.1f} {y:.1f}H{end:.1f}"/>'


def _numbers(place: Place, numbers: Numbers) -> Iterator[str]:
    for slot, use in enumerate(place.box.uses):
        if local := numbers.local(use.node, use.slot):
            width = text_width(f"×{local.text}", NUMBER_SIZE)
            x, y = place.body_left - width - 3, place.slot(slot)[1]
            yield from _number(x, y + _BELOW - 1, "×", local, "local")
    for pin, value_id in enumerate(place.box.value_ids):
        x, y = place.body_right + 6, place.pin(pin)[1]
        if value := numbers.value(value_id):
            yield from _number(x, y + _ABOVE, "", value, "value")
        if gradient := numbers.gradient(value_id):
            yield from _number(x, y + _BELOW, "∂ ", gradient, "gradient")


def _number(x: float, y: float, mark: str, figure: Figure, role: str) -> Iterator[str]:
    text = mark + _typeset(figure.text)
    if figure.finite:
        yield _text(x, y, text, "muted" if figure == MISSING else role)
        return
    width = text_width(text, NUMBER_SIZE) + 6
    yield (
        f'<rect class="alarm" x="{x - 3:.1f}" y="{y - 12:.1f}" width="{width:.1f}" height="15" '
        'rx="3"/>'
    )
    yield _text(x, y, text, f"{role} strong")


def _typeset(text: str) -> str:
    """With the minus that is as wide as a plus, where it is a sign."""
    return text.replace("-", "−")


def _legend(layout: Layout, numbers: Numbers) -> Iterator[str]:
    parts = [("above: value", "value"), ("∂ below: gradient", "gradient")]
    if numbers.has_local:
        parts.append(("× local gradient", "local"))
    if not numbers.evaluated:
        parts = [("not evaluated", "muted")]
    elif _lacks_any(layout, numbers):
        parts.append((f"{MISSING.text} not computed", "muted"))
    spans = "".join(f'<tspan class="{role}" dx="14">{text}</tspan>' for text, role in parts)
    yield f'<text x="2" y="{layout.height + _LEGEND_HEIGHT - 16:.1f}">{spans}</text>'


def _lacks_any(layout: Layout, numbers: Numbers) -> bool:
    ids = {value_id for place in layout.places for value_id in place.box.value_ids}
    return any(MISSING in (numbers.value(each), numbers.gradient(each)) for each in ids)


def _text(x: float, y: float, text: str, role: str, width: float = 0, anchor: str = "") -> str:
    anchor = anchor or ("middle" if width else "")
    placed = f' text-anchor="{anchor}"' if anchor else ""
    return f'<text class="{role}" x="{x:.1f}" y="{y:.1f}"{placed}>{visible(shortened(text))}</text>'


_DRAWN = {
    "gate": _gate,
    "module": _module,
    "edge": _edge,
    "input": _leaf,
    "parameter": _leaf,
    "constant": _leaf,
    "cut": _leaf,
    "output": _output,
}
