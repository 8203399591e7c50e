"""What each client reports of a death: the same words, in its own way, within two seconds (D5)."""

import asyncio
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
from kernels import KERNEL
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from nbformat import NotebookNode

from kernel_provider.errors import StartError
from kernel_provider.run import kernel as run_kernel

pytestmark = [pytest.mark.container, pytest.mark.usefixtures("image")]

SOON = 2.0
TRIES = 4
"""Who waits for something waits every time, and a machine with more to do now and then."""
BIN = Path(sys.executable).parent
CELL = "import os, time\nprint(time.time(), flush=True)\nos._exit(7)"
"""Tells the moment of its death, by the clock of this machine, which a sandbox has as well."""


Report = tuple[str, NotebookNode, float]
"""How a client ended, in its own way; what it saved; and when that was there."""


def by_command(folder: Path, *words: str) -> Report:
    """Have a command execute the notebook; it has an exit code."""
    command = [str(BIN / words[0]), *words[1:]]
    done = subprocess.run(command, cwd=folder, capture_output=True, check=False)
    saved = folder / "out.ipynb"
    book: NotebookNode = nbformat.read(saved, as_version=4)
    return str(done.returncode), book, saved.stat().st_mtime


def by_run(folder: Path) -> Report:
    """Our own command."""
    return by_command(folder, "executor-ml", "run", "in.ipynb", "-o", "out.ipynb")


def by_papermill(folder: Path) -> Report:
    """Another's, which knows nothing of sandboxes."""
    return by_command(folder, "papermill", "in.ipynb", "out.ipynb", "-k", KERNEL)


def by_nbclient(folder: Path) -> Report:
    """The library below most others; it raises an exception."""
    book: NotebookNode = nbformat.read(folder / "in.ipynb", as_version=4)
    with pytest.raises((DeadKernelError, CellExecutionError)) as caught:
        NotebookClient(book, kernel_name=KERNEL, timeout=60).execute()
    return caught.type.__name__, book, time.time()


CLIENTS: dict[str, tuple[Callable[[Path], Report], str]] = {
    "executor-ml run": (by_run, "14"),
    "papermill": (by_papermill, "138"),
    "nbclient": (by_nbclient, "DeadKernelError"),
}
WORDS = (
    "the kernel process ended with exit code 7. "
    "Variables are lost; code that ends the process ends the kernel."
)


@pytest.mark.parametrize("client", CLIENTS)
def test_a_death_is_reported_soon_and_in_the_same_words(client: str, tmp_path: Path) -> None:
    """The notebook is saved, or the call has ended, with the cause in its cell."""
    execute, own_way = CLIENTS[client]
    cells = [nbformat.v4.new_code_cell(CELL)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "in.ipynb")
    took: list[float] = []
    while not took or (min(took) > SOON and len(took) < TRIES):
        way, book, over = execute(tmp_path)
        *streams, error = book.cells[-1].outputs
        took.append(over - float(streams[0]["text"]))
        assert (way, error["ename"], error["evalue"]) == (own_way, "KernelExited", WORDS)
    print(f"{client}: reported {min(took):.2f} s after the death")
    assert min(took) < SOON


SILENT = """
import os, signal, socket
send = socket.socket.sendall
def sendall(self, data, *rest):
    send(self, data, *rest)
    if data == b"ready\\n":
        os.kill(os.getpid(), signal.SIGSTOP)
socket.socket.sendall = sendall
"""
"""As a sitecustomize: the kernel says that it serves, and not a word more."""


def test_a_kernel_that_is_silent_from_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run does not wait for ever, and says so."""
    monkeypatch.setattr(run_kernel, "READY_WITHIN", 1.5)
    tmp_path.chmod(0o755)
    (tmp_path / "sitecustomize.py").write_text(SILENT)
    overrides = {
        "mounts": {"/models/trap": str(tmp_path)},
        "env": {"PYTHONPATH": "/models/trap"},
    }

    async def start() -> None:
        silent = run_kernel.Kernel(KERNEL, overrides)
        try:
            await silent.start(str(tmp_path))
        finally:
            await silent.end()

    with pytest.raises(StartError, match=r"it does not answer within 1\.5 s"):
        asyncio.run(start())
