"""What docs/grading.md tells people to type works, with the tools themselves."""

import csv
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import graders
import nbformat
import pytest
from pages import blocks, commands, read, typed

pytestmark = [pytest.mark.container, pytest.mark.usefixtures("image")]

LOCAL = "python3"
SECTIONS = dict(
    part.split("\n", 1) for part in re.split(r"^##+ ", read("docs/grading.md"), flags=re.MULTILINE)
)


@pytest.fixture(autouse=True)
def own_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the page's commands install is there for one test and no other."""
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "data"))


@pytest.fixture(scope="module")
def tools() -> Path:
    """The folder of nbgrader and nbval."""
    return graders.installed()


def follow(section: str, folder: Path, tools: Path, *, kernel: str = "") -> str:
    """Type a section's commands, which all succeed: what the last one printed.

    With another kernel if one is named, which is there already.
    """
    for command in commands(SECTIONS[section]):
        if kernel:
            if command.startswith("executor-ml install"):
                continue
            command = re.sub(r"(kernel_name=)\S+", rf"\g<1>{kernel}", command)  # noqa: PLW2901  the same command
        done = typed(command, folder, beside=tools)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        sandboxed = "kernel_name=" in command and kernel != LOCAL
        assert ("in the container executor-ml-" in done.stderr) == sandboxed
    return done.stdout


def test_the_lock_lacks_nothing(tools: Path, tmp_path: Path) -> None:
    """Together with .venv: the lock is made without looking at what its packages need."""
    done = typed("python -m pip check", tmp_path, beside=tools)
    assert done.returncode == 0, done.stdout


@pytest.mark.soak
def test_the_sample_course_gets_its_known_scores(tools: Path, tmp_path: Path) -> None:
    """Those that nbgrader ships with its two submissions, by the commands of the page."""
    course = graders.sample_course(tmp_path / "course", tools)
    validated = follow("nbgrader", course, tools)
    assert "VALIDATION FAILED ON" in validated  # a release has no solutions
    with (tools / "nbgrader/docs/source/user_guide/grades.csv").open() as file:
        known = {row["student_id"]: float(row["score"]) for row in csv.DictReader(file)}
    assert len(known) == 2
    assert graders.totals(graders.scores(course, "ps1", tools)) == known


FILES = {"data.txt": "1\n2\n", "helper.py": "answer = 42\n"}
TESTS = (
    "assert open('data.txt').read() == '1\\n2\\n'",
    "import helper; assert helper.answer == 42",
    "import os; assert os.environ['NBGRADER_EXECUTION'] == 'autograde'",
    "import socket; assert socket.gethostname() == 'sandbox' and os.getuid() > 60000",
    "open('data.txt', 'w').write('changed'); assert open('data.txt').read() == 'changed'",
    "assert False, 'a test that fails'",
)


@pytest.mark.soak
def test_files_beside_a_submission_are_there_and_stay(tools: Path, tmp_path: Path) -> None:
    """Read, imported and written in the sandbox; nbgrader's variable and the originals, too."""
    course = graders.sample_course(tmp_path / "course", tools)
    graders.add(course, "ps2", *TESTS, student="ada", files=FILES)
    follow("Files beside the notebook", course, tools)
    found = graders.scores(course, "ps2", tools)
    assert list(found.values()) == [1, 1, 1, 1, 1, 0]
    folder = course / "autograded/ada/ps2"
    assert {name: (folder / name).read_text() for name in FILES} == FILES


@pytest.mark.soak
def test_a_kernel_without_a_workspace_says_what_is_missing(tools: Path, tmp_path: Path) -> None:
    """The tests that need a file fail, with the remedy in the graded notebook."""
    course = graders.sample_course(tmp_path / "course", tools)
    graders.add(course, "ps2", *TESTS, student="ada", files=FILES)
    follow("Files beside the notebook", course, tools, kernel="executor-ml")
    assert list(graders.scores(course, "ps2", tools).values()) == [0, 0, 1, 1, 1, 0]
    graded = (course / "autograded/ada/ps2/problem.ipynb").read_text()
    assert "does not see the notebook's folder" in graded


@pytest.mark.soak
@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("hold = []\nwhile True: hold.append(bytes(1 << 24))", "more than its 512 MB of memory"),
        ("import os; os._exit(7)", "ended with exit code 7"),
        (
            "import time\nwhile True:\n    try: time.sleep(60)\n    except BaseException: pass",
            "CellTimeoutError",
        ),
    ],
)
def test_a_death_costs_the_submission_and_the_terminal_says_why(
    code: str, words: str, tools: Path, tmp_path: Path
) -> None:
    """As the page warns; the kernel is named in the course's configuration, as it shows."""
    course = graders.sample_course(tmp_path / "course", tools)
    graders.add(course, "ps2", "assert True", code, student="ada", files={})
    (line,) = blocks(SECTIONS["nbgrader"], "python")
    with (course / "nbgrader_config.py").open("a") as config:
        config.write(f"{line}c.Execute.timeout = 20\n")
    assert typed("nbgrader generate_assignment ps2", course, beside=tools).returncode == 0
    done = typed("nbgrader autograde ps2", course, beside=tools)
    assert done.returncode == 1
    assert words in done.stderr
    assert "runs in the container executor-ml-" in done.stderr
    assert not (course / "autograded/ada/ps2").exists()
    assert sum(graders.scores(course, "ps2", tools).values()) == 0


# --- the same as a local kernel -----------------------------------------------------------


def both(section: str, folder: Path, tools: Path) -> tuple[Path, Path]:
    """Follow a section in a folder and in a copy of it, with either kernel."""
    local = folder.with_name("local")
    shutil.copytree(folder, local)
    with ThreadPoolExecutor(2) as pool:
        ours = pool.submit(follow, section, folder, tools)
        theirs = pool.submit(follow, section, local, tools, kernel=LOCAL)
        assert ours.result() == theirs.result()
    return folder, local


@pytest.mark.soak
def test_scores_are_a_local_kernels(tools: Path, tmp_path: Path) -> None:
    """Test by test on the sample course; what is printed by ``validate`` is the same text."""
    ours, theirs = both("nbgrader", graders.sample_course(tmp_path / "course", tools), tools)
    found = graders.scores(ours, "ps1", tools)
    assert len(found) > 10
    assert found == graders.scores(theirs, "ps1", tools)


@pytest.mark.soak
@pytest.mark.parametrize("source", graders.OWN)
def test_nbgraders_own_test_notebooks_get_a_local_kernels_scores(
    source: str, tools: Path, tmp_path: Path
) -> None:
    """Time-outs, attempts to cheat, a file beside the notebook."""
    course = graders.own_course(tmp_path / "course", source, tools)
    ours, theirs = both("Files beside the notebook", course, tools)
    found = graders.scores(ours, "ps2", tools)
    assert found == graders.scores(theirs, "ps2", tools)
    assert graders.totals(found) == graders.OWN[source]


# --- nbval --------------------------------------------------------------------------------


def verdicts(folder: Path, tools: Path, kernel: str) -> tuple[int, list[str]]:
    """Exit code of the page's command, and what became of each cell."""
    (command,) = commands(SECTIONS["nbval"])
    command = command.replace("executor-ml", kernel).replace("timeout 60", "timeout 3")
    done = typed(f"{command} -rA -p no:cacheprovider --color=no", folder, beside=tools)
    cells = re.findall(r"^([A-Z]+) (notebook.ipynb::Cell \d)", done.stdout, re.MULTILINE)
    return done.returncode, [" ".join(cell) for cell in cells]


@pytest.mark.soak
def test_nbval_gives_a_local_kernels_verdicts(tools: Path, tmp_path: Path) -> None:
    """Outputs that are the same and that differ, an exception, a cell without an end."""
    saved = {
        "print(6 * 7)": "42\n",
        "print(6 * 8)": "42\n",
        "1 / 0": "",
        "import socket; print(len(socket.gethostname()) > 0)": "True\n",
        "import time; time.sleep(60)": "",
    }
    book = nbformat.v4.new_notebook()
    for number, (source, text) in enumerate(saved.items(), start=1):
        outputs = [nbformat.v4.new_output("stream", name="stdout", text=text)] if text else []
        cell = nbformat.v4.new_code_cell(source, execution_count=number, outputs=outputs)
        book.cells.append(cell)
    nbformat.write(book, tmp_path / "notebook.ipynb")
    with ThreadPoolExecutor(2) as pool:
        ours, theirs = pool.map(
            lambda kernel: verdicts(tmp_path, tools, kernel), ("executor-ml", LOCAL)
        )
    assert ours == theirs
    assert ours[0] == 1
    assert sorted(ours[1]) == [
        "FAILED notebook.ipynb::Cell 1",
        "FAILED notebook.ipynb::Cell 2",
        "FAILED notebook.ipynb::Cell 4",
        "PASSED notebook.ipynb::Cell 0",
        "PASSED notebook.ipynb::Cell 3",
    ]


DEATHS = {
    "killed": ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "KernelKilled"),
    "exited": ("import os; os._exit(7)", "KernelExited"),
    "memory": ("hold = []\nwhile True: hold.append(b'x' * (1 << 24))", "MemoryLimitExceeded"),
}


@pytest.mark.parametrize(
    "death",
    ["killed", *(pytest.param(name, marks=pytest.mark.soak) for name in ("exited", "memory"))],
)
def test_nbval_tells_a_dead_kernel_at_once(death: str, tools: Path, tmp_path: Path) -> None:
    """Long before the cell's time is over, and with the cause; later cells find it dead.

    nbval itself waits for a reply and looks at nothing else.
    """
    code, cause = DEATHS[death]
    cells = [nbformat.v4.new_code_cell(code), nbformat.v4.new_code_cell("1")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "notebook.ipynb")
    (command,) = commands(SECTIONS["nbval"])
    options = "-rA -p no:cacheprovider --color=no --durations=0 -vv"
    done = typed(f"{command} {options}", tmp_path, beside=tools)
    assert done.returncode == 1
    assert cause in done.stdout
    ends = re.findall(r"^([A-Z]+) notebook.ipynb::Cell (\d)", done.stdout, re.MULTILINE)
    assert sorted(ends) == [("FAILED", "0"), ("FAILED", "1")]
    assert "Kernel dead on test start" in done.stdout
    (took,) = re.findall(r"^([\d.]+)s call +notebook.ipynb::Cell 0", done.stdout, re.MULTILINE)
    print(f"nbval told the death ({death}) after {took} s")
    assert float(took) < 20, "of the cell's 60 s"
