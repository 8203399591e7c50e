"""The record of kernels that died: bounded, and read whatever became of it."""

import fcntl
import json
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from kernel_provider.warden import deaths
from kernel_provider.warden.deaths import FILE, KEPT, MOST, Record, note, recent

DIED = Record(
    container="executor-ml-7000",
    uid=7000,
    kernel="executor-ml",
    policy="abcd",
    owner=42,
    name="KernelExited",
    reason="the kernel process ended with exit code 3.",
    remedy="Variables are lost.",
    exit_code=3,
    memory_peak=40 << 20,
    memory_limit=512 << 20,
    pids_limit=128,
    at=0.0,
)


def died(ago: float = 0.0, *, kernel: str = "executor-ml") -> Record:
    """One that died so many seconds ago."""
    return replace(DIED, at=time.time() - ago, kernel=kernel)


def test_what_is_noted_is_read(tmp_path: Path) -> None:
    """In its order, by its owner alone."""
    first, second = died(5.0), died(0.0, kernel="ml-2g")
    note(str(tmp_path), first)
    note(str(tmp_path), second)
    assert recent(str(tmp_path)) == (first, second)
    assert (tmp_path / FILE).stat().st_mode & 0o777 == 0o600
    assert recent(str(tmp_path / "none")) == ()


def test_it_does_not_grow(tmp_path: Path) -> None:
    """So many, and none of another day; by the clock of whoever writes, or reads."""
    note(str(tmp_path), died(KEPT + 1))
    for number in range(MOST + 5):
        note(str(tmp_path), died(0.0, kernel=str(number)))
    kept = recent(str(tmp_path))
    assert [record.kernel for record in kept] == [str(n) for n in range(5, MOST + 5)]
    assert len((tmp_path / FILE).read_text().splitlines()) == MOST


def test_a_clock_that_was_set_back_hides_none_for_ever(tmp_path: Path) -> None:
    """What seems to be of the future goes as well."""
    note(str(tmp_path), died(-2 * KEPT))
    note(str(tmp_path), died())
    assert len(recent(str(tmp_path))) == 1


@pytest.mark.parametrize(
    "line", ["", "{", "[]", "{}", "null", json.dumps({**asdict(DIED), "exit_code": "3"}), "\x00"]
)
def test_lines_of_others_are_skipped(tmp_path: Path, line: str) -> None:
    """Another version's, or one that a full disk cut off."""
    good = died()
    (tmp_path / FILE).write_text(line + "\n")
    note(str(tmp_path), good)
    assert recent(str(tmp_path)) == (good,)


def test_many_at_once_lose_none(tmp_path: Path) -> None:
    """An engine that goes ends all kernels in the same moment."""
    every = [died(0.0, kernel=str(number)) for number in range(16)]
    writers = [threading.Thread(target=note, args=(str(tmp_path), one)) for one in every]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert {record.kernel for record in recent(str(tmp_path))} == {r.kernel for r in every}


def test_nobody_waits_long_to_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that stands still with the file in its hand holds up no end of a kernel."""
    monkeypatch.setattr(deaths, "PATIENCE", 0.02)
    with (tmp_path / FILE).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(OSError, match="unavailable"):
            note(str(tmp_path), died())
