"""Whose a TCP connection is."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing

import pytest

from kernel_provider.warden.visitors import Visitors


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """One on loopback."""
    with socket.create_server(("127.0.0.1", 0)) as made:
        yield made


@pytest.fixture
def visitors() -> Iterator[Visitors]:
    """As they are seen from this network."""
    with closing(Visitors()) as made:
        yield made


def test_this_users_are_welcome(listener: socket.socket, visitors: Visitors) -> None:
    """By the uid of the socket at the other end."""
    with socket.create_connection(listener.getsockname()) as client:
        taken, _ = listener.accept()
        with taken:
            assert visitors.owner(client.getsockname(), taken.getsockname()) == os.geteuid()
            assert visitors.are_welcome(taken)


def test_so_are_those_who_speak_ipv6(listener: socket.socket, visitors: Visitors) -> None:
    """A socket of IPv6 that reaches an IPv4 address is in another table."""
    with socket.socket(socket.AF_INET6) as client:
        try:
            client.connect(("::ffff:127.0.0.1", listener.getsockname()[1]))
        except OSError:
            pytest.skip("no IPv6 on this machine")
        taken, _ = listener.accept()
        with taken:
            assert visitors.are_welcome(taken)


def test_unix_sockets_are_let_in_by_their_folder(visitors: Visitors) -> None:
    """Nobody is asked for."""
    near, far = socket.socketpair()
    with near, far:
        assert visitors.are_welcome(near)


def test_who_has_left_is_not(listener: socket.socket, visitors: Visitors) -> None:
    """A closed socket belongs to nobody, or to root: it is in no state to be asked."""
    with closing(socket.create_connection(listener.getsockname())) as client:
        taken, _ = listener.accept()
        client.close()
        with taken:
            assert not visitors.are_welcome(taken)


VISIT = """
import os, socket, sys
os.setgid(65534); os.setuid(65534)
with socket.socket() as made:
    made.connect(("127.0.0.1", int(sys.argv[1])))
    print("there", flush=True)
    made.recv(1)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_users_are_not(listener: socket.socket, visitors: Visitors) -> None:
    """While they are connected."""
    words = [sys.executable, "-c", VISIT, str(listener.getsockname()[1])]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as visitor:
        assert visitor.stdout is not None
        assert visitor.stdout.readline() == b"there\n"
        taken, far = listener.accept()
        with taken:
            assert visitors.owner(far, taken.getsockname()) == 65534
            assert not visitors.are_welcome(taken)


AFAR = """
import os, socket, sys
from contextlib import closing
from kernel_provider.warden.netns import leave_network
from kernel_provider.warden.visitors import Visitors
with socket.create_server(("127.0.0.1", 0)) as listener:
    early = Visitors()
    print(listener.getsockname()[1], leave_network(), flush=True)
    taken, _ = listener.accept()
    print(early.are_welcome(taken), Visitors().are_welcome(taken))
"""


def test_they_are_known_from_another_network() -> None:
    """To whoever looked before it left the network; who looks only then sees nobody."""
    with subprocess.Popen([sys.executable, "-c", AFAR], stdout=subprocess.PIPE) as warden:
        assert warden.stdout is not None
        port, left = warden.stdout.readline().split()
        with socket.create_connection(("127.0.0.1", int(port))):
            known = warden.stdout.readline().split()
    assert known == ([b"True", b"False"] if left == b"True" else [b"True", b"True"])
