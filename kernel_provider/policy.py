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
from kernel_provider.ceilings import LIMITS, Ceilings, Machine
from kernel_provider.errors import (
    CeilingError,
    ConfigError,
    MachineLimitError,
    MountError,
    UnknownKeyError,
    suggest,
)
from kernel_provider.values import (
    MIB,
    parse_env,
    parse_mapping,
    parse_modules,
    parse_number,
    parse_text,
    show,
)

MOUNT_ROOTS: Final = ("/models", "/data")
"""Mounts live below these folders of the sandbox and nowhere else."""


@dataclass(frozen=True, kw_only=True)
class KernelPolicy:
    """The limits and contents of one kernel; sizes are bytes, times are seconds."""

    image: str = names.IMAGE
    memory: int = 512 * MIB
    cpus: float = 0.5
    pids: int = 128
    tmp_size: int = 128 * MIB
    shm_size: int = 64 * MIB
    mounts: Mapping[str, str] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    preload: tuple[str, ...] = ()
    startup_timeout: float = 55.0


_PARSERS: Final[Mapping[str, Callable[[object], Any]]] = {
    **LIMITS,
    "image": parse_text,
    "mounts": parse_mapping,
    "env": parse_env,
    "preload": parse_modules,
    "startup_timeout": parse_number,
}

_LEAST: Final[Mapping[str, float]] = {
    "memory": 96 * MIB,
    "cpus": 0.01,
    "pids": 32,
    "tmp_size": MIB,
    "shm_size": MIB,
    "startup_timeout": 1,
}
"""Below these no kernel can start: ipykernel alone has 15 threads and 60 MB."""


def parse_policy(
    config: Mapping[str, object], *, ceilings: Ceilings, source: str = "kernelspec"
) -> KernelPolicy:
    """Turn a kernelspec's ``config`` into a policy.

    ``source`` names the kernelspec in errors. Pure but for mounts, whose sources are
    looked at with this process's own rights (a bind mount would be made with root's).

    Raises:
        UnknownKeyError, ConfigError, CeilingError, MountError: no kernel is started.
    """
    known = [f.name for f in fields(KernelPolicy)]
    values: dict[str, Any] = {}
    for key, value in config.items():
        if key not in known:
            raise UnknownKeyError(
                source=source, key=key, suggestion=suggest(key, known), known=", ".join(known)
            )
        try:
            values[key] = _PARSERS[key](value)
        except ValueError as error:
            raise ConfigError(source=source, key=key, value=value, reason=str(error)) from error
    policy = KernelPolicy(**values)
    _check_least(policy, source)
    _check_scratch(policy, config, source)
    _check_ceilings(policy, ceilings, source)
    _check_machine(policy, ceilings.machine, source)
    _check_mounts(policy, ceilings, source)
    return policy


def _check_least(policy: KernelPolicy, source: str) -> None:
    for key, least in _LEAST.items():
        value = getattr(policy, key)
        if not value >= least:  # also refuses nan
            reason = f"a kernel needs at least {show(key, least)}"
            raise ConfigError(source=source, key=key, value=show(key, value), reason=reason)


def _check_scratch(policy: KernelPolicy, config: Mapping[str, object], source: str) -> None:
    """``/tmp`` and ``/dev/shm`` leave some of the memory; else blame what was asked for."""
    parts = {"tmp_size": policy.tmp_size, "shm_size": policy.shm_size}
    if sum(parts.values()) < policy.memory:
        return
    given = [key for key in sorted(parts, key=lambda key: -parts[key]) if key in config]
    key = given[0] if given else "memory"
    told = " and ".join(f"{part} ({show(part, size)})" for part, size in parts.items())
    raise ConfigError(
        source=source,
        key=key,
        value=show(key, getattr(policy, key)),
        reason=f"{told} are part of memory ({show('memory', policy.memory)}) and leave none of it",
    )


def _check_ceilings(policy: KernelPolicy, ceilings: Ceilings, source: str) -> None:
    for key, ceiling in ceilings.limits.items():
        value = getattr(policy, key)
        if not value <= ceiling:
            raise CeilingError(
                source=source,
                key=key,
                value=show(key, value),
                ceiling=show(key, ceiling),
                ceiling_source=ceilings.sources.get(key, "the policy"),
            )
    if ceilings.images is not None and policy.image not in ceilings.images:
        allowed = ", ".join(ceilings.images) or "none"
        reason = f"the administrator allows these images: {allowed}"
        raise ConfigError(source=source, key="image", value=policy.image, reason=reason)


def _check_machine(policy: KernelPolicy, machine: Machine | None, source: str) -> None:
    """A limit above what there is holds nothing back, and would promise what is not there."""
    if machine is None:
        return
    quarter = 256 * MIB
    found = {
        "cpus": (machine.cpus, f"{show('cpus', machine.cpus)} processors"),
        "memory": (machine.memory, show("memory", machine.memory // quarter * quarter)),
    }
    for key, (there, told) in found.items():
        value = getattr(policy, key)
        if value > there:
            raise MachineLimitError(source=source, key=key, value=show(key, value), found=told)


def _check_mounts(policy: KernelPolicy, ceilings: Ceilings, source: str) -> None:
    for target, path in policy.mounts.items():
        place = PurePosixPath(target)
        if str(place) != target or ".." in place.parts or str(place.parent) not in MOUNT_ROOTS:
            reason = f"mounts go to a folder directly below {' or '.join(MOUNT_ROOTS)}"
            raise ConfigError(source=source, key="mounts", value=target, reason=reason)
        _check_mount_source(path, ceilings, source)


def _check_mount_source(path: str, ceilings: Ceilings, source: str) -> None:
    real = os.path.realpath(path)
    if not path.startswith("/"):
        raise MountError(source=source, path=path, reason="the path must be absolute")
    allowed = ceilings.mount_sources
    roots = [os.path.realpath(root) for root in allowed or ()]
    if allowed is not None and not any(
        real == root or real.startswith(root.rstrip("/") + "/") for root in roots
    ):
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
