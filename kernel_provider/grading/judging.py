"""The verdict on a cell: decided from what was seen of it, and put into words."""

from dataclasses import dataclass
from typing import Final

from kernel_provider.grading.model import Verdict
from kernel_provider.run.model import ExitCode
from kernel_provider.run.runner import Ended

OF_DEATHS: Final = {
    "MemoryLimitExceeded": Verdict.OUT_OF_MEMORY,
    "OutputLimitExceeded": Verdict.OUTPUT_LIMIT,
    "CellTimeout": Verdict.CELL_TIMEOUT,
}
"""Deaths that have a verdict of their own."""

AT_ONCE: Final = "a message of more than"
"""What the relay says of a kernel that shows too much in one piece, which breaks its rules."""

LOST: Final = ("EngineGone", "WardenFailed", "WardenLost", "SandboxLost")
"""Deaths that are not the code's doing: nothing is to be graded by them."""

OF_TIMES: Final = {
    ExitCode.CELL_TIMEOUT: Verdict.CELL_TIMEOUT,
    ExitCode.TIMEOUT: Verdict.TOTAL_TIMEOUT,
}


@dataclass(frozen=True, kw_only=True)
class Seen:
    """How a cell ended, and what the sandbox's limits have counted meanwhile.

    ``refused`` are processes and threads that there was no room for, ``killed`` those that
    were killed for memory, ``cut`` whether it was interrupted for too much output. The
    limits are as people write them.
    """

    ended: Ended
    refused: int = 0
    killed: int = 0
    cut: bool = False
    pids: str = ""
    memory: str = ""
    output: str = ""


def judge(
    seen: Seen, *, is_test: bool, points: float | None, max_points: float
) -> tuple[Verdict, str]:
    """The verdict, and its cause in words: empty where the exception tells all."""
    report = seen.ended.report
    if report.state == "ok":
        return _of_points(points, max_points) if is_test else (Verdict.PASSED, "")
    death = seen.ended.death
    if seen.refused:
        return Verdict.TOO_MANY_PROCESSES, (
            f"the sandbox has room for {seen.pids} processes and threads, and the code wanted more."
        )
    if death is not None and AT_ONCE in death.reason:
        return Verdict.OUTPUT_LIMIT, report.message
    if death is not None:
        return OF_DEATHS.get(death.name, Verdict.KERNEL_DIED), report.message
    if seen.ended.code in OF_TIMES:
        return OF_TIMES[seen.ended.code], report.message
    return _of_error(seen, is_test=is_test)


def _of_points(points: float | None, max_points: float) -> tuple[Verdict, str]:
    if points is None:
        return Verdict.BY_HAND, ""
    if points < max_points:
        return Verdict.FAILED, f"{points:g} of {max_points:g} points."
    return Verdict.PASSED, ""


def _of_error(seen: Seen, *, is_test: bool) -> tuple[Verdict, str]:
    report = seen.ended.report
    if seen.killed:
        return Verdict.OUT_OF_MEMORY, (
            f"a process was killed, since the sandbox used more than its {seen.memory} of memory."
        )
    if report.error == "MemoryError":
        return Verdict.OUT_OF_MEMORY, (
            f"the code asked for more than the sandbox's {seen.memory} of memory at once."
        )
    if seen.cut:
        return Verdict.OUTPUT_LIMIT, (
            f"the cell put out more than {seen.output} and was interrupted; the start and "
            "the end are kept."
        )
    if is_test and report.error == "AssertionError":
        return Verdict.FAILED, ""
    return Verdict.ERROR, ""
