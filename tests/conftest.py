"""For all tests: folders of their own, and nothing left behind."""

import gc
import os
import secrets
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest
from engines import twin_engine

from kernel_provider import names
from kernel_provider.builder import BuildRequest, build
from kernel_provider.engines.docker import find_socket
from kernel_provider.setup import engine_host
from kernel_provider.setup.engine_host import EngineHome

KEPT = {"uids", "deaths"}
"""Files that stay in the folder for sockets: what is known of the engine, and who died."""

FIRST = "gw0"
"""The worker that uses the machine's engine."""


@pytest.fixture(scope="session", autouse=True)
def own_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep Jupyter's and our own files out of the home of whoever runs the tests.

    The folder for sockets is made by hand: its path must be short.
    """
    home = tmp_path_factory.mktemp("home")
    runtime = Path(f"/tmp/exml-{secrets.token_hex(3)}")
    runtime.mkdir(mode=0o700)
    with pytest.MonkeyPatch.context() as patch:
        for variable, name in {
            "JUPYTER_CONFIG_DIR": "config",
            "JUPYTER_DATA_DIR": "data",
            "JUPYTER_RUNTIME_DIR": "runtime",
            "IPYTHONDIR": "ipython",
        }.items():
            patch.setenv(variable, str(home / name))
        patch.setenv("EXECUTOR_ML_RUNTIME_DIR", str(runtime))
        patch.setenv("PYDEVD_DISABLE_FILE_VALIDATION", "1")
        for variable in [name for name in os.environ if name.startswith("EXECUTOR_ML_MAX_")]:
            patch.delenv(variable)
        yield runtime
        left = sorted(str(p.relative_to(runtime)) for p in runtime.rglob("*") if p.name not in KEPT)
        shutil.rmtree(runtime)
        assert not left, f"left in the folder for sockets: {left}"


@pytest.fixture(scope="session", autouse=True)
def heeded_ctrl_c() -> Iterator[None]:
    """Have what the tests start heed Ctrl-C, in the background, too.

    Who is started there ignores it, and hands that on, until something in the same process
    (nbclient) takes it back.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def pytest_xdist_auto_num_workers() -> int:
    """How many of ``make test`` run side by side: each needs an engine of its own."""
    if os.geteuid() != 0 or engine_host.dockerd_path() is None:
        return 1
    return min(len(os.sched_getaffinity(0)) + 1, 4)  # one of them waits at any time


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder for sockets: ``tmp_path`` is too long for their names, and root's alone."""
    made = Path(f"/tmp/exsh-{secrets.token_hex(3)}")
    made.mkdir(mode=0o700)
    yield made
    shutil.rmtree(made)


@pytest.fixture(scope="session")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The machine's engine; ``make test`` sees to it that there is one.

    Whoever runs beside the first has one of its own: any start of a sandbox removes what
    dead wardens left in its engine, and there are tests that want to see just that.
    """
    if os.environ.get("PYTEST_XDIST_WORKER", FIRST) == FIRST:
        yield f"unix://{find_socket(os.environ)}"
        return
    run = Path(f"/tmp/exwk-{secrets.token_hex(3)}")  # others are let in, to a socket of a group
    home = EngineHome(data=tmp_path_factory.mktemp("engine") / "data", run=run)
    with pytest.MonkeyPatch.context() as patch, twin_engine(home) as own:
        patch.setenv("DOCKER_HOST", own)
        yield own


@pytest.fixture(scope="session")
def engine(address: str) -> Iterator[docker.DockerClient]:
    """A client of it."""
    client = docker.DockerClient(base_url=address)
    try:
        client.ping()
        yield client
    finally:
        client.close()


@pytest.fixture(scope="session")
def image(engine: docker.DockerClient) -> str:
    """The image of this checkout's content, built if it is not there."""
    assert engine.ping()
    return build(BuildRequest(), lambda _event: None).image


def sandboxes(engine: docker.DockerClient, runtime: Path) -> set[str]:
    """Ids of this run's sandboxes, running or not: their rendezvous lies in its folder."""
    label = f"{names.LABEL}={names.KIND_KERNEL}"
    return {
        row["Id"]
        for row in engine.api.containers(all=True, filters={"label": label})
        if any(mount["Source"].startswith(f"{runtime}/") for mount in row["Mounts"])
    }


def wardens(runtime: Path) -> set[str]:
    """Pids of this run's wardens: they log to a file in its folder."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            log = (folder / "fd" / "2").readlink()
        except OSError:
            continue
        if log.is_relative_to(runtime):
            found.add(folder.name)
    return found


@pytest.fixture(scope="session")
def nothing_left(engine: docker.DockerClient, own_folders: Path) -> Iterator[None]:
    """The whole run leaves no sandbox, no warden and no descriptor behind.

    For whatever starts sandboxes: a conftest.py of theirs makes this theirs. Other
    runs on this machine have sandboxes, too, which are none of our business.
    """
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    yield
    deadline = time.monotonic() + 5
    while any(left := (sandboxes(engine, own_folders), wardens(own_folders))):
        if time.monotonic() > deadline:
            break
        time.sleep(0.1)
    assert not left[0], f"sandboxes left: {left[0]}"
    assert not left[1], f"wardens left: {left[1]}"
    gc.collect()
    grown = len(list(Path("/proc/self/fd").iterdir())) - descriptors
    # A run keeps ZeroMQ's context, an event loop and the engine's connections: 14.
    assert grown < 20, f"{grown} descriptors left open"
