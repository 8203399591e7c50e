"""What is in an image, file by file, and what must not be."""

import re
import tarfile
from collections.abc import Iterator
from typing import IO, cast

import docker

from kernel_provider import names

INSTALLERS = {
    "pip",
    "pip3",
    "ensurepip",
    "easy_install",
    "setuptools",
    "pkg_resources",
    "uv",
}
PACKAGE_MANAGERS = {"apt", "apt-get", "apt-cache", "apt-key", "dpkg", "dpkg-deb", "dselect"}
COMPILERS = {
    *("as", "c++", "c89", "c99", "cc", "clang", "cpp", "g++", "gcc", "gdb", "gfortran"),
    *("go", "ld", "ld.bfd", "make", "ninja", "nvcc", "rustc", "tcc", "cmake"),
}
PRIVILEGED = {"mount", "umount", "su", "sudo", "passwd", "chsh", "chfn", "newgrp", "login"}
NETWORK = {"curl", "wget", "ssh", "nc", "ncat", "telnet", "ip", "ifconfig", "openssl"}
FORBIDDEN = INSTALLERS | PACKAGE_MANAGERS | COMPILERS | PRIVILEGED | NETWORK | {"perl"}
FORBIDDEN_FOLDERS = ("usr/include", "var/lib/dpkg", "var/lib/apt", "etc/apt", "usr/lib/apt")
ENDINGS = (".h", ".hpp", ".c", ".cpp", ".a", ".o", ".la", ".pc", ".deb", ".whl")


def files_of(engine: docker.DockerClient, image: str) -> list[tarfile.TarInfo]:
    """Every file of an image, as the engine exports it."""
    container = engine.containers.create(image, labels={names.LABEL: "test"})
    try:
        stream = cast("Iterator[bytes]", container.export())
        with tarfile.open(fileobj=cast("IO[bytes]", _Reader(stream)), mode="r|") as tar:
            return list(tar)
    finally:
        container.remove(force=True)


class _Reader:
    """Bytes that arrive in pieces, as a file to read."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = b""

    def read(self, size: int) -> bytes:
        """Up to ``size`` bytes; fewer only at the end."""
        while len(self._rest) < size:
            piece = next(self._pieces, None)
            if piece is None:
                break
            self._rest += piece
        taken, self._rest = self._rest[:size], self._rest[size:]
        return taken


def base_name(name: str) -> str:
    """A program's or module's name without version and ending: pip3.11, setuptools.py."""
    return re.sub(r"(-?\d[\d.]*)?(\.py|\.exe)?$", "", name.rpartition("/")[2])


def forbidden_programs(files: list[tarfile.TarInfo]) -> list[str]:
    """What could install, build, fetch or raise rights."""
    programs = [
        file.name
        for file in files
        if re.search(r"(^|/)s?bin/[^/]+$", file.name) and not file.isdir()
    ]
    assert "opt/venv/bin/python3" in programs
    return [name for name in programs if {base_name(name), name.rpartition("/")[2]} & FORBIDDEN]


def installer_modules(files: list[tarfile.TarInfo]) -> list[str]:
    """Modules of installers, and what is written of them."""
    found = [
        file.name
        for file in files
        if re.search(r"(^|/)(site|dist)-packages/[^/]+$|lib/python3[^/]*/[^/]+$", file.name)
        and (base_name(file.name) in INSTALLERS or file.name.endswith("python-wheels"))
    ]
    found += [file.name for file in files if re.search(r"/(pip|setuptools)-[^/]*$", file.name)]
    return found


def building_material(files: list[tarfile.TarInfo]) -> list[str]:
    """What there is to compile with, and traces of a package manager."""
    found = [file.name for file in files if file.name.endswith(ENDINGS)]
    return found + [file.name for file in files if file.name.startswith(FORBIDDEN_FOLDERS)]


def privileged(files: list[tarfile.TarInfo]) -> list[str]:
    """Files that raise rights, devices, and folders that everyone may write but for /tmp."""
    found = [file.name for file in files if file.isfile() and file.mode & 0o6000]
    found += [f.name for f in files if f.isdev() and not f.name.startswith("dev/")]
    writable = [file.name for file in files if file.mode & 0o002 and not file.issym()]
    return found + sorted({name.rstrip("/") for name in writable} - {"tmp", "var/tmp", "run/lock"})


def closed(files: list[tarfile.TarInfo]) -> list[str]:
    """What a kernel needs and a uid that the image has never heard of cannot read."""
    needed = [file for file in files if file.name.startswith(("opt/", "usr/", "models"))]
    assert len(needed) > 5000
    return [
        file.name
        for file in needed
        if not file.issym() and file.mode & (0o005 if file.isdir() else 0o004) == 0
    ]


def rule_breakers(files: list[tarfile.TarInfo]) -> list[str]:
    """All of that."""
    rules = (forbidden_programs, installer_modules, building_material, privileged, closed)
    return [name for rule in rules for name in rule(files)]
