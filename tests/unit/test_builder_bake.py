"""What of the registry goes into an image, and how."""

import io
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
from small_models import folder

from kernel_provider import cli
from kernel_provider.builder.bake import Layer, write_models
from kernel_provider.builder.model import BuildResult
from kernel_provider.models.add import Request, add
from kernel_provider.models.entry import Entry
from kernel_provider.models.sources import from_path
from kernel_provider.models.store import Registry
from kernel_provider.steps import Note

BELOW = BuildResult(
    image="i", image_id="sha256:1", digest="sha256:2", size=1, seconds=0.0, reused=True
)


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    """An empty one."""
    return Registry(tmp_path / "registry")


@pytest.fixture
def entry(registry: Registry, tmp_path: Path) -> Entry:
    """A model with files in a subfolder."""
    model = "org/tiny"
    found = from_path(model, folder(tmp_path / "m"))
    return add(registry, Request(model=model, revision="v1"), found, Note())


def test_the_layer_is_what_a_mounted_model_is(
    registry: Registry, entry: Entry, tmp_path: Path
) -> None:
    """A cache of the hub and a folder by name; nobody's to write, and no content twice."""
    archive = io.BytesIO()
    write_models(registry, [entry], archive)
    with tarfile.open(fileobj=archive) as tar:
        members = tar.getmembers()
        assert {(m.uid, m.gid) for m in members} == {(0, 0)}
        assert {m.mode for m in members if m.isdir()} == {0o555}
        assert {m.mode for m in members if not m.isdir()} == {0o444}
        assert sum(m.size for m in members if "/snapshots/" in m.name) == entry.size
        assert sum(m.size for m in members if m.name.startswith("models/tiny")) == 0
        tar.extractall(tmp_path / "root", filter="tar")
    root = tmp_path / "root/models"
    hub = root / "hub/models--org--tiny"
    assert {ref.name for ref in (hub / "refs").iterdir()} == entry.refs
    assert (hub / "refs/main").read_text() == entry.commit
    for file in entry.files:
        there = hub / "snapshots" / entry.commit / file.path
        assert there.read_bytes() == (registry.snapshot(entry) / file.path).read_bytes()
        assert there.samefile(root / "tiny" / file.path)
    assert any("/" in file.path for file in entry.files)


def test_whatever_changes_makes_another_image(registry: Registry, entry: Entry) -> None:
    """The image below, and a model's content or revision; not what is told of it."""
    layer = Layer(below=BELOW, registry=registry, entries=(entry,))
    told = replace(entry, source="elsewhere", memory=1, cpus=1.0)
    assert replace(layer, entries=(told,)).digest == layer.digest
    others = [
        replace(layer, entries=()),
        replace(layer, entries=(replace(entry, revision="v2"),)),
        replace(layer, entries=(replace(entry, files=entry.files[1:]),)),
        replace(layer, below=replace(BELOW, digest="sha256:3")),
    ]
    assert len({layer.digest, *(other.digest for other in others)}) == 5


@pytest.mark.parametrize("words", [[], ["--tag", "executor-ml"], ["--tag", "executor-ml:latest"]])
def test_it_does_not_take_the_usual_name(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Which is every kernel's that says nothing of images."""
    assert cli.main(["build", "--model", "org/tiny", *words]) == 2
    assert "Fix: add --tag NAME" in capsys.readouterr().err
