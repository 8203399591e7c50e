import hashlib
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from kernel_provider.builder.layers import Layer
from kernel_provider.builder.wheels import (
    cache_folder,
    collect,
    collection,
    download_command,
    modules_of,
    not_to_be_had,
    read_metadata,
    run_pip,
    target_options,
)
from kernel_provider.errors import CudaTorchError


def make_layer(folder: Path, lock: str) -> Layer:
    """A layer with one lock."""
    folder.mkdir(exist_ok=True)
    (folder / "a.lock").write_text(lock)
    return Layer(name="a", stack="current", requirements=folder / "a.in")


@pytest.fixture
def installer(tmp_path: Path) -> Path:
    """The lock of pip itself."""
    path = tmp_path / "pip.lock"
    path.write_text("pip==1\n")
    return path


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


def test_kept_wheels_are_found_by_the_content_of_the_locks(tmp_path: Path, installer: Path) -> None:
    """The same locks elsewhere need no download; other locks do."""
    one = make_layer(tmp_path / "one", "a==1\n")
    two = make_layer(tmp_path / "two", "a==1\n")
    three = make_layer(tmp_path / "three", "a==2\n")
    cache = tmp_path / "cache"
    place = collection(one, installer, cache)
    assert place == collection(two, installer, cache) != collection(three, installer, cache)
    place.mkdir(parents=True)
    (place / "a-1-py3-none-any.whl").touch()
    said: list[str] = []
    found = collect(two, installer, "executor-ml-a", cache, said.append)
    assert [path.name for path in found] == ["a-1-py3-none-any.whl"]
    assert said == []


def test_a_lock_with_cuda_packages_is_refused_before_any_download(
    tmp_path: Path, installer: Path
) -> None:
    """Gigabytes are not fetched to be thrown away."""
    layer = make_layer(tmp_path / "one", "torch==2.0.1\nnvidia-nccl-cu11==2.14.3\n")
    with pytest.raises(CudaTorchError, match="the lock"):
        collect(layer, installer, "executor-ml-a", tmp_path / "cache", lambda _: None)
    assert not (tmp_path / "cache").exists()


def wheel(folder: Path, name: str, *requires: str) -> str:
    """A wheel of nothing but what it requires, and its pin with a hash."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}-1.0-py3-none-any.whl"
    needs = "".join(f"Requires-Dist: {other}\n" for other in requires)
    texts = {
        "METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n{needs}",
        "WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "RECORD": "",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for part, text in texts.items():
            archive.writestr(f"{name}-1.0.dist-info/{part}", text)
    return f"{name}==1.0 --hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}\n"


def test_a_wheel_that_needs_cuda_is_refused_but_in_a_layer_for_gpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By what it says itself, where the lock does not tell; nothing refused is kept."""
    there = tmp_path / "there"
    pins = [wheel(there, "tinygpu", "nvidia-tiny-cu13"), wheel(there, "nvidia_tiny_cu13")]
    installer = tmp_path / "pip.lock"
    installer.write_text(wheel(there, "tinypip"))
    monkeypatch.setenv("PIP_FIND_LINKS", str(there))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    layer = make_layer(tmp_path / "one", pins[0])
    cache = tmp_path / "cache"
    with pytest.raises(CudaTorchError, match=r"tinygpu-1\.0-py3-none-any\.whl brings in CUDA"):
        collect(layer, installer, "executor-ml-a", cache, lambda _: None)
    assert not list((cache / "wheels").iterdir())
    layer = replace(make_layer(tmp_path / "two", "".join(pins)), gpu=True)
    found = collect(layer, installer, "executor-ml-a", cache, lambda _: None)
    names = ["nvidia_tiny_cu13", "tinygpu", "tinypip"]
    assert [path.name.partition("-")[0] for path in found] == names


def test_a_wheel_that_is_not_to_be_had_is_named_with_the_platform() -> None:
    """It stands among many lines of pip's; here it is the first thing said."""
    lines = [
        "Collecting numpy==2.4.6",
        "ERROR: Could not find a version that satisfies the requirement tensorflow-cpu==9 (none)",
        "ERROR: No matching distribution found for tensorflow-cpu==9",
    ]
    told = str(not_to_be_had("executor-ml-tensorflow:latest", "collecting wheels", lines))
    first = told.splitlines()[0]
    assert "building executor-ml-tensorflow:latest failed at: collecting wheels" in first
    assert "there is no wheel of tensorflow-cpu==9 for CPython 3.11, Linux, x86-64" in first
    other = str(not_to_be_had("i", "collecting wheels", ["the index did not answer"]))
    assert "the index did not answer" in other
    assert "no wheel of" not in other


def test_what_is_imported_of_a_wheel_is_its_own_module_or_all_it_has(tmp_path: Path) -> None:
    """Of the distributions that were asked for; no tests that got into a wheel by mistake."""
    contents = {
        "scikit_learn-1-cp311-cp311-linux_x86_64.whl": ["sklearn/__init__.py", "tests/__init__.py"],
        "matplotlib-1-py3-none-any.whl": ["matplotlib/__init__.py", "pylab.py"],
        "orjson-1-py3-none-any.whl": ["orjson/orjson.cpython-311.so", "orjson/__init__.py"],
        "fast-1-py3-none-any.whl": ["fast.cpython-311-x86_64-linux-gnu.so", "_c.py"],
        "other-1-py3-none-any.whl": ["other/__init__.py"],
    }
    wheels = [tmp_path / name for name in contents]
    for wheel in wheels:
        with zipfile.ZipFile(wheel, "w") as archive:
            for name in [*contents[wheel.name], "x-1.dist-info/METADATA"]:
                archive.writestr(name, "")
    named = ("scikit-learn", "matplotlib", "orjson", "fast")
    assert modules_of(wheels, named) == ["fast", "matplotlib", "orjson", "sklearn"]


def test_metadata_is_read_from_a_wheel(tmp_path: Path) -> None:
    """The wheel itself tells what it requires."""
    wheel = tmp_path / "torch-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("torch/__init__.py", "")
        archive.writestr("torch-1.dist-info/METADATA", "Name: torch\n")
        archive.writestr("torch/_vendor/a-1.dist-info/METADATA", "Name: a\n")
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
