"""The demo's parts that need neither an engine nor a model."""

import ast
from pathlib import Path
from typing import Any

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


def test_outputs_are_shown_as_text() -> None:
    """Colours are dropped, a figure is named, an error is shown whole."""
    outputs: list[dict[str, Any]] = [
        {"output_type": "stream", "text": "\x1b[31mred\x1b[0m\nline\n"},
        {
            "output_type": "display_data",
            "data": {"image/png": "A" * 4000, "text/plain": "F"},
        },
        {"output_type": "execute_result", "data": {"text/plain": "42"}},
        {
            "output_type": "error",
            "ename": "E",
            "evalue": "v",
            "traceback": ["a\nb", "E: v"],
        },
        {"output_type": "error", "ename": "E", "evalue": "v", "traceback": []},
    ]
    assert list(notebook.shown(outputs)) == [
        "red",
        "line",
        "[figure, 3 kB: see the HTML file]",
        "42",
        "a",
        "b",
        "E: v",
        "E: v",
    ]


def test_a_cell_is_named_by_its_first_comment() -> None:
    """So that progress reads like a table of contents."""
    assert notebook.title("\n# Ask a model\nx = 1") == "Ask a model"
    assert notebook.title("x = 1") == "x = 1"


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
