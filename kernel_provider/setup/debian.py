"""Debian packages that setting up may need, and nothing else of the system.

Standard library only: it also runs before anything is installed.
"""

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from kernel_provider.steps import CommandError, Steps, run_quietly

POLICY: Final = Path("/usr/sbin/policy-rc.d")
BROWSER: Final = {
    "chromium": "usr/bin/chromium",
    "fonts-dejavu-core": "usr/share/fonts/truetype/dejavu/DejaVuSans.ttf",
    "libatomic1": "usr/lib/*/libatomic.so.1",
}
"""A browser, letters for it, and what the driver in Playwright's wheel is linked with;
each with a file by which to tell that it is there."""

_POLICY_TEXT: Final = "#!/bin/sh\n# executor-ml: no service starts meanwhile\nexit 101\n"


def is_debian(root: Path = Path("/")) -> bool:
    """Whether packages come from apt here."""
    return (root / "etc/debian_version").exists() and shutil.which("apt-get") is not None


def missing(packages: Mapping[str, str], root: Path = Path("/")) -> tuple[str, ...]:
    """Those of ``packages`` whose file, a pattern under ``root``, is not there."""
    return tuple(name for name, file in packages.items() if not any(root.glob(file)))


def install_command(packages: Sequence[str]) -> list[str]:
    """What installs ``packages`` and removes nothing; also shown to the person."""
    return ["apt-get", "install", "-y", "--no-remove", "--no-install-recommends", *packages]


def install(packages: Sequence[str], steps: Steps) -> None:
    """Install ``packages`` as root; none of their services is started.

    The package lists are fetched only if apt does not know a package yet, or no longer
    finds it where the lists say.

    Raises:
        CommandError: apt failed; the system is as apt left it.
    """
    environ = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    what = f"installing {' '.join(packages)}"
    with steps.step(f"Debian packages: {' '.join(packages)}") as note, services_held():
        try:
            run_quietly(install_command(packages), what=what, environ=environ)
        except CommandError:
            note.text = "with new package lists"
            run_quietly(["apt-get", "update"], what="apt-get update", environ=environ)
            run_quietly(install_command(packages), what=what, environ=environ)


@contextmanager
def services_held(policy: Path = POLICY) -> Iterator[None]:
    """Keep packages from starting services meanwhile; an existing policy is respected.

    docker.io starts an engine with a bridge and firewall rules otherwise, and where it
    can't, the installation fails. One that a killed run of ours left behind goes too.
    https://people.debian.org/~hmh/invokerc.d-policyrc.d-specification.txt
    """
    if policy.exists() and policy.read_text(errors="replace") != _POLICY_TEXT:
        yield
        return
    policy.write_text(_POLICY_TEXT)
    policy.chmod(0o755)
    try:
        yield
    finally:
        policy.unlink(missing_ok=True)
