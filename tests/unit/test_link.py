"""The owner's end of the connection to a warden, with the other end in the test's hand."""

import asyncio
import json
import secrets
import shutil
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.kernelspec import KernelSpec

import kernel_provider.link
from kernel_provider.errors import EngineError, EnvironmentTooLargeError, WardenError
from kernel_provider.folders import RUNTIME_VARIABLE
from kernel_provider.hardening import sandbox_spec
from kernel_provider.link import GRACE, Link
from kernel_provider.policy import KernelPolicy
from kernel_provider.provisioner import SandboxProvisioner
from kernel_provider.session import Session
from kernel_provider.warden.order import Order

READY = {"event": "ready", "container": "c", "uid": 7, "pid": 1}
GONE = {"event": "gone", "clean": True, "subscribers": 0}


@dataclass(frozen=True, kw_only=True)
class Bench:
    """A session whose sandbox is the test: what ``say`` says, a warden would."""

    session: Session
    link: Link
    warden: socket.socket
    folder: Path

    def say(self, *events: dict[str, Any]) -> None:
        """Tell the owner."""
        self.warden.sendall(b"".join(json.dumps(event).encode() + b"\n" for event in events))


@pytest.fixture
def bench() -> Iterator[Bench]:
    """A session that was launched, as far as it can see."""
    folder = Path(f"/tmp/exu-{secrets.token_hex(3)}")
    session = Session(environ={RUNTIME_VARIABLE: str(folder)}, name="t")
    ours, theirs = socket.socketpair()
    theirs.settimeout(20)
    link = session._link = Link(ours, f"{folder}/w-0-0-0")  # noqa: SLF001  no warden is started
    with theirs:
        yield Bench(session=session, link=link, warden=theirs, folder=folder)
    link.hang_up()
    session.close()
    assert not list(folder.iterdir())
    folder.rmdir()


# --- several who wait -----------------------------------------------------------------


def test_two_who_wait_for_the_end_both_hear(bench: Bench) -> None:
    """Two shutdowns overlap, as a person's and the server's own: neither is left waiting."""

    async def scenario() -> tuple[list[bool], float]:
        waiting = asyncio.gather(bench.session.gone(20), bench.session.gone(20))
        await asyncio.sleep(0.05)
        began = time.monotonic()
        bench.say(GONE)
        return list(await waiting), time.monotonic() - began

    heard, took = asyncio.run(scenario())
    assert heard == [True, True]
    assert took < 5


def test_two_who_wait_on_different_loops_both_hear(bench: Bench) -> None:
    """A notebook's runner waits in a thread of its own, beside the server's loop."""
    heard: list[bool] = []

    def wait() -> None:
        heard.append(asyncio.run(bench.session.gone(20)))

    threads = [threading.Thread(target=wait) for _ in range(3)]
    for thread in threads:
        thread.start()
    time.sleep(0.1)
    began = time.monotonic()
    bench.say(GONE)
    for thread in threads:
        thread.join(20)
    assert heard == [True, True, True]
    assert time.monotonic() - began < 5


def test_what_another_took_in_is_heard_as_well(bench: Bench) -> None:
    """A poll during a launch takes in the ``ready``; the launch goes on all the same."""

    async def scenario() -> Any:
        launch = asyncio.create_task(asyncio.to_thread(asyncio.run, bench.session.launched(20)))
        await asyncio.sleep(0.1)
        bench.say(READY)
        for _ in range(1000):
            assert bench.session.death is None
        return await asyncio.wait_for(launch, 10)

    assert asyncio.run(scenario())["uid"] == 7
    assert bench.session.container == "executor-ml-7"
    assert bench.session.served


def test_who_is_cancelled_takes_nothing_along(bench: Bench) -> None:
    """Every word arrives once and in order, however many waiters are cancelled meanwhile."""
    told = [str(number) for number in range(100)]

    async def scenario() -> None:
        for turns, text in enumerate(told):
            waiting = [asyncio.create_task(bench.link.hear(time.monotonic() + 5)) for _ in range(2)]
            await asyncio.sleep(0)
            bench.say({"event": "trouble", "text": text})
            for _ in range(turns % 5):
                await asyncio.sleep(0)
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    asyncio.run(scenario())
    assert bench.session.troubles() == told


def test_words_are_whole_whoever_takes_them_in(bench: Bench) -> None:
    """Threads that listen at once don't mix up the pieces of a line."""
    told = [f"{number}-" + "x" * 3000 for number in range(300)]
    over = threading.Event()

    def listen() -> None:
        while not over.is_set():
            bench.link.listen()

    threads = [threading.Thread(target=listen) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for text in told:
            line = json.dumps({"event": "trouble", "text": text}).encode() + b"\n"
            for start in range(0, len(line), 1000):
                bench.warden.sendall(line[start : start + 1000])
    finally:
        over.set()
        for thread in threads:
            thread.join(20)
    assert bench.session.troubles() == told


def test_letting_go_ends_the_waiting(bench: Bench) -> None:
    """Who waits while another closes the session is not left until the deadline."""

    async def scenario() -> float:
        waiting = asyncio.create_task(bench.session.gone(20))
        await asyncio.sleep(0.05)
        began = time.monotonic()
        bench.session.close()
        assert await waiting
        return time.monotonic() - began

    assert asyncio.run(scenario()) < 5
    assert bench.link.death is None, "it was let go of, not lost"
    assert bench.warden.recv(1) == b"", "the warden hears it"


def test_what_has_stopped_may_still_be_on_its_way_out(bench: Bench) -> None:
    """Its processes are gone: the next may be launched, for as many as were subscribed."""
    bench.say(READY, {"event": "stopped", "subscribers": 2})
    assert asyncio.run(bench.session.ended(20))
    assert not asyncio.run(bench.session.gone(0.1))
    assert bench.session.death == kernel_provider.link.STOPPED
    bench.say({**GONE, "subscribers": 0})
    assert asyncio.run(bench.session.gone(20))
    assert bench.link.subscribers == 2


def test_what_another_claimed_is_not_lost(bench: Bench) -> None:
    """Its warden lives on, and needs its folder: heard at once with the end of the line."""
    bench.say({"event": "parked"}, {"event": "taken"})
    bench.warden.close()
    bench.link.listen()
    assert bench.link.taken
    assert bench.link.gone
    assert not bench.link.lost
    assert bench.link.death is None


def test_a_warden_that_hangs_up_was_lost(bench: Bench) -> None:
    """Its end without a word is a death, and the session says so."""
    bench.warden.shutdown(socket.SHUT_RDWR)
    death = bench.session.death
    assert death is not None
    assert death.name == "WardenLost"
    assert asyncio.run(bench.session.gone(5))


@pytest.mark.parametrize(
    "line", [b"nonsense", b"[]", b"{}", b'{"event": "died"}', b'{"event": "failed", "error": "x"}']
)
def test_nonsense_ends_the_listening(bench: Bench, line: bytes) -> None:
    """A warden of another version, say: lost, and nobody who polls gets an error."""
    bench.warden.sendall(line + b"\n")
    death = bench.session.death
    assert death is not None
    assert death.name == "WardenLost"
    assert asyncio.run(bench.session.gone(5))


# --- a launch -------------------------------------------------------------------------


def test_a_silent_warden_is_an_error_at_the_deadline(bench: Bench) -> None:
    """Not before, and with the time that was waited."""
    with pytest.raises(WardenError, match=r"was silent for 0\.25 s"):
        asyncio.run(bench.session.launched(0.25 - GRACE))
    assert not bench.session.served


def test_ready_in_the_last_moment_is_no_silence(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What came with the deadline came."""
    hear = Link.hear

    async def late(link: Link, deadline: float) -> None:
        bench.say(READY)
        await asyncio.sleep(max(0, deadline - time.monotonic()) + 0.01)
        await hear(link, deadline)

    monkeypatch.setattr(Link, "hear", late)
    assert asyncio.run(bench.session.launched(0.05 - GRACE))["uid"] == 7


def test_a_launch_that_failed_forgets_no_client(bench: Bench) -> None:
    """Who was subscribed to the last kernel is awaited by the next that serves."""
    bench.say(READY, {**GONE, "subscribers": 3})
    assert bench.session.death is not None
    bench.session.hang_up()
    ours, theirs = socket.socketpair()
    bench.session._link = Link(ours, bench.link.folder)  # noqa: SLF001  no warden is started
    error = EngineError(action="create the sandbox", reason="no")
    theirs.sendall(json.dumps({"event": "failed", **error.to_wire()}).encode() + b"\n")
    with theirs, pytest.raises(EngineError, match="create the sandbox"):
        asyncio.run(bench.session.launched(5))
    bench.session.hang_up()
    assert bench.session._subscribers == 3  # noqa: SLF001  what the next claim says
    assert not bench.session.has_sandbox


def test_a_claim_that_would_block_is_refused(bench: Bench) -> None:
    """A megabyte of environment, and nobody to read it yet: an error, and no warden."""
    folder = bench.folder / "w"
    folder.mkdir()
    order = Order(
        engine="docker",
        address="",
        spec=sandbox_spec(KernelPolicy(), rendezvous=f"{folder}/r"),
        folder=str(folder),
        startup_timeout=1,
    )
    began = time.monotonic()
    with pytest.raises(EnvironmentTooLargeError) as caught:
        Link.claim(order, {"op": "claim", "env": {"TZ": "x" * (1 << 20)}}, [])
    assert time.monotonic() - began < 5
    assert "the environment for this kernel takes 1048" in str(caught.value)
    assert "set fewer or shorter variables" in str(caught.value)
    assert [path.name for path in folder.iterdir()] == ["w"], "a warden would have a log"
    shutil.rmtree(folder)


# --- taking part ----------------------------------------------------------------------


@asynccontextmanager
async def a_warden(bench: Bench, *answers: dict[str, Any]) -> AsyncIterator[str]:
    """Somebody who listens where wardens do, says so much to each, and hangs up."""
    folder = bench.folder / "w"
    folder.mkdir()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        for event in answers:
            writer.write(json.dumps(event).encode() + b"\n")
        with suppress(ConnectionError):
            await writer.drain()
        writer.close()

    server = await asyncio.start_unix_server(serve, path=f"{folder}/w")
    try:
        yield str(folder)
    finally:
        server.close()
        await server.wait_closed()
        shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        ([{"event": "refused", "uid": 0}], "does not know this key"),
        ([], "has ended"),
    ],
)
def test_taking_part_can_be_refused(
    bench: Bench, answers: list[dict[str, Any]], words: str
) -> None:
    """On the loop of whoever asks: the other side may be served by it, too."""

    async def scenario() -> None:
        async with a_warden(bench, *answers) as folder:
            await Link.attach(folder, "key")

    with pytest.raises(WardenError, match=words):
        asyncio.run(scenario())


def test_taking_part(bench: Bench) -> None:
    """The answer and what follows it at once are both heard."""

    async def scenario() -> None:
        async with a_warden(bench, {"event": "ready", "uid": 5}, GONE) as folder:
            link = await Link.attach(folder, "key")
            assert link.ready == {"uid": 5}
            while not link.gone:
                await link.hear(time.monotonic() + 5)
            link.hang_up()

    asyncio.run(scenario())


def test_taking_part_where_nobody_is(bench: Bench) -> None:
    """A folder that went with its kernel is told as such."""
    with pytest.raises(WardenError, match="cannot be reached: the kernel has ended"):
        asyncio.run(Link.attach(f"{bench.folder}/nobody", "key"))


@pytest.mark.parametrize("waiting", [0, 8])
def test_a_warden_that_hangs_does_not_hold_up_the_loop(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, waiting: int
) -> None:
    """Connected or still in the queue before it: others run on, and it is given up."""
    monkeypatch.setattr(kernel_provider.link, "GRACE", 0.5)
    folder = bench.folder / "w"
    folder.mkdir()
    queue = [socket.socket(socket.AF_UNIX) for _ in range(waiting)]
    listener = socket.socket(socket.AF_UNIX)

    turns: list[int] = []

    async def counted() -> None:
        over = False

        async def tick() -> None:
            while not over:
                turns.append(1)
                await asyncio.sleep(0.01)

        ticking = asyncio.create_task(tick())
        try:
            await Link.attach(str(folder), "key")
        finally:
            over = True
            await ticking

    with listener:
        listener.bind(f"{folder}/w")
        listener.listen(0 if waiting else 8)
        for one in queue:
            one.setblocking(False)  # noqa: FBT003
            with suppress(BlockingIOError):
                one.connect(f"{folder}/w")
        with pytest.raises(WardenError, match="does not answer"):
            asyncio.run(counted())
    for one in queue:
        one.close()
    shutil.rmtree(folder)
    assert len(turns) > 5


# --- the provisioner's hooks, at once ---------------------------------------------------


@pytest.fixture
def provisioner(bench: Bench) -> SandboxProvisioner:
    """One whose kernel runs in the test's hands."""
    made = SandboxProvisioner(kernel_id="k", kernel_spec=KernelSpec(), parent=None)
    made.session = bench.session
    return made


async def obey(bench: Bench, after: float = 0.1) -> None:
    """Do as a warden that is told to stop."""
    loop = asyncio.get_running_loop()
    bench.warden.setblocking(False)  # noqa: FBT003
    assert json.loads((await loop.sock_recv(bench.warden, 4096)).split(b"\n")[0])["op"] == "stop"
    await asyncio.sleep(after)
    bench.say(GONE)


def test_two_overlapping_cleanups(bench: Bench, provisioner: SandboxProvisioner) -> None:
    """A shutdown by the person and one by the server: both return, and it is over."""

    async def scenario() -> float:
        bench.say(READY)
        began = time.monotonic()
        await asyncio.gather(
            provisioner.cleanup(),
            provisioner.cleanup(restart=True),
            provisioner.cleanup(),
            obey(bench),
        )
        return time.monotonic() - began

    assert asyncio.run(scenario()) < 5
    assert provisioner.session is None
    assert not provisioner.has_process
    assert not Path(bench.session.outer.folder).exists()


@pytest.mark.parametrize("end", ["cleanup", "kill"])
def test_waiting_while_another_ends_it(
    bench: Bench, provisioner: SandboxProvisioner, end: str
) -> None:
    """wait() returns, with the code of the end or none, and without an error."""

    async def scenario() -> tuple[int | None, float]:
        bench.say(READY)
        waiting = asyncio.create_task(provisioner.wait())
        await asyncio.sleep(0.05)
        began = time.monotonic()
        await asyncio.gather(getattr(provisioner, end)(), obey(bench))
        return await waiting, time.monotonic() - began

    code, took = asyncio.run(scenario())
    assert code in {-9, 0}
    assert took < 5


def test_a_cleanup_that_was_overtaken_spares_the_next_session(
    bench: Bench, provisioner: SandboxProvisioner
) -> None:
    """It closes what it began with; what came meanwhile is another's."""
    other = Session(environ={RUNTIME_VARIABLE: str(bench.folder)}, name="other")

    async def scenario() -> None:
        bench.say(READY)
        cleaning = asyncio.create_task(provisioner.cleanup())
        await asyncio.sleep(0.05)
        provisioner.session = other
        bench.say(GONE)
        await cleaning

    asyncio.run(scenario())
    assert provisioner.session is other
    assert Path(other.outer.folder).exists()
    assert not Path(bench.session.outer.folder).exists()
    other.close()
