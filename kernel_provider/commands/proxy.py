"""``executor-ml proxy``: a socket before the engine's, for kernels alone."""

import argparse
import os
import signal
import sys
from pathlib import Path
from types import FrameType

from kernel_provider.engines.docker import find_socket
from kernel_provider.proxy.server import Proxy, ProxyOrder
from kernel_provider.setup import engine_host
from kernel_provider.steps import Steps


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Fill in the command's arguments."""
    parser.description = (
        "Listen at a socket of its own, and pass on to the engine what kernels need and "
        "nothing else: the calls of a kernel's life, with the bodies that this package "
        "sends, under the ceilings of /etc/executor-ml/policy.toml, and each user's to "
        "their own sandboxes. Whoever may use it sets DOCKER_HOST to it, and is not root by "
        "that. It runs until Ctrl-C or SIGTERM, needs the rights of the engine's users, and "
        "tells on standard error what it refuses."
    )
    parser.add_argument(
        "--socket",
        type=Path,
        required=True,
        metavar="PATH",
        help="where it listens, such as /run/executor-ml-proxy/docker.sock",
    )
    parser.add_argument(
        "--group", default="", metavar="NAME", help="who may use it, beside the user it runs as"
    )


def main(args: argparse.Namespace) -> int:
    """Serve until a signal; raises SandboxError with the reason where it can't."""
    engine = find_socket(os.environ)
    version = engine_host.version(engine)
    steps = Steps(sys.stderr)
    order = ProxyOrder(engine=engine, socket=args.socket.absolute(), group=args.group)
    proxy = Proxy(order, steps.say)

    def end(_number: int, _frame: FrameType | None) -> None:
        proxy.close()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    steps.say(f"Docker {version} at {engine}, for kernels: DOCKER_HOST=unix://{order.socket}")
    try:
        proxy.serve()
    finally:
        proxy.close()
    return 0
