"""Hosts that are not the usual one: a proxy before the engine, a server that is not root."""

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest
from engines import copy_image, own_engine
from kernels import kernel, manager, run, run_to_death, started
from pages import read, rows
from proxy import EngineProxy
from sandboxes import session_of, until, value

from kernel_provider.commands import ps
from kernel_provider.engines.docker import DockerEngine, find_socket
from kernel_provider.errors import EngineError
from kernel_provider.policy import KernelPolicy
from kernel_provider.pool import hand
from kernel_provider.recipe import Recipe
from kernel_provider.session import prune
from kernel_provider.setup import engine_host
from kernel_provider.setup.engine_host import EngineHome

pytestmark = [pytest.mark.container, pytest.mark.usefixtures("image")]


# --- a proxy that allows what is documented -------------------------------------------------


@pytest.fixture
def narrow(proxy: EngineProxy) -> EngineProxy:
    """An engine behind a proxy that refuses all but the calls of docs/admin.md (D7)."""
    proxy.allowed = frozenset(row[0] for row in rows(read("docs/admin.md"), "call", "when"))
    assert len(proxy.allowed) == 11
    return proxy


def test_everything_works_through_a_proxy_that_allows_the_documented_calls(
    narrow: EngineProxy,
) -> None:
    """Start, signal, death, restart, ps, prune, a parked one: no call is refused."""
    with kernel() as (km, client):
        session_of(km).signal(signal.SIGURG)  # which Python does not mind
        assert until(lambda: "POST /containers/ID/kill" in narrow.calls, 20)
        assert run_to_death(client, "import os; os._exit(3)").error["ename"] == "KernelExited"
        km.restart_kernel(now=True)
        client.wait_for_ready(timeout=30)
        assert session_of(km).container in {row.name for row in ps.look(DockerEngine(narrow.path))}
        prune(os.environ)
    recipe = Recipe(policy=KernelPolicy(preload=("json",)), address=find_socket(os.environ))
    hand.park(recipe, "test", os.environ)
    with started(manager({"preload": ["json"]})) as client:
        assert value(client, "import sys; 'json' in sys.modules") is True
    assert not hand.look(os.environ)
    assert set(narrow.calls) <= narrow.allowed


def test_the_proxy_does_refuse(narrow: EngineProxy) -> None:
    """The control: without START nothing starts, and the refusal is told."""
    narrow.allowed -= {"POST /containers/ID/start"}
    with pytest.raises(EngineError, match="the proxy refuses POST /containers/ID/start"):
        manager().start_kernel()


# --- a server that is not root --------------------------------------------------------------

NOBODY = 61_234
"""A user that this machine does not know."""

SCRIPT = """
import json, os, sys
from jupyter_client.manager import start_new_kernel
from kernel_provider.session import prune
from kernel_provider.setup import engine_host
from kernel_provider.setup.engine_host import EngineHome

told = {"uid": os.getuid()}
km, client = start_new_kernel(kernel_name="executor-ml")

def run(code):
    seen = []
    def hook(message):
        content = message["content"]
        seen.append(content.get("text") or content.get("ename") or "")
    reply = client.execute_interactive(code, timeout=60, output_hook=hook)
    return "".join(seen)

told["inside"] = int(run("import os; print(os.getuid())"))
km.restart_kernel()
client.wait_for_ready(timeout=30)
told["after"] = run("print(6 * 7)").strip()
told["limit"] = run("bytearray(1 << 50)")
request = client.execute("import os; os._exit(3)")
while True:
    message = client.get_iopub_msg(timeout=20)
    if message["msg_type"] == "error":
        told["death"] = message["content"]["ename"]
        break
client.stop_channels()
km.shutdown_kernel(now=True)
told["left"] = list(prune(os.environ))
print(json.dumps(told))
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder of that user's own."""
    made = Path(f"/tmp/exn-{secrets.token_hex(3)}")
    made.mkdir(mode=0o700)
    os.chown(made, NOBODY, NOBODY)
    yield made
    shutil.rmtree(made)


def interpreter(who: Sequence[str], environ: Mapping[str, str]) -> str:
    """A Python that the user may run: the tests' own may lie in root's home."""
    for candidate in (sys.executable, f"/usr/bin/python3.{sys.version_info.minor}"):
        command = [*who, candidate, "-c", "import zmq, kernel_provider"]
        if not subprocess.run(command, env=environ, capture_output=True, check=False).returncode:
            return candidate
    pytest.skip("no Python here that another user may run")


@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("setpriv") is None,
    reason="only root can become another user, by setpriv",
)
def test_a_server_that_is_not_root(folder: Path) -> None:
    """All it needs is the group of the engine's socket: start, restart, death, nothing left."""
    group = Path(find_socket(os.environ)).stat().st_gid
    environ = {
        **{name: value for name, value in os.environ.items() if not name.startswith("JUPYTER")},
        "HOME": str(folder),
        "EXECUTOR_ML_RUNTIME_DIR": str(folder / "run"),
        "IPYTHONDIR": str(folder / "ipython"),
        "JUPYTER_PATH": f"{sys.prefix}/share/jupyter",
        "PYTHONPATH": sysconfig.get_paths()["purelib"],
    }
    setpriv = str(shutil.which("setpriv"))
    who = [setpriv, f"--reuid={NOBODY}", f"--regid={NOBODY}", f"--groups={group}"]
    who += ["/bin/sh", "-c", 'exec "$0" "$@"']  # by then root's rights are gone
    done = subprocess.run(
        [*who, interpreter(who, environ), "-c", SCRIPT],
        cwd=folder,
        env=environ,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["uid"] == NOBODY
    assert told["inside"] not in {0, NOBODY, os.getuid()}
    assert (told["after"], told["limit"], told["death"]) == ("42", "MemoryError", "KernelExited")
    assert told["left"] == []
    assert sorted(path.name for path in (folder / "run").iterdir()) == ["deaths", "uids"]
    assert (folder / "run" / "deaths").stat().st_uid == NOBODY


# --- an engine that maps users ---------------------------------------------------------------

REMAP = """
mount --bind "$0" /etc/subuid
mount --bind "$0" /etc/subgid
exec "$@"
"""


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that the mapped root may walk through, which pytest's are not."""
    made = Path(tempfile.mkdtemp(prefix="exr-", dir="/tmp"))
    made.chmod(0o711)
    yield made
    shutil.rmtree(made)


@pytest.mark.soak
@pytest.mark.skipif(
    os.geteuid() != 0 or engine_host.dockerd_path() is None,
    reason="only root can start an engine, and dockerd must be installed",
)
def test_an_engine_with_user_namespaces(
    own_folders: Path, image: str, monkeypatch: pytest.MonkeyPatch, open_folder: Path
) -> None:
    """Root in a sandbox would be nobody outside; kernels start, restart and end as usual."""
    ranges = open_folder / "ranges"
    ranges.write_text("nobody:300000:65536\n")
    home = EngineHome(data=open_folder / "data", run=own_folders / "e")
    within = ["unshare", "--mount", "sh", "-c", REMAP, str(ranges)]
    with own_engine(home, "--userns-remap=nobody:nogroup", within=within) as made:
        copy_image(image, made.address)
        monkeypatch.setenv("DOCKER_HOST", made.address)
        with kernel() as (km, client):
            uid = value(client, "import os; os.getuid()")
            assert 20_000 <= uid < 60_000
            ready = session_of(km)._need().ready  # noqa: SLF001
            assert ready is not None
            guardian = Path(f"/proc/{ready['pid']}/status").read_text()
            assert f"\nUid:\t{300_000 + uid}\t" in guardian
            km.restart_kernel()
            client.wait_for_ready(timeout=30)
            assert value(client, "6 * 7") == 42
            assert "DiskLimitExceeded" in "".join(
                run(client, "open('/tmp/x', 'wb').write(bytes(200 << 20))").error["traceback"]
            )
        prune(os.environ)
