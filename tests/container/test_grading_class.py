"""``executor-ml grade`` on a class that cannot be trusted: what each of them gets."""

import csv
import hashlib
import json
import os
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import classes
import docker
import graders
import pytest
from classes import ASSIGNMENT, BOOK, HIDDEN_WORD, Pupil
from pages import commands, read, typed
from sandboxes import until

from kernel_provider import names
from kernel_provider.grading.model import SubmissionRecord, Verdict
from kernel_provider.grading.reports import FEEDBACK, RECORDS, SCORES

pytestmark = [pytest.mark.container, pytest.mark.usefixtures("image")]

SECTIONS = dict(
    part.split("\n", 1) for part in re.split(r"^##+ ", read("docs/grading.md"), flags=re.MULTILINE)
)
EIGHT = ("right", "warns", "half", "loops", "memory", "exits", "reads", "no-notebook")
SOME_BAD = 20
"""The command's exit code where some submissions are no notebooks."""


@pytest.fixture(scope="module")
def tools() -> Path:
    """The folder of nbgrader."""
    return graders.installed()


@dataclass(frozen=True, kw_only=True)
class Graded:
    """A run of the command: what it printed, and the records by student."""

    done: subprocess.CompletedProcess[str]
    records: Mapping[str, SubmissionRecord]
    grades: Path


def grade(
    course: Path, tools: Path, options: str, *, assignment: str = ASSIGNMENT, within: float = 300
) -> Graded:
    """Grade a whole assignment with the page's commands and these options."""
    release, command = (
        command.replace("ps1", assignment) for command in commands(SECTIONS["A class at once"])
    )
    released = typed(release, course, beside=tools)
    assert released.returncode == 0, released.stderr
    return again(f"{command} --jobs 2 {options}", course, tools, assignment, within)


def again(command: str, course: Path, tools: Path, assignment: str, within: float) -> Graded:
    """Type a command that grades."""
    done = typed(command, course, beside=tools, within=within)
    grades = course / "grades" / assignment
    assert (grades / RECORDS).exists(), done.stderr
    records = map(json.loads, (grades / RECORDS).read_text().splitlines())
    found = {record.student: record for record in map(SubmissionRecord.from_json, records)}
    return Graded(done=done, records=found, grades=grades)


def told(record: SubmissionRecord) -> tuple[object, ...]:
    """What a record says of a pupil, in the form of ``wanted``."""
    cells = [cell for notebook in record.notebooks for cell in notebook.cells]
    written = tuple(cell.verdict for cell in cells if not cell.is_test)
    tests = {cell.grade_id: cell.verdict for cell in cells if cell.is_test}
    return record.verdict, record.score, written, tests


def wanted(pupil: Pupil) -> tuple[object, ...]:
    """What the class says of a pupil."""
    return pupil.verdict, pupil.score, pupil.written, dict(pupil.tests)


def unlike(graded: Graded, class_: Sequence[Pupil]) -> dict[str, object]:
    """Pupils whose record is not what it should be, with both."""
    return {
        pupil.name: {"told": told(graded.records[pupil.name]), "wanted": wanted(pupil)}
        for pupil in class_
        if told(graded.records[pupil.name]) != wanted(pupil)
    }


def contents(folder: Path) -> dict[str, str]:
    """Every file below a folder, by its hash."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def nothing_stays(engine: docker.DockerClient) -> Iterator[None]:
    """No sandbox that was not there before is there after a test."""

    def sandboxes() -> set[str]:
        label = f"{names.LABEL}={names.KIND_KERNEL}"
        rows = engine.api.containers(all=True, filters={"label": label})
        root = os.environ["EXECUTOR_ML_RUNTIME_DIR"]
        ours = [row for row in rows if any(m["Source"].startswith(root) for m in row["Mounts"])]
        return {row["Id"] for row in ours}

    before = sandboxes()
    yield
    assert until(lambda: sandboxes() <= before), "sandboxes left"


def check(graded: Graded, class_: Sequence[Pupil]) -> None:
    """Verdicts, scores and reports are those of the class; no hidden test is in any page."""
    assert set(graded.records) == {pupil.name for pupil in class_}
    assert not unlike(graded, class_)
    with (graded.grades / SCORES).open() as file:
        scores = {row["student"]: row["score"] for row in csv.DictReader(file)}
    assert scores == {
        pupil.name: "" if pupil.kind.unreadable else str(pupil.score) for pupil in class_
    }
    for pupil in class_:
        page = (graded.grades / pupil.name / FEEDBACK).read_text()
        assert not re.search(rf"{HIDDEN_WORD}[a-z]+_\d", page)
        for verdict in pupil.tests.values():
            assert verdict.words in page


@pytest.mark.soak
@pytest.mark.usefixtures("nothing_stays")
def test_a_class_gets_the_verdicts_that_it_must(tools: Path, tmp_path: Path) -> None:
    """Eight pupils: right, hidden tests failed, warned, looped, out of memory, ended, spied."""
    class_ = classes.pupils(*EIGHT)
    course = classes.course(tmp_path / "course", class_)
    before = contents(course / "submitted")
    graded = grade(course, tools, "--cell-timeout 15s")
    assert graded.done.returncode == SOME_BAD, graded.done.stderr
    check(graded, class_)
    assert contents(course / "submitted") == before
    (command,) = commands(SECTIONS["After a stop"])
    resumed = again(f"{command} --cell-timeout 15s", course, tools, ASSIGNMENT, 300)
    assert resumed.records == graded.records
    book = graders.totals(graders.scores(course, ASSIGNMENT, tools))
    assert book == {pupil.name: pupil.score for pupil in class_ if not pupil.kind.unreadable}


@pytest.mark.soak
@pytest.mark.usefixtures("nothing_stays")
def test_sixty_get_the_verdicts_that_they_must(tools: Path, tmp_path: Path) -> None:
    """Half of them attack their sandbox, the grader or the tests; nobody hangs it."""
    class_ = classes.pupils()
    assert len(class_) == 60
    assert sum(pupil.kind.behaves for pupil in class_) == 30
    course = classes.course(tmp_path / "course", class_)
    before = contents(course / "submitted")
    graded = grade(course, tools, "--cell-timeout 20s", within=1800)
    assert graded.done.returncode == SOME_BAD, graded.done.stderr
    check(graded, class_)
    assert contents(course / "submitted") == before


@pytest.mark.soak
def test_the_same_class_without_nbgrader(tmp_path: Path) -> None:
    """Plain notebooks, and one with the tests, which run after all answers: same verdicts."""
    chosen = classes.pupils("right", "wrong", "half", "raises", "exits", "equal", "deletes")
    names = ("ada", "bob", *(pupil.name for pupil in chosen[2:]))
    class_ = [replace(pupil, name=name) for pupil, name in zip(chosen, names, strict=True)]
    folder = classes.plain(tmp_path / "plain", class_)
    (command,) = commands(SECTIONS["Without nbgrader"])
    others = " ".join(f"{name}.ipynb" for name in names[2:])
    done = typed(f"{command} {others} --json", folder)
    assert done.returncode == 0, done.stderr
    found = {
        record.student: record
        for record in map(SubmissionRecord.from_json, map(json.loads, done.stdout.splitlines()))
    }
    for pupil in class_:
        record = found[pupil.name]
        assert record.verdict is pupil.verdict
        cells = [cell for book in record.notebooks for cell in book.cells if cell.is_test]
        assert [cell.verdict for cell in cells] == list(pupil.tests.values())


# --- the same as nbgrader -----------------------------------------------------------------


@pytest.mark.soak
def test_scores_are_nbgraders_for_those_who_behave(tools: Path, tmp_path: Path) -> None:
    """Test by test; but for warnings on standard error, which cost points there and not here."""
    class_ = tuple(pupil for pupil in classes.pupils() if pupil.kind.behaves)
    ours = classes.course(tmp_path / "ours", class_)
    theirs = classes.course(tmp_path / "theirs", class_)
    grade(ours, tools, "", within=900)
    for command in (f"generate_assignment {ASSIGNMENT}", f"autograde {ASSIGNMENT}"):
        done = typed(f"nbgrader {command}", theirs, beside=tools, within=900)
        assert done.returncode == 0, done.stderr
    found, known = (graders.scores(course, ASSIGNMENT, tools) for course in (ours, theirs))
    warned = {
        f"{pupil.name}/{BOOK}/test-{pupil.hit.name}"
        for pupil in class_
        if pupil.kind.name == "warns"
    }
    assert {test for test in found if found[test] != known[test]} == warned
    assert all(not known[test] for test in warned)


@pytest.mark.soak
@pytest.mark.parametrize("source", graders.OWN)
def test_nbgraders_own_test_notebooks_get_its_scores(
    source: str, tools: Path, tmp_path: Path
) -> None:
    """Time-outs, by the course's own limit; attempts to cheat; a file beside the notebook."""
    course = graders.own_course(tmp_path / "course", source, tools)
    graded = grade(course, tools, "", assignment="ps2")
    assert graded.done.returncode == 0, graded.done.stderr
    assert {name: one.score for name, one in graded.records.items()} == graders.OWN[source]
    assert graders.totals(graders.scores(course, "ps2", tools)) == graders.OWN[source]


@pytest.mark.soak
def test_the_sample_course_gets_its_known_scores(tools: Path, tmp_path: Path) -> None:
    """Those that nbgrader ships with its two submissions."""
    course = graders.sample_course(tmp_path / "course", tools)
    graded = grade(course, tools, "", assignment="ps1")
    assert graded.done.returncode == 0, graded.done.stderr
    with (tools / "nbgrader/docs/source/user_guide/grades.csv").open() as file:
        known = {row["student_id"]: float(row["score"]) for row in csv.DictReader(file)}
    assert graders.totals(graders.scores(course, "ps1", tools)) == known


def test_the_seed_makes_the_same_class_each_time() -> None:
    """And another seed another one."""
    assert classes.pupils() == classes.pupils()
    assert classes.pupils() != classes.pupils(seed=1)
    kinds = {pupil.kind.name for pupil in classes.pupils()}
    assert kinds == {kind.name for kind in classes.KINDS}
    assert Verdict.BAD_SUBMISSION in {pupil.verdict for pupil in classes.pupils()}
