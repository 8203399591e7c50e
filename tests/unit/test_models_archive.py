"""Models in one file: whole on the other side, and nothing of a file that somebody made up."""

import hashlib
import io
import json
import os
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_models import folder

from kernel_provider.models.add import Request, add
from kernel_provider.models.archive import bring_in, export
from kernel_provider.models.entry import Entry, commit_of
from kernel_provider.models.errors import (
    ArchiveError,
    ArchiveMissingError,
    ArchiveWriteError,
    ModelAlteredError,
    ModelRefusedError,
    RegistryError,
)
from kernel_provider.models.sources import from_path
from kernel_provider.models.store import Registry
from kernel_provider.steps import Note


@pytest.fixture
def here(tmp_path: Path) -> Registry:
    """A registry with two models that share files."""
    registry = Registry(tmp_path / "here")
    put(registry, tmp_path / "m", "org/one")
    put(registry, tmp_path / "longer", "two")
    return registry


@pytest.fixture
def there(tmp_path: Path) -> Registry:
    """Another machine's, empty."""
    return Registry(tmp_path / "there")


@pytest.fixture
def file(here: Registry, tmp_path: Path) -> Path:
    """An archive of all models."""
    export(here, here.list(), tmp_path / "models.tar", Note())
    return tmp_path / "models.tar"


def put(registry: Registry, path: Path, model: str) -> Entry:
    """Add a model whose content is that of its folder's name."""
    found = from_path(model, folder(path, fill=" " * len(path.name)))
    return add(registry, Request(model=model), found, Note())


def test_models_travel_in_a_file(here: Registry, there: Registry, file: Path) -> None:
    """Each content once; on the other side they are what they were."""
    note = Note()
    assert bring_in(there, file, note) == here.list()
    assert there.list() == here.list()
    assert "KB of" in note.text
    for entry in there.list():
        there.check(entry, thorough=True)
    with tarfile.open(file) as tar:
        names = tar.getnames()
    digests = {f.sha256 for entry in here.list() for f in entry.files}
    assert len(names) == len(set(names)) == 2 + len(digests)
    assert sum(len(entry.files) for entry in here.list()) > len(digests)


def test_what_is_there_stays(there: Registry, file: Path, tmp_path: Path) -> None:
    """The same again is nothing new; another of that name is asked about."""
    bring_in(there, file, Note())
    before = {path: path.lstat().st_ino for path in there.views.rglob("*")}
    bring_in(there, file, Note())
    assert {path: path.lstat().st_ino for path in there.views.rglob("*")} == before
    there.forget(there.find("two"))
    mine = put(there, tmp_path / "mine-alone", "two")
    with pytest.raises(ModelRefusedError, match="two@main was not added: another one") as caught:
        bring_in(there, file, Note())
    assert "--replace" in str(caught.value)
    assert there.find("two") == mine
    bring_in(there, file, Note(), replace=True)
    assert there.find("two") != mine


def test_a_spoilt_model_is_not_exported(here: Registry, tmp_path: Path) -> None:
    """Nor is the archive of yesterday lost over it."""
    target = tmp_path / "models.tar"
    target.write_text("yesterday")
    path = here.snapshot(here.find("two")) / "config.json"
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1] + b"\n")
    with pytest.raises(ModelAlteredError, match=str(path)):
        export(here, here.list(), target, Note())
    assert target.read_text() == "yesterday"
    assert not list(tmp_path.glob(".models*"))


def test_a_place_that_cannot_be_written_is_told(here: Registry, tmp_path: Path) -> None:
    """And no half file is left."""
    with pytest.raises(ArchiveWriteError, match="cannot be written: No such file"):
        export(here, here.list(), tmp_path / "nowhere/models.tar", Note())
    with pytest.raises(ArchiveWriteError, match="it is a folder"):
        export(here, here.list(), Path("/"), Note())


def test_a_cut_file_adds_nothing(there: Registry, file: Path) -> None:
    """Wherever it was cut."""
    data = file.read_bytes()
    with tarfile.open(file) as tar:
        last = tar.getmembers()[-1]
    for length in (0, 100, 512, 1500, last.offset, last.offset_data, last.offset_data + 1):
        file.write_bytes(data[:length])
        with pytest.raises(ArchiveError, match=str(file)):
            bring_in(there, file, Note())
        assert there.list() == ()
        assert [path for path in there.root.rglob("*") if path.is_file()] == [there.root / ".lock"]


def test_what_is_no_archive_is_told(there: Registry, tmp_path: Path) -> None:
    """Another format, a folder, nothing."""
    (tmp_path / "zip").write_bytes(b"PK\3\4" + bytes(2000))
    with pytest.raises(ArchiveError, match="cannot be imported"):
        bring_in(there, tmp_path / "zip", Note())
    for name, reason in {".": "Is a directory", "nowhere": "No such file or directory"}.items():
        with pytest.raises(ArchiveMissingError, match=f"cannot be read: {reason}"):
            bring_in(there, tmp_path / name, Note())


def test_a_full_disk_is_not_the_archives_fault(
    there: Registry, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error is about the registry then."""
    real = Path.open

    def full(self: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if "x" in mode:
            raise OSError(28, os.strerror(28))
        return real(self, mode, *args, **kwargs)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(RegistryError, match="No space left"):
        bring_in(there, file, Note())


# --- archives that somebody made up ---------------------------------------------------

Members = list[tuple[tarfile.TarInfo, bytes]]


def members_of(file: Path) -> Members:
    """The members of an archive, to be tampered with."""
    with tarfile.open(file) as tar:
        return [(member, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]


def named(members: Members, name: str, data: bytes = b"x", **changes: Any) -> Members:
    """With one member more."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, change in changes.items():
        setattr(info, key, change)
    return [*members, (info, data)]


def without_a_blob(members: Members) -> Members:
    """With a content missing."""
    return members[:-1]


def with_another_content(members: Members) -> Members:
    """With one that is not what its name says."""
    info, data = members[-1]
    return [*members[:-1], (info, bytes(len(data)))]


def with_a_longer_content(members: Members) -> Members:
    """With one of another size."""
    info, data = members[-1]
    info.size += 1
    return [*members[:-1], (info, data + b"!")]


def entry_changed(**changes: Any) -> Callable[[Members], Members]:
    """With something else in the first entry."""

    def change(members: Members) -> Members:
        info, data = members[0]
        text = json.dumps({**json.loads(data), **changes}).encode()
        info.size = len(text)
        return [(info, text), *members[1:]]

    return change


def with_a_pickle(members: Members) -> Members:
    """A model whose file runs code when it is loaded, under a harmless name."""
    data = pickle.dumps({})
    entry = json.loads(members[0][1])
    digest = hashlib.sha256(data).hexdigest()
    entry["files"] = [{"path": "model.safetensors", "sha256": digest, "size": len(data)}]
    entry["commit"] = commit_of(())
    text = json.dumps(entry).encode()
    return named(named([], members[0][0].name, text), f"blobs/{digest}", data)


@pytest.mark.parametrize(
    "tamper",
    [
        lambda _: [],
        lambda m: named(m, "../../escaped"),
        lambda m: named(m, "/tmp/escaped"),
        lambda m: named(m, "blobs/../../escaped"),
        lambda m: named(m, "entries/../escaped.json"),
        lambda m: named(m, "escaped"),
        lambda m: named(m, "blobs/" + "0" * 64),
        lambda m: named(m, "blobs/x", b"", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        lambda m: named(m, "blobs/x", b"", type=tarfile.LNKTYPE, linkname="/etc/passwd"),
        lambda m: named(m, "blobs/x", b"", type=tarfile.FIFOTYPE),
        lambda m: named(m, "blobs/x", b"", type=tarfile.CHRTYPE),
        lambda m: named(m, "blobs", b"", type=tarfile.DIRTYPE),
        lambda m: [*m, m[0]],
        lambda m: [*m, m[-1]],
        lambda m: [*reversed(m)],
        lambda m: named(m[1:], "entries/other.json", m[0][1]),
        lambda m: named([], m[0][0].name, b"\xff"),
        lambda m: named([], m[0][0].name, b"[" * 100_000),
        without_a_blob,
        with_another_content,
        with_a_longer_content,
        with_a_pickle,
        entry_changed(id="../x"),
        entry_changed(revision="other"),
        entry_changed(files=[{"path": "../x", "sha256": "0" * 64, "size": 1}]),
        entry_changed(files=[]),
    ],
)
def test_tampered_archives_are_refused(
    tamper: Callable[[Members], Members], there: Registry, file: Path, tmp_path: Path
) -> None:
    """None of them adds anything, inside the registry or out of it."""
    members = tamper(members_of(file))
    with tarfile.open(file, "w") as tar:
        for info, data in members:
            tar.addfile(info, io.BytesIO(data))
    before = sorted(path for path in tmp_path.rglob("*") if there.root not in path.parents)
    with pytest.raises(ArchiveError, match="cannot be imported"):
        bring_in(there, file, Note())
    assert there.list() == ()
    kept = [path for path in there.root.rglob("*") if path.is_file() or path.is_symlink()]
    assert kept == [there.root / ".lock"]
    after = sorted(path for path in tmp_path.rglob("*") if there.root not in path.parents)
    assert set(after) - set(before) <= {there.root}
