"""A sandbox's control group, looked at from outside: what holds, what it used, who is in.

The engine is asked for limits and says that it set them; what counts is what the
kernel says (D6). Versions 1 and 2 are read by the same names.
https://docs.kernel.org/admin-guide/cgroup-v2.html
"""

import errno
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

UNLIMITED: Final = -1


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Counters at one moment; bytes and numbers, 0 where the kernel does not say."""

    memory_peak: int
    oom_kills: int
    pids_refused: int


NO_USAGE: Final = Usage(memory_peak=0, oom_kills=0, pids_refused=0)


@dataclass(frozen=True, kw_only=True)
class Load:
    """What a group has now, and how long it has run; times are µs since it was made.

    ``periods`` are those in which it ran, ``throttled`` those that its quota cut short.
    """

    memory: int
    pids: int
    cpu_time: int
    periods: int
    throttled: int


class Cgroup:
    """The control group of a process, found once while it is alive.

    ``proc`` is where the kernel tells of processes. Raises OSError where the process or
    its group cannot be seen from here.
    """

    def __init__(self, pid: int, *, proc: str = "/proc") -> None:
        paths: dict[str, str] = {}
        with open(f"{proc}/{pid}/cgroup", encoding="ascii") as file:
            for line in file:
                _, controllers, path = line.rstrip("\n").split(":", 2)
                for controller in controllers.split(","):
                    paths[controller] = path
        self.unified = "memory" not in paths
        mounts = _mounts(proc)
        wanted = [""] if self.unified else ["memory", "pids", "cpu"]
        missing = [name for name in wanted if name not in mounts or name not in paths]
        if missing:
            raise OSError(errno.ENOENT, f"no control group for {missing[0] or 'anything'}")
        wanted += [name for name in ("cpuacct",) if name in mounts and name in paths]
        self._folders = {c: mounts[c].rstrip("/") + paths[c] for c in wanted}

    def is_named(self, name: str) -> bool:
        """Whether it has ``name`` in its path, for every controller.

        A process that is exiting is shown in the root group of version 1's controllers,
        and still in its own of version 2.
        """
        return all(name in folder for folder in self._folders.values())

    def limits(self) -> dict[str, int]:
        """Memory, memory with swap (bytes), pids, and processor quota and period (µs)."""
        if self.unified:
            quota, period = self._read("cpu", "cpu.max").split()
            memory = _number(self._read("memory", "memory.max"))
            swap = _number(self._read("memory", "memory.swap.max"))
            total = UNLIMITED if UNLIMITED in (memory, swap) else memory + swap
            return {
                "memory": memory,
                "memory+swap": total,
                "pids": _number(self._read("pids", "pids.max")),
                "cpu_quota": _number(quota),
                "cpu_period": int(period),
            }
        return {
            "memory": _number(self._read("memory", "memory.limit_in_bytes")),
            "memory+swap": _number(self._read("memory", "memory.memsw.limit_in_bytes")),
            "pids": _number(self._read("pids", "pids.max")),
            "cpu_quota": _number(self._read("cpu", "cpu.cfs_quota_us")),
            "cpu_period": int(self._read("cpu", "cpu.cfs_period_us")),
        }

    def usage(self) -> Usage:
        """Read the counters; zeros once the group is gone."""
        names = (
            ("memory.peak", "memory.events")
            if self.unified
            else (
                "memory.max_usage_in_bytes",
                "memory.oom_control",
            )
        )
        return Usage(
            memory_peak=int(self._read_or("memory", names[0], "0")),
            oom_kills=_field(self._read_or("memory", names[1], ""), "oom_kill"),
            pids_refused=_field(self._read_or("pids", "pids.events", ""), "max"),
        )

    def load(self) -> Load:
        """Read what is in use now; zeros once the group is gone."""
        if self.unified:
            memory = self._read_or("memory", "memory.current", "0")
            time = _field(self._read_or("cpu", "cpu.stat", ""), "usage_usec")
        else:
            memory = self._read_or("memory", "memory.usage_in_bytes", "0")
            time = int(self._read_or("cpuacct", "cpuacct.usage", "0")) // 1000
        stat = self._read_or("cpu", "cpu.stat", "")
        return Load(
            memory=int(memory),
            pids=int(self._read_or("pids", "pids.current", "0")),
            cpu_time=time,
            periods=_field(stat, "nr_periods"),
            throttled=_field(stat, "nr_throttled"),
        )

    def text(self, controller: str, name: str) -> str:
        """What one of its files says; empty where it is not there, or the group is gone."""
        return self._read_or(controller, name, "")

    def processes(self) -> tuple[int, ...]:
        """Pids of everybody in the group; none once it is gone."""
        return tuple(int(pid) for pid in self._read_or("pids", "cgroup.procs", "").split())

    def _read(self, controller: str, name: str) -> str:
        folder = self._folders["" if self.unified else controller]
        with open(f"{folder}/{name}", encoding="ascii") as file:
            return file.read().strip()

    def _read_or(self, controller: str, name: str, default: str) -> str:
        try:
            return self._read(controller, name)
        except OSError:
            return default


def mismatch(found: Mapping[str, int], asked: Mapping[str, int]) -> str | None:
    """Name the first limit that does not read back as it was asked for, if one does not."""
    return next((key for key, value in asked.items() if found[key] != value), None)


def _mounts(proc: str) -> dict[str, str]:
    """Where each controller is mounted; version 2 under the empty name."""
    mounts: dict[str, str] = {}
    with open(f"{proc}/self/mountinfo", encoding="utf-8") as file:
        for line in file:
            left, _, right = line.partition(" - ")
            kind, _, options = right.split(" ", 2)
            place = left.split(" ")[4]
            if kind == "cgroup2":
                mounts.setdefault("", place)
            elif kind == "cgroup":
                for option in options.strip().split(","):
                    mounts.setdefault(option, place)
    return mounts


def _number(text: str) -> int:
    """A limit; "max" and version 1's page-aligned infinity are UNLIMITED."""
    if text == "max":
        return UNLIMITED
    value = int(text)
    return UNLIMITED if value >= 1 << 60 else value


def _field(text: str, name: str) -> int:
    for line in text.splitlines():
        key, _, value = line.partition(" ")
        if key == name:
            return int(value)
    return 0


def is_alive(pid: int) -> bool:
    """Whether a process of that number runs (a zombie does not)."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            return file.read().rpartition(")")[2].split()[0] not in {"Z", "X"}
    except OSError:
        return False


def start_time(pid: int) -> str:
    """When a process started, in clock ticks since boot; empty where there is none."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            return file.read().rpartition(")")[2].split()[19]
    except OSError:
        return ""


def identity(pid: int) -> str:
    """Name a process for good: boot, pid namespace, pid and start time."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        boot = file.read().strip()
    space = os.stat("/proc/self/ns/pid").st_ino
    return f"{boot}:{space}:{pid}:{start_time(pid)}"
