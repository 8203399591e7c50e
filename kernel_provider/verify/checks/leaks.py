"""Nothing of the host is told inside, and no secret of the kernel's outside."""

import os
import re
from pathlib import Path
from typing import Any, Final

from kernel_provider.hardening import HOSTNAME, RENDEZVOUS_FOLDER
from kernel_provider.verify.judges import none
from kernel_provider.verify.look import CANARY_VARIABLE, Look
from kernel_provider.verify.model import Check, Verdict, verdict

ENGINES_OWN: Final = (
    *("/", "/dev", "/dev/mqueue", "/dev/pts", "/dev/shm", "/dev/console", "/tmp", "/sys"),
    *("/etc/hostname", "/etc/hosts", "/etc/resolv.conf"),
)
"""Where an engine mounts by itself, beside /proc and /sys/fs/cgroup with all below."""


def _secret(report: Any, look: Look) -> list[str]:
    words = {look.host.canary, CANARY_VARIABLE, look.key}
    return sorted(name for name, text in report.items() if any(word in text for word in words))


def _paths(report: Any, look: Look) -> list[str]:
    return sorted(
        f"{name} in {place}"
        for place, text in report.items()
        for name in look.host_names()
        if re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", text)
    )


def _places(report: Any, look: Look) -> list[str]:
    known = {*ENGINES_OWN, *look.policy.mounts, RENDEZVOUS_FOLDER}
    models = "/models" if look.policy.models else "/none"
    return [
        place
        for place in report
        if place not in known and not place.startswith(("/proc", "/sys/fs/cgroup", "/sys/", models))
    ]


def _nodename(report: Any, look: Look) -> Verdict:
    names = {os.uname().nodename}
    text = " ".join(report.values())
    told = [name for name in names if name in text and name != HOSTNAME]
    held = report["uname"] == HOSTNAME and not told and bool(look.container)
    return verdict(held, f"it is called {report['uname']}")


def _engine_tells(_report: Any, look: Look) -> list[str]:
    found = []
    if look.key in repr(look.engine.attributes(look.container)):
        found.append("the engine's description")
    if look.key in look.engine.last_lines(look.container, 1000):
        found.append("the container's log")
    for folder in Path("/proc").glob("[0-9]*"):
        for name in ("cmdline", "environ"):
            try:
                text = (folder / name).read_bytes()
            except OSError:
                continue
            if look.key.encode() in text:
                found.append(f"{name} of process {folder.name}")
    return found


def _own(report: Any, look: Look) -> Verdict:
    there = len(look.group.processes())
    return verdict(len(report) <= there, f"{len(report)} inside, {there} in the control group")


CHECKS: Final = (
    Check(
        name="environment",
        promise="no variable of whoever starts a kernel gets in, and no key lies about",
        tried="looking for a secret of the host's in environments, arguments and open files",
        code="report = texts()",
        judge=none("places that tell it", of=_secret),
    ),
    Check(
        name="paths",
        promise="no folder or name of the host stands in a process",
        tried="environments, arguments, maps and open files, for home, sockets and host name",
        code="report = texts()",
        judge=none("names", of=_paths),
    ),
    Check(
        name="host-name",
        promise="the host is not named",
        tried="uname, /etc/hostname, /etc/hosts, /etc/resolv.conf, /proc/sys/kernel",
        code="""
files = ("/etc/hostname", "/etc/hosts", "/etc/resolv.conf", "/proc/sys/kernel/hostname",
         "/proc/sys/kernel/domainname")
report = {"uname": os.uname().nodename}
for path in files:
    if os.path.exists(path):
        report[path] = open(path).read()
""",
        judge=_nodename,
    ),
    Check(
        name="mount-points",
        promise="nothing is mounted but what the policy says",
        tried="reading all mount points",
        code="""
report = [line.split()[1] for line in open("/proc/self/mounts")]
""",
        judge=none("others", of=_places),
    ),
    Check(
        name="control-group",
        promise="a sandbox does not see which container it is, nor others' control groups",
        tried="/proc/self/cgroup, and control groups of others in /sys/fs/cgroup",
        code="""
report = [line.strip() for line in open("/proc/self/cgroup")
          if line.strip().split(":", 2)[2] != "/"]
""",
        judge=none("paths that are told"),
    ),
    Check(
        name="key",
        promise="the key of the messages is told to nobody else on the host",
        tried="the engine's description and log, arguments and environments of all processes",
        code="report = True",
        judge=none("places that tell it", of=_engine_tells),
    ),
    Check(
        name="processes",
        promise="only its own processes can be seen",
        tried="listing /proc",
        code="report = processes()",
        judge=_own,
    ),
)
