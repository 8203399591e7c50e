"""One kernel's lifetime as its owner sees it: outer sockets, and the sandbox behind them.

A session is made once, launches a sandbox, may launch another after the first has
ended (the clients stay connected to the same outer sockets), and is closed. All calls
return at once but for ``launched`` and ``gone``, which wait on the caller's event loop
and nothing else.
"""

import math
import os
import shutil
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from kernel_provider import names
from kernel_provider.children import reap_later, remove_remains
from kernel_provider.engines import open_engine
from kernel_provider.engines.docker import NAME_PREFIX, find_socket
from kernel_provider.errors import SandboxError, WardenError
from kernel_provider.folders import folder_name, runtime_root, usable
from kernel_provider.link import GRACE, Death, Link
from kernel_provider.outer import Outer
from kernel_provider.policy import KernelPolicy
from kernel_provider.recipe import Recipe
from kernel_provider.trace import Trace
from kernel_provider.warden import shelf
from kernel_provider.warden.sweep import sweep, sweep_folders
from kernel_provider.workspace import Workspace

if TYPE_CHECKING:
    from _typeshed import HasFileno

WARM_PATIENCE: Final = 2.0
"""Seconds for a parked sandbox to take a claim; it needs a hundredth of that."""
LONG_SLICE: Final = 60.0
"""Seconds after which a waiter looks up that nobody else shares its sandbox with."""
PASSED_ON: Final = ("TZ", "NBGRADER_EXECUTION", "NBGRADER_VALIDATING")
"""The only variables of a client's environment that reach a sandbox (D8)."""


def passed_on(environ: Mapping[str, str], policy: KernelPolicy) -> dict[str, str]:
    """The few variables of the client's that may pass, unless the kernelspec has them."""
    own = policy.env
    return {name: environ[name] for name in PASSED_ON if name in environ and name not in own}


class Session:
    """The outer sockets of one kernel, and whatever sandbox is behind them now.

    ``served`` turns true with the first sandbox that does: from then on clients may be
    connected, and wait at the outer sockets for the next.
    """

    def __init__(
        self,
        *,
        environ: Mapping[str, str],
        name: str,
        outer: Outer | None = None,
        subscribers: int = 0,
    ) -> None:
        """Bind the outer sockets, unless given; ``name`` is for messages. Nothing starts.

        ``subscribers`` iopub clients are about to come, and requests wait a moment for
        them. Raises RuntimeFolderError.
        """
        self.name = name
        self._environ = environ
        self._trace = Trace.wanted(environ)
        self._root = runtime_root(environ)
        if outer is None:
            with usable(self._root):
                outer = Outer.below(f"{self._root}/{folder_name('s')}")
        self.outer = outer
        self._link: Link | None = None
        self._subscribers = subscribers
        self.served = False
        self._warm = False
        self._begin_cold: Callable[[], Link]
        self.recipe: Recipe | None = None

    def restore_paths(self) -> None:
        """Put the sockets' names back where they were removed. Raises RuntimeFolderError."""
        with usable(self._root):
            self.outer.restore_paths()

    # --- starting ---------------------------------------------------------------------

    def launch(
        self,
        policy: KernelPolicy,
        *,
        key: str,
        env: Mapping[str, str],
        cwd: str = "",
        workspace: Workspace | None = None,
    ) -> None:
        """Claim a parked sandbox or a new one; ``launched`` waits for the outcome.

        ``env``, ``cwd`` and ``workspace`` are brought by the claim, ``key`` signs
        messages; a workspace is the working directory, too, and stays the caller's to
        close, once ``launched`` has returned. Raises EngineAddressError,
        EnvironmentTooLargeError, RuntimeFolderError, and WardenError.
        """
        if not self.outer.listeners:
            self.outer.take_over()
        recipe = Recipe(policy=policy, address=find_socket(self._environ))
        self.hang_up()
        claim = {
            "op": "claim",
            "key": key,
            "env": dict(env),
            "cwd": names.WORKSPACE if workspace else cwd,
            "workspace": workspace.folder if workspace else "",
            "kernel": self.name,
            "subscribers": self._subscribers,
            "output": policy.output,
            "times": policy.times,
        }
        brought: list[HasFileno] = [*self.outer.listeners, *([workspace] if workspace else [])]
        self.recipe = recipe
        self._begin_cold = partial(self._start_cold, recipe, claim, brought)
        self._trace.mark("session: claim made")
        self._link = self._take_warm(recipe, claim, brought) or self._begin_cold()

    def _take_warm(
        self, recipe: Recipe, claim: Mapping[str, Any], brought: "Sequence[HasFileno]"
    ) -> Link | None:
        """Claim what lies on the shelf; None where nothing alive does."""
        if shelf.is_empty(self._root):  # as on most machines; a digest takes ten times as long
            return None
        digest = recipe.digest()
        while (folder := shelf.take(self._root, digest)) is not None:
            try:
                link = Link.take(folder, claim, brought)
            except ConnectionRefusedError:  # killed: nobody else will tidy up after it
                shutil.rmtree(folder, ignore_errors=True)
            except OSError:
                continue
            else:
                self._warm = True
                self._trace.mark("session: parked one claimed")
                return link
        return None

    def _start_cold(
        self, recipe: Recipe, claim: Mapping[str, Any], brought: "Sequence[HasFileno]"
    ) -> Link:
        self._warm = False
        order = recipe.order(self._root, trace=self._trace.path)
        try:
            link = Link.claim(order, claim, brought)
        except BaseException:
            shutil.rmtree(order.folder, ignore_errors=True)
            raise
        self._trace.mark("session: warden started")
        return link

    async def launched(self, patience: float) -> Mapping[str, Any]:
        """Wait until the sandbox serves; give its container id, uid and pid.

        Raises the error that ended the start; by then nothing of it is left.
        """
        if self._warm:
            try:
                return await self._served(WARM_PATIENCE)
            except SandboxError:  # dead, outdated or stuck: as if it had not lain there
                self.hang_up()
                self._link = self._begin_cold()
        return await self._served(patience + GRACE)

    async def _served(self, patience: float) -> Mapping[str, Any]:
        link = self._need()
        deadline = time.monotonic() + patience
        while link.ready is None and time.monotonic() < deadline:
            await link.hear(deadline)
            if link.error is not None:
                raise link.error
            if link.gone or link.death is not None:
                raise WardenError(reason="ended while it was starting" + link.last_words())
        if link.ready is None:
            raise WardenError(reason=f"was silent for {patience:g} s")
        self.served = True
        self._trace.mark("session: served")
        return link.ready

    # --- running ----------------------------------------------------------------------

    @property
    def has_sandbox(self) -> bool:
        """Whether a sandbox was launched, or attached to, and not let go of since."""
        return self._link is not None

    @property
    def container(self) -> str:
        """Name of the sandbox's container; empty before it serves."""
        ready = self._link.ready if self._link is not None else None
        return f"{NAME_PREFIX}{ready['uid']}" if ready is not None else ""

    @property
    def pid(self) -> int:
        """Of the sandbox's first process, as it is seen from here; 0 before it serves."""
        ready = self._link.ready if self._link is not None else None
        return int(ready.get("pid", 0)) if ready is not None else 0

    @property
    def alive(self) -> bool:
        """Whether there is a sandbox that has not died, as far as was heard."""
        return self._link is not None and self.death is None

    @property
    def death(self) -> Death | None:
        """How the latest sandbox ended; None while it lives."""
        if self._link is None:
            return None
        self._link.listen()
        return self._link.death

    @property
    def late(self) -> int:
        """How many cells of the latest sandbox were interrupted since they ran too long."""
        if self._link is None:
            return 0
        self._link.listen()
        return self._link.late

    def troubles(self) -> list[str]:
        """What the engine refused since this was last asked."""
        if self._link is None:
            return []
        self._link.listen()
        told, self._link.troubles = self._link.troubles, []
        return told

    def record_death(self) -> None:
        """Note for ``executor-ml ps`` how a sandbox ended whose warden was killed.

        Wardens note all other deaths themselves. A full disk keeps nobody from ending.
        """
        link, recipe = self._link, self.recipe
        if link is None or recipe is None or link.ready is None:
            return
        death = link.death
        if not link.lost or death is None:
            return
        from kernel_provider.hardening import policy_digest  # noqa: PLC0415  on no usual way
        from kernel_provider.warden.deaths import Record, note  # noqa: PLC0415

        record = Record(
            container=self.container,
            uid=link.ready["uid"],
            kernel=self.name,
            policy=policy_digest(recipe.policy),
            owner=os.getpid(),
            name=death.name,
            reason=death.reason,
            remedy=death.remedy,
            exit_code=death.exit_code,
            memory_peak=death.memory_peak,
            memory_limit=recipe.policy.memory,
            pids_limit=recipe.policy.pids,
            at=time.time(),
        )
        with suppress(OSError):
            note(self._root, record)

    @property
    def warden(self) -> int | None:
        """Pid of the warden beside the sandbox; None where another process started it."""
        return self._need().pid

    def signal(self, number: int) -> None:
        """Send the kernel's process group a signal. Of the dead: nothing happens."""
        if number == signal.SIGKILL:
            self.stop()
        elif self._link is not None:
            name = signal.Signals(number).name.removeprefix("SIG")
            self._link.say({"op": "signal", "signal": name})

    def stop(self) -> None:
        """Kill and remove the sandbox; ``gone`` waits for it. Twice is fine."""
        if self._link is not None:
            self._link.say({"op": "stop"})

    async def died(self) -> Death:
        """Wait until the sandbox has ended, however long; for its only owner's loop."""
        link = self._need()
        while (death := self.death) is None:
            await link.hear(math.inf, at_most=LONG_SLICE)
        return death

    async def ended(self, patience: float) -> bool:
        """Wait until the sandbox's processes are gone: the next one may be launched.

        The warden goes on removing it meanwhile. False if it takes too long.
        """
        return await self._heard(lambda link: link.stopped or link.gone, patience)

    async def gone(self, patience: float) -> bool:
        """Wait until nothing of the sandbox is left; false if it takes too long."""
        return await self._heard(lambda link: link.gone, patience)

    async def _heard(self, of: Callable[[Link], bool], patience: float) -> bool:
        link = self._link
        deadline = time.monotonic() + patience
        while link is not None and not of(link):
            if time.monotonic() > deadline:
                return False
            await link.hear(deadline)
        return True

    # --- across processes -------------------------------------------------------------

    def describe(self) -> dict[str, str]:
        """What another process of this user needs to take part: see ``attach``."""
        return {"session": self.outer.folder, "warden": self._need().folder}

    @classmethod
    async def attach(
        cls, description: Mapping[str, str], *, key: str, environ: Mapping[str, str], name: str
    ) -> "Session":
        """Become an owner of a running kernel as well, with the key as the password.

        The kernel lives until its last owner goes. Raises WardenError where it is gone
        or the key is wrong.
        """
        outer = Outer(folder=description["session"])
        session = cls(environ=environ, name=name, outer=outer)
        session._link = await Link.attach(description["warden"], key)
        session.served = True
        return session

    # --- ending -----------------------------------------------------------------------

    def close(self) -> None:
        """Let go: the sandbox ends unless another owner holds it. Twice is fine."""
        self.hang_up()
        self.outer.close()

    def hang_up(self) -> None:
        """Let go of the sandbox and keep the outer sockets, where clients wait for another.

        Sees to what a lost warden left. Twice is fine.
        """
        link, self._link = self._link, None
        if link is None:
            return
        link.hang_up()
        if link.ready is not None:
            self._subscribers = link.subscribers
        if link.pid is not None:
            reap_later(link.pid)
        if link.lost:
            remove_remains(link.folder, self._environ)

    def _need(self) -> Link:
        if self._link is None:
            raise WardenError(reason="was never started")
        return self._link


def prune(environ: Mapping[str, str]) -> tuple[str, ...]:
    """Remove sandboxes and folders that dead processes left; give their names."""
    removed = sweep(open_engine("docker", find_socket(environ)))
    return removed + sweep_folders(runtime_root(environ))
