"""What `gradwire eval` prints: values in green, gradients in red, and what changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from time import strftime
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gradwire.builder import Graph
from gradwire.diff import differences
from gradwire.results import Result
from gradwire.visible import visible

_ROWS_SHOWN = 200
_DIFFERENCES_SHOWN = 20

Row = dict[str, Any]


@dataclass(frozen=True)
class Evaluation:
    """Numbers and lists that JSON can hold; None for what was not computed."""

    graph: Graph
    outputs: dict[str, Any]
    gradients: dict[str, Any]
    rows: list[Row]

    @classmethod
    def of(cls, graph: Graph, result: Result) -> Evaluation:
        return cls(
            graph,
            {name: _plain(array) for name, array in result.outputs.items()},
            {name: _plain(array) for name, array in result.gradients.items()},
            [
                {"id": value_id, "name": name, "operator": operator, **_found(result, value_id)}
                for value_id, name, operator in graph.value_labels()
            ],
        )

    def as_json(self) -> dict[str, Any]:
        return {"outputs": self.outputs, "gradients": self.gradients, "nodes": self.rows}


def print_evaluation(found: Evaluation, before: Evaluation | None) -> None:
    """A table of every node, and the outputs; beside what is new, what it was before."""
    console = Console()
    if before is not None:
        console.rule(strftime("%H:%M:%S"))
        for line in islice(differences(before.graph, found.graph), _DIFFERENCES_SHOWN):
            console.print(escape(line), highlight=False)
    were = {} if before is None else _comparable(before, found)
    names = _output_names(found.graph)
    table = Table("node", "operator", "value", "gradient", box=None, pad_edge=False)
    rows = found.rows
    shown = rows if len(rows) <= _ROWS_SHOWN else rows[: _ROWS_SHOWN // 2]
    rest = [] if shown is rows else rows[-_ROWS_SHOWN // 2 :]
    for row in shown:
        table.add_row(*_cells(row, names, were))
    if rest:
        table.add_row("...", f"{len(rows) - _ROWS_SHOWN} more", "--json has all", "")
    for row in rest:
        table.add_row(*_cells(row, names, were))
    console.print(table)
    for name, plain in found.outputs.items():
        console.print(
            f"output {escape(visible(name))} = [green]{_short(plain)}[/green]", highlight=False
        )


def _comparable(before: Evaluation, found: Evaluation) -> dict[int, Row]:
    """The row of before for each id: by its place in an equal circuit, by its name in another."""
    shapes = [[(row["name"], row["operator"]) for row in each.rows] for each in (before, found)]
    if shapes[0] == shapes[1]:
        return {row["id"]: row for row in before.rows}
    by_name = {row["name"]: row for row in before.rows if row["name"]}
    return {row["id"]: by_name[row["name"]] for row in found.rows if row["name"] in by_name}


def _found(result: Any, value_id: int) -> dict[str, Any]:
    found = result[value_id]
    return {"value": _plain(found.value), "gradient": _plain(found.gradient)}


def _plain(array: Any) -> Any:
    """Numbers and lists that JSON can hold; None for what was not computed."""
    if array is None:
        return None
    if hasattr(array, "tolist"):
        array = array.tolist()
    if isinstance(array, list):
        return [_plain(each) for each in array]
    if isinstance(array, float) and array - array != 0:
        return "NaN" if array != array else "Infinity" if array > 0 else "-Infinity"
    return array


def _output_names(graph: Graph) -> dict[int, str]:
    return {ids[0]: name for name, ids in graph.output_ids().items() if len(ids) == 1}


def _cells(
    row: Row, outputs: Mapping[int, str], were: Mapping[int, Row]
) -> tuple[str, str, str, str]:
    name = row["name"] or outputs.get(row["id"]) or f"%{row['id']}"
    before = were.get(row["id"], row)
    value, gradient = _number("green", row["value"]), _number("red", row["gradient"])
    value += _was(before["value"], row["value"])
    gradient += _was(before["gradient"], row["gradient"])
    return escape(visible(name)), escape(visible(row["operator"])), value, gradient


def _number(colour: str, plain: Any) -> str:
    if plain is None:
        return "[dim]not computed[/dim]"
    return f"[{colour}]{escape(_short(plain))}[/{colour}]"


def _was(before: Any, now: Any) -> str:
    return "" if before == now else f" [dim]was {escape(_short(before))}[/dim]"


def _short(plain: Any) -> str:
    if isinstance(plain, float):
        return f"{plain:.6g}"
    if isinstance(plain, list):
        text = "[" + ", ".join(map(_short, plain[:6])) + (", ..." if len(plain) > 6 else "") + "]"
        return text if len(text) <= 60 else text[:57] + "..."
    return str(plain)
