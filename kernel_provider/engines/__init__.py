"""Container engines: what a sandbox is asked of them, and the table of those we have.

An engine is a ``Protocol``, so a new one is a class in a file of its own and a line in
``ENGINES``. This package is on the path of every launch and runs inside the warden:
nothing but the standard library here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Final, Protocol, cast


@dataclass(frozen=True, kw_only=True)
class Mount:
    """A read-only bind mount: ``source`` on the host, ``target`` in the sandbox."""

    source: str
    target: str


@dataclass(frozen=True, kw_only=True)
class SandboxSpec:
    """Everything that is asked of an engine for one sandbox, but for its uid.

    Sizes are bytes, ``cpus`` is a number of processors (left open until ``limit_cpu``
    closes them, unless ``cpus_open`` is false), ``env`` is complete (nothing
    is inherited but what the image sets). ``labels`` do not hold secrets. ``loopback``
    sets the empty network up for itself, ``gpus`` is "all", how many, or which.
    """

    image: str
    argv: tuple[str, ...]
    env: Mapping[str, str]
    memory: int
    cpus: float
    cpus_open: bool = True
    pids: int
    nofile: int
    tmp_size: int
    tmp_inodes: int
    shm_size: int
    mounts: tuple[Mount, ...]
    labels: Mapping[str, str]
    seccomp: str
    hostname: str
    log_size: int
    loopback: bool = False
    gpus: int | str | tuple[str, ...] = 0


@dataclass(frozen=True, kw_only=True)
class ImageFacts:
    """An image that is on this machine."""

    id: str
    labels: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class ContainerState:
    """What the engine says of a container; ``pid`` is PID 1's number on the host."""

    running: bool
    pid: int
    exit_code: int
    oom_killed: bool
    error: str


@dataclass(frozen=True, kw_only=True)
class ContainerSummary:
    """A row of the engine's list; ``state`` is ``running``, ``exited``, ``created``..."""

    id: str
    name: str
    state: str
    labels: Mapping[str, str]


class NameTakenError(Exception):
    """A container of that name exists: take the next uid."""


class Engine(Protocol):
    """The calls that running kernels need (D7). Each blocks, with a deadline.

    All raise ``EngineError`` or one of its kinds; ``kill`` and ``remove`` of what is
    not there are no errors.
    """

    def by(self, moment: float) -> "Engine":
        """The same engine, whose calls all end by then (monotonic clock)."""
        ...

    def answers(self) -> bool:
        """Whether an engine is there, whatever it says; one that hangs is as good as none."""
        ...

    def disk(self) -> str:
        """The folder where images and containers lie, on the machine that runs them."""
        ...

    def id_range(self) -> tuple[int, int]:
        """First uid that sandboxes may have, and how many there are."""
        ...

    def image(self, reference: str) -> ImageFacts:
        """Raise ``ImageMissingError`` where the image is not on this machine."""
        ...

    def create(self, spec: SandboxSpec, *, image_id: str, uid: int) -> str:
        """Make a container and return its id; raise ``NameTakenError`` if the uid is used."""
        ...

    def start(self, container: str) -> None:
        """Start PID 1."""
        ...

    def inspect(self, container: str) -> ContainerState | None:
        """Give the state, or None where the container is not there any more."""
        ...

    def limit_cpu(self, container: str, cpus: float) -> None:
        """Close the CPU limit that was left open while the sandbox started (D4)."""
        ...

    def kill(self, container: str, signal: str = "KILL") -> None:
        """Send PID 1 a signal."""
        ...

    def remove(self, container: str) -> None:
        """Kill and remove."""
        ...

    def list(self, label: str) -> tuple[ContainerSummary, ...]:
        """All containers, running or not, that carry ``label`` (``key=value``)."""
        ...

    def last_lines(self, container: str, count: int) -> str:
        """The end of what PID 1 and the kernel printed before they were claimed."""
        ...


ENGINES: Final[Mapping[str, str]] = {"docker": "kernel_provider.engines.docker:DockerEngine"}


def open_engine(kind: str, address: str) -> Engine:
    """Make the engine ``kind`` of the table; nothing is sent to it yet."""
    module, _, name = ENGINES[kind].partition(":")
    factory: Any = getattr(import_module(module), name)
    return cast("Engine", factory(address))
