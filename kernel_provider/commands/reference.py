"""``python -m kernel_provider.commands.reference [FOLDER]``: the generated pages of ``docs/``.

They are made from the parsers and the error classes, and a test sees that they are what
this makes.
"""

import argparse
import pkgutil
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Final

import kernel_provider
from kernel_provider.cli import COMMANDS, make_parser
from kernel_provider.commands.completion import subparsers
from kernel_provider.errors import SandboxError

MADE: Final = "<!-- Made by python -m kernel_provider.commands.reference: change the source. -->\n"
BAR: Final = "\\|"
"""A bar that does not end a cell of a table."""

NOT_IMPORTED: Final = ("bootstrap", "demo", "__main__", "_inside")
"""Programs of their own, without errors of their own."""


def commands_page() -> str:
    """Every command with its arguments, as a page."""
    parts = [
        "# Commands\n",
        MADE,
        (
            "`executor-ml` is also there as `jupyter executor-ml`. Errors are told on standard "
            "error in two lines, what happened and how to mend it, with the exit codes of "
            "[errors.md](errors.md). Wrong words on the command line are exit code 2.\n"
        ),
        _arguments(make_parser(None)),
    ]
    for name in sorted(COMMANDS):
        parser = subparsers(make_parser(name))[name]
        parts += _section(f"## executor-ml {name}", parser)
        for action, inner in subparsers(parser).items():
            parts += _section(f"### executor-ml {name} {action}", inner)
    return "\n".join(part for part in parts if part)


def _section(title: str, parser: argparse.ArgumentParser) -> list[str]:
    return [f"{title}\n", f"{_sentence(parser.description or '')}\n", _arguments(parser)]


def _sentence(text: str) -> str:
    return text if text.endswith((".", ")")) else f"{text}."


def _arguments(parser: argparse.ArgumentParser) -> str:
    rows = [
        f"| `{_form(action).replace('|', BAR)}` | {_meaning(action)} |"
        for action in parser._actions  # noqa: SLF001  argparse has no other way to ask
        if action.help != argparse.SUPPRESS
        and "--help" not in action.option_strings
        and not isinstance(action, argparse._SubParsersAction)  # noqa: SLF001
    ]
    return "\n".join(["| argument | meaning |", "|---|---|", *rows, ""]) if rows else ""


def _form(action: argparse.Action) -> str:
    """How it is typed."""
    values = action.metavar or "|".join(map(str, action.choices or [action.dest.upper()]))
    values = values if isinstance(values, str) else " ".join(values)
    if not action.option_strings:
        return values
    form = ", ".join(action.option_strings)
    return form if action.nargs == 0 else f"{form} {values}"


def _meaning(action: argparse.Action) -> str:
    text = (action.help or "") % {"default": action.default, "prog": "executor-ml"}
    if isinstance(action, argparse._AppendAction):  # noqa: SLF001
        text += " (may be given again)"
    return text.replace("|", BAR) or "what to do"


def errors_page() -> str:
    """Every error with its exit code and words, as a page."""
    rows = [
        f"| `{kind.__name__}` | {kind.exit_code} | {_words(kind.summary)} | {_words(kind.fix)} |"
        for kind in errors()
    ]
    return "\n".join(
        [
            "# Errors\n",
            MADE,
            (
                "The same words are shown on the command line, in the server's log and in "
                "JupyterLab's dialog: first what happened, then, after `Fix:`, how to mend it. "
                "Names in braces stand for what it happened to. How a *running* kernel died is "
                "told in its cell; the [README](../README.md#when-a-kernel-dies) lists that.\n"
            ),
            "| error | exit code | what it says | fix |",
            "|---|---|---|---|",
            *rows,
            "",
        ]
    )


def _words(text: str) -> str:
    """A format string for people: fields without conversions, the vague ones by name."""
    return text.replace("!r}", "}").replace("|", BAR).replace("<", "&lt;")


def errors() -> Sequence[type[SandboxError]]:
    """Every error class of the package, by name."""
    found = set()
    for module in modules(kernel_provider.__path__, "kernel_provider."):
        for kind in vars(import_module(module)).values():
            if isinstance(kind, type) and issubclass(kind, SandboxError):
                found.add(kind)
    return sorted(found - {SandboxError}, key=lambda kind: kind.__name__)


def modules(path: Sequence[str], prefix: str) -> list[str]:
    """Names of all modules below ``path``; programs are left out."""
    names = []
    for module in pkgutil.iter_modules(path, prefix):
        last = module.name.rpartition(".")[2]
        if last in NOT_IMPORTED:
            continue
        names.append(module.name)
        if module.ispkg:
            inner = [str(Path(folder, last)) for folder in path]
            names += modules(inner, f"{module.name}.")
    return names


PAGES: Final = {"commands.md": commands_page, "errors.md": errors_page}


def main() -> None:
    """Write the pages into the folder given, or into ``docs``."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "docs")
    for name, page in PAGES.items():
        (folder / name).write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
