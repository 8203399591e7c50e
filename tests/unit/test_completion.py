"""``executor-ml completion``: what the tab key brings, asked of real shells."""

import shutil
import subprocess

import pytest

from kernel_provider import cli
from kernel_provider.commands.completion import script, words

BASH = shutil.which("bash") or "/bin/bash"
ZSH = shutil.which("zsh")


def complete(line: str) -> list[str]:
    """What the tab key offers after ``line``."""
    typed = line.split(" ")
    array = " ".join(f"'{word}'" for word in typed)
    program = (
        f"{script('bash', words())}\n"
        f"COMP_WORDS=({array}); COMP_CWORD={len(typed) - 1}; _executor_ml\n"
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        [BASH, "--norc", "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    return done.stdout.split()


def test_commands_are_offered() -> None:
    """All of them after nothing, those that fit after a letter."""
    assert set(complete("executor-ml ")) == set(cli.COMMANDS)
    assert complete("executor-ml do") == ["doctor"]
    assert complete("executor-ml doctor") == ["doctor"]
    assert "--version" in complete("executor-ml --")


def test_options_of_the_command_are_offered() -> None:
    """Its own and no other's, wherever it stands."""
    assert complete("executor-ml doctor --f") == ["--fix"]
    assert complete("executor-ml ps --w") == ["--watch"]
    assert complete("executor-ml ps --fix") == []
    assert "--replace" in complete("executor-ml install --memory 2g --")


def test_choices_are_offered() -> None:
    """Words that a command takes; where it takes files, the shell's own completion."""
    assert complete("executor-ml engine st") == ["start", "stop", "status"]
    assert complete("executor-ml completion z") == ["zsh"]
    assert complete("executor-ml build x") == []


def test_the_command_prints_what_bash_reads(capsys: pytest.CaptureFixture[str]) -> None:
    """Sourced, it registers itself for both names."""
    assert cli.main(["completion", "bash"]) == 0
    text = capsys.readouterr().out
    done = subprocess.run(
        [BASH, "--norc", "-c", f"{text}\ncomplete -p executor-ml jupyter-executor-ml"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.count("-F _executor_ml") == 2


@pytest.mark.skipif(ZSH is None, reason="zsh is not installed here")
def test_the_command_prints_what_zsh_reads(capsys: pytest.CaptureFixture[str]) -> None:
    """Through zsh's own layer for bash's completions."""
    assert cli.main(["completion", "zsh"]) == 0
    text = capsys.readouterr().out
    program = f"{text}\nprint -r -- $_comps[executor-ml]"
    done = subprocess.run(
        [ZSH or "", "-f", "-c", program], capture_output=True, text=True, check=True
    )
    assert "_bash_complete" in done.stdout


def test_an_unknown_shell_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    """With the ones that are known."""
    with pytest.raises(SystemExit) as caught:
        cli.main(["completion", "fish"])
    assert caught.value.code == 2
    assert "'bash', 'zsh'" in capsys.readouterr().err.replace("bash, zsh", "'bash', 'zsh'")
