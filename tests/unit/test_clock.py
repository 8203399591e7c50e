"""A clock that jumps moves no deadline: only the monotonic one is waited by."""

import ast
from pathlib import Path

import kernel_provider

PACKAGE = Path(kernel_provider.__file__).parent

TOLD = {
    "builder/wheels.py": "a cache's folders are old by the file system's times",
    "bundle/archive.py": "the time in an archive's entry",
    "commands/ps.py": "how long ago a kernel died",
    "grading/way.py": "when a submission was graded",
    "models/add.py": "the day on which a model was added",
    "session.py": "when a kernel whose warden was killed died",
    "warden/deaths.py": "when a kernel died, and for how many hours that is kept",
    "warden/ending.py": "the same",
    "warden/message.py": "a message's date",
}
"""Where the time of day is told or written, and nothing is waited for."""


def reads_the_clock(tree: ast.AST) -> bool:
    """Whether a module asks for the time of day."""
    asked = {
        f"{node.value.id}.{node.attr}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    }
    return bool(asked & {"time.time", "time.gmtime", "time.localtime", "datetime.now"})


def test_the_time_of_day_decides_nothing() -> None:
    """Every module that reads it is known, and why it does."""
    places = [*PACKAGE.rglob("*.py")]
    assert len(places) > 100
    found = {
        str(path.relative_to(PACKAGE))
        for path in places
        if reads_the_clock(ast.parse(path.read_text(encoding="utf-8")))
    }
    assert found == set(TOLD)
