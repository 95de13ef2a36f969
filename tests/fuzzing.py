"""Bytes for readers of what nobody trusts, found by coverage: scripts/fuzz TARGET SECONDS.

A target takes any bytes, and either reads them or refuses them with one of our errors. Whatever
else it raises, and whatever takes longer or more memory than `SECONDS` and `MEGABYTES`, is a fault,
whose input is left in .fuzz. Inputs that reach new code are kept in tests/corpus, one archive a
target, which test_fuzzing.py reads again.
"""

from __future__ import annotations

import ast
import contextlib
import random
import sys
import traceback
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from hashlib import sha256
from math import prod
from pathlib import Path
from time import process_time
from typing import Any, NamedTuple

import numpy as np
import onnx
from mutators import Mutate, of_models, of_requests, of_words

CORPUS = Path(__file__).parent / "corpus"
SECONDS = 2
MEGABYTES = 1024
#: Of a model with its loops written out: what time that takes is bounded by their number.
MOST_NODES = 2000
#: Bytes of an archive; the shortest inputs are kept.
MOST_KEPT = 120_000
#: Longer inputs are not tried.
MOST_BYTES = 4096


class Target(NamedTuple):
    """What reads the bytes, inputs to begin with, and what makes others of them."""

    read: Callable[[bytes], object]
    seeds: Callable[[], Iterator[bytes]]
    mutator: Callable[[list[bytes]], Mutate]


class Fault(NamedTuple):
    """What a target must not do, and where in the code it did."""

    place: str
    report: str


def fault_of(read: Callable[[bytes], object], data: bytes) -> Fault | None:
    """What is wrong with how these bytes are read."""
    resident, peak = _memory()
    if peak - resident > MEGABYTES // 2:
        Path("/proc/self/clear_refs").write_text("5")  # the next peak is that of what is read now
    for _ in range(2):  # the first time it may import something
        before = process_time()
        try:
            read(data)
        except Exception as error:
            frames = traceback.extract_tb(error.__traceback__)
            ours = [each for each in frames if "gradwire" in each.filename] or frames
            place = f"{type(error).__name__} at {Path(ours[-1].filename).name}:{ours[-1].lineno}"
            return Fault(place, traceback.format_exc())
        taken = process_time() - before
        if taken <= SECONDS:
            break
    else:
        return Fault("time", f"took {taken:.1f} s of processor time")
    megabytes = _memory()[1] - resident
    if megabytes > MEGABYTES:
        return Fault("memory", f"took {megabytes} MB")
    return None


def _memory() -> tuple[int, int]:
    """Megabytes of this process, now and at most; 0 where the system does not say so."""
    found = {"VmRSS": 0, "VmHWM": 0}
    with contextlib.suppress(OSError), open("/proc/self/status") as lines:
        for line in lines:
            name, _, size = line.partition(":")
            if name in found:
                found[name] = int(size.split()[0]) >> 10
    return found["VmRSS"], found["VmHWM"]


def read_expression(data: bytes) -> None:
    """An expression, as the page and the command line take it."""
    import gradwire as gw

    with contextlib.suppress(gw.GradwireError, UnicodeDecodeError):
        gw.parse(data.decode()).to_bytes()


def expressions() -> Iterator[bytes]:
    """Each string in the tests of expressions, and each operator called."""
    from gradwire.signatures import SIGNATURES

    tests = ast.parse((Path(__file__).parent / "test_expressions.py").read_text())
    for node in ast.walk(tests):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value.encode(errors="replace")
    for operator in SIGNATURES:
        yield f"{operator}(x, y)".encode()


def read_text(data: bytes) -> None:
    """The text form of a graph."""
    import gradwire as gw

    with contextlib.suppress(gw.GradwireError, UnicodeDecodeError):
        gw.from_text(data.decode()).to_bytes()


def texts() -> Iterator[bytes]:
    import gradwire as gw

    for graph in _graphs():
        yield gw.Graph.from_bytes(graph).to_text().encode()


def read_model(data: bytes) -> None:
    """An ONNX model, with options that its length and its inputs decide."""
    import gradwire as gw
    from gradwire.onnx.messages import load_model
    from gradwire.onnx.weights import CHOICES

    with contextlib.suppress(gw.GradwireError):
        model = load_model(data)
        gw.from_onnx(
            model,
            at=_point(model) if len(data) % 3 == 0 else {},
            parameters=CHOICES[len(data) % len(CHOICES)],
            straight_through=len(data) % 2 == 0,
            max_nodes=MOST_NODES,
        ).to_bytes()


def _point(model: onnx.ModelProto) -> dict[str, np.ndarray[Any, Any]]:
    """Ones for the inputs of a model, where they are small."""
    found = {}
    for each in model.graph.input:
        kind = each.type.tensor_type
        shape = [dim.dim_value if dim.HasField("dim_value") else 2 for dim in kind.shape.dim]
        with contextlib.suppress(KeyError, TypeError, ValueError):
            dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
            if prod(shape) <= MOST_BYTES:
                found[each.name] = np.ones(shape, dtype)
    return found


def models() -> Iterator[bytes]:
    """ONNX's node tests, one for each operator and kind of them; their data are left out."""
    from onnx.backend.test.case.node import collect_testcases

    shortest: dict[str, bytes] = {}
    with warnings.catch_warnings(action="ignore"):  # of what they expect
        cases = collect_testcases(None)
    for case in cases:
        if case.model is not None:
            data = case.model.SerializeToString()
            kind = " ".join(node.op_type for node in case.model.graph.node)
            if kind not in shortest or len(data) < len(shortest[kind]):
                shortest[kind] = data
    yield from shortest.values()


def read_request(data: bytes) -> None:
    """The bytes of an EvaluateRequest."""
    from test_hostile import answer

    answer(data)


def requests() -> Iterator[bytes]:
    from test_hostile import seeds
    from wire import source

    import gradwire as gw
    from gradwire import tensors
    from gradwire.in_process import outputs_of
    from gradwire.v1 import graph_pb2, service_pb2

    yield from seeds()
    for data in _graphs():
        graph = gw.Graph.from_bytes(data)
        inputs = {
            leaf.name: np.ones(leaf.axes, leaf.dtype)
            for leaf in graph.leaves
            if leaf.kind == "input" and leaf.value is None and not leaf.elements
        }
        request = service_pb2.EvaluateRequest(graph=source(graph_pb2.Graph.FromString(data)))
        asked = request.evaluation
        for name, array in inputs.items():
            asked.bindings.add(leaf=name, tensor=tensors.encode(array))
        with contextlib.suppress(gw.GradwireError):
            for name, array in outputs_of(graph, inputs).items():
                if str(array.dtype) in tensors.FLOATS:
                    asked.seeds.add(name=name, tensor=tensors.encode(np.ones_like(array)))
        yield request.SerializeToString()


def _graphs() -> Iterator[bytes]:
    from wire import chain, module_neuron, neuron

    import gradwire as gw
    from gradwire.onnx.apart import read_here

    for graph in (neuron(), module_neuron(), chain(3)):
        yield graph.SerializeToString(deterministic=True)
    for model in models():
        with contextlib.suppress(gw.GradwireError):
            yield read_here(model, {}).graph.to_bytes()


TARGETS: Mapping[str, Target] = {
    "expressions": Target(read_expression, expressions, of_words),
    "models": Target(read_model, models, of_models),
    "requests": Target(read_request, requests, of_requests),
    "texts": Target(read_text, texts, of_words),
}


def kept(target: str) -> dict[str, bytes]:
    """The inputs in a target's archive, by the name that the fuzzer gave them."""
    with zipfile.ZipFile(CORPUS / f"{target}.zip") as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def keep(target: str, inputs: Mapping[str, bytes]) -> None:
    """Writes the archive, of as many inputs as `MOST_KEPT` allows: the same give the same bytes."""
    CORPUS.mkdir(exist_ok=True)
    size = 0
    for name in sorted(inputs, key=lambda name: (len(inputs[name]), name)):
        size += len(zlib.compress(inputs[name])) + 2 * (len(name) + 50)
        if size > MOST_KEPT:
            inputs = {it: each for it, each in inputs.items() if len(each) < len(inputs[name])}
            break
    with zipfile.ZipFile(CORPUS / f"{target}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(inputs):
            archive.writestr(zipfile.ZipInfo(name), inputs[name], zipfile.ZIP_DEFLATED)


def main() -> None:
    """`unpack TARGET FOLDER`, `pack TARGET FOLDER`, or `run TARGET` with libFuzzer's arguments."""
    action, target, *rest = sys.argv[1:]
    if action == "pack":
        keep(target, {path.name: path.read_bytes() for path in Path(rest[0]).iterdir()})
    elif action == "unpack":
        inputs = kept(target) if (CORPUS / f"{target}.zip").exists() else {}
        inputs |= {f"seed-{i}": data for i, data in enumerate(TARGETS[target].seeds())}
        for name, data in inputs.items():
            if len(data) <= MOST_BYTES:
                (Path(rest[0]) / name).write_bytes(data)
    else:
        fuzz(target, rest)


def fuzz(target: str, arguments: list[str]) -> None:
    """Arguments are libFuzzer's, the first what it starts to run itself once more.

    It goes on after a fault, of which the first input for each place in the code is written.
    """
    import atheris

    read, _, mutator = TARGETS[target]
    folders = [Path(each) for each in arguments[1:] if not each.startswith("-")]
    pool = [path.read_bytes() for folder in folders for path in sorted(folder.iterdir())]

    with atheris.instrument_imports(include=["gradwire", "gradwire_server"]):
        read(b"")  # imports what it needs
        mutate = mutator(pool)

    def mutated(data: bytes, most: int, seed: int) -> bytes:
        chance = random.Random(seed)
        found = mutate(data, chance) if chance.random() < 0.9 else None
        return atheris.Mutate(data, most) if found is None or len(found) > most else found

    faults = Path(".fuzz") / f"{target}-faults"

    def watch(data: bytes) -> None:
        fault = fault_of(read, data)
        if fault is not None:
            faults.mkdir(parents=True, exist_ok=True)
            path = faults / sha256(fault.place.encode()).hexdigest()[:12]
            if not path.exists():
                path.write_bytes(data)
                path.with_suffix(".txt").write_text(fault.report)
                print(f"FAULT {path}: {fault.place}", flush=True)

    with atheris.instrument_imports(include=["gradwire", "gradwire_server"]):
        atheris.Setup(arguments, watch, custom_mutator=mutated)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
