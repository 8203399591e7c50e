"""Bundles and images' archives for tests, made without an engine."""

import gzip
import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kernel_provider import names
from kernel_provider.bundle.archive import Writer
from kernel_provider.bundle.model import (
    BundledImage,
    Manifest,
    kernelspec_member,
    this_machine,
)
from kernel_provider.kernelspecs import PROVISIONER

IMAGE = "executor-ml-tiny:latest"
LAYERS = (f"sha256:{'1' * 64}",)
LABELS = {names.LABEL: names.KIND_IMAGE, names.LABEL_PROTOCOL: str(names.PROTOCOL)}
SMALL = ("install.py", "wheels/a-1-py3-none-any.whl", kernelspec_member("tiny"))
PACKED = "images/0.tar.gz"


def tar_of(files: Mapping[str, bytes]) -> bytes:
    """A tar of these files, in their order."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def exported(
    labels: Mapping[str, str] | None = None,
    *,
    tags: list[str] | None = None,
    more: Mapping[str, Any] | None = None,
) -> dict[str, bytes]:
    """The files of an engine's export of one image; ``more`` are files of JSON."""
    config = {
        "config": {"Labels": dict(LABELS if labels is None else labels)},
        "rootfs": {"diff_ids": LAYERS},
    }
    table = [{"Config": "c.json", "RepoTags": tags, "Layers": ["l/layer.tar"]}]
    texts = {"c.json": config, "manifest.json": table, **(more or {})}
    return {
        "l/layer.tar": bytes(1024),
        **{name: json.dumps(text).encode() for name, text in texts.items()},
    }


def kernel_json(config: Mapping[str, Any]) -> bytes:
    """A kernelspec of ours with that configuration."""
    spec = {
        "argv": ["executor-ml", "launch", "{connection_file}"],
        "display_name": "Tiny",
        "language": "python",
        "metadata": {
            "kernel_provisioner": {"provisioner_name": PROVISIONER, "config": dict(config)}
        },
    }
    return json.dumps(spec).encode()


def write_bundle(
    path: Path,
    *,
    archive: bytes | None = None,
    config: Mapping[str, Any] | None = None,
    **manifest: Any,
) -> Manifest:
    """A bundle of one small file of each kind; ``manifest`` replaces what it would say."""
    with path.open("w+b") as file:
        writer = Writer(file)
        for name in SMALL[:2]:
            writer.add(name, f"content of {name}".encode())
        writer.add(SMALL[2], kernel_json(config or {"image": IMAGE}))
        writer.add(PACKED, gzip.compress(tar_of(exported()) if archive is None else archive))
        image = BundledImage(
            name=manifest.pop("image_name", IMAGE),
            id=f"sha256:{'2' * 64}",
            layers=LAYERS,
            labels=LABELS,
            size=1024,
            member=PACKED,
        )
        told: dict[str, Any] = {
            "package": "1",
            "protocol": names.PROTOCOL,
            "target": this_machine(),
            "images": (image,),
            "kernelspecs": ("tiny",),
            "members": writer.members,
        }
        made = Manifest(**{**told, **manifest})
        writer.close(made)
    return made
