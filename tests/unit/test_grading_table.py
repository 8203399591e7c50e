"""Rows of a class being graded, on a terminal and in a pipe."""

import io
import os
import re
from dataclasses import replace

import pytest
from grades import record, test_cell

from kernel_provider.grading import table as module
from kernel_provider.grading.model import Progress, State, Verdict, Watcher
from kernel_provider.grading.table import Table, summary

RUNNING = Progress(
    student="ada",
    state=State.RUNNING,
    cell="mean",
    done=2,
    total=6,
    score=2.0,
    max_score=6.0,
    seconds=1.5,
)
DONE = replace(RUNNING, state=State.DONE, done=6, score=6.0, verdict=Verdict.PASSED)


class Terminal(io.StringIO):
    """A stream that says it is one."""

    def isatty(self) -> bool:
        """Yes."""
        return True


def screen(text: str) -> list[str]:
    """What a terminal shows after that was written to it."""
    lines: list[str] = []
    for part in re.split(r"(\x1b\[\d+A\x1b\[J)", text):
        up = re.fullmatch(r"\x1b\[(\d+)A\x1b\[J", part)
        if up:
            del lines[len(lines) - int(up[1]) :]
        else:
            lines += part.splitlines()
    return lines


def opened(stream: io.StringIO, *students: str, **environ: str) -> Table:
    """A table of these, two at a time."""
    made = Table(stream, environ)
    watcher: Watcher = made
    watcher.opened(students, 2)
    return made


def test_a_pipe_gets_a_row_for_each_that_is_over() -> None:
    """And only one, whatever comes later."""
    stream = io.StringIO()
    made = opened(stream, "ada", "bob")
    made.told(RUNNING)
    made.tick()
    made.told(DONE)
    made.told(DONE)
    made.told(
        Progress(student="bob", state=State.DONE, verdict=Verdict.BAD_SUBMISSION, cause="no JSON")
    )
    made.closed()
    assert [re.sub(r" +", " ", line) for line in stream.getvalue().splitlines()] == [
        "grading 2 submissions, 2 at a time",
        "passed ada 6/6 1.5 s",
        "bad submission bob - 0.0 s no JSON",
    ]


def test_a_log_gets_a_sign_of_life(monkeypatch: pytest.MonkeyPatch) -> None:
    """When there was none for some time."""
    monkeypatch.setattr(module, "PLAIN_EVERY", -1.0)
    stream = io.StringIO()
    made = opened(stream, "ada", "bob")
    made.told(RUNNING)
    made.tick()
    assert "... 0 of 2 done, 1 on their way, 1 waiting\n" in stream.getvalue()


def test_a_terminal_shows_who_is_on_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Below the rows of those that are over, which stay when the rest has gone."""
    monkeypatch.setattr(module, "LIVE_EVERY", -1.0)
    stream = Terminal()
    made = opened(stream, "ada", "bob", NO_COLOR="1")
    made.told(RUNNING)
    made.told(replace(RUNNING, student="bob", state=State.STARTING))
    made.tick()
    _, ada, bob, told = screen(stream.getvalue())
    assert re.fullmatch(r"running +ada +2/6 +\d\.\d s  cell 3 of 6: mean", ada)
    assert bob.startswith("starting")
    assert told == "0 of 2 done, 2 on their way, 0 waiting"
    made.told(DONE)
    made.tick()
    _, ada, bob, told = screen(stream.getvalue())
    assert ada.startswith("passed")
    assert bob.startswith("starting")
    assert told == "1 of 2 done, 1 on their way, 0 waiting"
    made.closed()
    assert [line.split()[0] for line in screen(stream.getvalue())] == ["grading", "passed"]


def test_a_small_terminal_is_not_overrun(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither its width nor its height: or what was drawn could not be taken away."""
    monkeypatch.setattr(module, "LIVE_EVERY", -1.0)
    monkeypatch.setattr("shutil.get_terminal_size", lambda: os.terminal_size((40, 6)))
    stream = Terminal()
    students = [f"student-{number}" for number in range(20)]
    made = opened(stream, *students)
    for student in students:
        made.told(replace(RUNNING, student=student, cell="x" * 200))
    made.tick()
    shown = screen(stream.getvalue())
    assert len(shown) == 1 + 4
    assert max(len(line) for line in shown) < 40


def test_a_students_text_moves_no_cursor() -> None:
    """Names and causes are printed as text in one line."""
    stream = io.StringIO()
    made = opened(stream, "a\x1b[2Jda")
    made.told(
        Progress(
            student="a\x1b[2Jda",
            state=State.DONE,
            verdict=Verdict.ERROR,
            cause="x\x1b]0;evil\x07\ny",
        )
    )
    assert "\x1b" not in stream.getvalue()
    assert len(stream.getvalue().splitlines()) == 2


def test_colours_are_for_terminals_that_want_them() -> None:
    """Green is for what passed."""
    coloured, plain = Terminal(), Terminal()
    for stream, environ in ((coloured, {}), (plain, {"NO_COLOR": "1"})):
        opened(stream, "ada", **environ).told(DONE)
    assert "\x1b[32mpassed" in coloured.getvalue()
    assert "\x1b[32m" not in plain.getvalue()


def test_those_of_an_earlier_run_are_told_as_such() -> None:
    """So that nobody takes their time for this run's."""
    stream = io.StringIO()
    opened(stream, "ada").told(replace(DONE, state=State.KEPT))
    assert "kept" in stream.getvalue()


def test_the_rest_is_guessed_from_what_is_done() -> None:
    """As soon as there is something to guess from."""
    stream = Terminal()
    students = [f"s{number}" for number in range(10)]
    made = opened(stream, *students)
    for student in students[:3]:
        assert "left" not in stream.getvalue()
        made.told(replace(DONE, student=student))
    assert re.search(
        r"3 of 10 done, 0 on their way, 7 waiting; about \S+ \S+ left", stream.getvalue()
    )


def test_a_summary_counts_and_names_what_was_not_graded() -> None:
    """With the range of points of those that were."""
    good = [record(f"s{n}", test_cell(0, "t", Verdict.PASSED)) for n in range(3)]
    failed = record("s4", test_cell(0, "t", Verdict.FAILED))
    by_hand = record("s5", test_cell(0, "t", Verdict.BY_HAND, points=None))
    bad = record("s6", verdict=Verdict.BAD_SUBMISSION, cause="no JSON")
    assert summary([*good, failed, by_hand, bad]).splitlines() == [
        "6 submissions: 3 passed, 1 by hand, 1 failed, 1 bad submission",
        "points: 0 to 2 of 2, median 2",
        "points to give by hand: s5",
        "not graded: s6: no JSON",
    ]
    assert summary([]) == "no submissions"
