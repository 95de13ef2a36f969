"""The benchmark suite runs, checks every contender, and leaves nobody out without a word."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from patience import PATIENCE

ROOT = Path(__file__).parent.parent
SUITE = ["engines", "batches", "chain", "servers", "memory"]


@pytest.mark.slow
def test_the_suite_runs(tmp_path):
    """A contender whose numbers differ from ours stops the run: the suite checks itself."""
    folders = [str(ROOT), str(ROOT / "client"), str(ROOT / "server")]
    subprocess.run(
        [sys.executable, "-m", "benchmarks", *SUITE, "--quick", "--results", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(folders)},
        check=True,
        timeout=PATIENCE,
    )
    for name in SUITE:
        report = json.loads((tmp_path / f"{name}.json").read_text())
        peers = {peer for case in report["cases"] for peer in case["figures"] | case["missing"]}
        assert "Gradwire" in peers, name
        assert len(peers) > 1 or name == "memory", name
        for case in report["cases"]:
            for peer, figures in case["figures"].items():
                assert figures, (case["name"], peer)
                assert min(figures) > 0, (case["name"], peer)
        assert report["machine"]["cores"] >= 1


def test_the_page_shows_the_results_that_are_kept(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks import report
    from benchmarks.harness import RESULTS

    page = (ROOT / "docs" / "performance.md").read_text()
    assert report.page(page, RESULTS) == page, "run scripts/bench --render"


def test_neighbours_run_in_the_busy_halves_alone_and_are_gone_after(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks import neighbours

    loops, told, rows, start = [], [], [], subprocess.Popen

    def start_and_keep(*given, **options):
        loops.append(start(*given, **options))
        return loops[-1]

    def measure():
        with neighbours.neighbours() as tell:

            def tell_and_keep(kind):
                told.append(kind)
                tell(kind)

            calls = {"ours": list, "peer": dict}
            rows.extend(neighbours.cases("work", calls, tell_and_keep, rounds=2))
            raise ZeroDivisionError

    monkeypatch.setattr(subprocess, "Popen", start_and_keep)
    monkeypatch.setattr(neighbours, "TURN_SECONDS", 0)
    with pytest.raises(ZeroDivisionError):
        measure()
    assert [each.poll() for each in loops] == [-signal.SIGKILL] * len(os.sched_getaffinity(0))
    assert told == ["quiet", "busy", "quiet", "busy", "quiet"]
    quiet, busy, _, slowdown = (each.figures["peer"] for each in rows)
    assert slowdown == [after / before for before, after in zip(quiet, busy, strict=True)]
    assert len(slowdown) == 2


def test_a_contender_that_is_wrong_is_not_timed(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks.harness import WrongResultError, require_equal

    require_equal("peer", "values", [1.0, 2.0], [1.0, 2.0 + 1e-12])
    with pytest.raises(WrongResultError, match=r"peer: 1 of 2 in values differ"):
        require_equal("peer", "values", [1.0, 2.0], [1.0, 2.0 + 1e-6])
    with pytest.raises(WrongResultError, match="differ"):
        require_equal("peer", "values", [1.0, float("nan")], [1.0, 2.0])
