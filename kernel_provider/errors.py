"""Every failure that a person can meet, each with its exit code and its remedy.

An error is its class and its data: the text is made from both, never the other way
round, so that the command line, the server log and JupyterLab's dialog show the same
words, and so that an error crosses a process as ``to_wire()``. The first line says
what happened, the second how to mend it. No per cent signs: jupyter_server doubles
them.
"""

import errno
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar


class SandboxError(RuntimeError):
    """Base of all errors of this project.

    ``summary`` and ``fix`` are format strings over the keyword arguments, which stay
    readable as ``data``.
    """

    exit_code: ClassVar[int] = 1
    summary: ClassVar[str] = "{reason}"
    fix: ClassVar[str] = "run executor-ml doctor, and report this if it finds nothing"

    def __init__(self, **data: Any) -> None:
        self.data = data
        super().__init__(f"{self.summary.format(**data)}\nFix: {self.fix.format(**data)}")

    def to_wire(self) -> dict[str, Any]:
        """A JSON-ready mapping that ``from_wire`` turns into the same error again."""
        return {"error": type(self).__name__, "data": self.data}


class ConfigError(SandboxError):
    """A setting that cannot be honoured; the kernel is not started (D6)."""

    exit_code = 78
    summary = "{source}: {key} = {value!r} is not possible: {reason}"
    fix = "change {key} in {source}"


class ConfigFileError(ConfigError):
    """An administrator's file that cannot be understood: it was meant as a ceiling."""

    summary = "{source} cannot be read: {reason}"
    fix = "mend it; no kernel starts before that"


class UnknownKeyError(ConfigError):
    """A setting that does not exist, with the nearest one that does."""

    summary = "{source}: there is no setting {key!r}{suggestion}"
    fix = "remove {key!r} or use one of: {known}"


class CeilingError(ConfigError):
    """A limit above what the administrator allows."""

    summary = "{source}: {key} = {value} is above the ceiling of {ceiling} set in {ceiling_source}"
    fix = "ask for at most {ceiling}, or have the administrator raise it in {ceiling_source}"


class MachineLimitError(ConfigError):
    """A limit above what the machine has, which would hold nothing back."""

    summary = "{source}: {key} = {value} is more than this machine has: {found}"
    fix = "ask for at most {found}"


class LoopbackError(ConfigError):
    """Loopback where its sockets escape the memory limit, and nobody insisted."""

    summary = (
        "{source}: loopback = true is not possible: on this machine (control groups "
        "version 1) sockets hold unread data outside of the memory limit"
    )
    fix = 'set loopback to "insist" in {source} to have it all the same'


class MountError(ConfigError):
    """A mount source that is missing, unreadable or not allowed."""

    summary = "{source}: cannot mount {path}: {reason}"
    fix = "mount a folder that this user can read and that the policy allows"


class EnvironmentTooLargeError(ConfigError):
    """More environment than a process can be started with, or a claim can bring."""

    summary = "the environment for this kernel takes {size} bytes, and {limit} are possible"
    fix = (
        "set fewer or shorter variables in the kernelspec; of the client's, TZ and NBGRADER_* count"
    )


class RuntimeFolderError(SandboxError):
    """The private folder for sockets cannot be used."""

    exit_code = 73
    summary = "the folder for kernel sockets, {path}, cannot be used: {reason}"
    fix = "set EXECUTOR_ML_RUNTIME_DIR to a short path to a folder that only you can enter"


class RuntimeFolderFullError(RuntimeFolderError):
    """The disk of that folder is full."""

    summary = "the folder for kernel sockets, {path}, cannot be used: its disk is full"
    fix = "free some room on the disk of {path}, or set EXECUTOR_ML_RUNTIME_DIR to another folder"


class ConnectionFileError(SandboxError):
    """Jupyter's own file for a kernel, which clients read, could not be written."""

    exit_code = 73
    summary = "the connection file {path} cannot be written: {reason}"
    fix = "free or mend that folder, or set JUPYTER_RUNTIME_DIR to another one"


class EngineError(SandboxError):
    """The container engine did not do what it was asked."""

    exit_code = 69
    summary = "the container engine failed to {action}: {reason}"
    fix = "look at the engine's own log; executor-ml doctor checks the rest"


class EngineUnreachableError(EngineError):
    """Nobody answers at the engine's socket."""

    summary = "no container engine answers at {socket} ({reason})"
    fix = (
        "start Docker, or set DOCKER_HOST to its unix:// socket; "
        "as root on Debian, 'executor-ml engine start' runs one"
    )


class EnginePermissionError(EngineError):
    """The engine is there, but not for this user."""

    exit_code = 77
    summary = "this user may not use the container engine at {socket}"
    fix = "join the group that owns {socket}, or point DOCKER_HOST at an engine of your own"


class EngineAddressError(EngineError):
    """DOCKER_HOST names something that descriptors cannot be passed through."""

    exit_code = 78
    summary = "DOCKER_HOST is {address}, and a sandbox needs an engine on this machine"
    fix = "set DOCKER_HOST to unix:///path/to/docker.sock, or unset it"


class EngineDiskError(EngineError):
    """The engine has no room for another container."""

    summary = "the container engine failed to {action}: its disk is full, at {folder}"
    fix = "free some room there: docker system df tells what takes it, executor-ml doctor how much"


class SandboxLeftError(EngineError):
    """A sandbox has ended, and the engine did not remove what is left of it."""

    summary = "the container engine did not remove {container}, which has ended: {reason}"
    fix = "nothing of it runs; once the engine answers, the next start or executor-ml prune does it"


class ProxySocketError(SandboxError):
    """The proxy before the engine cannot listen where it was told to."""

    exit_code = 73
    summary = "the proxy cannot listen at {socket}: {reason}"
    fix = "name another path with --socket, in a folder of root's, and a group that exists"


class GpuError(EngineError):
    """The engine could not give a sandbox the GPUs that it was asked for."""

    summary = "the engine did not start a sandbox with GPUs: {reason}"
    fix = (
        "install NVIDIA's driver and container toolkit, run nvidia-ctk runtime configure, and "
        "restart the engine; or take gpus out of the settings"
    )


class ImageMissingError(SandboxError):
    """The image is not on this machine; launches never pull or build."""

    exit_code = 72
    summary = "the image {image} is not on this machine"
    fix = "run: executor-ml build"


class ImageUnknownError(ImageMissingError):
    """An image that is not the usual one, and may be misspelt; with those there are."""

    summary = "the image {image} is not on this machine{suggestion}"
    fix = "{remedy}"


class ImageProtocolError(SandboxError):
    """The image speaks another version than this package."""

    exit_code = 72
    summary = (
        "the image {image} speaks protocol {found}, and this version of "
        "executor-ml-kernel speaks {expected}"
    )
    fix = "run: executor-ml build"


class LimitNotHeldError(SandboxError):
    """The engine took a limit and does not hold it, so the launch was ended (D6)."""

    exit_code = 70
    summary = "the engine does not hold the limit {key}: asked for {asked}, found {found}"
    fix = "run executor-ml doctor: the host's cgroups lack what this limit needs"


class StartError(SandboxError):
    """The sandbox ended, or said nothing, while it was starting."""

    exit_code = 70
    summary = "the sandbox did not start: {reason}{last_words}"
    fix = "run: executor-ml build (or raise startup_timeout on a slow machine)"


class PreloadError(StartError):
    """A module that the policy wants imported cannot be."""

    summary = "the sandbox did not start: what preload names cannot be imported{last_words}"
    fix = "take it out of preload, or use an image that has it"


class WorkspaceError(SandboxError):
    """The notebook's folder could not be copied into the sandbox."""

    exit_code = 78
    summary = "the notebook's folder {folder} cannot be copied into the sandbox: {reason}"
    fix = "{remedy}"


class WorkspaceImageError(SandboxError):
    """The image was made before sandboxes could take a folder."""

    exit_code = 72
    summary = "the image {image} is too old to take a copy of the notebook's folder"
    fix = "run: executor-ml build (or set workspace to none)"


class StartMemoryError(StartError):
    """What a sandbox imports before it is ready takes more than its memory."""

    fix = 'preload less, or raise "memory" in the kernelspec'


class StaleError(SandboxError):
    """A parked sandbox is not what would be started now; a launch goes on without it."""

    exit_code = 70
    summary = "the image {image} was replaced while a sandbox of it was parked"
    fix = "start the kernel again"


class WardenError(SandboxError):
    """The process beside the sandbox is gone or does not answer."""

    exit_code = 70
    summary = "the warden of this kernel {reason}"
    fix = "restart the kernel; if it happens again, report it with the server's log"


class UpgradedError(WardenError):
    """A process that goes on while its package is replaced starts wardens of another one."""

    summary = (
        "the process that starts this kernel runs version {old} of executor-ml-kernel, and "
        "another one, {new}, was installed meanwhile"
    )
    fix = "restart it: the Jupyter server, or whatever else starts kernels"


class BuildError(SandboxError):
    """An image could not be built; the old one, if any, is still in place."""

    exit_code = 65
    summary = "building {image} failed at: {step}{last_words}"
    fix = "{remedy}"


class CudaTorchError(BuildError):
    """A torch, or a lock, that brings gigabytes of CUDA packages into a CPU image."""

    summary = "{what} brings in CUDA packages that this image has no use for: {packages}"
    fix = (
        "take the CPU build of torch: pip finds it with --extra-index-url {index}; or, for an "
        "image with GPUs, put the line # gpu: cuda into your file of requirements"
    )


def of_runtime_folder(root: str, error: OSError) -> RuntimeFolderError:
    """What went wrong below the folder for sockets, told as the folder's."""
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return RuntimeFolderFullError(path=root)
    return RuntimeFolderError(path=root, reason=error.strerror or "unusable")


def suggest(word: str, known: Iterable[str]) -> str:
    """The end of a sentence on an unknown word: the nearest known one, if any is near."""
    import difflib  # noqa: PLC0415  on the path of no start that succeeds

    near = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def from_wire(wire: Mapping[str, Any]) -> SandboxError:
    """The error that ``to_wire`` described; raises KeyError for an unknown name."""
    known: dict[str, type[SandboxError]] = {}
    pending: list[type[SandboxError]] = [SandboxError]
    while pending:
        kind = pending.pop()
        known[kind.__name__] = kind
        pending.extend(kind.__subclasses__())
    return known[wire["error"]](**wire["data"])
