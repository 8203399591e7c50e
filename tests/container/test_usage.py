"""What the control channel's usage_request tells of a real sandbox."""

import time
from typing import Any

import pytest
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager
from kernels import run

from kernel_provider.values import MIB

pytestmark = [pytest.mark.container, pytest.mark.usefixtures("image")]
Pair = tuple[KernelManager, BlockingKernelClient]

SPIN = "import time; end = time.monotonic() + {}\nwhile time.monotonic() < end: pass"


def usage(client: BlockingKernelClient) -> dict[str, Any]:
    """Ask as jupyter-resource-usage does; the reply's content."""
    request = client.session.msg("usage_request", {})
    client.control_channel.send(request)
    deadline = time.monotonic() + 30
    while True:
        reply = client.get_control_msg(timeout=deadline - time.monotonic())
        if reply["parent_header"]["msg_id"] == request["header"]["msg_id"]:
            assert reply["msg_type"] == "usage_reply"
            content: dict[str, Any] = reply["content"]
            return content


def test_the_sandboxs_limits_are_told(shared_kernel: Pair) -> None:
    """512 MB and half a processor, not the host's; pid and host name as a cell sees them."""
    _, client = shared_kernel
    content = usage(client)
    assert content["cpu_count"] == 0.5
    assert content["host_virtual_memory"]["total"] == 512 * MIB
    seen = run(client, "import os, socket; (socket.gethostname(), os.getpid())").result
    assert seen == repr((content["hostname"], content["pid"]))


def test_what_a_cell_takes_is_seen(shared_kernel: Pair) -> None:
    """100 MB of a cell's own are 100 MB more in use and less to be had."""
    _, client = shared_kernel
    before = usage(client)["host_virtual_memory"]
    run(client, "held = bytearray(b'x') * (100 << 20)")
    content = usage(client)
    after = content["host_virtual_memory"]
    run(client, "del held")
    assert content["kernel_memory"] == after["used"]
    assert 90 * MIB < after["used"] - before["used"] < 130 * MIB
    assert after["available"] == 512 * MIB - after["used"]
    assert after["percent"] == pytest.approx(100 * after["used"] / (512 * MIB), abs=0.1)


def test_a_busy_kernel_answers(shared_kernel: Pair) -> None:
    """While a cell runs: processor time in hundredths of one, and of what the sandbox has."""
    _, client = shared_kernel
    usage(client)
    request = client.execute(SPIN.format(2))
    time.sleep(1.2)
    content = usage(client)
    reply = client.get_shell_msg(timeout=30)
    while reply["parent_header"]["msg_id"] != request:
        reply = client.get_shell_msg(timeout=30)
    assert 2 < content["kernel_cpu"] < 60
    assert content["host_cpu_percent"] == pytest.approx(2 * content["kernel_cpu"], abs=0.2)


def test_nothing_of_it_is_loaded_before_it_is_asked(shared_kernel: Pair) -> None:
    """A start does not pay for it: the module comes with the first request."""
    km, client = shared_kernel
    km.restart_kernel(now=True)
    client.wait_for_ready(timeout=60)
    loaded = "import sys; 'sandbox_usage' in sys.modules"
    assert run(client, loaded).result == "False"
    usage(client)
    assert run(client, loaded).result == "True"
