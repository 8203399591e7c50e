"""``executor-ml grade`` in real sandboxes: scores, deaths, ends of all kinds, hidden tests."""

import csv
import hashlib
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import classes
import docker
import graders
import nbformat
import pytest
from conftest import sandboxes
from nbformat import NotebookNode
from pages import typed
from parked import lying
from sandboxes import until

pytestmark = [pytest.mark.container, pytest.mark.usefixtures("image")]

COMMAND = Path(sys.executable).with_name("executor-ml")
PLAIN = {"name": "python3", "display_name": "Python 3", "language": "python"}
FINE = "def f(): return 1"


@pytest.fixture(scope="module")
def tools() -> Path:
    """The folder of nbgrader."""
    return graders.installed()


def write(path: Path, *sources: str, kernel: dict[str, str] | None = None) -> str:
    """A notebook of code cells; its file's name."""
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    book = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel or PLAIN})
    nbformat.write(book, path)
    return path.name


def told(text: str) -> dict[str, dict[str, Any]]:
    """Records by students, from ``--json``."""
    found = [json.loads(line) for line in text.splitlines()]
    return {record["student"]: record for record in found}


def graded(
    folder: Path, words: str, *, code: int = 0, tools: Path | None = None
) -> dict[str, dict[str, Any]]:
    """Type the command in a folder: its records."""
    done = typed(f"executor-ml grade {words} --json", folder, beside=tools)
    assert done.returncode == code, done.stderr
    return told(done.stdout)


def verdicts(record: Mapping[str, Any]) -> dict[str, str]:
    """Of a submission's tests, by their names."""
    cells = [cell for notebook in record["notebooks"] for cell in notebook["cells"]]
    return {cell["grade_id"]: cell["verdict"] for cell in cells if cell["grade_id"]}


# --- plain notebooks ------------------------------------------------------------------


def test_points_before_and_after_a_death_are_kept(tmp_path: Path) -> None:
    """In a student's cell and in a test; or the rest is not run, where that is wanted."""
    names = [
        write(tmp_path / "own.ipynb", FINE, "import os; os._exit(3)", "def g(): return 2"),
        write(tmp_path / "test.ipynb", FINE, "import os\ndef g(): os._exit(4)"),
        write(tmp_path / "warns.ipynb", f"import sys\nsys.stderr.write('w')\n{FINE}", "g = len"),
    ]
    write(tmp_path / "t.ipynb", "# f\nassert f() == 1", "# g\nassert g() == 2", "# h\nassert f()")
    found = graded(tmp_path, f"--plain t.ipynb {' '.join(names)}")
    assert verdicts(found["own"]) == {"f": "passed", "g": "passed", "h": "passed"}
    assert (found["own"]["verdict"], found["own"]["score"]) == ("kernel_died", 3)
    assert "exit code 3" in found["own"]["cause"]
    assert verdicts(found["test"]) == {"f": "passed", "g": "kernel_died", "h": "passed"}
    assert (found["test"]["score"], found["test"]["notebooks"][0]["sandboxes"]) == (2, 2)
    assert verdicts(found["warns"]) == {"f": "passed", "g": "error", "h": "passed"}
    for key in ("image_digest", "stack", "tests_sha256", "limits", "versions"):
        assert found["own"]["conditions"][key], key
    assert found["own"]["memory_peak"] > 1 << 20
    stopped = graded(tmp_path, f"--plain t.ipynb {names[0]} --after-death stop -o stopped")
    assert set(verdicts(stopped["own"]).values()) == {"not_run"}
    executed = nbformat.read(tmp_path / "stopped/own/own.ipynb", as_version=4)
    assert [o["ename"] for o in executed.cells[1].outputs] == ["KernelExited"]
    assert [o["ename"] for o in executed.cells[3].outputs] == ["NotRun"]


def test_what_is_no_submission_is_told_and_the_others_are_graded(tmp_path: Path) -> None:
    """The exit code tells that some were not; what a sandbox keeps from a machine is kept."""
    write(tmp_path / "t.ipynb", "# f\nassert f() == 1")
    write(tmp_path / "good.ipynb", FINE)
    write(tmp_path / "r.ipynb", FINE, kernel={"name": "ir", "display_name": "R", "language": "R"})
    (tmp_path / "text.ipynb").write_text("no notebook")
    (tmp_path / "link.ipynb").symlink_to("good.ipynb")
    names = ("good", "r", "text", "link", "gone")
    words = " ".join(f"{name}.ipynb" for name in names)
    found = graded(tmp_path, f"--plain t.ipynb {words}", code=20)
    assert found["good"]["verdict"] == "passed"
    for name in names[1:]:
        assert found[name]["verdict"] == "bad_submission"
        assert found[name]["max_score"] == 1
        assert found[name]["cause"].startswith(f"{name}.ipynb: ")


@pytest.mark.soak
def test_time_for_all_of_it_is_bounded(tmp_path: Path) -> None:
    """The cell that was running is told, and what was not run earns nothing."""
    slow = ("import time\ntime.sleep(3)", "time.sleep(600)")
    write(tmp_path / "a.ipynb", FINE, *slow)
    write(tmp_path / "t.ipynb", "# f\nassert f() == 1")
    found = graded(tmp_path, "--plain t.ipynb a.ipynb --total-timeout 10s")["a"]
    assert (found["verdict"], found["score"]) == ("total_timeout", 0)
    assert "the notebook ran longer than 10 s" in found["cause"]
    assert verdicts(found) == {"f": "not_run"}
    assert found["seconds"] < 60
    found = graded(tmp_path, "--plain t.ipynb a.ipynb --total-timeout 50ms")["a"]
    assert (found["verdict"], found["score"]) == ("total_timeout", 0)
    assert found["memory_peak"] == 0


@pytest.mark.soak
@pytest.mark.usefixtures("empty_shelf", "own_kernelspecs")
def test_a_parked_sandbox_is_taken(tmp_path: Path, engine: docker.DockerClient) -> None:
    """Its uid, which is in the container's name, says that it was that one."""
    write(tmp_path / "t.ipynb", "# f\nimport os\nprint(os.getuid())")
    write(tmp_path / "a.ipynb", FINE)
    for command in ("install --user --name light --preload json", "pool start --kernel light"):
        done = typed(f"executor-ml {command}", tmp_path)
        assert done.returncode == 0, done.stderr
    assert until(lambda: len(lying()) == 1, 60)
    (sandbox,) = lying()
    name = engine.api.inspect_container(sandbox.container)["Name"]
    graded(tmp_path, "--plain t.ipynb a.ipynb --kernel light")
    executed = nbformat.read(tmp_path / "grades/t/a/a.ipynb", as_version=4)
    assert name.endswith(f"-{executed.cells[1].outputs[0].text.strip()}")
    assert until(lambda: not lying())


def begin(folder: Path, words: str) -> subprocess.Popen[str]:
    """Start the command."""
    return subprocess.Popen(
        [COMMAND, "grade", *shlex.split(words)],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_whatever_ends_it_the_next_run_goes_on(
    tmp_path: Path, engine: docker.DockerClient, own_folders: Path
) -> None:
    """Nothing is graded twice, or half, and nothing is left: after kill -9 and after Ctrl-C."""
    write(tmp_path / "t.ipynb", "# f\nassert f() == 1")
    write(tmp_path / "a.ipynb", FINE)
    write(tmp_path / "b.ipynb", FINE, "open('/tmp/here', 'w')\nimport time; time.sleep(600)")
    write(tmp_path / "c.ipynb", FINE)
    words = "--plain t.ipynb a.ipynb b.ipynb c.ipynb --jobs 1 --resume --cell-timeout 9m"
    grades = tmp_path / "grades/t"
    known = ""
    begun = grades / "b/files.part"
    before = sandboxes(engine, own_folders)

    def running() -> bool:
        return begun.exists() and bool(sandboxes(engine, own_folders) - before)

    for number in (signal.SIGKILL, signal.SIGINT):
        with begin(tmp_path, words) as process:
            assert until(running, 60)
            process.send_signal(number)
            out, err = process.communicate(timeout=60)
        assert until(lambda: not sandboxes(engine, own_folders) - before, 30)
        if number == signal.SIGINT:
            assert process.returncode == 130, err
            assert "stopped; 1 of 3 are graded" in err
            assert "Fix: go on with the same command and --resume" in err
            assert "a" in out
            assert not begun.exists()
        journal = (grades / "a/journal.jsonl").read_text()
        assert known in {"", journal}
        known = journal
        assert '"graded"' not in (grades / "b/journal.jsonl").read_text()
    found = graded(tmp_path, words.replace("9m", "2s"))
    assert {name: record["verdict"] for name, record in found.items()} == {
        "a": "passed",
        "b": "cell_timeout",
        "c": "passed",
    }
    assert found["b"]["score"] == 1
    assert (grades / "a/journal.jsonl").read_text() == known


# --- courses --------------------------------------------------------------------------


@pytest.mark.soak
def test_the_sample_course_gets_nbgraders_scores(tools: Path, tmp_path: Path) -> None:
    """By records and by gradebook; the graded notebooks are where nbgrader has them."""
    course = sample(tmp_path, tools)
    found = graded(course, ". ps1", tools=tools)
    known = shipped(tools)
    assert {name: record["score"] for name, record in found.items()} == known
    assert graders.totals(graders.scores(course, "ps1", tools)) == known
    for student in known:
        folder = course / "autograded" / student / "ps1"
        there = {path.name for path in folder.iterdir()}
        assert {"problem1.ipynb", "problem2.ipynb", "jupyter.png"} < there


@pytest.mark.soak
def test_a_gradebook_that_was_not_written_is_by_the_next_run(tools: Path, tmp_path: Path) -> None:
    """From the records, without running anything again; a wrong name is told."""
    course = sample(tmp_path, tools)
    (course / "autograded").write_text("a file in the place of the folder")
    first = graded(course, ". ps1", code=74, tools=tools)
    assert set(graders.scores(course, "ps1", tools).values()) <= {0.0}
    (course / "autograded").unlink()
    assert graded(course, ". ps1 --resume", tools=tools) == first
    assert graders.totals(graders.scores(course, "ps1", tools)) == shipped(tools)
    wrong = typed("executor-ml grade . ps11", course, beside=tools)
    assert wrong.returncode == 66
    assert "did you mean 'ps1'" in wrong.stderr


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """A file system of its own that takes nothing, also of root."""
    for words in (["--bind", str(folder), str(folder)], ["-o", "remount,bind,ro", str(folder)]):
        subprocess.run(["/usr/bin/mount", *words], check=True)
    try:
        yield
    finally:
        subprocess.run(["/usr/bin/umount", str(folder)], check=True)


@pytest.mark.soak
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
def test_a_course_that_cannot_be_written_is_graded_elsewhere(tools: Path, tmp_path: Path) -> None:
    """Where to is said at once; the gradebook follows when it can be written."""
    pair = [pupil for pupil in classes.pupils() if pupil.kind.behaves][:2]
    course = classes.course(tmp_path / "course", pair)
    released = typed(f"nbgrader generate_assignment {classes.ASSIGNMENT}", course, beside=tools)
    assert released.returncode == 0, released.stderr
    command = f"executor-ml grade . {classes.ASSIGNMENT}"
    with read_only(course):
        refused = typed(command, course, beside=tools)
        assert refused.returncode == 74
        assert "cannot be used: Read-only file system" in refused.stderr
        assert "give another one with -o FOLDER" in refused.stderr
        graded = typed(f"{command} -o {tmp_path}/grades", course, beside=tools)
        assert graded.returncode == 74
        assert "2 submissions: 1 passed, 1 failed" in graded.stdout
        assert "could not be written" in graded.stderr
        assert "with --resume: nothing is run again" in graded.stderr
    later = typed(f"{command} -o {tmp_path}/grades --resume", course, beside=tools)
    assert (later.returncode, later.stderr) == (0, "")
    points = graders.totals(graders.scores(course, classes.ASSIGNMENT, tools))
    assert sorted(points.values()) == [4.0, 6.0]


def sample(folder: Path, tools: Path) -> Path:
    """Nbgrader's sample course, released."""
    course = graders.sample_course(folder / "course", tools)
    made = typed("nbgrader generate_assignment ps1", course, beside=tools)
    assert made.returncode == 0, made.stderr
    return course


def shipped(tools: Path) -> dict[str, float]:
    """Scores that come with it."""
    with (tools / "nbgrader/docs/source/user_guide/grades.csv").open() as file:
        return {row["student_id"]: float(row["score"]) for row in csv.DictReader(file)}


SCAN = """
import hashlib, os

def places():
    for line in open("/proc/self/maps"):
        span, rights = line.split()[:2]
        if rights.startswith("rw"):
            first, last = (int(end, 16) for end in span.split("-"))
            with open("/proc/self/mem", "rb", 0) as memory:
                try:
                    memory.seek(first)
                    yield memory.read(last - first)
                except (OSError, OverflowError, ValueError):
                    pass
    for top in ("/tmp", "/dev/shm", os.getcwd()):
        for folder, _, names in os.walk(top):
            for name in names:
                yield open(os.path.join(folder, name), "rb").read()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        for name in ("environ", "cmdline"):
            try:
                yield open(f"/proc/{pid}/{name}", "rb").read()
            except OSError:
                pass

def scan():
    seen = set()
    for data in places():
        at = data.find(b"SECRET")
        while at >= 0:
            seen.add(hashlib.sha256(data[at : at + 11]).hexdigest())
            at = data.find(b"SECRET", at + 1)
    return sorted(name for name, known in KNOWN.items() if known in seen)

control = "SEC" + "RET" + "-" + str(815).zfill(4)
"""
MARKS = {"control": "SECRET-0815", "first": "SECRET-4711", "second": "SECRET-4712"}
KNOWN = {name: hashlib.sha256(mark.encode()).hexdigest() for name, mark in MARKS.items()}
"""What a student looks for: by sums, since what is in the code is in memory."""

EARLY, LATE = ["control"], ["control", "first"]
HIDDEN = "### BEGIN HIDDEN TESTS\nassert {}\n### END HIDDEN TESTS"
TESTS = {
    "first": HIDDEN.format(f"early == {EARLY}  # {MARKS['first']}"),
    "second": HIDDEN.format(f"late == {LATE}  # {MARKS['second']}"),
    "files": HIDDEN.format("open('data.txt').read() + open('own.txt').read() == word"),
    "variable": "import os; assert os.environ['NBGRADER_EXECUTION'] == 'autograde'",
    "part": "import warnings; warnings.warn('costs nothing'); half",
}


def nbgrader_cell(source: str, name: str, *, test: bool) -> NotebookNode:
    """A test of one point, or an answer."""
    told = {"grade": test, "grade_id": name, "locked": test, "solution": not test, "task": False}
    more = {"points": 1} if test else {}
    metadata = {"nbgrader": {**told, **more, "schema_version": 3}}
    cell: NotebookNode = nbformat.v4.new_code_cell(source, metadata=metadata)
    return cell


def make_course(folder: Path, tools: Path) -> Path:
    """A course with an answer before each test, released."""
    cells = []
    for name, source in TESTS.items():
        cells.append(nbgrader_cell(f"# answer to {name}", f"answer-{name}", test=False))
        cells.append(nbgrader_cell(source, name, test=True))
    book = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": PLAIN})
    (folder / "source/ps2").mkdir(parents=True)
    nbformat.write(book, folder / "source/ps2/problem.ipynb")
    (folder / "source/ps2/data.txt").write_text("the course's")
    (folder / "nbgrader_config.py").write_text("c = get_config()\nc.Execute.timeout = 20\n")
    made = typed("nbgrader generate_assignment ps2", folder, beside=tools)
    assert made.returncode == 0, made.stderr
    return folder


def hand_in(course: Path, student: str, *answers: str) -> NotebookNode:
    """What a student makes of what was released."""
    book: NotebookNode = nbformat.read(course / "release/ps2/problem.ipynb", as_version=4)
    for cell, answer in zip(book.cells[::2], answers, strict=True):
        cell.source = answer
    folder = course / "submitted" / student / "ps2"
    folder.mkdir(parents=True)
    nbformat.write(book, folder / "problem.ipynb")
    (folder / "data.txt").write_text("the student's")
    (folder / "own.txt").write_text("own")
    return book


@dataclass(frozen=True, kw_only=True)
class Graded:
    """A course after a run: records by students, and what the gradebook has."""

    course: Path
    records: dict[str, dict[str, Any]]
    scores: dict[str, float]


@pytest.fixture(scope="module")
def own_course(tools: Path, tmp_path_factory: pytest.TempPathFactory) -> Graded:
    """Three students: an honest one, one who tampers, and one who looks for hidden tests."""
    course = make_course(tmp_path_factory.mktemp("course"), tools)
    known = (f"early = {EARLY}", f"late = {LATE}")
    hand_in(course, "ada", *known, "word = 'the course\\'sown'", "1", "half = 0.5")
    bob = hand_in(course, "bob", *known, "word = ''", "raise SystemError", "half = 7")
    bob.cells[5].source = "pass"
    bob.cells[5].metadata["tags"] = ["skip-execution"]
    del bob.cells[7]
    nbformat.write(bob, course / "submitted/bob/ps2/problem.ipynb")
    scan = f"KNOWN = {KNOWN!r}\n{SCAN}\nearly = scan()\nprint(early)"
    hand_in(course, "eve", scan, "late = scan()\nprint(late)", "word = 1", "1", "half = 1")
    records = graded(course, ". ps2", tools=tools)
    return Graded(course=course, records=records, scores=graders.scores(course, "ps2", tools))


def test_hidden_tests_are_not_there_before_their_turn(own_course: Graded) -> None:
    """Neither in the kernel's memory, frames and all, nor in files: just those that have run."""
    released = (own_course.course / "release/ps2/problem.ipynb").read_text()
    assert MARKS["first"] not in released
    found = verdicts(own_course.records["eve"])
    assert (found["first"], found["second"]) == ("passed", "passed"), own_course.records["eve"]


def test_tests_are_the_courses_own(own_course: Graded) -> None:
    """Locked cells are restored, tagged ones run all the same, files are there; in parts, too."""
    ada, bob = own_course.records["ada"], own_course.records["bob"]
    both = {"first": "passed", "second": "passed"}
    assert verdicts(ada) == both | {"files": "passed", "variable": "passed", "part": "failed"}
    assert verdicts(bob) == both | {"files": "failed", "variable": "not_run", "part": "error"}
    assert ada["conditions"]["cell_timeout"] == 20
    totals = graders.totals(own_course.scores)
    assert (totals["ada"], totals["bob"]) == (4.5, 2.0)
    assert {record["max_score"] for record in (ada, bob)} == {5}
    assert (own_course.course / "submitted/ada/ps2/data.txt").read_text() == "the student's"


TRANSACTION = """
import sys
from pathlib import Path
from kernel_provider.grading.course import NbgraderCourse
from kernel_provider.grading.gradebook import _transaction
from nbgrader.api import Gradebook
course = NbgraderCourse(Path("."), "ps2")
try:
    with _transaction(course) as book:
        book.update_or_create_student("new")
        book.update_or_create_submission("ps2", "new")
        raise OSError
except OSError:
    with Gradebook(course.directory.db_url) as book:
        sys.exit("new" in [student.id for student in book.students])
"""


def test_a_grade_is_in_the_gradebook_wholly_or_not_at_all(own_course: Graded, tools: Path) -> None:
    """An end in the middle leaves nothing, where nbgrader's own methods commit each step."""
    (own_course.course / "half.py").write_text(TRANSACTION)
    done = typed("python half.py", own_course.course, beside=tools)
    assert done.returncode == 0, done.stderr


DUE = """
import json, sys
from nbgrader.api import Gradebook
with Gradebook("sqlite:///gradebook.db") as book:
    book.update_or_create_assignment("ps2", duedate="2026-01-01 00:00:00 UTC")
    grade = book.find_grade("part", "problem", "ps2", "ada")
    grade.manual_score = 0.25
    book.db.commit()
"""
LATE_SCORE = """
import json
from nbgrader.api import Gradebook
with Gradebook("sqlite:///gradebook.db") as book:
    one = book.find_submission("ps2", "ada")
    print(json.dumps([one.score, one.late_submission_penalty, one.needs_manual_grade]))
"""


@pytest.mark.soak
def test_late_penalties_and_a_persons_points_are_nbgraders(tools: Path, tmp_path: Path) -> None:
    """Graded again, late by its time stamp: the course's plugin decides; points by hand stay."""
    course = make_course(tmp_path, tools)
    hand_in(course, "ada", *(f"early = {EARLY}", f"late = {LATE}"), "word = 1", "1", "half = 1")
    graded(course, ". ps2", tools=tools)
    (course / "due.py").write_text(DUE)
    done = typed("python due.py", course, beside=tools)
    assert done.returncode == 0, done.stderr
    (course / "submitted/ada/ps2/timestamp.txt").write_text("2026-02-01 00:00:00 UTC")
    with (course / "nbgrader_config.py").open("a") as config:
        config.write('c.LateSubmissionPlugin.penalty_method = "zero"\n')
    graded(course, ". ps2", tools=tools)
    (course / "late.py").write_text(LATE_SCORE)
    done = typed("python late.py", course, beside=tools)
    assert json.loads(done.stdout) == [3.25, 3.25, True], done.stderr
    (course / "submitted/ada/ps2/timestamp.txt").write_text("yesterday")
    found = graded(course, ". ps2", code=20, tools=tools)["ada"]
    assert found["cause"] == "timestamp.txt: this is no time"


@pytest.mark.soak
def test_files_that_are_too_much_are_told(tools: Path, tmp_path: Path) -> None:
    """Of that submission; its grade is not written, and the next has its own."""
    course = make_course(tmp_path, tools)
    answers = (f"early = {EARLY}", f"late = {LATE}", "word = 1", "1", "half = 1")
    for student in ("ada", "bob"):
        hand_in(course, student, *answers)
    with (course / "submitted/ada/ps2/big.bin").open("wb") as file:
        file.truncate(80 << 20)
    found = graded(course, ". ps2", code=20, tools=tools)
    assert (found["ada"]["verdict"], found["bob"]["score"]) == ("bad_submission", 4)
    assert "its files cannot be copied into the sandbox: its 3 files take" in found["ada"]["cause"]
    assert set(graders.totals(graders.scores(course, "ps2", tools))) == {"bob"}
