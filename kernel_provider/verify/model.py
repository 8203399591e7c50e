"""What a check is, and what comes of it.

A check is one entry: a promise, code that attacks it from inside and reports as data,
and a judge on the host, which decides from that report and from what can be seen from
outside. Nothing that a sandbox says is believed where the host can look itself.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from kernel_provider.policy import KernelPolicy
    from kernel_provider.verify.look import Look


class Status(StrEnum):
    """How a check ended. What could not be tried is never held."""

    HELD = "held"
    NOT_HELD = "not held"
    NOT_APPLICABLE = "not applicable"


class Where(StrEnum):
    """The sandbox that a check runs in; those of one kind share one while it lives.

    ``ROUGH`` is one that may be starved or end; the checks of ``STOPPED`` and ``EXITED``
    run all first, then the sandbox is stopped by its owner, or the kernel ends itself,
    and then they are judged. ``PAIR`` runs in two kernels at once, one against the other.
    """

    PLAIN = "plain"
    ROUGH = "rough"
    STOPPED = "stopped"
    EXITED = "exited"
    PAIR = "pair"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A judge's word, and what it saw."""

    status: Status
    happened: str


def verdict(held: object, happened: str) -> Verdict:
    """Held or not, by whether ``held`` is true."""
    return Verdict(status=Status.HELD if held else Status.NOT_HELD, happened=happened)


PATIENCE: Final = 60.0
"""Seconds that an answer may take on a slow machine."""

Judge = Callable[[Any, "Look"], Verdict]
Need = Callable[["KernelPolicy"], str]


def nothing(_policy: "KernelPolicy") -> str:
    """No reason against it: the check runs anywhere."""
    return ""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One promise and how it is attacked.

    ``code`` runs inside after ``kernel_provider/verify/_inside.py`` and leaves its
    ``report``, which is JSON; ``v`` holds what the host knows (see ``Host.values``). In a
    ``PAIR``, ``first`` runs in the other kernel before, and ``v["first"]`` is its report.
    ``needs`` gives the reason why it does not apply here, or nothing; all apply at the
    end of a sandbox. ``patience`` are the seconds until its sandbox is given up.
    """

    name: str
    promise: str
    tried: str
    code: str
    judge: Judge
    where: Where = Where.PLAIN
    first: str = ""
    needs: Need = nothing
    patience: float = PATIENCE


@dataclass(frozen=True, kw_only=True)
class Result:
    """One row of the table."""

    group: str
    name: str
    promise: str
    tried: str
    happened: str
    status: Status


@dataclass(frozen=True, kw_only=True)
class Report:
    """All of one run: of which kernel, on what, for how many seconds."""

    kernel: str
    image: str
    engine: str
    cgroup: int
    seconds: float
    checks: tuple[Result, ...] = field(default=())

    @property
    def held(self) -> bool:
        """Whether every promise that could be tried was held."""
        return all(result.status is not Status.NOT_HELD for result in self.checks)

    def counts(self) -> Mapping[Status, int]:
        """How many checks ended how."""
        return {status: sum(r.status is status for r in self.checks) for status in Status}

    def to_json(self) -> dict[str, Any]:
        """JSON-ready, with the sum of it first."""
        return {"held": self.held, **asdict(self)}


DIED: Final = "the kernel died"
