"""What a person sees of a sandboxed kernel through an ordinary Jupyter client."""

import pytest
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager
from kernels import run

pytestmark = pytest.mark.container
Pair = tuple[KernelManager, BlockingKernelClient]


def test_runs_code(shared_kernel: Pair) -> None:
    """A cell runs and its value comes back."""
    outcome = run(shared_kernel[1], "print('hello'); 6 * 7")
    assert (outcome.status, outcome.stdout, outcome.result) == ("ok", "hello\n", "42")
