"""Models of the registry in an image of their own: one layer on the usual image.

What is laid out is what a sandbox sees of a mounted model: a cache of the hub, where the
plain id finds it, and a folder by its name, with the same files and not with copies.
"""

import hashlib
import io
import os
import tarfile
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, Final

from kernel_provider import names
from kernel_provider.builder.build import alone, build, is_current, result_of
from kernel_provider.builder.images import Images, Order
from kernel_provider.builder.model import BuildRequest, BuildResult, Report
from kernel_provider.builder.process import last_words
from kernel_provider.builder.progress import step
from kernel_provider.builder.wheels import cache_folder
from kernel_provider.engines.docker import find_socket
from kernel_provider.errors import BuildError
from kernel_provider.models.entry import Entry
from kernel_provider.models.mounts import HUB, MODELS, resolve
from kernel_provider.models.store import STAMP, Registry, place

SOURCE: Final = "executor-ml build"
ARCHIVE: Final = "models.tar"

# huggingface_hub 0.17, of 2023, asks the network otherwise, whatever is in the environment.
_PROBE: Final = (
    "import huggingface_hub\n"
    "for model, revision in {wanted!r}:\n"
    "    for more in ({{}}, {{'revision': revision}}):\n"
    "        huggingface_hub.snapshot_download(model, local_files_only=True, **more)\n"
)


@dataclass(frozen=True, kw_only=True)
class Layer:
    """What goes on an image, and what the result is called by its inputs."""

    below: BuildResult
    registry: Registry
    entries: tuple[Entry, ...]

    @property
    def digest(self) -> str:
        """Changes with the image below, and with the content of any model."""
        models = sorted((entry.label, entry.view) for entry in self.entries)
        words = repr((self.below.digest, models))
        return f"sha256:{hashlib.sha256(words.encode()).hexdigest()}"


def bake(request: BuildRequest, report: Report) -> BuildResult:
    """Build the usual image if need be, and ``request.tag`` with the models on it.

    Raises:
        BuildError, ConfigError, EngineUnreachableError: the old image is in place.
        UnknownModelError, ModelAlteredError, RegistryError: so it is.
    """
    begun = time.monotonic()
    _entries(request)  # told before the first image takes minutes
    below = build(replace(request, models=(), tag=None), report)
    made = bake_on(below, request, report)
    return replace(made, seconds=time.monotonic() - begun)


def bake_on(below: BuildResult, request: BuildRequest, report: Report) -> BuildResult:
    """Put the models on an image that is there; raises as ``bake``."""
    begun = time.monotonic()
    registry, entries = _entries(request)
    layer = Layer(below=below, registry=registry, entries=entries)
    images = Images(find_socket(os.environ))
    try:
        reused = not request.force and is_current(images, request.image, layer.digest)
        if not reused:
            with alone(request.cache or cache_folder(os.environ), report):
                try:
                    _make(images, request.image, layer, report)
                finally:
                    images.remove_unnamed(stages=False)
        seconds = time.monotonic() - begun
        return result_of(images, request.image, layer.digest, reused=reused, seconds=seconds)
    finally:
        images.close()


def _entries(request: BuildRequest) -> tuple[Registry, tuple[Entry, ...]]:
    """The models that are asked for, each once, and where they are."""
    registry = Registry(place(os.environ))
    resolve(request.models, root=str(registry.root), source=SOURCE)
    entries = {entry.label: entry for entry in map(registry.find, request.models)}
    return registry, tuple(entries.values())


def _make(images: Images, image: str, layer: Layer, report: Report) -> None:
    labels = {
        names.LABEL: names.KIND_IMAGE,
        names.LABEL_LOCK: layer.digest,
        names.LABEL_MODELS: " ".join(entry.label for entry in layer.entries),
    }
    with tempfile.TemporaryFile() as models, tempfile.TemporaryFile() as context:
        with step("models", report) as now:
            for entry in layer.entries:
                now.say(entry.label)
                layer.registry.check(entry, thorough=True)
            write_models(layer.registry, layer.entries, models)
            now.size = _wrap(models, f"FROM {layer.below.image_id}\nADD {ARCHIVE} /\n", context)
        with step("image", report) as now:
            made = images.build(context, Order(image=image, labels=labels), now.say)
    with step("check", report) as now:
        _probe(images, image, made, layer.entries)
        now.detail = "found by their ids"
    with step("names", report) as now:
        images.tag(made, image)
        now.detail = image


def _probe(images: Images, image: str, made: str, entries: Sequence[Entry]) -> None:
    """Have the hub's library find them, offline, under the limits of a sandbox."""
    wanted = [(entry.id, entry.revision) for entry in entries]
    code, output = images.run(made, ["-c", _PROBE.format(wanted=wanted)])
    if code:
        raise BuildError(
            image=image,
            step="finding the models by their ids in a sandbox",
            last_words=last_words(output.splitlines()),
            remedy="see whether a kernel finds them mounted: executor-ml run --model ID",
        )


# --- what the engine is sent ----------------------------------------------------------------


def write_models(registry: Registry, entries: Sequence[Entry], target: BinaryIO) -> None:
    """Write the models' folders as a tar that is unpacked at the root, and rewind it.

    Below its name, a model's files are hard links: they take no room twice.
    """
    with tarfile.open(fileobj=target, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for entry in entries:
            view = registry.views / entry.view
            hub = f"{HUB[1:]}/{entry.hub_name}"
            _folders(tar, hub, (path.relative_to(view) for path in view.rglob("*")), view)
            name = f"{MODELS[1:]}/{entry.name}"
            snapshot = registry.snapshot(entry)
            paths = sorted(snapshot.rglob("*"))
            tar.addfile(_member(name, tarfile.DIRTYPE))
            for path in paths:
                inner = path.relative_to(snapshot).as_posix()
                member = _member(f"{name}/{inner}", tarfile.DIRTYPE)
                if path.is_file():
                    member = _member(f"{name}/{inner}", tarfile.LNKTYPE)
                    member.linkname = f"{hub}/{path.relative_to(view).as_posix()}"
                tar.addfile(member)
    target.seek(0)


def _folders(tar: tarfile.TarFile, at: str, paths: Iterable[Path], root: Path) -> None:
    """A folder with all that is in it, as everybody's to read and nobody's to write."""
    tar.addfile(_member(at, tarfile.DIRTYPE))
    for path in sorted(paths):
        name, source = f"{at}/{path.as_posix()}", root / path
        if source.is_dir():
            tar.addfile(_member(name, tarfile.DIRTYPE))
            continue
        member = _member(name, tarfile.REGTYPE)
        member.size = source.stat().st_size
        with source.open("rb") as file:
            tar.addfile(member, file)


def _member(name: str, kind: bytes) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type = kind
    member.mode = 0o555 if kind == tarfile.DIRTYPE else 0o444
    member.mtime = STAMP
    return member


def _wrap(models: BinaryIO, dockerfile: str, context: BinaryIO) -> int:
    """The context of a build with one archive; returns its size."""
    with tarfile.open(fileobj=context, mode="w", format=tarfile.PAX_FORMAT) as tar:
        text = dockerfile.encode()
        for name, file in (("Dockerfile", io.BytesIO(text)), (ARCHIVE, models)):
            member = _member(name, tarfile.REGTYPE)
            member.size = file.seek(0, os.SEEK_END)
            file.seek(0)
            tar.addfile(member, file)
    size = context.tell()
    context.seek(0)
    return size
