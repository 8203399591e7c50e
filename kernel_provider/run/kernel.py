"""The kernel of a run: an installed kernelspec with this run's limits, in a sandbox."""

import asyncio
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from jupyter_client.kernelspec import KernelSpec, KernelSpecManager, NoSuchKernel
from jupyter_client.manager import AsyncKernelManager

from kernel_provider import kernelspecs
from kernel_provider.errors import ConfigError, SandboxError, StartError
from kernel_provider.link import Death
from kernel_provider.policy import KernelPolicy
from kernel_provider.provisioner import SandboxProvisioner
from kernel_provider.run.model import KernelProtocolError, OutsideKernelError
from kernel_provider.run.protocol import Client, bound
from kernel_provider.session import Session
from kernel_provider.values import show

OPTIONS: Final = "the options of executor-ml run"
READY_WITHIN: Final = 30.0
"""Seconds for a kernel that serves to answer, unless its start may take less than that."""

_SHOWN: Final = ("image", "memory", "cpus", "pids", "tmp_size", "shm_size", "output_limit")
_QUIET: Final = logging.getLogger("executor-ml.run")
"""What Jupyter's libraries log here is told in our own words."""


class _Specs(KernelSpecManager):  # type: ignore[misc, unused-ignore]
    """Finds one kernelspec only, which need not be in any file."""

    def __init__(self, spec: KernelSpec) -> None:
        super().__init__()
        self._spec = spec

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:  # noqa: ARG002
        """The one."""
        return self._spec


def merged(spec: KernelSpec, overrides: Mapping[str, Any]) -> KernelSpec:
    """The kernelspec with other settings; mounts and models are added to its own.

    Raises OutsideKernelError where it does not run in a sandbox at all.
    """
    given = spec.to_dict()
    stanza = (given.get("metadata") or {}).get("kernel_provisioner") or {}
    if stanza.get("provisioner_name") != kernelspecs.PROVISIONER:
        raise OutsideKernelError(kernel=spec.display_name)
    config = {**(stanza.get("config") or {}), **overrides}
    own = stanza.get("config") or {}
    if "mounts" in overrides and isinstance(own.get("mounts"), Mapping):
        config["mounts"] = {**own["mounts"], **overrides["mounts"]}
    if "models" in overrides and isinstance(own.get("models"), list):
        config["models"] = [*own["models"], *overrides["models"]]
    metadata = {**given["metadata"], "kernel_provisioner": {**stanza, "config": config}}
    return KernelSpec(**{**given, "metadata": metadata})


def shown(policy: KernelPolicy) -> dict[str, str]:
    """Its limits, by name, as people write them."""
    values = {name: getattr(policy, name) for name in _SHOWN}
    return {
        name: value if isinstance(value, str) else show(name, value)
        for name, value in values.items()
    }


def named(
    error: ConfigError, overrides: Mapping[str, Any], *, options: str = OPTIONS
) -> SandboxError:
    """The same error, but for who asked: an option, where one did."""
    given = [*overrides, *overrides.get("mounts", {}).values(), *overrides.get("models", ())]
    culprit = next((error.data[k] for k in ("key", "path", "model") if k in error.data), None)
    if culprit not in given:
        return error
    return type(error)(**{**error.data, "source": options})


def find(name: str) -> KernelSpec:
    """The kernelspec as Jupyter reads it.

    Raises KernelspecMissingError, KernelspecBrokenError.
    """
    try:
        spec = KernelSpecManager(log=_QUIET).get_kernel_spec(name)
    except Exception as error:  # whatever Jupyter raises over a file that it cannot use
        ours = kernelspecs.named(name)
        ours.check()
        reason = f"not a kernelspec ({type(error).__name__}: {error})"
        raise kernelspecs.KernelspecBrokenError(name=name, file=ours.file, reason=reason) from error
    read = kernelspecs.read_file(name, Path(spec.resource_dir))
    if read is not None:
        read.check()
    return spec


class Kernel:
    """One kernel: started once, its death seen, ended whatever happens."""

    def __init__(self, name: str, overrides: Mapping[str, Any]) -> None:
        """Find the kernelspec.

        Raises KernelspecMissingError, KernelspecBrokenError, OutsideKernelError.
        """
        _QUIET.propagate = False
        if not _QUIET.handlers:
            _QUIET.addHandler(logging.NullHandler())
        self.spec = merged(find(name), overrides)
        self.name = name
        self.log = _QUIET
        self._overrides = overrides
        self.manager = AsyncKernelManager(
            kernel_name=name,
            kernel_spec_manager=_Specs(self.spec),
            client_factory=Client,
            log=_QUIET,
        )
        self.client: Client | None = None
        self.language_info: dict[str, Any] = {}

    async def start(self, folder: str, environ: Mapping[str, str] | None = None) -> Client:
        """A client of a kernel that serves; ``environ`` stands for this process's.

        Raises SandboxError; ``end`` is still to be called.
        """
        given = {} if environ is None else {"env": dict(environ)}
        try:
            await self.manager.start_kernel(cwd=folder, **given)
        except ConfigError as error:
            raise named(error, self._overrides) from error
        except NoSuchKernel as error:
            reason = f"Jupyter does not find the provisioner {kernelspecs.PROVISIONER}"
            raise StartError(reason=reason, last_words="") from error
        client = self.manager.client()
        assert isinstance(client, Client)  # noqa: S101  by the factory above
        self.client = client
        bound(client.context, self._message_size)
        client.start_channels()
        client.allow_stdin = False
        patience = min(READY_WITHIN, self.policy.startup_timeout)
        try:
            async with asyncio.timeout(patience):  # it also reads until nothing comes
                await client.wait_for_ready(timeout=patience)
                info = await client.kernel_info(reply=True, timeout=patience)
        except (RuntimeError, TimeoutError) as error:
            reason = str(self.death or f"it does not answer within {patience:g} s")
            raise StartError(reason=reason, last_words="") from error
        self.language_info = info["content"]["language_info"]
        return client

    @property
    def _provisioner(self) -> SandboxProvisioner | None:
        found = self.manager.provisioner
        return found if isinstance(found, SandboxProvisioner) else None

    @property
    def session(self) -> Session:
        """The session behind it, once it was started."""
        held = self._provisioner
        if held is None or held.session is None:
            raise StartError(reason="it was not started", last_words="")
        return held.session

    @property
    def policy(self) -> KernelPolicy:
        """The limits in force, once it was started."""
        held = self._provisioner
        if held is None:
            raise StartError(reason="it was not started", last_words="")
        return held.policy

    @property
    def key(self) -> str:
        """What signs its messages."""
        return str(self.manager.session.key.decode())

    @property
    def death(self) -> Death | None:
        """How it ended; None while it lives."""
        held = self._provisioner
        return held.session.death if held is not None and held.session is not None else None

    @property
    def late(self) -> int:
        """How many cells were interrupted since they ran longer than the kernelspec allows."""
        return self.session.late

    @property
    def offence(self) -> KernelProtocolError | None:
        """The first message that was none; None while all were."""
        return self.client.offence if self.client is not None else None

    @property
    def _message_size(self) -> int:
        held = self._provisioner
        assert held is not None  # noqa: S101  it was started
        return held.policy.message_size

    @property
    def troubles(self) -> tuple[str, ...]:
        """What the engine refused; complete after the end."""
        held = self._provisioner
        return tuple(held.troubles) if held is not None else ()

    @property
    def limits(self) -> dict[str, str]:
        """The limits in force, by name, as people write them; empty before the start."""
        held = self._provisioner
        policy = getattr(held, "policy", None)
        return {} if policy is None else shown(policy)

    @property
    def metadata(self) -> dict[str, Any]:
        """What a notebook says of the kernel that ran it; complete after the start."""
        spec = {
            "name": self.name,
            "display_name": self.spec.display_name,
            "language": self.spec.language,
        }
        return {"kernelspec": spec, "language_info": self.language_info}

    async def interrupt(self) -> None:
        """As if the person had pressed the stop button."""
        await self.manager.interrupt_kernel()

    async def end(self) -> None:
        """Kill it and wait until its sandbox is gone. Twice is fine."""
        client, self.client = self.client, None
        if client is not None:
            client.stop_channels()
        if self.manager.has_kernel:
            await self.manager.shutdown_kernel(now=True)
        else:
            await self.manager.cleanup_resources()
