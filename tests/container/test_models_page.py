"""What docs/models.md tells people to type works."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from legacy_weights import legacy_weights
from small_models import gguf, gpt2

pytestmark = pytest.mark.container

PAGE = (Path(__file__).parent.parent.parent / "docs/models.md").read_text(encoding="utf-8")
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def blocks(language: str) -> list[str]:
    """The page's code blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


def commands() -> list[str]:
    """Every command of the page, without its comment."""
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    return [line.partition("  #")[0].strip() for line in lines if line.strip()]


@pytest.fixture
def person(tmp_path: Path) -> dict[str, str]:
    """A folder with all that the page speaks of, and the environment of who sits there."""
    gpt2(tmp_path / "tiny")
    gpt2(tmp_path / "site/tiny_package/model")
    snapshot = gpt2(tmp_path / "hub/models--my-org--cached/snapshots" / COMMIT)
    refs = snapshot.parent.parent / "refs"
    refs.mkdir()
    (refs / "main").write_text(COMMIT)
    (tmp_path / "tiny.gguf").write_bytes(gguf({"a": (2, 3)}, "mit"))
    legacy_weights(tmp_path / "old")
    (example,) = blocks("python")
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(example)])
    nbformat.write(book, tmp_path / "notebook.ipynb")
    return {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(tmp_path / "site"),
        "HF_HUB_CACHE": str(tmp_path / "hub"),
        "JUPYTER_DATA_DIR": str(tmp_path / "jupyter"),
        "EXECUTOR_ML_MODELS": str(tmp_path / "registry"),
    }


def test_every_command_works(person: dict[str, str], tmp_path: Path, image: str) -> None:
    """As typed, one after the other, in one folder."""
    assert image
    assert len(commands()) > 10
    for command in commands():
        done = subprocess.run(
            shlex.split(command),
            cwd=tmp_path,
            env=person,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stderr}"
    book = nbformat.read(tmp_path / "notebook.out.ipynb", as_version=4)
    assert "the cat sat" in book.cells[0].outputs[-1].text
    assert (tmp_path / "jupyter/kernels/tiny/kernel.json").exists()
