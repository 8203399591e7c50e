import socket
import time
from collections.abc import Iterator

import pytest

from kernel_provider.warden.loop import ENDED, READ, WRITE, Loop

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    """Two connected sockets."""
    near, far = socket.socketpair()
    with near, far:
        yield near, far


def test_calls_back_when_something_is_there(pair: Pair) -> None:
    """A handler is called with what holds, again and again while it holds."""
    near, far = pair
    loop = Loop()
    seen: list[int] = []

    def handler(events: int) -> None:
        seen.append(events)
        if len(seen) == 2:
            loop.stop()

    loop.watch(near.fileno(), READ, handler)
    far.send(b"!")
    loop.run()
    assert seen == [READ, READ]


def test_watching_again_replaces(pair: Pair) -> None:
    """The latest events and handler count."""
    near, far = pair
    loop = Loop()
    seen: list[str] = []

    def note(what: str) -> None:
        seen.append(what)
        loop.stop()

    loop.watch(near.fileno(), READ, lambda _: seen.append("old"))
    loop.watch(near.fileno(), WRITE, lambda _: note("new"))
    far.send(b"!")
    loop.run()
    assert seen == ["new"]


def test_a_hang_up_is_told(pair: Pair) -> None:
    """Whatever was asked for, the other side's end is told."""
    near, far = pair
    loop = Loop()
    seen: list[int] = []

    def note(events: int) -> None:
        seen.append(events)
        loop.stop()

    loop.watch(near.fileno(), WRITE, note)
    far.close()
    loop.run()
    assert seen[0] & ENDED


def test_forgetting_in_the_same_round(pair: Pair) -> None:
    """Who was forgotten by an earlier handler is not called; twice is fine."""
    near, far = pair
    loop = Loop()
    called: list[int] = []

    def handler(me: int, other: int) -> None:
        called.append(me)
        loop.forget(other)
        loop.forget(other)
        loop.stop()

    loop.watch(near.fileno(), WRITE, lambda _: handler(near.fileno(), far.fileno()))
    loop.watch(far.fileno(), WRITE, lambda _: handler(far.fileno(), near.fileno()))
    loop.run()
    assert len(called) == 1


def test_a_number_that_is_reused_is_anothers(pair: Pair) -> None:
    """An event of a closed descriptor does not reach who got its number next."""
    near, far = pair
    loop = Loop()
    wrong: list[int] = []
    fresh: list[int] = []

    def swap(_events: int) -> None:
        for old in (near, far):
            loop.forget(old.fileno())
        for new in (near, far):
            loop.watch(new.fileno(), READ, wrong.append)
        fresh.append(1)
        loop.after(0.02, loop.stop)

    loop.watch(near.fileno(), WRITE, swap)
    loop.watch(far.fileno(), WRITE, swap)
    loop.run()
    assert fresh == [1]
    assert not wrong


def test_timers_are_called_in_their_order() -> None:
    """Each once, at its time; the cancelled never."""
    loop = Loop()
    seen: list[str] = []

    def note(what: str) -> None:
        seen.append(what)
        loop.stop()

    loop.after(0.03, lambda: note("second"))
    loop.after(0.01, lambda: seen.append("first"))
    cancelled = loop.after(0.02, lambda: seen.append("never"))
    cancelled.cancel()
    cancelled.cancel()
    begin = time.monotonic()
    loop.run()
    assert seen == ["first", "second"]
    assert 0.03 <= time.monotonic() - begin < 0.2


def test_timers_made_in_a_timer_wait_for_the_next_round(pair: Pair) -> None:
    """A timer that renews itself at once starves nobody."""
    near, _ = pair
    loop = Loop()
    rounds: list[int] = []

    def again() -> None:
        rounds.append(1)
        if len(rounds) < 1000:
            loop.after(0, again)

    loop.after(0, again)
    loop.watch(near.fileno(), WRITE, lambda _: loop.stop())
    loop.run()
    assert len(rounds) < 5


def test_idle_costs_nothing(pair: Pair) -> None:
    """Waiting takes no processor, also beside a cancelled timer."""
    near, _ = pair
    loop = Loop()
    loop.watch(near.fileno(), READ, lambda _: None)
    loop.after(0.05, lambda: None).cancel()
    loop.after(0.3, loop.stop)
    begin = time.process_time()
    loop.run()
    assert time.process_time() - begin < 0.05
