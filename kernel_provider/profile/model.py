"""What the runs of a profile are, and what comes out of them."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from kernel_provider.errors import SandboxError
from kernel_provider.profile.memory import Kinds


class ProfileError(SandboxError):
    """There is nothing to profile: it does not run with all that there is."""

    exit_code = 65
    summary = "{subject} does not run well with --memory {memory} --cpus {cpus}: {reason}"
    fix = (
        "make it run first (executor-ml run NOTEBOOK), or let it have more with --memory and "
        "--cpus, under a ceiling that allows it (executor-ml policy)"
    )


class Verdict(StrEnum):
    """How a run bore its limits."""

    FITS = "fits"
    THRASHES = "thrashes"
    SLOW = "too slow"
    KILLED = "out of memory"
    FAILED = "failed"
    STOPPED = "stopped"


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is profiled: a notebook, and the settings that go with it.

    ``files`` are those of the models: the machine forgets what it has read of them before
    each run, so that all runs read the same. ``warm`` is the number of a cell whose time
    alone is told, 0 for none.
    """

    name: str
    notebook: Path
    kernel: str
    overrides: dict[str, object]
    files: tuple[Path, ...] = ()
    warm: int = 0


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Of one run: bytes, and processors."""

    memory: int
    cpus: float


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Memory at one moment, in seconds since the sandbox served."""

    at: float
    kinds: Kinds


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What was counted of one run, in bytes, seconds and shares from 0 to 1.

    ``reason`` says why it failed, ``died`` that it was for memory; ``first`` is the time
    to the first result, from the start of the sandbox, and ``warm`` that of one more.
    ``throttled`` is the share of periods that the quota cut short.
    """

    samples: tuple[Sample, ...] = ()
    seconds: float = 0.0
    first: float | None = None
    warm: float | None = None
    throttled: float = 0.0
    oom_kills: int = 0
    died: bool = False
    late: bool = False
    stopped: bool = False
    reason: str = ""

    @property
    def peak(self) -> Kinds:
        """The most of each kind; they need not have been at one moment."""
        kinds = [sample.kinds for sample in self.samples]
        return Kinds(
            anonymous=max((k.anonymous for k in kinds), default=0),
            shared=max((k.shared for k in kinds), default=0),
            files=max((k.files for k in kinds), default=0),
            kernel=max((k.kernel for k in kinds), default=0),
            reread=max((k.reread for k in kinds), default=0),
            major_faults=max((k.major_faults for k in kinds), default=0),
        )

    @property
    def most(self) -> int:
        """The most memory at one moment, of all kinds."""
        return max((sample.kinds.total for sample in self.samples), default=0)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One run and how it is judged."""

    limits: Limits
    seen: Seen
    verdict: Verdict

    @property
    def fits(self) -> bool:
        """Whether nothing was lost by these limits."""
        return self.verdict is Verdict.FITS


@dataclass(frozen=True, kw_only=True)
class Profile:
    """What is known, in the end or when Ctrl-C came.

    ``memory`` are the runs over memory, of which the first has all that there is, ``cpus``
    those over processors. ``minimum`` is the least memory that was enough, ``below`` the
    most that was not; None is not known.
    """

    subject: str
    memory: tuple[Trial, ...] = ()
    cpus: tuple[Trial, ...] = ()
    minimum: int | None = None
    below: int | None = None
    recommended: Limits | None = None
    complete: bool = False


STEP: Final = 16 << 20
"""Bytes: limits are told in multiples of these."""
