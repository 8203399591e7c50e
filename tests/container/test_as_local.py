"""Runners of notebooks do with this kernel what they do with a local one."""

import json
import os
import re
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker
import nbformat
import pytest
from kernels import KERNEL
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from pages import typed
from sandboxes import until

from kernel_provider.commands import ps

pytestmark = [pytest.mark.container, pytest.mark.usefixtures("image")]

LOCAL = "python3"
SOON = 2.0
CAUSE = "KernelExited"

COMMANDS = {
    "papermill": "papermill -k {kernel} -p rows 21 --execution-timeout 2 in.ipynb out.ipynb",
    "nbconvert": "jupyter nbconvert --to notebook --execute --output out in.ipynb "
    "--ExecutePreprocessor.kernel_name={kernel} --ExecutePreprocessor.timeout=2",
    "execute": "jupyter execute --kernel_name={kernel} --timeout=2 --output=out in.ipynb",
    "on": "jupyter execute --kernel_name={kernel} --allow-errors --output=out in.ipynb",
}

CASES = {
    "outputs": (
        "import sys, warnings\nfrom IPython.display import HTML, clear_output, display",
        "print(rows * 2)\nprint('error', file=sys.stderr)",
        "display(HTML('<b>x</b>')); rows",
        "print('gone'); clear_output(); print('kept')",
        "{'a': [1, 2.5, None]}",
        "%%capture held\nprint(1)",
        "held.stdout; _, __name__",
    ),
    "exception": ("print('before')", "def f(): return 1 / 0\nf()", "print('after')"),
    "syntax": ("1 +", "print('after')"),
    "time-out": ("print('before')", "import time; time.sleep(60)", "print('after')"),
    "exit": ("print('before')", "raise SystemExit(3)", "print('after')"),
    "death": ("print('before')", "import os, time; time.sleep(0.3); os._exit(7)", "1"),
}


def write(path: Path, *sources: str, kernel: str = LOCAL) -> None:
    """A notebook whose first cell has papermill's parameters."""
    cells = [nbformat.v4.new_code_cell(source) for source in ("rows = 1", *sources)]
    cells[0].metadata["tags"] = ["parameters"]
    spec = {"name": kernel, "display_name": "x", "language": "python"}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": spec}), path)


@dataclass(frozen=True, kw_only=True)
class Told:
    """What a command says: its exit code, the exception that ended it, what it saved."""

    exit_code: int
    exception: str
    cells: list[Any] | None


def tell(command: str, case: str, folder: Path, kernel: str) -> Told:
    """Run a command on a case's notebook in a folder for this kernel."""
    folder = folder / kernel
    folder.mkdir()
    write(folder / "in.ipynb", *CASES[case])
    done = typed(COMMANDS[command].format(kernel=kernel), folder)
    named = re.findall(r"^([\w.]*(?:Error|Exception|Exit))\b", done.stderr, re.MULTILINE)
    saved = folder / "out.ipynb"
    cells = None
    if saved.exists():
        book = nbformat.read(saved, as_version=4)
        cells = [(cell.source, cell.get("execution_count"), plain(cell)) for cell in book.cells]
    exception = named[-1] if done.returncode and named else ""  # else noise of the kernel's
    return Told(exit_code=done.returncode, exception=exception, cells=cells)


def plain(cell: Any) -> list[Any]:
    """A cell's outputs but for where Python lies, and for the cause of a death.

    A local kernel does not tell one.
    """
    outputs = [output for output in cell.get("outputs", []) if output.get("ename") != CAUSE]
    plain_text = re.sub(r"(/[\w.-]+)+/site-packages", "site-packages", json.dumps(outputs))
    found: list[Any] = json.loads(plain_text)
    return found


@pytest.mark.soak
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_tells_the_same_with_either_kernel(
    command: str, case: str, tmp_path: Path
) -> None:
    """Exit code, exception, and every output that it saved, tracebacks too."""
    if (command, case) == ("on", "time-out"):
        pytest.skip("nothing ends it: it has no time-out")
    with ThreadPoolExecutor(2) as pool:
        ours, theirs = pool.map(lambda k: tell(command, case, tmp_path, k), (KERNEL, LOCAL))
    assert ours == theirs
    failed = case != "outputs" and (command != "on" or case == "death")
    assert bool(ours.exit_code) == failed
    if case == "outputs" and command == "papermill":
        assert "'42\\n'" in str(ours.cells)


def execute(case: str, kernel: str, **options: Any) -> tuple[str, list[Any]]:
    """Run a case with nbclient: the name of its exception, and the outputs of each cell.

    After a time-out a kernel is interrupted to be shut down, and nbclient may hear of that
    or not, with any kernel: that is left out.
    """
    cells = [nbformat.v4.new_code_cell(source) for source in ("rows = 21", *CASES[case])]
    book = nbformat.v4.new_notebook(cells=cells)
    try:
        NotebookClient(book, kernel_name=kernel, **options).execute()
    except CellTimeoutError as error:
        outputs = [plain(cell) for cell in book.cells]
        heard = [[o for o in of_one if o.get("ename") != "KeyboardInterrupt"] for of_one in outputs]
        return type(error).__name__, heard
    except (CellExecutionError, DeadKernelError) as error:
        return type(error).__name__, [plain(cell) for cell in book.cells]
    return "", [plain(cell) for cell in book.cells]


@pytest.mark.parametrize(
    ("case", "options", "exception"),
    [
        ("outputs", {}, ""),
        ("exception", {}, "CellExecutionError"),
        ("time-out", {"timeout": 1}, "CellTimeoutError"),
        ("death", {}, "DeadKernelError"),
        pytest.param("exception", {"allow_errors": True}, "", marks=pytest.mark.soak),
        pytest.param(
            "time-out",
            {"timeout": 1, "interrupt_on_timeout": True},
            "CellExecutionError",
            marks=pytest.mark.soak,
        ),
    ],
)
def test_nbclient_tells_the_same_with_either_kernel(
    case: str, options: dict[str, Any], exception: str
) -> None:
    """Outputs, and the exception that its callers get; papermill and the others are made of it."""
    ours, theirs = (execute(case, kernel, **options) for kernel in (KERNEL, LOCAL))
    assert ours == theirs
    assert ours[0] == exception


# --- a killed kernel ----------------------------------------------------------------------

BUSY = "import os, time\nprint(os.getuid(), flush=True)\ntime.sleep(60)"


def test_nbclient_reports_a_killed_kernel_at_once(engine: docker.DockerClient) -> None:
    """From Docker's kill to the exception, with a cell running that has no time-out."""
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(BUSY)])

    def kill() -> float:
        assert until(lambda: book.cells[0].outputs, 60)
        began = time.monotonic()
        engine.api.kill(f"executor-ml-{book.cells[0].outputs[0].text.strip()}")
        return began

    with ThreadPoolExecutor(1) as pool:
        killed = pool.submit(kill)
        with pytest.raises(DeadKernelError):
            NotebookClient(book, kernel_name=KERNEL).execute()
        assert time.monotonic() - killed.result() < SOON


@pytest.mark.soak
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_reports_a_killed_kernel_at_once(command: str, tmp_path: Path) -> None:
    """From the death, by the record of it, to the line on the terminal; then it ends."""
    kill = "import os, time\ntime.sleep(0.5)\nos.kill(os.getpid(), 9)\ntime.sleep(60)"
    write(tmp_path / "in.ipynb", kill)
    line = COMMANDS[command].format(kernel=KERNEL).replace("timeout 2", "timeout 60")
    with subprocess.Popen(
        line.replace("timeout=2", "timeout=60").split(),
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        told = next((time.time() for line in process.stderr if "signal 9 (SIGKILL)" in line), None)
        process.stderr.read()
        assert process.wait(30) != 0
    death = ps.died(os.environ)[-1].death
    assert death is not None
    assert told is not None
    assert told - death.at < SOON
