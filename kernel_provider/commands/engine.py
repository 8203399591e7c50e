"""``executor-ml engine``: run a container engine where there is none."""

import argparse
import dataclasses
import json
import os
import sys

from kernel_provider.setup import engine_host, machine
from kernel_provider.setup.engine_host import EngineHome, EngineStatus
from kernel_provider.steps import Steps


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``executor-ml engine``."""
    parser.add_argument("action", choices=("start", "stop", "status"))
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def main(args: argparse.Namespace) -> int:
    """Run the action; raises SandboxError with the reason where it can't be done.

    ``start`` starts nothing if an engine answers already; ``status`` fails if none does.
    """
    home = EngineHome()
    steps = Steps(sys.stderr if args.json else sys.stdout)
    if args.action == "stop":
        return _stop(home, steps, as_json=args.json)
    if args.action == "start":
        status = machine.have_engine(home, steps)
    else:
        status = engine_host.find(os.environ, home)
    print(json.dumps(dataclasses.asdict(status)) if args.json else _words(status))
    return 0


def _stop(home: EngineHome, steps: Steps, *, as_json: bool) -> int:
    with steps.step("stopping our engine") as note:
        stopped = engine_host.stop(home)
        note.text = "" if stopped else "it did not run"
    if as_json:
        print(json.dumps({"stopped": stopped}))
    elif home.data.exists():
        steps.say(f"Its images stay in {home.data}")
    return 0


def _words(status: EngineStatus) -> str:
    whose = f"ours, process {status.pid}" if status.pid else "not started by executor-ml"
    return f"Docker {status.version} answers at {status.socket} ({whose})"
