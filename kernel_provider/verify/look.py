"""What the host knows of itself and of a sandbox, without asking the sandbox."""

import os
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from kernel_provider.engines.docker import DockerEngine
from kernel_provider.link import Death
from kernel_provider.policy import KernelPolicy
from kernel_provider.warden import cgroup

CANARY_VARIABLE: Final = "EXECUTOR_ML_VERIFY_SECRET"
SHOWN_AT: Final = "/data/executor-ml-verify"
"""Where a sandbox sees the folder that it must not be able to change."""


@dataclass(frozen=True, kw_only=True)
class Host:
    """What is laid out for a sandbox to reach, if it could.

    ``canary`` is a word that is nowhere else; ``shown`` a folder that everybody on the
    host may write to, mounted read-only; ``hidden`` a file that is not mounted at all;
    ``abstract`` the name of a listening socket.
    """

    canary: str
    shown: Path
    hidden: Path
    abstract: str
    environ: Mapping[str, str]

    def values(self, policy: KernelPolicy, uid: int) -> dict[str, Any]:
        """What the checks' code is told, as ``v``."""
        return {
            "canary": self.canary,
            "shown": SHOWN_AT if SHOWN_AT in policy.mounts else "",
            "hidden": str(self.hidden),
            "abstract": self.abstract,
            "uid": uid,
            "loopback": bool(policy.loopback),
            "memory": policy.memory,
            "pids": policy.pids,
            "cpus": policy.cpus,
            "tmp_size": policy.tmp_size,
            "shm_size": policy.shm_size,
        }

    def state(self) -> dict[str, str]:
        """Names and contents of what is shown: to be the same in the end.

        What a sandbox has made there is never opened.
        """
        names = sorted(path.name for path in self.shown.iterdir())
        untouched = names == ["file"] and not (self.shown / "file").is_symlink()
        text = (self.shown / "file").read_text(encoding="utf-8") if untouched else ""
        return dict.fromkeys(names, text)


@contextmanager
def laid_out(environ: Mapping[str, str]) -> Iterator[Host]:
    """Lay out what the sandboxes must not reach, and clear it away."""
    canary = f"canary{secrets.token_hex(8)}"
    root = Path(tempfile.mkdtemp(prefix="executor-ml-verify-"))
    try:
        root.chmod(0o755)
        shown, hidden = root / "shown", root / "hidden"
        shown.mkdir()
        for path in (shown / "file", hidden):
            path.write_text(canary, encoding="utf-8")
            path.chmod(0o666)
        shown.chmod(0o777)
        os.environ[CANARY_VARIABLE] = canary
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(f"\0{canary}")
            listener.listen()
            yield Host(canary=canary, shown=shown, hidden=hidden, abstract=canary, environ=environ)
    finally:
        os.environ.pop(CANARY_VARIABLE, None)
        shutil.rmtree(root)


@dataclass(kw_only=True)
class Look:
    """One sandbox, and the host, as they are when a judge asks.

    ``attributes`` is what the engine says of the container; ``before`` and ``at`` what
    the control group had, and when, as the check began. ``pids`` are its processes on
    the host just before it was ended, ``ending`` the seconds from the order to end, or
    from the kernel's death, until nothing was left.
    ``first`` is the other kernel of a pair.
    """

    host: Host
    policy: KernelPolicy
    engine: DockerEngine
    container: str
    uid: int
    guardian: int
    warden: int
    key: str
    session_folder: str
    warden_folder: str
    attributes: Mapping[str, Any]
    group: cgroup.Cgroup
    before: cgroup.Load
    at: float = field(default_factory=time.monotonic)
    pids: tuple[int, ...] = ()
    ending: float = 0.0
    death: Death | None = None
    first: "Look | None" = None

    def begin(self) -> None:
        """Note what is in use as a check begins."""
        self.before, self.at = self.group.load(), time.monotonic()

    def state_of(self, pid: int) -> str:
        """One letter of a process on the host, as in ps; empty for none."""
        try:
            text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
        except OSError:
            return ""
        return text.rpartition(")")[2].split()[0]

    def sockets_of(self, pid: int) -> int | None:
        """How many sockets a process has; None where only root may ask."""
        found = 0
        try:
            for descriptor in Path(f"/proc/{pid}/fd").iterdir():
                found += str(descriptor.readlink()).startswith("socket:")
        except PermissionError:
            return None
        return found

    def alive(self) -> list[int]:
        """Which of ``pids`` still are, and whoever else is in the control group."""
        left = {pid for pid in self.pids if cgroup.is_alive(pid)}
        return sorted(left | {*self.group.processes()})

    def host_names(self) -> set[str]:
        """What would name the host or who started this, and not a folder like ``/tmp``."""
        names = {os.uname().nodename, str(Path.home()), str(Path.cwd())}
        names |= {self.session_folder, self.warden_folder, str(self.host.shown.parent)}
        return {name for name in names if name.count("/") != 1} - {"sandbox", "localhost"}
