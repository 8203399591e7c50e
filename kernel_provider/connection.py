"""The connection file of a client that starts kernels by itself, read and obeyed.

https://jupyter-client.readthedocs.io/en/stable/kernels.html#connection-files
"""

import errno
import ipaddress
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from kernel_provider.errors import SandboxError
from kernel_provider.outer import Outer
from kernel_provider.warden.rendezvous import BACKLOG, CHANNELS

SCHEME: Final = "hmac-sha256"
PORTS: Final = range(1, 1 << 16)
LARGEST: Final = 64 * 1024
"""Bytes of a connection file at most."""
PATIENCE: Final = 5.0
"""Seconds for an earlier kernel of the same client to let go of its ports."""
AGAIN: Final = 0.05


class ConnectionInfoError(SandboxError):
    """What the client asks of a connection cannot be had, or not safely."""

    exit_code = 65
    summary = "this client's kernel cannot be started: {reason} (connection file {path})"
    fix = "{remedy}"


@dataclass(frozen=True, kw_only=True)
class Connection:
    """Where the client expects its kernel: ``ports`` in the order of the channels.

    ``ip`` is an IPv4 address for ``tcp``, and for ``ipc`` what the sockets' paths begin
    with. ``key`` signs messages; ``kernel_name`` is the client's own word.
    """

    path: str
    transport: str
    ip: str
    ports: tuple[int, ...]
    key: str
    kernel_name: str

    def refuse(self, reason: str, remedy: str) -> ConnectionInfoError:
        """An error about this file."""
        return ConnectionInfoError(path=self.path, reason=reason, remedy=remedy)


def read_connection(path: str) -> Connection:
    """Read a connection file; raises ConnectionInfoError where it can't be obeyed."""
    said = _read(path)
    for reason, change in _problems(said):
        remedy = f"in the client's settings for kernels, {change}"
        raise ConnectionInfoError(path=path, reason=reason, remedy=remedy)
    return Connection(
        path=path,
        transport=said.get("transport", "tcp"),
        ip=_address(said),
        ports=tuple(said[f"{channel}_port"] for channel in CHANNELS),
        key=said["key"],
        kernel_name=str(said.get("kernel_name") or ""),
    )


def _read(path: str) -> dict[str, Any]:
    remedy = "executor-ml launch is for clients that write such a file; see its --help"
    try:
        with Path(path).open("rb") as file:
            said = json.loads(file.read(LARGEST))
    except OSError as error:
        reason = f"the connection file cannot be read: {error.strerror}"
        raise ConnectionInfoError(path=path, reason=reason, remedy=remedy) from error
    except (ValueError, RecursionError) as error:
        reason = "the connection file is not JSON"
        raise ConnectionInfoError(path=path, reason=reason, remedy=remedy) from error
    if not isinstance(said, dict):
        reason = "the connection file holds no JSON object"
        raise ConnectionInfoError(path=path, reason=reason, remedy=remedy)
    return said


def _problems(said: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What cannot be obeyed, each with what the client's settings for kernels should be."""
    if any(name.startswith("curve_") and value for name, value in said.items()):
        yield "CurveZMQ encryption is not supported", "set transport_encryption to disabled"
    scheme = said.get("signature_scheme", SCHEME)
    if scheme != SCHEME:
        yield f"messages signed by {scheme!r} are not supported", f"take {SCHEME}"
    if not (isinstance(said.get("key"), str) and said["key"]):
        yield "it has no key, so anybody could run code", "let it make a key for each kernel"
    transport = said.get("transport", "tcp")
    if transport not in {"tcp", "ipc"}:
        yield f"the transport {transport!r} is not supported", "take tcp or ipc"
    elif not _address(said):
        reason = f"{said.get('ip')!r} is no address of this machine's loopback"
        yield reason, "take 127.0.0.1, since a sandbox serves no other machine"
    numbers = [said.get(f"{channel}_port") for channel in CHANNELS]
    for channel, number in zip(CHANNELS, numbers, strict=True):
        if type(number) is not int or number not in PORTS:
            yield f"{channel}_port is {number!r}, which is no port", "let it choose five ports"
    if len(set(map(str, numbers))) < len(numbers):
        yield "two of its channels have the same port", "let it choose five ports"


def _address(said: dict[str, Any]) -> str:
    """The address, or what paths begin with; empty where it is none that we serve."""
    ip = said.get("ip") or "127.0.0.1"
    if said.get("transport") == "ipc":
        return os.path.abspath(ip) if said.get("ip") and isinstance(ip, str) else ""  # noqa: PTH100
    if ip == "localhost":
        return "127.0.0.1"
    try:
        found = ipaddress.IPv4Address(ip)
    except ValueError:
        return ""
    return str(found) if found.is_loopback else ""


def bind(connection: Connection) -> Outer:
    """Bind the five places where the client expects its kernel.

    TCP ports do not listen yet: clients look whether they are taken, to learn whether
    their kernel is ready. Waits up to ``PATIENCE``; raises ConnectionInfoError.
    """
    deadline = time.monotonic() + PATIENCE
    tcp = connection.transport == "tcp"
    paths = () if tcp else [f"{connection.ip}-{port}" for port in connection.ports]
    outer = Outer(paths=paths)
    with ExitStack() as failing:
        failing.callback(outer.close)
        if tcp:
            for port in connection.ports:
                outer.listeners.append(_bind_port(connection, port, deadline))
        for path in paths:
            outer.listeners.append(_bind_path(connection, path))
        failing.pop_all()
    return outer


def _bind_port(connection: Connection, port: int, deadline: float) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # as those it accepts
    while True:
        try:
            listener.bind((connection.ip, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE and time.monotonic() < deadline:
                time.sleep(AGAIN)
                continue
            listener.close()
            reason = f"port {port} of {connection.ip} cannot be had: {error.strerror}"
            raise connection.refuse(reason, "start the kernel again, with other ports") from error
        else:
            return listener


def _bind_path(connection: Connection, path: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if Path(path).is_socket():  # an earlier kernel's
            Path(path).unlink()
        listener.bind(path)
        Path(path).chmod(0o600)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        reason = f"no socket can be made at {path}: {error.strerror or error}"
        raise connection.refuse(reason, "take a short path to a folder of your own") from error
    return listener
