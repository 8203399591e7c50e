"""``executor-ml build``: arguments in, progress and a result out."""

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Final, TextIO

from kernel_provider import variants
from kernel_provider.builder import BuildRequest, BuildResult, Event, build
from kernel_provider.builder.bake import bake
from kernel_provider.builder.model import AUTO, DEFAULT_STACK, Phase
from kernel_provider.steps import SetupError

_QUIET: Final = 15.0
"""Seconds between the lines of a long step where there is no terminal."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.add_argument(
        "--variant",
        default=variants.DEFAULT,
        metavar="NAME|FILE",
        help="what goes in: a variant, or a file of requirements (default: %(default)s)",
    )
    parser.add_argument(
        "--stack", default=DEFAULT_STACK, help="locked versions (default: %(default)s)"
    )
    parser.add_argument(
        "--base",
        default=AUTO,
        metavar="IMAGE|auto",
        help="image with Python 3.11; auto pulls python:3.11-slim or makes one from "
        "Debian's packages (default: %(default)s)",
    )
    parser.add_argument("--tag", help="name for the image instead of the usual one")
    parser.add_argument(
        "--model",
        dest="models",
        action="append",
        default=[],
        metavar="ID",
        help="put a model of the registry into the image --tag, on the usual one",
    )
    parser.add_argument("--force", action="store_true", help="build even if nothing changed")
    parser.add_argument("--refresh-base", action="store_true", help="pull or make the base again")
    parser.add_argument(
        "--keep-stages",
        action="store_true",
        help="keep intermediate images (1.5 GB), so that the next build is quicker",
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def main(args: argparse.Namespace) -> int:
    """Build, and say how it went; errors are the caller's to show."""
    request = BuildRequest(
        variant=args.variant,
        stack=args.stack,
        base=args.base,
        tag=args.tag,
        force=args.force,
        refresh_base=args.refresh_base,
        keep_stages=args.keep_stages,
        models=tuple(args.models),
    )
    usual = variants.image_of(variants.name_of(request.variant))
    if request.models and request.image in {usual, usual.removesuffix(":latest")}:
        raise SetupError(
            reason="an image with models needs a name of its own",
            remedy="add --tag NAME, such as --tag executor-ml-tiny:latest",
        )
    screen = Screen(sys.stderr, os.environ)
    try:
        result = (bake if request.models else build)(request, screen.show)
    finally:
        screen.end()
    sys.stdout.write((json.dumps(asdict(result)) if args.json else summary(result)) + "\n")
    return 0


def summary(result: BuildResult) -> str:
    """The line that tells what there is now."""
    versions = ", ".join(f"{name} {version}" for name, version in result.versions.items())
    how = "nothing changed" if result.reused else f"built in {result.seconds:.0f} s"
    return f"{result.image}: {megabytes(result.size)}, {versions} ({how})"


def megabytes(size: int) -> str:
    """A size as people compare it."""
    return f"{size / 1e6:.0f} MB"


def describe(event: Event) -> str:
    """An event as one line, without the time that a screen adds."""
    parts = [event.step]
    if event.detail:
        parts.append(event.detail)
    if event.size is not None:
        parts.append(megabytes(event.size))
    return "  ".join(parts)


class Screen:
    """Shows events: one line that changes on a terminal, plain lines in a pipe."""

    def __init__(self, stream: TextIO, environ: Mapping[str, str]) -> None:
        self._stream = stream
        self._live = stream.isatty() and environ.get("TERM") != "dumb"
        self._colour = self._live and not environ.get("NO_COLOR")
        self._begun = self._last = time.monotonic()
        self._open = False

    def show(self, event: Event) -> None:
        """Show one event."""
        now = time.monotonic()
        if event.phase is Phase.DONE:
            took = f"  {event.seconds:.1f} s" if event.seconds is not None else ""
            self._line(f"{self._mark()} {describe(event)}{took}", last=True)
        elif self._live:
            self._line(f"  {describe(event)}  {now - self._begun:.0f} s", last=False)
        elif event.phase is Phase.STARTED or now - self._last >= _QUIET:
            self._line(f"... {describe(event)}", last=True)
        else:
            return
        self._last = now

    def end(self) -> None:
        """Leave the cursor at the start of a line of its own."""
        if self._open:
            self._stream.write("\n")
            self._stream.flush()
            self._open = False

    def _mark(self) -> str:
        return "\x1b[32m✓\x1b[0m" if self._colour else "ok "

    def _line(self, text: str, *, last: bool) -> None:
        if self._live:
            width = shutil.get_terminal_size().columns - 1
            cut = text if last else text[:width]
            self._stream.write(f"\r\x1b[K{cut}" + ("\n" if last else ""))
        else:
            self._stream.write(f"{text}\n")
        self._stream.flush()
        self._open = self._live and not last
