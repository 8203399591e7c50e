"""Limits of other values, and from the first cell on; that they hold, the self-test shows."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import pytest
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager
from kernels import kernel, run

from kernel_provider import names
from kernel_provider.seccomp import profile_json
from kernel_provider.values import MIB

pytestmark = [pytest.mark.container, pytest.mark.usefixtures("image")]
Pair = tuple[KernelManager, BlockingKernelClient]

CGROUP = """
from pathlib import Path
def cgroup(controller, one, two):
    root = Path("/sys/fs/cgroup")
    unified = not (root / "memory").is_dir()
    return (root / two if unified else root / controller / one).read_text().split()
"""


@pytest.fixture(scope="module")
def limits() -> Iterator[Pair]:
    """A kernel of the default policy whose very first cell was read_first's."""
    with kernel() as pair:
        yield pair


def value(client: BlockingKernelClient, code: str, *, timeout: float = 60.0) -> Any:
    """Run a cell whose last line prints JSON."""
    outcome = run(client, code, timeout=timeout)
    assert outcome.status == "ok", outcome.error.get("evalue")
    return json.loads(outcome.stdout.splitlines()[-1])


def ask(client: BlockingKernelClient, expression: str, setup: str = "") -> Any:
    """The value of an expression, through JSON."""
    return value(client, f"import json, os\n{setup}\nprint(json.dumps({expression}))")


def attributes(engine: docker.DockerClient, client: BlockingKernelClient) -> dict[str, Any]:
    """What the engine says of the container that this client's kernel runs in."""
    uid = ask(client, "os.getuid()")
    answer: dict[str, Any] = engine.api.inspect_container(f"executor-ml-{uid}")
    engine.api.get_adapter(engine.api.base_url).close()  # it keeps connections open
    return answer


BURN = """
import json, time
def burnt(seconds):
    began, used = time.monotonic(), time.process_time()
    while time.monotonic() - began < seconds: pass
    return (time.process_time() - used) / (time.monotonic() - began)
"""


# --- processor ----------------------------------------------------------------------------


def test_the_processor_limit_is_closed_in_the_very_first_cell() -> None:
    """It was open while the interpreter started; no user code ever runs without it (D4)."""
    with kernel() as (_, client):
        first = (
            BURN
            + CGROUP
            + ("print(json.dumps([cgroup('cpu', 'cpu.cfs_quota_us', 'cpu.max')[0], burnt(1.5)]))")
        )
        quota, share = value(client, first)
    assert quota == "50000"
    assert 0.35 < share < 0.62


def test_threads_follow_the_limit(limits: Pair) -> None:
    """Torch and numpy start as many threads as there are processors, rounded up."""
    _, client = limits
    assert ask(client, "torch.get_num_threads()", "import torch") == 1
    assert ask(client, "os.environ['OMP_NUM_THREADS']") == "1"


def mounts(client: BlockingKernelClient) -> dict[str, set[str]]:
    """Mount options by mount point, as the sandbox's kernel sees them."""
    lines = ask(client, "open('/proc/self/mounts').read().splitlines()")
    return {line.split()[1]: set(line.split()[3].split(",")) for line in lines}


# --- rights -------------------------------------------------------------------------------


def test_the_engine_says_the_same(limits: Pair, engine: docker.DockerClient) -> None:
    """Docker inspect shows what was asked for, value by value."""
    found = attributes(engine, limits[1])
    host, config = found["HostConfig"], found["Config"]
    assert {
        key: host[key]
        for key in (
            "NetworkMode", "ReadonlyRootfs", "Privileged", "Memory", "MemorySwap", "NanoCpus",
            "CpuPeriod", "CpuQuota", "PidsLimit", "ShmSize", "CapAdd", "CapDrop", "IpcMode",
            "PidMode", "UTSMode", "Binds", "VolumesFrom", "PublishAllPorts",
        )
    } == {
        "NetworkMode": "none", "ReadonlyRootfs": True, "Privileged": False,
        "Memory": 512 * MIB, "MemorySwap": 512 * MIB, "NanoCpus": 0,
        "CpuPeriod": 100_000, "CpuQuota": 50_000, "PidsLimit": 128, "ShmSize": 64 * MIB,
        "CapAdd": None, "CapDrop": ["ALL"], "IpcMode": "private",
        "PidMode": "", "UTSMode": "",
        "Binds": None, "VolumesFrom": None, "PublishAllPorts": False,
    }  # fmt: skip
    assert not host["Devices"]
    assert host["Ulimits"] == [
        {"Name": "nofile", "Soft": 1024, "Hard": 1024},
        {"Name": "core", "Soft": 0, "Hard": 0},
    ]
    assert host["SecurityOpt"] == [
        "no-new-privileges:true",
        f"seccomp={profile_json(loopback=False)}",
    ]
    assert [m["ReadOnly"] for m in host["Mounts"]] == [True]
    assert (config["Hostname"], config["Tty"], config["OpenStdin"]) == ("sandbox", False, False)
    assert config["Labels"][names.LABEL] == names.KIND_KERNEL
    assert set(found["NetworkSettings"]["Networks"]) <= {"none"}


# --- other values -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two folders of the host with a file each, open to all."""
    root = tmp_path_factory.mktemp("mounts")
    made = []
    for name in ("model", "data"):
        folder = root / name
        folder.mkdir()
        (folder / "file").write_text(name)
        (folder / "file").chmod(0o666)
        folder.chmod(0o777)
        made.append(folder)
    return made[0], made[1]


@pytest.fixture(scope="module")
def other(folders: tuple[Path, Path], image: str) -> Iterator[Pair]:
    """A kernel with another value for every setting."""
    assert image
    config = {
        "memory": "256m",
        "cpus": 1.5,
        "pids": 64,
        "tmp_size": "32m",
        "shm_size": "16m",
        "mounts": {"/models/x": str(folders[0]), "/data/y": str(folders[1])},
        "env": {"MINE": "a = 'b'"},
        "preload": ["decimal"],
    }
    with kernel(config) as pair:
        yield pair


def test_a_policy_with_other_values_is_honoured(other: Pair) -> None:
    """Memory, processors, processes, sizes, environment, thread counts, preload."""
    _, client = other
    read = (
        "[cgroup('memory', 'memory.limit_in_bytes', 'memory.max')[0],"
        " cgroup('cpu', 'cpu.cfs_quota_us', 'cpu.max')[0],"
        " cgroup('pids', 'pids.max', 'pids.max')[0]]"
    )
    assert ask(client, read, CGROUP) == [str(256 * MIB), "150000", "64"]
    sizes = "[os.statvfs(p).f_blocks * os.statvfs(p).f_frsize >> 20 for p in ('/tmp','/dev/shm')]"
    assert ask(client, sizes) == [32, 16]
    assert ask(client, "[os.environ['MINE'], os.environ['OMP_NUM_THREADS']]") == ["a = 'b'", "2"]
    assert ask(client, "'decimal' in sys.modules", "import sys") is True
    assert "EXECUTOR_ML_PRELOAD" not in ask(client, "dict(os.environ)")


@pytest.mark.parametrize(("place", "text"), [("/models/x", "model"), ("/data/y", "data")])
def test_mounts_can_be_read_and_never_written(
    other: Pair, folders: tuple[Path, Path], place: str, text: str
) -> None:
    """Though everybody may write on the host: the mount itself is read-only."""
    _, client = other
    assert ask(client, f"open('{place}/file').read()") == text
    assert "ro" in mounts(client)[place]
    for code in (
        f"open('{place}/file', 'w')",
        f"open('{place}/new', 'w')",
        f"import os; os.remove('{place}/file')",
        f"import os; os.chmod('{place}/file', 0o777)",
        f"import os; os.symlink('/', '{place}/link')",
    ):
        assert run(client, code).error["ename"] in {"OSError", "PermissionError"}, code
    assert [p.name for p in folders[0].iterdir()] == ["file"]
