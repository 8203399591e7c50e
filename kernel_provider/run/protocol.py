"""What a kernel may say to a run: messages as Jupyter has them, and nothing else.

Code in a notebook knows the key that signs messages and may send any itself, so each is
looked at before Jupyter's libraries take it for what it says that it is.
https://jupyter-client.readthedocs.io/en/stable/messaging.html
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import zmq
from jupyter_client.asynchronous.client import AsyncKernelClient
from jupyter_client.channels import AsyncZMQSocketChannel
from nbclient.exceptions import CellControlSignal
from traitlets import Type

from kernel_provider.run.model import KernelProtocolError

DEEPEST: Final = 100
"""Levels of a message's content: Jupyter's libraries fail at some hundreds."""
WAITING: Final = 20
"""Messages of each channel that may wait in this process; more wait at the kernel's end."""
LONGEST: Final = 200
"""Characters of a library's error that are told."""

_HEADER: Final = {"msg_id": str, "msg_type": str}
_DATA: Final = {"data": dict, "metadata": dict}
_COMM: Final = {"comm_id": str, "data": dict}
FIELDS: Final[Mapping[str, Mapping[str, type]]] = {
    "stream": {"name": str, "text": str},
    "status": {"execution_state": str},
    "display_data": _DATA,
    "update_display_data": _DATA,
    "execute_result": _DATA,
    "error": {"ename": str, "evalue": str, "traceback": list},
    "execute_reply": {"status": str},
    "kernel_info_reply": {"language_info": dict},
    "comm_open": {**_COMM, "target_name": str},
    "comm_msg": _COMM,
}
"""What a message's content has, by its type; of other messages nothing is used."""
OPTIONAL: Final[Mapping[str, type]] = {
    "execution_count": int,
    "transient": dict,
    "ename": str,
    "evalue": str,
    "traceback": list,
}
"""What any content may have, or have as null."""


def bound(context: zmq.Context[Any], message_size: int) -> None:
    """Have sockets that are made from now on take no more than they must (bytes).

    The relay sees to it that the kernel keeps to that; this is for a relay that fails.
    """
    context.setsockopt(zmq.MAXMSGSIZE, message_size)
    context.setsockopt(zmq.RCVHWM, WAITING)


@contextmanager
def judging(report: Callable[[KernelProtocolError], None]) -> Iterator[None]:
    """Whatever fails in here, the kernel's message was no message: raise and report that."""
    try:
        yield
    except (CellControlSignal, KernelProtocolError):
        raise
    except Exception as error:
        text = " ".join(f"{type(error).__name__}: {error}".replace("%", "").split())
        offence = KernelProtocolError(reason=text[:LONGEST])
        report(offence)
        raise offence from error


def check(message: Mapping[str, Any]) -> None:
    """Look whether a message has what its readers rely on; raise ValueError or TypeError."""
    header, content = message["header"], message["content"]
    _has(header, _HEADER, "header")
    for part in ("parent_header", "metadata", "content"):
        _has(message, {part: dict}, "message")
    kind = message["msg_type"]
    _has(content, FIELDS.get(kind, {}), kind)
    given = {name: kind for name, kind in OPTIONAL.items() if content.get(name) is not None}
    _has(content, given, kind)
    lines = content.get("traceback") or ()
    if not all(isinstance(line, str) for line in lines):
        msg = "a traceback that is no list of texts"
        raise TypeError(msg)
    measure(content)


def _has(mapping: Mapping[str, Any], fields: Mapping[str, type], what: str) -> None:
    for name, kind in fields.items():
        if not isinstance(mapping.get(name), kind):
            msg = f"a {what:.40} whose {name} is not of type {kind.__name__}"
            raise TypeError(msg)


def measure(value: Any, depth: int = 0) -> None:
    """Raise ValueError where a value is nested too deeply, or its text can't be saved."""
    if depth > DEEPEST:
        msg = f"a content of more than {DEEPEST} levels"
        raise ValueError(msg)
    if isinstance(value, dict):
        for key, item in value.items():
            str(key).encode()
            measure(item, depth + 1)
    elif isinstance(value, list):
        for item in value:
            measure(item, depth + 1)
    elif isinstance(value, str):
        value.encode()  # half a character can't be saved


class Channel(AsyncZMQSocketChannel):
    """A channel whose messages are looked at; an offence is ``report``-ed and raised."""

    report: Callable[[KernelProtocolError], None]

    async def _recv(  # type: ignore[override, unused-ignore]
        self, **kwargs: Any
    ) -> dict[str, Any]:
        parts = await self.socket.recv_multipart(**kwargs)
        with judging(self.report):
            _, rest = self.session.feed_identities(parts)
            message: dict[str, Any] = self.session.deserialize(rest)
            check(message)
        return message


class Client(AsyncKernelClient):
    """A client that leaves it to the runner to see that a kernel died, or lies.

    nbclient asks once a second whether it lives, and stops listening when the answer is
    no; the last words may come after that. ``offence`` is the first that was met.
    """

    shell_channel_class = Type(Channel)
    iopub_channel_class = Type(Channel)
    stdin_channel_class = Type(Channel)
    control_channel_class = Type(Channel)
    offence: KernelProtocolError | None = None

    def start_channels(self, *args: Any, **kwargs: Any) -> None:
        """As Jupyter's, without the heartbeat: that it beats says nothing."""
        for name in ("shell", "iopub", "stdin", "control"):
            getattr(self, f"{name}_channel").report = self.report
        super().start_channels(*args, **{**kwargs, "hb": False})

    def report(self, offence: KernelProtocolError) -> None:
        """Keep the first."""
        self.offence = self.offence or offence

    async def is_alive(self) -> bool:  # type: ignore[override, unused-ignore]
        """Yes, as far as nbclient needs to know."""
        return True
