"""What the administrator allows at most, from wherever it was said; the smallest counts.

Whoever sets a ceiling means it: one that cannot be read or understood is an error, and
no kernel starts (D6).
"""

import os
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from kernel_provider import names
from kernel_provider.errors import ConfigError, ConfigFileError, UnknownKeyError, suggest
from kernel_provider.models.store import place
from kernel_provider.values import (
    MIB,
    Limit,
    amount,
    parse_count,
    parse_gpus,
    parse_loopback,
    parse_memory,
    parse_number,
    parse_size,
    parse_texts,
    parse_time_limit,
    parse_workspace,
    show,
)

LIMITS: Final[Mapping[str, Callable[[object], Limit]]] = {
    "memory": parse_memory,
    "cpus": parse_number,
    "pids": parse_count,
    "tmp_size": parse_size,
    "shm_size": parse_size,
    "workspace": parse_workspace,
    "workspace_size": parse_size,
    "output_limit": parse_size,
    "output_rate": parse_size,
    "message_size": parse_size,
    "message_rate": parse_count,
    "message_parts": parse_count,
    "command_size": parse_size,
    "handshake_timeout": parse_number,
    "cell_timeout": parse_time_limit,
    "loopback": parse_loopback,
    "gpus": parse_gpus,
}
"""The settings that a ceiling can hold, and how they are read."""

MAXIMA: Final[Mapping[str, str]] = {f"max_{key}": key for key in LIMITS}
"""What limits are called where they stand beside other things."""

LEAST: Final[Mapping[str, float]] = {
    "memory": 96 * MIB,
    "cpus": 0.01,
    "pids": 32,
    "tmp_size": MIB,
    "shm_size": MIB,
    "workspace_size": MIB,
    "output_limit": MIB,
    "output_rate": 1024,
    "message_size": MIB,
    "message_rate": 20,
    "message_parts": 16,
    "command_size": 300,
    "handshake_timeout": 1,
    "cell_timeout": 1,
    "pool": 0,
    "park_ttl": 1,
    "startup_timeout": 1,
}
"""Below these no kernel can start: ipykernel alone has 15 threads and 60 MB.

A message of Jupyter's has seven parts without a buffer, and a READY nearly 300 bytes.
"""

UNLIMITED: Final = ("cell_timeout",)
"""Settings that are no limit unless somebody says one: where that is above a ceiling, a
kernelspec that says nothing gets the ceiling."""

IMAGES: Final = "allowed_images"
MOUNT_SOURCES: Final = "mount_sources"
DEFAULTS: Final = "defaults"
DEFAULT_VARIABLES: Final = "EXECUTOR_ML_DEFAULT_"

Said = Mapping[str, tuple[str, object]]
"""Values by name, each with who said it."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What there is to be shared: processors, bytes of memory, and how it is held.

    ``cgroup`` is the version of the control groups: in version 1, sockets hold unread
    data outside of a memory limit.
    """

    cpus: float
    memory: int
    cgroup: int = 2


@dataclass(frozen=True, kw_only=True)
class Ceilings:
    """What the administrator allows; ``sources`` says for each setting who said so.

    ``images`` and ``mount_sources`` are None where anything goes: then a kernelspec
    can mount what its user can read, which the user could read anyway. ``defaults`` are
    for what a kernelspec does not set, with who said so. ``machine`` is None where
    nobody looked. ``registry`` is the folder that models come from, which must be below
    ``mount_sources``, too.
    """

    limits: Mapping[str, Limit] = field(default_factory=dict)
    sources: Mapping[str, str] = field(default_factory=dict)
    images: tuple[str, ...] | None = None
    mount_sources: tuple[str, ...] | None = None
    defaults: Said = field(default_factory=dict)
    machine: Machine | None = None
    registry: str = ""


OF_SERVERS: Final[Said] = {
    "output_limit": ("a Jupyter server", 32 * MIB),
    "message_rate": ("a Jupyter server", 500),
}
"""Defaults where browsers show what kernels say: a server keeps it until they have it.

It serves all kernels in one thread, can pass on some 2000 messages a second of all of
them together, and throws away what is more than 3000 of one kernel in 3 s
(``iopub_msg_rate_limit``): a kernel that waits before that loses nothing.
"""


def of_servers(ceilings: Ceilings) -> Ceilings:
    """The same with a server's own defaults, before which the administrator's go."""
    return replace(ceilings, defaults={**OF_SERVERS, **ceilings.defaults})


def this_machine() -> Machine:
    """The machine that this process runs on; so does the engine, whose socket is here."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    unified = Path("/sys/fs/cgroup/cgroup.controllers").exists()
    return Machine(cpus=os.cpu_count() or 1, memory=memory, cgroup=2 if unified else 1)


def read_ceilings(
    environ: Mapping[str, str],
    *,
    policy_file: str = names.POLICY_FILE,
    traits: Said | None = None,
) -> Ceilings:
    """Collect what the admin's file, the environment and Jupyter's configuration say.

    The file's keys: ``allowed_images``, ``mount_sources`` and the tables ``[ceilings]``
    and ``[defaults]``; the environment's: ``EXECUTOR_ML_MAX_MEMORY`` and so on; the
    traits': ``max_memory`` and so on, and the file's keys. No file is no ceiling; a
    file that cannot be read or understood is an error, since it was meant as one.
    """
    return _Collector().file(policy_file).environment(environ).said(traits or {}).collected()


class _Collector:
    """Takes one source after the other; what one holds, no other loosens."""

    def __init__(self) -> None:
        self._limits: dict[str, Limit] = {}
        self._sources: dict[str, str] = {}
        self._lists: dict[str, tuple[str, ...]] = {}
        self._defaults: dict[str, tuple[str, object]] = {}
        self._registry = ""

    def file(self, path: str) -> "_Collector":
        """The administrator's file."""
        table = _read_file(path)
        for key, value in _table(table.pop("ceilings", {}), "ceilings", path, known=LIMITS).items():
            self._hold(key, value, path)
        return self.said({key: (path, value) for key, value in table.items()})

    def environment(self, environ: Mapping[str, str]) -> "_Collector":
        """One variable for each limit, and one for each default; an empty one is a mistake.

        And where its user's models are. A default that does not exist is told where
        defaults are read, as the variable's.
        """
        for key in LIMITS:
            variable = f"EXECUTOR_ML_MAX_{key.upper()}"
            if variable in environ:
                self._hold(key, environ[variable], variable)
        for variable in sorted(environ):
            if variable.startswith(DEFAULT_VARIABLES):
                key = variable.removeprefix(DEFAULT_VARIABLES).lower()
                self._defaults[key] = (variable, environ[variable])
        self._registry = place(environ)
        return self

    def said(self, said: Said) -> "_Collector":
        """Limits as ``max_*``, lists, and defaults, of which the last source's count."""
        for name, (source, value) in said.items():
            if name == DEFAULTS:
                self._defaults |= {
                    key: (source, default)
                    for key, default in _table(value, name, source, known=None).items()
                }
            elif name in {IMAGES, MOUNT_SOURCES}:
                self._allow(name, value, source)
            elif name in MAXIMA:
                self._hold(MAXIMA[name], value, source)
            else:
                known = [*MAXIMA, IMAGES, MOUNT_SOURCES, DEFAULTS]
                raise UnknownKeyError(
                    source=source, key=name, suggestion=suggest(name, known), known=", ".join(known)
                )
        return self

    def collected(self) -> Ceilings:
        """All of it, and the machine."""
        held = {
            key: (self._sources[key], self._limits[key]) for key in UNLIMITED if key in self._limits
        }
        return Ceilings(
            limits=self._limits,
            sources=self._sources,
            images=self._lists.get(IMAGES),
            mount_sources=self._lists.get(MOUNT_SOURCES),
            defaults={**held, **self._defaults},
            machine=this_machine(),
            registry=self._registry,
        )

    def _hold(self, key: str, value: object, source: str) -> None:
        try:
            limit = LIMITS[key](value)
        except ValueError as error:
            raise ConfigError(source=source, key=key, value=value, reason=str(error)) from error
        if amount(limit) < LEAST.get(key, 0):
            reason = f"no kernel could start: it needs at least {show(key, LEAST[key])}"
            raise ConfigError(source=source, key=key, value=show(key, limit), reason=reason)
        if key not in self._limits or amount(limit) < amount(self._limits[key]):
            self._limits[key], self._sources[key] = limit, source

    def _allow(self, name: str, value: object, source: str) -> None:
        """What every source allows: of images those in both lists, of folders the inner."""
        try:
            listed = parse_texts(value)
        except ValueError as error:
            raise ConfigError(source=source, key=name, value=value, reason=str(error)) from error
        for path in listed if name == MOUNT_SOURCES else ():
            if not path.startswith("/"):
                reason = "the path must be absolute"
                raise ConfigError(source=source, key=name, value=path, reason=reason)
        before = self._lists.get(name)
        if before is not None:
            inside = is_inside if name == MOUNT_SOURCES else str.__eq__
            both = [a for a in listed if any(inside(a, b) for b in before)]
            both += [b for b in before if any(inside(b, a) for a in listed)]
            listed = tuple(dict.fromkeys(both))
            source = f"{self._sources[name]} and {source}"
        self._lists[name], self._sources[name] = listed, source


def is_inside(path: str, folder: str) -> bool:
    """Whether a path is a folder or below it, links followed."""
    real, root = os.path.realpath(path), os.path.realpath(folder)
    return real == root or real.startswith(root.rstrip("/") + "/")


def _read_file(policy_file: str) -> dict[str, Any]:
    try:
        table = tomllib.loads(Path(policy_file).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ConfigFileError(source=policy_file, reason=str(error)) from error
    known = ("ceilings", DEFAULTS, IMAGES, MOUNT_SOURCES)
    return dict(_table(table, "the file", policy_file, known=known))


def _table(
    value: object, key: str, source: str, *, known: Sequence[str] | Mapping[str, Any] | None
) -> Mapping[str, Any]:
    """A table whose keys are known; None leaves it to others to know them."""
    if not isinstance(value, Mapping):
        raise ConfigError(source=source, key=key, value=value, reason="write a table")
    for name in value:
        if known is not None and name not in known:
            raise UnknownKeyError(
                source=source, key=name, suggestion=suggest(name, known), known=", ".join(known)
            )
    return value
