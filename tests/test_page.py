"""The page, in Chromium: web/tests/browser has the promises; and its pure functions, in Node."""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import gradwire as gw

ROOT = Path(__file__).parent.parent
WEB = ROOT / "web"
GRADWIRE = Path(sys.executable).with_name("gradwire")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


def _node() -> str | None:
    """Node that is new enough for Vite; `PATH="$(scripts/node):$PATH"` finds one anywhere."""
    node = shutil.which("node")
    if node is None or shutil.which("npm") is None:
        return None
    version = subprocess.run([node, "--version"], capture_output=True, text=True).stdout
    major, minor = map(int, version.strip().removeprefix("v").split(".")[:2])
    return node if (major, minor) >= (20, 19) else None


NODE = _node()
pytestmark = pytest.mark.slow
needs_node = pytest.mark.skipif(NODE is None, reason="needs Node 20.19 or newer, which is missing")
BROWSER_TESTS = WEB / "tests" / "browser"


@pytest.fixture(scope="module")
def packages() -> None:
    """What web/package-lock.json names."""
    stamp, lock = WEB / "node_modules" / ".package-lock.json", WEB / "package-lock.json"
    if not stamp.exists() or stamp.stat().st_mtime < lock.stat().st_mtime:
        _run("npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Graphs that the browser opens."""
    folder = tmp_path_factory.mktemp("graphs")
    _hostile().save(folder / "hostile.gate")
    _layers().save(folder / "layers.gate")
    _long().save(folder / "long.gate")
    for nodes in (1000, 10_000):
        _woven(nodes).save(folder / f"chain{nodes}.gate")
    return folder


@needs_node
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium, which is missing")
@pytest.mark.usefixtures("packages")
def test_the_page_keeps_its_promises(files: Path) -> None:
    everything = BROWSER_TESTS / "all.mjs"
    imported = re.findall(r'import "./(.+)";', everything.read_text())
    assert sorted(imported) == sorted(path.name for path in BROWSER_TESTS.glob("*.test.mjs"))
    _run(
        str(NODE), "--test", str(everything),
        GRADWIRE=str(GRADWIRE), CHROMIUM=str(CHROMIUM), FILES=str(files),
    )  # fmt: skip


@needs_node
@pytest.mark.usefixtures("packages")
def test_pure_functions_of_the_page() -> None:
    _run("npm", "run", "--silent", "generate")
    _run("npm", "test")


def _run(*command: str, **variables: str) -> None:
    """In web/, where it must succeed; what it printed is seen where it did not, or with -s."""
    found = subprocess.run(
        command, cwd=WEB, env={**os.environ, **variables}, text=True, capture_output=True
    )
    print(found.stdout)
    assert found.returncode == 0, found.stdout + found.stderr


def _hostile() -> gw.Graph:
    graph = gw.Graph()
    x = graph.input('<img src=x onerror="window.hacked=1">')
    y = graph.input('"];n0->n0[label="x')
    inside = gw.log(x * x + y * y).named("<script>window.hacked=2</script>/</text><script>")
    graph.output("</title><svg onload=window.hacked=3>", inside + gw.sigmoid(y))
    return graph


def _layers() -> gw.Graph:
    graph = gw.Graph()
    h = graph.input("x")
    for layer in ("layer1", "layer2", "layer3"):
        w = graph.parameter(f"{layer}.w", 0.5)
        scores = (w * h).named(f"{layer}/scores")
        h = gw.tanh(scores).named(f"{layer}/activations") + h
    graph.output("f", h)
    graph.output("twice", h * 2.0)
    return graph


def _long() -> gw.Graph:
    """Six hundred gates in a row, each second one with a parameter of its own."""
    graph = gw.Graph()
    h = graph.input("x")
    for layer in range(300):
        h = gw.tanh(h * graph.parameter(f"w{layer}", 0.9))
    graph.output("f", h)
    return graph


def _woven(nodes: int) -> gw.Graph:
    """Each gate takes values that are near: a wide and deep circuit."""
    chosen = random.Random(7)
    graph = gw.Graph()
    values = [graph.input(f"x{i}") for i in range(20)]
    while graph.node_count < nodes - 1:
        x, y = (chosen.choice(values[-30:]) for _ in range(2))
        unary = chosen.random() < 0.5
        values.append(chosen.choice([gw.sigmoid, gw.tanh])(x) if unary else x * y)
    graph.output("f", values[-1] + values[-2])
    return graph
