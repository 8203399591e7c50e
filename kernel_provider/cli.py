"""The command ``executor-ml``: a skin over functions that return results.

Each command is a line in ``COMMANDS``: its module brings ``add_arguments(parser)`` and
``main(args) -> exit code``, and is imported only when it is called.
"""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Final

from kernel_provider.errors import SandboxError, suggest

COMMANDS: Final[Mapping[str, tuple[str, str]]] = {
    "build": ("kernel_provider.builder.command", "build the image that kernels run in"),
    "engine": ("kernel_provider.commands.engine", "run a container engine where there is none"),
    "prune": ("kernel_provider.commands.prune", "remove what killed processes left behind"),
    "run": ("kernel_provider.commands.run", "run a notebook in a sandbox and save it"),
    "grade": ("kernel_provider.commands.grade", "grade a class's notebooks in sandboxes"),
    "extract": ("kernel_provider.commands.extract", "write files that a notebook has sent"),
    "install": ("kernel_provider.commands.install", "write a kernelspec with its own limits"),
    "policy": ("kernel_provider.commands.policy", "show every setting in force, and who set it"),
    "pool": ("kernel_provider.commands.pool", "park sandboxes, so that kernels open at once"),
    "models": ("kernel_provider.commands.models", "the models that kernels may be given"),
    "profile": ("kernel_provider.commands.profile", "find the limits that fit a model"),
    "ps": ("kernel_provider.commands.ps", "show running sandboxes and what they use"),
    "bundle": ("kernel_provider.commands.bundle", "pack all for a machine without a network"),
    "unbundle": ("kernel_provider.commands.unbundle", "put a bundle into effect on this machine"),
    "doctor": ("kernel_provider.commands.doctor", "find what is wrong here, and mend it"),
    "verify": ("kernel_provider.commands.verify", "attack a sandbox, and see that it holds"),
    "proxy": ("kernel_provider.commands.proxy", "let people start kernels, and nothing else"),
    "completion": ("kernel_provider.commands.completion", "print a script for tab completion"),
    "launch": ("kernel_provider.commands.launch", "what a kernelspec's argv names (see --help)"),
}


class _Version(argparse.Action):
    """Ask engine and image only when ``--version`` is given; being down is no failure."""

    def __call__(self, parser: argparse.ArgumentParser, *_rest: object, **_more: object) -> None:
        from kernel_provider.commands.version import versions  # noqa: PLC0415

        print(versions(os.environ))
        parser.exit()


def make_parser(chosen: str | None) -> argparse.ArgumentParser:
    """Parser of all commands, with the arguments of the ``chosen`` one filled in."""
    parser = argparse.ArgumentParser(
        prog="executor-ml",
        description="Jupyter kernels in offline, hardened containers.",
        epilog="After 'executor-ml build', pick the kernel 'executor-ml' in any Jupyter client.",
    )
    parser.add_argument(
        "--version", nargs=0, action=_Version, help="show package, engine and image, and exit"
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (module, summary) in COMMANDS.items():
        sub = commands.add_parser(name, help=summary, description=summary[0].upper() + summary[1:])
        if name == chosen:
            import_module(module).add_arguments(sub)
        sub.set_defaults(parser=sub)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; errors are told in words, with an exit code of their own."""
    words = list(sys.argv[1:] if argv is None else argv)
    args = parse(words)
    try:
        return int(import_module(COMMANDS[args.command][0]).main(args))
    except SandboxError as error:
        print(f"executor-ml: {error}", file=sys.stderr)
        return error.exit_code


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Read the command line; on wrong words, name the nearest right ones and exit."""
    chosen = next((word for word in words if word in COMMANDS), None)
    parser = make_parser(chosen)
    if not words:
        parser.print_help(sys.stderr)
        parser.exit(2)
    options = parser._option_string_actions  # noqa: SLF001  no other way to ask
    if words[0] not in COMMANDS and not any(option.startswith(words[0]) for option in options):
        near = suggest(words[0], [*COMMANDS, *options])
        parser.error(f"there is no command {words[0]!r}{near} (choose from {', '.join(COMMANDS)})")
    args, rest = parser.parse_known_args(words)
    if rest:
        options = args.parser._option_string_actions  # noqa: SLF001
        args.parser.error(f"there is no argument {rest[0]!r}{suggest(rest[0], options)}")
    return args
