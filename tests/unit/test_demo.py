"""The demo's parts that need neither an engine nor a model."""

import ast
from pathlib import Path

import nbformat

from kernel_provider.demo import model, notebook
from kernel_provider.demo.__main__ import lab_command


def test_the_notebook_is_a_notebook() -> None:
    """It is valid, was not run before, and each cell is Python."""
    book = notebook.load()
    nbformat.validate(book)
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    assert len(code) >= 5
    for cell in code:
        ast.parse(cell.source)
        assert not cell.outputs
        assert cell.execution_count is None


def test_mounts_are_added_once() -> None:
    """Writing over one's own kernelspec changes nothing more."""
    spec = {
        "display_name": "Python (ML)",
        "metadata": {
            "debugger": False,
            "kernel_provisioner": {"provisioner_name": "p", "config": {"memory": "1g"}},
        },
    }
    once = notebook.with_mounts(spec, {"/models/m": "/host/m"}, " + m")
    assert once["display_name"] == "Python (ML) + m"
    assert once["metadata"]["debugger"] is False
    assert once["metadata"]["kernel_provisioner"]["config"] == {
        "memory": "1g",
        "mounts": {"/models/m": "/host/m"},
    }
    assert notebook.with_mounts(once, {"/models/m": "/host/m"}, " + m") == once
    assert "mounts" not in str(spec)


def test_a_model_is_made_anew_when_its_recipe_changes(tmp_path: Path) -> None:
    """Only a finished folder with the stamp of this very recipe is used."""
    cache = model.cache_for({"XDG_CACHE_HOME": str(tmp_path)})
    assert not cache.is_current()
    cache.model.mkdir(parents=True)
    assert not cache.is_current()
    cache.stamp.write_text("another recipe")
    assert not cache.is_current()
    cache.stamp.write_text(model.recipe_digest())
    assert cache.is_current()


def test_the_last_words_can_be_pasted(tmp_path: Path) -> None:
    """The command names the kernelspec's folder and the notebook, by full paths."""
    command = lab_command(tmp_path / "jupyter", tmp_path / "demo.ipynb")
    assert command.startswith(f"JUPYTER_PATH={tmp_path}/jupyter /")
    assert command.endswith(f"{tmp_path}/demo.ipynb")
