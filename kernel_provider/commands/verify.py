"""``executor-ml verify``: attacks sandboxes of a kernel, and says which promises held."""

import argparse
import asyncio
import json
import os
import shutil
import sys
from collections.abc import Sequence
from typing import Final

from kernel_provider.commands.doctor import wants_colour, wrapped
from kernel_provider.kernelspecs import DEFAULT
from kernel_provider.steps import Steps
from kernel_provider.verify.model import Report, Result, Status
from kernel_provider.verify.runner import verify

COLOURS: Final = {
    Status.HELD: "\x1b[32m",
    Status.NOT_HELD: "\x1b[31m",
    Status.NOT_APPLICABLE: "\x1b[2m",
}
PLAIN: Final = "\x1b[0m"
INDENT: Final = " " * 16


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Fill in the command's arguments."""
    parser.description = (
        "Start sandboxes as a notebook would, try to break each promise from inside, look "
        "from outside, and print what was tried, what happened and whether it held. For "
        "after an upgrade of the engine, the system or this package; under a minute. The "
        "exit code is 0 if every promise held that could be tried here, else 1."
    )
    parser.add_argument(
        "--kernel", default=DEFAULT, metavar="NAME", help="the kernelspec (default: %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print the results as JSON")


def main(args: argparse.Namespace) -> int:
    """Verify with signs of life on standard error, and report."""
    steps = Steps(sys.stderr)
    with steps.step(f"verifying {args.kernel}") as note:

        def progress(text: str) -> None:
            note.text = text

        report = asyncio.run(verify(args.kernel, progress))
        note.text = f"{len(report.checks)} checks"
    if args.json:
        print(json.dumps(report.to_json()))
    else:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
        print(table(report, colour=wants_colour(sys.stdout, os.environ), width=width))
    return 0 if report.held else 1


def table(report: Report, *, colour: bool, width: int) -> str:
    """Promises by their groups: what is promised, what was tried, and what happened."""
    lines = [
        f"kernel {report.kernel}, image {report.image}, engine {report.engine}",
        f"control groups of version {report.cgroup}",
    ]
    for group in dict.fromkeys(result.group for result in report.checks):
        lines += ["", group.upper()]
        for result in report.checks:
            if result.group == group:
                lines += _row(result, colour=colour, width=width)
    told = [f"{count} {status}" for status, count in report.counts().items() if count]
    return "\n".join([*lines, "", f"{', '.join(told)} ({report.seconds:g} s)"])


def _row(result: Result, *, colour: bool, width: int) -> Sequence[str]:
    word = f"{result.status:<14}"
    if colour:
        word = f"{COLOURS[result.status]}{word}{PLAIN}"
    indent = len(INDENT)
    return [
        f"{word}  {wrapped(f'{result.name}: {result.promise}', indent, width)}",
        f"{INDENT}{wrapped(f'tried: {result.tried}', indent, width)}",
        f"{INDENT}{wrapped(f'happened: {result.happened}', indent, width)}",
    ]
