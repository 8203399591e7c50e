"""What the administrator allows at most, from wherever it was said; the smallest counts.

Whoever sets a ceiling means it: one that cannot be read or understood is an error, and
no kernel starts (D6).
"""

import os
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from kernel_provider import names
from kernel_provider.errors import ConfigError, UnknownKeyError, suggest
from kernel_provider.values import parse_count, parse_number, parse_size, parse_texts

LIMITS: Final[Mapping[str, Callable[[object], float]]] = {
    "memory": parse_size,
    "cpus": parse_number,
    "pids": parse_count,
    "tmp_size": parse_size,
    "shm_size": parse_size,
}
"""The settings that a ceiling can hold, and how they are read."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What there is to be shared: processors, and bytes of memory."""

    cpus: float
    memory: int


@dataclass(frozen=True, kw_only=True)
class Ceilings:
    """What the administrator allows; ``sources`` says for each limit who set it.

    ``images`` and ``mount_sources`` are None where anything goes: then a kernelspec
    can mount what its user can read, which the user could read anyway. ``machine`` is
    None where nobody looked.
    """

    limits: Mapping[str, float] = field(default_factory=dict)
    sources: Mapping[str, str] = field(default_factory=dict)
    images: tuple[str, ...] | None = None
    mount_sources: tuple[str, ...] | None = None
    machine: Machine | None = None


def this_machine() -> Machine:
    """The machine that this process runs on; so does the engine, whose socket is here."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return Machine(cpus=os.cpu_count() or 1, memory=memory)


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
            limit = LIMITS[key](value)
        except ValueError as error:
            raise ConfigError(source=source, key=key, value=value, reason=str(error)) from error
        if key not in limits or limit < limits[key]:
            limits[key], sources[key] = limit, source

    ceilings = table.pop("ceilings", {})
    if not isinstance(ceilings, dict):
        raise ConfigError(
            source=policy_file, key="ceilings", value=ceilings, reason="write a table"
        )
    _check_known(ceilings, [*LIMITS], policy_file)
    for key, value in ceilings.items():
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
        machine=this_machine(),
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
    _check_known(table, ("ceilings", "allowed_images", "mount_sources"), policy_file)
    return table


def _check_known(table: Mapping[str, object], known: Sequence[str], source: str) -> None:
    for key in table:
        if key not in known:
            raise UnknownKeyError(
                source=source, key=key, suggestion=suggest(key, known), known=", ".join(known)
            )


def _admin_list(table: Mapping[str, object], key: str, source: str) -> tuple[str, ...] | None:
    if key not in table:
        return None
    try:
        return parse_texts(table[key])
    except ValueError as error:
        raise ConfigError(source=source, key=key, value=table[key], reason=str(error)) from error
