"""Pages of documentation as tests take them: their code blocks, and their commands run."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def page(name: str) -> str:
    """The text of a page, by its path from the top."""
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    """The code blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def commands(text: str) -> list[str]:
    """Every shell command, without its comment."""
    lines = [
        line.partition("  #")[0] for block in blocks(text, "sh") for line in block.splitlines()
    ]
    return [line.partition(" # ")[0].strip() for line in lines if line.strip()]


def run_as_typed(command: str, folder: Path) -> None:
    """Run a command as a person types it in ``folder``; it must end with success."""
    program, *words = shlex.split(command)
    found = shutil.which(program, path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert found, f"{program} is not installed"
    done = subprocess.run(
        [found, *words],
        cwd=folder,
        input="print(6 * 7)\nexit\n",
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
