"""Blob files: large values beside a graph file, by digest, mapped into memory and verified."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gradwire as gw
from gradwire import blob_files, files
from gradwire.builder import writing
from gradwire.v1 import graph_pb2


def layers(*values: Any) -> gw.Graph:
    graph = gw.Graph()
    total = graph.constant(0.0)
    for number, value in enumerate(values):
        total = total + gw.reduce_sum(gw.exp(graph.parameter(f"w{number}", value)), keepdims=0)
    graph.output("f", total)
    return graph


W = np.linspace(0, 1, 1000)
V = np.linspace(1, 2, 999)


def saved(folder: Path, *values: Any) -> tuple[Path, Path]:
    path = folder / "model.gate"
    layers(*(values or (W, V))).save(path, blobs=True)
    (beside,) = folder.glob("model.gate.*.blobs")
    return path, beside


def refusal(path: Path) -> gw.FileError:
    with pytest.raises(gw.FileError) as refused:
        gw.load(path)
    return refused.value


def test_blobs_are_named_by_the_graph_and_never_in_it(tmp_path: Path) -> None:
    path, beside = saved(tmp_path)
    graph = files.read(path)
    assert beside.name == f"model.gate.{sha256(graph).hexdigest()[:16]}.blobs"
    assert b"model" not in graph
    assert graph_pb2.Graph.FromString(graph).required_features == ["blobs"]
    assert W.tobytes() not in path.read_bytes() + graph
    moved = tmp_path / "other.gate"
    path.rename(moved)
    assert refusal(moved).reason == "BLOBS_MISSING"
    beside.rename(tmp_path / beside.name.replace("model", "other"))
    np.testing.assert_array_equal(gw.load(moved).leaves[0].value, W)


def test_graph_with_blobs_is_mapped_and_evaluates_as_without(tmp_path: Path) -> None:
    path, _ = saved(tmp_path)
    graph = gw.load(path)
    assert not any(leaf.value.flags.owndata for leaf in graph.leaves if leaf.value is not None)
    assert graph.to_bytes() == layers(W, V).to_bytes()
    with gw.local() as server:
        found = server.evaluate(graph)
    assert found["f"].value == pytest.approx(np.exp(W).sum() + np.exp(V).sum(), rel=1e-12)
    np.testing.assert_allclose(found["w0"].gradient, np.exp(W))


def test_equal_values_are_stored_once_and_small_ones_in_the_graph(tmp_path: Path) -> None:
    path, beside = saved(tmp_path, W, W.copy(), W.reshape(10, 100), np.arange(10.0))
    assert beside.stat().st_size < W.nbytes + 200
    values = [leaf.value for leaf in gw.load(path).leaves]
    np.testing.assert_array_equal(values[2], W.reshape(10, 100))
    np.testing.assert_array_equal(values[3], np.arange(10.0))


def test_saved_again_a_read_graph_keeps_its_form_and_digest(tmp_path: Path) -> None:
    path, beside = saved(tmp_path)
    before = [path.read_bytes(), beside.read_bytes()]
    graph = gw.load(path)
    graph.save(path)
    assert [path.read_bytes(), beside.read_bytes()] == before
    graph.save(path, blobs=False)
    assert [each.name for each in tmp_path.iterdir()] == ["model.gate"]
    gw.load(path).save(path, blobs=True)
    assert [path.read_bytes(), beside.read_bytes()] == before


def test_large_graphs_have_blobs_unasked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "INLINE_BYTES", 10_000)
    graph = layers(W, V)
    graph.save(tmp_path / "large.gate")
    assert len([*tmp_path.glob("large.gate.*.blobs")]) == 1
    assert gw.load(tmp_path / "large.gate").digest == graph.digest
    layers(W).save(tmp_path / "small.gate")
    assert not [*tmp_path.glob("small.gate.*.blobs")]


def test_every_bit_flip_and_every_cut_of_a_blob_file_is_refused(tmp_path: Path) -> None:
    path, beside = saved(tmp_path, np.arange(512.0), np.arange(1000, dtype=np.float64))
    data = beside.read_bytes()
    chance = random.Random(6)
    head = blob_files._FIXED + 2 * 40 + 64
    bits = [*range(8 * head), *(chance.randrange(8 * len(data)) for _ in range(150))]
    for bit in bits:
        changed = bytearray(data)
        changed[bit >> 3] ^= 1 << (bit & 7)
        beside.write_bytes(changed)
        assert refusal(path).reason in {"FILE_NOT_BLOBS", "FILE_CUT", "FILE_DAMAGED"}
    for size in [*range(head), *(chance.randrange(len(data)) for _ in range(60))]:
        beside.write_bytes(data[:size])
        assert refusal(path).reason == "FILE_CUT"
    beside.write_bytes(data + b"\0")
    assert refusal(path).reason == "FILE_DAMAGED"
    beside.write_bytes(data)
    gw.load(path)


def test_head_of_a_hostile_blob_file_allocates_nothing(tmp_path: Path) -> None:
    path, beside = saved(tmp_path)
    beside.write_bytes(blob_files.MAGIC + (1 << 60).to_bytes(8, "little") + bytes(100))
    assert refusal(path).reason == "FILE_CUT"


def test_link_beside_a_graph_file_is_not_followed(tmp_path: Path) -> None:
    path, beside = saved(tmp_path)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    beside.rename(elsewhere / "blobs")
    beside.symlink_to(elsewhere / "blobs")
    assert refusal(path).reason == "FILE_INVALID"
    beside.unlink()
    os.mkfifo(beside)
    assert "is not a regular file" in refusal(path).message


def test_blob_of_another_size_is_refused(tmp_path: Path) -> None:
    message = graph_pb2.Graph.FromString(layers(W).to_bytes())
    message.required_features.append("blobs")
    message.circuit.parameters[0].value.blob = sha256(V.tobytes()).digest()
    data = message.SerializeToString(deterministic=True)
    path = tmp_path / "model.gate"
    files.write(path, data)
    blob_files.write(blob_files.path_of(path, data), {sha256(V.tobytes()).digest(): V})
    refused = refusal(path)
    assert refused.reason == "TENSOR_INVALID"
    assert "needs 8000 bytes but has 7992" in refused.message


@pytest.mark.parametrize("failing", [1, 2])
def test_crash_while_saving_leaves_the_old_file_or_the_new_one(
    failing: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = saved(tmp_path, W)
    old = gw.load(path).digest
    replace, calls = os.replace, []

    def interrupted(source: Any, target: Any) -> None:
        calls.append(target)
        if len(calls) == failing:
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            layers(V).save(path, blobs=True)
    assert gw.load(path).digest == old
    layers(V).save(path, blobs=True)
    np.testing.assert_array_equal(gw.load(path).leaves[0].value, V)
    assert len([*tmp_path.iterdir()]) == 2


def test_text_names_blobs_and_is_read_with_their_file(tmp_path: Path) -> None:
    path, beside = saved(tmp_path)
    graph = gw.load(path)
    text = graph.to_text()
    assert f'blob("{sha256(W.tobytes()).hexdigest()}")' in text
    again = gw.from_text(text, beside)
    assert again.digest == graph.digest
    again.save(tmp_path / "again.gate")
    assert gw.load(tmp_path / "again.gate").digest == graph.digest
    with pytest.raises(gw.InvalidRequestError) as refused:
        gw.from_text(text)
    assert refused.value.reason == "BLOBS_MISSING"


def test_graph_over_a_message_says_so_before_it_is_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = saved(tmp_path)
    monkeypatch.setattr(writing, "_MESSAGE_BYTES", 10_000)
    with pytest.raises(gw.LimitError, match="one message holds at most 10000, and blobs are not"):
        gw.load(path).to_bytes()


def test_graph_over_the_servers_limit_says_which_flag(tmp_path: Path) -> None:
    path, _ = saved(tmp_path)
    with gw.local(max_message_bytes=10_000) as server, pytest.raises(gw.LimitError) as refused:
        server.evaluate(gw.load(path))
    assert "is over the limit of 10000; send less in one message, or start the server with" in str(
        refused.value
    )


def test_array_that_may_not_be_written_is_kept_and_any_other_copied(tmp_path: Path) -> None:
    np.save(tmp_path / "w.npy", W)
    mapped = np.load(tmp_path / "w.npy", mmap_mode="r")
    locked = W.copy()
    view = locked[:]
    view.flags.writeable = False  # but its base may be written
    graph = layers(mapped, view)
    first, second, *_ = (leaf.value for leaf in graph.leaves)
    assert first is not None
    assert second is not None
    assert np.shares_memory(first, mapped)
    assert not np.shares_memory(second, locked)


PROGRAM = """
import re, sys
from pathlib import Path
import numpy as np
import gradwire as gw
def peak():  # not getrusage's, which begins with that of the parent
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", status)[1]) * 1024
folder, count, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
graph = gw.Graph()
total = graph.constant(0.0)
for number in range(count):
    value = np.load(f"{folder}/{number}.npy", mmap_mode="r")
    total = total + gw.reduce_sum(graph.parameter(f"w{number}", value), keepdims=0)
graph.output("f", total)
before = peak()
graph.save(f"{folder}/model.gate", blobs=True)
saved = peak()
del graph, total, value
again = gw.load(f"{folder}/model.gate")
assert again.leaves[1].value[-1] == 1
loaded = peak()
print((saved - before) / size, (loaded - before) / size)
"""


def peaks(folder: Path, count: int, size: int) -> tuple[float, float]:
    """Peaks of memory while saving, and until loaded, in tensors of `size` bytes."""
    for number in range(count):
        array = np.lib.format.open_memmap(folder / f"{number}.npy", "w+", np.float64, (size // 8,))
        array[:] = number
    command = [sys.executable, "-c", PROGRAM, str(folder), str(count), str(size)]
    saving, loading = subprocess.run(
        command, capture_output=True, text=True, check=True
    ).stdout.split()
    return float(saving), float(loading)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="measures as Linux does")
def test_saving_and_loading_take_less_memory_than_one_tensor(tmp_path: Path) -> None:
    saving, loading = peaks(tmp_path, count=4, size=64 << 20)
    assert 0 < saving < 1.2
    assert 0 < loading < 1.2
