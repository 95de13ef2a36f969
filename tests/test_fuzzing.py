"""What the fuzzer kept is read again without a fault, and a fault would be found."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import fuzzing
import numpy as np
import pytest
from fuzzing import TARGETS, fault_of, keep, kept


@pytest.mark.parametrize("target", sorted(TARGETS))
def test_what_the_fuzzer_kept_is_read_or_refused(target: str) -> None:
    inputs = kept(target)
    assert len(inputs) > 50
    for name, data in inputs.items():
        with np.errstate(all="ignore"):
            fault = fault_of(TARGETS[target].read, data)
        assert fault is None, f"{target} {name} ({data!r}): {fault.report}"


@pytest.mark.parametrize("target", sorted(TARGETS))
def test_what_is_made_of_the_kept_inputs_is_read_or_refused(target: str) -> None:
    inputs = [*kept(target).values()]
    mutate = TARGETS[target].mutator(inputs)
    chance = random.Random(11)
    made = {data for _ in range(200) if (data := mutate(chance.choice(inputs), chance))}
    assert len(made) > 100
    for data in made:
        with np.errstate(all="ignore"):
            fault = fault_of(TARGETS[target].read, data)
        assert fault is None, f"{target} ({data!r}): {fault.report}"


def test_an_error_that_is_not_ours_is_a_fault() -> None:
    def read(data: bytes) -> None:
        assert data != b"bad"

    assert fault_of(read, b"good") is None
    fault = fault_of(read, b"bad")
    assert fault is not None
    assert fault.place.startswith("AssertionError at test_fuzzing.py")


def test_what_takes_too_long_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter(range(0, 1000, fuzzing.SECONDS + 1))
    monkeypatch.setattr(fuzzing, "process_time", lambda: next(seconds))
    fault = fault_of(len, b"")
    assert fault is not None
    assert fault.place == "time"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says how much at most")
def test_what_takes_too_much_memory_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzzing, "MEGABYTES", 10)
    fault = fault_of(lambda _: np.ones(10_000_000), b"")
    assert fault is not None
    assert fault.place == "memory"


def test_archives_are_small_and_the_same_inputs_give_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sum(path.stat().st_size for path in fuzzing.CORPUS.iterdir()) < 600_000
    monkeypatch.setattr(fuzzing, "CORPUS", tmp_path)
    inputs = {"b": b"2", "a": b"1"}
    keep("texts", inputs)
    before = (tmp_path / "texts.zip").read_bytes()
    assert kept("texts") == inputs
    keep("texts", dict(sorted(inputs.items())))
    assert (tmp_path / "texts.zip").read_bytes() == before
