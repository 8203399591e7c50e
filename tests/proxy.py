"""A stand-in for the engine's socket: passes calls on, writes them down, can meddle."""

import json
import re
import shutil
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Edit = Callable[[Any], Any]

CREATE = "POST /containers/create"
START = "POST /containers/ID/start"
INSPECT = "GET /containers/ID/json"
UPDATE = "POST /containers/ID/update"
LOGS = "GET /containers/ID/logs"
KILL = "POST /containers/ID/kill"
REMOVE = "DELETE /containers/ID"


@dataclass
class EngineProxy:
    """What to do with calls; a call is named like ``POST /containers/ID/start``.

    ``answers`` gives a status instead of passing a call on; ``requests`` and ``replies``
    change the JSON that goes through, ``spoils`` the bytes of an answer; ``gates`` hold a
    call until their event is set. All are found by the call's name; ``first`` of its calls
    go through untouched. Where some are ``allowed``, every other call is refused.
    """

    engine: str
    path: str
    calls: list[str] = field(default_factory=list)
    answers: dict[str, int] = field(default_factory=dict)
    requests: dict[str, Edit] = field(default_factory=dict)
    replies: dict[str, Edit] = field(default_factory=dict)
    spoils: dict[str, Callable[[bytes], bytes]] = field(default_factory=dict)
    allowed: frozenset[str] = frozenset()
    gates: dict[str, threading.Event] = field(default_factory=dict)
    arrived: dict[str, threading.Event] = field(default_factory=dict)
    first: dict[str, int] = field(default_factory=dict)

    def hold(self, call: str) -> threading.Event:
        """Let a call wait at the gate until the event that is given back is set."""
        self.gates[call] = threading.Event()
        self.arrived[call] = threading.Event()
        return self.gates[call]

    def serve(self, client: socket.socket) -> None:
        """Answer one call, as HTTP/1.0: one for each connection."""
        with client, suppress(OSError):
            head, body = read_message(client)
            method, target, _ = head.split("\r\n")[0].split(" ")
            call = f"{method} {plain(target)}"
            self.calls.append(call)
            if self.calls.count(call) <= self.first.get(call, 0):
                call = ""
            if call in self.gates:
                self.arrived[call].set()
                self.gates[call].wait(30)
            if self.allowed and call not in self.allowed:
                client.sendall(answer(403, {"message": f"the proxy refuses {call}"}))
                return
            if call in self.answers:
                client.sendall(answer(self.answers[call], {"message": "the test says no"}))
                return
            if call in self.requests:
                body = json.dumps(self.requests[call](json.loads(body))).encode()
                head = re.sub(r"Content-Length: \d+", f"Content-Length: {len(body)}", head)
            with socket.socket(socket.AF_UNIX) as engine:
                engine.connect(self.engine)
                engine.sendall(head.encode() + b"\r\n\r\n" + body)
                data = b"".join(iter(lambda: engine.recv(65536), b""))
            if call in self.replies:
                front, _, found = data.partition(b"\r\n\r\n")
                status = int(front.split(b" ")[1])
                data = answer(status, self.replies[call](json.loads(found)))
            client.sendall(self.spoils.get(call, bytes)(data))


def read_message(source: socket.socket) -> tuple[str, bytes]:
    """A request's head and body."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += source.recv(65536)
    head, _, body = data.partition(b"\r\n\r\n")
    length = re.search(rb"Content-Length: (\d+)", head)
    while length and len(body) < int(length[1]):
        body += source.recv(65536)
    return head.decode(), body


def answer(status: int, content: object) -> bytes:
    """An HTTP answer of JSON."""
    body = json.dumps(content).encode()
    return f"HTTP/1.0 {status} X\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def plain(target: str) -> str:
    """A path without its version, query and the ids and names in it."""
    path = target.partition("?")[0].removeprefix("/v1.41")
    path = re.sub(r"^/containers/[0-9a-f]{12,64}", "/containers/ID", path)
    return re.sub(r"^/images/.*/json$", "/images/NAME/json", path)


@contextmanager
def proxied(engine: str, *, everybody: bool = False) -> Iterator[EngineProxy]:
    """A proxy before the engine's socket at ``engine``, in a thread.

    It is for this process's user, or for ``everybody``.
    """
    folder = tempfile.mkdtemp(prefix="exp-", dir="/tmp")
    proxy = EngineProxy(engine=engine, path=f"{folder}/s")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(proxy.path)
    if everybody:
        Path(folder).chmod(0o755)
        Path(proxy.path).chmod(0o666)
    listener.listen(64)

    def accept() -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                threading.Thread(target=proxy.serve, args=(client,), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        for gate in proxy.gates.values():
            gate.set()
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(5)
        shutil.rmtree(folder)
