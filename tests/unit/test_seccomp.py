"""The seccomp table holds together, and the engine is told what it says."""

import errno
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from kernel_provider import seccomp

HEADER = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")
DOCS = Path(__file__).parents[2] / "docs" / "seccomp.md"
BOTH = pytest.mark.parametrize("loopback", [False, True], ids=["default", "loopback"])

REFUSED = """
    ptrace process_vm_readv process_vm_writev kcmp unshare setns mount umount2 chroot
    pivot_root move_mount open_tree fsopen bpf perf_event_open keyctl add_key request_key
    modify_ldt open_by_handle_at name_to_handle_at shmget semget msgget mq_open io_setup
    fanotify_init setuid setgid setresuid setgroups capset kexec_load init_module syslog
    a_call_that_nobody_has_written_yet
"""
HIDDEN = """
    io_uring_setup io_uring_enter io_uring_register pidfd_open pidfd_getfd clone3
    userfaultfd memfd_secret splice vmsplice seccomp landlock_create_ruleset
"""
Rule = dict[str, Any]


def rules(call: str, **kinds: bool) -> list[Rule]:
    """The rules that name a call."""
    found: list[Rule] = seccomp.profile(**kinds)["syscalls"]
    return [rule for rule in found if call in rule["names"]]


def holds(condition: dict[str, Any], value: int) -> bool:
    """How libseccomp compares: 64 bits, unsigned."""
    value &= (1 << 64) - 1
    if condition["op"] == "SCMP_CMP_MASKED_EQ":
        return bool(value & condition["value"] == condition["valueTwo"])
    if condition["op"] == "SCMP_CMP_GT":
        return bool(value > condition["value"])
    assert condition["op"] == "SCMP_CMP_EQ"
    return bool(value == condition["value"])


def verdict(call: str, *arguments: int, **kinds: bool) -> int:
    """The errno that a call meets, 0 if it passes; fails if rules contradict each other."""
    answers = {
        rule.get("errnoRet", 0)
        for rule in rules(call, **kinds)
        if all(holds(arg, arguments[arg["index"]]) for arg in rule["args"])
    }
    assert len(answers) <= 1, f"{call}{arguments}: {answers}"
    return answers.pop() if answers else errno.EPERM


@pytest.mark.parametrize(
    "call",
    REFUSED.split(),
)
def test_refuses(call: str) -> None:
    """What has no rule meets the default."""
    assert rules(call) == rules(call, loopback=True) == []


@pytest.mark.parametrize(
    "call",
    HIDDEN.split(),
)
def test_hides(call: str) -> None:
    """Calls that software probes for look as if this kernel did not have them."""
    assert verdict(call) == errno.ENOSYS


@BOTH
def test_each_call_has_one_place(*, loopback: bool) -> None:
    """A call stands in one group, or in several that all look at its arguments."""
    for one, other in combinations(seccomp.groups(loopback=loopback), 2):
        shared = set(one.calls.split()) & set(other.calls.split())
        assert not shared or (one.cases and other.cases), shared


@pytest.mark.skipif(not HEADER.exists(), reason="needs the C library's headers")
def test_knows_every_call_of_x86_64() -> None:
    """Each call that this machine's headers name is decided by name."""
    known = set(re.findall(r"__NR_(\w+)", HEADER.read_text(encoding="ascii")))
    decided = {call for group in seccomp.groups() for call in group.calls.split()}
    assert known - decided == set()


@BOTH
def test_socket_families(*, loopback: bool) -> None:
    """AF_UNIX alone; loopback adds TCP, UDP and asking for interfaces."""
    passed = {
        (family, kind, protocol)
        for family in [*range(64), 1 << 31]
        for kind in range(1, 11)
        for protocol in (0, 1, 4, 6, 15, 17, 132, 136, 262)
        if verdict("socket", family, kind, protocol, loopback=loopback) == 0
    }
    inet = {(f, k, p) for f in (2, 10) for k, p in ((1, 0), (1, 6), (2, 0), (2, 17))}
    expected = inet | {(16, 3, 0)} if loopback else set()
    assert {way for way in passed if way[0] != seccomp.AF_UNIX} == expected
    assert (seccomp.AF_UNIX, 1, 0) in passed


NVIDIA = (0xC020462A, 0xC0104629, 0xC00846D6, 1, 37, 73, 0x30000001, 0x30000002)
"""Allocation and control of the driver, and its shared memory's requests."""


def test_gpus_add_the_drivers_requests_and_no_other() -> None:
    """Not without them; sockets, terminals and namespaces stay closed."""
    for request in NVIDIA:
        assert verdict("ioctl", 9, request) == errno.EPERM
        assert verdict("ioctl", 9, request, gpus=True) == 0
    for request in (0x5412, 0x8912, 0x894C, 0xB701, 0x40049409, 0x30000003, 0x101):
        assert verdict("ioctl", 9, request, gpus=True) == errno.EPERM
    own = seccomp.profile(gpus=True)["syscalls"]
    plain = seccomp.profile()["syscalls"]
    assert {name for rule in own if rule not in plain for name in rule["names"]} == {"ioctl"}


def test_errors_of_sockets() -> None:
    """Netlink answers EOPNOTSUPP, other families EAFNOSUPPORT, also with a high bit."""
    high = 1 << 32
    for call in ("socket", "socketpair"):
        assert verdict(call, 16, 3, 0) == errno.EOPNOTSUPP
        for family in (0, 2, 10, 15, 17, 38, 40, 45, 1 | high, 2 | high, 16 | high):
            assert verdict(call, family, 1, 0) == errno.EAFNOSUPPORT


def conditions(*, loopback: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each comparison of the profile, with the name of the call."""
    for rule in seccomp.profile(loopback=loopback)["syscalls"]:
        for arg in rule["args"]:
            yield rule["names"][0], arg


@BOTH
def test_looks_at_the_bits_that_the_kernel_reads(*, loopback: bool) -> None:
    """No mask reaches above 32 bits, and what is expected lies inside the mask."""
    for call, arg in conditions(loopback=loopback):
        if arg["op"] == "SCMP_CMP_MASKED_EQ":
            assert arg["value"] <= seccomp.INT, call
            assert arg["valueTwo"] & ~arg["value"] == 0, call
        else:
            assert (call, arg["index"]) in {("socket", 0), ("prlimit64", 2)}


@pytest.mark.parametrize("high", [0, 1 << 32, 1 << 63], ids=["plain", "bit 32", "bit 63"])
def test_high_bits_change_nothing(high: int) -> None:
    """A bit that the kernel does not read neither opens nor closes a way."""
    ways: dict[tuple[str, tuple[int, ...]], int] = {
        ("ioctl", (3, 0x5413 | high)): 0,
        ("prlimit64", (0 | high, 7, 1)): 0,
        ("prlimit64", (1 | high, 7, 1)): errno.EPERM,
        ("prlimit64", (1 | high, 7, 0)): 0,
        ("setpriority", (0 | high, 0 | high, 5)): 0,
        ("setpriority", (0 | high, 1 | high, 5)): errno.EPERM,
        ("setpriority", (2 | high, 0 | high, 5)): errno.EPERM,
        ("ioctl", (3, 0x8912 | high)): errno.EPERM,
        ("ioctl", (3, 0x5412 | high)): errno.EPERM,
        ("getsockopt", (3, 1 | high, 3 | high)): 0,
        ("getsockopt", (3, 1 | high, 77 | high)): errno.EPERM,
        ("setsockopt", (3, 1 | high, 76 | high)): errno.EPERM,
        ("prctl", (15 | high,)): 0,
        ("prctl", (62 | high,)): errno.EPERM,
        ("personality", (0 | high,)): 0,
        ("personality", (0x40000 | high,)): errno.EPERM,
        ("sendto", (3, 0, 0, 0x4000 | high)): 0,
        ("sendto", (3, 0, 0, 1 | high)): errno.EPERM,
        ("clone", (17 | high,)): 0,
        ("clone", (0x10000000 | high,)): errno.EPERM,
    }
    assert {(call, given): verdict(call, *given) for call, given in ways} == ways


@pytest.mark.parametrize("bit", [7, 12, 17, 25, 26, 27, 28, 29, 30])
def test_clone_makes_no_namespace(bit: int) -> None:
    """No CLONE_NEW* flag and no CLONE_PIDFD passes; bit 7 is no flag there."""
    assert verdict("clone", 17 | 1 << bit) == (0 if bit == 7 else errno.EPERM)
    pthread_create = 0x3D0F00
    assert verdict("clone", pthread_create) == 0


@BOTH
def test_is_what_the_engine_reads(*, loopback: bool) -> None:
    """JSON, native architectures alone, an allow-list, no rule that is the default."""
    told = json.loads(seccomp.profile_json(loopback=loopback))
    assert told == seccomp.profile(loopback=loopback)
    assert told["defaultAction"] == "SCMP_ACT_ERRNO"
    assert [arch["architecture"] for arch in told["archMap"]] == [
        "SCMP_ARCH_X86_64",
        "SCMP_ARCH_AARCH64",
    ]
    assert not any(arch["subArchitectures"] for arch in told["archMap"])
    for rule in told["syscalls"]:
        assert rule["action"] == "SCMP_ACT_ALLOW" or rule["errnoRet"] != errno.EPERM


def test_same_text_each_time() -> None:
    """The text is made once a process: it is on the way of each launch."""
    assert seccomp.profile_json(loopback=False) is seccomp.profile_json(loopback=False)


def test_every_line_has_its_reason() -> None:
    """Each group gives a reason, and each allowed case what it is for."""
    for group in seccomp.groups(loopback=True, gpus=True):
        assert group.reason.endswith("."), group.name
        if group.error is None:
            assert all(case.why for case in group.cases), group.name


def test_docs_are_current() -> None:
    """docs/seccomp.md is what the table says today."""
    command = [sys.executable, "-m", "kernel_provider.seccomp", "--explain"]
    told = subprocess.run(command, check=True, capture_output=True, text=True)
    assert told.stdout == DOCS.read_text(encoding="utf-8")


def test_prints_a_profile() -> None:
    """Without arguments the module prints JSON that the engine's command line takes."""
    command = [sys.executable, "-m", "kernel_provider.seccomp", "--loopback"]
    told = subprocess.run(command, check=True, capture_output=True, text=True)
    assert json.loads(told.stdout) == seccomp.profile(loopback=True)
