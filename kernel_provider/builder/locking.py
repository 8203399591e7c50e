"""Locks of layers: what pip chooses for the image's Python and platform, with hashes.

Whatever a layer below has keeps its version, and is not named again. Packages of no use in
an image are left out unless the requirements name them: builds install with ``--no-deps``. A
torch that is not a CPU build is pinned as one beside the lock, for its hash is not known here.
In a layer for GPUs nothing of CUDA is left out, and torch must not be a CPU build.
"""

import hashlib
import json
import tempfile
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from kernel_provider.builder.layers import Layer
from kernel_provider.builder.lock import is_of_cuda, normalised
from kernel_provider.builder.wheels import (
    PLATFORM,
    need_pip,
    not_to_be_had,
    pip_resolve,
    run_pip,
)
from kernel_provider.errors import BuildError

LEFT_OUT: Final = {
    "cmake": "torch 2.0 asks for it, through triton",
    "hf-xet": "a downloader; images have no network",
    "playwright": "drives a browser; images have none",
    "libclang": "tensorflow asks for it, and imports it nowhere; 80 MB",
    "lit": "torch 2.0 asks for it, through triton",
    "setuptools": "torch asks for it to compile extensions; images have no compiler",
    "wheel": "packages of CUDA ask for it",
}
_OF: Final = "# Of requirements with the digest "


def is_fresh(layer: Layer) -> bool:
    """Whether the lock is there, and of these requirements and these layers below."""
    if not layer.lock.exists():
        return False
    return f"{_OF}{digest_of(layer)}\n" in layer.lock.read_text(encoding="utf-8")


def digest_of(layer: Layer) -> str:
    """Changes with the requirements of a layer and with the versions below it."""
    words = repr((layer.wanted().split("\n"), sorted(layer.pins_below().items())))
    return hashlib.sha256(words.encode()).hexdigest()[:32]


def write_lock(
    layer: Layer, wheels_below: Sequence[Path], image: str, say: Callable[[str], None]
) -> int:
    """Write a layer's lock beside its requirements; return how many packages it pins.

    ``wheels_below`` are folders with the wheels of the layers below, where pip finds them
    even if no index has them any more.

    Raises:
        BuildError: pip finds no versions that go together, or a CPU build of torch for a
            layer for GPUs, or there is no place to write.
    """
    entries = _resolve(layer, wheels_below, image, say)
    hashed, unhashed = split(entries, left_out(layer, entries), gpu=layer.gpu)
    if layer.gpu and any(line.startswith("torch==") and "+cpu" in line for line in hashed):
        raise _for_processors(layer, image)
    header = f"# Written by executor-ml for {layer.name}: {PLATFORM}."
    try:
        _write(layer.lock, [header, f"{_OF}{digest_of(layer)}", *hashed])
        beside = layer.requirements.with_suffix(".unhashed")
        beside.unlink(missing_ok=True)
        if unhashed:
            why = "# Not on the index that this was locked with: pinned, but without a hash."
            _write(beside, [header, why, *unhashed])
    except OSError as error:
        raise BuildError(
            image=image,
            step=f"writing {layer.lock}",
            last_words=f": {error.strerror}",
            remedy="put the requirements into a folder that you can write",
        ) from error
    return len(hashed) + len(unhashed)


def _resolve(
    layer: Layer, wheels_below: Sequence[Path], image: str, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """What pip would install for the image, as the entries of its report."""
    doing = f"finding versions for {layer.requirements.name}"
    need_pip(image, doing)
    with tempfile.TemporaryDirectory(prefix="executor-ml-lock-") as folder:
        wanted, below = Path(folder, layer.requirements.name), Path(folder, "below.txt")
        wanted.write_text(layer.wanted(), encoding="utf-8")
        pins = (f"{name}=={version}\n" for name, version in layer.pins_below().items())
        below.write_text("".join(pins), encoding="utf-8")
        report = Path(folder, "report.json")
        command = pip_resolve(wanted, below, report, wheels_below)
        code, lines = run_pip(command, say)
        if code:
            raise not_to_be_had(image, doing, lines)
        entries: list[dict[str, Any]] = json.loads(report.read_text(encoding="utf-8"))["install"]
    return entries


def left_out(layer: Layer, entries: Iterable[Mapping[str, Any]]) -> set[str]:
    """Names of what does not go into the layer: it is below, or of no use in an image."""
    found = {normalised(entry["metadata"]["name"]) for entry in entries}
    of_no_use = {name for name in found if name in LEFT_OUT or (is_of_cuda(name) and not layer.gpu)}
    return of_no_use - {*layer.named()} | {*layer.pins_below()}


def split(
    entries: Iterable[Mapping[str, Any]], without: Container[str], *, gpu: bool
) -> tuple[list[str], list[str]]:
    """Lines of the lock, and of the pins without hashes, sorted by name."""
    hashed, unhashed = [], []
    for entry in entries:
        name = normalised(entry["metadata"]["name"])
        version = entry["metadata"]["version"]
        if name in without:
            continue
        if name == "torch" and not gpu and not version.endswith("+cpu"):
            unhashed.append(f"{name}=={version.partition('+')[0]}+cpu")
            continue
        digest = entry["download_info"]["archive_info"]["hashes"]["sha256"]
        hashed.append(f"{name}=={version} \\\n    --hash=sha256:{digest}")
    return sorted(hashed), sorted(unhashed)


def _for_processors(layer: Layer, image: str) -> BuildError:
    """The error for a torch without CUDA in a layer for GPUs.

    A version with a label counts more than one without (PEP 440), so that this is what pip
    takes of 2.14.1 and 2.14.1+cpu, where it has seen both.
    """
    return BuildError(
        image=image,
        step=f"finding versions for {layer.requirements.name}: pip chose a torch for processors",
        last_words="",
        remedy="take PyTorch's index of CPU builds out of pip's configuration, or name a version "
        "of which it has no such build",
    )


def _write(path: Path, lines: Iterable[str]) -> None:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
