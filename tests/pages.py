"""Pages that people read: what they tell people to type, and doing so as they would."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import nbformat

from kernel_provider.engines.docker import find_socket

ROOT: Final = Path(__file__).parent.parent
GENERATED: Final = ("commands.md", "errors.md", "seccomp.md")
"""Made from the source, and compared with it where they are made."""


def read(name: str) -> str:
    """A page by its path in the repository."""
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    """A page's code blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def commands(text: str) -> list[str]:
    """Every shell command of a page in its order, on one line and without its comment."""
    lines = "".join(blocks(text, "sh")).replace("\\\n", "").splitlines()
    plain = [re.split(r"  #| # ", line)[0].strip() for line in lines]
    return [re.sub(r"\s+", " ", line) for line in plain if line]


def quotes(text: str) -> list[str]:
    """The messages that a page quotes, one on a line of its own each."""
    return re.findall(r"^> (.+)$", text, re.MULTILINE)


def rows(text: str, *head: str) -> Iterator[list[str]]:
    """Rows of the table whose head this is."""
    lines = iter(text.splitlines())
    for line in lines:
        if _cells(line) == list(head):
            next(lines)
            break
    for line in lines:
        if not line.startswith("|"):
            break
        yield _cells(line)


def _cells(line: str) -> list[str]:
    return [cell.strip().strip("`") for cell in line.strip().strip("|").split("|")]


def persons_folder(folder: Path) -> Path:
    """Put what the pages' commands name into a folder: notebooks, a script, data."""
    plain = {"name": "python3", "display_name": "Python 3", "language": "python"}
    cells = [nbformat.v4.new_code_cell(source) for source in ("rows = 1", "print(6 * 7)")]
    cells[0].metadata["tags"] = ["parameters"]
    book = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": plain})
    for name in ("notebook", "analysis"):
        nbformat.write(book, folder / f"{name}.ipynb")
    (folder / "script.py").write_text("print(6 * 7)")
    (folder / "mine").mkdir()
    return folder


def typed(
    command: str, folder: Path, *, beside: Path | None = None, within: float = 300
) -> subprocess.CompletedProcess[str]:
    """Run a command as typed in a folder; programs of this environment come first.

    ``beside`` is a folder of packages, as if they were installed as well. Raises
    subprocess.TimeoutExpired where it does not end ``within`` so many seconds.
    """
    program, *words = shlex.split(command)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environ = {**os.environ}
    if beside is not None:
        path = f"{beside / 'bin'}:{path}"
        environ |= {"PATH": path, "PYTHONPATH": str(beside)}
    found = shutil.which(program, path=path)
    assert found, f"{program} is not installed"
    if program == "docker":
        environ["DOCKER_HOST"] = f"unix://{find_socket(os.environ)}"
    return subprocess.run(
        [found, *words],
        cwd=folder,
        env=environ,
        input="print(6 * 7)\nexit\n",
        capture_output=True,
        text=True,
        timeout=within,
        check=False,
    )
