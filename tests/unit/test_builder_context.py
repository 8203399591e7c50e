import io
import tarfile
from pathlib import Path

import pytest

from kernel_provider.builder import BuildRequest
from kernel_provider.builder.context import (
    base_digest,
    find_folder,
    image_digest,
    read_context,
    write_tar,
)
from kernel_provider.errors import BuildError, ConfigError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small image folder with two stacks and a variant."""
    files = {
        "Dockerfile": "FROM scratch\n",
        "launcher/guardian.py": "pass\n",
        "steps/strip_root.sh": "true\n",
        "steps/skeleton.sh": "true\n",
        "steps/trim.py": "pass\n",
        "stacks/pip.lock": "pip==1\n",
        "stacks/current/requirements.lock": "torch==1\n",
        "stacks/current/nlp.lock": "datasets==1\n",
        "stacks/2023/requirements.lock": "numpy==1\n",
        "stacks/2023/unhashed.txt": "torch==2.0.1+cpu\n",
        "wheels/README.md": "nothing\n",
    }
    for name, text in files.items():
        path = tmp_path / "image" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "image"


def digests(folder: Path, **changes: str) -> tuple[str, str]:
    """Digests of base and image for a request."""
    request = BuildRequest(context=folder, **changes)  # type: ignore[arg-type]
    context = read_context(request)
    return base_digest(context, request), image_digest(context, request)


def test_an_unknown_stack_or_variant_is_refused_with_those_there_are(folder: Path) -> None:
    """A typing error does not start a build."""
    with pytest.raises(ConfigError, match="2023, current") as caught:
        read_context(BuildRequest(context=folder, stack="2024"))
    assert "--" not in str(caught.value)
    with pytest.raises(ConfigError, match="ml, nlp"):
        read_context(BuildRequest(context=folder, variant="npl"))


def test_a_variant_adds_one_lock_to_the_stack(folder: Path) -> None:
    """A variant is one file, on top of what every image of the stack holds."""
    context = read_context(BuildRequest(context=folder, variant="nlp"))
    assert [path.name for path in context.locks] == ["requirements.lock", "nlp.lock"]
    assert context.lock() == {"torch": "1", "datasets": "1"}
    assert BuildRequest(variant="nlp").image == "executor-ml-nlp:latest"
    assert BuildRequest().image == "executor-ml:latest"
    assert BuildRequest(tag="mine:1").image == "mine:1"


def test_a_pin_without_a_hash_counts_too(folder: Path) -> None:
    """What could not be hashed is still part of the stack and of its digest."""
    context = read_context(BuildRequest(context=folder, stack="2023"))
    assert context.lock() == {"numpy": "1", "torch": "2.0.1+cpu"}
    before = digests(folder, stack="2023")
    (folder / "stacks/2023/unhashed.txt").write_text("torch==2.0.2+cpu\n")
    assert digests(folder, stack="2023")[1] != before[1]


@pytest.mark.parametrize(
    ("name", "base_too"),
    [
        ("Dockerfile", True),
        ("launcher/guardian.py", True),
        ("steps/strip_root.sh", True),
        ("steps/trim.py", False),
        ("stacks/pip.lock", False),
        ("stacks/current/requirements.lock", False),
    ],
)
def test_a_changed_input_changes_the_digest(folder: Path, name: str, *, base_too: bool) -> None:
    """Nothing that goes into an image can change behind the digest's back."""
    base, image = digests(folder)
    (folder / name).write_text("changed\n")
    new_base, new_image = digests(folder)
    assert new_image != image
    assert (new_base != base) is base_too


def test_what_is_not_an_input_leaves_the_digest(folder: Path, tmp_path: Path) -> None:
    """Bytecode, other stacks, and the place of the folder do not cause a build."""
    before = digests(folder)
    (folder / "launcher/__pycache__").mkdir()
    (folder / "launcher/__pycache__/guardian.pyc").write_text("x")
    (folder / "stacks/2023/requirements.lock").write_text("numpy==2\n")
    assert digests(folder) == before
    assert digests(folder.rename(tmp_path / "elsewhere")) == before


def test_the_request_is_part_of_the_digest(folder: Path) -> None:
    """Another base is another image."""
    assert digests(folder, base="python:3.11-slim") != digests(folder)
    assert digests(folder, variant="nlp")[1] != digests(folder)[1]


def test_the_tar_is_the_same_on_every_machine(folder: Path, tmp_path: Path) -> None:
    """The engine's cache answers for what did not change: no owner, mode or time is in."""
    wheel = tmp_path / "a-1-py3-none-any.whl"
    wheel.write_bytes(b"wheel")
    (folder / "wheels" / "stale-1-py3-none-any.whl").write_bytes(b"not this one")
    request = BuildRequest(context=folder)
    first, second = io.BytesIO(), io.BytesIO()
    write_tar(read_context(request), [wheel], first)
    (folder / "Dockerfile").touch()
    (folder / "Dockerfile").chmod(0o600)
    size = write_tar(read_context(request), [wheel], second)
    assert first.getvalue() == second.getvalue()
    assert size == len(second.getvalue())
    with tarfile.open(fileobj=second) as tar:
        names = tar.getnames()
        assert {member.mtime for member in tar} == {0}
    assert "wheels/a-1-py3-none-any.whl" in names
    assert "wheels/stale-1-py3-none-any.whl" not in names
    assert {"Dockerfile", "launcher/guardian.py", "stacks/pip.lock"} < set(names)


def test_a_package_without_its_image_folder_says_so(tmp_path: Path) -> None:
    """A broken installation is told from a broken build."""
    with pytest.raises(BuildError, match="install executor-ml-kernel again"):
        find_folder([tmp_path])


def test_the_first_place_that_has_a_dockerfile_is_taken(folder: Path, tmp_path: Path) -> None:
    """An installed package brings its own folder; a checkout has it beside the package."""
    assert find_folder([tmp_path / "missing", folder]) == folder
