"""How many ONNX node tests converters get right, as a page: docs/onnx-converters.md.

Run as `python -m benchmarks.converters`, with the packages of `pip install -e '.[test]'`. Each
converter has an environment of its own under benchmarks/.cache, made on first use.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx

FOLDER = Path(__file__).parent
CACHE, RESULTS = FOLDER / ".cache", FOLDER / "converters.json"
PAGE = FOLDER.parent / "docs" / "onnx-converters.md"
TESTS = FOLDER.parent / "tests"
sys.path.append(str(TESTS))

#: What pip installs for each, besides onnx; nothing for ours.
PACKAGES = {
    "gradwire": [],
    "onnx2torch": ["onnx2torch"],
    "jaxonnxruntime": ["jaxonnxruntime", "absl-py"],
    "tinygrad": ["tinygrad"],
}
STEP = 1e-6


def main() -> None:
    cases = CACHE / "converter-cases.pickle"
    CACHE.mkdir(exist_ok=True)
    prepared = list(prepared_cases())
    cases.write_bytes(pickle.dumps(prepared))
    operators = {case["name"]: case["operator"] for case in prepared}
    found = {name: run(name, cases, list(operators)) for name in PACKAGES}
    RESULTS.write_text(json.dumps({"operators": operators, "converters": found}, indent=0) + "\n")
    PAGE.write_text(page(operators, found))


def prepared_cases() -> Any:
    """Every node test with a floating input to differentiate, as plain data."""
    import gradient_checks as checks
    import test_onnx_gradients as tests
    from onnx_cases import as_array, collected

    for name in tests.CASES:
        test, case = collected()[name], tests.smooth(name)
        graph = test.model.graph
        given = dict(zip((each.name for each in graph.input), map(as_array, test.data_sets[0][0]),
                         strict=True))  # fmt: skip
        slots = {graph.node[0].input[slot]: slot for slot in checks.moving(case)}
        rng = tests.generator(name)
        outs = case.run()
        drawn = checks.drawn_seeds(outs, rng)
        shown = {each.name for each in graph.output}
        by_slot = tuple(
            seed
            if slot < len(graph.node[0].output) and graph.node[0].output[slot] in shown
            else None
            for slot, seed in enumerate(drawn)
        )
        by_name = dict(zip(graph.node[0].output, by_slot, strict=False))
        seeds = [by_name[each.name] for each in graph.output]
        ways = checks.drawn_ways(case, rng)

        def along(step: float, case: Any = case, by_slot: Any = by_slot, ways: Any = ways) -> float:
            return checks.weighted(by_slot, case.run(checks.moved(case, ways, step)))

        step = tests.FIRST[tests.narrowest(case)][0]
        expected = [np.asarray(as_array(each)) for each in test.data_sets[0][1]]
        yield {
            "name": name,
            "operator": case.operator,
            "model": with_constants(test.model, given, set(slots)),
            "inputs": {each: given[each] for each in given if each in slots},
            "smooth": {each: np.asarray(case.inputs[slots[each]], given[each].dtype)
                       for each in given if each in slots},
            "outputs": expected,
            "seeds": [None if seed is None else np.asarray(seed, out.dtype)
                      for seed, out in zip(seeds, expected, strict=True)],
            "ways": [ways[slots[each]] for each in given if each in slots],
            "difference": checks.central(along, step),
            "scale": checks.spread(*map(np.asarray, outs)),
        }  # fmt: skip


def with_constants(model: Any, given: dict[str, Any], moving: set[str]) -> bytes:
    """The model with the inputs that are not differentiated stored in it, as in real models."""
    found = onnx.ModelProto()
    found.CopyFrom(model)
    kept = [each for each in found.graph.input if each.name in moving]
    for name in given.keys() - moving:
        array = np.asarray(given[name])
        found.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    del found.graph.input[:]
    found.graph.input.extend(kept)
    return bytes(found.SerializeToString())


def run(name: str, cases: Path, names: list[str]) -> dict[str, Any]:
    """Verdicts by case; or the reason why there are none. A crash counts as a refusal."""
    try:
        python = environment(name)
    except subprocess.CalledProcessError as error:
        return {"reason": f"pip could not install it (exit {error.returncode})"}
    verdicts = CACHE / f"converter-{name}.jsonl"
    verdicts.write_text("")
    command = [python, str(FOLDER / "converter_worker.py"), name, str(cases), str(verdicts)]
    settings = os.environ | {"PYTHONPATH": str(TESTS) if name == "gradwire" else ""}
    if name == "tinygrad":
        settings["DEV"] = "PYTHON"
    while True:
        code = subprocess.run(
            command, env=settings, stderr=subprocess.DEVNULL, check=False
        ).returncode
        rows = [json.loads(line) for line in verdicts.read_text().splitlines()]
        if len(rows) == len(names) or code == 0:
            return {"version": version(python, name), "verdicts": {row[0]: row[1:] for row in rows}}
        with verdicts.open("a") as lines:
            lines.write(json.dumps([names[len(rows)], "refused", "refused"]) + "\n")


def environment(name: str) -> str:
    if not PACKAGES[name]:
        return sys.executable
    folder = CACHE / f"converter-{name}"
    python = folder / "bin" / "python"
    if not (folder / "installed").exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        wanted = [*PACKAGES[name], f"onnx=={onnx.__version__}"]
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *wanted], check=True)
        (folder / "installed").touch()
    return str(python)


def version(python: str, name: str) -> str:
    code = f"import importlib.metadata as m; print(m.version({name!r}))"
    return subprocess.run([python, "-c", code], capture_output=True, text=True).stdout.strip()


def page(operators: dict[str, str], found: dict[str, dict[str, Any]]) -> str:
    lines = [INTRODUCTION.format(count=len(operators), kinds=len(set(operators.values())),
                                 onnx=onnx.__version__)]  # fmt: skip
    lines.append("| | forward right | wrong | refused | gradient right | wrong | refused |")
    lines.append("|---|---|---|---|---|---|---|")
    for name, result in found.items():
        if "reason" in result:
            lines.append(f"| {name} | {result['reason']} | | | | | |")
            continue
        counts = [Counter(each[k] for each in result["verdicts"].values()) for k in (0, 1)]
        cells = [str(each[kind]) for each in counts for kind in ("right", "wrong", "refused")]
        lines.append(f"| {name} {result['version']} | {' | '.join(cells)} |")
    usable = [name for name in found if "verdicts" in found[name]]
    lines += [
        "",
        "## By operator",
        "",
        "Gradients that are right, of the operator's node tests.",
        "",
    ]
    lines.append(f"| operator | node tests | {' | '.join(usable)} |")
    lines.append("|---" * (len(usable) + 2) + "|")
    for operator in sorted(set(operators.values())):
        tests = [name for name in operators if operators[name] == operator]
        right = [str(sum(found[each]["verdicts"].get(test, "  ")[1] == "right" for test in tests))
                 for each in usable]  # fmt: skip
        lines.append(f"| {operator} | {len(tests)} | {' | '.join(right)} |")
    return "\n".join(lines) + "\n"


INTRODUCTION = """\
# ONNX node tests, through Gradwire and through converters

Made by `python -m benchmarks.converters`; the verdict on every test is in
`benchmarks/converters.json`.

The {count} node tests of onnx {onnx} that have a floating input to differentiate and a floating
output, and whose data types and operator sets this server has: {kinds} operators. So tests that
this server cannot run are not among them. Inputs that are not differentiated are stored in the
model, as they are in real models, because converters need them so. *Forward*: all outputs have
ONNX's shapes and, within 1e-3 of them, its numbers; one that does not come is wrong (all 19 tests
of onnx2torch's LayerNormalization, whose first output is right). *Gradient*: the gradients of all
those inputs come out, and along a random direction they are, within 1e-3, the finite difference of
the outputs computed in float64; at kinks, beside them. *Refused*: an exception, or more than 10 s.

Each test keeps its own operator set, as a file would. Many refusals are of a new version of an
operator whose older one the converter has (MaxPool of 22, say, which differs from 12 in data types
only): exporting to an older operator set helps there. tinygrad runs on its device PYTHON, which
needs no compiler and is slow: some of its refusals are for time.
"""


if __name__ == "__main__":
    main()
