"""A course of nbgrader's: read and marked with nbgrader's own library.

nbgrader decides which cells are restored from the gradebook, what a cell is worth and what
an executed test earns, by the course's own configuration. Ours are who runs what, where,
and in which order. https://nbgrader.readthedocs.io/en/stable/config_options.html
"""

import copy
import glob
import hashlib
import json
import logging
import math
import os
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import nbformat
from nbformat import NotebookNode

from kernel_provider.errors import suggest
from kernel_provider.grading.errors import CourseError, NbgraderMissingError, SubmissionError
from kernel_provider.grading.marking import absent, summed
from kernel_provider.grading.model import VISIBLE, NotebookResult, SubmissionRecord
from kernel_provider.grading.sheet import (
    Sheet,
    Submission,
    check_file,
    check_language,
    digest,
    items_of,
    plain_files,
    read_notebook,
)
from kernel_provider.run import book as books
from kernel_provider.run.text import printable

LONGEST: Final = 300
"""Characters of what nbgrader says."""
SUFFIX: Final = ".ipynb"
TIMESTAMP: Final = "timestamp.txt"
NOT_HANDED_IN: Final = "the notebook was not handed in."


@dataclass(frozen=True, kw_only=True)
class Tests:
    """What the gradebook has of one notebook: points by grade id; ``tasks`` are a person's."""

    points: Mapping[str, float]
    tasks: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """An assignment as ``nbgrader generate_assignment`` left it in the gradebook."""

    notebooks: Mapping[str, Tests] = field(default_factory=dict)
    sha256: str = ""


class Notes(logging.Handler):
    """What nbgrader warns of while a submission is read."""

    def __init__(self) -> None:
        super().__init__(level=logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep its first line."""
        first = printable(record.getMessage()).strip().partition("\n")[0]
        self.texts.append(first[:LONGEST])

    def taken(self) -> tuple[str, ...]:
        """What came since this was last asked."""
        told, self.texts = self.texts, []
        return tuple(told)


class NbgraderCourse:
    """One assignment of a course."""

    def __init__(self, folder: Path, assignment: str) -> None:
        """Read configuration and gradebook. Raises NbgraderMissingError, CourseError."""
        check_course(folder)
        if find_spec("nbgrader") is None:
            raise NbgraderMissingError
        self.assignment = assignment
        self.notes = Notes()
        with reading(str(folder), "mend its nbgrader_config.py"):
            self.converter = _converter(folder.absolute(), self.notes)
        self.directory = self.converter.coursedir
        self.folder = Path(self.directory.root)
        self._check_gradebook()
        with reading(self.directory.db_url, "back it up, and run: nbgrader db upgrade"):
            self.tests = self._read_assignment()
        self.tests_sha256 = self.tests.sha256
        said = self.converter.config.get("Execute", {})
        self.cell_timeout = seconds_of(said.get("timeout"))
        self.kernel: str | None = said.get("kernel_name") or None
        self.versions: Mapping[str, str] = {"nbgrader": version("nbgrader")}
        self.environ: Mapping[str, str] = {"NBGRADER_EXECUTION": "autograde"}

    def _check_gradebook(self) -> None:
        """Raise CourseError where there is none: nbgrader would make an empty one."""
        url = str(self.directory.db_url)
        path = Path(url.removeprefix("sqlite:///"))
        if url.startswith("sqlite:///") and not path.exists():
            raise CourseError(
                what=str(path),
                reason="the course has no gradebook yet",
                remedy=f"run in its folder: nbgrader generate_assignment {self.assignment}",
            )

    def _read_assignment(self) -> Assignment:
        from nbgrader.api import Gradebook, MissingEntry  # noqa: PLC0415  takes 1 s, optional

        with Gradebook(self.directory.db_url, self.directory.course_id) as book:
            try:
                found = book.find_assignment(self.assignment)
            except MissingEntry as error:
                known = [one.name for one in book.assignments]
                raise CourseError(
                    what=self.assignment,
                    reason=f"the gradebook has no such assignment{suggest(self.assignment, known)}",
                    remedy=f"take one of: {', '.join(known) or 'none'}; or make it: "
                    f"nbgrader generate_assignment {self.assignment}",
                ) from error
            whole = hashlib.sha256()
            notebooks = {}
            for notebook in found.notebooks:
                cells = [
                    (cell.name, cell.cell_type, cell.locked, cell.source)
                    for cell in notebook.source_cells
                ]
                points = {cell.name: float(cell.max_score) for cell in notebook.grade_cells}
                tasks = {cell.name: float(cell.max_score) for cell in notebook.task_cells}
                notebooks[notebook.name] = Tests(points={**points, **tasks}, tasks=frozenset(tasks))
                told = [notebook.name, cells, sorted(points.items()), sorted(tasks.items())]
                whole.update(json.dumps(told).encode())
        whole.update(digest((name, path) for name, path in self._own_files()).encode())
        return Assignment(notebooks=notebooks, sha256=whole.hexdigest())

    # --- submissions --------------------------------------------------------------------

    def submissions(self) -> tuple[Submission, ...]:
        """All there are. Raises CourseError where there is none."""
        step = self.directory.submitted_directory
        assignment = glob.escape(self.assignment)
        pattern = self.directory.format_path(step, "*", assignment)
        parts = ("(?P<student>.*)", "(?P<assignment>.*)")
        form = re.compile(self.directory.format_path(step, *parts, escape=True))
        left_out = set(filter(None, self.directory.student_id_exclude.split(",")))
        found = {}
        for path in sorted(glob.glob(pattern)):  # noqa: PTH207  an absolute pattern
            match = form.fullmatch(path)
            if match and Path(path).is_dir() and match["student"] not in left_out:
                found[match["student"]] = Path(path)
        if not found:
            raise CourseError(
                what=pattern,
                reason="there are no submissions",
                remedy="collect them, or check the course's folder",
            )
        return tuple(
            Submission(student=student, path=path, notebooks=self._notebooks(path))
            for student, path in found.items()
        )

    def _notebooks(self, folder: Path) -> tuple[Path, ...]:
        files = sorted(folder.glob(f"*{SUFFIX}"))
        return tuple(file for file in files if file.stem in self.tests.notebooks)

    def max_points(self, notebook: Path) -> float:
        """By the gradebook."""
        return sum(self.tests.notebooks[notebook.stem].points.values())

    def sheet(self, submission: Submission, notebook: Path) -> Sheet:
        """The notebook with its locked cells restored. Raises SubmissionError."""
        self.notes.taken()
        book = self._sanitized(submission, notebook)
        check_language(notebook.name, book)
        tests = self.tests.notebooks[notebook.stem]

        def worth(_index: int, cell: NotebookNode) -> tuple[str, float]:
            grade_id = _grade_id(cell)
            return (grade_id, tests.points[grade_id]) if grade_id in tests.points else ("", 0.0)

        there = set()
        for index, cell in enumerate(book.cells):
            grade_id, _ = worth(index, cell)
            if grade_id:
                there.add(grade_id)
                _untag(cell)
                cell.metadata[VISIBLE] = self._visible(index, cell)
        return Sheet(
            name=notebook.stem,
            book=book,
            items=items_of(book, worth=worth),
            mark=mark,
            missing={name: worth for name, worth in tests.points.items() if name not in there},
            notes=self.notes.taken(),
        )

    def _visible(self, index: int, cell: NotebookNode) -> str:
        """A test without its hidden part, as the course's release has it."""
        from nbgrader import utils  # noqa: PLC0415  takes 1 s, optional
        from nbgrader.preprocessors import ClearHiddenTests  # noqa: PLC0415  as above

        if not utils.is_locked(cell):  # the student's own words, whatever they look like
            return str(cell.source)
        hide = ClearHiddenTests(parent=self.converter)
        released, _ = hide.preprocess_cell(copy.deepcopy(cell), {}, index)
        return str(released.source)

    def _sanitized(self, submission: Submission, notebook: Path) -> NotebookNode:
        book = read_notebook(notebook)
        exporter = self.exporter(self.converter.sanitize_preprocessors)
        try:
            text, _ = exporter.from_notebook_node(book, self.resources(submission, notebook.stem))
            restored: NotebookNode = nbformat.reads(text, as_version=4)
        except Exception as error:  # whatever nbgrader meets in what a student wrote
            first = " ".join(f"{type(error).__name__}: {error}".split())[:LONGEST]
            reason = f"nbgrader cannot read it ({printable(first)})"
            raise SubmissionError(what=notebook.name, reason=reason) from error
        return restored

    def exporter(self, preprocessors: list[Any]) -> Any:
        """nbgrader's, with these steps."""
        made = self.converter.exporter_class(parent=self.converter, config=self.converter.config)
        for one in preprocessors:
            made.register_preprocessor(one)
        return made

    def resources(self, submission: Submission, notebook: str) -> dict[str, Any]:
        """What nbgrader's steps want to know of a notebook."""
        told = {
            "student": submission.student,
            "assignment": self.assignment,
            "notebook": notebook,
            "db_url": self.directory.db_url,
        }
        return {
            "unique_key": notebook,
            "output_files_dir": f"{notebook}_files",
            "nbgrader": told,
        }

    def lacking(self, submission: Submission) -> tuple[NotebookResult, ...]:
        """Notebooks that were not handed in. Raises SubmissionError where that is all."""
        self.submitted_at(submission)
        there = {path.stem for path in submission.notebooks}
        if not there:
            found = ", ".join(path.name for path in submission.path.glob(f"*{SUFFIX}")) or "none"
            reason = f"no notebook of the assignment is in it; found: {printable(found)[:LONGEST]}"
            raise SubmissionError(what=submission.student, reason=reason)
        return tuple(
            summed(name, [absent(*one, NOT_HANDED_IN) for one in tests.points.items()])
            for name, tests in self.tests.notebooks.items()
            if name not in there
        )

    def submitted_at(self, submission: Submission) -> datetime | None:
        """When it was handed in, where its folder says so. Raises SubmissionError."""
        path = submission.path / TIMESTAMP
        if not os.path.lexists(path):
            return None
        check_file(path)
        try:
            at: datetime | None = self.directory.get_existing_timestamp(str(submission.path))
        except Exception as error:  # nbgrader's parser has many
            raise SubmissionError(what=TIMESTAMP, reason="this is no time") from error
        return at

    # --- files --------------------------------------------------------------------------

    def files(self, submission: Submission, into: Path) -> None:
        """The submission's own, then the course's in their place, as nbgrader has it."""
        own = [
            (str(path.relative_to(submission.path)), path) for path in self._kept(submission.path)
        ]
        for name, path in (*own, *self._own_files()):
            place = into / name
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, place)

    def _own_files(self) -> Iterator[tuple[str, Path]]:
        """Files of the source folder that go with each submission, by their names in it."""
        source = self.directory.format_path(self.directory.source_directory, ".", self.assignment)
        folder = Path(os.path.normpath(source))
        spared = set(self.converter.exclude_overwriting.get(self.assignment, ()))
        for path in self._kept(folder):
            name = str(path.relative_to(folder))
            if name not in spared:
                yield name, path

    def _kept(self, folder: Path) -> Iterator[Path]:
        """Plain files but for notebooks, and what the course wants to be ignored."""
        from nbgrader.utils import find_all_files  # noqa: PLC0415  takes 1 s, optional

        kept = set(find_all_files(str(folder), [*self.directory.ignore, f"*{SUFFIX}"]))
        return (path for path in plain_files(folder) if str(path) in kept)

    def save(self, submission: Submission, record: SubmissionRecord, grades: Path) -> None:
        """Write ``autograded`` and the gradebook. Raises GradebookError."""
        from kernel_provider.grading.gradebook import save  # noqa: PLC0415  it is built on this

        save(self, submission, record, grades)


def check_course(folder: Path) -> None:
    """Raise CourseError where there is no such folder."""
    if not folder.is_dir():
        raise CourseError(
            what=str(folder),
            reason="there is no such folder",
            remedy="give the course's folder, with its source and submitted folders in it",
        )


@contextmanager
def reading(what: str, remedy: str) -> Iterator[None]:
    """Whatever nbgrader fails with in here is this course's fault: raise CourseError."""
    try:
        yield
    except (CourseError, KeyboardInterrupt):
        raise
    except BaseException as error:  # traitlets ends the process over a bad configuration
        first = " ".join(f"{type(error).__name__}: {error}".replace("%", "").split())[:LONGEST]
        reason = f"nbgrader cannot read it ({first})"
        raise CourseError(what=what, reason=reason, remedy=remedy) from error


def _converter(folder: Path, notes: Notes) -> Any:
    """nbgrader's, with the course's configuration, and quiet."""
    from nbgrader.apps import AutogradeApp  # noqa: PLC0415  takes 1 s, optional
    from nbgrader.converters import Autograde  # noqa: PLC0415  as above

    warnings.simplefilter("ignore")  # of what nbgrader is built on
    app = AutogradeApp()
    app.raise_config_file_errors = True
    app.initialize([], root=str(folder))
    app.log.handlers, app.log.propagate = [notes], False
    return Autograde(coursedir=app.coursedir, parent=app)


def seconds_of(told: float | None) -> float | None:
    """A limit of time as nbclient has it, where less than nothing is no limit."""
    return math.inf if told is not None and told < 0 else told or None


def mark(cell: NotebookNode, _points: float) -> float | None:
    """Nbgrader's points for an executed cell, had it not written on standard error.

    Warnings of libraries go there, and cost all points with nbgrader itself.
    """
    from nbgrader import utils  # noqa: PLC0415  takes 1 s, optional

    if utils.is_task(cell):
        return None
    quiet = NotebookNode(cell)
    if cell.cell_type == "code":
        quiet["outputs"] = [
            output
            for output in cell.outputs
            if not (output["output_type"] == "stream" and output["name"] == "stderr")
        ]
    points, _ = utils.determine_grade(quiet)
    return None if points is None else float(points)


def _grade_id(cell: NotebookNode) -> str:
    from nbgrader import utils  # noqa: PLC0415  takes 1 s, optional

    if not (utils.is_grade(cell) or utils.is_task(cell)):
        return ""
    return str(cell.metadata["nbgrader"].get("grade_id", ""))


def _untag(cell: NotebookNode) -> None:
    """A test that its student has tagged to be skipped would not run, and pass."""
    if "tags" in cell.metadata:
        cell.metadata["tags"] = [tag for tag in cell.metadata["tags"] if tag != books.SKIP_TAG]
