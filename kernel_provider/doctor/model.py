"""The values that looking, judging and mending hand to each other."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from kernel_provider.ceilings import Ceilings, Machine
from kernel_provider.engines import ImageFacts
from kernel_provider.errors import SandboxError
from kernel_provider.kernelspecs import Kernelspec


class Status(StrEnum):
    """How a check ended; only ``fail`` stands in the way of kernels."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"
    SKIP = "skip"


@dataclass(frozen=True, kw_only=True)
class CheckResult:
    """One line of the doctor's report; ``fix`` is empty where there is nothing to do."""

    name: str
    status: Status
    found: str
    fix: str = ""


def ok(name: str, found: str) -> CheckResult:
    """Nothing to do."""
    return CheckResult(name=name, status=Status.OK, found=found)


def warn(name: str, found: str, fix: str) -> CheckResult:
    """Kernels start, but the person should know."""
    return CheckResult(name=name, status=Status.WARN, found=found, fix=fix)


def fail(name: str, found: str, fix: str) -> CheckResult:
    """Kernels don't start, or are not safe."""
    return CheckResult(name=name, status=Status.FAIL, found=found, fix=fix)


def skip(name: str, found: str) -> CheckResult:
    """It could not be looked at."""
    return CheckResult(name=name, status=Status.SKIP, found=found)


def failed(name: str, error: SandboxError) -> CheckResult:
    """An error as a line: what happened and the remedy are its own words."""
    found, _, fix = str(error).partition("\nFix: ")
    return fail(name, found, fix)


@dataclass(frozen=True, kw_only=True)
class EngineFacts:
    """What the engine says of itself; ``lacking`` are the limits that it can't hold.

    ``machine`` is what it has to give: that of another machine where it runs in one.
    """

    socket: str
    version: str
    api: str
    oldest_api: str
    cgroup_version: str
    cgroup_driver: str
    lacking: tuple[str, ...]
    seccomp: bool
    rootless: bool
    data_root: str
    machine: Machine
    runtimes: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True)
class GpuFacts:
    """What a sandbox with GPUs needs, and is there: NVIDIA's driver, and a way for the engine.

    ``toolkit`` is NVIDIA's container toolkit, ``cdi`` a specification of its devices.
    """

    driver: bool = False
    toolkit: bool = False
    cdi: bool = False


@dataclass(frozen=True, kw_only=True)
class Listing:
    """What a ``jupyter`` program lists; ``problem`` says why it lists nothing."""

    program: str
    names: frozenset[str] = frozenset()
    problem: str = ""


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """Settings of the Jupyter server that matter with untrusted kernels.

    ``installs`` is whether JupyterLab's page can install packages.
    """

    buffers_offline: bool = True
    terminals: bool = True
    installs: bool = True
    problem: str = ""


@dataclass(frozen=True, kw_only=True)
class Space:
    """Free bytes in a folder; ``free`` is None where the folder can't be seen."""

    folder: str
    free: int | None


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Everything that the checks look at; an error stands where a value would.

    ``jupyters`` are the programs that a person may start: the one on PATH first, then
    the one of this environment. ``other_kernels`` are kernelspecs that are not ours.
    ``orjson`` and ``server`` are None where those are not
    installed, ``leftovers`` where nobody could be asked.
    """

    engine: EngineFacts | SandboxError
    ceilings: Ceilings | SandboxError
    images: Mapping[str, ImageFacts | SandboxError] = field(default_factory=dict)
    kernelspecs: tuple[Kernelspec, ...] = ()
    other_kernels: tuple[str, ...] = ()
    provisioner_problem: str = ""
    jupyters: tuple[Listing, ...] = ()
    orjson: str | None = None
    server: ServerSettings | None = None
    runtime: str | SandboxError
    runtime_space: Space | None = None
    engine_space: Space | None = None
    leftovers: tuple[str, ...] | None = None
    gpus: GpuFacts = GpuFacts()
