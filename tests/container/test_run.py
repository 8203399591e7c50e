"""``executor-ml run`` as scripts use it: exit codes, saved notebooks, nothing left."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbformat import NotebookNode

pytestmark = [pytest.mark.container, pytest.mark.usefixtures("image")]

COMMAND = Path(sys.executable).with_name("executor-ml")
STUBBORN = """
import signal, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
print("ignoring", flush=True)
while True:
    pass
"""
READ_LIMIT = """
from pathlib import Path
v1 = Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")
(v1 if v1.exists() else Path("/sys/fs/cgroup/memory.max")).read_text()
"""
BYE = "import os, time; print('bye', flush=True); time.sleep(0.5); "
"""Output leaves by a thread of libzmq's, which an end at once takes along."""
EXIT_LATER = """
import os, threading
print("bye", flush=True)
threading.Timer(0.3, os._exit, [3]).start()
"""


@dataclass(kw_only=True)
class Ran:
    """What one run brought."""

    code: int
    out: str
    err: str
    seconds: float
    output: Path

    @property
    def book(self) -> NotebookNode:
        """The executed notebook, valid."""
        book: NotebookNode = nbformat.read(self.output, as_version=4)
        nbformat.validate(book)
        return book

    @property
    def told(self) -> dict[str, Any]:
        """What --json printed."""
        told: dict[str, Any] = json.loads(self.out)
        return told

    def streams(self, index: int) -> str:
        """What a cell printed, as saved."""
        outputs = self.book.cells[index].outputs
        return "".join(o["text"] for o in outputs if o["output_type"] == "stream")

    def errors(self, index: int) -> list[str]:
        """Names of the errors in a cell."""
        outputs = self.book.cells[index].outputs
        return [o["ename"] for o in outputs if o["output_type"] == "error"]


def write(folder: Path, *sources: str) -> Path:
    """A notebook of code cells, the first tagged for parameters."""
    book = nbformat.v4.new_notebook()
    book.cells = [nbformat.v4.new_code_cell(source) for source in sources]
    book.cells[0].metadata["tags"] = ["parameters"]
    path = folder / "n.ipynb"
    nbformat.write(book, path)
    return path


def begin(
    folder: Path, *words: str, environ: Mapping[str, str] | None = None
) -> subprocess.Popen[str]:
    """Start the command on the notebook in the folder."""
    return subprocess.Popen(
        [COMMAND, "run", str(folder / "n.ipynb"), *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **(environ or {})},
    )


def finish(folder: Path, process: subprocess.Popen[str], begun: float) -> Ran:
    """Wait for it."""
    out, err = process.communicate(timeout=90)
    return Ran(
        code=process.returncode,
        out=out,
        err=err,
        seconds=time.monotonic() - begun,
        output=folder / "n.out.ipynb",
    )


def run(
    folder: Path, sources: tuple[str, ...], *words: str, environ: Mapping[str, str] | None = None
) -> Ran:
    """Write a notebook of these cells, run it."""
    write(folder, *sources)
    begun = time.monotonic()
    with begin(folder, *words, environ=environ) as process:
        ran = finish(folder, process, begun)
    assert not ran.err.startswith("Traceback")
    assert "\nTraceback" not in ran.err
    assert "Warning" not in ran.err
    if ran.code:
        assert "\x1b" not in ran.err
        first, second = ran.err.splitlines()[-2:]
        assert first.startswith("executor-ml: ")
        assert second.startswith("Fix: ")
    return ran


def test_a_notebook_runs_with_parameters_and_limits(tmp_path: Path) -> None:
    """Code 0; values arrive with their types; plain lines in a pipe; limits are in force."""
    cells = (
        "rows, label = 1, 'no'",
        "# Show them\nprint([rows, label])\nprint(__import__('os').cpu_count())",
        READ_LIMIT,
    )
    words = ("-p", "rows", "12", "-p", "label", "it's", "--memory", "640m", "--show")
    ran = run(tmp_path, cells, *words)
    assert ran.code == 0, ran.err
    assert ran.streams(2).startswith('[12, "it\'s"]\n')
    assert ran.book.cells[1].metadata["tags"] == ["injected-parameters"]
    assert str(640 * 2**20) in ran.book.cells[3].outputs[0]["data"]["text/plain"]
    assert ran.book.metadata["kernelspec"]["name"] == "executor-ml"
    assert ran.book.metadata["language_info"]["name"] == "python"
    assert [cell.execution_count for cell in ran.book.cells] == [1, 2, 3, 4]
    assert "\x1b" not in ran.out
    assert "\r" not in ran.out
    lines = ran.out.splitlines()
    assert lines[0] == f"  run     {tmp_path / 'n.ipynb'}, kernel executor-ml"
    assert "memory 640 MB, processors 0.5" in lines[1]
    assert "  ok      cell 3 of 4: Show them (" in ran.out
    assert '      | [12, "it\'s"]' in lines
    assert lines[-1].startswith(f"saved {ran.output} after ")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["n.ipynb", "n.out.ipynb"]


def test_a_failing_cell_ends_the_run_and_is_saved(tmp_path: Path) -> None:
    """Code 10; the cells before and the traceback are there, those after did not run."""
    ran = run(tmp_path, ("print('before')", "1/0", "print('after')"), "--json")
    assert ran.code == 10
    assert ran.streams(0) == "before\n"
    assert ran.errors(1) == ["ZeroDivisionError"]
    assert ran.book.cells[2].outputs == []
    told = ran.told
    assert (told["status"], told["exit_code"]) == ("cell_error", 10)
    assert [c["state"] for c in told["cells"]] == ["ok", "error", "not_run"]
    assert told["cells"][1]["error"] == "ZeroDivisionError"
    assert "cell 2 of 3 failed: ZeroDivisionError: division by zero" in ran.err


def test_errors_may_be_allowed(tmp_path: Path) -> None:
    """Code 0, and the report still tells which cells failed."""
    ran = run(tmp_path, ("1/0", "print('after')"), "--json", "--allow-errors")
    assert ran.code == 0, ran.err
    assert [c["state"] for c in ran.told["cells"]] == ["error", "ok"]
    assert ran.streams(1) == "after\n"


def test_out_of_memory_has_a_code_of_its_own(tmp_path: Path) -> None:
    """Code 13; the limit is in the cell, exactly once, and what it printed before it."""
    cells = ("import time; print('full', flush=True)\nx = bytearray(600 * 2**20)", "1")
    ran = run(tmp_path, cells, "--json")
    assert ran.code == 13
    assert ran.errors(0) == ["MemoryLimitExceeded"]
    assert ran.streams(0) == "full\n"
    told = ran.told
    assert told["status"] == "out_of_memory"
    assert told["death"]["name"] == "MemoryLimitExceeded"
    assert "512 MB" in told["death"]["reason"]
    assert told["death"]["remedy"]
    assert [c["state"] for c in told["cells"]] == ["died", "not_run"]
    assert "--memory" in ran.err.splitlines()[-1]


@pytest.mark.parametrize(
    ("source", "name"),
    [
        (BYE + "os._exit(3)", "KernelExited"),
        (BYE + "os.kill(os.getpid(), 9)", "KernelKilled"),
        (EXIT_LATER, "KernelExited"),
    ],
)
def test_other_deaths_have_another_code(tmp_path: Path, source: str, name: str) -> None:
    """Code 14, soon; the cause is there exactly once, also where no cell was running."""
    cells = (source, "import time; time.sleep(30)")
    ran = run(tmp_path, cells, "--json")
    assert ran.code == 14
    told = ran.told
    assert told["death"]["name"] == name
    died = [c for c in told["cells"] if c["state"] == "died"]
    assert len(died) == 1
    assert died[0]["seconds"] < 3
    assert ran.errors(died[0]["index"]) == [name]
    assert ran.streams(0) == "bye\n"


def test_a_cell_that_takes_too_long_is_interrupted(tmp_path: Path) -> None:
    """Code 11; the traceback shows where it was, and the last output why it ended."""
    cells = ("import time\nprint('a', flush=True)\ntime.sleep(60)", "1")
    ran = run(tmp_path, cells, "--cell-timeout", "1s", "--json")
    assert ran.code == 11
    assert ran.errors(0) == ["KeyboardInterrupt", "CellTimeout"]
    assert ran.streams(0) == "a\n"
    assert [c["state"] for c in ran.told["cells"]] == ["timed_out", "not_run"]
    assert "the cell ran longer than 1 s; the cell was interrupted" in ran.err
    assert ran.seconds < 20


def test_a_cell_that_ignores_interrupts_is_killed(tmp_path: Path) -> None:
    """Code 11 all the same, a few seconds later, with what it had printed."""
    ran = run(tmp_path, (STUBBORN,), "--cell-timeout", "1s")
    assert ran.code == 11
    assert ran.errors(0) == ["CellTimeout"]
    assert ran.streams(0) == "ignoring\n"
    assert "its kernel was killed" in ran.err
    assert ran.seconds < 25


def test_the_whole_notebook_has_a_time_limit(tmp_path: Path) -> None:
    """Code 12, wherever it is reached: in the third cell, or while the kernel starts."""
    sleep = "import time; time.sleep(1.5)"
    ran = run(tmp_path, (sleep, sleep, sleep, sleep, sleep), "--timeout", "5s", "--json")
    assert ran.code == 12
    states = [c["state"] for c in ran.told["cells"]]
    assert "timed_out" in states
    assert states[-1] == "not_run"
    ran = run(tmp_path, (sleep,), "--timeout", "50ms", "--json")
    assert ran.code == 12
    assert [c["state"] for c in ran.told["cells"]] == ["not_run"]
    assert "the start of the kernel" in ran.err


@pytest.mark.parametrize(
    ("number", "code", "source", "times"),
    [
        (signal.SIGINT, 130, "import time\nprint('here', flush=True)\ntime.sleep(60)", 1),
        (signal.SIGINT, 130, STUBBORN, 2),
        (signal.SIGTERM, 143, "import time\nprint('here', flush=True)\ntime.sleep(60)", 1),
    ],
)
def test_ctrl_c_saves_what_there_is(
    tmp_path: Path, number: int, code: int, source: str, times: int
) -> None:
    """Code 130 within seconds; that nothing is left is seen after the whole run."""
    write(tmp_path, "print('first')", source)
    with begin(tmp_path) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "cell 1 of 2" in line:
                break
        time.sleep(1)
        begun = time.monotonic()
        for _ in range(times):
            process.send_signal(number)
            time.sleep(0.3)
        ran = finish(tmp_path, process, begun)
    assert ran.code == code
    assert ran.seconds < 10
    assert ran.streams(0) == "first\n"
    assert ran.streams(1) in {"here\n", "ignoring\n"}
    assert ran.errors(1)[-1] == "RunInterrupted"
    assert ran.err.startswith("executor-ml: stopped in cell 2 of 2\nFix: ")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["n.ipynb", "n.out.ipynb"]


def test_ctrl_c_at_once(tmp_path: Path) -> None:
    """While what runs a notebook is imported: one line, and nothing was begun."""
    write(tmp_path, "1")
    with begin(tmp_path) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("  run     ")
        process.send_signal(signal.SIGINT)
        ran = finish(tmp_path, process, time.monotonic())
    assert (ran.code, ran.err) == (130, "executor-ml: interrupted\n")
    assert not ran.output.exists()


def test_ctrl_c_while_the_kernel_starts(tmp_path: Path) -> None:
    """The same, with no cell run; a start that is cut off leaves nothing."""
    write(tmp_path, "1")
    environ = {"PYTHONUNBUFFERED": "1"}
    with begin(tmp_path, "--timeout", "60s", environ=environ) as process:
        runtime = Path(os.environ["EXECUTOR_ML_RUNTIME_DIR"])
        deadline = time.monotonic() + 30
        while not list(runtime.glob(f"w-{process.pid}-*")) and time.monotonic() < deadline:
            time.sleep(0.005)
        begun = time.monotonic()
        process.send_signal(signal.SIGINT)
        ran = finish(tmp_path, process, begun)
    assert ran.code == 130
    assert ran.seconds < 10
    assert ran.book.cells[0].outputs == []
    assert "stopped in the start of the kernel" in ran.err


@pytest.mark.parametrize(
    ("words", "environ", "code", "said"),
    [
        (("--image", "no-such-image"), {}, 72, "the image no-such-image is not on this machine"),
        (("--image", "exector-ml"), {}, 72, "did you mean 'executor-ml:latest'?"),
        (("--cpus", "999"), {}, 78, "cpus = 999 is more than this machine has"),
        (("--kernel", "executor-lm"), {}, 78, "did you mean 'executor-ml'?"),
        (("--memory", "1k"), {}, 78, "the options of executor-ml run: memory"),
        (
            ("--memory", "2g"),
            {"EXECUTOR_ML_MAX_MEMORY": "1g"},
            78,
            "is above the ceiling of 1 GB set in EXECUTOR_ML_MAX_MEMORY",
        ),
        (("--mount", "/etc/x=/"), {}, 78, "mounts go to a folder directly below"),
        (("--kernel", "python3"), {}, 78, "outside of any sandbox"),
        ((), {"DOCKER_HOST": "unix:///nowhere/docker.sock"}, 69, "no container engine answers"),
        (("-o", "/nowhere/n.ipynb"), {}, 74, "there is no folder /nowhere"),
    ],
)
def test_what_cannot_begin_says_why(
    tmp_path: Path, words: tuple[str, ...], environ: dict[str, str], code: int, said: str
) -> None:
    """Each with its code, in a line and a fix and in JSON, and without an output file."""
    ran = run(tmp_path, ("1",), "--json", *words, environ=environ)
    assert ran.code == code
    assert said in ran.err
    assert ran.told["exit_code"] == code
    assert said in ran.told["error"]["summary"]
    assert not ran.output.exists()


def test_json_tells_all_there_is(tmp_path: Path) -> None:
    """The keys that scripts rely on, and a page without a second run."""
    page = tmp_path / "n.html"
    ran = run(tmp_path, ("# Sum\n1 + 1",), "--json", "--cpus", "1", "--html", str(page))
    assert ran.code == 0, ran.err
    told = ran.told
    cell = told["cells"][0]
    assert told.pop("seconds") > cell.pop("seconds") > 0
    assert (told["limits"]["memory"], told["limits"]["cpus"]) == ("512 MB", "1")
    assert {"image", "pids", "tmp_size", "shm_size"} < set(told.pop("limits"))
    assert told == {
        "status": "success",
        "exit_code": 0,
        "notebook": str(tmp_path / "n.ipynb"),
        "output": str(ran.output),
        "html": str(page),
        "kernel": "executor-ml",
        "cells": [
            {
                "number": 1,
                "index": 0,
                "title": "Sum",
                "state": "ok",
                "error": "",
                "message": "",
            }
        ],
        "death": None,
        "warnings": [],
        "error": None,
    }
    assert "cell 1 of 1: Sum" in ran.err
    assert "Sum" in page.read_text()


def test_the_notebook_can_be_written_over_where_asked_for(tmp_path: Path) -> None:
    """Not without --in-place; no other file is made, and a page is told of as well."""
    page = tmp_path / "n.html"
    ran = run(tmp_path, ("6 * 7",), "-o", str(tmp_path / "n.ipynb"))
    assert ran.code == 66
    assert "this is the notebook itself" in ran.err
    ran = run(tmp_path, ("6 * 7",), "--in-place", "--html", str(page))
    assert ran.code == 0, ran.err
    book = nbformat.read(tmp_path / "n.ipynb", as_version=4)
    assert book.cells[0].outputs[0]["data"]["text/plain"] == "42"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["n.html", "n.ipynb"]
    assert f"saved {tmp_path / 'n.ipynb'} and {page} after " in ran.out


def test_input_says_what_to_do_instead(tmp_path: Path) -> None:
    """Nobody can answer; the name by which that is known is ipykernel's."""
    ran = run(tmp_path, ("input('name? ')",))
    assert ran.code == 10
    assert "give its value with -p NAME VALUE" in ran.err


def test_the_notebook_can_go_to_standard_output(tmp_path: Path) -> None:
    """And nothing else does."""
    ran = run(tmp_path, ("6 * 7",), "-o", "-")
    assert ran.code == 0, ran.err
    book = nbformat.reads(ran.out, as_version=4)
    assert book.cells[0].outputs[0]["data"]["text/plain"] == "42"
    assert not ran.output.exists()


def test_a_closed_pipe_does_not_end_the_run(tmp_path: Path) -> None:
    """``| head -1`` loses progress, not the notebook."""
    write(tmp_path, "print('a')", "import time; time.sleep(0.5)", "print('b')")
    with begin(tmp_path) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr is not None
        told = process.stderr.read()
        assert process.wait(60) == 0, told
    book = nbformat.read(tmp_path / "n.out.ipynb", as_version=4)
    assert book.cells[2].outputs[0]["text"] == "b\n"
    assert told == ""


LIE = """
import time
k = get_ipython().kernel
s = k.session
def send(socket, *parts, key=s.key):
    s.key, old = key, s.key
    parts = [p if isinstance(p, bytes) else s.pack(p) for p in parts]
    socket.send_multipart([b"t", b"<IDS|MSG>", s.sign(parts), *parts])
    s.key = old
h = s.msg_header("stream")
p = k.get_parent()["header"]
"""
LIES = {
    "another key": "send(k.iopub_socket, h, p, {}, {'name': 'stdout', 'text': 'x'}, key=b'x')",
    "200,000 levels": "send(k.iopub_socket, h, p, {}, b'[' * 200_000)",
    "a text that is none": "send(k.iopub_socket, h, p, {}, {'name': 'stdout', 'text': [1]})",
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
def test_a_kernel_that_lies_ends_the_run(tmp_path: Path, lie: str) -> None:
    """With an error of its own, in the cell as well; what came before that is saved."""
    ran = run(tmp_path, ("print('before')", f"{LIE}\n{lie}\ntime.sleep(60)"))
    assert ran.code == 76
    assert "the kernel broke the message protocol" in ran.err
    assert ran.streams(0) == "before\n"
    assert ran.errors(1) == ["ProtocolViolation"]
    assert ran.seconds < 45


def test_a_forged_end_ends_a_cell_and_nothing_else(tmp_path: Path) -> None:
    """An early idle is an output that comes late; half a character does not spoil the file."""
    early = "k.send_response(k.iopub_socket, 'status', {'execution_state': 'idle'})"
    ran = run(tmp_path, (f"{LIE}\n{early}\nprint('late')", "print('next')", "print('\\ud800')"))
    assert ran.code in {0, 10, 76}
    assert ran.streams(1).endswith("next\n")
