"""What docs/models.md tells people to type works."""

from pathlib import Path

import nbformat
import pytest
from legacy_weights import legacy_weights
from pages import blocks, commands, read, typed
from small_models import gguf, gpt2

pytestmark = pytest.mark.container

PAGE = read("docs/models.md")
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with all that the page speaks of, and the environment of who sits there."""
    gpt2(tmp_path / "tiny")
    gpt2(tmp_path / "site/tiny_package/model")
    snapshot = gpt2(tmp_path / "hub/models--my-org--cached/snapshots" / COMMIT)
    refs = snapshot.parent.parent / "refs"
    refs.mkdir()
    (refs / "main").write_text(COMMIT)
    (tmp_path / "tiny.gguf").write_bytes(gguf({"a": (2, 3)}, "mit"))
    legacy_weights(tmp_path / "old")
    (example,) = blocks(PAGE, "python")
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(example)])
    nbformat.write(book, tmp_path / "notebook.ipynb")
    for variable, name in {
        "PYTHONPATH": "site",
        "HF_HUB_CACHE": "hub",
        "JUPYTER_DATA_DIR": "jupyter",
        "EXECUTOR_ML_MODELS": "registry",
    }.items():
        monkeypatch.setenv(variable, str(tmp_path / name))
    return tmp_path


@pytest.mark.soak
def test_every_command_works(folder: Path, image: str) -> None:
    """As typed, one after the other, in one folder."""
    assert image
    assert len(commands(PAGE)) > 10
    for command in commands(PAGE):
        done = typed(command, folder)
        assert done.returncode == 0, f"{command}\n{done.stderr}"
    book = nbformat.read(folder / "notebook.out.ipynb", as_version=4)
    assert "the cat sat" in book.cells[0].outputs[-1].text
    assert (folder / "jupyter/kernels/tiny/kernel.json").exists()
