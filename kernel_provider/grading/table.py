"""What a person sees of a run of grading."""

from collections.abc import Mapping, Sequence
from typing import TextIO

from kernel_provider.commands.table import columns
from kernel_provider.grading.model import Progress, SubmissionRecord
from kernel_provider.run.text import printable


class Table:
    """A line for each submission that is over."""

    def __init__(self, stream: TextIO, environ: Mapping[str, str]) -> None:
        self._stream = stream
        self._environ = environ

    def opened(self, students: tuple[str, ...], jobs: int) -> None:
        """These are to be graded, so many at a time."""
        self._write(f"  grade   {len(students)} submissions, {jobs} at a time")

    def told(self, progress: Progress) -> None:
        """Something changed with one of them."""
        if not progress.state.is_over or progress.verdict is None:
            return
        score = f"{progress.score:g} of {progress.max_score:g}"
        self._write(
            f"  {progress.state}  {progress.student}: {progress.verdict.words}, {score} "
            f"({progress.seconds:.1f} s) {printable(progress.cause)}".rstrip()
        )

    def tick(self) -> None:
        """Time passes."""

    def closed(self) -> None:
        """Nothing more comes."""

    def _write(self, text: str) -> None:
        self._stream.write(f"{text}\n")
        self._stream.flush()


def summary(records: Sequence[SubmissionRecord]) -> str:
    """The final table."""
    rows = [("submission", "verdict", "score")]
    rows += [
        (printable(r.student), r.verdict.words, f"{r.score:g} of {r.max_score:g}") for r in records
    ]
    return columns(rows)
