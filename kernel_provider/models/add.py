"""Take a model into the registry: copy or share its files, and describe them."""

import errno
import fcntl
import hashlib
import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from kernel_provider.models import weights
from kernel_provider.models.entry import MAIN, Entry, ModelFile, check_id, check_revision, commit_of
from kernel_provider.models.errors import ModelRefusedError
from kernel_provider.models.sources import Found
from kernel_provider.models.store import CHUNK, Progress, Registry, digest_of, seal
from kernel_provider.steps import Note

FICLONE: Final = 0x40049409
"""Share a file's content until one of the two is written (ioctl_ficlonerange(2))."""

LICENCE_LIMIT: Final = 64 * 1024
LICENCE_NAMES: Final = ("license", "licence", "copying", "unlicense")


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to add and as what.

    ``share`` lets files be hard links to where they come from, which makes those
    read-only too. ``replace`` takes the place of a model of the same id and revision.
    """

    model: str
    revision: str = MAIN
    share: bool = False
    replace: bool = False


class Counter:
    """Tells a step's note how many of the bytes are done."""

    def __init__(self, note: Note, total: int) -> None:
        self._note = note
        self._total = total
        self._done = 0

    def __call__(self, count: int) -> None:
        """Count some more."""
        self._done += count
        self._note.text = f"{megabytes(self._done)} of {megabytes(self._total)}"


def add(
    registry: Registry,
    request: Request,
    found: Found,
    note: Note,
    converted: Callable[[Found, Path], Found] | None = None,
) -> Entry:
    """Add what was found; on any error, and on Ctrl-C, the registry is as it was.

    ``note`` tells how far it is; ``converted`` makes something else of what was found,
    in a folder that is removed again. Raises ModelRefusedError, RegistryError.
    """
    check(registry, request)
    if converted is None:
        refuse_pickles(request.model, found)
    with registry.changing() as work:
        if converted is not None:
            found = converted(found, work)
        progress = Counter(note, sum(path.stat().st_size for path in found.files.values()))
        staged: dict[str, Path] = {}
        taken: dict[str, Path] = {}
        files = []
        for number, (inner, source) in enumerate(sorted(found.files.items())):
            target = work / f"file-{number}"
            digest = take(source, target, share=request.share or found.blobs, progress=progress)
            _check_blob(request.model, source, digest, found)
            staged[digest] = taken[inner] = target
            files.append(ModelFile(path=inner, sha256=digest, size=target.stat().st_size))
        entry = describe(request, found, tuple(files), taken)
        registry.publish(work, entry, staged)
    note.text = f"{megabytes(entry.size)}, {len(entry.files)} files"
    return entry


def check(registry: Registry, request: Request) -> None:
    """Refuse, before anything is copied, what could not be called that way."""
    model = request.model
    try:
        check_id(model)
        check_revision(request.revision)
    except ValueError as error:
        remedy = "give it an id such as distilgpt2 or organisation/name"
        raise ModelRefusedError(model=model, reason=str(error), remedy=remedy) from error
    label = f"{model}@{request.revision}"
    if not request.replace and label in {entry.label for entry in registry.list()}:
        reason = f"{label} is there already"
        remedy = "add --replace to put this one in its place, or another --revision"
        raise ModelRefusedError(model=model, reason=reason, remedy=remedy)


def refuse_pickles(model: str, found: Found) -> None:
    """Pickles run code when they are loaded: without other weights, there is no model."""
    others = any(name.endswith((".safetensors", ".gguf")) for name in found.files)
    if found.pickles and not others:
        names = ", ".join(sorted(found.pickles))
        reason = f"{names}: these weights are pickles, which run code when they are loaded"
        remedy = "add --convert, which makes safetensors of them inside a sandbox"
        raise ModelRefusedError(model=model, reason=reason, remedy=remedy)


def take(source: Path, target: Path, *, share: bool, progress: Progress) -> str:
    """Make ``target`` a sealed file with the content of ``source``; give its digest.

    Without copying where the file system can: a clone, or a hard link if ``share``.
    """
    if _clone(source, target) or (share and _link(source, target)):
        digest = digest_of(target, progress)
    else:
        digest = _copy(source, target, progress)
        seal(target)
    return digest


def _clone(source: Path, target: Path) -> bool:
    with source.open("rb") as old, target.open("xb") as new:
        try:
            fcntl.ioctl(new.fileno(), FICLONE, old.fileno())
        except OSError:
            target.unlink()
            return False
    seal(target)
    return True


def _link(source: Path, target: Path) -> bool:
    """Link, unless it is another file system's, or somebody else's."""
    try:
        os.link(source, target)
        seal(target)
    except OSError as error:
        target.unlink(missing_ok=True)
        if error.errno in {errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.ENOTSUP}:
            return False
        raise
    return True


def _copy(source: Path, target: Path, progress: Progress) -> str:
    digest = hashlib.sha256()
    with source.open("rb") as old, target.open("xb") as new:
        while chunk := old.read(CHUNK):
            digest.update(chunk)
            new.write(chunk)
            progress(len(chunk))
    return digest.hexdigest()


def _check_blob(model: str, source: Path, digest: str, found: Found) -> None:
    """The hub's cache calls large files by their sha256: see that they still are that."""
    if found.blobs and re.fullmatch(r"[0-9a-f]{64}", source.name) and source.name != digest:
        reason = f"{source} is damaged: its name is its sha256, and it has another"
        remedy = "remove it from the cache and download it again"
        raise ModelRefusedError(model=model, reason=reason, remedy=remedy)


def describe(
    request: Request, found: Found, files: tuple[ModelFile, ...], taken: Mapping[str, Path]
) -> Entry:
    """The entry for what was taken; raises ModelRefusedError where weights are broken."""
    try:
        held = weights.read_all(taken)
    except ValueError as error:
        remedy = "get it anew: it is damaged, or not what its name says"
        raise ModelRefusedError(model=request.model, reason=str(error), remedy=remedy) from error
    name, text = licence(taken)
    return Entry(
        id=request.model,
        revision=request.revision,
        commit=found.commit or commit_of(files),
        files=files,
        source=found.source,
        added=datetime.now(UTC).date().isoformat(),
        licence=name or held.licence or found.licence,
        licence_text=text or found.licence_text[:LICENCE_LIMIT],
        parameters=held.parameters,
        dtype=held.dtype,
    )


def licence(files: Mapping[str, Path]) -> tuple[str, str]:
    """Name and text of a model's licence: from its card, and from a file of that name."""
    name = text = ""
    for inner, path in sorted(files.items()):
        with suppress(OSError):
            if inner.lower() == "readme.md":
                name = _of_card(_beginning(path))
            elif inner.lower().startswith(LICENCE_NAMES):
                text = _beginning(path)
    first = next((line.strip() for line in text.splitlines() if line.strip()), "")
    return name or first[:80], text


def _of_card(card: str) -> str:
    """What the front matter of a model card says (huggingface.co/docs/hub/model-cards)."""
    if not card.startswith("---\n"):
        return ""
    front = card[4:].partition("\n---")[0]
    match = re.search(r"^license:[ \t]*[\"']?([\w.+-]+)", front, re.MULTILINE)
    return match[1] if match else ""


def _beginning(path: Path) -> str:
    with path.open("rb") as file:
        return file.read(LICENCE_LIMIT).decode(errors="replace")


def megabytes(size: float) -> str:
    """A size in units of 1024, as everywhere."""
    for unit, name in ((1 << 30, "GB"), (1 << 20, "MB")):
        if size >= unit:
            return f"{size / unit:.1f} {name}"
    return f"{size / 1024:.1f} KB"
