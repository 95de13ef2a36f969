"""Tables, goals and plots, made from results/*.json and from nothing else."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.harness import FOLDER, OURS, RESULTS, Case, Goal, Report, Spread

PAGE = FOLDER.parent / "docs" / "performance.md"
PLOTS = PAGE.parent / "performance"

#: A table with more contenders than this has them as rows.
_MOST_COLUMNS = 8
_SCALES = {"ns": 1e9, "us": 1e6, "ms": 1e3, "s": 1.0, "MB": 1e-6, "x": 1.0}


def render(results: Path = RESULTS) -> None:
    """Writes the page's generated parts again, and the plots."""
    PAGE.write_text(page(PAGE.read_text(), results))
    draw_plots(results)


def page(before: str, results: Path) -> str:
    """The page with every part between `<!-- bench:NAME -->` and `<!-- /bench -->` made anew."""

    def part(found: re.Match[str]) -> str:
        name = found[1]
        content = goals(results) if name == "goals" else text(results / f"{name}.json")
        return f"<!-- bench:{name} -->\n{content}\n<!-- /bench -->"

    return re.sub(r"<!-- bench:(\S+) -->.*?<!-- /bench -->", part, before, flags=re.DOTALL)


def load(path: Path) -> tuple[Report, dict[str, Any]]:
    """A report and its machine."""
    content = json.loads(path.read_text())
    machine = content.pop("machine")
    content["cases"] = [Case(**case) for case in content["cases"]]
    content["goals"] = [
        Goal(**{**goal, "peers": tuple(goal["peers"])}) for goal in content["goals"]
    ]
    return Report(**content), machine


def text(path: Path) -> str:
    """One benchmark as Markdown: its report, or what its own script printed."""
    printed = path.with_suffix(".txt")
    if printed.exists():
        return f"```text\n{printed.read_text().rstrip()}\n```"
    if not path.exists():
        return f"*Not measured yet: `scripts/bench {path.stem}`.*"
    return "\n".join(_lines(*load(path)))


def _lines(report: Report, machine: dict[str, Any]) -> Iterator[str]:
    yield from (f"{remark}\n" for remark in report.remarks)
    used = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    where = "{cpu}, {cores} cores, {system}, Python {python}; Gradwire {commit}".format(**machine)
    yield (
        f"{where}{'; ' if used else ''}{used}. Each cell: median, and how many times as long as "
        f"{OURS} it takes (least to most of the rounds).\n"
    )
    peers = list(dict.fromkeys(n for case in report.cases for n in (*case.figures, *case.missing)))
    peers.sort(key=lambda name: name != OURS)
    reasons: list[str] = []
    if len(peers) <= _MOST_COLUMNS:
        yield "| " + " | ".join(["", *peers]) + " |"
        yield "|---" * (len(peers) + 1) + "|"
        for case in report.cases:
            yield "| " + " | ".join([case.name, *(_cell(case, n, reasons) for n in peers)]) + " |"
    else:  # contenders down, a table for each group
        for group in dict.fromkeys(case.group for case in report.cases):
            own = [case for case in report.cases if case.group == group]
            there = [name for name in peers if any(_takes_part(name, case) for case in own)]
            yield "| " + " | ".join(["", *(case.name for case in own)]) + " |"
            yield "|---" * (len(own) + 1) + "|"
            for name in there:
                yield "| " + " | ".join([name, *(_cell(c, name, reasons) for c in own)]) + " |"
            yield ""
    for number, reason in enumerate(reasons, 1):
        yield f"{'' if number > 1 else chr(10)}{number}. {reason}"


def _takes_part(name: str, case: Case) -> bool:
    return name in case.figures or name in case.missing


def _cell(case: Case, name: str, reasons: list[str]) -> str:
    if name in case.missing:
        return f"none{_footnote(f'{name}: {case.missing[name]}', reasons)}"
    if name not in case.figures:
        return ""
    note = f"{name}: {case.notes[name]}" if name in case.notes else ""
    mark = _footnote(note, reasons) if note else ""
    scale = _SCALES[case.unit] / case.per
    own = Spread.of([each * scale for each in case.figures[name]])
    if name == OURS:
        return f"{_figure(own.median)} {case.unit} ({_figure(own.least)}-{_figure(own.most)}){mark}"
    if OURS not in case.figures:
        return f"{_figure(own.median)} {case.unit}{mark}"
    ratio = Spread.of(ratios(case, name))
    return (
        f"{_figure(own.median)} {case.unit}, **{_figure(ratio.median)} x** "
        f"({_figure(ratio.least)}-{_figure(ratio.most)}){mark}"
    )


def _footnote(reason: str, reasons: list[str]) -> str:
    if reason not in reasons:
        reasons.append(reason)
    return f" [{reasons.index(reason) + 1}]"


def ratios(case: Case, name: str, who: str = OURS) -> list[float]:
    """How many times as long as ours the peer takes, within each round.

    A slow one rests after some rounds; one that was run once is compared with all of ours.
    """
    ours, peer = case.figures[who], case.figures[name]
    if len(peer) == 1:
        return [peer[0] / own for own in ours]
    return [theirs / own for own, theirs in zip(ours, peer, strict=False)]


def goals(results: Path) -> str:
    """Every goal of every benchmark, with its worst case."""
    lines = ["| goal | needed | measured, worst case | met |", "|---|---|---|---|"]
    for path in sorted(results.glob("*.json")):
        if not path.with_suffix(".txt").exists():
            report, _ = load(path)
            lines += [_goal_line(goal, report) for goal in report.goals]
    return "\n".join(lines)


def _goal_line(goal: Goal, report: Report) -> str:
    """The worst case, as times as long as ours (or, without peers, in the goal's unit)."""
    found = []
    for case in report.cases:
        if (goal.group and case.group != goal.group) or case.size < goal.least_size:
            continue
        there = [name for name in goal.peers if name in case.figures]
        if there:
            fastest = min(there, key=lambda name: median(case.figures[name]))
            spread = Spread.of(ratios(case, fastest, goal.who))
            found.append((spread, f"x, {case.name}"))
        elif not goal.peers:
            own = [each * _SCALES[goal.unit] for each in case.figures[OURS]]
            found.append((Spread.of(own), f"{goal.unit}, {case.name}"))
    if not found:
        return f"| {goal.text} | | not measured | no |"
    if goal.peers:
        worst, where = min(found, key=lambda each: each[0].median)
        needed, met = f"at least {_figure(1 / goal.most)} x", worst.median * goal.most >= 1
    else:
        worst, where = max(found, key=lambda each: each[0].median)
        most = goal.most * _SCALES[goal.unit]
        needed, met = f"at most {_figure(most)} {goal.unit}", worst.median <= most
    spread = f"{_figure(worst.median)} ({_figure(worst.least)}-{_figure(worst.most)})"
    return f"| {goal.text} | {needed} | {spread} {where} | {'yes' if met else '**no**'} |"


def _figure(number: float) -> str:
    """Three digits, and all of those before the point."""
    if number >= 100:
        return f"{number:,.0f}"
    return f"{number:.3g}"


def draw_plots(results: Path) -> None:
    """One plot for each benchmark that has a size on its axis."""
    wanted = {
        "engines": ("engines", "gates", ("wide", "deep")),
        "batches": ("batches", "gates", ("wide", "deep")),
        "servers": ("payload", "float64 numbers each way", ("payload",)),
    }
    for benchmark, (name, axis, groups) in wanted.items():
        path = results / f"{benchmark}.json"
        if path.exists():
            _draw(load(path)[0], name, axis, groups)


def _draw(report: Report, name: str, axis: str, groups: tuple[str, ...]) -> None:
    import matplotlib

    matplotlib.use("svg")
    # the same numbers give the same bytes
    matplotlib.rcParams.update({"svg.hashsalt": "gradwire", "svg.fonttype": "none"})
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(
        1, len(groups), figsize=(5.5 * len(groups), 4.5), sharey=True, squeeze=False
    )
    for panel, group in zip(panels[0], groups, strict=True):
        cases = [case for case in report.cases if case.group == group]
        for peer in dict.fromkeys(name for case in cases for name in case.figures):
            own = [case for case in cases if peer in case.figures]
            sizes = [case.size for case in own]
            spreads = [
                Spread.of([s * _SCALES[case.unit] / case.per for s in case.figures[peer]])
                for case in own
            ]
            width = 2.5 if peer == OURS else 1.2
            (line,) = panel.plot(
                sizes, [s.median for s in spreads], "o-", ms=3, lw=width, label=peer
            )
            panel.fill_between(
                sizes,
                [s.least for s in spreads],
                [s.most for s in spreads],
                color=line.get_color(),
                alpha=0.15,
            )
        unit = cases[0].unit if cases else ""
        panel.set(xscale="log", yscale="log", title=group, xlabel=axis)
        panel.set_ylabel(f"{unit} a gate" if axis == "gates" else unit)
        panel.grid(alpha=0.3)
        panel.legend(fontsize=7)
    PLOTS.mkdir(exist_ok=True)
    figure.tight_layout()
    figure.savefig(PLOTS / f"{name}.svg", metadata={"Date": None})
    pyplot.close(figure)
