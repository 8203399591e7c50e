"""What a kernel may have: the kernelspec's wishes, held under the administrator's ceilings.

One function goes from untyped to typed, ``parse_policy``. Nothing it does not know
gets through: an unknown key, a value that means nothing and a limit above a ceiling
are errors that name key, value and remedy (D6).
"""

import difflib
import os
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path, PurePosixPath
from typing import Any, Final

from kernel_provider import names
from kernel_provider.errors import CeilingError, ConfigError, MountError, UnknownKeyError

MIB: Final = 1024 * 1024
_UNITS: Final = {"": 1, "b": 1, "k": 1024, "m": MIB, "g": 1024 * MIB, "t": 1024 * 1024 * MIB}

HIGHEST: Final = 1e9
"""No processors, pids or seconds are more than this; sizes are not held by it."""

LIMITS: Final = ("memory", "cpus", "pids", "tmp_size", "shm_size")
"""The settings that a ceiling can hold."""

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
    pool: int = 1
    park_ttl: float = 3600.0
    startup_timeout: float = 55.0


@dataclass(frozen=True, kw_only=True)
class Ceilings:
    """What the administrator allows; ``sources`` says for each limit who set it.

    ``images`` and ``mount_sources`` are None where anything goes: then a kernelspec
    can mount what its user can read, which the user could read anyway.
    """

    limits: Mapping[str, float] = field(default_factory=dict)
    sources: Mapping[str, str] = field(default_factory=dict)
    images: tuple[str, ...] | None = None
    mount_sources: tuple[str, ...] | None = None


def parse_size(text: object) -> int:
    """Bytes from a size as people write it: ``"512m"``, ``"2 GiB"``, ``1073741824``.

    Units are powers of 1024 with or without the ``i``, as everywhere in Docker.
    Raises ValueError for anything else.
    """
    if isinstance(text, int) and not isinstance(text, bool):
        return text
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([bkmgt]?)(?:i?b)?\s*", str(text).lower())
    if match is None or isinstance(text, bool):
        msg = 'write a size such as "512m" or "2 GiB"'
        raise ValueError(msg)
    return int(float(match[1]) * _UNITS[match[2]])


def _parse_number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        msg = "write a number"
        raise ValueError(msg)  # noqa: TRY004  one kind of error for one kind of mistake
    number = float(value)
    if not abs(number) <= HIGHEST:  # neither infinity nor nan is a limit
        msg = f"write a number up to {HIGHEST:.0f}"
        raise ValueError(msg)
    return number


def _parse_count(value: object) -> int:
    number = _parse_number(value)
    if number != int(number):
        msg = "write a whole number"
        raise ValueError(msg)
    return int(number)


def _parse_text(value: object) -> str:
    if not isinstance(value, str) or not value:
        msg = "write a text"
        raise ValueError(msg)
    return value


def _parse_texts(value: object) -> tuple[str, ...]:
    if not isinstance(value, (list, tuple)):
        msg = "write a list of texts"
        raise ValueError(msg)  # noqa: TRY004  one kind of error for one kind of mistake
    return tuple(_parse_text(item) for item in value)


def _parse_mapping(value: object) -> dict[str, str]:
    if not isinstance(value, Mapping):
        msg = "write an object of texts"
        raise ValueError(msg)  # noqa: TRY004
    for item in (*value.keys(), *value.values()):
        if not isinstance(item, str) or "\0" in item:
            msg = "write an object of texts"
            raise ValueError(msg)
    return dict(value)


def _parse_env(value: object) -> dict[str, str]:
    env = _parse_mapping(value)
    for name in env:
        if not name or "=" in name:
            msg = f"{name!r} is no name of a variable"
            raise ValueError(msg)
        if name.startswith("LD_") or name == "GLIBC_TUNABLES":
            msg = f"{name} would change the process that watches over the kernel"
            raise ValueError(msg)
    return env


_PARSERS: Final[Mapping[str, Callable[[object], Any]]] = {
    "image": _parse_text,
    "memory": parse_size,
    "cpus": _parse_number,
    "pids": _parse_count,
    "tmp_size": parse_size,
    "shm_size": parse_size,
    "mounts": _parse_mapping,
    "env": _parse_env,
    "preload": _parse_texts,
    "pool": _parse_count,
    "park_ttl": _parse_number,
    "startup_timeout": _parse_number,
}

_LEAST: Final[Mapping[str, float]] = {
    "memory": 96 * MIB,
    "cpus": 0.01,
    "pids": 32,
    "tmp_size": MIB,
    "shm_size": MIB,
    "pool": 0,
    "park_ttl": 1,
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
            near = difflib.get_close_matches(key, known, n=1)
            suggestion = f"; did you mean {near[0]!r}?" if near else ""
            raise UnknownKeyError(
                source=source, key=key, suggestion=suggestion, known=", ".join(known)
            )
        try:
            values[key] = _PARSERS[key](value)
        except ValueError as error:
            raise ConfigError(source=source, key=key, value=value, reason=str(error)) from error
    policy = KernelPolicy(**values)
    _check_least(policy, source)
    _check_ceilings(policy, ceilings, source)
    _check_mounts(policy, ceilings, source)
    return policy


def _check_least(policy: KernelPolicy, source: str) -> None:
    for key, least in _LEAST.items():
        value = getattr(policy, key)
        if not value >= least:  # also refuses nan
            reason = f"a kernel needs at least {show(key, least)}"
            raise ConfigError(source=source, key=key, value=show(key, value), reason=reason)
    scratch = policy.tmp_size + policy.shm_size
    if scratch >= policy.memory:
        raise ConfigError(
            source=source,
            key="memory",
            value=show("memory", policy.memory),
            reason=f"tmp_size and shm_size are memory too, and may take {show('memory', scratch)}",
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


def show(key: str, value: float) -> str:
    """A limit as people write it."""
    if key not in {"memory", "tmp_size", "shm_size"}:
        return f"{value:g}"
    for unit, size in (("GiB", 1024 * MIB), ("MiB", MIB), ("KiB", 1024)):
        if value >= size and value * 4 % size == 0:
            return f"{value / size:.12g} {unit}"
    return f"{value:.0f} bytes"


def read_ceilings(environ: Mapping[str, str], *, policy_file: str = names.POLICY_FILE) -> Ceilings:
    """Collect the ceilings of the admin's file and the environment; the smaller counts.

    The file's keys: ``allowed_images``, ``mount_sources`` and a table ``[ceilings]``;
    the environment's: ``EXECUTOR_ML_MAX_MEMORY`` and so on. No file is no ceiling; a
    file that cannot be read or understood is an error, since it was meant as one.
    """
    table = _read_file(policy_file)
    limits: dict[str, float] = {}
    sources: dict[str, str] = {}

    def hold(key: str, value: object, source: str) -> None:
        try:
            limit = float(_PARSERS[key](value))
        except ValueError as error:
            raise ConfigError(source=source, key=key, value=value, reason=str(error)) from error
        if key not in limits or limit < limits[key]:
            limits[key], sources[key] = limit, source

    ceilings = table.pop("ceilings", {})
    if not isinstance(ceilings, dict):
        raise ConfigError(
            source=policy_file, key="ceilings", value=ceilings, reason="write a table"
        )
    for key, value in ceilings.items():
        if key not in LIMITS:
            raise UnknownKeyError(
                source=policy_file, key=key, suggestion="", known=", ".join(LIMITS)
            )
        hold(key, value, policy_file)
    for key in LIMITS:
        variable = f"EXECUTOR_ML_MAX_{key.upper()}"
        if variable in environ:
            hold(key, environ[variable], variable)
    return Ceilings(
        limits=limits,
        sources=sources,
        images=_admin_list(table, "allowed_images", policy_file),
        mount_sources=_admin_list(table, "mount_sources", policy_file),
    )


def _read_file(policy_file: str) -> dict[str, Any]:
    try:
        table = tomllib.loads(Path(policy_file).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ConfigError(
            source=policy_file, key="the file", value=policy_file, reason=str(error)
        ) from error
    known = ("ceilings", "allowed_images", "mount_sources")
    for key in table:
        if key not in known:
            raise UnknownKeyError(
                source=policy_file, key=key, suggestion="", known=", ".join(known)
            )
    return table


def _admin_list(table: Mapping[str, object], key: str, source: str) -> tuple[str, ...] | None:
    if key not in table:
        return None
    try:
        return _parse_texts(table[key])
    except ValueError as error:
        raise ConfigError(source=source, key=key, value=table[key], reason=str(error)) from error
