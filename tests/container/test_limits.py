"""Every limit, seen from inside the sandbox and from the engine."""

import json
import os
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


def test_all_processes_together_have_the_limit(limits: Pair) -> None:
    """Two busy processes share half a processor."""
    code = BURN + (
        "from multiprocessing import get_context\n"
        "with get_context('fork').Pool(2) as pool: shares = pool.map(burnt, [1.5, 1.5])\n"
        "print(json.dumps(sum(shares)))"
    )
    assert 0.3 < value(limits[1], code) < 0.7


def test_threads_follow_the_limit(limits: Pair) -> None:
    """Torch and numpy start as many threads as there are processors, rounded up."""
    _, client = limits
    assert ask(client, "torch.get_num_threads()", "import torch") == 1
    assert ask(client, "os.environ['OMP_NUM_THREADS']") == "1"


# --- memory -------------------------------------------------------------------------------


def test_memory_is_limited_and_swap_is_off(limits: Pair) -> None:
    """512 MB, and not a byte of swap on top."""
    _, client = limits
    read = "cgroup('memory', 'memory.limit_in_bytes', 'memory.max')[0]"
    assert ask(client, read, CGROUP) == str(512 * MIB)
    both = "cgroup('memory', 'memory.memsw.limit_in_bytes', 'memory.swap.max')[0]"
    assert ask(client, both, CGROUP) in {str(512 * MIB), "0"}


FILL = """
import errno
def fill(path, size, step=1 << 20):
    written = 0
    try:
        with open(path, "wb", buffering=0) as file:
            while written < size:
                written += file.write(bytes(step))
    except OSError as error:
        return [errno.errorcode[error.errno], written >> 20]
    finally:
        os.remove(path)
    return ["", written >> 20]
"""


@pytest.mark.parametrize(("folder", "size"), [("/tmp", 128), ("/dev/shm", 64)])
def test_memory_file_systems_have_sizes(limits: Pair, folder: str, size: int) -> None:
    """A full one is an error in the cell, and not the end of the kernel."""
    error, written = ask(limits[1], f"fill('{folder}/full', {2 * size << 20})", FILL)
    assert error == "ENOSPC"
    assert size - 2 <= written <= size


def test_the_number_of_files_is_limited(limits: Pair) -> None:
    """Empty files take memory of the host's too: 16384 inodes at most."""
    code = (
        "import errno, shutil\nos.mkdir('/tmp/many'); made = 0; problem = ''\n"
        "try:\n"
        "    for made in range(20000): os.close(os.open(f'/tmp/many/{made}', os.O_CREAT))\n"
        "except OSError as error: problem = errno.errorcode[error.errno]\n"
        "shutil.rmtree('/tmp/many')"
    )
    made, problem = ask(limits[1], "[made, problem]", code)
    assert problem == "ENOSPC"
    assert 16000 < made < 16384


# --- numbers ------------------------------------------------------------------------------


def test_processes_and_threads_are_limited(limits: Pair) -> None:
    """128 of both; one more is an error in the cell, and the kernel lives on."""
    _, client = limits
    assert ask(client, "cgroup('pids', 'pids.max', 'pids.max')[0]", CGROUP) == "128"
    code = (
        "import threading\nstop = threading.Event(); made = []\n"
        "try:\n"
        "    for _ in range(200):\n"
        "        t = threading.Thread(target=stop.wait); t.start(); made.append(t)\n"
        "except RuntimeError: pass\n"
        "count = len(made); stop.set(); [t.join() for t in made]"
    )
    assert 60 < ask(client, "count", code) < 128
    assert ask(client, "1 + 1") == 2


def test_open_files_are_limited(limits: Pair) -> None:
    """1024 descriptors, soft and hard; no core dumps at all."""
    _, client = limits
    setup = "import resource as r"
    assert ask(client, "r.getrlimit(r.RLIMIT_NOFILE)", setup) == [1024, 1024]
    assert ask(client, "r.getrlimit(r.RLIMIT_CORE)", setup) == [0, 0]


# --- files --------------------------------------------------------------------------------


def mounts(client: BlockingKernelClient) -> dict[str, set[str]]:
    """Mount options by mount point, as the sandbox's kernel sees them."""
    lines = ask(client, "open('/proc/self/mounts').read().splitlines()")
    return {line.split()[1]: set(line.split()[3].split(",")) for line in lines}


def test_nothing_but_memory_can_be_written(limits: Pair) -> None:
    """Root is read-only, and so is every mount that is no memory file system."""
    _, client = limits
    table = mounts(client)
    assert "ro" in table["/"]
    code = (
        "found = []\n"
        "for line in open('/proc/self/mounts'):\n"
        "    _, place, kind = line.split()[:3]\n"
        "    name = f'{place}/.probe'\n"
        "    try: os.close(os.open(name, os.O_CREAT | os.O_WRONLY)); os.remove(name)\n"
        "    except OSError: continue\n"
        "    found.append([place, kind])"
    )
    writable = ask(client, "found", code)
    assert {place for place, _ in writable} <= {"/tmp", "/dev/shm", "/dev/mqueue"}
    assert {kind for _, kind in writable} <= {"tmpfs", "mqueue"}


@pytest.mark.parametrize("path", ["/usr/x", "/opt/venv/x", "/etc/x", "/run/x", "/var/x", "/x"])
def test_the_system_cannot_be_changed(limits: Pair, path: str) -> None:
    """Each of these is an error in the cell."""
    outcome = run(limits[1], f"open({path!r}, 'w')")
    assert outcome.error["ename"] in {"OSError", "PermissionError", "FileNotFoundError"}


@pytest.mark.parametrize("place", ["/tmp", "/dev/shm"])
def test_what_can_be_written_cannot_be_run(limits: Pair, place: str) -> None:
    """nosuid, nodev and noexec, and really so."""
    _, client = limits
    assert {"rw", "nosuid", "nodev", "noexec"} <= mounts(client)[place]
    code = (
        f"import shutil, subprocess\nshutil.copy('/bin/true', '{place}/x')\n"
        f"os.chmod('{place}/x', 0o755)\n"
        f"try: subprocess.run(['{place}/x']); ran = True\n"
        "except PermissionError: ran = False\n"
        f"os.remove('{place}/x')"
    )
    assert ask(client, "ran", code) is False


# --- rights -------------------------------------------------------------------------------


def test_no_rights_and_no_way_to_get_any(limits: Pair) -> None:
    """No capability in any set, no new privileges, a seccomp filter, no root."""
    status = dict(
        line.split(":\t", 1)
        for line in ask(limits[1], "open('/proc/self/status').read().splitlines()")
        if ":\t" in line
    )
    for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(status[kind], 16) == 0
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"
    uids = set(status["Uid"].split()) | set(status["Gid"].split()) | set(status["Groups"].split())
    (uid,) = uids
    assert int(uid) not in {0, os.getuid()}


def test_there_is_no_network(limits: Pair) -> None:
    """No interface but lo, which is useless: no socket of the Internet can be made."""
    _, client = limits
    assert ask(client, "os.listdir('/sys/class/net')") == ["lo"]
    code = (
        "import socket\nmade = []\n"
        "for family in (socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK, socket.AF_PACKET,"
        " socket.AF_VSOCK, socket.AF_BLUETOOTH):\n"
        "    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW):\n"
        "        try: socket.socket(family, kind).close(); made.append([family, kind])\n"
        "        except OSError: pass"
    )
    assert ask(client, "made", code) == []


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


def test_the_key_is_nowhere_the_engine_could_show_it(
    limits: Pair, engine: docker.DockerClient
) -> None:
    """Not in the container's environment, labels, command or log."""
    km, client = limits
    key = km.session.key.decode()
    assert key
    found = attributes(engine, client)
    assert key not in json.dumps(found)
    assert key.encode() not in engine.api.logs(found["Id"])


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
