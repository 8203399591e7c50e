"""The order of unpacking: look at everything, then load images, then write kernelspecs."""

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

from kernel_provider import kernelspecs, names
from kernel_provider.builder.command import megabytes
from kernel_provider.builder.images import Images
from kernel_provider.builder.model import Report
from kernel_provider.builder.progress import step
from kernel_provider.bundle.archive import CHUNK, Reader
from kernel_provider.bundle.contents import examine
from kernel_provider.bundle.errors import (
    BundleDamagedError,
    ImageRefusedError,
    KernelspecUnknownError,
    ThereAlreadyError,
)
from kernel_provider.bundle.model import BundledImage, Manifest, kernelspec_member, this_machine
from kernel_provider.bundle.room import need_room
from kernel_provider.ceilings import read_ceilings
from kernel_provider.commands import install
from kernel_provider.doctor import engine as engine_facts
from kernel_provider.errors import EngineError
from kernel_provider.kernelspecs import Kernelspec
from kernel_provider.policy import parse_policy
from kernel_provider.setup import engine_host

COPIES: Final = 2
"""An engine unpacks an image once to read it and once to keep it."""


@dataclass(frozen=True, kw_only=True)
class UnbundleRequest:
    """What to take from ``file``, and where kernelspecs go (as ``install`` has it)."""

    file: Path
    where: str = ""
    kernelspecs: tuple[str, ...] = ()
    force: bool = False


@dataclass(frozen=True, kw_only=True)
class UnbundleResult:
    """What is there now; ``loaded`` are the images that were not there before."""

    images: tuple[str, ...]
    loaded: tuple[str, ...]
    kernelspecs: tuple[install.Installed, ...]
    seconds: float


def unbundle(request: UnbundleRequest, report: Report) -> UnbundleResult:
    """Load images and write kernelspecs; safe to repeat.

    Nothing is changed before all that can be looked at was found good. A name moves to an
    image only when the engine has it.

    Raises:
        NoBundleError, BundleDamagedError, BundleFormatError, ImageRefusedError,
        ThereAlreadyError, KernelspecUnknownError, ConfigError, NoRoomError, EngineError.
    """
    begun = time.monotonic()
    with Reader(request.file) as reader:
        manifest = reader.manifest
        _refuse_other_version(manifest, request.file)
        specs = _specs(reader, request)
        socket = engine_host.find(os.environ).socket
        images = Images(socket)
        try:
            missing = missing_images(images, manifest.images, request)
            _need_room(socket, missing)
            for image in missing:
                _load(reader, images, image, report)
        finally:
            images.close()
    written = []
    for spec in specs:
        with step(f"kernelspec {spec.name}", report) as now:
            written.append(install.install(_order(spec, request.where), os.environ))
            now.detail = written[-1].file
    return UnbundleResult(
        images=tuple(image.name for image in manifest.images),
        loaded=tuple(image.name for image in missing),
        kernelspecs=tuple(written),
        seconds=time.monotonic() - begun,
    )


def _refuse_other_version(manifest: Manifest, path: Path) -> None:
    here = this_machine().architecture
    remedy = "carry over a bundle that was made on a machine of this kind"
    reason = ""
    if manifest.target.architecture != here:
        reason = f"the bundle is for {manifest.target.architecture}, and this machine is {here}"
    if manifest.protocol != names.PROTOCOL:
        reason = f"the bundle speaks protocol {manifest.protocol}, this version {names.PROTOCOL}"
        remedy = "use the version that is in the bundle: "
        remedy += f"tar xf {path} install.py && python3 install.py {path}"
    if reason:
        images = ", ".join(image.name for image in manifest.images)
        raise ImageRefusedError(image=images, reason=reason, remedy=remedy)


def _specs(reader: Reader, request: UnbundleRequest) -> list[Kernelspec]:
    """The kernelspecs to write, all of which may be written and would start kernels."""
    there = reader.manifest.kernelspecs
    for name in request.kernelspecs:
        if name not in there:
            known = ", ".join(there) or "none"
            raise KernelspecUnknownError(name=name, path=request.file, known=known)
    specs = [_read_spec(reader, name) for name in request.kernelspecs or there]
    ceilings = read_ceilings(os.environ)
    for spec in specs:
        parse_policy(spec.config, ceilings=ceilings, source=spec.source)
        _refuse_to_replace(spec, request)
    return specs


def _read_spec(reader: Reader, name: str) -> Kernelspec:
    content = reader.read(kernelspec_member(name))
    if not install.NAME.fullmatch(name):
        member = kernelspec_member(name)
        raise BundleDamagedError(path=reader.path, member=member, reason="has no kernelspec's name")
    with tempfile.TemporaryDirectory(prefix="executor-ml-") as folder:
        Path(folder, "kernel.json").write_bytes(content)
        spec = kernelspecs.read_file(name, Path(folder))
    if spec is None or spec.problem:
        member = kernelspec_member(name)
        raise BundleDamagedError(path=reader.path, member=member, reason="is no kernelspec of ours")
    return spec


def _refuse_to_replace(spec: Kernelspec, request: UnbundleRequest) -> None:
    """One with settings of its own is kept, unless they are the same."""
    folder = install.place(request.where) / spec.name
    there = kernelspecs.read_file(spec.name, folder)
    ours_as_shipped = there is not None and not there.config and not there.problem
    if folder.exists() and not request.force and not ours_as_shipped:
        if there is not None and there.config == spec.config:
            return
        details = ", with other settings" if there else ", and is none of executor-ml's"
        remedy = "add --force to replace it, or name others with --kernelspec"
        raise ThereAlreadyError(path=folder, details=details, remedy=remedy)


def _order(spec: Kernelspec, where: str) -> install.Request:
    return install.Request(
        name=spec.name,
        display_name=spec.display_name,
        where=where,
        config=spec.config,
        replace=True,
    )


def missing_images(
    images: Images, wanted: Sequence[BundledImage], request: UnbundleRequest
) -> list[BundledImage]:
    """The images that are not there yet; raises ThereAlreadyError for a name in use."""
    missing = []
    for image in wanted:
        facts = images.facts(image.name)
        if facts is None:
            missing.append(image)
        elif not _is(facts, image):
            if not request.force:
                raise ThereAlreadyError(
                    path=f"the image {image.name}",
                    details=f" as {str(facts['Id'])[:19]}, and is {image.id[:19]} in the bundle",
                    remedy="add --force to let that one have the name",
                )
            missing.append(image)
    return missing


def _is(facts: Mapping[str, Any], image: BundledImage) -> bool:
    """Whether an engine's image is that of the bundle.

    Engines that keep images in containerd's store call them otherwise.
    """
    labels = facts.get("Config", {}).get("Labels") or {}
    same = tuple(facts["RootFS"]["Layers"]) == image.layers and labels == image.labels
    return same or facts["Id"] == image.id


def _need_room(socket: str, missing: Sequence[BundledImage]) -> None:
    """Look before loading, if the engine's disk can be seen from here."""
    sizes = [image.size for image in missing]
    needed = sum(sizes) + (COPIES - 1) * max(sizes, default=0)
    need_room("loading the images", Path(engine_facts.ask(socket).data_root), needed)


def _load(reader: Reader, images: Images, image: BundledImage, report: Report) -> None:
    """Verify an image, hand it to the engine, and only then give it its name."""
    with step(f"reading {image.name}", report):
        examine(reader, image)
    with step(f"loading {image.name}", report) as now, reader.open(image.member) as archive:
        total = reader.manifest.member(image.member).size
        loaded = images.load(_sent(archive, total, now.say), now.say)
        facts = images.facts(loaded)
        if facts is None or not _is(facts, image):
            reason = f"it made {loaded[:19]} of {image.id[:19]}"
            raise EngineError(action=f"load {image.name}", reason=reason)
        images.tag(loaded, image.name)
        now.size = image.size


def _sent(archive: IO[bytes], total: int, say: Callable[[str], None]) -> Iterator[bytes]:
    while chunk := archive.read(CHUNK):
        yield chunk
        say(f"sent {megabytes(archive.tell())} of {megabytes(total)}")
