"""One notebook, marked: run in a sandbox, and in another one where the first has died.

Cells go into the sandbox one by one, in their order: a test is not there before its turn.
After a death the rest goes on in a new sandbox, where the cells that had ended by
themselves are run again, in the same order and without being counted, since later cells
build upon their variables.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from nbformat import NotebookNode

from kernel_provider.grading.box import Box
from kernel_provider.grading.judging import Seen, judge
from kernel_provider.grading.model import LONGEST, CellResult, NotebookResult, Verdict, gravest
from kernel_provider.grading.sheet import Item, Sheet
from kernel_provider.run import book as books
from kernel_provider.run.model import ExitCode
from kernel_provider.run.runner import Ended, Times
from kernel_provider.run.signals import Wishes
from kernel_provider.run.text import printable

CONTINUE: Final = "continue"
STOP: Final = "stop"
AFTER_DEATH: Final = (CONTINUE, STOP)
"""What becomes of the rest of a notebook whose kernel has died."""


@dataclass(frozen=True, kw_only=True)
class Rules:
    """How notebooks are run. Times are seconds; ``overrides`` are settings of the kernel's."""

    kernel: str
    overrides: Mapping[str, Any]
    cell_timeout: float
    total_timeout: float
    after_death: str = CONTINUE
    environ: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Marked:
    """A notebook's result, and the executed notebook."""

    result: NotebookResult
    book: NotebookNode


class Marker:
    """Marks one notebook, from its first cell to its last. Used once."""

    def __init__(
        self,
        sheet: Sheet,
        rules: Rules,
        *,
        wishes: Wishes,
        tell: Callable[[Item, Sequence[CellResult]], None],
    ) -> None:
        """``tell`` hears of each cell before it begins, with the results until then."""
        self._sheet = sheet
        self._rules = rules
        self._wishes = wishes
        self._tell = tell
        self._begun = time.monotonic()
        self._times = Times(
            cell=rules.cell_timeout,
            total=rules.total_timeout,
            deadline=self._begun + rules.total_timeout,
            total_option="--total-timeout",
        )
        self._results: list[CellResult] = []
        self._safe: list[Item] = []
        self._box: Box | None = None
        self._sandboxes = 0
        self._peak = 0
        self._over = ""
        self._ended_by = Verdict.NOT_RUN

    async def mark(self, folder: Path) -> Marked:
        """All of it; the sandbox gets a copy of what lies in ``folder``, if anything does.

        Raises StoppedError; and SandboxError where there was no sandbox, or one was lost
        through no fault of the code.
        """
        try:
            for item in self._sheet.items:
                self._results.append(await self._item(item, folder))
        finally:
            await self._end()
        return Marked(result=self._result(), book=self._sheet.book)

    async def _item(self, item: Item, folder: Path) -> CellResult:
        self._tell(item, self._results)
        if not item.runs:
            return self._marked(item, Verdict.PASSED)
        if not self._over and self._box is None:
            await self._start(folder)
        if self._over:
            return self._not_run(item)
        return await self._run(item)

    async def _run(self, item: Item) -> CellResult:
        box = self._box
        assert box is not None  # noqa: S101  it was started
        seen, told = await box.run(item, self._times)
        cell = self._sheet.book.cells[item.index]
        cell.outputs, cell.execution_count = told.outputs, told.execution_count
        result = self._judged(item, seen)
        if seen.ended.report.state in {"ok", "error"} and not result.verdict.ends_kernels:
            self._safe.append(item)
        await self._go_on(result.verdict, seen.ended)
        return result

    def _judged(self, item: Item, seen: Seen) -> CellResult:
        report = seen.ended.report
        points, wrong = self._points(item, self._sheet.book.cells[item.index])
        verdict, cause = judge(
            seen, is_test=bool(item.grade_id), points=points, max_points=item.max_points
        )
        if wrong:
            verdict, cause = Verdict.ERROR, wrong
        return replace(
            _result(item, verdict, points=points, cause=cause),
            ename=printable(report.error)[:LONGEST],
            evalue=printable(report.message)[:LONGEST],
            seconds=report.seconds,
        )

    def _points(self, item: Item, cell: NotebookNode) -> tuple[float | None, str]:
        """The points for a cell as it is now, and what was wrong with what it asked for."""
        if not item.grade_id:
            return 0.0, ""
        try:
            points = self._sheet.mark(cell, item.max_points)
        except (ValueError, KeyError, TypeError) as error:
            points, wrong = 0.0, " ".join(str(error).split())[:LONGEST]
        else:
            wrong = ""
        if points is not None and not (math.isfinite(points) and 0 <= points <= item.max_points):
            points, wrong = 0.0, f"{points:g} points are not possible for this cell."
        if wrong:
            cell.outputs = books.with_error(cell.outputs, "ImpossiblePoints", wrong)
        return points, wrong

    async def _go_on(self, verdict: Verdict, ended: Ended) -> None:
        """See to what the next cell runs in, if there may be one."""
        if verdict is Verdict.TOTAL_TIMEOUT:
            self._over = "the time for the whole notebook was over before this cell."
        spoiled = not ended.idle or verdict is Verdict.TOO_MANY_PROCESSES
        if not (spoiled or self._over):
            return
        await self._end()
        if self._rules.after_death == STOP and not self._over:
            self._over = "the kernel had died before this cell."

    async def _start(self, folder: Path) -> None:
        """Start a sandbox, and bring it to where the last one was."""
        rules = self._rules
        settings = _with_workspace(rules.overrides, folder)
        box = Box(rules.kernel, settings, self._sheet.book, wishes=self._wishes)
        self._box = box
        if not await box.start(folder, self._times, rules.environ):
            self._be_late()
            return
        self._sandboxes += 1
        for item in self._safe:
            seen, _ = await box.run(item, self._times)
            if seen.ended.code is ExitCode.TIMEOUT:
                self._be_late()
                return
            if seen.ended.code is not ExitCode.SUCCESS:
                self._over = f"run again in a new sandbox, {item.title!r} did not end as before."
                return

    async def _end(self) -> None:
        box, self._box = self._box, None
        if box is not None:
            await box.end()
            self._peak = max(self._peak, box.peak)

    def _be_late(self) -> None:
        """No cell runs any more; the next one is told as the one that time ended."""
        self._over = "the time for the whole notebook was over before this cell."
        self._ended_by = Verdict.TOTAL_TIMEOUT

    def _not_run(self, item: Item) -> CellResult:
        cell = self._sheet.book.cells[item.index]
        cell.outputs = books.with_error([], "NotRun", self._over)
        verdict, self._ended_by = self._ended_by, Verdict.NOT_RUN
        return self._marked(item, verdict, cause=self._over)

    def _marked(self, item: Item, verdict: Verdict, *, cause: str = "") -> CellResult:
        """A cell that did not run, or has nothing to run."""
        points, wrong = self._points(item, self._sheet.book.cells[item.index])
        if item.grade_id and points is None and not cause:
            verdict = Verdict.BY_HAND
        elif item.grade_id and points is not None and points < item.max_points and not cause:
            verdict, cause = Verdict.FAILED, wrong or "nothing was filled in."
        return _result(item, verdict, points=points, cause=cause)

    def _result(self) -> NotebookResult:
        missing = tuple(
            absent(name, points, "the submission lacks this cell.")
            for name, points in self._sheet.missing.items()
        )
        whole = summed(self._sheet.name, (*self._results, *missing))
        return replace(
            whole,
            seconds=round(time.monotonic() - self._begun, 3),
            sandboxes=self._sandboxes,
            memory_peak=self._peak,
            notes=self._sheet.notes,
        )


def summed(name: str, cells: Sequence[CellResult]) -> NotebookResult:
    """A notebook's verdict, cause and points, from its cells'."""
    telling = [cell for cell in cells if cell.is_test or cell.verdict.ends_kernels]
    verdict = gravest(cell.verdict for cell in telling)
    culprit = next((cell for cell in telling if cell.verdict is verdict), None)
    return NotebookResult(
        name=name,
        verdict=verdict,
        cells=tuple(cells),
        score=sum(cell.points or 0.0 for cell in cells),
        max_score=sum(cell.max_points for cell in cells),
        cause=_cause(culprit) if culprit is not None and verdict is not Verdict.PASSED else "",
    )


def _cause(cell: CellResult) -> str:
    text = cell.cause or f"{cell.ename}: {cell.evalue}".strip(": ").partition("\n")[0]
    return f"{cell.title}: {text}" if text else ""


def absent(grade_id: str, points: float, cause: str) -> CellResult:
    """A test that is in no notebook which was handed in."""
    return CellResult(
        index=-1,
        grade_id=grade_id,
        title=grade_id,
        verdict=Verdict.NOT_RUN,
        max_points=points,
        cause=cause,
    )


def _result(item: Item, verdict: Verdict, *, points: float | None, cause: str) -> CellResult:
    return CellResult(
        index=item.index,
        grade_id=item.grade_id,
        title=item.title,
        verdict=verdict,
        points=points,
        max_points=item.max_points,
        cause=cause,
    )


def _with_workspace(overrides: Mapping[str, Any], folder: Path) -> Mapping[str, Any]:
    """Settings that go with a folder: a copy of it, where something is in it."""
    return {**overrides, "workspace": "copy"} if any(folder.iterdir()) else overrides
