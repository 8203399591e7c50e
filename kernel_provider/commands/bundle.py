"""``executor-ml bundle``: all that a machine without a network needs, in one file."""

import argparse
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

from kernel_provider.builder.command import Screen, megabytes
from kernel_provider.bundle.pack import BundleRequest, BundleResult, bundle
from kernel_provider.bundle.wheels import read_target


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Fill in the command's arguments."""
    parser.description = (
        "Pack images, Python packages and kernelspecs into one file, for a machine that has "
        "no network, only an engine and Python. There: tar xf FILE install.py && python3 "
        "install.py FILE. Without options that is every kernelspec of ours, with its limits, "
        "and the images that they ask for."
    )
    parser.add_argument("file", metavar="FILE", type=Path, help="the file to write, a tar")
    parser.add_argument(
        "--kernelspec",
        action="append",
        default=[],
        metavar="NAME",
        help="only this kernelspec and its image",
    )
    parser.add_argument(
        "--image", action="append", default=[], metavar="I", help="another image of ours as well"
    )
    parser.add_argument(
        "--with",
        dest="extras",
        action="append",
        default=[],
        metavar="PACKAGE",
        help="another package that is installed here, such as jupyterlab, with what it needs",
    )
    parser.add_argument(
        "--python", metavar="X.Y", help="version of Python there (default: the one here)"
    )
    parser.add_argument(
        "--platform",
        metavar="P",
        help="platform there, such as manylinux_2_28_x86_64 (default: the one here)",
    )
    parser.add_argument("--force", action="store_true", help="write over FILE")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def main(args: argparse.Namespace) -> int:
    """Pack, and say what to do with it; errors are the caller's to show."""
    request = BundleRequest(
        file=args.file,
        target=read_target(args.python, args.platform),
        kernelspecs=tuple(args.kernelspec),
        images=tuple(args.image),
        extras=tuple(args.extras),
        force=args.force,
    )
    screen = Screen(sys.stderr, os.environ)
    try:
        result = bundle(request, screen.show)
    finally:
        screen.end()
    print(json.dumps(asdict(result)) if args.json else words(result))
    return 0


def words(result: BundleResult) -> str:
    """What there is now, and how it is used."""
    specs = ", ".join(result.kernelspecs) or "no kernelspec"
    name = Path(result.file).name
    return "\n".join(
        [
            f"{result.file}: {megabytes(result.size)} in {result.seconds:.0f} s",
            f"  images:      {', '.join(result.images)}",
            f"  kernelspecs: {specs}",
            f"  packages:    {len(result.wheels)} wheels for Python {result.target} or newer",
            f"  sha256:      {result.sha256}",
            "Carry it over; there, with that Python and an engine:",
            f"  tar xf {name} install.py && python3 install.py {name}",
        ]
    )
