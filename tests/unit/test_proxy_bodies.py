"""What the proxy before the engine lets a user ask for: what this package would, and no more."""

import copy
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kernel_provider.ceilings import Ceilings
from kernel_provider.engines import Mount
from kernel_provider.engines.docker import create_body
from kernel_provider.errors import ConfigError
from kernel_provider.hardening import RENDEZVOUS_FOLDER, sandbox_spec
from kernel_provider.policy import KernelPolicy
from kernel_provider.proxy.bodies import check_mounted, check_mounts, creation, new_quota
from kernel_provider.proxy.calls import RefusedError
from kernel_provider.seccomp import profile_json

UID = 0x7000_0001
UIDS = (0x7000_0000, 0x10_0000)
IMAGE = "sha256:" + "0a" * 32
MIB = 1 << 20

Body = dict[str, Any]


def asked(policy: KernelPolicy | None = None, **spec: Any) -> Body:
    """The body that this package sends, as it arrives."""
    made = sandbox_spec(
        policy or KernelPolicy(), rendezvous="/tmp/executor-ml-1000/s-1", warm=["os"]
    )
    labels = {**made.labels, "executor-ml.warden": "a:b:1:2"}
    body = create_body(replace(made, labels=labels, **spec), image_id=IMAGE, uid=UID)
    arrived: Body = json.loads(json.dumps(body))
    return arrived


def passed(
    body: object, ceilings: Ceilings | None = None, name: str = f"executor-ml-{UID}"
) -> Body:
    """What is passed on."""
    return creation(body, name=name, uids=UIDS, ceilings=ceilings or Ceilings()).body


@pytest.mark.parametrize(
    "policy",
    [
        KernelPolicy(),
        KernelPolicy(memory=96 * MIB, tmp_size=MIB, shm_size=MIB, cpus=0.29, pids=32),
        KernelPolicy(
            loopback=True, env={"A": "b=c\nd", "OMP_NUM_THREADS": "3"}, preload=("torch",)
        ),
        KernelPolicy(gpus="all"),
        KernelPolicy(gpus=2),
        KernelPolicy(gpus=("0", "GPU-1")),
        KernelPolicy(mounts={"/data/x": "/srv/data"}),
    ],
)
@pytest.mark.parametrize("cpus_open", [True, False])
def test_what_this_package_asks_for_is_passed_on(policy: KernelPolicy, *, cpus_open: bool) -> None:
    """Unchanged, whatever the settings, while no ceiling says otherwise."""
    body = asked(policy, cpus_open=cpus_open)
    assert passed(body) == body


def host(**changes: object) -> Callable[[Body], None]:
    """Change keys of HostConfig."""
    return lambda body: body["HostConfig"].update(changes)


def top(**changes: object) -> Callable[[Body], None]:
    """Change keys of the body itself."""
    return lambda body: body.update(changes)


UNCONFINED = ["no-new-privileges:true", "seccomp=unconfined"]
OTHERS_PROFILE = ["no-new-privileges:true", f"seccomp={profile_json(loopback=True)}"]


@pytest.mark.parametrize(
    "change",
    [
        host(Privileged=True),
        host(NetworkMode="host"),
        host(NetworkMode="bridge"),
        host(ReadonlyRootfs=False),
        host(Binds=["/:/host"]),
        host(VolumesFrom=["x"]),
        host(Devices=[{"PathOnHost": "/dev/sda", "PathInContainer": "/dev/sda"}]),
        host(DeviceCgroupRules=["a *:* rwm"]),
        host(CapAdd=["SYS_ADMIN"]),
        host(CapDrop=[]),
        host(PidMode="host"),
        host(IpcMode="host"),
        host(UTSMode="host"),
        host(UsernsMode="host"),
        host(CgroupnsMode="host"),
        host(CgroupParent="/"),
        host(SecurityOpt=UNCONFINED),
        host(SecurityOpt=OTHERS_PROFILE),
        host(SecurityOpt=["no-new-privileges:true"]),
        host(SecurityOpt=[*UNCONFINED[:1], "apparmor=unconfined", f"seccomp={profile_json()}"]),
        host(MaskedPaths=[]),
        host(ReadonlyPaths=[]),
        host(Sysctls={"kernel.msgmax": "1"}),
        host(Runtime="other"),
        host(OomScoreAdj=-1000),
        host(OomKillDisable=True),
        host(MemorySwap=-1),
        host(Memory=0, MemorySwap=0),
        host(Memory=True),
        host(Memory=512.5),
        host(CpuPeriod=1_000_000),
        host(CpuQuota=0),
        host(CpuQuota=-2),
        host(NanoCpus=4_000_000_000),
        host(PidsLimit=-1),
        host(PidsLimit=None),
        host(ShmSize=1 << 40),
        host(Ulimits=[]),
        host(Tmpfs={"/tmp": "rw,exec,size=134217728,nr_inodes=16384"}),
        host(Tmpfs={"/tmp": "rw,size=134217728,nr_inodes=16384", "/x": ""}),
        host(RestartPolicy={"Name": "always"}),
        host(AutoRemove=True),
        host(LogConfig={"Type": "syslog", "Config": {"syslog-address": "tcp://198.51.100.1"}}),
        host(Dns=["198.51.100.1"]),
        host(ExtraHosts=["a:198.51.100.1"]),
        host(GroupAdd=["0"]),
        host(PublishAllPorts=True),
        host(StorageOpt={"size": "1T"}),
        host(DeviceRequests=[{"Driver": "x", "Count": 1, "Capabilities": [["gpu"]]}]),
        host(Mounts=[{"Type": "volume", "Source": "v", "Target": RENDEZVOUS_FOLDER}]),
        host(Mounts=[{"Type": "bind", "Source": "/a", "Target": "/data/x", "ReadOnly": False}]),
        host(
            Mounts=[
                {
                    "Type": "bind",
                    "Source": "/a",
                    "Target": "/data/x",
                    "ReadOnly": True,
                    "BindOptions": {"Propagation": "shared"},
                }
            ]
        ),
        top(User="0:0"),
        top(User="1000:1000"),
        top(User=f"{UID}:0"),
        top(User=""),
        top(Image="executor-ml:latest"),
        top(Entrypoint=["/bin/sh", "-c", "id"]),
        top(Cmd=["id"]),
        top(WorkingDir="/tmp"),
        top(Hostname="other"),
        top(NetworkDisabled=None),
        top(NetworkingConfig={"EndpointsConfig": {"host": {}}}),
        top(Volumes={"/x": {}}),
        top(ExposedPorts={"80/tcp": {}}),
        top(Healthcheck={"Test": ["CMD", "id"], "Interval": 1_000_000_000}),
        top(StopSignal="SIGCONT"),
        top(Labels={"executor-ml": "kernel", "executor-ml.user": "0"}),
        top(Labels={"executor-ml": "image"}),
        top(Labels={}),
        top(Env=["OMP_NUM_THREADS=1"]),
        top(HostConfig=None),
        top(Shell=["/bin/sh"]),
        lambda body: body["Env"].append("LD_PRELOAD=/data/x.so"),
        lambda body: body["Env"].append("GLIBC_TUNABLES=x"),
        lambda body: body.pop("User"),
        lambda body: body["HostConfig"].pop("CapDrop"),
        lambda body: body["HostConfig"].pop("Dns"),
    ],
)
def test_nothing_else_is(change: Callable[[Body], object]) -> None:
    """Whatever one adds, changes or leaves out, there is no such container."""
    body = asked()
    assert passed(copy.deepcopy(body)) == body
    change(body)
    with pytest.raises((RefusedError, ConfigError)):
        passed(body)


@pytest.mark.parametrize("body", [None, [], "x", 7, {}, {"HostConfig": []}, {"HostConfig": {}}])
def test_what_is_no_body_is_refused(body: object) -> None:
    """With words, whatever JSON it is."""
    with pytest.raises(RefusedError):
        passed(body)


@pytest.mark.parametrize("uid", [0, 1000, UIDS[0] - 1, UIDS[0] + UIDS[1]])
def test_no_other_uid_runs(uid: int) -> None:
    """Only those that sandboxes have, each under its own name."""
    body = {**asked(), "User": f"{uid}:{uid}"}
    with pytest.raises(RefusedError, match="its user"):
        passed(body, name=f"executor-ml-{uid}")
    with pytest.raises(RefusedError, match="its user"):
        passed(asked(), name=f"executor-ml-{UID + 1}")


@pytest.mark.parametrize(
    ("key", "limit", "policy"),
    [
        ("memory", 256 * MIB, KernelPolicy()),
        ("pids", 64, KernelPolicy()),
        ("tmp_size", 64 * MIB, KernelPolicy()),
        ("shm_size", 32 * MIB, KernelPolicy()),
        ("loopback", False, KernelPolicy(loopback=True)),
        ("gpus", 0, KernelPolicy(gpus="all")),
        ("gpus", 1, KernelPolicy(gpus=2)),
    ],
)
def test_ceilings_hold(key: str, limit: float, policy: KernelPolicy) -> None:
    """Also for whoever sends the calls without this package, where nobody read the policy."""
    ceilings = Ceilings(limits={key: limit}, sources={key: "policy.toml"})
    with pytest.raises(ConfigError, match=r"policy\.toml"):
        passed(asked(policy), ceilings)


def test_processor_time_is_open_up_to_its_ceiling() -> None:
    """While a sandbox starts, and no further: whoever asked might never close it."""
    ceilings = Ceilings(limits={"cpus": 1.5})
    assert passed(asked(), ceilings)["HostConfig"]["CpuQuota"] == 150_000
    with pytest.raises(ConfigError):
        passed(asked(KernelPolicy(cpus=2), cpus_open=False), ceilings)
    assert new_quota({"CpuPeriod": 100_000, "CpuQuota": 150_000}, ceilings)["CpuQuota"] == 150_000
    others: tuple[object, ...] = (
        {"CpuPeriod": 100_000, "CpuQuota": 150_001},
        {"CpuPeriod": 100_000, "CpuQuota": -1},
        {"CpuPeriod": 100_000, "CpuQuota": 0},
        {"CpuPeriod": 1000, "CpuQuota": 1000},
        {"CpuPeriod": 100_000, "CpuQuota": 50_000, "Memory": 1 << 40},
        {"CpuPeriod": 100_000, "CpuQuota": True},
        {"CpuQuota": 50_000},
        [],
        None,
    )
    for body in others:
        with pytest.raises(RefusedError):
            new_quota(body, ceilings)


def test_mounts_are_the_users_folder_and_the_administrators(tmp_path: Path) -> None:
    """Of the user one folder, where their sockets are; all else from the listed places."""
    own, shared, other = (tmp_path / name for name in ("own", "shared", "other"))
    for folder in (own, shared / "models", other):
        folder.mkdir(parents=True)
    (tmp_path / "link").symlink_to(other)
    (shared / "out").symlink_to(other)
    (shared / "file").touch()
    ceilings = Ceilings(mount_sources=(str(shared),))
    uid = os.getuid()

    def look(*mounts: tuple[Path | str, str], user: int = uid, held: Ceilings = ceilings) -> None:
        made = [Mount(source=str(source), target=target) for source, target in mounts]
        check_mounts(made, uid=user, ceilings=held)

    first = (own, RENDEZVOUS_FOLDER)
    look(first)
    look(first, (shared / "models", "/models/hub/models--a--b"), (shared, "/data/x"))
    for mounts in (
        (),
        ((shared, "/data/x"),),
        (first, first),
        ((tmp_path / "link", RENDEZVOUS_FOLDER),),
        ((tmp_path / "nowhere", RENDEZVOUS_FOLDER),),
        ((shared / "file", RENDEZVOUS_FOLDER),),
        (("own", RENDEZVOUS_FOLDER),),
        (first, (other, "/data/x")),
        (first, ("/", "/data/x")),
        (first, (shared / "out", "/data/x")),
        (first, (f"{shared}/../other", "/data/x")),
        (first, (shared / "file", "/data/x")),
        (first, (shared, "/etc/x")),
        (first, (shared, "/models")),
        (first, (shared, "/models/../etc")),
        (first, (shared, "/models//x")),
        (first, (shared, "data/x")),
    ):
        with pytest.raises(RefusedError):
            look(*mounts)
    with pytest.raises(RefusedError, match="no folder of user"):
        look(first, user=uid + 1)
    with pytest.raises(RefusedError, match="mount_sources"):
        look(first, (shared, "/data/x"), held=Ceilings())


def test_a_folder_that_was_swapped_is_seen(tmp_path: Path) -> None:
    """What a process has at a place is compared with what is now at the path."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    check_mounted([Mount(source=str(tmp_path / "a"), target=str(tmp_path / "a"))], pid=os.getpid())
    swapped = Mount(source=str(tmp_path / "a"), target=str(tmp_path / "b"))
    with pytest.raises(RefusedError, match="another folder"):
        check_mounted([swapped], pid=os.getpid())
    with pytest.raises(RefusedError, match="could not be looked at"):
        check_mounted([replace(swapped, target="/nowhere")], pid=os.getpid())
