"""``executor-ml completion``: a script that completes commands and options in a shell.

It is made from the parsers and holds all their words, so that a key press starts no
Python.
"""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

SHELLS: Final = ("bash", "zsh")

_SCRIPT: Final = """\
# Completion for executor-ml. To use it in every new shell:
#   {usage}
{prelude}_executor_ml() {{
    local current="${{COMP_WORDS[COMP_CWORD]}}" command="" options="" words="" word index=0
    for word in "${{COMP_WORDS[@]}}"; do
        [ "$index" -ge "$COMP_CWORD" ] && break
        index=$((index + 1))
        case "$word" in
            {commands}) command="$word"; break ;;
        esac
    done
    case "$command" in
{cases}
    esac
    case "$current" in
        -*) COMPREPLY=($(compgen -W "$options" -- "$current")) ;;
        *) COMPREPLY=($(compgen -W "$words" -- "$current")) ;;
    esac
}}
complete -o default -o bashdefault -F _executor_ml executor-ml jupyter-executor-ml
"""

_USAGE: Final[Mapping[str, str]] = {
    "bash": "echo 'source <(executor-ml completion bash)' >> ~/.bashrc",
    "zsh": "echo 'source <(executor-ml completion zsh)' >> ~/.zshrc",
}
_PRELUDE: Final[Mapping[str, str]] = {
    "bash": "",
    "zsh": "autoload -U +X compinit && compinit\nautoload -U +X bashcompinit && bashcompinit\n",
}


@dataclass(frozen=True, kw_only=True)
class Words:
    """What may follow a command; the empty one's may follow ``executor-ml`` itself."""

    options: tuple[str, ...]
    plain: tuple[str, ...]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Fill in the command's arguments."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = "Print a script for completion with the tab key."
    uses = "\n".join(f"  {shell:<4}  {usage}" for shell, usage in _USAGE.items())
    parser.epilog = f"to have it in every new shell, once:\n{uses}"
    parser.add_argument("shell", choices=SHELLS, help="the shell that will read it")


def main(args: argparse.Namespace) -> int:
    """Print the script."""
    print(script(args.shell, words()), end="")
    return 0


def words() -> dict[str, Words]:
    """Every command, option and choice, from the parsers themselves."""
    from kernel_provider.cli import COMMANDS, make_parser  # noqa: PLC0415  it imports this one

    after = {name: _with_actions(subparsers(make_parser(name))[name]) for name in COMMANDS}
    return {"": _of(make_parser(None)), **after}


def subparsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The parser of each command, by its name."""
    for action in parser._actions:  # noqa: SLF001  argparse has no other way to ask
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
            return dict(action.choices)
    return {}


def _of(parser: argparse.ArgumentParser) -> Words:
    options: list[str] = []
    plain: list[str] = []
    for action in parser._actions:  # noqa: SLF001
        options += action.option_strings
        if not action.option_strings and action.choices is not None:
            plain += [str(choice) for choice in action.choices]
    return Words(options=tuple(options), plain=tuple(plain))


def _with_actions(parser: argparse.ArgumentParser) -> Words:
    """A command's words; those of all its actions, where it has some."""
    own = _of(parser)
    inner = [option for action in subparsers(parser).values() for option in _of(action).options]
    return Words(options=tuple(dict.fromkeys((*own.options, *inner))), plain=own.plain)


def script(shell: str, words: Mapping[str, Words]) -> str:
    """The whole script for one of ``SHELLS``."""
    cases = [
        f'        "{name}") options="{" ".join(after.options)}" words="{" ".join(after.plain)}" ;;'
        for name, after in words.items()
    ]
    return _SCRIPT.format(
        usage=_USAGE[shell],
        prelude=_PRELUDE[shell],
        commands="|".join(name for name in words if name),
        cases="\n".join(cases),
    )
