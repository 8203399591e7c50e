"""From the ``models`` of a kernelspec to what its sandbox is given, and what is refused."""

from pathlib import Path

import pytest
from small_models import folder

from kernel_provider.ceilings import Ceilings
from kernel_provider.engines import Mount
from kernel_provider.errors import ConfigError, MountError
from kernel_provider.hardening import sandbox_spec
from kernel_provider.models.add import Request, add
from kernel_provider.models.entry import Entry
from kernel_provider.models.errors import ModelAlteredError, UnknownModelError
from kernel_provider.models.sources import from_path
from kernel_provider.models.store import Registry
from kernel_provider.policy import KernelPolicy, parse_policy
from kernel_provider.steps import Note


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    """An empty registry."""
    return Registry(tmp_path / "registry")


@pytest.fixture
def tiny(registry: Registry, tmp_path: Path) -> Entry:
    """A model in it."""
    return put(registry, tmp_path / "m", "org/tiny")


def put(registry: Registry, path: Path, model: str, revision: str = "main") -> Entry:
    """Add a model whose content is that of its folder's name."""
    request = Request(model=model, revision=revision)
    found = from_path(model, folder(path, fill=" " * len(path.name)))
    return add(registry, request, found, Note())


def parse(config: dict[str, object], registry: Registry, **held: object) -> KernelPolicy:
    """Parse as the provisioner does."""
    ceilings = Ceilings(registry=str(registry.root), **held)  # type: ignore[arg-type]
    return parse_policy(config, ceilings=ceilings, source="kernelspec mine")


def test_a_model_is_mounted_alone_and_twice(registry: Registry, tiny: Entry) -> None:
    """Where its id and where its path find it; of the registry nothing else."""
    policy = parse({"models": ["org/tiny"]}, registry)
    snapshot = registry.views / tiny.view / "snapshots" / tiny.commit
    assert policy.models == {"org/tiny@main": str(snapshot)}
    mounts = sandbox_spec(policy, rendezvous="/r").mounts
    assert [mount for mount in mounts if mount.source != "/r"] == [
        Mount(source=str(registry.views / tiny.view), target="/models/hub/models--org--tiny"),
        Mount(source=str(snapshot), target="/models/tiny"),
    ]


def test_no_model_is_no_mount(registry: Registry) -> None:
    """And a registry that was never made is no error then."""
    assert parse({"models": []}, registry) == KernelPolicy()
    assert parse({}, registry) == KernelPolicy()


def test_a_revision_is_mounted_as_the_one_there_is(
    registry: Registry, tiny: Entry, tmp_path: Path
) -> None:
    """Code inside asks for the plain id, and gets the one that the kernelspec names."""
    old = put(registry, tmp_path / "older", "org/tiny", "v1")
    assert old.commit != tiny.commit
    policy = parse({"models": ["org/tiny@v1"]}, registry)
    view = Path(policy.models["org/tiny@v1"]).parent.parent
    assert (view / "refs/main").read_text() == old.commit


def test_two_models_cannot_be_at_one_place(registry: Registry, tiny: Entry, tmp_path: Path) -> None:
    """Neither two revisions nor two of one name; the same one twice is once."""
    put(registry, tmp_path / "older", "org/tiny", "v1")
    put(registry, tmp_path / "others", "other/tiny")
    for label in ("org/tiny@v1", "other/tiny"):
        with pytest.raises(ConfigError, match="would both be /models/tiny"):
            parse({"models": [tiny.label, label]}, registry)
    assert len(parse({"models": ["org/tiny", "org/tiny@main"]}, registry).models) == 1


@pytest.mark.parametrize("target", ["/models/hub", "/models/tiny"])
def test_a_mount_cannot_be_where_a_model_goes(
    target: str, registry: Registry, tiny: Entry, tmp_path: Path
) -> None:
    """Without models, the same mount is fine."""
    assert tiny.name == "tiny"
    mounts = {"mounts": {target: str(tmp_path)}}
    with pytest.raises(ConfigError, match="a model of the registry goes there"):
        parse({"models": ["org/tiny"], **mounts}, registry)
    assert parse(dict(mounts), registry).mounts


def test_an_unknown_model_is_told(registry: Registry, tiny: Entry) -> None:
    """By who asked, with the nearest."""
    assert tiny.id == "org/tiny"
    with pytest.raises(UnknownModelError) as caught:
        parse({"models": ["org/tiney"]}, registry)
    assert str(caught.value).startswith("kernelspec mine: there is no model 'org/tiney'")
    assert "did you mean 'org/tiny@main'?" in str(caught.value)
    with pytest.raises(ConfigError, match="write a list of texts"):
        parse({"models": "org/tiny"}, registry)


def test_a_spoilt_model_is_not_mounted(registry: Registry, tiny: Entry) -> None:
    """The error names the file (D6)."""
    path = registry.snapshot(tiny) / "model.safetensors"
    path.chmod(0o644)
    path.write_bytes(b"other")
    with pytest.raises(ModelAlteredError, match=str(path)):
        parse({"models": ["org/tiny"]}, registry)


def test_the_administrators_sources_hold_for_models(registry: Registry, tiny: Entry) -> None:
    """Or a registry of one's own would be a way around them."""
    assert tiny.id == "org/tiny"
    with pytest.raises(MountError, match="policy does not allow"):
        parse({"models": ["org/tiny"]}, registry, mount_sources=("/srv/models",))
    assert parse({"models": ["org/tiny"]}, registry, mount_sources=(str(registry.root),)).models
