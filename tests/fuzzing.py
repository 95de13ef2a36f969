"""Bytes for readers of what nobody trusts, found by coverage: scripts/fuzz TARGET SECONDS.

A target takes any bytes, and either reads them or refuses them with one of our errors. Whatever else
it raises, and whatever takes longer or more memory than `SECONDS` and `MEGABYTES`, is a fault: the
fuzzer stops and leaves the input. Inputs that reach new code are kept in tests/corpus, one archive a
target, which test_fuzzing.py reads again.
"""

from __future__ import annotations

import ast
import contextlib
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from time import process_time
from typing import NamedTuple

CORPUS = Path(__file__).parent / "corpus"
SECONDS = 2
MEGABYTES = 2048
#: Longer inputs are not tried.
MOST_BYTES = 4096


class Target(NamedTuple):
    """What reads the bytes, and inputs to begin with."""

    read: Callable[[bytes], object]
    seeds: Callable[[], Iterator[bytes]]


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
    """An ONNX model."""
    import gradwire as gw
    from gradwire.onnx.apart import read_here

    with contextlib.suppress(gw.GradwireError):
        read_here(data, {}).graph.to_bytes()


def models() -> Iterator[bytes]:
    """ONNX's node tests, one for each operator and kind of them; their data are left out."""
    from onnx.backend.test.case.node import collect_testcases

    shortest: dict[str, bytes] = {}
    for case in collect_testcases(None):
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

    yield from seeds()


def _graphs() -> Iterator[bytes]:
    import gradwire as gw
    from gradwire.onnx.apart import read_here
    from wire import chain, module_neuron, neuron

    for graph in (neuron(), module_neuron(), chain(3)):
        yield graph.SerializeToString(deterministic=True)
    for model in models():
        with contextlib.suppress(gw.GradwireError):
            yield read_here(model, {}).graph.to_bytes()


TARGETS: Mapping[str, Target] = {
    "expressions": Target(read_expression, expressions),
    "models": Target(read_model, models),
    "requests": Target(read_request, requests),
    "texts": Target(read_text, texts),
}


def kept(target: str) -> dict[str, bytes]:
    """The inputs in a target's archive, by the name that the fuzzer gave them."""
    with zipfile.ZipFile(CORPUS / f"{target}.zip") as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def keep(target: str, inputs: Mapping[str, bytes]) -> None:
    """Writes the archive: the same inputs give the same bytes."""
    CORPUS.mkdir(exist_ok=True)
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
    """Arguments are libFuzzer's, the first what it starts to run itself once more."""
    import atheris

    read = TARGETS[target].read
    with atheris.instrument_imports(include=["gradwire", "gradwire_server"]):
        read(b"")  # imports what it needs

    def watch(data: bytes) -> None:
        before = process_time()
        read(data)
        if process_time() - before > SECONDS:
            raise TimeoutError(f"took {process_time() - before:.1f} s of processor time")

    atheris.Setup(arguments, watch)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
