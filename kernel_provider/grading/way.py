"""One submission on its way: what is known of it until now, told and written down."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from kernel_provider.grading.journal import Journal
from kernel_provider.grading.model import (
    CellResult,
    Conditions,
    NotebookResult,
    Progress,
    State,
    SubmissionRecord,
    Verdict,
)
from kernel_provider.grading.sheet import Item, Submission
from kernel_provider.grading.source import Source


def now() -> str:
    """This moment, as records have it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass(kw_only=True)
class Way:
    """Filled in step by step; ``results`` are of the notebooks that are done."""

    submission: Submission
    source: Source
    conditions: Conditions
    journal: Journal
    began: float = field(default_factory=time.monotonic)
    started: str = field(default_factory=now)
    sha256: str = ""
    total: int = 0
    max_score: float = 0.0
    results: list[NotebookResult] = field(default_factory=list)

    def record(self, verdict: Verdict, *, cause: str = "") -> SubmissionRecord:
        """The grade, or why there is none."""
        results = tuple(sorted(self.results, key=lambda result: result.name))
        culprit = next((r.cause for r in results if r.verdict is verdict and r.cause), "")
        score = sum(result.score for result in results) if verdict.is_graded else 0.0
        return SubmissionRecord(
            course=str(self.source.folder),
            assignment=self.source.assignment,
            student=self.submission.student,
            path=str(self.submission.path),
            sha256=self.sha256,
            verdict=verdict,
            conditions=self.conditions,
            notebooks=results,
            score=score,
            max_score=max(self.max_score, sum(result.max_score for result in results)),
            cause=cause or culprit,
            started=self.started,
            ended=now(),
            seconds=self._seconds,
            memory_peak=max((result.memory_peak for result in results), default=0),
        )

    def progress(
        self,
        state: State,
        *,
        notebook: str = "",
        item: Item | None = None,
        cells: Sequence[CellResult] = (),
    ) -> Progress:
        """Where it is; ``item`` is about to run, ``cells`` of the same notebook have ended."""
        ended = [*cells, *(cell for result in self.results for cell in result.cells)]
        telling = [cell for cell in ended if cell.is_test or cell.verdict.ends_kernels]
        worst = max(telling, key=lambda cell: cell.verdict.rank, default=None)
        return Progress(
            student=self.submission.student,
            state=state,
            notebook=notebook,
            cell=item.title if item else "",
            done=min(len(ended), self.total),
            total=self.total,
            score=sum(cell.points or 0.0 for cell in ended),
            max_score=self.max_score,
            seconds=self._seconds,
            verdict=worst.verdict if worst else None,
            cause=worst.cause if worst else "",
        )

    @property
    def _seconds(self) -> float:
        return round(time.monotonic() - self.began, 3)


def progress_of(record: SubmissionRecord, state: State) -> Progress:
    """The last that is told of a submission."""
    total = sum(len(notebook.cells) for notebook in record.notebooks)
    return Progress(
        student=record.student,
        state=state,
        done=total,
        total=total,
        score=record.score,
        max_score=record.max_score,
        seconds=record.seconds,
        verdict=record.verdict,
        cause=record.cause,
    )
