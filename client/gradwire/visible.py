"""Text that a terminal shows: names in files may hold what moves cursors or reorders letters."""

from __future__ import annotations


def visible(line: str) -> str:
    """One line: control characters and those that change the direction of text, as Python escapes.

    So "x\\x1b[31m" is shown as it is written here, and a name with a line break stays on its line.
    """
    if line.isprintable():
        return line
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in line)


def visible_lines(text: str) -> str:
    """The same for each line of a text, whose own breaks stay."""
    return "\n".join(map(visible, text.split("\n")))
