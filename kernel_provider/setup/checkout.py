"""The virtual environment of a source checkout, kept by content.

Two stamps: one over the interpreter and the locked dependencies, one over what the
package is built from. What they say is current is not touched. Standard library only:
it runs before anything is installed.
"""

import hashlib
import importlib.util
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from kernel_provider.steps import Steps, run_quietly

LOCK: Final = Path("tests/requirements.lock")
PACKAGE_SOURCES: Final = (
    "pyproject.toml",
    "README.md",
    "LICENSE",
    "kernel_provider",
    "image",
    "kernelspecs",
)


@dataclass(frozen=True, kw_only=True)
class Checkout:
    """A source tree at ``root`` and its ``.venv``."""

    root: Path

    @property
    def venv(self) -> Path:
        """The virtual environment."""
        return self.root / ".venv"

    @property
    def python(self) -> Path:
        """The interpreter in it."""
        return self.venv / "bin" / "python"

    def state(self) -> Literal["current", "package", "all"]:
        """What of the virtual environment is out of date."""
        if _read(self.venv / "stamp-lock") != lock_digest(self.root):
            return "all"
        if _read(self.venv / "stamp-package") != source_digest(self.root):
            return "package"
        return "current"

    def update(self, steps: Steps) -> None:
        """Bring the virtual environment up to date; an interrupted one is made anew.

        Raises:
            CommandError: pip or venv failed.
        """
        state = self.state()
        if state == "all":
            self._make(steps)
        if state != "current":
            self._install_package(steps)

    def _make(self, steps: Steps) -> None:
        shutil.rmtree(self.venv, ignore_errors=True)
        digest = lock_digest(self.root)
        with steps.step("virtual environment .venv") as note:
            note.text = f"Python {sys.version.split()[0]}"
            run_quietly([base_python(), "-m", "venv", self.venv], what="making .venv")
        with steps.step(f"packages of {LOCK}") as note:
            options = ["--require-hashes", "--no-input", "--progress-bar=off"]
            self._pip(*options, "-r", str(self.root / LOCK), what="installing packages")
            found = list(self.venv.glob("lib/python3.*/site-packages/*.dist-info"))
            note.text = f"{len(found)} packages"
        (self.venv / "stamp-lock").write_text(digest)

    def _install_package(self, steps: Steps) -> None:
        digest = source_digest(self.root)
        with steps.step("this checkout, with its kernelspec, into .venv"):
            options = [
                "--no-deps",
                "--no-build-isolation",
                "--force-reinstall",
                "--no-input",
            ]
            self._pip(*options, str(self.root), what="installing this checkout")
        (self.venv / "stamp-package").write_text(digest)

    def _pip(self, *options: str, what: str) -> None:
        """Pip with the person's own configuration, but never out of ``.venv``."""
        environ = {k: v for k, v in os.environ.items() if k not in _FOREIGN}
        environ |= {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_ROOT_USER_ACTION": "ignore"}
        command = [str(self.python), "-m", "pip", "install", "--quiet", *options]
        run_quietly(command, what=what, environ=environ, cwd=self.root)


_FOREIGN: Final = ("PYTHONPATH", "PYTHONHOME", "PIP_TARGET", "PIP_PREFIX", "PIP_USER")


def has_ensurepip() -> bool:
    """Whether this Python can make virtual environments (Debian's may not)."""
    return importlib.util.find_spec("ensurepip") is not None


def base_python() -> Path:
    """The interpreter that makes ``.venv``, even when called from within it."""
    if sys.prefix == sys.base_prefix:
        return Path(sys.executable)
    return Path(sys.base_prefix, "bin", f"python{sys.version_info[0]}.{sys.version_info[1]}")


def lock_digest(root: Path) -> str:
    """Names the interpreter and the locked dependencies."""
    digest = hashlib.sha256(f"{sys.version} {sys.base_prefix} {root}\0".encode())
    digest.update((root / LOCK).read_bytes())
    return digest.hexdigest()


def source_digest(root: Path) -> str:
    """Names everything that the package is built from."""
    digest = hashlib.sha256()
    for path in _files(root):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(root)}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def _files(root: Path) -> Iterator[Path]:
    for name in PACKAGE_SOURCES:
        top = root / name
        found = sorted(top.rglob("*")) if top.is_dir() else [top]
        for path in found:
            if path.is_file() and "__pycache__" not in path.parts:
                yield path


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
