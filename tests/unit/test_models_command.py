"""``executor-ml models`` as it is typed."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from small_models import folder

from kernel_provider import cli
from kernel_provider.models.store import Registry


@pytest.fixture(autouse=True)
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    """A registry of this test's own."""
    monkeypatch.setenv("EXECUTOR_ML_MODELS", str(tmp_path / "registry"))
    return Registry(tmp_path / "registry")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder with a model."""
    return folder(tmp_path / "m")


def models(words: str) -> int:
    """Type it."""
    return cli.main(["models", *shlex.split(words)])


def told(words: str, capsys: pytest.CaptureFixture[str]) -> Any:
    """The JSON that a command prints, which is all that it prints there."""
    capsys.readouterr()
    assert models(f"{words} --json") == 0
    return json.loads(capsys.readouterr().out)


def test_from_the_first_look_to_the_last(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each action says what a person needs next."""
    assert models("list") == 0
    assert "no models yet" in capsys.readouterr().out
    assert models(f"add org/Tiny {model}") == 0
    out = capsys.readouterr().out
    assert f"ok  adding org/Tiny from the folder {model}: 0.3 KB, 5 files" in out
    assert "executor-ml install --user --name tiny --model org/Tiny" in out
    assert models("list") == 0
    assert "org/Tiny  main      0.3 KB  16          F32    apache-2.0" in capsys.readouterr().out
    assert models("show org/Tiny") == 0
    out = capsys.readouterr().out
    assert "org/Tiny, or /models/Tiny" in out
    assert "1_Pooling/config.json" in out
    assert "Do as you like." in out
    assert models("verify") == 0
    assert "every model is what was added" in capsys.readouterr().out
    assert models("remove org/Tiny@main") == 0
    assert models("remove org/Tiny") == 78
    assert "no model 'org/Tiny'" in capsys.readouterr().err


def test_scripts_get_json(
    model: Path, registry: Registry, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of each action, and nothing else on standard output."""
    added = told(f"add org/Tiny@v1 {model}", capsys)
    assert (added["id"], added["revision"], added["parameters"]) == ("org/Tiny", "v1", 16)
    assert told("list", capsys) == [added]
    assert told(f"add org/Tiny {model} --revision v1 --replace", capsys) == added
    shown = told("show org/Tiny", capsys)
    assert Path(shown["path"]) == registry.snapshot(registry.find("org/Tiny"))
    assert len(shown["files"]) == 5
    assert told("verify org/Tiny", capsys) == {"verified": ["org/Tiny@v1"]}
    assert told("remove org/Tiny", capsys) == {"removed": "org/Tiny@v1"}
    assert told("list", capsys) == []


def test_pickles_that_were_left_out_are_told(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Somebody may miss them."""
    (model / "training_args.bin").write_bytes(b"\x80\x04")
    assert models(f"add tiny {model}") == 0
    assert "left out, since they are pickles: training_args.bin" in capsys.readouterr().out


def test_a_spoilt_file_fails_verify(
    model: Path, registry: Registry, capsys: pytest.CaptureFixture[str]
) -> None:
    """With an exit code, and its name."""
    models(f"add tiny {model}")
    path = registry.snapshot(registry.find("tiny")) / "config.json"
    path.chmod(0o644)
    path.write_text("{}")
    assert models("verify") == 65
    assert f"{path} has 2 bytes instead of" in capsys.readouterr().err


@pytest.mark.parametrize("words", ["--json a {}", "a {} --json", "a --json {}", "--json -- a {}"])
def test_options_stand_anywhere(words: str, model: Path) -> None:
    """Between the words, too."""
    assert models(f"add {words.format(model)}") == 0


def test_wrong_words_are_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    """As for every command."""
    for words in ("", "ad", "add", "list x", "add a b c", "show", "verify --fix"):
        with pytest.raises(SystemExit) as caught:
            models(words)
        assert caught.value.code == 2
        assert "usage: executor-ml models" in capsys.readouterr().err


def test_a_path_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    """Unless it is known where to look."""
    assert models("add tiny") == 65
    assert "there is no PATH" in capsys.readouterr().err


def test_a_licence_cannot_write_to_the_terminal(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is somebody else's text."""
    (model / "LICENSE").write_text("\x1b]0;title\x07\x1b[2JMIT")
    (model / "README.md").unlink()
    models(f"add tiny {model}")
    models("list")
    models("show tiny")
    out = capsys.readouterr().out
    assert "MIT" in out
    assert "\x1b" not in out


def test_models_travel(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From one machine to another, in words and in JSON; only those that are named."""
    models(f"add org/Tiny {model}")
    models(f"add other {model}")
    file = tmp_path / "models.tar"
    assert told(f"export {file} org/Tiny", capsys) == {"exported": ["org/Tiny@main"]}
    assert models(f"export {file}") == 0
    assert f"executor-ml models import {file}" in capsys.readouterr().out
    monkeypatch.setenv("EXECUTOR_ML_MODELS", str(tmp_path / "there"))
    assert [entry["id"] for entry in told(f"import {file}", capsys)] == ["org/Tiny", "other"]
    assert models("verify") == 0
    assert models(f"import {model}/LICENSE") == 65
    assert "LICENSE cannot be imported" in capsys.readouterr().err
