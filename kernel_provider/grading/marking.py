"""One notebook, marked: run in a sandbox, and in another one where the first has died.

Cells go into the sandbox one by one, in their order: a test is not there before its turn.
After a death the rest goes on in a new sandbox, where the cells that had ended by
themselves are run again, in the same order and without being counted, since later cells
build upon their variables.
"""

import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from nbformat import NotebookNode

from kernel_provider.errors import StartError
from kernel_provider.grading.errors import StoppedError
from kernel_provider.grading.judging import LOST, Seen, judge
from kernel_provider.grading.model import LONGEST, CellResult, NotebookResult, Verdict, gravest
from kernel_provider.grading.sheet import Item, Sheet
from kernel_provider.run import book as books
from kernel_provider.run.kernel import Kernel
from kernel_provider.run.model import CellReport, ExitCode
from kernel_provider.run.runner import Ended, Runner, Times
from kernel_provider.run.signals import Wishes
from kernel_provider.run.text import printable
from kernel_provider.warden.cgroup import NO_USAGE, Cgroup, Usage

MOST_OUTPUT: Final = 32 * 2**20
"""Characters of outputs that are kept of a notebook."""
CUT: Final = 'Write less, or raise "output_limit"'
"""What the relay says in a cell whose output it has cut."""
CONTINUE: Final = "continue"
STOP: Final = "stop"
AFTER_DEATH: Final = (CONTINUE, STOP)
"""What becomes of the rest of a notebook whose kernel has died."""

_STOPPED: Final = (ExitCode.INTERRUPTED, ExitCode.TERMINATED)


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


class _Box:
    """One sandbox of a notebook's, and what its control group counts."""

    def __init__(self, kernel: Kernel, runner: Runner) -> None:
        self.kernel = kernel
        self.runner = runner
        self._group: Cgroup | None = None
        self._peak = 0
        self._limit = 0

    def watch(self) -> None:
        """Find its control group, once it serves."""
        self._limit = self.kernel.policy.memory
        try:
            self._group = Cgroup(self.kernel.session.pid)
        except OSError:
            self._group = None  # it has just died, which its next cell will tell

    def usage(self) -> Usage:
        """What was counted until now."""
        found = self._group.usage() if self._group is not None else NO_USAGE
        self._peak = max(self._peak, found.memory_peak)
        return found

    @property
    def peak(self) -> int:
        """The most memory that it had, in bytes, as far as was seen."""
        death = self.kernel.death
        return min(max(self._peak, death.memory_peak if death else 0), self._limit)


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
        self._box: _Box | None = None
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
        before = box.usage()
        ended = await box.runner.run(_report(item), self._times)
        after = box.usage()
        if ended.code in _STOPPED:
            raise StoppedError
        _raise_if_lost(ended)
        cell, told = self._sheet.book.cells[item.index], box.runner.book.cells[item.index]
        cell.outputs = books.merge_streams(told.outputs)
        cell.execution_count = told.execution_count
        seen = Seen(
            ended=ended,
            refused=after.pids_refused - before.pids_refused,
            killed=after.oom_kills - before.oom_kills,
            cut=_is_cut(cell),
            **_limits(box.kernel),
        )
        result = self._judged(item, seen)
        if seen.ended.report.state in {"ok", "error"} and not result.verdict.ends_kernels:
            self._safe.append(item)
        await self._go_on(result.verdict, ended)
        return result

    def _judged(self, item: Item, seen: Seen) -> CellResult:
        report = seen.ended.report
        cell = self._sheet.book.cells[item.index]
        points, wrong = self._points(item, cell)
        verdict, cause = judge(
            seen, is_test=bool(item.grade_id), points=points, max_points=item.max_points
        )
        if wrong:
            verdict, cause = Verdict.ERROR, wrong
        return CellResult(
            index=item.index,
            grade_id=item.grade_id,
            title=item.title,
            verdict=verdict,
            points=points,
            max_points=item.max_points,
            ename=printable(report.error)[:LONGEST],
            evalue=printable(report.message)[:LONGEST],
            cause=cause,
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
        kernel = Kernel(self._rules.kernel, _with_workspace(self._rules.overrides, folder))
        book = copy.deepcopy(self._sheet.book)
        runner = Runner(kernel, book, wishes=self._wishes, tick=lambda: None)
        self._box = _Box(kernel, runner)
        code = await runner.start(
            str(folder),
            self._times,
            allow_errors=True,
            environ=self._rules.environ,
            most_output=MOST_OUTPUT,
        )
        if code in _STOPPED:
            raise StoppedError
        if code is not None:
            self._be_late()
            return
        self._sandboxes += 1
        self._box.watch()
        for item in self._safe:
            ended = await runner.run(_report(item), self._times)
            if ended.code in _STOPPED:
                raise StoppedError
            _raise_if_lost(ended)
            if ended.code is ExitCode.TIMEOUT:
                self._be_late()
                return
            if ended.code is not ExitCode.SUCCESS:
                self._over = f"run again in a new sandbox, {item.title!r} did not end as before."
                return

    async def _end(self) -> None:
        box, self._box = self._box, None
        if box is not None:
            box.usage()
            self._peak = max(self._peak, box.peak)
            await box.kernel.end()

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
        return CellResult(
            index=item.index,
            grade_id=item.grade_id,
            title=item.title,
            verdict=verdict,
            points=points,
            max_points=item.max_points,
            cause=cause,
        )

    def _result(self) -> NotebookResult:
        missing = tuple(
            CellResult(
                index=-1,
                grade_id=name,
                title=name,
                verdict=Verdict.NOT_RUN,
                max_points=points,
                cause="the submission lacks this cell.",
            )
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


def _with_workspace(overrides: Mapping[str, Any], folder: Path) -> Mapping[str, Any]:
    """Settings that go with a folder: a copy of it, where something is in it."""
    return {**overrides, "workspace": "copy"} if any(folder.iterdir()) else overrides


def _report(item: Item) -> CellReport:
    return CellReport(number=item.index + 1, index=item.index, title=item.title, state="not_run")


def _raise_if_lost(ended: Ended) -> None:
    """Raise StartError where the sandbox was lost, and not by the code that ran in it."""
    if ended.death is not None and ended.death.name in LOST:
        raise StartError(reason=f"it was lost again: {ended.death.reason}", last_words="")


def _is_cut(cell: NotebookNode) -> bool:
    """Whether the relay has cut its output and interrupted it."""
    return any(
        output["output_type"] == "stream" and CUT in output["text"] for output in cell.outputs
    )


def _limits(kernel: Kernel) -> dict[str, str]:
    shown = kernel.limits
    return {"pids": shown["pids"], "memory": shown["memory"], "output": shown["output_limit"]}
