"""Where a warden's process begins.

Started by a session with its order on standard input and its listening socket as
descriptor 3; ends by itself when the sandbox is gone.
"""

import os
import resource
import signal
import socket
import sys
import threading
from contextlib import suppress
from typing import Final

from kernel_provider.errors import UpgradedError
from kernel_provider.warden.ending import UNHEARD
from kernel_provider.warden.order import Order
from kernel_provider.warden.warden import Warden

LISTENER_FD: Final = 3
ADDRESS_SPACE: Final = 1 << 30
"""Bytes that a warden may map, whatever a sandbox sends it."""
FILES: Final = 4096
"""Descriptors: two for each connection of a client, which has five."""
STACK: Final = 1 << 20
"""Bytes of a thread's stack: else the session's own limit says, which may be any."""


def main() -> None:
    """Read the order, keep nothing of the session's, serve."""
    os.closerange(LISTENER_FD + 1, FILES)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the owner
    listener = socket.socket(fileno=LISTENER_FD)
    try:
        order = Order.from_json(sys.stdin.read())
    except UpgradedError as error:
        refuse(listener, error)
        return
    limit_self()
    Warden(order, listener).run()


def refuse(listener: socket.socket, error: UpgradedError) -> None:
    """Tell whoever has given the order, and leave nothing: it can't be understood."""
    import json  # noqa: PLC0415  on no usual way
    import shutil  # noqa: PLC0415

    folder = os.path.dirname(listener.getsockname())
    gone = {"event": "gone", "clean": True, "subscribers": 0}
    listener.settimeout(UNHEARD)
    with suppress(OSError):
        owner, _ = listener.accept()
        shutil.rmtree(folder)
        for event in ({"event": "failed", **error.to_wire()}, gone):
            owner.sendall(json.dumps(event).encode() + b"\n")


def limit_self() -> None:
    """Take only as much of the machine as a busy relay needs."""
    for what, amount in ((resource.RLIMIT_AS, ADDRESS_SPACE), (resource.RLIMIT_NOFILE, FILES)):
        _, most = resource.getrlimit(what)
        soft = amount if most == resource.RLIM_INFINITY else min(amount, most)
        resource.setrlimit(what, (soft, most))
    threading.stack_size(STACK)
