"""The image that everything stands on: pulled, or made from Debian's packages.

A base that was made here is kept under a name that tells what it was made from, and
the next build takes it as it is.
"""

import hashlib
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

from kernel_provider.builder.images import Images
from kernel_provider.builder.model import AUTO, BuildRequest
from kernel_provider.builder.process import follow, last_words
from kernel_provider.errors import BuildError

OFFICIAL: Final = "python:3.11-slim"
SUITE: Final = "bookworm"
PACKAGES: Final = ("python3",)
SYSTEM_PATH: Final = "/usr/local/sbin:/usr/sbin:/sbin"
_MOUNT_POINTS: Final = ("dev", "proc", "sys")


def debian_name() -> str:
    """Name of the base that is made here; it changes with what goes into it."""
    digest = hashlib.sha256(repr((1, SUITE, PACKAGES)).encode()).hexdigest()
    return f"executor-ml-debian:{SUITE}-{digest[:12]}"


def resolve(request: BuildRequest, images: Images, say: Callable[[str], None]) -> str:
    """Name of a base image that is on this machine when this returns.

    Raises:
        BuildError: the one asked for is not to be had, or none can be pulled or made.
    """
    if request.base != AUTO:
        if not images.present(request.base):
            say(f"pulling {request.base}")
            problem = images.pull(request.base)
            if problem:
                raise _failed(request, [problem], "name an image that docker pull finds")
        return request.base
    made = debian_name()
    if not request.refresh_base:
        for name in (OFFICIAL, made):
            if images.present(name):
                return name
    say(f"pulling {OFFICIAL}")
    problem = images.pull(OFFICIAL)
    if problem is None:
        return OFFICIAL
    say("no registry answers; making a base from Debian's packages")
    make(request, images, made, problem, say)
    return made


def make(
    request: BuildRequest,
    images: Images,
    name: str,
    why: str,
    say: Callable[[str], None],
) -> None:
    """Make the base with debootstrap and give it ``name``.

    Raises:
        BuildError: it can't be made here; says how it can, or that ``why`` no base
            could be pulled.
    """
    program = shutil.which("debootstrap", path=f"{os.environ.get('PATH', '')}:{SYSTEM_PATH}")
    remedy = "let Docker pull python:3.11-slim, name another base with --base IMAGE, or "
    if program is None:
        raise _failed(request, [why], remedy + "apt-get install debootstrap")
    if os.geteuid() != 0:
        raise _failed(request, [why], remedy + "build as root, which debootstrap needs")
    folder = Path(tempfile.mkdtemp(prefix="executor-ml-base-"))
    try:
        root = folder / "root"
        _debootstrap(request, program, root, say)
        say("importing it")
        archive = folder / "root.tar"
        pack(root, archive)
        images.load_root(archive, name)
    finally:
        remove_tree(folder)


def debootstrap_command(program: str, root: Path) -> list[str]:
    """How the root file system is made, with the host's own choice of mirror."""
    include = f"--include={','.join(PACKAGES)}"
    return [program, "--variant=minbase", include, SUITE, str(root)]


def _debootstrap(
    request: BuildRequest, program: str, root: Path, say: Callable[[str], None]
) -> None:
    environ = {
        "PATH": f"{os.environ.get('PATH', '')}:{SYSTEM_PATH}",
        "LC_ALL": "C",
        "DEBIAN_FRONTEND": "noninteractive",
    }
    code, lines = follow(
        debootstrap_command(program, root),
        environ,
        lambda line: say(line.removeprefix("I: ").rstrip(". ")),
    )
    if code:
        raise _failed(request, lines, "see that this machine reaches a Debian mirror")


def pack(root: Path, archive: Path) -> None:
    """Write the tree below ``root`` to a tar; mount points stay empty."""

    def keep(info: tarfile.TarInfo) -> tarfile.TarInfo | None:
        first, _, rest = info.name.removeprefix("./").partition("/")
        return None if rest and first in _MOUNT_POINTS else info

    with tarfile.open(archive, "w") as tar:
        tar.add(root, arcname=".", filter=keep)


def remove_tree(folder: Path) -> None:
    """Remove a folder; what a cut-short debootstrap left mounted in it comes off first.

    Nothing is removed while something is still mounted there, for it would be emptied.
    """
    for point in reversed(mounted_below(folder, Path("/proc/self/mountinfo").read_text())):
        subprocess.run(["umount", "--lazy", point], check=False)  # noqa: S607  in any PATH
    if not mounted_below(folder, Path("/proc/self/mountinfo").read_text()):
        shutil.rmtree(folder, ignore_errors=True)


def mounted_below(folder: Path, mountinfo: str) -> list[str]:
    """Mount points inside ``folder``, outer ones first (proc(5), mountinfo)."""
    points = [line.split()[4] for line in mountinfo.splitlines() if line]
    return sorted(point for point in points if Path(point).is_relative_to(folder))


def _failed(request: BuildRequest, lines: list[str], remedy: str) -> BuildError:
    return BuildError(
        image=request.image,
        step="getting a base image",
        last_words=last_words(lines),
        remedy=remedy,
    )
