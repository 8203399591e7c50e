"""Whose a TCP connection is, for clients that speak nothing else.

The outer UNIX sockets lie in a folder that only this user, and root, can enter. A port
on loopback is open to every user of the machine, and would tell each of them what the
kernel puts out, which is signed but not secret. So the kernel of this machine is asked
who connects: https://www.kernel.org/doc/html/latest/networking/proc_net_tcp.html
"""

import os
import socket
import struct
from contextlib import suppress
from typing import Final

TABLES: Final = {"/proc/net/tcp": "", "/proc/net/tcp6": "0000000000000000FFFF0000"}
"""With what stands before an IPv4 address there: the peer's own socket may be of IPv6."""
ESTABLISHED: Final = "01"
CHUNK: Final = 65536


class Visitors:
    """Opened in the network where clients are, and asked from any other.

    Opened by whoever is still the user that it was started as, too: in a user namespace
    of its own, a process reads root and everybody else as one and the same stranger.
    """

    def __init__(self) -> None:
        """Open the system's tables of connections, and keep them open."""
        self._tables: dict[int, str] = {}
        for table, before in TABLES.items():
            with suppress(OSError):  # no IPv6 on this machine
                self._tables[os.open(table, os.O_RDONLY | os.O_CLOEXEC)] = before

    def are_welcome(self, client: socket.socket) -> bool:
        """Whether a client may speak to the kernel; one that has left again may not."""
        if client.family != socket.AF_INET:
            return True
        try:
            near, far = client.getsockname(), client.getpeername()
        except OSError:
            return False
        return self.owner(far, near) in {os.geteuid(), 0}

    def owner(self, here: tuple[str, int], there: tuple[str, int]) -> int | None:
        """Uid of the socket at ``here`` that is connected to ``there``; None for none."""
        for table, before in self._tables.items():
            wanted = [before + _in_table(here), before + _in_table(there), ESTABLISHED]
            for line in _read(table).decode("ascii").splitlines():
                fields = line.split()
                if fields[1:4] == wanted:
                    return int(fields[7])
        return None

    def close(self) -> None:
        """Let go of the tables: nobody is welcome any more but by UNIX sockets. Twice is fine."""
        while self._tables:
            os.close(self._tables.popitem()[0])


def _read(table: int) -> bytes:
    """The whole of it as it is now."""
    chunks: list[bytes] = []
    while chunk := os.pread(table, CHUNK, sum(map(len, chunks))):
        chunks.append(chunk)
    return b"".join(chunks)


def _in_table(place: tuple[str, int]) -> str:
    """An IPv4 address and its port as the tables have them."""
    (number,) = struct.unpack("=I", socket.inet_aton(place[0]))
    return f"{number:08X}:{place[1]:04X}"
