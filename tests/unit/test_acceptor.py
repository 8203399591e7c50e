"""Taking connections when there are descriptors, and when there are none."""

import errno
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from kernel_provider.warden import acceptor as module
from kernel_provider.warden.acceptor import Acceptor
from kernel_provider.warden.loop import Loop


class Poor(socket.socket):
    """A listener in a process that is out of descriptors, for so many tries."""

    failures = 0
    tries = 0

    def accept(self) -> tuple[socket.socket, str]:
        """Fail as the kernel does: whoever knocks stays in the backlog."""
        self.tries += 1
        if self.failures:
            self.failures -= 1
            raise OSError(errno.EMFILE, "Too many open files")
        return super().accept()


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[Poor]:
    """A listener with one client in its backlog."""
    with Poor(socket.AF_UNIX) as made, socket.socket(socket.AF_UNIX) as client:
        made.bind(str(tmp_path / "s"))
        made.listen()
        client.connect(str(tmp_path / "s"))
        yield made


def test_each_connection_is_handed_on(listener: Poor) -> None:
    """Whoever knocks is taken, and does not block."""
    loop = Loop()
    taken: list[socket.socket] = []

    def take(client: socket.socket) -> None:
        taken.append(client)
        loop.stop()

    Acceptor(loop, listener, take)
    loop.run()
    assert not taken[0].getblocking()
    taken[0].close()


def test_out_of_descriptors_it_waits_and_tries_again(
    listener: Poor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once for each wait: a client that can't be taken is no reason to spin."""
    monkeypatch.setattr(module, "AGAIN", 0.01)
    listener.failures = 3
    loop = Loop()
    taken: list[socket.socket] = []

    def take(client: socket.socket) -> None:
        taken.append(client)
        loop.stop()

    Acceptor(loop, listener, take)
    loop.run()
    assert len(taken) == 1
    assert listener.tries == 4
    taken[0].close()


@pytest.mark.parametrize("failures", [0, 1], ids=["while open", "while it waits"])
def test_shut_is_shut(listener: Poor, monkeypatch: pytest.MonkeyPatch, failures: int) -> None:
    """After that nobody is taken, and the listener may be closed."""
    monkeypatch.setattr(module, "AGAIN", 0.01)
    listener.failures = failures
    loop = Loop()
    taken: list[socket.socket] = []
    acceptor = Acceptor(loop, listener, taken.append)
    if failures:
        loop.after(0.005, loop.stop)
        loop.run()
    acceptor.shut()
    acceptor.shut()
    listener.close()
    loop.after(0.05, loop.stop)
    loop.run()
    assert listener.tries == failures
    assert not taken
