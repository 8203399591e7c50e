"""``executor-ml doctor``: what stands between this machine and a kernel, with remedies."""

import argparse
import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Final, TextIO

from kernel_provider.doctor import CheckResult, Status, examine, gather
from kernel_provider.doctor.mend import needed
from kernel_provider.errors import SandboxError
from kernel_provider.steps import Steps

COLOURS: Final = {
    Status.OK: "\x1b[32m",
    Status.WARN: "\x1b[33m",
    Status.FAIL: "\x1b[31m",
    Status.SKIP: "\x1b[2m",
}
PLAIN: Final = "\x1b[0m"
_NARROWEST: Final = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Fill in the command's arguments."""
    parser.description = (
        "Look at engine, image, kernelspecs, Jupyter and disks, and say how to mend what "
        "is wrong. The exit code is 0 if nothing failed (warnings are allowed), else 1."
    )
    parser.add_argument(
        "--fix",
        action="store_true",
        help="do what can be done: start an engine (as root on Debian), build the image, "
        "install the kernelspec, remove leftovers",
    )
    parser.add_argument("--json", action="store_true", help="print the results as JSON")


def main(args: argparse.Namespace) -> int:
    """Look, mend if asked, look again, and report."""
    results: Sequence[CheckResult] = examine(gather(os.environ))
    if args.fix:
        results = mend(results, Steps(sys.stderr if args.json else sys.stdout))
    good = all(result.status is not Status.FAIL for result in results)
    if args.json:
        print(json.dumps({"ok": good, "checks": [asdict(result) for result in results]}))
    else:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
        print(report(results, colour=wants_colour(sys.stdout, os.environ), width=width))
    return 0 if good else 1


def mend(results: Sequence[CheckResult], steps: Steps) -> Sequence[CheckResult]:
    """Do one thing after the other, each once, and look again after each."""
    done: list[str] = []
    while (found := needed(results, done)) is not None:
        name, action = found
        done.append(name)
        steps.say(f"mending {name}:")
        try:
            action(steps)
        except SandboxError as error:
            steps.say(f"  not mended: {error}")
        results = examine(gather(os.environ))
    if not done:
        steps.say("nothing that --fix can mend")
    return results


def wants_colour(stream: TextIO, environ: Mapping[str, str]) -> bool:
    """On a terminal that knows colours, unless NO_COLOR is set.

    https://no-color.org
    """
    return stream.isatty() and environ.get("TERM") != "dumb" and not environ.get("NO_COLOR")


def report(results: Sequence[CheckResult], *, colour: bool, width: int) -> str:
    """One line for each check and one for each remedy; ``width`` 0 never breaks a line."""
    column = max(len(result.name) for result in results)
    lines = []
    for result in results:
        word = f"{result.status:<4}"
        if colour:
            word = f"{COLOURS[result.status]}{word}{PLAIN}"
        indent = len("fail  ") + column + 2
        found = wrapped(result.found, indent, width)
        lines.append(f"{word}  {result.name:<{column}}  {found}".rstrip())
        if result.fix:
            lines.append(" " * indent + wrapped(f"Fix: {result.fix}", indent, width))
    counts = {status: sum(r.status is status for r in results) for status in Status}
    told = [f"{count} {status}" for status, count in counts.items() if count]
    return "\n".join([*lines, ", ".join(told)])


def wrapped(text: str, indent: int, width: int) -> str:
    """Break a text between words into lines that keep their place in the column."""
    room = width - indent
    if width == 0 or room < _NARROWEST:
        return text
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + 1 + len(word) > room:
            lines.append("")
        lines[-1] += f"{' ' if lines[-1] else ''}{word}"
    return f"\n{' ' * indent}".join(lines)
