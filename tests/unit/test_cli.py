"""The command's skin: exit codes, words, and no work before it is asked for."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from kernel_provider import __version__, cli, entry
from kernel_provider.errors import EngineUnreachableError, ImageMissingError


def test_version_needs_no_engine(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """--version tells the package's, says that no engine answers, and succeeds."""
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
    with pytest.raises(SystemExit) as caught:
        cli.main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out.splitlines() == [
        f"executor-ml {__version__}",
        "engine: no container engine answers at /nowhere/docker.sock (No such file or directory)",
        "image: not known without an engine",
    ]


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    """--help names each command with its summary."""
    with pytest.raises(SystemExit) as caught:
        cli.main(["--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    assert all(name in out for name in cli.COMMANDS)


@pytest.mark.parametrize("command", sorted(cli.COMMANDS))
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each of them can be imported and describes itself."""
    with pytest.raises(SystemExit) as caught:
        cli.main([command, "--help"])
    assert caught.value.code == 0
    assert f"usage: executor-ml {command}" in capsys.readouterr().out


@pytest.mark.parametrize("argv", [[], ["nonsense"], ["launch"], ["prune", "--nonsense"]])
def test_wrong_words_are_a_usage_error(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 2 and a usage line on stderr."""
    with pytest.raises(SystemExit) as caught:
        cli.main(argv)
    assert caught.value.code == 2
    assert "usage: executor-ml" in capsys.readouterr().err


def test_without_words_there_is_help(capsys: pytest.CaptureFixture[str]) -> None:
    """With every command, since a person who types nothing else wants to know them."""
    with pytest.raises(SystemExit):
        cli.main([])
    told = capsys.readouterr()
    assert told.out == ""
    assert all(f"    {name}" in told.err for name in cli.COMMANDS)


@pytest.mark.parametrize(
    ("words", "near"), [(["--halp"], "'--help'"), (["--verison"], "'--version'"), (["rn"], "'run'")]
)
def test_a_misspelt_word_is_told_with_the_right_one(
    words: list[str], near: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Options, too."""
    with pytest.raises(SystemExit) as caught:
        cli.main(words)
    assert caught.value.code == 2
    assert f"there is no command {words[0]!r}; did you mean {near}?" in capsys.readouterr().err


def fake_command(monkeypatch: pytest.MonkeyPatch, outcome: object) -> None:
    """Make ``prune`` end in some way."""
    module = ModuleType("fake_command")

    def main(_args: object) -> object:
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    module.__dict__.update(main=main, add_arguments=lambda _parser: None)
    monkeypatch.setitem(sys.modules, "fake_command", module)
    monkeypatch.setitem(cli.COMMANDS, "prune", ("fake_command", "fake"))


@pytest.mark.parametrize(
    ("outcome", "code", "words"),
    [
        (0, 0, ""),
        (3, 3, ""),
        (ImageMissingError(image="x:1"), 72, "executor-ml: the image x:1 is not on this"),
    ],
)
def test_outcomes_become_exit_codes_and_words(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    outcome: object,
    code: int,
    words: str,
) -> None:
    """An error is told on stderr with its remedy, never as a traceback."""
    fake_command(monkeypatch, outcome)
    assert cli.main(["prune"]) == code
    err = capsys.readouterr().err
    assert err.startswith(words)
    assert "Traceback" not in err


@pytest.fixture
def signals() -> Iterator[None]:
    """Ctrl-C means to this process after a test what it meant before."""
    handler = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, handler)


@pytest.mark.parametrize("moment", ["while it imports", "while it works"])
def test_ctrl_c_is_one_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    signals: None,
    moment: str,
) -> None:
    """Exit code 130, no traceback, and a second Ctrl-C ends what is left."""
    assert signals is None
    fake_command(monkeypatch, KeyboardInterrupt())
    if moment == "while it imports":
        monkeypatch.setitem(cli.COMMANDS, "prune", ("interrupted_import", "fake"))
        monkeypatch.setattr(cli, "import_module", sys.modules["fake_command"].main)
    monkeypatch.setattr(sys, "argv", ["executor-ml", "prune"])
    assert entry.main() == 130
    assert capsys.readouterr().err == "executor-ml: interrupted\n"
    assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL


def test_ctrl_c_is_not_swallowed_by_an_import() -> None:
    """A module that catches whatever is raised while it is imported does not get it."""
    hold = entry.held_back()
    hold.__enter__()
    try:
        signal.raise_signal(signal.SIGINT)
    finally:
        with pytest.raises(KeyboardInterrupt):
            hold.__exit__(None, None, None)
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_outcomes_pass_through(monkeypatch: pytest.MonkeyPatch, signals: None) -> None:
    """What a command returns is what the shell gets."""
    assert signals is None
    fake_command(monkeypatch, 3)
    monkeypatch.setattr(sys, "argv", ["executor-ml", "prune"])
    assert entry.main() == 3


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["doctr"], "there is no command 'doctr'; did you mean 'doctor'?"),
        (["version"], "there is no command 'version'; did you mean '--version'?"),
        (["nonsense"], "there is no command 'nonsense' (choose from build, engine,"),
        (["ps", "--wach"], "there is no argument '--wach'; did you mean '--watch'?"),
        (["ps", "--json", "extra"], "executor-ml ps: error: there is no argument 'extra'\n"),
    ],
)
def test_misspelt_words_bring_the_nearest_right_one(
    argv: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A command's, or an option's of that command."""
    with pytest.raises(SystemExit) as caught:
        cli.main(argv)
    assert caught.value.code == 2
    assert said in capsys.readouterr().err


def test_help_does_not_break_a_command_to_copy(capsys: pytest.CaptureFixture[str]) -> None:
    """What completion tells people to type stands on one line."""
    with pytest.raises(SystemExit):
        cli.main(["completion", "--help"])
    assert "  echo 'source <(executor-ml completion bash)' >> ~/.bashrc\n" in (
        capsys.readouterr().out
    )


def test_a_bug_is_not_dressed_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is no error of ours keeps its traceback."""
    fake_command(monkeypatch, ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        cli.main(["prune"])


def test_importing_the_package_does_nothing() -> None:
    """The command starts fast: none of these is imported before it is needed."""
    code = (
        "import sys, kernel_provider.cli, kernel_provider.commands.run\n"
        "print(*[m for m in ('docker', 'jupyter_client', 'traitlets', 'asyncio', 'zmq',"
        " 'nbformat', 'nbclient') if m in sys.modules])"
    )
    answer = subprocess.run(
        [sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == ""


@pytest.mark.parametrize("path", [".", "..", "/", ""])
def test_a_folder_is_no_notebook(
    path: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Also one whose name is none, from which no name of an output can be made."""
    monkeypatch.chdir(tmp_path)
    assert cli.main(["run", path]) == 66
    assert capsys.readouterr().err.endswith("this is a folder\nFix: give a notebook in it\n")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["pool", "start", "--count", "0"], "--count: '0': write a whole number, 1 or more"),
        (["pool", "start", "--count", "-1"], "--count: '-1': write a whole number, 1 or more"),
        (["pool", "start", "--count", "x"], "--count: 'x': write a whole number, 1 or more"),
        (["pool", "start", "--ttl", "x"], "--ttl: 'x' is no duration; write one such as"),
        (["run", "n.ipynb", "--timeout", "x"], "--timeout: 'x' is no duration; write one such"),
        (["extract", "n.ipynb", "--max-size", "x"], '--max-size: write a size such as "512m"'),
    ],
)
def test_a_value_that_is_none_is_told_with_what_to_write(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """In words for people, without a function's name."""
    with pytest.raises(SystemExit) as caught:
        cli.main(words)
    assert caught.value.code == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("socket", ["none", "closed"])
@pytest.mark.parametrize("words", [["build"], ["ps"], ["prune"], ["bundle", "b"]])
def test_without_an_engine_every_command_says_so_alike(
    words: list[str],
    socket: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    """In the words of a kernel that cannot start, also where an SDK is what asks."""
    path = tmp_path / "docker.sock"
    reason = "No such file or directory"
    if socket == "closed":
        path.touch()
        reason = "Connection refused"
    monkeypatch.setenv("DOCKER_HOST", f"unix://{path}")
    monkeypatch.chdir(tmp_path)
    assert cli.main(words) == 69
    told = EngineUnreachableError(socket=str(path), reason=reason)
    assert capsys.readouterr().err.endswith(f"executor-ml: {told}\n")


def test_a_notebook_is_read_without_a_grammar_of_iris() -> None:
    """Which JupyterLab brings along, and which takes 1.5 s to read: here it is, in vain."""
    program = """
import importlib.util, sys
assert importlib.util.find_spec("rfc3987_syntax")
from kernel_provider import entry
sys.argv[1:] = ["extract", "nothing.ipynb"]
entry.main()
import nbformat
nbformat.validate(nbformat.v4.new_notebook())
assert "rfc3987_syntax.syntax_helpers" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
