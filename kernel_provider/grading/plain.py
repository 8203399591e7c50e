"""Plain notebooks: one with the tests, and any number that are graded by it.

Every code cell of the notebook with the tests is a test of one point, unless it says
``# points: 2`` in a line of its own; with ``# points: 0`` it only prepares something. All
cells of a submission have run before the first test is in its sandbox.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nbformat import NotebookNode
from nbformat.v4 import new_code_cell

from kernel_provider.grading.errors import CourseError, SubmissionError
from kernel_provider.grading.model import NotebookResult, SubmissionRecord
from kernel_provider.grading.sheet import (
    Sheet,
    Submission,
    check_language,
    digest,
    items_of,
    read_notebook,
)
from kernel_provider.run.text import title

POINTS: Final = re.compile(r"^#\s*points:\s*(\d+(?:\.\d+)?)\s*$", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Test:
    """One cell of the notebook with the tests; ``name`` is empty where it only prepares."""

    name: str
    source: str
    points: float


class PlainCourse:
    """The submissions of plain notebooks; their grades go to the folder of grades only."""

    def __init__(self, tests: Path, submissions: Sequence[Path]) -> None:
        """Read the tests. Raises CourseError."""
        self.assignment = tests.stem
        self.folder = tests.resolve().parent
        self.tests = read_tests(tests)
        self.tests_sha256 = digest([(tests.name, tests)])
        self.cell_timeout: float | None = None
        self.kernel: str | None = None
        self.versions: Mapping[str, str] = {}
        self.environ: Mapping[str, str] = {}
        self._paths = submissions

    def submissions(self) -> tuple[Submission, ...]:
        """One for each path, by its file's name, with its folder's where that is not enough."""
        stems = Counter(path.stem for path in self._paths)
        found: dict[str, Submission] = {}
        for path in self._paths:
            name = path.stem
            if stems[name] > 1:
                name = f"{path.absolute().parent.name}-{name}"
            if name in found:
                raise CourseError(
                    what=str(path),
                    reason=f"another submission has the name {name!r}, too",
                    remedy="give each one once, or rename the files",
                )
            found[name] = Submission(student=name, path=path.absolute(), notebooks=(path,))
        return tuple(found.values())

    def max_points(self, notebook: Path) -> float:  # noqa: ARG002
        """The same for all."""
        return sum(test.points for test in self.tests)

    def sheet(self, submission: Submission, notebook: Path) -> Sheet:  # noqa: ARG002
        """The notebook with the tests below it. Raises SubmissionError."""
        book = read_notebook(notebook)
        check_language(notebook.name, book)
        own = len(book.cells)
        for test in self.tests:
            cell = new_code_cell(test.source)
            if (book.nbformat, book.nbformat_minor) < (4, 5):
                del cell["id"]
            book.cells.append(cell)

        def worth(index: int) -> tuple[str, float]:
            test = self.tests[index - own] if index >= own else None
            return (test.name, test.points) if test else ("", 0.0)

        items = items_of(book, worth=lambda index, _: worth(index))
        return Sheet(name=notebook.stem, book=book, items=items, mark=mark)

    def lacking(self, submission: Submission) -> tuple[NotebookResult, ...]:  # noqa: ARG002
        """None: each submission is one notebook."""
        return ()

    def files(self, submission: Submission, into: Path) -> None:
        """None: a submission's neighbours are others' submissions."""

    def save(self, submission: Submission, record: SubmissionRecord, grades: Path) -> None:
        """Nothing: there is no gradebook."""


def read_tests(path: Path) -> tuple[Test, ...]:
    """The tests of a notebook. Raises CourseError."""
    try:
        book = read_notebook(path)
    except SubmissionError as error:
        raise CourseError(
            what=str(path),
            reason=error.data["reason"],
            remedy="give the notebook with the tests first, after --plain",
        ) from error
    tests = tests_of(cell.source for cell in book.cells if cell.cell_type == "code")
    if not any(test.points for test in tests):
        raise CourseError(
            what=str(path),
            reason="no code cell of it is a test that gives points",
            remedy="write tests into code cells, such as: assert answer == 42",
        )
    return tests


def tests_of(sources: Iterable[str]) -> tuple[Test, ...]:
    """Tests from the text of their cells; a name that was there before gets a number."""
    found: list[Test] = []
    seen: Counter[str] = Counter()
    for source in filter(str.strip, sources):
        told = POINTS.search(source)
        points = float(told[1]) if told else 1.0
        name = title(POINTS.sub("", source)) if points else ""
        seen[name] += 1
        if name and seen[name] > 1:
            name = f"{name} ({seen[name]})"
        found.append(Test(name=name, source=source, points=points))
    return tuple(found)


def mark(cell: NotebookNode, points: float) -> float:
    """All of the points, or none where an exception is among the outputs."""
    failed = any(output["output_type"] == "error" for output in cell.outputs)
    return 0.0 if failed else points
