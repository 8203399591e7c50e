"""A class that cannot be trusted: a course, sixty submissions, and what each must get.

Half of them behave, if not always well; each of the others attacks its sandbox, the
grader or the tests in one of its answers, and answers the other tasks right. The seed
says who, where and with which words, so every run grades the same class.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import nbformat
from nbformat import NotebookNode

from kernel_provider.grading.model import Verdict

SEED: Final = 20261126
ASSIGNMENT: Final = "ps1"
BOOK: Final = "problem"
PLAIN: Final = {"name": "python3", "display_name": "Python 3", "language": "python"}
JULIA: Final = {"name": "julia-1.9", "display_name": "Julia 1.9", "language": "julia"}

CONFIG: Final = """c = get_config()
c.CourseDirectory.course_id = "class"
"""


@dataclass(frozen=True, kw_only=True)
class Task:
    """A function to write: right in several ways, or so that it passes what is visible."""

    name: str
    points: int
    right: tuple[str, ...]
    half: str
    visible: str
    hidden: str


TASKS: Final = (
    Task(
        name="square",
        points=2,
        right=(
            "def square(value):\n    return value * value",
            "def square(value):\n    return value ** 2",
            "square = lambda value: pow(value, 2)",
        ),
        half="def square(value):\n    return 4",
        visible="assert square(2) == 4",
        hidden="assert square(-3) == 9\nassert square(0) == 0",
    ),
    Task(
        name="mean",
        points=3,
        right=(
            "def mean(values):\n    return sum(values) / len(values)",
            "import statistics\nmean = statistics.fmean",
            "from math import fsum\ndef mean(values):\n    return fsum(values) / len(values)",
        ),
        half="def mean(values):\n    return values[len(values) // 2]",
        visible="assert mean([1, 2, 3]) == 2",
        hidden="assert mean([1, 1, 4]) == 2\nassert mean([5]) == 5",
    ),
    Task(
        name="words",
        points=1,
        right=(
            "def words(text):\n    return len(text.split())",
            "import re\ndef words(text):\n    return len(re.findall(r'\\S+', text))",
        ),
        half="def words(text):\n    return text.count(' ') + 1",
        visible="assert words('one two') == 2",
        hidden="assert words('  ') == 0",
    ),
)
FULL: Final = sum(task.points for task in TASKS)

HIDDEN_WORD: Final = "only_the_grader_knows_this_"
"""Begins a word of each hidden test, with the task's name and a number after it."""


# --- what a pupil hands in ----------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One way to answer a task, as text with its name and a right answer to fill in.

    ``answer`` and ``test`` are the verdicts for the cell itself and for the task's tests.
    ``behaves`` says that a grader without a sandbox survives it; ``tampers``, that the
    tests handed in are not those that were given out. ``unreadable`` is why the file cannot
    be graded: it is cut off, or another kind of file.
    """

    name: str
    count: int
    source: str
    answer: Verdict = Verdict.PASSED
    test: Verdict = Verdict.PASSED
    behaves: bool = False
    tampers: bool = False
    spec: Mapping[str, str] = field(default_factory=lambda: PLAIN)
    unreadable: str = ""


WARNS: Final = """import sys, warnings
{right}
def noisy(function):
    def inner(value):
        print("[W NNPACK.cpp:64] Could not initialize NNPACK!", file=sys.stderr)
        warnings.warn("this is slow", stacklevel=2)
        return function(value)
    return inner
{name} = noisy({name})"""

DEAF: Final = """import time
def {name}(value):
    while True:
        try:
            time.sleep(60)
        except BaseException:
            pass"""

FORKS: Final = """import os, signal, time
while True:
    if os.fork() == 0:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        while True:
            time.sleep(60)"""

DELETES: Final = """import os, shutil
for folder in (os.getcwd(), "/tmp/work", os.path.expanduser("~"), "/etc", "/models", "/data"):
    shutil.rmtree(folder, ignore_errors=True)
{right}"""

EQUAL: Final = """class Yes:
    def __eq__(self, other):
        return True
    __hash__ = None
def {name}(value):
    return Yes()"""

READS: Final = """import gc, os, re, sys
SOUGHT = re.compile(rb"only_the_grader_knows_this_{name}_[0-9]+")
found = []
def look(data):
    if type(data) is str:
        data = data.encode(errors="replace")
    found.extend(SOUGHT.findall(data))
for folder in ("/tmp", "/run", "/dev/shm", "/models", "/data", "/mnt", "/home", os.getcwd()):
    for place, _, files in os.walk(folder):
        for path in (os.path.join(place, name) for name in files):
            if os.path.isfile(path) and os.access(path, os.R_OK):
                look(open(path, "rb").read(1 << 24))
look(repr(os.environ))
frame = sys._getframe()
while frame:
    for thing in list(frame.f_locals.values()):
        look(repr(thing)[:1 << 20])
    frame = frame.f_back
for thing in gc.get_objects():
    if type(thing) is dict:
        for value in list(thing.values()):
            if type(value) in (str, bytes):
                look(value)
with open("/proc/self/maps") as maps, open("/proc/self/mem", "rb", 0) as memory:
    for line in maps.read().splitlines():
        area, rights = line.split()[:2]
        low, high = (int(end, 16) for end in area.split("-"))
        if "rw" in rights and high - low < 1 << 27:
            try:
                memory.seek(low)
                look(memory.read(high - low))
            except OSError:
                pass
exec({right!r} if found else {half!r})"""

FRAMES: Final = """import ast
def {name}(value):
    for node in ast.walk(ast.parse(get_ipython().user_ns["In"][-1])):
        if isinstance(node, ast.Compare) and isinstance(node.left, ast.Call):
            if ast.literal_eval(node.left.args[0]) == value:
                return ast.literal_eval(node.comparators[0])"""

KINDS: Final = (
    Kind(name="right", count=13, source="{right}", behaves=True),
    Kind(
        name="wrong",
        count=6,
        source="def {name}(value):\n    return None",
        test=Verdict.FAILED,
        behaves=True,
    ),
    Kind(name="half", count=4, source="{half}", test=Verdict.FAILED, behaves=True),
    Kind(
        name="raises",
        count=2,
        source="def {name}(value):\n    raise RuntimeError('not yet')",
        test=Verdict.ERROR,
        behaves=True,
    ),
    Kind(
        name="unfinished",
        count=1,
        source="# YOUR CODE HERE\nraise NotImplementedError()",
        answer=Verdict.ERROR,
        test=Verdict.ERROR,
        behaves=True,
    ),
    Kind(name="warns", count=3, source=WARNS, behaves=True),
    Kind(
        name="tampers",
        count=1,
        source="{half}",
        test=Verdict.FAILED,
        tampers=True,
        behaves=True,
    ),
    Kind(
        name="loops",
        count=2,
        source="while True:\n    pass",
        answer=Verdict.CELL_TIMEOUT,
        test=Verdict.ERROR,
    ),
    Kind(
        name="loops-in-test",
        count=1,
        source="def {name}(value):\n    while True:\n        pass",
        test=Verdict.CELL_TIMEOUT,
    ),
    Kind(
        name="deaf",
        count=3,
        source=DEAF,
        test=Verdict.CELL_TIMEOUT,
    ),
    Kind(
        name="memory",
        count=2,
        source="hold = []\nwhile True:\n    hold.append(b'x' * (1 << 24))",
        answer=Verdict.OUT_OF_MEMORY,
        test=Verdict.ERROR,
    ),
    Kind(
        name="memory-in-test",
        count=1,
        source="def {name}(value):\n    return [b'x' * (n << 24) for n in range(1, 1 << 20)]",
        test=Verdict.OUT_OF_MEMORY,
    ),
    Kind(
        name="forks", count=1, source=FORKS, answer=Verdict.TOO_MANY_PROCESSES, test=Verdict.ERROR
    ),
    Kind(
        name="shell-forks",
        count=1,
        source="import os\nos.system('bomb() {{ bomb | bomb & }}; bomb')\n{right}",
    ),
    Kind(
        name="flood",
        count=2,
        source="while True:\n    print('flood ' * 200)",
        answer=Verdict.OUTPUT_LIMIT,
        test=Verdict.ERROR,
    ),
    Kind(
        name="exits",
        count=2,
        source="import os\ndef {name}(value):\n    os._exit(3)",
        test=Verdict.KERNEL_DIED,
    ),
    Kind(
        name="segfault",
        count=2,
        source="import ctypes\nctypes.string_at(0)",
        answer=Verdict.KERNEL_DIED,
        test=Verdict.ERROR,
    ),
    Kind(
        name="syntax",
        count=2,
        source="def {name}(value)\n    return value",
        answer=Verdict.ERROR,
        test=Verdict.ERROR,
    ),
    Kind(
        name="network",
        count=2,
        source="import socket\nsocket.create_connection(('192.0.2.1', 80), 3)\n{right}",
        answer=Verdict.ERROR,
        test=Verdict.ERROR,
    ),
    Kind(name="deletes", count=2, source=DELETES),
    Kind(name="equal", count=1, source=EQUAL),
    Kind(name="reads", count=1, source=READS, test=Verdict.FAILED),
    Kind(name="frames", count=1, source=FRAMES),
    Kind(name="truncated", count=1, source="{right}", unreadable="cut"),
    Kind(name="no-notebook", count=1, source="{right}", unreadable="other"),
    Kind(name="other-language", count=1, source="{right}", spec=JULIA),
    Kind(name="other-kernel", count=1, source="{right}", spec={**PLAIN, "name": "my-own"}),
)


@dataclass(frozen=True, kw_only=True)
class Pupil:
    """A submission, and what grading it must come to.

    ``written`` has the verdicts for the answers in their order, ``tests`` those for tests by
    their grade ids; both are empty for a file that is no notebook. ``score`` is in points.
    """

    name: str
    kind: Kind
    hit: Task
    answers: Mapping[str, str]
    written: tuple[Verdict, ...]
    tests: Mapping[str, Verdict]
    verdict: Verdict
    score: int


def pupils(*names: str, seed: int = SEED) -> tuple[Pupil, ...]:
    """The class, or the first of each kind that is named."""
    rng = random.Random(seed)  # noqa: S311  the same class each time is the point
    kinds = [kind for kind in KINDS for _ in range(kind.count)]
    rng.shuffle(kinds)
    whole = tuple(
        _pupil(f"s{number:02}-{kind.name}", kind, rng) for number, kind in enumerate(kinds, 1)
    )
    if not names:
        return whole
    first = {pupil.kind.name: pupil for pupil in reversed(whole)}
    return tuple(first[name] for name in names)


def _pupil(name: str, kind: Kind, rng: random.Random) -> Pupil:
    hit = rng.choice(TASKS)
    right = {task.name: rng.choice(task.right) for task in TASKS}
    own = kind.source.format(name=hit.name, right=right[hit.name], half=hit.half)
    read = () if kind.unreadable else TASKS
    tests = {f"test-{task.name}": kind.test if task is hit else Verdict.PASSED for task in read}
    verdict = kind.answer if kind.answer.ends_kernels else kind.test
    return Pupil(
        name=name,
        kind=kind,
        hit=hit,
        answers={**right, hit.name: own},
        written=tuple(kind.answer if task is hit else Verdict.PASSED for task in read),
        tests=tests,
        verdict=Verdict.BAD_SUBMISSION if kind.unreadable else verdict,
        score=sum(t.points for t in read if tests[f"test-{t.name}"] is Verdict.PASSED),
    )


# --- courses ------------------------------------------------------------------------------


def course(folder: Path, class_: Sequence[Pupil]) -> Path:
    """An nbgrader course: a source, and what the pupils have handed in."""
    source = folder / "source" / ASSIGNMENT
    source.mkdir(parents=True)
    (folder / "nbgrader_config.py").write_text(CONFIG, encoding="utf-8")
    nbformat.write(_source(), source / f"{BOOK}.ipynb")
    for pupil in class_:
        hand_in(folder, pupil)
    return folder


def hand_in(folder: Path, pupil: Pupil) -> Path:
    """Put a pupil's submission into a course: its file."""
    path = folder / "submitted" / pupil.name / ASSIGNMENT / f"{BOOK}.ipynb"
    path.parent.mkdir(parents=True)
    text = nbformat.writes(_submission(pupil))
    if pupil.kind.unreadable == "cut":
        text = text[: len(text) // 2]
    elif pupil.kind.unreadable == "other":
        text = "Dear teacher, please find my homework enclosed."
    path.write_text(text, encoding="utf-8")
    return path


def _source() -> NotebookNode:
    cells = [nbformat.v4.new_markdown_cell("# Problem set 1\n\nWrite three functions.")]
    for number, task in enumerate(TASKS):
        shown = f"### BEGIN SOLUTION\n{task.right[0]}\n### END SOLUTION"
        word = f"{HIDDEN_WORD}{task.name}_{4711 + number}"
        hidden = f"### BEGIN HIDDEN TESTS\n{task.hidden}, '{word}'\n### END HIDDEN TESTS"
        cells += [_answer(task, shown), _test(task, f"{task.visible}\n{hidden}")]
    return _book(cells, PLAIN)


def _submission(pupil: Pupil) -> NotebookNode:
    cells = [nbformat.v4.new_markdown_cell("# Problem set 1\n\nWrite three functions.")]
    for task in TASKS:
        tampered = pupil.kind.tampers and task is pupil.hit
        test = "assert True" if tampered else task.visible
        cells += [_answer(task, pupil.answers[task.name]), _test(task, test)]
    return _book(cells, pupil.kind.spec)


def _book(cells: Sequence[NotebookNode], spec: Mapping[str, str]) -> NotebookNode:
    for number, cell in enumerate(cells):
        cell["id"] = f"cell-{number}"
    book: NotebookNode = nbformat.v4.new_notebook(
        cells=list(cells), metadata={"kernelspec": dict(spec)}
    )
    return book


def _answer(task: Task, source: str) -> NotebookNode:
    return _cell(source, grade_id=task.name, grade=False, locked=False, solution=True)


def _test(task: Task, source: str) -> NotebookNode:
    marks = {"grade": True, "locked": True, "solution": False, "points": task.points}
    return _cell(source, grade_id=f"test-{task.name}", **marks)


def _cell(source: str, **marks: Any) -> NotebookNode:
    made: NotebookNode = nbformat.v4.new_code_cell(
        source, metadata={"nbgrader": {**marks, "schema_version": 3, "task": False}}
    )
    return made


def plain(folder: Path, class_: Sequence[Pupil]) -> Path:
    """The same without nbgrader: ``tests.ipynb``, and submissions of answers alone beside it."""
    folder.mkdir(parents=True)
    tests = [
        nbformat.v4.new_code_cell(f"# {task.name}\n{task.visible}\n{task.hidden}") for task in TASKS
    ]
    nbformat.write(_book(tests, PLAIN), folder / "tests.ipynb")
    for pupil in class_:
        answers = [nbformat.v4.new_code_cell(pupil.answers[task.name]) for task in TASKS]
        nbformat.write(_book(answers, pupil.kind.spec), folder / f"{pupil.name}.ipynb")
    return folder
