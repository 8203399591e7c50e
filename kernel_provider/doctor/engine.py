"""Ask the engine what it is: two questions that running kernels have no need of."""

import http.client
import json
import socket
from typing import Any, Final

from kernel_provider.doctor.model import EngineFacts
from kernel_provider.errors import EngineError, EnginePermissionError, EngineUnreachableError

DEADLINE: Final = 10.0

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
    version, info = _get(path, "/version"), _get(path, "/info")
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
    )


def _get(path: str, question: str) -> dict[str, Any]:
    """One answer; the path has no version, so that an engine of any age gives it."""
    connection = http.client.HTTPConnection("docker", timeout=DEADLINE)
    try:
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(DEADLINE)
        connection.sock.connect(path)
        connection.request("GET", question)
        answer = connection.getresponse()
        found = json.loads(answer.read())
    except PermissionError as error:
        raise EnginePermissionError(socket=path) from error
    except (http.client.HTTPException, ValueError) as error:
        raise EngineError(action="describe itself", reason=f"not Docker at {path}") from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise EngineUnreachableError(socket=path, reason=reason) from error
    finally:
        connection.close()
    if answer.status != http.client.OK or not isinstance(found, dict):
        reason = found.get("message", "") if isinstance(found, dict) else ""
        raise EngineError(
            action="describe itself", reason=reason or f"status {answer.status} for {question}"
        )
    return found
