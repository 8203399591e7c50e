"""Submissions a minute: ``executor-ml grade`` against ``nbgrader autograde``, in turns.

Both grade the well-behaved half of the class, each round a fresh copy of it, on the same
processors of the same machine: nbgrader one after the other in a local kernel, ours each in
a sandbox of its own. Only the grading is timed.
"""

import json
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import classes
import graders
from classes import ASSIGNMENT, Pupil
from pages import typed

BAR: Final = 1.5
WITHIN: Final = 1800.0
HALF: Final = tuple(pupil for pupil in classes.pupils() if pupil.kind.behaves)
WARM_UP: Final = 4
"""Submissions of the first round, which does not count."""


@dataclass(frozen=True, kw_only=True)
class Round:
    """Submissions a minute of either, one after the other."""

    sandbox: float
    local: float

    @property
    def ratio(self) -> float:
        """How many times as many the sandbox's are."""
        return self.sandbox / self.local

    def line(self) -> str:
        """As people read it."""
        return f"{self.sandbox:.1f} against {self.local:.1f} a minute: {self.ratio:.2f}"


def compare(rounds: int, output: Path) -> bool:
    """Measure, print, write; whether the bar was met."""
    tools, processors = graders.installed(), len(os.sched_getaffinity(0))
    print(f"grading {len(HALF)} submissions on {processors} processors, in turns")
    _round(HALF[:WARM_UP], tools)
    made = []
    for number in range(1, rounds + 1):
        made.append(_round(HALF, tools))
        print(f"round {number}: {made[-1].line()}", flush=True)
    ratios = sorted(one.ratio for one in made)
    middle = statistics.median(ratios)
    met = middle >= BAR
    print(
        f"submissions a minute, sandbox to local: {ratios[0]:.2f}/{middle:.2f}/{ratios[-1]:.2f} "
        f"(min/median/max)  bar {BAR}  {'ok' if met else 'MISSED'}"
    )
    output.parent.mkdir(exist_ok=True)
    output.write_text(json.dumps([asdict(one) for one in made], indent=1), encoding="utf-8")
    return met


def _round(class_: Sequence[Pupil], tools: Path) -> Round:
    ours, theirs = f"executor-ml grade . {ASSIGNMENT}", f"nbgrader autograde {ASSIGNMENT}"
    rates = [len(class_) * 60 / _seconds(command, class_, tools) for command in (ours, theirs)]
    return Round(sandbox=rates[0], local=rates[1])


def _seconds(command: str, class_: Sequence[Pupil], tools: Path) -> float:
    """How long it takes, from the command to its end, on a fresh copy of the course."""
    with tempfile.TemporaryDirectory() as folder:
        course = classes.course(Path(folder, "course"), class_)
        _do(f"nbgrader generate_assignment {ASSIGNMENT}", course, tools)
        begun = time.perf_counter()
        _do(command, course, tools)
        return time.perf_counter() - begun


def _do(command: str, course: Path, tools: Path) -> None:
    done = typed(command, course, beside=tools, within=WITHIN)
    if done.returncode:
        message = f"{command} ended with {done.returncode}:\n{done.stderr}"
        raise RuntimeError(message)
