"""D13: cells that say too much, honest and hostile ones, in real kernels."""

import ctypes
import fcntl
import os
import queue
import re
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager
from kernels import MINE, Outcome, kernel, run, run_to_death
from sandboxes import left_of, look, memory, session_of, sockets, until, value

pytestmark = pytest.mark.container
Pair = tuple[KernelManager, BlockingKernelClient]

LIMIT = 2 << 20
SETTINGS = {"output_limit": "2m", "output_rate": "10k", "message_size": "8m"}


def test_many_small_messages_come_whole_at_their_pace(image: str) -> None:
    """A kernel that has more of them than its clients get a second waits, and loses none."""
    assert image
    with kernel({"message_rate": 200}) as (_, client):
        begun = time.monotonic()
        outcome = run(client, "for i in range(1000): print(i, flush=True)")
        assert time.monotonic() - begun > (1000 - 3 * 200) / 200 * 0.8
        assert outcome.stdout == "".join(f"{i}\n" for i in range(1000))
        assert outcome.stderr == ""


@pytest.fixture(scope="module")
def tight(image: str) -> Iterator[Pair]:
    """A kernel whose cells may say 2 MB."""
    assert image
    with kernel(SETTINGS) as pair:
        yield pair


def said(outcome: Outcome) -> int:
    """Bytes of everything that came, about."""
    return len(repr([m["content"] for m in outcome.messages]))


def notes(outcome: Outcome) -> list[str]:
    """What the warden added."""
    return re.findall("executor-ml: (.*)\n", outcome.stderr)


def test_start_and_end_of_a_loud_cell(tight: Pair) -> None:
    """And notes between them; it ends as any cell, and the next one has room again."""
    _, client = tight
    code = "for i in range(4000): print(f'{i:05d}' + 'x' * 995, flush=not i % 40)"
    outcome = run(client, code)
    assert outcome.status == "ok"
    lines = outcome.stdout.split()
    numbers = [int(line[:5]) for line in lines]
    gap = next(i for i in range(1, len(lines)) if numbers[i] != numbers[i - 1] + 1)
    assert 0.7 * LIMIT < sum(map(len, lines[:gap])) < 1.2 * LIMIT
    assert numbers == [*range(gap), *range(numbers[gap], 4000)]
    first, last = notes(outcome)
    assert first.startswith("more than 2 MB of output; the rest is left out")
    missing = (4000 - len(lines)) * 1001 / 2**20
    assert abs(float(last.split()[0]) - missing) < 0.2
    order = [
        m["content"].get("text", "")[:30] for m in outcome.messages if m["msg_type"] == "stream"
    ]
    assert "left out" in order[-2] or "MB of" in order[-2]
    again = run(client, "print('x' * 1000 * 1000)")
    assert (len(again.stdout), again.stderr) == (1_000_001, "")


def test_the_end_of_a_loud_cell_that_never_flushed(tight: Pair) -> None:
    """Its 4 MB may come as one message: of that, the last 32 KB."""
    _, client = tight
    outcome = run(client, "print('x' * 4_000_000 + '\\n\\u20ac the end')")
    assert outcome.status == "ok"
    assert outcome.stdout.endswith("xxx\n€ the end\n")
    assert 30_000 < len(outcome.stdout) < 33_000
    assert len(notes(outcome)) == 2


def test_one_picture_that_is_too_large(tight: Pair) -> None:
    """Nothing of it comes, and what is beside it does: the value, the cell's end."""
    _, client = tight
    code = (
        "from IPython.display import display, HTML\n"
        "display(HTML('before')); display(HTML('x' * 3_000_000)); 6 * 7"
    )
    outcome = run(client, code)
    assert (outcome.status, outcome.result) == ("ok", "42")
    assert said(outcome) < 5000
    assert len(notes(outcome)) == 2


FORGED = """
import time
k = get_ipython().kernel
for _ in range(200):
    for _ in range(60):
        k.send_response(k.iopub_socket, "stream", {"name": "stdout", "text": "x" * 1000})
    for state in ("idle", "busy"):
        k.send_response(k.iopub_socket, "status", {"execution_state": state})
"""


def test_forged_idle_gives_no_room(tight: Pair) -> None:
    """Jupyter's own limit is reset by it: 12 MB would come."""
    _, client = tight
    request = client.execute(FORGED)
    came = 0
    answered = False
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            message = client.get_iopub_msg(timeout=1.0)
        except queue.Empty:
            if answered:
                break
        else:
            came += len(repr(message["content"]))
        if client.shell_channel.msg_ready():
            reply = client.get_shell_msg(timeout=1.0)
            answered = reply["parent_header"]["msg_id"] == request
    assert answered
    assert message["content"]["execution_state"] == "idle", "the last one comes as well"
    assert came < LIMIT + (2 << 20)
    assert value(client, "'and it is well'") == "and it is well"


def test_one_that_goes_on_is_interrupted(tight: Pair) -> None:
    """As if the person had: the cell ends with that, the kernel lives."""
    _, client = tight
    outcome = run(client, "while True: print('x' * 1000)", timeout=60)
    assert outcome.error["ename"] == "KeyboardInterrupt"
    assert said(outcome) < 2 * LIMIT
    assert "and the kernel was interrupted" in notes(outcome)[-1]
    assert value(client, "1 + 1") == 2


DEAF = """
import time
while True:
    try:
        while True:
            print("x" * 1000)
            time.sleep(0.0001)
    except KeyboardInterrupt:
        pass
"""

SHELL = (
    MINE
    + """
parts = [b"<IDS|MSG>", b"", b"{}", b"{}", b"{}", b"x" * 60_000]
wire = b"".join(bytes([3 if p is not parts[-1] else 2]) + len(p).to_bytes(8, "big") + p
                for p in parts)
while True:
    for s in mine(CHANNEL):
        s.setblocking(True)
        for _ in range(100):
            s.sendall(wire)
"""
)


@pytest.mark.parametrize(
    "code",
    [
        pytest.param(DEAF, id="deaf"),
        pytest.param(f"CHANNEL = 1\n{SHELL}", id="shell"),
        pytest.param(f"CHANNEL = 3\n{SHELL}", id="stdin"),
        pytest.param(f"CHANNEL = 4\n{SHELL}", id="control"),
    ],
)
def test_one_that_does_not_stop_is_stopped(
    engine: docker.DockerClient, image: str, code: str
) -> None:
    """With the cause in the cell and for its owner; replies count, and can't be left out."""
    assert image
    with kernel(SETTINGS) as (km, client):
        seen = look(session_of(km), engine)
        before = memory(os.getpid())
        outcome = run_to_death(client, code, timeout=40)
        assert outcome.error.get("ename") == "OutputLimitExceeded"
        assert "output_limit" in outcome.error["evalue"]
        assert memory(os.getpid()) < before + 40
        assert until(lambda: not left_of(seen, engine)), left_of(seen, engine)
        death = session_of(km).death
        assert death is not None
        assert (death.name, death.expected) == ("OutputLimitExceeded", False)


# --- the network that a warden has not ------------------------------------------------


def fetched(pid: int, number: int) -> socket.socket:
    """A descriptor of another process's, as one of ours (pidfd_getfd)."""
    pidfd = os.pidfd_open(pid)
    try:
        got = ctypes.CDLL(None, use_errno=True).syscall(438, pidfd, number, 0)
    finally:
        os.close(pidfd)
    if got < 0:
        raise OSError(ctypes.get_errno(), "pidfd_getfd")
    return socket.socket(fileno=got)


def interfaces(of: socket.socket) -> list[str]:
    """What a socket tells of its network."""
    found = []
    for number in range(1, 64):
        try:
            answer = fcntl.ioctl(of.fileno(), 0x8910, struct.pack("16si20x", b"", number))
        except OSError:
            continue
        found.append(answer[:16].rstrip(b"\0").decode())
    return found


@pytest.mark.skipif(os.getuid() != 0, reason="takes descriptors of a sandbox")
def test_sockets_in_a_sandbox_tell_nothing_of_the_host(
    tight: Pair, engine: docker.DockerClient
) -> None:
    """Neither those that were handed in nor accepted ones: no seccomp profile is needed."""
    km, client = tight
    seen = look(session_of(km), engine)
    mine, wardens = (Path(f"/proc/{pid}/ns/net").readlink() for pid in ("self", seen.warden))
    assert mine != wardens
    inside = value(client, "import os; os.getpid()")
    (pid,) = (
        p
        for p in seen.group.processes()
        if Path(f"/proc/{p}/status").read_text().split("NSpid:")[1].split()[1] == str(inside)
    )
    assert sockets(pid)
    found = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        if "socket:" in str(entry.readlink()):
            with fetched(pid, int(entry.name)) as theirs:
                if theirs.family == socket.AF_UNIX:
                    found.append(interfaces(theirs))
    assert len(found) > 10
    assert all(told in ([], ["lo"]) for told in found), found
    with socket.socket(socket.AF_UNIX) as control:
        assert interfaces(control) == [name for _, name in socket.if_nameindex()]


def test_a_warden_is_small(tight: Pair, engine: docker.DockerClient) -> None:
    """After floods, cuts and notes as well."""
    km, client = tight
    run(client, "for i in range(4000): print('x' * 1000)")
    seen = look(session_of(km), engine)
    time.sleep(0.2)
    assert memory(seen.warden, "Pss") <= 15
