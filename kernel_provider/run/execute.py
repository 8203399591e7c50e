"""One run, from the request to the saved notebook.

The runner looks about 20 times a second: whether the cell has ended, the kernel has
died, time is up, or somebody wants it to stop. Whatever ends a run, the notebook is
saved before the signals have their usual effect again.
"""

import asyncio
import time
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Final

from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from nbformat import NotebookNode

from kernel_provider.errors import SandboxError
from kernel_provider.run import book as books
from kernel_provider.run import files
from kernel_provider.run.client import BoundedClient
from kernel_provider.run.kernel import Kernel
from kernel_provider.run.model import (
    CellReport,
    Ending,
    ExitCode,
    KernelProtocolError,
    OutputError,
    Progress,
    RunRequest,
    RunResult,
)
from kernel_provider.run.parameters import inject
from kernel_provider.run.signals import Wishes, listening
from kernel_provider.run.text import duration, title

LOOK: Final = 0.05
"""Seconds between two looks."""

LAST_WORDS: Final = 1.0
"""Seconds that a dead kernel's last words have to arrive; they are sent before its end."""

GRACE: Final = 5.0
"""Seconds between the interrupt of a cell that took too long and the end of its kernel."""

GRACE_BY_HAND: Final = 2.0
"""The same where a person waits; a second Ctrl-C ends it at once."""

SAVE_EVERY: Final = 10.0
"""Seconds between two savings on the way: what is left if this process is killed."""

OUTPUT_WITHIN: Final = 60
"""Seconds that outputs may come after the reply that the cell has ended."""

LONGEST: Final = 10_000
"""Characters of an exception's message in a report; the notebook has it whole."""

OF_DEATHS: Final = {
    "MemoryLimitExceeded": ExitCode.OUT_OF_MEMORY,
    "ProtocolViolation": ExitCode.PROTOCOL_BROKEN,
}
"""Deaths that have a code of their own."""


def run_notebook(request: RunRequest, text: str, progress: Progress) -> RunResult:
    """Run a notebook and save it; from the main thread, for the signals' sake.

    ``text`` is the notebook's, from ``files.prepare``.

    Raises:
        SandboxError: it could not begin, and nothing was written; or OutputError.
    """
    book = books.parse(request.notebook, text)
    inject(book, request.parameters)
    return asyncio.run(_Run(request, book, progress).go())


@dataclass(kw_only=True)
class _Cell:
    """A cell that runs: until when, and what it raised in nbclient's eyes."""

    node: NotebookNode
    report: CellReport
    begun: float = field(default_factory=time.monotonic)
    deadline: float = float("inf")
    error: tuple[str, str] | None = None


class _Run:
    """The state of one run."""

    def __init__(self, request: RunRequest, book: NotebookNode, progress: Progress) -> None:
        self.request = request
        self.book = book
        self.progress = progress
        self.kernel = Kernel(request.kernel, request.overrides)
        self.wishes = Wishes()
        self.begun = self.saved = time.monotonic()
        self.deadline = self.begun + (request.timeout or float("inf"))
        self.code = ExitCode.SUCCESS
        self.death: Ending | None = None
        self.limits: dict[str, Any] = {}
        self.raised: tuple[str, str] | None = None
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
        nb = await self._start()
        if nb is None:
            return
        try:
            await self._run_cells(nb)
        finally:
            nb.set_widgets_metadata()

    async def _run_cells(self, nb: NotebookClient) -> None:
        for place, report in enumerate(self.cells):
            cell = _Cell(node=self.book.cells[report.index], report=report)
            cell.deadline = cell.begun + (self.request.cell_timeout or float("inf"))
            self.progress.cell_started(report, len(self.cells))
            await self._run_cell(nb, cell)
            self.cells[place] = cell.report
            self.progress.cell_ended(cell.report, len(self.cells), cell.node.outputs)
            if self.code:
                return
            if time.monotonic() > self.saved + SAVE_EVERY:
                with suppress(OutputError):  # the last time counts
                    self._save(books.dump(self.book))

    async def _start(self) -> NotebookClient | None:
        """A client of a kernel that serves; None where the run ended before."""
        self.progress.starting(self.kernel.name)
        folder = str(self.request.notebook.resolve().parent)
        task = asyncio.create_task(self._connected(folder))
        code = await self._until(task, starting=True)
        if code is not None:
            self.code = code
            task.cancel()
            with suppress(asyncio.CancelledError, SandboxError):
                await task
            return None
        nb = task.result()
        self.limits = self.kernel.limits
        pid = self.kernel.session.pid
        self.progress.started(time.monotonic() - self.begun, self.limits, pid)
        return nb

    async def _connected(self, folder: str) -> NotebookClient:
        client = await self.kernel.start(folder)
        self.book.metadata.update(self.kernel.metadata)
        nb = BoundedClient(
            self.book,
            km=self.kernel.manager,
            kernel_name=self.kernel.name,
            allow_errors=self.request.allow_errors,
            iopub_timeout=OUTPUT_WITHIN,
            on_cell_error=self._on_cell_error,
            skip_cells_with_tag=books.SKIP_TAG,
            log=self.kernel.log,
        )
        nb.kc = client
        nb.report = client.report
        nb.reset_execution_trackers()
        return nb

    def _on_cell_error(self, execute_reply: dict[str, Any], **_: Any) -> None:
        content = execute_reply["content"]
        name, text = str(content.get("ename", "")), str(content.get("evalue", ""))
        self.raised = (name[:LONGEST], text[:LONGEST])

    async def _until(
        self, task: asyncio.Task[Any], *, deadline: float = float("inf"), starting: bool = False
    ) -> ExitCode | None:
        """Wait for the task; a code where something else comes first.

        Of a death while ``starting`` the task itself will tell.
        """
        while True:
            done, _ = await asyncio.wait({task}, timeout=LOOK)
            if done:
                return None
            if not starting and self.kernel.death is not None:
                return ExitCode.KERNEL_DIED
            if not starting and self.kernel.offence is not None:
                return ExitCode.PROTOCOL_BROKEN
            if self.wishes.stop is not None:
                return self.wishes.stop
            if time.monotonic() > self.deadline:
                return ExitCode.TIMEOUT
            if time.monotonic() > deadline:
                return ExitCode.CELL_TIMEOUT
            self.progress.tick()

    async def _run_cell(self, nb: NotebookClient, cell: _Cell) -> None:
        """Run it; ``report`` says how it ended, ``code`` whether the run goes on."""
        self.raised = None
        task = asyncio.create_task(
            nb.async_execute_cell(
                cell.node, cell.report.index, execution_count=nb.code_cells_executed + 1
            )
        )
        code = await self._until(task, deadline=cell.deadline)
        if code is None:
            self._judge(task, cell)
        elif code is ExitCode.KERNEL_DIED:
            await self._hear_last_words(task, cell)
        elif code is ExitCode.PROTOCOL_BROKEN:
            self._accuse(cell)
        else:
            await self._stop(task, cell, code)
        quiet = (DeadKernelError, CellExecutionError, KernelProtocolError)
        with suppress(*quiet, asyncio.CancelledError):
            task.cancel()
            await task
        cell.report = replace(cell.report, seconds=round(time.monotonic() - cell.begun, 3))

    def _judge(self, task: asyncio.Task[Any], cell: _Cell) -> None:
        """A cell that ended by itself."""
        error = task.exception()
        if self.kernel.offence is not None:
            self._accuse(cell)
            return
        if error is not None and not isinstance(error, CellExecutionError):
            raise error
        state = "error" if self.raised else "ok"
        name, message = self.raised or ("", "")
        if self.raised and not books.has_error(cell.node.outputs, name):
            cell.node.outputs = books.with_error(cell.node.outputs, name, message)
        cell.report = replace(cell.report, state=state, error=name, message=message)
        if error is not None:
            self.code = ExitCode.CELL_ERROR

    async def _stop(self, task: asyncio.Task[Any], cell: _Cell, code: ExitCode) -> None:
        """Interrupt the cell, give it a moment, and say in it what happened."""
        by_hand = self.wishes.stop is not None
        await self.kernel.interrupt()
        end = time.monotonic() + (GRACE_BY_HAND if by_hand else GRACE)
        while not task.done() and time.monotonic() < end and not self.wishes.at_once:
            await asyncio.wait({task}, timeout=LOOK)
            if self.kernel.death is not None:
                break
            self.progress.tick()
        how = "the cell was interrupted" if task.done() else "its kernel was killed"
        if by_hand:
            by = "Ctrl-C" if code is ExitCode.INTERRUPTED else "SIGTERM"
            why = Ending(
                name="RunInterrupted",
                reason=f"the run was stopped by {by}; {how}.",
                remedy="What there was until then is kept.",
            )
        elif code is ExitCode.CELL_TIMEOUT:
            allowed = duration(self.request.cell_timeout or 0.0)
            why = Ending(
                name="CellTimeout",
                reason=f"the cell ran longer than {allowed}; {how}.",
                remedy="Make it quicker, or raise --cell-timeout.",
            )
        else:
            allowed = duration(self.request.timeout or 0.0)
            why = Ending(
                name="RunTimeout",
                reason=f"the notebook ran longer than {allowed}; {how}.",
                remedy="Make it quicker, or raise --timeout.",
            )
        self._blame(cell, code, "interrupted" if by_hand else "timed_out", why)

    async def _hear_last_words(self, task: asyncio.Task[Any], cell: _Cell) -> None:
        """Keep listening until the warden's words are in the cell; then add none."""
        death = self.kernel.death
        if death is None:
            return
        end = time.monotonic() + LAST_WORDS
        while time.monotonic() < end and not task.done():
            if books.has_error(cell.node.outputs, death.name):
                break
            await asyncio.wait({task}, timeout=LOOK / 5)
        self.death = Ending(name=death.name, reason=death.reason, remedy=death.remedy)
        code = OF_DEATHS.get(death.name, ExitCode.KERNEL_DIED)
        self._blame(cell, code, "died", self.death)

    def _accuse(self, cell: _Cell) -> None:
        """Say in the cell that its kernel broke the protocol: nothing it says is believed."""
        offence = self.kernel.offence
        assert offence is not None  # noqa: S101  whoever calls this has seen it
        reason, _, remedy = str(offence).partition("\nFix: ")
        self.death = Ending(name="ProtocolViolation", reason=f"{reason}.", remedy=remedy)
        self._blame(cell, ExitCode.PROTOCOL_BROKEN, "died", self.death)

    def _blame(self, cell: _Cell, code: ExitCode, state: str, why: Ending) -> None:
        """Say in the cell what ended it, and what to do; the report has the reason."""
        self.code = code
        cell.report = replace(cell.report, state=state, error=why.name, message=why.reason)
        text = f"{why.reason} {why.remedy}"
        cell.node.outputs = books.with_error(cell.node.outputs, why.name, text)

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
