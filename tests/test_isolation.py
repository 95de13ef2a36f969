"""What is not trusted is read in a process of its own, and can end that one alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import helper
from patience import PATIENCE

import gradwire as gw
from gradwire import isolation
from gradwire.cli import main
from gradwire.isolated import error_in, facts_in, has_limits
from gradwire.isolation import Bounds, Pool

MIB = 1 << 20
MODELS = Path(__file__).parent / "models"
BOUNDS = Bounds("raise {limit}", 1024 * MIB, 600, MIB)

limited = pytest.mark.skipif(not has_limits(), reason="the system has no such limit")
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere its time ends it")


@pytest.fixture
def pool() -> Iterator[Pool]:
    found = Pool(1)
    yield found
    found.close()


def run(pool: Pool, case: str, *arguments: Any, bounds: Bounds = BOUNDS) -> Any:
    job = pool.job(f"isolated_cases:{case}", *arguments, what="a.onnx", bounds=bounds)
    return job.result()


def until_there(path: Path) -> str:
    """What a file says, once there is one."""
    while not path.exists():
        Event().wait(0.01)
    return path.read_text()


# The process


def test_a_child_stays_for_the_next_job(pool: Pool) -> None:
    np.ones(75_000_000)  # what the parent had is no matter
    first, second = run(pool, "say", "one"), run(pool, "say", "two")
    assert (first.graph, second.graph) == (b"one", b"two")
    assert first.facts == second.facts
    assert int(first.facts["process"]) != os.getpid()


def test_errors_arrive_as_they_were_raised(pool: Pool) -> None:
    with pytest.raises(gw.TextError, match="line 2") as caught:
        run(pool, "refuse")
    assert (caught.value.reason, caught.value.column) == ("EXPRESSION_INVALID", 7)


def test_faults_of_ours_stay_visible_and_touch_no_terminal(pool: Pool) -> None:
    with pytest.raises(RuntimeError, match="ZeroDivisionError: a fault of") as caught:
        run(pool, "fail")
    assert "\x1b" not in str(caught.value)


def test_a_crash_is_one_sentence_and_the_next_job_has_another_child(pool: Pool) -> None:
    with pytest.raises(
        gw.InvalidRequestError, match=r"^a\.onnx: its reader ended by SIGSEGV: .*"
    ) as c:
        run(pool, "crash")
    assert c.value.reason == "MODEL_INVALID"
    assert run(pool, "say", "again").graph == b"again"


@limited
def test_processor_time_is_limited_though_the_lock_is_held(
    pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(isolation, "_PATIENCE", PATIENCE)
    bounds = Bounds("raise {limit}", seconds=1)
    with pytest.raises(gw.LimitError, match="1 seconds of processor time; raise max-read-seconds"):
        run(pool, "hold_lock", str(tmp_path / "begun"), bounds=bounds)


def test_time_on_the_clock_is_limited(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolation, "has_limits", lambda: False)
    with pytest.raises(
        gw.LimitError, match="more than 1 seconds; raise max-read-seconds"
    ) as caught:
        run(pool, "wait", bounds=Bounds("raise {limit}", seconds=1))
    assert caught.value.facts == {"limit": "max-read-seconds", "value": "1"}


@limited
@pytest.mark.skipif(sys.platform == "darwin", reason="it has the limit's name alone")
def test_memory_is_limited(pool: Pool) -> None:
    with pytest.raises(gw.LimitError, match="takes more than 1024 MiB of memory; raise max-read-b"):
        run(pool, "grow")
    assert run(pool, "say", "again").graph == b"again"


def test_answers_are_limited_by_both_sides(pool: Pool) -> None:
    with pytest.raises(gw.LimitError, match="over the limit of 1048576 bytes; raise max-message-b"):
        run(pool, "say", "a" * (MIB + 1))
    with pytest.raises(gw.ServerError, match="answered what is no answer"):
        run(pool, "lie")
    assert run(pool, "say", "again").graph == b"again"


def test_a_cancelled_job_ends_its_child(pool: Pool, tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    job = pool.job("isolated_cases:hold_lock", str(begun), what="a.onnx", bounds=BOUNDS)
    failures: list[BaseException] = []

    def wait_for_it() -> None:
        try:
            job.result()
        except gw.GradwireError as error:
            failures.append(error)

    waiting = threading.Thread(target=wait_for_it)
    waiting.start()
    child = int(until_there(begun))
    job.cancel()
    waiting.join()
    assert [type(each) for each in failures] == [gw.CancelledError]
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)
    assert run(pool, "say", "again").graph == b"again"


PARENT = """
import sys
from gradwire.isolation import Bounds, Pool
Pool(1).job("isolated_cases:hold_lock", sys.argv[1], what="", bounds=Bounds("")).result()
"""


@on_linux
def test_a_child_ends_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    path = os.pathsep.join(sys.path)
    environment = {**os.environ, "PYTHONPATH": path}
    with subprocess.Popen([sys.executable, "-c", PARENT, str(begun)], env=environment) as parent:
        child = int(until_there(begun))
        parent.kill()
    while is_running(child):
        Event().wait(0.01)


def is_running(process: int) -> bool:
    """Whether a process of nobody's is there; init may not have taken it away yet."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


# What it answers


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"[" * 100_000,
        b"\xff",
        {"kind": "SystemExit", "reason": "A", "message": "", "facts": {}},
        {"kind": "nearest", "reason": "A", "message": "", "facts": {}},
        {"kind": "FileError", "reason": "no reason", "message": "", "facts": {}},
        {"kind": "FileError", "reason": "A", "message": 1, "facts": {}},
        {"kind": "FileError", "reason": "A", "message": "", "facts": {"a": 1}},
        {"kind": "FileError", "reason": "A", "message": "", "facts": []},
    ],
)
def test_errors_that_no_child_of_ours_says_are_faults(said: Any) -> None:
    data = said if isinstance(said, bytes) else json.dumps(said).encode()
    found = error_in(data)
    assert (type(found), found.reason) == (gw.ServerError, "INTERNAL")
    with pytest.raises(gw.ServerError):
        facts_in(data)


def test_graphs_that_are_none_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Lying:
        def job(self, *_: Any, **__: Any) -> Any:
            return self

        def result(self) -> Any:
            return isolation.Answer(b"\xff\xff", {"operator_set": "-" * 9})

    monkeypatch.setattr("gradwire.models.own_pool", Lying)
    with pytest.raises(gw.GradwireError) as caught:
        gw.from_onnx(b"", isolated=True)
    assert caught.value.reason == "GRAPH_INVALID"


# Models


def crashing() -> bytes:
    """A model at which the shape inference of onnx reads beyond its lists."""
    infos = [
        helper.make_tensor_value_info(name, kind, shape)
        for name, kind, shape in (("i", 7, []), ("c", 9, []), ("a", 1, [4]), ("b", 1, [4]))
    ]
    double = helper.make_node("Add", ["a", "a"], ["b"])
    body = helper.make_graph([double], "body", infos[:3], [infos[1], infos[3]])
    nodes = [
        helper.make_node("LayerNormalization", ["q", "k"], ["w", "mean"], axis=2**63 - 1),
        helper.make_node("Shape", ["w"], ["s"]),
        helper.make_node("ReduceMax", ["s"], ["m"], keepdims=0),
        helper.make_node("Loop", ["m", "", "x"], ["y"], body=body),
    ]
    given = [
        helper.make_tensor_value_info(name, 1, shape)
        for name, shape in (("x", [4]), ("q", [8, 8]), ("k", [8]))
    ]
    output = helper.make_tensor_value_info("y", 1, None)
    graph = helper.make_graph(nodes, "g", given, [output])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return bytes(made.SerializeToString())


def test_isolated_models_are_the_same_graphs() -> None:
    for name in ("mlp", "lstm", "sklearn_ridge"):
        path = MODELS / f"{name}.onnx"
        expected = gw.from_onnx(path).digest
        for given in (path, path.read_bytes(), onnx.load(path)):
            assert gw.from_onnx(given, isolated=True).digest == expected
    with_options = {"parameters": "all", "fixed": {"x": np.ones((1, 4), "float32")}}
    failures = []
    for isolated in (False, True):
        with pytest.raises(gw.GradwireError) as caught:
            gw.from_onnx(MODELS / "mlp.onnx", **with_options, isolated=isolated)
        failures.append((type(caught.value), caught.value.message, caught.value.facts))
    assert failures[0] == failures[1]


def test_a_model_that_crashes_onnx_ends_its_reader_alone(tmp_path: Path) -> None:
    with pytest.raises(
        gw.InvalidRequestError, match="the model: its reader ended by SIG"
    ) as caught:
        gw.from_onnx(crashing(), isolated=True)
    assert caught.value.reason == "MODEL_INVALID"
    model = tmp_path / "crashing.onnx"
    model.write_bytes(crashing())
    for command in (
        ["show", model],
        ["convert", model, tmp_path / "a.gate"],
        ["diff", model, model],
    ):
        found = CliRunner().invoke(main, [*map(str, command)])
        assert found.exit_code == (2 if command[0] == "diff" else 1)
        assert found.stderr.startswith(f"gradwire: {model}: its reader ended by SIG")
        assert found.stderr.count("\n") == 1


def test_the_command_reads_what_is_trusted_itself(tmp_path: Path) -> None:
    for name, flags in (("apart", []), ("here", ["--trusted"])):
        command = ["convert", str(MODELS / "mlp.onnx"), str(tmp_path / f"{name}.gate"), *flags]
        assert CliRunner().invoke(main, command).exit_code == 0
    assert (tmp_path / "apart.gate").read_bytes() == (tmp_path / "here.gate").read_bytes()
    found = CliRunner().invoke(main, ["show", "x*x", "--trusted"])
    assert "--trusted is for ONNX models" in found.stderr
