"""What a user may ask of the engine for a container: what this package itself would.

A body is taken apart into settings, these go the way of a kernelspec's (policy, then
hardening), and what that way would send is compared with what came. So nothing that
this package does not ask for is ever let through, whatever keys an engine has.
"""

import os
import re
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, TypeVar

from kernel_provider import names
from kernel_provider.ceilings import Ceilings, is_inside
from kernel_provider.engines import Mount
from kernel_provider.engines.docker import CPU_PERIOD, NAME_PREFIX, create_body
from kernel_provider.hardening import RENDEZVOUS_FOLDER, sandbox_spec
from kernel_provider.policy import MOUNT_ROOTS, parse_policy
from kernel_provider.proxy.calls import RefusedError
from kernel_provider.values import amount

SOURCE: Final = "the proxy before the engine"
"""Who is named in errors about a limit."""

LABEL_USER: Final = "executor-ml.user"
"""On what came through a proxy: the uid of whoever asked. Set here and nowhere else."""

LABELS: Final = {names.LABEL, names.LABEL_PROTOCOL, names.LABEL_POLICY, names.LABEL_WARDEN}

HELD: Final = {"memory", "cpus", "pids", "tmp_size", "shm_size", "loopback", "gpus"}
"""The ceilings that an engine holds; the others are the affair of the process beside a sandbox."""

OPEN: Final = -1
"""A quota that holds nothing back."""

_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class Creation:
    """A container that may be made: the body to pass on, and what is still to be checked."""

    body: dict[str, Any]
    image_id: str
    mounts: tuple[Mount, ...]


def creation(body: object, *, name: str, uids: tuple[int, int], ceilings: Ceilings) -> Creation:
    """Read a body of ``create``; ``uids`` are the first that sandboxes may have, and how many.

    Raises RefusedError, or the ConfigError of what is above a ceiling.
    """
    if not isinstance(body, dict):
        msg = "its body is not an object"
        raise RefusedError(msg)
    try:
        wanted, image_id, mounts = _again(body, ceilings)
        uid = int(_matching(r"([0-9]+):\1", body["User"])[1])
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        msg = f"it is not a sandbox of this version of executor-ml-kernel ({error})"
        raise RefusedError(msg) from error
    if uid - uids[0] not in range(uids[1]) or name != f"{NAME_PREFIX}{uid}":
        msg = f"its user {uid} is none that a sandbox called {name} may have"
        raise RefusedError(msg)
    wanted["User"] = f"{uid}:{uid}"
    differs = _difference(body, wanted)
    if differs:
        msg = f"a sandbox of this version of executor-ml-kernel has another {differs}"
        raise RefusedError(msg)
    return Creation(body=wanted, image_id=image_id, mounts=mounts)


def _again(body: Mapping[str, Any], ceilings: Ceilings) -> tuple[dict[str, Any], str, Any]:
    """What this package would ask for with the settings that stand in a body."""
    host = body["HostConfig"]
    quota = _is(int, host["CpuQuota"])
    loopback = not _is(bool, body["NetworkDisabled"])
    most = ceilings.limits.get("cpus")
    insisted = ceilings.machine is not None and ceilings.machine.cgroup == 1
    tmp = _matching(r"rw,.*,size=([0-9]+),nr_inodes=[0-9]+", host["Tmpfs"]["/tmp"])  # noqa: S108  a sandbox's own
    config: dict[str, object] = {
        "memory": _is(int, host["Memory"]),
        "pids": _is(int, host["PidsLimit"]),
        "shm_size": _is(int, host["ShmSize"]),
        "tmp_size": int(tmp[1]),
        "env": dict(_is(str, line).split("=", 1) for line in body["Env"]),
        "loopback": ("insist" if insisted else True) if loopback else False,
        "gpus": _gpus(host["DeviceRequests"]),
    }
    if quota != OPEN:
        config["cpus"] = quota / CPU_PERIOD
    elif most is not None:
        config["cpus"] = most
    mounts = tuple(
        Mount(source=_is(str, m["Source"]), target=_is(str, m["Target"])) for m in host["Mounts"]
    )
    limits = {key: limit for key, limit in ceilings.limits.items() if key in HELD}
    held = replace(ceilings, defaults={}, images=None, limits=limits)
    policy = parse_policy(config, ceilings=held, source=SOURCE)
    spec = sandbox_spec(policy, rendezvous="")
    image_id = _matching("sha256:[0-9a-f]{64}", body["Image"])[0]
    labels = {key: _matching(r"[\w:.-]{0,128}", text)[0] for key, text in body["Labels"].items()}
    if not set(labels) <= LABELS or labels[names.LABEL] != names.KIND_KERNEL:
        msg = "Labels"
        raise ValueError(msg)
    again = create_body(replace(spec, mounts=mounts, labels=labels), image_id=image_id, uid=0)
    # open, while it starts, up to the ceiling: whoever asks might never close it
    opened = OPEN if most is None else int(amount(most) * CPU_PERIOD)
    again["HostConfig"]["CpuQuota"] = opened if quota == OPEN else quota
    return again, image_id, mounts


def _gpus(requests: Any) -> object:
    """The setting ``gpus`` that these requests for devices stand for."""
    if not requests:
        return 0
    (request,) = requests
    if "DeviceIDs" in request:
        return tuple(request["DeviceIDs"])
    return "all" if request["Count"] == -1 else request["Count"]


def _is(kind: type[_T], value: object) -> _T:
    """The value, which is of that very type: JSON's true is no number."""
    if type(value) is not kind:
        msg = f"not {kind.__name__}: {value!r:.80}"
        raise TypeError(msg)
    return value


def _matching(pattern: str, value: object) -> re.Match[str]:
    found = re.fullmatch(pattern, _is(str, value))
    if found is None:
        msg = f"not expected: {value!r:.80}"
        raise ValueError(msg)
    return found


def _difference(given: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """The first key, with those above it, whose value is another; empty where none is.

    The quota of processor time is left out: it was looked at, and may have been lowered.
    """
    for key in [*wanted, *(key for key in given if key not in wanted)]:
        left, right = given.get(key), wanted.get(key)
        if isinstance(left, Mapping) and isinstance(right, Mapping):
            inner = _difference(left, right)
            if inner:
                return f"{key}.{inner}"
        elif (left != right or (key in given) != (key in wanted)) and key != "CpuQuota":
            return key
    return ""


def new_quota(body: object, ceilings: Ceilings) -> dict[str, int]:
    """The body of ``update``: a quota up to the ceiling, and nothing else."""
    try:
        if not isinstance(body, dict) or set(body) != {"CpuPeriod", "CpuQuota"}:
            raise KeyError
        period, quota = (_is(int, body[key]) for key in ("CpuPeriod", "CpuQuota"))
    except (LookupError, TypeError) as error:
        msg = "it changes more than the processor limit"
        raise RefusedError(msg) from error
    most = ceilings.limits.get("cpus")
    if period != CPU_PERIOD or quota <= 0 or (most and quota > amount(most) * CPU_PERIOD):
        msg = "its processor limit is none, or above the ceiling"
        raise RefusedError(msg)
    return {"CpuPeriod": period, "CpuQuota": quota}


# --- mounts -------------------------------------------------------------------------------


def check_mounts(mounts: Sequence[Mount], *, uid: int, ceilings: Ceilings) -> None:
    """Look at each source as it is now: whose it is, and that no link leads elsewhere.

    The first is the folder with the rendezvous, which is the user's own; the others are
    below the administrator's ``mount_sources``, which must be set: the engine opens them
    as root, so that what the user could read is no measure. Raises RefusedError.
    """
    if not mounts or [m.target for m in mounts].count(RENDEZVOUS_FOLDER) != 1:
        msg = "it has not one folder for the rendezvous"
        raise RefusedError(msg)
    for mount in mounts:
        if mount.target == RENDEZVOUS_FOLDER:
            _check_own(mount.source, uid)
        else:
            _check_shared(mount, ceilings)


def _check_own(source: str, uid: int) -> None:
    if os.path.realpath(source) != source:
        msg = f"{source} is a link, or below one"
        raise RefusedError(msg)
    try:
        facts = os.lstat(source)
    except OSError as error:
        msg = f"{source}: {error.strerror}"
        raise RefusedError(msg) from error
    if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != uid:
        msg = f"{source} is no folder of user {uid}"
        raise RefusedError(msg)


def _check_shared(mount: Mount, ceilings: Ceilings) -> None:
    parts = mount.target.split("/")
    top = "/".join(parts[:2])
    if top not in MOUNT_ROOTS or not parts[2:] or {"", ".", ".."} & set(parts[2:]):
        msg = f"nothing is mounted at {mount.target}"
        raise RefusedError(msg)
    sources = ceilings.mount_sources or ()
    if os.path.realpath(mount.source) != mount.source or not any(
        is_inside(mount.source, folder) for folder in sources
    ):
        msg = f"{mount.source} is not below mount_sources of the administrator's policy"
        raise RefusedError(msg)
    if not Path(mount.source).is_dir():
        msg = f"{mount.source} is no folder"
        raise RefusedError(msg)


def check_mounted(mounts: Sequence[Mount], *, pid: int) -> None:
    """Look that a running sandbox has the folders that now are at these paths.

    Whoever owns a folder can put a link in its place between a look and the start; then
    what is mounted is another than what is there, or there is a link. Raises RefusedError.
    """
    for mount in mounts:
        try:
            there, here = Path(f"/proc/{pid}/root{mount.target}").stat(), os.lstat(mount.source)
        except OSError as error:
            msg = f"{mount.source} could not be looked at in the sandbox"
            raise RefusedError(msg) from error
        if not os.path.samestat(there, here):
            msg = f"{mount.source} was another folder a moment ago"
            raise RefusedError(msg)
