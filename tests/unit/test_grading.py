"""Grading, as far as it needs no sandbox: verdicts, journals, memory, what comes in."""

import asyncio
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import nbformat
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nbformat import NotebookNode

from kernel_provider import cli
from kernel_provider.commands import grade as command
from kernel_provider.grading import plain
from kernel_provider.grading import room as rooms
from kernel_provider.grading.errors import (
    CourseError,
    GradebookError,
    GradesBusyError,
    GradesFolderError,
    MemoryShortError,
    StoppedError,
    SubmissionError,
)
from kernel_provider.grading.journal import FILE, Journal, Past, locked, parse, records
from kernel_provider.grading.judging import Seen, judge
from kernel_provider.grading.marking import summed
from kernel_provider.grading.model import (
    CellResult,
    Conditions,
    SubmissionRecord,
    Verdict,
    gravest,
    to_json,
)
from kernel_provider.grading.plain import PlainCourse, mark
from kernel_provider.grading.sheet import (
    LARGEST,
    Submission,
    check_file,
    check_language,
    items_of,
    plain_files,
    read_notebook,
    submission_digest,
)
from kernel_provider.run.model import CellReport, Ending, ExitCode
from kernel_provider.run.runner import Ended
from kernel_provider.values import MIB

PLAIN = {"name": "python3", "display_name": "Python 3", "language": "python"}


def write(path: Path, *sources: str, kernel: dict[str, str] | None = None) -> Path:
    """A notebook of code cells."""
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    book = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel or PLAIN})
    nbformat.write(book, path)
    return path


def submitted(path: Path) -> Submission:
    """A notebook as a submission."""
    return Submission(student=path.stem, path=path, notebooks=(path,))


# --- verdicts -------------------------------------------------------------------------


def seen(
    state: str = "error", *, code: ExitCode = ExitCode.SUCCESS, error: str = "", **more: Any
) -> Seen:
    """A cell that ended so; a death where it died."""
    report = CellReport(number=1, index=0, title="", state=state, error=error, message="why")
    reason = more.pop("reason", "why")
    death = Ending(name=error, reason=reason, remedy="") if state == "died" else None
    return Seen(ended=Ended(report=report, code=code, death=death), **more)


@pytest.mark.parametrize(
    ("cell", "verdict"),
    [
        (seen("ok"), Verdict.PASSED),
        (seen(error="AssertionError"), Verdict.FAILED),
        (seen(error="NameError"), Verdict.ERROR),
        (seen(error="MemoryError"), Verdict.OUT_OF_MEMORY),
        (seen(error="BlockingIOError", refused=1), Verdict.TOO_MANY_PROCESSES),
        (seen(error="RuntimeError", killed=1), Verdict.OUT_OF_MEMORY),
        (seen(error="KeyboardInterrupt", cut=True), Verdict.OUTPUT_LIMIT),
        (seen("timed_out", code=ExitCode.CELL_TIMEOUT), Verdict.CELL_TIMEOUT),
        (seen("timed_out", code=ExitCode.TIMEOUT), Verdict.TOTAL_TIMEOUT),
        (seen("timed_out", code=ExitCode.CELL_TIMEOUT, refused=3), Verdict.TOO_MANY_PROCESSES),
        (seen("died", error="MemoryLimitExceeded"), Verdict.OUT_OF_MEMORY),
        (seen("died", error="OutputLimitExceeded"), Verdict.OUTPUT_LIMIT),
        (seen("died", error="CellTimeout", code=ExitCode.CELL_TIMEOUT), Verdict.CELL_TIMEOUT),
        (seen("died", error="KernelExited"), Verdict.KERNEL_DIED),
        (seen("died", error="ProtocolViolation"), Verdict.KERNEL_DIED),
        (
            seen("died", error="ProtocolViolation", reason="(iopub: a message of more than 1 MiB)"),
            Verdict.OUTPUT_LIMIT,
        ),
    ],
)
def test_every_end_has_its_verdict(cell: Seen, verdict: Verdict) -> None:
    """Of a test that is worth a point and got none, but where it passed."""
    points = 1.0 if verdict is Verdict.PASSED else 0.0
    found, cause = judge(cell, is_test=True, points=points, max_points=1.0)
    assert found is verdict
    assert bool(cause) == verdict.ends_kernels


def test_points_decide_about_a_test_that_ran() -> None:
    """A part of them is a failure, none given is a person's; other cells have no points."""
    for points, verdict in ((0.5, Verdict.FAILED), (None, Verdict.BY_HAND), (1, Verdict.PASSED)):
        assert judge(seen("ok"), is_test=True, points=points, max_points=1.0)[0] is verdict
    assert judge(seen("ok"), is_test=False, points=0.0, max_points=0.0)[0] is Verdict.PASSED


def test_an_assertion_of_the_student_is_an_exception_like_any_other() -> None:
    """Only a test's own says that the test has failed."""
    cell = seen(error="AssertionError")
    assert judge(cell, is_test=False, points=0.0, max_points=0.0)[0] is Verdict.ERROR


def cell(name: str, verdict: Verdict, *, points: float | None = 0.0, **more: Any) -> CellResult:
    """A cell's result; a test where it has a name."""
    return CellResult(
        index=0,
        grade_id=name,
        title=name or "own",
        verdict=verdict,
        points=points,
        max_points=1.0 if name else 0.0,
        **more,
    )


def test_a_notebook_is_told_by_its_tests_and_by_what_ended_kernels() -> None:
    """An exception in a student's cell costs nothing where all tests pass; a death is told."""
    passed = cell("t", Verdict.PASSED, points=1.0)
    wrong, died = cell("", Verdict.ERROR), cell("", Verdict.OUT_OF_MEMORY, cause="why.")
    assert summed("n", [passed, wrong]).verdict is Verdict.PASSED
    whole = summed("n", [died, passed, cell("u", Verdict.FAILED, ename="AssertionError")])
    assert (whole.verdict, whole.cause) == (Verdict.OUT_OF_MEMORY, "own: why.")
    assert (whole.score, whole.max_score) == (1.0, 2.0)


def test_what_a_person_is_to_give_counts_in_the_most_and_not_in_the_score() -> None:
    """None is no number of points."""
    whole = summed("n", [cell("t", Verdict.BY_HAND, points=None)])
    assert (whole.score, whole.max_score, whole.cause) == (0.0, 1.0, "")


def test_the_gravest_is_the_last_in_order() -> None:
    """Of nothing, that it passed."""
    assert gravest([]) is Verdict.PASSED
    assert gravest([Verdict.ERROR, Verdict.KERNEL_DIED, Verdict.FAILED]) is Verdict.KERNEL_DIED


# --- journals -------------------------------------------------------------------------

CONDITIONS = Conditions(
    kernel="executor-ml",
    image="executor-ml:latest",
    image_digest="sha256:1",
    stack="current",
    image_versions="",
    limits={"memory": "512 MB"},
    cell_timeout=30.0,
    total_timeout=600.0,
    after_death="continue",
    tests_sha256="t",
)


def record(student: str = "ada") -> SubmissionRecord:
    """A grade."""
    book = replace(summed("n", [cell("t", Verdict.PASSED, points=1.0)]), notes=("a note",))
    return SubmissionRecord(
        course="/c",
        assignment="ps1",
        student=student,
        path=f"/c/{student}",
        sha256="s",
        verdict=Verdict.PASSED,
        conditions=CONDITIONS,
        notebooks=(book,),
        score=1.0,
        max_score=1.0,
    )


def test_a_journal_knows_the_last_step_that_is_over(tmp_path: Path) -> None:
    """Step by step; beginning anew forgets the rest."""
    journal = Journal(tmp_path / "ada")
    assert journal.read() == Past()
    made = record()
    journal.begin("key")
    assert journal.read() == Past(key="key")
    journal.add_notebook(made.notebooks[0])
    assert journal.read() == Past(key="key", notebooks=made.notebooks)
    journal.add_record(made)
    past = Past(key="key", notebooks=made.notebooks, record=made)
    assert journal.read() == past
    journal.add_saved()
    assert journal.read() == replace(past, saved=True)
    assert list(records(tmp_path)) == [made]
    journal.begin("other")
    assert journal.read() == Past(key="other")
    assert list(records(tmp_path)) == []


@given(cut=st.integers(min_value=0, max_value=4000))
def test_what_was_cut_off_was_never_written(
    tmp_path_factory: pytest.TempPathFactory, cut: int
) -> None:
    """A grade is there wholly or not at all, wherever a power cut came; lines go on after it."""
    journal = Journal(tmp_path_factory.mktemp("j") / "ada")
    journal.begin("key")
    journal.add_record(record())
    journal.add_saved()
    whole = (journal.folder / FILE).read_bytes()
    (journal.folder / FILE).write_bytes(whole[:cut])
    lines = whole[:cut].count(b"\n")
    past = journal.read()
    assert (past.key == "key", past.record is not None, past.saved) == (
        lines >= 1,
        lines >= 2,
        lines >= 3,
    )
    journal.add_saved()
    assert parse((journal.folder / FILE).read_text()).saved == (lines >= 2)


def test_another_versions_journal_counts_as_none(tmp_path: Path) -> None:
    """Nothing is guessed from what it says."""
    journal = Journal(tmp_path)
    journal.begin("key")
    data = {**to_json(record()), "format": 99}
    with (tmp_path / FILE).open("a") as file:
        file.write(json.dumps({"event": "graded", "record": data}) + "\n")
    assert journal.read() == Past()


def test_one_at_a_time_grades_into_a_folder(tmp_path: Path) -> None:
    """The second is told, and both can when the first is over."""
    with locked(tmp_path), pytest.raises(GradesBusyError), locked(tmp_path):
        pass
    with locked(tmp_path):
        pass


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    """With its path, before anything is graded."""
    (tmp_path / "grades").write_text("a file in its place")
    with pytest.raises(GradesFolderError, match=r"the folder for grades, .*/grades"):
        Journal(tmp_path / "grades").begin("key")
    with pytest.raises(GradesFolderError), locked(tmp_path / "grades" / "ps1"):
        pass


# --- memory ---------------------------------------------------------------------------


def test_memory_is_never_promised_twice() -> None:
    """By the limits of what runs, and by what the machine has left."""
    machine = {"capacity": 2048 * MIB, "available": 2048 * MIB}
    assert rooms.fits(wanted=512 * MIB, promised=0, **machine)
    assert rooms.fits(wanted=512 * MIB, promised=1072 * MIB, **machine)
    assert not rooms.fits(wanted=512 * MIB, promised=1500 * MIB, **machine)
    machine["available"] = 700 * MIB
    assert not rooms.fits(wanted=512 * MIB, promised=0, **machine)


def test_jobs_wait_their_turn_for_memory() -> None:
    """Two fit; the third comes in when one has left, though the machine shows room enough."""

    async def scene() -> int:
        room = rooms.Room(available=lambda: 1400 * MIB)
        inside = most = 0

        async def job() -> None:
            nonlocal inside, most
            async with room.held(512 * MIB):
                inside += 1
                most = max(most, inside)
                await asyncio.sleep(0.01)
                inside -= 1

        await asyncio.gather(*(job() for _ in range(6)))
        return most

    assert asyncio.run(scene()) == 2


def test_nobody_is_let_in_once_it_is_stopped() -> None:
    """Those who wait are told."""

    async def scene() -> None:
        async with rooms.Room(stopped=lambda: True, available=lambda: 1 << 40).held(1):
            pass

    with pytest.raises(StoppedError):
        asyncio.run(scene())


def test_no_room_for_a_single_one_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a while in which others may have made room."""
    monkeypatch.setattr(rooms, "PATIENCE", 0.0)

    async def scene() -> None:
        async with rooms.Room(available=lambda: 300 * MIB).held(512 * MIB):
            pass

    with pytest.raises(MemoryShortError, match="may take 512 MB, and this machine has 44 MB free"):
        asyncio.run(scene())


def test_the_machines_memory_is_read_where_the_system_tells_it(tmp_path: Path) -> None:
    """In bytes; what can't be told is none."""
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:    2048 kB\n")
    assert rooms.available_memory(str(tmp_path / "meminfo")) == 2 * MIB
    assert rooms.available_memory() > 0


# --- what comes in --------------------------------------------------------------------


def test_what_is_no_notebook_is_told(tmp_path: Path) -> None:
    """Each in its own words, and none is opened that is no plain file."""
    good = write(tmp_path / "good.ipynb", "1")
    (tmp_path / "cut.ipynb").write_text(good.read_text()[:60])
    (tmp_path / "text.ipynb").write_text("hello")
    (tmp_path / "link.ipynb").symlink_to(good)
    os.mkfifo(tmp_path / "pipe.ipynb")
    with (tmp_path / "huge.ipynb").open("w") as file:
        file.truncate(LARGEST + 1)
    deep: dict[str, Any] = {}
    for _ in range(300):
        deep = {"x": deep}
    for name, metadata in {"deep": deep, "half": {"\ud800": 1}}.items():
        book = json.loads(good.read_text())
        book["metadata"]["own"] = metadata
        (tmp_path / f"{name}.ipynb").write_text(json.dumps(book))
    for name, words in {
        "deep": "it cannot be copied or saved: a content of more than 100 levels",
        "half": "it cannot be copied or saved",
        "cut": "not a notebook: no JSON",
        "text": "not a notebook",
        "link": "this is a link",
        "pipe": "this is no file",
        "huge": "most likely of outputs",
        "gone": "No such file",
    }.items():
        with pytest.raises(SubmissionError, match=words):
            read_notebook(tmp_path / f"{name}.ipynb")
    assert len(read_notebook(good).cells) == 1
    check_file(good)


def test_another_language_is_told_by_its_kernel() -> None:
    """A kernel of an unknown name that says Python, or nothing, is fine."""
    kernel = {"name": "ir", "language": "R", "display_name": "R"}
    book = nbformat.v4.new_notebook(metadata={"kernelspec": kernel})
    with pytest.raises(SubmissionError, match="for the kernel 'ir'"):
        check_language("n.ipynb", book)
    for metadata in ({}, {"kernelspec": {**PLAIN, "name": "mine"}}, {"kernelspec": PLAIN}):
        check_language("n.ipynb", nbformat.v4.new_notebook(metadata=metadata))


def test_a_folder_counts_by_its_plain_files(tmp_path: Path) -> None:
    """Content and names change the sum; links lead nowhere, and are left out."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a/data.txt").write_text("1")
    book = write(tmp_path / "n.ipynb", "1")
    one = Submission(student="s", path=tmp_path, notebooks=(book,))
    first = submission_digest(one)
    (tmp_path / "a/link").symlink_to("/etc/passwd")
    assert submission_digest(one) == first
    assert [path.name for path in plain_files(tmp_path)] == ["n.ipynb", "data.txt"]
    (tmp_path / "a/data.txt").write_text("2")
    assert submission_digest(one) != first


# --- plain tests ----------------------------------------------------------------------


def test_a_test_says_what_it_is_worth() -> None:
    """One point, or so many; none where it only prepares; names are told apart."""
    tests = plain.tests_of(
        ["# points: 0\nimport math", "# adds\nassert add", " ", "# points: 2.5\n# adds\nassert sub"]
    )
    assert [(test.name, test.points) for test in tests] == [("", 0), ("adds", 1), ("adds (2)", 2.5)]


def test_tests_come_after_all_of_the_submission(tmp_path: Path) -> None:
    """And earn their points by running without an exception."""
    tests = write(tmp_path / "tests.ipynb", "# t\nassert f()", "# points: 0\n1")
    path = write(tmp_path / "ada.ipynb", "def f(): return 1", "f()")
    course = PlainCourse(tests, [path])
    (one,) = course.submissions()
    sheet = course.sheet(one, path)
    assert [(item.index, item.grade_id, item.max_points) for item in sheet.items] == [
        (0, "", 0),
        (1, "", 0),
        (2, "t", 1),
        (3, "", 0),
    ]
    assert course.max_points(path) == 1
    executed: NotebookNode = sheet.book.cells[2]
    assert mark(executed, 1.0) == 1.0
    executed.outputs = [nbformat.v4.new_output("stream", name="stderr", text="a warning")]
    assert mark(executed, 1.0) == 1.0
    executed.outputs = [nbformat.v4.new_output("error", ename="E", evalue="", traceback=[])]
    assert mark(executed, 1.0) == 0.0


def test_a_cell_that_is_to_be_skipped_does_not_run(tmp_path: Path) -> None:
    """Jupyter's own tag, in a student's own cell."""
    book = read_notebook(write(tmp_path / "n.ipynb", "1", "2", ""))
    book.cells[0].metadata["tags"] = ["skip-execution"]
    assert [item.index for item in items_of(book, worth=lambda *_: ("", 0.0))] == [1]


def test_submissions_are_told_apart_by_their_names(tmp_path: Path) -> None:
    """Of equal files' names with their folders'; the same one twice is a mistake."""
    for name in ("ada", "bob"):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "ps1.ipynb", "1")
    tests = write(tmp_path / "tests.ipynb", "assert True")
    paths = [tmp_path / name / "ps1.ipynb" for name in ("ada", "bob")]
    found = PlainCourse(tests, paths).submissions()
    assert [one.student for one in found] == ["ada-ps1", "bob-ps1"]
    with pytest.raises(CourseError, match="another submission has the name"):
        PlainCourse(tests, [paths[0], paths[0]]).submissions()


def test_a_notebook_without_tests_grades_nobody(tmp_path: Path) -> None:
    """Nor does what is no notebook."""
    path = write(tmp_path / "tests.ipynb", "# points: 0\n1")
    for tests, words in ((path, "gives points"), (tmp_path / "no.ipynb", "No such file")):
        with pytest.raises(CourseError, match=words):
            PlainCourse(tests, [path])


# --- the command ----------------------------------------------------------------------


def ended(*verdicts: Verdict) -> Sequence[SubmissionRecord]:
    """Records of these verdicts."""
    return [replace(record(), verdict=verdict) for verdict in verdicts]


def test_the_exit_code_tells_whether_all_were_graded() -> None:
    """Whatever they have earned; what can be mended by going on comes first."""
    assert command.exit_code(ended(Verdict.PASSED, Verdict.OUT_OF_MEMORY)) == 0
    bad, lost = Verdict.BAD_SUBMISSION, Verdict.COULD_NOT_START
    assert command.exit_code(ended(Verdict.PASSED, bad)) == 20
    assert command.exit_code(ended(bad, lost)) == 21


def test_as_many_jobs_as_keep_the_processors_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    """At least one."""
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    assert [command.default_jobs(cpus) for cpus in (0.5, 1, 2, 4, 0.01)] == [4, 2, 1, 1, 16]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["only"], 66, "a course and one assignment are needed"),
        (["--plain", "tests.ipynb"], 66, "there is no submission"),
        (["/nowhere", "ps1"], 66, "there is no such folder"),
        ([".", "ps1"], 78, "needs nbgrader"),
        (["--plain", "gone.ipynb", "a.ipynb"], 66, "No such file"),
    ],
)
def test_what_cannot_be_graded_is_told(
    words: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """In two lines, with a code of its own; NbgraderMissingError where it is not installed."""
    assert cli.main(["grade", *words]) == code
    told = capsys.readouterr().err
    assert said in told
    assert "Fix: " in told


def test_a_student_who_is_not_there_is_told(tmp_path: Path) -> None:
    """With the nearest name; letters may stand for others."""
    there = [submitted(write(tmp_path / f"{name}.ipynb", "1")) for name in ("ada", "alan", "bob")]
    assert command._chosen(there, []) == tuple(there)  # noqa: SLF001  a pure part of the command
    assert [one.student for one in command._chosen(there, ["a*"])] == ["ada", "alan"]  # noqa: SLF001
    with pytest.raises(CourseError, match="did you mean 'alan'"):
        command._chosen(there, ["allan"])  # noqa: SLF001


def test_a_gradebook_that_was_not_written_says_how_to_go_on() -> None:
    """Nothing is run again."""
    error = GradebookError(path="/c/gradebook.db", student="ada", reason="database is locked")
    assert "--resume: nothing is run again" in str(error)
