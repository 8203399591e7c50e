"""One container from ``create`` to ``gone``, and the talk with its guardian.

Everything that blocks on the engine is here. Each step is undone by ``remove``,
whichever of them was the last to succeed.
"""

from __future__ import annotations

import math
import os
import time
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from kernel_provider import names
from kernel_provider.engines import ContainerState, Engine, NameTakenError, SandboxSpec
from kernel_provider.engines.docker import CPU_PERIOD, NAME_PREFIX
from kernel_provider.errors import (
    EngineDiskError,
    EngineError,
    EngineUnreachableError,
    GpuError,
    ImageProtocolError,
    LimitNotHeldError,
    PreloadError,
    SandboxError,
    SandboxLeftError,
    StartError,
    StartMemoryError,
    WorkspaceError,
    of_runtime_folder,
)
from kernel_provider.trace import OFF, Trace
from kernel_provider.warden import cgroup, rendezvous, uids

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from kernel_provider.warden.death import Cause, Facts

UID_TRIES: Final = 64
FULL: Final = 1 << 20
"""Bytes of free room below which an engine's disk is full: a container takes some."""
GONE_WITHIN: Final = 10.0
ENDED_WITHIN: Final = 0.5
"""Seconds for a sandbox to end by itself before the engine is asked."""
LOGGED_WITHIN: Final = 1.0
DYING: Final = 0.1
"""Seconds from what a dying process can't do any more to the end that can be seen."""
ANSWERED_WITHIN: Final = 0.8
"""Seconds that an engine gets to say anything; it does so in a thousandth, unless it ends."""
TOLD_WITHIN: Final = 2.0
"""Seconds that an engine gets to say how a container ended, and as many for its log."""


class EndedError(Exception):
    """A step failed because PID 1 has ended: how it did is told by whoever watches it."""


class Sandbox:
    """Creates, checks, limits, ends and removes one container."""

    def __init__(
        self,
        engine: Engine,
        spec: SandboxSpec,
        *,
        folder: str,
        address: str,
        trace: Trace = OFF,
    ) -> None:
        """Listen for the guardian; nothing is asked of the engine. Raises RuntimeFolderError."""
        self._address = address
        self._trace = trace
        root = os.path.dirname(folder)
        self._memo = f"{root}/uids"
        self.engine = engine
        self.spec = replace(
            spec, labels={**spec.labels, names.LABEL_WARDEN: cgroup.identity(os.getpid())}
        )
        self.container = ""
        self.takes_workspace = False
        self.image_id = ""
        self.uid = 0
        self.pid = 0
        self.group: cgroup.Cgroup | None = None
        self.guardian: socket.socket | None = None
        self._folder = folder
        self._meeting = f"{folder}/r"
        self._engine_life: uids.Life = []
        self.removed = False
        self.left: SandboxLeftError | None = None
        try:
            self.listener = rendezvous.listen_for_guardian(self._meeting)
        except OSError as error:
            raise of_runtime_folder(root, error) from error

    def bind(self) -> None:
        """Make the sockets that the kernel will serve, in this process's network.

        Before the guardian is met. Raises RuntimeFolderError.
        """
        try:
            self.sockets = rendezvous.InnerSockets(f"{self._folder}/i")
        except OSError as error:
            raise of_runtime_folder(os.path.dirname(self._folder), error) from error

    def launch(self, until: float) -> None:
        """Create and start the container by then (monotonic), and find its control group.

        Raises EngineError, EngineDiskError, GpuError, ImageMissingError,
        ImageProtocolError, LimitNotHeldError, StartError, and EndedError where its PID 1
        has ended already.
        """
        engine = self.engine.by(until)
        image = engine.image(self.spec.image)
        found = image.labels.get(names.LABEL_PROTOCOL, "none")
        if found != str(names.PROTOCOL):
            raise ImageProtocolError(image=self.spec.image, found=found, expected=names.PROTOCOL)
        self.image_id = image.id
        self.takes_workspace = names.LABEL_WORKSPACE in image.labels
        self._trace.mark("warden: image inspected")
        try:
            self._create(engine, image.id)
            self._trace.mark("warden: created")
            self._start(engine)
        except EngineError as error:
            raise _for_want_of_room(engine, error) from error
        self._trace.mark("warden: started")
        state = engine.inspect(self.container)
        if state is None or not state.running:
            raise EndedError
        self.pid = state.pid
        try:
            group = cgroup.Cgroup(state.pid)
        except (OSError, ValueError) as error:
            raise self._blame(_unreadable(f"{error}")) from error
        if not group.is_named(self.container):
            raise self._blame(_unreadable("another control group"))
        self.group = group
        self._trace.mark("warden: found")

    def _start(self, engine: Engine) -> None:
        try:
            engine.start(self.container)
        except EngineError as error:
            if type(error) is EngineError and self.spec.gpus:
                raise GpuError(reason=error.data["reason"]) from error
            raise

    def _create(self, engine: Engine, image_id: str) -> None:
        """A name tells the uid, and a name that is taken means the next uid (D1)."""
        self._engine_life = uids.engine_life(self._address)
        first, count = uids.id_range(engine, self._engine_life, self._memo)
        offset = int.from_bytes(os.urandom(4), "big") % count  # engines don't meet by habit
        for step in range(UID_TRIES):
            uid = first + (offset + step) % count
            if uid == os.getuid():
                continue
            try:
                self.container = engine.create(self.spec, image_id=image_id, uid=uid)
            except NameTakenError:
                continue
            self.uid = uid
            return
        raise StartError(reason=f"{UID_TRIES} uids in a row are in use", last_words="")

    def _blame(self, symptom: SandboxError) -> Exception:
        """Put a failed step down to the end of PID 1, where that is what it shows."""
        ended = _until(lambda: not cgroup.is_alive(self.pid), DYING)
        return EndedError() if ended else symptom

    def meet(self) -> None:
        """Take the guardian's connection, check who it is, hand the sockets over, once.

        Raises StartError where it is anybody but the container's PID 1, and EndedError.
        """
        try:
            connection, _ = self.listener.accept()
            rendezvous.close_rendezvous(self.listener, self._meeting)
        except OSError as error:
            raise self._blame(_no_meeting(error.strerror)) from error
        try:
            self._hand_over(connection)
        except BaseException:
            connection.close()
            raise
        connection.setblocking(False)  # noqa: FBT003
        self.guardian = connection
        self._trace.mark("warden: guardian met")

    def _hand_over(self, connection: socket.socket) -> None:
        if not rendezvous.is_pid_one_of(connection, pid=self.pid, container=self.container):
            stranger = _no_meeting("a stranger came")
            came, _ = rendezvous.peer(connection)
            raise self._blame(stranger) if came == self.pid else stranger
        try:
            self.sockets.hand_over(connection)
        except OSError as error:
            raise self._blame(_no_meeting(error.strerror)) from error

    def close_limits(self, until: float) -> None:
        """Limit processor time and read every limit back from the kernel (D4, D6).

        Raises EngineError where the engine can't, LimitNotHeldError, EndedError.
        """
        assert self.group is not None
        try:
            if self.spec.cpus_open:
                self.engine.by(until).limit_cpu(self.container, self.spec.cpus)
            found = self.group.limits()
        except EngineError as error:
            raise self._blame(error) from error
        except (OSError, ValueError) as error:
            raise self._blame(_unreadable(f"{error}")) from error
        asked = {
            "memory": self.spec.memory,
            "memory+swap": self.spec.memory,
            "pids": self.spec.pids,
            "cpu_quota": int(self.spec.cpus * CPU_PERIOD),
            "cpu_period": CPU_PERIOD,
        }
        wrong = cgroup.mismatch(found, asked)
        if wrong is not None:
            raise LimitNotHeldError(key=wrong, asked=asked[wrong], found=found[wrong])

    def not_unpacked(self, folder: str, status: int | None) -> WorkspaceError | None:
        """Word a start that ended with the copy of ``folder``; None if it was not that.

        The launcher's words may come into the log a little later than its end is seen.
        """
        engine = self.engine.by(time.monotonic() + TOLD_WITHIN)
        lines = [""]

        def is_told() -> bool:
            with suppress(EngineError):
                lines[:] = engine.last_lines(self.container, 1).split("\n")
            return bool(lines[0])

        if self.usage().oom_kills:
            lines = ["it does not fit into its memory"]
        elif status != names.NOT_UNPACKED:
            return None
        else:
            _until(is_told, LOGGED_WITHIN)
        return WorkspaceError(
            folder=folder,
            reason=lines[0].replace("%", "") or "it does not fit there",
            remedy="raise memory, and tmp_size, which is part of it; or move data elsewhere, "
            "and add that to mounts",
        )

    def facts(
        self, status: int | None, *, before: cgroup.Usage, violation: str, kernel: str
    ) -> Facts:
        """What is known of an end; the engine is asked where the guardian left no word."""
        from kernel_provider.warden.death import Facts  # noqa: PLC0415

        usage = self.usage()  # now: it is gone when PID 1 is
        killed = not violation and (status is None or status < 0)
        engine_gone = killed and not self._engine_is_there()
        state = None
        if status is None and killed and not engine_gone:
            with suppress(EngineError):
                state = self._ended()
        return Facts(
            status=status,
            engine_status=state.exit_code if state is not None else None,
            oom_flag=state is not None and state.oom_killed,
            usage=usage,
            before=before,
            memory=self.spec.memory,
            pids=self.spec.pids,
            violation=violation,
            engine_gone=engine_gone,
            kernel=kernel,
        )

    def usage(self) -> cgroup.Usage:
        """What the control group has counted by now."""
        return self.group.usage() if self.group is not None else cgroup.NO_USAGE

    def _engine_is_there(self) -> bool:
        """Whether the engine that started it still is; a socket may be another's to hold.

        systemd keeps Docker's open while the engine is not there, and it answers nobody.
        """
        try:
            same = uids.engine_life(self._address) == self._engine_life
        except EngineUnreachableError:
            return False
        return same and self.engine.by(time.monotonic() + ANSWERED_WITHIN).answers()

    def _ended(self) -> ContainerState | None:
        """What the engine says of PID 1's end; None if it does not see one in time."""
        engine = self.engine.by(time.monotonic() + TOLD_WITHIN)
        while True:
            state = engine.inspect(self.container)
            if state is None or not state.running:
                return state
            time.sleep(0.01)

    def start_error(self, cause: Cause, status: int | None) -> StartError:
        """The error of a start that ended so."""
        kind = StartMemoryError if cause.name == "MemoryLimitExceeded" else StartError
        if status == names.PRELOAD_FAILED:
            kind = PreloadError
        return kind(reason=cause.reason.rstrip("."), last_words=self.last_words())

    def last_words(self) -> str:
        """What was printed last, for the end of a sentence; empty if that was nothing."""
        engine = self.engine.by(time.monotonic() + TOLD_WITHIN)
        try:
            lines = engine.last_lines(self.container, 8).strip()
        except EngineError:
            return "; its last words are not known, since the engine does not answer"
        words = " | ".join(lines.splitlines()).replace("%", "")
        return f"; its last words: {words}" if words else ""

    def end(self) -> bool:
        """Hang up on the guardian, which ends with it; true when all processes are gone.

        Removing takes the engine ten times as long. Twice is fine.
        """
        if self.guardian is not None:
            self.guardian.close()
        return _until(self._is_gone, ENDED_WITHIN)

    def remove(self, until: float = math.inf) -> bool:
        """Kill and remove, and look: true when process and control group are empty.

        An engine has been seen to forget a container whose processes ran on, so its
        word is not enough (D3); nor is it needed, since PID 1 ends with its connection.
        What the engine does not remove, in its own time or by then (monotonic), is
        ``left`` with the reason, for another try or the next sweep. Twice is fine.
        """
        if self.guardian is not None:
            self.guardian.close()
            self.guardian = None
        if self.listener.fileno() >= 0:
            with suppress(OSError):  # its folder was cleared away by somebody
                rendezvous.close_rendezvous(self.listener, self._meeting)
        if not self.container:
            return True
        if not self.removed:
            try:
                self.engine.by(until).remove(self.container)
            except EngineError as error:
                reason = str(error).partition("\n")[0]
                self.left = SandboxLeftError(container=f"{NAME_PREFIX}{self.uid}", reason=reason)
            else:
                self.removed, self.left = True, None
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


def _for_want_of_room(engine: Engine, error: EngineError) -> EngineError:
    """The same error, or a better one where the engine's disk is what is wrong.

    The engine's own words are not looked at: they differ from one version to the next.
    """
    if type(error) is not EngineError:
        return error
    with suppress(EngineError, OSError):
        folder = engine.disk()
        space = os.statvfs(folder)
        no_files = space.f_files and not space.f_favail
        if no_files or space.f_bavail * space.f_frsize < FULL:
            return EngineDiskError(action=error.data["action"], folder=folder)
    return error


def _unreadable(why: str) -> LimitNotHeldError:
    return LimitNotHeldError(key="all limits", asked="readable", found=why)


def _no_meeting(why: str | None) -> StartError:
    return StartError(reason=f"its rendezvous failed: {why}", last_words="")


def _until(condition: Callable[[], bool], patience: float) -> bool:
    deadline = time.monotonic() + patience
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True
