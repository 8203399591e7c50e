"""Settings as people write them: read into values, and shown again.

Each ``parse_*`` takes anything and raises ValueError with words that complete the
sentence "this is not possible: ...".
"""

import math
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Final

MIB: Final = 1024 * 1024
_UNITS: Final = {"": 1, "b": 1, "k": 1024, "m": MIB, "g": 1024 * MIB, "t": 1024 * 1024 * MIB}

HIGHEST: Final = 1e9
"""No processors, pids or seconds are more than this; sizes are not held by it."""

INSIST: Final = "insist"
ALL_GPUS: Final = "all"
Gpus = int | str | tuple[str, ...]
WORKSPACES: Final = ("none", "copy")
"""What a kernel sees of the notebook's folder."""

Limit = float | bool | str | tuple[str, ...] | None
"""What a ceiling can hold: numbers, permissions (``loopback``, ``workspace``), ``gpus``.

None is no limit at all, and above any.
"""

_DEVICE: Final = re.compile(r"(?:nvidia\.com/gpu=)?[A-Za-z0-9][A-Za-z0-9:._/-]*")
"""A GPU by number or name, or by CDI's: no device of another kind, which may be anything."""

SIZES: Final = (
    "memory",
    "tmp_size",
    "shm_size",
    "workspace_size",
    "output_limit",
    "output_rate",
    "message_size",
    "command_size",
)
"""The settings that are bytes; of ``output_rate``, a second."""


def parse_size(text: object) -> int:
    """Bytes from a size as people write it: ``"512m"``, ``"2 GB"``, ``1073741824``.

    Units are powers of 1024 with or without an ``i``, as everywhere in Docker.
    """
    if isinstance(text, int) and not isinstance(text, bool):
        return text
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([bkmgt]?)(?:i?b)?\s*", str(text).lower())
    if match is None or isinstance(text, bool):
        msg = 'write a size such as "512m" or "2 GB"'
        raise ValueError(msg)
    return int(float(match[1]) * _UNITS[match[2]])


def parse_memory(text: object) -> int:
    """Bytes in whole pages, rounded down: a control group holds no others, and never more."""
    size, page = parse_size(text), os.sysconf("SC_PAGE_SIZE")
    return size - size % page if size > page else size


def parse_number(value: object) -> float:
    """A number, or a text that is one; neither infinity nor nan is a limit."""
    number = math.nan
    if isinstance(value, (int, float, str)) and not isinstance(value, bool):
        with suppress(ValueError, OverflowError):
            number = float(value)
    if math.isnan(number):
        msg = "write a number such as 2 or 0.5"
        raise ValueError(msg)
    if abs(number) > HIGHEST:
        msg = f"write a number up to {HIGHEST:.0f}"
        raise ValueError(msg)
    return number


def parse_time_limit(value: object) -> float | None:
    """Seconds, or None for no limit, which is written as ``"none"`` or 0."""
    return None if value in (None, "none") else parse_number(value) or None


def parse_count(value: object) -> int:
    """A whole number."""
    number = parse_number(value)
    if number != int(number):
        msg = "write a whole number"
        raise ValueError(msg)
    return int(number)


def parse_text(value: object) -> str:
    """A text with something in it."""
    if not isinstance(value, str) or not value:
        msg = "write a text"
        raise ValueError(msg)
    return value


def parse_texts(value: object) -> tuple[str, ...]:
    """Texts from a list of them."""
    if not isinstance(value, (list, tuple)):
        msg = "write a list of texts"
        raise ValueError(msg)  # noqa: TRY004  one kind of error for one kind of mistake
    return tuple(parse_text(item) for item in value)


def parse_modules(value: object) -> tuple[str, ...]:
    """Names of modules from a list of them."""
    modules = parse_texts(value)
    for module in modules:
        if not all(part.isidentifier() for part in module.split(".")):
            msg = f"{module!r} is no name of a module"
            raise ValueError(msg)
    return modules


def parse_mapping(value: object) -> dict[str, str]:
    """Texts by texts."""
    if not isinstance(value, Mapping):
        msg = "write an object of texts"
        raise ValueError(msg)  # noqa: TRY004
    for item in (*value.keys(), *value.values()):
        if not isinstance(item, str) or "\0" in item:
            msg = "write an object of texts"
            raise ValueError(msg)
    return dict(value)


LOADED: Final = ("GLIBC_TUNABLES", "GCONV_PATH", "LOCPATH")
"""Beside ``LD_*``, what makes the C library load code or change its ways."""


def parse_env(value: object) -> dict[str, str]:
    """Environment variables that a sandbox may have."""
    env = parse_mapping(value)
    for name in env:
        if not name or "=" in name:
            msg = f"{name!r} is no name of a variable"
            raise ValueError(msg)
        if name.startswith("LD_") or name in LOADED:
            msg = f"{name} would change the process that watches over the kernel"
            raise ValueError(msg)
    return env


def parse_loopback(value: object) -> bool | str:
    """True, false, or ``INSIST``."""
    said: dict[str, bool | str] = {"true": True, "false": False, INSIST: INSIST}
    text = str(value).lower() if isinstance(value, (bool, str)) else ""
    if text not in said:
        msg = f'write true, false or "{INSIST}"'
        raise ValueError(msg)
    return said[text]


def parse_workspace(value: object) -> str:
    """One of ``WORKSPACES``."""
    if value not in WORKSPACES:
        msg = f"write {' or '.join(WORKSPACES)}"
        raise ValueError(msg)
    return str(value)


def parse_gpus(value: object) -> Gpus:
    """``ALL_GPUS``, how many, or which: the engine's numbers or names of them."""
    if isinstance(value, str) and value in {ALL_GPUS, "none"}:
        return ALL_GPUS if value == ALL_GPUS else 0
    if isinstance(value, (list, tuple)):
        devices = tuple(str(item) if type(item) is int else item for item in value)
        if devices and all(isinstance(d, str) and _DEVICE.fullmatch(d) for d in devices):
            return devices
    elif isinstance(value, (int, float, str)) and not isinstance(value, bool):
        with suppress(ValueError):
            count = parse_count(value)
            if count >= 0:
                return count
    msg = f'write "{ALL_GPUS}", how many, or a list of devices such as ["0"]'
    raise ValueError(msg)


def amount(value: Limit) -> float:
    """How much a setting asks for, to be compared with its ceiling."""
    if value == "none":
        return 0
    if value is None or isinstance(value, str):
        return math.inf  # no limit; all GPUs; insisted: more than any plain word
    if isinstance(value, tuple):
        every = any(device.rpartition("=")[2] == ALL_GPUS for device in value)
        return math.inf if every else len(value)
    return float(value)


def show(key: str, value: Limit) -> str:
    """A limit as people write it; MB and GB are Docker's, 1024 KB and 1024 MB."""
    if value is None or isinstance(value, (bool, str)):
        return str(value).lower()
    if isinstance(value, tuple):
        return " ".join(value)
    if key == "gpus" and not value:
        return "none"
    if key not in SIZES:
        return f"{value:g}"
    for unit, size in (("GB", 1024 * MIB), ("MB", MIB), ("KB", 1024)):
        if value >= size and value * 4 % size == 0:
            return f"{value / size:.12g} {unit}"
    return f"{value:.0f} bytes"
