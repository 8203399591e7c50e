"""How long cells may run: the relay's clock, and what stops it (D13)."""

import json
import socket
import threading
import time

import pytest
from jupyter_client.session import Session
from relays import (
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

from kernel_provider.warden import overtime as module
from kernel_provider.warden import pair as pair_module
from kernel_provider.warden import successor as successor_module
from kernel_provider.warden.message import DELIMITER, signed
from kernel_provider.warden.overtime import Overtime
from kernel_provider.warden.rendezvous import CONTROL, IOPUB, SHELL
from kernel_provider.warden.zmtp import OF_CLIENTS, Follower, frame, message

KEY = "secret"
LIMIT = 0.3
GRACE = 0.4
DONE = {"status": "ok", "execution_count": 1}


class Watched:
    """A bench whose relay has a clock; what was done, and when, since it was made."""

    def __init__(self, bench: Bench, key: str = KEY, limit: float = LIMIT) -> None:
        self.bench = bench
        self.began = time.monotonic()
        self.done: list[tuple[str, str, float]] = []
        bench.relay.overtime = Overtime(
            bench.relay,
            limit,
            key=key,
            interrupt=lambda asked: self.note("interrupt", asked.name),
            stop=lambda asked: self.note("stop", asked.name),
        )
        bench.start()

    def note(self, what: str, name: str) -> None:
        """Keep it."""
        self.done.append((what, name, time.monotonic() - self.began))

    def ask(self, name: str = "1", kind: str = "execute_request") -> tuple[socket.socket, ...]:
        """A client of its own asks; give its socket and the kernel's end."""
        client, kernel = self.bench.pair(SHELL)
        pass_on(client, kernel, request(kind, name))
        return client, kernel

    @property
    def names(self) -> list[tuple[str, str]]:
        """What was done, to which cell."""
        return [(what, name) for what, name, _ in self.done]


@pytest.fixture
def watched(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Watched:
    """Times that tests can wait for."""
    monkeypatch.setattr(module, "GRACE", GRACE)
    return Watched(bench)


def pass_on(here: socket.socket, there: socket.socket, data: bytes) -> None:
    """Say something and see it come."""
    here.sendall(data)
    assert receive(there, len(data)) == data


def header(name: str) -> bytes:
    """A request's, as a kernel gives it back."""
    return json.dumps({"msg_type": "execute_request", "msg_id": name, "session": "s"}).encode()


def reply(name: str = "1", key: str = KEY, kind: str = "execute_reply", **content: object) -> bytes:
    """A kernel's answer on the wire."""
    return signed(kind, {**DONE, **content}, parent=header(name), key=key, reply=True)


def test_a_cell_that_runs_too_long_is_interrupted_and_then_stopped(watched: Watched) -> None:
    """Once each, at their times."""
    watched.ask("mine")
    assert until(lambda: len(watched.done) == 2)
    (first, mine, at), (second, same, later) = watched.done
    assert (first, mine, second, same) == ("interrupt", "mine", "stop", "mine")
    assert LIMIT <= at < LIMIT + 0.3
    assert at + GRACE <= later < at + GRACE + 0.3
    time.sleep(GRACE)
    assert len(watched.done) == 2


def test_one_that_heeds_the_interrupt_is_not_stopped(watched: Watched) -> None:
    """Its answer ends the matter."""
    client, kernel = watched.ask()
    assert until(lambda: watched.done)
    pass_on(kernel, client, reply(status="error"))
    time.sleep(GRACE + 0.2)
    assert watched.names == [("interrupt", "1")]


def test_each_cell_has_its_own_time(watched: Watched) -> None:
    """Of those that wait, the next one's begins with the answer before it."""
    client, kernel = watched.ask("first")
    for name in ("second", "third"):
        pass_on(client, kernel, request("execute_request", name))
    for name in ("first", "second"):
        time.sleep(LIMIT * 0.7)
        pass_on(kernel, client, reply(name))
    time.sleep(LIMIT * 0.7)
    assert not watched.done
    assert until(lambda: watched.done)
    assert watched.names == [("interrupt", "third")]


def test_a_kernel_may_take_another_clients_cell_first(watched: Watched) -> None:
    """The first that was asked for has all of its time after that."""
    watched.ask("mine")
    client, kernel = watched.ask("yours")
    time.sleep(LIMIT * 0.7)
    pass_on(kernel, client, reply("yours"))
    time.sleep(LIMIT * 0.7)
    assert not watched.done
    assert until(lambda: watched.names == [("interrupt", "mine")])


def test_what_is_answered_at_once_has_no_limit(watched: Watched) -> None:
    """It would be the next cell's affair; nor has code that control asks for."""
    watched.ask(kind="complete_request")
    client, kernel = watched.bench.pair(CONTROL)
    pass_on(client, kernel, request("execute_request"))
    time.sleep(LIMIT + 0.2)
    assert not watched.done


@pytest.mark.parametrize(
    "forged",
    [
        pytest.param(reply(key="another"), id="signed by nobody"),
        pytest.param(reply(key=""), id="not signed"),
        pytest.param(reply("2"), id="to another request"),
        pytest.param(reply(kind="execute_input"), id="another kind"),
        pytest.param(frame(b"x", flags=1) + reply(), id="with an address"),
        pytest.param(said(b"{}"), id="of nothing"),
        pytest.param(
            message([DELIMITER, b"", b'{"msg_type":', b"[" * 60_000, b"{}", b"{}"]), id="nonsense"
        ),
    ],
)
def test_what_a_client_takes_for_no_answer_is_none(watched: Watched, forged: bytes) -> None:
    """It waits on, so the cell runs on."""
    client, kernel = watched.ask()
    pass_on(kernel, client, forged)
    assert until(lambda: watched.names == [("interrupt", "1")])
    pass_on(kernel, client, forged)
    assert until(lambda: watched.names == [("interrupt", "1"), ("stop", "1")])


def test_an_answer_to_somebody_else_is_none(watched: Watched) -> None:
    """Clients of one session give their requests the same names."""
    watched.ask("1")
    client, kernel = watched.bench.pair(SHELL)
    pass_on(kernel, client, reply("1"))
    assert until(lambda: watched.names == [("interrupt", "1")])


@pytest.mark.parametrize("size", [0, 200_000])
def test_an_answer_that_comes_in_pieces(watched: Watched, size: int) -> None:
    """Of any length; the signature is of all that there is."""
    client, kernel = watched.ask()
    answer = reply(text="x" * size)
    step = 1 if not size else 9_999
    for at in range(0, len(answer), step):
        pass_on(kernel, client, answer[at : at + step])
    time.sleep(LIMIT + 0.2)
    assert not watched.done


def test_a_long_answer_with_a_wrong_end_is_none(watched: Watched) -> None:
    """However much of it was right."""
    client, kernel = watched.ask()
    pass_on(kernel, client, reply(text="x" * 200_000)[:-3] + b'y"}')
    assert until(lambda: watched.done)


def test_without_a_key_anything_of_that_name_answers(bench: Bench) -> None:
    """As clients see it, too."""
    watched = Watched(bench, key="")
    client, kernel = watched.ask()
    pass_on(kernel, client, reply(key=""))
    time.sleep(LIMIT + 0.2)
    assert not watched.done


def test_a_kernel_that_hangs_up_has_not_answered(watched: Watched) -> None:
    """Code can close its kernel's connections, and its client would wait for ever."""
    client, kernel = watched.ask()
    kernel.close()
    assert silent(client)
    assert until(lambda: watched.names == [("interrupt", "1"), ("stop", "1")])


def successor(watched: Watched, *, greets: int = 1000) -> tuple[socket.socket, str]:
    """The kernel's end of the connection of who came after a client; what it asks."""
    channel, kernel = watched.bench.kernels.get(timeout=5)
    assert channel == SHELL
    seen: list[bytes] = []
    follower = Follower(OF_CLIENTS, lambda _, body: seen.append(body))
    kernel.sendall(kernels_handshake(SHELL)[:greets])
    while not follower.messages:
        data = kernel.recv(1000)
        if not data:
            return kernel, ""
        follower.feed(memoryview(data))
    client = Session(key=KEY.encode())
    _, parts = client.feed_identities(seen[1:])
    asked = client.deserialize(parts)
    assert asked["msg_type"] == "kernel_info_request"
    return kernel, str(asked["header"]["msg_id"])


def test_a_client_that_left_is_succeeded(watched: Watched) -> None:
    """By a question that the kernel answers when it is done; the clock goes on meanwhile."""
    client, kernel = watched.ask("mine")
    time.sleep(LIMIT * 0.5)
    client.close()
    assert ended(kernel)
    successor(watched)
    assert until(lambda: watched.names == [("interrupt", "mine"), ("stop", "mine")])
    assert LIMIT <= watched.done[0][2] < LIMIT + 0.3


def test_an_answer_to_the_successor_ends_its_cell(watched: Watched) -> None:
    """And the connection, of which nothing is left."""
    client, kernel = watched.ask("mine")
    client.close()
    assert ended(kernel)
    kernel, name = successor(watched)
    kernel.sendall(reply(name, kind="kernel_info_reply"))
    assert ended(kernel)
    time.sleep(LIMIT + 0.2)
    assert not watched.done
    assert not watched.bench.relay.pairs


def test_all_cells_of_a_client_that_left_have_their_time_together(watched: Watched) -> None:
    """Which of them runs is not to be seen any more; others' that wait come after them."""
    client, kernel = watched.ask("first")
    pass_on(client, kernel, request("execute_request", "second"))
    client.close()
    assert ended(kernel)
    kernel, name = successor(watched)
    time.sleep(LIMIT * 1.5)
    assert not watched.done
    assert until(lambda: watched.names == [("interrupt", "first")])
    kernel.sendall(reply(name, kind="kernel_info_reply"))
    time.sleep(GRACE + 0.2)
    assert watched.names == [("interrupt", "first")]


@pytest.mark.parametrize("first", [True, False], ids=["asked before", "asked after"])
def test_the_successor_may_be_answered_after_another_clients_cell(
    watched: Watched, *, first: bool
) -> None:
    """That has all of its time, and gives none to what comes later."""
    client, kernel = watched.ask("mine")
    other, others_kernel = watched.ask("other") if first else (client, kernel)
    time.sleep(LIMIT * 0.7)
    client.close()
    assert ended(kernel)
    kernel, name = successor(watched)
    if not first:
        other, others_kernel = watched.ask("other")
    time.sleep(LIMIT * 0.7)
    assert not watched.done
    pass_on(others_kernel, other, reply("other"))
    assert until(lambda: watched.names == [("interrupt", "mine")], LIMIT + 0.2)
    kernel.sendall(reply(name, kind="kernel_info_reply"))


def test_a_kernel_that_hangs_up_on_the_successor_is_asked_again(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As often as it does, and held to its time all the same."""
    monkeypatch.setattr(successor_module, "AGAIN", 0.05)
    monkeypatch.setattr(pair_module, "ORPHANED", 0.05)
    client, kernel = watched.ask("mine")
    client.close()
    assert ended(kernel)
    for _ in range(3):
        kernel, name = successor(watched)
        assert name
        kernel.close()
    assert until(lambda: watched.names == [("interrupt", "mine"), ("stop", "mine")])


def test_a_client_that_leaves_after_the_interrupt_gives_no_time(watched: Watched) -> None:
    """Whoever reloads the page of a cell that goes on does not keep it alive."""
    client, kernel = watched.ask("mine")
    assert until(lambda: watched.done)
    client.close()
    assert ended(kernel)
    assert until(lambda: watched.names == [("interrupt", "mine"), ("stop", "mine")], GRACE + 0.2)


def test_one_that_waits_leaves_the_others_time_alone(watched: Watched) -> None:
    """The clock is the running cell's."""
    watched.ask("mine")
    client, kernel = watched.ask("yours")
    time.sleep(LIMIT * 0.7)
    client.close()
    assert ended(kernel)
    assert until(lambda: watched.names == [("interrupt", "mine")], LIMIT * 0.7)


def test_nothing_is_interrupted_after_the_end(watched: Watched) -> None:
    """The relay watches no more once its kernel is mourned."""
    client, _ = watched.ask("mine")
    other, _ = watched.ask("yours")
    other.close()
    time.sleep(0.1)
    watched.bench.call(watched.bench.relay.close_listeners)
    client.close()
    time.sleep(LIMIT + 0.2)
    assert not watched.done
    assert until(lambda: not watched.bench.relay.pairs)


# --- what the cell is told ----------------------------------------------------------------

LARGE = said(b"x" * 100_000)
NOTE = said(b"the relay's own")


def watching(bench: Bench) -> tuple[socket.socket, ...]:
    """A subscriber, and its kernel's end."""
    client, kernel = bench.pair(IOPUB)
    pass_on(client, kernel, frame(b"\x01"))
    assert until(bench.relay.subscribers)
    return client, kernel


@pytest.mark.parametrize(
    ("sent", "waits"), [(0, False), (20, False), (len(LARGE) // 2, True), (len(LARGE), True)]
)
def test_the_relays_own_words_come_between_messages(
    bench: Bench, sent: int, *, waits: bool
) -> None:
    """A message that is under way is passed on first; one that is still held, after them."""
    bench.start()
    client, kernel = watching(bench)
    kernel.sendall(LARGE[:sent])
    time.sleep(0.1)
    bench.call(lambda: bench.relay.tell(NOTE))
    kernel.sendall(LARGE[sent:])
    heard = receive(client, len(LARGE) + len(NOTE))
    assert heard == (LARGE + NOTE if waits else NOTE + LARGE)


@pytest.mark.parametrize("one", [LARGE, said(b"x" * 2000)], ids=["large", "small"])
def test_a_slow_client_gets_all_of_them(bench: Bench, one: bytes) -> None:
    """They wait behind what it has not taken yet and one message; nothing of that is lost."""
    bench.start()
    client, kernel = watching(bench)
    data = one * (40 * len(LARGE) // len(one))
    sent = fill(kernel, data)
    assert sent < len(data)
    for _ in range(2):
        bench.call(lambda: bench.relay.tell(NOTE))
    writer = threading.Thread(target=kernel.sendall, args=(data[sent:],), daemon=True)
    writer.start()
    heard = receive(client, len(data) + 2 * len(NOTE))
    writer.join(5)
    assert heard.count(NOTE) == 2
    assert heard.replace(NOTE, b"") == data
    assert heard.rindex(NOTE) <= sent + len(one) + len(NOTE)


def test_who_watches_nothing_is_told_nothing(bench: Bench) -> None:
    """Nor a client whose kernel is not reached yet."""
    bench.refusals = [BlockingIOError()]
    bench.start()
    early = bench.client(IOPUB)
    assert until(lambda: bench.relay.pairs)
    bench.call(lambda: bench.relay.tell(NOTE))
    assert silent(early)
