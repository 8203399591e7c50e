"""What an engine's export of an image really holds, read before an engine is given it.

An archive can name any number of images and move any name on the machine that loads it.
Ours hold one image without a name: names are given afterwards, by us. Anything else is
refused. https://docs.docker.com/reference/api/engine/version/v1.41/#tag/Image
"""

import json
import posixpath
import re
import tarfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO, Any, Final

from kernel_provider import names
from kernel_provider.bundle.archive import Reader
from kernel_provider.bundle.errors import ImageRefusedError
from kernel_provider.bundle.model import BundledImage, is_our_name

TABLE: Final = "manifest.json"
_LARGEST_TEXT: Final = 4 << 20
_NAMES_IN_INDEX: Final = ("io.containerd.image.name", "org.opencontainers.image.ref.name")
_SAME_LAYER: Final = re.compile(r"(?:\.\./)?[0-9a-f]{64}/layer\.tar")
"""An engine writes a layer that comes again as a link to the first."""

_REMEDY: Final = "bundle with the version that is here, images that executor-ml build made"


@dataclass(frozen=True, kw_only=True)
class Content:
    """The image of an archive: the digests of its layers, and its labels."""

    layers: tuple[str, ...]
    labels: Mapping[str, str]


def refusal(labels: Mapping[str, str]) -> str:
    """Why an image with these labels is of no use to this package; empty if it is."""
    if labels.get(names.LABEL) != names.KIND_IMAGE:
        return "executor-ml build has not made it"
    spoken = labels.get(names.LABEL_PROTOCOL, "none")
    if spoken != str(names.PROTOCOL):
        return f"it speaks protocol {spoken}, and this version speaks {names.PROTOCOL}"
    return ""


def examine(reader: Reader, image: BundledImage) -> None:
    """See that an image in a bundle is whole, and what its manifest says.

    Raises:
        BundleDamagedError: it was altered.
        ImageRefusedError: it was made by others, for another version, or to harm.
    """
    reader.verify(image.member)
    with reader.open(image.member) as archive:
        try:
            content = read_content(archive)
            reason = refusal(content.labels)
        except ValueError as error:
            reason = f"{image.member}: {error}"
        else:
            if not reason and (content.layers, content.labels) != (image.layers, image.labels):
                reason = f"{image.member} holds another image"
    if not reason and not is_our_name(image.name):
        reason = "its name is not one of executor-ml's"
    if reason:
        raise ImageRefusedError(image=image.name, reason=reason, remedy=_REMEDY)


def read_content(archive: IO[bytes]) -> Content:
    """Read an archive, compressed or not, to its end.

    Raises:
        ValueError: it is not one image without a name; says what it is.
    """
    try:
        with tarfile.open(fileobj=archive, mode="r|*") as tar:
            texts = _texts(tar)
        (entry,) = json.loads(texts[TABLE])
        if entry.get("RepoTags") or _has_names(texts):
            message = "it would give a name to an image"
            raise ValueError(message)
        facts: dict[str, Any] = json.loads(texts[entry["Config"]])
        return Content(
            layers=tuple(facts["rootfs"]["diff_ids"]),
            labels=facts.get("config", {}).get("Labels") or {},
        )
    except (tarfile.TarError, zlib.error, OSError, EOFError) as error:
        message = f"it is no archive ({error})"
        raise ValueError(message) from error
    except (KeyError, TypeError, AttributeError) as error:
        message = f"its table of contents is none ({type(error).__name__}: {error})"
        raise ValueError(message) from error


def _texts(tar: tarfile.TarFile) -> dict[str, bytes]:
    """Every small file by its name; raises ValueError for what could hide another."""
    texts: dict[str, bytes] = {}
    seen: set[str] = set()
    for info in tar:
        if info.isdir():
            continue
        plain = posixpath.normpath(info.name) == info.name and not info.name.startswith(("/", ".."))
        linked = info.issym() and all(map(_SAME_LAYER.fullmatch, (info.name, info.linkname)))
        if info.name in seen or not plain or not (info.isreg() or linked):
            message = f"{info.name} may not be in it"
            raise ValueError(message)
        seen.add(info.name)
        file = tar.extractfile(info) if info.isreg() and info.size <= _LARGEST_TEXT else None
        if file is not None:
            texts[info.name] = file.read()
    return texts


def _has_names(texts: Mapping[str, bytes]) -> bool:
    """Whether an older or a newer engine would find names where manifest.json has none."""
    if json.loads(texts.get("repositories", b"{}")):
        return True
    entries = json.loads(texts.get("index.json", b"{}")).get("manifests", [])
    return any(name in (e.get("annotations") or {}) for e in entries for name in _NAMES_IN_INDEX)
