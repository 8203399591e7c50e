"""Why a kernel died: decided from the facts, and put into words (D5).

The facts are taken before the container is removed: how the kernel process ended, by
its guardian; whether the engine saw the memory limit hit; what the control group
counted. A child that was killed for memory sets the engine's flag and leaves the
kernel alive, so the flag alone decides nothing.
"""

import signal
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from kernel_provider.warden.cgroup import NO_USAGE, Usage

LINE: Final = 300
"""Characters of an error's text that are told."""
MIB: Final = 2**20
_OF_ENGINES: Final = (-signal.SIGHUP, -signal.SIGTERM, -signal.SIGKILL)
"""How engines end what they run when they end, or begin anew."""
_BY_SOMEBODY: Final = "somebody on this machine or the code itself sent it"
_SENT: Final[dict[int, str]] = {
    **dict.fromkeys(
        (signal.SIGABRT, signal.SIGILL, signal.SIGFPE),
        "native code gave up: look at the last native library that was called",
    ),
    signal.SIGTERM: f"the engine, as it was stopped, {_BY_SOMEBODY}",
}


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known of an end.

    ``status`` is the kernel's exit code, or minus the signal that ended it, or None
    where the guardian could not say: then ``engine_status`` is PID 1's. ``before`` is
    what had been counted when the last request was answered, ``memory`` (bytes) and
    ``pids`` are the limits, ``kernel`` the kernelspec that has them. ``violation`` is what
    it broke of the protocol, and ``setting`` names the limit that this was, if one was.
    ``engine_gone`` where the engine that started the sandbox is not there any more.
    """

    status: int | None
    engine_status: int | None
    oom_flag: bool
    usage: Usage
    memory: int
    pids: int = 0
    before: Usage = NO_USAGE
    violation: str = ""
    setting: str = ""
    engine_gone: bool = False
    kernel: str = ""

    @property
    def where(self) -> str:
        """What has the settings, as it is told to people."""
        return where(self.kernel)


@dataclass(frozen=True, kw_only=True)
class Cause:
    """A name for programs, one sentence and a remedy for people, and the exit code.

    ``memory_peak`` is the most that the sandbox had, in bytes; 0 where it is not known.
    """

    name: str
    reason: str
    remedy: str
    exit_code: int
    memory_peak: int = 0

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

SEGMENTATION_FAULT: Final = Cause(
    name="SegmentationFault",
    reason="the kernel crashed in native code (signal 11, SIGSEGV).",
    remedy="Variables are lost; look at the last native library that was called.",
    exit_code=128 + signal.SIGSEGV,
)

ENGINE_GONE: Final = Cause(
    name="EngineGone",
    reason="the container engine was stopped or restarted, and ended its sandboxes.",
    remedy=(
        "Variables are lost. Restart the kernel when the engine runs again; with "
        '"live-restore" in its configuration, kernels outlive it.'
    ),
    exit_code=69,
)


def where(kernel: str) -> str:
    """What has the settings of that kernel, as it is told to people."""
    return f"kernelspec {kernel}" if kernel else "the kernelspec"


def decide(facts: Facts) -> Cause:
    """Name the cause that the facts show."""
    return replace(_cause(facts), memory_peak=min(facts.usage.memory_peak, facts.memory))


def _cause(facts: Facts) -> Cause:
    if facts.violation:
        return _broke_the_protocol(facts)
    status, how = _status(facts)
    killed_for_memory = facts.usage.oom_kills > facts.before.oom_kills or facts.oom_flag
    if status == -signal.SIGKILL and killed_for_memory:
        return _out_of_memory(facts)
    if facts.engine_gone and status in _OF_ENGINES:
        return ENGINE_GONE
    return _killed(-status, how, facts) if status < 0 else _exited(status, facts)


def _status(facts: Facts) -> tuple[int, str]:
    """The kernel's status, and how that came about where it was a signal."""
    if facts.status is not None:
        return facts.status, "not by a limit of its own"
    if facts.engine_status is not None:
        code = facts.engine_status
        return 128 - code if code > 128 else code, "not by a limit of its own"
    return -signal.SIGKILL, "most likely: neither it nor the engine said how it ended"


def _broke_the_protocol(facts: Facts) -> Cause:
    remedy = "Restart the kernel; code in it spoke to the sockets itself"
    if facts.setting:
        remedy += f', or showed too much at once: then raise "{facts.setting}" in {facts.where}'
    return Cause(
        name="ProtocolViolation",
        reason=f"the kernel broke the message protocol ({facts.violation}) and was stopped.",
        remedy=f"{remedy}.",
        exit_code=128 + signal.SIGKILL,
    )


def _out_of_memory(facts: Facts) -> Cause:
    limit = f"{facts.memory / MIB:g} MB"
    peak = min(facts.usage.memory_peak, facts.memory)
    seen = f" (peak {peak / MIB:.0f} MB)" if peak else ""
    return Cause(
        name="MemoryLimitExceeded",
        reason=f"the kernel used more than its {limit} of memory{seen} and was stopped.",
        remedy=(
            f'Variables are lost. Load less at once, or raise "memory" in {facts.where}; '
            "what is in /tmp and /dev/shm counts, too."
        ),
        exit_code=128 + signal.SIGKILL,
    )


def _no_room(facts: Facts) -> Cause:
    """A write to mapped memory that has no room behind it: a full tmpfs, nearly always."""
    return Cause(
        name="SharedMemoryExceeded",
        reason=(
            "the kernel wrote to shared memory that had no room left (signal 7, SIGBUS): "
            "/dev/shm or /tmp was full."
        ),
        remedy=f'Variables are lost. Raise "shm_size" or "tmp_size" in {facts.where}.',
        exit_code=128 + signal.SIGBUS,
    )


def _killed(number: int, how: str, facts: Facts) -> Cause:
    if number == signal.SIGSEGV:
        return SEGMENTATION_FAULT
    if number == signal.SIGBUS:
        return _no_room(facts)
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = "unknown"
    return Cause(
        name="KernelKilled",
        reason=f"the kernel was killed by signal {number} ({name}), {how}{_refused(facts)}.",
        remedy=f"Variables are lost; {_SENT.get(number, _BY_SOMEBODY)}.",
        exit_code=128 + number,
    )


def _exited(status: int, facts: Facts) -> Cause:
    return Cause(
        name="KernelExited",
        reason=f"the kernel process ended with exit code {status}{_refused(facts)}.",
        remedy="Variables are lost; code that ends the process ends the kernel.",
        exit_code=status,
    )


def _refused(facts: Facts) -> str:
    """What libraries that can't start their threads often leave unsaid."""
    if facts.usage.pids_refused <= facts.before.pids_refused:
        return ""
    return (
        f", after its limit of {facts.pids} processes and threads had refused it one "
        f'("pids" in {facts.where})'
    )


def of_output(limit: int, why: str) -> Cause:
    """The end of a kernel that said more than its ``limit`` (bytes); ``why`` it had to."""
    return Cause(
        name="OutputLimitExceeded",
        reason=f"the kernel said more than its {limit / MIB:g} MB of output and {why}.",
        remedy='Variables are lost; write less, or raise "output_limit" in the kernelspec.',
        exit_code=128 + signal.SIGKILL,
    )


def of_time(limit: float, kernel: str) -> Cause:
    """The end of a kernel that went on with a cell beyond its ``limit`` (seconds)."""
    return Cause(
        name="CellTimeout",
        reason=(
            f"the cell ran longer than {limit:g} s and went on after an interrupt; "
            "its kernel was stopped."
        ),
        remedy=(
            f'Variables are lost. Make it quicker, or raise "cell_timeout" in {where(kernel)}.'
        ),
        exit_code=128 + signal.SIGKILL,
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
