"""Locks of layers: what is written, and when it must be written again."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kernel_provider.builder import locking
from kernel_provider.builder.layers import Layer
from kernel_provider.builder.locking import is_fresh, write_lock
from kernel_provider.errors import BuildError


def entry(name: str, version: str) -> dict[str, Any]:
    """One package of pip's report."""
    info = {"archive_info": {"hashes": {"sha256": "00" * 32}}}
    return {"metadata": {"name": name, "version": version}, "download_info": info}


@pytest.fixture
def layer(tmp_path: Path) -> Layer:
    """A person's file on a layer that has numpy."""
    (tmp_path / "common.in").write_text("numpy\n")
    (tmp_path / "common.lock").write_text("numpy==1\n")
    (tmp_path / "geo.in").write_text("# mine\nShapely\n")
    below = Layer(name="common", stack="current", requirements=tmp_path / "common.in")
    path = tmp_path / "geo.in"
    return Layer(name="geo", stack="current", requirements=path, below=(below,), ours=False)


def answer(monkeypatch: pytest.MonkeyPatch, *entries: dict[str, Any], code: int = 0) -> list[str]:
    """Let pip choose these; what it was asked is in the result afterwards."""
    asked: list[str] = []

    def run(command: list[str], _say: object) -> tuple[int, list[str]]:
        asked.extend(command)
        (report,) = [word.partition("=")[2] for word in command if word.startswith("--report=")]
        (pins,) = [word.partition("=")[2] for word in command if word.startswith("--constraint=")]
        asked.append(Path(pins).read_text())
        Path(report).write_text(json.dumps({"install": entries}))
        return code, ["ERROR: No matching distribution found for shapely"]

    monkeypatch.setattr(locking, "run_pip", run)
    return asked


def test_a_lock_has_what_no_layer_below_has(layer: Layer, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is below keeps its version; what no image has a use for is left out."""
    asked = answer(
        monkeypatch,
        *(entry("Shapely", "2.1"), entry("numpy", "1"), entry("setuptools", "80")),
        *(entry("nvidia-nccl-cu12", "2"), entry("playwright", "1")),
    )
    assert write_lock(layer, [Path("/wheels")], "executor-ml-geo", lambda _: None) == 1
    assert [line for line in layer.lock.read_text().splitlines() if line[0] != "#"] == [
        "shapely==2.1 \\",
        f"    --hash=sha256:{'00' * 32}",
    ]
    assert asked[-1] == "numpy==1\n"
    assert {"--find-links=/wheels", "--dry-run", "--only-binary=:all:"} < set(asked)


def test_what_the_file_itself_names_is_not_left_out(
    layer: Layer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who asks for it has a use for it."""
    layer.requirements.write_text("playwright\n")
    answer(monkeypatch, entry("playwright", "1"))
    assert write_lock(layer, [], "executor-ml-geo", lambda _: None) == 1


def test_a_lock_is_written_again_when_what_it_is_of_has_changed(
    layer: Layer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The requirements, or a version below; not when neither did."""
    assert not is_fresh(layer)
    answer(monkeypatch, entry("shapely", "2.1"))
    write_lock(layer, [], "executor-ml-geo", lambda _: None)
    assert is_fresh(layer)
    layer.requirements.write_text("Shapely>2\n")
    assert not is_fresh(layer)
    write_lock(layer, [], "executor-ml-geo", lambda _: None)
    assert is_fresh(layer)
    layer.below[0].lock.write_text("numpy==2\n")
    assert not is_fresh(layer)


def test_versions_that_are_not_to_be_had_leave_no_lock(
    layer: Layer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names the package and the platform."""
    answer(monkeypatch, code=1)
    with pytest.raises(BuildError, match=r"geo\.in: there is no wheel of shapely for CPython 3.11"):
        write_lock(layer, [], "executor-ml-geo", lambda _: None)
    assert not layer.lock.exists()


def test_a_folder_that_cannot_be_written_is_told(
    layer: Layer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock belongs beside the file."""
    answer(monkeypatch, entry("shapely", "2.1"))
    layer.lock.mkdir()
    with pytest.raises(BuildError, match="put the requirements into a folder that you can write"):
        write_lock(layer, [], "executor-ml-geo", lambda _: None)


def test_what_a_file_for_processors_names_of_cuda_is_not_lost(
    layer: Layer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stays in the lock, which is refused with the way out; left out, nobody would know."""
    layer.requirements.write_text("triton\n")
    answer(monkeypatch, entry("triton", "3"), entry("nvidia-nccl-cu12", "2"))
    assert write_lock(layer, [], "executor-ml-geo", lambda _: None) == 1
    assert layer.pins() == {"triton": "3"}


def test_a_layer_for_gpus_has_all_of_cuda_with_hashes(
    layer: Layer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch as pip chose it; what no image has a use for is left out all the same."""
    chosen = {"torch": "2.14.1", "nvidia-nccl-cu13": "2", "cuda-bindings": "13", "triton": "3"}
    entries = [entry(name, version) for name, version in chosen.items()]
    answer(monkeypatch, *entries, entry("setuptools", "80"))
    layer = replace(layer, gpu=True)
    assert write_lock(layer, [], "executor-ml-geo", lambda _: None) == 4
    assert layer.unhashed is None
    assert layer.pins() == chosen


def test_a_layer_for_gpus_takes_no_torch_for_processors(
    layer: Layer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which pip prefers where its configuration names PyTorch's index of them."""
    answer(monkeypatch, entry("torch", "2.14.1+cpu"))
    with pytest.raises(BuildError, match=r"geo\.in: pip chose a torch for processors") as caught:
        write_lock(replace(layer, gpu=True), [], "executor-ml-geo", lambda _: None)
    assert "take PyTorch's index of CPU builds out" in str(caught.value)
    assert not layer.lock.exists()


def test_a_torch_with_cuda_is_pinned_as_its_other_build_without_a_hash(
    layer: Layer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which this index does not have."""
    answer(monkeypatch, entry("torch", "2.0.1"))
    assert write_lock(layer, [], "executor-ml-geo", lambda _: None) == 1
    assert layer.unhashed
    assert layer.unhashed.read_text().splitlines()[-1] == "torch==2.0.1+cpu"
    assert layer.pins() == {"torch": "2.0.1+cpu"}
