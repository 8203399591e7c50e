"""``executor-ml unbundle``: what ``executor-ml bundle`` packed, put into effect here."""

import argparse
import json
import os
import shutil
import sys
from dataclasses import asdict
from pathlib import Path

from kernel_provider.builder.command import Screen
from kernel_provider.bundle.unpack import UnbundleRequest, UnbundleResult, unbundle
from kernel_provider.commands.doctor import report, wants_colour
from kernel_provider.commands.install import add_places, where_of
from kernel_provider.doctor import Status, examine, gather


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Fill in the command's arguments."""
    parser.description = (
        "Load the images of a bundle into the engine and write its kernelspecs, then look, as "
        "executor-ml doctor does, whether kernels can start. Nothing is downloaded, and "
        "nothing is changed before the bundle was found whole. It may be repeated: what is "
        "there already stays. Where executor-ml is not installed yet, the bundle installs it: "
        "tar xf FILE install.py && python3 install.py FILE. The exit code is 0 if kernels can "
        "start."
    )
    parser.add_argument(
        "file", metavar="FILE", type=Path, help="the file that executor-ml bundle wrote"
    )
    add_places(parser)
    parser.add_argument(
        "--kernelspec",
        action="append",
        default=[],
        metavar="NAME",
        help="write only this kernelspec",
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help="replace kernelspecs with other settings, and images of the same name",
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def main(args: argparse.Namespace) -> int:
    """Unpack, look, and say what is there now."""
    request = UnbundleRequest(
        file=args.file,
        where=where_of(args),
        kernelspecs=tuple(args.kernelspec),
        force=args.force,
    )
    screen = Screen(sys.stderr, os.environ)
    try:
        result = unbundle(request, screen.show)
    finally:
        screen.end()
    checks = examine(gather(os.environ))
    good = all(check.status is not Status.FAIL for check in checks)
    if args.json:
        told = {**asdict(result), "ok": good, "checks": [asdict(check) for check in checks]}
        print(json.dumps(told))
    else:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
        print(report(checks, colour=wants_colour(sys.stdout, os.environ), width=width))
        print(words(result))
    return 0 if good else 1


def words(result: UnbundleResult) -> str:
    """What is there now."""
    loaded = ", ".join(result.loaded) or "none, all were there"
    names = ", ".join(spec.name for spec in result.kernelspecs) or "none"
    hidden = {spec.jupyter_path for spec in result.kernelspecs if spec.hidden}
    return "\n".join(
        [
            f"images loaded:       {loaded} ({result.seconds:.0f} s)",
            f"kernelspecs written: {names}",
            *(f"Jupyter finds them only with JUPYTER_PATH={path}" for path in hidden),
        ]
    )
