"""``executor-ml run``: a notebook from its first cell to its last, in one sandbox."""

import argparse
import json
import os
import sys
import textwrap
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, TextIO

from kernel_provider.commands.arguments import duration
from kernel_provider.entry import held_back
from kernel_provider.errors import SandboxError
from kernel_provider.run.files import prepare
from kernel_provider.run.model import CellReport, ExitCode, InputError, RunRequest, RunResult
from kernel_provider.run.parameters import parse_parameters
from kernel_provider.run.progress import Printer
from kernel_provider.run.text import printable
from kernel_provider.values import WORKSPACES

LONGEST: Final = 300
"""Characters of an exception's message in ours."""

_REMEDIES: Final[Mapping[str, str]] = {
    "StdinNotImplementedError": (
        "nobody can answer input() in a run: set a variable in a cell tagged 'parameters', "
        "use it instead, and give its value with -p NAME VALUE"
    ),
}
"""What to do about exceptions that a run itself brings about, by name."""

EXIT_CODES: Final[Mapping[int, str]] = {
    ExitCode.SUCCESS: "every cell ran",
    2: "a wrong command line",
    ExitCode.CELL_ERROR: "a cell raised an exception",
    ExitCode.CELL_TIMEOUT: "a cell ran longer than --cell-timeout",
    ExitCode.TIMEOUT: "the notebook ran longer than --timeout",
    ExitCode.OUT_OF_MEMORY: "the kernel used more than its memory",
    ExitCode.KERNEL_DIED: "the kernel died of something else",
    ExitCode.BAD_INPUT: "no such file, not a notebook, or a bad parameter",
    69: "the container engine does not answer, or failed",
    70: "the sandbox did not start",
    72: "the image is missing, or of another version",
    73: "the folder for kernel sockets cannot be used",
    ExitCode.NOT_SAVED: "the executed notebook could not be written",
    ExitCode.PROTOCOL_BROKEN: "the kernel sent what is no message of Jupyter's",
    77: "this user may not use the container engine",
    78: "a setting, limit, mount or kernel that is not possible",
    ExitCode.INTERRUPTED: "Ctrl-C; what there was is saved",
    ExitCode.TERMINATED: "SIGTERM; what there was is saved",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Fill in the command's arguments."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = (
        "Run a notebook in a sandbox of its own and save it with its outputs, also when a\n"
        "cell fails, the kernel dies, time is up or Ctrl-C ends it. Limits are for this run;\n"
        "the administrator's ceilings hold."
    )
    codes = "\n".join(f"  {int(code):>3}  {meaning}" for code, meaning in EXIT_CODES.items())
    parser.epilog = f"exit codes:\n{codes}"
    parser.add_argument("notebook", type=Path, metavar="NOTEBOOK", help="the file to run")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("-o", "--output", help="default: NOTEBOOK with .out.ipynb; - for stdout")
    where.add_argument("--in-place", action="store_true", help="write over the notebook itself")
    parser.add_argument(
        "-p",
        "--parameter",
        dest="parameters",
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "VALUE"),
        help="set below the cell tagged 'parameters', as papermill does",
    )
    _add_kernel(parser)
    parser.add_argument("--cell-timeout", type=duration, metavar="TIME", help="such as 30s")
    parser.add_argument("--timeout", type=duration, metavar="TIME", help="of it all: 10m")
    parser.add_argument("--allow-errors", action="store_true", help="go on after exceptions")
    parser.add_argument("--html", type=Path, metavar="FILE", help="save it as a page, too")
    parser.add_argument("--show", action="store_true", help="print each cell's outputs")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def _add_kernel(parser: argparse.ArgumentParser) -> None:
    """Which kernel it gets, with which limits and files."""
    parser.add_argument("--kernel", default="executor-ml", metavar="NAME", help="the kernelspec")
    parser.add_argument("--memory", metavar="SIZE", help="such as 512m or 2g")
    parser.add_argument("--cpus", metavar="NUMBER", help="processors, such as 0.5")
    parser.add_argument("--image", help="such as executor-ml-nlp:latest")
    parser.add_argument(
        "--mount",
        dest="mounts",
        action="append",
        type=_mount,
        default=[],
        metavar="TARGET=SOURCE",
        help="a folder, read-only, such as /data/mine=./mine",
    )
    parser.add_argument(
        "--workspace", choices=WORKSPACES, help="copy: give it a copy of the notebook's folder"
    )
    parser.add_argument(
        "--model",
        dest="models",
        action="append",
        default=[],
        metavar="ID",
        help="a model of the registry: executor-ml models list",
    )


def _mount(text: str) -> tuple[str, str]:
    target, equals, source = text.partition("=")
    if not (equals and target and source):
        msg = f"{text!r}: write TARGET=SOURCE, such as /data/mine=./mine"
        raise argparse.ArgumentTypeError(msg)
    return target, str(Path(source).absolute())


def main(args: argparse.Namespace) -> int:
    """Run it; raises SandboxError where it could not begin or be saved."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    to_stdout = args.output == "-"
    try:
        if args.json and to_stdout:
            raise InputError(
                what="--json and -o -",
                reason="both print to standard output",
                remedy="give a file with -o FILE",
            )
        stream = sys.stderr if args.json or to_stdout else sys.stdout
        result, output = _run(args, stream)
    except SandboxError as error:
        if args.json:
            print(json.dumps(_failure(args, error)))
        raise
    if to_stdout:
        sys.stdout.write(result.document)
        sys.stdout.flush()
    if args.json:
        print(json.dumps(_report(args, result, output)))
    _tell(result, output, args.html, stream)
    return int(result.exit_code)


def _run(args: argparse.Namespace, stream: TextIO) -> tuple[RunResult, Path | None]:
    output = Path(args.output) if args.output else args.notebook
    if not (args.output or args.in_place) and output.name:  # a folder without is told below
        output = output.with_suffix(".out.ipynb")
    given = {"memory": args.memory, "cpus": args.cpus, "image": args.image}
    given["workspace"] = args.workspace
    overrides: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if args.mounts:
        overrides["mounts"] = dict(args.mounts)
    if args.models:
        overrides["models"] = args.models
    request = RunRequest(
        notebook=args.notebook,
        output=None if args.output == "-" else output,
        html=args.html,
        parameters=parse_parameters(args.parameters),
        kernel=args.kernel,
        overrides=overrides,
        cell_timeout=args.cell_timeout,
        timeout=args.timeout,
        allow_errors=args.allow_errors,
        in_place=args.in_place,
    )
    text = prepare(request)
    printer = Printer(stream, os.environ, show=args.show)
    printer.opened(request.notebook, request.kernel)
    try:
        with held_back():
            from kernel_provider.run.execute import run_notebook  # noqa: PLC0415  takes 1 s

        return run_notebook(request, text, printer), request.output
    finally:
        printer.done()


def explain(result: RunResult, output: Path | None) -> tuple[str, str]:
    """What ended a run that did not succeed, and how to mend it."""
    cell = result.culprit
    where = f"cell {cell.number} of {len(result.cells)}" if cell else "the start of the kernel"
    kept = str(output) if output else "the notebook that was printed"
    match result.exit_code:
        case ExitCode.CELL_ERROR:
            assert cell is not None  # noqa: S101  a cell's error has a cell
            return (
                f"{where} failed: {_short(cell)}",
                _REMEDIES.get(cell.error)
                or f"its traceback is above and in {kept}; --allow-errors goes on after errors",
            )
        case ExitCode.CELL_TIMEOUT:
            return (f"{where}: {_message(cell)}", "make it quicker, or raise --cell-timeout")
        case ExitCode.TIMEOUT:
            said = _message(cell) or "it took longer than --timeout"
            return (f"{where}: {said}", "make it quicker, or raise --timeout")
        case ExitCode.OUT_OF_MEMORY:
            reason = result.death.reason if result.death else ""
            return (
                f"{where}: {reason}",
                f"load less at once, or give it more than {result.limits['memory']} with --memory",
            )
        case ExitCode.KERNEL_DIED | ExitCode.PROTOCOL_BROKEN:
            died = result.death
            return (f"{where}: {died.reason if died else ''}", died.remedy if died else "")
        case _:
            return (f"stopped in {where}", f"what there was until then is in {kept}")


def _message(cell: CellReport | None) -> str:
    return cell.message if cell else ""


def _short(cell: CellReport) -> str:
    first = printable(f"{cell.error}: {cell.message}").strip().partition("\n")[0]
    return textwrap.shorten(first, LONGEST, placeholder=" ...")


def _tell(result: RunResult, output: Path | None, html: Path | None, stream: TextIO) -> None:
    saved = " and ".join(str(path) for path in (output, html) if path is not None)
    if saved:
        print(f"saved {saved} after {result.seconds:.1f} s", file=stream, flush=True)
    for warning in result.warnings:
        print(f"executor-ml: {warning}", file=sys.stderr)
    if result.exit_code:
        summary, fix = explain(result, output)
        print(f"executor-ml: {summary}\nFix: {fix}", file=sys.stderr)


def _report(args: argparse.Namespace, result: RunResult, output: Path | None) -> dict[str, Any]:
    return {
        "status": result.exit_code.status,
        "exit_code": int(result.exit_code),
        "notebook": str(args.notebook),
        "output": str(output) if output else None,
        "html": str(args.html) if args.html else None,
        "kernel": args.kernel,
        "seconds": result.seconds,
        "limits": dict(result.limits),
        "cells": [asdict(cell) for cell in result.cells],
        "death": asdict(result.death) if result.death else None,
        "warnings": list(result.warnings),
        "error": None,
    }


def _failure(args: argparse.Namespace, error: SandboxError) -> dict[str, Any]:
    summary, _, fix = str(error).partition("\nFix: ")
    known = {int(code): code.status for code in ExitCode}
    return {
        "status": known.get(error.exit_code, "not_started"),
        "exit_code": error.exit_code,
        "notebook": str(args.notebook),
        "output": None,
        "html": None,
        "kernel": args.kernel,
        "seconds": None,
        "limits": {},
        "cells": [],
        "death": None,
        "warnings": [],
        "error": {"name": type(error).__name__, "summary": summary, "fix": fix},
    }
