"""Where a warden's process begins.

Started by a session with its order on standard input and its listening socket as
descriptor 3; ends by itself when the sandbox is gone.
"""

import os
import signal
import socket
import sys
from typing import Final

from kernel_provider.warden.order import Order
from kernel_provider.warden.warden import Warden

LISTENER_FD: Final = 3


def main() -> None:
    """Read the order, keep nothing of the session's, serve."""
    os.closerange(LISTENER_FD + 1, 4096)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the owner
    order = Order.from_json(sys.stdin.read())
    Warden(order, socket.socket(fileno=LISTENER_FD)).run()
