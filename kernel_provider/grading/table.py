"""What a person sees of a class being graded: a row for each submission.

Rows of those that are over stay; on a terminal those on their way move below them.
"""

import shutil
import statistics
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final, TextIO

from kernel_provider.grading.model import Progress, State, SubmissionRecord, Verdict
from kernel_provider.run.progress import LIVE_EVERY, PLAIN_EVERY, tell
from kernel_provider.run.text import duration, printable

WIDEST: Final = 32
"""Characters of a student's name in a row."""
GUESSES: Final = 3
"""Submissions that must be done before it is guessed how long the rest takes."""
_WORD: Final = max(len(verdict.words) for verdict in Verdict)
_CLEAR: Final = "\x1b[J"
_GOOD, _OPEN, _BAD = "32", "33", "31"
_COLOURS: Final = {Verdict.PASSED: _GOOD, Verdict.BY_HAND: _OPEN, Verdict.NOT_RUN: _OPEN}


class Table:
    """Rows for ``stream``, as submissions come and go; falls silent where nobody reads."""

    def __init__(self, stream: TextIO, environ: Mapping[str, str]) -> None:
        self._stream = stream
        self._live = stream.isatty() and environ.get("TERM") != "dumb"
        self._coloured = self._live and not environ.get("NO_COLOR")
        self._name = 0
        self._now: dict[str, Progress] = {}
        self._heard: dict[str, float] = {}
        self._drawn = 0
        self._begun = self._shown = time.monotonic()

    def opened(self, students: tuple[str, ...], jobs: int) -> None:
        """The first line says how many there are; the rest are rows."""
        self._name = min(WIDEST, max((len(printable(name)) for name in students), default=0))
        self._now = {name: Progress(student=name, state=State.WAITING) for name in students}
        self._begun = self._shown = time.monotonic()
        many = "1 submission" if len(students) == 1 else f"{len(students)} submissions"
        tell(self._stream, f"grading {many}, {jobs} at a time\n")

    def told(self, progress: Progress) -> None:
        """Keep it for the next look; one that is over gets its row now, once."""
        before = self._now.get(progress.student)
        if before is not None and before.state.is_over:
            return
        self._now[progress.student] = progress
        self._heard[progress.student] = time.monotonic()
        if progress.state.is_over:
            self._draw(self._row(progress))
            if not self._live:
                self._shown = time.monotonic()

    def tick(self) -> None:
        """Show that time passes, now and then."""
        now = time.monotonic()
        if now < self._shown + (LIVE_EVERY if self._live else PLAIN_EVERY):
            return
        self._shown = now
        if self._live:
            self._draw()
        else:
            tell(self._stream, f"... {self._sum()}\n")

    def closed(self) -> None:
        """Leave the rows of those that are over, and nothing else."""
        tell(self._stream, self._up())
        self._drawn = 0

    def _draw(self, row: str = "") -> None:
        """Put a row that stays above those that move, and draw these anew."""
        above = f"{row}\n" if row else ""
        if not self._live:
            tell(self._stream, above)
            return
        up = self._up()
        size = shutil.get_terminal_size()
        moving = [self._row(one) for one in self._now.values() if _moves(one)]
        lines = [*moving[: max(0, size.lines - 3)], self._sum()]
        self._drawn = len(lines)
        below = "".join(f"{self._clip(line, size.columns)}\n" for line in lines)
        tell(self._stream, f"{up}{above}{below}")

    def _up(self) -> str:
        return f"\x1b[{self._drawn}A{_CLEAR}" if self._drawn else ""

    def _row(self, one: Progress) -> str:
        word = one.verdict.words if one.verdict and one.state.is_over else one.state.value
        name = printable(one.student)
        name = name if len(name) <= WIDEST else f"{name[: WIDEST - 3]}..."
        told = printable(_about(one)).replace("\n", " ")
        line = f"{name:<{self._name}}  {_score(one):>9}  {self._time(one):>7}  {told}".rstrip()
        return f"{self._colour(f'{word:<{_WORD}}', one)}  {line}"

    def _time(self, one: Progress) -> str:
        if one.state is State.KEPT:
            return "kept"
        since = 0.0 if one.state.is_over else time.monotonic() - self._heard[one.student]
        return f"{one.seconds + since:.1f} s"

    def _colour(self, word: str, one: Progress) -> str:
        if not self._coloured or one.verdict is None or not one.state.is_over:
            return word
        return f"\x1b[{_COLOURS.get(one.verdict, _BAD)}m{word}\x1b[0m"

    @staticmethod
    def _clip(line: str, columns: int) -> str:
        """Moving rows have no colours, so characters are columns."""
        return line[: columns - 1]

    def _sum(self) -> str:
        states = Counter(one.state for one in self._now.values())
        over = sum(count for state, count in states.items() if state.is_over)
        waiting, graded = states[State.WAITING], states[State.DONE]
        on_their_way = len(self._now) - over - waiting
        told = f"{over} of {len(self._now)} done, {on_their_way} on their way, {waiting} waiting"
        if graded < GUESSES:
            return told
        rest = (time.monotonic() - self._begun) / graded * (on_their_way + waiting)
        return f"{told}; about {duration(max(1, round(rest)))} left"


def _moves(one: Progress) -> bool:
    return not one.state.is_over and one.state is not State.WAITING


def _about(one: Progress) -> str:
    """What a row ends with: the cell that runs, or why it did not go well."""
    if one.state.is_over or not one.total or one.done >= one.total:
        return one.cause
    return f"cell {one.done + 1} of {one.total}: {one.cell}"


def _score(one: Progress) -> str:
    """Points; none for what was not graded, which is not the same as 0."""
    ungraded = one.verdict is not None and not one.verdict.is_graded
    if ungraded or one.state is State.STOPPED or not one.max_score:
        return "-"
    return f"{one.score:g}/{one.max_score:g}"


def summary(records: Sequence[SubmissionRecord]) -> str:
    """What came of a class, in a few lines, for people."""
    counts = Counter(record.verdict for record in records)
    verdicts = ", ".join(f"{counts[one]} {one.words}" for one in Verdict if counts[one])
    lines = [f"{len(records)} submissions: {verdicts}" if records else "no submissions"]
    scores = [record.score for record in records if record.verdict.is_graded]
    if scores:
        most = max(record.max_score for record in records)
        middle = statistics.median(scores)
        lines.append(f"points: {min(scores):g} to {max(scores):g} of {most:g}, median {middle:g}")
    hands = [record.student for record in records if record.needs_hand]
    if hands:
        lines.append(f"points to give by hand: {_listed(hands)}")
    lines += [
        f"not graded: {printable(record.student)}: {printable(record.cause)}"
        for record in records
        if not record.verdict.is_graded
    ]
    return "\n".join(lines)


def _listed(names: Sequence[str], most: int = 10) -> str:
    more = len(names) - most
    told = ", ".join(printable(name) for name in names[:most])
    return f"{told} and {more} more" if more > 0 else told
