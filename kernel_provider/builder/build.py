"""The order of a build, from the base up. A name moves to an image only after that has run."""

import fcntl
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kernel_provider import names, variants
from kernel_provider.builder import base
from kernel_provider.builder.context import (
    DOCKERFILE,
    Context,
    base_digest,
    image_digest,
    layer_digest,
    read_context,
    single_file_tar,
    write_base_tar,
    write_tar,
)
from kernel_provider.builder.images import Images, Order, last_json
from kernel_provider.builder.layers import Layer
from kernel_provider.builder.locking import is_fresh, write_lock
from kernel_provider.builder.model import BuildRequest, BuildResult, Report
from kernel_provider.builder.process import last_words
from kernel_provider.builder.progress import step
from kernel_provider.builder.wheels import cache_folder, collect, modules_of
from kernel_provider.engines.docker import find_socket
from kernel_provider.errors import BuildError

OFFLINE: Final = "--no-index --find-links=/build/wheels"
BASE_STAGE: Final = "base"

_PROBE: Final = """
import json, platform, sqlite3, ssl, ctypes, lzma, bz2, multiprocessing
import importlib, importlib.metadata
for name in {modules!r}:
    importlib.import_module(name)
versions = {{name: importlib.metadata.version(name) for name in {named!r}}}
print()
print(json.dumps({{"python": platform.python_version(), **versions}}))
"""


@dataclass(frozen=True, kw_only=True)
class _Site:
    """Where a build happens."""

    request: BuildRequest
    context: Context
    images: Images
    cache: Path
    report: Report


@dataclass(frozen=True, kw_only=True)
class _Part:
    """An image of the stack: the base, or one with a layer more than that before."""

    name: str
    digest: str
    layer: Layer | None = None

    @property
    def named(self) -> tuple[str, ...]:
        """Distributions whose versions its label tells."""
        if self.layer is None:
            return ()
        return tuple(dict.fromkeys(("ipykernel", *self.layer.named())))

    @property
    def labels(self) -> Mapping[str, str]:
        """All but the versions."""
        labels = {
            names.LABEL: names.KIND_IMAGE,
            names.LABEL_PROTOCOL: str(names.PROTOCOL),
            names.LABEL_LOCK: self.digest,
        }
        if self.layer:
            labels[names.LABEL_STACK] = self.layer.stack
            labels[names.LABEL_VARIANT] = self.layer.name
        return labels


def build(request: BuildRequest, report: Report) -> BuildResult:
    """Build what ``request`` asks for, unless an image of the same inputs is there.

    What it stands on is built, too, unless that is there. Safe to repeat and to cut short:
    names change only at the end of each layer, and what is half made is removed.

    Raises:
        BuildError, ConfigError, EngineUnreachableError: the old image is in place.
    """
    begun = time.monotonic()
    context = read_context(request)
    images = Images(find_socket(os.environ))
    cache = request.cache or cache_folder(os.environ)
    site = _Site(request=request, context=context, images=images, cache=cache, report=report)
    try:
        _lock(site)
        digest = image_digest(context, request)
        reused = not request.force and is_current(images, request.image, digest)
        if not reused:
            with alone(cache, report), _cleaned(site):
                # Another build may have made it while this one waited.
                reused = not request.force and is_current(images, request.image, digest)
                if not reused:
                    _make(site)
        seconds = time.monotonic() - begun
        return result_of(images, request.image, digest, reused=reused, seconds=seconds)
    finally:
        images.close()


def _lock(site: _Site) -> None:
    """Find versions for a person's own file, unless its lock has them."""
    layer = site.context.layers[-1]
    if layer.ours or is_fresh(layer):
        return
    image, installer = site.request.image, site.context.installer
    with alone(site.cache, site.report), step("versions", site.report) as now:
        below = [collect(under, installer, image, site.cache, now.say) for under in layer.below]
        count = write_lock(layer, [wheels[0].parent for wheels in below], image, now.say)
        now.detail = f"{count} packages, in {layer.lock}"


def is_current(images: Images, image: str, digest: str) -> bool:
    """Whether the image was made from what is here now, and has its base."""
    return images.label(image, names.LABEL_LOCK) == digest and images.present(names.BASE_IMAGE)


def _make(site: _Site) -> None:
    """Make what is not there, from the base up, and give each part its name."""
    with step("base", site.report) as now:
        base_image = base.resolve(site.request, site.images, now.say)
        now.detail = base_image
    arguments = {"BASE_IMAGE": base_image}
    for part in _parts(site):
        if site.request.force or site.images.label(part.name, names.LABEL_LOCK) != part.digest:
            below = _make_part(site, part, arguments)
        else:
            below = str((site.images.facts(part.name) or {})["Id"])
        arguments = {"BASE_IMAGE": base_image, "BELOW": below}


def _parts(site: _Site) -> Iterator[_Part]:
    """All that an image is stacked from, and at last the image."""
    digest = base_digest(site.context, site.request)
    yield _Part(name=names.BASE_IMAGE, digest=digest)
    *below, top = site.context.layers
    for layer in site.context.layers:
        digest = layer_digest(site.context, layer, digest)
        name = variants.image_of(layer.name) if layer in below else site.request.image
        if not layer.below and layer != top:
            name = f"{names.COMMON_IMAGE}:{layer.stack}"
        yield _Part(name=name, digest=digest, layer=layer)


def _make_part(site: _Site, part: _Part, arguments: Mapping[str, str]) -> str:
    """Build one part on what is below, try it, and give it its name; its id."""
    if part.layer is None:
        modules: list[str] = []
        made = _build_base(site, arguments)
    else:
        modules, made = _build_layer(site, part.layer, part.name, arguments)
    with step("check", site.report) as now:
        versions = _probe(site, made, modules, part.named)
        now.detail = _line(versions)
    labels = {**part.labels, names.LABEL_VERSIONS: _line(versions)}
    with step("name", site.report) as now:
        context = single_file_tar(DOCKERFILE, f"FROM {made}\n")
        order = Order(image=part.name, labels=labels)
        labelled = site.images.build(context, order, lambda _: None)
        site.images.tag(labelled, part.name)
        now.detail = part.name
    return labelled


def _build_base(site: _Site, arguments: Mapping[str, str]) -> str:
    order = Order(image=names.BASE_IMAGE, arguments=arguments, target=BASE_STAGE)
    with step("base image", site.report) as now, tempfile.TemporaryFile() as archive:
        now.say("sending the context", size=write_base_tar(site.context, archive))
        made = site.images.build(archive, order, now.say)
        now.size = _size(site.images, made)
    return made


def _build_layer(
    site: _Site, layer: Layer, name: str, arguments: Mapping[str, str]
) -> tuple[list[str], str]:
    """The modules that a layer adds by its requirements, and an image with it."""
    with step(f"wheels of {layer.name}", site.report) as now:
        wheels = collect(layer, site.context.installer, name, site.cache, now.say)
        now.size = sum(wheel.stat().st_size for wheel in wheels)
        now.detail = f"{len(wheels)} wheels"
    modules = modules_of(wheels, layer.named())
    arguments = {
        **arguments,
        "PIP_OPTIONS": OFFLINE,
        "STACK": layer.stack,
        "LAYERS": layer.name,
        "MODULES": " ".join(modules),
        "VARIANT": layer.name,
    }
    with step(f"layer {layer.name}", site.report) as now, tempfile.TemporaryFile() as archive:
        sent = write_tar(site.context, layer, wheels, archive)
        now.say("sending the context", size=sent)
        made = site.images.build(archive, Order(image=name, arguments=arguments), now.say)
        now.size = _size(site.images, made) - _size(site.images, arguments["BELOW"])
    return modules, made


def _probe(
    site: _Site, image_id: str, modules: Sequence[str], named: Sequence[str]
) -> Mapping[str, str]:
    """Import modules under the limits of a sandbox; return versions of distributions."""
    program = _PROBE.format(modules=list(modules), named=list(named))
    code, output = site.images.run(image_id, ["-c", program])
    if code:
        raise BuildError(
            image=site.request.image,
            step="importing the packages in a sandbox",
            last_words=last_words(output.splitlines()),
            remedy="mend the lock or the steps of the image; the old image is in place",
        )
    return last_json(output)


def _line(versions: Mapping[str, str]) -> str:
    return " ".join(f"{name}={version}" for name, version in versions.items())


def _size(images: Images, image: str) -> int:
    return int((images.facts(image) or {}).get("Size", 0))


def result_of(
    images: Images, image: str, digest: str, *, reused: bool, seconds: float
) -> BuildResult:
    """What there is under the name now."""
    line = images.label(image, names.LABEL_VERSIONS) or ""
    facts = images.facts(image) or {}
    return BuildResult(
        image=image,
        image_id=str(facts.get("Id", "")),
        digest=digest,
        size=int(facts.get("Size", 0)),
        seconds=seconds,
        reused=reused,
        versions=dict(pair.split("=", 1) for pair in line.split() if "=" in pair),
    )


@contextmanager
def alone(cache: Path, report: Report) -> Iterator[None]:
    """Let one build of this user run at a time: each removes unnamed images of ours."""
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "build.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with step("waiting for another build", report):
                fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def _cleaned(site: _Site) -> Iterator[None]:
    """Remove what lost its name in the body, and half-made images when that failed."""
    stages = True
    try:
        yield
        stages = not site.request.keep_stages
    finally:
        site.images.remove_unnamed(stages=stages)
