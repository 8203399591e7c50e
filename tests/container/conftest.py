"""For tests in real containers: kernels, and a look for what is left."""

import os
from collections.abc import Iterator

import pytest
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager
from kernels import kernel
from parked import lying
from proxy import EngineProxy, proxied
from sandboxes import until

from kernel_provider.engines.docker import find_socket
from kernel_provider.pool import hand


@pytest.fixture(scope="session", autouse=True)
def leak_check(nothing_left: None) -> None:
    """Look for what is left when all tests have ended."""


@pytest.fixture(scope="module")
def shared_kernel(image: str) -> Iterator[tuple[KernelManager, BlockingKernelClient]]:
    """One kernel for the tests of a module that do not harm it."""
    assert image
    with kernel() as pair:
        yield pair


@pytest.fixture(scope="module")
def own_kernelspecs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What a page's commands install for the user is there for this module and no other."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_DATA_DIR", str(tmp_path_factory.mktemp("data")))
        yield


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch, image: str) -> Iterator[EngineProxy]:
    """An engine whose calls are written down, and can be held, changed or refused."""
    assert image
    with proxied(find_socket(os.environ)) as made:
        monkeypatch.setenv("DOCKER_HOST", f"unix://{made.path}")
        yield made


@pytest.fixture
def empty_shelf(image: str) -> Iterator[None]:
    """A test begins and ends with nothing parked."""
    assert image
    yield
    for _ in hand.end(os.environ, None):
        pass
    assert until(lambda: not lying())
