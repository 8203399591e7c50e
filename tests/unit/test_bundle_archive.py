"""The file of a bundle: what it is, and that nothing of it can be lost or altered unseen."""

import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from bundles import PACKED, SMALL, tar_of, write_bundle

from kernel_provider.bundle import archive
from kernel_provider.bundle.archive import Reader
from kernel_provider.bundle.errors import (
    BundleDamagedError,
    BundleFormatError,
    NoBundleError,
)
from kernel_provider.bundle.model import FORMAT, MANIFEST, SEAL, Member, read_manifest

ALL = (*SMALL, PACKED, MANIFEST, SEAL)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A small one."""
    path = tmp_path / "b.tar"
    write_bundle(path)
    return path


def places(bundle: Path) -> dict[str, tuple[int, int]]:
    """Where the content of each member begins and ends."""
    with tarfile.open(bundle) as tar:
        return {i.name: (i.offset_data, i.offset_data + i.size) for i in tar}


def rewrite(bundle: Path, change: dict[str, bytes | None], *, seal: bool = True) -> None:
    """Write it anew with other contents, without those that are None."""
    with tarfile.open(bundle) as tar:
        files = {i.name: (tar.extractfile(i) or io.BytesIO()).read() for i in tar}
    files |= {name: content for name, content in change.items() if content is not None}
    files = {k: v for k, v in files.items() if change.get(k, b"") is not None}
    if seal:
        digest = hashlib.sha256(files[MANIFEST]).hexdigest()
        files[SEAL] = f"{digest}  {MANIFEST}\n".encode()
    bundle.write_bytes(tar_of(files))


def test_what_is_packed_is_there(bundle: Path) -> None:
    """Every member with its content, and a manifest that survives its file."""
    with Reader(bundle) as reader:
        for name in SMALL[:2]:
            assert reader.read(name) == f"content of {name}".encode()
        assert reader.manifest == read_manifest(reader.manifest.to_json())
        assert tuple(member.name for member in reader.manifest.members) == ALL[:4]


def test_any_tar_program_opens_it(bundle: Path) -> None:
    """The installer comes first, so that it is there at once; the manifest is sealed."""
    with tarfile.open(bundle, "r:") as tar:
        assert tuple(tar.getnames()) == ALL
        manifest, seal = (tar.extractfile(name) for name in (MANIFEST, SEAL))
        assert manifest
        assert seal
        assert seal.read().split()[0].decode() == hashlib.sha256(manifest.read()).hexdigest()


def test_a_member_may_be_larger_than_a_plain_header_tells(tmp_path: Path) -> None:
    """Images of more than 8 GiB, and names of more than 100 characters, have room."""
    for name in ("images/0.tar.gz", f"wheels/{'a' * 120}.whl"):
        header = archive._header(name, 0)  # noqa: SLF001
        assert len(header) == len(archive._header(name, 9 << 30))  # noqa: SLF001
    path = tmp_path / "large.tar"
    path.write_bytes(archive._header("large", 9 << 30))  # noqa: SLF001
    with tarfile.open(path) as tar:
        info = tar.next()
        assert info is not None
        assert info.size == 9 << 30


@pytest.mark.parametrize("name", ALL)
def test_an_altered_member_is_named(bundle: Path, name: str) -> None:
    """One bit is enough, in the first byte as in the last."""
    content = bundle.read_bytes()
    begin, end = places(bundle)[name]
    for place in (begin, end - 1):
        altered = bytearray(content)
        altered[place] ^= 1
        bundle.write_bytes(altered)
        with pytest.raises(BundleDamagedError) as caught, Reader(bundle) as reader:
            reader.verify(name)
        named = MANIFEST if name == SEAL else name
        assert f"b.tar is damaged: {named} was altered\nFix: carry it over" in str(caught.value)


def test_wherever_it_is_cut_short_it_says_so(bundle: Path) -> None:
    """A member that is cut is named, else the last one that is there."""
    content, where = bundle.read_bytes(), places(bundle)
    for name, (begin, end) in where.items():
        for cut in {begin, (begin + end) // 2, end - 1}:
            bundle.write_bytes(content[:cut])
            with pytest.raises(BundleDamagedError, match=f"{name} is cut short"):
                Reader(bundle)
    for name in ALL[1:]:
        header = where[name][0] - tarfile.BLOCKSIZE
        for cut in (header, header + 100):
            bundle.write_bytes(content[:cut])
            with pytest.raises(BundleDamagedError, match=r"is the last that can be read|short"):
                Reader(bundle)


def test_a_header_that_was_altered_is_seen(bundle: Path) -> None:
    """What tells name and size of a member is not in a digest, and no less looked at."""
    content, where = bundle.read_bytes(), places(bundle)
    for begin, _ in where.values():
        altered = bytearray(content)
        altered[begin - tarfile.BLOCKSIZE] ^= 1
        bundle.write_bytes(altered)
        with pytest.raises((BundleDamagedError, NoBundleError)):
            Reader(bundle)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({SMALL[1]: None}, f"{SMALL[1]} is missing"),
        ({SMALL[1]: b"other"}, f"{SMALL[1]} has another size"),
        ({"more": b""}, "more was added to it"),
        ({MANIFEST: None}, f"{SEAL} is the last"),
        ({SEAL: None}, f"{MANIFEST} is the last"),
    ],
)
def test_the_table_of_contents_is_compared(
    bundle: Path, change: dict[str, bytes | None], told: str
) -> None:
    """Nothing is missing and nothing came in."""
    rewrite(bundle, change, seal=MANIFEST not in change and SEAL not in change)
    with pytest.raises(BundleDamagedError, match=told):
        Reader(bundle)


def test_what_images_and_kernelspecs_need_must_be_there(tmp_path: Path) -> None:
    """A manifest that promises more than there is is refused at once."""
    path = tmp_path / "b.tar"
    write_bundle(path, kernelspecs=("tiny", "other"))
    with pytest.raises(BundleDamagedError, match=r"kernelspecs/other/kernel\.json is missing"):
        Reader(path)


def test_another_format_is_named_before_the_rest_is_read(bundle: Path) -> None:
    """Whatever a later version writes into it."""
    later = json.dumps({"format": FORMAT + 1, "all": "new"}).encode()
    rewrite(bundle, {MANIFEST: later})
    with pytest.raises(BundleFormatError) as caught:
        Reader(bundle)
    assert f"has the format {FORMAT + 1}, and this version" in str(caught.value)
    assert f"reads {FORMAT}\nFix: use the version that is in it: tar xf" in str(caught.value)


@pytest.mark.parametrize("manifest", [b"", b"[]", b"{}", b'{"format": 1}', b"\xff"])
def test_a_manifest_that_is_none_is_refused(bundle: Path, manifest: bytes) -> None:
    """Even where its seal fits."""
    rewrite(bundle, {MANIFEST: manifest})
    with pytest.raises(NoBundleError, match="its manifest is none"):
        Reader(bundle)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "No such file"),
        (b"", "no tar file, or empty"),
        (b"text" * 300, "no tar file"),
        (tar_of({"a": b"b"}), "it has no manifest"),
    ],
)
def test_what_is_no_bundle_is_told(tmp_path: Path, content: bytes | None, reason: str) -> None:
    """A wrong file is not called a damaged one."""
    path = tmp_path / "f"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(NoBundleError) as caught:
        Reader(path)
    assert f"f is no bundle: {reason}" in str(caught.value).replace("it is ", "")
    assert "Fix: give the file that executor-ml bundle wrote" in str(caught.value)


def test_links_and_doubles_are_refused(tmp_path: Path, bundle: Path) -> None:
    """A member is a file, and of its name there is one."""
    path = tmp_path / "link.tar"
    with tarfile.open(path, "w") as tar:
        info = tarfile.TarInfo(MANIFEST)
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(info)
    with pytest.raises(NoBundleError, match=f"{MANIFEST} is nothing that it may hold"):
        Reader(path)
    content = bundle.read_bytes()
    begin, end = places(bundle)[SMALL[1]]
    double = content[begin - tarfile.BLOCKSIZE : end + -end % tarfile.BLOCKSIZE]
    bundle.write_bytes(double + content)
    with pytest.raises(NoBundleError, match=f"{SMALL[1]} is nothing that it may hold"):
        Reader(bundle)


def test_wheels_are_extracted_verified(bundle: Path, tmp_path: Path) -> None:
    """By their own names; an altered one is not written."""
    folder = tmp_path / "to"
    folder.mkdir()
    with Reader(bundle) as reader:
        assert [path.name for path in reader.extract("wheels/", folder)] == ["a-1-py3-none-any.whl"]
    (folder / "a-1-py3-none-any.whl").unlink()
    content = bytearray(bundle.read_bytes())
    content[places(bundle)[SMALL[1]][0]] ^= 1
    bundle.write_bytes(content)
    with Reader(bundle) as reader, pytest.raises(BundleDamagedError):
        reader.extract("wheels/", folder)
    assert not list(folder.iterdir())


def test_a_member_that_nobody_wrote_to_its_end_is_not_listed() -> None:
    """What was cut short is not promised by a manifest."""
    writer = archive.Writer(io.BytesIO())
    message = "cut short"

    def cut() -> Any:
        with writer.member("a") as sink:
            sink.write(b"half")
            raise KeyboardInterrupt(message)

    with pytest.raises(KeyboardInterrupt):
        cut()
    writer.add("b", b"whole")
    assert writer.members == (
        Member(name="b", size=5, sha256=hashlib.sha256(b"whole").hexdigest()),
    )
