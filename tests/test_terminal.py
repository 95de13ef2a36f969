"""Whatever a file says, a terminal only shows it: names cannot move its cursor or forge lines."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

import gradwire as gw
from gradwire.cli import main

#: Sets a title and a colour, clears the screen by one byte, turns text around, goes back, forges.
HOSTILE = "\x1b]0;mine\x07\x1b[31m\x9b2J\u202e\r\noutput f: 1[red]"
WIDE = {"COLUMNS": "1000"}  # nothing is broken into lines


def saved(path: Path, name: Callable[[str], str]) -> str:
    """A graph in which everything that has a name is called by it."""
    graph = gw.Graph()
    x, w = graph.input(name("x")), graph.parameter(name("w"), 2.0)

    def stage(a: gw.Handle) -> gw.Handle:
        return gw.sigmoid(a)

    stage.__name__ = name("stage")
    graph.output(name("f"), gw.module(stage)((x * w).named(name("product"))))
    graph.save(path)
    return str(path)


@pytest.fixture
def hostile(tmp_path: Path) -> str:
    return saved(tmp_path / "hostile.gate", lambda name: name + HOSTILE)


@pytest.fixture
def plain(tmp_path: Path) -> str:
    return saved(tmp_path / "plain.gate", lambda name: name)


@pytest.mark.parametrize(
    "words",
    [
        ("show",), ("show", "--text"), ("eval",), ("eval", "--json"), ("check",),
        ("eval", "--set", "{x}=1"), ("eval", "--set", "{x}=1", "--json"), ("eval", "--set", "q=1"),
    ],
)  # fmt: skip
def test_commands_show_names_as_text(words: tuple[str, ...], hostile: str, plain: str) -> None:
    command, *options = words
    printed = []
    for path, name in ((hostile, "x" + HOSTILE), (plain, "x")):
        given = [option.format(x=name) for option in options]
        printed.append(CliRunner().invoke(main, [command, path, *given], env=WIDE).output)
    found, expected = printed
    lines = found.splitlines()  # at carriage returns and form feeds, too
    assert all(map(str.isprintable, lines)), found
    assert len(lines) == len(expected.splitlines()), found


def test_differences_are_text(hostile: str, plain: str) -> None:
    found = CliRunner().invoke(main, ["diff", hostile, plain]).output
    assert all(map(str.isprintable, found.splitlines())), found
    assert all(line[0] in "+-~ " for line in found.splitlines()), found


def test_a_printed_graph_is_text(hostile: str) -> None:
    found = str(gw.load(hostile))
    assert all(map(str.isprintable, found.splitlines()))
    assert r"\x1b[31m\x9b2J\u202e\r\noutput f: 1[red]" in found


def test_commands_print_by_one_function() -> None:
    """Which escapes; `click.echo` would not."""
    source = (Path(gw.__file__).parent / "cli.py").read_text()
    assert source.count("click.echo(") == 1
