"""Runs benchmarks, writes what they found, and renders docs/performance.md; see scripts/bench."""

from __future__ import annotations

import argparse
import importlib
import subprocess
import sys
from pathlib import Path

from benchmarks import harness, report
from benchmarks.harness import CACHE, FOLDER, RESULTS

#: Those with `run(quick) -> Report`.
REPORTS = ("engines", "batches", "chain", "networks", "busy", "wire", "servers", "memory")
#: Scripts that write their own JSON; the page shows what they print. A quick run has none.
SCRIPTS = ("plan",)
#: What a quick run waits and measures for, in place of whatever a module has by these names.
QUICK_SECONDS = 0.01
_WAITS = ("TURN_SECONDS", "WARM_SECONDS", "LOOK_SECONDS")


def main() -> None:
    there = [name for name in (*REPORTS, *SCRIPTS) if (FOLDER / f"{name}.py").exists()]
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(there)}; all")
    parser.add_argument("--quick", action="store_true", help="small, few peers: a smoke test")
    parser.add_argument("--render", action="store_true", help="only docs/performance.md again")
    parser.add_argument("--results", type=Path, help="folder for the JSON, in place of the page's")
    asked = parser.parse_args()
    unknown = sorted(set(asked.names) - set(there))
    if unknown:
        parser.error(f"there is no benchmark {unknown[0]!r}; there are {', '.join(there)}")
    results = asked.results or (CACHE / "quick" if asked.quick else RESULTS)
    if not asked.render:
        chosen = [name for name in there if not asked.quick or name in REPORTS]
        run(asked.names or chosen, asked.quick, results)
    if results == RESULTS:
        report.render()


def run(names: list[str], quick: bool, results: Path) -> None:
    """Each in a process of its own: no library's threads or memory disturb the next one."""
    if len(names) > 1:
        options = ["--results", str(results), *(["--quick"] if quick else [])]
        for name in names:
            print(f"+ {name}", flush=True)
            subprocess.run([sys.executable, "-m", "benchmarks", name, *options], check=True)
        return
    (name,) = names
    if name in SCRIPTS:
        run_script(name, results)
        return
    module = importlib.import_module(f"benchmarks.{name}")
    if quick:
        for each in (harness, module):
            for wait in _WAITS:
                if hasattr(each, wait):
                    setattr(each, wait, QUICK_SECONDS)
    print(report.text(module.run(quick).write(results)))


def run_script(name: str, results: Path) -> None:
    """Its JSON and what it prints."""
    results.mkdir(exist_ok=True)
    script = [sys.executable, str(FOLDER / f"{name}.py"), "--json", str(results / f"{name}.json")]
    printed = subprocess.run(script, stdout=subprocess.PIPE, text=True, check=True).stdout
    (results / f"{name}.txt").write_text(printed)
    print(printed)


if __name__ == "__main__":
    main()
