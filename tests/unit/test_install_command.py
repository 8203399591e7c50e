"""``executor-ml install``: what it writes, and what it refuses to write."""

import json
import os
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.kernelspec import KernelSpecManager
from small_models import folder

from kernel_provider import cli
from kernel_provider.commands.install import KernelspecError, Request, display_name_of, install
from kernel_provider.models.store import Registry
from kernel_provider.policy import KernelPolicy
from kernel_provider.values import MIB, Gpus

PLACE = "share/jupyter/kernels"


def written(prefix: Path, name: str = "executor-ml") -> dict[str, Any]:
    """The kernel.json below a prefix."""
    text = (prefix / PLACE / name / "kernel.json").read_text(encoding="utf-8")
    spec: dict[str, Any] = json.loads(text)
    return spec


def config(prefix: Path, name: str = "executor-ml") -> dict[str, Any]:
    """Its settings."""
    found: dict[str, Any] = written(prefix, name)["metadata"]["kernel_provisioner"]["config"]
    return found


def test_only_what_was_given_is_written(tmp_path: Path) -> None:
    """Sizes as typed, numbers as numbers; defaults may still change with the package."""
    data = tmp_path / "data"
    data.mkdir()
    words = f"install --prefix {tmp_path} --name ml-2g --memory 2GB --cpus 1.5 --pids 64"
    words += f" --mount /data/x={data} --env A=b=c --preload numpy --startup-timeout 30"
    words += " --workspace copy --workspace-size 16m"
    assert cli.main(words.split()) == 0
    assert config(tmp_path, "ml-2g") == {
        "memory": "2GB",
        "cpus": 1.5,
        "pids": 64,
        "mounts": {"/data/x": str(data)},
        "env": {"A": "b=c"},
        "preload": ["numpy"],
        "startup_timeout": 30,
        "workspace": "copy",
        "workspace_size": "16m",
    }
    spec = written(tmp_path, "ml-2g")
    assert spec["display_name"] == "Python (ML sandbox, 2 GB, 1.5 CPU, offline)"
    assert (spec["language"], spec["interrupt_mode"]) == ("python", "message")


def test_nothing_given_is_the_usual_kernel(tmp_path: Path) -> None:
    """With our launcher, an absolute path where it is known, and the shipped logos."""
    assert cli.main(["install", "--prefix", str(tmp_path)]) == 0
    assert config(tmp_path) == {}
    program, *rest = written(tmp_path)["argv"]
    assert rest == ["launch", "--kernel", "executor-ml", "{connection_file}"]
    assert Path(program).name == "executor-ml"
    assert Path(program).exists()
    folder = tmp_path / PLACE / "executor-ml"
    names = {path.name for path in folder.iterdir()}
    assert names == {"kernel.json", "logo-svg.svg", "logo-64x64.png", "logo-32x32.png"}
    assert stat.S_IMODE(folder.stat().st_mode) & 0o055 == 0o055  # others can use it
    assert [path.name for path in folder.parent.iterdir()] == ["executor-ml"]


def test_jupyter_finds_it_for_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """``--user`` goes into Jupyter's data folder; the person hears where, and what next."""
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path))
    assert cli.main(["install", "--user", "--name", "Mine", "--display-name", "My own"]) == 0
    found = KernelSpecManager().get_kernel_spec("mine")
    assert found.display_name == "My own"
    out = capsys.readouterr().out
    assert f"Wrote {tmp_path}/kernels/mine/kernel.json" in out
    assert "It must be restarted only if executor-ml-kernel itself was installed after" in out
    assert "JUPYTER_PATH" not in out


def test_without_a_place_it_goes_into_the_virtual_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And into the user's folder outside of one."""
    monkeypatch.setattr("sys.prefix", str(tmp_path / "venv"))
    assert install(Request(), {}).file == f"{tmp_path}/venv/{PLACE}/executor-ml/kernel.json"
    monkeypatch.setattr("sys.base_prefix", str(tmp_path / "venv"))
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "data"))
    assert install(Request(), {}).file == f"{tmp_path}/data/kernels/executor-ml/kernel.json"


def test_a_place_where_jupyter_does_not_look_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the variable that makes it look."""
    cli.main(["install", "--prefix", str(tmp_path)])
    assert f"JUPYTER_PATH={tmp_path}/share/jupyter\n" in capsys.readouterr().out


def test_kernels_that_look_alike_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Jupyter's list shows display names only."""
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path))
    cli.main(["install", "--user", "--name", "one", "--cpus", "1"])
    cli.main(["install", "--user", "--name", "two", "--cpus", "1"])
    assert "displayed alike (one); --display-name" in capsys.readouterr().out


@pytest.mark.parametrize(("said", "written"), [("90", 90), ("none", "none"), ("0", "0")])
def test_how_long_cells_may_run(tmp_path: Path, said: str, written: object) -> None:
    """A number as a number; and that there is no limit, in the person's own word."""
    cli.main(["install", "--prefix", str(tmp_path), "--cell-timeout", said])
    spec = json.loads((tmp_path / PLACE / "executor-ml" / "kernel.json").read_text())
    assert spec["metadata"]["kernel_provisioner"]["config"] == {"cell_timeout": written}


def test_the_result_is_there_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """For scripts."""
    cli.main(["install", "--prefix", str(tmp_path), "--json"])
    told = json.loads(capsys.readouterr().out)
    assert told["file"] == f"{tmp_path}/{PLACE}/executor-ml/kernel.json"
    assert told["hidden"] is True


def test_another_image_is_told_in_the_name() -> None:
    """Limits alone would not tell variants apart."""
    policy = KernelPolicy(image="executor-ml-nlp:latest", memory=1024 * MIB)
    assert display_name_of(policy) == "Python (nlp sandbox, 1 GB, 0.5 CPU, offline)"
    policy = KernelPolicy(image="executor-ml-tiny:1", memory=1024 * MIB)
    expected = "Python (ML sandbox, 1 GB, 0.5 CPU, offline, executor-ml-tiny:1)"
    assert display_name_of(policy) == expected


def test_loopback_brings_jupyterlabs_debugger(tmp_path: Path) -> None:
    """JupyterLab offers it where the kernelspec says so; the name tells that it is open."""
    for name, words in (("shut", ()), ("open", ("--loopback", "insist"))):
        assert cli.main(["install", "--prefix", str(tmp_path), "--name", name, *words]) == 0
    shut, opened = (written(tmp_path, name) for name in ("shut", "open"))
    assert [spec["metadata"]["debugger"] for spec in (shut, opened)] == [False, True]
    assert opened["display_name"] == "Python (ML sandbox, 512 MB, 0.5 CPU, offline, loopback)"


@pytest.mark.parametrize(
    ("gpus", "told"),
    [(1, "1 GPU"), (2, "2 GPUs"), ("all", "all GPUs"), (("0", "GPU-8f5c"), "2 GPUs")],
)
def test_gpus_are_told_in_the_name(gpus: Gpus, told: str) -> None:
    """As another limit; what has none says nothing of them."""
    expected = f"Python (ML sandbox, 512 MB, 0.5 CPU, offline, {told})"
    assert display_name_of(KernelPolicy(gpus=gpus)) == expected


def test_models_are_told_in_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are looked for before the kernelspec is written, and written as they were typed."""
    monkeypatch.setenv("EXECUTOR_ML_MODELS", str(tmp_path / "models"))
    words = ["install", "--prefix", str(tmp_path), "--model", "org/tiny"]
    assert cli.main(words) == 78
    assert not (tmp_path / PLACE).exists()
    assert cli.main(["models", "add", "org/tiny", str(folder(tmp_path / "m"))]) == 0
    assert cli.main(words) == 0
    assert config(tmp_path) == {"models": ["org/tiny"]}
    name = "Python (ML sandbox, 512 MB, 0.5 CPU, offline, org/tiny)"
    assert written(tmp_path)["display_name"] == name


def test_limits_that_fit_a_model_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest of all its models; each unless another one is given."""
    monkeypatch.setenv("EXECUTOR_ML_MODELS", str(tmp_path / "models"))
    registry = Registry(tmp_path / "models")
    words = ["install", "--replace", "--prefix", str(tmp_path)]
    for name, limits in {"a": (640 * MIB, 0.25), "b": (320 * MIB, 0.75), "c": (None, None)}.items():
        assert cli.main(["models", "add", name, str(folder(tmp_path / name))]) == 0
        memory, cpus = limits
        registry.amend(replace(registry.find(name), memory=memory, cpus=cpus))
        words += ["--model", name]
    assert cli.main(words) == 0
    models = ["a", "b", "c"]
    assert config(tmp_path) == {"memory": "640m", "cpus": 0.75, "models": models}
    assert cli.main([*words, "--memory", "1g"]) == 0
    assert config(tmp_path) == {"memory": "1g", "cpus": 0.75, "models": models}
    assert cli.main([*words[:4], "--model", "c"]) == 0
    assert config(tmp_path) == {"models": ["c"]}


REFUSED = [
    (["--memory", "lots"], 78, "memory = 'lots' is not possible: write a size"),
    (["--memory", "8m"], 78, "a kernel needs at least 96 MB"),
    (["--cpus", "many"], 78, "cpus = 'many'"),
    (["--mount", "/etc/x=/tmp"], 78, "directly below /models or /data"),
    (["--mount", "/data/x=/nowhere"], 78, "cannot mount /nowhere: No such file"),
    (["--workspace", "copy", "--workspace-size", "1g"], 78, "whose tmp_size is 128 MB"),
    (["--mount", "/data/x"], 73, "--mount /data/x is no pair\nFix: write --mount TARGET=SOURCE"),
    (["--env", "A"], 73, "--env A is no pair\nFix: write --env NAME=VALUE"),
    (["--name", "a b"], 73, "'a b' cannot be written: a name has letters"),
    (["--name", "../x"], 73, "'../x' cannot be written: a name has letters"),
]


@pytest.mark.parametrize(("words", "code", "told"), REFUSED)
def test_what_could_never_start_is_not_written(
    words: list[str],
    code: int,
    told: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The error is the one of a start, with the command line as its source."""
    assert cli.main(["install", "--prefix", str(tmp_path), *words]) == code
    assert told in capsys.readouterr().err
    assert not (tmp_path / "share").exists()


def test_a_ceiling_counts_here_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Told now and not at the first start."""
    monkeypatch.setenv("EXECUTOR_ML_MAX_MEMORY", "1g")
    assert cli.main(["install", "--prefix", str(tmp_path), "--memory", "2g"]) == 78
    err = capsys.readouterr().err
    assert "2 GB is above the ceiling of 1 GB set in EXECUTOR_ML_MAX_MEMORY" in err


def test_one_that_is_there_is_kept_unless_told_otherwise(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """``--replace`` writes over it, and nothing of the old one stays."""
    words = ["install", "--prefix", str(tmp_path)]
    assert cli.main([*words, "--cpus", "1"]) == 0
    (tmp_path / PLACE / "executor-ml" / "old.txt").touch()
    assert cli.main([*words, "--cpus", "2"]) == 73
    err = capsys.readouterr().err
    assert f"{tmp_path}/{PLACE}/executor-ml is there already\nFix: add --replace" in err
    assert config(tmp_path) == {"cpus": 1}
    assert cli.main([*words, "--cpus", "2", "--replace"]) == 0
    assert config(tmp_path) == {"cpus": 2}
    assert not (tmp_path / PLACE / "executor-ml" / "old.txt").exists()


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    """With its path, and the options for another one."""
    (tmp_path / "share").touch()
    with pytest.raises(KernelspecError) as caught:
        install(Request(where=str(tmp_path)), os.environ)
    assert "Not a directory" in str(caught.value)
    assert "Fix: take a folder that you can write: --user" in str(caught.value)


def test_a_move_that_fails_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk or a race: what was there is as it was."""
    install(Request(where=str(tmp_path), config={"cpus": 1}), {})
    real = Path.rename

    def rename(self: Path, target: Path) -> Path:
        if self.name == "new":
            raise OSError(28, "No space left on device", str(target))
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(KernelspecError, match="No space left on device"):
        install(Request(where=str(tmp_path), replace=True), {})
    assert config(tmp_path) == {"cpus": 1}
