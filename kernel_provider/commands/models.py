"""``executor-ml models``: the models on this machine that kernels may be given."""

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kernel_provider.models import archive, sources
from kernel_provider.models.add import Counter, Request, add, megabytes
from kernel_provider.models.entry import MAIN, Entry, split_label
from kernel_provider.models.errors import ModelRefusedError
from kernel_provider.models.sources import DTYPES, Found
from kernel_provider.models.store import Registry, place
from kernel_provider.run.text import printable
from kernel_provider.steps import Note, Steps
from kernel_provider.values import MIB


class _Intermixed(argparse.ArgumentParser):
    """Takes PATH after options too; argparse itself has given up on it by then."""

    _inside = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse's, which this one calls in turn."""
        if self._inside:
            return super().parse_known_args(args, namespace)
        self._inside = True
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._inside = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Fill in the command's arguments."""
    parser.description = (
        "The models on this machine that kernels may be given. A kernelspec names them "
        "(executor-ml install --model ID), its sandboxes see those and no others, "
        "read-only, and code finds them by their plain ids, offline. They are kept once, "
        "by digest, in $EXECUTOR_ML_MODELS or $XDG_DATA_HOME/executor-ml/models."
    )
    actions = parser.add_subparsers(
        dest="action", metavar="ACTION", required=True, parser_class=_Intermixed
    )
    _add_arguments(_action(actions, "add", "take a model into the registry"))
    _action(actions, "list", "every model, with size, parameters and licence")
    show = _action(actions, "show", "one model with its files and their digests")
    show.add_argument("model", metavar="ID", help="such as distilgpt2 or org/name@revision")
    remove = _action(actions, "remove", "forget a model; kernels that run keep what is open")
    remove.add_argument("model", metavar="ID", help="such as distilgpt2 or org/name@revision")
    verify = _action(actions, "verify", "read every file again and compare its digest")
    verify.add_argument("models", metavar="ID", nargs="*", help="only these (default: all)")
    export = _action(actions, "export", "write models to one file, for another machine")
    export.add_argument("file", metavar="FILE", type=Path, help="a tar archive to write")
    export.add_argument("models", metavar="ID", nargs="*", help="only these (default: all)")
    bring_in = _action(actions, "import", "add the models of a file that export wrote")
    bring_in.add_argument("file", metavar="FILE", type=Path, help="the archive")
    bring_in.add_argument("--replace", action="store_true", help="take the place of older ones")


def _action(actions: Any, name: str, summary: str) -> argparse.ArgumentParser:
    text = f"{summary[0].upper()}{summary[1:]}."
    parser: argparse.ArgumentParser = actions.add_parser(name, help=summary, description=text)
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    return parser


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Take a model into the registry: from a folder in the layout of save_pretrained, "
        "from one GGUF or safetensors file, from this user's Hugging Face cache, or from an "
        "installed Python package. Nothing is downloaded. Pickled weights are refused, and "
        "left out where there are others."
    )
    parser.add_argument(
        "model", metavar="ID", help="what code calls it: name or org/name, or with @revision"
    )
    parser.add_argument("path", metavar="PATH", nargs="?", help="the folder or file")
    parser.add_argument("--revision", metavar="R", help="what to call it (default: main)")
    origin = parser.add_mutually_exclusive_group()
    origin.add_argument(
        "--from-cache",
        action="store_true",
        help="from the Hugging Face cache at PATH (default: this user's), only this model",
    )
    origin.add_argument(
        "--from-package", metavar="NAME", help="from PATH in an installed Python package"
    )
    parser.add_argument(
        "--convert",
        action="store_true",
        help="make safetensors of pickled or GGUF weights, inside a sandbox",
    )
    parser.add_argument(
        "--dtype", choices=DTYPES, help="convert, and keep the weights as such numbers"
    )
    parser.add_argument(
        "--share",
        action="store_true",
        help="let the files be hard links to PATH, which makes those read-only, too",
    )
    parser.add_argument("--replace", action="store_true", help="take the place of an older one")


def main(args: argparse.Namespace) -> int:
    """Run the action; raises SandboxError."""
    registry = Registry(place(os.environ))
    steps = Steps(sys.stderr if args.json else sys.stdout)
    chosen: Sequence[Entry] = ()
    if args.action in {"verify", "export"}:
        chosen = [registry.find(model) for model in args.models] or registry.list()
    if args.action == "list":
        entries = registry.list()
        _print(args, [summary(e) for e in entries], table(entries))
    elif args.action == "show":
        entry = registry.find(args.model)
        data = {**asdict(entry), **summary(entry), "path": str(registry.snapshot(entry))}
        _print(args, data, words(entry, registry))
    elif args.action == "remove":
        entry = registry.find(args.model)
        registry.forget(entry)
        _print(args, {"removed": entry.label}, f"removed {entry.label}")
    elif args.action == "verify":
        _verify(registry, chosen, steps)
        labels = [entry.label for entry in chosen]
        _print(args, {"verified": labels}, "every model is what was added")
    elif args.action == "export":
        with steps.step(f"writing {args.file}") as note:
            archive.export(registry, chosen, args.file.absolute(), note)
        labels = [entry.label for entry in chosen]
        _print(args, {"exported": labels}, f"Take it along: executor-ml models import {args.file}")
    elif args.action == "import":
        with steps.step(f"reading {args.file}") as note:
            entries = archive.bring_in(registry, args.file, note, replace=args.replace)
        _print(args, [summary(entry) for entry in entries], table(entries))
    else:
        entry = _add(args, registry, steps)
        _print(args, summary(entry), f"Give it to kernels: {advice(entry)}")
    return 0


def _print(args: argparse.Namespace, data: object, text: str) -> None:
    print(json.dumps(data) if args.json else text)


def _add(args: argparse.Namespace, registry: Registry, steps: Steps) -> Entry:
    found = find(args)
    model, revision = split_label(args.model)
    request = Request(
        model=model,
        revision=args.revision or revision or MAIN,
        share=args.share,
        replace=args.replace,
    )
    with steps.step(f"adding {request.model} from {found.source}") as note:
        converted = _converter(args, note) if args.convert or args.dtype else None
        entry = add(registry, request, found, note, converted)
    if found.pickles:
        steps.say(f"      left out, since they are pickles: {', '.join(sorted(found.pickles))}")
    return entry


def _converter(args: argparse.Namespace, note: Note) -> Callable[[Found, Path], Found]:
    from kernel_provider.models.convert import Conversion, convert  # noqa: PLC0415  200 ms

    model, _ = split_label(args.model)
    conversion = Conversion(model=model, dtype=args.dtype or "", environ=os.environ)
    return lambda found, work: convert(conversion, found, work, note)


def find(args: argparse.Namespace) -> Found:
    """What the words of ``models add`` mean; raises ModelRefusedError."""
    model, revision = split_label(args.model)
    if args.from_cache:
        cache = Path(args.path).absolute() if args.path else sources.cache_folder(os.environ)
        return sources.from_cache(model, args.revision or revision, cache)
    if args.from_package:
        return sources.from_package(model, args.from_package, args.path or "")
    if not args.path:
        reason = "there is no PATH to take it from"
        remedy = "name its folder or file, or add --from-cache"
        raise ModelRefusedError(model=model, reason=reason, remedy=remedy)
    return sources.from_path(model, Path(args.path).expanduser().absolute())


def _verify(registry: Registry, entries: Sequence[Entry], steps: Steps) -> None:
    for entry in entries:
        with steps.step(f"reading {entry.label}") as note:
            registry.check(entry, thorough=True, progress=Counter(note, entry.size))


def summary(entry: Entry) -> dict[str, Any]:
    """What a list says of a model."""
    keys = ("id", "revision", "commit", "parameters", "dtype", "licence", "source", "added")
    fitting = {"memory": entry.memory, "cpus": entry.cpus}
    return {**{key: getattr(entry, key) for key in keys}, "size": entry.size, **fitting}


def table(entries: Sequence[Entry]) -> str:
    """The models, one a line."""
    if not entries:
        return "no models yet; executor-ml models add --help tells how to add one"
    rows = [("model", "revision", "size", "parameters", "dtype", "licence")]
    rows += [
        (
            entry.id,
            entry.revision,
            megabytes(entry.size),
            f"{entry.parameters:,}" if entry.parameters else "-",
            entry.dtype or "-",
            printable(entry.licence).replace("\n", " ") or "not found",
        )
        for entry in entries
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def words(entry: Entry, registry: Registry) -> str:
    """Everything about one model."""
    facts = {
        "model": entry.label,
        "commit": entry.commit,
        "from": entry.source,
        "added": entry.added,
        "size": megabytes(entry.size),
        "parameters": f"{entry.parameters:,}" if entry.parameters else "not known",
        "dtype": entry.dtype or "not known",
        "licence": entry.licence or "not found",
        "limits": limits(entry) or "not known: executor-ml profile --model finds them",
        "folder": str(registry.snapshot(entry)),
        "in a sandbox": f"{entry.id}, or /models/{entry.name}",
    }
    lines = [f"{key:<13} {value}" for key, value in facts.items()]
    lines += ["", *(f"{f.sha256}  {megabytes(f.size):>9}  {f.path}" for f in entry.files)]
    if entry.licence_text:
        lines += ["", entry.licence_text.rstrip()]
    return printable("\n".join(lines))


def limits(entry: Entry) -> str:
    """Those that fit it, as options; empty where nobody has looked."""
    if entry.memory is None or entry.cpus is None:
        return ""
    return f"--memory {entry.memory // MIB}m --cpus {entry.cpus:g}"


def advice(entry: Entry) -> str:
    """What a person types next."""
    name = entry.name.lower()
    label = entry.id if entry.revision == MAIN else entry.label
    return f"executor-ml install --user --name {name} --model {label}"
