"""The generated pages are what the code says today."""

import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent.parent / "docs"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pages, made anew by the installed package."""
    folder = tmp_path_factory.mktemp("docs")
    module = "kernel_provider.commands.reference"
    subprocess.run([sys.executable, "-I", "-m", module, str(folder)], check=True)
    return folder


@pytest.mark.parametrize("page", ["commands.md", "errors.md"])
def test_the_page_is_up_to_date(page: str, made: Path) -> None:
    """If not: make venv, then .venv/bin/python -m kernel_provider.commands.reference."""
    assert (DOCS / page).read_text(encoding="utf-8") == (made / page).read_text(encoding="utf-8")


def test_every_argument_is_explained(made: Path) -> None:
    """No cell of the tables is empty."""
    for page in made.iterdir():
        lines = page.read_text(encoding="utf-8").splitlines()
        rows = [line for line in lines if line.startswith("| ")]
        assert len(rows) > 10
        assert not [row for row in rows if "|  |" in row]
