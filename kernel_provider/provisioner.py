"""Jupyter's hooks on a session, and nothing else.

https://jupyter-client.readthedocs.io/en/stable/provisioning.html
"""

import asyncio
import os
import secrets
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, cast

from jupyter_client.connect import KernelConnectionInfo
from jupyter_client.provisioning.provisioner_base import KernelProvisionerBase

from kernel_provider.admin import AdminPolicy
from kernel_provider.ceilings import Ceilings, of_servers, read_ceilings
from kernel_provider.errors import ConnectionFileError, SandboxError
from kernel_provider.link import Death
from kernel_provider.policy import KernelPolicy, parse_policy
from kernel_provider.session import Session, passed_on
from kernel_provider.trace import Trace
from kernel_provider.warden.rendezvous import CHANNELS
from kernel_provider.workspace import Workspace, copy_folder

if TYPE_CHECKING:
    from kernel_provider.explainer import Explainer

POLL: Final = 0.02
STOP_WITHIN: Final = 10.0


class SandboxProvisioner(AdminPolicy, KernelProvisionerBase):  # type: ignore[metaclass, unused-ignore]
    """Runs a kernelspec's kernels in sandboxes."""

    policy: KernelPolicy
    """Of the latest launch, once that has begun."""

    def __init__(self, **kwargs: Any) -> None:
        """Keep the kernelspec's settings apart: traitlets would drop unknown ones (D6)."""
        known = {
            name: kwargs.pop(name)
            for name in ("kernel_id", "kernel_spec", "parent")
            if name in kwargs
        }
        super().__init__(**known)
        self.config_given = kwargs
        self.session: Session | None = None
        self.troubles: list[str] = []
        self._told = False
        self._refusal: SandboxError | None = None
        self._explainer: Explainer | None = None

    @property
    def has_process(self) -> bool:
        """Whether a sandbox is under this provisioner's care, or what stands in for one."""
        if self._explainer is not None:
            return True
        return self.session is not None and self.session.has_sandbox

    async def pre_launch(self, **kwargs: Any) -> dict[str, Any]:
        """Parse the policy and bind the sockets; nothing is started yet."""
        trace = Trace.wanted(os.environ)
        trace.mark("provisioner: made")
        self._refusal = None
        try:
            if "models" in self.config_given:  # one that was touched is read: maybe gigabytes
                policy = await asyncio.to_thread(self._parse)
            else:
                policy = self._parse()
        except SandboxError as error:
            if not self._explains:
                raise
            self._refusal, policy = error, self.policy
        trace.mark("provisioner: policy parsed")
        kwargs = await super().pre_launch(cmd=[], **kwargs)
        # in place before the interpreter starts: much of it is read at import
        environ = kwargs["env"]
        own = {name: environ[name] for name in self._own_environment if name in environ}
        self.policy = replace(policy, env={**policy.env, **own})
        session = self.session or Session(environ=os.environ, name=self._kernel_name)
        try:
            session.restore_paths()
            self._describe_connection(session)
        except BaseException:
            if self.session is None:
                session.close()
            raise
        self.session = session
        trace.mark("provisioner: sockets bound")
        return kwargs

    def _parse(self) -> KernelPolicy:
        """Parse the settings, and look that the kernelspec's ``env`` obeys their rules."""
        source = f"kernelspec {self._kernel_name}"
        own = {"env": self._own_environment}
        parse_policy(own, ceilings=Ceilings(), source=source)
        ceilings = read_ceilings(os.environ, traits=self.said())
        if self._is_a_servers():
            ceilings = of_servers(ceilings)
        return parse_policy(self.config_given, ceilings=ceilings, source=source)

    @property
    def _own_environment(self) -> dict[str, str]:
        """The kernelspec's ``env``, before Jupyter fills in what it refers to."""
        return dict(self.kernel_spec.env) if self.kernel_spec else {}

    @property
    def _kernel_name(self) -> str:
        return str(getattr(self.parent, "kernel_name", "") or "executor-ml")

    def _key(self) -> str:
        """The key that signs messages; Jupyter keeps it as bytes, or as text from a file."""
        key: object = self.connection_info["key"]
        return key.decode() if isinstance(key, bytes) else str(key)

    def _describe_connection(self, session: Session) -> None:
        """Tell the manager where the outer sockets are: it refuses what differs later."""
        manager = self.parent
        if manager is None:
            info: dict[str, Any] = {f"{c}_port": n for n, c in enumerate(CHANNELS, start=1)}
            info |= {"transport": "ipc", "ip": session.outer.ip}
            info["signature_scheme"] = "hmac-sha256"
            info["key"] = self.connection_info.get("key") or secrets.token_hex(32)
            self.connection_info = cast("KernelConnectionInfo", info)
            return
        manager.cache_ports = False
        manager.transport = "ipc"
        manager.ip = session.outer.ip
        for number, name in enumerate(CHANNELS, start=1):
            setattr(manager, f"{name}_port", number)
        try:
            manager.write_connection_file()
        except OSError as error:
            reason = error.strerror or str(error)
            raise ConnectionFileError(path=manager.connection_file, reason=reason) from error
        self.connection_info = manager.get_connection_info()

    async def launch_kernel(
        self,
        cmd: list[str],  # noqa: ARG002  Jupyter's signature
        **kwargs: Any,
    ) -> KernelConnectionInfo:
        """Start a sandbox and wait until it serves.

        ``cmd`` is ignored: what runs is the image's. Raises a ``SandboxError`` whose
        text says what to do, and by then nothing of the attempt is left but, where
        clients are connected from an earlier sandbox, what they are connected to. A
        server's restart raises none of these, since nobody would see it: what stands in
        for the kernel explains it to whoever runs a cell.
        """
        session = self.session
        assert session is not None
        self._told = False
        await self._end_explaining()
        try:
            parks = self._parks()
            facts = await self._launch(session, kwargs.get("cwd") or "", kwargs.get("env") or {})
        except BaseException as error:
            if session.served:
                session.hang_up()
            else:
                self._drop(session)
            if isinstance(error, SandboxError) and self._explains:
                self._explain(session, error)
                return self.connection_info
            raise
        if parks:
            self._have_one_parked(session)
        self.log.info("Kernel %s runs in the container %s", self.kernel_id, session.container)
        self.log.debug("Sandbox of kernel %s: %s", self.kernel_id, facts)
        return self.connection_info

    async def _launch(
        self, session: Session, folder: str, environ: Mapping[str, str]
    ) -> Mapping[str, Any]:
        """Start a sandbox and give its facts; raise what was wrong with the settings."""
        if self._refusal is not None:
            raise self._refusal
        with ExitStack() as brought:
            workspace = await self._workspace(folder)
            if workspace is not None:
                brought.callback(workspace.close)
            session.launch(
                self.policy,
                key=self._key(),
                env=passed_on(environ, self.policy),
                workspace=workspace,
            )
            return await session.launched(self.policy.startup_timeout)

    @property
    def _explains(self) -> bool:
        """Whether an error would be a server's restart's, which JupyterLab does not show."""
        served = self.session is not None and self.session.served
        return served and self._is_a_servers()

    def _explain(self, session: Session, error: SandboxError) -> None:
        from kernel_provider.explainer import Explainer  # noqa: PLC0415  on no usual way

        outer = session.outer.listeners
        self._explainer = Explainer(outer, key=self._key(), error=error)
        self.log.error("Kernel %s could not be restarted: %s", self.kernel_id, error)

    async def _end_explaining(self) -> None:
        explainer, self._explainer = self._explainer, None
        if explainer is not None:
            await asyncio.to_thread(explainer.stop)

    async def _workspace(self, folder: str) -> Workspace | None:
        """A copy of the notebook's folder as it is now, where the policy wants one.

        papermill and otter name no folder: it is this process's. In a thread, since it
        may be large; of a launch that was given up meanwhile, the copy goes by itself.
        """
        if self.policy.workspace == "none":
            return None
        limit = self.policy.workspace_size
        copy = await asyncio.to_thread(copy_folder, folder, limit=limit)
        self.log.info("Kernel %s gets a copy of its folder: %s", self.kernel_id, copy)
        return copy

    def _parks(self) -> bool:
        """Whether one like it is to be parked: where a manager of many will start more.

        Raises ConfigError where it is told badly how many may be.
        """
        if not self.policy.pool or not self._is_a_servers():
            return False
        from kernel_provider.pool.keeper import memory_ceiling  # noqa: PLC0415  for servers only

        return memory_ceiling(os.environ) > 0

    def _is_a_servers(self) -> bool:
        """Whether whoever started this kernel will start more: a manager of many."""
        from jupyter_client.multikernelmanager import MultiKernelManager  # noqa: PLC0415

        return isinstance(getattr(self.parent, "parent", None), MultiKernelManager)

    def _have_one_parked(self, session: Session) -> None:
        """Leave it to this process's keeper, and without it go without: a courtesy."""
        from kernel_provider.pool import keeper  # noqa: PLC0415  as above

        assert session.recipe is not None
        try:
            keeper.of_this_process().want(session.recipe, self._kernel_name)
        except (RuntimeError, OSError) as error:  # no thread or descriptor to be had
            self.log.warning("No sandbox of kernel %s is kept warm: %s", self._kernel_name, error)

    async def poll(self) -> int | None:
        """Exit code of a kernel that ended, None of one that runs. No engine is asked."""
        if self._explainer is not None:
            return 0 if self._explainer.over else None
        session = self.session
        if session is None or not session.has_sandbox:
            return 0
        self._tell_troubles(session)
        death = session.death
        if death is None:
            return None
        if not self._told:
            self._told = True
            if not death.expected:
                self._tell(death, session.container)
                session.record_death()
        return death.exit_code

    def _tell(self, death: Death, container: str) -> None:
        """Log a death as a line for people, with fields for programs (a JSON formatter)."""
        fields = {
            "event": "kernel_died",
            "kernel_id": self.kernel_id,
            "kernel_name": self._kernel_name,
            "container": container,
            "cause": death.name,
            "exit_code": death.exit_code,
            "memory_peak": death.memory_peak,
        }
        self.log.warning("Kernel %s died. %s", self.kernel_id, death, extra=fields)

    def _tell_troubles(self, session: Session) -> None:
        """Log what the engine refused, and keep it for whoever asks."""
        for trouble in session.troubles():
            self.troubles.append(trouble)
            self.log.warning("Kernel %s: %s", self.kernel_id, trouble)

    async def wait(self) -> int | None:
        """Wait until the kernel has ended, with all its processes."""
        session = self.session
        if session is None:
            return 0
        while (code := await self.poll()) is None:  # noqa: ASYNC110  any loop may ask
            await asyncio.sleep(POLL)
        await session.ended(STOP_WITHIN)
        return code

    async def send_signal(self, signum: int) -> None:
        """Signal the kernel and its children (their process group)."""
        if self.session is None:
            return
        if signum == 0:
            await self.poll()
            return
        self.session.signal(signum)

    async def kill(self, restart: bool = False) -> None:  # noqa: ARG002, FBT001, FBT002
        """Kill the sandbox, and wait until its processes are gone; it is being removed."""
        await self._end_explaining()
        session = self.session
        if session is not None:
            session.stop()
            await session.ended(STOP_WITHIN)

    async def terminate(self, restart: bool = False) -> None:  # noqa: ARG002, FBT001, FBT002
        """Ask the kernel's processes to end (SIGTERM)."""
        await self.send_signal(15)

    async def cleanup(self, restart: bool = False) -> None:  # noqa: FBT001, FBT002
        """Let go of everything, removed by then; before a restart, see that the old one ended.

        Its removal would be half of the time that a restart takes with one that is parked.
        """
        await self._end_explaining()
        session = self.session
        if session is None:
            return
        if session.alive:
            session.stop()
        if not restart:
            await session.gone(STOP_WITHIN)
            self._tell_troubles(session)
            self._drop(session)
            return
        await session.ended(STOP_WITHIN)
        self._tell_troubles(session)
        if self.session is session:  # nobody let go of it meanwhile
            session.restore_paths()

    def _drop(self, session: Session) -> None:
        """Close it, and forget it unless there is another by now. Twice is fine."""
        session.close()
        if self.session is session:
            self.session = None

    async def get_provisioner_info(self) -> dict[str, Any]:
        """What ``load_provisioner_info`` needs, in this or another process."""
        info: dict[str, Any] = await super().get_provisioner_info()
        if self.session is not None and self.session.has_sandbox:
            info["sandbox"] = self.session.describe()
        return info

    async def load_provisioner_info(self, provisioner_info: dict[str, Any]) -> None:
        """Take part in a kernel that another process launched."""
        await super().load_provisioner_info(provisioner_info)
        self.session = await Session.attach(
            provisioner_info["sandbox"],
            key=self._key(),
            environ=os.environ,
            name=self._kernel_name,
        )

    def resolve_path(self, path: str) -> str | None:  # noqa: ARG002
        """Paths in a sandbox mean nothing on this machine."""
        return None
