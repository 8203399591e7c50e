"""The order of a build. A name moves to the new image only after that has run."""

import fcntl
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kernel_provider import names
from kernel_provider.builder import base
from kernel_provider.builder.context import (
    Context,
    base_digest,
    image_digest,
    read_context,
    single_file_tar,
    write_tar,
)
from kernel_provider.builder.images import Images, Order, last_json
from kernel_provider.builder.model import BuildRequest, BuildResult, Report
from kernel_provider.builder.process import last_words
from kernel_provider.builder.progress import step
from kernel_provider.builder.wheels import cache_folder, collect
from kernel_provider.engines.docker import find_socket
from kernel_provider.errors import BuildError

OFFLINE: Final = "--no-index --find-links=/build/wheels"

_PROBE_BASE: Final = (
    "import json, platform, sqlite3, ssl, ctypes, lzma, bz2, multiprocessing\n"
    "print(json.dumps({'python': platform.python_version()}))"
)
_PROBE: Final = (
    "import json, platform, sqlite3, ssl, ctypes, lzma, bz2, multiprocessing\n"
    "import torch, transformers, ipykernel.kernelapp\n"
    "print(json.dumps({'torch': torch.__version__, 'python': platform.python_version(),\n"
    "    'transformers': transformers.__version__, 'ipykernel': ipykernel.__version__}))"
)


@dataclass(frozen=True, kw_only=True)
class _Site:
    """Where a build happens."""

    request: BuildRequest
    context: Context
    images: Images
    cache: Path
    report: Report


def build(request: BuildRequest, report: Report) -> BuildResult:
    """Build what ``request`` asks for, unless an image of the same inputs is there.

    Safe to repeat and to cut short: names change only at the end, and what is half made
    is removed.

    Raises:
        BuildError, ConfigError, EngineUnreachableError: the old image is in place.
    """
    begun = time.monotonic()
    context = read_context(request)
    digest = image_digest(context, request)
    images = Images(find_socket(os.environ))
    cache = request.cache or cache_folder(os.environ)
    site = _Site(request=request, context=context, images=images, cache=cache, report=report)
    try:
        reused = not request.force and is_current(images, request.image, digest)
        if not reused:
            with alone(cache, report), _cleaned(site):
                # Another build may have made it while this one waited.
                reused = not request.force and is_current(images, request.image, digest)
                if not reused:
                    _make(site, digest)
        seconds = time.monotonic() - begun
        return result_of(images, request.image, digest, reused=reused, seconds=seconds)
    finally:
        images.close()


def is_current(images: Images, image: str, digest: str) -> bool:
    """Whether the image was made from what is here now, and has its base."""
    return images.label(image, names.LABEL_LOCK) == digest and images.present(names.BASE_IMAGE)


def _make(site: _Site, digest: str) -> None:
    request, images = site.request, site.images
    with step("base", site.report) as now:
        base_image = base.resolve(request, images, now.say)
        now.detail = base_image
    with step("wheels", site.report) as now:
        wheels = collect(site.context, request, site.cache, now.say)
        now.size = sum(wheel.stat().st_size for wheel in wheels)
        now.detail = f"{len(wheels)} wheels"
    arguments = {"BASE_IMAGE": base_image}
    root = _build_stage(site, "base image", "base", arguments, [])
    arguments |= {
        "PIP_OPTIONS": OFFLINE,
        "STACK": request.stack,
        "VARIANT": request.variant,
    }
    full = _build_stage(site, "image", "", arguments, wheels)
    with step("check", site.report) as now:
        root_versions = _probe(site, root, _PROBE_BASE)
        versions = _probe(site, full, _PROBE)
        now.detail = _line(versions)
    with step("names", site.report) as now:
        root = _labelled(site, root, base_digest(site.context, request), root_versions)
        full = _labelled(site, full, digest, versions)
        images.tag(root, names.BASE_IMAGE)
        images.tag(full, request.image)
        now.detail = f"{names.BASE_IMAGE}, {request.image}"


def _build_stage(
    site: _Site, name: str, target: str, arguments: Mapping[str, str], wheels: list[Path]
) -> str:
    """Build the Dockerfile up to ``target`` and return the image's id."""
    with step(name, site.report) as now, tempfile.TemporaryFile() as archive:
        sent = write_tar(site.context, wheels, archive)
        now.say("sending the context", size=sent)
        order = Order(image=site.request.image, arguments=arguments, target=target)
        image_id = site.images.build(archive, order, now.say)
        now.size = _size(site.images, image_id)
        return image_id


def _probe(site: _Site, image_id: str, program: str) -> Mapping[str, str]:
    """Import what a kernel imports, under the limits of a sandbox; return versions."""
    code, output = site.images.run(image_id, ["-c", program])
    if code:
        raise BuildError(
            image=site.request.image,
            step="importing the packages in a sandbox",
            last_words=last_words(output.splitlines()),
            remedy="mend the lock or the steps of the image; the old image is in place",
        )
    return last_json(output)


def _labelled(site: _Site, image_id: str, digest: str, versions: Mapping[str, str]) -> str:
    """The same image with the labels that are known only now; returns its id."""
    labels = {
        names.LABEL: names.KIND_IMAGE,
        names.LABEL_PROTOCOL: str(names.PROTOCOL),
        names.LABEL_STACK: site.request.stack,
        names.LABEL_VARIANT: site.request.variant,
        names.LABEL_LOCK: digest,
        names.LABEL_VERSIONS: _line(versions),
    }
    order = Order(image=site.request.image, labels=labels)
    context = single_file_tar("Dockerfile", f"FROM {image_id}\n")
    return site.images.build(context, order, lambda _: None)


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
