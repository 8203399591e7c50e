"""A network of the warden's own, with nothing in it.

A socket belongs to the network namespace of whoever made it, wherever it is passed to:
those that a sandbox gets, and the ends of connections to it, would answer questions for
the host's interfaces and addresses. Our seccomp profile forbids to ask; here there is
nothing to tell, either. UNIX sockets with a path, the engine's among them, are reached
from any network.
"""

import os
from typing import Final

CLONE_NEWUSER: Final = 0x10000000
CLONE_NEWNET: Final = 0x40000000


def leave_network() -> bool:
    """Move this process to an empty network; false where that can't be, and it stays.

    Without rights it takes a user namespace: to be called before there are threads. With
    some, as ambient capabilities are, it stays: a user namespace would take them away.
    Sockets that are there already stay where they are. Twice is a new one each time.
    """
    try:
        _unshare(CLONE_NEWNET)
    except OSError:
        return _as_user()
    return True


def _as_user() -> bool:
    uid, gid = os.getuid(), os.getgid()
    if _has_capabilities():  # they would be lost, and with them what they let it read
        return False
    if not os.access("/proc/self/uid_map", os.W_OK):  # then nobody could say who we are
        return False
    try:
        _unshare(CLONE_NEWUSER | CLONE_NEWNET)
    except OSError:
        return False
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{uid} {uid} 1"),
        ("gid_map", f"{gid} {gid} 1"),
    ):
        with open(f"/proc/self/{name}", "wb") as file:
            file.write(text.encode())
    return True


def _has_capabilities() -> bool:
    with open("/proc/self/status", "rb") as file:
        return any(line.startswith(b"CapEff:") and int(line.split()[1], 16) for line in file)


def _unshare(flags: int) -> None:
    """As the system call; raises OSError."""
    if hasattr(os, "unshare"):  # Python 3.12
        os.unshare(flags)
        return
    import ctypes  # noqa: PLC0415  5 ms, while the sandbox comes up

    if ctypes.CDLL(None, use_errno=True).unshare(flags):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
