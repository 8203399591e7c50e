"""Kernels started as clients do that know nothing of provisioners: by a kernelspec's argv."""

import json
import os
import queue
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import KernelManager
from kernels import KERNEL
from servers import free_port

from kernel_provider.warden.rendezvous import CHANNELS

BIN = Path(sys.executable).parent


def plain_manager(**spec: Any) -> KernelManager:
    """A manager that runs the installed kernelspec's argv, as if it had no provisioner."""
    made = KernelManager(kernel_name=KERNEL)
    given = made.kernel_spec_manager.get_kernel_spec(KERNEL).to_dict()
    made._kernel_spec = KernelSpec(**{**given, "metadata": {}, **spec})  # noqa: SLF001
    return made


def connection(**said: Any) -> dict[str, Any]:
    """What a client writes into its connection file, with ports that nobody has."""
    ports = {f"{channel}_port": free_port() for channel in CHANNELS}
    return {
        "key": secrets.token_hex(16),
        "signature_scheme": "hmac-sha256",
        "transport": "tcp",
        "ip": "127.0.0.1",
        "kernel_name": KERNEL,
        **ports,
        **said,
    }


@dataclass(frozen=True, kw_only=True)
class Started:
    """The process that is the kernel to its client, and what was asked of it."""

    process: subprocess.Popen[bytes]
    file: Path
    said: Mapping[str, Any]

    @contextmanager
    def client(self, *, iopub: bool = True) -> Iterator[BlockingKernelClient]:
        """A client, ready; without iopub one that never hears an output."""
        made = BlockingKernelClient(connection_file=str(self.file))
        made.load_connection_file()
        made.start_channels(iopub=iopub)
        try:
            self.answers(made)
            while iopub and not hears(made):
                self.answers(made)
            yield made
        finally:
            made.stop_channels()

    def answers(self, client: BlockingKernelClient) -> None:
        """Ask it who it is; where it says nothing, what it complained of is the error."""
        try:
            client.kernel_info(reply=True, timeout=60)
        except TimeoutError as error:
            self.process.kill()
            raise AssertionError(self.complaint()) from error

    def complaint(self, within: float = 60.0) -> str:
        """Wait for its end; all that it complained of."""
        _, told = self.process.communicate(timeout=within)
        return told.decode()


def hears(client: BlockingKernelClient) -> bool:
    """Whether anything comes on iopub: then it has subscribed."""
    try:
        client.get_iopub_msg(timeout=0.5)
    except queue.Empty:
        return False
    return True


@contextmanager
def started(
    folder: Path,
    *,
    name: str = KERNEL,
    environ: Mapping[str, str] | None = None,
    **said: Any,
) -> Iterator[Started]:
    """Write a connection file and run the kernelspec's argv; killed at the end."""
    asked = connection(kernel_name=name, **said)
    file = folder / f"kernel-{secrets.token_hex(4)}.json"
    file.write_text(json.dumps(asked))
    argv = KernelSpecManager().get_kernel_spec(name).argv
    words = [word.replace("{connection_file}", str(file)) for word in argv]
    process = subprocess.Popen(
        words,
        cwd=folder,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", **(environ or {})},
    )
    try:
        yield Started(process=process, file=file, said=asked)
    finally:
        process.kill()
        process.communicate()


def wait_until_used(port: int, process: subprocess.Popen[bytes], within: float = 60.0) -> None:
    """Try a port every 0.2 s, as VS Code does, until somebody takes the call."""
    deadline = time.monotonic() + within
    while process.poll() is None and time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise TimeoutError
