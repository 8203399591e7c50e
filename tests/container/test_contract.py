"""Jupyter's provisioner contract, kept in real containers.

https://jupyter-client.readthedocs.io/en/stable/provisioning.html
"""

import asyncio
import gc
import json
import logging
import os
import queue
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import docker
import pytest
from jupyter_client.asynchronous.client import AsyncKernelClient
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.ioloop.manager import AsyncIOLoopKernelManager
from jupyter_client.manager import AsyncKernelManager, KernelManager, start_new_kernel
from jupyter_core.utils import run_sync
from kernels import KERNEL, Outcome, collect, kernel, manager, run, run_to_death, started
from proxy import EngineProxy, proxied
from sandboxes import look, session_of, until

from kernel_provider import names
from kernel_provider.engines.docker import find_socket
from kernel_provider.errors import (
    CeilingError,
    ConfigError,
    ConnectionFileError,
    EngineError,
    EngineUnreachableError,
    ImageMissingError,
    ImageProtocolError,
    MountError,
    PreloadError,
    SandboxError,
    StartError,
    UnknownKeyError,
)
from kernel_provider.provisioner import SandboxProvisioner

pytestmark = [pytest.mark.container, pytest.mark.usefixtures("image")]
Pair = tuple[KernelManager, BlockingKernelClient]
T = TypeVar("T")


# --- what is there ------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Traces:
    """What kernels of this process have on the machine."""

    containers: tuple[str, ...]
    wardens: tuple[int, ...]
    children: tuple[int, ...]
    folders: tuple[str, ...]
    connection_files: tuple[str, ...]
    threads: tuple[str, ...]
    descriptors: int


def rendezvous_of(container: dict[str, Any]) -> str:
    """Where on this machine a container's rendezvous is: below its warden's folder."""
    sources = [m["Source"] for m in container["Mounts"] if "rendezvous" in m["Destination"]]
    return str(sources[0]) if sources else ""


def traces(engine: docker.DockerClient, runtime: Path) -> Traces:
    """Look; sandboxes of other test runs on this machine are theirs."""
    label = {"label": f"{names.LABEL}={names.KIND_KERNEL}"}
    rows = engine.api.containers(all=True, filters=label)
    connection_folder = Path(os.environ["JUPYTER_RUNTIME_DIR"])
    children, wardens = [], []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if str(runtime) in str((folder / "fd" / "2").readlink()):
                wardens.append(int(folder.name))
        except OSError:
            continue
        finally:
            if parent == os.getpid():
                children.append(int(folder.name))
    gc.collect()
    engine.api.get_adapter(engine.api.base_url).close()  # it keeps connections open
    return Traces(
        containers=tuple(c["Id"] for c in rows if rendezvous_of(c).startswith(str(runtime))),
        wardens=tuple(wardens),
        children=tuple(children),
        folders=tuple(path.name for path in runtime.glob("*-*")),
        connection_files=tuple(path.name for path in connection_folder.glob("kernel-*.json")),
        threads=tuple(f"{t.name} {t.ident}" for t in threading.enumerate()),
        descriptors=len(list(Path("/proc/self/fd").iterdir())),
    )


@dataclass
class Watch:
    """Compares what is there with what was there before."""

    engine: docker.DockerClient
    runtime: Path
    before: Traces

    def nothing_new(self, within: float = 3.0, *, descriptors: int = 8) -> None:
        """Fail unless all is as before soon; wardens need a moment to end."""
        deadline = time.monotonic() + within
        while (left := self._new(descriptors)) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not left

    def _new(self, descriptors: int) -> dict[str, object]:
        now = traces(self.engine, self.runtime)
        new: dict[str, object] = {
            kind: set(getattr(now, kind)) - set(getattr(self.before, kind))
            for kind in (
                *("containers", "wardens", "children"),
                *("folders", "connection_files", "threads"),
            )
        }
        new["descriptors"] = max(0, now.descriptors - self.before.descriptors - descriptors)
        return {kind: what for kind, what in new.items() if what}


@pytest.fixture
def watch(engine: docker.DockerClient, own_folders: Path) -> Iterator[Watch]:
    """Everything that a test starts is gone when it ends."""
    found = Watch(engine, own_folders, traces(engine, own_folders))
    yield found
    found.nothing_new()


def wait_for(coroutine: Callable[[], Awaitable[T]]) -> T:
    """Run one of the provisioner's coroutines as a blocking manager does."""

    async def call() -> T:
        return await coroutine()

    answer: T = run_sync(call)()
    return answer


def provisioner(km: KernelManager) -> SandboxProvisioner:
    """The manager's provisioner, which must be ours."""
    assert isinstance(km.provisioner, SandboxProvisioner)
    return km.provisioner


def container_of(engine: docker.DockerClient, km: KernelManager) -> str:
    """Id of the container behind a manager's kernel."""
    folder = wait_for(provisioner(km).get_provisioner_info)["sandbox"]["warden"]
    label = {"label": f"{names.LABEL}={names.KIND_KERNEL}"}
    for row in engine.api.containers(all=True, filters=label):
        if rendezvous_of(row) == f"{folder}/r":
            return str(row["Id"])
    msg = "no container"
    raise LookupError(msg)


def exists(engine: docker.DockerClient, container: str) -> bool:
    """Whether the engine still knows a container."""
    return bool(engine.api.containers(all=True, filters={"id": container}))


# --- life ---------------------------------------------------------------------------------


def test_a_running_kernel_has_a_process_and_no_exit_code(shared_kernel: Pair) -> None:
    """poll() is None and has_process true while it lives."""
    km, client = shared_kernel
    assert provisioner(km).has_process
    assert wait_for(provisioner(km).poll) is None
    assert km.is_alive()
    assert client.is_alive()


def test_paths_in_the_sandbox_mean_nothing_outside(shared_kernel: Pair) -> None:
    """resolve_path() gives None: debuggers don't open files of the host by those names."""
    assert provisioner(shared_kernel[0]).resolve_path("/etc/passwd") is None


def test_signal_zero_touches_nothing(shared_kernel: Pair) -> None:
    """send_signal(0) asks whether it lives, as for a process."""
    km, client = shared_kernel
    km.signal_kernel(0)
    assert run(client, "1").status == "ok"


def test_any_signal_reaches_the_kernel(shared_kernel: Pair) -> None:
    """signal_kernel(SIGUSR1) runs the handler that a cell installed."""
    km, client = shared_kernel
    run(client, "import signal; hits = []; signal.signal(10, lambda *a: hits.append(a[0]))")
    km.signal_kernel(signal.SIGUSR1)
    outcome = run(client, "import time; time.sleep(0.3); hits")
    assert outcome.result == "[10]"


WORK = {
    "a loop": "print('go', flush=True)\nwhile True: pass",
    "a sleep": "import time\nprint('go', flush=True)\ntime.sleep(60)",
    "a subprocess": "import subprocess\nprint('go', flush=True)\nsubprocess.run(['sleep', '60'])",
    "a shell's subprocess": "print('go', flush=True)\n!sleep 60; echo survived",
}


def interrupted(km: KernelManager, client: BlockingKernelClient, code: str) -> Outcome:
    """Start a cell, interrupt it once it says go, give what came of it."""
    outcome = Outcome(status="")
    sort = collect(outcome)

    def hook(message: dict[str, Any]) -> None:
        sort(message)
        if message["msg_type"] == "stream" and message["content"]["text"].startswith("go"):
            time.sleep(0.1)
            km.interrupt_kernel()

    reply = client.execute_interactive(code, timeout=10, output_hook=hook)
    outcome.status = reply["content"]["status"]
    return outcome


@pytest.mark.parametrize("mode", ["message", "signal"])
@pytest.mark.parametrize("what", WORK)
def test_an_interrupt_ends_the_cell_and_nothing_else(
    shared_kernel: Pair, monkeypatch: pytest.MonkeyPatch, what: str, mode: str
) -> None:
    """By message and by signal, in Python and in a subprocess; the kernel goes on."""
    km, client = shared_kernel
    monkeypatch.setattr(km.kernel_spec, "interrupt_mode", mode)
    run(client, "kept = 42")
    began = time.monotonic()
    outcome = interrupted(km, client, WORK[what])
    assert time.monotonic() - began < 5
    assert "survived" not in outcome.stdout
    if what != "a shell's subprocess":
        assert (outcome.status, outcome.error["ename"]) == ("error", "KeyboardInterrupt")
    after = run(client, "import psutil; kept, [c.name() for c in psutil.Process().children()]")
    assert after.result == "(42, [])"


@pytest.mark.parametrize("mode", ["message", "signal"])
def test_subprocesses_hear_the_interrupt_themselves(
    shared_kernel: Pair, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    """A child gets SIGINT, as at a terminal, and can tidy up."""
    km, client = shared_kernel
    monkeypatch.setattr(km.kernel_spec, "interrupt_mode", mode)
    child = "import signal, time, os\n" + textwrap.dedent("""
        def tidy(*_):
            open('/tmp/work/tidied', 'w').write('yes')
            os._exit(0)
        signal.signal(signal.SIGINT, tidy)
        print('child', flush=True)
        time.sleep(60)
    """)
    code = (
        "import os, subprocess, sys\nif os.path.exists('tidied'): os.remove('tidied')\n"
        f"child = subprocess.Popen([sys.executable, '-c', {child!r}], stdout=-1)\n"
        "child.stdout.readline()\nprint('go', flush=True)\nchild.wait()\n"
    )
    interrupted(km, client, code)
    outcome = run(client, "child.wait(5); child.stdout.close(); open('tidied').read()")
    assert outcome.result == "'yes'"


# --- end ----------------------------------------------------------------------------------


def test_a_plain_shutdown_needs_no_signal(
    watch: Watch, engine: docker.DockerClient, caplog: pytest.LogCaptureFixture
) -> None:
    """An idle kernel ends by the message alone, in under a second, and is removed."""
    km = manager()
    with started(km):
        container = container_of(engine, km)
        began = time.monotonic()
        km.shutdown_kernel()
        took = time.monotonic() - began
        assert km._shutdown_status.name == "ShutdownRequest"  # noqa: SLF001  tells who ended it
        assert not exists(engine, container)
        assert took < 1.5
    assert not provisioner(km).has_process
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]
    watch.nothing_new()


def test_a_plain_shutdown_after_torch_needs_no_signal(watch: Watch) -> None:
    """Unloading torch takes 1 s at half a processor: less than Jupyter's 2.5 s."""
    km = manager()
    with started(km) as client:
        assert run(client, "import torch; torch.ones(3).sum()").status == "ok"
        began = time.monotonic()
        km.shutdown_kernel()
        assert km._shutdown_status.name == "ShutdownRequest"  # noqa: SLF001  tells who ended it
        assert time.monotonic() - began < 2.4
    watch.nothing_new()


def test_terminate_ends_the_kernel_and_wait_gives_its_code(
    watch: Watch, engine: docker.DockerClient
) -> None:
    """SIGTERM ends it; wait() returns when no process is left; poll() keeps the code."""
    km = manager()
    with started(km):
        seen = look(session_of(km), engine)
        ours = provisioner(km)
        wait_for(ours.terminate)
        assert wait_for(ours.wait) == 128 + signal.SIGTERM
        assert wait_for(ours.poll) == 128 + signal.SIGTERM
        assert not km.is_alive()
        assert not seen.group.processes()
        assert until(lambda: not exists(engine, seen.container))
        for signum in (0, signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
            wait_for(lambda signum=signum: ours.send_signal(signum))  # type: ignore[misc]
    watch.nothing_new()


def test_kill_returns_when_no_process_is_left(watch: Watch, engine: docker.DockerClient) -> None:
    """Also of a kernel that ignores every signal, and again of a dead one."""
    km = manager()
    with started(km) as client:
        run(client, "import signal\nfor n in (2, 15): signal.signal(n, signal.SIG_IGN)")
        seen = look(session_of(km), engine)
        ours = provisioner(km)
        began = time.monotonic()
        wait_for(ours.kill)
        assert time.monotonic() - began < 3
        assert not seen.group.processes()
        assert until(lambda: not exists(engine, seen.container))
        assert wait_for(ours.poll) is not None
        wait_for(ours.kill)
    watch.nothing_new()


def test_sigkill_as_a_signal_ends_it(watch: Watch, engine: docker.DockerClient) -> None:
    """signal_kernel(SIGKILL) is a kill."""
    km = manager()
    with started(km):
        seen = look(session_of(km), engine)
        km.signal_kernel(signal.SIGKILL)
        wait_for(provisioner(km).wait)
        assert not km.is_alive()
        assert not seen.group.processes()
        assert until(lambda: not exists(engine, seen.container))
    watch.nothing_new()


def test_cleanup_any_number_of_times(watch: Watch) -> None:
    """Before a restart or for good, of a kernel that runs or has ended: never an error."""
    km = manager()
    km.start_kernel()
    ours = provisioner(km)
    for restart in (True, True, False, False, True, False):
        wait_for(lambda restart=restart: ours.cleanup(restart=restart))  # type: ignore[misc]
    assert not ours.has_process
    assert wait_for(ours.poll) == 0
    assert wait_for(ours.wait) == 0
    wait_for(ours.kill)
    wait_for(ours.terminate)
    km.cleanup_resources()
    watch.nothing_new()


# --- restart ------------------------------------------------------------------------------


def another_client(km: KernelManager) -> BlockingKernelClient:
    """A client of a process of its own: a manager's clients share one identity."""
    client = BlockingKernelClient(connection_file=km.connection_file)
    client.load_connection_file()
    client.start_channels()
    client.wait_for_ready(timeout=20)
    return client


def arrives(text: str, *clients: BlockingKernelClient, within: float = 5.0) -> bool:
    """Whether a cell's output arrives at all of them, who listen by turns.

    Told by its text: the manager's requests and its client's have the same ids at times.
    """
    waiting = list(clients)
    deadline = time.monotonic() + within
    while waiting and time.monotonic() < deadline:
        for client in tuple(waiting):
            try:
                message = client.get_iopub_msg(timeout=0.05)
            except queue.Empty:
                continue
            if message["msg_type"] == "stream" and text in message["content"]["text"]:
                waiting.remove(client)
    return not waiting


def restarts(cycles: int, *, now: bool) -> None:
    """Restart under a connected client, over and over."""
    with kernel() as (km, client):
        run(client, "x = 1")
        wardens = set()
        for number in range(cycles):
            km.restart_kernel(now=now)
            client.execute(f"print('first', {number}, 'x' in globals())\nx = 1")
            assert arrives(f"first {number} False", client), f"lost after restart {number}"
            wardens.add(wait_for(provisioner(km).get_provisioner_info)["sandbox"]["warden"])
        assert len(wardens) == cycles


@pytest.mark.parametrize("now", [False, True])
def test_a_restart_loses_no_output_of_a_connected_client(watch: Watch, *, now: bool) -> None:
    """The first output after a restart arrives, five times out of five, and state is new."""
    restarts(5, now=now)
    watch.nothing_new()


@pytest.mark.soak
@pytest.mark.parametrize("now", [False, True])
def test_a_restart_loses_no_output_forty_five_times(watch: Watch, *, now: bool) -> None:
    """As above, as often as it was lost in a prototype (38 of 45)."""
    restarts(45, now=now)
    watch.nothing_new()


def test_a_restart_under_two_clients_loses_no_output_of_either(watch: Watch) -> None:
    """Whoever is connected, and listens, goes on and hears the first output."""
    with kernel() as (km, client):
        other = another_client(km)
        try:
            for number in range(3):
                km.restart_kernel(now=True)
                client.execute(f"print('both', {number})")
                assert arrives(f"both {number}", client, other)
        finally:
            other.stop_channels()
    watch.nothing_new()


def test_a_restart_in_the_middle_of_a_cell_ends_it(watch: Watch) -> None:
    """A kernel that is busy, and deaf, is restarted all the same."""
    with kernel() as (km, client):
        client.execute("import signal; signal.signal(2, signal.SIG_IGN)\nwhile True: pass")
        time.sleep(0.3)
        km.restart_kernel(now=True)
        client.execute("print('after', 'x' in globals())")
        assert arrives("after False", client)
    watch.nothing_new()


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[EngineProxy]:
    """An engine that can refuse."""
    with proxied(find_socket(os.environ)) as made:
        monkeypatch.setenv("DOCKER_HOST", f"unix://{made.path}")
        yield made


@pytest.mark.parametrize("now", [False, True])
def test_a_restart_that_fails_can_be_tried_again(
    proxy: EngineProxy, watch: Watch, *, now: bool
) -> None:
    """Whose clients stay connected: the next good restart loses no output of theirs."""
    create = "POST /containers/create"
    with kernel() as (km, client):
        other = another_client(km)
        try:
            for number in range(2):
                proxy.answers[create] = 500
                for _ in range(2):
                    with pytest.raises(EngineError, match="the test says no"):
                        km.restart_kernel(now=now)
                    assert not km.has_kernel
                    assert not km.is_alive()
                del proxy.answers[create]
                km.restart_kernel(now=now)
                client.execute(f"print('back', {number}, 'x' in globals()); x = 1")
                assert arrives(f"back {number} False", client, other)
        finally:
            other.stop_channels()
    watch.nothing_new()


def test_a_restart_that_fails_before_its_launch_can_be_tried_again(watch: Watch) -> None:
    """Settings that were edited to nonsense, and back."""
    with kernel() as (km, client):
        config = provisioner(km).config_given
        config["memory"] = "none"
        with pytest.raises(ConfigError):
            km.restart_kernel(now=True)
        config["memory"] = "300m"
        km.restart_kernel(now=True)
        client.execute("print('back')")
        assert arrives("back", client)
    watch.nothing_new()


def test_a_kernel_whose_restart_failed_can_be_shut_down(proxy: EngineProxy, watch: Watch) -> None:
    """In either way: the sockets that were kept go then."""
    for now in (True, False):
        with kernel() as (km, _):
            proxy.answers["POST /containers/create"] = 500
            with pytest.raises(EngineError):
                km.restart_kernel(now=True)
            km.shutdown_kernel(now=now)
        proxy.answers.clear()
        watch.nothing_new()


def test_a_kernel_that_crashed_is_started_anew_by_jupyters_restarter(watch: Watch) -> None:
    """autorestart: noticed by poll(), told to callbacks, and the client goes on."""

    async def scenario() -> tuple[list[str], str]:
        km = AsyncIOLoopKernelManager(kernel_name=KERNEL, autorestart=True)
        km.config.KernelRestarter.time_to_dead = 0.2
        events: list[str] = []
        await km.start_kernel()
        client = km.client()
        client.start_channels()
        try:
            await client.wait_for_ready(timeout=60)
            km.add_restart_callback(lambda: events.append("restart"), "restart")
            km.add_restart_callback(lambda: events.append("dead"), "dead")
            client.execute("import os; os._exit(3)")
            deadline = time.monotonic() + 15
            while not (events and await km.is_alive()) and time.monotonic() < deadline:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
            text = await said(client, "print('again')")
            await ready(km)  # the restarter's own restart is over
            return events, text
        finally:
            client.stop_channels()
            await km.shutdown_kernel(now=True)

    events, text = asyncio.run(scenario())
    assert (events, text) == (["restart"], "again\n")
    watch.nothing_new()


async def ready(km: AsyncKernelManager) -> None:
    """Wait until whatever the manager is about is over."""
    future: Any = km.ready
    await future


async def said(client: AsyncKernelClient, code: str) -> str:
    """Run a cell from a coroutine; what it printed."""
    outcome = Outcome(status="")
    await client.execute_interactive(code, timeout=30, output_hook=collect(outcome))
    return outcome.stdout


# --- other managers -----------------------------------------------------------------------


def test_the_asynchronous_manager(watch: Watch) -> None:
    """AsyncKernelManager: start, run, interrupt, restart, shut down."""

    async def scenario() -> list[str]:
        km = AsyncKernelManager(kernel_name=KERNEL)
        await km.start_kernel()
        client = km.client()
        client.session.session = "another"  # else its ids can equal the manager's own
        client.start_channels()
        try:
            await client.wait_for_ready(timeout=60)
            texts = [await said(client, "print(1)")]
            client.execute("while True: pass")
            await asyncio.sleep(0.3)
            await km.interrupt_kernel()
            reply = await client.get_shell_msg(timeout=10)
            assert reply["content"]["ename"] == "KeyboardInterrupt"
            texts.append(await said(client, "print(2)"))
            await km.restart_kernel()
            texts.append(await said(client, "print(3)"))
            return texts
        finally:
            client.stop_channels()
            await km.shutdown_kernel()

    assert asyncio.run(scenario()) == ["1\n", "2\n", "3\n"]
    watch.nothing_new()


def test_the_loop_is_free_while_a_kernel_starts(watch: Watch) -> None:
    """Servers start kernels on their one thread: nobody else waits for it."""

    async def scenario() -> float:
        km = AsyncKernelManager(kernel_name=KERNEL)
        gaps, last, over = [0.0], time.monotonic(), False

        async def tick() -> None:
            nonlocal last
            while not over:
                await asyncio.sleep(0.005)
                gaps.append(time.monotonic() - last)
                last = time.monotonic()

        ticking = asyncio.create_task(tick())
        await asyncio.sleep(0.02)
        await km.start_kernel()
        over = True
        await ticking
        await km.shutdown_kernel(now=True)
        return max(gaps)

    assert asyncio.run(scenario()) < 0.25
    watch.nothing_new()


def test_start_new_kernel_gives_a_ready_client(watch: Watch) -> None:
    """The one-liner of jupyter_client works with our kernel's name."""
    km, client = start_new_kernel(kernel_name=KERNEL)
    try:
        assert run(client, "2 + 2").result == "4"
    finally:
        client.stop_channels()
        km.shutdown_kernel(now=True)
    watch.nothing_new()


def test_two_kernels_at_once_have_uids_of_their_own(watch: Watch) -> None:
    """Neither is the server's, and they are different (D1)."""
    with kernel() as (_, one), kernel() as (_, other):
        uids = {run(client, "import os; os.getuid()").result for client in (one, other)}
        pids = {run(client, "import os; os.getpid()").result for client in (one, other)}
    assert len(uids) == 2
    assert str(os.getuid()) not in uids
    assert "1" not in pids
    watch.nothing_new()


# --- failures -----------------------------------------------------------------------------


def fails(km: KernelManager, error: type[SandboxError]) -> str:
    """Start; it must fail with this error. Its text."""
    began = time.monotonic()
    with pytest.raises(error) as caught:
        km.start_kernel()
    assert time.monotonic() - began < 10
    assert not km.has_kernel
    return str(caught.value)


@pytest.mark.parametrize(
    ("config", "error", "words"),
    [
        ({"memroy": "1g"}, UnknownKeyError, "did you mean 'memory'"),
        ({"image": "executor-ml:none-such"}, ImageMissingError, "executor-ml build"),
        ({"mounts": {"/models/x": "/none/such"}}, MountError, "/none/such"),
        ({"preload": ["json", "nope.x"]}, PreloadError, "preload of nope.x: ModuleNotFoundError"),
    ],
)
def test_a_launch_that_cannot_be_leaves_nothing(
    watch: Watch, config: dict[str, object], error: type[SandboxError], words: str
) -> None:
    """The error says what to change; no container, process, folder or file is left."""
    km = manager(config)
    text = fails(km, error)
    assert words in text
    assert "\nFix: " in text
    watch.nothing_new()


def test_a_launch_above_the_ceiling_leaves_nothing(
    watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A ceiling of the environment holds every client, libraries too."""
    monkeypatch.setenv("EXECUTOR_ML_MAX_MEMORY", "256m")
    km = manager()
    text = fails(km, CeilingError)
    assert "memory = 512 MB is above the ceiling of 256 MB set in EXECUTOR_ML_MAX_MEM" in text
    watch.nothing_new()


def test_a_launch_without_an_engine_leaves_nothing(
    watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names the socket and how to get an engine."""
    monkeypatch.setenv("DOCKER_HOST", "unix:///nonexistent/docker.sock")
    km = manager()
    text = fails(km, EngineUnreachableError)
    assert "/nonexistent/docker.sock" in text
    assert "executor-ml engine start" in text
    watch.nothing_new()


def test_a_launch_that_ends_before_it_began_leaves_nothing(watch: Watch, tmp_path: Path) -> None:
    """No connection file can be written: the sockets that were bound for it go."""
    km = manager()
    km.connection_file = str(tmp_path / "none" / "kernel.json")
    text = fails(km, ConnectionFileError)
    assert f"the connection file {tmp_path}/none/kernel.json cannot be written: No such" in text
    assert provisioner(km).session is None
    km.connection_file = str(tmp_path / "kernel.json")
    with started(km) as client:
        assert run(client, "1").status == "ok"
    watch.nothing_new()


@pytest.fixture
def broken_image(engine: docker.DockerClient, image: str) -> Iterator[Callable[..., str]]:
    """Make images like ours but for what is asked; they are removed again."""
    made: list[str] = []

    def make(tag: str, *changes: str) -> str:
        container = engine.containers.create(image, labels={names.LABEL: "test"})
        try:
            reference = f"executor-ml-broken:{tag}"
            container.commit("executor-ml-broken", tag, changes="\n".join(changes))
            made.append(reference)
        finally:
            container.remove()
        return reference

    yield make
    for reference in made:
        engine.images.remove(reference, force=True)


def test_an_image_of_another_protocol_leaves_nothing(
    watch: Watch, broken_image: Callable[..., str]
) -> None:
    """It is refused before a container is made, with both versions and the remedy."""
    km = manager({"image": broken_image("protocol", f"LABEL {names.LABEL_PROTOCOL}=999")})
    text = fails(km, ImageProtocolError)
    assert "999" in text
    assert f"speaks {names.PROTOCOL}" in text
    assert "executor-ml build" in text
    watch.nothing_new()


def test_an_image_that_is_none_of_ours_leaves_nothing(
    watch: Watch, engine: docker.DockerClient
) -> None:
    """An image without our label is refused as well."""
    km = manager({"image": bare_image(engine)})
    assert "speaks protocol none" in fails(km, ImageProtocolError)
    watch.nothing_new()
    engine.images.remove("executor-ml-bare:test")


def bare_image(engine: docker.DockerClient) -> str:
    """An empty image with nothing of ours."""
    engine.api.import_image_from_data(b"\0" * 1024, "executor-ml-bare", "test")
    return "executor-ml-bare:test"


def test_a_kernel_that_ends_while_it_starts_fails_at_once(
    watch: Watch, broken_image: Callable[..., str]
) -> None:
    """Not at the deadline; the error shows what was printed last, and nothing is left."""
    km = manager({"image": broken_image("start", "ENV PYTHONHOME=/none/such")})
    assert "its last words" in fails(km, StartError)
    watch.nothing_new()


def test_a_kernel_that_ends_while_it_starts_shows_its_last_words(
    watch: Watch, broken_image: Callable[..., str]
) -> None:
    """The words are the kernel's, and not a traceback of the process that watches it."""
    reference = broken_image("start", "ENV PYTHONHOME=/none/such")
    km = manager({"image": reference})
    text = fails(km, StartError)
    assert "encodings" in text
    assert "guardian.py" not in text
    watch.nothing_new()


def test_a_start_that_takes_too_long_is_ended(watch: Watch) -> None:
    """startup_timeout holds, and the error says how long was waited."""
    km = manager({"startup_timeout": 1, "preload": ["torch", "transformers"]})
    assert "not ready within 1 s" in fails(km, StartError)
    watch.nothing_new()


DELAYS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.45, 0.6)


async def start(km: AsyncKernelManager) -> None:
    """As a coroutine, to make a task of."""
    await km.start_kernel()


@pytest.mark.parametrize("delay", DELAYS)
def test_a_start_that_is_cancelled_leaves_nothing(watch: Watch, delay: float) -> None:
    """Whenever it is: the person closed the tab."""

    async def scenario() -> None:
        km = AsyncKernelManager(kernel_name=KERNEL)
        task = asyncio.create_task(start(km))
        cancelled = False
        await asyncio.sleep(delay)
        task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            cancelled = True
        assert cancelled or km.has_kernel
        if km.has_kernel:  # it was up already, and the manager holds it
            await km.shutdown_kernel(now=True)
        km.context.destroy()

    asyncio.run(scenario())
    watch.nothing_new(within=6.0)


# --- other processes ----------------------------------------------------------------------

ATTACH = """
import asyncio, json, sys
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.provisioning import KernelProvisionerFactory

info = json.loads(sys.stdin.readline())
spec = KernelSpecManager().get_kernel_spec("executor-ml")
ours = KernelProvisionerFactory.instance().create_provisioner_instance("k", spec, parent=None)
asyncio.run(ours.load_provisioner_info(info))

def run(code):
    client = BlockingKernelClient()
    client.load_connection_info(ours.connection_info)
    client.start_channels()
    client.wait_for_ready(timeout=20)
    seen = []
    client.execute_interactive(code, timeout=20, output_hook=lambda m: seen.append(m))
    client.stop_channels()
    client.context.destroy()
    return "".join(m["content"]["text"] for m in seen if m["msg_type"] == "stream")

for line in sys.stdin:
    word, _, rest = line.rstrip("\\n").partition(" ")
    if word == "poll":
        print(asyncio.run(ours.poll()), ours.has_process, flush=True)
    elif word == "run":
        print(json.dumps(run(rest)), flush=True)
    elif word == "signal":
        asyncio.run(ours.send_signal(int(rest)))
        print("sent", flush=True)
    elif word == "kill":
        asyncio.run(ours.kill())
        print("killed", flush=True)
    elif word == "leave":
        print("left", flush=True)
        break
ours.session.close()
"""


class OtherProcess:
    """A process that takes part in a kernel, and does what it is told."""

    def __init__(self, info: dict[str, Any]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", ATTACH],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._write(json.dumps(info, default=bytes.decode))

    def _write(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def ask(self, order: str) -> str:
        """Give an order; its answer."""
        assert self._process.stdout is not None
        self._write(order)
        answer = self._process.stdout.readline().rstrip("\n")
        assert answer, self._process.communicate(timeout=10)
        return answer

    def end(self, *, kill: bool = False) -> str:
        """End it and give its complaints."""
        if kill:
            self._process.kill()
        _, complaints = self._process.communicate(timeout=20)
        return complaints


def test_another_process_takes_part_by_the_provisioners_info(watch: Watch) -> None:
    """It polls, runs a cell, signals; what it gets is the same kernel."""
    with kernel() as (km, client):
        run(client, "x = 'shared'")
        other = OtherProcess(wait_for(provisioner(km).get_provisioner_info))
        try:
            assert other.ask("poll") == "None True"
            assert json.loads(other.ask("run print(x)")) == "shared\n"
            request = client.execute("while True: pass")
            time.sleep(0.3)
            assert other.ask("signal 2") == "sent"
            reply = client.get_shell_msg(timeout=10)
            assert reply["parent_header"]["msg_id"] == request
            assert reply["content"]["ename"] == "KeyboardInterrupt"
        finally:
            complaints = other.end()
        assert not complaints
        assert km.is_alive()
        assert run(client, "x").result == "'shared'"
    watch.nothing_new()


@pytest.mark.usefixtures("watch")
def test_a_kernel_lives_while_it_has_an_owner(engine: docker.DockerClient) -> None:
    """The first owner goes, the other keeps it; with the last one it ends (D3)."""
    km = manager()
    km.start_kernel()
    container = container_of(engine, km)
    other = OtherProcess(wait_for(provisioner(km).get_provisioner_info))
    try:
        assert other.ask("poll") == "None True"
        held = provisioner(km).session
        assert held is not None
        provisioner(km)._drop(held)  # noqa: SLF001  as when the process that launched it ends
        time.sleep(0.5)
        assert other.ask("poll") == "None True"
        assert exists(engine, container)
    finally:
        other.end(kill=True)
    deadline = time.monotonic() + 5
    while exists(engine, container) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not exists(engine, container)
    km.cleanup_resources()


def test_an_owner_that_attached_can_end_the_kernel(watch: Watch) -> None:
    """kill() from the other process; this one hears of the death."""
    with kernel() as (km, _):
        other = OtherProcess(wait_for(provisioner(km).get_provisioner_info))
        try:
            assert other.ask("kill") == "killed"
        finally:
            assert not other.end()
        assert wait_for(provisioner(km).wait) is not None
        assert not km.is_alive()
    watch.nothing_new()


def test_taking_part_needs_the_key(watch: Watch) -> None:
    """The right folder with another key is refused, and the kernel lives on."""
    with kernel() as (km, client):
        info = wait_for(provisioner(km).get_provisioner_info)
        info["connection_info"] = {**info["connection_info"], "key": "wrong"}
        other = OtherProcess(info)
        assert "does not know this key" in other.end()
        assert run(client, "1").status == "ok"
    watch.nothing_new()


# --- cycles -------------------------------------------------------------------------------


def cycles(count: int, watch: Watch) -> None:
    """Start, run, kill, over and over: with clean ends and with crashes."""
    with kernel() as (_, client):
        assert run(client, "1").status == "ok"
    watch.nothing_new()
    before = traces(watch.engine, watch.runtime)
    for number in range(count):
        with kernel() as (_, client):
            assert run(client, f"print({number})").stdout == f"{number}\n"
            if number % 4 == 3:
                run_to_death(client, "import os; os._exit(1)")
    Watch(watch.engine, watch.runtime, before).nothing_new(within=5.0, descriptors=2)


def test_twenty_cycles_leave_nothing(watch: Watch) -> None:
    """No descriptor, thread, process, zombie, folder, file or container is left."""
    cycles(20, watch)


@pytest.mark.soak
def test_many_cycles_leave_nothing(watch: Watch) -> None:
    """As above, EXECUTOR_ML_SOAK_CYCLES times."""
    cycles(int(os.environ.get("EXECUTOR_ML_SOAK_CYCLES", "300")), watch)
