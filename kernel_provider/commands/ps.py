"""``executor-ml ps``: the sandboxes of this machine's engine, and what they use.

The engine is asked which there are; what they use is read from their control groups,
which costs nothing and is what the kernel holds them to.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from kernel_provider import kernelspecs, names
from kernel_provider.admin import said_in_files
from kernel_provider.ceilings import read_ceilings
from kernel_provider.commands.table import age_text, columns, size_text
from kernel_provider.engines import ContainerSummary, Engine, open_engine
from kernel_provider.engines.docker import NAME_PREFIX, find_socket
from kernel_provider.errors import SandboxError
from kernel_provider.folders import runtime_root
from kernel_provider.hardening import policy_digest
from kernel_provider.values import show
from kernel_provider.warden import cgroup, deaths
from kernel_provider.warden.cgroup import UNLIMITED, Cgroup, Load
from kernel_provider.warden.deaths import Record

SAMPLE: Final = 0.5
"""Seconds between the two looks that a share of processor time needs."""
EVERY: Final = 2.0
HEAD: Final = "NAME KERNEL STATE MEMORY PEAK LIMIT CPU THROTTLED PIDS AGE OWNER"
CLEAR: Final = "\x1b[H\x1b[J"


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A sandbox at one moment; ``load`` is None where its control group can't be seen."""

    name: str
    kernel: str
    policy: str
    state: str
    owner: int | None
    age: float | None
    at: float
    load: Load | None
    peak: int
    limits: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class Death:
    """Why a kernel died, as its cell was told; ``at`` is seconds of the epoch."""

    name: str
    reason: str
    remedy: str
    exit_code: int
    at: float


@dataclass(frozen=True, kw_only=True)
class Row:
    """What is told of a sandbox: bytes, seconds, shares from 0 to 1; None is unknown.

    ``kernel`` is the kernelspec that has this policy, if there is one. ``cpu`` is the
    processor time used as a share of its limit, ``throttled`` the share of periods that
    the limit cut short; both since the look before. ``death`` is set for one that died,
    whose ``age`` is the time since then.
    """

    name: str
    uid: int | None
    kernel: str
    policy: str
    state: str
    memory: int | None
    memory_peak: int | None
    memory_limit: int | None
    cpu: float | None
    throttled: float | None
    pids: int | None
    pids_limit: int | None
    age: float | None
    owner: int | None
    death: Death | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Fill in the command's arguments."""
    parser.description = (
        "Show the sandboxes on this machine's engine: memory now, at its peak and at most, "
        "processor time as a share of the limit and how often the limit cut it short, "
        "processes, age, and the process that owns it."
    )
    parser.add_argument(
        "-a", "--all", action="store_true", help="also your kernels that died in the last day"
    )
    parser.add_argument("--watch", action="store_true", help="every 2 s, until Ctrl-C")
    parser.add_argument(
        "--json",
        action="store_true",
        help="print JSON, one line for each look, with those that died",
    )


def main(args: argparse.Namespace) -> int:
    """Look twice and print; with ``--watch``, until Ctrl-C, which is no error."""
    engine = open_engine("docker", find_socket(os.environ))
    before = look(engine)
    try:
        if before or args.watch:
            time.sleep(SAMPLE)
        while True:
            now = look(engine)
            rows = compare(before, now)
            if args.all or args.json:
                rows += died(os.environ)
            clear = CLEAR if args.watch and sys.stdout.isatty() and not args.json else ""
            print(clear + (json.dumps([asdict(r) for r in rows]) if args.json else table(rows)))
            if not args.watch:
                return 0
            sys.stdout.flush()
            before = now
            time.sleep(EVERY)
    except KeyboardInterrupt:
        return 0


def look(engine: Engine) -> tuple[Seen, ...]:
    """See every sandbox of the engine; raises EngineError."""
    containers = engine.list(f"{names.LABEL}={names.KIND_KERNEL}")
    known = kernels_by_policy() if containers else {}
    seen = (see(engine, container, known) for container in containers)
    return tuple(one for one in seen if one is not None)


def see(engine: Engine, container: ContainerSummary, known: Mapping[str, str]) -> Seen | None:
    """See one, as far as its processes are visible from here; None if it is gone."""
    state = engine.inspect(container.id)
    if state is None:
        return None
    pid = state.pid if state.running else 0
    told = "exited" if container.state == "running" and not pid else container.state
    load, peak, limits = None, 0, {}
    if pid:
        try:
            group = Cgroup(pid)
            load, peak, limits = group.load(), group.usage().memory_peak, group.limits()
        except (OSError, ValueError):
            load = None  # another machine's, another namespace's, or it has just ended
    digest = container.labels.get(names.LABEL_POLICY, "")
    return Seen(
        name=container.name,
        kernel=known.get(digest, ""),
        policy=digest,
        state=told,
        owner=owner_of(container.labels.get(names.LABEL_WARDEN, "")),
        age=age_of(pid) if pid else None,
        at=time.monotonic(),
        load=load,
        peak=peak,
        limits=limits,
    )


def kernels_by_policy() -> dict[str, str]:
    """Names of the kernelspecs that have a policy, by its digest."""
    found: dict[str, str] = {}
    try:
        ceilings = read_ceilings(os.environ, traits=said_in_files())
    except SandboxError:
        return found
    for spec in kernelspecs.installed():
        try:
            digest = policy_digest(spec.policy(ceilings))
        except SandboxError:
            continue
        found[digest] = f"{found[digest]},{spec.name}" if digest in found else spec.name
    return found


def owner_of(warden: str, *, proc: str = "/proc") -> int | None:
    """Process that started the warden: its folder, where its log is, is named after it.

    None where the warden is gone, is not of this machine, or is another user's.
    """
    parts, here = warden.split(":"), cgroup.identity(os.getpid()).split(":")
    if len(parts) != len(here) or parts[:2] != here[:2]:
        return None
    try:
        folder = Path(f"{proc}/{parts[2]}/fd/2").readlink().parent.name
    except OSError:
        return None
    kind, _, rest = folder.partition("-")
    pid, _, start = rest.rpartition("-")[0].partition("-")
    if kind != "w" or not pid.isdecimal() or cgroup.start_time(int(pid)) != start:
        return None
    return int(pid)


def age_of(pid: int) -> float | None:
    """Seconds since a process started; None where there is none."""
    start = cgroup.start_time(pid)
    if not start:
        return None
    up = float(Path("/proc/uptime").read_text(encoding="ascii").split()[0])
    return max(0.0, up - int(start) / os.sysconf("SC_CLK_TCK"))


def compare(before: Sequence[Seen], now: Sequence[Seen]) -> tuple[Row, ...]:
    """Rows from two looks, the oldest sandbox first."""
    earlier = {seen.name: seen for seen in before}
    ordered = sorted(now, key=lambda seen: -(seen.age or 0.0))
    return tuple(row(earlier.get(seen.name), seen) for seen in ordered)


def row(before: Seen | None, now: Seen) -> Row:
    """Tell of one sandbox; shares need an earlier look at it."""
    uid = now.name.removeprefix(NAME_PREFIX)
    cpu = throttled = None
    if before is not None and before.load is not None and now.load is not None:
        quota, period = now.limits.get("cpu_quota", UNLIMITED), now.limits.get("cpu_period", 1)
        spent, span = now.load.cpu_time - before.load.cpu_time, (now.at - before.at) * 1e6
        if quota != UNLIMITED and span > 0:
            cpu = max(0.0, spent / span / (quota / period))
        periods = now.load.periods - before.load.periods
        throttled = (now.load.throttled - before.load.throttled) / periods if periods > 0 else 0.0
    return Row(
        name=now.name,
        uid=int(uid) if uid.isdecimal() else None,
        kernel=now.kernel,
        policy=now.policy,
        state=now.state,
        memory=now.load.memory if now.load else None,
        memory_peak=now.peak if now.load else None,
        memory_limit=_limit(now.limits.get("memory")),
        cpu=cpu,
        throttled=throttled,
        pids=now.load.pids if now.load else None,
        pids_limit=_limit(now.limits.get("pids")),
        age=now.age,
        owner=now.owner,
    )


def _limit(value: int | None) -> int | None:
    return None if value == UNLIMITED else value


def died(environ: Mapping[str, str]) -> tuple[Row, ...]:
    """Kernels of this user that died of late, the latest last."""
    try:
        records = deaths.recent(runtime_root(environ))
    except SandboxError:
        return ()
    now = time.time()
    return tuple(dead_row(record, now) for record in records)


def dead_row(record: Record, now: float) -> Row:
    """Tell of one that died; ``now`` is seconds of the epoch."""
    return Row(
        name=record.container,
        uid=record.uid,
        kernel=record.kernel,
        policy=record.policy,
        state="died",
        memory=None,
        memory_peak=record.memory_peak or None,
        memory_limit=record.memory_limit,
        cpu=None,
        throttled=None,
        pids=None,
        pids_limit=record.pids_limit,
        age=max(0.0, now - record.at),
        owner=record.owner or None,
        death=Death(
            name=record.name,
            reason=record.reason,
            remedy=record.remedy,
            exit_code=record.exit_code,
            at=record.at,
        ),
    )


def table(rows: Sequence[Row]) -> str:
    """Aligned columns; a dash where something is not known."""
    if not rows:
        return "no sandboxes"
    return columns([HEAD.split(), *(_cells(r) for r in rows)])


def _cells(r: Row) -> list[str]:
    pids = "-" if r.pids is None else f"{r.pids}/{r.pids_limit or '-'}"
    return [
        r.name,
        r.kernel or r.policy or "-",
        r.death.name if r.death else r.state,
        size_text(r.memory),
        size_text(r.memory_peak),
        "-" if r.memory_limit is None else show("memory", r.memory_limit),
        _share(r.cpu),
        _share(r.throttled),
        pids,
        age_text(r.age),
        "-" if r.owner is None else str(r.owner),
    ]


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"
