"""Jupyter's hooks on a session, and nothing else.

https://jupyter-client.readthedocs.io/en/stable/provisioning.html
"""

import asyncio
import os
import secrets
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, Final, cast

from jupyter_client.connect import KernelConnectionInfo
from jupyter_client.provisioning.provisioner_base import KernelProvisionerBase

from kernel_provider.admin import AdminPolicy
from kernel_provider.ceilings import Ceilings, read_ceilings
from kernel_provider.policy import KernelPolicy, parse_policy
from kernel_provider.session import Session
from kernel_provider.values import MIB
from kernel_provider.warden.rendezvous import CHANNELS
from kernel_provider.workspace import Workspace, copy_folder

PASSED_ON: Final = ("TZ", "NBGRADER_EXECUTION", "NBGRADER_VALIDATING")
"""The only variables of the client's environment that reach a sandbox (D8)."""

OF_SERVERS: Final = {
    "output_limit": ("a Jupyter server", 32 * MIB),
    "message_rate": ("a Jupyter server", 1000),
}
"""Defaults where browsers show what kernels say: a server keeps it until they have it, and
takes 0.3 ms for each message, in which it does nothing for others."""

POLL: Final = 0.02
STOP_WITHIN: Final = 10.0


class SandboxProvisioner(AdminPolicy, KernelProvisionerBase):  # type: ignore[metaclass, unused-ignore]
    """Runs a kernelspec's kernels in sandboxes."""

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
        self._told = False

    @property
    def has_process(self) -> bool:
        """Whether a sandbox is under this provisioner's care."""
        return self.session is not None and self.session.has_sandbox

    async def pre_launch(self, **kwargs: Any) -> dict[str, Any]:
        """Parse the policy and bind the sockets; nothing is started yet."""
        if "models" in self.config_given:  # one that was touched is read: maybe gigabytes
            policy = await asyncio.to_thread(self._parse)
        else:
            policy = self._parse()
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
        return kwargs

    def _parse(self) -> KernelPolicy:
        """Parse the settings, and look that the kernelspec's ``env`` obeys their rules."""
        source = f"kernelspec {self._kernel_name}"
        own = {"env": self._own_environment}
        parse_policy(own, ceilings=Ceilings(), source=source)
        ceilings = read_ceilings(os.environ, traits=self.said())
        if self._is_a_servers():
            ceilings = replace(ceilings, defaults={**OF_SERVERS, **ceilings.defaults})
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
            info |= {"transport": "ipc", "ip": session.ip}
            info["signature_scheme"] = "hmac-sha256"
            info["key"] = self.connection_info.get("key") or secrets.token_hex(32)
            self.connection_info = cast("KernelConnectionInfo", info)
            return
        manager.cache_ports = False
        manager.transport = "ipc"
        manager.ip = session.ip
        for number, name in enumerate(CHANNELS, start=1):
            setattr(manager, f"{name}_port", number)
        manager.write_connection_file()
        self.connection_info = manager.get_connection_info()

    async def launch_kernel(
        self,
        cmd: list[str],  # noqa: ARG002  Jupyter's signature
        **kwargs: Any,
    ) -> KernelConnectionInfo:
        """Start a sandbox and wait until it serves.

        ``cmd`` is ignored: what runs is the image's. Raises a ``SandboxError`` whose
        text says what to do, and by then nothing of the attempt is left but, where
        clients are connected from an earlier sandbox, what they are connected to.
        """
        session = self.session
        assert session is not None
        self._told = False
        try:
            with ExitStack() as brought:
                workspace = await self._workspace(kwargs.get("cwd") or "")
                if workspace is not None:
                    brought.callback(workspace.close)
                session.launch(
                    self.policy,
                    key=self._key(),
                    env=self._claim_environment(kwargs.get("env") or {}),
                    workspace=workspace,
                )
                facts = await session.launched(self.policy.startup_timeout)
        except BaseException:
            if session.served:
                session.hang_up()
            else:
                self._drop(session)
            raise
        if self.policy.pool and session.recipe is not None and self._is_a_servers():
            from kernel_provider.pool import keeper  # noqa: PLC0415  for servers only

            keeper.of_this_process().want(session.recipe, self._kernel_name)
        self.log.info("Kernel %s runs in the container %s", self.kernel_id, session.container)
        self.log.debug("Sandbox of kernel %s: %s", self.kernel_id, facts)
        return self.connection_info

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

    def _is_a_servers(self) -> bool:
        """Whether whoever started this kernel will start more: a manager of many."""
        from jupyter_client.multikernelmanager import MultiKernelManager  # noqa: PLC0415

        return isinstance(getattr(self.parent, "parent", None), MultiKernelManager)

    def _claim_environment(self, environ: Mapping[str, str]) -> dict[str, str]:
        """The few variables of the client's that may pass, unless the kernelspec has them."""
        own = self.policy.env
        return {name: environ[name] for name in PASSED_ON if name in environ and name not in own}

    async def poll(self) -> int | None:
        """Exit code of a kernel that ended, None of one that runs. No engine is asked."""
        session = self.session
        if session is None or not session.has_sandbox:
            return 0
        for trouble in session.troubles():
            self.log.warning("Kernel %s: %s", self.kernel_id, trouble)
        death = session.death
        if death is None:
            return None
        if not self._told:
            self._told = True
            if not death.expected:
                self.log.warning("Kernel %s died. %s", self.kernel_id, death)
        return death.exit_code

    async def wait(self) -> int | None:
        """Wait until the kernel has ended and nothing of its sandbox is left."""
        session = self.session
        if session is None:
            return 0
        while (code := await self.poll()) is None:  # noqa: ASYNC110  any loop may ask
            await asyncio.sleep(POLL)
        await session.gone(STOP_WITHIN)
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
        """Kill and remove the sandbox, and wait until it is gone."""
        session = self.session
        if session is not None:
            session.stop()
            await session.gone(STOP_WITHIN)

    async def terminate(self, restart: bool = False) -> None:  # noqa: ARG002, FBT001, FBT002
        """Ask the kernel's processes to end (SIGTERM)."""
        await self.send_signal(15)

    async def cleanup(self, restart: bool = False) -> None:  # noqa: FBT001, FBT002
        """Let go of everything; before a restart, only see that the old one is gone."""
        session = self.session
        if session is None:
            return
        if session.alive:
            session.stop()
        await session.gone(STOP_WITHIN)
        if not restart:
            self._drop(session)
        elif self.session is session:  # nobody let go of it meanwhile
            session.restore_paths()

    def _drop(self, session: Session) -> None:
        """Close it, and forget it unless there is another by now. Twice is fine."""
        session.close()
        if self.session is session:
            self.session = None

    async def get_provisioner_info(self) -> dict[str, Any]:
        """What ``load_provisioner_info`` needs, in this or another process."""
        info: dict[str, Any] = await super().get_provisioner_info()
        if self.session is not None and self.has_process:
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
