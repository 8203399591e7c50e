"""A grade, written where nbgrader's own tools look for it: wholly, or not at all.

The executed notebooks go to the folder ``autograded``, in place of what was there, and
the points into the gradebook in one transaction. Whoever calls this is the only writer.
https://nbgrader.readthedocs.io/en/stable/api/gradebook.html
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import nbformat
from nbformat import NotebookNode

from kernel_provider.grading.errors import GradebookError
from kernel_provider.grading.model import NotebookResult, SubmissionRecord
from kernel_provider.grading.sheet import Submission

if TYPE_CHECKING:
    from kernel_provider.grading.course import NbgraderCourse

LONGEST: Final = 300
"""Characters of somebody else's error."""
OURS: Final = ("Execute", "SaveAutoGrades", "AssignLatePenalties")
"""Steps of nbgrader's that are done here, and elsewhere: by one transaction, in sandboxes."""


def save(
    course: "NbgraderCourse", submission: Submission, record: SubmissionRecord, grades: Path
) -> None:
    """Both of it; raises GradebookError, and then the gradebook is as it was."""
    try:
        books = _write_files(course, submission, record, grades)
        with _transaction(course) as book:
            _write_grades(course, book, submission, record, books)
    except Exception as error:  # the file system's, the database's and nbgrader's own
        first = " ".join(f"{type(error).__name__}: {error}".replace("%", "").split())
        raise GradebookError(
            path=str(course.directory.db_url).removeprefix("sqlite:///"),
            student=record.student,
            reason=first[:LONGEST],
        ) from error


def _write_files(
    course: "NbgraderCourse", submission: Submission, record: SubmissionRecord, grades: Path
) -> dict[str, NotebookNode]:
    """The folder ``autograded`` of a submission; give its notebooks, by their names."""
    directory, converter = course.directory, course.converter
    steps = [one for one in converter.autograde_preprocessors if _name(one) not in OURS]
    done = Path(
        directory.format_path(directory.autograded_directory, submission.student, course.assignment)
    )
    part = done.with_name(f".{done.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    books = {}
    try:
        course.files(submission, part)
        for result in record.notebooks:
            if not result.executed:
                continue
            book = nbformat.read(grades / result.executed, as_version=4)
            resources = course.resources(submission, result.name)
            text, _ = course.exporter(steps).from_notebook_node(book, resources)
            (part / f"{result.name}.ipynb").write_text(text, encoding="utf-8")
            books[result.name] = book
        for path in part.rglob("*"):
            if path.is_file():
                path.chmod(int(str(converter.permissions), 8))
        if done.exists():
            shutil.rmtree(done)
        part.rename(done)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return books


def _name(step: Any) -> str:
    """Of one of nbgrader's steps: a class, or the path of one."""
    return step.rpartition(".")[2] if isinstance(step, str) else str(step.__name__)


@contextmanager
def _transaction(course: "NbgraderCourse") -> Iterator[Any]:
    """A gradebook whose changes are there when the body has ended, or none of them.

    nbgrader's methods commit each step by itself; here these only reach the database.
    """
    from nbgrader.api import Gradebook  # noqa: PLC0415  takes 1 s, optional

    with Gradebook(course.directory.db_url, course.directory.course_id) as book:
        commit, book.db.commit = book.db.commit, book.db.flush
        try:
            yield book
            commit()
        except BaseException:
            book.db.rollback()
            raise


def _write_grades(
    course: "NbgraderCourse",
    book: Any,
    submission: Submission,
    record: SubmissionRecord,
    books: dict[str, NotebookNode],
) -> None:
    student = submission.student
    if course.converter.create_student:
        book.update_or_create_student(student)
    else:
        book.find_student(student)
    at = course.submitted_at(submission)
    book.update_or_create_submission(
        course.assignment, student, **({"timestamp": at} if at else {})
    )
    for result in record.notebooks:
        _write_points(course, book, student, result)
        if result.name in books:
            _write_comments(course, book, student, result.name, books[result.name])
    late = [s for s in course.converter.autograde_preprocessors if _name(s) == OURS[-1]]
    if late:
        book.db.flush()
        for result in record.notebooks:
            _write_penalty(course, book, student, result.name)


def _write_points(
    course: "NbgraderCourse", book: Any, student: str, result: NotebookResult
) -> None:
    """As nbgrader does: a person's own points stay, and are to be looked at again."""
    tasks = course.tests.notebooks[result.name].tasks
    for cell in result.cells:
        if not cell.grade_id or cell.grade_id in tasks:
            continue
        grade = book.find_grade(cell.grade_id, result.name, course.assignment, student)
        grade.auto_score = cell.points
        grade.needs_manual_grade = grade.manual_score is not None or cell.points is None


def _write_comments(
    course: "NbgraderCourse", book: Any, student: str, name: str, executed: NotebookNode
) -> None:
    """Nbgrader's own: where nothing was filled in."""
    from nbgrader import utils  # noqa: PLC0415  takes 1 s, optional
    from nbgrader.api import MissingEntry  # noqa: PLC0415  as above

    for cell in executed.cells:
        if not (utils.is_solution(cell) or utils.is_task(cell)):
            continue
        told = cell.metadata["nbgrader"]
        try:
            comment = book.find_comment(told.get("grade_id", ""), name, course.assignment, student)
        except MissingEntry:  # a cell that the student has made up
            continue
        same = told.get("checksum") == utils.compute_checksum(cell) and not utils.is_task(cell)
        comment.auto_comment = "No response." if same else None


def _write_penalty(course: "NbgraderCourse", book: Any, student: str, name: str) -> None:
    """What the course's plugin takes off for being late."""
    from nbgrader.preprocessors import AssignLatePenalties  # noqa: PLC0415  takes 1 s, optional

    step = AssignLatePenalties(parent=course.converter)
    step.init_plugin()
    submitted = book.find_submission(course.assignment, student)
    notebook = book.find_submission_notebook(name, course.assignment, student)
    notebook.late_submission_penalty = None
    late = submitted.total_seconds_late
    if late > 0:
        penalty = step.plugin_inst.late_submission_penalty(student, notebook.score, late)
        if penalty is not None:
            allowed = step._check_late_penalty(notebook, penalty)  # noqa: SLF001  its own bounds
            notebook.late_submission_penalty = allowed
