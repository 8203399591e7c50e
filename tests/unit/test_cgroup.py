import os
import subprocess
import sys
from pathlib import Path

import pytest

from kernel_provider.profile.memory import Kinds, kinds
from kernel_provider.warden import cgroup
from kernel_provider.warden.cgroup import UNLIMITED, Cgroup, Load, Usage, mismatch

V1 = {
    "memory/box/memory.limit_in_bytes": "536870912\n",
    "memory/box/memory.memsw.limit_in_bytes": "536870912\n",
    "memory/box/memory.max_usage_in_bytes": "1000\n",
    "memory/box/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
    "pids/box/pids.max": "128\n",
    "pids/box/pids.events": "max 3\n",
    "pids/box/cgroup.procs": "10\n11\n",
    "cpu,cpuacct/box/cpu.cfs_quota_us": "50000\n",
    "cpu,cpuacct/box/cpu.cfs_period_us": "100000\n",
    "cpu,cpuacct/box/cpuacct.usage": "7000999\n",
    "cpu,cpuacct/box/cpu.stat": "nr_periods 40\nnr_throttled 10\nthrottled_time 5\n",
    "memory/box/memory.usage_in_bytes": "900\n",
    "pids/box/pids.current": "12\n",
    "memory/box/memory.stat": "cache 500\nrss 300\nshmem 100\nworkingset_refault_file 2\n"
    "pgmajfault 7\ntotal_rss 9\n",
    "memory/box/memory.kmem.usage_in_bytes": "50\n",
}
V2 = {
    "box/memory.max": "536870912\n",
    "box/memory.swap.max": "0\n",
    "box/memory.peak": "1000\n",
    "box/memory.events": "low 0\nhigh 0\nmax 9\noom 2\noom_kill 2\noom_group_kill 0\n",
    "box/pids.max": "128\n",
    "box/pids.events": "max 3\n",
    "box/cgroup.procs": "10\n11\n",
    "box/cpu.max": "50000 100000\n",
    "box/cpu.stat": "usage_usec 7000\nuser_usec 1\nnr_periods 40\nnr_throttled 10\n",
    "box/memory.current": "900\n",
    "box/pids.current": "12\n",
    "box/memory.stat": "anon 300\nfile 500\nkernel 50\nshmem 100\nworkingset_refault_anon 9\n"
    "workingset_refault_file 2\npgmajfault 7\n",
}
EXPECTED = {
    "memory": 536870912,
    "memory+swap": 536870912,
    "pids": 128,
    "cpu_quota": 50000,
    "cpu_period": 100000,
}


def proc(root: Path, version: int) -> str:
    """A folder that looks like /proc for a process 7 in the group /box."""
    files = root / "fs"
    for name, text in (V1 if version == 1 else V2).items():
        (files / name).parent.mkdir(parents=True, exist_ok=True)
        (files / name).write_text(text)
    mount = "29 23 0:26 / {} rw,nosuid shared:9 - {} cgroup {}\n"
    if version == 1:
        group = "5:cpu,cpuacct:/box\n4:memory:/box\n3:pids:/box\n1:name=systemd:/box\n0::/\n"
        mounts = "".join(
            mount.format(files / name, "cgroup", f"rw,{name}")
            for name in ("memory", "pids", "cpu,cpuacct")
        )
        mounts += mount.format(root / "unified", "cgroup2", "rw")
    else:
        group = "0::/box\n"
        mounts = mount.format(files, "cgroup2", "rw,nsdelegate")
    for place, text in {"7/cgroup": group, "self/mountinfo": mounts}.items():
        (root / "proc" / place).parent.mkdir(parents=True)
        (root / "proc" / place).write_text(text)
    return str(root / "proc")


@pytest.fixture(params=[1, 2], ids=["v1", "v2"])
def box(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Cgroup, Path]:
    """A group of either version, and where its files are."""
    return Cgroup(7, proc=proc(tmp_path, request.param)), tmp_path / "fs"


def test_both_versions_read_alike(box: tuple[Cgroup, Path]) -> None:
    """Limits, counters and members have the same names whatever the version."""
    group, _ = box
    assert group.limits() == EXPECTED
    assert group.usage() == Usage(memory_peak=1000, oom_kills=2, pids_refused=3)
    assert group.load() == Load(memory=900, pids=12, cpu_time=7000, periods=40, throttled=10)
    assert group.processes() == (10, 11)


def test_memory_by_kind(box: tuple[Cgroup, Path]) -> None:
    """Each byte once: what lies in tmpfs is no file that could be read again."""
    group, files = box
    expected = Kinds(
        anonymous=300,
        shared=100,
        files=400,
        kernel=50,
        reread=2 * os.sysconf("SC_PAGE_SIZE"),
        major_faults=7,
    )
    assert kinds(group) == expected
    assert expected.total == 850
    for path in files.rglob("memory.stat"):
        path.unlink()
    assert kinds(group) is None


def test_no_limit_is_told_as_such(box: tuple[Cgroup, Path]) -> None:
    """Version 1's largest number and version 2's "max" are UNLIMITED."""
    group, files = box
    for name, text in {
        "memory/box/memory.limit_in_bytes": str((1 << 63) - 4096),
        "memory/box/memory.memsw.limit_in_bytes": str((1 << 63) - 4096),
        "pids/box/pids.max": "max",
        "cpu,cpuacct/box/cpu.cfs_quota_us": "-1",
        "box/memory.swap.max": "max",
        "box/pids.max": "max",
        "box/cpu.max": "max 100000",
    }.items():
        if (files / name).exists():
            (files / name).write_text(text)
    found = group.limits()
    assert found["memory+swap"] == found["pids"] == found["cpu_quota"] == UNLIMITED
    assert found["cpu_period"] == 100000


def test_a_group_that_is_gone_has_nobody(box: tuple[Cgroup, Path]) -> None:
    """Once its folder is gone: no members, counters of zero, and limits an error."""
    group, files = box
    for file in [path for path in files.rglob("*") if path.is_file()]:
        file.unlink()
    assert group.processes() == ()
    assert group.usage() == Usage(memory_peak=0, oom_kills=0, pids_refused=0)
    assert group.load() == Load(memory=0, pids=0, cpu_time=0, periods=0, throttled=0)
    with pytest.raises(FileNotFoundError):
        group.limits()


def test_a_process_that_is_gone_has_no_group(tmp_path: Path) -> None:
    """Looking for it is an OSError, whatever is missing."""
    with pytest.raises(OSError, match="No such file"):
        Cgroup(8, proc=proc(tmp_path, 2))


def test_a_controller_that_is_not_mounted_is_an_oserror(tmp_path: Path) -> None:
    """Limits that cannot be read back are the caller's to refuse."""
    place = proc(tmp_path, 1)
    mounts = Path(place, "self/mountinfo")
    lines = [line for line in mounts.read_text().splitlines(keepends=True) if "pids" not in line]
    mounts.write_text("".join(lines))
    with pytest.raises(OSError, match="pids"):
        Cgroup(7, proc=place)


def test_our_own_group_is_found() -> None:
    """On the machine that the tests run on, this process is a member of its group."""
    assert os.getpid() in Cgroup(os.getpid()).processes()


def test_mismatch_names_the_first_difference() -> None:
    """None where all that was asked holds; what nobody asked for does not matter."""
    assert mismatch(EXPECTED, EXPECTED) is None
    assert mismatch({**EXPECTED, "pids": UNLIMITED}, EXPECTED) == "pids"
    assert mismatch(EXPECTED, {"cpu_quota": 1}) == "cpu_quota"


def test_alive_and_start_time() -> None:
    """A zombie is not alive; start times tell processes apart."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        assert cgroup.is_alive(process.pid)
        assert int(cgroup.start_time(process.pid)) >= int(cgroup.start_time(os.getpid()))
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert not cgroup.is_alive(process.pid)
        pid = process.pid
    assert not cgroup.is_alive(pid)
    assert cgroup.start_time(pid) == ""


def test_identity_has_four_parts() -> None:
    """Boot, pid namespace, pid, start time: the same for the same process only."""
    boot, space, pid, start = cgroup.identity(os.getpid()).split(":")
    assert boot == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert str(Path("/proc/self/ns/pid").readlink()) == f"pid:[{space}]"
    assert (pid, start) == (str(os.getpid()), cgroup.start_time(os.getpid()))
    assert cgroup.identity(1) != cgroup.identity(os.getpid())


@pytest.mark.parametrize("version", [1, 2])
def test_a_group_has_a_name(tmp_path: Path, version: int) -> None:
    """In its path."""
    group = Cgroup(7, proc=proc(tmp_path, version))
    assert group.is_named("box")
    assert not group.is_named("bax")


def test_the_dying_have_no_group_of_version_1(tmp_path: Path) -> None:
    """The kernel shows them in the root, whose processes are everybody."""
    place = proc(tmp_path, 1)
    dying = "5:cpu,cpuacct:/\n4:memory:/\n3:pids:/\n1:name=systemd:/\n0::/box\n"
    Path(place, "7", "cgroup").write_text(dying)
    assert not Cgroup(7, proc=place).is_named("box")
