"""Judges that many checks share."""

from collections import Counter
from collections.abc import Callable
from typing import Any

from kernel_provider.policy import KernelPolicy
from kernel_provider.verify.look import Look
from kernel_provider.verify.model import Judge, Need, Verdict, verdict

DONE = "done"


def refused(*errors: str) -> Judge:
    """Every attempt of the report was answered with one of these errors."""

    def judge(report: Any, _look: Look) -> Verdict:
        wrong = {name: told for name, told in report.items() if told not in errors}
        if wrong or not report:
            return verdict(held=False, happened=listed(wrong) or "nothing could be tried")
        counts = Counter(report.values())
        told = ", ".join(f"{count} {error}" for error, count in counts.most_common())
        return verdict(held=True, happened=f"refused: {told}")

    return judge


def listed(things: Any, most: int = 4) -> str:
    """Some of many, in a line."""
    if isinstance(things, dict):
        things = [f"{name}: {value}" for name, value in things.items()]
    things = [str(thing) for thing in things]
    more = f" and {len(things) - most} more" if len(things) > most else ""
    return ", ".join(things[:most]) + more


def none(found: str, *, of: Callable[[Any, Look], Any] = lambda report, _look: report) -> Judge:
    """What the report lists, or ``of`` makes of it, is nothing; ``found`` says what."""

    def judge(report: Any, look: Look) -> Verdict:
        things = of(report, look)
        if things:
            return verdict(held=False, happened=f"{found}: {listed(things)}")
        return verdict(held=True, happened=f"{found}: none")

    return judge


def both(one: Judge, other: Judge) -> Judge:
    """Two judges of one report; it is held where both say so."""

    def judge(report: Any, look: Look) -> Verdict:
        words = [one(report, look), other(report, look)]
        worst = max(words, key=lambda word: word.status == "not held")
        happened = worst.happened if worst.status == "not held" else words[0].happened
        return Verdict(status=worst.status, happened=happened)

    return judge


def unless(reason: str, is_so: Callable[[KernelPolicy], object]) -> Need:
    """Not applicable, for that reason, where it is so."""
    return lambda policy: reason if is_so(policy) else ""
