"""The self-test, as an administrator runs it: its checks are the promises, one test each.

And every one of them can fail: in a sandbox that does not hold its promise.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import docker
import pytest
from proxy import CREATE, EngineProxy, proxied
from weakened import (
    Body,
    Opened,
    both,
    by_hand,
    immortal,
    joined,
    let_out,
    odd_folder,
    one_household,
    other_guardian,
    quick,
    telling,
    wide,
)

from kernel_provider import names
from kernel_provider.engines.docker import find_socket
from kernel_provider.verify import box
from kernel_provider.verify.box import opener
from kernel_provider.verify.checks import GROUPS
from kernel_provider.verify.judges import refused
from kernel_provider.verify.look import laid_out
from kernel_provider.verify.model import PATIENCE, Check, Judge, Status, Verdict, Where
from kernel_provider.verify.runner import Run

pytestmark = [pytest.mark.container, pytest.mark.usefixtures("image")]
AS_ROOT = pytest.mark.skipif(os.getuid() != 0, reason="only root can weaken a sandbox so")
COMMAND = Path(sys.executable).with_name("executor-ml")

EVERY = {check.name: check for checks in GROUPS.values() for check in checks}
Verdicts = dict[str, Verdict]

BY_GUARDIAN = {
    *("held", "listeners", "accepted", "names", "open-files"),
    *("place", "read", "write", "signals", "orphans", "score", "log"),
}
"""They fail where PID 1 is another."""
SOCKETS = {"listeners", "accepted"}
"""These need a network that leads somewhere, too."""
BY_ESCAPE = {
    name
    for name, check in EVERY.items()
    if check.where is Where.ROUGH and name not in {"signals", "log", "descriptors", "cores", "ptys"}
} - {"memory-loopback"}
"""Where processes have left their control group."""
BY_COMPANY = {name for name, check in EVERY.items() if check.where is Where.PAIR}
BY_LIFE = {name for name, check in EVERY.items() if check.where in {Where.STOPPED, Where.EXITED}}
BY_RIGHTS = (
    (
        {name for name, check in EVERY.items() if check.where is Where.PLAIN}
        | {"descriptors", "cores", "ptys"}
    )
    - BY_GUARDIAN
    - {"processes"}
)


def verdicts(wanted: set[str], opened: Opened) -> Verdicts:
    """What some of the checks say of such sandboxes."""
    checks = [check for name, check in EVERY.items() if name in wanted]
    with laid_out(os.environ) as host:
        return asyncio.run(Run(host, opened, lambda _text: None).all(checks))


def meddled(
    proxy: EngineProxy, edit: Callable[[Body], Body], wanted: set[str], opened: Opened
) -> Verdicts:
    """The same, where the engine is asked for something else than we ask."""
    proxy.requests[CREATE] = edit
    try:
        return verdicts(wanted, opened)
    finally:
        proxy.requests.clear()


@pytest.fixture(scope="module", autouse=True)
def started(image: str) -> Iterator[subprocess.Popen[str]]:
    """The command, which runs beside the first tests of this module."""
    assert image
    words = [str(COMMAND), "verify", "--json"]
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        yield process
        process.send_signal(signal.SIGINT)


@pytest.fixture(scope="module")
def ran(started: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Its exit code, output and signs of life: one run for all tests."""
    out, told = started.communicate(timeout=300)
    return started.returncode, out, told


@pytest.fixture(scope="module")
def results(ran: tuple[int, str, str]) -> dict[str, dict[str, Any]]:
    """What it says of each check."""
    return {check["name"]: check for check in json.loads(ran[1])["checks"]}


@pytest.fixture(scope="module")
def meddler(started: subprocess.Popen[str]) -> Iterator[EngineProxy]:
    """An engine that can be made to loosen what it is asked for."""
    assert started.pid
    with proxied(find_socket(os.environ)) as proxy, pytest.MonkeyPatch.context() as patch:
        patch.setenv("DOCKER_HOST", f"unix://{proxy.path}")
        yield proxy


@pytest.fixture(scope="module")
def by_rights(meddler: EngineProxy) -> Verdicts:
    """Verdicts on sandboxes with all rights."""
    with odd_folder() as odd, telling() as opened:
        return meddled(meddler, wide(odd), BY_RIGHTS, opened)


@pytest.fixture(scope="module")
def by_guardian(meddler: EngineProxy) -> Verdicts:
    """Verdicts on sandboxes with a guardian that is none."""
    with odd_folder() as odd:
        edit = both(wide(odd), other_guardian)
        found = meddled(meddler, edit, BY_GUARDIAN & SOCKETS, quick)
    return found | meddled(meddler, other_guardian, BY_GUARDIAN - SOCKETS, quick)


@pytest.fixture(scope="module")
def by_escape() -> Verdicts:
    """Verdicts on sandboxes that no control group holds."""
    return verdicts(BY_ESCAPE, by_hand(let_out))


@pytest.fixture(scope="module")
def by_company(meddler: EngineProxy, tmp_path_factory: pytest.TempPathFactory) -> Verdicts:
    """Verdicts on two sandboxes that share all they can."""
    folder = tmp_path_factory.mktemp("shared")
    folder.chmod(0o1777)
    with one_household(meddler, folder) as edit:
        return meddled(meddler, edit, BY_COMPANY, quick)


@pytest.fixture(scope="module")
def by_life(meddler: EngineProxy) -> Verdicts:
    """Verdicts on sandboxes that do not end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(box, "ENDS_WITHIN", 2.0)
        patch.setattr(box, "GONE_WITHIN", 2.0)
        patch.setattr(box, "GRACE", 0.1)
        return verdicts(BY_LIFE, immortal(meddler))


def assert_not_held(found: Verdict) -> None:
    """It failed, and not because it could not be tried."""
    assert found.status is Status.NOT_HELD, found
    assert "could not be tried" not in found.happened
    assert "makes no sense" not in found.happened


@AS_ROOT
@pytest.mark.parametrize("name", sorted(BY_RIGHTS))
def test_not_held_with_rights(name: str, by_rights: Verdicts) -> None:
    """Root, capabilities, no filter, the host's network, writable mounts, no limits of files."""
    assert_not_held(by_rights[name])


@AS_ROOT
@pytest.mark.parametrize("name", sorted(BY_GUARDIAN))
def test_not_held_without_the_guardian(name: str, by_guardian: Verdicts) -> None:
    """PID 1 leaks descriptors, can be read, dies of signals and reaps nobody."""
    assert_not_held(by_guardian[name])


@AS_ROOT
@pytest.mark.parametrize("name", sorted(BY_ESCAPE))
def test_not_held_outside_of_its_control_group(name: str, by_escape: Verdicts) -> None:
    """Its processes were moved to the root of all groups."""
    assert_not_held(by_escape[name])


@AS_ROOT
@pytest.mark.parametrize("name", sorted(BY_COMPANY))
def test_not_held_in_one_household(name: str, by_company: Verdicts) -> None:
    """Both kernels have one uid, network, process table and /tmp."""
    assert_not_held(by_company[name])


@AS_ROOT
@pytest.mark.parametrize("name", sorted(BY_LIFE))
def test_not_held_by_the_undying(name: str, by_life: Verdicts) -> None:
    """PID 1 is halted, and the engine removes nothing."""
    assert_not_held(by_life[name])


def test_processes_not_held_among_others(
    meddler: EngineProxy, engine: docker.DockerClient, image: str
) -> None:
    """The sandbox joined another container's process table."""
    neighbour = engine.containers.run(
        image,
        entrypoint=["/bin/sh", "-c", "sleep 60 & sleep 60"],
        labels={names.LABEL: "test"},
        network_mode="none",
        detach=True,
    )
    try:
        found = meddled(meddler, joined(str(neighbour.id)), {"processes"}, quick)
        assert_not_held(found["processes"])
    finally:
        neighbour.remove(force=True)
        engine.close()


def test_loopback_memory_on_control_groups_of_version_1() -> None:
    """The check that needs loopback says what an administrator who insists gets."""
    if not Path("/sys/fs/cgroup/memory").is_dir():
        pytest.skip("control groups of version 2 count it")
    found = verdicts({"memory-loopback"}, opener("executor-ml", {"loopback": "insist"}))
    assert_not_held(found["memory-loopback"])


def odd(name: str, code: str, judge: Judge, patience: float = PATIENCE) -> Check:
    """A check that does not go as checks do."""
    return Check(name=name, promise="none", tried=name, code=code, judge=judge, patience=patience)


def test_what_goes_wrong_is_no_promise_that_held() -> None:
    """A kernel that dies or is silent is replaced; code or a judge that fails hold nothing."""
    well = refused("EPERM")
    checks = [
        odd("raises", "1 / 0", well),
        odd("dies", "os.kill(os.getpid(), 9)", well),
        odd("says nothing", "report = {}", well),
        odd("is silent", "time.sleep(60)", well, patience=1.0),
        odd("makes no sense", "report = {}", lambda report, _look: report["no"]),
        odd("is fine", "report = {'a': 'EPERM'}", well),
    ]
    with laid_out(os.environ) as host:
        run = Run(host, quick, lambda _text: None)
        found = asyncio.run(run.all(checks))
    *wrong, fine = found.values()
    assert {word.status for word in wrong} == {Status.NOT_HELD}
    assert fine.status is Status.HELD
    assert [word.happened.partition(":")[0] for word in wrong] == [
        "it could not be tried",
        "the kernel died",
        "nothing could be tried",
        "the kernel did not answer any more",
        "what was seen makes no sense",
    ]
    assert len(run.looks) == 3


# --- where all is well --------------------------------------------------------------------


@pytest.mark.parametrize("name", EVERY)
def test_promise(name: str, results: dict[str, dict[str, Any]]) -> None:
    """It holds in sandboxes as notebooks get them."""
    wanted = Status.NOT_APPLICABLE if name == "memory-loopback" else Status.HELD
    assert results[name]["status"] == wanted, results[name]["happened"]


def test_the_run_as_a_whole(ran: tuple[int, str, str]) -> None:
    """Exit code, sum, what it ran on, and signs of life on the way."""
    code, out, told = ran
    report = json.loads(out)
    assert (code, report["held"]) == (0, True), out
    assert [check["name"] for check in report["checks"]] == list(EVERY)
    assert all(check["happened"] and check["tried"] for check in report["checks"])
    assert (report["kernel"], report["image"]) == ("executor-ml", "executor-ml:latest")
    assert "so far" in told


def test_every_check_was_made_to_fail() -> None:
    """No check but these, and all of these."""
    shown = BY_RIGHTS | BY_GUARDIAN | BY_ESCAPE | BY_COMPANY | BY_LIFE
    assert shown | {"processes", "memory-loopback"} == set(EVERY)
    assert len(EVERY) == sum(map(len, GROUPS.values())), "two checks of one name"
