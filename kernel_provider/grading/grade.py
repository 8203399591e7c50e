"""A run of grading: every submission on its way, so many at a time.

Each goes through the same steps, and its journal knows the last one that is over: looked
at, its notebooks marked in sandboxes, its grade written down, its gradebook written. What
a signal or an error ends is not graded, and the next run with ``resume`` goes on there.
"""

import asyncio
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, TypeVar

from kernel_provider.errors import SandboxError, WorkspaceError
from kernel_provider.grading.errors import (
    GradebookError,
    GradesFolderError,
    StoppedError,
    SubmissionError,
)
from kernel_provider.grading.journal import Journal, Past
from kernel_provider.grading.marking import Marker, Rules
from kernel_provider.grading.model import (
    CellResult,
    Conditions,
    NotebookResult,
    Progress,
    State,
    SubmissionRecord,
    Verdict,
    Watcher,
    gravest,
)
from kernel_provider.grading.room import Room
from kernel_provider.grading.sheet import Item, Sheet, Submission, submission_digest
from kernel_provider.grading.source import Source
from kernel_provider.grading.way import Way, progress_of
from kernel_provider.run import book as books
from kernel_provider.run import files
from kernel_provider.run.model import ExitCode, OutputError
from kernel_provider.run.signals import Wishes, listening
from kernel_provider.run.text import printable

TICK: Final = 0.05
"""Seconds between two signs that time passes."""
FILES: Final = "files.part"
"""Where a submission's files lie while its notebooks run."""

_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class GradeRequest:
    """What to grade, and how: ``grades`` is the folder for journals and grades.

    ``memory`` (bytes) is what one sandbox may take. With ``resume``, what an earlier run
    has graded stays.
    """

    submissions: tuple[Submission, ...]
    rules: Rules
    conditions: Conditions
    grades: Path
    jobs: int
    memory: int
    resume: bool = False


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a run: ``records`` by the students' names, of all that it came to.

    ``stopped`` is the code of the signal that ended it early; ``unsaved`` are grades that
    a gradebook did not take.
    """

    records: tuple[SubmissionRecord, ...]
    stopped: ExitCode | None = None
    unsaved: tuple[GradebookError, ...] = ()


def grade(request: GradeRequest, source: Source, watcher: Watcher) -> Outcome:
    """Grade; from the main thread, for the signals' sake. Raises GradesFolderError."""
    return asyncio.run(_Run(request, source, watcher).go())


class _Run:
    """The state of one run."""

    def __init__(self, request: GradeRequest, source: Source, watcher: Watcher) -> None:
        self.request = request
        self.source = source
        self.watcher = watcher
        self.wishes = Wishes()
        self.room = Room(stopped=lambda: self.wishes.stop is not None)
        self.slots = asyncio.Semaphore(request.jobs)
        self.records: dict[str, SubmissionRecord] = {}
        self.unsaved: list[GradebookError] = []
        self.librarian = ThreadPoolExecutor(1, "executor-ml-grade")
        """The one thread that reads courses and writes gradebooks."""

    async def go(self) -> Outcome:
        """All of it."""
        submissions = self.request.submissions
        names = tuple(one.student for one in submissions)
        ticker = asyncio.create_task(self._tick())
        self.watcher.opened(names, self.request.jobs)
        try:
            with listening(self.wishes):
                await self._all(submissions)
        finally:
            ticker.cancel()
            self.librarian.shutdown()
            self.watcher.closed()
        found = tuple(self.records[name] for name in sorted(self.records))
        return Outcome(records=found, stopped=self.wishes.stop, unsaved=tuple(self.unsaved))

    async def _all(self, submissions: Sequence[Submission]) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for submission in submissions:
                    group.create_task(self._one(submission))
        except* SandboxError as errors:
            raise errors.exceptions[0] from None

    async def _tick(self) -> None:
        while True:
            self.watcher.tick()
            await asyncio.sleep(TICK)

    async def _one(self, submission: Submission) -> None:
        student = submission.student
        self.watcher.told(Progress(student=student, state=State.WAITING))
        try:
            async with self.slots:
                self._check_stopped()
                way = Way(
                    submission=submission,
                    source=self.source,
                    conditions=self.request.conditions,
                    journal=Journal(self.request.grades / student),
                )
                await self._go(way)
        except StoppedError:
            self.watcher.told(Progress(student=student, state=State.STOPPED))

    def _check_stopped(self) -> None:
        if self.wishes.stop is not None:
            raise StoppedError

    async def _go(self, way: Way) -> None:
        """From its files to its gradebook."""
        past = await self._past(way)
        if past.record is not None:
            await self._keep(way, past)
            return
        try:
            await self._mark_all(way, past)
        except (GradesFolderError, OutputError, StoppedError):
            raise
        except SubmissionError as error:
            record = way.record(Verdict.BAD_SUBMISSION, cause=_words(error))
        except WorkspaceError as error:
            cause = f"its files cannot be copied into the sandbox: {error.data['reason']}"
            record = way.record(Verdict.BAD_SUBMISSION, cause=cause)
        except SandboxError as error:
            record = way.record(Verdict.COULD_NOT_START, cause=_words(error))
        except Exception as error:  # noqa: BLE001  what one hands in must not end the others' run
            cause = f"{type(error).__name__}: {error}".partition("\n")[0]
            record = way.record(Verdict.COULD_NOT_START, cause=printable(cause))
        else:
            record = way.record(gravest(result.verdict for result in way.results))
        finally:
            shutil.rmtree(way.journal.folder / FILES, ignore_errors=True)
        if record.verdict is not Verdict.COULD_NOT_START:
            way.journal.add_record(record)
        await self._save(way, record)
        self._done(record, State.DONE)

    async def _past(self, way: Way) -> Past:
        """What is done already of just this submission, where that counts."""
        with suppress(SubmissionError):  # it is told when its notebooks are read
            way.sha256 = await asyncio.to_thread(submission_digest, way.submission)
        key = f"{way.sha256} {self.request.conditions.tests_sha256}"
        past = way.journal.read() if self.request.resume else Past()
        if past.key != key:
            way.journal.begin(key)
            return Past()
        return past

    async def _keep(self, way: Way, past: Past) -> None:
        record = past.record
        assert record is not None  # noqa: S101  whoever calls this has seen it
        if not past.saved:
            await self._save(way, record)
        self._done(record, State.KEPT)

    async def _mark_all(self, way: Way, past: Past) -> None:
        """Its notebooks, one after the other; those that are done are not run again."""
        way.results += await self._ask(lambda: self.source.lacking(way.submission))
        done = {result.name: result for result in past.notebooks}
        way.results += [done[path.stem] for path in way.submission.notebooks if path.stem in done]
        todo = [path for path in way.submission.notebooks if path.stem not in done]
        sheets = [(path, await self._sheet(way, path)) for path in todo]
        way.total = sum(len(sheet.items) for _, sheet in sheets if isinstance(sheet, Sheet))
        way.max_score = sum(map(self.source.max_points, todo))
        way.max_score += sum(result.max_score for result in way.results)
        for path, sheet in sheets:
            if isinstance(sheet, Sheet):
                result = await self._mark(way, path, sheet)
            else:
                result = NotebookResult(
                    name=path.stem,
                    verdict=Verdict.BAD_SUBMISSION,
                    max_score=self.source.max_points(path),
                    cause=_words(sheet),
                )
            way.journal.add_notebook(result)
            way.results.append(result)

    async def _sheet(self, way: Way, path: Path) -> Sheet | SubmissionError:
        try:
            return await self._ask(lambda: self.source.sheet(way.submission, path))
        except SubmissionError as error:
            return error

    async def _mark(self, way: Way, path: Path, sheet: Sheet) -> NotebookResult:
        folder = way.journal.folder / FILES
        await self._ask(lambda: _laid_out(self.source, way.submission, folder))
        async with self.room.held(self.request.memory):
            self.watcher.told(way.progress(State.STARTING, notebook=path.stem))

            def tell(item: Item, cells: Sequence[CellResult]) -> None:
                told = way.progress(State.RUNNING, notebook=path.stem, item=item, cells=cells)
                self.watcher.told(told)

            marker = Marker(sheet, self.request.rules, wishes=self.wishes, tell=tell)
            marked = await marker.mark(folder)
        executed = way.journal.folder / f"{path.stem}.ipynb"
        await asyncio.to_thread(files.write, executed, books.dump(marked.book))
        return replace(marked.result, executed=str(executed.relative_to(self.request.grades)))

    async def _save(self, way: Way, record: SubmissionRecord) -> None:
        """Have the gradebook written, of what is graded; the others go on without."""
        if not record.verdict.is_graded:
            return
        self.watcher.told(way.progress(State.SAVING))
        try:
            await self._ask(lambda: self.source.save(way.submission, record, self.request.grades))
        except GradebookError as error:
            self.unsaved.append(error)
        else:
            way.journal.add_saved()

    async def _ask(self, call: Callable[[], _T]) -> _T:
        """Have the librarian do it."""
        return await asyncio.get_running_loop().run_in_executor(self.librarian, call)

    def _done(self, record: SubmissionRecord, state: State) -> None:
        self.records[record.student] = record
        self.watcher.told(progress_of(record, state))


def _laid_out(source: Source, submission: Submission, folder: Path) -> None:
    """Put a submission's files into a folder of their own. Raises SubmissionError."""
    shutil.rmtree(folder, ignore_errors=True)
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        reason = error.strerror or "unusable"
        raise GradesFolderError(path=str(folder.parent), reason=reason) from error
    try:
        source.files(submission, folder)
    except OSError as error:
        reason = f"its files cannot be copied ({error.strerror or 'unreadable'})"
        raise SubmissionError(what=submission.path.name, reason=reason) from error


def _words(error: SandboxError) -> str:
    return str(error).partition("\nFix: ")[0]
