"""What a sandbox uses of what it has, in the words of ipykernel's ``usage_reply``.

ipykernel itself asks psutil, which sees the memory and the processors of the host. The
control group knows the sandbox's own, so that a panel such as jupyter-resource-usage's
shows those: what it calls the host is the sandbox. Loaded at the first request, not before.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Any

CGROUP = "/sys/fs/cgroup"

SPAN = 0.5
"""Seconds over which processor time is averaged at least: a quota holds for a tenth of
one, and over less a sandbox seems to have used more than it has."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """A control group at one moment: bytes, and seconds. ``stat`` is its memory by kind."""

    at: float
    cpus: float
    cpu_time: float
    limit: int
    usage: int
    kernel: int
    stat: dict[str, int]


class Meter:
    """Answers one request after the other; processor time is counted from one to the next."""

    def __init__(self, root: str = CGROUP) -> None:
        self._root = root
        self._begun: Reading | None = None
        self._busy = 0.0

    def content(self) -> dict[str, Any]:
        """What a ``usage_reply`` holds; the first one has no processor time, as ipykernel's."""
        now = read(self._root)
        if self._begun is None:
            self._begun = now
        elif now.at - self._begun.at >= SPAN:
            self._busy = busy(self._begun, now)
            self._begun = now
        return {"hostname": os.uname().nodename, "pid": os.getpid(), **told(now, self._busy)}


def told(reading: Reading, busy: float) -> dict[str, Any]:
    """The figures of a reply, while ``busy`` processors have been in use.

    Used memory is what ``docker stats`` shows: all but files that were read and not needed
    since, which give way by themselves.
    """
    stat = reading.stat
    used = max(0, reading.usage - stat.get("inactive_file", 0))
    available = max(0, reading.limit - used)
    figures: dict[str, Any] = {
        "kernel_cpu": round(100 * busy, 1),
        "kernel_memory": used,
        "cpu_count": int(reading.cpus) if reading.cpus.is_integer() else reading.cpus,
        "host_virtual_memory": {
            "total": reading.limit,
            "available": available,
            "percent": round(100 * (reading.limit - available) / reading.limit, 1),
            "used": used,
            "free": max(0, reading.limit - reading.usage),
            "active": stat.get("active_anon", 0) + stat.get("active_file", 0),
            "inactive": stat.get("inactive_anon", 0) + stat.get("inactive_file", 0),
            "cached": stat.get("file", stat.get("cache", 0)),
            "shared": stat.get("shmem", 0),
            "wired": stat.get("unevictable", 0) + reading.kernel,
        },
    }
    if busy:  # as ipykernel does: a panel takes none for unknown
        figures["host_cpu_percent"] = round(100 * busy / reading.cpus, 1)
    return figures


def busy(begun: Reading, ended: Reading) -> float:
    """How many processors were in use between two moments, on average."""
    return max(0.0, ended.cpu_time - begun.cpu_time) / (ended.at - begun.at)


def read(root: str = CGROUP) -> Reading:
    """Read a control group of version 1 or 2; without a limit of its own it has the host's."""
    if os.path.isdir(f"{root}/memory"):
        quota = _text(f"{root}/cpu/cpu.cfs_quota_us")
        period = _text(f"{root}/cpu/cpu.cfs_period_us")
        cpu_time = _number(_text(f"{root}/cpuacct/cpuacct.usage")) / 1e9
        limit = _text(f"{root}/memory/memory.limit_in_bytes")
        usage = _text(f"{root}/memory/memory.usage_in_bytes")
        kernel = _number(_text(f"{root}/memory/memory.kmem.usage_in_bytes"))
        stat = _fields(f"{root}/memory/memory.stat")
    else:
        quota, _, period = _text(f"{root}/cpu.max").partition(" ")
        cpu_time = _fields(f"{root}/cpu.stat").get("usage_usec", 0) / 1e6
        limit = _text(f"{root}/memory.max")
        usage = _text(f"{root}/memory.current")
        stat = _fields(f"{root}/memory.stat")
        kernel = stat.get("kernel", 0)
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    processors = float(len(os.sched_getaffinity(0)))
    share = _number(quota) / (_number(period) or 1)
    return Reading(
        at=time.monotonic(),
        cpus=min(processors, share or processors),
        cpu_time=cpu_time,
        limit=min(physical, _number(limit) or physical),
        usage=_number(usage),
        kernel=kernel,
        stat=stat,
    )


def _text(path: str) -> str:
    try:
        with open(path, encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""


def _number(text: str) -> int:
    """A figure; 0 for none, and for the words and negative ones that mean no limit."""
    return int(text) if text.isdecimal() else 0


def _fields(path: str) -> dict[str, int]:
    pairs = (line.partition(" ") for line in _text(path).splitlines())
    return {name: _number(value) for name, _, value in pairs}
