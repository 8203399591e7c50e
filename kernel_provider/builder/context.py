"""The folder that an image is built from, and what a change in it means."""

import hashlib
import io
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from kernel_provider import names
from kernel_provider.builder.lock import Lock, read_lock
from kernel_provider.builder.model import DEFAULT_VARIANT, BuildRequest
from kernel_provider.errors import BuildError, ConfigError

_PACKAGE: Final = Path(__file__).resolve().parent.parent
_PLACES: Final = (_PACKAGE / "_data" / "image", _PACKAGE.parent / "image")
_BASE_PARTS: Final = ("Dockerfile", "launcher", "steps/strip_root.sh", "steps/skeleton.sh")
_ML_PARTS: Final = ("Dockerfile", "launcher", "steps")


@dataclass(frozen=True, kw_only=True)
class Context:
    """A build's inputs. ``locks`` are pinned with hashes, ``unhashed`` only by version."""

    folder: Path
    locks: tuple[Path, ...]
    installer: Path
    unhashed: Path | None

    def lock(self) -> Lock:
        """All that goes into the image, by name."""
        files = [*self.locks, *([self.unhashed] if self.unhashed else [])]
        return read_lock(path.read_text(encoding="utf-8") for path in files)


def find_folder(places: Iterable[Path] = _PLACES) -> Path:
    """The image folder inside an installed package, else the checkout's.

    Raises:
        BuildError: there is neither.
    """
    for place in places:
        if (place / "Dockerfile").is_file():
            return place
    raise BuildError(
        image=names.IMAGE,
        step="finding the Dockerfile",
        last_words="",
        remedy="install executor-ml-kernel again: its image folder is missing",
    )


def read_context(request: BuildRequest) -> Context:
    """The inputs for the request's stack and variant.

    Raises:
        ConfigError: there is no such stack or variant; the error lists those there are.
        BuildError: the image folder is missing.
    """
    folder = request.context or find_folder()
    stacks = folder / "stacks"
    known = sorted(path.parent.name for path in stacks.glob("*/requirements.lock"))
    if request.stack not in known:
        raise _unknown(request.stack, known, key="stack")
    stack = stacks / request.stack
    locks = [stack / "requirements.lock"]
    if request.variant != DEFAULT_VARIANT:
        variants = sorted({path.stem for path in stack.glob("*.lock")} - {"requirements"})
        if request.variant not in variants:
            known = [DEFAULT_VARIANT, *variants]
            raise _unknown(request.variant, known, key="variant")
        locks.append(stack / f"{request.variant}.lock")
    unhashed = stack / "unhashed.txt"
    return Context(
        folder=folder,
        locks=tuple(locks),
        installer=stacks / "pip.lock",
        unhashed=unhashed if unhashed.exists() else None,
    )


def _unknown(value: str, known: Iterable[str], *, key: str) -> ConfigError:
    return ConfigError(
        source="executor-ml build",
        key=key,
        value=value,
        reason=f"there is {', '.join(known)}",
    )


def base_digest(context: Context, request: BuildRequest) -> str:
    """Changes with whatever the base image is made from."""
    return _digest(context.folder, _files(context.folder, _BASE_PARTS), request.base)


def image_digest(context: Context, request: BuildRequest) -> str:
    """Changes with whatever the image is made from: no clock, no path, no machine."""
    files = [*_files(context.folder, _ML_PARTS), *context.locks, context.installer]
    if context.unhashed:
        files.append(context.unhashed)
    words = (request.base, request.stack, request.variant)
    return _digest(context.folder, files, *words)


def _digest(folder: Path, files: Iterable[Path], *words: str) -> str:
    digest = hashlib.sha256(repr((names.PROTOCOL, words)).encode())
    for path in sorted(set(files)):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        digest.update(f"\n{path.relative_to(folder).as_posix()} {content}".encode())
    return f"sha256:{digest.hexdigest()}"


def _files(folder: Path, parts: Iterable[str]) -> Iterator[Path]:
    for part in parts:
        path = folder / part
        inside = path.rglob("*") if path.is_dir() else [path]
        for item in inside:
            if item.is_file() and "__pycache__" not in item.parts:
                yield item


def write_tar(context: Context, wheels: Iterable[Path], target: BinaryIO) -> int:
    """Write what the engine is sent to ``target``, rewind it, and return its size.

    Owners, modes and times are the same on every machine, so that the engine's own
    cache answers for what did not change.
    """
    folder = context.folder
    parts = ("Dockerfile", "launcher", "steps", "stacks", "wheels")
    with tarfile.open(fileobj=target, mode="w") as tar:
        for path in sorted(_files(folder, parts)):
            if path.suffix != ".whl":
                _add(tar, path, path.relative_to(folder).as_posix())
        for path in sorted(wheels):
            _add(tar, path, f"wheels/{path.name}")
    size = target.tell()
    target.seek(0)
    return size


def _add(tar: tarfile.TarFile, path: Path, name: str) -> None:
    info = tarfile.TarInfo(name)
    info.size = path.stat().st_size
    info.mode = 0o644
    with path.open("rb") as source:
        tar.addfile(info, source)


def single_file_tar(name: str, text: str) -> BinaryIO:
    """A context of one file."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        info = tarfile.TarInfo(name)
        info.size = len(text.encode())
        tar.addfile(info, io.BytesIO(text.encode()))
    buffer.seek(0)
    return buffer
