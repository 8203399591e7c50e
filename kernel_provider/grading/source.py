"""Where submissions come from, and where their grades go."""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from kernel_provider.grading.model import NotebookResult, SubmissionRecord
from kernel_provider.grading.sheet import Sheet, Submission


class Source(Protocol):
    """A course's assignment. All calls come from one thread, which need not be the main one.

    ``cell_timeout`` (seconds) and ``kernel`` are what the course itself asks for, if it
    does; ``versions`` are those of the libraries that it is read with, and ``environ`` holds
    variables that its notebooks expect.
    """

    folder: Path
    assignment: str
    tests_sha256: str
    cell_timeout: float | None
    kernel: str | None
    versions: Mapping[str, str]
    environ: Mapping[str, str]

    def submissions(self) -> tuple[Submission, ...]:
        """All there are, by the students' names. Raises CourseError."""

    def max_points(self, notebook: Path) -> float:
        """What a notebook is worth, whatever it is."""

    def sheet(self, submission: Submission, notebook: Path) -> Sheet:
        """One of its notebooks, ready to be run. Raises SubmissionError."""

    def lacking(self, submission: Submission) -> tuple[NotebookResult, ...]:
        """Notebooks of the assignment that were not handed in, with no points each."""

    def files(self, submission: Submission, into: Path) -> None:
        """Put what lies beside the notebooks into a folder. Raises OSError."""

    def save(self, submission: Submission, record: SubmissionRecord, grades: Path) -> None:
        """Write the grade to the gradebook, all of it or nothing; twice is fine.

        Executed notebooks lie below ``grades``. Raises GradebookError.
        """
