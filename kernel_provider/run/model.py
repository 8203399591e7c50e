"""What a run is asked, what it tells while it runs, and what comes out of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any, Final, Protocol

from kernel_provider.errors import SandboxError


class ExitCode(IntEnum):
    """How a run ended, as scripts see it.

    Where a run could not begin, its code is that of the error that says why, 65 to 78;
    ``docs/run.md`` has the list.
    """

    SUCCESS = 0
    CELL_ERROR = 10
    CELL_TIMEOUT = 11
    TIMEOUT = 12
    OUT_OF_MEMORY = 13
    KERNEL_DIED = 14
    BAD_INPUT = 66
    NOT_SAVED = 74
    PROTOCOL_BROKEN = 76
    INTERRUPTED = 130
    TERMINATED = 143

    @property
    def status(self) -> str:
        """The same as a word, for JSON."""
        return self.name.lower()


class InputError(SandboxError):
    """What was asked for cannot be run; no kernel was started."""

    exit_code = int(ExitCode.BAD_INPUT)
    summary = "{what}: {reason}"
    fix = "{remedy}"


class KernelProtocolError(SandboxError):
    """A kernel sent what is no message of Jupyter's; its run is over."""

    exit_code = int(ExitCode.PROTOCOL_BROKEN)
    summary = "the kernel broke the message protocol: {reason}"
    fix = "look for code that sends messages itself, in the notebook and in what it imports"


class OutputError(SandboxError):
    """The executed notebook could not be written."""

    exit_code = int(ExitCode.NOT_SAVED)
    summary = "cannot write {path}: {reason}"
    fix = "give a file in a folder that you can write to, on a disk with room, with -o FILE"


class OutsideKernelError(SandboxError):
    """A kernelspec whose kernels run on this machine itself."""

    exit_code = 78
    summary = "the kernel {kernel!r} runs code on this machine, outside of any sandbox"
    fix = "use --kernel executor-ml, or another kernel of executor-ml's"


@dataclass(frozen=True, kw_only=True)
class RunRequest:
    """One run. Times are seconds, None for no limit.

    ``output`` is None for a notebook that the caller takes from the result, and the
    notebook itself only where that is asked for by ``in_place``.
    ``overrides`` are settings as in a kernelspec's config, and go before them; of
    ``mounts``, each target does, and ``models`` are added. ``folder`` is the notebook's own.
    """

    notebook: Path
    output: Path | None
    html: Path | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    kernel: str = "executor-ml"
    overrides: Mapping[str, Any] = field(default_factory=dict)
    cell_timeout: float | None = None
    timeout: float | None = None
    allow_errors: bool = False
    in_place: bool = False


@dataclass(frozen=True, kw_only=True)
class CellReport:
    """One code cell: ``number`` counts code cells that have something to run, from 1.

    ``state`` is one of ``STATES``; ``error`` names the exception, or what ended it.
    """

    number: int
    index: int
    title: str
    state: str
    seconds: float = 0.0
    error: str = ""
    message: str = ""


STATES: Final = ("ok", "error", "timed_out", "died", "interrupted", "not_run")


@dataclass(frozen=True, kw_only=True)
class Ending:
    """What ended a cell that did not end by itself: a death, a limit of time, a person."""

    name: str
    reason: str
    remedy: str


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """A run that began: what became of each cell, and where the notebook is.

    ``limits`` are those in force; empty where the kernel never started. ``document``
    is the executed notebook's JSON text, ``warnings`` what the engine refused meanwhile.
    """

    exit_code: ExitCode
    cells: tuple[CellReport, ...]
    seconds: float
    death: Ending | None
    limits: Mapping[str, Any]
    document: str
    warnings: tuple[str, ...] = ()

    @property
    def culprit(self) -> CellReport | None:
        """The cell that ended the run."""
        ended = [c for c in self.cells if c.state not in {"ok", "not_run"}]
        return ended[-1] if ended and self.exit_code else None


class Progress(Protocol):
    """Hears of a run while it runs. Called often: must not block, must not raise."""

    def opened(self, notebook: Path, kernel: str) -> None:
        """A run begins; nothing is started yet."""

    def starting(self, kernel: str) -> None:
        """A sandbox is being started."""

    def started(self, seconds: float, limits: Mapping[str, Any], pid: int) -> None:
        """It serves; ``pid`` is its first process."""

    def cell_started(self, cell: CellReport, total: int) -> None:
        """A cell begins."""

    def tick(self) -> None:
        """Time passes: about 20 times a second."""

    def cell_ended(self, cell: CellReport, total: int, outputs: list[Any]) -> None:
        """A cell has ended, with these outputs of nbformat's."""
