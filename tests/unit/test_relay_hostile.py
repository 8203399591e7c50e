"""The relay with a kernel that means harm: rules, rates, patience, and descriptors."""

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from typing import Any

import pytest
import zmq
from relays import (
    HANDSHAKE,
    QUIET,
    REPLY,
    Bench,
    ended,
    fill,
    kernels_handshake,
    receive,
    request,
    said,
    silent,
    until,
)

from kernel_provider.warden import budget as budget_module
from kernel_provider.warden import pair as pair_module
from kernel_provider.warden.budget import Budget
from kernel_provider.warden.relay import MOST_PAIRS, most_pairs
from kernel_provider.warden.rendezvous import CHANNELS, CONTROL, IOPUB, SHELL
from kernel_provider.warden.zmtp import COMMAND, LONG, MORE, Follower, frame, message, ready

HEARTBEAT = 4

# --- rules ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offence", "what"),
    [
        (frame(b"", flags=MORE) * 4 + frame(b""), "a message of fewer than 6 parts"),
        (message([b"x" * 300] * 5), "a message of fewer than 6 parts"),
        (b"\xff\xff\xff", "a frame with unknown flags"),
        (ready(b"ROUTER"), "a command that is not a kernel's to give"),
        (frame(b"\x04PONG", flags=COMMAND) * 200, "more commands than keep a connection alive"),
        (frame(b"x", flags=COMMAND | MORE), "a command within a message"),
        (frame(b"", flags=MORE) + frame(b"x", flags=COMMAND), "a command within a message"),
    ],
)
@pytest.mark.parametrize("channel", [SHELL, IOPUB])
def test_a_kernel_that_breaks_the_rules_is_reported(
    bench: Bench, channel: int, offence: bytes, what: str
) -> None:
    """The warden is told channel and offence, once, and the client gets none of it."""
    bench.start()
    client, kernel = bench.pair(channel)
    kernel.sendall(REPLY)
    assert receive(client, len(REPLY)) == REPLY
    kernel.sendall(offence)
    assert ended(client)
    assert bench.violations == [(CHANNELS[channel], what)]
    assert bench.settings == [""], "nothing allows for it"


LONG_ONE = bytes([LONG]) + (1 << 40).to_bytes(8, "big")


@pytest.mark.parametrize(
    ("own", "offence", "what", "setting"),
    [
        ({}, LONG_ONE, "a message of more than 128 MiB", "message_size"),
        ({"message": 1 << 20}, LONG_ONE, "a message of more than 1 MiB", "message_size"),
        ({}, frame(b"", flags=MORE) * 1025, "a message of more than 1024 parts", "message_parts"),
        (
            {"parts": 16},
            message([b"x"] * 17),
            "a message of more than 16 parts",
            "message_parts",
        ),
        ({}, frame(b"x" * 513, flags=COMMAND), "a command of more than 512 bytes", "command_size"),
        (
            {"command": 300},
            frame(b"x" * 301, flags=COMMAND),
            "a command of more than 300 bytes",
            "command_size",
        ),
    ],
)
@pytest.mark.parametrize("channel", [SHELL, IOPUB])
def test_a_limit_that_was_broken_names_its_setting(  # noqa: PLR0913  a row of a table
    bench: Bench, *, channel: int, own: dict[str, Any], offence: bytes, what: str, setting: str
) -> None:
    """With the value that is in force; what keeps to it passes."""
    bench.relay.limits = replace(bench.relay.limits, **own)
    bench.start()
    client, kernel = bench.pair(channel)
    most = message([b"x"] * bench.relay.limits.parts)
    kernel.sendall(most)
    assert receive(client, len(most)) == most
    kernel.sendall(offence)
    assert ended(client)
    assert bench.violations == [(CHANNELS[channel], what)]
    assert bench.settings == [setting]


def test_no_setting_allows_for_a_longer_heartbeat(bench: Bench) -> None:
    """It is as long as what the client sent, whatever messages may be."""
    bench.start()
    client, kernel = bench.pair(HEARTBEAT)
    kernel.sendall(frame(b"x" * 5000))
    assert ended(client)
    assert bench.settings == [""]


@pytest.mark.parametrize(
    ("said", "what"),
    [
        (ready(b"PUSH"), "a socket that is not of type"),
        (frame(b"\x05ERROR\x03400", flags=COMMAND), "another command than READY at first"),
        (frame(b"\x05READY\x0bSocket", flags=COMMAND), "a READY that can't be read"),
        (message([b"early"]), "a message before the end of the handshake"),
        (frame(b"early", flags=MORE), "a message before the end of the handshake"),
    ],
)
@pytest.mark.parametrize("channel", [SHELL, IOPUB, HEARTBEAT])
def test_a_kernel_that_would_deafen_a_client_is_reported(
    bench: Bench, channel: int, said: bytes, what: str
) -> None:
    """Of a handshake that a client must not hear, it hears the harmless beginning."""
    bench.start()
    client, kernel = bench.pair(channel, greet=False)
    greeting = kernels_handshake(channel)[:64]
    for byte in greeting + said[:-1]:
        with suppress(ConnectionError):  # stopped before its last byte, for an early message
            kernel.send(bytes([byte]))
    with suppress(ConnectionError):
        kernel.send(said[-1:])
    heard = receive(client, 1000)
    assert (greeting + said)[: len(heard)] == heard
    assert len(heard) < len(greeting + said)
    assert until(lambda: bench.violations)
    (found,) = bench.violations
    assert found[0] == CHANNELS[channel]
    assert found[1].startswith(what)


def test_a_violation_on_one_connection_silences_all(bench: Bench) -> None:
    """Nothing more of that kernel reaches anybody; clients stay to hear the last words."""
    bench.start()
    client, kernel = bench.pair(SHELL)
    other, counterpart = bench.pair(IOPUB)
    bench.call(lambda: bench.relay.hold(next(iter(bench.relay.pairs))))
    kernel.sendall(b"\xff")
    assert ended(client)
    assert ended(counterpart)
    assert silent(other)
    assert len(bench.violations) == 1


# --- rates ----------------------------------------------------------------------------


def flood(bench: Bench, kernel: socket.socket, data: bytes) -> threading.Thread:
    """Send for ever, in a thread, until the connection ends."""

    def send() -> None:
        kernel.settimeout(None)
        with suppress(OSError):
            while True:
                kernel.sendall(data)

    thread = threading.Thread(target=send, daemon=True)
    bench.background.append(thread)
    thread.start()
    return thread


def drain(bench: Bench, client: socket.socket) -> None:
    """Read for ever, in a thread."""

    def read() -> None:
        client.settimeout(None)
        with suppress(OSError):
            while client.recv(1 << 20):
                pass

    thread = threading.Thread(target=read, daemon=True)
    bench.background.append(thread)
    thread.start()


@pytest.mark.parametrize(
    "data",
    [
        pytest.param((b"\1\0" * 5 + b"\0\0") * 50_000, id="shortest messages"),
        pytest.param((b"\1\0" * 500 + b"\0\0") * 100, id="empty parts"),
        pytest.param(said(b"x" * 300) * 1000, id="long frames"),
    ],
)
def test_a_flood_takes_a_share_of_a_processor(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, data: bytes
) -> None:
    """After its burst a kernel keeps the warden at 15 percent of one core."""
    monkeypatch.setattr(budget_module, "WORK", (0.15, 0.0))
    monkeypatch.setattr(budget_module, "MESSAGES", (1e9, 1e9))
    monkeypatch.setattr(budget_module, "BYTES", (1e12, 1e12))
    bench.relay.budget = Budget()
    bench.start()
    client, kernel = bench.pair(IOPUB)
    drain(bench, client)
    flood(bench, kernel, data)
    assert until(lambda: bench.processor_time(1.0) < 0.25, 10)
    bench.relay.budget = Budget(processor=lambda: 0.0)
    monkeypatch.setattr(budget_module, "TURN", 0.0)
    assert until(lambda: bench.processor_time(0.5) > 0.15, 10), "control: without a budget"


SENDS = "while True: s.sendall((b'\\1\\2xx' * 5 + b'\\0\\2xx') * 1000)"
READS = "while s.recv(1 << 20): pass"


@contextmanager
def outside(code: str, end: socket.socket) -> Iterator[None]:
    """Another process that does this with a socket ``s``, and takes no turns of this one."""
    begin = "import socket, sys\ns = socket.socket(fileno=int(sys.argv[1]))\ns.settimeout(None)\n"
    command = [sys.executable, "-I", "-c", begin + code, str(end.fileno())]
    with subprocess.Popen(command, pass_fds=[end.fileno()], stderr=subprocess.DEVNULL) as process:
        try:
            yield
        finally:
            process.kill()


@pytest.mark.soak
@pytest.mark.parametrize("beside", ["nothing", "a stuck client", "frames of 2 bytes"])
def test_an_interrupt_is_through_in_100_ms(bench: Bench, beside: str) -> None:
    """From the client's socket to the kernel's; what a busy kernel then does is its own."""
    bench.start()
    client, kernel = bench.pair(IOPUB)
    asker, asked = bench.pair(CONTROL)
    line = request("interrupt_request")
    took = []
    with ExitStack() as stack:
        if beside != "nothing":
            stack.enter_context(outside(SENDS, kernel))
            assert until(lambda: client.recv(1, socket.MSG_PEEK), 10)
        if beside == "frames of 2 bytes":
            stack.enter_context(outside(READS, client))
        for _ in range(200):
            begun = time.monotonic()
            asker.sendall(line)
            assert receive(asked, len(line)) == line
            took.append(time.monotonic() - begun)
            time.sleep(0.02)
    took.sort()
    print(f"through, beside {beside}: {took[100] * 1e3:.1f} ms, at most {took[-1] * 1e3:.1f}")
    assert took[-1] < 0.1


def test_what_waits_for_the_budget_is_not_lost(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond its rate a kernel is heard more slowly, and to the end."""
    monkeypatch.setattr(budget_module, "BYTES", (20e6, 1e6))
    bench.relay.budget = Budget()
    bench.start()
    client, kernel = bench.pair(IOPUB)
    data = b"".join(said(str(number).encode() * 1000) for number in range(2000))
    begin = time.monotonic()
    writer = threading.Thread(target=kernel.sendall, args=(data,), daemon=True)
    writer.start()
    assert receive(client, len(data)) == data
    writer.join()
    assert time.monotonic() - begin > (len(data) - 3e6) / 20e6


def test_many_small_messages_come_at_their_pace(bench: Bench) -> None:
    """A connection carries so many a second, loses none, and holds up no other one."""
    bench.output.limits = replace(bench.output.limits, messages=500)
    bench.start()
    client, kernel = bench.pair(IOPUB)
    other, counterpart = bench.pair(SHELL)
    data = b"".join(said(str(number).encode() * 50) for number in range(2000))
    begin = time.monotonic()
    writer = threading.Thread(target=kernel.sendall, args=(data,), daemon=True)
    writer.start()
    for _ in range(3):
        counterpart.sendall(REPLY)
        assert receive(other, len(REPLY)) == REPLY
    assert time.monotonic() - begin < 0.5
    assert receive(client, len(data)) == data
    writer.join()
    assert time.monotonic() - begin > (2000 - 1500) / 500 * 0.9


def test_a_flood_on_one_connection_holds_up_no_other(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Connections that wait for the budget are heard in turn, and clients at once."""
    monkeypatch.setattr(budget_module, "MESSAGES", (100_000, 1))
    bench.relay.budget = Budget()
    bench.start()
    listening, flooding = bench.pair(IOPUB)
    drain(bench, listening)
    flood(bench, flooding, (b"\1\0" * 5 + b"\0\0") * 5000)
    client, kernel = bench.pair(CONTROL)
    for _ in range(5):
        client.sendall(request("interrupt_request"))
        receive(kernel, len(request("interrupt_request")))
        kernel.sendall(REPLY)
        assert receive(client, len(REPLY)) == REPLY
    assert until(lambda: bench.call(bench.relay.budget.wait)), "it did flood"


# --- patience -------------------------------------------------------------------------


def test_a_backlog_that_stays_full_costs_the_connection(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel that never accepts is not waited for for ever."""
    monkeypatch.setattr(pair_module, "CONNECT", 0.3)
    bench.refusals = [BlockingIOError()] * 1000
    bench.start()
    client = bench.client(SHELL)
    begin = time.monotonic()
    assert ended(client)
    assert time.monotonic() - begin > 0.15
    assert len(bench.refusals) > 980, "it backs off"
    assert until(lambda: not bench.relay.pairs)


def test_a_client_that_leaves_meanwhile_is_let_go_of(bench: Bench) -> None:
    """Nobody waits for a full backlog on behalf of a client that went."""
    bench.refusals = [BlockingIOError()] * 1000
    bench.start()
    client = bench.client(SHELL)
    assert until(lambda: bench.relay.pairs)
    client.sendall(HANDSHAKE)
    client.close()
    assert until(lambda: not bench.relay.pairs)


def test_a_kernel_that_shuts_its_ears_is_let_go_of(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It reads no more, goes on talking, and its client left: the pair ends all the same."""
    monkeypatch.setattr(pair_module, "ORPHANED", 0.2)
    bench.start()
    client, kernel = bench.pair(SHELL)
    kernel.shutdown(socket.SHUT_RD)
    client.sendall(REPLY)
    client.close()
    assert until(lambda: not bench.relay.pairs)
    assert ended(kernel)


def test_a_kernel_that_does_not_read_is_let_go_of(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It leaves unread what a client said that is gone: kept for a while, not for ever."""
    monkeypatch.setattr(pair_module, "UNTAKEN", 0.5)
    bench.start()
    client, _ = bench.pair(SHELL)
    fill(client, said(bytes(8 << 20)))
    assert bench.relay.pairs
    client.close()
    time.sleep(QUIET)
    assert bench.relay.pairs
    assert until(lambda: not bench.relay.pairs)


@pytest.mark.parametrize("said", [0, 70], ids=["nothing", "half a READY"])
def test_a_handshake_has_its_time(bench: Bench, said: int) -> None:
    """A kernel that does not finish it loses this connection and lives.

    A client may take its time, and who has finished may be silent.
    """
    bench.relay.limits = replace(bench.relay.limits, handshake=0.3)
    bench.start()
    slow, _ = bench.pair(SHELL, greet=False)
    done, _ = bench.pair(SHELL)
    client, kernel = bench.pair(SHELL, greet=False)
    kernel.sendall(kernels_handshake(SHELL)[:said])
    client.sendall(HANDSHAKE)
    assert len(receive(client, 1000)) == said
    assert silent(slow, 0.5)
    assert silent(done)
    assert not bench.violations


def test_libzmq_tries_a_handshake_again(bench: Bench) -> None:
    """What a client asked meanwhile arrives: nothing is lost by hanging up on it."""
    bench.relay.limits = replace(bench.relay.limits, handshake=0.3)
    bench.start()
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.linger = 0
        dealer.connect(f"ipc://{bench.folder}/c-{SHELL + 1}")
        dealer.send(b"asked early")
        bench.kernels.get(timeout=5)  # gets no word out
        _, kernel = bench.kernels.get(timeout=5)
        kernel.sendall(kernels_handshake(SHELL))
        seen: list[bytes] = []
        follower = Follower(bench.relay.limits, lambda _index, body: seen.append(body))
        while not follower.messages:
            follower.feed(memoryview(kernel.recv(1000)))
        assert seen[-1] == b"asked early"


# --- descriptors ----------------------------------------------------------------------


def test_there_is_room_for_so_many_connections(bench: Bench) -> None:
    """The next one waits in the backlog until another one closes."""
    bench.relay.most = 3
    bench.start()
    first, _ = bench.pair(SHELL)
    bench.pair(IOPUB)
    bench.pair(SHELL)
    waiting = bench.client(CONTROL)
    waiting.sendall(HANDSHAKE)
    time.sleep(QUIET)
    assert bench.kernels.empty()
    first.close()
    channel, kernel = bench.kernels.get(timeout=5)
    assert channel == CONTROL
    assert receive(kernel, len(HANDSHAKE)) == HANDSHAKE


def test_closed_listeners_stay_closed(bench: Bench) -> None:
    """A connection that closes later makes no room: new ones are the next warden's."""
    bench.relay.most = 2
    bench.start()
    first, _ = bench.pair(SHELL)
    bench.pair(SHELL)
    bench.call(bench.relay.close_listeners)
    first.close()
    assert until(lambda: len(bench.relay.pairs) == 1)
    bench.client(SHELL).sendall(HANDSHAKE)
    time.sleep(QUIET)
    assert bench.kernels.empty()


@pytest.mark.parametrize(
    ("descriptors", "pairs"), [(-1, MOST_PAIRS), (20_000, MOST_PAIRS), (256, 96), (50, 1)]
)
def test_room_keeps_to_the_process_limit(descriptors: int, pairs: int) -> None:
    """So that the engine can be reached at the end, whatever clients do."""
    assert most_pairs(descriptors) == pairs
