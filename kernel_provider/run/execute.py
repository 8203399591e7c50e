"""One run, from the request to the saved notebook.

Whatever ends a run, the notebook is saved before the signals have their usual effect
again.
"""

import asyncio
import time
from contextlib import suppress
from typing import Any, Final

from nbformat import NotebookNode

from kernel_provider.run import book as books
from kernel_provider.run import files
from kernel_provider.run.kernel import Kernel
from kernel_provider.run.model import (
    CellReport,
    Ending,
    ExitCode,
    OutputError,
    Progress,
    RunRequest,
    RunResult,
)
from kernel_provider.run.parameters import inject
from kernel_provider.run.runner import Runner, Times
from kernel_provider.run.signals import Wishes, listening
from kernel_provider.run.text import title

SAVE_EVERY: Final = 10.0
"""Seconds between two savings on the way: what is left if this process is killed."""


def run_notebook(request: RunRequest, text: str, progress: Progress) -> RunResult:
    """Run a notebook and save it; from the main thread, for the signals' sake.

    ``text`` is the notebook's, from ``files.prepare``.

    Raises:
        SandboxError: it could not begin, and nothing was written; or OutputError.
    """
    book = books.parse(request.notebook, text)
    inject(book, request.parameters)
    return asyncio.run(_Run(request, book, progress).go())


class _Run:
    """The state of one run."""

    def __init__(self, request: RunRequest, book: NotebookNode, progress: Progress) -> None:
        self.request = request
        self.book = book
        self.progress = progress
        self.kernel = Kernel(request.kernel, request.overrides)
        self.wishes = Wishes()
        self.runner = Runner(self.kernel, book, wishes=self.wishes, tick=progress.tick)
        self.begun = self.saved = time.monotonic()
        self.times = Times(
            cell=request.cell_timeout,
            total=request.timeout,
            deadline=self.begun + (request.timeout or float("inf")),
        )
        self.code = ExitCode.SUCCESS
        self.death: Ending | None = None
        self.limits: dict[str, Any] = {}
        self.cells = [
            CellReport(number=number, index=index, title=title(cell.source), state="not_run")
            for number, (index, cell) in enumerate(books.runnable(book), 1)
        ]

    async def go(self) -> RunResult:
        """All of it."""
        with listening(self.wishes):
            try:
                await self._run_all()
            except BaseException:
                if self.limits:  # it had begun: keep what there is
                    self._save(books.dump(self.book))
                raise
            finally:
                await self.kernel.end()
            result = self._result()
            self._save(result.document)
            if self.request.html is not None:
                books.write_html(self.request.html, self.book)
            return result

    async def _run_all(self) -> None:
        self.progress.starting(self.kernel.name)
        folder = str(self.request.notebook.resolve().parent)
        code = await self.runner.start(folder, self.times, allow_errors=self.request.allow_errors)
        if code is not None:
            self.code = code
            return
        self.limits = self.kernel.limits
        pid = self.kernel.session.pid
        self.progress.started(time.monotonic() - self.begun, self.limits, pid)
        try:
            await self._run_cells()
        finally:
            self.runner.finish()

    async def _run_cells(self) -> None:
        for place, report in enumerate(self.cells):
            self.progress.cell_started(report, len(self.cells))
            ended = await self.runner.run(report, self.times)
            self.cells[place] = ended.report
            self.code, self.death = ended.code, ended.death
            outputs = self.book.cells[report.index].outputs
            self.progress.cell_ended(ended.report, len(self.cells), outputs)
            if self.code:
                return
            if time.monotonic() > self.saved + SAVE_EVERY:
                with suppress(OutputError):  # the last time counts
                    self._save(books.dump(self.book))

    def _result(self) -> RunResult:
        for _, cell in books.runnable(self.book):
            cell.outputs = books.merge_streams(cell.outputs)
        return RunResult(
            exit_code=self.code,
            cells=tuple(self.cells),
            seconds=round(time.monotonic() - self.begun, 3),
            death=self.death,
            limits=self.limits,
            document=books.dump(self.book),
            warnings=self.kernel.troubles,
        )

    def _save(self, document: str) -> None:
        self.saved = time.monotonic()
        if self.request.output is not None:
            files.write(self.request.output, document)
