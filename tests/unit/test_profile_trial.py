"""What a run's watcher keeps, and that the machine forgets files before it."""

import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kernel_provider.profile.model import Seen
from kernel_provider.profile.trial import Watcher, forget, seen
from kernel_provider.run.model import CellReport, Ending, ExitCode, RunResult
from kernel_provider.steps import Note
from kernel_provider.warden.cgroup import Load

DEATH = Ending(name="MemoryLimitExceeded", reason="it used more.", remedy="")


def is_known(path: Path) -> bool:
    """Whether the machine has the file's beginning in memory (RWF_NOWAIT)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.preadv(descriptor, [bytearray(4096)], 0, os.RWF_NOWAIT)
    except BlockingIOError:
        return False
    except OSError:
        pytest.skip("this file system does not say what it has in memory")
    finally:
        os.close(descriptor)
    return True


def test_the_machine_forgets_files(tmp_path: Path) -> None:
    """A run reads them anew, as its own."""
    path = tmp_path / "weights"
    with path.open("wb") as file:
        file.write(bytes(1 << 20))
        file.flush()
        os.fsync(file.fileno())
    path.read_bytes()
    assert is_known(path)
    forget([path])
    assert not is_known(path)


def result(code: ExitCode, *cells: CellReport, death: Ending | None = None) -> RunResult:
    """A run that ended so."""
    return RunResult(
        exit_code=code, cells=cells, seconds=9.0, death=death, limits={}, document="{}"
    )


def cell(number: int, state: str = "ok", **more: Any) -> CellReport:
    """A cell of three seconds."""
    return CellReport(number=number, index=number, title="", state=state, seconds=3.0, **more)


def test_a_run_is_told_with_its_counters() -> None:
    """Share of throttled periods, the warm cell's own time, no reason where all is well."""
    watcher = Watcher(Note())
    watcher.load = Load(memory=1, pids=1, cpu_time=1, periods=40, throttled=10)
    watcher.first = 5.0
    found = seen(result(ExitCode.SUCCESS, cell(1), cell(2)), watcher, warm=2)
    assert found == Seen(seconds=9.0, first=5.0, warm=3.0, throttled=0.25)


@pytest.mark.parametrize(
    ("code", "state", "told"),
    [
        (ExitCode.OUT_OF_MEMORY, "died", {"died": True}),
        (ExitCode.TIMEOUT, "timed_out", {"late": True}),
        (ExitCode.INTERRUPTED, "interrupted", {"stopped": True}),
        (ExitCode.TERMINATED, "interrupted", {"stopped": True}),
        (ExitCode.CELL_ERROR, "error", {}),
        (ExitCode.KERNEL_DIED, "died", {}),
    ],
)
def test_what_ended_a_run_is_told(code: ExitCode, state: str, told: dict[str, bool]) -> None:
    """By kind, with the cell's own words; a warm cell that failed has no time."""
    culprit = cell(2, state, error="E", message="it used more.")
    found = seen(result(code, cell(1), culprit, death=DEATH), Watcher(Note()), warm=2)
    expected = Seen(seconds=9.0, reason="it used more.")
    assert found == replace(expected, **told)  # type: ignore[arg-type]


def test_a_group_that_is_gone_leaves_the_last_counters() -> None:
    """The sandbox may die between two looks, or before the first one."""
    watcher = Watcher(Note())
    watcher.started(1.5, {}, pid=2**22 + 1)
    watcher.tick()
    outputs = [SimpleNamespace(output_type="stream")]
    watcher.cell_ended(cell(1), 2, [])
    early = watcher.first
    assert early is None
    watcher.cell_ended(cell(2), 2, outputs)
    first = watcher.first
    assert first is not None
    assert first >= 1.5
    watcher.cell_ended(cell(3), 2, outputs)
    assert watcher.first == first
    assert watcher.samples == []
