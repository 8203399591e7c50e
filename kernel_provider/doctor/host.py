"""Look at this machine: room on its disks, and what dead processes left behind."""

import os
import shutil
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Final

from kernel_provider import names
from kernel_provider.doctor.model import GpuFacts, Space
from kernel_provider.engines import ContainerSummary
from kernel_provider.warden import cgroup
from kernel_provider.warden.sweep import SOCKET_OF, is_abandoned

DRIVER: Final = Path("/proc/driver/nvidia/version")
HOOK: Final = "nvidia-container-runtime-hook"
"""The program of NVIDIA's toolkit that engines look for."""
CDI: Final = (Path("/etc/cdi"), Path("/var/run/cdi"))
"""https://docs.docker.com/build/building/cdi"""


def gpus(runtimes: Collection[str]) -> GpuFacts:
    """What there is for sandboxes with GPUs; ``runtimes`` are the engine's."""
    return GpuFacts(
        driver=DRIVER.exists(),
        toolkit="nvidia" in runtimes or shutil.which(HOOK) is not None,
        cdi=any(path for folder in CDI for path in folder.glob("*nvidia*.*")),
    )


def space(folder: str) -> Space:
    """Free bytes of the disk that holds ``folder``, if that can be seen from here."""
    try:
        return Space(folder=folder, free=shutil.disk_usage(folder).free)
    except OSError:
        return Space(folder=folder, free=None)


def abandoned_containers(containers: Sequence[ContainerSummary]) -> tuple[str, ...]:
    """Names of those that ``executor-ml prune`` would remove."""
    here = cgroup.identity(os.getpid())
    return tuple(
        container.name
        for container in containers
        if is_abandoned(container, here=here, start=_start_of_warden(container))
    )


def _start_of_warden(container: ContainerSummary) -> str:
    parts = container.labels.get(names.LABEL_WARDEN, "").split(":")
    return _start_of(parts[2]) if len(parts) == 4 else ""  # noqa: PLR2004  see cgroup.identity


def abandoned_folders(root: str) -> tuple[str, ...]:
    """Folders for sockets whose maker is dead and where nobody listens any more."""
    listening = Path("/proc/net/unix").read_text(encoding="utf-8", errors="replace")
    found = []
    for name in sorted(path.name for path in Path(root).iterdir()):
        kind, _, rest = name.partition("-")
        if kind not in SOCKET_OF or rest.count("-") != 2:  # noqa: PLR2004  pid, start, random
            continue
        pid, start, _ = rest.split("-")
        if _start_of(pid) != start and f"{root}/{name}/{SOCKET_OF[kind]}\n" not in listening:
            found.append(name)
    return tuple(found)


def _start_of(pid: str) -> str:
    if not pid.isdecimal() or not cgroup.is_alive(int(pid)):
        return ""
    return cgroup.start_time(int(pid))
