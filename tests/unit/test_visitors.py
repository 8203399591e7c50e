"""Whose a TCP connection is."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing

import pytest

from kernel_provider.warden.visitors import is_welcome, owner


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """One on loopback."""
    with socket.create_server(("127.0.0.1", 0)) as made:
        yield made


def test_this_users_are_welcome(listener: socket.socket) -> None:
    """By the uid of the socket at the other end."""
    with socket.create_connection(listener.getsockname()) as client:
        taken, _ = listener.accept()
        with taken:
            assert owner(client.getsockname(), taken.getsockname()) == os.geteuid()
            assert is_welcome(taken)


def test_so_are_those_who_speak_ipv6(listener: socket.socket) -> None:
    """A socket of IPv6 that reaches an IPv4 address is in another table."""
    with socket.socket(socket.AF_INET6) as client:
        try:
            client.connect(("::ffff:127.0.0.1", listener.getsockname()[1]))
        except OSError:
            pytest.skip("no IPv6 on this machine")
        taken, _ = listener.accept()
        with taken:
            assert is_welcome(taken)


def test_unix_sockets_are_let_in_by_their_folder() -> None:
    """Nobody is asked for."""
    near, far = socket.socketpair()
    with near, far:
        assert is_welcome(near)


def test_who_has_left_is_not(listener: socket.socket) -> None:
    """A closed socket belongs to nobody, or to root: it is in no state to be asked."""
    with closing(socket.create_connection(listener.getsockname())) as client:
        taken, _ = listener.accept()
        client.close()
        with taken:
            assert not is_welcome(taken)


VISIT = """
import os, socket, sys
os.setgid(65534); os.setuid(65534)
with socket.socket() as made:
    made.connect(("127.0.0.1", int(sys.argv[1])))
    print("there", flush=True)
    made.recv(1)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_users_are_not(listener: socket.socket) -> None:
    """While they are connected."""
    words = [sys.executable, "-c", VISIT, str(listener.getsockname()[1])]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as visitor:
        assert visitor.stdout is not None
        assert visitor.stdout.readline() == b"there\n"
        taken, far = listener.accept()
        with taken:
            assert owner(far, taken.getsockname()) == 65534
            assert not is_welcome(taken)
