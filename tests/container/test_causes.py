"""What a cell hears of a limit that its kernel survived (D5): which one, and the remedy."""

import asyncio
import time
from pathlib import Path

import docker
import nbformat
import papermill
import pytest
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.ioloop.manager import AsyncIOLoopKernelManager
from jupyter_client.manager import KernelManager
from kernels import KERNEL, Outcome, run
from sandboxes import look, session_of, until
from traitlets.config import Config

pytestmark = [pytest.mark.container, pytest.mark.usefixtures("image")]
Pair = tuple[KernelManager, BlockingKernelClient]

HOG = (
    "def hog(_=None):\n"
    "    open('/proc/self/oom_score_adj', 'w').write('1000')\n"
    "    return len(b'x' * (600 << 20))\n"
)
"""Takes more memory than there is, and asks to be the one that is killed for it."""
KILLED = "MemoryLimitExceeded: a process that the kernel had started was killed"
REFUSED = "PidsLimitExceeded: the sandbox has room for 128 processes and threads"


def traceback(outcome: Outcome) -> str:
    """As a front-end shows it."""
    return "\n".join(outcome.error["traceback"])


def test_a_subprocess_killed_for_memory_is_a_note_in_the_cell(shared_kernel: Pair) -> None:
    """Nothing was raised, so the cell says it on standard error; the next says nothing."""
    _, client = shared_kernel
    child = f"subprocess.run([sys.executable, '-c', {HOG + 'hog()'!r}])"
    code = f"import subprocess, sys\n{child}.returncode"
    outcome = run(client, code)
    assert outcome.status == "ok"
    assert outcome.result == "-9"
    assert outcome.stderr.startswith(f"Note: {KILLED}")
    assert "its 512 MB of memory" in outcome.stderr
    assert f'raise "memory" in kernelspec {KERNEL}' in outcome.stderr
    assert run(client, "1").stderr == ""


def test_a_worker_killed_for_memory_ends_the_traceback(shared_kernel: Pair) -> None:
    """The pool says only that a process ended; the hint says why, once."""
    code = (
        "from concurrent.futures import ProcessPoolExecutor\n"
        "from multiprocessing import get_context\n" + HOG + "with ProcessPoolExecutor(1, "
        "get_context('fork')) as pool: list(pool.map(hog, [0]))"
    )
    outcome = run(shared_kernel[1], code)
    assert outcome.error["ename"] == "BrokenProcessPool"
    assert f"\nHint: {KILLED}" in traceback(outcome)
    assert outcome.stderr == ""


def test_a_cell_that_waits_for_a_killed_worker_says_so_when_interrupted(
    shared_kernel: Pair, engine: docker.DockerClient
) -> None:
    """Multiprocessing's Pool waits for ever: the stop button brings the reason."""
    km, client = shared_kernel
    group = look(session_of(km), engine).group
    before = group.usage().oom_kills
    code = (
        "from multiprocessing import get_context\n" + HOG + "with get_context('fork').Pool(1) as "
        "pool:\n    print('waiting', flush=True)\n    pool.map(hog, [0])"
    )
    request = client.execute(code)
    while client.get_iopub_msg(timeout=30)["content"].get("text") != "waiting\n":
        pass
    assert until(lambda: group.usage().oom_kills > before, 20)
    km.interrupt_kernel()
    reply = client.get_shell_msg(timeout=30)
    assert reply["parent_header"]["msg_id"] == request
    assert reply["content"]["ename"] == "KeyboardInterrupt"
    assert KILLED in "\n".join(reply["content"]["traceback"])


def test_threads_and_processes_that_are_refused_name_their_limit(shared_kernel: Pair) -> None:
    """Python says that it can't start a thread, or that a resource is unavailable."""
    _, client = shared_kernel
    threads = (
        "import threading\nstop = threading.Event()\ntry:\n"
        "    for _ in range(200): threading.Thread(target=stop.wait, daemon=True).start()\n"
        "finally: stop.set()"
    )
    outcome = run(client, threads)
    assert outcome.error["ename"] == "RuntimeError"
    assert f"\nHint: {REFUSED}" in traceback(outcome)
    assert f'raise "pids" in kernelspec {KERNEL}' in traceback(outcome)
    processes = (
        "import subprocess\nmade = []\ntry:\n"
        "    for _ in range(200): made.append(subprocess.Popen(['sleep', '60']))\n"
        "finally:\n    for one in made: one.kill()\n    for one in made: one.wait()"
    )
    outcome = run(client, processes)
    assert outcome.error["ename"] == "BlockingIOError"
    assert REFUSED in traceback(outcome)
    assert run(client, "1").stderr == ""


@pytest.mark.parametrize(
    ("place", "setting", "size"), [("/tmp", "tmp_size", 128), ("/dev/shm", "shm_size", 64)]
)
def test_a_full_place_names_itself_and_its_setting(
    shared_kernel: Pair, place: str, setting: str, size: int
) -> None:
    """Both are memory; "No space left on device" does not say of which device."""
    _, client = shared_kernel
    outcome = run(client, f"open('{place}/full', 'wb').write(bytes(200 << 20))")
    run(client, f"import os; os.remove('{place}/full')")
    assert outcome.error["ename"] == "OSError"
    told = f"DiskLimitExceeded: {place} is full: it has room for {size} MB."
    assert f"\nHint: {told}" in traceback(outcome)
    assert f'raise "{setting}" in kernelspec {KERNEL}' in traceback(outcome)


def test_memory_that_is_never_given_names_the_limit(shared_kernel: Pair) -> None:
    """Nobody was killed: so much at once is refused by the system."""
    outcome = run(shared_kernel[1], "bytearray(1 << 50)")
    assert outcome.error["ename"] == "MemoryError"
    assert "\nHint: MemoryLimitExceeded: the sandbox has 512 MB of memory." in traceback(outcome)


def test_papermill_saves_and_raises_the_cause(tmp_path: Path) -> None:
    """The saved notebook has the same text as any client's, soon after the death."""
    code = "import time\nprint('last', flush=True); time.sleep(0.3)\nx = b'x' * (600 << 20)"
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    nbformat.write(book, tmp_path / "in.ipynb")
    begun = time.monotonic()
    with pytest.raises(Exception, match=r"more than its 512 MB of memory|Kernel died"):
        papermill.execute_notebook(
            tmp_path / "in.ipynb", tmp_path / "out.ipynb", kernel_name=KERNEL, progress_bar=False
        )
    assert time.monotonic() - begun < 30
    *_, error = nbformat.read(tmp_path / "out.ipynb", as_version=4).cells[-1].outputs
    assert error["ename"] == "MemoryLimitExceeded"
    assert "more than its 512 MB of memory" in error["evalue"]


def test_a_kernel_that_died_is_restarted_by_itself() -> None:
    """Jupyter's restarter sees the exit code and starts the next one, which works."""

    async def scenario() -> None:
        often = Config({"KernelRestarter": {"time_to_dead": 0.5}})
        km = AsyncIOLoopKernelManager(kernel_name=KERNEL, autorestart=True, config=often)
        await km.start_kernel()
        client = km.client()
        client.start_channels()
        try:
            await client.wait_for_ready(timeout=30)
            km.add_restart_callback(restarted.set)
            client.execute("import os; os._exit(7)")
            await asyncio.wait_for(restarted.wait(), 30)
            await client.wait_for_ready(timeout=30)
            reply = await client.execute_interactive("assert 'os' not in dir()", timeout=30)
            assert reply["content"]["status"] == "ok"
        finally:
            client.stop_channels()
            await km.shutdown_kernel(now=True)

    restarted = asyncio.Event()
    asyncio.run(scenario())
