"""What ``make bench`` measures, the same way for any kernel."""

import logging
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager

Client = BlockingKernelClient

TRIPS = 60
MEGABYTE = "x" * (1 << 20)

_FRESH = (
    "import sys; sys.path[:0] = {path!r}; import measures; measures.launch({kind!r}, drain=False)"
)


def launch(kind: str, *, drain: bool) -> float:
    """Seconds from ``start_kernel`` to the reply of a first cell.

    ``drain`` waits for readiness as blocking clients do, which takes 0.2 s for
    emptying iopub, whatever the kernel.
    """
    logging.getLogger("traitlets").setLevel(logging.ERROR)
    manager = KernelManager(kernel_name=kind)
    begun = time.perf_counter()
    manager.start_kernel(stderr=subprocess.DEVNULL)
    client = manager.client()
    try:
        client.start_channels(hb=drain)
        if drain:
            client.wait_for_ready(timeout=60)
        client.execute("6 * 7", reply=True, timeout=60)
        return time.perf_counter() - begun
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def launch_fresh(kind: str) -> float:
    """Seconds for a whole process that imports, launches, runs a cell and shuts down."""
    code = _FRESH.format(path=[str(Path(__file__).parent)], kind=kind)
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - begun


@contextmanager
def running(kind: str) -> Iterator[Client]:
    """A started kernel's client."""
    manager = KernelManager(kernel_name=kind)
    manager.start_kernel(stderr=subprocess.DEVNULL)
    client = manager.client()
    try:
        client.start_channels()
        client.wait_for_ready(timeout=60)
        yield client
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def round_trips(client: Client) -> tuple[float, float]:
    """Milliseconds of one small cell, p50 and p99 of a burst of ``TRIPS``."""
    times = []
    for _ in range(TRIPS):
        begun = time.perf_counter()
        client.execute_interactive("pass", timeout=30, output_hook=lambda _: None)
        times.append((time.perf_counter() - begun) * 1000)
    times.sort()
    time.sleep(0.1)
    return times[len(times) // 2], times[int(len(times) * 0.99)]


def _timed(client: Client, code: str, expected: int) -> float:
    """Seconds until a cell's whole output of ``expected`` characters has come."""
    seen = 0

    def count(message: dict[str, object]) -> None:
        nonlocal seen
        content = message["content"]
        if message["msg_type"] == "stream" and isinstance(content, dict):
            seen += len(content["text"])

    begun = time.perf_counter()
    client.execute_interactive(code, timeout=120, output_hook=count)
    taken = time.perf_counter() - begun
    if seen != expected:
        message = f"{seen} characters came instead of {expected}"
        raise RuntimeError(message)
    return taken


def flood(client: Client) -> float:
    """Seconds for 100 MB of text."""
    line = "sys.stdout.write('x' * (1 << 20)); sys.stdout.flush()"
    code = f"import sys\nfor _ in range(100):\n    {line}"
    return _timed(client, code, 100 << 20)


def prints(client: Client) -> float:
    """Seconds for 600 prints, each flushed."""
    return _timed(client, "for i in range(600):\n    print(1000 + i, flush=True)", 600 * 5)


def memory() -> dict[str, int]:
    """Bytes of everything that an idle sandbox has running, and of a local kernel (PSS)."""
    with running("python3"), running("executor-ml"):
        found = dict.fromkeys(_MARKS, 0)
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                command = (folder / "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
            for name, mark in _MARKS.items():
                if mark in command:
                    found[name] = max(found[name], _pss(folder))
        return found


_MARKS = {
    "local kernel (PSS)": "ipykernel_launcher",
    "sandbox: kernel (PSS)": "sandbox_kernel.py",
    "sandbox: guardian (PSS)": "guardian.py",
    "host: warden (PSS)": "kernel_provider.warden.main",
    "host: the engine's shim (PSS)": "containerd-shim",
}


def _pss(folder: Path) -> int:
    try:
        text = (folder / "smaps_rollup").read_text(encoding="ascii")
    except OSError:
        return 0
    line = next((row for row in text.splitlines() if row.startswith("Pss:")), "Pss: 0")
    return int(line.split()[1]) * 1024
