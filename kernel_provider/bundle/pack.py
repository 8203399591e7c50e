"""The order of packing: look, collect, write beside the place, look again, move there."""

import hashlib
import os
import tempfile
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import BinaryIO, Final

from kernel_provider import kernelspecs, names
from kernel_provider.builder.command import megabytes
from kernel_provider.builder.images import Images
from kernel_provider.builder.model import Report
from kernel_provider.builder.progress import step
from kernel_provider.bundle import wheels
from kernel_provider.bundle.archive import Reader, Writer
from kernel_provider.bundle.contents import examine, refusal
from kernel_provider.bundle.errors import (
    BundleWriteError,
    ImageRefusedError,
    ThereAlreadyError,
)
from kernel_provider.bundle.model import (
    IMAGES,
    INSTALLER,
    WHEELS,
    BundledImage,
    Manifest,
    Target,
    is_our_name,
    kernelspec_member,
    with_tag,
)
from kernel_provider.bundle.room import need_room
from kernel_provider.engines.missing import missing
from kernel_provider.kernelspecs import Kernelspec
from kernel_provider.setup import engine_host

LEVEL: Final = 1
"""Of gzip, on 849 MB: 1 took 7 s for 292 MB, 6 took 19 s for 255 MB. The engine needs as long
to send them, and both run side by side."""

SMALLEST: Final = 0.25
"""What is left of an image at best: with less room there is no need to begin."""

GZIP: Final = 16 + zlib.MAX_WBITS
_HERE: Final = Path(__file__).parent


@dataclass(frozen=True, kw_only=True)
class BundleRequest:
    """What to pack into ``file``.

    ``kernelspecs`` are names, none for all that are ours; the images that they ask for are
    packed anyway, ``images`` are others. ``extras`` are distributions beside this package.
    """

    file: Path
    target: Target
    kernelspecs: tuple[str, ...] = ()
    images: tuple[str, ...] = ()
    extras: tuple[str, ...] = ()
    force: bool = False


@dataclass(frozen=True, kw_only=True)
class BundleResult:
    """A bundle that is ready; sizes in bytes. ``target`` is the least that it runs on."""

    file: str
    size: int
    sha256: str
    seconds: float
    target: Target
    images: tuple[str, ...]
    kernelspecs: tuple[str, ...]
    wheels: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class _Found:
    """An image on this machine."""

    name: str
    id: str
    layers: tuple[str, ...]
    labels: Mapping[str, str]
    size: int


def bundle(request: BundleRequest, report: Report) -> BundleResult:
    """Write a bundle; whatever happens, there is a whole one or none.

    Raises:
        ThereAlreadyError, NoRoomError, BundleWriteError, WheelsError, ImageMissingError,
        ImageRefusedError, KernelspecMissingError, EngineError: and nothing is written.
    """
    begun = time.monotonic()
    specs = _specs(request.kernelspecs)
    with written(request) as (file, part), _images() as images:
        wanted = wanted_images(specs, request.images)
        found = [_find(images, name, request.target) for name in wanted]
        need_room("the bundle", part.parent, SMALLEST * sum(image.size for image in found))
        with tempfile.TemporaryDirectory(prefix="executor-ml-") as folder:
            with step("wheels", report) as now:
                collected = wheels.collect(request.extras, request.target, Path(folder), now.say)
                target = wheels.least(collected, request.target)
                now.size = sum(path.stat().st_size for path in collected)
                now.detail = f"{len(collected)} for Python {target} or newer"
            writer = Writer(file)
            _add_files(writer, collected, specs)
        for number, image in enumerate(found):
            _add_image(writer, _member(number), images, image, report)
        writer.close(_manifest(writer, target, found, specs))
        size, digest = _finish(file, part, report)
    return BundleResult(
        file=str(request.file),
        size=size,
        sha256=digest,
        seconds=time.monotonic() - begun,
        target=target,
        images=tuple(image.name for image in found),
        kernelspecs=tuple(spec.name for spec in specs),
        wheels=tuple(path.name for path in collected),
    )


def _refuse_to_replace(request: BundleRequest) -> None:
    """Raise ThereAlreadyError for a file that nobody has given up."""
    if request.file.is_dir():
        raise BundleWriteError(path=request.file, reason="it is a folder")
    if request.file.exists() and not request.force:
        remedy = "add --force to write over it, or give another name"
        raise ThereAlreadyError(path=request.file, details="", remedy=remedy)


def _specs(chosen: Sequence[str]) -> list[Kernelspec]:
    found = [kernelspecs.named(name) for name in chosen] or list(kernelspecs.installed())
    for spec in found:
        spec.check()
    return found


def wanted_images(specs: Sequence[Kernelspec], more: Sequence[str]) -> list[str]:
    """The images that kernelspecs ask for, and ``more``; the usual one for neither."""
    asked = [str(spec.config.get("image", names.IMAGE)) for spec in specs]
    return list(dict.fromkeys(map(with_tag, [*asked, *more]))) or [names.IMAGE]


def _find(images: Images, name: str, target: Target) -> _Found:
    facts = images.facts(name)
    if facts is None:
        raise missing(name, images.names())
    remedy = f"build it anew with executor-ml build --tag {name}, or leave it out"
    labels = facts.get("Config", {}).get("Labels") or {}
    reason = refusal(labels)
    if not is_our_name(name):
        reason = "a bundle has images named executor-ml..., so that it can't replace others"
        remedy = f"docker tag {name} executor-ml-NAME, and use that"
    if facts["Architecture"] != target.architecture:
        reason = f"it is for {facts['Architecture']}, and the packages for {target.architecture}"
        remedy = "leave --platform out, or bundle on a machine of that kind"
    if reason:
        raise ImageRefusedError(image=name, reason=reason, remedy=remedy)
    return _Found(
        name=name,
        id=str(facts["Id"]),
        layers=tuple(facts["RootFS"]["Layers"]),
        labels=labels,
        size=int(facts["Size"]),
    )


@contextmanager
def _images() -> Iterator[Images]:
    images = Images(engine_host.find(os.environ).socket)
    try:
        yield images
    finally:
        images.close()


@contextmanager
def written(request: BundleRequest) -> Iterator[tuple[BinaryIO, Path]]:
    """A file that is in its place if the body succeeds, and nowhere if not."""
    path = request.file.absolute()
    _refuse_to_replace(request)
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        part = Path(name)
        try:
            with os.fdopen(handle, "w+b") as file:
                yield file, part
            part.chmod(0o644)
            _refuse_to_replace(request)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise BundleWriteError(path=path, reason=error.strerror or error) from error


def _add_files(writer: Writer, collected: Sequence[Path], specs: Sequence[Kernelspec]) -> None:
    writer.add(INSTALLER, (_HERE / INSTALLER).read_bytes())
    writer.add("README.txt", (_HERE / "README.txt").read_bytes())
    for path in collected:
        writer.add(f"{WHEELS}{path.name}", path.read_bytes())
    for spec in specs:
        text = Path(spec.folder, "kernel.json").read_bytes()
        writer.add(kernelspec_member(spec.name), text)


def _member(number: int) -> str:
    return f"{IMAGES}{number}.tar.gz"


def _add_image(writer: Writer, member: str, images: Images, image: _Found, report: Report) -> None:
    """Compress an image while the engine sends it."""
    with step(f"packing {image.name}", report) as now, writer.member(member) as sink:
        packer = zlib.compressobj(LEVEL, zlib.DEFLATED, GZIP)
        sent = 0
        for chunk in images.export(image.id):
            sink.write(packer.compress(chunk))
            sent += len(chunk)
            now.say(f"{megabytes(sent)} of about {megabytes(image.size)}")
        sink.write(packer.flush())
        now.size = sink.size


def _manifest(
    writer: Writer, target: Target, found: Sequence[_Found], specs: Sequence[Kernelspec]
) -> Manifest:
    images = tuple(
        BundledImage(
            name=image.name,
            id=image.id,
            layers=image.layers,
            labels=image.labels,
            size=image.size,
            member=_member(number),
        )
        for number, image in enumerate(found)
    )
    return Manifest(
        package=metadata.version(wheels.PACKAGE),
        protocol=names.PROTOCOL,
        target=target,
        images=images,
        kernelspecs=tuple(spec.name for spec in specs),
        members=writer.members,
    )


def _finish(file: BinaryIO, part: Path, report: Report) -> tuple[int, str]:
    """See that it is on the disk and can be unpacked; return its size and its digest."""
    with step("reading it again", report) as now:
        file.flush()
        os.fsync(file.fileno())
        with Reader(part) as reader:
            for image in reader.manifest.images:
                now.say(image.name)
                examine(reader, image)
        with part.open("rb") as written:
            digest = hashlib.file_digest(written, "sha256").hexdigest()
            now.size = written.tell()
        return now.size, digest
