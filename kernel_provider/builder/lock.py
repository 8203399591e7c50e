"""Locks: what goes into an image, and the refusal of what must not."""

import re
from collections.abc import Iterable, Mapping
from email.parser import HeaderParser
from typing import Final

from kernel_provider.errors import CudaTorchError

Lock = Mapping[str, str]
"""Version by normalised name (PEP 503)."""

CPU_INDEX: Final = "https://download.pytorch.org/whl/cpu"
"""PyTorch's own index of CPU builds, for those whose index has the CUDA build only."""

_PIN: Final = re.compile(r"^([A-Za-z0-9][A-Za-z0-9._-]*)==([^\s;\\]+)")
_NAME: Final = re.compile(r"^\s*([A-Za-z0-9][A-Za-z0-9._-]*)")
_EXTRA: Final = re.compile(r";.*\bextra\s*==")
_CUDA: Final = re.compile(r"^(nvidia-|cuda-|triton$|pytorch-triton)")


def normalised(name: str) -> str:
    """A distribution's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def read_lock(texts: Iterable[str]) -> Lock:
    """The pins of some lock files, in which a later one wins."""
    lock: dict[str, str] = {}
    for text in texts:
        for line in text.splitlines():
            if found := _PIN.match(line):
                lock[normalised(found[1])] = found[2]
    return lock


def is_of_cuda(name: str) -> bool:
    """Whether a distribution, by its normalised name, is of use with a GPU only."""
    return _CUDA.match(name) is not None


def refuse_cuda(what: str, wanted: Iterable[str]) -> None:
    """Raise CudaTorchError if ``what`` asks for packages that only a GPU can use."""
    packages = sorted(name for name in map(normalised, wanted) if is_of_cuda(name))
    if packages:
        shown = ", ".join(packages[:3]) + (", ..." if len(packages) > 3 else "")  # noqa: PLR2004
        raise CudaTorchError(what=what, packages=shown, index=CPU_INDEX)


def required(metadata: str) -> list[str]:
    """Names that a distribution's METADATA requires on this kind of machine.

    Those of an extra are left out. Other conditions are not looked at: PyTorch's CUDA
    builds name their CUDA packages for x86-64 Linux, which is what images are.
    """
    lines = HeaderParser().parsestr(metadata).get_all("Requires-Dist") or []
    found = (_NAME.match(line) for line in lines if not _EXTRA.search(line))
    return [normalised(match[1]) for match in found if match]
