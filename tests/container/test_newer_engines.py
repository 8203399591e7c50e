"""Engines newer than this machine's, from Debian's later suites: what is promised holds there.

Their programs are unpacked in a folder and run beside the machine's own; ``runc`` is the
machine's, since a newer one needs a newer C library.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest
from engines import OwnEngine, copy_image, own_engine
from kernels import kernel, run, run_to_death
from sandboxes import containers_of, left_of, look, session_of, until, value

from kernel_provider.engines.docker import DockerEngine
from kernel_provider.setup import engine_host
from kernel_provider.setup.engine_host import EngineHome

APT, DPKG = (shutil.which(name) or "" for name in ("apt-get", "dpkg"))

pytestmark = [
    pytest.mark.container,
    pytest.mark.soak,
    pytest.mark.usefixtures("image"),
    pytest.mark.skipif(
        os.geteuid() != 0 or engine_host.dockerd_path() is None or not APT,
        reason="only root can start an engine, runc must be installed, and apt-get fetches it",
    ),
]
PACKAGES = ("docker.io", "containerd")
COMMAND = Path(sys.executable).with_name("executor-ml")
DEBIANS_OWN = ("Created-By: Packages", "Origin: Debian", "Component: main")


def source(suite: str) -> str:
    """A line for apt: the mirror that this machine uses, and another suite of it."""
    told = subprocess.run(
        [APT, "indextargets", "--format", "$(REPO_URI)", *DEBIANS_OWN],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    if not told:
        pytest.skip("this machine has no mirror of Debian's")
    return f"deb {told[0]} {suite} main\n"


def fetch(suite: str, folder: Path) -> None:
    """Download and unpack; nothing is installed, and apt's own state is left alone."""
    (folder / "lists" / "partial").mkdir(parents=True)
    (folder / "status").touch()
    (folder / "sources").write_text(source(suite))
    own = {
        "Dir::Etc::sourcelist": folder / "sources",
        "Dir::Etc::sourceparts": os.devnull,
        "Dir::State::lists": folder / "lists",
        "Dir::State::status": folder / "status",
        "Dir::Cache": folder,
        "APT::Sandbox::User": "root",
    }
    options = [f"-o{name}={value}" for name, value in own.items()]
    for words in (["update"], ["download", *PACKAGES]):
        command = [APT, "-q", *options, *words]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"{suite} cannot be had: {done.stderr[-200:]}")
    for package in folder.glob("*.deb"):
        subprocess.run([DPKG, "-x", package, folder / "root"], check=True)


@pytest.fixture(scope="module", params=["trixie", "sid"])
def newer(
    request: pytest.FixtureRequest,
    image: str,
    own_folders: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[OwnEngine]:
    """One that runs, has the image, and is what new kernels are started in."""
    folder = tmp_path_factory.mktemp(request.param)
    fetch(request.param, folder)
    programs = f"{folder}/root/usr/sbin:{folder}/root/usr/bin"
    home = EngineHome(data=folder / "data", run=own_folders / "n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
        with own_engine(home, "--live-restore") as made:
            copy_image(image, made.address)
            patch.setenv("DOCKER_HOST", made.address)
            yield made
    shutil.rmtree(folder)


def test_every_promise_holds(newer: OwnEngine) -> None:
    """The self-test, as an administrator runs it after an upgrade."""
    version = DockerEngine(str(newer.home.socket)).version()
    parts = [f"{part['Name']} {part['Version']}" for part in version["Components"]]
    done = subprocess.run([COMMAND, "verify", "--json"], capture_output=True, check=False)
    report = json.loads(done.stdout)
    lost = [check for check in report["checks"] if check["status"] == "not held"]
    print(f"{', '.join(parts)}: {len(report['checks'])} checks, not held: {lost}")
    assert int(str(version["Version"]).partition(".")[0]) > 20
    assert not lost
    assert (done.returncode, report["held"]) == (0, True)


def test_a_kernel_lives_and_dies(newer: OwnEngine) -> None:
    """Start, restart, deaths with their causes, the engine's own end; nothing is left."""
    client_of_engine = docker.DockerClient(base_url=newer.address)
    with kernel() as (km, client):
        assert value(client, "6 * 7") == 42
        died = run_to_death(client, "x = b'x' * (600 << 20)")
        assert died.error["ename"] == "MemoryLimitExceeded"
        km.restart_kernel(now=True)
        client.wait_for_ready(timeout=30)
        assert "DiskLimitExceeded" in "".join(
            run(client, "open('/tmp/x', 'wb').write(bytes(200 << 20))").error["traceback"]
        )
        seen = look(session_of(km), client_of_engine)
        newer.end(signal.SIGKILL)
        assert value(client, "2 + 2") == 4
        newer.start()
        assert until(lambda: containers_of(seen.warden, client_of_engine), 10)
        assert run_to_death(client, "import os; os._exit(3)").error["ename"] == "KernelExited"
    assert until(lambda: not left_of(seen, client_of_engine))
