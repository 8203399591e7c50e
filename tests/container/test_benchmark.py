"""The container section of the CIS Docker Benchmark 1.6 (5), asked of a running sandbox.

https://www.cisecurity.org/benchmark/docker; each item is written from its meaning, and
docs/threat-model.md says why two of them are not met.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker
import pytest
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager
from pages import read
from sandboxes import look, session_of, value

pytestmark = pytest.mark.container
Facts = dict[str, Any]

SENSITIVE = ("/", "/boot", "/dev", "/etc", "/lib", "/proc", "/sys", "/usr")
SSH = ("ssh", "sshd", "dropbear")


@dataclass(frozen=True, kw_only=True)
class Item:
    """An item of the section: what it wants, and a sandbox that would not have it."""

    number: str
    wants: str
    met: Callable[[Facts], object]
    spoilt: Callable[[Facts], object]


def host(**values: Any) -> Callable[[Facts], object]:
    """Spoil by other values of HostConfig."""
    return lambda facts: facts["HostConfig"].update(values)


def sources(facts: Facts) -> list[str]:
    """Folders of the host that are mounted."""
    return [mount["Source"] for mount in facts["Mounts"]]


ITEMS = (
    Item(
        number="5.3",
        wants="security options are set",
        met=lambda f: f["HostConfig"]["SecurityOpt"],
        spoilt=host(SecurityOpt=[]),
    ),
    Item(
        number="5.4",
        wants="no capabilities but those that are needed: none",
        met=lambda f: f["HostConfig"]["CapDrop"] == ["ALL"] and not f["HostConfig"]["CapAdd"],
        spoilt=host(CapAdd=["NET_ADMIN"]),
    ),
    Item(
        number="5.5",
        wants="not privileged",
        met=lambda f: f["HostConfig"]["Privileged"] is False,
        spoilt=host(Privileged=True),
    ),
    Item(
        number="5.6",
        wants="no folder of the host's system is mounted",
        met=lambda f: not set(sources(f)) & set(SENSITIVE),
        spoilt=lambda f: f["Mounts"].append({"Source": "/etc", "RW": False, "Propagation": ""}),
    ),
    Item(
        number="5.7",
        wants="no sshd runs",
        met=lambda f: not set(f["Processes"]) & set(SSH),
        spoilt=lambda f: f["Processes"].append("sshd"),
    ),
    Item(
        number="5.8",
        wants="no privileged port is mapped",
        met=lambda f: not f["HostConfig"]["PortBindings"],
        spoilt=host(PortBindings={"80/tcp": [{"HostPort": "80"}]}),
    ),
    Item(
        number="5.9",
        wants="no port is open that is not needed: none",
        met=lambda f: not f["NetworkSettings"]["Ports"] and not f["Config"].get("ExposedPorts"),
        spoilt=lambda f: f["NetworkSettings"].update(Ports={"8888/tcp": []}),
    ),
    Item(
        number="5.10",
        wants="not in the host's network",
        met=lambda f: f["HostConfig"]["NetworkMode"] == "none",
        spoilt=host(NetworkMode="host"),
    ),
    Item(
        number="5.11",
        wants="memory is limited",
        met=lambda f: 0 < f["HostConfig"]["Memory"] == f["HostConfig"]["MemorySwap"],
        spoilt=host(Memory=0),
    ),
    Item(
        number="5.12",
        wants="processor time is limited: by a quota, which is stricter than shares",
        met=lambda f: 0 < f["HostConfig"]["CpuQuota"] <= f["HostConfig"]["CpuPeriod"] * 64,
        spoilt=host(CpuQuota=-1),
    ),
    Item(
        number="5.13",
        wants="a read-only root",
        met=lambda f: f["HostConfig"]["ReadonlyRootfs"] is True,
        spoilt=host(ReadonlyRootfs=False),
    ),
    Item(
        number="5.14",
        wants="no port on all of the host's interfaces",
        met=lambda f: not f["HostConfig"]["PublishAllPorts"],
        spoilt=host(PublishAllPorts=True),
    ),
    Item(
        number="5.15",
        wants="at most 5 restarts: none",
        met=lambda f: f["HostConfig"]["RestartPolicy"]["Name"] == "no",
        spoilt=host(RestartPolicy={"Name": "always"}),
    ),
    Item(
        number="5.16",
        wants="not among the host's processes",
        met=lambda f: f["HostConfig"]["PidMode"] == "",
        spoilt=host(PidMode="host"),
    ),
    Item(
        number="5.17",
        wants="not in the host's IPC",
        met=lambda f: f["HostConfig"]["IpcMode"] == "private",
        spoilt=host(IpcMode="host"),
    ),
    Item(
        number="5.18",
        wants="no device of the host",
        met=lambda f: not f["HostConfig"]["Devices"] and not f["HostConfig"]["DeviceRequests"],
        spoilt=host(Devices=[{"PathOnHost": "/dev/kvm"}]),
    ),
    Item(
        number="5.19",
        wants="limits of open files are its own, and no core is dumped",
        met=lambda f: (
            {u["Name"]: u["Hard"] for u in f["HostConfig"]["Ulimits"]}
            == {"nofile": 1024, "core": 0}
        ),
        spoilt=host(Ulimits=[]),
    ),
    Item(
        number="5.20",
        wants="no mount is propagated back",
        met=lambda f: all(m["Propagation"] in {"", "rprivate", "private"} for m in f["Mounts"]),
        spoilt=lambda f: f["Mounts"].append({"Source": "/x", "RW": False, "Propagation": "shared"}),
    ),
    Item(
        number="5.21",
        wants="a host name of its own",
        met=lambda f: f["HostConfig"]["UTSMode"] == "" and f["Config"]["Hostname"] == "sandbox",
        spoilt=host(UTSMode="host"),
    ),
    Item(
        number="5.22",
        wants="a seccomp profile is on",
        met=lambda f: any(
            option.startswith("seccomp={") for option in f["HostConfig"]["SecurityOpt"]
        ),
        spoilt=host(SecurityOpt=["seccomp=unconfined"]),
    ),
    Item(
        number="5.23 and 5.24",
        wants="no exec as root or privileged: no exec at all",
        met=lambda f: not f["ExecIDs"],
        spoilt=lambda f: f.update(ExecIDs=["0123"]),
    ),
    Item(
        number="5.25",
        wants="in the control group that it was given",
        met=lambda f: f["HostConfig"]["CgroupParent"] == "",
        spoilt=host(CgroupParent="/system"),
    ),
    Item(
        number="5.26",
        wants="no new privileges",
        met=lambda f: "no-new-privileges:true" in f["HostConfig"]["SecurityOpt"],
        spoilt=host(SecurityOpt=[]),
    ),
    Item(
        number="5.28",
        wants="the image by its id, so that it is the one that was meant",
        met=lambda f: f["Config"]["Image"].startswith("sha256:"),
        spoilt=lambda f: f["Config"].update(Image="executor-ml:latest"),
    ),
    Item(
        number="5.29",
        wants="processes are limited",
        met=lambda f: 0 < (f["HostConfig"]["PidsLimit"] or 0) < 1000,
        spoilt=host(PidsLimit=None),
    ),
    Item(
        number="5.30",
        wants="not on the engine's bridge",
        met=lambda f: set(f["NetworkSettings"]["Networks"]) <= {"none"},
        spoilt=lambda f: f["NetworkSettings"]["Networks"].update(bridge={}),
    ),
    Item(
        number="5.31",
        wants="users are not the host's",
        met=lambda f: (
            f["HostConfig"]["UsernsMode"] != "host"
            and f["Config"]["User"].partition(":")[0] not in {"", "0", "root"}
        ),
        spoilt=host(UsernsMode="host"),
    ),
    Item(
        number="5.32",
        wants="the engine's socket is not inside",
        met=lambda f: not any("docker.sock" in source for source in sources(f)),
        spoilt=lambda f: f["Mounts"].append(
            {"Source": "/var/run/docker.sock", "RW": False, "Propagation": ""}
        ),
    ),
)
EXCUSED = {"5.2": "AppArmor", "5.27": "HEALTHCHECK"}
"""Items that are not met everywhere, with the word under which the page tells why."""
NOT_OURS = {"5.1": "swarm mode"}


@pytest.fixture(scope="module")
def facts(
    shared_kernel: tuple[KernelManager, BlockingKernelClient], engine: docker.DockerClient
) -> Facts:
    """What the engine says of a running sandbox, and which programs run in it."""
    km, client = shared_kernel
    found: Facts = engine.api.inspect_container(look(session_of(km), engine).container)
    engine.close()
    code = "import glob\n[open(f).read().strip() for f in glob.glob('/proc/[0-9]*/comm')]"
    return {**found, "Processes": value(client, code)}


@pytest.mark.parametrize("item", ITEMS, ids=lambda item: item.number)
def test_item(item: Item, facts: Facts) -> None:
    """It is met; and the test sees where it is not."""
    assert item.met(facts), item.wants
    spoilt = copy.deepcopy(facts)
    item.spoilt(spoilt)
    assert not item.met(spoilt)


def test_apparmor_where_the_host_has_it(facts: Facts) -> None:
    """5.2: the engine's own profile is on where there is AppArmor at all."""
    there = Path("/sys/kernel/security/apparmor").exists()
    assert facts["AppArmorProfile"] == ("docker-default" if there else "")


def test_no_health_check_runs(facts: Facts) -> None:
    """5.27 is not met on purpose: it would be an exec into a hostile sandbox."""
    assert facts["Config"]["Healthcheck"] == {"Test": ["NONE"]}


def test_the_page_says_why() -> None:
    """Each item that is not met, and those that are nothing of ours."""
    page = read("docs/threat-model.md")
    for number, word in {**EXCUSED, **NOT_OURS}.items():
        assert f"| {number} " in page
        assert word in page
    told = {number for item in ITEMS for number in item.number.split(" and ")}
    assert told | set(EXCUSED) | set(NOT_OURS) == {f"5.{n}" for n in range(1, 33)}
