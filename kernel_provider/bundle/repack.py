"""A wheel of a distribution from the files that its installation left.

The package may have been installed from a wheel that is gone, and there may be no checkout.
All that a wheel holds is still there, with its digests in RECORD; only the scripts were
made, and are made again from the entry points. https://packaging.python.org/specifications
"""

import base64
import hashlib
import json
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Final

from kernel_provider.bundle.errors import WheelsError

_NOT_OF_THE_WHEEL: Final = ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json")
_EPOCH: Final = (1980, 1, 1, 0, 0, 0)
_DATA: Final = "share"
"""Where data go below an environment's prefix; what else is outside is a script."""


def repack(distribution: metadata.Distribution, folder: Path) -> Path:
    """Write the wheel into ``folder``.

    Data files that were changed since, such as a kernelspec with limits of its own, are left
    out.

    Raises:
        WheelsError: it is installed as a link to a checkout, or its code was changed.
    """
    name = distribution.metadata["Name"].replace("-", "_")
    stem = f"{name}-{distribution.version}"
    wheel = folder / f"{stem}-py3-none-any.whl"
    record = []
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for inside, content in _files(distribution, stem):
            archive.writestr(_info(inside), content)
            record.append(f"{inside},sha256={_digest(content)},{len(content)}\n")
        inside = f"{stem}.dist-info/RECORD"
        archive.writestr(_info(inside), "".join([*record, f"{inside},,\n"]))
    return wheel


def _files(distribution: metadata.Distribution, stem: str) -> Iterator[tuple[str, bytes]]:
    """Every file of the wheel by its place in there, the metadata last."""
    name = distribution.metadata["Name"]
    _refuse_link(distribution, name)
    entries = distribution.files
    if not entries:
        raise _unusable(name, "its list of files is gone")
    info = f"{stem}.dist-info"
    for entry in sorted(entries, key=lambda entry: (entry.parts[0] == info, str(entry))):
        if entry.suffix == ".pyc" or (entry.parts[0] == info and entry.name in _NOT_OF_THE_WHEEL):
            continue
        inside = str(entry) if entry.parts[0] != ".." else _data_place(entry, stem)
        if not inside:
            continue
        path = Path(str(entry.locate()))
        content = path.read_bytes() if path.is_file() else None
        if content is not None and entry.hash and entry.hash.value == _digest(content):
            yield inside, content
        elif entry.parts[0] != "..":
            state = "is gone" if content is None else "was changed"
            raise _unusable(name, f"{path} {state} since it was installed")


def _data_place(entry: metadata.PackagePath, stem: str) -> str:
    """Where data are in a wheel; empty for scripts."""
    inside = "/".join(part for part in entry.parts if part != "..")
    return f"{stem}.data/data/{inside}" if inside.startswith(f"{_DATA}/") else ""


def _refuse_link(distribution: metadata.Distribution, name: str) -> None:
    origin = json.loads(distribution.read_text("direct_url.json") or "{}")
    if origin.get("dir_info", {}).get("editable"):
        raise _unusable(name, "it is a link to a checkout (pip install -e)")


def _unusable(name: str, reason: str) -> WheelsError:
    return WheelsError(
        reason=f"{name} cannot be packed from its installation: {reason}",
        last_words="",
        remedy=f"install it again, as a copy: pip install --force-reinstall --no-deps {name}",
    )


def _info(inside: str) -> zipfile.ZipInfo:
    """The same on every machine."""
    info = zipfile.ZipInfo(inside, _EPOCH)
    info.compress_type = zipfile.ZIP_DEFLATED
    info.external_attr = 0o644 << 16
    return info


def _digest(content: bytes) -> str:
    """As RECORD writes it (PEP 376)."""
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
