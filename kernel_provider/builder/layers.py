"""What images are stacked from: one layer for each requirement file, on the one it names.

``common`` is the lowest: a kernel, tables and plots. ``ml`` stands on it, and so does every
file that begins with ``-r common.in`` or names nothing; one with ``-r ml.in`` stands on
``ml``. Layers are shared: what is below is there once, whatever stands on it.

A file with the line ``# gpu: cuda`` is for GPUs: its packages may need those of CUDA.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kernel_provider.builder.lock import Lock, normalised, read_lock
from kernel_provider.builder.model import DEFAULT_STACK, BuildRequest
from kernel_provider.errors import ConfigError
from kernel_provider.variants import DEFAULT, ENDING, is_file, name_of

COMMON: Final = "common"
CUDA: Final = "cuda"
GPU_LINE: Final = f"# gpu: {CUDA}"
"""What a file of requirements says that is meant for GPUs."""

_BELOW: Final = re.compile(r"^\s*-r\s+(\S+)\.in\s*(?:#.*)?$", re.MULTILINE)
_GPU: Final = re.compile(r"^#\s*gpu:\s*(\S+)\s*$", re.MULTILINE)
_NAMED: Final = re.compile(r"^\s*([A-Za-z0-9][A-Za-z0-9._-]*)", re.MULTILINE)
_NAME: Final = re.compile(r"[a-z0-9]+(?:[._-][a-z0-9]+)*")
_SOURCE: Final = "executor-ml build"


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One requirement file and what goes with it, by the same name.

    ``ours`` is false for a person's own file, whose lock a build writes. ``gpu``: its
    packages, or those of a layer below, may need CUDA's.
    """

    name: str
    stack: str
    requirements: Path
    below: tuple["Layer", ...] = ()
    ours: bool = True
    gpu: bool = False

    @property
    def lock(self) -> Path:
        """Pins with hashes, of what no layer below has."""
        return self.requirements.with_suffix(".lock")

    @property
    def unhashed(self) -> Path | None:
        """Pins without hashes; None if there are none."""
        return self._beside(".unhashed")

    @property
    def locks(self) -> tuple[Path, ...]:
        """All files with pins."""
        return (self.lock, self.unhashed) if self.unhashed else (self.lock,)

    @property
    def files(self) -> tuple[Path, ...]:
        """All that a build of the layer reads, in the order of their names."""
        more = (self._beside(ending) for ending in (".ipynb", ".models"))
        return tuple(sorted([*self.locks, *(path for path in more if path)]))

    def _beside(self, ending: str) -> Path | None:
        path = self.requirements.with_suffix(ending)
        return path if path.exists() else None

    def pins(self) -> Lock:
        """Versions of what it adds, by name."""
        return read_lock(path.read_text(encoding="utf-8") for path in self.locks)

    def pins_below(self) -> Lock:
        """Versions of what is there before, by name."""
        return {name: version for layer in self.below for name, version in layer.pins().items()}

    def wanted(self) -> str:
        """The requirements as pip reads them, without the line that names what is below."""
        return _BELOW.sub("", self.requirements.read_text(encoding="utf-8"))

    def named(self) -> tuple[str, ...]:
        """Distributions that its file names, and not only needs."""
        return tuple(normalised(name) for name in _NAMED.findall(self.wanted()))


def stack_of_layers(request: BuildRequest, stacks: Path) -> tuple[Layer, ...]:
    """The layers of an image, the lowest first.

    Raises:
        ConfigError: there is no such stack or variant; the error lists those there are.
    """
    known = sorted(path.parent.name for path in stacks.glob(f"*/{COMMON}.lock"))
    if request.stack not in known:
        raise _refused(request.stack, f"there is {', '.join(known)}", key="stack")
    folder = stacks / request.stack
    ours = {path.stem: path for path in sorted(folder.glob(f"*{ENDING}"))}
    name = name_of(request.variant)
    if (is_file(request.variant) or name not in ours) and request.stack != DEFAULT_STACK:
        there = ", ".join(sorted(ours.keys() - {COMMON}))
        reason = f"the stack {request.stack} has {there} only; variants are for {DEFAULT_STACK}"
        raise _refused(request.variant, reason)
    if not is_file(request.variant):
        if name not in ours or name == COMMON:
            others = sorted(ours.keys() - {DEFAULT, COMMON})
            reason = f"there is {', '.join([DEFAULT, *others])}, or a file of your own"
            raise _refused(request.variant, reason)
        top = _layer(ours[name], ours, request, ours=True)
    else:
        top = _layer(_persons_file(request.variant, name, ours), ours, request, ours=False)
    return (*top.below, top)


def _persons_file(given: str, name: str, ours: Mapping[str, Path]) -> Path:
    path = Path(given).expanduser().absolute()
    if not path.is_file():
        raise _refused(given, "there is no such file")
    if path.suffix != ENDING or not _NAME.fullmatch(name):
        reason = f"it is to be called NAME{ENDING}, with letters (small), digits and hyphens"
        raise _refused(given, reason)
    if name in ours:
        raise _refused(given, f"{name} is a variant already; give the file another name")
    return path


def _layer(path: Path, known: Mapping[str, Path], request: BuildRequest, *, ours: bool) -> Layer:
    """A file with all that it stands on, which are files of the stack."""
    found = _BELOW.findall(path.read_text(encoding="utf-8"))
    if len(found) > 1 or not set(found) <= known.keys() - {path.stem}:
        reason = f"{path.name} can stand on one of {', '.join(sorted(known))}: -r NAME{ENDING}"
        raise _refused(request.variant, reason)
    on = found[0] if found else COMMON
    below: tuple[Layer, ...] = ()
    if path.stem != COMMON:
        under = _layer(known[on], known, request, ours=True)
        below = (*under.below, under)
    gpu = _is_for_gpus(path, below, request)
    return Layer(
        name=path.stem, stack=request.stack, requirements=path, below=below, ours=ours, gpu=gpu
    )


def _is_for_gpus(path: Path, below: tuple[Layer, ...], request: BuildRequest) -> bool:
    """Whether a file says so, or stands on one that does; never on PyTorch's other build."""
    says = set(_GPU.findall(path.read_text(encoding="utf-8")))
    if says - {CUDA}:
        reason = f"{path.name} asks for {', '.join(sorted(says - {CUDA}))}: the line is {GPU_LINE}"
        raise _refused(request.variant, reason)
    if says and DEFAULT in {layer.name for layer in below}:
        reason = (
            f"{path.name} has the line {GPU_LINE}, and {DEFAULT} has the PyTorch for processors: "
            f"put it on {COMMON}"
        )
        raise _refused(request.variant, reason)
    return bool(says) or any(layer.gpu for layer in below)


def _refused(value: str, reason: str, *, key: str = "variant") -> ConfigError:
    return ConfigError(source=_SOURCE, key=key, value=value, reason=reason)
