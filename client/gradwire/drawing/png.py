"""SVG in pixels, by resvg."""

from __future__ import annotations

from functools import cache
from math import sqrt

from gradwire.errors import UnsupportedError

_MOST_PIXELS = 50_000_000  # 200 MB, of four bytes each
_LETTER = '<svg xmlns="http://www.w3.org/2000/svg" width="20" height="20">{}</svg>'


def rasterized(svg: str, width: float, height: float, scale: float) -> bytes:
    """The bytes of a PNG (UNSUPPORTED without the extra, or without any font)."""
    try:
        from resvg_py import svg_to_bytes
    except ImportError:
        raise UnsupportedError(
            "UNSUPPORTED", "PNG needs the package resvg-py; pip install 'gradwire[draw]'"
        ) from None
    if not _has_fonts():
        raise UnsupportedError(
            "UNSUPPORTED",
            "PNG needs a font, and this system has none; install one (on Debian: apt install "
            "fonts-dejavu-core), or draw SVG or HTML, whose reader has fonts",
        )
    fitting = min(scale, sqrt(_MOST_PIXELS / (width * height)))
    return bytes(svg_to_bytes(svg_string=svg, zoom=fitting))


@cache
def _has_fonts() -> bool:
    """Whether text leaves a trace: resvg draws nothing where it finds no font."""
    from resvg_py import svg_to_bytes

    text = '<text x="2" y="16" font-family="sans-serif" font-size="16">x</text>'
    return bool(svg_to_bytes(_LETTER.format(text)) != svg_to_bytes(_LETTER.format("")))
