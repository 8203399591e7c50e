"""What owners ask of a warden, one line of JSON each."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, kw_only=True)
class Claim:
    """Make the sandbox mine: its key, environment and folder, and who waits to hear.

    ``subscribers`` is the number of iopub clients that a restart cut off, ``workspace``
    the host's folder whose copy is the last descriptor that came along, if there is one.
    ``kernel`` names the kernelspec, for messages.
    ``output`` is what the kernel may say, in bytes: for each request (``limit``), a second
    on top of that (``rate``), in one ``message`` and one ``command``; and how many
    ``messages`` a second, of how many ``parts``. ``times`` is what it has so many seconds
    for: its half of a ``handshake``, and each ``cell``, where 0 is no limit.
    """

    key: str
    env: dict[str, str]
    cwd: str
    subscribers: int
    output: dict[str, int]
    times: dict[str, float]
    workspace: str = ""
    kernel: str = ""


@dataclass(frozen=True, kw_only=True)
class Attach:
    """Make me an owner as well; the key is the password."""

    key: str


@dataclass(frozen=True, kw_only=True)
class Signal:
    """Signal the kernel's process group, by a name without SIG."""

    signal: str


@dataclass(frozen=True, kw_only=True)
class Stop:
    """Kill the kernel and remove its sandbox."""


@dataclass(frozen=True, kw_only=True)
class Park:
    """Lie on the shelf for ``ttl`` seconds, for a kernel of that kernelspec.

    ``keeper`` is the pid of whoever asks and holds it meanwhile, 0 if nobody does.
    """

    kernel: str
    ttl: float
    keeper: int


Wish = Claim | Attach | Signal | Stop | Park

_KINDS: Final = {"claim": Claim, "attach": Attach, "signal": Signal, "stop": Stop, "park": Park}
_TYPES: Final[dict[str, type | tuple[type, ...]]] = {
    **dict.fromkeys(("key", "cwd", "workspace", "signal", "kernel"), str),
    "env": dict,
    "output": dict,
    "times": dict,
    "subscribers": int,
    "ttl": (int, float),
    "keeper": int,
}


def parse_wish(line: bytes) -> Wish:
    """Read one line of an owner's; raise ValueError where it is no wish."""
    try:
        data = json.loads(line)
        wish: Wish = _KINDS[data.pop("op")](**data)
        typed = all(isinstance(value, _TYPES[name]) for name, value in data.items())
        sizes, times = data.get("output", {}).values(), data.get("times", {}).values()
        typed = typed and all(isinstance(size, int) for size in sizes)
        if typed and all(isinstance(seconds, (int, float)) for seconds in times):
            return wish
    except (LookupError, TypeError, AttributeError, RecursionError) as error:
        msg = "this is no wish"
        raise ValueError(msg) from error
    msg = "a wish with a value of another type"
    raise ValueError(msg)
