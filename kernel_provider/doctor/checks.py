"""Judge what was found: one small pure function for each line of the report."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from kernel_provider import names
from kernel_provider.doctor.jupyter import is_older
from kernel_provider.doctor.model import (
    CheckResult,
    EngineFacts,
    Facts,
    GpuFacts,
    Space,
    fail,
    failed,
    ok,
    skip,
    warn,
)
from kernel_provider.engines import ImageFacts
from kernel_provider.engines.docker import API
from kernel_provider.errors import GpuError, ImageProtocolError, SandboxError
from kernel_provider.kernelspecs import Kernelspec
from kernel_provider.policy import KernelPolicy
from kernel_provider.values import MIB, Gpus, show

Check = Callable[[Facts], CheckResult]

ENGINE: Final = "engine"
KERNELSPECS: Final = "kernelspecs"
LEFTOVERS: Final = "leftovers"
IMAGE: Final = "image "

ORJSON_MENDED: Final = (3, 9, 15)
"""Older ones crash their process on deeply nested JSON, which a kernel can send.
CVE-2024-27454, https://github.com/ijl/orjson/blob/master/CHANGELOG.md"""

_ENGINE_SPACE: Final = (512 * MIB, 4096 * MIB)
_RUNTIME_SPACE: Final = (MIB, 16 * MIB)
"""Free room below which a check fails, and below which it warns: an image and its stages
take GBs, a kernel writes a few KB to the folder for sockets."""

_SHOWN: Final = 4


def _of_engine(name: str, judge: Callable[[str, EngineFacts], CheckResult]) -> Check:
    """A check that needs an engine that answers."""

    def check(facts: Facts) -> CheckResult:
        if isinstance(facts.engine, SandboxError):
            return skip(name, "no engine to ask")
        return judge(name, facts.engine)

    return check


def engine(facts: Facts) -> CheckResult:
    """Whether one answers, and to this user."""
    if isinstance(facts.engine, SandboxError):
        return failed(ENGINE, facts.engine)
    return ok(ENGINE, f"Docker {facts.engine.version} answers at {facts.engine.socket}")


def api(name: str, engine: EngineFacts) -> CheckResult:
    """Whether it speaks the version of the API that is spoken here."""
    ours = f"{API[0]}.{API[1]}"
    range_ = f"{engine.oldest_api} to {engine.api}; {ours} is the least that is needed"
    if _numbers(engine.api) < API:
        return fail(name, range_, "install Docker 20.10 or newer")
    return ok(name, range_)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdecimal())


def cgroups(name: str, engine: EngineFacts) -> CheckResult:
    """Which control groups hold the limits."""
    if engine.cgroup_version not in {"1", "2"} or engine.cgroup_driver == "none":
        remedy = "run the engine where it may use control groups (rootless: version 2 only)"
        return fail(name, "the engine has none", remedy)
    return ok(name, f"version {engine.cgroup_version}, driver {engine.cgroup_driver}")


def limits(name: str, engine: EngineFacts) -> CheckResult:
    """Whether it can hold every limit that a sandbox has, and what there is to be limited."""
    if not engine.lacking:
        there = f"{engine.machine.cpus:g} processors, {engine.machine.memory // MIB} MB"
        return ok(name, f"memory, swap, cpus and pids can be held, of {there}")
    found = f"the engine cannot hold: {', '.join(engine.lacking)}"
    if engine.rootless:
        return fail(name, found, "delegate these controllers: systemctl edit user@.service")
    return fail(name, found, "boot with cgroup_enable=memory swapaccount=1, or without version 1")


def seccomp(name: str, engine: EngineFacts) -> CheckResult:
    """Whether it can filter system calls."""
    if engine.seccomp:
        return ok(name, "the engine filters system calls")
    return fail(name, "the engine cannot filter system calls", "use a kernel with CONFIG_SECCOMP")


def image(reference: str, found: ImageFacts | SandboxError) -> CheckResult:
    """Whether an image is there and speaks as this package does."""
    name = f"{IMAGE}{reference}"
    if isinstance(found, SandboxError):
        return failed(name, found)
    spoken = found.labels.get(names.LABEL_PROTOCOL, "none")
    if spoken != str(names.PROTOCOL):
        error = ImageProtocolError(image=reference, found=spoken, expected=names.PROTOCOL)
        return failed(name, error)
    versions = found.labels.get(names.LABEL_VERSIONS, "").replace(" ", ", ")
    return ok(name, f"protocol {spoken}, {versions or 'versions not told'}")


def ceilings(facts: Facts) -> CheckResult:
    """Whether the administrator's policy can be read."""
    name = "ceilings"
    if isinstance(facts.ceilings, SandboxError):
        return failed(name, facts.ceilings)
    held = [f"{key} {show(key, limit)}" for key, limit in facts.ceilings.limits.items()]
    return ok(name, ", ".join(held) or "none")


def kernelspecs(facts: Facts) -> CheckResult:
    """Whether there is any."""
    readable = [spec.name for spec in facts.kernelspecs if not spec.problem]
    if not readable:
        return fail(KERNELSPECS, "no kernelspec asks for a sandbox", "run: executor-ml install")
    return ok(KERNELSPECS, ", ".join(readable))


def kernelspec(spec: Kernelspec, facts: Facts) -> CheckResult:
    """Whether one kernelspec's kernels may start, and never start outside a sandbox."""
    name = spec.source
    try:
        spec.check()
    except SandboxError as error:
        return failed(name, error)
    if not _is_our_launcher(spec.argv):
        found = f"clients without provisioners would run this outside a sandbox: {spec.argv[0:3]}"
        return fail(name, found, _right_argv(spec))
    if isinstance(facts.ceilings, SandboxError):
        return skip(name, "the administrator's policy cannot be read")
    held = facts.ceilings
    if isinstance(facts.engine, EngineFacts):
        held = replace(held, machine=facts.engine.machine)
    try:
        policy = spec.policy(held)
    except SandboxError as error:
        return failed(name, error)
    return _startable(spec, policy, facts.gpus)


def _startable(spec: Kernelspec, policy: KernelPolicy, gpus: GpuFacts) -> CheckResult:
    """What is left to see of one whose limits are possible."""
    name = spec.source
    lacking = _lacking(policy.gpus, gpus)
    if lacking:
        return fail(
            name, f"it asks for GPUs, and there is no {' and no '.join(lacking)}", GpuError.fix
        )
    doubt = _doubt(spec)
    if doubt is not None:
        return warn(name, *doubt)
    given = ", ".join(spec.config) or "nothing"
    limits = f"memory {show('memory', policy.memory)}, cpus {show('cpus', policy.cpus)}"
    return ok(name, f"{limits}; it sets {given}")


def _lacking(wanted: Gpus, there: GpuFacts) -> list[str]:
    """What sandboxes with these GPUs need and is not there."""
    devices = wanted if isinstance(wanted, tuple) else (str(wanted),) if wanted else ()
    by_cdi = any("=" in device for device in devices)
    plain = any("=" not in device for device in devices)
    needed = {
        "driver of NVIDIA's on this machine": bool(devices) and not there.driver,
        "container toolkit of NVIDIA's in the engine": plain and not there.toolkit,
        "specification of them in /etc/cdi (nvidia-ctk cdi generate)": by_cdi and not there.cdi,
    }
    return [what for what, missing in needed.items() if missing]


def _is_our_launcher(argv: tuple[str, ...]) -> bool:
    program = Path(argv[0]).name if argv else ""
    return (
        program in {"executor-ml", "jupyter-executor-ml"}
        and argv[1:2] == ("launch",)
        and argv[-1] == "{connection_file}"
    )


def _right_argv(spec: Kernelspec) -> str:
    wanted = f'["executor-ml", "launch", "--kernel", "{spec.name}", "{{connection_file}}"]'
    return f"set argv to {wanted} in {spec.file}"


def _doubt(spec: Kernelspec) -> tuple[str, str] | None:
    """What clients without provisioners would stumble over, with its remedy."""
    if Path(spec.argv[0]).is_absolute() and not Path(spec.argv[0]).exists():
        remedy = f"run: executor-ml install --name {spec.name} --replace, with its options"
        return f"its program {spec.argv[0]} is gone", remedy
    if spec.argv[2:-1] not in {(), ("--kernel", spec.name)}:
        found = "clients without provisioners would get the settings of another kernelspec"
        return found, _right_argv(spec)
    return None


def provisioner(facts: Facts) -> CheckResult:
    """Whether Jupyter can import what starts our kernels."""
    name = "provisioner"
    if facts.provisioner_problem:
        remedy = "pip install executor-ml-kernel where Jupyter is, then restart the server"
        return fail(name, f"cannot be imported: {facts.provisioner_problem}", remedy)
    return ok(name, "can be imported")


def jupyter(facts: Facts) -> CheckResult:
    """Whether the ``jupyter`` that a person would start lists every kernelspec of ours."""
    name = "jupyter"
    if not facts.jupyters:
        return warn(name, "there is no jupyter program", "pip install jupyterlab")
    if not facts.kernelspecs:
        return skip(name, "no kernelspec to look for")
    wanted = {spec.name for spec in facts.kernelspecs if not spec.problem}
    first, *others = facts.jupyters
    missing = ", ".join(sorted(wanted - first.names))
    if not missing:
        return ok(name, f"{first.program} lists them all")
    found = f"{first.program} does not list {missing}"
    found += f" ({first.problem})" if first.problem else ""
    better = [other.program for other in others if wanted <= other.names]
    if better:
        return warn(name, found, f"start {better[0]}, or install executor-ml-kernel there too")
    if first.problem:
        return fail(name, found, f"see what it says: {first.program} kernelspec list")
    return fail(name, found, "the lines above on provisioner and kernelspecs say why")


def orjson(facts: Facts) -> CheckResult:
    """Whether Jupyter's JSON parser survives what a kernel can send."""
    name = "orjson"
    if facts.orjson is None:
        return ok(name, "not installed, so not used")
    if is_older(facts.orjson, ORJSON_MENDED):
        found = f"{facts.orjson}: a kernel's message can crash the server"
        return fail(name, found, "pip install --upgrade orjson, or uninstall it")
    return ok(name, facts.orjson)


def server(facts: Facts) -> CheckResult:
    """What the server's configuration leaves open to untrusted kernels."""
    name = "server settings"
    if facts.server is None:
        return skip(name, "jupyter_server is not installed here")
    if facts.server.problem:
        remedy = "mend it; jupyter --paths lists the folders of configuration"
        return warn(name, f"configuration cannot be read: {facts.server.problem}", remedy)
    open_, settings = [], []
    if facts.server.buffers_offline:
        open_.append("output is buffered without bound while no browser is connected")
        settings.append("MappingKernelManager.buffer_offline_messages = False")
    if facts.server.terminals:
        open_.append("scripts in a notebook's output can open terminals on this machine")
        settings.append("ServerApp.terminals_enabled = False")
    if facts.server.installs:
        open_.append("scripts in a notebook's output can install packages here")
        settings.append('LabApp.extension_manager = "readonly"')
    if not open_:
        return ok(name, "no offline buffering, no terminals, no installing")
    remedy = "in jupyter_server_config.py: " + "; ".join(f"c.{line}" for line in settings)
    return warn(name, "; ".join(open_), remedy)


def other_kernels(facts: Facts) -> CheckResult:
    """Whether a script in an output finds a kernel outside of any sandbox to start."""
    name = "other kernels"
    if facts.server is None:
        return skip(name, "jupyter_server is not installed here")
    if not facts.other_kernels:
        return ok(name, "every kernelspec asks for a sandbox")
    listed, first = _some(facts.other_kernels), facts.other_kernels[0]
    found = f"scripts in a notebook's output can start kernels outside of any sandbox: {listed}"
    instead = f"executor-ml install --sys-prefix --name {first} --replace"
    return warn(name, found, f"with untrusted notebooks, remove them, or put ours there: {instead}")


def _some(names: Sequence[str]) -> str:
    """The first few, and how many more there are."""
    more = len(names) - _SHOWN
    return f"{', '.join(names[:_SHOWN])}{f' and {more} more' if more > 0 else ''}"


def runtime(facts: Facts) -> CheckResult:
    """Whether sockets can be made."""
    name = "runtime folder"
    if isinstance(facts.runtime, SandboxError):
        return failed(name, facts.runtime)
    return ok(name, facts.runtime)


def _disk(name: str, space: Space | None, least: tuple[int, int]) -> CheckResult:
    if space is None or space.free is None:
        return skip(name, f"{space.folder} cannot be seen from here" if space else "unknown")
    found = f"{space.free // MIB} MB free at {space.folder}"
    remedy = f"free some room on the disk of {space.folder}"
    if space.free < least[0]:
        return fail(name, found, remedy)
    return warn(name, found, remedy) if space.free < least[1] else ok(name, found)


def engine_disk(facts: Facts) -> CheckResult:
    """Room for images."""
    return _disk("engine's disk", facts.engine_space, _ENGINE_SPACE)


def runtime_disk(facts: Facts) -> CheckResult:
    """Room for sockets and logs."""
    return _disk("runtime disk", facts.runtime_space, _RUNTIME_SPACE)


def leftovers(facts: Facts) -> CheckResult:
    """What dead processes left; the next start of a kernel removes it, too."""
    if facts.leftovers is None:
        return skip(LEFTOVERS, "could not be looked for")
    if not facts.leftovers:
        return ok(LEFTOVERS, "none")
    return warn(LEFTOVERS, _some(facts.leftovers), "run: executor-ml prune")


ENGINE_CHECKS: Final[tuple[Check, ...]] = (
    engine,
    _of_engine("engine API", api),
    _of_engine("control groups", cgroups),
    _of_engine("limits", limits),
    _of_engine("seccomp", seccomp),
)
JUPYTER_CHECKS: Final[tuple[Check, ...]] = (provisioner, jupyter, orjson, server, other_kernels)
HOST_CHECKS: Final[tuple[Check, ...]] = (runtime, runtime_disk, engine_disk, leftovers)


def examine(facts: Facts) -> tuple[CheckResult, ...]:
    """Judge everything, in the order of the report."""
    return (
        *(check(facts) for check in ENGINE_CHECKS),
        *(image(reference, found) for reference, found in facts.images.items()),
        *(check(facts) for check in (ceilings, kernelspecs)),
        *(kernelspec(spec, facts) for spec in facts.kernelspecs),
        *(check(facts) for check in JUPYTER_CHECKS),
        *(check(facts) for check in HOST_CHECKS),
    )
