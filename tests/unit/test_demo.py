"""The demo's parts that need neither an engine nor a model."""

import ast
import io
from pathlib import Path

import nbformat
from small_models import folder

from kernel_provider.demo import model, notebook
from kernel_provider.demo.__main__ import lab_command
from kernel_provider.models.add import Request, add
from kernel_provider.models.sources import from_path
from kernel_provider.models.store import Registry
from kernel_provider.steps import Note, Steps


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


def test_models_are_added_once() -> None:
    """Writing over one's own kernelspec changes nothing more."""
    spec = {
        "display_name": "Python (ML)",
        "metadata": {
            "debugger": False,
            "kernel_provisioner": {"provisioner_name": "p", "config": {"memory": "1g"}},
        },
    }
    once = notebook.with_models(spec, ["org/m@main"], " + m")
    assert once["display_name"] == "Python (ML) + m"
    assert once["metadata"]["debugger"] is False
    assert once["metadata"]["kernel_provisioner"]["config"] == {
        "memory": "1g",
        "models": ["org/m@main"],
    }
    assert notebook.with_models(once, ["org/m@main"], " + m") == once
    assert "models" not in str(spec)


def test_a_model_that_is_there_is_used(tmp_path: Path) -> None:
    """Whoever added it: nothing is downloaded, and the person hears where it is."""
    registry = Registry(tmp_path / "registry")
    assert model.find(registry) is None
    found = from_path(model.ID, folder(tmp_path / "m"))
    entry = add(registry, Request(model=model.ID, revision="v1"), found, Note())
    stream = io.StringIO()
    assert model.prepare(registry, Steps(stream)) == entry
    assert f"{model.ID}@v1: already in {registry.root}" in stream.getvalue()


def test_the_last_words_can_be_pasted(tmp_path: Path) -> None:
    """The command names the kernelspec's folder and the notebook, by full paths."""
    command = lab_command(tmp_path / "jupyter", tmp_path / "demo.ipynb")
    assert command.startswith(f"JUPYTER_PATH={tmp_path}/jupyter /")
    assert command.endswith(f"{tmp_path}/demo.ipynb")
