"""``executor-ml ps``: from counters to what a person reads."""

import json
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from kernel_provider import cli, names
from kernel_provider.commands import ps
from kernel_provider.commands.ps import Row, Seen, age_of, compare, owner_of, row, table
from kernel_provider.engines import ContainerState, ContainerSummary
from kernel_provider.errors import EngineUnreachableError
from kernel_provider.hardening import policy_digest
from kernel_provider.policy import KernelPolicy
from kernel_provider.values import MIB
from kernel_provider.warden import cgroup, deaths
from kernel_provider.warden.cgroup import UNLIMITED, Load, Usage

if TYPE_CHECKING:
    from collections.abc import Callable

BEFORE = Seen(
    name="executor-ml-7000",
    kernel="executor-ml",
    policy="abcd",
    state="running",
    owner=42,
    age=90.0,
    at=10.0,
    load=Load(memory=100 * MIB, pids=12, cpu_time=1_000_000, periods=100, throttled=10),
    peak=200 * MIB,
    limits={"memory": 512 * MIB, "pids": 128, "cpu_quota": 50_000, "cpu_period": 100_000},
)
LATER = Load(memory=101 * MIB, pids=13, cpu_time=1_500_000, periods=120, throttled=15)
NOW = replace(
    BEFORE,
    at=12.0,
    load=LATER,
)


def test_a_row_is_made_of_two_looks() -> None:
    """Half a second in two seconds is half of half a processor."""
    assert row(BEFORE, NOW) == Row(
        name="executor-ml-7000",
        uid=7000,
        kernel="executor-ml",
        policy="abcd",
        state="running",
        memory=101 * MIB,
        memory_peak=200 * MIB,
        memory_limit=512 * MIB,
        cpu=0.5,
        throttled=0.25,
        pids=13,
        pids_limit=128,
        age=90.0,
        owner=42,
    )


def test_what_is_not_known_is_none() -> None:
    """No earlier look, no limit, no group to see: no number is made up."""
    fresh = row(None, NOW)
    assert (fresh.cpu, fresh.throttled, fresh.memory) == (None, None, 101 * MIB)
    free = row(BEFORE, replace(NOW, limits={"memory": UNLIMITED, "cpu_quota": UNLIMITED}))
    assert (free.cpu, free.memory_limit, free.pids_limit) == (None, None, None)
    unseen = row(BEFORE, replace(NOW, load=None, peak=0, limits={}, age=None))
    assert (unseen.memory, unseen.memory_peak, unseen.pids, unseen.cpu) == (None,) * 4
    idle = row(BEFORE, replace(NOW, load=BEFORE.load))
    assert (idle.cpu, idle.throttled) == (0.0, 0.0)
    assert row(None, replace(NOW, name="odd")).uid is None


def test_the_oldest_comes_first() -> None:
    """And a sandbox that has gone meanwhile does not come at all."""
    young = replace(NOW, name="executor-ml-1", age=1.0)
    rows = compare([BEFORE, replace(BEFORE, name="gone")], [young, NOW])
    assert [r.name for r in rows] == ["executor-ml-7000", "executor-ml-1"]


def test_the_table_is_aligned() -> None:
    """Sizes, shares and times as people read them; a dash for what is not known."""
    unknown = row(None, replace(NOW, kernel="", load=None, limits={}, age=None, owner=None))
    lines = table([row(BEFORE, NOW), unknown]).splitlines()
    assert lines[0].split() == ps.HEAD.split()
    assert lines[1] == (
        "executor-ml-7000  executor-ml  running  101 MB  200 MB  512 MB  50%  25%        "
        "13/128  1.5m  42"
    )
    assert lines[2].split() == ["executor-ml-7000", "abcd", "running", *["-"] * 8]
    assert table([]) == "no sandboxes"


@pytest.mark.parametrize(
    ("seconds", "told"), [(5, "5s"), (60, "1.0m"), (5400, "1.5h"), (172800, "2.0d")]
)
def test_ages_have_one_unit(seconds: float, told: str) -> None:
    """Seconds, minutes, hours, days."""
    assert f" {told} " in table([replace(row(BEFORE, NOW), age=seconds)])


def test_our_own_age_is_known() -> None:
    """By the kernel's clock; of nobody there is none."""
    age = age_of(os.getpid())
    assert age is not None
    assert 0 <= age < 86400
    assert age_of(999_999_999) is None


def test_the_owner_is_told_by_the_wardens_folder(tmp_path: Path) -> None:
    """Where the warden's log is; one that has died, or is another's, is none."""
    boot, space, *_ = cgroup.identity(os.getpid()).split(":")
    start = cgroup.start_time(os.getpid())
    descriptors = tmp_path / "77" / "fd"
    descriptors.mkdir(parents=True)
    log = descriptors / "2"
    log.symlink_to(f"/run/x/w-{os.getpid()}-{start}-ab12/log")
    label = f"{boot}:{space}:77:1"
    assert owner_of(label, proc=str(tmp_path)) == os.getpid()
    assert owner_of(f"other:{space}:77:1", proc=str(tmp_path)) is None
    assert owner_of(f"{boot}:{space}:78:1", proc=str(tmp_path)) is None
    assert owner_of("", proc=str(tmp_path)) is None
    for target in (f"/run/x/w-{os.getpid()}-1-ab12/log", "/dev/null"):
        log.unlink()
        log.symlink_to(target)
        assert owner_of(label, proc=str(tmp_path)) is None


class FakeEngine:
    """Lists one sandbox whose PID 1 is this test, and another that goes at once."""

    def list(self, label: str) -> tuple[ContainerSummary, ...]:
        """Two running ones."""
        assert label == f"{names.LABEL}={names.KIND_KERNEL}"
        labels = {names.LABEL_POLICY: policy_digest(KernelPolicy()), names.LABEL_WARDEN: "x"}
        return tuple(
            ContainerSummary(id=name, name=name, state="running", labels=labels)
            for name in ("executor-ml-1", "gone", "ended")
        )

    def inspect(self, container: str) -> ContainerState | None:
        """One runs, one is gone, one has ended."""
        if container == "gone":
            return None
        return ContainerState(
            running=container != "ended",
            pid=os.getpid(),
            exit_code=0,
            oom_killed=False,
            error="",
        )


class FakeGroup:
    """The control group of a process, whichever."""

    def __init__(self, _pid: int) -> None:
        self.limits = lambda: BEFORE.limits

    def load(self) -> Load:
        """The same at each look."""
        return LATER

    def usage(self) -> Usage:
        """Only the peak matters."""
        return Usage(memory_peak=200 * MIB, oom_kills=0, pids_refused=0)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command talks to the fake engine, does not wait long, and knows of no death."""
    monkeypatch.setattr(deaths, "recent", lambda _root: ())
    monkeypatch.setattr(ps, "open_engine", lambda _kind, _address: FakeEngine())
    monkeypatch.setattr(ps, "Cgroup", FakeGroup)
    monkeypatch.setattr(ps, "SAMPLE", 0.01)


@pytest.mark.usefixtures("fake")
def test_the_command_tells_of_each(capsys: pytest.CaptureFixture[str]) -> None:
    """As JSON; the kernelspec is found by its policy."""
    assert cli.main(["ps", "--json"]) == 0
    told = {r["name"]: r for r in json.loads(capsys.readouterr().out)}
    assert set(told) == {"executor-ml-1", "ended"}
    assert told["executor-ml-1"]["kernel"] == "executor-ml"
    assert told["executor-ml-1"]["memory"] == 101 * MIB
    assert told["executor-ml-1"]["uid"] == 1
    assert told["ended"]["state"] == "exited"
    assert told["ended"]["memory"] is None


DIED = deaths.Record(
    container="executor-ml-7000",
    uid=7000,
    kernel="executor-ml",
    policy="abcd",
    owner=42,
    name="MemoryLimitExceeded",
    reason="the kernel used more than its 512 MB of memory and was stopped.",
    remedy="Load less at once.",
    exit_code=137,
    memory_peak=512 * MIB,
    memory_limit=512 * MIB,
    pids_limit=128,
    at=1000.0,
)


@pytest.mark.usefixtures("fake")
def test_who_died_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """To programs always, to people who ask for all."""
    monkeypatch.setattr(deaths, "recent", lambda _root: (DIED,))
    assert cli.main(["ps", "--json"]) == 0
    *_, told = json.loads(capsys.readouterr().out)
    assert told["death"] == {
        "name": "MemoryLimitExceeded",
        "reason": DIED.reason,
        "remedy": "Load less at once.",
        "exit_code": 137,
        "at": 1000.0,
    }
    assert (told["state"], told["name"], told["uid"]) == ("died", "executor-ml-7000", 7000)
    assert (told["memory"], told["memory_peak"]) == (None, 512 * MIB)
    assert (told["owner"], told["kernel"], told["policy"]) == (42, "executor-ml", "abcd")
    assert cli.main(["ps", "--all"]) == 0
    assert "MemoryLimitExceeded" in capsys.readouterr().out.splitlines()[-1]
    assert cli.main(["ps"]) == 0
    assert "MemoryLimitExceeded" not in capsys.readouterr().out


@pytest.mark.parametrize("peak", [0, 7])
def test_a_dead_row_has_what_is_known(peak: int) -> None:
    """Its age is the time since; a clock that was set back makes no negative one."""
    dead = ps.dead_row(replace(DIED, memory_peak=peak, owner=0), 1060.0)
    assert (dead.age, dead.memory_peak, dead.owner) == (60.0, peak or None, None)
    assert ps.dead_row(DIED, 0.0).age == 0.0
    cells = table([dead]).splitlines()[1].split()
    assert cells[:3] == ["executor-ml-7000", "executor-ml", "MemoryLimitExceeded"]


def test_a_folder_that_cannot_be_used_hides_nothing_else(tmp_path: Path) -> None:
    """Who runs is still told."""
    (tmp_path / "open").mkdir(mode=0o755)
    assert ps.died({"EXECUTOR_ML_RUNTIME_DIR": str(tmp_path / "open")}) == ()


@pytest.mark.usefixtures("fake")
def test_a_watch_ends_with_ctrl_c_and_success(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A look every two seconds; nothing is cleared where there is no terminal."""
    pauses: list[float] = []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 4:
            raise KeyboardInterrupt

    clock: Callable[[], float] = time.monotonic
    fake_time: Any = type("FakeTime", (), {"sleep": staticmethod(sleep), "monotonic": clock})
    monkeypatch.setattr(ps, "time", fake_time)
    assert cli.main(["ps", "--watch"]) == 0
    out = capsys.readouterr().out
    assert out.count("NAME") == 3
    assert pauses[1:] == [2.0, 2.0, 2.0]
    assert "\x1b" not in out


def test_no_engine_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With its exit code and remedy, not as an empty list."""
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
    assert cli.main(["ps"]) == EngineUnreachableError.exit_code
    err = capsys.readouterr().err
    assert "no container engine answers at /nowhere/docker.sock" in err
    assert "Fix: start Docker" in err


def test_kernels_under_a_broken_policy_have_no_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs is still told."""
    monkeypatch.setenv("EXECUTOR_ML_MAX_MEMORY", "much")
    assert ps.kernels_by_policy() == {}
    monkeypatch.setenv("EXECUTOR_ML_MAX_MEMORY", "100m")
    assert ps.kernels_by_policy() == {}
