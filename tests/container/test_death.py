"""Why a kernel died: said in the cell that was running, in the log, and by its exit code.

Each within two seconds of the death (D5).
"""

import os
import signal
import time
from dataclasses import dataclass
from typing import Any

import docker
import nbformat
import pytest
import sandbox_io
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager
from jupyter_core.utils import run_sync
from kernels import KERNEL, Outcome, kernel, run, run_to_death
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from sandboxes import value

from kernel_provider.commands import ps
from kernel_provider.values import MIB

pytestmark = [pytest.mark.container, pytest.mark.usefixtures("image")]
Pair = tuple[KernelManager, BlockingKernelClient]

SOON = 2.0
STAMP = "import os, signal, time, ctypes\nprint('last', flush=True); time.sleep(0.2)\n"
"""libzmq sends from a thread of its own, which an end at once would take along."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """Code that ends its kernel, and what is said of it."""

    code: str
    name: str
    exit_code: int
    words: str


CASES = {
    "exit": Case(
        code="os._exit(7)",
        name="KernelExited",
        exit_code=7,
        words="ended with exit code 7",
    ),
    "segfault": Case(
        code="ctypes.string_at(0)",
        name="SegmentationFault",
        exit_code=139,
        words="SIGSEGV",
    ),
    "abort": Case(code="os.abort()", name="KernelKilled", exit_code=134, words="SIGABRT"),
    "kill": Case(
        code="os.kill(os.getpid(), signal.SIGKILL); time.sleep(9)",
        name="KernelKilled",
        exit_code=137,
        words="signal 9 (SIGKILL)",
    ),
    "bus": Case(
        code="import mmap\nwith open('/dev/shm/x', 'wb+') as file:\n"
        "    file.truncate(100 << 20)\n"
        "    mmap.mmap(file.fileno(), 100 << 20).write(bytes(100 << 20))",
        name="SharedMemoryExceeded",
        exit_code=135,
        words="/dev/shm or /tmp was full",
    ),
    "memory": Case(
        code="hold = []\nwhile True:\n    hold.append(b'x' * (16 << 20))\n"
        "    print('last', flush=True)",
        name="MemoryLimitExceeded",
        exit_code=137,
        words="more than its 512 MB of memory",
    ),
}


@pytest.mark.parametrize("kind", CASES)
def test_the_running_cell_the_log_and_the_exit_code_say_why(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """What was printed before stays, and the cause follows within two seconds."""
    case = CASES[kind]
    with kernel() as (km, client):
        request = client.execute(STAMP + case.code)
        outcome = Outcome(status="")
        last = time.monotonic()
        while not outcome.error:
            message = client.get_iopub_msg(timeout=30)
            if message["parent_header"].get("msg_id") != request:
                continue
            if message["msg_type"] == "stream":
                outcome.stdout += message["content"]["text"]
                last = time.monotonic()
            elif message["msg_type"] == "error":
                outcome.error = message["content"]
        assert time.monotonic() - last < SOON
        assert outcome.stdout.startswith("last\n")
        assert outcome.error["ename"] == case.name
        assert case.words in outcome.error["evalue"]
        assert case.words in outcome.error["traceback"][0]
        assert "Variables are lost" in outcome.error["evalue"]
        assert dead_within(km, SOON) == case.exit_code
        assert not km.is_alive()
    (told,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert case.name in told.getMessage()
    assert case.words in told.getMessage()
    assert str(km.kernel_id) in told.getMessage()
    check_facts(case, vars(told), km)


def check_facts(case: Case, fields: dict[str, Any], km: KernelManager) -> None:
    """What programs get: the fields of the log's record, and the last line of ``ps``."""
    assert fields["event"] == "kernel_died"
    assert fields["kernel_id"] == km.kernel_id
    assert fields["kernel_name"] == KERNEL
    assert (fields["cause"], fields["exit_code"]) == (case.name, case.exit_code)
    assert 20 * MIB < fields["memory_peak"] <= 512 * MIB
    assert fields["container"].startswith("executor-ml-")
    row = ps.died(os.environ)[-1]
    assert row.name == fields["container"]
    assert row.death is not None
    assert (row.death.name, row.death.exit_code) == (case.name, case.exit_code)
    assert case.words in row.death.reason
    assert abs(time.time() - row.death.at) < 30
    assert row.memory_peak == fields["memory_peak"]
    assert (row.kernel, row.owner, row.memory_limit) == (KERNEL, os.getpid(), 512 * MIB)


def dead_within(km: KernelManager, seconds: float) -> int | None:
    """The exit code, once poll() has one."""
    assert km.provisioner is not None
    deadline = time.monotonic() + seconds
    while (code := run_sync(km.provisioner.poll)()) is None and time.monotonic() < deadline:
        time.sleep(0.02)
    return code if code is None else int(code)


def container_of(engine: docker.DockerClient, client: BlockingKernelClient) -> str:
    """Id of the container that a client's kernel runs in."""
    uid = run(client, "import os; os.getuid()").result
    found = engine.api.inspect_container(f"executor-ml-{uid}")["Id"]
    engine.api.get_adapter(engine.api.base_url).close()  # it keeps connections open
    return str(found)


def test_a_kill_from_outside_is_told_in_the_running_cell(
    engine: docker.DockerClient, caplog: pytest.LogCaptureFixture
) -> None:
    """Docker kill ends PID 1, which has no last word; the cell hears all the same."""
    with kernel() as (km, client):
        container = container_of(engine, client)
        request = client.execute("import time; print('last', flush=True); time.sleep(60)")
        while True:
            message = client.get_iopub_msg(timeout=10)
            if message["msg_type"] == "stream":
                break
        began = time.monotonic()
        engine.api.kill(container)
        while message["msg_type"] != "error":
            message = client.get_iopub_msg(timeout=10)
        assert time.monotonic() - began < SOON
        assert message["parent_header"]["msg_id"] == request
        assert message["content"]["ename"] == "KernelKilled"
        assert "SIGKILL" in message["content"]["evalue"]
        assert dead_within(km, SOON) == 137
    assert "KernelKilled" in caplog.text


def published(client: BlockingKernelClient, seconds: float) -> list[str]:
    """Types of what arrives on iopub for a while."""
    seen = []
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        try:
            seen.append(client.get_iopub_msg(timeout=left)["msg_type"])
        except Exception:  # noqa: BLE001  Empty, by another name in each version
            break
    return seen


def test_a_death_when_idle_is_told_in_no_cell(
    engine: docker.DockerClient, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing was running, so no output gets an error; the log and poll() tell."""
    with kernel() as (km, client):
        container = container_of(engine, client)
        published(client, 0.3)
        engine.api.kill(container)
        assert "error" not in published(client, 1.5)
        assert dead_within(km, SOON) == 137
        assert "KernelKilled" in caplog.text


def test_an_expected_shutdown_is_told_nowhere(caplog: pytest.LogCaptureFixture) -> None:
    """By message and at once, with a cell running: no error output, no warning."""
    for now in (False, True):
        with kernel() as (km, client):
            published(client, 0.2)
            if now:
                client.execute("import time; time.sleep(60)")
                time.sleep(0.3)
            km.shutdown_kernel(now=now)
            assert "error" not in published(client, 0.7)
    assert not [r for r in caplog.records if r.levelname == "WARNING"]


def test_a_death_in_a_flood_of_output_is_told_after_it() -> None:
    """Killed in the middle of a message, with megabytes under way: the words arrive."""
    code = (
        "import os, threading\nthreading.Timer(0.7, lambda: os.kill(os.getpid(), 9)).start()\n"
        "while True: print('x' * 1_000_000)"
    )
    with kernel() as (km, client):
        outcome = run_to_death(client, code)
        assert outcome.error["ename"] == "KernelKilled"
        assert len(outcome.stdout) > 1_000_000
        assert dead_within(km, SOON) == 137


def test_what_was_printed_before_an_exit_arrives() -> None:
    """To the last line, though libzmq's sending thread ends with the process."""
    code = "import os\nfor number in range(2000): print(number)\nos._exit(3)"
    with kernel() as (km, client):
        for _ in range(4):
            outcome = run_to_death(client, code)
            assert outcome.stdout.endswith("1999\n")
            assert outcome.error["ename"] == "KernelExited"
            assert dead_within(km, SOON) == 3
            km.restart_kernel(now=True)
        forked = "import os, time; begun = time.monotonic(); child = os.fork()\n"
        forked += "if not child: os._exit(7)\n"
        forked += "os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), time.monotonic() - begun"
        status, took = value(client, forked)
        assert status == 7
        assert took < sandbox_io.FAREWELL


def test_a_child_that_takes_too_much_memory_leaves_the_kernel_alive() -> None:
    """The child is killed, the cell gets its exit status, the next cell runs."""
    code = (
        "import subprocess, sys\nsubprocess.run([sys.executable, '-c',"
        " \"open('/proc/self/oom_score_adj', 'w').write('1000'); x = b'x' * (600 << 20)\"]"
        ").returncode"
    )
    with kernel() as (km, client):
        run(client, "kept = 42")
        assert run(client, code).result == "-9"
        assert run(client, "kept").result == "42"
        assert km.is_alive()
        outcome = run_to_death(client, "import os; os._exit(3)")
        assert outcome.error["ename"] == "KernelExited"


def test_a_kernel_that_dies_after_a_child_was_killed_for_memory_is_not_blamed_for_it() -> None:
    """SIGKILL long after: the counter alone decides nothing."""
    code = (
        "import subprocess, sys\nsubprocess.run([sys.executable, '-c',"
        " \"open('/proc/self/oom_score_adj', 'w').write('1000'); x = b'x' * (600 << 20)\"]"
        ").returncode"
    )
    with kernel() as (_, client):
        assert run(client, code).result == "-9"
        outcome = run_to_death(client, "import os; os.kill(os.getpid(), 9)")
    assert outcome.error["ename"] == "KernelKilled"


def test_another_limit_is_named_by_its_own_value() -> None:
    """The words tell this kernel's limit, not the default."""
    with kernel({"memory": "256m", "tmp_size": "16m", "shm_size": "16m"}) as (_, client):
        outcome = run_to_death(client, "x = b'x' * (400 << 20)")
    assert outcome.error["ename"] == "MemoryLimitExceeded"
    assert "more than its 256 MB of memory" in outcome.error["evalue"]


def test_a_full_tmp_is_memory_too() -> None:
    """What is in /tmp counts: a cell that needs the rest dies with the limit named."""
    with kernel() as (_, client):
        run(client, "open('/tmp/full', 'wb').write(bytes(100 << 20))")
        outcome = run_to_death(client, "x = b'x' * (420 << 20)")
    assert outcome.error["ename"] == "MemoryLimitExceeded"


@pytest.mark.parametrize("kind", ["exit", "memory"])
def test_nbclients_notebook_holds_the_cause(kind: str) -> None:
    """Whoever opens the executed notebook reads in the cell why it stopped."""
    case = CASES[kind]
    notebook = nbformat.v4.new_notebook(
        cells=[
            nbformat.v4.new_code_cell("1 + 1"),
            nbformat.v4.new_code_cell(STAMP + case.code),
        ]
    )
    began = time.monotonic()
    with pytest.raises((DeadKernelError, CellExecutionError)):
        NotebookClient(notebook, kernel_name=KERNEL, timeout=60).execute()
    assert time.monotonic() - began < 30
    *streams, error = notebook.cells[1].outputs
    assert "".join(stream["text"] for stream in streams).startswith("last\n")
    assert error["ename"] == case.name
    assert case.words in error["evalue"]


def test_terminate_from_outside_is_no_accident(caplog: pytest.LogCaptureFixture) -> None:
    """A manager's SIGTERM is a wish: no warning is logged."""
    with kernel() as (km, client):
        run(client, "1")
        km.signal_kernel(signal.SIGTERM)
        assert dead_within(km, 3.0) == 143
    assert not [r for r in caplog.records if r.levelname == "WARNING"]
