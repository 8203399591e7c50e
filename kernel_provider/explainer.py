"""What stands in for a kernel that could not be restarted: it runs nothing and explains.

JupyterLab says nothing at all when a restart fails (jupyterlab#16835). So the same
sockets are served by this: every request to run something is answered by an error that
bears the reason and its remedy. There is nothing here that could execute code.
"""

import os
import socket
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Final

import zmq
from jupyter_client.session import Session as Messages

from kernel_provider import __version__
from kernel_provider.errors import SandboxError
from kernel_provider.warden.rendezvous import CHANNELS

LINGER: Final = 200
"""Milliseconds for the last answer to leave."""

AFTER: Final = "Nothing was run: the kernel could not be restarted. Mend that, and restart it."

_EMPTY: Final[Mapping[str, Mapping[str, Any]]] = {
    "complete_request": {"matches": [], "cursor_start": 0, "cursor_end": 0, "metadata": {}},
    "inspect_request": {"found": False, "data": {}, "metadata": {}},
    "history_request": {"history": []},
    "comm_info_request": {"comms": {}},
    "interrupt_request": {},
}
"""What is asked beside code, answered by nothing."""

_ABOUT: Final = {
    "protocol_version": "5.3",
    "implementation": "executor-ml",
    "implementation_version": __version__,
    "language_info": {
        "name": "python",
        "version": "3",
        "mimetype": "text/x-python",
        "file_extension": ".py",
        "pygments_lexer": "ipython3",
        "codemirror_mode": {"name": "ipython", "version": 3},
        "nbconvert_exporter": "python",
    },
    "banner": "This kernel could not be restarted, and runs nothing.",
    "help_links": [],
}


class Explainer:
    """Serves a kernel's outer sockets, which stay their owner's, in a thread of its own.

    ``over`` turns true when a client asks for the shutdown, as before a restart.
    """

    def __init__(self, outer: Sequence[socket.socket], *, key: str, error: SandboxError) -> None:
        self.over = False
        self._error = error
        self._messages = Messages(key=key.encode(), signature_scheme="hmac-sha256")
        self._waker, self._sleeper = socket.socketpair()
        self._context = zmq.Context()
        kinds = (zmq.ROUTER, zmq.PUB, zmq.ROUTER, zmq.ROUTER, zmq.ROUTER)
        self._sockets = {
            name: self._serve(listener, kind, name)
            for name, listener, kind in zip(CHANNELS, outer, kinds, strict=True)
        }
        self._thread = threading.Thread(target=self._run, name="executor-ml-explainer", daemon=True)
        self._thread.start()

    def _serve(self, listener: socket.socket, kind: int, name: str) -> zmq.Socket[bytes]:
        listener.setblocking(False)  # noqa: FBT003
        made = self._context.socket(kind)
        made.linger = LINGER
        made.setsockopt(zmq.USE_FD, os.dup(listener.fileno()))  # libzmq closes it
        made.bind(f"ipc://{name}")
        return made

    def stop(self) -> None:
        """Hang up on everybody; takes up to ``LINGER``. Twice is fine."""
        self._waker.close()
        self._thread.join()

    def _run(self) -> None:
        poller = zmq.Poller()
        for name in ("shell", "control", "hb"):
            poller.register(self._sockets[name], zmq.POLLIN)
        poller.register(self._sleeper.fileno(), zmq.POLLIN)
        try:
            while True:
                ready = dict(poller.poll())
                if self._sleeper.fileno() in ready:
                    return
                for name in ("shell", "control"):
                    if self._sockets[name] in ready:
                        self._answer(self._sockets[name])
                if self._sockets["hb"] in ready:
                    self._sockets["hb"].send_multipart(self._sockets["hb"].recv_multipart())
        finally:
            self._sleeper.close()
            self._context.destroy(linger=LINGER)

    def _answer(self, channel: zmq.Socket[bytes]) -> None:
        """Take one request and answer it; what is not signed by the key is dropped."""
        frames = channel.recv_multipart()
        try:
            idents, parts = self._messages.feed_identities(frames)
            request = self._messages.deserialize(parts)
        except (ValueError, TypeError):
            return
        kind = request["header"]["msg_type"]
        if not kind.endswith("_request"):
            return
        self._publish("status", {"execution_state": "busy"}, request)
        if kind == "execute_request" and not request["content"].get("silent"):
            self._publish("error", self._said(), request)
        content = self._content(kind, request["content"])
        reply = f"{kind.removesuffix('_request')}_reply"
        self._messages.send(channel, reply, content, parent=request, ident=idents)
        self._publish("status", {"execution_state": "idle"}, request)
        self.over = self.over or kind == "shutdown_request"

    def _publish(self, kind: str, content: Mapping[str, Any], request: dict[str, Any]) -> None:
        iopub = self._sockets["iopub"]
        self._messages.send(iopub, kind, dict(content), parent=request, ident=kind.encode())

    def _content(self, kind: str, asked: Mapping[str, Any]) -> dict[str, Any]:
        """What answers a request of that kind."""
        if kind == "kernel_info_request":
            return {"status": "ok", **_ABOUT}
        if kind == "is_complete_request":
            return {"status": "unknown"}
        if kind == "shutdown_request":
            return {"status": "ok", "restart": bool(asked.get("restart"))}
        if kind in _EMPTY:
            return {"status": "ok", **_EMPTY[kind]}
        return {"status": "error", "execution_count": 0, **self._said()}

    def _said(self) -> dict[str, Any]:
        """The error as a cell shows it."""
        name, text = type(self._error).__name__, str(self._error)
        summary, _, fix = text.partition("\n")
        told = f"\x1b[0;31m{name}\x1b[0m: {summary}"
        return {"ename": name, "evalue": text, "traceback": [told, fix, AFTER]}
