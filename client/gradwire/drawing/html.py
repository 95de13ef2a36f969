"""A picture as one HTML page, which zooms, pans, and tells about what is pointed at.

Its policy allows exactly the styles and the script in it, and nothing from anywhere else.
"""

from __future__ import annotations

from base64 import b64encode
from hashlib import sha256
from importlib.resources import files

from gradwire.drawing.svg import DARK, LIGHT, style, visible


def page(svg: str, theme: str, title: str) -> str:
    """The page around a picture."""
    script = (files("gradwire.drawing") / "page.js").read_text("utf-8")
    styles = (_rules(theme), style(theme))
    policy = (
        f"default-src 'none'; style-src {' '.join(map(_allowed, styles))}; "
        f"script-src {_allowed(script)}; base-uri 'none'; form-action 'none'"
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width,initial-scale=1">\n'
        f"<title>{visible(title)}</title>\n<style>{styles[0]}</style>\n</head>\n<body>\n"
        f'{svg}<div id="card" role="status" hidden></div>\n'
        '<p id="keys">drag or arrows: move · wheel or + −: zoom · 0: all · Tab: next</p>\n'
        f"<script>{script}</script>\n</body>\n</html>\n"
    )


def _allowed(content: str) -> str:
    return f"'sha256-{b64encode(sha256(content.encode()).digest()).decode()}'"


def _rules(theme: str) -> str:
    fixed = (
        "html,body{margin:0;height:100%;overflow:hidden}"
        "body{font-family:system-ui,sans-serif}"
        "svg.gradwire{display:block;width:100vw;height:100vh;cursor:grab;touch-action:none}"
        "svg.gradwire g:focus{outline:2px solid;outline-offset:2px}"
        "#card{position:fixed;max-width:26rem;padding:.6rem .8rem;border:1px solid;"
        "border-radius:6px;font-size:13px;line-height:1.45;white-space:pre-wrap;overflow-wrap:anywhere;"
        "pointer-events:none}"
        "#keys{position:fixed;right:1rem;bottom:.4rem;margin:0;font-size:12px;pointer-events:none}"
    )
    if theme == "auto":
        return f"{fixed}{_colours(LIGHT)}@media (prefers-color-scheme:dark){{{_colours(DARK)}}}"
    return fixed + _colours(DARK if theme == "dark" else LIGHT)


def _colours(palette: dict[str, str]) -> str:
    return (
        f"body{{background:{palette['background']};color:{palette['ink']}}}"
        f"#card{{background:{palette['gate']};border-color:{palette['wire']}}}"
        f"#keys{{color:{palette['muted']}}}"
    )
