"""For tests in real containers: kernels, and a look for what is left."""

from collections.abc import Iterator

import pytest
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager
from kernels import kernel


@pytest.fixture(scope="session", autouse=True)
def leak_check(nothing_left: None) -> None:
    """Look for what is left when all tests have ended."""


@pytest.fixture(scope="module")
def shared_kernel(image: str) -> Iterator[tuple[KernelManager, BlockingKernelClient]]:
    """One kernel for the tests of a module that do not harm it."""
    assert image
    with kernel() as pair:
        yield pair
