"""Cells that run longer than their kernelspec allows, honest and hostile ones."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import docker
import nbformat
import pytest
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager
from kernels import KERNEL, MINE, kernel, run, run_to_death
from nbclient import NotebookClient
from nbclient.exceptions import DeadKernelError
from sandboxes import left_of, look, session_of, until, value

pytestmark = [pytest.mark.container, pytest.mark.usefixtures("image")]
Pair = tuple[KernelManager, BlockingKernelClient]

LIMIT = 2.0
GRACE = 5.0
SLACK = 1.5
"""Seconds that a machine with more to do takes besides."""

NOTE = (
    "executor-ml: interrupted, since it ran longer than 2 s "
    f'("cell_timeout" in kernelspec {KERNEL}).'
)
REASON = "the cell ran longer than 2 s and went on after an interrupt; its kernel was stopped."
REMEDY = f'raise "cell_timeout" in kernelspec {KERNEL}.'

BUSY = "kept = 42\nwhile True: pass"
DEAF = """
import time
while True:
    try:
        while True: time.sleep(0.01)
    except KeyboardInterrupt:
        print("not me", flush=True)
"""


@pytest.fixture(scope="module")
def brief(image: str) -> Iterator[Pair]:
    """A kernel whose cells may run for two seconds."""
    assert image
    with kernel({"cell_timeout": LIMIT}) as pair:
        yield pair


@contextmanager
def another(km: KernelManager) -> Iterator[BlockingKernelClient]:
    """A client with a session of its own: those of one manager have one address."""
    client = BlockingKernelClient(connection_file=km.connection_file)
    client.load_connection_file()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=30)
        yield client
    finally:
        client.stop_channels()


def test_a_busy_cell_is_interrupted_and_says_why(brief: Pair) -> None:
    """As if the person had; the kernel goes on, with all that it had."""
    km, client = brief
    begun = time.monotonic()
    outcome = run(client, BUSY)
    assert LIMIT <= time.monotonic() - begun < LIMIT + SLACK
    assert outcome.error["ename"] == "KeyboardInterrupt"
    assert outcome.stderr.strip() == NOTE
    kinds = [m["msg_type"] for m in outcome.messages]
    assert kinds.index("stream") < kinds.index("error")
    assert value(client, "kept") == 42
    assert session_of(km).late == 1


def test_each_cell_has_all_of_its_time(brief: Pair) -> None:
    """Three that wait for each other take longer together, and none is too long."""
    _, client = brief
    requests = [client.execute("import time; time.sleep(1.2)") for _ in range(3)]
    for request in requests:
        reply = client.get_shell_msg(timeout=10)
        assert reply["parent_header"]["msg_id"] == request
        assert reply["content"]["status"] == "ok"


def test_what_waits_behind_it_is_dropped_as_after_any_error(brief: Pair) -> None:
    """And none of it is interrupted, or stopped, for what the first one did."""
    _, client = brief
    for _ in range(3):
        client.execute(BUSY)
    statuses = [client.get_shell_msg(timeout=10)["content"]["status"] for _ in range(3)]
    assert statuses == ["error", "aborted", "aborted"]
    time.sleep(GRACE + 0.5)
    assert value(client, "6 * 7") == 42


def test_waiting_for_an_answer_counts(brief: Pair) -> None:
    """That a cell asks is the kernel's own word, and stops no clock."""
    _, client = brief
    client.execute("input('well?')", allow_stdin=True)
    assert client.get_stdin_msg(timeout=10)["content"]["prompt"] == "well?"
    reply = client.get_shell_msg(timeout=LIMIT + SLACK)
    assert reply["content"]["ename"] == "KeyboardInterrupt"


def test_a_loud_cell_says_so_between_its_lines(brief: Pair) -> None:
    """Whole lines before and after; none is lost."""
    _, client = brief
    code = (
        "import itertools\ntry:\n    for n in itertools.count(): print(n, 'x' * 2000, flush=True)\n"
        "except KeyboardInterrupt: print('last', n)"
    )
    outcome = run(client, code)
    assert outcome.stderr.strip() == NOTE
    *lines, last = outcome.stdout.splitlines()
    count = int(last.split()[1])
    numbers = [int(line.split()[0]) for line in lines]
    assert numbers in ([*range(count)], [*range(count + 1)])


def test_a_restart_begins_with_a_full_clock(brief: Pair) -> None:
    """Whatever ran before it."""
    km, client = brief
    client.execute("import time; time.sleep(60)")
    time.sleep(LIMIT * 0.6)
    km.restart_kernel(now=True)
    client.wait_for_ready(timeout=30)
    outcome = run(client, "import time; time.sleep(1.6); 6 * 7")
    assert (outcome.status, outcome.stderr) == ("ok", "")


# --- cells that go on ---------------------------------------------------------------------

FORGED = """
import json
k = get_ipython().kernel
parent = k.get_parent("shell")["header"]
parent["date"] = str(parent["date"])
header = {**parent, "msg_type": "execute_reply", "msg_id": "forged"}
parts = [b"<IDS|MSG>", b"0" * 64, json.dumps(header).encode(), json.dumps(parent).encode(),
         b"{}", b'{"status": "ok"}']
wire = b"".join(bytes([3 if p is not parts[-1] else 2]) + len(p).to_bytes(8, "big") + p
                for p in parts)
for s in mine(1):
    s.setblocking(True)
    s.sendall(wire)
"""
"""An answer that nobody signed: its client drops it, and waits on."""

HUNG_UP = "for s in mine(1): s.shutdown(2)"
"""Its client connects anew, and waits for the answer to what it has sent already."""

IDLE = """
k = get_ipython().kernel
k.send_response(k.iopub_socket, "status", {"execution_state": "idle"})
"""


@pytest.mark.parametrize(
    "before",
    [
        pytest.param("", id="deaf"),
        pytest.param(MINE + FORGED, id="forged answer"),
        pytest.param(MINE + HUNG_UP, id="hung up", marks=pytest.mark.soak),
        pytest.param(IDLE, id="forged idle", marks=pytest.mark.soak),
    ],
)
def test_one_that_goes_on_is_stopped_and_its_cell_says_why(
    engine: docker.DockerClient, before: str
) -> None:
    """With the remedy; its owner knows, a restart works, and nothing is left."""
    with kernel({"cell_timeout": LIMIT}) as (km, client):
        seen = look(session_of(km), engine)
        begun = time.monotonic()
        outcome = run_to_death(client, before + DEAF, timeout=20)
        assert LIMIT + GRACE <= time.monotonic() - begun < LIMIT + GRACE + 2 * SLACK
        assert outcome.error.get("ename") == "CellTimeout"
        assert REASON in outcome.error["evalue"]
        assert REMEDY in outcome.error["evalue"]
        assert outcome.stderr.strip() == NOTE
        assert outcome.stdout == "not me\n"
        assert until(lambda: session_of(km).death is not None)
        death = session_of(km).death
        assert death is not None
        assert (death.name, death.exit_code, death.expected) == ("CellTimeout", 137, False)
        assert until(lambda: not left_of(seen, engine)), left_of(seen, engine)
        km.restart_kernel(now=True)
        with another(km) as healthy:  # the first may have a forged message to read
            assert value(healthy, "6 * 7") == 42


def left_with(km: KernelManager, code: str) -> None:
    """A client that asks for cells, sees the first begin, and goes."""
    with another(km) as client:
        client.execute(f"print('begun', flush=True)\n{code}")
        while client.get_iopub_msg(timeout=10)["content"].get("text") != "begun\n":
            pass


def test_a_cell_whose_client_left_is_held_as_well(brief: Pair) -> None:
    """As after a reload of its page in a browser; the kernel goes on."""
    km, client = brief
    late = session_of(km).late
    begun = time.monotonic()
    left_with(km, BUSY)
    assert until(lambda: session_of(km).late > late, LIMIT + SLACK)
    assert time.monotonic() - begun > LIMIT * 0.9
    time.sleep(1.0)  # what comes while the kernel ends the cell is dropped with it
    assert value(client, "kept") == 42


def test_one_that_ends_in_time_without_its_client_is_left_alone(brief: Pair) -> None:
    """Nothing is interrupted that runs then."""
    km, client = brief
    late = session_of(km).late
    left_with(km, f"import time; time.sleep({LIMIT / 2})")
    outcome = run(client, f"import time; time.sleep({LIMIT * 0.8}); 6 * 7")
    assert (outcome.status, outcome.result, outcome.stderr) == ("ok", "42", "")
    time.sleep(LIMIT)
    assert session_of(km).late == late


def test_one_that_goes_on_without_its_client_is_stopped() -> None:
    """Its owner knows."""
    with kernel({"cell_timeout": LIMIT}) as (km, client):
        left_with(km, DEAF)
        client.stop_channels()
        assert until(lambda: session_of(km).death is not None, LIMIT + GRACE + 2 * SLACK)
        death = session_of(km).death
        assert death is not None
        assert death.name == "CellTimeout"


# --- those who run notebooks --------------------------------------------------------------


def written(folder: Path, *sources: str) -> Path:
    """A notebook of code cells."""
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), folder / "n.ipynb")
    return folder / "n.ipynb"


def test_nbclient_has_the_same_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the administrator's ceiling is the limit, and the kernelspec says nothing."""
    monkeypatch.setenv("EXECUTOR_ML_MAX_CELL_TIMEOUT", "2")
    book = nbformat.read(written(tmp_path, "1", DEAF), as_version=4)
    with pytest.raises(DeadKernelError):
        NotebookClient(book, kernel_name=KERNEL).execute()
    (error,) = [out for out in book.cells[1].outputs if out["output_type"] == "error"]
    assert error["ename"] == "CellTimeout"
    assert error["evalue"].startswith(REASON)


@pytest.mark.parametrize(
    ("source", "state", "how"),
    [
        (BUSY, "timed_out", "the cell was interrupted."),
        (DEAF, "died", "its kernel was stopped."),
    ],
    ids=["busy", "deaf"],
)
def test_a_run_tells_it_as_its_own_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, state: str, how: str
) -> None:
    """By name and exit code; only the remedy is another."""
    monkeypatch.setenv("EXECUTOR_ML_DEFAULT_CELL_TIMEOUT", "2")
    command = Path(sys.executable).with_name("executor-ml")
    book = written(tmp_path, source, "print('never')")
    words = [str(command), "run", str(book), "--json"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=90, check=False)
    told = json.loads(done.stdout)
    assert (done.returncode, told["status"]) == (11, "cell_timeout")
    first, second = told["cells"]
    assert (first["state"], first["error"], second["state"]) == (state, "CellTimeout", "not_run")
    assert first["message"].startswith("the cell ran longer than 2 s")
    assert first["message"].endswith(how)
    saved = nbformat.read(told["output"], as_version=4)
    errors = [out for out in saved.cells[0].outputs if out["output_type"] == "error"]
    assert errors[-1]["ename"] == "CellTimeout"
    assert REMEDY in errors[-1]["evalue"]
