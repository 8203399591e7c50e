"""D13: the relay with real kernels behind it, among them hostile ones."""

import asyncio
import os
import queue
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import docker
import pytest
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager
from kernels import KERNEL, MINE, kernel, run, run_to_death
from sandboxes import left_of, look, memory, session_of, sockets, until, value

from kernel_provider.session import Session
from kernel_provider.warden.zmtp import frame, greeting, ready

pytestmark = pytest.mark.container
Pair = tuple[KernelManager, BlockingKernelClient]

CYCLES = int(os.environ.get("EXECUTOR_ML_SOAK_CYCLES", "5"))
FLAT_MB = 40
"""How much a client may grow under attack: the tests' own messages take a part of it."""


def restarts(pair: Pair, count: int) -> int:
    """Restart so often; how many first outputs came."""
    km, client = pair
    came = 0
    for number in range(count):
        km.restart_kernel(now=bool(number % 2))
        client.execute(f"print('first of {number}')")
        came += heard(client, f"first of {number}\n")
    return came


def heard(client: BlockingKernelClient, text: str) -> bool:
    """Whether an output comes within 3 s; whose it is is told by its text.

    Manager and client give the same ids to their messages (they clone one session), so
    the answer to a shutdown may look like the answer to a cell.
    """
    deadline = time.monotonic() + 3
    with suppress(queue.Empty):
        while True:
            message = client.get_iopub_msg(timeout=max(0.0, deadline - time.monotonic()))
            if message["content"].get("text") == text:
                return True
    return False


@pytest.mark.soak
def test_the_first_output_after_a_restart(shared_kernel: Pair) -> None:
    """A client that asks at once, without waiting for the new kernel, gets all of it.

    Without the hold it was lost in 38 of 45 tries.
    """
    assert restarts(shared_kernel, CYCLES) == CYCLES


def test_a_restart_keeps_endpoints_and_clients(
    shared_kernel: Pair, engine: docker.DockerClient
) -> None:
    """The same sockets, another sandbox behind them, and clients that come back.

    Their connections are closed, so nothing of the old kernel is heard through them.
    """
    km, client = shared_kernel
    other = BlockingKernelClient(connection_file=km.connection_file)  # a session of its own
    other.load_connection_file()
    other.start_channels()
    other.wait_for_ready(timeout=30)
    before = look(session_of(km), engine)
    names = {p: Path(f"{km.ip}-{p}").stat().st_ino for p in range(1, 6)}
    outer = socket.socket(socket.AF_UNIX)
    with outer:
        outer.connect(f"{km.ip}-1")
        run(client, "import threading, time; stop = False\n"
            "def talk():\n while not stop: print('old', flush=True); time.sleep(0.01)\n"
            "threading.Thread(target=talk, daemon=True).start()")  # fmt: skip
        km.restart_kernel(now=True)
        outer.settimeout(5)
        with suppress(ConnectionError):
            while outer.recv(4096):
                pass
    after = look(session_of(km), engine)
    assert (before.container, before.warden) != (after.container, after.warden)
    assert not left_of(before, engine)
    assert {p: Path(f"{km.ip}-{p}").stat().st_ino for p in range(1, 6)} == names
    with suppress(queue.Empty):  # libzmq subscribes anew while its owner asks for messages
        while other.get_iopub_msg(timeout=0.5):
            pass
    for here in (client, other):
        outcome = run(here, "print('new')")
        assert outcome.stdout == "new\n"
    other.stop_channels()


def test_the_kernel_does_not_outlive_a_refused_handshake(shared_kernel: Pair) -> None:
    """A client that speaks another protocol is hung up on, the kernel goes on."""
    km, client = shared_kernel
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.connect(f"{km.ip}-1")
        stranger.settimeout(5)
        stranger.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" + bytes(64))
        with suppress(ConnectionError):
            while stranger.recv(4096):
                pass
    assert value(client, "1") == 1


# --- hostile kernels ------------------------------------------------------------------

FIND = (
    MINE
    + """
def flood(data, once=False):
    for s in mine(CHANNEL, False):
        s.setblocking(True)
    sinks = mine(CHANNEL, False)
    while sinks:
        for s in tuple(sinks):
            try:
                s.sendall(data)
            except OSError:
                sinks.remove(s)
        if once:
            break
"""
)

GARBAGE = "flood(b'\\xff' * 1000, once=True); time.sleep(30)"
LARGE = (
    "flood(b'\\x02' + (1 << 40).to_bytes(8, 'big'), once=True); flood(bytes(1 << 20)); "
    "time.sleep(30)"
)
PARTS = "flood(b'\\x01\\xc8' + bytes(200)); time.sleep(30)"
EMPTY = "flood(b'\\x01\\x00' * 1000); time.sleep(30)"
COMMANDS = "flood(b'\\x06' + (1 << 40).to_bytes(8, 'big'), once=True); time.sleep(30)"
PONGS = "flood(b'\\x04\\x05\\x04PONG' * 1000); time.sleep(30)"
ERROR = "flood(b'\\x04\\x0a\\x05ERROR\\x03400', once=True); time.sleep(30)"


@pytest.mark.parametrize("channel", [2, 1], ids=["iopub", "shell"])
@pytest.mark.parametrize(
    "attack",
    [
        pytest.param(GARBAGE, id="garbage"),
        pytest.param(LARGE, id="a frame of 2**40 bytes"),
        pytest.param(PARTS, id="a message without end"),
        pytest.param(EMPTY, id="of empty parts"),
        pytest.param(COMMANDS, id="a command of 2**40 bytes"),
        pytest.param(PONGS, id="commands without end"),
        pytest.param(ERROR, id="an error for libzmq"),
    ],
)
def test_code_that_writes_to_clients_itself(
    engine: docker.DockerClient, image: str, channel: int, attack: str
) -> None:
    """It breaks the protocol on the connections: stopped, told, clients unharmed.

    The cell says why, and the client's memory stays flat.
    """
    assert image
    with kernel() as (km, client):
        seen = look(session_of(km), engine)
        before = memory(os.getpid())
        outcome = run_to_death(client, f"CHANNEL = {channel}\n{FIND}\n{attack}", timeout=20)
        assert outcome.error.get("ename") == "ProtocolViolation", outcome.messages[-3:]
        assert ("iopub" if channel == 2 else "shell") in outcome.error["evalue"]
        assert memory(os.getpid()) < before + FLAT_MB
        assert until(lambda: not left_of(seen, engine)), left_of(seen, engine)
        death = session_of(km).death
        assert death is not None
        assert (death.name, death.expected) == ("ProtocolViolation", False)


OLDER = b"\xff" + bytes(8) + b"\x7f\x01\x02\0\0" + b"\x02" + (1 << 40).to_bytes(8, "big")
"""In ZMTP 2 the rest of the greeting would be a frame of 2**40 bytes."""

ACCEPT = """
def steal():
    listeners = mine(CHANNEL, True)
    while True:
        for s in listeners:
            try:
                stolen, _ = s.accept()
                stolen.send(SAID)
                kept.append(stolen)
            except OSError:
                pass
kept = []
threading.Thread(target=steal, daemon=True).start()
time.sleep(30)
"""


@pytest.mark.parametrize(
    ("said", "what"),
    [
        pytest.param(OLDER, "hb: a greeting other than ZMTP 3's", id="older protocol"),
        pytest.param(
            greeting() + ready(b"PUB"), "hb: a socket that is not of type", id="wrong type"
        ),
    ],
)
def test_code_that_accepts_clients_itself(
    engine: docker.DockerClient, image: str, said: bytes, what: str
) -> None:
    """It takes connections from libzmq and greets them in its own way: stopped as well."""
    assert image
    with kernel() as (km, client):
        seen = look(session_of(km), engine)
        client.execute(f"CHANNEL = 5; SAID = {said!r}\n{FIND}\n{ACCEPT}")
        deadline = time.monotonic() + 20
        while session_of(km).death is None and time.monotonic() < deadline:
            with socket.socket(socket.AF_UNIX) as visitor, suppress(OSError):
                visitor.connect(f"{km.ip}-5")
                visitor.settimeout(0.2)
                visitor.recv(100)
        death = session_of(km).death
        assert death is not None
        assert death.name == "ProtocolViolation"
        assert what in death.reason
        assert until(lambda: not left_of(seen, engine))


BUFFERS = "from comm import create_comm; create_comm(target_name='x').send({}, buffers=[b'x'] * N)"
"""What a widget sends: a message of seven parts, and one more for each buffer."""

A_COMMAND = "flood(b'\\x06' + (400).to_bytes(8, 'big') + bytes(400)); time.sleep(30)"


@pytest.mark.parametrize(
    ("setting", "value", "code", "what"),
    [
        pytest.param(
            "message_parts",
            20,
            f"N = 14\n{BUFFERS}",
            "iopub: a message of more than 20 parts",
            id="parts",
        ),
        pytest.param(
            "command_size",
            "300b",
            f"CHANNEL = 2\n{FIND}\n{A_COMMAND}",
            "iopub: a command of more than 300 bytes",
            id="command",
        ),
        pytest.param(
            "message_size",
            "1m",
            "from comm import create_comm; create_comm(target_name='x').send('x' * (2 << 20))",
            "iopub: a message of more than 1 MiB",
            id="size",
        ),
    ],
)
def test_a_lowered_limit_holds_and_names_its_setting(
    image: str, setting: str, value: object, code: str, what: str
) -> None:
    """Whoever shows that much with good reason reads how to."""
    assert image
    with kernel({setting: value}) as (km, client):
        run(client, BUFFERS.replace("N", "13"))
        outcome = run_to_death(client, code, timeout=20)
        assert outcome.error.get("ename") == "ProtocolViolation", outcome.messages[-3:]
        assert f"({what})" in outcome.error["evalue"]
        assert f'raise "{setting}" in kernelspec {KERNEL}.' in outcome.error["evalue"]
        assert until(lambda: session_of(km).death is not None)


def test_a_lowered_handshake_hangs_up_sooner(image: str) -> None:
    """On a client that the kernel took and does not greet; the kernel lives."""
    assert image
    with kernel({"handshake_timeout": 1}) as (km, client):
        mute = ACCEPT.replace("stolen.send(SAID)", "").replace("time.sleep(30)", "")
        run(client, f"CHANNEL = 5\n{FIND}\n{mute}")
        heard, waited, deadline = b"greeted", 0.0, time.monotonic() + 30
        while heard and time.monotonic() < deadline:  # libzmq takes most of them, and greets
            with socket.socket(socket.AF_UNIX) as visitor:
                visitor.connect(f"{km.ip}-5")
                visitor.settimeout(5)
                visitor.sendall(greeting() + ready(b"DEALER"))
                begun = time.monotonic()
                heard = visitor.recv(100)
                waited = time.monotonic() - begun
        assert not heard
        assert 0.9 < waited < 3
        assert value(client, "6 * 7") == 42


SPIN = """
def spin(s):
    time.sleep(2)  # let the cell end: what libzmq says of it must not get in between
    s.setblocking(True)
    while True:
        s.sendall((b"\\1\\0" * 999 + b"\\0\\0") * 20)
for s in mine(2, False):  # one that reads no more holds up its own thread
    threading.Thread(target=spin, args=(s,), daemon=True).start()
"""


def test_a_flood_within_the_rules(engine: docker.DockerClient, image: str) -> None:
    """Empty parts without end, for a client that reads them all: no core is lost to it.

    The warden keeps to its share, and the kernel lives.
    """
    assert image
    with kernel() as (km, client):
        seen = look(session_of(km), engine)
        with reading(km) as came:
            client.execute(f"{FIND}\n{SPIN}")
            assert until(lambda: sum(came) > 10_000, 20), "no flood"
            assert until(lambda: processor_share(seen.warden, 2.0) < 0.2, 30)
            before = len(came)
            assert until(lambda: len(came) > before), "the flood is over"
            assert session_of(km).death is None


def processor_share(pid: int, seconds: float) -> float:
    """Which part of one processor a process takes, all of its threads together."""

    def used() -> float:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    before, begin = used(), time.monotonic()
    time.sleep(seconds)
    return (used() - before) / (time.monotonic() - begin)


def test_a_kernel_that_accepts_nobody(engine: docker.DockerClient, image: str) -> None:
    """Clients that come and go at a kernel that stands still cost no descriptors."""
    assert image
    with kernel() as (km, client):
        seen = look(session_of(km), engine)
        value(client, "1")
        client.execute("import os, signal; os.kill(os.getpid(), signal.SIGSTOP)")
        before = len(sockets(seen.warden))
        with ExitStack() as visitors:
            for _ in range(180):  # more than its backlog holds
                visitor = visitors.enter_context(socket.socket(socket.AF_UNIX))
                visitor.connect(f"{km.ip}-1")
                visitor.sendall(greeting()[:10])
            assert until(lambda: len(sockets(seen.warden)) > before + 250)
        assert until(lambda: len(sockets(seen.warden)) <= before, 15)
        assert processor_share(seen.warden, 1.0) < 0.1


# --- clients that do not read ---------------------------------------------------------


@contextmanager
def reading(km: KernelManager) -> Iterator[list[int]]:
    """A subscriber that reads whatever comes; the sizes of what came."""
    with deaf(km) as eager:
        came: list[int] = []

        def read() -> None:
            eager.settimeout(None)
            with suppress(OSError):
                while size := len(eager.recv(1 << 20)):
                    came.append(size)

        thread = threading.Thread(target=read, daemon=True)
        thread.start()
        yield came
        eager.shutdown(socket.SHUT_RDWR)
        thread.join()


@contextmanager
def deaf(km: KernelManager) -> Iterator[socket.socket]:
    """A subscriber that reads nothing after its subscription."""
    with socket.socket(socket.AF_UNIX) as stuck:
        stuck.settimeout(5)
        stuck.connect(f"{km.ip}-2")
        stuck.sendall(greeting())
        got = b""
        while len(got) < 64:
            got += stuck.recv(64 - len(got))
        stuck.sendall(ready(b"SUB") + frame(b"\x01"))
        time.sleep(0.2)
        yield stuck


FLOOD = "for _ in range(100): print('x' * 2**20)"


def round_trip(client: BlockingKernelClient) -> float:
    """Seconds for the middle one of 21 cells."""
    times = []
    for _ in range(21):
        begin = time.monotonic()
        run(client, "1")
        times.append(time.monotonic() - begin)
    return sorted(times)[10]


def test_a_client_that_never_reads(shared_kernel: Pair, engine: docker.DockerClient) -> None:
    """100 MB later others have lost nothing and ask as quickly as before.

    The warden holds none of it.
    """
    km, client = shared_kernel
    seen = look(session_of(km), engine)
    alone = round_trip(client)
    with deaf(km):
        before = memory(seen.warden)
        outcome = run(client, FLOOD, timeout=120)
        assert len(outcome.stdout) == 100 * (2**20 + 1)
        assert until(lambda: round_trip(client) < max(2 * alone, 0.05), 15)
        assert memory(seen.warden) < before + 2
        assert memory(seen.warden, "VmHWM") <= 16


def test_an_interrupt_beside_a_stuck_client(shared_kernel: Pair) -> None:
    """Within 100 ms, while another client is stuck behind 100 MB of output.

    Once is enough: who waits for the stuck one waits every time, and a machine with
    more to do now and then.
    """
    km, client = shared_kernel
    with deaf(km):
        run(client, FLOOD, timeout=120)
        assert quickest_interrupt(client) < 0.1


def quickest_interrupt(client: BlockingKernelClient) -> float:
    """Seconds from the request to the end of the cell; of up to ten, or one within 0.1."""
    took: list[float] = []
    while not took or (min(took) > 0.1 and len(took) < 10):
        took.append(interrupt(client))
    return min(took)


def interrupt(client: BlockingKernelClient) -> float:
    """Seconds from the request to the end of a cell that sleeps.

    Another one may follow at once: what comes right after an error is dropped otherwise.
    """
    code = "print('begun', flush=True); import time; time.sleep(30)"
    request = client.execute(code, stop_on_error=False)
    while True:
        message = client.get_iopub_msg(timeout=10)
        if message["content"].get("text", "").startswith("begun"):  # the end of its line may follow
            break
    begin = time.monotonic()
    client.control_channel.send(client.session.msg("interrupt_request", {}))
    reply = client.get_shell_msg(timeout=10)
    took = time.monotonic() - begin
    assert reply["parent_header"]["msg_id"] == request
    assert reply["content"]["ename"] == "KeyboardInterrupt"
    client.get_control_msg(timeout=10)
    return took


TINY = """
def spin(s):
    time.sleep(1)  # let the cell end
    s.setblocking(True)
    while True:
        s.sendall((b"\\1\\2xx" * 6 + b"\\0\\2xx") * 500)
s, = mine(2, False)[-1:]
threading.Thread(target=spin, args=(s,), daemon=True).start()
"""


def test_an_interrupt_under_a_flood_of_tiny_frames(image: str) -> None:
    """Messages of frames of 2 bytes, without end, to another client that reads them all."""
    assert image
    with kernel() as (km, client), reading(km) as came:
        run(client, f"{FIND}\n{TINY}")
        assert until(lambda: sum(came) > 100_000, 20), "no flood"
        assert quickest_interrupt(client) < 0.1
        before = sum(came)
        assert until(lambda: sum(came) > before), "the flood is over"


@pytest.mark.soak
@pytest.mark.parametrize("beside", ["nothing", "a stuck client", "tiny frames"])
def test_interrupts_in_figures(image: str, beside: str) -> None:
    """Each in 100 ms on a quiet machine; what it takes beside nothing is there to compare."""
    assert image
    with kernel() as (km, client), ExitStack() as stack:
        if beside == "a stuck client":
            stack.enter_context(deaf(km))
            run(client, FLOOD, timeout=120)
        elif beside == "tiny frames":
            came = stack.enter_context(reading(km))
            run(client, f"{FIND}\n{TINY}")
            assert until(lambda: sum(came) > 100_000, 20), "no flood"
        took = sorted(interrupt(client) for _ in range(30))
        line = ", ".join(f"{took[place] * 1000:.0f}" for place in (0, 15, 28, 29))
        print(f"interrupts beside {beside}: {line} ms (least, middle, last but one, most)")
        assert took[15] < 0.1


def test_last_words_after_a_death_in_the_middle_of_a_message(image: str) -> None:
    """The stream was cut off inside a message of 8 MB, and the cell says why it ended.

    The client comes back by itself and finds a publisher that stands in.
    """
    assert image
    code = (
        "import os, threading\n"
        "threading.Timer(0.5, lambda: os.kill(os.getpid(), 9)).start()\n"
        "while True: print('x' * (8 << 20), flush=True)"
    )
    for _ in range(2):
        with kernel() as (_, client):
            outcome = run_to_death(client, code, timeout=20)
            assert outcome.error.get("ename") == "KernelKilled"


def test_a_second_owner_hears_of_the_death(shared_kernel: Pair) -> None:
    """Whoever takes part in a kernel is told how it ended, as its first owner is."""
    km, client = shared_kernel
    km.restart_kernel(now=True)
    client.wait_for_ready(timeout=30)
    second = asyncio.run(
        Session.attach(
            session_of(km).describe(), key=km.session.key.decode(), environ=os.environ, name="t"
        )
    )
    waiting = threading.Thread(target=lambda: asyncio.run(second.gone(20)))
    waiting.start()
    run_to_death(client, "import os; os._exit(5)")
    waiting.join()
    death = second.death
    assert death is not None
    assert (death.name, death.exit_code) == ("KernelExited", 5)
    second.close()
    km.restart_kernel(now=True)
    client.wait_for_ready(timeout=30)
