"""The sockets between warden and sandbox, and the one moment when they change hands.

What makes passing descriptors into a hostile container sound is D1's list: only bound,
listening AF_UNIX stream sockets; our copies closed at once; one connection to the
rendezvous, from the container's PID 1 and nobody else; names that tell nothing.
"""

import os
import socket
import struct
from typing import Final

CHANNELS: Final = ("shell", "iopub", "stdin", "control", "hb")
"""Order of the five sockets everywhere; a channel's port number is its place from 1."""

SHELL: Final = 0
IOPUB: Final = 1
CONTROL: Final = 3
HEARTBEAT: Final = 4

BACKLOG: Final = 128


class InnerSockets:
    """Five listening sockets below ``folder`` that the sandbox serves.

    Bound and connected to by a path relative to a descriptor, so that ``getsockname``
    inside tells nothing of the host's folders.
    """

    def __init__(self, folder: str) -> None:
        os.mkdir(folder, 0o700)
        self._folder = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._listeners = [self._listen(number) for number in range(1, len(CHANNELS) + 1)]

    def _path(self, number: int) -> str:
        return f"/proc/self/fd/{self._folder}/{number}"

    def _listen(self, number: int) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(self._path(number))
        listener.listen(BACKLOG)
        return listener

    def hand_over(self, guardian: socket.socket) -> None:
        """Pass the listeners on and close ours."""
        socket.send_fds(guardian, [b"L"], [s.fileno() for s in self._listeners])
        for listener in self._listeners:
            listener.close()
        self._listeners = []

    def connect(self, channel: int) -> socket.socket:
        """Connect to the kernel's socket; BlockingIOError where its backlog is full."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            connection.connect(self._path(channel + 1))
        except OSError:
            connection.close()
            raise
        return connection


def listen_for_guardian(folder: str) -> socket.socket:
    """Listen for the one connection, alone in ``folder``, which any uid may enter."""
    os.mkdir(folder, 0o711)
    path = f"{folder}/s"
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    listener.bind(path)
    os.chmod(path, 0o666)  # noqa: S103  the folder above lets only the sandbox's mount in
    listener.listen(1)
    return listener


def close_rendezvous(listener: socket.socket, folder: str) -> None:
    """Nobody connects a second time."""
    listener.close()
    os.unlink(f"{folder}/s")


def peer(connection: socket.socket) -> tuple[int, int]:
    """Pid and uid of whoever connected, as this process's namespaces number them."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    pid, uid, _ = struct.unpack("iII", raw)
    return pid, uid


def is_pid_one_of(connection: socket.socket, *, pid: int, container: str) -> bool:
    """Whether the peer is the container's PID 1, by number and by its cgroup."""
    found, _ = peer(connection)
    if found != pid or pid <= 0:
        return False
    try:
        with open(f"/proc/{pid}/cgroup", encoding="ascii") as file:
            return container in file.read()
    except OSError:
        return False
