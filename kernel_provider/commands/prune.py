"""``executor-ml prune``: remove what killed processes left behind."""

import argparse
import json
import os

from kernel_provider.session import prune


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Fill in the command's arguments."""
    parser.description = (
        "Remove sandboxes whose Jupyter server and warden were both killed. Running "
        "kernels are never touched. Every start of a kernel does the same by itself."
    )
    parser.add_argument("--json", action="store_true", help="print the names as a JSON list")


def main(args: argparse.Namespace) -> int:
    """Prune and say what was removed."""
    removed = prune(os.environ)
    if args.json:
        print(json.dumps(list(removed)))
    elif removed:
        print("\n".join(f"removed {name}" for name in removed))
    else:
        print("nothing to remove")
    return 0
