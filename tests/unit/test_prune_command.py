"""``executor-ml prune``: what it says, and what it says where it can't."""

import pytest

from kernel_provider import cli
from kernel_provider.commands import prune


@pytest.mark.parametrize(
    ("removed", "words", "told"),
    [
        ((), [], "nothing to remove\n"),
        (("a", "b"), [], "removed a\nremoved b\n"),
        ((), ["--json"], "[]\n"),
        (("a",), ["--json"], '["a"]\n'),
    ],
)
def test_what_was_removed_is_told(
    removed: tuple[str, ...],
    words: list[str],
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One line each, or JSON; nothing is no failure."""
    monkeypatch.setattr(prune, "prune", lambda _environ: removed)
    assert cli.main(["prune", *words]) == 0
    assert capsys.readouterr().out == told


def test_without_an_engine_nothing_is_removed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And the person hears why."""
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
    assert cli.main(["prune"]) == 69
    out, err = capsys.readouterr()
    assert out == ""
    assert "no container engine answers at /nowhere/docker.sock" in err


def test_a_folder_that_is_not_private_is_told(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Nothing in it is touched."""
    folder = tmp_path_factory.mktemp("r")
    folder.chmod(0o755)
    monkeypatch.setattr("kernel_provider.session.sweep", lambda _engine: ())
    monkeypatch.setenv("EXECUTOR_ML_RUNTIME_DIR", str(folder))
    assert cli.main(["prune"]) == 73
    assert "it is open to others, or not a folder" in capsys.readouterr().err
