"""For tests in real containers: an engine, the image, and a look for what is left."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager
from kernels import kernel

from kernel_provider import names
from kernel_provider.builder import BuildRequest, build
from kernel_provider.engines.docker import find_socket


@pytest.fixture(scope="session")
def engine() -> Iterator[docker.DockerClient]:
    """The machine's engine; ``make test`` sees to it that there is one."""
    client = docker.DockerClient(base_url=f"unix://{find_socket(os.environ)}")
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


def sandboxes(engine: docker.DockerClient) -> set[str]:
    """Ids of all sandboxes and test containers, running or not."""
    found: set[str] = set()
    for kind in (names.KIND_KERNEL, "test"):
        label = f"{names.LABEL}={kind}"
        found |= {c.id for c in engine.containers.list(all=True, filters={"label": label})}
    return found


def wardens(runtime: Path) -> set[str]:
    """Pids of wardens whose sockets lie in this run's own folder."""
    del runtime
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if b"kernel_provider.warden.main" in command:
            found.add(folder.name)
    return found


@pytest.fixture(scope="session", autouse=True)
def nothing_left(engine: docker.DockerClient, own_folders: Path) -> Iterator[None]:
    """The whole run leaves no container, no warden and no descriptor behind."""
    before = sandboxes(engine), wardens(own_folders)
    descriptors = len(os.listdir("/proc/self/fd"))
    yield
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        left = sandboxes(engine) - before[0], wardens(own_folders) - before[1]
        if not any(left):
            break
        time.sleep(0.1)
    assert not left[0], f"sandboxes left: {left[0]}"
    assert not left[1], f"wardens left: {left[1]}"
    grown = len(os.listdir("/proc/self/fd")) - descriptors
    assert grown < 12, f"{grown} descriptors left open"


@pytest.fixture(scope="module")
def shared_kernel(image: str) -> Iterator[tuple[KernelManager, BlockingKernelClient]]:
    """One kernel for the tests of a module that do not harm it."""
    assert image
    with kernel() as pair:
        yield pair
