"""Tools that grade and test notebooks, in a folder of their own, and a course for them.

.venv stays without them: two of them switch themselves on in every JupyterLab, one in
every pytest.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import nbformat
import pytest
from pages import ROOT, typed

from kernel_provider.builder.wheels import cache_folder

LOCK: Final = ROOT / "tests/graders.lock"
PIP: Final = (sys.executable, "-m", "pip", "--disable-pip-version-check", "-q")


def installed(*locks: Path) -> Path:
    """The folder of the tools, in the user's cache by their locks' content; made at first.

    By default nbgrader and nbval. Skips the test where the package index cannot be
    reached, and fails where it can and a lock does not hold.
    """
    files = locks or (LOCK,)
    content = b"".join(lock.read_bytes() for lock in files) + str(sys.version_info[:3]).encode()
    kept = cache_folder(os.environ) / "-".join(lock.stem for lock in files)
    wanted = kept / hashlib.sha256(content).hexdigest()[:32]
    if wanted.exists():
        return wanted
    wanted.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=wanted.parent) as made:
        folder = Path(made, "tools")
        _install(folder, files)
        _make_movable(folder / "bin")
        try:
            folder.rename(wanted)
        except OSError:  # another run was first
            assert wanted.exists()
    return wanted


def _install(folder: Path, locks: Sequence[Path]) -> None:
    """Install what the locks name, and nothing that it needs: .venv has the rest."""
    only = ("--no-deps", "--require-hashes", *(f"-r{lock}" for lock in locks))
    command = [*PIP, "install", "--target", str(folder), *only]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        _skip_without_an_index(locks[0])
        pytest.fail(f"{locks[0].name} cannot be installed:\n{done.stderr}")


def _skip_without_an_index(lock: Path) -> None:
    first = re.findall(r"^\S+==\S+", lock.read_text(), re.MULTILINE)[0]
    with tempfile.TemporaryDirectory() as folder:
        command = [*PIP, "download", "--no-deps", "-d", folder, first]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1]
        pytest.skip(f"the tools are not there, nor a package index: {last}")


def _make_movable(programs: Path) -> None:
    """Let programs start the Python that comes first on PATH, not the one that made them."""
    for program in programs.iterdir():
        text = program.read_text()
        program.write_text(re.sub(r"\A#!.*", "#!/usr/bin/env python3", text))


# --- courses ------------------------------------------------------------------------------

CONFIG = """c = get_config()
c.CourseDirectory.course_id = "course"
c.IncludeHeaderFooter.header = "source/header.ipynb"
"""

SCORES = """
import json, sys
from nbgrader.api import Gradebook
with Gradebook("sqlite:///gradebook.db") as book:
    print(json.dumps({
        f"{submitted.student_id}/{notebook.name}/{grade.name}": grade.auto_score
        for submitted in book.assignment_submissions(sys.argv[1])
        for notebook in submitted.notebooks
        for grade in notebook.grades
    }))
"""


def sample_course(folder: Path, tools: Path) -> Path:
    """A course like nbgrader's own, as ``nbgrader quickstart`` makes it, with two submissions."""
    guide = tools / "nbgrader/docs/source/user_guide"
    without = shutil.ignore_patterns("ps1_autotest", "*.html")
    shutil.copytree(guide / "source", folder / "source", ignore=without)
    shutil.copytree(guide / "submitted", folder / "submitted")
    (folder / "nbgrader_config.py").write_text(CONFIG)
    return folder


OWN: Final = {
    "timeout": {"timeout": 0.0},
    "submitted-unchanged": {
        "submitted-changed": 2.0,
        "submitted-cheat-attempt": 1.0,
        "submitted-cheat-attempt-alternative": 1.0,
    },
    "open_relative_file": {"open_relative_file": 10.0},
}
"""nbgrader's own test notebooks: the source, and submissions with the points that they get."""


def own_course(folder: Path, source: str, tools: Path) -> Path:
    """A course whose assignment ps2 is one of nbgrader's own, with its submissions."""
    own = tools / "nbgrader/tests/apps/files"
    course = sample_course(folder, tools)
    books = {course / "source/ps2": source}
    books |= {course / "submitted" / name / "ps2": name for name in OWN[source]}
    for place, name in books.items():
        place.mkdir(parents=True)
        shutil.copy(own / f"{name}.ipynb", place / "problem.ipynb")
        shutil.copy(own / "data.txt", place)
    with (course / "nbgrader_config.py").open("a") as config:
        config.write("c.Execute.timeout = 3\n")
    return course


def add(
    course: Path, assignment: str, *sources: str, student: str, files: Mapping[str, str]
) -> None:
    """An assignment of one notebook whose cells are tests of a point each, and its submission."""
    cells = [
        nbformat.v4.new_code_cell(
            source,
            metadata={
                "nbgrader": {
                    "grade": True,
                    "grade_id": f"test-{number}",
                    "locked": True,
                    "points": 1,
                    "schema_version": 3,
                    "solution": False,
                    "task": False,
                }
            },
        )
        for number, source in enumerate(sources, start=1)
    ]
    plain = {"name": "python3", "display_name": "Python 3", "language": "python"}
    book = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": plain})
    for folder in (course / "source" / assignment, course / "submitted" / student / assignment):
        folder.mkdir(parents=True)
        nbformat.write(book, folder / "problem.ipynb")
        for name, text in files.items():
            (folder / name).write_text(text)


def scores(course: Path, assignment: str, tools: Path) -> dict[str, float]:
    """What the gradebook has for each test: ``student/notebook/cell`` and its points."""
    (course / "scores.py").write_text(SCORES)
    done = typed(f"python scores.py {assignment}", course, beside=tools)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return {name: float(score or 0) for name, score in found.items()}


def totals(found: Mapping[str, float]) -> dict[str, float]:
    """Points of each student."""
    students = {name.split("/")[0] for name in found}
    return {
        student: sum(score for name, score in found.items() if name.startswith(f"{student}/"))
        for student in students
    }
