"""One container from ``create`` to ``gone``, and the talk with its guardian.

Everything that blocks on the engine is here. Each step is undone by ``remove``,
whichever of them was the last to succeed.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from kernel_provider import names
from kernel_provider.engines import ContainerState, Engine, NameTakenError, SandboxSpec
from kernel_provider.engines.docker import CPU_PERIOD
from kernel_provider.errors import ImageProtocolError, LimitNotHeldError, StartError
from kernel_provider.warden import cgroup, rendezvous

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

UID_TRIES: Final = 64
GONE_WITHIN: Final = 10.0


class Sandbox:
    """Creates, checks, limits, ends and removes one container."""

    def __init__(self, engine: Engine, spec: SandboxSpec, *, folder: str, address: str) -> None:
        self._address = address
        self._memo = f"{os.path.dirname(folder)}/uids"
        self.engine = engine
        self.spec = replace(
            spec, labels={**spec.labels, names.LABEL_WARDEN: cgroup.identity(os.getpid())}
        )
        self.container = ""
        self.image_id = ""
        self.uid = 0
        self.pid = 0
        self.group: cgroup.Cgroup | None = None
        self.guardian: socket.socket | None = None
        self._meeting = f"{folder}/r"
        self.sockets = rendezvous.InnerSockets(f"{folder}/i")
        self.listener = rendezvous.listen_for_guardian(self._meeting)

    def launch(self) -> None:
        """Create and start the container, and find its control group.

        Raises EngineError, ImageMissingError, ImageProtocolError, LimitNotHeldError.
        """
        image = self.engine.image(self.spec.image)
        found = image.labels.get(names.LABEL_PROTOCOL, "none")
        if found != str(names.PROTOCOL):
            raise ImageProtocolError(image=self.spec.image, found=found, expected=names.PROTOCOL)
        self.image_id = image.id
        self._create(image.id)
        self.engine.start(self.container)
        state = self.engine.inspect(self.container)
        if state is None or not state.running:
            failure = self.failure("it ended at once", state)
            raise failure
        self.pid = state.pid
        try:
            self.group = cgroup.Cgroup(state.pid)
        except OSError as error:
            raise LimitNotHeldError(
                key="all limits", asked="readable", found="no control group"
            ) from error

    def _create(self, image_id: str) -> None:
        """A name tells the uid, and a name that is taken means the next uid (D1)."""
        first, count = self._id_range()
        offset = int.from_bytes(os.urandom(4), "big") % count  # engines don't meet by habit
        for step in range(UID_TRIES):
            uid = first + (offset + step) % count
            if uid == os.getuid():
                continue
            try:
                self.container = self.engine.create(self.spec, image_id=image_id, uid=uid)
            except NameTakenError:
                continue
            self.uid = uid
            return
        raise StartError(reason=f"{UID_TRIES} uids in a row are in use", last_words="")

    def _id_range(self) -> tuple[int, int]:
        """Ask the engine once in its life: a third of a fast start would go into it.

        Its life is told by its socket, which every engine makes anew when it starts.
        """
        facts = os.stat(self._address)
        life = [self._address, facts.st_dev, facts.st_ino, facts.st_ctime_ns]
        try:
            with open(self._memo, encoding="utf-8") as file:
                known, first, count = json.load(file)
            if known == life:
                return int(first), int(count)
        except (OSError, ValueError, TypeError):
            pass
        first, count = self.engine.id_range()
        scratch = f"{self._memo}.{os.getpid()}"
        with open(scratch, "w", encoding="utf-8") as file:
            json.dump([life, first, count], file)
        os.replace(scratch, self._memo)
        return first, count

    def meet(self) -> None:
        """Take the guardian's connection, check who it is, hand the sockets over, once.

        Raises StartError where it is anybody but the container's PID 1.
        """
        connection, _ = self.listener.accept()
        rendezvous.close_rendezvous(self.listener, self._meeting)
        if not rendezvous.is_pid_one_of(connection, pid=self.pid, container=self.container):
            connection.close()
            raise StartError(reason="a stranger came to the rendezvous", last_words="")
        self.sockets.hand_over(connection)
        connection.setblocking(False)  # noqa: FBT003
        self.guardian = connection

    def close_limits(self) -> None:
        """Limit processor time and read every limit back from the kernel (D4, D6)."""
        if self.spec.cpus_open:
            self.engine.limit_cpu(self.container, self.spec.cpus)
        assert self.group is not None
        asked = {
            "memory": self.spec.memory,
            "memory+swap": self.spec.memory,
            "pids": self.spec.pids,
            "cpu_quota": int(self.spec.cpus * CPU_PERIOD),
            "cpu_period": CPU_PERIOD,
        }
        found = self.group.limits()
        wrong = cgroup.mismatch(found, asked)
        if wrong is not None:
            raise LimitNotHeldError(key=wrong, asked=asked[wrong], found=found[wrong])

    def failure(self, reason: str, state: ContainerState | None = None) -> StartError:
        """Word a failed start: state, exit code, the last lines that were printed."""
        state = state or self.engine.inspect(self.container)
        words = ""
        if state is not None and not state.running:
            words += f" (exit code {state.exit_code}{', out of memory' * state.oom_killed})"
            words += f"; {state.error}" if state.error else ""
        lines = self.engine.last_lines(self.container, 8).strip()
        if lines:
            words += "; its last words: " + " | ".join(lines.splitlines()).replace("%", "")
        return StartError(reason=reason, last_words=words)

    def ended(self, patience: float) -> ContainerState | None:
        """Wait until the engine, too, says that PID 1 is gone; None if it never does."""
        deadline = time.monotonic() + patience
        while True:
            state = self.engine.inspect(self.container)
            if state is None or not state.running or time.monotonic() > deadline:
                return state
            time.sleep(0.01)

    def remove(self) -> bool:
        """Kill and remove, and look: true when process and control group are empty.

        An engine has been seen to forget a container whose processes ran on, so its
        word is not enough (D3).
        """
        if self.guardian is not None:
            self.guardian.close()
            self.guardian = None
        if self.listener.fileno() >= 0:
            rendezvous.close_rendezvous(self.listener, self._meeting)
        if not self.container:
            return True
        self.engine.remove(self.container)
        return _until(self._is_gone, GONE_WITHIN)

    def _is_gone(self) -> bool:
        if self.group is not None and self.group.processes():
            return False
        return not self.pid or not cgroup.is_alive(self.pid) or not self._is_ours()

    def _is_ours(self) -> bool:
        """Whether the pid still belongs to this container and not to a newcomer."""
        try:
            with open(f"/proc/{self.pid}/cgroup", encoding="ascii") as file:
                return self.container in file.read()
        except OSError:
            return False


def _until(condition: Callable[[], bool], patience: float) -> bool:
    deadline = time.monotonic() + patience
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True
