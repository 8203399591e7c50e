"""Clients that run a kernelspec's argv themselves get the same sandbox, or none at all."""

import os
import pwd
import queue
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import docker
import pytest
from conftest import sandboxes
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager
from jupyter_client.provisioning.local_provisioner import LocalProvisioner
from kernels import Outcome, collect, run, run_to_death
from launches import Started, plain_manager, started, wait_until_used
from sandboxes import until

from kernel_provider import cli, kernelspecs, names
from kernel_provider.engines.docker import find_socket
from kernel_provider.pool import hand
from kernel_provider.recipe import Recipe
from kernel_provider.warden import cgroup, shelf
from kernel_provider.warden.visitors import TABLES
from kernel_provider.warden.zmtp import frame, greeting, ready

pytestmark = [pytest.mark.container, pytest.mark.usefixtures("image")]
Pair = tuple[KernelManager, BlockingKernelClient]
Left = Callable[[], set[str]]

LAST_WORDS = 10.0
"""Seconds from its wish to end, or its client's, to a kernel's end."""


@pytest.fixture
def left(engine: docker.DockerClient, own_folders: Path) -> Left:
    """Sandboxes of this test that are still there."""
    before = sandboxes(engine, own_folders)
    return lambda: sandboxes(engine, own_folders) - before


@pytest.fixture(scope="module")
def plain(image: str) -> Iterator[Pair]:
    """A kernel of Jupyter's own local provisioner, for the tests that do not harm it."""
    assert image
    km = plain_manager()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
        km.start_kernel()
    client = km.client()
    try:
        client.start_channels()
        client.wait_for_ready(timeout=60)
        assert isinstance(km.provisioner, LocalProvisioner)
        assert km.transport == "tcp"
        yield km, client
    finally:
        client.stop_channels()
        km.shutdown_kernel(now=True)


# --- a client with provisioners switched off ----------------------------------------------


def test_it_runs_in_a_sandbox(plain: Pair) -> None:
    """Of the kernelspec's own settings: what its code sees is a sandbox's."""
    code = "import os, socket; (socket.gethostname(), os.getuid() > 60000, os.cpu_count())"
    assert run(plain[1], code).result.startswith("('sandbox', True")


def test_it_takes_a_parked_one(
    tmp_path: Path, engine: docker.DockerClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a launch by Jupyter does: what is parked serves whoever comes first."""
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "share/jupyter"))
    words = f"install --prefix {tmp_path} --name quick --preload json"  # parks without torch
    assert cli.main(words.split()) == 0
    policy = kernelspecs.named("quick").launched(os.environ)
    hand.park(Recipe(policy=policy, address=find_socket(os.environ)), "quick", os.environ)
    (entry,) = shelf.entries(os.environ["EXECUTOR_ML_RUNTIME_DIR"])
    try:
        with started(tmp_path, name="quick") as kernel, kernel.client() as client:
            uid = run(client, "import os; os.getuid()").result
            assert engine.containers.get(f"executor-ml-{uid}").id == entry.container
            kernel.process.terminate()
            kernel.complaint(20)
    finally:
        assert not list(hand.end(os.environ, None))


def test_input_asks_the_person(plain: Pair) -> None:
    """The stdin channel is relayed as well."""
    client = plain[1]
    outcome = Outcome(status="")
    client.execute_interactive(
        "print('hello', input('Name? '))",
        allow_stdin=True,
        stdin_hook=lambda _: client.input("Ada"),
        output_hook=collect(outcome),
        timeout=20,
    )
    assert outcome.stdout == "hello Ada\n"


@pytest.mark.parametrize("mode", ["message", "signal"])
def test_an_interrupt_ends_the_cell_and_nothing_else(
    plain: Pair, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    """Whether the client asks the kernel for it or sends SIGINT to what it has started."""
    km, client = plain
    monkeypatch.setattr(km.kernel_spec, "interrupt_mode", mode)
    run(client, "kept = 42")
    outcome = Outcome(status="")
    sort = collect(outcome)

    def hook(message: dict[str, Any]) -> None:
        sort(message)
        if message["msg_type"] == "stream":
            km.interrupt_kernel()

    client.execute_interactive(
        "import subprocess; print('go', flush=True); subprocess.run(['sleep', '60'])",
        timeout=20,
        output_hook=hook,
    )
    assert outcome.error["ename"] == "KeyboardInterrupt"
    assert run(client, "kept").result == "42"


def test_two_clients_hear_the_same(plain: Pair) -> None:
    """Another client of the connection file sees what the first one's cell puts out."""
    km, client = plain
    other = BlockingKernelClient(connection_file=km.connection_file)
    other.load_connection_file()
    other.start_channels()
    try:
        other.wait_for_ready(timeout=20)
        run(client, "print('for both')")
        assert heard("for both", other)
    finally:
        other.stop_channels()


def heard(text: str, client: BlockingKernelClient, within: float = 20.0) -> bool:
    """Whether a cell's output arrives."""
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        try:
            message = client.get_iopub_msg(timeout=0.2)
        except queue.Empty:
            continue
        if message["msg_type"] == "stream" and text in message["content"]["text"]:
            return True
    return False


@pytest.mark.parametrize("now", [False, True])
def test_a_restart_loses_no_output(
    plain: Pair, monkeypatch: pytest.MonkeyPatch, *, now: bool
) -> None:
    """A new process at the same ports: the first output of its sandbox arrives."""
    km, client = plain
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    run(client, "x = 1")
    km.restart_kernel(now=now)
    client.execute("print('first', 'x' in globals())")
    assert heard("first False", client)


# --- signals, and ends --------------------------------------------------------------------


def test_a_shutdown_request_ends_it(tmp_path: Path, left: Left) -> None:
    """With exit code 0, nothing to complain of, and its ports free at once."""
    with started(tmp_path) as kernel:
        with kernel.client() as client:
            client.shutdown()
            assert kernel.complaint() == ""
        assert kernel.process.returncode == 0
        assert not left()
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", kernel.said["shell_port"]))
            probe.listen()


SLOW_TO_SAY_IDLE = """
def slow(sending):
    import threading, time
    join = sending.thread.join
    def slow_to_tidy_up(timeout):
        join(timeout)
        time.sleep(1)
    def slow_to_send(self, wish):
        alive = self.thread.is_alive()
        if threading.current_thread().name == "Control":
            time.sleep(0.3)
        if not alive:
            return wish()
        self._events.append(wish)
        self._event_pipe.send(b"")
    sending.thread.join = slow_to_tidy_up
    type(sending).schedule = slow_to_send
slow(get_ipython().kernel.iopub_thread)  # of local variables: the others go before
"""


def test_its_last_words_are_said_before_it_takes_itself_apart(tmp_path: Path) -> None:
    """Its control thread says "idle" by another, and waited for good where that was gone."""
    with started(tmp_path) as kernel, kernel.client() as client:
        run(client, SLOW_TO_SAY_IDLE)
        asked = time.monotonic()
        client.shutdown()
        assert kernel.complaint() == ""
        assert time.monotonic() - asked < LAST_WORDS  # by itself
        assert kernel.process.returncode == 0


@pytest.mark.parametrize(
    ("code", "how"),
    [
        ("import atexit, time; atexit.register(time.sleep, 600); print('go')", "quit"),
        ("print('go', flush=True)\nwhile True: pass", "asked"),
    ],
)
def test_nothing_holds_up_its_end(tmp_path: Path, code: str, how: str) -> None:
    """Neither what it has left to do nor a cell that goes on."""
    with started(tmp_path) as kernel, kernel.client() as client:
        client.execute(code)
        assert heard("go", client)
        if how == "asked":
            client.shutdown()
        else:
            client.execute("quit")
        asked = time.monotonic()
        assert ("exit code 0" in kernel.complaint()) == (how == "quit")
        assert LAST_WORDS - 1 < time.monotonic() - asked < LAST_WORDS + 5
        assert kernel.process.returncode == 0


def test_sigterm_ends_it(tmp_path: Path, left: Left) -> None:
    """While it starts as later; when the process has ended nothing is left."""
    with started(tmp_path) as early:
        assert until(left, 30)
        early.process.terminate()
        assert (early.complaint(20), early.process.returncode) == ("", 143)
        assert not left()
    with started(tmp_path) as kernel, kernel.client():
        kernel.process.terminate()
        assert (kernel.complaint(20), kernel.process.returncode) == ("", 143)
        assert not left()


def test_sigkill_takes_the_sandbox_along(tmp_path: Path, left: Left) -> None:
    """The warden sees it: nobody has to tidy up (D3)."""
    with started(tmp_path) as kernel, kernel.client():
        kernel.process.kill()
        assert until(lambda: not left(), 10)


def test_its_death_is_told_on_both_ways(tmp_path: Path, left: Left) -> None:
    """The running cell says why; so does stderr, and the exit code is the kernel's."""
    with started(tmp_path) as kernel, kernel.client() as client:
        outcome = run_to_death(client, "import os, time; time.sleep(0.5); os._exit(3)")
        assert outcome.error["ename"] == "KernelExited"
        told = kernel.complaint(20)
        assert told.startswith("executor-ml: KernelExited: the kernel process ended with exit code")
        assert kernel.process.returncode == 3
        assert not left()


STARTER = """
import subprocess, sys, time
kernel = subprocess.Popen(sys.argv[1:], stderr=subprocess.PIPE)
print(kernel.pid, flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("way", ["reads what it complains of", "sets JPY_PARENT_PID"])
def test_a_client_that_crashes_takes_it_along(tmp_path: Path, left: Left, way: str) -> None:
    """Killed, it can end nothing; its kernel goes all the same."""
    starter = STARTER
    if way == "sets JPY_PARENT_PID":
        starter = "import os; os.environ['JPY_PARENT_PID'] = str(os.getpid())\n" + starter.replace(
            "subprocess.PIPE", "subprocess.DEVNULL"
        )
    with started(tmp_path) as template:  # for its file and argv; never comes up
        template.process.kill()
        template.process.wait()
        assert until(lambda: not left(), 10)
        argv = [sys.executable, "-c", starter, *map(str, template.process.args)]  # type: ignore[arg-type]
        client = subprocess.Popen(argv, stdout=subprocess.PIPE, cwd=tmp_path)
        assert client.stdout is not None
        with client.stdout, template.client():
            kernel = int(client.stdout.readline())
            assert left()
            client.kill()
            client.wait()
            assert until(lambda: not cgroup.is_alive(kernel), 10)
            assert not left()


# --- what the ports let in ----------------------------------------------------------------


@contextmanager
def deaf(kernel: Started) -> Iterator[socket.socket]:
    """A subscriber that reads nothing after its subscription."""
    place = ("127.0.0.1", kernel.said["iopub_port"])
    with socket.create_connection(place, timeout=5) as stuck:
        stuck.sendall(greeting())
        got = b""
        while len(got) < 64:
            got += stuck.recv(64 - len(got))
        stuck.sendall(ready(b"SUB") + frame(b"\x01"))
        time.sleep(0.2)
        yield stuck


@pytest.mark.parametrize("mode", ["message", "signal"])
def test_an_interrupt_passes_a_gigabyte_that_is_stuck(tmp_path: Path, mode: str) -> None:
    """While the only subscriber reads nothing of it, and the kernel waits for that one."""
    with started(tmp_path) as kernel, kernel.client(iopub=False) as client, deaf(kernel) as stuck:
        request = client.execute("for _ in range(1024): print('x' * 2**20)")
        assert until(lambda: len(stuck.recv(4096, socket.MSG_PEEK)) == 4096, 20)  # it has begun
        if mode == "signal":
            kernel.process.send_signal(signal.SIGINT)
        else:
            client.control_channel.send(client.session.msg("interrupt_request", {}))
        reply = client.get_shell_msg(timeout=30)  # and never, where it does not pass
        assert reply["parent_header"]["msg_id"] == request
        assert reply["content"]["ename"] == "KeyboardInterrupt"


EAVESDROPPER = """
import os, socket, sys
os.setgid(int(sys.argv[1])); os.setuid(int(sys.argv[1]))
with socket.socket() as visitor:
    visitor.settimeout(10)
    visitor.connect(("127.0.0.1", int(sys.argv[2])))
    print(len(visitor.recv(64)))  # a greeting, since libzmq speaks first
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user_hears_nothing(plain: Pair) -> None:
    """The ports are open to the whole machine, and answer to whose kernel it is."""
    km, _ = plain
    said = {}
    for user in ("nobody", "root"):
        number = pwd.getpwnam(user).pw_uid
        done = subprocess.run(
            [sys.executable, "-c", EAVESDROPPER, str(number), str(km.iopub_port)],
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
        said[user] = int(done.stdout)
    assert said["nobody"] == 0
    assert said["root"] > 0


def test_it_serves_loopback_only(plain: Pair) -> None:
    """No port of it is open on another address of this machine."""
    km, _ = plain
    found = set()
    for table in TABLES:
        for row in Path(table).read_text().splitlines()[1:]:
            address, port = row.split()[1].split(":")
            if row.split()[3] == "0A" and int(port, 16) in km.ports:
                found.add((address, int(port, 16)))
    assert found == {("0100007F", port) for port in km.ports}


def test_only_wardens_with_ports_look_at_the_hosts_connections(
    plain: Pair, shared_kernel: Pair, engine: docker.DockerClient
) -> None:
    """They must know who comes; one whose clients use UNIX sockets has put that away."""
    held = []
    for _, client in (plain, shared_kernel):
        uid = run(client, "import os; os.getuid()").result
        labels = engine.containers.get(f"executor-ml-{uid}").labels
        files = Path("/proc", labels[names.LABEL_WARDEN].split(":")[2], "fd").iterdir()
        held.append({file.readlink().name for file in files} & {Path(t).name for t in TABLES})
    assert "tcp" in held[0]
    assert not held[1]


# --- starts that fail ---------------------------------------------------------------------


def test_it_fails_closed(tmp_path: Path, left: Left) -> None:
    """What is wrong is in the first 100 characters, which is what VS Code shows.

    A remedy follows, the exit code is the error's, and no port was ever taken.
    """
    with started(tmp_path, environ={"EXECUTOR_ML_MAX_MEMORY": "256m"}) as kernel:
        told = kernel.complaint()
        assert told.startswith("executor-ml: kernelspec executor-ml: memory = 512 MB is above")
        assert "\nFix: ask for at most 256 MB" in told
        assert kernel.process.returncode == 78
        with pytest.raises(TimeoutError):
            wait_until_used(kernel.said["shell_port"], kernel.process)
    assert not left()


@pytest.mark.parametrize(
    ("environ", "said", "told"),
    [
        ({"DOCKER_HOST": "unix:///nowhere"}, {}, "no container engine answers at /nowhere"),
        (
            {"EXECUTOR_ML_DEFAULT_IMAGE": "nowhere:1"},
            {},
            "the image nowhere:1 is not on this machine",
        ),
        ({}, {"ip": "0.0.0.0"}, "0.0.0.0"),  # noqa: S104  what is refused
        ({}, {"curve_publickey": "x"}, "encrypt"),
    ],
)
def test_whatever_stands_in_the_way_is_told_at_its_beginning(
    tmp_path: Path, left: Left, environ: dict[str, str], said: dict[str, Any], told: str
) -> None:
    """No kernel, sandboxed or not: engine, image, or what the client wants of the ports."""
    with started(tmp_path, environ=environ, **said) as kernel:
        complaint = kernel.complaint()
        assert complaint.startswith("executor-ml: ")
        assert told in complaint[:100]
        assert "\nFix: " in complaint
        assert "Traceback" not in complaint
        assert kernel.process.returncode in {65, 69, 72}
    assert not left()


def test_ipc_is_served_where_the_client_says(tmp_path: Path, left: Left) -> None:
    """Sockets at its own paths, for this user only; gone with the kernel."""
    folder = Path(f"/tmp/exml-ipc-{os.getpid()}")
    folder.mkdir(mode=0o700)
    try:
        ports = {f"{c}_port": n for n, c in enumerate(("shell", "iopub", "stdin", "control"), 1)}
        said: dict[str, Any] = {"transport": "ipc", "ip": str(folder / "k"), **ports, "hb_port": 5}
        with started(tmp_path, **said) as kernel:
            with kernel.client() as client:
                assert run(client, "6 * 7").result == "42"
                modes = {path.stat().st_mode & 0o777 for path in folder.iterdir()}
                assert (modes, len(list(folder.iterdir()))) == ({0o600}, 5)
            kernel.process.terminate()
            kernel.complaint(20)
        assert not list(folder.iterdir())
    finally:
        folder.rmdir()
    assert not left()


# --- VS Code ------------------------------------------------------------------------------


def test_as_vs_code_does_it(tmp_path: Path, left: Left) -> None:
    """Its order, as its source has it: src/kernels/raw/launcher of microsoft/vscode-jupyter.

    Pipes for all three streams, PYTHONUNBUFFERED, ports from 9000 on; ready when shell
    and iopub take a call; interrupts by message where the kernelspec says so; at the end
    every child gets SIGTERM, and only then the process itself.
    """
    environ = {"PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"}
    with started(tmp_path, environ=environ) as kernel:
        for channel in ("shell", "iopub"):
            wait_until_used(kernel.said[f"{channel}_port"], kernel.process)
        with kernel.client() as client:
            assert run(client, "import socket; socket.gethostname()").result == "'sandbox'"
            outcome = run(
                client,
                textwrap.dedent("""
                from IPython.display import HTML, display
                display(HTML("<b>bold</b>"))
            """),
            )
            kinds = [m["msg_type"] for m in outcome.messages]
            assert "display_data" in kinds
            children = Path(f"/proc/{kernel.process.pid}/task/{kernel.process.pid}/children")
            for child in children.read_text().split():
                os.kill(int(child), signal.SIGTERM)
            kernel.process.terminate()
            kernel.complaint(20)
        assert until(lambda: not left(), 5)
