"""Cells in one kernel, from its start on: run by nbclient, and watched.

The runner looks about 20 times a second: whether the cell has ended, the kernel has
died, time is up, or somebody wants it to stop.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from nbclient.exceptions import CellExecutionError, DeadKernelError
from nbformat import NotebookNode

from kernel_provider.errors import SandboxError
from kernel_provider.run import book as books
from kernel_provider.run.client import MOST_OUTPUT, BoundedClient
from kernel_provider.run.kernel import Kernel
from kernel_provider.run.model import CellReport, Ending, ExitCode, KernelProtocolError
from kernel_provider.run.signals import Wishes
from kernel_provider.run.text import duration

if TYPE_CHECKING:
    from nbclient import NotebookClient

LOOK: Final = 0.05
"""Seconds between two looks."""

LAST_WORDS: Final = 1.0
"""Seconds that a dead kernel's last words have to arrive; they are sent before its end."""

GRACE: Final = 5.0
"""Seconds between the interrupt of a cell that took too long and the end of its kernel."""

GRACE_BY_HAND: Final = 2.0
"""The same where a person waits; a second Ctrl-C ends it at once."""

OUTPUT_WITHIN: Final = 60
"""Seconds that outputs may come after the reply that the cell has ended."""

LONGEST: Final = 10_000
"""Characters of an exception's message in a report; the notebook has it whole."""

INTERRUPTED: Final = "KeyboardInterrupt"
"""What a cell raises that was interrupted."""

OF_DEATHS: Final = {
    "MemoryLimitExceeded": ExitCode.OUT_OF_MEMORY,
    "ProtocolViolation": ExitCode.PROTOCOL_BROKEN,
    "CellTimeout": ExitCode.CELL_TIMEOUT,
}
"""Deaths that have a code of their own."""


@dataclass(frozen=True, kw_only=True)
class Times:
    """What a cell and all of them together may take, in seconds; None for no limit.

    ``deadline`` is when the latter is over (monotonic), and the options are by which both
    are raised.
    """

    cell: float | None = None
    total: float | None = None
    deadline: float = float("inf")
    total_option: str = "--timeout"


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a cell ended: ``code`` is not SUCCESS where the run is not to go on.

    ``idle`` tells whether the kernel lives and waits for another cell all the same.
    """

    report: CellReport
    code: ExitCode = ExitCode.SUCCESS
    death: Ending | None = None
    idle: bool = True


@dataclass(kw_only=True)
class _Cell:
    """A cell that runs: until when, and how it ended.

    ``late`` is how many were too slow for the kernelspec's own limit when this one began.
    """

    node: NotebookNode
    report: CellReport
    late: int
    begun: float = field(default_factory=time.monotonic)
    deadline: float = float("inf")
    code: ExitCode = ExitCode.SUCCESS
    death: Ending | None = None


class Runner:
    """Runs cells of a notebook in one kernel; what they put out is put into the notebook."""

    def __init__(
        self, kernel: Kernel, book: NotebookNode, *, wishes: Wishes, tick: Callable[[], None]
    ) -> None:
        """``tick`` is called now and then while something takes time."""
        self.kernel = kernel
        self.book = book
        self._wishes = wishes
        self._tick = tick
        self._raised: tuple[str, str] | None = None
        self._client: NotebookClient | None = None

    async def start(
        self,
        folder: str,
        times: Times,
        *,
        allow_errors: bool = False,
        environ: Mapping[str, str] | None = None,
        most_output: int = MOST_OUTPUT,
    ) -> ExitCode | None:
        """Start the kernel, in a folder; a code where something else came before it served.

        ``environ`` stands for this process's. Raises SandboxError; ``kernel.end`` is still
        to be called.
        """
        task = asyncio.create_task(self.kernel.start(folder, environ))
        code = await self._until(task, times, starting=True)
        if code is not None:
            task.cancel()
            with suppress(asyncio.CancelledError, SandboxError):
                await task
            return code
        client = task.result()
        self.book.metadata.update(self.kernel.metadata)
        nb = BoundedClient(
            self.book,
            km=self.kernel.manager,
            kernel_name=self.kernel.name,
            allow_errors=allow_errors,
            iopub_timeout=OUTPUT_WITHIN,
            on_cell_error=self._on_cell_error,
            skip_cells_with_tag=books.SKIP_TAG,
            log=self.kernel.log,
        )
        nb.kc = client
        nb.report = client.report
        nb.most_output = most_output
        nb.reset_execution_trackers()
        self._client = nb
        return None

    def finish(self) -> None:
        """Put what widgets showed into the notebook."""
        if self._client is not None:
            self._client.set_widgets_metadata()

    async def run(self, report: CellReport, times: Times) -> Ended:
        """Run the cell that the report is of, to its end."""
        nb = self._client
        assert nb is not None  # noqa: S101  it was started
        cell = _Cell(node=self.book.cells[report.index], report=report, late=self.kernel.late)
        cell.deadline = cell.begun + (times.cell or float("inf"))
        self._raised = None
        task = asyncio.create_task(
            nb.async_execute_cell(
                cell.node, report.index, execution_count=nb.code_cells_executed + 1
            )
        )
        code = await self._until(task, times, deadline=cell.deadline)
        if code is None:
            self._judge(task, cell)
        elif code is ExitCode.KERNEL_DIED:
            await self._hear_last_words(task, cell)
        elif code is ExitCode.PROTOCOL_BROKEN:
            self._accuse(cell)
        else:
            await self._stop(task, cell, code, times)
        idle = task.done() and cell.death is None and self.kernel.death is None
        quiet = (DeadKernelError, CellExecutionError, KernelProtocolError)
        with suppress(*quiet, asyncio.CancelledError):
            task.cancel()
            await task
        report = replace(cell.report, seconds=round(time.monotonic() - cell.begun, 3))
        return Ended(report=report, code=cell.code, death=cell.death, idle=idle)

    def _on_cell_error(self, execute_reply: dict[str, Any], **_: Any) -> None:
        content = execute_reply["content"]
        name, text = str(content.get("ename", "")), str(content.get("evalue", ""))
        self._raised = (name[:LONGEST], text[:LONGEST])

    async def _until(
        self,
        task: asyncio.Task[Any],
        times: Times,
        *,
        deadline: float = float("inf"),
        starting: bool = False,
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
            if self._wishes.stop is not None:
                return self._wishes.stop
            if time.monotonic() > times.deadline:
                return ExitCode.TIMEOUT
            if time.monotonic() > deadline:
                return ExitCode.CELL_TIMEOUT
            self._tick()

    def _judge(self, task: asyncio.Task[Any], cell: _Cell) -> None:
        """A cell that ended by itself."""
        error = task.exception()
        if self.kernel.offence is not None:
            self._accuse(cell)
            return
        if error is not None and not isinstance(error, CellExecutionError):
            raise error
        if self.kernel.late > cell.late and books.has_error(cell.node.outputs, INTERRUPTED):
            self._blame(cell, ExitCode.CELL_TIMEOUT, "timed_out", self._overtime())
            return
        state = "error" if self._raised else "ok"
        name, message = self._raised or ("", "")
        if self._raised and not books.has_error(cell.node.outputs, name):
            cell.node.outputs = books.with_error(cell.node.outputs, name, message)
        cell.report = replace(cell.report, state=state, error=name, message=message)
        if error is not None:
            cell.code = ExitCode.CELL_ERROR

    def _overtime(self) -> Ending:
        """What the kernelspec's own limit has interrupted."""
        limit = duration(self.kernel.policy.cell_timeout or 0.0)
        return Ending(
            name="CellTimeout",
            reason=f"the cell ran longer than {limit}; the cell was interrupted.",
            remedy=f'Make it quicker, or raise "cell_timeout" in kernelspec {self.kernel.name}.',
        )

    async def _stop(
        self, task: asyncio.Task[Any], cell: _Cell, code: ExitCode, times: Times
    ) -> None:
        """Interrupt the cell, give it a moment, and say in it what happened."""
        by_hand = self._wishes.stop is not None
        await self.kernel.interrupt()
        end = time.monotonic() + (GRACE_BY_HAND if by_hand else GRACE)
        while not task.done() and time.monotonic() < end and not self._wishes.at_once:
            await asyncio.wait({task}, timeout=LOOK)
            if self.kernel.death is not None:
                break
            self._tick()
        how = "the cell was interrupted" if task.done() else "its kernel was killed"
        if by_hand:
            by = "Ctrl-C" if code is ExitCode.INTERRUPTED else "SIGTERM"
            why = Ending(
                name="RunInterrupted",
                reason=f"the run was stopped by {by}; {how}.",
                remedy="What there was until then is kept.",
            )
        elif code is ExitCode.CELL_TIMEOUT:
            why = Ending(
                name="CellTimeout",
                reason=f"the cell ran longer than {duration(times.cell or 0.0)}; {how}.",
                remedy="Make it quicker, or raise --cell-timeout.",
            )
        else:
            why = Ending(
                name="RunTimeout",
                reason=f"the notebook ran longer than {duration(times.total or 0.0)}; {how}.",
                remedy=f"Make it quicker, or raise {times.total_option}.",
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
        cell.death = Ending(name=death.name, reason=death.reason, remedy=death.remedy)
        code = OF_DEATHS.get(death.name, ExitCode.KERNEL_DIED)
        self._blame(cell, code, "died", cell.death)

    def _accuse(self, cell: _Cell) -> None:
        """Say in the cell that its kernel broke the protocol: nothing it says is believed."""
        offence = self.kernel.offence
        assert offence is not None  # noqa: S101  whoever calls this has seen it
        reason, _, remedy = str(offence).partition("\nFix: ")
        cell.death = Ending(name="ProtocolViolation", reason=f"{reason}.", remedy=remedy)
        self._blame(cell, ExitCode.PROTOCOL_BROKEN, "died", cell.death)

    def _blame(self, cell: _Cell, code: ExitCode, state: str, why: Ending) -> None:
        """Say in the cell what ended it, and what to do; the report has the reason."""
        cell.code = code
        cell.report = replace(cell.report, state=state, error=why.name, message=why.reason)
        text = f"{why.reason} {why.remedy}"
        cell.node.outputs = books.with_error(cell.node.outputs, why.name, text)
