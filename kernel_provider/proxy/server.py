"""The socket itself: who calls, what is let through, and what is answered."""

import errno
import grp
import json
import os
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Final

from kernel_provider import names
from kernel_provider.ceilings import Ceilings, read_ceilings
from kernel_provider.engines import Mount
from kernel_provider.engines.docker import DockerEngine
from kernel_provider.errors import EngineError, ImageMissingError, ProxySocketError, SandboxError
from kernel_provider.proxy import bodies
from kernel_provider.proxy.bodies import LABEL_USER
from kernel_provider.proxy.calls import (
    CREATE,
    HEAD,
    IMAGE,
    LIST,
    START,
    UPDATE,
    Call,
    RefusedError,
    UnknownContainerError,
    body_length,
    filters,
    read_call,
)

PATIENCE: Final = 60.0
"""Seconds for a call, from its first byte to the last of its answer."""

LINGER: Final = 2.0
"""Seconds that who was answered has to take it."""

CONNECTIONS: Final = 32
"""Of one user at a time; a start has one."""

Tell = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class ProxyOrder:
    """What a proxy stands before, where it listens, and who may use it beside root.

    ``group`` is empty where that is whoever runs the proxy.
    """

    engine: str
    socket: Path
    group: str = ""
    policy_file: str = names.POLICY_FILE


class Proxy:
    """A listening proxy; ``tell`` gets a line for each call that is refused."""

    def __init__(self, order: ProxyOrder, tell: Tell) -> None:
        """Bind the socket. Raises ProxySocketError."""
        self._order = order
        self._tell = tell
        self._engine = DockerEngine(order.engine)
        self._open: Counter[int] = Counter()
        self._lock = threading.Lock()
        self._listener = _bind(order.socket, order.group)

    def serve(self) -> None:
        """Answer calls, each in a thread, until ``close``."""
        with suppress(OSError):  # closed
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve_one, args=(client,), daemon=True).start()

    def close(self) -> None:
        """Listen no more, and take the socket away. Twice is fine."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._order.socket.unlink(missing_ok=True)

    def _serve_one(self, client: socket.socket) -> None:
        with client, suppress(OSError):  # who hangs up needs no answer
            uid = _peer(client)
            with self._lock:
                self._open[uid] += 1
                there = self._open[uid]
            try:
                if there <= CONNECTIONS:
                    _say(client, self._answer(client, uid))
                elif there <= 2 * CONNECTIONS:  # those beyond are not even told
                    _say(client, _refusal(f"user {uid} has {CONNECTIONS} calls under way"))
            finally:
                with self._lock:
                    self._open[uid] -= 1

    def _answer(self, client: socket.socket, uid: int) -> bytes:
        """The engine's answer to a call, or a refusal that says why."""
        deadline = time.monotonic() + PATIENCE
        line = "a call"
        try:
            head, body = _read(client, deadline)
            line = head.split("\r\n")[0].rpartition(" ")[0][:200]
            return self._pass_on(read_call(head, body), uid, deadline)
        except UnknownContainerError as error:  # no news: who ends what has gone gets it, too
            return _refusal(str(error), error.status)
        except RefusedError as error:
            why = str(error)
        except SandboxError as error:
            why = str(error).partition("\n")[0]
        self._tell(f"refused to user {uid}: {line!r}: {why}")
        return _refusal(why)

    def _pass_on(self, call: Call, uid: int, deadline: float) -> bytes:
        """Pass a call on as far as this user may make it."""
        if call.container:
            self._check_owner(call.container, uid)
        call = self._held(call, uid)
        answer = _exchange(self._order.engine, call.to_bytes(), deadline)
        if call.route.name == START and answer.split(b" ", 2)[1:2] == [b"204"]:
            self._check_started(call.container, uid)
        return answer

    def _held(self, call: Call, uid: int) -> Call:
        """The same call, held to what this user may have."""
        name = call.route.name
        if name == CREATE:
            ceilings = self._ceilings()
            made = bodies.creation(
                call.body, name=call.query["name"], uids=self._uids, ceilings=ceilings
            )
            bodies.check_mounts(made.mounts, uid=uid, ceilings=ceilings)
            self._check_image(made.image_id, ceilings)
            made.body["Labels"][LABEL_USER] = str(uid)
            return replace(call, body=made.body)
        if name == IMAGE:
            with suppress(ImageMissingError):  # the engine says so itself
                self._check_ours(call.image)
        if name == UPDATE:
            return replace(call, body=bodies.new_quota(call.body, self._ceilings()))
        if name == LIST:
            ours = f"{names.LABEL}={names.KIND_KERNEL}"
            own = filters(ours, f"{LABEL_USER}={uid}")
            return replace(call, query={**call.query, "filters": own})
        return call

    @cached_property
    def _uids(self) -> tuple[int, int]:
        return self._engine.id_range()

    def _ceilings(self) -> Ceilings:
        """Read anew: what the administrator has changed holds from the next start on."""
        return read_ceilings({}, policy_file=self._order.policy_file)

    def _check_owner(self, container: str, uid: int) -> None:
        """Raise UnknownContainerError for what did not come through here from this user."""
        for row in self._engine.list(f"{LABEL_USER}={uid}"):
            if container in {row.id, row.name}:
                return
        msg = f"user {uid} has no sandbox {container[:12]}"
        raise UnknownContainerError(msg)

    def _check_ours(self, image: str) -> None:
        """Other images are nobody's business: their variables may be secret."""
        if self._engine.image(image).labels.get(names.LABEL) != names.KIND_IMAGE:
            msg = "its image is not one that executor-ml build has made"
            raise RefusedError(msg)

    def _check_image(self, image_id: str, ceilings: Ceilings) -> None:
        """One of ours, and of those that the administrator lists, as they are now."""
        self._check_ours(image_id)
        if ceilings.images is not None:
            allowed = set()
            for name in ceilings.images:
                with suppress(SandboxError):
                    allowed.add(self._engine.image(name).id)
            if image_id not in allowed:
                msg = f"the administrator allows these images: {', '.join(ceilings.images)}"
                raise RefusedError(msg)

    def _check_started(self, container: str, uid: int) -> None:
        """What was mounted is what was looked at, or the sandbox goes at once."""
        try:
            facts = self._engine.attributes(container)
            mounts = tuple(
                Mount(source=m["Source"], target=m["Target"]) for m in facts["HostConfig"]["Mounts"]
            )
            bodies.check_mounts(mounts, uid=uid, ceilings=self._ceilings())
            bodies.check_mounted(mounts, pid=facts["State"]["Pid"])
        except BaseException:
            self._engine.remove(container)
            raise


def _bind(path: Path, group: str) -> socket.socket:
    """Listen where nobody else does, for root and a group."""
    listener = socket.socket(socket.AF_UNIX)
    try:
        owner = _group_id(group)
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        if path.is_socket():
            with socket.socket(socket.AF_UNIX) as probe:
                if probe.connect_ex(os.fspath(path)) == 0:
                    raise FileExistsError(errno.EADDRINUSE, "somebody listens there already")
            path.unlink()
        old = os.umask(0o177)
        try:
            listener.bind(os.fspath(path))
        finally:
            os.umask(old)
        if owner is not None:
            os.chown(path, -1, owner)
            path.chmod(0o660)
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise ProxySocketError(socket=path, reason=error.strerror or str(error)) from error
    return listener


def _group_id(group: str) -> int | None:
    """The number of a group that is told by name or number; None of none."""
    if not group or group.isdecimal():
        return int(group) if group else None
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise FileNotFoundError(errno.ENOENT, f"there is no group {group}") from None


def _say(client: socket.socket, answer: bytes) -> None:
    """Answer; what was not read is read first, or the other side sees a broken connection."""
    client.settimeout(LINGER)
    client.sendall(answer)
    client.shutdown(socket.SHUT_WR)
    while client.recv(65536):
        pass


def _peer(client: socket.socket) -> int:
    """The uid of whoever connected, as the kernel of the machine knows it."""
    size = struct.calcsize("3i")
    _, uid, _ = struct.unpack("3i", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    return int(uid)


def _read(client: socket.socket, deadline: float) -> tuple[str, bytes]:
    """A request's head and body; raises RefusedError where either is too long or too late."""
    data = b""
    while b"\r\n\r\n" not in data:
        if len(data) > HEAD:
            msg = f"its head is longer than {HEAD} bytes"
            raise RefusedError(msg)
        data += _receive(client, deadline)
    head, _, body = data.partition(b"\r\n\r\n")
    text = head.decode("latin-1")
    length = body_length(text)
    parts = [body]
    there = len(body)
    while there < length:
        parts.append(_receive(client, deadline))
        there += len(parts[-1])
    if there > length:
        msg = "its body is longer than it says"
        raise RefusedError(msg)
    return text, b"".join(parts)


def _receive(client: socket.socket, deadline: float) -> bytes:
    client.settimeout(max(0.001, deadline - time.monotonic()))
    data = client.recv(65536)
    if not data:
        raise ConnectionResetError
    return data


def _exchange(path: str, request: bytes, deadline: float) -> bytes:
    """What the engine answers."""
    chunks = []
    try:
        with socket.socket(socket.AF_UNIX) as engine:
            engine.settimeout(max(0.001, deadline - time.monotonic()))
            engine.connect(path)
            engine.sendall(request)
            while chunk := engine.recv(65536):
                chunks.append(chunk)
    except OSError as error:
        reason = error.strerror or str(error)
        raise EngineError(action="answer the proxy", reason=reason) from error
    return b"".join(chunks)


def _refusal(why: str, status: int = RefusedError.status) -> bytes:
    body = json.dumps({"message": f"the proxy before the engine refuses this: {why}"}).encode()
    return (
        f"HTTP/1.0 {status} Refused\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    ).encode() + body
