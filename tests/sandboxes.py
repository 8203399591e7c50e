"""What can be seen of a running sandbox from the host, and sessions for tests."""

import ast
import asyncio
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker
import pytest
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager
from kernels import run

from kernel_provider import names
from kernel_provider.errors import SandboxError
from kernel_provider.policy import KernelPolicy
from kernel_provider.provisioner import SandboxProvisioner
from kernel_provider.session import Session
from kernel_provider.warden import cgroup

KEY = "0123456789abcdef-the-key-of-a-test"


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A sandbox: ids on the host, folders, and its control group."""

    container: str
    uid: int
    guardian: int
    warden: int
    warden_folder: str
    session_folder: str
    group: cgroup.Cgroup


def look(session: Session, engine: docker.DockerClient) -> Seen:
    """Find everything of a session's running sandbox."""
    ready = session._need().ready  # noqa: SLF001
    assert ready is not None
    labels = engine.api.inspect_container(ready["container"])["Config"]["Labels"]
    engine.close()  # its pool; the next call opens it anew
    folders = session.describe()
    return Seen(
        container=ready["container"],
        uid=ready["uid"],
        guardian=ready["pid"],
        warden=int(labels[names.LABEL_WARDEN].split(":")[2]),
        warden_folder=folders["warden"],
        session_folder=folders["session"],
        group=cgroup.Cgroup(ready["pid"]),
    )


def session_of(km: KernelManager) -> Session:
    """The session behind a manager's kernel."""
    assert isinstance(km.provisioner, SandboxProvisioner)
    assert km.provisioner.session is not None
    return km.provisioner.session


@contextmanager
def session(policy: KernelPolicy | None = None) -> Iterator[Session]:
    """A session whose sandbox serves; closed at the end."""
    made = Session(environ=os.environ, name="test")
    try:
        made.launch(policy or KernelPolicy(), key=KEY, env={})
        asyncio.run(made.launched(60))
        yield made
    finally:
        end(made)


def end(made: Session) -> None:
    """Stop a session's sandbox and close it."""
    made.stop()
    asyncio.run(made.gone(15))
    made.close()


def failed_launch(
    engine: docker.DockerClient,
    policy: KernelPolicy | None = None,
    env: Mapping[str, str] | None = None,
) -> SandboxError:
    """Launch, expect an error, and look that nothing is left of the attempt."""
    made = Session(environ=os.environ, name="test")
    made.launch(policy or KernelPolicy(), key=KEY, env=env or {})
    warden = made.warden
    assert warden is not None
    folder = Path(made.describe()["warden"])
    try:
        with pytest.raises(SandboxError) as caught:
            asyncio.run(made.launched(30))
        assert not containers_of(warden, engine), "left when the error was told"
    finally:
        made.close()
    assert until(lambda: not cgroup.is_alive(warden) and not folder.exists())
    assert not Path(made.outer.folder).exists()
    return caught.value


def value(client: BlockingKernelClient, code: str) -> Any:
    """The value of a cell's last line, as Python's literal; errors are the test's."""
    outcome = run(client, code)
    assert outcome.status == "ok", "\n".join(outcome.error.get("traceback", []))
    return ast.literal_eval(outcome.result)


def until(condition: Callable[[], object], seconds: float = 5.0) -> bool:
    """Whether something becomes true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def containers_of(warden: int, engine: docker.DockerClient) -> list[str]:
    """Containers, in whatever state, whose label names a warden's pid."""
    rows = engine.api.containers(all=True, filters={"label": f"{names.LABEL}={names.KIND_KERNEL}"})
    engine.close()
    return [r["Id"] for r in rows if r["Labels"][names.LABEL_WARDEN].split(":")[2] == str(warden)]


def written(container: str, engine: docker.DockerClient) -> set[str]:
    """What differs from the image in a container's own file system, /tmp not being of it."""
    found = {change["Path"] for change in engine.api.diff(container) or ()}
    engine.close()
    return found


def left_of(seen: Seen, engine: docker.DockerClient) -> list[str]:
    """What is still there of a sandbox: nothing, once it has ended."""
    left = [f"container {c}" for c in containers_of(seen.warden, engine)]
    left += [f"process {pid}" for pid in seen.group.processes()]
    left += [f"guardian {seen.guardian}"] * cgroup.is_alive(seen.guardian)
    left += [f"warden {seen.warden}"] * cgroup.is_alive(seen.warden)
    left += [seen.warden_folder] * Path(seen.warden_folder).exists()
    return left


def memory(pid: int, field: str = "VmRSS") -> float:
    """MB that a process has, by /proc: ``VmRSS``, ``VmHWM``, or ``Pss``."""
    file = "smaps_rollup" if field == "Pss" else "status"
    text = Path(f"/proc/{pid}/{file}").read_text()
    match = re.search(rf"^{field}:\s+(\d+) kB", text, re.MULTILINE)
    assert match is not None
    return int(match[1]) / 1024


def sockets(pid: int) -> set[str]:
    """Inodes of the sockets that a process holds."""
    found = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        try:
            link = str(descriptor.readlink())
        except FileNotFoundError:  # closed meanwhile
            continue
        if link.startswith("socket:"):
            found.add(link)
    return found
