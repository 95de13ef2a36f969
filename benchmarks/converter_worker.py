"""Runs ONNX models of one node through one converter, in its own environment; see converters.py.

Takes the converter's name, the file of cases and the file of verdicts, which it adds to.
"""

from __future__ import annotations

import importlib
import json
import pickle
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx

SECONDS = 10  # for one case; tinygrad's kernels in Python are slow
#: Of float32, and of the sum along the direction relative to the largest output.
TOLERANCE = 1e-3

#: Of a model with inputs: its outputs; and with seeds for them: the gradients of the inputs.
Run = Callable[[dict[str, Any], list[Any] | None], list[Any]]


def onnx2torch(model: Any) -> Run:
    import onnx2torch
    import torch

    module = onnx2torch.convert(model).eval()

    def run(given: dict[str, Any], seeds: list[Any] | None) -> list[Any]:
        tensors = [torch.tensor(each).requires_grad_(seeds is not None) for each in given.values()]
        out = module(*tensors)
        outs = list(out) if isinstance(out, (tuple, list)) else [out]
        if seeds is None:
            return [each.detach().numpy() for each in outs]
        pairs = [(out, seed) for out, seed in zip(outs, seeds, strict=False) if seed is not None]
        found = torch.autograd.grad(
            [out for out, _ in pairs], tensors, [torch.tensor(seed) for _, seed in pairs]
        )
        return [each.numpy() for each in found]

    return run


def jaxonnxruntime(model: Any) -> Run:
    import jax
    from jaxonnxruntime import call_onnx

    jax.config.update("jax_enable_x64", True)

    def run(given: dict[str, Any], seeds: list[Any] | None) -> list[Any]:
        function, parameters = call_onnx.call_onnx_model(model, given)
        if seeds is None:
            return [*map(np.asarray, function(parameters, given))]
        floating = [k for k, seed in enumerate(seeds) if seed is not None]

        def outputs(chosen: dict[str, Any]) -> list[Any]:
            outs = function(parameters, chosen)
            return [outs[k] for k in floating]

        _, back = jax.vjp(outputs, {name: jax.numpy.asarray(x) for name, x in given.items()})
        (found,) = back([jax.numpy.asarray(seeds[k]) for k in floating])
        return [np.asarray(found[name]) for name in given]

    return run


def tinygrad(model: Any) -> Run:
    from tinygrad import Tensor
    from tinygrad.nn.onnx import OnnxRunner

    path = Path(f"/dev/shm/converter-{id(model)}.onnx")
    path.write_bytes(model.SerializeToString())
    try:
        runner = OnnxRunner(path)
    finally:
        path.unlink()

    def run(given: dict[str, Any], seeds: list[Any] | None) -> list[Any]:
        tensors = {name: Tensor(each) for name, each in given.items()}
        outs = list(runner(tensors).values())
        if seeds is None:
            return [each.numpy() for each in outs]
        loss = sum((out * Tensor(seed)).sum() for out, seed in zip(outs, seeds, strict=False)
                   if seed is not None)  # fmt: skip
        return [each.numpy() for each in loss.gradient(*tensors.values())]

    return run


def gradwire(model: Any) -> Run:
    from types import SimpleNamespace

    from gradient_checks import one_node
    from gradient_checks import run as evaluate
    from onnx_cases import call

    constants = {each.name: onnx.numpy_helper.to_array(each) for each in model.graph.initializer}
    slots = {name: f"x{slot}" for slot, name in enumerate(model.graph.node[0].input)}

    def run(given: dict[str, Any], seeds: list[Any] | None) -> list[Any]:
        graph = one_node(call(SimpleNamespace(model=model), constants | given))
        if seeds is None:
            case = call(SimpleNamespace(model=model), constants | given)
            outs = dict(zip(model.graph.node[0].output, case.run(), strict=False))
            return [np.asarray(outs[each.name]) for each in model.graph.output]
        names = [each.name for each in model.graph.output]
        places = [list(model.graph.node[0].output).index(name) for name in names]
        chosen = {f"out{k}": seed for k, seed in zip(places, seeds, strict=True)
                  if seed is not None}  # fmt: skip
        _, found = evaluate(graph, {}, chosen)
        return [found[slots[name]] for name in given]

    return run


MODULES = {
    "gradwire": ("gradient_checks", "onnx_cases"),
    "onnx2torch": ("torch", "onnx2torch"),
    "jaxonnxruntime": ("jax", "jaxonnxruntime.call_onnx"),
    "tinygrad": ("tinygrad", "tinygrad.nn.onnx"),
}
CONVERTERS = {each.__name__: each for each in (gradwire, onnx2torch, jaxonnxruntime, tinygrad)}


def verdict(compute: Callable[[], bool]) -> str:
    """ "right", "wrong", or "refused" where anything is raised."""

    def late(*_: Any) -> None:
        raise TimeoutError

    signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        return "right" if compute() else "wrong"
    except Exception:
        return "refused"
    finally:
        signal.alarm(0)


def forward_is_right(prepare: Callable[[Any], Run], case: dict[str, Any]) -> bool:
    found = prepare(onnx.load_from_string(case["model"]))(case["inputs"], None)
    return len(found) >= len(case["outputs"]) and all(
        np.shape(out) == np.shape(expected)
        and np.allclose(out, expected, rtol=TOLERANCE, atol=1e-5, equal_nan=True)
        for out, expected in zip(found, case["outputs"], strict=False)
    )


def gradient_is_right(prepare: Callable[[Any], Run], case: dict[str, Any]) -> bool:
    found = prepare(onnx.load_from_string(case["model"]))(case["smooth"], case["seeds"])
    if any(
        np.shape(each) != x.shape for each, x in zip(found, case["smooth"].values(), strict=True)
    ):
        return False
    along = sum(
        float(np.sum(np.multiply(way, each, dtype=float), where=way != 0))
        for way, each in zip(case["ways"], found, strict=True)
    )
    expected = case["difference"]
    return abs(along - expected) <= TOLERANCE * (abs(expected) + case["scale"])


def main(name: str, cases: Path, verdicts: Path) -> None:
    for module in MODULES[name]:  # not on the first case's time: an interrupted import is broken
        importlib.import_module(module)
    done = {json.loads(line)[0] for line in verdicts.read_text().splitlines()}
    with np.errstate(all="ignore"):
        for case in pickle.loads(cases.read_bytes()):
            if case["name"] in done:
                continue
            both = [
                verdict(lambda check=check, case=case: check(CONVERTERS[name], case))
                for check in (forward_is_right, gradient_is_right)
            ]
            with verdicts.open("a") as lines:
                lines.write(json.dumps([case["name"], *both]) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
