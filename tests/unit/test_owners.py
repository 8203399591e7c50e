import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from kernel_provider.warden.loop import Loop
from kernel_provider.warden.owners import Owner, Owners
from kernel_provider.warden.wishes import Stop, Wish


class Heard:
    """Owners in a loop, and what was heard of them."""

    def __init__(self, path: str) -> None:
        self.loop = Loop()
        self.wishes: list[Wish] = []
        self.last: Owner | None = None
        self.alone: list[str] = []
        self.path = path
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        listener.listen()
        self.listener = listener
        self.owners = Owners(self.loop, listener, self.on_wish, self.on_none)

    def on_wish(self, owner: Owner, wish: Wish) -> None:
        """Whoever wishes holds."""
        owner.holds = True
        self.last = owner
        self.wishes.append(wish)

    def on_none(self) -> None:
        """Note it."""
        self.alone.append("again")

    def serve(self) -> None:
        """For a moment."""
        self.loop.after(0.05, self.loop.stop)
        self.loop.run()


@pytest.fixture
def heard(tmp_path: Path) -> Iterator[Heard]:
    """Owners with nobody among them."""
    made = Heard(str(tmp_path / "w"))
    with made.listener:
        yield made
        if made.last is not None:
            made.last.close()
    made.loop.close()


def test_wishes_and_words(heard: Heard) -> None:
    """Each line is a wish; what is said is a line as well."""
    with socket.socket(socket.AF_UNIX) as owner:
        owner.connect(heard.path)
        owner.sendall(b'{"op": "stop"}\n{"op": ')
        heard.serve()
        owner.sendall(b'"stop"}\n')
        heard.serve()
        assert heard.wishes == [Stop(), Stop()]
        heard.owners.say({"event": "x"})
        assert json.loads(owner.recv(100)) == {"event": "x"}
        assert not heard.alone
    heard.serve()
    assert heard.alone == ["again"]


def test_an_owner_that_does_not_read_is_let_go(heard: Heard) -> None:
    """Half a line would spoil all that follow, and waiting for it would stop the rest."""
    with socket.socket(socket.AF_UNIX) as owner:
        owner.connect(heard.path)
        owner.sendall(b'{"op": "stop"}\n')
        heard.serve()
        for _ in range(1000):
            heard.owners.say({"event": "x" * 10_000})
            if heard.alone:
                break
        assert heard.alone == ["again"]


def test_an_error_in_what_is_done_for_an_owner_is_no_mistake_of_its(heard: Heard) -> None:
    """It is the warden's own, and reaches whoever runs the loop."""

    def fail(_owner: Owner, _wish: Wish) -> None:
        raise ValueError

    heard.owners.on_wish = fail
    with socket.socket(socket.AF_UNIX) as owner:
        owner.connect(heard.path)
        owner.sendall(b'{"op": "stop"}\n')
        with pytest.raises(ValueError):  # noqa: PT011  this very one
            heard.serve()
    heard.serve()
