"""Set a checkout up from nothing: ``python3 kernel_provider/setup/bootstrap.py venv``.

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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from kernel_provider.errors import SandboxError
from kernel_provider.setup import debian, engine_host
from kernel_provider.setup.checkout import Checkout
from kernel_provider.setup.engine_host import EngineHome
from kernel_provider.setup.machine import agree, announce, gather, start_engine
from kernel_provider.setup.plan import BrowserFacts, describe, plan
from kernel_provider.steps import CommandError, Steps, run_visibly

TARGETS = ("venv", "engine", "image", "test", "demo", "clean")
CLEANED = (".venv", "out", "build", "dist", ".mypy_cache", ".ruff_cache", ".pytest_cache")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one target; returns the exit code."""
    parser = argparse.ArgumentParser(prog="bootstrap", description=__doc__)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("rest", nargs=argparse.REMAINDER, help="passed on to the demo")
    options = parser.parse_args(arguments)
    checkout = Checkout(root=Path(__file__).resolve().parents[2])
    steps = Steps(sys.stdout)
    try:
        with _one_at_a_time(checkout.root, steps):
            if options.target == "clean":
                clean(checkout, EngineHome(), steps)
                return 0
            engine, browser = options.target != "venv", options.target == "test"
            set_up(checkout, steps, engine=engine, browser=browser)
        if options.target in ("image", "test", "demo"):
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


def set_up(checkout: Checkout, steps: Steps, *, engine: bool, browser: bool = False) -> None:
    """Bring ``.venv`` up to date and, if asked, have an engine that answers.

    A browser is installed if asked and if that works: tests that need it are skipped
    without.

    Raises:
        SetupError: the person has to do something first, or said no.
        SandboxError: a step failed.
    """
    home = EngineHome()
    facts = gather(home, os.environ, venv=checkout.state(), engine=engine)
    needed = plan(facts, engine=engine, browser=look_for_browser() if browser else None)
    announce(list(describe(needed, log=str(home.log), data=str(home.data))), steps)
    if needed.packages or needed.start_engine or needed.browser:
        agree(steps)
    if needed.packages:
        debian.install(needed.packages, steps)
    if needed.browser:
        install_browser(needed.browser, steps)
    checkout.update(steps)
    if needed.start_engine:
        start_engine(home, steps)


def look_for_browser() -> BrowserFacts:
    """What a browser lacks here, and whether BROWSER=no refuses one."""
    return BrowserFacts(
        missing=debian.missing(debian.BROWSER),
        refused=os.environ.get("BROWSER", "").lower() in ("no", "0", "false"),
    )


def install_browser(packages: Sequence[str], steps: Steps) -> None:
    """Install ``packages``, or say that the tests go on without them."""
    try:
        debian.install(packages, steps)
    except CommandError as error:
        steps.say(f"{error}\nGoing on: the tests in a browser will be skipped.")


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
