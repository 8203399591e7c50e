"""What a bundle says of itself. Standard library only: it is read before any install."""

import json
import os
import platform
import re
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

FORMAT: Final = 1
"""Changes when an older version could no longer read what is written."""

MANIFEST: Final = "manifest.json"
SEAL: Final = "manifest.sha256"
"""Digest of the manifest, which holds those of all others; as sha256sum writes it."""

INSTALLER: Final = "install.py"
WHEELS: Final = "wheels/"
IMAGES: Final = "images/"

_PLATFORM: Final = re.compile(r"(manylinux|musllinux)_(\d+)_(\d+)_([a-z0-9_]+)")
_NAME: Final = re.compile(
    r"(?:[a-z0-9][a-z0-9._-]*(?::[0-9]+)?/)*"
    r"(?:executor-base|executor-ml(?:[._-][a-z0-9._-]+)?)"
    r":[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}"
)


def kernelspec_member(name: str) -> str:
    """Where a kernelspec's file is."""
    return f"kernelspecs/{name}/kernel.json"


def is_our_name(image: str) -> bool:
    """Whether a bundle may give an image that name: those of others are never touched."""
    return _NAME.fullmatch(image) is not None


def with_tag(image: str) -> str:
    """The name of an image as the engine lists it."""
    return image if ":" in image.rpartition("/")[2] else f"{image}:latest"


@dataclass(frozen=True, kw_only=True)
class Target:
    """A kind of machine: ``python`` as 3.12, ``platform`` as manylinux_2_28_x86_64."""

    python: str
    platform: str

    def __str__(self) -> str:
        return f"{self.python}, {self.platform}"

    @property
    def parts(self) -> tuple[str, tuple[int, int], str]:
        """C library, its version, and processor. Raises ValueError for other platforms."""
        found = _PLATFORM.fullmatch(self.platform)
        if found is None:
            raise ValueError(self.platform)
        return found[1], (int(found[2]), int(found[3])), found[4]

    @property
    def architecture(self) -> str:
        """The processor as engines call it."""
        machine = self.parts[2]
        return {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine)

    def runs_on(self, here: "Target") -> bool:
        """Whether wheels for this target can be used ``here``."""
        library, version, machine = self.parts
        library_here, version_here, machine_here = here.parts
        same = (self.python, library, machine) == (here.python, library_here, machine_here)
        return same and version <= version_here


def this_machine() -> Target:
    """What runs this; a Python with other wheels than CPython's has a name of its own."""
    python = f"{sys.version_info[0]}.{sys.version_info[1]}"
    if sys.implementation.name != "cpython":
        python += f"-{sys.implementation.name}"
    elif sysconfig.get_config_var("Py_GIL_DISABLED"):
        python += "t"
    return Target(python=python, platform=_library_and_machine())


def _library_and_machine() -> str:
    machine = platform.machine()
    try:
        name, _, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").partition(" ")
    except (ValueError, OSError):
        name, version = "", ""
    if name == "glibc":
        return f"manylinux_{version.replace('.', '_')}_{machine}"
    return f"musllinux_1_2_{machine}"


@dataclass(frozen=True, kw_only=True)
class Member:
    """A file in the bundle; ``size`` is in bytes."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class BundledImage:
    """An image in the bundle, in ``member``, compressed.

    ``id`` is what its engine called it, ``layers`` are the digests of what it is made of,
    ``size`` is what it takes once it is loaded.
    """

    name: str
    id: str
    layers: tuple[str, ...]
    labels: Mapping[str, str]
    size: int
    member: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """All that is in a bundle, but for the manifest and its seal."""

    package: str
    protocol: int
    target: Target
    images: tuple[BundledImage, ...]
    kernelspecs: tuple[str, ...]
    members: tuple[Member, ...]

    def to_json(self) -> str:
        """What ``read_manifest`` reads."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1) + "\n"

    def promised(self) -> tuple[str, ...]:
        """Members that images and kernelspecs are read from."""
        return (
            *(image.member for image in self.images),
            *(kernelspec_member(name) for name in self.kernelspecs),
        )

    def member(self, name: str) -> Member:
        """The member of that name; raises KeyError."""
        return {member.name: member for member in self.members}[name]


def read_format(text: str) -> object:
    """The format that a manifest has, whatever else is in it. Raises ValueError, KeyError."""
    wire = json.loads(text)
    if not isinstance(wire, dict):
        raise TypeError(text[:20])
    return wire["format"]


def read_manifest(text: str) -> Manifest:
    """The manifest of this version's format.

    Raises:
        ValueError, KeyError, TypeError: it is none.
    """
    wire: dict[str, Any] = json.loads(text)
    target = Target(**wire["target"])
    _ = target.parts
    return Manifest(
        package=str(wire["package"]),
        protocol=int(wire["protocol"]),
        target=target,
        images=tuple(
            BundledImage(**{**image, "layers": tuple(image["layers"])}) for image in wire["images"]
        ),
        kernelspecs=tuple(map(str, wire["kernelspecs"])),
        members=tuple(Member(**member) for member in wire["members"]),
    )
