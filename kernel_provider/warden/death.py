"""Why a kernel died: decided from the facts, and put into words (D5).

The facts are taken before the container is removed: how the kernel process ended, by
its guardian; whether the engine saw the memory limit hit; what the control group
counted. A child that was killed for memory sets the engine's flag and leaves the
kernel alive, so the flag alone decides nothing.
"""

import signal
from dataclasses import asdict, dataclass
from typing import Any, Final

from kernel_provider.warden.cgroup import Usage

LINE: Final = 300
"""Characters of an error's text that are told."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known of an end.

    ``status`` is the kernel's exit code, or minus the signal that ended it, or None
    where the guardian could not say: then ``engine_status`` is PID 1's.
    ``oom_kills_before`` counts what earlier requests had killed for memory.
    """

    status: int | None
    engine_status: int | None
    oom_flag: bool
    usage: Usage
    memory: int
    oom_kills_before: int = 0
    violation: str = ""


@dataclass(frozen=True, kw_only=True)
class Cause:
    """A name for programs, one sentence and a remedy for people, and the exit code."""

    name: str
    reason: str
    remedy: str
    exit_code: int

    def to_wire(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.name}: {self.reason} {self.remedy}"


TERMINATED: Final = Cause(
    name="WardenLost",
    reason="the process beside the sandbox was told to end (SIGTERM), and removed it.",
    remedy="Restart the kernel; the machine may be shutting down.",
    exit_code=70,
)


def decide(facts: Facts) -> Cause:
    """Name the cause that the facts show."""
    status = facts.status
    if status is None and facts.engine_status is not None:
        code = facts.engine_status
        status = 128 - code if code > 128 else code
    how = "not by a limit of its own"
    if status is None:
        status = -int(signal.SIGKILL)
        how = "most likely: neither it nor the engine said how it ended"
    if facts.violation:
        return Cause(
            name="ProtocolViolation",
            reason=f"the kernel broke the message protocol ({facts.violation}) and was stopped.",
            remedy=(
                "Restart the kernel; code in it spoke to the sockets itself, "
                "or showed too much at once."
            ),
            exit_code=128 + signal.SIGKILL,
        )
    if status == -signal.SIGKILL and (
        facts.usage.oom_kills > facts.oom_kills_before or facts.oom_flag
    ):
        return _out_of_memory(facts)
    if status == -signal.SIGSEGV:
        return Cause(
            name="SegmentationFault",
            reason="the kernel crashed in native code (signal 11, SIGSEGV).",
            remedy="Variables are lost; look at the last native library that was called.",
            exit_code=128 + signal.SIGSEGV,
        )
    if status < 0:
        return _killed(-status, how)
    return Cause(
        name="KernelExited",
        reason=f"the kernel process ended with exit code {status}.",
        remedy="Variables are lost; code that ends the process ends the kernel.",
        exit_code=status,
    )


def _out_of_memory(facts: Facts) -> Cause:
    limit = f"{facts.memory / 2**20:g} MB"
    peak = min(facts.usage.memory_peak, facts.memory)
    seen = f" (peak {peak / 2**20:.0f} MB)" if peak else ""
    return Cause(
        name="MemoryLimitExceeded",
        reason=f"the kernel used more than its {limit} of memory{seen} and was stopped.",
        remedy='Variables are lost; load less at once, or raise "memory" in the kernelspec.',
        exit_code=128 + signal.SIGKILL,
    )


def _killed(number: int, how: str) -> Cause:
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = "unknown"
    who = "somebody on this machine or the code itself"
    if number == signal.SIGTERM:
        who = "the engine, as it was stopped, somebody on this machine or the code itself"
    return Cause(
        name="KernelKilled",
        reason=f"the kernel was killed by signal {number} ({name}), {how}.",
        remedy=f"Variables are lost; {who} sent it.",
        exit_code=128 + number,
    )


def of_crash(error: Exception) -> Cause:
    """The end of a kernel whose warden met an error that nobody foresaw."""
    return Cause(
        name="WardenFailed",
        reason=f"the process beside the sandbox failed ({in_one_line(error)}) and removed it.",
        remedy="Restart the kernel; if it happens again, report it with the server's log.",
        exit_code=70,
    )


def in_one_line(error: Exception) -> str:
    """An error's type and the beginning of its text."""
    text = f"{type(error).__name__}: {error}".replace("%", "")
    return " ".join(text.split())[:LINE].removesuffix(":")
