"""What setting up has to change on this machine, decided before anything is changed.

Standard library only: it also runs before anything is installed.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

from kernel_provider.setup import debian
from kernel_provider.steps import SetupError

VENV_PACKAGE: Final = "python3-venv"
ENGINE_PACKAGE: Final = "docker.io"
BASE_PACKAGE: Final = "debootstrap"

BY_HAND: Final = (
    "install Docker (Debian and Ubuntu: apt-get install docker.io) and start it, or set "
    "DOCKER_HOST to the unix:// socket of an engine that you may use; then repeat this"
)


@dataclass(frozen=True, kw_only=True)
class Facts:
    """The machine as it was found.

    ``venv`` is ``current``, or what is out of date: the ``package`` alone, or ``all``.
    ``engine`` is the socket of an engine that answers, or None; ``engine_problem`` is
    then the reason, and ``engine_remedy`` what mends it if that is more than starting one.
    ``base_image`` says whether the engine has our base image already.
    """

    root: bool
    debian: bool
    ensurepip: bool
    venv: Literal["current", "package", "all"]
    engine: str | None
    engine_problem: str
    engine_remedy: str
    engine_chosen: bool
    engine_refused: bool
    dockerd: bool
    debootstrap: bool
    base_image: bool


@dataclass(frozen=True, kw_only=True)
class BrowserFacts:
    """Debian packages that a browser for the tests still needs, and whether it may."""

    missing: tuple[str, ...]
    refused: bool


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What will be changed; all false means nothing.

    ``browser`` are packages, too, but nothing depends on them: where they cannot be
    had, the rest goes on.
    """

    packages: tuple[str, ...]
    venv: Literal["current", "package", "all"]
    start_engine: bool
    browser: tuple[str, ...] = ()


def plan(facts: Facts, *, engine: bool, browser: BrowserFacts | None = None) -> Plan:
    """What is missing for a virtual environment and, if asked, for an engine or a browser.

    Raises:
        SetupError: the person has to do something first; its text says what.
    """
    packages: list[str] = []
    if facts.venv == "all" and not facts.ensurepip:
        packages.append(_venv_package(facts))
    start_engine = engine and facts.engine is None
    if start_engine:
        packages.extend(_engine_packages(facts))
    may_install = facts.root and facts.debian
    if engine and may_install and not facts.debootstrap and not facts.base_image:
        packages.append(BASE_PACKAGE)
    may_browse = browser is not None and may_install and not browser.refused
    return Plan(
        packages=tuple(packages),
        venv=facts.venv,
        start_engine=start_engine,
        browser=browser.missing if browser is not None and may_browse else (),
    )


def describe(plan_: Plan, *, log: str, data: str) -> Iterator[str]:
    """The lines that tell a person what will be changed, empty for nothing."""
    if plan_.packages:
        yield f"install Debian packages: {' '.join(debian.install_command(plan_.packages))}"
    if ENGINE_PACKAGE in plan_.packages:
        yield "  (no service starts now; systemd starts docker.service at the next boot)"
    if plan_.browser:
        yield f"install Debian packages: {' '.join(debian.install_command(plan_.browser))}"
        yield "  (a browser for the tests in JupyterLab, about 1 GB; BROWSER=no does without)"
    if plan_.start_engine:
        yield "start a container engine of its own: no bridge, no firewall rules"
        yield f"  (images in {data}, log in {log}; 'make clean' stops it)"
    if plan_.venv == "all":
        yield "make .venv here with the packages of tests/requirements.lock (about 0.5 GB)"
    elif plan_.venv == "package":
        yield "install this checkout into .venv"


def _venv_package(facts: Facts) -> str:
    if facts.root and facts.debian:
        return VENV_PACKAGE
    raise SetupError(
        reason="this Python cannot make virtual environments: it has no ensurepip",
        remedy=(
            "have python3-venv installed (apt-get install python3-venv), or name another "
            "Python: make PYTHON=/path/to/python3"
        ),
    )


def _engine_packages(facts: Facts) -> list[str]:
    if facts.engine_remedy:
        raise SetupError(reason=facts.engine_problem, remedy=facts.engine_remedy)
    if facts.engine_chosen:
        raise SetupError(reason=facts.engine_problem, remedy="start it, or unset DOCKER_HOST")
    if facts.engine_refused:
        raise SetupError(reason=f"{facts.engine_problem}, and ENGINE=no", remedy=BY_HAND)
    if not facts.root:
        raise SetupError(
            reason=facts.engine_problem,
            remedy=f"{BY_HAND}; root may just repeat this, which then starts one",
        )
    if facts.dockerd:
        return []
    if not facts.debian:
        raise SetupError(reason=facts.engine_problem, remedy=BY_HAND)
    return [ENGINE_PACKAGE]
