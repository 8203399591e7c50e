import sys
import zipfile
from pathlib import Path

import pytest

from kernel_provider.builder import BuildRequest
from kernel_provider.builder.context import Context
from kernel_provider.builder.wheels import (
    cache_folder,
    collect,
    collection,
    download_command,
    read_metadata,
    run_pip,
    target_options,
)
from kernel_provider.errors import CudaTorchError


def make_context(folder: Path, lock: str) -> Context:
    """Inputs of a build with one lock."""
    folder.mkdir(exist_ok=True)
    (folder / "requirements.lock").write_text(lock)
    (folder / "pip.lock").write_text("pip==1\n")
    return Context(
        folder=folder,
        locks=(folder / "requirements.lock",),
        installer=folder / "pip.lock",
        unhashed=None,
    )


def test_pip_is_asked_for_the_image_not_for_the_host() -> None:
    """A host with another Python or C library collects the same wheels."""
    options = target_options()
    assert options[:3] == [
        "--only-binary=:all:",
        "--implementation=cp",
        "--python-version=3.11",
    ]
    assert {"--abi=cp311", "--abi=abi3", "--abi=none"} < set(options)
    assert {"--platform=manylinux_2_28_x86_64", "--platform=manylinux2014_x86_64"} < set(options)
    assert "--platform=manylinux_2_37_x86_64" not in options


def test_pip_takes_exactly_the_lock_with_the_users_configuration(tmp_path: Path) -> None:
    """No resolving, no unhashed wheel, and no index that the user has not set."""
    command = download_command([tmp_path / "a.lock"], tmp_path / "to")
    assert command[:4] == [sys.executable, "-m", "pip", "download"]
    assert {"--require-hashes", "--no-deps", "--no-input"} < set(command)
    assert f"--requirement={tmp_path / 'a.lock'}" in command
    assert not [word for word in command if "index" in word]


def test_pytorchs_index_is_added_only_on_request(tmp_path: Path) -> None:
    """It is the second try."""
    command = download_command([], tmp_path, hashed=False, cpu_index=True)
    assert "--extra-index-url=https://download.pytorch.org/whl/cpu" in command
    assert "--require-hashes" not in command


def test_the_cache_is_the_users() -> None:
    """XDG_CACHE_HOME is heard; without it, the home's own."""
    assert cache_folder({"XDG_CACHE_HOME": "/c"}) == Path("/c/executor-ml")
    assert cache_folder({}).parts[-2:] == (".cache", "executor-ml")


def test_kept_wheels_are_found_by_the_content_of_the_locks(tmp_path: Path) -> None:
    """The same locks elsewhere need no download; other locks do."""
    one = make_context(tmp_path / "one", "a==1\n")
    two = make_context(tmp_path / "two", "a==1\n")
    three = make_context(tmp_path / "three", "a==2\n")
    cache = tmp_path / "cache"
    assert collection(one, cache) == collection(two, cache) != collection(three, cache)
    place = collection(one, cache)
    place.mkdir(parents=True)
    (place / "a-1-py3-none-any.whl").touch()
    said: list[str] = []
    found = collect(two, BuildRequest(), cache, said.append)
    assert [path.name for path in found] == ["a-1-py3-none-any.whl"]
    assert said == []


def test_a_lock_with_cuda_packages_is_refused_before_any_download(tmp_path: Path) -> None:
    """Gigabytes are not fetched to be thrown away."""
    context = make_context(tmp_path / "one", "torch==2.0.1\nnvidia-nccl-cu11==2.14.3\n")
    with pytest.raises(CudaTorchError, match="the lock"):
        collect(context, BuildRequest(), tmp_path / "cache", lambda _: None)
    assert not (tmp_path / "cache").exists()


def test_metadata_is_read_from_a_wheel(tmp_path: Path) -> None:
    """The wheel itself tells what it requires."""
    wheel = tmp_path / "torch-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("torch/__init__.py", "")
        archive.writestr("torch-1.dist-info/METADATA", "Name: torch\n")
    assert read_metadata(wheel) == "Name: torch\n"


def test_what_pip_unpacks_goes_with_it() -> None:
    """It leaves its folders below the one for temporary files when a Ctrl-C ends it."""
    said: list[str] = []
    code = "import tempfile; print('Collecting', tempfile.mkdtemp())"
    assert run_pip([sys.executable, "-c", code], said.append)[0] == 0
    (line,) = said
    folder = Path(line.removeprefix("collecting "))
    assert folder.parent.name.startswith("executor-ml-pip-")
    assert not folder.parent.exists()
