"""Ask the engine what it is: two questions that running kernels have no need of."""

from typing import Final

from kernel_provider.ceilings import Machine
from kernel_provider.doctor.model import EngineFacts
from kernel_provider.engines.docker import DockerEngine

LIMITS: Final = {
    "MemoryLimit": "memory",
    "SwapLimit": "swap",
    "CpuCfsPeriod": "cpus",
    "CpuCfsQuota": "cpus",
    "PidsLimit": "pids",
}
"""What ``/info`` calls the limits that every sandbox has, and what we call them."""


def ask(path: str) -> EngineFacts:
    """Describe the engine behind the socket at ``path``.

    Raises:
        EngineUnreachableError, EnginePermissionError, EngineError: it can't be asked.
    """
    engine = DockerEngine(path)
    version, info = engine.version(), engine.info()
    options = info.get("SecurityOptions") or ()
    missing = [ours for theirs, ours in LIMITS.items() if not info.get(theirs)]
    return EngineFacts(
        socket=path,
        version=str(version.get("Version", "of unknown version")),
        api=str(version.get("ApiVersion", "0")),
        oldest_api=str(version.get("MinAPIVersion", "0")),
        cgroup_version=str(info.get("CgroupVersion", "")),
        cgroup_driver=str(info.get("CgroupDriver", "")),
        lacking=tuple(dict.fromkeys(missing)),
        seccomp=any(o.startswith("name=seccomp") for o in options),
        rootless=any(o.startswith("name=rootless") for o in options),
        data_root=str(info.get("DockerRootDir", "")),
        machine=Machine(
            cpus=int(info.get("NCPU", 0)),
            memory=int(info.get("MemTotal", 0)),
            cgroup=1 if info.get("CgroupVersion") == "1" else 2,
        ),
        runtimes=frozenset(info.get("Runtimes") or ()),
    )
