"""``executor-ml launch``: what clients run that know nothing of provisioners.

VS Code and others start a kernelspec's ``argv`` themselves, on this machine. A plain
ipykernel there would run notebooks without a sandbox, so ``argv`` names this command:
it starts the same sandbox, or nothing at all (D6).
"""

import argparse
import asyncio
import os
import signal
import sys
from typing import Final

from kernel_provider import kernelspecs
from kernel_provider.connection import Connection, read_connection
from kernel_provider.launcher import Launch, serve
from kernel_provider.link import STOPPED

UNNAMED: Final = "neither the kernelspec nor the client says which kernelspec is meant"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Fill in the command's arguments."""
    parser.description = (
        "Start a kernel for a client that starts kernels by itself, such as VS Code, at the "
        "TCP ports (127.0.0.1 only) or sockets of its connection file, and stay until the "
        "kernel has ended. SIGINT interrupts it, SIGTERM ends it, and however this command "
        "ends, the sandbox ends with it. Clients that support kernel provisioners "
        "(JupyterLab, jupyter console, nbclient, papermill) never call this."
    )
    parser.add_argument(
        "--kernel", metavar="NAME", help="the kernelspec (default: what the connection file says)"
    )
    parser.add_argument("connection_file", help="the connection file that the client wrote")


def main(args: argparse.Namespace) -> int:
    """Run the kernel; its exit code, or that of SIGTERM. Raises SandboxError."""
    connection = read_connection(args.connection_file)
    spec = kernelspecs.named(args.kernel or _named_by(connection))
    launch = Launch(kernel=spec.name, policy=spec.launched(os.environ), connection=connection)
    death = asyncio.run(serve(launch, os.environ))
    if death == STOPPED:
        return 128 + signal.SIGTERM
    if not death.expected:
        print(f"executor-ml: {death}", file=sys.stderr)
    return death.exit_code


def _named_by(connection: Connection) -> str:
    if not connection.kernel_name:
        remedy = "write it anew: executor-ml install --name NAME --replace, with its options"
        raise connection.refuse(UNNAMED, remedy)
    return connection.kernel_name
