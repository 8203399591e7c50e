"""A server's restart that fails: the kernel's cells say why, until one succeeds."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import docker
import pytest
from conftest import sandboxes
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager
from jupyter_client.multikernelmanager import MultiKernelManager
from kernels import KERNEL, run
from proxy import EngineProxy
from sandboxes import until

from kernel_provider.pool.keeper import CEILING_VARIABLE
from kernel_provider.provisioner import SandboxProvisioner

pytestmark = [pytest.mark.container, pytest.mark.usefixtures("image")]
CREATE = "POST /containers/create"


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Containers are counted: nothing is parked beside them."""
    monkeypatch.setenv(CEILING_VARIABLE, "0")


@contextmanager
def served() -> Iterator[tuple[KernelManager, BlockingKernelClient]]:
    """A kernel of a manager of many, as servers have, with its client."""
    many = MultiKernelManager()
    name = many.start_kernel(kernel_name=KERNEL)
    km = many.get_kernel(name)
    client = km.client()
    try:
        client.start_channels()
        client.wait_for_ready(timeout=60)
        yield km, client
    finally:
        client.stop_channels()
        many.shutdown_all(now=True)


def told(client: BlockingKernelClient) -> str:
    """What a cell says that must not run."""
    client.wait_for_ready(timeout=20)
    outcome = run(client, "print('it ran')", timeout=20)
    assert outcome.stdout == ""
    return "\n".join(outcome.error["traceback"])


def test_a_restart_that_fails_explains_itself(
    proxy: EngineProxy, engine: docker.DockerClient, own_folders: Path
) -> None:
    """In every cell, by each failure's own words; the next good restart is as any other."""
    before = sandboxes(engine, own_folders)
    with served() as (km, client):
        run(client, "x = 1")
        proxy.answers[CREATE] = 500
        for _ in range(2):
            km.restart_kernel()
            assert km.is_alive()
            assert "failed to create" in told(client)
            assert "Fix: look at the engine's own log" in told(client)
            assert sandboxes(engine, own_folders) <= before
        del proxy.answers[CREATE]
        km.restart_kernel()
        client.wait_for_ready(timeout=20)
        assert run(client, "'x' in globals(), 6 * 7").result == "(False, 42)"
        proxy.answers[CREATE] = 500
        km.restart_kernel()
        assert "failed to create" in told(client)
    assert until(lambda: sandboxes(engine, own_folders) <= before)


def test_settings_that_have_become_impossible(monkeypatch: pytest.MonkeyPatch) -> None:
    """An administrator's new ceiling is told before anything is launched."""
    with served() as (km, client):
        assert isinstance(km.provisioner, SandboxProvisioner)
        monkeypatch.setenv("EXECUTOR_ML_MAX_MEMORY", "256m")
        km.restart_kernel(now=True)
        assert "above the ceiling of 256 MB set in EXECUTOR_ML_MAX_MEMORY" in told(client)
        monkeypatch.delenv("EXECUTOR_ML_MAX_MEMORY")
        km.restart_kernel()
        client.wait_for_ready(timeout=20)
        assert run(client, "6 * 7").result == "42"


def test_it_ends_as_a_kernel_does(proxy: EngineProxy) -> None:
    """Asked politely, and interrupted before: at once, and with exit code 0."""
    with served() as (km, client):
        proxy.answers[CREATE] = 500
        km.restart_kernel(now=True)
        km.interrupt_kernel()
        assert "failed to create" in told(client)
        began = time.monotonic()
        km.shutdown_kernel()
        assert time.monotonic() - began < 3
        assert not km.is_alive()
    assert not list(Path(os.environ["EXECUTOR_ML_RUNTIME_DIR"]).glob("s-*"))
