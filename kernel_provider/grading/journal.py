"""The journal of each submission: what has been done for it, whatever ends this process.

One file of JSON lines for each, in its own folder of the grades. A line is on the disk
before anything is built upon it, so after ``kill -9`` or a power cut the lines tell how far
it had come: notebooks that are done are not run again, and a grade that was reached is
never mistaken for one that was not.
"""

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from kernel_provider.grading.errors import GradesBusyError, GradesFolderError
from kernel_provider.grading.model import NotebookResult, SubmissionRecord, to_json

FILE: Final = "journal.jsonl"
LOCK: Final = ".lock"


@dataclass(frozen=True, kw_only=True)
class Past:
    """What a journal says: ``key`` names the submission and the tests that it is of.

    ``record`` is there once it was graded, and ``saved`` once the gradebook has it, too.
    """

    key: str = ""
    notebooks: tuple[NotebookResult, ...] = ()
    record: SubmissionRecord | None = None
    saved: bool = False


class Journal:
    """Of one submission, in ``folder``, which is made. Calls raise GradesFolderError."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file = folder / FILE

    def read(self) -> Past:
        """What there is; a line that was cut off, and what follows, was never written."""
        try:
            text = self._file.read_text("utf-8", errors="replace")
        except FileNotFoundError:
            return Past()
        except OSError as error:
            raise _unusable(self._file, error) from error
        return parse(text)

    def begin(self, key: str) -> None:
        """Start anew: what was known until now is of something else, or not wanted."""
        part = self.folder / f"{FILE}.part"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            _append(part, {"event": "begun", "key": key}, fresh=True)
            part.replace(self._file)
            _sync(self.folder)
        except OSError as error:
            raise _unusable(self.folder, error) from error

    def add_notebook(self, result: NotebookResult) -> None:
        """A notebook is done, and its executed file is there."""
        self._add({"event": "notebook", "notebook": to_json(result)})

    def add_record(self, record: SubmissionRecord) -> None:
        """The submission is graded."""
        self._add({"event": "graded", "record": to_json(record)})

    def add_saved(self) -> None:
        """The gradebook has it."""
        self._add({"event": "saved"})

    def _add(self, line: Mapping[str, Any]) -> None:
        try:
            _append(self._file, line)
        except OSError as error:
            raise _unusable(self._file, error) from error


def parse(text: str) -> Past:
    """What the lines of a journal say, as far as they are whole."""
    past = Past()
    for line in text.splitlines(keepends=True):
        try:
            past = _after(past, json.loads(line)) if line.endswith("\n") else past
        except (ValueError, TypeError, KeyError):  # another version's: as if it were not there
            return Past()
    return past


def _after(past: Past, line: Mapping[str, Any]) -> Past:
    match line["event"]:
        case "begun":
            return Past(key=str(line["key"]))
        case "notebook":
            done = (*past.notebooks, NotebookResult.from_json(line["notebook"]))
            return Past(key=past.key, notebooks=done)
        case "graded":
            record = SubmissionRecord.from_json(line["record"])
            return Past(key=past.key, notebooks=record.notebooks, record=record)
        case _:
            return Past(
                key=past.key, notebooks=past.notebooks, record=past.record, saved=bool(past.record)
            )


def records(folder: Path) -> Iterator[SubmissionRecord]:
    """Every grade below the folder of an assignment's grades, by the students' names."""
    for file in sorted(folder.glob(f"*/{FILE}")):
        record = Journal(file.parent).read().record
        if record is not None:
            yield record


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Be the only one who grades into ``folder``, which is made.

    Raises GradesBusyError, GradesFolderError.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _unusable(folder, error) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise GradesBusyError(path=str(folder)) from error
    try:
        yield
    finally:
        os.close(descriptor)


def _append(path: Path, line: Mapping[str, Any], *, fresh: bool = False) -> None:
    """Add a line; one before it that was cut off is taken away."""
    with path.open("wb" if fresh else "r+b") as file:
        size = file.seek(0, os.SEEK_END)
        if size:
            file.seek(size - 1)
            if file.read(1) != b"\n":
                file.truncate(_whole(path))
            file.seek(0, os.SEEK_END)
        file.write(json.dumps(line).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def _whole(path: Path) -> int:
    """Bytes of the lines that are whole."""
    return path.read_bytes().rfind(b"\n") + 1


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unusable(path: Path, error: OSError) -> GradesFolderError:
    return GradesFolderError(path=str(path), reason=error.strerror or "unusable")
