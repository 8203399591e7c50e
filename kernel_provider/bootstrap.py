"""Set a checkout up from nothing: ``python3 kernel_provider/bootstrap.py venv``.

Runs with any Python 3.11 or newer and the standard library, before anything is
installed. Prints what it will change and asks on a terminal; changes nothing that is
already as it should be.
"""

import sys

if __name__ == "__main__" and not __package__:
    if sys.version_info < (3, 11):  # noqa: UP036  an older one may well run this
        found = ".".join(map(str, sys.version_info[:3]))
        sys.stderr.write(f"Python 3.11 or newer is needed, this is {found}.\n")
        sys.stderr.write("Fix: make PYTHON=/path/to/python3\n")
        sys.exit(2)
    sys.path[0] = __file__.rpartition("kernel_provider")[0] or "."

import argparse
import fcntl
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from kernel_provider import debian, engine_host, names
from kernel_provider.checkout import Checkout, has_ensurepip
from kernel_provider.engine_host import EngineHome, EngineStatus
from kernel_provider.engines.docker import DockerEngine
from kernel_provider.errors import SandboxError
from kernel_provider.setup_plan import Facts, Plan, describe, plan
from kernel_provider.steps import SetupError, Steps, run_visibly

CLEANED = (".venv", "out", "build", "dist", ".mypy_cache", ".ruff_cache", ".pytest_cache")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one target; returns the exit code."""
    parser = argparse.ArgumentParser(prog="bootstrap", description=__doc__)
    parser.add_argument("target", choices=("venv", "engine", "image", "demo", "clean"))
    parser.add_argument("rest", nargs=argparse.REMAINDER, help="passed on to the demo")
    options = parser.parse_args(arguments)
    checkout = Checkout(root=Path(__file__).resolve().parent.parent)
    steps = Steps(sys.stdout)
    try:
        with _one_at_a_time(checkout.root, steps):
            if options.target == "clean":
                clean(checkout, EngineHome(), steps)
                return 0
            set_up(checkout, steps, engine=options.target != "venv")
        if options.target in ("image", "demo"):
            code = run_visibly([checkout.venv / "bin" / "executor-ml", "build"])
            if code:
                return code
    except SandboxError as error:
        sys.stderr.write(f"\n{error}\n")
        return error.exit_code
    except KeyboardInterrupt:
        sys.stderr.write("\nStopped; what was finished is kept, repeat to go on.\n")
        return 130
    if options.target == "demo":
        _become(checkout, ["-m", "kernel_provider.demo", *options.rest])
    return 0


def set_up(checkout: Checkout, steps: Steps, *, engine: bool) -> None:
    """Bring ``.venv`` up to date and, if asked, have an engine that answers.

    Raises:
        SetupError: the person has to do something first, or said no.
        SandboxError: a step failed.
    """
    home = EngineHome()
    needed = plan(gather(checkout, home, os.environ, engine=engine), engine=engine)
    lines = list(describe(needed, log=str(home.log), data=str(home.data)))
    if lines:
        steps.say("This will:")
        for line in lines:
            steps.say(f"  {line}" if line.startswith(" ") else f"  - {line}")
        if needed.packages or needed.start_engine:
            _agree(steps)
        _act(needed, checkout, home, steps)


def gather(
    checkout: Checkout, home: EngineHome, environ: Mapping[str, str], *, engine: bool
) -> Facts:
    """Look at the machine; changes nothing. The engine is asked only if it matters."""
    status, problem = _look_for_engine(home, environ) if engine else (None, "")
    return Facts(
        root=os.geteuid() == 0,
        debian=debian.is_debian(),
        ensurepip=has_ensurepip(),
        venv=checkout.state(),
        engine=status.socket if status else None,
        engine_problem=problem,
        engine_chosen=bool(environ.get("DOCKER_HOST")),
        engine_refused=environ.get("ENGINE", "").lower() in ("no", "0", "false"),
        dockerd=engine_host.dockerd_path() is not None,
        debootstrap=shutil.which("debootstrap", path=engine_host.SYSTEM_PATH) is not None,
        base_image=status is not None and _has_base_image(status),
    )


def clean(checkout: Checkout, home: EngineHome, steps: Steps) -> None:
    """Stop our engine and remove what was made in the checkout."""
    if home.run.exists():
        with steps.step("stopping our engine") as note:
            note.text = "" if engine_host.stop(home) else "it did not run"
    for name in CLEANED:
        shutil.rmtree(checkout.root / name, ignore_errors=True)
    steps.say(f"Removed: {', '.join(CLEANED)}")
    if home.data.exists():
        steps.say(f"Kept: the images of our engine, in {home.data}")


def _look_for_engine(
    home: EngineHome, environ: Mapping[str, str]
) -> tuple[EngineStatus | None, str]:
    try:
        return engine_host.find(environ, home), ""
    except SandboxError as error:
        return None, str(error).partition("\n")[0]


def _has_base_image(status: EngineStatus) -> bool:
    try:
        DockerEngine(status.socket).image(names.BASE_IMAGE)
    except SandboxError:
        return False
    return True


def _agree(steps: Steps) -> None:
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        steps.say("Going on, since nobody can be asked here.")
        return
    try:
        answer = input("Go on? [Y/n] ").strip().lower()
    except EOFError:
        answer = "n"
    if answer not in ("", "y", "yes"):
        raise SetupError(reason="nothing was changed", remedy="repeat it when you agree")


def _act(needed: Plan, checkout: Checkout, home: EngineHome, steps: Steps) -> None:
    if needed.packages:
        debian.install(needed.packages, steps)
    if needed.venv != "current":
        checkout.update(steps)
    if needed.start_engine:
        with steps.step("container engine") as note:
            status = engine_host.start(home)
            note.text = f"Docker {status.version} at {status.socket}"


def _become(checkout: Checkout, arguments: Sequence[str]) -> None:
    """Replace this process, so that Ctrl-C and exit codes are the demo's own."""
    bin_ = checkout.venv / "bin"
    os.environ["PATH"] = f"{bin_}{os.pathsep}{os.environ.get('PATH', '')}"
    sys.stdout.flush()
    os.execv(checkout.python, [str(checkout.python), *arguments])  # noqa: S606  no shell


@contextmanager
def _one_at_a_time(root: Path, steps: Steps) -> Iterator[None]:
    """Hold the checkout's folder, so that two runs don't make ``.venv`` at once."""
    handle = os.open(root, os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with steps.step("waiting for another run in this checkout"):
                fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


if __name__ == "__main__":
    sys.exit(main())
