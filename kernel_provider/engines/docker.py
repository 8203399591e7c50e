"""Docker, spoken to over its own socket.

The official SDK takes longer to import than a container takes to start, drops the
warnings of ``create`` and brings 20 MB into each warden, so the dozen calls that
kernels need are made here. HTTP/1.0 on purpose: the engine then closes each answer
instead of chunking it. https://docs.docker.com/reference/api/engine/version/v1.41/
"""

import json
import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from copy import copy
from typing import Any, Final

from kernel_provider import names
from kernel_provider.engines import (
    ContainerState,
    ContainerSummary,
    ImageFacts,
    NameTakenError,
    SandboxSpec,
)
from kernel_provider.engines.wire import checked, demultiplex, quoted, understood
from kernel_provider.errors import (
    EngineAddressError,
    EngineError,
    EnginePermissionError,
    EngineUnreachableError,
    ImageMissingError,
    LimitNotHeldError,
)

API: Final = (1, 41)
"""Version of the API that is spoken, unless the engine is too new for it."""
DEADLINE: Final = 20.0
"""Seconds for one call; an engine that hangs is an error, not a hang."""

CPU_PERIOD: Final = 100_000
NAME_PREFIX: Final = "executor-ml-"

_UIDS: Final = (0x7000_0000, 0x10_0000)
_UIDS_REMAPPED: Final = (20_000, 40_000)


def find_socket(environ: Mapping[str, str]) -> str:
    """Path of the engine's socket: DOCKER_HOST, else the first of the usual ones.

    Raises:
        EngineAddressError: DOCKER_HOST is not a socket on this machine.
    """
    host = environ.get("DOCKER_HOST", "")
    if host:
        if not host.startswith("unix://"):
            raise EngineAddressError(address=host)
        return host.removeprefix("unix://")
    usual = ["/var/run/docker.sock"]
    if environ.get("XDG_RUNTIME_DIR"):
        usual.append(f"{environ['XDG_RUNTIME_DIR']}/docker.sock")
    usual.append(names.ENGINE_SOCKET)
    for path in usual:
        if os.path.exists(path) and _answers(path):  # noqa: PTH110  pathlib costs 6 ms
            return path
    return usual[0]


def create_body(spec: SandboxSpec, *, image_id: str, uid: int) -> dict[str, Any]:
    """The whole of what is asked of the engine, as a value to compare."""
    tmpfs = f"rw,nosuid,nodev,noexec,mode=1777,size={spec.tmp_size},nr_inodes={spec.tmp_inodes}"
    return {
        "Image": image_id,
        "Hostname": spec.hostname,
        "Domainname": "",
        "User": f"{uid}:{uid}",
        "Entrypoint": list(spec.argv),
        "Cmd": [],
        "Env": [f"{key}={value}" for key, value in sorted(spec.env.items())],
        "Labels": dict(spec.labels),
        "WorkingDir": "/",
        "NetworkDisabled": not spec.loopback,
        "StopSignal": "SIGTERM",
        "Healthcheck": {"Test": ["NONE"]},
        "HostConfig": {
            "NetworkMode": "none",
            "ReadonlyRootfs": True,
            "Tmpfs": {"/tmp": tmpfs},  # noqa: S108  a path in the sandbox
            "ShmSize": spec.shm_size,
            "Memory": spec.memory,
            "MemorySwap": spec.memory,
            "CpuPeriod": CPU_PERIOD,
            "CpuQuota": -1 if spec.cpus_open else int(spec.cpus * CPU_PERIOD),
            "PidsLimit": spec.pids,
            "Ulimits": [
                {"Name": "nofile", "Soft": spec.nofile, "Hard": spec.nofile},
                {"Name": "core", "Soft": 0, "Hard": 0},
            ],
            "CapDrop": ["ALL"],
            "SecurityOpt": ["no-new-privileges:true", f"seccomp={spec.seccomp}"],
            "IpcMode": "private",
            "CgroupnsMode": "private",
            "Privileged": False,
            "AutoRemove": False,
            "RestartPolicy": {"Name": "no"},
            "Dns": ["127.0.0.1"],
            "DnsSearch": ["."],
            "DeviceRequests": _device_requests(spec.gpus),
            "Mounts": [
                {"Type": "bind", "Source": m.source, "Target": m.target, "ReadOnly": True}
                for m in spec.mounts
            ],
            "LogConfig": {
                "Type": "json-file",
                "Config": {"max-size": str(spec.log_size), "max-file": "1"},
            },
        },
    }


def _device_requests(gpus: int | str | tuple[str, ...]) -> list[dict[str, Any]]:
    """GPUs as the engine is asked for them, with what computing needs of the driver.

    Devices with names of CDI's ("nvidia.com/gpu=0") have all that in its specification.
    https://docs.docker.com/reference/api/engine/version/v1.44/#tag/Container
    """
    if not gpus:
        return []
    computing = {"Capabilities": [["gpu", "compute", "utility"]]}
    if not isinstance(gpus, tuple):
        return [{"Count": -1 if gpus == "all" else gpus, **computing}]
    by_cdi = [device for device in gpus if "=" in device]
    plain = [device for device in gpus if device not in by_cdi]
    requests = [{"DeviceIDs": plain, **computing}] if plain else []
    return requests + ([{"Driver": "cdi", "DeviceIDs": by_cdi}] if by_cdi else [])


class DockerEngine:
    """The Docker engine behind the socket at ``path``. Holds no connection."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._api = [API]  # a list, so that whoever is made from this one learns with it
        self.until = float("inf")

    def by(self, moment: float) -> "DockerEngine":
        """The same engine, whose calls all end by then."""
        other = copy(self)
        other.until = moment
        return other

    def info(self) -> dict[str, Any]:
        """What the engine says of itself and its host, as it says it."""
        return self._mapping("/info")

    def version(self) -> dict[str, Any]:
        """Its versions, of the program and of the API."""
        return self._mapping("/version")

    def answers(self) -> bool:
        """Ask something small; a refusal is an answer."""
        try:
            self._send("GET", "/version", b"")
        except EnginePermissionError:
            return True
        except EngineError:
            return False
        return True

    def disk(self) -> str:
        """Its data root."""
        with understood("describe itself"):
            return str(self.info()["DockerRootDir"])

    def id_range(self) -> tuple[int, int]:
        """High uids that nothing else uses, unless the engine maps only 65536 of them."""
        with understood("describe itself"):
            options = self.info()["SecurityOptions"]
        mapped = any(o.startswith(("name=userns", "name=rootless")) for o in options or ())
        return _UIDS_REMAPPED if mapped else _UIDS

    def image(self, reference: str) -> ImageFacts:
        """Look the image up."""
        status, data = self._call("GET", f"/images/{quoted(reference)}/json")
        if status == 404:
            raise self._missing(reference)
        action = f"inspect the image {reference}"
        facts = checked(status, data, action=action)
        with understood(action):
            return ImageFacts(id=facts["Id"], labels=facts["Config"].get("Labels") or {})

    def _missing(self, reference: str) -> ImageMissingError:
        from kernel_provider.engines.missing import missing  # noqa: PLC0415  rarely needed

        rows: Any = ()
        filters = quoted(json.dumps({"label": [f"{names.LABEL}={names.KIND_IMAGE}"]}))
        with suppress(EngineError):
            rows = self._json("GET", f"/images/json?filters={filters}", action="list images")
        return missing(reference, [tag for row in rows for tag in row["RepoTags"] or ()])

    def create(self, spec: SandboxSpec, *, image_id: str, uid: int) -> str:
        """Create; any warning of the engine is a limit that it discarded, and an error."""
        body = create_body(spec, image_id=image_id, uid=uid)
        status, data = self._call("POST", f"/containers/create?name={NAME_PREFIX}{uid}", body)
        if status == 409:
            raise NameTakenError
        answer = checked(status, data, action="create the sandbox")
        with understood("create the sandbox"):
            container, warnings = str(answer["Id"]), "; ".join(answer.get("Warnings") or ())
        if warnings:
            self.remove(container)
            raise LimitNotHeldError(key="HostConfig", asked="all limits", found=warnings)
        return container

    def start(self, container: str) -> None:
        """Start PID 1."""
        status, data = self._call("POST", f"/containers/{container}/start")
        checked(status, data, action="start the sandbox")

    def inspect(self, container: str) -> ContainerState | None:
        """Read the container's state."""
        status, data = self._call("GET", f"/containers/{container}/json")
        if status == 404:
            return None
        facts = checked(status, data, action="inspect the sandbox")
        with understood("inspect the sandbox"):
            state = facts["State"]
            return ContainerState(
                running=state["Running"],
                pid=state["Pid"],
                exit_code=state["ExitCode"],
                oom_killed=state["OOMKilled"],
                error=state["Error"],
            )

    def attributes(self, container: str) -> dict[str, Any]:
        """All that the engine says of a container, as it says it."""
        answer = self._json("GET", f"/containers/{container}/json", action="inspect the sandbox")
        with understood("inspect the sandbox"):
            return dict(answer)

    def limit_cpu(self, container: str, cpus: float) -> None:
        """Set the quota; the period was set at creation (``NanoCpus`` refuses updates)."""
        body = {"CpuPeriod": CPU_PERIOD, "CpuQuota": int(cpus * CPU_PERIOD)}
        status, data = self._call("POST", f"/containers/{container}/update", body)
        action = "limit the sandbox's processor time"
        answer = checked(status, data, action=action)
        with understood(action):
            warnings = "; ".join(answer.get("Warnings") or ())
        if warnings:
            raise LimitNotHeldError(key="cpus", asked=cpus, found=warnings)

    def kill(self, container: str, signal: str = "KILL") -> None:
        """Send PID 1 a signal; one that is gone (404) or not running (409) is fine."""
        status, data = self._call("POST", f"/containers/{container}/kill?signal={signal}")
        if status not in (404, 409):
            checked(status, data, action="signal the sandbox")

    def remove(self, container: str) -> None:
        """Kill and remove; gone already (404) or being removed (409) is fine."""
        status, data = self._call("DELETE", f"/containers/{container}?force=1&v=1")
        if status not in (404, 409):
            checked(status, data, action="remove the sandbox")

    def list(self, label: str) -> tuple[ContainerSummary, ...]:
        """List running and stopped containers with ``label``."""
        filters = quoted(json.dumps({"label": [label]}))
        path = f"/containers/json?all=1&filters={filters}"
        rows = self._json("GET", path, action="list containers")
        with understood("list containers"):
            return tuple(
                ContainerSummary(
                    id=row["Id"],
                    name=row["Names"][0].lstrip("/") if row["Names"] else "",
                    state=row["State"],
                    labels=row["Labels"],
                )
                for row in rows
            )

    def last_lines(self, container: str, count: int) -> str:
        """The last ``count`` lines of the log; empty where there is none."""
        query = f"stdout=1&stderr=1&tail={count}"
        status, data = self._call("GET", f"/containers/{container}/logs?{query}")
        return demultiplex(data).decode(errors="replace") if status == 200 else ""

    def _mapping(self, path: str) -> dict[str, Any]:
        answer = self._json("GET", path, action="describe itself")
        if not isinstance(answer, dict):
            raise EngineError(action="describe itself", reason=f"not Docker at {self.path}")
        return answer

    def _json(self, method: str, path: str, *, action: str) -> Any:
        status, data = self._call(method, path)
        return checked(status, data, action=action)

    def _call(self, method: str, path: str, body: object = None) -> tuple[int, bytes]:
        """Call by the version that both speak; engines from 29 on refuse old ones."""
        payload = b"" if body is None else json.dumps(body).encode()
        status, data = self._send(method, self._prefix() + path, payload)
        if status == 400 and self._api == [API]:
            oldest = self._oldest_version()
            if oldest > API:
                self._api[0] = oldest
                return self._send(method, self._prefix() + path, payload)
        return status, data

    def _prefix(self) -> str:
        major, minor = self._api[0]
        return f"/v{major}.{minor}"

    def _oldest_version(self) -> tuple[int, int]:
        status, data = self._send("GET", "/version", b"")
        answer = checked(status, data, action="tell its version")
        with understood("tell its version"):
            major, _, minor = answer.get("MinAPIVersion", "0.0").partition(".")
            return int(major), int(minor)

    def _send(self, method: str, path: str, payload: bytes) -> tuple[int, bytes]:
        what = f"answer {method} {path.removeprefix(self._prefix()).partition('?')[0]}"
        request = (
            f"{method} {path} HTTP/1.0\r\nHost: docker\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(payload)}\r\n\r\n"
        ).encode() + payload
        patience = max(0.0, min(DEADLINE, self.until - time.monotonic()))
        try:
            answer = _exchange(self.path, request, patience)
        except PermissionError as error:
            raise EnginePermissionError(socket=self.path) from error
        except TimeoutError as error:
            raise EngineError(action=what, reason=f"not done within {patience:.2g} s") from error
        except OSError as error:
            raise EngineUnreachableError(
                socket=self.path, reason=error.strerror or str(error)
            ) from error
        if not answer:  # it was killed meanwhile
            raise EngineUnreachableError(socket=self.path, reason="it hung up without an answer")
        head, _, data = answer.partition(b"\r\n\r\n")
        parts = head.split(b" ", 2)
        if len(parts) < 2 or not parts[1].isdigit():
            raise EngineError(action=what, reason="not an HTTP answer")
        return int(parts[1]), data


def _answers(path: str) -> bool:
    """Whether somebody listens there, without waiting: event loops ask.

    A refusal of permission counts, to be told later.
    """
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)  # noqa: FBT003
        try:
            probe.connect(path)
        except (PermissionError, BlockingIOError):  # the latter: busy, so there
            return True
        except OSError:
            return False
        return True


def _exchange(path: str, request: bytes, patience: float) -> bytes:
    if not patience:
        raise TimeoutError
    deadline = time.monotonic() + patience
    chunks = []
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(patience)
        connection.connect(path)
        connection.sendall(request)
        while chunk := connection.recv(65536):
            chunks.append(chunk)
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            connection.settimeout(left)
    return b"".join(chunks)
