"""``executor-ml profile`` as it is typed, up to its first run."""

import argparse
import json
from pathlib import Path

import pytest
from small_models import folder

from kernel_provider import cli
from kernel_provider.ceilings import Ceilings, Machine
from kernel_provider.commands.profile import GROWTH, ROOM, room_of
from kernel_provider.models.store import Registry
from kernel_provider.profile.model import STEP, Limits
from kernel_provider.profile.subjects import of_model, of_notebook
from kernel_provider.values import MIB

MACHINE = Machine(cpus=8, memory=16 * 1024 * MIB)


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    """A registry with one model, org/tiny."""
    monkeypatch.setenv("EXECUTOR_ML_MODELS", str(tmp_path / "registry"))
    assert cli.main(["models", "add", "org/tiny@v1", str(folder(tmp_path / "m"))]) == 0
    return Registry(tmp_path / "registry")


def options(*words: str) -> argparse.Namespace:
    """What these words mean."""
    return cli.parse(["profile", *words])


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        ([], 2, "there is nothing to profile\nFix: name a notebook, or one model"),
        (["--model", "org/tiny", "--model", "org/tiny"], 2, "there is nothing to profile"),
        (["n.ipynb", "--save"], 2, "--save keeps the limits with one model"),
        (["--model", "org/tidy"], 78, "did you mean 'org/tiny@v1'?"),
        (["--model", "org/tiny", "--png", "/nowhere/x.png"], 74, "cannot write /nowhere/x.png"),
        (["nowhere.ipynb"], 66, "nowhere.ipynb: there is no such file"),
        (["--model", "org/tiny", "--html", "/nowhere/x.html"], 74, "cannot write /nowhere/x.html"),
        (["--model", "org/tiny", "--kernel", "none"], 78, "no sandboxed kernel named 'none'"),
    ],
)
def test_what_cannot_be_is_told_before_anything_runs(
    words: list[str], code: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """With its remedy, and an exit code of its own."""
    assert cli.main(["profile", *words]) == code
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--cpus", "many"], ["--cpus", "0"], ["--memory", "lots"]])
def test_limits_are_numbers(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Told as a wrong command line."""
    with pytest.raises(SystemExit, match="2"):
        options("n.ipynb", *words)
    assert f"argument {words[0]}" in capsys.readouterr().err


def test_the_room_is_what_may_be_had(registry: Registry) -> None:
    """Of memory, what a model of that size can need; never above machine, ceiling, option."""
    entries = list(registry.list())
    free = room_of(options("n.ipynb"), entries, Ceilings(machine=MACHINE))
    size = ROOM + GROWTH * entries[0].size
    assert free.most == Limits(memory=size // STEP * STEP, cpus=8)
    assert free.least == 208 * MIB  # /tmp and /dev/shm are 192 of it
    held = Ceilings(machine=MACHINE, limits={"memory": 1000 * MIB, "cpus": 2.0})
    assert room_of(options("n.ipynb"), [], held).most == Limits(memory=992 * MIB, cpus=2.0)
    words = ("n.ipynb", "--memory", "600m", "--cpus", "0.5")
    assert room_of(options(*words), [], held).most == Limits(memory=592 * MIB, cpus=0.5)


def test_a_models_notebook_names_it(registry: Registry, tmp_path: Path) -> None:
    """By id and revision; all its files are forgotten before a run."""
    (entry,) = registry.list()
    subject = of_model(entry, registry, kernel="k", folder=tmp_path)
    cells = json.loads(subject.notebook.read_text())["cells"]
    assert "model = 'org/tiny'" in cells[0]["source"]
    assert cells[0]["source"].count("revision='v1'") == 2
    assert subject.overrides == {"models": ["org/tiny@v1"]}
    assert len(subject.files) == len(entry.files)
    assert all(path.is_file() for path in subject.files)
    assert cells[subject.warm - 1]["source"] == cells[subject.warm - 2]["source"]


def test_a_notebook_has_what_it_is_given(registry: Registry) -> None:
    """And no models where none are named: those of its kernelspec stay."""
    more = {"workspace": "copy"}
    given = of_notebook(Path("n.ipynb"), list(registry.list()), registry, kernel="k", more=more)
    assert given.overrides == {"workspace": "copy", "models": ["org/tiny@v1"]}
    bare = of_notebook(Path("n.ipynb"), [], registry, kernel="k", more={})
    assert (bare.overrides, bare.files, bare.warm) == ({}, (), 0)
