"""Whose a TCP connection is, for clients that speak nothing else.

The outer UNIX sockets lie in a folder that only this user, and root, can enter. A port
on loopback is open to every user of the machine, and would tell each of them what the
kernel puts out, which is signed but not secret. So the kernel of this machine is asked
who connects: https://www.kernel.org/doc/html/latest/networking/proc_net_tcp.html
"""

import os
import socket
import struct
from typing import Final

TABLES: Final = {"/proc/net/tcp": "", "/proc/net/tcp6": "0000000000000000FFFF0000"}
"""With what stands before an IPv4 address there: the peer's own socket may be of IPv6."""
ESTABLISHED: Final = "01"


def is_welcome(client: socket.socket) -> bool:
    """Whether a client may speak to the kernel; one that has left again may not."""
    if client.family != socket.AF_INET:
        return True
    try:
        near, far = client.getsockname(), client.getpeername()
    except OSError:
        return False
    return owner(far, near) in {os.geteuid(), 0}


def owner(here: tuple[str, int], there: tuple[str, int]) -> int | None:
    """Uid of the socket at ``here`` that is connected to ``there``; None where none is."""
    for table, before in TABLES.items():
        try:
            with open(table, encoding="ascii") as file:
                lines = file.read().splitlines()
        except OSError:  # no IPv6 on this machine
            continue
        wanted = [before + _in_table(here), before + _in_table(there), ESTABLISHED]
        for line in lines:
            fields = line.split()
            if fields[1:4] == wanted:
                return int(fields[7])
    return None


def _in_table(place: tuple[str, int]) -> str:
    """An IPv4 address and its port as the tables have them."""
    (number,) = struct.unpack("=I", socket.inet_aton(place[0]))
    return f"{number:08X}:{place[1]:04X}"
