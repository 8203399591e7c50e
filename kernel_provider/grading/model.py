"""What grading tells, while it goes on and in the end; all that others build upon.

Values cross files and processes as JSON: ``to_json`` and ``from_json`` are each other's
inverse. Points are numbers of points, times are seconds, sizes are bytes; moments are
texts in UTC, such as ``2026-11-26T22:50:00Z``.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, Final, Protocol, Self

FORMAT: Final = 1
"""Version of a record's JSON; one of another version is not read."""

VISIBLE: Final = "executor_ml_visible"
"""In the metadata of an executed test: its source as students have it, without hidden tests."""

LONGEST: Final = 1000
"""Characters of an exception's message in a record; the executed notebook has it whole."""


class Verdict(StrEnum):
    """What became of a cell, and of a notebook or a submission by its gravest cell.

    In order, the gravest last.
    """

    PASSED = "passed"
    BY_HAND = "by_hand"
    """A person gives the points."""
    NOT_RUN = "not_run"
    """The notebook had ended before this cell, or the submission lacks it."""
    FAILED = "failed"
    """A test's own assertion, or a part of its points."""
    ERROR = "error"
    """Any other exception."""
    TOO_MANY_PROCESSES = "too_many_processes"
    CELL_TIMEOUT = "cell_timeout"
    OUTPUT_LIMIT = "output_limit"
    OUT_OF_MEMORY = "out_of_memory"
    KERNEL_DIED = "kernel_died"
    TOTAL_TIMEOUT = "total_timeout"
    BAD_SUBMISSION = "bad_submission"
    """Nothing that could be run: not graded, and not written to a gradebook."""
    COULD_NOT_START = "could_not_start"
    """No sandbox, or one that was lost through no fault of the code: not graded."""

    @property
    def words(self) -> str:
        """The same for people."""
        return self.value.replace("_", " ")

    @property
    def is_graded(self) -> bool:
        """Whether points, however few, are the submission's own doing."""
        return self not in {Verdict.BAD_SUBMISSION, Verdict.COULD_NOT_START}

    @property
    def ends_kernels(self) -> bool:
        """Whether it is more than an exception: told of a notebook whichever cell it was."""
        return self.rank >= Verdict.TOO_MANY_PROCESSES.rank

    @property
    def rank(self) -> int:
        """How grave it is."""
        return list(Verdict).index(self)


def gravest(verdicts: Iterable[Verdict]) -> Verdict:
    """The one that tells most of a whole; of nothing, that it passed."""
    return max(verdicts, key=lambda verdict: verdict.rank, default=Verdict.PASSED)


@dataclass(frozen=True, kw_only=True)
class CellResult:
    """One code cell that has something to run, or a cell that is worth points.

    ``index`` is its place in the executed notebook, -1 where it is not in there.
    ``grade_id`` names a test, and is empty for what earns nothing by itself. ``points`` is
    None where a person gives them. ``ename`` and ``evalue`` are the exception, shortened;
    ``cause`` is a sentence or two for people: what ended it, with the limit.
    """

    index: int
    grade_id: str
    title: str
    verdict: Verdict
    points: float | None = 0.0
    max_points: float = 0.0
    ename: str = ""
    evalue: str = ""
    cause: str = ""
    seconds: float = 0.0

    @property
    def is_test(self) -> bool:
        """Whether it is worth points, or a person's look."""
        return bool(self.grade_id)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of ``to_json``. Raises ValueError, TypeError, KeyError."""
        return cls(**{**data, "verdict": Verdict(data["verdict"])})


@dataclass(frozen=True, kw_only=True)
class NotebookResult:
    """One notebook of a submission.

    ``executed`` is the path of the executed notebook below the folder of the grades, with
    all outputs and causes of death in it; empty where nothing ran. ``sandboxes`` counts
    those that it took: more than one where a kernel died and the rest went on in another.
    ``notes`` are what a grader may want to know: cells that were restored, and so on.
    """

    name: str
    verdict: Verdict
    cells: tuple[CellResult, ...] = ()
    score: float = 0.0
    max_score: float = 0.0
    cause: str = ""
    executed: str = ""
    seconds: float = 0.0
    sandboxes: int = 0
    memory_peak: int = 0
    notes: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of ``to_json``. Raises ValueError, TypeError, KeyError."""
        cells = tuple(CellResult.from_json(cell) for cell in data["cells"])
        own = {"verdict": Verdict(data["verdict"]), "cells": cells, "notes": tuple(data["notes"])}
        return cls(**{**data, **own})


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """With what a submission was graded: enough to do it again a year later.

    ``image_digest`` is the image's id, ``stack`` the list of packages that it was made
    from, ``image_versions`` what its labels say of them. ``limits`` are those in force by
    name, as people write them. ``versions`` are this machine's: Python, this package,
    Jupyter's libraries, nbgrader, the engine. ``tests_sha256`` covers the tests and the
    files that go with them.
    """

    kernel: str
    image: str
    image_digest: str
    stack: str
    image_versions: str
    limits: Mapping[str, str]
    cell_timeout: float
    total_timeout: float
    after_death: str
    tests_sha256: str
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class SubmissionRecord:
    """A grade, and all there is to know of it.

    ``course`` is the course's folder and ``assignment`` its name; of plain notebooks, the
    folder and the name of the notebook with the tests. ``path`` is what was submitted, a
    folder or a notebook, and ``sha256`` covers all files of it. ``score`` is what tests
    gave; what a person is to give is not in it, but in ``max_score``.
    """

    course: str
    assignment: str
    student: str
    path: str
    sha256: str
    verdict: Verdict
    conditions: Conditions
    notebooks: tuple[NotebookResult, ...] = ()
    score: float = 0.0
    max_score: float = 0.0
    cause: str = ""
    started: str = ""
    ended: str = ""
    seconds: float = 0.0
    memory_peak: int = 0
    format: int = FORMAT

    @property
    def needs_hand(self) -> bool:
        """Whether a person still has points to give."""
        cells = (cell for notebook in self.notebooks for cell in notebook.cells)
        return any(cell.points is None for cell in cells)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of ``to_json``. Raises ValueError, TypeError, KeyError."""
        if data["format"] != FORMAT:
            msg = f"a record of format {data['format']!r}"
            raise ValueError(msg)
        own = {
            "verdict": Verdict(data["verdict"]),
            "conditions": Conditions(**data["conditions"]),
            "notebooks": tuple(NotebookResult.from_json(one) for one in data["notebooks"]),
        }
        return cls(**{**data, **own})


def to_json(value: CellResult | NotebookResult | Conditions | SubmissionRecord) -> dict[str, Any]:
    """What ``from_json`` reads, ready for ``json.dumps``."""
    return asdict(value)


class State(StrEnum):
    """Where a submission is on its way."""

    WAITING = "waiting"
    """For its turn: processors or memory are others' now."""
    STARTING = "starting"
    RUNNING = "running"
    SAVING = "saving"
    """Graded; its gradebook is being written."""
    DONE = "done"
    KEPT = "kept"
    """An earlier run had graded it."""
    STOPPED = "stopped"
    """Not graded, since the whole run was stopped."""

    @property
    def is_over(self) -> bool:
        """Whether nothing more will be heard of it."""
        return self in {State.DONE, State.KEPT, State.STOPPED}


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What is to be told of one submission now; the latest replaces all earlier.

    ``cell`` is the title of the running cell, ``done`` of ``total`` cells have ended.
    ``score`` is what was earned until now. ``seconds`` is since it was begun.
    ``verdict`` and ``cause`` are the gravest so far, and the submission's in the end.
    """

    student: str
    state: State
    notebook: str = ""
    cell: str = ""
    done: int = 0
    total: int = 0
    score: float = 0.0
    max_score: float = 0.0
    seconds: float = 0.0
    verdict: Verdict | None = None
    cause: str = ""


class Watcher(Protocol):
    """Hears of a run of grading. Called often: must not block, must not raise.

    ``opened`` comes first, once, and ``closed`` last, also after Ctrl-C and errors.
    """

    def opened(self, students: tuple[str, ...], jobs: int) -> None:
        """These are to be graded, so many at a time."""

    def told(self, progress: Progress) -> None:
        """Something changed with one of them."""

    def tick(self) -> None:
        """Time passes: about 20 times a second."""

    def closed(self) -> None:
        """Nothing more comes."""
