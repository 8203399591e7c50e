"""``executor-ml ps`` with a real sandbox: what it tells is what the kernel holds."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import docker
import pytest
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager
from sandboxes import look, session_of

from kernel_provider.values import MIB

pytestmark = pytest.mark.container

EXECUTOR_ML = str(Path(sys.executable).parent / "executor-ml")
BURN = "while True: sum(range(10_000))"


def test_a_busy_sandbox_is_told_as_it_is(
    shared_kernel: tuple[KernelManager, BlockingKernelClient], engine: docker.DockerClient
) -> None:
    """Limits, use, throttling, kernelspec and owner, from outside, while a cell runs."""
    km, client = shared_kernel
    seen = look(session_of(km), engine)
    request = client.execute(BURN)
    while client.get_iopub_msg(timeout=30)["content"].get("code") != BURN:
        pass
    time.sleep(0.5)
    done = subprocess.run([EXECUTOR_ML, "ps", "--json"], capture_output=True, text=True, check=True)
    (row,) = [r for r in json.loads(done.stdout) if r["uid"] == seen.uid]
    km.interrupt_kernel()
    while (reply := client.get_shell_msg(timeout=30))["parent_header"]["msg_id"] != request:
        pass
    assert reply["content"]["status"] == "error"
    assert row["kernel"] == "executor-ml"
    assert row["state"] == "running"
    assert row["owner"] == os.getpid()
    assert (row["memory_limit"], row["pids_limit"]) == (512 * MIB, 128)
    assert 20 * MIB < row["memory"] <= row["memory_peak"] <= 512 * MIB
    assert 0.02 < row["cpu"] < 1.6, "0.5 where nothing else wants a processor; idle: 0.0003"
    assert row["cpu"] < 0.8 or row["throttled"] > 0, "held back at its limit only"
    assert row["pids"] > 3
    assert 0 < row["age"] < 600


def test_a_watch_ends_with_ctrl_c(
    shared_kernel: tuple[KernelManager, BlockingKernelClient],
) -> None:
    """It shows the sandbox, and SIGINT is success and no traceback."""
    km, _ = shared_kernel
    assert km.is_alive()
    with subprocess.Popen(
        [EXECUTOR_ML, "ps", "--watch"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as watch:
        assert watch.stdout is not None
        assert watch.stdout.readline().startswith("NAME")
        watch.send_signal(signal.SIGINT)
        _, err = watch.communicate(timeout=10)
    assert watch.returncode == 0
    assert err == ""
