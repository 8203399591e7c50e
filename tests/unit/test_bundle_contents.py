"""What an archive of an image may hold, looked at before an engine gets it."""

import gzip
import io
import tarfile
from pathlib import Path
from typing import Any

import pytest
from bundles import IMAGE, LABELS, LAYERS, exported, tar_of, write_bundle

from kernel_provider import names
from kernel_provider.bundle.archive import Reader
from kernel_provider.bundle.contents import Content, examine, read_content
from kernel_provider.bundle.errors import ImageRefusedError

HEX = "a" * 64
NAMES_IN_INDEX = ("io.containerd.image.name", "org.opencontainers.image.ref.name")


def check(path: Path) -> None:
    """Examine the image of a bundle."""
    with Reader(path) as reader:
        examine(reader, reader.manifest.images[0])


def refused(path: Path, archive: bytes, **manifest: Any) -> str:
    """What is said of a bundle with that archive."""
    write_bundle(path, archive=archive, **manifest)
    with pytest.raises(ImageRefusedError) as caught:
        check(path)
    text = str(caught.value)
    assert text.startswith(f"the image {manifest.get('image_name', IMAGE)} is refused: ")
    assert "\nFix: bundle with the version that is here" in text
    return text


def index_with(key: str) -> dict[str, Any]:
    """The index of a newer engine, with a name."""
    return {"manifests": [{"annotations": {key: "debian:latest"}}]}


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_an_export_of_ours_is_read(pack: Any) -> None:
    """Compressed or not: its layers and its labels."""
    content = read_content(io.BytesIO(pack(tar_of(exported()))))
    assert content == Content(layers=LAYERS, labels=LABELS)


def test_an_export_of_ours_is_accepted(tmp_path: Path) -> None:
    """As older engines write it, and as newer ones do."""
    index = {"manifests": [{"digest": "sha256:1", "annotations": {"other": "1"}}]}
    newer = tar_of(exported(more={"index.json": index, "oci-layout": {"imageLayoutVersion": "1"}}))
    for archive in (tar_of(exported()), newer, tar_of(exported(more={"repositories": {}}))):
        write_bundle(tmp_path / "b.tar", archive=archive)
        check(tmp_path / "b.tar")


@pytest.mark.parametrize(
    "files",
    [
        exported(tags=["debian:latest"]),
        exported(tags=[IMAGE]),
        exported(more={"repositories": {"debian": {"latest": "1"}}}),
        *(exported(more={"index.json": index_with(key)}) for key in NAMES_IN_INDEX),
    ],
)
def test_an_archive_that_names_images_is_refused(tmp_path: Path, files: dict[str, bytes]) -> None:
    """Wherever the name stands: loading it would take that name from another image."""
    text = refused(tmp_path / "b.tar", tar_of(files))
    assert "images/0.tar.gz: it would give a name to an image" in text


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        ({}, "executor-ml build has not made it"),
        ({**LABELS, names.LABEL: "build"}, "executor-ml build has not made it"),
        ({**LABELS, names.LABEL_PROTOCOL: "99"}, "it speaks protocol 99, and this version speaks"),
        ({**LABELS, "more": "1"}, "images/0.tar.gz holds another image"),
    ],
)
def test_an_image_of_others_is_refused(tmp_path: Path, labels: dict[str, str], reason: str) -> None:
    """The labels in the archive count, not those that the manifest tells."""
    assert reason in refused(tmp_path / "b.tar", tar_of(exported(labels)))


@pytest.mark.parametrize("name", ["debian:latest", "executor-ml", "x/../executor-ml:1", "a b:1"])
def test_a_name_of_others_is_refused(tmp_path: Path, name: str) -> None:
    """A bundle never takes over an image that is not executor-ml's."""
    text = refused(tmp_path / "b.tar", tar_of(exported()), image_name=name)
    assert "its name is not one of executor-ml's" in text


def with_link(name: str, to: str) -> bytes:
    """An export with a symbolic link in it."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for file, content in exported().items():
            info = tarfile.TarInfo(file)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        link = tarfile.TarInfo(name)
        link.type, link.linkname = tarfile.SYMTYPE, to
        tar.addfile(link)
    return buffer.getvalue()


def without_end(archive: bytes) -> bytes:
    """A tar that another may follow."""
    plain = archive.rstrip(b"\0")
    return plain + bytes(-len(plain) % tarfile.BLOCKSIZE)


@pytest.mark.parametrize(
    "archive",
    [
        with_link("manifest.json", "other.json"),
        with_link("elsewhere", "."),
        with_link(f"{HEX}/layer.tar", "../manifest.json"),
        tar_of({**exported(), "./manifest.json": b"[]"}),
        tar_of({**exported(), "a/../manifest.json": b"[]"}),
        tar_of({**exported(), "/manifest.json": b"[]"}),
        without_end(tar_of(exported())) + tar_of({"manifest.json": b"[]"}),
    ],
)
def test_what_would_hide_the_real_table_is_refused(tmp_path: Path, archive: bytes) -> None:
    """An engine unpacks it, and what comes later there lies over what was looked at here."""
    assert " may not be in it" in refused(tmp_path / "b.tar", archive)


def test_a_layer_that_comes_again_is_a_link(tmp_path: Path) -> None:
    """Engines write it so."""
    archive = with_link(f"{HEX}/layer.tar", f"../{'b' * 64}/layer.tar")
    write_bundle(tmp_path / "b.tar", archive=archive)
    check(tmp_path / "b.tar")


@pytest.mark.parametrize(
    "archive",
    [
        b"",
        b"no archive",
        tar_of({"other": b"1"}),
        tar_of({**exported(), "manifest.json": b"[]"}),
        tar_of({**exported(), "manifest.json": b"{"}),
        tar_of({**exported(), "manifest.json": b'["text"]'}),
        tar_of({**exported(), "c.json": b"{}"}),
        tar_of({**exported(), "index.json": b"[]"}),
        tar_of(exported())[:1000],
    ],
)
def test_what_is_no_archive_of_one_image_is_refused(tmp_path: Path, archive: bytes) -> None:
    """With words, not with a traceback."""
    assert "images/0.tar.gz: " in refused(tmp_path / "b.tar", archive)
