"""A sandbox for a client that starts its kernels by itself.

To such a client the process that it started is the kernel: what it signals, and whose
end it takes for the kernel's. So this one lives as long as the sandbox, passes signals
on, and goes when the client is gone.
"""

import asyncio
import os
import select
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Final, TextIO

from kernel_provider.connection import Connection, bind
from kernel_provider.errors import SandboxError
from kernel_provider.link import STOPPED, Death
from kernel_provider.policy import KernelPolicy
from kernel_provider.session import Session, passed_on
from kernel_provider.workspace import copy_folder

STOP_WITHIN: Final = 10.0
"""Seconds for an engine to remove the sandbox; afterwards its warden goes on alone."""
PARENT_VARIABLE: Final = "JPY_PARENT_PID"
"""Set by clients whose kernels are to end with them."""


@dataclass(frozen=True, kw_only=True)
class Launch:
    """What a client wants: a kernel of that kernelspec, at that connection."""

    kernel: str
    policy: KernelPolicy
    connection: Connection


@dataclass(kw_only=True)
class Wishes:
    """What signals have asked of a session."""

    session: Session
    serving: bool = False
    _end: bool = field(default=False, init=False)

    def ending(self) -> bool:
        """Whether it is to end."""
        return self._end

    def interrupt(self) -> None:
        """SIGINT is the kernel's, once there is one to interrupt."""
        if self.serving:
            self.session.signal(signal.SIGINT)

    def end(self) -> None:
        """End the sandbox, also while it starts. Twice is fine."""
        self._end = True
        self.session.stop()


async def serve(launch: Launch, environ: Mapping[str, str]) -> Death:
    """Run a kernel to its end, when nothing of it is left; for the main thread.

    Raises SandboxError where it can't start.
    """
    policy = launch.policy
    with ExitStack() as held:
        outer = bind(launch.connection)
        held.callback(outer.close)
        # one, since a restart is a new process here: who is cut off comes back, and its
        # first request must not be quicker than its ear
        session = Session(environ=environ, name=launch.kernel, outer=outer, subscribers=1)
        held.callback(session.close)
        wishes = Wishes(session=session)
        held.enter_context(_signals(wishes))
        held.enter_context(_parent(wishes, environ))
        workspace = None
        if policy.workspace != "none":
            workspace = await asyncio.to_thread(copy_folder, "", limit=policy.workspace_size)
            held.callback(workspace.close)
        if wishes.ending():
            return STOPPED
        session.launch(
            policy,
            key=launch.connection.key,
            env=passed_on(environ, policy),
            workspace=workspace,
        )
        try:
            await session.launched(policy.startup_timeout)
        except SandboxError:
            if wishes.ending():
                return STOPPED
            raise
        wishes.serving = True
        if wishes.ending():
            session.stop()
        death = await session.died()
        await session.gone(STOP_WITHIN)
        return death


@contextmanager
def _signals(wishes: Wishes) -> Iterator[None]:
    """Signals are wishes until the end of the body."""
    loop = asyncio.get_running_loop()
    handlers = {
        signal.SIGINT: wishes.interrupt,
        signal.SIGTERM: wishes.end,
        signal.SIGHUP: wishes.end,
    }
    for number, handler in handlers.items():
        loop.add_signal_handler(number, handler)
    try:
        yield
    finally:
        for number in handlers:
            loop.remove_signal_handler(number)


@contextmanager
def _parent(wishes: Wishes, environ: Mapping[str, str]) -> Iterator[None]:
    """End the sandbox with the process that started this one, where that is meant."""
    loop = asyncio.get_running_loop()
    parent = os.getppid()
    try:
        watched = os.pidfd_open(parent) if parent > 1 else -1
    except OSError:  # it has ended already, and nobody can tell who it was
        watched = -1

    def look() -> None:
        loop.remove_reader(watched)
        if environ.get(PARENT_VARIABLE) or _is_unread(sys.stderr):
            wishes.end()

    if watched >= 0:
        loop.add_reader(watched, look)
    try:
        yield
    finally:
        if watched >= 0:
            loop.remove_reader(watched)
            os.close(watched)


def _is_unread(complaints: TextIO | None) -> bool:
    """Whether it is a pipe that nobody reads any more.

    Some clients (VS Code) set no variable, and read what their kernels complain of: when
    such a reader is gone, and our parent, the client has crashed. A kernel that was
    started to outlive its parent complains to a file, a terminal or nobody.
    """
    if complaints is None:
        return False
    watch = select.poll()
    watch.register(complaints.fileno(), 0)
    return any(events & select.POLLERR for _, events in watch.poll(0))
