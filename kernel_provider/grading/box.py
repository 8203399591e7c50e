"""One sandbox of a notebook that is graded: its cells run, its limits looked at."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from nbformat import NotebookNode

from kernel_provider.errors import StartError
from kernel_provider.grading.errors import StoppedError
from kernel_provider.grading.judging import LOST, Seen
from kernel_provider.grading.sheet import Item
from kernel_provider.run import book as books
from kernel_provider.run.kernel import Kernel
from kernel_provider.run.model import CellReport, ExitCode
from kernel_provider.run.runner import Ended, Runner, Times
from kernel_provider.run.signals import Wishes
from kernel_provider.warden.cgroup import NO_USAGE, Cgroup, Usage

MOST_OUTPUT: Final = 32 * 2**20
"""Characters of outputs that are kept of a notebook."""
CUT: Final = 'Write less, or raise "output_limit"'
"""What the relay says in a cell whose output it has cut."""

_STOPPED: Final = (ExitCode.INTERRUPTED, ExitCode.TERMINATED)


class Box:
    """One sandbox, with a copy of the notebook for what its cells put out.

    ``start`` and ``run`` raise StoppedError where somebody wants it all to stop, and
    SandboxError where it could not start, or was lost through no fault of the code;
    ``end`` is to be called in any case.
    """

    def __init__(
        self, kernel: str, overrides: Mapping[str, Any], book: NotebookNode, *, wishes: Wishes
    ) -> None:
        """Find the kernelspec; nothing starts. Raises what is wrong with it."""
        self._kernel = Kernel(kernel, overrides)
        self._book = copy.deepcopy(book)
        self._runner = Runner(self._kernel, self._book, wishes=wishes, tick=lambda: None)
        self._group: Cgroup | None = None
        self._limit = 0
        self.peak = 0
        """The most memory that it had, in bytes, as far as was seen."""

    async def start(self, folder: Path, times: Times, environ: Mapping[str, str]) -> bool:
        """Start it; false where the time for all of it was over before."""
        code = await self._runner.start(
            str(folder), times, allow_errors=True, environ=environ, most_output=MOST_OUTPUT
        )
        if code in _STOPPED:
            raise StoppedError
        if code is not None:
            return False
        self._limit = self._kernel.policy.memory
        try:
            self._group = Cgroup(self._kernel.session.pid)
        except OSError:
            self._group = None  # it has just died, which its next cell will tell
        return True

    async def run(self, item: Item, times: Times) -> tuple[Seen, NotebookNode]:
        """Run a cell: how it ended, and the cell with its outputs."""
        report = CellReport(
            number=item.index + 1, index=item.index, title=item.title, state="not_run"
        )
        before = self._usage()
        ended = await self._runner.run(report, times)
        after = self._usage()
        if ended.code in _STOPPED:
            raise StoppedError
        _raise_if_lost(ended)
        cell = self._book.cells[item.index]
        cell.outputs = books.merge_streams(cell.outputs)
        limits = self._kernel.limits
        seen = Seen(
            ended=ended,
            refused=after.pids_refused - before.pids_refused,
            killed=after.oom_kills - before.oom_kills,
            cut=_is_cut(cell),
            pids=limits["pids"],
            memory=limits["memory"],
            output=limits["output_limit"],
        )
        return seen, cell

    async def end(self) -> None:
        """Kill it and wait until it is gone."""
        self._usage()
        await self._kernel.end()

    def _usage(self) -> Usage:
        """What was counted until now."""
        found = self._group.usage() if self._group is not None else NO_USAGE
        death = self._kernel.death
        most = max(found.memory_peak, death.memory_peak if death else 0)
        self.peak = max(self.peak, min(most, self._limit))
        return found


def _raise_if_lost(ended: Ended) -> None:
    """Raise StartError where the sandbox was lost, and not by the code that ran in it."""
    if ended.death is not None and ended.death.name in LOST:
        raise StartError(reason=f"it was lost again: {ended.death.reason}", last_words="")


def _is_cut(cell: NotebookNode) -> bool:
    """Whether the relay has cut its output and interrupted it."""
    return any(
        output["output_type"] == "stream" and CUT in output["text"] for output in cell.outputs
    )
