"""What docs/grading.md says of Otter works: all of it in sandboxes, with the page's own code."""

import csv
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import graders
import nbformat
import pytest
from pages import ROOT, blocks, commands, read, typed

pytestmark = [pytest.mark.container, pytest.mark.soak]

SECTION = re.split(r"^##+ ", read("docs/grading.md").partition("\n## Otter\n")[2], flags=8)[0]
CELL, PROGRAM = blocks(SECTION, "python")
STACK = ROOT / "image/stacks/current"

QUESTION = """
OK_FORMAT = True
test = {{"name": "{name}", "points": 2, "suites": [{{
    "cases": [
        {{"code": ">>> {name}(3)\\n{first}", "hidden": False, "locked": False}},
        {{"code": ">>> {name}(-2)\\n{second}", "hidden": True, "locked": False}},
    ],
    "scored": True, "setup": "", "teardown": "", "type": "doctest",
}}]}}
"""
BEGIN = "import otter\ngrader = otter.Notebook()"
SQUARE = "def square(x): return x * x"
CUBE = "def cube(x): return x ** 3"
GOOD = {
    "ada": (BEGIN, SQUARE, "grader.check('square')", CUBE, "grader.check('cube')"),
    "bob": (BEGIN, "def square(x): return 3 * abs(x)", CUBE),
    "cyd": (SQUARE, "1 / 0", "def cube(x): return abs(x) ** 3"),
}
SCORES = {"ada": 4.0, "bob": 3.0, "cyd": 3.0}
EVIL = """
import pickle
class Evil:
    def __reduce__(self):
        code = "import os, socket; print('loaded by', os.getuid(), 'on', socket.gethostname())"
        return exec, (code,)
pickle.dump = lambda value, file: file.write(pickle.dumps(Evil()))
"""
BAD = {
    "exits": ("import os; os._exit(7)", "DeadKernelError: Kernel died"),
    "loops": ("while True: pass", "the notebook ran longer than 2 min"),
    "memory": (
        "hold = []\nwhile True: hold.append(bytearray(b'x') * (50 << 20))",
        "the sandbox used more than its 1024 MB of memory",
    ),
    "pickle": (EVIL, "were not a GradingResults instance"),
}


def write(path: Path, *sources: str) -> None:
    """A notebook of such cells."""
    plain = {"name": "python3", "display_name": "Python 3", "language": "python"}
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    book = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": plain})
    nbformat.write(book, path)


@pytest.fixture
def assignment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the page asks for, but for submissions; its commands were typed."""
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "data"))
    folder = tmp_path / "hw"
    (folder / "submissions").mkdir(parents=True)
    write(folder / "otter.ipynb", CELL)
    (folder / "grade.py").write_text(PROGRAM)
    with zipfile.ZipFile(folder / "autograder.zip", "w") as archive:
        for name, first, second in (("square", 9, 4), ("cube", 27, -8)):
            text = QUESTION.format(name=name, first=first, second=second)
            archive.writestr(f"tests/{name}.py", text)
    *before, grade = commands(SECTION)
    assert grade == "python grade.py"
    for command in before:
        done = typed(command, folder)
        assert done.returncode == 0, f"{command}\n{done.stderr}"
    return folder


def graded(folder: Path) -> dict[str, tuple[str, str]]:
    """Type the page's last command: score and cause by submission."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    command = [sys.executable, "grade.py"]
    subprocess.run(command, cwd=folder, env={**os.environ, "PATH": path}, timeout=1800, check=True)
    with (folder / "scores.csv").open(newline="") as file:
        return {row["submission"]: (row["score"], row["cause"]) for row in csv.DictReader(file)}


def results(path: Path) -> list[dict[str, Any]]:
    """Each test's name, points and state."""
    tests = json.loads(path.read_text())["tests"]
    return [{k: test.get(k) for k in ("name", "score", "max_score", "status")} for test in tests]


def test_otter_in_a_sandbox_scores_as_without_one(assignment: Path, tmp_path: Path) -> None:
    """All right, half right, and with a cell that fails; test by test."""
    tools = graders.installed(STACK / "common.lock", STACK / "grading.lock")
    for name, cells in GOOD.items():
        write(assignment / f"submissions/{name}.ipynb", *cells)
    assert graded(assignment) == {name: (str(score), "") for name, score in SCORES.items()}
    for name in GOOD:
        (tmp_path / name).mkdir()
        command = f"python -m otter run submissions/{name}.ipynb -o {tmp_path / name}"
        done = typed(command, assignment, beside=tools)
        assert done.returncode == 0, done.stderr
        ours = results(assignment / f"graded/{name}/results.json")
        assert ours == results(tmp_path / name / "results.json")
        assert len(ours) > 2


def test_what_ends_a_submission_is_told_and_the_others_go_on(assignment: Path) -> None:
    """Memory, os._exit, a loop without end, a pickle that runs code: in the sandbox."""
    program = assignment / "grade.py"
    program.write_text(program.read_text().replace('"10m"', '"2m"'))
    for name, (code, _) in BAD.items():
        write(assignment / f"submissions/{name}.ipynb", SQUARE, CUBE, code)
    write(assignment / "submissions/zoe.ipynb", SQUARE, CUBE)
    found = graded(assignment)
    assert found.pop("zoe") == ("4.0", "")
    for name, (_, cause) in BAD.items():
        score, told = found[name]
        assert (score, cause in told) == ("", True), (name, told)
        assert "\x1b" not in told
    said = (assignment / "graded/pickle/otter.out.ipynb").read_text()
    loaded = re.search(r"loaded by (\d+) on (\w+)", said)
    assert loaded is not None
    assert (int(loaded[1]) > 60000, loaded[2]) == (True, "sandbox")
