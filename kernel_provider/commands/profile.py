"""``executor-ml profile``: which limits fit a model or a notebook."""

import argparse
import json
import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from kernel_provider import kernelspecs
from kernel_provider.ceilings import LEAST, Ceilings, read_ceilings, this_machine
from kernel_provider.commands.arguments import number, size
from kernel_provider.commands.table import columns, size_text
from kernel_provider.models.entry import Entry
from kernel_provider.models.store import Registry, place
from kernel_provider.profile.model import STEP, Limits, Profile, Subject, Trial
from kernel_provider.profile.picture import draw
from kernel_provider.profile.plan import up
from kernel_provider.profile.report import page
from kernel_provider.profile.search import Room, search
from kernel_provider.profile.subjects import of_model, of_notebook
from kernel_provider.run.files import check_writable, read, write
from kernel_provider.run.model import ExitCode
from kernel_provider.steps import SetupError, Steps
from kernel_provider.values import MIB, WORKSPACES, amount, show

ROOM: Final = 2048 * MIB
GROWTH: Final = 4
"""Bytes that the first run has beside a model, and for each byte of it: no fp32 model
needs more, and where they are not there, it has what there is."""

HEAD: Final = ("MEMORY", "CPUS", "", "PEAK", "FIRST RESULT", "NEXT ONE", "READ AGAIN", "THROTTLED")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Fill in the command's arguments."""
    parser.description = (
        "Run a model, or a notebook, in sandboxes with less and less memory until it is "
        "killed, or only reads again and again what it has no room for; then with more and "
        "more processors until they are not worth it. Ctrl-C ends it with what is known."
    )
    parser.add_argument("notebook", type=Path, metavar="NOTEBOOK", nargs="?", help="what to run")
    parser.add_argument(
        "--model",
        dest="models",
        action="append",
        default=[],
        metavar="ID",
        help="a model of the registry; without NOTEBOOK, it is loaded and asked twice",
    )
    parser.add_argument("--kernel", default="executor-ml", metavar="NAME", help="the kernelspec")
    parser.add_argument(
        "--workspace", choices=WORKSPACES, help="copy: give it a copy of the notebook's folder"
    )
    parser.add_argument("--memory", type=size, metavar="SIZE", help="the most to try")
    parser.add_argument("--cpus", type=number, metavar="NUMBER", help="the most to try")
    parser.add_argument(
        "--save",
        action="store_true",
        help="keep the limits with the model: executor-ml install --model ID takes them",
    )
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page with plots")
    parser.add_argument(
        "--png", type=Path, metavar="FILE", help="write the plots as a picture, drawn in a sandbox"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def main(args: argparse.Namespace) -> int:
    """Find them and tell; raises SandboxError."""
    registry = Registry(place(os.environ))
    entries = [registry.find(model) for model in args.models]
    _check(args)
    room = room_of(args, entries, read_ceilings(os.environ))
    steps = Steps(sys.stderr if args.json else sys.stdout)
    with tempfile.TemporaryDirectory(prefix="executor-ml-profile-") as folder:
        profile = search(_subject(args, entries, registry, Path(folder)), room, steps)
    text = words(profile)
    if args.html is not None:
        write(args.html, page(profile, text))
    print(json.dumps(data(profile)) if args.json else text)
    if args.save and profile.recommended is not None:
        limits = profile.recommended
        registry.amend(replace(entries[0], memory=limits.memory, cpus=limits.cpus))
        steps.say(f"saved: executor-ml install --model {entries[0].label} takes these limits")
    if args.png is not None and profile.memory:
        with steps.step(f"plots in {args.png}") as note:
            write(args.png, draw(profile, kernel=args.kernel, note=note))
    return 0 if profile.complete else int(ExitCode.INTERRUPTED)


def _check(args: argparse.Namespace) -> None:
    """See what can be seen before anything runs."""
    if args.notebook is None and len(args.models) != 1:
        raise SetupError(
            reason="there is nothing to profile",
            remedy="name a notebook, or one model with --model ID",
        )
    if args.save and len(args.models) != 1:
        raise SetupError(
            reason="--save keeps the limits with one model",
            remedy="name it with --model ID, or leave --save out",
        )
    if args.notebook is not None:
        read(args.notebook)
    for path in (args.html, args.png):
        if path is not None:
            check_writable(path)


def _subject(
    args: argparse.Namespace, entries: list[Entry], registry: Registry, folder: Path
) -> Subject:
    if args.notebook is None:
        return of_model(entries[0], registry, kernel=args.kernel, folder=folder)
    more = {"workspace": args.workspace} if args.workspace else {}
    return of_notebook(args.notebook, entries, registry, kernel=args.kernel, more=more)


def room_of(args: argparse.Namespace, entries: list[Entry], ceilings: Ceilings) -> Room:
    """Between what the runs may move: under the ceilings, the machine and the options."""
    machine = ceilings.machine or this_machine()
    policy = kernelspecs.named(args.kernel).policy(ceilings)
    needed = ROOM + GROWTH * sum(entry.size for entry in entries)
    memory = min(
        amount(ceilings.limits.get("memory", machine.memory)), machine.memory, args.memory or needed
    )
    cpus = min(
        amount(ceilings.limits.get("cpus", machine.cpus)), machine.cpus, args.cpus or machine.cpus
    )
    least = max(int(LEAST["memory"]), policy.tmp_size + policy.shm_size + STEP)
    return Room(most=Limits(memory=int(memory) // STEP * STEP, cpus=cpus), least=up(least))


def words(profile: Profile) -> str:
    """What a person wants to know, the recommendation last."""
    lines = [columns([HEAD, *(_row(trial) for trial in (*profile.memory, *profile.cpus))]), ""]
    if profile.memory:
        peak = profile.memory[0].seen.peak
        own = peak.anonymous + peak.shared + peak.kernel
        lines.append(
            f"Its own memory is {size_text(own)}, and it reads {size_text(peak.files)} of files."
        )
    if profile.minimum is not None:
        below = "" if profile.below is None else f", {show('memory', profile.below)} was not"
        lines.append(f"{show('memory', profile.minimum)} was enough{below}.")
    if profile.recommended is not None:
        limits = profile.recommended
        lines.append(f"Recommended: --memory {limits.memory // MIB}m --cpus {limits.cpus:g}")
    if not profile.complete:
        lines.append("It was stopped before all was known.")
    return "\n".join(lines)


def _row(trial: Trial) -> list[str]:
    seen = trial.seen
    return [
        show("memory", trial.limits.memory),
        f"{trial.limits.cpus:g}",
        str(trial.verdict),
        size_text(seen.most),
        "-" if seen.first is None else f"{seen.first:.1f} s",
        "-" if seen.warm is None else f"{seen.warm:.1f} s",
        size_text(seen.peak.reread),
        f"{seen.throttled:.0%}",
    ]


def data(profile: Profile) -> dict[str, Any]:
    """The same for programs; bytes, seconds, and shares from 0 to 1."""
    recommended = profile.recommended
    return {
        "subject": profile.subject,
        "complete": profile.complete,
        "minimum": profile.minimum,
        "not_enough": profile.below,
        "recommended": recommended and {"memory": recommended.memory, "cpus": recommended.cpus},
        "over_memory": [_data(trial) for trial in profile.memory],
        "over_cpus": [_data(trial) for trial in profile.cpus],
    }


def _data(trial: Trial) -> dict[str, Any]:
    seen = trial.seen
    peak = seen.peak
    return {
        "memory": trial.limits.memory,
        "cpus": trial.limits.cpus,
        "verdict": trial.verdict.value,
        "reason": seen.reason,
        "seconds": seen.seconds,
        "first_result": seen.first,
        "next_result": seen.warm,
        "peak": seen.most,
        "peak_anonymous": peak.anonymous,
        "peak_shared": peak.shared,
        "peak_kernel": peak.kernel,
        "peak_files": peak.files,
        "read_again": peak.reread,
        "major_faults": peak.major_faults,
        "oom_kills": seen.oom_kills,
        "throttled": seen.throttled,
    }
