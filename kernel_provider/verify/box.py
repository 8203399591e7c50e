"""A sandbox under attack: a kernel as any notebook's, that runs checks' code."""

import ast
import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from importlib import resources
from queue import Empty
from typing import Any, Final

from kernel_provider.engines.docker import DockerEngine, find_socket
from kernel_provider.errors import MountError, StartError
from kernel_provider.link import Death
from kernel_provider.run.kernel import Kernel
from kernel_provider.verify.look import SHOWN_AT, Host, Look
from kernel_provider.verify.model import PATIENCE
from kernel_provider.warden import cgroup

LOOK: Final = 0.05
ENDS_WITHIN: Final = 60.0
"""Seconds for a kernel to end itself, beside whatever else it runs."""
GONE_WITHIN: Final = 30.0
"""Seconds from an end until nothing is left."""
GRACE: Final = 5.0
"""Seconds for what comes after the word that all is gone."""
MODULE: Final = "executor_ml_verify"


class Box:
    """One kernel, from started to gone; see ``opened``."""

    def __init__(self, kernel: Kernel, host: Host) -> None:
        self._kernel = kernel
        self._client: Any = kernel.client
        self.silent = False
        session, policy = kernel.session, kernel.policy
        engine = DockerEngine(find_socket(host.environ))
        state = engine.inspect(session.container)
        if state is None or not state.running:
            raise StartError(reason="it ended at once", last_words="")
        folders = session.describe()
        group = cgroup.Cgroup(state.pid)
        attributes = engine.attributes(session.container)
        self.look = Look(
            host=host,
            policy=policy,
            engine=engine,
            container=attributes["Id"],
            uid=int(session.container.rpartition("-")[2]),
            guardian=state.pid,
            warden=session.warden or 0,
            key=kernel.key,
            session_folder=folders["session"],
            warden_folder=folders["warden"],
            attributes=attributes,
            group=group,
            before=group.load(),
        )

    @property
    def dead(self) -> Death | None:
        """How it ended; None while it lives."""
        return self._kernel.death

    @property
    def usable(self) -> bool:
        """Whether another check may run in it: it lives, and has answered so far."""
        return self.dead is None and not self.silent

    async def load(self) -> None:
        """Send what the checks' code needs."""
        source = resources.files(__package__).joinpath("_inside.py").read_text(encoding="utf-8")
        made = f"types.ModuleType({MODULE!r})"
        code = f"import types; {MODULE} = {made}; exec({source!r}, {MODULE}.__dict__)"
        if await self._ask(code, "1") is None:
            raise StartError(reason=f"{self.dead or 'it does not answer'}", last_words="")

    async def probe(
        self, code: str, more: Mapping[str, Any], patience: float = PATIENCE
    ) -> dict[str, Any] | None:
        """Run a check's code: what it reported or raised; None if it died or was silent."""
        values = {**self.look.host.values(self.look.policy, self.look.uid), **more}
        answer = await self._ask("", f"{MODULE}.probe({code!r}, {values!r})", patience)
        if answer is None:
            self.look.death = self.dead
            return None
        found: dict[str, Any] = json.loads(ast.literal_eval(answer))
        return found

    async def _ask(self, code: str, expression: str, patience: float = PATIENCE) -> str | None:
        """Run a cell and give the text of an expression after it; None if none came."""
        wanted = {"report": expression}
        request = self._client.execute(code, user_expressions=wanted)
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            try:
                reply = await self._client.get_shell_msg(timeout=LOOK)
            except Empty:
                if self.dead is not None:
                    return None
                continue
            if reply["parent_header"].get("msg_id") != request:
                continue
            content = reply["content"]
            if content["status"] != "ok":
                return repr(json.dumps({"raised": content.get("evalue", "the cell failed")}))
            told = content["user_expressions"]["report"]
            if told["status"] != "ok":
                return repr(json.dumps({"raised": told.get("evalue", "the check failed")}))
            return str(told["data"]["text/plain"])
        self.silent = True
        return None

    async def end(self, *, by_itself: bool = False) -> None:
        """Stop it, or have the kernel end itself, and wait; then ``look`` is at the dead."""
        look = self.look
        look.pids = tuple(look.group.processes())
        begun = time.monotonic()
        if by_itself:
            self._client.execute("import os; os._exit(3)")
            await _until(lambda: self.dead is not None, ENDS_WITHIN)
            begun = time.monotonic()
        else:
            self._kernel.session.stop()
        await self._kernel.session.gone(GONE_WITHIN)
        look.ending = time.monotonic() - begun
        watchers = (look.warden, look.guardian)
        await _until(lambda: not any(map(cgroup.is_alive, watchers)), GRACE)
        look.death = self.dead


async def _until(condition: Callable[[], bool], patience: float) -> None:
    deadline = time.monotonic() + patience
    while not condition() and time.monotonic() < deadline:  # noqa: ASYNC110  looks at the host
        await asyncio.sleep(LOOK)


Opener = Callable[[Host], AbstractAsyncContextManager[Box]]


def opener(name: str, overrides: Mapping[str, Any] | None = None) -> Opener:
    """Opens sandboxes of a kernelspec, as notebooks do; ``overrides`` are other settings.

    With a folder of the host that it must not change, where the administrator lets such
    be mounted.
    """
    given = dict(overrides or {})

    @asynccontextmanager
    async def opened(host: Host) -> AsyncIterator[Box]:
        kernel = Kernel(name, {**given, "mounts": {SHOWN_AT: str(host.shown)}})
        try:
            try:
                await kernel.start(str(host.shown))
            except MountError:
                await kernel.end()
                kernel = Kernel(name, given)
                await kernel.start(str(host.shown))
            box = Box(kernel, host)
            await box.load()
            yield box
        finally:
            await kernel.end()

    return opened
