"""The relay between real sockets: what it passes on, holds, and knows of it."""

import json
import os
import socket
import threading
import time
from pathlib import Path

import pytest
from relays import (
    HANDSHAKE,
    QUIET,
    REPLY,
    STDIN,
    SUBSCRIBE,
    Bench,
    ended,
    fill,
    receive,
    request,
    said,
    say_and_go,
    silent,
    until,
)

from kernel_provider.warden import pair as pair_module
from kernel_provider.warden import relay as relay_module
from kernel_provider.warden.pump import CHUNK
from kernel_provider.warden.relay import HOLD
from kernel_provider.warden.rendezvous import CHANNELS, CONTROL, IOPUB, SHELL
from kernel_provider.warden.zmtp import LONG, greeting, message


@pytest.mark.parametrize("channel", range(len(CHANNELS)))
def test_bytes_arrive_as_they_were_sent(bench: Bench, channel: int) -> None:
    """Both directions of each channel carry a stream unchanged."""
    bench.start()
    client, kernel = bench.pair(channel)
    data = message([os.urandom(10), b"", b"", b"", b"", os.urandom(300)])
    for here, there in ((client, kernel), (kernel, client)):
        here.sendall(data)
        assert receive(there, len(data)) == data


def test_greetings_are_passed_on_byte_by_byte(bench: Bench) -> None:
    """Ten bytes of a greeting arrive before the rest is sent: libzmq waits for them."""
    bench.start()
    client, kernel = bench.pair(greet=False)
    for a, b in ((0, 10), (10, 11), (11, 64)):
        for here, there in ((client, kernel), (kernel, client)):
            here.sendall(greeting()[a:b])
            assert receive(there, b - a) == greeting()[a:b]


def test_a_client_that_does_not_read_stops_the_kernel_not_the_relay(bench: Bench) -> None:
    """The relay holds one chunk; the rest waits at the kernel's end, and nothing is lost."""
    bench.start()
    client, kernel = bench.pair(IOPUB)
    data = said(os.urandom(8 << 20))
    sent = fill(kernel, data)
    held = max(len(pair.down.pending) for pair in bench.relay.pairs)
    assert 0 < held <= CHUNK
    assert sent < CHUNK + (2 << 20), "more than a chunk and what sockets hold"
    rest = threading.Thread(target=kernel.sendall, args=(data[sent:],), daemon=True)
    rest.start()
    assert receive(client, len(data)) == data
    rest.join()


def test_a_client_that_does_not_read_holds_up_nobody_else(bench: Bench) -> None:
    """Other clients' round trips go on as before."""
    bench.start()
    _, flooding = bench.pair(IOPUB)
    client, kernel = bench.pair(SHELL)
    fill(flooding, said(bytes(8 << 20)))
    begin = time.monotonic()
    for _ in range(100):
        client.sendall(request("execute_request"))
        receive(kernel, len(request("execute_request")))
        kernel.sendall(REPLY)
        assert receive(client, len(REPLY)) == REPLY
    assert time.monotonic() - begin < 5


def test_a_kernel_that_does_not_read_stops_that_client_only(bench: Bench) -> None:
    """Back-pressure works towards the kernel as well."""
    bench.start()
    client, kernel = bench.pair(SHELL)
    data = said(bytes(8 << 20))
    sent = fill(client, data)
    assert sent < CHUNK + (2 << 20)
    other, counterpart = bench.pair(CONTROL)
    other.sendall(REPLY)
    assert receive(counterpart, len(REPLY)) == REPLY
    rest = threading.Thread(target=client.sendall, args=(data[sent:],), daemon=True)
    rest.start()
    assert receive(kernel, len(data)) == data
    rest.join()


@pytest.mark.parametrize("unread", [False, True], ids=["idle client", "client that asks on"])
def test_all_that_a_dying_kernel_said_arrives(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, *, unread: bool
) -> None:
    """A kernel that writes much and goes is heard to the end.

    Even while its client sends what nobody reads any more; then the client is let go of,
    but not at once.
    """
    monkeypatch.setattr(pair_module, "ORPHANED", 1.0)
    bench.start()
    client, kernel = bench.pair(SHELL)
    data = said(os.urandom(4 << 20))
    writer = threading.Thread(target=say_and_go, args=(kernel, data), daemon=True)
    writer.start()
    time.sleep(QUIET)
    if unread:
        client.sendall(request("execute_request"))
    half = receive(client, len(data) // 2)
    if unread:
        client.sendall(request("execute_request"))
    half += receive(client, len(data) - len(half) - 10)
    writer.join()
    if unread:
        client.sendall(request("execute_request"))
        time.sleep(QUIET)
    assert half + receive(client, 10) == data
    assert silent(client, 0.1), "let go of before last words could come"
    assert ended(client)


def test_all_that_a_leaving_client_said_arrives(bench: Bench) -> None:
    """A client that sends much and closes at once is heard to the end by the kernel."""
    bench.start()
    client, kernel = bench.pair(STDIN)
    data = said(os.urandom(4 << 20))
    writer = threading.Thread(target=say_and_go, args=(client, data), daemon=True)
    writer.start()
    time.sleep(QUIET)
    assert receive(kernel, len(data)) == data
    assert ended(kernel)
    writer.join()


@pytest.mark.parametrize("leaves", ["nobody", "client", "kernel", "both"])
@pytest.mark.parametrize("blocked", ["up", "down", "both", "neither", "held"])
def test_nothing_is_waited_for_in_a_busy_loop(bench: Bench, blocked: str, leaves: str) -> None:
    """Whoever hung up or is blocked, waiting for the other side takes no processor."""
    bench.start(subscribers=1 if blocked == "held" else 0)
    client, kernel = bench.pair(SHELL, greet=blocked != "held")
    if blocked in {"up", "both"}:
        fill(client, said(bytes(8 << 20)))
    if blocked in {"down", "both"}:
        fill(kernel, said(bytes(8 << 20)))
    if blocked == "held":
        client.sendall(HANDSHAKE)
    if leaves in {"client", "both"}:
        client.close()
    if leaves in {"kernel", "both"}:
        kernel.close()
    assert until(lambda: bench.processor_time(0.2) < 0.02, 10), "it never came to rest"


def test_the_busy_loop_would_be_noticed(bench: Bench) -> None:
    """The control: a loop that spins takes all the time there is."""
    bench.start()
    near, far = socket.socketpair()
    with near, far:
        bench.call(lambda: bench.loop.watch(near.fileno(), 4, lambda _: None))
        assert until(lambda: bench.processor_time(0.2) > 0.08, 10)
        bench.call(lambda: bench.loop.forget(near.fileno()))


def test_requests_wait_for_subscribers(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shell and control wait until as many subscribers are back as there were.

    Iopub, stdin and heartbeat don't.
    """
    monkeypatch.setattr(relay_module, "HOLD", 60.0)
    bench.start(subscribers=2)
    held = [bench.pair(channel, greet=False) for channel in (SHELL, CONTROL)]
    for client, _ in held:
        client.sendall(HANDSHAKE + request("execute_request"))
    bench.pair(STDIN)
    first, _ = bench.pair(IOPUB)
    first.sendall(SUBSCRIBE)
    time.sleep(QUIET)
    first.sendall(SUBSCRIBE)
    assert all(silent(kernel) for _, kernel in held)
    second, counterpart = bench.pair(IOPUB)
    second.sendall(SUBSCRIBE)
    receive(counterpart, len(SUBSCRIBE))
    for _, kernel in held:
        assert receive(kernel, 1)


def test_subscribers_are_counted_until_the_kernel_is_gone(bench: Bench) -> None:
    """One whose kernel closed its sockets and dies slowly is expected back at the next."""
    bench.start()
    client, kernel = bench.pair(IOPUB)
    client.sendall(SUBSCRIBE)
    assert receive(kernel, len(SUBSCRIBE)) == SUBSCRIBE
    kernel.close()
    assert silent(client, 2.5), "as long as Jupyter waits before it sends SIGTERM"
    assert bench.call(bench.relay.subscribers) == 1


def test_requests_wait_no_longer_than_promised(bench: Bench) -> None:
    """A subscriber that never comes back delays the others by HOLD and no more."""
    bench.start(subscribers=1)
    begin = time.monotonic()
    client, kernel = bench.pair(SHELL, greet=False)
    client.sendall(HANDSHAKE)
    assert receive(kernel, len(HANDSHAKE)) == HANDSHAKE
    assert HOLD - 0.01 < time.monotonic() - begin < HOLD + 3
    late, counterpart = bench.pair(CONTROL, greet=False)
    late.sendall(HANDSHAKE)
    assert receive(counterpart, 1)


@pytest.mark.parametrize(
    "offence",
    [b"GET / HTTP/1.1\r\n\r\n" * 4, HANDSHAKE + bytes([LONG]) + b"\x01" + bytes(7)],
    ids=["another protocol", "a frame of 2**56 bytes"],
)
def test_a_client_that_breaks_the_framing_loses_its_own_connection(
    bench: Bench, offence: bytes
) -> None:
    """Other clients of the same channel and the kernel notice nothing."""
    bench.start()
    good, kernel = bench.pair(SHELL)
    bad, counterpart = bench.pair(SHELL, greet=False)
    bad.sendall(offence)
    assert ended(bad)
    assert ended(counterpart)
    good.sendall(REPLY)
    assert receive(kernel, len(REPLY)) == REPLY
    assert not bench.violations


def test_the_running_request_is_known(bench: Bench) -> None:
    """The oldest unanswered request is the running one; a reply ends it."""
    bench.start()
    client, kernel = bench.pair(SHELL)
    other, counterpart = bench.pair(SHELL)

    def running() -> str:
        found = bench.call(bench.relay.running)
        return json.loads(found.header)["msg_id"] if found else ""  # type: ignore[attr-defined]

    assert running() == ""
    for here, name in ((client, "a"), (client, "b"), (other, "c")):
        here.sendall(request("execute_request", name))
        time.sleep(QUIET)
    client.sendall(request("comm_msg", "no request"))
    client.sendall(request("invented_request", "gets no reply"))
    assert running() == "a"
    kernel.sendall(REPLY)
    receive(client, len(REPLY))
    assert running() == "b"
    client.close()
    assert until(lambda: running() == "c")
    counterpart.sendall(REPLY)
    counterpart.close()
    receive(other, len(REPLY))
    assert until(lambda: running() == ""), "answered, and then the kernel went"


def test_a_shutdown_request_is_noted(bench: Bench) -> None:
    """So that an end that was asked for is not taken for a death."""
    bench.start()
    client, kernel = bench.pair(CONTROL)
    assert not bench.relay.shutdown_requested
    client.sendall(request("shutdown_request"))
    receive(kernel, 1)
    assert bench.relay.shutdown_requested


@pytest.mark.parametrize("header", [b"", b"[" * 60_000, b"7", b'"x"', b"\xff", b'{"msg_type": 7}'])
def test_headers_that_make_no_sense_pass(bench: Bench, header: bytes) -> None:
    """What a client sends is looked at, not judged."""
    bench.start()
    client, kernel = bench.pair(SHELL)
    data = message([b"<IDS|MSG>", b"", header])
    client.sendall(data)
    assert receive(kernel, len(data)) == data
    assert bench.call(bench.relay.running) is None


def test_a_full_backlog_is_tried_again(bench: Bench) -> None:
    """A kernel that is slow to accept keeps its clients waiting, and gets them all."""
    bench.refusals = [BlockingIOError(), BlockingIOError(), BlockingIOError()]
    bench.start()
    client, kernel = bench.pair(SHELL)
    client.sendall(REPLY)
    assert receive(kernel, len(REPLY)) == REPLY


def test_a_kernel_that_refuses_costs_the_connection(bench: Bench) -> None:
    """A client that can't be connected through is hung up on, and may try again."""
    bench.refusals = [ConnectionRefusedError()]
    bench.start()
    client = socket.socket(socket.AF_UNIX)
    bench.opened.append(client)
    client.settimeout(5)
    client.connect(f"{bench.folder}/c-1")
    assert ended(client)
    bench.pair(SHELL)


def test_descriptors_from_a_kernel_are_dropped(bench: Bench) -> None:
    """What a kernel attaches to its bytes never becomes a descriptor of ours."""
    bench.start()
    client, kernel = bench.pair(SHELL)
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(20):
        socket.send_fds(kernel, [REPLY], [0, 0, 0])
    assert receive(client, 20 * len(REPLY)) == 20 * REPLY
    assert len(list(Path("/proc/self/fd").iterdir())) == before
