"""The folder that an image is built from, and what a change in it means."""

import hashlib
import io
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from kernel_provider import names
from kernel_provider.builder.layers import Layer, stack_of_layers
from kernel_provider.builder.model import BuildRequest
from kernel_provider.errors import BuildError

_PACKAGE: Final = Path(__file__).resolve().parent.parent
_PLACES: Final = (_PACKAGE / "_data" / "image", _PACKAGE.parent / "image")
DOCKERFILE: Final = "Dockerfile"
_BASE_PARTS: Final = (DOCKERFILE, "launcher", "steps/strip_root.sh", "steps/skeleton.sh")
_BASE_CONTEXT: Final = (DOCKERFILE, "launcher", "steps")
_LAYER_PARTS: Final = (DOCKERFILE, "steps")
_BELOW_STAGE: Final = "FROM ${BELOW} AS below\n"
"""The line of the Dockerfile from which on it is about layers."""


@dataclass(frozen=True, kw_only=True)
class Context:
    """A build's inputs; the lowest of ``layers`` is the first, and the image the last."""

    folder: Path
    layers: tuple[Layer, ...]
    installer: Path


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
    layers = stack_of_layers(request, stacks)
    return Context(folder=folder, layers=layers, installer=stacks / "pip.lock")


def base_digest(context: Context, request: BuildRequest) -> str:
    """Changes with whatever the base image is made from."""
    return _digest(_named(context.folder, _BASE_PARTS), request.base)


def layer_digest(context: Context, layer: Layer, below: str) -> str:
    """Changes with whatever a layer is made from, and with the digest of what is below."""
    files = _named(context.folder, _LAYER_PARTS)
    files |= {_member(layer, path): path for path in layer.files}
    return _digest(files | {context.installer.name: context.installer}, below, layer.name)


def image_digest(context: Context, request: BuildRequest) -> str:
    """Changes with whatever the image is made from: no clock, no path, no machine."""
    digest = base_digest(context, request)
    for layer in context.layers:
        digest = layer_digest(context, layer, digest)
    return digest


def _digest(files: Mapping[str, Path], *words: str) -> str:
    digest = hashlib.sha256(repr((names.PROTOCOL, words)).encode())
    for name, path in sorted(files.items()):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        digest.update(f"\n{name} {content}".encode())
    return f"sha256:{digest.hexdigest()}"


def _named(folder: Path, parts: Iterable[str]) -> dict[str, Path]:
    """The files of a folder by their names in a context."""
    files = {}
    for part in parts:
        path = folder / part
        for item in path.rglob("*") if path.is_dir() else [path]:
            if item.is_file() and "__pycache__" not in item.parts:
                files[item.relative_to(folder).as_posix()] = item
    return files


def _member(layer: Layer, path: Path) -> str:
    return f"stacks/{layer.stack}/{path.name}"


def write_base_tar(context: Context, target: BinaryIO) -> int:
    """Write what the engine is sent for the base to ``target``; as ``write_tar``."""
    return _write(_named(context.folder, _BASE_CONTEXT), {}, target)


def write_tar(context: Context, layer: Layer, wheels: Iterable[Path], target: BinaryIO) -> int:
    """Write what the engine is sent for a layer to ``target``, rewind it, return its size.

    Owners, modes and times are the same on every machine, so that the engine's own
    cache answers for what did not change. Of the Dockerfile it gets a layer's part: an
    engine builds every stage before the one that it is asked for.
    """
    files = _named(context.folder, ("steps",))
    files |= {f"stacks/{context.installer.name}": context.installer}
    files |= {_member(layer, path): path for path in layer.files}
    files |= {f"wheels/{path.name}": path for path in wheels}
    text = (context.folder / DOCKERFILE).read_text(encoding="utf-8")
    first, mark, rest = text.partition(_BELOW_STAGE)
    arguments = [line for line in first.partition("FROM ")[0].splitlines() if line[:4] == "ARG "]
    return _write(files, {DOCKERFILE: "\n".join([*arguments, mark + rest])}, target)


def _write(files: Mapping[str, Path], texts: Mapping[str, str], target: BinaryIO) -> int:
    with tarfile.open(fileobj=target, mode="w") as tar:
        for name, text in sorted(texts.items()):
            _add(tar, name, len(text.encode()), io.BytesIO(text.encode()))
        for name, path in sorted(files.items()):
            with path.open("rb") as source:
                _add(tar, name, path.stat().st_size, source)
    size = target.tell()
    target.seek(0)
    return size


def _add(tar: tarfile.TarFile, name: str, size: int, source: BinaryIO) -> None:
    info = tarfile.TarInfo(name)
    info.size = size
    info.mode = 0o644
    tar.addfile(info, source)


def single_file_tar(name: str, text: str) -> BinaryIO:
    """A context of one file."""
    buffer = io.BytesIO()
    _write({}, {name: text}, buffer)
    return buffer
