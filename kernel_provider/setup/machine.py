"""This machine as set-up finds it, and the two ways in which it changes it.

Standard library only: it also runs before anything is installed.
"""

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import Literal

from kernel_provider import names
from kernel_provider.engines.docker import DockerEngine
from kernel_provider.errors import EngineUnreachableError, SandboxError
from kernel_provider.setup import debian, engine_host
from kernel_provider.setup.checkout import has_ensurepip
from kernel_provider.setup.engine_host import EngineHome, EngineStatus
from kernel_provider.setup.plan import Facts, describe, plan
from kernel_provider.steps import SetupError, Steps


def gather(
    home: EngineHome,
    environ: Mapping[str, str],
    *,
    venv: Literal["current", "package", "all"],
    engine: bool,
) -> Facts:
    """Look at the machine; changes nothing. The engine is asked only if it matters."""
    status, problem, remedy = look_for_engine(home, environ) if engine else (None, "", "")
    return Facts(
        root=os.geteuid() == 0,
        debian=debian.is_debian(),
        ensurepip=has_ensurepip(),
        venv=venv,
        engine=status.socket if status else None,
        engine_problem=problem,
        engine_remedy=remedy,
        engine_chosen=bool(environ.get("DOCKER_HOST")),
        engine_refused=environ.get("ENGINE", "").lower() in ("no", "0", "false"),
        dockerd=engine_host.dockerd_path() is not None,
        debootstrap=shutil.which("debootstrap", path=engine_host.SYSTEM_PATH) is not None,
        base_image=status is not None and _has_base_image(status),
    )


def look_for_engine(
    home: EngineHome, environ: Mapping[str, str]
) -> tuple[EngineStatus | None, str, str]:
    """An engine that answers, or None with the reason and, if there is one, a remedy."""
    try:
        return engine_host.find(environ, home), "", ""
    except EngineUnreachableError as error:
        return None, str(error).partition("\n")[0], ""
    except SandboxError as error:
        reason, _, remedy = str(error).partition("\nFix: ")
        return None, reason, remedy


def have_engine(home: EngineHome, steps: Steps) -> EngineStatus:
    """An engine that answers; one of our own is installed and started if need be.

    Raises:
        SetupError: the person has to do something first, or said no.
        SandboxError: it could not be installed or started.
    """
    needed = plan(gather(home, os.environ, venv="current", engine=True), engine=True)
    announce(list(describe(needed, log=str(home.log), data=str(home.data))), steps)
    if needed.packages or needed.start_engine:
        agree(steps)
    if needed.packages:
        debian.install(needed.packages, steps)
    if needed.start_engine:
        start_engine(home, steps)
    return engine_host.find(os.environ, home)


def announce(changes: Sequence[str], steps: Steps) -> None:
    """Say what will be changed; says nothing if that is nothing."""
    if changes:
        steps.say("This will:")
    for line in changes:
        steps.say(f"  {line}" if line.startswith(" ") else f"  - {line}")


def agree(steps: Steps) -> None:
    """Ask on a terminal; elsewhere go on, since what will happen was just printed.

    Raises:
        SetupError: the answer was no.
    """
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        steps.say("Going on, since nobody can be asked here.")
        return
    try:
        answer = input("Go on? [Y/n] ").strip().lower()
    except EOFError:
        answer = "n"
    if answer not in ("", "y", "yes"):
        raise SetupError(reason="nothing was changed", remedy="repeat it when you agree")


def start_engine(home: EngineHome, steps: Steps) -> None:
    """Start our engine, with what it is called when it answers."""
    with steps.step("container engine") as note:
        status = engine_host.start(home)
        note.text = f"Docker {status.version} at {status.socket}"


def _has_base_image(status: EngineStatus) -> bool:
    try:
        DockerEngine(status.socket).image(names.BASE_IMAGE)
    except SandboxError:
        return False
    return True
