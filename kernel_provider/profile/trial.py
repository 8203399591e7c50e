"""One run in a sandbox, with its control group watched from outside."""

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from kernel_provider.errors import StartError
from kernel_provider.profile.memory import kinds
from kernel_provider.profile.model import Limits, Sample, Seen, Subject
from kernel_provider.run.files import read
from kernel_provider.run.model import CellReport, ExitCode, RunRequest, RunResult
from kernel_provider.steps import Note
from kernel_provider.warden.cgroup import Cgroup, Load

STOPPED: Final = (ExitCode.INTERRUPTED, ExitCode.TERMINATED)
LATE: Final = (ExitCode.TIMEOUT, ExitCode.CELL_TIMEOUT)


class Watcher:
    """Hears of a run, and reads the counters of its sandbox while it goes on."""

    def __init__(self, note: Note) -> None:
        self.samples: list[Sample] = []
        self.oom_kills = 0
        self.load: Load | None = None
        self.start = 0.0
        self.first: float | None = None
        self._note = note
        self._group: Cgroup | None = None
        self._begun = 0.0

    def opened(self, notebook: Path, kernel: str) -> None:
        """A run begins."""

    def starting(self, kernel: str) -> None:
        """A sandbox is being started."""
        self._note.text = f"starting {kernel}"

    def started(self, seconds: float, limits: Mapping[str, Any], pid: int) -> None:  # noqa: ARG002
        """It serves, after so many seconds."""
        self.start = seconds
        self._begun = time.monotonic()
        try:
            self._group = Cgroup(pid)
        except OSError:
            self._group = None  # it has just died, which the run itself will tell
        self.tick()

    def cell_started(self, cell: CellReport, total: int) -> None:
        """A cell begins."""
        self._note.text = f"cell {cell.number} of {total}"

    def tick(self) -> None:
        """Read the counters; the last ones before an end are kept."""
        found = kinds(self._group) if self._group is not None else None
        if self._group is None or found is None:
            return
        self.samples.append(Sample(at=time.monotonic() - self._begun, kinds=found))
        self.oom_kills = max(self.oom_kills, self._group.usage().oom_kills)
        load = self._group.load()
        self.load = load if load.periods else self.load

    def cell_ended(self, cell: CellReport, total: int, outputs: list[Any]) -> None:  # noqa: ARG002
        """A cell has ended; the first that shows something is the first result."""
        if outputs and self.first is None and cell.state == "ok":
            self.first = self.start + time.monotonic() - self._begun
        self.tick()


def run(subject: Subject, limits: Limits, *, patience: float | None, note: Note) -> Seen:
    """Run it once, for ``patience`` seconds at most; gone when this returns.

    Raises SandboxError where that has nothing to do with the limits.
    """
    from kernel_provider.run.execute import run_notebook  # noqa: PLC0415  takes 1 s

    forget(subject.files)
    watcher = Watcher(note)
    request = RunRequest(
        notebook=subject.notebook,
        output=None,
        kernel=subject.kernel,
        overrides={**subject.overrides, "memory": limits.memory, "cpus": limits.cpus},
        timeout=patience,
    )
    begun = time.monotonic()
    try:
        result = run_notebook(request, read(subject.notebook), watcher)
    except StartError as error:
        reason = str(error).partition("\n")[0]
        return Seen(seconds=time.monotonic() - begun, died=True, reason=reason)
    return seen(result, watcher, warm=subject.warm)


def seen(result: RunResult, watcher: Watcher, *, warm: int) -> Seen:
    """What is to be told of a run that began."""
    code, load, culprit = result.exit_code, watcher.load, result.culprit
    ended = [cell.seconds for cell in result.cells if cell.number == warm and cell.state == "ok"]
    reason = culprit.message or culprit.error if culprit is not None else ""
    return Seen(
        samples=tuple(watcher.samples),
        seconds=result.seconds,
        first=watcher.first,
        warm=ended[0] if ended else None,
        throttled=load.throttled / load.periods if load is not None else 0.0,
        oom_kills=watcher.oom_kills,
        died=code is ExitCode.OUT_OF_MEMORY,
        late=code in LATE,
        stopped=code in STOPPED,
        reason=(reason or code.status) if code else "",
    )


def forget(files: Sequence[Path]) -> None:
    """Have the machine forget what it has read of files: memory that nobody pays for.

    Whoever reads a file first has it counted as its memory (docs/admin.md).
    """
    for path in files:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
