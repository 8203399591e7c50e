"""Remove what the dead left: containers whose warden is gone, and their folders.

Only our own dead: a container is removed when its warden's process, named in its
label by boot, pid namespace, pid and start time, can be looked for from here and is
not there. One that was made elsewhere is removed only when it has ended by itself.
"""

import os
import shutil
import socket
from typing import Final

from kernel_provider import names
from kernel_provider.engines import ContainerSummary, Engine
from kernel_provider.warden import cgroup

SOCKET_OF: Final = {"w": "w", "s": ".c-5"}
"""Folders are named kind-pid-start-random after who made them: a warden's with its
socket, and a session's, whose listeners outlive the maker where another took over."""


def is_abandoned(container: ContainerSummary, *, here: str, start: str) -> bool:
    """Decide about one container.

    ``here`` is this process's identity, ``start`` the start time of the process that
    has the warden's pid now (empty if there is none).
    """
    parts = container.labels.get(names.LABEL_WARDEN, "").split(":")
    if len(parts) == 4 and parts[:2] == here.split(":")[:2]:
        return start != parts[3]
    return container.state in {"exited", "dead"}


def sweep(engine: Engine) -> tuple[str, ...]:
    """Remove every abandoned sandbox and return their names; raise EngineError."""
    here = cgroup.identity(os.getpid())
    removed = []
    for container in engine.list(f"{names.LABEL}={names.KIND_KERNEL}"):
        label = container.labels.get(names.LABEL_WARDEN, "").split(":")
        start = _start_of(label[2]) if len(label) == 4 else ""
        if is_abandoned(container, here=here, start=start):
            engine.remove(container.id)
            removed.append(container.name)
    return tuple(removed)


def sweep_folders(root: str) -> tuple[str, ...]:
    """Remove folders below ``root`` whose maker is dead and where nobody listens."""
    removed = []
    for name in sorted(os.listdir(root)):
        kind, _, rest = name.partition("-")
        if kind not in SOCKET_OF or rest.count("-") != 2:
            continue
        pid, start, _ = rest.split("-")
        folder = f"{root}/{name}"
        if _start_of(pid) == start or _listens(f"{folder}/{SOCKET_OF[kind]}"):
            continue
        shutil.rmtree(folder, ignore_errors=True)
        removed.append(name)
    return tuple(removed)


def _start_of(pid: str) -> str:
    """When the process that has this number started; empty for none, or a zombie."""
    if not pid.isdecimal() or not cgroup.is_alive(int(pid)):
        return ""
    return cgroup.start_time(int(pid))


def _listens(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)  # noqa: FBT003
        try:
            probe.connect(path)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return True
