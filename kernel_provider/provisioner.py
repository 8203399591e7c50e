"""Jupyter's hooks on a session, and nothing else.

https://jupyter-client.readthedocs.io/en/stable/provisioning.html
"""

import asyncio
import os
import secrets
from collections.abc import Mapping
from typing import Any, Final, cast

from jupyter_client.connect import KernelConnectionInfo
from jupyter_client.provisioning.provisioner_base import KernelProvisionerBase

from kernel_provider.policy import parse_policy, read_ceilings
from kernel_provider.session import Session
from kernel_provider.warden.rendezvous import CHANNELS

PASSED_ON: Final = ("TZ", "NBGRADER_EXECUTION", "NBGRADER_VALIDATING")
"""The only variables of the client's environment that reach a sandbox (D8)."""

POLL: Final = 0.02
STOP_WITHIN: Final = 10.0


class SandboxProvisioner(KernelProvisionerBase):
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
        return self.session is not None and self.session.launched_once

    async def pre_launch(self, **kwargs: Any) -> dict[str, Any]:
        """Parse the policy and bind the sockets; nothing is started yet."""
        self.policy = parse_policy(
            self.config_given,
            ceilings=read_ceilings(os.environ),
            source=f"kernelspec {self._kernel_name}",
        )
        if self.session is None:
            self.session = Session(environ=os.environ, name=self._kernel_name)
        self.session.restore_paths()
        kwargs = await super().pre_launch(cmd=[], **kwargs)
        self._describe_connection()
        return kwargs

    @property
    def _kernel_name(self) -> str:
        return str(getattr(self.parent, "kernel_name", "") or "executor-ml")

    def _key(self) -> str:
        """The key that signs messages; Jupyter keeps it as bytes, or as text from a file."""
        key: object = self.connection_info["key"]
        return key.decode() if isinstance(key, bytes) else str(key)

    def _describe_connection(self) -> None:
        """Tell the manager where the outer sockets are: it refuses what differs later."""
        assert self.session is not None
        manager = self.parent
        if manager is None:
            info: dict[str, Any] = {f"{c}_port": n for n, c in enumerate(CHANNELS, start=1)}
            info |= {"transport": "ipc", "ip": self.session.ip}
            info["signature_scheme"] = "hmac-sha256"
            info["key"] = self.connection_info.get("key") or secrets.token_hex(32)
            self.connection_info = cast("KernelConnectionInfo", info)
            return
        manager.cache_ports = False
        manager.transport = "ipc"
        manager.ip = self.session.ip
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
        text says what to do, and by then nothing of the attempt is left.
        """
        assert self.session is not None
        self._told = False
        try:
            self.session.launch(
                self.policy,
                key=self._key(),
                env=self._passed_on(kwargs.get("env") or {}),
                kernelspec_env=self._own_variables(kwargs.get("env") or {}),
            )
            facts = await self.session.launched(self.policy.startup_timeout)
        except BaseException:
            self._drop()
            raise
        if self.session.recipe is not None and self._is_a_servers():
            from kernel_provider.pool import keeper  # noqa: PLC0415  for servers only

            keeper.of_this_process().want(self.session.recipe, self._kernel_name)
        self.log.info("Sandbox of kernel %s serves: %s", self.kernel_id, dict(facts))
        return self.connection_info

    def _is_a_servers(self) -> bool:
        """Whether whoever started this kernel will start more: a manager of many."""
        from jupyter_client.multikernelmanager import MultiKernelManager  # noqa: PLC0415

        return isinstance(getattr(self.parent, "parent", None), MultiKernelManager)

    def _passed_on(self, environ: Mapping[str, str]) -> dict[str, str]:
        """The few variables of the client's that may pass."""
        return {name: environ[name] for name in PASSED_ON if name in environ}

    def _own_variables(self, environ: Mapping[str, str]) -> dict[str, str]:
        """The kernelspec's own variables, with the client's values put in."""
        own = self.kernel_spec.env if self.kernel_spec else ()
        return {name: environ[name] for name in sorted(own) if name in environ}

    async def poll(self) -> int | None:
        """Exit code of a kernel that ended, None of one that runs. No engine is asked."""
        if self.session is None or not self.session.launched_once:
            return 0
        for trouble in self.session.troubles():
            self.log.warning("Kernel %s: %s", self.kernel_id, trouble)
        death = self.session.death
        if death is None:
            return None
        if not self._told:
            self._told = True
            if not death.expected:
                self.log.warning("Kernel %s died. %s", self.kernel_id, death)
        return death.exit_code

    async def wait(self) -> int | None:
        """Wait until the kernel has ended and nothing of its sandbox is left."""
        if self.session is None:
            return 0
        while (code := await self.poll()) is None:  # noqa: ASYNC110  any loop may ask
            await asyncio.sleep(POLL)
        await self.session.gone(STOP_WITHIN)
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
        if self.session is not None:
            self.session.stop()
            await self.session.gone(STOP_WITHIN)

    async def terminate(self, restart: bool = False) -> None:  # noqa: ARG002, FBT001, FBT002
        """Ask the kernel's processes to end (SIGTERM)."""
        await self.send_signal(15)

    async def cleanup(self, restart: bool = False) -> None:  # noqa: FBT001, FBT002
        """Let go of everything; before a restart, only see that the old one is gone."""
        if self.session is None:
            return
        if self.session.alive:
            self.session.stop()
        await self.session.gone(STOP_WITHIN)
        if restart:
            self.session.restore_paths()
        else:
            self._drop()

    def _drop(self) -> None:
        if self.session is not None:
            self.session.close()
            self.session = None

    async def get_provisioner_info(self) -> dict[str, Any]:
        """What ``load_provisioner_info`` needs, in this or another process."""
        info: dict[str, Any] = await super().get_provisioner_info()
        if self.session is not None:
            info["sandbox"] = self.session.describe()
        return info

    async def load_provisioner_info(self, provisioner_info: dict[str, Any]) -> None:
        """Take part in a kernel that another process launched."""
        await super().load_provisioner_info(provisioner_info)
        self.session = Session.attach(
            provisioner_info["sandbox"],
            key=self._key(),
            environ=os.environ,
            name=self._kernel_name,
        )

    def resolve_path(self, path: str) -> str | None:  # noqa: ARG002
        """Paths in a sandbox mean nothing on this machine."""
        return None
