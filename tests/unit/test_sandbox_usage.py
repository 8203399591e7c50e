"""What a usage request is answered with, from control groups of both versions."""

import os
import socket
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import sandbox_usage
from sandbox_usage import Meter, Reading, busy, read, told

from kernel_provider.values import MIB

READING = Reading(
    at=10.0,
    cpus=0.5,
    cpu_time=2.0,
    limit=512 * MIB,
    usage=192 * MIB,
    kernel=6 * MIB,
    stat={
        "active_anon": 100 * MIB,
        "inactive_anon": 10 * MIB,
        "active_file": 12 * MIB,
        "inactive_file": 64 * MIB,
        "unevictable": 1 * MIB,
        "file": 76 * MIB,
        "shmem": 8 * MIB,
    },
)
STAT = "".join(f"{name} {value}\n" for name, value in READING.stat.items())
ONE = {
    "memory/memory.limit_in_bytes": f"{512 * MIB}\n",
    "memory/memory.usage_in_bytes": f"{192 * MIB}\n",
    "memory/memory.kmem.usage_in_bytes": f"{6 * MIB}\n",
    "memory/memory.stat": STAT.replace("\nfile ", "\ncache "),
    "cpu/cpu.cfs_quota_us": "50000\n",
    "cpu/cpu.cfs_period_us": "100000\n",
    "cpuacct/cpuacct.usage": "2000000000\n",
}
TWO = {
    "memory.max": f"{512 * MIB}\n",
    "memory.current": f"{192 * MIB}\n",
    "memory.stat": STAT + f"kernel {6 * MIB}\n",
    "cpu.max": "50000 100000\n",
    "cpu.stat": "usage_usec 2000000\nuser_usec 1500000\nnr_periods 7\n",
}
OPEN = {
    "one": {
        "memory/memory.limit_in_bytes": f"{(1 << 63) - 4096}\n",
        "cpu/cpu.cfs_quota_us": "-1\n",
    },
    "two": {"memory.max": "max\n", "cpu.max": "max 100000\n"},
}


@pytest.fixture(params=["one", "two"])
def version(request: pytest.FixtureRequest) -> str:
    """Of control groups."""
    return str(request.param)


@pytest.fixture
def group(version: str, tmp_path: Path) -> Path:
    """The files of a sandbox's control group."""
    return write(tmp_path, ONE if version == "one" else TWO)


def write(folder: Path, files: Mapping[str, str]) -> Path:
    """Have them in the folder."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return folder


def test_both_versions_are_read_alike(group: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits, memory by kind and processor time, whatever the files are called."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0, 1})
    found = read(str(group))
    stat = {name.replace("cache", "file"): value for name, value in found.stat.items()}
    stat.pop("kernel", None)
    assert replace(found, at=10.0, stat=stat) == READING


def test_without_a_limit_the_hosts_is_told(version: str, group: Path) -> None:
    """No division by zero, and no number that means infinity."""
    write(group, OPEN[version])
    found = read(str(group))
    assert found.limit == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert found.cpus == len(os.sched_getaffinity(0))


def test_a_quota_above_the_machine_is_the_machine(version: str, group: Path) -> None:
    """Four processors' worth of time on a machine with two is two."""
    more = {"cpu.max": "99900000 100000\n", "cpu/cpu.cfs_quota_us": "99900000\n"}
    write(group, {name: text for name, text in more.items() if (version == "one") == ("/" in name)})
    assert read(str(group)).cpus == len(os.sched_getaffinity(0))


def test_the_figures_are_the_sandboxs() -> None:
    """All that jupyter-resource-usage's panel reads, in ipykernel's names and units."""
    assert told(READING, 0.4) == {
        "kernel_cpu": 40.0,
        "kernel_memory": 128 * MIB,
        "cpu_count": 0.5,
        "host_cpu_percent": 80.0,
        "host_virtual_memory": {
            "total": 512 * MIB,
            "available": 384 * MIB,
            "percent": 25.0,
            "used": 128 * MIB,
            "free": 320 * MIB,
            "active": 112 * MIB,
            "inactive": 74 * MIB,
            "cached": 76 * MIB,
            "shared": 8 * MIB,
            "wired": 7 * MIB,
        },
    }


def test_whole_processors_are_whole_numbers() -> None:
    """A panel says "2 CPUs", not "2.0 CPUs"; and nothing of use that is not known."""
    figures = told(replace(READING, cpus=2.0), 0.0)
    assert repr(figures["cpu_count"]) == "2"
    assert figures["kernel_cpu"] == 0.0
    assert "host_cpu_percent" not in figures


def test_memory_at_the_limit_is_no_less_than_nothing() -> None:
    """The counters are not read at one instant: sums may be off by a little."""
    full = replace(READING, usage=513 * MIB, stat={"inactive_file": 0})
    memory = told(full, 0.0)["host_virtual_memory"]
    assert (memory["available"], memory["free"], memory["percent"]) == (0, 0, 100.0)
    none = told(replace(READING, usage=0), 0.0)["host_virtual_memory"]
    assert (none["used"], none["percent"]) == (0, 0.0)


def test_processor_time_is_averaged() -> None:
    """A second of work in four is a quarter of a processor."""
    assert busy(READING, replace(READING, at=14.0, cpu_time=3.0)) == 0.25


def test_a_meter_counts_from_request_to_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first knows no use; one that comes too soon tells what the one before told."""
    moments = iter([(0.0, 5.0), (2.0, 5.5), (2.1, 5.6), (4.0, 6.5)])

    def readings(_root: str) -> Reading:
        at, cpu_time = next(moments)
        return replace(READING, at=at, cpu_time=cpu_time)

    monkeypatch.setattr(sandbox_usage, "read", readings)
    meter = Meter()
    assert [meter.content()["kernel_cpu"] for _ in range(4)] == [0.0, 25.0, 25.0, 50.0]


def test_a_reply_names_the_sandbox(group: Path) -> None:
    """Its host name, and the kernel's pid in it."""
    content = Meter(str(group)).content()
    assert (content["hostname"], content["pid"]) == (socket.gethostname(), os.getpid())
