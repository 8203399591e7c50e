"""A submission as it is about to be run: its cells in their order, tests among them.

What comes from a student is looked at here, before anything of it is used: that a file is
a file and no link to somebody else's, that it is a notebook, and one for Python.
"""

import hashlib
import os
import stat
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from nbformat import NotebookNode

from kernel_provider.grading.errors import SubmissionError
from kernel_provider.run import book as books
from kernel_provider.run.files import read
from kernel_provider.run.model import InputError
from kernel_provider.run.protocol import measure
from kernel_provider.run.text import printable, title
from kernel_provider.values import MIB

LARGEST: Final = 64 * MIB
"""Bytes of a notebook: ten times as much is needed to read one."""
LANGUAGE: Final = "python"
LONGEST: Final = 200
"""Characters of somebody else's error."""

Mark = Callable[[NotebookNode, float], float | None]
"""Points for an executed cell, of so many; None where a person gives them. Raises
ValueError, KeyError, TypeError where the cell asks for what can't be given."""


@dataclass(frozen=True, kw_only=True)
class Item:
    """A cell to be run, or one that is worth points though nothing in it runs.

    ``index`` is its place in the notebook; ``grade_id`` is empty where it earns nothing.
    """

    index: int
    grade_id: str
    title: str
    max_points: float = 0.0
    runs: bool = True


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """One notebook with its tests, and how they are marked.

    ``missing`` are tests that the submission lacks, with their points.
    """

    name: str
    book: NotebookNode
    items: tuple[Item, ...]
    mark: Mark
    missing: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Submission:
    """What a student handed in: a folder with notebooks, or one notebook."""

    student: str
    path: Path
    notebooks: tuple[Path, ...]


def items_of(
    book: NotebookNode, *, worth: Callable[[int, NotebookNode], tuple[str, float]]
) -> tuple[Item, ...]:
    """What is to be run and marked; ``worth`` gives the grade id and the points of a cell."""
    found = []
    runnable = {index for index, _ in books.runnable(book)}
    for index, cell in enumerate(book.cells):
        grade_id, points = worth(index, cell)
        runs = index in runnable
        if runs or grade_id:
            name = title(cell.source) or grade_id
            item = Item(index=index, grade_id=grade_id, title=name, max_points=points, runs=runs)
            found.append(item)
    return tuple(found)


def read_notebook(path: Path) -> NotebookNode:
    """A notebook without its outputs. Raises SubmissionError where it is none."""
    check_file(path)
    try:
        book = books.parse(path, read(path))
        measure(book)
    except InputError as error:
        raise SubmissionError(what=path.name, reason=error.data["reason"]) from error
    except (ValueError, RecursionError) as error:
        reason = f"it cannot be copied or saved: {printable(str(error))[:LONGEST]}"
        raise SubmissionError(what=path.name, reason=reason) from error
    return book


def check_file(path: Path) -> None:
    """Raise SubmissionError where it is no plain file of a bearable size."""
    try:
        facts = path.lstat()
    except OSError as error:
        reason = error.strerror or "it cannot be read"
        raise SubmissionError(what=path.name, reason=reason) from error
    if not stat.S_ISREG(facts.st_mode):
        kind = "a link" if stat.S_ISLNK(facts.st_mode) else "no file"
        raise SubmissionError(what=path.name, reason=f"this is {kind}, not a notebook")
    if facts.st_size > LARGEST:
        reason = f"it has {facts.st_size / MIB:.0f} MB, most likely of outputs, and "
        reason += f"{LARGEST / MIB:.0f} MB are read at most"
        raise SubmissionError(what=path.name, reason=reason)


def check_language(name: str, book: NotebookNode) -> None:
    """Raise SubmissionError where its kernel is known to be for another language."""
    spec = book.metadata.get("kernelspec") or {}
    info = book.metadata.get("language_info") or {}
    language = str(spec.get("language") or info.get("name") or LANGUAGE)
    if language.lower() not in {LANGUAGE, "ipython"}:
        kernel = printable(str(spec.get("name", "")))[:50]
        reason = f"it is for the kernel {kernel!r} of the language {printable(language)[:50]!r}"
        raise SubmissionError(what=name, reason=f"{reason}, and tests run in {LANGUAGE}")


def plain_files(folder: Path) -> Iterable[Path]:
    """Every file below a folder, in order; links and what is no file are left out."""
    for top, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            path = Path(top, name)
            if stat.S_ISREG(path.lstat().st_mode):
                yield path


def digest(paths: Iterable[tuple[str, Path]]) -> str:
    """SHA-256 over files, each with the name that it counts by. Raises OSError."""
    whole = hashlib.sha256()
    for name, path in paths:
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        whole.update(f"{content}  {name}\n".encode(errors="surrogateescape"))
    return whole.hexdigest()


def submission_digest(submission: Submission) -> str:
    """SHA-256 of all that was submitted. Raises SubmissionError."""
    path = submission.path
    try:
        if path.is_dir():
            return digest((str(one.relative_to(path)), one) for one in plain_files(path))
        check_file(path)
        return digest([(path.name, path)])
    except OSError as error:
        reason = error.strerror or "it cannot be read"
        raise SubmissionError(what=path.name, reason=reason) from error
