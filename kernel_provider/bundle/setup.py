"""A bundle's packages into a virtual environment of their own, then ``unbundle``.

Runs out of the wheel in the bundle, before anything is installed: standard library only.
"""

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from kernel_provider.bundle.archive import Reader
from kernel_provider.bundle.errors import ThereAlreadyError, WheelsUnfitError
from kernel_provider.bundle.model import WHEELS, Manifest, Target, this_machine
from kernel_provider.bundle.room import need_room
from kernel_provider.errors import SandboxError
from kernel_provider.steps import Steps, run_quietly, run_visibly

VENV: Final = "executor-ml-venv"
INTERRUPTED: Final = 130

UNPACKED: Final = 6
"""A wheel and what is installed of it, with its bytecode, against the wheel's size."""


def run(words: Sequence[str]) -> int:
    """Install and unbundle; errors are told in words, with an exit code of their own."""
    parser = argparse.ArgumentParser(prog="install.py")
    parser.add_argument("file", metavar="FILE", type=Path)
    parser.add_argument("--venv", metavar="DIR", type=Path, default=Path(VENV))
    parser.add_argument("--force", action="store_true")
    args, rest = parser.parse_known_args(words)
    steps = Steps(sys.stderr)
    command = args.venv / "bin" / "executor-ml"
    try:
        install(args.file, args.venv, steps, force=args.force)
        force = ["--force"] if args.force else []
        code = run_visibly([command, "unbundle", args.file, *force, *rest])
    except SandboxError as error:
        print(f"install.py: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("install.py: interrupted", file=sys.stderr)
        return INTERRUPTED
    if code:
        steps.say(f"The packages are in {args.venv}. To go on: {command} unbundle {args.file}")
    else:
        steps.say(f"Ready. To use it: . {args.venv / 'bin' / 'activate'}")
    return code


def install(bundle: Path, venv: Path, steps: Steps, *, force: bool) -> None:
    """Make ``venv`` with what is in ``bundle``; there is all of it afterwards, or nothing.

    Raises:
        NoBundleError, BundleDamagedError, BundleFormatError: as the bundle is.
        WheelsUnfitError, NoRoomError, ThereAlreadyError, CommandError: nothing was made.
    """
    with Reader(bundle) as reader, tempfile.TemporaryDirectory(prefix="executor-ml-") as folder:
        refuse_unfit(reader.manifest.target, this_machine(), bundle)
        _refuse_to_replace(venv, force=force)
        need_room("the virtual environment", venv.absolute(), UNPACKED * _size(reader.manifest))
        with steps.step("reading the packages") as note:
            wheels = reader.extract(WHEELS, Path(folder))
            note.text = f"{len(wheels)} wheels"
        with _made(venv):
            with steps.step(f"virtual environment {venv}") as note:
                note.text = f"Python {sys.version.split()[0]}"
                clear = ["--clear"] if force else []
                # Without pip, since Debian's Python has none to put in; ours is in the bundle.
                command = [sys.executable, "-m", "venv", "--without-pip", *clear, str(venv)]
                run_quietly(command, what=f"making {venv}")
            with steps.step("packages") as note:
                run_quietly(
                    pip_command(venv, wheels),
                    what="installing the packages",
                    environ=pip_environment(os.environ),
                )
                note.text = reader.manifest.package


def refuse_unfit(theirs: Target, ours: Target, bundle: Path) -> None:
    """Raise WheelsUnfitError for wheels that this Python can't use; names both."""
    if not theirs.runs_on(ours):
        options = f"--python {ours.python} --platform {ours.platform}"
        raise WheelsUnfitError(path=bundle, theirs=theirs, ours=ours, options=options)


def _refuse_to_replace(venv: Path, *, force: bool) -> None:
    """Only a virtual environment is ever cleared."""
    if not venv.exists() or (venv.is_dir() and not any(venv.iterdir())):
        return
    if not (venv / "pyvenv.cfg").is_file():
        raise ThereAlreadyError(
            path=venv,
            details=", and is no virtual environment",
            remedy="give another folder with --venv",
        )
    if not force:
        remedy = "add --force to make it anew, or give another folder with --venv"
        raise ThereAlreadyError(path=venv, details="", remedy=remedy)


def _size(manifest: Manifest) -> int:
    return sum(member.size for member in manifest.members if member.name.startswith(WHEELS))


@contextmanager
def _made(venv: Path) -> Iterator[None]:
    """Remove the environment if the body is cut short."""
    try:
        yield
    except BaseException:
        shutil.rmtree(venv, ignore_errors=True)
        raise


def pip_command(venv: Path, wheels: Sequence[Path]) -> list[str]:
    """The pip of the bundle, run out of its wheel, for exactly these wheels."""
    (pip,) = (path for path in wheels if path.name.startswith("pip-"))
    return [
        *(str(venv / "bin" / "python"), str(pip / "pip"), "install", "--no-index", "--no-input"),
        *("--no-cache-dir", "--progress-bar=off", "--disable-pip-version-check"),
        *("--quiet", "--root-user-action=ignore", *map(str, wheels)),
    ]


def pip_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Without any setting of pip's or Python's: no index, constraint or target of others."""
    kept = {k: v for k, v in environ.items() if not k.startswith(("PIP_", "PYTHON"))}
    return {**kept, "PIP_CONFIG_FILE": os.devnull}
