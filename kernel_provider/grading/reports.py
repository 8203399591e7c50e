"""Grades as files: JSON Lines for programs, a table for spreadsheets, pages for people."""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import nbformat

from kernel_provider.grading.model import SubmissionRecord, to_json
from kernel_provider.grading.page import page
from kernel_provider.run.files import write
from kernel_provider.run.text import printable

RECORDS: Final = "records.jsonl"
SCORES: Final = "scores.csv"
FEEDBACK: Final = "feedback.html"

COLUMNS: Final = (
    "assignment",
    "student",
    "verdict",
    "score",
    "max_score",
    "by_hand",
    "cause",
    "seconds",
    "memory_peak_mb",
)
"""Of each row of the table, before the points of each test."""
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")
"""What spreadsheets run at the beginning of a text: https://owasp.org/www-community/attacks/CSV_Injection"""


def write_reports(folder: Path, records: Sequence[SubmissionRecord]) -> tuple[Path, ...]:
    """Write them all for all of an assignment's records; give their paths.

    Files of earlier times are replaced, each whole or not at all. ``folder`` has one folder
    for each student, with what was executed. Raises OutputError.
    """
    ordered = sorted(records, key=lambda record: record.student)
    texts = {folder / RECORDS: lines(ordered), folder / SCORES: table(ordered)}
    for path, text in texts.items():
        write(path, text)
    pages = []
    for record in ordered:
        pages.append(folder / record.student / FEEDBACK)
        pages[-1].parent.mkdir(exist_ok=True)
        write(pages[-1], page(record, executed(folder, record)))
    return (*texts, *pages)


def lines(records: Sequence[SubmissionRecord]) -> str:
    """A record in each line, as JSON with nothing but ASCII in it."""
    return "".join(f"{json.dumps(to_json(record))}\n" for record in records)


def table(records: Sequence[SubmissionRecord]) -> str:
    """CSV with a row for each student and a column for each test.

    What was not graded has no points at all, which is not the same as 0.
    """
    tests = {
        f"{notebook.name}/{cell.grade_id}": None
        for record in records
        for notebook in record.notebooks
        for cell in notebook.cells
        if cell.is_test
    }
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*COLUMNS, *(_harmless(test) for test in tests)])
    for record in records:
        points = {
            f"{notebook.name}/{cell.grade_id}": cell.points
            for notebook in record.notebooks
            for cell in notebook.cells
            if cell.is_test
        }
        writer.writerow([*_about(record), *(_number(points.get(test)) for test in tests)])
    return text.getvalue()


def _about(record: SubmissionRecord) -> list[str]:
    graded = record.verdict.is_graded
    return [
        _harmless(record.assignment),
        _harmless(record.student),
        record.verdict.words,
        _number(record.score if graded else None),
        _number(record.max_score if graded else None),
        "yes" if record.needs_hand else "",
        _harmless(record.cause),
        f"{record.seconds:.1f}",
        f"{record.memory_peak / 2**20:.0f}",
    ]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:g}"


def _harmless(text: str) -> str:
    """The text as one that a spreadsheet shows and does not run."""
    plain = printable(text).replace("\n", " ")
    return f"'{plain}" if text.startswith(_FORMULA) else plain


def executed(folder: Path, record: SubmissionRecord) -> dict[str, list[Any]]:
    """Cells of a submission's executed notebooks that are there, by the notebook's name."""
    found: dict[str, list[Any]] = {}
    for notebook in record.notebooks:
        path = folder / notebook.executed
        if notebook.executed and path.is_file():
            found[notebook.name] = nbformat.read(path, as_version=4).cells
    return found
