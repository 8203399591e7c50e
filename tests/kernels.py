"""Kernels for tests: started like any client's, ended whatever happens."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import KernelManager

KERNEL = "executor-ml"

MINE = """
import os, socket, threading, time
def mine(channel, listening=False):
    found = []
    for entry in os.listdir("/proc/self/fd"):
        try:
            s = socket.socket(fileno=os.dup(int(entry)))
            if (s.getsockname().endswith(f"/{channel}")
                    and bool(s.getsockopt(socket.SOL_SOCKET, 30)) == listening):
                found.append(s)
        except (OSError, TypeError, AttributeError):
            pass
    return found
"""
"""For a cell: the kernel's own sockets of a channel, those of its clients or the listener."""


@dataclass
class Outcome:
    """What one cell brought: reply status, stream text by name, other messages."""

    status: str
    stdout: str = ""
    stderr: str = ""
    error: dict[str, Any] = field(default_factory=dict)
    messages: list[dict[str, Any]] = field(default_factory=list)

    @property
    def result(self) -> str:
        """The text form of the cell's value."""
        return next(
            str(m["content"]["data"]["text/plain"])
            for m in self.messages
            if m["msg_type"] == "execute_result"
        )


def collect(into: Outcome) -> Callable[[dict[str, Any]], None]:
    """An output hook that sorts what a cell sends."""

    def hook(message: dict[str, Any]) -> None:
        into.messages.append(message)
        content = message["content"]
        if message["msg_type"] == "stream":
            setattr(into, content["name"], getattr(into, content["name"]) + content["text"])
        elif message["msg_type"] == "error":
            into.error = content

    return hook


def run(client: BlockingKernelClient, code: str, *, timeout: float = 60.0) -> Outcome:
    """Run one cell to its end; raises TimeoutError where it has none."""
    outcome = Outcome(status="")
    reply = client.execute_interactive(code, timeout=timeout, output_hook=collect(outcome))
    outcome.status = reply["content"]["status"]
    return outcome


def run_to_death(client: BlockingKernelClient, code: str, *, timeout: float = 30.0) -> Outcome:
    """Run a cell that ends its kernel: what reached the cell until its last words."""
    request = client.execute(code)
    outcome = Outcome(status="dead")
    hook = collect(outcome)
    deadline = time.monotonic() + timeout
    while not outcome.error and time.monotonic() < deadline:
        message = client.get_iopub_msg(timeout=deadline - time.monotonic())
        if message["parent_header"].get("msg_id") == request:
            hook(message)
    return outcome


def manager(config: Mapping[str, object] | None = None, **spec: Any) -> KernelManager:
    """A manager for the installed kernelspec, or for one like it with other settings."""
    made = KernelManager(kernel_name=KERNEL)
    if config is not None or spec:
        given = made.kernel_spec_manager.get_kernel_spec(KERNEL).to_dict()
        given["metadata"] = {
            "kernel_provisioner": {
                "provisioner_name": "executor-ml-provisioner",
                "config": dict(config or {}),
            }
        }
        made._kernel_spec = KernelSpec(**{**given, **spec})  # noqa: SLF001  no other way in
    return made


@contextmanager
def started(km: KernelManager, **launch: Any) -> Iterator[BlockingKernelClient]:
    """Start a manager's kernel, give a ready client, shut both down."""
    km.start_kernel(**launch)
    client = km.client()
    try:
        client.start_channels()
        client.wait_for_ready(timeout=60)
        yield client
    finally:
        client.stop_channels()
        km.shutdown_kernel(now=True)


@contextmanager
def kernel(
    config: Mapping[str, object] | None = None, **spec: Any
) -> Iterator[tuple[KernelManager, BlockingKernelClient]]:
    """A running sandboxed kernel with its client."""
    km = manager(config, **spec)
    with started(km) as client:
        yield km, client
