"""What a kernel may have: the kernelspec's wishes, held under the administrator's ceilings.

One function goes from untyped to typed, ``parse_policy``. Nothing it does not know
gets through: an unknown key, a value that means nothing and a limit above a ceiling
are errors that name key, value and remedy (D6).
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path, PurePosixPath
from typing import Any, Final

from kernel_provider import names
from kernel_provider.ceilings import LEAST, LIMITS, Ceilings, Machine, Said, is_inside
from kernel_provider.errors import (
    CeilingError,
    ConfigError,
    LoopbackError,
    MachineLimitError,
    MountError,
    UnknownKeyError,
    suggest,
)
from kernel_provider.models.mounts import HUB, model_mounts, resolve
from kernel_provider.values import (
    MIB,
    Gpus,
    Limit,
    amount,
    parse_count,
    parse_env,
    parse_mapping,
    parse_modules,
    parse_number,
    parse_text,
    parse_texts,
    show,
)

MOUNT_ROOTS: Final = ("/models", "/data")
"""Mounts live below these folders of the sandbox and nowhere else."""


@dataclass(frozen=True, kw_only=True)
class KernelPolicy:
    """The limits and contents of one kernel; sizes are bytes, times are seconds.

    ``models`` are folders of the registry, by the models' names with their revisions, and
    a ``cell_timeout`` of None is no limit.
    """

    image: str = names.IMAGE
    memory: int = 512 * MIB
    cpus: float = 0.5
    pids: int = 128
    tmp_size: int = 128 * MIB
    shm_size: int = 64 * MIB
    workspace: str = "none"
    workspace_size: int = 64 * MIB
    output_limit: int = 128 * MIB
    output_rate: int = MIB
    message_size: int = 128 * MIB
    message_rate: int = 50_000
    message_parts: int = 1024
    command_size: int = 512
    handshake_timeout: float = 10.0
    cell_timeout: float | None = None
    mounts: Mapping[str, str] = field(default_factory=dict)
    models: Mapping[str, str] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    preload: tuple[str, ...] = ()
    pool: int = 1
    park_ttl: float = 3600.0
    startup_timeout: float = 55.0
    loopback: bool | str = False
    gpus: Gpus = 0

    @property
    def output(self) -> dict[str, int]:
        """What a kernel may say: bytes for each request, a second, and in one message.

        And ``messages`` a second, ``parts`` of a message, and bytes of a ``command``.
        """
        return {
            "limit": self.output_limit,
            "rate": self.output_rate,
            "message": self.message_size,
            "messages": self.message_rate,
            "parts": self.message_parts,
            "command": self.command_size,
        }

    @property
    def times(self) -> dict[str, float]:
        """What a kernel has so many seconds for: its half of a ``handshake``, each ``cell``.

        0 for a cell is no limit.
        """
        return {"handshake": self.handshake_timeout, "cell": self.cell_timeout or 0.0}


_PARSERS: Final[Mapping[str, Callable[[object], Any]]] = {
    **LIMITS,
    "image": parse_text,
    "mounts": parse_mapping,
    "models": parse_texts,
    "env": parse_env,
    "preload": parse_modules,
    "pool": parse_count,
    "park_ttl": parse_number,
    "startup_timeout": parse_number,
}


def parse_policy(
    config: Mapping[str, object], *, ceilings: Ceilings, source: str = "kernelspec"
) -> KernelPolicy:
    """Turn a kernelspec's ``config`` into a policy.

    ``source`` names the kernelspec in errors. Pure but for mounts, whose sources are
    looked at with this process's own rights (a bind mount would be made with root's), and
    for models, whose files are read again where they were touched.

    Raises:
        UnknownKeyError, ConfigError, CeilingError, MountError: no kernel is started.
        UnknownModelError, ModelAlteredError, RegistryError: neither is one.
    """
    given = {key: (source, value) for key, value in config.items()}
    asked: Said = {**ceilings.defaults, **given}
    values = {key: _parse(key, *said) for key, said in asked.items()}
    if "models" in values:
        who, wanted = asked["models"][0], values["models"]
        values["models"] = resolve(wanted, root=ceilings.registry, source=who)
    policy = KernelPolicy(**values)
    check = _Check(policy, asked, source)
    check.least()
    check.scratch()
    check.ceilings(ceilings)
    check.workspace()
    check.machine(ceilings.machine)
    check.mounts(ceilings)
    return policy


def _parse(key: str, source: str, value: object) -> Any:
    known = [f.name for f in fields(KernelPolicy)]
    if key not in known:
        raise UnknownKeyError(
            source=source, key=key, suggestion=suggest(key, known), known=", ".join(known)
        )
    try:
        return _PARSERS[key](value)
    except ValueError as error:
        raise ConfigError(source=source, key=key, value=value, reason=str(error)) from error


@dataclass(frozen=True)
class _Check:
    """A policy, and who asked for what of it: errors blame the right one."""

    policy: KernelPolicy
    asked: Said
    source: str

    def _who(self, key: str) -> str:
        return self.asked[key][0] if key in self.asked else self.source

    def _value(self, key: str) -> Limit:
        value: Limit = getattr(self.policy, key)
        return value

    def least(self) -> None:
        """Nothing is so small that no kernel could start."""
        for key, least in LEAST.items():
            value = amount(self._value(key))
            if value < least:
                reason = f"a kernel needs at least {show(key, least)}"
                shown = show(key, value)
                raise ConfigError(source=self._who(key), key=key, value=shown, reason=reason)

    def scratch(self) -> None:
        """``/tmp`` and ``/dev/shm`` leave some of the memory; else blame what was asked."""
        policy = self.policy
        parts = {"tmp_size": policy.tmp_size, "shm_size": policy.shm_size}
        if sum(parts.values()) < policy.memory:
            return
        given = [key for key in sorted(parts, key=lambda key: -parts[key]) if key in self.asked]
        key = given[0] if given else "memory"
        told = " and ".join(f"{part} ({show(part, size)})" for part, size in parts.items())
        raise ConfigError(
            source=self._who(key),
            key=key,
            value=show(key, self._value(key)),
            reason=f"{told} are part of memory ({show('memory', policy.memory)}) "
            "and leave none of it",
        )

    def ceilings(self, ceilings: Ceilings) -> None:
        """Nothing is above what the administrator allows."""
        for key, ceiling in ceilings.limits.items():
            value = self._value(key)
            if key == "workspace_size" and self.policy.workspace == "none":
                continue
            if amount(value) > amount(ceiling):
                raise CeilingError(
                    source=self._who(key),
                    key=key,
                    value=show(key, value),
                    ceiling=show(key, ceiling),
                    ceiling_source=ceilings.sources.get(key, "the policy"),
                )
        if ceilings.images is not None and self.policy.image not in ceilings.images:
            allowed = ", ".join(ceilings.images) or "none"
            raise ConfigError(
                source=self._who("image"),
                key="image",
                value=self.policy.image,
                reason=f"the administrator allows these images: {allowed}",
            )

    def workspace(self) -> None:
        """A copied folder fits where it is to lie."""
        policy = self.policy
        if policy.workspace == "none" or policy.workspace_size <= policy.tmp_size:
            return
        raise ConfigError(
            source=self._who("workspace_size"),
            key="workspace_size",
            value=show("workspace_size", policy.workspace_size),
            reason=f"the copy lies in /tmp, whose tmp_size is {show('tmp_size', policy.tmp_size)}",
        )

    def machine(self, machine: Machine | None) -> None:
        """No limit is above what there is: it would promise that, and hold nothing back."""
        if machine is None:
            return
        quarter = 256 * MIB
        found = {
            "cpus": (machine.cpus, f"{show('cpus', machine.cpus)} processors"),
            "memory": (machine.memory, show("memory", machine.memory // quarter * quarter)),
        }
        for key, (there, told) in found.items():
            value = self._value(key)
            if amount(value) > there:
                who, shown = self._who(key), show(key, value)
                raise MachineLimitError(source=who, key=key, value=shown, found=told)
        if machine.cgroup == 1 and self.policy.loopback is True:
            raise LoopbackError(source=self._who("loopback"))

    def mounts(self, ceilings: Ceilings) -> None:
        """Each goes to a place for mounts, and comes from a folder that may be shown."""
        source = self._who("mounts")
        models = model_mounts(self.policy.models)
        for target, path in self.policy.mounts.items():
            place = PurePosixPath(target)
            if str(place) != target or ".." in place.parts or str(place.parent) not in MOUNT_ROOTS:
                reason = f"mounts go to a folder directly below {' or '.join(MOUNT_ROOTS)}"
                raise ConfigError(source=source, key="mounts", value=target, reason=reason)
            if target in models or (models and target == HUB):
                reason = "a model of the registry goes there"
                raise ConfigError(source=source, key="mounts", value=target, reason=reason)
            _check_mount_source(path, ceilings, source)
        for path in models.values():
            _check_mount_source(path, ceilings, self._who("models"))


def _check_mount_source(path: str, ceilings: Ceilings, source: str) -> None:
    real = os.path.realpath(path)
    if not path.startswith("/"):
        raise MountError(source=source, path=path, reason="the path must be absolute")
    allowed = ceilings.mount_sources
    if allowed is not None and not any(is_inside(path, root) for root in allowed):
        raise MountError(source=source, path=path, reason="the policy does not allow it")
    try:
        if not os.access(real, os.R_OK | os.X_OK):
            Path(real).stat()
            raise MountError(source=source, path=path, reason="this user cannot read it")
        if not Path(real).is_dir():
            raise MountError(source=source, path=path, reason="it is not a folder")
    except OSError as error:
        reason = error.strerror or "unreadable"
        raise MountError(source=source, path=path, reason=reason) from error
