"""Wheels for the other machine: of this package as it is installed here, and of what it needs.

What is needed is worked out here, since pip asks the conditions of requirements of the
Python that runs it, whichever it downloads for. Versions are those of this environment, as
far as it has them: what was seen to work together is what is carried.
"""

import importlib.util
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from email.parser import HeaderParser
from importlib import metadata
from pathlib import Path
from typing import Final

from packaging.markers import default_environment
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from kernel_provider.builder.process import last_words
from kernel_provider.builder.wheels import (
    MANYLINUX_YEARS,
    OLDEST_GLIBC,
    glibc_platforms,
    pip_download,
    read_metadata,
    run_pip,
    target_options,
)
from kernel_provider.bundle.errors import WheelsError
from kernel_provider.bundle.model import Target, this_machine
from kernel_provider.bundle.repack import repack

PACKAGE: Final = "executor-ml-kernel"
ALWAYS: Final = (PACKAGE, "pip")
"""pip travels, too: Debian's Python has none, and makes no environment with one."""

_PYTHON: Final = re.compile(r"3\.(1[1-9]|[2-9][0-9])")
_TAG: Final = re.compile(r"manylinux_2_(\d+)_")

Requires = Callable[[str], Sequence[str]]
"""The Requires-Dist lines of a distribution; none for one that nobody knows yet."""


def read_target(python: str | None, wanted: str | None) -> Target:
    """The machine that wheels are for; what is not given is as here.

    Raises:
        WheelsError: no wheels of ours can be for that.
    """
    here = this_machine()
    for name, minor in MANYLINUX_YEARS.items():
        wanted = wanted and wanted.replace(f"manylinux{name}_", f"manylinux_2_{minor}_")
    target = Target(python=python or here.python, platform=wanted or here.platform)
    if not _PYTHON.fullmatch(target.python):
        raise WheelsError(
            reason=f"they are for CPython 3.11 or newer, and not for {target.python}",
            last_words="",
            remedy="name a version of CPython, such as --python 3.12",
        )
    try:
        _ = target.parts
    except ValueError as error:
        raise WheelsError(
            reason=f"{target.platform} is no platform that wheels for Linux are made for",
            last_words="",
            remedy="name one such as --platform manylinux_2_28_x86_64",
        ) from error
    return target


def collect(
    extras: Sequence[str], target: Target, folder: Path, say: Callable[[str], None]
) -> list[Path]:
    """Fill ``folder`` with the wheels of this package, of ``extras``, and of what they need.

    Raises:
        WheelsError: pip is missing or could not get one, or an extra is not installed here.
    """
    if importlib.util.find_spec("pip") is None:
        remedy = "python3 -m ensurepip, or on Debian: apt-get install python3-pip"
        raise WheelsError(reason="this Python has no pip", last_words="", remedy=remedy)
    roots = [Requirement(name) for name in ALWAYS] + [_installed_extra(text) for text in extras]
    own = repack(metadata.distribution(PACKAGE), folder)
    there: set[str] = {canonicalize_name(PACKAGE)}
    while True:
        needed = closure(roots, environment(target), lambda name: _requires(name, folder))
        missing = {name: text for name, text in needed.items() if name not in there}
        if not missing:
            return [own, *sorted(set(folder.glob("*.whl")) - {own})]
        _download(list(missing.values()), target, folder, say)
        there |= missing.keys()


def _installed_extra(text: str) -> Requirement:
    remedy = f"pip install {text} here first: what is carried are the versions that are here"
    try:
        requirement = Requirement(text)
        metadata.distribution(requirement.name)
    except InvalidRequirement as error:
        reason = f"{text!r} is no requirement"
        raise WheelsError(reason=reason, last_words="", remedy="give a name of pip's") from error
    except metadata.PackageNotFoundError as error:
        reason = f"{text} is not installed here"
        raise WheelsError(reason=reason, last_words="", remedy=remedy) from error
    return requirement


def environment(target: Target) -> Mapping[str, str]:
    """What the conditions of requirements are asked of (PEP 508)."""
    return {
        **{key: str(value) for key, value in default_environment().items()},
        "python_version": target.python,
        "python_full_version": f"{target.python}.0",
        "implementation_version": f"{target.python}.0",
        "platform_machine": target.parts[2],
    }


def closure(
    roots: Sequence[Requirement], environment: Mapping[str, str], requires: Requires
) -> dict[str, str]:
    """Everything that ``roots`` need, by name, as pip is asked for it."""
    found: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    pending = [(root, extra) for root in roots for extra in ("", *root.extras)]
    while pending:
        requirement, extra = pending.pop()
        name = canonicalize_name(requirement.name)
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        found.setdefault(name, _pinned(requirement))
        for line in requires(name):
            inner = Requirement(line)
            if inner.marker is None or inner.marker.evaluate({**environment, "extra": extra}):
                pending += [(inner, more) for more in ("", *inner.extras)]
    return found


def _pinned(requirement: Requirement) -> str:
    """At the version that is here, or as it is asked for."""
    try:
        return f"{requirement.name}=={metadata.version(requirement.name)}"
    except metadata.PackageNotFoundError:
        return f"{requirement.name}{requirement.specifier}"


def _requires(name: str, folder: Path) -> Sequence[str]:
    try:
        return metadata.requires(name) or ()
    except metadata.PackageNotFoundError:
        for wheel in folder.glob("*.whl"):
            if canonicalize_name(wheel.name.partition("-")[0]) == name:
                headers = HeaderParser().parsestr(read_metadata(wheel))
                return headers.get_all("Requires-Dist") or ()
        return ()


def _download(
    wanted: Sequence[str], target: Target, folder: Path, say: Callable[[str], None]
) -> None:
    options = target_options(target.python, platforms(target))
    code, lines = run_pip([*pip_download(folder), *options, *wanted], say)
    if code:
        raise WheelsError(
            reason=f"pip has not all of them for Python {target}",
            last_words=last_words(lines),
            remedy="give pip an index that has them, or name another --python or --platform",
        )


def platforms(target: Target) -> list[str]:
    """Every platform whose wheels run there, the best first."""
    library, (major, minor), machine = target.parts
    if library == "manylinux":
        return glibc_platforms(minor, machine)
    return [f"musllinux_{major}_{lower}_{machine}" for lower in range(minor, -1, -1)]


def least(wheels: Sequence[Path], target: Target) -> Target:
    """The oldest platform that all of these wheels run on, which ``target`` may be above."""
    library, _, machine = target.parts
    if library != "manylinux":
        return target
    minors = [min(_minors(path, target)) for path in wheels]
    return Target(
        python=target.python, platform=f"manylinux_2_{max(OLDEST_GLIBC, *minors)}_{machine}"
    )


def _minors(wheel: Path, target: Target) -> Iterator[int]:
    """The versions of glibc 2 that a wheel says it runs with."""
    for tag in wheel.stem.rpartition("-")[2].split("."):
        year = next((m for y, m in MANYLINUX_YEARS.items() if tag.startswith(f"manylinux{y}_")), 0)
        if year:
            yield year
        elif found := _TAG.match(tag):
            yield int(found[1])
        else:
            yield OLDEST_GLIBC if tag == "any" else target.parts[1][1]
