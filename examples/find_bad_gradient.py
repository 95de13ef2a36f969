"""Finds where the gradient of a deep model vanishes, explodes, or becomes NaN or infinite first.

    python examples/find_bad_gradient.py examples/deep_nan.onnx

A server computes every value and every gradient of the model and sends only their figures, such
as norms. Prints a table of the norms in the order of the backward pass, from the output to the
input, and then what is wrong, where it begins, and which node made it.

A gradient vanishes, or explodes, by its Euclidean norm over that of the seeds, the gradients put on
the outputs: 1 where the output is one number, such as a loss, else normal numbers. Inputs that are
not given are normal numbers too; integers are 0 or 1.

Parameters that set something rather than weigh it are left aside: those of one element, masks, and
exponents.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import gradwire as gw

ROWS_SHOWN = 100
#: Neighbours that a sentence names.
FEW = 4


@dataclass
class Entry:
    """A leaf or a node's value: what is known of it, and its neighbours in the graph."""

    id: int
    name: str
    operator: str
    inputs: list[Entry] = field(default_factory=list)
    users: list[Entry] = field(default_factory=list)
    value: gw.Summary | None = None
    gradient: gw.Summary | None = None
    #: Norm of the gradient over that of the seeds.
    ratio: float = math.nan
    #: What is wrong with the gradient: "vanishes", "explodes", "is 0", "has NaN", "is infinite".
    fault: str = ""
    #: Whether it is a parameter that sets something, so that its gradient points at nothing.
    is_setting: bool = False

    @property
    def label(self) -> str:
        """How sentences call it."""
        return f"{self.name!r} ({self.operator})"

    @property
    def is_leaf(self) -> bool:
        """Whether it is given, not computed."""
        return self.operator in ("input", "parameter")


@dataclass(frozen=True)
class Finding:
    """The first place of one fault, of a "value" or a "gradient"."""

    of: str
    fault: str
    id: int
    name: str
    operator: str
    sentence: str


# -- the model and its inputs ----------------------------------------------------------------------


def load(path: str, sizes: Mapping[str, int], parameters: str = "weights") -> gw.Graph:
    """The graph of a .gate or .onnx file."""
    if path.lower().endswith(".onnx"):
        return gw.from_onnx(path, sizes=sizes, parameters=parameters)
    graph = gw.load(path)
    symbols = {axis for leaf in graph.leaves for axis in leaf.axes if isinstance(axis, str)}
    for symbol in sizes:
        if symbol not in symbols:
            raise SystemExit(f"{path}: no input has an axis {symbol!r}")
    return graph


def draw_inputs(
    graph: gw.Graph, given: Mapping[str, Any], sizes: Mapping[str, int], numbers: Any
) -> dict[str, Any]:
    """Inputs as given; those without a value are drawn, with 4 rows along axes of unknown size."""
    inputs = dict(given)
    for leaf in graph.leaves:
        if leaf.kind == "input" and leaf.value is None and leaf.name not in inputs:
            shape = [axis if isinstance(axis, int) else sizes.get(axis, 4) for axis in leaf.axes]
            drawn = numbers.integers(0, 2, shape)
            if is_floating(leaf.dtype):
                drawn = numbers.normal(size=shape)
            inputs[leaf.name] = drawn.astype(leaf.dtype)
    return inputs


def draw_seeds(graph: gw.Graph, outputs: Mapping[str, Any], numbers: Any) -> dict[str, Any]:
    """A seed for each floating output."""
    seeds = {}
    for name, output in outputs.items():
        if is_floating(graph.output_dtype(name)):
            one = np.ones(output.shape)
            drawn = one if output.size == 1 else numbers.normal(size=output.shape)
            seeds[name] = drawn.astype(output.dtype)
    return seeds


def is_floating(dtype: str) -> bool:
    """Whether values of a data type have gradients."""
    return dtype in ("float64", "float32", "float16", "bfloat16")


# -- what the server knows -------------------------------------------------------------------------


def entries_of(graph: gw.Graph) -> dict[int, Entry]:
    """Every value but constants, by id, with its neighbours."""
    names = {ids[0]: name for name, ids in graph.output_ids().items() if len(ids) == 1}
    found = {
        id_: Entry(id_, name or names.get(id_) or f"%{id_}", operator)
        for id_, name, operator in graph.value_labels()
    }
    named = {entry.name: entry for entry in found.values() if entry.operator == "parameter"}
    for leaf in graph.leaves:
        if leaf.kind == "parameter" and leaf.name in named:
            assert leaf.value is not None
            named[leaf.name].is_setting = leaf.value.size == 1 or is_mask(leaf.value)
    exponents, others = set(), set()
    for node in graph.nodes():
        exponents.update(node.inputs[1:] if node.operator == "Pow" else ())
        others.update(node.inputs[:1] if node.operator == "Pow" else node.inputs)
        inputs = [found[each] for each in dict.fromkeys(node.inputs) if each in found]
        for entry in inputs:
            entry.users.append(found[node.outputs[0]])
        for output in node.outputs:
            found[output].inputs = inputs
    for id_ in (exponents - others) & found.keys():
        found[id_].is_setting = found[id_].operator == "parameter"
    return found


def is_mask(value: Any) -> bool:
    """Whether elements are 0, or so low that a softmax makes 0 of them."""
    array = np.asarray(value, np.float64)
    return bool(array.size and ((array == 0) | (array <= -1e4)).all() and (array < 0).any())


def evaluate(
    server: gw.Connection, graph: gw.Graph, entries: Mapping[int, Entry], inputs: Any, numbers: Any
) -> None:
    """Fills in the summaries of all values and gradients, from one pass forward and one back."""
    chosen: dict[str, Any] = {"values": True, "gradients": True, "summary": True}
    with server.session(graph, inputs, **chosen) as session:
        forward = session.step(forward_only=True)
        seeds = draw_seeds(graph, forward.outputs, numbers)
        seed_norm = math.hypot(*(float(np.linalg.norm(np.float64(x))) for x in seeds.values()))
        if not seed_norm:
            raise SystemExit("no output has floating elements, so there is no gradient")
        backward = session.backward(seeds)
    for id_, entry in entries.items():
        entry.value = summary(forward.node_values.get(id_))
        entry.gradient = summary(backward.node_gradients.get(id_))
        if entry.gradient is not None:
            entry.ratio = entry.gradient.norm / seed_norm


def summary(found: Any) -> gw.Summary | None:
    """A summary, where there is one: integers have no gradient."""
    return found if isinstance(found, gw.Summary) else None


# -- what is wrong ---------------------------------------------------------------------------------


def in_backward_order(graph: gw.Graph, entries: Mapping[int, Entry]) -> list[Entry]:
    """As gradients become complete: each when the first node that uses its value is reached."""

    def completed_by(entry: Entry) -> tuple[int, int]:
        return min((user.id for user in entry.users), default=graph.value_count + 1), entry.id

    return sorted(entries.values(), key=completed_by, reverse=True)


def mark_faults(graph: gw.Graph, entries: Mapping[int, Entry], below: float, above: float) -> None:
    """Says of each gradient what is wrong with it."""
    for id_ in leading_to_outputs(graph, entries):
        entry = entries[id_]
        assert entry.gradient is not None
        if entry.is_setting:
            continue
        if entry.gradient.nan_count:
            entry.fault = "has NaN"
        elif entry.gradient.infinity_count:
            entry.fault = "is infinite"
        elif entry.ratio > above:
            entry.fault = "explodes"
        elif 0 < entry.ratio < below:
            entry.fault = "vanishes"
        elif entry.ratio == 0 and not entry.is_leaf:  # leaves such as the bounds of Clip may be 0
            entry.fault = "is 0"


def leading_to_outputs(graph: gw.Graph, entries: Mapping[int, Entry]) -> Iterator[int]:
    """Values with gradients, all the way to an output; that of others is 0 and ought to be."""
    waiting = [id_ for ids in graph.output_ids().values() for id_ in ids]
    seen = set()
    while waiting:
        id_ = waiting.pop()
        if id_ in entries and id_ not in seen and entries[id_].gradient is not None:
            seen.add(id_)
            waiting.extend(each.id for each in entries[id_].inputs)
            yield id_


def findings(order: Sequence[Entry]) -> list[Finding]:
    """The first value that is not finite, and the first node with each fault of the gradient.

    Besides, the first leaf with the fault, where its gradient is complete before the node's.
    """
    firsts: dict[tuple[str, str, bool], Entry] = {}
    for entry in sorted(order, key=lambda each: each.id):
        fault = not_finite(entry.value)
        if fault and not entry.is_setting and not firsts:
            firsts["value", fault, entry.is_leaf] = entry
    for entry in order:
        if entry.fault and ("gradient", entry.fault, False) not in firsts:
            firsts.setdefault(("gradient", entry.fault, entry.is_leaf), entry)
    sentences = {"value": value_sentence, "gradient": gradient_sentence}
    return [
        Finding(of, fault, each.id, each.name, each.operator, sentences[of](each))
        for (of, fault, _), each in firsts.items()
    ]


def not_finite(figures: gw.Summary | None) -> str:
    """The fault of elements that are no numbers; empty where there are none."""
    if figures is None:
        return ""
    return "has NaN" if figures.nan_count else "is infinite" if figures.infinity_count else ""


# -- sentences -------------------------------------------------------------------------------------


def value_sentence(entry: Entry) -> str:
    begin = f"{entry.label}: the value {not_finite(entry.value)} here first, with "
    return f"{begin}{counts(entry.value)}{at_inputs(entry)}."


def gradient_sentence(entry: Entry) -> str:
    assert entry.gradient is not None
    begin = f"{entry.label}: the gradient {entry.fault} here"
    begin += ", before any node" if entry.is_leaf else " first"
    if entry.fault != "is 0":
        norm = f"norm {entry.gradient.norm:.3g}, which is {entry.ratio:.3g} of the seed's"
        begin += f", with {counts(entry.gradient) or norm}"
    makers = [f"{made(user)}{at_inputs(user)}" for user in entry.users[:FEW]]
    if len(entry.users) > FEW:
        makers.append(f"and {len(entry.users) - FEW} more nodes")
    return "; ".join([begin, *makers]) + "."


def made(node: Entry) -> str:
    """What a node that uses a value made its gradient from."""
    if node.gradient is None:
        return f"{node.label} uses it"
    figures = counts(node.gradient)
    return (
        f"{node.label} made it from a gradient with {figures or f'norm {node.gradient.norm:.3g}'}"
    )


def at_inputs(node: Entry) -> str:
    """Where the inputs of a node lie."""
    parts = [f"{each.name!r} {span(each.value)}" for each in node.inputs[:FEW] if each.value]
    if not parts:
        return ""
    if len(node.inputs) > FEW:
        parts.append(f"and {len(node.inputs) - FEW} more")
    return f", at its input{'s' if len(parts) > 1 else ''} " + ", ".join(parts)


def span(figures: gw.Summary) -> str:
    found = f"from {figures.minimum:.3g} to {figures.maximum:.3g}"
    return f"{found} ({figures.nan_count} NaN)" if figures.nan_count else found


def counts(figures: gw.Summary | None) -> str:
    """How many elements are no numbers; empty where all are."""
    assert figures is not None
    kinds = (("NaN", figures.nan_count), ("infinite", figures.infinity_count))
    parts = [f"{count} {kind}" for kind, count in kinds if count]
    total = figures.nan_count + figures.infinity_count
    return " and ".join(parts) + (" elements" if total > 1 else " element") if parts else ""


def all_well(order: Sequence[Entry], below: float, above: float) -> str:
    """What to say where nothing is wrong."""
    ratios = [each for each in order if each.ratio > 0]
    begin = f"Nothing is wrong: no gradient is below {below:g} or above {above:g} of the seed's"
    if not ratios:
        return f"{begin}."
    ratios.sort(key=lambda each: each.ratio)
    ends = [f"{each.ratio:.3g} at {each.label}" for each in (ratios[0], ratios[-1])]
    return f"{begin}; they are from {ends[0]} to {ends[1]}."


# -- output ----------------------------------------------------------------------------------------


def print_table(order: Sequence[Entry], firsts: Iterable[int]) -> None:
    table = Table(box=None, pad_edge=False)
    table.add_column("node", overflow="fold")
    table.add_column("operator")
    for title in ("value norm", "gradient norm", "of seed"):
        table.add_column(title, justify="right")
    table.add_column("", no_wrap=True)
    shown, last = shown_rows(order, set(firsts)), -1
    for row in [*shown, len(order)]:
        if row > last + 1:
            table.add_row("...", f"[dim]{row - last - 1} more[/dim]")
        if row < len(order):
            table.add_row(*cells(order[row], order[row].id in firsts))
        last = row
    Console().print(table)


def shown_rows(order: Sequence[Entry], firsts: set[int]) -> list[int]:
    """Rows of a long table: both ends, and where something begins."""
    half = ROWS_SHOWN // 2
    return [
        row
        for row, entry in enumerate(order)
        if row < half or row >= len(order) - half or entry.id in firsts
    ]


def cells(entry: Entry, is_first: bool) -> Iterator[str]:
    fault = f"[red]{entry.fault}[/red]" if entry.fault else ""
    yield escape(entry.name)
    yield entry.operator
    yield f"[green]{norm_of(entry.value)}[/green]"
    yield f"[red]{norm_of(entry.gradient)}[/red]"
    yield "" if entry.gradient is None or not_finite(entry.gradient) else f"{entry.ratio:.3g}"
    yield f"[bold]{fault} first[/bold]" if is_first and fault else fault


def norm_of(figures: gw.Summary | None) -> str:
    if figures is None:
        return "none"
    return "NaN" if figures.nan_count else f"{figures.norm:.3g}"


def as_json(order: Sequence[Entry], found: Sequence[Finding]) -> str:
    nodes = [
        {
            "id": entry.id,
            "name": entry.name,
            "operator": entry.operator,
            "value": entry.value and asdict(entry.value),
            "gradient": entry.gradient and asdict(entry.gradient),
            "of_seed": entry.ratio,
            "fault": entry.fault,
        }
        for entry in order
    ]
    whole = {"findings": list(map(asdict, found)), "nodes": nodes}
    return json.dumps(plain(whole), allow_nan=False)


def plain(given: Any) -> Any:
    """What JSON can hold: NaN and infinities as text, as `gradwire eval --json` writes them."""
    if isinstance(given, dict):
        return {name: plain(each) for name, each in given.items()}
    if isinstance(given, list):
        return [plain(each) for each in given]
    if isinstance(given, float) and not math.isfinite(given):
        return "NaN" if given != given else "Infinity" if given > 0 else "-Infinity"
    return given


# -- the command -----------------------------------------------------------------------------------


def setting(text: str) -> tuple[str, Any]:
    """NAME=VALUE: the value a number, a JSON list, or the array in @file.npy."""
    name, _, value = text.partition("=")
    try:
        if value.startswith("@"):
            return name, np.load(value[1:], allow_pickle=False)
        return name, json.loads(value)
    except (OSError, ValueError) as failure:
        raise argparse.ArgumentTypeError(
            f"{text}: write NAME=VALUE, with a number, a JSON list or @file.npy ({failure})"
        ) from None


def size(text: str) -> tuple[str, int]:
    """SYMBOL=N."""
    symbol, _, length = text.rpartition("=")
    if not symbol:
        raise argparse.ArgumentTypeError(f"{text}: write SYMBOL=N, such as batch=8")
    return symbol, whole_number(length)


def whole_number(text: str) -> int:
    """A number from 0 on."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text} is no whole number from 0 on")
    return int(text)


def arguments() -> argparse.Namespace:
    known = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known.add_argument("model", help="an .onnx or .gate file")
    known.add_argument(
        "--set", dest="settings", action="append", type=setting, default=[], metavar="NAME=VALUE",
        help="value of an input: a number, a JSON list, or @file.npy; may be repeated",
    )  # fmt: skip
    known.add_argument(
        "--size", dest="sizes", action="append", type=size, default=[], metavar="SYMBOL=N",
        help="length of a symbolic axis (default 4); may be repeated",
    )  # fmt: skip
    known.add_argument(
        "--parameters", choices=("initializers", "weights", "all"), default="weights",
        help="which floating tensors of an .onnx file are parameters (default weights)",
    )  # fmt: skip
    known.add_argument(
        "--random-seed", type=whole_number, default=0, metavar="N",
        help="of the numbers that are drawn (default 0)",
    )  # fmt: skip
    known.add_argument(
        "--server", metavar="ADDRESS", help="HOST:PORT or unix:PATH (default: one in this process)"
    )
    known.add_argument(
        "--below", type=float, default=1e-6, help="vanishes below this (default 1e-6)"
    )
    known.add_argument("--above", type=float, default=1e3, help="explodes above this (default 1e3)")
    known.add_argument("--json", action="store_true", help="print one JSON object")
    return known.parse_args()


def main() -> None:
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # else its log lines stand beside the sentences
    chosen = arguments()
    numbers, sizes = np.random.default_rng(chosen.random_seed), dict(chosen.sizes)
    graph = load(chosen.model, sizes, chosen.parameters)
    inputs = draw_inputs(graph, dict(chosen.settings), sizes, numbers)
    entries = entries_of(graph)
    with gw.connect(chosen.server) if chosen.server else gw.local(warm_up=False) as server:
        evaluate(server, graph, entries, inputs, numbers)
    mark_faults(graph, entries, chosen.below, chosen.above)
    order = in_backward_order(graph, entries)
    found = findings(order)
    if chosen.json:
        print(as_json(order, found))
        return
    print_table(order, [each.id for each in found if each.of == "gradient"])
    sentences = [each.sentence for each in found] or [all_well(order, chosen.below, chosen.above)]
    for sentence in sentences:
        Console().print(f"\n{sentence}", markup=False, highlight=False)


if __name__ == "__main__":
    try:
        main()
    except gw.GradwireError as error:
        sys.exit(f"find_bad_gradient: {error.message}")
